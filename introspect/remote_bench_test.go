package introspect_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// BenchmarkRemoteHit compares a cached token of a remote server with one issued here: the work
// is the same, apart from the check of its characters and the larger facts.
func BenchmarkRemoteHit(b *testing.B) {
	server := newAuthServer(b, says(`{"active":true,"client_id":"reports","sub":"reports","scope":"read write","aud":["api"],"iss":"https://issuer.example",`+
		`"token_type":"Bearer","exp":`+at(time.Now().Add(time.Hour))+`}`))
	remote := newRemote(b, remoteConfig(server.URL))
	token := fmt.Sprintf("coa_%056d", 1)
	b.Run("remote", func(b *testing.B) {
		cache := newCache(b, introspect.CacheConfig{})
		s := cache.WrapWith(remote.Name(), remote, introspect.SourceConfig{MaxAge: time.Hour, NegativeAge: introspect.DefaultNegativeAge, StaleFor: time.Hour})
		warm(b, cache, s, token)
		b.ReportAllocs()
		for b.Loop() {
			lookup(b, s, token)
		}
	})
	b.Run("local", func(b *testing.B) {
		s, tokens := benchmarkTokens(b, 1, time.Hour)
		b.ReportAllocs()
		for b.Loop() {
			lookup(b, s, tokens[0])
		}
	})
}

// BenchmarkNegativeHit looks up a token that is remembered as not good.
func BenchmarkNegativeHit(b *testing.B) {
	cache := newCache(b, introspect.CacheConfig{})
	s := cache.WrapWith("reg", newRegistry(time.Now), introspect.SourceConfig{MaxAge: time.Hour, NegativeAge: time.Hour})
	b.ReportAllocs()
	for b.Loop() {
		if facts, err := s.Lookup(context.Background(), "token"); err != nil || facts.Active {
			b.Fatal(facts, err)
		}
	}
}

// BenchmarkRemoteMiss asks a server on this machine.
func BenchmarkRemoteMiss(b *testing.B) {
	server := newAuthServer(b, func(w http.ResponseWriter, r *http.Request) {
		says(`{"active":true,"client_id":"reports","scope":"read write"}`)(w, r)
	})
	remote := newRemote(b, remoteConfig(server.URL))
	b.ReportAllocs()
	for b.Loop() {
		if facts, err := remote.Lookup(context.Background(), introspect.NewToken("token")); err != nil || !facts.Active {
			b.Fatal(facts, err)
		}
	}
}
