package introspect

import "time"

// WithHash returns cfg with another hash of keys.
func WithHash(cfg CacheConfig, hash func(key []byte) uint64) CacheConfig {
	cfg.hash = func(k cacheKey) uint64 { return hash(k[:]) }
	return cfg
}

// Wait returns when ristretto has applied all that was stored before.
func (c *Cache) Wait() { c.items.Wait() }

// Held reports whether ristretto holds an entry for token, whether or not it counts, and for
// how much longer. Zero means forever.
func (s *CachedSource) Held(token string) (time.Duration, bool) {
	key := keyOf(s.name, IDOf(token))
	return s.cache.items.GetTTL(s.cache.cfg.hash(key))
}

// Until returns when the latest entry for token stops counting by the wall clock.
func (s *CachedSource) Until(token string) time.Time {
	return s.cache.latest(s.cache.cfg.hash(keyOf(s.name, IDOf(token)))).Load().until
}

// UnderWay returns how many lookups hold a place.
func (s *CachedSource) UnderWay() int { return len(s.slots) }
