package oauth

import (
	"errors"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// The formats of tokens.
const (
	// FormatOpaque is a token that stands for a record in the store; see opaque.
	FormatOpaque = "opaque"
	// FormatSealed is a token that carries its facts, which only the gateway can read; see sealed.
	FormatSealed = "sealed"
	// FormatJWT is a token that carries its facts, which everybody can read and verify, with the claims
	// of RFC 9068 or of ForgeRock AM; see jwts.
	FormatJWT = "jwt"
)

// SelfContained reports whether tokens of this format carry their facts. They need a store that is
// a KeyStore.
func SelfContained(format string) bool { return format == FormatSealed || format == FormatJWT }

// HasForm reports whether token has a form that only tokens issued by a gateway like this one have.
// It says nothing about which realm issued it, or whether any did. JWTs have a form that those of
// many others have; see [Engine.Minted].
func HasForm(token string) bool { return hasOpaqueForm(token) || hasSealedForm(token) }

// carriesFacts reports whether token has the form of one that carries its facts.
func carriesFacts(token string) bool { return hasSealedForm(token) || hasJWTForm(token) }

// screen reports whether this realm may have issued token, in whatever format, and whether it may
// be good still. It costs microseconds and no I/O. What it finds is noted in the token, so that it
// is computed once a request; each call judges the time anew.
//
// It does not verify the signature of a JWT, which costs as much as a request: it only looks for
// the key. So a key that is gone ends its tokens at once, even those in the cache, and whatever is
// not in the cache is verified by identify.
func (a *agreement) screen(token *introspect.Token) bool {
	switch text := token.Text(); {
	case hasSealedForm(text):
		if a.sealed == nil {
			return false
		}
		_, ok := a.sealed.verify(token)
		return ok
	case hasJWTForm(text):
		if !a.knowsKey(text) {
			return false
		}
		expiry, verified := token.Noted(a.jwts)
		return !verified || a.jwts.now().UnixMilli() < expiry
	}
	_, ok := a.opaque.verify(token)
	return ok
}

// identify returns what token itself says, and false if this realm did not issue it: of an opaque
// token that is the key of its record, of the others it is the record. The token may have expired.
// It costs no I/O, but for a JWT it costs the verification of a signature. The error means that the
// realm issued the token, and this program can't read it.
func (a *agreement) identify(token *introspect.Token) (t Token, ok bool, err error) {
	switch text := token.Text(); {
	case hasSealedForm(text):
		if a.sealed == nil {
			return t, false, nil
		}
		if t, ok = a.sealed.read(token); !ok {
			if expiry, _ := a.sealed.verify(token); expiry != 0 {
				err = errors.New("a sealed token holds what this program can't read")
			}
		}
		return t, ok, err
	case hasJWTForm(text):
		if a.jwts == nil {
			return t, false, nil
		}
		t, ok = a.jwts.read(token)
		return t, ok, nil
	}
	expiry, _ := a.opaque.verify(token)
	if expiry == 0 {
		return t, false, nil
	}
	return Token{Key: Key{Realm: a.realm, ExpiryMilli: expiry, ID: token.ID()}}, true, nil
}

// knowsKey reports whether the key that a self-contained token names is one of the realm's.
func (a *agreement) knowsKey(text string) bool {
	if hasSealedForm(text) {
		return a.sealed != nil && a.sealed.knowsKey(text)
	}
	if a.jwts == nil {
		return false
	}
	_, known := a.jwts.keyOf(text)
	return known
}

// whyNot says why screen or identify refused token. It computes nothing that they have not.
func (a *agreement) whyNot(token introspect.Token) introspect.Cause {
	isSealed, isJWT := hasSealedForm(token.Text()), hasJWTForm(token.Text())
	if !isSealed && !isJWT && !hasOpaqueForm(token.Text()) {
		return introspect.CauseNoSource
	}
	_, opaque := token.Noted(a.opaque)
	_, sealed := token.Noted(a.sealed)
	expiry, jwt := token.Noted(a.jwts)
	switch {
	case jwt && expiry == signedOtherwise:
		return introspect.CauseUnknownKey
	case opaque || sealed && a.sealed != nil || jwt && a.jwts != nil:
		return introspect.CauseExpired
	case isJWT && a.knowsKey(token.Text()):
		return introspect.CauseSignature
	case isJWT && token.UnverifiedIssuer() != a.issuer:
		return introspect.CauseNoSource
	case (isSealed || isJWT) && !a.knowsKey(token.Text()):
		return introspect.CauseUnknownKey
	}
	return introspect.CauseForged
}

// expired reports whether the token is dead at now. It is dead at its expiry, not after it.
func (k Key) expired(now time.Time) bool { return now.UnixMilli() >= k.ExpiryMilli }
