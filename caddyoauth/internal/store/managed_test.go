package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

func managedRef(id string) oauth.ClientRef { return oauth.ClientRef{Realm: "root", ClientID: id} }

// swap changes a managed client, which must work.
func swap(t testing.TB, s oauth.ClientStore, id string, old uint64, data string) (version uint64) {
	t.Helper()
	text := []byte(data)
	if data == "" {
		text = nil
	}
	version, err := s.SwapManagedClient(ctx, "root", oauth.ManagedClient{ID: id, Version: old, Generation: 7, Data: text})
	if err != nil || version <= old {
		t.Fatalf("changing %s: version %d after %d, %v", id, version, old, err)
	}
	return version
}

// managedOf returns what a store keeps of the managed clients of a realm, by ID, as an answer says it.
func managedOf(answer oauth.ManagedClients) map[string]string {
	all := make(map[string]string)
	for _, client := range answer.Clients {
		all[client.ID] = string(client.Data)
	}
	return all
}

func wantManaged(t testing.TB, s oauth.ClientStore, realm string, want map[string]string) {
	t.Helper()
	answer, err := s.ManagedClients(ctx, realm, "")
	if err != nil || !answer.All || !maps.Equal(managedOf(answer), want) {
		t.Errorf("realm %s has %v, all %t, %v; want %v", realm, managedOf(answer), answer.All, err, want)
	}
	for id, data := range want {
		if client, err := s.ManagedClient(ctx, oauth.ClientRef{Realm: realm, ClientID: id}); err != nil || string(client.Data) != data || client.ID != id || client.Generation != 7 {
			t.Errorf("%s: %+v, %v; want %s", id, client, err, data)
		}
	}
	asked := append(slices.Sorted(maps.Keys(want)), "of nobody")
	some, err := s.ManagedClientsByID(ctx, realm, asked)
	if err != nil || len(some) != len(asked) || some[len(want)].Data != nil {
		t.Errorf("asked for %q: %+v, %v", asked, some, err)
		return
	}
	for i, client := range some {
		if client.ID != asked[i] || string(client.Data) != want[client.ID] {
			t.Errorf("asked for %s: %+v, want %s", asked[i], client, want[client.ID])
		}
	}
}

// testClientStore is the part of the suite about oauth.ClientStore.
func testClientStore(t *testing.T, open func(testing.TB) oauth.TokenStore) {
	opened := func(t testing.TB) oauth.ClientStore { return open(t).(oauth.ClientStore) }

	t.Run("a client is there once it was added, and gone once it was removed", func(t *testing.T) {
		s := opened(t)
		wantManaged(t, s, "root", nil)
		first := swap(t, s, "a", 0, "one")
		swap(t, s, "b: with spaces and ÿ", 0, "two")
		if _, err := s.SwapManagedClient(ctx, "rootless", oauth.ManagedClient{ID: "a", Generation: 7, Data: []byte("another realm's")}); err != nil {
			t.Fatal(err)
		}
		wantManaged(t, s, "root", map[string]string{"a": "one", "b: with spaces and ÿ": "two"})
		wantManaged(t, s, "rootless", map[string]string{"a": "another realm's"})
		second := swap(t, s, "a", first, "three")
		wantManaged(t, s, "root", map[string]string{"a": "three", "b: with spaces and ÿ": "two"})
		gone := swap(t, s, "a", second, "")
		wantManaged(t, s, "root", map[string]string{"b: with spaces and ÿ": "two"})
		if _, err := s.ManagedClient(ctx, managedRef("a")); !errors.Is(err, oauth.ErrNotFound) {
			t.Errorf("%v, want ErrNotFound", err)
		}
		if again := swap(t, s, "a", 0, "four"); again <= gone-1 || again == first || again == second {
			t.Errorf("the new client has version %d, as had the one that was removed: %d, %d, %d", again, first, second, gone)
		}
		wantManaged(t, s, "rootless", map[string]string{"a": "another realm's"})
	})

	t.Run("whoever knows another version changes nothing", func(t *testing.T) {
		s := opened(t)
		first := swap(t, s, "a", 0, "one")
		for name, old := range map[string]uint64{"none": 0, "an older one": first - 1, "a later one": first + 1} {
			for _, data := range []string{"two", ""} {
				if _, err := s.SwapManagedClient(ctx, "root", oauth.ManagedClient{ID: "a", Version: old, Data: append([]byte(nil), data...)}); !errors.Is(err, oauth.ErrChanged) {
					t.Errorf("%s: %v, want ErrChanged", name, err)
				}
			}
		}
		if _, err := s.SwapManagedClient(ctx, "root", oauth.ManagedClient{ID: "nobody", Version: 7, Data: []byte("x")}); !errors.Is(err, oauth.ErrChanged) {
			t.Errorf("a client that is not there: %v, want ErrChanged", err)
		}
		wantManaged(t, s, "root", map[string]string{"a": "one"})
	})

	t.Run("one of many changes it", func(t *testing.T) {
		s := opened(t)
		version := swap(t, s, "a", 0, "0")
		for round := range 10 {
			var won, lost atomic.Int64
			var all sync.WaitGroup
			for i := range 8 {
				all.Go(func() {
					next, err := s.SwapManagedClient(ctx, "root", oauth.ManagedClient{ID: "a", Version: version, Data: fmt.Append(nil, round, i)})
					switch {
					case err == nil:
						won.Store(int64(next))
					case errors.Is(err, oauth.ErrChanged):
						lost.Add(1)
					default:
						t.Error(err)
					}
				})
				all.Go(func() { // other clients don't disturb
					if _, err := s.SwapManagedClient(ctx, "root", oauth.ManagedClient{ID: fmt.Sprint("b", round, i), Data: []byte("x")}); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			if won.Load() == 0 || lost.Load() != 7 {
				t.Fatalf("round %d: %d of 8 lost", round, lost.Load())
			}
			version = uint64(won.Load())
		}
	})

	t.Run("a question about changes gets them, or all", func(t *testing.T) {
		s := opened(t)
		known := make(map[string]string)
		position := ""
		follow := func(want map[string]string) {
			t.Helper()
			answer, err := s.ManagedClients(ctx, "root", position)
			if err != nil {
				t.Fatal(err)
			}
			if answer.All {
				clear(known)
			}
			maps.Copy(known, managedOf(answer))
			maps.DeleteFunc(known, func(_, data string) bool { return data == "" })
			position = answer.Position
			if !maps.Equal(known, want) {
				t.Errorf("it comes to %v, want %v", known, want)
			}
		}
		follow(map[string]string{})
		a := swap(t, s, "a", 0, "1")
		follow(map[string]string{"a": "1"})
		follow(map[string]string{"a": "1"})
		b := swap(t, s, "b", 0, "2")
		a = swap(t, s, "a", a, "3")
		follow(map[string]string{"a": "3", "b": "2"})
		swap(t, s, "b", b, "")
		follow(map[string]string{"a": "3"})
		swap(t, s, "a", a, "")
		follow(map[string]string{})
	})

	t.Run("several clients change together, or none does", func(t *testing.T) {
		s := opened(t)
		a := swap(t, s, "a", 0, "1")
		b := swap(t, s, "b", 0, "2")
		client := func(id string, old uint64, data string) oauth.ManagedClient {
			next := oauth.ManagedClient{ID: id, Version: old, Generation: 7}
			if data != "" {
				next.Data = []byte(data)
			}
			return next
		}
		for name, next := range map[string][]oauth.ManagedClient{
			"the last one has changed":    {client("c", 0, "3"), client("a", a, "4"), client("b", b-1, "5")},
			"the last one is there":       {client("c", 0, "3"), client("a", a, ""), client("b", 0, "5")},
			"the first one has gone":      {client("d", 1, "3"), client("a", a, "4")},
			"one to remove is not there":  {client("a", a, "4"), client("d", 1, "")},
			"one to remove is of another": {client("a", a, "4"), client("b", b+1, "")},
		} {
			if versions, err := s.SwapManagedClients(ctx, "root", next); !errors.Is(err, oauth.ErrChanged) {
				t.Errorf("%s: %v, %v, want ErrChanged", name, versions, err)
			}
			wantManaged(t, s, "root", map[string]string{"a": "1", "b": "2"})
		}
		versions, err := s.SwapManagedClients(ctx, "root", []oauth.ManagedClient{client("c", 0, "3"), client("a", a, "4"), client("b", b, "")})
		if err != nil || len(versions) != 3 || versions[1] <= a || versions[2] <= b {
			t.Fatalf("%v, %v", versions, err)
		}
		wantManaged(t, s, "root", map[string]string{"c": "3", "a": "4"})
		for i, id := range []string{"c", "a"} {
			if got, err := s.ManagedClient(ctx, managedRef(id)); err != nil || got.Version != versions[i] {
				t.Errorf("%s has version %d, %v, want %d", id, got.Version, err, versions[i])
			}
		}
		if versions, err := s.SwapManagedClients(ctx, "root", nil); err != nil || len(versions) != 0 {
			t.Errorf("none: %v, %v", versions, err)
		}
	})

	t.Run("a closed store says so", func(t *testing.T) {
		s := open(t)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		clients := s.(oauth.ClientStore)
		_, err := clients.ManagedClients(ctx, "root", "")
		_, err2 := clients.ManagedClient(ctx, managedRef("a"))
		_, err4 := clients.ManagedClientsByID(ctx, "root", []string{"a"})
		_, err3 := clients.SwapManagedClient(ctx, "root", oauth.ManagedClient{ID: "a", Data: []byte("x")})
		for _, err := range []error{err, err2, err3, err4} {
			if !errors.Is(err, oauth.ErrClosed) {
				t.Errorf("%v, want ErrClosed", err)
			}
		}
	})
}

// Another gateway on the same Redis is told of changes alone, and of all clients if it has missed too
// many, or if Redis no longer knows what it was told last.
func TestRedisTellsOfChangedClients(t *testing.T) {
	server := redistest.Start(t)
	here, _ := redisAt(t, nil, server.Addr)
	there, _ := redisAt(t, nil, server.Addr)
	for i := range 20 {
		swap(t, here, fmt.Sprint("c", i), 0, "x")
	}
	all, err := there.ManagedClients(ctx, "root", "")
	if err != nil || len(all.Clients) != 20 || !all.All {
		t.Fatalf("%d clients, all %t, %v", len(all.Clients), all.All, err)
	}
	version := swap(t, here, "new", 0, "y")
	swap(t, here, "gone", swap(t, here, "gone", 0, "z"), "")
	changed, err := there.ManagedClients(ctx, "root", all.Position)
	if want := map[string]string{"new": "y", "gone": ""}; err != nil || changed.All || !maps.Equal(managedOf(changed), want) {
		t.Errorf("changed are %v, all %t, %v; want %v", managedOf(changed), changed.All, err, want)
	}
	if none, err := there.ManagedClients(ctx, "root", changed.Position); err != nil || none.All || len(none.Clients) != 0 || none.Position != changed.Position {
		t.Errorf("then %+v, %v; want nothing", none, err)
	}
	for range managedStep + 1 {
		version = swap(t, here, "new", version, "again")
	}
	if many, err := there.ManagedClients(ctx, "root", changed.Position); err != nil || !many.All || len(many.Clients) != 21 {
		t.Errorf("after many changes: %d clients, all %t, %v; want all 21", len(many.Clients), many.All, err)
	}
	server.CLI("del", here.managedChangesKey("root"))
	if lost, err := there.ManagedClients(ctx, "root", changed.Position); err != nil || !lost.All || len(lost.Clients) != 21 {
		t.Errorf("after the changes were lost: %d clients, all %t, %v; want all 21", len(lost.Clients), lost.All, err)
	}
	server.CLI("hset", here.managedKey("root"), "broken", "x")
	if _, err := there.ManagedClients(ctx, "root", ""); !errors.Is(err, errCorrupt) {
		t.Errorf("what makes no sense: %v, want errCorrupt", err)
	}
}

// A Redis that loses a change that it has acknowledged gets it back from the gateway that made it, and
// keeps what others have done since.
func TestRedisGetsBackLostClients(t *testing.T) {
	server := redistest.Start(t)
	s, _ := redisAt(t, nil, server.Addr)
	kept := swap(t, s, "kept", 0, "before")
	removed := swap(t, s, "removed", 0, "before")
	swap(t, s, "removed", removed, "")
	lost := swap(t, s, "lost", 0, "lost")
	swap(t, s, "kept", kept, "after")
	// What Redis goes back to, without the last changes.
	for id, stored := range map[string]oauth.ManagedClient{"kept": {Version: kept, Data: []byte("before")}, "removed": {Version: removed, Data: []byte("before")}, "others": {Version: lost, Generation: 7, Data: []byte("others")}} {
		if err := s.client.Do(ctx, s.client.B().Hset().Key(s.managedKey("root")).FieldValue().FieldValue(id, string(encodeManaged(stored))).Build()).Error(); err != nil {
			t.Fatal(err)
		}
	}
	server.CLI("hdel", s.managedKey("root"), "lost")
	server.CLI("del", s.managedChangesKey("root"))
	s.mu.Lock()
	s.lostAt = time.Now()
	s.mu.Unlock()
	if err := s.repeatManaged(ctx); err != nil {
		t.Fatal(err)
	}
	wantManaged(t, s, "root", map[string]string{"kept": "after", "lost": "lost", "others": "others"})
}

// A gateway that loses its link to a Redis that has lost nothing brings back no client that was removed
// meanwhile, and undoes no change, however many others there were.
func TestRedisBringsNoClientBack(t *testing.T) {
	server := redistest.Start(t)
	here, _ := redisAt(t, nil, server.Addr)
	there, _ := redisAt(t, nil, server.Addr)
	removed, changed := swap(t, here, "removed", 0, "x"), swap(t, here, "changed", 0, "x")
	swap(t, there, "removed", removed, "")
	swap(t, there, "changed", changed, "y")
	version := swap(t, there, "often", 0, "x")
	for range 2*managedStep + 1 {
		version = swap(t, there, "often", version, "x")
	}
	swap(t, there, "often", version, "")
	here.mu.Lock()
	here.lostAt = time.Now()
	here.mu.Unlock()
	if err := here.repeatManaged(ctx); err != nil {
		t.Fatal(err)
	}
	wantManaged(t, there, "root", map[string]string{"changed": "y"})
}

// A file of the version before opens, and keeps managed clients from then on.
func TestBboltFileWithoutManagedClients(t *testing.T) {
	path := boltFile(t, func(tx *bolt.Tx) error {
		for _, name := range fileBuckets[2] {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return putRaw(tx, "meta", "version", "2")
	})
	b := openBbolt(t, path, time.Now)
	swap(t, b, "a", 0, "one")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = openBbolt(t, path, time.Now)
	wantManaged(t, b, "root", map[string]string{"a": "one"})
}

// What was written in another way than this program does is no client.
func TestBboltCorruptManagedClient(t *testing.T) {
	b := openBbolt(t, filepath.Join(t.TempDir(), "tokens.db"), time.Now)
	if err := b.write(context.Background(), func(tx *bolt.Tx) error {
		return setValue(tx.Bucket(bucketManaged), managedKey(managedRef("a")), []byte("short"))
	}); err != nil {
		t.Fatal(err)
	}
	_, err := b.ManagedClient(ctx, managedRef("a"))
	_, err2 := b.ManagedClients(ctx, "root", "")
	_, err3 := b.SwapManagedClient(ctx, "root", oauth.ManagedClient{ID: "a", Data: []byte("x")})
	if slices.ContainsFunc([]error{err, err2, err3}, func(err error) bool { return !errors.Is(err, errCorrupt) }) {
		t.Errorf("%v, %v, %v; want errCorrupt", err, err2, err3)
	}
}
