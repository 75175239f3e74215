package oauth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/caddyoauth/gateway/introspect"
)

// issued is a realm as an [introspect.Source] of the tokens that it issued: Screen judges a
// token by computation, Lookup reads the store, Revise applies what is known of the token's
// client now. The cache stands in front of it; whoever asks about a token asks by way of
// [Engine.Tokens], since a Lookup alone skips the cache and Revise.
type issued struct {
	cfg   *Settings              // the engine's
	state *atomic.Pointer[state] // the engine's
	raise func(generations map[string]uint64)
}

// Screen reports whether token carries this realm's mark and has not expired. See
// [introspect.Screener].
func (i *issued) Screen(token introspect.Token) (introspect.Token, bool) {
	agreed, err := i.state.Load().agreement()
	if err != nil {
		return token, true // it may be ours: Lookup says that nobody knows
	}
	ok := agreed.screen(&token)
	return token, ok
}

// genuine reports whether this realm issued token. Unlike Screen, it verifies the signature of a
// JWT.
func (i *issued) genuine(token introspect.Token) bool {
	agreed, err := i.state.Load().agreement()
	if err != nil {
		return true // as in Screen
	}
	_, ok, err := agreed.identify(&token)
	return ok || err != nil
}

// WhyNot says why Screen refused token. See [introspect.Explainer].
func (i *issued) WhyNot(token introspect.Token) introspect.Cause {
	agreed := i.state.Load().agreed
	switch {
	case agreed != nil:
		return agreed.whyNot(token)
	case !HasForm(token.Text()) && !hasJWTForm(token.Text()):
		return introspect.CauseNoSource
	}
	return introspect.CauseUnknown
}

// Coherent reports whether the cache may answer. See [introspect.Coherent].
func (i *issued) Coherent() bool {
	// Before the first Share, Revise knows no generations.
	return i.state.Load().agreed != nil && (i.cfg.Coherent == nil || i.cfg.Coherent())
}

// Immediate reports whether Lookup waits for nobody. See [introspect.Immediate].
func (i *issued) Immediate() bool { return i.cfg.Immediate }

// Lookup reads the facts of a token from the store, or from the token itself. See
// [introspect.Source].
func (i *issued) Lookup(ctx context.Context, token introspect.Token) (*introspect.Facts, error) {
	agreed, err := i.state.Load().agreement()
	if err != nil {
		return nil, err
	}
	told, ok, err := agreed.identify(&token)
	if err != nil {
		return nil, err
	}
	if !ok || told.expired(i.cfg.Now()) {
		return introspect.InactiveBecause(agreed.whyNot(token)), nil
	}
	record, err := i.recordOf(ctx, agreed, &token, told)
	if errors.Is(err, ErrNotFound) {
		return introspect.InactiveBecause(introspect.CauseRevoked), nil
	}
	if errors.Is(err, ErrOtherEpoch) {
		// The store lost what it knew, or was emptied, a moment ago. What was revoked before is
		// not known any more, so no token of before counts.
		return introspect.InactiveBecause(introspect.CauseUnknownKey), nil
	}
	if err != nil {
		return nil, err
	}
	if !i.Coherent() {
		// The client's tokens may have been ended without this engine having been told.
		switch current, _, err := i.askGeneration(ctx, record.ClientID); {
		case errors.Is(err, ErrNotFound):
			return introspect.InactiveBecause(introspect.CauseClientRemoved), nil
		case err != nil:
			return nil, err
		case current != record.ClientGeneration:
			return introspect.InactiveBecause(introspect.CauseClientGeneration), nil
		}
	}
	if err := i.upToDate(ctx, record); err != nil {
		return nil, err
	}
	facts := i.facts(record)
	facts.Expiry = record.Expiry()
	return facts, nil
}

// upToDate makes sure that the engine knows of every change of the client that the token was issued after.
// Another gateway may have issued it, or the configuration before a reload, and this one may hear of the
// change only in a moment. Revise would take the token for one that has ended, or for one that its client,
// disabled or narrowed as it was before, can't have. What the store says of a client of the configuration
// counts from now on. With a managed client, more may have changed than its generation, so nobody can tell
// yet, unless the engine has this version of it, or it is one that has been heard of and can't be used.
func (i *issued) upToDate(ctx context.Context, record Token) error {
	if i.cfg.Coherent == nil {
		return nil // there is no other gateway
	}
	now := i.state.Load()
	client := now.clients.find(record.ClientID)
	switch {
	case client == nil && i.cfg.Managed == nil, now.agreed == nil:
		return nil
	case client != nil:
		known, ok := now.agreed.generationOf(client)
		mayHave := !client.managed || !client.Disabled && client.allows(record.Scopes, record.Audience)
		if ok && (known > record.ClientGeneration || known == record.ClientGeneration && mayHave) {
			return nil // of an earlier one, it has ended
		}
	}
	current, version, err := i.askGeneration(ctx, record.ClientID)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	case current != record.ClientGeneration:
		return nil
	case client != nil && !client.managed:
		i.raise(map[string]uint64{record.ClientID: current})
		return nil
	case client != nil && client.version == version:
		return nil // Revise refuses the token, or narrows it
	case i.cfg.Unusable != nil:
		if known, ok := i.cfg.Unusable(record.ClientID); ok && known == version {
			return nil // Revise refuses the token
		}
	}
	return fmt.Errorf("%w: it says of the token's client what has not been heard of yet", ErrUnreachable)
}

// Inquire is Lookup, which leaves no trace here. See [introspect.Inquirer].
func (i *issued) Inquire(ctx context.Context, token introspect.Token) (*introspect.Facts, error) {
	return i.Lookup(ctx, token)
}

// facts returns what a record means, without its end.
func (i *issued) facts(record Token) *introspect.Facts {
	return &introspect.Facts{
		Active:   true,
		ID:       record.ID,
		ClientID: record.ClientID,
		Subject:  record.ClientID,
		Issuer:   i.cfg.Issuer,
		Scopes:   record.Scopes,
		Audience: record.Audience,
		IssuedAt: record.IssuedAt,
		JTI:      record.JTI,
		Revision: record.ClientGeneration,

		Confirmation: record.Confirmation,
	}
}

// Revise applies the present state of the token's client: a client that is gone, disabled, or
// of a later generation has no tokens, and the tokens of a client whose scopes or audience were
// narrowed are as narrow. See [introspect.Reviser].
func (i *issued) Revise(facts *introspect.Facts) *introspect.Facts {
	now := i.state.Load()
	client := now.clients.find(facts.ClientID)
	switch {
	case client == nil:
		return facts.Refused(introspect.CauseClientRemoved)
	case client.Disabled:
		return facts.Refused(introspect.CauseClientDisabled)
	case now.agreed == nil:
		return facts.Refused(introspect.CauseUnknown)
	}
	if generation, known := now.agreed.generationOf(client); !known || generation != facts.Revision {
		return facts.Refused(introspect.CauseClientGeneration)
	}
	if facts.JTI != "" && facts.Issuer != i.cfg.Issuer {
		// A JWT says who issued it. Lookup refuses one of a former issuer, and so must the cache.
		return facts.Refused(introspect.CauseUnknownKey)
	}
	if client.allows(facts.Scopes, facts.Audience) && facts.Issuer == i.cfg.Issuer {
		return facts
	}
	revised := *facts
	revised.Issuer = i.cfg.Issuer
	revised.Scopes = intersect(facts.Scopes, client.Scopes)
	revised.Audience = intersect(facts.Audience, client.Audience)
	if len(facts.Audience) > 0 && len(revised.Audience) == 0 {
		// With no audience left, the token would be good everywhere.
		return facts.Refused(introspect.CauseAudience)
	}
	return &revised
}

// key is where the record of a token of this realm lies in the store.
func (i *issued) key(id introspect.TokenID, expiryMilli int64) Key {
	return Key{Realm: i.cfg.Realm, ExpiryMilli: expiryMilli, ID: id}
}

// recordOf returns the record of a genuine token, from the store or from what the token itself has
// told. It returns ErrNotFound for one that was revoked.
func (i *issued) recordOf(ctx context.Context, agreed *agreement, token *introspect.Token, told Token) (Token, error) {
	if !carriesFacts(token.Text()) {
		return i.record(ctx, told.Key)
	}
	denied, err := i.cfg.Keys.Denied(ctx, agreed.epoch, told.Key)
	if err == nil && denied {
		err = ErrNotFound
	}
	return told, err
}

// isNobodys returns nil if identify is right to take a token for none of this realm's. It fails if
// another gateway may have made the token with keys that this one has not been told of yet: then
// the token is good, and whoever revokes it must not hear that this is done.
func (i *issued) isNobodys(ctx context.Context, agreed *agreement, token *introspect.Token) error {
	text := token.Text()
	foreign := hasJWTForm(text) && token.UnverifiedIssuer() != i.cfg.Issuer
	if !carriesFacts(text) || foreign || i.cfg.Keys == nil || agreed.knowsKey(text) {
		return nil
	}
	keyring, err := i.cfg.Keys.Keys(ctx, i.cfg.Realm)
	switch {
	case err != nil:
		return fmt.Errorf("looking for the keys of a token to revoke: %w", err)
	case hasJWTForm(text) && agreed.otherJWTKeys, hasHMACForm(text) && agreed.others:
	case keyring == nil && agreed.covers == nil, keyring != nil && agreed.covers != nil && agreed.covers(keyring):
		return nil
	}
	return fmt.Errorf("%w: it has keys that have not been shared yet", ErrUnreachable)
}

// record reads a record and checks that it is the one asked for: a store that mixes up its
// answers must not hand one token's rights to another.
func (i *issued) record(ctx context.Context, key Key) (Token, error) {
	record, err := i.cfg.Store.Get(ctx, key)
	if err != nil {
		return Token{}, err
	}
	if record.ID != key.ID || record.Realm != i.cfg.Realm {
		return Token{}, errors.New("the store returned another token's record")
	}
	return record, nil
}

// allows reports whether the client may have tokens with these scopes and this audience.
func (c *Client) allows(scopes, audience []string) bool {
	return containsAll(c.Scopes, scopes) && containsAll(c.Audience, audience)
}

func containsAll(have, want []string) bool {
	for _, w := range want {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return true
}

// intersect returns the values of a that are also in b, in the order of a, in memory of its
// own.
func intersect(a, b []string) []string {
	var both []string
	for _, v := range a {
		if slices.Contains(b, v) {
			both = append(both, v)
		}
	}
	return both
}
