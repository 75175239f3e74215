package caddyoauth_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/caddyoauth/gateway/caddyoauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// A managed client may publish its keys. They are fetched as long as it is there and enabled, and a reload
// fetches them no second time.
func TestManagedJWKSURI(t *testing.T) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			client := newKeyClient(t, "signer")
			var downloads atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				downloads.Add(1)
				io.WriteString(w, `{"keys":[`+client.jwk()+`]}`)
			}))
			t.Cleanup(server.Close)
			config, address := withAdmin(t, caddyfileOf(store+issuerOption+managedOptions, managedSite))
			g := startCaddyfile(t, config)
			a := admin{g, address}
			open := caddyoauth.OpenKeys()
			const path = "/oauth/clients/root/signer"
			settings := fmt.Sprintf(`{"scopes":["read"],"default_scopes":["read"],"auth":["private_key_jwt"],"jwks_uri":%q,"private_hosts":["127.0.0.1"]`, server.URL+"/jwks")
			added := a.must(201, "PUT", path, settings+"}")
			if added.json(t)["secret"] != nil {
				t.Errorf("it has got a secret: %s", added.Body)
			}
			token := wantToken(t, g.patiently(func() answer { return g.ask(client.assert(nil, nil)) }), "read")
			g.wants("its token", token, 200)
			wantE401(t, g.patiently(func() answer { return g.ask(newKeyClient(t, "signer").assert(nil, nil)) }), "root")

			if err := g.loadCaddyfile(strings.Replace(config, "grace_period 1s", "grace_period 2s", 1)); err != nil {
				t.Fatal(err)
			}
			wantToken(t, g.patiently(func() answer { return g.ask(client.assert(nil, nil)) }), "read")
			a.must(200, "PUT", path, settings+`,"audience":["https://api.example.com"]}`)
			wantToken(t, g.patiently(func() answer { return g.ask(client.assert(nil, nil)) }), "read")
			if n := downloads.Load(); n != 1 {
				t.Errorf("its keys were fetched %d times", n)
			}

			for i, gone := range []func(){
				func() { a.must(200, "PUT", path, settings+`,"disabled":true}`) },
				func() { a.must(204, "DELETE", path, "") },
			} {
				if n := caddyoauth.OpenKeys() - open; n != 1 {
					t.Errorf("round %d: %d sets of keys are open, want 1", i, n)
				}
				gone()
				wantE401(t, g.patiently(func() answer { return g.ask(client.assert(nil, nil)) }), "root")
				if n := caddyoauth.OpenKeys() - open; n != 0 {
					t.Errorf("round %d: %d sets of keys are open, want none", i, n)
				}
				g.patiently(func() answer { return a.send("PUT", path, settings+"}") })
				wantToken(t, g.patiently(func() answer { return g.ask(client.assert(nil, nil)) }), "read")
			}
			a.must(204, "DELETE", path, "")
		})
	}
}

// A platform that the configuration names vouches for managed clients, too, by the keys that it has there.
func TestManagedFederated(t *testing.T) {
	p := newPlatform(t, actions)
	// A client that can do nothing says how the platform's tokens are verified.
	verifier := strings.Replace(p.federated("verifier", "subject nobody"), "{\n", "{\ndisabled\n", 1)
	const job = "repo:acme/job:ref:refs/heads/main"
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			options := store + issuerOption + managedOptions + verifier
			config, address := withAdmin(t, caddyfileOf(options, managedSite))
			g := startCaddyfile(t, config)
			a := admin{g, address}
			ask := func(subject string, more ...string) answer {
				return g.patiently(func() answer { return g.ask(p.token(subject, nil), more...) })
			}
			wantE401(t, ask(mainOfIt), "root")
			settings := func(subject, more string) string {
				return fmt.Sprintf(`{"scopes":["read"],"default_scopes":["read"],"federated":[{"issuer":%q,"subject":[%q]}]%s}`, actions, subject, more)
			}
			added := a.must(201, "PUT", "/oauth/clients/root/ci", settings(mainOfIt, ""))
			if added.json(t)["secret"] != nil {
				t.Errorf("it has got a secret: %s", added.Body)
			}
			a.must(201, "PUT", "/oauth/clients/root/job", settings(job, ""))
			for id, subject := range map[string]string{"ci": mainOfIt, "job": job} {
				for _, more := range [][]string{nil, {"client_id", id}} {
					token := wantToken(t, ask(subject, more...), "read")
					g.wants("its token", token, 200)
					if got := g.Backend.last(t).Header.Get("X-OAuth-Client-Id"); got != id {
						t.Errorf("the client is %s, want %s", got, id)
					}
				}
			}
			wantE401(t, ask(mainOfIt, "client_id", "job"), "root")
			wantE401(t, ask("repo:evil/app:ref:refs/heads/main"), "root")
			wantE401(t, g.patiently(func() answer { return g.ask(newPlatform(t, actions).token(mainOfIt, nil)) }), "root")

			// It names two clients, so it proves neither.
			a.must(201, "PUT", "/oauth/clients/root/rival", settings("repo:acme/*:ref:refs/heads/main", ""))
			wantE401(t, ask(mainOfIt), "root")
			wantToken(t, ask(mainOfIt, "client_id", "ci"), "read")
			a.must(204, "DELETE", "/oauth/clients/root/rival", "")
			wantToken(t, ask(mainOfIt), "read")

			// A client that is disabled keeps its identity, so nobody else gets it.
			a.must(200, "PUT", "/oauth/clients/root/ci", settings(mainOfIt, `,"disabled":true`))
			wantE401(t, ask(mainOfIt), "root")
			a.must(200, "PUT", "/oauth/clients/root/ci", settings(mainOfIt, ""))
			wantToken(t, ask(mainOfIt), "read")

			// One of the configuration counts instead of a managed one.
			if err := g.loadCaddyfile(strings.Replace(config, "client verifier", "client ci {\nsecret_hash "+hashOf(testSecret)+"\nscopes read\n}\nclient verifier", 1)); err != nil {
				t.Fatal(err)
			}
			wantE401(t, ask(mainOfIt), "root")
			wantE401(t, ask(mainOfIt, "client_id", "ci"), "root")
			wantToken(t, ask(job), "read")
			if err := g.loadCaddyfile(config); err != nil {
				t.Fatal(err)
			}
			wantToken(t, ask(mainOfIt), "read")
			a.must(204, "DELETE", "/oauth/clients/root/ci", "")
			wantE401(t, ask(mainOfIt), "root")
		})
	}
}

// The keys of a platform that only managed clients name are there once for all of them, and go with the
// last.
func TestManagedPlatforms(t *testing.T) {
	config, address := withAdmin(t, caddyfileOf("store memory\n"+issuerOption+managedOptions, managedSite))
	a := admin{startCaddyfile(t, config), address}
	// No network has this name, so nothing is fetched.
	p := newPlatform(t, "https://platform.invalid")
	before := caddyoauth.OpenKeys()
	settings := func(more string) string {
		return fmt.Sprintf(`{"scopes":["read"],"federated":[{"issuer":%q,"subject":["job"]},{"issuer":%q,"subject":["other"]}]%s}`, p.issuer, p.issuer, more)
	}
	wants := func(when string, want int) {
		t.Helper()
		if got := caddyoauth.OpenKeys() - before; got != want {
			t.Errorf("%s: %d sets of keys are open, want %d", when, got, want)
		}
	}
	a.must(201, "PUT", "/oauth/clients/root/one", settings(""))
	a.must(201, "PUT", "/oauth/clients/root/two", settings(""))
	wants("with two clients", 1)
	wantE401(t, a.ask(p.token("job", nil)), "root")
	a.must(200, "PUT", "/oauth/clients/root/two", settings(`,"disabled":true`))
	wants("with one of them disabled", 1)
	if res := a.must(400, "PUT", "/oauth/clients/root/"+url.PathEscape(p.issuer), `{"scopes":["read"]}`); !strings.Contains(res.Body, "another ID") {
		t.Errorf("a client of the platform's name: %s", res.Body)
	}
	a.must(204, "DELETE", "/oauth/clients/root/one", "")
	wants("with the other gone", 0)
	a.must(201, "PUT", "/oauth/clients/root/"+url.PathEscape(p.issuer), `{"scopes":["read"]}`)
	if res := a.must(400, "PUT", "/oauth/clients/root/two", settings("")); !strings.Contains(res.Body, "there is a client with this ID") {
		t.Errorf("a platform of a client's name: %s", res.Body)
	}
	a.must(204, "DELETE", "/oauth/clients/root/"+url.PathEscape(p.issuer), "")
	a.must(200, "PUT", "/oauth/clients/root/two", settings(""))
	wants("with it enabled", 1)
	if err := a.loadCaddyfile(strings.Replace(config, "\nmanaged_clients\n", "\n", 1)); err != nil {
		t.Fatal(err)
	}
	wants("with no managed clients", 0)
}

// The metadata says what managed clients have that are there and enabled, and a certificate lets one in.
func TestMetadataOfManagedClients(t *testing.T) {
	ca := newAuthority(t)
	address := porttest.Address(t)
	g := startAsking(t, "store memory\n"+issuerOption+managedOptions, mutualSite, "mode verify_if_given\ntrust_pool file "+ca.file, "admin "+address)
	by := g.with(ca.forHost("ci.example.com"))
	a := admin{&gateway{t: t, Client: http.DefaultClient}, address}
	said := func() string {
		document := by.do(by.request("GET", "/.well-known/oauth-authorization-server/oauth2", "")).json(t)
		text, err := json.Marshal([]any{document["token_endpoint_auth_methods_supported"], document["token_endpoint_auth_signing_alg_values_supported"], document["tls_client_certificate_bound_access_tokens"]})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	const usual = `[["client_secret_basic","client_secret_post","private_key_jwt"],["ES256","Ed25519","EdDSA","PS256","RS256"],null]`
	wants := func(when, want string) {
		t.Helper()
		if got := said(); got != want {
			t.Errorf("%s: the metadata has %s, want %s", when, got, want)
		}
	}
	wants("without clients", usual)
	const settings = `{"scopes":["read"],"default_scopes":["read"],"auth":["tls_client_auth"],"tls_client_auth":{"kind":"san_dns","value":"ci.example.com"},"certificate_bound":true`
	a.must(201, "PUT", "/oauth/clients/root/ci", settings+"}")
	wants("with a certificate", `[["client_secret_basic","client_secret_post","private_key_jwt","tls_client_auth"],["ES256","Ed25519","EdDSA","PS256","RS256"],true]`)
	token := wantToken(t, fetchAs(by, "ci"), "read")
	if got := by.get("/api/x", token); got.StatusCode != 200 {
		t.Errorf("its token with its certificate: %d", got.StatusCode)
	}
	if got := g.with(ca.forHost("other.example.com")).get("/api/x", token); got.StatusCode != 401 {
		t.Errorf("its token with another certificate: %d", got.StatusCode)
	}
	wantE401(t, fetchAs(g.with(ca.forHost("other.example.com")), "ci"), "root")

	signer := newKeyClient(t, "signer")
	jwk, err := json.Marshal(jose.JSONWebKey{Key: signer.key.Public(), KeyID: "1"})
	if err != nil {
		t.Fatal(err)
	}
	a.must(201, "PUT", "/oauth/clients/root/signer", `{"scopes":["read"],"auth":["private_key_jwt"],"assertion_algorithms":["ES256","ES384"],"jwk":[`+string(jwk)+`]}`)
	wants("with another algorithm", `[["client_secret_basic","client_secret_post","private_key_jwt","tls_client_auth"],["ES256","ES384","Ed25519","EdDSA","PS256","RS256"],true]`)
	a.must(204, "DELETE", "/oauth/clients/root/signer", "")
	a.must(200, "PUT", "/oauth/clients/root/ci", settings+`,"disabled":true}`)
	wants("with the client disabled", usual)
	a.must(200, "PUT", "/oauth/clients/root/ci", settings+"}")
	a.must(204, "DELETE", "/oauth/clients/root/ci", "")
	wants("with the client gone", usual)
}

// A client whose keys are elsewhere moves with the others, and a gateway that hears of it fetches them.
func TestManagedKeysInAFleet(t *testing.T) {
	redis := redistest.Start(t)
	client := newKeyClient(t, "signer")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"keys":[`+client.jwk()+`]}`)
	}))
	t.Cleanup(server.Close)
	p := newPlatform(t, actions)
	options := at(redis.Addr) + issuerOption + managedOptions + strings.Replace(p.federated("verifier", "subject nobody"), "{\n", "{\ndisabled\n", 1)
	config, address := withAdmin(t, caddyfileOf(options, fleetSite))
	here := startCaddyfile(t, config)
	a := admin{here, address}
	there, _ := startGatewayProcess(t, options)
	here.linked()
	file := filepath.Join(t.TempDir(), "clients.json")
	replaceFile(t, file, fmt.Appendf(nil, `{"version":1,"clients":[
		{"realm":"root","id":"signer","settings":{"scopes":["read"],"default_scopes":["read"],"auth":["private_key_jwt"],"jwks_uri":%q,"private_hosts":["127.0.0.1"]}},
		{"realm":"root","id":"ci","settings":{"scopes":["read"],"default_scopes":["read"],"federated":[{"issuer":%q,"subject":[%q]}]}}]}`, server.URL, actions, mainOfIt))
	a.mustCLI("client", "import", file)
	for name, g := range map[string]*gateway{"here": here, "there": there} {
		waitUntil(t, name+" the client has its keys", func() bool { return g.ask(client.assert(nil, nil)).StatusCode == 200 })
		waitUntil(t, name+" the platform vouches for the client", func() bool { return g.ask(p.token(mainOfIt, nil)).StatusCode == 200 })
	}
	a.must(204, "DELETE", "/oauth/clients/root/ci", "")
	wantE401(t, here.patiently(func() answer { return here.ask(p.token(mainOfIt, nil)) }), "root")
	waitUntil(t, "the other gateway has heard that it is gone", func() bool { return there.ask(p.token(mainOfIt, nil)).StatusCode == 401 })
}
