package caddyoauth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// What another route has learned from another source does not override a token's own issuer.
func TestTheSourceThatClaimsATokenDecides(t *testing.T) {
	f := newForeign(t)
	jwt := f.signs(t, `{"iss":"https://issuer.example.com","aud":"other","sub":"machine","client_id":"signed","exp":4102444800}`)
	f.knows(jwt, activeForeign)
	g := startGateway(t, "", "route /one {\noauth_protect {\n"+f.introspect("")+"}\nreverse_proxy BACKEND\n}\nroute /two {\noauth_protect {\n"+f.jwtSource()+f.introspect("")+"}\nreverse_proxy BACKEND\n}\n")
	waitUntil(t, "the keys are fetched", func() bool { return g.get("/two", f.jwt(t, "")).StatusCode == 200 })
	cold := g.get("/two", jwt).StatusCode
	one := g.get("/one", jwt).StatusCode
	warm := g.get("/two", jwt).StatusCode
	if cold != 401 || one != 200 || warm != 401 {
		t.Errorf("cold %d, at the other route %d, then %d; want 401, 200, 401", cold, one, warm)
	}
}

// A source that may not speak for an issuer does not get in the way of the source that may: a
// token passes from the cache as it did the first time.
func TestASourceThatMayNotSpeakIsSkipped(t *testing.T) {
	f := newForeign(t)
	f.knows("opaque", `{"active":true,"exp":4102444800,"client_id":"c","iss":"https://as.example.com"}`)
	g := startGateway(t, "", "oauth_protect {\n"+f.introspect("")+f.introspect("issuer https://as.example.com")+"}\nreverse_proxy BACKEND")
	for i := range 3 {
		if a := g.get("/x", "opaque"); a.StatusCode != 200 {
			t.Errorf("request %d: %d, want 200", i+1, a.StatusCode)
		}
	}
}

// If two sources of an issuer accept a token, the first speaks for it, whatever another route has
// put into the cache.
func TestTheFirstOfTwoSourcesOfAnIssuerDecides(t *testing.T) {
	f := newForeign(t)
	source := func(audience, claim string) string {
		return "source jwt https://issuer.example.com {\njwks_uri " + f.URL + "/keys\naudience " + audience + "\nscope_claim " + claim + "\n}\n"
	}
	jwt := f.signs(t, `{"iss":"https://issuer.example.com","aud":["a","b"],"client_id":"c","exp":4102444800,"scp":"read","roles":"admin"}`)
	g := startGateway(t, "", "route /both {\noauth_protect {\n"+source("a", "scp")+source("b", "roles")+"scopes admin\n}\nreverse_proxy BACKEND\n}\nroute /b {\noauth_protect {\n"+source("b", "roles")+"}\nreverse_proxy BACKEND\n}\n")
	waitUntil(t, "the keys are fetched", func() bool {
		return g.get("/b", f.signs(t, `{"iss":"https://issuer.example.com","aud":"b","client_id":"c","exp":4102444800}`)).StatusCode == 200
	})
	if a := g.get("/b", jwt); a.StatusCode != 200 {
		t.Fatal(a.StatusCode)
	}
	for i := range 2 {
		if a := g.get("/both", jwt); a.StatusCode != 403 {
			t.Errorf("request %d, with a token that only the second source says is admin's: %d, want 403", i+1, a.StatusCode)
		}
	}
}

// Two routes use the same server, each with its own max_age.
func TestEachUseOfASourceHasItsMaxAge(t *testing.T) {
	f := newForeign(t)
	f.knows("opaque", activeForeign)
	g := startGateway(t, "", "route /laxlonger {\noauth_protect {\n"+f.introspect("max_age 60s\nserve_stale 1h")+"}\nreverse_proxy BACKEND\n}\nroute /strict {\noauth_protect {\n"+f.introspect("max_age 50ms")+"}\nreverse_proxy BACKEND\n}\n")
	if a := g.get("/strict", "opaque"); a.StatusCode != 200 {
		t.Fatal(a.StatusCode)
	}
	f.mu.Lock()
	clear(f.tokens) // revoked
	f.mu.Unlock()
	time.Sleep(500 * time.Millisecond)
	if a := g.get("/strict", "opaque"); a.StatusCode != 401 {
		t.Errorf("max_age 50ms, revoked 500ms ago: %d", a.StatusCode)
	}
}

// Spaces at either end of a name would be lost on the way to the backend, and "admin " would become
// admin. Such a token is refused.
func TestForeignNamesThatWouldLoseSpaces(t *testing.T) {
	f := newForeign(t)
	f.knows("opaque", `{"active":true,"exp":4102444800,"client_id":"admin ","sub":" root","iss":"https://as.example.com","groups":["a,admins"]}`)
	g := startGateway(t, "", "oauth_protect {\n"+f.introspect("")+"}\nrequest_header X-Groups {http.auth.user.groups}\nreverse_proxy BACKEND")
	if a := g.get("/x", "opaque"); a.StatusCode == 200 {
		h := g.Backend.last(t).Header
		t.Errorf("the backend was told client %q, subject %q, groups %q", h.Get("X-OAuth-Client-Id"), h.Get("X-OAuth-Subject"), h.Get("X-Groups"))
	}
}

// Tokens issued here are sent to no other server.
func TestTokensIssuedHereAreShownToNobody(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	as := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = append(seen, r.PostFormValue("token"))
		mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte(`{"active":false}`))
	}))
	defer as.Close()
	t.Setenv("OAUTH_TEST_SECRET", leakedSecret)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: as.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	src := "source introspect " + as.URL + "/introspect {\ntls {\nca " + ca + "\n}\n}\n"
	g := startGateway(t, "store memory\n"+testClients+"\nrealm beta {\nclient other {\nsecret {env.OAUTH_TEST_SECRET}\nscopes read\ndefault_scopes read\n}\n}", "oauth_server\nroute /one {\noauth_protect {\n"+src+"}\nreverse_proxy BACKEND\n}\nroute /two {\noauth_protect {\nsource local beta\n"+src+"}\nreverse_proxy BACKEND\n}\nroute /good {\noauth_protect root\nreverse_proxy BACKEND\n}\n")
	token := g.token("reader")
	if a := g.get("/good", token); a.StatusCode != 200 {
		t.Fatal(a.StatusCode)
	}
	for _, path := range []string{"/one", "/two"} {
		if a := g.get(path, token); a.StatusCode != 401 {
			t.Errorf("%s: %d", path, a.StatusCode)
		}
		g.get(path, "coa_"+strings.Repeat("A", 60)) // may be theirs
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) == 0 {
		t.Error("the server was not asked about any token")
	}
	for _, s := range seen {
		if s == token {
			t.Errorf("a live token of realm root was sent to %s", as.URL)
		}
	}
}

// A gateway that has just started can't tell its own tokens from others while its Redis hangs.
// What looks like one of them is then sent to nobody, and not called invalid.
func TestTokensThatMayBeOursAreHeldBack(t *testing.T) {
	redis := redistest.Start(t)
	there, _ := startGatewayProcess(t, at(redis.Addr)+testClients)
	ours := there.token("reader")
	shown := make(chan string, 100) // to the remote server
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := r.PostFormValue("token")
		if r.TLS != nil {
			shown <- token
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte(`{"active":` + strconv.FormatBool(token == "theirs") + `,"client_id":"c"}`))
	})
	as, near := httptest.NewTLSServer(answer), httptest.NewServer(answer)
	defer as.Close()
	defer near.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: as.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	far := "source introspect " + as.URL + "/introspect {\ntls {\nca " + ca + "\n}\n}\n"
	redis.Pause()
	defer redis.Resume()
	here := startGateway(t, at(redis.Addr)+testClients, "metrics /metrics\noauth_server\nroute /far {\noauth_protect {\n"+far+
		"}\nreverse_proxy BACKEND\n}\nroute /both {\noauth_protect {\n"+far+"source introspect "+near.URL+
		"\n}\nreverse_proxy BACKEND\n}\nroute /jwt {\noauth_protect {\nsource jwt https://issuer.example.com {\njwks_uri "+near.URL+"\n}\n}\nreverse_proxy BACKEND\n}\n")
	for token, want := range map[string]map[string]int{
		ours:                             {"/far": 503, "/both": 503, "/jwt": 401},
		"coa_" + strings.Repeat("A", 60): {"/far": 503, "/both": 503, "/jwt": 401},
		"coa_other-form":                 {"/far": 401, "/both": 401, "/jwt": 401},
		"theirs":                         {"/far": 200, "/both": 200, "/jwt": 401},
	} {
		for path, want := range want {
			if a := here.get(path, token); a.StatusCode != want {
				t.Errorf("while Redis hangs, %s answers %.10s with %d, want %d", path, token, a.StatusCode, want)
			}
		}
	}
	redis.Resume()
	here.linked()
	waitUntil(t, "the gateway knows its tokens", func() bool { return here.get("/far", ours).StatusCode == 401 })
	close(shown)
	for token := range shown {
		if strings.HasPrefix(token, "coa_A") || token == ours {
			t.Errorf("%.10s was sent to %s", token, as.URL)
		}
	}
}

// serve_stale does not extend a route's own max_age.
func TestStaleFactsObeyTheRoute(t *testing.T) {
	f := newForeign(t)
	f.knows("opaque", activeForeign)
	g := startGateway(t, "", "oauth_protect {\nmax_age 100ms\n"+f.introspect("max_age 100ms\nserve_stale 1h")+"}\nreverse_proxy BACKEND\n")
	if a := g.get("/x", "opaque"); a.StatusCode != 200 {
		t.Fatal(a.StatusCode)
	}
	f.away.Store(true)
	time.Sleep(1 * time.Second)
	if a := g.get("/x", "opaque"); a.StatusCode != 503 {
		t.Errorf("with facts from 1s ago, on a route with max_age 100ms: %d", a.StatusCode)
	}
}

// A jwks_uri given by reference is resolved again at a reload, so the same configuration can mean
// other keys.
func TestReloadResolvesAReferredJWKSURIAgain(t *testing.T) {
	dir := t.TempDir()
	one, two := newForeign(t), newForeign(t)
	write := func(name, s string) {
		if err := os.WriteFile(dir+"/"+name, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("uri", one.URL+"/keys")
	conf := "oauth_protect {\nsource jwt https://issuer.example.com {\njwks_uri {file." + dir + "/uri}\naudience api\n}\n}\nreverse_proxy BACKEND"
	g := startGateway(t, "", conf)
	eventuallyAnswers(t, g, one.jwt(t, ""), 200)
	write("uri", two.URL+"/keys")
	if err := g.load("", conf+"\n# again\nheader X y\n"); err != nil {
		t.Fatal(err)
	}
	eventuallyAnswers(t, g, two.jwt(t, ""), 200)
	if a := g.get("/x", one.jwt(t, `,"jti":"new"`)); a.StatusCode != 401 {
		t.Errorf("signed by the keys at the old jwks_uri, after the reload: %d", a.StatusCode)
	}
}

// A ca file is read again at a reload.
func TestReloadReadsTheCAAgain(t *testing.T) {
	as := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte(activeForeign))
	}))
	defer as.Close()
	dir := t.TempDir()
	ca := dir + "/ca.pem"
	os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: as.Certificate().Raw}), 0o600)
	conf := "oauth_protect {\nsource introspect " + as.URL + " {\ntls {\nca " + ca + "\n}\n}\n}\nreverse_proxy BACKEND"
	g := startGateway(t, "", conf)
	if a := g.get("/x", "t1"); a.StatusCode != 200 {
		t.Fatal(a.StatusCode)
	}
	// Another CA.
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
	if err := g.load("", conf+"\nheader X y\n"); err != nil {
		t.Fatal(err)
	}
	as.CloseClientConnections()
	if a := g.get("/x", "t2"); a.StatusCode != 503 {
		t.Errorf("after the reload, with a server that the new CA did not sign: %d", a.StatusCode)
	}
}

// A route that names a realm must accept its tokens.
func TestNamedRealmNeedsItsSource(t *testing.T) {
	g := startGateway(t, "store memory\nrealm alpha {\n"+testClients+"}\nrealm beta {\n"+testClients+"}", "oauth_server")
	err := g.load("store memory\nrealm alpha {\n"+testClients+"}\nrealm beta {\n"+testClients+"}", "oauth_protect alpha {\nsource local beta\n}")
	if err == nil || !strings.Contains(err.Error(), `realm "alpha" is named`) {
		t.Errorf("oauth_protect alpha { source local beta }: %v", err)
	}
}

// A key in an endpoint's query is in no label of a metric.
func TestQueriesOfEndpointsAreInNoMetric(t *testing.T) {
	f := newForeign(t)
	t.Setenv("OAUTH_TEST_KEY", "canary-api-key")
	g := startGateway(t, "", "oauth_protect /x* {\nsource introspect "+f.URL+"/introspect?apikey={env.OAUTH_TEST_KEY}\n}\nreverse_proxy /x* BACKEND\nmetrics /metrics")
	g.get("/x", "t")
	if a := g.get("/metrics", ""); strings.Contains(a.Body, "canary-api-key") {
		t.Error("the key is in a metric's label")
	} else {
		t.Log(a.StatusCode, len(a.Body))
	}
}
