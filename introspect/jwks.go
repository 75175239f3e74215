package introspect

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxKeys = 100
	// maxTried is how many keys are tried for one token. It matters if no kid selects one: for
	// tokens without a kid, and for keys without one. Made-up tokens can make us try that many,
	// at 0.1 ms each for RSA of 2048 bits, P-256 and Ed25519, and at 1 to 5 ms for P-384, P-521
	// and RSA of 8192 bits, which only an issuer that publishes such keys can bring about.
	maxTried = 10
	// maxGuardedTried is maxTried for guarded keys. Whatever they cost, all failures cost.
	maxGuardedTried = 4
	// minModulus is the minimum size of an RSA key in bits (RFC 7518 section 3.3), maxModulus
	// the maximum: with each doubling, verification takes four times as long.
	minModulus, maxModulus = 2048, 8192
	// maxKeyText is how much of an ignored key's text is quoted, in bytes.
	maxKeyText = 64
)

// asymmetric are the algorithms whose keys can be public. No others may be added: with HMAC,
// an issuer's public key would be a secret that signs. Ed25519 is the name that RFC 9864 gives
// to what EdDSA means here.
var asymmetric = []string{
	"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519",
}

// keySet holds the usable keys of an issuer. It never changes.
type keySet struct {
	keys []publicKey
	ids  map[string]struct{} // of keys
	most int                 // how many are tried for one token; 0 for maxTried
}

// maxTried returns how many keys are tried for one token.
func (s *keySet) maxTried() int { return cmp.Or(s.most, maxTried) }

// IgnoredKey is a key that an issuer publishes but that is not used.
type IgnoredKey struct {
	// KeyID is the key's kid, shortened if it is long. It is empty if the key has none.
	KeyID string
	// Reason says why it is not used, for people to read.
	Reason string
}

// publicKey is a key that may verify signatures.
type publicKey struct {
	kid, alg string // empty if the issuer does not say
	public   any    // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
	// id is the key's RFC 7638 thumbprint, which has a fixed length, followed by alg and kid:
	// everything that could change what a cached verification is worth.
	id string
}

// thumbprint returns the key's RFC 7638 thumbprint, in base64url.
func (k *publicKey) thumbprint() string {
	return base64.RawURLEncoding.EncodeToString([]byte(k.id[:sha256.Size]))
}

// fits reports whether the key is one for alg. A signature algorithm belongs to a key, not to
// a token: a key for PS256 must not verify RS256, nor must one curve verify another's hash.
func (k *publicKey) fits(alg string) bool {
	switch public := k.public.(type) {
	case *rsa.PublicKey:
		return (k.alg == "" || k.alg == alg) && (strings.HasPrefix(alg, "RS") || strings.HasPrefix(alg, "PS"))
	case *ecdsa.PublicKey:
		return (k.alg == "" || k.alg == alg) &&
			(alg == "ES256" && public.Curve == elliptic.P256() ||
				alg == "ES384" && public.Curve == elliptic.P384() ||
				alg == "ES512" && public.Curve == elliptic.P521())
	case ed25519.PublicKey:
		// Two names of one algorithm.
		one := func(alg string) bool { return alg == "EdDSA" || alg == "Ed25519" }
		return (k.alg == "" || one(k.alg)) && one(alg)
	}
	return false
}

// verifier returns what go-jose is to verify alg with: the key itself or, if go-jose lacks the
// algorithm or allows more than the RFC, a wrapper around the standard library.
func (k *publicKey) verifier(alg string) any {
	switch public := k.public.(type) {
	case *rsa.PublicKey:
		if strings.HasPrefix(alg, "PS") {
			return pssVerifier{public}
		}
	case ed25519.PublicKey:
		return ed25519Verifier(public)
	}
	return k.public
}

// pssVerifier requires the salt to be as long as the hash (RFC 7518 section 3.5).
type pssVerifier struct{ public *rsa.PublicKey }

// VerifyPayload implements jose.OpaqueVerifier.
func (v pssVerifier) VerifyPayload(payload, signature []byte, alg jose.SignatureAlgorithm) error {
	hash := map[jose.SignatureAlgorithm]crypto.Hash{"PS256": crypto.SHA256, "PS384": crypto.SHA384, "PS512": crypto.SHA512}[alg]
	if hash == 0 {
		return jose.ErrUnsupportedAlgorithm
	}
	digest := hash.New()
	digest.Write(payload)
	return rsa.VerifyPSS(v.public, hash, digest.Sum(nil), signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
}

// ed25519Verifier accepts both names of the algorithm.
type ed25519Verifier ed25519.PublicKey

// VerifyPayload implements jose.OpaqueVerifier.
func (v ed25519Verifier) VerifyPayload(payload, signature []byte, alg jose.SignatureAlgorithm) error {
	if alg != "EdDSA" && alg != "Ed25519" || !ed25519.Verify(ed25519.PublicKey(v), payload, signature) {
		return jose.ErrCryptoFailure
	}
	return nil
}

// has reports whether a key with this id is in the set.
func (s *keySet) has(id string) bool {
	if s == nil {
		return false
	}
	_, ok := s.ids[id]
	return ok
}

// fitting returns how many keys fit one of algorithms.
func (s *keySet) fitting(algorithms []string) int {
	n := 0
	for i := range s.keys {
		if slices.ContainsFunc(algorithms, s.keys[i].fits) {
			n++
		}
	}
	return n
}

// verify returns the payload of a token and the key that signed it, nil if none did. known is
// false if another set might have the key: this one has none with that kid, or the token has
// no kid and may be signed with any key.
func (s *keySet) verify(token signedToken) (payload []byte, key *publicKey, known bool) {
	if s == nil {
		return nil, nil, false
	}
	known = s.knows(token.kid)
	tried := 0
	for i := range s.keys {
		k := &s.keys[i]
		if !k.mayHaveSigned(token.alg, token.kid, known) || !k.canMake(token.signature()) {
			continue
		}
		if tried++; tried > s.maxTried() {
			break
		}
		if payload, err := token.jws.Verify(k.verifier(token.alg)); err == nil {
			return payload, k, true
		}
	}
	return nil, nil, known
}

// knows reports whether there is a key with that kid.
func (s *keySet) knows(kid string) bool {
	for i := range s.keys {
		if kid != "" && s.keys[i].kid == kid {
			return true
		}
	}
	return false
}

// mayHaveSigned reports whether the key is to be tried for a token. A token without a kid may be signed
// with any key, and a key without a kid may have signed any token. If both have one, they must match.
// known says that some key has the token's.
func (k *publicKey) mayHaveSigned(alg, kid string, known bool) bool {
	return k.fits(alg) && !(known && k.kid != kid || kid != "" && k.kid != "" && k.kid != kid)
}

// canMake reports whether the key can make a signature like this one, whatever is signed. With RSA, a
// signature is a number less than the modulus, and as long. crypto/rsa finds that out late, when it has
// done half of its work.
func (k *publicKey) canMake(signature []byte) bool {
	public, ok := k.public.(*rsa.PublicKey)
	return !ok || len(signature) == public.Size() && new(big.Int).SetBytes(signature).Cmp(public.N) < 0
}

// add puts a key into the set, or returns why it can't be used.
func (s *keySet) add(key publicKey, err error) (ignored []IgnoredKey) {
	if err == nil {
		err = key.complete()
	}
	if err != nil {
		return []IgnoredKey{{shorten(key.kid), strings.TrimPrefix(err.Error(), "go-jose/go-jose: ")}}
	}
	s.keys = append(s.keys, key)
	s.ids[key.id] = struct{}{}
	return nil
}

func shorten(s string) string {
	if len(s) > maxKeyText {
		return strings.ToValidUTF8(s[:maxKeyText], "") + "…"
	}
	return s
}

// usable returns the set, or an error if it is empty.
func (s *keySet) usable(ignored []IgnoredKey) (*keySet, []IgnoredKey, error) {
	if len(s.keys) > 0 {
		return s, ignored, nil
	}
	// An empty set would make every token bad. It usually comes from a server that is starting,
	// or from a proxy, and not from an issuer that gives up.
	reasons := make([]string, 0, 3)
	for _, key := range ignored[:min(len(ignored), cap(reasons))] {
		reasons = append(reasons, key.String())
	}
	return nil, nil, fmt.Errorf("none of %d keys can be used: %s", len(ignored), strings.Join(reasons, "; "))
}

// String names the key and says why it is not used.
func (k IgnoredKey) String() string {
	if k.KeyID == "" {
		return "a key without kid: " + k.Reason
	}
	return fmt.Sprintf("kid %q: %s", k.KeyID, k.Reason)
}

// parseKeysFile reads a JWK set, or PEM with public keys and certificates, which have no kid.
func parseKeysFile(data []byte) (*keySet, []IgnoredKey, error) {
	const begin = "-----BEGIN "
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) || !bytes.Contains(data, []byte(begin)) {
		return parseKeys(data)
	}
	set := &keySet{ids: map[string]struct{}{}}
	var ignored []IgnoredKey
	block, rest := pem.Decode(data)
	for ; block != nil; block, rest = pem.Decode(rest) {
		if len(set.keys)+len(ignored) == maxKeys {
			return nil, nil, fmt.Errorf("more than %d keys", maxKeys)
		}
		var key publicKey
		var err error
		switch block.Type {
		case "PUBLIC KEY":
			key.public, err = x509.ParsePKIXPublicKey(block.Bytes)
		case "RSA PUBLIC KEY":
			key.public, err = x509.ParsePKCS1PublicKey(block.Bytes)
		case "CERTIFICATE":
			var certificate *x509.Certificate
			if certificate, err = x509.ParseCertificate(block.Bytes); err == nil {
				key.public = certificate.PublicKey
			}
		default:
			err = fmt.Errorf("a PEM block of type %q is neither a public key nor a certificate", shorten(block.Type))
		}
		ignored = append(ignored, set.add(key, err)...)
	}
	if bytes.Contains(rest, []byte(begin)) {
		return nil, nil, errors.New("a PEM block is incomplete") // the file is being written
	}
	return set.usable(ignored)
}

// parseKeys reads a JWK set and keeps the keys that can verify something.
func parseKeys(data []byte) (*keySet, []IgnoredKey, error) { return parseSet(data, parseKey) }

// parseSet is parseKeys for sets of keys that parse reads.
func parseSet(data []byte, parse func(raw []byte) (publicKey, error)) (*keySet, []IgnoredKey, error) {
	var document map[string]json.RawMessage
	if err := json.Unmarshal(data, &document); err != nil {
		return nil, nil, fmt.Errorf("parsing a JWK set: %w", err)
	}
	var lists []string
	for name, value := range jsonMembers(strings.TrimSpace(string(data))) {
		if name == "keys" {
			lists = append(lists, value)
		}
	}
	if len(lists) != 1 || !strings.HasPrefix(lists[0], "[") {
		return nil, nil, errors.New("not a JWK set, which is an object with one list of keys")
	}
	set := &keySet{ids: map[string]struct{}{}}
	var ignored []IgnoredKey
	for raw := range jsonElements(lists[0]) {
		if len(set.keys)+len(ignored) == maxKeys {
			return nil, nil, fmt.Errorf("a JWK set of more than %d keys", maxKeys)
		}
		// RFC 7517 section 5: keys that are not understood are ignored.
		ignored = append(ignored, set.add(parse([]byte(raw)))...)
	}
	return set.usable(ignored)
}

// parseKey reads one JWK.
func parseKey(raw []byte) (publicKey, error) { return parseKeyFor(raw, "sig") }

// parseKeyFor reads one JWK, whose use is this if it says what that is.
func parseKeyFor(raw []byte, purpose string) (key publicKey, err error) {
	jwk, ok := decodeObject(raw)
	if !ok {
		return key, errors.New("it is not a JSON object, or is ambiguous")
	}
	if kid, present := jwk["kid"]; present {
		if key.kid, ok = kid.(string); !ok {
			return key, errors.New("its kid is not a string")
		}
	}
	// A published secret is no secret: whoever has read it can sign.
	for _, name := range []string{"k", "d", "p", "q", "dp", "dq", "qi", "oth"} {
		if _, private := jwk[name]; private {
			return key, errors.New("it includes a private key")
		}
	}
	if use, present := jwk["use"]; present && use != purpose {
		return key, errors.New("its use is not " + purpose)
	}
	if operations, present := jwk["key_ops"]; present {
		list, _ := operations.([]any)
		if !slices.Contains(list, any("verify")) {
			return key, errors.New("its key_ops do not include verify")
		}
	}
	if alg, present := jwk["alg"]; present {
		if key.alg, ok = alg.(string); !ok || !slices.Contains(asymmetric, key.alg) {
			return key, errors.New("its alg is not a public-key signature algorithm")
		}
	}
	if jwk["kty"] == "RSA" {
		// go-jose accepts at most 4096 bits, and truncates an exponent to 64.
		key.public, err = rsaKey(jwk)
		return key, err
	}

	// Only the key itself goes on: certificates in x5c are neither needed nor trusted, and one
	// that Go can't parse must not make the key unusable.
	material := map[string]any{}
	for _, name := range []string{"kty", "crv", "x", "y"} {
		if value, present := jwk[name]; present {
			material[name] = value
		}
	}
	data, err := json.Marshal(material)
	if err != nil {
		return key, err
	}
	var parsed jose.JSONWebKey
	err = parsed.UnmarshalJSON(data)
	key.public = parsed.Key
	return key, err
}

// rsaKey reads the numbers of an RSA key (RFC 7518 section 6.3.1).
func rsaKey(jwk map[string]any) (*rsa.PublicKey, error) {
	var numbers [2]*big.Int
	for i, name := range []string{"n", "e"} {
		text, _ := jwk[name].(string)
		data, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil || len(data) == 0 {
			return nil, fmt.Errorf("its %s is not a number", name)
		}
		numbers[i] = new(big.Int).SetBytes(data)
	}
	modulus, exponent := numbers[0], numbers[1]
	if exponent.BitLen() > 31 {
		return nil, errors.New("its exponent is too large")
	}
	return &rsa.PublicKey{N: modulus, E: int(exponent.Int64())}, nil
}

// complete checks the key itself and sets its id.
func (k *publicKey) complete() error {
	if public, ok := k.public.(*rsa.PublicKey); ok {
		switch bits := public.N.BitLen(); {
		case bits < minModulus || bits > maxModulus:
			return fmt.Errorf("an RSA key of %d bits: must have %d to %d", bits, minModulus, maxModulus)
		// With an exponent of 1, anybody can compute the signature of anything.
		case public.E < 3 || public.E%2 == 0:
			return fmt.Errorf("an RSA key with exponent %d", public.E)
		case madeByROCA(public.N):
			return errors.New("an RSA key from a generator whose keys can be broken (ROCA, CVE-2017-15361)")
		}
	}
	if !slices.ContainsFunc(asymmetric, k.fits) {
		if k.alg != "" {
			return fmt.Errorf("it is not a key for its alg, %s", k.alg)
		}
		return errors.New("no supported algorithm uses such a key")
	}
	jwk := jose.JSONWebKey{Key: k.public}
	thumbprint, err := jwk.Thumbprint(crypto.SHA256) // refuses weak Ed25519 keys
	if err != nil {
		return err
	}
	k.id = string(thumbprint) + k.alg + " " + k.kid
	return nil
}

// madeByROCA reports whether n looks like a product of primes k*M + 65537^a mod M, where M is
// the product of many small primes: modulo each of these, n is then a power of 65537. That
// happens by chance to one in 2^27 moduli or fewer.
func madeByROCA(n *big.Int) bool {
	for _, prime := range []int64{11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157} {
		rest := new(big.Int).Mod(n, big.NewInt(prime)).Int64()
		power := int64(1)
		for range prime {
			if power == rest {
				break
			}
			power = power * 65537 % prime
		}
		if power != rest {
			return false
		}
	}
	return true
}
