package caddyoauth_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

// The identity headers of every prefix are removed on every site, since a backend may be shared
// with the site whose headers it believes.
func TestAllPrefixesAreRemovedEverywhere(t *testing.T) {
	for name, site := range map[string]string{
		"a guard":          "oauth_protect /api/* {\nheader_prefix X-Partner-\n}\nreverse_proxy BACKEND",
		"a server":         "oauth_server\nhandle /api/* {\noauth_protect {\nheader_prefix X-Partner-\n}\n}\nreverse_proxy BACKEND",
		"an open handle":   "handle /api/* {\noauth_protect {\nheader_prefix X-Partner-\n}\nreverse_proxy BACKEND\n}\nhandle {\nreverse_proxy BACKEND\n}",
		"a site beside it": "reverse_proxy BACKEND\n}\nhttp://partners.test:0 {\nbind 127.0.0.1\noauth_protect {\nheader_prefix X-Partner-\n}",
	} {
		t.Run(name, func(t *testing.T) {
			g := startCaddyfile(t, strings.Replace(caddyfileOf("store memory\n"+testClients, site), ":0 {", "http://localhost:0 {", 1))
			if a := g.rawRequest("GET /open", "X-OAuth-Client-Id: admin", "X-Partner-Client-Id: admin", "X!Partner!Client!Id: admin"); a.StatusCode != 200 || a.Body != "backend" {
				t.Fatalf("%d %q", a.StatusCode, a.Body)
			}
			checkNoIdentity(t, g.Backend.last(t).Header, "X-Oauth-")
			checkNoIdentity(t, g.Backend.last(t).Header, "X-Partner-")
		})
	}
}

// A path that one rule allows is still checked by a stricter one.
func TestStricterRuleJudgesEveryPath(t *testing.T) {
	for name, site := range map[string]string{
		"its guard":                 "oauth_server /oauth2/*\noauth_protect {\nallow_ambiguous_paths\n}\noauth_protect /admin/* {\nscopes write\n}\nreverse_proxy BACKEND",
		"an oauth_server behind it": "oauth_server /oauth2/*\nhandle /admin/* {\noauth_protect {\nscopes write\n}\n}\nhandle {\nroute {\noauth_protect {\nallow_ambiguous_paths\n}\noauth_server\nreverse_proxy BACKEND\n}\n}",
	} {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t, "store memory\n"+testClients, site)
			reader, writer := g.token("reader"), g.token("writer", "write")
			for _, token := range []string{reader, writer} {
				for _, path := range []string{"/x/..;/admin/secret", "/x//admin/secret", "/x/%2e%2e/admin/secret"} {
					if a := g.rawRequest("GET "+path, "Authorization: Bearer "+token); a.StatusCode != 400 {
						t.Errorf("%s: %d, the backend got %v", path, a.StatusCode, g.Backend.last(t))
					}
				}
			}
			if n := g.Backend.count(); n != 0 {
				t.Errorf("%d requests reached the backend", n)
			}
			// The identity that the lenient rule has set stays.
			if a := g.get("/x", reader); a.StatusCode != 200 || g.Backend.last(t).Header.Get("X-OAuth-Client-Id") != "reader" {
				t.Errorf("a plain path: %d, the backend got %v", a.StatusCode, g.Backend.last(t))
			}
			if a := g.get("/admin/secret", reader); a.StatusCode != 403 {
				t.Errorf("the stricter rule's path: %d", a.StatusCode)
			}
		})
	}
}

// overrideHeaders are those that some backends obey instead of the method and the path.
var overrideHeaders = []string{
	"X-Original-URL", "X-Rewrite-URL", "X-Original-URI", "X-Script-Name", "X-Forwarded-Prefix",
	"X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override",
}

// overrides counts the override headers in h.
func overrides(h http.Header) (n int) {
	for name := range h {
		if slices.ContainsFunc(overrideHeaders, func(o string) bool { return folded(name) == folded(o) }) {
			n++
		}
	}
	return n
}

// Headers with odd characters in their names are removed altogether, since some backend could take
// them for an override, for the operator's own header, or for the proxy's.
func TestNamesWithOddCharacters(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, `
		oauth_server
		oauth_protect /api/* {
			keep_override_headers
		}
		request_header Remote-User operator
		reverse_proxy BACKEND`)
	token := g.token("reader")
	for _, sign := range "!#$%&'*+^`|~" {
		var lines []string
		for _, name := range []string{"Remote-User", "X-Forwarded-For", "X-Original-URL", "X-HTTP-Method-Override", "Content-Type", "-Any"} {
			lines = append(lines, strings.ReplaceAll(name, "-", string(sign))+": odd")
		}
		for _, path := range []string{"/api/x", "/open"} {
			g.rawRequest("GET "+path, append(lines, "X-Plain: 1", "Authorization: Bearer "+token)...)
			got := g.Backend.last(t).Header
			for name, values := range got {
				if slices.Contains(values, "odd") {
					t.Errorf("%s: the backend was told %s", path, name)
				}
			}
			if got.Get("Remote-User") != "operator" || got.Get("X-Plain") != "1" {
				t.Errorf("%s: the backend was told %v", path, got)
			}
		}
	}
}

// We check the method and the path of the request, so no header may replace them, unless a route
// says that its backend needs such headers.
func TestOverrideHeaders(t *testing.T) {
	const keep = "{\nkeep_override_headers\n}"
	for _, tt := range []struct {
		name, site string
		path       string
		token      bool
		kept       bool
	}{
		{"a protected route", "oauth_server\noauth_protect\nreverse_proxy BACKEND", "/x", true, false},
		{"a path that a matcher leaves out", "oauth_server /oauth2/*\noauth_protect /api/*\nreverse_proxy BACKEND", "/x", false, false},
		{"a path that oauth_server passes on", "oauth_server\nhandle /api/* {\noauth_protect\n}\nreverse_proxy BACKEND", "/x", false, false},
		{"a route that keeps them", "oauth_server\noauth_protect " + keep + "\nreverse_proxy BACKEND", "/x", true, true},
		{"a route with a matcher that keeps them", "oauth_server\noauth_protect /api/* " + keep + "\nreverse_proxy BACKEND", "/api/x", true, true},
		{"a path that the matcher of such a route leaves out", "oauth_server\noauth_protect /api/* " + keep + "\nreverse_proxy BACKEND", "/x", false, false},
		{"the same without oauth_server", "oauth_server /oauth2/*\noauth_protect /api/* " + keep + "\nreverse_proxy BACKEND", "/x", false, false},
		{"the same with a token", "oauth_server\noauth_protect /api/* " + keep + "\nreverse_proxy BACKEND", "/x", true, false},
		{"a route that keeps them beside a stricter one", "oauth_server\noauth_protect /api/* " + keep + "\noauth_protect /admin/*\nreverse_proxy BACKEND", "/api/x", true, false},
		{"a stricter one's guard comes first", "oauth_server\nroute {\noauth_protect /admin/*\noauth_protect " + keep + "\n}\nreverse_proxy BACKEND", "/api/x", true, false},
		{"two routes that both keep them", "oauth_server\noauth_protect /api/* " + keep + "\noauth_protect " + keep + "\nreverse_proxy BACKEND", "/api/x", true, true},
		{"two routes, of which the first does not", "oauth_server\noauth_protect /api/*\noauth_protect " + keep + "\nreverse_proxy BACKEND", "/api/x", true, false},
		{"two routes, of which the second does not", "oauth_server\noauth_protect /api/* " + keep + "\noauth_protect\nreverse_proxy BACKEND", "/api/x", true, false},
		{"a refusal's error page", "oauth_server\noauth_protect " + keep + "\nhandle_errors {\nreverse_proxy BACKEND\n}", "/x", false, false},
		{"another error's page", "oauth_server\noauth_protect " + keep + "\nroute {\nerror 500\n}\nhandle_errors {\nreverse_proxy BACKEND\n}", "/x", true, false},
		{"a site without our handlers on the same listener", "reverse_proxy BACKEND\n}\nhttp://other.test:0 {\nbind 127.0.0.1\noauth_server\noauth_protect", "/x", false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := caddyfileOf("store memory\n"+testClients, tt.site)
			if strings.Contains(tt.site, "other.test") {
				config = strings.Replace(config, ":0 {", "http://localhost:0 {", 1)
			}
			g := startCaddyfile(t, config)
			var lines []string
			if tt.token {
				lines = append(lines, "Authorization: Bearer "+g.token("reader"))
			}
			for _, name := range overrideHeaders {
				lines = append(lines, name+": /admin/secret")
			}
			g.rawRequest("GET "+tt.path, lines...)
			want := 0
			if tt.kept {
				want = len(overrideHeaders)
			}
			if got := g.Backend.last(t); overrides(got.Header) != want {
				t.Errorf("%d of %d override headers reached the backend, want %d: %v", overrides(got.Header), len(overrideHeaders), want, got.Header)
			}
		})
	}
}

// A proxy that Caddy trusts may say which prefix it has stripped.
func TestTrustedProxyMaySetAPrefix(t *testing.T) {
	for _, trusted := range []bool{true, false} {
		globals := ""
		if trusted {
			globals = "servers {\ntrusted_proxies static 127.0.0.0/8\n}"
		}
		g := startCaddyfile(t, withGlobals(globals, "store memory\n"+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND"))
		g.do(g.request("GET", "/x", "", "Authorization", "Bearer "+g.token("reader"), "X-Forwarded-Prefix", "/shop", "X-Original-URL", "/x"))
		if h := g.Backend.last(t).Header; (h.Get("X-Forwarded-Prefix") == "/shop") != trusted || h.Get("X-Original-URL") != "" {
			t.Errorf("trusted %v: the backend was told %v", trusted, h)
		}
	}
}
