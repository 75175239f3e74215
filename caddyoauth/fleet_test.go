package caddyoauth_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// Tests of several gateways that share a Redis. One runs in this process, the others in
// processes of their own.

// fleetSite is a site whose metrics and endpoints stay reachable when the protected path is not.
const fleetSite = "metrics /metrics\noauth_server\noauth_protect /x\nreverse_proxy BACKEND"

// at returns the lines for a store redis at an address. Unless the options have a timeout, the gateway waits for
// as long as it can: on a busy machine Redis may stand still for the second that it would wait otherwise.
func at(address string, options ...string) string {
	if !slices.ContainsFunc(options, func(o string) bool { return strings.Contains(o, "timeout") }) {
		options = append(options, "timeout 2s", "dial_timeout 2s")
	}
	return "store redis " + address + " {\n" + strings.Join(options, "\n") + "\n}\n"
}

// startLogged is startGateway with everything that is logged also in a file, which logged reads.
func startLogged(t testing.TB, oauth, site string) (g *gateway, logged func() string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "log")
	g = startCaddyfile(t, logTo(file, caddyfileOf(oauth, site)))
	return g, func() string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
}

func logTo(file, caddyfile string) string {
	return strings.Replace(caddyfile, "{\n", "{\nlog {\noutput file "+file+"\nlevel DEBUG\n}\n", 1)
}

const (
	linkUp   = "caddy_oauth_store_link_up"
	lostLine = "no longer receiving revocations"
	backLine = `"receiving revocations`
)

// wantLosses waits until a log says that the link is up, and checks that it tells of each loss once: of a
// loss and of a recovery in turn, the first of them a loss if downAtFirst. Two things may add losses. A
// gateway has two connections to a Redis, and may notice that one of them ended, and ask the other, before
// that one ends as well. And if the machine stands still for a second, that is a silent Redis to the
// gateway, and once more when the connection that was given up for it ends.
func wantLosses(t testing.TB, logged func() string, lost int, downAtFirst bool) {
	t.Helper()
	waitUntil(t, "the log says that the link is up", func() bool {
		log := logged()
		return strings.LastIndex(log, backLine) > strings.LastIndex(log, lostLine)
	})
	log := logged()
	losses, silences, up := 0, 0, downAtFirst // the opposite of what comes first
	for line := range strings.Lines(log) {
		back := strings.Contains(line, backLine)
		if !back && !strings.Contains(line, lostLine) {
			continue
		}
		if back == up {
			t.Errorf("the log does not say in turn that the link is up and that it is lost:\n%s", log)
			return
		}
		up = back
		if !back {
			losses++
			if strings.Contains(line, context.DeadlineExceeded.Error()) {
				silences++
			}
		}
	}
	if losses < lost || losses > 2*(lost+silences) {
		t.Errorf("the log has %d losses, %d of them by silence, want %d:\n%s", losses, silences, lost, log)
	}
}

// linked waits until the gateway hears of revocations by others.
func (g *gateway) linked() {
	g.t.Helper()
	waitUntil(g.t, "the link to Redis is up", func() bool { return g.metric(linkUp) == 1 })
}

// unlinked waits until the gateway knows that it hears of none, and returns when that was seen.
func (g *gateway) unlinked() time.Time {
	g.t.Helper()
	waitUntil(g.t, "the link to Redis is known to be lost", func() bool { return g.metric(linkUp) == 0 })
	return time.Now()
}

// cacheIt uses a token until the cache answers for it. The site must have metrics.
func (g *gateway) cacheIt(token string) {
	g.t.Helper()
	waitUntil(g.t, "a token is in the cache", func() bool {
		before := g.metric("caddy_oauth_cache_hits_total")
		if a := g.get("/x", token); a.StatusCode != 200 {
			g.t.Fatalf("a good token gets %d", a.StatusCode)
		}
		return g.metric("caddy_oauth_cache_hits_total") > before
	})
}

// fleetBound is the bound that docs/operations.md gives, and lateness how much later a test on a
// busy machine may look.
const (
	fleetBound = 2 * time.Second
	lateness   = 8 * time.Second
)

// refusedAfter polls until a token is refused, and returns how long it took since begin. In between, the
// gateway may be unable to tell, if Redis takes too long on a busy machine.
func (g *gateway) refusedAfter(token string, begin time.Time) time.Duration {
	g.t.Helper()
	for {
		a := g.get("/x", token)
		took := time.Since(begin)
		switch {
		case a.StatusCode == 401:
			return took
		case a.StatusCode != 200 && a.StatusCode != 503:
			g.t.Fatalf("a token that was revoked elsewhere gets %d", a.StatusCode)
		case took > fleetBound+lateness:
			g.t.Fatalf("a token that was revoked elsewhere still gets %d after %v", a.StatusCode, took)
		}
	}
}

// A token that one gateway issues is good at all of them, and one that it revokes is soon refused
// by all.
func TestFleet(t *testing.T) {
	redis := redistest.Start(t)
	here := startGateway(t, at(redis.Addr)+testClients, fleetSite)
	there, _ := startGatewayProcess(t, at(redis.Addr)+testClients)
	here.linked()

	// The tokens are warm in both, and each gateway revokes half of them. Introspection reads the
	// same cache.
	var took []time.Duration
	invalidations := here.metric("caddy_oauth_store_invalidations_total")
	for round := range 40 {
		from, to := here, there
		if round%2 == 0 {
			from, to = there, here
		}
		token := from.token("reader")
		for range 4 {
			if a := to.get("/x", token); a.StatusCode != 200 {
				t.Fatalf("round %d: a token issued elsewhere gets %d", round, a.StatusCode)
			}
		}
		if active := to.introspect("reader", token).json(t)["active"]; active != true {
			t.Fatalf("round %d: introspection of a token issued elsewhere: active is %v", round, active)
		}
		if a := from.revoke("reader", token); a.StatusCode != 200 {
			t.Fatalf("round %d: revoking: %d", round, a.StatusCode)
		}
		acknowledged := time.Now()
		if a := from.get("/x", token); a.StatusCode != 401 {
			t.Errorf("round %d: where it was revoked, the token gets %d", round, a.StatusCode)
		}
		took = append(took, to.refusedAfter(token, acknowledged))
		if a := to.introspect("reader", token); a.Body != `{"active":false}` {
			t.Errorf("round %d: introspection where it was not revoked: %s", round, a.Body)
		}
	}
	slices.Sort(took)
	t.Logf("refused elsewhere after p50 %v, p99 %v, at most %v", took[len(took)/2], took[len(took)*99/100], took[len(took)-1])
	// A token that is not in the cache is refused before it is heard of.
	waitUntil(t, "an invalidation was counted for each of 20 revocations elsewhere", func() bool {
		return here.metric("caddy_oauth_store_invalidations_total")-invalidations >= 20
	})
}

// Two gateways that start with an empty Redis at the same time agree on the key of the tokens.
func TestFleetStartsTogether(t *testing.T) {
	redis := redistest.Start(t)
	for round := range 3 {
		redis.CLI("flushall")
		var both [2]*gateway
		var kill [2]func()
		var started sync.WaitGroup
		for i := range both {
			started.Go(func() { both[i], kill[i] = startGatewayProcess(t, at(redis.Addr)+testClients) })
		}
		started.Wait()
		for i, from := range both {
			for range 3 {
				token := from.token("reader")
				for _, to := range both {
					if a := to.get("/x", token); a.StatusCode != 200 {
						t.Errorf("round %d: a token of gateway %d gets %d", round, i, a.StatusCode)
					}
				}
			}
		}
		kill[0]()
		kill[1]()
	}
}

// A client that one gateway's configuration disables loses its tokens at all gateways, for good.
func TestFleetDisablesAClient(t *testing.T) {
	redis := redistest.Start(t)
	store := at(redis.Addr)
	here := startGateway(t, store+testClients, fleetSite)
	there, _ := startGatewayProcess(t, store+testClients)
	here.linked()
	old, others := here.token("reader"), here.token("writer", "write")
	for range 4 {
		if a := there.get("/x", old); a.StatusCode != 200 {
			t.Fatalf("before: %d", a.StatusCode)
		}
	}
	disabled := writerIs + strings.Replace(readerIs, "{\n", "{\ndisabled\n", 1)
	if err := here.load(store+disabled, fleetSite); err != nil {
		t.Fatal(err)
	}
	there.refusedAfter(old, time.Now())
	if err := here.load(store+testClients, fleetSite); err != nil {
		t.Fatal(err)
	}
	for name, g := range map[string]*gateway{"here": here, "there": there} {
		if a := g.get("/x", old); a.StatusCode != 401 {
			t.Errorf("%s, with the client back: the old token gets %d", name, a.StatusCode)
		}
		if a := g.get("/x", others); a.StatusCode != 200 {
			t.Errorf("%s: another client's token gets %d", name, a.StatusCode)
		}
	}
	// The gateway that never had the client disabled issues tokens that are good at both.
	waitUntil(t, "a new token of the client is good at both", func() bool {
		token := there.token("reader")
		return there.get("/x", token).StatusCode == 200 && here.get("/x", token).StatusCode == 200
	})
}

// A gateway that has lost its link does not answer from its cache: once it has seen the cut, a
// token that is revoked elsewhere is never accepted again.
func TestFleetLostLink(t *testing.T) {
	redis := redistest.Start(t)
	way := redistest.StartProxy(t, redis)
	here, logged := startLogged(t, at(way.Addr)+testClients, fleetSite)
	there, _ := startGatewayProcess(t, at(redis.Addr)+testClients)
	here.linked()
	flushes := here.metric("caddy_oauth_cache_flushes_total")
	const rounds = 3
	for round := range rounds {
		token := there.token("reader")
		here.cacheIt(token)
		way.Cut()
		here.unlinked()
		if a := there.revoke("reader", token); a.StatusCode != 200 {
			t.Fatalf("round %d: revoking: %d", round, a.StatusCode)
		}
		seen := func(when string) {
			t.Helper()
			if a := here.get("/x", token); a.StatusCode != 401 && a.StatusCode != 503 {
				t.Fatalf("round %d, %s: %d", round, when, a.StatusCode)
			}
		}
		seen("cut")
		way.Heal()
		// At every moment of the recovery.
		for here.metric(linkUp) == 0 {
			seen("healing")
		}
		waitUntil(t, "the gateway answers 401", func() bool {
			seen("healed")
			return here.get("/x", token).StatusCode == 401
		})
	}
	if n := here.metric("caddy_oauth_cache_flushes_total") - flushes; n < rounds {
		t.Errorf("%v flushes were counted for %d cuts", n, rounds)
	}
	wantLosses(t, logged, rounds, false)
}

// A link that is silent, not cut, is detected by a PING, within 3 seconds.
func TestFleetBlackHole(t *testing.T) {
	redis := redistest.Start(t)
	way := redistest.StartProxy(t, redis)
	here, logged := startLogged(t, at(way.Addr)+testClients, fleetSite)
	there, _ := startGatewayProcess(t, at(redis.Addr)+testClients)
	here.linked()
	token := there.token("reader")
	here.cacheIt(token)
	way.Swallow()
	if a := there.revoke("reader", token); a.StatusCode != 200 {
		t.Fatalf("revoking: %d", a.StatusCode)
	}
	begin := time.Now()
	saw := here.unlinked().Sub(begin)
	t.Logf("the silence was detected after %v", saw)
	if saw > 3*time.Second+lateness {
		t.Errorf("the silence was detected after %v", saw)
	}
	if a := here.get("/x", token); a.StatusCode != 503 || a.Header.Get("Retry-After") == "" {
		t.Errorf("during the silence: %d, Retry-After %q", a.StatusCode, a.Header.Get("Retry-After"))
	}
	way.Heal()
	here.linked()
	if a := here.get("/x", token); a.StatusCode != 401 {
		t.Errorf("after the silence: %d", a.StatusCode)
	}
	if a := here.get("/x", here.token("reader")); a.StatusCode != 200 {
		t.Errorf("after the silence, a new token gets %d", a.StatusCode)
	}
	here.linked()
	wantLosses(t, logged, 1, false)
}

// wantOutage checks that a gateway whose store is unreachable says so everywhere, and nothing
// else.
func wantOutage(t *testing.T, g *gateway, tokens map[string]string) {
	t.Helper()
	wantE(t, g.fetch("reader"), 503, "temporarily_unavailable")
	for kind, token := range tokens {
		wantE(t, g.introspect("reader", token), 503, "temporarily_unavailable", token)
		wantE(t, g.revoke("reader", token), 503, "temporarily_unavailable", token)
		if a := g.get("/x", token); a.StatusCode != 503 || a.Header.Get("Retry-After") == "" || a.Header.Get("WWW-Authenticate") != "" {
			t.Errorf("a %s token gets %d, Retry-After %q", kind, a.StatusCode, a.Header.Get("Retry-After"))
		}
	}
}

// Without Redis, nobody is told that a token is valid or that it is not. Once an empty Redis is
// there, everything works again without a restart, and the old tokens are gone.
func TestFleetOutage(t *testing.T) {
	redis := redistest.Start(t)
	here, logged := startLogged(t, at(redis.Addr)+testClients, fleetSite)
	there, _ := startGatewayProcess(t, at(redis.Addr)+testClients)
	here.linked()
	tokens := map[string]string{"cached": here.token("reader"), "uncached": here.token("reader"), "foreign": there.token("reader")}
	here.cacheIt(tokens["cached"])
	for range 4 {
		there.get("/x", tokens["cached"])
	}
	redis.Stop()
	here.unlinked()
	waitUntil(t, "the other gateway has noticed", func() bool {
		a := there.get("/x", tokens["cached"])
		if a.StatusCode != 200 && a.StatusCode != 503 {
			t.Fatalf("a cached token gets %d", a.StatusCode)
		}
		return a.StatusCode == 503
	})
	for range 3 {
		wantOutage(t, here, tokens)
		wantOutage(t, there, tokens)
	}
	// A caller with wrong credentials does not learn of the outage, and what can't be a token needs
	// no store.
	wantE401(t, here.post("/oauth2/token", "reader", "wrong", map[string][]string{"grant_type": {"client_credentials"}}), "root")
	if a := here.get("/x", "garbage"); a.StatusCode != 401 {
		t.Errorf("garbage gets %d", a.StatusCode)
	}

	redis.Restart()
	here.linked()
	for name, g := range map[string]*gateway{"here": here, "there": there} {
		waitUntil(t, "the gateway has recovered", func() bool { return g.fetch("reader").StatusCode == 200 })
		for kind, token := range tokens {
			if a := g.get("/x", token); a.StatusCode != 401 {
				t.Errorf("%s: a lost token, %s, gets %d", name, kind, a.StatusCode)
			}
		}
	}
	for _, from := range []*gateway{here, there} {
		token := from.token("reader")
		for _, to := range []*gateway{here, there} {
			waitUntil(t, "new tokens are good at both", func() bool { return to.get("/x", token).StatusCode == 200 })
		}
	}
	wantLosses(t, logged, 1, false)
}

// A Redis that takes 30 seconds to answer is an outage after two, and callers don't pile up.
func TestFleetSlowStore(t *testing.T) {
	redis := redistest.Start(t)
	way := redistest.StartProxy(t, redis)
	here := startGateway(t, at(way.Addr)+"cache off\n"+testClients, fleetSite)
	here.linked()
	token := here.token("reader")
	if a := here.get("/x", token); a.StatusCode != 200 {
		t.Fatalf("before: %d", a.StatusCode)
	}
	before := runtime.NumGoroutine()
	way.Slow(30_000)
	const callers = 500
	statuses := make(map[string]int)
	var longest time.Duration
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range callers {
		r := here.request("GET", "/x", "", "Authorization", "Bearer "+token)
		if i%2 == 0 {
			r = here.request("POST", "/oauth2/access_token", "grant_type=client_credentials&client_id=reader&client_secret="+testSecret,
				"Content-Type", "application/x-www-form-urlencoded")
		}
		all.Go(func() {
			begin := time.Now()
			res, err := here.Client.Do(r)
			if err != nil {
				t.Error(err)
				return
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			mu.Lock()
			defer mu.Unlock()
			statuses[fmt.Sprintf("%s %d", r.Method, res.StatusCode)]++
			longest = max(longest, time.Since(begin))
		})
	}
	all.Wait()
	t.Logf("%v, the longest took %v", statuses, longest)
	if statuses["GET 503"] != callers/2 || statuses["POST 503"] != callers/2 {
		t.Errorf("%v, want nothing but 503", statuses)
	}
	if longest > 5*time.Second+lateness {
		t.Errorf("a request took %v", longest)
	}
	way.Heal()
	here.linked()
	waitUntil(t, "the goroutines of the callers are gone", func() bool {
		here.Client.CloseIdleConnections()
		here.Backend.CloseClientConnections()
		return runtime.NumGoroutine() <= before+20
	})
	waitUntil(t, "the token passes again", func() bool { return here.get("/x", token).StatusCode == 200 })
}

// A gateway starts without Redis, answers 503 and recovers. Validating needs no Redis, either.
func TestFleetStartsWithoutRedis(t *testing.T) {
	redis := redistest.Start(t)
	redis.Stop()
	config, err := adapt(t, formatted(caddyfileOf(at(redis.Addr)+testClients, "oauth_server\noauth_protect\nrespond ok")))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate(config); err != nil {
		t.Errorf("validating without Redis: %v", err)
	}
	here, logged := startLogged(t, at(redis.Addr)+testClients, fleetSite)
	for range 3 {
		wantE(t, here.fetch("reader"), 503, "temporarily_unavailable")
		// The key of the tokens is not known yet, so garbage can't be told from a token.
		if a := here.get("/x", "garbage"); a.StatusCode != 503 || a.Header.Get("Retry-After") == "" {
			t.Errorf("a token before the first contact gets %d", a.StatusCode)
		}
	}
	redis.Restart()
	here.linked()
	waitUntil(t, "the gateway has recovered", func() bool { return here.fetch("reader").StatusCode == 200 })
	if a := here.get("/x", here.token("reader")); a.StatusCode != 200 {
		t.Errorf("after the first contact, a token gets %d", a.StatusCode)
	}
	log := logged()
	if strings.Count(log, "answering 503 until it can") != 1 {
		t.Errorf("the log does not report the outage exactly once:\n%s", log)
	}
	wantLosses(t, logged, 1, true)
}

// A wrong password will not become right by waiting, so the configuration is refused, with the
// reason. No password is in a log or in what the admin endpoint shows.
func TestFleetPasswords(t *testing.T) {
	const right, wrong = "canary-right-hA7x", "canary-wrong-k2Qz"
	t.Setenv("REDIS_TEST_RIGHT", right)
	t.Setenv("REDIS_TEST_WRONG", wrong)
	redis := redistest.Start(t, "--requirepass", right)
	options := func(password string) string {
		return at(redis.Addr, "password {env."+password+"}") + testClients
	}

	admin, logFile := porttest.Address(t), filepath.Join(t.TempDir(), "log")
	visible := func(oauth string) string {
		return logTo(logFile, strings.Replace(caddyfileOf(oauth, fleetSite), "admin off", "admin "+admin, 1))
	}
	here := startCaddyfile(t, visible(options("REDIS_TEST_RIGHT")))
	here.linked()
	token := here.token("reader")

	for name, oauth := range map[string]string{
		"wrong":       options("REDIS_TEST_WRONG"),
		"none":        at(redis.Addr) + testClients,
		"of nobody":   at(redis.Addr, "username nobody", "password {env.REDIS_TEST_RIGHT}") + testClients,
		"in no group": at(redis.Addr, "db 99", "password {env.REDIS_TEST_RIGHT}") + testClients,
	} {
		err := here.loadCaddyfile(visible(oauth))
		if err == nil {
			t.Errorf("password %s: accepted", name)
			continue
		}
		said := map[string]string{"wrong": "WRONGPASS", "none": "NOAUTH", "of nobody": "WRONGPASS", "in no group": "DB index"}[name]
		if !strings.Contains(err.Error(), said) || strings.Contains(err.Error(), right) || strings.Contains(err.Error(), wrong) {
			t.Errorf("password %s: %v", name, err)
		}
		if a := here.get("/x", token); a.StatusCode != 200 {
			t.Errorf("password %s: the previous configuration answers %d", name, a.StatusCode)
		}
	}

	if err := here.loadCaddyfile(visible(options("REDIS_TEST_RIGHT"))); err != nil {
		t.Fatal(err)
	}
	redis.Stop() // passwords tend to leak in errors
	here.unlinked()
	here.fetch("reader")
	redis.Restart()
	here.linked()
	res, err := http.Get("http://" + admin + "/config/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	dump, err := io.ReadAll(res.Body)
	if err != nil || !bytes.Contains(dump, []byte("{env.REDIS_TEST_RIGHT}")) {
		t.Fatalf("GET /config/: %v: %s", err, dump)
	}
	log, err := os.ReadFile(logFile)
	if err != nil || !bytes.Contains(log, []byte(lostLine)) {
		t.Fatalf("the log: %v: %s", err, log)
	}
	for name, text := range map[string][]byte{"the log": log, "/config/": dump, "/metrics": []byte(here.get("/metrics", "").Body)} {
		if bytes.Contains(text, []byte(right)) || bytes.Contains(text, []byte(wrong)) {
			t.Errorf("%s holds a password", name)
		}
	}
}

// A reload without Redis is accepted. Its changes to clients take effect once Redis is back.
func TestFleetReloadsWithoutRedis(t *testing.T) {
	redis := redistest.Start(t)
	way := redistest.StartProxy(t, redis)
	here := startGateway(t, at(way.Addr)+testClients, fleetSite)
	here.linked()
	old := here.token("writer", "write")
	way.Cut()
	here.unlinked()
	if err := here.load(at(way.Addr)+readerIs, fleetSite); err != nil {
		t.Fatalf("a reload without Redis: %v", err)
	}
	wantE(t, here.fetch("reader"), 503, "temporarily_unavailable")
	way.Heal()
	here.linked()
	waitUntil(t, "Redis knows that the client is gone", func() bool {
		return strings.Contains(redis.CLI("hget", "caddy-oauth:realm:root:clients", "writer"), "retired")
	})
	if err := here.load(at(way.Addr)+testClients, fleetSite); err != nil {
		t.Fatal(err)
	}
	if a := here.get("/x", old); a.StatusCode != 401 {
		t.Errorf("a token of a client that was removed and put back: %d", a.StatusCode)
	}
	if a := here.get("/x", here.token("writer", "write")); a.StatusCode != 200 {
		t.Errorf("a new one: %d", a.StatusCode)
	}
}

// A configuration that connects in another way gets its own connection, and the old one is
// closed.
func TestFleetReloadsToAnotherConnection(t *testing.T) {
	redis := redistest.Start(t)
	here := startGateway(t, at(redis.Addr)+testClients, fleetSite)
	here.linked()
	token := here.token("reader")
	here.cacheIt(token)
	connections := func() int {
		return strings.Count(redis.CLI("client", "list"), "name=caddy-oauth")
	}
	for _, options := range []string{"timeout 2s", "dial_timeout 2s", "timeout 1500ms"} {
		if err := here.load(at(redis.Addr, options)+testClients, fleetSite); err != nil {
			t.Fatal(err)
		}
		here.linked()
		if a := here.get("/x", token); a.StatusCode != 200 {
			t.Errorf("%s: the token from before gets %d", options, a.StatusCode)
		}
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "all connections to Redis are closed", func() bool { return connections() == 0 })
}
