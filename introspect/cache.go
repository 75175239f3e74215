package introspect

import (
	"crypto/sha256"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"
	"golang.org/x/sync/singleflight"
)

// Cache remembers facts. One cache serves any number of sources; see [Cache.Wrap].
//
// It is built on ristretto but relies on it for nothing: ristretto may drop a write, apply
// it late, or apply it after a deletion. Generations make the cache correct. Every entry
// carries the generation that was current before its source was asked, and counts only
// while that generation is still current. A revocation raises the generation first and
// deletes second. So a lookup that began before the revocation is never believed after it,
// in whatever order ristretto applies the two.
//
// A source's "no" is remembered only if [SourceConfig] asks for it, and apart from the
// facts.
//
// Memory is bounded by CacheConfig.MaxSize for the entries, plus ten counters of 4 bytes for
// each of CacheConfig.MaxTokens, CacheConfig.MaxNegatives entries of about 0.2 KiB, and
// 512 KiB of generations. Create a Cache with [NewCache] and end it with [Cache.Close]. It
// is safe for concurrent use.
type Cache struct {
	cfg  CacheConfig
	seed maphash.Seed
	// clocks reads CacheConfig.Now and CacheConfig.Elapsed.
	clocks func() (time.Time, time.Duration)

	// generations are the current ones, each for a shard of the keys. They only grow. The low
	// bits count the revocations under way in the shard; see Revoking.
	generations [generationShards]atomic.Uint64
	// global is the generation of the whole cache.
	global atomic.Uint64

	// forgets counts the calls of ForgetClient and ForgetSource. forgotten holds the calls that
	// some entries may still predate; see cache_forget.go.
	forgets    atomic.Uint64
	forgotten  atomic.Pointer[[]forgotten]
	forgetting sync.Mutex
	// longest is the longest lifetime that any entry may have, in nanoseconds.
	longest atomic.Int64

	// mu keeps ristretto open while it is in use: Get, Set and Del panic or race if Close runs
	// at the same time.
	mu     sync.RWMutex
	closed atomic.Bool // written under mu
	items  *ristretto.Cache[uint64, *entry]

	negatives negatives

	// recent holds the latest entries, each in the slot that its hash selects. ristretto applies
	// a write with a delay, and requests in that moment would ask the source again.
	recent [maxRecent]atomic.Pointer[entry]

	bounds atomic.Pointer[bounds] // written under mu

	flights singleflight.Group
}

const (
	// maxRecent is how many entries are held beside those in ristretto.
	maxRecent = 1 << 10
	// minSlot holds most tokens. A small cache has fewer slots rather than smaller ones.
	minSlot = 8 << 10
)

// bounds are derived from CacheConfig.MaxTokens and CacheConfig.MaxSize; sizes are in bytes.
// An eighth of MaxSize is for Cache.recent, whose slots share it; an entry that is too large
// for a slot gets none.
type bounds struct {
	tokens, size int64
	minCost      int64  // what an entry counts at least, so that no more than tokens fit
	maxCost      int64  // what all entries in ristretto together may count
	maxEntry     int64  // the size of the largest entry that is kept
	slots        uint64 // in Cache.recent
	maxSlot      int64  // the size of the largest entry that gets a slot
}

func boundsOf(tokens, size int64) *bounds {
	if tokens == 0 {
		tokens = 100_000
	}
	if size == 0 {
		size = max(128<<20, tokens<<10)
	}
	b := &bounds{tokens: tokens, size: size}
	share := size / 8
	b.minCost = max((size-share)/tokens, 1)
	b.maxCost = b.minCost * tokens
	b.maxEntry = b.maxCost / 8
	slots := max(min(tokens, maxRecent, share/minSlot), 1)
	b.slots, b.maxSlot = uint64(slots), share/slots
	return b
}

// latest returns the slot in recent for a hash.
func (c *Cache) latest(h uint64) *atomic.Pointer[entry] { return &c.recent[h%c.bounds.Load().slots] }

// CacheConfig are the settings of a Cache. The zero value of each field is its default.
type CacheConfig struct {
	// MaxTokens is the maximum number of cached tokens. Default: 100000.
	MaxTokens int64

	// MaxSize is the maximum memory for cached tokens, in bytes: about 0.7 KiB for each, plus
	// its Claims. A token that would take more than a ninth of it is not cached. The process
	// takes up to two and a half times as much, because Go collects discarded memory only now
	// and then. Default: 128 MiB, or 1 KiB for each of MaxTokens if that is more.
	MaxSize int64

	// MaxAgeNoExpiry is how long facts without Expiry are used before their source is asked
	// again, unless the source's own MaxAge is shorter: nobody has said how long such a token
	// lives. Default: 30s.
	MaxAgeNoExpiry time.Duration

	// MaxNegatives is the maximum number of tokens remembered as not good, over all sources.
	// Memory for them is allocated as needed. Default: 10000.
	MaxNegatives int

	// MaxLookups is the maximum number of concurrent lookups in one source. A lookup that gets
	// no place within LookupTimeout ends with ErrBusy. Neither bound is for sources that are
	// Immediate. Default: 256.
	MaxLookups int

	// LookupTimeout bounds a single lookup, whoever is waiting for it. Lookups are shared, so
	// the deadline of one request must not end them. Default: 2s.
	LookupTimeout time.Duration

	// Now is the wall clock, which decides when tokens expire. Default: time.Now.
	Now func() time.Time

	// Elapsed is a clock that nobody can set: the time since some fixed moment. Entries age by
	// it. Default: the monotonic clock.
	Elapsed func() time.Duration

	// OnHit is called for each lookup that the cache answers, OnMiss for each that it can't,
	// and OnEvict for each entry that has to make room for another. They must return at once.
	OnHit, OnMiss, OnEvict func()

	// hash, in tests, replaces the hash of a key with a worse one.
	hash func(cacheKey) uint64
}

// cacheKey is a digest of the source's name followed by the token ID. Both have a fixed
// length, so two different pairs never make the same key.
type cacheKey [2 * sha256.Size]byte

func keyOf(source [sha256.Size]byte, id TokenID) (k cacheKey) {
	copy(k[:], source[:])
	copy(k[sha256.Size:], id[:])
	return k
}

// entry is what ristretto holds. It never changes once it is stored.
type entry struct {
	key        cacheKey
	facts      *Facts
	generation uint64        // of the key's shard, read before the source was asked; no low bits
	global     uint64        // the same, of the whole cache
	forgets    uint64        // the same, of Cache.forgets
	asked      time.Duration // CacheConfig.Elapsed when the source was asked
	answered   time.Duration // and when it had answered
	deadline   time.Duration // CacheConfig.Elapsed at which it stops counting for everybody
	grace      time.Duration // the same while its source can't be asked; see SourceConfig.StaleFor
	// until is when it stops counting by CacheConfig.Now, the only clock that has moved on
	// after a suspend.
	until time.Time
	size  int64 // roughly what it takes in memory
}

// overhead is what an entry takes apart from its texts: the entry, its facts, and what
// ristretto needs to find and expire it.
const overhead = 640

// sizeOf returns the size of an entry for f.
func sizeOf(f *Facts) int64 {
	const header = 32 // of a string in a list, with what the allocator rounds up
	n := overhead + len(f.ClientID) + len(f.Subject) + len(f.Issuer) + len(f.JTI) + len(f.Confirmation.Certificate) + len(f.Confirmation.Key) + len(f.Claims) + len(f.verifiedBy)
	for _, s := range f.Scopes {
		n += header + len(s)
	}
	for _, s := range f.Audience {
		n += header + len(s)
	}
	return int64(n)
}

// NewCache creates an empty cache and starts ristretto's two goroutines, which Close ends.
func NewCache(cfg CacheConfig) (*Cache, error) {
	if cfg.MaxLookups == 0 {
		cfg.MaxLookups = 256
	}
	if cfg.MaxAgeNoExpiry == 0 {
		cfg.MaxAgeNoExpiry = 30 * time.Second
	}
	if cfg.MaxNegatives == 0 {
		cfg.MaxNegatives = 10_000
	}
	if cfg.LookupTimeout == 0 {
		cfg.LookupTimeout = 2 * time.Second
	}
	start := time.Now()
	clocks := func() (time.Time, time.Duration) { return cfg.Now(), cfg.Elapsed() }
	if cfg.Now == nil && cfg.Elapsed == nil {
		// One reading serves both.
		clocks = func() (time.Time, time.Duration) { now := time.Now(); return now, now.Sub(start) }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Elapsed == nil {
		cfg.Elapsed = func() time.Duration { return time.Since(start) }
	}
	nothing := func() {}
	if cfg.OnHit == nil {
		cfg.OnHit = nothing
	}
	if cfg.OnMiss == nil {
		cfg.OnMiss = nothing
	}
	if cfg.OnEvict == nil {
		cfg.OnEvict = nothing
	}
	c := &Cache{
		cfg:       cfg,
		clocks:    clocks,
		seed:      maphash.MakeSeed(),
		negatives: negatives{max: cfg.MaxNegatives, at: map[uint64]int{}},
	}
	if c.cfg.hash == nil {
		// Seeded for this process, so that nobody can choose tokens that evict others.
		c.cfg.hash = func(k cacheKey) uint64 { return maphash.Bytes(c.seed, k[:]) }
	}
	bounds := boundsOf(cfg.MaxTokens, cfg.MaxSize)
	c.bounds.Store(bounds)
	items, err := ristretto.NewCache(&ristretto.Config[uint64, *entry]{
		NumCounters:        10 * bounds.tokens,
		MaxCost:            bounds.maxCost,
		BufferItems:        64,
		IgnoreInternalCost: true, // overhead includes it
		OnEvict: func(item *ristretto.Item[*entry]) {
			// Also called for expired entries, which carry their expiration, and by Close for
			// all of them. Neither made room for another.
			if item.Value != nil && item.Expiration.IsZero() && !c.closed.Load() {
				c.cfg.OnEvict()
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("making a token cache for %d tokens: %w", bounds.tokens, err)
	}
	c.items = items
	return c, nil
}

// Close ends the cache's goroutines. Lookups under way, and later ones, end with ErrClosed or
// with their own answer, never with a panic. Close may be called twice.
func (c *Cache) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed.Swap(true) {
		c.items.Close()
	}
}

// Resize changes CacheConfig.MaxTokens and CacheConfig.MaxSize. If they differ from before,
// the cache is emptied, because what each token counts depends on them. The number of
// counters that help choose what to keep stays the same.
func (c *Cache) Resize(maxTokens, maxSize int64) {
	c.mu.Lock() // nobody else is inside ristretto, so its Clear is safe
	defer c.mu.Unlock()
	before, now := c.bounds.Load(), boundsOf(maxTokens, maxSize)
	if c.closed.Load() || *now == *before {
		return
	}
	c.bounds.Store(now)
	c.items.Clear()
	for i := range c.recent {
		c.recent[i].Store(nil)
	}
	c.items.UpdateMaxCost(now.maxCost)
}

// Len returns how many tokens are cached, including those that have expired and were not removed yet. It
// goes through all of them, which takes about a millisecond for 100,000.
func (c *Cache) Len() (n int) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed.Load() {
		return 0
	}
	c.items.IterValues(func(*entry) bool {
		n++
		return false
	})
	return n
}

// keep stores an entry, if it can fit at all.
func (c *Cache) keep(h uint64, e *entry, ttl, kept time.Duration) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed.Load() {
		return
	}
	b := c.bounds.Load()
	recent := e.size <= b.maxSlot
	if recent {
		c.latest(h).Store(e)
	} else {
		c.latest(h).Store(nil)
	}
	if e.size > b.maxEntry {
		// Including what ristretto has yet to apply: an older answer must not come back.
		c.items.Del(h)
		c.items.Wait()
		return
	}
	// An entry that has grown is deleted first: ristretto makes no room for growth, and may not
	// even count it. GetTTL comes before Get, which counts as a use and would make each new
	// token look wanted.
	if _, held := c.items.GetTTL(h); held {
		if old, ok := c.items.Get(h); ok && old != nil && old.size < e.size {
			c.items.Del(h)
		}
	}
	c.items.SetWithTTL(h, e, max(e.size, b.minCost), max(ttl, kept))
	if kept > 0 || !recent {
		// ristretto applies the write later. If the source says no before that, refuse finds no
		// entry to take back, and this one surfaces in an outage. And without a slot in recent,
		// nobody would find the entry until then.
		c.items.Wait()
	}
}
