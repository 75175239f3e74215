package introspect_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// benchmarkTokens are issued by a registry behind a cache that holds them all.
func benchmarkTokens(b *testing.B, n int, maxAge time.Duration) (*introspect.CachedSource, []string) {
	reg := newRegistry(time.Now)
	cache := newCache(b, introspect.Config{})
	s := cache.Wrap("reg", reg, maxAge)
	tokens := make([]string, n)
	for i := range tokens {
		tokens[i] = fmt.Sprintf("coa_%056d", i)
		reg.issue(tokens[i], time.Now().Add(time.Hour))
		active(b, s, tokens[i])
		if i%1000 == 999 {
			cache.Wait() // its queue is finite
		}
	}
	cache.Wait()
	return s, tokens
}

func lookup(b *testing.B, s *introspect.CachedSource, token string) {
	if facts, err := s.Lookup(context.Background(), token); err != nil || !facts.Active {
		b.Errorf("%+v, %v", facts, err)
	}
}

// A token that is in memory.
func BenchmarkHit(b *testing.B) {
	for _, n := range []int{1, 10_000} {
		b.Run(fmt.Sprintf("tokens=%d", n), func(b *testing.B) {
			s, tokens := benchmarkTokens(b, n, time.Hour)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				lookup(b, s, tokens[i%n])
			}
		})
	}
}

// The same from all processors at once.
func BenchmarkHitParallel(b *testing.B) {
	const n = 10_000
	s, tokens := benchmarkTokens(b, n, time.Hour)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			lookup(b, s, tokens[i%n])
		}
	})
}

// A token that has to be looked up in a source that answers from memory: what the cache
// adds to a lookup.
func BenchmarkMiss(b *testing.B) {
	for _, c := range []struct {
		name   string
		maxAge time.Duration
	}{{"cache off", 0}, {"cache on", time.Hour}} {
		b.Run(c.name, func(b *testing.B) {
			s, tokens := benchmarkTokens(b, 1000, c.maxAge)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				token := tokens[i%1000]
				if c.maxAge > 0 {
					s.Forget(introspect.IDOf(token)) // part of the figure
				}
				lookup(b, s, token)
			}
		})
	}
}

// The source itself, to compare with.
func BenchmarkNoCache(b *testing.B) {
	reg := newRegistry(time.Now)
	reg.issue("token", time.Now().Add(time.Hour))
	b.ReportAllocs()
	for b.Loop() {
		reg.Lookup(context.Background(), "token")
	}
}
