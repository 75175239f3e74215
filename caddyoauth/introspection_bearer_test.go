package caddyoauth_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
)

// bearing introspects as the bearer of a token.
func (g *gateway) bearing(base, bearer, token string, more ...string) answer {
	g.t.Helper()
	form := url.Values{"token": {token}}
	for i := 0; i < len(more); i += 2 {
		form.Set(more[i], more[i+1])
	}
	return g.do(g.request("POST", base+"/introspect", form.Encode(), "Content-Type", "application/x-www-form-urlencoded", "Authorization", bearer))
}

func wantBearer(t testing.TB, a answer, status int, code, challenge string, sent ...string) {
	t.Helper()
	if status != 403 { // elsewhere, 403 has no challenge
		wantE(t, a, status, code, sent...)
	} else if a.StatusCode != status || a.json(t)["error"] != code {
		t.Errorf("%d %s, want %d %s", a.StatusCode, a.Body, status, code)
	}
	if got := a.Header.Get("WWW-Authenticate"); got != challenge {
		t.Errorf("the challenge is %q, want %q", got, challenge)
	}
}

const (
	invalidBearer = `Bearer realm="root", error="invalid_token", error_description="the token is not valid here"`
	lacksScope    = `Bearer realm="root", error="insufficient_scope", error_description="the token lacks a required scope", scope="a"`
)

// With introspect_scope, an access token that has the scope may ask what its client may, and nothing else
// stands in for it.
func TestIntrospectionByAToken(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			g, logged := startLogged(t, v.options(t)+"introspect_scope a\n"+askers()+"realm alpha {\n"+askers()+"}\n", "oauth_server")
			made := g.fetchAt("/oauth2", "maker", "a b c")
			resource, stranger := g.fetchAt("/oauth2", "resource", "a c"), g.fetchAt("/oauth2", "stranger", "a")
			alpha, without := g.fetchAt(alphaBase, "resource", "a c"), g.fetchAt("/oauth2", "resource", "c")
			for what, c := range map[string]struct {
				bearer, token, scope string
			}{
				"its own token":           {resource, resource, "a c"},
				"another's for itself":    {resource, made, "a c"},
				"another's":               {stranger, made, ""},
				"a dead one":              {resource, made + "x", ""},
				"its own without a scope": {resource, without, "c"},
			} {
				a := g.bearing("/oauth2", "Bearer "+c.bearer, c.token)
				if answer := a.json(t); a.StatusCode != 200 || (answer["active"] == true) != (c.scope != "") || c.scope != "" && answer["scope"] != c.scope {
					t.Errorf("%s: %d %v, want the scope %q", what, a.StatusCode, answer, c.scope)
				}
			}
			if a := g.bearing("/oauth2", "bearer  "+resource, resource, "client_id", "resource"); a.json(t)["active"] != true {
				t.Errorf("the scheme in lower case: %d %s", a.StatusCode, a.Body)
			}
			if a := g.bearing(alphaBase, "Bearer "+alpha, alpha); a.json(t)["active"] != true { // root lends the setting
				t.Errorf("in another realm: %d %s", a.StatusCode, a.Body)
			}

			wantBearer(t, g.bearing("/oauth2", "Bearer "+without, resource), 403, "insufficient_scope", lacksScope, without, resource)
			for what, bearer := range map[string]string{
				"made up": "made-up", "of another realm": alpha, "spoiled": spoiled(resource), "no token": "a\"b", "too long": strings.Repeat("a", 17<<10),
			} {
				t.Log(what)
				wantBearer(t, g.bearing("/oauth2", "Bearer "+bearer, resource), 401, "invalid_token", invalidBearer, resource)
			}
			for _, bearer := range []string{"Bearer", "Bearer ", "Bearer a b", "Bearer a,b"} {
				wantBearer(t, g.bearing("/oauth2", bearer, resource), 400, "invalid_request", "", resource)
			}

			// One method a request.
			for _, more := range [][]string{{"client_secret", testSecret}, {"client_id", "resource", "client_secret", testSecret}, {"client_assertion", "x", "client_assertion_type", assertionType}, {"client_id", "stranger"}} {
				wantBearer(t, g.bearing("/oauth2", "Bearer "+resource, resource, more...), 400, "invalid_request", "", resource)
			}
			r := g.posting("/oauth2/introspect", "resource", testSecret, url.Values{"token": {resource}})
			r.Header.Add("Authorization", "Bearer "+resource)
			wantBearer(t, g.do(r), 400, "invalid_request", "", resource)
			wantBearer(t, g.bearing("/oauth2", "Bearer "+resource, ""), 400, "invalid_request", "", resource)

			// A token authenticates nobody elsewhere, and other schemes nobody here.
			for _, path := range []string{"/oauth2/token/revoke", "/oauth2/access_token"} {
				form := url.Values{"token": {resource}, "grant_type": {"client_credentials"}}
				wantE401(t, g.do(g.request("POST", path, form.Encode(), "Content-Type", "application/x-www-form-urlencoded", "Authorization", "Bearer "+resource)), "root", resource)
			}
			for _, scheme := range []string{"DPoP ", "Bearerx ", "Token "} {
				wantE401(t, g.bearing("/oauth2", scheme+resource, resource), "root", resource)
			}
			wantE401(t, g.post("/oauth2/introspect", "", "", url.Values{"token": {resource}}), "root", resource)

			// The token is good for as long as it is good elsewhere.
			if a := g.post("/oauth2/token/revoke", "resource", testSecret, url.Values{"token": {resource}}); a.StatusCode != 200 {
				t.Fatalf("revoking: %d", a.StatusCode)
			}
			wantBearer(t, g.bearing("/oauth2", "Bearer "+resource, made), 401, "invalid_token", invalidBearer, resource)
			for _, text := range []string{`"reason":"bearer_scope"`, `"reason":"bearer_malformed"`, `"auth_method":"bearer"`} {
				waitUntil(t, fmt.Sprintf("an event has %s", text), func() bool { return strings.Contains(logged(), text) })
			}
			for _, token := range []string{resource, made, without, alpha} {
				if strings.Contains(logged(), token) {
					t.Error("the log has a token")
				}
			}
		})
	}
}

// Without introspect_scope, a token is no credential, and the metadata doesn't say that it is.
func TestIntrospectionByATokenIsOff(t *testing.T) {
	g := startGateway(t, "store memory\n"+issuerOption+askers()+"realm alpha {\nintrospect_scope a\n"+askers()+"}\n", "oauth_server")
	token := g.fetchAt("/oauth2", "resource", "a c")
	wantE401(t, g.bearing("/oauth2", "Bearer "+token, token), "root", token)
	for path, want := range map[string]string{"/oauth2": "[client_secret_basic client_secret_post]", "/oauth2/realms/root/realms/alpha": "[client_secret_basic client_secret_post Bearer]"} {
		meta := g.do(g.request("GET", "/.well-known/oauth-authorization-server"+path, "")).json(t)
		if got := fmt.Sprint(meta["introspection_endpoint_auth_methods_supported"]); got != want {
			t.Errorf("%s: the metadata has %s", path, got)
		}
		if got := fmt.Sprint(meta["token_endpoint_auth_methods_supported"], meta["revocation_endpoint_auth_methods_supported"]); strings.Contains(got, "Bearer") {
			t.Errorf("%s: the metadata has %s", path, got)
		}
	}
}
