package introspect

import (
	"crypto/sha256"
	"time"
)

// generationShards generations of 8 bytes: a revocation makes the cache forget one entry in
// 65536 besides the one it is about.
const generationShards = 1 << 16

const (
	nextGeneration = 1 << 20
	revokingMask   = nextGeneration - 1 // a million at once in one shard, which no server reaches
)

// Flush makes the cache forget everything at once. When it returns, no entry counts any
// more, and no lookup that is still under way will store one that does.
func (c *Cache) Flush() {
	c.global.Add(1)
	// Nothing is cleared here: ristretto's Clear is not atomic, so it could promise nothing.
	// The dead entries leave when they expire.
}

// Forget makes the cache forget what the source of that name said about a token; see
// [CachedSource.Forget].
func (c *Cache) Forget(name string, id TokenID) {
	c.revoking(keyOf(sha256.Sum256([]byte(name)), id))()
}

// Forget makes the cache forget a token. No lookup that begins after Forget has returned sees
// anything found before.
func (s *CachedSource) Forget(id TokenID) { s.Revoking(id)() }

// Revoking announces that a token is about to be revoked. From then on, every lookup of it
// asks the source until done is called, which does what Forget does. A revocation calls
// Revoking, has the store revoke, calls done whatever the store said, and only then reports
// success. Without the announcement, one lookup could learn from the store that the token is
// gone while the next still finds it in the cache.
func (s *CachedSource) Revoking(id TokenID) (done func()) {
	return s.cache.revoking(keyOf(s.name, id))
}

func (c *Cache) revoking(key cacheKey) (done func()) {
	h := c.cfg.hash(key)
	shard := &c.generations[h%generationShards]
	shard.Add(1)
	return func() {
		// The generation first: it alone makes the revocation hold. Deleting frees memory.
		shard.Add(nextGeneration - 1)
		c.mu.RLock()
		defer c.mu.RUnlock()
		if !c.closed.Load() {
			c.items.Del(h)
		}
	}
}

// forgotten is a call of ForgetClient or ForgetSource: it ends the entries of a source, or of
// one of its clients, for which the source was asked before the call.
type forgotten struct {
	source [sha256.Size]byte
	client string
	all    bool   // every client
	number uint64 // of the call: entries with a smaller Cache.forgets are dead
	at     time.Duration
}

// maxForgotten is how many calls are remembered. Every hit looks through them, for as long as
// entries from before them may be alive. Beyond this bound everything is flushed instead.
const maxForgotten = 64

// ForgetClient makes the cache forget what the source of that name said about all tokens of
// a client. No lookup that begins after ForgetClient has returned sees anything found before.
func (c *Cache) ForgetClient(name, clientID string) {
	c.forget(forgotten{source: sha256.Sum256([]byte(name)), client: clientID})
}

// ForgetSource makes the cache forget everything that the source of that name said. No lookup
// that begins after ForgetSource has returned sees anything found before.
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
			// Entries from before an old enough call have expired, and f covers calls for the
			// same client or source.
			if int64(f.at-old.at) < c.longest.Load() && !(old.source == f.source && (f.all || !old.all && old.client == f.client)) {
				list = append(list, old)
			}
		}
	}
	if len(list) > maxForgotten {
		c.Flush()
		list = nil
	}
	// The list first: whoever reads the new number asked after this call began.
	c.forgotten.Store(&list)
	c.forgets.Store(f.number)
}

// forgot reports whether e predates a call that covers it.
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

// entriesLive records that some entries may live this long.
func (c *Cache) entriesLive(life time.Duration) {
	for {
		longest := c.longest.Load()
		if int64(life) <= longest || c.longest.CompareAndSwap(longest, int64(life)) {
			return
		}
	}
}
