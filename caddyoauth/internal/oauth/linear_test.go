package oauth_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/store"
	"github.com/caddyoauth/gateway/introspect"
)

// These tests ask whether revocation holds when everything happens at once. Each goes through a
// whole Engine: its token format, its store, and the cache in front.

// tokenStores are the stores that an Engine works with. Another one joins by a line.
var tokenStores = []struct {
	name string
	open func(t testing.TB) oauth.TokenStore
}{
	{"memory", func(testing.TB) oauth.TokenStore { return store.NewMemory(time.Now) }},
	{"bbolt", func(t testing.TB) oauth.TokenStore {
		b, err := store.OpenBbolt(filepath.Join(t.TempDir(), "tokens.db"), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}},
	{"redis", func(t testing.TB) oauth.TokenStore { return openRedis(t, redistest.Start(t).Addr, nil) }},
}

// cacheSizes are the ways to set up the cache. What an Engine answers depends on none of them.
var cacheSizes = []struct {
	name   string
	tokens int64
	maxAge time.Duration
}{{"cache on", 10_000, time.Hour}, {"tiny cache", 1, time.Hour}, {"cache off", 10_000, 0}}

// realm is an Engine with one client, and what that client can do.
type realm struct {
	t      testing.TB
	store  oauth.TokenStore
	engine *oauth.Engine
	client oauth.Credentials
}

func newRealm(t testing.TB, s oauth.TokenStore, cacheTokens int64, maxAge time.Duration) *realm {
	t.Helper()
	return newRealmAt(t, s, oauth.FormatOpaque, nil, introspect.CacheConfig{MaxTokens: cacheTokens}, maxAge, time.Now)
}

// newRealmOf is newRealm for tokens of a format.
func newRealmOf(t testing.TB, format string, s oauth.TokenStore, cacheTokens int64, maxAge time.Duration) *realm {
	t.Helper()
	var keys oauth.KeyStore
	if oauth.SelfContained(format) {
		keys = slowKeys{s.(oauth.KeyStore)}
	}
	return newRealmAt(t, slowReads{s}, format, keys, introspect.CacheConfig{MaxTokens: cacheTokens}, maxAge, time.Now)
}

// newRealmAt makes a realm with tokens of a format. Self-contained ones need keys, a store for them.
func newRealmAt(t testing.TB, s oauth.TokenStore, format string, keys oauth.KeyStore, cfg introspect.CacheConfig, maxAge time.Duration, now func() time.Time) *realm {
	t.Helper()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing the store: %v", err)
		}
	})
	cache, err := introspect.NewCache(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cache.Close)
	plain := oauth.GenerateSecret() // checked in microseconds
	secret, err := oauth.PlainSecret(plain)
	if err != nil {
		t.Fatal(err)
	}
	ref := oauth.ClientRef{Realm: "root", ClientID: "reader"}
	generations, err := s.Admit(context.Background(), []oauth.ClientRef{ref}, nil)
	if err != nil {
		t.Fatal(err)
	}
	shared := oauth.Shared{Key: make([]byte, 32), Generations: map[string]uint64{"reader": generations[ref]}}
	if keys != nil {
		shareKeys(t, &shared, keys)
	}
	engine := oauth.New(oauth.Settings{
		Realm: "root", Issuer: jwtIssuer, Store: s, Keys: keys, Cache: cache, MaxAge: maxAge, Hasher: oauth.NewHasher(), Now: now,
		Immediate: rand.IntN(2) == 0, // which makes no difference to what is answered
		Clients: map[string]*oauth.Client{"reader": {
			ID: "reader", Secrets: []*oauth.Secret{secret}, Scopes: []string{"read"}, DefaultScopes: []string{"read"},
			GrantTypes: []string{oauth.GrantClientCredentials}, Auth: []string{oauth.AuthBasic},
			TokenFormat: format, TokenLifetime: time.Hour, Introspect: oauth.IntrospectOwn,
		}},
	})
	if err := engine.Share(shared); err != nil {
		t.Fatal(err)
	}
	return &realm{
		t:      t,
		store:  s,
		engine: engine,
		client: oauth.Credentials{Method: oauth.AuthBasic, ClientIDs: []string{"reader"}, Secrets: []string{plain}},
	}
}

// allFormats are the formats of tokens.
var allFormats = []string{oauth.FormatOpaque, oauth.FormatSealed, oauth.FormatJWT}

// agreeOnKeys returns the epoch that all users of a store have in common.
func agreeOnKeys(t testing.TB, keys oauth.KeyStore) (epoch oauth.Epoch) {
	t.Helper()
	var ring []byte
	err := patiently(func() (err error) {
		if _, err = keys.SwapKeys(context.Background(), "root", nil, []byte("an epoch of the tests")); err == nil {
			ring, err = keys.Keys(context.Background(), "root")
		}
		return err
	})
	if err != nil || copy(epoch[:], ring) != len(epoch) {
		t.Fatalf("there are no keys: %v", err)
	}
	return epoch
}

// patiently repeats what took longer than a store may take, or did not reach the store, as happens
// when a busy machine lets a disk, a Redis or the test itself stand still for a while.
func patiently(do func() error) error {
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		err := do()
		outage := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, oauth.ErrUnreachable) || errors.Is(err, introspect.ErrOutage)
		if !outage || time.Since(begin) > time.Minute {
			return err
		}
	}
}

func (r *realm) issue() string {
	var grant oauth.Grant
	if err := patiently(func() (err error) {
		grant, _, err = r.engine.Token(context.Background(), oauth.Request{
			Form: url.Values{"grant_type": {oauth.GrantClientCredentials}}, Credentials: r.client,
		})
		return err
	}); err != nil {
		r.t.Errorf("issuing a token: %v", err)
		return ""
	}
	return grant.Token
}

func (r *realm) tryRevoke(token string) error {
	_, err := r.engine.Revoke(context.Background(), oauth.Request{Form: url.Values{"token": {token}}, Credentials: r.client})
	return err
}

func (r *realm) revoke(token string) {
	if err := patiently(func() error { return r.tryRevoke(token) }); err != nil {
		r.t.Errorf("revoking a token: %v", err)
	}
}

// revokeAll is what an operator does.
func (r *realm) revokeAll() {
	if err := patiently(func() error {
		generations, err := r.store.EndTokens(context.Background(), "root", []string{"reader"}, false, nil)
		if err == nil {
			r.engine.Raise(map[string]uint64{"reader": generations[oauth.ClientRef{Realm: "root", ClientID: "reader"}]})
		}
		return err
	}); err != nil {
		r.t.Errorf("revoking all tokens: %v", err)
	}
}

// check is what a protected route asks.
func (r *realm) check(token string) bool {
	good, _ := r.checkedAt(token)
	return good
}

// checkedAt is check, and tells when it was called. An outage is no answer, so that is when it was
// called for the last time.
func (r *realm) checkedAt(token string) (good bool, called time.Time) {
	var facts *introspect.Facts
	if err := patiently(func() (err error) {
		called = time.Now()
		facts, err = r.engine.Tokens().Lookup(context.Background(), token)
		return err
	}); err != nil {
		r.t.Errorf("looking up a token: %v", err)
		return false, called
	}
	return facts.Active, called
}

// slowReads makes a store's answers old by the time they arrive, which is when mistakes show.
type slowReads struct{ oauth.TokenStore }

func (s slowReads) Get(ctx context.Context, key oauth.Key) (oauth.Token, error) {
	token, err := s.TokenStore.Get(ctx, key)
	for range rand.IntN(20) {
		runtime.Gosched()
	}
	return token, err
}

// slowKeys does the same for what is asked about self-contained tokens.
type slowKeys struct{ oauth.KeyStore }

func (s slowKeys) Denied(ctx context.Context, epoch oauth.Epoch, key oauth.Key) (bool, error) {
	denied, err := s.KeyStore.Denied(ctx, epoch, key)
	for range rand.IntN(20) {
		runtime.Gosched()
	}
	return denied, err
}

// forEachFormat runs a test for each format, store and cache. Of self-contained tokens it leaves out
// some caches, to save time.
func forEachFormat(t *testing.T, test func(t *testing.T, format string, open func(testing.TB) oauth.TokenStore, store string, tokens int64, maxAge time.Duration)) {
	for _, format := range allFormats {
		for _, s := range tokenStores {
			for _, c := range cacheSizes {
				if format == oauth.FormatSealed && c.name == "tiny cache" || format == oauth.FormatJWT && c.name == "cache off" {
					continue
				}
				t.Run(format+", "+s.name+", "+c.name, func(t *testing.T) { test(t, format, s.open, s.name, c.tokens, c.maxAge) })
			}
		}
	}
}

// The history of one token, for porcupine: it is issued, checked and revoked, by itself or with all
// others, in any order that agrees with the clock.
type (
	tokenInput struct {
		op    string // issue, check, revoke or revoke all
		token int    // none for revoke all
	}
	tokenState int
)

const (
	notIssued tokenState = iota
	good
	revoked
)

var tokenModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byToken := map[int][]porcupine.Operation{}
		var all []porcupine.Operation
		for _, op := range history {
			if in := op.Input.(tokenInput); in.op == "revoke all" {
				all = append(all, op)
			} else {
				byToken[in.token] = append(byToken[in.token], op)
			}
		}
		parts := make([][]porcupine.Operation, 0, len(byToken))
		for _, part := range byToken {
			first, last := part[0].Call, part[0].Return
			for _, op := range part {
				first, last = min(first, op.Call), max(last, op.Return)
			}
			for _, op := range all { // others make no difference to this token
				if op.Return >= first && op.Call <= last {
					part = append(part, op)
				}
			}
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return notIssued },
	Step: func(state, input, output any) (bool, any) {
		switch input.(tokenInput).op {
		case "issue":
			return state == notIssued, good
		case "revoke":
			return state != notIssued, revoked
		case "revoke all":
			if state == good {
				state = revoked
			}
			return true, state
		default:
			return output.(bool) == (state == good), state
		}
	},
	DescribeOperation: func(input, output any) string {
		return fmt.Sprintf("%s token %d: %v", input.(tokenInput).op, input.(tokenInput).token, output)
	},
}

// Whatever 8 clients do at once, there is an order of it all, in agreement with the clock, in
// which each token is good from its issue to its revocation and not after.
func TestBatteryHistoryIsLinearizable(t *testing.T) {
	const clients, slots = 8, 6
	steps := 1500
	switch {
	case longBattery:
		steps = 30_000
	case testing.Short():
		steps = 300
	}
	forEachFormat(t, func(t *testing.T, format string, open func(testing.TB) oauth.TokenStore, _ string, tokens int64, maxAge time.Duration) {
		r := newRealmOf(t, format, open(t), tokens, maxAge)
		type issued struct {
			number int
			token  string
		}
		var (
			begin   = time.Now()
			clock   = func() int64 { return int64(time.Since(begin)) }
			number  atomic.Int64
			current [slots]atomic.Pointer[issued] // tokens in use; old ones stay for a while
			mu      sync.Mutex
			history []porcupine.Operation
		)
		record := func(client int, in tokenInput, called int64, out any) {
			returned := clock()
			mu.Lock()
			defer mu.Unlock()
			history = append(history, porcupine.Operation{ClientId: client, Input: in, Call: called, Output: out, Return: returned})
		}
		issue := func(client, slot int) {
			n := int(number.Add(1))
			called := clock()
			token := r.issue()
			record(client, tokenInput{"issue", n}, called, nil)
			current[slot].Store(&issued{n, token})
		}
		for slot := range slots {
			issue(0, slot)
		}
		var all sync.WaitGroup
		for client := range clients {
			all.Go(func() {
				for range steps {
					slot := rand.IntN(slots)
					is := current[slot].Load()
					called := clock()
					switch dice := rand.IntN(1000); {
					case dice < 40:
						issue(client, slot)
					case dice < 43:
						r.revokeAll()
						record(client, tokenInput{op: "revoke all"}, called, nil)
					case dice < 140:
						r.revoke(is.token)
						record(client, tokenInput{"revoke", is.number}, called, nil)
					default:
						out, last := r.checkedAt(is.token)
						record(client, tokenInput{"check", is.number}, int64(last.Sub(begin)), out)
					}
				}
			})
		}
		all.Wait()
		if t.Failed() {
			return
		}
		active := 0
		for _, op := range history {
			if op.Output == true {
				active++
			}
		}
		if active == 0 || active == len(history) {
			t.Fatalf("%d of %d operations found a token good: the test tests nothing", active, len(history))
		}
		t.Logf("battery: %d operations of %d clients: %d found a token good", len(history), clients, active)
		result, info := porcupine.CheckOperationsVerbose(tokenModel, history, 5*time.Minute)
		switch result {
		case porcupine.Illegal:
			path := filepath.Join(t.ArtifactDir(), "history.html")
			if err := porcupine.VisualizePath(tokenModel, info, path); err != nil {
				t.Log(err)
			}
			t.Errorf("the history has no order; run with -artifacts to keep the picture of it in %s", path)
		case porcupine.Unknown:
			t.Errorf("%d operations are too many to judge", len(history))
		}
	})
}

// After a revocation no lookup passes, while others fill the cache all the time.
func TestNoTokenPassesAfterItsRevocation(t *testing.T) {
	forEachFormat(t, func(t *testing.T, format string, open func(testing.TB) oauth.TokenStore, store string, tokens int64, maxAge time.Duration) {
		rounds := 10_000
		if store != "memory" {
			rounds = 300 // each waits for the disk twice
		}
		if testing.Short() {
			rounds /= 10
		}
		r := newRealmOf(t, format, open(t), tokens, maxAge)
		var current atomic.Pointer[string]
		first := r.issue()
		current.Store(&first)
		stop := make(chan struct{})
		var fillers sync.WaitGroup
		for range 2 {
			fillers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						r.check(*current.Load())
						runtime.Gosched() // hits never block, and there are few processors
					}
				}
			})
		}
		passed := 0
		for range rounds {
			token := r.issue()
			current.Store(&token)
			if !r.check(token) {
				t.Error("a token that was just issued does not pass")
				break
			}
			r.revoke(token)
			if r.check(token) {
				passed++
			}
		}
		close(stop)
		fillers.Wait()
		if passed != 0 {
			t.Errorf("%d of %d tokens passed after their revocation", passed, rounds)
		}
	})
}

// gatedStore reads and then waits with what it read.
type gatedStore struct {
	oauth.TokenStore
	oauth.KeyStore
	closed atomic.Bool // whether the gate is
	open   chan struct{}
	held   atomic.Int64
}

func (g *gatedStore) Get(ctx context.Context, key oauth.Key) (oauth.Token, error) {
	token, err := g.TokenStore.Get(ctx, key)
	g.wait(ctx)
	return token, err
}

func (g *gatedStore) Denied(ctx context.Context, epoch oauth.Epoch, key oauth.Key) (bool, error) {
	denied, err := g.KeyStore.Denied(ctx, epoch, key)
	g.wait(ctx)
	return denied, err
}

func (g *gatedStore) wait(ctx context.Context) {
	if g.closed.Load() {
		g.held.Add(1)
		select {
		case <-g.open:
		case <-ctx.Done():
		}
	}
}

// A lookup that reads the store before a revocation and ends after it neither brings the token
// back nor answers those who come after the revocation.
func TestALateReadDoesNotResurrect(t *testing.T) {
	for _, c := range cacheSizes {
		for _, format := range allFormats {
			t.Run(format+", "+c.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					memory := store.NewMemory(time.Now)
					s := &gatedStore{TokenStore: memory, KeyStore: memory, open: make(chan struct{})}
					var keys oauth.KeyStore
					if oauth.SelfContained(format) {
						keys = s
					}
					r := newRealmAt(t, s, format, keys, introspect.CacheConfig{MaxTokens: c.tokens}, c.maxAge, time.Now)
					token := r.issue()

					s.closed.Store(true)
					go r.check(token) // begins before the revocation
					synctest.Wait()
					if s.held.Load() != 1 {
						t.Fatal("the lookup has not reached the store")
					}
					s.closed.Store(false) // the revocation's own read
					r.revoke(token)
					var passed atomic.Int64
					for range 10 { // begin after it, and join that lookup
						go func() {
							if r.check(token) {
								passed.Add(1)
							}
						}()
					}
					synctest.Wait()
					close(s.open)
					synctest.Wait()
					if n := passed.Load(); n != 0 {
						t.Errorf("%d of 10 lookups that began after the revocation passed", n)
					}
					for range 120 {
						if r.check(token) {
							t.Fatal("the token passes again")
						}
						time.Sleep(time.Minute / 2)
					}
				})
			})
		}
	}
}

// lateStore gives up on revocations and carries them out later, as a store may if it was still
// writing when its caller's time was up.
type lateStore struct {
	oauth.TokenStore
	late []func()
}

var errGivenUp = errors.New("given up")

func (s *lateStore) Revoke(ctx context.Context, key oauth.Key) error {
	s.late = append(s.late, func() { s.TokenStore.Revoke(context.WithoutCancel(ctx), key) })
	return errGivenUp
}

// A revocation that failed and is sent again holds, even if the store has carried out the first one
// in the meantime and has nothing left to do.
func TestARevocationThatIsSentAgain(t *testing.T) {
	s := &lateStore{TokenStore: store.NewMemory(time.Now)}
	r := newRealm(t, s, 100, time.Hour)
	token := r.issue()
	if err := r.tryRevoke(token); !errors.Is(err, errGivenUp) {
		t.Fatalf("revoking: %v", err)
	}
	// The cache fills from the store, which still has the token.
	for range 1000 {
		if !r.check(token) {
			t.Fatal("a token that is not revoked does not pass")
		}
	}
	for _, do := range s.late {
		do()
	}
	r.revoke(token)
	if r.check(token) {
		t.Error("the token passes after its revocation was acknowledged")
	}
}

// mixedUp is a store that returns another token's record.
type mixedUp struct {
	oauth.TokenStore
	other atomic.Pointer[oauth.Token]
}

func (m *mixedUp) Put(ctx context.Context, token oauth.Token) error {
	m.other.CompareAndSwap(nil, &token)
	return m.TokenStore.Put(ctx, token)
}

func (m *mixedUp) Get(context.Context, oauth.Key) (oauth.Token, error) { return *m.other.Load(), nil }

// A store that mixes up its records is an outage; no token has another's rights.
func TestAStoreThatMixesUpRecords(t *testing.T) {
	r := newRealm(t, &mixedUp{TokenStore: store.NewMemory(time.Now)}, 100, time.Hour)
	first, second := r.issue(), r.issue()
	if !r.check(first) {
		t.Error("the token whose record it is does not pass")
	}
	if facts, err := r.engine.Tokens().Lookup(context.Background(), second); err == nil {
		t.Errorf("with another token's record: %+v", facts)
	}
	if err := r.tryRevoke(second); err == nil {
		t.Error("a revocation was decided by another token's record")
	}
}
