package keys

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// Signature algorithms, by their names in JOSE (RFC 7518 section 3.1, RFC 8037 section 3.1).
const (
	ES256 = string(jose.ES256) // ECDSA with P-256 and SHA-256
	EdDSA = string(jose.EdDSA) // Ed25519
	RS256 = string(jose.RS256) // RSASSA-PKCS1-v1_5 with SHA-256
	PS256 = string(jose.PS256) // RSASSA-PSS with SHA-256
)

// Algorithms are the algorithms of signing keys. The first one is the default: every JOSE library
// has it, and its signatures are short and cheap.
var Algorithms = []string{ES256, EdDSA, RS256, PS256}

const (
	// madeModulus is the length, in bits, of the RSA keys that are made here.
	madeModulus = 3072
	// RFC 7518 section 3.3 requires the least length. Many verifiers refuse a key that is longer
	// than the greatest.
	minModulus, maxModulus = 2048, 4096
	// maxJWT bounds the length of a JWT, so that a caller can't make us decode and hash a megabyte.
	maxJWT = 64 << 10
)

// SigningKey is a key pair for JWTs, or the public half of one. It is immutable and safe for
// concurrent use.
type SigningKey struct {
	algorithm jose.SignatureAlgorithm
	id        string
	public    crypto.PublicKey // *ecdsa.PublicKey, ed25519.PublicKey or *rsa.PublicKey
	private   crypto.Signer    // nil if it is not known
}

// NewSigningKey makes a key for algorithm, which is one of Algorithms. An RSA key has 3072 bits,
// and takes up to a few seconds.
func NewSigningKey(algorithm string) (*SigningKey, error) {
	var private crypto.Signer
	var err error
	switch algorithm {
	case ES256:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case EdDSA:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case RS256, PS256:
		private, err = rsa.GenerateKey(rand.Reader, madeModulus)
	default:
		return nil, fmt.Errorf("unknown signature algorithm %q: must be one of %s", algorithm, strings.Join(Algorithms, ", "))
	}
	if err != nil {
		return nil, err
	}
	return newSigningKey(private, algorithm)
}

// newSigningKey returns the key that signs by algorithm. Its error says what is wrong with key and
// quotes nothing of it.
func newSigningKey(key any, algorithm string) (*SigningKey, error) {
	k := &SigningKey{algorithm: jose.SignatureAlgorithm(algorithm), public: key}
	if private, ok := key.(crypto.Signer); ok {
		// Once through PKCS #8, which computes the public half and what speeds up RSA. A JWK has its
		// own public half: another's, under which no signature would be good, must not pass.
		plain, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			return nil, errors.New("it is no valid private key")
		}
		parsed, err := x509.ParsePKCS8PrivateKey(plain)
		if err != nil {
			return nil, errors.New("it is no valid private key")
		}
		k.private = parsed.(crypto.Signer)
		k.public = k.private.Public()
		if claimed, ok := private.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !claimed.Equal(k.public) {
			return nil, errors.New("its public and its private half do not belong together")
		}
	}
	var fits bool
	switch public := k.public.(type) {
	case *ecdsa.PublicKey:
		if public.Curve != elliptic.P256() {
			return nil, fmt.Errorf("an EC key must be on the curve P-256, not %s", public.Params().Name)
		}
		fits = algorithm == ES256
	case ed25519.PublicKey:
		fits = algorithm == EdDSA
	case *rsa.PublicKey:
		if bits := public.N.BitLen(); bits < minModulus || bits > maxModulus {
			return nil, fmt.Errorf("an RSA key must have %d to %d bits, not %d", minModulus, maxModulus, bits)
		}
		if public.E < 3 || public.E%2 == 0 {
			return nil, errors.New("an RSA key must have an odd exponent of at least 3")
		}
		fits = algorithm == RS256 || algorithm == PS256
	default:
		return nil, errors.New("its kind of key is not supported")
	}
	if !fits {
		return nil, fmt.Errorf("such a key can't sign by %s", algorithm)
	}
	jwk := k.jwk()
	thumbprint, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, errors.New("it is no valid public key") // a weak one of Ed25519
	}
	k.id = base64.RawURLEncoding.EncodeToString(thumbprint)
	if k.private == nil {
		return k, nil
	}
	// A key that is damaged in any other way must not pass either.
	jwts := k.For("JWT")
	if token, err := jwts.Sign(nil); err != nil {
		return nil, errors.New("it can't sign")
	} else if _, ok := jwts.Verify(token); !ok {
		return nil, errors.New("it makes signatures that its public half refuses")
	}
	return k, nil
}

// ID returns the key's ID, the "kid" in the header of each of its JWTs: its RFC 7638 thumbprint.
func (k *SigningKey) ID() string { return k.id }

// Algorithm returns how the key signs: one of Algorithms.
func (k *SigningKey) Algorithm() string { return string(k.algorithm) }

// Signs reports whether the private half is known.
func (k *SigningKey) Signs() bool { return k.private != nil }

// jwk returns the public half.
func (k *SigningKey) jwk() jose.JSONWebKey {
	return jose.JSONWebKey{Key: k.public, KeyID: k.id, Algorithm: string(k.algorithm), Use: "sig"}
}

// JWK returns the public half as a JWK (RFC 7517), in one line.
func (k *SigningKey) JWK() ([]byte, error) { return json.Marshal(k.jwk()) }

// PrivatePEM returns the private half in PEM, as PKCS #8. It fails if it is not known.
func (k *SigningKey) PrivatePEM() ([]byte, error) {
	if k.private == nil {
		return nil, errors.New("the private half of the key is not known")
	}
	plain, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: plain}), nil
}

// JWKSet returns the public halves of keys as a JWK set (RFC 7517 section 5).
func JWKSet(keys ...*SigningKey) ([]byte, error) {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, k := range keys {
		set.Keys = append(set.Keys, k.jwk())
	}
	return json.Marshal(set)
}

// JWTs makes and verifies the JWTs of one key and one type. It is safe for concurrent use.
//
// All of them have the same header, so what a caller says in a header is only ever compared. There
// is one text for each JWT: its ID, under which it may be revoked, is the hash of the text, and
// another text of the same JWT would escape the revocation.
type JWTs struct {
	key       *SigningKey
	prefix    string // the header, and a dot
	signature int    // the length of a signature, in bytes
}

// For returns the JWTs of a type, the "typ" in the header.
func (k *SigningKey) For(typ string) *JWTs {
	j := &JWTs{key: k}
	// The header is whatever the library writes for a key of this ID.
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: k.algorithm, Key: unsigned{k}}, new(jose.SignerOptions).WithType(jose.ContentType(typ)))
	if err != nil {
		panic(err) // newSigningKey has checked the algorithm
	}
	jws, err := signer.Sign(nil)
	if err != nil {
		panic(err) // it has nothing to fail at
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		panic(err)
	}
	j.prefix = token[:strings.IndexByte(token, '.')+1]
	switch public := k.public.(type) {
	case *ecdsa.PublicKey:
		j.signature = 64
	case ed25519.PublicKey:
		j.signature = ed25519.SignatureSize
	case *rsa.PublicKey:
		j.signature = public.Size()
	}
	return j
}

// unsigned signs with nothing. It is for the header, which a key has with a private half or without.
type unsigned struct{ *SigningKey }

// Public implements jose.OpaqueSigner.
func (u unsigned) Public() *jose.JSONWebKey { jwk := u.jwk(); return &jwk }

// Algs implements jose.OpaqueSigner.
func (u unsigned) Algs() []jose.SignatureAlgorithm { return []jose.SignatureAlgorithm{u.algorithm} }

// SignPayload implements jose.OpaqueSigner.
func (u unsigned) SignPayload([]byte, jose.SignatureAlgorithm) ([]byte, error) { return nil, nil }

// Header returns the first part of each of the JWTs, up to the first dot.
func (j *JWTs) Header() string { return j.prefix[:len(j.prefix)-1] }

// Sign returns the JWT with these claims, which are JSON. It fails if the key has no private half,
// or if Verify would refuse the JWT for its length.
func (j *JWTs) Sign(payload []byte) (token string, err error) {
	encoding := base64.RawURLEncoding
	text := make([]byte, 0, len(j.prefix)+encoding.EncodedLen(len(payload))+1+encoding.EncodedLen(j.signature))
	text = encoding.AppendEncode(append(text, j.prefix...), payload)
	signature, err := j.key.sign(text)
	if err != nil {
		return "", err
	}
	text = encoding.AppendEncode(append(text, '.'), signature)
	if len(text) > maxJWT {
		return "", fmt.Errorf("a JWT of %d characters: may have %d", len(text), maxJWT)
	}
	return string(text), nil
}

// sign returns the signature of a text. The JOSE library makes the same ones, but takes as long again
// for what is around them; it verifies one of each key when that is made or read.
func (k *SigningKey) sign(text []byte) ([]byte, error) {
	digest := sha256.Sum256(text)
	switch private := k.private.(type) {
	case ed25519.PrivateKey:
		return ed25519.Sign(private, text), nil
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, private, digest[:])
		if err != nil {
			return nil, err
		}
		signature := make([]byte, 64) // RFC 7518 section 3.4
		r.FillBytes(signature[:32])
		s.FillBytes(signature[32:])
		makeLow(signature)
		return signature, nil
	case *rsa.PrivateKey:
		if k.algorithm == jose.PS256 { // RFC 7518 section 3.5
			return rsa.SignPSS(rand.Reader, private, crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		}
		return rsa.SignPKCS1v15(nil, private, crypto.SHA256, digest[:])
	}
	return nil, errors.New("the key has no private half")
}

// Verify returns the claims of a JWT, and false if this key did not sign it, as a JWT of this type,
// with just this text. What it does for others is bounded by a constant, not by their length.
func (j *JWTs) Verify(token string) (payload []byte, ok bool) {
	// The signature is at the end, so junk is refused before anything is made of it.
	rest, ok := strings.CutPrefix(token, j.prefix)
	dot := len(rest) - 1 - base64.RawURLEncoding.EncodedLen(j.signature)
	if !ok || len(token) > maxJWT || dot < 0 || strings.IndexByte(rest, '.') != dot {
		return nil, false
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{j.key.algorithm})
	if err != nil {
		return nil, false
	}
	signature := jws.Signatures[0].Signature
	if j.key.algorithm == jose.ES256 && !isLow(signature) {
		return nil, false
	}
	payload, err = jws.Verify(j.key.public)
	// The library's decoder skips line breaks and ignores spare bits.
	if err != nil || !encodes(payload, rest[:dot]) || !encodes(signature, rest[dot+1:]) {
		return nil, false
	}
	return payload, true
}

// encodes reports whether text is the base64url form of data, rather than another text that can be
// decoded to it.
func encodes(data []byte, text string) bool {
	return base64.RawURLEncoding.EncodeToString(data) == text
}

// With an ECDSA signature (r, s), (r, n-s) is good as well, and anybody can compute it. So that there
// is one text for each JWT, only the one with the lower s counts here. To others both are good.
var (
	p256Order = elliptic.P256().Params().N
	p256Half  = new(big.Int).Rsh(p256Order, 1).FillBytes(make([]byte, 32))
)

// isLow reports whether an ES256 signature, which is r and then s, is the one that counts. It is for
// signatures of any length, since it is asked before they are verified.
func isLow(signature []byte) bool {
	return len(signature) == 64 && bytes.Compare(signature[32:], p256Half) <= 0
}

// makeLow turns an ES256 signature into the one that counts.
func makeLow(signature []byte) {
	if !isLow(signature) {
		s := new(big.Int).SetBytes(signature[32:])
		s.Sub(p256Order, s).FillBytes(signature[32:])
	}
}
