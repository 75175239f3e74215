package oauth_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
	"github.com/caddyoauth/gateway/introspect"
)

// What came of using an assertion.
const (
	assertionGood    = "good"
	assertionRefused = "refused"
	assertionUnknown = "nobody knows" // it may have been used, even later
)

// replayModel is an assertion that is good once. Its state is whether it was used.
var replayModel = (&porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byID := make(map[int][]porcupine.Operation)
		for _, op := range history {
			byID[op.Input.(int)] = append(byID[op.Input.(int)], op)
		}
		var parts [][]porcupine.Operation
		for _, part := range byID {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() []any { return []any{false} },
	Step: func(state, _, output any) []any {
		switch used := state.(bool); {
		case output == assertionUnknown && !used:
			return []any{false, true}
		case output == assertionUnknown, output == assertionRefused && used, output == assertionGood && !used:
			return []any{true}
		}
		return nil
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("use %d: %v", input, output) },
}).ToModel()

// newSigningNode makes a gateway whose client authenticates by assertions.
func newSigningNode(t testing.TB, address string, client *oauth.Client) *oauth.Engine {
	t.Helper()
	cache, err := introspect.NewCache(introspect.CacheConfig{MaxTokens: 1000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cache.Close)
	s := openRedis(t, address, cache)
	t.Cleanup(func() { s.Close() })
	ref := oauth.ClientRef{Realm: "root", ClientID: client.ID}
	var generations map[oauth.ClientRef]uint64
	if err := patiently(func() (err error) {
		generations, err = s.Admit(context.Background(), []oauth.ClientRef{ref}, nil)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	engine := oauth.New(oauth.Settings{
		Realm: "root", Issuer: "https://auth.example.com/oauth2", Store: s, Replays: s, Cache: cache, MaxAge: time.Hour, Coherent: s.Coherent, Hasher: oauth.NewHasher(),
		Clients: map[string]*oauth.Client{client.ID: client},
	})
	if err := engine.Share(oauth.Shared{Key: make([]byte, 32), Generations: map[string]uint64{client.ID: generations[ref]}}); err != nil {
		t.Fatal(err)
	}
	return engine
}

// At two gateways over one Redis, under load and while Redis is killed and comes back with its data, each
// assertion is good once: there is an order in which the first use is good and each later one is refused,
// and a use that nobody can answer for counts as either.
func TestHistoryOfAssertions(t *testing.T) {
	const clients, slots = 4, 20
	duration := 4 * time.Second
	if testing.Short() {
		duration = 2 * time.Second
	}
	redis := redistest.Start(t, "--dir", t.TempDir(), "--appendonly", "yes", "--appendfsync", "always")
	client, assert := oauth.NewSigner(t, "signer")
	nodes := []*oauth.Engine{newSigningNode(t, redis.Addr, client), newSigningNode(t, redis.Addr, client)}
	type made struct {
		number int
		text   string
	}
	var (
		begin   = time.Now()
		clock   = func() int64 { return int64(time.Since(begin)) }
		number  atomic.Int64
		current [slots]atomic.Pointer[made]
		results sync.Map
		mu      sync.Mutex
		history []porcupine.Operation
	)
	renew := func(slot int) {
		n := int(number.Add(1))
		current[slot].Store(&made{n, assert(fmt.Sprint("id ", n))})
	}
	for slot := range slots {
		renew(slot)
	}
	use := func(node *oauth.Engine, id int, is *made) {
		req, err := oauth.ParseRequest(oauth.Incoming{Body: url.Values{
			"grant_type": {oauth.GrantClientCredentials}, "client_assertion_type": {oauth.AssertionType}, "client_assertion": {is.text},
		}.Encode()})
		if err != nil {
			t.Error(err)
			return
		}
		op := porcupine.Operation{ClientId: id, Input: is.number, Call: clock()}
		_, _, err = node.Token(context.Background(), req)
		op.Return = clock()
		refused := (*oauth.Error)(nil)
		switch {
		case err == nil:
			op.Output = assertionGood
		case errors.As(err, &refused) && refused.Reason == "assertion_replayed":
			op.Output = assertionRefused
		case errors.As(err, &refused):
			t.Errorf("an assertion is refused: %s", refused.Reason)
		default:
			// What was sent may arrive long after its sender has given up.
			op.Output, op.Return = assertionUnknown, int64(time.Hour)
		}
		results.Store(op.Output, true)
		mu.Lock()
		defer mu.Unlock()
		history = append(history, op)
	}
	var all sync.WaitGroup
	for i, node := range nodes {
		for worker := range clients {
			id := i*clients + worker
			all.Go(func() {
				for clock() < int64(duration) {
					slot := rand.IntN(slots)
					use(node, id, current[slot].Load())
					if rand.IntN(4) == 0 {
						renew(slot)
					}
				}
			})
		}
	}
	<-time.After(duration / 3)
	redis.Stop() // it is killed, and missed at least once
	for clock() < int64(duration) {
		if _, seen := results.Load(assertionUnknown); seen {
			break
		}
		time.Sleep(time.Millisecond)
	}
	redis.Restart()
	all.Wait()
	// When all is over, whoever was good is refused everywhere.
	for slot := range slots {
		for range 2 {
			for i, node := range nodes {
				use(node, i*clients, current[slot].Load())
			}
		}
	}
	if t.Failed() {
		return
	}
	for _, result := range []string{assertionGood, assertionRefused, assertionUnknown} {
		if _, seen := results.Load(result); !seen {
			t.Errorf("no use ended with %q", result)
		}
	}
	result, info := porcupine.CheckOperationsVerbose(replayModel, history, time.Minute)
	switch result {
	case porcupine.Illegal:
		path := filepath.Join(t.ArtifactDir(), "assertions.html")
		if err := porcupine.VisualizePath(replayModel, info, path); err != nil {
			t.Log(err)
		}
		t.Errorf("the history has no order; run with -artifacts to keep the picture of it in %s", path)
	case porcupine.Unknown:
		t.Error("the history is too long to judge")
	}
	t.Logf("%d uses of %d assertions at two nodes", len(history), number.Load())
}
