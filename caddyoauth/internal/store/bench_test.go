package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// numbered makes tokens as a busy server does: each expires a little later than the one before.
func numbered(n uint64) oauth.Token {
	token := tokenOf("")
	token.ExpiryMilli += int64(n / 10)
	binary.BigEndian.PutUint64(token.ID[:], n*0x9e3779b97f4a7c15) // spread like a hash
	return token
}

// filled opens a store with that many live tokens in it.
func filled(b *testing.B, live int) *Bbolt {
	s, err := OpenBbolt(filepath.Join(b.TempDir(), "tokens.db"), time.Now)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	for n := 0; n < live; {
		if err := s.update(func(tx *bolt.Tx) error {
			tokens := tx.Bucket(bucketTokens)
			tokens.FillPercent = 0.9
			for end := min(live, n+100_000); n < end; n++ {
				token := numbered(uint64(n))
				if err := tokens.Put(tokenKey(token.Key), encodeRecord(token)); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
	return s
}

// Making a token durable, alone and with others, in an empty file and in a large one. The time is
// per token; a caller waits for about as many of these as there are callers.
func BenchmarkBbolt(b *testing.B) {
	for _, live := range []int{0, 1_000_000} {
		if live > 0 && testing.Short() {
			continue
		}
		b.Run(fmt.Sprintf("live=%d", live), func(b *testing.B) {
			s := filled(b, live)
			var next atomic.Uint64
			next.Store(uint64(live))
			for _, callers := range []int{1, 16, 128} {
				b.Run(fmt.Sprintf("put/callers=%d", callers), func(b *testing.B) {
					b.ReportAllocs()
					var left atomic.Int64
					left.Store(int64(b.N))
					var all sync.WaitGroup
					for range callers {
						all.Go(func() {
							for left.Add(-1) >= 0 {
								if err := s.Put(ctx, numbered(next.Add(1)-1)); err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					all.Wait()
				})
			}
			b.Run("get", func(b *testing.B) {
				b.ReportAllocs()
				n := next.Load()
				for i := uint64(0); b.Loop(); i++ {
					if _, err := s.Get(ctx, numbered(i*7919%n).Key); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("revoke", func(b *testing.B) {
				n := next.Load()
				for i := uint64(0); b.Loop(); i++ {
					if err := s.Revoke(ctx, numbered(i*7919%n).Key); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// The same in memory.
func BenchmarkMemory(b *testing.B) {
	m := NewMemory(time.Now)
	m.max = 1 << 30
	b.Run("put", func(b *testing.B) {
		b.ReportAllocs()
		for i := uint64(0); b.Loop(); i++ {
			if err := m.Put(ctx, numbered(i)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("get", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := m.Get(ctx, numbered(0).Key); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// The same in Redis, whose CPU time is told as well, and what a record takes there.
func BenchmarkRedis(b *testing.B) {
	server := redistest.Start(b)
	r, _ := redisAt(b, nil, server.Addr)
	linked(b, r)
	for _, c := range []struct {
		name string
		do   func(oauth.Token) error
	}{
		{"put", func(t oauth.Token) error { return r.Put(ctx, t) }},
		{"get", func(t oauth.Token) error { _, err := r.Get(ctx, t.Key); return err }},
		{"revoke", func(t oauth.Token) error { return r.Revoke(ctx, t.Key) }},
	} {
		for _, callers := range []int{1, 16, 128} {
			b.Run(fmt.Sprintf("%s/callers=%d", c.name, callers), func(b *testing.B) {
				tokens := make([]oauth.Token, 20_000)
				for n := range tokens {
					tokens[n] = numbered(uint64(n))
				}
				if c.name != "put" {
					put(b, r, tokens[:min(b.N, len(tokens))]...)
				}
				b.ReportAllocs()
				var next atomic.Int64
				var all sync.WaitGroup
				before := server.CPU()
				b.ResetTimer()
				for range callers {
					all.Go(func() {
						for n := int(next.Add(1)) - 1; n < b.N; n = int(next.Add(1)) - 1 {
							if err := c.do(tokens[n%len(tokens)]); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				all.Wait()
				b.StopTimer()
				b.ReportMetric(float64((server.CPU()-before).Nanoseconds())/float64(b.N), "redis-ns/op")
				if c.name == "put" {
					size, err := strconv.ParseFloat(server.CLI("memory", "usage", r.tokenKey(tokens[0].Key)), 64)
					if err != nil {
						b.Fatal(err)
					}
					b.ReportMetric(size, "redis-B")
				}
			})
		}
	}
}

// What the first use of a self-contained token asks of its store: whether it was revoked. There are
// a thousand that were.
func BenchmarkDenied(b *testing.B) {
	file, err := OpenBbolt(filepath.Join(b.TempDir(), "tokens.db"), time.Now)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { file.Close() })
	server := redistest.Start(b)
	redis, _ := redisAt(b, nil, server.Addr)
	for _, c := range []struct {
		name   string
		store  oauth.KeyStore
		denied func(context.Context, oauth.Epoch, oauth.Key) (bool, error)
	}{
		{"memory", NewMemory(time.Now), nil},
		{"bbolt", file, nil},
		{"redis", redis, nil},
		{"redis, asked", redis, redis.askDenied},
	} {
		b.Run(c.name, func(b *testing.B) {
			if c.denied == nil {
				c.denied = c.store.Denied
				if _, err := c.store.SwapKeys(ctx, "root", nil, keyringOf(epochA, "")); err != nil {
					b.Fatal(err)
				}
				var all sync.WaitGroup
				for n := range 1000 {
					all.Go(func() {
						if err := c.store.Deny(ctx, numbered(uint64(n)).Key, fmt.Sprint(n/100)); err != nil {
							b.Error(err)
						}
					})
				}
				all.Wait()
			}
			if c.store == redis {
				settled(b, "root", redis)
			}
			b.ReportAllocs()
			key := numbered(1000).Key
			for n := uint64(1000); b.Loop(); n++ {
				binary.BigEndian.PutUint64(key.ID[:], n*0x9e3779b97f4a7c15)
				if denied, err := c.denied(ctx, epochA, key); denied || err != nil {
					b.Fatal(denied, err)
				}
			}
		})
	}
}
