package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"time"
)

// certificates are those for TLS: files for the gateways, and what the load needs. They are good for a
// day, their authority's key is kept nowhere, and nothing but this program trusts them.
type certificates struct {
	authority, server, key string // files, in PEM

	trusted *x509.CertPool
	client  tls.Certificate // for gateways that ask for one
}

// makeCertificates makes them anew, with their files in a folder.
func makeCertificates(folder string) (*certificates, error) {
	now := time.Now()
	authority := &x509.Certificate{
		Subject: pkix.Name{CommonName: "bench"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, authorityKey.Public(), authorityKey)
	if err != nil {
		return nil, err
	}
	issue := func(usage x509.ExtKeyUsage) (certificate, key []byte, err error) {
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}, NotBefore: authority.NotBefore, NotAfter: authority.NotAfter,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
		}, authority, own.Public(), authorityKey)
		if err != nil {
			return nil, nil, err
		}
		secret, err := x509.MarshalPKCS8PrivateKey(own)
		if err != nil {
			return nil, nil, err
		}
		return inPEM("CERTIFICATE", leaf), inPEM("PRIVATE KEY", secret), nil
	}
	served, servedKey, err := issue(x509.ExtKeyUsageServerAuth)
	if err != nil {
		return nil, err
	}
	shown, shownKey, err := issue(x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, err
	}
	c := &certificates{
		authority: filepath.Join(folder, "authority.pem"), server: filepath.Join(folder, "server.pem"), key: filepath.Join(folder, "server.key"),
		trusted: x509.NewCertPool(),
	}
	if c.client, err = tls.X509KeyPair(shown, shownKey); err != nil {
		return nil, err
	}
	root := inPEM("CERTIFICATE", der)
	if !c.trusted.AppendCertsFromPEM(root) {
		return nil, errors.New("the authority that was just made can't be read")
	}
	for file, text := range map[string][]byte{c.authority: root, c.server: served, c.key: servedKey} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func inPEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// config returns how the load speaks to a gateway, or nil for one without TLS.
func (c *certificates) config(s setup) *tls.Config {
	if s.protocol == http1 {
		return nil
	}
	over := &tls.Config{RootCAs: c.trusted, ServerName: host, MinVersion: tls.VersionTLS13}
	if s.protocol == http2TLS {
		over.NextProtos = []string{"h2"}
	}
	if s.certificate {
		over.Certificates = []tls.Certificate{c.client}
	}
	return over
}

// caddyfile returns the option tls of a site.
func (c *certificates) caddyfile(s setup) string {
	if s.protocol == http1 {
		return ""
	}
	files := "\ttls " + quoted(c.server) + " " + quoted(c.key)
	if s.certificate {
		files += " {\n\t\tclient_auth {\n\t\t\tmode require_and_verify\n\t\t\ttrust_pool file " + quoted(c.authority) + "\n\t\t}\n\t}"
	}
	return files + "\n"
}
