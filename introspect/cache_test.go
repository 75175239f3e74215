package introspect_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/caddyoauth/gateway/introspect"
)

// Every test here closes its cache, so nothing may be left running.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sourceFunc is a Source made of a function.
type sourceFunc func(ctx context.Context, token string) (*introspect.Facts, error)

func (f sourceFunc) Lookup(ctx context.Context, token introspect.Token) (*introspect.Facts, error) {
	return f(ctx, token.Text())
}

// registry is a small authorization server: it knows the tokens that it has issued and not
// revoked.
type registry struct {
	now     func() time.Time
	lookups atomic.Int64

	mu     sync.Mutex
	tokens map[string]*introspect.Facts
}

func newRegistry(now func() time.Time) *registry {
	return &registry{now: now, tokens: map[string]*introspect.Facts{}}
}

func (r *registry) issue(token string, expiry time.Time) *introspect.Facts {
	facts := factsOf(token, expiry)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tokens[token] = facts
	return facts
}

func (r *registry) revoke(token string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.tokens, token)
}

func (r *registry) Lookup(_ context.Context, token introspect.Token) (*introspect.Facts, error) {
	r.lookups.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if facts := r.tokens[token.Text()]; facts != nil && r.now().Before(facts.Expiry) {
		return facts, nil
	}
	return introspect.Inactive(), nil
}

// immediate is a source that waits for nobody.
type immediate struct{ introspect.Source }

func (immediate) Immediate() bool { return true }

// factsOf returns facts that name their token, so that it shows if they end up with another.
func factsOf(token string, expiry time.Time) *introspect.Facts {
	return &introspect.Facts{
		Active: true, ID: introspect.IDOf(token), ClientID: "client of " + token, Subject: "client of " + token,
		Scopes: []string{"read", "write"}, Audience: []string{"api"}, Expiry: expiry,
	}
}

// clocks are the two clocks of a cache. They stand still until they are moved.
type clocks struct {
	wall    atomic.Int64 // nanoseconds after start
	elapsed atomic.Int64
}

var start = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func (c *clocks) now() time.Time { return start.Add(time.Duration(c.wall.Load())) }

func (c *clocks) config() introspect.CacheConfig {
	return introspect.CacheConfig{Now: c.now, Elapsed: func() time.Duration { return time.Duration(c.elapsed.Load()) }}
}

func (c *clocks) advance(d time.Duration) {
	c.wall.Add(int64(d))
	c.elapsed.Add(int64(d))
}

func newCache(t testing.TB, cfg introspect.CacheConfig) *introspect.Cache {
	t.Helper()
	c, err := introspect.NewCache(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// active looks a token up and reports whether it is good. An error fails the test.
func active(t testing.TB, s *introspect.CachedSource, token string) bool {
	t.Helper()
	facts, err := s.Lookup(context.Background(), token)
	if err != nil {
		t.Errorf("looking up %q: %v", token, err)
		return false
	}
	if facts.Active && facts.ID != introspect.IDOf(token) {
		t.Errorf("looking up %q returned the facts of %s", token, facts.ClientID)
	}
	return facts.Active
}

// warm makes sure that the cache holds the token.
func warm(t testing.TB, c *introspect.Cache, s *introspect.CachedSource, token string) {
	t.Helper()
	if !active(t, s, token) {
		t.Errorf("token %q is not active", token)
	}
	c.Wait()
	if _, held := s.Held(token); !held {
		t.Errorf("the cache does not hold %q", token)
	}
}

// While others keep filling the cache, no lookup after a Forget finds the token active.
func TestARevokedTokenIsDeadAtOnce(t *testing.T) {
	rounds := 10_000
	if testing.Short() {
		rounds = 1000
	}
	reg := newRegistry(time.Now)
	cache := newCache(t, introspect.CacheConfig{MaxTokens: 1000})
	src := cache.Wrap("reg", reg, time.Minute)

	var current atomic.Pointer[string]
	first := "token"
	current.Store(&first)
	stop := make(chan struct{})
	var fillers sync.WaitGroup
	for range 2 {
		fillers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					active(t, src, *current.Load())
					runtime.Gosched() // hits never block, and there are few processors
				}
			}
		})
	}
	alive := 0
	for i := range rounds {
		token := fmt.Sprintf("token %d", i)
		reg.issue(token, time.Now().Add(time.Hour))
		current.Store(&token)
		if !active(t, src, token) {
			t.Fatalf("round %d: a token that was just issued is not active", i)
		}
		reg.revoke(token)
		src.Forget(introspect.IDOf(token))
		if active(t, src, token) {
			alive++
		}
	}
	close(stop)
	fillers.Wait()
	if alive != 0 {
		t.Errorf("%d of %d lookups after a revocation found the token active", alive, rounds)
	}
}

// gate is a source that asks another source and then waits, so that the answer is old when it
// arrives.
type gate struct {
	introspect.Source
	open chan struct{}
	held atomic.Int64 // answers that wait
}

func (g *gate) Lookup(ctx context.Context, token introspect.Token) (*introspect.Facts, error) {
	facts, err := g.Source.Lookup(ctx, token)
	g.held.Add(1)
	select {
	case <-g.open:
		return facts, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// A lookup that read the store before the revocation, and ends after it, does not bring the
// token back.
func TestALateAnswerDoesNotResurrect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, end := range []struct {
			name   string
			forget func(*introspect.Cache, *introspect.CachedSource)
		}{
			{"Forget", func(_ *introspect.Cache, s *introspect.CachedSource) { s.Forget(introspect.IDOf("token")) }},
			{"Flush", func(c *introspect.Cache, _ *introspect.CachedSource) { c.Flush() }},
		} {
			cache := newCache(t, introspect.CacheConfig{})
			reg := newRegistry(time.Now)
			reg.issue("token", time.Now().Add(time.Hour))
			slow := &gate{Source: reg, open: make(chan struct{})}
			src := cache.Wrap("reg", slow, time.Minute)

			go active(t, src, "token") // began before the revocation, so either answer is right
			synctest.Wait()
			if slow.held.Load() != 1 {
				t.Fatalf("%s: the lookup has not reached the source", end.name)
			}
			reg.revoke("token")
			end.forget(cache, src)
			close(slow.open)
			synctest.Wait()
			cache.Wait()
			for range 100 {
				if active(t, src, "token") {
					t.Fatalf("%s: the token is active %v after its revocation", end.name, time.Since(start))
				}
				time.Sleep(time.Second)
			}
		}
	})
}

// A caller that comes after the revocation does not share the answer of a lookup that began
// before it.
func TestALateJoinerAsksAnew(t *testing.T) {
	for _, flush := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			cache := newCache(t, introspect.CacheConfig{})
			reg := newRegistry(time.Now)
			reg.issue("token", time.Now().Add(time.Hour))
			slow := &gate{Source: reg, open: make(chan struct{})}
			src := cache.Wrap("reg", slow, time.Minute)

			go active(t, src, "token")
			synctest.Wait()
			reg.revoke("token")
			if flush {
				cache.Flush()
			} else {
				src.Forget(introspect.IDOf("token"))
			}
			var alive atomic.Int64
			for range 10 {
				go func() {
					if active(t, src, "token") {
						alive.Add(1)
					}
				}()
			}
			synctest.Wait()
			if n := slow.held.Load(); n != 1 {
				t.Fatalf("%d lookups are at the source, want only the first, with the others waiting for it", n)
			}
			close(slow.open)
			synctest.Wait()
			if n := alive.Load(); n != 0 {
				t.Errorf("%d of 10 lookups that began after the revocation found the token active", n)
			}
		})
	}
}

// slowlyTold hears of revocations elsewhere, and its answers wait.
type slowlyTold struct {
	gate
	src *told
}

func (s *slowlyTold) Coherent() bool { return s.src.Coherent() }

// A caller does not share the answer to an earlier question about a token that was revoked elsewhere
// in between, although the news comes late: while the source is not coherent, or when it is again.
// While nothing has happened, the answer is shared.
func TestALateJoinerOfWhatWasRevokedElsewhere(t *testing.T) {
	for _, c := range []struct {
		name    string
		revoked bool
		news    func(src *told, cache *introspect.Cache) // what comes while callers wait for the first answer
		alive   int64
		shared  bool // the answer to the first question
	}{
		{"not coherent", true, func(src *told, _ *introspect.Cache) { src.coherent.Store(false) }, 0, false},
		{"coherent again", true, func(src *told, cache *introspect.Cache) {
			src.coherent.Store(false)
			cache.Forget("reg", introspect.IDOf("token"))
			src.coherent.Store(true)
		}, 0, false},
		{"lost and regained", true, func(_ *told, cache *introspect.Cache) { cache.Flush() }, 0, false},
		{"nothing revoked, not coherent", false, func(src *told, _ *introspect.Cache) { src.coherent.Store(false) }, 10, false},
		{"nothing revoked", false, func(*told, *introspect.Cache) {}, 10, true},
	} {
		for _, maxAge := range []time.Duration{time.Minute, 0} {
			t.Run(fmt.Sprintf("%s, max age %v", c.name, maxAge), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					cache := newCache(t, introspect.CacheConfig{})
					src := &told{registry: newRegistry(time.Now)}
					src.coherent.Store(true)
					src.issue("token", time.Now().Add(time.Hour))
					slow := &slowlyTold{gate{Source: src, open: make(chan struct{})}, src}
					cached := cache.Wrap("reg", slow, maxAge)

					go active(t, cached, "token")
					synctest.Wait() // it has its answer, which is on its way
					if c.revoked {
						src.revoke("token")
					}
					time.Sleep(time.Second)
					var alive atomic.Int64
					for range 10 {
						go func() {
							if active(t, cached, "token") {
								alive.Add(1)
							}
						}()
					}
					synctest.Wait()
					c.news(src, cache)
					close(slow.open)
					synctest.Wait()
					if n := alive.Load(); n != c.alive {
						t.Errorf("%d of 10 lookups found the token active, want %d", n, c.alive)
					}
					if n := src.lookups.Load(); (n == 1) != c.shared {
						t.Errorf("the source was asked %d times; the first answer is to be shared: %t", n, c.shared)
					}
				})
			})
		}
	}
}

// No entry outlives its token, however much or little time is left, and ristretto never gets a
// ttl that means "forever" to it.
func TestTheEdgesOfATokensLife(t *testing.T) {
	for _, c := range []struct {
		name   string
		left   time.Duration
		expiry time.Time // instead of left
		active bool
	}{
		{name: "ends now", left: 0},
		{name: "ended a nanosecond ago", left: -1},
		{name: "ended long ago", left: -time.Hour},
		{name: "has no expiry", expiry: time.Time{}, left: math.MinInt64, active: true},
		{name: "has a nanosecond", left: 1, active: true},
		{name: "has less than maxAge", left: 59 * time.Second, active: true},
		{name: "has just maxAge", left: time.Minute, active: true},
		{name: "has more than a Duration holds", expiry: start.Add(time.Hour).AddDate(31_000, 0, 0), active: true},
	} {
		t.Run("a token that "+c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // so that ristretto's clock stands still too
				var clock clocks
				lookups := 0
				facts := factsOf("token", c.expiry)
				if c.expiry.IsZero() && c.left != math.MinInt64 {
					facts.Expiry = start.Add(c.left)
				}
				// It keeps saying yes: noticing the expiry is the cache's job.
				src := sourceFunc(func(context.Context, string) (*introspect.Facts, error) { lookups++; return facts, nil })
				cache := newCache(t, clock.config())
				s := cache.Wrap("src", src, time.Minute)

				if got := active(t, s, "token"); got != c.active {
					t.Fatalf("active is %v, want %v", got, c.active)
				}
				cache.Wait()
				ttl, held := s.Held("token")
				if !c.active && held {
					t.Errorf("a negative answer is held for %v", ttl)
				}
				if c.active && (!held || ttl <= 0 || ttl > time.Minute) {
					t.Errorf("held: %v, for %v; want more than 0 and at most a minute", held, ttl)
				}
				if !c.active {
					return
				}
				if active(t, s, "token"); lookups != 1 {
					t.Errorf("the source was asked %d times at the same moment, want 1", lookups)
				}
				// At the very end of the token's life, or of maxAge, the entry no longer counts.
				end, alive := min(time.Minute, facts.Expiry.Sub(start)), facts.Expiry.After(start.Add(time.Minute))
				if facts.Expiry.IsZero() {
					end, alive = 30*time.Second, true // MaxAgeNoExpiry
				}
				clock.advance(end - 1)
				if active(t, s, "token"); lookups != 1 {
					t.Errorf("the source was asked %d times a nanosecond before the end, want 1", lookups)
				}
				clock.advance(1)
				if got := active(t, s, "token"); got != alive || lookups != 2 {
					t.Errorf("at the end: active %v, want %v; the source was asked %d times, want 2", got, alive, lookups)
				}
			})
		})
	}
}

// A maxAge near the maximum of its type does not keep an entry forever.
func TestAHugeMaxAge(t *testing.T) {
	var clock clocks
	clock.elapsed.Store(int64(time.Hour))
	reg := newRegistry(clock.now)
	reg.issue("token", start.AddDate(31_000, 0, 0))
	cache := newCache(t, clock.config())
	s := cache.Wrap("reg", reg, math.MaxInt64)
	for range 2 {
		if !active(t, s, "token") {
			t.Error("the token is not active")
		}
		cache.Wait()
	}
	if ttl, held := s.Held("token"); held && ttl <= 0 {
		t.Errorf("ristretto was given a ttl of %v, which keeps the entry forever", ttl)
	}
}

// An entry counts only while both clocks allow it: the wall clock, which can be set, and the
// elapsed time, which may stand still while the machine sleeps.
func TestClocksThatJump(t *testing.T) {
	for _, c := range []struct {
		name          string
		wall, elapsed time.Duration
		hit, active   bool
	}{
		{"nothing moves", 0, 0, true, true},
		{"the wall clock is set back", -time.Hour, 0, true, true},
		{"the wall clock is set back and the token's lifetime passes", -time.Hour, 10 * time.Minute, false, true},
		{"the wall clock is set back and almost all of the token's lifetime passes", -time.Hour, 10*time.Minute - 1, true, true},
		{"the machine sleeps past the token's life", time.Hour, 0, false, false},
		{"the machine sleeps up to the token's last moment", 10 * time.Minute, 0, false, false},
		{"the machine sleeps for a while", 9 * time.Minute, 0, true, true},
		{"the wall clock stands still and the token's lifetime passes", 0, 10 * time.Minute, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var clock clocks
			reg := newRegistry(clock.now)
			reg.issue("token", start.Add(10*time.Minute))
			cache := newCache(t, clock.config())
			s := cache.Wrap("reg", reg, time.Hour)
			warm(t, cache, s, "token")
			clock.wall.Add(int64(c.wall))
			clock.elapsed.Add(int64(c.elapsed))
			if got := active(t, s, "token"); got != c.active {
				t.Errorf("active is %v, want %v", got, c.active)
			}
			if hit := reg.lookups.Load() == 1; hit != c.hit {
				t.Errorf("answered from the cache: %v, want %v", hit, c.hit)
			}
		})
	}
}

// A token may be revoked elsewhere while the machine sleeps, so facts age by the wall clock
// too.
func TestMaxAgeAfterASleep(t *testing.T) {
	for name, expiry := range map[string]time.Time{"with an expiry": start.Add(24 * time.Hour), "without": {}} {
		var clock clocks
		asked := 0
		cache := newCache(t, clock.config())
		s := cache.Wrap("reg", sourceFunc(func(_ context.Context, token string) (*introspect.Facts, error) {
			asked++
			return factsOf(token, expiry), nil
		}), 20*time.Second)
		warm(t, cache, s, "token")
		clock.wall.Add(int64(20*time.Second - 1))
		active(t, s, "token")
		if asked != 1 {
			t.Errorf("%s: asked %d times within the maximum age, want 1", name, asked)
		}
		clock.wall.Add(1)
		active(t, s, "token")
		if asked != 2 {
			t.Errorf("%s: asked %d times after sleeping for the maximum age, want 2", name, asked)
		}
	}
}

// A reading of the system clock contains two. If both operands of a comparison have it, the
// monotonic one is compared, which stands still during a sleep.
func TestASleepIsSeenByTheWallClock(t *testing.T) {
	cache := newCache(t, introspect.CacheConfig{})
	for name, cfg := range map[string]introspect.SourceConfig{"without an expiry": {MaxAge: time.Minute}, "in an outage": {MaxAge: time.Minute, StaleFor: time.Hour}} {
		var expiry time.Time
		if cfg.StaleFor > 0 {
			expiry = time.Unix(time.Now().Unix()+86400, 0)
		}
		s := cache.WrapWith(name, sourceFunc(func(_ context.Context, token string) (*introspect.Facts, error) {
			return factsOf(token, expiry), nil
		}), cfg)
		active(t, s, "token")
		if until := s.Until("token"); until != until.Round(0) {
			t.Errorf("%s: an entry counts until %v, by the monotonic clock", name, until)
		}
	}
}

// A "no" is not remembered: a token that turns up later, here or from another node, is good at
// once.
func TestNoIsNeverRemembered(t *testing.T) {
	reg, other := newRegistry(time.Now), newRegistry(time.Now)
	cache := newCache(t, introspect.CacheConfig{})
	s, wrong := cache.Wrap("reg", reg, time.Minute), cache.Wrap("other", other, time.Minute)
	for range 3 {
		if active(t, s, "token") || active(t, wrong, "token") {
			t.Fatal("an unknown token is active")
		}
	}
	cache.Wait()
	if _, held := s.Held("token"); held {
		t.Error("the cache holds a negative answer")
	}
	reg.issue("token", time.Now().Add(time.Hour))
	if active(t, wrong, "token") {
		t.Error("another source's token is active")
	}
	if !active(t, s, "token") {
		t.Error("a token that was asked about before it was issued is not active afterwards")
	}
	cache.Wait()
	if active(t, wrong, "token") {
		t.Error("another source's token is active once it is cached")
	}
}

// screened is a registry that recognizes its own tokens by their form.
type screened struct{ *registry }

func (screened) Screen(token introspect.Token) (introspect.Token, bool) {
	return token, strings.HasPrefix(token.Text(), "hot ")
}

// A flood of random tokens neither evicts those in use nor fills memory. If tokens can be
// recognized by computation, it does not even reach the source.
func TestAFloodOfRandomTokens(t *testing.T) {
	for _, c := range []struct {
		name     string
		screened bool
		flood    int
	}{{"screened", true, 200_000}, {"unscreened", false, 50_000}} {
		t.Run(c.name, func(t *testing.T) {
			reg := newRegistry(time.Now)
			var src introspect.Source = reg
			if c.screened {
				src = screened{reg}
			}
			cache := newCache(t, introspect.CacheConfig{MaxTokens: 1500})
			s := cache.Wrap("reg", src, time.Hour)
			hot := make([]string, 1000)
			for i := range hot {
				hot[i] = fmt.Sprintf("hot %d", i)
				reg.issue(hot[i], time.Now().Add(time.Hour))
				active(t, s, hot[i])
			}
			cache.Wait()
			for _, token := range hot {
				active(t, s, token)
			}
			reg.lookups.Store(0)
			before := heap()
			for i := range c.flood {
				if active(t, s, fmt.Sprintf("random %d", i)) {
					t.Fatal("a random token is active")
				}
			}
			grown := heap() - before
			if asked := reg.lookups.Swap(0); c.screened && asked != 0 {
				t.Errorf("the source was asked %d times", asked)
			}
			for _, token := range hot {
				if !active(t, s, token) {
					t.Errorf("%q is not active", token)
				}
			}
			if misses := reg.lookups.Load(); misses > 100 {
				t.Errorf("%d of 1000 tokens in use were evicted, want at most 100", misses)
			}
			if grown > 32<<20 {
				t.Errorf("memory grew by %d MiB, want less than 32", grown>>20)
			}
		})
	}
}

// A flood of many different good tokens does not fill memory either.
func TestAFloodOfGoodTokensHasABoundInMemory(t *testing.T) {
	src := sourceFunc(func(_ context.Context, token string) (*introspect.Facts, error) {
		return factsOf(token, time.Now().Add(time.Hour)), nil
	})
	var evicted atomic.Int64
	cache := newCache(t, introspect.CacheConfig{MaxTokens: 1000, OnEvict: func() { evicted.Add(1) }})
	s := cache.Wrap("src", src, time.Hour)
	before := heap()
	for i := range 30_000 {
		active(t, s, fmt.Sprint(i))
	}
	cache.Wait()
	if grown := heap() - before; grown > 8<<20 {
		t.Errorf("memory grew by %d MiB", grown>>20)
	}
	held := 0
	for i := range 30_000 {
		if _, ok := s.Held(fmt.Sprint(i)); ok {
			held++
		}
	}
	if held > 1000 {
		t.Errorf("%d tokens are held, want at most 1000", held)
	}
	if evicted.Load() == 0 {
		t.Error("entries made room for others, but OnEvict was not called")
	}
	n := evicted.Load()
	cache.Close()
	if evicted.Load() != n {
		t.Error("Close counted its entries as evicted")
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// The concurrent lookups are bounded for each source, and a source that hangs takes no places
// of another. A caller that gets no place is told to try again, and cached tokens are not
// affected.
func TestLookupsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := introspect.CacheConfig{MaxLookups: 4, LookupTimeout: 2 * time.Second}
		cache := newCache(t, cfg)
		reg := newRegistry(time.Now)
		reg.issue("hot", time.Now().Add(time.Hour))
		var under, most atomic.Int64
		slow := sourceFunc(func(ctx context.Context, token string) (*introspect.Facts, error) {
			if token == "hot" {
				return reg.Lookup(ctx, introspect.NewToken(token))
			}
			most.Store(max(most.Load(), under.Add(1))) // a lost update does no harm: the bound is generous
			defer under.Add(-1)
			<-ctx.Done()
			return nil, ctx.Err()
		})
		a, b := cache.Wrap("a", slow, time.Minute), cache.Wrap("b", slow, time.Minute)
		warm(t, cache, a, "hot")

		var busy, late atomic.Int64
		begun := time.Now()
		for i := range 100 {
			s := a
			if i%2 == 0 {
				s = b
			}
			go func() {
				_, err := s.Lookup(context.Background(), fmt.Sprint(i))
				switch {
				case errors.Is(err, introspect.ErrBusy):
					busy.Add(1)
				case errors.Is(err, context.DeadlineExceeded):
					late.Add(1)
				default:
					t.Errorf("token %d: %v", i, err)
				}
			}()
		}
		synctest.Wait()
		if a.UnderWay() != 4 || b.UnderWay() != 4 {
			t.Errorf("%d and %d lookups are under way, want 4 in each source", a.UnderWay(), b.UnderWay())
		}
		for range 100 {
			if !active(t, a, "hot") {
				t.Error("a cached token is not active while lookups hang")
			}
		}
		if waited := time.Since(begun); waited != 0 {
			t.Errorf("cached tokens waited %v for the others", waited)
		}
		time.Sleep(cfg.LookupTimeout)
		synctest.Wait()
		if busy.Load()+late.Load() != 100 || late.Load() < 8 {
			t.Errorf("%d were refused and %d timed out; want 100 in total, at least 8 of them timed out", busy.Load(), late.Load())
		}
		if most.Load() > 8 {
			t.Errorf("the sources were asked %d questions at once, want at most 8", most.Load())
		}
	})
}

// Tokens with equal hashes each keep their own facts, and forgetting one does not break the
// others.
func TestHashesThatCollide(t *testing.T) {
	reg := newRegistry(time.Now)
	cache := newCache(t, introspect.WithHash(introspect.CacheConfig{}, func([]byte) uint64 { return 7 }))
	s := cache.Wrap("reg", reg, time.Minute)
	const tokens = 50
	for i := range tokens {
		reg.issue(fmt.Sprint(i), time.Now().Add(time.Hour))
	}
	var workers sync.WaitGroup
	for w := range 4 {
		workers.Go(func() {
			for i := range 2000 {
				token := (i*(w+1) + w) % tokens
				if !active(t, s, fmt.Sprint(token)) { // which also checks whose facts they are
					t.Errorf("token %d is not active", token)
					return
				}
				if i%100 == w {
					s.Forget(introspect.IDOf(fmt.Sprint((token + 1) % tokens)))
				}
			}
		})
	}
	workers.Wait()

	reg.revoke("1")
	s.Forget(introspect.IDOf("1"))
	for i := range tokens {
		if got, want := active(t, s, fmt.Sprint(i)), i != 1; got != want {
			t.Errorf("after token 1 was revoked, token %d is active: %v, want %v", i, got, want)
		}
	}
}

// narrowing is a source that checks facts against a rule of its own, which may change.
type narrowing struct {
	*registry
	scopes atomic.Pointer[[]string] // what may remain; nil: everything
	off    atomic.Bool
}

func (n *narrowing) Revise(facts *introspect.Facts) *introspect.Facts {
	if n.off.Load() {
		return introspect.Inactive()
	}
	allowed := n.scopes.Load()
	if allowed == nil {
		return facts
	}
	revised := *facts
	revised.Scopes = nil
	for _, scope := range facts.Scopes {
		if slices.Contains(*allowed, scope) {
			revised.Scopes = append(revised.Scopes, scope)
		}
	}
	return &revised
}

// The cache holds facts. What they amount to is judged for each answer, cached or fresh, and
// the judgement is not remembered.
func TestReviseIsAppliedToEveryAnswer(t *testing.T) {
	for name, maxAge := range map[string]time.Duration{"cache on": time.Minute, "cache off": 0} {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(time.Now)
			original := reg.issue("token", time.Now().Add(time.Hour))
			src, strict := &narrowing{registry: reg}, &narrowing{registry: reg}
			strict.scopes.Store(&[]string{"read"})
			cache := newCache(t, introspect.CacheConfig{})
			// Two configurations that share their entries.
			s, s2 := cache.Wrap("reg", src, maxAge), cache.Wrap("reg", strict, maxAge)
			scopes := func(s *introspect.CachedSource) string {
				t.Helper()
				facts, err := s.Lookup(context.Background(), "token")
				if err != nil {
					t.Fatal(err)
				}
				cache.Wait()
				return fmt.Sprint(facts.Active, facts.Scopes)
			}
			expect := func(what, got, want string) {
				t.Helper()
				if got != want {
					t.Errorf("%s: %s, want %s", what, got, want)
				}
			}
			expect("fresh, under the strict rule", scopes(s2), "true [read]")
			expect("warm, under the other", scopes(s), "true [read write]")
			expect("warm, under the strict rule", scopes(s2), "true [read]")
			src.scopes.Store(&[]string{"write"})
			expect("narrowed", scopes(s), "true [write]")
			src.off.Store(true)
			expect("disabled", scopes(s), "false []")
			src.off.Store(false)
			src.scopes.Store(nil)
			expect("as at first", scopes(s), "true [read write]")
			if !slices.Equal(original.Scopes, []string{"read", "write"}) {
				t.Error("Revise changed the facts themselves")
			}
			if asked := reg.lookups.Load(); maxAge > 0 && asked != 1 {
				t.Errorf("the source was asked %d times, want 1", asked)
			}
		})
	}
}

// Two sources have nothing in common, even if their tokens are the same string and are looked
// up at the same time.
func TestSourcesDoNotMix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cache := newCache(t, introspect.CacheConfig{})
		good, bad := newRegistry(time.Now), newRegistry(time.Now)
		good.issue("token", time.Now().Add(time.Hour))
		slow := &gate{Source: good, open: make(chan struct{})}
		a, b := cache.Wrap("a", slow, time.Minute), cache.Wrap("b", bad, time.Minute)
		go active(t, a, "token")
		synctest.Wait()
		if active(t, b, "token") { // would wait forever if it joined the lookup in a
			t.Error("cold: a token of source a is active in source b")
		}
		close(slow.open)
		synctest.Wait()
		warm(t, cache, a, "token")
		if active(t, b, "token") {
			t.Error("warm: a token of source a is active in source b")
		}
		b.Forget(introspect.IDOf("token"))
		if _, held := a.Held("token"); !held {
			t.Error("forgetting in source b removed the entry of source a")
		}
	})
}

// Different lists of parts make different names, wherever the parts begin and end.
func TestCacheNamesAreUnambiguous(t *testing.T) {
	names := map[string][]string{}
	for _, parts := range [][]string{
		nil, {""}, {"", ""}, {"abc"}, {"a", "bc"}, {"ab", "c"}, {"", "abc"}, {"abc", ""}, {"a", "b", "c"},
		{"\x01a"}, {"a\x01b"}, {"\x00"}, {"\x00", ""}, {strings.Repeat("x", 128)}, {strings.Repeat("x", 127), "x"},
	} {
		name := introspect.CacheName(parts...)
		if other, taken := names[name]; taken {
			t.Errorf("%q and %q make the same name", parts, other)
		}
		names[name] = parts
	}
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.OneOf(rapid.StringN(0, 3, -1), rapid.StringMatching(`[\x00-\x03ab]{0,3}`), rapid.StringMatching(`x{125,131}`))
		a, b := rapid.SliceOfN(part, 0, 4).Draw(t, "a"), rapid.SliceOfN(part, 0, 4).Draw(t, "b")
		if !slices.Equal(a, b) && introspect.CacheName(a...) == introspect.CacheName(b...) {
			t.Fatalf("%q and %q make the same name", a, b)
		}
	})
}

// A guess that starts like a good token is treated like every other bad token: one question to
// the source, the same answer, no entry.
func TestGuessesAllLookAlike(t *testing.T) {
	reg := newRegistry(time.Now)
	good := strings.Repeat("t", 40)
	reg.issue(good, time.Now().Add(time.Hour))
	reg.issue("revoked", time.Now().Add(time.Hour))
	cache := newCache(t, introspect.CacheConfig{})
	s := cache.Wrap("reg", reg, time.Minute)
	warm(t, cache, s, good)
	warm(t, cache, s, "revoked")
	reg.revoke("revoked")
	s.Forget(introspect.IDOf("revoked"))
	for _, guess := range []string{"", "x", good[:39], good[:39] + "u", good + "t", good + "\x00", "revoked"} {
		reg.lookups.Store(0)
		facts, err := s.Lookup(context.Background(), guess)
		if err != nil || facts != introspect.Inactive() {
			t.Errorf("%q: %+v, %v; want the shared inactive facts", guess, facts, err)
		}
		cache.Wait()
		if _, held := s.Held(guess); held || reg.lookups.Load() != 1 {
			t.Errorf("%q: held: %v, and the source was asked %d times, want once", guess, held, reg.lookups.Load())
		}
	}
}

// A source that hangs holds its callers for a bounded time, and a bounded number of goroutines,
// which end when it comes back.
func TestASlowSource(t *testing.T) {
	for _, c := range []struct {
		name  string
		obeys bool
		wait  time.Duration
	}{{"that obeys its deadline", true, 2 * time.Second}, {"that ignores its deadline", false, 4 * time.Second}} {
		t.Run(c.name, func(t *testing.T) {
			// The bubble ends when all its goroutines have ended, so a leak fails the test.
			synctest.Test(t, func(t *testing.T) {
				cache := newCache(t, introspect.CacheConfig{MaxLookups: 8})
				src := sourceFunc(func(ctx context.Context, _ string) (*introspect.Facts, error) {
					var deadline <-chan struct{}
					if c.obeys {
						deadline = ctx.Done()
					}
					select {
					case <-deadline:
						return nil, ctx.Err()
					case <-time.After(30 * time.Second):
						return nil, errors.New("the source is unwell")
					}
				})
				s := cache.Wrap("src", src, time.Minute)
				// Half of them ask about one token, the others about many.
				for wave := range 3 {
					var callers sync.WaitGroup
					begun := time.Now()
					for i := range 200 {
						callers.Go(func() {
							_, err := s.Lookup(context.Background(), fmt.Sprint(max(0, i-100)))
							if err == nil {
								t.Error("a lookup that could not be made returned no error")
							}
							if waited := time.Since(begun); waited > c.wait {
								t.Errorf("a caller waited %v, want at most %v", waited, c.wait)
							}
						})
					}
					callers.Wait()
					synctest.Wait()
					if left := lookingUp(); left > 8 {
						t.Errorf("wave %d left %d goroutines, want at most MaxLookups, 8", wave, left)
					}
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if left := lookingUp(); left > 0 {
					t.Errorf("%d goroutines are left after the source came back", left)
				}
			})
		})
	}
}

// lookingUp counts the goroutines that ask a source.
func lookingUp() int {
	stacks := make([]byte, 4<<20)
	return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "(*CachedSource).fill(")
}

// A caller's own deadline is kept too.
func TestACallersDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cache := newCache(t, introspect.CacheConfig{})
		s := cache.Wrap("src", &gateForever{}, time.Minute)
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		begun := time.Now()
		_, err := s.Lookup(ctx, "token")
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != 300*time.Millisecond {
			t.Errorf("after %v: %v; want the deadline's error after 300ms", time.Since(begun), err)
		}
		time.Sleep(time.Minute)
	})
}

type gateForever struct{}

func (*gateForever) Lookup(ctx context.Context, _ introspect.Token) (*introspect.Facts, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// Many callers asking about one token cause one lookup, and if the first of them hangs up,
// nobody else fails.
func TestManyAskOnce(t *testing.T) {
	for name, maxAge := range map[string]time.Duration{"cache on": time.Minute, "cache off": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cache := newCache(t, introspect.CacheConfig{})
				reg := newRegistry(time.Now)
				reg.issue("token", time.Now().Add(time.Hour))
				slow := &gate{Source: reg, open: make(chan struct{})}
				s := cache.Wrap("reg", slow, maxAge)

				ctx, hangUp := context.WithCancel(context.Background())
				var leader atomic.Pointer[error]
				go func() {
					_, err := s.Lookup(ctx, "token")
					leader.Store(&err)
				}()
				synctest.Wait()
				var good atomic.Int64
				for range 499 {
					go func() {
						if active(t, s, "token") {
							good.Add(1)
						}
					}()
				}
				synctest.Wait()
				hangUp()
				synctest.Wait()
				if err := leader.Load(); err == nil || !errors.Is(*err, context.Canceled) {
					t.Error("the caller that hung up still waits, or got an error that is not its own")
				}
				close(slow.open)
				synctest.Wait()
				if good.Load() != 499 {
					t.Errorf("%d of the 499 others got their answer", good.Load())
				}
				if n := reg.lookups.Load(); n != 1 {
					t.Errorf("500 callers caused %d lookups, want 1", n)
				}
			})
		})
	}
}

// A caller that looked into the cache before the answer was there, but asks only afterwards,
// does not ask again.
func TestWhoLookedTooEarlyDoesNotAskAgain(t *testing.T) {
	clock := new(clocks)
	cfg := clock.config()
	var misses atomic.Int64
	looked, goOn := make(chan struct{}), make(chan struct{})
	cfg.OnMiss = func() { // called between looking and asking
		if misses.Add(1) == 2 {
			close(looked)
			<-goOn
		}
	}
	c := newCache(t, cfg)
	auth := newRegistry(clock.now)
	auth.issue("token", start.Add(time.Hour))
	asked, answer := make(chan struct{}, 2), make(chan struct{})
	s := c.Wrap("auth", sourceFunc(func(ctx context.Context, token string) (*introspect.Facts, error) {
		asked <- struct{}{}
		<-answer
		return auth.Lookup(ctx, introspect.NewToken(token))
	}), time.Minute)

	var callers sync.WaitGroup
	var first sync.WaitGroup
	first.Go(func() { active(t, s, "token") })
	<-asked
	callers.Go(func() {
		if !active(t, s, "token") {
			t.Error("the second caller is refused")
		}
	})
	<-looked
	close(answer)
	first.Wait()
	clock.advance(time.Second)
	close(goOn)
	callers.Wait()
	if n := auth.lookups.Load(); n != 1 {
		t.Errorf("the source was asked %d times", n)
	}
}

// Errors are not cached.
func TestErrorsAreNotRemembered(t *testing.T) {
	cache := newCache(t, introspect.CacheConfig{})
	outage := errors.New("the source is down")
	answers := []func() (*introspect.Facts, error){
		func() (*introspect.Facts, error) { return nil, outage },
		func() (*introspect.Facts, error) { return nil, nil },
		func() (*introspect.Facts, error) { panic("a bug") },
		func() (*introspect.Facts, error) { return factsOf("token", time.Now().Add(time.Hour)), nil },
	}
	next := 0
	s := cache.Wrap("src", sourceFunc(func(context.Context, string) (*introspect.Facts, error) {
		next++
		return answers[next-1]()
	}), time.Minute)
	for i := range 3 {
		facts, err := s.Lookup(context.Background(), "token")
		if facts != nil || err == nil || i == 0 && !errors.Is(err, outage) {
			t.Errorf("failure %d: %+v, %v", i, facts, err)
		}
	}
	if !active(t, s, "token") {
		t.Error("the token is not active after the failures")
	}
	if s.UnderWay() != 0 {
		t.Error("a failed lookup kept its place")
	}
}

// A panic in a source is an error for those who asked about that token, and for nobody else.
func TestAPanicIsOneLookupsFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cache := newCache(t, introspect.CacheConfig{})
		open := make(chan struct{})
		s := cache.Wrap("src", sourceFunc(func(_ context.Context, token string) (*introspect.Facts, error) {
			<-open
			if token == "bad" {
				panic("a bug")
			}
			return factsOf(token, time.Now().Add(time.Hour)), nil
		}), time.Minute)
		var failed, good atomic.Int64
		for i := range 20 {
			go func() {
				token := []string{"good", "bad"}[i%2]
				facts, err := s.Lookup(context.Background(), token)
				switch {
				case token == "bad" && err != nil && facts == nil:
					failed.Add(1)
				case token == "good" && err == nil && facts.Active:
					good.Add(1)
				}
			}()
		}
		synctest.Wait()
		close(open)
		synctest.Wait()
		if failed.Load() != 10 || good.Load() != 10 {
			t.Errorf("%d of 10 failed and %d of 10 were good", failed.Load(), good.Load())
		}
	})
}

// Close in the middle of heavy traffic causes no panic, and lookups end with their answer or
// with ErrClosed.
func TestCloseDuringHeavyTraffic(t *testing.T) {
	for range 10 {
		reg := newRegistry(time.Now)
		for i := range 200 {
			reg.issue(fmt.Sprint(i), time.Now().Add(time.Hour))
		}
		cache := newCache(t, introspect.CacheConfig{MaxTokens: 100})
		s := cache.Wrap("reg", reg, time.Minute)
		var traffic sync.WaitGroup
		var begun sync.WaitGroup
		for w := range 4 {
			begun.Add(1)
			traffic.Go(func() {
				for i := range 1000 {
					if i == 50 {
						begun.Done()
					}
					token := fmt.Sprint((i + 50*w) % 200)
					switch i % 50 {
					case 0:
						s.Forget(introspect.IDOf(token))
					case 1:
						cache.Resize(int64(50+i%100), 0)
					case 2:
						cache.Flush()
					default:
						facts, err := s.Lookup(context.Background(), token)
						if err != nil && !errors.Is(err, introspect.ErrClosed) || err == nil && !facts.Active {
							t.Errorf("token %s: %+v, %v", token, facts, err)
							return
						}
					}
				}
			})
		}
		begun.Wait()
		var closers sync.WaitGroup
		for range 2 {
			closers.Go(cache.Close)
		}
		closers.Wait()
		asked := reg.lookups.Load()
		traffic.Wait()
		if _, err := s.Lookup(context.Background(), "1"); !errors.Is(err, introspect.ErrClosed) {
			t.Fatalf("a lookup after Close: %v, want ErrClosed", err)
		}
		// Those under way when Close was called may still have asked: one for each worker.
		if late := reg.lookups.Load() - asked; late > 4 {
			t.Fatalf("the source was asked %d times after Close", late)
		}
	}
}

// A lookup that is under way when the cache is closed still gets its answer.
func TestCloseLetsLookupsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cache := newCache(t, introspect.CacheConfig{})
		reg := newRegistry(time.Now)
		reg.issue("token", time.Now().Add(time.Hour))
		slow := &gate{Source: reg, open: make(chan struct{})}
		s := cache.Wrap("reg", slow, time.Minute)
		var good atomic.Bool
		go func() { good.Store(active(t, s, "token")) }()
		synctest.Wait()
		cache.Close()
		close(slow.open)
		synctest.Wait()
		if !good.Load() {
			t.Error("the lookup that was under way got no answer")
		}
	})
}

// Nobody writes to facts once they have been returned. The race detector would notice.
func TestFactsAreSharedAndNotChanged(t *testing.T) {
	reg := newRegistry(time.Now)
	original := reg.issue("token", time.Now().Add(time.Hour))
	want := fmt.Sprintf("%+v", *original)
	src := &narrowing{registry: reg}
	src.scopes.Store(&[]string{"read"})
	cache := newCache(t, introspect.CacheConfig{})
	s := cache.Wrap("reg", src, time.Minute)
	var readers sync.WaitGroup
	for w := range 8 {
		readers.Go(func() {
			for i := range 500 {
				facts, err := s.Lookup(context.Background(), "token")
				if err != nil || !facts.HasScope("read") || facts.HasScope("write") || !facts.HasAudience("api") {
					t.Errorf("%+v, %v", facts, err)
					return
				}
				if i%50 == w {
					s.Forget(facts.ID)
				}
			}
		})
	}
	readers.Wait()
	if got := fmt.Sprintf("%+v", *original); got != want {
		t.Errorf("the facts are now %s, were %s", got, want)
	}
}

// The answers are the same with a cache, with a tiny one, and with none. Several caches are led
// through the same random story and must agree with what is true.
func TestTheCacheDoesNotShow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var clock clocks
		reg := newRegistry(clock.now)
		var sources []*introspect.CachedSource
		var caches []*introspect.Cache
		for _, c := range []struct {
			tokens int64
			maxAge time.Duration
		}{{100, time.Hour}, {1, time.Hour}, {100, time.Nanosecond}, {100, 0}, {100, -1}} {
			cfg := clock.config()
			cfg.MaxTokens = c.tokens
			cache, err := introspect.NewCache(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer cache.Close()
			caches = append(caches, cache)
			sources = append(sources, cache.Wrap("reg", reg, c.maxAge))
		}
		token := rapid.StringMatching(`[a-e]`)
		t.Repeat(map[string]func(*rapid.T){
			"issue": func(t *rapid.T) {
				name := token.Draw(t, "token")
				if reg.tokens[name] != nil {
					t.Skip("tokens are unique")
				}
				reg.issue(name, clock.now().Add(time.Duration(rapid.IntRange(1, 100).Draw(t, "seconds"))*time.Second))
				for _, s := range sources {
					s.Forget(introspect.IDOf(name)) // a token of that name may have been revoked; real tokens never come back
				}
			},
			"revoke": func(t *rapid.T) {
				name := token.Draw(t, "token")
				reg.revoke(name)
				for _, s := range sources {
					s.Forget(introspect.IDOf(name))
				}
			},
			"time passes": func(t *rapid.T) {
				clock.advance(time.Duration(rapid.Int64Range(1, int64(40*time.Second)).Draw(t, "time")))
			},
			"flush": func(*rapid.T) {
				for _, c := range caches {
					c.Flush()
				}
			},
			"look up": func(t *rapid.T) {
				name := token.Draw(t, "token")
				want, _ := reg.Lookup(context.Background(), introspect.NewToken(name))
				for i, s := range sources {
					got, err := s.Lookup(context.Background(), name)
					if err != nil || got != want {
						t.Fatalf("cache %d says %+v, %v; the truth is %+v", i, got, err, want)
					}
					caches[i].Wait()
				}
			},
		})
	})
}

// After a flush, entries stop counting at once, and later ones count again.
func TestFlush(t *testing.T) {
	reg := newRegistry(time.Now)
	cache := newCache(t, introspect.CacheConfig{})
	s := cache.Wrap("reg", reg, time.Minute)
	reg.issue("token", time.Now().Add(time.Hour))
	warm(t, cache, s, "token")
	reg.revoke("token") // without a Forget, so that only the flush can reveal it
	if !active(t, s, "token") {
		t.Error("the token was not cached")
	}
	cache.Flush()
	if active(t, s, "token") {
		t.Error("the old answer is still given after a flush")
	}
	reg.issue("token", time.Now().Add(time.Hour))
	warm(t, cache, s, "token")
	reg.lookups.Store(0)
	if active(t, s, "token"); reg.lookups.Load() != 0 {
		t.Error("nothing is remembered any more after a flush")
	}
}

// The bound on tokens can change while the cache is in use.
func TestResize(t *testing.T) {
	src := sourceFunc(func(_ context.Context, token string) (*introspect.Facts, error) {
		return factsOf(token, time.Now().Add(time.Hour)), nil
	})
	cache := newCache(t, introspect.CacheConfig{MaxTokens: 1000})
	s := cache.Wrap("src", src, time.Hour)
	next := 0
	fill := func(n int) {
		for range n {
			active(t, s, fmt.Sprint(next))
			next++
			cache.Wait()
		}
	}
	held := func() (n int) {
		for i := range next {
			if _, ok := s.Held(fmt.Sprint(i)); ok {
				n++
			}
		}
		return n
	}
	fill(1000)
	n := held()
	if n < 900 || n > 1000 {
		t.Errorf("%d tokens are held, want about 1000", n)
	}
	// A token may be held beside ristretto alone, for a moment, and is not counted then.
	if length := cache.Len(); length > n || length < 900 {
		t.Errorf("it says that %d tokens are held, and %d are", length, n)
	}
	cache.Resize(10, 0)
	fill(100)
	if n := held(); n > 10 {
		t.Errorf("%d tokens are held, want at most 10", n)
	}
	cache.Resize(500, 0)
	fill(490)
	if n := held(); n < 400 || n > 500 {
		t.Errorf("%d tokens are held, want about 500", n)
	}
	before := held()
	cache.Resize(500, 0)
	if n := held(); n != before {
		t.Errorf("%d of %d tokens are left although nothing changed", n, before)
	}
	cache.Resize(5000, 1<<20)
	fill(5000)
	if n := held(); n < 900 || n > 1500 { // of 0.7 KiB each
		t.Errorf("%d tokens are held in 1 MiB, want about 1300", n)
	}
}

// What the cache holds is bounded in bytes, however much a token says: 25 MiB of claims take no
// more than MaxSize, including the latest entries. A token that was just looked up is cached,
// unless it says very much.
func TestCacheIsBoundedInBytes(t *testing.T) {
	const size = 4 << 20
	for _, c := range []struct {
		name   string
		tokens int
		claim  string
	}{
		{"five thousand tokens with 5 KiB of claims", 5000, `"` + strings.Repeat("x", 5<<10) + `"`},
		{"150 with 64 KiB of {}", 150, "[" + strings.Repeat("{},", 21_000) + "0]"},
		{"tokens as small as they can be", 10_000, "0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked := 0
			remote := newRemote(t, remoteConfig("https://as.example"))
			s := newCache(t, introspect.CacheConfig{MaxSize: size}).Wrap("src", sourceFunc(func(_ context.Context, token string) (*introspect.Facts, error) {
				asked++
				facts, err := remote.Understand([]byte(`{"active":true,"client_id":"` + token + `","sub":"` + token + `","x":` + c.claim + `}`))
				facts.ID = introspect.IDOf(token)
				return facts, err
			}), time.Hour)
			before := heap()
			for i := range c.tokens {
				for range 2 {
					if !active(t, s, fmt.Sprint(i)) {
						t.Fatal("inactive")
					}
				}
			}
			// ristretto's counters exist before, and its maps need room to grow.
			if grown := heap() - before; grown > size+size/4 {
				t.Errorf("the cache grew by %d bytes, want at most about %d", grown, size)
			}
			if asked > c.tokens && len(c.claim) < 8<<10 {
				t.Errorf("the source was asked %d times about %d tokens", asked, c.tokens)
			}
			runtime.KeepAlive(s)
		})
	}
}

// A token that would evict too many others is not kept, nor is what was known before it grew.
// A token that grows counts with its new size.
func TestLargeTokens(t *testing.T) {
	const size = 1 << 20
	claims := 0
	asked := 0
	src := sourceFunc(func(_ context.Context, token string) (*introspect.Facts, error) {
		asked++
		facts := factsOf(token, time.Now().Add(time.Hour))
		facts.Claims = `{"x":"` + strings.Repeat("x", claims) + `"}`
		return facts, nil
	})
	cache := newCache(t, introspect.CacheConfig{MaxSize: size})
	s := cache.Wrap("src", src, time.Hour)
	for _, c := range []struct {
		claims int
		kept   bool
	}{{1 << 10, true}, {100 << 10, true}, {64 << 10, true}, {200 << 10, false}, {2, true}, {2 << 20, false}} {
		claims, asked = c.claims, 0
		if _, err := s.LookupWithin(context.Background(), new(introspect.NewToken("token")), 0); err != nil { // asks again
			t.Fatal(err)
		}
		active(t, s, "token")
		if kept := asked == 1; kept != c.kept {
			t.Errorf("with %d bytes of claims the source was asked %d times, want it to be cached: %v", c.claims, asked, c.kept)
		}
	}

	// An answer that is too large replaces the one just before it, which the cache may not have
	// finished storing.
	for i := range 500 {
		token := fmt.Sprint("token", i)
		for _, claims = range []int{2, 2 << 20} {
			if _, err := s.LookupWithin(context.Background(), new(introspect.NewToken(token)), 0); err != nil {
				t.Fatal(err)
			}
		}
		asked, claims = 0, 2
		if active(t, s, token); asked != 1 {
			t.Fatal("an older answer came back")
		}
	}

	// Small ones come first, then each of them grows.
	before := heap()
	for _, claims = range []int{2, 50 << 10} {
		for i := range 500 {
			if _, err := s.LookupWithin(context.Background(), new(introspect.NewToken(fmt.Sprint(i))), 0); err != nil {
				t.Fatal(err)
			}
			cache.Wait()
		}
	}
	if grown := heap() - before; grown > size+size/4 {
		t.Errorf("tokens that grew take %d bytes, want at most about %d", grown, size)
	}
	runtime.KeepAlive(cache)
}

// A caller may insist on facts that are fresher than the source's own maximum age, but can't
// get older ones.
func TestMaxAgeOfACaller(t *testing.T) {
	var clock clocks
	reg := newRegistry(clock.now)
	reg.issue("token", start.Add(time.Hour))
	cache := newCache(t, clock.config())
	s := cache.Wrap("reg", reg, time.Minute)
	lookups := func(maxAge time.Duration) int64 {
		t.Helper()
		reg.lookups.Store(0)
		facts, err := s.LookupWithin(context.Background(), new(introspect.NewToken("token")), maxAge)
		if err != nil || !facts.Active {
			t.Errorf("%+v, %v", facts, err)
		}
		cache.Wait()
		return reg.lookups.Load()
	}
	warm(t, cache, s, "token")
	clock.advance(10 * time.Second)
	for _, c := range []struct {
		maxAge time.Duration
		want   int64
	}{{11 * time.Second, 0}, {time.Hour, 0}, {10 * time.Second, 1}, {10 * time.Second, 0}, {1, 0}, {0, 1}, {-1, 1}} {
		if got := lookups(c.maxAge); got != c.want {
			t.Errorf("a caller that accepts %v caused %d lookups, want %d", c.maxAge, got, c.want)
		}
	}
	clock.advance(time.Minute)
	if got := lookups(time.Hour); got != 1 {
		t.Errorf("beyond the source's own maximum age, a patient caller caused %d lookups, want 1", got)
	}
}

// Two sources of the same name share their entries, so that entries outlive a configuration. A
// source that turned the cache off takes nothing from it.
func TestEntriesAreSharedUnderOneName(t *testing.T) {
	old, next, off := newRegistry(time.Now), newRegistry(time.Now), newRegistry(time.Now)
	facts := old.issue("token", time.Now().Add(time.Hour))
	next.tokens, off.tokens = old.tokens, old.tokens
	cache := newCache(t, introspect.CacheConfig{})
	a, b, c := cache.Wrap("reg", old, time.Minute), cache.Wrap("reg", next, time.Minute), cache.Wrap("reg", off, 0)
	warm(t, cache, a, "token")
	if got, err := b.Lookup(context.Background(), "token"); got != facts || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if next.lookups.Load() != 0 {
		t.Error("the second source was asked about a token that the first had cached")
	}
	if active(t, c, "token"); off.lookups.Load() != 1 {
		t.Error("a source that turned the cache off was not asked")
	}
	old.revoke("token") // they share the map
	b.Forget(introspect.IDOf("token"))
	if active(t, a, "token") || active(t, b, "token") || active(t, c, "token") {
		t.Error("after one of them forgot the token, another still has it")
	}
}

// Hits and misses are counted correctly.
func TestHitsAndMissesAreCounted(t *testing.T) {
	var hits, misses atomic.Int64
	reg := newRegistry(time.Now)
	reg.issue("hot a", time.Now().Add(time.Hour))
	cache := newCache(t, introspect.CacheConfig{OnHit: func() { hits.Add(1) }, OnMiss: func() { misses.Add(1) }})
	s := cache.Wrap("reg", screened{reg}, time.Minute)
	warm(t, cache, s, "hot a")  // a miss
	active(t, s, "hot a")       // a hit
	active(t, s, "hot unknown") // a miss
	active(t, s, "garbage")     // neither: no lookup was worthwhile
	if hits.Load() != 1 || misses.Load() != 2 {
		t.Errorf("%d hits and %d misses, want 1 and 2", hits.Load(), misses.Load())
	}
}

// An ID reveals nothing about its token, and two spellings are two tokens.
func TestIDs(t *testing.T) {
	if a, b := introspect.IDOf("token"), introspect.IDOf("token "); a == b {
		t.Error("two spellings have the same ID")
	}
	long := strings.Repeat("x", 1000)
	if introspect.IDOf(long) == introspect.IDOf(long[:999]) {
		t.Error("two long tokens have the same ID")
	}
	const want = "3c469e9d6c5875d37a43f353d4f88e61fcf812c66eee3457465a40b0da4153e0" // printf token | sha256sum
	if got := introspect.IDOf("token").String(); got != want {
		t.Errorf("the ID is %s, want %s", got, want)
	}
}

// Between the store's "gone" and the end of the revocation, no lookup may go back to what the
// cache still holds: one would find the token dead, and the next one alive.
func TestARevocationUnderWayAsksTheSource(t *testing.T) {
	reg := newRegistry(time.Now)
	c := newCache(t, introspect.CacheConfig{})
	s := c.Wrap("registry", reg, time.Minute)
	for _, token := range []string{"revoked", "other"} {
		reg.issue(token, time.Now().Add(time.Hour))
		warm(t, c, s, token)
	}
	first, second := s.Revoking(introspect.IDOf("revoked")), s.Revoking(introspect.IDOf("revoked"))
	reg.revoke("revoked")
	if active(t, s, "revoked") {
		t.Error("the cache was believed during the token's revocation")
	}
	first()
	if active(t, s, "revoked") {
		t.Error("the cache was believed during the token's second revocation")
	}
	second()
	if active(t, s, "revoked") {
		t.Error("the token is active after its revocation")
	}
	// A revocation that came to nothing leaves a token that can be cached again.
	s.Revoking(introspect.IDOf("other"))()
	warm(t, c, s, "other")
	before := reg.lookups.Load()
	if !active(t, s, "other") || reg.lookups.Load() != before {
		t.Error("after a revocation that came to nothing, the cache does not answer")
	}
}

// A source that waits for nobody is asked by each caller for itself. Its answers are kept like all
// others, and a revocation, a panic and the end of the cache or of the caller count as always.
func TestImmediate(t *testing.T) {
	reg := newRegistry(time.Now)
	cache := newCache(t, introspect.CacheConfig{})
	during := func() {}
	s := cache.Wrap("reg", immediate{sourceFunc(func(ctx context.Context, token string) (*introspect.Facts, error) {
		if _, limited := ctx.Deadline(); limited {
			t.Error("the caller's context has got a deadline")
		}
		facts, err := reg.Lookup(ctx, introspect.NewToken(token))
		during()
		return facts, err
	})}, time.Hour)
	reg.issue("token", time.Now().Add(time.Hour))
	lookups := func(want int64, good bool) {
		t.Helper()
		if got := active(t, s, "token"); got != good || reg.lookups.Load() != want {
			t.Errorf("active is %t after %d lookups, want %t after %d", got, reg.lookups.Load(), good, want)
		}
	}
	lookups(1, true)
	lookups(1, true)

	s.Forget(introspect.IDOf("token"))
	// What was found before a revocation must not be remembered after it.
	during = func() {
		done := s.Revoking(introspect.IDOf("token"))
		reg.revoke("token")
		done()
	}
	lookups(2, true)
	during = func() {}
	lookups(3, false)

	// Callers meet in the source, so none of them waits for another.
	reg.issue("token", time.Now().Add(time.Hour))
	var inside, all sync.WaitGroup
	inside.Add(2)
	during = func() { inside.Done(); inside.Wait() }
	for range 2 {
		all.Go(func() {
			if !active(t, s, "token") {
				t.Error("inactive")
			}
		})
	}
	all.Wait()

	s.Forget(introspect.IDOf("token"))
	during = func() { panic("the store is broken") }
	if _, err := s.Lookup(t.Context(), "token"); err == nil || !strings.Contains(err.Error(), "panicked") {
		t.Errorf("a panic: %v", err)
	}
	during = func() { t.Error("the source was asked") }
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Lookup(gone, "token"); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that has gone away: %v", err)
	}
	cache.Close()
	if _, err := s.Lookup(t.Context(), "token"); !errors.Is(err, introspect.ErrClosed) {
		t.Errorf("a closed cache: %v", err)
	}
}
