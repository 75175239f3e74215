package caddyoauth

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/go-jose/go-jose/v4"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// benchmarkApp is an oauth app with a client for each format of tokens, without the rest of Caddy. It is not started.
func benchmarkApp(b testing.TB) (caddy.Context, *App) {
	b.Helper()
	secret := oauth.GenerateSecret()
	hash, err := oauth.HashGenerated(secret)
	if err != nil {
		b.Fatal(err)
	}
	client := func(format string) *Client {
		return &Client{Secrets: []ClientSecret{{Hash: hash}}, Scopes: []string{"read", "write"}, TokenFormat: format}
	}
	return benchmarkAppOf(b, "ERROR", &Realm{
		Issuer:  "https://auth.example.com/oauth2",
		Clients: map[string]*Client{"reader": client(""), "sealer": client(oauth.FormatSealed), "signer": client(oauth.FormatJWT)},
	})
}

// benchmarkAppOf is benchmarkApp with this realm, and logs that go nowhere, from this level up.
func benchmarkAppOf(b testing.TB, level string, root *Realm) (caddy.Context, *App) {
	b.Helper()
	return benchmarkAppOver(b, `{"store":"memory"}`, level, root)
}

// benchmarkAppOver is benchmarkAppOf with this store.
func benchmarkAppOver(b testing.TB, store, level string, root *Realm) (caddy.Context, *App) {
	b.Helper()
	app := &App{StoreRaw: json.RawMessage(store), Realms: map[string]*Realm{"root": root}}
	raw, err := json.Marshal(app)
	if err != nil {
		b.Fatal(err)
	}
	config := &caddy.Config{
		Admin:   &caddy.AdminConfig{Disabled: true},
		AppsRaw: caddy.ModuleMap{"oauth": raw},
		Logging: &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": {BaseLog: caddy.BaseLog{Level: level, WriterRaw: json.RawMessage(`{"output":"file","filename":"/dev/null"}`)}}}},
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
	b.Cleanup(func() { a.Stop(); a.Cleanup() })
	return ctx, a
}

// benchmarkIssuer starts another authorization server and returns its URL and two JWTs that it signed, the
// second as long as those of Keycloak.
func benchmarkIssuer(b testing.TB) (url, token, long string) {
	b.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: private, KeyID: "one"}}, (&jose.SignerOptions{}).WithType("at+jwt"))
	if err != nil {
		b.Fatal(err)
	}
	const claims = `{"iss":"https://issuer.example.com","sub":"reader","client_id":"reader","scope":"read","exp":4102444800}`
	sign := func(claims string) string {
		signed, err := signer.Sign([]byte(claims))
		if err != nil {
			b.Fatal(err)
		}
		text, err := signed.CompactSerialize()
		if err != nil {
			b.Fatal(err)
		}
		return text
	}
	token = sign(claims)
	long = sign(`{"realm_access":{"roles":["` + strings.Repeat(`offline_access","`, 50) + `"]},` + claims[1:])
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/keys" {
			json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public, KeyID: "one"}}})
		} else {
			io.WriteString(w, `{"active":true,`+claims[1:])
		}
	}))
	b.Cleanup(server.Close)
	return server.URL, token, long
}

// BenchmarkProtectWarmHit measures what oauth_protect adds to a request whose token is cached:
// "protected" less "floor". The floor is the same loop with a handler that only calls the next one.
// Both create anew what Caddy creates for each request. "early" is the removal of headers before a
// server's first route. "assertion" is "protected" with an assertion that is signed once in a while.
// Tokens of other servers are measured alone on their route, and with all
// other sources.
func BenchmarkProtectWarmHit(b *testing.B) {
	ctx, app := benchmarkApp(b)
	issuer, jwt, long := benchmarkIssuer(b)
	const local = `{"source":"local"}`
	remote := `{"source":"introspect","url":"` + issuer + `/introspect","issuer":"https://issuer.example.com"}`
	signed := `{"source":"jwt","issuer":"https://issuer.example.com","jwks_uri":"` + issuer + `/keys"}`
	route := func(sources ...string) *Protect {
		p := &Protect{Scopes: []string{"read"}}
		for _, source := range sources {
			p.SourcesRaw = append(p.SourcesRaw, json.RawMessage(source))
		}
		if err := p.Provision(ctx); err != nil {
			b.Fatal(err)
		}
		return p
	}
	protect, all := route(local), route(local, remote, signed)
	introspected, verified := route(remote), route(signed)
	five := []string{signed}
	for n := range 4 {
		five = append([]string{fmt.Sprintf(`{"source":"jwt","issuer":"https://issuer.example.com/%d","jwks_uri":"%s/keys"}`, n, issuer)}, five...)
	}
	ofFive := route(five...)
	telling := &Protect{Scopes: []string{"read"}, Assertion: &Assertion{Audience: []string{"https://orders.internal"}}}
	if err := telling.Provision(ctx); err != nil {
		b.Fatal(err)
	}
	if err := app.Start(); err != nil {
		b.Fatal(err)
	}
	realm, err := app.realm("")
	if err != nil {
		b.Fatal(err)
	}
	engine := realm.engine
	form := url.Values{"grant_type": {"client_credentials"}, "scope": {"read"}}
	plain := oauth.GenerateSecret()
	hash, _ := oauth.HashGenerated(plain)
	secret, _ := oauth.HashedSecret(hash)
	fetch := func(client string) oauth.Grant {
		realm.settings.Clients[client].Secrets = []*oauth.Secret{secret}
		grant, _, err := engine.Token(b.Context(), oauth.Request{Form: form, Credentials: oauth.Credentials{Method: oauth.AuthBasic, ClientIDs: []string{client}, Secrets: []string{plain}}})
		if err != nil {
			b.Fatal(err)
		}
		return grant
	}
	grant := fetch("reader")
	next := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })
	headers := http.Header{
		"User-Agent": {"bench"}, "Accept": {"*/*"}, "Accept-Encoding": {"gzip"}, "X-Request-Id": {"1"},
	}
	opaque := grant.Token[:len(grant.Token)-1] + "." // as long as ours, but not ours
	for _, c := range []struct {
		name    string
		handler caddyhttp.MiddlewareHandler
		token   string
	}{
		{"floor", passOn{}, grant.Token}, {"protected", protect, grant.Token}, {"assertion", telling, grant.Token},
		{"protected-sealed", protect, fetch("sealer").Token}, {"protected-jwt", protect, fetch("signer").Token},
		{"early", &earlyStrip{app: app}, grant.Token},
		{"introspected", introspected, opaque}, {"jwt", verified, jwt},
		{"protected-of-three", all, grant.Token}, {"introspected-of-three", all, opaque}, {"jwt-of-three", all, jwt},
		{"jwt-of-five", ofFive, jwt}, {"jwt-long", verified, long}, {"jwt-long-of-five", ofFive, long},
	} {
		b.Run(c.name, func(b *testing.B) {
			handler := c.handler
			headers["Authorization"] = []string{"Bearer " + c.token}
			b.ReportAllocs()
			w := httptest.NewRecorder()
			original := httptest.NewRequest("GET", "https://gateway.example/api/orders/17", nil)
			header := make(http.Header, 16)
			server := new(caddyhttp.Server) // without access logs, as by default
			for b.Loop() {
				repl := caddy.NewReplacer()
				repl.Map(func(string) (any, bool) { return nil, false }) // as for {http.request.*}
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

// BenchmarkIssue measures what oauth_server does for a token request, without the rest of Caddy and
// without writing the event anywhere.
func BenchmarkIssue(b *testing.B) {
	for _, format := range []string{oauth.FormatOpaque, oauth.FormatSealed, oauth.FormatJWT} {
		b.Run(format, func(b *testing.B) {
			secret := oauth.GenerateSecret()
			hash, err := oauth.HashGenerated(secret)
			if err != nil {
				b.Fatal(err)
			}
			ctx, app := benchmarkAppOf(b, "INFO", &Realm{
				Issuer: "https://auth.example.com/oauth2", TokenFormat: format,
				Clients: map[string]*Client{"reader": {Secrets: []ClientSecret{{Hash: hash}}, Scopes: []string{"read", "write"}, DefaultScopes: []string{"read"}}},
			})
			server := new(Server)
			if err := server.Provision(ctx); err != nil {
				b.Fatal(err)
			}
			if err := app.Start(); err != nil {
				b.Fatal(err)
			}
			original := httptest.NewRequest("POST", "https://gateway.example/oauth2/access_token", nil)
			original.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			original.SetBasicAuth("reader", secret)
			authorization := original.Header["Authorization"]
			const form = "grant_type=client_credentials"
			original.ContentLength = int64(len(form))
			vars := context.WithValue(context.Background(), caddyhttp.VarsCtxKey, map[string]any{caddyhttp.ClientIPVarKey: "192.0.2.7"})
			b.ReportAllocs()
			for b.Loop() {
				w := httptest.NewRecorder()
				request := original.WithContext(context.WithValue(vars, caddyhttp.ExtraLogFieldsCtxKey, new(caddyhttp.ExtraLogFields)))
				request.Body = io.NopCloser(strings.NewReader(form))
				request.Header["Authorization"] = authorization // the answer to the last one took it away
				if err := server.ServeHTTP(w, request, nil); err != nil || w.Code != 200 {
					b.Fatal(w.Code, err)
				}
			}
		})
	}
}

// BenchmarkLoad measures how long a configuration with so many clients takes to load, while one like it
// is in use.
func BenchmarkLoad(b *testing.B) {
	secret := oauth.GenerateSecret()
	hash, err := oauth.HashGenerated(secret)
	if err != nil {
		b.Fatal(err)
	}
	for _, clients := range []int{1, 10_000} {
		root := &Realm{Clients: make(map[string]*Client, clients)}
		for n := range clients {
			root.Clients[fmt.Sprintf("client-%d", n)] = &Client{Secrets: []ClientSecret{{Hash: hash}}, Scopes: []string{"read", "write"}}
		}
		load := func(b *testing.B) {
			_, app := benchmarkAppOver(b, `{"store":"memory"}`, "ERROR", root)
			if err := app.Start(); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			load(b)
			b.ReportAllocs()
			for b.Loop() {
				load(b)
			}
		})
	}
}

// BenchmarkFirstUse measures what oauth_protect does for a request whose recorded token it has not seen
// before. The time for a token that it knows is BenchmarkProtectWarmHit's.
func BenchmarkFirstUse(b *testing.B) {
	for _, where := range []string{"memory", "bbolt"} {
		b.Run(where, func(b *testing.B) {
			store := `{"store":"memory"}`
			if where == "bbolt" {
				store = fmt.Sprintf(`{"store":"bbolt","path":%q}`, filepath.Join(b.TempDir(), "tokens.db"))
			}
			secret := oauth.GenerateSecret()
			hash, err := oauth.HashGenerated(secret)
			if err != nil {
				b.Fatal(err)
			}
			ctx, app := benchmarkAppOver(b, store, "ERROR", &Realm{
				Clients: map[string]*Client{"reader": {Secrets: []ClientSecret{{Hash: hash}}, Scopes: []string{"read"}}},
			})
			protect := &Protect{Scopes: []string{"read"}}
			if err := protect.Provision(ctx); err != nil {
				b.Fatal(err)
			}
			if err := app.Start(); err != nil {
				b.Fatal(err)
			}
			realm, err := app.realm("")
			if err != nil {
				b.Fatal(err)
			}
			requests := make([]*http.Request, b.N)
			var all sync.WaitGroup
			for first := range 64 { // they share their syncs
				all.Go(func() {
					for i := first; i < b.N; i += 64 {
						grant, _, err := realm.engine.Token(b.Context(), oauth.Request{
							Form:        url.Values{"grant_type": {"client_credentials"}, "scope": {"read"}},
							Credentials: oauth.Credentials{Method: oauth.AuthBasic, ClientIDs: []string{"reader"}, Secrets: []string{secret}},
						})
						if err != nil {
							b.Error(err)
							return
						}
						repl := caddy.NewReplacer()
						repl.Map(func(string) (any, bool) { return nil, false })
						vars := context.WithValue(context.Background(), caddy.ReplacerCtxKey, repl)
						vars = context.WithValue(vars, caddyhttp.ExtraLogFieldsCtxKey, new(caddyhttp.ExtraLogFields))
						vars = context.WithValue(vars, caddyhttp.ServerCtxKey, new(caddyhttp.Server))
						requests[i] = httptest.NewRequest("GET", "https://gateway.example/api/orders/17", nil).WithContext(vars)
						requests[i].Header.Set("Authorization", "Bearer "+grant.Token)
					}
				})
			}
			all.Wait()
			next := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })
			w := httptest.NewRecorder()
			b.ReportAllocs()
			b.ResetTimer()
			for _, request := range requests {
				if err := protect.ServeHTTP(w, request, next); err != nil || w.Code != 200 {
					b.Fatal(w.Code, err)
				}
			}
		})
	}
}

type passOn struct{}

func (passOn) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	return next.ServeHTTP(w, r)
}

// BenchmarkAmbiguousPath measures the check of a plain path and of one with escapes.
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
