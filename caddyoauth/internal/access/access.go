// Package access decides whether a request may pass a route, from the facts of the token
// that it carries, and says why not.
//
// It is pure: it asks nobody, remembers nothing and writes no answer. Facts may come from
// a cache; a decision is made anew for every request and is never cached.
package access

import (
	"slices"

	"github.com/caddyoauth/gateway/introspect"
)

// Rule is what a route demands of a token. The zero value demands a valid token and
// nothing more. Rules are read-only once requests run.
type Rule struct {
	// Scopes are the scopes that the token must have, all of them.
	Scopes []string
	// AnyScope are scopes, at least one of which the token must have. Empty demands none.
	AnyScope []string
	// Audience are audiences, at least one of which the token must name, byte for byte.
	// Empty accepts any token, including one without an audience.
	Audience []string
	// Claims are claims that the token must have, all of them.
	Claims []Claim
	// KeyBound means that the token must be bound to a key, by DPoP.
	KeyBound bool
	// Optional means that a request without a token may pass, without a name. It changes nothing
	// for requests with one, and so nothing for Decide.
	Optional bool
	// Also is another rule that must allow the request, too; nil if there is none.
	Also *Rule
}

// Both returns a rule that allows what both rules allow. Neither of them has an Also.
func Both(a, b *Rule) *Rule {
	both := *a
	both.Optional = a.Optional && b.Optional
	both.Also = b
	return &both
}

// Claim is a claim that a token must have.
type Claim struct {
	// Name is the claim's name, as in [introspect.Facts.ClaimValues].
	Name string
	// Values are the accepted values. The claim must have at least one of them, byte for byte.
	Values []string
}

// Request is what a decision depends on besides the rule and the facts.
type Request struct {
	// Proven is what the sender has proven to have. What the token doesn't ask for may be missing.
	Proven introspect.Confirmation
	// TooEarly means that the request was sent before the TLS handshake was complete, so that whoever
	// recorded it can have sent it again. It is for tokens that are bound to a certificate.
	TooEarly bool
	// Fit means that the names in the token can be passed on with the request: in a header,
	// they can't be read as another caller's name, or as several names.
	Fit bool
}

// Decision is the answer to one request. The zero value refuses.
type Decision struct {
	Allowed bool
	// Cause is why the request is refused; empty if it is allowed.
	Cause Cause
	// Claim is the name of the claim that CauseClaim is about.
	Claim string
	// Want is what the rule asked for and Has what the token has of that kind: audiences or
	// scopes. They are set for the causes audience and scope, and are read-only. For the cause
	// claim only Want is set, to the values of Claim: those in the token may be personal data,
	// which must not get into the log.
	Want, Has []string
}

// Decide decides whether a request with these facts may pass the rule. It looks for causes in
// the order of its lines: first why the token is inactive. It doesn't allocate
// where the request is allowed, unless the rule demands claims.
func Decide(rule *Rule, facts *introspect.Facts, request Request) Decision {
	switch {
	case !facts.Active:
		return Decision{Cause: ofToken(facts.Cause())}
	case request.TooEarly && facts.Confirmation.Certificate != "":
		return Decision{Cause: CauseEarlyData}
	case !proves(request.Proven, facts.Confirmation):
		return Decision{Cause: introspect.CauseBinding}
	case rule.KeyBound && request.Proven.Key == "":
		return Decision{Cause: CauseUnbound}
	case len(rule.Audience) > 0 && !slices.ContainsFunc(rule.Audience, facts.HasAudience):
		return Decision{Cause: introspect.CauseAudience, Want: rule.Audience, Has: facts.Audience}
	case facts.ClientID == "" && facts.Subject == "":
		return Decision{Cause: CauseNamesNobody}
	case !request.Fit:
		return Decision{Cause: CauseUnfit}
	case !rule.scopesSuffice(facts):
		return Decision{Cause: CauseScope, Want: rule.ScopesFor(facts), Has: facts.Scopes}
	}
	for i := range rule.Claims {
		claim := &rule.Claims[i]
		has := facts.ClaimValues(claim.Name)
		accepted := func(value string) bool { return slices.Contains(claim.Values, value) }
		if !slices.ContainsFunc(has, accepted) {
			return Decision{Cause: CauseClaim, Claim: claim.Name, Want: claim.Values}
		}
	}
	if rule.Also != nil {
		return Decide(rule.Also, facts, request)
	}
	return Decision{Allowed: true}
}

// proves reports whether a sender who has proven one thing may use a token that demands the other.
func proves(proven, demanded introspect.Confirmation) bool {
	return (demanded.Certificate == "" || proven.Certificate == demanded.Certificate) && (demanded.Key == "" || proven.Key == demanded.Key)
}

func (r *Rule) scopesSuffice(facts *introspect.Facts) bool {
	for _, s := range r.Scopes {
		if !facts.HasScope(s) {
			return false
		}
	}
	if len(r.AnyScope) > 0 && !slices.ContainsFunc(r.AnyScope, facts.HasScope) {
		return false
	}
	return r.Also == nil || r.Also.scopesSuffice(facts)
}

// ScopesFor returns the scopes that the bearer of a token needs for this rule, in a slice
// of its own. Of AnyScope these are the ones that the token has. If it has none, they are
// all of them, because a challenge (RFC 6750 section 3) can't say "one of".
func (r *Rule) ScopesFor(facts *introspect.Facts) []string {
	alternatives := r.AnyScope
	if slices.ContainsFunc(alternatives, facts.HasScope) {
		alternatives = slices.DeleteFunc(slices.Clone(alternatives), func(s string) bool { return !facts.HasScope(s) })
	}
	scopes := slices.Concat(r.Scopes, alternatives)
	if r.Also != nil {
		scopes = append(scopes, r.Also.ScopesFor(facts)...)
	}
	return scopes
}
