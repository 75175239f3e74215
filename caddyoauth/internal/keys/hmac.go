package keys

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// HS256 is HMAC with SHA-256 (RFC 7518 section 3.2). Whoever can verify by it can sign as well, so it is
// none of Algorithms.
const HS256 = string(jose.HS256)

// MinHMACSecret is the least length, in bytes, of the secret of an HMACKey: that of the hash (RFC 7518
// section 3.2).
const MinHMACSecret = sha256.Size

// HMACKey makes and verifies the JWTs of one shared secret and one type, by HS256. What JWTs promises
// holds for it as well. It is safe for concurrent use.
type HMACKey struct {
	secret []byte
	signer jose.Signer
	prefix string // the header, and a dot
}

// NewHMACKey makes the key of a secret for JWTs of type typ, in a realm. The error says that the secret
// is too short, and holds nothing of it.
//
// The header has the member "key" beside "alg" and "typ": 64 bits that depend on the secret and the
// realm. With another secret there is another header, as there is with another key pair. It is not
// called "kid", which others would look up; a member that they don't know they must ignore (RFC 7515
// section 4). A secret that can be guessed by it can be guessed by any JWT.
func NewHMACKey(secret, realm, typ string) (*HMACKey, error) {
	if len(secret) < MinHMACSecret {
		return nil, fmt.Errorf("an HMAC secret must have at least %d bytes, not %d", MinHMACSecret, len(secret))
	}
	k := &HMACKey{secret: []byte(secret)}
	mac := hmac.New(sha256.New, k.secret)
	io.WriteString(mac, "ID of a key of JWTs\x00"+realm) // no JWT has such a text to sign
	id := base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:8])
	options := new(jose.SignerOptions).WithType(jose.ContentType(typ)).WithHeader("key", id)
	var err error
	if k.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: k.secret}, options); err != nil {
		return nil, err
	}
	token, err := k.sign(nil)
	if err != nil {
		return nil, err
	}
	k.prefix = token[:strings.IndexByte(token, '.')+1]
	return k, nil
}

// SharesSecret reports whether another key, which may be nil, has the same secret.
func (k *HMACKey) SharesSecret(other *HMACKey) bool {
	return other != nil && hmac.Equal(k.secret, other.secret)
}

// Header returns the first part of each of the JWTs, up to the first dot.
func (k *HMACKey) Header() string { return k.prefix[:len(k.prefix)-1] }

// Sign returns the JWT with these claims, which are JSON. It fails if Verify would refuse the JWT for
// its length.
func (k *HMACKey) Sign(payload []byte) (token string, err error) {
	if token, err = k.sign(payload); err == nil && len(token) > maxJWT {
		return "", fmt.Errorf("a JWT of %d characters: may have %d", len(token), maxJWT)
	}
	return token, err
}

func (k *HMACKey) sign(payload []byte) (string, error) {
	jws, err := k.signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return jws.CompactSerialize()
}

// Verify returns the claims of a JWT, and false if this key did not sign it with just this text. What it
// does for others is bounded by a constant, not by their length.
func (k *HMACKey) Verify(token string) (payload []byte, ok bool) {
	rest, ok := strings.CutPrefix(token, k.prefix)
	dot := len(rest) - 1 - base64.RawURLEncoding.EncodedLen(sha256.Size)
	if !ok || len(token) > maxJWT || dot < 0 || strings.IndexByte(rest, '.') != dot {
		return nil, false
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.HS256})
	if err != nil {
		return nil, false
	}
	payload, err = jws.Verify(k.secret)
	// The library's decoder skips line breaks and ignores spare bits.
	if err != nil || !encodes(payload, rest[:dot]) || !encodes(jws.Signatures[0].Signature, rest[dot+1:]) {
		return nil, false
	}
	return payload, true
}
