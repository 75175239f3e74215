package caddyoauth_test

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/go-jose/go-jose/v4"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// otlpCollector is an OpenTelemetry collector for spans, over HTTP, to which Caddy's tracing exports.
type otlpCollector struct {
	mu    sync.Mutex
	spans []*otlp.Span
}

func newOTLPCollector(t *testing.T) *otlpCollector {
	t.Helper()
	c := new(otlpCollector)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var export collector.ExportTraceServiceRequest
		body, err := io.ReadAll(r.Body)
		if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(body, &export) != nil {
			t.Errorf("%s is no export of spans", r.URL)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, resource := range export.ResourceSpans {
			for _, scope := range resource.ScopeSpans {
				c.spans = append(c.spans, scope.Spans...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(server.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	return c
}

// traces ends Caddy, which exports the last spans, and returns the trees of spans by trace ID.
func (c *otlpCollector) traces(t *testing.T) map[string]string {
	t.Helper()
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.SortFunc(c.spans, func(a, b *otlp.Span) int { return int(a.StartTimeUnixNano) - int(b.StartTimeUnixNano) })
	trees := make(map[string]string)
	var draw func(parent []byte, trace, indent string)
	draw = func(parent []byte, trace, indent string) {
		for _, s := range c.spans {
			if hex.EncodeToString(s.TraceId) == trace && string(s.ParentSpanId) == string(parent) {
				trees[trace] += indent + describeSpan(s) + "\n"
				draw(s.SpanId, trace, indent+"  ")
			}
		}
	}
	for _, s := range c.spans {
		if trace := hex.EncodeToString(s.TraceId); trees[trace] == "" {
			draw([]byte(callerSpan), trace, "")
		}
	}
	return trees
}

// callerSpan is the ID of the span in which callers send their requests.
const callerSpan = "a caller"

// describeSpan returns a span as one line: of Caddy's own the name alone.
func describeSpan(s *otlp.Span) string {
	if s.Name == "handler" {
		return s.Name
	}
	attributes := make(map[string]string)
	for _, a := range s.Attributes {
		attributes[a.Key] = a.Value.GetStringValue()
		if attributes[a.Key] == "" {
			attributes[a.Key] = fmt.Sprint(a.Value.GetIntValue())
		}
	}
	line := s.Name
	if s.Kind == otlp.Span_SPAN_KIND_CLIENT {
		line += " (client)"
	}
	if s.Status.GetCode() == otlp.Status_STATUS_CODE_ERROR {
		line += " FAILED"
	}
	for _, key := range slices.Sorted(maps.Keys(attributes)) {
		line += " " + key + "=" + attributes[key]
	}
	return line
}

// traced makes a request part of a trace with that number. The caller also sends what must not go
// along.
func traced(r *http.Request, number int, sampled string) (*http.Request, string) {
	id := fmt.Sprintf("%032x", number)
	r.Header.Set("Traceparent", "00-"+id+"-"+hex.EncodeToString([]byte(callerSpan))+"-"+sampled)
	r.Header.Set("Tracestate", "vendor=opaque")
	r.Header.Set("Baggage", "user=alice")
	return r, id
}

// heard is a server that notes the trace headers of each request by its path.
type heard struct {
	mu      sync.Mutex
	headers map[string][]http.Header
}

func (h *heard) note(r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.headers == nil {
		h.headers = make(map[string][]http.Header)
	}
	h.headers[r.URL.Path] = append(h.headers[r.URL.Path], r.Header.Clone())
}

func (h *heard) last(path string) http.Header {
	h.mu.Lock()
	defer h.mu.Unlock()
	if all := h.headers[path]; len(all) > 0 {
		return all[len(all)-1]
	}
	return http.Header{}
}

// Under Caddy's tracing, each request to an endpoint or a protected route has spans that tell what
// happened, and its trace goes along to the servers that are asked because of it. Nothing secret is
// in either.
func TestTracing(t *testing.T) {
	spans := newOTLPCollector(t)
	var other heard
	public, private, _ := ed25519.GenerateKey(nil)
	var keyID atomic.Value
	keyID.Store("one")
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		other.note(r)
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public, KeyID: keyID.Load().(string)}}})
	}))
	defer keys.Close()
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		other.note(r)
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasPrefix(r.URL.Path, "/.well-known"):
			fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":"%s/elsewhere?key=hidden"}`, server.URL, keys.URL)
		case r.PostFormValue("token") == "broken":
			w.WriteHeader(http.StatusTeapot)
		case r.PostFormValue("token") == "opaque":
			io.WriteString(w, `{"active":true,"client_id":"machine","iss":"https://other.example.com","exp":4102444800}`)
		default:
			io.WriteString(w, `{"active":false}`)
		}
	}))
	defer server.Close()
	signer := newKeyClient(t, "signer")
	g := startGateway(t, "store memory\ndpop\nissuer "+dpopIssuer+"\n"+signer.lines()+"client sealer {\nsecret_hash "+hashOf(testSecret)+"\nscopes read\ndefault_scopes read\ntoken_format sealed\n}\nrealm compat {\nam_compat\n"+testClients+"}\n"+testClients, `tracing
		oauth_server
		handle /own* {
			oauth_protect {
				scopes read
			}
			reverse_proxy BACKEND
		}
		handle /lax* {
			oauth_protect {
				on GET {
					optional
				}
				report_only
			}
			reverse_proxy BACKEND
		}
		handle /asked* {
			oauth_protect {
				source introspect `+server.URL+`/introspect?tenant=hidden
			}
			reverse_proxy BACKEND
		}
		handle /signed* {
			oauth_protect {
				source jwt `+server.URL+`
			}
			reverse_proxy BACKEND
		}`)
	waitUntil(t, "the keys have been fetched", func() bool { return other.last("/elsewhere").Get("Accept") != "" })
	if background := other.last("/elsewhere"); background.Get("Traceparent") != "" {
		t.Error("keys that no request has caused to be fetched belong to a trace")
	}
	host, port, _ := strings.Cut(strings.TrimPrefix(server.URL, "http://"), ":")
	at := func(path, port string) string {
		return "server.address=" + host + " server.port=" + port + " url.full=http://" + host + ":" + port + path
	}
	_, keysPort, _ := strings.Cut(strings.TrimPrefix(keys.URL, "http://"), ":")

	signed := func(kid string) string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: private, KeyID: kid}}, (&jose.SignerOptions{}).WithType("at+jwt"))
		if err != nil {
			t.Fatal(err)
		}
		jws, err := signer.Sign([]byte(`{"iss":"` + server.URL + `","sub":"s","client_id":"signer","exp":4102444800}`))
		if err != nil {
			t.Fatal(err)
		}
		text, _ := jws.CompactSerialize()
		return text
	}
	own, gone := g.token("reader"), g.token("reader")
	weak, sealed := g.token("writer", "write"), g.token("sealer")
	g.revoke("reader", gone)
	bearer := func(path, token string) *http.Request {
		return g.request("GET", path, "", "Authorization", "Bearer "+token)
	}
	grant := url.Values{"grant_type": {"client_credentials"}}

	var ids, wants []string
	send := func(r *http.Request, status int, want string) {
		t.Helper()
		r, id := traced(r, len(ids)+1, "01")
		if a := g.do(r); a.StatusCode != status {
			t.Errorf("%s %s: %d, want %d", r.Method, r.URL.Path, a.StatusCode, status)
		}
		ids, wants = append(ids, id), append(wants, want)
	}
	const stored = "(client) db.operation.name=%s db.system.name=memory oauth.outcome=%s\n"
	send(g.posting("/oauth2/token", "reader", testSecret, grant), 200, "handler\n"+
		"  oauth.token oauth.client_id=reader oauth.outcome=ok oauth.realm=root\n"+
		"    oauth.store put "+fmt.Sprintf(stored, "put", "ok"))
	send(g.posting("/oauth2/token", "reader", "wrong", grant), 401, "handler\n"+
		"  oauth.token oauth.cause=wrong_secret oauth.client_id=reader oauth.outcome=invalid_client oauth.realm=root\n")
	send(g.posting("/oauth2/token", "no-client", "wrong", grant), 401, "handler\n"+
		"  oauth.token oauth.cause=unknown_client oauth.outcome=invalid_client oauth.realm=root\n")
	send(g.request("GET", "/oauth2/token", ""), 405, "handler\n"+
		"  oauth.token oauth.cause=method oauth.outcome=invalid_request oauth.realm=root\n")
	send(g.posting("/oauth2/introspect", "writer", testSecret, url.Values{"token": {gone}}), 200, "handler\n"+
		"  oauth.introspect oauth.cause=revoked oauth.client_id=writer oauth.outcome=inactive oauth.realm=root\n"+
		"    oauth.store get "+fmt.Sprintf(stored, "get", "not_found"))
	send(bearer("/oauth2/realms/root/realms/compat/tokeninfo", own), 401, "handler\n"+
		"  oauth.tokeninfo oauth.cause=forged oauth.outcome=invalid_token oauth.realm=compat\n")
	send(bearer("/own", own), 200, "handler\n"+
		"  oauth.check oauth.cache=miss oauth.client_id=reader oauth.outcome=ok oauth.realm=root\n"+
		"    oauth.store get "+fmt.Sprintf(stored, "get", "ok"))
	send(bearer("/own", own), 200, "handler\n"+
		"  oauth.check oauth.cache=hit oauth.client_id=reader oauth.outcome=ok oauth.realm=root\n")
	send(bearer("/own", weak), 403, "handler\n"+
		"  oauth.check oauth.cache=miss oauth.cause=scope oauth.client_id=writer oauth.outcome=insufficient_scope oauth.realm=root\n"+
		"    oauth.store get "+fmt.Sprintf(stored, "get", "ok"))
	send(g.request("GET", "/own", ""), 401, "handler\n"+
		"  oauth.check oauth.cause=missing oauth.outcome=missing_token oauth.realm=root\n")
	send(g.request("GET", "/lax", ""), 200, "handler\n"+
		"  oauth.check oauth.outcome=anonymous oauth.realm=root\n")
	send(g.request("POST", "/lax", ""), 200, "handler\n"+
		"  oauth.check oauth.cause=missing oauth.outcome=report_only oauth.realm=root\n")
	send(g.posting("/oauth2/revoke", "reader", testSecret, url.Values{"token": {own}}), 200, "handler\n"+
		"  oauth.revoke oauth.client_id=reader oauth.outcome=ok oauth.realm=root\n"+
		"    oauth.store get "+fmt.Sprintf(stored, "get", "ok")+
		"    oauth.store revoke "+fmt.Sprintf(stored, "revoke", "ok"))
	send(g.posting("/oauth2/token", "sealer", testSecret, grant), 200, "handler\n"+
		"  oauth.token oauth.client_id=sealer oauth.outcome=ok oauth.realm=root\n")
	send(bearer("/own", sealed), 200, "handler\n"+
		"  oauth.check oauth.cache=miss oauth.client_id=sealer oauth.outcome=ok oauth.realm=root\n"+
		"    oauth.store denied "+fmt.Sprintf(stored, "denied", "ok"))
	send(g.posting("/oauth2/revoke", "sealer", testSecret, url.Values{"token": {sealed}}), 200, "handler\n"+
		"  oauth.revoke oauth.client_id=sealer oauth.outcome=ok oauth.realm=root\n"+
		"    oauth.store denied "+fmt.Sprintf(stored, "denied", "ok")+
		"    oauth.store deny "+fmt.Sprintf(stored, "deny", "ok"))

	waitUntil(t, "the client's keys are read", func() bool { return g.ask(signer.assert(nil, nil)).StatusCode == 200 })
	assertion := by(signer.assert(nil, nil), "grant_type", "client_credentials")
	send(g.posting("/oauth2/token", "", "", assertion), 200, "handler\n"+
		"  oauth.token oauth.client_id=signer oauth.outcome=ok oauth.realm=root\n"+
		"    oauth.store once "+fmt.Sprintf(stored, "once", "ok")+
		"    oauth.store put "+fmt.Sprintf(stored, "put", "ok"))

	p := newProver(t)
	nonce := g.do(g.proving("reader", p.proof("POST", dpopIssuer+"/access_token", "", nil))).Header.Get("DPoP-Nonce")
	send(g.proving("reader", p.proof("POST", dpopIssuer+"/access_token", "", withNonce(nonce))), 200, "handler\n"+
		"  oauth.token oauth.client_id=reader oauth.outcome=ok oauth.realm=root\n"+
		"    oauth.store proof "+fmt.Sprintf(stored, "proof", "ok")+
		"    oauth.store put "+fmt.Sprintf(stored, "put", "ok"))

	asking := "    oauth.source " + server.URL + "/introspect (client)"
	send(bearer("/asked", "opaque"), 200, "handler\n"+
		"  oauth.check oauth.cache=miss oauth.client_id=machine oauth.issuer=https://other.example.com oauth.outcome=ok oauth.realm=External\n"+
		asking+" http.request.method=POST http.response.status_code=200 oauth.outcome=active "+at("/introspect", port)+"\n")
	along := other.last("/introspect")
	if parts := strings.Split(along.Get("Traceparent"), "-"); len(parts) != 4 || parts[1] != ids[len(ids)-1] || parts[2] == hex.EncodeToString([]byte(callerSpan)) || parts[3] != "01" {
		t.Errorf("the introspection endpoint got the traceparent %q of trace %s", along.Get("Traceparent"), ids[len(ids)-1])
	}
	if along.Get("Tracestate") != "vendor=opaque" || along.Get("Baggage") != "" {
		t.Errorf("the introspection endpoint got the tracestate %q and the baggage %q", along.Get("Tracestate"), along.Get("Baggage"))
	}
	send(bearer("/asked", "unknown"), 401, "handler\n"+
		"  oauth.check oauth.cache=miss oauth.cause=unknown oauth.outcome=invalid_token oauth.realm=External\n"+
		asking+" http.request.method=POST http.response.status_code=200 oauth.outcome=inactive "+at("/introspect", port)+"\n")
	send(bearer("/asked", "unknown"), 401, "handler\n"+
		"  oauth.check oauth.cache=negative oauth.cause=unknown oauth.outcome=invalid_token oauth.realm=External\n")
	send(bearer("/asked", "broken"), 503, "handler\n"+
		"  oauth.check FAILED error.type=temporarily_unavailable oauth.cache=miss oauth.cause=outage oauth.outcome=temporarily_unavailable oauth.realm=External\n"+
		asking+" FAILED error.type=status http.request.method=POST http.response.status_code=418 oauth.outcome=status "+at("/introspect", port)+"\n")

	// A token with a new key makes us fetch the keys, five seconds after the last time. The issuer's
	// metadata names another host, which is not trusted with the trace.
	keyID.Store("two")
	attempts, fetching := 0, ""
	waitUntil(t, "the new key has been fetched", func() bool {
		var r *http.Request
		attempts++
		r, fetching = traced(bearer("/signed", signed("two")), 2000+attempts, "01")
		return g.do(r).StatusCode == 200
	})
	ids, wants = append(ids, fetching), append(wants, "handler\n"+
		"  oauth.check oauth.cache=miss oauth.client_id=signer oauth.issuer="+server.URL+" oauth.outcome=ok oauth.realm=External\n"+
		"    oauth.source "+server.URL+" (client) http.request.method=GET http.response.status_code=200 oauth.outcome=ok "+at("/.well-known/oauth-authorization-server", port)+"\n"+
		"    oauth.source "+server.URL+" (client) http.request.method=GET http.response.status_code=200 oauth.outcome=ok "+at("/elsewhere", keysPort)+"\n")
	if got := other.last("/.well-known/oauth-authorization-server").Get("Traceparent"); !strings.HasPrefix(got, "00-"+fetching) {
		t.Errorf("the issuer got the traceparent %q of trace %s", got, fetching)
	}
	if got := other.last("/elsewhere"); got.Get("Traceparent")+got.Get("Tracestate") != "" {
		t.Errorf("a host that only a document names got %v", got)
	}

	// A trace that is not sampled has no spans, and goes along so that others know that.
	r, unsampled := traced(bearer("/asked", "another"), 1000, "00")
	g.do(r)
	if got := other.last("/introspect").Get("Traceparent"); !strings.HasPrefix(got, "00-"+unsampled) || !strings.HasSuffix(got, "-00") {
		t.Errorf("the traceparent of a trace that is not sampled goes along as %q", got)
	}

	trees := spans.traces(t)
	if trees[unsampled] != "" {
		t.Errorf("a trace that is not sampled has the spans\n%s", trees[unsampled])
	}
	for i, want := range wants {
		if trees[ids[i]] != want {
			t.Errorf("trace %d has the spans\n%swant\n%s", i+1, trees[ids[i]], want)
		}
	}
	// The manual names every span and attribute, and none that don't exist.
	_, section, _ := strings.Cut(readDocument(t, "docs/operations.md"), "\n### Tracing\n")
	section, _, _ = strings.Cut(section, "\n### ")
	exist := make(map[string]bool)
	for _, s := range spans.spans {
		if strings.HasPrefix(s.Name, "oauth.source ") {
			exist["oauth.source"] = true
		} else if s.Name != "handler" {
			exist[s.Name] = true
		}
		for _, a := range s.Attributes {
			exist[a.Key] = exist[a.Key] || s.Name != "handler"
		}
	}
	named := make(map[string]bool)
	for _, m := range regexp.MustCompile("`((?:oauth|db|http|server|url|error)\\.[a-z. _]+)`").FindAllStringSubmatch(section, -1) {
		named[m[1]] = true
		if !exist[m[1]] {
			t.Errorf("docs/operations.md names %s, which no span has", m[1])
		}
	}
	for name, ours := range exist {
		if ours && !named[name] {
			t.Errorf("docs/operations.md does not name %s", name)
		}
	}

	var all strings.Builder
	for _, s := range spans.spans {
		fmt.Fprintln(&all, s.Name, s.Attributes, s.Events, s.Status) // without IDs, which may spell anything
	}
	for _, secret := range []string{own, gone, weak, testSecret, "hidden", "wrong", "no-client", "opaque", "broken"} {
		if strings.Contains(strings.NewReplacer("wrong_secret", "", "vendor=opaque", "").Replace(all.String()), secret) {
			t.Errorf("a span holds %q", secret)
		}
	}
}

// Requests that need the same answer share one question. It belongs to the trace of the first, even
// if that caller goes away.
func TestTracingOfSharedQuestions(t *testing.T) {
	spans := newOTLPCollector(t)
	asked, answer := make(chan string, 10), make(chan struct{})
	goesOn := sync.OnceFunc(func() { close(answer) })
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Header.Get("Traceparent")
		<-answer
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"active":true,"client_id":"machine","exp":4102444800}`)
	}))
	defer server.Close()
	var callers sync.WaitGroup
	defer callers.Wait()
	defer goesOn()
	g := startGateway(t, "", "tracing\nhandle /metrics {\nmetrics\n}\nhandle {\noauth_protect {\nsource introspect "+server.URL+"\n}\nreverse_proxy BACKEND\n}")
	misses := g.metric("caddy_oauth_cache_misses_total")
	const canceled = `caddy_oauth_bearer_checks_total{cause="canceled",realm="External",result="canceled"}`
	gone := g.metricOf(canceled)
	send := func(ctx context.Context, number, want int) string {
		r, id := traced(g.request("GET", "/x", "", "Authorization", "Bearer token"), number, "01")
		callers.Go(func() {
			if a, err := g.try(r.WithContext(ctx)); err == nil && a.StatusCode != want || err != nil && want != 0 {
				t.Errorf("caller %d: %v, %v", number, a.Response, err)
			}
		})
		return id
	}
	hasty, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	first := send(hasty, 1, 0)
	if along := <-asked; !strings.HasPrefix(along, "00-"+first) {
		t.Errorf("the question has the traceparent %q, want trace %s", along, first)
	}
	second := send(t.Context(), 2, 200)
	waitUntil(t, "both callers wait", func() bool { return g.metric("caddy_oauth_cache_misses_total") == misses+2 })
	hangUp()
	waitUntil(t, "the first one has gone away", func() bool { return g.metricOf(canceled) == gone+1 })
	goesOn()
	callers.Wait()
	trees := spans.traces(t)
	for id, want := range map[string][]string{
		first:  {"oauth.check oauth.cache=miss oauth.cause=canceled", "oauth.source ", "oauth.outcome=active"},
		second: {"oauth.check oauth.cache=miss oauth.client_id=machine oauth.outcome=ok"},
	} {
		for _, part := range want {
			if !strings.Contains(trees[id], part) {
				t.Errorf("trace %s has the spans\n%swithout %s", id, trees[id], part)
			}
		}
	}
	if strings.Contains(trees[second], "oauth.source") || strings.Contains(trees[first], "FAILED") {
		t.Errorf("the spans are\n%sand\n%s", trees[first], trees[second])
	}
}

// A span names the store that it is about.
func TestTracingNamesTheStore(t *testing.T) {
	for _, v := range variants(t) {
		if v.cache != "" || v.format != "opaque" {
			continue
		}
		t.Run(v.store, func(t *testing.T) {
			spans := newOTLPCollector(t)
			g := startGateway(t, v.options(t)+testClients, "tracing\noauth_server")
			var id string
			number := 0
			g.inTime(func() answer {
				var r *http.Request
				number++
				r, id = traced(g.posting("/oauth2/token", "reader", testSecret, url.Values{"grant_type": {"client_credentials"}}), number, "01")
				return g.do(r)
			})
			if tree := spans.traces(t)[id]; !strings.Contains(tree, "oauth.store put (client) db.operation.name=put db.system.name="+v.store+" oauth.outcome=ok") {
				t.Errorf("the spans are\n%s", tree)
			}
		})
	}
}
