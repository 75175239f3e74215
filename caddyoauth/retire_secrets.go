package caddyoauth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// A secret of a managed client with retire_unused goes by itself once nobody has used it for so long while
// a newer one is valid. Any gateway may remove it, as an operator would. It goes by what the fleet knows of
// its uses, and while that can't be told, the secret stays.

const (
	// retireInterval is how long an App waits before it looks again for secrets to retire. It is longer than
	// usesSettle.
	retireInterval = 5 * time.Minute
	// usesSettle is how long after a secret was found unused this must still be so: by then, every gateway
	// has written the uses from before. Whatever keeps the others from writing keeps this one, too, and
	// then it finds nothing unused.
	usesSettle = 2 * inventoryInterval
)

// foundUnused are the secrets that were found unused, and when first. There is an entry for each secret that
// retires, at most.
type foundUnused map[retiring]time.Time

type retiring struct {
	client oauth.ClientRef
	secret string
}

// keepRetiringSecrets retires secrets while the App is in force. It returns when ctx ends.
func (a *App) keepRetiringSecrets(ctx context.Context) {
	defer close(a.run.retiringEnded)
	var found foundUnused
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(retireInterval): // counted from the end of the last look, however long that took
		}
		if activeApp() != a {
			continue
		}
		var err error
		found, err = a.retireSecrets(ctx, time.Now(), found)
		if err != nil && !failing && ctx.Err() == nil {
			a.logger.Warn("secrets that are no longer used can't be retired: trying again every five minutes", zap.Error(err))
		}
		failing = err != nil
	}
}

// retireSecrets removes the secrets that are unused now, and were found so before, at least usesSettle ago.
// It returns those that are found now. At an error it ends early: what it has not come to must be found
// anew, since uses may be missing by now.
func (a *App) retireSecrets(ctx context.Context, now time.Time, before foundUnused) (foundUnused, error) {
	found := make(foundUnused)
	for _, name := range sortedKeys(a.realms) {
		for ids := range slices.Chunk(a.realms[name].retiringClients(), maxClientsPage) {
			if err := a.retireSecretsOf(ctx, a.realms[name], ids, now, before, found); err != nil {
				return found, fmt.Errorf("realm %q: %w", name, err)
			}
		}
	}
	return found, nil
}

// retiringClients returns the managed clients that have a secret to retire one day.
func (r *servedRealm) retiringClients() (ids []string) {
	if r.managed == nil || r.engine == nil {
		return nil
	}
	retires := func(s *oauth.Secret) bool { return s.RetireUnused != 0 }
	for client := range r.engine.Managed {
		// One that is disabled, or hidden by the configuration, can't use a secret.
		if len(client.Secrets) > 1 && slices.ContainsFunc(client.Secrets, retires) && !client.Disabled && r.settings.Clients[client.ID] == nil {
			ids = append(ids, client.ID)
		}
	}
	slices.Sort(ids) // so that those behind an error are the same each time, and the others make progress
	return ids
}

// retireSecretsOf is retireSecrets for some clients of a realm. It adds to found.
func (a *App) retireSecretsOf(ctx context.Context, r *servedRealm, ids []string, now time.Time, before, found foundUnused) error {
	uses, err := a.usesOf(ctx, r, ids)
	if err != nil {
		return fmt.Errorf("when secrets were used: %w", err)
	}
	look := retirement{app: a, realm: r, uses: uses, now: now, before: before, found: found}
	for _, id := range ids {
		client, ok := r.engine.ManagedByID(id)
		idle := func(s *oauth.Secret) bool {
			since, known := uses.UnusedSince(id, s.ID)
			return s.RetireUnused != 0 && known && now.Sub(since) >= s.RetireUnused
		}
		if !ok || !slices.ContainsFunc(client.Secrets, idle) {
			continue // without a look into the store
		}
		if err := look.at(ctx, id); err != nil {
			return fmt.Errorf("client %q: %w", id, err)
		}
	}
	return ctx.Err()
}

// retirement is a look at clients of a realm, some of whose secrets may be unused.
type retirement struct {
	app           *App
	realm         *servedRealm
	uses          oauth.Uses
	now           time.Time
	before, found foundUnused
	// written is set once the store has taken a write since uses were read.
	written bool
}

// errNotUnused ends a change that would remove nothing.
var errNotUnused = errors.New("no secret is unused")

// at finds the unused secrets of a client, and removes those that were found so before, at least usesSettle
// ago.
func (l *retirement) at(ctx context.Context, id string) error {
	ref := oauth.ClientRef{Realm: l.realm.name, ClientID: id}
	stored, err := l.app.run.opened.clients.ManagedClient(ctx, ref)
	if errors.Is(err, oauth.ErrNotFound) {
		return nil // it was removed meanwhile
	}
	if err != nil {
		return err
	}
	record, err := readManaged(stored)
	if err != nil {
		return err
	}
	settled := false
	for _, secret := range record.unused(id, l.uses, l.now) {
		key := retiring{ref, secret}
		since, ok := l.before[key]
		if !ok {
			if err := l.write(ctx, ref); err != nil {
				return err
			}
			since = l.now
		}
		l.found[key] = since
		settled = settled || l.settled(key)
	}
	if !settled {
		return nil
	}
	return l.remove(ctx, ref)
}

// write has the store take a write. A store that takes none has not heard of uses for a while; if it takes
// this one, it takes those of all gateways from now on.
func (l *retirement) write(ctx context.Context, ref oauth.ClientRef) error {
	if l.written {
		return nil
	}
	err := l.app.run.opened.inventory.Touch(ctx, ref)
	l.written = err == nil
	return err
}

// settled reports whether a secret was found unused at least usesSettle ago.
func (l *retirement) settled(key retiring) bool {
	since, ok := l.found[key]
	return ok && l.now.Sub(since) >= usesSettle
}

// remove removes the secrets of a client that are settled, if they still are unused.
func (l *retirement) remove(ctx context.Context, ref oauth.ClientRef) error {
	never := func(_, _ *managedRecord) bool { return false }
	was, next, _, err := l.app.changeManaged(ctx, l.realm, ref.ClientID, never, func(was *managedRecord, _ uint64) (*managedRecord, error) {
		if was == nil || was.Client.Disabled {
			return nil, errNotUnused
		}
		gone := slices.DeleteFunc(was.unused(ref.ClientID, l.uses, l.now), func(secret string) bool { return !l.settled(retiring{ref, secret}) })
		if len(gone) == 0 {
			return nil, errNotUnused // somebody was quicker
		}
		next := *was
		next.Client.Secrets = slices.DeleteFunc(slices.Clone(was.Client.Secrets), func(s ClientSecret) bool { return slices.Contains(gone, secretID(s.Hash)) })
		return &next, nil
	})
	if errors.Is(err, errNotUnused) {
		return nil
	}
	if next != nil {
		l.app.logChange(l.realm, ref.ClientID, clientAudit{event: "client_secret_removed", was: was, next: next, err: err}, zap.String("cause", "unused"))
	}
	return err
}

// countDisuse notes since when the disuse of each secret counts. was is the record from before, nil for
// none.
func (m *managedRecord) countDisuse(was *managedRecord) {
	m.Idle = make(map[string]time.Time, len(m.Client.Secrets)) // was may have the same one
	for _, s := range m.Client.Secrets {
		id := secretID(s.Hash)
		m.Idle[id] = m.Changed
		if was == nil || was.Client.Disabled {
			continue
		}
		if since, ok := was.Idle[id]; ok {
			m.Idle[id] = since
		}
	}
}

// unused returns the IDs of secrets that are to go: they have not been used for their retire_unused, during
// which a newer one, which is listed below, was valid. id is the client's.
func (m *managedRecord) unused(id string, uses oauth.Uses, now time.Time) (secrets []string) {
	for i, s := range m.Client.Secrets {
		if s.RetireUnused == 0 {
			continue
		}
		secret := secretID(s.Hash)
		unused, known := uses.UnusedSince(id, secret)
		idle, counts := m.Idle[secret]
		newer, replaced := m.replacedSince(i, now)
		if !known || !counts || !replaced {
			continue
		}
		for _, since := range []time.Time{idle, newer} {
			if unused.Before(since) {
				unused = since
			}
		}
		if now.Sub(unused) >= time.Duration(s.RetireUnused) {
			secrets = append(secrets, secret)
		}
	}
	return secrets
}

// replacedSince returns since when a newer secret than the one at position i, from 0, has been valid, and
// false if none is valid now.
func (m *managedRecord) replacedSince(i int, now time.Time) (since time.Time, ok bool) {
	for _, newer := range m.Client.Secrets[i+1:] {
		begun, counts := m.Idle[secretID(newer.Hash)]
		if begun.Before(newer.From) {
			begun = newer.From
		}
		if !counts || now.Before(begun) || !newer.Until.IsZero() && !now.Before(newer.Until) {
			continue
		}
		if !ok || begun.Before(since) {
			since, ok = begun, true
		}
	}
	return since, ok
}
