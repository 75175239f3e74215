package caddyoauth_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// reportSites are routes that only report, with what could go wrong there.
const reportSites = `
	oauth_server
	route /plain/* {
		test_user id=eve client_id=eve role=root
		oauth_protect {
			report_only
		}
		@reader oauth_scope read
		request_header @reader X-Reader yes
	` + tellBackend + `
	}
	route /scope/* {
		test_user id=eve client_id=eve role=root
		oauth_protect {
			scopes write
			report_only until 2999-01-01T00:00:00Z
		}
		@reader oauth_scope read
		request_header @reader X-Reader yes
	` + tellBackend + `
	}
	route /keep/* {
		oauth_protect {
			scopes write
			keep_token
			keep_override_headers
			report_only
		}
		reverse_proxy BACKEND
	}
	route /away/* {
		oauth_protect {
			source introspect http://127.0.0.1:1/introspect
			report_only
		}
		reverse_proxy BACKEND
	}
	route /then/* {
		oauth_protect {
			scopes write
			keep_override_headers
			report_only
		}
		test_user id=eve client_id=eve role=root
		oauth_protect {
			keep_token
			keep_override_headers
		}
	` + tellBackend + `
	}
	route /after/* {
		oauth_protect {
			keep_token
			keep_override_headers
		}
		request_header X-OAuth-Role chosen
		oauth_protect {
			scopes write
			keep_override_headers
			report_only
		}
	` + tellBackend + `
	}
	route /twice/* {
		oauth_protect {
			scopes write
			report_only
		}
		oauth_protect {
			scopes admin
			report_only
		}
	` + tellBackend + `
	}
	route /set/* {
		oauth_protect {
			report_only
		}
		request_header Authorization "Bearer {header.X-Token}"
		oauth_protect
		reverse_proxy BACKEND
	}
	route /over/* {
		oauth_protect {
			report_only until 2020-01-01T00:00:00Z
		}
		reverse_proxy BACKEND
	}
	route /fails/* {
		oauth_protect {
			keep_token
			keep_override_headers
			report_only
		}
		error 418
	}
	handle_errors {
		request_header X-Refused {http.oauth.error}
		reverse_proxy BACKEND
	}
`

// reportClients have a key for the backend, which nobody may bring along.
const reportClients = rulesClients + `
	client keyed {
		secret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0
		scopes read
		default_scopes read
		upstream_header X-Api-Key {env.OAUTH_TEST_KEY}
	}
`

// What would be refused passes, and brings the backend nothing that a refusal would have kept from
// it: nobody's identity, no token, no other method or path.
func TestWhatWouldBeRefusedPassesWithNothing(t *testing.T) {
	t.Setenv("OAUTH_TEST_KEY", "key-of-keyed")
	dir := t.TempDir()
	log, accessLog := filepath.Join(dir, "log"), filepath.Join(dir, "access")
	g := startCaddyfile(t, logTo(log, strings.Replace(caddyfileOf(reportClients, "log {\noutput file "+accessLog+"\n}\n"+reportSites),
		"{\n", "{\nservers {\ntrusted_proxies static 127.0.0.1/32\n}\n", 1)))
	tokens := map[string]string{"READER": g.token("reader"), "WRITER": g.token("writer", "write"), "ADMIN": g.token("admin", "write", "admin"), "KEYED": g.token("keyed")}
	reader := tokens["READER"]
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("user:password"))
	nobody := map[string]string{"Id": "", "Client": "", "Subject": "", "Scope": "", "Iss": "", "Groups": "", "Role": ""}
	named := func(id string) map[string]string {
		return map[string]string{"Id": id, "Client": id, "Subject": id, "Groups": "", "Role": ""}
	}
	attack := []string{
		"X-OAuth-Client-Id: admin", "X-OAuth-Scope: write", "x_oauth_subject: admin", "X-OAuth-Role: root", "X-Original-URL: /admin", "X-HTTP-Method-Override: DELETE",
		"Connection: close, X-OAuth-Client-Id, Authorization, X-Told-Id", "Proxy-Authorization: " + basic, "DPoP: x", "X-Api-Key: guessed", "Upgrade: h2c", "HTTP2-Settings: x",
	}
	type row struct {
		name, path    string
		authorization []string
		causes        string            // reported, in this order
		client        string            // that the backend is told
		sent          []string          // Authorization at the backend
		told          map[string]string // some placeholders
		more          []string          // header lines
	}
	rows := []row{
		{name: "no token", path: "/plain/1", causes: "missing", told: nobody},
		{name: "a good token", path: "/plain/2", authorization: []string{"Bearer READER"}, client: "reader", told: named("reader")},
		{name: "a forged token", path: "/plain/3", authorization: []string{"Bearer " + spoiled(reader)}, causes: "forged", told: nobody},
		{name: "no bearer token, but users of the backend's own", path: "/plain/4", authorization: []string{basic}, causes: "missing", sent: []string{basic}, told: nobody},
		{name: "two lines", path: "/plain/5", authorization: []string{"Bearer READER", basic}, causes: "malformed_authorization", sent: []string{basic}, told: nobody},
		{name: "the same line twice", path: "/plain/6", authorization: []string{"Bearer READER", "bearer READER"}, causes: "malformed_authorization", told: nobody},
		{name: "a list", path: "/plain/7", authorization: []string{basic + ", Bearer x"}, causes: "missing", told: nobody},
		{name: "the token alone", path: "/plain/8", authorization: []string{"READER"}, causes: "missing", told: nobody},
		{name: "a token of others under another scheme", path: "/plain/14", authorization: []string{"DPoP theirs"}, causes: "missing", told: nobody},
		{name: "the token under another scheme", path: "/plain/9", authorization: []string{"DPoP READER"}, causes: "missing", told: nobody},
		{name: "the token in a parameter", path: "/plain/10", authorization: []string{`OAuth oauth_token="READER"`}, causes: "missing", told: nobody},
		{name: "a token of a client with a key", path: "/plain/11", authorization: []string{"Bearer KEYED"}, client: "keyed", told: named("keyed")},
		{name: "plain HTTP", path: "/plain/13", authorization: []string{"Bearer READER"}, causes: "insecure", told: nobody, more: []string{"X-Forwarded-Proto: http"}},

		{name: "a token without the scope", path: "/scope/1", authorization: []string{"Bearer READER"}, causes: "scope", told: nobody},
		{name: "a token of a client with a key, without the scope", path: "/scope/2", authorization: []string{"Bearer KEYED"}, causes: "scope", told: nobody},
		{name: "a token with the scope", path: "/scope/3", authorization: []string{"Bearer WRITER"}, client: "writer", told: named("writer")},

		{name: "a token without the scope, which is kept", path: "/keep/1", authorization: []string{"Bearer READER"}, causes: "scope", sent: []string{"Bearer READER"}},
		{name: "no token, where it is kept", path: "/keep/2", causes: "missing"},
		{name: "two lines, where one is kept", path: "/keep/3", authorization: []string{"Bearer READER", basic}, causes: "malformed_authorization", sent: []string{basic}},

		{name: "nobody can say", path: "/away/1", authorization: []string{"Bearer elsewhere"}, causes: "outage"},

		// The oauth_protect behind judges what the caller sent.
		{name: "a token that the second one lets in", path: "/then/1", authorization: []string{"Bearer READER"}, causes: "scope", client: "reader", told: named("reader")},
		{name: "a token that both let in", path: "/then/2", authorization: []string{"Bearer WRITER"}, client: "writer", told: named("writer")},

		// What the oauth_protect before has let in goes on as that has it.
		{name: "a token that the first one lets in", path: "/after/1", authorization: []string{"Bearer READER"}, causes: "scope", client: "reader", told: named("reader")},
		{name: "a token of a client with a key that the first one lets in", path: "/after/2", authorization: []string{"Bearer KEYED"}, causes: "scope", client: "keyed", told: named("keyed")},

		{name: "two that only report", path: "/twice/1", authorization: []string{"Bearer READER"}, causes: "scope scope", told: nobody},
		{name: "two that only report, of which one would refuse", path: "/twice/2", authorization: []string{"Bearer WRITER"}, causes: "scope", client: "writer", told: named("writer")},
		{name: "two that only report, and no token", path: "/twice/3", causes: "missing missing", told: nobody},
		{name: "two that only report, and two lines", path: "/twice/4", authorization: []string{basic, "Bearer READER"}, causes: "malformed_authorization malformed_authorization", sent: []string{basic}, told: nobody},
		{name: "two that would let in", path: "/twice/5", authorization: []string{"Bearer ADMIN"}, client: "admin", told: named("admin")},

		{name: "a token that a handler sets in between", path: "/set/1", authorization: []string{basic}, causes: "missing", client: "reader", more: []string{"X-Token: READER"}},

		{name: "an error behind", path: "/fails/1", authorization: []string{basic}, causes: "missing"},
	}
	replaced := func(texts []string) (all []string) {
		for _, text := range texts {
			for name, token := range tokens {
				text = strings.ReplaceAll(text, name, token)
			}
			all = append(all, text)
		}
		return all
	}
	for _, c := range rows {
		t.Run(c.name, func(t *testing.T) {
			counted := func(name string, labels ...string) (sum float64) {
				for _, cause := range slices.Compact(strings.Fields(c.causes)) {
					sum += metric(t, name, append(labels, "cause", cause)...)
				}
				return sum
			}
			const checks, reports = "caddy_oauth_bearer_checks_total", "caddy_oauth_report_only_total"
			all, passed, reported := counted(checks), counted(checks, "result", "report_only"), counted(reports)
			calls := g.Backend.count()

			lines := append(slices.Clone(attack), replaced(c.more)...)
			for _, line := range replaced(c.authorization) {
				lines = append(lines, "Authorization: "+line)
			}
			a := g.rawRequest("GET "+c.path, lines...)
			if a.StatusCode != 200 || g.Backend.count() != calls+1 {
				t.Fatalf("answered %d, challenge %q, %d calls", a.StatusCode, a.Header.Get("WWW-Authenticate"), g.Backend.count()-calls)
			}
			if a.Header["Www-Authenticate"] != nil || a.Header["Cache-Control"] != nil || a.Header["Retry-After"] != nil {
				t.Errorf("the answer has headers of a refusal: %v", a.Header)
			}
			n := float64(len(strings.Fields(c.causes)))
			if counted(checks)-all != n || counted(checks, "result", "report_only")-passed != n || counted(reports)-reported != n {
				t.Errorf("counted %v checks, %v passed ones and %v reports, want %v each", counted(checks)-all, counted(checks, "result", "report_only")-passed, counted(reports)-reported, n)
			}

			h := g.Backend.last(t).Header
			if got, want := h["Authorization"], replaced(c.sent); !slices.Equal(got, want) {
				t.Errorf("the backend got Authorization %q, want %q", got, want)
			}
			delete(h, "Authorization")
			if strings.HasPrefix(c.path, "/fails/") {
				if h.Get("X-Refused") != "{http.oauth.error}" { // unset
					t.Errorf("the error page is told of %q", h["X-Refused"])
				}
			}
			role := map[bool]string{true: "chosen"}[strings.HasPrefix(c.path, "/after/")] // by the operator
			if got := h.Get("X-OAuth-Role"); got != role {
				t.Errorf("the backend is told the role %q, want %q", got, role)
			}
			delete(h, "X-Oauth-Role")
			if c.client == "" {
				checkNoIdentity(t, h, "X-Oauth-")
			} else if h.Get("X-OAuth-Client-Id") != c.client || h.Get("X-OAuth-Subject") != c.client || h.Get("X-OAuth-Realm") != "root" {
				t.Errorf("the backend is told %v, want %s", h, c.client)
			}
			for name, want := range c.told {
				if got := h.Values("X-Told-" + name); !slices.Equal(got, []string{want}) {
					t.Errorf("the placeholder of %s is %q, want %q", name, got, want)
				}
			}
			if got, want := h.Get("X-Api-Key"), map[string]string{"keyed": "key-of-keyed"}[c.client]; got != want {
				t.Errorf("the backend gets the key %q, want %q", got, want)
			}
			if want := c.path == "/plain/2" || c.path == "/plain/11"; (h["X-Reader"] != nil) != want {
				t.Errorf("oauth_scope gave X-Reader %q", h["X-Reader"])
			}
			// Only the two that keep such headers have let the second token in.
			if got := h["X-Original-Url"] != nil || h["X-Http-Method-Override"] != nil; got != strings.HasPrefix(c.path, "/then/") {
				t.Errorf("the backend is told another method or path: %t", got)
			}
			if h["Dpop"] != nil || h["Proxy-Authorization"] != nil || h["Upgrade"] != nil || h["Http2-Settings"] != nil || h["X-Oauth-Scope"] != nil && c.client == "" {
				t.Errorf("the backend got %v", h)
			}
		})
	}

	if n := metric(t, "caddy_oauth_client_checks_total", "client_id", "keyed", "result", "report_only"); n != 2 {
		t.Errorf("%v requests of one client are counted, want 2", n)
	}

	// What is refused all the same.
	for _, c := range []struct {
		line   string
		lines  []string
		status int
	}{
		{"GET http:http://localhost/plain/x", nil, 400},
		{"CONNECT localhost:80", nil, 501},
		{"GET /over/1", nil, 401},
		{"GET /then/3", nil, 401},
		{"GET /then/4", []string{"Authorization: " + basic}, 401},
		{"GET /then/5", []string{"Authorization: Bearer x"}, 401},
		{"GET /then/6", []string{"Authorization: " + basic, "Authorization: Bearer " + reader}, 400},
		{"GET /after/3", nil, 401},
	} {
		calls := g.Backend.count()
		a := g.rawRequest(c.line, append(slices.Clone(attack), c.lines...)...)
		if g.Backend.count() != calls && !strings.Contains(c.line, "http:") { // the error page; oauth_server refuses this one, which removes no credentials
			checkNoIdentity(t, g.Backend.last(t).Header, "X-Oauth-")
		}
		if page := a.Header.Get("Cache-Control") == "no-store"; !page || a.StatusCode != c.status && a.StatusCode != 200 || c.status == 501 && a.StatusCode != 501 {
			t.Errorf("%s: %d %v", c.line, a.StatusCode, a.Header)
		}
	}

	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	events := make(map[string][]string) // causes, by path
	for _, event := range eventsIn(t, log, "request_refused") {
		path := event["path"].(string)
		if event["report_only"] == true {
			events[path] = append(events[path], event["cause"].(string))
		} else if !slices.Contains([]string{"/over/1", "/then/3", "/then/4", "/then/5", "/then/6", "/after/3"}, path) && !strings.Contains("CONNECT http:", event["method"].(string)) && event["cause"] != "ambiguous_path" {
			t.Errorf("an event without report_only: %v", event)
		}
		if text, _ := json.Marshal(event); bytes.Contains(text, []byte(reader)) {
			t.Errorf("an event has a token: %s", text)
		}
		if event["cause"] == "scope" && (event["client_id"] == nil || event["want"] == nil || event["status"] != 403.0 || event["error"] != "insufficient_scope") {
			t.Errorf("the event %v lacks something", event)
		}
	}
	lines := accessLines(t, accessLog)
	for _, c := range rows {
		if got := strings.Join(events[c.path], " "); got != c.causes && len(events[c.path]) < 10 {
			t.Errorf("%s: the events have the causes %q, want %q", c.path, got, c.causes)
		}
		line := lines[c.path]
		fields := strings.Fields(c.causes)
		if len(fields) == 0 {
			if line["report_only"] != nil || line["report_only_cause"] != nil {
				t.Errorf("%s: the access log has %v", c.path, line)
			}
			continue
		}
		if line["report_only"] != true || line["report_only_cause"] != fields[len(fields)-1] || line["error"] != nil || line["cause"] != nil {
			t.Errorf("%s: the access log has %v", c.path, line)
		}
		// Whose token would have been refused for what it lacks is known.
		if client := line["client"]; (client != nil) != (fields[0] == "scope" || c.client != "") {
			t.Errorf("%s: the access log names the client %v", c.path, client)
		}
	}
	warnings := 0
	for line := range strings.Lines(accessText(t, log)) {
		if strings.Contains(line, "report_only has ended") && strings.Contains(line, `"level":"warn"`) {
			warnings++
		}
	}
	if warnings != 1 {
		t.Errorf("%d warnings say that report_only has ended, want 1", warnings)
	}
}

// accessLines returns what an access log has, by URI.
func accessLines(t *testing.T, file string) map[string]map[string]any {
	t.Helper()
	lines := make(map[string]map[string]any)
	for line := range bytes.Lines([]byte(accessText(t, file))) {
		var fields map[string]any
		if err := json.Unmarshal(line, &fields); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if request, ok := fields["request"].(map[string]any); ok {
			lines[request["uri"].(string)] = fields
		}
	}
	return lines
}

func accessText(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// An oauth_protect that only reports has a guard that only reports, and an oauth_server before it
// leaves both to judge the path.
func TestGuardsReport(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	const refuses = "oauth_protect /strict/* {\n}\n"
	for name, site := range map[string]string{
		"alone":                 "oauth_protect /private/* {\nreport_only\n}\n",
		"until later":           "oauth_protect /private/* {\nreport_only until 2999-01-01T00:00:00Z\n}\n",
		"beside one that isn't": "oauth_protect /private/* {\nreport_only\n}\n" + refuses,
		"until before":          "oauth_protect /private/* {\nreport_only until 2020-01-01T00:00:00Z\n}\n",
	} {
		t.Run(name, func(t *testing.T) {
			g := startCaddyfile(t, logTo(log, caddyfileOf(rulesClients, "oauth_server\n"+site+"reverse_proxy BACKEND")))
			want := 200
			if strings.HasSuffix(site, refuses) || name == "until before" {
				want = 400
			}
			guarded := metric(t, "caddy_oauth_guard_total", "cause", "ambiguous_path")
			reported := metric(t, "caddy_oauth_report_only_total", "realm", "None", "cause", "ambiguous_path")
			a := g.rawRequest("GET /public/..;/private/x", "X-OAuth-Client-Id: admin", "X-Original-URL: /private/x")
			if a.StatusCode != want {
				t.Errorf("answered %d, want %d", a.StatusCode, want)
			}
			if want == 200 {
				if a.Header["Cache-Control"] != nil {
					t.Errorf("the answer has headers of a refusal: %v", a.Header)
				}
				h := g.Backend.last(t).Header
				checkNoIdentity(t, h, "X-Oauth-")
				if h["X-Original-Url"] != nil {
					t.Errorf("the backend got %v", h)
				}
			}
			guarded, reported = metric(t, "caddy_oauth_guard_total", "cause", "ambiguous_path")-guarded, metric(t, "caddy_oauth_report_only_total", "realm", "None", "cause", "ambiguous_path")-reported
			if guarded != map[int]float64{400: 1}[want] || reported != map[int]float64{200: 1}[want] {
				t.Errorf("%v refusals and %v reports are counted", guarded, reported)
			}
			if want == 200 {
				reported := metric(t, "caddy_oauth_report_only_total", "realm", "root", "cause", "ambiguous_path")
				a := g.rawRequest("GET /private/..;/x", "X-OAuth-Client-Id: admin", "Authorization: Bearer "+g.token("reader"))
				if a.StatusCode != 200 || metric(t, "caddy_oauth_report_only_total", "realm", "root", "cause", "ambiguous_path") != reported+1 {
					t.Errorf("at the oauth_protect itself: %d", a.StatusCode)
				}
				checkNoIdentity(t, g.Backend.last(t).Header, "X-Oauth-")
			}
			if a := g.rawRequest("GET http:http://localhost/public/"); a.StatusCode != http.StatusBadRequest {
				t.Errorf("an opaque target: %d", a.StatusCode)
			}
		})
	}
	if events := eventsIn(t, log, "request_refused"); !slices.ContainsFunc(events, func(event map[string]any) bool {
		return event["report_only"] == true && event["logger"] == "http.handlers.oauth_guard" && event["cause"] == "ambiguous_path" && event["status"] == 400.0
	}) {
		t.Errorf("no event of the guard in %v", events)
	}
}

// Without an oauth_server before them, it is they who refuse targets without a path, and ambiguous
// ones after the end.
func TestWhatOnlyReportsRefusesByItself(t *testing.T) {
	for _, c := range []struct {
		protect   string
		ambiguous int
	}{
		{"oauth_protect /private/* {\nreport_only\n}", 200}, // its guard
		{"oauth_protect {\nreport_only\n}", 200},
		{"oauth_protect /private/* {\nreport_only until 2020-01-01T00:00:00Z\n}", 400},
		{"oauth_protect {\nreport_only until 2020-01-01T00:00:00Z\n}", 400},
	} {
		g := startGateway(t, rulesClients, c.protect+"\nreverse_proxy BACKEND")
		if a := g.rawRequest("GET http:http://localhost/private/"); a.StatusCode != http.StatusBadRequest || g.Backend.count() != 0 {
			t.Errorf("%q: answered %d, %d calls", c.protect, a.StatusCode, g.Backend.count())
		}
		if a := g.rawRequest("GET /x/..;/private/"); a.StatusCode != c.ambiguous {
			t.Errorf("%q: an ambiguous path gets %d", c.protect, a.StatusCode)
		}
	}
}

// A challenge doesn't name scopes that nobody needs yet.
func TestAChallengeNamesNoScopesThatAreOnlyReported(t *testing.T) {
	g := startGateway(t, rulesClients, "oauth_server\nroute {\noauth_protect {\nscopes write\n}\noauth_protect {\nscopes later\nreport_only\n}\noauth_protect {\nscopes admin\n}\nreverse_proxy BACKEND\n}")
	a := g.get("/x", g.token("reader"))
	if params := checkRefusal(t, a, 403, "root", "insufficient_scope"); params["scope"] != "admin write" {
		t.Errorf("the challenge names %q", params["scope"])
	}
}

// Secrets of clients reach no backend, whether they are taken or not. The backend's own users do
// where the route takes no secrets itself.
func TestSecretsOfClientsDontPass(t *testing.T) {
	g := startGateway(t, rulesClients, `
		oauth_server
		route /both/* {
			oauth_protect {
				scopes write
				basic
				report_only
			}
			reverse_proxy BACKEND
		}
		route /over/* {
			oauth_protect {
				scopes write
				basic until 2020-01-01T00:00:00Z
				keep_token
				report_only
			}
			reverse_proxy BACKEND
		}
		route /then/* {
			oauth_protect {
				report_only
			}
			oauth_protect {
				basic
			}
			reverse_proxy BACKEND
		}
		route /after/* {
			oauth_protect {
				basic
			}
			oauth_protect {
				scopes write
				keep_token
				report_only
			}
			reverse_proxy BACKEND
		}
		route /optional/* {
			oauth_protect {
				optional
				basic
				keep_token
			}
			reverse_proxy BACKEND
		}
	`)
	reader := "Basic " + base64.StdEncoding.EncodeToString([]byte("reader:"+testSecret))
	writer := "Basic " + base64.StdEncoding.EncodeToString([]byte("writer:"+testSecret))
	wrong := "Basic " + base64.StdEncoding.EncodeToString([]byte("reader:abd"))
	for _, c := range []struct {
		path          string
		authorization []string
		status        int
		client        string
	}{
		{"/both/1", []string{reader}, 200, ""}, // it lacks the scope
		{"/both/2", []string{writer}, 200, "writer"},
		{"/both/3", []string{wrong}, 200, ""},
		{"/both/4", []string{writer, "Bearer x"}, 200, ""},
		{"/both/5", []string{writer + ", " + reader}, 200, ""},
		{"/over/1", []string{writer}, 200, ""},
		{"/then/1", []string{reader}, 200, "reader"},
		{"/then/2", []string{wrong}, 401, ""},
		{"/then/3", []string{reader, writer}, 400, ""},
		{"/after/1", []string{reader}, 200, "reader"},
		{"/after/2", []string{wrong}, 401, ""},
		{"/optional/1", nil, 200, ""},
		{"/optional/2", []string{reader}, 200, "reader"},
		{"/optional/3", []string{wrong}, 401, ""}, // a bad one is no one
	} {
		calls := g.Backend.count()
		r := g.request("GET", c.path, "")
		r.Header["Authorization"] = c.authorization
		if a := g.do(r); a.StatusCode != c.status || g.Backend.count()-calls != map[bool]int{true: 1}[c.status == 200] {
			t.Errorf("%s: %d, %d calls", c.path, a.StatusCode, g.Backend.count()-calls)
		}
		if c.status != 200 {
			continue
		}
		h := g.Backend.last(t).Header
		if h["Authorization"] != nil || h.Get("X-OAuth-Client-Id") != c.client {
			t.Errorf("%s: the backend is told of %q and gets Authorization %q", c.path, h.Get("X-OAuth-Client-Id"), h["Authorization"])
		}
	}
}
