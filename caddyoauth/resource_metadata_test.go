package caddyoauth_test

import (
	"net/http"
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

// A route for tokens from elsewhere names their issuer.
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
