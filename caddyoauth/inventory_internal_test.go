package caddyoauth

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/store"
)

// countedUses is a store that counts how often it is told what clients did, and may fail.
type countedUses struct {
	*store.Memory
	told   atomic.Int64
	broken atomic.Bool
}

func (c *countedUses) AddUses(ctx context.Context, realm string, uses map[string]oauth.Use) error {
	if c.broken.Load() {
		return errors.New("full")
	}
	c.told.Add(1)
	return c.Memory.AddUses(ctx, realm, uses)
}

// What clients did is written once a minute, if anything was done, again if it failed, and at the end. That
// of clients that are gone is forgotten after a long time.
func TestInventoryIsWrittenOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &countedUses{Memory: store.NewMemory(time.Now)}
		opened := &openStore{store: s, followers: make(map[*App]*news)}
		opened.inventory = startInventory(s, opened)
		settings := oauth.Settings{Realm: "root", Clients: map[string]*oauth.Client{"c": {ID: "c"}, "gone": {ID: "gone"}, "late": {ID: "late"}}, Inventory: opened.inventory.Inventory, Store: s}
		engine := oauth.New(settings)
		left := &App{logger: zap.NewNop(), realms: map[string]*servedRealm{"root": {name: "root", settings: oauth.Settings{Clients: map[string]*oauth.Client{"c": {}, "here": {}}}, engine: engine}}}
		opened.follow(left)
		from := netip.MustParseAddr("192.0.2.7")
		kept := func(what string, want ...string) {
			t.Helper()
			synctest.Wait()
			uses, err := s.Uses(t.Context(), "root", nil)
			if got := slices.Sorted(maps.Keys(uses.Clients)); err != nil || !slices.Equal(got, want) {
				t.Errorf("%s: %v, %v; want %v", what, uses.Clients, err, want)
			}
		}
		for range 3 {
			time.Sleep(inventoryInterval)
		}
		synctest.Wait()
		if n := s.told.Load(); n != 1 {
			t.Errorf("an idle gateway has written %d times, want once", n)
		}
		begin := time.Now()
		for time.Since(begin) < inventoryInterval-time.Second {
			engine.Saw("c", from)
			engine.Saw("gone", from)
			time.Sleep(time.Second)
		}
		kept("before the minute is over")
		time.Sleep(2 * time.Second)
		kept("when it is over", "c", "gone")
		if n := s.told.Load(); n != 2 {
			t.Errorf("it was written %d times, want twice", n)
		}
		s.broken.Store(true)
		engine.Saw("c", from)
		time.Sleep(3 * inventoryInterval)
		s.broken.Store(false)
		time.Sleep(inventoryInterval)
		synctest.Wait()
		if n := s.told.Load(); n != 3 {
			t.Errorf("it was written %d times, want three times", n)
		}
		long := time.Now().Add(-usesKept)
		if err := s.AddUses(t.Context(), "root", map[string]oauth.Use{"here": {Seen: long}, "long gone": {Seen: long}, "just gone": {Seen: long.Add(25 * time.Hour)}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(tidyUsesFirst)
		kept("after an hour", "c", "gone", "here", "just gone")
		time.Sleep(tidyUsesInterval)
		kept("after a day", "c", "gone", "here", "just gone")
		time.Sleep(tidyUsesInterval)
		kept("after another day", "c", "gone", "here")
		engine.Saw("late", from)
		opened.inventory.end()
		kept("at the end", "c", "gone", "here", "late")
	})
}
