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
// It is built on ristretto, and trusts it with nothing: ristretto may drop a write,
// apply it late, or after a deletion. What makes the cache correct stands in this
// file. Every fill carries the generation that was current before its source was
// asked, and an entry counts only while that generation is current. A revocation raises
// the generation first and deletes second, so a fill that began before the revocation
// is never believed after it, in whatever order ristretto applies the two.
//
// That a source said no is remembered only where [SourceConfig] asks for it, apart from
// the facts; see negatives.
//
// Memory is bounded by Config.MaxSize for the entries, 4 bytes for each of ten counters per
// token of Config.MaxTokens, Config.MaxNegatives entries of about 0.2 KiB, and 512 KiB of
// generations. Create a Cache with [NewCache] and end it with [Cache.Close]. It is
// safe for concurrent use.
type Cache struct {
	cfg  CacheConfig
	seed maphash.Seed
	// clocks reads Config.Now and Config.Elapsed.
	clocks func() (time.Time, time.Duration)

	// generations are the current ones, of a shard of keys each. They only grow. The low
	// bits count the revocations under way in the shard; see Revoking.
	generations [generationShards]atomic.Uint64
	// global is the generation of the whole cache.
	global atomic.Uint64

	// forgets counts the calls of ForgetClient and ForgetSource; forgotten are those that
	// entries may still be older than. See forget.go.
	forgets    atomic.Uint64
	forgotten  atomic.Pointer[[]forgotten]
	forgetting sync.Mutex
	// longest is the longest that entries live, in nanoseconds.
	longest atomic.Int64

	// mu keeps ristretto open while somebody uses it: Get, Set and Del panic or race
	// when Close runs beside them.
	mu     sync.RWMutex
	closed atomic.Bool // written under mu
	items  *ristretto.Cache[uint64, *entry]

	negatives negatives

	// recent has the latest entries, each where its hash says: ristretto applies a write a
	// moment late, and whoever comes in that moment would ask the source again.
	recent [maxRecent]atomic.Pointer[entry]

	bounds atomic.Pointer[bounds] // written under mu

	flights singleflight.Group
}

const (
	// maxRecent entries live beside those in ristretto.
	maxRecent = 1 << 10
	// minSlot holds most tokens. In a small cache there are fewer slots rather than smaller ones.
	minSlot = 8 << 10
)

// bounds are what Config.MaxTokens and Config.MaxSize come to, in bytes. An eighth of the
// size is for recent, whose slots share it; what is too large for a slot has none.
type bounds struct {
	tokens, size int64
	least        int64  // what an entry counts at least, so that no more than tokens fit
	all          int64  // what all entries in ristretto may count
	most         int64  // what one entry may take; a larger one is not kept
	slots        uint64 // of recent
	slot         int64  // what an entry in a slot may take
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
	b.least = max((size-share)/tokens, 1)
	b.all = b.least * tokens
	b.most = b.all / 8
	slots := max(min(tokens, maxRecent, share/minSlot), 1)
	b.slots, b.slot = uint64(slots), share/slots
	return b
}

// latest is where the latest entry of a hash is.
func (c *Cache) latest(h uint64) *atomic.Pointer[entry] { return &c.recent[h%c.bounds.Load().slots] }

// CacheConfig are the settings of a Cache. The zero value of each field is its default.
type CacheConfig struct {
	// MaxTokens bounds the number of cached tokens. Default: 100000.
	MaxTokens int64

	// MaxSize bounds the memory of the cached tokens in bytes, with all that is known about
	// each: about 0.7 KiB, and its Claims. A token that would take a ninth of it is not
	// cached. The process takes more, up to two and a half times as much, as Go collects what
	// is dropped now and then. Default: 128 MiB, or 1 KiB for each of MaxTokens if that is more.
	MaxSize int64

	// MaxAgeNoExpiry bounds how long facts without Expiry are used without asking their
	// source again, where its own maximum age is not smaller anyway. Nobody has said how
	// long such a token lives. Default: 30s.
	MaxAgeNoExpiry time.Duration

	// MaxNegatives bounds the number of tokens that are remembered as no good, in all
	// sources together. Their memory is taken as it is needed. Default: 10000.
	MaxNegatives int

	// MaxLookups bounds the lookups that are under way at once in one source; a lookup that
	// finds no place within LookupTimeout ends with ErrBusy. Default: 256.
	MaxLookups int

	// LookupTimeout bounds one lookup, whoever waits for it. It is the cache's own:
	// lookups are shared, so no single request's deadline may end them. Default: 2s.
	LookupTimeout time.Duration

	// Now is the wall clock, by which tokens expire. Default: time.Now.
	Now func() time.Time

	// Elapsed is a clock that nobody sets: the time since some fixed moment, by which
	// entries age. Default: the monotonic clock.
	Elapsed func() time.Duration

	// OnHit, OnMiss and OnEvict are called for each lookup that the cache answered, each
	// that it could not answer, and each entry that had to make room for another. They
	// must return at once.
	OnHit, OnMiss, OnEvict func()

	// hash, in tests, replaces the hash of a key by a worse one.
	hash func(cacheKey) uint64
}

// cacheKey is a digest of the source's name, then the token ID: parts of fixed
// length, so two different pairs never make one key.
type cacheKey [2 * sha256.Size]byte

func keyOf(source [sha256.Size]byte, id TokenID) (k cacheKey) {
	copy(k[:], source[:])
	copy(k[sha256.Size:], id[:])
	return k
}

// entry is what ristretto holds. It is never changed after it was stored.
type entry struct {
	key        cacheKey
	facts      *Facts
	generation uint64        // of the key's shard, read before the source was asked; no low bits
	global     uint64        // likewise, of the whole cache
	forgets    uint64        // likewise, Cache.forgets
	asked      time.Duration // Config.Elapsed when the source was asked
	answered   time.Duration // and when it had answered
	deadline   time.Duration // Config.Elapsed when it stops counting for everybody
	grace      time.Duration // likewise, where its source can't be asked; see SourceConfig.StaleFor
	// until is when it stops counting by Config.Now: after a suspend only that has gone on.
	until time.Time
	size  int64 // what it takes in memory, about
}

// overhead is what an entry takes without texts: itself, its facts, and what ristretto needs
// to find it and to end it.
const overhead = 640

// sizeOf is the size of an entry for f.
func sizeOf(f *Facts) int64 {
	const header = 32 // of a text in a list, and what the allocator rounds up
	n := overhead + len(f.ClientID) + len(f.Subject) + len(f.Issuer) + len(f.Claims) + len(f.verifiedBy)
	for _, s := range f.Scopes {
		n += header + len(s)
	}
	for _, s := range f.Audience {
		n += header + len(s)
	}
	return int64(n)
}

// NewCache makes an empty cache and starts ristretto's two goroutines, which Close ends.
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
		// One reading of time has both.
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
		negatives: negatives{most: cfg.MaxNegatives, at: map[uint64]int{}},
	}
	if c.cfg.hash == nil {
		// Seeded for this process: nobody can choose tokens that push others out.
		c.cfg.hash = func(k cacheKey) uint64 { return maphash.Bytes(c.seed, k[:]) }
	}
	bounds := boundsOf(cfg.MaxTokens, cfg.MaxSize)
	c.bounds.Store(bounds)
	items, err := ristretto.NewCache(&ristretto.Config[uint64, *entry]{
		NumCounters:        10 * bounds.tokens,
		MaxCost:            bounds.all,
		BufferItems:        64,
		IgnoreInternalCost: true, // it is in overhead
		OnEvict: func(item *ristretto.Item[*entry]) {
			// Also called for entries whose time has come, which carry it, and for all of
			// them by Close. Those made room for nobody.
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

// Close ends the cache's goroutines. Lookups that come later, or are under way, end
// with ErrClosed or their own answer, never with a panic. Close may be called twice.
func (c *Cache) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed.Swap(true) {
		c.items.Close()
	}
}

// Resize changes Config.MaxTokens and Config.MaxSize. If they are other than before, the cache
// is emptied: what each token counts depends on them. The counters that choose what to keep
// stay as many as they were.
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
	c.items.UpdateMaxCost(now.all)
}

// keep puts an entry into the cache, if there can be room for it.
func (c *Cache) keep(h uint64, e *entry, ttl, kept time.Duration) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed.Load() {
		return
	}
	b := c.bounds.Load()
	recent := e.size <= b.slot
	if recent {
		c.latest(h).Store(e)
	} else {
		c.latest(h).Store(nil)
	}
	if e.size > b.most {
		// With what ristretto has yet to apply: an older answer must not come back.
		c.items.Del(h)
		c.items.Wait()
		return
	}
	// What grows is put in anew: ristretto makes no room for it, and may not even count it.
	// GetTTL is asked first, since Get is a use, which would make each new token look wanted.
	if _, held := c.items.GetTTL(h); held {
		if old, ok := c.items.Get(h); ok && old != nil && old.size < e.size {
			c.items.Del(h)
		}
	}
	c.items.SetWithTTL(h, e, max(e.size, b.least), max(ttl, kept))
	if kept > 0 || !recent {
		// ristretto applies it later. If the source says no before that, refuse would find no
		// entry to take back, and this one would come to light in an outage. And without a
		// place among the recent ones nobody would find it until then.
		c.items.Wait()
	}
}
