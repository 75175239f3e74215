package caddyoauth_test

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// askers configure clients that differ in whose tokens they may ask about, among them one whose
// tokens name two resource servers.
func askers() string {
	client := func(id, more string) string {
		return "client " + id + " {\nsecret_hash " + hashOf(testSecret) + "\n" + more + "\n}\n"
	}
	return client("maker", "scopes a b c\naudience resource https://api.example.com") +
		client("stranger", "scopes a") +
		client("resource", "scopes a c\nintrospect audience") +
		client("orders", "scopes b c\nintrospect audience https://other.example https://api.example.com") +
		client("elsewhere", "scopes a b c\nintrospect audience https://api.example.com/ https://API.example.com api.example.com") +
		client("admin", "scopes a\ngrant_types none\nintrospect realm")
}

// fetchAt asks a realm for a token, at the endpoint under base.
func (g *gateway) fetchAt(base, id, scope string) string {
	g.t.Helper()
	a := g.patiently(func() answer {
		return g.post(base+"/access_token", id, testSecret, url.Values{"grant_type": {"client_credentials"}, "scope": {scope}})
	})
	return wantToken(g.t, a, scope)
}

// introspectAt asks a realm about a token.
func (g *gateway) introspectAt(base, id, token string) answer {
	g.t.Helper()
	return g.post(base+"/introspect", id, testSecret, url.Values{"token": {token}})
}

const alphaBase = "/oauth2/realms/root/realms/alpha"

// What a caller may see of a token depends on its introspect setting. Any other token is
// inactive to it.
func TestIntrospectionRights(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			g := startGateway(t, v.options(t)+askers()+"realm alpha {\n"+askers()+"}\n", "oauth_server")
			tokens := map[string]string{
				"maker":          g.fetchAt("/oauth2", "maker", "a b c"),
				"stranger":       g.fetchAt("/oauth2", "stranger", "a"),
				"resource":       g.fetchAt("/oauth2", "resource", "a c"),
				"alpha maker":    g.fetchAt(alphaBase, "maker", "a b c"),
				"alpha stranger": g.fetchAt(alphaBase, "stranger", "a"),
			}
			// The scope shown, by token and caller. Callers that are not listed see nothing.
			sees := map[string]map[string]string{
				"maker":    {"maker": "a b c", "resource": "a c", "orders": "b c", "admin": "a b c"},
				"stranger": {"stranger": "a", "admin": "a"},
				"resource": {"resource": "a c", "admin": "a c"},
			}
			for range 2 { // the second time from the cache, if there is one
				for of, token := range tokens {
					for _, caller := range []string{"maker", "stranger", "resource", "orders", "elsewhere", "admin"} {
						a := g.introspectAt("/oauth2", caller, token)
						wantHeaders(t, a)
						scope, may := sees[of][caller]
						if !may {
							if a.StatusCode != 200 || a.Body != `{"active":false}` {
								t.Errorf("%s asks about the token of %s: %d %s", caller, of, a.StatusCode, a.Body)
							}
							continue
						}
						object := a.json(t)
						if object["active"] != true || object["scope"] != scope || object["client_id"] != of {
							t.Errorf("%s asks about the token of %s: %s, want scope %q", caller, of, a.Body, scope)
						}
					}
					// Realm alpha knows its own tokens only.
					a := g.introspectAt(alphaBase, "admin", token)
					if active := a.json(t)["active"]; active != strings.HasPrefix(of, "alpha") {
						t.Errorf("alpha's admin asks about the token of %s: %s", of, a.Body)
					}
				}
			}
		})
	}
}

// Only the log and the metrics distinguish a valid token that the caller may not ask about from
// one that is not valid.
func TestIntrospectionThatIsNotPermitted(t *testing.T) {
	g, logged := startLogged(t, "store memory\n"+askers()+"realm alpha {\n"+askers()+"}\n", "metrics /metrics\noauth_server")
	mine, other := g.fetchAt("/oauth2", "stranger", "a"), g.fetchAt("/oauth2", "maker", "a")
	revoked := g.fetchAt("/oauth2", "maker", "a")
	g.revoke("maker", revoked)
	count := func(result string) float64 {
		series := `caddy_oauth_requests_total{endpoint="introspect",realm="root",result="` + result + `"}`
		if !strings.Contains(g.get("/metrics", "").Body, "\n"+series+" ") {
			return 0
		}
		return g.metricOf(series)
	}
	foreign := "coa_" + strings.Repeat("A", 60)
	alien := g.fetchAt(alphaBase, "stranger", "a")
	causes := map[string]string{other: "not_permitted", revoked: "revoked", "garbage": "no_source", foreign: "forged", alien: "other_realm"}
	inactive := func(token string) float64 {
		return metric(t, "caddy_oauth_introspections_inactive_total", "realm", "root", "cause", causes[token])
	}
	for range 2 { // the second time from the cache
		for token, result := range map[string]string{mine: "ok", other: "not_permitted", revoked: "inactive", "garbage": "inactive", foreign: "inactive", alien: "inactive"} {
			whyBefore := inactive(token)
			before, lines := count(result), strings.Count(logged(), "token_introspected")
			a := g.introspectAt("/oauth2", "stranger", token)
			if (a.Body == `{"active":false}`) != (result != "ok") {
				t.Errorf("%s: %s", result, a.Body)
			}
			if n := count(result) - before; n != 1 {
				t.Errorf("%s was counted %v times", result, n)
			}
			want := `"event":"token_introspected","realm":"root","client_id":"stranger","result":"` + result + `"`
			if result == "inactive" {
				want += `,"cause":"` + causes[token] + `"`
			}
			if n := inactive(token) - whyBefore; causes[token] != "" && n != 1 {
				t.Errorf("%s was counted %v times", causes[token], n)
			}
			if result != "inactive" {
				want += `,"token_id":"` + introspect.IDOf(token).String() + `"`
			}
			line := ""
			for one := range strings.Lines(logged()) { // Caddy writes others, at any time
				if strings.Contains(one, "token_introspected") {
					line = strings.TrimSpace(one)
				}
			}
			want += `,"remote_ip":"127.0.0.1","auth_method":"client_secret_basic","secret":1`
			if !strings.HasSuffix(line, want+"}") || strings.Count(logged(), "token_introspected") != lines+1 {
				t.Errorf("the log ends with %s, want %s", line, want)
			}
		}
	}
}

// An answer about an active token has exactly these members, of these types.
func TestIntrospectionMembers(t *testing.T) {
	const issuer = "https://auth.example.com/oauth2"
	for _, withIssuer := range []bool{true, false} {
		options := "store memory\ntoken_lifetime 10m\n" + askers()
		if withIssuer {
			options += "issuer " + issuer + "\n"
		}
		g := startGateway(t, options, "oauth_server")
		before := time.Now().Unix()
		token := g.fetchAt("/oauth2", "maker", "a b")
		after := time.Now().Unix()

		object := g.introspectAt("/oauth2", "maker", token).json(t)
		for member, want := range map[string]any{"active": true, "scope": "a b", "client_id": "maker", "sub": "maker", "token_type": "Bearer"} {
			if object[member] != want {
				t.Errorf("%s is %v, want %v", member, object[member], want)
			}
		}
		issued, _ := object["iat"].(float64)
		if int64(issued) < before || int64(issued) > after || issued != float64(int64(issued)) {
			t.Errorf("iat is %v, want an integer from %d to %d", object["iat"], before, after)
		}
		if expiry, _ := object["exp"].(float64); expiry != issued+600 {
			t.Errorf("exp is %v, want 600 after iat %v", object["exp"], issued)
		}
		if aud := fmt.Sprint(object["aud"]); aud != "[resource https://api.example.com]" {
			t.Errorf("aud is %s", aud)
		}
		jti, _ := object["jti"].(string)
		if jti == "" || strings.Contains(token, jti) || jti == introspect.IDOf(token).String() {
			t.Errorf("jti is %q, want a value that is neither part of the token nor its ID", jti)
		}
		if again := g.introspectAt("/oauth2", "maker", token).json(t)["jti"]; again != jti {
			t.Errorf("jti changed from %q to %q", jti, again)
		}
		if other := g.introspectAt("/oauth2", "maker", g.fetchAt("/oauth2", "maker", "a")).json(t)["jti"]; other == jti {
			t.Error("two tokens have the same jti")
		}
		members := []string{"active", "aud", "client_id", "exp", "iat", "jti", "scope", "sub", "token_type"}
		if withIssuer {
			members = append(members, "iss")
			if object["iss"] != issuer {
				t.Errorf("iss is %v", object["iss"])
			}
		}
		for member := range object {
			if !slices.Contains(members, member) {
				t.Errorf("unexpected member %s", member)
			}
		}
		// Without an audience, there is no member.
		if aud, there := g.introspectAt("/oauth2", "resource", g.fetchAt("/oauth2", "resource", "a")).json(t)["aud"]; there {
			t.Errorf("a token without an audience has aud %v", aud)
		}
	}
}

// All tokens that are not valid look the same, byte for byte, and so do the answers to all
// revocations that find nothing.
func TestDeadTokensLookAlike(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			short := "client short {\nsecret_hash " + hashOf(testSecret) + "\nscopes a\ntoken_lifetime 1s\n}\n"
			leaving := "client leaving {\nsecret_hash " + hashOf(testSecret) + "\nscopes a\n"
			rest := v.options(t) + askers() + short + "realm alpha {\n" + askers() + "}\n"
			g := startGateway(t, rest+leaving+"}\n", "oauth_server")

			revoked := g.fetchAt("/oauth2", "stranger", "a")
			ofLeaving := g.fetchAt("/oauth2", "leaving", "a")
			ofAlpha := g.fetchAt(alphaBase, "stranger", "a")
			mine := g.fetchAt("/oauth2", "stranger", "a")
			// Each of them is cached when it dies.
			isActive := func(token string) bool { return g.introspectAt("/oauth2", "admin", token).json(t)["active"] == true }
			for _, token := range []string{revoked, ofLeaving} {
				if !isActive(token) {
					t.Fatal("a token is inactive before it dies")
				}
			}
			var expired string
			var dead time.Time
			waitUntil(t, "a token is used before it dies", func() bool {
				expired = g.fetchAt("/oauth2", "short", "a")
				dead = time.Now().Add(time.Second)
				return isActive(expired)
			})
			if a := g.revoke("stranger", revoked); a.Body != "{}" {
				t.Fatalf("revoking: %d %s", a.StatusCode, a.Body)
			}
			if err := g.load(rest+leaving+"disabled\n}\n", "oauth_server"); err != nil {
				t.Fatal(err)
			}
			for time.Now().Before(dead) {
				time.Sleep(10 * time.Millisecond)
			}

			tokens := map[string]string{
				"unknown": "nobody-issued-this", "expired": expired, "revoked": revoked, "of a disabled client": ofLeaving, "of another realm": ofAlpha,
				"cut short": mine[:len(mine)-1], "followed by a letter": mine + "A", "in another case": strings.ToUpper(mine),
				"without its prefix": mine[4:], "only a prefix": "coa_", "a space": " ", "of two lines": "a\nb", "markup": "<script>alert(1)</script>",
				"a JWT": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.", "10 KiB long": strings.Repeat("x", 10<<10), "surrounded by spaces": " " + mine + " ",
			}
			const inactive, nothing = `{"active":false}`, `{}`
			wantInactive := rawAnswer(t, g, "/oauth2/introspect", basic("stranger", testSecret), "token=x")
			wantNothing := rawAnswer(t, g, "/oauth2/token/revoke", basic("stranger", testSecret), "token=x")
			if !strings.HasPrefix(wantInactive, "HTTP/1.1 200 ") || !strings.HasSuffix(wantInactive, "\r\n\r\n"+inactive) ||
				!strings.HasPrefix(wantNothing, "HTTP/1.1 200 ") || !strings.HasSuffix(wantNothing, "\r\n\r\n"+nothing) {
				t.Fatalf("the answers to garbage are\n%s\n%s", wantInactive, wantNothing)
			}
			for name, token := range tokens {
				form := url.Values{"token": {token}}.Encode()
				for range 2 {
					if got := rawAnswer(t, g, "/oauth2/introspect", basic("stranger", testSecret), form); got != wantInactive {
						t.Errorf("introspecting a token that is %s gets\n%s\nwant\n%s", name, got, wantInactive)
					}
					if got := rawAnswer(t, g, "/oauth2/introspect", basic("admin", testSecret), form); got != wantInactive {
						t.Errorf("introspecting a token that is %s as one who may see all gets\n%s\nwant\n%s", name, got, wantInactive)
					}
					if name == "of a disabled client" {
						continue // its record exists, and belongs to another client: see TestRevokingAnotherClientsToken
					}
					if got := rawAnswer(t, g, "/oauth2/token/revoke", basic("stranger", testSecret), form); got != wantNothing {
						t.Errorf("revoking a token that is %s gets\n%s\nwant\n%s", name, got, wantNothing)
					}
				}
			}
			// A token that the caller may not see looks the same.
			form := url.Values{"token": {mine}}.Encode()
			if got := rawAnswer(t, g, "/oauth2/introspect", basic("maker", testSecret), form); got != wantInactive {
				t.Errorf("introspecting another client's token gets\n%s\nwant\n%s", got, wantInactive)
			}
			// None of this harmed the good ones.
			if a := g.introspectAt("/oauth2", "stranger", mine); a.json(t)["active"] != true {
				t.Errorf("afterwards, a good token is %s", a.Body)
			}
			if a := g.introspectAt(alphaBase, "stranger", ofAlpha); a.json(t)["active"] != true {
				t.Errorf("root's endpoint revoked a token of alpha: %s", a.Body)
			}
		})
	}
}

// Introspection and revocation, too, need credentials, POST and a token, and ignore what they
// don't know. This holds for every spelling of the endpoints.
func TestIntrospectionAndRevocationRequests(t *testing.T) {
	g := startGateway(t, "store memory\n"+endpointOptions(), "oauth_server")
	as := call{}.as("reader", testSecret)
	form := func(body string) call {
		c := as
		c.body = body
		return c
	}
	cases := []endpointCase{
		{name: "introspection without credentials", kinds: "I", status: 401, call: call{}},
		{name: "introspection with a wrong secret", kinds: "I", status: 401, call: call{}.as("reader", "wrong-secret")},
		{name: "introspection of no token with a wrong secret", kinds: "I", status: 401, call: call{body: "foo=bar"}.as("reader", "wrong-secret")},
		{name: "introspection with a bearer token as credential", kinds: "I", status: 401, call: call{headers: []string{"Authorization", "Bearer canary"}}},
		{name: "introspection by GET", kinds: "I", status: 405, code: "invalid_request", call: call{method: "GET", query: "FORM", empty: true}.as("reader", testSecret)},
		{name: "introspection with the token in the query", kinds: "I", status: 400, code: "invalid_request", call: call{query: "FORM", empty: true}.as("reader", testSecret)},
		{name: "introspection of no token", kinds: "I", status: 400, code: "invalid_request", call: form("token_type_hint=access_token")},
		{name: "introspection with a right hint", kinds: "I", call: form("FORM&token_type_hint=access_token")},
		{name: "introspection with a wrong hint", kinds: "I", call: form("FORM&token_type_hint=refresh_token")},
		{name: "introspection with an unknown hint", kinds: "I", call: form("FORM&token_type_hint=canary")},
		{name: "revocation without credentials", kinds: "R", status: 401, call: call{}},
		{name: "revocation with a wrong secret", kinds: "R", status: 401, call: call{}.as("reader", "wrong-secret")},
		{name: "revocation of no token with a wrong secret", kinds: "R", status: 401, call: call{body: "foo=bar"}.as("reader", "wrong-secret")},
		{name: "revocation with an unknown hint", kinds: "R", call: form("FORM&token_type_hint=canary")},
		{name: "revocation of no token", kinds: "R", status: 400, code: "invalid_request", call: form("token_type_hint=access_token")},
		{name: "revocation with a callback, which is ignored", kinds: "R", call: form("FORM&callback=canary")},
		{name: "revocation with a callback in the query, which is ignored", kinds: "R", call: call{query: "callback=canary"}.as("reader", testSecret)},
	}
	runCases(t, g, cases)
}

// A token is found whatever the hint says.
func TestHintsAreOnlyHints(t *testing.T) {
	g := startGateway(t, "store memory\n"+endpointOptions(), "oauth_server")
	for _, hint := range []string{"", "access_token", "refresh_token", "id_token", "unknown"} {
		for _, e := range endpoints() {
			if e.kind == 'T' {
				continue
			}
			base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(e.path, "/introspect"), "/revoke"), "/token")
			token := g.fetchAt(base, "reader", "read")
			form := url.Values{"token": {token}, "token_type_hint": {hint}}
			a := g.post(e.path, "reader", testSecret, form)
			switch e.kind {
			case 'I':
				if a.json(t)["active"] != true {
					t.Errorf("%s with the hint %q: %s", e.path, hint, a.Body)
				}
			case 'R':
				if a.StatusCode != 200 || a.Body != "{}" {
					t.Errorf("%s with the hint %q: %d %s", e.path, hint, a.StatusCode, a.Body)
				}
				if after := g.introspectAt(base, "reader", token); after.Body != `{"active":false}` {
					t.Errorf("%s with the hint %q revoked nothing: %s", e.path, hint, after.Body)
				}
			}
		}
	}
}

// A revocation is in force before it is answered, even if the token is cached.
func TestRevocationIsInForceAtOnce(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			g := startGateway(t, v.options(t)+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND")
			for range 60 {
				token := g.token("reader")
				for range 2 {
					if a := g.get("/x", token); a.StatusCode != 200 {
						t.Fatalf("before the revocation: %d", a.StatusCode)
					}
				}
				if a := g.revoke("reader", token); a.StatusCode != 200 || a.Body != "{}" {
					t.Fatalf("the revocation: %d %q", a.StatusCode, a.Body)
				} else {
					wantHeaders(t, a)
				}
				if a := g.get("/x", token); a.StatusCode != 401 {
					t.Fatalf("after the revocation: %d", a.StatusCode)
				}
				if a := g.introspect("reader", token); a.Body != `{"active":false}` {
					t.Fatalf("introspection after the revocation: %s", a.Body)
				}
			}
		})
	}
}

// A client that revokes another's token is told so, but not whose it is, and the token still
// works.
func TestRevokingAnotherClientsToken(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			g := startGateway(t, v.options(t)+endpointOptions(), "oauth_server\noauth_protect root\nreverse_proxy BACKEND")
			token := g.token("writer", "read")
			for _, id := range []string{"reader", "inspector"} {
				for range 2 {
					a := g.revoke(id, token)
					wantE(t, a, 400, "invalid_grant", token, introspect.IDOf(token).String(), "writer", id)
					if a := g.get("/x", token); a.StatusCode != 200 {
						t.Errorf("after %s tried to revoke it, the token gets %d", id, a.StatusCode)
					}
				}
			}
			// A client of the same name in another realm is another client, and that realm does not
			// know the token.
			if a := g.post(alphaBase+"/token/revoke", "writer", testSecret, url.Values{"token": {token}}); a.StatusCode != 200 || a.Body != "{}" {
				t.Errorf("at another realm: %d %s", a.StatusCode, a.Body)
			}
			if a := g.introspect("writer", token); a.json(t)["active"] != true {
				t.Errorf("another realm revoked the token: %s", a.Body)
			}
		})
	}
}

// A caller that keeps asking about tokens that are not valid is told to slow down. Nobody else
// is.
func TestScanningIsLimited(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server")
	token := g.token("reader")
	begin := time.Now()
	var asked, limited atomic.Int64
	var scanners sync.WaitGroup
	for n := range 4 {
		scanners.Go(func() {
			for i := 0; i < 2000 && limited.Load() == 0; i++ {
				a := g.introspect("reader", fmt.Sprintf("guess-%d-%d", n, i))
				asked.Add(1)
				if a.StatusCode == 429 {
					wantE(t, a, 429, "slow_down", "guess")
					limited.Add(1)
				}
			}
		})
	}
	scanners.Wait()
	if limited.Load() == 0 {
		// A slow machine may never reach the limit, which grows by 100 a second.
		if n, allowed := asked.Load(), 1000+100*int64(time.Since(begin).Seconds()+1); n > allowed {
			t.Errorf("%d introspections of garbage were all answered, want at most %d", n, allowed)
		}
		return
	}
	if a := g.introspect("writer", token); a.StatusCode != 200 {
		t.Errorf("another caller gets %d", a.StatusCode)
	}
	// The limited caller still gets tokens.
	g.token("reader")
}
