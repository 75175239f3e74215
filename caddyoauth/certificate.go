package caddyoauth

import (
	"net/http"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// certificateOf returns the certificate of the client that sent a request, or nil if it has shown none.
// TLS has proven that the client has the certificate's key. Whether the certificate was made by somebody
// who is trusted is another question: of the modes of Caddy's client_auth, request and require verify
// nothing.
func certificateOf(r *http.Request) *oauth.Certificate {
	// 0-RTT data can be replayed by whoever recorded it, so it proves nothing (RFC 8470).
	if r.TLS == nil || !r.TLS.HandshakeComplete || len(r.TLS.PeerCertificates) == 0 {
		return nil
	}
	return &oauth.Certificate{Leaf: r.TLS.PeerCertificates[0], Verified: len(r.TLS.VerifiedChains) > 0}
}

// provenBy returns what the sender of a request has proven to have, of what a token demands.
func provenBy(r *http.Request, demanded introspect.Confirmation) (proven introspect.Confirmation) {
	if demanded.Certificate != "" {
		if certificate := certificateOf(r); certificate != nil {
			proven.Certificate = introspect.CertificateThumbprint(certificate.Leaf)
		}
	}
	return proven
}
