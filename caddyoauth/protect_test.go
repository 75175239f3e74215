package caddyoauth_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth"
)

// rawConn sends bytes as they are over a connection of its own and returns it. It is for what
// net/http would correct or refuse before sending.
func (g *gateway) rawConn(text string) net.Conn {
	g.t.Helper()
	u, err := url.Parse(g.URL)
	if err != nil {
		g.t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		g.t.Fatal(err)
	}
	return conn
}

// rawRequest sends a request line and header lines as they are, adds Host if it is missing, and
// reads the answer.
func (g *gateway) rawRequest(requestLine string, lines ...string) answer {
	g.t.Helper()
	hasHost := slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(strings.ToLower(l), "host:") })
	if !hasHost {
		lines = slices.Insert(slices.Clone(lines), 0, "Host: localhost")
	}
	conn := g.rawConn(requestLine + " HTTP/1.1\r\n" + strings.Join(append(lines, "", ""), "\r\n"))
	method, _, _ := strings.Cut(requestLine, " ")
	return readRaw(g.t, conn, method)
}

// readRaw reads one answer.
func readRaw(t testing.TB, conn net.Conn, method string) answer {
	t.Helper()
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("reading the answer: %v", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("reading the body: %v", err)
	}
	return answer{res, string(body)}
}

// checkRefusal checks a refusal by oauth_protect: the status, the code in a challenge that a
// strict parser can read, no-store, and no body. An empty code means that the challenge has
// none, as it must if the request had no credentials (RFC 6750 section 3.1).
func checkRefusal(t testing.TB, a answer, status int, realm, code string) map[string]string {
	t.Helper()
	challenges := a.Header["Www-Authenticate"]
	if a.StatusCode != status || len(challenges) != 1 {
		t.Errorf("got %d with challenges %q and body %q, want %d %s", a.StatusCode, challenges, a.Body, status, code)
		return nil
	}
	scheme, params, err := caddyoauth.ParseChallenge(challenges[0])
	if err != nil {
		t.Errorf("the challenge can't be parsed: %v", err)
		return nil
	}
	if scheme != "Bearer" || params["realm"] != realm || params["error"] != code {
		t.Errorf("got challenge %q, want realm %q and error %q", challenges[0], realm, code)
	}
	if _, present := params["error"]; present != (code != "") {
		t.Errorf("got challenge %q: only a request with credentials gets an error", challenges[0])
	}
	if got := a.Header["Cache-Control"]; !slices.Equal(got, []string{"no-store"}) {
		t.Errorf("Cache-Control is %q", got)
	}
	if a.Body != "" {
		t.Errorf("the refusal has a body: %q", a.Body)
	}
	if a.Header.Get("Retry-After") != "" || len(a.Header["Set-Cookie"]) > 0 || a.Header.Get("Location") != "" {
		t.Errorf("headers that a refusal must not have: %v", a.Header)
	}
	return params
}

// fingerprint returns everything in an answer that a caller can compare.
func fingerprint(a answer) string {
	h := a.Header.Clone()
	h.Del("Date")
	var b bytes.Buffer
	fmt.Fprintln(&b, a.Proto, a.Status, a.ContentLength)
	h.Write(&b)
	fmt.Fprintf(&b, "\n%s", a.Body)
	return b.String()
}

// ownMetrics has the gateway's metrics alone: those of Caddy and of the process take much longer.
var ownMetrics = caddyoauth.NewMetrics()

// metric adds up the samples of a metric of the gateway that have these labels, name and
// value in turn. For a histogram it returns the number of observations.
func metric(t testing.TB, name string, labels ...string) float64 {
	t.Helper()
	families, err := ownMetrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
	samples:
		for _, m := range family.GetMetric() {
			have := make(map[string]string)
			for _, pair := range m.GetLabel() {
				have[pair.GetName()] = pair.GetValue()
			}
			for i := 0; i < len(labels); i += 2 {
				if have[labels[i]] != labels[i+1] {
					continue samples
				}
			}
			sum += m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

// storeReads returns how often the store was asked for a token, and cacheMisses how often the
// cache had no answer.
func storeReads(t testing.TB) float64 {
	return metric(t, "caddy_oauth_store_duration_seconds", "operation", "get")
}

func cacheMisses(t testing.TB) float64 { return metric(t, "caddy_oauth_cache_misses_total") }

// warm calls a path until the cache answers for the token, or a few times if the cache keeps
// nothing.
func (g *gateway) warm(path, token string) {
	g.t.Helper()
	for range 20 {
		before := metric(g.t, "caddy_oauth_cache_hits_total")
		if a := g.getInTime(path, token); a.StatusCode != 200 {
			g.t.Fatalf("warming the cache: %d %s", a.StatusCode, a.Header.Get("WWW-Authenticate"))
		}
		if metric(g.t, "caddy_oauth_cache_hits_total") > before {
			return
		}
	}
}

// The routes of most tests here. The clients of beta have the same names and secrets as root's.
const (
	twoRealms   = testClients + "realm beta {" + testClients + "}\n"
	routedSites = `
		oauth_server
		oauth_protect /read/*     { 
			scopes read 
		}
		oauth_protect /write/*    {
			scopes write read
		}
		oauth_protect /either/*   { 
			any_scope admin write 
		}
		oauth_protect /readall/*  { 
			scopes read:all 
		}
		oauth_protect /audience/* { 
			audience https://other.example.com https://api.example.com 
		}
		oauth_protect /beta/* beta
		oauth_protect /plain/*
		reverse_proxy BACKEND
	`
)

// protectCase is a request to a protected route and what becomes of it. READER and WRITER stand
// for tokens of the root realm, BETA for a token of beta's reader.
type protectCase struct {
	name          string
	method, path  string // default GET /plain/x
	authorization []string
	header        http.Header
	status        int
	code          string // in the challenge
	realm         string // default root
	scope         string // in the challenge, with 403
}

func protectCases() []protectCase {
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("reader:abc"))
	return []protectCase{
		// Without credentials, the challenge has no error code (RFC 6750 section 3.1). Another
		// scheme, or none, does not count as credentials.
		{name: "no credentials", status: 401},
		{name: "no credentials, in another realm", path: "/beta/x", status: 401, realm: "beta"},
		{name: "Basic credentials", authorization: []string{basic}, status: 401},
		{name: "Negotiate credentials", authorization: []string{"Negotiate YII="}, status: 401},
		{name: "DPoP, which is not supported", authorization: []string{"DPoP READER"}, status: 401},
		{name: "a token without a scheme", authorization: []string{"READER"}, status: 401},
		{name: "a scheme that begins with Bearer", authorization: []string{"Bearerx READER"}, status: 401},
		{name: "a scheme that ends in Bearer", authorization: []string{"xBearer READER"}, status: 401},
		{name: "an empty Authorization header", authorization: []string{""}, status: 401},

		// Anything but the scheme and one token is malformed.
		{name: "the scheme alone is malformed", authorization: []string{"Bearer"}, status: 400, code: "invalid_request"},
		{name: "the scheme and a space is malformed", authorization: []string{"Bearer "}, status: 400, code: "invalid_request"},
		{name: "two tokens with a space between are malformed", authorization: []string{"Bearer READER READER"}, status: 400, code: "invalid_request"},
		{name: "a list of credentials is malformed", authorization: []string{"Bearer READER, Bearer READER"}, status: 400, code: "invalid_request"},
		{name: "two tokens with a comma between are malformed", authorization: []string{"Bearer READER,READER"}, status: 400, code: "invalid_request"},
		{name: "a comma after the scheme is malformed", authorization: []string{"Bearer, READER"}, status: 400, code: "invalid_request"},
		{name: "a tab instead of the space is malformed", authorization: []string{"Bearer\tREADER"}, status: 400, code: "invalid_request"},
		{name: "a tab after the space is malformed", authorization: []string{"Bearer \tREADER"}, status: 400, code: "invalid_request"},
		{name: "an auth-param after the token is malformed", authorization: []string{`Bearer READER realm="x"`}, status: 400, code: "invalid_request"},

		// The scheme name may be in any case, with any number of spaces after it (RFC 9110 section
		// 11.1).
		{name: "the scheme in its usual case", authorization: []string{"Bearer READER"}, status: 200},
		{name: "the scheme in lower case", authorization: []string{"bearer READER"}, status: 200},
		{name: "the scheme in upper case", authorization: []string{"BEARER READER"}, status: 200},
		{name: "the scheme in mixed case", authorization: []string{"bEaReR READER"}, status: 200},
		{name: "two spaces", authorization: []string{"Bearer  READER"}, status: 200},
		{name: "five spaces and mixed case", authorization: []string{"beaRER     READER"}, status: 200},

		// Several Authorization lines are refused, whatever is in them: a backend might look at
		// a different one than we do.
		{name: "the same line twice", authorization: []string{"Bearer READER", "Bearer READER"}, status: 400, code: "invalid_request"},
		{name: "two different tokens", authorization: []string{"Bearer READER", "Bearer WRITER"}, status: 400, code: "invalid_request"},
		{name: "a good line after a bad one", authorization: []string{"Bearer x", "Bearer READER"}, status: 400, code: "invalid_request"},
		{name: "a bad line after a good one", authorization: []string{"Bearer READER", "Bearer x"}, status: 400, code: "invalid_request"},
		{name: "Basic before Bearer", authorization: []string{basic, "Bearer READER"}, status: 400, code: "invalid_request"},
		{name: "Basic after Bearer", authorization: []string{"Bearer READER", basic}, status: 400, code: "invalid_request"},
		{name: "an empty line beside a good one", authorization: []string{"", "Bearer READER"}, status: 400, code: "invalid_request"},
		{name: "twenty lines", authorization: slices.Repeat([]string{"Bearer READER"}, 20), status: 400, code: "invalid_request"},

		// What can't be a token is an invalid one, and so is a token that is too long.
		{name: "a character that no token has", authorization: []string{"Bearer a!b"}, status: 401, code: "invalid_token"},
		{name: "a quoted token", authorization: []string{`Bearer "READER"`}, status: 401, code: "invalid_token"},
		{name: "padding in the middle", authorization: []string{"Bearer a=b"}, status: 401, code: "invalid_token"},
		{name: "only padding", authorization: []string{"Bearer ="}, status: 401, code: "invalid_token"},
		{name: "a letter outside ASCII", authorization: []string{"Bearer caf\xc3\xa9"}, status: 401, code: "invalid_token"},
		{name: "a token of 15 KiB", authorization: []string{"Bearer " + strings.Repeat("a", 15<<10)}, status: 401, code: "invalid_token"},
		{name: "a token of 8 KiB of dots", authorization: []string{"Bearer " + strings.Repeat(".", 8<<10)}, status: 401, code: "invalid_token"},
		{name: "a token of 300 bytes with our prefix", authorization: []string{"Bearer coa_" + strings.Repeat("a", 296)}, status: 401, code: "invalid_token"},

		// Only the Authorization header carries a token.
		{name: "a token in the query alone is not a credential", path: "/plain/x?access_token=READER", status: 401},
		{name: "a token in the query does nothing beside a good header", path: "/plain/x?access_token=READER", authorization: []string{"Bearer READER"}, status: 200},
		{name: "a bad token in the query does nothing beside a good header", path: "/plain/x?access_token=bad", authorization: []string{"Bearer READER"}, status: 200},
		{name: "a cookie is not a credential", header: http.Header{"Cookie": {"access_token=READER; Authorization=Bearer%20READER"}}, status: 401},
		{name: "Proxy-Authorization is not a credential", header: http.Header{"Proxy-Authorization": {"Bearer READER"}}, status: 401},
		{name: "X-Access-Token is not a credential", header: http.Header{"X-Access-Token": {"READER"}, "X-Auth-Token": {"READER"}}, status: 401},
		{name: "X-Forwarded-Access-Token and X-Authorization are not credentials", header: http.Header{"X-Forwarded-Access-Token": {"READER"}, "X-Authorization": {"Bearer READER"}}, status: 401},
		{name: "X-Original-Authorization and X-Forwarded-Authorization are not credentials", header: http.Header{"X-Original-Authorization": {"Bearer READER"}, "X-Forwarded-Authorization": {"Bearer READER"}}, status: 401},

		// The challenge names all the scopes that the route needs, sorted.
		{name: "too little scope", path: "/write/x", authorization: []string{"Bearer READER"}, status: 403, code: "insufficient_scope", scope: "read write"},
		{name: "all the scopes", path: "/write/x", authorization: []string{"Bearer WRITER"}, status: 200},
		{name: "none of the alternatives", path: "/either/x", authorization: []string{"Bearer READER"}, status: 403, code: "insufficient_scope", scope: "admin write"},
		{name: "one of the alternatives", path: "/either/x", authorization: []string{"Bearer WRITER"}, status: 200},
		{name: "a scope that begins with the client's", path: "/readall/x", authorization: []string{"Bearer READER"}, status: 403, code: "insufficient_scope", scope: "read:all"},

		// A token is good in its own realm and for its own audience only.
		{name: "the route's audience", path: "/audience/x", authorization: []string{"Bearer WRITER"}, status: 200},
		{name: "a token without an audience at a route that requires one", path: "/audience/x", authorization: []string{"Bearer READER"}, status: 401, code: "invalid_token"},
		{name: "a token of root in beta", path: "/beta/x", authorization: []string{"Bearer READER"}, status: 401, code: "invalid_token", realm: "beta"},
		{name: "a token of beta in root", authorization: []string{"Bearer BETA"}, status: 401, code: "invalid_token"},
		{name: "a token of beta in beta", path: "/beta/x", authorization: []string{"Bearer BETA"}, status: 200},

		// Every method needs a token and its scopes.
		{name: "HEAD needs a token", method: "HEAD", status: 401},
		{name: "OPTIONS needs a token", method: "OPTIONS", status: 401},
		{name: "a CORS preflight needs a token", method: "OPTIONS", header: http.Header{"Origin": {"https://evil.example"}, "Access-Control-Request-Method": {"GET"}}, status: 401},
		{name: "TRACE needs a token", method: "TRACE", status: 401},
		{name: "PUT needs a token", method: "PUT", status: 401},
		{name: "DELETE needs a token", method: "DELETE", status: 401},
		{name: "PROPFIND needs a token", method: "PROPFIND", status: 401},
		{name: "FOO needs a token", method: "FOO", status: 401},
		{name: "get, in lower case, needs a token", method: "get", status: 401},
		{name: "FOO with a token", method: "FOO", authorization: []string{"Bearer READER"}, status: 200},
		{name: "an odd method needs the scopes", method: "get", path: "/write/x", authorization: []string{"Bearer READER"}, status: 403, code: "insufficient_scope", scope: "read write"},
		{name: "a header that overrides the method changes nothing", method: "POST", path: "/write/x", authorization: []string{"Bearer READER"}, header: http.Header{"X-Http-Method-Override": {"GET"}, "X-Http-Method": {"GET"}, "X-Method-Override": {"GET"}}, status: 403, code: "insufficient_scope", scope: "read write"},
	}
}

// run sends a case and checks the answer and whether the backend was called.
func (c protectCase) run(t *testing.T, g *gateway, tokens *strings.Replacer) answer {
	t.Helper()
	method, path, realm := c.method, c.path, c.realm
	if method == "" {
		method = "GET"
	}
	if path == "" {
		path = "/plain/x"
	}
	if realm == "" {
		realm = "root"
	}
	r, err := http.NewRequest(method, g.URL+tokens.Replace(path), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range c.header {
		for _, v := range values {
			r.Header[name] = append(r.Header[name], tokens.Replace(v))
		}
	}
	for _, v := range c.authorization {
		r.Header["Authorization"] = append(r.Header["Authorization"], tokens.Replace(v))
	}
	called := 0
	a := g.inTime(func() answer {
		before := g.Backend.count()
		a := g.do(r)
		called = g.Backend.count() - before
		return a
	})
	if c.status == 200 {
		if a.StatusCode != 200 || called != 1 {
			t.Errorf("got %d, challenge %q, %d calls of the backend", a.StatusCode, a.Header.Get("WWW-Authenticate"), called)
			return a
		}
		// The token does not reach the backend, however it was written.
		checkIdentity(t, g.Backend.last(t), "X-Oauth-")
		return a
	}
	if called != 0 {
		t.Errorf("the backend was called")
	}
	if params := checkRefusal(t, a, c.status, realm, c.code); params != nil && params["scope"] != c.scope {
		t.Errorf("the challenge asks for scope %q, want %q", params["scope"], c.scope)
	}
	return a
}

// testTokens fetches the tokens that READER, WRITER and BETA stand for.
func testTokens(g *gateway) *strings.Replacer {
	g.t.Helper()
	beta := g.fetchAt("/oauth2/realms/root/realms/beta", "reader", "read")
	return strings.NewReplacer("READER", g.token("reader"), "WRITER", g.token("writer", "read", "write"), "BETA", beta)
}

// Every case runs in every set-up, twice: with a cold cache, and with one that the first round
// has filled. The answers are always the same, byte for byte.
func TestProtect(t *testing.T) {
	first := make(map[string]string)
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			g := startGateway(t, v.options(t)+twoRealms, routedSites)
			tokens := testTokens(g)
			for _, temperature := range []string{"cold", "warm"} {
				t.Run(temperature, func(t *testing.T) {
					for _, c := range protectCases() {
						t.Run(c.name, func(t *testing.T) {
							got := fingerprint(c.run(t, g, tokens))
							if want, ok := first[c.name]; !ok {
								first[c.name] = got
							} else if got != want {
								t.Errorf("the answer is\n%s\nin the first set-up it was\n%s", got, want)
							}
						})
					}
				})
			}
		})
	}
}

// No caller learns why a token is not valid: the refusals are the same, byte for byte.
func TestInvalidTokensLookAlike(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			clients := func(disabled string) string {
				return v.store + "\n" + testClients + `
					client brief {
						secret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0
						scopes read
						default_scopes read
						audience https://api.example.com
						token_lifetime 1s
					}
					client doomed {
						secret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0
						scopes read
						default_scopes read
						audience https://api.example.com
						` + disabled + `
					}
					realm beta {` + testClients + "}\n"
			}
			options := v.options(t)
			v.store = options // both configurations have the same store
			site := "oauth_server\noauth_protect root {\naudience https://api.example.com\n}\nreverse_proxy BACKEND"
			g := startGateway(t, clients(""), site)

			expired, doomed, revoked := g.token("brief"), g.token("doomed"), g.token("writer", "read")
			beta := g.fetchAt("/oauth2/realms/root/realms/beta", "writer", "read")
			g.warm("/x", doomed)
			g.warm("/x", revoked)
			g.mustRevoke("writer", revoked)
			waitUntil(t, "the token has expired", func() bool { return g.get("/x", expired).StatusCode == 401 })
			if err := g.load(clients("disabled"), site); err != nil {
				t.Fatal(err)
			}
			good := g.token("writer", "read")
			tampered := []byte(good)
			tampered[20] = map[bool]byte{true: 'B', false: 'A'}[good[20] == 'A'] // still a character that tokens may have
			cases := map[string]string{
				"revoked": revoked, "expired": expired, "of a disabled client": doomed, "of another realm": beta,
				"without the audience": g.token("reader"), "with a bad tag": good[:len(good)-4] + "AAAA", "with a changed byte": string(tampered),
				"unknown": "coa_" + strings.Repeat("A", len(good)-4), "not ours at all": "x", "not a token at all": "!",
				"a JWT": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJyZWFkZXIifQ.", "9 KiB long": strings.Repeat("a", 9<<10),
			}
			if a := g.getInTime("/x", good); a.StatusCode != 200 {
				t.Errorf("a good token: %d", a.StatusCode)
			}
			want := g.getInTime("/x", revoked)
			checkRefusal(t, want, 401, "root", "invalid_token")
			for _, name := range slices.Sorted(maps.Keys(cases)) {
				if a := g.getInTime("/x", cases[name]); fingerprint(a) != fingerprint(want) {
					t.Errorf("a token %s:\n%s\na revoked one:\n%s", name, fingerprint(a), fingerprint(want))
				}
			}
		})
	}
}

// Only the exact string that was issued is the token. For what can't be a token of ours, neither
// the cache nor the store is asked, so a flood of random tokens costs nothing; of JWTs that name our
// key, it costs the verification of their signatures.
func TestOnlyTheExactTokenCounts(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			g := startGateway(t, v.options(t)+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND")
			token := g.token("reader")
			g.warm("/x", token)

			var wrong []string
			for i := 1; i < len(token); i++ {
				wrong = append(wrong, token[:i], token[i:])
				for _, c := range []byte("A_-.~") { // one character changed
					if token[i] != c {
						wrong = append(wrong, token[:i]+string(c)+token[i+1:])
					}
				}
			}
			for i, c := range token {
				swapped := strings.ToUpper(string(c))
				if swapped == string(c) {
					swapped = strings.ToLower(string(c))
				}
				if swapped != string(c) {
					wrong = append(wrong, token[:i]+swapped+token[i+1:])
				}
			}
			wrong = append(wrong, token+"A", "A"+token, token+"=", token+"==", token+".", "~"+token, token+token,
				strings.ToLower(token), strings.ToUpper(token), token[4:], strings.ToUpper(token[:4])+token[4:],
				url.QueryEscape(token)+"%3D", strings.Replace(token, "_", "%5F", 1), strings.ReplaceAll(token[4:], "-", "+"),
				token[:4]+strings.NewReplacer("-", "+", "_", "/").Replace(token[4:])+"==",
				// Only the last character's unused bits differ, if it has any.
				token[:len(token)-1]+"A", token[:len(token)-1]+"B",
			)
			for i := range 200 {
				wrong = append(wrong, fmt.Sprintf("coa_%056d", i), fmt.Sprintf("%d", i))
			}
			reads, misses := storeReads(t), cacheMisses(t)
			for _, w := range wrong {
				if w == token {
					continue
				}
				if a := g.get("/x", w); a.StatusCode != 401 || !strings.Contains(a.Header.Get("WWW-Authenticate"), `error="invalid_token"`) {
					t.Errorf("%q was not refused as an invalid token; the token is %q: %d", w, token, a.StatusCode)
				}
			}
			if n := storeReads(t) - reads; n != 0 {
				t.Errorf("%d wrong tokens cost %v reads of the store", len(wrong), n)
			}
			// The signature of a JWT costs more than a look into the cache, so it is verified after that.
			if n := cacheMisses(t) - misses; n != 0 && v.format != "jwt" {
				t.Errorf("%d wrong tokens cost %v misses of the cache", len(wrong), n)
			}
			if a := g.getInTime("/x", token); a.StatusCode != 200 {
				t.Errorf("the token itself, afterwards: %d", a.StatusCode)
			}
		})
	}
}

// Audiences are compared as strings: nothing is normalised, and nothing is a pattern.
func TestAudienceIsComparedByteForByte(t *testing.T) {
	for _, tt := range []struct {
		audience string
		status   int
	}{
		{"https://api.example.com", 200},
		{"https://api.example.com/", 401},
		{"https://API.example.com", 401},
		{"HTTPS://api.example.com", 401},
		{"https://api.example.com:443", 401},
		{"https://api.example.co", 401},
		{"https://api.example.com.", 401},
		{"https://api.example.com/x", 401},
		{"api.example.com", 401},
		{"*", 401},
		{"https://*.example.com", 401},
		{"writer", 401}, // its own client ID
		{"https://one.example https://api.example.com", 200},
	} {
		t.Run(tt.audience, func(t *testing.T) {
			g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect /a/* {\naudience "+tt.audience+"\n}\noauth_protect /b/*\nreverse_proxy BACKEND")
			token := g.token("writer", "read")
			for _, temperature := range []string{"cold", "warm"} {
				if a := g.get("/a/x", token); a.StatusCode != tt.status {
					t.Errorf("%s: %d, want %d", temperature, a.StatusCode, tt.status)
				}
				g.warm("/b/x", token)
			}
		})
	}
}

// Scopes have no hierarchy and no wildcards, neither in a token nor at a route.
func TestScopesAreWholeStrings(t *testing.T) {
	client := func(scopes string) string {
		return "store memory\nclient c {\nsecret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0\nscopes " + scopes + "\n}\n"
	}
	for _, tt := range []struct {
		has, needs string
		status     int
	}{
		{"read", "read", 200},
		{"read", "read:all", 403},
		{"read:all", "read", 403},
		{"read:*", "read:all", 403},
		{"read:all", "read:*", 403},
		{"*", "read", 403},
		{"read", "*", 403},
		{"READ", "read", 403},
		{"read write", "write read", 200},
		{"read", "write read", 403},
		{"readwrite", "read write", 403},
		{"read.write", "read", 403},
	} {
		t.Run(tt.has+" at a route that needs "+tt.needs, func(t *testing.T) {
			g := startGateway(t, client(tt.has), "oauth_server\noauth_protect {\nscopes "+tt.needs+"\n}\nreverse_proxy BACKEND")
			a := g.get("/x", g.token("c", strings.Fields(tt.has)...))
			if a.StatusCode != tt.status {
				t.Errorf("%d, want %d", a.StatusCode, tt.status)
			}
			if tt.status == 403 {
				want := strings.Join(slices.Sorted(slices.Values(strings.Fields(tt.needs))), " ")
				if params := checkRefusal(t, a, 403, "root", "insufficient_scope"); params["scope"] != want {
					t.Errorf("the challenge asks for %q", params["scope"])
				}
			}
		})
	}
}

// A realm or scope that would break a challenge is refused at load.
func TestWhatBreaksAChallengeIsRefusedAtLoad(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND")
	for name, value := range map[string]string{
		"a quote": `a\"b`, "a backslash": `a\\b`, "CR": `a\rb`, "LF": `a\nb`, "NUL": `a\u0000b`, "a letter outside ASCII": `é`, "a space": `a b`, "an empty value": ``,
	} {
		for _, config := range []string{
			`{"apps":{"oauth":{"store":{"store":"memory"},"realms":{"` + value + `":{}}}}}`,
			`{"apps":{"oauth":{"store":{"store":"memory"}},"http":{"servers":{"srv0":{"listen":["127.0.0.1:0"],"routes":[{"handle":[{"handler":"oauth_protect","scopes":["` + value + `"]}]}]}}}}}`,
			`{"apps":{"oauth":{"store":{"store":"memory"}},"http":{"servers":{"srv0":{"listen":["127.0.0.1:0"],"routes":[{"handle":[{"handler":"oauth_protect","any_scope":["` + value + `"]}]}]}}}}}`,
		} {
			config = strings.Replace(config, "{", `{"admin":{"disabled":true},`, 1)
			if err := g.loadJSON([]byte(config)); err == nil {
				t.Errorf("%s was accepted in %s", name, config)
			}
		}
	}
	if a := g.get("/x", g.token("reader")); a.StatusCode != 200 {
		t.Errorf("after the refused configurations, the active one answers %d", a.StatusCode)
	}
}

// A token in the body is not a credential, and the body is not waited for.
func TestTokenInTheBodyIsNotACredential(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND")
	token := g.token("reader")
	form := "access_token=" + token
	a := g.do(g.request("POST", "/x", form, "Content-Type", "application/x-www-form-urlencoded"))
	checkRefusal(t, a, 401, "root", "")

	t.Run("a body that never comes is not waited for", func(t *testing.T) {
		conn := g.rawConn("POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 10000000000\r\n\r\n" + form)
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		checkRefusal(t, readRaw(t, conn, "POST"), 401, "root", "")
	})
	t.Run("with a good header the body passes unread and unchanged", func(t *testing.T) {
		body := strings.Repeat("x", 10<<20)
		if a := g.do(g.request("POST", "/x", body, "Content-Type", "application/x-www-form-urlencoded", "Authorization", "Bearer "+token)); a.StatusCode != 200 {
			t.Fatalf("%d", a.StatusCode)
		}
		if got := g.Backend.last(t).Body; got != body {
			t.Errorf("%d of %d bytes arrived", len(got), len(body))
		}
	})
}

// If the store can't answer, nobody gets in, and the answer is 503. It does not call the token
// invalid, since the client would drop a good one, and does not say what went wrong.
func TestStoreThatCannotAnswer(t *testing.T) {
	for _, store := range []string{"memory", "bbolt " + filepath.Join(t.TempDir(), "tokens.db")} {
		t.Run(store, func(t *testing.T) {
			logs := filepath.Join(t.TempDir(), "log")
			g := startCaddyfile(t, strings.Replace(caddyfileOf("store "+store+"\ncache off\n"+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND"),
				"{\n", "{\nlog {\noutput file "+logs+"\nlevel DEBUG\n}\n", 1))
			token := g.token("reader")
			if a := g.get("/x", token); a.StatusCode != 200 {
				t.Fatalf("before the fault: %d", a.StatusCode)
			}
			called := g.Backend.count()
			if err := caddyoauth.CloseStore(); err != nil {
				t.Fatal(err)
			}
			a := g.get("/x", token)
			if a.StatusCode != 503 || a.Header.Get("Retry-After") == "" || a.Header["Www-Authenticate"] != nil || a.Header.Get("Cache-Control") != "no-store" || a.Body != "" {
				t.Errorf("got %d %v %q, want 503 with Retry-After and no challenge", a.StatusCode, a.Header, a.Body)
			}
			// Whatever can be decided without the store still is.
			checkRefusal(t, g.get("/x", ""), 401, "root", "")
			checkRefusal(t, g.get("/x", "x"), 401, "root", "invalid_token")
			if g.Backend.count() != called {
				t.Error("the backend was called")
			}
			waitUntil(t, "the log has the fault", func() bool {
				text, _ := os.ReadFile(logs)
				return strings.Contains(string(text), "token could not be checked") && strings.Contains(string(text), "token store is closed")
			})
		})
	}
}

// During an outage, requests must not fill the disk with log lines.
func TestOutagesDoNotFloodTheLog(t *testing.T) {
	logs := filepath.Join(t.TempDir(), "log")
	g := startCaddyfile(t, strings.Replace(caddyfileOf("store memory\ncache off\n"+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND"),
		"{\n", "{\nlog {\noutput file "+logs+"\ninclude http.handlers.oauth_protect\n}\n", 1))
	token := g.token("reader")
	if err := caddyoauth.CloseStore(); err != nil {
		t.Fatal(err)
	}
	const requests = 400
	begin := time.Now()
	for range requests {
		if a := g.get("/x", token); a.StatusCode != 503 {
			t.Fatal(a.StatusCode)
		}
	}
	// Ten in each second that has begun. A line is written before the answer.
	most := 10 * (int(time.Since(begin)/time.Second) + 2)
	text, err := os.ReadFile(logs)
	lines := strings.Count(string(text), "token could not be checked")
	if err != nil || lines < 10 || lines > most && most < requests {
		t.Errorf("%d lines about %d requests in %v: %v", lines, requests, time.Since(begin), err)
	}
}

// Without a token, nobody learns which files exist.
func TestNoProbing(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "there"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	g := startGateway(t, "store memory\n"+testClients, "root "+root+"\noauth_server\noauth_protect\nfile_server")
	token := g.token("reader")
	there, absent := g.get("/there", ""), g.get("/nope", "")
	checkRefusal(t, absent, 401, "root", "")
	if fingerprint(there) != fingerprint(absent) {
		t.Errorf("for a file that exists the answer is\n%s\nfor one that does not\n%s", fingerprint(there), fingerprint(absent))
	}
	if a, b := g.get("/there", token).StatusCode, g.get("/nope", token).StatusCode; a != 200 || b != 404 {
		t.Errorf("with a token: %d and %d", a, b)
	}
}

// Every method needs a token, even in request lines that net/http would not send.
// TestConnectOpensNoTunnel covers CONNECT.
func TestOddRequestLinesNeedAToken(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect {\nscopes write\n}\nreverse_proxy BACKEND")
	for _, line := range []string{"OPTIONS /x", "TRACE /x", "get /x", "Get /x", "FOO /x", "!#$%&'*+-.^_`|~ /x", "PRI /x", "HEAD /x", strings.Repeat("X", 32) + " /x"} {
		t.Run(line, func(t *testing.T) {
			checkRefusal(t, g.rawRequest(line), 401, "root", "")
			// Every method needs the scope, too.
			if a := g.rawRequest(line, "Authorization: Bearer "+g.token("reader")); a.StatusCode != 403 {
				t.Errorf("with a token that lacks the scope: %d", a.StatusCode)
			}
		})
	}
	// net/http answers this one itself, before Caddy sees it.
	if a := g.rawRequest("OPTIONS *"); a.Body != "" {
		t.Errorf("OPTIONS *: %d %q", a.StatusCode, a.Body)
	}
	for _, line := range []string{"GET  /x", "GET /x ", "GET\t/x", " GET /x"} {
		if a := g.rawRequest(line); a.StatusCode != 400 && a.StatusCode != 401 {
			t.Errorf("%q: %d", line, a.StatusCode)
		}
	}
	if n := g.Backend.count(); n != 0 {
		t.Errorf("%d requests reached the backend", n)
	}
}

// By default the token does not reach the backend. With keep_token, exactly the line that was
// checked does.
func TestKeepToken(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, `
		oauth_server
		oauth_protect /keep/* {
			keep_token
		}
		oauth_protect /strip/*
		oauth_protect /both/* {
			keep_token
		}
		@both path /both/*
		oauth_protect @both
		reverse_proxy BACKEND`)
	token := g.token("reader")
	for path, want := range map[string][]string{"/keep/x": {"bearer  " + token}, "/strip/x": nil, "/both/x": nil} {
		a := g.do(g.request("GET", path, "", "Authorization", "bearer  "+token, "DPoP", "proof", "Proxy-Authorization", "Basic eDp5"))
		if a.StatusCode != 200 {
			t.Errorf("%s: %d", path, a.StatusCode)
		}
		got := g.Backend.last(t).Header
		if !slices.Equal(got["Authorization"], want) || got["Dpop"] != nil || got["Proxy-Authorization"] != nil {
			t.Errorf("%s: the backend got %q, want Authorization %q", path, got, want)
		}
	}
}

// The prefix names the headers that are set and those that are removed.
func TestHeaderPrefix(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect {\nheader_prefix x-who-\n}\nreverse_proxy BACKEND")
	a := g.do(g.request("GET", "/x", "", "Authorization", "Bearer "+g.token("reader"), "X-Who-Client-Id", "admin", "X-Who-Is", "admin", "X-Whoever", "stays", "X-OAuth-Client-Id", "admin"))
	if a.StatusCode != 200 {
		t.Fatalf("%d", a.StatusCode)
	}
	got := g.Backend.last(t)
	checkIdentity(t, got, "X-Who-")
	if got.Header.Get("X-Whoever") != "stays" {
		t.Errorf("a header without the prefix was removed: %v", got.Header)
	}
	// A backend that also serves another route may believe it.
	if got.Header.Get("X-Oauth-Client-Id") != "" {
		t.Errorf("a header with the default prefix reached the backend: %v", got.Header)
	}
}

// A route's max_age makes the cache ask again. It never lets facts get older than the cache's
// own max_age.
func TestMaxAge(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, `
		oauth_server
		oauth_protect /strict/* {
			max_age 1ms
		}
		oauth_protect /usual/*
		reverse_proxy BACKEND`)
	token := g.token("reader")
	g.warm("/usual/x", token)
	before := storeReads(t)
	for range 50 {
		g.get("/usual/x", token)
	}
	if n := storeReads(t) - before; n != 0 {
		t.Errorf("a warm route asked the store %v times", n)
	}
	for round := range 3 { // in each, the facts are older than a millisecond again
		waitUntil(t, "the strict route asks the store", func() bool {
			before := storeReads(t)
			return g.get("/strict/x", token).StatusCode == 200 && storeReads(t) > before
		})
		if a := g.get("/usual/x", token); a.StatusCode != 200 {
			t.Errorf("round %d: %d", round, a.StatusCode)
		}
	}
}

// Two oauth_protect on one request must both allow it, although the first has removed the token.
func TestTwoProtectsMustBothAllow(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			g := startGateway(t, v.options(t)+twoRealms, `
				oauth_server
				route /both/* {
					oauth_protect {
						scopes read
					}
					oauth_protect {
						scopes write
						header_prefix X-Second-
					}
					reverse_proxy BACKEND
				}
				route /realms/* {
					oauth_protect root
					oauth_protect beta
					reverse_proxy BACKEND
				}
				route /audience/* {
					oauth_protect
					oauth_protect {
						audience https://api.example.com
					}
					reverse_proxy BACKEND
				}`)
			tokens := testTokens(g)
			for range 2 { // cold and warm
				for _, c := range []protectCase{
					{name: "neither", path: "/both/x", status: 401},
					{name: "the first only", path: "/both/x", authorization: []string{"Bearer READER"}, status: 403, code: "insufficient_scope", scope: "read write"},
					{name: "two realms never both accept a token", path: "/realms/x", authorization: []string{"Bearer READER"}, status: 401, code: "invalid_token", realm: "beta"},
					{name: "two realms, a token of the second", path: "/realms/x", authorization: []string{"Bearer BETA"}, status: 401, code: "invalid_token"},
					{name: "the second checks the audience", path: "/audience/x", authorization: []string{"Bearer READER"}, status: 401, code: "invalid_token"},
					{name: "both accept the audience", path: "/audience/x", authorization: []string{"Bearer WRITER"}, status: 200},
				} {
					c.run(t, g, tokens)
				}
				if a := g.getInTime("/both/x", tokens.Replace("WRITER")); a.StatusCode != 200 {
					t.Errorf("both: %d %v", a.StatusCode, a.Header)
				}
				got := g.Backend.last(t).Header
				if got.Get("X-OAuth-Client-Id") != "writer" || got.Get("X-Second-Client-Id") != "writer" || got.Get("Authorization") != "" {
					t.Errorf("the backend was told %v", got)
				}
			}
		})
	}
}

// Placeholders and the access log tell the rest of Caddy who was let in.
func TestPlaceholdersAndLogFields(t *testing.T) {
	logs := filepath.Join(t.TempDir(), "access")
	g := startGateway(t, "store memory\n"+testClients, `
		log {
			output file `+logs+`
		}
		oauth_server
		oauth_protect /in/* {
			scopes read write
		}
		request_header X-Seen "{http.auth.user.id}|{http.auth.user.client_id}|{http.auth.user.scope}|{http.auth.user.realm}|{http.auth.user.subject}|{http.auth.user.expires}"
		reverse_proxy BACKEND`)
	before := time.Now()
	if a := g.get("/in/x?who=writer", g.token("writer", "write", "read")); a.StatusCode != 200 {
		t.Fatalf("%d", a.StatusCode)
	}
	seen := strings.Split(g.Backend.last(t).Header.Get("X-Seen"), "|")
	if len(seen) != 6 || seen[0] != "writer" || seen[1] != "writer" || seen[2] != "write read" || seen[3] != "root" || seen[4] != "writer" {
		t.Fatalf("placeholders are %q", seen)
	}
	expires, err := time.Parse(time.RFC3339, seen[5])
	if err != nil || expires.Before(before.Add(59*time.Minute)) || expires.After(time.Now().Add(61*time.Minute)) {
		t.Errorf("the token expires at %q (%v)", seen[5], err)
	}
	g.get("/in/x?who=nobody", "")
	g.get("/in/x?who=reader", g.token("reader"))
	g.get("/in/x?who=garbage", "garbage")

	line := func(who string) (line string) {
		waitUntil(t, "the access log has the request", func() bool {
			text, _ := os.ReadFile(logs)
			for l := range strings.Lines(string(text)) {
				if strings.Contains(l, "who="+who) {
					line = l
				}
			}
			return line != ""
		})
		return line
	}
	if l := line("writer"); !strings.Contains(l, `"client":"writer"`) || !strings.Contains(l, `"realm":"root"`) || !strings.Contains(l, `"user_id":"writer"`) {
		t.Errorf("let in: %s", l)
	}
	// A known client that is refused is named in the log.
	if l := line("reader"); !strings.Contains(l, `"client":"reader"`) || !strings.Contains(l, `"status":403`) {
		t.Errorf("too little scope: %s", l)
	}
	for _, who := range []string{"nobody", "garbage"} {
		if l := line(who); strings.Contains(l, `"client":`) || !strings.Contains(l, `"user_id":""`) {
			t.Errorf("%s: %s", who, l)
		}
	}
}

// handle_errors can write the body of a refusal and knows its reason. The challenge stays.
func TestRefusalsReachHandleErrors(t *testing.T) {
	g := startGateway(t, "store memory\ncache off\n"+testClients, `
		oauth_server
		oauth_protect {
			scopes write
		}
		reverse_proxy BACKEND
		handle_errors {
			respond "{http.oauth.error}|{http.error.status_code}|{http.error.message}"
		}`)
	token := g.token("reader")
	for _, tt := range []struct {
		name, path, authorization, body string
		status                          int
	}{
		{"no token", "/x", "", "missing_token|401|oauth: missing_token", 401},
		{"a broken header", "/x", "Bearer", "invalid_request|400|oauth: invalid_request", 400},
		{"a bad token", "/x", "Bearer x", "invalid_token|401|oauth: invalid_token", 401},
		{"too little scope", "/x", "Bearer " + token, "insufficient_scope|403|oauth: insufficient_scope", 403},
		{"an ambiguous path", "/a//b", "", "ambiguous_path|400|oauth: ambiguous_path", 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var headers []string
			if tt.authorization != "" {
				headers = []string{"Authorization", tt.authorization}
			}
			a := g.do(g.request("GET", tt.path, "", headers...))
			if a.StatusCode != tt.status || a.Body != tt.body {
				t.Errorf("got %d %q, want %d %q", a.StatusCode, a.Body, tt.status, tt.body)
			}
			if _, _, err := caddyoauth.ParseChallenge(a.Header.Get("WWW-Authenticate")); err != nil && tt.name != "an ambiguous path" || a.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("headers of the refusal are missing: %v (%v)", a.Header, err)
			}
		})
	}
	if err := caddyoauth.CloseStore(); err != nil {
		t.Fatal(err)
	}
	if a := g.get("/x", token); a.StatusCode != 503 || a.Body != "temporarily_unavailable|503|oauth: temporarily_unavailable" || a.Header.Get("Retry-After") == "" {
		t.Errorf("a store that can't answer: %d %q %v", a.StatusCode, a.Body, a.Header)
	}
}

// oauth_scope matches requests that oauth_protect has let in. Others have no scope.
func TestScopeMatcher(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, `
		oauth_server
		oauth_protect /in/*
		@writer oauth_scope write admin
		@readonly {
			oauth_scope read
			not oauth_scope write
		}
		@nobody not oauth_scope read write
		respond @writer "writer"
		respond @readonly "read only"
		respond @nobody "nobody"`)
	for _, tt := range []struct{ path, token, want string }{
		{"/in/x", g.token("writer", "read", "write"), "writer"},
		{"/in/x", g.token("writer", "write"), "writer"},
		{"/in/x", g.token("reader"), "read only"},
		{"/open/x", "", "nobody"},
		{"/open/x", g.token("writer", "write"), "nobody"}, // its token was not checked
	} {
		if a := g.get(tt.path, tt.token); a.StatusCode != 200 || a.Body != tt.want {
			t.Errorf("%s with %q: %d %q, want %q", tt.path, tt.token, a.StatusCode, a.Body, tt.want)
		}
	}
}

// What one route decides means nothing at another: facts are cached, decisions are not. The
// token is warm from the routes that accept it when it comes to those that don't.
func TestNoDecisionIsCached(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			g := startGateway(t, v.options(t)+twoRealms, routedSites)
			tokens := testTokens(g)
			reader, writer := tokens.Replace("READER"), tokens.Replace("WRITER")
			for range 2 {
				g.warm("/read/x", reader)
				g.warm("/plain/x", reader)
				checkRefusal(t, g.getInTime("/write/x", reader), 403, "root", "insufficient_scope")
				checkRefusal(t, g.getInTime("/either/x", reader), 403, "root", "insufficient_scope")
				checkRefusal(t, g.getInTime("/audience/x", reader), 401, "root", "invalid_token")
				checkRefusal(t, g.getInTime("/beta/x", reader), 401, "beta", "invalid_token")
				g.warm("/audience/x", writer)
				g.warm("/write/x", writer)
				checkRefusal(t, g.getInTime("/readall/x", writer), 403, "root", "insufficient_scope")
				// A refusal is not remembered, either.
				g.warm("/read/x", reader)
				g.warm("/beta/x", tokens.Replace("BETA"))
				checkRefusal(t, g.getInTime("/plain/x", tokens.Replace("BETA")), 401, "root", "invalid_token")
				g.warm("/beta/x", tokens.Replace("BETA"))
			}
		})
	}
}

// Introspection and revocation, too, know the tokens of their own realm only, whatever is
// cached. The client has the same name and secret in both realms.
func TestRealmsDoNotMix(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			g := startGateway(t, v.options(t)+twoRealms, routedSites)
			beta := "/oauth2/realms/root/realms/beta"
			token := g.token("reader")
			post := func(path string) answer {
				return g.inTime(func() answer { return g.post(path, "reader", testSecret, url.Values{"token": {token}}) })
			}
			for _, temperature := range []string{"cold", "warm"} {
				if a := post(beta + "/introspect"); a.StatusCode != 200 || a.Body != `{"active":false}` {
					t.Errorf("%s: introspection in beta says %d %s", temperature, a.StatusCode, a.Body)
				}
				if a := post(beta + "/token/revoke"); a.StatusCode != 200 {
					t.Errorf("%s: revocation in beta says %d", temperature, a.StatusCode)
				}
				checkRefusal(t, g.getInTime("/beta/x", token), 401, "beta", "invalid_token")
				if a := post("/oauth2/introspect"); a.json(t)["active"] != true {
					t.Errorf("%s: introspection in root says %s", temperature, a.Body)
				}
				g.warm("/plain/x", token)
			}
		})
	}
}

// The first request after a reload is judged by the new configuration, whether its token is
// cached or not, and a token that was invalidated stays so. Among the cases are the six of
// Kong's invalidation tests.
func TestReloadBindsTokensAtOnce(t *testing.T) {
	const secret = "secret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0\n"
	client := func(options string) string {
		return testClients + "client c {\n" + secret + options + "\n}\n"
	}
	const full = "scopes read write\ndefault_scopes read write\naudience https://a.example https://b.example"
	const site = `
		oauth_server
		oauth_protect /read/* {
			scopes read
		}
		oauth_protect /write/* {
			scopes write
		}
		oauth_protect /a/* {
			audience https://a.example
		}
		oauth_protect /plain/*
		reverse_proxy BACKEND`
	paths := []string{"/read/x", "/write/x", "/a/x", "/plain/x"}
	for _, tt := range []struct {
		name string
		// The client in the second configuration, and what its token gets there.
		second string
		want   [4]int // status for each of paths
		// What the token gets once the first configuration is back.
		back [4]int
		// What happens before the reload.
		between func(t *testing.T, g *gateway, token string)
	}{
		{name: "nothing changed", second: client(full), want: [4]int{200, 200, 200, 200}, back: [4]int{200, 200, 200, 200}},
		{name: "the client is disabled", second: client(full + "\ndisabled"), want: [4]int{401, 401, 401, 401}, back: [4]int{401, 401, 401, 401}},
		{name: "the client is deleted (Kong's third and sixth)", second: testClients, want: [4]int{401, 401, 401, 401}, back: [4]int{401, 401, 401, 401}},
		{name: "the client loses a scope (Kong's fourth)", second: client("scopes read\ndefault_scopes read\naudience https://a.example https://b.example"), want: [4]int{200, 403, 200, 200}, back: [4]int{200, 200, 200, 200}},
		{name: "the client loses all scopes", second: client("audience https://a.example https://b.example"), want: [4]int{403, 403, 200, 200}, back: [4]int{200, 200, 200, 200}},
		{name: "the client loses an audience", second: client("scopes read write\ndefault_scopes read\naudience https://b.example"), want: [4]int{200, 200, 401, 200}, back: [4]int{200, 200, 200, 200}},
		{name: "the client loses every audience", second: client("scopes read write\ndefault_scopes read"), want: [4]int{401, 401, 401, 401}, back: [4]int{200, 200, 200, 200}},
		{name: "the client gains a scope, its old token does not", second: client("scopes read write admin\ndefault_scopes read\naudience https://a.example https://b.example"), want: [4]int{200, 200, 200, 200}, back: [4]int{200, 200, 200, 200}},
		{name: "the token is revoked (Kong's first and second)", second: client(full), want: [4]int{401, 401, 401, 401}, back: [4]int{401, 401, 401, 401}, between: func(t *testing.T, g *gateway, token string) {
			g.mustRevoke("c", token)
		}},
		{name: "the client is deleted with its realm (Kong's fifth)", second: "realm beta {\n" + client(full) + "}\n", want: [4]int{401, 401, 401, 401}, back: [4]int{401, 401, 401, 401}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, v := range variants(t) {
				t.Run(v.name, func(t *testing.T) {
					options := v.options(t)
					g := startGateway(t, options+client(full), site)
					token := g.token("c")
					other := g.token("reader")
					check := func(when string, want [4]int) {
						t.Helper()
						for i, path := range paths {
							if a := g.getInTime(path, token); a.StatusCode != want[i] {
								t.Errorf("%s: %s answers %d, want %d", when, path, a.StatusCode, want[i])
							}
						}
						active := g.inTime(func() answer { return g.introspect("c", token) })
						asked := active.StatusCode == 200 && strings.HasPrefix(active.Body, "{")
						if alive := want[3] == 200; alive && !asked || asked && active.json(t)["active"] != alive {
							t.Errorf("%s: introspection says %d %s", when, active.StatusCode, active.Body)
						}
					}
					for _, path := range paths {
						g.warm(path, token)
					}
					if tt.between != nil {
						tt.between(t, g, token)
					}
					if err := g.load(options+tt.second, site); err != nil {
						t.Fatal(err)
					}
					check("after the reload", tt.want)
					check("after the reload, again", tt.want)
					if err := g.load(options+client(full), site); err != nil {
						t.Fatal(err)
					}
					check("with the first configuration back", tt.back)
					// A new token works, and other clients' tokens were never affected.
					token = g.token("c")
					check("with a new token", [4]int{200, 200, 200, 200})
					if a := g.getInTime("/plain/x", other); !strings.Contains(tt.name, "realm") && a.StatusCode != 200 {
						t.Errorf("another client's token: %d", a.StatusCode)
					}
				})
			}
		})
	}
}

// A reload that changes what a route requires holds for the tokens that are cached, too.
func TestReloadOfARouteBindsCachedTokens(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			options := v.options(t) + twoRealms
			site := func(protect string) string {
				return "oauth_server\noauth_protect " + protect + "\nreverse_proxy BACKEND"
			}
			g := startGateway(t, options, site(""))
			token := g.token("reader")
			for _, tt := range []struct {
				protect     string
				status      int
				realm, code string
			}{
				{"{\nscopes write\n}", 403, "root", "insufficient_scope"},
				{"{\nany_scope write admin\n}", 403, "root", "insufficient_scope"},
				{"{\naudience https://api.example.com\n}", 401, "root", "invalid_token"},
				{"beta", 401, "beta", "invalid_token"},
			} {
				g.warm("/x", token)
				if err := g.load(options, site(tt.protect)); err != nil {
					t.Fatal(err)
				}
				checkRefusal(t, g.getInTime("/x", token), tt.status, tt.realm, tt.code)
				if err := g.load(options, site("")); err != nil {
					t.Fatal(err)
				}
			}
			g.warm("/x", token)
		})
	}
}
