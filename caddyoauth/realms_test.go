package caddyoauth_test

import (
	"fmt"
	"net/url"
	"os/exec"
	"strings"
	"testing"

	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// realmPaths are realms of whose names some could be taken for others, and their paths.
var realmPaths = map[string]string{
	"root":            "/oauth2",
	"retail":          "/oauth2/realms/root/realms/retail",
	"retail/eu":       "/oauth2/realms/root/realms/retail/realms/eu",
	"retail-eu":       "/oauth2/realms/root/realms/retail-eu",
	"eu":              "/oauth2/realms/root/realms/eu",
	"eu/retail":       "/oauth2/realms/root/realms/eu/realms/retail",
	"a/b/c/d/e/f/g/h": "/oauth2/realms/root/realms/a/realms/b/realms/c/realms/d/realms/e/realms/f/realms/g/realms/h",
}

// nestedOptions configure realmPaths, with the same clients in each, and managed ones.
func nestedOptions() string {
	var options strings.Builder
	for name := range realmPaths {
		if name == "root" {
			fmt.Fprintf(&options, "issuer %s\nmanaged_clients\n%s\n", testIssuer, testClients)
			continue
		}
		fmt.Fprintf(&options, "realm %s {\nmanaged_clients\n%s\n}\n", name, testClients)
	}
	return options.String()
}

// A nested realm is one like any other: it has the path, the issuer and the tokens of its own name, and
// nothing of the realm around it.
func TestNestedRealms(t *testing.T) {
	stores := map[string]string{"memory": "store memory\n", "bbolt": "store bbolt " + t.TempDir() + "/tokens.db\n"}
	if _, err := exec.LookPath("redis-server"); err == nil {
		stores["redis"] = "store redis " + redistest.Start(t).Addr + "\n"
	}
	for store, line := range stores {
		t.Run(store, func(t *testing.T) {
			config, address := withAdmin(t, caddyfileOf(line+nestedOptions(), "oauth_server\noauth_protect retail/eu\nreverse_proxy BACKEND"))
			g := startCaddyfile(t, config)
			tokens := make(map[string]string)
			for realm, path := range realmPaths {
				a := g.patiently(func() answer {
					return g.post(path+"/access_token", "reader", testSecret, url.Values{"grant_type": {"client_credentials"}, "realm": {"/" + realm}})
				})
				tokens[realm] = wantToken(t, a, "read")
				issuer := testIssuer + strings.TrimPrefix(path, "/oauth2")
				for _, at := range []string{path + "/.well-known/openid-configuration", wellKnown + path} {
					if document := g.get(at, "").json(t); document["issuer"] != issuer || document["token_endpoint"] != issuer+"/access_token" {
						t.Errorf("%s: the metadata at %s is %v", realm, at, document)
					}
				}
			}
			for at, path := range realmPaths {
				for realm, token := range tokens {
					a := g.post(path+"/introspect", "reader", testSecret, url.Values{"token": {token}})
					if active := a.json(t)["active"]; active != (at == realm) {
						t.Errorf("a token of %s is active at %s: %v", realm, at, active)
					}
				}
			}
			if a := g.get("/orders", tokens["retail/eu"]); a.Body != "backend" || g.Backend.last(t).Header.Get("X-OAuth-Realm") != "retail/eu" {
				t.Errorf("the route answers %d %s", a.StatusCode, a.Body)
			}
			for _, realm := range []string{"retail", "retail-eu", "root"} {
				if a := g.get("/orders", tokens[realm]); a.StatusCode != 401 || !strings.Contains(a.Header.Get("WWW-Authenticate"), `realm="retail/eu"`) {
					t.Errorf("with a token of %s the route answers %d, %s", realm, a.StatusCode, a.Header)
				}
			}

			// The clients of one are not those of another.
			a := admin{g, address}
			for realm := range realmPaths {
				a.must(201, "PUT", "/oauth/clients/"+strings.ReplaceAll(realm, "/", "~")+"/batch", `{"scopes":["`+strings.ReplaceAll(realm, "/", ".")+`"]}`)
			}
			for realm := range realmPaths {
				shown := a.must(200, "GET", "/oauth/clients/"+strings.ReplaceAll(realm, "/", "%7E")+"/batch", "").json(t)
				if scope := fmt.Sprint(shown["settings"].(map[string]any)["scopes"]); shown["realm"] != realm || scope != "["+strings.ReplaceAll(realm, "/", ".")+"]" {
					t.Errorf("the client of %s is %v", realm, shown)
				}
			}
			a.must(201, "PUT", "/oauth/clients/retail/eu%2Fbatch", `{"scopes":["read"]}`)
			// Caddy takes an encoded slash for one when it looks for who may call a path.
			for _, path := range []string{"retail%2Feu/batch", "retail%2feu/batch", "retail~eu%2Fbatch/batch", "retail~eu~/batch", "~retail/batch"} {
				a.must(404, "GET", "/oauth/clients/"+path, "")
			}
			if res := a.send("GET", "/oauth/clients/retail%2Feu/batch", ""); !strings.Contains(res.Body, "retail~eu") {
				t.Errorf("the answer doesn't say how the path is spelt: %s", res.Body)
			}
			for _, args := range [][]string{
				{"client", "show", "batch", "--realm", "retail/eu"}, {"client", "list", "--realm", "retail/eu"}, {"client", "remove", "batch", "--realm", "retail/eu"},
			} {
				if stdout, stderr, err := caddyCLI(t, "", append(args, "--address", address)...); err != nil || !strings.Contains(stdout, "retail/eu") {
					t.Errorf("%v: %v, %s %s", args, err, stdout, stderr)
				}
			}
			a.must(404, "GET", "/oauth/clients/retail~eu/batch", "")
			a.must(200, "GET", "/oauth/clients/retail/eu%2Fbatch", "")
			a.must(200, "GET", "/oauth/clients/retail-eu/batch", "")
			if body := a.must(200, "POST", "/oauth/tokens/revoke", `{"realm":"retail/eu","all":true}`).Body; !strings.Contains(body, `"realm":"retail/eu"`) {
				t.Errorf("the end of all tokens is answered with %s", body)
			}
			if got := g.get("/orders", tokens["retail/eu"]); got.StatusCode != 401 {
				t.Errorf("a token that has ended gets %d", got.StatusCode)
			}
			if got := g.post(realmPaths["retail"]+"/introspect", "reader", testSecret, url.Values{"token": {tokens["retail"]}}); got.json(t)["active"] != true {
				t.Errorf("with the tokens of retail/eu, those of retail have ended: %s", got.Body)
			}
		})
	}
}
