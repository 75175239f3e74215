package caddyoauth_test

import (
	"net/http"
	"strings"
	"testing"
)

// What ForgeRock IG says in its challenges.
const (
	igRequest    = `Bearer realm="IG", error="invalid_request", error_description="The request is missing a required parameter, includes an unsupported parameter or parameter value, repeats the same parameter, uses more than one method for including an access token, or is otherwise malformed."`
	igToken      = `Bearer realm="IG", error="invalid_token", error_description="The access token provided is expired, revoked, malformed, or invalid for other reasons."`
	igPrivileges = `error="insufficient_scope", error_description="The request requires higher privileges than provided by the access token."`
)

// With ig_challenges, each challenge is IG's to the byte, and all else is as it is without: the status,
// the empty body, and the answers of which IG has no like.
func TestIGChallenges(t *testing.T) {
	f := newForeign(t)
	f.knows("reader", `{"active":true,"exp":4102444800,"client_id":"remote","scope":"read","iss":"https://as.example.com"}`)
	f.knows("dead", `{"active":true,"exp":1,"client_id":"remote","scope":"read"}`)
	routes := map[string]string{
		"plain": "scopes read", "scopes": "scopes write read admin", "any": "any_scope write admin", "claim": "claim tenant a",
		"on":       "scopes read\non POST {\nscopes write\n}",
		"optional": "optional", "reported": "report_only\nscopes write",
		"resource": "resource https://api.example.com/r",
	}
	site := func(option string) (site string) {
		for path, block := range routes {
			site += "handle_path /" + path + "/* {\noauth_protect {\n" + f.introspect("issuer https://as.example.com") + block + "\ndpop off\n" + option + "\n}\nrespond ok\n}\n"
		}
		return site + "handle_path /bound/* {\noauth_protect {\n" + option + "\ndpop {\norigin " + dpopOrigin + "\n}\n}\nrespond ok\n}\n" +
			"handle_path /basic/* {\noauth_protect {\n" + option + "\nbasic\ndpop off\n}\nrespond ok\n}\n"
	}
	const oauth = "store memory\ndpop\nlimit failures off\nissuer https://auth.example.com/oauth2\n" + testClients
	const ours = `Bearer realm="External"`
	const noRequest, noToken = `, error="invalid_request", error_description="the request must carry exactly one well-formed bearer token"`, `, error="invalid_token", error_description="the token is not valid here"`
	const ourScope = ours + `, error="insufficient_scope", error_description="the token lacks a scope", scope=`
	// Each case has what is answered without the option, and with it.
	cases := []struct {
		what, method, path string
		authorization      []string
		status             int
		off, on            string
	}{
		{"a good token", "GET", "/plain/", []string{"Bearer reader"}, 200, "", ""},
		{"no token", "GET", "/plain/", nil, 401, ours, `Bearer realm="IG"`},
		{"another scheme", "GET", "/plain/", []string{"Basic YTpi"}, 401, ours, `Bearer realm="IG"`},
		{"two headers", "GET", "/plain/", []string{"Bearer reader", "Bearer reader"}, 400, ours + noRequest, igRequest},
		{"two tokens", "GET", "/plain/", []string{"Bearer reader reader"}, 400, ours + noRequest, igRequest},
		{"unknown", "GET", "/plain/", []string{"Bearer unknown"}, 401, ours + noToken, igToken},
		{"expired", "GET", "/plain/", []string{"Bearer dead"}, 401, ours + noToken, igToken},
		{"malformed", "GET", "/plain/", []string{"Bearer $"}, 401, ours + noToken, igToken},
		{"too few scopes", "GET", "/scopes/", []string{"Bearer reader"}, 403, ourScope + `"admin read write"`, `Bearer realm="IG", scope="admin read write", ` + igPrivileges},
		{"none of the scopes", "GET", "/any/", []string{"Bearer reader"}, 403, ourScope + `"admin write"`, `Bearer realm="IG", scope="admin write", ` + igPrivileges},
		{"no claim", "GET", "/claim/", []string{"Bearer reader"}, 403, ours + `, error="insufficient_scope", error_description="the token lacks a claim"`, `Bearer realm="IG", ` + igPrivileges},
		{"a method", "GET", "/on/", []string{"Bearer reader"}, 200, "", ""},
		{"another method", "POST", "/on/", []string{"Bearer reader"}, 403, ourScope + `"write"`, `Bearer realm="IG", scope="write", ` + igPrivileges},
		{"optional, none", "GET", "/optional/", nil, 200, "", ""},
		{"optional, and bad", "GET", "/optional/", []string{"Bearer unknown"}, 401, ours + noToken, igToken},
		{"only reported", "GET", "/reported/", []string{"Bearer reader"}, 200, "", ""},
		{"an ambiguous path", "GET", "/plain/a;b", []string{"Bearer reader"}, 400, "", ""},
		{"a resource", "GET", "/resource/", nil, 401, ours + `, resource_metadata="https://api.example.com/.well-known/oauth-protected-resource/r"`, `Bearer realm="IG", resource_metadata="https://api.example.com/.well-known/oauth-protected-resource/r"`},
		{"Basic where it is taken", "GET", "/basic/", nil, 401, `Bearer realm="root" | Basic realm="root", charset="UTF-8"`, `Bearer realm="IG" | Basic realm="root", charset="UTF-8"`},
		{"DPoP", "GET", "/bound/", []string{"Bearer unknown"}, 401, `Bearer realm="root"` + noToken + ` | DPoP realm="root", ` + dpopAlgs, igToken + ` | DPoP realm="IG", ` + dpopAlgs},
		{"nobody can find out", "GET", "/plain/", []string{"Bearer away"}, 503, "", ""},
	}
	g := startGateway(t, oauth, site(""))
	for _, option := range []string{"", "ig_challenges", "ig_challenges \"The Gateway\""} {
		if err := g.load(oauth, site(option)); err != nil {
			t.Fatal(err)
		}
		for _, c := range cases {
			f.away.Store(c.status == 503)
			r := g.request(c.method, c.path, "")
			r.Header["Authorization"] = c.authorization
			a := g.do(r)
			want := c.on
			switch option {
			case "":
				want = c.off
			case "ig_challenges":
			default:
				want = strings.ReplaceAll(want, `"IG"`, `"The Gateway"`)
			}
			if a.StatusCode != c.status || a.challenges() != want {
				t.Errorf("%q, %s: %d %s\nwant %d %s", option, c.what, a.StatusCode, a.challenges(), c.status, want)
			}
			if c.status != 200 && (a.Body != "" || a.Header.Get("Cache-Control") != "no-store") {
				t.Errorf("%q, %s: %q, %v", option, c.what, a.Body, a.Header)
			}
			if c.status == http.StatusServiceUnavailable && a.Header.Get("Retry-After") == "" {
				t.Errorf("%q, %s: %v", option, c.what, a.Header)
			}
		}
	}
}
