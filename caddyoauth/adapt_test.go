package caddyoauth_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

var update = flag.Bool("update", false, "write the adapter's current output to testdata/adapt, for review")

const (
	adaptFolder = "testdata/adapt"
	// separator stands between a Caddyfile and what it becomes.
	separator = "----------\n"
	// leakedSecret is the secret that the Caddyfiles in testdata have where none belongs.
	leakedSecret = "hunter2"
)

// golden is a file in testdata/adapt: a Caddyfile, and the JSON or the error that it becomes.
type golden struct {
	name, file      string
	caddyfile, want string
}

func goldens(t testing.TB) []golden {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(adaptFolder, "*.caddyfiletest"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	var all []golden
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		// A checkout on Windows may have other line endings.
		text := strings.ReplaceAll(string(b), "\r\n", "\n")
		input, want, ok := strings.Cut(text, separator)
		if !ok {
			t.Fatalf("%s has no line of ten dashes", file)
		}
		name := strings.TrimSuffix(filepath.Base(file), ".caddyfiletest")
		all = append(all, golden{name: name, file: file, caddyfile: input, want: want})
	}
	return all
}

// fails reports whether the Caddyfile is one that must be refused.
func (g golden) fails() bool { return strings.HasPrefix(g.name, "error_") }

// adapt turns a Caddyfile into JSON. Any warning of Caddy's is an error of the test.
func adapt(t testing.TB, text string) ([]byte, error) {
	t.Helper()
	config, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	for _, w := range warnings {
		t.Errorf("the adapter warns: %s", w)
	}
	return config, err
}

// formatted returns a Caddyfile as 'caddy fmt' would write it.
func formatted(text string) string { return string(caddyfile.Format([]byte(text))) }

// goldenEnvironment sets the variables that the Caddyfiles in testdata refer to.
func goldenEnvironment(t testing.TB) {
	t.Setenv("OAUTH_TEST_SECRET", leakedSecret)
	t.Setenv("OAUTH_TEST_HASH", "$sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0")
	folder := t.TempDir()
	t.Setenv("OAUTH_TEST_DIR", folder)
	for _, name := range []string{"new.pem", "old.pem"} {
		writeSigningKey(t, filepath.Join(folder, name))
	}
	if err := os.Rename(newKeyClient(t, "batch").file, filepath.Join(folder, "batch.json")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("OAUTH_TEST_HOST", "auth.example.com")
	certFile, keyFile, _ := certificate(t)
	t.Setenv("OAUTH_TEST_CERT", certFile)
	t.Setenv("OAUTH_TEST_KEY", keyFile)
	t.Setenv("OAUTH_TEST_ENCRYPTION_KEY", leakedSecret+strings.Repeat("1", 32))
	t.Setenv("OAUTH_TEST_FORMER_KEY", leakedSecret+strings.Repeat("2", 32))
}

// Every option has a file that shows its JSON, and every mistake one that shows its error. After an
// intended change, run the test with -update and read the diff.
func TestAdapt(t *testing.T) {
	goldenEnvironment(t)
	for _, g := range goldens(t) {
		t.Run(g.name, func(t *testing.T) {
			if want := formatted(g.caddyfile); want != g.caddyfile {
				t.Errorf("the Caddyfile is not formatted; 'caddy fmt' would write\n%s", want)
			}
			config, err := adapt(t, g.caddyfile)
			if (err != nil) != g.fails() {
				t.Fatalf("adapting: %v", err)
			}
			got := indent(t, config)
			if err != nil {
				// Other tests register a store and a source of their own.
				got = strings.NewReplacer("memory, outage", "memory", "local, reading", "local").Replace(err.Error()) + "\n"
				if strings.Contains(got, leakedSecret) {
					t.Errorf("the error holds the secret: %s", got)
				}
				if !strings.Contains(got, "Caddyfile:") {
					t.Errorf("the error names no line: %s", got)
				}
			}
			if *update {
				if err := os.WriteFile(g.file, []byte(g.caddyfile+separator+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != g.want {
				t.Errorf("got\n%s\nwant\n%s", got, g.want)
			}
		})
	}
}

// The adapter's output is a valid configuration.
func TestAdaptedConfigurationsAreValid(t *testing.T) {
	goldenEnvironment(t)
	for _, g := range goldens(t) {
		if g.fails() {
			continue
		}
		t.Run(g.name, func(t *testing.T) {
			config, err := adapt(t, g.caddyfile)
			if err != nil {
				t.Fatal(err)
			}
			if err := validate(config); err != nil {
				t.Error(err)
			}
		})
	}
}

// A secret that a Caddyfile refers to is nowhere in the adapted configuration, which is saved,
// dumped, and served by the admin endpoint.
func TestAdaptedConfigurationsHoldNoSecret(t *testing.T) {
	goldenEnvironment(t)
	referred := 0
	for _, g := range goldens(t) {
		if g.fails() {
			continue
		}
		config, err := adapt(t, g.caddyfile)
		if err != nil {
			t.Fatalf("%s: %v", g.name, err)
		}
		if bytes.Contains(config, []byte("{env.OAUTH_TEST_SECRET}")) {
			referred++
		}
		if bytes.Contains(config, []byte(leakedSecret)) {
			t.Errorf("%s: the secret is in the configuration", g.name)
		}
	}
	if referred == 0 {
		t.Error("no golden file refers to the secret, so this test proves nothing")
	}
}

// validate does what 'caddy validate' does.
func validate(config []byte) error {
	var c *caddy.Config
	if err := caddy.StrictUnmarshalJSON(config, &c); err != nil {
		return err
	}
	return caddy.Validate(c)
}

func indent(t testing.TB, config []byte) string {
	t.Helper()
	if config == nil {
		return ""
	}
	var b bytes.Buffer
	if err := json.Indent(&b, config, "", "\t"); err != nil {
		t.Fatal(err)
	}
	b.WriteByte('\n')
	return b.String()
}
