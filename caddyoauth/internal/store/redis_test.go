package store

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
	"github.com/caddyoauth/gateway/introspect"
)

// heard is what a Redis store told.
type heard struct {
	mu       sync.Mutex
	revoked  map[introspect.TokenID]string // to the realm
	flushes  int
	story    []string // lost and regained, in order
	changes  int
	evicting []string
}

func (h *heard) did(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

// redisAt opens a store, and listens to it.
func redisAt(t testing.TB, change func(*RedisConfig), addresses ...string) (*Redis, *heard) {
	t.Helper()
	h := &heard{revoked: make(map[introspect.TokenID]string)}
	cfg := RedisConfig{
		Addresses: addresses, Prefix: "caddy-oauth:", DialTimeout: time.Second, Timeout: 2 * time.Second,
		Revoked:  func(realm string, id introspect.TokenID) { h.did(func() { h.revoked[id] = realm }) },
		Flush:    func() { h.did(func() { h.flushes++ }) },
		Lost:     func(error) { h.did(func() { h.story = append(h.story, "lost") }) },
		Regained: func() { h.did(func() { h.story = append(h.story, "regained") }) },
		Changed:  func() { h.did(func() { h.changes++ }) },
		Evicting: func(_, policy string) { h.did(func() { h.evicting = append(h.evicting, policy) }) },
	}
	if change != nil {
		change(&cfg)
	}
	r := OpenRedis(cfg)
	t.Cleanup(func() { r.Close() })
	return r, h
}

// eventually waits for what other processes have to do first.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 15 seconds: %s", what)
		}
	}
}

// One server serves all tests of the suite, each with a prefix of its own.
func TestRedisStore(t *testing.T) {
	server := redistest.Start(t)
	n := 0
	testStore(t, func(t testing.TB) oauth.TokenStore {
		n++
		r, _ := redisAt(t, func(cfg *RedisConfig) { cfg.Prefix = fmt.Sprintf("test %d:", n) }, server.Addr)
		return r
	})
}

func TestRedisClusterStore(t *testing.T) {
	servers := redistest.StartCluster(t)
	n := 0
	testStore(t, func(t testing.TB) oauth.TokenStore {
		n++
		r, _ := redisAt(t, func(cfg *RedisConfig) {
			cfg.Cluster, cfg.Prefix = true, fmt.Sprintf("test %d:", n)
		}, servers[0].Addr, servers[1].Addr)
		return r
	})
	for _, s := range servers { // all of them have a part
		if s.CLI("dbsize") == "0" {
			t.Errorf("the node %s has no key", s.Addr)
		}
	}
}

var _ = errors.Is
var _ = strings.Contains
