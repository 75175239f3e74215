package caddyoauth_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// amRealmOptions configure realms with am_compat, but for off, each with its keys and its issuer.
const amRealmOptions = "store memory\nissuer " + testIssuer + "\nsigning\nam_compat\n" + testClients +
	"realm retail {\n" + testClients + "}\nrealm retail/eu {\n" + testClients + "}\nrealm token {\n" + testClients + "}\nrealm off {\nam_compat off\n" + testClients + "}\n"

// amSpellings are what may stand between the base path and an endpoint, with the realm that is meant.
var amSpellings = map[string]string{
	"": "root", "/realms/root": "root", "/realms/ROOT": "root",
	"/retail": "retail", "/Retail": "retail", "/realms/retail": "retail", "/realms/root/realms/RETAIL": "retail",
	"/retail/eu": "retail/eu", "/RETAIL/Eu": "retail/eu", "/realms/retail/realms/eu": "retail/eu", "/realms/root/realms/retail/realms/EU": "retail/eu",
	"/realms/token": "token",
}

// issuerOfRealm is the issuer of one of amRealmOptions.
func issuerOfRealm(realm string) string {
	if realm == "root" {
		return testIssuer
	}
	return testIssuer + strings.TrimPrefix(fullPathOf(realm), "/oauth2")
}

// fullPathOf is the path of a realm that it has in any case.
func fullPathOf(realm string) string {
	if realm == "root" {
		return "/oauth2/realms/root"
	}
	return "/oauth2/realms/root/realms/" + strings.ReplaceAll(realm, "/", "/realms/")
}

// wantRealm checks that the endpoints at a path, with a query, are those of a realm.
func (g *gateway) wantRealm(base, query, realm string) {
	g.t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}}
	active := func(at, query, token string) bool {
		return g.post(at+"/introspect"+query, "reader", testSecret, url.Values{"token": {token}}).json(g.t)["active"] == true
	}
	for _, name := range []string{"/access_token", "/token"} {
		if strings.HasPrefix(base+name, "/oauth2/token") && base != "/oauth2" {
			continue // it is an endpoint of root
		}
		a := g.post(base+name+query, "reader", testSecret, form)
		token := fmt.Sprint(a.json(g.t)["access_token"])
		if a.StatusCode != 200 || !active(fullPathOf(realm), "", token) || !active(base, query, token) {
			g.t.Errorf("%s%s%s: %d %s; want a token of %s", base, name, query, a.StatusCode, a.Body, realm)
		}
		if a := g.post(base+"/token/revoke"+query, "reader", testSecret, url.Values{"token": {token}}); a.StatusCode != 200 || active(fullPathOf(realm), "", token) {
			g.t.Errorf("%s/token/revoke%s: %d %s; want the token of %s to end", base, query, a.StatusCode, a.Body, realm)
		}
	}
	if a := g.get(base+"/.well-known/openid-configuration"+query, ""); a.StatusCode != 200 || a.json(g.t)["issuer"] != issuerOfRealm(realm) {
		g.t.Errorf("%s/.well-known/openid-configuration%s: %d %s; want that of %s", base, query, a.StatusCode, a.Body, realm)
	}
	if a := g.get(base+"/connect/jwk_uri"+query, ""); a.StatusCode != 200 || a.Body != g.get(fullPathOf(realm)+"/connect/jwk_uri", "").Body {
		g.t.Errorf("%s/connect/jwk_uri%s: %d %s; want the keys of %s", base, query, a.StatusCode, a.Body, realm)
	}
}

// wantUnknownRealm checks the answer to a request for an endpoint of a realm that there isn't.
func wantUnknownRealm(t *testing.T, a answer) {
	t.Helper()
	const body = `{"error_description":"No OpenID Connect provider for this realm","error":"not_found"}`
	if a.StatusCode != 404 || strings.TrimSpace(a.Body) != body || a.Header.Get("Cache-Control") != "no-store" || a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s: %d %s %s, want 404 and %s", a.Request.URL, a.StatusCode, a.Header, a.Body, body)
	}
}

// With am_compat, a realm has all spellings that it has in AM, for every endpoint; without it, it has one.
func TestAMRealmSpellings(t *testing.T) {
	const site = "oauth_server {\nbase_path /oauth2 /openam/oauth2\n}\nreverse_proxy BACKEND"
	g := startGateway(t, amRealmOptions, site)
	for spelling, realm := range amSpellings {
		g.wantRealm("/oauth2"+spelling, "", realm)
		g.wantRealm("/openam/oauth2"+spelling, "", realm)
	}
	for _, query := range []string{"?realm=/retail/eu", "?realm=retail/eu", "?realm=%2FRetail%2FEU", "?realm=/retail/eu&x=1&realm=/retail/eu"} {
		for _, at := range []string{"/oauth2", "/oauth2/realms/root", "/oauth2/retail", "/oauth2/realms/token", "/oauth2/realms/root/realms/retail/realms/eu"} {
			g.wantRealm(at, query, "retail/eu")
		}
	}
	for _, query := range []string{"?realm=/", "?realm=%2f", "?realm=root"} {
		g.wantRealm("/oauth2/retail/eu", query, "root")
		g.wantRealm("/oauth2", query, "root")
	}
	g.wantRealm("/oauth2/retail", "?realm=", "retail")

	form := url.Values{"grant_type": {"client_credentials"}}
	// The realm token is no way around root's endpoints.
	if a := g.post("/oauth2/token/revoke", "reader", testSecret, url.Values{"token": {"x"}}); a.StatusCode != 200 || strings.TrimSpace(a.Body) != "{}" {
		t.Errorf("root's revocation endpoint: %d %s", a.StatusCode, a.Body)
	}
	// A realm without am_compat is reached by its path alone, and a parameter can't lead away from it.
	for _, at := range []string{"/oauth2/off", "/oauth2/realms/off", "/oauth2/realms/root/realms/OFF"} {
		wantNoEndpoint(t, g.post(at+"/access_token", "reader", testSecret, form), testIssuer+"/access_token")
	}
	for _, at := range []string{"/oauth2/realms/root/realms/off/access_token?realm=/retail", "/oauth2/access_token?realm=/off", "/oauth2/retail/access_token?realm=off",
		"/oauth2/access_token?realm=/retail&realm=/retail/eu", "/oauth2/access_token?realm=/retail;x=1", "/oauth2/realms/root/realms/off/access_token?realm=/bogus", "/oauth2/realms/root/realms/off/access_token?realm=/Off"} {
		if a := g.post(at, "reader", testSecret, form); a.StatusCode != 400 || a.json(t)["error"] != "invalid_request" {
			t.Errorf("%s: %d %s", at, a.StatusCode, a.Body)
		}
		at = strings.Replace(at, "/access_token", "/connect/jwk_uri", 1)
		if a := g.get(at, ""); a.StatusCode != 400 {
			t.Errorf("%s: %d %s", at, a.StatusCode, a.Body)
		}
	}
	// In the form, the parameter says again what the path says.
	for realm, status := range map[string]int{"/retail": 200, "Retail": 200, "/": 400, "/retail/eu": 400} {
		if a := g.post("/oauth2/retail/access_token", "reader", testSecret, url.Values{"grant_type": {"client_credentials"}, "realm": {realm}}); a.StatusCode != status {
			t.Errorf("with realm=%s in the form: %d %s, want %d", realm, a.StatusCode, a.Body, status)
		}
	}
	if n := g.Backend.count(); n != 0 {
		t.Errorf("%d requests reached the backend", n)
	}
	for _, at := range []string{"/oauth2/console", "/oauth2/realms/root/realms/retail/userinfo?access_token=x", "/oauth2-proxy/token", "/oauth2x/access_token", "/oauth2x/retail/jwks", "/openam/oauth2x/introspect"} {
		if a := g.get(at, ""); a.Body != "backend" {
			t.Errorf("%s, which is no endpoint: %d %s", at, a.StatusCode, a.Body)
		}
	}
	if a := g.get("/api/oauth2/tokeninfo?access_token=x", ""); a.StatusCode != 404 {
		t.Errorf("a token in the query of a wrong URL: %d %s", a.StatusCode, a.Body)
	}

	// A reload turns it off and on.
	if err := g.load(strings.Replace(amRealmOptions, "am_compat\n", "", 1), site); err != nil {
		t.Fatal(err)
	}
	for spelling, realm := range amSpellings {
		if spelling != "" && "/oauth2"+spelling != fullPathOf(realm) {
			wantNoEndpoint(t, g.post("/oauth2"+spelling+"/access_token", "reader", testSecret, form), testIssuer+"/access_token")
		}
	}
	for _, query := range []string{"?realm=/retail", "?realm=/bogus"} {
		if a := g.post("/oauth2/access_token"+query, "reader", testSecret, form); a.StatusCode != 400 {
			t.Errorf("without am_compat, %s: %d %s", query, a.StatusCode, a.Body)
		}
	}
	if err := g.load(amRealmOptions, site); err != nil {
		t.Fatal(err)
	}
	g.wantRealm("/oauth2/retail/eu", "", "retail/eu")
}

// A request for a realm that there isn't ends here, is told nothing but that, and is noticed.
func TestAMUnknownRealm(t *testing.T) {
	g, logged := startLogged(t, amRealmOptions, "metrics /metrics\noauth_server\nreverse_proxy BACKEND")
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {"reader"}, "client_secret": {testSecret}}
	const sample = `caddy_oauth_requests_total{endpoint="token",realm="None",result="no_such_endpoint"}`
	g.post("/oauth2/bogus/access_token", "", "", form)
	before := g.metricOf(sample)
	n := 0
	for _, at := range []string{
		"/oauth2/bogus/access_token", "/oauth2/realms/root/realms/bogus/access_token", "/oauth2/realms/bogus/token", "/oauth2/retail/bogus/access_token", "/oauth2/retail//eu/access_token",
		"/oauth2/realms/retail/eu/access_token", "/oauth2/REALMS/retail/access_token", "/oauth2/root/access_token", "/oauth2/realms/root/retail/access_token", "/oauth2/retai%E2%84%AA/access_token",
		"/oauth2/access_token?realm=/bogus", "/oauth2/retail/access_token?realm=bogus", "/oauth2/bogus/access_token?realm=/retail", "/oauth2/bogus%3Fclient_secret=" + testSecret + "/access_token",
		"/oauth2/realms/root/realms/root/access_token", "/oauth2/%3Cscript%3E/access_token", "/oauth2/access_token?realm=/realms/root",
	} {
		wantUnknownRealm(t, g.post(at, "", "", form))
		wantUnknownRealm(t, g.get(at, ""))
		n += 2
	}
	if got := g.metricOf(sample) - before; got != float64(n) {
		t.Errorf("%v requests are counted, want %d", got, n)
	}
	for _, at := range []string{"/oauth2/bogus/.well-known/openid-configuration", "/oauth2/connect/jwk_uri?realm=/bogus", "/oauth2/bogus/connect/jwk_uri", "/oauth2/bogus/introspect", "/oauth2/bogus/token/revoke", "/oauth2/bogus/tokeninfo"} {
		wantUnknownRealm(t, g.get(at, ""))
	}
	for _, line := range []string{`"event":"no_such_endpoint","endpoint":"token","path":"/oauth2/bogus"`, `"event":"no_such_endpoint","endpoint":"metadata","path":"/oauth2/bogus/.well-known/openid-configuration"`} {
		if !strings.Contains(logged(), line) {
			t.Errorf("the log has no line with %s", line)
		}
	}
	if strings.Contains(logged(), "client_secret=") {
		t.Error("the log holds a secret")
	}
	if n := g.Backend.count(); n != 0 {
		t.Errorf("%d requests reached the backend", n)
	}
	// The login of users is another server's business.
	if a := g.get("/oauth2/bogus/authorize", ""); a.Body != "backend" {
		t.Errorf("an authorization endpoint: %d %s", a.StatusCode, a.Body)
	}
}

// Where root only lends its settings, the query alone names the realm, as in most URLs of old clients.
func TestAMRealmParameterWithoutRoot(t *testing.T) {
	const options = "store memory\nam_compat\nissuer " + testIssuer + "\nsigning\nrealm retail {\n" + testClients + "}\nrealm off {\nam_compat off\n" + testClients + "}\n"
	g := startGateway(t, options, "oauth_server\nreverse_proxy BACKEND")
	form := url.Values{"grant_type": {"client_credentials"}}
	g.wantRealm("/oauth2", "?realm=/retail", "retail")
	g.wantRealm("/oauth2/realms/root", "?realm=Retail", "retail")
	for _, at := range []string{"/oauth2/access_token", "/oauth2/access_token?realm=/", "/oauth2/access_token?realm=/off", "/oauth2/access_token?realm=/retail&realm=/off", "/oauth2/bogus/access_token?realm=/retail"} {
		wantUnknownRealm(t, g.post(at, "reader", testSecret, form))
	}
	// Several oauth_server of a site answer for each other's realms.
	if err := g.load(amRealmOptions, "oauth_server root token off\noauth_server retail retail/eu\nreverse_proxy BACKEND"); err != nil {
		t.Fatal(err)
	}
	g.wantRealm("/oauth2/retail/eu", "", "retail/eu")
	g.wantRealm("/oauth2", "?realm=/retail", "retail")
	wantUnknownRealm(t, g.post("/oauth2/bogus/access_token", "reader", testSecret, form))
	// What leads to another oauth_server by its path doesn't know the other spellings. They end here, and not
	// at the backend.
	for _, site := range []string{
		"route {\n@retail path /oauth2/realms/root/realms/retail/*\nhandle @retail {\noauth_server retail\n}\nhandle {\noauth_server root\nreverse_proxy BACKEND\n}\n}",
		"@retail path /oauth2/realms/root/realms/retail/*\noauth_server @retail retail\noauth_server root\nreverse_proxy BACKEND",
	} {
		if err := g.load(amRealmOptions, site); err != nil {
			t.Fatal(err)
		}
		g.wantRealm("/oauth2/realms/root/realms/retail", "", "retail")
		for _, at := range []string{"/oauth2/retail/access_token", "/oauth2/realms/retail/access_token", "/oauth2/access_token?realm=/retail"} {
			wantUnknownRealm(t, g.post(at, "reader", testSecret, form))
		}
	}
	if n := g.Backend.count(); n != 0 {
		t.Errorf("%d requests reached the backend", n)
	}
	// A site that stands for a realm.
	if err := g.load(amRealmOptions, "oauth_server {\ndefault_realm retail\n}\nreverse_proxy BACKEND"); err != nil {
		t.Fatal(err)
	}
	g.wantRealm("/oauth2", "", "retail")
	g.wantRealm("/oauth2", "?realm=/", "root")
	g.wantRealm("/oauth2/realms/ROOT", "", "root")
	// No base path.
	if err := g.load(strings.Replace(amRealmOptions, testIssuer, "https://auth.example.com", 1), "oauth_server {\nbase_path /\n}\nreverse_proxy BACKEND"); err != nil {
		t.Fatal(err)
	}
	wantToken(t, g.post("/retail/eu/access_token", "reader", testSecret, url.Values{"grant_type": {"client_credentials"}, "scope": {"read"}}), "read")
	if a := g.get("/bogus/connect/jwk_uri", ""); a.Body != "backend" {
		t.Errorf("everything is below the base path /: %d %s", a.StatusCode, a.Body)
	}
	if a := g.post("/bogus/access_token", "reader", testSecret, form); a.StatusCode != 404 {
		t.Errorf("a realm that there isn't: %d %s", a.StatusCode, a.Body)
	}
	// One base path below another.
	if err := g.load(amRealmOptions, "oauth_server {\nbase_path / /oauth2 /oauth2/v2\n}\nreverse_proxy BACKEND"); err != nil {
		t.Fatal(err)
	}
	g.wantRealm("/oauth2/v2/Retail/eu", "", "retail/eu")
	g.wantRealm("/oauth2/retail", "", "retail")
}

// A proof by DPoP is made for the URL that the client calls, however it spells the realm.
func TestAMSpellingsAndProofs(t *testing.T) {
	g := startGateway(t, "dpop\n"+amRealmOptions, "oauth_server")
	p := newProver(t)
	send := func(called, query, proved string) answer {
		return g.insisting(func(nonce string) *http.Request {
			r := g.proving("reader", p.proof("POST", "https://auth.example.com"+proved, "", withNonce(nonce)))
			r.URL.Path, r.URL.RawQuery = called, query
			return r
		})
	}
	for called, query := range map[string]string{"/oauth2/retail/eu/access_token": "", "/oauth2/Retail/access_token": "", "/oauth2/access_token": "realm=/retail"} {
		if a := send(called, query, called); a.StatusCode != 200 || a.json(t)["token_type"] != "DPoP" {
			t.Errorf("%s?%s: %d %s", called, query, a.StatusCode, a.Body)
		}
	}
	if a := send("/oauth2/retail/eu/access_token", "", "/oauth2/retail/access_token"); a.StatusCode != 400 {
		t.Errorf("with a proof for another realm: %d %s", a.StatusCode, a.Body)
	}
}

// Questions to the configuration have the answers that requests have.
func TestAMSpellingsAreExplained(t *testing.T) {
	const expect = "expect {\nanonymous GET http://localhost/oauth2/Retail/EU/.well-known/openid-configuration pass\nanonymous GET http://localhost/oauth2/.well-known/openid-configuration?realm=/retail pass\n" +
		"anonymous GET http://localhost/oauth2/bogus/connect/jwk_uri 404\nanonymous GET http://localhost/oauth2/off/connect/jwk_uri 418\nanonymous GET http://localhost/oauth2/retail/access_token 405\n" +
		"anonymous GET http://localhost/oauth2/retail/tokeninfo pass\nanonymous POST http://localhost/oauth2/retail/tokeninfo 405\n}\n"
	g := startGateway(t, amRealmOptions+expect, "oauth_server\nrespond \"next\" 418")
	if err := g.load(strings.Replace(amRealmOptions, "am_compat\n", "", 1)+expect, "oauth_server\nrespond \"next\" 418"); err == nil || !strings.Contains(err.Error(), "is broken") {
		t.Errorf("without am_compat: %v", err)
	}
}
