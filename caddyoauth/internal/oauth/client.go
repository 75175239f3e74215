package oauth

import (
	"slices"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// GrantClientCredentials is the only grant type there is (RFC 6749 section 4.4).
const GrantClientCredentials = "client_credentials"

// Whose tokens a client may ask about at the introspection endpoint.
const (
	IntrospectOwn      = "own"      // its own
	IntrospectAudience = "audience" // its own, and those whose audience holds one of Client.IntrospectAudience
	IntrospectRealm    = "realm"    // all of its realm

	// IntrospectAnyRealm is all of its realm, and of those that [Request].Elsewhere knows.
	IntrospectAnyRealm = "any_realm"
)

// Client is a confidential client. It must not change once an engine has it.
type Client struct {
	ID      string
	Secrets []*Secret
	// Assertions verifies the assertions of AuthPrivateKeyJWT; nil if it has no keys for that.
	Assertions *introspect.Assertions
	// CertificateSubject is what its certificate names, with AuthTLS; nil without it.
	CertificateSubject *CertificateSubject
	// Certificates reports whether a certificate with this thumbprint is one of its own, with
	// AuthSelfSigned; nil without it. It is safe for concurrent use and doesn't block.
	Certificates func(thumbprint string) bool
	// Federated are the identities of AuthFederated: who else proves to be this client.
	Federated []*Federated
	// Scopes are what it may ask for, DefaultScopes what it gets if it asks for none.
	Scopes        []string
	DefaultScopes []string
	// Audience is recorded in its tokens, unless a request asks for a part of it.
	Audience []string
	// GrantTypes are those it may use; none for a client that only introspects.
	GrantTypes []string
	// Auth are the methods by which it may authenticate, some of AuthMethods.
	Auth []string
	// TokenFormat is what its tokens look like, one of the Format constants.
	TokenFormat string
	// CertificateBound means that its tokens are bound to the certificate with which it fetches them.
	CertificateBound bool
	// DPoPRequired means that it gets no token without a DPoP proof, to whose key the token is bound.
	DPoPRequired bool
	// TokenLifetime is how long its tokens live, in whole seconds.
	TokenLifetime time.Duration
	// Introspect is one of the Introspect constants.
	Introspect string
	// IntrospectAudience counts with IntrospectAudience: to be seen, a token must have one of
	// these in its audience.
	IntrospectAudience []string
	// TokenLimit is how many tokens it may fetch; zero is no limit.
	TokenLimit Limit
	// InquiryLimit is how many tokens it may ask about; zero is no limit.
	InquiryLimit Limit
	// Disabled means that it can't authenticate and its tokens are not valid.
	Disabled bool
}

// canHaveTokens reports whether there is any token that the client can fetch.
func (c *Client) canHaveTokens() bool {
	return slices.Contains(c.GrantTypes, GrantClientCredentials) && len(c.Scopes) > 0
}

// canDoWithoutToken reports whether the client's secret can stand in for the best of its tokens. It
// can't if those are worth nothing without a certificate or a key.
func (c *Client) canDoWithoutToken() bool {
	return c.canHaveTokens() && !c.CertificateBound && !c.DPoPRequired
}

// visible returns the part of facts that the client may see, which is none of them if it may
// not see the token.
func (c *Client) visible(facts *introspect.Facts) *introspect.Facts {
	switch {
	case !facts.Active:
		return introspect.Inactive()
	case c.Introspect == IntrospectRealm || c.Introspect == IntrospectAnyRealm || facts.ClientID == c.ID:
		return facts
	case c.Introspect == IntrospectAudience && slices.ContainsFunc(c.IntrospectAudience, facts.HasAudience):
		// A resource server has no business with what the token can do elsewhere.
		visible := *facts
		visible.Scopes = intersect(facts.Scopes, c.Scopes)
		return &visible
	}
	return introspect.Inactive()
}

// proofBy returns the proof that one of the client's own secrets is.
func (c *Client) proofBy(secret *Secret, now time.Time) Proof {
	proof, below := Proof{Until: secret.Until}, false
	for i, other := range c.Secrets {
		if other == secret {
			proof.Secret, below = i+1, true
			continue
		}
		if !other.hasBegun(now) {
			continue // nobody can change over to it yet
		}
		proof.Old = proof.Old || secret.endsBefore(other) || below && (secret.RetireUnused != 0 || !other.endsBefore(secret))
	}
	return proof
}
