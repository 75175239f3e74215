package caddyoauth_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
)

// expectClients are the clients of these tests, without the end of their block.
const expectClients = `store memory
client reports {
	secret_hash ` + testHash + `
	scopes read
	default_scopes read
	audience https://api.example.com
}
client both {
	secret_hash ` + testHash + `
	scopes read admin
}
client off {
	disabled
	scopes read
}
`

const expectSite = `bind 127.0.0.1
oauth_server
oauth_protect /orders* {
	on GET HEAD {
		scopes read
	}
	on * {
		scopes write
	}
}
@except not method GET HEAD POST PUT PATCH DELETE OPTIONS PURGE
respond @except "what nobody thought of" 200
reverse_proxy BACKEND
`

// expecting is an oauth block with expectations.
func expecting(lines ...string) string {
	return expectClients + "expect {\n" + strings.Join(lines, "\n") + "\n}"
}

// What a configuration expects is checked when it starts.
func TestExpectationsAreChecked(t *testing.T) {
	const host = "http://127.0.0.1:8080"
	for _, c := range []struct {
		name, line, site string
		broken           []string // what the error has; none if the expectation holds
	}{
		{"a client passes", "reports GET " + host + "/orders pass", "", nil},
		{"a client lacks a scope", "reports POST " + host + "/orders 403", "", nil},
		{"nobody has no token", "anonymous * " + host + "/orders 401", "", nil},
		{"a disabled client", "off GET " + host + "/orders 401", "", nil},
		{"from another machine without TLS", "reports GET http://api.example.com:8080/orders 403", "", nil},
		{"with TLS", "reports GET https://api.example.com:8080/orders pass", "", nil},
		{"an answer of Caddy's", "anonymous GET " + host + "/up 204", "respond /up 204\n" + expectSite, nil},
		{"a token with fewer scopes passes", "both GET " + host + "/x pass", "route {\noauth_protect\n@admin oauth_scope admin\nrespond @admin 403\nreverse_proxy BACKEND\n}", nil},
		{"a token with fewer scopes passes, so the status of the best is not what the client gets", "both GET " + host + "/x 403", "route {\noauth_protect\n@admin oauth_scope admin\nrespond @admin 403\nreverse_proxy BACKEND\n}",
			[]string{"It passes"}},

		{"a client that should pass doesn't", "reports PUT " + host + "/orders pass", "",
			[]string{"expect at Caddyfile:", "is broken: reports PUT", "wants scopes write", "wanted: write; has: read", "It is refused with 403 at Caddyfile:", ": scope."}},
		{"nobody should not pass", "anonymous GET " + host + "/open 401", "", []string{"It passes"}},
		{"another status", "anonymous GET " + host + "/orders 403", "", []string{"It is refused with 401"}},
		{"one of all methods", "reports * " + host + "/orders pass", "", []string{"DELETE " + host, "403"}},
		{"a method that the configuration names", "anonymous * " + host + "/x 200", "@purge method PURGE\nrespond @purge 403\nrespond 200", []string{"PURGE " + host, "answered with 403"}},
		{"a method that nobody names", "anonymous * " + host + "/x 403", "@all method GET HEAD POST PUT PATCH DELETE OPTIONS\nrespond @all 403\nrespond 200", []string{"UNKNOWN " + host, "answered with 200"}},
		{"nobody can tell", "anonymous GET " + host + "/x pass", "basic_auth {\nbob $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}\nreverse_proxy BACKEND", []string{"Nobody can tell", "authentication"}},
		{"nobody answers", "anonymous GET " + host + "/x pass", "oauth_protect /y", []string{"No handler answers it"}},
		{"a redirect", "anonymous GET " + host + "/x pass", "redir /x /y", []string{"302"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			site := c.site
			if site == "" {
				site = expectSite
			}
			text := strings.Replace(caddyfileOf(expecting(c.line), "oauth_server\n"+strings.ReplaceAll(strings.Replace(site, "oauth_server\n", "", 1), "BACKEND", "127.0.0.1:9")), "bind 127.0.0.1\nbind 127.0.0.1", "bind 127.0.0.1", 1)
			text = strings.Replace(text, "bind 127.0.0.1\noauth_server\nbind 127.0.0.1", "bind 127.0.0.1\noauth_server", 1)
			config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
			if err != nil {
				t.Fatal(err)
			}
			err = caddy.Load(config, true)
			t.Cleanup(func() { caddy.Stop() })
			if (err != nil) != (c.broken != nil) {
				t.Fatalf("loading: %v", err)
			}
			for _, part := range c.broken {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the error lacks %q: %v", part, err)
				}
			}
		})
	}
}

// A reload that breaks an expectation is refused, and the old configuration serves on: its clients
// keep their tokens, and clients that only the refused one has get none.
func TestABrokenExpectationLeavesTheOldConfigurationServing(t *testing.T) {
	g := startGateway(t, expectClients, expectSite[len("bind 127.0.0.1\n"):])
	token := g.token("reports", "read")
	more := "client later {\nsecret_hash " + testHash + "\nscopes read\n}\n"
	site := strings.Replace(expectSite[len("bind 127.0.0.1\n"):], "scopes read", "scopes list", 1)
	err := g.load(more+expecting("reports GET http://127.0.0.1:8080/orders pass", "anonymous GET http://127.0.0.1:8080/orders 403"), site)
	if err == nil || strings.Count(err.Error(), "is broken") != 2 {
		t.Fatalf("both should be shown: %v", err)
	}
	if a := g.get("/orders", token); a.StatusCode != 200 || a.Body != "backend" {
		t.Errorf("after the reload that was refused: %d %s", a.StatusCode, a.Body)
	}
	if a := g.post("/oauth2/access_token", "later", testSecret, nil); a.StatusCode == 200 {
		t.Errorf("a client of the refused configuration gets %d", a.StatusCode)
	}
	if err := g.load(expecting("reports GET http://127.0.0.1:8080/orders pass"), expectSite[len("bind 127.0.0.1\n"):]); err != nil {
		t.Fatal(err)
	}
	if a := g.get("/orders", token); a.StatusCode != 200 {
		t.Errorf("after a reload that was not refused: %d", a.StatusCode)
	}
}

// What can't be right in any configuration is found by 'caddy validate', too.
func TestExpectationsThatMakeNoSense(t *testing.T) {
	for _, c := range []struct{ oauth, message string }{
		{expecting("nobody GET https://api.example.com/ pass"), "there is no client 'nobody'"},
		{"client anonymous {\nsecret_hash " + testHash + "\n}\n" + expecting("anonymous GET https://api.example.com/ pass"), "no client of a realm with expect can have that ID"},
		{"realm a {\nexpect {\nreports GET https://api.example.com/ pass\n}\n}\n" + expectClients, "there is no client 'reports'"},
		{"realm a {\nclient x {\nsecret_hash " + testHash + "\n}\n}\nexpect {\nx GET https://api.example.com/ pass\n}", "there is no client 'x'"},
	} {
		config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfileOf(c.oauth, "oauth_server")), nil)
		if err != nil {
			t.Fatal(err)
		}
		var parsed caddy.Config
		if err := json.Unmarshal(config, &parsed); err != nil {
			t.Fatal(err)
		}
		if err := caddy.Validate(&parsed); err == nil || !strings.Contains(err.Error(), c.message) {
			t.Errorf("want %q: %v", c.message, err)
		}
	}
	for _, line := range []string{`{"client":"","method":"GET","url":"http://x/","outcome":"pass"}`, `{"client":"anonymous","method":"G T","url":"http://x/","outcome":"pass"}`,
		`{"client":"anonymous","method":"GET","url":"//x/","outcome":"pass"}`, `{"client":"anonymous","method":"GET","url":"http://x/","outcome":"99"}`} {
		var parsed caddy.Config
		if err := json.Unmarshal([]byte(`{"admin":{"disabled":true},"apps":{"oauth":{"store":{"store":"memory"},"realms":{"root":{"expect":[`+line+`]}}}}}`), &parsed); err != nil {
			t.Fatal(err)
		}
		if err := caddy.Validate(&parsed); err == nil || !strings.Contains(err.Error(), "expect") {
			t.Errorf("%s: %v", line, err)
		}
	}
}
