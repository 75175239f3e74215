package store

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/redis/rueidis"
	bolt "go.etcd.io/bbolt"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// The test binary also plays the other process in tests that need one; see helpers.
func TestMain(m *testing.M) {
	if role := os.Getenv("STORE_TEST_ROLE"); role != "" {
		if err := helpers[role](os.Getenv("STORE_TEST_PATH")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if code == 0 && !nothingRuns() {
		code = 1
	}
	os.Exit(code)
}

// nothingRuns waits until what the tests have started has ended. goleak by itself waits less than half a second,
// but rueidis may be connecting once more, for up to DialTimeout, after its client was closed.
func nothingRuns() bool {
	for deadline := time.Now().Add(15 * time.Second); ; {
		err := goleak.Find(
			// rueidis closes connections that a Cluster no longer needs after five seconds, and always
			// looks at the Cluster once more a second later.
			goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*clusterClient)._refresh.func2"),
			goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*call).DelayDo.func1"),
			// toxiproxy goes on delivering what it delayed, to connections that are gone.
			goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2/toxics.(*ToxicStub).Run"),
			goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2.(*ToxicLink).write"))
		if err == nil {
			return true
		}
		if time.Now().After(deadline) {
			fmt.Fprintln(os.Stderr, err)
			return false
		}
	}
}

// stores are the stores that need no server; testStore holds each to the contract of
// oauth.TokenStore. TestRedisStore and TestRedisClusterStore do the same for Redis.
var stores = []struct {
	name string
	open func(t testing.TB) oauth.TokenStore
}{
	{"memory", func(testing.TB) oauth.TokenStore { return NewMemory(time.Now) }},
	{"bbolt", func(t testing.TB) oauth.TokenStore {
		return openBbolt(t, filepath.Join(t.TempDir(), "tokens.db"), time.Now)
	}},
}

func TestStores(t *testing.T) {
	for _, s := range stores {
		t.Run(s.name, func(t *testing.T) { testStore(t, s.open) })
	}
}

var ctx = context.Background()

// tokenOf makes a token, bound if its name says so, with all other fields set, valid for an hour from a fixed moment of this
// process, so the same name always makes the same token.
func tokenOf(name string) oauth.Token { return tokenUntil(name, inAnHour) }

var inAnHour = time.Now().Add(time.Hour)

func tokenUntil(name string, expires time.Time) oauth.Token {
	var confirmation introspect.Confirmation
	if strings.HasPrefix(name, "bound") {
		confirmation = introspect.Confirmation{Certificate: "digest of a certificate", Key: "thumbprint of a key"}
	}
	return oauth.Token{
		Key:          oauth.Key{Realm: "root", ExpiryMilli: expires.UnixMilli(), ID: introspect.IDOf(name)},
		Confirmation: confirmation,
		ClientID:     "client of " + name, ClientGeneration: 7,
		Scopes: []string{"read", "write"}, Audience: []string{"https://api.example.com", "two"},
		IssuedAt: expires.Add(-time.Hour).Truncate(time.Millisecond),
	}
}

// same reports whether two tokens are equal in everything that counts.
func same(a, b oauth.Token) bool {
	return a.Key == b.Key && a.ClientID == b.ClientID && a.ClientGeneration == b.ClientGeneration &&
		slices.Equal(a.Scopes, b.Scopes) && slices.Equal(a.Audience, b.Audience) && a.IssuedAt.Equal(b.IssuedAt) && a.Confirmation == b.Confirmation
}

func put(t testing.TB, s oauth.TokenStore, tokens ...oauth.Token) {
	t.Helper()
	for _, token := range tokens {
		if err := s.Put(ctx, token); err != nil {
			t.Fatalf("putting the token of %s: %v", token.ClientID, err)
		}
	}
}

func present(t testing.TB, s oauth.TokenStore, want oauth.Token) {
	t.Helper()
	got, err := s.Get(ctx, want.Key)
	if err != nil {
		t.Errorf("getting the token of %q: %v", want.ClientID, err)
	} else if !same(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func absent(t testing.TB, s oauth.TokenStore, key oauth.Key) {
	t.Helper()
	if got, err := s.Get(ctx, key); !errors.Is(err, oauth.ErrNotFound) {
		t.Errorf("got %+v, %v; want ErrNotFound", got, err)
	}
}

// plant puts a record into a store, as somebody does who can write there.
func plant(t testing.TB, s oauth.TokenStore, key oauth.Key, record string) {
	t.Helper()
	var err error
	switch s := s.(type) {
	case *Memory:
		s.mu.Lock()
		s.tokens[key] = record
		s.mu.Unlock()
	case *Bbolt:
		err = s.update(func(tx *bolt.Tx) error { return tx.Bucket(bucketTokens).Put(tokenKey(key), []byte(record)) })
	case *Redis:
		err = s.do(ctx, func(ctx context.Context, c rueidis.Client) error {
			return c.Do(ctx, c.B().Set().Key(s.tokenKey(key)).Value(record).Build()).Error()
		})
	default:
		t.Fatalf("no way to plant a record into a %T", s)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// planted returns the record of a token as it is.
func planted(t testing.TB, s oauth.TokenStore, key oauth.Key) (record string) {
	t.Helper()
	var err error
	switch s := s.(type) {
	case *Memory:
		s.mu.RLock()
		record = s.tokens[key]
		s.mu.RUnlock()
	case *Bbolt:
		err = s.view(func(tx *bolt.Tx) error {
			record = string(tx.Bucket(bucketTokens).Get(tokenKey(key)))
			return nil
		})
	case *Redis:
		err = s.do(ctx, func(ctx context.Context, c rueidis.Client) (err error) {
			record, err = c.Do(ctx, c.B().Get().Key(s.tokenKey(key)).Build()).ToString()
			return err
		})
	default:
		t.Fatalf("no way to read a record of a %T", s)
	}
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// recordOfEarlier is the record of one of tokenOf's tokens, byte for byte as programs wrote it before there
// were compact ones.
func recordOfEarlier(t oauth.Token) string {
	version, more := 1, ""
	if t.Confirmation != (introspect.Confirmation{}) {
		version, more = 2, `,"b":{"x5t#S256":"digest of a certificate","jkt":"thumbprint of a key"}`
	}
	return fmt.Sprintf(`{"v":%d,"id":%q,"r":"root","c":%q,"g":7,"s":"read write","a":["https://api.example.com","two"],"i":%d%s}`,
		version, base64.StdEncoding.EncodeToString(t.ID[:]), t.ClientID, t.IssuedAt.UnixMilli(), more)
}

// wrongRecords are records that must not be taken for that of tokenOf("a"): garbage, another token's
// record (copied there by somebody who can write to the store), or one of a later program.
func wrongRecords(t testing.TB) map[string]string {
	token, other, bound := tokenOf("a"), tokenOf("b"), tokenOf("bound")
	bound.Key = token.Key
	good, record := recordOfEarlier(token), string(encodeRecord(token))
	all := map[string]string{
		"empty":                       "",
		"garbage":                     "\x00\xff garbage",
		"half":                        good[:len(good)/2],
		"null":                        "null",
		"an empty object":             "{}",
		"more after it":               good + good,
		"another token's":             recordOfEarlier(other),
		"of a newer version":          strings.Replace(good, `"v":1`, `"v":3`, 1),
		"of no version":               strings.Replace(good, `"v":1,`, ``, 1),
		"of no realm":                 strings.Replace(good, `"r":"root"`, `"r":""`, 1),
		"of no client":                strings.Replace(good, `"c":"client of a"`, `"c":""`, 1),
		"with a short ID":             strings.Replace(good, `"id":"`, `"id":"","old":"`, 1),
		"of another form":             strings.Replace(good, `"g":7`, `"g":"7"`, 1),
		"half of a compact one":       record[:len(record)/2],
		"nothing but a version":       record[:1],
		"more after a compact one":    record + record,
		"another token's compact one": string(encodeRecord(other)),
		"of a newer compact version":  "\x05" + record[1:],
		"compact, of another realm":   strings.Replace(record, "\x04root", "\x04rood", 1),
		"compact, of no client":       strings.Replace(record, "\x0bclient of a", "\x00", 1),
		"compact, with a long text":   strings.Replace(record, "\x0bclient of a", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01client of a", 1),
		"compact, with a long list":   strings.Replace(record, "\x02\x04read", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x04read", 1),
		"compact, with a number of more than 64 bits":   strings.Replace(record, "client of a\x07", "client of a\x87\x80\x80\x80\x80\x80\x80\x80\x80\x02", 1),
		"compact, with a number in another way":         strings.Replace(record, "\x04root", "\x84\x00root", 1),
		"a bearer token's, said to be of a bound one":   "\x04" + record[1:],
		"a bearer token's, with an empty binding":       "\x04" + record[1:] + "\x00\x00",
		"a bound token's, said to be of a bearer token": "\x03" + string(encodeRecord(bound)[1:]),
	}
	for name, wrong := range all {
		if wrong == good || wrong == record {
			t.Fatalf("%s: the record was not changed", name)
		}
	}
	return all
}

// testStore is the suite that holds every store to the contract of oauth.TokenStore. open makes an
// empty store and closes it when the test is over; closing it twice must be harmless.
func testStore(t *testing.T, open func(testing.TB) oauth.TokenStore) {
	t.Run("a token is there after Put and absent after Revoke", func(t *testing.T) {
		s := open(t)
		a, b, bound := tokenOf("a"), tokenOf("b"), tokenOf("bound")
		absent(t, s, a.Key)
		put(t, s, a, b, bound)
		present(t, s, bound)
		present(t, s, a)
		present(t, s, b)
		for range 2 { // idempotent
			if err := s.Revoke(ctx, a.Key); err != nil {
				t.Fatal(err)
			}
			absent(t, s, a.Key)
		}
		present(t, s, b)
		if err := s.Revoke(ctx, tokenOf("never issued").Key); err != nil {
			t.Errorf("revoking a token that was never there: %v", err)
		}
		present(t, s, b)
	})

	t.Run("a record of an earlier program means what it meant, and new ones are compact", func(t *testing.T) {
		s := open(t)
		for _, name := range []string{"a", "bound"} {
			token := tokenOf(name)
			plant(t, s, token.Key, recordOfEarlier(token))
			present(t, s, token)
			put(t, s, token)
			if got := planted(t, s, token.Key); got != string(encodeRecord(token)) {
				t.Errorf("the new record is %q", got)
			}
			present(t, s, token)
			if err := s.Revoke(ctx, token.Key); err != nil {
				t.Fatal(err)
			}
			absent(t, s, token.Key)
		}
	})

	t.Run("a record that is not what it should be causes an error", func(t *testing.T) {
		s := open(t)
		other := tokenOf("b")
		put(t, s, other)
		for name, record := range wrongRecords(t) {
			token := tokenOf(name) // its own: a store may repeat a revocation while it begins
			plant(t, s, token.Key, record)
			got, err := s.Get(ctx, token.Key)
			if !errors.Is(err, errCorrupt) {
				t.Errorf("a record that is %s: %+v, %v", name, got, err)
				continue
			}
			if strings.Contains(err.Error(), hex.EncodeToString(token.ID[:4])) || strings.Contains(err.Error(), "client of") {
				t.Errorf("a record that is %s: the message quotes the record: %v", name, err)
			}
			// It can be revoked all the same.
			if err := s.Revoke(ctx, token.Key); err != nil {
				t.Errorf("revoking a record that is %s: %v", name, err)
			}
			absent(t, s, token.Key)
		}
		present(t, s, other)
		put(t, s, tokenOf("another")) // one bad record harms no other
		present(t, s, tokenOf("another"))
	})

	t.Run("every field comes back as it was", func(t *testing.T) {
		s := open(t)
		exact := tokenUntil("exact", inAnHour.Truncate(time.Second).Add(123*time.Millisecond))
		bare := tokenUntil("bare", inAnHour.Truncate(time.Second))
		bare.Scopes, bare.Audience, bare.ClientGeneration = nil, nil, 0
		long := tokenOf("long")
		long.ClientGeneration = 1<<64 - 1
		long.Audience = []string{strings.Repeat("https://example.com/", 100)}
		for i := range 500 {
			long.Scopes = append(long.Scopes, fmt.Sprintf("scope:%d", i))
		}
		put(t, s, exact, bare, long)
		present(t, s, exact)
		present(t, s, bare)
		present(t, s, long)
	})

	t.Run("names may hold any character", func(t *testing.T) {
		s := open(t)
		names := []string{" ", "a b", "ö", "日本", `"\`, "\n", "\t", "<&>", "\u2028", ":", "/../", "{x}", "a*?[b]", "\x01", "😀", "%00", strings.Repeat("n", 300)}
		var tokens []oauth.Token
		var refs []oauth.ClientRef
		for i, realm := range names {
			token := tokenOf(realm)
			token.Realm, token.ClientID = realm, names[(i+1)%len(names)]
			token.Audience = []string{realm}
			tokens = append(tokens, token)
			refs = append(refs, oauth.ClientRef{Realm: token.Realm, ClientID: token.ClientID})
		}
		// Pairs that would collide if realm and client were simply joined.
		refs = append(refs, oauth.ClientRef{Realm: "ab", ClientID: "c"}, oauth.ClientRef{Realm: "a", ClientID: "bc"},
			oauth.ClientRef{Realm: "a/b", ClientID: "c"}, oauth.ClientRef{Realm: "a", ClientID: "b/c"},
			oauth.ClientRef{Realm: "a:b", ClientID: "c"}, oauth.ClientRef{Realm: "a", ClientID: "b:c"})
		put(t, s, tokens...)
		for _, token := range tokens {
			present(t, s, token)
		}
		admit(t, s, refs...)
		for i, ref := range refs { // retire one at a time: only its generation moves on
			if err := s.Retire(ctx, slices.Delete(slices.Clone(refs), i, i+1)); err != nil {
				t.Fatal(err)
			}
			for other, generation := range admit(t, s, refs...) {
				if want := uint64(1); slices.Index(refs, other) <= i {
					if generation != want+1 {
						t.Fatalf("after %q was retired %q has generation %d", ref, other, generation)
					}
				} else if generation != want {
					t.Fatalf("after %q was retired %q has generation %d", ref, other, generation)
				}
			}
		}
		for _, name := range names {
			if got, err := s.Secret(ctx, name, []byte(name)); err != nil || string(got) != name {
				t.Errorf("the secret %q is %q, %v", name, got, err)
			}
		}
	})

	t.Run("the expiry is part of the key", func(t *testing.T) {
		s := open(t)
		a, b := tokenUntil("token", inAnHour), tokenUntil("token", inAnHour.Add(time.Millisecond))
		put(t, s, a)
		absent(t, s, b.Key)
		put(t, s, b)
		if err := s.Revoke(ctx, a.Key); err != nil {
			t.Fatal(err)
		}
		absent(t, s, a.Key)
		present(t, s, b)
	})

	t.Run("slices belong to the caller", func(t *testing.T) {
		s := open(t)
		token, want := tokenOf("a"), tokenOf("a")
		put(t, s, token)
		token.Scopes[0], token.Audience[0] = "admin", "elsewhere"
		got, err := s.Get(ctx, token.Key)
		if err != nil || !same(got, want) {
			t.Fatalf("the store kept the caller's slice: %+v, %v", got, err)
		}
		got.Scopes[0], got.Audience[0] = "admin", "elsewhere"
		present(t, s, want)

		fresh := []byte("secret")
		first, err := s.Secret(ctx, "name", fresh)
		if err != nil {
			t.Fatal(err)
		}
		fresh[0], first[0] = 'X', 'Y'
		if again, err := s.Secret(ctx, "name", []byte("other")); err != nil || string(again) != "secret" {
			t.Errorf("the secret is now %q, %v", again, err)
		}

		ref := oauth.ClientRef{Realm: "root", ClientID: "a"}
		admit(t, s, ref)[ref] = 99
		if got := admit(t, s, ref)[ref]; got != 1 {
			t.Errorf("the store kept the caller's map: generation %d", got)
		}
	})

	t.Run("a secret has one winner", func(t *testing.T) {
		s := open(t)
		const callers = 32
		got := make([][]byte, callers)
		var all sync.WaitGroup
		for i := range callers {
			all.Go(func() {
				var err error
				if got[i], err = s.Secret(ctx, "key", bytes.Repeat([]byte{byte(i)}, 32)); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for i := range callers {
			if len(got[i]) != 32 || !bytes.Equal(got[i], got[0]) {
				t.Fatalf("one caller has %x, another %x", got[0], got[i])
			}
		}
		other, err := s.Secret(ctx, "another key", []byte("another"))
		if err != nil || string(other) != "another" {
			t.Errorf("another name has %q, %v", other, err)
		}
	})

	t.Run("generations", func(t *testing.T) { testGenerations(t, open) })
	t.Run("the end of all tokens", func(t *testing.T) { testEndTokens(t, open) })

	t.Run("a context that has ended holds up nobody, and its error is not a no", func(t *testing.T) {
		s := open(t)
		token := tokenOf("a")
		put(t, s, token)
		ended, cancel := context.WithCancel(ctx)
		cancel()
		// The store may still do the work or not; what it says must be true.
		if got, err := s.Get(ended, token.Key); err == nil && !same(got, token) || err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Get: %+v, %v", got, err)
		}
		if got, err := s.Secret(ended, "name", []byte("x")); err == nil && string(got) != "x" || err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Secret: %q, %v", got, err)
		}
		late := tokenOf("late")
		if err := s.Put(ended, late); err == nil {
			present(t, s, late)
		} else if !errors.Is(err, context.Canceled) {
			t.Errorf("Put: %v", err)
		}
		if err := s.Revoke(ended, token.Key); err == nil {
			absent(t, s, token.Key)
		} else if !errors.Is(err, context.Canceled) {
			t.Errorf("Revoke: %v", err)
		}
		if err := s.Revoke(ctx, token.Key); err != nil {
			t.Errorf("afterwards the store no longer works: %v", err)
		}
		absent(t, s, token.Key)
	})

	t.Run("a closed store says so", func(t *testing.T) {
		s := open(t)
		token := tokenOf("a")
		put(t, s, token)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for what, err := range allCalls(s, token) {
			if !errors.Is(err, oauth.ErrClosed) {
				t.Errorf("%s: %v, want ErrClosed", what, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Errorf("closing again: %v", err)
		}
	})

	t.Run("closing in the middle of everything", func(t *testing.T) {
		for range 5 {
			s := open(t)
			var traffic, begun sync.WaitGroup
			for w := range 8 {
				begun.Add(1)
				traffic.Go(func() {
					for i := 0; ; i++ {
						if i == 3 {
							begun.Done()
						}
						token := tokenOf(fmt.Sprint(w, i))
						for what, err := range allCalls(s, token) {
							if err != nil && !errors.Is(err, oauth.ErrClosed) && !errors.Is(err, oauth.ErrNotFound) {
								t.Errorf("%s while closing: %v", what, err)
							}
						}
						if _, err := s.Get(ctx, token.Key); errors.Is(err, oauth.ErrClosed) {
							for i++; i <= 3; i++ {
								if i == 3 {
									begun.Done()
								}
							}
							return
						}
					}
				})
			}
			begun.Wait()
			for range 2 {
				traffic.Go(func() {
					if err := s.Close(); err != nil {
						t.Errorf("closing: %v", err)
					}
				})
			}
			traffic.Wait()
		}
	})

	t.Run("many at once", func(t *testing.T) {
		s := open(t)
		const workers, tokens = 8, 50
		var all sync.WaitGroup
		for w := range workers {
			all.Go(func() {
				for i := range tokens {
					token := tokenOf(fmt.Sprint(w, " ", i))
					put(t, s, token)
					present(t, s, token) // what is acknowledged is there
					if i%2 == 0 {
						if err := s.Revoke(ctx, token.Key); err != nil {
							t.Error(err)
						}
						absent(t, s, token.Key)
					}
					admit(t, s, oauth.ClientRef{Realm: "root", ClientID: fmt.Sprint(i)})
				}
			})
		}
		all.Wait()
	})

	t.Run("it behaves like a map", func(t *testing.T) { testModel(t, open) })
	t.Run("keys and denials", func(t *testing.T) { testKeyStore(t, open) })
	t.Run("replays", func(t *testing.T) { testReplayStore(t, open) })
	t.Run("proofs", func(t *testing.T) { testProofStore(t, open) })
	t.Run("managed clients", func(t *testing.T) { testClientStore(t, open) })
	t.Run("uses", func(t *testing.T) { testUsageStore(t, open) })
}

// allCalls calls each method once and returns the errors.
func allCalls(s oauth.TokenStore, token oauth.Token) map[string]error {
	calls := map[string]error{}
	calls["Put"] = s.Put(ctx, token)
	_, calls["Get"] = s.Get(ctx, token.Key)
	calls["Revoke"] = s.Revoke(ctx, token.Key)
	_, calls["Admit"] = s.Admit(ctx, []oauth.ClientRef{{Realm: "root", ClientID: "a"}}, nil)
	calls["Retire"] = s.Retire(ctx, []oauth.ClientRef{{Realm: "root", ClientID: "a"}})
	calls["Leave"] = s.Leave(ctx, []oauth.ClientRef{{Realm: "root", ClientID: "a"}})
	_, calls["EndTokens"] = s.EndTokens(ctx, "root", []string{"a"}, true, nil)
	_, calls["Generation"] = s.Generation(ctx, oauth.ClientRef{Realm: "root", ClientID: "a"})
	_, calls["Secret"] = s.Secret(ctx, "name", []byte("x"))
	return calls
}

// A store that has lost what it knew about clients gets back the generations that its callers hold.
func TestLostGenerationsComeBack(t *testing.T) {
	ref := oauth.ClientRef{Realm: "root", ClientID: "a"}
	held := map[oauth.ClientRef]uint64{ref: 3}
	for _, c := range []struct {
		what   string
		stored clientTable
		exact  uint64 // zero for any that is later than the one that is held
	}{
		{"all of it", clientTable{}, 3},
		{"the last two", clientTable{ref: {Generation: 1}}, 0},
		{"the last, which came after it was left", clientTable{ref: {Generation: 2, Left: true}}, 0},
		{"the last, which came after it was retired", clientTable{ref: {Generation: 2, Retired: true}}, 0},
		{"nothing, and another is ahead", clientTable{ref: {Generation: 4}}, 4},
	} {
		generations, changed := c.stored.admit([]oauth.ClientRef{ref}, held)
		now := c.stored[ref]
		if next, ok := changed[ref]; ok {
			now = next
		}
		if now != (clientState{Generation: generations[ref]}) {
			t.Errorf("lost %s: generation %d, stored %+v", c.what, generations[ref], now)
		}
		if got := generations[ref]; c.exact != 0 && got != c.exact || c.exact == 0 && got <= 3 {
			t.Errorf("lost %s: generation %d, want %d", c.what, got, c.exact)
		}
	}
}

func admit(t testing.TB, s oauth.TokenStore, refs ...oauth.ClientRef) map[oauth.ClientRef]uint64 {
	t.Helper()
	got, err := s.Admit(ctx, refs, nil)
	if err != nil {
		t.Errorf("admitting: %v", err)
		return nil
	}
	for _, ref := range refs {
		if got[ref] == 0 {
			t.Errorf("%v has no generation", ref)
		}
	}
	if len(got) > len(refs) {
		t.Errorf("admitting %d clients returned %d generations", len(refs), len(got))
	}
	return got
}

// A client that was gone has another generation when it comes back, so that its old tokens stay
// dead; a client that stayed keeps its generation.
func testGenerations(t *testing.T, open func(testing.TB) oauth.TokenStore) {
	ref := func(name string) oauth.ClientRef {
		realm, id, _ := strings.Cut(name, "/")
		return oauth.ClientRef{Realm: realm, ClientID: id}
	}
	refs := func(names string) (all []oauth.ClientRef) {
		for _, name := range strings.Fields(names) {
			all = append(all, ref(name))
		}
		return all
	}
	for _, c := range []struct {
		name string
		// steps are "admit <clients>", by a caller that begins, "hold <clients>", by the caller
		// that admitted last, "retire <clients that stay>" and "leave <clients that stay>". An
		// admitted client is followed by the generation that it must have.
		steps []string
	}{
		{"a new client begins at 1", []string{"admit r/a=1"}},
		{"a client that is admitted again keeps its generation", []string{"admit r/a=1", "admit r/a=1 r/b=1", "admit r/a=1 r/b=1"}},
		{"a client that stays keeps its generation", []string{"admit r/a=1", "retire r/a", "admit r/a=1"}},
		{"a client that goes and comes back has the next", []string{"admit r/a=1 r/b=1", "retire r/a", "admit r/a=1 r/b=2"}},
		{"and the next when it goes once more", []string{"admit r/a=1", "retire", "admit r/a=2", "retire", "admit r/a=3", "admit r/a=3"}},
		{"retiring a client twice is retiring it once", []string{"admit r/a=1", "retire", "retire", "retire", "admit r/a=2"}},
		{"a client that is not yet admitted when others are retired begins at 1", []string{"retire r/a r/b", "admit r/a=1", "retire r/a r/b", "admit r/b=1"}},
		{"realms have clients of their own", []string{"admit r/a=1 s/a=1", "retire s/a", "admit r/a=2 s/a=1"}},
		{"a configuration that never came into force changes nothing", []string{"admit r/a=1", "admit r/a=1 r/new=1", "retire r/a", "admit r/a=1 r/new=2"}},
		{"a client that was retired and admitted is active again", []string{"admit r/a=1 r/b=1", "retire r/b", "admit r/a=2", "retire r/a", "admit r/a=2 r/b=2"}},
		{"a client may be named twice", []string{"admit r/a=1 r/a=1", "retire r/a r/a", "admit r/a=1"}},
		{"a client that was left has the next generation for a caller that begins", []string{"admit r/a=1 r/b=1", "leave r/b", "admit r/a=2 r/b=1", "admit r/a=2"}},
		{"and keeps its own for a caller that has had it all the time", []string{"admit r/a=1 s/b=1", "leave", "hold r/a=1", "admit r/a=1 s/b=2"}},
		{"unless another caller has begun with it first", []string{"admit r/a=1", "leave", "admit r/a=2", "leave", "admit r/a=3", "hold r/a=3"}},
		{"leaving a client twice is leaving it once", []string{"admit r/a=1", "leave", "leave", "admit r/a=2"}},
		{"a client that is left and retired is retired", []string{"admit r/a=1 r/b=1", "leave", "retire r/b", "leave", "admit r/a=2 r/b=2"}},
		{"a client that was retired can't be held", []string{"admit r/a=1", "retire", "leave", "hold r/a=2"}},
		{"no clients at all", []string{"admit", "retire", "admit r/a=1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			var held map[oauth.ClientRef]uint64
			for i, step := range c.steps {
				verb, rest, _ := strings.Cut(step, " ")
				if verb == "retire" || verb == "leave" {
					end := s.Retire
					if verb == "leave" {
						end = s.Leave
					}
					if err := end(ctx, refs(rest)); err != nil {
						t.Fatalf("step %d, %s: %v", i, step, err)
					}
					continue
				}
				if verb == "admit" {
					held = nil
				}
				var clients []oauth.ClientRef
				want := map[oauth.ClientRef]uint64{}
				for _, field := range strings.Fields(rest) {
					var generation uint64
					name, number, _ := strings.Cut(field, "=")
					fmt.Sscan(number, &generation)
					clients = append(clients, ref(name))
					want[ref(name)] = generation
				}
				got, err := s.Admit(ctx, clients, held)
				if err != nil || !maps.Equal(got, want) {
					t.Fatalf("step %d, %s: %v, %v", i, step, got, err)
				}
				held = got
			}
		})
	}
}

// testEndTokens: no generation from before an EndTokens is ever handed out again, and no other
// client's tokens end.
func testEndTokens(t *testing.T, open func(testing.TB) oauth.TokenStore) {
	ref := func(realm, id string) oauth.ClientRef { return oauth.ClientRef{Realm: realm, ClientID: id} }
	end := func(t *testing.T, s oauth.TokenStore, realm string, clients []string, all bool, held map[oauth.ClientRef]uint64) map[oauth.ClientRef]uint64 {
		t.Helper()
		got, err := s.EndTokens(ctx, realm, clients, all, held)
		if err != nil {
			t.Fatal(err)
		}
		for ref, generation := range got {
			if now, err := s.Generation(ctx, ref); err != nil || now != generation {
				t.Errorf("EndTokens returned generation %d for %v, Generation %d, %v", generation, ref, now, err)
			}
		}
		return got
	}
	a, b, c, other := ref("r", "a"), ref("r", "b"), ref("r", "c"), ref("s", "a")

	t.Run("of one client", func(t *testing.T) {
		s := open(t)
		before := admit(t, s, a, b, other)
		got := end(t, s, "r", []string{"a"}, false, before)
		if len(got) != 1 || got[a] <= before[a] {
			t.Fatalf("the generations were %v and are %v", before, got)
		}
		now, err := s.Admit(ctx, []oauth.ClientRef{a, b, other}, before) // by a caller that has not heard of it
		if err != nil || now[a] != got[a] || now[b] != before[b] || now[other] != before[other] {
			t.Errorf("the generations were %v and are %v, %v", before, now, err)
		}
		if again := end(t, s, "r", []string{"a", "a"}, false, nil); again[a] <= got[a] {
			t.Errorf("a second time: %d, then %d", got[a], again[a])
		}
	})
	t.Run("of all clients of a realm", func(t *testing.T) {
		s := open(t)
		before := admit(t, s, a, b, c, other)
		if err := s.Retire(ctx, []oauth.ClientRef{a, b, other}); err != nil {
			t.Fatal(err)
		}
		got := end(t, s, "r", []string{"a"}, true, nil)
		if len(got) != 2 || got[a] <= before[a] || got[b] <= before[b] {
			t.Errorf("the generations were %v and are %v", before, got)
		}
		if now := admit(t, s, a, b, c, other); now[a] != got[a] || now[b] != got[b] || now[c] != before[c]+1 || now[other] != before[other] {
			t.Errorf("the generations were %v, %v and are %v", before, got, now)
		}
	})
	t.Run("of a client that the store does not know, or has lost", func(t *testing.T) {
		s := open(t)
		if _, err := s.Generation(ctx, a); !errors.Is(err, oauth.ErrNotFound) {
			t.Errorf("the generation of an unknown client: %v", err)
		}
		if got := end(t, s, "r", []string{"a"}, false, map[oauth.ClientRef]uint64{a: 1 << 40}); got[a] <= 1<<40 {
			t.Errorf("generation %d after 1<<40", got[a])
		}
		if got := end(t, s, "r", nil, false, nil); len(got) != 0 {
			t.Errorf("of nobody: %v", got)
		}
		if got := end(t, s, "nowhere", nil, true, nil); len(got) != 0 {
			t.Errorf("of an empty realm: %v", got)
		}
	})
	t.Run("of a client that was left or retired", func(t *testing.T) {
		s := open(t)
		before := admit(t, s, a, b)
		if err := s.Leave(ctx, []oauth.ClientRef{b}); err != nil {
			t.Fatal(err)
		}
		if err := s.Retire(ctx, []oauth.ClientRef{a}); err != nil {
			t.Fatal(err)
		}
		got := end(t, s, "r", []string{"a", "b"}, false, before)
		// They are this caller's now, so neither a caller that begins nor one that was there before
		// changes anything.
		for _, held := range []map[oauth.ClientRef]uint64{nil, before, got} {
			if now, err := s.Admit(ctx, []oauth.ClientRef{a, b}, held); err != nil || !maps.Equal(now, got) {
				t.Errorf("the generations were %v and are %v, %v", got, now, err)
			}
		}
		if err := s.Retire(ctx, []oauth.ClientRef{a}); err != nil {
			t.Fatal(err)
		}
		if now := admit(t, s, b); now[b] <= got[b] {
			t.Errorf("generation %d, and %d after it was retired", got[b], now[b])
		}
	})
	t.Run("many at once", func(t *testing.T) {
		s := open(t)
		// over is later than all generations that an EndTokens which is over has ended.
		var over atomic.Uint64
		var all sync.WaitGroup
		for w := range 8 {
			all.Go(func() {
				var held map[oauth.ClientRef]uint64
				for range 20 {
					least := over.Load()
					var err error
					if w%2 == 0 {
						held, err = s.Admit(ctx, []oauth.ClientRef{a, b}, held)
					} else {
						held, err = s.EndTokens(ctx, "r", []string{"a", "b"}, w%4 == 1, held)
					}
					if err != nil {
						t.Error(err)
						return
					}
					if held[a] < least {
						t.Errorf("generation %d was handed out after %d", held[a], least)
					}
					for now := over.Load(); w%2 == 1 && now < held[a] && !over.CompareAndSwap(now, held[a]); {
						now = over.Load()
					}
				}
			})
		}
		all.Wait()
	})
}

// Whatever is done to what a store says of clients, in any order and with any part of it lost that
// somebody still holds, no generation counts that was ended before.
func TestEndedGenerationsStayEnded(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		ref := oauth.ClientRef{Realm: "r", ClientID: "a"}
		table, lagging := clientTable{}, clientTable{}
		held := make([]map[oauth.ClientRef]uint64, 3) // by gateway
		written := make([]clientTable, 3)
		for i := range written {
			written[i] = clientTable{}
		}
		dead := map[uint64]bool{} // generations with tokens that were ended
		used := map[uint64]bool{} // generations in which a gateway has issued tokens
		owes := make([]bool, 3)   // whether a gateway has not written again what it wrote
		var write func(int, clientTable)
		gateway := rapid.Custom(func(r *rapid.T) int {
			g := rapid.IntRange(0, 2).Draw(r, "number")
			if owes[g] {
				owes[g] = false
				write(g, table.again(written[g]))
			}
			return g
		})
		write = func(g int, changed clientTable) {
			maps.Copy(table, changed)
			maps.Copy(written[g], changed)
		}
		r.Repeat(map[string]func(*rapid.T){
			"admit and issue": func(r *rapid.T) {
				g := gateway.Draw(r, "gateway")
				generations, changed := table.admit([]oauth.ClientRef{ref}, held[g])
				write(g, changed)
				held[g] = generations
				if dead[generations[ref]] {
					r.Fatalf("generation %d, whose tokens were ended, counts again", generations[ref])
				}
				used[generations[ref]] = true
			},
			"end": func(r *rapid.T) {
				g := gateway.Draw(r, "gateway")
				e := ending{realm: "r", clients: []string{"a"}, held: held[g]}
				write(g, e.change(table))
				for generation := range used {
					dead[generation] = true
				}
				if len(e.change(table)) != 0 {
					r.Fatal("a second attempt changes something")
				}
				if held[g] = maps.Clone(e.reached); dead[held[g][ref]] {
					r.Fatalf("generation %d has dead tokens", held[g][ref])
				}
			},
			"retire":    func(r *rapid.T) { g := gateway.Draw(r, "gateway"); write(g, table.retire(nil)) },
			"leave":     func(r *rapid.T) { g := gateway.Draw(r, "gateway"); write(g, table.leave(nil)) },
			"replicate": func(*rapid.T) { lagging = maps.Clone(table) },
			// All gateways live, so each writes again what it wrote, at once or before it does anything
			// else. Until then, what it had ended may count again.
			"failover": func(r *rapid.T) {
				table = maps.Clone(lagging)
				atOnce := rapid.Bool().Draw(r, "at once")
				if !atOnce || len(table) == 0 {
					clear(dead)
				}
				if len(table) == 0 {
					clear(used) // records and keys are gone, too, and so are all tokens
				}
				for g := range written {
					if owes[g] = !atOnce; atOnce {
						write(g, table.again(written[g]))
					}
				}
			},
		})
	})
}

// testModel applies the same random operations to a store and to a map.
func testModel(t *testing.T, open func(testing.TB) oauth.TokenStore) {
	s := open(t)
	round := 0
	rapid.Check(t, func(r *rapid.T) {
		realms := rapid.SliceOfN(rapid.StringN(1, 10, -1), 4, 4).Draw(r, "realms")
		round++ // each round has its own tokens, so the store need not be empty
		model := map[oauth.Key]oauth.Token{}
		// No key is put twice, or after its revocation: Redis repeats revocations after losing the link.
		used := map[oauth.Key]bool{}
		key := rapid.Custom(func(r *rapid.T) oauth.Key {
			token := rapid.IntRange(0, 3).Draw(r, "token")
			return oauth.Key{
				Realm:       realms[token], // an ID belongs to one realm
				ExpiryMilli: inAnHour.UnixMilli() + rapid.Int64Range(0, 2).Draw(r, "expiry"),
				ID:          introspect.IDOf(fmt.Sprint(round, " ", token)),
			}
		})
		r.Repeat(map[string]func(*rapid.T){
			"put": func(r *rapid.T) {
				k := key.Draw(r, "key")
				if used[k] {
					r.Skip("keys are unique")
				}
				used[k] = true
				word := rapid.StringMatching(`[!#-\[\]-~]{1,8}`) // RFC 6749 section 3.3
				token := oauth.Token{
					Key: k, ClientID: rapid.StringN(1, 10, -1).Draw(r, "client"),
					ClientGeneration: rapid.Uint64().Draw(r, "generation"),
					Scopes:           rapid.SliceOfN(word, 0, 4).Draw(r, "scopes"), Audience: rapid.SliceOfN(rapid.String(), 0, 4).Draw(r, "audience"),
					IssuedAt: time.UnixMilli(rapid.Int64Range(0, 1<<48-1).Draw(r, "issued")),
					Confirmation: introspect.Confirmation{
						Certificate: rapid.SampledFrom([]string{"", "a", "b"}).Draw(r, "certificate"),
						Key:         rapid.SampledFrom([]string{"", "a", "b"}).Draw(r, "proof key"),
					},
				}
				if err := s.Put(ctx, token); err != nil {
					r.Fatal(err)
				}
				model[k] = token
			},
			"revoke": func(r *rapid.T) {
				k := key.Draw(r, "key")
				if err := s.Revoke(ctx, k); err != nil {
					r.Fatal(err)
				}
				delete(model, k)
				used[k] = true
			},
			"get": func(r *rapid.T) {
				k := key.Draw(r, "key")
				got, err := s.Get(ctx, k)
				want, there := model[k]
				if there && (err != nil || !same(got, want)) || !there && !errors.Is(err, oauth.ErrNotFound) {
					r.Fatalf("got %+v, %v; in the map: %v, %+v", got, err, there, want)
				}
			},
		})
	})
}

// Memory drops expired tokens as it stores new ones, a few for each, so it shrinks faster than it
// grows.
func TestMemoryDropsWhatHasExpired(t *testing.T) {
	var now atomic.Int64
	now.Store(1000)
	m := NewMemory(func() time.Time { return time.Unix(now.Load(), 0) })
	for i := range 1000 {
		put(t, m, tokenUntil(fmt.Sprint("old ", i), time.Unix(2000+int64(i%10), 0)))
	}
	for i := range 100 { // the heap keeps revoked ones as well
		if err := m.Revoke(ctx, tokenUntil(fmt.Sprint("old ", i*10), time.Unix(2000, 0)).Key); err != nil {
			t.Fatal(err)
		}
	}
	now.Store(2004) // half of them have expired
	for i := range 125 {
		put(t, m, tokenUntil(fmt.Sprint("new ", i), time.Unix(5000, 0)))
	}
	if got, want := len(m.expiries), 500+125; got != want {
		t.Errorf("%d keys are left after 125 tokens were added, want %d", got, want)
	}
	if got, want := len(m.tokens), 500+125; got != want {
		t.Errorf("%d tokens are left after 125 were added, want %d", got, want)
	}
	for i := range 1000 {
		token := tokenUntil(fmt.Sprint("old ", i), time.Unix(2000+int64(i%10), 0))
		if i%10 <= 4 {
			absent(t, m, token.Key)
		} else {
			present(t, m, token)
		}
	}
	now.Store(9000)
	for i := range 1000 {
		put(t, m, tokenUntil(fmt.Sprint("last ", i), time.Unix(10_000, 0)))
	}
	if len(m.tokens) != 1000 || len(m.expiries) != 1000 {
		t.Errorf("%d tokens and %d keys are left, want 1000", len(m.tokens), len(m.expiries))
	}
}

// A full store says so, keeps what it has, and has room again when something expires. Revoked
// tokens count too, so issuing and revoking in a loop can't overfill it.
func TestMemoryIsBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	m := NewMemory(func() time.Time { return now })
	if m.max != maxMemoryTokens {
		t.Errorf("the bound is %d", m.max)
	}
	m.max = 10
	for i := range 10 {
		token := tokenUntil(fmt.Sprint(i), time.Unix(2000, 0))
		put(t, m, token)
		if i < 5 {
			if err := m.Revoke(ctx, token.Key); err != nil {
				t.Fatal(err)
			}
		}
	}
	more := tokenUntil("more", time.Unix(3000, 0))
	if err := m.Put(ctx, more); !errors.Is(err, oauth.ErrFull) {
		t.Errorf("putting one too many: %v, want ErrFull", err)
	}
	absent(t, m, more.Key)
	present(t, m, tokenUntil("9", time.Unix(2000, 0)))
	now = time.Unix(2000, 0)
	put(t, m, more)
	present(t, m, more)
}

// No client takes the room of others: its share is a quarter, and tokens that it revokes count
// until they expire. A client with the same ID in another realm is another client.
func TestMemoryLeavesRoomForOthers(t *testing.T) {
	now := time.Unix(1000, 0)
	m := NewMemory(func() time.Time { return now })
	m.max = 12
	of := func(realm, client string, n int) oauth.Token {
		token := tokenUntil(fmt.Sprint(realm, client, n), time.Unix(2000+int64(n), 0))
		token.Realm, token.ClientID = realm, client
		return token
	}
	for n := range 3 {
		put(t, m, of("root", "greedy", n))
	}
	for n := range 2 {
		more := of("root", "greedy", 3+n)
		if err := m.Put(ctx, more); !errors.Is(err, oauth.ErrClientFull) {
			t.Errorf("one token more than its share: %v, want ErrClientFull", err)
		}
		absent(t, m, more.Key)
		if err := m.Revoke(ctx, of("root", "greedy", n).Key); err != nil { // which frees no room yet
			t.Fatal(err)
		}
	}
	for n := range 3 {
		put(t, m, of("alpha", "greedy", n))
		put(t, m, of("root", "modest", n))
		put(t, m, of("root", "other", n))
	}
	if err := m.Put(ctx, of("root", "late", 0)); !errors.Is(err, oauth.ErrFull) {
		t.Errorf("a store full of many clients: %v, want ErrFull", err)
	}
	now = time.Unix(2001, 0) // two of each client's have expired
	put(t, m, of("root", "greedy", 5), of("root", "greedy", 6))
	if err := m.Put(ctx, of("root", "greedy", 7)); !errors.Is(err, oauth.ErrClientFull) {
		t.Errorf("its share once more: %v, want ErrClientFull", err)
	}
	now = time.Unix(3000, 0)
	for n := range 3 {
		put(t, m, of("root", "last", 2000+n))
	}
	if len(m.holders) != 1 || m.holders[oauth.ClientRef{Realm: "root", ClientID: "last"}].keys != 3 {
		t.Errorf("%d clients are remembered as holders, want one with its 3 tokens", len(m.holders))
	}
}

// A client whose whole share has expired gets another token, however many tokens of other clients
// expired before.
func TestMemoryShareOfExpiredTokens(t *testing.T) {
	now := time.Unix(1000, 0)
	m := NewMemory(func() time.Time { return now })
	m.max = 80
	for n := range 60 {
		token := tokenUntil(fmt.Sprint(n), time.Unix(2000+int64(n), 0))
		token.ClientID = []string{"one", "two", "three"}[n/20]
		put(t, m, token)
	}
	now = time.Unix(3000, 0)
	token := tokenUntil("new", time.Unix(4000, 0))
	token.ClientID = "three"
	put(t, m, token)
	present(t, m, token)
}

// A client whose tokens have all been dropped, by a Put of its own, has its share still, and no more.
func TestMemoryShareAfterAllHaveExpired(t *testing.T) {
	now := time.Unix(1000, 0)
	m := NewMemory(func() time.Time { return now })
	m.max = 12
	put(t, m, tokenUntil("old", time.Unix(2000, 0)))
	now = time.Unix(3000, 0)
	for n := range 4 {
		token := tokenUntil(fmt.Sprint(n), time.Unix(4000, 0))
		token.ClientID = tokenUntil("old", now).ClientID
		if err := m.Put(ctx, token); n < 3 && err != nil || n == 3 && !errors.Is(err, oauth.ErrClientFull) {
			t.Errorf("token %d: %v", n, err)
		}
	}
}

// encodeJSON encodes a token as programs did before there were compact records.
func encodeJSON(t oauth.Token) ([]byte, error) {
	version := recordVersion
	if t.Confirmation != (introspect.Confirmation{}) {
		version = recordBound
	}
	return json.Marshal(record{
		Version: version, ID: t.ID[:], Realm: t.Realm, ClientID: t.ClientID, Generation: t.ClientGeneration,
		Scope: strings.Join(t.Scopes, " "), Audience: t.Audience,
		IssuedAt: t.IssuedAt.UnixMilli(), Confirmation: t.Confirmation,
	})
}

// No bytes make the decoder panic. What it accepts is a token of the key that it was asked for, and
// survives being encoded and decoded again, in either form. A token has one compact record only.
func FuzzRecord(f *testing.F) {
	token, bound := tokenUntil("a", time.Unix(2000, 5)), tokenUntil("bound", time.Unix(2000, 5))
	bound.Key = token.Key
	for _, t := range []oauth.Token{token, bound} {
		compact := encodeRecord(t)
		for _, seed := range [][]byte{
			compact, compact[:len(compact)-1], append(slices.Clone(compact), 0), append([]byte{compact[0] ^ 7}, compact[1:]...), compact[:33],
			append(slices.Clone(compact[:33]), bytes.Repeat([]byte{0xff}, 12)...),
		} {
			f.Add(seed)
		}
		text, err := encodeJSON(t)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
		for _, seed := range []string{
			"", "null", "{}", "[]", `{"v":1}`, `{"v":2,"id":"AA=="}`, `{"v":1e99}`, string(text[:len(text)-1]), string(text) + "x",
			strings.Replace(string(text), `"s":"read write"`, `"s":" read  write "`, 1),
			strings.Replace(string(text), `"a":[`, `"a":["",`, 1), strings.Replace(string(text), `"r":"root"`, `"r":"`+"\xff"+`"`, 1),
			strings.Replace(string(text), `"v":1`, `"V":1,"v":1`, 1), strings.Replace(string(text), `"i":`, `"i":-`, 1),
		} {
			f.Add([]byte(seed))
		}
	}
	other := token.Key
	other.ID[31]++
	elsewhere := token.Key
	elsewhere.Realm = "partners"
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, key := range []oauth.Key{other, elsewhere} {
			if got, err := decodeRecord(key, string(b)); err == nil {
				if _, err := decodeRecord(token.Key, string(b)); err == nil {
					t.Errorf("the record is accepted under another key, too: %+v", got)
				}
			}
		}
		got, err := decodeRecord(token.Key, string(b))
		if err != nil {
			if errors.Is(err, oauth.ErrNotFound) {
				t.Error("a record that can't be read is reported as absent")
			}
			return
		}
		if got.Key != token.Key || got.Realm == "" || got.ClientID == "" {
			t.Errorf("accepted %+v", got)
		}
		compact := encodeRecord(got)
		if b[0] < 9 && !bytes.Equal(compact, b) {
			t.Errorf("%q is another record of %q", b, compact)
		}
		if back, err := decodeRecord(token.Key, string(compact)); err != nil || !same(back, got) {
			t.Errorf("%+v came back as %+v, %v", got, back, err)
		}
		if json.Valid(compact) {
			t.Errorf("%q is JSON, so a program that knows no compact records might take it for something else", compact)
		}
		for _, text := range append(slices.Clone(got.Scopes), got.Audience...) {
			if strings.Contains(text, " ") || text == "" || !utf8.ValidString(text) {
				return // JSON has no room for these, and nobody issues them
			}
		}
		if !utf8.ValidString(got.ClientID + got.Confirmation.Certificate + got.Confirmation.Key) {
			return
		}
		again, err := encodeJSON(got)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeRecord(token.Key, string(again)); err != nil || !same(back, got) {
			t.Errorf("%+v came back as %+v, %v", got, back, err)
		}
	})
}

// A compact record is what it was when it was written, whatever becomes of the program.
func TestCompactRecord(t *testing.T) {
	key := oauth.Key{Realm: "root", ExpiryMilli: 1_700_003_600_123, ID: introspect.TokenID([]byte("an ID that has thirty-two bytes."))}
	bearer := oauth.Token{
		Key: key, ClientID: "reports", ClientGeneration: 300, Scopes: []string{"read", "write"},
		Audience: []string{"https://api.example.com"}, IssuedAt: time.UnixMilli(1_700_000_000_123),
	}
	bound := bearer
	bound.Scopes, bound.Audience = nil, nil
	bound.Confirmation = introspect.Confirmation{Key: "thumb"}
	const id, rest = "an ID that has thirty-two bytes.", "\x04root\x07reports\xac\x02\xf6\xa1\xab\xfe\xf9b"
	for want, token := range map[string]oauth.Token{
		"\x03" + id + rest + "\x02\x04read\x05write\x01\x17https://api.example.com": bearer,
		"\x04" + id + rest + "\x00\x00\x00\x05thumb":                                bound,
	} {
		if got := encodeRecord(token); string(got) != want {
			t.Errorf("%q, want %q", got, want)
		}
		if got, err := decodeRecord(key, want); err != nil || !same(got, token) {
			t.Errorf("%q: %+v, %v", want, got, err)
		}
	}
}
