package introspect_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// network is a transport without a network, for tests in which time stands still while nothing
// runs.
type network func(r *http.Request) (*http.Response, error)

func (n network) RoundTrip(r *http.Request) (*http.Response, error) { return n(r) }

// answering returns the same answer for every request.
func answering(status int, header http.Header, body string) *http.Response {
	return &http.Response{StatusCode: status, Status: fmt.Sprint(status), Header: header, Body: io.NopCloser(strings.NewReader(body))}
}

// unknownKid returns a token whose kid nobody knows.
func unknownKid(n int) string {
	return signingKey{fmt.Sprint("unknown ", n), "EdDSA", edKey()}.issue(goodClaims())
}

// wants checks the result of a lookup: "active", "inactive" or "error".
func wants(t testing.TB, j *introspect.JWT, token, want string) {
	t.Helper()
	facts, err := j.Lookup(context.Background(), introspect.NewToken(token))
	got := "inactive"
	switch {
	case err != nil && facts == nil:
		got = "error"
	case facts.Active:
		got = "active"
	}
	if got != want {
		t.Errorf("got %s (%v), want %s", got, err, want)
	}
}

// If the issuer is down at the start, the source starts all the same, says that it can't tell,
// and finds the keys by itself once the issuer is back.
func TestJWKSServerDownAtStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := keyFor("EdDSA")
		var up atomic.Bool
		var attempts atomic.Int64
		j := newJWT(t, overNetwork(jwtSettings{JWKSURI: "https://issuer.example/jwks", Now: time.Now}, network(func(*http.Request) (*http.Response, error) {
			attempts.Add(1)
			if up.Load() {
				return answering(200, nil, jwks(key.jwk(nil))), nil
			}
			return nil, errors.New("connection refused")
		})))
		token := key.issue(goodClaims().with(claims{"iat": nil}))
		begin := time.Now()
		wants(t, j, token, "error")
		wants(t, j, token, "error") // waits for the next attempt, which does not come at once
		wants(t, j, "e..", "inactive")
		if j.Coherent() {
			t.Error("a cache would be believed although there are no keys")
		}
		if n := attempts.Load(); time.Since(begin) != 250*time.Millisecond*time.Duration(n-1) || n < 2 {
			t.Errorf("%d attempts in %v", n, time.Since(begin))
		}
		// Left alone: after a quarter of a second, then after twice as long each time, up to a minute.
		time.Sleep(5*time.Minute + time.Second)
		synctest.Wait()
		if n := attempts.Load(); n != 12 {
			t.Errorf("%d attempts in five minutes", n)
		}
		up.Store(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		before := attempts.Load()
		wants(t, j, token, "active")
		if !j.Coherent() || attempts.Load() != before {
			t.Error("the keys were fetched by the request, and not before it")
		}
	})
}

// An issuer that starts a moment after the source causes no error.
func TestJWKSServerStartsLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, begin := keyFor("EdDSA"), time.Now()
		j := newJWT(t, overNetwork(jwtSettings{JWKSURI: "https://issuer.example/jwks", Now: time.Now}, network(func(*http.Request) (*http.Response, error) {
			if time.Since(begin) < 10*time.Millisecond {
				return nil, errors.New("connection refused")
			}
			return answering(200, nil, jwks(key.jwk(nil))), nil
		})))
		synctest.Wait()
		wants(t, j, key.issue(goodClaims().with(claims{"iat": nil})), "active")
		if took := time.Since(begin); took != 250*time.Millisecond {
			t.Errorf("took %v", took)
		}
	})
}

// The first request does not fail because it came at the moment of the start.
func TestJWKSFirstRequestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := keyFor("EdDSA")
		j := newJWT(t, overNetwork(jwtSettings{JWKSURI: "https://issuer.example/jwks", Now: time.Now}, network(func(*http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			return answering(200, nil, jwks(key.jwk(nil))), nil
		})))
		token := key.issue(goodClaims().with(claims{"iat": nil}))
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if _, err := j.Lookup(ctx, introspect.NewToken(token)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a lookup that has half a second: %v", err)
		}
		wants(t, j, token, "active")
	})
}

// A rotation is noticed with the first token of the new key, after MinRefresh at the latest.
func TestJWKSRotation(t *testing.T) {
	clock := &clocks{}
	older, newer := keyFor("EdDSA"), keyFor("ES256")
	server := newKeyServer(t, jwks(older.jwk(nil)))
	j := newJWT(t, jwtSettings{JWKSURI: server.URL, Now: clock.now})
	wants(t, j, older.issue(goodClaims()), "active")
	server.publish(jwks(older.jwk(nil), newer.jwk(nil)))
	wants(t, j, newer.issue(goodClaims()), "inactive") // the keys were fetched a moment ago
	clock.advance(5*time.Second - 1)
	wants(t, j, newer.issue(goodClaims()), "inactive")
	clock.advance(1)
	wants(t, j, newer.issue(goodClaims()), "active")
	wants(t, j, older.issue(goodClaims()), "active")
	if n := server.requests.Load(); n != 2 {
		t.Errorf("%d requests", n)
	}
}

// The new key of an issuer that gives its keys no name is found too.
func TestJWKSRotationWithoutKid(t *testing.T) {
	clock := &clocks{}
	older, newer := signingKey{"", "EdDSA", newEdKey()}, signingKey{"", "EdDSA", newEdKey()}
	server := newKeyServer(t, jwks(older.jwk(claims{"kid": nil})))
	j := newJWT(t, jwtSettings{JWKSURI: server.URL, Now: clock.now})
	token := func(k signingKey) string { return k.token(`{"alg":"EdDSA","typ":"at+jwt"}`, goodClaims().json()) }
	wants(t, j, token(older), "active")
	server.publish(jwks(newer.jwk(claims{"kid": nil})))
	clock.advance(5 * time.Second)
	wants(t, j, token(newer), "active")
	wants(t, j, token(older), "inactive")
}

// Ten thousand made-up kids cost one request per MinRefresh.
func TestJWKSFloodOfUnknownKids(t *testing.T) {
	clock := &clocks{}
	key := keyFor("EdDSA")
	server := newKeyServer(t, jwks(key.jwk(nil)))
	j := newJWT(t, jwtSettings{JWKSURI: server.URL, Now: clock.now})
	wants(t, j, key.issue(goodClaims()), "active")
	for round := range 4 {
		var senders sync.WaitGroup
		for sender := range 4 {
			senders.Go(func() {
				for i := range 625 {
					// The signature does not matter: it is not checked.
					if mayPass(t, j, unknownKid(1_000_000*round+10_000*sender+i)) {
						t.Error("an unknown kid is good")
					}
				}
			})
		}
		senders.Wait()
		if n := server.requests.Load(); n > int64(round+1) {
			t.Fatalf("%d requests for keys in round %d", n, round)
		}
		clock.advance(5 * time.Second)
	}
	// Tokens that fail for other reasons cost none at all.
	before := server.requests.Load()
	clock.advance(time.Hour)
	forged := signingKey{key.kid, "EdDSA", newEdKey()}
	for _, token := range []string{
		forged.issue(goodClaims()),
		signingKey{"unknown", "EdDSA", edKey()}.issue(goodClaims().with(claims{"iss": "https://other.example"})),
		signingKey{"unknown", "ES384", p384Key()}.issue(goodClaims()),
		"eyJhbGciOiJFZERTQSJ9.e30.AAAA",
	} {
		mayPass(t, j, token)
	}
	if n := server.requests.Load(); n != before {
		t.Errorf("forged tokens caused %d requests", n-before)
	}
}

// An unknown kid that arrives during the regular fetch causes no second one.
func TestJWKSRefreshesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fetches atomic.Int64
		j := newJWT(t, overNetwork(jwtSettings{JWKSURI: "https://issuer.example/jwks", Now: time.Now}, network(func(*http.Request) (*http.Response, error) {
			fetches.Add(1)
			return answering(200, nil, jwks(keyFor("EdDSA").jwk(nil))), nil
		})))
		synctest.Wait()
		for round := range int64(40) {
			time.Sleep(15 * time.Minute)
			wants(t, j, unknownKid(int(round)), "inactive")
			synctest.Wait()
			if n := fetches.Load(); n != round+2 {
				t.Fatalf("%d fetches in round %d", n, round)
			}
		}
	})
}

// Whatever goes wrong, the last good keys stay.
func TestJWKSLastGoodSetIsKept(t *testing.T) {
	clock := &clocks{}
	key, evil := keyFor("EdDSA"), signingKey{"evil", "EdDSA", newEdKey()}
	trap := newKeyServer(t, jwks(evil.jwk(nil)))
	server := newKeyServer(t, jwks(key.jwk(nil)))
	body := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, s) }
	}
	var tooMany []claims
	for i := range 101 {
		tooMany = append(tooMany, evil.jwk(claims{"kid": fmt.Sprint(i)}))
	}
	var latest atomic.Value
	var sets atomic.Int64
	j := newJWT(t, jwtSettings{
		JWKSURI: server.URL, Now: clock.now, Timeout: 200 * time.Millisecond,
		OnFetch: func(kind string, took time.Duration, err error) {
			if kind != "jwks" || took <= 0 {
				t.Errorf("OnFetch(%q, %v, %v)", kind, took, err)
			}
			latest.Store(fmt.Sprint(err))
		},
		OnKeys: func(n int, _ []introspect.IgnoredKey) {
			if n != 1 {
				t.Errorf("OnKeys(%d)", n)
			}
			sets.Add(1)
		},
	})
	// On a busy machine, the first attempts may take longer than Timeout.
	for deadline := time.Now().Add(30 * time.Second); !j.Coherent() && time.Now().Before(deadline); {
		j.Lookup(t.Context(), introspect.NewToken(key.issue(goodClaims())))
	}
	wants(t, j, key.issue(goodClaims()), "active")
	for name, answer := range map[string]http.HandlerFunc{
		"an error":  func(w http.ResponseWriter, _ *http.Request) { http.Error(w, jwks(evil.jwk(nil)), 500) },
		"not found": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, jwks(evil.jwk(nil)), 404) },
		"another success": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(203)
			io.WriteString(w, jwks(evil.jwk(nil)))
		},
		"a redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, trap.URL, http.StatusFound) },
		"a lasting redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, trap.URL, http.StatusPermanentRedirect)
		},
		"a page":                  body("<html>maintenance</html>"),
		"nothing":                 body(""),
		"null":                    body("null"),
		"no keys member":          body("{}"),
		"no keys":                 body(`{"keys":[]}`),
		"keys null":               body(`{"keys":null}`),
		"keys as an object":       body(`{"keys":{"evil":` + evil.jwk(nil).json() + `}}`),
		"only unusable keys":      body(jwks(evil.jwk(claims{"use": "enc"}))),
		"two lists of keys":       body(`{"keys":[` + key.jwk(nil).json() + `],"keys":[` + evil.jwk(nil).json() + `]}`),
		"keys in capitals":        body(`{"KEYS":[` + evil.jwk(nil).json() + `]}`),
		"PEM":                     body(evil.pem()),
		"half a set":              body(jwks(evil.jwk(nil))[:60]),
		"something after the set": body(jwks(evil.jwk(nil)) + "{}"),
		"too many keys":           body(jwks(tooMany...)),
		"too large":               body(jwks(evil.jwk(claims{"pad": strings.Repeat("x", 512<<10)}))),
		"too large at its end":    body(jwks(evil.jwk(nil)) + strings.Repeat(" ", 512<<10)),
		"endless": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{"keys":[`)
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, strings.Repeat(" ", 4096)); err != nil {
					return
				}
			}
		},
		"slow": func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-time.After(time.Minute):
			}
		},
		"slow in the middle": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{"keys":[`)
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
			case <-time.After(time.Minute):
			}
		},
		"a broken connection": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		server.do(answer)
		// If this machine stands still, a fetch may be over before its request was sent, and says nothing.
		var n int64
		for attempt := 0; n == 0 && attempt < 4; attempt++ {
			clock.advance(5 * time.Second)
			latest.Store("")
			// Now nobody can say what key that is.
			before, begin := server.requests.Load(), time.Now()
			wants(t, j, evil.issue(goodClaims()), "error")
			wants(t, j, evil.issue(goodClaims()), "error")
			if took := time.Since(begin); took > 15*time.Second {
				t.Errorf("%s: took %v", name, took)
			}
			// A request that was given up may reach a busy server later.
			for server.requests.Load() == before && time.Since(begin) < 4*time.Second {
				time.Sleep(time.Millisecond)
			}
			n = server.requests.Load() - before
		}
		if n != 1 {
			t.Errorf("%s: %d requests", name, n)
		}
		wants(t, j, key.issue(goodClaims()), "active")
		if err := latest.Load(); err == "" || err == "<nil>" {
			t.Errorf("%s: OnFetch was not called with an error", name)
		}
	}
	if n := trap.requests.Load(); n != 0 {
		t.Errorf("%d requests to the targets of redirects", n)
	}
	if n := sets.Load(); n != 1 {
		t.Errorf("%d sets of keys", n)
	}
	server.publish(jwks(evil.jwk(nil)))
	for deadline := time.Now().Add(30 * time.Second); sets.Load() == 1 && time.Now().Before(deadline); { // as at first
		clock.advance(5 * time.Second)
		j.Lookup(t.Context(), introspect.NewToken(evil.issue(goodClaims())))
	}
	wants(t, j, evil.issue(goodClaims()), "active")
	wants(t, j, key.issue(goodClaims()), "inactive")
}

// A token dies with its key although it is cached, and without anybody asking for new keys.
func TestJWKSWithdrawnKeyKillsCachedTokens(t *testing.T) {
	for name, change := range map[string]claims{
		"removed":            nil,
		"for encryption now": {"use": "enc"},
		"for another alg":    {"alg": "PS256"},
		"with another kid":   {"kid": "other"},
		"another key":        signingKey{"kid of RS256", "RS256", must(rsa.GenerateKey(rand.Reader, 2048))}.jwk(nil),
	} {
		synctest.Test(t, func(t *testing.T) {
			key, other := keyFor("RS256"), keyFor("EdDSA")
			var set atomic.Value
			set.Store(jwks(key.jwk(nil), other.jwk(nil)))
			j := newJWT(t, overNetwork(jwtSettings{JWKSURI: "https://issuer.example/jwks", Now: time.Now}, network(func(*http.Request) (*http.Response, error) {
				return answering(200, nil, set.Load().(string)), nil
			})))
			cache := newCache(t, introspect.CacheConfig{})
			s := cache.Wrap("jwt", j, time.Hour)
			token, stays := key.issue(goodClaims().with(claims{"iat": nil})), other.issue(goodClaims().with(claims{"iat": nil}))
			warm(t, cache, s, token)
			warm(t, cache, s, stays)
			if change == nil {
				set.Store(jwks(other.jwk(nil)))
			} else {
				set.Store(jwks(key.jwk(change), other.jwk(nil)))
			}
			time.Sleep(15*time.Minute - time.Second)
			if !active(t, s, token) {
				t.Errorf("%s: dead before the refresh", name)
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if _, held := s.Held(token); !held {
				t.Errorf("%s: the cache does not hold the token, so this test shows nothing", name)
			}
			if active(t, s, token) {
				t.Errorf("%s: alive after the refresh", name)
			}
			if !active(t, s, stays) {
				t.Errorf("%s: a token with another key is dead", name)
			}
		})
	}
}

// If replicas of an issuer publish different keys, a cached token is refused for no longer than a
// token with a new key would be.
func TestJWKSReplicasDisagree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := keyFor("EdDSA"), keyFor("ES256")
		var lags atomic.Bool
		var fetches atomic.Int64
		j := newJWT(t, overNetwork(jwtSettings{JWKSURI: "https://issuer.example/jwks", Now: time.Now}, network(func(*http.Request) (*http.Response, error) {
			fetches.Add(1)
			if lags.Load() {
				return answering(200, nil, jwks(two.jwk(nil))), nil
			}
			return answering(200, nil, jwks(one.jwk(nil))), nil
		})))
		cache := newCache(t, introspect.CacheConfig{})
		s := cache.Wrap("jwt", j, time.Hour)
		token := one.issue(goodClaims().with(claims{"iat": nil}))
		warm(t, cache, s, token)
		lags.Store(true)
		time.Sleep(15*time.Minute + time.Second)
		lags.Store(false)
		synctest.Wait()
		if active(t, s, token) {
			t.Error("good by a key that the issuer no longer seems to have")
		}
		before := fetches.Load()
		time.Sleep(5 * time.Second)
		for range 10 {
			if !active(t, s, token) {
				t.Error("still refused five seconds after the fetch: nobody asked again")
			}
		}
		if n := fetches.Load() - before; n != 1 {
			t.Errorf("%d fetches", n)
		}
	})
}

// After a restart of the source, which may not have its keys yet, the cache is no authority: the
// keys that verified its facts may have been withdrawn.
func TestJWKSUnknownKeepTheCacheSilent(t *testing.T) {
	key := keyFor("EdDSA")
	server := newKeyServer(t, jwks(key.jwk(nil)))
	cache := newCache(t, (&clocks{}).config())
	token := key.issue(goodClaims())
	warm(t, cache, cache.Wrap("jwt", newJWT(t, jwtSettings{JWKSURI: server.URL}), time.Hour), token)
	server.do(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	later := cache.Wrap("jwt", newJWT(t, jwtSettings{JWKSURI: server.URL}), time.Hour)
	if facts, err := later.Lookup(t.Context(), token); err == nil {
		t.Errorf("answered from the cache: %+v", facts)
	}
}

// Cache-Control shortens the time to the next fetch, within its bounds.
func TestJWKSCacheControl(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"":                                  15 * time.Minute,
		"max-age=60":                        time.Minute,
		"public, MAX-AGE=\"60\", immutable": time.Minute,
		"max-age=1":                         5 * time.Second,
		"max-age=86400":                     15 * time.Minute,
		"max-age=99999999999999999":         15 * time.Minute,
		"max-age=999999999999999999999":     15 * time.Minute,
		"max-age=0, no-cache, no-store":     15 * time.Minute,
		"max-age=-60":                       15 * time.Minute,
		"s-maxage=60":                       15 * time.Minute,
	} {
		synctest.Test(t, func(t *testing.T) {
			var fetched []time.Time
			newJWT(t, overNetwork(jwtSettings{JWKSURI: "https://issuer.example/jwks", Now: time.Now}, network(func(*http.Request) (*http.Response, error) {
				fetched = append(fetched, time.Now())
				return answering(200, http.Header{"Cache-Control": {value}}, jwks(keyFor("EdDSA").jwk(nil))), nil
			})))
			time.Sleep(15*time.Minute + time.Second)
			synctest.Wait()
			if len(fetched) < 2 || fetched[1].Sub(fetched[0]) != want {
				t.Errorf("%q: fetched at %v", value, fetched)
			}
		})
	}
}

// Keys that must not be used, each published beside one that may.
func TestJWKSUnusableKeys(t *testing.T) {
	small := signingKey{"x", "RS256", must(rsa.GenerateKey(rand.Reader, 1024))}
	rs, es, ed := signingKey{"x", "RS256", rsaKey()}, signingKey{"x", "ES256", p256Key()}, signingKey{"x", "EdDSA", newEdKey()}
	for _, c := range []struct {
		name   string
		key    signingKey
		change claims
		usable bool
	}{
		{"as it should be", ed, nil, true},
		{"without use, alg and kid", ed, claims{"use": nil, "alg": nil}, true},
		{"for verifying", ed, claims{"key_ops": []string{"verify"}}, true},
		{"with an unparsable certificate", rs, claims{"x5c": []string{"AAAA"}, "x5t": "!", "x5u": ":"}, true},
		{"for encryption", ed, claims{"use": "enc"}, false},
		{"use in upper case", ed, claims{"use": "SIG"}, false},
		{"use as a list", ed, claims{"use": []string{"sig"}}, false},
		{"for signing", ed, claims{"key_ops": []string{"sign"}}, false},
		{"for nothing", ed, claims{"key_ops": []string{}}, false},
		{"key_ops as text", ed, claims{"key_ops": "verify"}, false},
		{"alg of another key", ed, claims{"alg": "RS256"}, false},
		{"alg none", ed, claims{"alg": "none"}, false},
		{"alg HS256", rs, claims{"alg": "HS256"}, false},
		{"alg as a number", ed, claims{"alg": 1}, false},
		{"alg empty", ed, claims{"alg": ""}, false},
		{"kid as a number", ed, claims{"kid": 1}, false},
		{"with a private key", ed, claims{"d": b64(strings.Repeat("d", 32))}, false},
		{"with a private prime", rs, claims{"p": "AQ"}, false},
		{"symmetric", ed, claims{"kty": "oct", "k": b64("secret"), "alg": nil}, false},
		{"symmetric without a secret", ed, claims{"kty": "oct"}, false},
		{"of an unknown type", ed, claims{"kty": "AKP"}, false},
		{"without a type", ed, claims{"kty": nil}, false},
		{"RSA of 1024 bits", small, nil, false},
		{"RSA with exponent 1", rs, claims{"e": "AQ"}, false},
		{"RSA with exponent 0", rs, claims{"e": "AA"}, false},
		{"RSA with an even exponent", rs, claims{"e": "AQAC"}, false},
		{"RSA with a huge exponent", rs, claims{"e": b64("\x01" + strings.Repeat("\x00", 7) + "\x01")}, false},
		{"RSA without a modulus", rs, claims{"n": nil}, false},
		{"RSA with a huge modulus", rs, claims{"n": b64(strings.Repeat("\xff", 8<<10))}, false},
		{"RSA with an exponent beyond 64 bits", rs, claims{"e": b64("\x01" + strings.Repeat("\x00", 5) + "\x01\x00\x01")}, false},
		{"RSA with an exponent in another alphabet", rs, claims{"e": "A+AB"}, false},
		{"RSA with a modulus as a number", rs, claims{"n": 65537}, false},
		{"RSA with a power of two as its modulus", rs, claims{"n": b64("\x01" + strings.Repeat("\x00", 1023) + "\x01")}, false},
		{"not on its curve", es, claims{"x": b64(strings.Repeat("x", 32))}, false},
		{"beyond its field", es, claims{"x": b64(strings.Repeat("\xff", 32))}, false},
		{"at infinity", es, claims{"x": b64(strings.Repeat("\x00", 32)), "y": b64(strings.Repeat("\x00", 32))}, false},
		{"with a coordinate too long", es, claims{"x": b64("\x00" + string(must(base64.RawURLEncoding.DecodeString(es.jwk(nil)["x"].(string)))))}, false},
		{"with a coordinate too short", es, claims{"x": b64(strings.Repeat("x", 31))}, false},
		{"without a coordinate", es, claims{"y": nil}, false},
		{"of another curve", es, claims{"crv": "P-384"}, false},
		{"of another curve than its alg's", signingKey{"x", "ES256", p384Key()}, nil, false},
		{"of an unknown curve", es, claims{"crv": "secp256k1"}, false},
		{"too short for its curve", ed, claims{"x": "AAAA"}, false},
		{"twice as long", ed, claims{"x": b64(strings.Repeat("x", 64))}, false},
		{"of low order", ed, claims{"x": b64("\x01" + strings.Repeat("\x00", 31))}, false},
		{"for ECDH", ed, claims{"crv": "X25519"}, false},
	} {
		var keys atomic.Int64
		var ignored atomic.Value
		server := newKeyServer(t, jwks(keyFor("EdDSA").jwk(nil), c.key.jwk(c.change)))
		j := newJWT(t, jwtSettings{JWKSURI: server.URL, OnKeys: func(n int, others []introspect.IgnoredKey) {
			keys.Store(int64(n))
			ignored.Store(others)
		}})
		if got := mayPass(t, j, c.key.issue(goodClaims())); got != c.usable {
			t.Errorf("a key %s: used %v", c.name, got)
		}
		if want := map[bool]int64{false: 1, true: 2}[c.usable]; keys.Load() != want {
			t.Errorf("a key %s: %d keys", c.name, keys.Load())
		}
		others := ignored.Load().([]introspect.IgnoredKey)
		switch kid, _ := c.key.jwk(c.change)["kid"].(string); {
		case c.usable && len(others) > 0:
			t.Errorf("a key %s is ignored: %v", c.name, others)
		case !c.usable && (len(others) != 1 || others[0].KeyID != kid || others[0].Reason == "" || strings.Contains(others[0].Reason, "jose")):
			t.Errorf("a key %s is ignored for %v", c.name, others)
		}
		server.Close()
		j.Keys().Close()
	}
	// Two members of one name.
	twice := strings.Replace(jwks(ed.jwk(nil), keyFor("EdDSA").jwk(nil)), `"use":"sig"`, `"use":"enc","use":"sig"`, 1)
	j := newJWT(t, jwtSettings{JWKSURI: newKeyServer(t, twice).URL})
	wants(t, j, ed.issue(goodClaims()), "inactive")
	wants(t, j, keyFor("EdDSA").issue(goodClaims()), "active")
}

// RFC 8414 section 3 and OpenID Connect Discovery section 4.
func TestJWKSDiscovery(t *testing.T) {
	key := keyFor("EdDSA")
	keys := newKeyServer(t, jwks(key.jwk(nil)))
	keys.do(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Api-Key") != "" {
			t.Error("the issuer's header went to another host")
		}
		io.WriteString(w, jwks(key.jwk(nil)))
	})
	const oauth, openid = "/.well-known/oauth-authorization-server/tenant", "/tenant/.well-known/openid-configuration"
	for _, c := range []struct {
		name  string
		path  string // of the issuer
		at    string // where the document is
		doc   claims // what it says differently
		asked []string
		want  string
	}{
		{"RFC 8414", "/tenant", oauth, nil, []string{oauth}, "active"},
		{"OpenID Connect", "/tenant", openid, nil, []string{oauth, openid}, "active"},
		{"an issuer without a path", "", "/.well-known/oauth-authorization-server", nil, []string{"/.well-known/oauth-authorization-server"}, "active"},
		{"an issuer with a slash", "/tenant/", openid, nil, []string{oauth, openid}, "active"},
		{"another issuer", "/tenant", oauth, claims{"issuer": "https://evil.example"}, []string{oauth, openid}, "error"},
		{"another tenant", "/tenant", oauth, claims{"issuer": "URL/tenant2"}, []string{oauth, openid}, "error"},
		{"the issuer with a slash", "/tenant", oauth, claims{"issuer": "URL/tenant/"}, []string{oauth, openid}, "error"},
		{"no issuer", "/tenant", oauth, claims{"issuer": nil}, []string{oauth, openid}, "error"},
		{"no keys", "/tenant", oauth, claims{"jwks_uri": nil}, []string{oauth, openid}, "error"},
		{"keys over http", "/tenant", oauth, claims{"jwks_uri": "http://keys.example/"}, []string{oauth, openid}, "error"},
		{"keys in a file", "/tenant", oauth, claims{"jwks_uri": "file:///etc/keys"}, []string{oauth, openid}, "error"},
		{"keys of the metadata service", "/tenant", oauth, claims{"jwks_uri": "http://169.254.169.254/"}, []string{oauth, openid}, "error"},
		{"something after the document", "/tenant", oauth, nil, []string{oauth, openid}, "error"},
		{"no document", "/tenant", "/elsewhere", nil, []string{oauth, openid}, "error"},
	} {
		var mu sync.Mutex
		var asked []string
		server := newKeyServer(t, "")
		server.do(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, r.URL.Path)
			if r.Header.Get("X-Api-Key") != "secret" {
				t.Errorf("%s: the header is missing", c.name)
			}
			if r.URL.Path != c.at {
				http.NotFound(w, r)
				return
			}
			doc := claims{"issuer": server.URL + c.path, "jwks_uri": keys.URL}.with(c.doc)
			io.WriteString(w, strings.ReplaceAll(doc.json(), "URL/", server.URL+"/"))
			if strings.HasPrefix(c.name, "something after") {
				io.WriteString(w, "{}")
			}
		})
		var kinds []string
		j := newJWT(t, jwtSettings{
			Issuer: server.URL + c.path, Discovery: true, Header: http.Header{"x-api-key": {"secret"}},
			OnFetch: func(kind string, _ time.Duration, err error) { kinds = append(kinds, fmt.Sprint(kind, err == nil)) },
		})
		wants(t, j, key.issue(goodClaims().with(claims{"iss": server.URL + c.path})), c.want)
		j.Keys().Close()
		mu.Lock()
		// A token that arrives after the first attempt failed causes another one.
		if !slices.Equal(asked[:min(len(asked), len(c.asked))], c.asked) {
			t.Errorf("%s: asked for %v", c.name, asked)
		}
		if got := slices.Contains(kinds, "jwkstrue"); got != (c.want == "active") || !strings.HasPrefix(kinds[0], "discovery") {
			t.Errorf("%s: OnFetch was called with %v", c.name, kinds)
		}
		mu.Unlock()
		server.Close()
	}
}

// TLS is verified, and the trusted authorities can be configured.
func TestJWKSOverTLS(t *testing.T) {
	key := keyFor("EdDSA")
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, jwks(key.jwk(nil))) }))
	server.Config.ErrorLog = nil
	server.StartTLS()
	defer server.Close()
	trusting := server.Client().Transport.(*http.Transport).TLSClientConfig
	wants(t, newJWT(t, jwtSettings{JWKSURI: server.URL, TLS: trusting}), key.issue(goodClaims()), "active")
	wants(t, newJWT(t, jwtSettings{JWKSURI: server.URL}), key.issue(goodClaims()), "error")
}

// Keys come from a file, which is replaced, broken, and removed.
func TestJWKSFile(t *testing.T) {
	clock := &clocks{}
	path := filepath.Join(t.TempDir(), "keys.json")
	write := func(s string) {
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	older, newer := keyFor("EdDSA"), keyFor("ES256")
	j := newJWT(t, jwtSettings{KeysFile: path, Now: clock.now})
	wants(t, j, older.issue(goodClaims()), "error")
	write(jwks(older.jwk(nil)))
	clock.advance(5 * time.Second)
	wants(t, j, older.issue(goodClaims()), "active")
	for _, broken := range []string{"", jwks(newer.jwk(nil))[:50], strings.Repeat(" ", 512<<10) + jwks(newer.jwk(nil))} {
		write(broken)
		clock.advance(5 * time.Second)
		wants(t, j, newer.issue(goodClaims()), "error")
		wants(t, j, older.issue(goodClaims()), "active")
	}
	write(jwks(newer.jwk(nil)))
	clock.advance(5 * time.Second)
	wants(t, j, newer.issue(goodClaims()), "active")
	wants(t, j, older.issue(goodClaims()), "inactive")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	clock.advance(5 * time.Second)
	wants(t, j, older.issue(goodClaims()), "error")
	wants(t, j, newer.issue(goodClaims()), "active")
	wants(t, newJWT(t, jwtSettings{KeysFile: t.TempDir()}), newer.issue(goodClaims()), "error")
}

// pem returns the public key in PEM.
func (k signingKey) pem() string {
	return inPEM("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(k.private.Public())))
}

func inPEM(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// A file may have the keys in PEM. They have no kid, so they are tried for every token.
func TestJWKSFileInPEM(t *testing.T) {
	rs, es, ed := keyFor("RS256"), keyFor("ES256"), keyFor("EdDSA")
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: start.Add(-time.Hour)}
	certificate := inPEM("CERTIFICATE", must(x509.CreateCertificate(rand.Reader, template, template, es.private.Public(), es.private)))
	p224 := must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))
	foreign := signingKey{"x", "RS256", must(rsa.GenerateKey(rand.Reader, 2048))}
	for _, c := range []struct {
		name, file string
		keys       []signingKey
		ignored    int
	}{
		{"an RSA key", rs.pem(), []signingKey{rs}, 0},
		{"an RSA key in PKCS #1", inPEM("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(rs.private.Public().(*rsa.PublicKey))), []signingKey{rs}, 0},
		{"a P-256 key", es.pem(), []signingKey{es}, 0},
		{"an Ed25519 key", ed.pem(), []signingKey{ed}, 0},
		{"an outdated certificate", certificate, []signingKey{es}, 0},
		{"several, with text between", "# keys\n" + rs.pem() + "\nanother:\n" + certificate + ed.pem() + "\n", []signingKey{rs, es, ed}, 0},
		{"one beside a private key", inPEM("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(foreign.private))) + es.pem(), []signingKey{es}, 1},
		{"one beside useless ones", signingKey{"", "", p224}.pem() + inPEM("PUBLIC KEY", []byte("x")) + es.pem(), []signingKey{es}, 2},
		{"a private key alone", inPEM("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(rs.private))), nil, 0},
		{"half of a second key", es.pem() + ed.pem()[:60], nil, 0},
		{"too many", strings.Repeat(ed.pem(), 101), nil, 0},
		{"a JWK set with PEM in it", jwks(es.jwk(claims{"pem": rs.pem()})), []signingKey{es}, 0},
	} {
		path := filepath.Join(t.TempDir(), "keys.pem")
		if err := os.WriteFile(path, []byte(c.file), 0o600); err != nil {
			t.Fatal(err)
		}
		ignored := make(chan int, 1)
		j := newJWT(t, jwtSettings{KeysFile: path, OnKeys: func(_ int, others []introspect.IgnoredKey) { ignored <- len(others) }})
		if c.keys == nil {
			wants(t, j, es.issue(goodClaims()), "error")
			continue
		}
		for _, key := range c.keys {
			if !mayPass(t, j, key.issue(goodClaims())) || !mayPass(t, j, key.token(fmt.Sprintf(`{"alg":%q,"typ":"at+jwt"}`, key.alg), goodClaims().json())) {
				t.Errorf("%s: a token with %s is refused", c.name, key.alg)
			}
		}
		if mayPass(t, j, foreign.issue(goodClaims())) {
			t.Errorf("%s: a token signed with another key is good", c.name)
		}
		if n := <-ignored; n != c.ignored {
			t.Errorf("%s: %d keys are ignored, want %d", c.name, n, c.ignored)
		}
	}
}

// OnKeys is called once per set, not per fetch, and tells each source how many keys are for it.
func TestJWKSAreToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		small := signingKey{strings.Repeat("k", 1000), "RS256", must(rsa.GenerateKey(rand.Reader, 1024))}
		var set atomic.Value
		set.Store(jwks(keyFor("EdDSA").jwk(nil), small.jwk(nil)))
		var told []string
		settings := overNetwork(jwtSettings{JWKSURI: "https://issuer.example/jwks", Now: time.Now, OnKeys: func(n int, ignored []introspect.IgnoredKey) {
			told = append(told, fmt.Sprint(n, ignored))
		}}, network(func(*http.Request) (*http.Response, error) { return answering(200, nil, set.Load().(string)), nil }))
		keys := newKeys(t, settings)
		synctest.Wait()
		var fitting []int
		_, err := introspect.NewJWT(introspect.JWTConfig{Keys: keys, Algorithms: []string{"ES256"}, Now: time.Now, OnKeys: func(n int) { fitting = append(fitting, n) }})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		want := fmt.Sprintf("1 [kid %q: an RSA key of 1024 bits: must have 2048 to 8192]", strings.Repeat("k", 64)+"…")
		if !slices.Equal(told, []string{want}) || !slices.Equal(fitting, []int{0}) {
			t.Errorf("OnKeys was called with %q, fitting %v", told, fitting)
		}
		set.Store(jwks(keyFor("EdDSA").jwk(nil), keyFor("ES256").jwk(nil)))
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(told) != 2 || told[1] != "2 []" || !slices.Equal(fitting, []int{0, 1}) {
			t.Errorf("after a change, OnKeys was called with %q, fitting %v", told, fitting)
		}
		// A source that comes later is told too.
		late := make(chan int, 1)
		if _, err := introspect.NewJWT(introspect.JWTConfig{Keys: keys, OnKeys: func(n int) { late <- n }}); err != nil {
			t.Fatal(err)
		}
		if n := <-late; n != 2 {
			t.Errorf("a late source: %d", n)
		}
	})
}

// Keys from the generator of CVE-2017-15361 are recognized by their remainders.
func TestCVE_2017_15361_ROCA(t *testing.T) {
	jwk := signingKey{"x", "RS256", rsaKey()}.jwk(nil)
	jwk["n"] = b64(string(new(big.Int).Exp(big.NewInt(65537), big.NewInt(128), nil).Bytes()))
	if n, err := introspect.ParseKeys([]byte(jwks(jwk))); n != 0 || !contains(err, "ROCA") {
		t.Errorf("%d keys, %v", n, err)
	}
}

// The file is read again without anybody asking for it.
func TestJWKSFileIsWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "keys.json")
		reads := 0
		newJWT(t, jwtSettings{KeysFile: path, Now: time.Now, OnFetch: func(kind string, _ time.Duration, err error) {
			if kind != "file" {
				t.Errorf("OnFetch(%q)", kind)
			}
			if err == nil {
				reads++
			}
		}})
		if err := os.WriteFile(path, []byte(jwks(keyFor("EdDSA").jwk(nil))), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if reads < 10 {
			t.Errorf("read %d times in a minute", reads)
		}
	})
}

// Made-up kids and an issuer that hangs take no more than their share of places.
func TestJWKSFewLookupsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := keyFor("EdDSA")
		var hang atomic.Bool
		j := newJWT(t, overNetwork(jwtSettings{JWKSURI: "https://issuer.example/jwks", Now: time.Now}, network(func(r *http.Request) (*http.Response, error) {
			if hang.Load() {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return answering(200, nil, jwks(key.jwk(nil))), nil
		})))
		good := key.issue(goodClaims().with(claims{"iat": nil}))
		wants(t, j, good, "active")
		hang.Store(true)
		time.Sleep(5 * time.Second)
		var busy, failed atomic.Int64
		for i := range 100 {
			go func() {
				_, err := j.Lookup(context.Background(), introspect.NewToken(unknownKid(i)))
				switch {
				case errors.Is(err, introspect.ErrBusy):
					busy.Add(1)
				case err != nil:
					failed.Add(1)
				}
			}()
		}
		synctest.Wait()
		if busy.Load() != 36 || failed.Load() != 0 {
			t.Errorf("%d were told to try again, %d failed", busy.Load(), failed.Load())
		}
		begin := time.Now()
		wants(t, j, good, "active")
		if time.Since(begin) != 0 {
			t.Error("a token with a known key had to wait")
		}
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if failed.Load() != 64 {
			t.Errorf("%d failed with the fetch", failed.Load())
		}
	})
}

// Close ends a fetch that is under way, and the lookups that wait for it.
func TestJWTClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := keyFor("EdDSA")
		var hang atomic.Bool
		j := newJWT(t, overNetwork(jwtSettings{JWKSURI: "https://issuer.example/jwks", Now: time.Now}, network(func(r *http.Request) (*http.Response, error) {
			if hang.Load() {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return answering(200, nil, jwks(key.jwk(nil))), nil
		})))
		good := key.issue(goodClaims().with(claims{"iat": nil}))
		wants(t, j, good, "active")
		hang.Store(true)
		time.Sleep(5 * time.Second)
		go wants(t, j, unknownKid(1), "error")
		synctest.Wait()
		begin := time.Now()
		j.Keys().Close()
		j.Keys().Close()
		wants(t, j, good, "active")
		time.Sleep(5 * time.Second)
		wants(t, j, unknownKid(2), "error")
		wants(t, j, unknownKid(3), "error")
		if waited := time.Since(begin); waited != 5*time.Second {
			t.Errorf("Close, and lookups after it, took %v", waited-5*time.Second)
		}
	})
}

// A panic while fetching keys fails that fetch, and does not end the process.
func TestJWKSFetchPanics(t *testing.T) {
	j := newJWT(t, overNetwork(jwtSettings{JWKSURI: "https://issuer.example/jwks"}, network(func(*http.Request) (*http.Response, error) {
		panic("a bug")
	})))
	wants(t, j, keyFor("EdDSA").issue(goodClaims()), "error")
}

// Whatever an issuer publishes, nothing panics.
func FuzzJWKS(f *testing.F) {
	for _, alg := range []string{"RS256", "ES256", "EdDSA"} {
		f.Add([]byte(jwks(keyFor(alg).jwk(nil))))
	}
	f.Add([]byte(keyFor("RS256").pem() + keyFor("ES256").pem()))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n-----BEGIN X"))
	f.Add([]byte(` {"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB","alg":"PS256"}],"keys":[{"kid":"\ud800"}],"KEYS":{}}`))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"","e":""},{"kty":"EC","crv":"P-256","x":"AA","y":""},{"kty":"OKP","crv":"Ed25519","x":null},null,1,[]]}`))
	f.Fuzz(func(t *testing.T, set []byte) {
		if n, err := introspect.ParseKeys(set); (n == 0) != (err != nil) {
			t.Errorf("%q: %d keys, %v", set, n, err)
		}
	})
}
