package caddyoauth_test

import (
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// rulesClients are clients for routes whose rules depend on the method.
const rulesClients = "store memory\n" + testClients + `
	client admin {
		secret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0
		scopes read write admin
		audience https://api.example.com
	}
`

func TestTheRuleOfAMethod(t *testing.T) {
	f := newForeign(t)
	f.knows("user", `{"active":true,"client_id":"c","role":"user"}`)
	f.knows("boss", `{"active":true,"client_id":"c","role":"admin"}`)
	log := filepath.Join(t.TempDir(), "log")
	g := startCaddyfile(t, logTo(log, caddyfileOf(rulesClients, `
		oauth_server
		handle_path /own/* {
			oauth_protect {
				scopes write
				on GET HEAD {
					scopes read
				}
			}
		}
		handle_path /star/* {
			oauth_protect {
				on GET {
					scopes read
				}
				on * {
					any_scope write admin
				}
			}
		}
		handle_path /inherits/* {
			oauth_protect {
				scopes read
				audience https://api.example.com
				on POST {
					scopes write
				}
				on PUT {
				}
				on DELETE {
					any_scope admin
				}
			}
		}
		handle_path /claims/* {
			oauth_protect {
				`+f.introspect("")+`
				claim role user
				on DELETE {
					claim role admin
				}
			}
		}
		handle_path /two/* {
			oauth_protect {
				on POST {
					scopes write
				}
				on GET {
					scopes read
				}
			}
			oauth_protect {
				on POST {
					scopes admin
				}
				on PUT {
					scopes never
				}
			}
		}
		reverse_proxy BACKEND
	`)))
	tokens := map[string]string{
		"": "", "user": "user", "boss": "boss", "plain": g.token("reader"),
		"r": g.token("admin", "read"), "w": g.token("admin", "write"), "rw": g.token("admin", "read", "write"), "rwa": g.token("admin", "read", "write", "admin"),
	}
	for _, c := range []struct {
		path    string
		methods string
		token   string
		status  int
		scope   string // in the challenge of a 403
	}{
		// What the block says holds for all methods but those that an 'on' names.
		{"/own/x", "GET HEAD", "r", 200, ""},
		{"/own/x", "GET HEAD", "w", 403, "read"},
		{"/own/x", "GET HEAD POST", "", 401, ""},
		{"/own/x", "POST PUT PATCH DELETE OPTIONS TRACE PROPFIND NONSENSE GET2", "r", 403, "write"},
		{"/own/x", "POST PUT PATCH DELETE OPTIONS TRACE PROPFIND NONSENSE GET2", "w", 200, ""},
		// Some backends take these for GET, others for anything.
		{"/own/x", "get Get gET head", "r", 403, "read write"},
		{"/own/x", "get Get gET head", "w", 403, "read write"},
		{"/own/x", "get Get gET head", "rw", 200, ""},
		{"/own/x", "post nonsense", "w", 200, ""},

		// '*' stands for all others. HEAD is not GET.
		{"/star/x", "GET", "r", 200, ""},
		{"/star/x", "GET", "w", 403, "read"},
		{"/star/x", "HEAD POST NONSENSE post", "r", 403, "admin write"},
		{"/star/x", "HEAD POST NONSENSE post", "w", 200, ""},
		{"/star/x", "get", "w", 403, "read write"},

		// What an 'on' doesn't say is as in the block.
		{"/inherits/x", "GET POST PUT DELETE", "plain", 401, ""},
		{"/inherits/x", "GET PUT PATCH", "r", 200, ""},
		{"/inherits/x", "GET PUT PATCH", "w", 403, "read"},
		{"/inherits/x", "POST", "w", 200, ""},
		{"/inherits/x", "POST", "r", 403, "write"},
		{"/inherits/x", "post", "w", 403, "read write"},
		{"/inherits/x", "post", "rw", 200, ""},
		{"/inherits/x", "DELETE", "rw", 403, "admin read"},
		{"/inherits/x", "DELETE", "rwa", 200, ""},

		{"/claims/x", "GET POST", "user", 200, ""},
		{"/claims/x", "GET POST", "boss", 403, ""},
		{"/claims/x", "DELETE", "user", 403, ""},
		{"/claims/x", "DELETE", "boss", 200, ""},
		{"/claims/x", "delete", "boss", 403, ""},

		// A challenge names what the whole request needs, by its method.
		{"/two/x", "POST", "r", 403, "admin write"},
		{"/two/x", "POST", "w", 403, "admin write"},
		{"/two/x", "POST", "rwa", 200, ""},
		{"/two/x", "GET", "w", 403, "read"},
		{"/two/x", "GET", "r", 200, ""},
		{"/two/x", "PUT", "r", 403, "never"},
		{"/two/x", "DELETE", "r", 200, ""},
	} {
		for _, method := range strings.Fields(c.methods) {
			before := g.Backend.count()
			r := g.request(method, c.path, "", "X-HTTP-Method-Override", "GET", "X-Method-Override", "HEAD")
			if c.token != "" {
				r.Header.Set("Authorization", "Bearer "+tokens[c.token])
			}
			a := g.do(r)
			name := method + " " + c.path + " with " + c.token
			if a.StatusCode != c.status || c.scope != "" && !strings.HasSuffix(a.Header.Get("WWW-Authenticate"), `, scope="`+c.scope+`"`) {
				t.Errorf("%s: %d, challenge %q; want %d %s", name, a.StatusCode, a.Header.Get("WWW-Authenticate"), c.status, c.scope)
			}
			if called := g.Backend.count() - before; called != 0 != (c.status == 200) {
				t.Errorf("%s: %d requests reached the backend", name, called)
			}
			if c.status == 200 {
				if h := g.Backend.last(t).Header; h["X-Http-Method-Override"] != nil || h["X-Method-Override"] != nil {
					t.Errorf("%s: the backend is told another method: %v", name, h)
				}
			}
		}
	}

	g.send(403, "DELETE", "/inherits/last", tokens["r"])
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	var wanted any
	for _, event := range eventsIn(t, log, "request_refused") {
		if event["path"] == "/inherits/last" {
			wanted = event["want"]
		}
	}
	if !reflect.DeepEqual(wanted, []any{"read", "admin"}) {
		t.Errorf("the event says that the rule wants %v", wanted)
	}
}

// optionalSites are routes where a token is optional, with what could go wrong there.
const optionalSites = `
	oauth_server
	route /open/* {
		test_user id=eve client_id=eve role=root
		oauth_protect {
			optional
		}
		@admin oauth_scope read
		request_header @admin X-Reader yes
	` + tellBackend + `
	}
	route /read/* {
		oauth_protect {
			on GET HEAD {
				optional
			}
			on * {
				scopes write
			}
		}
		reverse_proxy BACKEND
	}
	route /keep/* {
		oauth_protect {
			optional
			keep_token
			keep_override_headers
		}
		reverse_proxy BACKEND
	}
	route /strict/* {
		oauth_protect {
			optional
		}
		test_user id=eve client_id=eve role=root
		oauth_protect {
			scopes write
		}
	` + tellBackend + `
	}
	route /twice/* {
		oauth_protect {
			optional
			keep_override_headers
		}
		oauth_protect {
			optional
			keep_token
			keep_override_headers
		}
	` + tellBackend + `
	}
	route /behind/* {
		oauth_protect
		oauth_protect {
			optional
			scopes write
		}
	` + tellBackend + `
	}
	route /fails/* {
		oauth_protect {
			optional
			keep_token
			keep_override_headers
		}
		error 418
	}
	handle_errors {
		reverse_proxy BACKEND
	}
`

func TestATokenCanBeOptional(t *testing.T) {
	logFile := filepath.Join(t.TempDir(), "access")
	g := startGateway(t, rulesClients, "log {\noutput file "+logFile+"\n}\n"+optionalSites)
	reader, writer := g.token("reader"), g.token("writer", "write")
	basicAuth := "Basic " + base64.StdEncoding.EncodeToString([]byte("reader:abc"))
	// What a caller may try in order to be somebody, or to get somewhere else.
	attack := []string{
		"X-OAuth-Client-Id", "admin", "X-OAuth-Scope", "write", "x-oauth-subject", "admin", "X-Original-URL", "/admin", "X-HTTP-Method-Override", "DELETE",
		"Connection", "X-OAuth-Client-Id, Authorization", "Proxy-Authorization", basicAuth, "DPoP", "x",
	}
	nobody := map[string]string{"Id": "", "Client": "", "Subject": "", "Scope": "", "Iss": "", "Groups": "", "Role": ""}
	for _, c := range []struct {
		name, method, path, authorization string
		status                            int
		client                            string            // that the backend is told
		sent                              string            // Authorization at the backend
		told                              map[string]string // some placeholders
		override                          bool              // reaches the backend
	}{
		{"nobody", "GET", "/open/x", "", 200, "", "", nobody, false},
		{"nobody, to write", "POST", "/open/x", "", 200, "", "", nobody, false},
		{"a token", "GET", "/open/x", "Bearer " + reader, 200, "reader", "", map[string]string{"Id": "reader", "Role": ""}, false},
		{"a bad token", "GET", "/open/x", "Bearer " + spoiled(reader), 401, "", "", nil, false},
		{"a token in the wrong form", "GET", "/open/x", "Bearer a b", 400, "", "", nil, false},
		{"no token after Bearer", "GET", "/open/x", "Bearer", 400, "", "", nil, false},
		{"another scheme", "GET", "/open/x", basicAuth, 200, "", "", nobody, false},

		{"nobody reads", "GET", "/read/x", "", 200, "", "", nil, false},
		{"nobody asks for the head", "HEAD", "/read/x", "", 200, "", "", nil, false},
		{"a reader reads", "GET", "/read/x", "Bearer " + reader, 200, "reader", "", nil, false},
		{"nobody writes", "POST", "/read/x", "", 401, "", "", nil, false},
		{"nobody writes in small letters", "get", "/read/x", "", 401, "", "", nil, false},
		{"a reader writes", "POST", "/read/x", "Bearer " + reader, 403, "", "", nil, false},
		{"a writer writes", "POST", "/read/x", "Bearer " + writer, 200, "writer", "", nil, false},

		{"nobody, where what is sent is kept", "GET", "/keep/x", "", 200, "", "", nil, false},
		{"another scheme, where it is kept", "GET", "/keep/x", basicAuth, 200, "", basicAuth, nil, false},
		{"a token, where it is kept", "GET", "/keep/x", "Bearer " + reader, 200, "reader", "Bearer " + reader, nil, true},

		// The second oauth_protect judges the caller's own token.
		{"nobody, and then a token is needed", "GET", "/strict/x", "", 401, "", "", nil, false},
		{"another scheme, and then a token is needed", "GET", "/strict/x", basicAuth, 401, "", "", nil, false},
		{"a token, and then a scope is needed", "GET", "/strict/x", "Bearer " + reader, 403, "", "", nil, false},
		{"a token with the scope", "GET", "/strict/x", "Bearer " + writer, 200, "writer", "", map[string]string{"Id": "writer", "Role": ""}, false},

		{"nobody, twice", "GET", "/twice/x", "", 200, "", "", nobody, false},
		{"another scheme, which only the second one keeps", "GET", "/twice/x", basicAuth, 200, "", "", nobody, false},
		{"a token, twice", "GET", "/twice/x", "Bearer " + reader, 200, "reader", "", map[string]string{"Id": "reader", "Scope": "read"}, true},

		{"nobody, where a token is needed first", "GET", "/behind/x", "", 401, "", "", nil, false},
		{"a token whose scope the optional one wants", "GET", "/behind/x", "Bearer " + reader, 403, "", "", nil, false},
		{"a token that both take", "GET", "/behind/x", "Bearer " + writer, 200, "writer", "", map[string]string{"Id": "writer"}, false},

		// Error routes hear of nobody, and get no credentials.
		{"nobody, and an error", "GET", "/fails/x", "", 200, "", "", nil, false},
		{"another scheme, and an error", "GET", "/fails/x", basicAuth, 200, "", "", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := g.Backend.count()
			r := g.request(c.method, c.path, "", attack...)
			if c.authorization != "" {
				r.Header.Set("Authorization", c.authorization)
			}
			a := g.do(r)
			called := g.Backend.count() - before
			if c.status != 200 || strings.HasPrefix(c.path, "/fails") {
				// The error page comes from the backend as well.
				if want := map[bool]int{true: 200, false: c.status}[strings.HasPrefix(c.path, "/fails")]; a.StatusCode != 200 && a.StatusCode != want || called != 1 {
					t.Errorf("answered %d, %d calls", a.StatusCode, called)
				}
				if c.status != 200 && a.Header.Get("Cache-Control") != "no-store" {
					t.Errorf("no refusal: %v", a.Header)
				}
				checkNoIdentity(t, g.Backend.last(t).Header, "X-Oauth-")
				return
			}
			if a.StatusCode != 200 || called != 1 {
				t.Fatalf("answered %d, challenge %q, %d calls", a.StatusCode, a.Header.Get("WWW-Authenticate"), called)
			}
			if a.Header["Www-Authenticate"] != nil || a.Header["Cache-Control"] != nil {
				t.Errorf("the answer has headers of a refusal: %v", a.Header)
			}
			h := g.Backend.last(t).Header
			if got := h.Get("Authorization"); got != c.sent {
				t.Errorf("the backend got Authorization %q, want %q", got, c.sent)
			}
			h.Del("Authorization")
			if c.client == "" {
				checkNoIdentity(t, h, "X-Oauth-")
			} else if h.Get("X-OAuth-Client-Id") != c.client || h.Get("X-Oauth-Subject") != c.client {
				t.Errorf("the backend was told %v", h)
			}
			for name, want := range c.told {
				if got := h.Values("X-Told-" + name); !slices.Equal(got, []string{want}) {
					t.Errorf("the placeholder of %s is %q, want %q", name, got, want)
				}
			}
			if (h["X-Reader"] != nil) != (c.path == "/open/x" && c.client == "reader") {
				t.Errorf("oauth_scope gave X-Reader %q", h["X-Reader"])
			}
			if got := h["X-Original-Url"] != nil && h["X-Http-Method-Override"] != nil; got != c.override || h["Dpop"] != nil {
				t.Errorf("the backend got %v", h)
			}
		})
	}

	before := metric(t, "caddy_oauth_bearer_checks_total", "result", "anonymous", "cause", "")
	ok := metric(t, "caddy_oauth_bearer_checks_total", "result", "ok")
	g.send(200, "GET", "/open/counted", "")
	if n := metric(t, "caddy_oauth_bearer_checks_total", "result", "anonymous", "cause", "") - before; n != 1 {
		t.Errorf("one request without a token counts as %v", n)
	}
	if n := metric(t, "caddy_oauth_bearer_checks_total", "result", "ok") - ok; n != 0 {
		t.Errorf("a request without a token counts as %v good tokens", n)
	}
	line := accessLog(t, logFile)["/open/counted"]
	if line["client"] != nil || line["realm"] != nil || line["error"] != nil || line["user_id"] != "" {
		t.Errorf("the access log has %v", line)
	}
}

// What is optional doesn't become so by another way: over plain HTTP from other machines, and with
// ambiguous paths, it is as ever.
func TestWhatIsOptionalIsJudgedForTheRest(t *testing.T) {
	g := startCaddyfile(t, withGlobals("servers {\ntrusted_proxies static 127.0.0.1/32\n}", rulesClients, "oauth_server\noauth_protect {\noptional\n}\nreverse_proxy BACKEND"))
	g.send(403, "GET", "/x", "", "X-Forwarded-Proto", "http")
	g.send(400, "GET", "/x/..;/y", "")
	if a := g.rawRequest("GET http:http://localhost/x"); a.StatusCode != 400 {
		t.Errorf("an opaque target: %d", a.StatusCode)
	}
	if a := g.rawRequest("CONNECT localhost:80"); a.StatusCode != 501 {
		t.Errorf("CONNECT: %d", a.StatusCode)
	}
	if n := g.Backend.count(); n != 0 {
		t.Errorf("%d requests reached the backend", n)
	}
	r := g.request("GET", "/x", "")
	r.Header["Authorization"] = []string{"Basic eDp5", "Basic eDp5"}
	if a := g.do(r); a.StatusCode != http.StatusBadRequest {
		t.Errorf("two lines: %d", a.StatusCode)
	}
}

func TestMethodRulesThatDontLoad(t *testing.T) {
	g := startGateway(t, rulesClients, "oauth_server")
	for _, c := range []struct{ rules, want string }{
		{`"on": [{"scopes": ["read"]}]`, "oauth_protect: on takes at least one method"},
		{`"on": [{"methods": ["get"]}]`, "oauth_protect: on: 'get' is not a method in capitals"},
		{`"on": [{"methods": ["GET", "*"]}]`, "oauth_protect: on: * stands for all methods"},
		{`"on": [{"methods": ["CONNECT"]}]`, "oauth_protect: on: no rule is for CONNECT"},
		{`"on": [{"methods": [""]}]`, "oauth_protect: on: '' is not a method"},
		{`"on": [{"methods": ["GET", "GET"]}]`, "oauth_protect: on: GET is in two of them"},
		{`"on": [{"methods": ["GET"]}, {"methods": ["PUT", "GET"]}]`, "oauth_protect: on: GET is in two of them"},
		{`"on": [{"methods": ["*"]}, {"methods": ["*"]}]`, "oauth_protect: on: * is in two of them"},
		{`"on": [{"methods": ["GET"], "scopes": ["a b"]}]`, "oauth_protect: on GET: scopes"},
		{`"on": [{"methods": ["GET"], "any_scope": ["a\""]}]`, "oauth_protect: on GET: any_scope"},
		{`"on": [{"methods": ["GET", "PUT"], "audience": ["a b"]}]`, "oauth_protect: on GET PUT: audience"},
		{`"on": [{"methods": ["GET"], "claims": [{"name": "a"}]}]`, "oauth_protect: on GET: a claim needs"},
	} {
		err := g.loadJSON([]byte(`{"admin": {"disabled": true}, "apps": {"oauth": {"store": {"store": "memory"}, "realms": {"root": {}}}, "http": {"servers": {"srv0": {"listen": ["127.0.0.1:0"], "routes": [{"handle": [{"handler": "oauth_protect", ` + c.rules + `}]}]}}}}}`))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.rules, err, c.want)
		}
	}
}

// Whoever writes 'optional' for all methods and a scope for one may believe that the scope is needed.
func TestRulesThatAreOptionalUnawaresAreWarnedOf(t *testing.T) {
	for _, c := range []struct {
		block string
		warns bool
	}{
		{"optional\non POST {\nscopes write\n}", true},
		{"optional\non * {\nclaim role admin\n}", true},
		{"optional\non POST {\nscopes write\noptional\n}", false},
		{"on POST {\nscopes write\n}\non GET {\noptional\n}", false},
		{"optional\non POST {\n}", false},
	} {
		log := filepath.Join(t.TempDir(), "log")
		startCaddyfile(t, logTo(log, caddyfileOf(rulesClients, "oauth_protect {\n"+c.block+"\n}")))
		if err := caddy.Stop(); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(text), "requests without a token pass this rule"); got != c.warns {
			t.Errorf("%q: warned %t", c.block, got)
		}
	}
}

// What a handler sets between two oauth_protect that a request passes unnamed is not the caller's.
func TestNobodyIsBlamedForWhatAHandlerSets(t *testing.T) {
	g := startGateway(t, rulesClients, "route {\noauth_protect {\noptional\n}\nrequest_header X-OAuth-Role chosen\noauth_protect {\nreport_only\n}\nreverse_proxy BACKEND\n}")
	before := metric(t, "caddy_oauth_guard_total", "cause", "identity_header")
	g.send(200, "GET", "/x", "")
	if n := metric(t, "caddy_oauth_guard_total", "cause", "identity_header") - before; n != 0 {
		t.Errorf("%v attempts to be somebody are counted", n)
	}
	checkNoIdentity(t, g.Backend.last(t).Header, "X-Oauth-")
}
