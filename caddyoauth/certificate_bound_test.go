package caddyoauth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// selfSigned makes a client certificate that nobody vouches for.
func selfSigned(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// thumbprint is what a token that is bound to a certificate says of it (RFC 8705 section 3.1).
func thumbprint(certificate tls.Certificate) string {
	digest := sha256.Sum256(certificate.Certificate[0])
	return base64.RawURLEncoding.EncodeToString(digest[:])
}

// startMutualTLS starts a gateway whose only site asks its callers for certificates, and serves tokens
// and protected routes. with returns the same gateway for callers with these certificates.
func startMutualTLS(t *testing.T, oauth, site string) (g *gateway, with func(...tls.Certificate) *gateway, trust *x509.CertPool) {
	t.Helper()
	certFile, keyFile, trust := certificate(t)
	g = startCaddyfile(t, "{\nadmin off\npersist_config off\nskip_install_trust\nauto_https off\ngrace_period 1s\noauth {\n"+oauth+
		fmt.Sprintf("\n}\n}\nhttps://localhost:%d {\nbind 127.0.0.1\ntls ", porttest.Reserve(t))+certFile+" "+keyFile+" {\nclient_auth {\nmode request\n}\n}\n"+site+"\n}\n")
	with = func(certificates ...tls.Certificate) *gateway {
		transport := &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: trust, ServerName: "localhost", Certificates: certificates, MinVersion: tls.VersionTLS12},
			DialContext:     dialLocal, ForceAttemptHTTP2: true,
		}
		t.Cleanup(transport.CloseIdleConnections)
		url := "https://localhost:" + portOf(t, g.URL)
		return &gateway{t: t, URL: url, Backend: g.Backend, Client: &http.Client{Transport: transport, Timeout: 30 * time.Second}}
	}
	return g, with, trust
}

func portOf(t testing.TB, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u.Port()
}

// A token of a client with certificate_bound is good over connections with its certificate alone, also
// when it is in the cache, whatever its format and wherever it is kept.
func TestCertificateBoundTokens(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			client := "\nclient batch {\nsecret_hash " + testHash + "\nscopes read\ncertificate_bound\n}\n" +
				"client plain {\nsecret_hash " + testHash + "\nscopes read\n}\n"
			_, with, _ := startMutualTLS(t, v.options(t)+client, "oauth_server\noauth_protect /api/* {\nscopes read\n}\nreverse_proxy BACKEND")
			own, other := selfSigned(t, "batch"), selfSigned(t, "batch")
			batch, thief, nobody := with(own), with(other), with()

			token := batch.token("batch", "read")
			status := func(g *gateway, token string) int {
				t.Helper()
				return g.patiently(func() answer { return g.do(g.request("GET", "/api/x", "", "Authorization", "Bearer "+token)) }).StatusCode
			}
			for i := range 3 { // the first fills the cache
				for name, c := range map[string]struct {
					by   *gateway
					want int
				}{"own certificate": {batch, 200}, "another certificate": {thief, 401}, "no certificate": {nobody, 401}} {
					if got := status(c.by, token); got != c.want {
						t.Errorf("round %d: with %s: %d, want %d", i, name, got, c.want)
					}
				}
			}

			a := batch.patiently(func() answer {
				return nobody.post("/oauth2/introspect", "batch", testSecret, url.Values{"token": {token}})
			})
			if cnf, _ := a.json(t)["cnf"].(map[string]any); fmt.Sprint(cnf) != fmt.Sprint(map[string]any{"x5t#S256": thumbprint(own)}) {
				t.Errorf("introspection says cnf %v, want the thumbprint of the client's certificate", cnf)
			}
			if a := nobody.fetch("batch", "read"); a.StatusCode != 400 || a.json(t)["error"] != "invalid_request" {
				t.Errorf("fetching without a certificate: %d %s, want 400 invalid_request", a.StatusCode, a.Body)
			}
			// Others have bearer tokens still, with a certificate or without.
			plain := batch.token("plain", "read")
			for name, by := range map[string]*gateway{"own certificate": batch, "another certificate": thief, "no certificate": nobody} {
				if got := status(by, plain); got != 200 {
					t.Errorf("a bearer token with %s: %d, want 200", name, got)
				}
			}
		})
	}
}

// A certificate counts over every version of HTTP.
func TestCertificateBoundOverHTTP3(t *testing.T) {
	_, with, trust := startMutualTLS(t, "store memory\nclient batch {\nsecret_hash "+testHash+"\nscopes read\ncertificate_bound\n}", "oauth_server\noauth_protect\nreverse_proxy BACKEND")
	own := selfSigned(t, "batch")
	token := with(own).token("batch", "read")
	for name, c := range map[string]struct {
		certificates []tls.Certificate
		want         int
	}{"own": {[]tls.Certificate{own}, 200}, "another": {[]tls.Certificate{selfSigned(t, "batch")}, 401}, "none": {nil, 401}} {
		h3 := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: trust, ServerName: "localhost", Certificates: c.certificates, MinVersion: tls.VersionTLS13}, Dial: dialLocalQUIC}
		g := with()
		g.Client = &http.Client{Transport: h3, Timeout: 30 * time.Second}
		if a := g.do(g.request("GET", "/api", "", "Authorization", "Bearer "+token)); a.StatusCode != c.want || a.Proto != "HTTP/3.0" {
			t.Errorf("certificate %s: %d over %s, want %d over HTTP/3.0", name, a.StatusCode, a.Proto, c.want)
		}
		if err := h3.Close(); err != nil {
			t.Error(err)
		}
	}
}
