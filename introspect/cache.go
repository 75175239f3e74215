package introspect

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
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

// 65536 generations of 8 bytes: a revocation makes the cache forget one entry in
// 65536 besides the one it is about.
const generationShards = 1 << 16

const (
	nextGeneration = 1 << 20
	revokingMask   = nextGeneration - 1 // a million at once in one shard, which no server has
)

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

// Flush makes the cache forget everything, at once: entries stop counting when Flush
// returns, and so do fills that are under way.
func (c *Cache) Flush() {
	c.global.Add(1)
	// Nothing is cleared here. ristretto's Clear is not atomic, so it could promise
	// nothing; the dead entries leave by their own expiry.
}

// Wrap puts the cache in front of src. The name tells sources apart: entries of two
// names never mix, and two sources under one name share them, which is how entries
// outlive a configuration. maxAge bounds how long facts are used without asking src
// again; for a source that can't push its revocations, maxAge is how late they
// arrive. A maxAge of zero or less keeps nothing; parallel lookups are shared all
// the same.
func (c *Cache) Wrap(name string, src Source, maxAge time.Duration) *CachedSource {
	return c.WrapWith(name, src, SourceConfig{MaxAge: maxAge})
}

// SourceConfig are the settings of a CachedSource.
type SourceConfig struct {
	// MaxAge bounds how long facts are used without asking the source again; see
	// [Cache.Wrap]. Zero or less keeps nothing. Default: 0.
	MaxAge time.Duration

	// NegativeAge bounds how long a token that the source called no good is refused without
	// asking again. It spares the source a client that goes on with a dead token, and in
	// return a token that is issued, or becomes good, after somebody tried it is refused for
	// as long. [DefaultNegativeAge] suits sources that answer over the network. Only "no" is
	// remembered, never an error. Zero or less remembers nothing. Default: 0.
	NegativeAge time.Duration

	// StaleFor extends MaxAge while the source is away: facts that were found out less than
	// MaxAge and StaleFor ago are used instead of an [ErrOutage]. It is for services
	// that should outlive an outage of their authorization server, and the price is that a
	// revocation which happens at its beginning, or an outage that an attacker causes, holds
	// a revoked token good for as long. Facts are never used at or beyond the token's expiry,
	// never after a Forget, a Flush or a "no" of the source, never if they have no expiry,
	// and never for callers of [CachedSource.LookupWithin] that demand fresher ones.
	// Such facts come after the question has failed, so late when the source hangs. Zero or
	// less, or a MaxAge that keeps nothing, is no grace. Default: 0.
	StaleFor time.Duration

	// OnStale is called for each lookup that StaleFor has answered. It must return at once.
	OnStale func()
}

// DefaultNegativeAge is the NegativeAge that suits sources which answer over the network:
// short for whoever waits for a token to become good, long for a client that tries again
// ten times a second.
const DefaultNegativeAge = 5 * time.Second

// WrapWith is [Cache.Wrap] with more settings.
func (c *Cache) WrapWith(name string, src Source, cfg SourceConfig) *CachedSource {
	if cfg.OnStale == nil {
		cfg.OnStale = func() {}
	}
	s := &CachedSource{
		cache: c, src: src, cfg: cfg, name: sha256.Sum256([]byte(name)), slots: make(chan struct{}, c.cfg.MaxLookups),
	}
	c.entriesLive(max(sum(max(cfg.MaxAge, 0), max(cfg.StaleFor, 0)), cfg.NegativeAge))
	s.screen, _ = src.(Screener)
	s.revise, _ = src.(Reviser)
	s.doubt, _ = src.(Doubter)
	s.told, _ = src.(Coherent)
	return s
}

// Forget makes the cache forget what the source of that name said of a token, like
// [CachedSource.Forget].
func (c *Cache) Forget(name string, id TokenID) {
	c.revoking(keyOf(sha256.Sum256([]byte(name)), id))()
}

// CachedSource is a source with the cache in front of it. It is safe for concurrent
// use and owns nothing: it needs no closing.
type CachedSource struct {
	cache  *Cache
	src    Source
	screen Screener // nil if src can't
	revise Reviser  // nil if src can't
	doubt  Doubter  // nil if src doesn't
	told   Coherent // nil if src can't say
	cfg    SourceConfig
	name   [sha256.Size]byte
	// slots bounds the lookups under way: a source that hangs must not take the places of
	// the others.
	slots chan struct{}
}

// Lookup is [CachedSource.LookupWithin] for the token of that text, without a maximum age of
// the caller's own.
func (s *CachedSource) Lookup(ctx context.Context, text string) (*Facts, error) {
	return s.LookupWithin(ctx, NewToken(text), math.MaxInt64)
}

// LookupWithin reports what token means, from memory if the source was asked about it
// less than maxAge ago. It never returns facts beyond the token's expiry, nor facts
// that were found out before a Forget or Flush that ended before this call began.
// Like every Source it returns Inactive and no error for a token that is no good.
// maxAge bounds the age of a remembered "no" too.
//
// It blocks until the answer is there, ctx ends, or twice Config.LookupTimeout has passed.
func (s *CachedSource) LookupWithin(ctx context.Context, token Token, maxAge time.Duration) (*Facts, error) {
	token, ok := s.screened(token)
	if !ok {
		return inactive, nil
	}
	key := keyOf(s.name, token.id)
	facts, ok := s.cached(key, min(maxAge, s.cfg.MaxAge))
	if !ok && s.refused(key, min(maxAge, s.cfg.NegativeAge)) {
		facts, ok = inactive, true
	}
	if ok {
		s.cache.cfg.OnHit()
	} else {
		s.cache.cfg.OnMiss()
		var err error
		facts, err = s.ask(ctx, key, token, maxAge)
		if err != nil {
			// Who has gone away gets the error, and whose token is at fault.
			if ctx.Err() != nil || !errors.Is(err, ErrOutage) {
				return nil, err
			}
			if facts, ok = s.stale(key, maxAge); !ok {
				return nil, err
			}
			s.cfg.OnStale()
		}
	}
	if !facts.Active {
		return inactive, nil
	}
	return s.revised(facts), nil
}

// Remembered is what LookupWithin would answer from memory, and whether it would; a no is
// not remembered in this sense. It asks nobody and does not block.
func (s *CachedSource) Remembered(token Token, maxAge time.Duration) (*Facts, bool) {
	token, ok := s.screened(token)
	if !ok {
		return nil, false
	}
	facts, ok := s.cached(keyOf(s.name, token.id), min(maxAge, s.cfg.MaxAge))
	if !ok {
		return nil, false
	}
	s.cache.cfg.OnHit()
	return s.revised(facts), true
}

// screened asks the source whether a lookup of token can be worthwhile.
func (s *CachedSource) screened(token Token) (Token, bool) {
	if s.screen == nil {
		return token, true
	}
	return s.screen.Screen(token)
}

func (s *CachedSource) revised(facts *Facts) *Facts {
	if s.revise == nil {
		return facts
	}
	return s.revise.Revise(facts)
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

func keyOf(source [sha256.Size]byte, id TokenID) (k cacheKey) {
	copy(k[:], source[:])
	copy(k[sha256.Size:], id[:])
	return k
}

// cached returns the facts for key if an entry still counts.
func (s *CachedSource) cached(key cacheKey, maxAge time.Duration) (*Facts, bool) {
	e, ok := s.within(key, maxAge)
	if !ok {
		return nil, false
	}
	return e.facts, true
}

// within returns the entry for key if it still counts.
func (s *CachedSource) within(key cacheKey, maxAge time.Duration) (*entry, bool) {
	if maxAge <= 0 || s.told != nil && !s.told.Coherent() {
		return nil, false
	}
	e, ok := s.current(key)
	if !ok {
		return nil, false
	}
	now, elapsed := s.cache.clocks()
	if elapsed-e.asked >= maxAge || elapsed >= e.deadline {
		return nil, false
	}
	// By the wall clock too: after a suspend only it has gone on.
	if !now.Before(e.until) {
		return nil, false
	}
	if s.doubt != nil && s.doubt.Doubts(e.facts) {
		return nil, false
	}
	return e, true
}

// stale returns the facts for key if an entry counts where the source can't be asked.
// It is called after that was tried, so it knows of every revocation until then.
func (s *CachedSource) stale(key cacheKey, maxAge time.Duration) (*Facts, bool) {
	if s.cfg.MaxAge <= 0 || s.cfg.StaleFor <= 0 || s.told != nil && !s.told.Coherent() {
		return nil, false
	}
	e, ok := s.current(key)
	if !ok {
		return nil, false
	}
	now, elapsed := s.cache.clocks()
	// The entry's bound is that of the configuration that stored it, which may be gone.
	if elapsed >= e.grace || elapsed-e.asked >= min(maxAge, sum(s.cfg.MaxAge, s.cfg.StaleFor)) || !now.Before(e.until) {
		return nil, false
	}
	if s.doubt != nil && s.doubt.Doubts(e.facts) {
		return nil, false
	}
	return e.facts, true
}

// sum is a+b for two that are not negative, or the longest Duration.
func sum(a, b time.Duration) time.Duration {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// current returns the entry for key if no revocation speaks against it. Its age is for
// the caller to judge.
func (s *CachedSource) current(key cacheKey) (*entry, bool) {
	c := s.cache
	h := c.cfg.hash(key)
	c.mu.RLock()
	if c.closed.Load() {
		c.mu.RUnlock()
		return nil, false
	}
	e, ok := c.items.Get(h)
	c.mu.RUnlock()
	if !ok || e == nil {
		if e = c.latest(h).Load(); e == nil {
			return nil, false
		}
	}
	// ristretto knows 64 bits of the key; another token's entry may lie there.
	if subtle.ConstantTimeCompare(e.key[:], key[:]) != 1 {
		return nil, false
	}
	// Never equal while a revocation is under way: entries have no low bits.
	if e.generation != c.generations[h%generationShards].Load() || e.global != c.global.Load() || c.forgot(e) {
		return nil, false
	}
	return e, true
}

// answer is what a shared lookup brings to all who wait for it.
type answer struct {
	facts      *Facts
	generation uint64
	global     uint64
	forgets    uint64
	asked      time.Duration
	answered   time.Duration
}

// ask asks the source, sharing the question with everybody who has it too.
func (s *CachedSource) ask(ctx context.Context, key cacheKey, token Token, maxAge time.Duration) (*Facts, error) {
	c := s.cache
	begun := c.cfg.Elapsed()
	h := c.cfg.hash(key)
	shard := &c.generations[h%generationShards]
	flight := string(key[:])
	// A source that ignores its deadline must not hold its callers as well.
	ctx, cancel := context.WithTimeout(ctx, 2*c.cfg.LookupTimeout)
	defer cancel()
	// What is current now is what this caller may know of: an answer from before is
	// not for it.
	generation, global, forgets := shard.Load()&^revokingMask, c.global.Load(), c.forgets.Load()
	for {
		done := c.flights.DoChan(flight, func() (v any, err error) {
			// A panic in a source is that lookup's failure. Without this, singleflight
			// would end the process with it.
			defer func() {
				if r := recover(); r != nil {
					err = fmt.Errorf("token lookup panicked: %v", r)
				}
			}()
			// Somebody may have asked between this caller's look into the cache and now.
			// Read before: within then says that none of the forgets until now was about it.
			forgets := c.forgets.Load()
			if e, ok := s.within(key, min(maxAge, s.cfg.MaxAge)); ok {
				return answer{e.facts, e.generation, e.global, forgets, e.asked, e.answered}, nil
			}
			return s.fill(ctx, key, h, token)
		})
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case res := <-done:
			if res.Err != nil {
				return nil, res.Err
			}
			a := res.Val.(answer)
			if a.generation >= generation && a.global >= global && a.forgets >= forgets &&
				(a.answered >= begun || c.cfg.Elapsed()-a.asked < maxAge) {
				return a.facts, nil
			}
			// The lookup had begun before a revocation that this caller may already know
			// of, or its answer is older than this caller and than it allows. That flight is
			// over. The next asks, unless a caller leads it that had looked into the cache before
			// this answer was there; of those there is an end.
		}
	}
}

// fill asks the source and stores an active answer. It runs once for everybody who
// waits, with a deadline of its own: the request that happened to come first may
// hang up without harming the others.
func (s *CachedSource) fill(ctx context.Context, key cacheKey, h uint64, token Token) (answer, error) {
	c := s.cache
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.LookupTimeout)
	defer cancel()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return answer{}, ErrBusy
	}
	if c.closed.Load() {
		return answer{}, ErrClosed
	}

	a := answer{generation: c.generations[h%generationShards].Load() &^ revokingMask, global: c.global.Load(), forgets: c.forgets.Load()}
	begun, asked := c.clocks()
	facts, err := s.src.Lookup(ctx, token)
	if err != nil {
		return answer{}, err
	}
	if facts == nil {
		return answer{}, errors.New("token source returned no facts and no error")
	}
	a.asked, a.answered = asked, c.cfg.Elapsed()
	immortal := facts.Expiry.IsZero()
	remaining := facts.Expiry.Sub(c.cfg.Now())
	if !facts.Active || !immortal && remaining <= 0 {
		a.facts = inactive
		most := s.cfg.NegativeAge
		if !facts.notYet.IsZero() {
			most = min(most, facts.notYet.Sub(begun))
		}
		s.refuse(&a, key, h, asked, most)
		return a, nil
	}
	a.facts = facts
	if s.cfg.NegativeAge > 0 {
		// Or it would come back when ristretto drops the entry, and refuse a good token.
		c.negatives.drop(h)
	}

	ttl, kept := min(s.cfg.MaxAge, remaining), time.Duration(0)
	if immortal {
		ttl = min(s.cfg.MaxAge, c.cfg.MaxAgeNoExpiry)
	} else if s.cfg.StaleFor > 0 {
		kept = min(sum(max(s.cfg.MaxAge, 0), s.cfg.StaleFor), remaining)
	}
	// Without its reading of the monotonic clock, which would be all that is compared.
	until := begun.Round(0).Add(max(ttl, kept))
	if !immortal && facts.Expiry.Before(until) {
		until = facts.Expiry
	}
	// ttl is positive: to ristretto zero means for ever, and less than zero would leave
	// an older entry in place.
	if ttl > 0 {
		e := &entry{
			key: key, facts: facts, generation: a.generation, global: a.global, forgets: a.forgets,
			asked: asked, answered: a.answered, deadline: asked + ttl, grace: asked + kept, until: until, size: sizeOf(facts),
		}
		c.keep(h, e, ttl, kept)
	}
	return a, nil
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

// CacheName joins the parts of a source's name unambiguously, for [Cache.Wrap]: no
// two different lists of parts make the same name.
func CacheName(parts ...string) string {
	var b []byte
	for _, p := range parts {
		b = binary.AppendUvarint(b, uint64(len(p)))
		b = append(b, p...)
	}
	return string(b)
}
