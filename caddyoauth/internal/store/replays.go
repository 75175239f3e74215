package store

import (
	"container/heap"
	"context"
	"encoding/binary"
	"time"

	"github.com/redis/rueidis"
	bolt "go.etcd.io/bbolt"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// The stores' implementations of oauth.ReplayStore.

// used are the IDs that a Memory remembers, at most maxMemoryTokens, and a quarter of that for one client,
// so that it can't shut out all others. order has them by their end. users has an entry for each client
// that has used some of them.
type used struct {
	ids   map[oauth.ReplayID]struct{}
	order usedHeap
	users map[oauth.ClientRef]*holder
}

type usedID struct {
	until int64 // unix milliseconds
	id    oauth.ReplayID
	user  *holder
}

// Once implements oauth.ReplayStore. It forgets the IDs that are over.
func (m *Memory) Once(_ context.Context, id oauth.ReplayID, client oauth.ClientRef, until time.Time) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false, oauth.ErrClosed
	}
	for now := m.now().UnixMilli(); len(m.used.order) > 0 && m.used.order[0].until <= now; {
		over := heap.Pop(&m.used.order).(usedID)
		delete(m.used.ids, over.id)
		if over.user.keys--; over.user.keys == 0 {
			delete(m.used.users, over.user.client)
		}
	}
	if _, again := m.used.ids[id]; again {
		return false, nil
	}
	user := m.used.users[client]
	switch {
	case user != nil && user.keys >= m.max/4:
		return false, oauth.ErrClientFull
	case len(m.used.ids) >= m.max:
		return false, oauth.ErrFull
	case user == nil:
		user = &holder{client: client}
		m.used.users[client] = user
	}
	user.keys++
	m.used.ids[id] = struct{}{}
	heap.Push(&m.used.order, usedID{until.UnixMilli(), id, user})
	return true, nil
}

// usedHeap has the IDs that end first at its top.
type usedHeap []usedID

func (h usedHeap) Len() int           { return len(h) }
func (h usedHeap) Less(i, j int) bool { return h[i].until < h[j].until }
func (h usedHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *usedHeap) Push(id any)       { *h = append(*h, id.(usedID)) }
func (h *usedHeap) Pop() any {
	old := *h
	id := old[len(old)-1]
	*h = old[:len(old)-1]
	return id
}

// Once implements oauth.ReplayStore.
func (b *Bbolt) Once(ctx context.Context, id oauth.ReplayID, _ oauth.ClientRef, until time.Time) (bool, error) {
	first := false // set by the committer, as in Admit
	err := b.write(ctx, func(tx *bolt.Tx) error {
		ids := tx.Bucket(bucketUsed)
		if first = ids.Get(id[:]) == nil; !first {
			return nil
		}
		end := binary.BigEndian.AppendUint64(nil, uint64(until.UnixMilli()))
		if err := setValue(ids, id[:], end); err != nil {
			return err
		}
		return setValue(tx.Bucket(bucketUsedUntil), append(end, id[:]...), []byte{1})
	})
	return err == nil && first, err
}

// forgetUsed deletes the ID that ends with a key of bucketUsedUntil.
func forgetUsed(tx *bolt.Tx, key []byte) error { return deleteValue(tx.Bucket(bucketUsed), key[8:]) }

// Once implements oauth.ReplayStore. Redis forgets the ID when it is over by its own clock.
func (r *Redis) Once(ctx context.Context, id oauth.ReplayID, _ oauth.ClientRef, until time.Time) (first bool, err error) {
	if r.evicts.Load() {
		return false, ErrEvicts
	}
	err = r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		first, err = isNew(c.Do(ctx, r.useCommand(c, "used:", id, until)))
		return err
	})
	return err == nil && first, err
}
