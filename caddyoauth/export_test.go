package caddyoauth

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// WriteEvents has the configuration in force write at once what it has noted for the log of requests
// that were refused, so that tests need not wait for it.
func WriteEvents() {
	if app := activeApp(); app != nil {
		for _, l := range app.refusals {
			l.writeDue()
		}
	}
}

// NewMetrics returns a registry with the metrics of this package.
func NewMetrics() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	if err := registerMetrics(registry); err != nil {
		panic(err)
	}
	return registry
}

// WriteUses has the store get at once what clients did, so that tests need not wait for it. What a store
// did not take in time, on a busy machine, is written again, as a gateway does.
func WriteUses() {
	app := activeApp()
	if app == nil {
		return
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := app.run.opened.inventory.Write(context.Background())
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			panic(err)
		}
	}
}

// KeepUses has the store keep what clients of a realm did, as another gateway would.
func KeepUses(realm string, uses map[string]oauth.Use) error {
	return activeApp().run.opened.store.(timedStore).TokenStore.(oauth.UsageStore).AddUses(context.Background(), realm, uses)
}

// KeepManaged has the store keep this of a managed client of a realm, as a gateway of a later version would,
// and returns once this gateway has heard of it.
func KeepManaged(realm, id string, data []byte) error {
	opened, ctx := activeApp().run.opened, context.Background()
	now, err := opened.clients.ManagedClient(ctx, oauth.ClientRef{Realm: realm, ClientID: id})
	if err != nil {
		return err
	}
	now.Data = data
	if _, err = opened.clients.SwapManagedClient(ctx, realm, now); err != nil {
		return err
	}
	return opened.shareManaged(ctx, realm, []string{id})
}

// OpenKeys returns how many sets of issuers' keys are open.
func OpenKeys() (n int) {
	openKeys.Range(func(_, _ any) bool {
		n++
		return true
	})
	return n
}

// OldNonce returns a nonce that the running gateway gave out some time ago, for a good proof that has none.
func OldNonce(place oauth.Place, proof string, of introspect.ProofOf, age time.Duration) (nonce string) {
	app := activeApp()
	verifier, err := introspect.NewProofs(introspect.ProofsConfig{})
	if err != nil {
		panic(err)
	}
	then := oauth.NewProofs(place, verifier, time.Hour, func() time.Time { return time.Now().Add(-age) })
	then.Keep(app.run.opened.proofs)
	app.run.agreeing.Lock()
	then.Share(app.run.nonceKey)
	app.run.agreeing.Unlock()
	var refused *oauth.ProofError
	if _, err := then.Verify([]string{proof}, of); errors.As(err, &refused) {
		nonce = refused.Nonce
	}
	return nonce
}

// Retirement is what the running gateway does every few minutes about secrets that retire, at a time that
// the test chooses.
type Retirement struct{ found foundUnused }

// Pass removes the secrets that are unused, and were found so by the Pass before, and returns how many it
// has found.
func (r *Retirement) Pass(ctx context.Context, now time.Time) (found int, err error) {
	r.found, err = activeApp().retireSecrets(ctx, now, r.found)
	return len(r.found), err
}

// AddElsewhere puts a managed client into the store as another gateway would of which this one has not
// heard yet, and returns what its tokens' generation is from then on.
func AddElsewhere(realm, id string) (generation func() (uint64, error), err error) {
	clients := activeApp().run.opened.clients
	_, err = clients.SwapManagedClient(context.Background(), realm, oauth.ManagedClient{
		ID: id, Generation: 1, Data: []byte(`{"v":1,"client":{"scopes":["read"],"disabled":true},"created":"2026-01-01T00:00:00Z","changed":"2026-01-01T00:00:00Z"}`),
	})
	return func() (uint64, error) {
		client, err := clients.ManagedClient(context.Background(), oauth.ClientRef{Realm: realm, ClientID: id})
		return client.Generation, err
	}, err
}
