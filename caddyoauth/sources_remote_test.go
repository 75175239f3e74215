package caddyoauth_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// junkServer is an authorization server that answers with an error status for junk, and as it
// should for good tokens.
func junkServer(t *testing.T, junk *atomic.Int64, revoked *atomic.Bool) *httptest.Server {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch token := r.PostFormValue("token"); {
		case strings.HasPrefix(token, "junk"):
			w.WriteHeader(int(junk.Load()))
		case token == "revoked" && revoked.Load():
			io.WriteString(w, `{"active":false}`)
		default:
			fmt.Fprintf(w, `{"active":true,"client_id":%q,"exp":4102444800}`, token)
		}
	}))
	t.Cleanup(server.Close)
	return server
}

// Junk that makes a server fail affects no good token, and keeps no revoked one alive. The long
// form sends four a second for half a minute.
func TestBatteryJunkBesideGoodTokens(t *testing.T) {
	statuses := []int{401, 404, 500}
	pause, rounds := 10*time.Millisecond, 40
	if os.Getenv("BATTERY") == "long" {
		statuses = []int{400, 401, 403, 404, 418, 422, 451, 500}
		pause, rounds = 250*time.Millisecond, 120
	}
	var junk atomic.Int64
	var revoked atomic.Bool
	server := junkServer(t, &junk, &revoked)
	maxAge := time.Duration(rounds) * pause / 4
	g := startGateway(t, "", fmt.Sprintf("oauth_protect {\nsource introspect %s {\nmax_age %s\nserve_stale 1h\n}\n}\nreverse_proxy BACKEND", server.URL, maxAge))
	for _, status := range statuses {
		junk.Store(int64(status))
		revoked.Store(false)
		if a := g.get("/x", "revoked"); a.StatusCode != 200 {
			t.Fatalf("status %d: before it is revoked, a token gets %d", status, a.StatusCode)
		}
		revoked.Store(true)
		asked, good, late := time.Now(), 0, 0
		ticks := time.NewTicker(pause)
		for i := range rounds {
			<-ticks.C
			if a := g.get("/x", fmt.Sprintf("junk-%d-%d", status, i)); a.StatusCode != 503 {
				t.Errorf("status %d: junk gets %d, want 503", status, a.StatusCode)
			}
			if a := g.get("/x", fmt.Sprintf("good-%d-%d", status, i)); a.StatusCode == 200 { // never seen before
				good++
			}
			began := time.Now()
			if a := g.get("/x", "revoked"); a.StatusCode != 401 && began.Sub(asked) > maxAge {
				late++
			}
		}
		ticks.Stop()
		if good != rounds || late != 0 {
			t.Errorf("status %d: %d of %d good tokens were let in, and the revoked one %d times after max_age", status, good, rounds, late)
		}
		t.Logf("battery: status %d for %d junk tokens in %v: %d of %d good ones let in, the revoked one %d times after max_age", status, rounds, time.Since(asked).Round(time.Millisecond), good, rounds, late)
		// Another URL makes it another source, which starts afresh.
		if err := g.load("", "oauth_protect {\nsource introspect "+server.URL+"/"+fmt.Sprint(status)+" {\nmax_age "+maxAge.String()+"\nserve_stale 1h\n}\n}\nreverse_proxy BACKEND"); err != nil {
			t.Fatal(err)
		}
	}
}

// Credentials that a server refuses are logged, but not for each token.
func TestRefusedCredentialsAreLoggedOnce(t *testing.T) {
	var junk atomic.Int64
	junk.Store(401)
	server := junkServer(t, &junk, new(atomic.Bool))
	g, logged := startLogged(t, "", "oauth_protect {\nsource introspect "+server.URL+"\n}\nreverse_proxy BACKEND")
	for i := range 10 {
		g.get("/x", fmt.Sprint("junk", i))
	}
	if n := strings.Count(logged(), "the server answered 401 or 403"); n != 1 {
		t.Errorf("ten answers of 401 made %d log lines, want 1", n)
	}
}

// A reload that changes the timeout of a source forgets neither what the server has said nor that
// it is unreachable.
func TestReloadKeepsASourceWhoseTimeoutChanges(t *testing.T) {
	f := newForeign(t)
	f.knows("opaque", activeForeign)
	site := func(more string) string {
		return "oauth_protect {\n" + f.introspect(more) + "}\nreverse_proxy BACKEND"
	}
	g := startGateway(t, "", site("timeout 20s"))
	expect := func(what, token string, want int, asked int64) {
		t.Helper()
		f.asked.Store(0)
		if a := g.get("/x", token); a.StatusCode != want || f.asked.Load() != asked {
			t.Errorf("%s: %d after %d requests to the server, want %d after %d", what, a.StatusCode, f.asked.Load(), want, asked)
		}
	}
	expect("at first", "opaque", 200, 1)
	if err := g.load("", site("timeout 19s\nnegative_max_age 1s")); err != nil {
		t.Fatal(err)
	}
	expect("after a reload with another timeout", "opaque", 200, 0)
	f.busy.Store(true)
	g.get("/x", "other") // the circuit opens, for a minute
	f.busy.Store(false)
	if err := g.load("", site("timeout 18s")); err != nil {
		t.Fatal(err)
	}
	expect("the circuit, after a reload", "another", 503, 0)
	if err := g.load("", site("timeout 18s\nissuer https://as.example.com")); err != nil {
		t.Fatal(err)
	}
	expect("after a reload with an issuer, which makes it another source", "opaque", 200, 1)

	// The new timeout counts, although the source stays the same.
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		select {
		case <-r.Context().Done():
		case <-time.After(300 * time.Millisecond):
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, activeForeign)
		}
	}))
	defer slow.Close()
	for timeout, want := range map[string]int{"50ms": 503, "20s": 200} {
		if err := g.load("", "oauth_protect {\nsource introspect "+slow.URL+" {\ntimeout "+timeout+"\n}\n}\nreverse_proxy BACKEND"); err != nil {
			t.Fatal(err)
		}
		// On a busy machine it may take longer, and the first answer be too late even for the longer
		// timeout.
		eventuallyAnswers(t, g, "opaque"+timeout, want)
	}
}

// References in the gateway's ID and in the issuer are resolved, as in the URL. Taken literally,
// they would make every token be refused. One that can't be resolved is refused at load.
func TestReferencesInASourceAreResolved(t *testing.T) {
	f := newForeign(t)
	f.knows("opaque", activeForeign)
	t.Setenv("OAUTH_TEST_GATEWAY", "gateway")
	t.Setenv("OAUTH_TEST_ISSUER", "https://as.example.com")
	site := func(id, issuer string) string {
		return "oauth_protect {\nsource introspect " + f.URL + " {\nclient_id " + id + "\nclient_secret {env.OAUTH_TEST_SECRET}\nissuer " + issuer + "\n}\n}\nreverse_proxy BACKEND"
	}
	g := startGateway(t, "", site("{env.OAUTH_TEST_GATEWAY}", "{env.OAUTH_TEST_ISSUER}"))
	if a := g.get("/x", "opaque"); a.StatusCode != 200 {
		t.Errorf("with references: %d, want 200", a.StatusCode)
	}
	for _, site := range []string{site("{env.OAUTH_TEST_NOWHERE}", "https://as.example.com"), site("gateway", "{env.OAUTH_TEST_NOWHERE}")} {
		if err := g.load("", site); err == nil || !strings.Contains(err.Error(), "OAUTH_TEST_NOWHERE") {
			t.Errorf("a reference that can't be resolved: %v", err)
		}
	}
}

// The credential in a header is read from its file for each request, since Kubernetes changes it
// every hour. If it can't be used, the server is not asked.
func TestHeadersFollowTheirFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	var seen []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = append(seen, r.Header.Get("Authorization"))
		mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"active":true,"client_id":"c"}`)
	}))
	defer server.Close()
	write("canary-one")
	g, logged := startLogged(t, "", "oauth_protect {\nsource introspect "+server.URL+" {\nheader Authorization \"Bearer {file."+file+"}\"\n}\n}\nreverse_proxy BACKEND")
	for i, text := range []string{"canary-one", "canary-two"} {
		write(text)
		if a := g.get("/x", fmt.Sprint("t", i)); a.StatusCode != 200 {
			t.Fatalf("%s: %d", text, a.StatusCode)
		}
	}
	write("canary-\x01three")
	if a := g.get("/x", "t3"); a.StatusCode != 503 {
		t.Errorf("with a control character in it: %d", a.StatusCode)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if a := g.get("/x", "t4"); a.StatusCode != 503 {
		t.Errorf("without the file: %d", a.StatusCode)
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"Bearer canary-one", "Bearer canary-two"}; !slices.Equal(seen, want) {
		t.Errorf("the server was sent %q, want %q", seen, want)
	}
	if text := logged(); strings.Contains(text, "canary") || !strings.Contains(text, "header Authorization") {
		t.Errorf("the log holds the credential, or does not say what is missing:\n%s", text)
	}
}

// The query of a URL, which may hold a key, is in no log and no error.
func TestQueriesAreInNoLog(t *testing.T) {
	t.Setenv("OAUTH_TEST_KEY", "canary-api-key")
	status := http.StatusInternalServerError
	var mu sync.Mutex
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		w.Header().Set("Location", "/elsewhere?api_key=canary-api-key")
		w.WriteHeader(status)
	}))
	site := func(path string) string {
		return "oauth_protect {\nsource introspect " + server.URL + "/introspect?api_key={env.OAUTH_TEST_KEY}\nsource jwt https://" + path + ".example.com {\njwks_uri " + server.URL + "/" + path + "?api_key={env.OAUTH_TEST_KEY}\n}\n}\nreverse_proxy BACKEND"
	}
	g, logged := startLogged(t, "", site("a"))
	f := newForeign(t)
	for i, code := range []int{500, 302, 200} {
		mu.Lock()
		status = code
		mu.Unlock()
		g.get("/x", fmt.Sprint("t", i))
		g.get("/x", f.signs(t, `{"iss":"https://a.example.com","exp":4102444800}`)) // waits for a fetch
	}
	server.Close()
	g.get("/x", "t4")
	g.get("/x", f.signs(t, `{"iss":"https://a.example.com","exp":4102444800}`))
	text := logged()
	if strings.Contains(text, "canary") {
		t.Errorf("the log holds the key:\n%s", text)
	}
	for _, want := range []string{server.URL + "/introspect", server.URL + "/a", "fetching the issuer's keys"} {
		if !strings.Contains(text, want) {
			t.Errorf("the log does not hold %q:\n%s", want, text)
		}
	}
	// Nor is it in the error about a configuration that is refused.
	for name, source := range map[string]string{
		"introspect, a port":   `{"source":"introspect","url":"https://as.example.com:x/?key={env.OAUTH_TEST_KEY}"}`,
		"introspect, http":     `{"source":"introspect","url":"http://as.example.com/?key={env.OAUTH_TEST_KEY}"}`,
		"introspect, fragment": `{"source":"introspect","url":"https://as.example.com/?key={env.OAUTH_TEST_KEY}#{env.OAUTH_TEST_KEY}"}`,
		"jwks_uri, a port":     `{"source":"jwt","issuer":"https://as.example.com","jwks_uri":"https://as.example.com:x/?key={env.OAUTH_TEST_KEY}"}`,
		"jwks_uri, http":       `{"source":"jwt","issuer":"https://as.example.com","jwks_uri":"http://as.example.com/?key={env.OAUTH_TEST_KEY}"}`,
		"jwks_uri, no host":    `{"source":"jwt","issuer":"https://as.example.com","jwks_uri":"as.example.com/?key={env.OAUTH_TEST_KEY}"}`,
		"jwks_uri, fragment":   `{"source":"jwt","issuer":"https://as.example.com","jwks_uri":"https://as.example.com/?key={env.OAUTH_TEST_KEY}#{env.OAUTH_TEST_KEY}"}`,
		"jwks_uri, a user":     `{"source":"jwt","issuer":"https://as.example.com","jwks_uri":"https://u:{env.OAUTH_TEST_KEY}@as.example.com/"}`,
	} {
		var cfg caddy.Config
		config := `{"admin":{"disabled":true},"apps":{"oauth":{},"http":{"servers":{"s":{"listen":["127.0.0.1:0"],"routes":[{"handle":[{"handler":"oauth_protect","sources":[` + source + `]}]}]}}}}}`
		if err := json.Unmarshal([]byte(config), &cfg); err != nil {
			t.Fatal(err)
		}
		if err := caddy.Validate(&cfg); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A server may echo the request in its answer, in any form. Even then, no log at any level holds
// the token or a secret.
func TestWhatAServerEchoesIsInNoLog(t *testing.T) {
	t.Setenv("OAUTH_TEST_SECRET", "canary-client-secret-Xh2kQ9")
	t.Setenv("OAUTH_TEST_KEY", "canary-api-key")
	modes := []func(echo string) string{
		func(echo string) string { return echo },
		func(echo string) string { return "HTTP/1.1 200 OK\r\n" + echo },
		func(echo string) string { return "HTTP/1.1 200 " + echo },
		func(echo string) string {
			return "HTTP/1.1 302 Found\r\nLocation: https://u:p@127.0.0.1:1/?" + strings.Join(strings.Fields(echo), "") + "\r\n\r\n"
		},
		func(echo string) string { return "HTTP/1.1 503 " + strings.Join(strings.Fields(echo), "") + "\r\n\r\n" },
		func(echo string) string { return "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + echo },
		func(echo string) string {
			return "HTTP/1.1 200 OK\r\nContent-Type: " + strings.Join(strings.Fields(echo), "") + "\r\n\r\n{}"
		},
		func(echo string) string { return "HTTP/1.1 200 OK\r\n\r\n{\"active\":" + fmt.Sprintf("%q", echo) + "}" },
		func(echo string) string {
			return "HTTP/1.1 200 OK\r\n\r\n{\"active\":true,\"exp\":" + fmt.Sprintf("%q", echo) + "}"
		},
		func(echo string) string { return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + echo },
		func(echo string) string {
			return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + echo + "\r\n\r\n"
		},
		func(echo string) string {
			return "HTTP/1.1 101 Switching\r\nUpgrade: " + strings.Join(strings.Fields(echo), "") + "\r\n\r\n"
		},
		func(echo string) string {
			return "HTTP/1.1 429 No\r\nRetry-After: " + strings.Join(strings.Fields(echo), "") + "\r\n\r\n"
		},
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			request := make([]byte, 64<<10)
			n, _ := conn.Read(request)
			var mode int
			_, path, _ := strings.Cut(strings.TrimPrefix(string(request[:n]), "POST"), "/")
			_, number, _ := strings.Cut(path, "/")
			fmt.Sscan(strings.SplitN(number, "?", 2)[0], &mode)
			io.WriteString(conn, modes[mode](string(request[:n])))
			conn.Close()
		}
	}()
	url := "http://" + listener.Addr().String()
	file := filepath.Join(t.TempDir(), "log")
	logged := func() string {
		text, _ := os.ReadFile(file)
		return string(text)
	}
	var sources strings.Builder
	for i := range modes {
		fmt.Fprintf(&sources, `source introspect %[1]s/asked/%[2]d?api_key={env.OAUTH_TEST_KEY} {
client_id gateway
client_secret {env.OAUTH_TEST_SECRET}
auth client_secret_post
header X-Key {env.OAUTH_TEST_KEY}
}
source jwt https://issuer%[2]d.example.com {
jwks_uri %[1]s/keys/%[2]d?api_key={env.OAUTH_TEST_KEY}
header X-Key {env.OAUTH_TEST_KEY}
}
`, url, i)
	}
	g := startCaddyfile(t, logTo(file, caddyfileOf("", "oauth_protect {\n"+sources.String()+"}\nreverse_proxy BACKEND")))
	if a := g.get("/x", "canary-token"); a.StatusCode != 503 {
		t.Errorf("a token about which every source fails gets %d, want 503", a.StatusCode)
	}
	for i := range modes {
		for _, trouble := range []string{fmt.Sprint(url, "/asked/", i), fmt.Sprintf("https://issuer%d.example.com", i)} {
			waitUntil(t, "the failure is logged", func() bool { return strings.Contains(logged(), trouble) })
		}
	}
	for line := range strings.SplitSeq(logged(), "\n") {
		if strings.Contains(line, "canary") {
			t.Error(line)
		}
	}
}

// An introspection endpoint without a configured issuer may name any issuer but that of another
// source or of a realm.
func TestAnEndpointNamesNoOtherSourcesIssuer(t *testing.T) {
	f := newForeign(t)
	says := func(token, issuer string) {
		f.knows(token, `{"active":true,"client_id":"c","exp":4102444800,"iss":"`+issuer+`"}`)
	}
	says("own", "https://as.example.com")
	says("signer", "https://issuer.example.com")
	says("realm", "https://here.example.com/oauth2")
	says("partner", "https://partner.example.com")
	oauth := "store memory\nissuer https://here.example.com/oauth2\n" + testClients
	site := func(more string) string {
		return "oauth_server\nroute /a {\noauth_protect {\n" + f.introspect(more) + "}\nreverse_proxy BACKEND\n}\nroute /b {\noauth_protect {\n" + f.jwtSource() +
			"source introspect https://partner.example.com/introspect {\nissuer https://partner.example.com\n}\n}\nreverse_proxy BACKEND\n}\n"
	}
	g, logged := startLogged(t, oauth, site(""))
	for range 2 { // the second time from the cache
		for token, want := range map[string]int{"own": 200, "signer": 401, "realm": 401, "partner": 401} {
			if a := g.get("/a", token); a.StatusCode != want {
				t.Errorf("%s: %d, want %d", token, a.StatusCode, want)
			}
		}
	}
	if n := strings.Count(logged(), "give it the option issuer"); n != 1 {
		t.Errorf("the log says %d times what to do, want once", n)
	}
	if err := g.loadCaddyfile(caddyfileOf(oauth, site("issuer https://issuer.example.com"))); err != nil {
		t.Fatal(err)
	}
	if a := g.get("/a", "signer"); a.StatusCode != 200 {
		t.Errorf("with the issuer configured: %d", a.StatusCode)
	}
}
