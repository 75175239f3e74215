package caddyoauth

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/keys"
	"github.com/caddyoauth/gateway/introspect"
)

// newAsserter returns an asserter of a realm whose keys agree has just learned.
func newAsserter(t testing.TB, algorithm string) (a *asserter, wanted keys.Wanted, agree func(*keys.Ring)) {
	t.Helper()
	realm := &servedRealm{name: "root", signing: &signing{algorithm: algorithm}}
	a = &asserter{header: "X-Oauth-Assertion", realm: realm, lifetime: 60, claims: assertionClaims{Issuer: "https://auth.example.com", Audience: "backend"}}
	return a, keys.Wanted{Algorithm: algorithm, Rotate: 24 * time.Hour, Life: time.Hour}, func(ring *keys.Ring) {
		realm.signing.assertion.Store(realm.jwtSigner(ring, typAssertion))
	}
}

// ringAt returns a ring with a signing key.
func ringAt(t testing.TB, now time.Time, w keys.Wanted) *keys.Ring {
	t.Helper()
	ring, err := keys.New("root", now, nil)
	if err != nil {
		t.Fatal(err)
	}
	return keptAt(t, ring, now, w)
}

func keptAt(t testing.TB, ring *keys.Ring, now time.Time, w keys.Wanted) *keys.Ring {
	t.Helper()
	ring, _, _, err := ring.Kept(now, w, nil)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func bearerWith(change func(*bearer)) *bearer {
	b := &bearer{realm: "root", scope: "read", facts: &introspect.Facts{Active: true, ClientID: "reader", Subject: "reader", Issuer: "https://auth.example.com"}}
	if change != nil {
		change(b)
	}
	return b
}

// textAt returns the assertion about a bearer at a time, which must be good.
func (a *asserter) textAt(t testing.TB, b *bearer, now time.Time) string {
	t.Helper()
	told, err := a.about(b, now)
	if err != nil {
		t.Fatal(err)
	}
	jwts := (*a.realm.signing.assertion.Load())(now)
	payload, ok := jwts.Verify(told.text)
	if !ok {
		t.Fatalf("the key in use has not signed %s", told.text)
	}
	var claims struct{ Iat, Exp int64 }
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	if unix := now.Unix(); claims.Iat > unix || claims.Exp <= unix && (b.facts.Expiry.IsZero() || b.facts.Expiry.Unix() > unix) || claims.Exp > unix+a.lifetime ||
		!b.facts.Expiry.IsZero() && claims.Exp > b.facts.Expiry.Unix() {
		t.Errorf("at %d, of a token that ends at %v: %s", unix, b.facts.Expiry, payload)
	}
	return told.text
}

// An assertion is used again until half of its life is over, for whomever it says the same of, and for
// nobody else.
func TestAnAssertionIsUsedAgain(t *testing.T) {
	now := time.Unix(2_000_000_000, 0)
	a, wanted, agree := newAsserter(t, keys.ES256)
	agree(ringAt(t, now, wanted))
	at := func(seconds float64, change func(*bearer)) string {
		return a.textAt(t, bearerWith(change), now.Add(time.Duration(seconds*float64(time.Second))))
	}
	first := at(0, nil)
	for _, seconds := range []float64{0, 1, 29.9} {
		if at(seconds, nil) != first {
			t.Errorf("after %v s it is signed anew", seconds)
		}
	}
	second := at(30, nil)
	if second == first || at(59, nil) != second || at(60, nil) == second {
		t.Error("it is not signed anew when half of its life is over")
	}
	if at(-3600, nil) == second {
		t.Error("it is used although the clock has been set back")
	}
	same := at(100, nil)
	for what, change := range map[string]func(*bearer){
		"another token of the client": func(b *bearer) { b.facts.ID = introspect.IDOf("another") },
		"a token that ends later":     func(b *bearer) { b.facts.Expiry = now.Add(160 * time.Second) },
	} {
		if at(100, change) != same {
			t.Errorf("%s has another assertion", what)
		}
	}
	for what, change := range map[string]func(*bearer){
		"another client":           func(b *bearer) { b.facts.ClientID = "writer" },
		"another subject":          func(b *bearer) { b.facts.Subject = "writer" },
		"a narrowed scope":         func(b *bearer) { b.scope = "" },
		"another realm":            func(b *bearer) { b.realm = "" },
		"another issuer":           func(b *bearer) { b.facts.Issuer = "https://other.example.com" },
		"a client for the subject": func(b *bearer) { b.facts.ClientID, b.facts.Subject = "", "reader" },
		"a token that ends before": func(b *bearer) { b.facts.Expiry = now.Add(159 * time.Second) },
	} {
		if at(100, change) == same {
			t.Errorf("%s has the same assertion", what)
		}
	}
	if at(101, nil) != same {
		t.Error("others have displaced it")
	}
}

// An assertion that ends with its token is not signed again and again in the token's last seconds.
func TestTheLastAssertionOfAToken(t *testing.T) {
	now := time.Unix(2_000_000_000, 0)
	a, wanted, agree := newAsserter(t, keys.EdDSA)
	agree(ringAt(t, now, wanted))
	texts := make(map[string]bool)
	for tenths := range 1200 {
		b := bearerWith(func(b *bearer) { b.facts.Expiry = now.Add(120*time.Second + 500*time.Millisecond) })
		texts[a.textAt(t, b, now.Add(time.Duration(tenths)*100*time.Millisecond))] = true
	}
	if len(texts) != 4 { // at 0, 30 and 60 s, and then the last
		t.Errorf("in its last two minutes a token has %d assertions, want 4", len(texts))
	}
}

// Assertions follow the keys at once: when the next one comes into use, and when one is withdrawn.
// Without any there is no assertion.
func TestAssertionsFollowTheKeys(t *testing.T) {
	now := time.Unix(2_000_000_000, 0)
	a, wanted, agree := newAsserter(t, keys.ES256)
	if told, err := a.about(bearerWith(nil), now); err == nil {
		t.Fatalf("without a key there is an assertion %q", told.text)
	}
	ring := ringAt(t, now, wanted)
	agree(ring)
	kid := func(text string) string {
		return text[:strings.IndexByte(text, '.')]
	}
	first := a.textAt(t, bearerWith(nil), now)
	ring, err := ring.Rotated(now, wanted, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	agree(ring)
	if a.textAt(t, bearerWith(nil), now) != first {
		t.Error("the same key, known anew, makes another assertion")
	}
	before := a.textAt(t, bearerWith(nil), now.Add(keys.Lead-time.Second))
	after := a.textAt(t, bearerWith(nil), now.Add(keys.Lead))
	if kid(before) != kid(first) || kid(after) == kid(first) {
		t.Error("the next key does not sign when it comes into use")
	}
	last := a.textAt(t, bearerWith(nil), now.Add(keys.Lead+time.Second))
	if last != after {
		t.Error("with the next key, assertions are not used again")
	}
	if ring, err = ring.Rotated(now.Add(keys.Lead+time.Second), wanted, nil, true); err != nil {
		t.Fatal(err)
	}
	agree(ring)
	if now := a.textAt(t, bearerWith(nil), now.Add(keys.Lead+time.Second)); kid(now) == kid(last) || kid(now) == kid(first) {
		t.Error("a withdrawn key still signs")
	}
	none, err := keys.New("root", now, nil)
	if err != nil {
		t.Fatal(err)
	}
	agree(none)
	if told, err := a.about(bearerWith(nil), now); err == nil {
		t.Errorf("when all keys are gone there is an assertion %q", told.text)
	}
}

// What is remembered has a bound, whatever callers there are, and who calls all the time stays.
func TestRememberedAssertionsHaveABound(t *testing.T) {
	now := time.Unix(2_000_000_000, 0)
	a, wanted, agree := newAsserter(t, keys.EdDSA)
	agree(ringAt(t, now, wanted))
	busy, _ := a.about(bearerWith(nil), now)
	long := strings.Repeat("x", 1<<10)
	for i := range 4000 {
		if _, err := a.about(bearerWith(func(b *bearer) { b.facts.Subject, b.scope = fmt.Sprint(i, long), long }), now); err != nil {
			t.Fatal(err)
		}
		if still, _ := a.about(bearerWith(nil), now); still != busy {
			t.Fatalf("after %d other callers, the assertion of one that calls all the time is forgotten", i)
		}
		if i == 3999 || i%500 == 0 {
			kept := 0
			for _, part := range []map[asserted]*assertion{a.young, a.old} {
				size := 0
				for what, told := range part {
					size += len(what.client) + len(what.subject) + len(what.scope) + len(told.text)
				}
				if size > maxAssertions+maxAssertions/8 {
					t.Fatalf("a part of the memory has %d bytes, want about %d at most", size, maxAssertions)
				}
				kept += len(part)
			}
			if i == 3999 && (kept < 500 || kept > 3000) {
				t.Errorf("%d assertions are remembered", kept)
			}
		}
	}
}

// A name that JSON can't carry as it is makes no assertion about somebody else.
func TestNoAssertionAboutAnUnspeakableName(t *testing.T) {
	now := time.Unix(2_000_000_000, 0)
	a, wanted, agree := newAsserter(t, keys.EdDSA)
	agree(ringAt(t, now, wanted))
	for _, change := range []func(*bearer){
		func(b *bearer) { b.facts.Subject = "J\xfcrgen" },
		func(b *bearer) { b.facts.ClientID = "J\xfcrgen" },
		func(b *bearer) { b.facts.Issuer = "J\xfcrgen" },
		func(b *bearer) { b.scope = strings.Repeat("long", 1<<14) },
	} {
		for range 2 { // the second time from memory
			if told, err := a.about(bearerWith(change), now); err == nil {
				t.Errorf("there is an assertion %s", told.text)
			}
		}
	}
}

// Many requests at once, with keys that change, get assertions that are good.
func TestAssertionsAtOnce(t *testing.T) {
	now := time.Unix(2_000_000_000, 0)
	a, wanted, agree := newAsserter(t, keys.EdDSA)
	rings := []*keys.Ring{ringAt(t, now, wanted), ringAt(t, now, wanted)}
	agree(rings[0])
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			for i := range 500 {
				if worker == 0 {
					agree(rings[i%2])
					continue
				}
				b := bearerWith(func(b *bearer) { b.facts.ClientID = fmt.Sprint("client", i%20) })
				told, err := a.about(b, now.Add(time.Duration(i)*time.Second))
				if err != nil {
					t.Error(err)
					return
				}
				good := false
				for _, ring := range rings {
					payload, ok := ring.Signer(now).For(typAssertion).Verify(told.text)
					good = good || ok && strings.Contains(string(payload), `"client_id":"`+b.facts.ClientID+`"`)
				}
				if !good {
					t.Errorf("a bad assertion: %s", told.text)
					return
				}
			}
		})
	}
	all.Wait()
}

func BenchmarkAssertion(b *testing.B) {
	for _, algorithm := range []string{keys.ES256, keys.EdDSA} {
		now := time.Now()
		a, wanted, agree := newAsserter(b, algorithm)
		agree(ringAt(b, now, wanted))
		who := bearerWith(func(b *bearer) { b.facts.Expiry = now.Add(time.Hour) })
		b.Run(algorithm+"/remembered", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := a.about(who, now); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(algorithm+"/signed", func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := a.about(who, now.Add(time.Duration(i%2)*-time.Minute)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
