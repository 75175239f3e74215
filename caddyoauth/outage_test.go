package caddyoauth_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth"
)

// breakStore makes the named methods of the store fail with err until repair is called.
func breakStore(t *testing.T, err error, methods ...string) (repair func()) {
	f := func(_ context.Context, method string) error {
		for _, m := range methods {
			if m == method {
				return err
			}
		}
		return nil
	}
	caddyoauth.Outage.Store(&f)
	repair = func() { caddyoauth.Outage.Store(nil) }
	t.Cleanup(repair)
	return repair
}

// storeFailures are errors of every type that a store may come up with. Their texts must
// not reach a caller.
func storeFailures() map[string]error {
	return map[string]error{
		"closed":             caddyoauth.StoreErrors["closed"],
		"closed, wrapped":    fmt.Errorf("canary: %w", caddyoauth.StoreErrors["closed"]),
		"full":               caddyoauth.StoreErrors["full"],
		"deadline":           context.DeadlineExceeded,
		"cancelled":          context.Canceled,
		"no space":           &fs.PathError{Op: "write", Path: "/canary/tokens.db", Err: syscall.ENOSPC},
		"read-only":          &fs.PathError{Op: "write", Path: "/canary/tokens.db", Err: syscall.EROFS},
		"connection":         &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED},
		"end of file":        io.EOF,
		"cut short":          io.ErrUnexpectedEOF,
		"anything":           errors.New("canary: something else"),
		"several, joined":    errors.Join(errors.New("canary"), caddyoauth.StoreErrors["closed"]),
		"an untyped nothing": errors.New(""),
	}
}

// A store that has no room for this client, but for others, is no outage: the client has to slow
// down.
func TestNoMoreThanAShareOfTheStore(t *testing.T) {
	g := startGateway(t, "store outage\n"+testClients, "oauth_server")
	repair := breakStore(t, fmt.Errorf("canary: %w", caddyoauth.StoreErrors["client full"]), "Put")
	wantE(t, g.fetch("reader"), 429, "slow_down", "canary")
	repair()
	g.token("reader")
}

// T-12, T-10: no token is given out that the store has not taken.
func TestNoTokenWithoutAStore(t *testing.T) {
	for _, cache := range []string{"", "cache off"} {
		g := startGateway(t, "store outage\n"+cache+"\n"+testClients, "oauth_server")
		for name, err := range storeFailures() {
			t.Run("T-12 T-10 "+name, func(t *testing.T) {
				repair := breakStore(t, err, "Put", "Get", "Revoke")
				wantE(t, g.fetch("reader"), 503, "temporarily_unavailable", "canary", "tokens.db", testSecret)
				// Who may have no token learns nothing of the outage.
				wantE401(t, g.post("/oauth2/token", "reader", "wrong", map[string][]string{"grant_type": {"client_credentials"}}), "root")
				wantE(t, g.fetch("reader", "admin"), 400, "invalid_scope")
				repair()
				wantToken(t, g.fetch("reader"), "read")
			})
		}
	}
}

// I-10: when the store can't be asked, a token is not inactive. The answer is 503, or
// what the cache holds.
func TestIntrospectionDuringAnOutage(t *testing.T) {
	g := startGateway(t, "store outage\ncache off\n"+testClients, "oauth_server")
	token := g.token("reader")
	for name, err := range storeFailures() {
		t.Run("I-10 "+name, func(t *testing.T) {
			repair := breakStore(t, err, "Get")
			wantE(t, g.introspect("reader", token), 503, "temporarily_unavailable", token, "canary", "tokens.db")
			// Garbage needs no store to be known as such.
			if a := g.introspect("reader", "garbage"); a.StatusCode != 200 || a.Body != `{"active":false}` {
				t.Errorf("garbage during the outage: %d %s", a.StatusCode, a.Body)
			}
			repair()
			if a := g.introspect("reader", token); a.StatusCode != 200 || a.json(t)["active"] != true {
				t.Errorf("after the outage: %d %s", a.StatusCode, a.Body)
			}
		})
	}
}

// a revocation that the store did not take is never a 200, and works when it is
// tried again. Afterwards the token is dead, cached or not.
func TestRevocationDuringAnOutage(t *testing.T) {
	for _, cache := range []string{"", "cache off"} {
		g := startGateway(t, "store outage\n"+cache+"\n"+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND")
		failures := storeFailures()
		// Only of Revoke: from Get it is the answer that there is nothing to revoke.
		failures["not found"] = caddyoauth.StoreErrors["not found"]
		for name, err := range failures {
			for _, method := range []string{"Revoke", "Get"} {
				if name == "not found" && method == "Get" {
					continue
				}
				t.Run("R-07 "+method+" "+name, func(t *testing.T) {
					token := g.token("reader")
					if a := g.get("/x", token); a.StatusCode != 200 {
						t.Fatalf("before the outage: %d", a.StatusCode)
					}
					repair := breakStore(t, err, method)
					wantE(t, g.revoke("reader", token), 503, "temporarily_unavailable", token, "canary", "tokens.db")
					wantE(t, g.revoke("reader", token), 503, "temporarily_unavailable", token, "canary", "tokens.db")
					repair()
					if a := g.introspect("reader", token); a.json(t)["active"] != true {
						t.Errorf("nothing was revoked, yet the token is %s", a.Body)
					}
					if a := g.revoke("reader", token); a.StatusCode != 200 || a.Body != "{}" {
						t.Errorf("trying again: %d %s", a.StatusCode, a.Body)
					}
					if a := g.get("/x", token); a.StatusCode != 401 {
						t.Errorf("after the revocation: %d", a.StatusCode)
					}
				})
			}
		}
	}
}

// A store that does not answer is an outage too, and the caller does not wait for ever.
func TestStoreThatHangs(t *testing.T) {
	g := startGateway(t, "store outage\ncache off\n"+testClients, "oauth_server")
	token := g.token("reader")
	hang := func(ctx context.Context, _ string) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(30 * time.Second):
			return nil
		}
	}
	caddyoauth.Outage.Store(&hang)
	t.Cleanup(func() { caddyoauth.Outage.Store(nil) })
	for name, call := range map[string]func() answer{
		"T-12 T": func() answer { return g.fetch("reader") },
		"I-10 I": func() answer { return g.introspect("reader", token) },
		"R-07 R": func() answer { return g.revoke("reader", token) },
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			wantE(t, call(), 503, "temporarily_unavailable", token)
			if took := time.Since(begin); took > 15*time.Second {
				t.Errorf("the answer took %v", took)
			}
		})
	}
}
