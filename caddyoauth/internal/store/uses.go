package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/redis/rueidis"
	bolt "go.etcd.io/bbolt"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// The stores' implementations of oauth.UsageStore.

// usesStep is how many clients' uses are read or written at once, so that tokens need not wait for long.
const usesStep = 500

// storedUse is the stored form of an oauth.Use. Times are in unix milliseconds.
type storedUse struct {
	Token       int64            `json:"t,omitempty"`
	Seen        int64            `json:"s,omitempty"`
	From        string           `json:"f,omitempty"`
	Method      string           `json:"m,omitempty"`
	Credential  string           `json:"c,omitempty"`
	Credentials map[string]int64 `json:"u,omitempty"`
	Dropped     int64            `json:"d,omitempty"`
}

func encodeUse(use oauth.Use) ([]byte, error) {
	stored := storedUse{Token: milli(use.Token), Seen: milli(use.Seen), From: use.From, Method: use.Method, Credential: use.Credential, Dropped: milli(use.Dropped)}
	for name, at := range use.Credentials {
		if stored.Credentials == nil {
			stored.Credentials = make(map[string]int64, len(use.Credentials))
		}
		stored.Credentials[name] = milli(at)
	}
	return json.Marshal(stored)
}

// decodeUse returns a use. What can't be read is none: the next use of the client takes its place.
func decodeUse(value []byte) (use oauth.Use, ok bool) {
	var stored storedUse
	if json.Unmarshal(value, &stored) != nil {
		return use, false
	}
	use = oauth.Use{Token: ofMilli(stored.Token), Seen: ofMilli(stored.Seen), From: stored.From, Method: stored.Method, Credential: stored.Credential, Dropped: ofMilli(stored.Dropped)}
	for name, at := range stored.Credentials {
		if use.Credentials == nil {
			use.Credentials = make(map[string]time.Time, len(stored.Credentials))
		}
		use.Credentials[name] = ofMilli(at)
	}
	return use, true
}

// milli and ofMilli turn a time into unix milliseconds and back, the zero time into 0.
func milli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func ofMilli(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMilli(n).UTC()
}

// merged returns the stored form of what is stored already and a further use.
func merged(stored []byte, use oauth.Use) ([]byte, error) {
	was, _ := decodeUse(stored)
	return encodeUse(was.Merge(use))
}

// realmUses is what Memory keeps of a realm.
type realmUses struct {
	since time.Time
	// clients has an entry for each client that was registered when it was used, until ForgetUses.
	clients map[string]oauth.Use
}

// AddUses implements oauth.UsageStore.
func (m *Memory) AddUses(_ context.Context, realm string, uses map[string]oauth.Use) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return oauth.ErrClosed
	}
	kept := m.uses[realm]
	if kept == nil {
		kept = &realmUses{since: ofMilli(m.now().UnixMilli()), clients: make(map[string]oauth.Use)}
		m.uses[realm] = kept
	}
	for id, use := range uses {
		kept.clients[id] = kept.clients[id].Merge(use)
	}
	return nil
}

// Uses implements oauth.UsageStore.
func (m *Memory) Uses(_ context.Context, realm string, ids []string) (oauth.Uses, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return oauth.Uses{}, oauth.ErrClosed
	}
	answer := oauth.Uses{Clients: make(map[string]oauth.Use)}
	kept := m.uses[realm]
	switch {
	case kept == nil:
		return answer, nil
	case ids == nil:
		maps.Copy(answer.Clients, kept.clients)
	}
	answer.Since = kept.since
	for _, id := range ids {
		if use, ok := kept.clients[id]; ok {
			answer.Clients[id] = use
		}
	}
	return answer, nil
}

// ForgetUses implements oauth.UsageStore.
func (m *Memory) ForgetUses(_ context.Context, realm string, ids []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return oauth.ErrClosed
	}
	for _, id := range ids {
		m.forgetUse(oauth.ClientRef{Realm: realm, ClientID: id})
	}
	return nil
}

func (m *Memory) forgetUse(client oauth.ClientRef) {
	if kept := m.uses[client.Realm]; kept != nil {
		delete(kept.clients, client.ClientID)
	}
}

// useKey is where the use of a client lies in bucketUses. Without a client, it is since when uses of
// the realm are kept, in unix milliseconds.
func useKey(ref oauth.ClientRef) []byte { return managedKey(ref) }

// AddUses implements oauth.UsageStore. What it writes at once shares a sync with the tokens of that moment.
func (b *Bbolt) AddUses(ctx context.Context, realm string, uses map[string]oauth.Use) error {
	since := useKey(oauth.ClientRef{Realm: realm})
	for part := range slices.Chunk(append([]string{""}, slices.Sorted(maps.Keys(uses))...), usesStep) {
		// The committer may do it after the caller has given up, and read uses then.
		these := make(map[string]oauth.Use, len(part))
		for _, id := range part {
			these[id] = uses[id]
		}
		err := b.write(ctx, func(tx *bolt.Tx) error {
			bucket := tx.Bucket(bucketUses)
			if bucket.Get(since) == nil {
				if err := setValue(bucket, since, binary.BigEndian.AppendUint64(nil, uint64(b.now().UnixMilli()))); err != nil {
					return err
				}
			}
			for _, id := range part {
				if id == "" {
					continue
				}
				key := useKey(oauth.ClientRef{Realm: realm, ClientID: id})
				value, err := merged(bucket.Get(key), these[id])
				if err != nil {
					return err
				}
				if err := setValue(bucket, key, value); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Uses implements oauth.UsageStore. It ignores ctx: it reads mapped memory.
func (b *Bbolt) Uses(_ context.Context, realm string, ids []string) (oauth.Uses, error) {
	answer := oauth.Uses{Clients: make(map[string]oauth.Use)}
	err := b.view(func(tx *bolt.Tx) error {
		bucket, prefix := tx.Bucket(bucketUses), useKey(oauth.ClientRef{Realm: realm})
		if since := bucket.Get(prefix); len(since) == 8 {
			answer.Since = ofMilli(int64(binary.BigEndian.Uint64(since)))
		}
		for _, id := range ids {
			if use, ok := decodeUse(bucket.Get(useKey(oauth.ClientRef{Realm: realm, ClientID: id}))); ok {
				answer.Clients[id] = use
			}
		}
		if ids != nil {
			return nil
		}
		c := bucket.Cursor()
		for key, value := c.Seek(prefix); bytes.HasPrefix(key, prefix); key, value = c.Next() {
			if use, ok := decodeUse(value); ok && len(key) > len(prefix) {
				answer.Clients[string(key[len(prefix):])] = use
			}
		}
		return nil
	})
	return answer, err
}

// ForgetUses implements oauth.UsageStore.
func (b *Bbolt) ForgetUses(ctx context.Context, realm string, ids []string) error {
	for part := range slices.Chunk(slices.Clone(ids), usesStep) {
		err := b.write(ctx, func(tx *bolt.Tx) error {
			for _, id := range part {
				if err := deleteValue(tx.Bucket(bucketUses), useKey(oauth.ClientRef{Realm: realm, ClientID: id})); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// addUses gives a file room for what clients did last, if it has none yet. A file of version 3 or later need not
// have it: losing it ends no token and lets nobody in.
func addUses(tx *bolt.Tx) error {
	_, err := tx.CreateBucketIfNotExists(bucketUses)
	return err
}

// sinceField is the field of a realm's uses that says since when they are kept, in unix milliseconds. No
// client has this ID.
const sinceField = ""

// AddUses implements oauth.UsageStore. Each usesStep clients are one transaction. It begins anew if
// another gateway was quicker.
func (r *Redis) AddUses(ctx context.Context, realm string, uses map[string]oauth.Use) error {
	for ids := range slices.Chunk(append([]string{sinceField}, slices.Sorted(maps.Keys(uses))...), usesStep) {
		for done := false; !done; {
			err := r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
				return c.Dedicated(func(c rueidis.DedicatedClient) (err error) {
					done, err = r.tryAddUses(ctx, c, realm, ids, uses)
					return err
				})
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// tryAddUses makes one attempt to merge the uses of some clients. It reports false if another gateway has
// written meanwhile.
func (r *Redis) tryAddUses(ctx context.Context, c rueidis.DedicatedClient, realm string, ids []string, uses map[string]oauth.Use) (bool, error) {
	key := r.usesKey(realm)
	if err := c.Do(ctx, c.B().Watch().Key(key).Build()).Error(); err != nil {
		return false, err
	}
	stored, err := c.Do(ctx, c.B().Hmget().Key(key).Field(ids...).Build()).ToArray()
	if err != nil {
		return false, err
	}
	set, n := c.B().Hset().Key(key).FieldValue(), 0
	for i, id := range ids {
		was, err := stored[i].AsBytes()
		if err != nil && !rueidis.IsRedisNil(err) {
			return false, err
		}
		value := []byte(strconv.FormatInt(time.Now().UnixMilli(), 10))
		switch {
		case id != sinceField:
			if value, err = merged(was, uses[id]); err != nil {
				return false, err
			}
		case was != nil:
			continue
		}
		set, n = set.FieldValue(id, string(value)), n+1
	}
	if n == 0 {
		return true, c.Do(ctx, c.B().Unwatch().Build()).Error()
	}
	return transact(ctx, c, set.Build())
}

// Uses implements oauth.UsageStore.
func (r *Redis) Uses(ctx context.Context, realm string, ids []string) (oauth.Uses, error) {
	answer := oauth.Uses{Clients: make(map[string]oauth.Use)}
	take := func(id string, value []byte) {
		if id == sinceField {
			if since, err := strconv.ParseInt(string(value), 10, 64); err == nil {
				answer.Since = ofMilli(since)
			}
		} else if use, ok := decodeUse(value); ok {
			answer.Clients[id] = use
		}
	}
	if ids == nil {
		return answer, r.scanUses(ctx, realm, take)
	}
	for part := range slices.Chunk(append([]string{sinceField}, ids...), managedStep) {
		err := r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
			values, err := c.Do(ctx, c.B().Hmget().Key(r.usesKey(realm)).Field(part...).Build()).ToArray()
			if err != nil {
				return err
			}
			for i, value := range values {
				stored, err := value.AsBytes()
				switch {
				case err == nil:
					take(part[i], stored)
				case !rueidis.IsRedisNil(err):
					return err
				}
			}
			return nil
		})
		if err != nil {
			return oauth.Uses{}, err
		}
	}
	return answer, nil
}

// scanUses calls take with each field of a realm's uses, perhaps more than once.
func (r *Redis) scanUses(ctx context.Context, realm string, take func(id string, value []byte)) error {
	for cursor, first := uint64(0), true; first || cursor != 0; first = false {
		err := r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
			entry, err := c.Do(ctx, c.B().Hscan().Key(r.usesKey(realm)).Cursor(cursor).Count(managedStep).Build()).AsScanEntry()
			if err != nil {
				return err
			}
			cursor = entry.Cursor
			for i := 0; i+1 < len(entry.Elements); i += 2 {
				take(entry.Elements[i], []byte(entry.Elements[i+1]))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ForgetUses implements oauth.UsageStore.
func (r *Redis) ForgetUses(ctx context.Context, realm string, ids []string) error {
	for part := range slices.Chunk(ids, usesStep) {
		err := r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
			return c.Do(ctx, c.B().Hdel().Key(r.usesKey(realm)).Field(part...).Build()).Error()
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// usesKey is on the node of a Cluster that has the realm's managed clients, with which uses go.
func (r *Redis) usesKey(realm string) string { return r.cfg.Prefix + "{realm:" + realm + "}:uses" }

// isUsesKey reports whether a key is the usesKey of a realm. What changes there is nothing that gateways
// go by.
func (r *Redis) isUsesKey(key string) bool {
	return len(key) > len(r.usesKey("")) && key == r.usesKey(key[len(r.cfg.Prefix+"{realm:"):len(key)-len("}:uses")])
}
