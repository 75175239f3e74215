package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/redis/rueidis"
	bolt "go.etcd.io/bbolt"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// The stores' implementations of oauth.ClientStore.

// nextVersion returns the version that follows. It goes by the clock, so a client that is removed and
// added again doesn't get a version that it had.
func nextVersion(old uint64) uint64 { return max(old+1, uint64(time.Now().UnixMicro())) }

// ManagedClients implements oauth.ClientStore. It returns all of them.
func (m *Memory) ManagedClients(_ context.Context, realm, _ string) (oauth.ManagedClients, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return oauth.ManagedClients{}, oauth.ErrClosed
	}
	all := oauth.ManagedClients{All: true}
	for ref, client := range m.managed {
		if ref.Realm == realm {
			all.Clients = append(all.Clients, cloneManaged(client))
		}
	}
	return all, nil
}

// ManagedClient implements oauth.ClientStore.
func (m *Memory) ManagedClient(_ context.Context, ref oauth.ClientRef) (oauth.ManagedClient, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	client, ok := m.managed[ref]
	switch {
	case m.closed:
		return client, oauth.ErrClosed
	case !ok:
		return client, oauth.ErrNotFound
	}
	return cloneManaged(client), nil
}

// ManagedClientsByID implements oauth.ClientStore.
func (m *Memory) ManagedClientsByID(_ context.Context, realm string, ids []string) ([]oauth.ManagedClient, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return nil, oauth.ErrClosed
	}
	clients := make([]oauth.ManagedClient, len(ids))
	for i, id := range ids {
		clients[i] = cloneManaged(m.managed[oauth.ClientRef{Realm: realm, ClientID: id}])
		clients[i].ID = id
	}
	return clients, nil
}

// SwapManagedClient implements oauth.ClientStore.
func (m *Memory) SwapManagedClient(ctx context.Context, realm string, next oauth.ManagedClient) (uint64, error) {
	return swapOne(m, ctx, realm, next)
}

// SwapManagedClients implements oauth.ClientStore.
func (m *Memory) SwapManagedClients(_ context.Context, realm string, next []oauth.ManagedClient) ([]uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, oauth.ErrClosed
	}
	added := 0
	for _, client := range next {
		if m.managed[oauth.ClientRef{Realm: realm, ClientID: client.ID}].Version != client.Version {
			return nil, oauth.ErrChanged
		}
		if client.Version == 0 && client.Data != nil {
			added++
		}
	}
	if added > 0 && len(m.managed)+added > m.max {
		return nil, oauth.ErrFull
	}
	next, versions := successors(next)
	for _, client := range next {
		ref := oauth.ClientRef{Realm: realm, ClientID: client.ID}
		if client.Data == nil {
			delete(m.managed, ref)
			m.forgetUse(ref)
		} else {
			m.managed[ref] = client
		}
	}
	return versions, nil
}

// swapOne is SwapManagedClient by SwapManagedClients.
func swapOne(s oauth.ClientStore, ctx context.Context, realm string, next oauth.ManagedClient) (uint64, error) {
	versions, err := s.SwapManagedClients(ctx, realm, []oauth.ManagedClient{next})
	if err != nil {
		return 0, err
	}
	return versions[0], nil
}

// successors returns copies of clients with the versions that they get, and these versions.
func successors(clients []oauth.ManagedClient) (next []oauth.ManagedClient, versions []uint64) {
	for _, client := range clients {
		client = cloneManaged(client)
		client.Version = nextVersion(client.Version)
		next, versions = append(next, client), append(versions, client.Version)
	}
	return next, versions
}

func cloneManaged(client oauth.ManagedClient) oauth.ManagedClient {
	client.Data = slices.Clone(client.Data)
	return client
}

// encodeManaged returns what is stored of a managed client under its ID.
func encodeManaged(client oauth.ManagedClient) []byte {
	head := binary.BigEndian.AppendUint64(nil, client.Version)
	return append(binary.BigEndian.AppendUint64(head, client.Generation), client.Data...)
}

func decodeManaged(id string, stored []byte) (client oauth.ManagedClient, err error) {
	if len(stored) <= 16 {
		return client, fmt.Errorf("managed client %q: %w", id, errCorrupt)
	}
	return oauth.ManagedClient{
		ID: id, Version: binary.BigEndian.Uint64(stored), Generation: binary.BigEndian.Uint64(stored[8:]), Data: slices.Clone(stored[16:]),
	}, nil
}

// managedKey is where a managed client lies in bucketManaged. No realm contains a NUL.
func managedKey(ref oauth.ClientRef) []byte { return []byte(ref.Realm + "\x00" + ref.ClientID) }

// ManagedClients implements oauth.ClientStore. It returns all of them.
func (b *Bbolt) ManagedClients(_ context.Context, realm, _ string) (oauth.ManagedClients, error) {
	all := oauth.ManagedClients{All: true}
	err := b.view(func(tx *bolt.Tx) error {
		prefix := managedKey(oauth.ClientRef{Realm: realm})
		c := tx.Bucket(bucketManaged).Cursor()
		for key, value := c.Seek(prefix); bytes.HasPrefix(key, prefix); key, value = c.Next() {
			client, err := decodeManaged(string(key[len(prefix):]), value)
			if err != nil {
				return err
			}
			all.Clients = append(all.Clients, client)
		}
		return nil
	})
	return all, err
}

// ManagedClient implements oauth.ClientStore.
func (b *Bbolt) ManagedClient(_ context.Context, ref oauth.ClientRef) (client oauth.ManagedClient, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		value := tx.Bucket(bucketManaged).Get(managedKey(ref))
		if value == nil {
			return oauth.ErrNotFound
		}
		client, err = decodeManaged(ref.ClientID, value)
		return err
	})
	return client, err
}

// ManagedClientsByID implements oauth.ClientStore. It ignores ctx: it reads mapped memory.
func (b *Bbolt) ManagedClientsByID(_ context.Context, realm string, ids []string) (clients []oauth.ManagedClient, err error) {
	clients = make([]oauth.ManagedClient, len(ids))
	err = b.view(func(tx *bolt.Tx) error {
		for i, id := range ids {
			clients[i].ID = id
			value := tx.Bucket(bucketManaged).Get(managedKey(oauth.ClientRef{Realm: realm, ClientID: id}))
			if value == nil {
				continue
			}
			if clients[i], err = decodeManaged(id, value); err != nil {
				return err
			}
		}
		return nil
	})
	return clients, err
}

// SwapManagedClient implements oauth.ClientStore.
func (b *Bbolt) SwapManagedClient(ctx context.Context, realm string, next oauth.ManagedClient) (uint64, error) {
	return swapOne(b, ctx, realm, next)
}

// SwapManagedClients implements oauth.ClientStore.
func (b *Bbolt) SwapManagedClients(ctx context.Context, realm string, clients []oauth.ManagedClient) ([]uint64, error) {
	clients = slices.Clone(clients)
	next, versions := successors(clients) // copies: the committer may use them after the caller has given up
	changed := false                      // set by the committer, as in Admit
	err := b.write(ctx, func(tx *bolt.Tx) error {
		bucket := tx.Bucket(bucketManaged)
		changed = false
		for _, client := range clients {
			var now uint64
			if value := bucket.Get(managedKey(oauth.ClientRef{Realm: realm, ClientID: client.ID})); value != nil {
				stored, err := decodeManaged(client.ID, value)
				if err != nil {
					return err
				}
				now = stored.Version
			}
			if changed = now != client.Version; changed {
				return nil
			}
		}
		for i, client := range next {
			key := managedKey(oauth.ClientRef{Realm: realm, ClientID: client.ID})
			switch {
			case client.Data != nil:
				if err := setValue(bucket, key, encodeManaged(client)); err != nil {
					return err
				}
			case clients[i].Version != 0:
				use := useKey(oauth.ClientRef{Realm: realm, ClientID: client.ID})
				if err := errors.Join(deleteValue(bucket, key), deleteValue(tx.Bucket(bucketUses), use)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case changed:
		return nil, oauth.ErrChanged
	}
	return versions, nil
}

// addManaged makes a file of version 2 one of version 3, which has room for managed clients.
func addManaged(tx *bolt.Tx) error {
	if _, err := tx.CreateBucket(bucketManaged); err != nil {
		return err
	}
	return setValue(tx.Bucket(bucketMeta), keyVersion, []byte("3"))
}

const (
	// maxManagedChanges is about how many changes of managed clients Redis remembers for each realm. A
	// gateway that has missed more reads all clients.
	maxManagedChanges = "10000"
	// managedStep is how many changes or clients are read at once.
	managedStep = 1000
)

// ManagedClients implements oauth.ClientStore.
func (r *Redis) ManagedClients(ctx context.Context, realm, since string) (answer oauth.ManagedClients, err error) {
	if since != "" {
		changed, position, ok, err := r.changedClients(ctx, realm, since)
		if err != nil {
			return answer, err
		}
		if ok {
			clients, err := r.managedByID(ctx, realm, changed)
			return oauth.ManagedClients{Clients: clients, Position: position}, err
		}
	}
	// What changes while all are being read is read again by the next question.
	answer.All = true
	if err := r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		last, err := c.Do(ctx, c.B().Xrevrange().Key(r.managedChangesKey(realm)).End("+").Start("-").Count(1).Build()).AsXRange()
		if len(last) > 0 {
			answer.Position = last[0].ID
		}
		if rueidis.IsRedisNil(err) {
			err = nil
		}
		return err
	}); err != nil {
		return answer, err
	}
	for cursor, first := uint64(0), true; first || cursor != 0; first = false {
		err := r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
			entry, err := c.Do(ctx, c.B().Hscan().Key(r.managedKey(realm)).Cursor(cursor).Count(managedStep).Build()).AsScanEntry()
			if err != nil {
				return err
			}
			cursor = entry.Cursor
			for i := 0; i+1 < len(entry.Elements); i += 2 {
				client, err := decodeManaged(entry.Elements[i], []byte(entry.Elements[i+1]))
				if err != nil {
					return err
				}
				answer.Clients = append(answer.Clients, client)
			}
			return nil
		})
		if err != nil {
			return answer, err
		}
	}
	return answer, nil
}

// changedClients returns which clients of a realm were changed after a position, and the position that
// this comes to. It returns false if Redis no longer knows that position: then it may have forgotten
// changes, too, or lost them.
func (r *Redis) changedClients(ctx context.Context, realm, since string) (ids []string, position string, ok bool, err error) {
	err = r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		entries, err := c.Do(ctx, c.B().Xrange().Key(r.managedChangesKey(realm)).Start(since).End("+").Count(managedStep).Build()).AsXRange()
		if err != nil && !rueidis.IsRedisNil(err) {
			return err
		}
		if len(entries) == 0 || len(entries) == managedStep || entries[0].ID != since {
			return nil
		}
		ok = true
		seen := make(map[string]bool)
		for _, entry := range entries[1:] {
			seen[entry.FieldValues["id"]] = true
		}
		ids, position = slices.Collect(maps.Keys(seen)), entries[len(entries)-1].ID
		return nil
	})
	return ids, position, ok, err
}

// managedByID returns clients of a realm, those that are gone with no data.
func (r *Redis) managedByID(ctx context.Context, realm string, ids []string) (clients []oauth.ManagedClient, err error) {
	if len(ids) == 0 {
		return nil, nil
	}
	err = r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		clients, err = managedAt(ctx, c, r.managedKey(realm), ids)
		return err
	})
	return clients, err
}

// managedAt reads clients from the hash at key, those that are not there with no data and version 0.
func managedAt(ctx context.Context, c rueidis.CoreClient, key string, ids []string) (clients []oauth.ManagedClient, err error) {
	values, err := c.Do(ctx, c.B().Hmget().Key(key).Field(ids...).Build()).ToArray()
	if err != nil {
		return nil, err
	}
	for i, value := range values {
		stored, err := value.AsBytes()
		client := oauth.ManagedClient{ID: ids[i]}
		if err == nil {
			client, err = decodeManaged(ids[i], stored)
		} else if rueidis.IsRedisNil(err) {
			err = nil
		}
		if err != nil {
			return nil, err
		}
		clients = append(clients, client)
	}
	return clients, nil
}

// ManagedClient implements oauth.ClientStore.
func (r *Redis) ManagedClient(ctx context.Context, ref oauth.ClientRef) (oauth.ManagedClient, error) {
	clients, err := r.managedByID(ctx, ref.Realm, []string{ref.ClientID})
	switch {
	case err != nil:
		return oauth.ManagedClient{}, err
	case clients[0].Data == nil:
		return oauth.ManagedClient{}, oauth.ErrNotFound
	}
	return clients[0], nil
}

// ManagedClientsByID implements oauth.ClientStore.
func (r *Redis) ManagedClientsByID(ctx context.Context, realm string, ids []string) (clients []oauth.ManagedClient, err error) {
	for part := range slices.Chunk(ids, managedStep) {
		some, err := r.managedByID(ctx, realm, part)
		if err != nil {
			return nil, err
		}
		clients = append(clients, some...)
	}
	return clients, nil
}

// SwapManagedClient implements oauth.ClientStore.
func (r *Redis) SwapManagedClient(ctx context.Context, realm string, next oauth.ManagedClient) (uint64, error) {
	return swapOne(r, ctx, realm, next)
}

// SwapManagedClients implements oauth.ClientStore.
func (r *Redis) SwapManagedClients(ctx context.Context, realm string, clients []oauth.ManagedClient) ([]uint64, error) {
	next, versions := successors(clients)
	changed, err := r.putManaged(ctx, realm, next, func(i int, stored uint64) bool { return stored == clients[i].Version })
	switch {
	case err != nil:
		return nil, err
	case !changed:
		return nil, oauth.ErrChanged
	}
	for _, client := range next {
		r.rememberManaged(realm, client)
	}
	return versions, nil
}

// putManaged writes managed clients, or removes them, and the changes, in one transaction, if may says
// so of the version that is stored of each. It reports whether that did.
func (r *Redis) putManaged(ctx context.Context, realm string, next []oauth.ManagedClient, may func(i int, stored uint64) bool) (allowed bool, err error) {
	if len(next) == 0 {
		return true, nil
	}
	key := r.managedKey(realm)
	ids := make([]string, 0, len(next))
	for _, client := range next {
		ids = append(ids, client.ID)
	}
	err = r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		return c.Dedicated(func(c rueidis.DedicatedClient) error {
			for {
				if err := c.Do(ctx, c.B().Watch().Key(key).Build()).Error(); err != nil {
					return err
				}
				clients, err := managedAt(ctx, c, key, ids)
				if err != nil {
					return err
				}
				var writes []rueidis.Completed
				allowed = true
				for i, client := range next {
					if allowed = may(i, clients[i].Version); !allowed {
						return c.Do(ctx, c.B().Unwatch().Build()).Error()
					}
					if client.Data != nil {
						writes = append(writes, c.B().Hset().Key(key).FieldValue().FieldValue(client.ID, rueidis.BinaryString(encodeManaged(client))).Build())
					} else {
						writes = append(writes, c.B().Hdel().Key(key).Field(client.ID).Build(), c.B().Hdel().Key(r.usesKey(realm)).Field(client.ID).Build())
					}
					writes = append(writes,
						c.B().Xadd().Key(r.managedChangesKey(realm)).Maxlen().Almost().Threshold(maxManagedChanges).Id("*").
							FieldValue().FieldValue("id", client.ID).FieldValue("version", strconv.FormatUint(client.Version, 10)).Build())
				}
				done, err := transact(ctx, c, writes...)
				if done || err != nil {
					return err
				}
				// Another gateway was quicker, perhaps with another client.
			}
		})
	})
	return allowed && err == nil, err
}

// writtenManaged is a change of a managed client that Redis has acknowledged, kept in case Redis loses
// it.
type writtenManaged struct {
	oauth.ManagedClient
	at time.Time
}

// rememberManaged keeps a change, to make it again if the link is lost soon. At most maxReplay are
// kept.
func (r *Redis) rememberManaged(realm string, client oauth.ManagedClient) {
	ref := oauth.ClientRef{Realm: realm, ClientID: client.ID}
	r.mu.Lock()
	defer r.mu.Unlock()
	now, since := time.Now(), r.keptSince()
	maps.DeleteFunc(r.writtenManaged, func(_ oauth.ClientRef, was writtenManaged) bool { return was.at.Before(since) })
	if len(r.writtenManaged) < maxReplay || r.writtenManaged[ref].Version != 0 {
		r.writtenManaged[ref] = writtenManaged{client, now}
	}
}

// repeatManaged makes again the changes made shortly before the link was lost, and since; see
// repeatRevocations.
func (r *Redis) repeatManaged(ctx context.Context) error {
	byRealm := make(map[string]map[string]writtenManaged) // by realm and client ID
	r.mu.Lock()
	since := r.keptSince()
	for ref, was := range r.writtenManaged {
		if was.at.Before(since) {
			continue
		}
		if byRealm[ref.Realm] == nil {
			byRealm[ref.Realm] = make(map[string]writtenManaged)
		}
		byRealm[ref.Realm][ref.ClientID] = was
	}
	r.mu.Unlock()
	for realm, written := range byRealm {
		if err := r.deleteKept(ctx, realm, written); err != nil {
			return err
		}
		for _, was := range written {
			older := func(_ int, stored uint64) bool { return stored < was.Version && (stored != 0 || was.Data != nil) }
			if _, err := r.putManaged(ctx, realm, []oauth.ManagedClient{was.ManagedClient}, older); err != nil {
				return err
			}
		}
	}
	return nil
}

// deleteKept deletes from written, which is by client ID, the changes of a realm that Redis still knows of:
// if such a client is gone, somebody has removed it. A change was written together with what it is about,
// so neither is lost without the other. Gateways of earlier versions wrote no versions.
func (r *Redis) deleteKept(ctx context.Context, realm string, written map[string]writtenManaged) error {
	for end, more := "+", true; more && len(written) > 0; {
		err := r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
			entries, err := c.Do(ctx, c.B().Xrevrange().Key(r.managedChangesKey(realm)).End(end).Start("-").Count(managedStep).Build()).AsXRange()
			if err != nil && !rueidis.IsRedisNil(err) {
				return err
			}
			for _, entry := range entries {
				id := entry.FieldValues["id"]
				if version, err := strconv.ParseUint(entry.FieldValues["version"], 10, 64); err == nil && written[id].Version == version {
					delete(written, id)
				}
				end = entry.ID // which comes again
			}
			more = len(entries) == managedStep
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// The braces keep a realm's clients and their changes on one node of a Cluster.
func (r *Redis) managedKey(realm string) string {
	return r.cfg.Prefix + "{realm:" + realm + "}:managed"
}

func (r *Redis) managedChangesKey(realm string) string {
	return r.cfg.Prefix + "{realm:" + realm + "}:managed-changes"
}
