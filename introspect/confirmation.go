package introspect

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"strings"
)

// Confirmation is what whoever shows a token must prove to have (cnf, RFC 7800). A token that was
// stolen is worth nothing without it. The zero value is that of a bearer token, which proves nothing.
// If both fields are set, both must be proven.
type Confirmation struct {
	// Certificate is the SHA-256 digest of a certificate in base64url: the token must come over a TLS
	// connection whose client has the certificate's key (RFC 8705 section 3.1).
	Certificate string `json:"x5t#S256,omitempty"`

	// Key is the RFC 7638 thumbprint of a key in base64url: the token must come with a proof that the
	// key has signed (DPoP, RFC 9449 section 6.1).
	Key string `json:"jkt,omitempty"`
}

// CertificateThumbprint returns what [Confirmation.Certificate] is for a certificate.
func CertificateThumbprint(certificate *x509.Certificate) string {
	digest := sha256.Sum256(certificate.Raw)
	return base64.RawURLEncoding.EncodeToString(digest[:])
}

// confirmationOf reads the member cnf of claims, whose text is what decodeObject has accepted. It
// returns false if a token is bound in a way that nobody here can check, or that can't be read.
func confirmationOf(claims map[string]any, text string) (c Confirmation, ok bool) {
	if _, bound := claims["cnf"]; !bound {
		return c, true
	}
	bound := ""
	for name, value := range jsonMembers(text) {
		if name == "cnf" {
			bound = value
		}
	}
	for name, value := range jsonMembers(bound) {
		digest := ""
		if value[0] == '"' {
			digest = strings.Clone(stringText(value))
		}
		if raw, err := base64.RawURLEncoding.Strict().DecodeString(digest); err != nil || len(raw) != sha256.Size || len(digest) != 43 {
			return c, false
		}
		switch name {
		case "x5t#S256":
			c.Certificate = digest
		case "jkt":
			c.Key = digest
		default:
			return c, false
		}
	}
	return c, c != Confirmation{}
}
