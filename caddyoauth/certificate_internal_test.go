package caddyoauth

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// FuzzClientCert gives arbitrary text to what reads the headers of RFC 9440: what it accepts, written
// again, is what it accepted.
func FuzzClientCert(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(1<<32, 0)}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	write := func(der []byte) string { return ":" + base64.StdEncoding.EncodeToString(der) + ":" }
	good := write(der)
	for _, seed := range [][3]string{
		{good, "", ""}, {good, good, good + ", " + good}, {"", good, ""}, {good + ";a", "::", ":"}, {strings.Trim(good, ":"), ",", ""}, {" " + good + "\t", "", ""},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, leaf, chain, more string) {
		lines := []string{chain, more}
		if more == "" {
			lines = lines[:1]
		}
		if chain == "" {
			lines = lines[1:]
		}
		certificates, err := certificatesIn([]string{leaf}, lines)
		if err != nil {
			if certificates != nil {
				t.Fatalf("%q, %q is refused, and has certificates", leaf, lines)
			}
			return
		}
		if n := 1 + len(lines) + strings.Count(strings.Join(lines, ""), ","); len(certificates) != n || n > 1+maxChainLength {
			t.Fatalf("%q, %q has %d certificates", leaf, lines, len(certificates))
		}
		if strings.Trim(leaf, " \t") != write(certificates[0].Raw) {
			t.Fatalf("%q is read as %q", leaf, write(certificates[0].Raw))
		}
		var written []string
		for _, certificate := range certificates[1:] {
			written = append(written, write(certificate.Raw))
		}
		again, err := certificatesIn([]string{write(certificates[0].Raw)}, written)
		if err != nil || len(again) != len(certificates) || !bytes.Equal(again[len(again)-1].Raw, certificates[len(certificates)-1].Raw) {
			t.Fatalf("%q, %q is read, and what is written again is not: %v", leaf, lines, err)
		}
	})
}

// A request that came before the handshake was complete shows no certificate, wherever TLS ends.
func TestNoCertificateBeforeTheHandshake(t *testing.T) {
	t.Parallel()
	r := httptest.NewRequest("GET", "https://api.example.com:8443/", nil)
	cert := new(x509.Certificate)
	r.TLS = &tls.ConnectionState{HandshakeComplete: true, ServerName: "API.example.com", PeerCertificates: []*x509.Certificate{cert}}
	var c *ClientCertificates
	if got := c.of(r); got == nil || got.Leaf != cert || got.Verified() {
		t.Fatalf("the certificate of the connection is %v", got)
	}
	early, proxied, other, none := *r, *r, *r, *r
	early.TLS = &tls.ConnectionState{ServerName: "api.example.com", PeerCertificates: []*x509.Certificate{cert}}
	proxied.Header = http.Header{"Early-Data": {"1"}}
	other.Host = "other.example.com"
	none.TLS = &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{cert}}
	none.Host = ""
	for what, r := range map[string]*http.Request{"early data": &early, "early data at a proxy": &proxied, "another host": &other, "no name": &none} {
		if c.of(r) != nil {
			t.Errorf("%s shows a certificate", what)
		}
	}
}

// Of a proxy that is believed, the two names count as RFC 9440 spells them. Whatever a backend could
// take for one of them is made up.
func TestCertificateHeadersInOtherSpellings(t *testing.T) {
	t.Parallel()
	r := httptest.NewRequest("GET", "/", nil)
	vars := map[string]any{caddyhttp.TrustedProxyVarKey: true}
	r = r.WithContext(context.WithValue(r.Context(), caddyhttp.VarsCtxKey, vars))
	believing, other := &ClientCertificates{ClientCertHeader: true}, new(ClientCertificates)
	for name, want := range map[string]bool{
		"Client-Cert": false, "Client-Cert-Chain": false, "client-cert": true, "Client_Cert": true, "client.cert_chain": true, "CLIENT~CERT": true,
		"X-Client-Cert": false, "Client-Cert-2": false, "Client": false,
	} {
		if got := believing.isMadeUp(r, name); got != want {
			t.Errorf("%s is made up: %v", name, got)
		}
		looksLikeIt := isOneOf(name, certificateHeaders)
		for _, c := range []*ClientCertificates{other, nil} {
			if got := c.isMadeUp(r, name); got != looksLikeIt {
				t.Errorf("%s is made up where no proxy is believed: %v", name, got)
			}
		}
	}
}
