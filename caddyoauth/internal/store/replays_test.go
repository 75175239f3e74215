package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

var oneUser = oauth.ClientRef{Realm: "root", ClientID: "a"}

// userOf returns a client for each name.
func userOf(name string) oauth.ClientRef { return oauth.ClientRef{Realm: "root", ClientID: name} }

func replayOf(name string) oauth.ReplayID { return sha256.Sum256([]byte(name)) }

func wantOnce(t testing.TB, s oauth.ReplayStore, name string, until time.Time, want bool) {
	t.Helper()
	if first, err := s.Once(ctx, replayOf(name), userOf(name), until); err != nil || first != want {
		t.Errorf("%s: first %t, %v; want %t", name, first, err, want)
	}
}

// testReplayStore is the part of the suite about oauth.ReplayStore.
func testReplayStore(t *testing.T, open func(testing.TB) oauth.TokenStore) {
	opened := func(t testing.TB) oauth.ReplayStore { return open(t).(oauth.ReplayStore) }

	t.Run("what was used is refused, whatever its end is said to be", func(t *testing.T) {
		s := opened(t)
		wantOnce(t, s, "a", inAnHour, true)
		wantOnce(t, s, "b", inAnHour, true)
		for _, until := range []time.Time{inAnHour, inAnHour.Add(time.Hour), time.Now().Add(time.Minute), time.Now().Add(-time.Hour)} {
			wantOnce(t, s, "a", until, false)
		}
	})

	t.Run("one of many gets it", func(t *testing.T) {
		s := opened(t)
		for round := range 20 {
			var won atomic.Int32
			var all sync.WaitGroup
			for range 16 {
				all.Go(func() {
					first, err := s.Once(ctx, replayOf(fmt.Sprint("round ", round)), oneUser, inAnHour)
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

	t.Run("a caller that has gone away gets no yes", func(t *testing.T) {
		gone, cancel := context.WithCancel(ctx)
		cancel()
		if first, err := opened(t).Once(gone, replayOf("a"), oneUser, inAnHour); first && err != nil {
			t.Errorf("first, and %v", err)
		}
	})

	t.Run("a closed store says so", func(t *testing.T) {
		s := open(t)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if first, err := s.(oauth.ReplayStore).Once(ctx, replayOf("a"), oneUser, inAnHour); first || !errors.Is(err, oauth.ErrClosed) {
			t.Errorf("%t, %v; want ErrClosed", first, err)
		}
	})
}

// What a store in memory remembers has a bound, and room comes back when IDs are over.
func TestMemoryRemembersABoundedNumber(t *testing.T) {
	now := time.Now()
	m := NewMemory(func() time.Time { return now })
	m.max = 4
	for _, name := range []string{"x", "y"} {
		wantOnce(t, m, name, now.Add(3*time.Minute), true)
	}
	wantOnce(t, m, "a", now.Add(time.Minute), true)
	wantOnce(t, m, "b", now.Add(2*time.Minute), true)
	if first, err := m.Once(ctx, replayOf("c"), userOf("c"), now.Add(time.Minute)); first || !errors.Is(err, oauth.ErrFull) {
		t.Errorf("one too many: %t, %v; want ErrFull", first, err)
	}
	wantOnce(t, m, "a", now.Add(time.Minute), false)
	now = now.Add(time.Minute)
	wantOnce(t, m, "c", now.Add(time.Minute), true)
	wantOnce(t, m, "b", now.Add(time.Minute), false)
}

// One client may have a quarter of the room, and gets it back when its IDs are over. What it has used
// stays used.
func TestMemoryGivesEachClientAShareOfWhatWasUsed(t *testing.T) {
	now := time.Now()
	m := NewMemory(func() time.Time { return now })
	m.max = 8
	once := func(client, name string, want bool, wantErr error) {
		t.Helper()
		if first, err := m.Once(ctx, replayOf(client+name), userOf(client), now.Add(time.Minute)); first != want || !errors.Is(err, wantErr) {
			t.Errorf("%s of %s: %t, %v; want %t, %v", name, client, first, err, want, wantErr)
		}
	}
	for _, name := range []string{"1", "2"} {
		once("greedy", name, true, nil)
	}
	once("greedy", "3", false, oauth.ErrClientFull)
	once("greedy", "2", false, nil)
	for _, client := range []string{"a", "b", "c"} {
		once(client, "1", true, nil)
		once(client, "2", true, nil)
	}
	once("d", "1", false, oauth.ErrFull)
	now = now.Add(time.Minute)
	once("greedy", "3", true, nil)
	if len(m.used.users) != 1 {
		t.Errorf("%d clients are remembered", len(m.used.users))
	}
}

// A file remembers across a restart, and forgets what is over in both of its buckets.
func TestFileRemembersWhatWasUsed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.db")
	now := time.Now()
	b := openBbolt(t, path, func() time.Time { return now })
	wantOnce(t, b, "a", now.Add(time.Minute), true)
	wantOnce(t, b, "b", now.Add(time.Hour), true)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = openBbolt(t, path, func() time.Time { return now })
	wantOnce(t, b, "a", now.Add(time.Minute), false)
	now = now.Add(time.Minute)
	wantOnce(t, b, "c", now.Add(time.Hour), true) // a transaction also drops what is over
	if err := b.view(func(tx *bolt.Tx) error {
		id := replayOf("a")
		if tx.Bucket(bucketUsed).Get(id[:]) != nil {
			t.Error("it remembers what is over")
		}
		for _, bucket := range [][]byte{bucketUsed, bucketUsedUntil} {
			if n := tx.Bucket(bucket).Stats().KeyN; n != 2 {
				t.Errorf("%s has %d entries, want 2", bucket, n)
			}
		}
		k, _ := tx.Bucket(bucketUsedUntil).Cursor().First()
		if id := replayOf("b"); !bytes.Equal(k[8:], id[:]) {
			t.Error("another ID is the first to end")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// A Redis that may drop what it holds can't tell what was used.
func TestEvictingRedisRemembersNothing(t *testing.T) {
	redis := redistest.Start(t, "--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru")
	s, _ := redisAt(t, nil, redis.Addr)
	if err := s.Keeps(ctx); !errors.Is(err, ErrEvicts) {
		t.Fatalf("%v, want ErrEvicts", err)
	}
	if first, err := s.Once(ctx, replayOf("a"), oneUser, inAnHour); first || !errors.Is(err, ErrEvicts) {
		t.Errorf("%t, %v; want ErrEvicts", first, err)
	}
}
