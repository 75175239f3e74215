package oauth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// A verifier returns what proves a claim, by one method of client authentication, or the zero
// Proof if nothing does; then why says, for logs only, what it knows of the reason. An error means
// that it could not find out. For a claim about nobody it does all the work that it does for one
// that is false, so that neither the answer nor its time tells what was wrong.
type verifier func(e *Engine, ctx context.Context, c claim) (proof Proof, why string, err error)

// Proof is what a client was authenticated with, for logs. It holds nothing secret.
type Proof struct {
	// Secret is the position of the secret among those that the configuration gives the client,
	// from 1. It is 0 if no secret proved anything.
	Secret int
	// Key is the RFC 7638 thumbprint of the key that signed an assertion. It is empty if no
	// assertion proved anything.
	Key string
	// Certificate is the thumbprint of the certificate that proved the client (RFC 8705 section 3.1). It
	// is empty if none did.
	Certificate string
	// Identity is whom a platform's token names: its issuer and its subject, with a space in between, or
	// its SPIFFE ID.
	// It is empty unless such a token was verified; a genuine one need not prove anything.
	Identity string
	// Until is when that secret stops being valid; the zero time is never.
	Until time.Time
	// Old is set if the client has a newer secret that has begun to be valid: one that is valid for
	// longer than this one, or for as long and listed below it, or, if this one retires, any below it.
	// It tells who still has to change over in a rotation.
	Old bool

	// client is whom a token of a platform proves that its sender is. It is nil if the request has
	// said so itself.
	client *registered
}

// claim is what a request says about its sender: that these credentials prove it to be this
// client.
type claim struct {
	clients *Clients
	// client is nil if no credentials could prove the claim: the client is unknown, disabled,
	// or may not use the method.
	client *registered
	// federation has made what proves the claim, in AuthFederated.
	federation *federation
	creds      Credentials
	from       netip.Addr // as Request.From
	trial      trial
	// instead is as Request.instead. The same credentials can be right for one purpose alone.
	instead bool
	// audiences are as Request.Audiences.
	audiences []string
}

// verifiers are the methods of client authentication that exist here.
var verifiers = map[string]verifier{
	AuthBasic: (*Engine).verifySecret,
	AuthPost:  (*Engine).verifySecret,

	AuthPrivateKeyJWT: (*Engine).verifyAssertion,
	AuthFederated:     (*Engine).verifyFederated,

	AuthTLS:        (*Engine).verifyCertificate,
	AuthSelfSigned: (*Engine).verifyCertificate,
}

// AuthMethods returns the methods that exist here, sorted.
func AuthMethods() []string { return slices.Sorted(maps.Keys(verifiers)) }

// authenticate returns the client that a request's credentials prove its sender to be. All
// refusals have the same answer, after the same work, until they exceed the realm's limit. Then
// nothing is looked at, not even credentials that are right: they would be one guess more. A refusal counts
// as a failure also where nobody can tell whether it is right, because the store has not been heard of.
func (e *Engine) authenticate(ctx context.Context, clients *Clients, req Request, out *Outcome) (*registered, error) {
	creds := req.Credentials
	client := clients.named(creds.ClientIDs)
	if client != nil {
		out.ClientID = client.ID
	}
	if creds.certificate != nil && client != nil && !req.unreadable() {
		creds.Method = client.certificateMethod(creds.certificate)
	}
	federation := clients.federationOf(creds)
	if federation != nil {
		creds.Method = AuthFederated
	}
	req.Credentials, out.AuthMethod, out.CredentialsInQuery = creds, creds.Method, req.CredentialsInQuery
	switch { // nothing to guess with, so it doesn't count
	case creds.Method != "" || creds.malformed:
	case req.CredentialsInQuery:
		return nil, invalidClient("credentials_in_query")
	default:
		return nil, invalidClient("no_credentials")
	}
	trial := e.trial(req)
	if wait := trial.pause(e.cfg.Now()); wait > 0 {
		return nil, tooManyFailures(wait)
	}
	client, proof, err := e.prove(ctx, clients, client, federation, req, trial, out)
	if refusal, ok := errors.AsType[*Error](err); ok && refusal.Code == CodeInvalidClient {
		var wait time.Duration
		if out.Paused, wait = trial.failed(e.cfg.Now()); wait > 0 {
			return nil, tooManyFailures(wait)
		}
		if e.cfg.Managed != nil && !creds.malformed && !req.unreadable() && !e.issued.Coherent() {
			// All failures are alike here, too, or this would tell who is known.
			return nil, fmt.Errorf("%w: it may have another client or secret, which has not been heard of yet", ErrUnreachable)
		}
		return nil, err
	}
	// Others may have failed meanwhile.
	if wait := trial.pause(e.cfg.Now()); wait > 0 {
		return nil, tooManyFailures(wait)
	}
	out.Proof = proof
	if err == nil {
		e.authenticated(client, out.AuthMethod, proof, req.From)
	}
	return client, err
}

// prove returns the client, and what proves it to be the sender of a request. client is the one that
// the request names, or nil if there is none, and federation is the platform that vouches for it, or
// nil if the client speaks for itself. out gets what is known of a client that is refused.
func (e *Engine) prove(ctx context.Context, clients *Clients, client *registered, federation *federation, req Request, trial trial, out *Outcome) (*registered, Proof, error) {
	creds := req.Credentials
	switch { // nobody's credentials, so there is nothing that work would hide
	case creds.malformed:
		return nil, Proof{}, invalidClient("malformed_authorization")
	case req.unreadable():
		return nil, Proof{}, invalidClient("malformed_certificate")
	}
	verify := verifiers[creds.Method]

	reason := ""
	if federation == nil || creds.named {
		if reason = client.barred(creds.Method, req.instead); reason != "" {
			client = nil
		}
	}
	proof, why, err := verify(e, ctx, claim{clients, client, federation, creds, req.From, trial, req.instead, req.Audiences})
	if err != nil {
		return nil, Proof{}, err
	}
	if proof.client != nil {
		client, proof.client = proof.client, nil
		out.ClientID = client.ID
	}
	if why != "" || proof == (Proof{}) || client == nil {
		out.Proof.Identity = proof.Identity
		return nil, Proof{}, invalidClient(cmp.Or(reason, why))
	}
	if err := e.stillIs(ctx, client); err != nil {
		return nil, Proof{}, err
	}
	return client, proof, nil
}

// Why a client can't authenticate, whatever it shows.
const (
	reasonUnknownClient = "unknown_client"
	reasonDisabled      = "client_disabled"
	reasonMethod        = "auth_method_not_allowed"
	reasonNoTokens      = "no_tokens"
)

// barred returns why a client can't authenticate by a method, whatever it shows; it is empty if the
// client can. instead is as in Request.
func (r *registered) barred(method string, instead bool) (reason string) {
	switch {
	case r == nil:
		return reasonUnknownClient
	case r.Disabled:
		return reasonDisabled
	case !slices.Contains(r.Auth, method):
		return reasonMethod
	case instead && !r.canDoWithoutToken():
		return reasonNoTokens
	}
	return ""
}

// Why a client's secret doesn't prove it.
const (
	reasonWrongSecret   = "wrong_secret"
	reasonExpiredSecret = "expired_secret"       // it is right, and its time is over
	reasonEarlySecret   = "secret_not_yet_valid" // it is right, and its time has not begun
)

// notValid returns why a secret that is right is not valid now.
func (s *Secret) notValid(now time.Time) (reason string) {
	if s.hasBegun(now) {
		return reasonExpiredSecret
	}
	return reasonEarlySecret
}

// verifySecret finds the secret of the client that is valid now and that one of the readings of
// what was sent equals. Success ends early. Failure costs, for each reading, the realm's whole
// workload, which is at least what the secrets of the most expensive client cost. That has room for
// those whose time is over or has not begun, so it can be told which failures are theirs.
func (e *Engine) verifySecret(ctx context.Context, c claim) (Proof, string, error) {
	var candidates []*Secret
	if c.client != nil {
		candidates = c.client.Secrets
	}
	now := e.cfg.Now()
	a := attempt{work: c.clients.work, now: now}
	var right *Secret // found quickly
	why := reasonWrongSecret
	for _, secret := range c.creds.Secrets {
		r := reading{secret: secret, candidates: candidates}
		if secret == "" {
			r.candidates = nil // never authenticates, whatever is stored
		}
		if len(secret) > maxSecretBytes {
			r.secret, r.candidates = secret[:maxSecretBytes], nil
		}
		done := quickWork{}
		for _, s := range r.candidates {
			valid := s.validAt(now)
			if !s.slow() {
				done[s.kind]++
			}
			switch matches := s.quick(r.secret); {
			case matches && !valid:
				why = s.notValid(now)
			case matches, valid && e.cfg.Hasher.remembers(s, r.secret, now):
				right = s
			}
		}
		for kind, most := range c.clients.quick {
			for range most - done[kind] {
				(&digest{kind: hashKind(kind), bytes: noDigest}).quick(r.secret)
			}
		}
		if len(a.work) > 0 {
			a.readings = append(a.readings, r)
		}
	}
	if right != nil {
		return c.client.proofBy(right, now), "", nil
	}
	if len(a.work) == 0 {
		return Proof{}, why, nil // the realm has no slow hashes: failing is quick for everybody
	}
	ctx, stop := c.trial.watch(ctx, now)
	defer stop()
	right, err := e.cfg.Hasher.check(ctx, flightKey{c.clients, c.creds.mac(), c.instead}, a, hashNetwork(c.from), c.creds.ClientIDs[0])
	if err != nil || right == nil {
		return Proof{}, why, err
	}
	now = e.cfg.Now()
	if !right.validAt(now) { // whoever shares the answer may have come after the secret's end
		return Proof{}, right.notValid(now), nil
	}
	return c.client.proofBy(right, now), "", nil
}
