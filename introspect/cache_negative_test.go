package introspect_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// outage is a registry that can't be reached while it is down.
type outage struct {
	*registry
	down atomic.Bool
}

var errDown = fmt.Errorf("the registry does not answer: %w", introspect.ErrOutage)

func (o *outage) Lookup(ctx context.Context, token introspect.Token) (*introspect.Facts, error) {
	facts, err := o.registry.Lookup(ctx, token)
	if o.down.Load() {
		return nil, errDown
	}
	return facts, err
}

// remembering is a cache in front of a registry, with clocks that stand still.
type remembering struct {
	*introspect.CachedSource
	t     *testing.T
	clock clocks
	cache *introspect.Cache
	reg   *outage
	stale int
}

func newRemembering(t *testing.T, cfg introspect.SourceConfig, config ...func(*introspect.CacheConfig)) *remembering {
	r := &remembering{t: t}
	c := r.clock.config()
	for _, change := range config {
		change(&c)
	}
	r.reg = &outage{registry: newRegistry(r.clock.now)}
	r.cache = newCache(t, c)
	cfg.OnStale = func() { r.stale++ }
	r.CachedSource = r.cache.WrapWith("reg", r.reg, cfg)
	return r
}

// expect looks a token up and checks the answer and how often the source was asked.
func (r *remembering) expect(what, token, want string, asked int64) {
	r.t.Helper()
	r.expectWithin(what, token, math.MaxInt64, want, asked)
}

func (r *remembering) expectWithin(what, token string, maxAge time.Duration, want string, asked int64) {
	r.t.Helper()
	r.reg.lookups.Store(0)
	facts, err := r.LookupWithin(context.Background(), new(introspect.NewToken(token)), maxAge)
	r.cache.Wait()
	got := "no"
	switch {
	case errors.Is(err, errDown):
		got = "error"
	case err != nil:
		r.t.Errorf("%s: %v", what, err)
	case facts.Active:
		got = "yes"
	}
	if n := r.reg.lookups.Load(); got != want || n != asked {
		r.t.Errorf("%s: %s after %d questions, want %s after %d", what, got, n, want, asked)
	}
}

// A "no" is remembered if configured, for as long as the source and the caller allow, and until
// it is forgotten.
func TestNoIsRememberedForAWhile(t *testing.T) {
	r := newRemembering(t, introspect.SourceConfig{MaxAge: time.Minute, NegativeAge: 5 * time.Second})
	r.expect("at first", "token", "no", 1)
	r.expect("again", "token", "no", 0)
	r.clock.advance(5*time.Second - 1)
	r.expect("at its end", "token", "no", 0)
	r.expectWithin("for a caller with a smaller maximum age", "token", 4*time.Second, "no", 1)
	r.expectWithin("for a caller that wants a fresh answer", "token", 0, "no", 1)
	r.expect("after that", "token", "no", 0)
	r.clock.advance(5 * time.Second)
	r.expect("after its end", "token", "no", 1)

	r.reg.issue("token", start.Add(time.Hour))
	r.expect("issued meanwhile", "token", "no", 0) // as documented
	for name, forget := range map[string]func(){
		"Forget":       func() { r.Forget(introspect.IDOf("token")) },
		"Cache.Forget": func() { r.cache.Forget("reg", introspect.IDOf("token")) },
		"Flush":        r.cache.Flush,
		"ForgetSource": func() { r.cache.ForgetSource("reg") },
		"ForgetClient": func() { r.cache.ForgetClient("reg", "client of token") },
	} {
		forget()
		r.expect(name, "token", "yes", 1)
		r.expect(name+", then", "token", "yes", 0)
		r.reg.revoke("token")
		forget()
		r.expect(name+", revoked", "token", "no", 1)
		r.expect(name+", revoked, then", "token", "no", 0)
		r.reg.issue("token", start.Add(time.Hour))
	}
	r.cache.ForgetSource("another")
	r.expect("after another source was forgotten", "token", "no", 0)
	r.cache.ForgetClient("reg", "another")
	r.expect("after a client was forgotten: a no does not say whose token it is", "token", "yes", 1)
	r.reg.revoke("token")
	r.Forget(introspect.IDOf("token"))
	r.expect("revoked", "token", "no", 1)
	r.reg.issue("token", start.Add(time.Hour))
	done := r.Revoking(introspect.IDOf("token"))
	r.expect("while it is being revoked", "token", "yes", 1)
	done()

	r.cache.Close()
	if _, err := r.Lookup(context.Background(), "another"); !errors.Is(err, introspect.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// An error is not remembered as a "no".
func TestAnErrorIsNotANo(t *testing.T) {
	r := newRemembering(t, introspect.SourceConfig{MaxAge: time.Minute, NegativeAge: time.Hour})
	r.reg.issue("token", start.Add(time.Hour))
	r.reg.down.Store(true)
	r.expect("down", "token", "error", 1)
	r.expect("down, again", "token", "error", 1)
	r.reg.down.Store(false)
	r.expect("back", "token", "yes", 1)
}

// A "yes" ends the "no" before it, even if ristretto then loses the facts.
func TestAYesEndsANo(t *testing.T) {
	r := newRemembering(t, introspect.SourceConfig{MaxAge: time.Minute, NegativeAge: time.Hour})
	r.expect("not issued yet", "token", "no", 1)
	r.reg.issue("token", start.Add(time.Hour))
	r.expectWithin("a caller that wants a fresh answer", "token", 0, "yes", 1)
	r.cache.Resize(1, 0) // empties it
	r.expect("others, then", "token", "yes", 1)
}

// A "no" ends the "yes" before it, even for callers that would still accept it.
func TestANoEndsAYes(t *testing.T) {
	for _, age := range []time.Duration{0, 5 * time.Second} {
		r := newRemembering(t, introspect.SourceConfig{MaxAge: time.Minute, NegativeAge: age})
		r.reg.issue("token", start.Add(time.Hour))
		r.expect("issued", "token", "yes", 1)
		r.reg.revoke("token")
		r.expect("not known yet", "token", "yes", 0)
		r.expectWithin("a caller that wants a fresh answer", "token", 0, "no", 1)
		asked := int64(1)
		if age > 0 {
			asked = 0
		}
		r.expect("others, then", "token", "no", asked)
	}
}

// A "no" from before a revocation or any other forgetting is neither remembered nor shared
// afterwards.
func TestALateNoIsNotBelieved(t *testing.T) {
	for name, forget := range map[string]func(*introspect.Cache, *introspect.CachedSource){
		"Forget":       func(_ *introspect.Cache, s *introspect.CachedSource) { s.Forget(introspect.IDOf("token")) },
		"Flush":        func(c *introspect.Cache, _ *introspect.CachedSource) { c.Flush() },
		"ForgetSource": func(c *introspect.Cache, _ *introspect.CachedSource) { c.ForgetSource("reg") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cache := newCache(t, introspect.CacheConfig{})
				reg := newRegistry(time.Now)
				slow := &gate{Source: reg, open: make(chan struct{})}
				s := cache.WrapWith("reg", slow, introspect.SourceConfig{MaxAge: time.Minute, NegativeAge: time.Minute})
				go active(t, s, "token") // reads "no", and waits
				synctest.Wait()
				reg.issue("token", time.Now().Add(time.Hour))
				forget(cache, s)
				var good atomic.Int64
				for range 5 {
					go func() {
						if active(t, s, "token") {
							good.Add(1)
						}
					}()
				}
				synctest.Wait()
				close(slow.open)
				synctest.Wait()
				if good.Load() != 5 {
					t.Errorf("%d of 5 callers that came after the call found the token good", good.Load())
				}
				if !active(t, s, "token") {
					t.Error("the late no was remembered")
				}
			})
		})
	}
}

// A flood of bad tokens evicts nothing that is in use, and the memory for it is bounded.
func TestAFloodOfNegatives(t *testing.T) {
	reg := newRegistry(time.Now)
	cache := newCache(t, introspect.CacheConfig{MaxTokens: 1500, MaxNegatives: 1000})
	s := cache.WrapWith("reg", reg, introspect.SourceConfig{MaxAge: time.Hour, NegativeAge: time.Hour})
	hot := make([]string, 1000)
	for i := range hot {
		hot[i] = fmt.Sprintf("hot %d", i)
		reg.issue(hot[i], time.Now().Add(time.Hour))
		active(t, s, hot[i])
	}
	cache.Wait()
	active(t, s, "first")
	before := heap()
	for i := range 50_000 {
		active(t, s, fmt.Sprintf("random %d", i))
	}
	if grown := heap() - before; grown > 1<<20 {
		t.Errorf("memory grew by %d KiB, want less than 1024 for 1000 negatives", grown>>10)
	}
	reg.lookups.Store(0)
	for _, token := range hot {
		if !active(t, s, token) {
			t.Errorf("%q is not active", token)
		}
	}
	if n := reg.lookups.Swap(0); n > 100 {
		t.Errorf("%d of 1000 tokens in use were evicted", n)
	}
	for i := 49_000; i < 50_000; i++ {
		active(t, s, fmt.Sprintf("random %d", i))
	}
	if n := reg.lookups.Swap(0); n != 0 {
		t.Errorf("%d of the last 1000 negatives were asked about again", n)
	}
	if active(t, s, "first"); reg.lookups.Load() != 1 {
		t.Error("the oldest negative has not made room")
	}
}

// Tokens with equal hashes each keep their own "no".
func TestNegativesThatCollide(t *testing.T) {
	r := newRemembering(t, introspect.SourceConfig{MaxAge: time.Minute, NegativeAge: time.Minute}, func(c *introspect.CacheConfig) {
		*c = introspect.WithHash(*c, func([]byte) uint64 { return 7 })
		c.MaxNegatives = 2
	})
	r.reg.issue("good", start.Add(time.Hour))
	r.reg.issue("also", start.Add(time.Hour))
	for range 3 {
		r.expect("bad", "bad", "no", 1)
		r.expect("bad, again", "bad", "no", 0)
		r.expectWithin("good", "good", 0, "yes", 1)
		r.expectWithin("also", "also", 0, "yes", 1)
	}
}

// While a source is not coherent, nothing it said is taken from memory.
func TestNegativesOfAnIncoherentSource(t *testing.T) {
	src := &told{registry: newRegistry(time.Now)}
	cache := newCache(t, introspect.CacheConfig{})
	s := cache.WrapWith("reg", src, introspect.SourceConfig{MaxAge: time.Minute, NegativeAge: time.Minute})
	for range 3 {
		active(t, s, "token")
	}
	if n := src.lookups.Load(); n != 3 {
		t.Errorf("the source was asked %d times, want 3", n)
	}
	src.coherent.Store(true)
	if active(t, s, "token"); src.lookups.Load() != 3 {
		t.Error("the latest answer is not remembered")
	}
}

type told struct {
	*registry
	coherent atomic.Bool
}

func (s *told) Coherent() bool { return s.coherent.Load() }

// While its source can't be reached, facts are good for StaleFor longer, and not a moment
// beyond that or the token's own expiry.
func TestStaleFacts(t *testing.T) {
	r := newRemembering(t, introspect.SourceConfig{MaxAge: time.Minute, StaleFor: time.Hour})
	r.reg.issue("token", start.Add(24*time.Hour))
	r.reg.issue("short", start.Add(30*time.Minute))
	r.expect("fresh", "token", "yes", 1)
	r.expect("fresh", "short", "yes", 1)
	r.reg.down.Store(true)
	r.expect("down, fresh", "token", "yes", 0)
	r.expect("down, unknown", "other", "error", 1)
	if r.stale != 0 {
		t.Errorf("OnStale was called %d times before anything was stale", r.stale)
	}
	r.clock.advance(time.Minute)
	r.expect("down, stale", "token", "yes", 1)
	r.expect("down, stale", "short", "yes", 1)
	if r.stale != 2 {
		t.Errorf("OnStale was called %d times, want 2", r.stale)
	}
	r.expectWithin("down, a caller that accepts more than their age", "token", time.Minute+1, "yes", 1)
	r.expectWithin("down, a caller that accepts less", "token", time.Minute, "error", 1)
	r.expectWithin("down, a caller that wants a fresh answer", "token", 0, "error", 1)
	r.clock.advance(29*time.Minute - 1)
	r.expect("down, almost expired", "short", "yes", 1)
	r.clock.advance(1)
	r.expect("down, expired", "short", "error", 1)
	r.clock.advance(31*time.Minute - 1)
	r.expect("down, at the end of StaleFor", "token", "yes", 1)
	r.clock.advance(1)
	r.expect("down, after StaleFor", "token", "error", 1)
	r.reg.down.Store(false)
	r.expect("back", "token", "yes", 1)
}

// StaleFor counts by the wall clock too, the only one that moves while the machine sleeps.
func TestStaleFactsAfterASleep(t *testing.T) {
	r := newRemembering(t, introspect.SourceConfig{MaxAge: time.Minute, StaleFor: time.Hour})
	r.reg.issue("token", start.Add(24*time.Hour))
	r.expect("fresh", "token", "yes", 1)
	r.reg.down.Store(true)
	r.clock.wall.Add(int64(61 * time.Minute))
	r.expect("down, after a sleep", "token", "error", 1)
}

// Without StaleFor, an outage is an error as soon as facts are older than MaxAge.
func TestStaleIsOffByDefault(t *testing.T) {
	for name, cfg := range map[string]introspect.SourceConfig{"by default": {MaxAge: time.Minute}, "if nothing is kept": {StaleFor: time.Hour}} {
		t.Run(name, func(t *testing.T) {
			r := newRemembering(t, cfg)
			r.reg.issue("token", start.Add(24*time.Hour))
			r.expect("fresh", "token", "yes", 1)
			r.reg.down.Store(true)
			r.clock.advance(time.Minute)
			r.expect("down", "token", "error", 1)
		})
	}
}

// StaleFor does not apply to facts that were forgotten or have been denied since.
func TestStaleFactsThatAreOver(t *testing.T) {
	for name, end := range map[string]func(*remembering){
		"Forget":       func(r *remembering) { r.Forget(introspect.IDOf("token")) },
		"Flush":        func(r *remembering) { r.cache.Flush() },
		"ForgetSource": func(r *remembering) { r.cache.ForgetSource("reg") },
		"ForgetClient": func(r *remembering) { r.cache.ForgetClient("reg", "client of token") },
		"Revoking":     func(r *remembering) { r.Revoking(introspect.IDOf("token")) },
		"a no": func(r *remembering) {
			r.reg.revoke("token")
			r.expect("revoked", "token", "no", 1)
		},
		"a no while another token of the shard is revoked": func(r *remembering) {
			done := r.Revoking(introspect.IDOf("token"))
			r.reg.revoke("token")
			r.expect("revoked", "token", "no", 1)
			done()
		},
	} {
		for _, negativeAge := range []time.Duration{0, time.Second} {
			t.Run(fmt.Sprint(name, negativeAge), func(t *testing.T) {
				r := newRemembering(t, introspect.SourceConfig{MaxAge: time.Minute, StaleFor: time.Hour, NegativeAge: negativeAge})
				r.reg.issue("token", start.Add(24*time.Hour))
				r.expect("fresh", "token", "yes", 1)
				r.clock.advance(2 * time.Minute)
				r.reg.down.Store(true)
				r.expect("stale", "token", "yes", 1)
				r.reg.down.Store(false)
				end(r)
				r.reg.down.Store(true)
				r.clock.advance(2 * time.Second) // the negative has expired
				r.expect("over", "token", "error", 1)
			})
		}
	}
}

// ristretto applies a write later. A "no" that comes before that still takes it back.
func TestANoTakesBackWhatIsNotApplied(t *testing.T) {
	for i := range 300 {
		clock := &clocks{}
		cfg := clock.config()
		cfg.MaxTokens = 100
		reg := &outage{registry: newRegistry(clock.now)}
		cache := newCache(t, cfg)
		s := cache.WrapWith("reg", reg, introspect.SourceConfig{MaxAge: time.Minute, StaleFor: time.Hour})
		reg.issue("token", start.Add(24*time.Hour))
		if !active(t, s, "token") {
			t.Fatal("not active")
		}
		reg.revoke("token")
		if facts, err := s.LookupWithin(context.Background(), new(introspect.NewToken("token")), 0); err != nil || facts.Active {
			t.Fatal(facts, err)
		}
		cache.Wait()
		reg.down.Store(true)
		if facts, err := s.Lookup(context.Background(), "token"); err == nil {
			t.Fatalf("round %d: after a no, in an outage, active is %v", i, facts.Active)
		}
		cache.Close()
	}
}

// A token without an expiry is kept for a short while, and StaleFor does not apply to it.
func TestFactsWithoutExpiry(t *testing.T) {
	for _, c := range []struct {
		name           string
		maxAge, config time.Duration
		kept           time.Duration
	}{
		{"by default", time.Hour, 0, 30 * time.Second},
		{"as configured", time.Hour, 10 * time.Second, 10 * time.Second},
		{"if the source's own maximum age is smaller", 7 * time.Second, 0, 7 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRemembering(t, introspect.SourceConfig{MaxAge: c.maxAge, StaleFor: time.Hour}, func(cfg *introspect.CacheConfig) { cfg.MaxAgeNoExpiry = c.config })
			src := sourceFunc(func(context.Context, string) (*introspect.Facts, error) {
				r.reg.lookups.Add(1)
				if r.reg.down.Load() {
					return nil, errDown
				}
				return factsOf("token", time.Time{}), nil
			})
			r.CachedSource = r.cache.WrapWith("src", src, introspect.SourceConfig{MaxAge: c.maxAge, StaleFor: time.Hour})
			r.expect("fresh", "token", "yes", 1)
			if ttl, held := r.Held("token"); !held || ttl <= 0 || ttl > c.kept {
				t.Errorf("held: %v, for %v", held, ttl)
			}
			r.clock.advance(c.kept - 1)
			r.expect("at the end", "token", "yes", 0)
			r.reg.down.Store(true)
			r.clock.advance(1)
			r.expect("after the end", "token", "error", 1)
			r.reg.down.Store(false)
			r.expect("asked again", "token", "yes", 1)
			r.clock.wall.Add(int64(c.kept))
			r.expect("after a sleep", "token", "yes", 1)
		})
	}
	t.Run("cache off", func(t *testing.T) {
		cache := newCache(t, introspect.CacheConfig{})
		s := cache.Wrap("src", sourceFunc(func(context.Context, string) (*introspect.Facts, error) { return factsOf("token", time.Time{}), nil }), 0)
		if !active(t, s, "token") {
			t.Error("not active")
		}
		cache.Wait()
		if _, held := s.Held("token"); held {
			t.Error("it is held")
		}
	})
}
