package oauth

import (
	"crypto/sha256"
	"encoding/base64"
)

// AMGrantID returns the ID that ForgeRock AM gives to the grant of a token, authGrantId, for a token
// with this jti: here, each token has a grant of its own. It is always the same for a token, and tells
// nothing that jti doesn't.
func AMGrantID(jti string) string { return derivedID("authGrantId", jti) }

// AMTrackingID is AMGrantID for auditTrackingId, under which AM's audit log has a token.
func AMTrackingID(jti string) string { return derivedID("auditTrackingId", jti) }

func derivedID(label, jti string) string {
	sum := sha256.Sum256([]byte(label + "\x00" + jti))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}
