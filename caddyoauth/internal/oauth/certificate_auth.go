package oauth

import (
	"context"
	"crypto/x509"
	"slices"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// The methods of client authentication by the certificate of a TLS connection (RFC 8705 section 2).
const (
	// AuthTLS takes a certificate that an authority has made for the client's subject.
	AuthTLS = "tls_client_auth"
	// AuthSelfSigned takes a certificate that is known itself, whoever has made it.
	AuthSelfSigned = "self_signed_tls_client_auth"
)

// Why a certificate doesn't prove its client.
const (
	reasonCertificateNotYet     = "certificate_not_yet_valid"
	reasonCertificateExpired    = "certificate_expired"
	reasonCertificateUnverified = "certificate_unverified" // by nobody who is trusted
	reasonCertificateSubject    = "certificate_subject"
	reasonCertificateUnknown    = "certificate_unknown" // not one that the client has registered
)

// certificateMethod returns the method by which a client may use a certificate, if it may use any.
func (c *Client) certificateMethod(cert *Certificate) string {
	if c != nil && slices.Contains(c.Auth, AuthSelfSigned) && (!slices.Contains(c.Auth, AuthTLS) || c.hasCertificate(introspect.CertificateThumbprint(cert.Leaf))) {
		return AuthSelfSigned
	}
	return AuthTLS
}

func (c *Client) hasCertificate(thumbprint string) bool {
	return c.Certificates != nil && c.Certificates(thumbprint)
}

// verifyCertificate verifies that the certificate is the client's: by AuthSelfSigned one of its own, by
// AuthTLS one that names its subject. What TLS has proven is only that the sender has its key.
func (e *Engine) verifyCertificate(_ context.Context, c claim) (Proof, string, error) {
	cert := c.creds.certificate
	thumbprint := introspect.CertificateThumbprint(cert.Leaf)
	names := namesIn(cert.Leaf)
	why := whyNotNow(cert.Leaf, e.cfg.Now())
	verified := cert.Verified() // before it is known whose it is, like all that takes time
	switch {
	case c.client == nil:
		return Proof{}, why, nil
	case why != "":
	case c.creds.Method == AuthSelfSigned && !c.client.hasCertificate(thumbprint):
		why = reasonCertificateUnknown
	case c.creds.Method == AuthSelfSigned:
	case !verified:
		why = reasonCertificateUnverified
	case c.client.CertificateSubject == nil || !c.client.CertificateSubject.isIn(names):
		why = reasonCertificateSubject
	}
	if why != "" {
		return Proof{}, why, nil
	}
	return Proof{Certificate: thumbprint}, "", nil
}

// whyNotNow says why a certificate is not valid at a time; it is empty if it is. TLS looked only when the
// connection was made, or didn't look.
func whyNotNow(cert *x509.Certificate, now time.Time) string {
	switch {
	case now.Before(cert.NotBefore):
		return reasonCertificateNotYet
	case now.After(cert.NotAfter):
		return reasonCertificateExpired
	}
	return ""
}
