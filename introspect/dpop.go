package introspect

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Proofs verifies DPoP proofs (RFC 9449): JWTs by which the sender of a request proves that it has the
// private key that its token is bound to. It is safe for concurrent use and owns nothing.
//
// A proof brings its own key, so a good proof says only that its sender has that key. Compare
// [Proof.Key] with the key of the token. Whether the proof was used before, and whether its nonce is
// one that was given out, is for the caller to judge, too.
type Proofs struct{ cfg ProofsConfig }

// ProofsConfig are the settings of [Proofs]. The zero value of each field is its default.
type ProofsConfig struct {
	// Algorithms are the allowed signature algorithms; see [JWTConfig.Algorithms], where the default
	// is. An RSA key may have 2048 to 4096 bits.
	Algorithms []string

	// MaxAge is how long after it was made a proof is good, from 10s to 5m. Default: 1m.
	MaxAge time.Duration

	// Leeway is how far ahead the clock of those who make the proofs may be, up to 1m. Default: 10s.
	Leeway time.Duration

	// Now is the wall clock. Default: time.Now.
	Now func() time.Time
}

// ProofOf is what a proof must be made for.
type ProofOf struct {
	// Method is the request's method. It is compared byte for byte.
	Method string

	// URLs are the request's URL in all forms under which the server knows it. The proof must name one
	// of them. Query and fragment don't count, and URLs that differ only in their spelling are the same
	// (RFC 3986 sections 6.2.2 and 6.2.3). They must not come from what the request says, or a
	// proof that was made for another server is good here.
	URLs []string

	// Token is the access token that comes with the proof. It is empty if none does, as at a token
	// endpoint.
	Token string
}

// Proof is what a proof says, after it was verified.
type Proof struct {
	// Key is the RFC 7638 thumbprint of the key that signed it, in base64url: the jkt of a token that is
	// bound to it.
	Key string
	// ID is jti, which no two proofs of a key have in common. It has 1 to 256 bytes.
	ID string
	// IssuedAt is iat.
	IssuedAt time.Time
	// URL is htu in its one spelling, without query and fragment.
	URL string
	// Nonce is nonce; empty if the proof has none.
	Nonce string
}

// Why proofs are refused, beside the causes of tokens.
const (
	// CauseProofKey means that the header's jwk is missing, is no key for the algorithm, is too short
	// or too long, or is private.
	CauseProofKey Cause = "proof_key"
	// CauseProofMethod means that the proof is for another method.
	CauseProofMethod Cause = "proof_method"
	// CauseProofURL means that the proof is for another URL.
	CauseProofURL Cause = "proof_url"
	// CauseProofToken means that the proof is for another token, or for none.
	CauseProofToken Cause = "proof_token"
)

const (
	// maxProof bounds the length of a proof, in bytes, before anything is parsed. One with an RSA key
	// of 4096 bits has about 2000.
	maxProof = 8 << 10
	// maxProofID bounds the length of a jti.
	maxProofID = 256
)

// NewProofs checks the settings.
func NewProofs(cfg ProofsConfig) (*Proofs, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("DPoP proofs: %w", err)
	}
	return &Proofs{cfg: cfg}, nil
}

// Check reports what NewProofs would refuse.
func (cfg ProofsConfig) Check() error { return cfg.complete() }

// complete checks the settings and fills in the defaults.
func (cfg *ProofsConfig) complete() error {
	algorithms := JWTConfig{Algorithms: cfg.Algorithms}
	if err := algorithms.complete(); err != nil {
		return err
	}
	cfg.Algorithms = algorithms.Algorithms
	if cfg.MaxAge == 0 {
		cfg.MaxAge = time.Minute
	}
	if cfg.MaxAge < 10*time.Second || cfg.MaxAge > 5*time.Minute {
		return fmt.Errorf("MaxAge %v: must be between 10s and 5m", cfg.MaxAge)
	}
	if cfg.Leeway == 0 {
		cfg.Leeway = 10 * time.Second
	}
	if cfg.Leeway < 0 || cfg.Leeway > maxLeeway {
		return fmt.Errorf("Leeway %v: must be between 0 and %v", cfg.Leeway, maxLeeway)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return nil
}

// Algorithms returns the allowed signature algorithms.
func (p *Proofs) Algorithms() []string { return slices.Clone(p.cfg.Algorithms) }

// Until returns when a proof ends that was made at issuedAt. Until then, whoever verifies proofs must
// remember that it was used.
func (p *Proofs) Until(issuedAt time.Time) time.Time { return issuedAt.Add(p.cfg.MaxAge) }

// Leeway returns how far in the future a proof may have been made.
func (p *Proofs) Leeway() time.Duration { return p.cfg.Leeway }

// Verify makes the checks of RFC 9449 section 4.3, except those that are for the caller; see [Proofs].
// The cause is why the proof is refused, for logs; it is empty if the proof is good. Verify doesn't
// block. What costs most, the signature, comes last.
func (p *Proofs) Verify(text string, of ProofOf) (*Proof, Cause) {
	if len(text) > maxProof || !outline(text) {
		return nil, CauseMalformed
	}
	signed, header, cause := readHeader(text, p.cfg.Algorithms, isProof)
	if cause != "" {
		return nil, cause
	}
	key, err := proofKey(header)
	if err != nil || !key.fits(signed.alg) {
		return nil, CauseProofKey
	}
	proof, cause := p.judge(signed.jws.UnsafePayloadWithoutVerification(), of)
	if cause != "" {
		return nil, cause
	}
	if _, err := signed.jws.Verify(key.verifier(signed.alg)); err != nil {
		return nil, CauseSignature
	}
	proof.Key = key.thumbprint()
	return proof, ""
}

// isProof checks the header's typ (RFC 9449 section 4.2). Like any media type, it is case-insensitive,
// and may have its first part.
func isProof(value any, _ bool) (access, ok bool) {
	typ, _ := value.(string)
	return false, strings.TrimPrefix(strings.ToLower(typ), "application/") == "dpop+jwt"
}

// proofKey returns the key in a header.
func proofKey(header string) (key publicKey, err error) {
	err = errors.New("no jwk")
	for name, value := range jsonMembers(skipSpace(header)) {
		if name == "jwk" {
			key, err = parseKey([]byte(value))
		}
	}
	if err == nil {
		err = key.complete()
	}
	return key, err
}

// judge checks the claims.
func (p *Proofs) judge(payload []byte, of ProofOf) (_ *Proof, no Cause) {
	claims, ok := decodeObject(payload)
	if !ok {
		return nil, CauseMalformed
	}
	proof := new(Proof)
	if proof.ID, _ = claims["jti"].(string); proof.ID == "" || len(proof.ID) > maxProofID {
		return nil, CauseMalformed
	}
	if nonce, present := claims["nonce"]; present {
		if proof.Nonce, ok = nonce.(string); !ok {
			return nil, CauseMalformed
		}
	}
	method, ok := claims["htm"].(string)
	if !ok {
		return nil, CauseMalformed
	}
	at, ok := claims["htu"].(string)
	if !ok {
		return nil, CauseMalformed
	}
	if proof.IssuedAt, ok = numericDate(claims["iat"]); !ok {
		return nil, CauseMalformed
	}
	now := p.cfg.Now()
	if !now.Before(p.Until(proof.IssuedAt)) {
		return nil, CauseExpired
	}
	if exp := claims["exp"]; exp != nil {
		end, ok := numericDate(exp)
		if !ok {
			return nil, CauseMalformed
		}
		if !now.Before(end) {
			return nil, CauseExpired
		}
	}
	if _, cause := begun(claims, now.Add(p.cfg.Leeway)); cause != "" {
		return nil, cause
	}
	if method != of.Method {
		return nil, CauseProofMethod
	}
	if proof.URL, ok = normalURL(at); !ok || !slices.ContainsFunc(of.URLs, func(known string) bool {
		known, ok := normalURL(known)
		return ok && known == proof.URL
	}) {
		return nil, CauseProofURL
	}
	if of.Token != "" {
		hash := sha256.Sum256([]byte(of.Token))
		if claims["ath"] != base64.RawURLEncoding.EncodeToString(hash[:]) {
			return nil, CauseProofToken
		}
	}
	return proof, ""
}

// normalURL returns the one spelling of an http or https URL, without query and fragment: by its syntax
// and its scheme (RFC 3986 sections 6.2.2 and 6.2.3).
func normalURL(text string) (normal string, ok bool) {
	u, err := url.Parse(text)
	if err != nil || u.User != nil || u.Hostname() == "" {
		return "", false
	}
	port := u.Port()
	switch {
	case u.Scheme == "https" && port == "443", u.Scheme == "http" && port == "80":
		port = ""
	case u.Scheme != "https" && u.Scheme != "http":
		return "", false
	}
	host := strings.ToLower(u.Host)
	if i := strings.LastIndexByte(host, ':'); i >= 0 && host[len(host)-1] != ']' {
		host = host[:i] // with or without digits behind the colon
	}
	if port != "" {
		host += ":" + port
	}
	return u.Scheme + "://" + host + normalPath(u.EscapedPath()), true
}

// normalPath returns the one spelling of an escaped path: what need not be escaped is not, the digits of
// what must be are capitals, and there are no dot segments.
func normalPath(path string) string {
	if path == "" {
		return "/"
	}
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] != '%' || i+2 >= len(path) {
			b.WriteByte(path[i])
			continue
		}
		escape := strings.ToUpper(path[i : i+3])
		if c, err := url.PathUnescape(escape); err == nil && strings.Trim(c, unreserved) == "" {
			escape = c
		}
		b.WriteString(escape)
		i += 2
	}
	path = b.String()
	if !strings.Contains(path, "/.") {
		return path
	}
	var kept []string // RFC 3986 section 5.2.4
	segments := strings.Split(path, "/")[1:]
	for i, segment := range segments {
		switch last := i == len(segments)-1; segment {
		case "..":
			kept = kept[:max(len(kept)-1, 0)]
			fallthrough
		case ".":
			if last {
				kept = append(kept, "")
			}
		default:
			kept = append(kept, segment)
		}
	}
	return "/" + strings.Join(kept, "/")
}

// unreserved are the characters that mean the same escaped or not (RFC 3986 section 2.3).
const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
