package caddyoauth_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// linted is a finding as 'caddy oauth lint --json' prints it.
type linted struct {
	Code, Kind, At, Path, Text, Means, Do string
	Certain                               bool
	Sites                                 []string
	Silenced                              *struct{ Reason, At string }
}

// lintCaddyfile returns what lint finds in a Caddyfile, and its exit status.
func lintCaddyfile(t testing.TB, text string) (findings []linted, status string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "Caddyfile")
	if err := os.WriteFile(file, []byte(formatted(text)), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, err := caddyCLI(t, "", "lint", "--json", "--config", file)
	if stderr != "" {
		t.Fatalf("%v\n%s\n%s", err, stderr, text)
	}
	var answer struct{ Findings []linted }
	if err := json.Unmarshal([]byte(stdout), &answer); err != nil {
		t.Fatalf("%v: %s", err, stdout)
	}
	for i := range answer.Findings {
		f := &answer.Findings[i]
		f.At = strings.TrimPrefix(f.At, filepath.Dir(file)+string(filepath.Separator))
	}
	return answer.Findings, fmt.Sprint(err)
}

// lintedLines returns the line and the code of each finding that is not silenced.
func lintedLines(t testing.TB, text string) (lines []string) {
	t.Helper()
	findings, _ := lintCaddyfile(t, text)
	for _, f := range findings {
		if f.Silenced == nil {
			lines = append(lines, strings.TrimPrefix(f.At, "Caddyfile:")+" "+f.Code)
		}
	}
	return lines
}

// lintGlobals are the first lines of Caddyfiles in these tests.
const lintGlobals = "{\nadmin off\nauto_https off\noauth {\nstore memory\n"

func TestLintClientWithoutScopes(t *testing.T) {
	got := lintedLines(t, lintGlobals+`client c {
			secret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0
		}
	}
	}
	:8080 {
	bind 127.0.0.1
	oauth_server
	}`)
	if want := []string{"6 client-without-scopes"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

// A code that does not exist silences nothing, so it is refused, in a Caddyfile and in JSON.
func TestLintIgnoreOfAnUnknownCode(t *testing.T) {
	_, err := adapt(t, formatted(lintGlobals+"lint_ignore no-such-code because\n}\n}\n:8080\n"))
	if err == nil || !strings.Contains(err.Error(), "unknown lint_ignore 'no-such-code' (known: ") || !strings.Contains(err.Error(), "client-without-scopes") {
		t.Errorf("%v", err)
	}
	for part, json := range map[string]string{
		"app":    `{"apps":{"oauth":{"lint_ignore":[IGNORE]}}}`,
		"realm":  `{"apps":{"oauth":{"realms":{"a":{"lint_ignore":[IGNORE]}}}}}`,
		"client": `{"apps":{"oauth":{"realms":{"a":{"clients":{"c":{"disabled":true,"lint_ignore":[IGNORE]}}}}}}}`,
		"server": `{"apps":{"oauth":{},"http":{"servers":{"s":{"routes":[{"handle":[{"handler":"oauth_server","lint_ignore":[IGNORE]}]}]}}}}}`,
		"route":  `{"apps":{"oauth":{},"http":{"servers":{"s":{"routes":[{"handle":[{"handler":"oauth_protect","lint_ignore":[IGNORE]}]}]}}}}}`,
	} {
		for ignore, want := range map[string]string{
			`{"code":"no-such-code","reason":"x"}`:                                 "unknown lint_ignore 'no-such-code'",
			`{"code":"client-without-scopes"}`:                                     "give the reason",
			`{"code":"client-without-scopes","reason":"x","site":"a.example.com"}`: "a site can be named only in the oauth app",
		} {
			err := validate([]byte(strings.Replace(json, "IGNORE", ignore, 1)))
			switch {
			case part == "app" && strings.Contains(ignore, "site"):
				if err != nil {
					t.Errorf("%s: %v", part, err)
				}
			case err == nil || !strings.Contains(err.Error(), want):
				t.Errorf("%s: %v, want %q", part, err, want)
			}
		}
	}
}
