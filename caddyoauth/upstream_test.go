package caddyoauth_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// The secrets that backends get in clients' names in the tests here.
const (
	keyOfReader = "upstream-key-of-reader"
	keyOfAlien  = "upstream-key-of-alien"
)

// upstreamClients are clients of two realms, one of them without an upstream header, and two with
// the same ID.
func upstreamClients(t testing.TB) string {
	t.Setenv("OAUTH_TEST_KEY_READER", keyOfReader)
	t.Setenv("OAUTH_TEST_KEY_ALIEN", keyOfAlien)
	return `
		client reader {
			secret_hash ` + testHash + `
			scopes read
			default_scopes read
			upstream_header x-api-key {env.OAUTH_TEST_KEY_READER}
			upstream_header Authorization "Basic {env.OAUTH_TEST_KEY_READER}"
		}
		client writer {
			secret_hash ` + testHash + `
			scopes read write
			default_scopes write
		}
		realm alpha {
			client reader {
				secret_hash ` + testHash + `
				scopes read
				default_scopes read
				upstream_header X-Partner-Key key={env.OAUTH_TEST_KEY_ALIEN};v=1
			}
		}
`
}

// wantUpstream checks all that a backend got in headers that are some client's upstream header.
func wantUpstream(t testing.TB, what string, got http.Header, want map[string]string) {
	t.Helper()
	for name, values := range got {
		switch f := folded(name); f {
		case "x-api-key", "x-partner-key", "authorization":
			if len(values) != 1 || values[0] != want[f] {
				t.Errorf("%s: the backend got %s: %q, want %q", what, name, values, want[f])
			}
		}
	}
	for name, value := range want {
		if got.Get(name) != value {
			t.Errorf("%s: the backend got %s: %q, want %q", what, name, got.Values(name), value)
		}
	}
}

var (
	nothingUpstream  = map[string]string{}
	upstreamOfReader = map[string]string{"x-api-key": keyOfReader, "authorization": "Basic " + keyOfReader}
	upstreamOfAlien  = map[string]string{"x-partner-key": "key=" + keyOfAlien + ";v=1"}
)

// The backend gets the headers of the client that is let in, whatever the caller sends under their
// names, in any spelling, and under the names of the headers of other clients.
func TestUpstreamHeadersAreTheClientsAlone(t *testing.T) {
	g := startGateway(t, "store memory\n"+upstreamClients(t), "oauth_server\nhandle /alpha/* {\noauth_protect alpha\n}\nhandle /both/* {\noauth_protect {\nsource local root\nsource local alpha\n}\n}\nhandle {\noauth_protect root\n}\nreverse_proxy BACKEND")
	reader, writer := g.token("reader"), g.token("writer")
	alien := g.fetchAt("/oauth2/realms/root/realms/alpha", "reader", "read")
	for what, sent := range map[string][]string{
		"nothing of the kind": nil,
		"the same names":      {"X-Api-Key: forged", "X-Partner-Key: forged"},
		"another case":        {"x-API-key: forged", "x-partner-KEY: forged"},
		"other separators":    {"X_Api_Key: forged", "X.Api.Key: forged", "X!Api!Key: forged", "X_Partner_Key: forged", "X.Partner-Key: forged"},
		"several lines":       {"X-Api-Key: forged", "X-Api-Key: forged", "X-Partner-Key:"},
		"words in Connection": {"Connection: close, X-Api-Key, X-Partner-Key, Authorization"},
	} {
		for _, c := range []struct {
			path, token string
			want        map[string]string
		}{
			{"/x", reader, upstreamOfReader}, {"/x", writer, nothingUpstream}, {"/alpha/x", alien, upstreamOfAlien},
			{"/both/x", reader, upstreamOfReader}, {"/both/x", writer, nothingUpstream}, {"/both/x", alien, upstreamOfAlien},
		} {
			if a := g.rawRequest("GET "+c.path, append([]string{"Authorization: Bearer " + c.token}, sent...)...); a.StatusCode != 200 {
				t.Fatalf("%s, %s: %d", what, c.path, a.StatusCode)
			}
			wantUpstream(t, what+", "+c.path, g.Backend.last(t).Header, c.want)
		}
	}
}

// Many backends answer TRACE with the request that they got, so a client would learn its key. In
// capitals or not, and under its other name, it comes without.
func TestUpstreamHeadersDontComeBack(t *testing.T) {
	g := startGateway(t, "store memory\n"+upstreamClients(t), "oauth_server\noauth_protect root {\nbasic\n}\nreverse_proxy BACKEND")
	for _, authorization := range []string{"Bearer " + g.token("reader"), rawBasic("reader:" + testSecret)} {
		for method, want := range map[string]map[string]string{
			"TRACE": nothingUpstream, "trace": nothingUpstream, "TRACK": nothingUpstream, "GET": upstreamOfReader, "OPTIONS": upstreamOfReader, "TRACED": upstreamOfReader,
		} {
			if a := g.rawRequest(method+" /x", "Authorization: "+authorization, "X-Api-Key: forged"); a.StatusCode != 200 {
				t.Fatalf("%s: %d", method, a.StatusCode)
			}
			got := g.Backend.last(t)
			if got.Method != method || got.Header.Get("X-OAuth-Client-Id") != "reader" {
				t.Errorf("%s: the backend got %s with %v", method, got.Method, got.Header)
			}
			wantUpstream(t, method, got.Header, want)
		}
	}
}

// Trailers can't stand in for upstream headers, either.
func TestUpstreamHeadersDontComeInTrailers(t *testing.T) {
	g := startGateway(t, "store memory\n"+upstreamClients(t), "oauth_server\noauth_protect root\nreverse_proxy BACKEND")
	for id, want := range map[string]map[string]string{"reader": upstreamOfReader, "writer": nothingUpstream} {
		a := readRaw(t, g.rawConn("POST /x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "+g.token(id)+"\r\nTransfer-Encoding: chunked\r\nTrailer: X-Api-Key, X-Partner-Key, X-Checksum\r\n\r\n"+
			"5\r\nhello\r\n0\r\nX-Api-Key: forged\r\nX_Partner_Key: forged\r\nX-Partner-Key: forged\r\nX-Checksum: sum\r\n\r\n"), "POST")
		got := g.Backend.last(t)
		if a.StatusCode != 200 || got.Body != "hello" || got.Trailer.Get("X-Checksum") != "sum" {
			t.Fatalf("%d, the backend got %q with the trailers %v", a.StatusCode, got.Body, got.Trailer)
		}
		wantUpstream(t, id, got.Header, want)
		for name, values := range got.Trailer {
			if len(values) > 0 && name != "X-Checksum" {
				t.Errorf("%s: the backend got the trailer %s: %q", id, name, values)
			}
		}
	}
}

// Where no token is asked for, callers may have API keys of their own, and get nobody else's.
func TestUpstreamHeadersAreForProtectedRoutes(t *testing.T) {
	g := startGateway(t, "store memory\n"+upstreamClients(t), "oauth_server\noauth_protect /private/* root\nreverse_proxy BACKEND")
	g.send(200, "GET", "/open", g.token("reader"), "X-Api-Key", "the caller's own")
	if got := g.Backend.last(t).Header.Get("X-Api-Key"); got != "the caller's own" {
		t.Errorf("an open path: the backend got X-Api-Key %q", got)
	}
	g.send(200, "GET", "/private/x", g.token("reader"), "X-Api-Key", "the caller's own")
	wantUpstream(t, "a protected path", g.Backend.last(t).Header, upstreamOfReader)
}

// Of several oauth_protect, the last decides what the backend gets. What was put there between them
// doesn't count.
func TestTheLastOauthProtectDecidesUpstreamHeaders(t *testing.T) {
	g := startGateway(t, "store memory\n"+upstreamClients(t), "oauth_server\nroute {\noauth_protect root\nrequest_header X-Api-Key between\nrequest_header X-Partner-Key between\noauth_protect root {\nheader_prefix X-Second-\n}\nreverse_proxy BACKEND\n}")
	for id, want := range map[string]map[string]string{"reader": upstreamOfReader, "writer": nothingUpstream} {
		g.send(200, "GET", "/x", g.token(id))
		wantUpstream(t, id, g.Backend.last(t).Header, want)
	}
}

// A client of another server gets nothing here, even if its ID is that of one of ours.
func TestForeignClientsHaveNoUpstreamHeaders(t *testing.T) {
	f := newForeign(t)
	f.knows("foreign", `{"active":true,"client_id":"reader","sub":"reader","realm":"root","exp":4102444800}`)
	g := startGateway(t, "store memory\n"+upstreamClients(t), "oauth_protect root {\nsource local\n"+f.introspect("")+"}\nreverse_proxy BACKEND")
	g.send(200, "GET", "/x", "foreign", "X-Api-Key", "forged", "X-Partner-Key", "forged")
	got := g.Backend.last(t).Header
	if got.Get("X-OAuth-Client-Id") != "reader" {
		t.Fatalf("the backend got %v", got)
	}
	wantUpstream(t, "a token from elsewhere", got, nothingUpstream)
}

// Error routes don't get them, and neither do refusals.
func TestErrorRoutesHaveNoUpstreamHeaders(t *testing.T) {
	g := startGateway(t, "store memory\n"+upstreamClients(t), "oauth_server\nroute {\noauth_protect root\nerror /fails 500\noauth_protect {\nscopes write\n}\nreverse_proxy BACKEND\n}\nhandle_errors {\nreverse_proxy BACKEND\n}")
	token := g.token("reader")
	for _, path := range []string{"/fails", "/lacks-a-scope"} {
		before := g.Backend.count()
		g.do(g.request("GET", path, "", "Authorization", "Bearer "+token, "X-Api-Key", "forged"))
		if g.Backend.count() != before+1 {
			t.Fatalf("%s: the error route's backend was not asked", path)
		}
		wantUpstream(t, path, g.Backend.last(t).Header, nothingUpstream)
	}
}

// A value that a handler changes in place is another one the next time. A changed file counts after
// a reload.
func TestUpstreamHeadersAreReadWhenTheConfigurationIsLoaded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first\n")
	oauth := "store memory\nclient reader {\nsecret_hash " + testHash + "\nscopes read\ndefault_scopes read\nupstream_header X-Api-Key {file." + file + "}\n}"
	site := "oauth_server\noauth_protect\nrequest_header X-Api-Key first changed\nreverse_proxy BACKEND"
	g := startGateway(t, oauth, site)
	token := g.token("reader")
	backendGets := func(want string) {
		t.Helper()
		g.send(200, "GET", "/x", token)
		if got := g.Backend.last(t).Header.Get("X-Api-Key"); got != want {
			t.Errorf("the backend got %q, want %q", got, want)
		}
	}
	backendGets("changed")
	backendGets("changed")
	write("second")
	backendGets("changed")
	if err := g.load(oauth, site); err != nil {
		t.Fatal(err)
	}
	backendGets("second")
	for content, want := range map[string]string{"": "can't be read", "two\nlines": "more than one line", " padded ": "begins or ends with a space", "bell\a": "no header can carry"} {
		write(content)
		err := g.load(oauth, site)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "upstream_header X-Api-Key") {
			t.Errorf("the file holds %q: %v", content, err)
		} else if content != "" && strings.Contains(err.Error(), content) {
			t.Errorf("the error holds the secret: %v", err)
		}
	}
	backendGets("second")
}

// What backends get is in no log, though callers are logged with all that they send, and in no dump
// of the configuration.
func TestUpstreamHeadersAreNowhereElse(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	config, admin := withAdmin(t, withGlobals("log {\noutput file "+log+"\n}\nservers {\nlog_credentials\n}", "store memory\n"+upstreamClients(t),
		"log\noauth_server\nroute {\noauth_protect root\nerror /fails 500\noauth_protect /refused {\nscopes nobody\n}\nreverse_proxy /away 127.0.0.1:1\nreverse_proxy BACKEND\n}"))
	g := startCaddyfile(t, config)
	token := g.token("reader")
	for path, want := range map[string]int{"/x": 200, "/fails": 500, "/refused": 403, "/away": 502} {
		g.send(want, "GET", path, token, "X-Api-Key", "the caller's own")
	}
	wantUpstream(t, "a request that was let in", g.Backend.last(t).Header, upstreamOfReader)
	res, err := http.Get("http://" + admin + "/config/")
	if err != nil {
		t.Fatal(err)
	}
	dump, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || !strings.Contains(string(dump), "Basic {env.OAUTH_TEST_KEY_READER}") {
		t.Errorf("the dump doesn't have the references: %v, %s", err, dump)
	}
	if err := caddy.Stop(); err != nil { // flushes the log
		t.Fatal(err)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "the caller's own") {
		t.Errorf("the log doesn't have what the caller sent, so this test proves nothing:\n%s", text)
	}
	for _, secret := range []string{keyOfReader, keyOfAlien} {
		if strings.Contains(string(text), secret) {
			t.Errorf("the log holds an upstream header:\n%s", text)
		}
		if strings.Contains(string(dump), secret) {
			t.Error("the dump holds an upstream header")
		}
	}
}

// At level DEBUG, Caddy's reverse_proxy logs what it sends. A warning at load says so, unless all of
// it is in Authorization, which Caddy leaves out.
func TestDebugLogsAreWarnedOf(t *testing.T) {
	t.Setenv("OAUTH_TEST_SECRET", leakedSecret)
	for line, want := range map[string]bool{"upstream_header X-Api-Key {env.OAUTH_TEST_SECRET}": true, "upstream_header authorization {env.OAUTH_TEST_SECRET}": false, "": false} {
		g, logged := startLogged(t, "store memory\nclient reader {\nsecret_hash "+testHash+"\nscopes read\ndefault_scopes read\n"+line+"\n}", gatewaySite)
		g.send(200, "GET", "/x", g.token("reader"))
		if got := strings.Contains(logged(), "a log at level DEBUG gets the headers"); got != want {
			t.Errorf("%q: warned %t, want %t", line, got, want)
		}
		// Should Caddy learn to leave them out, the warning can go.
		if got := strings.Contains(logged(), leakedSecret); got != want {
			t.Errorf("%q: the secret is in the log: %t, want %t", line, got, want)
		}
	}
}
