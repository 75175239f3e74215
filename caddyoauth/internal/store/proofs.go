package store

import (
	"context"
	"encoding/hex"
	"strconv"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// The stores' implementations of oauth.ProofStore.

const (
	// maxProofs is how many proofs a process remembers, at about 70 bytes each. They are used for two
	// minutes at most, so it is never reached below 16000 requests a second. One client may use a
	// quarter.
	maxProofs = 1 << 21
	// proofSlice is the time that one slice of proofs covers.
	proofSlice = 10 * time.Second
)

// proofs remembers which proofs were used, in memory: a write to a file with each protected request
// would cost more than all the rest. It survives a reload, because its store does. What it doesn't know
// is what was used before since, by another process with the same file.
type proofs struct {
	now   func() time.Time
	since time.Time
	max   int // maxProofs, less in tests

	mu     sync.Mutex
	closed bool
	count  int
	// slices have the proofs that end in the same time, by that time. They are dropped as a whole.
	slices map[int64]*slice
	shares map[oauth.ClientRef]int
}

// slice is a part of proofs. Of an ID it has the first half, which is enough: whoever finds two proofs
// with the same one has made both.
type slice struct {
	ids    map[[16]byte]struct{}
	shares map[oauth.ClientRef]int
}

func newProofs(now func() time.Time) *proofs {
	return &proofs{now: now, since: now(), max: maxProofs, slices: make(map[int64]*slice), shares: make(map[oauth.ClientRef]int)}
}

// use implements oauth.ProofStore.
func (p *proofs) use(id oauth.ReplayID, client oauth.ClientRef, until time.Time) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false, oauth.ErrClosed
	}
	key, over := [16]byte(id[:]), p.now().UnixNano()/int64(proofSlice)
	for end, s := range p.slices {
		if end < over {
			p.drop(end, s)
			continue
		}
		if _, again := s.ids[key]; again {
			return false, nil
		}
	}
	switch {
	case p.shares[client] >= p.max/4:
		return false, oauth.ErrClientFull
	case p.count >= p.max:
		return false, oauth.ErrFull
	}
	end := until.UnixNano() / int64(proofSlice)
	s := p.slices[end]
	if s == nil {
		s = &slice{ids: make(map[[16]byte]struct{}), shares: make(map[oauth.ClientRef]int)}
		p.slices[end] = s
	}
	s.ids[key] = struct{}{}
	s.shares[client]++
	p.shares[client]++
	p.count++
	return true, nil
}

// drop forgets a slice that is over.
func (p *proofs) drop(end int64, s *slice) {
	delete(p.slices, end)
	p.count -= len(s.ids)
	for client, n := range s.shares {
		if p.shares[client] -= n; p.shares[client] == 0 {
			delete(p.shares, client)
		}
	}
}

// close forgets everything.
func (p *proofs) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed, p.slices, p.shares = true, nil, nil
}

// UseProof implements oauth.ProofStore.
func (m *Memory) UseProof(_ context.Context, id oauth.ReplayID, client oauth.ClientRef, until time.Time) (first bool, since time.Time, err error) {
	first, err = m.proofs.use(id, client, until)
	return first, m.proofs.since, err
}

// BeginProofs implements oauth.ProofStore.
func (m *Memory) BeginProofs(context.Context) error { return nil }

// ProofsSince implements oauth.ProofStore.
func (m *Memory) ProofsSince() time.Time { return m.proofs.since }

// UseProof implements oauth.ProofStore. What it remembers is in memory alone.
func (b *Bbolt) UseProof(_ context.Context, id oauth.ReplayID, client oauth.ClientRef, until time.Time) (first bool, since time.Time, err error) {
	first, err = b.proofs.use(id, client, until)
	return first, b.proofs.since, err
}

// BeginProofs implements oauth.ProofStore.
func (b *Bbolt) BeginProofs(context.Context) error { return nil }

// ProofsSince implements oauth.ProofStore.
func (b *Bbolt) ProofsSince() time.Time { return b.proofs.since }

// UseProof implements oauth.ProofStore, in one round trip. Redis forgets the ID when it is over by its own
// clock, and has no shares. A Redis that has lost its data has also lost the time since when it
// remembers. It is asked for that with each proof, after it has remembered the ID, so what it lost in
// between is missed by nobody. In a Cluster this holds if all servers lose their data, or the one that has the time.
func (r *Redis) UseProof(ctx context.Context, id oauth.ReplayID, _ oauth.ClientRef, until time.Time) (first bool, since time.Time, err error) {
	if r.evicts.Load() {
		return false, time.Time{}, ErrEvicts
	}
	err = r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		answers := c.DoMulti(ctx, r.useCommand(c, "proof:", id, until), c.B().Get().Key(r.sinceKey()).Build())
		if first, err = isNew(answers[0]); err != nil {
			return err
		}
		since, err = r.readSince(ctx, c, answers[1])
		return err
	})
	if err != nil {
		return false, time.Time{}, err
	}
	return first, since, nil
}

// BeginProofs implements oauth.ProofStore.
func (r *Redis) BeginProofs(ctx context.Context) error {
	return r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		_, err := r.readSince(ctx, c, c.Do(ctx, c.B().Get().Key(r.sinceKey()).Build()))
		return err
	})
}

func (r *Redis) sinceKey() string { return r.cfg.Prefix + "proofs-since" }

// readSince reads since when Redis remembers. If it doesn't yet, the first gateway that finds this out
// says so.
func (r *Redis) readSince(ctx context.Context, c rueidis.Client, answer rueidis.RedisResult) (time.Time, error) {
	milli, err := answer.AsInt64()
	if rueidis.IsRedisNil(err) {
		now := strconv.FormatInt(time.Now().UnixMilli(), 10)
		if err := c.Do(ctx, c.B().Set().Key(r.sinceKey()).Value(now).Nx().Build()).Error(); err != nil && !rueidis.IsRedisNil(err) {
			return time.Time{}, err
		}
		milli, err = c.Do(ctx, c.B().Get().Key(r.sinceKey()).Build()).AsInt64()
	}
	if err != nil {
		return time.Time{}, err
	}
	r.proofsSince.Store(milli)
	return time.UnixMilli(milli), nil
}

// ProofsSince implements oauth.ProofStore.
func (r *Redis) ProofsSince() time.Time {
	if milli := r.proofsSince.Load(); milli != 0 {
		return time.UnixMilli(milli)
	}
	return time.Time{}
}

// useCommand returns the command that has Redis remember an ID under a prefix.
func (r *Redis) useCommand(c rueidis.Client, prefix string, id oauth.ReplayID, until time.Time) rueidis.Completed {
	life := max(time.Until(until), time.Second).Milliseconds() // a duration: the clock of Redis may differ
	return c.B().Set().Key(r.cfg.Prefix + prefix + hex.EncodeToString(id[:])).Value("").Nx().PxMilliseconds(life).Build()
}

// isNew reads the answer to that command.
func isNew(answer rueidis.RedisResult) (bool, error) {
	err := answer.Error()
	if rueidis.IsRedisNil(err) { // it was there
		return false, nil
	}
	return err == nil, err
}
