package oauth

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math"

	"github.com/caddyoauth/gateway/introspect"
)

// AMGrantID returns the ID that ForgeRock AM gives to the grant of a token, authGrantId, for a token
// with this jti: here, each token has a grant of its own. It is always the same for a token, and tells
// nothing that jti doesn't.
func AMGrantID(jti string) string { return derivedID("authGrantId", jti) }

// AMTrackingID is AMGrantID for auditTrackingId, under which AM's audit log has a token.
func AMTrackingID(jti string) string { return derivedID("auditTrackingId", jti) }

func derivedID(label, jti string) string {
	sum := sha256.Sum256([]byte(label + "\x00" + jti))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// AMInvalidToken is what ForgeRock AM says of a token that is not good, whatever is wrong with it.
const AMInvalidToken = "The access token provided is expired, revoked, malformed, or invalid for other reasons."

// TokenInfo returns the facts of a token for whoever holds it, as ForgeRock AM's endpoint /tokeninfo does.
// elsewhere is as [Request.Elsewhere]. A token that is bound to the certificate of the sender's connection
// is good with that certificate alone, and one that is bound to a key never is: who asks here may not
// look at what the token is bound to, so for him it would be good in anybody's hands.
//
// Those who keep asking about tokens that no realm issued, or that have expired, are refused for a while, all
// together: nobody knows who they are. Other tokens are looked up all the same.
//
// The error is an *Error with CodeInvalidToken for a token that is not good, or with
// CodeTooManyRequests, or says that nobody could find out.
func (e *Engine) TokenInfo(ctx context.Context, token *introspect.Token, shown *Certificate, elsewhere func(*introspect.Token) *Engine) (*introspect.Facts, Outcome, error) {
	var out Outcome
	issuer := e
	mine := e.Issued(token)
	if !mine {
		if other := elsewhere(token); other != nil {
			issuer, mine, out.TokenRealm = other, true, other.cfg.Realm
		}
	}
	now := e.cfg.Now()
	if !mine && !e.strangers.mayAsk(now) {
		return nil, out, &Error{Code: CodeTooManyRequests, Description: "too many inquiries about tokens that are not active"}
	}
	facts, err := issuer.tokens.LookupWithin(ctx, token, math.MaxInt64)
	if err != nil {
		return nil, out, fmt.Errorf("looking up a token: %w", err)
	}
	if !mine {
		e.strangers.wrong(now)
	}
	invalid := func(cause introspect.Cause) (*introspect.Facts, Outcome, error) {
		return nil, out, &Error{Code: CodeInvalidToken, Description: AMInvalidToken, Reason: string(cause)}
	}
	if !facts.Active {
		return invalid(facts.Cause())
	}
	switch bound := facts.Confirmation; {
	case bound.Key != "", bound.Certificate != "" && !(Request{Certificate: shown}).shows(bound.Certificate):
		return invalid(introspect.CauseBinding)
	}
	out.TokenID, out.JTI = facts.ID, facts.JTI
	return facts, out, nil
}
