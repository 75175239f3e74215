package introspect

import (
	"crypto/sha256"
	"crypto/subtle"
	"sync"
	"time"
)

// negatives holds the tokens that a source called inactive. They are kept out of ristretto,
// where 200000 random tokens would push out every token in use.
//
// It is a ring that forgets the oldest, exact and bounded. All lifetimes are short and
// similar, so what leaves first would expire first anyway: neither an order of last use nor
// ristretto's sketch of frequencies could keep anything useful longer. The caller judges
// whether a negative counts, by its generations as for an entry.
type negatives struct {
	mu   sync.Mutex
	max  int
	ring []negative     // grows to max, of 120 bytes each
	next int            // the slot to write next, once the ring is full
	at   map[uint64]int // slots by hash
}

// negative is a source's "no" to one token.
type negative struct {
	key        cacheKey
	hash       uint64
	generation uint64
	global     uint64
	forgets    uint64
	asked      time.Duration
	lifetime   time.Duration // from asked
	facts      *Facts        // inactive, and shared: they say why
}

func (n *negatives) get(h uint64) (negative, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	slot, ok := n.at[h]
	if !ok {
		return negative{}, false
	}
	return n.ring[slot], true
}

func (n *negatives) add(no negative) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if slot, ok := n.at[no.hash]; ok {
		n.ring[slot] = no
		return
	}
	if len(n.ring) < n.max {
		n.at[no.hash] = len(n.ring)
		n.ring = append(n.ring, no)
		return
	}
	// A dropped slot has no place in the map, or the place belongs to another slot now.
	if old := n.ring[n.next].hash; n.at[old] == n.next {
		delete(n.at, old)
	}
	n.ring[n.next] = no
	n.at[no.hash] = n.next
	n.next = (n.next + 1) % n.max
}

func (n *negatives) drop(h uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if slot, ok := n.at[h]; ok {
		delete(n.at, h)
		n.ring[slot] = negative{}
	}
}

// refuse records that the source said no to the question of a, and remembers it for lifetime.
func (s *CachedSource) refuse(a *answer, key cacheKey, h uint64, asked, lifetime time.Duration) {
	c := s.cache
	// What the source said before is void, for callers of StaleFor too. The generation is raised
	// only if there is such an entry, so a flood of bad tokens ends nobody else's.
	if _, ok := s.current(key); ok {
		// If this fails, a revocation in the shard has ended the entry or is about to.
		if c.generations[h%generationShards].CompareAndSwap(a.generation, a.generation+nextGeneration) {
			// Nobody else revoked in between, so this "no" is still current.
			a.generation += nextGeneration
		}
		c.mu.RLock()
		if !c.closed.Load() {
			c.items.Del(h)
		}
		c.mu.RUnlock()
	}
	if lifetime > 0 {
		c.negatives.add(negative{key: key, hash: h, generation: a.generation, global: a.global, forgets: a.forgets, asked: asked, lifetime: lifetime, facts: a.facts})
	}
}

// refused returns what the source said if it said no less than maxAge ago, and that still
// holds.
func (s *CachedSource) refused(key cacheKey, maxAge time.Duration) (*Facts, bool) {
	if maxAge <= 0 || s.coherent != nil && !s.coherent.Coherent() {
		return nil, false
	}
	c := s.cache
	h := c.cfg.hash(key)
	n, ok := c.negatives.get(h)
	counts := ok && !c.closed.Load() &&
		subtle.ConstantTimeCompare(n.key[:], key[:]) == 1 &&
		n.generation == c.generations[h%generationShards].Load() && n.global == c.global.Load() &&
		!c.forgotNegative(&n) && c.cfg.Elapsed()-n.asked < min(maxAge, n.lifetime)
	return n.facts, counts
}

// forgotNegative reports whether n predates a call of ForgetClient or ForgetSource that may
// have been about it. The source did not say whose token it was.
func (c *Cache) forgotNegative(n *negative) bool {
	list := c.forgotten.Load()
	if list == nil {
		return false
	}
	for i := range *list {
		f := &(*list)[i]
		if n.forgets < f.number && f.source == [sha256.Size]byte(n.key[:sha256.Size]) {
			return true
		}
	}
	return false
}
