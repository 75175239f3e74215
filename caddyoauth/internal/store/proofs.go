package store

import (
	"context"
	"encoding/hex"
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
func (m *Memory) UseProof(_ context.Context, id oauth.ReplayID, client oauth.ClientRef, until time.Time) (bool, error) {
	return m.proofs.use(id, client, until)
}

// ProofsSince implements oauth.ProofStore.
func (m *Memory) ProofsSince() time.Time { return m.proofs.since }

// UseProof implements oauth.ProofStore. What it remembers is in memory alone.
func (b *Bbolt) UseProof(_ context.Context, id oauth.ReplayID, client oauth.ClientRef, until time.Time) (bool, error) {
	return b.proofs.use(id, client, until)
}

// ProofsSince implements oauth.ProofStore.
func (b *Bbolt) ProofsSince() time.Time { return b.proofs.since }

// UseProof implements oauth.ProofStore, in one command. Redis forgets the ID when it is over by its own
// clock, and has no shares.
func (r *Redis) UseProof(ctx context.Context, id oauth.ReplayID, _ oauth.ClientRef, until time.Time) (bool, error) {
	return r.once(ctx, "proof:", id, until)
}

// ProofsSince implements oauth.ProofStore.
func (r *Redis) ProofsSince() time.Time { return time.Time{} }

// once has Redis remember an ID under a prefix, and reports whether it is new.
func (r *Redis) once(ctx context.Context, prefix string, id oauth.ReplayID, until time.Time) (first bool, err error) {
	if r.evicts.Load() {
		return false, ErrEvicts
	}
	key := r.cfg.Prefix + prefix + hex.EncodeToString(id[:])
	life := max(time.Until(until), time.Second).Milliseconds() // a duration: the clock of Redis may differ
	err = r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		answer := c.Do(ctx, c.B().Set().Key(key).Value("").Nx().PxMilliseconds(life).Build())
		err := answer.Error()
		if rueidis.IsRedisNil(err) { // it was there
			return nil
		}
		first = err == nil
		return err
	})
	return err == nil && first, err
}
