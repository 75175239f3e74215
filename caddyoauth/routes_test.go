package caddyoauth_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var updateRoutes = flag.Bool("update-routes", false, "write what 'caddy oauth routes' prints into testdata/routes")

// What 'caddy oauth routes' prints for the configurations in testdata/routes, for people and as
// JSON.
func TestRoutes(t *testing.T) {
	t.Setenv("ROUTES_TEST_SECRET", "abcdefgh-abcdefgh-abcdefgh-abcdefgh")
	files, err := filepath.Glob("testdata/routes/*/Caddyfile")
	if err != nil || len(files) < 3 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, file := range files {
		for name, option := range map[string]string{"routes.txt": "", "routes.json": "--json"} {
			name = filepath.Join(filepath.Dir(file), name)
			t.Run(filepath.ToSlash(name), func(t *testing.T) {
				args := []string{"routes", "--config", filepath.ToSlash(file)}
				if option != "" {
					args = append(args, option)
				}
				got, stderr, err := caddyCLI(t, "", args...)
				if err != nil || stderr != "" {
					t.Fatalf("%v\n%s", err, stderr)
				}
				if strings.Contains(got, "s3cret") {
					t.Error("the value of a header is shown")
				}
				if *updateRoutes {
					if err := os.WriteFile(name, []byte(got), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				if want = bytes.ReplaceAll(want, []byte("\r\n"), []byte("\n")); got != string(want) {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
				if option == "" {
					return
				}
				if !json.Valid([]byte(got)) {
					t.Error("no JSON")
				}
			})
		}
	}
}

// The filters list what they are for, and say by the exit status whether there is any.
func TestRoutesFilters(t *testing.T) {
	routes := func(args ...string) (string, string, error) {
		return caddyCLI(t, "", append([]string{"routes", "-c", "testdata/routes/one_realm/Caddyfile"}, args...)...)
	}
	open, _, err := routes("--open")
	if err == nil || !strings.Contains(open, "OPEN") || strings.Contains(open, "NOBODY") || strings.Contains(open, "reports") {
		t.Errorf("--open: %v\n%s", err, open)
	}
	nobody, _, err := routes("--nobody")
	if err == nil || strings.Contains(nobody, "OPEN") || !strings.Contains(nobody, "NOBODY") {
		t.Errorf("--nobody: %v\n%s", err, nobody)
	}
	file := filepath.Join(t.TempDir(), "Caddyfile")
	closed := "{\nadmin off\nauto_https off\noauth {\nstore memory\n" + testClients + "}\n}\n:80 {\noauth_protect\nrespond 200\n}\n"
	if err := os.WriteFile(file, []byte(closed), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _, err := caddyCLI(t, "", "routes", "-c", file, "--open", "--nobody"); err != nil || out != "" {
		t.Errorf("nothing is open, and nothing closed to all: %v\n%s", err, out)
	}
}

// A configuration that can't be read, or isn't valid, is an error that says why.
func TestRoutesOfNoConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "Caddyfile")
	if err := os.WriteFile(file, []byte("{\noauth {\ntoken_lifetime 1\n}\n}\n:80 {\noauth_protect\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, why := range map[string]string{file: "token_lifetime", file + ".missing": "no such file"} {
		out, stderr, err := caddyCLI(t, "", "routes", "-c", name)
		if err == nil || out != "" || !strings.Contains(stderr, why) {
			t.Errorf("%v\n%s\n%s", err, out, stderr)
		}
	}
}
