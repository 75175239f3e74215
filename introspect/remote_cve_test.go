package introspect_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// Mistakes that others made with introspection and its cache. Each test shows that one of them is
// not made here.

// cached puts a cache in front of a remote source, with everything that it can remember.
func cached(t *testing.T, cache *introspect.Cache, remote *introspect.Remote) *introspect.CachedSource {
	t.Helper()
	return cache.WrapWith(remote.Name(), remote, introspect.SourceConfig{MaxAge: 5 * time.Minute, NegativeAge: introspect.DefaultNegativeAge, StaleFor: time.Hour})
}

// Oathkeeper: a cached token skipped the scope check of the next rule. Here the cache holds all
// that the token says, and every caller judges for itself.
func TestCVE_2021_32701_ScopesAreJudgedOnEveryHit(t *testing.T) {
	server := newAuthServer(t, says(`{"active":true,"scope":"read","aud":"a"}`))
	cache := newCache(t, introspect.CacheConfig{})
	s := cached(t, cache, newRemote(t, remoteConfig(server.URL)))
	warm(t, cache, s, remoteToken)
	for _, route := range []struct {
		scope, audience string
		allowed         bool
	}{{"read", "a", true}, {"admin", "a", false}, {"read", "b", false}, {"read", "a", true}} {
		facts, err := s.Lookup(t.Context(), remoteToken)
		if err != nil {
			t.Fatal(err)
		}
		if got := facts.Active && facts.HasScope(route.scope) && facts.HasAudience(route.audience); got != route.allowed {
			t.Errorf("%+v: allowed is %v", route, got)
		}
	}
	if n := server.asked.Load(); n != 1 {
		t.Errorf("the server was asked %d times, want 1: these are not hits", n)
	}
}

// Oathkeeper: the cache key lacked the endpoint's URL, so a token of one server was good where
// those of another were wanted. A "no" must not travel either.
func TestCVE_2026_33496_TheKeyCoversTheEndpoint(t *testing.T) {
	yes, no := newAuthServer(t, says(`{"active":true}`)), newAuthServer(t, says(`{"active":false}`))
	for name, yesFirst := range map[string]bool{"yes first": true, "no first": false} {
		t.Run(name, func(t *testing.T) {
			cache := newCache(t, introspect.CacheConfig{})
			good, bad := cached(t, cache, newRemote(t, remoteConfig(yes.URL))), cached(t, cache, newRemote(t, remoteConfig(no.URL)))
			for range 3 {
				for _, first := range []bool{yesFirst, !yesFirst} {
					if first != active(t, map[bool]*introspect.CachedSource{true: good, false: bad}[first], remoteToken) {
						t.Errorf("got the other server's answer, want %v", first)
					}
				}
			}
		})
	}
}

// Traefik: the key of a shared lookup was a concatenation, so two callers whose parts joined to the
// same text got each other's identity.
func TestCVE_2026_71326_SharedLookupsDoNotSwapIdentities(t *testing.T) {
	// The server answers once all have begun, so that they are under way at the same time.
	var begun sync.WaitGroup
	server := newAuthServer(t, func(w http.ResponseWriter, r *http.Request) {
		begun.Wait()
		says(fmt.Sprintf(`{"active":true,"sub":%q}`, r.URL.Path+" "+r.PostFormValue("token")))(w, r)
	})
	cache := newCache(t, introspect.CacheConfig{})
	var all sync.WaitGroup
	ready := make(chan struct{})
	begun.Add(60)
	for i := range 60 {
		path, token := []string{"/a", "/ab", "/abc"}[i%3], []string{"bcd", "cd", "d"}[i%3]
		cfg := remoteConfig(server.URL)
		cfg.URL = server.URL + path
		s := cached(t, cache, newRemote(t, cfg))
		all.Go(func() {
			<-ready
			begun.Done()
			facts, err := s.Lookup(t.Context(), token)
			if err != nil || facts.Subject != path+" "+token {
				t.Errorf("%s %s got %+v, %v", path, token, facts, err)
			}
		})
	}
	close(ready)
	all.Wait()
	if n := server.asked.Load(); n > 20 {
		t.Errorf("the server was asked %d times: nothing was shared", n)
	}
}

// mod_oauth2 and liboauth2, until 2026-06-03: a cache with one lifetime for all entries kept using
// expired tokens. So did nginx's demo, and during an outage for as long as it lasted.
func TestCWE_613_NoTokenOutlivesItsExpiry(t *testing.T) {
	var clock clocks
	server := newAuthServer(t, says(`{"active":true,"exp":`+at(start.Add(3*time.Second))+`}`))
	cfg := remoteConfig(server.URL)
	cfg.Now = clock.now
	cache := newCache(t, clock.config())
	s := cached(t, cache, newRemote(t, cfg))
	warm(t, cache, s, remoteToken)
	clock.advance(3*time.Second - 1)
	if !active(t, s, remoteToken) || server.asked.Load() != 1 {
		t.Error("before its expiry, the token is not good from the cache")
	}
	clock.advance(1)
	server.answers(status(503))
	if facts, err := s.Lookup(t.Context(), remoteToken); err == nil {
		t.Errorf("in an outage, at its expiry, active is %v", facts.Active)
	}
	server.answers(says(`{"active":true,"exp":` + at(start.Add(3*time.Second)) + `}`)) // it keeps saying yes
	if active(t, s, remoteToken) {
		t.Error("the token is active at its expiry, because the server says so")
	}
}

// Traefik: the answer was read without a limit.
func TestCVE_2026_26998_AnswersHaveABound(t *testing.T) {
	var sent atomic.Int64
	ended := make(chan struct{})
	server := newAuthServer(t, func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"active":true,"x":"`)
		chunk := make([]byte, 64<<10)
		for sent.Load() < 1<<30 {
			n, err := w.Write(chunk)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	cfg := remoteConfig(server.URL)
	cfg.Timeout = 20 * time.Second
	facts, err := newRemote(t, cfg).Lookup(t.Context(), introspect.NewToken(remoteToken))
	if kind := kindOf(t, facts, err); kind != "too_large" {
		t.Errorf("%s: %v", kind, err)
	}
	<-ended
	if n := sent.Load(); n > 64<<20 { // no more than what the kernel buffers for a connection
		t.Errorf("%d MiB were read", n>>20)
	}
}

// heimdall #3452: checks made on a fresh answer were not made on a cached one. Cached facts are the
// same here, and an issuer that one configuration refuses is refused there even if another has
// filled the cache.
func TestHeimdall3452_HitsAreCheckedLikeFreshAnswers(t *testing.T) {
	server := newAuthServer(t, says(`{"active":true,"iss":"https://other.example","aud":["a"],"scope":"read","exp":`+at(time.Now().Add(time.Hour))+`}`))
	cache := newCache(t, introspect.CacheConfig{})
	lenient := cached(t, cache, newRemote(t, remoteConfig(server.URL)))
	cfg := remoteConfig(server.URL)
	cfg.Issuer = "https://issuer.example"
	strict := cached(t, cache, newRemote(t, cfg))

	fresh, err := lenient.Lookup(t.Context(), remoteToken)
	if err != nil {
		t.Fatal(err)
	}
	cache.Wait()
	hit, err := lenient.Lookup(t.Context(), remoteToken)
	if err != nil || hit != fresh || hit.Issuer != "https://other.example" || !slices.Equal(hit.Audience, []string{"a"}) {
		t.Errorf("fresh %+v, cached %+v, %v", fresh, hit, err)
	}
	if active(t, strict, remoteToken) {
		t.Error("a token of another issuer is active from the cache")
	}
}

// heimdall #3445: the lifetime of a stricter route was ignored for an entry that a laxer route had
// filled.
func TestHeimdall3445_TheReadersAgeCounts(t *testing.T) {
	var clock clocks
	server := newAuthServer(t, says(`{"active":true}`))
	cfg := remoteConfig(server.URL)
	cfg.Now = clock.now
	cache := newCache(t, clock.config())
	s := cached(t, cache, newRemote(t, cfg))
	warm(t, cache, s, remoteToken)
	server.answers(says(`{"active":false}`))
	clock.advance(2 * time.Second)
	if !active(t, s, remoteToken) {
		t.Error("the laxer route does not use the cache")
	}
	if facts, err := s.LookupWithin(t.Context(), new(introspect.NewToken(remoteToken)), time.Second); err != nil || facts.Active {
		t.Errorf("the stricter route: %+v, %v", facts, err)
	}
	server.answers(status(500))
	if facts, err := s.LookupWithin(t.Context(), new(introspect.NewToken(remoteToken)), 0); err == nil {
		t.Errorf("the strictest route, in an outage: %+v", facts)
	}
}

// Oathkeeper: "500ms" was multiplied by a millisecond and became 138 hours, so that nothing ended a
// request to a server that hangs.
func TestOathkeeperTimeoutIsInItsUnit(t *testing.T) {
	server := newAuthServer(t, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	for _, timeout := range []time.Duration{500 * time.Millisecond, 0} {
		want := timeout
		if want == 0 {
			want = 2 * time.Second
		}
		cfg := remoteConfig(server.URL)
		cfg.Timeout = timeout
		begin := time.Now()
		facts, err := newRemote(t, cfg).Lookup(context.Background(), introspect.NewToken(remoteToken))
		if kind, took := kindOf(t, facts, err), time.Since(begin); kind != "timeout" || took < want || took > want+20*time.Second {
			t.Errorf("timeout %v: %s after %v", timeout, kind, took)
		}
	}
}

// Oathkeeper #1167: a busy server made good tokens bad, because 429 became 401.
func TestOathkeeper1167_ThrottledIsNotNo(t *testing.T) {
	server := newAuthServer(t, status(429, "Retry-After", "1"))
	var clock clocks
	cfg := remoteConfig(server.URL)
	cfg.Now = clock.now
	cache := newCache(t, clock.config())
	s := cached(t, cache, newRemote(t, cfg))
	facts, err := s.Lookup(t.Context(), remoteToken)
	var remote *introspect.RemoteError
	if kind := kindOf(t, facts, err); kind != "throttled" || !errors.As(err, &remote) || remote.RetryAfter != time.Second {
		t.Errorf("%s: %v", kind, err)
	}
	server.answers(says(`{"active":true}`))
	clock.advance(time.Second)
	if !active(t, s, remoteToken) {
		t.Error("the token is not good a second later")
	}
}

// nginx's demo: an error served what the cache had, and an "active" that was a boolean, as in the
// RFC, was taken for a "no".
func TestNginxDemo_AnErrorIsNotYes(t *testing.T) {
	var clock clocks
	server := newAuthServer(t, says(`{"active":true}`))
	cfg := remoteConfig(server.URL)
	cfg.Now = clock.now
	remote := newRemote(t, cfg)
	cache := newCache(t, clock.config())
	s := cache.Wrap(remote.Name(), remote, 10*time.Second)
	warm(t, cache, s, remoteToken)
	server.answers(status(500))
	clock.advance(10 * time.Second)
	facts, err := s.Lookup(t.Context(), remoteToken)
	if kind := kindOf(t, facts, err); kind != "status" {
		t.Errorf("%s: %v", kind, err)
	}
}

// Kong: a "no" was remembered forever, so that a token that was tried before it was issued never
// became good, and random tokens filled the memory that all share. For that, see
// TestAFloodOfNegatives.
func TestKong_NegativesEnd(t *testing.T) {
	var clock clocks
	server := newAuthServer(t, says(`{"active":false}`))
	cfg := remoteConfig(server.URL)
	cfg.Now = clock.now
	s := cached(t, newCache(t, clock.config()), newRemote(t, cfg))
	for range 100 {
		if active(t, s, remoteToken) {
			t.Fatal("active")
		}
	}
	if n := server.asked.Load(); n != 1 {
		t.Errorf("100 requests with a dead token caused %d questions, want 1", n)
	}
	server.answers(says(`{"active":true}`))
	clock.advance(introspect.DefaultNegativeAge)
	if !active(t, s, remoteToken) {
		t.Error("the no has not expired")
	}
}
