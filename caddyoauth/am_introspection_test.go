package caddyoauth_test

import (
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// variable are the parts of answers that differ from token to token, and from second to second.
var variable = regexp.MustCompile(`"(exp|iat|jti|authGrantId|auditTrackingId|expires_in|access_token|epoch|generation)":("[^"]{22,}"|\d+)`)

// constant returns an answer with an ellipsis in the place of what varies.
func constant(body string) string { return variable.ReplaceAllString(body, `"$1":…`) }

// An answer about a token has AM's members in AM's order, and ours behind them. Switching that on or off
// changes what is said of tokens, and none of the tokens.
func TestAMsMembersOfIntrospection(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			const issuer = "issuer " + testIssuer + "\n"
			client := "client maker {\nsecret_hash " + hashOf(testSecret) + "\nscopes a b\naudience resource\n}\n" +
				"client resource {\nsecret_hash " + hashOf(testSecret) + "\nscopes a\nintrospect audience\n}\n"
			options := v.options(t)
			configure := func(alpha, root string) string {
				return options + issuer + root + client + "realm alpha {\n" + alpha + client + "}\n"
			}
			const site = "oauth_server\noauth_protect {\nsource local alpha\n}\nreverse_proxy BACKEND"
			g := startGateway(t, configure("am_compat\n", "am_compat {\nsubject bare\n}\n"), site)
			alpha, root := g.fetchAt(alphaBase, "maker", "a b"), g.fetchAt("/oauth2", "maker", "b")
			cts := ""
			if v.format == "jwt" {
				cts = `,"cts":"OAUTH2_STATELESS_GRANT"`
			}
			am := func(realm, issuer, scope, sub string) string {
				return `{"active":true,"scope":"` + scope + `","realm":"` + realm + `","client_id":"maker","user_id":"maker","username":"maker","token_type":"Bearer","exp":…,` +
					`"sub":"` + sub + `","subname":"maker","iss":"` + issuer + `","auth_level":0,"authGrantId":…,"auditTrackingId":…,"expires_in":…` + cts + `,"iat":…,"aud":"resource","jti":…}`
			}
			ours := func(issuer, scope string) string {
				return `{"active":true,"scope":"` + scope + `","client_id":"maker","token_type":"Bearer","exp":…,"iat":…,"sub":"maker","aud":"resource","iss":"` + issuer + `","jti":…}`
			}
			alphaIssuer := testIssuer + "/realms/root/realms/alpha"
			check := func(what, base, caller, token, want string) {
				t.Helper()
				for range 2 { // the second time from the cache, if there is one
					a := g.introspectAt(base, caller, token)
					wantHeaders(t, a)
					if got := constant(a.Body); got != want {
						t.Errorf("%s: %s, want %s", what, got, want)
					}
				}
			}
			check("of a realm", alphaBase, "maker", alpha, am("/alpha", alphaIssuer, "a b", "(age!maker)"))
			check("of a realm, to another client", alphaBase, "resource", alpha, am("/alpha", alphaIssuer, "a", "(age!maker)"))
			check("of root", "/oauth2", "maker", root, am("/", testIssuer, "b", "maker"))
			check("a token of root in alpha", alphaBase, "maker", root, `{"active":false}`)
			check("no token", alphaBase, "maker", "garbage", `{"active":false}`)
			first := g.introspectAt(alphaBase, "maker", alpha).json(t)
			if left := first["expires_in"].(float64); left > 3600 || left < 3000 {
				t.Errorf("%v seconds are left of an hour", left)
			}
			if first["authGrantId"] == first["auditTrackingId"] || first["jti"] == first["authGrantId"] {
				t.Errorf("two IDs are the same: %v", first)
			}
			if a := g.get("/", alpha); a.StatusCode != 200 || g.Backend.last(t).Header.Get("X-Oauth-Subject") != "maker" {
				t.Errorf("the backend gets %d %q as the subject", a.StatusCode, g.Backend.last(t).Header.Get("X-Oauth-Subject"))
			}

			if v.store == "memory" && v.cache == "cache off" {
				return // enough of reloads
			}
			for _, step := range []struct{ alpha, root, want, wantRoot string }{
				{"", "", ours(alphaIssuer, "a b"), ours(testIssuer, "b")},
				{"am_compat off\n", "am_compat\n", ours(alphaIssuer, "a b"), am("/", testIssuer, "b", "(age!maker)")},
				{"", "am_compat\n", am("/alpha", alphaIssuer, "a b", "(age!maker)"), am("/", testIssuer, "b", "(age!maker)")},
			} {
				if err := g.load(configure(step.alpha, step.root), site); err != nil {
					t.Fatal(err)
				}
				check("of a realm after a reload", alphaBase, "maker", alpha, step.want)
				check("of root after a reload", "/oauth2", "maker", root, step.wantRoot)
			}
			again := g.introspectAt(alphaBase, "maker", alpha).json(t)
			for _, id := range []string{"jti", "authGrantId", "auditTrackingId", "exp", "iat"} {
				if again[id] != first[id] {
					t.Errorf("%s was %v, and is %v", id, first[id], again[id])
				}
			}
			if a := g.post(alphaBase+"/token/revoke", "maker", testSecret, url.Values{"token": {alpha}}); a.StatusCode != 200 {
				t.Fatalf("revoking: %d %s", a.StatusCode, a.Body)
			}
			check("a revoked token", alphaBase, "maker", alpha, `{"active":false}`)
		})
	}
}

// The signed answer and the plain one say the same of a bound token.
func TestAMsMembersOfSignedIntrospection(t *testing.T) {
	g := startGateway(t, "store memory\nissuer "+testIssuer+"\nsigning\nam_compat\n"+testClients, "oauth_server")
	_, set := g.keySet("/oauth2/jwks")
	token := g.token("reader")
	plain := g.introspect("reader", token)
	_, said, _ := strings.Cut(signedClaims(t, g.introspectSigned("/oauth2", "reader", token), set), `"token_introspection":`)
	if want := constant(plain.Body) + "}"; constant(said) != want || !strings.HasPrefix(want, `{"active":true,"scope":"read","realm":"/",`) {
		t.Errorf("the signed answer says %s, want %s", said, want)
	}
	_, said, _ = strings.Cut(signedClaims(t, g.introspectSigned("/oauth2", "reader", "garbage"), set), `"token_introspection":`)
	if said != `{"active":false}}` {
		t.Errorf("of garbage the signed answer says %s", said)
	}
}

// A gateway that asks a realm with am_compat about tokens learns what it needs from the answer.
func TestAMsMembersAreReadByASource(t *testing.T) {
	address := porttest.Address(t)
	config := strings.Replace(caddyfileOf("store bbolt "+filepath.Join(t.TempDir(), "tokens.db")+"\nissuer "+testIssuer+"\nam_compat\n"+testClients,
		"oauth_server\noauth_protect {\nsource introspect http://"+address+"/oauth2/introspect {\nissuer "+testIssuer+"\nclient_id reader\nclient_secret {env.AM_READER}\n}\nscopes read\n}\nreverse_proxy BACKEND"),
		":0 {", strings.TrimPrefix(address, "127.0.0.1")+" {", 1)
	t.Setenv("AM_READER", testSecret)
	g := startCaddyfile(t, config)
	token := g.token("reader")
	g.wants("a token that a source asks about", token, 200)
	got := g.Backend.last(t).Header
	for name, want := range map[string]string{"X-Oauth-Client-Id": "reader", "X-Oauth-Scope": "read", "X-Oauth-Subject": "(age!reader)"} {
		if got.Get(name) != want {
			t.Errorf("%s is %q, want %q", name, got.Get(name), want)
		}
	}
	g.revoke("reader", token)
}

// A token in the query is taken where that is allowed, by GET and by POST, and its caller authenticates as
// ever.
func TestAMsIntrospectionByQuery(t *testing.T) {
	for _, allowed := range []bool{false, true} {
		setting, allow := "", "POST"
		if allowed {
			setting, allow = " {\ntokens_in_query\n}", "GET, POST"
		}
		g, logged := startLogged(t, "store memory\nlimit failures off\nintrospect_scope read\nam_compat"+setting+"\n"+testClients+"realm off {\nam_compat off\n"+testClients+"}\n", "oauth_server\nreverse_proxy BACKEND")
		token, other := g.token("reader"), g.token("reader")
		const missing = `{"error_description":"Missing parameter: token","error":"invalid_request"}`
		const failed = `{"error_description":"Client authentication failed","error":"invalid_client"}`
		const repeated = `{"error_description":"token is repeated","error":"invalid_request"}`
		const noForm = `{"error_description":"Invalid Content Type","error":"invalid_request"}`
		method := func(found string) string {
			return `{"error_description":"Required Method: POST found: ` + found + `","error":"method_not_allowed"}`
		}
		type answered struct {
			status int
			body   string
		}
		active, form := answered{200, ""}, []string{"Content-Type", "application/x-www-form-urlencoded"}
		by := []string{"Authorization", basic("reader", testSecret)}
		for _, c := range []struct {
			method, path, body string
			headers            []string
			off, on            answered
		}{
			{"GET", "/oauth2/introspect?token=" + token, "", by, answered{405, method("GET")}, active},
			{"GET", "/oauth2/introspect/?token=" + token + "&token_type_hint=x", "", by, answered{405, method("GET")}, active},
			{"GET", "/oauth2/introspect?token=" + token + "&token=" + token, "", by, answered{405, method("GET")}, active},
			{"GET", "/oauth2/introspect?token=" + token, "", []string{"Authorization", "Bearer " + other}, answered{405, method("GET")}, active},
			{"GET", "/oauth2/introspect?token=x", "", by, answered{405, method("GET")}, answered{200, `{"active":false}`}},
			{"GET", "/oauth2/introspect", "", by, answered{405, method("GET")}, answered{400, missing}},
			{"GET", "/oauth2/introspect?token=" + token + "&token=x", "", by, answered{405, method("GET")}, answered{400, repeated}},
			{"GET", "/oauth2/introspect?token=" + token, "", nil, answered{405, method("GET")}, answered{400, failed}},
			{"GET", "/oauth2/introspect?token=" + token + "&client_id=reader&client_secret=" + testSecret, "", nil, answered{405, method("GET")}, answered{400, failed}},
			{"GET", "/oauth2/introspect?token=" + token, "", []string{"Authorization", basic("reader", "wrong")}, answered{405, method("GET")}, answered{401, failed}},
			{"GET", "/oauth2/introspect?token=" + token, "token=x", by, answered{405, method("GET")}, answered{400, noForm}},
			{"GET", "/oauth2/introspect?token=" + token, "token=x", append(form, by...), answered{405, method("GET")}, answered{400, repeated}},
			{"PUT", "/oauth2/introspect?token=" + token, "", by, answered{405, method("PUT")}, answered{405, method("PUT")}},
			{"HEAD", "/oauth2/introspect?token=" + token, "", by, answered{405, ""}, answered{405, ""}},
			{"POST", "/oauth2/introspect?token=" + token, "", append(form, by...), answered{400, missing}, active},
			{"POST", "/oauth2/introspect?token=" + token, "token=" + token, append(form, by...), active, active},
			{"POST", "/oauth2/introspect?token=" + token, "token=" + other, append(form, by...), active, answered{400, repeated}},
			{"POST", "/oauth2/introspect?token=" + token, "", by, answered{400, noForm}, answered{400, noForm}},
			{"POST", "/oauth2/token/revoke?token=" + token, "", append(form, by...), answered{400, missing}, answered{400, missing}},
			{"GET", "/oauth2/token/revoke?token=" + token, "", by, answered{405, method("GET")}, answered{405, method("GET")}},
		} {
			a := g.do(g.request(c.method, c.path, c.body, c.headers...))
			want := c.off
			if allowed {
				want = c.on
			}
			if a.StatusCode != want.status || want != active && a.Body != want.body || want == active && !strings.HasPrefix(a.Body, `{"active":true,"scope":"read","realm":"/",`) {
				t.Errorf("allowed %t: %s %s %q %q: %d %s, want %d %s", allowed, c.method, c.path, c.body, c.headers, a.StatusCode, a.Body, want.status, want.body)
			}
			if got := a.Header.Get("Allow"); want.status == 405 && got != allow && !(got == "POST" && strings.Contains(c.path, "revoke")) {
				t.Errorf("allowed %t: %s %s: Allow is %q", allowed, c.method, c.path, got)
			}
		}
		if a := g.do(g.request("GET", "/oauth2/realms/root/realms/off/introspect?token="+token, "", by...)); a.StatusCode != 405 || a.Header.Get("Allow") != "POST" {
			t.Errorf("without am_compat: %d %s", a.StatusCode, a.Body)
		}
		if a := g.introspect("reader", token); a.json(t)["active"] != true || g.Backend.count() > 0 {
			t.Errorf("the token was revoked by its query, or a request has reached the backend: %s", a.Body)
		}
		if strings.Contains(logged(), token) {
			t.Error("the log has a token")
		}
	}
}
