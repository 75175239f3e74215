package introspect

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/go-jose/go-jose/v4"
)

// JWT is a [Source] of tokens that carry their facts themselves, signed by their issuer: JWT
// access tokens (RFC 9068), and those of issuers that predate that profile.
//
// A token is active if it is signed with one of the keys that its issuer publishes, by an
// algorithm that the configuration allows, and if every claim that limits its use is present
// and holds. Nothing in a token chooses how it is checked: the header's jwk, jku, x5u and x5c
// are never used, and its alg only selects one of the allowed algorithms. A token with cnf is
// bound to a key whose possession the bearer has to prove; see JWTConfig.AcceptBound. A token
// that could be read in two ways is inactive: with two members of one name, or in base64 that
// is not spelled canonically.
//
// A signature can't tell whether the token has been revoked since. A program that must know
// asks the issuer (RFC 7662), or accepts only short-lived tokens.
//
// An ECDSA signature has a twin that anybody can compute and that is just as valid. So one
// set of claims can come in two tokens with different IDs. A list of revoked JWTs must go by
// the claim jti, never by the token's ID.
type JWT struct {
	cfg JWTConfig
}

// JWTConfig are the settings of a [JWT]. Keys is required; the zero value of each other field
// is its default.
type JWTConfig struct {
	// Keys are the issuer's keys and say who the issuer is. Several sources may share them.
	Keys *Keys

	// Algorithms are the allowed signature algorithms, out of RS256, RS384, RS512, PS256,
	// PS384, PS512, ES256, ES384, ES512, EdDSA (with Ed25519), and Ed25519, its newer name
	// (RFC 9864). None and HMAC are errors. Default: RS256, PS256, ES256, EdDSA, Ed25519.
	Algorithms []string

	// Audience lists the accepted audiences. A token must name at least one of them, byte for
	// byte. Default: the audience is not checked here, so whoever uses the facts must check it.
	// Otherwise a token that was issued for any other service of this issuer is good.
	Audience []string

	// Type is what the header's typ must be. "at+jwt" accepts at+jwt and application/at+jwt
	// (RFC 9068). "any" is for issuers that don't follow it, such as Keycloak and Entra ID: it
	// also accepts JWT, application/jwt, JOSE, Bearer and no typ. Then often only the audience
	// tells an ID token from an access token, so set Audience to something that is no client's
	// ID. A token that declares itself something other than an access token is refused: by
	// at_hash, c_hash, s_hash, events or token_introspection, or by naming a kind other than
	// access, Bearer or JWT in one of the claims typ, token_use, token_type, tokenName,
	// tokenType, tok_type and purpose. If the header says at+jwt, these claims may have any
	// value that does not name another kind. Default: at+jwt.
	Type string

	// ClientClaims are the claims that name the client; the first one present counts. Dots
	// lead into objects, as in [Facts.ClaimValues]. Default: client_id and azp, which must agree
	// if both are present; without either, appid or cid.
	ClientClaims []string

	// ScopeClaims are the claims that hold the scopes; the first one present counts. It is a
	// string with spaces, a list, or an object with the scopes as member names.
	// Default: scope, scp.
	ScopeClaims []string

	// AcceptBound has tokens with cnf be active, if it says x5t#S256 or jkt and nothing else.
	// Whoever uses the facts must then check [Facts.Confirmation]. Default: false; such tokens are
	// inactive, since a program that doesn't check would take a stolen one.
	AcceptBound bool

	// Leeway is how far ahead the issuer's clock may be when nbf and iat are checked, at most
	// 60s. It never prolongs a token's life: the token is dead at exp. Default: 0.
	Leeway time.Duration

	// RefreshInterval is how often the keys are fetched, at least 10s. Of several sources that
	// share the keys, the shortest interval counts. It bounds how long a withdrawn key is
	// trusted. A shorter max-age in the response's Cache-Control shortens it, but not below
	// KeysConfig.MinRefresh; a max-age of 0, which frameworks put on every response, is ignored.
	// After a failure, the next attempt comes after MinRefresh, and then after twice as long
	// each time, up to one minute. Default: 15m.
	RefreshInterval time.Duration

	// Now is the wall clock. Default: time.Now.
	Now func() time.Time

	// OnKeys is called for each new set of keys with the number of keys that fit one of
	// Algorithms. If it is 0, no token can be good. It must return at once.
	OnKeys func(n int)
}

// DefaultAlgorithms returns the default of [JWTConfig.Algorithms].
func DefaultAlgorithms() []string { return []string{"RS256", "PS256", "ES256", "EdDSA", "Ed25519"} }

const (
	// maxLeeway is for clocks that are wrong, not for tokens that are old.
	maxLeeway = time.Minute
)

// NewJWT creates a JWT source. It does not wait for the keys; until there are any, lookups
// fail. An error here means that the configuration is wrong. End the source with [JWT.Close],
// and the Keys after it.
//
// In front of it, [Cache.Wrap] needs a name that covers the settings: what one configuration
// accepts must not be remembered for another that would refuse it.
func NewJWT(cfg JWTConfig) (*JWT, error) {
	if cfg.Keys == nil {
		return nil, errors.New("JWT source: Keys is required")
	}
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("JWT source for %q: %w", cfg.Keys.cfg.Issuer, err)
	}
	if cfg.Keys.cfg.SPIFFE && len(cfg.Audience) == 0 {
		return nil, fmt.Errorf("JWT source for %q: JWT-SVIDs are for an audience, so Audience is required", cfg.Keys.cfg.Issuer)
	}
	j := &JWT{cfg: cfg}
	cfg.Keys.join(j)
	return j, nil
}

// Check reports what NewJWT would refuse, except missing Keys.
func (cfg JWTConfig) Check() error { return cfg.complete() }

// complete checks the settings and fills in the defaults.
func (cfg *JWTConfig) complete() error {
	if len(cfg.Algorithms) == 0 {
		cfg.Algorithms = DefaultAlgorithms()
	}
	cfg.Algorithms = slices.Clone(cfg.Algorithms)
	for _, alg := range cfg.Algorithms {
		if !slices.Contains(asymmetric, alg) {
			return fmt.Errorf("algorithm %q: must be one of %s", alg, strings.Join(asymmetric, ", "))
		}
	}
	cfg.Audience = slices.Clone(cfg.Audience)
	if slices.Contains(cfg.Audience, "") {
		return errors.New("an audience is empty")
	}
	cfg.ClientClaims, cfg.ScopeClaims = slices.Clone(cfg.ClientClaims), slices.Clone(cfg.ScopeClaims)
	if err := errors.Join(checkClaimNames("ClientClaims", cfg.ClientClaims), checkClaimNames("ScopeClaims", cfg.ScopeClaims)); err != nil {
		return err
	}
	if cfg.Type == "" {
		cfg.Type = "at+jwt"
	}
	if cfg.Type != "at+jwt" && cfg.Type != "any" {
		return fmt.Errorf("type %q: must be at+jwt or any", cfg.Type)
	}
	if cfg.Leeway < 0 || cfg.Leeway > maxLeeway {
		return fmt.Errorf("leeway %v: must be between 0 and %v", cfg.Leeway, maxLeeway)
	}
	if cfg.RefreshInterval == 0 {
		cfg.RefreshInterval = defaultRefresh
	}
	if cfg.RefreshInterval < 10*time.Second {
		return fmt.Errorf("refresh interval %v: must be at least 10s", cfg.RefreshInterval)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.OnKeys == nil {
		cfg.OnKeys = func(int) {}
	}
	return nil
}

// Close ends the source, so that its RefreshInterval no longer counts. The Keys stay open.
// Close may be called twice.
func (j *JWT) Close() { j.cfg.Keys.leave(j) }

// Lookup verifies token. It returns Inactive for a token that it can tell is bad. If that
// would take a key that could not be fetched, because none ever was, or because the token's
// kid is unknown and the last fetch failed, Lookup returns an error: the token may be good.
// Made-up kids get errors while the issuer is down, and change nothing for other tokens.
//
// Lookup blocks only for a token whose key is unknown, until the keys have been fetched.
func (j *JWT) Lookup(ctx context.Context, token Token) (*Facts, error) {
	signed, cause := j.read(token)
	if cause != "" {
		return InactiveBecause(cause), nil
	}
	payload, key, known, err := j.cfg.Keys.verify(ctx, signed)
	if err != nil {
		return nil, err
	}
	return j.conclude(token, signed, payload, key, known), nil
}

// verify verifies a token, and fetches the keys if there is none that it can be signed with. known
// says that there is one.
func (k *Keys) verify(ctx context.Context, signed signedToken) (payload []byte, key *publicKey, known bool, err error) {
	set := k.set()
	payload, key, known = set.verify(signed)
	if known {
		return payload, key, known, nil
	}
	if err := k.refresh(ctx); err != nil {
		return nil, nil, false, fmt.Errorf("fetching the keys of %s: %w", k.cfg.Issuer, err)
	}
	// The same keys would give the same answer.
	fresh := k.set()
	if fresh != set {
		payload, key, known = fresh.verify(signed)
	}
	if fresh == nil {
		return nil, nil, false, fmt.Errorf("the keys of %s: %w", k.cfg.Issuer, errNoKeys)
	}
	return payload, key, known, nil
}

// conclude returns the facts of a token that key verified, if it is not nil. known says that the
// key is the one that the token names.
func (j *JWT) conclude(token Token, signed signedToken, payload []byte, key *publicKey, known bool) *Facts {
	switch {
	case key == nil && known:
		return InactiveBecause(CauseSignature)
	case key == nil:
		return InactiveBecause(CauseUnknownKey)
	}
	facts, cause := j.judge(payload, signed.access)
	if cause != "" {
		return InactiveBecause(cause)
	}
	facts.ID = token.ID()
	facts.verifiedBy = key.id
	return facts
}

// Inquire verifies token as Lookup does, with the keys that are there: it fetches none. See
// [Inquirer].
func (j *JWT) Inquire(_ context.Context, token Token) (*Facts, error) {
	signed, cause := j.read(token)
	if cause != "" {
		return InactiveBecause(cause), nil
	}
	payload, key, known := j.set().verify(signed)
	if !known {
		return nil, ErrNotAsked // Lookup would fetch the keys
	}
	return j.conclude(token, signed, payload, key, known), nil
}

func (j *JWT) issuer() string { return j.cfg.Keys.cfg.Issuer }

// issuerInTokens returns the iss of each token that is active; empty if the keys go by something else.
func (j *JWT) issuerInTokens() string {
	if j.cfg.Keys.cfg.SPIFFE {
		return ""
	}
	return j.issuer()
}

// HasKeys reports whether there are keys that fit the allowed algorithms. Without any, no token
// can be good. It does not block.
func (j *JWT) HasKeys() bool {
	set := j.set()
	return set != nil && set.fitting(j.cfg.Algorithms) > 0
}

// LastError returns why the latest attempt to get the keys failed, or nil if it succeeded. Its text has no
// secret.
func (j *JWT) LastError() error { return j.cfg.Keys.lastError() }

// set returns the current set of keys, nil if there is none yet.
func (j *JWT) set() *keySet { return j.cfg.Keys.set() }

// Screen reports whether token has the outline of a signed JWT. It runs on every request and
// looks no closer.
func (j *JWT) Screen(token Token) (Token, bool) { return token, outline(token.text) }

// WhyNot implements [Explainer].
func (j *JWT) WhyNot(Token) Cause { return CauseNoSource }

// Doubts reports whether facts were verified with a key that is not in the current set. An
// issuer that withdraws a key wants its tokens dead, so they are looked up again. That fetches
// the keys, unless they were fetched less than MinRefresh ago, and settles it: the current set
// may come from a replica that lags behind, and the next one may have the key again. A key
// whose kid or alg has changed is another key.
func (j *JWT) Doubts(facts *Facts) bool { return !j.set().has(facts.verifiedBy) }

// Revise refuses facts that are in doubt, for callers that have them from elsewhere than a
// lookup.
func (j *JWT) Revise(facts *Facts) *Facts {
	if j.Doubts(facts) {
		return facts.Refused(CauseUnknownKey)
	}
	return facts
}

// Coherent reports whether keys are known. Until then nobody can say whether the keys that
// verified cached facts are still good.
func (j *JWT) Coherent() bool { return j.set() != nil }

// signedToken is a token taken apart. Nothing it says is verified.
type signedToken struct {
	jws *jose.JSONWebSignature
	// alg is one of the allowed algorithms.
	alg string
	// kid is empty if the token has none.
	kid string
	// access is whether the header's typ says that it is an access token.
	access bool
}

func (s signedToken) signature() []byte { return s.jws.Signatures[0].Signature }

// read takes a token apart and checks everything that needs no key. The cause is empty if the
// token passes.
func (j *JWT) read(token Token) (signed signedToken, no Cause) {
	return readJWT(token, &j.cfg.Keys.cfg, j.cfg.Algorithms, j.acceptsType)
}

// readJWT is read for any kind of JWT. acceptsType checks the header's typ, and reports whether it is
// that of access tokens.
func readJWT(token Token, keys *KeysConfig, algorithms []string, acceptsType func(typ any, present bool) (access, ok bool)) (signed signedToken, no Cause) {
	// A key ID in another issuer's token must not cause a fetch. The issuer is compared once
	// more after the token is verified.
	if !keys.claimedBy(&token) {
		return signed, CauseIssuer
	}
	signed, _, no = readHeader(token.text, algorithms, acceptsType)
	return signed, no
}

// readHeader is readJWT for JWTs of any issuer. It also returns the header's text, which is a JSON object
// that can be read in one way only.
func readHeader(text string, algorithms []string, acceptsType func(typ any, present bool) (access, ok bool)) (signed signedToken, said string, no Cause) {
	bad := func(no Cause) (signedToken, string, Cause) { return signedToken{}, "", no }
	if !oneSpelling(text) {
		return bad(CauseMalformed)
	}
	protected, _, _ := strings.Cut(text, ".")
	data, err := base64.RawURLEncoding.DecodeString(protected)
	if err != nil {
		return bad(CauseMalformed)
	}
	header, said, ok := readObject(data)
	if !ok {
		return bad(CauseMalformed)
	}
	// Nothing has a use for any of these here: crit demands extensions that we don't know,
	// b64 changes what is signed (RFC 7797), zip and enc belong to encryption.
	for _, name := range []string{"crit", "b64", "zip", "enc"} {
		// ForgeRock AM states in each header that nothing is compressed.
		if value, present := header[name]; present && !(name == "zip" && value == "NONE") {
			return bad(CauseMalformed)
		}
	}
	typ, present := header["typ"]
	if signed.access, ok = acceptsType(typ, present); !ok {
		return bad(CauseType)
	}
	// Some serializers write an empty kid if there is none.
	if value, present := header["kid"]; present && value != nil {
		if signed.kid, ok = value.(string); !ok {
			return bad(CauseMalformed)
		}
	}
	if signed.alg, ok = header["alg"].(string); !ok || !slices.Contains(algorithms, signed.alg) {
		return bad(CauseAlgorithm)
	}
	// go-jose parses the header itself. Allowing only this algorithm makes sure that it reads
	// the same one.
	signed.jws, err = jose.ParseSignedCompact(text, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(signed.alg)})
	if err != nil {
		return bad(CauseMalformed)
	}
	return signed, said, ""
}

// oneSpelling reports whether no other text decodes to the same three parts as token, provided
// that go-jose can decode it, which removes white space before. Go's base64 decoder skips line breaks
// and, unless it is strict, ignores bits after the last byte; padding is for other decoders.
func oneSpelling(token string) bool {
	if strings.ContainsFunc(token, func(c rune) bool { return c == '=' || unicode.IsSpace(c) }) {
		return false
	}
	for part := range strings.SplitSeq(token, ".") {
		last := part[len(part)&^3:] // only here can bits be left over
		if _, err := base64.RawURLEncoding.Strict().DecodeString(last); err != nil {
			return false
		}
	}
	return true
}

// acceptsType checks the header's typ (RFC 8725 section 3.11), and reports whether it is that
// of access tokens. Like any media type, it is case-insensitive.
func (j *JWT) acceptsType(value any, present bool) (access, ok bool) {
	if j.cfg.Keys.cfg.SPIFFE {
		return acceptsSVID(value, present)
	}
	if !present {
		return false, j.cfg.Type == "any"
	}
	typ, _ := value.(string)
	switch strings.ToLower(typ) {
	case "at+jwt", "application/at+jwt":
		return true, true
	case "jwt", "application/jwt", "jose", "bearer":
		return false, j.cfg.Type == "any"
	}
	return false, false
}

// begun checks that a JWT may be used at now already, by nbf and iat. It returns iat, which is zero if
// there is none. The cause is empty if the JWT passes.
func begun(claims map[string]any, now time.Time) (issued time.Time, no Cause) {
	for _, name := range []string{"nbf", "iat"} {
		value := claims[name]
		if value == nil {
			continue
		}
		at, ok := numericDate(value)
		if !ok {
			return time.Time{}, CauseMalformed
		}
		if now.Before(at) {
			return time.Time{}, CauseNotYet
		}
		if name == "iat" {
			issued = at
		}
	}
	return issued, ""
}

// judge turns a payload whose signature is good into facts. access is whether the header says
// that it is an access token. Members that are null count as absent, except cnf. The
// cause is empty if the token is good.
func (j *JWT) judge(payload []byte, access bool) (_ *Facts, no Cause) {
	claims, text, ok := readObject(payload)
	if !ok {
		return nil, CauseMalformed
	}
	if !j.cfg.Keys.cfg.issued(claims) {
		return nil, CauseIssuer
	}
	confirmation, ok := confirmationOf(claims, text)
	if !ok || !j.cfg.AcceptBound && confirmation != (Confirmation{}) {
		return nil, CauseBinding
	}
	if otherKind(claims, confirmation, access) {
		return nil, CauseKind
	}

	now := j.cfg.Now()
	expiry, ok := numericDate(claims["exp"])
	if !ok {
		return nil, CauseMalformed
	}
	if !now.Before(expiry) {
		return nil, CauseExpired
	}
	issued, no := begun(claims, now.Add(j.cfg.Leeway))
	if no != "" {
		return nil, no
	}

	var audience []string
	// Some servers write an empty list or string if nobody asked for an audience. An empty name
	// among others is a mistake whose meaning nobody knows.
	if value := claims["aud"]; value != nil && value != "" {
		if audience, ok = texts(value); !ok || slices.Contains(audience, "") {
			return nil, CauseMalformed
		}
	}
	if len(j.cfg.Audience) > 0 && !slices.ContainsFunc(j.cfg.Audience, func(a string) bool { return slices.Contains(audience, a) }) {
		return nil, CauseAudience
	}

	client, ok := clientOf(text, j.cfg.ClientClaims)
	if !ok {
		return nil, CauseMalformed
	}
	scopes, ok := scopesOf(text, j.cfg.ScopeClaims)
	if !ok {
		return nil, CauseMalformed
	}
	subject := ""
	if value := claims["sub"]; value != nil {
		if subject, ok = nameText(value); !ok {
			return nil, CauseMalformed
		}
	}
	return &Facts{
		Active: true, ClientID: client, Subject: subject, Issuer: j.issuer(),
		Scopes: scopes, Audience: audience, Confirmation: confirmation, IssuedAt: issued, Expiry: expiry, Claims: text,
	}, ""
}

// numericDate reads a NumericDate (RFC 7519 section 2): seconds from 1970 to the year 9999,
// with at most nine decimals. Some serializers write an exponent, as in 1.7e+09; it is read
// digit by digit, never as a float. A sign is refused: no token is from before 1970.
func numericDate(value any) (time.Time, bool) {
	number, ok := value.(json.Number)
	if !ok {
		return time.Time{}, false
	}
	mantissa, exponent, scientific := strings.Cut(strings.ToLower(number.String()), "e")
	whole, decimals, _ := strings.Cut(mantissa, ".")
	if scientific {
		shift, err := strconv.Atoi(exponent)
		if err != nil || whole == "" || shift < -maxShift || shift > maxShift || len(mantissa) > 2*maxShift {
			return time.Time{}, false
		}
		padded := strings.Repeat("0", maxShift) + whole + decimals + strings.Repeat("0", maxShift)
		point := maxShift + len(whole) + shift
		whole, decimals = padded[:point], strings.TrimRight(padded[point:], "0")
	}
	if len(decimals) > 9 {
		return time.Time{}, false
	}
	seconds, err := strconv.ParseUint(whole, 10, 64)
	if err != nil || seconds > 253402300799 {
		return time.Time{}, false
	}
	nanos, err := strconv.ParseUint((decimals + "000000000")[:9], 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	return time.Unix(int64(seconds), int64(nanos)), true
}

// maxShift is how far the exponent of a NumericDate may move its decimal point: enough for its
// twelve digits and nine decimals.
const maxShift = 21
