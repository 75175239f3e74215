package caddyoauth

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// benchmarkApp is an oauth app with one client, started without the rest of Caddy.
func benchmarkApp(b *testing.B) (caddy.Context, *App) {
	b.Helper()
	secret := oauth.GenerateSecret()
	hash, err := oauth.HashGenerated(secret)
	if err != nil {
		b.Fatal(err)
	}
	app := &App{
		StoreRaw: json.RawMessage(`{"store":"memory"}`),
		Realms:   map[string]*Realm{"root": {Clients: map[string]*Client{"reader": {Secrets: []ClientSecret{{Hash: hash}}, Scopes: []string{"read", "write"}}}}},
	}
	raw, err := json.Marshal(app)
	if err != nil {
		b.Fatal(err)
	}
	config := &caddy.Config{
		Admin:   &caddy.AdminConfig{Disabled: true},
		AppsRaw: caddy.ModuleMap{"oauth": raw},
		Logging: &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": {BaseLog: caddy.BaseLog{Level: "ERROR"}}}},
	}
	ctx, err := caddy.ProvisionContext(config)
	if err != nil {
		b.Fatal(err)
	}
	loaded, err := ctx.App("oauth")
	if err != nil {
		b.Fatal(err)
	}
	a := loaded.(*App)
	if err := a.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { a.Stop(); a.Cleanup() })
	return ctx, a
}

// BenchmarkProtectWarmHit is the cost that oauth_protect adds to a request whose token
// is cached: "protected" less "floor". The floor is the same loop with a handler that
// only calls the next one; both make what Caddy makes anew for each request.
func BenchmarkProtectWarmHit(b *testing.B) {
	ctx, app := benchmarkApp(b)
	realm, err := app.realm("")
	if err != nil {
		b.Fatal(err)
	}
	engine := realm.engine
	form := oauth.Form{"grant_type": "client_credentials", "scope": "read"}
	client := realm.settings.Clients["reader"]
	plain := oauth.GenerateSecret()
	hash, _ := oauth.HashGenerated(plain)
	secret, _ := oauth.HashedSecret(hash)
	client.Secrets = []*oauth.Secret{secret}
	reply, _, err := engine.Token(b.Context(), oauth.Request{Form: form, Credentials: oauth.Credentials{Method: oauth.AuthBasic, ClientID: "reader", Secret: plain}})
	if err != nil {
		b.Fatal(err)
	}
	protect := &Protect{Scopes: []string{"read"}}
	if err := protect.Provision(ctx); err != nil {
		b.Fatal(err)
	}
	next := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })
	headers := http.Header{
		"Authorization": {"Bearer " + reply.AccessToken}, "User-Agent": {"bench"}, "Accept": {"*/*"},
		"Accept-Encoding": {"gzip"}, "X-Request-Id": {"1"},
	}
	for name, handler := range map[string]caddyhttp.MiddlewareHandler{"protected": protect, "floor": passOn{}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			w := httptest.NewRecorder()
			original := httptest.NewRequest("GET", "https://gateway.example/api/orders/17", nil)
			header := make(http.Header, 16)
			server := new(caddyhttp.Server) // without access logs, as by default
			for b.Loop() {
				repl := caddy.NewReplacer()
				repl.Map(func(string) (any, bool) { return nil, false }) // as Caddy maps {http.request.*}
				vars := context.WithValue(context.Background(), caddy.ReplacerCtxKey, repl)
				vars = context.WithValue(vars, caddyhttp.ExtraLogFieldsCtxKey, new(caddyhttp.ExtraLogFields))
				vars = context.WithValue(vars, caddyhttp.ServerCtxKey, server)
				request := original.WithContext(vars)
				request.Header = header
				clear(request.Header)
				for name, values := range headers {
					request.Header[name] = values
				}
				if err := handler.ServeHTTP(w, request, next); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type passOn struct{}

func (passOn) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	return next.ServeHTTP(w, r)
}

// BenchmarkAmbiguousPath is the check of a plain path and of one with escapes.
func BenchmarkAmbiguousPath(b *testing.B) {
	for _, path := range []string{"/api/orders/17", "/api/" + strings.Repeat("%C3%BC", 20)} {
		b.Run(path[:8], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if ambiguousPath(path) {
					b.Fatal("flagged")
				}
			}
		})
	}
}
