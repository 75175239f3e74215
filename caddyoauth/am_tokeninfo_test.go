package caddyoauth_test

import (
	"context"
	"errors"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyoauth/gateway/caddyoauth"
)

const tokenInfoInvalid = `{"error_description":"The access token provided is expired, revoked, malformed, or invalid for other reasons.","error":"invalid_token"}`

// wantTokenInfoHeaders checks the headers of all answers of /tokeninfo: AM's, and no challenge.
func wantTokenInfoHeaders(t testing.TB, a answer) {
	t.Helper()
	for name, want := range map[string][]string{
		"Cache-Control": {"no-cache, no-store"}, "Content-Type": {"application/json"}, "X-Content-Type-Options": {"nosniff"}, "Pragma": nil, "Www-Authenticate": nil,
	} {
		if got := a.Header[name]; !slices.Equal(got, want) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// In realms that answer as AM, whoever holds a token is told what it means, in AM's bytes: at the path of
// any such realm, of a token of any of them, for as long as the token is good.
func TestAMsTokenInfo(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			client := func(more string) string {
				return "client maker {\nsecret_hash " + hashOf(testSecret) + "\nscopes write client_id a.b\naudience api\n" + more + "}\n"
			}
			options := "issuer " + testIssuer + "\nlimit failures off\n" + v.options(t)
			configure := func(alpha, more string) string {
				return options + "realm alpha {\n" + alpha + client(more) + "}\nrealm beta/gamma {\nam_compat\n" + client("") + "}\nrealm off {\n" + client("") + "}\n"
			}
			g := startGateway(t, configure("am_compat\n", ""), "oauth_server\nreverse_proxy BACKEND")
			const beta, off = "/oauth2/realms/root/realms/beta/realms/gamma", "/oauth2/realms/root/realms/off"
			alphas, betas, offs := g.fetchAt(alphaBase, "maker", "write client_id a.b"), g.fetchAt(beta, "maker", "write"), g.fetchAt(off, "maker", "write")
			if a := g.get(off+"/tokeninfo", offs); a.StatusCode != 404 || g.Backend.count() > 0 {
				t.Errorf("without am_compat: %d %s", a.StatusCode, a.Body)
			}
			about := func(realm, scopes, members string) string {
				want := `{"access_token":…,"token_type":"Bearer","expires_in":…,"scope":[` + scopes + `],"client_id":"maker","grant_type":"client_credentials","realm":"` + realm + `",` + members + `"auditTrackingId":…,"authGrantId":…`
				return want
			}
			claims := regexp.MustCompile(`,"iss":"[^"]+",.*"jti":….*}$|}$`)
			check := func(what, base, token, want string) {
				t.Helper()
				for range 2 { // the second time from the cache, if there is one
					a := g.get(base+"/tokeninfo", token)
					wantTokenInfoHeaders(t, a)
					got := constant(a.Body)
					rest := claims.FindString(got)
					if v.format == "jwt" && !strings.Contains(rest, `"jti"`) || v.format != "jwt" && rest != "}" || strings.Contains(rest, "epoch") || strings.Contains(rest, "generation") {
						t.Errorf("%s: behind AM's members there is %s", what, rest)
					}
					if v.format == "jwt" { // what a JWT itself says may come first
						rest = got[strings.Index(got, `"authGrantId":…`)+len(`"authGrantId":…`):]
					}
					if a.StatusCode != 200 || strings.TrimSuffix(got, rest) != want || !strings.Contains(a.Body, `"access_token":"`+token+`"`) {
						t.Errorf("%s: %d %s, want %s", what, a.StatusCode, got, want)
					}
					a.json(t)
				}
			}
			invalid := func(what, base, token string) {
				t.Helper()
				a := g.get(base+"/tokeninfo", token)
				wantTokenInfoHeaders(t, a)
				if a.StatusCode != 401 || a.Body != tokenInfoInvalid {
					t.Errorf("%s: %d %s", what, a.StatusCode, a.Body)
				}
			}
			wantAlpha := about("/alpha", `"write","client_id","a.b"`, `"write":"","a.b":"",`)
			check("at its realm", alphaBase, alphas, wantAlpha)
			check("at another realm", beta, alphas, wantAlpha)
			check("a token of a nested realm", alphaBase, betas, about("/beta/gamma", `"write"`, `"write":"",`))
			invalid("a token of a realm that doesn't answer as AM", alphaBase, offs)
			invalid("no token", alphaBase, "")
			invalid("a made-up token", alphaBase, "made-up")
			invalid("a forged token", alphaBase, spoiled(alphas))
			if info, said := g.get(alphaBase+"/tokeninfo", alphas).json(t), g.introspectAt(alphaBase, "maker", alphas).json(t); info["auditTrackingId"] != said["auditTrackingId"] || info["authGrantId"] != said["authGrantId"] {
				t.Errorf("tokeninfo says %v, introspection %v", info, said)
			}

			reload := func(alpha, more string) {
				t.Helper()
				if err := g.load(configure(alpha, more), "oauth_server\nreverse_proxy BACKEND"); err != nil {
					t.Fatal(err)
				}
			}
			reload("", "")
			if a := g.get(alphaBase+"/tokeninfo", alphas); a.StatusCode != 404 {
				t.Errorf("after am_compat was removed: %d %s", a.StatusCode, a.Body)
			}
			invalid("after am_compat was removed, at another realm", beta, alphas)
			reload("am_compat\n", "")
			check("after am_compat was put back", alphaBase, alphas, wantAlpha)
			g.post(beta+"/token/revoke", "maker", testSecret, url.Values{"token": {betas}})
			invalid("a revoked token", alphaBase, betas)
			reload("am_compat\n", "disabled\n")
			invalid("a token of a disabled client", beta, alphas)
		})
	}
}

// Tokens come in the header; in the query only where that is allowed, and never in both. Nothing else than
// GET is answered.
func TestAMsTokenInfoRequests(t *testing.T) {
	for _, allowed := range []bool{false, true} {
		setting := ""
		if allowed {
			setting = " {\ntokens_in_query\n}"
		}
		g, logged := startLogged(t, "store memory\nlimit failures off\nam_compat"+setting+"\nrealm other {\nam_compat off\n"+testClients+"}\n"+testClients, "oauth_server\nreverse_proxy BACKEND")
		token := g.token("reader")
		ok := `{"access_token":"` + token + `","token_type":"Bearer","expires_in":…,"scope":["read"],"client_id":"reader","grant_type":"client_credentials","realm":"/","read":"","auditTrackingId":…,"authGrantId":…}`
		ok = constant(ok)
		byQuery := tokenInfoInvalid
		if allowed {
			byQuery = ok
		}
		const two = `{"error_description":"Access Token cannot be provided in both query and header","error":"invalid_request"}`
		const method = `{"error_description":"Required Method: GET found: POST","error":"method_not_allowed"}`
		const repeated = `{"error_description":"access_token is repeated","error":"invalid_request"}`
		const malformed = `{"error_description":"the Authorization header must have one well-formed bearer token","error":"invalid_request"}`
		for _, c := range []struct {
			method, path, want string
			headers            []string
		}{
			{"GET", "/oauth2/tokeninfo", ok, []string{"Authorization", "Bearer " + token}},
			{"GET", "/oauth2/realms/root/tokeninfo", ok, []string{"Authorization", "bearer " + token}},
			{"GET", "/oauth2/tokeninfo?access_token=" + token, byQuery, nil},
			{"GET", "/oauth2/tokeninfo?access_token=" + token + "&access_token=" + token, byQuery, nil},
			{"GET", "/oauth2/tokeninfo?access_token=" + token + "&access_token=x", repeated, nil},
			{"GET", "/oauth2/tokeninfo?access_token=", tokenInfoInvalid, nil},
			{"GET", "/oauth2/tokeninfo?access_token=a%0Ab", tokenInfoInvalid, nil},
			{"GET", "/oauth2/tokeninfo?access_token=" + token, two, []string{"Authorization", "Bearer " + token}},
			{"GET", "/oauth2/tokeninfo?access_token=" + token, two, []string{"Authorization", "Bearer \"x"}},
			{"GET", "/oauth2/tokeninfo", malformed, []string{"Authorization", "Bearer " + token, "Authorization", "Bearer " + token}},
			{"GET", "/oauth2/tokeninfo", malformed, []string{"Authorization", "Bearer a,b"}},
			{"GET", "/oauth2/tokeninfo", tokenInfoInvalid, []string{"Authorization", basic("reader", testSecret)}},
			{"GET", "/oauth2/tokeninfo", tokenInfoInvalid, []string{"Authorization", "DPoP " + token}},
			{"GET", "/oauth2/tokeninfo", tokenInfoInvalid, []string{"Authorization", "Bearer " + strings.Repeat("a", 17<<10)}},
			{"GET", "/oauth2/tokeninfo?token=" + token, tokenInfoInvalid, nil},
			{"POST", "/oauth2/tokeninfo", method, []string{"Authorization", "Bearer " + token}},
			{"HEAD", "/oauth2/tokeninfo", "", []string{"Authorization", "Bearer " + token}},
			{"BREW", "/oauth2/tokeninfo", `{"error_description":"Required Method: GET","error":"method_not_allowed"}`, nil},
		} {
			a := g.do(g.request(c.method, c.path, "", c.headers...))
			wantTokenInfoHeaders(t, a)
			status := map[string]int{ok: 200, tokenInfoInvalid: 401, two: 400, repeated: 400, malformed: 400}[c.want]
			if c.method != "GET" {
				status = 405
				if got := a.Header.Get("Allow"); got != "GET" {
					t.Errorf("Allow is %q", got)
				}
			}
			if a.StatusCode != status || constant(a.Body) != c.want {
				t.Errorf("allowed %t: %s %s %q: %d %s, want %d %s", allowed, c.method, c.path, c.headers, a.StatusCode, a.Body, status, c.want)
			}
		}
		if n := g.Backend.count(); n > 0 {
			t.Errorf("%d requests have reached the backend", n)
		}
		waitUntil(t, "the refusals are counted", func() bool {
			return metric(t, "caddy_oauth_requests_total", "realm", "root", "endpoint", "tokeninfo", "result", "invalid_token") > 0
		})
		for _, text := range []string{`"event":"tokeninfo_answered"`, `"event":"tokeninfo_refused"`, `"reason":"two_tokens"`} {
			waitUntil(t, "an event has "+text, func() bool { return strings.Contains(logged(), text) })
		}
		if strings.Contains(logged(), "tokens_in_query:") != allowed {
			t.Errorf("allowed %t: the warning is missing, or too much", allowed)
		}
		if strings.Contains(logged(), token) {
			t.Error("the log has a token")
		}
	}
}

// Where root is not served, or has no base path of its own, its path answers all the same, for the tokens of
// realms with am_compat. One without it keeps its paths to itself.
func TestAMsTokenInfoAtRootsPath(t *testing.T) {
	for _, tc := range []struct {
		name, root, site string
		base, full       int
	}{
		{"root is not served", "", "oauth_server", 200, 200},
		{"nor is it there with another default", "", "oauth_server {\ndefault_realm alpha\n}", 200, 200},
		{"root has am_compat", "am_compat\n" + testClients, "oauth_server", 200, 200},
		{"root does not", testClients, "oauth_server", 404, 404},
		{"the site stands for a realm without it", testClients, "oauth_server {\ndefault_realm beta\n}", 404, 404},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := startGateway(t, "store memory\n"+tc.root+"realm alpha {\nam_compat\n"+testClients+"}\nrealm beta {\nam_compat off\n"+testClients+"}\n", tc.site)
			token := g.fetchAt(alphaBase, "reader", "read")
			for path, want := range map[string]int{"/oauth2/tokeninfo": tc.base, "/oauth2/realms/root/tokeninfo": tc.full, alphaBase + "/tokeninfo": 200} {
				if a := g.get(path, token); a.StatusCode != want || want == 200 && !strings.Contains(a.Body, `"realm":"/alpha"`) {
					t.Errorf("GET %s: %d %s, want %d", path, a.StatusCode, a.Body, want)
				}
			}
			if a := g.get("/oauth2/tokeninfo", g.fetchAt("/oauth2/realms/root/realms/beta", "reader", "read")); a.StatusCode == 200 {
				t.Errorf("a token of a realm without am_compat: %d %s", a.StatusCode, a.Body)
			}
		})
	}
}

// Where another oauth_server serves root, its path is that one's, whichever comes first.
func TestAMsTokenInfoWhereAnotherServesRoot(t *testing.T) {
	for _, rootHasIt := range []bool{true, false} {
		option, alphas, roots := "", 404, 404
		if rootHasIt {
			option, alphas, roots = "am_compat\n", 401, 200
		}
		for _, site := range []string{"oauth_server alpha\noauth_server root", "oauth_server root\noauth_server alpha"} {
			g := startGateway(t, "store memory\n"+option+testClients+"realm alpha {\nam_compat\n"+testClients+"}\n", site+"\nreverse_proxy BACKEND")
			for _, at := range []string{"/oauth2/tokeninfo", "/oauth2/realms/root/tokeninfo"} {
				if a := g.get(at, g.token("reader")); a.StatusCode != roots {
					t.Errorf("%q, %s: %d %s, want %d", site, at, a.StatusCode, a.Body, roots)
				}
				if a := g.get(at, g.fetchAt(alphaBase, "reader", "read")); a.StatusCode != alphas {
					t.Errorf("%q, %s, for a token of alpha: %d %s, want %d", site, at, a.StatusCode, a.Body, alphas)
				}
			}
			if a := g.get(alphaBase+"/tokeninfo", g.fetchAt(alphaBase, "reader", "read")); a.StatusCode != 200 {
				t.Errorf("%q, at alpha: %d %s", site, a.StatusCode, a.Body)
			}
			if n := g.Backend.count(); n != 0 {
				t.Errorf("%q: %d requests reached the backend", site, n)
			}
		}
	}
}

// That nobody can tell what a token means is no reason to throw it away.
func TestAMsTokenInfoDuringAnOutage(t *testing.T) {
	g := startGateway(t, "store outage\ncache off\nam_compat\n"+testClients, "oauth_server")
	token := g.token("reader")
	broken := func(context.Context, string) error { return errors.New("canary") }
	caddyoauth.Outage.Store(&broken)
	t.Cleanup(func() { caddyoauth.Outage.Store(nil) })
	a := g.get("/oauth2/tokeninfo", token)
	wantTokenInfoHeaders(t, a)
	if a.StatusCode != 503 || a.Header.Get("Retry-After") == "" || a.Body != `{"error_description":"try again later","error":"temporarily_unavailable"}` {
		t.Errorf("%d %s", a.StatusCode, a.Body)
	}
}
