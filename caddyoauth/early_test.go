package caddyoauth_test

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(TestSeen{})
	httpcaddyfile.RegisterHandlerDirective("test_seen", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		seen := new(TestSeen)
		h.Next()
		h.AllArgs(&seen.Text)
		return seen, nil
	})
	httpcaddyfile.RegisterDirectiveOrder("test_seen", httpcaddyfile.Before, "map")
}

// TestSeen is a third-party handler that runs before all others and answers in X-Seen with what it
// knows about the caller.
type TestSeen struct {
	Text string `json:"text,omitempty"`
}

func (TestSeen) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.test_seen", New: func() caddy.Module { return new(TestSeen) }}
}

func (s TestSeen) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	w.Header().Set("X-Seen", r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).ReplaceAll(s.Text, ""))
	return next.ServeHTTP(w, r)
}

// earlyReaders are directives that run before oauth_protect. Each answers in X-Seen, or shows in
// another path, what it knows about the caller.
var earlyReaders = map[string]string{
	"map":                     "map {header.X-OAuth-Client-Id} {who} {\nbob bob\ndefault nobody\n}\nheader X-Seen {who}",
	"vars":                    "vars who {header.X-OAuth-Client-Id}\nheader X-Seen <{vars.who}>",
	"vars of another prefix":  "vars who {header.X-Partner-Client-Id}\nheader X-Seen <{vars.who}>",
	"header":                  "header X-Seen <{header.X-OAuth-Client-Id}>",
	"rewrite":                 "rewrite /tenants{uri}?who={header.X-OAuth-Client-Id}\nheader X-Seen {http.request.uri}",
	"header matcher":          "@bob header X-OAuth-Client-Id bob\nheader @bob X-Seen bob",
	"header matcher, any":     "@bob header X-OAuth-Client-Id *\nheader @bob X-Seen bob",
	"header_regexp":           "@bob header_regexp who X-OAuth-Client-Id .*\nheader @bob X-Seen bob",
	"expression":              "@bob expression `{header.X-OAuth-Client-Id} == \"bob\"`\nheader @bob X-Seen bob",
	"expression of functions": "@bob expression `header({'X-OAuth-Client-Id': 'bob'})`\nheader @bob X-Seen bob",
	"log_append":              "log_append who {header.X-OAuth-Client-Id}\nheader X-Seen <{header.X-OAuth-Client-Id}>",
}

// What a caller says about itself decides nothing, wherever it is read: it is removed before any
// other handler and any matcher of the server.
func TestNothingReadsAForgedIdentity(t *testing.T) {
	// On a route that leads to an oauth_protect, Caddy's own directives may not read it at all.
	const protected = "handle /api/* {\noauth_protect {\nheader_prefix X-Partner-\n}\nreverse_proxy BACKEND\n}\n"
	sites := map[string]string{
		"an open handle beside a protected one": protected + "handle {\nREADER\nreverse_proxy BACKEND\n}",
		"with the server":                       protected + "handle {\nREADER\noauth_server\nreverse_proxy BACKEND\n}",
		"in a route":                            protected + "handle {\nroute {\nREADER\n}\nreverse_proxy BACKEND\n}",
	}
	for site, lines := range sites {
		for _, reader := range slices.Sorted(maps.Keys(earlyReaders)) {
			t.Run(site+", "+reader, func(t *testing.T) {
				g := startGateway(t, "store memory\n"+testClients, strings.ReplaceAll(lines, "READER", earlyReaders[reader]))
				for _, path := range []string{"/api/x", "/open"} {
					a := g.do(g.request("GET", path, "", "X-OAuth-Client-Id", "bob", "X-Partner-Client-Id", "bob", "Authorization", "Bearer x"))
					if seen := a.Header.Get("X-Seen"); strings.Contains(seen, "bob") {
						t.Errorf("%s: %s saw %q", path, reader, seen)
					}
					if g.Backend.count() > 0 && strings.Contains(g.Backend.last(t).RequestURI, "bob") {
						t.Errorf("%s: %s made it %s", path, reader, g.Backend.last(t).RequestURI)
					}
				}
			})
		}
	}
}

// Third-party handlers may read it even on the way to an oauth_protect, and find nothing.
func TestThirdPartyHandlersReadNoForgedIdentity(t *testing.T) {
	for site, lines := range map[string]string{
		"a protected site":    "oauth_server\noauth_protect\noauth_protect /partners/* {\nheader_prefix X-Partner-\n}\nreverse_proxy BACKEND",
		"a protected handle":  "handle /api/* {\noauth_protect {\nheader_prefix X-Partner-\n}\nreverse_proxy BACKEND\n}\nhandle {\nreverse_proxy BACKEND\n}",
		"the server in front": "oauth_server\nhandle /api/* {\noauth_protect {\nheader_prefix X-Partner-\n}\n}\nreverse_proxy BACKEND",
	} {
		g := startGateway(t, "store memory\n"+testClients, "test_seen <{header.X-OAuth-Client-Id}{header.X-Partner-Client-Id}>\n"+lines)
		for _, path := range []string{"/api/x", "/open"} {
			a := g.do(g.request("GET", path, "", "X-OAuth-Client-Id", "bob", "X-Partner-Client-Id", "bob", "Authorization", "Bearer x"))
			if seen := a.Header.Get("X-Seen"); seen != "<>" {
				t.Errorf("%s, %s: the handler saw %q", site, path, seen)
			}
		}
	}
}

// Which file is served must not depend on a forged header, either.
func TestForgedIdentityChoosesNoFiles(t *testing.T) {
	folder := t.TempDir()
	for name, content := range map[string]string{"bob/f": "bob's", "f": "nobody's"} {
		file := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, line := range map[string]string{
		"root":    "root " + folder + "/{header.X-OAuth-Client-Id}",
		"rewrite": "root " + folder + "\nrewrite /{header.X-OAuth-Client-Id}{uri}",
		"vars":    "vars who {header.X-OAuth-Client-Id}\nroot " + folder + "/{vars.who}",
	} {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t, "store memory\n"+testClients, "oauth_server /oauth2/* {\nallow_ambiguous_paths\n}\nhandle /api/* {\noauth_protect\n}\nhandle {\n"+line+"\nfile_server\n}")
			a := g.do(g.request("GET", "/f", "", "Authorization", "Bearer "+g.token("reader"), "X-OAuth-Client-Id", "bob"))
			if a.StatusCode != 200 || a.Body != "nobody's" {
				t.Errorf("%d %q", a.StatusCode, a.Body)
			}
		})
	}
}

// However our handlers get into a server, identity headers are removed early.
func TestEarlyStripIsInstalled(t *testing.T) {
	const head = "{\nadmin off\npersist_config off\nauto_https off\ngrace_period 1s\n%s\noauth {\nstore memory\n" + testClients + "}\n}\n"
	const reader = "test_seen <{header.X-OAuth-Client-Id}>\n"
	for name, config := range map[string]string{
		"a site beside":        fmt.Sprintf(head, "") + "http://a.test:0 {\nbind 127.0.0.1\noauth_protect\nrespond ok\n}\nhttp://localhost:0 {\nbind 127.0.0.1\n" + reader + "respond ok\n}\n",
		"metrics":              fmt.Sprintf(head, "metrics") + ":0 {\nbind 127.0.0.1\n" + reader + "oauth_protect /api/*\nrespond ok\n}\n",
		"metrics by host":      fmt.Sprintf(head, "metrics {\nper_host\n}") + "http://localhost:0 {\nbind 127.0.0.1\n" + reader + "oauth_protect /api/*\nrespond ok\n}\n",
		"traced logs":          fmt.Sprintf(head, "servers {\ntrace\n}\nlog {\noutput discard\nlevel DEBUG\n}") + ":0 {\nbind 127.0.0.1\n" + reader + "oauth_protect /api/*\nrespond ok\n}\n",
		"a named route":        fmt.Sprintf(head, "") + "&(protected) {\noauth_protect /api/*\nrespond ok\n}\n:0 {\nbind 127.0.0.1\n" + reader + "oauth_server\ninvoke protected\n}\n",
		"nested deeply":        fmt.Sprintf(head, "") + ":0 {\nbind 127.0.0.1\n" + reader + "handle /a/* {\nhandle_path /a/b/* {\nroute {\noauth_protect\n}\n}\n}\nrespond ok\n}\n",
		"behind a backend":     fmt.Sprintf(head, "") + ":0 {\nbind 127.0.0.1\n" + reader + "reverse_proxy BACKEND {\n@any status 200\nhandle_response @any {\noauth_protect /api/*\nrespond ok\n}\n}\n}\n",
		"two guards, a reader": fmt.Sprintf(head, "") + ":0 {\nbind 127.0.0.1\n" + reader + "oauth_protect /api/*\noauth_protect /b/*\nrespond ok\n}\n",
	} {
		t.Run(name, func(t *testing.T) {
			g := startCaddyfile(t, config)
			for range 2 {
				r := g.request("GET", "/open", "", "X-OAuth-Client-Id", "bob")
				r.Host = "localhost"
				a := g.do(r)
				if a.StatusCode != 200 || a.Body != "ok" || a.Header.Get("X-Seen") != "<>" {
					t.Errorf("%d %q, seen %q", a.StatusCode, a.Body, a.Header.Get("X-Seen"))
				}
				// The second time, after a reload.
				if err := g.loadCaddyfile(config); err != nil {
					t.Fatal(err)
				}
			}
			adapted, err := adapt(t, formatted(strings.ReplaceAll(config, "BACKEND", "127.0.0.1:9")))
			if err != nil {
				t.Fatal(err)
			}
			if err := validate(adapted); err != nil {
				t.Errorf("caddy validate: %v", err)
			}
		})
	}
}

// All routes of a server work as before: those before ours, ours, and those after them; groups,
// terminal routes, and their metrics.
func TestEarlyStripKeepsTheRoutes(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "respond x")
	const config = `{
		"admin": {"disabled": true, "config": {"persist": false}},
		"apps": {
			"oauth": {"store": {"store": "memory"}, "realms": {"root": {"clients": {"reader": {"secrets": [{"hash": "$sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0"}], "scopes": ["read"], "default_scopes": ["read"]}}}}},
			"http": {"grace_period": "1s", "metrics": {}, "servers": {"srv0": {"listen": ["127.0.0.1:0"], "routes": [
				{"handle": [{"handler": "test_seen", "text": "<{http.request.header.X-OAuth-Client-Id}>"}]},
				{"group": "g", "match": [{"path": ["/a"]}], "handle": [{"handler": "headers", "response": {"set": {"X-Group": ["one"]}}}]},
				{"group": "g", "handle": [{"handler": "headers", "response": {"set": {"X-Group": ["two"]}}}]},
				{"match": [{"path": ["/end"]}], "handle": [{"handler": "headers", "response": {"set": {"X-End": ["1"]}}}], "terminal": true},
				{"handle": [{"handler": "oauth_server"}, {"handler": "headers", "response": {"set": {"X-Behind": ["1"]}}}]},
				{"match": [{"path": ["/api/*"]}], "handle": [{"handler": "oauth_protect"}]},
				{"handle": [{"handler": "oauth_guard"}]},
				{"handle": [{"handler": "static_response", "body": "last"}]}
			]}}}
		}
	}`
	if err := g.loadJSON([]byte(config)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][4]string{"/a": {"200", "one", "1", "last"}, "/b": {"200", "two", "1", "last"}, "/end": {"200", "two", "", ""}, "/api/x": {"401", "two", "1", ""}} {
		a := g.do(g.request("GET", path, "", "X-OAuth-Client-Id", "bob"))
		if got := [4]string{fmt.Sprint(a.StatusCode), a.Header.Get("X-Group"), a.Header.Get("X-Behind"), a.Body}; got != want || a.Header.Get("X-Seen") != "<>" {
			t.Errorf("%s: %q, and the first handler saw %q; want %q", path, got, a.Header.Get("X-Seen"), want)
		}
	}
	if a := g.get("/api/x", g.token("reader")); a.StatusCode != 200 || a.Body != "last" {
		t.Errorf("with a token: %d %q", a.StatusCode, a.Body)
	}
	ctx := caddy.ActiveContext()
	families, err := ctx.GetMetricsRegistry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "handler" && l.GetValue() == "" {
					t.Errorf("%s counts a handler without a name", f.GetName())
				}
			}
		}
	}
}

// Requests that fail before any route reach an error page's backend, too.
func TestErrorPagesReadNoForgedIdentity(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND\nhandle_errors {\nheader X-Seen <{header.X-OAuth-Client-Id}>\nreverse_proxy BACKEND\n}")
	for name, lines := range map[string][]string{
		"no host": {"Host: "}, "an invalid host": {"Host: ..."}, "no token": {"Host: localhost"},
	} {
		before := g.Backend.count()
		a := g.rawRequest("GET /x", append(lines, "X-OAuth-Client-Id: bob", "Connection: Upgrade, X-Forwarded-For", "Upgrade: h2c")...)
		if g.Backend.count() != before+1 {
			t.Fatalf("%s: the error page's backend was not called: %d", name, a.StatusCode)
		}
		h := g.Backend.last(t).Header
		checkNoIdentity(t, h, "X-Oauth-")
		if h.Get("Upgrade") != "" || h.Get("X-Forwarded-For") == "" || a.Header.Get("X-Seen") != "<>" {
			t.Errorf("%s: seen %q, the backend was told %v", name, a.Header.Get("X-Seen"), h)
		}
	}
}

// If Caddy tells us about a server too late, the handlers remove the headers themselves, and the
// log says what that leaves open.
func TestWarningAboutOnlyNamedRoutes(t *testing.T) {
	logs := filepath.Join(t.TempDir(), "log")
	site := "{\nadmin off\npersist_config off\nauto_https off\ngrace_period 1s\nlog {\noutput file " + logs + "\n}\noauth {\nstore memory\n" + testClients + "}\n}\n" +
		"&(protected) {\noauth_protect /api/*\nreverse_proxy BACKEND\n}\n:0 {\nbind 127.0.0.1\nSERVER\ninvoke protected\n}\n"
	g := startCaddyfile(t, strings.ReplaceAll(site, "SERVER", ""))
	if a := g.do(g.request("GET", "/open", "", "X-OAuth-Client-Id", "bob")); a.StatusCode != 200 {
		t.Fatalf("%d", a.StatusCode)
	}
	checkNoIdentity(t, g.Backend.last(t).Header, "X-Oauth-")
	const warning = "oauth handlers only in named routes or error routes"
	if text, _ := os.ReadFile(logs); !strings.Contains(string(text), warning) {
		t.Errorf("no warning in the log:\n%s", text)
	}
	if err := os.Truncate(logs, 0); err != nil {
		t.Fatal(err)
	}
	if err := g.loadCaddyfile(strings.ReplaceAll(site, "SERVER", "oauth_server")); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(logs); strings.Contains(string(text), warning) {
		t.Errorf("a warning without a reason:\n%s", text)
	}
}

// If no directive of a named route has a matcher, Caddy keeps only the first handler. If one of
// ours is in it, all are kept, since a route must not lose what protects it.
func TestNamedRoutesKeepWhatProtectsThem(t *testing.T) {
	const head = "{\nadmin off\npersist_config off\nauto_https off\ngrace_period 1s\noauth {\nstore memory\n" + testClients + "}\n}\n"
	for name, sites := range map[string]string{
		"behind another directive": "&(protected) {\nheader X-Frame-Options DENY\noauth_protect\n}\n:0 {\nbind 127.0.0.1\noauth_server\ninvoke protected\nreverse_proxy BACKEND\n}\n",
		"in front of a backend":    "&(protected) {\noauth_protect\nreverse_proxy BACKEND\n}\n:0 {\nbind 127.0.0.1\noauth_server\ninvoke protected\n}\n",
		"with the server":          "&(all) {\nheader X-Frame-Options DENY\noauth_server\noauth_protect\nreverse_proxy BACKEND\n}\n:0 {\nbind 127.0.0.1\ninvoke all\n}\n",
		"one in the other":         "&(rule) {\nheader X-Frame-Options DENY\noauth_protect\n}\n&(all) {\nheader X-Test all\ninvoke rule\nreverse_proxy BACKEND\noauth_server\n}\n:0 {\nbind 127.0.0.1\ninvoke all\n}\n",
	} {
		t.Run(name, func(t *testing.T) {
			g := startCaddyfile(t, head+sites)
			if a := g.do(g.request("GET", "/x", "")); a.StatusCode != 401 || g.Backend.count() != 0 {
				t.Errorf("without a token: %d, %d requests at the backend", a.StatusCode, g.Backend.count())
			}
			a := g.do(g.request("GET", "/x", "", "Authorization", "Bearer "+g.token("reader")))
			if a.StatusCode != 200 || g.Backend.count() != 1 {
				t.Fatalf("with a token: %d, %d requests at the backend", a.StatusCode, g.Backend.count())
			}
			if client := g.Backend.last(t).Header.Get("X-Oauth-Client-Id"); client != "reader" {
				t.Errorf("the client is %q", client)
			}
		})
	}
}
