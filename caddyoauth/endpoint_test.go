package caddyoauth_test

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// hashOf returns the hash under which a configuration stores a secret that is quick to check.
func hashOf(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return "$sha256$" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// oddSecret has characters of every kind that form-urlencoding changes.
const oddSecret = "p%+ ä/=&:"

// endpointClients configure one client for each thing that a registration can say.
func endpointClients() string {
	good := "secret_hash " + hashOf(testSecret) + "\n"
	return `
		client reader {
			` + good + `
			scopes read
			default_scopes read
		}
		client writer {
			` + good + `
			scopes read write
			audience https://api.example.com
			token_lifetime 10m
		}
		client scopeless {
			` + good + `
		}
		client only-basic {
			` + good + `
			scopes read
			default_scopes read
			auth client_secret_basic
		}
		client only-post {
			` + good + `
			scopes read
			default_scopes read
			auth client_secret_post
		}
		client my:app {
			secret_hash ` + hashOf(oddSecret) + `
			scopes read
			default_scopes read
		}
		client inspector {
			` + good + `
			scopes read
			default_scopes read
			grant_types none
			introspect realm
		}
		client expired {
			secret_hash ` + hashOf(testSecret) + ` until 2020-01-01T00:00:00Z
			scopes read
			default_scopes read
		}
		client off {
			` + good + `
			scopes read
			default_scopes read
			disabled
		}
	`
}

// endpointOptions configure two realms with the same clients, so that every case can run in
// both.
func endpointOptions() string {
	return noFailureLimit + endpointClients() + "\nrealm alpha {\n" + endpointClients() + "\n}\n"
}

// endpoint is one spelling of one endpoint.
type endpoint struct {
	kind  byte // T for token, I for introspection, R for revocation
	realm string
	path  string
}

// endpoints returns all spellings of all endpoints in all realms.
func endpoints() []endpoint {
	var all []endpoint
	for _, base := range []struct{ realm, path string }{
		{"root", "/oauth2"},
		{"root", "/oauth2/realms/root"},
		{"alpha", "/oauth2/realms/root/realms/alpha"},
	} {
		for _, e := range []struct {
			kind byte
			path string
		}{{'T', "/access_token"}, {'T', "/token"}, {'I', "/introspect"}, {'R', "/token/revoke"}, {'R', "/revoke"}} {
			all = append(all, endpoint{e.kind, base.realm, base.path + e.path})
		}
	}
	return all
}

// leastForm returns the smallest form that an endpoint accepts.
func (e endpoint) leastForm() string {
	if e.kind == 'T' {
		return "grant_type=client_credentials"
	}
	return "token=nobody-issued-this"
}

// call is a request to an endpoint, as it is sent. In the query and the body, FORM stands for
// the endpoint's smallest form. The zero value posts that form without credentials.
type call struct {
	method  string // default POST
	query   string
	headers []string // name and value in turn; a Content-Type replaces the usual one
	noType  bool     // no Content-Type at all
	body    string   // default FORM
	empty   bool     // no body
	chunked bool     // no Content-Length
}

// as returns the call with Basic credentials.
func (c call) as(id, secret string) call {
	c.headers = append(slices.Clone(c.headers), "Authorization", basic(id, secret))
	return c
}

// basic returns the Authorization header of RFC 6749 section 2.3.1.
func basic(id, secret string) string {
	return rawBasic(url.QueryEscape(id) + ":" + url.QueryEscape(secret))
}

// rawBasic returns a Basic Authorization header with exactly these bytes in it.
func rawBasic(pair string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(pair))
}

// send sends the call to an endpoint.
func (c call) send(g *gateway, e endpoint) answer {
	g.t.Helper()
	body := c.bodyFor(e)
	path := e.path
	if c.query != "" {
		path += "?" + strings.ReplaceAll(c.query, "FORM", e.leastForm())
	}
	method := c.method
	if method == "" {
		method = "POST"
	}
	r := g.request(method, path, body, c.headers...)
	if c.chunked {
		r.ContentLength, r.Body, r.GetBody = -1, io.NopCloser(strings.NewReader(body)), nil
	}
	if !c.noType && r.Header.Get("Content-Type") == "" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return g.do(r)
}

func (c call) bodyFor(e endpoint) string {
	if c.empty {
		return ""
	}
	if c.body == "" {
		return e.leastForm()
	}
	return strings.ReplaceAll(c.body, "FORM", e.leastForm())
}

// sent lists what a refusal of the call must not repeat: every name and value of the query and
// the body, raw and decoded, and the value of every header. Protocol words that our own
// descriptions use don't count.
func (c call) sent(e endpoint) []string {
	var pieces []string
	split := func(s string) {
		for _, p := range strings.FieldsFunc(s, func(r rune) bool { return r == '&' || r == '=' || r == ';' }) {
			pieces = append(pieces, p)
			if decoded, err := url.QueryUnescape(p); err == nil {
				pieces = append(pieces, decoded)
			}
		}
	}
	if body := c.bodyFor(e); len(body) < 4096 {
		split(body)
	}
	split(strings.ReplaceAll(c.query, "FORM", e.leastForm()))
	for i := 1; i < len(c.headers); i += 2 {
		_, credentials, _ := strings.Cut(c.headers[i], " ")
		pieces = append(pieces, c.headers[i], credentials)
		if pair, err := base64.StdEncoding.DecodeString(credentials); err == nil {
			pieces = append(pieces, strings.Split(string(pair), ":")...)
		}
	}
	protocol := []string{
		"grant_type", "scope", "client_id", "client_secret", "client_assertion", "client_assertion_type",
		"token", "token_type_hint", "application/json", "application/x-www-form-urlencoded", "read", "POST",
	}
	return slices.DeleteFunc(pieces, func(s string) bool { return len(s) < 4 || s == "Basic " || slices.Contains(protocol, s) })
}

// description is what RFC 6749 section 5.2 allows in an error_description.
var description = regexp.MustCompile(`^[\x20-\x21\x23-\x5B\x5D-\x7E]+$`)

// wantHeaders checks the headers of every answer of an endpoint, good or bad: it is JSON that no
// cache stores and no browser takes for anything else, without cookies, redirects, or CORS.
func wantHeaders(t testing.TB, a answer) {
	t.Helper()
	for name, want := range map[string]string{
		"Content-Type":           "application/json",
		"Cache-Control":          "no-store",
		"Pragma":                 "no-cache",
		"X-Content-Type-Options": "nosniff",
	} {
		if got := a.Header[name]; len(got) != 1 || got[0] != want {
			t.Errorf("%s is %q, want exactly %q", name, got, want)
		}
	}
	for name, values := range a.Header {
		if name == "Set-Cookie" || name == "Location" || strings.HasPrefix(name, "Access-Control-") {
			t.Errorf("there must be no header %s, but it is %q", name, values)
		}
	}
}

// wantE checks a refusal: its status, code and shape, and that it repeats nothing that was sent.
func wantE(t testing.TB, a answer, status int, code string, sent ...string) {
	t.Helper()
	wantHeaders(t, a)
	if a.StatusCode != status {
		t.Errorf("status %d, want %d (body %.200s)", a.StatusCode, status, a.Body)
	}
	if a.Request.Method != "HEAD" {
		object := a.json(t)
		if object["error"] != code {
			t.Errorf("error is %v, want %s", object["error"], code)
		}
		if text, _ := object["error_description"].(string); !description.MatchString(text) {
			t.Errorf("error_description %q is empty or has a character that RFC 6749 does not allow", text)
		}
		if len(object) != 2 {
			t.Errorf("the refusal has members beyond error and error_description: %s", a.Body)
		}
	}
	if challenges := a.Header["Www-Authenticate"]; status == 401 && len(challenges) != 1 || status != 401 && len(challenges) != 0 {
		t.Errorf("with status %d, the challenges are %q", status, challenges)
	}
	_, retry := a.Header["Retry-After"]
	if want := status == 503 || status == 429; retry != want {
		t.Errorf("Retry-After present: %t, want %t", retry, want)
	}
	for _, s := range sent {
		if strings.Contains(a.Body, s) {
			t.Errorf("the body repeats %q: %s", s, a.Body)
		}
		for name, values := range a.Header {
			if strings.Contains(strings.Join(values, "\n"), s) {
				t.Errorf("header %s repeats %q: %q", name, s, values)
			}
		}
	}
}

// wantE401 checks a failed client authentication at a realm's endpoint.
func wantE401(t testing.TB, a answer, realm string, sent ...string) {
	t.Helper()
	wantE(t, a, 401, "invalid_client", sent...)
	if got, want := a.Header.Get("WWW-Authenticate"), `Basic realm="`+realm+`"`; got != want {
		t.Errorf("challenge %q, want %q", got, want)
	}
}

// tokenAnswer is a successful token response, byte for byte: four members in the documented
// order and no other token, access_token of VSCHARs, expires_in an integer (RFC 6749 sections
// 4.4.3 and 5.1).
var tokenAnswer = regexp.MustCompile(`^\{"access_token":"(co[ae]_[A-Za-z0-9_-]{50,200}|eyJ[A-Za-z0-9_-]{80,160}\.[A-Za-z0-9_-]{100,1000}\.[A-Za-z0-9_-]{86})","scope":"([^"]+)","token_type":"Bearer","expires_in":([0-9]+)\}$`)

// wantToken checks a successful token response and returns the token. If scope is empty, any
// will do.
func wantToken(t testing.TB, a answer, scope string) string {
	t.Helper()
	wantHeaders(t, a)
	m := tokenAnswer.FindStringSubmatch(a.Body)
	if a.StatusCode != 200 || m == nil {
		t.Errorf("%d %s is not a token response", a.StatusCode, a.Body)
		return ""
	}
	if scope != "" && m[2] != scope {
		t.Errorf("scope is %q, want %q", m[2], scope)
	}
	return m[1]
}

// wantOK checks the good answer of an endpoint to its smallest form: a token, that the unknown
// token is inactive, or {}.
func wantOK(t testing.TB, a answer, e endpoint) {
	t.Helper()
	switch e.kind {
	case 'T':
		wantToken(t, a, "")
		return
	case 'I':
		if a.Body != `{"active":false}` {
			t.Errorf("the answer is %d %s", a.StatusCode, a.Body)
		}
	case 'R':
		if a.Body != `{}` {
			t.Errorf("the answer is %d %s", a.StatusCode, a.Body)
		}
	}
	wantHeaders(t, a)
	if a.StatusCode != 200 {
		t.Errorf("status %d, want 200", a.StatusCode)
	}
}

// endpointCase is a call and the answer that every endpoint in kinds must give.
type endpointCase struct {
	name  string
	kinds string // default TIR
	call  call
	// What is expected: the endpoint's good answer if status is zero, else a refusal.
	status int
	code   string
	// scope is the scope of a good answer of the token endpoint; if empty, any will do.
	scope string
}

// runCases sends every case to every spelling of its endpoints, in both realms.
func runCases(t *testing.T, g *gateway, cases []endpointCase) {
	for _, e := range endpoints() {
		for _, c := range cases {
			if c.kinds != "" && !strings.ContainsRune(c.kinds, rune(e.kind)) {
				continue
			}
			t.Run(e.path+": "+c.name, func(t *testing.T) {
				a := c.call.send(g, e)
				switch {
				case c.status == 0 && c.scope != "":
					wantToken(t, a, c.scope)
				case c.status == 0:
					wantOK(t, a, e)
				case c.status == 401:
					wantE401(t, a, e.realm, c.call.sent(e)...)
				default:
					wantE(t, a, c.status, c.code, c.call.sent(e)...)
				}
				if c.status == 405 && a.Header.Get("Allow") != "POST" {
					t.Errorf("Allow is %q", a.Header.Get("Allow"))
				}
			})
		}
	}
}

// manyParameters returns a form with n parameters besides the endpoint's own.
func manyParameters(n int) string {
	var b strings.Builder
	b.WriteString("FORM")
	for i := range n {
		b.WriteString("&" + strconv.FormatInt(int64(i), 36) + "=")
	}
	return b.String()
}

// formOfSize returns a good form for the token endpoint, padded to exactly n bytes.
func formOfSize(n int) string {
	form := "grant_type=client_credentials&padding="
	return form + strings.Repeat("x", n-len(form))
}

// transportCases are the rules that every endpoint keeps: POST only, a form in the body, no
// parameter twice, nothing malformed, nothing too big, and answers that repeat nothing.
func transportCases() []endpointCase {
	as := call{}.as("reader", testSecret)
	with := func(change func(*call)) call {
		c := as
		change(&c)
		return c
	}
	// POST only.
	var cases []endpointCase
	for _, method := range []string{"GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"} {
		cases = append(cases, endpointCase{name: method + " with a good form", status: 405, code: "invalid_request",
			call: with(func(c *call) { c.method = method })})
	}
	for _, method := range []string{"GET", "HEAD"} {
		cases = append(cases, endpointCase{name: method + " with everything in the query", status: 405, code: "invalid_request",
			call: with(func(c *call) {
				c.method, c.query, c.empty = method, "FORM&client_id=reader&client_secret="+testSecret, true
			})})
	}

	// The body is a form and says so.
	for _, contentType := range []string{
		"application/json", "multipart/form-data; boundary=x", "text/plain", "application/x-www-form-urlencoded2",
		"application/x-www-form-urlencoded, text/plain", "text/plain; application/x-www-form-urlencoded", ";", "application/x-www-form-urlencoded; =",
	} {
		cases = append(cases, endpointCase{name: "content type " + contentType, status: 400, code: "invalid_request",
			call: with(func(c *call) { c.headers = append(slices.Clone(c.headers), "Content-Type", contentType) })})
	}
	cases = append(cases,
		endpointCase{name: "no content type", status: 400, code: "invalid_request", call: with(func(c *call) { c.noType = true })},
		endpointCase{name: "two content types", status: 400, code: "invalid_request", call: with(func(c *call) {
			c.headers = append(slices.Clone(c.headers), "Content-Type", "application/x-www-form-urlencoded", "Content-Type", "text/plain")
		})},
		endpointCase{name: "a content type with a charset", call: with(func(c *call) {
			c.headers = append(slices.Clone(c.headers), "Content-Type", "application/x-www-form-urlencoded; charset=UTF-8")
		})},
		endpointCase{name: "the content type in another case", call: with(func(c *call) {
			c.headers = append(slices.Clone(c.headers), "Content-Type", "Application/X-WWW-Form-URLencoded")
		})},

		// Parameters come from the body, never from the URI, which ends up in logs.
		endpointCase{name: "credentials in the query", status: 401, call: call{query: "client_id=reader&client_secret=" + testSecret}},
		endpointCase{name: "the secret in the query, the ID in the body", status: 401, call: call{query: "client_secret=" + testSecret, body: "FORM&client_id=reader"}},
		endpointCase{name: "the form in the query", status: 400, code: "invalid_request", call: with(func(c *call) { c.query, c.empty = "FORM", true })},
		endpointCase{name: "the form in the query, another parameter in the body", status: 400, code: "invalid_request", call: with(func(c *call) { c.query, c.body = "FORM", "foo=bar" })},
		endpointCase{name: "a scope in the query is ignored", kinds: "T", scope: "read", call: with(func(c *call) { c.query = "scope=write" })},
		endpointCase{name: "a parameter in query and body is not a repetition", call: with(func(c *call) { c.query = "FORM" })},
	)
	// No parameter twice (RFC 6749 section 3.2). An unknown one is ignored, an empty one counts
	// as absent.
	for _, name := range []string{"grant_type", "scope", "client_id", "client_secret", "client_assertion", "client_assertion_type", "token", "token_type_hint", "foo"} {
		c := call{body: "FORM&" + name + "=v1&" + name + "=v1"}
		if name != "client_secret" && !strings.HasPrefix(name, "client_assertion") {
			c = c.as("reader", testSecret) // with those it would be two methods of authentication
		}
		cases = append(cases, endpointCase{name: name + " twice", status: 400, code: "invalid_request", call: c})
	}
	cases = append(cases,
		endpointCase{name: "a parameter twice, once empty", status: 400, code: "invalid_request", call: with(func(c *call) { c.body = "FORM&scope=read&scope=" })},
		endpointCase{name: "a parameter twice, once percent-encoded", status: 400, code: "invalid_request", call: with(func(c *call) { c.body = "FORM&scope=read&%73cope=read" })},
		endpointCase{name: "an unknown parameter", call: with(func(c *call) { c.body = "FORM&foo=bar" })},
		endpointCase{name: "an empty secret beside Basic is absent", call: with(func(c *call) { c.body = "FORM&client_secret=" })},
		endpointCase{name: "an empty secret alone is absent", status: 401, call: call{body: "FORM&client_id=reader&client_secret="}},
		endpointCase{name: "an empty scope is absent", kinds: "T", scope: "read", call: with(func(c *call) { c.body = "FORM&scope=" })},
		endpointCase{name: "an empty grant_type is absent", kinds: "T", status: 400, code: "invalid_request", call: with(func(c *call) { c.body = "grant_type=" })},
		endpointCase{name: "an empty token is absent", kinds: "IR", status: 400, code: "invalid_request", call: with(func(c *call) { c.body = "token=" })},
	)
	// Frameworks spell lists with brackets. Ignored, scope[] would be no scope, and so the default.
	for _, name := range []string{"grant_type", "scope", "client_id", "client_secret", "client_assertion", "token", "token_type_hint"} {
		for _, list := range []string{"[]", "[0]", "%5B0%5D", "[a", "[0][x]"} {
			cases = append(cases, endpointCase{name: name + list + " is a list", status: 400, code: "invalid_request", call: with(func(c *call) { c.body = "FORM&" + name + list + "=read" })})
		}
	}
	cases = append(cases, endpointCase{name: "an unknown parameter with brackets", call: with(func(c *call) { c.body = "FORM&foo[]=bar&scopes[]=x&[scope]=x" })})
	// What is malformed is refused, and nothing crashes.
	for name, body := range map[string]string{
		"a broken escape in a value":         "FORM&foo=%zz",
		"a broken escape in a name":          "FORM&%zz=foo",
		"a truncated escape":                 "FORM&foo=%4",
		"NUL in a value":                     "FORM&foo=a%00b",
		"NUL in a name":                      "FORM&f%00o=bar",
		"a semicolon":                        "FORM;foo=bar",
		"invalid UTF-8, encoded":             "FORM&foo=%ff%fe",
		"invalid UTF-8, raw":                 "FORM&foo=\xff\xfe",
		"an overlong encoding":               "FORM&foo=%c0%af",
		"10000 parameters":                   manyParameters(10000),
		"a JSON body under the right type":   `{"grant_type":"client_credentials","token":"x"}`,
		"a binary body under the right type": "\x00\x01\x02\x03",
	} {
		cases = append(cases, endpointCase{name: name, status: 400, code: "invalid_request", call: with(func(c *call) { c.body = body })})
	}
	cases = append(cases,
		endpointCase{name: "a good form after the malformed ones", call: as},
		endpointCase{name: "a name of 1 MiB", status: 413, code: "invalid_request", call: with(func(c *call) { c.body = "FORM&" + strings.Repeat("n", 1<<20) + "=v" })},
		// A body may have 64 KiB.
		endpointCase{name: "64 KiB and a byte", status: 413, code: "invalid_request", call: with(func(c *call) { c.body = formOfSize(64<<10 + 1) })},
		endpointCase{name: "65 KiB in chunks", status: 413, code: "invalid_request", call: with(func(c *call) { c.body, c.chunked = formOfSize(65<<10), true })},
		endpointCase{name: "exactly 64 KiB", kinds: "T", scope: "read", call: with(func(c *call) { c.body = formOfSize(64 << 10) })},
		endpointCase{name: "a small body in chunks", call: with(func(c *call) { c.chunked = true })},
		// No answer repeats what was sent.
		endpointCase{name: "markup as a grant type", kinds: "T", status: 400, code: "unsupported_grant_type",
			call: with(func(c *call) { c.body = "grant_type=" + url.QueryEscape("\"\\<script>é\r\nX: y") })},
		endpointCase{name: "markup as a scope", kinds: "T", status: 400, code: "invalid_scope",
			call: with(func(c *call) { c.body = "FORM&scope=" + url.QueryEscape("\"\\<script>é\r\nX: y") })},
		endpointCase{name: "markup as a client", status: 401, call: call{}.as("\"\\<script>é\r\nX: y", "\"\\<script>é\r\nX: z")},
		endpointCase{name: "markup as a parameter name", status: 400, code: "invalid_request", call: with(func(c *call) { c.body = "FORM&<script>=1&<script>=2" })},
		endpointCase{name: "request headers", status: 401, call: call{headers: []string{
			"Referer", "https://canary.example/referer", "User-Agent", "canary-agent", "X-Forwarded-Host", "canary.example",
			"X-Forwarded-Proto", "canary-proto", "X-Forwarded-For", "192.0.2.77", "X-Request-Id", "canary-request", "Cookie", "canary=cookie",
		}}},
		// JSON, whatever Accept says; and no CORS.
		endpointCase{name: "Accept: text/html", call: with(func(c *call) { c.headers = append(slices.Clone(c.headers), "Accept", "text/html") })},
		endpointCase{name: "Accept: a JWT, which only introspection has", kinds: "TR", call: with(func(c *call) {
			c.headers = append(slices.Clone(c.headers), "Accept", "application/token-introspection+jwt")
		})},
		endpointCase{name: "an Origin of another site", call: with(func(c *call) { c.headers = append(slices.Clone(c.headers), "Origin", "https://evil.example") })},
		endpointCase{name: "a preflight from another site", status: 405, code: "invalid_request", call: call{method: "OPTIONS", empty: true, headers: []string{
			"Origin", "https://evil.example", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization",
		}}},
	)
	return cases
}

// tokenCases are the rules for a single token request, and for scopes.
func tokenCases() []endpointCase {
	form := func(id, body string) call { return call{body: body}.as(id, testSecret) }
	scope := func(id, scope string) call { return form(id, "FORM&scope="+url.QueryEscape(scope)) }
	cases := []endpointCase{
		{name: "a token for a scope that the client has", scope: "read", call: scope("reader", "read")},
		{name: "OpenID Connect's scopes bring no other token", status: 400, code: "invalid_scope", call: scope("reader", "offline_access openid")},
		// The order is syntax, client authentication, grant, scope: a stranger learns nothing about
		// a client.
		{name: "no grant_type", status: 400, code: "invalid_request", call: form("reader", "scope=read")},
		{name: "no grant_type is reported before a failed authentication", status: 400, code: "invalid_request", call: call{body: "scope=read"}.as("reader", "wrong-secret")},
		{name: "no grant_type is reported before missing credentials", status: 400, code: "invalid_request", call: call{body: "scope=read"}},
		{name: "an unsupported grant and a wrong secret", status: 401, call: call{body: "grant_type=password"}.as("reader", "wrong-secret")},
		{name: "a client that may not use the grant", status: 400, code: "unauthorized_client", call: form("inspector", "FORM")},
		{name: "a client that may not use the grant, and a bad scope", status: 400, code: "unauthorized_client", call: scope("inspector", "a  b")},
		{name: "a client ID alone", status: 401, call: call{body: "FORM&client_id=reader"}},
		{name: "a client ID alone, in Basic", status: 401, call: call{}.as("reader", "")},
		{name: "a wrong secret and a malformed scope", status: 401, call: call{body: "FORM&scope=a++b"}.as("reader", "wrong-secret")},
		{name: "a wrong secret and a scope that the client may not have", status: 401, call: call{body: "FORM&scope=admin"}.as("reader", "wrong-secret")},
		{name: "a wrong secret of a client that may not use the grant", status: 401, call: call{}.as("inspector", "wrong-secret")},
		{name: "a repeated parameter and a wrong secret", status: 400, code: "invalid_request", call: call{body: "FORM&scope=a&scope=b"}.as("reader", "wrong-secret")},
		{name: "a subject in the request is ignored", scope: "read", call: form("reader", "FORM&sub=admin&username=admin&authenticated_userid=admin&assertion=x")},

		// A client gets the scopes that it asks for, in that order, or none at all.
		{name: "all the scopes of a client", scope: "read write", call: scope("writer", "read write")},
		{name: "some of the scopes of a client", scope: "write", call: scope("writer", "write")},
		{name: "one scope too many", status: 400, code: "invalid_scope", call: scope("writer", "read write admin")},
		{name: "a scope of another client", status: 400, code: "invalid_scope", call: scope("reader", "write")},
		{name: "scopes in another order", scope: "write read", call: scope("writer", "write read")},
		// If it asks for none, it gets its defaults.
		{name: "the client's default", scope: "read", call: form("reader", "FORM")},
		{name: "no default anywhere", status: 400, code: "invalid_scope", call: form("writer", "FORM")},
		{name: "a client without any scope", status: 400, code: "invalid_scope", call: form("scopeless", "FORM")},
		{name: "a client without any scope asks for one", status: 400, code: "invalid_scope", call: scope("scopeless", "read")},
		{name: "scopes asked for more than once", scope: "read write", call: scope("writer", "read read write read")},
		// A scope is compared as a whole.
		{name: "a wildcard after a colon", status: 400, code: "invalid_scope", call: scope("reader", "read:*")},
		{name: "a wildcard alone", status: 400, code: "invalid_scope", call: scope("reader", "*")},
		{name: "a scope that begins like the client's", status: 400, code: "invalid_scope", call: scope("reader", "read:all")},
		{name: "the beginning of the client's scope", status: 400, code: "invalid_scope", call: scope("reader", "rea")},
		// 100 scopes, 4 KiB.
		{name: "101 different scopes", status: 400, code: "invalid_scope", call: scope("reader", numbered(101))},
		{name: "10000 scopes", status: 400, code: "invalid_scope", call: scope("reader", numbered(10000))},
		{name: "one scope of 5000 bytes", status: 400, code: "invalid_scope", call: scope("reader", strings.Repeat("s", 5000))},
	}
	for _, grant := range []string{"password", "authorization_code", "refresh_token", "implicit", "urn:ietf:params:oauth:grant-type:jwt-bearer", "junk", "CLIENT_CREDENTIALS", "client_credentials ", " client_credentials"} {
		cases = append(cases, endpointCase{name: "grant " + grant, status: 400, code: "unsupported_grant_type", call: form("reader", "grant_type="+url.QueryEscape(grant))})
	}
	for _, s := range []string{"a,b", "read,write", `"`, `\`, "read\twrite", " read", "read ", "read  write", " ", "read\nwrite", "read\u00a0write", "lësen", "READ", "Read", "read\u200b"} {
		cases = append(cases, endpointCase{name: fmt.Sprintf("scope %q", s), status: 400, code: "invalid_scope", call: scope("writer", s)})
	}
	// NUL is malformed anywhere in a form.
	cases = append(cases, endpointCase{name: "NUL in a scope", status: 400, code: "invalid_request", call: scope("writer", "read\x00")})
	for i := range cases {
		cases[i].kinds = "T"
	}
	return cases
}

// numbered returns n different scopes as one parameter.
func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, " %s", strconv.FormatInt(int64(i), 36))
	}
	return b.String()[1:]
}

// Every spelling of an endpoint answers in the same way, whatever the store and the cache.
func TestEndpoints(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			g := startGateway(t, v.options(t)+endpointOptions(), "oauth_server")
			runCases(t, g, transportCases())
			runCases(t, g, tokenCases())
		})
	}
}

// The realm is in the path. A parameter may repeat it, as clients of ForgeRock AM do, but must
// not name another.
func TestRealmParameter(t *testing.T) {
	g := startGateway(t, "store memory\nissuer "+testIssuer+"\n"+endpointOptions(), "oauth_server\nreverse_proxy BACKEND")
	good := map[string][]string{
		"root":  {"realm=/", "realm=root", "realm=/root", "realm=", "realm", "realm=%2F", "realms=/alpha", "foo=bar"},
		"alpha": {"realm=/alpha", "realm=alpha", "realm=/alpha/", "realm=%2falpha", "realm=", "realm=alpha&realm=/alpha"},
	}
	bad := map[string][]string{
		"root":  {"realm=/alpha", "realm=alpha", "realm=/nobody", "%72ealm=/alpha", "realm=/&realm=/alpha", "realm=/ROOT", "realm=/root/alpha", "x=%zz&realm=/alpha", "realm=/alpha%zz", "realm=/alpha;x=1"},
		"alpha": {"realm=/", "realm=root", "realm=/beta", "realm=/Alpha", "realm=/root/alpha"},
	}
	as := call{}.as("reader", testSecret)
	for _, e := range endpoints() {
		t.Run(e.path, func(t *testing.T) {
			for _, query := range good[e.realm] {
				c := as
				c.query = query
				wantOK(t, c.send(g, e), e)
			}
			for _, query := range bad[e.realm] {
				c := as
				c.query = query
				a := c.send(g, e)
				wantE(t, a, 400, "invalid_request", "alpha", "beta", "nobody")
				if !strings.Contains(a.Body, "realm parameter") {
					t.Errorf("with %s the answer is %s", query, a.Body)
				}
				if strings.ContainsAny(query, "&;") || strings.HasSuffix(query, "%zz") {
					continue // malformed or repeated in a body, whatever the realm
				}
				c.query, c.body = "", "FORM&"+query
				wantE(t, c.send(g, e), 400, "invalid_request", "alpha", "beta", "nobody")
			}
		})
	}
	for query, status := range map[string]int{"": 200, "?realm=/": 200, "?realm=/alpha": 400} {
		if a := g.get("/oauth2/.well-known/openid-configuration"+query, ""); a.StatusCode != status {
			t.Errorf("root's metadata with %q: %d %s", query, a.StatusCode, a.Body)
		}
	}
}

// A client without default scopes gets those of its realm, and a realm without any those of root.
func TestDefaultScopesOfTheRealm(t *testing.T) {
	client := "client c {\nsecret_hash " + hashOf(testSecret) + "\nscopes read write\n}\n"
	own := "client own {\nsecret_hash " + hashOf(testSecret) + "\nscopes read write\ndefault_scopes write\n}\n"
	g := startGateway(t, "store memory\ndefault_scopes read\n"+client+own+"realm alpha {\ndefault_scopes write\n"+client+"}\nrealm beta {\n"+client+"}\n", "oauth_server")
	form := url.Values{"grant_type": {"client_credentials"}}
	for _, c := range []struct{ name, path, id, scope string }{
		{"root's own", "/oauth2/token", "c", "read"},
		{"the client's before the realm's", "/oauth2/token", "own", "write"},
		{"another realm's own", "/oauth2/realms/root/realms/alpha/token", "c", "write"},
		{"root's, for a realm without one", "/oauth2/realms/root/realms/beta/token", "c", "read"},
	} {
		t.Run(c.name, func(t *testing.T) { wantToken(t, g.post(c.path, c.id, testSecret, form), c.scope) })
	}

	// Defaults beyond a client's scopes are refused at load.
	for name, oauth := range map[string]string{
		"the client's": "store memory\nclient c {\nsecret_hash " + hashOf(testSecret) + "\nscopes read\ndefault_scopes read admin\n}\n",
		"the realm's":  "store memory\ndefault_scopes admin\n" + client,
	} {
		t.Run("refused at load: "+name, func(t *testing.T) {
			if err := g.load(oauth, "oauth_server"); err == nil || !strings.Contains(err.Error(), "admin") {
				t.Errorf("loading a default scope that the client does not have: %v", err)
			}
		})
	}
}

// expires_in is the token lifetime of the client, else of its realm, else an hour.
func TestExpiresIn(t *testing.T) {
	client := func(id, more string) string {
		return "client " + id + " {\nsecret_hash " + hashOf(testSecret) + "\nscopes read\n" + more + "\n}\n"
	}
	g := startGateway(t, "store memory\n"+client("hour", "")+client("minute", "token_lifetime 1m")+
		"realm alpha {\ntoken_lifetime 5m\n"+client("five", "")+client("minute", "token_lifetime 1m")+"}\n", "oauth_server")
	for _, c := range []struct {
		path, id string
		want     string
	}{
		{"/oauth2/token", "hour", "3600"},
		{"/oauth2/token", "minute", "60"},
		{"/oauth2/realms/root/realms/alpha/token", "five", "300"},
		{"/oauth2/realms/root/realms/alpha/token", "minute", "60"},
	} {
		t.Run(c.path+" "+c.id, func(t *testing.T) {
			a := g.post(c.path, c.id, testSecret, url.Values{"grant_type": {"client_credentials"}, "scope": {"read"}})
			if wantToken(t, a, "read") != "" && !strings.HasSuffix(a.Body, `"expires_in":`+c.want+"}") {
				t.Errorf("the answer is %s, want expires_in %s", a.Body, c.want)
			}
		})
	}
}

// A token lives as long as expires_in said and is dead at exp, without leeway, with and without
// a cache. The clock is read before and after each request, so the test does not depend on how
// fast the machine is.
func TestTokenIsDeadAtExpiry(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			// A token holds its expiry in milliseconds, rounded down, and a JWT in seconds.
			life, rounding := time.Second, time.Millisecond
			if v.format == "jwt" {
				life, rounding = 2*time.Second, time.Second
			}
			g := startGateway(t, v.options(t)+"client c {\nsecret_hash "+hashOf(testSecret)+"\nscopes read\ndefault_scopes read\ntoken_lifetime "+life.String()+"\n}\n",
				"oauth_server\noauth_protect\nreverse_proxy BACKEND")
			// On a machine that is busy with other things, a token may be dead before it is used, and while Redis
			// stands still there is none.
			waitUntil(t, "a token was good before it died", func() bool { return diesAtExpiry(t, g, life, rounding) || t.Failed() })
		})
	}
}

// diesAtExpiry fetches a token and uses it until it is dead. It returns false if it never saw it
// good.
func diesAtExpiry(t *testing.T, g *gateway, life, rounding time.Duration) bool {
	asked := time.Now()
	a := g.fetch("c", "read")
	answered := time.Now()
	if a.StatusCode == 503 {
		return false // the store took too long
	}
	token := wantToken(t, a, "read")
	for good := false; ; good = true {
		begin := time.Now()
		route, introspection := g.get("/x", token), g.introspect("c", token)
		end := time.Now()
		if route.StatusCode == 503 || introspection.StatusCode == 503 {
			return false
		}
		active := introspection.json(t)["active"]
		if begin.After(answered.Add(life)) && (route.StatusCode == 200 || active == true) {
			t.Fatalf("%v after it was asked for, the token is still good: route %d, active %v", begin.Sub(asked), route.StatusCode, active)
		}
		if end.Before(asked.Add(life-rounding)) && (route.StatusCode != 200 || active != true) {
			t.Fatalf("%v after it was asked for, the token is dead: route %d, active %v", end.Sub(asked), route.StatusCode, active)
		}
		if route.StatusCode == 401 && active == false {
			return good
		}
		time.Sleep(5 * time.Millisecond) // let others have the machine
	}
}

// No two tokens are equal, whoever asks for them.
func TestTokensAreUnique(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server")
	seen := make(map[string]bool)
	for range 500 {
		for _, id := range []string{"reader", "writer"} {
			token := g.token(id, "read")
			if seen[token] {
				t.Fatal("a token was issued twice")
			}
			seen[token] = true
		}
	}
}

// The subject of a token is the client, whatever the request says.
func TestSubjectOfTheRequestIsIgnored(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND")
	a := g.post("/oauth2/token", "reader", testSecret, url.Values{
		"grant_type": {"client_credentials"}, "sub": {"admin"}, "subject": {"admin"}, "username": {"admin"},
		"authenticated_userid": {"admin"}, "user_id": {"admin"}, "audience": {"https://other.example"}, "expires_in": {"999999"},
	})
	token := wantToken(t, a, "read")
	facts := g.introspect("reader", token).json(t)
	if facts["sub"] != "reader" || facts["client_id"] != "reader" || facts["aud"] != nil {
		t.Errorf("the token says %v", facts)
	}
	g.get("/x", token)
	header := g.Backend.last(t).Header
	if header.Get("X-OAuth-Subject") != "reader" || strings.Contains(fmt.Sprint(header), "admin") {
		t.Errorf("the backend was told %v", header)
	}
}

// A token holds the audience of its client, and a route compares it byte for byte, whether the
// token is cached or not.
func TestAudienceIsRecordedAndEnforced(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			routes := "oauth_server\n"
			audiences := []string{"https://api.example.com", "https://api.example.com/", "https://API.example.com", "https://api.example.com:443", "https://other.example.com"}
			for i, a := range audiences {
				routes += fmt.Sprintf("oauth_protect /%d {\naudience %s\n}\n", i, a)
			}
			g := startGateway(t, v.options(t)+testClients, routes+"reverse_proxy BACKEND")
			token := g.token("writer", "read")
			if aud := g.introspect("writer", token).json(t)["aud"]; aud != "https://api.example.com" {
				t.Errorf("aud is %v", aud)
			}
			for range 2 { // the second time from the cache
				for i, a := range audiences {
					want := 401
					if i == 0 {
						want = 200
					}
					if got := g.get(fmt.Sprintf("/%d", i), token); got.StatusCode != want {
						t.Errorf("at a route for %s: %d, want %d", a, got.StatusCode, want)
					}
				}
			}
		})
	}
}

// A route, too, compares scopes as a whole.
func TestScopesAreWholeStringsAtARoute(t *testing.T) {
	g := startGateway(t, "store memory\nclient c {\nsecret_hash "+hashOf(testSecret)+"\nscopes read read:* READ\n}\n",
		"oauth_server\noauth_protect {\nscopes read:all\n}\nreverse_proxy BACKEND")
	for _, scope := range []string{"read", "read:*", "READ"} {
		a := g.get("/x", g.token("c", scope))
		if a.StatusCode != 403 || !strings.Contains(a.Header.Get("WWW-Authenticate"), `error="insufficient_scope"`) {
			t.Errorf("%s at a route for read:all: %d %q", scope, a.StatusCode, a.Header.Get("WWW-Authenticate"))
		}
	}
	if n := g.Backend.count(); n != 0 {
		t.Errorf("%d requests reached the backend", n)
	}
}

// Paths that merely begin like an endpoint's are not endpoints, nor are the endpoints of other
// servers, nor the metadata if there is no issuer.
func TestOtherPathsAreNotEndpoints(t *testing.T) {
	g := startGateway(t, "store memory\n"+endpointOptions(), "oauth_server\nrespond \"next\" 418")
	for _, path := range []string{
		"/", "/oauth2/access_tokens", "/oauth2/access_token/x", "/x/../oauth2x/access_token",
		"/access_token", "/oauth2/connect/jwk_uri", "/oauth2/jwks", "/oauth2/authorize",
		"/.well-known/oauth-authorization-server", "/oauth2/.well-known/openid-configuration", // there is no issuer
	} {
		a := g.post(path, "reader", testSecret, url.Values{"grant_type": {"client_credentials"}})
		if a.StatusCode != http.StatusTeapot {
			t.Errorf("%s: %d %s", path, a.StatusCode, a.Body)
		}
	}
}

// A handler serves its own base path, and only the realms that it names.
func TestBasePathAndRealmsOfTheHandler(t *testing.T) {
	g := startGateway(t, "store memory\n"+endpointOptions(), "oauth_server alpha {\nbase_path /am\n}\nrespond \"next\" 418")
	form := url.Values{"grant_type": {"client_credentials"}}
	wantToken(t, g.post("/am/realms/root/realms/alpha/access_token", "reader", testSecret, form), "read")
	for _, path := range []string{"/am/access_token", "/oauth2/access_token", "/oauth2/realms/root/realms/alpha/access_token", "/am/realms/root/access_token"} {
		if a := g.post(path, "reader", testSecret, form); a.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d %s", path, a.StatusCode, a.Body)
		}
	}
}
