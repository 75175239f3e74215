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

// Wrap puts the cache in front of src. The name tells sources apart: entries of different
// names never mix, and two sources of the same name share theirs, which is how entries
// outlive a configuration. maxAge is how long facts are used before src is asked again;
// for a source that can't push its revocations, that is how late they arrive. With a maxAge
// of zero or less nothing is kept, but concurrent lookups are still shared.
func (c *Cache) Wrap(name string, src Source, maxAge time.Duration) *CachedSource {
	return c.WrapWith(name, src, SourceConfig{MaxAge: maxAge})
}

// WrapWith is like [Cache.Wrap], with more settings.
func (c *Cache) WrapWith(name string, src Source, cfg SourceConfig) *CachedSource {
	if cfg.OnStale == nil {
		cfg.OnStale = func() {}
	}
	s := &CachedSource{
		cache: c, src: src, cfg: cfg, name: sha256.Sum256([]byte(name)), slots: make(chan struct{}, c.cfg.MaxLookups),
	}
	c.entriesLive(max(sum(max(cfg.MaxAge, 0), max(cfg.StaleFor, 0)), cfg.NegativeAge))
	s.screen, _ = src.(Screener)
	s.explain, _ = src.(Explainer)
	s.revise, _ = src.(Reviser)
	s.doubt, _ = src.(Doubter)
	s.coherent, _ = src.(Coherent)
	if able, ok := src.(Immediate); ok {
		s.immediate = able.Immediate()
	}
	if jwt, ok := src.(interface{ issuerInTokens() string }); ok {
		s.issuer = jwt.issuerInTokens()
	}
	return s
}

// SourceConfig are the settings of a CachedSource.
type SourceConfig struct {
	// MaxAge is how long facts are used before the source is asked again; see [Cache.Wrap].
	// With zero or less nothing is kept. Default: 0.
	MaxAge time.Duration

	// NegativeAge is how long a token that the source called inactive is refused without asking
	// again. It protects the source from a client that keeps using a dead token. In return, a
	// token that is issued or becomes good after somebody tried it is refused for that long.
	// [DefaultNegativeAge] suits sources that answer over the network. Only a "no" is
	// remembered, never an error. With zero or less nothing is remembered. Default: 0.
	NegativeAge time.Duration

	// StaleFor extends MaxAge while the source is unreachable: on an [ErrOutage], facts that are
	// younger than MaxAge plus StaleFor are used instead. It is for services that should survive
	// an outage of their authorization server. The price: if a revocation falls into an outage,
	// which an attacker may have caused, the revoked token stays good for that long.
	//
	// Facts are never used at or after the token's expiry, after a Forget, a Flush or a "no" from
	// the source, if they have no expiry, or for callers of [CachedSource.LookupWithin] that
	// demand fresher ones. They are used only once the question has failed, so late if the source
	// hangs. Zero or less, or a MaxAge that keeps nothing, disables it. Default: 0.
	StaleFor time.Duration

	// OnStale is called for each lookup that StaleFor answers. It must return at once.
	OnStale func()
}

// DefaultNegativeAge is the [SourceConfig.NegativeAge] that suits sources that answer over
// the network: short for a client waiting for its token to become good, long for a client
// that retries ten times a second.
const DefaultNegativeAge = 5 * time.Second

// CachedSource looks tokens up in a [Source], with the cache in front of it; see [Cache.Wrap].
// It is safe for concurrent use and owns nothing, so it needs no closing.
type CachedSource struct {
	cache *Cache
	cfg   SourceConfig
	name  [sha256.Size]byte // digest of the source's name

	src Source
	// The optional abilities of src; nil if it lacks them.
	screen   Screener
	explain  Explainer
	revise   Reviser
	doubt    Doubter
	coherent Coherent
	// immediate is whether callers ask src for themselves.
	immediate bool
	// issuer is what src has found in the iss of each token that it called active; empty if it does not
	// look there.
	issuer string

	// slots bounds the lookups under way, so that a source that hangs can't take the places of
	// the others.
	slots chan struct{}
}

// Lookup is like [CachedSource.LookupWithin] for the token with that text, without a maximum
// age of the caller's own.
func (s *CachedSource) Lookup(ctx context.Context, text string) (*Facts, error) {
	token := NewToken(text)
	return s.LookupWithin(ctx, &token, math.MaxInt64)
}

// LookupWithin reports what token means, from memory if the source was asked about it less
// than maxAge ago. It never returns facts at or after the token's expiry, nor facts found
// before a Forget or Flush that ended before this call began. Like every Source, it returns
// Inactive or InactiveBecause, and no error, for a token that is not good. maxAge also bounds the age of a
// remembered "no".
//
// It blocks until there is an answer, ctx ends, or twice CacheConfig.LookupTimeout has passed.
// What is found out about the token by computation alone is noted in it.
func (s *CachedSource) LookupWithin(ctx context.Context, token *Token, maxAge time.Duration) (*Facts, error) {
	if !s.screened(token) {
		if s.explain != nil {
			return InactiveBecause(s.explain.WhyNot(*token)), nil
		}
		return inactive, nil
	}
	key := keyOf(s.name, token.ID())
	facts, ok := s.cached(key, min(maxAge, s.cfg.MaxAge))
	if !ok {
		facts, ok = s.refused(key, min(maxAge, s.cfg.NegativeAge))
	}
	if ok {
		token.cache = cacheHit
		if !facts.Active {
			token.cache = cacheNegative
		}
		s.cache.cfg.OnHit()
	} else {
		token.cache = cacheMiss
		s.cache.cfg.OnMiss()
		var err error
		facts, err = s.ask(ctx, key, *token, maxAge)
		if err != nil {
			// A caller that has gone away gets the error, and so does one whose token caused it.
			if ctx.Err() != nil || !errors.Is(err, ErrOutage) {
				return nil, err
			}
			if facts, ok = s.stale(key, maxAge); !ok {
				return nil, err
			}
			token.cache = cacheStale
			s.cfg.OnStale()
		}
	}
	if !facts.Active {
		return facts, nil
	}
	return s.revised(facts), nil
}

// Remembered returns what LookupWithin would answer from memory, and whether it would. A
// remembered "no" does not count. It asks no source and does not block.
func (s *CachedSource) Remembered(token *Token, maxAge time.Duration) (*Facts, bool) {
	if !s.screened(token) {
		return nil, false
	}
	facts, ok := s.cached(keyOf(s.name, token.ID()), min(maxAge, s.cfg.MaxAge))
	if !ok {
		return nil, false
	}
	token.cache = cacheHit
	s.cache.cfg.OnHit()
	return s.revised(facts), true
}

// Inquire returns what LookupWithin would, and changes nothing: no entry is made, renewed or
// ended, and nothing is counted. Where LookupWithin would ask the source, asked is called, and
// the source is asked if it is an [Inquirer]. Otherwise the error is ErrNotAsked.
func (s *CachedSource) Inquire(ctx context.Context, token *Token, maxAge time.Duration, asked func()) (*Facts, error) {
	if !s.screened(token) {
		if s.explain != nil {
			return InactiveBecause(s.explain.WhyNot(*token)), nil
		}
		return inactive, nil
	}
	key := keyOf(s.name, token.ID())
	facts, ok := s.cached(key, min(maxAge, s.cfg.MaxAge))
	if !ok {
		facts, ok = s.refused(key, min(maxAge, s.cfg.NegativeAge))
	}
	if !ok {
		source, able := s.src.(Inquirer)
		if !able {
			return nil, ErrNotAsked
		}
		asked()
		limited, cancel := context.WithTimeout(ctx, s.cache.cfg.LookupTimeout)
		defer cancel()
		var err error
		if facts, err = source.Inquire(limited, *token); err != nil {
			if ctx.Err() != nil || !errors.Is(err, ErrOutage) {
				return nil, err
			}
			if facts, ok = s.stale(key, maxAge); !ok {
				return nil, err
			}
		}
	}
	if facts.Active && !facts.Expiry.IsZero() && !s.cache.cfg.Now().Before(facts.Expiry) {
		facts = InactiveBecause(CauseExpired)
	}
	if !facts.Active {
		return facts, nil
	}
	return s.revised(facts), nil
}

// Known is Remembered for those who change nothing: the cache does not count it as a hit.
func (s *CachedSource) Known(token *Token, maxAge time.Duration) (*Facts, bool) {
	if !s.screened(token) {
		return nil, false
	}
	facts, ok := s.cached(keyOf(s.name, token.ID()), min(maxAge, s.cfg.MaxAge))
	if !ok {
		return nil, false
	}
	return s.revised(facts), true
}

// RecallIssuer notes in the token who issued it, if the cache has facts about it from a [JWT], and
// reports whether it has. Then [Token.UnverifiedIssuer] need not decode the token. What counts is that
// these facts were once verified, so they need not be good any more, and nobody may conclude that the
// token is.
func (s *CachedSource) RecallIssuer(token *Token) bool {
	if token.issuerRead || s.issuer == "" || !outline(token.text) {
		return token.issuerRead
	}
	if e, ok := s.current(keyOf(s.name, token.ID())); ok && e.facts.verifiedBy != "" && e.facts.Issuer == s.issuer {
		token.issuer, token.issuerRead = s.issuer, true
	}
	return token.issuerRead
}

// screened reports whether looking up token can be worthwhile, and keeps what the source noted
// in it.
func (s *CachedSource) screened(token *Token) bool {
	if s.screen == nil {
		return true
	}
	noted, ok := s.screen.Screen(*token)
	// The answer must be about this token, whatever the source returns.
	if noted.text == token.text {
		*token = noted
	}
	return ok
}

func (s *CachedSource) revised(facts *Facts) *Facts {
	if s.revise == nil {
		return facts
	}
	return s.revise.Revise(facts)
}

// cached returns the facts for key if there is an entry that still counts.
func (s *CachedSource) cached(key cacheKey, maxAge time.Duration) (*Facts, bool) {
	e, ok := s.within(key, maxAge)
	if !ok {
		return nil, false
	}
	return e.facts, true
}

// within returns the entry for key if it still counts.
func (s *CachedSource) within(key cacheKey, maxAge time.Duration) (*entry, bool) {
	if maxAge <= 0 || s.coherent != nil && !s.coherent.Coherent() {
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
	// By the wall clock too: it is the only one that has moved on after a suspend.
	if !now.Before(e.until) {
		return nil, false
	}
	if s.doubt != nil && s.doubt.Doubts(e.facts) {
		return nil, false
	}
	return e, true
}

// stale returns the facts for key if there is an entry that counts while the source can't be
// asked. It is called after the attempt to ask, so it knows of every revocation until then.
func (s *CachedSource) stale(key cacheKey, maxAge time.Duration) (*Facts, bool) {
	if s.cfg.MaxAge <= 0 || s.cfg.StaleFor <= 0 || s.coherent != nil && !s.coherent.Coherent() {
		return nil, false
	}
	e, ok := s.current(key)
	if !ok {
		return nil, false
	}
	now, elapsed := s.cache.clocks()
	// The entry's bound comes from the configuration that stored it, which may be gone.
	if elapsed >= e.grace || elapsed-e.asked >= min(maxAge, sum(s.cfg.MaxAge, s.cfg.StaleFor)) || !now.Before(e.until) {
		return nil, false
	}
	if s.doubt != nil && s.doubt.Doubts(e.facts) {
		return nil, false
	}
	return e.facts, true
}

// sum returns a+b, neither of which is negative, or the longest Duration.
func sum(a, b time.Duration) time.Duration {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// current returns the entry for key unless it has been revoked. The caller judges its age.
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
	// ristretto knows only 64 bits of the key, so this may be another token's entry.
	if subtle.ConstantTimeCompare(e.key[:], key[:]) != 1 {
		return nil, false
	}
	// Never equal while a revocation is under way: an entry's generation has no low bits.
	if e.generation != c.generations[h%generationShards].Load() || e.global != c.global.Load() || c.forgot(e) {
		return nil, false
	}
	return e, true
}

// answer is what a shared lookup returns to everybody who waits for it.
type answer struct {
	facts      *Facts
	generation uint64
	global     uint64
	forgets    uint64
	asked      time.Duration
	answered   time.Duration
}

// ask asks the source. Callers with the same question share it, unless the source is immediate.
func (s *CachedSource) ask(ctx context.Context, key cacheKey, token Token, maxAge time.Duration) (*Facts, error) {
	c := s.cache
	begun := c.cfg.Elapsed()
	h := c.cfg.hash(key)
	if s.immediate {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		a, err := s.find(ctx, key, h, token)
		return a.facts, err
	}
	shard := &c.generations[h%generationShards]
	flight := string(key[:])
	// A source that ignores its deadline must not hold its callers too.
	ctx, cancel := context.WithTimeout(ctx, 2*c.cfg.LookupTimeout)
	defer cancel()
	// This caller may know of everything that is current now, so an answer from before is not
	// for it.
	generation, global, forgets := shard.Load()&^revokingMask, c.global.Load(), c.forgets.Load()
	for {
		done := c.flights.DoChan(flight, func() (any, error) {
			// Somebody may have asked since this caller looked into the cache. forgets is read
			// first: if within then returns an entry, none of the calls until then was about it.
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
				(a.answered >= begun || c.cfg.Elapsed()-a.asked < maxAge) && (a.asked >= begun || s.holds(&a, h)) {
				return a.facts, nil
			}
			// The lookup began before a revocation that this caller may already know of, or its
			// answer is older than this caller and older than it allows, or no longer holds. That
			// flight is over. The next one asks, unless its leader looked into the cache before this
			// answer was there; there are finitely many of those.
		}
	}
}

// holds reports whether an answer is good for a caller that came after the question. If the source
// hears of revocations elsewhere, it must have heard of all until now, as for an entry of the cache,
// and none of them may be about this answer. Otherwise, if the process stood still between the
// source's answer and its arrival, callers from long after a revocation would share an answer from
// before it.
func (s *CachedSource) holds(a *answer, h uint64) bool {
	if s.coherent == nil || !a.facts.Active {
		return true
	}
	c := s.cache
	// Coherent first: what it vouches for has arrived then.
	return s.coherent.Coherent() && a.generation == c.generations[h%generationShards].Load() && a.global == c.global.Load()
}

// fill is find when there is a place. It runs once for everybody who waits and has a deadline of its
// own: the request that happened to come first may hang up without harming the others.
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
	return s.find(ctx, key, h, token)
}

// find asks the source and stores an active answer.
func (s *CachedSource) find(ctx context.Context, key cacheKey, h uint64, token Token) (a answer, err error) {
	// A panic in a source fails that lookup only. Without this, singleflight would end the process.
	defer func() {
		if r := recover(); r != nil {
			a, err = answer{}, fmt.Errorf("token lookup panicked: %v", r)
		}
	}()
	c := s.cache
	if c.closed.Load() {
		return answer{}, ErrClosed
	}

	a = answer{generation: c.generations[h%generationShards].Load() &^ revokingMask, global: c.global.Load(), forgets: c.forgets.Load()}
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
		// Whatever else the source returned with its "no" is dropped.
		a.facts = InactiveBecause(facts.Cause())
		if facts.Active {
			a.facts = InactiveBecause(CauseExpired)
		}
		lifetime := s.cfg.NegativeAge
		if !facts.notYet.IsZero() {
			lifetime = min(lifetime, facts.notYet.Sub(begun))
		}
		s.refuse(&a, key, h, asked, lifetime)
		return a, nil
	}
	a.facts = facts
	if s.cfg.NegativeAge > 0 {
		// Otherwise it would come back when ristretto drops the entry, and refuse a good token.
		c.negatives.drop(h)
	}

	ttl, kept := min(s.cfg.MaxAge, remaining), time.Duration(0)
	if immortal {
		ttl = min(s.cfg.MaxAge, c.cfg.MaxAgeNoExpiry)
	} else if s.cfg.StaleFor > 0 {
		kept = min(sum(max(s.cfg.MaxAge, 0), s.cfg.StaleFor), remaining)
	}
	// Without the monotonic reading, which would be all that is compared.
	until := begun.Round(0).Add(max(ttl, kept))
	if !immortal && facts.Expiry.Before(until) {
		until = facts.Expiry
	}
	// ttl must be positive: to ristretto zero means forever, and with less than zero it leaves
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

// CacheName joins the parts of a source's name for [Cache.Wrap]. Different lists of parts
// never make the same name.
func CacheName(parts ...string) string {
	var b []byte
	for _, p := range parts {
		b = binary.AppendUvarint(b, uint64(len(p)))
		b = append(b, p...)
	}
	return string(b)
}
