package oauth

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// AuthFederated is client authentication by a token that a platform has given to a workload, such as
// Kubernetes to a pod: an assertion that the client has not made itself (RFC 7521 section 4.2, RFC
// 7523 section 3). On the wire it is the same as AuthPrivateKeyJWT.
const AuthFederated = "federated"

// spiffeAssertionType is the type of client assertions that are JWT-SVIDs
// (draft-ietf-oauth-spiffe-client-auth). They are taken as AssertionType, too.
const spiffeAssertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"

// takesNoSecret reports whether a client needs no secret for a method.
func takesNoSecret(method string) bool { return method != AuthBasic && method != AuthPost }

// Federated is whom a platform's tokens have to name to prove that they were given to a client. It
// must not change once an engine has it.
type Federated struct {
	// Issuer is the platform: what iss of its tokens is, or a SPIFFE trust domain with its scheme. All
	// with this Issuer in a realm agree on how its tokens are verified.
	Issuer     string
	Assertions *introspect.Assertions
	// Subjects are patterns, one of which a token's sub must match: a * stands for one or more bytes
	// that are neither : nor /, which end the parts of a subject.
	Subjects []string
	// Claims are claims that a token must have, all of them.
	Claims []FederatedClaim
	// Audience is what a token's aud may be. A token for more than one is refused: whoever else it is
	// for could show it here.
	Audience []string
	// MaxLifetime is how long a token may live, from its iat to its exp. Without iat it counts from
	// now. The tokens can be used more than once, so this bounds how long a stolen one is of use.
	MaxLifetime time.Duration
}

// FederatedClaim is a claim that a token must have: one of the values, byte for byte, under a name as
// in [introspect.Facts.ClaimValues].
type FederatedClaim struct {
	Name   string
	Values []string
}

// federation is a platform that vouches for clients of a realm.
type federation struct {
	assertions *introspect.Assertions
	// identities are those of all clients, also of disabled ones: who is locked out must not become
	// another client whose pattern is wider.
	identities []identity
}

type identity struct {
	client *registered
	*Federated
}

// identitiesBy returns the identities that a platform may vouch for of a client, which may be nil.
func (r *registered) identitiesBy(from *federation) (identities []identity) {
	if r == nil {
		return nil
	}
	for _, f := range r.Federated {
		if f.Assertions == from.assertions {
			identities = append(identities, identity{r, f})
		}
	}
	return identities
}

// federate finds the platforms anew, with the identities of all clients: that takes a few milliseconds
// for 100,000. The caller holds Engine.changing.
func (c *Clients) federate() {
	c.federations = make(map[string]*federation)
	add := func(client *registered) {
		for _, f := range client.Federated {
			if f.Assertions == nil {
				continue // the engine can only suppose
			}
			from := c.federations[f.Issuer]
			if from == nil {
				from = &federation{assertions: f.Assertions}
				c.federations[f.Issuer] = from
			}
			if from.assertions == f.Assertions { // no identity counts by other keys than its own
				from.identities = append(from.identities, identity{client, f})
			}
		}
	}
	for _, client := range c.byID {
		add(client)
	}
	for id, client := range c.managed.federated {
		if c.byID[id] == nil { // else that one counts instead
			add(client)
		}
	}
}

// federationOf returns the platform that has made an assertion, as that says itself, or nil if the
// realm knows no such platform. An assertion whose issuer is the client is the client's own. JWT-SVIDs
// may have any issuer, or none.
func (c *Clients) federationOf(creds Credentials) *federation {
	if creds.Method != AuthPrivateKeyJWT {
		return nil
	}
	if creds.ClientIDs[0] == creds.issuer && (creds.named || c.find(creds.issuer) != nil) {
		return nil
	}
	if from := c.federations[creds.issuer]; from != nil {
		return from
	}
	domain, _ := introspect.TrustDomain(creds.subject)
	return c.federations[domain]
}

// Why a genuine token of a platform proves nothing, beside reasonAssertionSubject and
// reasonAssertionAudience.
const (
	reasonAssertionClaim     = "assertion_claim"
	reasonAssertionLifetime  = reasonAssertion + string(introspect.CauseLifetime)
	reasonAssertionAmbiguous = "assertion_ambiguous" // it names several clients
)

// identityReasons are why an identity doesn't cover a token, in the order of the checks.
var identityReasons = []string{reasonAssertionSubject, reasonAssertionClaim, reasonAssertionAudience, reasonAssertionLifetime}

// verifyFederated verifies a token of a platform, and finds the client that it was given to, among
// all of the realm if the request names none. The token is verified in any case, so that its time
// tells nothing about clients.
func (e *Engine) verifyFederated(ctx context.Context, c claim) (_ Proof, why string, _ error) {
	token, cause, err := c.federation.assertions.Verify(ctx, c.creds.assertion, c.clients.algorithms)
	if err != nil {
		// The platform's keys can't be fetched; as in verifyAssertion, nobody may learn that.
		return Proof{}, reasonAssertionKeys, nil
	}
	if cause != "" {
		return Proof{}, reasonAssertion + string(cause), nil
	}
	defer func() {
		if why != "" {
			token.Refused()
		}
	}()
	proof := Proof{Identity: token.Issuer + " " + token.Subject, Key: token.Key}
	if introspect.IsTrustDomain(token.Issuer) {
		proof.Identity = token.Subject
	}
	if token.Bound {
		return proof, reasonAssertion + string(introspect.CauseBinding), nil
	}
	identities := c.federation.identities
	if c.creds.named {
		identities = c.client.identitiesBy(c.federation)
	}
	now, closest := e.cfg.Now(), 0
	for _, id := range identities {
		if step := id.covers(token, now); step < len(identityReasons) {
			closest = max(closest, step)
			continue
		}
		if proof.client != nil && proof.client != id.client {
			proof.client = nil
			return proof, reasonAssertionAmbiguous, nil
		}
		proof.client = id.client
	}
	if proof.client == nil {
		return proof, identityReasons[closest], nil
	}
	return proof, proof.client.barred(AuthFederated, c.instead), nil
}

// covers returns the first of identityReasons that keeps a token from being one of the identity, or
// their number if there is none.
func (f *Federated) covers(token *introspect.Assertion, now time.Time) (step int) {
	lacks := func(claim FederatedClaim) bool {
		return !slices.ContainsFunc(token.ClaimValues(claim.Name), func(value string) bool { return slices.Contains(claim.Values, value) })
	}
	since := now
	if !token.IssuedAt.IsZero() {
		since = token.IssuedAt
	}
	switch {
	case !slices.ContainsFunc(f.Subjects, func(pattern string) bool { return MatchesSubject(pattern, token.Subject) }):
		return 0
	case slices.ContainsFunc(f.Claims, lacks):
		return 1
	case len(token.Audience) != 1 || !slices.Contains(f.Audience, token.Audience[0]):
		return 2
	case token.Expiry.Sub(since) > f.MaxLifetime:
		return 3
	}
	return len(identityReasons)
}

// subjectSeparators end the parts of a subject.
const subjectSeparators = ":/"

// MatchesSubject reports whether a subject matches a pattern; see [Federated.Subjects].
func MatchesSubject(pattern, subject string) bool {
	// What most patterns of a platform with many clients fail at is cheap.
	literal, _, wild := strings.Cut(pattern, "*")
	if !wild || !strings.HasPrefix(subject, literal) {
		return !wild && pattern == subject
	}
	for {
		i, j := strings.IndexAny(pattern, subjectSeparators), strings.IndexAny(subject, subjectSeparators)
		if i < 0 || j < 0 {
			return i < 0 && j < 0 && partMatches(pattern, subject)
		}
		if pattern[i] != subject[j] || !partMatches(pattern[:i], subject[:j]) {
			return false
		}
		pattern, subject = pattern[i+1:], subject[j+1:]
	}
}

// partMatches is MatchesSubject for one part. It takes the first place for each text between two *,
// and never goes back: a later place leaves less for the rest.
func partMatches(pattern, part string) bool {
	begin, rest, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == part
	}
	part, ok := strings.CutPrefix(part, begin)
	for ok && part != "" {
		text, after, more := strings.Cut(rest, "*")
		if !more {
			return len(part) > len(text) && strings.HasSuffix(part, text)
		}
		at := strings.Index(part[1:], text)
		if at < 0 {
			return false
		}
		part, rest = part[1+at+len(text):], after
	}
	return false
}
