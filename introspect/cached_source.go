package introspect

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// Wrap puts the cache in front of src. The name tells sources apart: entries of two
// names never mix, and two sources under one name share them, which is how entries
// outlive a configuration. maxAge bounds how long facts are used without asking src
// again; for a source that can't push its revocations, maxAge is how late they
// arrive. A maxAge of zero or less keeps nothing; parallel lookups are shared all
// the same.
func (c *Cache) Wrap(name string, src Source, maxAge time.Duration) *CachedSource {
	return c.WrapWith(name, src, SourceConfig{MaxAge: maxAge})
}

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
	token := NewToken(text)
	return s.LookupWithin(ctx, &token, math.MaxInt64)
}

// LookupWithin reports what token means, from memory if the source was asked about it
// less than maxAge ago. It never returns facts beyond the token's expiry, nor facts
// that were found out before a Forget or Flush that ended before this call began.
// Like every Source it returns Inactive and no error for a token that is no good.
// maxAge bounds the age of a remembered "no" too.
//
// It blocks until the answer is there, ctx ends, or twice Config.LookupTimeout has passed.
func (s *CachedSource) LookupWithin(ctx context.Context, token *Token, maxAge time.Duration) (*Facts, error) {
	if !s.screened(token) {
		return inactive, nil
	}
	key := keyOf(s.name, token.ID())
	facts, ok := s.cached(key, min(maxAge, s.cfg.MaxAge))
	if !ok && s.refused(key, min(maxAge, s.cfg.NegativeAge)) {
		facts, ok = inactive, true
	}
	if ok {
		s.cache.cfg.OnHit()
	} else {
		s.cache.cfg.OnMiss()
		var err error
		facts, err = s.ask(ctx, key, *token, maxAge)
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
func (s *CachedSource) Remembered(token *Token, maxAge time.Duration) (*Facts, bool) {
	if !s.screened(token) {
		return nil, false
	}
	facts, ok := s.cached(keyOf(s.name, token.ID()), min(maxAge, s.cfg.MaxAge))
	if !ok {
		return nil, false
	}
	s.cache.cfg.OnHit()
	return s.revised(facts), true
}

// screened reports whether a lookup of token can be worthwhile. What the source finds out
// about it stays noted in token.
func (s *CachedSource) screened(token *Token) (ok bool) {
	if s.screen == nil {
		return true
	}
	*token, ok = s.screen.Screen(*token)
	return ok
}

func (s *CachedSource) revised(facts *Facts) *Facts {
	if s.revise == nil {
		return facts
	}
	return s.revise.Revise(facts)
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
