package caddyoauth_test

import (
	"net/url"
	"strings"
	"testing"
)

// amScopes configure a client with scopes as AM has them. With descriptions, they are good in a realm that
// answers as AM alone.
const amScopes = "scopes \"read|Read things\" [1]=write|en|Write write|fr|Écrire [2]=list plain\ndefault_scopes \"[0]=read|Read things\" list\n"

// What stands before and behind a scope in AM is ignored, in clients of the configuration and in managed
// ones, and in what a realm lends to its clients.
func TestAMsDescriptionsOfScopes(t *testing.T) {
	client := "client c {\nsecret_hash " + hashOf(testSecret) + "\n" + amScopes + "}\n"
	heir := "client heir {\nsecret_hash " + hashOf(testSecret) + "\nscopes read list|List\n}\n"
	lists := "default_scopes list|en|List list|fr|Lister\n"
	config, address := withAdmin(t, caddyfileOf("store memory\n"+lists+"realm alpha {\nam_compat\nmanaged_clients\n"+client+heir+"}\n", "oauth_server"))
	a := admin{startCaddyfile(t, config), address}
	a.must(201, "PUT", "/oauth/clients/alpha/m", `{"scopes":["read|Read things","[1]=write|en|Write"],"default_scopes":["[0]=write|Write"]}`)
	secret := a.must(200, "POST", "/oauth/clients/alpha/m/secrets", "{}").json(t)["secret"].(string)

	for _, c := range []struct{ id, secret, asks, gets string }{
		{"c", testSecret, "", "read list"}, {"c", testSecret, "write", "write"}, {"c", testSecret, "read write list plain", "read write list plain"},
		{"c", testSecret, "read|Read", ""}, {"c", testSecret, "[1]=write", ""}, {"c", testSecret, "en", ""},
		{"heir", testSecret, "", "list"}, {"heir", testSecret, "read", "read"},
		{"m", secret, "", "write"}, {"m", secret, "read", "read"}, {"m", secret, "Write", ""},
	} {
		form := url.Values{"grant_type": {"client_credentials"}}
		if c.asks != "" {
			form.Set("scope", c.asks)
		}
		res := a.post(alphaBase+"/access_token", c.id, c.secret, form)
		if c.gets == "" {
			if res.StatusCode != 400 || !strings.Contains(res.Body, `"invalid_scope"`) {
				t.Errorf("%s asks for %q: %d %s", c.id, c.asks, res.StatusCode, res.Body)
			}
			continue
		}
		if got := res.json(t)["scope"]; got != c.gets {
			t.Errorf("%s asks for %q: %d %s, want %q", c.id, c.asks, res.StatusCode, res.Body, c.gets)
		}
	}
	if got := a.must(200, "GET", "/oauth/clients/alpha/m", "").Body; !strings.Contains(got, `"read|Read things"`) {
		t.Errorf("what the operator wrote is shown as %s", got)
	}

	// Elsewhere, it is a scope like any other.
	off := strings.NewReplacer("[0]=read|Read things", "read|Read", "[2]=list", "list", "Read things", "Read", "Écrire", "Ecrire").Replace(client)
	if err := a.load("store memory\nrealm alpha {\n"+off+"}\n", "oauth_server"); err != nil {
		t.Fatal(err)
	}
	form := url.Values{"grant_type": {"client_credentials"}, "scope": {"write"}}
	if res := a.post(alphaBase+"/access_token", "c", testSecret, form); res.StatusCode != 400 {
		t.Errorf("without am_compat, the description is left out: %d %s", res.StatusCode, res.Body)
	}
	form.Set("scope", "[1]=write|en|Write write|fr|Ecrire")
	if res := a.post(alphaBase+"/access_token", "c", testSecret, form); res.StatusCode != 200 {
		t.Errorf("without am_compat, a scope with a description: %d %s", res.StatusCode, res.Body)
	}
	for _, wrong := range []string{"realm alpha {\n" + client + "}\n", "realm alpha {\nam_compat\nclient c {\nsecret_hash " + hashOf(testSecret) + "\nscopes |nothing\n}\n}\n"} {
		if err := a.load("store memory\n"+wrong, "oauth_server"); err == nil || !strings.Contains(err.Error(), "is not a scope") {
			t.Errorf("%s is loaded: %v", wrong, err)
		}
	}
}

// With AM's special scopes a client may ask about all tokens of its realm, or of all realms that answer as
// AM, unless its own introspect says otherwise. Other realms' tokens die like its own.
func TestAMsScopesForIntrospection(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			const all, anyRealm = "am-introspect-all-tokens", "am-introspect-all-tokens-any-realm"
			client := func(id, more string) string {
				return "client " + id + " {\nsecret_hash " + hashOf(testSecret) + "\n" + more + "\n}\n"
			}
			clients := client("maker", "scopes a b") + client("all", "scopes a "+all+"|en|Introspect") + client("any", "scopes "+anyRealm) +
				client("both", "scopes [0]="+anyRealm+" "+all) + client("less", "scopes "+anyRealm+"\nintrospect own") +
				client("realm", "scopes "+anyRealm+" "+all+"\nintrospect realm") + client("near", "scopes x"+all+" "+all+"-")
			realm := func(name, more string) string { return "realm " + name + " {\n" + more + clients + "}\n" }
			g := startGateway(t, "limit failures off\nissuer "+testIssuer+"\n"+v.options(t)+realm("alpha", "am_compat\n")+realm("beta", "am_compat {\nsubject bare\n}\n")+realm("gamma", ""), "oauth_server")
			base := func(realm string) string { return "/oauth2/realms/root/realms/" + realm }
			tokens := make(map[string]string)
			for _, realm := range []string{"alpha", "beta", "gamma"} {
				tokens[realm] = g.fetchAt(base(realm), "maker", "a b")
			}
			sees := map[string]map[string]bool{
				"alpha": {"all": true, "any": true, "both": true, "realm": true},
				"beta":  {"any": true, "both": true},
			}
			check := func() {
				t.Helper()
				for of, token := range tokens {
					for _, caller := range []string{"all", "any", "both", "less", "realm", "near"} {
						want := ""
						if sees[of][caller] {
							want = `{"active":true,"scope":"a b","realm":"/` + of + `","client_id":"maker"`
							if of == "beta" && !strings.Contains(g.introspectAt(base("alpha"), caller, token).Body, `"sub":"maker","subname":"maker","iss":"`+testIssuer+`/realms/root/realms/beta",`) {
								t.Errorf("%s of alpha is not told of a token as beta does it", caller)
							}
						}
						got := g.introspectAt(base("alpha"), caller, token).Body
						if want == "" && got != `{"active":false}` || !strings.HasPrefix(got, want) {
							t.Errorf("%s of alpha asks about a token of %s: %s, want %s", caller, of, got, want)
						}
						if got := g.introspectAt(base("gamma"), caller, token).Body; caller != "realm" && got != `{"active":false}` {
							t.Errorf("%s of gamma asks about a token of %s: %s", caller, of, got)
						}
					}
				}
			}
			check()
			check() // from the cache, if there is one
			if res := g.introspectAt(base("alpha"), "any", "garbage").Body; res != `{"active":false}` {
				t.Errorf("garbage is %s", res)
			}
			if res := g.introspectAt(base("alpha"), "any", spoiled(tokens["beta"])).Body; res != `{"active":false}` {
				t.Errorf("a forged token is %s", res)
			}
			g.post(base("beta")+"/token/revoke", "maker", testSecret, url.Values{"token": {tokens["beta"]}})
			sees["beta"] = nil
			check()
		})
	}
}

// What a client may ask about by its scopes is shown with it.
func TestAMsScopesForIntrospectionAreShown(t *testing.T) {
	config, address := withAdmin(t, caddyfileOf("store memory\nmanaged_clients\nam_compat\nclient c {\nsecret_hash "+hashOf(testSecret)+"\nscopes am-introspect-all-tokens|All\n}\n"+testClients, "oauth_server"))
	a := admin{startCaddyfile(t, config), address}
	a.must(201, "PUT", "/oauth/clients/root/m", `{"scopes":["am-introspect-all-tokens-any-realm"]}`)
	a.must(201, "PUT", "/oauth/clients/root/less", `{"scopes":["am-introspect-all-tokens-any-realm"],"introspect":"own"}`)
	for id, want := range map[string]any{"c": "realm", "m": "any_realm", "less": nil, "reader": nil} {
		if got := a.must(200, "GET", "/oauth/clients/root/"+id, "").json(t)["introspects"]; got != want {
			t.Errorf("%s introspects %v, want %v", id, got, want)
		}
	}
}
