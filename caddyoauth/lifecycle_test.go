package caddyoauth_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	bolt "go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

const (
	gatewaySite = "oauth_server\noauth_protect\nreverse_proxy BACKEND"
	// readerIs and writerIs are the clients of testClients, one by one, for tests that change them.
	readerIs = "client reader {\nsecret_hash " + testHash + "\nscopes read\ndefault_scopes read\n}\n"
	writerIs = "client writer {\nsecret_hash " + testHash + "\nscopes read write\naudience https://api.example.com\n}\n"
)

// stores returns the lines for each kind of store. Every one of them survives a reload.
func stores(t testing.TB) map[string]string {
	all := map[string]string{"memory": "store memory\n", "bbolt": "store bbolt " + filepath.Join(t.TempDir(), "tokens.db") + "\n"}
	if _, err := exec.LookPath("redis-server"); err == nil { // TestFleet reports if it is missing
		all["redis"] = at(redistest.Start(t).Addr)
	}
	return all
}

// waitUntil polls for something that happens soon, but not at once.
func waitUntil(t testing.TB, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !happened(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long until %s", what)
		}
	}
}

// patient is caddyfileOf with a grace period for requests that is longer than any test.
func patient(oauth, site string) string {
	return strings.Replace(caddyfileOf(oauth, site), "grace_period 1s", "grace_period 1m", 1)
}

// slowBackend does not answer before it is told to.
type slowBackend struct {
	*httptest.Server
	arrived chan struct{} // one for each request
	release chan struct{} // closed by the test
}

func newSlowBackend(t testing.TB) *slowBackend {
	b := &slowBackend{arrived: make(chan struct{}, 100), release: make(chan struct{})}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.arrived <- struct{}{}
		<-b.release
		fmt.Fprint(w, "slow backend")
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *slowBackend) addr() string { return b.Listener.Addr().String() }

// Requests that were let in finish under the rules that they began with. The first request after
// the reload meets the new ones.
func TestReloadWhileRequestsRun(t *testing.T) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			slow := newSlowBackend(t)
			g := startGateway(t, store+testClients, gatewaySite)
			site := "oauth_server\noauth_protect\nreverse_proxy /slow " + slow.addr() + "\nreverse_proxy BACKEND"
			if err := g.loadCaddyfile(patient(store+testClients, site)); err != nil {
				t.Fatal(err)
			}
			token := g.token("reader")
			answers := make(chan answer, 3)
			for range cap(answers) {
				r := g.request("GET", "/slow", "", "Authorization", "Bearer "+token)
				go func() { answers <- g.do(r) }()
				<-slow.arrived
			}

			// The new rules require a scope that the token lacks.
			if err := g.loadCaddyfile(patient(store+testClients, "oauth_server\noauth_protect {\nscopes write\n}\nreverse_proxy BACKEND")); err != nil {
				t.Fatal(err)
			}
			if a := g.get("/slow", token); a.StatusCode != 403 {
				t.Errorf("a new request: %d, want 403", a.StatusCode)
			}
			if a := g.get("/x", g.token("writer", "write")); a.StatusCode != 200 {
				t.Errorf("a new request with a new token: %d, want 200", a.StatusCode)
			}
			close(slow.release)
			for range cap(answers) {
				if a := <-answers; a.StatusCode != 200 || a.Body != "slow backend" {
					t.Errorf("a request of the old configuration: %d %q", a.StatusCode, a.Body)
				}
			}
		})
	}
}

// A request may outlive the store of its configuration. It is then told to come back later:
// nothing panics, and no good token is called invalid.
func TestRequestsThatOutliveTheirStore(t *testing.T) {
	for name, next := range map[string]struct{ oauth, site string }{
		"the reload names another store":   {"store memory\n" + testClients, gatewaySite},
		"the reload removes the oauth app": {"", "respond gone"},
	} {
		t.Run(name, func(t *testing.T) {
			slow := newSlowBackend(t)
			store := "store bbolt " + filepath.Join(t.TempDir(), "tokens.db") + "\n"
			// A request for /slow waits in a handler before ours.
			site := "oauth_server\nroute {\nforward_auth /slow " + slow.addr() + " {\nuri /\n}\noauth_protect\nreverse_proxy BACKEND\n}"
			g := startGateway(t, store+testClients, gatewaySite)
			if err := g.loadCaddyfile(patient(store+testClients, site)); err != nil {
				t.Fatal(err)
			}
			token := g.token("reader")
			if a := g.get("/x", token); a.StatusCode != 200 {
				t.Fatalf("before the reload: %d", a.StatusCode)
			}
			protected := make(chan answer, 1)
			r := g.request("GET", "/slow", "", "Authorization", "Bearer "+token)
			go func() { protected <- g.do(r) }()
			<-slow.arrived
			finish := g.beginTokenRequest("reader")

			config := patient(next.oauth, next.site)
			if next.oauth == "" {
				config = strings.Replace(config, "oauth {\n\n}\n", "", 1)
			}
			if err := g.loadCaddyfile(config); err != nil {
				t.Fatal(err)
			}
			close(slow.release)
			if a := <-protected; a.StatusCode != 503 || a.Header.Get("Retry-After") == "" {
				t.Errorf("the protected request: %d %q, want 503 with Retry-After", a.StatusCode, a.Body)
			}
			if a := finish(); a.StatusCode != 503 || a.Header.Get("Retry-After") == "" || !strings.Contains(a.Body, "temporarily_unavailable") {
				t.Errorf("the token request: %d %q, want 503 with Retry-After", a.StatusCode, a.Body)
			}
		})
	}
}

// beginTokenRequest sends a token request without its body and returns once the handler has it.
// finish sends the body.
func (g *gateway) beginTokenRequest(id string) (finish func() answer) {
	g.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(g.URL, "http://"))
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { conn.Close() })
	body := "grant_type=client_credentials"
	r := g.request("POST", "/oauth2/access_token", body)
	r.SetBasicAuth(id, testSecret)
	fmt.Fprintf(conn, "POST /oauth2/access_token HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n",
		r.Header.Get("Authorization"), len(body))
	reader := bufio.NewReader(conn)
	// The server sends this when the handler begins to read the body.
	if line, err := reader.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 100") {
		g.t.Fatalf("%q, %v; want 100 Continue", line, err)
	}
	reader.ReadString('\n')
	return func() answer {
		g.t.Helper()
		io.WriteString(conn, body)
		res, err := http.ReadResponse(reader, r)
		if err != nil {
			g.t.Fatalf("reading the answer to the token request: %v", err)
		}
		defer res.Body.Close()
		text, _ := io.ReadAll(res.Body)
		return answer{res, string(text)}
	}
}

// occupied returns an address at which nobody else can listen.
func occupied(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// A refused configuration changes nothing, whether the oauth app refuses it or another app fails,
// before or after ours has started.
func TestFailedReloadChangesNothing(t *testing.T) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t, store+testClients, gatewaySite)
			reader, writer := g.token("reader"), g.token("writer", "write")
			stillWorks := func(after string) {
				t.Helper()
				for id, token := range map[string]string{"reader": reader, "writer": writer} {
					if a := g.get("/x", token); a.StatusCode != 200 {
						t.Errorf("%s: a token of %s from before gets %d", after, id, a.StatusCode)
					}
					if a := g.get("/x", g.token(id, "read")); a.StatusCode != 200 {
						t.Errorf("%s: a new token of %s gets %d", after, id, a.StatusCode)
					}
				}
			}
			// It removes one client and disables the other, and would not start.
			taken := occupied(t)
			bad := caddyfileOf(store+"client reader {\ndisabled\n}\n", gatewaySite) + "http://" + taken + " {\nbind 127.0.0.1\nrespond x\n}\n"

			for _, oauth := range []string{store + "client reader", store + "store memory", store + "token_lifetime 0"} {
				if err := g.load(oauth, gatewaySite); err == nil {
					t.Fatalf("%q was accepted", oauth)
				}
				stillWorks("after a malformed configuration")
			}
			// Apps start in random order: in eight loads, ours is very likely first and last.
			for range 8 {
				if err := g.loadCaddyfile(bad); err == nil || !strings.Contains(err.Error(), "address already in use") {
					t.Fatalf("loading a site at an occupied address: %v", err)
				}
				stillWorks("after a configuration that did not start")
			}
			// The next configuration that is accepted counts.
			if err := g.load(store+testClients, gatewaySite); err != nil {
				t.Fatal(err)
			}
			stillWorks("after a good reload")
			if err := g.load(store+readerIs, gatewaySite); err != nil {
				t.Fatal(err)
			}
			if a := g.get("/x", writer); a.StatusCode != 401 {
				t.Errorf("the token of a client that was removed: %d", a.StatusCode)
			}
		})
	}
}

// The cache is shared between configurations. A refused one must not shrink it.
func TestFailedReloadLeavesTheCache(t *testing.T) {
	store := "store bbolt " + filepath.Join(t.TempDir(), "tokens.db") + "\n"
	site := "metrics /metrics\noauth_server\noauth_protect /x\nreverse_proxy BACKEND"
	g := startGateway(t, store+testClients, site)
	tokens := make([]string, 50)
	for i := range tokens {
		tokens[i] = g.token("reader")
	}
	// misses returns how many of the tokens the cache does not know.
	misses := func() float64 {
		before := g.metric("caddy_oauth_cache_misses_total")
		for _, token := range tokens {
			if a := g.get("/x", token); a.StatusCode != 200 {
				t.Fatalf("%d", a.StatusCode)
			}
		}
		return g.metric("caddy_oauth_cache_misses_total") - before
	}
	misses()
	waitUntil(t, "all tokens are in the cache", func() bool { return misses() == 0 })

	tiny := store + "cache {\nmax_tokens 1\n}\n" + testClients
	for range 8 {
		if err := g.loadCaddyfile(caddyfileOf(tiny, site) + "http://" + occupied(t) + " {\nbind 127.0.0.1\nrespond x\n}\n"); err == nil {
			t.Fatal("the configuration started")
		}
	}
	misses() // the effect of a smaller bound would show only when entries are added
	for range 20 {
		g.get("/x", g.token("reader"))
	}
	if n := misses(); n > 10 {
		t.Errorf("after failed reloads, %v of %d tokens were not in the cache", n, len(tokens))
	}

	// Once such a configuration is active, the smaller bound holds.
	if err := g.load(tiny, site); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the cache has shrunk", func() bool {
		g.get("/x", g.token("reader"))
		return misses() > 40
	})
}

// metric returns the value of a counter at the site's /metrics, summed over all labels.
func (g *gateway) metric(name string) (sum float64) {
	g.t.Helper()
	a := g.get("/metrics", "")
	if a.StatusCode != 200 || !strings.Contains(a.Body, name) {
		g.t.Fatalf("no %s at /metrics: %d", name, a.StatusCode)
	}
	for line := range strings.Lines(a.Body) {
		sample, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if sample == name || strings.HasPrefix(sample, name+"{") {
			var v float64
			if _, err := fmt.Sscan(value, &v); err != nil {
				g.t.Fatal(err)
			}
			sum += v
		}
	}
	return sum
}

// metricOf is metric for a single series.
func (g *gateway) metricOf(series string) (value float64) {
	g.t.Helper()
	_, after, found := strings.Cut(g.get("/metrics", "").Body, "\n"+series+" ")
	if !found {
		g.t.Fatalf("no %s at /metrics", series)
	}
	if _, err := fmt.Sscan(after, &value); err != nil {
		g.t.Fatal(err)
	}
	return value
}

// Counters keep counting across a reload, in the new configuration's registry.
func TestMetricsSurviveReloads(t *testing.T) {
	site := "metrics /metrics\noauth_server\noauth_protect /x\nreverse_proxy BACKEND"
	g := startGateway(t, "store memory\n"+testClients, site)
	const issued, checks = "caddy_oauth_requests_total", "caddy_oauth_bearer_checks_total"
	before := map[string]float64{issued: g.metric(issued), checks: g.metric(checks)}
	const rounds = 5
	for i := range rounds {
		token := g.token("reader")
		g.get("/x", token)
		for name, start := range before {
			if got := g.metric(name) - start; got != float64(i+1) {
				t.Errorf("round %d: %s counts %v, want %d", i, name, got, i+1)
			}
		}
		if err := g.load("store memory\n"+testClients, site); err != nil {
			t.Fatal(err)
		}
	}
}

// manyReloadsUnderTraffic reloads while four callers call. Every request is answered as it should
// be, and in the end nothing has leaked. It returns the number of requests.
func manyReloadsUnderTraffic(t *testing.T, store string, reloads int) (requests int64) {
	t.Helper()
	g := startGateway(t, store+testClients, gatewaySite)
	// A panic in a handler also cuts the connection, but it is in this log.
	panics := filepath.Join(t.TempDir(), "stdlib.log")
	logged := "{\nlog {\noutput file " + panics + "\nlevel DEBUG\ninclude http.stdlib\n}\n"
	// All configurations have the same address, so that callers can go on.
	addr := porttest.Address(t)
	_, port, _ := net.SplitHostPort(addr)
	configs := make([]string, 2)
	for i, cache := range []string{"", "cache {\nmax_tokens 20\nmax_age 1s\n}\n"} {
		configs[i] = strings.Replace(patient(store+cache+testClients, gatewaySite), "\n:0 {", "\n:"+port+" {", 1)
		configs[i] = strings.Replace(configs[i], "{\n", logged, 1)
	}
	reload := func(n int) {
		for i := range n {
			if err := g.loadCaddyfile(configs[i%2]); err != nil {
				t.Fatal(err)
			}
		}
	}
	reload(4)
	g.Client.CloseIdleConnections()
	goroutines, files, heap := growth()

	stop := make(chan struct{})
	var callers sync.WaitGroup
	var answered atomic.Int64
	for range 4 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := roundTrip(g.Client, "http://"+addr); err != nil {
					t.Error(err)
					return
				}
				answered.Add(1)
			}
		})
	}
	waitUntil(t, "the callers are under way", func() bool { return answered.Load() > 20 || t.Failed() })
	reload(reloads)
	seen := answered.Load()
	waitUntil(t, "the callers go on after the last reload", func() bool { return answered.Load() > seen+20 || t.Failed() })
	close(stop)
	callers.Wait()
	if text, err := os.ReadFile(panics); err != nil || bytes.Contains(text, []byte("panic")) {
		t.Errorf("the log of the HTTP server: %v\n%s", err, text)
	}
	t.Logf("%d rounds of requests during %d reloads", answered.Load(), reloads)

	g.Client.CloseIdleConnections()
	g.Backend.CloseClientConnections()
	waitUntil(t, "there are no more goroutines and files than before", func() bool {
		g.Client.CloseIdleConnections()
		nowGoroutines, nowFiles, _ := growth()
		if nowGoroutines <= goroutines+5 && nowFiles <= files+5 {
			return true
		}
		return false
	})
	// Allowed are a tenth, the tokens that were issued meanwhile, and the requests that the backend
	// remembers.
	if _, _, now := growth(); now > heap+heap/10+uint64(answered.Load())*8<<10 {
		t.Errorf("the heap grew from %d to %d bytes", heap, now)
	}
	return 3 * answered.Load()
}

// roundTrip requests a token, calls with it, and introspects it.
func roundTrip(client *http.Client, base string) error {
	token := ""
	for _, step := range []struct {
		method, path, body, want string
	}{
		{"POST", "/oauth2/access_token", "grant_type=client_credentials&client_id=reader&client_secret=" + testSecret, `"access_token":"`},
		{"GET", "/x", "", "backend"},
		{"POST", "/oauth2/introspect", "client_id=reader&client_secret=" + testSecret + "&token=", `"active":true`},
	} {
		body := step.body
		if strings.HasSuffix(body, "token=") {
			body += token
		}
		var res *http.Response
		var err error
		for deadline := time.Now().Add(20 * time.Second); ; {
			r, bad := http.NewRequest(step.method, base+step.path, strings.NewReader(body))
			if bad != nil {
				return bad
			}
			if step.method == "POST" {
				r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			} else {
				r.Header.Set("Authorization", "Bearer "+token)
			}
			// A connection that is idle or new when the old configuration's listener closes is cut.
			// This is between Caddy and the kernel, and happens without our handlers, too. Any
			// client has to try again.
			if res, err = client.Do(r); err == nil || time.Now().After(deadline) {
				break
			}
		}
		if err != nil {
			return err
		}
		text, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", step.path, err)
		}
		if res.StatusCode != 200 || !strings.Contains(string(text), step.want) {
			return fmt.Errorf("%s: %d %q", step.path, res.StatusCode, text)
		}
		if token == "" {
			var answer struct {
				Token string `json:"access_token"`
			}
			if err := json.Unmarshal(text, &answer); err != nil {
				return err
			}
			token = answer.Token
		}
	}
	return nil
}

// growth returns what a leak would make grow.
func growth() (goroutines, files int, heap uint64) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	open, _ := os.ReadDir("/proc/self/fd") // empty on systems without it
	return runtime.NumGoroutine(), len(open), m.HeapAlloc
}

// Two configurations that spell the path of one file differently share the store. If the second
// opened it again, it would wait for the first, which waits for the reload to end.
func TestTwoPathsToOneFile(t *testing.T) {
	folder := t.TempDir()
	real, link := filepath.Join(folder, "real"), filepath.Join(folder, "link")
	if err := os.Mkdir(real, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Skipf("no symbolic links here: %v", err)
	}
	g := startGateway(t, "store bbolt "+real+"/tokens.db\n"+testClients, gatewaySite)
	token := g.token("reader")
	for _, path := range []string{link + "/tokens.db", real + "/../link/tokens.db", real + "//tokens.db", real + "/tokens.db"} {
		if err := g.load("store bbolt "+path+"\n"+testClients, gatewaySite); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if a := g.get("/x", token); a.StatusCode != 200 {
			t.Errorf("%s: the token from before: %d", path, a.StatusCode)
		}
		if a := g.get("/x", g.token("reader")); a.StatusCode != 200 {
			t.Errorf("%s: a new token: %d", path, a.StatusCode)
		}
	}
	// A link in place of the file itself could point anywhere.
	if err := os.Symlink(filepath.Join(real, "tokens.db"), filepath.Join(folder, "tokens.db")); err != nil {
		t.Fatal(err)
	}
	err := g.load("store bbolt "+folder+"/tokens.db\n"+testClients, gatewaySite)
	if err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a link to the file: %v", err)
	}
	if a := g.get("/x", token); a.StatusCode != 200 {
		t.Errorf("after the refused reload: %d", a.StatusCode)
	}
}

// Realms share a store, but no tokens.
func TestTwoRealmsInOneFile(t *testing.T) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			oauth := store + readerIs + "realm alpha {\n" + readerIs + "}\n"
			site := "oauth_server\noauth_protect /alpha/* alpha\noauth_protect /root/* root\nreverse_proxy BACKEND"
			g := startGateway(t, oauth, site)
			ofRoot := g.token("reader")
			ofAlpha := g.post("/oauth2/realms/root/realms/alpha/access_token", "reader", testSecret, url.Values{"grant_type": {"client_credentials"}}).json(t)["access_token"].(string)
			check := func() {
				t.Helper()
				for path, want := range map[string][2]int{"/root/x": {200, 401}, "/alpha/x": {401, 200}} {
					if a := g.get(path, ofRoot); a.StatusCode != want[0] {
						t.Errorf("%s with root's token: %d, want %d", path, a.StatusCode, want[0])
					}
					if a := g.get(path, ofAlpha); a.StatusCode != want[1] {
						t.Errorf("%s with alpha's token: %d, want %d", path, a.StatusCode, want[1])
					}
				}
			}
			check()
			check() // warm
			if err := g.load(oauth, site); err != nil {
				t.Fatal(err)
			}
			check()
			// The realm is removed and put back. Its tokens stay dead, those of root live.
			if err := g.load(store+readerIs, "oauth_server\noauth_protect\nreverse_proxy BACKEND"); err != nil {
				t.Fatal(err)
			}
			if err := g.load(oauth, site); err != nil {
				t.Fatal(err)
			}
			if a := g.get("/root/x", ofRoot); a.StatusCode != 200 {
				t.Errorf("root's token, with alpha back: %d", a.StatusCode)
			}
			if a := g.get("/alpha/x", ofAlpha); a.StatusCode != 401 {
				t.Errorf("alpha's token, with alpha back: %d", a.StatusCode)
			}
		})
	}
}

// Tokens survive a reload in every store, and a restart in every store but memory.
func TestTokensSurvive(t *testing.T) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t, store+testClients, gatewaySite)
			token, revoked := g.token("reader"), g.token("reader")
			g.revoke("reader", revoked)
			for range 3 {
				if err := g.load(store+"cache off\n"+testClients, gatewaySite); err != nil {
					t.Fatal(err)
				}
				if a := g.get("/x", token); a.StatusCode != 200 {
					t.Errorf("after a reload: %d", a.StatusCode)
				}
				if a := g.get("/x", revoked); a.StatusCode != 401 {
					t.Errorf("a revoked token after a reload: %d", a.StatusCode)
				}
			}
			g.restart(store+testClients, gatewaySite)
			want := 200
			if name == "memory" {
				want = 401
			}
			if a := g.get("/x", token); a.StatusCode != want {
				t.Errorf("after a restart: %d, want %d", a.StatusCode, want)
			}
			if a := g.get("/x", revoked); a.StatusCode != 401 {
				t.Errorf("a revoked token after a restart: %d", a.StatusCode)
			}
		})
	}
}

// restart stops Caddy and starts it with another configuration.
func (g *gateway) restart(oauth, site string) {
	g.t.Helper()
	if err := caddy.Stop(); err != nil {
		g.t.Fatal(err)
	}
	if err := g.load(oauth, site); err != nil {
		g.t.Fatal(err)
	}
}

// A client that has fetched as many tokens as it may is told to slow down, in every store. Its own
// limit overrides the realm's, and the realm's overrides root's. Nobody else is affected.
func TestTokenLimits(t *testing.T) {
	form := url.Values{"grant_type": {"client_credentials"}}
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t, store+"limit tokens 2 1h\n"+readerIs+strings.Replace(writerIs, "{\n", "{\nlimit tokens 3 1h\n", 1)+
				"realm alpha {\n"+readerIs+"}\nrealm beta {\nlimit tokens 1 24h\n"+readerIs+"}\n", "oauth_server")
			for _, c := range []struct {
				realm, client, scope string
				may                  int
			}{{"", "reader", "read", 2}, {"", "writer", "write", 3}, {"/realms/root/realms/alpha", "reader", "read", 2}, {"/realms/root/realms/beta", "reader", "read", 1}} {
				form.Set("scope", c.scope)
				for range c.may {
					wantToken(t, g.post("/oauth2"+c.realm+"/token", c.client, testSecret, form), c.scope)
				}
				a := g.post("/oauth2"+c.realm+"/token", c.client, testSecret, form)
				wantE(t, a, 429, "slow_down", testSecret)
				if a := g.post("/oauth2"+c.realm+"/introspect", c.client, testSecret, url.Values{"token": {"x"}}); a.StatusCode != 200 {
					t.Errorf("%s%s can't introspect tokens any more: %d", c.client, c.realm, a.StatusCode)
				}
			}
		})
	}
}

// A reload may move the store. Tokens are not moved, and those in a file end with the move: while
// nobody has the file open, nobody could end the tokens of a client that is removed.
func TestReloadMovesTheStore(t *testing.T) {
	folder := t.TempDir()
	at := func(name string) string {
		return "store bbolt " + filepath.Join(folder, name, "tokens.db") + "\n" + testClients
	}
	g := startGateway(t, at("one"), gatewaySite)
	first := g.token("reader")
	g.get("/x", first)
	if err := g.load(at("two"), gatewaySite); err != nil {
		t.Fatal(err)
	}
	if a := g.get("/x", first); a.StatusCode != 401 {
		t.Errorf("a token from the other store: %d", a.StatusCode)
	}
	if a := g.get("/x", g.token("reader")); a.StatusCode != 200 {
		t.Errorf("a token from this store: %d", a.StatusCode)
	}
	// The old file is closed, so somebody else can open it.
	db, err := bolt.Open(filepath.Join(folder, "one", "tokens.db"), 0o600, &bolt.Options{Timeout: 20 * time.Second})
	if err != nil {
		t.Fatalf("the old file: %v", err)
	}
	db.Close()
	if err := g.load(at("one"), gatewaySite); err != nil {
		t.Fatal(err)
	}
	if a := g.get("/x", first); a.StatusCode != 401 {
		t.Errorf("back at the first store, a token from before: %d", a.StatusCode)
	}
	if a := g.get("/x", g.token("reader")); a.StatusCode != 200 {
		t.Errorf("back at the first store, a new token: %d", a.StatusCode)
	}
}

// If a configuration that does not open a client's store removes the client, its old tokens are
// dead when it comes back, whatever happened in the meantime.
func TestClientRemovedTogetherWithItsStore(t *testing.T) {
	foreign := "oauth_protect {\nsource introspect https://127.0.0.1:1\n}\nreverse_proxy BACKEND"
	without := "{\nadmin off\npersist_config off\nauto_https off\ngrace_period 1s\n}\n:0 {\nbind 127.0.0.1\nrespond x\n}\n"
	for name, store := range stores(t) {
		elsewhere := "store bbolt " + filepath.Join(t.TempDir(), "elsewhere.db") + "\n"
		for meanwhile, steps := range map[string][]string{
			"only foreign tokens":                       {caddyfileOf("", foreign)},
			"another store":                             {caddyfileOf(elsewhere+writerIs, gatewaySite)},
			"another store, then without the client":    {caddyfileOf(elsewhere+testClients, gatewaySite), caddyfileOf(elsewhere+writerIs, gatewaySite)},
			"nothing of ours":                           {without},
			"nothing of ours, then only foreign tokens": {without, caddyfileOf("", foreign)},
			"a refused configuration after that":        {caddyfileOf("", foreign), caddyfileOf(store+testClients, gatewaySite) + "http://" + occupied(t) + " {\nbind 127.0.0.1\nrespond x\n}\n"},
		} {
			if name == "redis" && meanwhile == "another store, then without the client" {
				continue // the client may be another gateway's; see leave
			}
			t.Run(name+", "+meanwhile, func(t *testing.T) {
				g := startGateway(t, store+testClients, gatewaySite)
				warm, cold := g.token("reader"), g.token("reader")
				g.get("/x", warm)
				for _, step := range steps {
					if err := g.loadCaddyfile(step); err != nil && !strings.Contains(err.Error(), "address already in use") {
						t.Fatal(err)
					}
				}
				for range 2 {
					if err := g.load(store+testClients, gatewaySite); err != nil {
						t.Fatal(err)
					}
					for state, token := range map[string]string{"warm": warm, "cold": cold} {
						if a := g.get("/x", token); a.StatusCode != 401 {
							t.Errorf("an old token, %s, gets %d, want 401", state, a.StatusCode)
						}
					}
					if a := g.get("/x", g.token("reader")); a.StatusCode != 200 {
						t.Errorf("a new token: %d", a.StatusCode)
					}
				}
			})
		}
	}
}

// A configuration that never became active ends no tokens in any store, neither beside one with
// another store nor beside one without any.
func TestRefusedConfigurationsEndNothing(t *testing.T) {
	for name, store := range stores(t) {
		if name == "memory" {
			continue // nothing survives a stop
		}
		t.Run(name, func(t *testing.T) {
			other := "store bbolt " + filepath.Join(t.TempDir(), "other.db") + "\n"
			g := startGateway(t, store+testClients, gatewaySite)
			token := g.token("reader")
			refused := caddyfileOf(store+testClients, gatewaySite) + "http://" + occupied(t) + " {\nbind 127.0.0.1\nrespond x\n}\n"
			for _, running := range []string{
				caddyfileOf(other+testClients, gatewaySite),
				"{\nadmin off\npersist_config off\nauto_https off\n}\n:0 {\nbind 127.0.0.1\nrespond x\n}\n",
			} {
				if err := caddy.Stop(); err != nil {
					t.Fatal(err)
				}
				if err := g.loadCaddyfile(running); err != nil {
					t.Fatal(err)
				}
				for range 4 { // apps start and stop in any order
					if err := g.loadCaddyfile(refused); err == nil {
						t.Fatal("a site at an occupied address was accepted")
					}
				}
			}
			g.restart(store+testClients, gatewaySite)
			if a := g.get("/x", token); a.StatusCode != 200 {
				t.Errorf("the old token: %d", a.StatusCode)
			}
		})
	}
}

// lateApp is an app that does not start.
type lateApp struct{}

// lateStart is its Start.
var lateStart func() error

func (lateApp) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "oauth_test_late", New: func() caddy.Module { return lateApp{} }}
}
func (lateApp) Start() error { return lateStart() }
func (lateApp) Stop() error  { return nil }

func init() { caddy.RegisterModule(lateApp{}) }

// A configuration may serve before another of its apps fails, and issue a token to a client that
// the active configuration does not have. That token is not valid, even once the client exists.
func TestRefusedConfigurationThatServed(t *testing.T) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t, store+testClients, gatewaySite)
			if err := g.load(store+readerIs, gatewaySite); err != nil {
				t.Fatal(err)
			}
			reader := g.token("reader")
			config, err := adapt(t, formatted(strings.Replace(caddyfileOf(store+testClients, "oauth_server"), ":0 {", "http://"+porttest.Address(t)+" {", 1)))
			if err != nil {
				t.Fatal(err)
			}
			refused := bytes.Replace(config, []byte(`"apps":{`), []byte(`"apps":{"oauth_test_late":{},`), 1)
			_, address, _ := strings.Cut(string(config), `"listen":["`)
			address, _, _ = strings.Cut(address, `"`)
			other := &gateway{t: t, URL: "http://" + address, Client: &http.Client{Timeout: 20 * time.Second}}
			var token string
			lateStart = func() error {
				r := other.posting("/oauth2/access_token", "writer", testSecret, url.Values{"grant_type": {"client_credentials"}, "scope": {"write"}})
				if a, err := other.try(r); err == nil && a.StatusCode == 200 {
					token = a.json(t)["access_token"].(string)
				}
				return errors.New("does not start")
			}
			for range 30 { // apps start in any order; this one is the last in a third of the loads
				if err := caddy.Load(refused, true); err == nil || !strings.Contains(err.Error(), "does not start") {
					t.Fatal(err)
				}
				if token != "" {
					break
				}
			}
			if token == "" {
				t.Fatal("the refused configuration never served")
			}
			if err := g.load(store+testClients, gatewaySite); err != nil {
				t.Fatal(err)
			}
			if a := g.get("/x", token); a.StatusCode != 401 {
				t.Errorf("the token of the refused configuration: %d", a.StatusCode)
			}
			if a := g.get("/x", reader); a.StatusCode != 200 {
				t.Errorf("a token of the client that stayed: %d", a.StatusCode)
			}
		})
	}
}

// A gateway of a fleet that changes to another store, or to another connection to the same one,
// ends no token of the clients that stay.
func TestFleetMemberThatLeaves(t *testing.T) {
	redis := redistest.Start(t)
	g := startGateway(t, at(redis.Addr, "dial_timeout 2s", "timeout 1900ms")+testClients, gatewaySite)
	reader, writer := g.token("reader"), g.token("writer", "write")
	if err := g.load("store memory\n"+writerIs, gatewaySite); err != nil {
		t.Fatal(err)
	}
	if err := g.load(at(redis.Addr, "timeout 2s")+testClients, gatewaySite); err != nil {
		t.Fatal(err)
	}
	if a := g.get("/x", writer); a.StatusCode != 200 {
		t.Errorf("a token of the client that stayed: %d", a.StatusCode)
	}
	if a := g.get("/x", reader); a.StatusCode != 401 {
		t.Errorf("a token of the client that was removed: %d", a.StatusCode)
	}
}

// A gateway of a fleet that leaves the store altogether ends no token of the clients that another
// gateway still has, neither there nor for itself when it comes back.
func TestFleetMemberThatLeavesOthersBehind(t *testing.T) {
	redis := redistest.Start(t)
	store := at(redis.Addr)
	here := startGateway(t, store+testClients, fleetSite)
	there, _ := startGatewayProcess(t, store+testClients)
	here.linked()
	token := there.token("reader")
	for name, elsewhere := range map[string]string{
		"only foreign tokens": caddyfileOf("", "oauth_protect {\nsource introspect https://127.0.0.1:1\n}\nreverse_proxy BACKEND"),
		"another store":       caddyfileOf("store memory\n"+writerIs, gatewaySite),
		"nothing of ours":     "{\nadmin off\npersist_config off\nauto_https off\ngrace_period 1s\n}\n:0 {\nbind 127.0.0.1\nrespond x\n}\n",
	} {
		if err := here.loadCaddyfile(elsewhere); err != nil {
			t.Fatal(err)
		}
		waitUntil(t, "the gateway that stays has claimed the client", func() bool {
			return !strings.Contains(redis.CLI("hget", "caddy-oauth:realm:root:clients", "reader"), "left")
		})
		if a := there.get("/x", token); a.StatusCode != 200 {
			t.Errorf("%s: where it was issued, the token gets %d", name, a.StatusCode)
		}
		if err := here.load(store+testClients, fleetSite); err != nil {
			t.Fatal(err)
		}
		for where, g := range map[string]*gateway{"there": there, "here": here} {
			if a := g.get("/x", token); a.StatusCode != 200 {
				t.Errorf("%s, then back: %s the token gets %d", name, where, a.StatusCode)
			}
		}
	}
}

// 'caddy validate' beside a running server opens no store and harms nothing, whatever it finds.
func TestValidateBesideARunningServer(t *testing.T) {
	store := "store bbolt " + filepath.Join(t.TempDir(), "tokens.db") + "\n"
	g := startGateway(t, store+testClients, gatewaySite)
	token := g.token("reader")
	for range 3 {
		config, err := adapt(t, formatted(caddyfileOf(store+testClients, "oauth_server\noauth_protect\nrespond ok")))
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(config); err != nil {
			t.Errorf("validating the active configuration: %v", err)
		}
		if config, err = adapt(t, formatted(caddyfileOf(store+"client reader", "oauth_server\noauth_protect\nrespond ok"))); err != nil {
			t.Fatal(err)
		}
		if validate(config) == nil {
			t.Error("a client without a secret was accepted")
		}
		if a := g.get("/x", token); a.StatusCode != 200 {
			t.Errorf("afterwards: %d", a.StatusCode)
		}
		if a := g.get("/x", g.token("writer", "write")); a.StatusCode != 200 {
			t.Errorf("afterwards, a new token: %d", a.StatusCode)
		}
	}
}

const holdVariable = "OAUTH_TEST_HOLD"

// TestHoldStore is not a test: in a process of its own, it holds a file open until its standard
// input ends.
func TestHoldStore(t *testing.T) {
	path := os.Getenv(holdVariable)
	if path == "" {
		t.Skip("run by TestStoreHeldByAnotherProcess")
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	fmt.Println("held")
	io.Copy(io.Discard, os.Stdin)
}

// holdInAnotherProcess opens a file in another process. release ends that process.
func holdInAnotherProcess(t *testing.T, path string) (release func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestHoldStore$")
	cmd.Env = append(os.Environ(), holdVariable+"="+path)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() {
		stdin.Close()
		cmd.Wait()
	})
	t.Cleanup(release)
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if lines.Text() == "held" {
			go io.Copy(io.Discard, stdout)
			return release
		}
	}
	t.Fatal("the other process could not open the file")
	return nil
}

// Only one process can have a file open. A second is told so, and its active configuration goes on.
func TestStoreHeldByAnotherProcess(t *testing.T) {
	folder := t.TempDir()
	mine, theirs := filepath.Join(folder, "mine.db"), filepath.Join(folder, "theirs.db")
	release := holdInAnotherProcess(t, theirs)
	g := startGateway(t, "store bbolt "+mine+"\n"+testClients, gatewaySite)
	token := g.token("reader")
	err := g.load("store bbolt "+theirs+"\n"+readerIs, gatewaySite)
	if err == nil {
		t.Fatal("a file that another process holds was opened")
	}
	for _, want := range []string{theirs, "in use by another process", "store bbolt <path>"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not hold %q: %v", want, err)
		}
	}
	if a := g.get("/x", token); a.StatusCode != 200 {
		t.Errorf("the running configuration: %d", a.StatusCode)
	}
	if a := g.get("/x", g.token("writer", "write")); a.StatusCode != 200 {
		t.Errorf("the running configuration, with a new token: %d", a.StatusCode)
	}
	release()
	if err := g.load("store bbolt "+theirs+"\n"+testClients, gatewaySite); err != nil {
		t.Fatalf("after the other process has ended: %v", err)
	}

	// A first start fails in the same way, and leaves nothing behind that would hinder the next.
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	release = holdInAnotherProcess(t, theirs)
	if err := g.load("store bbolt "+theirs+"\n"+testClients, gatewaySite); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a first start: %v", err)
	}
	release()
	if err := g.load("store bbolt "+theirs+"\n"+testClients, gatewaySite); err != nil {
		t.Errorf("the next start: %v", err)
	}
}

// The tokens of a client that is disabled or removed die at once and stay dead when it comes back,
// across reloads and restarts.
func TestClientThatIsRemovedAndPutBack(t *testing.T) {
	for name, store := range stores(t) {
		for gone, without := range map[string]string{
			"removed":  writerIs,
			"disabled": writerIs + strings.Replace(readerIs, "{\n", "{\ndisabled\n", 1),
		} {
			for _, how := range []string{"reload", "restart"} {
				if name == "memory" && how == "restart" {
					continue // nothing survives a restart
				}
				t.Run(name+", "+gone+", "+how, func(t *testing.T) {
					g := startGateway(t, store+testClients, gatewaySite)
					next := func(oauth string) {
						t.Helper()
						if how == "restart" {
							g.restart(oauth, gatewaySite)
						} else if err := g.load(oauth, gatewaySite); err != nil {
							t.Fatal(err)
						}
					}
					warm, cold, others := g.token("reader"), g.token("reader"), g.token("writer", "write")
					if a := g.get("/x", warm); a.StatusCode != 200 {
						t.Fatalf("before: %d", a.StatusCode)
					}
					dead := func(when string) {
						t.Helper()
						for state, token := range map[string]string{"warm": warm, "cold": cold} {
							if a := g.get("/x", token); a.StatusCode != 401 {
								t.Errorf("%s: a %s token gets %d, want 401", when, state, a.StatusCode)
							}
							if a := g.introspect("writer", token); a.Body != `{"active":false}` {
								t.Errorf("%s: introspection of a %s token: %s", when, state, a.Body)
							}
						}
						if a := g.get("/x", others); a.StatusCode != 200 {
							t.Errorf("%s: another client's token gets %d", when, a.StatusCode)
						}
					}
					next(store + without)
					dead("without the client")
					if a := g.fetch("reader"); a.StatusCode != 401 {
						t.Errorf("without the client, a token request gets %d", a.StatusCode)
					}
					next(store + testClients)
					dead("with the client again")
					if a := g.get("/x", g.token("reader")); a.StatusCode != 200 {
						t.Errorf("with the client again, a new token gets %d", a.StatusCode)
					}
					next(store + testClients)
					dead("after another load")
				})
			}
		}
	}
}

// What a reload takes away from a client, or requires at a route, holds for tokens that are cached
// already.
func TestReloadBindsCachedTokens(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			options := v.options(t)
			g := startGateway(t, options+testClients, gatewaySite)
			token := g.token("writer", "read", "write")
			for range 2 {
				if a := g.get("/x", token); a.StatusCode != 200 {
					t.Fatalf("before: %d", a.StatusCode)
				}
			}
			const wants = "oauth_server\noauth_protect {\nscopes write\n}\nreverse_proxy BACKEND"
			for _, c := range []struct {
				change, oauth, site string
				want                int
			}{
				{"the route requires a scope that the token has", testClients, wants, 200},
				{"the client loses the scope", strings.Replace(testClients, "read write", "read", 1), wants, 403},
				{"the client has the scope again", testClients, wants, 200},
				{"the route requires an audience that the token has", testClients, "oauth_server\noauth_protect {\naudience https://api.example.com\n}\nreverse_proxy BACKEND", 200},
				{"the route requires another audience", testClients, "oauth_server\noauth_protect {\naudience other\n}\nreverse_proxy BACKEND", 401},
				{"the client loses its audience", strings.Replace(testClients, "audience https://api.example.com", "audience other", 1), gatewaySite, 401},
				{"the client has its audience again", testClients, gatewaySite, 200},
			} {
				if err := g.load(options+c.oauth, c.site); err != nil {
					t.Fatal(err)
				}
				if a := g.get("/x", token); a.StatusCode != c.want {
					t.Errorf("%s: %d, want %d", c.change, a.StatusCode, c.want)
				}
			}
		})
	}
}

// The hash of "mySecret", and one of another secret, both slow.
const (
	hashOfMySecret = "$argon2id$v=19$m=19456,t=2,p=1$GmhSbmKu6MsdY71bwGWBGw$Oe36vHuGNEvukTHYFyPwOiZF5q6MMG/L6taSzBcWCEw"
	hashOfAnother  = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
)

// The success of a slow hash is remembered, and forgotten as soon as the secret is no longer the
// client's.
func TestRotatedSecretsEndAtOnce(t *testing.T) {
	client := func(lines string) string {
		return "store memory\nclient c {\n" + lines + "\nscopes read\n}\n"
	}
	g := startGateway(t, client("secret_hash "+hashOfMySecret), gatewaySite)
	fetch := func(secret string) int {
		t.Helper()
		return g.post("/oauth2/access_token", "c", secret, url.Values{"grant_type": {"client_credentials"}, "scope": {"read"}}).StatusCode
	}
	remember := func() {
		t.Helper()
		for range 2 {
			if status := fetch("mySecret"); status != 200 {
				t.Fatalf("the client's secret: %d", status)
			}
		}
	}
	load := func(oauth string) {
		t.Helper()
		if err := g.load(oauth, gatewaySite); err != nil {
			t.Fatal(err)
		}
	}

	remember()
	load(client("secret_hash " + hashOfAnother))
	if status := fetch("mySecret"); status != 401 {
		t.Errorf("a secret that was replaced: %d", status)
	}
	load(client("secret_hash " + hashOfMySecret))
	remember()
	load(client("secret_hash " + hashOfMySecret + "\ndisabled"))
	if status := fetch("mySecret"); status != 401 {
		t.Errorf("the secret of a client that was disabled: %d", status)
	}
	load(client("secret_hash " + hashOfMySecret + "\nsecret_hash " + hashOfAnother))
	remember()
	load(client("secret_hash " + hashOfAnother))
	if status := fetch("mySecret"); status != 401 {
		t.Errorf("the old one of two secrets: %d", status)
	}

	// Without a reload, a secret ends at its date, which has whole seconds. A busy machine may be there late: then
	// the next date is further away.
	for life := 3 * time.Second; life < time.Minute; life *= 2 {
		until := time.Now().Add(life).Truncate(time.Second)
		load(client("secret_hash " + hashOfMySecret + " until " + until.UTC().Format(time.RFC3339)))
		good := 0
		for over := false; !over; {
			asked := time.Now()
			status := fetch("mySecret")
			switch answered := time.Now(); {
			case status == 200 && asked.Before(until):
				good++
			case status == 401 && !answered.Before(until):
				over = true
			default:
				t.Fatalf("from %v to %v before its date, the secret gets %d", until.Sub(asked), until.Sub(answered), status)
			}
			time.Sleep(5 * time.Millisecond) // let others have the machine
		}
		if good >= 2 { // the second was remembered
			return
		}
	}
	t.Error("a secret with a date was never remembered")
}

// A secret file is read when a configuration is loaded. A reload reads it again.
func TestSecretFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	write := func(secret string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	oauth := "store memory\nclient c {\nsecret {file." + path + "}\nscopes read\n}\n"
	write("first\n")
	g := startGateway(t, oauth, gatewaySite)
	check := func(secret string, want int) {
		t.Helper()
		if a := g.post("/oauth2/access_token", "c", secret, url.Values{"grant_type": {"client_credentials"}, "scope": {"read"}}); a.StatusCode != want {
			t.Errorf("secret %q: %d, want %d", secret, a.StatusCode, want)
		}
	}
	check("first", 200)
	check("first\n", 401)
	write("second")
	if err := g.load(oauth, gatewaySite); err != nil {
		t.Fatal(err)
	}
	check("first", 401)
	check("second", 200)
	// An empty file holds no secret that a client could send.
	write("")
	if err := g.load(oauth, gatewaySite); err == nil {
		t.Error("an empty secret file was accepted")
	}
	check("second", 200)
	check("", 401)
}

// Once Caddy has stopped, nothing of ours keeps running.
func TestStopLeavesNothing(t *testing.T) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			before := goleak.IgnoreCurrent()
			g := startGateway(t, store+testClients, gatewaySite)
			for range 3 {
				token := g.token("reader")
				g.get("/x", token)
				g.revoke("reader", token)
				if err := g.load(store+testClients, gatewaySite); err != nil {
					t.Fatal(err)
				}
			}
			g.load(store+"client reader", gatewaySite)
			g.Client.CloseIdleConnections()
			if err := caddy.Stop(); err != nil {
				t.Fatal(err)
			}
			g.Client.CloseIdleConnections()
			g.Backend.Close()
			// What was told to end needs a moment, on a busy machine more than goleak waits for.
			var leak error
			var stacks string
			left := func() string {
				for _, ours := range []string{"caddyoauth.(*", "internal/store.(*", "introspect.(*", "ristretto", "bbolt", "rueidis"} {
					if strings.Contains(stacks, ours) {
						return ours
					}
				}
				return ""
			}
			for deadline := time.Now().Add(20 * time.Second); ; {
				// These are Caddy's own: the proxy's idle connections end by their timeout, and parts of
				// certmagic live as long as the process.
				leak = goleak.Find(before,
					goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.(*Cache).maintainAssets"),
					goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"),
					goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
				)
				buf := make([]byte, 1<<20)
				stacks = string(buf[:runtime.Stack(buf, true)])
				if leak == nil && left() == "" || time.Now().After(deadline) {
					break
				}
			}
			if leak != nil {
				t.Error(leak)
			}
			if ours := left(); ours != "" {
				t.Errorf("a goroutine of %s is left:\n%s", ours, stacks)
			}
		})
	}
}
