package caddyoauth_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/fcgi"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"golang.org/x/net/websocket"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// recipes are the cookbook's by heading: for each block, in order, what it has to do.
var recipes = map[string][]func(t *testing.T, b docBlock){
	"Let browsers call from another origin (CORS)":    {corsRecipe, corsOfTheBackendRecipe},
	"Ask for another scope to write":                  {methodsRecipe},
	"Let everybody read":                              {readingRecipe},
	"Protect what is in use":                          {reportRecipe},
	"From Basic to tokens in four steps":              {basicStep1, basicStep2, basicStep3, basicStep4},
	"Put one backend under two prefixes":              {prefixesRecipe},
	"Give the backend an API key for each client":     {apiKeysRecipe},
	"Put a token in front of PHP":                     {phpRecipe},
	"Protect an MCP server":                           {mcpRecipe},
	"Let browsers open WebSockets":                    {webSocketRecipe},
	"See the clients' addresses behind a balancer":    {balancerRecipe},
	"Let clients in by their certificates":            {certificatesRecipe},
	"Bind tokens to keys, one client after the other": {dpopRecipe},
	"Log more about the caller":                       {logRecipe},
	"Update without two processes on one file":        {updateRecipe},
}

// Every block of the cookbook does what its recipe says, in a real Caddy. A recipe without a test
// fails.
func TestCookbook(t *testing.T) {
	const file = "docs/cookbook.md"
	blocks := make(map[string][]docBlock)
	var headings []string
	lines := strings.Split(readDocument(t, file), "\n")
	for i, line := range lines {
		if heading, ok := strings.CutPrefix(line, "## "); ok {
			headings = append(headings, heading)
			for _, b := range docBlocks(t, file) {
				if b.line > i && !strings.Contains(strings.Join(lines[i+1:b.line], "\n"), "\n## ") {
					blocks[heading] = append(blocks[heading], b)
				}
			}
		}
	}
	for _, heading := range headings {
		t.Run(heading, func(t *testing.T) {
			tries := recipes[heading]
			if len(tries) != len(blocks[heading]) || len(tries) == 0 {
				t.Fatalf("the recipe has %d blocks, and %d of them have a test", len(blocks[heading]), len(tries))
			}
			for i, b := range blocks[heading] {
				t.Run(b.String(), func(t *testing.T) { tries[i](t, b) })
			}
		})
	}
	if len(recipes) != len(headings) {
		t.Errorf("%d recipes have a test, the cookbook has %d", len(recipes), len(headings))
	}
}

// startRecipe runs the lines of a site from the cookbook. The test's backend replaces the one on
// port 9000, pairs of old and new text are replaced, and a token endpoint is added if there is
// none.
func startRecipe(t *testing.T, b docBlock, pairs ...string) *gateway {
	t.Helper()
	if b.kind != "caddyfile site" {
		t.Fatalf("%v: the block is of kind %q", b, b.kind)
	}
	site := changed(t, b.text, append(pairs, "127.0.0.1:9000", "BACKEND")...)
	if !strings.Contains(site, "oauth_server") {
		site = "oauth_server\n" + site
	}
	return startGateway(t, "store memory\n"+docClients, site)
}

// changed replaces pairs of old and new text in a block. Each old text must be there, unless
// BACKEND replaces it.
func changed(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) && pairs[i+1] != "BACKEND" {
			t.Fatalf("the block has no %q", pairs[i])
		}
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// tokenAt fetches a token for the client that documents may rely on.
func (g *gateway) tokenAt(path string, scopes ...string) string {
	g.t.Helper()
	a := g.patiently(func() answer {
		return g.post(path, "myClient", testSecret, url.Values{"grant_type": {"client_credentials"}, "scope": {strings.Join(scopes, " ")}})
	})
	token, _ := a.json(g.t)["access_token"].(string)
	if token == "" {
		g.t.Fatalf("no token at %s: %d %s", path, a.StatusCode, a.Body)
	}
	return token
}

// send sends a request with a token, or without one if it is empty, and checks the status.
func (g *gateway) send(want int, method, path, token string, headers ...string) answer {
	g.t.Helper()
	r := g.request(method, path, "", headers...)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	a := g.do(r)
	if a.StatusCode != want {
		g.t.Errorf("%s %s, token %t, headers %q: %d, want %d", method, path, token != "", headers, a.StatusCode, want)
	}
	return a
}

// preflight asks for permission to send a request with a token from origin.
func (g *gateway) preflight(path, origin, method string) answer {
	g.t.Helper()
	return g.do(g.request("OPTIONS", path, "", "Origin", origin, "Access-Control-Request-Method", method, "Access-Control-Request-Headers", "authorization"))
}

func corsRecipe(t *testing.T, b docBlock) {
	g := startRecipe(t, b)
	const app = "https://app.example.com"
	for _, path := range []string{"/api/x", "/oauth2/access_token"} {
		a := g.preflight(path, app, "POST")
		h := a.Header
		if a.StatusCode != 204 || h.Get("Access-Control-Allow-Origin") != app || !strings.Contains(h.Get("Access-Control-Allow-Headers"), "Authorization") || !strings.Contains(h.Get("Access-Control-Allow-Methods"), "POST") {
			t.Errorf("a preflight of %s gets %d with %v", path, a.StatusCode, h)
		}
	}
	// A request that only looks like a preflight doesn't get in.
	for what, headers := range map[string][]string{
		"OPTIONS alone":            nil,
		"with no method asked for": {"Origin", app},
		"with no origin":           {"Access-Control-Request-Method", "GET"},
		"from another origin":      {"Origin", "https://evil.example", "Access-Control-Request-Method", "GET"},
	} {
		if a := g.do(g.request("OPTIONS", "/api/x", "", headers...)); a.StatusCode != 401 || a.Header.Get("Access-Control-Allow-Methods") != "" {
			t.Errorf("%s: %d with %v", what, a.StatusCode, a.Header)
		}
	}
	if a := g.do(g.request("GET", "/api/x", "", "Origin", app, "Access-Control-Request-Method", "GET")); a.StatusCode != 401 || a.Header.Get("Access-Control-Allow-Origin") != app {
		t.Errorf("without a token: %d, which the page may read if its origin is allowed: %v", a.StatusCode, a.Header)
	}
	if g.Backend.count() > 0 {
		t.Error("a request without a token reached the backend")
	}
	deferred := b
	deferred.text = changed(t, b.text, "header Access-Control-Allow-Origin", "header >Access-Control-Allow-Origin")
	if a := startRecipe(t, deferred).get("/api/x", ""); a.StatusCode != 401 || a.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("deferred, a refusal has %v", a.Header)
	}
	g = startRecipe(t, b)

	// If the backend allows origins itself, its header doesn't come on top of ours.
	g.Backend.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		fmt.Fprint(w, "backend")
	})
	issued := g.do(g.request("POST", "/oauth2/access_token", "grant_type=client_credentials&scope=read&client_id=myClient&client_secret="+testSecret,
		"Origin", app, "Content-Type", "application/x-www-form-urlencoded"))
	token, _ := issued.json(t)["access_token"].(string)
	if issued.StatusCode != 200 || issued.Header.Get("Access-Control-Allow-Origin") != app {
		t.Errorf("a token for the page: %d with %v", issued.StatusCode, issued.Header)
	}
	a := g.do(g.request("GET", "/api/x", "", "Origin", app, "Authorization", "Bearer "+token))
	if a.StatusCode != 200 || len(a.Header["Access-Control-Allow-Origin"]) != 1 || a.Body != "backend" {
		t.Errorf("with a token: %d %q with %v", a.StatusCode, a.Body, a.Header)
	}
}

func corsOfTheBackendRecipe(t *testing.T, b docBlock) {
	g := startRecipe(t, b)
	if a := g.preflight("/x", "https://app.example.com", "DELETE"); a.StatusCode != 200 || g.Backend.count() != 1 {
		t.Errorf("a preflight: %d, and the backend had %d requests", a.StatusCode, g.Backend.count())
	}
	got := g.Backend.last(t)
	if got.Method != "OPTIONS" {
		t.Errorf("the backend had %s", got.Method)
	}
	checkNoIdentity(t, got.Header, "X-OAuth-")
	g.send(200, "OPTIONS", "/x", "", "Origin", "https://app.example.com", "Access-Control-Request-Method", "GET", "X-OAuth-Client-Id", "admin")
	checkNoIdentity(t, g.Backend.last(t).Header, "X-OAuth-")
	g.send(401, "OPTIONS", "/x", "")
	g.send(401, "OPTIONS", "/x", "", "Origin", "https://app.example.com")
	g.send(401, "OPTIONS", "/x", "", "Access-Control-Request-Method", "GET")
	for _, method := range []string{"GET", "POST", "DELETE"} {
		g.send(401, method, "/x", "", "Origin", "https://app.example.com", "Access-Control-Request-Method", "GET")
	}
	g.send(400, "OPTIONS", "/x/..;/admin", "", "Origin", "https://app.example.com", "Access-Control-Request-Method", "GET")
	if n := g.Backend.count(); n != 2 {
		t.Errorf("%d requests reached the backend, want the two preflights", n)
	}
	g.send(200, "GET", "/x", g.tokenAt("/oauth2/access_token", "read"))
}

func methodsRecipe(t *testing.T, b docBlock) {
	g := startRecipe(t, b)
	reader, writer := g.tokenAt("/oauth2/access_token", "read"), g.tokenAt("/oauth2/access_token", "read", "write")
	for _, path := range []string{"/api", "/api/x", "/API/x"} {
		for _, method := range []string{"GET", "HEAD"} {
			g.send(401, method, path, "")
			g.send(200, method, path, reader)
			g.send(200, method, path, writer)
			g.send(403, method, path, g.tokenAt("/oauth2/access_token", "write"))
		}
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "get", "NONSENSE"} {
			g.send(401, method, path, "")
			g.send(403, method, path, reader)
			g.send(200, method, path, writer)
		}
	}
	g.send(200, "GET", "/health", "")
	g.send(200, "POST", "/apiary", "")
}

func readingRecipe(t *testing.T, b docBlock) {
	g := startRecipe(t, b)
	reader, writer := g.tokenAt("/oauth2/access_token", "read"), g.tokenAt("/oauth2/access_token", "write")
	for _, method := range []string{"GET", "HEAD"} {
		for token, client := range map[string]string{"": "", reader: "myClient", writer: "myClient"} {
			g.send(200, method, "/x", token, "X-OAuth-Client-Id", "admin")
			if got := g.Backend.last(t).Header.Get("X-OAuth-Client-Id"); got != client {
				t.Errorf("%s with a token %t: the backend is told of %q", method, token != "", got)
			}
		}
		g.send(401, method, "/x", "expired")
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "get", "NONSENSE"} {
		g.send(401, method, "/x", "")
		g.send(403, method, "/x", reader)
		g.send(200, method, "/x", writer)
	}
}

func reportRecipe(t *testing.T, b docBlock) {
	const basicAuth = "Basic dXNlcjpwYXNzd29yZA=="
	logFile := filepath.Join(t.TempDir(), "access")
	pairs := []string{"log\n", "log {\noutput file " + logFile + "\n}\n"}
	g := startRecipe(t, b, append(pairs, "until 2027", "until 2999")...)
	reader, writer := g.tokenAt("/oauth2/access_token", "read"), g.tokenAt("/oauth2/access_token", "write")
	before := metric(t, "caddy_oauth_report_only_total")
	for _, c := range []struct{ path, token, client string }{
		{"/api/nobody", "", ""}, {"/api/reader", reader, "myClient"}, {"/api/writer", writer, ""}, {"/api/expired", "expired", ""}, {"/elsewhere", "", ""},
	} {
		g.send(200, "GET", c.path, c.token, "X-OAuth-Client-Id", "admin")
		if got := g.Backend.last(t).Header.Get("X-OAuth-Client-Id"); got != c.client {
			t.Errorf("%s: the backend is told of %q", c.path, got)
		}
	}
	g.send(200, "GET", "/api/basic", "", "Authorization", basicAuth)
	if got := g.Backend.last(t).Header.Get("Authorization"); got != basicAuth {
		t.Errorf("the backend gets Authorization %q", got)
	}
	if n := metric(t, "caddy_oauth_report_only_total") - before; n != 4 {
		t.Errorf("%v requests are counted, want 4", n)
	}
	if a := g.get("/metrics", ""); !strings.Contains(a.Body, `caddy_oauth_report_only_total{cause="scope",realm="root"} `) {
		t.Errorf("the metrics have %d bytes without the counter", len(a.Body))
	}
	lines := accessLog(t, logFile)
	for path, cause := range map[string]any{"/api/nobody": "missing", "/api/basic": "missing", "/api/writer": "scope", "/api/reader": nil, "/elsewhere": nil} {
		if got := lines[path]["report_only_cause"]; got != cause {
			t.Errorf("%s: the access log says %v, want %v", path, got, cause)
		}
	}
	if lines["/api/writer"]["client"] != "myClient" {
		t.Errorf("the access log doesn't say whom it would hit: %v", lines["/api/writer"])
	}

	// The date is what ends it.
	g = startRecipe(t, b, append(pairs, "until 2027", "until 2020")...)
	g.send(401, "GET", "/api/x", "")
	g.send(403, "GET", "/api/x", g.tokenAt("/oauth2/access_token", "write"))
	g.send(200, "GET", "/elsewhere", "")
}

// The steps of the recipe for Basic. The backend knows the client by other credentials than the
// gateway does.
const (
	basicOfCaller  = "Basic cmVwb3J0czphYmM=" // reports:abc
	basicOfBackend = "cmVwb3J0czpvdGhlcg=="
)

// startBasicStep runs a step's site with the clients of step 1.
func startBasicStep(t *testing.T, b docBlock, pairs ...string) *gateway {
	t.Helper()
	t.Setenv("REPORTS_BASIC", basicOfBackend)
	if b.kind == "caddyfile" {
		return startWhole(t, b, pairs...)
	}
	for _, first := range docBlocks(t, b.file) {
		if first.kind == "caddyfile" && strings.Contains(first.text, "REPORTS_BASIC") {
			clients, _, _ := strings.Cut(first.text, "api.example.com {")
			first.text = clients + "api.example.com {\n" + b.text + "}\n"
			return startWhole(t, first, pairs...)
		}
	}
	t.Fatal("step 1 has no clients")
	return nil
}

// withCallersBasic sends what a program sends that hasn't changed over, and checks what the backend
// gets of Authorization if the status is 200.
func (g *gateway) withCallersBasic(want int, authorization string) answer {
	g.t.Helper()
	before := g.Backend.count()
	a := g.do(g.request("GET", "/x", "", "Authorization", basicOfCaller))
	if reached := g.Backend.count() > before; a.StatusCode != want || reached != (want == 200) {
		g.t.Fatalf("Basic gets %d with %v, and reached the backend: %t", a.StatusCode, a.Header, reached)
	}
	if want == 200 && g.Backend.last(g.t).Header.Get("Authorization") != authorization {
		g.t.Errorf("the backend gets %v", g.Backend.last(g.t).Header)
	}
	return a
}

// changedOver checks that a program with a token is served, as it is in each step.
func (g *gateway) changedOver() {
	g.t.Helper()
	a := g.send(200, "GET", "/x", g.token("reports", "read"))
	if got := g.Backend.last(g.t).Header; got.Get("Authorization") != "Basic "+basicOfBackend || got.Get("X-OAuth-Client-Id") != "reports" || a.Header["Deprecation"] != nil {
		g.t.Errorf("with a token: %v, and the backend gets %v", a.Header, got)
	}
}

func basicStep1(t *testing.T, b docBlock) {
	g := startBasicStep(t, b)
	before := metric(t, "caddy_oauth_report_only_total", "cause", "missing")
	g.withCallersBasic(200, basicOfCaller)
	if got := g.Backend.last(t).Header["X-Oauth-Client-Id"]; got != nil {
		t.Errorf("the backend is told of %q", got)
	}
	if n := metric(t, "caddy_oauth_report_only_total", "cause", "missing") - before; n != 1 {
		t.Errorf("%v requests were reported, want 1", n)
	}
	g.changedOver()
}

func basicStep2(t *testing.T, b docBlock) {
	g := startBasicStep(t, b)
	a := g.withCallersBasic(200, "Basic "+basicOfBackend)
	if got := g.Backend.last(t).Header; got.Get("X-OAuth-Client-Id") != "reports" || got.Get("X-OAuth-Scope") != "read" || a.Header["Deprecation"] == nil || a.Header["Sunset"] != nil {
		t.Errorf("the caller gets %v, the backend %v", a.Header, got)
	}
	g.send(401, "GET", "/x", "", "Authorization", "Basic "+basicOfBackend)
	g.send(401, "GET", "/x", "")
	g.changedOver()
}

func basicStep3(t *testing.T, b docBlock) {
	g := startBasicStep(t, b, "until 2027", "until 2999")
	a := g.withCallersBasic(200, "Basic "+basicOfBackend)
	if a.Header.Get("Sunset") != "Sun, 30 Jun 2999 00:00:00 GMT" || a.Header["Deprecation"] == nil {
		t.Errorf("the caller gets %v", a.Header)
	}
	g.changedOver()
	expectSeries(t, "who uses Basic", basicCount(t), map[string]float64{"root/reports": 1})
	// After the date.
	startBasicStep(t, b, "until 2027", "until 2020").withCallersBasic(401, "")
}

func basicStep4(t *testing.T, b docBlock) {
	g := startBasicStep(t, b)
	if challenges := g.withCallersBasic(401, "").Header["Www-Authenticate"]; len(challenges) != 1 {
		t.Errorf("the challenges are %q", challenges)
	}
	g.changedOver()
}

func prefixesRecipe(t *testing.T, b docBlock) {
	g := startRecipe(t, b)
	ours := g.tokenAt("/oauth2/access_token", "read")
	theirs := g.tokenAt("/oauth2/realms/root/realms/alpha/access_token", "read")
	g.send(200, "GET", "/internal/x?a=b", ours)
	if got := g.Backend.last(t); got.RequestURI != "/x?a=b" || got.Header.Get("X-OAuth-Realm") != "root" || got.Header.Get("X-Forwarded-Prefix") != "" {
		t.Errorf("below /internal the backend had %s with %v", got.RequestURI, got.Header)
	}
	g.send(200, "GET", "/partners/x", theirs)
	if got := g.Backend.last(t); got.RequestURI != "/x" || got.Header.Get("X-OAuth-Realm") != "alpha" || got.Header.Get("X-Forwarded-Prefix") != "/partners" {
		t.Errorf("below /partners the backend had %s with %v", got.RequestURI, got.Header)
	}
	g.send(401, "GET", "/internal/x", theirs)
	g.send(401, "GET", "/partners/x", ours)
	g.send(403, "GET", "/internal/x", g.tokenAt("/oauth2/access_token", "write"))
	for _, path := range []string{"/x", "/internal", "/partners", "/internals/x"} {
		g.send(404, "GET", path, ours)
	}
	g.send(400, "GET", "/partners/..;/internal/x", theirs)
	g.send(400, "GET", "/partners/%2e%2e/internal/x", theirs)
	if n := g.Backend.count(); n != 2 {
		t.Errorf("%d requests reached the backend, want 2", n)
	}

	// What the recipe warns about.
	g = startGateway(t, "store memory\n"+docClients, "uri strip_prefix /partners\noauth_protect /partners/* alpha\nreverse_proxy BACKEND")
	g.send(200, "GET", "/partners/x", "")
}

// startWhole runs a whole configuration from the cookbook, whose one site is api.example.com, with
// the test's backend in the place of the one on port 9000. pairs of old and new text are replaced.
func startWhole(t *testing.T, b docBlock, pairs ...string) *gateway {
	t.Helper()
	return startCaddyfile(t, changed(t, b.text, append(pairs, "127.0.0.1:9000", "BACKEND", "api.example.com {", ":0 {\n\tbind 127.0.0.1",
		"\toauth {", "\tadmin off\n\tpersist_config off\n\tauto_https off\n\toauth {\n\t\tstore memory")...))
}

func apiKeysRecipe(t *testing.T, b docBlock) {
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("the key of reports\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("API_KEY_BILLING", "the key of billing")
	t.Setenv("BASIC_BILLING", "dXNlcjpwYXNz")
	g := startWhole(t, b, "/run/secrets/backend-key-reports", key)
	for client, want := range map[string]string{"reports": "the key of reports", "billing": "the key of billing"} {
		g.send(200, "GET", "/x", g.token(client, "read"), "X-Api-Key", "the caller's own")
		if got := g.Backend.last(t).Header["X-Api-Key"]; !slices.Equal(got, []string{want}) {
			t.Errorf("for %s, the backend had the keys %q, want %q", client, got, want)
		}
	}
	g.send(401, "GET", "/x", "", "X-Api-Key", "the key of reports")
	g.send(403, "GET", "/x", g.token("guest", "read"), "X-Api-Key", "the key of reports")
	if n := g.Backend.count(); n != 2 {
		t.Errorf("%d requests reached the backend, want 2", n)
	}

	// Without the lines for clients that have no key, and with another scheme.
	g = startWhole(t, b, "/run/secrets/backend-key-reports", key, "@no_key not header X-Api-Key *\n\terror @no_key 403", "",
		"X-Api-Key {env.API_KEY_BILLING}", `Authorization "Basic {env.BASIC_BILLING}"`)
	g.send(200, "GET", "/x", g.token("guest", "read"), "X-Api-Key", "the key of reports")
	if got := g.Backend.last(t).Header["X-Api-Key"]; got != nil {
		t.Errorf("for guest, the backend had the keys %q", got)
	}
	g.send(200, "GET", "/x", g.token("billing", "read"))
	if got := g.Backend.last(t).Header["Authorization"]; !slices.Equal(got, []string{"Basic dXNlcjpwYXNz"}) {
		t.Errorf("for billing, the backend had Authorization %q", got)
	}
}

func phpRecipe(t *testing.T, b docBlock) {
	root := t.TempDir()
	for name, content := range map[string]string{"index.php": "<?php secret source", "assets/app.css": "css", "private/file": "private"} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// A front controller, the way PHP would run it.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go fcgi.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		env := fcgi.ProcessEnv(r)
		fmt.Fprintf(w, "route=%s user=%s scope=%s client=%s auth=%s", r.URL.RequestURI(), env["REMOTE_USER"], r.Header.Get("X-Oauth-Scope"), r.Header.Get("X-Oauth-Client-Id"), r.Header.Get("Authorization"))
	}))
	g := startRecipe(t, b, "/srv/app/public", root, "unix//run/php/php-fpm.sock", listener.Addr().String())
	token := g.tokenAt("/oauth2/access_token", "read")
	says := func(path, token, want string, headers ...string) {
		t.Helper()
		if a := g.send(200, "GET", path, token, headers...); a.Body != want {
			t.Errorf("%s: %q, want %q", path, a.Body, want)
		}
	}
	says("/orders/1?a=b", token, "route=/orders/1?a=b user=myClient scope=read client=myClient auth=")
	says("/", token, "route=/ user=myClient scope=read client=myClient auth=")
	says("/private/file", token, "private")
	says("/health", "", "route=/health user= scope= client= auth=")
	says("/health", "", "route=/health user= scope= client= auth=", "X-OAuth-Client-Id", "admin", "X_OAuth_Scope", "admin", "X.OAuth.Scope", "admin", "Remote-User", "admin")
	says("/assets/app.css", "", "css")
	for _, path := range []string{"/", "/orders", "/private/file", "/private", "/healthy"} {
		g.send(401, "GET", path, "")
	}
	for _, path := range []string{"/index.php", "/index.php/private/x", "/INDEX.PHP/private/x", "/assets/x.php/private", "/assets/x.php"} {
		if a := g.send(404, "GET", path, token); strings.Contains(a.Body, "route=") || strings.Contains(a.Body, "source") {
			t.Errorf("%s: %s", path, a.Body)
		}
	}
	for _, path := range []string{"/assets/x.php/private", "/assets/x.php"} {
		g.send(404, "GET", path, "")
	}
	for _, path := range []string{"/health/../private", "/assets/..;/private", "/assets/%2e%2e/private", "/health//private", "/assets/x.php%2fprivate"} {
		g.send(400, "GET", path, "")
	}
}

func mcpRecipe(t *testing.T, b docBlock) {
	const other = "https://other.example"
	here := porttest.Address(t)
	g := startCaddyfile(t, changed(t, b.text, "\tscopes tools\n\t\t\tdefault", "\tscopes tools rest\n\t\t\tdefault",
		"\taudience https://mcp.example.com/mcp\n\t\t}\n\t}", "\taudience http://"+here+"/mcp "+other+"\n\t\t}\n\t}",
		"https://mcp.example.com", "http://"+here, "mcp.example.com {", "http://"+here+" {\n\tbind 127.0.0.1",
		"127.0.0.1:9000", "BACKEND", "\toauth {", "\tadmin off\n\tpersist_config off\n\tauto_https off\n\toauth {\n\t\tstore memory"))
	g.URL = "http://" + here
	agent := &mcpClient{id: "agent", secret: testSecret, http: g.Client}
	if _, err := agent.call(g.URL + "/mcp"); err != nil {
		t.Errorf("%v, after %q", err, agent.sent)
	}
	if got := g.Backend.last(t); got.Header.Get("X-OAuth-Client-Id") != "agent" || got.Method != "POST" || got.Host != g.Backend.Listener.Addr().String() {
		t.Errorf("the backend had %s at %s with %v", got.Method, got.Host, got.Header)
	}
	for _, path := range []string{"/", "/mcp/", "/mcp2", "/notes"} {
		g.send(404, "POST", path, agent.token)
	}
	token := func(resource, scope string) string {
		a := g.post("/oauth2/access_token", "agent", testSecret, url.Values{"grant_type": {"client_credentials"}, "resource": {resource}, "scope": {scope}})
		token, _ := a.json(t)["access_token"].(string)
		return token
	}
	g.send(200, "POST", "/mcp", token(agent.resource, "tools"))
	g.send(401, "POST", "/mcp", token(other, "tools"))
	g.send(403, "POST", "/mcp", token(agent.resource, "rest"))
}

func webSocketRecipe(t *testing.T, b docBlock) {
	logFile := filepath.Join(t.TempDir(), "log")
	saw := make(chan received, 1)
	echo := httptest.NewServer(websocket.Server{
		Handshake: func(config *websocket.Config, r *http.Request) error {
			saw <- received{Header: r.Header.Clone()}
			config.Protocol = config.Protocol[:1] // one of those that the client offered
			return nil
		},
		Handler: func(ws *websocket.Conn) { io.Copy(ws, ws) },
	})
	t.Cleanup(echo.Close)
	text := changed(t, b.text,
		"\tlog {\n\t\tformat filter {", "\tadmin off\n\tpersist_config off\n\tauto_https off\n\tlog {\n\t\tlevel DEBUG\n\t\toutput file "+logFile+"\n\t\tformat filter {",
		"\toauth {", "\toauth {\n\t\tstore memory",
		"chat.example.com {", ":0 {\n\tbind 127.0.0.1\n\toauth_server",
		"127.0.0.1:9000", echo.Listener.Addr().String())
	g := startCaddyfile(t, text)
	token := g.tokenAt("/oauth2/access_token", "read")
	dial := func(protocols ...string) (*websocket.Conn, error) {
		config, err := websocket.NewConfig("ws"+strings.TrimPrefix(g.URL, "http")+"/chat", "https://app.example.com")
		if err != nil {
			t.Fatal(err)
		}
		config.Protocol = protocols
		return websocket.DialConfig(config)
	}

	ws, err := dial("chat", "bearer."+token)
	if err != nil {
		t.Fatalf("with a token: %v", err)
	}
	if got := <-saw; got.Header.Get("Sec-WebSocket-Protocol") != "chat" || got.Header.Get("X-OAuth-Client-Id") != "myClient" || got.Header.Get("Authorization") != "" {
		t.Errorf("the backend had %v", got.Header)
	}
	var heard string
	if err := websocket.Message.Send(ws, "hello"); err != nil {
		t.Error(err)
	}
	if err := websocket.Message.Receive(ws, &heard); err != nil || heard != "hello" {
		t.Errorf("the backend answered %q, %v", heard, err)
	}
	ws.Close()
	for what, protocols := range map[string][]string{
		"no token": {"chat"}, "a wrong one": {"chat", "bearer." + token + "x"}, "the token alone": {"bearer." + token}, "an empty one": {"chat", "bearer."},
		"one in front": {"bearer." + token, "chat"}, "two": {"chat", "bearer." + token, "bearer." + token},
	} {
		if ws, err := dial(protocols...); err == nil {
			ws.Close()
			t.Errorf("%s: let in", what)
		}
	}
	// Without a WebSocket, the token counts only in its own header.
	g.send(401, "GET", "/chat", "", "Sec-WebSocket-Protocol", "chat, bearer."+token)
	// A backend that doesn't answer is an error, which goes to another log.
	echo.Close()
	if _, err := dial("chat", "bearer."+token); err == nil {
		t.Error("there is a connection, but no backend")
	}

	if err := caddy.Stop(); err != nil { // flushes the log
		t.Fatal(err)
	}
	log, err := os.ReadFile(logFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(log, []byte(`"http.log.access`)) || !bytes.Contains(log, []byte(`"http.log.error`)) {
		t.Errorf("the log lacks a kind of line:\n%s", log)
	}
	if bytes.Contains(log, []byte(token)) {
		t.Error("the token is in the log")
	}
}

func logRecipe(t *testing.T, b docBlock) {
	logFile := filepath.Join(t.TempDir(), "log")
	site := changed(t, b.text, "127.0.0.1:9000", "BACKEND")
	g := startCaddyfile(t, withGlobals("log {\noutput file "+logFile+"\n}", "store memory\n"+docClients, "oauth_server\n"+site))
	g.send(200, "GET", "/good", g.tokenAt("/oauth2/access_token", "read", "write"))
	g.send(401, "GET", "/bad", "")
	lines := accessLog(t, logFile)
	if f := lines["/good"]; f["scope"] != "read write" || f["refused"] != nil || f["user_id"] != "myClient" || f["client"] != "myClient" || f["realm"] != "root" {
		t.Errorf("a request that was let in has %v", f)
	}
	if f := lines["/bad"]; f["refused"] != "missing_token" || f["scope"] != nil {
		t.Errorf("a request that was refused has %v", f)
	}
}

func balancerRecipe(t *testing.T, b docBlock) {
	logFile := filepath.Join(t.TempDir(), "log")
	g := startCaddyfile(t, changed(t, b.text, "10.0.0.0/8", "127.0.0.0/8", "127.0.0.1:9000", "BACKEND", "http://api.example.com {", ":0 {\n\tbind 127.0.0.1",
		"\toauth {", "\tadmin off\n\tpersist_config off\n\tauto_https off\n\tlog {\n\t\toutput file "+logFile+"\n\t}\n\toauth {\n\t\tstore memory"))
	token := g.tokenAt("/oauth2/access_token", "read")
	// A client at 192.0.2.7 that claims to be somebody else, through a balancer.
	g.send(200, "GET", "/good", token, "X-Forwarded-For", "198.51.100.1, 192.0.2.7", "X-Forwarded-Proto", "https")
	if got := g.Backend.last(t).Header.Get("X-Forwarded-For"); !strings.Contains(got, "192.0.2.7") {
		t.Errorf("the backend had X-Forwarded-For %q", got)
	}
	g.send(403, "GET", "/plain", token, "X-Forwarded-For", "192.0.2.7", "X-Forwarded-Proto", "http")
	if f, _ := accessLog(t, logFile)["/good"]["request"].(map[string]any); f["client_ip"] != "192.0.2.7" {
		t.Errorf("the log has %v", f)
	}
}

// accessLog stops Caddy and returns what the access log has about each URI.
func accessLog(t *testing.T, file string) map[string]map[string]any {
	t.Helper()
	if err := caddy.Stop(); err != nil { // flushes the log
		t.Fatal(err)
	}
	log, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]map[string]any{}
	for line := range bytes.Lines(log) {
		var fields map[string]any
		if err := json.Unmarshal(line, &fields); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if request, ok := fields["request"].(map[string]any); ok && strings.HasPrefix(fields["logger"].(string), "http.log.access") {
			lines[request["uri"].(string)] = fields
		}
	}
	return lines
}

func updateRecipe(t *testing.T, b docBlock) {
	path := filepath.Join(t.TempDir(), "tokens.db")
	release := holdInAnotherProcess(t, path)
	g := &gateway{t: t, Backend: newBackend(t), Client: newClient(t)}
	t.Cleanup(func() { caddy.Stop() })
	loaded := make(chan error, 1)
	go func() {
		loaded <- g.load(strings.ReplaceAll(b.text, "/var/lib/caddy/tokens.db", path)+testClients, gatewaySite)
	}()
	// A process with the default gives up first; the other one is still waiting.
	if said := secondCaddyOn(t, path); !strings.Contains(said, "in use by another process") {
		t.Errorf("without lock_timeout: %s", said)
	}
	select {
	case err := <-loaded:
		t.Fatalf("it did not wait: %v", err)
	default:
	}
	release()
	if err := <-loaded; err != nil {
		t.Fatalf("when the old process has ended: %v", err)
	}
	if a := g.get("/x", g.token("reader")); a.StatusCode != 200 {
		t.Errorf("with a token: %d", a.StatusCode)
	}
}
