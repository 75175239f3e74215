package store

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
	"github.com/caddyoauth/gateway/introspect"
)

// heard is what a Redis store has reported.
type heard struct {
	mu       sync.Mutex
	revoked  map[introspect.TokenID]string // token → realm
	flushes  int
	story    []string // "lost" and "regained", in order
	silences int      // losses because Redis did not answer in time
	changes  int
	evicting []string
	mayEvict int
	ended    []string // realms
}

func (h *heard) did(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

// redisAt opens a store, and records what it reports. Calls have more time than most need, since a busy machine
// may stand still for a second or two.
func redisAt(t testing.TB, change func(*RedisConfig), addresses ...string) (*Redis, *heard) {
	t.Helper()
	h := &heard{revoked: make(map[introspect.TokenID]string)}
	cfg := RedisConfig{
		Addresses: addresses, Prefix: "caddy-oauth:", DialTimeout: time.Second, Timeout: 5 * time.Second,
		Revoked: func(realm string, id introspect.TokenID) { h.did(func() { h.revoked[id] = realm }) },
		Flush:   func() { h.did(func() { h.flushes++ }) },
		Lost: func(err error) {
			h.did(func() {
				h.story = append(h.story, "lost")
				if errors.Is(err, context.DeadlineExceeded) {
					h.silences++
				}
			})
		},
		Regained: func() { h.did(func() { h.story = append(h.story, "regained") }) },
		Changed:  func() { h.did(func() { h.changes++ }) },
		Evicting: func(_, policy string) { h.did(func() { h.evicting = append(h.evicting, policy) }) },
		MayEvict: func(string) { h.did(func() { h.mayEvict++ }) },
		Ended:    func(realm string) { h.did(func() { h.ended = append(h.ended, realm) }) },
	}
	if change != nil {
		change(&cfg)
	}
	r := OpenRedis(cfg)
	t.Cleanup(func() { r.Close() })
	return r, h
}

// hasty makes calls end after two seconds.
func hasty(cfg *RedisConfig) { cfg.Timeout = 2 * time.Second }

// eventually waits until is returns true, for what depends on other processes.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 15 seconds: %s", what)
		}
	}
}

// One server serves the whole suite; each test has a prefix of its own.
func TestRedisStore(t *testing.T) {
	server := redistest.Start(t)
	n := 0
	testStore(t, func(t testing.TB) oauth.TokenStore {
		n++
		r, _ := redisAt(t, func(cfg *RedisConfig) { cfg.Prefix = fmt.Sprintf("test %d:", n) }, server.Addr)
		return r
	})
}

func TestRedisClusterStore(t *testing.T) {
	servers := redistest.StartCluster(t)
	n := 0
	testStore(t, func(t testing.TB) oauth.TokenStore {
		n++
		r, _ := redisAt(t, func(cfg *RedisConfig) {
			cfg.Cluster, cfg.Prefix = true, fmt.Sprintf("test %d:", n)
		}, servers[0].Addr, servers[1].Addr)
		return r
	})
	for _, s := range servers { // the keys are spread over all of them
		if s.CLI("dbsize") == "0" {
			t.Errorf("the node %s has no key", s.Addr)
		}
	}
}

// linked waits until the stores hear of what others do.
func linked(t testing.TB, stores ...*Redis) {
	t.Helper()
	for _, r := range stores {
		eventually(t, "the link is up", r.Coherent)
	}
}

func (h *heard) tells(t testing.TB, id introspect.TokenID) {
	t.Helper()
	eventually(t, "the revocation is reported", func() (told bool) {
		h.did(func() { _, told = h.revoked[id] })
		return told
	})
}

// told returns the story so far, and how often everything was flushed.
func (h *heard) told() (story string, flushes int) {
	h.did(func() { story, flushes = strings.Join(h.story, " "), h.flushes })
	return story, flushes
}

// wantStory waits for a story. If the machine stands still for a second, that is a silent Redis to
// the store: such a loss may come on top, and another when the connection that was given up for it
// ends.
func (h *heard) wantStory(t testing.TB, want string) {
	t.Helper()
	eventually(t, "the story is "+want, func() (is bool) {
		h.did(func() {
			more := max(len(h.story)-len(strings.Fields(want)), 0) / 2
			is = more <= 2*h.silences && strings.Join(h.story, " ") == want+strings.Repeat(" "+longerBy(want), more)
		})
		return is
	})
}

// longerBy is by what a story that ends like this may go on, to end as it does.
func longerBy(story string) string {
	if strings.HasSuffix(story, "lost") {
		return "regained lost"
	}
	return "lost regained"
}

// outage checks that every call reports an outage, and none claims to know anything.
func outage(t testing.TB, r *Redis, token oauth.Token) {
	t.Helper()
	for name, err := range allCalls(r, token) {
		if !errors.Is(err, oauth.ErrUnreachable) || errors.Is(err, oauth.ErrNotFound) {
			t.Errorf("%s: %v, want ErrUnreachable", name, err)
		}
	}
}

// works checks that the store works. Each time it takes another token: the store may still have to repeat the
// revocation of the one before.
func works(t testing.TB, r *Redis) {
	t.Helper()
	token := tokenOf(rand.Text())
	put(t, r, token)
	present(t, r, token)
	if err := r.Revoke(ctx, token.Key); err != nil {
		t.Error(err)
	}
	absent(t, r, token.Key)
}

// A gateway that has read a token soon hears that it was revoked.
func TestRedisTellsOfRevocations(t *testing.T) {
	server := redistest.Start(t)
	told := make(chan introspect.TokenID, 10)
	a, _ := redisAt(t, nil, server.Addr)
	b, h := redisAt(t, func(cfg *RedisConfig) {
		cfg.Revoked = func(_ string, id introspect.TokenID) { told <- id }
	}, server.Addr)
	linked(t, a, b)
	rounds := 1000
	if testing.Short() {
		rounds = 100
	}
	took, forgotten := make([]time.Duration, 0, rounds), make(map[introspect.TokenID]bool)
	for round := range rounds {
		token := tokenOf(fmt.Sprint("token ", round))
		put(t, a, token)
		_, flushes := h.told()
		present(t, b, token)
		if err := a.Revoke(ctx, token.Key); err != nil {
			t.Fatal(err)
		}
		acknowledged := time.Now()
		for known := false; !known; {
			select {
			case id := <-told:
				switch {
				case id == token.ID:
					took, known = append(took, time.Since(acknowledged)), true
				case !forgotten[id]:
					t.Fatalf("round %d: another token was reported", round)
				}
			case <-time.After(10 * time.Millisecond):
				// If this machine stands still, the lease ends, or the link is lost and all is forgotten.
				late, coherent := time.Since(acknowledged), b.Coherent()
				_, now := h.told()
				if known = now != flushes; known {
					forgotten[token.ID] = true // and may be reported all the same
				} else if coherent && late > leaseTime && len(told) == 0 {
					t.Fatalf("round %d: not reported within %v", round, leaseTime)
				}
			}
		}
		absent(t, b, token.Key)
	}
	slices.Sort(took)
	n := len(took)
	if n == 0 {
		t.Fatal("the link was never up for long enough to tell of anything")
	}
	t.Logf("%d revocations were reported after p50 %v, p99 %v, at most %v", n, took[n/2], took[n*99/100], took[n-1])
}

// A revocation returns once Redis has answered again, since only then it has told the other gateways. What
// becomes of that second question doesn't matter: the token is revoked by then.
func TestRedisRevocationIsTold(t *testing.T) {
	server := redistest.Start(t)
	// A denial deletes what tells of it, as part of what it does.
	for _, what := range []string{"a record", "a denial"} {
		for name, answered := range map[string]bool{"answered again": true, "cut off": false} {
			t.Run(what+", "+name, func(t *testing.T) {
				asked, goOn := make(chan struct{}), make(chan bool)
				r, h := redisAt(t, func(cfg *RedisConfig) { cfg.Prefix = t.Name() + ":" }, relay(t, server.Addr, "DEL", 2, asked, goOn))
				linked(t, r)
				h.wantStory(t, "regained") // by then nothing has to be repeated, with a DEL of its own
				key := tokenOf("a").Key
				revoke := func() error { return r.Revoke(ctx, key) }
				if what == "a denial" {
					swapKeys(t, r, "root", nil, keyringOf(epochA, "x"), true)
					settled(t, "root", r)
					revoke = func() error { return r.Deny(ctx, key, "c") }
				} else {
					put(t, r, tokenOf("a"))
				}
				revoked := make(chan error, 1)
				go func() { revoked <- revoke() }()
				select {
				case <-asked:
				case err := <-revoked:
					t.Fatalf("it returned without asking again: %v", err)
				}
				if what == "a denial" {
					wantDenied(t, r, epochA, key, true)
				} else {
					if n := server.CLI("exists", r.tokenKey(key)); n != "0" {
						t.Error("the token is not revoked")
					}
					r.mu.Lock()
					remembered := len(r.revoked)
					r.mu.Unlock()
					if remembered != 1 {
						t.Error("the revocation would not be repeated if Redis failed now")
					}
				}
				select {
				case err := <-revoked:
					t.Errorf("it returned before Redis answered again: %v", err)
				default:
				}
				goOn <- answered
				if err := <-revoked; err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// relay carries connections to a server. When a command was sent for the nth time, it says so, and carries it
// on if it is told so. Otherwise it cuts that connection. It ends with the test.
func relay(t *testing.T, to, command string, n int, asked chan<- struct{}, goOn <-chan bool) (address string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() { listener.Close(); all.Wait() })
	var sent atomic.Int64
	carry := func(from, to net.Conn, look bool) {
		defer from.Close()
		defer to.Close()
		for b := make([]byte, 64<<10); ; {
			read, err := from.Read(b)
			if err != nil {
				return
			}
			if seen := int64(bytes.Count(b[:read], []byte("\r\n"+command+"\r\n"))); look && seen > 0 && sent.Add(seen) == int64(n) {
				asked <- struct{}{}
				if !<-goOn {
					return
				}
			}
			if _, err := to.Write(b[:read]); err != nil {
				return
			}
		}
	}
	all.Go(func() {
		for {
			here, err := listener.Accept()
			if err != nil {
				return
			}
			there, err := net.Dial("tcp", to)
			if err != nil {
				here.Close()
				continue
			}
			all.Go(func() { carry(here, there, true) })
			all.Go(func() { carry(there, here, false) })
		}
	})
	return listener.Addr().String()
}

// A token's record disappears when the token expires, and that is reported too.
func TestRedisExpires(t *testing.T) {
	server := redistest.Start(t)
	r, h := redisAt(t, nil, server.Addr)
	linked(t, r)
	later := tokenOf("later")
	put(t, r, later, tokenUntil("too late", time.Now().Add(-time.Second)))
	if n := server.CLI("dbsize"); n != "1" {
		t.Errorf("%s keys for one live token", n)
	}
	left, err := strconv.Atoi(server.CLI("pttl", r.tokenKey(later.Key)))
	if life := time.Until(later.Expiry()).Milliseconds(); err != nil || int64(left) > life+1000 || int64(left) < life-10_000 {
		t.Errorf("Redis keeps the record for another %d ms, but the token lives for %d", left, life)
	}
	var soon oauth.Token
	eventually(t, "a token is read before it expires", func() bool {
		soon = tokenUntil("soon", time.Now().Add(300*time.Millisecond))
		put(t, r, soon)
		_, err := r.Get(ctx, soon.Key)
		return err == nil
	})
	h.tells(t, soon.ID)
	absent(t, r, soon.Key)
	present(t, r, later)
	if n := server.CLI("dbsize"); n != "1" {
		t.Errorf("%s keys for one live token", n)
	}
}

func TestRedisHearsThatAllIsGone(t *testing.T) {
	server := redistest.Start(t)
	r, h := redisAt(t, nil, server.Addr)
	linked(t, r)
	token := tokenOf("a")
	put(t, r, token)
	present(t, r, token)
	secret, err := r.Secret(ctx, "s", []byte("first"))
	if err != nil || string(secret) != "first" {
		t.Fatalf("%q, %v", secret, err)
	}
	h.wantStory(t, "regained")
	_, flushes := h.told()
	var changes int
	h.did(func() { changes = h.changes })
	server.CLI("flushall")
	h.wantStory(t, "regained lost regained")
	if _, now := h.told(); now == flushes {
		t.Error("nothing was flushed")
	}
	h.did(func() {
		if h.changes == changes {
			t.Error("nobody was told to ask for the secrets again")
		}
	})
	absent(t, r, token.Key)
	if secret, err := r.Secret(ctx, "s", []byte("second")); err != nil || string(secret) != "second" {
		t.Errorf("the secret of an empty Redis: %q, %v", secret, err)
	}
}

func TestRedisConnectionIsKilled(t *testing.T) {
	server := redistest.Start(t)
	r, h := redisAt(t, nil, server.Addr)
	linked(t, r)
	token := tokenOf("a")
	put(t, r, token)
	present(t, r, token)
	story := "regained"
	for range 3 {
		h.wantStory(t, story)
		_, flushes := h.told()
		server.CLI("client", "kill", "type", "normal")
		story += " lost regained"
		h.wantStory(t, story)
		if _, now := h.told(); now == flushes {
			t.Error("nothing was flushed")
		}
		linked(t, r)
		present(t, r, token)
	}
}

// While the server is away, no token is reported as invalid.
func TestRedisServerGoesAndComesBack(t *testing.T) {
	server := redistest.Start(t)
	r, h := redisAt(t, nil, server.Addr)
	linked(t, r)
	token := tokenOf("a")
	put(t, r, token)
	present(t, r, token)
	if _, err := r.Secret(ctx, "s", []byte("first")); err != nil {
		t.Fatal(err)
	}
	h.wantStory(t, "regained")
	for range 2 {
		server.Stop()
		eventually(t, "the loss is noticed", func() bool { return !r.Coherent() })
		for range 5 {
			outage(t, r, token)
		}
		server.Restart()
		linked(t, r)
		absent(t, r, token.Key)
		if secret, err := r.Secret(ctx, "s", []byte("second")); err != nil || string(secret) != "second" {
			t.Errorf("the secret of an empty Redis: %q, %v", secret, err)
		}
		works(t, r)
	}
	h.wantStory(t, "regained lost regained lost regained")
}

// A server that can't be reached when the store is opened is reached later.
func TestRedisServerComesLate(t *testing.T) {
	server := redistest.Start(t)
	server.Stop()
	r, h := redisAt(t, nil, server.Addr)
	outage(t, r, tokenOf("a"))
	h.wantStory(t, "lost")
	server.Restart()
	linked(t, r)
	works(t, r)
	h.wantStory(t, "lost regained")
}

// goroutinesReturn waits until there are not many more goroutines than before.
func goroutinesReturn(t testing.TB, before int) {
	t.Helper()
	eventually(t, "the goroutines have ended", func() bool { return runtime.NumGoroutine() <= before+10 })
}

// A server that goes silent, in whatever way, is noticed. Calls end, and don't pile up.
func TestRedisIsSilent(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(*redistest.Server, *redistest.Proxy)
	}{
		{"the server is paused", func(s *redistest.Server, _ *redistest.Proxy) { s.Pause() }},
		{"the link is half-open", func(_ *redistest.Server, p *redistest.Proxy) { p.Swallow() }},
		{"answers are lost", func(_ *redistest.Server, p *redistest.Proxy) { p.Deafen() }},
		{"answers take 30 seconds", func(_ *redistest.Server, p *redistest.Proxy) { p.Slow(30_000) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := redistest.Start(t)
			way := redistest.StartProxy(t, server)
			r, h := redisAt(t, hasty, way.Addr)
			linked(t, r)
			token := tokenOf("a")
			put(t, r, token)
			present(t, r, token)
			h.wantStory(t, "regained")
			before := runtime.NumGoroutine()

			c.do(server, way)
			begin := time.Now()
			eventually(t, "the silence is noticed", func() bool { return !r.Coherent() })
			noticed := time.Since(begin)

			const callers = 2000
			most, longest := 0, time.Duration(0)
			var mu sync.Mutex
			var all sync.WaitGroup
			for range callers {
				all.Go(func() {
					begin := time.Now()
					_, err := r.Get(ctx, token.Key)
					mu.Lock()
					defer mu.Unlock()
					longest = max(longest, time.Since(begin))
					most = max(most, runtime.NumGoroutine())
					if !errors.Is(err, oauth.ErrUnreachable) {
						t.Errorf("%v, want ErrUnreachable", err)
					}
				})
			}
			all.Wait()
			t.Logf("noticed after %v; of %d calls the longest took %v; %d goroutines at most", noticed, callers, longest, most-before)
			// The bounds are the lease, 2 s, and Timeout plus DialTimeout, 3 s. A busy machine may
			// be late.
			if noticed > 10*time.Second || longest > 10*time.Second {
				t.Errorf("noticed after %v, the longest call took %v", noticed, longest)
			}
			if most-before > 2*callers {
				t.Errorf("%d goroutines for %d callers", most-before, callers)
			}
			goroutinesReturn(t, before)

			server.Resume()
			way.Heal()
			linked(t, r)
			present(t, r, token)
			works(t, r)
			// It is told a little after it is so. A connection that was given up may end after the link is
			// back, which costs one more flush.
			h.wantStory(t, "regained lost regained")
		})
	}
}

// A link that is lost just after it came back: whoever reads the log must see the loss last, as it was.
func TestRedisIsLostAsItReturns(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	way := redistest.StartProxy(t, server)
	var once sync.Once
	lost := make(chan struct{})
	r, h := redisAt(t, func(cfg *RedisConfig) {
		lose := cfg.Lost
		cfg.Lost = func(err error) {
			lose(err)
			once.Do(func() { close(lost) })
		}
		// It is called when the link is back, and then again before Regained.
		changed := cfg.Changed
		var calls atomic.Int32
		cfg.Changed = func() {
			changed()
			if calls.Add(1) == 2 {
				way.Cut()
				<-lost
			}
		}
	}, way.Addr)
	h.wantStory(t, "regained lost")
	way.Heal()
	linked(t, r)
	h.wantStory(t, "regained lost regained")
}

// The store can be closed in any state. Afterwards calls say so, and nothing is left running.
func TestRedisIsClosedMeanwhile(t *testing.T) {
	for name, do := range map[string]func(*redistest.Server, *redistest.Proxy){
		"all is well":           func(*redistest.Server, *redistest.Proxy) {},
		"the server is gone":    func(s *redistest.Server, _ *redistest.Proxy) { s.Stop() },
		"the server is paused":  func(s *redistest.Server, _ *redistest.Proxy) { s.Pause() },
		"the link is half-open": func(_ *redistest.Server, p *redistest.Proxy) { p.Swallow() },
		"the link is cut":       func(_ *redistest.Server, p *redistest.Proxy) { p.Cut() },
	} {
		for _, connected := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, connected %t", name, connected), func(t *testing.T) {
				server := redistest.Start(t)
				defer server.Resume()
				way := redistest.StartProxy(t, server)
				before := runtime.NumGoroutine()
				if !connected {
					do(server, way)
				}
				r, _ := redisAt(t, hasty, way.Addr)
				if connected {
					linked(t, r)
					works(t, r)
					do(server, way)
				}
				var all sync.WaitGroup
				for range 20 {
					all.Go(func() {
						if _, err := r.Get(ctx, tokenOf("nobody's").Key); err == nil {
							t.Error("a token that was never issued was found")
						}
					})
				}
				if connected {
					all.Wait()
				}
				begin := time.Now()
				if err := r.Close(); err != nil {
					t.Error(err)
				}
				if took := time.Since(begin); took > 10*time.Second {
					t.Errorf("closing took %v", took)
				}
				all.Wait()
				for name, err := range allCalls(r, tokenOf("a")) {
					if !errors.Is(err, oauth.ErrClosed) {
						t.Errorf("%s after Close: %v", name, err)
					}
				}
				server.Resume()
				way.Heal()
				goroutinesReturn(t, before)
			})
		}
	}
}

// Trouble that somebody has to fix is not reported as an outage.
func TestRedisRefuses(t *testing.T) {
	const password = "canary-password-9Yq"
	server := redistest.Start(t, "--requirepass", password)
	cli := func(args ...string) string {
		return server.CLI(append([]string{"--no-auth-warning", "-a", password}, args...)...)
	}
	cli("acl", "setuser", "poor", "on", ">"+password, "~caddy-oauth:*", "+ping", "+client")
	cli("acl", "setuser", "blind", "on", ">"+password, "~other:*", "+@all")
	cli("acl", "setuser", "deaf", "on", ">"+password, "~*", "+@all", "-client")
	for _, c := range []struct {
		name string
		user func(*RedisConfig)
		want string
	}{
		{"a wrong password", func(cfg *RedisConfig) { cfg.Password = "canary-wrong-2Wz" }, "WRONGPASS"},
		{"no password", func(*RedisConfig) {}, "NOAUTH"},
		{"an unknown user", func(cfg *RedisConfig) { cfg.Username, cfg.Password = "nobody", password }, "WRONGPASS"},
		{"a user who may run nothing", func(cfg *RedisConfig) { cfg.Username, cfg.Password = "poor", password }, "NOPERM"},
		{"a user of other keys", func(cfg *RedisConfig) { cfg.Username, cfg.Password = "blind", password }, "NOPERM"},
		{"a user who may not track", func(cfg *RedisConfig) { cfg.Username, cfg.Password = "deaf", password }, "tracking"},
		{"a database that is not there", func(cfg *RedisConfig) { cfg.Password, cfg.DB = password, 99 }, "DB index"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, _ := redisAt(t, c.user, server.Addr)
			for name, err := range allCalls(r, tokenOf("a")) {
				if err == nil || errors.Is(err, oauth.ErrUnreachable) || errors.Is(err, oauth.ErrNotFound) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: %v, want %q and not ErrUnreachable", name, err, c.want)
				}
				if strings.Contains(fmt.Sprint(err), "canary") {
					t.Errorf("%s: the error holds a password: %v", name, err)
				}
			}
		})
	}
}

// Whatever a server answers instead of a record, it is never taken for "no".
func TestRedisAnswersSomethingElse(t *testing.T) {
	server := redistest.Start(t)
	r, _ := redisAt(t, nil, server.Addr)
	linked(t, r)
	a, b := tokenOf("a"), tokenOf("b")
	put(t, r, a, b)
	known := admit(t, r, oauth.ClientRef{Realm: "root", ClientID: "c"})
	if _, err := r.Secret(ctx, "s", []byte("first")); err != nil {
		t.Fatal(err)
	}
	mustFail := func(name string, err error) {
		t.Helper()
		if err == nil || errors.Is(err, oauth.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	get := func(key oauth.Key) error { _, err := r.Get(ctx, key); return err }

	t.Run("something else than a record", func(t *testing.T) {
		key := r.tokenKey(a.Key)
		server.CLI("del", key)
		server.CLI("lpush", key, "x")
		err := get(a.Key)
		mustFail("a list", err)
		if !strings.Contains(fmt.Sprint(err), "WRONGTYPE") || errors.Is(err, oauth.ErrUnreachable) {
			t.Errorf("a list: %v", err)
		}
		server.CLI("del", key)
	})
	t.Run("a client's state that makes no sense", func(t *testing.T) {
		server.CLI("hset", r.clientsKey("root"), "c", "{}")
		_, err := r.Admit(ctx, []oauth.ClientRef{{Realm: "root", ClientID: "c"}}, nil)
		mustFail("admitting", err)
		mustFail("retiring", r.Retire(ctx, nil))
		server.CLI("hset", r.clientsKey("root"), "c", `{"generation":1}`)
	})
	t.Run("out of memory", func(t *testing.T) {
		server.CLI("config", "set", "maxmemory", "1")
		mustFail("putting", r.Put(ctx, a))
		if err := r.Put(ctx, a); !errors.Is(err, oauth.ErrUnreachable) || !strings.Contains(err.Error(), "OOM") {
			t.Errorf("putting: %v", err)
		}
		// Reads still work, and what is already known needs no write. So a gateway that starts
		// serves the tokens there are.
		fresh, _ := redisAt(t, nil, server.Addr)
		present(t, fresh, b)
		if again := admit(t, fresh, oauth.ClientRef{Realm: "root", ClientID: "c"}); fmt.Sprint(again) != fmt.Sprint(known) {
			t.Errorf("the client's generation is %v, was %v", again, known)
		}
		if secret, err := fresh.Secret(ctx, "s", []byte("second")); err != nil || string(secret) != "first" {
			t.Errorf("the secret: %q, %v", secret, err)
		}
		_, err := fresh.Admit(ctx, []oauth.ClientRef{{Realm: "root", ClientID: "new"}}, nil)
		mustFail("admitting", err)
		if !strings.Contains(fmt.Sprint(err), "OOM") {
			t.Errorf("admitting: %v", err)
		}
		if err := fresh.Revoke(ctx, b.Key); err != nil {
			t.Errorf("revoking: %v", err)
		}
		server.CLI("config", "set", "maxmemory", "0")
		put(t, r, b)
	})
	t.Run("a replica", func(t *testing.T) {
		replica := redistest.StartReplica(t, server.Addr)
		at, _ := redisAt(t, nil, replica.Addr)
		for name, err := range map[string]error{"putting": at.Put(ctx, a), "revoking": at.Revoke(ctx, b.Key)} {
			mustFail(name, err)
			if !errors.Is(err, oauth.ErrUnreachable) || !strings.Contains(err.Error(), "READONLY") {
				t.Errorf("%s at a replica: %v", name, err)
			}
		}
	})
	t.Run("loading", func(t *testing.T) {
		folder := t.TempDir()
		big := redistest.Start(t, "--dir", folder, "--enable-debug-command", "local", "--key-load-delay", "30000", "--loading-process-events-interval-bytes", "1024")
		big.CLI("debug", "populate", "800", "key", "100")
		big.CLI("save")
		big.Stop()
		big.Restart()
		at, _ := redisAt(t, nil, big.Addr)
		seen := false
		eventually(t, "it has loaded", func() bool {
			_, err := at.Get(ctx, a.Key)
			if err != nil && !errors.Is(err, oauth.ErrNotFound) {
				if !seen && strings.Contains(err.Error(), "LOADING") {
					seen = true
					big.CLI("config", "set", "key-load-delay", "0")
				}
				if !errors.Is(err, oauth.ErrUnreachable) {
					t.Fatal(err)
				}
			}
			return errors.Is(err, oauth.ErrNotFound)
		})
		if !seen {
			t.Error("it was never seen loading: the test proves nothing")
		}
	})
}

func TestRedisWarnsOfEviction(t *testing.T) {
	for policy, want := range map[string]int{"allkeys-lru": 1, "volatile-ttl": 1, "noeviction": 0} {
		server := redistest.Start(t, "--maxmemory", "100mb", "--maxmemory-policy", policy)
		_, h := redisAt(t, nil, server.Addr)
		h.wantStory(t, "regained")
		h.did(func() { // if the link was lost meanwhile, it may be reported again
			if n := len(h.evicting); n < want || n > want*(1+h.silences) || slices.ContainsFunc(h.evicting, func(p string) bool { return p != policy }) {
				t.Errorf("%s: reported %v", policy, h.evicting)
			}
		})
	}
}

// Redis never contains a token, neither in memory nor on the disk.
func TestRedisHoldsNoToken(t *testing.T) {
	const canary = "coa_canary-token-of-somebody"
	folder := t.TempDir()
	server := redistest.Start(t, "--dir", folder, "--appendonly", "yes")
	r, _ := redisAt(t, nil, server.Addr)
	put(t, r, tokenOf(canary))
	r.Get(ctx, tokenOf(canary).Key)
	admit(t, r, oauth.ClientRef{Realm: "root", ClientID: "c"})
	if _, err := r.Secret(ctx, "s", []byte("key")); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for key := range strings.Lines(server.CLI("keys", "*")) {
		key = strings.TrimSpace(key)
		all.WriteString(key + "\n" + server.CLI("dump", key) + "\n" + server.CLI("object", "encoding", key) + "\n")
		if !strings.HasPrefix(key, "caddy-oauth:") {
			t.Errorf("the key %s has no prefix", key)
		}
	}
	record := server.CLI("get", r.tokenKey(tokenOf(canary).Key))
	server.CLI("save")
	err := filepath.WalkDir(folder, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			var text []byte
			text, err = os.ReadFile(path)
			all.Write(text)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// The client's name contains the canary, which proves that the search finds what is there.
	text := all.String() + record
	if !strings.Contains(text, "client of "+canary) {
		t.Error("the search does not find what is there: the test proves nothing")
	}
	if strings.Contains(strings.ReplaceAll(text, "client of "+canary, ""), canary) {
		t.Error("Redis contains a token")
	}
}

// The ACL rules that docs/operations.md gives are enough, and no more than enough.
func TestRedisLeastRights(t *testing.T) {
	server := redistest.Start(t)
	operations, err := os.ReadFile("../../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rules, found := strings.Cut(string(operations), "`ACL SETUSER gateway on >… ")
	rules, _, closed := strings.Cut(rules, "`")
	if !found || !closed {
		t.Fatal("docs/operations.md has no ACL rules")
	}
	try := func(rules []string) (failed error) {
		server.CLI(append([]string{"acl", "setuser", "gateway", "reset", "on", ">secret"}, rules...)...)
		server.CLI("flushall")
		server.CLI("zadd", "caddy-oauth:{realm:root}:denials", "1", strings.Repeat("x", 32)) // over since 1970
		r, h := redisAt(t, func(cfg *RedisConfig) { cfg.Username, cfg.Password = "gateway", "secret" }, server.Addr)
		defer r.Close()
		for range 2 {
			for name, err := range allCalls(r, tokenOf("a")) {
				if err != nil && !errors.Is(err, oauth.ErrNotFound) {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		}
		if err := r.Retire(ctx, nil); err != nil {
			return err
		}
		_, swap := r.SwapKeys(ctx, "root", nil, keyringOf(epochA, ""))
		_, read := r.Keys(ctx, "root")
		_, denied := r.Denied(ctx, epochA, tokenOf("a").Key)
		if err := errors.Join(swap, read, r.Deny(ctx, tokenOf("a").Key, "c"), denied); err != nil {
			return err
		}
		version, add := r.SwapManagedClient(ctx, "root", oauth.ManagedClient{ID: "m", Data: []byte("x")})
		all, list := r.ManagedClients(ctx, "root", "")
		_, follow := r.ManagedClients(ctx, "root", all.Position)
		_, show := r.ManagedClient(ctx, managedRef("m"))
		use := r.AddUses(ctx, "root", map[string]oauth.Use{"m": someUse(1)})
		_, usesOfAll := r.Uses(ctx, "root", nil)
		_, usesOfOne := r.Uses(ctx, "root", []string{"m"})
		if err := errors.Join(use, usesOfAll, usesOfOne, r.ForgetUses(ctx, "root", []string{"m"})); err != nil {
			return err
		}
		_, remove := r.SwapManagedClient(ctx, "root", oauth.ManagedClient{ID: "m", Version: version})
		if err := errors.Join(add, list, follow, show, remove); err != nil {
			return err
		}
		h.wantStory(t, "regained")
		if n := server.CLI("zcard", "caddy-oauth:{realm:root}:denials"); n != "1" {
			t.Errorf("%s denials, want the one that is not over", n)
		}
		return nil
	}
	words := strings.Fields(rules)
	if err := try(words); err != nil {
		t.Fatalf("with %s: %v", rules, err)
	}
	for i, word := range words {
		// PING proves the link even if the answer is that it is not allowed. UNWATCH is only sent
		// if another gateway was quicker.
		if word == "+ping" || word == "+unwatch" {
			continue
		}
		if err := try(slices.Delete(slices.Clone(words), i, i+1)); err == nil {
			t.Errorf("%s is not needed", word)
		}
	}
}

// Several new stores that ask for a secret at once all get the same.
func TestRedisStoresAgree(t *testing.T) {
	server := redistest.Start(t)
	stores := make([]*Redis, 4)
	for i := range stores {
		stores[i], _ = redisAt(t, nil, server.Addr)
	}
	for round := range 50 {
		server.CLI("flushall")
		var all sync.WaitGroup
		secrets := make([]string, len(stores))
		for i, r := range stores {
			all.Go(func() {
				secret, err := r.Secret(ctx, "s", []byte(fmt.Sprint("of store ", i)))
				if err != nil {
					t.Error(err)
				}
				secrets[i] = string(secret)
			})
		}
		all.Wait()
		for _, secret := range secrets {
			if secret != secrets[0] || secret == "" {
				t.Fatalf("round %d: the secrets are %q", round, secrets)
			}
		}
	}
}

// Admit and Retire are atomic: whatever several stores do to a client at once, each time that it
// goes its generation rises by exactly one.
func TestRedisAdmitsAtomically(t *testing.T) {
	server := redistest.Start(t)
	a, _ := redisAt(t, nil, server.Addr)
	b, _ := redisAt(t, nil, server.Addr)
	of := func(i int) oauth.ClientRef { return oauth.ClientRef{Realm: "root", ClientID: fmt.Sprint("client ", i)} }
	const clients = 40
	var all sync.WaitGroup
	for _, r := range []*Redis{a, b} {
		all.Go(func() {
			for i := range clients {
				admit(t, r, of(i)) // both admit the same: none is lost, and each begins at 1
			}
		})
	}
	all.Wait()
	var refs []oauth.ClientRef
	for i := range clients {
		refs = append(refs, of(i))
	}
	for ref, generation := range admit(t, a, refs...) {
		if generation != 1 {
			t.Errorf("%s has generation %d", ref.ClientID, generation)
		}
	}
	for round := range 10 {
		for _, r := range []*Redis{a, b} { // both retire all, which counts once
			all.Go(func() {
				if err := r.Retire(ctx, nil); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for ref, generation := range admit(t, b, refs...) {
			if generation != uint64(round)+2 {
				t.Fatalf("round %d: %s has generation %d", round, ref.ClientID, generation)
			}
		}
	}
}

// When one store changes clients, the others hear of it.
func TestRedisTellsOfClients(t *testing.T) {
	server := redistest.Start(t)
	a, _ := redisAt(t, nil, server.Addr)
	b, h := redisAt(t, nil, server.Addr)
	linked(t, a, b)
	ref := oauth.ClientRef{Realm: "root", ClientID: "c"}
	admit(t, a, ref)
	for round := range 20 {
		before := admit(t, b, ref)[ref]
		var changes int
		h.did(func() { changes = h.changes })
		if err := a.Retire(ctx, nil); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the change is reported", func() (told bool) {
			h.did(func() { told = h.changes > changes })
			return told
		})
		if now := admit(t, b, ref)[ref]; now != before+1 {
			t.Fatalf("round %d: the generation went from %d to %d", round, before, now)
		}
	}
}

// A revocation that the server has lost, as in a crash or a failover, is repeated.
func TestRedisRepeatsRevocations(t *testing.T) {
	server := redistest.Start(t)
	way := redistest.StartProxy(t, server)
	r, h := redisAt(t, nil, way.Addr)
	linked(t, r)
	token := tokenOf("a")
	put(t, r, token)
	record := recordOfEarlier(token) // which an argument can hold
	if err := r.Revoke(ctx, token.Key); err != nil {
		t.Fatal(err)
	}
	h.wantStory(t, "regained")
	// A server that has lost it, which nobody reaches before it is as it has to be.
	way.Cut()
	eventually(t, "the loss is noticed", func() bool { return !r.Coherent() })
	server.Stop()
	server.Restart()
	server.CLI("set", r.tokenKey(token.Key), record)
	way.Heal()
	h.wantStory(t, "regained lost regained")
	eventually(t, "the token is revoked again", func() bool { return server.CLI("exists", r.tokenKey(token.Key)) == "0" })
	absent(t, r, token.Key)
}

// What has to be repeated is not given up because the outage has taken long, even if somebody revokes
// another token before it is repeated.
func TestRedisRepeatsAfterALongOutage(t *testing.T) {
	server := redistest.Start(t)
	way := redistest.StartProxy(t, server)
	r, _ := redisAt(t, nil, way.Addr)
	linked(t, r)
	token := tokenOf("a")
	if err := r.Revoke(ctx, token.Key); err != nil {
		t.Fatal(err)
	}
	client := oauth.ClientRef{Realm: "root", ClientID: "a"}
	before := admit(t, r, client)
	now, err := r.EndTokens(ctx, "root", []string{"a"}, false, before)
	if err != nil {
		t.Fatal(err)
	}
	swap(t, r, "managed", 0, "x")
	way.Cut()
	eventually(t, "the loss is noticed", func() bool { return !r.Coherent() })
	r.mu.Lock() // two minutes pass
	r.lostAt = r.lostAt.Add(-2 * replayTime)
	r.revoked[0].at = r.revoked[0].at.Add(-2 * replayTime)
	for ref, was := range r.written {
		was.at = was.at.Add(-2 * replayTime)
		r.written[ref] = was
	}
	for ref, was := range r.writtenManaged {
		was.at = was.at.Add(-2 * replayTime)
		r.writtenManaged[ref] = was
	}
	r.mu.Unlock()
	server.CLI("flushall") // as another server, which has heard of none of it
	server.CLI("set", r.tokenKey(token.Key), recordOfEarlier(token))
	server.CLI("hset", r.clientsKey("root"), "a", fmt.Sprintf(`{"generation":%d}`, before[client]))
	// What Redis is told before the gateway has looked at the link.
	r.remember(r.tokenKey(tokenOf("b").Key))
	r.rememberClients(clientTable{{Realm: "root", ClientID: "b"}: {Generation: 1}})
	r.rememberManaged("root", oauth.ManagedClient{ID: "other", Version: nextVersion(0), Data: []byte("x")})
	way.Heal()
	linked(t, r)
	eventually(t, "the token is revoked again", func() bool { return server.CLI("exists", r.tokenKey(token.Key)) == "0" })
	eventually(t, "the tokens of the client are ended again", func() bool {
		generation, err := r.Generation(ctx, client)
		return err == nil && generation > now[client]
	})
	eventually(t, "the managed client is there again", func() bool {
		_, err := r.ManagedClient(ctx, oauth.ClientRef{Realm: "root", ClientID: "managed"})
		return err == nil
	})
}

// After the link was lost, Changed tells of what may have been missed before there is a lease again.
func TestRedisTellsBeforeThereIsALease(t *testing.T) {
	server := redistest.Start(t)
	way := redistest.StartProxy(t, server)
	r, h := redisAt(t, nil, way.Addr)
	linked(t, r)
	admit(t, r, oauth.ClientRef{Realm: "root", ClientID: "a"}) // which is repeated, and takes a while
	h.wantStory(t, "regained")
	valid := r.Lease()
	if !valid() {
		t.Error("there is no lease although the link is up")
	}
	way.Cut()
	eventually(t, "the loss is noticed", func() bool { return !r.Coherent() })
	var before int
	h.did(func() { before = h.changes })
	way.Heal()
	way.Slow(100)
	eventually(t, "the link is up", r.Coherent)
	h.did(func() {
		if h.changes == before {
			t.Error("there is a lease, and nobody was told of a change")
		}
	})
	eventually(t, "the lease from before the loss ends", func() bool { return !valid() })
}

// What was written about clients and is lost by the server is written again: tokens that an operator
// has ended stay dead, and so do those of a client that was removed.
func TestRedisRepeatsChangesOfClients(t *testing.T) {
	server := redistest.Start(t)
	way := redistest.StartProxy(t, server)
	r, h := redisAt(t, nil, way.Addr)
	linked(t, r)
	ended, gone, untouched := oauth.ClientRef{Realm: "root", ClientID: "ended"}, oauth.ClientRef{Realm: "root", ClientID: "gone"}, oauth.ClientRef{Realm: "other", ClientID: "untouched"}
	before := admit(t, r, ended, gone, untouched)
	key := r.clientsKey("root")
	saved := []string{server.CLI("hget", key, "ended"), server.CLI("hget", key, "gone")}
	now, err := r.EndTokens(ctx, "root", []string{"ended"}, false, before)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Retire(ctx, []oauth.ClientRef{ended, untouched}); err != nil {
		t.Fatal(err)
	}
	h.wantStory(t, "regained")
	way.Cut() // nobody reaches the server before it is as it has to be
	eventually(t, "the loss is noticed", func() bool { return !r.Coherent() })
	server.Stop()
	server.Restart() // empty
	server.CLI("hset", key, "ended", saved[0], "gone", saved[1])
	way.Heal()
	eventually(t, "it is written again", func() bool { return strings.Contains(server.CLI("hget", key, "gone"), "retired") })
	if got := admit(t, r, ended, gone, untouched); got[ended] <= now[ended] || got[gone] <= before[gone]+1 || got[untouched] != before[untouched] {
		t.Errorf("the generations were %v, %v and are %v", before, now, got)
	}
}

// The address leads to a replica, which refuses the repeated revocation and is later promoted
// without notice. The revocation is repeated until it succeeds.
func TestRedisRepeatsUntilItWorks(t *testing.T) {
	server, other := redistest.Start(t), redistest.Start(t)
	way := redistest.StartProxy(t, server)
	r, h := redisAt(t, nil, way.Addr)
	linked(t, r)
	token := tokenOf("a")
	put(t, r, token)
	key := r.tokenKey(token.Key)
	other.CLI("set", key, recordOfEarlier(token))
	replica := redistest.StartReplica(t, other.Addr)
	if err := r.Revoke(ctx, token.Key); err != nil {
		t.Fatal(err)
	}
	h.wantStory(t, "regained")
	way.LeadTo(replica)
	h.wantStory(t, "regained lost regained")
	time.Sleep(2 * pingInterval) // so that some attempts fail
	if replica.CLI("exists", key) != "1" {
		t.Fatal("the replica does not have the token: the test proves nothing")
	}
	absent(t, r, token.Key) // here it is known better
	r.mu.Lock()             // two minutes pass
	r.lostAt = r.lostAt.Add(-2 * replayTime)
	r.revoked[0].at = r.revoked[0].at.Add(-2 * replayTime)
	r.mu.Unlock()
	replica.CLI("client", "kill", "type", "normal") // and the link is lost once more
	h.wantStory(t, "regained lost regained lost regained")
	replica.CLI("replicaof", "no", "one")
	eventually(t, "the token is revoked again", func() bool { return replica.CLI("exists", key) == "0" })
	absent(t, r, token.Key)
}

// One node of a Cluster dies: tokens on the other nodes can still be read, but nothing counts from
// the cache any longer, since changes on the dead node go unreported.
func TestRedisClusterLosesANode(t *testing.T) {
	servers := redistest.StartCluster(t)
	r, _ := redisAt(t, func(cfg *RedisConfig) { cfg.Cluster = true }, servers[0].Addr, servers[1].Addr)
	linked(t, r)
	for _, s := range servers {
		s.CLI("config", "set", "cluster-require-full-coverage", "no")
	}
	tokens := make([]oauth.Token, 30)
	for i := range tokens {
		tokens[i] = tokenOf(fmt.Sprint("token ", i))
	}
	put(t, r, tokens...)
	servers[2].Stop()
	eventually(t, "the loss is noticed", func() bool { return !r.Coherent() })
	found, unreachable := 0, 0
	eventually(t, "the tokens on the other nodes are found", func() bool {
		found, unreachable = 0, 0
		for _, token := range tokens {
			switch _, err := r.Get(ctx, token.Key); {
			case err == nil:
				found++
			case errors.Is(err, oauth.ErrUnreachable):
				unreachable++
			default:
				t.Fatalf("a token that may be on the dead node: %v", err)
			}
		}
		return found > 0 && found+unreachable == len(tokens)
	})
	t.Logf("with one node of three dead, %d tokens are found and %d are not", found, unreachable)
	if unreachable == 0 || r.Coherent() {
		t.Errorf("%d of %d tokens are found, coherent is %t", found, len(tokens), r.Coherent())
	}
}

// One node of a Cluster does not answer: the self-contained tokens of realms on the other nodes are judged all
// the same.
func TestRedisClusterNodeIsSilent(t *testing.T) {
	servers := redistest.StartCluster(t)
	r, _ := redisAt(t, func(cfg *RedisConfig) { cfg.Cluster, cfg.Timeout = true, time.Second }, servers[0].Addr, servers[1].Addr)
	linked(t, r)
	for _, s := range servers {
		s.CLI("config", "set", "cluster-require-full-coverage", "no")
	}
	silent := servers[2]
	var good []oauth.Key
	bad := 0
	for i := range 12 {
		key := tokenOf("a").Key
		key.Realm = fmt.Sprint("realm ", i)
		swapKeys(t, r, key.Realm, nil, keyringOf(epochA, ""), true)
		wantDenied(t, r, epochA, key, false)
		settled(t, key.Realm, r)
		// A node answers with an error if it does not have the slot.
		if silent.CLI("exists", r.keysKey(key.Realm)) == "1" {
			bad++
		} else {
			good = append(good, key)
		}
	}
	if bad == 0 || len(good) == 0 {
		t.Fatalf("%d realms are on the silent node, and %d are not: the test proves nothing", bad, len(good))
	}
	silent.Pause()
	defer silent.Resume()
	asked, refused, longest := 0, 0, time.Duration(0)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for _, key := range good {
			asked++
			begun := time.Now()
			if denied, err := r.Denied(ctx, epochA, key); denied {
				t.Error("the token is denied")
			} else if err != nil {
				refused++
			}
			longest = max(longest, time.Since(begun))
		}
	}
	t.Logf("%d of %d questions could not be answered, and the longest took %v", refused, asked, longest)
	if refused > 1 {
		t.Errorf("with %d realms on the silent node, %d of %d questions about the %d others could not be answered", bad, refused, asked, len(good))
	}
	if r.Coherent() {
		t.Error("the link is said to be up: the test proves nothing")
	}
}

// A slot moves to another node: reads follow it, and revocations there are reported.
func TestRedisClusterMovesASlot(t *testing.T) {
	servers := redistest.StartCluster(t)
	cluster := func(cfg *RedisConfig) { cfg.Cluster = true }
	a, _ := redisAt(t, cluster, servers[0].Addr)
	b, h := redisAt(t, cluster, servers[1].Addr)
	linked(t, a, b)
	token, before := tokenOf("a"), tokenOf("before")
	put(t, a, token)
	present(t, b, token)
	slot := servers[0].CLI("cluster", "keyslot", b.tokenKey(token.Key))
	at := -1
	for i, s := range servers {
		if s.CLI("cluster", "countkeysinslot", slot) != "0" {
			at = i
		}
	}
	if at < 0 {
		t.Fatal("no node has the token")
	}
	from, to := servers[at], servers[(at+1)%3]
	fromID, toID := from.CLI("cluster", "myid"), to.CLI("cluster", "myid")
	host, port, _ := net.SplitHostPort(to.Addr)
	to.CLI("cluster", "setslot", slot, "importing", fromID)
	from.CLI("cluster", "setslot", slot, "migrating", toID)
	present(t, b, token)
	from.CLI("migrate", host, port, b.tokenKey(token.Key), "0", "5000")
	h.tells(t, token.ID) // it left the node that would report its revocation
	present(t, b, token) // after an ASK redirection
	h.did(func() { clear(h.revoked) })
	to.CLI("cluster", "setslot", slot, "node", toID)
	from.CLI("cluster", "setslot", slot, "node", toID)
	present(t, b, token) // after a MOVED redirection
	if err := a.Revoke(ctx, token.Key); err != nil {
		t.Fatal(err)
	}
	h.tells(t, token.ID)
	absent(t, b, token.Key)
	put(t, a, before)
	present(t, b, before)
	linked(t, a, b)
}

// When a node of a Cluster that was read from becomes a replica, everything is flushed.
func TestRedisClusterFailsOver(t *testing.T) {
	servers := redistest.StartCluster(t)
	replica := redistest.StartClusterReplica(t, servers[0])
	cluster := func(cfg *RedisConfig) { cfg.Cluster = true }
	a, _ := redisAt(t, cluster, servers[1].Addr)
	b, h := redisAt(t, cluster, servers[1].Addr)
	linked(t, a, b)
	tokens := make([]oauth.Token, 30)
	for i := range tokens {
		tokens[i] = tokenOf(fmt.Sprint("token ", i))
	}
	put(t, a, tokens...)
	for _, token := range tokens {
		present(t, b, token)
	}
	_, flushes := h.told()
	// If the master is too slow, an attempt fails after five seconds.
	for attempt := 0; !strings.HasPrefix(replica.CLI("role"), "master"); attempt++ {
		if attempt == 60 {
			t.Fatal("the roles do not change within a minute")
		}
		if attempt%6 == 0 {
			eventually(t, "the failover is accepted", func() bool { return replica.CLI("cluster", "failover") == "OK" })
		}
		time.Sleep(time.Second)
	}
	eventually(t, "everything is flushed", func() bool { _, now := h.told(); return now > flushes })
	linked(t, a, b)
	for _, token := range tokens {
		if err := a.Revoke(ctx, token.Key); err != nil {
			t.Fatal(err)
		}
		absent(t, b, token.Key)
	}
}

// Sentinels appoint a new master that has not heard of the last revocation. The store follows, and
// repeats the revocation.
func TestRedisSentinel(t *testing.T) {
	master := redistest.Start(t)
	way := redistest.StartProxy(t, master) // for the replication
	replica := redistest.StartReplica(t, way.Addr)
	sentinel := redistest.StartSentinel(t, master)
	eventually(t, "the Sentinel knows the replica", func() bool {
		return strings.Contains(sentinel.CLI("sentinel", "replicas", "main"), "slave-priority")
	})
	r, h := redisAt(t, func(cfg *RedisConfig) { cfg.SentinelMaster = "main" }, sentinel.Addr)
	linked(t, r)
	kept, revoked := tokenOf("kept"), tokenOf("revoked")
	put(t, r, kept, revoked)
	key := r.tokenKey(revoked.Key)
	eventually(t, "the replica has both", func() bool { return replica.CLI("dbsize") == "2" })
	h.wantStory(t, "regained")
	way.Swallow()
	if err := r.Revoke(ctx, revoked.Key); err != nil {
		t.Fatal(err)
	}
	if replica.CLI("exists", key) != "1" {
		t.Fatal("the replica has heard of the revocation: the test proves nothing")
	}
	sentinel.CLI("sentinel", "set", "main", "down-after-milliseconds", "600000") // it waits until the outage was seen
	master.Stop()
	eventually(t, "the loss is noticed", func() bool { return !r.Coherent() })
	outage(t, r, kept)
	sentinel.CLI("sentinel", "set", "main", "down-after-milliseconds", "1000")
	for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if role, err := replica.TryCLI("role"); err == nil && strings.HasPrefix(role, "master") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the Sentinel does not fail over")
		}
	}
	linked(t, r)
	eventually(t, "the revocation is repeated", func() bool {
		exists, err := replica.TryCLI("exists", key)
		return err == nil && exists == "0"
	})
	absent(t, r, revoked.Key)
	present(t, r, kept)
	works(t, r)
	h.wantStory(t, "regained lost regained")
}

// certificate makes a certificate for 127.0.0.1, signed by parent or, if that is nil, by itself. It
// returns the files with the certificate and its key, and both.
func certificate(t testing.TB, name string, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (certFile, keyFile string, cert *x509.Certificate, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: parent == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{name},
	}
	if parent == nil {
		template.KeyUsage |= x509.KeyUsageCertSign
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	certFile, keyFile = filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile, cert, key
}

// Connections by TLS, with a private authority and certificates on both sides. The server's name
// is checked.
func TestRedisTLS(t *testing.T) {
	caFile, _, ca, caKey := certificate(t, "authority", nil, nil)
	serverCert, serverKey, _, _ := certificate(t, "redis.test", ca, caKey)
	clientCert, clientKey, _, _ := certificate(t, "gateway", ca, caKey)
	_, _, stranger, _ := certificate(t, "stranger", nil, nil)
	address := porttest.Address(t)
	_, port, _ := net.SplitHostPort(address)
	redistest.Start(t, "--tls-port", port, "--tls-cert-file", serverCert, "--tls-key-file", serverKey, "--tls-ca-cert-file", caFile)
	pair, err := tls.LoadX509KeyPair(clientCert, clientKey)
	if err != nil {
		t.Fatal(err)
	}
	pool, other := x509.NewCertPool(), x509.NewCertPool()
	pool.AddCert(ca)
	other.AddCert(stranger)
	for name, c := range map[string]struct {
		config *tls.Config
		want   string // in the error; if empty, it works
	}{
		"all is right":           {&tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}, ""},
		"another name to expect": {&tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, ServerName: "redis.test"}, ""},
		"no client certificate":  {&tls.Config{RootCAs: pool}, "redis"},
		"an unknown authority":   {&tls.Config{RootCAs: other, Certificates: []tls.Certificate{pair}}, "unknown authority"},
		"a wrong name":           {&tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, ServerName: "other.test"}, "other.test"},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := redisAt(t, func(cfg *RedisConfig) { cfg.TLS = c.config }, address)
			if c.want == "" {
				linked(t, r)
				works(t, r)
				return
			}
			_, err := r.Get(ctx, tokenOf("a").Key)
			if err == nil || errors.Is(err, oauth.ErrNotFound) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if r.Coherent() {
				t.Error("the link is reported as up")
			}
		})
	}
}
