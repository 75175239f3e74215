package caddyoauth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// hotPath is something that happens for each request, or for most.
type hotPath struct {
	name string
	// do does it once and returns the status of the answer.
	do func() int
	// status is what the status must be.
	status int
	// ready makes ready what so many calls of do will use up. It may be nil.
	ready func(calls int)
	// varies is true for what depends on how full the pages of a file are, or on when Redis answers.
	varies bool
}

const (
	// allocationCalls is how many calls one measurement has, and allocationRuns how many measurements
	// there are. The least of them counts: whatever else allocates meanwhile only adds.
	allocationCalls = 100
	allocationRuns  = 5
)

// TestAllocations compares what the hot paths allocate with what testdata/allocations.txt has
// recorded, and fails if one has grown. Time is never looked at, so a slow machine changes nothing.
//
// There must be no more objects than recorded, and three in a hundred more bytes; with a file or Redis
// as the store, two in a hundred more objects, and ten in a hundred more bytes. With another version of Go, even another patch version, an
// object and another three in a hundred are allowed, since its library may have changed. With the race
// detector, which allocates, nothing is compared.
//
// Most paths are those of our handlers alone. The last ones are those of whole requests through Caddy,
// to a backend and back: what it spends on what we add, such as more headers, shows only there. They
// come in pairs with the same request to a Caddy server without us.
//
// To record anew:
//
//	go test ./caddyoauth -run TestAllocations -update
func TestAllocations(t *testing.T) {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "-race" && s.Value == "true" {
				return
			}
		}
	}
	const file = "testdata/allocations.txt"
	var b strings.Builder
	fmt.Fprintf(&b, "# What the hot paths allocate for each request: objects, bytes. See TestAllocations.\n%s\n", runtime.Version())
	recorded, version := readAllocations(t, file)
	flags := flag.Lookup("update")
	update := flags != nil && flags.Value.String() == "true"
	less := 0
	if _, err := exec.LookPath("redis-server"); err != nil {
		maps.DeleteFunc(recorded, func(name string, _ allocation) bool { return strings.HasSuffix(name, ", redis") })
	}
	for _, p := range hotPaths(t) {
		objects, bytes := p.allocations(t)
		fmt.Fprintf(&b, "%s: %d %d\n", p.name, objects, bytes)
		was, ok := recorded[p.name]
		delete(recorded, p.name)
		switch {
		case update:
		case !ok:
			t.Errorf("%s is not recorded in %s", p.name, file)
		case objects > was.mostObjects(version, p.varies) || bytes > was.mostBytes(version, p.varies):
			t.Errorf("%s allocates %d objects and %d bytes; recorded are %d and %d", p.name, objects, bytes, was.objects, was.bytes)
		case objects < was.objects:
			less++
			t.Logf("%s allocates %d objects and %d bytes; recorded are %d and %d", p.name, objects, bytes, was.objects, was.bytes)
		}
	}
	if update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for name := range recorded {
		if runtime.GOOS == "linux" || !strings.HasPrefix(name, throughCaddy) {
			t.Errorf("%s is recorded, but not measured", name)
		}
	}
	if t.Failed() || less > 0 {
		t.Log("if that is meant, record it anew: go test ./caddyoauth -run TestAllocations -update")
	}
}

// allocation is one line of the file.
type allocation struct{ objects, bytes int }

func (a allocation) mostObjects(version string, varies bool) int {
	most := a.objects
	if varies {
		most += a.objects / 50
	}
	if version != runtime.Version() {
		most += 1 + a.objects*3/100
	}
	return most
}

func (a allocation) mostBytes(version string, varies bool) int {
	percent := 3
	if varies {
		percent = 10
	}
	if version != runtime.Version() {
		percent += 3
	}
	return a.bytes + a.bytes*percent/100
}

// readAllocations returns what is recorded, by name, and the version of Go that it was measured with.
func readAllocations(t *testing.T, file string) (map[string]allocation, string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all, version := make(map[string]allocation), ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		name, figures, found := strings.Cut(line, ": ")
		var a allocation
		switch _, err := fmt.Sscan(figures, &a.objects, &a.bytes); {
		case strings.HasPrefix(line, "#"):
		case !found && version == "":
			version = line
		case err != nil:
			t.Fatalf("%s: %q: %v", file, line, err)
		default:
			all[name] = a
		}
	}
	return all, version
}

// allocations measures one path.
func (p hotPath) allocations(t *testing.T) (objects, bytes int) {
	t.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection would empty the pools
	least, leastBytes := uint64(math.MaxUint64), uint64(math.MaxUint64)
	for run := range 1 + allocationRuns {
		if p.ready != nil {
			p.ready(allocationCalls)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range allocationCalls {
			if status := p.do(); status != p.status {
				t.Fatalf("%s: status %d, want %d", p.name, status, p.status)
			}
		}
		runtime.ReadMemStats(&after)
		if run > 0 { // the first fills the pools, and whatever is made once
			least, leastBytes = min(least, after.Mallocs-before.Mallocs), min(leastBytes, after.TotalAlloc-before.TotalAlloc)
		}
	}
	return int(least / allocationCalls), int(leastBytes / allocationCalls)
}

// hotPaths returns all paths that are compared. What makes the requests allocates as well, but always
// the same.
func hotPaths(t *testing.T) []hotPath {
	issuer, foreign, long := benchmarkIssuer(t)
	stores := []struct{ name, config string }{
		{"memory", `{"store":"memory"}`},
		{"bbolt", `{"store":"bbolt","path":` + string(mustJSON(t, filepath.Join(t.TempDir(), "tokens.db"))) + `}`},
	}
	if _, err := exec.LookPath("redis-server"); err == nil {
		stores = append(stores, struct{ name, config string }{"redis", `{"store":"redis","addresses":["` + redistest.Start(t).Addr + `"]}`})
	}
	var all []hotPath
	for _, s := range stores {
		all = append(all, hotPathsOver(t, s.name, s.config, issuer, foreign, long)...)
	}
	if runtime.GOOS == "linux" { // what connections allocate differs
		all = append(all, pathsThroughCaddy(t)...)
	}
	return all
}

func mustJSON(t *testing.T, v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// hotPathsOver returns those with one store. What does not use the store is only measured over memory.
func hotPathsOver(t *testing.T, store, config, issuer, foreign, long string) []hotPath {
	secret := oauth.GenerateSecret()
	hash, err := oauth.HashGenerated(secret)
	if err != nil {
		t.Fatal(err)
	}
	client := func(format string) *Client {
		return &Client{
			Secrets: []ClientSecret{{Hash: hash}}, Scopes: []string{"read", "write"}, DefaultScopes: []string{"read"},
			Audience: []string{"https://orders.internal"}, TokenFormat: format,
		}
	}
	clients := map[string]*Client{"opaque": client("")}
	withKeys := store != "redis" // where keys would have to be encrypted
	if withKeys {
		clients["sealed"], clients["jwt"] = client(oauth.FormatSealed), client(oauth.FormatJWT)
	}
	if store == "memory" {
		clients["bound"] = client("")
		clients["bound"].CertificateBound = true
	}
	ctx, app := benchmarkAppOver(t, config, "INFO", &Realm{
		Issuer: "https://auth.example.com/oauth2", Limits: &Limits{Failures: &Limit{Off: true}, Inquiries: &Limit{Off: true}},
		Clients: clients,
	})
	protect := func(audience []string, sources ...string) *Protect {
		p := &Protect{Scopes: []string{"read"}, Audience: audience}
		for _, s := range sources {
			p.SourcesRaw = append(p.SourcesRaw, json.RawMessage(s))
		}
		if err := p.Provision(ctx); err != nil {
			t.Fatal(err)
		}
		return p
	}
	const local = `{"source":"local"}`
	remote := `{"source":"introspect","url":"` + issuer + `/introspect","issuer":"https://issuer.example.com"}`
	signed := `{"source":"jwt","issuer":"https://issuer.example.com","jwks_uri":"` + issuer + `/keys"}`
	own := protect(nil, local)
	forAudience := protect([]string{"https://orders.internal"}, local)
	three := protect(nil, local, remote, signed)
	introspected, verified := protect(nil, remote), protect(nil, signed)
	writing := &Protect{Scopes: []string{"write"}}
	assertion := &Protect{Scopes: []string{"read"}, Assertion: &Assertion{Audience: []string{"https://orders.internal"}}}
	for _, p := range []*Protect{writing, assertion} {
		if p == assertion && !withKeys {
			continue
		}
		if err := p.Provision(ctx); err != nil {
			t.Fatal(err)
		}
	}
	server := new(Server)
	if err := server.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	if err := app.Start(); err != nil {
		t.Fatal(err)
	}

	fetch := func(client string) string {
		w := httptest.NewRecorder()
		if status := postOver(withCertificate, server, w, "/oauth2/access_token", client, secret, "grant_type=client_credentials"); status != 200 {
			t.Fatalf("status %d: %s", status, w.Body)
		}
		var answer struct {
			Token string `json:"access_token"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
			t.Fatal(err)
		}
		return answer.Token
	}
	issue := func(client, secret string) func() int {
		return func() int {
			return postTo(server, new(thrownAway), "/oauth2/access_token", client, secret, "grant_type=client_credentials")
		}
	}
	tell := func(path, client, token string) func() int {
		form := url.Values{"token": {token}}.Encode()
		return func() int { return postTo(server, new(thrownAway), path, client, secret, form) }
	}
	// fresh is a path that uses up a token in each call.
	fresh := func(name, client string, do func(token string) int) hotPath {
		var tokens []string
		return hotPath{
			name: name, status: 200,
			do: func() int {
				token := tokens[0]
				tokens = tokens[1:]
				return do(token)
			},
			ready: func(calls int) {
				tokens = nil
				for range calls {
					tokens = append(tokens, fetch(client))
				}
			},
		}
	}
	token := fetch("opaque")
	overStore := []hotPath{
		{name: "token, opaque, " + store, do: issue("opaque", secret), status: 200},
		{name: "introspection, " + store, do: tell("/oauth2/introspect", "opaque", token), status: 200},
		fresh("first use, opaque, "+store, "opaque", func(token string) int { return getFrom(own, token) }),
		fresh("revocation, "+store, "opaque", func(token string) int {
			return postTo(server, new(thrownAway), "/oauth2/token/revoke", "opaque", secret, "token="+token)
		}),
	}
	if store != "memory" {
		for i := range overStore {
			overStore[i].varies = true
		}
		return overStore
	}
	strange := token[:len(token)-1] + "." // as long as ours, but not ours
	warm := func(name string, handler caddyhttp.MiddlewareHandler, token string) hotPath {
		return hotPath{name: name, do: func() int { return getFrom(handler, token) }, status: 200}
	}
	signer, bound := fetch("jwt"), fetch("bound")
	return append(overStore,
		warm("floor, with a handler that only calls the next one", passOn{}, token),
		warm("protected, warm, opaque", own, token),
		warm("protected, warm, sealed", own, fetch("sealed")),
		warm("protected, warm, own JWT", own, signer),
		warm("protected, warm, with an audience", forAudience, token),
		warm("protected, warm, with an assertion", assertion, token),
		hotPath{name: "protected, warm, certificate-bound", do: func() int { return getOver(withCertificate, own, bound) }, status: 200},
		warm("protected, warm, introspected", introspected, strange),
		warm("protected, warm, foreign JWT", verified, foreign),
		warm("protected, warm, three sources, opaque", three, token),
		warm("protected, warm, three sources, introspected", three, strange),
		warm("protected, warm, three sources, foreign JWT", three, foreign),
		warm("protected, warm, three sources, long foreign JWT", three, long),
		warm("headers of an unprotected route", &earlyStrip{app: app}, ""),
		fresh("first use, sealed", "sealed", func(token string) int { return getFrom(own, token) }),
		fresh("first use, own JWT", "jwt", func(token string) int { return getFrom(own, token) }),
		hotPath{name: "refusal, no token", do: func() int { return getFrom(own, "") }, status: 401},
		hotPath{name: "refusal, unknown token", do: func() int { return getFrom(own, strange) }, status: 401},
		hotPath{name: "refusal, scope", do: func() int { return getFrom(writing, token) }, status: 403},
		hotPath{name: "token, sealed", do: issue("sealed", secret), status: 200},
		hotPath{name: "token, JWT", do: issue("jwt", secret), status: 200},
		hotPath{name: "failed authentication", do: issue("opaque", oauth.GenerateSecret()), status: 401},
		hotPath{name: "failed authentication, unknown client", do: issue("nobody", secret), status: 401},
		hotPath{name: "introspection, own JWT", do: tell("/oauth2/introspect", "jwt", signer), status: 200},
	)
}

// postTo posts a form with a client's credentials and returns the status of the answer.
func postTo(s *Server, w http.ResponseWriter, path, client, secret, form string) int {
	return postOver(overTLS, s, w, path, client, secret, form)
}

// postOver is postTo over a connection in this state.
func postOver(conn *tls.ConnectionState, s *Server, w http.ResponseWriter, path, client, secret, form string) int {
	r := &http.Request{
		Method: http.MethodPost, URL: &url.URL{Path: path}, Host: "gateway.example", RequestURI: path, RemoteAddr: "192.0.2.7:1234",
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, TLS: conn,
		Header:        http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
		ContentLength: int64(len(form)), Body: io.NopCloser(strings.NewReader(form)),
	}
	r.SetBasicAuth(client, secret)
	vars := context.WithValue(context.Background(), caddyhttp.VarsCtxKey, map[string]any{caddyhttp.ClientIPVarKey: "192.0.2.7"})
	vars = context.WithValue(vars, caddyhttp.ExtraLogFieldsCtxKey, new(caddyhttp.ExtraLogFields))
	return answeredWith(w, s.ServeHTTP(w, r.WithContext(vars), nothingNext))
}

// getFrom sends a request through a handler, with what Caddy makes for each request, and returns the
// status of the answer.
func getFrom(handler caddyhttp.MiddlewareHandler, token string) int {
	return getOver(overTLS, handler, token)
}

// getOver is getFrom over a connection in this state.
func getOver(conn *tls.ConnectionState, handler caddyhttp.MiddlewareHandler, token string) int {
	w := new(thrownAway)
	repl := caddy.NewReplacer()
	repl.Map(func(string) (any, bool) { return nil, false }) // as for {http.request.*}
	vars := context.WithValue(context.Background(), caddy.ReplacerCtxKey, repl)
	vars = context.WithValue(vars, caddyhttp.ExtraLogFieldsCtxKey, new(caddyhttp.ExtraLogFields))
	vars = context.WithValue(vars, caddyhttp.ServerCtxKey, emptyServer)
	r := &http.Request{
		Method: http.MethodGet, URL: &url.URL{Path: "/api/orders/17"}, Host: "gateway.example", RequestURI: "/api/orders/17",
		RemoteAddr: "192.0.2.7:1234", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, TLS: conn,
		Header: http.Header{"User-Agent": {"test"}, "Accept": {"*/*"}, "X-Request-Id": {"1"}}, Body: http.NoBody,
	}
	if token != "" {
		r.Header["Authorization"] = []string{"Bearer " + token}
	}
	return answeredWith(w, handler.ServeHTTP(w, r.WithContext(vars), nothingNext))
}

var (
	overTLS         = &tls.ConnectionState{HandshakeComplete: true}
	withCertificate = &tls.ConnectionState{
		HandshakeComplete: true, ServerName: "gateway.example", PeerCertificates: []*x509.Certificate{{Raw: make([]byte, 500)}},
	}
	emptyServer = new(caddyhttp.Server) // without access logs, as by default
	nothingNext = caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })
)

// answeredWith returns the status of an answer that a handler has written, or left to Caddy.
func answeredWith(w http.ResponseWriter, err error) int {
	var left caddyhttp.HandlerError
	switch w := w.(type) {
	case *httptest.ResponseRecorder:
		return w.Code
	case *thrownAway:
		if w.status != 0 {
			return w.status
		}
	}
	if errors.As(err, &left) {
		return left.StatusCode
	}
	if err != nil {
		return http.StatusInternalServerError
	}
	return http.StatusOK
}

// thrownAway is a response that is thrown away.
type thrownAway struct {
	header http.Header
	status int
}

func (w *thrownAway) Header() http.Header {
	if w.header == nil {
		w.header = make(http.Header)
	}
	return w.header
}

func (w *thrownAway) WriteHeader(status int) { w.status = status }

func (w *thrownAway) Write(p []byte) (int, error) { return len(p), nil }
