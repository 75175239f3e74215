package oauth_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/store"
	"github.com/caddyoauth/gateway/introspect"
)

// fleetBound is how long a revocation at one gateway may stay unseen at another. That a machine, a
// gateway or Redis stands still for a while makes it no longer: a gateway counts by the clock, and
// asks when it can't know.
const fleetBound = 2 * time.Second

// openRedis opens a store. If there is a cache, the store tells it what other gateways do.
func openRedis(t testing.TB, address string, cache *introspect.Cache) *store.Redis {
	t.Helper()
	cfg := store.RedisConfig{
		Addresses: []string{address}, Prefix: "test:", DialTimeout: time.Second, Timeout: 2 * time.Second,
		Revoked: func(string, introspect.TokenID) {}, Flush: func() {},
		Lost: func(error) {}, Regained: func() {}, Changed: func() {}, Evicting: func(string, string) {}, MayEvict: func(string) {}, Ended: func(string) {},
	}
	if cache == nil {
		// Nothing goes wrong with this store, but the machine may be busy.
		cfg.DialTimeout, cfg.Timeout = 20*time.Second, 20*time.Second
	} else {
		cfg.Revoked = func(realm string, id introspect.TokenID) { cache.Forget(oauth.CacheName(realm), id) }
		cfg.Flush = cache.Flush
	}
	return store.OpenRedis(cfg)
}

// newNode makes a gateway of a fleet: an Engine with a store and a cache of its own.
func newNode(t testing.TB, format, address, plain string) *realm {
	t.Helper()
	cache, err := introspect.NewCache(introspect.CacheConfig{MaxTokens: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cache.Close)
	s := openRedis(t, address, cache)
	t.Cleanup(func() { s.Close() })
	ref := oauth.ClientRef{Realm: "root", ClientID: "reader"}
	var (
		generations map[oauth.ClientRef]uint64
		key         []byte
	)
	if err := patiently(func() (err error) {
		if generations, err = s.Admit(context.Background(), []oauth.ClientRef{ref}, nil); err == nil {
			key, err = s.Secret(context.Background(), "token-key", []byte(plain))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	secret, err := oauth.PlainSecret(plain)
	if err != nil {
		t.Fatal(err)
	}
	engine := oauth.New(oauth.Settings{
		Realm: "root", Issuer: jwtIssuer, Store: slowReads{s}, Keys: slowKeys{s}, Cache: cache, MaxAge: time.Hour, Coherent: s.Coherent, Hasher: oauth.NewHasher(),
		Clients: map[string]*oauth.Client{"reader": {
			ID: "reader", Secrets: []*oauth.Secret{secret}, Scopes: []string{"read"}, DefaultScopes: []string{"read"},
			GrantTypes: []string{oauth.GrantClientCredentials}, Auth: []string{oauth.AuthBasic},
			TokenFormat: format, TokenLifetime: time.Hour, Introspect: oauth.IntrospectOwn,
		}},
	})
	shared := oauth.Shared{Key: key, Generations: map[string]uint64{"reader": generations[ref]}}
	shareKeys(t, &shared, s)
	if err := engine.Share(shared); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); !s.Coherent(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the link does not come up")
		}
	}
	return &realm{t: t, engine: engine, client: oauth.Credentials{Method: oauth.AuthBasic, ClientIDs: []string{"reader"}, Secrets: []string{plain}}}
}

// nodeOperation is an operation, and the node that carried it out.
type nodeOperation struct {
	node int
	porcupine.Operation
}

// seenFrom returns the history that a node promises to its callers: all that was issued, its own
// checks and revocations as they were, and the revocations of others, which take effect here at
// some moment up to bound after they were acknowledged. The checks of others are not in it: they
// belong to what those nodes promise. The demand is strict: for each revocation there is one
// moment before which the token is good here, and after which it never is again.
func seenFrom(node int, history []nodeOperation, bound time.Duration) []porcupine.Operation {
	var seen []porcupine.Operation
	for _, op := range history {
		switch in := op.Input.(tokenInput); {
		case op.node == node || in.op == "issue":
			seen = append(seen, op.Operation)
		case in.op == "revoke":
			op.Return += int64(bound)
			seen = append(seen, op.Operation)
		}
	}
	return seen
}

// Of two gateways over one Redis, each is linearizable to its own callers, and the revocations of
// the other arrive within the bound.
func TestHistoryOfTwoNodes(t *testing.T) {
	for _, format := range allFormats {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			testHistoryOfTwoNodes(t, format)
		})
	}
}

func testHistoryOfTwoNodes(t *testing.T, format string) {
	// These are of each node. There are so many tokens that most are asked about for longer than
	// the bound after they were revoked; otherwise it would not show if they stayed good.
	const clients, slots = 4, 60
	duration := 3 * fleetBound
	if testing.Short() {
		duration = fleetBound
	}
	address := redistest.Start(t).Addr
	plain := oauth.GenerateSecret()
	nodes := []*realm{newNode(t, format, address, plain), newNode(t, format, address, plain)}
	type issued struct {
		number int
		token  string
	}
	var (
		begin   = time.Now()
		clock   = func() int64 { return int64(time.Since(begin)) }
		number  atomic.Int64
		current [slots]atomic.Pointer[issued]
		mu      sync.Mutex
		history []nodeOperation
	)
	record := func(node, client int, in tokenInput, called int64, out any) {
		returned := clock()
		mu.Lock()
		defer mu.Unlock()
		history = append(history, nodeOperation{node, porcupine.Operation{ClientId: client, Input: in, Call: called, Output: out, Return: returned}})
	}
	issue := func(node, client, slot int) {
		n := int(number.Add(1))
		called := clock()
		token := nodes[node].issue()
		record(node, client, tokenInput{"issue", n}, called, nil)
		current[slot].Store(&issued{n, token})
	}
	for slot := range slots {
		issue(0, 0, slot)
	}
	var all sync.WaitGroup
	for node := range nodes {
		for client := range clients {
			client += node * clients
			all.Go(func() {
				for clock() < int64(duration) {
					time.Sleep(rand.N(4 * time.Millisecond))
					slot := rand.IntN(slots)
					is := current[slot].Load()
					called := clock()
					switch dice := rand.IntN(100); {
					case dice < 1:
						issue(node, client, slot)
					case dice < 3:
						nodes[node].revoke(is.token)
						record(node, client, tokenInput{"revoke", is.number}, called, nil)
					default:
						out, last := nodes[node].checkedAt(is.token)
						record(node, client, tokenInput{"check", is.number}, int64(last.Sub(begin)), out)
					}
				}
			})
		}
	}
	all.Wait()
	if t.Failed() {
		return
	}
	for node := range nodes {
		result, info := porcupine.CheckOperationsVerbose(tokenModel, seenFrom(node, history, fleetBound), 5*time.Minute)
		switch result {
		case porcupine.Illegal:
			path := filepath.Join(t.ArtifactDir(), fmt.Sprintf("node%d.html", node))
			if err := porcupine.VisualizePath(tokenModel, info, path); err != nil {
				t.Log(err)
			}
			t.Errorf("node %d: the history has no order; run with -artifacts to keep the picture of it in %s", node, path)
		case porcupine.Unknown:
			t.Errorf("node %d: the history is too long to judge", node)
		}
	}
	// Without the bound it may well fail. The log says whether the bound was needed.
	strict := porcupine.CheckOperations(tokenModel, seenFrom(0, history, 0))
	t.Logf("%d operations at two nodes; without any delay node 0 would be linearizable: %t", len(history), strict)
}

// A revocation reaches the other gateway within moments; the log says how long a token stays good
// there after its revocation was acknowledged.
func TestRevocationReachesTheOtherNode(t *testing.T) {
	for _, format := range allFormats {
		t.Run(format, func(t *testing.T) { testRevocationReachesTheOtherNode(t, format) })
	}
}

func testRevocationReachesTheOtherNode(t *testing.T, format string) {
	address := redistest.Start(t).Addr
	plain := oauth.GenerateSecret()
	one, two := newNode(t, format, address, plain), newNode(t, format, address, plain)
	rounds := 500
	if testing.Short() {
		rounds = 100
	}
	took := make([]time.Duration, 0, rounds)
	accepted := 0
	for round := range rounds {
		token := one.issue()
		for range 3 {
			if !two.check(token) {
				t.Fatalf("round %d: a token issued at one is not good at two", round)
			}
		}
		one.revoke(token)
		acknowledged := time.Now()
		for two.check(token) {
			accepted++
			if late := time.Since(acknowledged); late > fleetBound+10*time.Second {
				t.Fatalf("round %d: good %v after its revocation", round, late)
			}
		}
		took = append(took, time.Since(acknowledged))
		if one.check(token) {
			t.Errorf("round %d: good where it was revoked", round)
		}
	}
	slices.Sort(took)
	t.Logf("refused at the other node after p50 %v, p99 %v, at most %v; accepted %d times meanwhile", took[rounds/2], took[rounds*99/100], took[rounds-1], accepted)
}
