package caddyoauth_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddyoauth/gateway/caddyoauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// The clients of most tests. Their secrets are checked in microseconds; tests of slow
// hashes configure their own.
const (
	testClients = `
		client reader {
			secret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0
			scopes read
			default_scopes read
		}
		client writer {
			secret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0
			scopes read write
			audience https://api.example.com
		}
`
	// testSecret is the secret of all of them: the SHA-256 above is of "abc".
	testSecret = "abc"
	// noFailureLimit is for tests that fail more often than the limit allows.
	noFailureLimit = "limit failures off\n"
)

// variant is one combination of store, cache and token format. What a gateway answers must not
// depend on it.
type variant struct {
	name, store, cache, format string
}

// variants returns all combinations of stores and caches for opaque tokens, and some for sealed
// ones. They must behave alike.
func variants(t testing.TB) []variant {
	var all []variant
	stores := []string{"bbolt", "memory"}
	if _, err := exec.LookPath("redis-server"); err == nil { // TestFleet reports if it is missing
		stores = append(stores, "redis")
	}
	for _, store := range stores {
		for name, cache := range map[string]string{"cache on": "", "tiny cache": "cache {\n max_tokens 1\n}", "no cache": "cache off"} {
			all = append(all, variant{store + ", " + name, store, cache, "opaque"})
			if (store == "memory") == (name == "no cache") && name != "tiny cache" {
				all = append(all, variant{store + ", " + name + ", sealed", store, cache, "sealed"})
			}
			if map[string]string{"memory": "cache on", "bbolt": "no cache", "redis": "tiny cache"}[store] == name {
				all = append(all, variant{store + ", " + name + ", jwt", store, cache, "jwt"})
			}
		}
	}
	return all
}

// options returns the lines for the oauth block, with a fresh file for bbolt.
func (v variant) options(t testing.TB) string {
	lines := "store " + v.store + "\n"
	switch v.store {
	case "bbolt":
		lines = "store bbolt " + filepath.Join(t.TempDir(), "tokens.db") + "\n"
	case "redis":
		lines = at(redistest.Start(t).Addr)
	}
	if v.format != "opaque" {
		lines += "token_format " + v.format + "\nencryption_key {file." + encryptionKeyFile(t) + "}\n"
	}
	return lines + v.cache + "\n"
}

// encryptionKeyFile makes a file with an encryption key, always the same.
func encryptionKeyFile(t testing.TB) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "encryption-key")
	if err := os.WriteFile(path, []byte("an encryption key of 40 characters, or so\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// spoiled returns the token with another last character. As base64url, it stays well-formed if at most four
// bits of that character are left over.
func spoiled(token string) string {
	last := "A"
	if strings.HasSuffix(token, last) {
		last = "Q"
	}
	return token[:len(token)-1] + last
}

// gateway is Caddy in this process, with a backend behind it. There is only one at a time.
type gateway struct {
	t testing.TB
	// URL is where the first site listens, without a trailing slash.
	URL     string
	Backend *backend
	// Client follows no redirects.
	Client *http.Client
	// inMemory says that the store is in memory, and so is never late.
	inMemory bool
}

// startGateway loads a Caddyfile with these lines in the oauth block and in the site. In both,
// BACKEND stands for the address of the backend.
func startGateway(t testing.TB, oauth, site string) *gateway {
	t.Helper()
	return startCaddyfile(t, caddyfileOf(oauth, site))
}

// startCaddyfile is startGateway with a whole Caddyfile, for tests that need global
// options or more than one site.
func startCaddyfile(t testing.TB, caddyfile string) *gateway {
	t.Helper()
	g := &gateway{t: t, Backend: newBackend(t), Client: newClient(t)}
	t.Cleanup(func() {
		g.Client.CloseIdleConnections()
		if err := caddy.Stop(); err != nil {
			t.Errorf("stopping Caddy: %v", err)
		}
	})
	if err := g.loadCaddyfile(caddyfile); err != nil {
		t.Fatalf("loading the configuration: %v", err)
	}
	return g
}

// load replaces the configuration, as a reload does.
func (g *gateway) load(oauth, site string) error {
	g.t.Helper()
	return g.loadCaddyfile(caddyfileOf(oauth, site))
}

func caddyfileOf(oauth, site string) string {
	return "{\nadmin off\npersist_config off\nskip_install_trust\nauto_https off\ngrace_period 1s\noauth {\n" + oauth +
		"\n}\n}\n:0 {\nbind 127.0.0.1\n" + site + "\n}\n"
}

func (g *gateway) loadCaddyfile(caddyfile string) error {
	g.t.Helper()
	caddyfile = strings.ReplaceAll(caddyfile, "BACKEND", g.Backend.Listener.Addr().String())
	g.inMemory = !strings.Contains(caddyfile, "store bbolt") && !strings.Contains(caddyfile, "store redis")
	if !strings.Contains(caddyfile, "issuer ") { // which JWTs must have
		caddyfile = strings.Replace(caddyfile, "token_format jwt\n", "token_format jwt\nissuer https://auth.example.com/oauth2\n", 1)
	}
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return err
	}
	return g.loadJSON(config)
}

func (g *gateway) loadJSON(config []byte) error {
	if err := caddy.Load(config, true); err != nil {
		return err
	}
	app, err := caddy.ActiveContext().App("http")
	if err != nil {
		return err
	}
	server := app.(*caddyhttp.App).Servers["srv0"]
	scheme := "http"
	if len(server.TLSConnPolicies) > 0 {
		scheme = "https"
	}
	g.URL = scheme + "://" + server.Listeners()[0].Addr().String()
	return nil
}

func newClient(t testing.TB) *http.Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 256}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport: transport, Timeout: 30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// backend answers every request with 200 and remembers what it got.
type backend struct {
	*httptest.Server
	mu       sync.Mutex
	requests []received
}

// received is a request as it arrived at the backend.
type received struct {
	Method, RequestURI string
	Host               string
	Header, Trailer    http.Header
	Body               string
}

func newBackend(t testing.TB) *backend {
	b := new(backend)
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		b.mu.Lock()
		b.requests = append(b.requests, received{r.Method, r.RequestURI, r.Host, r.Header.Clone(), r.Trailer.Clone(), string(body)})
		b.mu.Unlock()
		fmt.Fprint(w, "backend")
	}))
	t.Cleanup(b.Close)
	return b
}

// forget lets count and last begin anew.
func (b *backend) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests = nil
}

// count returns how many requests have arrived.
func (b *backend) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.requests)
}

// last returns the request that arrived last.
func (b *backend) last(t testing.TB) received {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.requests) == 0 {
		t.Fatal("no request reached the backend")
	}
	return b.requests[len(b.requests)-1]
}

// answer is a response, read to its end.
type answer struct {
	*http.Response
	Body string
}

// json reads the body as an object.
func (a answer) json(t testing.TB) map[string]any {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal([]byte(a.Body), &object); err != nil {
		t.Fatalf("%d %q is not a JSON object: %v", a.StatusCode, a.Body, err)
	}
	return object
}

// do sends a request and reads the answer.
func (g *gateway) do(r *http.Request) answer {
	g.t.Helper()
	a, err := g.try(r)
	if err != nil {
		g.t.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	return a
}

// try is do where there may be no answer.
func (g *gateway) try(r *http.Request) (answer, error) {
	res, err := g.Client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && strings.HasPrefix(r.URL.Path, "/oauth/") && !strings.HasPrefix(r.URL.Path, "/oauth/console/") && res.Header.Get("Server") == "" { // Caddy's sites have that header
		checkOpenAPI(g.t, r, res, string(body))
	}
	return answer{res, string(body)}, err
}

// request makes a request; headers are name and value in turn.
func (g *gateway) request(method, path, body string, headers ...string) *http.Request {
	g.t.Helper()
	r, err := http.NewRequest(method, g.URL+path, bytes.NewBufferString(body))
	if err != nil {
		g.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

// post posts a form with Basic credentials for id; without an id it sends none.
func (g *gateway) post(path, id, secret string, form url.Values) answer {
	g.t.Helper()
	return g.do(g.posting(path, id, secret, form))
}

// posting returns the request that post sends.
func (g *gateway) posting(path, id, secret string, form url.Values) *http.Request {
	g.t.Helper()
	r := g.request("POST", path, form.Encode(), "Content-Type", "application/x-www-form-urlencoded")
	if id != "" {
		r.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(secret))
	}
	return r
}

// fetch asks the root realm for a token.
func (g *gateway) fetch(id string, scopes ...string) answer {
	g.t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}}
	if len(scopes) > 0 {
		form.Set("scope", strings.Join(scopes, " "))
	}
	return g.post("/oauth2/access_token", id, testSecret, form)
}

// patiently asks again while the store, or a slow hash, takes longer on a busy machine than the
// gateway waits for it.
func (g *gateway) patiently(ask func() answer) (a answer) {
	g.t.Helper()
	waitUntil(g.t, "the gateway is in time", func() bool {
		a = ask()
		return a.StatusCode != 503
	})
	return a
}

// late reports whether an answer says that the store was late. Memory never is: with it, 503 is an answer as any
// other, so that one which is wrong is found.
func (g *gateway) late(a answer) bool { return a.StatusCode == 503 && !g.inMemory }

// inTime is patiently where only the store can be late.
func (g *gateway) inTime(ask func() answer) answer {
	g.t.Helper()
	if g.inMemory {
		return ask()
	}
	return g.patiently(ask)
}

// token is fetch where it must succeed.
func (g *gateway) token(id string, scopes ...string) string {
	g.t.Helper()
	a := g.patiently(func() answer { return g.fetch(id, scopes...) })
	token, _ := a.json(g.t)["access_token"].(string)
	if a.StatusCode != 200 || token == "" {
		g.t.Fatalf("no token for %s: %d %s", id, a.StatusCode, a.Body)
	}
	return token
}

// get calls a path with a bearer token, or without one if it is empty.
func (g *gateway) get(path, token string) answer {
	g.t.Helper()
	r := g.request("GET", path, "")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return g.do(r)
}

// revoke revokes a token of the root realm.
func (g *gateway) revoke(id, token string) answer {
	g.t.Helper()
	return g.post("/oauth2/token/revoke", id, testSecret, url.Values{"token": {token}})
}

// introspect asks the root realm about a token.
func (g *gateway) introspect(id, token string) answer {
	g.t.Helper()
	return g.post("/oauth2/introspect", id, testSecret, url.Values{"token": {token}})
}

// The whole flow, as in the README.
func TestFlow(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			g := startGateway(t, v.options(t)+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND")

			if a := g.get("/x", ""); a.StatusCode != 401 || a.Header.Get("WWW-Authenticate") != `Bearer realm="root"` {
				t.Errorf("without a token: %d, challenge %q", a.StatusCode, a.Header.Get("WWW-Authenticate"))
			}
			token := g.token("reader")
			if a := g.get("/x", token); a.StatusCode != 200 || a.Body != "backend" {
				t.Errorf("with a token: %d %q", a.StatusCode, a.Body)
			}
			got := maps.Clone(g.Backend.last(t).Header)
			if got.Get("X-OAuth-Client-Id") != "reader" || got.Get("X-OAuth-Scope") != "read" || got.Get("Authorization") != "" {
				t.Errorf("the backend was told %v", got)
			}
			if active := g.introspect("reader", token).json(t)["active"]; active != true {
				t.Errorf("introspection before the revocation: active is %v", active)
			}
			if a := g.revoke("reader", token); a.StatusCode != 200 || a.Body != "{}" {
				t.Errorf("revocation: %d %q", a.StatusCode, a.Body)
			}
			if a := g.get("/x", token); a.StatusCode != 401 || !strings.Contains(a.Header.Get("WWW-Authenticate"), `error="invalid_token"`) {
				t.Errorf("with the revoked token: %d, challenge %q", a.StatusCode, a.Header.Get("WWW-Authenticate"))
			}
			if a := g.introspect("reader", token); a.Body != `{"active":false}` {
				t.Errorf("introspection after the revocation: %s", a.Body)
			}
			if n := g.Backend.count(); n != 1 {
				t.Errorf("%d requests reached the backend, want 1", n)
			}
		})
	}
}
