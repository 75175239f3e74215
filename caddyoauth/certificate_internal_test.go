package caddyoauth

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyoauth/gateway/introspect"
)

// Files with certificates are read again, and what can't be read changes nothing.
func TestCertificateFilesAreReadAgain(t *testing.T) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	file := filepath.Join(t.TempDir(), "own.pem")
	write := func(text []byte) {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	made := func(serial int64) (text []byte, thumbprint string) {
		template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Unix(1<<32, 0)}
		der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), introspect.CertificateThumbprint(&x509.Certificate{Raw: der})
	}
	before, beforeID := made(1)
	after, afterID := made(2)
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		write(before)
		f, err := watchCertificates([]string{file}, func() *zap.Logger { return zap.New(core) })
		if err != nil {
			t.Fatal(err)
		}
		for i, step := range []struct {
			content []byte
			has     string
			warned  int
		}{
			{before, beforeID, 0}, {slices.Concat(before, after), beforeID + " " + afterID, 0}, {slices.Concat(before, after[:len(after)/2]), beforeID + " " + afterID, 1},
			{slices.Concat(before[:len(before)/2], []byte("\n"), after), beforeID + " " + afterID, 1}, {after, afterID, 1}, {nil, afterID, 2}, {nil, afterID, 2},
			{[]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), afterID, 3}, {before, beforeID, 3},
		} {
			write(step.content)
			time.Sleep(certificateInterval) // of the bubble's clock
			synctest.Wait()
			if f.has(beforeID) != strings.Contains(step.has, beforeID) || f.has(afterID) != strings.Contains(step.has, afterID) || logs.Len() != step.warned {
				t.Errorf("step %d: the first %v, the second %v, %d warnings", i, f.has(beforeID), f.has(afterID), logs.Len())
			}
		}
		if err := f.Destruct(); err != nil {
			t.Error(err)
		}
	})
	if _, err := watchCertificates([]string{file + ".none"}, nil); err == nil {
		t.Error("a file that is not there is watched")
	}
}

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

// What is read of a header is bounded, and is all that the header says.
func TestClientCertIsBounded(t *testing.T) {
	t.Parallel()
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	made := func(size int) string {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(1<<32, 0), ExtraExtensions: []pkix.Extension{{Id: []int{1, 2, 3}, Value: make([]byte, size)}}}
		der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(der)
	}
	good, stray := made(15<<10), ""
	for n := 1; !strings.HasSuffix(stray, "="); n++ {
		stray = made(n)
	}
	last := strings.IndexByte(stray, '=') - 1
	stray = stray[:last] + string(stray[last]+1) + stray[last+1:] // whose spare bits are not zero
	for what, c := range map[string]struct {
		text string
		ok   bool
	}{
		"large": {good, true}, "too large": {made(16 << 10), false}, "with a line break": {good[:64] + "\n" + good[64:], false},
		"with bits in the padding": {stray, false},
	} {
		if _, err := certificatesIn([]string{":" + c.text + ":"}, nil); (err == nil) != c.ok {
			t.Errorf("%s: %v", what, err)
		}
	}
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
	early, proxied, odd, other, none := *r, *r, *r, *r, *r
	early.TLS = &tls.ConnectionState{ServerName: "api.example.com", PeerCertificates: []*x509.Certificate{cert}}
	proxied.Header = http.Header{"Early-Data": {"1"}}
	odd.Header = http.Header{"Early-Data": {"0", "1"}}
	other.Host = "other.example.com"
	none.TLS = &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{cert}}
	none.Host = ""
	for what, r := range map[string]*http.Request{"early data": &early, "early data at a proxy": &proxied, "early data in two headers": &odd, "another host": &other, "no name": &none} {
		if c.of(r) != nil {
			t.Errorf("%s shows a certificate", what)
		}
	}
}

// Whoever sends a chain chooses what verifying it costs, so there is a bound.
func TestVerifyingAChainHasABound(t *testing.T) {
	ca := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	made := func(name, issuer string, serial int64, public any) *x509.Certificate {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotAfter: time.Unix(1<<32, 0),
			IsCA: name != "leaf", BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
		der, err := x509.CreateCertificate(rand.Reader, template, &x509.Certificate{Subject: pkix.Name{CommonName: issuer}}, public, ca)
		if err != nil {
			t.Fatal(err)
		}
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return certificate
	}
	c := &ClientCertificates{authorities: x509.NewCertPool()}
	c.authorities.AddCert(made("root", "root", 1, ca.Public()))
	leaf, between := made("leaf", "between", 2, ca.Public()), made("between", "root", 3, ca.Public())

	var chain []*x509.Certificate
	for range maxChainLength - 1 {
		chain = append(chain, made("other", "root", 4, ca.Public()))
	}
	if !c.verify(slices.Concat([]*x509.Certificate{leaf}, chain, []*x509.Certificate{between})) {
		t.Error("ten certificates between are too many")
	}
	if c.verify(slices.Concat([]*x509.Certificate{leaf, leaf}, chain, []*x509.Certificate{between})) {
		t.Error("more than ten certificates between count")
	}

	const size = 8 << 10 // bytes
	huge := []*x509.Certificate{leaf}
	for serial := range int64(maxChainLength) {
		modulus := append(bytes.Repeat([]byte{0xff}, size-1), byte(2*serial+1))
		huge = append(huge, made("between", "root", 5+serial, &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: 1<<31 - 1}))
	}
	signature := *leaf
	signature.SignatureAlgorithm, signature.Signature = x509.SHA256WithRSA, append([]byte{1}, make([]byte, size-1)...)
	huge[0] = &signature
	for attempt := 1; ; attempt++ {
		begin := time.Now()
		if c.verify(huge) {
			t.Error("a made-up signature is right")
		}
		took := time.Since(begin)
		if took < time.Second/2 { // it would take seconds
			break
		}
		if attempt == 5 { // the machine does not stall each time
			t.Errorf("keys of %d bits are used, for %s", 8*size, took)
			break
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
