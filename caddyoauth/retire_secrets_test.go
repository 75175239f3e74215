package caddyoauth_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/store"
	"github.com/caddyoauth/gateway/introspect"
)

// A secret that retires goes by itself once it has not been used for its time, and no other one does. Its
// tokens stay.
func TestUnusedSecretsRetire(t *testing.T) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "log")
			config, address := withAdmin(t, caddyfileOf(store+managedOptions, managedSite))
			g := startCaddyfile(t, logTo(file, config))
			a := admin{g, address}
			const path = "/oauth/clients/root/batch"
			old := fmt.Sprint(a.must(201, "PUT", path, `{"scopes":["read"]}`).json(t)["secret"])
			stays := fmt.Sprint(a.must(201, "PUT", "/oauth/clients/root/stays", `{"scopes":["read"]}`).json(t)["secret"])
			a.must(200, "POST", "/oauth/clients/root/stays/secrets", "{}")
			began := time.Now()
			token := g.tokenBy("batch", old)
			g.tokenBy("stays", stays)
			next := fmt.Sprint(a.must(200, "POST", path+"/secrets", `{"others_retire_unused":"2h"}`).json(t)["secret"])
			ended := time.Now()

			r := new(caddyoauth.Retirement)
			pass := func(at time.Time, found int) {
				t.Helper()
				if n, err := r.Pass(t.Context(), at); n != found || err != nil {
					t.Fatalf("found %d unused secrets, %v; want %d", n, err, found)
				}
			}
			pass(began.Add(2*time.Hour-time.Second), 0)
			pass(ended.Add(2*time.Hour), 1)
			pass(ended.Add(2*time.Hour+time.Minute), 1) // another gateway may still have a use to write
			g.tokenBy("batch", old)
			if events := eventsIn(t, file, "client_secret_removed"); len(events) != 0 {
				t.Errorf("too early, the events are %v", events)
			}
			other, done := *r, make(chan error) // another gateway has found the same, and is as quick
			at := time.Now().Add(3 * time.Hour)
			go func() {
				_, err := other.Pass(t.Context(), at)
				done <- err
			}()
			if _, err := r.Pass(t.Context(), at); err != nil {
				t.Error(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			if res := g.fetchBy("batch", old); res.StatusCode != 401 {
				t.Errorf("the old secret: %d, want 401", res.StatusCode)
			}
			pass(time.Now().Add(4*time.Hour), 0)
			g.tokenBy("batch", next)
			g.tokenBy("stays", stays)
			g.wants("a token by the old secret", token, 200)
			events := eventsIn(t, file, "client_secret_removed")
			if len(events) != 1 || events[0]["cause"] != "unused" || events[0]["client_id"] != "batch" || events[0]["remote_ip"] != nil {
				t.Errorf("the events are %v", events)
			}
		})
	}
}

// Nobody knows that a secret is unused while a use at another gateway may not be written, or the store
// can't be asked: then it stays.
func TestNoSecretRetiresUnlessAllIsKnown(t *testing.T) {
	redis := redistest.Start(t)
	way := redistest.StartProxy(t, redis)
	config, address := withAdmin(t, caddyfileOf(at(way.Addr)+managedOptions, fleetSite))
	g := startCaddyfile(t, config)
	a := admin{g, address}
	const path = "/oauth/clients/root/batch"
	old := fmt.Sprint(a.must(201, "PUT", path, `{"scopes":["read"]}`).json(t)["secret"])
	g.tokenBy("batch", old)
	added := a.must(200, "POST", path+"/secrets", `{"others_retire_unused":"2h"}`).json(t)
	id := fmt.Sprint(added["secrets"].([]any)[0].(map[string]any)["id"])
	elsewhere := store.OpenRedis(store.RedisConfig{
		Addresses: []string{redis.Addr}, Prefix: "caddy-oauth:", DialTimeout: 20 * time.Second, Timeout: 20 * time.Second,
		Revoked: func(string, introspect.TokenID) {}, Flush: func() {},
		Lost: func(error) {}, Regained: func() {}, Changed: func() {}, Evicting: func(string, string) {}, MayEvict: func(string) {}, Ended: func(string) {},
	})
	defer elsewhere.Close()

	now := time.Now()
	r := new(caddyoauth.Retirement)
	pass := func(what string, at time.Time, found int, fails bool) {
		t.Helper()
		if n, err := r.Pass(t.Context(), at); n != found || (err != nil) != fails {
			t.Fatalf("%s: found %d unused secrets, %v; want %d", what, n, err, found)
		}
	}
	redis.CLI("config", "set", "maxmemory", "1")
	pass("while Redis takes no writes", now.Add(3*time.Hour), 0, true)
	redis.CLI("config", "set", "maxmemory", "0")
	way.Cut()
	pass("while Redis is away", now.Add(4*time.Hour), 0, true)
	way.Heal()
	g.linked()
	pass("for the first time", now.Add(5*time.Hour), 1, false)
	used := now.Add(4 * time.Hour).UTC().Truncate(time.Millisecond)
	if err := elsewhere.AddUses(t.Context(), "root", map[string]oauth.Use{"batch": {Credentials: map[string]time.Time{id: used}}}); err != nil {
		t.Fatal(err)
	}
	pass("used at another gateway", used.Add(2*time.Hour-time.Millisecond), 0, false)
	pass("not for long", used.Add(2*time.Hour), 1, false)
	g.tokenBy("batch", old)
	pass("not for longer", used.Add(3*time.Hour), 1, false)
	if res := g.fetchBy("batch", old); res.StatusCode != 401 {
		t.Errorf("the old secret: %d, want 401", res.StatusCode)
	}
}
