package caddyoauth_test

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyoauth/gateway/caddyoauth"
)

const testHash = "$sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0"

// Validating a configuration reports what is wrong, where, and what to do. Most mistakes in a
// Caddyfile are found when it is parsed, but those in what it refers to only here.
func TestConfigurationsThatAreRefused(t *testing.T) {
	folder := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return "{file." + path + "}"
	}
	t.Setenv("OAUTH_TEST_EMPTY", "")
	t.Setenv("OAUTH_TEST_SECRET", leakedSecret)
	t.Setenv("OAUTH_TEST_URL", "redis://:"+leakedSecret+"@redis.example.com:6379")
	clientWith := func(lines string) string {
		return "client a {\n" + lines + "\nscopes read\n}"
	}
	const goodClient = "client a {\nsecret_hash " + testHash + "\nscopes read\n}\n"

	for _, c := range []struct {
		name, oauth string
		want        []string
	}{
		{"a secret in a variable that is not set", clientWith("secret {env.OAUTH_TEST_UNSET}"),
			[]string{`realm "root"`, `client "a"`, "secret 1", "{env.OAUTH_TEST_UNSET}", "not set"}},
		{"a secret in an empty variable", clientWith("secret {env.OAUTH_TEST_EMPTY}"),
			[]string{`client "a"`, "secret 1", "{env.OAUTH_TEST_EMPTY}", "empty"}},
		{"a secret in a file that does not exist", clientWith("secret {file." + folder + "/absent}"),
			[]string{`client "a"`, "secret 1", folder + "/absent", "can't be read"}},
		{"a secret in an empty file", clientWith("secret " + file("empty", "")),
			[]string{`client "a"`, "secret 1", folder + "/empty", "empty"}},
		{"a secret in a file with only a line break", clientWith("secret " + file("line", "\n")),
			[]string{`client "a"`, "secret 1", folder + "/line", "empty"}},
		{"a secret that is not text", clientWith("secret " + file("binary", leakedSecret+"\xff")),
			[]string{`client "a"`, "secret 1", "not UTF-8"}},
		{"a secret that is too long", clientWith("secret " + file("long", strings.Repeat(leakedSecret, 200))),
			[]string{`client "a"`, "secret 1", "longer than 1024 bytes"}},
		{"the second secret of two", clientWith("secret_hash " + testHash + "\nsecret {env.OAUTH_TEST_UNSET}"),
			[]string{`client "a"`, "secret 2", "{env.OAUTH_TEST_UNSET}"}},
		{"a file with the secret in place of its hash", clientWith("secret_hash " + file("plain", leakedSecret)),
			[]string{`client "a"`, "secret 1", "unknown kind", "caddy oauth hash-secret"}},
		{"a hash in a variable that is not set", clientWith("secret_hash {env.OAUTH_TEST_UNSET}"),
			[]string{`client "a"`, "{env.OAUTH_TEST_UNSET}", "not set"}},
		{"a client without a secret", "client a {\nscopes read\n}",
			[]string{`realm "root"`, `client "a"`, "no secret", "caddy oauth generate-secret"}},
		{"a client without a block", "client a", []string{`client "a"`, "no secret"}},
		{"a client of a named realm, without a secret", "realm alpha {\nclient b {\nscopes read\n}\n}",
			[]string{`realm "alpha"`, `client "b"`, "no secret"}},
		{"a default scope of the realm that a client does not have", "default_scopes write\n" + goodClient,
			[]string{`client "a"`, `the realm's default scope "write"`, "give the client its own default_scopes"}},
		{"a default scope of root that another realm's client does not have", "default_scopes write\nrealm alpha {\n" + goodClient + "}",
			[]string{`realm "alpha"`, `client "a"`, `"write"`}},
		{"an http issuer", "issuer http://auth.example.com\n" + goodClient, []string{`realm "root"`, "http://auth.example.com", "https"}},
		{"an issuer without a scheme", "issuer auth.example.com\n" + goodClient, []string{`realm "root"`, "auth.example.com", "host"}},
		{"an issuer with a query", "issuer https://auth.example.com/?a=b\n" + goodClient, []string{`realm "root"`, "query"}},
		{"an issuer with a fragment", "issuer https://auth.example.com/#a\n" + goodClient, []string{`realm "root"`, "fragment"}},
		{"an issuer with credentials", "issuer https://me:" + leakedSecret + "@auth.example.com/\n" + goodClient, []string{`realm "root"`, "user"}},
		{"an issuer with credentials that can't be parsed", "issuer https://me:" + leakedSecret + "@auth.example.com:https\n" + goodClient, []string{`realm "root"`, "not a URL"}},
		{"a Redis URL in a variable", "store redis {env.OAUTH_TEST_URL}\n" + goodClient, []string{"host:port", "not a URL", "password"}},
		{"a password as a Redis address", "store redis {env.OAUTH_TEST_SECRET}\n" + goodClient, []string{"{env.OAUTH_TEST_SECRET}", "host:port"}},
		{"an issuer from a variable that is not set", "issuer {env.OAUTH_TEST_UNSET}\n" + goodClient, []string{`realm "root"`, "issuer"}},
		{"two realms with one issuer", "realm alpha {\nissuer https://auth.example.com\n" + goodClient + "}\nrealm beta {\nissuer https://auth.example.com\n" + goodClient + "}",
			[]string{`"alpha"`, `"beta"`, "https://auth.example.com", "each needs its own"}},
		{"two issuers that differ only in a trailing slash", "realm alpha {\nissuer https://auth.example.com\n" + goodClient + "}\nrealm beta {\nissuer https://auth.example.com/\n" + goodClient + "}",
			[]string{`"alpha"`, `"beta"`, "https://auth.example.com", "each needs its own"}},
		{"an issuer that another realm derives from root's", "issuer https://a.example/o\nrealm alpha {\n" + goodClient + "}\nrealm beta {\nissuer https://a.example/o/realms/root/realms/alpha\n" + goodClient + "}",
			[]string{`"alpha"`, `"beta"`, "each needs its own"}},
		{"a store path from a variable that is not set", "store bbolt {env.OAUTH_TEST_UNSET}/tokens.db\n" + goodClient,
			[]string{"store", "path", "OAUTH_TEST_UNSET"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config, err := adapt(t, formatted(caddyfileOf(c.oauth, "oauth_server")))
			if err != nil {
				t.Fatalf("adapting: %v", err)
			}
			refused(t, config, c.want)
		})
	}
}

// JSON reaches the app without a parser that would have found mistakes before.
func TestJSONThatIsRefused(t *testing.T) {
	const (
		client = `{"secrets":[{"hash":"` + testHash + `"}],"scopes":["read"]}`
		realms = `"realms":{"root":{"clients":{"a":` + client + `}}}`
	)
	clientWith := func(more string) string {
		return `{"realms":{"root":{"clients":{"a":{"scopes":["read"],` + more + `}}}}}`
	}
	realmWith := func(more string) string {
		return `{"realms":{"alpha":{"clients":{"a":` + client + `},` + more + `}}}`
	}
	handler := func(h string) string { return `{` + realms + `};` + h }
	const aSecret = `"secrets":[{"hash":"` + testHash + `"}]`

	for _, c := range []struct {
		name, oauth string
		want        []string
	}{
		{"an unknown field", `{"tokens":1}`, []string{"tokens"}},
		{"an unknown field of a client", clientWith(`"scope":"x"`), []string{"scope"}},
		{"a secret that retires, of a configured client", clientWith(`"secrets":[{"hash":"` + testHash + `","retire_unused":"24h"}]`), []string{`client "a"`, "retire_unused is for secrets of managed clients"}},
		{"a secret that is never valid", clientWith(`"secrets":[{"hash":"` + testHash + `","from":"2030-01-01T00:00:00Z","until":"2030-01-01T00:00:00Z"}]`), []string{`client "a"`, "secret 1: until"}},
		{"a secret whose end can't be written", clientWith(`"secrets":[{"hash":"` + testHash + `","until":"2099-01-01T00:00:00+24:00"}]`), []string{`client "a"`, "secret 1: until has an offset"}},
		{"an unknown store", `{"store":{"store":"redis"},` + realms + `}`, []string{"token store", "redis"}},
		{"a Redis URL", `{"store":{"store":"redis","addresses":["redis://:hunter2@h:6379"]},` + realms + `}`, []string{"host:port", "not a URL"}},
		{"a Redis prefix that spreads keys over a Cluster", `{"store":{"store":"redis","addresses":["127.0.0.1:1"],"cluster":true,"prefix":"a{}{b}"},` + realms + `}`, []string{"prefix", "{}", "Cluster"}},
		{"a password before a Redis address", `{"store":{"store":"redis","addresses":["hunter2@h:6379"]},` + realms + `}`, []string{"host:port", "not a URL"}},
		{"a store without a name", `{"store":{},` + realms + `}`, []string{"token store"}},
		{"a cache for a negative number of tokens", `{"cache":{"max_tokens":-1},` + realms + `}`, []string{"cache", "max_tokens", "turn it off"}},
		{"a cache that is too small", `{"cache":{"max_size":1048575},` + realms + `}`, []string{"cache", "max_size", "1MiB", "turn it off"}},
		{"a cache of negative size", `{"cache":{"max_size":-1},` + realms + `}`, []string{"cache", "max_size"}},
		{"a cache with a negative max_age", `{"cache":{"max_age":-1},` + realms + `}`, []string{"cache", "max_age"}},
		{"a realm name with a capital", `{"realms":{"Alpha":{}}}`, []string{`realm "Alpha"`, "lower-case"}},
		{"a realm name with an empty part", `{"realms":{"a//b":{}}}`, []string{`realm "a//b"`, "lower-case"}},
		{"a nested realm in capitals", `{"realms":{"a/B":{}}}`, []string{`realm "a/B"`, "lower-case"}},
		{"a nested realm that begins with root", `{"realms":{"root/a":{}}}`, []string{`realm "root/a"`, "'root'"}},
		{"a nested realm with a part that paths need", `{"realms":{"a/realms":{}}}`, []string{`realm "a/realms"`, "'realms'"}},
		{"a realm that is nested too deep", `{"realms":{"a/b/c/d/e/f/g/h/i":{}}}`, []string{`realm "a/b/c/d/e/f/g/h/i"`, "at most 8 parts"}},
		{"a realm without a name", `{"realms":{"":{}}}`, []string{`realm ""`, "lower-case"}},
		{"a lifetime with a fraction of a second", realmWith(`"token_lifetime":"1500ms"`), []string{`realm "alpha"`, "token_lifetime 1.5s", "whole seconds"}},
		{"a lifetime of two years", realmWith(`"token_lifetime":"17520h"`), []string{`realm "alpha"`, "a year"}},
		{"a negative lifetime", realmWith(`"token_lifetime":-1000000000`), []string{`realm "alpha"`, "token_lifetime"}},
		{"a client's lifetime with a fraction of a second", clientWith(aSecret + `,"token_lifetime":"1500ms"`), []string{`client "a"`, "token_lifetime 1.5s"}},
		{"an empty limit", realmWith(`"limits":{"tokens":{}}`), []string{`realm "alpha"`, "limit tokens", "between 1 and"}},
		{"a limit without a period", realmWith(`"limits":{"tokens":{"count":1}}`), []string{`realm "alpha"`, "limit tokens", "between 1s and"}},
		{"a client's limit that is negative", clientWith(aSecret + `,"limits":{"tokens":{"count":-1,"per":"1m"}}`), []string{`client "a"`, "limit tokens", "between 1 and"}},
		{"an unknown limit", realmWith(`"limits":{"token":{"count":1,"per":"1m"}}`), []string{`"token"`}},
		{"JWTs without an issuer", realmWith(`"token_format":"jwt"`), []string{`realm "alpha"`, "issuer"}},
		{"addresses that are as exact as nobody knows", realmWith(`"inventory_addresses":"some"`), []string{`realm "alpha"`, "inventory_addresses", "known: prefix, full, off"}},
		{"a token format that there isn't", realmWith(`"token_format":"saml"`), []string{`realm "alpha"`, "saml", "known: opaque"}},
		{"default scopes with a comma", realmWith(`"default_scopes":["read,write"]`), []string{`realm "alpha"`, "default_scopes", "spaces"}},
		{"an empty client ID", `{"realms":{"root":{"clients":{"":` + client + `}}}}`, []string{`client ""`, "client ID"}},
		{"a client ID with a line break", `{"realms":{"root":{"clients":{"a\nb":` + client + `}}}}`, []string{`client "a\nb"`, "client ID"}},
		{"a client ID that is too long", `{"realms":{"root":{"clients":{"` + strings.Repeat("a", 257) + `":` + client + `}}}}`, []string{"client ID", "256"}},
		{"a client that is null", `{"realms":{"root":{"clients":{"a":null}}}}`, []string{`client "a"`, "no secret"}},
		{"a literal secret", clientWith(`"secrets":[{"secret":"hunter2"}]`), []string{`client "a"`, "secret 1", "{env.NAME}", "hash-secret"}},
		{"a literal secret around a reference", clientWith(`"secrets":[{"secret":"hunter2{env.OAUTH_TEST_SECRET}"}]`), []string{`client "a"`, "secret 1", "{env.NAME}"}},
		{"a secret in place of its hash", clientWith(`"secrets":[{"hash":"hunter2"}]`), []string{`client "a"`, "secret 1", "unknown kind"}},
		{"a secret and a hash in one", clientWith(`"secrets":[{"secret":"{env.HOME}","hash":"` + testHash + `"}]`), []string{`client "a"`, "secret 1", "either"}},
		{"neither a secret nor a hash", clientWith(`"secrets":[{}]`), []string{`client "a"`, "secret 1", "either"}},
		{"a hash that would take too much memory", clientWith(`"secrets":[{"hash":"$argon2id$v=19$m=4294967295,t=1,p=1$GmhSbmKu6MsdY71bwGWBGw$Oe36vHuGNEvukTHYFyPwOiZF5q6MMG/L6taSzBcWCEw"}]`),
			[]string{`client "a"`, "secret 1", "too high", "at most"}},
		{"scopes with a space", clientWith(aSecret + `,"default_scopes":["a b"]`), []string{`client "a"`, "default_scopes"}},
		{"a default scope that the client does not have", clientWith(aSecret + `,"default_scopes":["write"]`), []string{`client "a"`, `"write"`, "not among its scopes"}},
		{"an audience with a quote", clientWith(aSecret + `,"audience":["a\"b"]`), []string{`client "a"`, "audience"}},
		{"an unknown grant type", clientWith(aSecret + `,"grant_types":["password"]`), []string{`client "a"`, "password", "client_credentials"}},
		{"an unknown authentication method", clientWith(aSecret + `,"auth":["none"]`), []string{`client "a"`, "none", "client_secret_basic"}},
		{"an unknown right to introspect", clientWith(aSecret + `,"introspect":"all"`), []string{`client "a"`, "all", "own, audience, realm"}},

		{"a literal upstream header", clientWith(aSecret + `,"upstream_headers":{"X-Api-Key":"hunter2"}`), []string{`client "a"`, "upstream_header X-Api-Key", "{env.NAME}"}},
		{"an upstream header that is a placeholder of the request", clientWith(aSecret + `,"upstream_headers":{"X-Api-Key":"{env.HOME}{http.request.header.Hunter2}"}`), []string{`client "a"`, "upstream_header X-Api-Key", "no other placeholder"}},
		{"an upstream header with a line break", clientWith(aSecret + `,"upstream_headers":{"X-Api-Key":"a\r\nX-OAuth-Client-Id: {env.HOME}"}`), []string{`client "a"`, "upstream_header X-Api-Key"}},
		{"an upstream header from a variable that is not set", clientWith(aSecret + `,"upstream_headers":{"X-Api-Key":"Bearer {env.OAUTH_TEST_UNSET}"}`), []string{`client "a"`, "upstream_header X-Api-Key", "{env.OAUTH_TEST_UNSET}", "not set"}},
		{"two upstream headers that differ in case", clientWith(aSecret + `,"upstream_headers":{"X-Api-Key":"{env.HOME}","x-api-key":"{env.HOME}"}`), []string{`client "a"`, "duplicate upstream_header x-api-key", "upper and lower case"}},
		{"an upstream header of the proxy", clientWith(aSecret + `,"upstream_headers":{"X-Forwarded-For":"{env.HOME}"}`), []string{`client "a"`, "upstream_header X-Forwarded-For"}},
		{"an upstream header that names a method", clientWith(aSecret + `,"upstream_headers":{"X-HTTP-Method":"{env.HOME}"}`), []string{`client "a"`, "upstream_header X-HTTP-Method"}},
		{"an upstream header that says who is calling", clientWith(aSecret + `,"upstream_headers":{"x-oauth-key":"{env.HOME}"}`), []string{`client "a"`, "upstream_header x-oauth-key", "who is calling"}},
		{"an upstream header below a route's prefix", clientWith(aSecret+`,"upstream_headers":{"X-Partner-Key":"{env.HOME}"}`) + `;{"handler":"oauth_protect","header_prefix":"x-partner-"}`, []string{"oauth_protect", "x-partner-", "X-Partner-Key"}},
		{"an upstream header Authorization where the token is kept", clientWith(aSecret+`,"upstream_headers":{"authorization":"{env.HOME}"}`) + `;{"handler":"oauth_protect","keep_token":true}`, []string{"oauth_protect", "keep_token", `client "a"`, `realm "root"`}},

		{"a server of an unknown realm", handler(`{"handler":"oauth_server","realms":["gamma"]}`), []string{"oauth_server", `'gamma'`, "known: root"}},
		{"settings of an am_compat that is disabled", `{"realms":{"a":{"am_compat":{"disabled":true,"jwt_hmac_secret":"a-secret-that-no-dump-should-have"}}}}`, []string{`realm "a"`, "am_compat", "disabled"}},
		{"a relative base path among others", handler(`{"handler":"oauth_server","other_base_paths":["x"]}`), []string{"oauth_server", "base_path", "begin with /"}},
		{"the default base path again", handler(`{"handler":"oauth_server","other_base_paths":["/oauth2/"]}`), []string{"oauth_server", "base_path", "there twice"}},
		{"a default realm that is not served", handler(`{"handler":"oauth_server","default_realm":"gamma"}`), []string{"oauth_server", "default_realm 'gamma'", "those are root"}},
		{"a relative base path", handler(`{"handler":"oauth_server","base_path":"x"}`), []string{"oauth_server", "base_path", "begin with /"}},
		{"an unknown protected realm", handler(`{"handler":"oauth_protect","realm":"gamma"}`), []string{"oauth_protect", `'gamma'`, "known: root"}},
		{"a protected realm that is not named but must be", `{"realms":{"alpha":{},"beta":{}}};{"handler":"oauth_protect"}`, []string{"oauth_protect", "name a realm", "known: alpha, beta"}},
		{"a route's scopes with a comma", handler(`{"handler":"oauth_protect","scopes":["a,b"]}`), []string{"oauth_protect", "scopes", "a,b"}},
		{"a route's audience with a space", handler(`{"handler":"oauth_protect","audience":["a b"]}`), []string{"oauth_protect", "audience", "a b"}},
		{"a route with a negative max_age", handler(`{"handler":"oauth_protect","max_age":-1}`), []string{"oauth_protect", "max_age"}},
		{"a header prefix with an underscore", handler(`{"handler":"oauth_protect","header_prefix":"X_Y-"}`), []string{"oauth_protect", "header_prefix", "X_Y-"}},
		{"a header prefix of standard headers", handler(`{"handler":"oauth_protect","header_prefix":"Content-"}`), []string{"oauth_protect", "header_prefix", "Content-Type"}},
		{"a literal secret before a reference in a header", handler(`{"handler":"oauth_protect","sources":[{"source":"jwt","issuer":"https://as.example.com","headers":{"Authorization":"hunter2 {env.OAUTH_TEST_UNSET}"}}]}`),
			[]string{"oauth_protect", "header Authorization", "{env.NAME}"}},
		{"two headers of an endpoint that differ in case", handler(`{"handler":"oauth_protect","sources":[{"source":"introspect","url":"https://as.example.com/introspect","headers":{"X-Tenant":"blue","x-tenant":"green"}}]}`),
			[]string{"oauth_protect", "duplicate header x-tenant", "upper and lower case"}},
		{"two headers of an issuer that differ in case", handler(`{"handler":"oauth_protect","sources":[{"source":"jwt","issuer":"https://as.example.com","headers":{"X-Tenant":"blue","x-tenant":"green"}}]}`),
			[]string{"oauth_protect", "duplicate header x-tenant", "upper and lower case"}},
		{"no oauth app", `;{"handler":"oauth_protect"}`, []string{"oauth_protect", "'oauth' block"}},
		{"no oauth app for the server", `;{"handler":"oauth_server"}`, []string{"oauth_server", "'oauth' block"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			oauth, handler, _ := strings.Cut(c.oauth, ";")
			apps := map[string]json.RawMessage{}
			if oauth != "" {
				apps["oauth"] = json.RawMessage(oauth)
			}
			if handler != "" {
				apps["http"] = json.RawMessage(`{"servers":{"srv0":{"listen":["127.0.0.1:0"],"automatic_https":{"disable":true},"routes":[{"handle":[` + handler + `]}]}}}`)
			}
			config, err := json.Marshal(map[string]any{"admin": map[string]any{"disabled": true}, "apps": apps})
			if err != nil {
				t.Fatalf("the test's JSON is malformed: %v", err)
			}
			refused(t, config, c.want)
		})
	}
}

// A realm that exists but is empty is a realm like any other.
func TestRealmsThatAreNull(t *testing.T) {
	for _, oauth := range []string{`{"realms":{"root":null}}`, `{"realms":{"alpha":null}}`, `{"realms":{"alpha":null,"root":null}}`, `{"realms":null}`} {
		if err := validate([]byte(`{"admin":{"disabled":true},"apps":{"oauth":` + oauth + `}}`)); err != nil {
			t.Errorf("%s: %v", oauth, err)
		}
	}
}

// refused checks that a configuration is refused with what the operator needs to know, and without
// the secret.
func refused(t *testing.T, config []byte, want []string) {
	t.Helper()
	err := validate(config)
	if err == nil {
		t.Fatal("the configuration was accepted")
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error does not contain %q:\n%v", w, err)
		}
	}
	if strings.Contains(err.Error(), leakedSecret) {
		t.Errorf("the error contains the secret: %v", err)
	}
}

// A configuration written by hand in JSON is the same as its Caddyfile.
func TestJSONAndCaddyfileAreEquivalent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.db")
	caddyfile := caddyfileOf(`
		store bbolt `+path+`
		cache {
			max_tokens 5
			max_size 2MiB
			max_age 10s
		}
		issuer https://auth.example.com
		client a {
			secret_hash `+testHash+`
			secret_hash `+testHash+` until 2020-01-01T00:00:00Z
			scopes read write
			audience api
			token_lifetime 10m
		}`, "oauth_server\noauth_protect {\nscopes read\nmax_age 1s\n}\nrespond {http.auth.user.scope}")
	byHand := `{
		"admin": {"disabled": true, "config": {"persist": false}},
		"apps": {
			"http": {
				"grace_period": "1s",
				"servers": {"srv0": {
					"listen": ["127.0.0.1:0"],
					"automatic_https": {"disable": true},
					"routes": [{"handle": [
						{"handler": "oauth_server"},
						{"handler": "oauth_protect", "scopes": ["read"], "max_age": "1s"},
						{"handler": "static_response", "body": "{http.auth.user.scope}"}
					]}]
				}}
			},
			"pki": {"certificate_authorities": {"local": {"install_trust": false}}},
			"oauth": {
				"store": {"store": "bbolt", "path": "` + path + `"},
				"cache": {"max_tokens": 5, "max_size": 2097152, "max_age": "10s"},
				"realms": {"root": {
					"issuer": "https://auth.example.com",
					"clients": {"a": {
						"secrets": [{"hash": "` + testHash + `"}, {"hash": "` + testHash + `", "until": "2020-01-01T00:00:00Z"}],
						"scopes": ["read", "write"],
						"audience": ["api"],
						"token_lifetime": "10m"
					}}
				}}
			}
		}
	}`
	config, err := adapt(t, formatted(caddyfile))
	if err != nil {
		t.Fatal(err)
	}
	app := func(config []byte) *caddyoauth.App {
		var c caddy.Config
		if err := json.Unmarshal(config, &c); err != nil {
			t.Fatal(err)
		}
		app := new(caddyoauth.App)
		if err := caddy.StrictUnmarshalJSON(c.AppsRaw["oauth"], app); err != nil {
			t.Fatal(err)
		}
		app.StoreRaw = normal(t, app.StoreRaw)
		return app
	}
	if fromCaddyfile, fromJSON := app(withoutPlaces(t, config)), app([]byte(byHand)); !reflect.DeepEqual(fromCaddyfile, fromJSON) {
		t.Errorf("the Caddyfile becomes %+v, the JSON %+v", fromCaddyfile, fromJSON)
	}

	// Loading one after the other is a reload that changes nothing.
	g := startGateway(t, "store memory", "respond ok")
	if err := g.loadJSON([]byte(byHand)); err != nil {
		t.Fatal(err)
	}
	token := g.token("a", "write", "read")
	for _, config := range [][]byte{[]byte(byHand), config} {
		if err := g.loadJSON(config); err != nil {
			t.Fatal(err)
		}
		if a := g.get("/x", token); a.StatusCode != 200 || a.Body != "write read" {
			t.Errorf("%d %q", a.StatusCode, a.Body)
		}
	}
}

// Every option of the Caddyfile is in the JSON, and the JSON reads back as it was written. Nothing
// is lost, renamed or changed on the way.
func TestJSONReadsBack(t *testing.T) {
	goldenEnvironment(t)
	for _, g := range goldens(t) {
		if g.fails() {
			continue
		}
		config, err := adapt(t, g.caddyfile)
		if err != nil {
			t.Fatalf("%s: %v", g.name, err)
		}
		var c caddy.Config
		if err := json.Unmarshal(config, &c); err != nil {
			t.Fatal(err)
		}
		var app caddyoauth.App
		if err := caddy.StrictUnmarshalJSON(c.AppsRaw["oauth"], &app); err != nil {
			t.Fatalf("%s: %v", g.name, err)
		}
		again, err := json.Marshal(app)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(normal(t, again), normal(t, c.AppsRaw["oauth"])) {
			t.Errorf("%s: %s reads back as %s", g.name, c.AppsRaw["oauth"], again)
		}
	}
}

// normal returns the JSON with its members sorted.
// withoutPlaces returns a configuration as by hand: without what the adapter says of where things
// stand.
func withoutPlaces(t testing.TB, config []byte) []byte {
	t.Helper()
	var v any
	if err := json.Unmarshal(config, &v); err != nil {
		t.Fatal(err)
	}
	var clean func(v any)
	clean = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if place, ok := v["at"].(string); ok && strings.HasPrefix(place, "Caddyfile:") {
				delete(v, "at")
			}
			for _, inner := range v {
				clean(inner)
			}
		case []any:
			for _, inner := range v {
				clean(inner)
			}
		}
	}
	clean(v)
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func normal(t testing.TB, b []byte) json.RawMessage {
	t.Helper()
	var v any
	decoder := json.NewDecoder(bytes.NewReader(b))
	decoder.UseNumber() // a JWK may have numbers that are too large for a float64
	if err := decoder.Decode(&v); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// packageFiles returns the files of this package by name, without its tests.
func packageFiles(t testing.TB) map[string]*ast.File {
	t.Helper()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]*ast.File)
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = file
	}
	return files
}

var snakeCase = regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*,omit(empty|zero)$`)

// Caddy's website generates its reference of the JSON from these comments and tags.
func TestConfigurationIsDocumented(t *testing.T) {
	fields := 0
	for name, file := range packageFiles(t) {
		for _, decl := range file.Decls {
			types, ok := decl.(*ast.GenDecl)
			if !ok || types.Tok != token.TYPE {
				continue
			}
			for _, spec := range types.Specs {
				spec := spec.(*ast.TypeSpec)
				if !spec.Name.IsExported() {
					continue
				}
				if doc := types.Doc.Text(); !strings.HasPrefix(doc, spec.Name.Name+" ") {
					t.Errorf("%s: the comment of %s must begin with its name", name, spec.Name.Name)
				}
				structure, ok := spec.Type.(*ast.StructType)
				if !ok {
					continue
				}
				for _, field := range structure.Fields.List {
					for _, ident := range field.Names {
						if !ident.IsExported() {
							continue
						}
						fields++
						where := name + ": " + spec.Name.Name + "." + ident.Name
						if field.Doc.Text() == "" {
							t.Errorf("%s has no comment above it", where)
						}
						tag := ""
						if field.Tag != nil {
							tag = reflect.StructTag(strings.Trim(field.Tag.Value, "`")).Get("json")
						}
						if !snakeCase.MatchString(tag) {
							t.Errorf(`%s has the json tag %q; it must be in snake_case, with omitempty or omitzero`, where, tag)
						}
					}
					if len(field.Names) == 0 {
						t.Errorf("%s: %s embeds a type: its fields would be configuration by accident", name, spec.Name.Name)
					}
				}
			}
		}
	}
	if fields < 30 {
		t.Errorf("only %d fields were checked, so the test no longer sees the package", fields)
	}
}

// modules are those that this package registers, by ID. TestModulesDeclareWhatTheyAre finds the ones
// that are missing here.
var modules = map[string]caddy.Module{
	"oauth":                       new(caddyoauth.App),
	"oauth.stores.bbolt":          new(caddyoauth.BboltStore),
	"oauth.stores.redis":          new(caddyoauth.RedisStore),
	"oauth.stores.memory":         new(caddyoauth.MemoryStore),
	"oauth.sources.local":         new(caddyoauth.LocalSource),
	"oauth.sources.introspect":    new(caddyoauth.IntrospectSource),
	"oauth.sources.jwt":           new(caddyoauth.JWTSource),
	"oauth.sources.spiffe":        new(caddyoauth.SPIFFESource),
	"admin.api.oauth":             nil, // its type is not exported
	"http.handlers.oauth_server":  new(caddyoauth.Server),
	"http.handlers.oauth_protect": new(caddyoauth.Protect),
	"http.handlers.oauth_guard":   new(caddyoauth.Guard),
	"http.matchers.oauth_scope":   new(caddyoauth.MatchScope),
}

// Each module's ID makes a module of its type.
func TestModules(t *testing.T) {
	for id, module := range modules {
		info, err := caddy.GetModule(id)
		if err != nil {
			t.Error(err)
			continue
		}
		if module == nil {
			continue
		}
		if got, want := reflect.TypeOf(info.New()), reflect.TypeOf(module); got != want {
			t.Errorf("%s makes a %v, want %v", id, got, want)
		}
	}
}

// A module declares the interfaces that it implements, or a misspelled method would never be called.
// It registers in the way that Caddy's documentation scanner can read.
func TestModulesDeclareWhatTheyAre(t *testing.T) {
	guardOf := map[string]string{
		"Provision": "caddy.Provisioner", "Validate": "caddy.Validator", "Cleanup": "caddy.CleanerUpper", "Start": "caddy.App",
		"ServeHTTP": "caddyhttp.MiddlewareHandler", "MatchWithError": "caddyhttp.RequestMatcherWithError",
		"UnmarshalCaddyfile": "caddyfile.Unmarshaler", "poolKey": "storeOpener", "Routes": "caddy.AdminRouter",
	}
	files := packageFiles(t)
	isModule, guards := make(map[string]bool), make(map[string]bool)
	var methods [][2]string // type, method
	for name, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Recv == nil {
					return true
				}
				receiver := n.Recv.List[0].Type
				if star, ok := receiver.(*ast.StarExpr); ok {
					receiver = star.X
				}
				if generic, ok := receiver.(*ast.IndexExpr); ok {
					receiver = generic.X
				}
				of := receiver.(*ast.Ident).Name
				methods = append(methods, [2]string{of, n.Name.Name})
				if n.Name.Name == "CaddyModule" {
					isModule[of] = true
					if _, known := modules[moduleID(n)]; !known {
						t.Errorf("%s: the ID of %s is not the literal ID of a known module: %q", name, of, moduleID(n))
					}
				}
			case *ast.ValueSpec: // _ I = (*T)(nil)
				if len(n.Names) == 1 && n.Names[0].Name == "_" && n.Type != nil && len(n.Values) == 1 {
					guards[source(t, n.Type)+" = "+source(t, n.Values[0])] = true
				}
			case *ast.CallExpr:
				if source(t, n.Fun) == "caddy.RegisterModule" {
					if _, ok := n.Args[0].(*ast.CompositeLit); !ok {
						t.Errorf("%s: RegisterModule must get a plain T{}, not %s", name, source(t, n.Args[0]))
					}
				}
			}
			return true
		})
	}
	checked := 0
	for _, m := range methods {
		guard, ok := guardOf[m[1]]
		if !isModule[m[0]] || !ok {
			continue
		}
		checked++
		if !guards[guard+" = (*"+m[0]+")(nil)"] {
			t.Errorf("%s has a method %s, but no interface guard _ %s = (*%s)(nil)", m[0], m[1], guard, m[0])
		}
	}
	if checked < 10 || len(isModule) != len(modules) {
		t.Errorf("only %d methods of %d modules were checked, so the test no longer sees the package", checked, len(isModule))
	}
}

// moduleID returns the literal ID in a CaddyModule method.
func moduleID(f *ast.FuncDecl) (id string) {
	ast.Inspect(f, func(n ast.Node) bool {
		if pair, ok := n.(*ast.KeyValueExpr); ok {
			if key, ok := pair.Key.(*ast.Ident); ok && key.Name == "ID" {
				if literal, ok := pair.Value.(*ast.BasicLit); ok {
					id = strings.Trim(literal.Value, `"`)
				}
			}
		}
		return true
	})
	return id
}

// source returns an expression as it is written.
func source(t testing.TB, e ast.Expr) string {
	t.Helper()
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return source(t, e.X) + "." + e.Sel.Name
	case *ast.StarExpr:
		return "*" + source(t, e.X)
	case *ast.ParenExpr:
		return "(" + source(t, e.X) + ")"
	case *ast.CallExpr:
		if len(e.Args) == 1 {
			return source(t, e.Fun) + "(" + source(t, e.Args[0]) + ")"
		}
	}
	return "?"
}
