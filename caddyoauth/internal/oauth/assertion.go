package oauth

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// AuthPrivateKeyJWT is client authentication by a JWT that the client has signed (RFC 7523 section
// 2.2).
const AuthPrivateKeyJWT = "private_key_jwt"

// AssertionType is the only type of client assertions that exists here (RFC 7523 section 2.2).
const AssertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// ReplayStore is the ability of a store to remember what may be used once. The rules of [TokenStore]
// about durability, contexts, errors and concurrency hold here too.
type ReplayStore interface {
	// Once makes it durable that id was used, and reports whether nobody had used it before. Of
	// several callers at once, on one node or many, one gets true. It remembers id until then at
	// least. client is who uses it: if it has its share of the store's room, the error is
	// ErrClientFull. After an error id may count as used.
	Once(ctx context.Context, id ReplayID, client ClientRef, until time.Time) (bool, error)
}

// ReplayID is the digest of what may be used once.
type ReplayID [sha256.Size]byte

// replayID returns the ID for the jti of a client's assertion. Two clients may use the same one.
func replayID(realm, client, jti string) ReplayID {
	return digestOf("client assertion v1", realm, client, jti)
}

// digestOf returns the ID of what is told from everything else by all these parts together.
func digestOf(parts ...string) ReplayID {
	h := sha256.New()
	for _, part := range parts {
		io.WriteString(h, strconv.Itoa(len(part))+":"+part)
	}
	return ReplayID(h.Sum(nil))
}

// replayGrace is how much longer than its assertion an ID is remembered: clocks of gateways differ.
const replayGrace = 10 * time.Minute

// Why an assertion doesn't prove its client, beside the causes of [introspect.Assertions].
const (
	reasonAssertion         = "assertion_" // and a cause, as in assertion_expired
	reasonAssertionSubject  = "assertion_subject"
	reasonAssertionAudience = "assertion_audience"
	reasonAssertionNoID     = "assertion_without_jti"
	reasonAssertionReplayed = "assertion_replayed"
	reasonAssertionKeys     = "assertion_keys_unknown"
)

// verifyAssertion verifies a client assertion by the client's own keys. What it says is judged first,
// and its ID is used up last, so nobody can use up the IDs of another.
func (e *Engine) verifyAssertion(ctx context.Context, c claim) (_ Proof, why string, _ error) {
	if c.client == nil || c.client.Assertions == nil {
		introspect.PretendToVerify(c.creds.assertion, c.clients.algorithms)
		return Proof{}, "", nil
	}
	assertion, cause, err := c.client.Assertions.Verify(ctx, c.creds.assertion, c.clients.algorithms)
	if err != nil {
		// The client's keys can't be fetched, so nobody can tell. That is no outage of the gateway, and
		// the answer must not tell who is registered.
		return Proof{}, reasonAssertionKeys, nil
	}
	if cause != "" {
		return Proof{}, reasonAssertion + string(cause), nil
	}
	defer func() {
		if why != "" {
			assertion.Refused()
		}
	}()
	switch {
	case assertion.Issuer != c.client.ID || assertion.Subject != c.client.ID:
		return Proof{}, reasonAssertionSubject, nil
	case len(assertion.Audience) != 1 || assertion.Audience[0] != e.cfg.Issuer && !slices.Contains(c.audiences, assertion.Audience[0]):
		// Alone: another server that is named could use the assertion here (RFC 7523bis).
		return Proof{}, reasonAssertionAudience, nil
	case assertion.ID == "":
		return Proof{}, reasonAssertionNoID, nil
	case e.cfg.Replays == nil:
		return Proof{}, "", errors.New("the store can't remember which assertions were used")
	}
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	client := ClientRef{Realm: e.cfg.Realm, ClientID: c.client.ID}
	first, err := e.cfg.Replays.Once(ctx, replayID(client.Realm, client.ClientID, assertion.ID), client, assertion.Expiry.Add(replayGrace))
	if errors.Is(err, ErrClientFull) {
		return Proof{}, "", &Error{Code: CodeTooManyRequests, Description: "the client has used too many assertions", Reason: "store_share"}
	}
	if err != nil {
		return Proof{}, "", fmt.Errorf("remembering that an assertion was used: %w", err)
	}
	if !first {
		return Proof{}, reasonAssertionReplayed, nil
	}
	return Proof{Key: assertion.Key}, "", nil
}
