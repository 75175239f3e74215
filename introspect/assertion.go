package introspect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Assertions verifies JWTs that prove who made them (RFC 7521, RFC 7523): a client's own, or those
// that a platform gives to its workloads. It is safe for concurrent use and owns nothing.
//
// What holds for a [JWT] holds here: nothing in an assertion chooses how it is checked, and what could
// be read in two ways is refused. What an assertion is about, and whether it was used before, is for
// the caller to judge.
type Assertions struct{ cfg AssertionsConfig }

// AssertionsConfig are the settings of [Assertions]. Keys is required; the zero value of each other
// field is its default.
type AssertionsConfig struct {
	// Keys are the keys of those who make the assertions, and say what their iss must be.
	Keys *Keys

	// Algorithms are the allowed signature algorithms; see [JWTConfig.Algorithms], where the default
	// is.
	Algorithms []string

	// Types are what the header's typ may be, in lower case. An empty text stands for no typ.
	// Default: none, JWT, and client-authentication+jwt; or none, JWT and JOSE for a trust domain.
	Types []string

	// MaxLifetime is how far ahead an assertion's end may be. Default: 5m.
	MaxLifetime time.Duration

	// Leeway is how far ahead the clock of those who make the assertions may be when nbf and iat are
	// checked. It never prolongs an assertion's life. Default: 10s.
	Leeway time.Duration

	// Now is the wall clock. Default: time.Now.
	Now func() time.Time
}

// Assertion is what an assertion says, after it was verified.
type Assertion struct {
	// Issuer and Subject are iss and sub. Neither is empty. The Issuer of a JWT-SVID is its trust domain.
	Issuer, Subject string
	// Audience is aud, in the order of the assertion. It has at least one value.
	Audience []string
	// ID is jti; empty if the assertion has none.
	ID string
	// Expiry is exp, and IssuedAt is iat, which is zero if the assertion has none.
	Expiry, IssuedAt time.Time
	// Bound is set if the assertion is bound to a key (cnf, RFC 7800), whose possession is then for its
	// sender to prove.
	Bound bool
	// Claims are all claims, as the text of a JSON object in which no object has two members of the
	// same name.
	Claims string
	// Key is the RFC 7638 thumbprint of the key that verified it, in base64url.
	Key string

	signed signedToken
}

// Refused does what is left of the work of refusing an assertion, for a server that refuses it although
// its signature is right. So the time of the answer does not tell that it is, to somebody who has got
// hold of an assertion that is not for this server.
func (a *Assertion) Refused() { a.signed.pretend(1) }

// ClaimValues returns the values of a claim as text, as [Facts.ClaimValues] does; no name is special.
func (a *Assertion) ClaimValues(name string) []string {
	value, _ := findClaim(a.Claims, name)
	var values []string
	for v := range claimValues(value) {
		if len(values) == maxNames {
			return nil
		}
		values = append(values, v)
	}
	return values
}

// CauseLifetime means that an assertion lives for too long. No token is refused for that.
const CauseLifetime Cause = "lifetime"

// NewAssertions checks the settings.
func NewAssertions(cfg AssertionsConfig) (*Assertions, error) {
	if cfg.Keys == nil {
		return nil, errors.New("assertions: Keys is required")
	}
	algorithms := JWTConfig{Algorithms: cfg.Algorithms}
	if err := algorithms.complete(); err != nil {
		return nil, fmt.Errorf("assertions: %w", err)
	}
	cfg.Algorithms = algorithms.Algorithms
	if len(cfg.Types) == 0 && cfg.Keys.cfg.SPIFFE {
		cfg.Types = []string{"", "jwt", "jose"}
	}
	if len(cfg.Types) == 0 {
		cfg.Types = []string{"", "jwt", "client-authentication+jwt"}
	}
	if cfg.MaxLifetime == 0 {
		cfg.MaxLifetime = 5 * time.Minute
	}
	if cfg.Leeway == 0 {
		cfg.Leeway = 10 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if _, err := decoys(); err != nil {
		return nil, err
	}
	return &Assertions{cfg: cfg}, nil
}

// Algorithms returns the allowed signature algorithms.
func (a *Assertions) Algorithms() []string { return slices.Clone(a.cfg.Algorithms) }

// PretendToVerify does the work of verifying a JWT and finds nothing out. A server does it for those
// whom it does not know: the time of its answer would tell who is registered. algorithms are those of
// all whom it knows. A JWT of another algorithm costs nothing, as it can be nobody's.
func PretendToVerify(text string, algorithms []string) {
	token := NewToken(text)
	token.UnverifiedIssuer() // as in readJWT
	anyType := func(any, bool) (access, ok bool) { return false, true }
	if signed, _, cause := readHeader(text, algorithms, anyType); cause == "" {
		signed.pretend(0)
	}
}

// Verify verifies an assertion. The cause is why it is refused, for logs; it is empty if the assertion
// is good. An error means that the keys could not be fetched, so nobody can tell. It blocks only for an
// assertion whose key is unknown, until the keys have been fetched.
//
// algorithms are as for [PretendToVerify]. Whatever is wrong with an assertion, refusing it costs as
// much as it does there: a signature, or as many as the keys of somebody who is known can make us verify.
// Of those that an assertion without a kid may be signed with, four are tried.
func (a *Assertions) Verify(ctx context.Context, text string, algorithms []string) (*Assertion, Cause, error) {
	signed, cause := readJWT(NewToken(text), &a.cfg.Keys.cfg, a.cfg.Algorithms, a.acceptsType)
	if cause != "" {
		PretendToVerify(text, algorithms)
		return nil, cause, nil
	}
	payload, key, known, err := a.cfg.Keys.verify(ctx, signed)
	if key == nil {
		signed.pretend(a.cfg.Keys.set().worked(signed))
	}
	switch {
	case err != nil:
		return nil, "", err
	case key == nil && known:
		return nil, CauseSignature, nil
	case key == nil:
		return nil, CauseUnknownKey, nil
	}
	assertion, cause := a.judge(payload)
	if cause != "" {
		signed.pretend(1)
		return nil, cause, nil
	}
	assertion.Key, assertion.signed = key.thumbprint(), signed
	return assertion, "", nil
}

// acceptsType checks the header's typ (RFC 8725 section 3.11). Like any media type, it is
// case-insensitive, and may have its first part.
func (a *Assertions) acceptsType(value any, present bool) (access, ok bool) {
	typ, text := value.(string)
	if present && (!text || typ == "") {
		return false, false
	}
	return false, slices.Contains(a.cfg.Types, strings.TrimPrefix(strings.ToLower(typ), "application/"))
}

func (a *Assertions) judge(payload []byte) (_ *Assertion, no Cause) {
	claims, text, ok := readObject(payload)
	if !ok {
		return nil, CauseMalformed
	}
	result := &Assertion{Claims: text}
	result.Bound = claims["cnf"] != nil
	result.Issuer = a.cfg.Keys.cfg.Issuer
	result.Subject, _ = claims["sub"].(string)
	switch {
	case !a.cfg.Keys.cfg.issued(claims):
		return nil, CauseIssuer
	case result.Subject == "":
		return nil, CauseMalformed
	}
	if jti, present := claims["jti"]; present && jti != nil {
		if result.ID, ok = jti.(string); !ok {
			return nil, CauseMalformed
		}
	}
	if result.Audience, ok = texts(claims["aud"]); !ok || len(result.Audience) == 0 || slices.Contains(result.Audience, "") {
		return nil, CauseAudience
	}
	now := a.cfg.Now()
	result.Expiry, ok = numericDate(claims["exp"])
	switch {
	case !ok:
		return nil, CauseMalformed
	case !now.Before(result.Expiry):
		return nil, CauseExpired
	case result.Expiry.Sub(now) > a.cfg.MaxLifetime+a.cfg.Leeway:
		return nil, CauseLifetime
	}
	if result.IssuedAt, no = begun(claims, now.Add(a.cfg.Leeway)); no != "" {
		return nil, no
	}
	return result, ""
}
