package caddyoauth_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(TestUser{})
	httpcaddyfile.RegisterHandlerDirective("test_user", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		u := new(TestUser)
		return u, u.UnmarshalCaddyfile(h.Dispenser)
	})
}

// TestUser sets placeholders the way authenticating handlers do.
type TestUser struct {
	Placeholders map[string]string `json:"placeholders,omitempty"`
}

func (TestUser) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.test_user", New: func() caddy.Module { return new(TestUser) }}
}

func (u *TestUser) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	u.Placeholders = make(map[string]string)
	for _, arg := range d.RemainingArgs() {
		name, value, _ := strings.Cut(arg, "=")
		u.Placeholders[name] = value
	}
	return nil
}

func (u TestUser) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	for name, value := range u.Placeholders {
		repl.Set("http.auth.user."+name, value)
	}
	return next.ServeHTTP(w, r)
}

// tellBackend has the backend told the placeholders that tests look at; toldBackend returns what
// it was told.
const tellBackend = `
	request_header X-Told-Id {http.auth.user.id}
	request_header X-Told-Client {http.auth.user.client_id}
	request_header X-Told-Subject {http.auth.user.subject}
	request_header X-Told-Scope {http.auth.user.scope}
	request_header X-Told-Iss {http.auth.user.iss}
	request_header X-Told-Groups {http.auth.user.groups}
	request_header X-Told-Role {http.auth.user.role}
	reverse_proxy BACKEND
`

func toldBackend(h http.Header) map[string]string {
	told := make(map[string]string)
	for name := range h {
		if short, ok := strings.CutPrefix(name, "X-Told-"); ok {
			told[short] = h.Get(name)
		}
	}
	return told
}

// A handler that authenticated somebody earlier on the request does not speak for the caller, in
// any placeholder, even where the token says nothing.
func TestOnlyTheTokenSpeaks(t *testing.T) {
	f := newForeign(t)
	f.knows("grouped", `{"active":true,"client_id":"c","sub":"s","groups":["users"],"iss":"https://as.example.com"}`)
	f.knows("bare", `{"active":true,"client_id":"c","sub":"s"}`)
	user := "test_user id=admin client_id=admin subject=admin sub=admin scope=admin realm=admin expires=never iss=admin groups=admins role=root constructor=admin\n"
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\nroute /one {\n"+user+"oauth_protect {\n"+f.introspect("")+"source local\n}\n"+tellBackend+
		"}\nroute /two {\noauth_protect {\n"+f.introspect("")+"}\n"+user+"oauth_protect {\n"+f.introspect("")+"}\n"+tellBackend+"}")
	for _, c := range []struct {
		token string
		want  map[string]string
	}{
		{"grouped", map[string]string{"Id": "c", "Client": "c", "Subject": "s", "Scope": "", "Iss": "https://as.example.com", "Groups": "users", "Role": ""}},
		{"bare", map[string]string{"Id": "c", "Client": "c", "Subject": "s", "Scope": "", "Iss": "", "Groups": "", "Role": ""}},
	} {
		for _, path := range []string{"/one", "/two"} {
			if a := g.get(path, c.token); a.StatusCode != 200 {
				t.Fatalf("%s with %s: %d", path, c.token, a.StatusCode)
			}
			told := toldBackend(g.Backend.last(t).Header)
			for name, want := range c.want {
				if told[name] != want {
					t.Errorf("%s with %s: %s is %q, want %q", path, c.token, name, told[name], want)
				}
			}
		}
	}
	if a := g.get("/one", g.token("reader")); a.StatusCode != 200 {
		t.Fatalf("a token issued here: %d", a.StatusCode)
	}
	if told := toldBackend(g.Backend.last(t).Header); told["Id"] != "reader" || told["Groups"] != "" || told["Role"] != "" {
		t.Errorf("a token issued here: the backend was told %v", told)
	}
}

// If two oauth_protect apply to a request, the second one counts, in headers and placeholders.
func TestTheLastProtectSpeaks(t *testing.T) {
	one, two := newForeign(t), newForeign(t)
	one.knows("t", `{"active":true,"client_id":"first","sub":"first","scope":"a b","iss":"https://one.example.com","groups":["admins"],"role":"root"}`)
	two.knows("t", `{"active":true,"client_id":"second","sub":"other","iss":"https://two.example.com","role":"user"}`)
	logs := filepath.Join(t.TempDir(), "access")
	g := startGateway(t, "", "log {\noutput file "+logs+"\n}\nroute {\noauth_protect {\n"+one.introspect("")+"}\noauth_protect {\n"+two.introspect("")+"}\n"+tellBackend+"}")
	if a := g.get("/x", "t"); a.StatusCode != 200 {
		t.Fatal(a.StatusCode)
	}
	h := g.Backend.last(t).Header
	told := toldBackend(h)
	for name, want := range map[string]string{"Id": "second", "Client": "second", "Subject": "other", "Scope": "", "Iss": "https://two.example.com", "Groups": "", "Role": "user"} {
		if told[name] != want {
			t.Errorf("placeholder of %s is %q, want %q", name, told[name], want)
		}
	}
	if h.Get("X-OAuth-Client-Id") != "second" || h.Get("X-OAuth-Subject") != "other" || h["X-Oauth-Scope"] != nil || h.Get("X-OAuth-Issuer") != "https://two.example.com" {
		t.Errorf("headers are %v", h)
	}
	waitUntil(t, "the access log has the request", func() bool {
		line, _ := os.ReadFile(logs)
		var entry struct {
			Client string `json:"client"`
			User   string `json:"user_id"`
		}
		if json.Unmarshal(line, &entry) != nil {
			return false
		}
		if entry.Client != "second" || entry.User != "second" {
			t.Errorf("the access log has client %q and user %q", entry.Client, entry.User)
		}
		return true
	})
}

// A name from another server reaches the backend as one that can't be anybody else's, or not at
// all.
func TestForeignNamesInHeaders(t *testing.T) {
	f := newForeign(t)
	answer := func(members string) string { return `{"active":true,` + members + `}` }
	long := func(n int) string { return strings.Repeat("x", n) }
	logs := filepath.Join(t.TempDir(), "log")
	g := startCaddyfile(t, strings.Replace(caddyfileOf("", "oauth_protect {\n"+f.introspect("")+"}\n"+tellBackend), "{\n", "{\nlog {\noutput file "+logs+"\nlevel DEBUG\n}\n", 1))
	for i, c := range []struct{ name, members, client, subject, scope, issuer string }{
		{"plain names", `"client_id":"a-b.c:d/e","sub":"x@example.com","iss":"https://as.example.com/t?a=b","scope":"read write"`, "a-b.c:d/e", "x@example.com", "read write", "https://as.example.com/t?a=b"},
		{"a space inside", `"client_id":"my app","sub":"Jane Doe"`, "my app", "Jane Doe", "", ""},
		{"quotes and backslashes", `"client_id":"a\"b\\c"`, `a"b\c`, "", "", ""},
		{"a client ID like a list", `"client_id":"c, admin"`, "c%2C admin", "", "", ""},
		{"a name of LDAP", `"sub":"CN=Jane,OU=staff"`, "", "CN=Jane%2COU=staff", "", ""},
		{"what looks encoded already", `"sub":"CN=Jane%2COU=staff"`, "", "CN=Jane%252COU=staff", "", ""},
		{"beyond ASCII", `"client_id":"größe","sub":"名"`, "gr%C3%B6%C3%9Fe", "%E5%90%8D", "", ""},
		{"a letter that only looks like another", `"sub":"аdmin"`, "", "%D0%B0dmin", "", ""},
		{"the length that a client ID may have", `"client_id":"` + long(256) + `"`, long(256), "", "", ""},
		{"and a subject", `"sub":"` + long(1024) + `"`, "", long(1024), "", ""},
		{"a scope like a list", `"client_id":"c","scope":"read,admin write"`, "c", "", "write", ""},
	} {
		token := "good-" + string(rune('a'+i))
		f.knows(token, answer(c.members))
		if a := g.get("/x", token); a.StatusCode != 200 {
			t.Errorf("%s: %d", c.name, a.StatusCode)
			continue
		}
		h := g.Backend.last(t).Header
		got := []string{h.Get("X-OAuth-Client-Id"), h.Get("X-OAuth-Subject"), h.Get("X-OAuth-Scope"), h.Get("X-OAuth-Issuer")}
		if want := []string{c.client, c.subject, c.scope, c.issuer}; !slices.Equal(got, want) {
			t.Errorf("%s: headers %q, want %q", c.name, got, want)
		}
		told := toldBackend(h)
		if placeholders := []string{told["Client"], told["Subject"], told["Scope"], told["Iss"]}; !slices.Equal(placeholders, got) || told["Id"] != told["Client"] {
			t.Errorf("%s: placeholders %q, headers %q", c.name, placeholders, got)
		}
	}
	passed := g.Backend.count()
	for name, members := range map[string]string{
		"a control character":        `"client_id":"a\u0001b"`,
		"a line's end":               `"sub":"a\nb"`,
		"DEL":                        `"sub":"a\u007fb"`,
		"U+0080":                     `"sub":"a\u0080b"`,
		"U+0085, a line's end":       `"sub":"a\u0085b"`,
		"U+009F":                     `"client_id":"a\u009fb"`,
		"a control character of iss": `"client_id":"c","iss":"https://as.example.com\u0085"`,
		"a space at the end":         `"client_id":"admin "`,
		"a space at the beginning":   `"sub":" root"`,
		"a no-break space at an end": `"sub":"root\u00a0"`,
		"a client ID too long":       `"client_id":"` + long(257) + `"`,
		"a subject too long":         `"sub":"` + long(1025) + `"`,
		"a subject of 30,000 bytes":  `"sub":"` + long(30_000) + `"`,
		"an issuer too long":         `"client_id":"c","iss":"` + long(1025) + `"`,
		"scopes too long":            `"client_id":"c","scope":"` + long(8<<10) + ` a"`,
	} {
		token := "bad-" + strings.Map(func(r rune) rune {
			if r < 'a' || r > 'z' {
				return '-'
			}
			return r
		}, name)
		f.knows(token, answer(members))
		checkRefusal(t, g.get("/x", token), 401, "External", "invalid_token")
	}
	if g.Backend.count() != passed {
		t.Error("the backend was told a name that can't be passed on")
	}
	waitUntil(t, "the log says why", func() bool {
		text, _ := os.ReadFile(logs)
		return strings.Contains(string(text), `"cause":"unfit_for_headers"`)
	})
}

// An active token that names nobody would turn a checked request into an anonymous one.
func TestATokenNamesSomebody(t *testing.T) {
	f := newForeign(t)
	logs := filepath.Join(t.TempDir(), "log")
	g := startCaddyfile(t, strings.Replace(caddyfileOf("", "oauth_protect {\n"+f.sources("")[len("source local\n"):]+"}\nreverse_proxy BACKEND"), "{\n", "{\nlog {\noutput file "+logs+"\nlevel DEBUG\n}\n", 1))
	for token, answer := range map[string]string{
		"nobody":           `{"active":true,"scope":"read","iss":"https://as.example.com","username":"x"}`,
		"empty":            `{"active":true,"client_id":"","sub":""}`,
		"nothing-whatever": `{"active":true}`,
	} {
		f.knows(token, answer)
		checkRefusal(t, g.get("/x", token), 401, "External", "invalid_token")
	}
	checkRefusal(t, g.get("/x", f.signs(t, `{"iss":"https://issuer.example.com","aud":"api","exp":4102444800}`)), 401, "External", "invalid_token")
	if g.Backend.count() > 0 {
		t.Error("the backend was called on behalf of nobody")
	}
	waitUntil(t, "the log says why", func() bool {
		text, _ := os.ReadFile(logs)
		return strings.Contains(string(text), `"cause":"names_nobody"`)
	})
	f.knows("client", `{"active":true,"client_id":"c"}`)
	f.knows("subject", `{"active":true,"sub":"s"}`)
	for _, token := range []string{"client", "subject"} {
		if a := g.get("/x", token); a.StatusCode != 200 {
			t.Errorf("a token with a %s alone: %d", token, a.StatusCode)
		}
	}
}

// There is one bound on a token's length, whatever its source. The log says that a token is too
// long.
func TestLengthOfATokenIsBounded(t *testing.T) {
	f := newForeign(t)
	logs := filepath.Join(t.TempDir(), "log")
	g := startCaddyfile(t, strings.Replace(caddyfileOf("store memory\n"+testClients, "oauth_server\noauth_protect {\n"+f.sources("")+"}\nreverse_proxy BACKEND"), "{\n", "{\nlog {\noutput file "+logs+"\nlevel DEBUG\n}\n", 1))
	longest := strings.Repeat("x", 16<<10)
	f.knows(longest, activeForeign)
	f.knows(longest+"x", activeForeign)
	if a := g.get("/x", longest); a.StatusCode != 200 {
		t.Errorf("16 KiB: %d", a.StatusCode)
	}
	// Entra ID with 200 groups.
	groups := strings.TrimSuffix(strings.Repeat(`"8e1c1c2e-3f5a-4b8e-9b5e-6f1f0b6c2d10",`, 200), ",")
	eventuallyAnswers(t, g, f.jwt(t, `,"groups":[`+groups+`]`), 200)
	asked := f.asked.Load()
	if text, _ := os.ReadFile(logs); strings.Contains(string(text), "token_too_long") {
		t.Error("the log calls a token too long, and it isn't")
	}
	checkRefusal(t, g.get("/x", longest+"x"), 401, "root", "invalid_token")
	if f.asked.Load() != asked {
		t.Error("the endpoint was asked about a token that is too long")
	}
	waitUntil(t, "the log says why", func() bool {
		text, _ := os.ReadFile(logs)
		return strings.Contains(string(text), `"cause":"token_too_long"`)
	})
}

// A client that fetches a token with the scopes of the last challenge ends up with one that passes.
func TestChallengesLeadToAGoodToken(t *testing.T) {
	f := newForeign(t)
	for _, scopes := range []string{"", "read", "write", "read write", "a", "read a write"} {
		f.knows("t-"+strings.ReplaceAll(scopes, " ", "-"), `{"active":true,"client_id":"c","scope":"`+scopes+`"}`)
	}
	rule := func(matcher, lines string) string {
		return "oauth_protect " + matcher + " {\n" + f.introspect("") + lines + "\n}\n"
	}
	// As in a site: each rule with its own matcher, the one for a part of it first.
	const site = "@write not method GET\n"
	g := startGateway(t, "", "route /two {\n"+rule("", "scopes read")+rule("", "scopes write")+"respond ok\n}\n"+
		"route /any {\n"+rule("", "any_scope a b read\nscopes read")+rule("", "any_scope c write")+"respond ok\n}\n"+
		"route /three {\n"+rule("", "scopes read")+rule("", "any_scope a b")+rule("", "scopes write")+"respond ok\n}\n"+
		"route /nested {\n"+rule("", "scopes read")+"route {\n"+rule("", "scopes write")+rule("", "scopes a")+"respond ok\n}\n}\n"+
		"handle /either/a {\n"+rule("", "scopes a")+"respond ok\n}\nhandle /either/* {\n"+rule("", "scopes b")+"respond ok\n}\n"+
		site+rule("@write", "scopes write")+rule("/part/*", "scopes a")+rule("/part/not/me", "scopes b")+rule("/x* ", "scopes read")+"respond ok")
	for _, c := range []struct{ path, token, scope string }{
		{"/two", "", "read write"}, {"/two", "write", "read write"}, {"/two", "read", "read write"}, {"/two", "read write", "OK"},
		{"/any", "read", "c read write"}, {"/any", "read write", "OK"}, {"/any", "a", "a c read write"}, {"/any", "write", "a b read write"},
		{"/three", "read a write", "OK"}, {"/three", "read", "a b read write"}, {"/three", "", "a b read write"}, {"/three", "a", "a read write"},
		{"/nested", "write", "read"}, {"/nested", "read", "a read write"}, {"/nested", "read a write", "OK"},
		{"/either/a", "", "a"}, {"/either/b", "", "b"},
		{"/part/x", "read", "a"}, {"/part/x", "a", "OK"}, {"/part/not/me", "a", "a b"},
	} {
		a := g.get(c.path, "t-"+strings.ReplaceAll(c.token, " ", "-"))
		if c.scope == "OK" {
			if a.StatusCode != 200 {
				t.Errorf("%s with %q: %d", c.path, c.token, a.StatusCode)
			}
			continue
		}
		if params := checkRefusal(t, a, 403, "External", "insufficient_scope"); params["scope"] != c.scope {
			t.Errorf("%s with %q: the challenge names %q, want %q", c.path, c.token, params["scope"], c.scope)
		}
	}
}

// The manual's way to compare a claim with a path takes the claim literally. In a path matcher it
// is a pattern, which the manual warns about.
func TestClaimsInMatchers(t *testing.T) {
	f := newForeign(t)
	for _, name := range []string{"jane", "Jane", "*", "ja*"} {
		f.knows("t-"+strings.ReplaceAll(name, "*", "~"), `{"active":true,"sub":"`+name+`"}`)
	}
	const recipe = "@others {\npath /users/*\nnot expression `{path.1} == {http.auth.user.subject}`\n}\nrespond @others 403\n"
	if !strings.Contains(strings.ReplaceAll(manual(t), "\t", ""), recipe) {
		t.Error("the manual has a different recipe")
	}
	protect := "oauth_protect {\n" + f.introspect("") + "}\n"
	g := startGateway(t, "", "route /users/* {\n"+protect+recipe+"respond ok\n}\n"+
		"handle_path /glob* {\nroute {\n"+protect+"@own path /users/{http.auth.user.subject}/*\nrespond @own ok\nrespond 403\n}\n}\n")
	for _, c := range []struct {
		token             string
		expression, globs int
	}{{"t-jane", 200, 200}, {"t-Jane", 403, 200}, {"t-~", 403, 200}, {"t-ja~", 403, 200}} {
		if a := g.get("/users/jane/file", c.token); a.StatusCode != c.expression {
			t.Errorf("%s by the manual's recipe: %d, want %d", c.token, a.StatusCode, c.expression)
		}
		if a := g.get("/glob/users/jane/file", c.token); a.StatusCode != c.globs {
			t.Errorf("%s by a path matcher: %d; the manual says %d", c.token, a.StatusCode, c.globs)
		}
	}
}

// Which rules apply to a request depends on its method, on groups, and on handlers that end it.
func TestChallengesNameTheRulesOnTheWay(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\n@write not method GET\noauth_protect @write {\nscopes write\n}\noauth_protect /part/* {\nscopes a\n}\nrespond ok")
	refused := func(method, path, scope string) {
		t.Helper()
		a := g.do(g.request(method, path, "", "Authorization", "Bearer "+g.token("reader")))
		if params := checkRefusal(t, a, 403, "root", "insufficient_scope"); params["scope"] != scope {
			t.Errorf("%s %s: the challenge names %q, want %q", method, path, params["scope"], scope)
		}
	}
	refused("GET", "/part/x", "a")
	refused("POST", "/part/x", "a write")
	refused("POST", "/x", "write")
	rule := func(scope string) string { return `{"handler": "oauth_protect", "scopes": ["` + scope + `"]}` }
	if err := g.loadJSON([]byte(`{"admin": {"disabled": true, "config": {"persist": false}}, "apps": {
		"oauth": {"store": {"store": "memory"}, "realms": {"root": {"clients": {"reader": {"secrets": [{"hash": "$sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0"}], "scopes": ["read"], "default_scopes": ["read"]}}}}},
		"http": {"grace_period": "1s", "servers": {"srv0": {"listen": ["127.0.0.1:0"], "routes": [
			{"handle": [{"handler": "oauth_server"}]},
			{"group": "g", "handle": [` + rule("a") + `, ` + rule("b") + `]},
			{"group": "g", "handle": [` + rule("not-c") + `]},
			{"group": "h", "match": [{"path": ["/h"]}], "handle": [` + rule("d") + `]},
			{"group": "h", "handle": [` + rule("e") + `]},
			{"match": [{"path": ["/end"]}], "handle": [` + rule("f") + `], "terminal": true},
			{"handle": [` + rule("g") + `]}
		]}}}}}`)); err != nil {
		t.Fatal(err)
	}
	refused("GET", "/x", "a b e g")
	refused("GET", "/h", "a b d g")
	refused("GET", "/end", "a b e f")
}

// The text of a claim is one value or a list of values, depending on its JSON.
func TestClaimsInPlaceholders(t *testing.T) {
	f := newForeign(t)
	g := startGateway(t, "", "oauth_protect {\n"+f.introspect("")+"}\n"+tellBackend)
	for i, c := range []struct{ groups, want string }{
		{`"a"`, "a"}, {`["a"]`, "a"}, {`["a","b"]`, "a,b"}, {`[1,true,"x"]`, "1,true,x"}, {`3`, "3"}, {`null`, ""}, {`[]`, ""},
		{`"Doe, Jane"`, "Doe, Jane"}, // a single value: its comma can't be taken for one between two
		{`["x,admin"]`, ""}, {`["a","x,admin","b"]`, "a,b"}, {`["x,admin","y,admin"]`, ""}, {`[","]`, ""},
		{`{"a":true,"x,admin":true}`, "a"}, {`{"x,admin":{}}`, ""},
		{`["admins "]`, ""}, {`"admins "`, ""}, {`[" admins","b"]`, "b"}, {`["a b"]`, "a b"},
		{`"a\u0085b"`, ""}, {`["a\nb","c"]`, "c"}, {`["a\u0000","c"]`, "c"}, {`["größe"]`, "größe"},
	} {
		token := "t-" + string(rune('a'+i))
		f.knows(token, `{"active":true,"client_id":"c","groups":`+c.groups+`}`)
		if a := g.get("/x", token); a.StatusCode != 200 {
			t.Errorf("%s: %d", c.groups, a.StatusCode)
			continue
		}
		if got := toldBackend(g.Backend.last(t).Header)["Groups"]; got != c.want {
			t.Errorf("groups of %s became %q, want %q", c.groups, got, c.want)
		}
	}
}
