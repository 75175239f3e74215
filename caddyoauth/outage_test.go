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

// storeFailures returns errors of every type that a store may return. Their texts must not reach
// a caller.
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

// A store that has no more room for a client, but has for others, is not an outage: the client has
// to slow down.
func TestNoMoreThanAShareOfTheStore(t *testing.T) {
	g := startGateway(t, "store outage\n"+testClients, "oauth_server")
	repair := breakStore(t, fmt.Errorf("canary: %w", caddyoauth.StoreErrors["client full"]), "Put")
	wantE(t, g.fetch("reader"), 429, "slow_down", "canary")
	repair()
	g.token("reader")
}

// No token is issued that the store has not recorded.
func TestNoTokenWithoutAStore(t *testing.T) {
	for _, cache := range []string{"", "cache off"} {
		g := startGateway(t, "store outage\n"+noFailureLimit+cache+"\n"+testClients, "oauth_server")
		for name, err := range storeFailures() {
			t.Run(name, func(t *testing.T) {
				repair := breakStore(t, err, "Put", "Get", "Revoke")
				wantE(t, g.fetch("reader"), 503, "temporarily_unavailable", "canary", "tokens.db", testSecret)
				// A caller that may not have a token does not learn of the outage.
				wantE401(t, g.post("/oauth2/token", "reader", "wrong", map[string][]string{"grant_type": {"client_credentials"}}), "root")
				wantE(t, g.fetch("reader", "admin"), 400, "invalid_scope")
				repair()
				wantToken(t, g.fetch("reader"), "read")
			})
		}
	}
}

// If the store can't be asked, a token is not called inactive. The answer is 503.
func TestIntrospectionDuringAnOutage(t *testing.T) {
	g := startGateway(t, "store outage\ncache off\n"+testClients, "oauth_server")
	token := g.token("reader")
	for name, err := range storeFailures() {
		t.Run(name, func(t *testing.T) {
			repair := breakStore(t, err, "Get")
			wantE(t, g.introspect("reader", token), 503, "temporarily_unavailable", token, "canary", "tokens.db")
			// Garbage is recognised without the store.
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

// A revocation that the store did not record is never answered with 200, and works when it is
// tried again. Then the token is dead, cached or not.
func TestRevocationDuringAnOutage(t *testing.T) {
	for _, cache := range []string{"", "cache off"} {
		g := startGateway(t, "store outage\n"+cache+"\n"+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND")
		failures := storeFailures()
		// Only from Revoke. From Get it means that there is nothing to revoke, which is not a failure.
		failures["not found"] = caddyoauth.StoreErrors["not found"]
		for name, err := range failures {
			for _, method := range []string{"Revoke", "Get"} {
				if name == "not found" && method == "Get" {
					continue
				}
				t.Run(method+" "+name, func(t *testing.T) {
					token := g.token("reader")
					if a := g.get("/x", token); a.StatusCode != 200 {
						t.Fatalf("before the outage: %d", a.StatusCode)
					}
					repair := breakStore(t, err, method)
					wantE(t, g.revoke("reader", token), 503, "temporarily_unavailable", token, "canary", "tokens.db")
					wantE(t, g.revoke("reader", token), 503, "temporarily_unavailable", token, "canary", "tokens.db")
					repair()
					if a := g.introspect("reader", token); a.json(t)["active"] != true {
						t.Errorf("no revocation succeeded, yet the token is %s", a.Body)
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

// A store that does not answer is an outage, too, and the caller does not wait for ever.
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
		"token":         func() answer { return g.fetch("reader") },
		"introspection": func() answer { return g.introspect("reader", token) },
		"revocation":    func() answer { return g.revoke("reader", token) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they mostly wait, and one gateway serves them all
			begin := time.Now()
			wantE(t, call(), 503, "temporarily_unavailable", token)
			if took := time.Since(begin); took > 15*time.Second {
				t.Errorf("the answer took %v", took)
			}
		})
	}
}
