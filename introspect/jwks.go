package introspect

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxKeys = 100
	// maxTried keys are tried for one token. It matters for tokens without a kid.
	maxTried = 4
	// minModulus is the least size of an RSA key in bits (RFC 7518 section 3.3).
	minModulus = 2048
)

// asymmetric are the algorithms whose keys can be public. There are no others here:
// with HMAC the public key of an issuer would be a secret to sign with.
var asymmetric = []string{
	"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
}

// keySet are the usable keys of an issuer. It is never changed.
type keySet struct {
	keys []publicKey
	ids  map[string]struct{} // of keys
}

// publicKey is a key that may verify signatures.
type publicKey struct {
	kid, alg string // empty if the issuer does not say
	public   any    // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
	// id is the key's RFC 7638 thumbprint, of fixed length, then alg and kid: all that
	// could change what a cached verification is worth.
	id string
}

// fits reports whether the key is one for alg. A signature algorithm belongs to a key,
// not to a token: a key for PS256 must not verify RS256, nor one curve another's hash.
func (k *publicKey) fits(alg string) bool {
	if k.alg != "" && k.alg != alg {
		return false
	}
	switch public := k.public.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(alg, "RS") || strings.HasPrefix(alg, "PS")
	case *ecdsa.PublicKey:
		return alg == "ES256" && public.Curve == elliptic.P256() ||
			alg == "ES384" && public.Curve == elliptic.P384() ||
			alg == "ES512" && public.Curve == elliptic.P521()
	case ed25519.PublicKey:
		return alg == "EdDSA"
	}
	return false
}

// has reports whether a key of this id is in the set.
func (s *keySet) has(id string) bool {
	if s == nil {
		return false
	}
	_, ok := s.ids[id]
	return ok
}

// verify returns the payload of jws and the key that signed it, nil if none did. known
// is false if another set might have the key: this one has none of that kid, or the token
// has no kid, and so may be signed with any key.
func (s *keySet) verify(jws *jose.JSONWebSignature, kid string) (payload []byte, key *publicKey, known bool) {
	if s == nil {
		return nil, nil, false
	}
	alg := jws.Signatures[0].Header.Algorithm
	tried := 0
	for i := range s.keys {
		k := &s.keys[i]
		if kid != "" {
			if k.kid != kid {
				continue
			}
			known = true
		}
		if !k.fits(alg) {
			continue
		}
		if tried++; tried > maxTried {
			break
		}
		if payload, err := jws.Verify(k.public); err == nil {
			return payload, k, true
		}
	}
	return nil, nil, known
}

// parseKeys reads a JWK set and keeps the keys that can verify something.
func parseKeys(data []byte) (*keySet, error) {
	var document struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &document); err != nil {
		return nil, fmt.Errorf("parsing a JWK set: %w", err)
	}
	if len(document.Keys) > maxKeys {
		return nil, fmt.Errorf("JWK set of %d keys: at most %d are accepted", len(document.Keys), maxKeys)
	}
	set := &keySet{ids: map[string]struct{}{}}
	for _, raw := range document.Keys {
		key, ok := parseKey(raw)
		if !ok || !slices.ContainsFunc(asymmetric, key.fits) {
			continue // RFC 7517 section 5: keys that are not understood are ignored
		}
		set.keys = append(set.keys, key)
		set.ids[key.id] = struct{}{}
	}
	if len(set.keys) == 0 {
		// It would make every token bad, and comes more often from a server that is starting,
		// or from a proxy, than from an issuer that gives up.
		return nil, fmt.Errorf("none of the %d keys of the JWK set can be used", len(document.Keys))
	}
	return set, nil
}

// parseKey reads one JWK. ok is false if it is not a public key for signatures.
func parseKey(raw []byte) (key publicKey, ok bool) {
	jwk, ok := decodeObject(raw)
	if !ok {
		return key, false
	}
	// A secret that is published is no secret, and whoever read it can sign.
	for _, name := range []string{"k", "d", "p", "q", "dp", "dq", "qi", "oth"} {
		if _, private := jwk[name]; private {
			return key, false
		}
	}
	if use, present := jwk["use"]; present && use != "sig" {
		return key, false
	}
	if operations, present := jwk["key_ops"]; present {
		list, _ := operations.([]any)
		if !slices.Contains(list, any("verify")) {
			return key, false
		}
	}
	if alg, present := jwk["alg"]; present {
		if key.alg, ok = alg.(string); !ok || key.alg == "" {
			return key, false
		}
	}
	if kid, present := jwk["kid"]; present {
		if key.kid, ok = kid.(string); !ok {
			return key, false
		}
	}

	// Only the key itself goes further: certificates in x5c are neither needed nor trusted,
	// and one that Go can't parse must not cost the key.
	material := map[string]any{}
	for _, name := range []string{"kty", "n", "e", "crv", "x", "y"} {
		if value, present := jwk[name]; present {
			material[name] = value
		}
	}
	data, err := json.Marshal(material)
	if err != nil {
		return key, false
	}
	var parsed jose.JSONWebKey
	if parsed.UnmarshalJSON(data) != nil {
		return key, false
	}
	if public, ok := parsed.Key.(*rsa.PublicKey); ok {
		// With an exponent of 1 every signature can be computed from what it signs.
		if public.N.BitLen() < minModulus || public.E < 3 || public.E%2 == 0 || public.E > 1<<31-1 {
			return key, false
		}
	}
	thumbprint, err := parsed.Thumbprint(crypto.SHA256)
	if err != nil {
		return key, false
	}
	key.public = parsed.Key
	key.id = string(thumbprint) + key.alg + " " + key.kid
	return key, true
}
