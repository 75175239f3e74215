package caddyoauth

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// Only the connection's own peer makes plain HTTP acceptable, whatever headers say.
func TestSecureOrLocal(t *testing.T) {
	for _, c := range []struct {
		peer string
		tls  bool
		want bool
	}{
		{"127.0.0.1:1234", false, true},
		{"127.8.9.10:1234", false, true},
		{"[::1]:1234", false, true},
		{"[::ffff:127.0.0.1]:1234", false, true},
		{"@", false, true}, // a unix socket
		{"", false, true},
		{"192.0.2.1:1234", false, false},
		{"10.0.0.1:1234", false, false},
		{"[2001:db8::1]:1234", false, false},
		{"[fe80::1%eth0]:1234", false, false},
		{"[::ffff:192.0.2.1]:1234", false, false},
		{"0.0.0.0:1234", false, false},
		{"[::]:1234", false, false},
		{"localhost:1234", false, false}, // a name is not an address
		{"127.0.0.1", false, false},
		{"127.0.0.1.evil.example:1234", false, false},
		{"192.0.2.1:1234", true, true},
		{"[2001:db8::1]:1234", true, true},
	} {
		r := &http.Request{RemoteAddr: c.peer, Header: http.Header{
			"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"https"}, "Forwarded": {"for=127.0.0.1;proto=https"}, "X-Real-Ip": {"127.0.0.1"},
		}}
		if c.tls {
			r.TLS = &tls.ConnectionState{HandshakeComplete: true}
		}
		if got := secureOrLocal(r); got != c.want {
			t.Errorf("from %q, TLS %t: %t, want %t", c.peer, c.tls, got, c.want)
		}
	}
}

// If Caddy trusts the peer as a proxy, what it says about the client's connection counts, for
// better or worse. For any other peer, and for a proxy that says nothing, our connection counts.
func TestSecureBehindATrustedProxy(t *testing.T) {
	const balancer, here, socket = "10.0.0.1:1234", "127.0.0.1:1234", "@"
	for _, c := range []struct {
		peer    string
		tls     bool
		trusted any // Caddy's variable
		proto   []string
		want    bool
	}{
		{balancer, false, true, []string{"https"}, true},
		{balancer, false, true, []string{"HTTPS"}, true},
		{balancer, false, true, []string{"wss"}, true},
		{balancer, false, true, []string{"https, https"}, true},
		{balancer, false, true, []string{"https", " https"}, true},
		{balancer, false, true, []string{"http"}, false},
		{balancer, false, true, []string{"ws"}, false},
		{balancer, false, true, []string{"http, https"}, false},
		{balancer, false, true, []string{"https, http"}, false},
		{balancer, false, true, []string{"https", "http"}, false},
		{balancer, false, true, []string{"http", "https"}, false},
		{balancer, false, true, []string{""}, false},
		{balancer, false, true, []string{"https,"}, false},
		{balancer, false, true, []string{"httpsx"}, false},
		{balancer, false, true, []string{"https://"}, false},
		{balancer, false, true, []string{}, true}, // no value says otherwise; net/http makes no such header
		{balancer, false, true, nil, false},
		{balancer, true, true, nil, true},
		{balancer, true, true, []string{"https"}, true},
		{balancer, true, true, []string{"http"}, false},
		{here, false, true, nil, true},
		{here, false, true, []string{"https"}, true},
		{here, false, true, []string{"http"}, false},
		{socket, false, true, nil, true},
		{socket, false, true, []string{"https"}, true},
		{socket, false, true, []string{"http"}, false},

		{balancer, false, false, []string{"https"}, false},
		{balancer, false, nil, []string{"https"}, false},
		{balancer, true, false, []string{"http"}, true},
		{here, false, false, []string{"http"}, true},
		{here, false, nil, []string{"http"}, true},
		{socket, false, false, []string{"http"}, true},
	} {
		vars := map[string]any{}
		if c.trusted != nil {
			vars[caddyhttp.TrustedProxyVarKey] = c.trusted
		}
		r := (&http.Request{RemoteAddr: c.peer, Header: http.Header{"Forwarded": {"proto=https"}}}).WithContext(context.WithValue(t.Context(), caddyhttp.VarsCtxKey, vars))
		if c.proto != nil {
			r.Header["X-Forwarded-Proto"] = c.proto
		}
		if c.tls {
			r.TLS = &tls.ConnectionState{HandshakeComplete: true}
		}
		if got := secureOrLocal(r); got != c.want {
			t.Errorf("from %s (TLS %t, trusted %v) that says %q: %t, want %t", c.peer, c.tls, c.trusted, c.proto, got, c.want)
		}
	}
}

// A request counts against the client's address as Caddy knows it, and against the peer if Caddy
// knows none.
func TestClientAddress(t *testing.T) {
	for _, c := range []struct{ clientIP, peer, want string }{
		{"192.0.2.7", "10.0.0.1:80", "192.0.2.7"},
		{"::ffff:192.0.2.7", "10.0.0.1:80", "192.0.2.7"},
		{"2001:db8:1:2:3:4:5:6", "10.0.0.1:80", "2001:db8:1:2:3:4:5:6"},
		{"fe80::1%eth0", "10.0.0.1:80", "fe80::1%eth0"},
		{"", "192.0.2.9:80", "192.0.2.9"},
		{"", "[2001:db8::1]:80", "2001:db8::1"},
		{"", "@", ""},
		{"nonsense", "192.0.2.9:80", "192.0.2.9"},
	} {
		ctx := context.WithValue(t.Context(), caddyhttp.VarsCtxKey, map[string]any{caddyhttp.ClientIPVarKey: c.clientIP})
		r := (&http.Request{RemoteAddr: c.peer}).WithContext(ctx)
		if got := clientIP(r); got != c.want {
			t.Errorf("client %q, peer %q: %q, want %q", c.clientIP, c.peer, got, c.want)
		}
	}
}

// transportConfig is a gateway without a site of its own: the test calls the handler.
const transportConfig = `{
	"admin": {"disabled": true, "config": {"persist": false}},
	"apps": {"oauth": {"store": {"store": "memory"}, "realms": {"root": {"clients": {"c": {
		"secrets": [{"hash": "$sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0"}],
		"scopes": ["read"], "default_scopes": ["read"]
	}}}}}}
}`

// Credentials over plain HTTP from another machine are refused, without a redirect that would
// have them sent again, and so is early data (RFC 8470). Real peers in tests are all local, so
// this test calls the handler with requests from others.
func TestTransportOfCredentials(t *testing.T) {
	if err := caddy.Load([]byte(transportConfig), true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
	})
	done, early := &tls.ConnectionState{HandshakeComplete: true}, &tls.ConnectionState{}
	paths := []string{"/oauth2/access_token", "/oauth2/token", "/oauth2/introspect", "/oauth2/token/revoke", "/oauth2/revoke", "/oauth2/realms/root/access_token"}
	for _, c := range []struct {
		name     string
		peer     string
		tls      *tls.ConnectionState
		insecure bool // the switch for development
		status   int
	}{
		{"plain HTTP from another machine", "192.0.2.1:1234", nil, false, 403},
		{"plain HTTP over IPv6", "[2001:db8::1]:1234", nil, false, 403},
		{"plain HTTP from a private network", "10.1.2.3:1234", nil, false, 403},
		{"plain HTTP with the switch", "192.0.2.1:1234", nil, true, 200},
		{"plain HTTP from this machine", "127.0.0.1:1234", nil, false, 200},
		{"TLS", "192.0.2.1:1234", done, false, 200},
		{"early data", "192.0.2.1:1234", early, false, 425},
		{"early data from this machine", "127.0.0.1:1234", early, false, 425},
		{"early data with the switch", "192.0.2.1:1234", early, true, 425},
		{"early data at a balancer", "10.9.8.7:1234", done, false, 425},
	} {
		server := &Server{InsecureHTTP: c.insecure}
		if err := server.Provision(caddy.ActiveContext()); err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			t.Run(c.name+" at "+path, func(t *testing.T) {
				r := httptest.NewRequest("POST", "http://gateway.example"+path, strings.NewReader("grant_type=client_credentials&token=x"))
				r.RemoteAddr, r.TLS = c.peer, c.tls
				r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				r.Header.Set("X-Forwarded-Proto", "https")
				r.Header.Set("X-Forwarded-For", "127.0.0.1")
				if c.name == "early data at a balancer" {
					r.Header.Set("Early-Data", "1")
				}
				r.SetBasicAuth("c", "abc")
				w := httptest.NewRecorder()
				r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, nil)
				next := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
					t.Error("the request was passed on")
					return nil
				})
				if err := server.ServeHTTP(w, r, next); err != nil {
					t.Fatal(err)
				}
				body := w.Body.String()
				if w.Code != c.status {
					t.Errorf("status %d %s, want %d", w.Code, body, c.status)
				}
				if c.status != 200 && (!strings.Contains(body, `"error":"invalid_request"`) || strings.Contains(body, "access_token")) {
					t.Errorf("the refusal is %s", body)
				}
				if w.Header().Get("Location") != "" || w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Pragma") != "no-cache" {
					t.Errorf("the headers are %v", w.Header())
				}
			})
		}
	}
}
