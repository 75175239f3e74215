package caddyoauth_test

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"golang.org/x/net/websocket"

	"github.com/caddyoauth/gateway/caddyoauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// slowSecretOf is the secret of the clients whose hashes are slow in tests of Basic.
const slowSecretOf = "correct horse battery staple"

// basicClients are clients that may use Basic, and one of each kind that may not. All but quick
// have a slow hash of one cost, so that each failure costs one.
func basicClients() string {
	slow := slowHash(slowSecretOf)
	client := func(id, lines string) string { return "client " + id + " {\n" + lines + "\n}\n" }
	scopes := "\nscopes read write\ndefault_scopes read\naudience https://api.example.com https://other.example.com"
	return client("quick", "secret_hash "+hashOf("old")+" until 2099-12-31T23:59:59Z\nsecret_hash "+testHash+scopes) +
		client("slow", "secret_hash "+slow+scopes) +
		client("a%20b", "secret_hash "+slow+"\nscopes read") +
		client("off", "secret_hash "+slow+scopes+"\ndisabled") +
		client("expired", "secret_hash "+slow+" until 2020-01-01T00:00:00Z"+scopes) +
		client("post", "secret_hash "+slow+scopes+"\nauth client_secret_post") +
		client("asks", "secret_hash "+slow+"\ngrant_types none\nintrospect realm") +
		client("empty", "secret_hash "+slow) +
		"realm alpha {\n" + client("quick", "secret_hash "+testHash+"\nscopes alpha") + "}\n"
}

// withBasic sends a request with Basic credentials that are not form-encoded.
func (g *gateway) withBasic(path, id, secret string, headers ...string) answer {
	g.t.Helper()
	return g.do(g.request("GET", path, "", append([]string{"Authorization", rawBasic(id + ":" + secret)}, headers...)...))
}

// basicCount returns how many requests each client has sent with Basic.
func basicCount(t *testing.T) map[string]float64 {
	t.Helper()
	return clientSeries(t, "caddy_oauth_client_basic_total", "realm", "client_id")
}

func bboltIn(t testing.TB) string {
	return "store bbolt " + filepath.Join(t.TempDir(), "tokens.db") + "\n"
}

// A client's ID and secret are as good as the best token that it could fetch. The backend is told
// the same, and never gets the secret.
func TestBasicIsAsGoodAsTheBestToken(t *testing.T) {
	const rest = "\nrequest_header Expires-At [{http.auth.user.expires}]\n@writes oauth_scope write\nrequest_header @writes Writes yes\nreverse_proxy BACKEND\n}\n"
	g := startGateway(t, bboltIn(t)+basicClients(), "oauth_server\n"+
		"route /any {\noauth_protect root {\nbasic\n}"+rest+
		"route /rules {\noauth_protect root {\nbasic until 2099-01-01T00:00:00Z\nscopes read\nany_scope write admin\naudience https://api.example.com\nmax_age 1s\nkeep_token\n}"+rest+
		"route /lacks {\noauth_protect root {\nbasic\nscopes admin\n}"+rest+
		"route /elsewhere {\noauth_protect root {\nbasic\naudience https://elsewhere.example.com\n}"+rest+
		"route /claim {\noauth_protect root {\nbasic\nclaim role admin\n}"+rest+
		"route /optional {\noauth_protect root {\nbasic\noptional\nkeep_token\n}"+rest+
		"route /methods {\noauth_protect root {\nbasic\non GET {\nscopes admin\n}\non * {\nscopes write\n}\n}"+rest+
		"route /without {\noauth_protect root"+rest)
	identity := func(h http.Header) string {
		return fmt.Sprint(h["X-Oauth-Client-Id"], h["X-Oauth-Subject"], h["X-Oauth-Scope"], h["X-Oauth-Realm"], h["X-Oauth-Issuer"], h["Writes"])
	}
	g.send(200, "GET", "/any", g.token("quick", "read", "write"))
	want := identity(g.Backend.last(t).Header)
	for path, status := range map[string]int{"/any": 200, "/rules": 200, "/lacks": 403, "/elsewhere": 401, "/claim": 403, "/optional": 200, "/methods": 403, "/without": 401} {
		before := g.Backend.count()
		a := g.withBasic(path, "quick", testSecret, "X-OAuth-Client-Id", "forged")
		if a.StatusCode != status {
			t.Errorf("%s: %d with %v, want %d", path, a.StatusCode, a.Header, status)
		}
		if status != 200 {
			if g.Backend.count() != before {
				t.Errorf("%s: the backend got it", path)
			}
			continue
		}
		got := g.Backend.last(t).Header
		if identity(got) != want || got.Get("Expires-At") != "[]" || got["Authorization"] != nil {
			t.Errorf("%s: the backend got %v, want what it gets with the best token: %s", path, got, want)
		}
	}
	// A token goes on being one, and nobody is somebody without either.
	a := g.send(200, "GET", "/rules", g.token("quick", "read", "write"))
	if got := g.Backend.last(t).Header; !strings.HasPrefix(got.Get("Authorization"), "Bearer ") || got.Get("Expires-At") == "[]" || a.Header["Deprecation"] != nil || a.Header["Sunset"] != nil {
		t.Errorf("with a token: the caller got %v, the backend %v", a.Header, got)
	}
	g.send(401, "GET", "/any", "")
	g.send(200, "GET", "/optional", "")
	checkNoIdentity(t, g.Backend.last(t).Header, "X-Oauth-")
	if a := g.do(g.request("POST", "/methods", "", "Authorization", rawBasic("quick:"+testSecret))); a.StatusCode != 200 {
		t.Errorf("another method: %d", a.StatusCode)
	}
	// Both readings, any spelling of the scheme.
	for _, authorization := range []string{basic("a%20b", slowSecretOf), rawBasic("a%20b:" + slowSecretOf), "bAsIc   " + rawBasic("quick:" + testSecret)[6:]} {
		if a := g.do(g.request("GET", "/any", "", "Authorization", authorization)); a.StatusCode != 200 {
			t.Errorf("%s: %d", authorization, a.StatusCode)
		}
	}
}

// Whatever is wrong, the answer is one, after the same work, and both challenges are in it. The log
// knows more.
func TestFailuresOfBasicLookAlike(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	g := startCaddyfile(t, withGlobals("log {\noutput file "+log+"\n}", "store memory\n"+basicClients(), "log\noauth_server\noauth_protect root {\nbasic\n}\nreverse_proxy BACKEND"))
	want := ""
	reasons := make(map[string]int)
	for _, c := range []struct {
		id, secret, reason string
		hashes             int64
	}{
		{"nobody", "x", "unknown_client", 1}, {"slow", "x", "wrong_secret", 1}, {"quick", "x", "wrong_secret", 1}, {"slow", "", "wrong_secret", 1},
		{"off", slowSecretOf, "client_disabled", 1}, {"expired", slowSecretOf, "expired_secret", 1}, {"post", slowSecretOf, "auth_method_not_allowed", 1},
		{"asks", slowSecretOf, "no_tokens", 1}, {"empty", slowSecretOf, "no_tokens", 1}, {"slow", strings.Repeat("x", 5000), "wrong_secret", 1},
		{"slow", slowSecretOf + "\x00", "malformed_authorization", 0},
	} {
		before := caddyoauth.SlowHashes()
		a := g.withBasic("/"+c.reason, c.id, c.secret)
		if n := caddyoauth.SlowHashes() - before; n != c.hashes {
			t.Errorf("%s, %.9q: %d slow hashes, want %d", c.id, c.secret, n, c.hashes)
		}
		if want == "" {
			want = fingerprint(a)
			if a.StatusCode != 401 || !slices.Equal(a.Header["Www-Authenticate"], []string{`Bearer realm="root"`, `Basic realm="root", charset="UTF-8"`}) {
				t.Errorf("the answer is\n%s", want)
			}
		}
		if got := fingerprint(a); got != want {
			t.Errorf("%s, %.9q gets\n%s\nand another failure\n%s", c.id, c.secret, got, want)
		}
		reasons[c.reason]++
	}
	for _, line := range []string{"Basic", "Basic ", "basic !", "Basic YWI=", "Basic\tYTpi", "Basic," + rawBasic("quick:" + testSecret)[6:], rawBasic("quick:"+testSecret) + ", Bearer x", "Basic " + strings.Repeat("YTpi", 5000)} {
		if got := fingerprint(g.do(g.request("GET", "/malformed_authorization", "", "Authorization", line))); got != want {
			t.Errorf("%.40q gets\n%s", line, got)
		}
		reasons["malformed_authorization"]++
	}
	// Without Basic credentials both challenges are there, too, and of two lines nobody knows which
	// one counts.
	for _, headers := range [][]string{nil, {"Authorization", "Basicx YTpi"}, {"Authorization", "Digest YTpi"}, {"Authorization", "Bearer x"}} {
		a := g.do(g.request("GET", "/x", "", headers...))
		if challenges := a.Header["Www-Authenticate"]; a.StatusCode != 401 || len(challenges) != 2 || challenges[1] != `Basic realm="root", charset="UTF-8"` {
			t.Errorf("%q gets %d with %q", headers, a.StatusCode, challenges)
		}
	}
	two := g.request("GET", "/x", "")
	two.Header["Authorization"] = []string{rawBasic("quick:" + testSecret), rawBasic("quick:" + testSecret)}
	checkRefusal(t, g.do(two), 400, "root", "invalid_request")
	if g.Backend.count() > 0 {
		t.Error("one of them reached the backend")
	}
	if n := metric(t, "caddy_oauth_bearer_checks_total", "result", "invalid_client", "cause", "basic"); n < 19 {
		t.Errorf("%v of them were counted", n)
	}
	access := accessLog(t, log)
	if f := access["/wrong_secret"]; f["error"] != "invalid_client" || f["cause"] != "basic" || f["client"] != nil || f["secret"] != nil {
		t.Errorf("the access log has %v", f)
	}
	got := make(map[string]int)
	for _, e := range eventsIn(t, log, "request_refused") {
		if e["cause"] != "basic" {
			continue
		}
		got[e["reason"].(string)]++
		id, named := e["client_id"]
		if e["path"] != "/"+e["reason"].(string) || e["auth_method"] != "client_secret_basic" || e["secret"] != nil || e["token_id"] != nil ||
			e["reason"] == "unknown_client" && named || e["reason"] == "no_tokens" && id != "asks" && id != "empty" {
			t.Errorf("the event is %v", e)
		}
	}
	// Ten events of a cause are written in a second.
	for reason, n := range got {
		if n > reasons[reason] {
			t.Errorf("%d events say %s, want at most %d", n, reason, reasons[reason])
		}
	}
	if len(got) < 5 {
		t.Errorf("the events are %v", got)
	}
}

// After its end, Basic is as if it had never been there.
func TestBasicEnds(t *testing.T) {
	const rest = "\nreverse_proxy BACKEND\n}\n"
	g := startGateway(t, "store memory\n"+basicClients(), "oauth_server\nroute /x {\noauth_protect root {\nbasic until 2020-01-01T00:00:00Z\n}"+rest+"route /optional {\noauth_protect root {\nbasic until 2020-01-01T00:00:00Z\noptional\nkeep_token\n}"+rest)
	before := caddyoauth.SlowHashes()
	after := make(map[string]string)
	requests := map[string][]string{"right": {"Authorization", rawBasic("quick:" + testSecret)}, "wrong": {"Authorization", rawBasic("slow:x")}, "nothing": nil, "junk": {"Authorization", "Bearer junk"}}
	for name, headers := range requests {
		after[name] = fingerprint(g.do(g.request("GET", "/x", "", headers...)))
	}
	if n := caddyoauth.SlowHashes() - before; n != 0 {
		t.Errorf("it costs %d slow hashes", n)
	}
	// The secret goes no further.
	if a := g.withBasic("/optional", "quick", testSecret); a.StatusCode != 200 || g.Backend.last(t).Header["Authorization"] != nil {
		t.Errorf("%d, the backend got %v", a.StatusCode, g.Backend.last(t).Header)
	}
	if err := g.load("store memory\n"+basicClients(), "oauth_server\noauth_protect root\nreverse_proxy BACKEND"); err != nil {
		t.Fatal(err)
	}
	for name, headers := range requests {
		if got := fingerprint(g.do(g.request("GET", "/x", "", headers...))); got != after[name] {
			t.Errorf("%s: after the end\n%s\nwithout the option\n%s", name, after[name], got)
		}
	}
}

// Every response to a caller that was let in by Basic says that this is deprecated, and when it
// ends. What the backend says of itself stays.
func TestBasicIsDeprecated(t *testing.T) {
	begin := time.Now()
	nests := 0
	nested := func(paths, first, realm, second string) string {
		nests++
		name := fmt.Sprint("@nested", nests)
		return name + " path " + paths + "\nroute " + name + " {\noauth_protect root {\nbasic " + first + "\n}\noauth_protect " + realm + " {\nbasic " + second + "\n}\nerror /nested/later/error 507\nreverse_proxy BACKEND\n}\n"
	}
	g := startGateway(t, "store memory\n"+basicClients(), "oauth_server\n"+
		"route /ends/* {\noauth_protect root {\nbasic until 2099-02-03T04:05:06+02:00\n}\nerror /ends/error 507\nrespond /ends/respond 204\nreverse_proxy /ends/away 127.0.0.1:1\nreverse_proxy BACKEND\n}\n"+
		"route /stays {\noauth_protect root {\nbasic\n}\nreverse_proxy BACKEND\n}\n"+
		"route /second/* {\noauth_protect root {\nbasic\n}\noauth_protect /second/lacks root {\nbasic\nscopes admin\n}\noauth_protect /second/tokens root\nreverse_proxy BACKEND\n}\n"+
		nested("/nested/later /nested/later/error", "until 2099-02-03T02:05:06Z", "root", "until 2100-01-01T00:00:00Z")+nested("/nested/sooner", "until 2100-01-01T00:00:00Z", "root", "until 2099-02-03T02:05:06Z")+
		nested("/nested/stays", "until 2099-02-03T02:05:06Z", "root", "")+nested("/nested/realms", "until 2099-02-03T02:05:06Z", "alpha", "until 2100-01-01T00:00:00Z"))
	g.Backend.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ends/own":
			w.Header().Set("Deprecation", "@1")
			w.Header().Set("Sunset", "Sat, 01 Jan 2000 00:00:00 GMT")
		case "/ends/fails":
			w.WriteHeader(500)
		case "/ends/hints":
			w.WriteHeader(103)
		case "/ends/streams":
			http.NewResponseController(w).Flush()
		}
		fmt.Fprint(w, "backend")
	})
	check := func(a answer, path string, status int, sunset string) {
		t.Helper()
		at, err := strconv.ParseInt(strings.TrimPrefix(a.Header.Get("Deprecation"), "@"), 10, 64)
		if a.StatusCode != status || len(a.Header["Deprecation"]) != 1 || err != nil || at < begin.Unix() || at > time.Now().Unix() || a.Header.Get("Sunset") != sunset || len(a.Header["Sunset"]) > 1 {
			t.Errorf("%s: %d with %v, want %d and Sunset %q", path, a.StatusCode, a.Header, status, sunset)
		}
	}
	const sunset = "Tue, 03 Feb 2099 02:05:06 GMT"
	for path, status := range map[string]int{"/ends/x": 200, "/ends/fails": 500, "/ends/hints": 200, "/ends/streams": 200, "/ends/respond": 204, "/ends/away": 502, "/ends/error": 507} {
		check(g.withBasic(path, "quick", testSecret), path, status, sunset)
	}
	check(g.do(g.request("HEAD", "/ends/x", "", "Authorization", rawBasic("quick:"+testSecret))), "HEAD", 200, sunset)
	check(g.withBasic("/stays", "quick", testSecret), "/stays", 200, "")
	check(g.withBasic("/second/x", "quick", testSecret), "/second/x", 200, "")
	check(g.withBasic("/second/lacks", "quick", testSecret), "a second oauth_protect that refuses", 403, "")
	check(g.withBasic("/second/tokens", "quick", testSecret), "a second oauth_protect without Basic", 401, "")
	// Of several, the one that ends first counts.
	for _, path := range []string{"/nested/later", "/nested/sooner", "/nested/stays", "/nested/later/error", "/nested/realms"} {
		check(g.withBasic(path, "quick", testSecret), path, map[bool]int{false: 200, true: 507}[strings.HasSuffix(path, "error")], sunset)
	}
	if h := g.withBasic("/ends/own", "quick", testSecret).Header; !slices.Equal(h["Deprecation"], []string{"@1"}) || !slices.Equal(h["Sunset"], []string{"Sat, 01 Jan 2000 00:00:00 GMT"}) {
		t.Errorf("the backend's own: %v", h)
	}
	// Whoever isn't let in hears nothing, and neither does a caller with a token.
	token := g.token("quick", "read")
	for what, a := range map[string]answer{"a wrong secret": g.withBasic("/ends/x", "quick", "x"), "no credentials": g.get("/ends/x", ""), "a token": g.get("/ends/x", token), "a token and an error": g.get("/ends/error", token)} {
		if a.Header["Deprecation"] != nil || a.Header["Sunset"] != nil {
			t.Errorf("%s: %v", what, a.Header)
		}
	}
}

// A WebSocket opens with Basic, too: the response that switches is deprecated like any other.
func TestBasicOpensWebSockets(t *testing.T) {
	echo := httptest.NewServer(websocket.Handler(func(ws *websocket.Conn) { fmt.Fprint(ws, "hello") }))
	t.Cleanup(echo.Close)
	g := startGateway(t, "store memory\n"+basicClients(), "oauth_protect root {\nbasic\n}\nreverse_proxy "+echo.Listener.Addr().String())
	conn := g.rawConn("GET /x HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nAuthorization: " + rawBasic("quick:"+testSecret) + "\r\n\r\n")
	reader := bufio.NewReader(conn)
	res, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	frame := make([]byte, 7)
	if _, err := reader.Read(frame); res.StatusCode != 101 || res.Header.Get("Deprecation") == "" || err != nil || string(frame[2:]) != "hello" {
		t.Errorf("%d with %v, then %q, %v", res.StatusCode, res.Header, frame, err)
	}
}

// Several oauth_protect judge the same credentials, each by its own rule. Only another realm
// authenticates anew, with clients of its own.
func TestSeveralOauthProtectAndBasic(t *testing.T) {
	protect := func(realm, lines string) string { return "oauth_protect " + realm + " {\n" + lines + "\n}\n" }
	site := "oauth_server\n"
	for path, rules := range map[string][2]string{
		"same":          {protect("root", "basic"), protect("root", "basic\nscopes write")},
		"lacks":         {protect("root", "basic"), protect("root", "basic\nscopes admin")},
		"tokens":        {protect("root", "basic"), protect("root", "")},
		"optional":      {protect("root", "basic"), protect("root", "optional")},
		"ended":         {protect("root", "basic"), protect("root", "basic until 2020-01-01T00:00:00Z")},
		"other":         {protect("root", "basic"), protect("alpha", "basic\nscopes alpha")},
		"other-tokens":  {protect("root", "basic"), protect("alpha", "")},
		"from-optional": {protect("root", "optional"), protect("root", "basic")},
		"from-tokens":   {protect("root", ""), protect("root", "basic")},
	} {
		site += "route /" + path + " {\n" + rules[0] + rules[1] + "reverse_proxy BACKEND\n}\n"
	}
	g := startGateway(t, "store memory\n"+basicClients(), site)
	for _, c := range []struct {
		path, id, secret string
		status           int
		counted          map[string]float64 // by realm
		realm            string
	}{
		{"same", "quick", testSecret, 200, map[string]float64{"root": 1}, "root"},
		{"same", "slow", slowSecretOf, 200, map[string]float64{"root": 1}, "root"},
		{"lacks", "quick", testSecret, 403, map[string]float64{"root": 1}, ""},
		{"tokens", "quick", testSecret, 401, map[string]float64{"root": 1}, ""},
		{"optional", "quick", testSecret, 401, map[string]float64{"root": 1}, ""},
		{"ended", "quick", testSecret, 401, map[string]float64{"root": 1}, ""},
		{"other", "quick", testSecret, 200, map[string]float64{"root": 1, "alpha": 1}, "alpha"},
		{"other", "slow", slowSecretOf, 401, map[string]float64{"root": 1}, ""},
		{"other", "quick", "old", 401, map[string]float64{"root": 1}, ""},
		{"other-tokens", "quick", testSecret, 401, map[string]float64{"root": 1}, ""},
		{"from-optional", "quick", testSecret, 200, map[string]float64{"root": 1}, "root"},
		{"from-tokens", "quick", testSecret, 401, nil, ""},
	} {
		before, backend := basicCount(t), g.Backend.count()
		a := g.withBasic("/"+c.path, c.id, c.secret)
		if a.StatusCode != c.status || (g.Backend.count() > backend) != (c.status == 200) {
			t.Errorf("%s, %s: %d with %v, want %d", c.path, c.id, a.StatusCode, a.Header, c.status)
		}
		if c.status == 200 {
			if got := g.Backend.last(t).Header; got.Get("X-OAuth-Realm") != c.realm || got.Get("X-OAuth-Client-Id") != c.id || got["Authorization"] != nil {
				t.Errorf("%s, %s: the backend got %v", c.path, c.id, got)
			}
		}
		after := basicCount(t)
		for _, realm := range []string{"root", "alpha"} {
			if n := after[realm+"/"+c.id] - before[realm+"/"+c.id]; n != c.counted[realm] {
				t.Errorf("%s, %s: authenticated %v times in realm %s, want %v", c.path, c.id, n, realm, c.counted[realm])
			}
		}
	}
	// A token meets both as ever.
	g.send(200, "GET", "/same", g.token("quick", "write"))
	g.send(200, "GET", "/from-tokens", g.token("quick", "write"))
	g.send(401, "GET", "/other", g.token("quick", "write"))
}

// Who still uses Basic is counted by client, only where a route takes it, and is in the access log,
// with the secret that was used.
func TestBasicIsCountedAndLogged(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	config := withGlobals("log {\noutput file "+log+"\n}", "store memory\n"+basicClients(), "log\noauth_server\nroute /basic/* {\noauth_protect root {\nbasic\n}\noauth_protect /basic/lacks root {\nbasic\nscopes admin\n}\nreverse_proxy BACKEND\n}\nroute /alpha {\noauth_protect alpha\nreverse_proxy BACKEND\n}")
	g := startCaddyfile(t, config)
	g.withBasic("/basic/new", "quick", testSecret)
	g.withBasic("/basic/old", "quick", "old")
	g.withBasic("/basic/wrong", "quick", "x")
	g.withBasic("/basic/lacks", "quick", "old")
	g.withBasic("/basic/slow", "slow", slowSecretOf)
	g.withBasic("/basic/nobody", "nobody", "x")
	g.withBasic("/alpha", "quick", testSecret)
	g.get("/basic/token", g.token("quick", "read"))
	counted := map[string]float64{"root/quick": 3, "root/slow": 1, "root/a%20b": 0, "root/off": 0, "root/expired": 0, "root/post": 0, "root/asks": 0, "root/empty": 0}
	expectSeries(t, "before a reload", basicCount(t), counted)
	checks := clientChecks(t)
	if checks["root/quick/ok/"] != 4 || checks["root/quick/insufficient_scope/scope"] != 1 || checks["root/slow/ok/"] != 1 {
		t.Errorf("the checks are %v", checks)
	}
	if err := g.loadCaddyfile(config); err != nil {
		t.Fatal(err)
	}
	expectSeries(t, "after it", basicCount(t), counted)

	lines := accessLog(t, log)
	for path, want := range map[string]string{
		"/basic/new":   "quick root client_secret_basic 2 <nil> <nil> <nil>",
		"/basic/old":   "quick root client_secret_basic 1 2099-12-31T23:59:59Z true <nil>",
		"/basic/lacks": "quick root client_secret_basic 1 2099-12-31T23:59:59Z true scope",
		"/basic/slow":  "slow root client_secret_basic 1 <nil> <nil> <nil>",
		"/basic/wrong": "<nil> <nil> <nil> <nil> <nil> <nil> basic",
		"/basic/token": "quick root <nil> <nil> <nil> <nil> <nil>",
	} {
		f := lines[path]
		if got := fmt.Sprint(f["client"], f["realm"], f["auth_method"], f["secret"], f["secret_until"], f["rotation"], f["cause"]); strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
			t.Errorf("%s: the access log has %s, want %s", path, got, want)
		}
		if strings.Contains(fmt.Sprint(f), base64.StdEncoding.EncodeToString([]byte("quick:"))[:8]) {
			t.Errorf("%s: the access log has the credentials: %v", path, f)
		}
	}
	if e := eventsIn(t, log, "request_refused"); !slices.ContainsFunc(e, func(e map[string]any) bool {
		return e["cause"] == "scope" && e["client_id"] == "quick" && e["secret"] == 1. && e["rotation"] == true && e["token_id"] == nil
	}) {
		t.Errorf("the events are %v", e)
	}
}

// Where nobody can tell whether credentials are right, the answer is 503 to all of them; over plain
// HTTP from elsewhere they are not looked at.
func TestBasicWhereNobodyCanTell(t *testing.T) {
	g := startCaddyfile(t, withGlobals("servers {\ntrusted_proxies static 127.0.0.0/8\n}", at(porttest.Address(t))+basicClients(), "oauth_protect root {\nbasic\n}\nreverse_proxy BACKEND"))
	want := ""
	before := caddyoauth.SlowHashes()
	for _, c := range [][2]string{{"quick", testSecret}, {"quick", "x"}, {"nobody", "x"}, {"slow", slowSecretOf}} {
		a := g.withBasic("/x", c[0], c[1])
		if a.StatusCode != 503 || a.Header.Get("Retry-After") == "" || a.Header["Deprecation"] != nil {
			t.Errorf("%s: %d with %v", c, a.StatusCode, a.Header)
		}
		if got := fingerprint(a); want == "" {
			want = got
		} else if got != want {
			t.Errorf("%s gets\n%s\nand others\n%s", c, got, want)
		}
	}
	a := g.withBasic("/x", "quick", testSecret, "X-Forwarded-Proto", "http", "X-Forwarded-For", "192.0.2.1")
	if a.StatusCode != 403 || a.Header["Www-Authenticate"] != nil {
		t.Errorf("over plain HTTP: %d with %v", a.StatusCode, a.Header)
	}
	if n := caddyoauth.SlowHashes() - before; n != 0 {
		t.Errorf("they cost %d slow hashes", n)
	}
	if g.Backend.count() > 0 {
		t.Error("one of them reached the backend")
	}
}

// Only so many secrets are checked at once. Whoever has to come back is told nothing else, and that
// is counted as what it is.
func TestBasicIsBusy(t *testing.T) {
	g := startGateway(t, "store memory\n"+noFailureLimit+basicClients(), "oauth_protect root {\nbasic\n}\nreverse_proxy BACKEND")
	before := metric(t, "caddy_oauth_bearer_checks_total", "cause", "busy")
	// One client ID from one address may have 256 requests wait.
	var all sync.WaitGroup
	var busy, refused atomic.Int64
	for i := range 400 {
		all.Go(func() {
			a := g.withBasic("/x", "slow", fmt.Sprint("wrong", i))
			switch {
			case a.StatusCode == 503 && a.Header.Get("Retry-After") != "" && a.Header["Www-Authenticate"] == nil:
				busy.Add(1)
			case a.StatusCode == 401:
				refused.Add(1)
			default:
				t.Errorf("%d with %v", a.StatusCode, a.Header)
			}
		})
	}
	all.Wait()
	if n := metric(t, "caddy_oauth_bearer_checks_total", "cause", "busy") - before; n != float64(busy.Load()) || n == 0 || refused.Load() == 0 {
		t.Errorf("%d were told to come back and %d refused; %v were counted as busy", busy.Load(), refused.Load(), n)
	}
	if a := g.withBasic("/x", "quick", testSecret); a.StatusCode != 200 {
		t.Errorf("a quick secret: %d", a.StatusCode)
	}
}

// Refusing in error routes works as it does elsewhere, and the secret stays out of them.
func TestErrorRoutesDontGetBasicCredentials(t *testing.T) {
	g := startGateway(t, "store memory\n"+basicClients(), "oauth_protect root {\nbasic\nkeep_token\n}\nerror /fails 500\nreverse_proxy BACKEND\nhandle_errors {\nrequest_header Oauth-Error {http.oauth.error}\nreverse_proxy BACKEND\n}")
	for path, secret := range map[string]string{"/fails": testSecret, "/wrong": "x"} {
		a := g.withBasic(path, "quick", secret)
		got := g.Backend.last(t).Header
		if got["Authorization"] != nil || a.Body != "backend" || path == "/wrong" && got.Get("Oauth-Error") != "invalid_client" {
			t.Errorf("%s: %d, the error route's backend got %v", path, a.StatusCode, got)
		}
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
}

// Under report_only too, the secret goes no further, whatever is wrong with it. Who is let in by it
// is as elsewhere.
func TestBasicUnderReportOnly(t *testing.T) {
	g := startGateway(t, "store memory\n"+basicClients(), "oauth_server\nroute /x {\noauth_protect root {\nbasic\nreport_only\nscopes admin\nkeep_token\n}\nreverse_proxy BACKEND\n}\n"+
		"route /good {\noauth_protect root {\nbasic\nreport_only\n}\nreverse_proxy BACKEND\n}\n"+
		"route /second {\noauth_protect root {\nbasic\n}\noauth_protect root {\nreport_only\n}\nreverse_proxy BACKEND\n}\n")
	for id, secret := range map[string]string{"quick": testSecret, "slow": "x"} {
		if a := g.withBasic("/x", id, secret); a.StatusCode != 200 || a.Header["Deprecation"] != nil || a.Header["Www-Authenticate"] != nil {
			t.Errorf("%s: %d with %v", id, a.StatusCode, a.Header)
		}
		checkNoIdentity(t, g.Backend.last(t).Header, "X-Oauth-")
	}
	for _, path := range []string{"/good", "/second"} {
		a := g.withBasic(path, "quick", testSecret)
		if got := g.Backend.last(t).Header; a.StatusCode != 200 || a.Header["Deprecation"] == nil || got.Get("X-OAuth-Client-Id") != "quick" || got["Authorization"] != nil {
			t.Errorf("%s: %d with %v, the backend got %v", path, a.StatusCode, a.Header, got)
		}
	}
}
