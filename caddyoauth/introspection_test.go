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

// askers are clients that differ in whose tokens they may ask about, and one whose
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
	a := g.post(base+"/access_token", id, testSecret, url.Values{"grant_type": {"client_credentials"}, "scope": {scope}})
	return wantToken(g.t, a, scope)
}

// introspectAt asks a realm about a token.
func (g *gateway) introspectAt(base, id, token string) answer {
	g.t.Helper()
	return g.post(base+"/introspect", id, testSecret, url.Values{"token": {token}})
}

const alphaBase = "/oauth2/realms/root/realms/alpha"

// I-05: who may see which token, and with which scopes. What one may not see is inactive.
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
			// By token, then by caller, the scope shown; who is missing sees nothing.
			sees := map[string]map[string]string{
				"maker":    {"maker": "a b c", "resource": "a c", "orders": "b c", "admin": "a b c"},
				"stranger": {"stranger": "a", "admin": "a"},
				"resource": {"resource": "a c", "admin": "a c"},
			}
			for range 2 { // the second time from the cache, where there is one
				for of, token := range tokens {
					for _, caller := range []string{"maker", "stranger", "resource", "orders", "elsewhere", "admin"} {
						a := g.introspectAt("/oauth2", caller, token)
						wantHeaders(t, a)
						scope, may := sees[of][caller]
						if !may {
							if a.StatusCode != 200 || a.Body != `{"active":false}` {
								t.Errorf("I-05 %s asks about the token of %s: %d %s", caller, of, a.StatusCode, a.Body)
							}
							continue
						}
						object := a.json(t)
						if object["active"] != true || object["scope"] != scope || object["client_id"] != of {
							t.Errorf("I-05 %s asks about the token of %s: %s, want scope %q", caller, of, a.Body, scope)
						}
					}
					// Realm alpha knows its own and nobody else's.
					a := g.introspectAt(alphaBase, "admin", token)
					if active := a.json(t)["active"]; active != strings.HasPrefix(of, "alpha") {
						t.Errorf("I-05 alpha's admin asks about the token of %s: %s", of, a.Body)
					}
				}
			}
		})
	}
}

// A token that is good, and that the caller may not ask about, is told from one that is not good
// in the log and in the metrics alone.
func TestIntrospectionThatIsNotPermitted(t *testing.T) {
	g, logged := startLogged(t, "store memory\n"+askers(), "metrics /metrics\noauth_server")
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
	for range 2 { // the second time from the cache
		for token, result := range map[string]string{mine: "ok", other: "not_permitted", revoked: "inactive", "garbage": "inactive"} {
			before, lines := count(result), strings.Count(logged(), "token_introspected")
			a := g.introspectAt("/oauth2", "stranger", token)
			if (a.Body == `{"active":false}`) != (result != "ok") {
				t.Errorf("%s: %s", result, a.Body)
			}
			if n := count(result) - before; n != 1 {
				t.Errorf("%s is counted %v times", result, n)
			}
			want := `"event":"token_introspected","realm":"root","client_id":"stranger","result":"` + result + `"`
			if result != "inactive" {
				want += `,"token_id":"` + introspect.IDOf(token).String() + `"`
			}
			all := strings.Split(logged(), "\n")
			line := all[len(all)-2]
			if !strings.HasSuffix(line, want+"}") || strings.Count(logged(), "token_introspected") != lines+1 {
				t.Errorf("the log ends with %s, want %s", line, want)
			}
		}
	}
}

// I-07: the members of an answer, and their types.
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
				t.Errorf("I-07 %s is %v, want %v", member, object[member], want)
			}
		}
		issued, _ := object["iat"].(float64)
		if int64(issued) < before || int64(issued) > after || issued != float64(int64(issued)) {
			t.Errorf("I-07 iat is %v, want an integer from %d to %d", object["iat"], before, after)
		}
		if expiry, _ := object["exp"].(float64); expiry != issued+600 {
			t.Errorf("I-07 exp is %v, want 600 after iat %v", object["exp"], issued)
		}
		if aud := fmt.Sprint(object["aud"]); aud != "[resource https://api.example.com]" {
			t.Errorf("I-07 aud is %s", aud)
		}
		jti, _ := object["jti"].(string)
		if jti == "" || strings.Contains(token, jti) || jti == introspect.IDOf(token).String() {
			t.Errorf("I-07 jti is %q, want something that is neither the token nor its ID", jti)
		}
		if again := g.introspectAt("/oauth2", "maker", token).json(t)["jti"]; again != jti {
			t.Errorf("I-07 jti changed from %q to %q", jti, again)
		}
		if other := g.introspectAt("/oauth2", "maker", g.fetchAt("/oauth2", "maker", "a")).json(t)["jti"]; other == jti {
			t.Error("I-07 two tokens have one jti")
		}
		members := []string{"active", "aud", "client_id", "exp", "iat", "jti", "scope", "sub", "token_type"}
		if withIssuer {
			members = append(members, "iss")
			if object["iss"] != issuer {
				t.Errorf("I-07 iss is %v", object["iss"])
			}
		}
		for member := range object {
			if !slices.Contains(members, member) {
				t.Errorf("I-07 there is a member %s", member)
			}
		}
		// One audience is a string (RFC 7519 section 4.1.3), none is no member.
		if aud, there := g.introspectAt("/oauth2", "resource", g.fetchAt("/oauth2", "resource", "a")).json(t)["aud"]; there {
			t.Errorf("I-07 a token without audience says %v", aud)
		}
	}
}

// I-03, R-02: all tokens that are no good look alike, to the byte, and so do all answers
// to a revocation that finds nothing.
func TestDeadTokensLookAlike(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			short := "client short {\nsecret_hash " + hashOf(testSecret) + "\nscopes a\ntoken_lifetime 1s\n}\n"
			leaving := "client leaving {\nsecret_hash " + hashOf(testSecret) + "\nscopes a\n"
			rest := v.options(t) + askers() + short + "realm alpha {\n" + askers() + "}\n"
			g := startGateway(t, rest+leaving+"}\n", "oauth_server")

			expired := g.fetchAt("/oauth2", "short", "a")
			dead := time.Now().Add(time.Second)
			revoked := g.fetchAt("/oauth2", "stranger", "a")
			ofLeaving := g.fetchAt("/oauth2", "leaving", "a")
			ofAlpha := g.fetchAt(alphaBase, "stranger", "a")
			mine := g.fetchAt("/oauth2", "stranger", "a")
			// Every one of them is in the cache when it dies.
			for _, token := range []string{expired, revoked, ofLeaving} {
				if a := g.introspectAt("/oauth2", "admin", token); a.json(t)["active"] != true {
					t.Fatalf("a good token is %s", a.Body)
				}
			}
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
				"cut short": mine[:len(mine)-1], "with something after it": mine + "A", "in another case": strings.ToUpper(mine),
				"without its prefix": strings.TrimPrefix(mine, "coa_"), "a prefix alone": "coa_", "a space": " ", "a line": "a\nb", "markup": "<script>alert(1)</script>",
				"a JWT": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.", "10 KiB": strings.Repeat("x", 10<<10), "surrounded by spaces": " " + mine + " ",
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
						t.Errorf("I-03 a token that is %s gets\n%s\nand not\n%s", name, got, wantInactive)
					}
					if got := rawAnswer(t, g, "/oauth2/introspect", basic("admin", testSecret), form); got != wantInactive {
						t.Errorf("I-03 a token that is %s gets, from one who may see all,\n%s\nand not\n%s", name, got, wantInactive)
					}
					if name == "of a disabled client" {
						continue // its record is there, and it is another client's: R-03
					}
					if got := rawAnswer(t, g, "/oauth2/token/revoke", basic("stranger", testSecret), form); got != wantNothing {
						t.Errorf("R-02 revoking a token that is %s gets\n%s\nand not\n%s", name, got, wantNothing)
					}
				}
			}
			// Not permitted looks the same as dead.
			form := url.Values{"token": {mine}}.Encode()
			if got := rawAnswer(t, g, "/oauth2/introspect", basic("maker", testSecret), form); got != wantInactive {
				t.Errorf("I-03 a token of somebody else gets\n%s\nand not\n%s", got, wantInactive)
			}
			// And none of this harmed the good one.
			if a := g.introspectAt("/oauth2", "stranger", mine); a.json(t)["active"] != true {
				t.Errorf("a good token is %s", a.Body)
			}
			if a := g.introspectAt(alphaBase, "stranger", ofAlpha); a.json(t)["active"] != true {
				t.Errorf("R-02 root's endpoint revoked a token of alpha: %s", a.Body)
			}
		})
	}
}

// I-01, I-02, I-04, I-09, R-04, R-05, R-09, R-10 for single requests, on every spelling.
func TestIntrospectionAndRevocationRequests(t *testing.T) {
	g := startGateway(t, "store memory\n"+endpointOptions(), "oauth_server")
	as := call{}.as("reader", testSecret)
	form := func(body string) call {
		c := as
		c.body = body
		return c
	}
	cases := []endpointCase{
		{id: "I-01", name: "nobody asks", kinds: "I", status: 401, call: call{}},
		{id: "I-01", name: "a wrong secret", kinds: "I", status: 401, call: call{}.as("reader", "wrong-secret")},
		{id: "I-01", name: "no token and a wrong secret", kinds: "I", status: 401, call: call{body: "foo=bar"}.as("reader", "wrong-secret")},
		{id: "I-01 I-13", name: "a bearer token is not a client's credential", kinds: "I", status: 401, call: call{headers: []string{"Authorization", "Bearer canary"}}},
		{id: "I-02", name: "GET", kinds: "I", status: 405, code: "invalid_request", call: call{method: "GET", query: "FORM", empty: true}.as("reader", testSecret)},
		{id: "I-02", name: "the token in the query", kinds: "I", status: 400, code: "invalid_request", call: call{query: "FORM", empty: true}.as("reader", testSecret)},
		{id: "I-04", name: "no token", kinds: "I", status: 400, code: "invalid_request", call: form("token_type_hint=access_token")},
		{id: "I-09", name: "a right hint", kinds: "I", call: form("FORM&token_type_hint=access_token")},
		{id: "I-09", name: "a wrong hint", kinds: "I", call: form("FORM&token_type_hint=refresh_token")},
		{id: "I-09", name: "an unknown hint", kinds: "I", call: form("FORM&token_type_hint=canary")},
		{id: "R-04", name: "nobody asks", kinds: "R", status: 401, call: call{}},
		{id: "R-04", name: "a wrong secret", kinds: "R", status: 401, call: call{}.as("reader", "wrong-secret")},
		{id: "R-04", name: "no token and a wrong secret", kinds: "R", status: 401, call: call{body: "foo=bar"}.as("reader", "wrong-secret")},
		{id: "R-05", name: "an unknown hint", kinds: "R", call: form("FORM&token_type_hint=canary")},
		{id: "R-09", name: "no token", kinds: "R", status: 400, code: "invalid_request", call: form("token_type_hint=access_token")},
		{id: "R-10", name: "a callback is ignored", kinds: "R", call: form("FORM&callback=canary")},
		{id: "R-10", name: "a callback in the query is ignored", kinds: "R", call: call{query: "callback=canary"}.as("reader", testSecret)},
	}
	runCases(t, g, cases)
}

// I-09, R-05: a good token is found whatever the hint says.
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
					t.Errorf("I-09 %s with the hint %q: %s", e.path, hint, a.Body)
				}
			case 'R':
				if a.StatusCode != 200 || a.Body != "{}" {
					t.Errorf("R-05 %s with the hint %q: %d %s", e.path, hint, a.StatusCode, a.Body)
				}
				if after := g.introspectAt(base, "reader", token); after.Body != `{"active":false}` {
					t.Errorf("R-05 %s with the hint %q revoked nothing: %s", e.path, hint, after.Body)
				}
			}
		}
	}
}

// R-01, I-11: a revocation is in force when its answer is there, however warm the cache.
func TestRevocationIsInForceAtOnce(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			g := startGateway(t, v.options(t)+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND")
			for range 60 {
				token := g.token("reader")
				for range 2 {
					if a := g.get("/x", token); a.StatusCode != 200 {
						t.Fatalf("R-01 before the revocation: %d", a.StatusCode)
					}
				}
				if a := g.revoke("reader", token); a.StatusCode != 200 || a.Body != "{}" {
					t.Fatalf("R-01 the revocation: %d %q", a.StatusCode, a.Body)
				} else {
					wantHeaders(t, a)
				}
				if a := g.get("/x", token); a.StatusCode != 401 {
					t.Fatalf("R-01 after the revocation: %d", a.StatusCode)
				}
				if a := g.introspect("reader", token); a.Body != `{"active":false}` {
					t.Fatalf("I-11 after the revocation: %s", a.Body)
				}
			}
		})
	}
}

// a token of another client is refused by name of the reason alone, and works on.
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
						t.Errorf("R-03 after %s tried, the token gets %d", id, a.StatusCode)
					}
				}
			}
			// A client of the same name in another realm is another client, and to its realm
			// the token is garbage.
			if a := g.post(alphaBase+"/token/revoke", "writer", testSecret, url.Values{"token": {token}}); a.StatusCode != 200 || a.Body != "{}" {
				t.Errorf("R-03 at another realm: %d %s", a.StatusCode, a.Body)
			}
			if a := g.introspect("writer", token); a.json(t)["active"] != true {
				t.Errorf("R-03 another realm revoked it: %s", a.Body)
			}
		})
	}
}

// I-12: a caller that keeps asking about tokens that are no good is told to slow down, for
// good ones as well, and nobody else is.
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
		// A machine that is slow enough never reaches the limit, which grows by 100 a second.
		if n, allowed := asked.Load(), 1000+100*int64(time.Since(begin).Seconds()+1); n > allowed {
			t.Errorf("%d questions about garbage were all answered, want at most %d", n, allowed)
		}
		return
	}
	if a := g.introspect("writer", token); a.StatusCode != 200 {
		t.Errorf("I-12 somebody else is told %d", a.StatusCode)
	}
	// Whom the limit has reached still gets tokens.
	g.token("reader")
}
