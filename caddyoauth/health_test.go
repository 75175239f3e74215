package caddyoauth_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddyoauth/gateway/caddyoauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// withAdmin is a configuration with an admin endpoint, at the address that it returns.
func withAdmin(t *testing.T, caddyfile string) (config, admin string) {
	t.Helper()
	admin = porttest.Address(t)
	return strings.Replace(caddyfile, "admin off", "admin "+admin, 1), admin
}

// health asks for the gateway's readiness, and returns the status and the body.
func (g *gateway) health(admin, query string) (int, string) {
	g.t.Helper()
	r, err := http.NewRequest("GET", "http://"+admin+"/oauth/health"+query, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	a := g.do(r)
	return a.StatusCode, strings.TrimSpace(a.Body)
}

// expectHealth waits until the readiness is what it should be.
func (g *gateway) expectHealth(admin, query string, status int, body string) {
	g.t.Helper()
	waitUntil(g.t, body, func() bool {
		s, b := g.health(admin, query)
		return s == status && b == body
	})
}

// A gateway that lost its Redis is not ready, and is again when Redis is back. It can start without
// it, and then says what its realms are waiting for.
func TestHealthOfTheStore(t *testing.T) {
	redis := redistest.Start(t)
	config, admin := withAdmin(t, caddyfileOf(at(redis.Addr, "dial_timeout 200ms", "timeout 500ms")+testClients, "oauth_server"))
	g := startCaddyfile(t, config)
	ready := `{"ready":true,"store":{"state":"ok","coherent":true},"realms":{"root":"ok"},"sources":{}}`
	g.expectHealth(admin, "", 200, ready)
	redis.Stop()
	lost := `{"ready":false,"store":{"state":"unreachable","coherent":false},"realms":{"root":"ok"},"sources":{}}`
	g.expectHealth(admin, "", 503, lost)
	g.expectHealth(admin, "?ignore=sources", 503, lost)
	redis.Restart()
	g.expectHealth(admin, "", 200, ready)

	redis.Stop()
	if err := g.load("store memory\n"+testClients, "oauth_server"); err != nil { // forgets what Redis said
		t.Fatal(err)
	}
	if err := g.loadCaddyfile(config); err != nil {
		t.Fatal(err)
	}
	g.expectHealth(admin, "", 503, `{"ready":false,"store":{"state":"unreachable","coherent":false},"realms":{"root":"waiting_for_store"},"sources":{}}`)
	redis.Restart()
	g.expectHealth(admin, "", 200, ready)
}

// A store that keeps no token and no revocation is named. The gateway still checks tokens, so it is
// ready. What requests have met counts for a while, until a write succeeds.
func TestHealthOfAStoreThatRefusesWrites(t *testing.T) {
	refuses := ""
	var broken atomic.Pointer[string]
	broken.Store(&refuses)
	fails := func(_ context.Context, method string) error {
		if strings.Contains(*broken.Load(), method) {
			return errors.New("no space left on device")
		}
		return nil
	}
	caddyoauth.Outage.Store(&fails)
	t.Cleanup(func() { caddyoauth.Outage.Store(nil) })
	refuse := func(methods string) { broken.Store(&methods) }

	config, admin := withAdmin(t, caddyfileOf("store outage\n"+testClients, "oauth_server\noauth_protect /x\nrespond ok"))
	g := startCaddyfile(t, config)
	ready := `{"ready":true,"store":{"state":"ok","coherent":true},"realms":{"root":"ok"},"sources":{}}`
	degraded := strings.Replace(strings.Replace(ready, "true,", `true,"degraded":true,`, 1), `"ok"`, `"refuses_writes"`, 1)
	token := g.token("reader")
	g.expectHealth(admin, "", 200, ready)
	refuse("Put Revoke") // as a full disk: health finds that out itself
	g.expectHealth(admin, "", 200, degraded)
	if a := g.get("/x", token); a.StatusCode != 200 {
		t.Errorf("a token that is there: %d", a.StatusCode)
	}
	refuse("")
	g.expectHealth(admin, "", 200, ready)
	refuse("Put") // as a Redis whose memory is full: only requests find that out
	g.expectHealth(admin, "", 200, ready)
	grant := url.Values{"grant_type": {"client_credentials"}}
	if a := g.post("/oauth2/token", "reader", testSecret, grant); a.StatusCode != 503 {
		t.Errorf("a token that can't be stored: %d", a.StatusCode)
	}
	g.expectHealth(admin, "", 200, degraded)
	refuse("")
	g.expectHealth(admin, "", 200, degraded) // nobody has tried since
	g.token("reader")
	g.expectHealth(admin, "", 200, ready)

	// Where nothing is issued, nothing has to be written.
	refuse("Put Revoke")
	config, admin = withAdmin(t, caddyfileOf("store outage\n"+testClients, "oauth_protect /x\nrespond ok"))
	if err := g.loadCaddyfile(config); err != nil {
		t.Fatal(err)
	}
	g.expectHealth(admin, "", 200, ready)
}

// A Redis that has lost its replicas takes no writes if it is told so, and says it.
func TestHealthOfARedisThatRefusesWrites(t *testing.T) {
	redis := redistest.Start(t)
	config, admin := withAdmin(t, caddyfileOf(at(redis.Addr)+testClients, "oauth_server"))
	g := startCaddyfile(t, config)
	g.expectHealth(admin, "", 200, `{"ready":true,"store":{"state":"ok","coherent":true},"realms":{"root":"ok"},"sources":{}}`)
	redis.CLI("config", "set", "min-replicas-to-write", "1")
	g.expectHealth(admin, "", 200, `{"ready":true,"degraded":true,"store":{"state":"refuses_writes","coherent":true},"realms":{"root":"ok"},"sources":{}}`)
	redis.CLI("config", "set", "min-replicas-to-write", "0")
	g.expectHealth(admin, "", 200, `{"ready":true,"store":{"state":"ok","coherent":true},"realms":{"root":"ok"},"sources":{}}`)
}

// A read that hangs on the disk, which no deadline ends, makes health wait no longer than its own
// time, and is not begun again meanwhile.
func TestHealthDoesNotWaitForADiskThatHangs(t *testing.T) {
	hangs, reads := make(chan struct{}), atomic.Int32{}
	var hang atomic.Bool
	fails := func(_ context.Context, method string) error {
		if method == "Get" && hang.Load() {
			reads.Add(1)
			<-hangs
		}
		return nil
	}
	caddyoauth.Outage.Store(&fails)
	t.Cleanup(func() { caddyoauth.Outage.Store(nil) })
	config, admin := withAdmin(t, caddyfileOf("store outage\n"+testClients, "oauth_server"))
	g := startCaddyfile(t, config)
	hang.Store(true)
	for range 2 {
		if status, body := g.health(admin, ""); status != 503 || !strings.Contains(body, `"unreachable"`) {
			t.Errorf("while the disk hangs: %d %s", status, body)
		}
	}
	if n := reads.Load(); n != 1 {
		t.Errorf("%d reads hang, want 1", n)
	}
	hang.Store(false)
	close(hangs)
	g.expectHealth(admin, "", 200, `{"ready":true,"store":{"state":"ok","coherent":true},"realms":{"root":"ok"},"sources":{}}`)
}

// An endpoint that refuses the gateway's own credentials is named. That alone makes nobody unready:
// all gateways have the same credentials, and some servers answer so to a token that they don't like.
func TestHealthOfASourceThatDeniesTheGateway(t *testing.T) {
	var denies atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if denies.Load() {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte(`{"active":true,"client_id":"c"}`))
	}))
	defer server.Close()
	config, admin := withAdmin(t, caddyfileOf("", "oauth_protect {\nsource introspect "+server.URL+"\n}\nrespond ok"))
	g := startCaddyfile(t, config)
	body := func(degraded, state string) string {
		return `{"ready":true,` + degraded + `"store":{"state":"none","coherent":true},"realms":{},"sources":{"` + server.URL + `":"` + state + `"}}`
	}
	g.expectHealth(admin, "", 200, body("", "ok"))
	denies.Store(true)
	if a := g.get("/x", "one"); a.StatusCode != 503 {
		t.Errorf("without credentials: %d", a.StatusCode)
	}
	g.expectHealth(admin, "", 200, body(`"degraded":true,`, "credentials_denied"))
	denies.Store(false)
	if a := g.get("/x", "two"); a.StatusCode != 200 {
		t.Errorf("with credentials again: %d", a.StatusCode)
	}
	g.expectHealth(admin, "", 200, body("", "ok"))
}

// A source that is left alone, and an issuer without keys, are named. The caller may say that they
// don't decide.
func TestHealthOfSources(t *testing.T) {
	var away, keys atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Path == "/keys" && keys.Load():
			w.Write([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"one","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`))
		case r.URL.Path == "/keys", away.Load():
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			w.Write([]byte(`{"active":true,"client_id":"c"}`))
		}
	}))
	defer server.Close()
	const secret = "canary-api-key"
	t.Setenv("OAUTH_TEST_KEY", secret)
	endpoint := server.URL + "/introspect"
	config, admin := withAdmin(t, caddyfileOf("store memory\n"+testClients, "oauth_server\noauth_protect {\nsource local\nsource introspect "+endpoint+"?apikey={env.OAUTH_TEST_KEY}\n"+
		"source jwt https://issuer.example.com {\njwks_uri "+server.URL+"/keys\n}\n}\nrespond ok"))
	g := startCaddyfile(t, config)
	body := func(ready, introspected, jwt string) string {
		return `{"ready":` + ready + `,"store":{"state":"ok","coherent":true},"realms":{"root":"ok"},"sources":{"` + endpoint + `":"` + introspected + `","https://issuer.example.com":"` + jwt + `"}}`
	}
	g.expectHealth(admin, "", 503, body("false", "ok", "no_keys"))
	g.expectHealth(admin, "?ignore=sources", 200, body("true", "ok", "no_keys"))
	keys.Store(true)
	g.expectHealth(admin, "", 200, body("true", "ok", "ok"))

	away.Store(true)
	waitUntil(t, "the circuit is open", func() bool {
		g.get("/x", "unknown-1")
		_, b := g.health(admin, "")
		return b == body("false", "circuit_open", "ok")
	})
	away.Store(false)
	waitUntil(t, "the server is back", func() bool { return g.get("/x", "unknown-2").StatusCode == 200 })
	g.expectHealth(admin, "", 200, body("true", "ok", "ok"))
}

// The endpoint takes only what it understands, and says when there is nothing to be healthy.
func TestHealthIsAskedProperly(t *testing.T) {
	config, admin := withAdmin(t, caddyfileOf("store memory\n"+testClients, "oauth_server"))
	g := startCaddyfile(t, config)
	for method, status := range map[string]int{"GET": 200, "HEAD": 200, "POST": 405, "DELETE": 405} {
		r, _ := http.NewRequest(method, "http://"+admin+"/oauth/health", nil)
		if a := g.do(r); a.StatusCode != status {
			t.Errorf("%s: %d, want %d", method, a.StatusCode, status)
		}
	}
	if status, _ := g.health(admin, "?ignore=everything"); status != 400 {
		t.Errorf("an unknown part: %d", status)
	}
	config, admin = withAdmin(t, "{\nadmin off\npersist_config off\nauto_https off\n}\n:0 {\nbind 127.0.0.1\nrespond ok\n}\n")
	if err := g.loadCaddyfile(config); err != nil {
		t.Fatal(err)
	}
	if status, _ := g.health(admin, ""); status != 404 {
		t.Errorf("without the app: %d", status)
	}
	foreign := "oauth_protect {\nsource introspect https://login.example.com/introspect\n}\nrespond ok"
	config, admin = withAdmin(t, caddyfileOf("", foreign))
	if err := g.loadCaddyfile(config); err != nil {
		t.Fatal(err)
	}
	g.expectHealth(admin, "", 200, `{"ready":true,"store":{"state":"none","coherent":true},"realms":{},"sources":{"https://login.example.com/introspect":"ok"}}`)
}
