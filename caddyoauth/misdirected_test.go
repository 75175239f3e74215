package caddyoauth_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// wantNoEndpoint checks the answer to a request that only looks like one to an endpoint: a 404 in
// JSON that says where the token endpoint is and repeats nothing that was sent.
func wantNoEndpoint(t *testing.T, a answer, tokenEndpoint string) {
	t.Helper()
	wantE(t, a, 404, "invalid_request", "reader", testSecret)
	if a.Request.Method != "HEAD" && !strings.Contains(a.Body, `is at `+tokenEndpoint+`"`) {
		t.Errorf("the answer does not say where the token endpoint is: %s", a.Body)
	}
}

// A slash at the end of an endpoint's path makes no difference.
func TestEndpointsWithASlashAtTheEnd(t *testing.T) {
	g := startGateway(t, "store memory\n"+endpointOptions(), "oauth_server\nreverse_proxy BACKEND")
	for _, e := range endpoints() {
		e.path += "/"
		wantOK(t, call{}.as("reader", testSecret).send(g, e), e)
		if a := (call{method: "GET", empty: true}).as("reader", testSecret).send(g, e); a.StatusCode != 405 || a.Header.Get("Allow") != "POST" {
			t.Errorf("GET %s: %d", e.path, a.StatusCode)
		}
	}
	if n := g.Backend.count(); n != 0 {
		t.Errorf("%d requests reached the backend", n)
	}
}

// A request that looks like one to an endpoint takes its secret to no backend, however wrong its
// URL is. What a backend may serve itself is left to it.
func TestMisdirectedRequestsReachNoBackend(t *testing.T) {
	const site = "oauth_server\nreverse_proxy BACKEND"
	// A secret in the query, for methods that have no body.
	const inQuery = "?grant_type=client_credentials&client_id=reader&client_secret=" + testSecret
	for _, c := range []struct {
		name, site, tokenEndpoint string
		refused, passed           []string
	}{
		{
			"the usual base path", site, "/oauth2/access_token",
			[]string{
				"/OAuth2/access_token", "/oauth2/Access_Token", "/OAUTH2/TOKEN", "/oauth2/alpha/access_token", "/oauth2/realms/alpha/access_token",
				"/oauth2/realms/root/realms/beta/access_token", "/oauth2/realms/root/realms/ALPHA/introspect", "/oauth2/realms/root/realms/alpha/realms/alpha/token/revoke",
				"/oauth2/realms/root/realms//token", "/oauth2/realms/root/realms/access_token", "//oauth2/access_token", "/oauth2//access_token", "/oauth2/access_token//",
				"/oauth2/./token", "/oauth2/x/../token", "/oauth2/v1/token", "/oauth2/access_token/access_token", "/oauth2/introspect/token", "/oauth2/token/introspect",
				"/oauth2/access_token%20", "/oauth2/access_token%0A", "/oauth2/access_token%22", "/oauth2/access_token.", "/oauth2/access_token;jsessionid=1",
				"/oauth2%5Caccess_token", `/oauth2/access_token%3Fgrant_type=client_credentials`, "/oauth2/access_token%3Fto=https://x.example/y", "/oauth2/%61lpha/access%5Ftoken", "/%6Fauth2/alpha/revoke",
				"/am/oauth2/access_token", "/am/oauth2/realms/root/realms/alpha/access_token", "/x/OAUTH2/v1/token", "/x/y/oauth2/introspect", "/sso/oauth2/token/revoke", "/sso/oauth2;v=1/revoke", "/oauth2%20/token",
				"/oauth2", "/oauth2/", "/OAuth2", "/oauth2/realms/root/realms/alpha", "/oauth2/realms/root/", "/oauth2/realms/root/realms/beta",
			},
			[]string{
				"/api/token", "/api/revoke", "/token", "/revoke", "/access_token", "/introspect", "/login/oauth/access_token", "/realms/x/protocol/openid-connect/token",
				"/oauth2x", "/oauth2/tokens", "/oauth2/access_tokens", "/oauth2/access_token/x", "/oauth2/token-exchange", "/oauth2/authorize", "/oauth2/callback",
				"/oauth2x/access_token", "/myoauth2/token", "/oauth2/../api/token", "/",
			},
		}, {
			"another base path", "oauth_server {\nbase_path /am/login\n}\nreverse_proxy BACKEND", "/am/login/access_token",
			[]string{"/am/login/alpha/access_token", "/AM/LOGIN/token", "/login/access_token", "/x/Login/token", "/oauth2/access_token", "/am/login/tokeninfo", "/am/login/introspection", "/oauth2/revocation", "/oauth2/realms/root/realms/alpha/token"},
			[]string{"/am/token", "/am/access_token", "/api/token"},
		}, {
			"no base path", "oauth_server {\nbase_path /\n}\nreverse_proxy BACKEND", "/access_token",
			[]string{"/Access_Token", "//token", "/x/access_token", "/x/introspect", "/realms/alpha/token", "/realms/root/realms/beta/revoke", "/oauth2/token"},
			[]string{"/api/token", "/api/revoke", "/api/revocation", "/api/tokeninfo", "/"},
		}, {
			"one realm", "oauth_server alpha\nreverse_proxy BACKEND", "/oauth2/realms/root/realms/alpha/access_token",
			[]string{"/oauth2/access_token", "/oauth2/realms/root/access_token", "/oauth2/alpha/access_token"},
			nil,
		}, {
			"a base path with odd characters", "oauth_server {\nbase_path `/ä\"x`\n}\nreverse_proxy BACKEND", "/%C3%A4%22x/access_token",
			[]string{"/%C3%A4%22x/alpha/access_token", "/%C3%84%22X/access_token"},
			nil,
		}, {
			"a prefix that is stripped", "handle_path /auth/* {\noauth_server\n}\nreverse_proxy BACKEND", "/oauth2/access_token",
			[]string{"/auth/oauth2/alpha/token", "/auth/OAuth2/token"},
			nil,
		}, {
			"endpoints of another server behind the gateway, left out by a matcher", "@ours not path /am/oauth2/*\noauth_server @ours\nreverse_proxy BACKEND", "/oauth2/access_token",
			[]string{"/am2/oauth2/access_token"},
			[]string{"/am/oauth2/access_token", "/am/oauth2/realms/root/realms/x/introspect"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := startGateway(t, "store memory\n"+endpointOptions(), c.site)
			form := url.Values{"grant_type": {"client_credentials"}, "client_id": {"reader"}, "client_secret": {testSecret}}
			for _, path := range c.refused {
				for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "QUERY"} {
					wantNoEndpoint(t, g.do(g.request(method, path, form.Encode(), "Content-Type", "application/x-www-form-urlencoded")), c.tokenEndpoint)
				}
				for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
					wantNoEndpoint(t, g.do(g.request(method, path+inQuery, "")), c.tokenEndpoint)
				}
				wantNoEndpoint(t, g.do(g.request("GET", path, form.Encode(), "Content-Type", "application/x-www-form-urlencoded")), c.tokenEndpoint)
				if t.Failed() {
					t.Fatalf("at %s", path)
				}
			}
			if n := g.Backend.count(); n != 0 {
				t.Errorf("%d requests reached the backend", n)
			}
			for _, path := range c.passed {
				if a := g.post(path, "", "", form); a.StatusCode != 200 || a.Body != "backend" {
					t.Errorf("%s, which is not like an endpoint's: %d %s", path, a.StatusCode, a.Body)
				}
			}
		})
	}

	// A GET without credentials may be for a page about such a path.
	g := startGateway(t, "store memory\n"+endpointOptions(), site)
	for _, path := range []string{"/docs/oauth2/token", "/docs/oauth2/introspect?lang=en", "/oauth2", "/oauth2/", "/oauth2/realms/root/realms/alpha"} {
		if a := g.get(path, ""); a.Body != "backend" {
			t.Errorf("GET %s: %d %s", path, a.StatusCode, a.Body)
		}
	}
	// If there is an issuer, clients are told the URL that is derived from it.
	if err := g.load("store memory\nissuer https://example.com/gw/oauth2\n"+endpointOptions(), site); err != nil {
		t.Fatal(err)
	}
	wantNoEndpoint(t, g.post("/oauth2/alpha/access_token", "reader", testSecret, nil), "https://example.com/gw/oauth2/access_token")
}

// Several oauth_server in a site don't refuse each other's requests, wherever they are in it. The
// endpoints of an oauth_server of another site are served only there.
func TestMisdirectedBetweenServers(t *testing.T) {
	const servers = "oauth_server root {\nbase_path /am/oauth2\n}\noauth_server alpha\nhandle_path /beta/* {\noauth_server beta {\nbase_path /b/oauth2\n}\n}\nreverse_proxy BACKEND"
	options := "store memory\n" + endpointOptions() + "realm beta {\n" + endpointClients() + "}\n"
	form := url.Values{"grant_type": {"client_credentials"}}
	g := startGateway(t, options, servers)
	hosts := strings.Replace(caddyfileOf(options, ""), ":0 {\nbind 127.0.0.1\n\n}\n",
		"http://one.example:0 {\nbind 127.0.0.1\n"+servers+"\n}\nhttp://two.example:0 {\nbind 127.0.0.1\noauth_server\nreverse_proxy BACKEND\n}\n", 1)
	// The second site has the fixed port, so that the first site's server is srv0.
	port := porttest.Reserve(t)
	ports := caddyfileOf(options, servers) + fmt.Sprintf(":%d {\nbind 127.0.0.1\noauth_server\nreverse_proxy BACKEND\n}\n", port)
	for name, caddyfile := range map[string]string{"a site without a host": caddyfileOf(options, servers), "two sites": hosts, "two ports": ports} {
		t.Run(name, func(t *testing.T) {
			if err := g.loadCaddyfile(caddyfile); err != nil {
				t.Fatal(err)
			}
			post := func(host, path string) answer {
				r := g.posting(path, "reader", testSecret, form)
				r.Host = host
				return g.do(r)
			}
			for _, path := range []string{"/am/oauth2/access_token", "/oauth2/realms/root/realms/alpha/access_token", "/beta/b/oauth2/realms/root/realms/beta/access_token"} {
				wantToken(t, post("one.example", path), "read")
			}
			for _, path := range []string{"/oauth2/access_token", "/am/oauth2/realms/root/realms/alpha/access_token", "/b/oauth2/access_token", "/beta/b/oauth2/access_token"} {
				if a := post("one.example", path); a.StatusCode != 404 {
					t.Errorf("%s: %d %s", path, a.StatusCode, a.Body)
				}
			}
			if name != "a site without a host" {
				first := g.URL
				if name == "two ports" {
					g.URL = fmt.Sprint("http://127.0.0.1:", port)
				}
				for _, path := range []string{"/am/oauth2/access_token", "/b/oauth2/realms/root/realms/beta/access_token"} {
					wantNoEndpoint(t, post("two.example", path), "/oauth2/access_token")
				}
				g.URL = first
			}
			if n := g.Backend.count(); n != 0 {
				t.Errorf("%d requests reached the backend", n)
			}
		})
	}
}

// A request for an endpoint of an oauth_server that it can't come to, wherever the two are in a site, is
// refused. Where only the handlers between them decide, it goes on, but no backend gets anything of it that
// might be secret.
func TestMisdirectedSecretsReachNoBackend(t *testing.T) {
	const (
		root, alpha = "oauth_server root {\nbase_path /am/oauth2\n}\n", "oauth_server alpha\n"
		matchers    = "@one host one.example\n@two host two.example\n"
		proxy       = "reverse_proxy BACKEND\n"
		answering   = "route @one {\n" + root + proxy + "}\nroute {\n" + alpha + proxy + "}\n"
		told        = "reverse_proxy BACKEND {\nheader_up X-Told {http.request.header.Authorization}{http.request.orig_uri.query}{http.request.uri}{http.request.body}\n}\n"
	)
	block := func(matcher, inside string) string { return "handle " + matcher + " {\n" + inside + "}\n" }
	for _, c := range []struct {
		name, site string
		alpha      int  // the status of a request for an endpoint of alpha at the first host
		fetches    bool // tokens from each at its host
	}{
		{"exclusive blocks", matchers + block("@one", root+proxy) + block("@two", alpha+proxy), 404, true},
		{"one of them in the block for all others", matchers + block("@one", root+proxy) + block("", alpha+proxy), 404, true},
		{"blocks within blocks", matchers + block("", block("@one", block("/*", root+proxy))+block("@two", block("/oauth2/*", alpha)+proxy)) + proxy, 404, true},
		{"blocks within routes", matchers + "route {\n" + block("@one", root+proxy) + block("@two", alpha+proxy) + "}\n", 404, true},
		{"matchers of the handlers", matchers + strings.Replace(root, "root", "@one root", 1) + strings.Replace(alpha, "alpha", "@two alpha", 1) + proxy, 404, true},
		{"the other before", matchers + "route {\n" + strings.Replace(alpha, "alpha", "@two alpha", 1) + root + proxy + "}\n", 404, false},
		{"a backend between them", matchers + answering, 200, false},
		{"a backend between them that is told of the request", matchers + strings.Replace(answering, proxy, told, 1), 200, false},
		{"a prefix that might be stripped", matchers + "route @one {\n" + root + "uri strip_prefix /x\n" + proxy + "}\nroute {\n" + alpha + proxy + "}\n", 200, false},
		{"a third between them", matchers + "@post method POST\nroute @one {\n" + root + "oauth_server @post beta {\nbase_path /b\n}\n" + proxy + "}\nroute {\n" + alpha + proxy + "}\n", 200, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			const path = "/oauth2/realms/root/realms/alpha/access_token"
			g := startGateway(t, "store memory\n"+endpointOptions()+"realm beta {\n"+endpointClients()+"}\n", c.site)
			at := func(host, path string, form url.Values) answer {
				r := g.posting(path, "reader", testSecret, form)
				r.Host = host
				return g.do(r)
			}
			grant := url.Values{"grant_type": {"client_credentials"}}
			if c.fetches {
				wantToken(t, at("one.example", "/am/oauth2/access_token", grant), "read")
				wantToken(t, at("two.example", path, grant), "read")
			}
			for _, path := range []string{path, path + "?client_id=reader&client_secret=" + testSecret, strings.Replace(path, "access_token", "introspect", 1), "/x" + path} {
				g.Backend.forget()
				form := url.Values{"grant_type": {"client_credentials"}, "client_id": {"reader"}, "client_secret": {testSecret}, "token": {testSecret}}
				a := at("one.example", path, form)
				if strings.HasPrefix(path, "/x") {
					if a.StatusCode == 200 && a.Body != "backend" {
						t.Errorf("%s: %d %s", path, a.StatusCode, a.Body)
					}
				} else if a.StatusCode != c.alpha {
					t.Errorf("%s: %d %s, want %d", path, a.StatusCode, a.Body, c.alpha)
				}
				if a.StatusCode != 200 {
					if n := g.Backend.count(); n != 0 {
						t.Errorf("%s: the backend got it, although it was answered with %d", path, a.StatusCode)
					}
					continue
				}
				got := g.Backend.last(t)
				if got.Body != "" || strings.Contains(got.RequestURI, "?") || strings.Contains(fmt.Sprint(got), testSecret) || got.Header.Get("Authorization") != "" || strings.Contains(got.Header.Get("X-Told"), "Basic") {
					t.Errorf("%s: the backend got %+v", path, got)
				}
			}
		})
	}
}

// Nor does any get the token in a request that only a parameter of AM's tells from one that the first of them
// answers itself.
func TestMisdirectedTokensReachNoBackend(t *testing.T) {
	const atRoot = " {\nbase_path /\n}\n"
	g := startGateway(t, "store memory\nam_compat\n"+strings.Replace(endpointOptions(), "realm alpha {\n", "realm alpha {\nam_compat\n", 1),
		"@tell header X-Tell 1\nroute {\noauth_server root"+atRoot+"reverse_proxy @tell BACKEND\noauth_server alpha"+atRoot+"}")
	token := g.fetchAt("/realms/root/realms/alpha", "reader", "read")
	if a := g.get("/tokeninfo?realm=/alpha", token); a.StatusCode != 200 || a.json(t)["realm"] != "/alpha" {
		t.Errorf("at the other: %d %s", a.StatusCode, a.Body)
	}
	g.do(g.request("GET", "/tokeninfo?realm=/alpha", "", "Authorization", "Bearer "+token, "X-Tell", "1"))
	if got := g.Backend.last(t); got.Header.Get("Authorization") != "" {
		t.Errorf("the backend got %+v", got)
	}
}

// A handler before the first oauth_server may have copied the request. Then error routes, handlers that look at
// the answer, and placeholders go by another one than the routes. They don't get anything, either.
func TestMisdirectedSecretsReachNoCopy(t *testing.T) {
	const (
		root  = "oauth_server root {\nbase_path /am/oauth2\n}\n"
		alpha = "oauth_server alpha\n"
		path  = "/oauth2/realms/root/realms/alpha/access_token"
		told  = "reverse_proxy BACKEND {\nheader_up X-Told \"{http.request.body}{http.request.orig_uri}{http.request.uri}{http.request.header.Authorization}\"\n}\n"
	)
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {"reader"}, "client_secret": {testSecret}}
	for name, site := range map[string]string{
		"placeholders":             "route {\n" + root + told + alpha + "}",
		"placeholders of the copy": "route {\ntracing\n" + root + told + alpha + "}",
		"error routes":             "route {\ntracing\n" + root + "error 503\n" + alpha + "}\nhandle_errors {\nreverse_proxy BACKEND\n}",
		"error routes of a proxy":  "route {\ntracing\n" + root + "reverse_proxy 127.0.0.1:1\n" + alpha + "}\nhandle_errors {\nreverse_proxy BACKEND\n}",
		"answers that are changed": "route {\nintercept {\nhandle_response {\nreverse_proxy BACKEND\n}\n}\ntracing\n" + root + "respond 404\n" + alpha + "}",
	} {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t, "store memory\n"+endpointOptions(), site)
			for _, path := range []string{path, path + "?client_secret=" + testSecret} {
				a := g.post(path, "reader", testSecret, form)
				if g.Backend.count() == 0 {
					if a.StatusCode < 500 {
						t.Errorf("%s: %d %s, and the backend got nothing", path, a.StatusCode, a.Body)
					}
					continue
				}
				if got := fmt.Sprint(g.Backend.last(t)); strings.Contains(got, "client_secret") || strings.Contains(got, "Basic") {
					t.Errorf("%s: the backend got %s", path, got)
				}
				g.Backend.forget()
			}
		})
	}
}

// Handlers in front may replace an answer by that of a backend. It gets nothing of what was answered, either.
func TestAnsweredRequestsLeaveNoSecrets(t *testing.T) {
	const (
		another  = "intercept {\nhandle_response {\nreverse_proxy BACKEND\n}\n}\n"
		am, here = "oauth_server root {\nbase_path /am/oauth2\n}\n", "oauth_server alpha\n"
		path     = "/oauth2/realms/root/realms/alpha/"
	)
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {"reader"}, "client_secret": {testSecret}}
	for name, site := range map[string]string{
		"one":                              another + "oauth_server",
		"several":                          another + am + here,
		"several, with another in between": am + another + here,
	} {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t, "store memory\nam_compat\n"+strings.Replace(endpointOptions(), "realm alpha {\n", "realm alpha {\nam_compat\n", 1), "route {\n"+site+"\n}")
			for path, methods := range map[string]string{
				path + "access_token": "POST PUT", path + "access_token?client_secret=" + testSecret: "POST PUT", path + "introspect": "POST PUT",
				path + "tokeninfo?access_token=" + testSecret: "GET POST", "/oauth2/v1/token": "POST", "/oauth2/realms/gone/access_token": "POST", "/oauth2/realms/gone/access_token?client_secret=" + testSecret: "POST",
			} {
				for method := range strings.FieldsSeq(methods) {
					g.Backend.forget()
					r := g.posting(path, "reader", testSecret, form)
					r.Method = method
					a := g.do(r)
					if a.StatusCode == 404 && strings.HasPrefix(site, am) && g.Backend.count() == 0 {
						continue // the first of them answers it
					}
					if a.StatusCode != 200 || g.Backend.count() != 1 {
						t.Errorf("%s %s: %d %s, and the backend got %d requests", method, path, a.StatusCode, a.Body, g.Backend.count())
						continue
					}
					if got := fmt.Sprintf("%+v", g.Backend.last(t)); strings.Contains(got, testSecret) || strings.Contains(got, "Basic") {
						t.Errorf("%s %s: the backend got %s", method, path, got)
					}
				}
			}
		})
	}
}

// A body that is too large for any endpoint is refused where it would be held back.
func TestMisdirectedBodiesAreBounded(t *testing.T) {
	g := startGateway(t, "store memory\n"+endpointOptions(), "route {\noauth_server root {\nbase_path /am/oauth2\n}\nreverse_proxy BACKEND\noauth_server alpha\n}")
	for _, length := range []int64{64<<10 + 1, -1} {
		r := g.posting("/oauth2/realms/root/realms/alpha/access_token", "reader", testSecret, url.Values{"a": {strings.Repeat("a", 64<<10-1)}})
		r.ContentLength = length
		a := g.do(r)
		if want := `{"error":"invalid_request","error_description":"the body is larger than 64 KiB"}`; a.StatusCode != 413 || a.Body != want {
			t.Errorf("%d %s", a.StatusCode, a.Body)
		}
		wantHeaders(t, a)
	}
	if n := g.Backend.count(); n != 0 {
		t.Errorf("%d requests reached the backend", n)
	}
}

// What lies between two oauth_server may decide whether a request comes to the second, and so may its query.
func TestMisdirectedRequestsComeToTheOther(t *testing.T) {
	const (
		root = "oauth_server root {\nbase_path /am/oauth2\n}\n"
		path = "/oauth2/realms/root/realms/alpha/access_token"
	)
	for name, c := range map[string]struct{ options, site, path string }{
		"a header":               {"", "@alpha header X-Realm alpha\nroute {\n" + root + "request_header X-Realm alpha\noauth_server @alpha alpha\nreverse_proxy BACKEND\n}", path},
		"a variable":             {"", "@alpha vars realm alpha\nroute {\nroute {\n" + root + "vars realm alpha\n}\noauth_server @alpha alpha\nreverse_proxy BACKEND\n}", path},
		"credentials of its own": {"", "route {\n" + root + "request_header Authorization \"" + basic("reader", testSecret) + "\"\noauth_server alpha\nreverse_proxy BACKEND\n}", path},
		"the realm in the query": {"am_compat\n", "@alpha query realm=/alpha\nroute {\noauth_server root\noauth_server @alpha alpha\nreverse_proxy BACKEND\n}", "/oauth2/access_token?realm=/alpha"},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t, "store memory\n"+c.options+strings.Replace(endpointOptions(), "realm alpha {\n", "realm alpha {\n"+c.options, 1), c.site)
			secret := testSecret
			if name == "credentials of its own" {
				secret = "another" // than what the handler between them sets
			}
			if a := g.post(c.path, "reader", secret, url.Values{"grant_type": {"client_credentials"}}); a.StatusCode != 200 || a.json(t)["access_token"] == nil {
				t.Errorf("%d %s", a.StatusCode, a.Body)
			}
			if n := g.Backend.count(); n != 0 {
				t.Errorf("%d requests reached the backend", n)
			}
		})
	}
}

// What is held back from what lies between two oauth_server is whole again at the second.
func TestMisdirectedRequestsAreWholeAtTheOther(t *testing.T) {
	g := startGateway(t, "store memory\nam_compat {\ncredentials_in_query\n}\n"+endpointOptions(),
		"route {\noauth_server root {\nbase_path /am/oauth2\n}\nrequest_header X-Between 1\nhandle_path /sso/* {\noauth_server alpha\n}\noauth_server alpha\nreverse_proxy BACKEND\n}")
	for _, path := range []string{"/oauth2/realms/root/realms/alpha/access_token", "/sso/oauth2/realms/root/realms/alpha/access_token"} {
		wantToken(t, g.post(path, "reader", testSecret, url.Values{"grant_type": {"client_credentials"}}), "read")
		inBody := url.Values{"grant_type": {"client_credentials"}, "client_id": {"reader"}, "client_secret": {testSecret}}
		wantToken(t, g.post(path, "", "", inBody), "read")
		chunked := g.posting(path, "", "", inBody)
		chunked.ContentLength = -1
		wantToken(t, g.do(chunked), "read")
		inQuery := g.posting(path+"?client_id=reader&client_secret="+testSecret, "", "", url.Values{"grant_type": {"client_credentials"}})
		wantToken(t, g.do(inQuery), "read")
	}
	if n := g.Backend.count(); n != 0 {
		t.Errorf("%d requests reached the backend", n)
	}
}

// Operators see which requests missed the endpoints, but not what was sent.
func TestMisdirectedRequestsAreLoggedAndCounted(t *testing.T) {
	g, logged := startLogged(t, "store memory\n"+testClients, "metrics /metrics\noauth_server\nreverse_proxy BACKEND")
	const counter = `caddy_oauth_requests_total{endpoint="%s",realm="None",result="no_such_endpoint"}`
	for path, kind := range map[string]string{
		"/oauth2/alpha/access_token": "token", "/oauth2/alpha/introspect": "introspect", "/oauth2/alpha/token/revoke": "revoke",
		"/oauth2/access_token%3Fclient_id=reader&client_secret=" + testSecret: "token",
		"/oauth2/token;client_secret=" + testSecret:                           "token",
	} {
		sample := fmt.Sprintf(counter, kind)
		before := 0.0
		if strings.Contains(g.get("/metrics", "").Body, sample) {
			before = g.metricOf(sample)
		}
		g.post(path, "reader", testSecret, url.Values{"client_secret": {testSecret}})
		if got := g.metricOf(sample) - before; got != 1 {
			t.Errorf("%s was counted %v times", path, got)
		}
		meant, _, _ := strings.Cut(path, "%3F")
		meant, _, _ = strings.Cut(meant, ";")
		line := fmt.Sprintf(`"event":"no_such_endpoint","endpoint":%q,"path":%q`, kind, meant)
		if !strings.Contains(logged(), line) {
			t.Errorf("the log has no line with %s", line)
		}
	}
	if strings.Contains(logged(), "client_secret=") {
		t.Error("the log holds a secret")
	}
}
