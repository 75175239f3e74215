package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// someUse is a use with all fields set, some seconds after a moment.
func someUse(seconds int) oauth.Use {
	at := time.UnixMilli(1_700_000_000_123).Add(time.Duration(seconds) * time.Second).UTC()
	return oauth.Use{
		Token: at, Seen: at.Add(time.Second), From: "192.0.2.0/24", Method: oauth.AuthBasic, Credential: "ab12",
		Credentials: map[string]time.Time{"ab12": at, fmt.Sprint("of ", seconds): at.Add(-time.Hour)}, Dropped: at.Add(-24 * time.Hour),
	}
}

func mergeUses(t testing.TB, s oauth.UsageStore, realm string, uses map[string]oauth.Use) {
	t.Helper()
	if err := s.AddUses(ctx, realm, uses); err != nil {
		t.Fatal(err)
	}
}

// wantUses checks what is kept of the clients of a realm, asked about these IDs, and returns since when.
func wantUses(t testing.TB, s oauth.UsageStore, realm string, ids []string, want map[string]oauth.Use) time.Time {
	t.Helper()
	uses, err := s.Uses(ctx, realm, ids)
	if err != nil || !reflect.DeepEqual(uses.Clients, want) {
		t.Errorf("realm %s has %+v, %v; want %+v", realm, uses.Clients, err, want)
	}
	return uses.Since
}

// testUsageStore is the part of the suite about oauth.UsageStore.
func testUsageStore(t *testing.T, open func(testing.TB) oauth.TokenStore) {
	opened := func(t testing.TB) oauth.UsageStore { return open(t).(oauth.UsageStore) }
	type uses = map[string]oauth.Use

	t.Run("uses are merged, and kept apart by realm and client", func(t *testing.T) {
		s := opened(t)
		if since := wantUses(t, s, "root", nil, uses{}); !since.IsZero() {
			t.Errorf("before anything was kept: since %v", since)
		}
		begin := time.Now().Add(-time.Millisecond)
		mergeUses(t, s, "root", nil)
		since := wantUses(t, s, "root", nil, uses{})
		if since.Before(begin) || since.After(time.Now()) {
			t.Errorf("kept since %v, want now", since)
		}
		const odd = "b: with spaces and ÿ"
		mergeUses(t, s, "root", uses{"a": someUse(10), odd: someUse(20)})
		mergeUses(t, s, "rootless", uses{"a": someUse(30)})
		wantUses(t, s, "root", nil, uses{"a": someUse(10), odd: someUse(20)})
		wantUses(t, s, "rootless", nil, uses{"a": someUse(30)})
		wantUses(t, s, "root", []string{"a", "nobody"}, uses{"a": someUse(10)})
		wantUses(t, s, "root", []string{}, uses{})

		mergeUses(t, s, "root", uses{"a": someUse(5)}) // another gateway may be late
		mergeUses(t, s, "root", uses{"a": someUse(15), odd: {}})
		merged := someUse(5).Merge(someUse(10)).Merge(someUse(15))
		if again := wantUses(t, s, "root", nil, uses{"a": merged, odd: someUse(20)}); !again.Equal(since) {
			t.Errorf("kept since %v, and first since %v", again, since)
		}
		if err := s.ForgetUses(ctx, "root", []string{"a", "nobody"}); err != nil {
			t.Fatal(err)
		}
		if err := s.ForgetUses(ctx, "root", nil); err != nil {
			t.Fatal(err)
		}
		if again := wantUses(t, s, "root", nil, uses{odd: someUse(20)}); !again.Equal(since) {
			t.Errorf("kept since %v, and first since %v", again, since)
		}
		wantUses(t, s, "rootless", nil, uses{"a": someUse(30)})
	})

	t.Run("a managed client takes its use along", func(t *testing.T) {
		s := opened(t)
		clients := s.(oauth.ClientStore)
		version := swap(t, clients, "m", 0, "x")
		mergeUses(t, s, "root", uses{"m": someUse(1), "n": someUse(2)})
		version = swap(t, clients, "m", version, "y")
		wantUses(t, s, "root", []string{"m"}, uses{"m": someUse(1)})
		swap(t, clients, "m", version, "")
		wantUses(t, s, "root", nil, uses{"n": someUse(2)})
	})

	t.Run("many at a time, by several at once", func(t *testing.T) {
		s := opened(t)
		const n = 2*usesStep + 7
		var all sync.WaitGroup
		for writer := range 4 {
			all.Go(func() {
				these := make(uses, n)
				for i := range n {
					these[fmt.Sprint("c", i)] = someUse(10 * writer)
				}
				// On a busy machine one of them may wait for too long. Then it merges once more, as a gateway does.
				err := s.AddUses(ctx, "root", these)
				for again := 0; errors.Is(err, oauth.ErrUnreachable) && again < 10; again++ {
					err = s.AddUses(ctx, "root", these)
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		merged := someUse(0).Merge(someUse(10)).Merge(someUse(20)).Merge(someUse(30))
		want := make(uses, n)
		var ids []string
		for i := range n {
			want[fmt.Sprint("c", i)] = merged
			ids = append(ids, fmt.Sprint("c", i))
		}
		wantUses(t, s, "root", nil, want)
		wantUses(t, s, "root", ids, want)
	})

	t.Run("a closed store says so", func(t *testing.T) {
		s := open(t)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		u := s.(oauth.UsageStore)
		_, err := u.Uses(ctx, "root", nil)
		for _, err := range []error{err, u.AddUses(ctx, "root", nil), u.ForgetUses(ctx, "root", []string{"a"})} {
			if !errors.Is(err, oauth.ErrClosed) {
				t.Errorf("%v, want ErrClosed", err)
			}
		}
	})
}

// What clients did last survives in a file, also in one that had no room for it, as that of an earlier
// version or of the same one.
func TestBboltKeepsUses(t *testing.T) {
	for version := range fileVersion {
		path := boltFile(t, func(tx *bolt.Tx) error {
			for _, name := range fileBuckets[version+1] {
				if _, err := tx.CreateBucket(name); err != nil {
					return err
				}
			}
			return putRaw(tx, "meta", "version", fmt.Sprint(version+1))
		})
		var since [2]time.Time
		for round := range 2 {
			b := openBbolt(t, path, time.Now)
			mergeUses(t, b, "root", map[string]oauth.Use{"a": someUse(1)})
			since[round] = wantUses(t, b, "root", nil, map[string]oauth.Use{"a": someUse(1)})
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if !since[0].Equal(since[1]) {
			t.Errorf("version %d: kept since %v, and after a restart since %v", version+1, since[0], since[1])
		}
	}
}

// What can't be read is as if it weren't there, and is replaced: nobody is refused for it.
func TestBboltUseThatMakesNoSense(t *testing.T) {
	b := openBbolt(t, filepath.Join(t.TempDir(), "tokens.db"), time.Now)
	if err := b.write(ctx, func(tx *bolt.Tx) error {
		return errors.Join(setValue(tx.Bucket(bucketUses), useKey(managedRef("a")), []byte("{")), setValue(tx.Bucket(bucketUses), useKey(managedRef("")), []byte("short")))
	}); err != nil {
		t.Fatal(err)
	}
	if since := wantUses(t, b, "root", nil, map[string]oauth.Use{}); !since.IsZero() {
		t.Errorf("kept since %v", since)
	}
	mergeUses(t, b, "root", map[string]oauth.Use{"a": someUse(1)})
	wantUses(t, b, "root", nil, map[string]oauth.Use{"a": someUse(1)})
}

// Gateways don't ask what they share whenever another one has written what its clients did.
func TestRedisUsesAreNoChange(t *testing.T) {
	server := redistest.Start(t)
	here, _ := redisAt(t, nil, server.Addr)
	there, h := redisAt(t, nil, server.Addr)
	h.wantStory(t, "regained")
	mergeUses(t, here, "root", map[string]oauth.Use{"a": someUse(1)})
	wantUses(t, there, "root", nil, map[string]oauth.Use{"a": someUse(1)})
	if _, err := there.ManagedClients(ctx, "root", ""); err != nil {
		t.Fatal(err)
	}
	changes := func() (n int) {
		h.did(func() { n = h.changes })
		return n
	}
	before := changes()
	mergeUses(t, here, "root", map[string]oauth.Use{"a": someUse(2)})
	swap(t, here, "m", 0, "x")                                                                        // which is a change, and is heard of after the other
	eventually(t, "the change of a client is reported", func() bool { return changes() >= before+2 }) // the hash and the stream
	if story, _ := h.told(); story == "regained" && changes() != before+2 {
		t.Errorf("%d changes are reported, want those of the client alone", changes()-before)
	}
	for key, want := range map[string]bool{"caddy-oauth:{realm:root}:uses": true, "caddy-oauth:{realm:}:uses": false, "caddy-oauth:{realm:root}:keys": false, "x": false, "other-oauth:{realm:root}:uses": false} {
		if here.isUsesKey(key) != want {
			t.Errorf("%s: %t", key, !want)
		}
	}
}
