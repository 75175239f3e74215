package caddyoauth_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// BenchmarkLoadClients measures how long a configuration takes to load, from its JSON to the moment when
// it is in force, with no client but two, with 10,000 in the configuration, and with 100,000 managed
// ones: when nothing is running before, and when it replaces itself. It also reports what the heap holds
// then beyond what a configuration without them needs.
func BenchmarkLoadClients(b *testing.B) {
	const configured, managed = 10_000, 100_000
	hash, err := oauth.HashGenerated(oauth.GenerateSecret())
	if err != nil {
		b.Fatal(err)
	}
	slow, err := oauth.HashArgon2id("a secret")
	if err != nil {
		b.Fatal(err)
	}
	clients := func(secret func(i int) string) string {
		var text strings.Builder
		for i := range configured {
			fmt.Fprintf(&text, "client c%05d {\n%s\nscopes orders:read orders:write\naudience https://api.example.com\n}\n", i, secret(i))
		}
		return text.String()
	}
	folder := b.TempDir()
	file := func(i int) string {
		path := filepath.Join(folder, fmt.Sprint(i))
		if err := os.WriteFile(path, []byte(oauth.GenerateSecret()), 0o600); err != nil {
			b.Fatal(err)
		}
		return "secret {file." + path + "}"
	}
	for _, store := range []string{"bbolt", "redis"} {
		b.Run(store, func(b *testing.B) {
			line := "store bbolt " + filepath.Join(b.TempDir(), "tokens.db") + "\n"
			if store == "redis" {
				line = at(redistest.Start(b).Addr)
			}
			none := heapAfterLoading(b, line+testClients)
			for _, c := range []struct{ name, lines string }{
				{"none", testClients},
				{"sha256", clients(func(int) string { return "secret_hash " + hash })},
				{"argon2id", clients(func(int) string { return "secret_hash " + slow })},
				{"files", clients(file)},
				{"managed", "managed_clients\n" + testClients},
			} {
				if c.name == "managed" {
					addManaged(b, line+c.lines, hash, managed)
				}
				benchmarkLoad(b, c.name, line+c.lines, none)
			}
		})
	}
}

// benchmarkLoad measures loading a configuration. none is what heapAfterLoading says of one without clients.
func benchmarkLoad(b *testing.B, name, lines string, none float64) {
	config := jsonOf(b, lines)
	heap := heapAfterLoading(b, lines)
	for how, before := range map[string]func() error{"start": caddy.Stop, "reload": func() error { return nil }} {
		b.Run(name+"/"+how, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				if err := before(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if err := caddy.Load(config, true); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((heap-none)/(1<<20), "MiB")
		})
	}
	if err := caddy.Stop(); err != nil {
		b.Fatal(err)
	}
}

// jsonOf adapts a Caddyfile with these lines in its oauth block.
func jsonOf(b *testing.B, oauth string) []byte {
	b.Helper()
	text := strings.Replace(caddyfileOf(oauth, "oauth_server\noauth_protect /x\nrespond ok"), "{\n", "{\nlog {\nlevel ERROR\n}\n", 1)
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		b.Fatal(err)
	}
	return config
}

// heapAfterLoading returns how many bytes are in use with a configuration with these clients.
func heapAfterLoading(b *testing.B, lines string) float64 {
	b.Helper()
	config := jsonOf(b, lines)
	if err := caddy.Load(config, true); err != nil {
		b.Fatal(err)
	}
	var stats runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&stats)
	return float64(stats.HeapAlloc)
}

// addManaged adds managed clients to a store.
func addManaged(b *testing.B, options, hash string, n int) {
	b.Helper()
	address := porttest.Address(b)
	g := startCaddyfile(b, strings.Replace(caddyfileOf(options, "oauth_server"), "admin off", "admin "+address, 1))
	for part := range n / 500 {
		var these []string
		for i := part * 500; i < (part+1)*500; i++ {
			these = append(these, fmt.Sprintf(`{"realm":"root","id":"m%06d","settings":{"scopes":["orders:read","orders:write"],"audience":["https://api.example.com"],"secrets":[{"hash":%q}]}}`, i, hash))
		}
		admin{g, address}.must(http.StatusOK, "POST", "/oauth/clients/import", `{"version":1,"clients":[`+strings.Join(these, ",")+`]}`)
	}
}
