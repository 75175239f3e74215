package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

var epochA, epochB = oauth.Epoch([]byte("0123456789abcdef")), oauth.Epoch([]byte("another epoch, b"))

// keyringOf returns a keyring as the stores know them: an epoch, and bytes that they don't look at.
func keyringOf(epoch oauth.Epoch, rest string) []byte { return append(epoch[:], rest...) }

func swapKeys(t testing.TB, s oauth.KeyStore, realm string, old, next []byte, want bool) {
	t.Helper()
	if swapped, err := s.SwapKeys(ctx, realm, old, next); err != nil || swapped != want {
		t.Errorf("swapping %q for %q: %t, %v; want %t", old, next, swapped, err, want)
	}
}

func hasKeys(t testing.TB, s oauth.KeyStore, realm string, want []byte) {
	t.Helper()
	if got, err := s.Keys(ctx, realm); err != nil || !bytes.Equal(got, want) || (got == nil) != (want == nil) {
		t.Errorf("the keyring of %s is %q, %v; want %q", realm, got, err, want)
	}
}

func wantDenied(t testing.TB, s oauth.KeyStore, epoch oauth.Epoch, key oauth.Key, want bool) {
	t.Helper()
	if denied, err := s.Denied(ctx, epoch, key); err != nil || denied != want {
		t.Errorf("denied: %t, %v; want %t", denied, err, want)
	}
}

// testKeyStore is the part of the suite about oauth.KeyStore.
func testKeyStore(t *testing.T, open func(testing.TB) oauth.TokenStore) {
	opened := func(t testing.TB) oauth.KeyStore { return open(t).(oauth.KeyStore) }

	t.Run("a keyring can be read while it is replaced again and again", func(t *testing.T) {
		s := opened(t)
		ring := keyringOf(epochA, "0")
		swapKeys(t, s, "root", nil, ring, true)
		wantDenied(t, s, epochA, oauth.Key{Realm: "root", ExpiryMilli: inAnHour.UnixMilli()}, false) // from now on it knows denials
		stop := make(chan struct{})
		var readers sync.WaitGroup
		for range 8 {
			readers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := s.Keys(ctx, "root"); err != nil {
						t.Errorf("reading: %v", err)
						return
					}
				}
			})
		}
		for i := range 150 {
			next := keyringOf(epochA, fmt.Sprint(i+1))
			if swapped, err := s.SwapKeys(ctx, "root", ring, next); err != nil || !swapped {
				t.Errorf("replacing: %t, %v", swapped, err)
				break
			}
			ring = next
		}
		close(stop)
		readers.Wait()
	})

	t.Run("a keyring is replaced by whoever knows the one there is", func(t *testing.T) {
		s := opened(t)
		hasKeys(t, s, "root", nil)
		first, second := keyringOf(epochA, "first"), keyringOf(epochA, "second\x00\xff")
		swapKeys(t, s, "root", first, second, false)
		swapKeys(t, s, "root", []byte{}, second, false)
		hasKeys(t, s, "root", nil)
		swapKeys(t, s, "root", nil, first, true)
		swapKeys(t, s, "root", nil, second, false)
		hasKeys(t, s, "root", first)
		swapKeys(t, s, "root", first, second, true)
		swapKeys(t, s, "root", first, second, false)
		hasKeys(t, s, "root", second)
		hasKeys(t, s, "other", nil)
		first[0]++ // it is the caller's
		second[0]++
		hasKeys(t, s, "root", keyringOf(epochA, "second\x00\xff"))
	})

	t.Run("of many that replace a keyring one succeeds", func(t *testing.T) {
		s := opened(t)
		var all sync.WaitGroup
		var mu sync.Mutex
		var swapped []int
		for i := range 8 {
			all.Go(func() {
				ok, err := s.SwapKeys(ctx, "root", nil, keyringOf(epochA, fmt.Sprint(i)))
				if err != nil {
					t.Error(err)
				}
				if ok {
					mu.Lock()
					defer mu.Unlock()
					swapped = append(swapped, i)
				}
			})
		}
		all.Wait()
		if len(swapped) != 1 {
			t.Fatalf("%v succeeded, want one", swapped)
		}
		hasKeys(t, s, "root", keyringOf(epochA, fmt.Sprint(swapped[0])))
	})

	t.Run("a denied token is denied in its epoch, and the epoch is known", func(t *testing.T) {
		s := opened(t)
		a, b := tokenOf("a").Key, tokenOf("b").Key
		if _, err := s.Denied(ctx, epochA, a); !errors.Is(err, oauth.ErrOtherEpoch) {
			t.Errorf("without a keyring: %v, want ErrOtherEpoch", err)
		}
		swapKeys(t, s, "root", nil, keyringOf(epochA, "x"), true)
		if err := s.Keeps(ctx); err != nil {
			t.Error(err)
		}
		wantDenied(t, s, epochA, a, false)
		for range 2 {
			if err := s.Deny(ctx, a, "c"); err != nil {
				t.Error(err)
			}
		}
		wantDenied(t, s, epochA, a, true)
		wantDenied(t, s, epochA, b, false)
		if _, err := s.Denied(ctx, epochB, a); !errors.Is(err, oauth.ErrOtherEpoch) {
			t.Errorf("in another epoch: %v, want ErrOtherEpoch", err)
		}
		other := a
		other.Realm = "other"
		if _, err := s.Denied(ctx, epochA, other); !errors.Is(err, oauth.ErrOtherEpoch) {
			t.Errorf("in another realm: %v, want ErrOtherEpoch", err)
		}
		swapKeys(t, s, "root", keyringOf(epochA, "x"), keyringOf(epochA, "y"), true)
		wantDenied(t, s, epochA, a, true)
		swapKeys(t, s, "root", keyringOf(epochA, "y"), keyringOf(epochB, "z"), true)
		if _, err := s.Denied(ctx, epochA, a); !errors.Is(err, oauth.ErrOtherEpoch) {
			t.Errorf("after the epoch has ended: %v, want ErrOtherEpoch", err)
		}
	})

	t.Run("denials are apart from records", func(t *testing.T) {
		s := opened(t)
		swapKeys(t, s, "root", nil, keyringOf(epochA, ""), true)
		token := tokenOf("a")
		put(t, s.(oauth.TokenStore), token)
		wantDenied(t, s, epochA, token.Key, false)
		if err := s.Deny(ctx, token.Key, "c"); err != nil {
			t.Error(err)
		}
		present(t, s.(oauth.TokenStore), token)
		if err := s.(oauth.TokenStore).Revoke(ctx, token.Key); err != nil {
			t.Error(err)
		}
		wantDenied(t, s, epochA, token.Key, true)
	})

	t.Run("many denials at once", func(t *testing.T) {
		s := opened(t)
		swapKeys(t, s, "root", nil, keyringOf(epochA, ""), true)
		var all sync.WaitGroup
		for w := range 8 {
			all.Go(func() {
				for i := range 25 {
					key := tokenOf(fmt.Sprint(w, " ", i)).Key
					wantDenied(t, s, epochA, key, false)
					if err := s.Deny(ctx, key, "c"); err != nil {
						t.Error(err)
					}
					wantDenied(t, s, epochA, key, true)
				}
			})
		}
		all.Wait()
	})

	t.Run("a closed store says so", func(t *testing.T) {
		s := opened(t)
		if err := s.(oauth.TokenStore).Close(); err != nil {
			t.Fatal(err)
		}
		key := tokenOf("a").Key
		_, keys := s.Keys(ctx, "root")
		_, swap := s.SwapKeys(ctx, "root", nil, epochA[:])
		_, denied := s.Denied(ctx, epochA, key)
		for call, err := range map[string]error{"Keys": keys, "SwapKeys": swap, "Deny": s.Deny(ctx, key, "c"), "Denied": denied} {
			if !errors.Is(err, oauth.ErrClosed) {
				t.Errorf("%s: %v, want ErrClosed", call, err)
			}
		}
	})
}

// settled waits until the stores know all denials of a realm.
func settled(t testing.TB, realm string, stores ...*Redis) {
	t.Helper()
	for _, r := range stores {
		eventually(t, "all denials are known", func() bool {
			d := r.denialsOf(realm)
			d.mu.RLock()
			defer d.mu.RUnlock()
			return d.confirmed
		})
	}
}

// What expires is dropped, so that denials don't add up, and never before.
func TestDenialsAreDropped(t *testing.T) {
	var mu sync.Mutex
	now := time.Now()
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	memory := NewMemory(clock)
	bbolt := openBbolt(t, filepath.Join(t.TempDir(), "tokens.db"), clock)
	count := func() (inMemory, inFile int) {
		memory.mu.Lock()
		defer memory.mu.Unlock()
		if err := bbolt.view(func(tx *bolt.Tx) error {
			inFile = tx.Bucket(bucketDenied).Stats().KeyN
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if len(memory.denied) != len(memory.deniedUntil) {
			t.Errorf("%d denials, but %d in the heap", len(memory.denied), len(memory.deniedUntil))
		}
		if h := memory.deniers[oauth.ClientRef{Realm: "root", ClientID: "c"}]; h.keys != len(memory.denied) {
			t.Errorf("%d denials, but the client has %d", len(memory.denied), h.keys)
		}
		if n := len(bbolt.denials.known); n != inFile {
			t.Errorf("%d denials in the file, but %d in memory", inFile, n)
		}
		return len(memory.denied), inFile
	}
	deny := func(key oauth.Key) {
		t.Helper()
		if err := errors.Join(memory.Deny(ctx, key, "c"), bbolt.Deny(ctx, key, "c")); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		deny(tokenUntil(fmt.Sprint(i), now.Add(time.Minute)).Key)
	}
	mu.Lock()
	now = now.Add(denialGrace + 59*time.Second)
	mu.Unlock()
	deny(tokenUntil("long", now.Add(time.Hour)).Key)
	if m, f := count(); m != 51 || f != 51 {
		t.Errorf("%d and %d denials before they expire, want 51", m, f)
	}
	mu.Lock()
	now = now.Add(time.Minute)
	mu.Unlock()
	deny(tokenUntil("another", now.Add(time.Hour)).Key)
	if m, f := count(); m != 2 || f != 2 {
		t.Errorf("%d and %d denials after they have expired, want 2", m, f)
	}
}

func TestMemoryDenialsAreBounded(t *testing.T) {
	m := NewMemory(time.Now)
	m.max = 8
	for i, c := range []struct {
		client string
		want   error
	}{
		{"a", nil}, {"a", nil}, {"a", oauth.ErrClientFull}, {"b", nil}, {"b", nil}, {"c", nil}, {"c", nil}, {"d", nil}, {"d", nil},
		{"d", oauth.ErrClientFull}, {"e", oauth.ErrFull},
	} {
		if err := m.Deny(ctx, tokenOf(fmt.Sprint(i)).Key, c.client); !errors.Is(err, c.want) {
			t.Errorf("denial %d: %v, want %v", i, err, c.want)
		}
	}
	if err := m.Deny(ctx, tokenOf("0").Key, "a"); err != nil {
		t.Errorf("denying again what is denied: %v", err)
	}
}

// Denials and keyrings survive the process.
func TestBboltKeepsDenials(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.db")
	key := tokenOf("a").Key
	b := openBbolt(t, path, time.Now)
	swapKeys(t, b, "root", nil, keyringOf(epochA, "x"), true)
	if err := errors.Join(b.Deny(ctx, key, "c"), b.Close()); err != nil {
		t.Fatal(err)
	}
	b = openBbolt(t, path, time.Now)
	hasKeys(t, b, "root", keyringOf(epochA, "x"))
	wantDenied(t, b, epochA, key, true)
}

// Another gateway hears of a denial if it has looked at the token, and of a new keyring. After
// Redis was emptied no token of before can be judged.
func TestRedisTellsOfDenialsAndKeys(t *testing.T) {
	server := redistest.Start(t)
	here, _ := redisAt(t, nil, server.Addr)
	there, heardThere := redisAt(t, nil, server.Addr)
	linked(t, here, there)
	swapKeys(t, here, "a:b", nil, keyringOf(epochA, "x"), true)
	hasKeys(t, there, "a:b", keyringOf(epochA, "x"))
	key := tokenOf("a").Key
	key.Realm = "a:b" // realms have no colons, but the parser need not rely on it
	wantDenied(t, there, epochA, key, false)
	if err := here.Deny(ctx, key, "c"); err != nil {
		t.Fatal(err)
	}
	heardThere.tells(t, key.ID)
	wantDenied(t, there, epochA, key, true)
	var before int
	heardThere.did(func() { before = heardThere.changes })
	swapKeys(t, here, "a:b", keyringOf(epochA, "x"), keyringOf(epochA, "y"), true)
	eventually(t, "the new keyring is reported", func() (told bool) {
		heardThere.did(func() { told = heardThere.changes > before })
		return told
	})
	server.CLI("flushall")
	eventually(t, "no token can be judged after Redis was emptied", func() bool {
		_, err := there.Denied(ctx, epochA, key)
		return errors.Is(err, oauth.ErrOtherEpoch)
	})
}

// When a slot moves to another node of a Cluster, the node that a gateway has asked about a token no
// longer hears of its denial. So the gateway forgets what it knows, and hears of denials from the
// other node.
func TestRedisClusterMovesAKeyring(t *testing.T) {
	servers := redistest.StartCluster(t)
	cluster := func(cfg *RedisConfig) { cfg.Cluster = true }
	here, _ := redisAt(t, cluster, servers[0].Addr)
	there, heardThere := redisAt(t, cluster, servers[1].Addr)
	linked(t, here, there)
	swapKeys(t, here, "root", nil, keyringOf(epochA, "x"), true)
	key := tokenOf("a").Key
	wantDenied(t, here, epochA, key, false)
	wantDenied(t, there, epochA, key, false)
	settled(t, "root", here, there)
	slot := servers[0].CLI("cluster", "keyslot", there.keysKey("root"))
	at := slices.IndexFunc(servers, func(s *redistest.Server) bool { return s.CLI("cluster", "countkeysinslot", slot) != "0" })
	if at < 0 {
		t.Fatal("no node has the keyring")
	}
	flushes := func() (n int) { heardThere.did(func() { n = heardThere.flushes }); return n }
	before := flushes()
	from, to := servers[at], servers[(at+1)%3]
	fromID, toID := from.CLI("cluster", "myid"), to.CLI("cluster", "myid")
	host, port, _ := net.SplitHostPort(to.Addr)
	to.CLI("cluster", "setslot", slot, "importing", fromID)
	from.CLI("cluster", "setslot", slot, "migrating", toID)
	from.CLI("migrate", host, port, there.keysKey("root"), "0", "5000")
	eventually(t, "what was known is forgotten", func() bool { return flushes() > before })
	if denied, err := there.Denied(ctx, epochA, key); denied || err != nil && !errors.Is(err, oauth.ErrUnreachable) {
		t.Errorf("while the slot moves: %t, %v", denied, err)
	}
	from.CLI("migrate", host, port, there.serverKey("root"), "0", "5000")
	to.CLI("cluster", "setslot", slot, "node", toID)
	from.CLI("cluster", "setslot", slot, "node", toID)
	eventually(t, "the new node takes a denial", func() bool { return here.Deny(ctx, key, "c") == nil })
	eventually(t, "the other gateway knows of the denial", func() bool {
		denied, err := there.Denied(ctx, epochA, key)
		return denied && err == nil
	})
	settled(t, "root", here, there)
	later := tokenOf("later").Key
	deny(t, here, later)
	heardThere.tells(t, later.ID)
	wantDenied(t, there, epochA, later, true)
}

// A denial that Redis acknowledged and then lost is repeated.
func TestRedisRepeatsDenials(t *testing.T) {
	server := redistest.Start(t)
	r, _ := redisAt(t, nil, server.Addr)
	linked(t, r)
	swapKeys(t, r, "root", nil, keyringOf(epochA, "x"), true)
	key := tokenOf("a").Key
	if err := r.Deny(ctx, key, "c"); err != nil {
		t.Fatal(err)
	}
	server.CLI("del", r.denialsKey("root"))
	server.CLI("client", "kill", "type", "normal", "skipme", "yes")
	eventually(t, "the denial is there again", func() bool {
		denied, err := r.Denied(context.Background(), epochA, key)
		return err == nil && denied
	})
}

// A denial counts for other gateways even if the clock of this one is days ahead, so that to it the
// token has long expired.
func TestRedisDeniesWhatHasExpiredHere(t *testing.T) {
	r, _ := redisAt(t, nil, redistest.Start(t).Addr)
	swapKeys(t, r, "root", nil, keyringOf(epochA, "x"), true)
	key := tokenUntil("a", time.Now().Add(-10*denialGrace)).Key
	if err := r.Deny(ctx, key, "c"); err != nil {
		t.Fatal(err)
	}
	wantDenied(t, r, epochA, key, true)
}

// A Redis that may evict is no store for self-contained tokens.
func TestRedisThatEvicts(t *testing.T) {
	server := redistest.Start(t)
	r, heard := redisAt(t, nil, server.Addr)
	heard.wantStory(t, "regained") // by then the store has looked for itself, what it found then doesn't come late
	server.CLI("config", "set", "maxmemory", "100mb")
	for policy, want := range map[string]error{"noeviction": nil, "volatile-ttl": ErrEvicts, "allkeys-lru": ErrEvicts} {
		server.CLI("config", "set", "maxmemory-policy", policy)
		if err := r.Keeps(ctx); !errors.Is(err, want) || errors.Is(err, oauth.ErrUnreachable) {
			t.Errorf("%s: %v, want %v", policy, err, want)
		}
		if _, err := r.Denied(ctx, epochA, tokenOf("a").Key); !errors.Is(err, cmp.Or(want, oauth.ErrOtherEpoch)) {
			t.Errorf("%s: asked whether a token is denied: %v", policy, err)
		}
	}
	server.CLI("config", "set", "maxmemory", "0")
	if err := r.Keeps(ctx); err != nil {
		t.Errorf("without maxmemory nothing is evicted, but: %v", err)
	}
	for i, info := range []string{"+info", "-info", "-info", "+info", "-info"} {
		server.CLI("acl", "setuser", "default", info)
		if err := r.Keeps(ctx); err != nil {
			t.Errorf("%s: %v", info, err)
		}
		heard.did(func() {
			if want := []int{0, 1, 1, 1, 2}[i]; heard.mayEvict != want {
				t.Errorf("after %s it was reported %d times that nobody knows, want %d", info, heard.mayEvict, want)
			}
		})
	}
}

// A file with more denials than fit into memory is asked about each token.
func TestBboltManyDenials(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.db")
	b := openBbolt(t, path, time.Now)
	b.denials.change(func() { b.denials.max = 2 })
	swapKeys(t, b, "root", nil, keyringOf(epochA, "x"), true)
	for i := range 4 {
		key := tokenOf(fmt.Sprint(i)).Key
		wantDenied(t, b, epochA, key, false)
		deny(t, b, key)
		wantDenied(t, b, epochA, key, true)
		if fits := b.denials.known != nil; fits != (i < 2) {
			t.Errorf("after %d denials they are in memory: %t", i+1, fits)
		}
	}
	if _, err := b.Denied(ctx, epochB, tokenOf("0").Key); !errors.Is(err, oauth.ErrOtherEpoch) {
		t.Errorf("in another epoch: %v, want ErrOtherEpoch", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Denied(ctx, epochA, tokenOf("0").Key); !errors.Is(err, oauth.ErrClosed) {
		t.Errorf("closed: %v, want ErrClosed", err)
	}
}
