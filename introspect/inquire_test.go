package introspect_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// askable is a registry that can be asked without a trace.
type askable struct {
	*outage
	inquiries int
}

func (a *askable) Inquire(_ context.Context, token introspect.Token) (*introspect.Facts, error) {
	a.inquiries++
	if a.down.Load() {
		return nil, errDown
	}
	facts, err := a.registry.Lookup(context.Background(), token)
	a.lookups.Add(-1)
	return facts, err
}

// Inquire answers as a lookup would, and leaves the cache, its counts and the source as they are.
func TestInquireLeavesNoTrace(t *testing.T) {
	hits, misses := 0, 0
	r := newRemembering(t, introspect.SourceConfig{MaxAge: time.Minute, NegativeAge: time.Minute, StaleFor: time.Hour}, func(c *introspect.CacheConfig) {
		c.OnHit, c.OnMiss = func() { hits++ }, func() { misses++ }
	})
	source := &askable{outage: r.reg}
	r.CachedSource = r.cache.WrapWith("askable", source, introspect.SourceConfig{MaxAge: time.Minute, NegativeAge: time.Minute, StaleFor: time.Hour, OnStale: func() { r.stale++ }})
	expiry := start.Add(2 * time.Hour)
	r.reg.issue("good", expiry)
	inquire := func(token string, want string, inquiries int) {
		t.Helper()
		source.inquiries, hits, misses = 0, 0, 0
		r.reg.lookups.Store(0)
		asked := 0
		facts, err := r.Inquire(context.Background(), new(introspect.NewToken(token)), math.MaxInt64, func() { asked++ })
		got := "no"
		switch {
		case err != nil:
			got = "error"
		case facts.Active:
			got = "yes"
		}
		if got != want || source.inquiries != inquiries || asked != inquiries || hits+misses != 0 || r.reg.lookups.Load() != 0 {
			t.Errorf("%s: %s, %v after %d inquiries, announced %d, counted %d and %d", token, got, err, source.inquiries, asked, hits, misses)
		}
	}
	for range 2 { // nothing is remembered
		inquire("good", "yes", 1)
		inquire("bad", "no", 1)
	}
	r.expect("the first lookup asks", "good", "yes", 1)
	r.expect("and so does that of a bad token", "bad", "no", 1)
	inquire("good", "yes", 0)
	inquire("bad", "no", 0)
	if _, ok := r.Known(new(introspect.NewToken("good")), math.MaxInt64); !ok || hits != 0 {
		t.Errorf("a cached token is known: %v, after %d hits", ok, hits)
	}
	if _, ok := r.Known(new(introspect.NewToken("bad")), math.MaxInt64); ok {
		t.Error("a bad token is known")
	}
	r.clock.advance(2 * time.Minute)
	r.reg.down.Store(true)
	inquire("good", "yes", 1) // stale
	inquire("bad", "error", 1)
	if r.stale != 0 {
		t.Errorf("%d stale answers were counted", r.stale)
	}
	r.reg.down.Store(false)
	r.expect("what was refreshed only looks like it", "good", "yes", 1)

	deaf := newRemembering(t, introspect.SourceConfig{MaxAge: time.Minute})
	deaf.reg.issue("good", expiry)
	if _, err := deaf.Inquire(context.Background(), new(introspect.NewToken("good")), math.MaxInt64, func() { t.Error("nobody is asked") }); !errors.Is(err, introspect.ErrNotAsked) || deaf.reg.lookups.Load() != 0 {
		t.Errorf("a source that can't be asked so: %v", err)
	}
}

// A server is asked about a token and isn't judged by that.
func TestInquiringARemoteServerLeavesNoTrace(t *testing.T) {
	server := newAuthServer(t, says(`{"active":true,"client_id":"c","exp":4102444800}`))
	requests := 0
	cfg := remoteConfig(server.URL)
	cfg.MaxFailures = 1
	cfg.OnRequest = func(string, time.Duration) { requests++ }
	r := newRemote(t, cfg)
	if facts, err := r.Inquire(t.Context(), introspect.NewToken(remoteToken)); err != nil || !facts.Active {
		t.Errorf("%+v %v", facts, err)
	}
	if err := r.LastError(); err != nil {
		t.Errorf("nothing was sent, and it says %v", err)
	}
	server.answers(status(503))
	for range 3 {
		if _, err := r.Inquire(t.Context(), introspect.NewToken(remoteToken)); err == nil {
			t.Errorf("an outage: %v", err)
		}
	}
	if !r.Available() || requests != 0 || server.asked.Load() != 4 {
		t.Errorf("available %v after %d questions, of which %d were reported", r.Available(), server.asked.Load(), requests)
	}
	if _, err := r.Lookup(t.Context(), introspect.NewToken(remoteToken)); err == nil || r.Available() {
		t.Errorf("a lookup judges it: %v", err)
	}
	if err := r.LastError(); err == nil || !strings.HasSuffix(err.Error(), ": status (503)") {
		t.Errorf("the last error is %v", err)
	}
	asked := server.asked.Load()
	if _, err := r.Inquire(t.Context(), introspect.NewToken(remoteToken)); err == nil || server.asked.Load() != asked {
		t.Errorf("a server that is left alone was asked: %v", err)
	}
	if facts, err := r.Inquire(t.Context(), introspect.NewToken("no token")); err != nil || facts.Cause() != introspect.CauseMalformed {
		t.Errorf("%+v %v", facts, err)
	}
}

// A JWT is verified with the keys that are there. None are fetched.
func TestInquiringAboutAJWTFetchesNoKeys(t *testing.T) {
	key, other := keyFor("ES256"), keyFor("ES256")
	server := newKeyServer(t, jwks(key.jwk(claims{"kid": "known"})))
	j := newJWT(t, jwtSettings{JWKSURI: server.URL})
	token := key.token(claims{"alg": "ES256", "typ": "at+jwt", "kid": "known"}.json(), goodClaims().json())
	if !mayPass(t, j, token) {
		t.Fatal("the token is not good")
	}
	fetched := server.requests.Load()
	if facts, err := j.Inquire(t.Context(), introspect.NewToken(token)); err != nil || !facts.Active {
		t.Errorf("%+v %v", facts, err)
	}
	unknown := other.token(claims{"alg": "ES256", "typ": "at+jwt", "kid": "other"}.json(), goodClaims().json())
	if _, err := j.Inquire(t.Context(), introspect.NewToken(unknown)); !errors.Is(err, introspect.ErrNotAsked) {
		t.Errorf("an unknown key: %v", err)
	}
	if facts, err := j.Inquire(t.Context(), introspect.NewToken("x.y.z")); err != nil || facts.Active {
		t.Errorf("no JWT: %+v %v", facts, err)
	}
	if server.requests.Load() != fetched {
		t.Error("keys were fetched")
	}
}
