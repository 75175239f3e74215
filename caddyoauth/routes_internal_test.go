package caddyoauth

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"pgregory.net/rapid"
)

// routesPolicy returns the policy of a Caddyfile.
func routesPolicy(t testing.TB, caddyfile string) *policy {
	t.Helper()
	file := filepath.Join(t.TempDir(), "Caddyfile")
	if err := os.WriteFile(file, []byte(caddyfile), 0o600); err != nil {
		t.Fatal(err)
	}
	p, end, err := loadPolicy(file, "")
	if err != nil {
		t.Fatalf("%s\n%v", caddyfile, err)
	}
	t.Cleanup(end)
	return p
}

// Clients that no rule of a row tells apart are asked for once, however many there are, and all of
// them are listed.
func TestRowsAskForAlikeClientsOnce(t *testing.T) {
	text := "{\nadmin off\nauto_https off\noauth {\nstore memory\n"
	for i := range 1000 {
		// Most scopes are in no rule. Every fourth client can read, and every tenth is disabled.
		text += fmt.Sprintf("client c%d {\nsecret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0\nscopes s%d", i, i)
		if i%4 == 0 {
			text += " read"
		}
		if i%10 == 0 {
			text += "\ndisabled"
		}
		text += "\n}\n"
	}
	p := routesPolicy(t, text+"}\n}\n:80 {\noauth_protect {\nscopes read\n}\nrespond 200\n}\n")
	s := &survey{ctx: context.Background(), policy: p, about: make(map[caddyhttp.MiddlewareHandler]*handlerFacts)}
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
	if len(s.table.Sites) != 1 || len(s.table.Sites[0].Rows) != 1 || len(s.table.Sites[0].Rows[0].Clients) != 200 {
		t.Errorf("got %+v", s.table.Sites)
	}
	if s.asked > 10 {
		t.Errorf("%d questions were asked", s.asked)
	}
}

// routesClients are the clients of these tests.
const routesClients = `{
	admin off
	auto_https off
	oauth {
		store memory
		client reader {
			secret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0
			scopes read
		}
		client writer {
			secret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0
			scopes read write
		}
		client off {
			secret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0
			scopes read write admin
			disabled
		}
		realm other {
			client guest {
				secret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0
				scopes read
			}
		}
	}
}
`

// drawSite draws the directives of a site, which nest to a depth.
func drawSite(t *rapid.T, depth int) string {
	var text strings.Builder
	matchers := 0
	one := func(name string, choices ...string) string { return rapid.SampledFrom(choices).Draw(t, name) }
	pathText := func() string {
		return one("path", "/a", "/a/", "/a/*", "/a*", "/a/b", "/A/b/*", "/b", "/b/*", "/b/a/*", "*.php", "*/", "/*", "*", "/a*/b", "/a/*.php")
	}
	matcher := func() string {
		if rapid.Bool().Draw(t, "simple") {
			return pathText()
		}
		matchers++
		name := fmt.Sprintf("@m%d_%d", depth, matchers)
		fmt.Fprintf(&text, "%s {\n", name)
		for _, kind := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"path", "not path", "method", "not method", "header", "path_regexp", "expression", "host", "not host", "oauth_scope", "not oauth_scope"}), 1, 2, rapid.ID).Draw(t, "kinds") {
			switch kind {
			case "path", "not path":
				fmt.Fprintf(&text, "%s %s %s\n", kind, pathText(), pathText())
			case "method", "not method":
				fmt.Fprintf(&text, "%s %s\n", kind, one("method", "GET", "POST", "GET HEAD", "DELETE"))
			case "header":
				fmt.Fprintf(&text, "header %s 1\n", one("header", "X-A", "X-B"))
			case "path_regexp":
				fmt.Fprintf(&text, "path_regexp %s\n", one("regexp", "^/a", "^/a/", "^/b(/|$)", `\.php$`, "^/A"))
			case "expression":
				fmt.Fprintf(&text, "expression `{header.X-A} == \"1\"`\n")
			case "oauth_scope", "not oauth_scope":
				fmt.Fprintf(&text, "%s %s\n", kind, one("scope", "read", "write"))
			case "host", "not host":
				fmt.Fprintf(&text, "%s %s\n", kind, one("host", "a.example.com", "*.example.com", "b.example.com"))
			}
		}
		text.WriteString("}\n")
		return name
	}
	protect := func(matcher string) {
		fmt.Fprintf(&text, "oauth_protect %s %s {\ninsecure_http\n", matcher, one("realm", "root", "root", "other"))
		for _, option := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"scopes read", "scopes write", "scopes admin", "optional", "on GET HEAD {\nscopes read\n}", "on POST {\nscopes write\n}", "on * {\noptional\n}", "report_only", "basic"}), 0, 2, func(option string) string {
			word, rest, _ := strings.Cut(option, " ")
			if word == "on" {
				return "on " + rest[:1]
			}
			return word
		}).Draw(t, "options") {
			text.WriteString(option + "\n")
		}
		text.WriteString("}\n")
	}
	for range rapid.IntRange(1, 4).Draw(t, "directives") {
		switch one("directive", "protect", "protect", "protect all", "handle", "handle_path", "route", "respond", "proxy", "rewrite", "strip_prefix", "method", "replace", "error") {
		case "protect":
			protect(matcher())
		case "protect all":
			protect("*")
		case "handle", "route":
			if depth < 2 {
				directive := one("block", "handle", "route")
				m := matcher()
				fmt.Fprintf(&text, "%s %s {\n%s}\n", directive, m, drawSite(t, depth+1))
			}
		case "handle_path":
			if depth < 2 {
				fmt.Fprintf(&text, "handle_path %s {\n%s}\n", one("prefix", "/a/*", "/a*", "/b/*"), drawSite(t, depth+1))
			}
		case "respond":
			fmt.Fprintf(&text, "respond %s 200\n", matcher())
		case "proxy":
			fmt.Fprintf(&text, "reverse_proxy %s 127.0.0.1:1\n", matcher())
		case "rewrite":
			fmt.Fprintf(&text, "rewrite %s %s\n", matcher(), one("to", "/b/x", "/a{uri}", "/b{path}", "/a/b.php", "/a/{header.X-A}"))
		case "strip_prefix":
			fmt.Fprintf(&text, "uri strip_prefix %s\n", one("prefix", "/a", "/b", "/a/b"))
		case "method":
			fmt.Fprintf(&text, "method %s GET\n", matcher())
		case "replace":
			fmt.Fprintf(&text, "uri replace /a /b\n")
		case "error":
			fmt.Fprintf(&text, "error %s 403\n", matcher())
		}
	}
	if rapid.Bool().Draw(t, "last") {
		text.WriteString("reverse_proxy 127.0.0.1:1\n")
	}
	return text.String()
}

// fits reports whether a row is for a request, as people read it.
func (r *routeRow) fits(t *rapid.T, method, target string, header http.Header) bool {
	if !slices.Contains(r.Methods, "*") && !slices.Contains(r.Methods, method) {
		return false
	}
	if !slices.ContainsFunc(r.Paths, func(text string) bool {
		begin, end, wildcard := strings.Cut(text, "*")
		lower := strings.ToLower(target)
		if !wildcard {
			return lower == strings.ToLower(text)
		}
		return len(lower) >= len(begin)+len(end) && strings.HasPrefix(lower, begin) && strings.HasSuffix(lower, end)
	}) {
		return false
	}
	for _, condition := range r.When {
		kind, rest, _ := strings.Cut(condition, " ")
		holds := false
		switch {
		case strings.HasSuffix(condition, "after a rewrite"):
			return false // judged by unsure
		case kind == "header":
			holds = header.Get(rest) == "1"
		case kind == "path_regexp":
			holds = regexp.MustCompile(rest).MatchString(target)
		case kind == "expression":
			holds = header.Get("X-A") == "1"
		case kind == "path":
			holds, _ = path.Match(rest, strings.ToLower(target))
		default:
			t.Fatalf("unknown condition %q", condition)
		}
		if !holds {
			return false
		}
	}
	return true
}

// What a row says holds for any request that fits it, and no row before.
func TestRowsHoldForTheirRequests(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		caddyfile := routesClients
		for _, host := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"http://:80", "http://a.example.com", "http://*.example.com"}), 1, 2, rapid.ID).Draw(rt, "sites") {
			caddyfile += host + " {\n" + drawSite(rt, 0) + "}\n"
		}
		file := filepath.Join(dir, "Caddyfile")
		if err := os.WriteFile(file, []byte(caddyfile), 0o600); err != nil {
			rt.Fatal(err)
		}
		p, end, err := loadPolicy(file, "")
		if err != nil {
			rt.Skip(err) // some of what is drawn is refused when it is loaded
		}
		defer end()
		table, err := listRoutes(context.Background(), p)
		if err != nil {
			rt.Fatal(err)
		}
		for range 10 {
			host := rapid.SampledFrom([]string{"a.example.com", "b.example.com", "c.example.com", "x.org"}).Draw(rt, "host")
			target := rapid.StringMatching(`(/(a|b|A|x|ab|x\.php)){0,4}(/|\.php)?`).Draw(rt, "path")
			if !strings.HasPrefix(target, "/") {
				target = "/" + target
			}
			method := rapid.SampledFrom([]string{"GET", "HEAD", "POST", "PUT"}).Draw(rt, "method")
			header := make(http.Header)
			for _, name := range []string{"X-A", "X-B"} {
				if rapid.Bool().Draw(rt, name) {
					header.Set(name, "1")
				}
			}
			row := table.rowFor(rt, host, method, target, header)
			server, name, address, err := p.serverFor("http://" + host + target)
			if err != nil {
				rt.Fatal(err)
			}
			// best returns how a visitor fares with the best of its tokens: 2 gets an answer, 1 gets past
			// the rules, 0 doesn't.
			best := func(who visitor) (fares int) {
				tokens := [][]string{nil}
				if who.client != "" {
					scopes := p.app.realms[who.realm].settings.Clients[who.client].Scopes
					tokens = append([][]string{scopes}, lesserScopes(scopes, scopesMatched(server))...)
				}
				for _, scopes := range tokens {
					w, err := p.walk(context.Background(), server, name, address, question{method: method, who: who, header: header}, scopes)
					if err != nil {
						rt.Fatal(err)
					}
					switch {
					case w.Outcome.Kind == outcomeUnknown:
						rt.Fatalf("unknown: %v", w.Outcome)
					case w.Outcome.passes():
						return 2
					case w.Outcome.Kind != outcomeRefuse:
						fares = 1
					}
				}
				return fares
			}
			says := func(format string, args ...any) {
				rt.Errorf("%s\n%s http://%s%s %v, row %+v: %s", caddyfile, method, host, target, header, row, fmt.Sprintf(format, args...))
			}
			anonymous := best(visitor{})
			if row == nil {
				if anonymous != 1 {
					says("there is no row")
				}
				continue
			}
			if row.Who == routeUnknown {
				continue // it depends on too much
			}
			if open := row.Who == routeOpen; open != (anonymous == 2) {
				says("a request without a token gets an answer: %t", anonymous == 2)
			}
			if row.Who == routeAnswered && anonymous != 1 {
				says("a request without a token is refused")
			}
			if anonymous == 2 {
				continue
			}
			for _, who := range []visitor{{realm: "root", client: "reader"}, {realm: "root", client: "writer"}, {realm: "root", client: "off"}, {realm: "other", client: "guest"}} {
				listed := slices.Contains(row.Clients, routeClient{who.realm, who.client})
				if fares := best(who); listed != (fares == 2 || fares > anonymous) {
					says("%s fares as %d", who.client, fares)
				}
			}
		}
	})
}

// rowFor returns the first row for a request, or nil if nothing is for its host. Rows that depend on
// what the request doesn't show skip the case.
func (t *routeTable) rowFor(rt *rapid.T, host, method, target string, header http.Header) *routeRow {
	for _, site := range t.Sites {
		if len(site.Hosts) > 0 && !slices.ContainsFunc(site.Hosts, func(h string) bool { return hostPattern(host).within(hostPattern(h)) }) {
			continue
		}
		for i := range site.Rows {
			row := &site.Rows[i]
			if slices.ContainsFunc(row.When, func(c string) bool { return strings.HasSuffix(c, "after a rewrite") }) {
				rt.Skip("depends on a rewrite")
			}
			if row.fits(rt, method, target, header) {
				return row
			}
		}
		rt.Fatalf("site %v has no row for %s %s", site.Hosts, method, target)
	}
	return nil
}
