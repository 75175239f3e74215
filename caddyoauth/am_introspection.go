package caddyoauth

import (
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// amIntrospectionAnswer is an answer about a good token as ForgeRock AM gives it, with AM's members in
// AM's order. Those behind Confirmation are what AM does not promise and RFC 7662 has.
type amIntrospectionAnswer struct {
	Active    bool   `json:"active"`
	Scope     string `json:"scope"`
	Realm     string `json:"realm"`
	ClientID  string `json:"client_id"`
	UserID    string `json:"user_id"`
	Username  string `json:"username"`
	TokenType string `json:"token_type"`
	Expiry    int64  `json:"exp"`
	Subject   string `json:"sub"`
	Subname   string `json:"subname"`
	Issuer    string `json:"iss,omitempty"`
	AuthLevel int    `json:"auth_level"` // always 0: nobody has logged in
	GrantID   string `json:"authGrantId"`
	AuditID   string `json:"auditTrackingId"`
	ExpiresIn int64  `json:"expires_in"` // what is left, in whole seconds
	// CTS is there for JWTs alone.
	CTS string `json:"cts,omitempty"`

	// Confirmation is there if the token is bound (RFC 8705 section 3.2).
	Confirmation introspect.Confirmation `json:"cnf,omitzero"`

	IssuedAt int64    `json:"iat"`
	Audience audience `json:"aud,omitempty"`
	JTI      string   `json:"jti"`
}

// ctsStateless is what AM calls a JWT in its Core Token Service, which does not keep it.
const ctsStateless = "OAUTH2_STATELESS_GRANT"

// introspected returns what the introspection endpoint says of a token that the realm issued, or of
// one that is not good.
func (r *servedRealm) introspected(facts *introspect.Facts, now time.Time) any {
	answer := introspectionAnswerOf(facts)
	if r.am == nil || !facts.Active {
		return answer
	}
	return amIntrospectionAnswer{
		Active:    true,
		Scope:     answer.Scope,
		Realm:     realmOfAM(r.name),
		ClientID:  answer.ClientID,
		UserID:    answer.ClientID,
		Username:  answer.ClientID,
		TokenType: answer.TokenType,
		Expiry:    answer.Expiry,
		Subject:   r.settings.AM.Subject(answer.Subject),
		Subname:   answer.Subject,
		Issuer:    answer.Issuer,
		GrantID:   oauth.AMGrantID(answer.JTI),
		AuditID:   oauth.AMTrackingID(answer.JTI),
		ExpiresIn: secondsLeft(facts, now),
		CTS:       ctsOf(facts),

		Confirmation: answer.Confirmation,

		IssuedAt: answer.IssuedAt,
		Audience: answer.Audience,
		JTI:      answer.JTI,
	}
}

// secondsLeft is what is left of a token's life, rounded down.
func secondsLeft(facts *introspect.Facts, now time.Time) int64 {
	return int64(max(facts.Expiry.Sub(now), 0) / time.Second)
}

// ctsOf returns AM's name of the kind of a token if it is a JWT.
func ctsOf(facts *introspect.Facts) string {
	if facts.JTI == "" {
		return ""
	}
	return ctsStateless
}
