package introspect

import (
	"crypto/sha256"
	"time"
)

// 65536 generations of 8 bytes: a revocation makes the cache forget one entry in
// 65536 besides the one it is about.
const generationShards = 1 << 16

const (
	nextGeneration = 1 << 20
	revokingMask   = nextGeneration - 1 // a million at once in one shard, which no server has
)

// Flush makes the cache forget everything, at once: entries stop counting when Flush
// returns, and so do fills that are under way.
func (c *Cache) Flush() {
	c.global.Add(1)
	// Nothing is cleared here. ristretto's Clear is not atomic, so it could promise
	// nothing; the dead entries leave by their own expiry.
}

// Forget makes the cache forget what the source of that name said of a token, like
// [CachedSource.Forget].
func (c *Cache) Forget(name string, id TokenID) {
	c.revoking(keyOf(sha256.Sum256([]byte(name)), id))()
}

// Forget makes the cache forget a token: once Forget has returned, no lookup that
// begins later sees what was found out before.
func (s *CachedSource) Forget(id TokenID) { s.Revoking(id)() }

// Revoking announces that a token is about to be revoked. From then on every lookup of
// it asks the source, until done is called, which does what Forget does. A revocation
// calls Revoking, then has the store revoke, then calls done, whatever the store said,
// then tells of it. Without the announcement, one lookup could find in the store that
// the token is gone while the next still finds it in the cache.
func (s *CachedSource) Revoking(id TokenID) (done func()) {
	return s.cache.revoking(keyOf(s.name, id))
}

func (c *Cache) revoking(key cacheKey) (done func()) {
	h := c.cfg.hash(key)
	shard := &c.generations[h%generationShards]
	shard.Add(1)
	return func() {
		// First the generation: it alone makes the revocation hold. Deleting frees memory.
		shard.Add(nextGeneration - 1)
		c.mu.RLock()
		defer c.mu.RUnlock()
		if !c.closed.Load() {
			c.items.Del(h)
		}
	}
}

// forgotten is what one call of ForgetClient or ForgetSource made die: the entries of a
// source, or of a client in it, whose source was asked before that call.
type forgotten struct {
	source [sha256.Size]byte
	client string
	all    bool   // every client
	number uint64 // of the call: it counts against entries with a smaller Cache.forgets
	at     time.Duration
}

// maxForgotten bounds the calls that are remembered. They are looked through on every hit,
// for as long as entries from before them may be alive; beyond the bound everything is
// flushed instead.
const maxForgotten = 64

// ForgetClient makes the cache forget what the source of that name said of all tokens of a
// client. Once it has returned, no lookup that begins later sees what was found out before.
func (c *Cache) ForgetClient(name, clientID string) {
	c.forget(forgotten{source: sha256.Sum256([]byte(name)), client: clientID})
}

// ForgetSource makes the cache forget all that the source of that name said, likewise.
func (c *Cache) ForgetSource(name string) {
	c.forget(forgotten{source: sha256.Sum256([]byte(name)), all: true})
}

func (c *Cache) forget(f forgotten) {
	c.forgetting.Lock()
	defer c.forgetting.Unlock()
	f.number = c.forgets.Load() + 1
	f.at = c.cfg.Elapsed()
	list := []forgotten{f}
	if before := c.forgotten.Load(); before != nil {
		for _, old := range *before {
			// Entries from before it have died of age; those of the same are covered by f.
			if int64(f.at-old.at) < c.longest.Load() && !(old.source == f.source && (f.all || !old.all && old.client == f.client)) {
				list = append(list, old)
			}
		}
	}
	if len(list) > maxForgotten {
		c.Flush()
		list = nil
	}
	// The list first: whoever reads the new number has asked after this call began.
	c.forgotten.Store(&list)
	c.forgets.Store(f.number)
}

// forgot reports whether e is from before a call that was about it.
func (c *Cache) forgot(e *entry) bool {
	list := c.forgotten.Load()
	if list == nil {
		return false
	}
	for i := range *list {
		f := &(*list)[i]
		if e.forgets < f.number && f.source == [sha256.Size]byte(e.key[:sha256.Size]) && (f.all || f.client == e.facts.ClientID) {
			return true
		}
	}
	return false
}

// entriesLive notes that some entries may live so long.
func (c *Cache) entriesLive(life time.Duration) {
	for {
		longest := c.longest.Load()
		if int64(life) <= longest || c.longest.CompareAndSwap(longest, int64(life)) {
			return
		}
	}
}
