package oauth

import (
	"encoding/json"
	"strings"

	"github.com/caddyoauth/gateway/introspect"
)

// AMClaims are what a realm's JWTs with the claims of ForgeRock AM say besides what all its JWTs say.
type AMClaims struct {
	// Realm is the realm's name in AM, such as "/" or "/alpha".
	Realm string
	// PrefixedSubject has the subject be "(age!<client ID>)", as in new installations of AM since 7.1.
	// Otherwise it is the client ID.
	PrefixedSubject bool
}

// Subject returns the subject of a client's tokens as AM names it.
func (c AMClaims) Subject(clientID string) string {
	if c.PrefixedSubject {
		return "(age!" + clientID + ")"
	}
	return clientID
}

// What AM's access tokens of the client credentials grant say of themselves.
const (
	amTokenName = "access_token"
	amStored    = "OAUTH2_STATELESS_GRANT"
)

// amClaims are what a token says with the claims of ForgeRock AM 7, in AM's order.
type amClaims struct {
	Subject string `json:"sub"`
	Stored  string `json:"cts"`
	// Audit and Grant follow from ID, so that introspection can say the same.
	Audit     string `json:"auditTrackingId"`
	ClientID  string `json:"subname"`
	Issuer    string `json:"iss"`
	TokenName string `json:"tokenName"`
	TokenType string `json:"token_type"`
	Grant     string `json:"authGrantId"`
	// Audience is the client, as in AM, and behind it the audience that the token is restricted to. A
	// token that is not restricted has a string here.
	Audience  audienceText `json:"aud"`
	NotBefore int64        `json:"nbf"`
	GrantType string       `json:"grant_type"`
	Scopes    []string     `json:"scope"`
	AuthTime  int64        `json:"auth_time"`
	Realm     string       `json:"realm"`
	Expiry    int64        `json:"exp"`
	IssuedAt  int64        `json:"iat"`
	ExpiresIn int64        `json:"expires_in"`
	ID        string       `json:"jti"`
	// SameClient is the client as RFC 9068 names it, and AM from release 8 on.
	SameClient string `json:"client_id"`
	// The rest is as in claims.
	Confirmation introspect.Confirmation `json:"cnf,omitzero"`
	Epoch        string                  `json:"epoch"`
	Generation   uint64                  `json:"generation"`
}

// payload returns the claims of the token that t describes, as JSON.
func (c AMClaims) payload(t *Token, issuer, jti, epoch string) ([]byte, error) {
	issued, expiry := t.IssuedAt.Unix(), t.ExpiryMilli/1000
	tokenType := "Bearer"
	if t.Confirmation.Key != "" {
		tokenType = "DPoP" // RFC 9449 section 5; AM has no such tokens
	}
	return json.Marshal(amClaims{
		Subject: c.Subject(t.ClientID), Stored: amStored, Audit: AMTrackingID(jti), ClientID: t.ClientID, Issuer: issuer,
		TokenName: amTokenName, TokenType: tokenType, Grant: AMGrantID(jti), Audience: append(audienceText{t.ClientID}, t.Audience...),
		NotBefore: issued, GrantType: GrantClientCredentials, Scopes: t.Scopes, AuthTime: issued, Realm: c.Realm,
		Expiry: expiry, IssuedAt: issued, ExpiresIn: expiry - issued, ID: jti, SameClient: t.ClientID,
		Confirmation: t.Confirmation, Epoch: epoch, Generation: t.ClientGeneration,
	})
}

// unmarshalAM reads the claims of a token with those of ForgeRock AM, and reports whether they are such.
// Its subject may have either form: the option may have changed since.
func (c *claims) unmarshalAM(payload []byte) bool {
	var am amClaims
	if json.Unmarshal(payload, &am) != nil || am.TokenName != amTokenName || am.Stored != amStored || am.GrantType != GrantClientCredentials ||
		am.SameClient != am.ClientID || len(am.Audience) == 0 || am.Audience[0] != am.ClientID || am.NotBefore != am.IssuedAt {
		return false
	}
	if am.Subject != am.ClientID && am.Subject != (AMClaims{PrefixedSubject: true}).Subject(am.ClientID) {
		return false
	}
	*c = claims{
		Issuer: am.Issuer, Subject: am.ClientID, ClientID: am.ClientID, Audience: am.Audience[1:], Unrestricted: len(am.Audience) == 1,
		Scope: strings.Join(am.Scopes, " "), IssuedAt: am.IssuedAt, Expiry: am.Expiry, ID: am.ID,
		Confirmation: am.Confirmation, Epoch: am.Epoch, Generation: am.Generation,
	}
	return true
}
