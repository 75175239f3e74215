package caddyoauth_test

import (
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// A program that knows only the URL of an API finds who issues its tokens, from the challenge alone
// (RFC 9728).
func TestProtectedResourceMetadata(t *testing.T) {
	g := startGateway(t, "store memory\nissuer "+testIssuer+"\nrealm alpha {\nissuer https://alpha.example.com\n"+testClients+"}\n"+testClients, `oauth_server
		handle /v1/* {
			oauth_protect {
				resource http://127.0.0.1/v1
				scopes read
				on POST {
					any_scope write admin
				}
			}
			reverse_proxy BACKEND
		}
		handle /v2/* {
			oauth_protect alpha {
				resource http://127.0.0.1/v1
				scopes read list
			}
			reverse_proxy BACKEND
		}
		handle /root {
			oauth_protect {
				resource http://localhost:80/
			}
			reverse_proxy BACKEND
		}
		handle {
			oauth_protect
			reverse_proxy BACKEND
		}`)
	ask := func(method, path, host string) answer {
		t.Helper()
		r := g.request(method, path, "")
		r.Host = host
		return g.do(r)
	}
	const v1 = `{"resource":"http://127.0.0.1/v1","authorization_servers":["` + testIssuer + `","https://alpha.example.com"],"scopes_supported":["read","write","admin","list"],"bearer_methods_supported":["header"]}`
	for _, c := range []struct {
		method, path, host string
		status             int
		body               string
	}{
		{"GET", "/.well-known/oauth-protected-resource/v1", "127.0.0.1", 200, v1},
		{"GET", "/.well-known/oauth-protected-resource/v1", "127.0.0.1:80", 200, v1},
		{"HEAD", "/.well-known/oauth-protected-resource/v1", "127.0.0.1", 200, ""},
		{"GET", "/.well-known/oauth-protected-resource", "localhost", 200, `{"resource":"http://localhost:80/","authorization_servers":["` + testIssuer + `"],"bearer_methods_supported":["header"]}`},
		{"POST", "/.well-known/oauth-protected-resource/v1", "127.0.0.1", 405, ""},
		// Anything else is a request like any other.
		{"GET", "/.well-known/oauth-protected-resource/v1", "evil.example", 401, ""},
		{"GET", "/.well-known/oauth-protected-resource/v1/", "127.0.0.1", 401, ""},
		{"GET", "/.well-known/oauth-protected-resource/V1", "127.0.0.1", 401, ""},
		{"GET", "/.well-known/oauth-protected-resource/v2", "127.0.0.1", 401, ""},
		{"GET", "/.well-known/oauth-protected-resource", "127.0.0.1", 401, ""},
		{"GET", "/v1/.well-known/oauth-protected-resource", "127.0.0.1", 401, ""},
	} {
		a := ask(c.method, c.path, c.host)
		if a.StatusCode != c.status || a.Body != c.body {
			t.Errorf("%s %s at %s: %d %s, want %d %s", c.method, c.path, c.host, a.StatusCode, a.Body, c.status, c.body)
		}
		if c.status == 200 && (a.Header.Get("Content-Type") != "application/json" || a.Header.Get("Access-Control-Allow-Origin") != "*" || a.Header.Get("Cache-Control") != "public, max-age=300") {
			t.Errorf("%s %s has the headers %v", c.method, c.path, a.Header)
		}
	}

	// The challenge names it, whatever the caller calls this host.
	const named = `resource_metadata="http://127.0.0.1/.well-known/oauth-protected-resource/v1"`
	for what, r := range map[string]*http.Request{
		"no token":          g.request("GET", "/v1/x", ""),
		"a bad token":       g.request("GET", "/v1/x", "", "Authorization", "Bearer x"),
		"a malformed one":   g.request("GET", "/v1/x", "", "Authorization", "Bearer x y"),
		"too little scope":  g.request("POST", "/v1/x", "", "Authorization", "Bearer "+g.token("reader")),
		"of the other rule": g.request("GET", "/v2/x", ""),
	} {
		r.Host = "evil.example"
		r.Header.Set("X-Forwarded-Host", "evil.example")
		if challenge := g.do(r).Header.Get("WWW-Authenticate"); !strings.Contains(challenge, named) || strings.Contains(challenge, "evil") {
			t.Errorf("%s: the challenge is %s, want %s in it", what, challenge, named)
		}
	}
	if challenge := g.get("/other", "").Header.Get("WWW-Authenticate"); strings.Contains(challenge, "resource_metadata") {
		t.Errorf("a route without a resource has the challenge %s", challenge)
	}
}

// A program that has been refused learns which scopes to ask for: those that its request needs, of all
// the rules that it meets. There are other methods and other routes, so these are not all that the
// resource has.
func TestChallengeNamesTheScopes(t *testing.T) {
	g := startGateway(t, "store memory\nissuer "+testIssuer+"\n"+testClients, `oauth_server
		handle /v1/* {
			oauth_protect {
				basic
				resource http://127.0.0.1/v1
				scopes read
				on PUT {
					scopes write admin
				}
				on POST {
					any_scope write admin
				}
				on DELETE {
					any_scope admin
				}
			}
			oauth_protect /v1/list {
				resource http://127.0.0.1/v1
				scopes list read
			}
			oauth_protect /v1/tried {
				resource http://127.0.0.1/v1
				report_only
				scopes tried
			}
			reverse_proxy BACKEND
		}
		handle /open {
			oauth_protect {
				resource http://127.0.0.1/open
			}
			reverse_proxy BACKEND
		}
		handle {
			oauth_protect {
				scopes read
			}
			reverse_proxy BACKEND
		}`)
	const metadata = `Bearer realm="root", resource_metadata="http://127.0.0.1/.well-known/oauth-protected-resource`
	for _, c := range []struct{ method, path, authorization, want string }{
		{"GET", "/v1/x", "", metadata + `/v1", scope="read"`},
		{"GET", "/v1/x", "Bearer x", metadata + `/v1", error="invalid_token", error_description="the token is not valid here", scope="read"`},
		{"GET", "/v1/x", "Basic cmVhZGVyOng=", metadata + `/v1", scope="read"`},
		{"PUT", "/v1/x", "", metadata + `/v1", scope="admin write"`},
		{"POST", "/v1/x", "", metadata + `/v1"`},
		{"DELETE", "/v1/x", "", metadata + `/v1", scope="admin read"`},
		{"GET", "/v1/list", "", metadata + `/v1", scope="list read"`},
		{"GET", "/v1/tried", "", metadata + `/v1", scope="read"`},
		{"GET", "/open", "", metadata + `/open"`},
		{"GET", "/elsewhere", "", `Bearer realm="root"`},
		{"GET", "/v1/x", "Bearer x y", metadata + `/v1", error="invalid_request", error_description="the request must carry exactly one well-formed bearer token"`},
	} {
		r := g.request(c.method, c.path, "")
		if c.authorization != "" {
			r.Header.Set("Authorization", c.authorization)
		}
		if got := g.do(r).Header.Get("WWW-Authenticate"); got != c.want {
			t.Errorf("%s %s with %q: the challenge is\n%s\nwant\n%s", c.method, c.path, c.authorization, got, c.want)
		}
	}
}

// What docs/configuration.md says about a resource is so, in the configuration that it shows.
func TestManualOnResources(t *testing.T) {
	const file, resource, other = "docs/configuration.md", "https://api.example.com/v1", "https://other.example/v1"
	_, section, _ := strings.Cut(readDocument(t, file), "\n### Resource metadata\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var site string
	for _, b := range docBlocks(t, file) {
		if strings.Contains(section, b.text) && strings.Contains(b.text, "resource "+resource) {
			site = strings.Replace(b.text, "127.0.0.1:9000", "BACKEND", 1)
		}
	}
	client := "client c {\nsecret_hash " + hashOf(testSecret) + "\nscopes read write\ndefault_scopes read\naudience " + resource + " " + other + "\n}\n"
	options := "store memory\nissuer " + testIssuer + "\n" + client
	g := startGateway(t, options, site)
	ask := func(method, path, host string, headers ...string) answer {
		t.Helper()
		r := g.request(method, path, "", headers...)
		r.Host = host
		return g.do(r)
	}
	const document = "/.well-known/oauth-protected-resource/v1"

	// The challenge, as it is quoted.
	quoted := regexp.MustCompile("`((?:resource_metadata|scope)=\"[^`]+)`").FindAllStringSubmatch(section, -1)
	if len(quoted) != 2 {
		t.Errorf("it quotes %q", quoted)
	}
	challenge := ask("GET", "/v1/x", "api.example.com").Header.Get("WWW-Authenticate")
	for _, m := range quoted {
		if !strings.Contains(challenge, m[1]) {
			t.Errorf("the challenge is %s, without %s", challenge, m[1])
		}
	}

	// The document, without a token: each member that is named, and the value that is given.
	described := ask("GET", document, "api.example.com").json(t)
	want := map[string]any{"resource": resource, "authorization_servers": []any{testIssuer}, "scopes_supported": []any{"read"}, "bearer_methods_supported": []any{"header"}}
	if !reflect.DeepEqual(described, want) {
		t.Errorf("the document is %v, want %v", described, want)
	}
	for member := range want {
		if member != "bearer_methods_supported" && !strings.Contains(section, "`"+member+"`") {
			t.Errorf("%s is not explained", member)
		}
	}

	// What callers send makes no difference to it.
	evil := []string{"X-Forwarded-Host", "evil.example", "X-Forwarded-Proto", "http", "Forwarded", "host=evil.example", "X-Original-Url", "/evil"}
	if a := ask("GET", document+"?resource=https://evil.example", "api.example.com", evil...); a.StatusCode != 200 || !reflect.DeepEqual(a.json(t), want) {
		t.Errorf("asked otherwise, it is %d %s", a.StatusCode, a.Body)
	}

	// A program that asks for the resource gets a token for it, and audience is what demands one.
	token := func(resources ...string) string {
		t.Helper()
		a := g.post("/oauth2/access_token", "c", testSecret, url.Values{"grant_type": {"client_credentials"}, "resource": resources})
		return wantToken(t, a, "read")
	}
	tokens := map[string]string{"the resource": token(resource), "both": token(), "another one": token(other)}
	for name, token := range tokens {
		status := 200
		if name == "another one" {
			status = 401
		}
		if got := g.get("/v1/x", token).StatusCode; got != status {
			t.Errorf("a token for %s gets %d, want %d", name, got, status)
		}
	}
	wantE(t, g.post("/oauth2/access_token", "c", testSecret, url.Values{"grant_type": {"client_credentials"}, "resource": {resource + "/x"}}), 400, "invalid_target")

	// Without audience, resource is no rule. Placeholders may be in it, and a route that matches
	// everything doesn't keep the document from those who ask for it at its host.
	t.Setenv("API_HOST", "api.example.com")
	site = strings.NewReplacer("audience "+resource+"\n", "", "resource https://api.example.com/", "resource https://{env.API_HOST}/").Replace(site)
	if err := g.load(options, "handle /.well-known/* {\nrespond first 418\n}\n"+site); err != nil {
		t.Fatal(err)
	}
	if got := g.get("/v1/x", token(other)).StatusCode; got != 200 {
		t.Errorf("without audience, a token for another resource gets %d", got)
	}
	if a := ask("GET", document, "api.example.com"); a.StatusCode != 200 || !reflect.DeepEqual(a.json(t), want) {
		t.Errorf("behind another route, it is %d %s", a.StatusCode, a.Body)
	}
	if got := ask("GET", document, "other.example.com").StatusCode; got != 418 {
		t.Errorf("at another host, it is %d", got)
	}

	// If a request meets two, the first that refuses it makes the challenge.
	if err := g.load(options, "handle /v1/* {\nroute {\noauth_protect\noauth_protect {\nresource "+resource+"\n}\n}\n}"); err != nil {
		t.Fatal(err)
	}
	if got := g.get("/v1/x", "").Header.Get("WWW-Authenticate"); got != `Bearer realm="root"` {
		t.Errorf("the first of two makes the challenge %s", got)
	}
}

// A route for tokens from elsewhere names their issuer, whatever the source is.
func TestProtectedResourceOfOthers(t *testing.T) {
	f := newForeign(t)
	g := startGateway(t, "", `oauth_protect {
			resource http://127.0.0.1/
			source jwt `+f.URL+`
		}
		reverse_proxy BACKEND`)
	r := g.request("GET", "/.well-known/oauth-protected-resource", "")
	r.Host = "127.0.0.1"
	if a := g.do(r); a.StatusCode != 200 || !strings.Contains(a.Body, `"authorization_servers":["`+f.URL+`"]`) {
		t.Errorf("%d %s", a.StatusCode, a.Body)
	}
}

func TestResourceThatIsNone(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "reverse_proxy BACKEND")
	for identifier, want := range map[string]string{
		"http://api.example.com/v1":     "https URL",
		"https://api.example.com/v1#":   "no user, query or fragment",
		"https://api.example.com/?x=1":  "no user, query or fragment",
		"https://a:canary@example.com/": "no user, query or fragment",
		"/v1":                           "must have a host",
		"api.example.com":               "must have a host",
		"https://api.example.com/ä":     "not allowed in a URL",
		"{env.NOT_SET_ANYWHERE}":        "resource",
	} {
		err := g.load("store memory\nissuer "+testIssuer+"\n"+testClients, "oauth_protect {\nresource "+identifier+"\n}\nreverse_proxy BACKEND")
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v, want %q", identifier, err, want)
		}
	}
	if err := g.load("store memory\n"+testClients, "oauth_protect {\nresource https://api.example.com/v1\n}\nreverse_proxy BACKEND"); err == nil || !strings.Contains(err.Error(), "give the realm an issuer") {
		t.Errorf("without an issuer: %v", err)
	}
}
