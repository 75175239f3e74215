package oauth

import (
	"crypto/x509"

	"github.com/caddyoauth/gateway/introspect"
)

// Certificate is the certificate whose key the sender of a request has proven to have, by TLS.
type Certificate struct {
	Leaf *x509.Certificate
	// Verified is set if the certificate chains up to an authority that is trusted for clients.
	// Otherwise anybody can have made it, with any name.
	Verified bool
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
