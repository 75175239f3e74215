package store

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/redis/rueidis"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// Admit implements oauth.TokenStore. It is atomic for each realm.
func (r *Redis) Admit(ctx context.Context, clients []oauth.ClientRef, held map[oauth.ClientRef]uint64) (map[oauth.ClientRef]uint64, error) {
	byRealm := make(map[string][]oauth.ClientRef)
	for _, ref := range clients {
		byRealm[ref.Realm] = append(byRealm[ref.Realm], ref)
	}
	generations := make(map[oauth.ClientRef]uint64, len(clients))
	for realm, refs := range byRealm {
		err := r.updateClients(ctx, realm, func(table clientTable) clientTable {
			admitted, changed := table.admit(refs, held)
			for ref, generation := range admitted {
				generations[ref] = generation
			}
			return changed
		})
		if err != nil {
			return nil, err
		}
	}
	return generations, nil
}

// Retire implements oauth.TokenStore. It is atomic for each realm. All clients in Redis are
// configured ones.
func (r *Redis) Retire(ctx context.Context, active []oauth.ClientRef) error {
	return r.updateRealms(ctx, func(table clientTable) clientTable { return table.retire(active) })
}

// Leave implements oauth.TokenStore. It is atomic for each realm.
func (r *Redis) Leave(ctx context.Context, stay []oauth.ClientRef) error {
	return r.updateRealms(ctx, func(table clientTable) clientTable { return table.leave(stay) })
}

// EndTokens implements oauth.TokenStore. It is atomic.
func (r *Redis) EndTokens(ctx context.Context, realm string, clients []string, all bool, held map[oauth.ClientRef]uint64) (map[oauth.ClientRef]uint64, error) {
	e := ending{realm: realm, clients: clients, all: all, held: held}
	if err := r.updateClients(ctx, realm, e.change); err != nil {
		return nil, err
	}
	return e.reached, nil
}

// Generation implements oauth.TokenStore.
func (r *Redis) Generation(ctx context.Context, client oauth.ClientRef) (generation uint64, err error) {
	err = r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		value, err := c.Do(ctx, c.B().Hget().Key(r.clientsKey(client.Realm)).Field(client.ClientID).Build()).ToString()
		if rueidis.IsRedisNil(err) {
			return oauth.ErrNotFound
		}
		if err != nil {
			return err
		}
		state, err := decodeClient(client, value)
		generation = state.Generation
		return err
	})
	return generation, err
}

// updateRealms updates the clients of every realm that has any; see updateClients.
func (r *Redis) updateRealms(ctx context.Context, change func(clientTable) clientTable) error {
	var realms []string
	err := r.do(ctx, func(ctx context.Context, c rueidis.Client) (err error) {
		realms, err = c.Do(ctx, c.B().Smembers().Key(r.realmsKey()).Build()).AsStrSlice()
		return err
	})
	for i := 0; i < len(realms) && err == nil; i++ {
		err = r.updateClients(ctx, realms[i], change)
	}
	return err
}

// updateClients updates what is stored about a realm's clients, atomically. change gets the
// stored states and returns those that become different; it is called several times.
func (r *Redis) updateClients(ctx context.Context, realm string, change func(clientTable) clientTable) error {
	for {
		done := false
		err := r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
			// Read over the tracked connection first: Redis then tells us when what we have read
			// changes. Each round begins here, so the last read is always a tracked one. Usually
			// there is nothing to do.
			table, err := r.readClients(ctx, c, realm)
			if err != nil {
				return err
			}
			if len(change(table)) == 0 {
				done = true
				return nil
			}
			// Add the realm before its clients, so that Retire finds them if this gateway dies here.
			if err := c.Do(ctx, c.B().Sadd().Key(r.realmsKey()).Member(realm).Build()).Error(); err != nil {
				return err
			}
			return c.Dedicated(func(c rueidis.DedicatedClient) error { return r.tryUpdate(ctx, c, realm, change) })
		})
		if done || err != nil {
			return err
		}
	}
}

// tryUpdate makes one attempt to update a realm's clients, in a transaction. If another gateway
// changes them meanwhile it changes nothing and returns nil: the caller's next round sees what
// the other one did.
func (r *Redis) tryUpdate(ctx context.Context, c rueidis.DedicatedClient, realm string, change func(clientTable) clientTable) error {
	if err := c.Do(ctx, c.B().Watch().Key(r.clientsKey(realm)).Build()).Error(); err != nil {
		return err
	}
	table, err := r.readClients(ctx, c, realm)
	if err != nil {
		return err
	}
	changed := change(table)
	if len(changed) == 0 {
		return c.Do(ctx, c.B().Unwatch().Build()).Error()
	}
	set := c.B().Hset().Key(r.clientsKey(realm)).FieldValue()
	for ref, state := range changed {
		value, err := json.Marshal(state)
		if err != nil {
			return err
		}
		set = set.FieldValue(ref.ClientID, string(value))
	}
	for _, answer := range c.DoMulti(ctx, c.B().Multi().Build(), set.Build(), c.B().Exec().Build()) {
		// The first error says what is wrong. EXEC answers nil if another gateway was quicker.
		if err = answer.Error(); err != nil && !rueidis.IsRedisNil(err) {
			return err
		}
	}
	if err == nil {
		r.rememberClients(changed)
	}
	return nil
}

// rememberClients keeps what was written about clients, to write it again if the link is lost soon.
func (r *Redis) rememberClients(changed clientTable) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, since := time.Now(), r.keptSince()
	maps.DeleteFunc(r.written, func(_ oauth.ClientRef, was writtenClient) bool { return was.at.Before(since) })
	for ref, state := range changed {
		r.written[ref] = writtenClient{state, now}
	}
}

// repeatClients writes again what was written about clients shortly before the link was lost, and
// since; see repeatRevocations.
func (r *Redis) repeatClients(ctx context.Context) error {
	byRealm := make(map[string]clientTable)
	r.mu.Lock()
	since := r.keptSince()
	for ref, was := range r.written {
		if was.at.Before(since) {
			continue
		}
		if byRealm[ref.Realm] == nil {
			byRealm[ref.Realm] = clientTable{}
		}
		byRealm[ref.Realm][ref] = was.clientState
	}
	r.mu.Unlock()
	for realm, written := range byRealm {
		if err := r.updateClients(ctx, realm, func(table clientTable) clientTable { return table.again(written) }); err != nil {
			return err
		}
	}
	return nil
}

// readClients reads what is stored about a realm's clients, over the connection of c.
func (r *Redis) readClients(ctx context.Context, c rueidis.CoreClient, realm string) (clientTable, error) {
	stored, err := c.Do(ctx, c.B().Hgetall().Key(r.clientsKey(realm)).Build()).AsStrMap()
	if err != nil {
		return nil, err
	}
	table := make(clientTable, len(stored))
	for id, value := range stored {
		ref := oauth.ClientRef{Realm: realm, ClientID: id}
		if table[ref], err = decodeClient(ref, value); err != nil {
			return nil, err
		}
	}
	return table, nil
}

func decodeClient(ref oauth.ClientRef, value string) (state clientState, err error) {
	if err := json.Unmarshal([]byte(value), &state); err != nil || state.Generation == 0 {
		return state, fmt.Errorf("the state of client %q of realm %q: %w", ref.ClientID, ref.Realm, errCorrupt)
	}
	return state, nil
}

func (r *Redis) realmsKey() string { return r.cfg.Prefix + "realms" }

func (r *Redis) clientsKey(realm string) string { return r.cfg.Prefix + "realm:" + realm + ":clients" }
