package caddyoauth_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// BenchmarkListClients measures one answer of the list of 100,000 managed clients: a page of all, one that is behind most,
// one of those that have done nothing for long, which are few, and all that a search finds.
func BenchmarkListClients(b *testing.B) {
	const clients = 100_000
	for _, name := range []string{"bbolt", "redis"} {
		store := "store bbolt " + filepath.Join(b.TempDir(), "tokens.db") + "\n"
		if name == "redis" {
			store = at(redistest.Start(b).Addr)
		}
		address := porttest.Address(b)
		config := strings.Replace(caddyfileOf(store+"managed_clients\n"+testClients, "oauth_server"), "admin off", "admin "+address, 1)
		g := startCaddyfile(b, config)
		a := admin{g, address}
		hash, err := oauth.HashGenerated(oauth.GenerateSecret())
		if err != nil {
			b.Fatal(err)
		}
		now := time.Now()
		uses := make(map[string]oauth.Use)
		for part := range clients / 500 {
			var these []string
			for i := part * 500; i < (part+1)*500; i++ {
				these = append(these, fmt.Sprintf(`{"realm":"root","id":"m%06d","settings":{"scopes":["read"],"secrets":[{"hash":%q}]}}`, i, hash))
				used := now
				if i%5000 == 0 {
					used = now.AddDate(0, 0, -100)
				}
				uses[fmt.Sprintf("m%06d", i)] = oauth.Use{Token: used, Seen: used, From: "192.0.2.0/24", Method: oauth.AuthBasic, Credential: "ab12cd34ef56", Credentials: map[string]time.Time{"ab12cd34ef56": used}}
			}
			a.must(http.StatusOK, "POST", "/oauth/clients/import", `{"version":1,"clients":[`+strings.Join(these, ",")+`]}`)
		}
		begin := time.Now()
		if err := caddyoauth.KeepUses("root", uses); err != nil {
			b.Fatal(err)
		}
		b.Logf("%s: writing what all of them did took %v", name, time.Since(begin))
		after := fmt.Sprint(a.must(200, "GET", "/oauth/clients?limit=1&search=m09", "").json(b)["next"])
		for what, query := range map[string]string{
			"page": "limit=100", "large page": "limit=1000", "unused": "unused=90d&limit=1000", "search": "search=99&limit=1000", "behind": "limit=100&search=m09&after=" + after,
		} {
			b.Run(name+"/"+what, func(b *testing.B) {
				for b.Loop() {
					a.must(200, "GET", "/oauth/clients?"+query, "")
				}
			})
		}
	}
}
