package introspect

import (
	"crypto/sha256"
	"crypto/subtle"
	"sync"
	"time"
)

// negatives remember which tokens a source called no good. They have a place of their
// own: in ristretto, 200000 random tokens push out all that are in use.
//
// It is a ring that forgets the oldest, exact and bounded. All lifetimes are short and
// alike, so what leaves first would end first anyway, and there is nothing that an order
// of last use, or ristretto's sketch of frequencies, could keep longer. What counts is
// judged by those who ask, with the generations as in an entry.
type negatives struct {
	mu   sync.Mutex
	most int
	ring []negative     // grows to most, of 112 bytes each
	next int            // the slot to write next, once the ring has grown
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
	most       time.Duration // how long after that it holds
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
	if len(n.ring) < n.most {
		n.at[no.hash] = len(n.ring)
		n.ring = append(n.ring, no)
		return
	}
	// A slot that was dropped has no place in the map, or has another's.
	if old := n.ring[n.next].hash; n.at[old] == n.next {
		delete(n.at, old)
	}
	n.ring[n.next] = no
	n.at[no.hash] = n.next
	n.next = (n.next + 1) % n.most
}

func (n *negatives) drop(h uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if slot, ok := n.at[h]; ok {
		delete(n.at, h)
		n.ring[slot] = negative{}
	}
}

// refuse takes note that the source said no to the question of a, and remembers it for most.
func (s *CachedSource) refuse(a *answer, key cacheKey, h uint64, asked, most time.Duration) {
	c := s.cache
	// What it said before is over, for those who would still use it as well. This raises
	// the generation only where there is such an entry, so a flood of wrong tokens ends
	// nobody's.
	if _, ok := s.current(key); ok {
		// If this fails, a revocation in the shard has ended the entry, or is about to.
		if c.generations[h%generationShards].CompareAndSwap(a.generation, a.generation+nextGeneration) {
			// Nobody else revoked in between, so this "no" is current still.
			a.generation += nextGeneration
		}
		c.mu.RLock()
		if !c.closed.Load() {
			c.items.Del(h)
		}
		c.mu.RUnlock()
	}
	if most > 0 {
		c.negatives.add(negative{key: key, hash: h, generation: a.generation, global: a.global, forgets: a.forgets, asked: asked, most: most})
	}
}

// refused reports whether the source is remembered to have said no, less than maxAge ago.
func (s *CachedSource) refused(key cacheKey, maxAge time.Duration) bool {
	if maxAge <= 0 || s.told != nil && !s.told.Coherent() {
		return false
	}
	c := s.cache
	h := c.cfg.hash(key)
	n, ok := c.negatives.get(h)
	return ok && !c.closed.Load() &&
		subtle.ConstantTimeCompare(n.key[:], key[:]) == 1 &&
		n.generation == c.generations[h%generationShards].Load() && n.global == c.global.Load() &&
		!c.forgotNegative(&n) && c.cfg.Elapsed()-n.asked < min(maxAge, n.most)
}

// forgotNegative reports whether n is from before a call of ForgetClient or ForgetSource
// that may have been about it: whose token it was, the source did not say.
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
