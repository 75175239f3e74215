package caddyoauth_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
	"github.com/caddyoauth/gateway/introspect"
)

// revokeAll calls POST /oauth/tokens/revoke.
func (g *gateway) revokeAll(admin, body string) (a answer) {
	g.t.Helper()
	// A reload replaces the admin endpoint, and may close a connection before it has been answered.
	waitUntil(g.t, "the admin endpoint answers", func() (answered bool) {
		var err error
		a, err = g.tryRevokeAll(admin, body)
		return err == nil
	})
	return a
}

func (g *gateway) tryRevokeAll(admin, body string) (answer, error) {
	r, err := http.NewRequest("POST", "http://"+admin+"/oauth/tokens/revoke", strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Close = true
	return g.try(r)
}

// mustRevokeAll is revokeAll where it must succeed with an answer.
func (g *gateway) mustRevokeAll(admin, body, want string) {
	g.t.Helper()
	if a := g.revokeAll(admin, body); a.StatusCode != 200 || strings.TrimSpace(a.Body) != want {
		g.t.Fatalf("%s: %d %s, want %s", body, a.StatusCode, a.Body, want)
	}
}

// tokenOfRealm fetches a token of a realm.
func (g *gateway) tokenOfRealm(realm, id string) string {
	g.t.Helper()
	a := g.post("/oauth2/realms/root/realms/"+realm+"/access_token", id, testSecret, url.Values{"grant_type": {"client_credentials"}, "scope": {"read"}})
	token, _ := a.json(g.t)["access_token"].(string)
	if token == "" {
		g.t.Fatalf("no token: %d %s", a.StatusCode, a.Body)
	}
	return token
}

const (
	// realmsAlike are testClients, and a realm with clients of the same names and one more.
	realmsAlike = testClients + "realm beta {\n" + testClients + "client batch {\nsecret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0\nscopes read\n}\n}\n"
	bothSite    = "metrics /metrics\noauth_server\nhandle /beta/* {\noauth_protect beta\nreverse_proxy BACKEND\n}\nhandle {\noauth_protect root\nreverse_proxy BACKEND\n}"
)

// An operator ends all tokens of one client, or of all clients of a realm, with one call. They are
// refused from then on, cached or not, also after a reload and a restart. No other token is, and new
// ones are good at once.
func TestRevokeAll(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			options := v.options(t) + realmsAlike
			config, admin := withAdmin(t, caddyfileOf(options, bothSite))
			g := startCaddyfile(t, config)
			type held struct {
				name, path, token string
				dead              bool
			}
			var all []*held
			fetch := func() (fetched map[string]*held) {
				fetched = make(map[string]*held)
				for _, id := range []string{"reader", "writer"} {
					fetched["root/"+id] = &held{"root/" + id, "/x", g.token(id, "read"), false}
				}
				for _, id := range []string{"reader", "writer", "batch"} {
					fetched["beta/"+id] = &held{"beta/" + id, "/beta/x", g.tokenOfRealm("beta", id), false}
				}
				for _, h := range fetched {
					all = append(all, h)
				}
				return fetched
			}
			check := func(when string) {
				t.Helper()
				for i, h := range all {
					want := map[bool]int{false: 200, true: 401}[h.dead]
					for range 2 {
						if a := g.get(h.path, h.token); a.StatusCode != want {
							t.Errorf("%s, token %d, of %s: %d, want %d", when, i, h.name, a.StatusCode, want)
						}
					}
					if h.path != "/x" {
						continue
					}
					if active := g.introspect(strings.TrimPrefix(h.name, "root/"), h.token).json(t)["active"]; active != !h.dead {
						t.Errorf("%s, token %d, of %s: active is %v", when, i, h.name, active)
					}
				}
			}
			fetch()
			check("before")
			cold := fetch() // not seen by the gateway before they end
			for _, step := range []struct{ body, answer, ends string }{
				{`{"realm":"root","client":"reader"}`, `{"realm":"root","client":"reader","clients":1}`, "root/reader"},
				{`{"realm":"beta","client":"writer"}`, `{"realm":"beta","client":"writer","clients":1}`, "beta/writer"},
				{`{"client":"batch"}`, `{"realm":"beta","client":"batch","clients":1}`, "beta/batch"},
				{`{"realm":"beta","all":true}`, `{"realm":"beta","clients":3}`, "beta/"},
				{`{"realm":"root","all":true}`, `{"realm":"root","clients":2}`, "root/"},
				{`{"realm":"root","client":"reader"}`, `{"realm":"root","client":"reader","clients":1}`, "root/reader"},
			} {
				g.mustRevokeAll(admin, step.body, step.answer)
				for _, h := range all {
					h.dead = h.dead || strings.HasPrefix(h.name, step.ends)
				}
				fetch()
				check("after " + step.body)
			}
			if len(cold) != 5 {
				t.Fatal("not all were tried")
			}
			if err := g.loadCaddyfile(config); err != nil {
				t.Fatal(err)
			}
			check("after a reload that changes nothing")
			if err := g.loadCaddyfile(strings.Replace(config, "grace_period 1s", "grace_period 2s", 1)); err != nil {
				t.Fatal(err)
			}
			check("after a reload")
			if v.store != "memory" {
				g.restart(options, bothSite)
				check("after a restart")
			}
		})
	}
}

// Tokens from elsewhere are not touched, and neither are credentials: only tokens end.
func TestRevokeAllLeavesTheRest(t *testing.T) {
	f := newForeign(t)
	f.knows("foreign", `{"active":true,"client_id":"reader","scope":"read"}`)
	config, admin := withAdmin(t, caddyfileOf("store memory\n"+testClients, "oauth_server\noauth_protect {\n"+f.sources("")+"basic\n}\nreverse_proxy BACKEND"))
	g := startCaddyfile(t, config)
	jwt := f.jwt(t, "")
	g.warm("/x", "foreign")
	g.warm("/x", jwt)
	asked := f.asked.Load()
	g.mustRevokeAll(admin, `{"realm":"root","all":true}`, `{"realm":"root","clients":2}`)
	for _, token := range []string{"foreign", jwt} {
		if a := g.get("/x", token); a.StatusCode != 200 {
			t.Errorf("a token from elsewhere: %d", a.StatusCode)
		}
	}
	if now := f.asked.Load(); now != asked {
		t.Errorf("the other server was asked again")
	}
	r := g.request("GET", "/x", "")
	r.SetBasicAuth("reader", testSecret)
	if a := g.do(r); a.StatusCode != 200 {
		t.Errorf("a client's own secret: %d", a.StatusCode)
	}
}

// A disabled client, a realm without clients and a configuration that issues nothing are no errors:
// there is nothing left to end.
func TestRevokeAllOfNobody(t *testing.T) {
	disabled := writerIs + strings.Replace(readerIs, "{\n", "{\ndisabled\n", 1)
	config, admin := withAdmin(t, caddyfileOf("store memory\n"+testClients, gatewaySite))
	g := startCaddyfile(t, config)
	old := g.token("reader")
	if err := g.loadCaddyfile(strings.Replace(config, testClients, disabled, 1)); err != nil {
		t.Fatal(err)
	}
	g.mustRevokeAll(admin, `{"client":"reader"}`, `{"realm":"root","client":"reader","clients":1}`)
	for range 2 { // the client can be enabled again, and the call repeated
		if err := g.loadCaddyfile(config); err != nil {
			t.Fatal(err)
		}
		g.wants("a token from before the client was disabled", old, 401)
		old = g.token("reader")
		g.wants("a new one", old, 200)
		g.mustRevokeAll(admin, `{"client":"reader"}`, `{"realm":"root","client":"reader","clients":1}`)
	}
	config, admin = withAdmin(t, caddyfileOf("store memory", "oauth_server"))
	g = startCaddyfile(t, config)
	g.mustRevokeAll(admin, `{"realm":"root","all":true}`, `{"realm":"root","clients":0}`)
	f := newForeign(t)
	config, admin = withAdmin(t, caddyfileOf("", "oauth_protect {\n"+f.introspect("")+"}\nreverse_proxy BACKEND"))
	g = startCaddyfile(t, config)
	g.mustRevokeAll(admin, `{"realm":"root","all":true}`, `{"realm":"root","clients":0}`)
}

// What names nothing that there is, or too much, ends nothing, and the answer says what there is.
func TestRevokeAllRefuses(t *testing.T) {
	config, admin := withAdmin(t, caddyfileOf("store memory\n"+realmsAlike, bothSite))
	g := startCaddyfile(t, config)
	token := g.token("reader")
	for _, c := range []struct {
		body   string
		status int
		says   string
	}{
		{`{"realm":"gamma","all":true}`, 404, "unknown realm 'gamma' (known: beta, root)"},
		{`{"realm":"gamma","client":"reader"}`, 404, "unknown realm 'gamma' (known: beta, root)"},
		{`{"client":"nobody"}`, 404, "unknown client 'nobody' (known: batch, reader, writer)"},
		{`{"realm":"root","client":"batch"}`, 404, "unknown client 'batch' (known: reader, writer)"},
		{`{"client":"reader"}`, 400, "in several realms: name one of beta, root"},
		{`{"token":"` + token + `","client":"reader"}`, 400, "name no client and no realm beside it"},
		{`{"token":"` + token + `","all":true}`, 400, "name no client and no realm beside it"},
		{`{"token":"` + spoiled(token) + `"}`, 404, "no realm of this gateway has issued the token"},
		{`{"token":"x"}`, 404, "no realm of this gateway has issued the token"},
		{`{}`, 400, "name a client, and its realm if several have it, or a realm with all"},
		{`{"all":true}`, 400, "name a client"},
		{`{"realm":"root"}`, 400, "name a client"},
		{`{"realm":"root","client":"reader","all":true}`, 400, "name a client"},
		{`{"realm":"root","client":"reader","all":false,"x":1}`, 400, "the body must be a JSON object with realm and client"},
		{`{"realm":"root","all":"yes"}`, 400, "the body must be a JSON object"},
		{`{"realm":"root","client":"reader"}{}`, 400, "something behind the JSON object"},
		{`[]`, 400, "the body must be a JSON object"},
	} {
		if a := g.revokeAll(admin, c.body); a.StatusCode != c.status || !strings.Contains(a.Body, c.says) {
			t.Errorf("%s: %d %s, want %d %s", c.body, a.StatusCode, a.Body, c.status, c.says)
		}
	}
	for _, change := range []func(*http.Request){
		func(r *http.Request) { r.Method = "GET" }, func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") },
	} {
		r, _ := http.NewRequest("POST", "http://"+admin+"/oauth/tokens/revoke", strings.NewReader(`{"realm":"root","client":"reader"}`))
		r.Header.Set("Content-Type", "application/json")
		change(r)
		if a := g.do(r); a.StatusCode != 405 && a.StatusCode != 415 {
			t.Errorf("%s: %d", r.Method, a.StatusCode)
		}
	}
	g.wants("a token that nobody revoked", token, 200)
}

// A store that did not end the tokens is never taken for one that did. When the call is repeated
// later, they end.
func TestRevokeAllDuringAnOutage(t *testing.T) {
	for _, cache := range []string{"", "cache off\n"} {
		config, admin := withAdmin(t, caddyfileOf("store outage\n"+cache+testClients, gatewaySite))
		g := startCaddyfile(t, config)
		failures := storeFailures()
		failures["not found"] = caddyoauth.StoreErrors["not found"]
		for name, err := range failures {
			// The second time, the store has done it, and fails to say so.
			for _, method := range []string{"EndTokens", "EndTokens done"} {
				t.Run(cache+name+", "+method, func(t *testing.T) {
					token := g.token("reader")
					g.wants("before", token, 200)
					repair := breakStore(t, err, method)
					if a := g.revokeAll(admin, `{"client":"reader"}`); a.StatusCode != 503 || !strings.Contains(a.Body, "try again") {
						t.Errorf("%d %s", a.StatusCode, a.Body)
					}
					if a := g.get("/x", token); a.StatusCode != 200 && a.StatusCode != 401 {
						t.Errorf("meanwhile: %d", a.StatusCode)
					}
					repair()
					g.mustRevokeAll(admin, `{"client":"reader"}`, `{"realm":"root","client":"reader","clients":1}`)
					g.wants("after the outage", token, 401)
					g.wants("a new token", g.token("reader"), 200)
				})
			}
		}
	}
}

// A configuration that has asked the store before the tokens ended, and comes into force afterwards,
// does not bring them back; nor does one that is refused.
func TestRevokeAllDuringAReload(t *testing.T) {
	for name, refused := range map[string]bool{"the next configuration": false, "one that is refused": true} {
		t.Run(name, func(t *testing.T) {
			config, admin := withAdmin(t, caddyfileOf("store outage\n"+testClients, gatewaySite))
			g := startCaddyfile(t, config)
			token := g.token("reader")
			g.wants("before", token, 200)
			next := strings.Replace(config, "grace_period 1s", "grace_period 2s", 1)
			if refused {
				taken, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer taken.Close()
				next += "http://127.0.0.1:" + strconv.Itoa(taken.Addr().(*net.TCPAddr).Port) + " {\nbind 127.0.0.1\nrespond ok\n}\n"
			}
			asked, goOn := make(chan struct{}), make(chan struct{})
			release := sync.OnceFunc(func() { close(goOn) })
			t.Cleanup(release)
			var once sync.Once
			hold := func(_ context.Context, method string) error {
				if method == "Admit done" {
					once.Do(func() { close(asked); <-goOn })
				}
				return nil
			}
			caddyoauth.Outage.Store(&hold)
			t.Cleanup(func() { caddyoauth.Outage.Store(nil) })
			loaded := make(chan error, 1)
			go func() {
				for { // Caddy starts its apps in random order, and the other one may be refused before
					err := g.loadCaddyfile(next)
					select {
					case <-asked:
						loaded <- err
						return
					default:
					}
				}
			}()
			<-asked
			g.mustRevokeAll(admin, `{"client":"reader"}`, `{"realm":"root","client":"reader","clients":1}`)
			g.wants("at the configuration in force", token, 401)
			between := g.token("reader")
			release()
			if err := <-loaded; (err != nil) != refused {
				t.Fatalf("loading: %v", err)
			}
			g.wants("after the reload", token, 401)
			g.wants("a token that was issued during the reload", between, 200)
			g.wants("a new token", g.token("reader"), 200)
			if err := g.loadCaddyfile(config); err != nil {
				t.Fatal(err)
			}
			g.wants("after another reload", token, 401)
			g.wants("a token that was issued during the reload", between, 200)
		})
	}
}

// At the gateways that share a Redis, all tokens of the client end, too, and their new ones are good.
func TestRevokeAllInAFleet(t *testing.T) {
	for _, format := range []string{"opaque", "sealed"} {
		t.Run(format, func(t *testing.T) {
			redis := redistest.Start(t)
			options := at(redis.Addr) + keyFiles(t, "key")["key"] + "token_format " + format + "\n" + testClients
			config, admin := withAdmin(t, caddyfileOf(options, fleetSite))
			here := startCaddyfile(t, config)
			there, _ := startGatewayProcess(t, options)
			here.linked()
			var took []time.Duration
			other := there.token("writer", "read")
			for round := range 20 {
				tokens := []string{here.token("reader"), there.token("reader")}
				for _, token := range tokens {
					here.wants("before", token, 200)
					there.wants("before", token, 200)
				}
				here.mustRevokeAll(admin, `{"client":"reader"}`, `{"realm":"root","client":"reader","clients":1}`)
				ended := time.Now()
				for _, token := range tokens {
					here.wants("where they were ended", token, 401)
					took = append(took, there.refusedAfter(token, ended))
				}
				fresh := here.token("reader")
				here.wants("a new token", fresh, 200)
				// Once the other gateway has heard of it, it stays so.
				there.wants("a new token elsewhere", fresh, 200)
				there.wants("a new token of the other gateway", there.token("reader"), 200)
				for _, token := range tokens {
					there.wants(fmt.Sprint("later, in round ", round), token, 401)
				}
			}
			here.wants("another client's token", other, 200)
			there.wants("another client's token", other, 200)
			slices.Sort(took)
			t.Logf("refused elsewhere after p50 %v, at most %v", took[len(took)/2], took[len(took)-1])
			// A realm, and a client that only the other gateway has.
			redis.CLI("hset", "caddy-oauth:realm:root:clients", "elsewhere", `{"generation":3}`)
			here.mustRevokeAll(admin, `{"realm":"root","all":true}`, `{"realm":"root","clients":3}`)
			there.refusedAfter(other, time.Now())
			if state := redis.CLI("hget", "caddy-oauth:realm:root:clients", "elsewhere"); strings.Contains(state, ":3}") {
				t.Errorf("a client that only another gateway has is left out: %s", state)
			}
		})
	}
}

// A gateway that could not hear of it accepts no token that has ended, from the moment on when it knows
// that it can't hear, also while it finds out what it has missed.
func TestRevokeAllWhileAGatewayIsCutOff(t *testing.T) {
	for _, format := range []string{"opaque", "sealed"} {
		t.Run(format, func(t *testing.T) {
			redis := redistest.Start(t)
			way := redistest.StartProxy(t, redis)
			g := startGateway(t, at(way.Addr)+keyFiles(t, "key")["key"]+"token_format "+format+"\n"+testClients, fleetSite)
			g.linked()
			for round := range 3 {
				token, other := g.token("reader"), g.token("writer", "read")
				g.cacheIt(token)
				way.Cut()
				g.unlinked()
				// What another gateway does.
				redis.CLI("hset", "caddy-oauth:realm:root:clients", "reader", fmt.Sprintf(`{"generation":%d}`, 1_000_000*(round+1)))
				way.Heal()
				way.Slow(150) // so that it takes long to find out
				dead := func(when string) {
					t.Helper()
					waitUntil(t, "the token is dead", func() bool {
						a := g.get("/x", token)
						if a.StatusCode != 401 && a.StatusCode != 503 {
							t.Fatalf("round %d, %s: a token that has ended gets %d", round, when, a.StatusCode)
						}
						return a.StatusCode == 401
					})
				}
				dead("in the meantime")
				way.Heal()
				g.linked()
				dead("later")
				waitUntil(t, "another client's token is good", func() bool { return g.get("/x", other).StatusCode == 200 })
				waitUntil(t, "new tokens are good", func() bool { return g.get("/x", g.token("reader")).StatusCode == 200 })
			}
		})
	}
}

// A gateway that hears of it, but can't find out what it is, accepts the tokens no longer than for the
// time in which a revocation counts everywhere.
func TestRevokeAllThatCannotBeActedOn(t *testing.T) {
	for _, format := range []string{"opaque", "sealed"} {
		t.Run(format, func(t *testing.T) {
			redis := redistest.Start(t)
			g := startGateway(t, at(redis.Addr)+keyFiles(t, "key")["key"]+"token_format "+format+"\n"+testClients, fleetSite)
			g.linked()
			token, other := g.token("reader"), g.token("writer", "read")
			g.cacheIt(token)
			redis.CLI("acl", "setuser", "default", "-hgetall")
			redis.CLI("hset", "caddy-oauth:realm:root:clients", "reader", `{"generation":1000000}`)
			g.refusedAfter(token, time.Now())
			g.wants("later", token, 401)
			g.wants("another client's token", other, 200)
			redis.CLI("acl", "setuser", "default", "-hget")
			g.wants("when nothing can be found out", other, 503)
			redis.CLI("acl", "setuser", "default", "+hget", "+hgetall")
			waitUntil(t, "the gateway recovers", func() bool { return g.get("/x", other).StatusCode == 200 })
			g.wants("the token that has ended", token, 401)
			g.cacheIt(other)
		})
	}
}

// Without Redis the answer is 503, and the command says that it could not.
func TestRevokeAllWithoutRedis(t *testing.T) {
	redis := redistest.Start(t)
	config, admin := withAdmin(t, caddyfileOf(at(redis.Addr, "timeout 500ms", "dial_timeout 200ms")+testClients, fleetSite))
	g := startCaddyfile(t, config)
	g.linked()
	redis.Stop()
	g.unlinked()
	if a := g.revokeAll(admin, `{"client":"reader"}`); a.StatusCode != 503 {
		t.Errorf("%d %s", a.StatusCode, a.Body)
	}
	stdout, stderr, err := caddyCLI(t, "", "token", "revoke", "--client", "reader", "--address", admin)
	if err == nil || stdout != "" || !strings.Contains(err.Error(), "503") {
		t.Errorf("the command: %v, %q, %q", err, stdout, stderr)
	}
}

// The command asks the running gateway, and says what has ended. The event says who it was.
func TestTokenRevokeCommand(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	config, admin := withAdmin(t, caddyfileOf("store memory\n"+realmsAlike, bothSite))
	g := startCaddyfile(t, logTo(file, config))
	logged := func() string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	token := g.token("reader")
	for _, c := range []struct {
		args   []string
		stdout string
		err    string
	}{
		{[]string{"--client", "reader", "--realm", "root"}, "All tokens of client \"reader\" of realm \"root\" that were issued until now are revoked.\n", ""},
		{[]string{"--realm", "beta", "--all"}, "All tokens of all 3 clients of realm \"beta\" that were issued until now are revoked.\n", ""},
		{[]string{"--client", "batch", "--json"}, `{"realm":"beta","client":"batch","clients":1}` + "\n", ""},
		{[]string{"--client", "nobody"}, "", "known: batch, reader, writer"},
		{[]string{"--client", "reader"}, "", "in several realms"},
		{nil, "", "name a client"},
		{[]string{"--token", "canary"}, "", "history of your shell"},
		{[]string{"--all"}, "", "name a client"},
		{[]string{"--client", "reader", "--all", "--realm", "root"}, "", "name a client"},
		{[]string{"canary"}, "", "history of your shell"},
	} {
		stdout, stderr, err := caddyCLI(t, "", append([]string{"token", "revoke", "--address", admin}, c.args...)...)
		if stdout != c.stdout || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: %q, %q, %v", c.args, stdout, stderr, err)
		}
		if err != nil && strings.Contains(err.Error()+stderr, "canary") {
			t.Errorf("it repeats its argument: %v", err)
		}
	}
	g.wants("the token", token, 401)
	var events []string
	for line := range strings.Lines(logged()) {
		var e struct {
			Event, Realm string
			ClientID     string `json:"client_id"`
			RemoteIP     string `json:"remote_ip"`
			Clients      int
		}
		if json.Unmarshal([]byte(line), &e) == nil && e.Event == "tokens_revoked_all" {
			events = append(events, fmt.Sprint(e.Realm, " ", e.ClientID, " ", e.Clients, " ", e.RemoteIP))
		}
	}
	if want := []string{"root reader 1 127.0.0.1", "beta  3 127.0.0.1", "beta batch 1 127.0.0.1"}; !slices.Equal(events, want) {
		t.Errorf("the events are %q, want %q", events, want)
	}
}

// An operator ends one token, whichever client has it, and no other.
func TestRevokeOneToken(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "log")
			config, admin := withAdmin(t, caddyfileOf(v.options(t)+realmsAlike, bothSite))
			g := startCaddyfile(t, logTo(file, config))
			token, other, elsewhere := g.token("reader", "read"), g.token("reader", "read"), g.tokenOfRealm("beta", "reader")
			g.wants("a token", token, 200)
			stdout, stderr, err := caddyCLI(t, elsewhere+"\n", "token", "revoke", "--token", "-", "--address", admin, "--json")
			id := introspect.IDOf(elsewhere).String()
			if want := `{"realm":"beta","client":"reader","token_id":"` + id + `"}` + "\n"; err != nil || stdout != want {
				t.Errorf("the command: %q, %q, %v; want %q", stdout, stderr, err, want)
			}
			if a := g.get("/beta/x", elsewhere); a.StatusCode != 401 {
				t.Errorf("the token of the other realm: %d, want 401", a.StatusCode)
			}
			for _, want := range []string{`{"realm":"root","client":"reader","token_id":"` + introspect.IDOf(token).String() + `"}`, `{"realm":"root"}`} {
				if a := g.revokeAll(admin, `{"token":"`+token+`"}`); a.StatusCode != 200 || strings.TrimSpace(a.Body) != want {
					t.Errorf("revoking: %d %s, want %s", a.StatusCode, a.Body, want)
				}
				g.wants("the token that was revoked", token, 401)
			}
			g.wants("the client's other token", other, 200)
			logged, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			events := 0
			for line := range strings.Lines(string(logged)) {
				if strings.Contains(line, `"event":"token_revoked"`) && strings.Contains(line, id) && strings.Contains(line, `"remote_ip":"127.0.0.1"`) {
					events++
				}
			}
			if events != 1 || strings.Contains(string(logged), token) || strings.Contains(string(logged), elsewhere) {
				t.Errorf("the log has %d events of the revocation, want 1, and no token:\n%s", events, logged)
			}
		})
	}
}

// Whatever happens at once, reloads included, a request that begins after the answer is not let in
// with a token from before the call, and one that is issued after the answer is good.
func TestRevokeAllInAStorm(t *testing.T) {
	calls := 15
	if testing.Short() {
		calls = 5
	}
	for name, store := range stores(t) {
		for _, format := range []string{"opaque", "sealed"} {
			t.Run(name+", "+format, func(t *testing.T) {
				options := store + keyFiles(t, "key")["key"] + "token_format " + format + "\n" + testClients
				config, admin := withAdmin(t, caddyfileOf(options, gatewaySite))
				config = strings.Replace(config, ":0 {", strings.TrimPrefix(porttest.Address(t), "127.0.0.1")+" {", 1)
				g := startCaddyfile(t, config)
				// Calls are made one after the other, and numbered: the last that has begun, and the last
				// that was answered with success.
				var begun, answered atomic.Int64
				type held struct {
					token                 string
					answeredBefore, begun int64 // when its request began, and when it was answered
				}
				var current atomic.Pointer[held]
				fetch := func() {
					h := &held{answeredBefore: answered.Load()}
					a, err := g.try(g.posting("/oauth2/access_token", "reader", testSecret, url.Values{"grant_type": {"client_credentials"}}))
					if err != nil || g.late(a) {
						return // a reload closes connections, and on a busy machine the store may take too long
					}
					h.begun = begun.Load()
					var body struct {
						Token string `json:"access_token"`
					}
					if a.StatusCode != 200 || json.Unmarshal([]byte(a.Body), &body) != nil {
						t.Errorf("fetching: %d %s", a.StatusCode, a.Body)
						return
					}
					h.token = body.Token
					current.Store(h)
				}
				var passed, refused atomic.Int64
				check := func() {
					h := current.Load()
					r := g.request("GET", "/x", "", "Authorization", "Bearer "+h.token)
					answeredBefore := answered.Load()
					a, err := g.try(r)
					if err != nil || g.late(a) {
						return
					}
					switch a.StatusCode {
					case 200:
						passed.Add(1)
						if answeredBefore > h.begun {
							t.Errorf("a token that was issued before call %d began passes after call %d was answered", h.begun+1, answeredBefore)
						}
					case 401:
						refused.Add(1)
						if now := begun.Load(); now == h.answeredBefore {
							t.Errorf("a token that was asked for after call %d was answered is refused before another has begun", now)
						}
					default:
						t.Errorf("checking: %d %s", a.StatusCode, a.Body)
					}
				}
				current.Store(&held{token: g.token("reader")})
				ctx, cancel := context.WithCancel(t.Context())
				var all sync.WaitGroup
				goOn := func(do func()) {
					all.Go(func() {
						for ctx.Err() == nil && !t.Failed() {
							do()
						}
					})
				}
				all.Go(func() {
					defer cancel()
					for range calls {
						call := begun.Add(1)
						a, err := g.tryRevokeAll(admin, `{"client":"reader"}`)
						switch {
						case err != nil || a.StatusCode == 503 || a.StatusCode == 404:
							continue // a reload replaces the admin endpoint, too
						case a.StatusCode != 200:
							t.Errorf("%d %s", a.StatusCode, a.Body)
						}
						answered.Store(call)
						for range 5 {
							fetch()
							check()
						}
					}
				})
				for range 2 {
					goOn(fetch)
					goOn(check)
					goOn(check)
				}
				n, reloaded := 0, *g // loading sets the URL, which others read
				goOn(func() {
					n++
					next := strings.Replace(config, "grace_period 1s", fmt.Sprintf("grace_period %dms", 1000+n), 1)
					if err := reloaded.loadCaddyfile(next); err != nil {
						t.Errorf("reloading: %v", err)
					}
				})
				all.Wait()
				if passed.Load() == 0 || refused.Load() == 0 {
					t.Errorf("%d requests passed and %d were refused: the test tests nothing", passed.Load(), refused.Load())
				}
				t.Logf("%d calls, %d reloads, %d requests passed, %d were refused", begun.Load(), n, passed.Load(), refused.Load())
			})
		}
	}
}

// All tokens of a realm are also those of a client that another gateway has added a moment ago.
func TestRevokeAllReachesClientsOfOthers(t *testing.T) {
	for _, store := range []string{"memory", "bbolt " + filepath.Join(t.TempDir(), "tokens.db")} {
		config, address := withAdmin(t, caddyfileOf("store "+store+"\n"+managedOptions, managedSite))
		g := startCaddyfile(t, config)
		generation, err := caddyoauth.AddElsewhere("root", "new")
		if err != nil {
			t.Fatal(err)
		}
		g.mustRevokeAll(address, `{"realm":"root","all":true}`, `{"realm":"root","clients":3}`)
		if now, err := generation(); err != nil || now <= 1 {
			t.Errorf("%s: the generation of its tokens is %d, %v", store, now, err)
		}
	}
}
