package oauth

import (
	"context"
	"fmt"
	"math"

	"github.com/caddyoauth/gateway/introspect"
)

// methodBearer is, in logs, how a caller is authenticated by an access token.
const methodBearer = "bearer"

// reasonBearer is why a caller's token is refused, followed by a cause, as in bearer_expired.
const reasonBearer = "bearer_"

// inquirer returns the client that introspects, by its credentials or by an access token of its own
// (RFC 7662 section 2.1).
func (e *Engine) inquirer(ctx context.Context, req Request, out *Outcome) (*registered, error) {
	clients := e.state.Load().clients
	if req.Credentials.bearer == "" {
		return e.authenticate(ctx, clients, req, out)
	}
	out.AuthMethod = methodBearer
	token, _ := e.issued.Screen(introspect.NewToken(req.Credentials.bearer))
	facts, err := e.tokens.LookupWithin(ctx, &token, math.MaxInt64)
	if err != nil {
		return nil, fmt.Errorf("looking up the caller's token: %w", err)
	}
	client := clients.find(facts.ClientID)
	invalid := func(cause introspect.Cause) error {
		return &Error{Code: CodeInvalidToken, Description: "the token is not valid here", Reason: reasonBearer + string(cause)}
	}
	switch {
	case !facts.Active:
		return nil, invalid(facts.Cause())
	case client == nil: // it was removed a moment ago
		return nil, invalid(introspect.CauseClientRemoved)
	}
	out.ClientID = client.ID
	id := req.Form.Get("client_id")
	switch bound := facts.Confirmation; {
	case bound.Key != "", bound.Certificate != "" && !req.shows(bound.Certificate):
		return nil, invalid(introspect.CauseBinding) // a proof of a key is not taken here
	case !facts.HasScope(e.cfg.IntrospectScope):
		return nil, &Error{Code: CodeInsufficientScope, Description: "the token lacks a required scope", Reason: reasonBearer + "scope"}
	case id != "" && id != client.ID:
		return nil, invalidRequest(OtherClientID)
	}
	return client, nil
}

// shows reports whether the sender has proven to have the certificate with this thumbprint.
func (r Request) shows(thumbprint string) bool {
	return r.Certificate != nil && r.Certificate.Leaf != nil && introspect.CertificateThumbprint(r.Certificate.Leaf) == thumbprint
}
