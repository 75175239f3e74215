package caddyoauth_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// foreign is another authorization server: an introspection endpoint, and an issuer of JWTs with
// its keys. It can be unreachable, and it can ask to be left alone for a minute.
type foreign struct {
	*httptest.Server
	asked, fetched atomic.Int64
	away, busy     atomic.Bool
	reached        atomic.Pointer[context.CancelFunc] // called by each request, if it is set
	mu             sync.Mutex
	tokens         map[string]string // the answer about each token
	key            ed25519.PrivateKey
	kid            string
}

func newForeign(t testing.TB) *foreign {
	t.Helper()
	f := &foreign{tokens: make(map[string]string)}
	f.rotate("one")
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f.away.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		if f.busy.Load() {
			w.Header().Set("Retry-After", "60")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		if reached := f.reached.Load(); reached != nil {
			(*reached)()
		}
		w.Header().Set("Content-Type", "application/json")
		f.mu.Lock()
		defer f.mu.Unlock()
		if r.URL.Path == "/keys" {
			f.fetched.Add(1)
			json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: f.key.Public(), KeyID: f.kid, Algorithm: "EdDSA", Use: "sig"}}})
			return
		}
		f.asked.Add(1)
		answer, ok := f.tokens[r.PostFormValue("token")]
		if id, secret, _ := r.BasicAuth(); id != "gateway" || secret != leakedSecret {
			w.WriteHeader(http.StatusUnauthorized)
		} else if ok {
			io.WriteString(w, answer)
		} else {
			io.WriteString(w, `{"active":false}`)
		}
	}))
	t.Cleanup(f.Close)
	t.Setenv("OAUTH_TEST_SECRET", leakedSecret)
	return f
}

func (f *foreign) rotate(kid string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, f.key, _ = ed25519.GenerateKey(rand.Reader)
	f.kid = kid
}

// knows makes the introspection endpoint know a token.
func (f *foreign) knows(token, answer string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tokens[token] = answer
}

// signs returns a signed JWT with these claims.
func (f *foreign) signs(t testing.TB, claims string) string {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: f.key, KeyID: f.kid}}, (&jose.SignerOptions{}).WithType("at+jwt"))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign([]byte(claims))
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// jwt returns a valid JWT of the issuer https://issuer.example.com.
func (f *foreign) jwt(t testing.TB, more string) string {
	return f.signs(t, fmt.Sprintf(`{"iss":"https://issuer.example.com","aud":"api","sub":"machine","client_id":"signed","exp":%d%s}`, time.Now().Add(time.Hour).Unix(), more))
}

// sources returns the lines of a route that accepts all three kinds of tokens.
func (f *foreign) sources(more string) string {
	return "source local\n" + f.introspect(more) + f.jwtSource()
}

func (f *foreign) introspect(more string) string {
	return "source introspect " + f.URL + "/introspect {\nclient_id gateway\nclient_secret {env.OAUTH_TEST_SECRET}\n" + more + "\n}\n"
}

func (f *foreign) jwtSource() string {
	return "source jwt https://issuer.example.com {\njwks_uri " + f.URL + "/keys\naudience api\n}\n"
}

const activeForeign = `{"active":true,"exp":4102444800,"client_id":"remote","sub":"robot","scope":"read write","iss":"https://as.example.com","groups":["staff","night"],"level":3}`

// One route accepts three kinds of tokens and tells them apart.
func TestSources(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			f := newForeign(t)
			f.knows("opaque", activeForeign)
			g := startGateway(t, v.options(t)+testClients, "oauth_server\noauth_protect {\n"+f.sources("")+
				"}\nrequest_header X-Groups {http.auth.user.groups}\nrequest_header X-Level {http.auth.user.level}\nrequest_header X-None {http.auth.user.nothing}\nreverse_proxy BACKEND")
			for _, c := range []struct{ name, token, client, subject, scope, realm, issuer, groups, level string }{
				{"local", g.token("reader"), "reader", "reader", "read", "root", "", "", ""},
				{"introspected", "opaque", "remote", "robot", "read write", "", "https://as.example.com", "staff,night", "3"},
				{"signed", f.jwt(t, `,"scope":"read","groups":["a"],"level":true`), "signed", "machine", "read", "", "https://issuer.example.com", "a", "true"},
			} {
				for range 2 { // the second time from the cache
					r := g.request("GET", "/x", "", "Authorization", "Bearer "+c.token, "X-OAuth-Issuer", "spoofed", "X-OAuth-Realm", "spoofed")
					if a := g.inTime(func() answer { return g.do(r) }); a.StatusCode != 200 {
						t.Fatalf("%s: %d, challenge %q", c.name, a.StatusCode, a.Header.Get("WWW-Authenticate"))
					}
					h := g.Backend.last(t).Header
					got := []string{h.Get("X-OAuth-Client-Id"), h.Get("X-OAuth-Subject"), h.Get("X-OAuth-Scope"), h.Get("X-OAuth-Realm"), h.Get("X-OAuth-Issuer"), h.Get("X-Groups"), h.Get("X-Level"), h.Get("X-None")}
					want := []string{c.client, c.subject, c.scope, c.realm, c.issuer, c.groups, c.level, ""}
					if strings.Join(got, "|") != strings.Join(want, "|") {
						t.Errorf("%s: the backend was told %q, want %q", c.name, got, want)
					}
				}
			}
			if n := f.asked.Load(); v.cache == "" && n != 1 {
				t.Errorf("the endpoint was asked %d times, want 1, since the other tokens are not for it", n)
			}
			for name, token := range map[string]string{
				"made up": "made-up", "in our form": "coa_" + strings.Repeat("A", 60), "signed by nobody": f.jwt(t, "") + "x",
				"of another issuer": f.signs(t, `{"iss":"https://other.example.com","aud":"api","exp":4102444800}`),
				"for somebody else": f.signs(t, `{"iss":"https://issuer.example.com","aud":"other","exp":4102444800}`),
			} {
				if a := g.getInTime("/x", token); a.StatusCode != 401 || !strings.Contains(a.Header.Get("WWW-Authenticate"), `error="invalid_token"`) {
					t.Errorf("%s: %d, challenge %q", name, a.StatusCode, a.Header.Get("WWW-Authenticate"))
				}
			}
		})
	}
}

// An outage of one source affects no token of another. Its own get 503.
func TestOutageOfOneSource(t *testing.T) {
	f := newForeign(t)
	f.knows("opaque", activeForeign)
	signer := newForeign(t)
	signer.away.Store(true) // from the start
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect {\nsource local\n"+f.introspect("")+signer.jwtSource()+"}\nreverse_proxy BACKEND")
	expect := func(what, token string, want int) {
		t.Helper()
		a := g.get("/x", token)
		if a.StatusCode != want || want == 503 && a.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %d, Retry-After %q; want %d", what, a.StatusCode, a.Header.Get("Retry-After"), want)
		}
	}
	local, signed := g.token("reader"), signer.jwt(t, "")
	expect("local, without the keys", local, 200)
	expect("introspected, without the keys", "opaque", 200)
	expect("signed, without the keys", signed, 503)
	expect("made up, without the keys", "made-up", 401)

	f.away.Store(true)
	expect("local, without the endpoint", local, 200)
	expect("introspected before, without the endpoint", "opaque", 200) // from the cache
	f.knows("another", activeForeign)
	expect("another, without the endpoint", "another", 503)
	expect("introspected before, made up, without the endpoint", "made-up", 401) // the endpoint has said no
	expect("made up, without the endpoint", "made-up-too", 503)                  // nobody knows
	for range 10 {                                                               // the circuit opens
		g.get("/x", "another")
	}
	expect("local, the circuit is open", local, 200)

	signer.away.Store(false)
	deadline := time.Now().Add(20 * time.Second)
	for g.get("/x", signed).StatusCode != 200 {
		if time.Now().After(deadline) {
			t.Fatal("the keys are back, but the token is not valid")
		}
		time.Sleep(50 * time.Millisecond)
	}
	// A reload does not forget the keys, although they can't be fetched.
	signer.away.Store(true)
	if err := g.load("store memory\n"+testClients, "oauth_server\nroute /new {\nrespond new\n}\noauth_protect {\nsource local\n"+f.introspect("")+signer.jwtSource()+"}\nreverse_proxy BACKEND"); err != nil {
		t.Fatal(err)
	}
	expect("signed, after a reload", signed, 200)
	expect("signed by the same key, after a reload", signer.jwt(t, `,"jti":"2"`), 200)
	f.away.Store(false)
	for deadline := time.Now().Add(20 * time.Second); g.get("/x", "another").StatusCode != 200; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the endpoint is back, but the circuit does not close")
		}
	}
}

// Rules on claims hold for a route, whatever source a token is from.
func TestClaimRules(t *testing.T) {
	f := newForeign(t)
	f.knows("staff", activeForeign)
	f.knows("guest", `{"active":true,"client_id":"guest","groups":["guests"]}`)
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect {\n"+f.sources("")+"claim groups staff admins\nclaim realm.level 3 4\n}\nreverse_proxy BACKEND")
	f.knows("both", `{"active":true,"client_id":"both","groups":"admins","realm":{"level":4}}`)
	for token, want := range map[string]int{
		"staff": 403, "guest": 403, "both": 200, g.token("reader"): 403,
		f.jwt(t, `,"groups":["x","staff"],"realm":{"level":["3"]}`): 200,
		f.jwt(t, `,"groups":["staf"],"realm":{"level":3}`):          403,
		f.jwt(t, `,"groups":{"staff":{}},"realm":{"level":3}`):      200,
		f.jwt(t, `,"groups":{"staff":false},"realm":{"level":3}`):   403,
		f.jwt(t, `,"groups":[{"staff":true}],"realm":{"level":3}`):  403,
		f.jwt(t, `,"groups":["admins"],"realm.level":3`):            200,
	} {
		a := g.get("/x", token)
		if a.StatusCode != want {
			t.Errorf("%.30s: %d, want %d", token, a.StatusCode, want)
		}
		if want == 403 && a.Header.Get("WWW-Authenticate") != `Bearer realm="root", error="insufficient_scope", error_description="the token lacks a claim"` {
			t.Errorf("challenge %q", a.Header.Get("WWW-Authenticate"))
		}
	}
}

// Placeholders, like rules, find claims whose names contain dots, and the names in an object.
func TestClaimsWithDots(t *testing.T) {
	f := newForeign(t)
	const members = `"client_id":"a","exp":4102444800,"kubernetes.io":{"serviceaccount":{"name":"loader"}},"resource_access":{"com.example.orders":{"roles":["writer","reader"]}},` +
		`"https://example.com/app_metadata":{"tier":"gold"},"urn:zitadel:iam:org:project:roles":{"admin":{"1":"x"},"gone":null}`
	f.knows("opaque", `{"active":true,`+members+`}`)
	names := map[string]string{
		"kubernetes.io.serviceaccount.name": "loader", "resource_access.com.example.orders.roles": "writer,reader",
		"https://example.com/app_metadata.tier": "gold", "urn:zitadel:iam:org:project:roles": "admin", "kubernetes.io.serviceaccount.uid": "",
	}
	rules, headers := "", ""
	for i, name := range slices.Sorted(maps.Keys(names)) {
		headers += fmt.Sprintf("request_header X-%d {http.auth.user.%s}\n", i, name)
		if value, _, _ := strings.Cut(names[name], ","); value != "" {
			rules += "claim " + name + " other " + value + "\n"
		}
	}
	g := startGateway(t, "", "oauth_protect {\n"+f.introspect("")+f.jwtSource()+rules+"}\n"+headers+"reverse_proxy BACKEND")
	for _, token := range []string{"opaque", f.signs(t, `{"iss":"https://issuer.example.com","aud":"api",`+members+`}`)} {
		if a := g.get("/x", token); a.StatusCode != 200 {
			t.Fatalf("%.10s: %d", token, a.StatusCode)
		}
		for i, name := range slices.Sorted(maps.Keys(names)) {
			if got := g.Backend.last(t).Header.Get(fmt.Sprint("X-", i)); got != names[name] {
				t.Errorf("%.10s: %s is %q, want %q", token, name, got, names[name])
			}
		}
	}
}

// Each source can say which claims hold the client and the scopes of its tokens. Routes that say
// different things read the same token differently.
func TestChosenClaims(t *testing.T) {
	f := newForeign(t)
	const members = `"sub":"robot","client_id":"id","azp":"id","app":{"v1.0":"orders"},"scope":"read","roles":["Orders.Read"],"exp":4102444800`
	f.knows("opaque", `{"active":true,`+members+`}`)
	signed := f.signs(t, `{"iss":"https://issuer.example.com","aud":"api",`+members+`}`)
	plain := "source introspect " + f.URL + "/introspect {\nclient_id gateway\nclient_secret {env.OAUTH_TEST_SECRET}\n"
	jwt := "source jwt https://issuer.example.com {\njwks_uri " + f.URL + "/keys\n"
	const chosen = "client_claim app.v1.0 sub\nscope_claim roles\n"
	const rule = "scopes Orders.Read\nclaim client_id orders\nclaim scope Orders.Read\n"
	g := startGateway(t, "", "oauth_protect /chosen/* {\n"+plain+chosen+"}\n"+jwt+chosen+"}\n"+rule+"}\n"+
		"oauth_protect /default/* {\n"+plain+"}\n"+jwt+"}\n}\n@orders oauth_scope Orders.Read\nrequest_header @orders X-May orders\n"+
		"request_header X-Said \"{http.auth.user.id} {http.auth.user.scope}\"\nreverse_proxy BACKEND")
	for _, token := range []string{"opaque", signed} {
		for range 2 { // the second time from the cache
			for path, want := range map[string]string{"/chosen/x": "orders|Orders.Read|orders|orders Orders.Read", "/default/x": "id|read||id read"} {
				if a := g.get(path, token); a.StatusCode != 200 {
					t.Fatalf("%s with %.10s: %d", path, token, a.StatusCode)
				}
				h := g.Backend.last(t).Header
				if got := h.Get("X-OAuth-Client-Id") + "|" + h.Get("X-OAuth-Scope") + "|" + h.Get("X-May") + "|" + h.Get("X-Said"); got != want {
					t.Errorf("%s with %.10s: the backend was told %q, want %q", path, token, got, want)
				}
			}
		}
	}
	f.knows("two", `{"active":true,"client_id":"a","azp":"b"}`)
	if a := g.get("/default/x", "two"); a.StatusCode == 200 {
		t.Error("a token that names two clients passes")
	}
}

// The facts about a foreign token are fetched once for all routes. Each route decides for itself.
func TestForeignFactsAreSharedAndDecisionsAreNot(t *testing.T) {
	f := newForeign(t)
	f.knows("opaque", activeForeign)
	route := func(path, rule string) string {
		return "route " + path + " {\noauth_protect {\n" + f.introspect("") + rule + "\n}\nreverse_proxy BACKEND\n}\n"
	}
	g := startGateway(t, "cache {\nmax_age 60s\n}", route("/read", "scopes read")+route("/admin", "scopes admin")+route("/aud", "audience api")+route("/claim", "claim groups day"))
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			r, _ := http.NewRequest("GET", g.URL+"/read", nil)
			r.Header.Set("Authorization", "Bearer opaque")
			res, err := g.Client.Do(r)
			if err != nil || res.StatusCode != 200 {
				t.Errorf("%v, %v", res, err)
				return
			}
			res.Body.Close()
		})
	}
	all.Wait()
	for path, want := range map[string]int{"/read": 200, "/admin": 403, "/aud": 401, "/claim": 403} {
		if a := g.get(path, "opaque"); a.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, a.StatusCode, want)
		}
	}
	if n := f.asked.Load(); n != 1 {
		t.Errorf("the endpoint was asked %d times, want 1", n)
	}
}

// What another server says about a client must not become another header, nor be expanded as a
// placeholder.
func TestForeignNamesThatBreakHeaders(t *testing.T) {
	f := newForeign(t)
	f.knows("crlf", `{"active":true,"client_id":"a\r\nX-Admin: 1"}`)
	f.knows("nul", `{"active":true,"sub":"a\u0000b"}`)
	f.knows("placeholder", `{"active":true,"client_id":"{env.OAUTH_TEST_SECRET}","sub":"{http.request.header.Authorization}","team":"{env.OAUTH_TEST_SECRET}"}`)
	g := startGateway(t, "", "oauth_protect {\n"+f.introspect("")+"}\nrequest_header X-Team {http.auth.user.team}\nreverse_proxy BACKEND")
	for _, token := range []string{"crlf", "nul"} {
		if a := g.get("/x", token); a.StatusCode != 401 {
			t.Errorf("%s: %d", token, a.StatusCode)
		}
	}
	if g.Backend.count() != 0 {
		t.Error("they reached the backend")
	}
	if a := g.get("/x", "placeholder"); a.StatusCode != 200 {
		t.Fatalf("placeholder: %d", a.StatusCode)
	}
	h := g.Backend.last(t).Header
	if h.Get("X-OAuth-Client-Id") != "{env.OAUTH_TEST_SECRET}" || h.Get("X-OAuth-Subject") != "{http.request.header.Authorization}" || h.Get("X-Team") != "{env.OAUTH_TEST_SECRET}" {
		t.Errorf("the backend was told %v", h)
	}
}

// serve_stale bridges an outage, within its limits.
func TestServeStaleRoute(t *testing.T) {
	f := newForeign(t)
	f.knows("opaque", activeForeign)
	g := startGateway(t, "", "route /a {\noauth_protect {\n"+f.introspect("max_age 100ms\nserve_stale 1h")+"}\nreverse_proxy BACKEND\n}\nroute /b {\noauth_protect {\nmax_age 50ms\n"+f.introspect("max_age 100ms\nserve_stale 1h")+"}\nreverse_proxy BACKEND\n}\n")
	if a := g.get("/a", "opaque"); a.StatusCode != 200 {
		t.Fatal(a.StatusCode)
	}
	f.away.Store(true)
	time.Sleep(150 * time.Millisecond)
	if a := g.get("/a", "opaque"); a.StatusCode != 200 {
		t.Errorf("during the outage: %d", a.StatusCode)
	}
	if a := g.get("/b", "opaque"); a.StatusCode != 503 {
		t.Errorf("on a route with its own max_age: %d", a.StatusCode)
	}
	if a := g.get("/a", "never-seen"); a.StatusCode != 503 {
		t.Errorf("a token never seen: %d", a.StatusCode)
	}
}

// Without a realm that issues tokens, there is no store.
func TestForeignTokensNeedNoStore(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_DATA_HOME", dir)
	f := newForeign(t)
	f.knows("opaque", activeForeign)
	g := startGateway(t, "", "oauth_protect {\n"+f.introspect("")+"}\nreverse_proxy BACKEND")
	if a := g.get("/x", "opaque"); a.StatusCode != 200 {
		t.Errorf("%d", a.StatusCode)
	}
	if a := g.get("/x", ""); a.Header.Get("WWW-Authenticate") != `Bearer realm="External"` {
		t.Errorf("challenge %q", a.Header.Get("WWW-Authenticate"))
	}
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".db") {
			t.Errorf("%s was created", path)
		}
		return nil
	})
	// It is opened when it is needed, and closed.
	if err := g.load("store memory\n"+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND"); err != nil {
		t.Fatal(err)
	}
	if a := g.get("/x", g.token("reader")); a.StatusCode != 200 {
		t.Errorf("with a realm: %d", a.StatusCode)
	}
	if err := g.load("", "oauth_protect {\n"+f.introspect("")+"}\nreverse_proxy BACKEND"); err != nil {
		t.Fatal(err)
	}
	if a := g.get("/x", "opaque"); a.StatusCode != 200 {
		t.Errorf("without a realm again: %d", a.StatusCode)
	}
}

// POST /oauth/forget on the admin endpoint makes the gateway ask again at once.
func TestForget(t *testing.T) {
	admin := porttest.Address(t)
	f := newForeign(t)
	for _, token := range []string{"a1", "a2", "b1"} {
		f.knows(token, `{"active":true,"client_id":"`+token[:1]+`"}`)
	}
	g := startCaddyfile(t, strings.Replace(caddyfileOf("store memory\n"+testClients, "oauth_server\noauth_protect {\n"+f.sources("")+"}\nreverse_proxy BACKEND"), "admin off", "admin "+admin, 1))
	forget := func(want int, body string, change ...func(*http.Request)) string {
		t.Helper()
		r, _ := http.NewRequest("POST", "http://"+admin+"/oauth/forget", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		for _, c := range change {
			c(r)
		}
		a := g.do(r)
		if a.StatusCode != want {
			t.Errorf("%s: %d %s, want %d", body, a.StatusCode, a.Body, want)
		}
		return a.Body
	}
	local := g.token("reader")
	warm := func() {
		t.Helper()
		for _, token := range []string{"a1", "a2", "b1", local} {
			g.warm("/x", token)
		}
	}
	// pass returns the tokens that are let in.
	pass := func() string {
		var still []string
		for _, token := range []string{"a1", "a2", "b1"} {
			if g.get("/x", token).StatusCode == 200 {
				still = append(still, token)
			}
		}
		return strings.Join(still, " ")
	}
	warm()
	answers := f.tokens
	// gone makes the other server forget all tokens, and back makes it know them again.
	gone := func() { f.mu.Lock(); f.tokens = map[string]string{}; f.mu.Unlock() }
	back := func() {
		f.mu.Lock()
		f.tokens = answers
		f.mu.Unlock()
		forget(200, `{"source":"`+f.URL+`/introspect"}`)
		warm()
	}
	gone()
	if got := pass(); got != "a1 a2 b1" {
		t.Fatalf("from the cache, %q pass", got)
	}
	forget(200, `{"token":"a1"}`)
	if got := pass(); got != "a2 b1" {
		t.Errorf("after forgetting a token, %q pass", got)
	}
	back()
	gone()
	forget(200, `{"client_id":"a","source":"`+f.URL+`/introspect"}`)
	if got := pass(); got != "b1" {
		t.Errorf("after forgetting a client, %q pass", got)
	}
	back()
	gone()
	forget(200, `{"source":"root"}`)
	if got := pass(); got != "a1 a2 b1" {
		t.Errorf("after forgetting another source, %q pass", got)
	}
	forget(200, `{"source":"`+f.URL+`/introspect"}`)
	if got := pass(); got != "" {
		t.Errorf("after forgetting the source, %q pass", got)
	}
	if a := g.get("/x", local); a.StatusCode != 200 {
		t.Errorf("a forgotten token that was issued here: %d", a.StatusCode)
	}

	for _, body := range []string{``, `{}`, `[]`, `{"token":""}`, `{"token":1}`, `{"Token":"x","secret":"y"}`, `{"token":"canary-token","client_id":"a"}`, `{"source":"root"}{}`, `null`} {
		if answer := forget(400, body); strings.Contains(answer, "canary-token") {
			t.Errorf("the answer contains the token: %s", answer)
		}
	}
	forget(400, `{"token":"`+strings.Repeat("x", 65<<10)+`"}`)
	if answer := forget(404, `{"source":"nowhere"}`); !strings.Contains(answer, f.URL) || !strings.Contains(answer, "root") {
		t.Errorf("the answer for an unknown source is %s", answer)
	}
	forget(405, ``, func(r *http.Request) { r.Method = "GET" })
	forget(415, `{"source":"root"}`, func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") })
	forget(415, url.Values{"source": {"root"}}.Encode(), func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") })
	forget(403, `{"source":"root"}`, func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") })
}

// A withdrawn key ends the tokens that it signed, cached ones included.
func TestWithdrawnKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys.json")
	f := newForeign(t)
	publish := func() {
		t.Helper()
		set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: f.key.Public(), KeyID: f.kid, Algorithm: "EdDSA"}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file+".new", set, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	publish()
	g := startGateway(t, "", "oauth_protect {\nsource jwt https://issuer.example.com {\njwks_file "+file+"\n}\n}\nreverse_proxy BACKEND")
	token := f.jwt(t, "")
	eventuallyAnswers(t, g, token, 200)
	f.rotate("two")
	publish()
	eventuallyAnswers(t, g, f.jwt(t, ""), 200)
	if a := g.get("/x", token); a.StatusCode != 401 {
		t.Errorf("the token of a withdrawn key: %d", a.StatusCode)
	}
}

// eventuallyAnswers waits until a request with token gets the status want.
func eventuallyAnswers(t *testing.T, g *gateway, token string, want int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		a := g.get("/x", token)
		if a.StatusCode == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still %d, want %d", a.StatusCode, want)
		}
	}
}

// Routes that accept different tokens of one issuer share its keys. So do reloads that change what
// is accepted, even while the issuer is unreachable.
func TestKeysOutliveWhatARouteAccepts(t *testing.T) {
	f := newForeign(t)
	source := func(more string) string {
		return "source jwt https://issuer.example.com {\njwks_uri " + f.URL + "/keys\n" + more + "\n}\n"
	}
	var routes strings.Builder
	for i := range 30 {
		fmt.Fprintf(&routes, "route /%d {\noauth_protect {\n%s}\nreverse_proxy BACKEND\n}\n", i, source(fmt.Sprintf("audience api app-%d", i)))
	}
	g := startGateway(t, "", routes.String())
	for i := range 30 {
		if a := g.get(fmt.Sprint("/", i), f.jwt(t, "")); a.StatusCode != 200 {
			t.Fatalf("route %d: %d", i, a.StatusCode)
		}
	}
	if n := f.fetched.Load(); n != 1 {
		t.Errorf("30 routes fetched the issuer's keys %d times", n)
	}

	f.away.Store(true)
	for _, more := range []string{
		"audience api other", "audience api", "audience api\nleeway 5s", "audience api\ntyp any", "audience api\nalgorithms EdDSA ES256",
		"audience api\nrefresh_interval 10m", "audience api\nmax_age 5s",
	} {
		if err := g.load("", "oauth_protect {\n"+source(more)+"}\nreverse_proxy BACKEND"); err != nil {
			t.Fatal(err)
		}
		if a := g.get("/x", f.jwt(t, fmt.Sprintf(`,"jti":%q`, more))); a.StatusCode != 200 {
			t.Errorf("without the issuer, after a reload to %q: %d", more, a.StatusCode)
		}
	}
	// What one configuration accepts is not remembered for another that doesn't.
	token := f.jwt(t, "")
	if a := g.get("/x", token); a.StatusCode != 200 {
		t.Fatal(a.StatusCode)
	}
	for more, want := range map[string]int{"audience other": 401, "audience api\nalgorithms ES256": 401} {
		if err := g.load("", "oauth_protect {\n"+source(more)+"}\nreverse_proxy BACKEND"); err != nil {
			t.Fatal(err)
		}
		if a := g.get("/x", token); a.StatusCode != want {
			t.Errorf("after a reload to %q: %d, want %d", more, a.StatusCode, want)
		}
	}
}

// If a route has several sources for one issuer, each of them is tried, and no other source.
func TestSeveralSourcesOfOneIssuer(t *testing.T) {
	f := newForeign(t)
	source := func(more string) string {
		return "source jwt https://issuer.example.com {\njwks_uri " + f.URL + "/keys\n" + more + "\n}\n"
	}
	g := startGateway(t, "", "oauth_protect {\n"+source("audience app-a")+f.introspect("")+source("audience app-b\ntyp any")+source("audience app-c\nalgorithms ES256")+
		"source jwt https://other.example.com {\njwks_uri "+f.URL+"/keys\n}\n}\nreverse_proxy BACKEND")
	token := func(audience string) string {
		return f.signs(t, `{"iss":"https://issuer.example.com","aud":"`+audience+`","client_id":"`+audience+`","exp":4102444800}`)
	}
	for range 2 { // the second time from the cache
		for audience, want := range map[string]int{"app-a": 200, "app-b": 200, "app-c": 401, "app-d": 401} {
			if a := g.get("/x", token(audience)); a.StatusCode != want {
				t.Errorf("%s: %d, want %d", audience, a.StatusCode, want)
			}
		}
	}
	if a := g.get("/x", token("app-b")); a.StatusCode != 200 || g.Backend.last(t).Header.Get("X-OAuth-Client-Id") != "app-b" {
		t.Errorf("app-b: %d", a.StatusCode)
	}
	f.knows(token("app-d"), activeForeign)
	if a := g.get("/x", token("app-d")); a.StatusCode != 401 || f.asked.Load() != 0 {
		t.Errorf("a token of the issuer for no source's audience: %d, and the introspection endpoint was asked %d times", a.StatusCode, f.asked.Load())
	}
}

// Some servers write an empty list if no audience was asked for. Such a token has none.
func TestEmptyAudience(t *testing.T) {
	f := newForeign(t)
	f.knows("opaque", `{"active":true,"exp":4102444800,"client_id":"remote","aud":[]}`)
	jwt := f.signs(t, `{"iss":"https://issuer.example.com","aud":[],"client_id":"signed","exp":4102444800}`)
	sources := f.introspect("") + "source jwt https://issuer.example.com {\njwks_uri " + f.URL + "/keys\n}\n"
	g := startGateway(t, "", "route /any {\noauth_protect {\n"+sources+"}\nreverse_proxy BACKEND\n}\nroute /api {\noauth_protect {\naudience api\n"+sources+"}\nreverse_proxy BACKEND\n}\n")
	for name, token := range map[string]string{"introspected": "opaque", "signed": jwt} {
		for path, want := range map[string]int{"/any": 200, "/api": 401} {
			if a := g.get(path, token); a.StatusCode != want {
				t.Errorf("%s at %s: %d, want %d", name, path, a.StatusCode, want)
			}
		}
	}
}
