package caddyoauth_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// openDoors returns the line and the code of each finding about an open door, sorted. Without a
// line there is only the code.
func openDoors(t *testing.T, text string) (lines []string) {
	t.Helper()
	findings := lintCaddyfile(t, formatted(text))
	for _, f := range findings {
		if f.Kind == "open" && f.Silenced == nil {
			lines = append(lines, strings.TrimSpace(strings.TrimPrefix(f.At, "Caddyfile:")+" "+f.Code))
			t.Logf("%s: %s: %s %v", f.At, f.Code, f.Text, f.Sites)
		}
	}
	slices.Sort(lines)
	return lines
}

// markedDoors returns what the comments of a Caddyfile say, in the same form. A comment such as
// "# path-left-open" stands on the line of the finding, "# ^path-left-open" below it, and
// "# ?path-left-open" on a line that is not known.
func markedDoors(text string) (lines []string) {
	for i, line := range strings.Split(formatted(text), "\n") {
		_, comment, _ := strings.Cut(line, "# ")
		for code := range strings.FieldsSeq(comment) {
			switch name := strings.TrimLeft(code, "?^"); code[0] {
			case '?':
				lines = append(lines, name)
			case '^':
				lines = append(lines, fmt.Sprint(i, " ", name))
			default:
				lines = append(lines, fmt.Sprint(i+1, " ", name))
			}
		}
	}
	slices.Sort(lines)
	return lines
}

// gatewayOf returns a Caddyfile with clients and these sites, or a site with these directives.
// Global options come before a line ====.
func gatewayOf(sites string) string {
	globals, rest, ok := strings.Cut(sites, "====\n")
	if ok {
		sites = rest
	} else {
		globals = ""
	}
	if !strings.Contains(sites, "://") {
		sites = "http://api.example.com {\n" + sites + "\n}\n"
	}
	return "{\nadmin off\npersist_config off\nskip_install_trust\nauto_https off\n" + globals + "oauth {\nstore memory\nclient c {\n" + lintSecret + "\nscopes read write audit\n}\n}\n}\n" + sites
}

// Each open door is found, at its line, and its innocent neighbors are not.
func TestOpenDoors(t *testing.T) {
	folder := t.TempDir()
	if err := os.MkdirAll(filepath.Join(folder, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		// Something answers first.
		"a proxy before it":               "route {\nreverse_proxy 127.0.0.1:9\noauth_protect # answered-before-protect\n}",
		"files before it":                 "route {\nfile_server\noauth_protect # answered-before-protect\n}",
		"a proxy before it, for its path": "route {\nreverse_proxy /api/* 127.0.0.1:9\noauth_protect /api/* # answered-before-protect\nrespond ok\n}",
		"one of its paths is taken":       "@a path /a/* /b/*\nroute {\nreverse_proxy /b/* 127.0.0.1:9\noauth_protect @a # answered-before-protect\nrespond ok\n}",
		"a proxy for another path":        "route {\nreverse_proxy /public/* 127.0.0.1:9\noauth_protect\nreverse_proxy 127.0.0.1:9\n}",
		"a proxy for a part":              "route {\nreverse_proxy /api/public/* 127.0.0.1:9\noauth_protect\nreverse_proxy 127.0.0.1:9\n}",
		"a proxy after it":                "reverse_proxy 127.0.0.1:9\noauth_protect",
		"a password before it":            "route {\nbasic_auth {\nu $2a$10$kVgX/6erEKdQ8SKSIdW7zOo3TCo5RVGdC9HUwfb8zBtnxPOsaT32W\n}\nreverse_proxy 127.0.0.1:9\noauth_protect\n}",
		"forward_auth before it":          "forward_auth 127.0.0.1:8 {\nuri /check\n}\noauth_protect\nreverse_proxy 127.0.0.1:9",
		"another handle":                  "handle /public/* {\nreverse_proxy 127.0.0.1:9\n}\nhandle {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}",
		"the path is refused before it":   "route {\nrespond /api/* 403\noauth_protect /api/*\nrespond ok\n}",

		// Its matcher doesn't see the path.
		"a rewrite":                          "rewrite /api/* /v1{uri}\noauth_protect /api/* # rewritten-before-protect\nreverse_proxy 127.0.0.1:9",
		"a rewrite with the path in a query": "rewrite /api/* /index?route={path}\noauth_protect /api/* # rewritten-before-protect\nreverse_proxy 127.0.0.1:9",
		"strip_prefix":                       "uri strip_prefix /api\noauth_protect /api/* # rewritten-before-protect\nreverse_proxy 127.0.0.1:9",
		"handle_path with the prefix":        "handle_path /api/* {\noauth_protect /api/* # rewritten-before-protect\nreverse_proxy 127.0.0.1:9\n}",
		"try_files and PHP":                  "root * /srv/app\ntry_files {path} /index.php\noauth_protect /private/* # rewritten-before-protect\nphp_fastcgi 127.0.0.1:9",
		"handle_path without the prefix":     "handle_path /api/* {\n@admin path /admin /admin/*\noauth_protect @admin\nreverse_proxy 127.0.0.1:9\n}",
		"a rewrite to the protected path":    "rewrite /old/* /api{uri}\n@api path /api /api/*\noauth_protect @api\nreverse_proxy 127.0.0.1:9",
		"a rewrite after it":                 "route {\n@api path /api /api/*\noauth_protect @api\nuri strip_prefix /api\nreverse_proxy 127.0.0.1:9\n}",
		"a rewrite to a page":                "rewrite /api/* /closed.html\noauth_protect /api/*\nreverse_proxy 127.0.0.1:9",
		"a single page application":          "try_files {path} /index.html\noauth_protect /admin/*\nfile_server",

		// Paths beside it.
		"the folder itself":                    "oauth_protect /admin/* # path-left-open\nreverse_proxy 127.0.0.1:9",
		"what is in the folder":                "oauth_protect /admin # path-left-open\nreverse_proxy 127.0.0.1:9",
		"a slash at the end":                   "@admin path /admin/\noauth_protect @admin # path-left-open\nreverse_proxy 127.0.0.1:9",
		"the root alone":                       "oauth_protect / # path-left-open\nreverse_proxy 127.0.0.1:9",
		"the folder's handle":                  "handle /admin/* {\noauth_protect # ambiguous-path-left-open path-left-open\nreverse_proxy 127.0.0.1:9\n}\nhandle {\nreverse_proxy 127.0.0.1:9\n}",
		"the folder in a list":                 "@api path /a /a/* /b/*\noauth_protect @api # path-left-open\nreverse_proxy 127.0.0.1:9",
		"the folder with another backend":      "oauth_protect /admin/*\nhandle /admin {\nreverse_proxy 127.0.0.1:8\n}\nhandle {\nreverse_proxy 127.0.0.1:9\n}",
		"the folder with a backend of its own": "oauth_protect /admin/*\nreverse_proxy /admin/* 127.0.0.1:9\nreverse_proxy 127.0.0.1:8",
		"both":                                 "@admin path /admin /admin/*\noauth_protect @admin\nreverse_proxy 127.0.0.1:9",
		"both, in one pattern":                 "oauth_protect /admin*\nreverse_proxy 127.0.0.1:9",
		"a second one for the folder":          "oauth_protect /admin/*\noauth_protect /admin\nreverse_proxy 127.0.0.1:9",
		"the folder of files":                  "root * /srv\noauth_protect /admin/*\nfile_server",
		"what is in the folder of files":       "root * /srv\noauth_protect /admin # path-left-open\nfile_server",
		"a file":                               "oauth_protect /report.pdf\nreverse_proxy 127.0.0.1:9",
		"everything but":                       "@rest not path /health\noauth_protect @rest\nreverse_proxy 127.0.0.1:9",
		"the folder answers by itself":         "oauth_protect /admin/*\nrespond /admin ok\nreverse_proxy 127.0.0.1:9",
		"a stricter rule inside":               "oauth_protect\noauth_protect /audit/* {\nscopes audit\n}\nreverse_proxy 127.0.0.1:9",

		// Case.
		"a regular expression":              "@api path_regexp ^/api\noauth_protect @api # case-left-open\nreverse_proxy 127.0.0.1:9",
		"a regular expression with an end":  "@api path_regexp ^/api(/.*)?$\noauth_protect @api # case-left-open\nreverse_proxy 127.0.0.1:9",
		"a regular expression for any case": "@api path_regexp (?i)^/api\noauth_protect @api\nreverse_proxy 127.0.0.1:9",
		"an expression":                     "@api expression {path}.startsWith(\"/api\")\noauth_protect @api # case-left-open\nreverse_proxy 127.0.0.1:9",
		"path in an expression":             "@api expression path('/api', '/api/*')\noauth_protect @api\nreverse_proxy 127.0.0.1:9",
		"a regular expression for files":    "root * /srv\n@api path_regexp ^/api\noauth_protect @api\nfile_server",

		// Methods.
		"POST alone":                "@post method POST\noauth_protect @post # method-left-open\nreverse_proxy 127.0.0.1:9",
		"GET alone":                 "@get method GET\noauth_protect @get # method-left-open\nreverse_proxy 127.0.0.1:9",
		"HEAD is left out":          "@no not method HEAD\noauth_protect @no # method-left-open\nreverse_proxy 127.0.0.1:9",
		"files, GET alone":          "root * /srv\n@get method GET\noauth_protect @get # method-left-open\nfile_server",
		"files, both":               "root * /srv\n@get method GET HEAD\noauth_protect @get\nfile_server",
		"reading is open":           "@write not method GET HEAD OPTIONS\noauth_protect @write # reading-left-open\nreverse_proxy 127.0.0.1:9",
		"other methods are refused": "@post method POST\noauth_protect @post\nreverse_proxy @post 127.0.0.1:9\nrespond 405",
		"one for each method":       "@read method GET HEAD\noauth_protect @read\n@write not method GET HEAD\noauth_protect @write {\nscopes write\n}\nreverse_proxy 127.0.0.1:9",
		"preflights are open":       "@rest not method OPTIONS\noauth_protect @rest\nreverse_proxy 127.0.0.1:9",

		// Error pages.
		"files for what was refused":       "root * /srv\noauth_protect # error-page-serves-refused\nfile_server\nhandle_errors {\nfile_server\n}",
		"the backend for what was refused": "oauth_protect # error-page-serves-refused\nreverse_proxy 127.0.0.1:9\nhandle_errors {\nreverse_proxy 127.0.0.1:9\n}",
		"an error page":                    "root * /srv\noauth_protect\nfile_server\nhandle_errors {\nrewrite * /errors/{err.status_code}.html\nfile_server\n}",
		"error pages elsewhere":            "root * /srv\noauth_protect\nfile_server\nhandle_errors {\nroot * /errors\nfile_server\n}",
		"error pages of another server":    "oauth_protect\nreverse_proxy 127.0.0.1:9\nhandle_errors {\nrewrite * /{err.status_code}\nreverse_proxy 127.0.0.1:8\n}",
		"error pages for 404":              "root * /srv\noauth_protect\nfile_server\nhandle_errors 404 {\nfile_server\n}",
		"a text":                           "oauth_protect\nreverse_proxy 127.0.0.1:9\nhandle_errors {\nrespond \"{err.status_code}\"\n}",

		// PHP.
		"PHP":                    "root * /srv/app\n@private path /private /private/*\noauth_protect @private # front-controller-left-open\nphp_fastcgi 127.0.0.1:9",
		"PHP, everything but":    "root * /srv/app\n@private not path /health\noauth_protect @private\nphp_fastcgi 127.0.0.1:9",
		"PHP without such paths": "root * /srv/app\n@private path /private /private/*\noauth_protect @private\n@script path *.php *.php/*\nerror @script 404\nphp_fastcgi 127.0.0.1:9",
		"PHP behind HTTP":        "@private path /private /private/*\noauth_protect @private\nreverse_proxy 127.0.0.1:9",

		// Suffixes.
		"a suffix is left out":           "@rest not path *.css\noauth_protect @rest # suffix-left-open\nreverse_proxy 127.0.0.1:9",
		"a suffix is left out, of files": "root * /srv\n@rest not path *.css\noauth_protect @rest\nfile_server",
		"a suffix has its own files":     "root * /srv\n@rest not path *.css\noauth_protect @rest\n@css path *.css\nhandle @css {\nfile_server\n}\nhandle {\nreverse_proxy 127.0.0.1:9\n}",

		// Ambiguous paths.
		"ambiguous paths, for a part":     "@admin path /admin /admin/*\noauth_protect @admin {\n# ^ambiguous-path-left-open\nallow_ambiguous_paths\n}\nreverse_proxy 127.0.0.1:9",
		"ambiguous paths beside a handle": "@admin path /admin /admin/*\nhandle @admin {\noauth_protect # ambiguous-path-left-open\nreverse_proxy 127.0.0.1:9\n}\nhandle {\nreverse_proxy 127.0.0.1:9\n}",
		"a server guards the rest":        "oauth_server\n@admin path /admin /admin/*\nhandle @admin {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nhandle {\nreverse_proxy 127.0.0.1:9\n}",
		"ambiguous paths, for all":        "oauth_protect {\nallow_ambiguous_paths\n}\nreverse_proxy 127.0.0.1:9",

		// The same elsewhere.
		"another prefix":                  "handle_path /v1/* {\noauth_protect # other-path-left-open\nreverse_proxy 127.0.0.1:9\n}\nhandle_path /v2/* {\nreverse_proxy 127.0.0.1:9\n}",
		"without the prefix":              "handle_path /v1/* {\noauth_protect # other-path-left-open\nreverse_proxy 127.0.0.1:9\n}\nhandle {\nreverse_proxy localhost:9\n}",
		"two prefixes, both protected":    "handle_path /v1/* {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nhandle_path /v2/* {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}",
		"two prefixes, two backends":      "handle_path /v1/* {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nhandle_path /v2/* {\nreverse_proxy 127.0.0.1:8\n}",
		"two prefixes that are passed on": "handle /v1* {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nhandle /v2* {\nreverse_proxy 127.0.0.1:9\n}",
		"a folder in a folder":            "handle_path /files/* {\nroot * FOLDER/data\noauth_protect # other-path-left-open\nfile_server\n}\nhandle {\nroot * FOLDER\nfile_server\n}",
		"a hidden folder":                 "handle_path /files/* {\nroot * FOLDER/data\noauth_protect\nfile_server\n}\nhandle {\nroot * FOLDER\nfile_server {\nhide data\n}\n}",
		"a folder beside a folder":        "handle_path /files/* {\nroot * FOLDER/data\noauth_protect\nfile_server\n}\nhandle {\nroot * FOLDER/public\nfile_server\n}",

		// Other sites.
		"another site":                      "http://api.example.com {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nhttp://www.example.com {\nreverse_proxy 127.0.0.1:9 # site-left-open\n}",
		"another port":                      "http://api.example.com {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nhttp://api.example.com:8080 {\nreverse_proxy localhost:9 # ?site-left-open\n}",
		"a named route":                     "&(backend) {\nreverse_proxy 127.0.0.1:9 # ?site-left-open\n}\nhttp://api.example.com {\noauth_protect\ninvoke backend\n}\nhttp://www.example.com {\ninvoke backend\n}",
		"a snippet":                         "(backend) {\nreverse_proxy 127.0.0.1:9 # site-left-open\n}\nhttp://api.example.com {\noauth_protect\nimport backend\n}\nhttp://www.example.com {\nimport backend\n}",
		"another site, without the prefix":  "http://api.example.com {\nhandle_path /v1/* {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\n}\nhttp://old.example.com {\nreverse_proxy 127.0.0.1:9 # site-left-open\n}",
		"another site for other paths":      "http://api.example.com {\n@api path /api /api/*\noauth_protect @api\nreverse_proxy 127.0.0.1:9\n}\nhttp://www.example.com {\nreverse_proxy /static/* 127.0.0.1:9\n}",
		"another site with a password":      "http://api.example.com {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nhttp://www.example.com {\nbasic_auth {\nu $2a$10$kVgX/6erEKdQ8SKSIdW7zOo3TCo5RVGdC9HUwfb8zBtnxPOsaT32W\n}\nreverse_proxy 127.0.0.1:9\n}",
		"another site with forward_auth":    "http://api.example.com {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nhttp://www.example.com {\nforward_auth 127.0.0.1:8 {\nuri /check\n}\nreverse_proxy 127.0.0.1:9\n}",
		"another site for a few addresses":  "http://api.example.com {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nhttp://www.example.com {\n@out not remote_ip private_ranges\nabort @out\nreverse_proxy 127.0.0.1:9\n}",
		"another site on loopback":          "http://api.example.com {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nhttp://www.example.com:8080 {\nbind 127.0.0.1\nreverse_proxy 127.0.0.1:9\n}",
		"another site on a private address": "http://api.example.com {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nhttp://www.example.com {\nbind 10.0.0.1\nreverse_proxy 127.0.0.1:9\n}",
		"plain HTTP beside HTTPS":           "https://api.example.com {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nhttp://api.example.com {\nreverse_proxy 127.0.0.1:9 # ?site-left-open\n}",
		"certificates, if there are any":    "http://api.example.com {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nhttps://www.example.com:8443 {\ntls {\nclient_auth {\nmode request\n}\n}\nreverse_proxy 127.0.0.1:9 # site-left-open\n}",
		"certificates on another port":      "http://api.example.com {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nhttps://www.example.com:8443 {\ntls {\nclient_auth {\nmode require\n}\n}\nreverse_proxy 127.0.0.1:9\n}",
		"another site, another backend":     "http://api.example.com {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nhttp://www.example.com {\nreverse_proxy 127.0.0.1:8\n}",
		"another site with a redirect":      "http://api.example.com {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nhttp://www.example.com {\nredir https://api.example.com{uri}\n}",
		"another site, protected too":       "http://api.example.com {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nhttp://www.example.com {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}",
		"other hosts":                       "http:// {\n@api host api.example.com\noauth_protect @api # host-left-open\nreverse_proxy 127.0.0.1:9\n}",
		"other hosts are refused":           "http:// {\n@api host api.example.com\nhandle @api {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nabort\n}",
		"the backend is a site here":        "http://api.example.com {\noauth_protect\nreverse_proxy 127.0.0.1:8081\n}\nhttp://:8081 {\nrespond \"hello {header.X-OAuth-Client-Id}\" # backend-left-open\n}",
		"the backend is a site on loopback": "http://api.example.com {\noauth_protect\nreverse_proxy 127.0.0.1:8081\n}\nhttp://:8081 {\nbind 127.0.0.1\nrespond ok\n}",
		"another machine has that port":     "http://api.example.com {\noauth_protect\nreverse_proxy 10.0.0.1:8081\n}\nhttp://:8081 {\nrespond ok\n}",

		// Callers decide.
		"with a token only":               "@token header Authorization Bearer*\noauth_protect @token # caller-decides\nreverse_proxy 127.0.0.1:9",
		"for browsers only":               "@browser header Accept *html*\noauth_protect @browser # caller-decides\nreverse_proxy 127.0.0.1:9",
		"not for insiders":                "@out not header X-Internal 1\noauth_protect @out # caller-decides\nreverse_proxy 127.0.0.1:9",
		"not with a key":                  "@out not query key=secret\noauth_protect @out # caller-decides\nreverse_proxy 127.0.0.1:9",
		"not with a key in an expression": "@out expression {header.X-Key} != \"secret\"\noauth_protect @out # caller-decides\nreverse_proxy 127.0.0.1:9",
		"not with a cookie":               "@out not vars {http.request.cookie.session} on\noauth_protect @out # caller-decides\nreverse_proxy 127.0.0.1:9",
		"not with a header of a pattern":  "@out not header_regexp X-Internal ^yes-[0-9]+$\noauth_protect @out # caller-decides\nreverse_proxy 127.0.0.1:9",
		"each version its backend":        "@v2 header X-Version 2\nhandle @v2 {\noauth_protect\nreverse_proxy 127.0.0.1:9\n}\nhandle {\nreverse_proxy 127.0.0.1:8\n}",
		"each version its own":            "@v2 header X-Version 2\n@other not header X-Version 2\noauth_protect @v2\noauth_protect @other {\nscopes read\n}\nreverse_proxy 127.0.0.1:9",

		"WebSockets are open":           "@ws header Upgrade websocket\nhandle @ws {\nreverse_proxy 127.0.0.1:9\n}\nhandle {\noauth_protect # caller-decides\nreverse_proxy 127.0.0.1:9\n}",
		"a key gets past it in a route": "route {\n@key header X-Key *\nreverse_proxy @key 127.0.0.1:9\noauth_protect # caller-decides\nreverse_proxy 127.0.0.1:9\n}",
		"a key gets to another backend": "route {\n@key header X-Key *\nreverse_proxy @key 127.0.0.1:8\noauth_protect\nreverse_proxy 127.0.0.1:9\n}",

		// Addresses.
		"not for the proxy's address":         "servers {\ntrusted_proxies static private_ranges\n}\n====\n@out not remote_ip private_ranges\noauth_protect @out # address-of-proxy\nreverse_proxy 127.0.0.1:9",
		"not for a claimed address":           "servers {\ntrusted_proxies static private_ranges\n}\n====\n@out not client_ip 192.0.2.0/24\noauth_protect @out # address-claimed\nreverse_proxy 127.0.0.1:9",
		"not for an address, strictly":        "servers {\ntrusted_proxies static private_ranges\ntrusted_proxies_strict\n}\n====\n@out not client_ip 192.0.2.0/24\noauth_protect @out\nreverse_proxy 127.0.0.1:9",
		"for insiders only":                   "@in remote_ip private_ranges\noauth_protect @in # address-left-open\nreverse_proxy 127.0.0.1:9",
		"not for an address, without proxies": "@out not remote_ip private_ranges\noauth_protect @out\nreverse_proxy 127.0.0.1:9",

		// An identity of nobody.
		"a root for nobody":              "handle /mine/* {\nroot * /srv/{http.auth.user.id} # identity-of-nobody\nfile_server\n}\nhandle {\n@any path *\noauth_protect @any\nrespond ok\n}",
		"a root after a part":            "route {\noauth_protect /a/*\nroot * /srv/{http.auth.user.id} # identity-of-nobody\nfile_server\n}",
		"a rewrite for nobody":           "route {\noauth_protect /a/*\nrewrite * /{header.X-OAuth-Client-Id}{uri} # identity-of-nobody\nrespond ok\n}",
		"a root for somebody":            "route {\noauth_protect\nroot * /srv/{http.auth.user.id}\nfile_server\n}",
		"a root for somebody, in a part": "route {\noauth_protect /a/*\nroot /a/* /srv/{http.auth.user.id}\nfile_server /a/*\n}",
		"a root for users":               "route {\nbasic_auth {\nu $2a$10$kVgX/6erEKdQ8SKSIdW7zOo3TCo5RVGdC9HUwfb8zBtnxPOsaT32W\n}\nroot * /srv/{http.auth.user.id}\nfile_server\n}",
		"a header for nobody":            "@api path /api /api/*\noauth_protect @api\nrequest_header X-User {http.auth.user.id}\nrespond ok",

		// Nothing is protected.
		"only a server":                  "oauth_server # nothing-protected\nreverse_proxy 127.0.0.1:9",
		"a server, and a protected site": "http://auth.example.com {\noauth_server\n}\nhttp://api.example.com {\noauth_protect\nrespond ok\n}",
		"a server alone":                 "oauth_server\nrespond ok",
		"neither":                        "reverse_proxy 127.0.0.1:9",
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.ReplaceAll(gatewayOf(text), "FOLDER", folder)
			if got, want := openDoors(t, text), markedDoors(text); !slices.Equal(got, want) {
				t.Errorf("found %q, want %q in\n%s", got, want, formatted(text))
			}
		})
	}
}

// A configuration of a thousand sites is looked at in bounded time, and what was not looked at is
// said.
func TestOpenDoorsOfALargeConfiguration(t *testing.T) {
	var sites strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&sites, "http://h%[1]d.example.com {\n@m {\npath /p%[1]d /p%[1]d/*\nheader X-A b\nquery c=d\n}\noauth_protect @m\nreverse_proxy 127.0.0.1:%[2]d\n}\n", i, 1000+i)
	}
	codes := make(map[string]int)
	findings := lintCaddyfile(t, gatewayOf(sites.String()))
	for _, f := range findings {
		codes[f.Code]++
	}
	if codes["caller-decides"] < 100 {
		t.Errorf("found %v, want the header of most sites", codes)
	}
	if codes["caller-decides"] < 1000 && codes["not-all-tried"] != 1 {
		t.Errorf("found %v, and doesn't say that there may be more", codes)
	}
}

// Odd configurations are looked at, too: deep, without end, and without anything in them.
func TestOpenDoorsOfOddConfigurations(t *testing.T) {
	deep := strings.Repeat("route {\n", 150) + "oauth_protect /a/*\nreverse_proxy 127.0.0.1:9\n" + strings.Repeat("}\n", 150)
	for name, text := range map[string]string{
		"deep":                    deep,
		"a route without end":     "&(loop) {\noauth_protect /a/*\ninvoke loop\n}\nhttp://api.example.com {\ninvoke loop\nreverse_proxy 127.0.0.1:9\n}",
		"routes in a circle":      "&(a) {\ninvoke b\n}\n&(b) {\noauth_protect /x\ninvoke a\n}\nhttp://api.example.com {\ninvoke a\ninvoke b\nreverse_proxy 127.0.0.1:9\n}",
		"an odd pattern":          "@a path_regexp ^/(a{0,1000}|[^\\x00-\\x{10FFFF}]|(b*)+)$\noauth_protect @a\nreverse_proxy 127.0.0.1:9",
		"a very long pattern":     "@a path_regexp ^/(((a{30}){30}){1})$\noauth_protect @a\nreverse_proxy 127.0.0.1:9",
		"an escaped path":         "oauth_protect /a%2Fb/*\nreverse_proxy 127.0.0.1:9",
		"a placeholder as a path": "oauth_protect /{host}/*\nreverse_proxy 127.0.0.1:9",
		"a backend from a header": "oauth_protect /a/*\nreverse_proxy {header.X-Backend}",
		"a backend found anew":    "oauth_protect /a/*\nreverse_proxy {\ndynamic a backend.example.com 9\n}",
		"nothing behind it":       "oauth_protect /a/*",
		"an empty list":           "@a header_regexp X-A .*\noauth_protect @a\n@b not query a=*\noauth_protect @b\nreverse_proxy 127.0.0.1:9",
	} {
		t.Run(name, func(t *testing.T) { openDoors(t, gatewayOf(text)) })
	}
}
