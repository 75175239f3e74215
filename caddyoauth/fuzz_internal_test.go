package caddyoauth

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/introspect"
)

// CloseStore closes the token store of the active configuration while it is in use, so that
// tests have a store that can't answer.
func CloseStore() error { return activeApp().run.opened.store.Close() }

// SlowHashes returns how many slow hashes this process has computed for clients.
func SlowHashes() int64 { return hasher().Hashes() }

// ParseChallenge reads a WWW-Authenticate value that is one challenge with parameters (RFC 9110
// section 11.6.1): a scheme, a space, and name="value" pairs separated by commas. Like some
// clients, it is stricter than the grammar: a value is a quoted string, and no parameter occurs
// twice.
func ParseChallenge(s string) (scheme string, params map[string]string, err error) {
	scheme, rest, found := strings.Cut(s, " ")
	if !found || !isHTTPToken(scheme) {
		return "", nil, fmt.Errorf("%q has no scheme with parameters after it", s)
	}
	params = make(map[string]string)
	for {
		name, after, found := strings.Cut(rest, `="`)
		if !found || !isHTTPToken(name) {
			return "", nil, fmt.Errorf("%q: no name=\" at %q", s, rest)
		}
		name = strings.ToLower(name)
		if _, twice := params[name]; twice {
			return "", nil, fmt.Errorf("%q: duplicate parameter %s", s, name)
		}
		var value strings.Builder
		closed := false
		i := 0
		for ; i < len(after) && !closed; i++ {
			switch c := after[i]; {
			case c == '"':
				closed = true
			case c == '\\':
				i++
				if i == len(after) || after[i] < 0x20 || after[i] > 0x7e {
					return "", nil, fmt.Errorf("%q: a bad escape in %s", s, name)
				}
				value.WriteByte(after[i])
			case c < 0x20 || c > 0x7e:
				return "", nil, fmt.Errorf("%q: character %q in %s", s, c, name)
			default:
				value.WriteByte(c)
			}
		}
		if !closed {
			return "", nil, fmt.Errorf("%q: %s does not end", s, name)
		}
		params[name] = value.String()
		if rest = after[i:]; rest == "" {
			return scheme, params, nil
		}
		if rest, found = strings.CutPrefix(rest, ", "); !found {
			return "", nil, fmt.Errorf("%q: no comma after %s", s, name)
		}
	}
}

func isHTTPToken(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= 0x20 || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return s != ""
}

// The parser that tests use must not be more lenient than clients are.
func TestParseChallengeIsStrict(t *testing.T) {
	for _, bad := range []string{
		"", "Bearer", "Bearer ", `realm="root"`, `Bearer realm=root`, `Bearer realm="root`,
		`Bearer realm="root" error="x"`, `Bearer realm="root",error="x"`, `Bearer realm="root", `,
		`Bearer realm="a", realm="a"`, `Bearer realm="a", Realm="a"`, "Bearer realm=\"a\tb\"", `Bearer realm="é"`,
		`Bearer realm="a\`, `Bearer realm="a", error`, `Bearer  realm="a"`,
	} {
		if _, params, err := ParseChallenge(bad); err == nil {
			t.Errorf("%q was read as %v", bad, params)
		}
	}
	scheme, params, err := ParseChallenge(`Bearer realm="a \"b\" \\", scope="read write"`)
	if err != nil || scheme != "Bearer" || params["realm"] != `a "b" \` || params["scope"] != "read write" {
		t.Errorf("got %q %v, %v", scheme, params, err)
	}
}

// What is returned as a token is one and was in the header, and every verdict follows from the
// header alone. No input is expensive.
func FuzzBearerToken(f *testing.F) {
	for _, seed := range []string{
		"", "Bearer", "Bearer ", "Bearer x", "bearer  x", "BEARER x==", "Bearer x=y", "Bearer x y", "Bearer x,y", "Bearer\tx",
		"Bearer x\t", "Bearer,x", "Bearerx", "Basic eDp5", "x", "Bearer =", "Bearer é", "Bearer \x00", "Bearer " + strings.Repeat(".", 9000),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		token, verdict := bearerToken([]string{line})
		if (verdict == tokenPresent) != (token != "") {
			t.Fatalf("%q: token %q with verdict %d", line, token, verdict)
		}
		if _, v := bearerToken([]string{line, line}); v != tokenMalformed {
			t.Errorf("two lines of %q: verdict %d", line, v)
		}
		if _, v := bearerToken(nil); v != tokenMissing {
			t.Errorf("no line: verdict %d", v)
		}
		scheme, rest, _ := strings.Cut(line, " ")
		if ours := strings.EqualFold(scheme, "bearer"); verdict == tokenPresent && !ours {
			t.Errorf("%q: a token without our scheme", line)
		} else if ours && verdict == tokenMissing {
			t.Errorf("%q has our scheme and counts as no credentials", line)
		}
		if verdict != tokenPresent {
			return
		}
		if token != strings.Trim(rest, " ") {
			t.Errorf("%q: got token %q", line, token)
		}
		if len(token) > introspect.MaxTokenLength {
			t.Errorf("a token of %d bytes passed", len(token))
		}
		body := strings.TrimRight(token, "=")
		const allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/"
		if body == "" || strings.Trim(body, allowed) != "" || strings.ContainsAny(body, "=, \t") {
			t.Errorf("%q is not a b64token", token)
		}
		// The spelling of the scheme and the number of spaces change nothing.
		if again, v := bearerToken([]string{"bEaReR   " + token}); v != tokenPresent || again != token {
			t.Errorf("%q respelled: %q, verdict %d", line, again, v)
		}
	})
}

// A path that is not called ambiguous has one reading: decoding it twice gives the same as
// decoding it once, cleaning it changes at most a trailing slash, and nothing in it is a separator
// to one backend and a letter to another.
func FuzzAmbiguousPath(f *testing.F) {
	for _, seed := range []string{
		"/", "/a/b", "/a/b/", "/a//b", "/a/./b", "/a/../b", "/..", "/.", "/a/..", "/%2e%2e/a", "/.%2E/a", "/a%2fb", "/a%5cb", `/a\b`,
		"/a;b", "/a%3bb", "/a%00", "/a%0d", "/%252e", "/%25%32%65", "/%2525", "/100%25", "/%zz", "/%", "/...", "/.a", "/a.", "/é", "/%61",
		"/%c0%ae%c0%ae/a", "/%C0%AFa", "/%c3%a9", "/%e9",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, escaped string) {
		if ambiguousPath(escaped) {
			return
		}
		decoded, err := url.PathUnescape(escaped)
		if err != nil {
			t.Fatalf("%q can't be decoded and passed", escaped)
		}
		if twice, err := url.PathUnescape(decoded); err == nil && twice != decoded {
			t.Errorf("%q is %q to some and %q to others", escaped, decoded, twice)
		}
		for i := range len(decoded) {
			if c := decoded[i]; c < 0x20 || c == 0x7f || c == ';' || c == '\\' {
				t.Errorf("%q: %q passed", escaped, c)
			}
		}
		if lower := strings.ToLower(escaped); strings.Contains(lower, "%2f") {
			t.Errorf("%q: an encoded slash passed", escaped)
		}
		if !strings.HasPrefix(decoded, "/") {
			return // "*" and the like, which no matcher and no backend takes for a path
		}
		if clean := caddyhttp.CleanPath(decoded, true); strings.TrimSuffix(clean, "/") != strings.TrimSuffix(decoded, "/") {
			t.Errorf("%q decodes to %q, which cleans to %q", escaped, decoded, clean)
		}
		// Only one trailing slash may differ, not two.
		if strings.HasSuffix(decoded, "//") {
			t.Errorf("%q: two slashes passed", escaped)
		}
	})
}

// Whatever is between the base path and an endpoint's name, the request is not passed on. And no
// method or spelling turns a path that does not end in such a name into one that does.
func FuzzMisdirected(f *testing.F) {
	for _, path := range []string{"", "alpha", "realms/root/realms/beta", "/", "ALPHA//x", "\\", ";", "..", "%2e%2e", "?", "\x00", "ſ", "\xff"} {
		f.Add(path, false)
		f.Add(path, true)
	}
	server := &Server{basePaths: []string{"/oauth2"}, app: new(App)}
	f.Fuzz(func(t *testing.T, between string, upper bool) {
		path := "/oauth2/" + between + "/access_token"
		if upper {
			path = strings.ToUpper(path)
		}
		r := &http.Request{Method: "GET", URL: &url.URL{Path: path}}
		kind, meant := server.misdirected(r)
		// Dots lead out of the base path, and a query ends the path.
		if kind != endpointToken && !strings.Contains(between, "..") && !strings.ContainsAny(between, "?#&") {
			t.Errorf("%q is passed on", path)
		}
		if kind != "" && strings.ContainsAny(meant, "?#&") {
			t.Errorf("%q is logged as %q, which may hold a query", path, meant)
		}
		r = &http.Request{Method: "POST", URL: &url.URL{Path: path + "/orders"}}
		if kind, _ := server.misdirected(r); kind != "" && !strings.ContainsAny(between, "?#&") && !strings.Contains(strings.ToLower(meant), "/realms/") {
			t.Errorf("%q is taken for a request to the %s endpoint", path+"/orders", kind)
		}
	})
}

// Nothing that a caller sends becomes, in the environment of the most careless backend, a variable
// that only we may set, and nothing else is lost. That backend turns every byte that is not a
// letter or digit into _, as lighttpd's mod_cgi and busybox's httpd do.
func FuzzStrip(f *testing.F) {
	for _, seed := range []string{
		"X-OAuth-Client-Id", "X!OAuth#Client$Id", "x_oauth.scope", "X-Partner-Id\nX-OAuth", "Authorization\nPROXY^AUTHORIZATION\ndpop",
		"X-Original-URL\nx~http~method", "Http2-Settings\nhttp2|settings", "X-Other\nX-Request-Id\nXOAuth-Client-Id", "X-OAuth-\nX-Oauth\n-X-OAuth-Id",
		"Client-Cert\nclient_cert\nClient~Cert|Chain\nX-Client-Cert",
	} {
		f.Add(seed, "close, X-Team, upgrade", "h2c")
		f.Add(seed, "keep-alive", "websocket")
	}
	f.Add("", "clo\u017fe, \u212aeep-alive, KEEP-ALIVE", "websoc\u212aet")
	environment := func(name string) string {
		return strings.Map(func(c rune) rune {
			if 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' {
				return c
			}
			return '_'
		}, "HTTP-"+strings.ToUpper(name))
	}
	prefixes := []string{"x-oauth-", "x-partner-"}
	ours := func(variable string) bool {
		return strings.HasPrefix(variable, "HTTP_X_OAUTH_") || strings.HasPrefix(variable, "HTTP_X_PARTNER_") ||
			slices.Contains([]string{"HTTP_AUTHORIZATION", "HTTP_PROXY_AUTHORIZATION", "HTTP_DPOP", "HTTP_HTTP2_SETTINGS",
				"HTTP_X_ORIGINAL_URL", "HTTP_X_REWRITE_URL", "HTTP_X_ORIGINAL_URI", "HTTP_X_SCRIPT_NAME", "HTTP_X_FORWARDED_PREFIX",
				"HTTP_X_HTTP_METHOD_OVERRIDE", "HTTP_X_HTTP_METHOD", "HTTP_X_METHOD_OVERRIDE"}, variable)
	}
	f.Fuzz(func(t *testing.T, names, connection, upgrade string) {
		sent := make(http.Header)
		for name := range strings.SplitSeq(names, "\n") {
			if isHTTPToken(name) {
				sent.Add(name, "x")
			}
		}
		sent.Del("Connection")
		sent.Del("Upgrade")
		check := func(what string, got http.Header) {
			for name := range got {
				if ours(environment(name)) || what == "trailers" && isOneOf(name, certificateHeaders) {
					t.Errorf("%s: %q arrives, as %s", what, name, environment(name))
				}
			}
			for name := range sent {
				if !ours(environment(name)) && got[name] == nil && (what == "headers" || !hasOddByte(name) && !isOneOf(name, certificateHeaders)) {
					t.Errorf("%s: %q is lost", what, name)
				}
			}
		}
		r := httptest.NewRequest("POST", "/", io.MultiReader(strings.NewReader("x")))
		r.ContentLength = -1
		r.Header, r.Trailer = sent.Clone(), make(http.Header)
		r.Header["Connection"], r.Header["Upgrade"] = []string{connection}, []string{upgrade}
		strip(r, prefixes, credentialHeaders, true)
		if got := r.Header["Upgrade"]; got != nil && !strings.EqualFold(got[0], "websocket") {
			t.Errorf("a switch to %q arrives", got)
		}
		for word := range strings.SplitSeq(strings.Join(r.Header["Connection"], ","), ",") {
			switch word = lowerASCII(strings.Trim(word, " \t")); {
			case word == "" && r.Header["Connection"] == nil, word == "close", word == "keep-alive", word == "te":
			case word == "upgrade" && r.Header["Upgrade"] != nil:
			default:
				t.Errorf("Connection names %q", word)
			}
		}
		check("headers", r.Header)
		// Trailers arrive at the end of the body.
		maps.Copy(r.Trailer, sent)
		io.Copy(io.Discard, r.Body)
		check("trailers", r.Trailer)

		// On the server's other sites, identity headers are removed, and so is a switch to another
		// version of HTTP.
		r.Header = sent.Clone()
		r.Header["Upgrade"] = []string{upgrade}
		stripServer(r, &App{prefixes: prefixes, credentials: credentialHeaders})
		for name := range r.Header {
			if strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
				t.Errorf("%q arrives at another site", name)
			}
			if v := environment(name); strings.HasPrefix(v, "HTTP_X_OAUTH_") || strings.HasPrefix(v, "HTTP_X_PARTNER_") || v == "HTTP_HTTP2_SETTINGS" || v == "HTTP_CLIENT_CERT" || v == "HTTP_CLIENT_CERT_CHAIN" {
				t.Errorf("%q arrives at another site, as %s", name, v)
			}
		}
		if got := r.Header["Upgrade"]; got != nil && strings.Contains(strings.ToLower(got[0]), "h2c") {
			t.Errorf("a switch to %q arrives at another site", got)
		}
	})
}

// Whatever realm and scopes a configuration may name, the challenges made of them can be parsed
// and contain them.
func FuzzChallenge(f *testing.F) {
	f.Add("root", "read write", "The Gateway")
	f.Add("alpha", "a!#$%&'()*+-./:;<=>?@[]^_`{|}~", "The Gateway")
	f.Add(`al"pha`, "read", "The Gateway")
	f.Add("al\r\npha", "read", "The Gateway")
	f.Add("alpha", `re"ad`, "The Gateway")
	f.Add("alpha", `re\ad`, "The Gateway")
	f.Add("alpha", "re\r\nad", "The Gateway")
	f.Add("alpha", "é", "é")
	f.Add("alpha", "read", `a "b"`)
	f.Add("alpha", "read", "a\r\nb")
	f.Fuzz(func(t *testing.T, realm, scopes, ig string) {
		list := strings.Split(scopes, " ")
		app, err := json.Marshal(map[string]any{"realms": map[string]any{realm: map[string]any{}}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, err := caddy.ProvisionContext(&caddy.Config{
			Admin:   &caddy.AdminConfig{Disabled: true},
			Logging: &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": {BaseLog: caddy.BaseLog{WriterRaw: json.RawMessage(`{"output":"discard"}`)}}}},
			AppsRaw: caddy.ModuleMap{"oauth": app},
		})
		if err != nil {
			return // refused at load, as it should be if the realm is not a name
		}
		own, igs := &Protect{Realm: realm, Scopes: list}, &Protect{Realm: realm, Scopes: list, IGChallenges: &IGChallenges{Realm: ig}}
		if err := own.Provision(ctx); err != nil {
			return
		}
		checkChallenges(t, own, own.label, list)
		if err := igs.Provision(ctx); err != nil {
			return
		}
		checkChallenges(t, igs, cmp.Or(ig, defaultIGRealm), list)
	})
}

// checkChallenges parses the challenges of a route that demands scopes.
func checkChallenges(t *testing.T, p *Protect, realm string, list []string) {
	t.Helper()
	want := slices.Compact(slices.Sorted(slices.Values(list)))
	nobody := introspect.Inactive()
	insufficient := *p.rejections[access.CauseScope]
	insufficient.challenge = p.scopeChallenge(httptest.NewRequest("GET", "/", nil), &bearer{facts: nobody}, p.rule.ScopesFor(nobody))
	for _, no := range []*rejection{p.rejections[access.CauseMissing], p.rejections[access.CauseMalformedAuthorization], p.rejections[introspect.CauseForged], &insufficient} {
		scheme, params, err := ParseChallenge(no.challenge)
		if err != nil {
			t.Errorf("%s: %v", no.result, err)
			continue
		}
		if scheme != "Bearer" || params["realm"] != realm {
			t.Errorf("%s: scheme %q, realm %q", no.result, scheme, params["realm"])
		}
		if no == &insufficient && params["scope"] != strings.Join(want, " ") {
			t.Errorf("the challenge asks for %q, the route for %q", params["scope"], want)
		}
		if strings.ContainsAny(no.challenge, "\r\n\x00") {
			t.Errorf("%s: %q is more than one line", no.result, no.challenge)
		}
	}
}

// Where the peer of a request is, only the connection tells.
func TestSecureOrLocalBelievesTheConnectionOnly(t *testing.T) {
	for peer, want := range map[string]bool{
		"127.0.0.1:1234": true, "[::1]:1234": true, "[::ffff:127.0.0.1]:1": true, "@": true, "": true,
		"192.0.2.1:1234": false, "[2001:db8::1]:1": false, "[::ffff:192.0.2.1]:1": false, "127.0.0.1": false, "localhost:1": false,
	} {
		r := httptest.NewRequest("GET", "http://localhost/", nil).WithContext(context.Background())
		r.RemoteAddr = peer
		r.Header = http.Header{"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"https"}, "Forwarded": {"for=127.0.0.1;proto=https"}}
		if got := secureOrLocal(r); got != want {
			t.Errorf("a peer at %q: %v, want %v", peer, got, want)
		}
	}
}

// In a header, a foreign name is visible ASCII and one element of a list. The name can be
// recovered from it, so two names never become one.
func FuzzHeaderText(f *testing.F) {
	for _, seed := range []string{"", "jane", "CN=Jane,OU=staff", "CN=Jane%2COU=staff", "größe", "%", "%%2C", "\xff", "a b", "\u0085"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		text := headerText(name)
		if strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c > '~' || c == ',' }) {
			t.Errorf("%q became %q", name, text)
		}
		if back, err := url.PathUnescape(text); err != nil || back != name {
			t.Errorf("%q became %q, and that %q (%v)", name, text, back, err)
		}
	})
}

// Whatever is in routes, the walk through them ends, and it finds nothing that comes too early if
// there is no oauth_protect.
func FuzzOrder(f *testing.F) {
	for _, seed := range []string{
		`[{"handle":[{"handler":"vars","root":"/srv/{http.auth.user.id}"},{"handler":"oauth_protect"}]}]`,
		`[{"group":"g","match":[{"header":{"X-OAuth-Client-Id":["a"]}}],"handle":[{"handler":"subroute","routes":[{"handle":[{"handler":"oauth_protect"}]}]}],"terminal":true}]`,
		`[{"handle":[{"handler":"map","source":"{http.auth.user.id}","destinations":["{t}"]},{"handler":"rewrite","uri":"{t}"},{"handler":"invoke","name":"loop"},{"handler":"oauth_protect"}]}]`,
		`[{"match":[{"not":[{"not":[{"expression":"{http.request.header.X-OAuth-Client-Id}"}]}]}],"handle":[null,7,{"handler":{}},{"handler":"headers","response":7},{"handler":"oauth_protect"}]}]`,
		`[{"handle":[{"handler":"vars","root":"/srv/{http.auth.user.id}"},1e400,{"handler":"oauth_protect"}]}]`,
		`[{"match":[{"path":["/{http.auth.user.id}"]}],"handle":[{"handler":"vars"}]}]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, config []byte) {
		var routes []sourceRoute
		if json.Unmarshal(config, &routes) != nil {
			return
		}
		loop := []sourceRoute{{Handle: []json.RawMessage{json.RawMessage(`{"handler":"invoke","name":"loop"}`)}}}
		w := orderWalk{prefixes: []string{"x-oauth-"}, named: map[string][]sourceRoute{"loop": loop}}
		w.collectPrefixes(routes)
		w.routes(routes, "", knowledge{})
		protects := false
		for text := range stringsIn(config) {
			protects = protects || text == "oauth_protect"
		}
		// That an identity is in a pattern is said wherever it is.
		tooEarly := slices.DeleteFunc(w.warnings, func(warning string) bool {
			return strings.Contains(warning, " is a pattern, and a caller whose {")
		})
		if said := len(w.errs) + len(tooEarly); said > 0 && !protects {
			t.Errorf("%s: %d findings without an oauth_protect", config, said)
		}
	})
}

// All strings of a JSON value are found, whatever else is in it.
func TestAllStringsAreFound(t *testing.T) {
	for raw, want := range map[string][]string{
		``: nil, `null`: nil, `"a"`: {"a"}, `["a",{"b":["c"],"d":7}]`: {"a", "b", "c", "d"},
		`{"a":1e400,"b":[-1e400,"c"]}`: {"a", "b", "c"}, // no float64 is as large
	} {
		if got := slices.Collect(stringsIn(json.RawMessage(raw))); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", raw, got, want)
		}
	}
}

// FuzzTokenAnswer compares the answer of the token endpoint with what encoding/json makes of it.
func FuzzTokenAnswer(f *testing.F) {
	f.Add("coa_0123456789", "read write", "Bearer", int64(3600))
	f.Add("", "", "", int64(-1))
	f.Add("eyJ.a-b_c.d", "a:b/c*!~'`{}", "DPoP", int64(1<<62))
	for _, odd := range []string{`"`, `\`, "<", ">", "&", "\x00", "\x1f", "\x7f", "ü", "\u2028", "\xff", "\n"} {
		f.Add(odd, "read", "Bearer", int64(1))
		f.Add("coa_0", "read "+odd, "Bearer", int64(1))
		f.Add("coa_0", "read", odd+"Bearer", int64(1))
	}
	f.Fuzz(func(t *testing.T, token, scope, kind string, seconds int64) {
		answer := tokenAnswer{AccessToken: token, Scope: scope, TokenType: kind, ExpiresIn: seconds}
		want, err := json.Marshal(answer)
		if err != nil {
			t.Fatal(err)
		}
		if got := answer.encode(); string(got) != string(want) {
			t.Errorf("%s, want %s", got, want)
		}
	})
}
