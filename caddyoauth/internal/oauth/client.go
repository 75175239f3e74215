package oauth

import (
	"context"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/caddyoauth/gateway/introspect"
)

// GrantClientCredentials is the one grant type there is (RFC 6749 section 4.4).
const GrantClientCredentials = "client_credentials"

// Whose tokens a client may ask about at the introspection endpoint.
const (
	IntrospectOwn      = "own"      // its own
	IntrospectAudience = "audience" // its own, and those whose audience holds one of Client.IntrospectAudience
	IntrospectRealm    = "realm"    // all of its realm
)

// Client is a confidential client. New takes it over; after that only what its secrets
// remember and how much it may guess change, and both are safe for concurrent use.
type Client struct {
	ID      string
	Secrets []*Secret
	// Scopes are what it may ask for, DefaultScopes what it gets when it asks for none.
	Scopes        []string
	DefaultScopes []string
	// Audience is recorded in its tokens.
	Audience []string
	// GrantTypes it may use; none for a client that only introspects.
	GrantTypes []string
	// Auth are the methods it may authenticate by.
	Auth          []AuthMethod
	TokenLifetime time.Duration
	// Introspect is one of the Introspect constants.
	Introspect string
	// IntrospectAudience is what a token's audience must hold one of, with Introspect
	// IntrospectAudience.
	IntrospectAudience []string
	// TokenLimit is how many tokens it may fetch; zero for as many as it likes.
	TokenLimit Limit
	// Disabled: it can't authenticate, and its tokens are not valid.
	Disabled bool

	guesses guessLimit
	fetches *rate.Limiter // by TokenLimit; nil without one
}

// authenticate finds the client that a request's credentials prove, or refuses with
// the one answer for all failures, after the same work for all of them.
func (e *Engine) authenticate(ctx context.Context, req Request, out *Outcome) (*Client, error) {
	creds := req.Credentials
	client := e.clientOf(creds.ClientIDs)
	if client != nil {
		out.ClientID = client.ID
	}
	// Where nothing is claimed that could be true, there is nothing to hide by working.
	switch {
	case req.malformed:
		return nil, invalidClient("malformed_authorization")
	case creds.Method == "":
		return nil, invalidClient("no_credentials")
	}

	var candidates []*Secret
	reason := "unknown_client"
	switch {
	case client == nil:
	case client.Disabled:
		reason = "client_disabled"
	case !slices.Contains(client.Auth, creds.Method):
		reason = "auth_method_not_allowed"
	default:
		reason = "wrong_secret"
		candidates = client.Secrets
	}
	ok, err := e.check(ctx, candidates, creds, req.From)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, invalidClient(reason)
	}
	return client, nil
}

// clientOf returns the client that the first of the readings names which names any. If
// both do, the RFC's is the one that counts: a client whose ID could be taken for another's
// has to encode it.
func (e *Engine) clientOf(readings []string) *Client {
	for _, id := range readings {
		if client := e.cfg.Clients[id]; client != nil {
			return client
		}
	}
	return nil
}

// check reports whether one of the readings of a secret is one of the candidates that is
// valid now. Success ends early. Failure costs, for each reading, the realm's whole
// workload, which is at least what the dearest client's secrets cost, so that neither the
// answer nor its time tells what was wrong.
func (e *Engine) check(ctx context.Context, candidates []*Secret, creds Credentials, from string) (bool, error) {
	now := e.cfg.Now()
	a := attempt{work: e.work, now: now}
	fast := false
	for _, secret := range creds.Secrets {
		r := reading{secret: secret, candidates: candidates}
		if secret == "" {
			r.candidates = nil // never authenticates, whatever is stored
		}
		if len(secret) > maxSecretBytes {
			r.secret, r.candidates = secret[:maxSecretBytes], nil
		}
		if len(r.candidates) == 0 {
			quickDummy.quick(r.secret)
		}
		for _, c := range r.candidates {
			if c.validAt(now) && (c.quick(r.secret) || e.cfg.Hasher.remembers(c, r.secret, now)) {
				fast = true
			}
		}
		a.readings = append(a.readings, r)
	}
	if fast {
		return true, nil
	}
	if len(e.work) == 0 {
		return false, nil // no slow hashes in this realm: failing is quick for everybody
	}
	right, err := e.cfg.Hasher.check(ctx, flightKey{e, creds.mac()}, a, from, creds.ClientIDs[0])
	// Whoever shares the answer may have come after the secret's end.
	return right != nil && right.validAt(e.cfg.Now()), err
}

// mayIntrospect reports whether the client may see facts, and which of the scopes.
func (c *Client) mayIntrospect(facts *introspect.Facts) (scopes []string, ok bool) {
	switch {
	case !facts.Active:
		return nil, false
	case c.Introspect == IntrospectRealm || facts.ClientID == c.ID:
		return facts.Scopes, true
	case c.Introspect == IntrospectAudience && slices.ContainsFunc(c.IntrospectAudience, facts.HasAudience):
		// A resource server has no business with what the token can do elsewhere.
		return intersect(facts.Scopes, c.Scopes), true
	}
	return nil, false
}

// Limit is how much a client may do: Count at once, and as much again in each Per, evenly.
type Limit struct {
	Count int
	Per   time.Duration
}

// limiter returns nil if there is no limit.
func (l Limit) limiter() *rate.Limiter {
	if l.Count == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(float64(l.Count)/l.Per.Seconds()), l.Count)
}

// guessLimit bounds how often a client may ask about tokens that turn out not to be
// active: 1000 at once, 100 each second after that. Tokens that carry the realm's mark
// are answered all the same.
type guessLimit struct{ limiter *rate.Limiter }

func newGuessLimit() guessLimit { return guessLimit{rate.NewLimiter(100, 1000)} }

func (g guessLimit) mayAsk(now time.Time) bool { return g.limiter.TokensAt(now) >= 1 }
func (g guessLimit) wrong(now time.Time)       { g.limiter.AllowN(now, 1) }
