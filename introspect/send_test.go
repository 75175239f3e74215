package introspect_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

type causeKey struct{}

// noteSends returns an OnSend that delivers a line for each request that has ended.
func noteSends(lines chan<- string) func(*http.Request) func(int, string) {
	return func(r *http.Request) func(int, string) {
		r.Header.Set("Traceparent", "along")
		begun := fmt.Sprint(r.Context().Value(causeKey{}), " ", r.URL.Path)
		return func(status int, kind string) { lines <- fmt.Sprint(begun, " ", status, " ", kind) }
	}
}

// OnSend sees each request to an introspection endpoint with the values of the lookup that causes
// it, may add headers, and learns how the request ended.
func TestRemoteTellsWhatItSends(t *testing.T) {
	lines := make(chan string, 10)
	server := newAuthServer(t, nil)
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		want   string
	}{
		{"active", says(`{"active":true,"client_id":"c"}`), "200 active"},
		{"inactive", says(`{"active":false}`), "200 inactive"},
		{"nonsense", says(`[]`), "200 malformed"},
		{"credentials", status(403), "403 credentials"},
		{"redirect", status(302, "Location", "/x"), "302 redirect"},
		{"throttled", status(429), "429 throttled"},
		{"no answer", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "0 refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server.answers(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Traceparent") != "along" {
					t.Error("the header that OnSend adds is not sent")
				}
				c.answer(w, r)
			})
			cfg := remoteConfig(server.URL)
			cfg.OnSend = noteSends(lines)
			newRemote(t, cfg).Lookup(context.WithValue(t.Context(), causeKey{}, "request 7"), introspect.NewToken("t"))
			if got := <-lines; got != "request 7 /introspect "+c.want {
				t.Errorf("OnSend was told %q, want %q", got, c.want)
			}
		})
	}
}

// A lookup that makes Keys fetch gives that fetch the values of its context, but not its end. Other
// fetches have none.
func TestKeysTellWhatTheySend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lines := make(chan string, 10)
		var code atomic.Int64
		code.Store(200)
		j := newJWT(t, overNetwork(jwtSettings{JWKSURI: "https://issuer.example/keys", Now: time.Now, OnSend: noteSends(lines)}, network(func(r *http.Request) (*http.Response, error) {
			if r.Header.Get("Traceparent") != "along" {
				t.Error("the header that OnSend adds is not sent")
			}
			if err := r.Context().Err(); err != nil {
				return nil, err
			}
			switch code := int(code.Load()); code {
			case 0:
				return nil, errors.New("no network")
			case 1:
				return answering(200, nil, strings.Repeat(" ", 1<<20)), nil
			default:
				return answering(code, nil, jwks(keyFor("EdDSA").jwk(nil))), nil
			}
		})))
		if got := <-lines; got != "<nil> /keys 200 ok" {
			t.Errorf("at first, OnSend was told %q", got)
		}
		for i, c := range []struct {
			code int
			want string
		}{{500, "500 status"}, {307, "307 redirect"}, {0, "0 refused"}, {1, "200 too_large"}, {200, "200 ok"}} {
			code.Store(200)
			time.Sleep(time.Minute) // an attempt follows each failure, without a cause
			synctest.Wait()
			for len(lines) > 0 {
				if got := <-lines; got != "<nil> /keys 200 ok" {
					t.Errorf("OnSend was told %q of another attempt", got)
				}
			}
			code.Store(int64(c.code))
			ctx, cancel := context.WithCancel(context.WithValue(t.Context(), causeKey{}, "request 7"))
			cancel() // the fetch goes on without its caller
			j.Lookup(ctx, introspect.NewToken(unknownKid(i)))
			if got := <-lines; got != "request 7 /keys "+c.want {
				t.Errorf("OnSend was told %q, want %q", got, c.want)
			}
		}
	})
}

// A token tells where the latest answer about it is from.
func TestTokenTellsWhereItsAnswerIsFrom(t *testing.T) {
	elapsed, down := time.Duration(0), false
	cache := newCache(t, introspect.CacheConfig{Elapsed: func() time.Duration { return elapsed }})
	s := cache.WrapWith("s", sourceFunc(func(_ context.Context, token string) (*introspect.Facts, error) {
		switch {
		case down:
			return nil, introspect.ErrOutage
		case token == "bad":
			return introspect.Inactive(), nil
		}
		return factsOf(token, time.Now().Add(24*time.Hour)), nil
	}), introspect.SourceConfig{MaxAge: time.Minute, NegativeAge: time.Minute, StaleFor: time.Hour})
	ask := func(text, want string) {
		t.Helper()
		token := introspect.NewToken(text)
		if before := token.Cache(); before != "" {
			t.Errorf("nobody has looked %s up, and it says %q", text, before)
		}
		s.LookupWithin(t.Context(), &token, time.Hour)
		if got := token.Cache(); got != want {
			t.Errorf("the answer about %s is from %q, want %q", text, got, want)
		}
	}
	ask("good", "miss")
	ask("good", "hit")
	ask("bad", "miss")
	ask("bad", "negative")
	down, elapsed = true, 2*time.Minute
	ask("good", "stale")
	ask("bad", "miss") // and an error
	down = false
	ask("good", "miss")
	token := introspect.NewToken("good")
	if _, ok := s.Remembered(&token, time.Hour); !ok || token.Cache() != "hit" {
		t.Errorf("what is remembered is from %q", token.Cache())
	}
}
