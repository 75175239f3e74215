package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

var anyone = oauth.ClientRef{Realm: "root", ClientID: "anyone"}

func wantProof(t testing.TB, s oauth.ProofStore, name string, until time.Time, want bool) {
	t.Helper()
	if first, _, err := s.UseProof(ctx, replayOf(name), anyone, until); err != nil || first != want {
		t.Errorf("%s: first %t, %v; want %t", name, first, err, want)
	}
}

// testProofStore is the part of the suite about oauth.ProofStore.
func testProofStore(t *testing.T, open func(testing.TB) oauth.TokenStore) {
	opened := func(t testing.TB) oauth.ProofStore { return open(t).(oauth.ProofStore) }
	inAMinute := time.Now().Add(time.Minute)

	t.Run("what was used is refused, whatever its end is said to be", func(t *testing.T) {
		s := opened(t)
		wantProof(t, s, "a", inAMinute, true)
		wantProof(t, s, "b", inAMinute, true)
		for _, until := range []time.Time{inAMinute, inAMinute.Add(time.Minute), time.Now().Add(30 * time.Second), time.Now().Add(-time.Hour)} {
			wantProof(t, s, "a", until, false)
		}
		if first, _, err := s.UseProof(ctx, replayOf("a"), oauth.ClientRef{Realm: "root", ClientID: "other"}, inAMinute); first || err != nil {
			t.Errorf("by another client: first %t, %v", first, err)
		}
		if first, err := s.(oauth.ReplayStore).Once(ctx, replayOf("a"), oneUser, inAMinute); !first || err != nil {
			t.Errorf("an assertion with the ID of a proof: first %t, %v", first, err)
		}
	})

	t.Run("one of many gets it", func(t *testing.T) {
		s := opened(t)
		for round := range 20 {
			var won atomic.Int32
			var all sync.WaitGroup
			for range 16 {
				all.Go(func() {
					first, _, err := s.UseProof(ctx, replayOf(fmt.Sprint("round ", round)), anyone, inAMinute)
					if err != nil {
						t.Error(err)
					}
					if first {
						won.Add(1)
					}
				})
			}
			all.Wait()
			if won.Load() != 1 {
				t.Errorf("round %d: %d of 16 were the first", round, won.Load())
			}
		}
	})

	t.Run("a closed store says so", func(t *testing.T) {
		s := open(t)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if first, _, err := s.(oauth.ProofStore).UseProof(ctx, replayOf("a"), anyone, inAMinute); first || !errors.Is(err, oauth.ErrClosed) {
			t.Errorf("%t, %v; want ErrClosed", first, err)
		}
	})
}

// What a process remembers has a bound, of which no client gets it all, and room comes back when proofs
// are over.
func TestProofsHaveABound(t *testing.T) {
	now := time.Now()
	p := newProofs(func() time.Time { return now })
	if first, err := p.use(replayOf("x"), anyone, now.Add(1)); !first || err != nil {
		t.Fatal(first, err)
	}
	if first, err := p.use(replayOf("x"), anyone, now); first || err != nil {
		t.Errorf("known, and over in a nanosecond: %t, %v", first, err)
	}
	now = now.Add(2 * proofSlice)
	p.max = 8
	use := func(name, client string, until time.Time) error {
		first, err := p.use(replayOf(name), oauth.ClientRef{ClientID: client}, until)
		if first == (err != nil) {
			t.Errorf("%s: first %t, %v", name, first, err)
		}
		return err
	}
	for i := range 8 {
		client := fmt.Sprint(i / 2)
		if err := use(fmt.Sprint(i), client, now.Add(time.Duration(1+i%2)*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	if err := use("more", "0", now); !errors.Is(err, oauth.ErrClientFull) {
		t.Errorf("a client with its share: %v", err)
	}
	if err := use("more", "another", now); !errors.Is(err, oauth.ErrFull) {
		t.Errorf("one too many: %v", err)
	}
	if first, err := p.use(replayOf("7"), anyone, now); first || err != nil {
		t.Errorf("known, although all is full: %t, %v", first, err)
	}
	now = now.Add(time.Minute + proofSlice)
	if err := use("more", "0", now.Add(time.Minute)); err != nil {
		t.Errorf("after the first half is over: %v", err)
	}
	if first, err := p.use(replayOf("7"), anyone, now); first || err != nil {
		t.Errorf("known, and not over: %t, %v", first, err)
	}
	now = now.Add(time.Hour)
	if err := use("0", "0", now.Add(time.Minute)); err != nil || p.count != 1 || len(p.slices) != 1 || len(p.shares) != 1 {
		t.Errorf("after all is over: %v; %d proofs, %d slices, %d shares", err, p.count, len(p.slices), len(p.shares))
	}
}

// A process doesn't know which proofs were used before it began, and says so. Redis knows, unless it has
// lost its data, and then says so, too.
func TestSinceWhenProofsAreRemembered(t *testing.T) {
	path, now := filepath.Join(t.TempDir(), "tokens.db"), time.Now()
	b := openBbolt(t, path, func() time.Time { return now })
	if since := b.ProofsSince(); !since.Equal(now) {
		t.Errorf("since %v, not %v", since, now)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Minute)
	if since := openBbolt(t, path, func() time.Time { return now }).ProofsSince(); !since.Equal(now) {
		t.Errorf("after a restart, since %v, not %v", since, now)
	}
	if since := NewMemory(func() time.Time { return now }).ProofsSince(); !since.Equal(now) {
		t.Errorf("in memory, since %v, not %v", since, now)
	}
	server := redistest.Start(t)
	r, _ := redisAt(t, nil, server.Addr)
	if since := r.ProofsSince(); !since.IsZero() {
		t.Errorf("before Redis was asked, since %v", since)
	}
	use := func(name string, again bool) time.Time {
		t.Helper()
		first, since, err := r.UseProof(ctx, replayOf(name), anyone, inAnHour)
		if err != nil || first == again || !since.Equal(r.ProofsSince()) {
			t.Errorf("%s: first %t, since %v and %v, %v", name, first, since, r.ProofsSince(), err)
		}
		return since
	}
	before := time.Now().Truncate(time.Millisecond)
	began := use("a", false)
	if began.Before(before) || began.After(time.Now()) {
		t.Errorf("in a new Redis, since %v; it was %v", began, before)
	}
	if since := use("a", true); !since.Equal(began) {
		t.Errorf("since %v, then since %v", began, since)
	}
	eventually(t, "the next millisecond", func() bool { return time.Now().After(began.Add(2 * time.Millisecond)) })
	server.CLI("flushall")
	if since := use("a", false); !since.After(began) {
		t.Errorf("after a loss, since %v, as before", since)
	}
	redis := redistest.Start(t, "--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru")
	s, _ := redisAt(t, nil, redis.Addr)
	if err := s.Keeps(ctx); !errors.Is(err, ErrEvicts) {
		t.Fatalf("%v, want ErrEvicts", err)
	}
	if first, _, err := s.UseProof(ctx, replayOf("a"), anyone, inAnHour); first || !errors.Is(err, ErrEvicts) {
		t.Errorf("in a Redis that evicts: %t, %v; want ErrEvicts", first, err)
	}
}

func BenchmarkUseProof(b *testing.B) {
	p := newProofs(time.Now)
	var n atomic.Uint64
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := n.Add(1)
			if i%(maxProofs/4) == 0 {
				p.mu.Lock()
				p.count, p.shares = 0, make(map[oauth.ClientRef]int)
				clear(p.slices)
				p.mu.Unlock()
			}
			var id oauth.ReplayID
			id[0], id[1], id[2], id[3] = byte(i), byte(i>>8), byte(i>>16), byte(i>>24)
			if first, err := p.use(id, anyone, time.Now().Add(proofSlice)); err != nil || !first {
				b.Error(first, err)
			}
		}
	})
}
