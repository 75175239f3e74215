package caddyoauth_test

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/go-jose/go-jose/v4"
	"golang.org/x/net/websocket"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

const (
	assertingRealm = "issuer https://auth.example.com/oauth2\nsigning\n"
	ordersBackend  = "https://orders.internal"
	// asserts is an option of oauth_protect.
	asserts = "assertion {\naudience " + ordersBackend + "\n}\n"
)

// asserting returns a site of which a path, followed by /x, has an oauth_protect with these lines, and
// all others none.
func asserting(routes map[string]string) string {
	site := "oauth_server\n"
	for _, path := range slices.Sorted(maps.Keys(routes)) {
		site += "handle " + path + "/* {\nroute {\n" + routes[path] + "\nreverse_proxy BACKEND\n}\n}\n"
	}
	return site + "reverse_proxy BACKEND"
}

// asserted returns the claims of the assertion in a header that is one line, and nil if there is no
// such header in any spelling. It verifies it as a backend does.
func asserted(t testing.TB, h http.Header, name string, set jose.JSONWebKeySet) map[string]any {
	t.Helper()
	var lines []string
	for other, values := range h {
		if folded(other) == folded(name) {
			lines = append(lines, values...)
		}
	}
	if len(lines) == 0 {
		return nil
	}
	if len(lines) > 1 || h.Get(name) != lines[0] {
		t.Fatalf("the backend got several headers like %s: %v", name, h)
	}
	jws, err := jose.ParseSignedCompact(lines[0], []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA, jose.RS256, jose.PS256})
	if err != nil {
		t.Fatalf("%s is %q: %v", name, lines[0], err)
	}
	if typ := jws.Signatures[0].Header.ExtraHeaders["typ"]; typ != "oauth-assertion+jwt" {
		t.Errorf("the type of an assertion is %v", typ)
	}
	claims := verified(t, lines[0], set)
	if claims == nil {
		t.Fatalf("no key of the set has signed %q", lines[0])
	}
	return claims
}

// wantAsserted checks what an assertion says, except for its times, of which it checks that they are
// in order and leave it a lifetime of at most a minute.
func wantAsserted(t testing.TB, what string, got, want map[string]any) {
	t.Helper()
	if (got == nil) != (want == nil) {
		t.Errorf("%s: the backend is told %v, want %v", what, got, want)
	}
	if got == nil || want == nil {
		return
	}
	got = maps.Clone(got)
	iat, _ := got["iat"].(float64)
	exp, _ := got["exp"].(float64)
	if now := float64(time.Now().Unix()); iat > now || iat < now-31 || exp <= now || exp > iat+60 {
		t.Errorf("%s: at %v, an assertion is from %v to %v", what, now, iat, exp)
	}
	delete(got, "iat")
	delete(got, "exp")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: the backend is told %v, want %v", what, got, want)
	}
}

// about returns the claims about a client here.
func about(realm, client, scope string) map[string]any {
	issuer := "https://auth.example.com/oauth2"
	if realm != "root" {
		issuer += "/realms/root/realms/" + realm
	}
	return map[string]any{
		"iss": "https://auth.example.com/oauth2", "aud": ordersBackend, "sub": client, "client_id": client, "scope": scope,
		"realm": realm, "token_iss": issuer,
	}
}

// The backend is told by a JWT who is calling, and can verify it with the published keys. Requests
// get the same one for a while.
func TestTheBackendIsToldByAnAssertion(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			options := v.options(t)
			if v.store == "redis" && v.format == "opaque" {
				options += keyFiles(t, "key")["key"]
			}
			g := startGateway(t, options+assertingRealm+testClients, "oauth_server\noauth_protect {\n"+asserts+"}\nreverse_proxy BACKEND")
			_, set := g.keySet("/oauth2/jwks")
			reader, writer := g.token("reader"), g.token("writer", "read", "write")
			texts := make(map[string]bool)
			for range 3 {
				for token, want := range map[string]map[string]any{reader: about("root", "reader", "read"), writer: about("root", "writer", "read write")} {
					g.send(200, "GET", "/x", token)
					h := g.Backend.last(t).Header
					wantAsserted(t, "a request", asserted(t, h, "X-OAuth-Assertion", set), want)
					texts[h.Get("X-OAuth-Assertion")] = true
				}
			}
			if len(texts) != 2 {
				t.Errorf("two clients got %d assertions, want 2", len(texts))
			}
			g.revoke("reader", reader)
			before := g.Backend.count()
			g.send(401, "GET", "/x", reader)
			g.send(401, "GET", "/x", "")
			if g.Backend.count() != before {
				t.Error("a request that is refused reached the backend")
			}
		})
	}
}

// Each algorithm that a realm signs by, and keys from a file.
func TestAssertionsByEachAlgorithm(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key.pem")
	writeSigningKey(t, file)
	for _, lines := range []string{"algorithm ES256", "algorithm EdDSA", "algorithm RS256", "algorithm PS256", "key_file " + file} {
		g := startGateway(t, "store memory\nissuer https://auth.example.com/oauth2\nsigning {\n"+lines+"\n}\n"+testClients, "oauth_server\noauth_protect {\n"+asserts+"}\nreverse_proxy BACKEND")
		_, set := g.keySet("/oauth2/jwks")
		g.send(200, "GET", "/x", g.token("reader"))
		wantAsserted(t, lines, asserted(t, g.Backend.last(t).Header, "X-OAuth-Assertion", set), about("root", "reader", "read"))
	}
}

// Whatever a caller sends in the place of an assertion, and wherever it sends it, the backend gets
// only what the gateway signs: on routes with the option, without it, without any oauth_protect, and
// where requests pass unnamed.
func TestCallersCantSendAssertions(t *testing.T) {
	for _, name := range []string{"X-OAuth-Assertion", "X-Who"} {
		option := strings.Replace(asserts, "assertion", "assertion "+name, 1)
		g := startGateway(t, "store memory\n"+assertingRealm+testClients+"realm beta {\nclient b {\nsecret_hash "+testHash+"\nscopes read\ndefault_scopes read\n}\n}\n", asserting(map[string]string{
			"/told":     "oauth_protect root {\n" + option + "}",
			"/untold":   "oauth_protect root",
			"/other":    "oauth_protect root {\nheader_prefix X-Other-\n}",
			"/optional": "oauth_protect root {\noptional\n" + option + "}",
			"/reported": "oauth_protect root {\nreport_only\nscopes write\n" + option + "}",
			"/beta":     "oauth_protect beta {\n" + option + "}",
		}))
		_, set := g.keySet("/oauth2/jwks")
		_, setOfBeta := g.keySet("/oauth2/realms/root/realms/beta/jwks")
		reader, beta := "Authorization: Bearer "+g.token("reader"), "Authorization: Bearer "+g.fetchAt("/oauth2/realms/root/realms/beta", "b", "read")
		g.send(200, "GET", "/told/x", strings.TrimPrefix(reader, "Authorization: Bearer "))
		replayed := g.Backend.last(t).Header.Get(name) // of the realm, for this backend, and in time
		low, odd := strings.ToLower(name), strings.ReplaceAll(name, "-", "_")
		ofBeta := about("beta", "b", "read")
		ofBeta["iss"] = ofBeta["token_iss"]
		for what, sent := range map[string][]string{
			"nothing":             nil,
			"another assertion":   {name + ": " + replayed},
			"another case":        {low + ": " + replayed},
			"other separators":    {odd + ": " + replayed, strings.ReplaceAll(name, "-", ".") + ": x", strings.ReplaceAll(name, "-", "!") + ": x", strings.Replace(name, "-", "_", 1) + ": x"},
			"several lines":       {name + ": " + replayed, name + ": x", low + ":"},
			"words in Connection": {"Connection: close, " + name + ", " + odd},
		} {
			for _, c := range []struct {
				path, authorization string
				set                 jose.JSONWebKeySet
				want                map[string]any
			}{
				{"/told/x", reader, set, about("root", "reader", "read")},
				{"/beta/x", beta, setOfBeta, ofBeta},
				{"/untold/x", reader, set, nil},
				{"/other/x", reader, set, nil},
				{"/optional/x", "A: b", set, nil},
				{"/optional/x", reader, set, about("root", "reader", "read")},
				{"/reported/x", "A: b", set, nil},
				{"/reported/x", reader, set, nil},
				{"/open", "A: b", set, nil},
				{"/open", reader, set, nil},
			} {
				before := g.Backend.count()
				a := g.rawRequest("GET "+c.path, append([]string{c.authorization}, sent...)...)
				if a.StatusCode != 200 || g.Backend.count() != before+1 {
					t.Fatalf("%s, %s: %d", what, c.path, a.StatusCode)
				}
				wantAsserted(t, name+", "+what+", "+c.path, asserted(t, g.Backend.last(t).Header, name, c.set), c.want)
			}
		}
		// Only the header itself is taken from callers, and what begins with the prefix.
		g.send(200, "GET", "/open", "", "X-Who-Else", "the caller's own", "X-Wh", "the caller's own")
		if h := g.Backend.last(t).Header; h.Get("X-Who-Else") == "" || h.Get("X-Wh") == "" {
			t.Errorf("headers with similar names are gone: %v", h)
		}
		// Trailers can't stand in for it, either.
		for path, want := range map[string]map[string]any{"/told/x": about("root", "reader", "read"), "/untold/x": nil, "/open": nil} {
			readRaw(t, g.rawConn("POST "+path+" HTTP/1.1\r\nHost: localhost\r\n"+reader+"\r\nTransfer-Encoding: chunked\r\nTrailer: "+name+", X-Checksum\r\n\r\n"+
				"5\r\nhello\r\n0\r\n"+name+": "+replayed+"\r\n"+odd+": "+replayed+"\r\nX-Checksum: sum\r\n\r\n"), "POST")
			got := g.Backend.last(t)
			wantAsserted(t, "trailers, "+path, asserted(t, got.Header, name, set), want)
			if got.Body != "hello" || got.Trailer.Get("X-Checksum") != "sum" || asserted(t, got.Trailer, name, set) != nil {
				t.Errorf("%s: the backend got %q with the trailers %v", path, got.Body, got.Trailer)
			}
		}
	}
}

// An assertion tells who is calling and opens no door: it is no access token, at routes, at
// introspection, or for another gateway that accepts the realm's JWTs.
func TestAssertionsAreNoTokens(t *testing.T) {
	for _, format := range []string{"opaque", "sealed", "jwt"} {
		g := startGateway(t, "store memory\ntoken_format "+format+"\n"+assertingRealm+testClients, "oauth_server\noauth_protect {\n"+asserts+"}\nreverse_proxy BACKEND")
		g.send(200, "GET", "/x", g.token("reader"))
		assertion := g.Backend.last(t).Header.Get("X-OAuth-Assertion")
		checkRefusal(t, g.get("/x", assertion), 401, "root", "invalid_token")
		if a := g.introspect("reader", assertion); a.Body != `{"active":false}` {
			t.Errorf("introspection of an assertion: %s", a.Body)
		}
		if a := g.revoke("reader", assertion); a.StatusCode != 200 {
			t.Errorf("revoking an assertion: %d", a.StatusCode)
		}
		g.send(200, "GET", "/x", g.token("reader"))
	}
}

// An authorization server whose JWTs another gateway accepts may be a gateway that makes assertions
// for that one.
func TestOtherGatewaysTakeNoAssertionForAToken(t *testing.T) {
	g := startGateway(t, "store memory\ntoken_format jwt\n"+assertingRealm+testClients, "oauth_server\noauth_protect {\n"+asserts+"}\nreverse_proxy BACKEND")
	token := g.token("writer", "read")
	g.send(200, "GET", "/x", token)
	assertion := g.Backend.last(t).Header.Get("X-OAuth-Assertion")
	keys := g.do(g.request("GET", "/oauth2/jwks", "")).Body
	published := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, keys) }))
	t.Cleanup(published.Close)
	source := func(more string) string {
		return "oauth_protect {\nsource jwt https://auth.example.com/oauth2 {\njwks_uri " + published.URL + "\naudience " + ordersBackend + " https://api.example.com\n" + more + "}\n}\nreverse_proxy BACKEND"
	}
	for _, more := range []string{"", "algorithms ES256\n"} {
		if err := g.load("store memory\nclient c {\nsecret_hash "+testHash+"\nscopes a\n}\n", source(more)); err != nil {
			t.Fatal(err)
		}
		g.send(200, "GET", "/x", token)
		checkRefusal(t, g.get("/x", assertion), 401, "External", "invalid_token")
	}
}

// Tokens of other servers, and Basic: the assertion says what the headers say.
func TestAssertionsAboutOthers(t *testing.T) {
	f := newForeign(t)
	f.knows("opaque", activeForeign)
	f.knows("nameless", `{"active":true,"exp":4102444800,"sub":"Jürgen, <admin>"}`)
	f.knows("reader", `{"active":true,"client_id":"reader","sub":"reader","realm":"root","scope":"read"}`)
	g := startGateway(t, "store memory\n"+assertingRealm+testClients, asserting(map[string]string{
		"/all":  "oauth_protect {\nbasic\n" + f.sources("") + asserts + "}",
		"/only": "oauth_protect {\n" + f.introspect("") + asserts + "}",
	}))
	_, set := g.keySet("/oauth2/jwks")
	claims := func(more map[string]any) map[string]any {
		more["iss"], more["aud"] = "https://auth.example.com/oauth2", ordersBackend
		return more
	}
	for _, c := range []struct {
		path, authorization string
		want                map[string]any
	}{
		{"/all/x", "Bearer opaque", claims(map[string]any{"client_id": "remote", "sub": "robot", "scope": "read write", "token_iss": "https://as.example.com"})},
		{"/all/x", "Bearer " + f.jwt(t, `,"scope":"a b"`), claims(map[string]any{"client_id": "signed", "sub": "machine", "scope": "a b", "token_iss": "https://issuer.example.com"})},
		{"/all/x", "Bearer " + g.token("reader"), about("root", "reader", "read")},
		{"/all/x", rawBasic("writer:" + testSecret), about("root", "writer", "read write")},
		{"/only/x", "Bearer nameless", claims(map[string]any{"sub": "Jürgen, <admin>"})},
		// Nobody elsewhere passes for a client here, whatever its name.
		{"/only/x", "Bearer reader", claims(map[string]any{"client_id": "reader", "sub": "reader", "scope": "read"})},
	} {
		for range 2 {
			if a := g.rawRequest("GET "+c.path, "Authorization: "+c.authorization, "X-OAuth-Assertion: forged"); a.StatusCode != 200 {
				t.Fatalf("%s: %d %v", c.authorization, a.StatusCode, a.Header)
			}
			wantAsserted(t, c.path+" "+c.authorization, asserted(t, g.Backend.last(t).Header, "X-OAuth-Assertion", set), c.want)
		}
	}
}

// No assertion outlives its token.
func TestAssertionsEndWithTheToken(t *testing.T) {
	f := newForeign(t)
	ends := time.Now().Add(40 * time.Second).Unix()
	f.knows("soon", fmt.Sprintf(`{"active":true,"exp":%d,"sub":"a"}`, ends))
	f.knows("fraction", fmt.Sprintf(`{"active":true,"exp":%d.75,"sub":"b"}`, ends))
	f.knows("late", fmt.Sprintf(`{"active":true,"exp":%d,"sub":"c"}`, ends+3600))
	f.knows("never", `{"active":true,"sub":"d"}`)
	g := startGateway(t, "store memory\n"+assertingRealm+testClients, "oauth_server\noauth_protect {\n"+f.introspect("")+"assertion {\naudience a b\nlifetime 50s\n}\n}\nreverse_proxy BACKEND")
	_, set := g.keySet("/oauth2/jwks")
	for token, bound := range map[string]bool{"soon": true, "fraction": true, "late": false, "never": false} {
		g.send(200, "GET", "/x", token)
		claims := asserted(t, g.Backend.last(t).Header, "X-OAuth-Assertion", set)
		iat, exp := int64(claims["iat"].(float64)), int64(claims["exp"].(float64))
		if bound && exp != ends || !bound && exp != iat+50 {
			t.Errorf("%s: an assertion is from %d to %d, and its token ends at %d", token, iat, exp, ends)
		}
		if aud := claims["aud"]; !reflect.DeepEqual(aud, []any{"a", "b"}) {
			t.Errorf("the audience is %v", aud)
		}
	}
}

// Of several oauth_protect, the last with a header decides what it says. One without the option takes
// away nobody's.
func TestSeveralOauthProtectAndAssertions(t *testing.T) {
	option := func(header, audience string) string {
		return "assertion " + header + " {\naudience " + audience + "\n}\n"
	}
	beta := "realm beta {\nclient b {\nsecret_hash " + testHash + "\nscopes read\ndefault_scopes read\n}\n}\n"
	g := startGateway(t, "store memory\n"+assertingRealm+testClients+beta, asserting(map[string]string{
		"/first":  "oauth_protect root {\n" + option("X-OAuth-Assertion", "first") + "}\noauth_protect root {\nscopes read\n}",
		"/second": "oauth_protect root\noauth_protect root {\n" + option("X-OAuth-Assertion", "second") + "}",
		"/last":   "oauth_protect root {\n" + option("X-OAuth-Assertion", "first") + "}\nrequest_header X-Who between\noauth_protect root {\n" + option("X-OAuth-Assertion", "second") + "}",
		"/both":   "oauth_protect root {\n" + option("X-OAuth-Assertion", "first") + "}\noauth_protect root {\n" + option("X-Who", "second") + "}",
		"/three":  "oauth_protect root {\n" + option("X-Who", "first") + "}\noauth_protect root {\n" + option("X-OAuth-Assertion", "second") + "}\noauth_protect root {\nheader_prefix X-Third-\n}",
		"/deep":   "oauth_protect root {\n" + option("X-OAuth-Assertion", "first") + "}\noauth_protect root {\nscopes read\n}\noauth_protect root {\nscopes read\n}",
		"/report": "oauth_protect root {\n" + option("X-OAuth-Assertion", "first") + "}\noauth_protect root {\nscopes write\nreport_only\n" + option("X-OAuth-Assertion", "second") + "}",
		"/opens":  "oauth_protect root {\noptional\n" + option("X-OAuth-Assertion", "first") + "}\noauth_protect root {\n" + option("X-Who", "second") + "}",
	}))
	_, set := g.keySet("/oauth2/jwks")
	token := g.token("reader")
	for path, want := range map[string][2]any{
		"/first": {"first", nil}, "/second": {"second", nil}, "/last": {"second", nil}, "/both": {"first", "second"}, "/three": {"second", "first"},
		"/deep": {"first", nil}, "/report": {"first", nil}, "/opens": {"first", "second"},
	} {
		g.send(200, "GET", path+"/x", token, "X-OAuth-Assertion", "forged", "X-Who", "forged")
		h := g.Backend.last(t).Header
		var got [2]any
		if claims := asserted(t, h, "X-OAuth-Assertion", set); claims != nil {
			got[0] = claims["aud"]
		}
		if path == "/last" { // what the operator has put there
			if h.Get("X-Who") != "between" {
				t.Errorf("%s: the backend got %v", path, h)
			}
		} else if claims := asserted(t, h, "X-Who", set); claims != nil {
			got[1] = claims["aud"]
		}
		if got != want {
			t.Errorf("%s: the assertions are for %v, want %v", path, got, want)
		}
	}
}

// Error routes don't get it, and neither do refusals.
func TestErrorRoutesHaveNoAssertions(t *testing.T) {
	g := startGateway(t, "store memory\n"+assertingRealm+testClients, "oauth_server\nroute {\noauth_protect {\n"+asserts+"}\nerror /fails 500\noauth_protect {\nscopes write\n}\nreverse_proxy BACKEND\n}\nhandle_errors {\nreverse_proxy BACKEND\n}")
	_, set := g.keySet("/oauth2/jwks")
	for _, token := range []string{g.token("reader"), "garbage"} {
		for _, path := range []string{"/fails", "/lacks-a-scope"} {
			before := g.Backend.count()
			g.rawRequest("GET "+path, "Authorization: Bearer "+token, "X-OAuth-Assertion: forged", "X_OAuth.Assertion: forged")
			if g.Backend.count() != before+1 {
				t.Fatalf("%s: the error route's backend was not asked", path)
			}
			wantAsserted(t, path, asserted(t, g.Backend.last(t).Header, "X-OAuth-Assertion", set), nil)
		}
	}
	// A request that fails before any route has its headers stripped all the same.
	g.rawRequest("GET /x", "Host: ", "X-OAuth-Assertion: forged")
	wantAsserted(t, "no host", asserted(t, g.Backend.last(t).Header, "X-OAuth-Assertion", set), nil)
}

// Many backends answer TRACE with the request that they got. A caller that learns its assertion could
// use it past the gateway.
func TestAssertionsDontComeBack(t *testing.T) {
	g := startGateway(t, "store memory\n"+assertingRealm+testClients, "oauth_server\noauth_protect {\n"+asserts+"}\nreverse_proxy BACKEND")
	_, set := g.keySet("/oauth2/jwks")
	token := g.token("reader")
	for method, want := range map[string]map[string]any{
		"TRACE": nil, "trace": nil, "TRACK": nil, "GET": about("root", "reader", "read"), "OPTIONS": about("root", "reader", "read"), "DELETE": about("root", "reader", "read"),
	} {
		if a := g.rawRequest(method+" /x", "Authorization: Bearer "+token, "X-OAuth-Assertion: forged"); a.StatusCode != 200 {
			t.Fatalf("%s: %d", method, a.StatusCode)
		}
		wantAsserted(t, method, asserted(t, g.Backend.last(t).Header, "X-OAuth-Assertion", set), want)
	}
}

// A WebSocket opens with an assertion.
func TestWebSocketsOpenWithAnAssertion(t *testing.T) {
	told := make(chan http.Header, 1)
	echo := httptest.NewServer(websocket.Handler(func(ws *websocket.Conn) { told <- ws.Request().Header }))
	t.Cleanup(echo.Close)
	g := startGateway(t, "store memory\n"+assertingRealm+testClients, "oauth_server\noauth_protect {\n"+asserts+"}\nreverse_proxy "+echo.Listener.Addr().String())
	_, set := g.keySet("/oauth2/jwks")
	a := g.rawRequest("GET /x", "Origin: http://localhost", "Upgrade: websocket", "Connection: Upgrade, X-OAuth-Assertion", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13",
		"X-OAuth-Assertion: forged", "Authorization: Bearer "+g.token("reader"))
	if a.StatusCode != 101 {
		t.Fatalf("%d", a.StatusCode)
	}
	wantAsserted(t, "a WebSocket", asserted(t, <-told, "X-OAuth-Assertion", set), about("root", "reader", "read"))
}

// Over every version of HTTP, with TLS.
func TestAssertionsOverEveryProtocol(t *testing.T) {
	for _, proto := range []string{"h1", "h2", "h3"} {
		t.Run(proto, func(t *testing.T) {
			g := startTLS(t, proto, "store memory\n"+assertingRealm+testClients, asserting(map[string]string{"/told": "oauth_protect {\n" + asserts + "}", "/untold": "oauth_protect"}))
			_, set := g.keySet("/oauth2/jwks")
			token := g.token("reader")
			for path, want := range map[string]map[string]any{"/told/x": about("root", "reader", "read"), "/untold/x": nil, "/open": nil} {
				g.send(200, "POST", path, token, "X-OAuth-Assertion", "forged", "x_oauth_assertion", "forged")
				wantAsserted(t, path, asserted(t, g.Backend.last(t).Header, "X-OAuth-Assertion", set), want)
			}
		})
	}
}

// As long as the gateway has not heard of any key, it passes no request on without an assertion.
func TestNoRequestWithoutItsAssertion(t *testing.T) {
	f := newForeign(t)
	f.knows("opaque", activeForeign)
	redis := redistest.Start(t)
	redis.Stop()
	site := func(more string) string {
		return "oauth_server\noauth_protect {\n" + f.introspect("") + more + asserts + "}\nreverse_proxy BACKEND"
	}
	oauth := at(redis.Addr) + keyFiles(t, "key")["key"] + assertingRealm + testClients
	g, logged := startLogged(t, oauth, site(""))
	for range 2 {
		if a := g.get("/x", "opaque"); a.StatusCode != 503 || a.Header.Get("Retry-After") == "" || a.Body != "" {
			t.Fatalf("before the first contact with Redis: %d %v %q", a.StatusCode, a.Header, a.Body)
		}
		checkRefusal(t, g.get("/x", "garbage"), 401, "External", "invalid_token")
	}
	if g.Backend.count() > 0 {
		t.Fatalf("the backend got %v", g.Backend.last(t))
	}
	if !strings.Contains(logged(), "the assertion could not be made") {
		t.Errorf("the log does not say why:\n%s", logged())
	}
	redis.Restart()
	waitUntil(t, "there are keys", func() bool { return g.get("/x", "opaque").StatusCode == 200 })
	_, set := g.keySet("/oauth2/jwks")
	if asserted(t, g.Backend.last(t).Header, "X-OAuth-Assertion", set) == nil {
		t.Error("the backend got no assertion")
	}
	// The keys are known now, so tokens of others need no store.
	redis.Stop()
	g.send(200, "GET", "/x", "opaque")
	if asserted(t, g.Backend.last(t).Header, "X-OAuth-Assertion", set) == nil {
		t.Error("without Redis, the backend got no assertion")
	}
}

// What could not work, or would tell the backend two things by one header, is refused when the
// configuration is loaded.
func TestAssertionsThatDontLoad(t *testing.T) {
	t.Setenv("OAUTH_TEST_SECRET", leakedSecret)
	route := func(lines string) string { return "oauth_server\noauth_protect root {\n" + lines + "}\nrespond ok" }
	upstream := "client c {\nsecret_hash " + testHash + "\nscopes read\nupstream_header X-Api-Key {env.OAUTH_TEST_SECRET}\n}\n"
	g := startGateway(t, "store memory\n"+testClients, gatewaySite)
	for what, c := range map[string]struct {
		oauth, site string
		parts       []string
	}{
		"a realm that signs nothing":          {testClients, route(asserts), []string{"assertion", `realm "root"`, "add 'signing' to the oauth block", "issuer"}},
		"an unknown realm":                    {assertingRealm + testClients, route(strings.Replace(asserts, "}", "realm gamma\n}", 1)), []string{"unknown realm 'gamma'"}},
		"signing without an issuer":           {"signing\n" + testClients, route(asserts), []string{"issuer"}},
		"a client's header":                   {assertingRealm + testClients + upstream, route("assertion x-api-KEY {\naudience a\n}\n"), []string{"x-api-KEY", "upstream_header"}},
		"an identity header":                  {assertingRealm + testClients, route("assertion x-oauth-SUBJECT {\naudience a\n}\n"), []string{"X-Oauth-Subject", "who is calling"}},
		"an identity header by its prefix":    {assertingRealm + testClients, route("header_prefix X-Acme-\nassertion X-Acme-Client-Id {\naudience a\n}\n"), []string{"X-Acme-Client-Id", "who is calling"}},
		"an identity header of another route": {assertingRealm + testClients, "oauth_server\nroute {\noauth_protect /a root {\nassertion X-Acme-Realm {\naudience a\n}\n}\noauth_protect /b root {\nheader_prefix X-Acme-\n}\n}\nrespond ok", []string{"X-Acme-Realm", "who is calling"}},
		"a matcher that comes too early":      {assertingRealm + testClients, "oauth_server\n@told header X-Who *\nroute {\nrespond @told ok\noauth_protect root {\nassertion X-Who {\naudience a\n}\n}\nrespond ok\n}", []string{"X-Who", "comes before oauth_protect"}},
	} {
		err := g.load("store memory\n"+c.oauth, c.site)
		if err == nil {
			t.Errorf("%s: it loads", what)
			continue
		}
		for _, part := range c.parts {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v, want %q in it", what, err, part)
			}
		}
	}
	// A client's tokens may make the realm sign.
	jwt := strings.Replace(testClients, "scopes read\n", "scopes read\ntoken_format jwt\n", 1)
	if err := g.load("store memory\nissuer https://auth.example.com/oauth2\n"+jwt, route(asserts)); err != nil {
		t.Error(err)
	}
}

// The realm that signs is the one whose tokens the route accepts, or the one that is named.
func TestTheRealmThatSigns(t *testing.T) {
	f := newForeign(t)
	f.knows("opaque", activeForeign)
	named := strings.Replace(asserts, "}", "realm beta\n}", 1)
	g := startGateway(t, "store memory\n"+assertingRealm+testClients+"realm beta {\nclient b {\nsecret_hash "+testHash+"\nscopes read\ndefault_scopes read\n}\n}\n", asserting(map[string]string{
		"/foreign": "oauth_protect {\n" + f.introspect("") + asserts + "}",
		"/named":   "oauth_protect {\n" + f.introspect("") + named + "}",
		"/beta":    "oauth_protect beta {\n" + asserts + "}",
		"/both":    "oauth_protect {\nsource local beta\nsource local root\n" + asserts + "}",
	}))
	sets := make(map[string]jose.JSONWebKeySet)
	_, sets["https://auth.example.com/oauth2"] = g.keySet("/oauth2/jwks")
	_, sets["https://auth.example.com/oauth2/realms/root/realms/beta"] = g.keySet("/oauth2/realms/root/realms/beta/jwks")
	beta := g.fetchAt("/oauth2/realms/root/realms/beta", "b", "read")
	for _, c := range []struct{ path, token, signer string }{
		{"/foreign", "opaque", ""}, {"/named", "opaque", "/realms/root/realms/beta"}, {"/beta", beta, "/realms/root/realms/beta"},
		{"/both", beta, "/realms/root/realms/beta"}, {"/both", g.token("reader"), "/realms/root/realms/beta"},
	} {
		g.send(200, "GET", c.path+"/x", c.token)
		issuer := "https://auth.example.com/oauth2" + c.signer
		if claims := asserted(t, g.Backend.last(t).Header, "X-OAuth-Assertion", sets[issuer]); claims["iss"] != issuer {
			t.Errorf("%s: the assertion is %v, want it signed by %s", c.path, claims, issuer)
		}
	}
}

// A remembered assertion is used again after keys were rotated, since the same key still signs. It is
// not when its key was withdrawn: on the next request, if it was here.
func TestAssertionsWhenKeysAreRotatedAndWithdrawn(t *testing.T) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			config, admin := withAdmin(t, caddyfileOf(store+keyFiles(t, "key")["key"]+assertingRealm+testClients, "oauth_server\noauth_protect {\n"+asserts+"}\nreverse_proxy BACKEND"))
			g := startCaddyfile(t, config)
			token := g.token("reader")
			told := func() (text string) {
				t.Helper()
				g.send(200, "GET", "/x", token)
				_, set := g.keySet("/oauth2/jwks")
				h := g.Backend.last(t).Header
				wantAsserted(t, "the backend", asserted(t, h, "X-OAuth-Assertion", set), about("root", "reader", "read"))
				return h.Get("X-OAuth-Assertion")
			}
			kid := func(assertion string) string { return strings.Split(assertion, ".")[0] }
			first := told()
			g.rotateKeys(admin, `{"realm":"root"}`)
			if again := told(); kid(again) != kid(first) {
				t.Error("a key signs before others can know it")
			}
			for range 3 {
				before := told()
				g.rotateKeys(admin, `{"realm":"root","withdraw":true}`)
				if after := told(); kid(after) == kid(before) || kid(after) == kid(first) {
					t.Error("a key that was withdrawn still signs")
				}
			}
		})
	}
}

// What another gateway withdraws signs nothing here within the bound of a revocation.
func TestFleetWithdrawsKeysOfAssertions(t *testing.T) {
	redis := redistest.Start(t)
	options := at(redis.Addr) + keyFiles(t, "key")["key"] + assertingRealm + testClients
	address := porttest.Address(t)
	there, admin := withAdmin(t, strings.Replace(caddyfileOf(options, "oauth_server"), ":0 {", "http://"+address+" {", 1))
	runProcess(t, formatted(there), address)
	here := startGateway(t, options, "metrics /metrics\noauth_server\noauth_protect {\n"+asserts+"}\nreverse_proxy BACKEND")
	token := here.token("reader")
	kid := func() string {
		t.Helper()
		here.send(200, "GET", "/x", token)
		return strings.Split(here.Backend.last(t).Header.Get("X-OAuth-Assertion"), ".")[0]
	}
	waitUntil(t, "the other gateway is in force", func() bool { return here.adminCall(admin, "/oauth/keys", "").StatusCode == 200 })
	first := kid()
	begun := time.Now()
	here.rotateKeys(admin, `{"realm":"root","withdraw":true}`) // there
	waitUntil(t, "another key signs", func() bool { return kid() != first })
	if took := time.Since(begun); took > fleetBound+lateness {
		t.Errorf("it took %v", took)
	}
}

// A gateway that issues nothing can sign, too: its store is there for the keys.
func TestAssertionsOfARealmWithoutClients(t *testing.T) {
	f := newForeign(t)
	f.knows("opaque", activeForeign)
	g := startGateway(t, "store memory\n"+assertingRealm, "oauth_protect {\n"+f.introspect("")+asserts+"}\nreverse_proxy BACKEND")
	g.send(200, "GET", "/x", "opaque", "X-OAuth-Assertion", "forged")
	if assertion := g.Backend.last(t).Header.Get("X-OAuth-Assertion"); strings.Count(assertion, ".") != 2 {
		t.Errorf("the backend got the assertion %q", assertion)
	}
}

// Assertions are in no log, unless Caddy logs what it sends. A warning says so then.
func TestAssertionsAreNotLogged(t *testing.T) {
	for _, level := range []string{"INFO", "DEBUG"} {
		log := filepath.Join(t.TempDir(), "log")
		g := startCaddyfile(t, withGlobals("log {\noutput file "+log+"\nlevel "+level+"\n}\nservers {\nlog_credentials\n}", "store memory\n"+assertingRealm+testClients,
			"log\noauth_server\nroute {\noauth_protect {\n"+asserts+"}\nerror /fails 500\nreverse_proxy /away 127.0.0.1:1\nreverse_proxy BACKEND\n}"))
		token := g.token("reader")
		for path, want := range map[string]int{"/x": 200, "/fails": 500, "/away": 502} {
			g.send(want, "GET", path, token)
		}
		assertion := g.Backend.last(t).Header.Get("X-OAuth-Assertion")
		if err := caddy.Stop(); err != nil { // flushes the log
			t.Fatal(err)
		}
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(text), assertion); assertion == "" || got != (level == "DEBUG") {
			t.Errorf("level %s: the assertion is in the log: %t", level, got)
		}
		if got := strings.Contains(string(text), "a log at level DEBUG gets the assertions"); got != (level == "DEBUG") {
			t.Errorf("level %s: a warning is in the log: %t", level, got)
		}
	}
}
