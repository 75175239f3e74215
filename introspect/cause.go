package introspect

// Cause is why a token is not good, as far as its source knows. It is for logs and metrics
// only: whoever shows a token must not learn its state, so all causes look the same to callers.
type Cause string

// The causes that sources find. A source outside of this package may have others.
const (
	// CauseUnknown means that the source doesn't know the token, or says no more than that.
	CauseUnknown Cause = "unknown"
	// CauseMalformed means that the token can't be read, or a claim in it can't.
	CauseMalformed Cause = "malformed"
	// CauseNoSource means that the token doesn't look like one of the source's.
	CauseNoSource Cause = "no_source"
	// CauseForged means that the token looks like one of the source's and lacks its mark.
	CauseForged Cause = "forged"
	// CauseExpired means that the token was genuine, and its time is over.
	CauseExpired Cause = "expired"
	// CauseNotYet means that the time from which the token counts is still to come.
	CauseNotYet Cause = "not_yet"
	// CauseRevoked means that the token is genuine and in time, and that there is no record of
	// it: it was revoked, or its record was lost.
	CauseRevoked Cause = "revoked"
	// CauseIssuer means that the token names an issuer that the source doesn't speak for.
	CauseIssuer Cause = "issuer"
	// CauseAudience means that the token is not meant for the audiences that are accepted.
	CauseAudience Cause = "audience"
	// CauseClientDisabled means that the token's client is disabled.
	CauseClientDisabled Cause = "client_disabled"
	// CauseClientRemoved means that the token's client is gone.
	CauseClientRemoved Cause = "client_removed"
	// CauseClientGeneration means that the token's client was away since it got the token:
	// removed and added again, or disabled in between.
	CauseClientGeneration Cause = "client_generation"
	// CauseType means that the header's typ is not that of an access token.
	CauseType Cause = "typ"
	// CauseKind means that the claims belong to something other than an access token, such as an
	// ID token or a refresh token.
	CauseKind Cause = "kind"
	// CauseAlgorithm means that the token's alg is not accepted.
	CauseAlgorithm Cause = "alg"
	// CauseUnknownKey means that the issuer has no key that the token could be verified with.
	CauseUnknownKey Cause = "unknown_key"
	// CauseSignature means that the signature doesn't match the key that the token names.
	CauseSignature Cause = "signature"
	// CauseBinding means that the token is bound to a key (cnf, RFC 7800), and is not accepted:
	// it is bound in a way that can't be checked, or its bearer has not proven to have the key.
	CauseBinding Cause = "binding"
)

// Causes returns all causes above.
func Causes() []Cause {
	return []Cause{
		CauseUnknown, CauseMalformed, CauseNoSource, CauseForged, CauseExpired, CauseNotYet, CauseRevoked, CauseIssuer,
		CauseAudience, CauseClientDisabled, CauseClientRemoved, CauseClientGeneration, CauseType, CauseKind,
		CauseAlgorithm, CauseUnknownKey, CauseSignature, CauseBinding,
	}
}

// inactiveBy are the facts of tokens that are not good, shared by all of them.
var inactiveBy = func() map[Cause]*Facts {
	by := make(map[Cause]*Facts)
	for _, cause := range Causes() {
		by[cause] = &Facts{cause: cause}
	}
	by[CauseUnknown] = inactive
	return by
}()

// InactiveBecause returns the facts of a token that is not good for a reason. For the causes
// above they are shared, so it doesn't allocate.
func InactiveBecause(cause Cause) *Facts {
	if facts, ok := inactiveBy[cause]; ok {
		return facts
	}
	return &Facts{cause: cause}
}

// Cause returns why the token is not good. It is CauseUnknown if nobody said, and empty for an
// active token.
func (f *Facts) Cause() Cause {
	if !f.Active && f.cause == "" {
		return CauseUnknown
	}
	return f.cause
}

// Refused returns inactive facts in place of f, which turned out not to count. For logs they
// remember f; see [Facts.Was].
func (f *Facts) Refused(cause Cause) *Facts { return &Facts{cause: cause, was: f} }

// Was returns, for logs only, the facts that these inactive ones stand in place of: they say
// whose token was refused. It is nil if nobody knows, as for every token that is not genuine.
func (f *Facts) Was() *Facts { return f.was }

// Explainer is an optional ability of a [Source] that is a [Screener]: to say why Screen
// refused a token.
type Explainer interface {
	// WhyNot returns the cause for a token that Screen has just refused, with what Screen noted in
	// it. It does no I/O and takes no longer than Screen.
	WhyNot(token Token) Cause
}
