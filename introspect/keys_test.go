package introspect_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// Any number of sources can use the same keys, which are fetched once, and each judges for
// itself.
func TestKeysAreShared(t *testing.T) {
	key := keyFor("EdDSA")
	server := newKeyServer(t, jwks(key.jwk(nil), keyFor("ES512").jwk(nil)))
	keys := newKeys(t, jwtSettings{JWKSURI: server.URL})
	var sources []*introspect.JWT
	for i := range 30 {
		sources = append(sources, newJWTOf(t, keys, jwtSettings{Audience: []string{fmt.Sprint("api ", i)}}))
	}
	token := key.issue(goodClaims().with(claims{"aud": "api 7"}))
	for i, j := range sources {
		if got := mayPass(t, j, token); got != (i == 7) {
			t.Errorf("source %d: %v", i, got)
		}
	}
	other := newJWTOf(t, keys, jwtSettings{Algorithms: []string{"ES512"}})
	if !mayPass(t, other, keyFor("ES512").issue(goodClaims())) || mayPass(t, other, key.issue(goodClaims())) {
		t.Error("a source with other algorithms does not find its keys, or accepts those of others")
	}
	sources[7].Close()
	if !mayPass(t, other, keyFor("ES512").issue(goodClaims())) {
		t.Error("closing one source took the keys away from another")
	}
	if n := server.requests.Load(); n != 1 {
		t.Errorf("%d requests for keys", n)
	}
}

// Keys are fetched as often as the most demanding source wants, from the moment that it is
// created until it is closed.
func TestKeysAreFetchedForTheMostEager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fetches atomic.Int64
		settings := overNetwork(jwtSettings{JWKSURI: "https://issuer.example/jwks", Now: time.Now, RefreshInterval: time.Hour}, network(func(*http.Request) (*http.Response, error) {
			fetches.Add(1)
			return answering(200, nil, jwks(keyFor("EdDSA").jwk(nil))), nil
		}))
		keys := newKeys(t, settings)
		newJWTOf(t, keys, settings)
		during := func(what string, d time.Duration, want int64) {
			t.Helper()
			synctest.Wait()
			before := fetches.Load()
			time.Sleep(d)
			synctest.Wait()
			if n := fetches.Load() - before; n != want {
				t.Errorf("%s: %d fetches in %v, want %d", what, n, d, want)
			}
		}
		during("one an hour", 10*time.Hour+time.Second, 10)
		settings.RefreshInterval = time.Minute
		eager := newJWTOf(t, keys, settings)
		during("the second wants one a minute", 10*time.Minute, 10)
		eager.Close()
		during("one an hour again, after the next", 10*time.Hour+time.Minute, 11)
	})
}

// An issuer may have its metadata at either place. A place that hangs, or answers with an error,
// takes no time from the other, and causes no error.
func TestKeysDiscoveryTriesBothPlaces(t *testing.T) {
	const oauth, openid = "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"
	for _, c := range []struct{ name, good string }{{"RFC 8414", oauth}, {"OpenID Connect", openid}} {
		for _, hangs := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var asked []string
				good := c.good
				j := newJWT(t, overNetwork(jwtSettings{
					Issuer: "https://issuer.example", Discovery: true, Now: time.Now,
					OnFetch: func(kind string, _ time.Duration, err error) {
						if err != nil {
							t.Errorf("%s, the other hangs %v: error about %s: %v", c.name, hangs, kind, err)
						}
					},
				}, network(func(r *http.Request) (*http.Response, error) {
					mu.Lock()
					asked = append(asked, r.URL.Path)
					good := good
					mu.Unlock()
					if err := r.Context().Err(); err != nil {
						return nil, err
					}
					switch {
					case r.URL.Path == "/keys":
						return answering(200, nil, jwks(keyFor("EdDSA").jwk(nil))), nil
					case r.URL.Path == good:
						return answering(200, nil, `{"issuer":"https://issuer.example","jwks_uri":"https://issuer.example/keys"}`), nil
					case hangs:
						<-r.Context().Done()
						return nil, r.Context().Err()
					}
					return answering(404, nil, ""), nil
				})))
				wants(t, j, keyFor("EdDSA").issue(goodClaims().with(claims{"iss": "https://issuer.example", "iat": nil})), "active")
				// after lets the time pass and returns what was asked for meanwhile.
				after := func(pause time.Duration) []string {
					mu.Lock()
					asked = nil
					mu.Unlock()
					time.Sleep(pause)
					synctest.Wait()
					mu.Lock()
					defer mu.Unlock()
					return asked
				}
				// From then on it is asked for at the place where it was.
				if asked := after(15*time.Minute + 2*time.Second); len(asked) != 2 || asked[0] != good || asked[1] != "/keys" {
					t.Errorf("%s, the other hangs %v: asked for %v", c.name, hangs, asked)
				}
				// It may move.
				mu.Lock()
				good = map[string]string{oauth: openid, openid: oauth}[good]
				mu.Unlock()
				if asked := after(15*time.Minute + 4*time.Second); len(asked) != 3 || asked[1] != good {
					t.Errorf("%s, the other hangs %v: asked for %v after it moved", c.name, hangs, asked)
				}
			})
		}
	}
}

// If neither place has the metadata, that is one error about both.
func TestKeysDiscoveryFailsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var failures []error
		newJWT(t, overNetwork(jwtSettings{Issuer: "https://issuer.example", Discovery: true, Now: time.Now, OnFetch: func(_ string, _ time.Duration, err error) {
			failures = append(failures, err)
		}}, network(func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/.well-known/openid-configuration" {
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("no route to host")}
			}
			return answering(404, nil, ""), nil
		})))
		synctest.Wait()
		if len(failures) != 1 || failures[0] == nil {
			t.Fatalf("OnFetch was called with %q", failures)
		}
		for _, part := range []string{"oauth-authorization-server answered 404", "openid-configuration", "no route to host"} {
			if !contains(failures[0], part) {
				t.Errorf("%q does not contain %q", failures[0], part)
			}
		}
	})
}

// A redirect is not followed, and the error says where it leads, without parts that may be
// secret.
func TestKeysRedirect(t *testing.T) {
	for location, want := range map[string]string{
		"https://keys.example/jwks?api_key=canary#canary": "https://keys.example/jwks",
		"https://canary:canary@keys.example/":             "https://keys.example/",
		"/elsewhere?canary":                               "https://issuer.example/elsewhere",
		"":                                                "",
	} {
		synctest.Test(t, func(t *testing.T) {
			var failure error
			newJWT(t, overNetwork(jwtSettings{JWKSURI: "https://issuer.example/jwks?api_key=canary", Now: time.Now, OnFetch: func(_ string, _ time.Duration, err error) {
				failure = err
			}}, network(func(r *http.Request) (*http.Response, error) {
				answer := answering(302, http.Header{"Location": {location}}, "")
				answer.Request = r
				return answer, nil
			})))
			synctest.Wait()
			if !contains(failure, "not followed") || !contains(failure, want) || contains(failure, "canary") {
				t.Errorf("Location %q: %v", location, failure)
			}
		})
	}
}

// A server may answer with the request that it got, either in something that is not HTTP or
// after an answer. The request contains secrets, and net/http quotes it.
func TestKeysErrorsQuoteNoAnswer(t *testing.T) {
	for name, answer := range map[string]func(request []byte) string{
		"no HTTP":         func(request []byte) string { return string(request) },
		"a header's line": func(request []byte) string { return "HTTP/1.1 200 OK\r\n" + string(request) },
		"a line behind it": func(request []byte) string {
			return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + string(request)
		},
		"a status of its own": func(request []byte) string { return "HTTP/1.1 canary\r\n\r\n" },
		"another issuer": func([]byte) string {
			return "HTTP/1.1 200 OK\r\n\r\n{\"issuer\":\"" + strings.Repeat("x", 1000) + "canary\"}"
		},
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			go func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					request := make([]byte, 64<<10)
					n, _ := conn.Read(request)
					io.WriteString(conn, answer(request[:n]))
					conn.Close()
				}
			}()
			failures := make(chan error, 100)
			settings := jwtSettings{JWKSURI: "http://" + listener.Addr().String() + "/jwks?api_key=canary", OnFetch: func(_ string, _ time.Duration, err error) { failures <- err }}
			if name == "another issuer" {
				settings.JWKSURI, settings.Discovery, settings.Issuer = "", true, "http://"+listener.Addr().String()
			}
			newJWT(t, settings)
			if err := <-failures; !contains(err, listener.Addr().String()) || contains(err, "canary") || contains(err, "User-Agent") {
				t.Error(err)
			}
		})
	}
}

func contains(err error, part string) bool { return err != nil && strings.Contains(err.Error(), part) }
