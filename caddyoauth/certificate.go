package caddyoauth

import (
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// ClientCertificates say which certificates of clients count, and who may have made them. By default
// a client's certificate is that of its TLS connection, and Caddy's `client_auth` verifies it. On a
// connection of one of the server's `trusted_proxies` that says `X-Forwarded-For` or `Forwarded`, the
// certificate is the proxy's own and counts for no client.
type ClientCertificates struct {
	// Believes a proxy among the server's `trusted_proxies` about the certificate of its client, in
	// the headers `Client-Cert` and `Client-Cert-Chain` (RFC 9440). From such a proxy no other
	// certificate counts. The proxy must remove these headers from what its clients send, and leave
	// them out for a client without a certificate. Everybody else's are removed, with this or without.
	// Default: false.
	ClientCertHeader bool `json:"client_cert_header,omitempty"`

	// PEM files with the authorities that may issue certificates for `tls_client_auth`. They then
	// decide alone, even about a certificate that Caddy's `client_auth` has verified. The files are
	// read when the configuration is loaded. Placeholders in their paths are replaced. Default: those
	// of Caddy's `client_auth`, and none for certificates in headers. Between the client's certificate
	// and theirs there may be ten others, whose keys have at most 4096 bits if they are of RSA.
	TrustedCAFiles []string `json:"trusted_ca_files,omitempty"`

	authorities *x509.CertPool // nil without TrustedCAFiles
}

// provision reads the authorities. Without settings there is nothing to do.
func (c *ClientCertificates) provision() error {
	if c == nil || len(c.TrustedCAFiles) == 0 {
		return nil
	}
	c.authorities = x509.NewCertPool()
	for _, path := range c.TrustedCAFiles {
		if err := conf.Resolve("trusted_ca_file", &path); err != nil {
			return err
		}
		certificates, err := readCertificates(path)
		if err != nil {
			return fmt.Errorf("trusted_ca_file %s: %w", path, err)
		}
		for _, certificate := range certificates {
			c.authorities.AddCert(certificate)
		}
	}
	return nil
}

// clientCertificatesOption reads
//
//	client_certificates {
//		client_cert_header
//		trusted_ca_file <path>...
//	}
func clientCertificatesOption(place **ClientCertificates) conf.Option {
	return conf.Func(func(d *caddyfile.Dispenser) error {
		if _, err := conf.Args(d, 0, 0); err != nil {
			return err
		}
		*place = new(ClientCertificates)
		return conf.Options{
			"client_cert_header": conf.Flag(&(*place).ClientCertHeader),
			"trusted_ca_file":    conf.Texts(&(*place).TrustedCAFiles),
		}.Read(d, "client_certificates")
	})
}

// of returns the certificate of the client that sent a request, or nil if it has shown none. That the
// client has the certificate's key was proven to TLS, or to a proxy that is believed.
//
// If a proxy sends a certificate that can't be read, it returns one without a leaf.
func (c *ClientCertificates) of(r *http.Request) *oauth.Certificate {
	chain, err := c.chainOf(r)
	if err != nil {
		return new(oauth.Certificate)
	}
	if len(chain) == 0 {
		return nil
	}
	verified := !c.believes(r) && len(r.TLS.VerifiedChains) > 0
	return &oauth.Certificate{Leaf: chain[0], Verified: func() bool {
		if c == nil || c.authorities == nil {
			return verified // of the modes of client_auth, request and require verify nothing
		}
		return c.verify(chain)
	}}
}

// chainOf returns the client's certificate, and those that came with it to vouch for it, or nothing. It
// returns an error if a proxy sends what can't be read.
func (c *ClientCertificates) chainOf(r *http.Request) ([]*x509.Certificate, error) {
	switch {
	case tooEarly(r):
		return nil, nil
	case c.believes(r):
		return chainIn(r.Header)
	case r.TLS == nil || len(r.TLS.PeerCertificates) == 0 || !namesHost(r) || forwards(r):
		return nil, nil
	}
	return r.TLS.PeerCertificates, nil
}

// provenBy returns what the sender of a request has proven to have, of what a token demands. It doesn't
// allocate for a certificate of the connection.
func (c *ClientCertificates) provenBy(r *http.Request, demanded introspect.Confirmation) (proven introspect.Confirmation) {
	if demanded.Certificate == "" {
		return proven
	}
	if chain, err := c.chainOf(r); err == nil && len(chain) > 0 && hasThumbprint(chain[0], demanded.Certificate) {
		proven.Certificate = demanded.Certificate
	}
	return proven
}

// hasThumbprint reports whether introspect.CertificateThumbprint returns this of a certificate.
func hasThumbprint(certificate *x509.Certificate, thumbprint string) bool {
	digest := sha256.Sum256(certificate.Raw)
	var text [43]byte
	base64.RawURLEncoding.Encode(text[:], digest[:])
	return string(text[:]) == thumbprint
}

// tooEarly reports whether a request was sent before the TLS handshake was complete, to us or to a
// proxy. Whoever recorded it can send it again, so it proves nothing (RFC 8470). Anybody may send the
// header: it does no harm.
func tooEarly(r *http.Request) bool {
	// Several headers, and any other value, mean the same as 1 (RFC 8470 section 5.1).
	return r.TLS != nil && !r.TLS.HandshakeComplete || r.Header["Early-Data"] != nil
}

// namesHost reports whether the connection was made for the host that the request is for. Which
// certificates a server asks for, and whether it verifies them, depends on the name that the
// connection was made with. Caddy sees to this where a site has a client_auth, unless
// strict_sni_host is off.
func namesHost(r *http.Request) bool {
	host := r.Host
	if strings.Contains(host, ":") { // without one, the error that there is no port would be made in vain
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
	}
	return r.TLS.ServerName != "" && strings.EqualFold(r.TLS.ServerName, host)
}

// isFromProxy reports whether the request comes from one of Caddy's trusted_proxies.
func isFromProxy(r *http.Request) bool {
	trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool)
	return trusted
}

// forwards reports whether the sender is a proxy that sends it for a client.
func forwards(r *http.Request) bool {
	return (r.Header["X-Forwarded-For"] != nil || r.Header["Forwarded"] != nil) && isFromProxy(r)
}

// believes reports whether the certificate of the request's client is in its headers.
func (c *ClientCertificates) believes(r *http.Request) bool {
	return c != nil && c.ClientCertHeader && isFromProxy(r)
}

// The headers of RFC 9440.
const (
	certHeader  = "Client-Cert"
	chainHeader = "Client-Cert-Chain"
)

// certificateHeaders are their names, folded.
var certificateHeaders = []string{"client-cert", "client-cert-chain"}

// isMadeUp reports whether name could be read as one of the headers about the client's certificate,
// and is not one that the sender may set.
func (c *ClientCertificates) isMadeUp(r *http.Request, name string) bool {
	return isOneOf(name, certificateHeaders) && (name != certHeader && name != chainHeader || !c.believes(r))
}

// chainIn returns the certificates that a proxy has put into the headers.
func chainIn(h http.Header) ([]*x509.Certificate, error) {
	if h[certHeader] == nil && h[chainHeader] == nil {
		return nil, nil
	}
	return certificatesIn(h[certHeader], h[chainHeader])
}

const (
	maxCertificateBytes = 16 << 10
	// maxChainLength and maxIssuerBits bound the certificates that vouch for a client's. Anybody may
	// send them, and has us verify up to a hundred signatures by their keys, each of which could
	// otherwise take a second.
	maxChainLength = 10
	maxIssuerBits  = 4096
)

// certificatesIn reads the lines of Client-Cert, an item of RFC 9651 that is a byte sequence, and of
// Client-Cert-Chain, a list of them. It takes no parameters, as RFC 9440 has none.
func certificatesIn(leaf, chain []string) ([]*x509.Certificate, error) {
	if len(leaf) != 1 {
		return nil, errors.New("there is not one Client-Cert")
	}
	sequences := []string{leaf[0]}
	for _, line := range chain {
		sequences = append(sequences, strings.SplitN(line, ",", maxChainLength+1)...)
	}
	if len(sequences) > 1+maxChainLength {
		return nil, errors.New("the chain is too long")
	}
	var certificates []*x509.Certificate
	for _, sequence := range sequences {
		text, ok := strings.CutPrefix(strings.Trim(sequence, " \t"), ":")
		text, ends := strings.CutSuffix(text, ":")
		if !ok || !ends || base64.StdEncoding.DecodedLen(len(text)) > maxCertificateBytes || strings.ContainsAny(text, "\r\n") {
			return nil, errors.New("not a byte sequence")
		}
		der, err := base64.StdEncoding.Strict().DecodeString(text)
		if err != nil {
			return nil, errors.New("not a byte sequence")
		}
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, errors.New("not a certificate")
		}
		certificates = append(certificates, certificate)
	}
	return certificates, nil
}

// verify reports whether one of the authorities has vouched for the first of the certificates, by way
// of the others, as that of a client, and all of them are valid now.
func (c *ClientCertificates) verify(chain []*x509.Certificate) bool {
	if c == nil || c.authorities == nil {
		return false
	}
	between := x509.NewCertPool()
	for _, certificate := range chain[1:min(len(chain), 1+maxChainLength)] {
		if key, ok := certificate.PublicKey.(*rsa.PublicKey); !ok || key.N.BitLen() <= maxIssuerBits {
			between.AddCert(certificate)
		}
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: c.authorities, Intermediates: between, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err == nil
}
