package caddyoauth

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.opentelemetry.io/otel/trace"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// A configuration can be asked who gets in where: by 'caddy oauth explain', by `expect` and by the
// other commands about rules. The answer is a walk: the handlers that a request would meet, in that
// order, and how it would end. Asking changes nothing. No store is written, no cache is filled, no
// counter counts, no log line is written, no backend hears of it.
//
// A walk is no second implementation of the rules, which would be wrong one day. It goes through
// the routes as Caddy does (walk_routes.go) and evaluates the real matchers. Caddy's handlers that
// only change the request run as they are. So do ours, as copies that count and log nothing and
// that have other sources of tokens (walk_handlers.go). What would answer or forward the request
// ends the walk. Handlers that are not Caddy's own never run.

// policy is a configuration that can be asked. It is not safe for concurrent use.
type policy struct {
	app  *App
	http *caddyhttp.App
	// where says where a handler of Caddy's stands in the Caddyfile, empty if that isn't known. path
	// is its path in the JSON.
	where func(server *caddyhttp.Server, path string, handler caddyhttp.MiddlewareHandler) string

	// supposed is the app for questions about clients. Its realms issue tokens that nobody records.
	supposed *App
	// silent are the copies of handlers that count nowhere.
	silent map[*Protect]*Protect
	counts *metrics // what they count with
}

// policyOf returns the policy of a configuration whose apps are all provisioned. They need not have
// started.
func policyOf(ctx caddy.Context) (*policy, error) {
	app, err := appFor(ctx, "a question about rules")
	if err != nil {
		return nil, err
	}
	p := &policy{
		app: app, where: func(*caddyhttp.Server, string, caddyhttp.MiddlewareHandler) string { return "" },
		silent: make(map[*Protect]*Protect), counts: newCollectors(),
	}
	found, err := ctx.AppIfConfigured("http")
	if err != nil {
		return nil, errors.New("the configuration has no site")
	}
	p.http = found.(*caddyhttp.App)
	p.supposed, err = supposedApp(app)
	return p, err
}

// admit has the policy answer questions about a managed client as well, if who names one. It does for
// one, since there may be very many.
func (p *policy) admit(who visitor) (err error) {
	has := func(realm *servedRealm) bool {
		return (who.realm == "" || who.realm == realm.name) && realm.settings.Clients[who.client] == nil && realm.isManaged(who.client)
	}
	if who.client == "" || !slices.ContainsFunc(slices.Collect(maps.Values(p.app.realms)), has) {
		return nil
	}
	p.app, err = p.app.forQuestions(p.app.run, func(realm *servedRealm) error {
		if client, ok := realm.engine.ManagedByID(who.client); ok && has(realm) {
			clients := map[string]*oauth.Client{who.client: client.Client}
			maps.Copy(clients, realm.settings.Clients)
			realm.settings.Clients = clients
		}
		return nil
	})
	if err != nil {
		return err
	}
	p.supposed, err = supposedApp(p.app)
	return err
}

// loadPolicy loads a configuration as 'caddy validate' does, with a log that is quiet. An empty file
// is the Caddyfile in the current folder. The policy can be asked until end is called.
func loadPolicy(file, adapter string) (_ *policy, end func(), err error) {
	text, used, language, err := caddycmd.LoadConfig(file, adapter)
	if err != nil {
		return nil, nil, err
	}
	if used == "" {
		return nil, nil, errors.New("there is no Caddyfile here: name the configuration with --config")
	}
	var config caddy.Config
	if err := caddy.StrictUnmarshalJSON(text, &config); err != nil {
		return nil, nil, err
	}
	config.Logging = &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": {BaseLog: caddy.BaseLog{WriterRaw: json.RawMessage(`{"output":"discard"}`)}}}}
	ctx, err := caddy.ProvisionContext(&config)
	if err != nil {
		return nil, nil, err
	}
	child, cancel := caddy.NewContext(ctx)
	p, err := policyOf(child)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	if language == "caddyfile" {
		p.where = newPlacer(used).where
	}
	return p, cancel, nil
}

// visitor is who asks to be let in: somebody without a token; a client of a realm here, which stands
// for the best token that it can fetch; or, for a configuration that has started, a token. An empty
// realm is the only one that has the client.
type visitor struct {
	realm, client string
	token         *introspect.Token
}

// question is a request that nobody sends.
type question struct {
	method, url string
	who         visitor
	// from is where it comes from. Default: this machine if the URL's host is this machine, or else
	// an address that is nobody's.
	from   netip.Addr
	header http.Header
	// watcher, if not nil, takes part in the walk; see routes.go.
	watcher *watcher
}

// nowhere is an address for documentation (RFC 5737).
var nowhere = netip.MustParseAddr("192.0.2.1")

// walk is the way of a request through a configuration.
type walk struct {
	Server  string     `json:"server"`
	Steps   []walkStep `json:"steps"`
	Outcome outcome    `json:"outcome"`
	// Token says which token the request has, if it has one.
	Token string `json:"token,omitempty"`
	// Asked are the servers and stores that were asked about the token.
	Asked []string `json:"asked,omitempty"`
	// Forwarded says that a backend gets something of the request, be it only on an error route.
	Forwarded bool `json:"forwarded"`

	scopes []string // of the client's token
}

// walkStep is a handler that the request meets, or a route that it passes by.
type walkStep struct {
	At      string `json:"at,omitempty"` // the file and line, if known
	Path    string `json:"path"`         // in Caddy's JSON
	Handler string `json:"handler"`      // the name of its module; of a route, those of its handlers
	Did     did    `json:"did"`
	// Cause is why an oauth handler refused the request, or would have.
	Cause access.Cause `json:"cause,omitempty"`
	// Want and Has are what the handler wants of a token that lacks it, and what that has.
	Want []string `json:"want,omitempty"`
	Has  []string `json:"has,omitempty"`
	Text string   `json:"text,omitempty"`
	// Aside says that the step plays no part in what happens to the request.
	Aside bool `json:"aside,omitempty"`

	handler caddyhttp.MiddlewareHandler // nil for a route that was skipped
	route   *caddyhttp.Route            // that was skipped
}

// did is what a handler does with a request.
type did string

const (
	didPass    did = "passed"       // it let the request go on
	didRefuse  did = "refused"      // an oauth handler refused it
	didAnswer  did = "answered"     // it answered it, be it with an error
	didForward did = "forwarded"    // it sent it to a backend
	didSkip    did = "skipped"      // its route isn't for the request
	didIgnore  did = "not followed" // nobody knows: the walk goes on as if it let the request pass
)

// outcome is how a walk ends.
type outcome struct {
	Kind   outcomeKind  `json:"kind"`
	Status int          `json:"status,omitempty"` // 0 if nobody can tell
	Cause  access.Cause `json:"cause,omitempty"`  // of a refusal
	At     string       `json:"at,omitempty"`     // where it ends
	// Unsure are the places of handlers that were not followed and that may decide otherwise, and
	// AsIf is how the walk ends if they let the request pass unchanged, nil if nobody can tell. Both
	// are for an unknown outcome only.
	Unsure []string `json:"unsure,omitempty"`
	AsIf   *outcome `json:"as_if,omitempty"`
}

type outcomeKind string

const (
	outcomePass    outcomeKind = "pass"       // a backend or a file server gets the request
	outcomeAnswer  outcomeKind = "answered"   // a handler of Caddy's or an endpoint answers
	outcomeRefuse  outcomeKind = "refused"    // an oauth handler refuses it
	outcomeClose   outcomeKind = "closed"     // the connection is closed without an answer
	outcomeNobody  outcomeKind = "unanswered" // no handler answers, so Caddy sends an empty 200
	outcomeUnknown outcomeKind = "unknown"
)

// passes reports whether the request certainly gets what it asks for. A redirect is not that.
func (o outcome) passes() bool {
	return o.Kind == outcomePass || o.Kind == outcomeAnswer && o.Status < http.StatusMultipleChoices
}

// ask walks through the configuration. If the visitor is a client and the configuration tells tokens
// apart by the matcher oauth_scope, so that more scopes can be worse, it looks for a token of the
// client that passes, and returns that walk. The error says that the question makes no sense here.
func (p *policy) ask(ctx context.Context, q question) (*walk, error) {
	server, name, target, err := p.serverFor(q.url)
	if err != nil {
		return nil, err
	}
	if q.who.client == "" {
		return p.walk(ctx, server, name, target, q, nil)
	}
	realm, client, err := p.clientOf(q.who)
	if err != nil {
		return nil, err
	}
	q.who.realm = realm
	best, err := p.walk(ctx, server, name, target, q, client.Scopes)
	if err != nil || best.Outcome.passes() {
		return best, err
	}
	for _, scopes := range lesserScopes(client.Scopes, scopesMatched(server)) {
		other, err := p.walk(ctx, server, name, target, q, scopes)
		if err != nil {
			return nil, err
		}
		if other.Outcome.passes() {
			other.Token += "; with all its scopes it would not pass"
			return other, nil
		}
	}
	return best, nil
}

// clientOf finds a client, in any realm if none is named.
func (p *policy) clientOf(who visitor) (realm string, _ *oauth.Client, _ error) {
	var in []string
	for _, name := range sortedKeys(p.app.realms) {
		if p.app.realms[name].settings.Clients[who.client] != nil && (who.realm == "" || who.realm == name) {
			in = append(in, name)
		}
	}
	switch {
	case who.realm != "" && p.app.realms[who.realm] == nil:
		return "", nil, fmt.Errorf("unknown realm '%s' (known: %s)", who.realm, strings.Join(sortedKeys(p.app.realms), ", "))
	case len(in) == 0:
		return "", nil, fmt.Errorf("there is no client '%s'", who.client)
	case len(in) > 1:
		return "", nil, fmt.Errorf("there is a client '%s' in several realms: name one of %s", who.client, strings.Join(in, ", "))
	}
	return in[0], p.app.realms[in[0]].settings.Clients[who.client], nil
}

// maxLesserScopes bounds how many tokens of one client are tried.
const maxLesserScopes = 64

// lesserScopes returns sets of scopes that lack some of those by which a configuration tells tokens
// apart, those that lack the fewest first.
func lesserScopes(scopes, apart []string) (sets [][]string) {
	var named []string
	for _, s := range scopes {
		if slices.Contains(apart, s) {
			named = append(named, s)
		}
	}
	named = named[:min(len(named), 16)] // 65536 sets, of which few are tried
	for lacks := 1; lacks <= len(named); lacks++ {
		for mask := range 1 << len(named) {
			var without []string
			for i, s := range named {
				if mask>>i&1 == 1 {
					without = append(without, s)
				}
			}
			set := slices.DeleteFunc(slices.Clone(scopes), func(s string) bool { return slices.Contains(without, s) })
			if len(without) != lacks || len(set) == 0 {
				continue
			}
			if sets = append(sets, set); len(sets) == maxLesserScopes {
				return sets
			}
		}
	}
	return sets
}

// scopesMatched returns the scopes that matchers oauth_scope name anywhere in a server.
func scopesMatched(server *caddyhttp.Server) (scopes []string) {
	var inSets func(sets []caddyhttp.MatcherSet)
	inSets = func(sets []caddyhttp.MatcherSet) {
		for _, set := range sets {
			for _, matcher := range set {
				switch m := matcher.(type) {
				case *MatchScope:
					scopes = append(scopes, *m...)
				case *caddyhttp.MatchNot:
					inSets(m.MatcherSets)
				}
			}
		}
	}
	var inRoutes func(routes caddyhttp.RouteList)
	inRoutes = func(routes caddyhttp.RouteList) {
		for i := range routes {
			inSets(routes[i].MatcherSets)
			for _, handler := range routes[i].Handlers {
				if subroute, ok := handler.(*caddyhttp.Subroute); ok {
					inRoutes(subroute.Routes)
				}
			}
		}
	}
	inRoutes(configuredRoutes(server))
	for _, name := range sortedKeys(server.NamedRoutes) {
		inRoutes(caddyhttp.RouteList{*server.NamedRoutes[name]})
	}
	slices.Sort(scopes)
	return slices.Compact(scopes)
}

// serverFor finds the server that a URL leads to: by its port, and of several by its host and
// scheme. If there is only one server, it is that one, since a load balancer may have the URL's
// port.
func (p *policy) serverFor(text string) (_ *caddyhttp.Server, name string, target *url.URL, _ error) {
	target, err := targetOf(text)
	if err != nil {
		return nil, "", nil, err
	}
	port := target.Port()
	if port == "" {
		port = strconv.Itoa(cmp.Or(map[string]int{"http": p.http.HTTPPort, "https": p.http.HTTPSPort}[target.Scheme], map[string]int{"http": 80, "https": 443}[target.Scheme]))
	}
	best, fits := "", 0
	var known []string
	for _, name := range sortedKeys(p.http.Servers) {
		server := p.http.Servers[name]
		known = append(known, name+" on "+strings.Join(server.Listen, " "))
		for _, address := range server.Listen {
			if fit := fitOf(address, port, target, len(server.TLSConnPolicies) > 0); fit > fits {
				best, fits = name, fit
			}
		}
	}
	if best == "" && len(p.http.Servers) == 1 {
		best = sortedKeys(p.http.Servers)[0]
	}
	if best == "" {
		return nil, "", nil, fmt.Errorf("no server listens on port %s of '%s' (there is: %s)", port, loggedText(text), strings.Join(known, ", "))
	}
	return p.http.Servers[best], best, target, nil
}

// targetOf reads the URL of a question.
func targetOf(text string) (*url.URL, error) {
	target, err := url.Parse(text)
	if err != nil || target.Scheme != "http" && target.Scheme != "https" || target.Hostname() == "" || target.User != nil || target.Opaque != "" {
		return nil, fmt.Errorf("'%s' is not a URL such as https://api.example.com/orders", loggedText(text))
	}
	return target, nil
}

// fitOf returns how well the address of a server fits a URL, 0 if it has another port.
func fitOf(address, port string, target *url.URL, hasTLS bool) int {
	listens, err := caddy.ParseNetworkAddress(address)
	number, err2 := strconv.ParseUint(port, 10, 16)
	if err != nil || err2 != nil || listens.IsUnixNetwork() || uint(number) < listens.StartPort || uint(number) > listens.EndPort {
		return 0
	}
	fit := 1
	if hasTLS == (target.Scheme == "https") {
		fit++
	}
	if listens.Host == target.Hostname() {
		fit += 4
	} else if listens.Host == "" {
		fit += 2
	}
	return fit
}

// walk goes one way. scopes are those of the client's token.
func (p *policy) walk(ctx context.Context, server *caddyhttp.Server, name string, target *url.URL, q question, scopes []string) (*walk, error) {
	w := &walker{p: p, server: server, path: "apps/http/servers/" + name, watcher: q.watcher, Result: &walk{Server: name, scopes: scopes}}
	header := q.header.Clone()
	if header == nil {
		header = make(http.Header)
	}
	if q.who != (visitor{}) {
		if header.Get("Authorization") != "" {
			return nil, errors.New("give either a client, a token, or a header Authorization")
		}
		if token := w.equip(q.who, scopes); token != "" {
			header.Set("Authorization", "Bearer "+token)
		}
	} else {
		w.app, w.source = p.supposed, w.nobodys
	}
	r, err := newQuestion(q, target, header)
	if err != nil {
		return nil, err
	}
	// No span: a question is no request.
	ctx = trace.ContextWithSpanContext(context.WithValue(ctx, askingCtxKey{}, true), trace.SpanContext{})
	if err := w.run(r.WithContext(ctx)); err != nil {
		return nil, err
	}
	return w.Result, nil
}

// askingCtxKey marks the context of a question.
type askingCtxKey struct{}

// newQuestion makes the request as a server would read it.
func newQuestion(q question, target *url.URL, header http.Header) (*http.Request, error) {
	if !isToken(q.method) {
		return nil, fmt.Errorf("'%s' is not a method", loggedText(q.method))
	}
	uri := target.RequestURI()
	read, err := url.ParseRequestURI(uri)
	if err != nil {
		return nil, fmt.Errorf("'%s' can't be requested: %w", loggedText(q.url), err)
	}
	from := q.from
	if !from.IsValid() {
		from = nowhere
		if ip, err := netip.ParseAddr(target.Hostname()); err == nil && ip.IsLoopback() || target.Hostname() == "localhost" {
			from = netip.MustParseAddr("127.0.0.1")
		}
	}
	host := target.Host
	if named := header.Get("Host"); named != "" {
		host = named
		header.Del("Host")
	}
	r := &http.Request{
		Method: q.method, URL: read, RequestURI: uri, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Host: host, Body: http.NoBody, RemoteAddr: net.JoinHostPort(from.String(), "49152"),
	}
	if target.Scheme == "https" {
		name, _, err := net.SplitHostPort(host)
		if err != nil {
			name = host
		}
		r.TLS = &tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true, ServerName: name, NegotiatedProtocol: "http/1.1"}
	}
	return r, nil
}

// isToken reports whether text is a token (RFC 9110 section 5.6.2), as methods are.
func isToken(text string) bool {
	other := func(c rune) bool {
		return ('a' > c || c > 'z') && ('A' > c || c > 'Z') && ('0' > c || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", c)
	}
	return text != "" && !strings.ContainsFunc(text, other)
}
