package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// The load speaks what it is told to, over as many connections, and shows a certificate if it has one.
func TestProtocols(t *testing.T) {
	made, err := makeCertificates(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(made.server, made.key)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		with setup
		want string // protocol and name in the certificate
	}{
		"HTTP/1.1":           {setup{}, "HTTP/1.1 "},
		"TLS":                {setup{protocol: http1TLS}, "HTTP/1.1 none"},
		"HTTP/2":             {setup{protocol: http2TLS}, "HTTP/2.0 none"},
		"with a certificate": {setup{protocol: http1TLS, certificate: true}, "HTTP/1.1 " + host},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			callers := make(map[string]int)
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				callers[r.RemoteAddr]++
				mu.Unlock()
				if r.URL.Path == "/refused" {
					w.WriteHeader(http.StatusUnauthorized)
				}
				form, _ := io.ReadAll(r.Body)
				shown := ""
				if r.TLS != nil {
					shown = "none"
					for _, c := range r.TLS.PeerCertificates {
						shown = c.Subject.CommonName
					}
				}
				fmt.Fprintf(w, "%s %s %s %s", r.Proto, shown, r.Host, form)
			}))
			server.EnableHTTP2 = true
			server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert}
			if c.with.protocol == http1 {
				server.Start()
			} else {
				server.StartTLS()
			}
			t.Cleanup(server.Close)
			g := &gateway{addr: server.Listener.Addr().String(), over: made.config(c.with)}
			l, err := g.dial(t.Context(), 2)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			want := c.want + " " + g.host() + " a=b"
			got, err := l.run(t.Context(), atMost(40, repeat(g.post("/x", "a=b", credentials{}))), 0, func(body []byte) error { return begins(body, want) })
			if err != nil || got.requests != 40 || got.size != len(want) {
				t.Errorf("%d answers of %d bytes, and %v; want 40 of %d", got.requests, got.size, err, len(want))
			}
			lanes := 2
			if c.with.protocol == http2TLS {
				lanes *= streams
			}
			if len(callers) > 2 || len(l.conns) != lanes {
				t.Errorf("%d requests at a time over %d connections, want %d over 2", len(l.conns), len(callers), lanes)
			}
			var refused statusError
			if _, err := l.run(t.Context(), repeat(g.get("/refused", "")), 0, isStatic); !errors.As(err, &refused) || refused.code != http.StatusUnauthorized {
				t.Errorf("%v, want a refusal", err)
			}
		})
	}
}

// A server that speaks another protocol, or that nobody has certified, is not measured by mistake.
func TestOtherProtocols(t *testing.T) {
	made, err := makeCertificates(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(made.server, made.key)
	if err != nil {
		t.Fatal(err)
	}
	other, err := makeCertificates(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for says, c := range map[string]struct {
		speaks []string
		over   *tls.Config
	}{
		"no application protocol":          {[]string{"http/1.1"}, made.config(setup{protocol: http2TLS})},
		"does not speak HTTP/2":            {nil, made.config(setup{protocol: http2TLS})},
		"certificate signed by unknown":    {nil, other.config(setup{protocol: http1TLS})},
		"first record does not look like ": {nil, nil},
	} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var serverErr error
		served := make(chan struct{})
		go func() {
			defer close(served)
			conn, err := listener.Accept()
			if err != nil {
				serverErr = err
				return
			}
			defer conn.Close()
			serverErr = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: c.speaks}).Handshake()
		}()
		l, err := dial(t.Context(), listener.Addr().String(), c.over, 1)
		if err == nil {
			_, err = l.run(t.Context(), repeat([]byte("GET / HTTP/1.1\r\n\r\n")), 0, isBackend)
			l.Close()
		}
		listener.Close()
		<-served
		if err == nil || !strings.Contains(fmt.Sprint(err, serverErr), says) {
			t.Errorf("%v, want an error that says %q", err, says)
		}
	}
}

// Both kinds of Caddy serve over TLS alone, and ask for the certificate where the tokens are bound to it.
func TestGatewaysOverTLS(t *testing.T) {
	b := prepared(t)
	for _, with := range []setup{
		{store: "memory", protocol: http2TLS},
		{store: "memory", protocol: http1TLS, certificate: true},
		{protocol: http1TLS, certificate: true},
	} {
		g, err := b.start(t.Context(), with)
		if err != nil {
			t.Fatalf("%+v: %v", with, err)
		}
		t.Cleanup(g.stop)
		try := func(over *tls.Config) error {
			bare := &gateway{addr: g.addr, over: over}
			l, err := bare.dial(t.Context(), 1)
			if err != nil {
				return err
			}
			defer l.Close()
			_, err = l.run(t.Context(), atMost(1, repeat(g.get(plainPath, ""))), 0, isBackend)
			return err
		}
		if err := try(nil); err == nil {
			t.Errorf("%+v: it answers without TLS", with)
		}
		if err := try(b.certificates.config(setup{protocol: http1TLS})); (err != nil) != with.certificate {
			t.Errorf("%+v: without a certificate: %v", with, err)
		}
		if with.store == "" {
			continue
		}
		tokens, err := b.tokens(t.Context(), g, 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.all(t.Context(), g, once([][]byte{g.post("/oauth2/introspect", "token="+tokens[0], b.generated)}), func(body []byte) error {
			if bound := strings.Contains(string(body), `"x5t#S256":`); bound != with.certificate {
				t.Errorf("%+v: the token is bound to a certificate: %v", with, bound)
			}
			return isActive(body)
		}); err != nil {
			t.Error(err)
		}
	}
}

// A route with three sources accepts a token of each, and no other.
func TestSources(t *testing.T) {
	b := prepared(t)
	r := b.sourceRows()[2]
	g, err := b.start(t.Context(), r.setup())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.stop)
	ours, _, err := r.sides(t.Context(), g, g)
	if err != nil {
		t.Fatal(err)
	}
	next, err := ours.next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	different := make(map[string]bool)
	for range 6 {
		different[string(next())] = true
	}
	if len(different) != 3 {
		t.Errorf("%d different requests, want 3", len(different))
	}
	for _, token := range []string{"", "somebody", b.issuer.opaque + "x", b.issuer.jwt[:len(b.issuer.jwt)-10] + "AAAAAAAAAA"} {
		var refused statusError
		if err := b.all(t.Context(), g, once([][]byte{g.get(protectedPath, token)}), isBackend); !errors.As(err, &refused) || refused.code != http.StatusUnauthorized {
			t.Errorf("%v, want a refusal", err)
		}
	}
}

// prepared returns what a run has before its first measurement.
func prepared(t *testing.T) *bench {
	b := &bench{cfg: tiny(), report: newReport(tiny()), bar: newProgress(io.Discard, 1), folder: t.TempDir()}
	backend, err := b.serveBackend(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { backend.Close() })
	if b.issuer, err = newIssuer(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.issuer.server.Close() })
	if err := b.prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}
