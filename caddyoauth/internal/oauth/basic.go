package oauth

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/caddyoauth/gateway/introspect"
)

// MaxBasicLength bounds the Authorization header that Basic reads. The longest credentials that a
// client can have, form-encoded throughout, are shorter.
const MaxBasicLength = 16 << 10

// Basic answers a request to a protected route that has Basic credentials (RFC 7617) in the place
// of a token: with the facts of the best token that the client could fetch, which has all its
// scopes and its whole audience. They have no ID and no end, nobody has issued them, and they count
// for this request alone. from is as [Request.From].
//
// The credentials are judged as at the endpoints, and in both readings. All failures have the same
// answer after the same work, an *Error with CodeInvalidClient. A client that can have no token is
// one of them: either its grant types or its scopes leave none; so is one whose tokens are bound. Any other error means that nobody
// could tell: an *Error with CodeTooManyRequests after too many failures, one with CodeUnavailable if
// too many slow hashes are under way, and another if
// the realm has not agreed with its store yet. Basic blocks as long as a slow hash takes, and up to
// two seconds before that, unless ctx ends.
func (e *Engine) Basic(ctx context.Context, authorization string, from netip.Addr) (*introspect.Facts, Outcome, error) {
	out := Outcome{AuthMethod: AuthBasic}
	state := e.state.Load()
	agreed, err := state.agreement() // first, so that an outage tells nothing about the credentials
	if err != nil {
		return nil, out, err
	}
	creds, err := Credentials{}, error(nil)
	if len(authorization) <= MaxBasicLength {
		creds, err = parseBasic(authorization)
	}
	creds.Method, creds.malformed = AuthBasic, err != nil || len(creds.Secrets) == 0
	client, err := e.authenticate(ctx, state.clients, Request{Credentials: creds, From: from, instead: true}, &out)
	if err != nil {
		return nil, out, err
	}
	generation, known := agreed.generationOf(client)
	if !known {
		return nil, out, fmt.Errorf("the generation of client %q has not been shared", client.ID)
	}
	audience, err := client.grantAudience(nil)
	if err != nil {
		return nil, out, err
	}
	return e.issued.facts(Token{ClientID: client.ID, ClientGeneration: generation, Scopes: client.Scopes, Audience: audience}), out, nil
}
