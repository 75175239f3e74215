package introspect

import (
	"bytes"
	"errors"
	"slices"
	"strings"
)

// SPIFFE names workloads by IDs such as spiffe://example.org/ci/runner, in trust domains such as
// spiffe://example.org. A workload shows a JWT that the trust domain has signed, a JWT-SVID, whose sub
// is its ID. It need not have an iss: the trust domain is in sub.

const (
	spiffeScheme = "spiffe://"
	// maxSPIFFEID is how long an ID may be, and maxTrustDomain a trust domain, in bytes.
	maxSPIFFEID, maxTrustDomain = 2048, 255
	// svidUse is the use of keys that sign JWT-SVIDs.
	svidUse = "jwt-svid"
)

// IsTrustDomain reports whether text is a SPIFFE trust domain with its scheme, as in
// spiffe://example.org.
func IsTrustDomain(text string) bool {
	name, ok := strings.CutPrefix(text, spiffeScheme)
	return ok && name != "" && len(name) <= maxTrustDomain && !strings.ContainsFunc(name, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_')
	})
}

// TrustDomain returns the trust domain of a workload, with its scheme, as in spiffe://example.org. It
// returns false if id is not the SPIFFE ID of a workload.
func TrustDomain(id string) (domain string, ok bool) {
	name, ok := strings.CutPrefix(id, spiffeScheme)
	if !ok || len(id) > maxSPIFFEID {
		return "", false
	}
	name, path, _ := strings.Cut(name, "/")
	for part := range strings.SplitSeq(path, "/") {
		bad := func(c rune) bool {
			return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_')
		}
		if part == "" || part == "." || part == ".." || strings.ContainsFunc(part, bad) {
			return "", false
		}
	}
	domain = id[:len(spiffeScheme)+len(name)]
	return domain, IsTrustDomain(domain)
}

// UnverifiedTrustDomain returns the trust domain of the workload that the token says it is about, with
// its scheme, if it is a signed JWT whose sub is a SPIFFE ID, or the empty string otherwise. What holds
// for UnverifiedIssuer holds here, except that each call decodes the token.
func (t *Token) UnverifiedTrustDomain() string {
	domain, _ := TrustDomain(t.UnverifiedSubject())
	return domain
}

// UnverifiedSubject returns the sub that the token claims if it is a signed JWT, or the empty string
// otherwise. What holds for UnverifiedIssuer holds here, except that each call decodes the token.
func (t *Token) UnverifiedSubject() string { return claimedText(t.text, "sub") }

// claimedBy reports whether a token says that it is one of those that the keys sign.
func (cfg *KeysConfig) claimedBy(token *Token) bool {
	if cfg.SPIFFE {
		return token.UnverifiedTrustDomain() == cfg.Issuer
	}
	return token.UnverifiedIssuer() == cfg.Issuer
}

// issued reports whether claims, which are verified, are those of a token that the keys sign.
func (cfg *KeysConfig) issued(claims map[string]any) bool {
	if !cfg.SPIFFE {
		return claims["iss"] == cfg.Issuer
	}
	subject, _ := claims["sub"].(string)
	domain, ok := TrustDomain(subject)
	return ok && domain == cfg.Issuer
}

// checkSPIFFE checks the settings of the keys of a trust domain.
func (cfg *KeysConfig) checkSPIFFE() error {
	switch {
	case !cfg.SPIFFE:
		return nil
	case !IsTrustDomain(cfg.Issuer):
		return errors.New("not a trust domain, such as spiffe://example.org")
	case cfg.Discovery:
		return errors.New("a trust domain has no metadata: say where its bundle is")
	}
	return nil
}

// acceptsSVID checks the typ in the header of a JWT-SVID, as in JWT.acceptsType.
func acceptsSVID(value any, present bool) (access, ok bool) {
	typ, _ := value.(string)
	return false, !present || slices.Contains([]string{"jwt", "jose"}, strings.ToLower(typ))
}

// parseBundle reads the bundle of a trust domain: a JWK set in which each key says what it is for. The
// others are for X.509-SVIDs.
func parseBundle(data []byte) (*keySet, []IgnoredKey, error) { return parseSet(data, parseSVIDKey) }

// parseSVIDKey is parseKey for the key of a bundle.
func parseSVIDKey(raw []byte) (publicKey, error) {
	jwk, ok := decodeObject(raw)
	if ok && jwk["use"] != svidUse {
		kid, _ := jwk["kid"].(string)
		return publicKey{kid: kid}, errors.New("its use is not " + svidUse)
	}
	return parseKeyFor(bytes.TrimSpace(raw), svidUse)
}
