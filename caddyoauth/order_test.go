package caddyoauth_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// orderSites are addresses that put a site's routes at different places in the JSON: those of a
// site without a name are the server's own, and loaded one after the other.
var orderSites = map[string]string{"without a name": ":8080", "with a name": "http://api.example.com"}

// ordered returns the error of validating a Caddyfile with these lines in its site, or "".
func ordered(t *testing.T, address, lines string) string {
	t.Helper()
	config, err := adapt(t, formatted("{\nadmin off\npersist_config off\nskip_install_trust\nauto_https off\noauth {\nstore memory\n"+testClients+"\n}\n}\n"+
		"&(protected) {\noauth_protect\nrespond ok\n}\n"+
		"&(loop) {\ninvoke loop\n}\n&(late) {\nroot /srv/{http.auth.user.id}\nrespond ok\n}\n"+
		"http://open.example.com {\nrewrite * /{header.X-OAuth-Client-Id}{uri}\nrespond {header.X-OAuth-Client-Id}\n}\n"+
		"http://other.example.com {\noauth_protect {\nheader_prefix X-Who-\n}\n}\n"+address+" {\n"+lines+"\n}\n"))
	if err != nil {
		t.Fatalf("%s: %v", lines, err)
	}
	if err := validate(config); err != nil {
		return err.Error()
	}
	return ""
}

// Using the caller's identity before oauth_protect has set it is refused at load, with the place.
func TestIdentityTooEarlyIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		lines string
		want  []string // in the error
	}{
		"root, a header": {"root * /srv/{header.X-OAuth-Client-Id}\noauth_protect\nfile_server",
			[]string{"'/srv/{header.X-OAuth-Client-Id}'", "root, vars", "{header.X-OAuth-Client-Id} is empty"}},
		"root, a placeholder":        {"root * /srv/{http.auth.user.id}\noauth_protect\nfile_server", []string{"'/srv/{http.auth.user.id}'", "{http.auth.user.id} is empty"}},
		"root for a part":            {"root /a/* /srv/{http.auth.user.id}\noauth_protect /a/*\nfile_server", []string{"'/srv/{http.auth.user.id}'"}},
		"vars":                       {"vars tenant {http.auth.user.tenant}\noauth_protect\nrespond {vars.tenant}", []string{"{http.auth.user.tenant}"}},
		"the name of a variable":     {"vars {http.auth.user.id} x\noauth_protect\nrespond ok", []string{"{http.auth.user.id}"}},
		"rewrite":                    {"rewrite /data/* /tenants/{header.X-OAuth-Client-Id}{uri}\noauth_protect\nrespond ok", []string{"'/tenants/{header.X-OAuth-Client-Id}{http.request.uri}'", "rewrite, uri, method, try_files"}},
		"uri":                        {"uri replace /me /{http.auth.user.id}\noauth_protect\nrespond ok", []string{"'/{http.auth.user.id}'", "uri"}},
		"method":                     {"method {http.auth.user.method}\noauth_protect\nrespond ok", []string{"method"}},
		"redir":                      {"redir /me /users/{http.auth.user.id}\noauth_protect\nrespond ok", []string{"'/users/{http.auth.user.id}'", "redir, respond"}},
		"try_files":                  {"try_files /{http.auth.user.id}{path} /index.html\noauth_protect\nrespond ok", []string{"matcher file", "{http.auth.user.id}"}},
		"header at once":             {"header X-User {http.auth.user.id}\noauth_protect\nrespond ok", []string{"header, request_header"}},
		"request_body":               {"request_body {\nset {http.auth.user.id}\n}\noauth_protect\nrespond ok", []string{"handler request_body"}},
		"forward_auth":               {"forward_auth 127.0.0.1:9 {\nuri /check?user={http.auth.user.id}\n}\noauth_protect\nrespond ok", []string{"forward_auth", "/check?user={http.auth.user.id}"}},
		"forward_auth's headers":     {"forward_auth 127.0.0.1:9 {\nuri /check\nheader_up X-User {header.X-OAuth-Client-Id}\n}\noauth_protect\nrespond ok", []string{"forward_auth"}},
		"log_append early":           {"log_append <user {http.auth.user.id}\noauth_protect\nrespond ok", []string{"log_append"}},
		"a map, used too early":      {"map {http.auth.user.id} {tenant} {\na one\ndefault two\n}\nroot * /srv/{tenant}\noauth_protect\nfile_server", []string{"'/srv/{tenant}'"}},
		"a map over the token":       {"map {host} {http.auth.user.groups} {\ndefault admins\n}\noauth_protect\nrespond ok", []string{"handler map", "{http.auth.user.groups}", "override"}},
		"the prefix of another":      {"root * /srv/{header.X-Who-Client-Id}\noauth_protect\nfile_server", []string{"{header.X-Who-Client-Id}"}},
		"another spelling":           {"root * /srv/{header.x_oauth-client-id}\noauth_protect\nfile_server", []string{"{header.x_oauth-client-id}"}},
		"its own matcher":            {"@a header X-OAuth-Client-Id alice\noauth_protect @a\nrespond ok", []string{"matcher header", "'X-Oauth-Client-Id'"}},
		"its own matcher, negated":   {"@a not header X-OAuth-Client-Id *\noauth_protect @a\nrespond ok", []string{"matcher header"}},
		"a pattern of a header":      {"@a header_regexp X-OAuth-Client-Id ^a\nroot @a /srv\noauth_protect\nrespond ok", []string{"matcher header_regexp"}},
		"a matcher of vars":          {"@a vars {http.auth.user.id} alice\nrewrite @a /alice{uri}\noauth_protect\nrespond ok", []string{"matcher vars", "{http.auth.user.id}"}},
		"a path":                     {"@a path /users/{http.auth.user.id}/*\noauth_protect @a\nrespond ok", []string{"matcher path"}},
		"an expression":              {"@a expression {http.auth.user.id} == 'alice'\nrewrite @a /x\noauth_protect\nrespond ok", []string{"matcher expression"}},
		"a header in an expression":  {"@a expression header({'X-OAuth-Client-Id':'alice'})\nrewrite @a /x\noauth_protect\nrespond ok", []string{"matcher expression"}},
		"a scope":                    {"@a oauth_scope admin\nrewrite @a /x\noauth_protect\nrespond ok", []string{"matcher oauth_scope", "'admin'"}},
		"in a handle":                {"handle /a/* {\nroot * /srv/{http.auth.user.id}\noauth_protect\nfile_server\n}", []string{"'/srv/{http.auth.user.id}'"}},
		"before a handle":            {"root * /srv/{http.auth.user.id}\nhandle /a/* {\noauth_protect\nfile_server\n}\nhandle {\nrespond open\n}", []string{"'/srv/{http.auth.user.id}'"}},
		"in a route":                 {"route {\nroot * /srv/{http.auth.user.id}\noauth_protect\nfile_server\n}", []string{"'/srv/{http.auth.user.id}'"}},
		"before a named route":       {"root * /srv/{http.auth.user.id}\ninvoke protected", []string{"'/srv/{http.auth.user.id}'"}},
		"the matcher of a handle":    {"@a header X-OAuth-Client-Id alice\nhandle @a {\nrespond alice\n}\nhandle {\noauth_protect\nrespond ok\n}", []string{"matcher header"}},
		"a header, after basic_auth": {"route {\nbasic_auth {\nu $2a$10$kVgX/6erEKdQ8SKSIdW7zOo3TCo5RVGdC9HUwfb8zBtnxPOsaT32W\n}\nrewrite * /{header.X-OAuth-Client-Id}{uri}\noauth_protect\nrespond ok\n}", []string{"{header.X-OAuth-Client-Id}"}},
	} {
		for kind, address := range orderSites {
			got := ordered(t, address, c.lines)
			want := c.want
			if kind == "with a name" {
				want = append(want, "site api.example.com")
			}
			for _, w := range append(want, "server srv", "before oauth_protect") {
				if !strings.Contains(got, w) {
					t.Errorf("%s, in a site %s: the error lacks %q: %q", name, kind, w, got)
				}
			}
		}
	}
}

// Using the identity after oauth_protect, in place or in time, is accepted, and so is anything that
// does not concern it.
func TestIdentityAfterProtectIsAccepted(t *testing.T) {
	for name, lines := range map[string]string{
		"after it":                         "oauth_protect\nrequest_header X-User {http.auth.user.id}\nreverse_proxy 127.0.0.1:9",
		"in a route, in the written order": "route {\noauth_protect\nroot * /srv/{http.auth.user.id}\nrewrite * /{header.X-OAuth-Client-Id}{uri}\nfile_server\n}",
		"in a handle after it":             "oauth_protect\nhandle /a/* {\nroot * /srv/{http.auth.user.id}\nfile_server\n}",
		"in a handle_path after it":        "oauth_protect\nhandle_path /a/* {\nrewrite * /{http.auth.user.id}{uri}\nfile_server\n}",
		"a scope after it":                 "oauth_protect\n@admin oauth_scope admin\nrequest_header @admin X-Role admin\n@other header X-OAuth-Client-Id a\nrespond @other ok",
		"the matcher of a second one":      "@a header X-OAuth-Client-Id a\nroute {\noauth_protect\noauth_protect @a {\nscopes read\n}\nrespond ok\n}",
		"in handle_errors":                 "oauth_protect\nhandle_errors {\nrewrite * /{http.auth.user.id}\nrespond {header.X-OAuth-Client-Id}\n}",
		"log_append":                       "log_append user {http.auth.user.id}\noauth_protect\nrespond ok",
		"a header of the answer":           "header >X-User {http.auth.user.id}\noauth_protect\nrespond ok",
		"a deferred header":                "header {\nX-User {http.auth.user.id}\ndefer\n}\noauth_protect\nrespond ok",
		"a span":                           "tracing {\nspan x\nspan_attributes {\nuser {http.auth.user.id}\n}\n}\noauth_protect\nrespond ok",
		"header_up":                        "oauth_protect /a/*\nreverse_proxy 127.0.0.1:9 {\nheader_up Remote-User {header.X-OAuth-Client-Id}\n}",
		"a proxy for open paths, before":   "route {\nreverse_proxy /public/* 127.0.0.1:9 {\nheader_up Remote-User {header.X-OAuth-Client-Id}\n}\noauth_protect\nreverse_proxy 127.0.0.1:9 {\nheader_up Remote-User {header.X-OAuth-Client-Id}\n}\n}",
		"a map, used after it":             "map {http.auth.user.id} {tenant} {\na one\ndefault two\n}\noauth_protect\nrespond {tenant}",
		"in another handle":                "handle /a/* {\nroot * /srv/{http.auth.user.id}\nfile_server\n}\nhandle {\noauth_protect\nrespond ok\n}",
		"in a handle between two others":   "handle /a/* {\noauth_protect\nrespond ok\n}\nhandle /b/* {\nrequest_header X-User {header.X-OAuth-Client-Id}\nrespond ok\n}\nhandle {\noauth_protect\nrespond ok\n}",
		"after it, for a part":             "route {\noauth_protect /a/*\nroot /a/* /srv/{http.auth.user.id}\noauth_protect /b/*\nfile_server\n}",
		"a named route after it":           "oauth_protect\ninvoke late",
		"after a named route":              "route {\ninvoke protected\nroot * /srv/{http.auth.user.id}\noauth_protect\nfile_server\n}",
		"without any oauth_protect":        "root * /srv/{http.auth.user.id}\nfile_server",
		"basic_auth's user":                "route {\nbasic_auth {\nu $2a$10$kVgX/6erEKdQ8SKSIdW7zOo3TCo5RVGdC9HUwfb8zBtnxPOsaT32W\n}\nrewrite * /{http.auth.user.id}{uri}\noauth_protect\nrespond ok\n}",
		"a path that looks alike":          "@a path /X-OAuth-docs/*\nrewrite @a /x-oauth-docs{uri}\noauth_protect\nrespond ok",
		"a name for the access log":        "vars http.auth.user.id nobody\noauth_protect\nrespond ok",
		"an open brace without its end":    "respond /x \"{http.auth.user.id\"\noauth_protect\nrespond ok",
		"a route that invokes itself":      "invoke loop\ninvoke late",
	} {
		for kind, address := range orderSites {
			if got := ordered(t, address, lines); got != "" {
				t.Errorf("%s, in a site %s: %s", name, kind, got)
			}
		}
	}
}

// When a third-party module reads the identity is not known, so the log has a warning.
func TestWarningAboutIdentityInThirdPartyModules(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	g := startCaddyfile(t, strings.Replace(caddyfileOf("store memory\n"+testClients, "route {\ntest_user tenant={header.X-OAuth-Client-Id}\noauth_protect\nrespond ok\n}"), "{\n", "{\nlog {\noutput file "+log+"\n}\n", 1))
	if a := g.get("/x", ""); a.StatusCode != 401 {
		t.Errorf("%d", a.StatusCode)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), `"level":"warn"`) || !strings.Contains(string(text), "'{header.X-OAuth-Client-Id}' in the handler test_user comes before oauth_protect") {
		t.Errorf("the log has no warning: %s", text)
	}
}

// Some matchers would take what a token says as a pattern, so the log has a warning.
func TestWarningAboutIdentityInAPattern(t *testing.T) {
	for name, c := range map[string]struct{ lines, want string }{
		"a path":               {"@o path /users/{http.auth.user.subject}/*", "'/users/{http.auth.user.subject}/*' in the matcher path is a pattern"},
		"a path, negated":      {"@o not path /users/{http.auth.user.subject}/*", "in the matcher path is a pattern"},
		"a header":             {"@o header X-Owner {http.auth.user.id}", "'{http.auth.user.id}' in the matcher header is a pattern"},
		"a query":              {"@o query owner={header.X-OAuth-Client-Id}", "'{header.X-OAuth-Client-Id}' in the matcher query is a pattern"},
		"a host":               {"@o host {http.auth.user.id}.example.com", "in the matcher host is a pattern"},
		"an expression":        {"@o expression `{path.1} == {http.auth.user.subject}`", ""},
		"a path of the caller": {"@o path /users/{query.user}", ""},
	} {
		log := filepath.Join(t.TempDir(), "log")
		config, err := adapt(t, formatted(strings.Replace(caddyfileOf("store memory\n"+testClients, "oauth_protect\n"+c.lines+"\nrespond @o ok"), "{\n", "{\nlog {\noutput file "+log+"\n}\n", 1)))
		if err == nil {
			err = validate(config)
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		if warned := strings.Contains(string(text), "is a pattern"); warned != (c.want != "") || !strings.Contains(string(text), c.want) {
			t.Errorf("%s: the log should have a warning %q: %s", name, c.want, text)
		}
	}
}

// After an oauth_protect that requests can pass unnamed, a path made of an identity may be somebody
// else's, so the log has a warning.
func TestWarningAboutPathsOfNobody(t *testing.T) {
	const root = "root * /srv/{http.auth.user.id}\nfile_server"
	for name, c := range map[string]struct {
		lines string
		warns bool
	}{
		"optional":                     {"oauth_protect {\noptional\n}\n" + root, true},
		"optional for a method":        {"oauth_protect {\non GET {\noptional\n}\n}\n" + root, true},
		"report_only":                  {"oauth_protect {\nreport_only\n}\n" + root, true},
		"two of them":                  {"oauth_protect {\nreport_only\n}\noauth_protect {\noptional\n}\n" + root, true},
		"in a handle":                  {"oauth_protect {\noptional\n}\nhandle /a/* {\n" + root + "\n}", true},
		"a rewrite by a header":        {"oauth_protect {\noptional\n}\nrewrite * /{header.X-OAuth-Client-Id}{uri}\nrespond ok", true},
		"a file server":                {"oauth_protect {\noptional\n}\nfile_server {\nroot /srv/{http.auth.user.id}\n}", true},
		"every request has a name":     {"oauth_protect\n" + root, false},
		"one that refuses":             {"oauth_protect {\noptional\n}\noauth_protect\n" + root, false},
		"one that refuses comes first": {"oauth_protect\noauth_protect {\nreport_only\n}\n" + root, false},
		"one that refuses, for a part": {"oauth_protect {\noptional\n}\noauth_protect /a/*\nroot /a/* /srv/{http.auth.user.id}\nfile_server", false},
		"a scope":                      {"oauth_protect {\noptional\n}\n@known oauth_scope read\nroot @known /srv/{http.auth.user.id}\nfile_server", false},
		"a matcher for the caller":     {"oauth_protect {\noptional\n}\n@known not vars {http.auth.user.id} \"\"\nroot @known /srv/{http.auth.user.id}\nfile_server", false},
		"a matcher for another route":  {"oauth_protect {\noptional\n}\n@known oauth_scope read\nhandle @known {\nrespond ok\n}\n" + root, true},
		"no path":                      {"oauth_protect {\noptional\n}\nvars user {http.auth.user.id}\nrequest_header X-User /{http.auth.user.id}\nrespond ok", false},
	} {
		log := filepath.Join(t.TempDir(), "log")
		config, err := adapt(t, formatted(logTo(log, caddyfileOf("store memory\n"+testClients, "route {\n"+c.lines+"\n}"))))
		if err == nil {
			err = validate(config)
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		if warned := strings.Contains(string(text), "requests that oauth_protect lets pass unnamed get here as well"); warned != c.warns {
			t.Errorf("%s: warned %t", name, warned)
		}
	}
}

// A site with thousands of routes loads without delay, even if they use an identity without an
// oauth_protect: four times as many routes take about four times as long. If something were put together
// anew for each route, they would take up to sixteen times as long.
func TestOrderOfManyRoutes(t *testing.T) {
	load := func(routes int) time.Duration {
		var lines strings.Builder
		for i := range routes {
			fmt.Fprintf(&lines, "rewrite /old/%d /new/{http.auth.user.id}/%d\nredir /gone/%d /{http.auth.user.id}\n", i, i, i)
		}
		start := time.Now()
		if got := ordered(t, ":8080", "oauth_server\n"+lines.String()); got != "" {
			t.Error(got)
		}
		return time.Since(start)
	}
	load(25) // what is done but once
	var tries []float64
	for range 10 { // other programs may slow down any of them
		few := load(250)
		times := float64(load(1000)) / float64(few)
		if times < 8 {
			return
		}
		tries = append(tries, times)
	}
	t.Errorf("four times as many routes take %.1f times as long", tries)
}
