package oauth

import "github.com/caddyoauth/gateway/introspect"

// The formats of tokens.
const (
	// FormatOpaque is a token that stands for a record in the store; see opaque.
	FormatOpaque = "opaque"
	// FormatSealed is a token that carries its facts, which only the gateway can read; see sealed.
	FormatSealed = "sealed"
)

// SelfContained reports whether tokens of this format carry their facts. They need a store that is
// a KeyStore.
func SelfContained(format string) bool { return format == FormatSealed }

// HasForm reports whether token has the form of the tokens that are issued here. It says nothing
// about which realm issued it, or whether any did.
func HasForm(token string) bool { return hasOpaqueForm(token) || hasSealedForm(token) }

// verify reports whether this realm issued token, in whatever format, and the token has not
// expired. It also returns its expiry, in unix milliseconds, or zero if the realm did not issue
// it. It costs microseconds and no I/O. What it finds is noted in the token, so that a genuine one
// is computed once a request; each call judges the time anew.
func (a *agreement) verify(token *introspect.Token) (expiryMilli int64, ok bool) {
	switch {
	case !hasSealedForm(token.Text()):
		return a.opaque.verify(token)
	case a.sealed == nil:
		return 0, false
	}
	return a.sealed.verify(token)
}

// whyNot says why verify refused token. It computes nothing that verify has not.
func (a *agreement) whyNot(token introspect.Token) introspect.Cause {
	if !HasForm(token.Text()) {
		return introspect.CauseNoSource
	}
	_, opaque := token.Noted(a.opaque)
	_, sealed := token.Noted(a.sealed)
	switch {
	case opaque || sealed && a.sealed != nil:
		return introspect.CauseExpired
	case hasSealedForm(token.Text()) && (a.sealed == nil || !a.sealed.knowsKey(token.Text())):
		return introspect.CauseUnknownKey
	}
	return introspect.CauseForged
}
