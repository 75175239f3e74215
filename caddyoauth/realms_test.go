package caddyoauth_test

import (
	"fmt"
	"net/http"
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
		stores["redis"] = at(redistest.Start(t).Addr)
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
					a := g.inTime(func() answer {
						return g.post(path+"/introspect", "reader", testSecret, url.Values{"token": {token}})
					})
					if active := a.json(t)["active"]; active != (at == realm) {
						t.Errorf("a token of %s is active at %s: %v", realm, at, active)
					}
				}
			}
			if a := g.getInTime("/orders", tokens["retail/eu"]); a.Body != "backend" || g.Backend.last(t).Header.Get("X-OAuth-Realm") != "retail/eu" {
				t.Errorf("the route answers %d %s", a.StatusCode, a.Body)
			}
			for _, realm := range []string{"retail", "retail-eu", "root"} {
				if a := g.getInTime("/orders", tokens[realm]); a.StatusCode != 401 || !strings.Contains(a.Header.Get("WWW-Authenticate"), `realm="retail/eu"`) {
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
			if got := g.getInTime("/orders", tokens["retail/eu"]); got.StatusCode != 401 {
				t.Errorf("a token that has ended gets %d", got.StatusCode)
			}
			retail := func() answer {
				return g.post(realmPaths["retail"]+"/introspect", "reader", testSecret, url.Values{"token": {tokens["retail"]}})
			}
			if got := g.inTime(retail); got.json(t)["active"] != true {
				t.Errorf("with the tokens of retail/eu, those of retail have ended: %s", got.Body)
			}
		})
	}
}

// A handler may serve the same endpoints at several paths. A realm has one issuer all the same.
func TestSeveralBasePaths(t *testing.T) {
	const oauth = "store memory\nissuer https://auth.example.com/am/oauth2\ndpop\n" + testClients + "realm retail/eu {\n" + testClients + "}\n"
	g := startGateway(t, oauth, "oauth_server {\nbase_path /am/oauth2 /openam/oauth2/\n}\nreverse_proxy BACKEND")
	form := url.Values{"grant_type": {"client_credentials"}}
	p := newProver(t)
	for realm, path := range map[string]string{"root": "", "retail/eu": "/realms/root/realms/retail/realms/eu"} {
		issuer := "https://auth.example.com/am/oauth2" + path
		for _, base := range []string{"/am/oauth2", "/openam/oauth2"} {
			token := wantToken(t, g.post(base+path+"/access_token", "reader", testSecret, form), "read")
			for _, other := range []string{"/am/oauth2", "/openam/oauth2"} {
				if facts := g.post(other+path+"/introspect", "reader", testSecret, url.Values{"token": {token}}).json(t); facts["active"] != true || facts["iss"] != issuer {
					t.Errorf("%s: a token from %s is %v at %s", realm, base, facts, other)
				}
			}
			if document := g.get(base+path+"/.well-known/openid-configuration", "").json(t); document["issuer"] != issuer || document["token_endpoint"] != issuer+"/access_token" {
				t.Errorf("%s: the metadata below %s is %v", realm, base, document)
			}
			// A proof is made for the URL that the client calls.
			a := g.insisting(func(nonce string) *http.Request {
				r := g.proving("reader", p.proof("POST", "https://auth.example.com"+base+path+"/access_token", "", withNonce(nonce)))
				r.URL.Path = base + path + "/access_token"
				return r
			})
			if a.StatusCode != 200 || a.json(t)["token_type"] != "DPoP" {
				t.Errorf("%s: with a proof for the URL below %s: %d %s", realm, base, a.StatusCode, a.Body)
			}
		}
		if document := g.get(wellKnown+"/am/oauth2"+path, "").json(t); document["issuer"] != issuer {
			t.Errorf("%s: the metadata is %v", realm, document)
		}
	}
	for _, path := range []string{"/am/oauth2/retail/access_token", "/openam/oauth2/retail/access_token", "/OPENAM/oauth2/access_token", "/oauth2/access_token"} {
		wantNoEndpoint(t, g.post(path, "reader", testSecret, form), "https://auth.example.com/am/oauth2/access_token")
	}
	if n := g.Backend.count(); n != 0 {
		t.Errorf("%d requests reached the backend", n)
	}
	for _, into := range []string{"", "/token"} { // there, root's /revoke would be retail/eu's /token/revoke
		err := g.load(oauth, "oauth_server {\nbase_path /am /am/realms/root/realms/retail/realms/eu"+into+"\n}")
		if err == nil || !strings.Contains(err.Error(), "would both be at /am/realms/root/realms/retail/realms/eu") {
			t.Errorf("base paths of which one leads into another realm: %v", err)
		}
	}
}

// A site may stand for a realm: there, the base path is that realm's, and root's endpoints are at its full
// path. Whatever a document names leads to the realm whose document it is.
func TestDefaultRealm(t *testing.T) {
	const own = "issuer https://alpha.example.com/oauth2\n"
	for _, c := range []struct{ name, alpha, auth, site string }{
		{"its issuer is that of its host", own, "default_realm root", "default_realm alpha"},
		{"its issuer is root's", "", "", "default_realm alpha"},
		{"its issuer has the full path", "issuer https://alpha.example.com/oauth2/realms/root/realms/alpha\n", "", "default_realm alpha"},
		{"several base paths", own, "default_realm root\nbase_path /oauth2 /am", "default_realm alpha\nbase_path /oauth2 /openam"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := startGateway(t, "store memory\nissuer https://auth.example.com/oauth2\n"+testClients+"realm alpha {\n"+c.alpha+testClients+"}\nrealm alpha/one {\n"+testClients+"}\n",
				"@auth host auth.example.com\noauth_server @auth {\n"+c.auth+"\n}\n@alpha host alpha.example.com\noauth_server @alpha {\n"+c.site+"\n}\n")
			at := func(r *http.Request, host string) answer { r.Host = host; return g.do(r) }
			form := url.Values{"grant_type": {"client_credentials"}}
			issuers := map[string]string{"root": "https://auth.example.com/oauth2", "alpha": "https://auth.example.com/oauth2/realms/root/realms/alpha", "alpha/one": "https://auth.example.com/oauth2/realms/root/realms/alpha/realms/one"}
			if c.alpha != "" {
				issuers["alpha"] = strings.TrimSpace(strings.TrimPrefix(c.alpha, "issuer "))
			}
			for url, realm := range map[string]string{
				"auth.example.com/oauth2": "root", "auth.example.com/oauth2/realms/root": "root", "auth.example.com/oauth2/realms/root/realms/alpha": "alpha",
				"alpha.example.com/oauth2": "alpha", "alpha.example.com/oauth2/realms/root": "root", "alpha.example.com/oauth2/realms/root/realms/alpha": "alpha",
				"alpha.example.com/oauth2/realms/root/realms/alpha/realms/one": "alpha/one",
			} {
				host, path, _ := strings.Cut(url, "/")
				token := wantToken(t, at(g.posting("/"+path+"/access_token", "reader", testSecret, form), host), "read")
				if iss := at(g.posting("/"+path+"/introspect", "reader", testSecret, map[string][]string{"token": {token}}), host).json(t)["iss"]; iss != issuers[realm] {
					t.Errorf("at %s tokens are those of %v, want %s", url, iss, issuers[realm])
				}
				document := at(g.request("GET", "/"+path+"/.well-known/openid-configuration", ""), host).json(t)
				if document["issuer"] != issuers[realm] {
					t.Errorf("at %s the metadata is that of %v, want %s", url, document["issuer"], issuers[realm])
				}
				named := strings.TrimPrefix(fmt.Sprint(document["token_endpoint"]), "https://")
				host, path, _ = strings.Cut(named, "/")
				token = wantToken(t, at(g.posting("/"+path, "reader", testSecret, form), host), "read")
				path = strings.TrimSuffix(path, "access_token") + "introspect"
				if iss := at(g.posting("/"+path, "reader", testSecret, map[string][]string{"token": {token}}), host).json(t)["iss"]; iss != issuers[realm] {
					t.Errorf("the metadata at %s leads to %s, where tokens are those of %v", url, named, iss)
				}
			}
			// Where a strict client looks first (RFC 8414 section 3.1).
			for realm, issuer := range issuers {
				host, path, _ := strings.Cut(strings.TrimPrefix(issuer, "https://"), "/")
				if got := at(g.request("GET", wellKnown+"/"+path, ""), host).json(t)["issuer"]; got != issuer {
					t.Errorf("%s: its metadata is that of %v", realm, got)
				}
			}
		})
	}
}
