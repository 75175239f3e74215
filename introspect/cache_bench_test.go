package introspect_test

import (
	"context"
	"fmt"
	"runtime/metrics"
	"strings"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// benchmarkTokens returns tokens issued by a registry behind a cache that holds them all.
func benchmarkTokens(b *testing.B, n int, maxAge time.Duration) (*introspect.CachedSource, []string) {
	reg := newRegistry(time.Now)
	cache := newCache(b, introspect.CacheConfig{})
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

// BenchmarkHit looks up a cached token.
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

// BenchmarkHitParallel does so from all processors at once.
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

// BenchmarkMiss looks up a token in a source that answers from memory: it shows what the cache
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

// BenchmarkNoCache is the source itself, for comparison.
func BenchmarkNoCache(b *testing.B) {
	reg := newRegistry(time.Now)
	reg.issue("token", time.Now().Add(time.Hour))
	token := introspect.NewToken("token")
	b.ReportAllocs()
	for b.Loop() {
		reg.Lookup(context.Background(), token)
	}
}

// BenchmarkForeignMemory shows the memory in use after one client has had very many or very
// large tokens checked: as heap-MiB after garbage collection, and as process-MiB, which the
// system sees.
func BenchmarkForeignMemory(b *testing.B) {
	text := strings.Repeat("the claims of a token, ", 223) // 5 KiB
	for _, c := range []struct {
		name   string
		tokens int
		claims string
	}{
		{"tokens=100000,claims=5KiB", 100_000, `"x":"` + text + `"`},
		{"tokens=1000,claims=64KiB of {}", 1000, `"x":[` + strings.Repeat("{},", 21_800) + `0]`},
		{"tokens=10000,claims=64KiB of {}", 10_000, `"x":[` + strings.Repeat("{},", 21_800) + `0]`},
	} {
		b.Run(c.name, func(b *testing.B) {
			remote := newRemote(b, remoteConfig("https://as.example"))
			for b.Loop() {
				before := heap()
				cache := newCache(b, introspect.CacheConfig{})
				s := cache.Wrap("src", sourceFunc(func(_ context.Context, token string) (*introspect.Facts, error) {
					facts, err := remote.Understand([]byte(`{"active":true,"client_id":"` + token + `","scope":"read",` + c.claims + `}`))
					facts.ID = introspect.IDOf(token)
					return facts, err
				}), time.Hour)
				for i := range c.tokens {
					lookup(b, s, fmt.Sprint("token ", i))
				}
				sample := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
				metrics.Read(sample)
				b.ReportMetric(float64(sample[0].Value.Uint64()-sample[1].Value.Uint64())/(1<<20), "process-MiB")
				b.ReportMetric(float64(heap()-before)/(1<<20), "heap-MiB")
				cache.Close()
			}
		})
	}
}

// BenchmarkClaimValues shows what a claim costs a request whose token is cached: a short path
// in claims of 5 KiB and, at worst, 64 KiB that have to be scanned.
func BenchmarkClaimValues(b *testing.B) {
	for _, c := range []struct{ name, claims string }{
		{"5KiB", `{"iss":"https://as.example","text":"` + strings.Repeat("x", 5<<10) + `","realm_access":{"roles":["a","b","admin"]}}`},
		{"64KiB of {}", `{"x":[` + strings.Repeat("{},", 21_800) + `0],"realm_access":{"roles":["a","b","admin"]}}`},
		{"64KiB of names", `{"x":[` + strings.Repeat(`"a",`, 16_000) + `0],"realm_access":{"roles":["a",` + strings.Repeat(`"a",`, 990) + `"admin"]}}`},
	} {
		b.Run(c.name, func(b *testing.B) {
			facts := &introspect.Facts{Active: true, Claims: c.claims}
			b.ReportAllocs()
			for b.Loop() {
				if values := facts.ClaimValues("realm_access.roles"); values[len(values)-1] != "admin" {
					b.Fatal(values)
				}
			}
		})
	}
}
