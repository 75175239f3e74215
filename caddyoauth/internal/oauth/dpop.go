package oauth

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// ProofStore is the ability of a store to remember which DPoP proofs were used. Those live for a minute or
// two and come with each request, so what remembers them need not be durable, if it says so. The rules
// of [TokenStore] about contexts, errors and concurrency hold here too.
type ProofStore interface {
	// UseProof remembers until then that id was used, and reports whether nobody had used it before. Of
	// several callers at once, on one node or many, one gets true. client is whose proof it is: if it
	// has its share of the store's room, the error is ErrClientFull. After an error id may count as used.
	// since is since when the store remembers all proofs that were used: those of before it has lost.
	UseProof(ctx context.Context, id ReplayID, client ClientRef, until time.Time) (first bool, since time.Time, err error)

	// BeginProofs asks since when the store remembers, and has it begin if it does not yet.
	BeginProofs(ctx context.Context) error

	// ProofsSince returns what is known of that without asking anybody; the zero time if nothing is.
	ProofsSince() time.Time
}

// MaxProofAge is the longest that [introspect.ProofsConfig.MaxAge] may be for [Proofs].
const MaxProofAge = 2 * time.Minute

// proofMemory is how long proofs are remembered after they were made: until no gateway would take them
// any more, however long it does, and whatever its clock says.
const proofMemory = MaxProofAge + 30*time.Second

// Place is a kind of place where proofs are shown. The nonces of one are no good at another (RFC 9449
// sections 8 and 9).
type Place string

// The places.
const (
	AtEndpoint Place = "token endpoint"
	AtResource Place = "resource"
)

// Proofs judges the DPoP proofs (RFC 9449) that come to one kind of place. It is safe for concurrent use
// and owns nothing that needs closing.
//
// Each proof passes once. A store that has begun to remember a moment ago can't tell whether a proof was
// used before that. Then a proof must show by a nonce that it is younger, or by its own time:
// that may be ahead of the clock here.
type Proofs struct {
	place    Place
	verifier *introspect.Proofs
	// lifetime is how long a nonce is good. Zero if proofs need none.
	lifetime time.Duration
	now      func() time.Time

	store ProofStore
	key   atomic.Pointer[[]byte] // of the nonces; nil until Share
}

// startLifetime is how long a nonce is good if proofs need none but after a start.
const startLifetime = 5 * time.Minute

// NewProofs makes the judge for one kind of place. Every proof needs a nonce if lifetime is not zero: one
// that is no older than that. now is the wall clock. Before any proof is used, call Keep, and before
// any needs a nonce, Share.
func NewProofs(place Place, verifier *introspect.Proofs, lifetime time.Duration, now func() time.Time) *Proofs {
	return &Proofs{place: place, verifier: verifier, lifetime: lifetime, now: now}
}

// Keep has proofs be remembered in a store. It is called once, before all others.
func (p *Proofs) Keep(store ProofStore) { p.store = store }

// Share gives the key of nonces, which all gateways share. It may be called while requests run.
func (p *Proofs) Share(key []byte) { p.key.Store(&key) }

// Algorithms returns the allowed signature algorithms.
func (p *Proofs) Algorithms() []string { return p.verifier.Algorithms() }

// SupposedKey stands for the thumbprint of a key that nobody has; see [Engine.Suppose].
const SupposedKey = "supposed"

// ShownProof is a proof that is good, if it has not been used before.
type ShownProof struct {
	*introspect.Proof
	// NextNonce is for the sender's next proof: the nonce of this one ends soon. It is empty otherwise.
	NextNonce string
}

// ProofFault is what is wrong with a proof.
type ProofFault string

// The faults.
const (
	ProofMissing   ProofFault = "missing"    // there is none
	ProofMalformed ProofFault = "malformed"  // there are several headers
	ProofInvalid   ProofFault = "invalid"    // it is not one for this request; see ProofError.Reason
	ProofReplayed  ProofFault = "replayed"   // it was used before
	ProofNoNonce   ProofFault = "need_nonce" // it needs a nonce, and has none that is good
)

// ProofError says that a proof is refused.
type ProofError struct {
	Fault ProofFault
	// Reason is a cause of [introspect.Proofs], for logs only.
	Reason introspect.Cause
	// Nonce is what the next proof must have; set if Fault is ProofNoNonce.
	Nonce string
}

func (e *ProofError) Error() string { return "DPoP proof refused: " + string(e.Fault) }

// Verify verifies the proof in the lines of a request's DPoP header, all but that it was not used before.
// It doesn't block. The error is a *ProofError, or says that nobody can tell.
func (p *Proofs) Verify(lines []string, of introspect.ProofOf) (ShownProof, error) {
	switch len(lines) {
	case 0:
		return ShownProof{}, &ProofError{Fault: ProofMissing}
	case 1:
	default:
		return ShownProof{}, &ProofError{Fault: ProofMalformed}
	}
	proof, cause := p.verifier.Verify(lines[0], of)
	if cause != "" {
		return ShownProof{}, &ProofError{Fault: ProofInvalid, Reason: cause}
	}
	if p.store == nil {
		return ShownProof{}, errors.New("this kind of token store can't remember which DPoP proofs were used")
	}
	shown := ShownProof{Proof: proof}
	if err := p.younger(proof, p.store.ProofsSince()); err != nil || p.lifetime == 0 {
		return shown, err
	}
	key := p.key.Load()
	if key == nil {
		return ShownProof{}, errNoNonceKey
	}
	switch made, good := p.nonceMade(*key, proof.Nonce); {
	case !good:
		return ShownProof{}, &ProofError{Fault: ProofNoNonce, Nonce: p.nonce(*key)}
	case p.now().Sub(made) > p.lifetime/2:
		shown.NextNonce = p.nonce(*key)
	}
	return shown, nil
}

var errNoNonceKey = fmt.Errorf("%w: not once since the start", ErrUnreachable)

// younger returns an error unless a proof was made after since, by its own time, which may be ahead of
// the clock here, or by its nonce.
func (p *Proofs) younger(proof *introspect.Proof, since time.Time) error {
	if proof.IssuedAt.After(since.Add(p.verifier.Leeway())) {
		return nil
	}
	key := p.key.Load()
	if key == nil {
		return errNoNonceKey
	}
	if made, good := p.nonceMade(*key, proof.Nonce); good && made.After(since) {
		return nil
	}
	return &ProofError{Fault: ProofNoNonce, Nonce: p.nonce(*key)}
}

// Use uses up a proof of a client, which is last of all that can refuse a request. The error is a
// *ProofError if it was used before, or may have been, because the store has lost what it knew since
// Verify. Any other says that nobody can tell.
func (p *Proofs) Use(ctx context.Context, proof ShownProof, client ClientRef) error {
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	id := digestOf("DPoP proof v1", proof.Key, proof.URL, proof.ID)
	first, since, err := p.store.UseProof(ctx, id, client, proof.IssuedAt.Add(proofMemory))
	switch {
	case err != nil:
		return fmt.Errorf("remembering that a DPoP proof was used: %w", err)
	case !first:
		return &ProofError{Fault: ProofReplayed}
	}
	return p.younger(proof.Proof, since)
}

// Thumbprint returns that of the proof's key; empty if there is no proof.
func (p ShownProof) Thumbprint() string {
	if p.Proof == nil {
		return ""
	}
	return p.Key
}

// proofOf returns the proof of a token request, to whose key the token is to be bound. It is empty if
// there is none and the client need not have one.
func (e *Engine) proofOf(client *Client, req Request) (ShownProof, error) {
	if e.cfg.Proofs == nil || len(req.DPoP) == 0 && !client.DPoPRequired {
		return ShownProof{}, nil
	}
	proof, err := e.cfg.Proofs.Verify(req.DPoP, introspect.ProofOf{Method: "POST", URLs: req.URLs})
	return proof, refusedProof(err)
}

// useProof uses up the proof of a token request, if it has one.
func (e *Engine) useProof(ctx context.Context, client *Client, proof ShownProof) error {
	if proof.Proof == nil {
		return nil
	}
	return refusedProof(e.cfg.Proofs.Use(ctx, proof, ClientRef{Realm: e.cfg.Realm, ClientID: client.ID}))
}

// refusedProof returns how a token endpoint answers a refused proof. Any other error is returned as it
// is.
func refusedProof(err error) error {
	var refused *ProofError
	if !errors.As(err, &refused) {
		return err
	}
	no := &Error{Code: CodeInvalidDPoPProof, Description: "the DPoP proof is not valid here", Reason: "dpop_" + string(refused.Fault)}
	switch refused.Fault {
	case ProofMissing:
		no.Description = "the client's tokens are bound to a key: a DPoP proof is required"
	case ProofMalformed:
		no.Description = "there is more than one DPoP header"
	case ProofInvalid:
		no.Reason = "dpop_" + string(refused.Reason)
	case ProofNoNonce:
		no.Code, no.Description, no.Nonce = CodeUseDPoPNonce, "the DPoP proof needs the nonce that comes with this answer", refused.Nonce
	}
	return no
}

// A nonce is the time when it was made, in unix milliseconds, and a MAC. Whoever has the key can tell
// that it is good, so nothing needs to be kept.

const nonceMAC = 16 // bytes

// nonce returns a new one. Its time is rounded up, so that the first of a run is younger than the run.
func (p *Proofs) nonce(key []byte) string { return p.nonceOf(key, p.now().UnixMilli()+1) }

func (p *Proofs) nonceOf(key []byte, milli int64) string {
	text := binary.BigEndian.AppendUint64(nil, uint64(milli))
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("DPoP nonce v1\x00" + string(p.place) + "\x00"))
	mac.Write(text)
	return base64.RawURLEncoding.EncodeToString(mac.Sum(text)[:len(text)+nonceMAC])
}

// nonceMade returns when a nonce was made, if it is one of ours and its time is not over. The clocks of
// gateways differ.
func (p *Proofs) nonceMade(key []byte, nonce string) (_ time.Time, good bool) {
	text, err := base64.RawURLEncoding.DecodeString(nonce)
	if err != nil || len(text) != 8+nonceMAC {
		return time.Time{}, false
	}
	milli := int64(binary.BigEndian.Uint64(text))
	if !hmac.Equal([]byte(p.nonceOf(key, milli)), []byte(nonce)) {
		return time.Time{}, false
	}
	made, lifetime := time.UnixMilli(milli), p.lifetime
	if lifetime == 0 {
		lifetime = startLifetime
	}
	age := p.now().Sub(made)
	return made, age < lifetime && age > -time.Minute
}
