package caddyoauth

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap/zapcore"

	"github.com/caddyoauth/gateway/introspect"
)

// Who may call only some paths by remote administration can't reach others by paths that Caddy takes for
// those. Locally, there are no permissions that could be evaded, and a client's ID may be anything.
func TestPermittedPaths(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	for _, route := range (adminAPI{}).Routes() {
		handler := guarded(route.Pattern, func(http.ResponseWriter, *http.Request) error { return nil }).Handler
		mux.HandleFunc(route.Pattern, func(w http.ResponseWriter, r *http.Request) {
			if refused := (caddy.APIError{}); errors.As(handler.ServeHTTP(w, r), &refused) {
				w.WriteHeader(refused.HTTPStatus)
			}
		})
	}
	for path, remote := range map[string]int{
		"/oauth/": 200, "/oauth/keys": 200, "/oauth/console/": 200, "/oauth/clients/root/batch": 200, "/oauth/clients/root/batch/secrets/ab12": 200,
		"/oauth/clients/root/a%2Fb": 200, "/oauth/clients/root/...": 200, "/oauth/clients/root/..a": 200,
		"/oauth/clients/other/..%2Froot%2Fbatch": 403, "/oauth/clients/other/x%2f%2e%2E%2f..%2froot": 403, "/oauth/clients/other/%2E%2E": 403,
		"/oauth/clients/root/.%2Fbatch": 403, "/oauth/clients/root/%2Fbatch": 403, "/oauth/clients/root/batch%2F%2F": 403,
	} {
		for _, from := range []struct {
			tls  *tls.ConnectionState
			want int
		}{{nil, 200}, {new(tls.ConnectionState), remote}} {
			r, w := httptest.NewRequest("GET", path, nil), httptest.NewRecorder()
			r.TLS = from.tls
			mux.ServeHTTP(w, r)
			if w.Code != from.want {
				t.Errorf("%s, remote %t: %d, want %d", path, from.tls != nil, w.Code, from.want)
			}
		}
	}
}

// An event of an operator says who that was: the address or the socket, and the certificate.
func TestAdminCaller(t *testing.T) {
	t.Parallel()
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	certificate := func(subject pkix.Name, uris ...*url.URL) *tls.Certificate {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: subject, URIs: uris, NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	thumbprint := func(c *tls.Certificate) string {
		return introspect.CertificateThumbprint(&x509.Certificate{Raw: c.Certificate[0]})
	}
	socket := filepath.Join(t.TempDir(), "admin.sock")
	named := certificate(pkix.Name{CommonName: "ops"})
	workload := certificate(pkix.Name{}, &url.URL{Scheme: "spiffe", Host: "example.org", Path: "/ops"})
	for _, c := range []struct {
		name             string
		network, address string
		certificate      *tls.Certificate
		want             map[string]any
	}{
		{"an address", "tcp", "127.0.0.1:0", nil, map[string]any{"remote_ip": "127.0.0.1"}},
		{"a socket", "unix", socket, nil, map[string]any{"admin_socket": socket}},
		{"a certificate", "tcp", "127.0.0.1:0", named, map[string]any{"remote_ip": "127.0.0.1", "admin": "CN=ops", "admin_certificate": thumbprint(named)}},
		{"a certificate without a subject", "tcp", "127.0.0.1:0", workload, map[string]any{"remote_ip": "127.0.0.1", "admin": "spiffe://example.org/ops", "admin_certificate": thumbprint(workload)}},
	} {
		listener, err := net.Listen(c.network, c.address)
		if err != nil {
			t.Fatal(err)
		}
		fields := zapcore.NewMapObjectEncoder()
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			for _, field := range adminCaller(r) {
				field.AddTo(fields)
			}
		}))
		server.Listener.Close()
		server.Listener = listener
		dialer := func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, c.network, listener.Addr().String())
		}
		transport := &http.Transport{DialContext: dialer}
		target := "http://localhost/"
		if c.certificate != nil {
			server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
			server.StartTLS()
			transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*c.certificate}}
			target = "https://localhost/"
		} else {
			server.Start()
		}
		res, err := (&http.Client{Transport: transport}).Get(target)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		transport.CloseIdleConnections()
		server.Close()
		if err != nil || len(fields.Fields) != len(c.want) {
			t.Errorf("%s: %v, %v; want %v", c.name, fields.Fields, err, c.want)
		}
		for name, want := range c.want {
			if got := fields.Fields[name]; got != want {
				t.Errorf("%s: %s is %v, want %v", c.name, name, got, want)
			}
		}
	}
}
