package caddyoauth_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// exitStatus is the exit status of a command that returned err.
func exitStatus(err error) int {
	switch {
	case err == nil:
		return 0
	case strings.Contains(fmt.Sprintf("%T", err), "exitError"):
		return 2 // Caddy's way of ending with more than 1
	}
	return 1
}

// explainFolder has files with a Caddyfile, a line of ten dashes, and questions: the arguments of
// 'caddy oauth explain', with § for a space inside of one. The file with the same name and the ending
// .golden has what is answered. After an intended change, run the test with -update and read the
// diff.
const explainFolder = "testdata/explain"

func TestExplainSaysWhichWayARequestGoes(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(explainFolder, "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no questions: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			config, questions, _ := strings.Cut(strings.ReplaceAll(string(text), "\r\n", "\n"), separator)
			t.Chdir(t.TempDir())
			if err := os.WriteFile("Caddyfile", []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for line := range strings.Lines(questions) {
				args := strings.Fields(line)
				for i := range args {
					args[i] = strings.ReplaceAll(args[i], "§", " ")
				}
				stdout, stderr, err := caddyCLI(t, "", append([]string{"explain"}, args...)...)
				fmt.Fprintf(&got, "$ %s%s%s= %d\n\n", line, stdout, stderr, exitStatus(err))
				// JSON says the same.
				stdout, _, err2 := caddyCLI(t, "", append([]string{"explain", "--json"}, args...)...)
				var answer struct {
					Outcome struct{ Kind string }
				}
				if exitStatus(err2) != exitStatus(err) || stderr == "" && (json.Unmarshal([]byte(stdout), &answer) != nil || answer.Outcome.Kind == "") {
					t.Errorf("%s: with --json: %v, %s", line, err2, stdout)
				}
			}
			golden := filepath.Join(testFolder, strings.TrimSuffix(file, ".txt")+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if want := strings.ReplaceAll(string(want), "\r\n", "\n"); got.String() != want {
				t.Errorf("got\n%s\nwant\n%s", got.String(), want)
			}
		})
	}
}

// testFolder is the folder that the tests run in.
var testFolder = func() string {
	folder, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	return folder
}()

// A token comes from standard input. As an argument, it is not repeated.
func TestExplainTakesNoTokenAsAnArgument(t *testing.T) {
	const token = "coa_the-token-on-the-command-line"
	for _, args := range [][]string{{"--token", token, "GET", "https://api.example.com/"}, {"--token", "-", token}, {token}, {"--header", "Authorization: Bearer " + token, "GET", "https://api.example.com/"}} {
		stdout, stderr, err := caddyCLI(t, token, append([]string{"explain"}, args...)...)
		if exitStatus(err) != 2 || strings.Contains(stdout+stderr+err.Error(), token) || !strings.HasPrefix(stderr, "Error: ") {
			t.Errorf("%q: %v\n%s\n%s", args, err, stdout, stderr)
		}
	}
}

// The running gateway explains what becomes of a token: one of its own from its store or cache, one
// from elsewhere by asking there. It leaves no trace in its cache and its counters, and no answer has
// the token.
func TestExplainOfATokenAsksTheRunningGateway(t *testing.T) {
	var questions atomic.Int64
	remote := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		questions.Add(1)
		w.Header().Set("Content-Type", "application/json")
		if r.FormValue("token") == "from-elsewhere" {
			fmt.Fprint(w, `{"active":true,"client_id":"far","scope":"x"}`)
			return
		}
		fmt.Fprint(w, `{"active":false}`)
	}))
	defer remote.Close()
	config, admin := withAdmin(t, caddyfileOf(`store memory
client reports {
	secret_hash `+testHash+`
	scopes read
	default_scopes read
}`, `oauth_server
handle /own/* {
	oauth_protect {
		scopes write
	}
	reverse_proxy BACKEND
}
handle /basic/* {
	oauth_protect {
		basic
	}
	reverse_proxy BACKEND
}
handle /remote/* {
	oauth_protect {
		source introspect `+remote.URL+`
	}
	reverse_proxy BACKEND
}`))
	g := startCaddyfile(t, config)
	token := g.token("reports", "read")

	ask := func(body string) (int, string) {
		t.Helper()
		resp, err := http.Post("http://"+admin+"/oauth/explain", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var b bytes.Buffer
		b.ReadFrom(resp.Body)
		return resp.StatusCode, b.String()
	}
	type told struct {
		Token   string
		Asked   []string
		Outcome struct {
			Kind, Cause, At string
			Status          int
		}
		Means string
	}
	explain := func(path, token string) (e told) {
		t.Helper()
		before := allCounts(t)
		status, text := ask(fmt.Sprintf(`{"method":"GET","url":%q,"token":%q}`, g.URL+path, token))
		if status != 200 || json.Unmarshal([]byte(text), &e) != nil || strings.Contains(text, token) {
			t.Fatalf("%s: %d %s", path, status, text)
		}
		if after := allCounts(t); !maps.Equal(before, after) {
			t.Errorf("%s: asking has been counted:\n%v\n%v", path, before, after)
		}
		return e
	}
	for range 2 { // nothing is remembered
		e := explain("/own/x", token)
		if e.Outcome.Kind != "refused" || e.Outcome.Status != 403 || e.Outcome.Cause != "scope" || len(e.Asked) != 1 || !strings.Contains(e.Token, "reports") || e.Means == "" {
			t.Errorf("its own token: %+v", e)
		}
	}
	g.get("/own/x", token) // now it is in the cache
	if e := explain("/own/x", token); e.Outcome.Cause != "scope" || len(e.Asked) != 0 {
		t.Errorf("its own token, cached: %+v", e)
	}
	asked := questions.Load()
	if e := explain("/remote/x", "from-elsewhere"); e.Outcome.Kind != "pass" || len(e.Asked) != 1 || e.Asked[0] != remote.URL || !strings.Contains(e.Token, "far") {
		t.Errorf("a token from elsewhere: %+v", e)
	}
	if n := questions.Load() - asked; n != 1 {
		t.Errorf("the server was asked %d times", n)
	}
	if e := explain("/own/x", "coa_"+strings.Repeat("A", 60)); e.Outcome.Cause != "forged" {
		t.Errorf("a forged token: %+v", e)
	}
	g.revoke("reports", token)
	if e := explain("/own/x", token); e.Outcome.Cause != "revoked" {
		t.Errorf("a revoked token: %+v", e)
	}

	// The command asks in the same way.
	stdout, stderr, err := caddyCLI(t, "from-elsewhere\n", "explain", "--token", "-", "--address", admin, "GET", g.URL+"/remote/x")
	if exitStatus(err) != 0 || !strings.Contains(stdout, "It passes") || strings.Contains(stdout+stderr, "from-elsewhere") {
		t.Errorf("%v\n%s\n%s", err, stdout, stderr)
	}
	stdout, _, err = caddyCLI(t, "", "explain", "--client", "reports", "--address", admin, "GET", g.URL+"/own/x")
	if exitStatus(err) != 1 || !strings.Contains(stdout, "scope") {
		t.Errorf("%v\n%s", err, stdout)
	}
	if _, stderr, err = caddyCLI(t, token, "explain", "--token", "-", "--address", "127.0.0.1:1", "GET", g.URL+"/own/x"); exitStatus(err) != 2 || strings.Contains(stderr, token) {
		t.Errorf("nobody there: %v\n%s", err, stderr)
	}

	// It checks no secrets, which would help to guess them.
	status, text := ask(fmt.Sprintf(`{"method":"GET","url":%q,"header":{"Authorization":["Basic cmVwb3J0czphYmM="]}}`, g.URL+"/basic/x"))
	if status != 200 || !strings.Contains(text, `"kind":"unknown"`) || strings.Contains(text, "cmVwb3J0czphYmM") {
		t.Errorf("a secret: %d %s", status, text)
	}

	// What the endpoint refuses, it refuses without repeating it.
	for _, body := range []string{`{"token":"canary"`, `{"method":"GET","url":"http://x/","tokens":"canary"}`, `["canary"]`, `{"method":"GET","url":"http://x/","token":"canary","client":"reports"}`,
		`{"method":"GET","url":"canary"}{}`, `{"method":"GET","url":"http://x/","header":{"A":["canary\r\nB: c"]}}`, `{"method":"GET","url":"http://x/","client":"nobody"}`, `{"method":"GET","url":"http://x/","realm":"root"}`, `{"method":"G T","url":"http://x/"}`} {
		if status, text := ask(body); status != 400 || strings.Contains(text, "canary") {
			t.Errorf("%s: %d %s", body, status, text)
		}
	}
	resp, err := http.Post("http://"+admin+"/oauth/explain", "text/plain", strings.NewReader("{}"))
	if err != nil || resp.StatusCode != 415 {
		t.Errorf("a form: %v %v", resp, err)
	}
	resp.Body.Close()
	resp, err = http.Get("http://" + admin + "/oauth/explain")
	if err != nil || resp.StatusCode != 405 || resp.Header.Get("Allow") != "POST" {
		t.Errorf("GET: %v %v", resp, err)
	}
	resp.Body.Close()
}

// allCounts returns all counts of the gateway, as text. For how long a client has done nothing is none.
func allCounts(t *testing.T) map[string]string {
	t.Helper()
	ctx := caddy.ActiveContext()
	families, err := ctx.GetMetricsRegistry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := make(map[string]string)
	for _, family := range families {
		if strings.HasPrefix(family.GetName(), "caddy_oauth_") && family.GetName() != "caddy_oauth_client_unused_seconds" {
			counts[family.GetName()] = family.String()
		}
	}
	return counts
}
