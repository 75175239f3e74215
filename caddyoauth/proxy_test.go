package caddyoauth_test

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/quic-go/quic-go/http3"

	"github.com/caddyoauth/gateway/caddyoauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// folded returns a header's name as the most careless backend reads it: case does not matter,
// nor does which separator is used.
func folded(name string) string {
	return strings.Map(func(c rune) rune {
		if 'a' <= c && c <= 'z' || '0' <= c && c <= '9' {
			return c
		}
		return '-'
	}, strings.ToLower(name))
}

// checkIdentity checks what a backend got with a request that was let in: the identity headers
// that we set, in our spelling, once each, and no others; no credentials; and neither in trailers.
func checkIdentity(t testing.TB, got received, prefix string) {
	t.Helper()
	ours := []string{prefix + "Client-Id", prefix + "Subject", prefix + "Scope", prefix + "Realm"}
	for name, values := range got.Header {
		f := folded(name)
		if strings.HasPrefix(f, strings.ToLower(prefix)) && (!slices.Contains(ours, name) || len(values) != 1) {
			t.Errorf("the backend got %s: %q", name, values)
		}
		if f == "authorization" || f == "proxy-authorization" || f == "dpop" {
			t.Errorf("the backend got credentials in %s", name)
		}
	}
	for _, name := range ours {
		if got.Header.Get(name) == "" {
			t.Errorf("the backend got no %s; all of it: %v", name, got.Header)
		}
	}
	checkNoIdentity(t, got.Trailer, prefix)
}

// checkNoIdentity checks headers or trailers that must hold no identity and no credentials.
func checkNoIdentity(t testing.TB, h http.Header, prefix string) {
	t.Helper()
	for name, values := range h {
		// A trailer that was announced and never came has no values.
		f := folded(name)
		ours := strings.HasPrefix(f, strings.ToLower(prefix)) || f == "authorization" || f == "proxy-authorization" || f == "dpop"
		if ours && len(values) > 0 {
			t.Errorf("the backend got %s: %q", name, values)
		}
	}
}

// withGlobals is caddyfileOf with more global options.
func withGlobals(globals, oauth, site string) string {
	return strings.Replace(caddyfileOf(oauth, site), "{\n", "{\n"+globals+"\n", 1)
}

// spoofed returns identity headers in all spellings that some backend takes for ours.
func spoofed() []string {
	var names []string
	for _, name := range []string{"X-OAuth-Client-Id", "X-OAuth-Subject", "X-OAuth-Scope", "X-OAuth-Realm", "X-OAuth-Groups"} {
		names = append(names, name, strings.ToLower(name), strings.ToUpper(name), "x-oAUTH"+name[7:],
			strings.ReplaceAll(name, "-", "_"), strings.ToLower(strings.ReplaceAll(name, "-", "_")), strings.ToUpper(strings.ReplaceAll(name, "-", "_")),
			strings.ReplaceAll(name, "-", "."), strings.Replace(name, "-", "_", 1), strings.Replace(name, "-", ".", 1),
			strings.Replace(strings.Replace(name, "-", "_", 1), "-", ".", 1))
	}
	// Everything that a name may contain but letters and digits.
	for _, c := range "!#$%&'*+^`|~" {
		names = append(names, strings.ReplaceAll("X-OAuth-Client-Id", "-", string(c)), strings.Replace("x-oauth-client-id", "-", string(c), 1))
	}
	return append(names, "X-OAuth-", "X_OAuth_", "X-OAuth--Client-Id", "X!OAuth_Client.Id")
}

// A caller can't claim an identity, in any spelling and on any path through the gateway: let in,
// refused, or on to the error page's own backend. Caddy itself drops most of the spellings
// unless it is told to expect them, as it is here.
func TestSpoofedIdentityHeaders(t *testing.T) {
	var underscores, dots []string
	for _, name := range spoofed() {
		if strings.Contains(name, "_") {
			underscores = append(underscores, name)
		} else if strings.Contains(name, ".") {
			dots = append(dots, name)
		}
	}
	const handleErrors = "\nreverse_proxy BACKEND\nhandle_errors {\nreverse_proxy BACKEND\n}"
	for name, globals := range map[string]string{
		"Caddy by default":           "",
		"Caddy passes all spellings": "servers {\nexpected_underscore_headers " + strings.Join(underscores, " ") + "\nexpected_dot_headers " + strings.Join(dots, " ") + "\n}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Run("without oauth_protect they arrive", func(t *testing.T) {
				g := startCaddyfile(t, withGlobals(globals, "store memory\n"+testClients, "reverse_proxy BACKEND"))
				arrived := 0
				for _, header := range spoofed() {
					if a := g.rawRequest("GET /x", header+": admin"); a.StatusCode == 200 {
						for got := range g.Backend.last(t).Header {
							if strings.HasPrefix(folded(got), "x-oauth-") {
								arrived++
							}
						}
					}
				}
				if arrived < 15 {
					t.Errorf("only %d of %d spellings arrive, so this test proves little", arrived, len(spoofed()))
				}
			})
			g := startCaddyfile(t, withGlobals(globals, "store memory\n"+testClients, "oauth_server\noauth_protect"+handleErrors))
			token := g.token("reader")
			for _, header := range spoofed() {
				for _, lines := range [][]string{
					{header + ": admin"}, {header + ":admin"}, {header + ":  admin  "}, {header + ": a", header + ": b"}, {header + ":"},
				} {
					if a := g.rawRequest("GET /in", append(lines, "Authorization: Bearer "+token)...); a.StatusCode != 200 {
						t.Fatalf("%q: %d", lines, a.StatusCode)
					}
					got := g.Backend.last(t)
					checkIdentity(t, got, "X-Oauth-")
					if got.Header.Get("X-OAuth-Client-Id") != "reader" || got.Header.Get("X-OAuth-Scope") != "read" {
						t.Errorf("%q: the backend was told %v", lines, got.Header)
					}
					for _, authorization := range []string{"X-Nothing: x", "Authorization: Bearer x", "Authorization: Bearer", "Authorization: Basic eDp5"} {
						before := g.Backend.count()
						g.rawRequest("GET /refused", append(lines, authorization)...)
						if g.Backend.count() != before+1 {
							t.Fatal("the error page's backend was not called")
						}
						checkNoIdentity(t, g.Backend.last(t).Header, "X-Oauth-")
					}
				}
			}
		})
	}
	t.Run("malformed names", func(t *testing.T) {
		g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND")
		token := g.token("reader")
		for _, line := range []string{"X-OAuth-Client-Id : admin", "X-OAuth Client-Id: admin", "X-OAuth-Client-Id\t: admin", "X-OAuth-Client-Id\x00: admin", "X-OAuth-Client-Id\r: admin", "X-\u212aAuth: x", "X: y\r\n X-OAuth-Client-Id: admin"} {
			a := g.rawRequest("GET /x", "Authorization: Bearer "+token, line)
			if a.StatusCode == 200 {
				checkIdentity(t, g.Backend.last(t), "X-Oauth-")
			} else if a.StatusCode != 400 {
				t.Errorf("%q: %d", line, a.StatusCode)
			}
		}
	})
}

// A proxy drops the headers that Connection lists. It must not drop those that we set.
func TestConnectionHeaderCannotRemoveIdentity(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND")
	token := g.token("reader")
	for _, lines := range [][]string{
		{"Connection: X-OAuth-Client-Id"},
		{"Connection: x-oauth-client-id"},
		{"connection: X-OAUTH-CLIENT-ID, X-OAuth-Subject,X-OAuth-Scope ,\tX-OAuth-Realm"},
		{"Connection: close, x-oauth-client-id"},
		{"Connection: close", "Connection: x-oauth-client-id", "Connection: X-OAuth-Realm"},
		{"Connection: keep-alive,,X-OAuth-Client-Id,"},
		{"Connection: x_oauth_client_id, X-OAuth-Client-Id"},
		{"Connection: Authorization, X-OAuth-Client-Id, DPoP"},
		{"Connection: X-Forwarded-For, X-Forwarded-Host, X-Forwarded-Proto, X-OAuth-Scope"},
		{"Keep-Alive: X-OAuth-Client-Id", "Proxy-Connection: X-OAuth-Client-Id", "Connection: Keep-Alive, Proxy-Connection"},
		{"Connection: Upgrade, X-OAuth-Client-Id", "Upgrade: x-custom"},
		{"Te: trailers", "Connection: TE, X-OAuth-Client-Id"},
	} {
		t.Run(strings.Join(lines, " / "), func(t *testing.T) {
			if a := g.rawRequest("GET /x", append(lines, "Authorization: Bearer "+token)...); a.StatusCode != 200 {
				t.Fatalf("%d", a.StatusCode)
			}
			got := g.Backend.last(t)
			checkIdentity(t, got, "X-Oauth-")
			if h := got.Header; h.Get("X-OAuth-Client-Id") != "reader" || h.Get("X-Forwarded-For") == "" || h.Get("X-Forwarded-Proto") == "" || h.Get("X-Forwarded-Host") == "" {
				t.Errorf("the backend was told %v", h)
			}
		})
	}
}

// Headers that the operator sets, from a token or not, arrive whatever a caller lists.
func TestConnectionHeaderCannotRemoveWhatTheOperatorSets(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, `
		oauth_server
		oauth_protect /api/*
		request_header /api/* X-Team {http.auth.user.id}
		request_header Remote-User operator
		reverse_proxy BACKEND`)
	token := g.token("reader")
	for _, lines := range [][]string{
		{"Connection: X-Team, Remote-User"},
		{"Connection: close, x-team", "Connection: REMOTE-USER"},
		{"Connection: keep-alive,,X_Team,Remote-User,"},
		{"Connection: Upgrade, X-Team, Remote-User", "Upgrade: websocket"},
		{"Connection: Upgrade, X-Team, Remote-User", "Upgrade: h2c"},
		{"Te: trailers", "Connection: TE, X-Team, Remote-User"},
	} {
		if a := g.rawRequest("GET /api/x", append(lines, "Authorization: Bearer "+token)...); a.StatusCode != 200 {
			t.Fatalf("%q: %d", lines, a.StatusCode)
		}
		if h := g.Backend.last(t).Header; h.Get("X-Team") != "reader" || h.Get("Remote-User") != "operator" {
			t.Errorf("%q: the backend was told %v", lines, h)
		}
		g.rawRequest("GET /open", lines...)
		if h := g.Backend.last(t).Header; h.Get("Remote-User") != "operator" {
			t.Errorf("%q on an open path: the backend was told %v", lines, h)
		}
	}
}

// Identity and credentials can't come in trailers, either.
func TestTrailersCarryNoIdentity(t *testing.T) {
	const site = "oauth_server\noauth_protect\nreverse_proxy BACKEND\nhandle_errors {\nreverse_proxy BACKEND\n}"
	trailers := []string{"X-OAuth-Client-Id", "x-oauth-scope", "X_OAuth_Client_Id", "X.OAuth.Realm", "Authorization", "Proxy-Authorization", "DPoP", "X-Checksum"}
	check := func(t *testing.T, g *gateway, letIn, declared bool) {
		t.Helper()
		got := g.Backend.last(t)
		if got.Body != "hello" {
			t.Errorf("the body arrived as %q", got.Body)
		}
		if letIn {
			checkIdentity(t, got, "X-Oauth-")
		} else {
			checkNoIdentity(t, got.Header, "X-Oauth-")
			checkNoIdentity(t, got.Trailer, "X-Oauth-")
		}
		// Other trailers are not ours to remove. Without this check the test would prove nothing.
		if declared && got.Trailer.Get("X-Checksum") != "admin" {
			t.Errorf("another trailer was removed: %v", got.Trailer)
		}
	}
	t.Run("h1 chunked", func(t *testing.T) {
		g := startGateway(t, "store memory\n"+testClients, site)
		token := g.token("reader")
		for _, declared := range []bool{true, false} {
			for authorization, letIn := range map[string]bool{"Authorization: Bearer " + token: true, "X-Nothing: x": false} {
				t.Run(fmt.Sprintf("declared %v, let in %v", declared, letIn), func(t *testing.T) {
					text := "POST /x HTTP/1.1\r\nHost: localhost\r\n" + authorization + "\r\nTransfer-Encoding: chunked\r\n"
					if declared {
						text += "Trailer: " + strings.Join(trailers, ", ") + "\r\n"
					}
					text += "\r\n5\r\nhello\r\n0\r\n"
					for _, name := range trailers {
						text += name + ": admin\r\n"
					}
					readRaw(t, g.rawConn(text+"\r\n"), "POST")
					check(t, g, letIn, declared)
				})
			}
		}
		t.Run("two oauth_protect, the second refuses", func(t *testing.T) {
			if err := g.load("store memory\n"+testClients, "oauth_server\nroute {\noauth_protect\noauth_protect {\nscopes write\n}\n}\nhandle_errors {\nreverse_proxy BACKEND\n}"); err != nil {
				t.Fatal(err)
			}
			a := readRaw(t, g.rawConn("POST /x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "+token+"\r\nTransfer-Encoding: chunked\r\nTrailer: X-OAuth-Client-Id, DPoP, X-Checksum\r\n\r\n5\r\nhello\r\n0\r\nX-OAuth-Client-Id: admin\r\nDPoP: admin\r\nX-Checksum: admin\r\n\r\n"), "POST")
			if a.StatusCode == 200 && a.Body != "backend" {
				t.Errorf("%d %s", a.StatusCode, a.Body)
			}
			got := g.Backend.last(t)
			for name, values := range got.Trailer {
				if f := folded(name); len(values) > 0 && f != "x-checksum" {
					t.Errorf("the error page's backend got %s: %q in a trailer", name, values)
				}
			}
		})
	})
	for _, proto := range []string{"h2", "h3"} {
		t.Run(proto, func(t *testing.T) {
			g := startTLS(t, proto, "store memory\n"+testClients, site)
			token := g.token("reader")
			for _, letIn := range []bool{true, false} {
				r := g.request("POST", "/x", "")
				r.Body, r.ContentLength = io.NopCloser(strings.NewReader("hello")), -1
				r.Trailer = make(http.Header)
				for _, name := range trailers {
					// net/http resets a stream with credentials in its trailers.
					if f := folded(name); f != "authorization" && f != "proxy-authorization" {
						r.Trailer.Set(name, "admin")
					}
				}
				if letIn {
					r.Header.Set("Authorization", "Bearer "+token)
				}
				g.do(r)
				check(t, g, letIn, proto == "h2") // over h3 no trailer gets this far
			}
		})
	}
}

// The credentials that a caller sends do not reach the backend.
func TestCredentialsDoNotReachTheBackend(t *testing.T) {
	names := []string{"Authorization", "Proxy-Authorization", "DPoP"}
	var expected []string
	for _, n := range []string{"Proxy_Authorization"} {
		expected = append(expected, n, strings.ToLower(n), strings.ToUpper(n))
	}
	for name, globals := range map[string]string{"Caddy by default": "", "Caddy passes all spellings": "servers {\nexpected_underscore_headers " + strings.Join(expected, " ") + "\n}"} {
		t.Run(name, func(t *testing.T) {
			g := startCaddyfile(t, withGlobals(globals, "store memory\n"+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND"))
			token := g.token("reader")
			for _, spelling := range []string{"Authorization", "authorization", "AUTHORIZATION", "aUTHORIZATION"} {
				for _, scheme := range []string{"Bearer ", "bearer ", "BEARER  "} {
					lines := []string{spelling + ": " + scheme + token}
					for _, n := range names[1:] {
						lines = append(lines, n+": x", strings.ToLower(n)+": y", strings.ToUpper(n)+": z", strings.ReplaceAll(n, "-", "_")+": w")
					}
					if a := g.rawRequest("GET /x", lines...); a.StatusCode != 200 {
						t.Errorf("%q: %d", lines, a.StatusCode)
					}
					checkIdentity(t, g.Backend.last(t), "X-Oauth-")
				}
			}
		})
	}
}

// pathStyle is a way to protect /admin/. All but the first leave the rest open.
type pathStyle struct {
	name, site string
}

func pathStyles() []pathStyle {
	const tail = "\nreverse_proxy BACKEND"
	return []pathStyle{
		{"the whole site", "oauth_protect" + tail},
		{"a path matcher", "oauth_protect /admin/*" + tail},
		{"a named path matcher", "@admin path /admin/* /private/*\noauth_protect @admin" + tail},
		{"a regular expression", "@admin path_regexp (?i)^/admin/\noauth_protect @admin" + tail},
		{"all but a path", "@rest not path /public/* /health\noauth_protect @rest" + tail},
		{"an expression", "@admin expression `path('/admin/*')`\noauth_protect @admin" + tail},
		{"handle blocks", "handle /admin/* {\noauth_protect\nreverse_proxy BACKEND\n}\nhandle {\nreverse_proxy BACKEND\n}"},
		{"a route block", "route /admin/* {\noauth_protect\n}" + tail},
	}
}

// ambiguousPaths are targets that some backend reads as /admin/secret, or otherwise than we do.
var ambiguousPaths = []string{
	"/public/../admin/secret", "/public/%2e%2e/admin/secret", "/public/.%2e/admin/secret", "/public/%2e./admin/secret", "/public/%2E%2E/admin/secret",
	"/public/..%2fadmin/secret", "/public/..%2Fadmin/secret", "/public%2f..%2fadmin%2fsecret", "/public/%2e%2e%2fadmin/secret",
	"/public/..;/admin/secret", "/public/..;x=y/admin/secret", "/public/%2e%2e;/admin/secret", "/public/..%3b/admin/secret", "/public/..%3B/admin/secret",
	"/admin;/secret", "/admin;x=y/secret", "/admin%3b/secret", "/;/admin/secret", "/admin/;/secret",
	"//admin/secret", "/admin//secret", "///admin/secret", "/public//../admin/secret", "/%2fadmin/secret", "/%2Fadmin/secret", "/admin%2fsecret", "/admin%2Fsecret",
	"/./admin/secret", "/admin/./secret", "/%2e/admin/secret", "/admin/%2e/secret", "/admin/secret/.", "/admin/secret/..", "/admin/..", "/admin/.",
	`/public\..\admin\secret`, `/public/..\admin/secret`, "/public/..%5cadmin/secret", "/public/..%5Cadmin/secret", "/admin%5csecret", `/admin\secret`, "/%5cadmin/secret",
	"/public/%252e%252e/admin/secret", "/public/..%252fadmin/secret", "/public/%25%32%65%25%32%65/admin/secret", "/%2561dmin/secret", "/%25%36%31dmin/secret", "/admin%252fsecret", "/public%255c..%255cadmin/secret",
	"/admin%00/secret", "/public%00/../admin/secret", "/admin/secret%00", "/admin/secret%00.png", "/admin%0a/secret", "/admin%0d%0a/secret", "/admin%09/secret", "/%01admin/secret", "/admin%7f/secret",
	"/public/%c0%ae%c0%ae/admin/secret", "/public%c0%afadmin/secret", "/admin%c1%9csecret", "/public/%C0%AE%C0%AE/admin/secret",
	"/public/%e0%80%ae%e0%80%ae/admin/secret", "/public%e0%80%afadmin", "/public%f0%80%80%afadmin",
	"http:http://backend/admin/secret", "http:admin/secret",
	"/public/../../../admin/secret", "/..", "/../admin/secret", "/public/..",
}

// readings returns what lenient backends make of a path: decoded once, twice or not at all, with
// or without parameters of segments, with backslashes as slashes, cut at NUL, and cleaned.
func readings(escaped string) []string {
	forms := []string{escaped}
	add := func(f func(string) string) {
		for _, form := range slices.Clone(forms) {
			if made := f(form); !slices.Contains(forms, made) {
				forms = append(forms, made)
			}
		}
	}
	decode := func(s string) string {
		if decoded, err := url.PathUnescape(s); err == nil {
			return decoded
		}
		return s
	}
	overlong := strings.NewReplacer("\xc0\xae", ".", "\xc0\xaf", "/", "\xc1\x9c", `\`).Replace
	parameters := func(s string) string {
		segments := strings.Split(s, "/")
		for i := range segments {
			segments[i], _, _ = strings.Cut(segments[i], ";")
		}
		return strings.Join(segments, "/")
	}
	controls := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r < 0x20 || r == 0x7f {
				return -1
			}
			return r
		}, s)
	}
	add(parameters)
	add(decode)
	add(parameters)
	add(decode)
	add(overlong)
	add(func(s string) string { return strings.ReplaceAll(s, `\`, "/") })
	add(func(s string) string { before, _, _ := strings.Cut(s, "\x00"); return before })
	add(controls)
	for i, form := range forms {
		forms[i] = path.Clean("/" + form)
	}
	return forms
}

// isAdmin reports whether one of the readings is a path that the styles protect.
func isAdmin(readings []string) bool {
	return slices.ContainsFunc(readings, func(s string) bool { return strings.HasPrefix(strings.ToLower(s), "/admin/") })
}

// The backend reads the path as the matchers did, or the request is refused, with or without a
// token, however the protected paths are chosen.
func TestPathsHaveOneReading(t *testing.T) {
	for _, style := range pathStyles() {
		t.Run(style.name, func(t *testing.T) {
			g := startGateway(t, "store memory\n"+testClients, "oauth_server\n"+style.site)
			token := g.token("reader")
			for _, target := range ambiguousPaths {
				for _, line := range []string{"X-Nothing: x", "Authorization: Bearer " + token} {
					a := g.rawRequest("GET "+target, line)
					if a.StatusCode != 400 || a.Header.Get("Cache-Control") != "no-store" {
						t.Errorf("%s with %s: %d, want 400", target, line, a.StatusCode)
					}
				}
			}
			if n := g.Backend.count(); n != 0 {
				t.Errorf("%d ambiguous requests reached the backend", n)
			}
			// Unambiguous paths pass.
			for target, protected := range map[string]bool{
				"/admin/secret": true, "/%61dmin/secret": true, "/ADMIN/secret": true, "/admin/a%20b": true, "/admin/100%25": true, "/admin/caf%C3%A9": true, "/admin/a.b/...": true,
				"/public/x": style.name == "the whole site", "/public/a%20b/": style.name == "the whole site",
			} {
				a := g.rawRequest("GET " + target)
				if protected && a.StatusCode != 401 || !protected && a.StatusCode != 200 {
					t.Errorf("%s without a token: %d", target, a.StatusCode)
				}
				if a := g.rawRequest("GET "+target, "Authorization: Bearer "+token); a.StatusCode != 200 || g.Backend.last(t).RequestURI != target {
					t.Errorf("%s with a token: %d, the backend got %s", target, a.StatusCode, g.Backend.last(t).RequestURI)
				}
			}
		})
	}
	// On a site without the token endpoint, paths that an oauth_protect's matcher leaves out are
	// guarded just the same. Inside handle, it can't see what handle leaves out.
	for _, style := range pathStyles() {
		if strings.HasPrefix(style.site, "handle") || strings.HasPrefix(style.site, "route") {
			continue
		}
		t.Run(style.name+" without oauth_server", func(t *testing.T) {
			g := startGateway(t, "store memory\n"+testClients, style.site)
			for _, target := range ambiguousPaths {
				if a := g.rawRequest("GET " + target); a.StatusCode != 400 {
					t.Errorf("%s: %d, want 400", target, a.StatusCode)
				}
			}
		})
	}
	if len(ambiguousPaths) < 40 {
		t.Errorf("there are only %d ambiguous paths", len(ambiguousPaths))
	}
}

// With allow_ambiguous_paths, such paths reach the backend as they were sent, if there is a token.
func TestAllowAmbiguousPaths(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect {\nallow_ambiguous_paths\n}\nreverse_proxy BACKEND")
	token := g.token("reader")
	for _, target := range ambiguousPaths {
		if strings.HasPrefix(target, "http:") {
			// This is not a path at all.
			if a := g.rawRequest("GET "+target, "Authorization: Bearer "+token); a.StatusCode != 400 {
				t.Errorf("%s: %d", target, a.StatusCode)
			}
			continue
		}
		checkRefusal(t, g.rawRequest("GET "+target), 401, "root", "")
		if a := g.rawRequest("GET "+target, "Authorization: Bearer "+token); a.StatusCode != 200 {
			t.Errorf("%s: %d", target, a.StatusCode)
			continue
		}
		if got := g.Backend.last(t); got.RequestURI != strings.ReplaceAll(target, `\`, "%5C") || got.Header.Get("X-OAuth-Client-Id") != "reader" {
			t.Errorf("%s: the backend got %s %v", target, got.RequestURI, got.Header)
		}
	}
}

// All spellings of a path that some system takes for the same are protected.
func TestSpellingsOfAPathAreProtected(t *testing.T) {
	for name, site := range map[string]string{
		"the whole site": "oauth_protect\nreverse_proxy BACKEND",
		"a path":         "oauth_protect /api*\nreverse_proxy BACKEND",
	} {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t, "store memory\n"+testClients, "oauth_server\n"+site)
			for _, target := range []string{"/api", "/API", "/Api/", "/api/", "/api.", "/api%20", "/api/x", "/aPi/x", "/%61pi", "/%41PI/x", "/api%2e", "/api::$DATA", "/api?x=/public", "/api#/public", "http://localhost/api", "http://other/api", "HTTP://LOCALHOST/API"} {
				if a := g.rawRequest("GET " + target); a.StatusCode != 401 && a.StatusCode != 400 {
					t.Errorf("%s: %d", target, a.StatusCode)
				}
			}
			if name == "the whole site" {
				for _, target := range []string{"/", "", "/favicon.ico", "/.well-known/x", "/health", "/robots.txt", "*", "/oauth2", "/oauth2/", "/oauth2/unknown", "/%6fauth2/unknown"} {
					if a := g.rawRequest("GET " + target); a.StatusCode/100 != 4 {
						t.Errorf("%q: %d", target, a.StatusCode)
					}
				}
			}
			if n := g.Backend.count(); n != 0 {
				t.Errorf("%d requests reached the backend", n)
			}
		})
	}
}

// Nothing that a caller says about itself, about earlier hops or about another path opens a
// protected one.
func TestNoHeaderOpensAProtectedPath(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\n@rest not path /public/* /health\noauth_protect @rest\nreverse_proxy BACKEND")
	for _, lines := range [][]string{
		{"X-Forwarded-Uri: /public/x"}, {"X-Forwarded-Path: /public/x"}, {"X-Forwarded-Prefix: /public"}, {"X-Forwarded-For: 127.0.0.1"}, {"X-Forwarded-Host: localhost"},
		{"X-Forwarded-Proto: https", "X-Forwarded-Method: OPTIONS"}, {"Forwarded: for=127.0.0.1;proto=https;host=localhost"}, {"X-Original-URL: /public/x"},
		{"X-Original-URI: /public/x"}, {"X-Rewrite-URL: /public/x"}, {"X-HTTP-Method-Override: OPTIONS"}, {"X-Real-IP: 127.0.0.1"}, {"Client-Ip: 127.0.0.1"},
		{"User-Agent: kube-probe/1.29"}, {"User-Agent: GoogleHC/1.0"}, {"Referer: https://localhost/public/x"}, {"Origin: https://localhost"}, {"Upgrade: websocket", "Connection: Upgrade"},
		{"X-OAuth-Client-Id: reader", "X-OAuth-Scope: read"}, {"Early-Data: 1"}, {"Content-Type: application/grpc"}, {"Host: health"}, {"Host: localhost:443"}, {"Host: LOCALHOST."},
	} {
		checkRefusal(t, g.rawRequest("GET /admin/x", lines...), 401, "root", "")
	}
	for _, target := range []string{"/admin?x=/public/", "/admin?/health", "/admin?#/health", "/admin?a=b;/public/x", "/healthz", "/health/", "/health/x", "/publicx", "/public", "/health%20", "/health.", "/x/health", "/health%3f", "/health%23"} {
		if a := g.rawRequest("GET " + target); a.StatusCode != 401 && a.StatusCode != 400 {
			t.Errorf("%s: %d", target, a.StatusCode)
		}
	}
	// By way of the open ones.
	for _, target := range []string{"/health/../admin", "/health%2f..%2fadmin", "/public/../admin", "/public/..%2fadmin", "/public/%2e%2e/admin"} {
		if a := g.rawRequest("GET " + target); a.StatusCode != 401 && a.StatusCode != 400 {
			t.Errorf("%s: %d", target, a.StatusCode)
		}
	}
	if n := g.Backend.count(); n != 0 {
		t.Fatalf("%d requests reached the backend", n)
	}
	// As a control, the open ones are open.
	if a, b := g.rawRequest("GET /health"), g.rawRequest("GET /public/x"); a.StatusCode != 200 || b.StatusCode != 200 {
		t.Errorf("open paths answer %d and %d", a.StatusCode, b.StatusCode)
	}
}

// Identity headers are removed on the open routes of a site with oauth_protect, too.
func TestOpenRoutesCarryNoForeignIdentity(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect /admin/*\nreverse_proxy BACKEND")
	for _, lines := range [][]string{{"X-OAuth-Client-Id: admin"}, {"x-oauth-scope: admin", "X-OAUTH-REALM: root"}} {
		if a := g.rawRequest("GET /health", append(lines, "Authorization: Basic eDp5")...); a.StatusCode != 200 {
			t.Fatalf("%d", a.StatusCode)
		}
		got := g.Backend.last(t).Header
		if got.Get("Authorization") != "Basic eDp5" {
			t.Errorf("an open route lost its credentials: %v", got)
		}
		got.Del("Authorization")
		checkNoIdentity(t, got, "X-Oauth-")
	}
}

// However a host is spelled, its own realm and scopes count, or nobody is let in.
func TestHostSpellingsKeepTheRealm(t *testing.T) {
	g := startCaddyfile(t, "{\nadmin off\npersist_config off\nauto_https off\ngrace_period 1s\noauth {\nstore memory\n"+twoRealms+"}\n}\n"+
		"http://strict.test:0 {\nbind 127.0.0.1\noauth_server\noauth_protect root {\nscopes write\n}\nreverse_proxy BACKEND\n}\n"+
		"http://lax.test:0 {\nbind 127.0.0.1\noauth_protect beta\nreverse_proxy BACKEND\n}\n")
	// The token endpoint is the strict host's.
	fetch := func(realm string) string {
		a := g.rawPost("strict.test", "/oauth2"+realm+"/access_token", "grant_type=client_credentials&client_id=reader&client_secret=abc")
		token, _ := a.json(t)["access_token"].(string)
		return token
	}
	reader, beta := fetch(""), fetch("/realms/root/realms/beta")
	for _, host := range []string{"strict.test", "STRICT.test", "Strict.Test", "strict.test:80", "strict.test:8443", "strict.test."} {
		for _, request := range [][2]string{{"GET /x", "Host: " + host}, {"GET http://" + host + "/x", "Host: lax.test"}} {
			a := g.rawRequest(request[0], request[1], "Authorization: Bearer "+beta)
			if a.StatusCode == 401 && !strings.Contains(a.Header.Get("WWW-Authenticate"), `realm="root"`) {
				t.Errorf("%q: %q", request, a.Header.Get("WWW-Authenticate"))
			}
			if b := g.rawRequest(request[0], request[1], "Authorization: Bearer "+reader); b.StatusCode == 200 && b.Body != "" {
				t.Errorf("%q: a token without the scope passed", request)
			}
		}
	}
	if a := g.rawRequest("GET /x", "Host: lax.test", "Authorization: Bearer "+beta); a.StatusCode != 200 || a.Body != "backend" {
		t.Errorf("the other host with its own token: %d %q", a.StatusCode, a.Body)
	}
	if n := g.Backend.count(); n != 1 {
		t.Errorf("%d requests reached the backend, want 1", n)
	}
	// Two Host lines belong to no site.
	if a := g.rawRequest("GET /x", "Host: strict.test", "Host: lax.test"); a.StatusCode != 400 {
		t.Errorf("two hosts: %d", a.StatusCode)
	}
}

// rawPost posts a form to a host by name.
func (g *gateway) rawPost(host, path, form string) answer {
	g.t.Helper()
	return readRaw(g.t, g.rawConn(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", path, host, len(form), form)), "POST")
}

// A request target that is not a path opens no protected one.
func TestTargetsThatAreNotPaths(t *testing.T) {
	for _, style := range pathStyles() {
		t.Run(style.name, func(t *testing.T) {
			g := startGateway(t, "store memory\n"+testClients, "oauth_server\n"+style.site)
			token := g.token("reader")
			for _, target := range []string{"http:admin/secret", "x:admin/secret", "http:%2fadmin/secret", "admin/secret", "http://localhost", "http://localhost?x", "http:/admin/secret", "x:/admin/secret", "x:///admin/secret", "http://localhost//admin/secret", "*"} {
				before := g.Backend.count()
				g.rawRequest("GET " + target)
				if g.Backend.count() > before {
					if got := g.Backend.last(t); isAdmin(readings(got.RequestURI)) {
						t.Errorf("%s reached the backend as %s without a token", target, got.RequestURI)
					}
				}
				a := g.rawRequest("GET "+target, "Authorization: Bearer "+token)
				if strings.Contains(target, ":admin") && a.StatusCode == 200 {
					t.Errorf("%s passed, as %s", target, g.Backend.last(t).RequestURI)
				}
			}
		})
	}
}

// A request that is not let in is refused before its body is sent.
func TestDecidedBeforeContinue(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND")
	token := g.token("reader")
	for authorization, want := range map[string]string{"X-Nothing: x": "HTTP/1.1 401", "Authorization: Bearer x": "HTTP/1.1 401", "Authorization: Bearer": "HTTP/1.1 400", "Authorization: Bearer " + token: "HTTP/1.1 100"} {
		conn := g.rawConn("POST /x HTTP/1.1\r\nHost: localhost\r\n" + authorization + "\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, want) {
			t.Errorf("%s: first line %q (%v), want %s", authorization, line, err, want)
		}
		conn.Close()
	}
}

// An error page's own backend gets no credentials and no spoofed identity, whatever failed.
func TestErrorBackendsGetNoCredentials(t *testing.T) {
	nobody := porttest.Address(t)
	for name, keep := range map[string]string{"by default": "", "keep_token": "keep_token"} {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect {\n"+keep+"\n}\nreverse_proxy "+nobody+"\nhandle_errors {\nreverse_proxy BACKEND\n}")
			token := g.token("reader")
			for _, tt := range []struct {
				authorization string
				known         bool // whether the backend may be told who called
			}{{"Bearer " + token, true}, {"Bearer x", false}, {"Basic eDp5", false}, {"Bearer", false}} {
				before := g.Backend.count()
				g.do(g.request("GET", "/x", "", "Authorization", tt.authorization, "Proxy-Authorization", "Basic eDp5", "DPoP", "proof", "X-OAuth-Client-Id", "admin"))
				if g.Backend.count() != before+1 {
					t.Fatal("the error page's backend was not called")
				}
				if got := g.Backend.last(t); tt.known {
					checkIdentity(t, got, "X-Oauth-")
				} else {
					checkNoIdentity(t, got.Header, "X-Oauth-")
				}
			}
		})
	}
}

// Values from a token or a request are never expanded as placeholders.
func TestPlaceholdersInValuesStayLiteral(t *testing.T) {
	t.Setenv("COA_TEST_SECRET", "canary-env")
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("canary-file"), 0o600); err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir() // those of the subtests have their names in the path, placeholders included
	for i, literal := range []string{"{env.COA_TEST_SECRET}", "{file." + file + "}", "{http.request.header.Authorization}", "{http.request.header.X-Canary}", "{{http.request.header.X-Canary}}"} {
		t.Run(literal, func(t *testing.T) {
			logs := filepath.Join(folder, fmt.Sprint("log", i))
			config := withGlobals("log {\noutput file "+logs+"\nlevel DEBUG\n}",
				"store memory\nclient `"+literal+"` {\nsecret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0\nscopes `"+literal+"`\ndefault_scopes `"+literal+"`\n}",
				`
				log
				oauth_server
				oauth_protect
				request_header X-Once "{http.auth.user.id} {http.auth.user.scope} {http.auth.user.subject}"
				header >X-Answer "{http.auth.user.id}"
				log_append who {http.auth.user.id}
				reverse_proxy BACKEND {
					header_up X-Twice {http.request.header.X-Once}
				}`)
			g := startCaddyfile(t, config)
			a := g.do(g.request("GET", "/x/"+url.PathEscape(strings.ReplaceAll(literal, "/", "."))+"?q="+url.QueryEscape(literal), "", "Authorization", "Bearer "+g.token(literal), "X-Canary", "canary-header", "X-Said", literal))
			if a.StatusCode != 200 {
				t.Fatalf("%d %v", a.StatusCode, a.Header)
			}
			h := g.Backend.last(t).Header
			want := strings.Join([]string{literal, literal, literal}, " ")
			if h.Get("X-OAuth-Client-Id") != literal || h.Get("X-OAuth-Scope") != literal || h.Get("X-Once") != want || h.Get("X-Twice") != want || h.Get("X-Said") != literal || a.Header.Get("X-Answer") != literal {
				t.Errorf("headers are %v, the answer's %v", h, a.Header)
			}
			h.Del("X-Canary")
			var text []byte
			waitUntil(t, "the request is in the log", func() bool {
				text, _ = os.ReadFile(logs)
				return strings.Contains(string(text), "handled request") && strings.Contains(string(text), `"who"`)
			})
			for _, canary := range []string{"canary-env", "canary-file", "Bearer coa_"} {
				if strings.Contains(fmt.Sprint(h, a.Header), canary) || strings.Contains(string(text), canary) {
					t.Errorf("%s was expanded", canary)
				}
			}
			if strings.Count(string(text), "canary-header") > strings.Count(string(text), `"X-Canary":["canary-header"]`) {
				t.Error("a header was expanded into the log")
			}
		})
	}
}

// Tokens and secrets are in no log at any level, in no metric, in no configuration dump and in
// no saved configuration.
func TestNothingLeaksTokensOrSecrets(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			const secret = "canary-secret-0123456789abcdefghijklmnop"
			t.Setenv("COA_TEST_SECRET", secret)
			folder := t.TempDir()
			logs, access := filepath.Join(folder, "log"), filepath.Join(folder, "access")
			saved := caddy.ConfigAutosavePath
			caddy.ConfigAutosavePath = filepath.Join(folder, "autosave.json")
			defer func() { caddy.ConfigAutosavePath = saved }()
			admin := porttest.Address(t)
			config := "{\nadmin " + admin + "\nauto_https off\ngrace_period 1s\nlog {\noutput file " + logs + "\nlevel DEBUG\n}\nmetrics\noauth {\n" + v.options(t) + testClients +
				"client c {\nsecret {env.COA_TEST_SECRET}\nscopes read\ndefault_scopes read\n}\n}\n}\n:0 {\nbind 127.0.0.1\nlog {\noutput file " + access + "\nlevel DEBUG\n}\n" +
				"metrics /metrics\noauth_server\n@rest not path /metrics\noauth_protect @rest {\nscopes read\n}\nreverse_proxy BACKEND\n}\n"
			g := startCaddyfile(t, config)

			grant := url.Values{"grant_type": {"client_credentials"}}
			fetch := func(id, secret string, form url.Values) string {
				t.Helper()
				return wantToken(t, g.inTime(func() answer { return g.post("/oauth2/access_token", id, secret, form) }), "read")
			}
			token := fetch("c", secret, grant)
			other := fetch("", "", url.Values{"grant_type": {"client_credentials"}, "client_id": {"c"}, "client_secret": {secret}})
			if token == "" || other == "" {
				t.Fatal("no tokens")
			}
			writeOnly := g.token("writer", "write")
			// Every path through the gateway, failures included.
			g.warm("/x", token)
			g.get("/x", writeOnly)
			g.get("/a//b", token)
			g.get("/x", token[:len(token)-1])
			g.do(g.request("GET", "/x", "", "Authorization", "Bearer "+token+" "+other))
			g.rawRequest("GET /x", "Authorization: Bearer "+token, "Authorization: Bearer "+other)
			g.do(g.request("GET", "/x", "", "Authorization", token))
			g.post("/oauth2/access_token", "nobody", secret, grant)
			g.post("/oauth2/access_token", "c", secret+"x", grant)
			g.post("/oauth2/access_token", "c", secret, url.Values{"grant_type": {secret}, "scope": {token}})
			g.post("/oauth2/introspect", "c", secret, url.Values{"token": {token}})
			g.post("/oauth2/introspect", "c", secret, url.Values{"token": {writeOnly}, "token_type_hint": {token}})
			g.post("/oauth2/token/revoke", "c", secret, url.Values{"token": {other}})
			g.post("/oauth2/token/revoke", "reader", testSecret, url.Values{"token": {token}})
			g.get("/x", other)

			get := func(url string) string {
				t.Helper()
				res, err := g.Client.Get(url)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				body, err := io.ReadAll(res.Body)
				if err != nil || res.StatusCode != 200 {
					t.Fatalf("%s: %d, %v", url, res.StatusCode, err)
				}
				return string(body)
			}
			places := map[string]string{"metrics": get(g.URL + "/metrics"), "the admin endpoint's metrics": get("http://" + admin + "/metrics"), "/config/": get("http://" + admin + "/config/")}
			if err := caddyoauth.CloseStore(); err != nil {
				t.Fatal(err)
			}
			g.get("/last", token)
			g.post("/oauth2/introspect", "c", secret, url.Values{"token": {writeOnly}})
			g.post("/oauth2/access_token", "c", secret, grant)
			waitUntil(t, "the last requests are in the logs", func() bool {
				text, _ := os.ReadFile(access)
				return strings.Count(string(text), "handled request") >= 20 && strings.Contains(string(text), `"/last"`)
			})
			for name, file := range map[string]string{"log": logs, "access log": access, "autosave": caddy.ConfigAutosavePath} {
				text, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				places[name] = string(text)
			}
			for name, must := range map[string]string{"metrics": "caddy_oauth_bearer_checks_total", "the admin endpoint's metrics": "caddy_oauth_", "/config/": "{env.COA_TEST_SECRET}", "autosave": "{env.COA_TEST_SECRET}", "log": `"level":"debug"`, "access log": "REDACTED"} {
				if !strings.Contains(places[name], must) {
					t.Errorf("%s does not hold %s, so this test proves nothing:\n%.500s", name, must, places[name])
				}
			}
			canaries := map[string]string{"the secret": secret, "its Basic form": base64.StdEncoding.EncodeToString([]byte("c:" + secret))}
			ids := map[string]string{}
			for name, tok := range map[string]string{"a token": token, "a revoked token": other, "a token without the scope": writeOnly} {
				canaries[name] = tok
				canaries[name+"'s random part"] = tok[12:40]
				sum := sha256.Sum256([]byte(tok))
				ids[name+"'s ID"] = hex.EncodeToString(sum[:])
				ids[name+"'s ID in base64"] = base64.RawURLEncoding.EncodeToString(sum[:])
			}
			for place, text := range places {
				for name, canary := range canaries {
					if i := strings.Index(text, canary); i >= 0 {
						t.Errorf("%s holds %s: %.300s", place, name, text[max(0, i-150):])
					}
				}
				if strings.Contains(place, "log") {
					continue // token IDs may stand in logs
				}
				for name, canary := range ids {
					if strings.Contains(text, canary) {
						t.Errorf("%s holds %s", place, name)
					}
				}
			}
		})
	}
}

// Callers can't add series to the metrics.
func TestCallersAddNoMetricSeries(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND")
	series := func() int {
		ctx := caddy.ActiveContext()
		families, err := ctx.GetMetricsRegistry().Gather()
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, f := range families {
			if strings.HasPrefix(f.GetName(), "caddy_oauth_") {
				n += len(f.GetMetric())
			}
		}
		return n
	}
	call := func(i int) {
		name := fmt.Sprintf("unknown%d", i)
		g.post("/oauth2/access_token", name, "x", url.Values{"grant_type": {"client_credentials"}, "scope": {name}})
		g.post("/oauth2/access_token", "reader", testSecret, url.Values{"grant_type": {name}})
		g.do(g.request("M"+name, "/"+name, "", "Authorization", "Bearer "+name, "User-Agent", name))
		g.do(g.request("GET", "/"+name, "", "Authorization", name+" x"))
	}
	for i := range 100 { // more than are told apart when they fail
		call(i)
	}
	before := series()
	for i := range 500 {
		call(i + 100)
	}
	if after := series(); after != before || before == 0 {
		t.Errorf("there were %d series, now there are %d", before, after)
	}
}

// After a rewrite, the rewritten path counts.
func TestRewrittenPathsAreCheckedAsTheBackendSeesThem(t *testing.T) {
	for _, tt := range []struct {
		name, site, path string
		status           int
		upstream         string
	}{
		{"rewritten to a protected path", "rewrite /open/* /admin/secret\noauth_protect /admin/*", "/open/x", 401, ""},
		{"a prefix is stripped", "uri strip_prefix /open\noauth_protect /admin/*", "/open/admin/x", 401, ""},
		{"a prefix before dots is stripped", "uri strip_prefix /open\noauth_protect /admin/*", "/open/..%2fadmin/x", 401, ""},
		{"a replacement makes dots", "uri replace DOTS ..\noauth_protect", "/a/DOTS/admin/x", 400, ""},
		{"handle_path strips a prefix", "handle_path /open/* {\noauth_protect /admin/*\nreverse_proxy BACKEND\n}", "/open/admin/x", 401, ""},
		{"rewritten from a protected path to an open one", "rewrite /admin/* /open\noauth_protect /admin/*", "/admin/x", 200, "/open"},
		{"rewritten after the check", "route {\noauth_protect /admin/*\nrewrite /admin/* /backend/admin\n}", "/admin/x", 401, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := startGateway(t, "store memory\n"+testClients, "oauth_server\n"+tt.site+"\nreverse_proxy BACKEND")
			a := g.rawRequest("GET " + tt.path)
			if a.StatusCode != tt.status {
				t.Errorf("%d, want %d", a.StatusCode, tt.status)
			}
			if tt.status == 200 {
				if got := g.Backend.last(t).RequestURI; got != tt.upstream {
					t.Errorf("the backend got %s", got)
				}
			} else if n := g.Backend.count(); n != 0 {
				t.Errorf("the backend got %s", g.Backend.last(t).RequestURI)
			}
		})
	}
}

// startTLS is startGateway with TLS and a client that speaks only one protocol: h1, h2 or h3.
func startTLS(t testing.TB, proto, oauth, site string) *gateway {
	t.Helper()
	cert, key, roots := certificate(t)
	g := startCaddyfile(t, "{\nadmin off\npersist_config off\nskip_install_trust\nauto_https off\ngrace_period 1s\noauth {\n"+oauth+
		"\n}\n}\nhttps://localhost:"+strconv.Itoa(porttest.Reserve(t))+" {\nbind 127.0.0.1\ntls "+cert+" "+key+"\n"+site+"\n}\n")
	g.URL = strings.Replace(g.URL, "127.0.0.1", "localhost", 1)
	config := &tls.Config{RootCAs: roots}
	switch proto {
	case "h1":
		g.Client.Transport.(*http.Transport).TLSClientConfig = config
	case "h2":
		transport := g.Client.Transport.(*http.Transport)
		transport.TLSClientConfig, transport.ForceAttemptHTTP2 = config, true
	case "h3":
		transport := &http3.Transport{TLSClientConfig: config}
		t.Cleanup(func() { transport.Close() })
		g.Client.Transport = transport
	default:
		t.Fatalf("no protocol %s", proto)
	}
	return g
}

// Protected routes give the same answers over every protocol.
func TestProtectOverEveryProtocol(t *testing.T) {
	answers := make(map[string]map[string]string)
	for _, proto := range []string{"h1", "h2", "h3"} {
		t.Run(proto, func(t *testing.T) {
			g := startTLS(t, proto, "store memory\n"+twoRealms, routedSites)
			tokens := testTokens(g)
			if a := g.get("/plain/x", ""); a.ProtoMajor != int(proto[1]-'0') {
				t.Fatalf("the client speaks %s", a.Proto)
			}
			answers[proto] = make(map[string]string)
			for _, c := range protectCases() {
				t.Run(c.name, func(t *testing.T) {
					a := c.run(t, g, tokens)
					h := a.Header.Clone()
					// These belong to the protocol, not to the answer.
					for _, name := range []string{"Date", "Alt-Svc", "Connection", "Content-Length", "Via"} {
						h.Del(name)
					}
					answers[proto][c.name] = fmt.Sprint(a.StatusCode, h, a.Body)
				})
			}
		})
	}
	for _, proto := range []string{"h2", "h3"} {
		for _, name := range slices.Sorted(maps.Keys(answers["h1"])) {
			if got, want := answers[proto][name], answers["h1"][name]; got != want {
				t.Errorf("%s: over %s\n%s\nover h1\n%s", name, proto, got, want)
			}
		}
	}
}
