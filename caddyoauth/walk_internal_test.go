package caddyoauth

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/introspect"
)

// asked is a configuration that has started, except that nothing listens, and its policy.
type asked struct {
	ctx    caddy.Context
	app    *App
	policy *policy
}

// startAsked loads a Caddyfile.
func startAsked(t interface{ Helper() }, caddyfile string) (_ *asked, end func(), _ error) {
	t.Helper()
	text, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return nil, nil, err
	}
	var config caddy.Config
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, nil, err
	}
	parent, err := caddy.ProvisionContext(&config)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := caddy.NewContext(parent)
	a := &asked{ctx: ctx}
	found, err := ctx.AppIfConfigured("oauth")
	if err == nil {
		a.app = found.(*App)
		a.policy, err = policyOf(ctx)
	}
	if err == nil {
		err = a.app.Start()
	}
	if err != nil {
		cancel()
		return nil, nil, err
	}
	return a, func() {
		_ = a.app.Stop()
		_ = a.app.Cleanup()
		cancel()
	}, nil
}

// server is the only server.
func (a *asked) server() *caddyhttp.Server {
	for _, s := range a.policy.http.Servers {
		return s
	}
	return nil
}

// token fetches a token as a client would.
func (a *asked) token(realm, client string, scopes []string) string {
	path := "/oauth2" + realmPath(realm) + "/access_token"
	form := url.Values{"grant_type": {"client_credentials"}, "scope": {strings.Join(scopes, " ")}}
	r := httptest.NewRequest("POST", "https://auth.example.com:8080"+path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(client+":"+walkSecret)))
	w := httptest.NewRecorder()
	a.server().ServeHTTP(w, r)
	var answer struct {
		Token string `json:"access_token"`
	}
	_ = json.Unmarshal(w.Body.Bytes(), &answer)
	return answer.Token
}

const walkSecret = "walk-secret-0123456789-0123456789-0123456789"

// gathered returns all counters that are not zero.
func (a *asked) gathered(t rapidT) map[string]float64 {
	registry := prometheus.NewRegistry()
	if err := registerMetrics(registry); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]float64)
	for _, family := range families {
		if !strings.HasPrefix(family.GetName(), "caddy_") {
			continue
		}
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			value := m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			if value != 0 {
				all[family.GetName()+" "+strings.Join(labels, " ")] = value
			}
		}
	}
	all["client elsewhere"] = float64(foreignCounts.passed.Load() + uint64(len(foreignCounts.refused)))
	for _, realm := range a.app.realms {
		for id, counts := range realm.counts {
			all["client "+realm.name+"/"+id] = float64(counts.passed.Load() + uint64(len(counts.refused)+len(counts.requests)))
		}
	}
	return all
}

type rapidT interface{ Fatal(...any) }

// causesIn returns why requests were refused between two sets of counters.
func causesIn(before, after map[string]float64) (causes []string) {
	for name, n := range after {
		metric, labels, _ := strings.Cut(name, " ")
		if metric != "caddy_oauth_bearer_checks_total" && metric != "caddy_oauth_guard_total" || n == before[name] || strings.Contains(labels, "result="+reportOnlyResult) {
			continue
		}
		for label := range strings.FieldsSeq(labels) {
			cause, ok := strings.CutPrefix(label, "cause=")
			if ok && cause != "" && cause != string(strippedIdentity) && cause != string(strippedUpgrade) {
				causes = append(causes, cause)
			}
		}
	}
	slices.Sort(causes)
	return causes
}

// reportedIn returns why requests that passed would have been refused, between two sets of counters.
func reportedIn(before, after map[string]float64) (causes []string) {
	for name, n := range after {
		metric, labels, _ := strings.Cut(name, " ")
		if metric != "caddy_oauth_report_only_total" || n == before[name] {
			continue
		}
		for label := range strings.FieldsSeq(labels) {
			if cause, ok := strings.CutPrefix(label, "cause="); ok {
				causes = append(causes, cause)
			}
		}
	}
	slices.Sort(causes)
	return slices.Compact(causes)
}

// reportedBy returns the same as a walk has it.
func reportedBy(way *walk) (causes []string) {
	for _, step := range way.Steps {
		if strings.Contains(step.Text, onlyReported) {
			causes = append(causes, string(step.Cause))
		}
	}
	slices.Sort(causes)
	return slices.Compact(causes)
}

// walkSite draws the inside of a site.
type walkSite struct {
	t       *rapid.T
	backend string
	names   int
}

var (
	walkPaths   = []string{"/a", "/a/b", "/a/x", "/b", "/b/c", "/pub", "/A/b", "/a//b", "/a/b;v=1", "/oauth2/realms/root/realms/main/access_token", "/oauth2/realms/root/realms/other/introspect/", "/oauth2/nobody/token", "/oauth2/introspect", "/.well-known/oauth-authorization-server/oauth2", "/named/x", "/"}
	walkMethods = []string{"GET", "POST", "PUT", "DELETE", "GET", "HEAD", "OPTIONS", "PURGE", "get", "CONNECT"}
	walkScopes  = []string{"read", "write", "admin", "list"}
	walkHosts   = []string{"a.example.com", "b.example.com"}
)

func (s *walkSite) pick(what string, from ...string) string {
	return rapid.SampledFrom(from).Draw(s.t, what)
}

func (s *walkSite) some(what string, from []string, least int) []string {
	return rapid.SliceOfNDistinct(rapid.SampledFrom(from), least, len(from), rapid.ID).Draw(s.t, what)
}

// few draws mostly none, and sometimes two.
func (s *walkSite) few(what string, from []string) []string {
	n := rapid.SampledFrom([]int{0, 0, 0, 1, 1, 2}).Draw(s.t, "number")
	return rapid.SliceOfNDistinct(rapid.SampledFrom(from), n, n, rapid.ID).Draw(s.t, what)
}

// matcher draws the lines of a named matcher.
func (s *walkSite) matcher(scopes bool) string {
	kinds := []string{"path", "method", "header", "host", "not", "expression", "query", "remote_ip", "vars"}
	if scopes {
		kinds = append(kinds, "oauth_scope", "oauth_scope", "oauth_scope", "not oauth_scope", "not oauth_scope")
	}
	switch s.pick("matcher", kinds...) {
	case "path":
		return "path " + s.pick("path", "/a/*", "/a", "/b*", "/pub", "*/b", "/A/*")
	case "method":
		return "method " + strings.Join(s.some("methods", walkMethods[:5], 1), " ")
	case "header":
		return "header " + s.pick("header", "X-A 1", "X-A *", "X-A 2", "X-Mark_On *", "X!A *", "!X!A")
	case "host":
		return "host " + s.pick("host", walkHosts...)
	case "not":
		return "not path " + s.pick("path", "/a/*", "/pub", "/b/*")
	case "expression":
		return "expression `" + s.pick("expression", `{method} == "GET"`, `path('/a/*') && !method('PUT')`, `header({'X-A': '1'})`, `{http.request.uri.path}.startsWith("/b")`) + "`"
	case "query":
		return "query q=" + s.pick("query", "1", "*")
	case "remote_ip":
		return "remote_ip " + s.pick("range", "127.0.0.1/8", "192.0.2.0/24")
	case "vars":
		return "vars {mark} " + s.pick("value", "on", "off")
	case "not oauth_scope":
		return "not oauth_scope " + s.pick("scope", walkScopes...)
	}
	return "oauth_scope " + strings.Join(s.some("scopes", walkScopes[:3], 1), " ")
}

// directives draws a few directives. scopes says that an oauth_protect has come before.
func (s *walkSite) directives(depth int, scopes bool) string {
	var b strings.Builder
	for range rapid.IntRange(1, 4).Draw(s.t, "directives") {
		matcher := ""
		switch s.pick("matched", "no", "no", "path", "named") {
		case "path":
			matcher = " " + s.pick("path", "/a/*", "/a", "/b*", "/pub", "/named/*")
		case "named":
			s.names++
			fmt.Fprintf(&b, "@m%d {\n%s\n", s.names, s.matcher(scopes))
			if rapid.Bool().Draw(s.t, "two") {
				b.WriteString("protocol http\n")
			}
			b.WriteString("}\n")
			matcher = fmt.Sprintf(" @m%d", s.names)
		}
		kinds := []string{"oauth_protect", "oauth_protect", "respond", "rewrite", "request_header", "vars", "map", "error", "method", "reverse_proxy", "reverse_proxy", "uri", "oauth_server", "header"}
		if depth > 0 {
			kinds = append(kinds, "handle", "handles", "handles", "route", "route", "handle_path", "invoke")
		}
		if scopes {
			kinds = append(kinds, "scope", "scope", "scope")
		}
		switch kind := s.pick("directive", kinds...); kind {
		case "scope": // a token that has it gets less
			s.names++
			fmt.Fprintf(&b, "@m%d oauth_scope %s\n%s @m%d 403\n", s.names, s.pick("scope", walkScopes...), s.pick("what", "respond", "error"), s.names)
		case "oauth_protect":
			b.WriteString(s.protect(matcher))
		case "respond":
			fmt.Fprintf(&b, "respond%s %s\n", matcher, s.pick("status", "200", "204", "403", "404"))
		case "rewrite":
			fmt.Fprintf(&b, "rewrite%s %s\n", matcher, s.pick("to", "/a/b", "/pub", "/b{uri}", "?q=1"))
		case "uri":
			fmt.Fprintf(&b, "uri%s strip_prefix %s\n", matcher, s.pick("prefix", "/a", "/b"))
		case "request_header":
			fmt.Fprintf(&b, "request_header%s X-A %s\n", matcher, s.pick("value", "1", "2"))
		case "header":
			fmt.Fprintf(&b, "header%s X-B 1\n", matcher)
		case "vars":
			fmt.Fprintf(&b, "vars%s mark %s\n", matcher, s.pick("value", "on", "off"))
		case "map":
			fmt.Fprintf(&b, "map%s {method} {mark} {\nGET on\ndefault off\n}\n", matcher)
		case "error":
			fmt.Fprintf(&b, "error%s %s\n", matcher, s.pick("status", "403", "404", "500"))
		case "method":
			fmt.Fprintf(&b, "method%s %s\n", matcher, s.pick("to", "GET", "DELETE"))
		case "reverse_proxy":
			fmt.Fprintf(&b, "reverse_proxy%s %s\n", matcher, s.backend)
		case "oauth_server":
			fmt.Fprintf(&b, "oauth_server%s\n", matcher)
		case "invoke":
			fmt.Fprintf(&b, "invoke%s named\n", matcher)
		case "handles": // of which one is for a request
			fmt.Fprintf(&b, "handle%s {\n%s}\nhandle %s {\n%s}\nhandle {\n%s}\n", matcher,
				s.pick("first", "request_header X-A 2\n", "vars mark on\n", s.directives(depth-1, scopes)), s.pick("path", "/a/*", "/b*"), s.directives(depth-1, scopes), s.directives(depth-1, scopes))
		case "handle_path":
			fmt.Fprintf(&b, "handle_path %s {\n%s}\n", s.pick("path", "/a/*", "/b*"), s.directives(depth-1, scopes))
		default:
			inside := s.directives(depth-1, scopes)
			if kind == "route" && s.pick("protected", "yes", "yes", "no") == "yes" {
				inside = s.protect("") + s.directives(depth-1, true)
				if rapid.Bool().Draw(s.t, "at last") {
					inside += "reverse_proxy " + s.backend + "\n"
				}
			}
			fmt.Fprintf(&b, "%s%s {\n%s}\n", kind, matcher, inside)
		}
	}
	return b.String()
}

func (s *walkSite) protect(matcher string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "oauth_protect%s%s {\n", matcher, s.pick("realm", " main", " main", " main", " other"))
	rule := func() {
		switch s.pick("rule", "scopes", "any_scope", "audience", "nothing", "optional") {
		case "scopes":
			b.WriteString("scopes " + strings.Join(s.some("scopes", walkScopes, 1), " ") + "\n")
		case "any_scope":
			b.WriteString("any_scope " + strings.Join(s.some("scopes", walkScopes, 1), " ") + "\n")
		case "audience":
			b.WriteString("audience " + s.pick("audience", "one", "two") + "\n")
		case "optional":
			b.WriteString("optional\n")
		}
	}
	rule()
	for _, option := range s.few("options", []string{"allow_ambiguous_paths", "insecure_http", "report_only", "keep_token", "keep_override_headers", "ig_challenges"}) {
		b.WriteString(option + "\n")
	}
	if rapid.Bool().Draw(s.t, "on") {
		b.WriteString("on " + strings.Join(s.some("methods", walkMethods[:4], 1), " ") + " {\n")
		rule()
		b.WriteString("}\n")
	}
	if s.pick("others", "no", "no", "on *") != "no" {
		b.WriteString("on * {\n")
		rule()
		b.WriteString("}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// configuration draws a Caddyfile.
func (s *walkSite) configuration(log string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "{\nadmin off\nauto_https off\nlog {\noutput file %s\nlevel DEBUG\n}\noauth {\nstore memory\n", log)
	for _, realm := range []string{"main", "other"} {
		fmt.Fprintf(&b, "realm %s {\nissuer https://auth.example.com/oauth2/%s\ntoken_format %s\n", realm, realm, s.pick("format", "opaque", "sealed"))
		for i := range rapid.IntRange(1, 2).Draw(s.t, "clients") {
			fmt.Fprintf(&b, "client %s%d {\nsecret {env.WALK_SECRET}\nscopes %s\n", realm, i, strings.Join(s.some("scopes", walkScopes, 1), " "))
			if audience := s.some("audience", []string{"one", "two"}, 0); len(audience) > 0 {
				b.WriteString("audience " + strings.Join(audience, " ") + "\n")
			}
			b.WriteString("}\n")
		}
		b.WriteString("}\n")
	}
	b.WriteString("}\n}\n")
	fmt.Fprintf(&b, "&(named) {\n%s}\n", s.directives(0, false))
	// Nothing in the generated sites is before this one, where tokens come from.
	b.WriteString("http://auth.example.com:8080 {\noauth_server\n}\n")
	for _, host := range []string{"http://a.example.com:8080", "http://:8080"} {
		fmt.Fprintf(&b, "%s {\n%s", host, s.directives(2, false))
		if rapid.Bool().Draw(s.t, "errors") {
			fmt.Fprintf(&b, "handle_errors {\n%s}\n", s.pick("error routes", "respond 418\n", "@refused expression {err.status_code} == 401\nrespond @refused 401\n", "respond /a/* 418\nrespond 419\n", "respond /pub 418\n", "reverse_proxy "+s.backend+"\n", "request_header X-C 1\n"))
		}
		b.WriteString("}\n")
	}
	return b.String()
}

// question draws a request.
func (s *walkSite) question() question {
	scheme := s.pick("scheme", "http", "https")
	q := question{
		method: s.pick("method", walkMethods...),
		url:    scheme + "://" + s.pick("host", walkHosts...) + ":8080" + s.pick("path", walkPaths...) + s.pick("query", "", "?q=1"),
		from:   netip.MustParseAddr(s.pick("from", "127.0.0.1", "127.0.0.1", "192.0.2.1")),
		header: http.Header{},
	}
	for _, line := range s.few("headers", []string{"X-A: 1", "X-A: 2", "X-OAuth-Client-Id: root", "X-Original-URL: /admin", "X-Mark_On: 1", "X!A: 1", "X!A: 1", "X-Mark_On: 1", "Authorization: Basic eDp5", "Authorization: Bearer a b", "Upgrade: websocket", "Early-Data: 1", "Content-Type: application/x-www-form-urlencoded"}) {
		name, value, _ := strings.Cut(line, ": ")
		q.header.Set(name, value)
	}
	return q
}

// send sends the request that q is about.
func (a *asked) send(q question, token string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", q.url, nil)
	r.Method, r.Header, r.RemoteAddr = q.method, q.header.Clone(), q.from.String()+":49152"
	r.Body = http.NoBody
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	a.server().ServeHTTP(w, r)
	return w
}

// What a walk says is what happens to the request, and asking leaves no trace: no count, no log
// line, no token in the store, no request at the backend.
func TestWalksAgreeWithRequests(t *testing.T) {
	t.Setenv("WALK_SECRET", walkSecret)
	var reached atomic.Int64
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		w.WriteHeader(http.StatusTeapot + 1)
	}))
	defer backend.Close()
	log := filepath.Join(t.TempDir(), "log")
	var configurations, questions, passed, refused, lesser, reports int
	causes, refusals := make(map[string]int), make(map[string]int)
	rapid.Check(t, func(t *rapid.T) {
		s := &walkSite{t: t, backend: strings.TrimPrefix(backend.URL, "http://")}
		text := s.configuration(log)
		a, end, err := startAsked(t, text)
		if err != nil {
			refusals[err.Error()]++
			return
		}
		defer end()
		configurations++
		// All questions come first: the log of requests is written a moment after them.
		type answered struct {
			q   question
			way *walk
		}
		var all []answered
		before, backendBefore, logBefore := a.gathered(t), reached.Load(), lengthOf(log)
		for range 20 {
			q := s.question()
			if q.header.Get("Authorization") == "" {
				q.who.realm, q.who.client, _ = strings.Cut(s.pick("who", "", "main/main0", "other/other0", "main/main0"), "/")
			}
			way, err := a.policy.ask(a.ctx, q)
			if err != nil {
				t.Fatalf("%s %s: %v\n%s", q.method, q.url, err, text)
			}
			all = append(all, answered{q, way})
		}
		if after, written := a.gathered(t), writtenSince(log, logBefore); !maps.Equal(before, after) || reached.Load() != backendBefore || written != "" {
			t.Fatalf("asking has left a trace: %v\n%v\n%s\n%s", before, after, written, text)
		}
		for _, one := range all {
			q, way, token, who := one.q, one.way, "", one.q.who.realm+"/"+one.q.who.client
			if q.who.client != "" {
				token = a.token(q.who.realm, q.who.client, way.scopes)
				if token == "" {
					t.Fatalf("client %s got no token for %q", who, way.scopes)
				}
				if len(way.scopes) < len(a.app.realms[q.who.realm].settings.Clients[q.who.client].Scopes) {
					lesser++
				}
			}
			compare := func(way *walk, how string) {
				before, backendBefore := a.gathered(t), reached.Load()
				w := a.send(q, token)
				after := a.gathered(t)
				found, reported := causesIn(before, after), reportedIn(before, after)
				steps, _ := json.MarshalIndent(way, "", " ")
				fail := func(format string, args ...any) {
					t.Fatalf("%s: %s %s %v by '%s' from %s: %s\nthe request got %d %v, causes %v\n%s\n%s", how, q.method, q.url, q.header, who, q.from, fmt.Sprintf(format, args...), w.Code, w.Header(), found, steps, text)
				}
				o := way.Outcome
				if !slices.Equal(reported, reportedBy(way)) {
					fail("it was reported for %q", reported)
				}
				reports += len(reported)
				if got := reached.Load() > backendBefore; got != way.Forwarded {
					fail("the backend got it: %v", got)
				}
				if o.Status != 0 && o.Status != w.Code {
					fail("the status differs")
				}
				if o.Kind == outcomeAnswer && o.Status == 0 && w.Code != http.StatusBadRequest && w.Code != http.StatusUnauthorized {
					fail("the status could be known")
				}
				if o.Kind == outcomeUnknown {
					fail("it should be known")
				}
				if o.Kind == outcomePass && w.Code != http.StatusTeapot+1 {
					fail("it should pass")
				}
				if (o.Kind == outcomeRefuse) != (len(found) > 0) {
					fail("one of them refuses")
				}
				if o.Kind == outcomeRefuse && !slices.Contains(found, string(o.Cause)) {
					fail("the causes differ")
				}
				questions++
				switch o.Kind {
				case outcomePass:
					passed++
				case outcomeRefuse:
					refused++
					causes[string(o.Cause)]++
				}
			}
			if token != "" {
				// The running gateway can be asked about the token itself, which its cache doesn't have.
				bearer := introspect.NewToken(token)
				about := q
				about.who = visitor{token: &bearer}
				before := a.gathered(t)
				inquired, err := a.policy.ask(a.ctx, about)
				if err != nil {
					t.Fatal(err)
				}
				if after := a.gathered(t); !maps.Equal(before, after) {
					t.Fatalf("asking about a token has left a trace: %v\n%v", before, after)
				}
				if b, _ := json.Marshal(inquired); bytes.Contains(b, []byte(token)) {
					t.Fatal("the walk holds the token")
				}
				compare(inquired, "token")
			}
			compare(way, "client")
		}
	})
	t.Logf("%d configurations, %d questions: %d passed, %d refused, %d reported; %d with fewer scopes; causes %v; refused configurations: %v", configurations, questions, passed, refused, reports, lesser, causes, refusals)
}

func lengthOf(file string) int64 {
	info, err := os.Stat(file)
	if err != nil {
		return 0
	}
	return info.Size()
}

// writtenSince returns what has been written to a log behind its first bytes, but for what Caddy's cache of
// certificates says: it starts in the background, at any time after the configuration.
func writtenSince(file string, begin int64) string {
	text, err := os.ReadFile(file)
	if err != nil || int64(len(text)) < begin {
		return ""
	}
	var written strings.Builder
	for line := range strings.Lines(string(text[begin:])) {
		if !strings.Contains(line, `"tls.cache.maintenance"`) {
			written.WriteString(line)
		}
	}
	return written.String()
}

// A walk says where a request passes that has no right to, and where it needs none.
func TestWalksShowWhoPassesUnnamed(t *testing.T) {
	t.Setenv("WALK_SECRET", walkSecret)
	a, end, err := startAsked(t, `{
		admin off
		auto_https off
		oauth {
			store memory
			client reader {
				secret {env.WALK_SECRET}
				scopes read
			}
		}
	}
	http://:8080 {
		route /open/* {
			oauth_protect {
				on GET {
					optional
				}
				scopes write
			}
			respond ok
		}
		route /tried/* {
			oauth_protect {
				scopes write
				report_only until 2999-01-01T00:00:00Z
			}
			@reader oauth_scope read
			respond @reader reader 201
			respond nobody
		}
		route /over/* {
			oauth_protect {
				report_only until 2020-01-01T00:00:00Z
			}
			respond ok
		}
		oauth_protect /guarded/* {
			report_only
		}
		respond ok
	}`)
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	for _, c := range []struct {
		method, path, client string
		kind                 outcomeKind
		status               int
		cause                access.Cause
		text                 string // in the step of the oauth handler that it ends with or passes
	}{
		{"GET", "/open/x", "", outcomeAnswer, 200, "", "wants scopes write; a token is optional; passes without a token, unnamed: optional"},
		{"GET", "/open/x", "reader", outcomeRefuse, 403, access.CauseScope, "wants scopes write; a token is optional"},
		{"POST", "/open/x", "", outcomeRefuse, 401, access.CauseMissing, "wants scopes write"},
		{"get", "/open/x", "", outcomeRefuse, 401, access.CauseMissing, "wants scopes write; and wants scopes write"},
		{"GET", "/tried/x", "reader", outcomeAnswer, 200, access.CauseScope, "wants scopes write; " + onlyReported},
		{"GET", "/tried/x", "", outcomeAnswer, 200, access.CauseMissing, "wants scopes write; " + onlyReported},
		{"GET", "/over/x", "", outcomeRefuse, 401, access.CauseMissing, "wants a valid token"},
		{"GET", "/x/..;/guarded/x", "", outcomeAnswer, 200, access.CauseAmbiguousPath, onlyReported},
	} {
		way, err := a.policy.ask(a.ctx, question{method: c.method, url: "http://localhost:8080" + c.path, who: visitor{client: c.client}})
		if err != nil {
			t.Fatal(err)
		}
		var step walkStep
		for _, s := range way.Steps {
			if strings.HasPrefix(s.Handler, "oauth_") && s.Did != didSkip {
				step = s
			}
		}
		if way.Outcome.Kind != c.kind || way.Outcome.Status != c.status || step.Cause != c.cause || step.Text != c.text {
			t.Errorf("%s %s by %q: %s %d, cause %q, text %q; want %s %d %q %q", c.method, c.path, c.client, way.Outcome.Kind, way.Outcome.Status, step.Cause, step.Text, c.kind, c.status, c.cause, c.text)
		}
	}
}

// A route that nobody has called yet takes little memory: a configuration may have thousands.
func TestARouteTakesLittleMemory(t *testing.T) {
	const routes = 200
	var caddyfile strings.Builder
	caddyfile.WriteString("{\nadmin off\noauth {\nstore memory\n}\n}\n:0 {\noauth_server\n")
	for i := range routes {
		fmt.Fprintf(&caddyfile, "handle /%d/* {\noauth_protect {\nscopes read\n}\nrespond ok\n}\n", i)
	}
	caddyfile.WriteString("}\n")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, end, err := startAsked(t, caddyfile.String())
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	end()
	if each := (after.TotalAlloc - before.TotalAlloc) / routes; each > 400<<10 {
		t.Errorf("a route takes %d KiB while it loads", each>>10)
	}
}
