package caddyoauth_test

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
)

const (
	testIssuer  = "https://auth.example.com/oauth2"
	alphaSuffix = "/realms/root/realms/alpha"
	wellKnown   = "/.well-known/oauth-authorization-server"
)

// metadataDocument has every member that the document may have (RFC 8414 section 2).
type metadataDocument struct {
	Issuer                   string   `json:"issuer"`
	TokenEndpoint            string   `json:"token_endpoint"`
	IntrospectionEndpoint    string   `json:"introspection_endpoint"`
	RevocationEndpoint       string   `json:"revocation_endpoint"`
	GrantTypes               []string `json:"grant_types_supported"`
	ResponseTypes            []string `json:"response_types_supported"`
	TokenAuthMethods         []string `json:"token_endpoint_auth_methods_supported"`
	IntrospectionAuthMethods []string `json:"introspection_endpoint_auth_methods_supported"`
	RevocationAuthMethods    []string `json:"revocation_endpoint_auth_methods_supported"`
}

// metadataAt fetches and reads a document, as a strict client does that refuses unknown members.
func (g *gateway) metadataAt(path string) metadataDocument {
	g.t.Helper()
	a := g.get(path, "")
	var document metadataDocument
	decoder := json.NewDecoder(strings.NewReader(a.Body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&document); err != nil || a.StatusCode != 200 || a.Header.Get("Content-Type") != "application/json" {
		g.t.Fatalf("%s: %d %s %s: %v", path, a.StatusCode, a.Header.Get("Content-Type"), a.Body, err)
	}
	return document
}

// Each realm has its document, at the path of RFC 8414 section 3.1 and at that of OpenID Connect.
func TestMetadata(t *testing.T) {
	g := startGateway(t, "store memory\nissuer "+testIssuer+"\n"+endpointOptions(), "oauth_server\nrespond \"next\" 418")
	for path, issuer := range map[string]string{
		wellKnown + "/oauth2":                                         testIssuer,
		"/oauth2/.well-known/openid-configuration":                    testIssuer,
		"/oauth2/realms/root/.well-known/openid-configuration":        testIssuer,
		wellKnown + "/oauth2" + alphaSuffix:                           testIssuer + alphaSuffix,
		"/oauth2" + alphaSuffix + "/.well-known/openid-configuration": testIssuer + alphaSuffix,
	} {
		t.Run(path, func(t *testing.T) {
			document := g.metadataAt(path)
			if document.Issuer != issuer {
				t.Errorf("issuer is %q, want %q", document.Issuer, issuer)
			}
			for member, got := range map[string][2]string{
				"token_endpoint":         {document.TokenEndpoint, issuer + "/access_token"},
				"introspection_endpoint": {document.IntrospectionEndpoint, issuer + "/introspect"},
				"revocation_endpoint":    {document.RevocationEndpoint, issuer + "/token/revoke"},
			} {
				if got[0] != got[1] {
					t.Errorf("%s is %q, want %q", member, got[0], got[1])
				}
			}
			if len(document.GrantTypes) != 1 || document.GrantTypes[0] != "client_credentials" {
				t.Errorf("grant types are %q", document.GrantTypes)
			}
			for _, methods := range [][]string{document.TokenAuthMethods, document.IntrospectionAuthMethods, document.RevocationAuthMethods} {
				if strings.Join(methods, " ") != "client_secret_basic client_secret_post" {
					t.Errorf("authentication methods are %q", methods)
				}
			}
			// response_types_supported is required, and empty without an authorization endpoint. There
			// are no keys, so no jwks_uri.
			if raw := g.get(path, "").Body; !strings.Contains(raw, `"response_types_supported":[]`) || strings.Contains(raw, "jwks_uri") {
				t.Errorf("the document is %s", raw)
			}

			// What it advertises works, and it advertises all that works. The host is the issuer's, so
			// only the path is taken from it.
			at := func(endpoint string) string {
				u, err := url.Parse(endpoint)
				if err != nil {
					t.Fatal(err)
				}
				return u.Path
			}
			for _, e := range []endpoint{{'T', "", at(document.TokenEndpoint)}, {'I', "", at(document.IntrospectionEndpoint)}, {'R', "", at(document.RevocationEndpoint)}} {
				wantOK(t, call{}.as("only-basic", testSecret).send(g, e), e)
				wantOK(t, call{body: "FORM&client_id=only-post&client_secret=" + testSecret}.send(g, e), e)
			}
		})
	}
	for _, path := range []string{wellKnown, wellKnown + "/", wellKnown + "/oauth2/", wellKnown + "/oauth2/realms/root/realms/beta", "/oauth2" + wellKnown, "/oauth2/.well-known", "/.well-known/openid-configuration"} {
		if a := g.get(path, ""); a.StatusCode != 418 {
			t.Errorf("%s: %d %s", path, a.StatusCode, a.Body)
		}
	}
}

// Methods that no client of the realm may use are not advertised.
func TestMetadataOfMethods(t *testing.T) {
	client := "client c {\nsecret_hash " + hashOf(testSecret) + "\nscopes a\nauth client_secret_post\n}\n"
	g := startGateway(t, "store memory\nissuer "+testIssuer+"\n"+testClients+"realm alpha {\n"+client+"}\n", "oauth_server")
	if got := g.metadataAt(wellKnown + "/oauth2" + alphaSuffix).TokenAuthMethods; len(got) != 1 || got[0] != "client_secret_post" {
		t.Errorf("alpha advertises %q", got)
	}
}

// Some libraries take the RFC 8414 document at OpenID Connect's path for a broken one of OpenID
// Connect. That path can be turned off. It is then 404, and the document remains at RFC 8414's.
func TestMetadataWithoutOpenIDConnectsPath(t *testing.T) {
	root, alpha := "/oauth2/.well-known/openid-configuration", "/oauth2"+alphaSuffix+"/.well-known/openid-configuration"
	explicit := "/oauth2/realms/root/.well-known/openid-configuration"
	inserted := "/.well-known/openid-configuration/oauth2" // RFC 8414 section 5
	const off = "no_openid_configuration\n"
	g := startGateway(t, "store memory\n"+testClients, "oauth_server")
	for name, c := range map[string]struct {
		root, alpha string
		status      map[string]int
	}{
		"for one realm": {"", off, map[string]int{root: 200, explicit: 200, alpha: 404, inserted + alphaSuffix: 404}},
		"for all":       {off, "", map[string]int{root: 404, explicit: 404, alpha: 404, inserted: 404, inserted + alphaSuffix: 404}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := g.load("store memory\nissuer "+testIssuer+"\n"+c.root+testClients+"realm alpha {\n"+c.alpha+testClients+"}\n", "oauth_server\nrespond next 200"); err != nil {
				t.Fatal(err)
			}
			for path, status := range c.status {
				for _, method := range []string{"GET", "HEAD", "POST"} {
					want := status
					if want == 200 && method == "POST" {
						want = 405
					}
					a := g.do(g.request(method, path, ""))
					if a.StatusCode != want || a.Header.Get("Content-Type") != "application/json" {
						t.Errorf("%s %s: %d %s", method, path, a.StatusCode, a.Body)
					}
					if want == 404 && a.Header.Get("Cache-Control") != "no-store" {
						t.Errorf("%s %s: %v", method, path, a.Header)
					}
				}
			}
			for path, issuer := range map[string]string{wellKnown + "/oauth2": testIssuer, wellKnown + "/oauth2" + alphaSuffix: testIssuer + alphaSuffix} {
				if got := g.metadataAt(path).Issuer; got != issuer {
					t.Errorf("the issuer at %s is %s", path, got)
				}
			}
		})
	}
}

// An issuer is repeated byte for byte, and every URL is derived from it.
func TestMetadataOfIssuers(t *testing.T) {
	for _, c := range []struct {
		name, issuer, base, path, endpoint string
	}{
		{"path as served", "https://auth.example.com/oauth2", "", "/oauth2", "https://auth.example.com/oauth2/access_token"},
		{"no path", "https://auth.example.com", "", "", "https://auth.example.com/oauth2/access_token"},
		{"a slash at the end", "https://auth.example.com/oauth2/", "", "/oauth2", "https://auth.example.com/oauth2/access_token"},
		{"only a slash", "https://auth.example.com/", "", "", "https://auth.example.com/oauth2/access_token"},
		{"a port", "https://auth.example.com:8443/oauth2", "", "/oauth2", "https://auth.example.com:8443/oauth2/access_token"},
		{"a host in capitals", "https://AUTH.example.com/oauth2", "", "/oauth2", "https://AUTH.example.com/oauth2/access_token"},
		{"a proxy's prefix before the path", "https://example.com/gw/oauth2", "", "/gw/oauth2", "https://example.com/gw/oauth2/access_token"},
		{"another base path", "https://auth.example.com/am/oauth2", "base_path /am/oauth2", "/am/oauth2", "https://auth.example.com/am/oauth2/access_token"},
		{"loopback over http", "http://localhost:9999/oauth2", "", "/oauth2", "http://localhost:9999/oauth2/access_token"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := startGateway(t, "store memory\nissuer "+c.issuer+"\n"+testClients, "oauth_server {\n"+c.base+"\n}")
			document := g.metadataAt(wellKnown + c.path)
			if document.Issuer != c.issuer || document.TokenEndpoint != c.endpoint {
				t.Errorf("issuer %q, token endpoint %q; want %q, %q", document.Issuer, document.TokenEndpoint, c.issuer, c.endpoint)
			}
		})
	}
	g := startGateway(t, "store memory\n"+testClients, "oauth_server")
	for _, issuer := range []string{
		"http://auth.example.com/oauth2", "https://auth.example.com/oauth2?x=1", "https://auth.example.com/oauth2?", "\"https://auth.example.com/oauth2#x\"",
		"\"https://auth.example.com/oauth2#\"", "https://user@auth.example.com/oauth2", "https:///oauth2", "auth.example.com/oauth2", "ftp://auth.example.com", "//auth.example.com",
	} {
		t.Run("refused at load: "+issuer, func(t *testing.T) {
			if err := g.load("store memory\nissuer "+issuer+"\n"+testClients, "oauth_server"); err == nil {
				t.Error("the issuer was accepted")
			}
		})
	}
}

// No header of a request gets into the document, into the iss of a token, or into a challenge.
func TestMetadataIgnoresTheRequest(t *testing.T) {
	g := startGateway(t, "store memory\nissuer "+testIssuer+"\n"+testClients, "oauth_server\noauth_protect")
	evil := []string{
		"X-Forwarded-Host", "evil.example", "X-Forwarded-Proto", "http", "X-Forwarded-Prefix", "/evil.example", "Forwarded", "host=evil.example;proto=http",
		"X-Original-Url", "/evil.example", "X-Rewrite-Url", "/evil.example", "X-Host", "evil.example", "Referer", "https://evil.example", "X-Forwarded-Port", "666",
	}
	want := g.get(wellKnown+"/oauth2", "").Body
	r := g.request("GET", wellKnown+"/oauth2", "", evil...)
	r.Host = "evil.example"
	if got := g.do(r); got.Body != want {
		t.Errorf("the document became %s", got.Body)
	}
	r = g.request("GET", "/x", "", evil...)
	r.Host = "evil.example"
	if got := g.do(r).Header.Get("WWW-Authenticate"); got != `Bearer realm="root"` {
		t.Errorf("the challenge became %q", got)
	}
	r = g.request("POST", "/oauth2/introspect", url.Values{"token": {g.token("reader")}}.Encode(), append(evil, "Content-Type", "application/x-www-form-urlencoded", "Authorization", basic("reader", testSecret))...)
	r.Host = "evil.example"
	if got := g.do(r).json(t)["iss"]; got != testIssuer {
		t.Errorf("iss became %v", got)
	}
}

// Anybody may read the document, from any origin, by GET and HEAD only, and cache it for five
// minutes.
func TestMetadataRequests(t *testing.T) {
	g := startGateway(t, "store memory\nissuer "+testIssuer+"\n"+testClients, "oauth_server\noauth_protect")
	for _, path := range []string{wellKnown + "/oauth2", "/oauth2/.well-known/openid-configuration"} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
			t.Run(method+" "+path, func(t *testing.T) {
				a := g.do(g.request(method, path, "", "Origin", "https://page.example"))
				if got := a.Header.Get("X-Content-Type-Options"); got != "nosniff" {
					t.Errorf("X-Content-Type-Options is %q", got)
				}
				if a.Header.Get("Set-Cookie") != "" || a.Header.Get("Location") != "" {
					t.Errorf("the headers are %v", a.Header)
				}
				if method != "GET" && method != "HEAD" {
					if a.StatusCode != 405 || a.Header.Get("Allow") != "GET, HEAD" || a.json(t)["error"] != "invalid_request" {
						t.Errorf("%d, Allow %q, %s", a.StatusCode, a.Header.Get("Allow"), a.Body)
					}
					return
				}
				if a.StatusCode != 200 || a.Header.Get("Content-Type") != "application/json" || (a.Body == "") != (method == "HEAD") {
					t.Errorf("%d %s %q", a.StatusCode, a.Header.Get("Content-Type"), a.Body)
				}
				if got := a.Header.Get("Cache-Control"); got != "public, max-age=300" {
					t.Errorf("Cache-Control is %q", got)
				}
				if got := a.Header.Get("Access-Control-Allow-Origin"); got != "*" {
					t.Errorf("Access-Control-Allow-Origin is %q", got)
				}
			})
		}
	}
}

// Two realms whose issuers differ only in the host have their metadata at the same path. One
// handler for both would serve the wrong one, so that is refused; two handlers are not.
func TestMetadataOfTwoHosts(t *testing.T) {
	oauth := "store memory\nissuer https://one.example/oauth2\n" + testClients + "realm alpha {\nissuer https://two.example/oauth2\n" + testClients + "}\n"
	g := startGateway(t, oauth, "oauth_server root")
	if err := g.load(oauth, "oauth_server"); err == nil || !strings.Contains(err.Error(), wellKnown+"/oauth2") {
		t.Errorf("one handler for both: %v", err)
	}
	site := "@one host one.example\noauth_server @one root\noauth_server alpha\n"
	if err := g.load(oauth, site); err != nil {
		t.Fatal(err)
	}
	for host, issuer := range map[string]string{"one.example": "https://one.example/oauth2", "two.example": "https://two.example/oauth2"} {
		r := g.request("GET", wellKnown+"/oauth2", "")
		r.Host = host
		if got := g.do(r).json(t)["issuer"]; got != issuer {
			t.Errorf("the metadata at %s is that of %v", host, got)
		}
	}
}
