package caddyoauth_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// certificate makes a self-signed certificate for gateway.test and localhost. It returns the
// files of the certificate and its key, and a pool that trusts it.
func certificate(t testing.TB) (certFile, keyFile string, trust *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gateway.test"}, DNSNames: []string{"gateway.test", "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	trust = x509.NewCertPool()
	trust.AddCert(cert)
	return certFile, keyFile, trust
}

// dialLocal connects to this machine, whatever the host name.
func dialLocal(ctx context.Context, network, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, local(address))
}

func dialLocalQUIC(ctx context.Context, address string, config *tls.Config, quicConfig *quic.Config) (*quic.Conn, error) {
	return quic.DialAddr(ctx, local(address), config, quicConfig)
}

func local(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return net.JoinHostPort("127.0.0.1", port)
}

// only returns a set with one version of HTTP.
func only(set func(*http.Protocols, bool)) *http.Protocols {
	p := new(http.Protocols)
	set(p, true)
	return p
}

// The answers are the same over every version of HTTP, in the clear and over TLS.
func TestEndpointsOverEveryProtocol(t *testing.T) {
	certFile, keyFile, trust := certificate(t)
	port := porttest.Reserve(t)
	g := &gateway{t: t, Backend: newBackend(t), Client: newClient(t)}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Errorf("stopping Caddy: %v", err)
		}
	})
	err := g.loadCaddyfile("{\nadmin off\npersist_config off\nskip_install_trust\nauto_https off\ngrace_period 1s\nservers {\nprotocols h1 h2 h2c h3\n}\noauth {\nstore memory\n" + endpointOptions() + "}\n}\n" +
		fmt.Sprintf("https://gateway.test:%d {\nbind 127.0.0.1\ntls %s %s\noauth_server\n}\n", port, certFile, keyFile) +
		"http://gateway.test:0 {\nbind 127.0.0.1\noauth_server\n}\n")
	if err != nil {
		t.Fatal(err)
	}
	// The first server is the one on port 0, whose actual port is known now.
	_, plainPort, err := net.SplitHostPort(strings.TrimPrefix(g.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	plain := "http://gateway.test:" + plainPort
	secure := fmt.Sprintf("https://gateway.test:%d", port)
	config := &tls.Config{RootCAs: trust, ServerName: "gateway.test", MinVersion: tls.VersionTLS13}

	h1 := &http.Transport{TLSClientConfig: config.Clone(), DialContext: dialLocal, Protocols: only((*http.Protocols).SetHTTP1)}
	h2 := &http.Transport{TLSClientConfig: config.Clone(), DialContext: dialLocal, Protocols: only((*http.Protocols).SetHTTP2)}
	h2c := &http.Transport{DialContext: dialLocal, Protocols: only((*http.Protocols).SetUnencryptedHTTP2)}
	h3 := &http3.Transport{TLSClientConfig: config.Clone(), Dial: dialLocalQUIC}
	t.Cleanup(func() {
		h1.CloseIdleConnections()
		h2.CloseIdleConnections()
		h2c.CloseIdleConnections()
		h3.Close()
	})
	for _, c := range []struct {
		name, url, proto string
		transport        http.RoundTripper
	}{
		{"h1", secure, "HTTP/1.1", h1},
		{"h2", secure, "HTTP/2.0", h2},
		{"h2c", plain, "HTTP/2.0", h2c},
		{"h3", secure, "HTTP/3.0", h3},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := &gateway{t: t, URL: c.url, Backend: g.Backend, Client: &http.Client{Transport: c.transport, Timeout: 30 * time.Second}}
			if a := g.fetch("reader"); a.Proto != c.proto {
				t.Fatalf("the protocol is %s, want %s", a.Proto, c.proto)
			}
			for _, cases := range [][]endpointCase{transportCases(), tokenCases(), clientAuthCases()} {
				runCases(t, g, cases)
			}
			for _, body := range []string{"", "client_secret=" + testSecret, strings.Repeat("x", 1<<20)} {
				wantNoEndpoint(t, g.do(g.request("POST", "/oauth2/beta/token", body)), "/oauth2/access_token")
			}
		})
	}
}
