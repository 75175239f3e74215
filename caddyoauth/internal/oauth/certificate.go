package oauth

import (
	"crypto/x509"

	"github.com/caddyoauth/gateway/introspect"
)

// Certificate is the certificate whose key the sender of a request has proven to have, by TLS.
type Certificate struct {
	// Leaf is nil if a proxy says that its client has a certificate, and nobody can read it. Then no
	// client is authenticated, by whatever method.
	Leaf *x509.Certificate
	// Verified reports whether the certificate chains up to an authority that is trusted for clients.
	// Otherwise anybody can have made it, with any name. It may verify some signatures for that, and
	// is not called without a Leaf.
	Verified func() bool
}

// confirm returns what a token is bound to that the client asks for in this way.
func (c *Client) confirm(req Request) (confirmation introspect.Confirmation, err error) {
	if c.CertificateBound {
		if req.Certificate == nil {
			return confirmation, &Error{Code: CodeInvalidRequest, Description: "the client's tokens are bound to its certificate; send the request with one", Reason: "no_certificate"}
		}
		confirmation.Certificate = introspect.CertificateThumbprint(req.Certificate.Leaf)
	}
	return confirmation, nil
}

// unreadable reports whether the request claims a certificate that can't be read.
func (r Request) unreadable() bool { return r.Certificate != nil && r.Certificate.Leaf == nil }
