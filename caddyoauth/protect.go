package caddyoauth

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/introspect"
)

func init() {
	caddy.RegisterModule(Protect{})
}

// Protect lets a request pass only with a valid bearer token (RFC 6750), and tells the
// backend who is calling. Put it in front of `reverse_proxy` or any other handler. Where
// a request meets two of them, both must allow it.
//
// It removes the caller's own copies of the identity headers from every request, before any
// other handler or matcher of the same server (listener) can read them. It also removes
// what could lead past it: switches to a protocol other than WebSocket, and headers that
// give another path or method. For a request that it lets in it sets `X-OAuth-Client-Id`,
// `X-OAuth-Subject`, `X-OAuth-Scope`, `X-OAuth-Realm` or, for tokens from elsewhere,
// `X-OAuth-Issuer`, and these placeholders:
//
// Placeholder | Description
// ------------|------------
// `{http.auth.user.id}` | The client
// `{http.auth.user.client_id}` | The client
// `{http.auth.user.subject}` | On whose behalf the token acts; with client credentials, the client
// `{http.auth.user.scope}` | The token's scopes, separated by spaces
// `{http.auth.user.realm}` | The realm; empty for tokens from elsewhere
// `{http.auth.user.expires}` | When the token expires (RFC 3339)
// `{http.auth.user.<claim>}` | Any claim of a token from elsewhere, several values separated by commas
// `{http.oauth.error}` | Why a request was refused, for `handle_errors`
type Protect struct {
	// The realm whose tokens are accepted. Default: the only realm, or `root` if there are
	// several.
	Realm string `json:"realm,omitempty"`

	// Scopes that the token must have, all of them. A scope consists of visible ASCII
	// characters other than `"`, `\` and `,`. Default: none.
	Scopes []string `json:"scopes,omitempty"`

	// Scopes, at least one of which the token must have. Default: none.
	AnyScope []string `json:"any_scope,omitempty"`

	// Audiences, at least one of which the token must name, byte for byte. An audience consists
	// of visible ASCII characters other than `"` and `\`. A token without an audience is then
	// refused. Default: any token is accepted, whatever its audience.
	Audience []string `json:"audience,omitempty"`

	// How old facts from the cache may be on this route. More than the cache's own `max_age`
	// has no effect. Default: the cache's `max_age`.
	MaxAge caddy.Duration `json:"max_age,omitempty"`

	// What the names of identity headers begin with. It ends with `-`. Default: `X-OAuth-`.
	HeaderPrefix string `json:"header_prefix,omitempty"`

	// Lets `Authorization` through to the backend, which can then use the token itself, also
	// against other services. If a request meets several `oauth_protect`, each of them needs
	// this. Default: false.
	KeepToken bool `json:"keep_token,omitempty"`

	// Accepts paths that a backend could read differently from Caddy's matchers: with
	// `..`, `//`, encoded slashes, `;` and the like. A matcher may then protect less than it
	// seems to. Default: false; such requests are answered with 400.
	AllowAmbiguousPaths bool `json:"allow_ambiguous_paths,omitempty"`

	// Lets through `X-HTTP-Method-Override`, `X-HTTP-Method`, `X-Method-Override`,
	// `X-Original-URL`, `X-Rewrite-URL`, `X-Original-URI`, `X-Script-Name` and
	// `X-Forwarded-Prefix`, which some backends obey instead of the request's own method and
	// path. Matchers and rules don't look at them. If a request meets several `oauth_protect`,
	// each of them needs this. Default: false; these headers are removed.
	KeepOverrideHeaders bool `json:"keep_override_headers,omitempty"`

	// Accepts tokens over plain HTTP from other machines too, where anybody on the way can
	// read them; see `oauth_server`. Default: false.
	InsecureHTTP bool `json:"insecure_http,omitempty"`

	// Claims that the token must have, all of them. Default: none.
	Claims []ClaimRule `json:"claims,omitempty"`

	// Where tokens may come from: modules of the namespace `oauth.sources`. A token that says
	// where it is from is looked up there. Any other token is looked up at the remote
	// endpoints, in this order, until one of them knows it. An outage of one source doesn't
	// affect the tokens of another. Default: `local`, the tokens of the realm.
	SourcesRaw []json.RawMessage `json:"sources,omitempty" caddy:"namespace=oauth.sources inline_key=source"`

	logger  *zap.Logger
	trouble *zap.Logger // for messages that any request may cause; see thinned
	app     *App
	label   string // in challenges, logs and metrics: the realm, or noRealm
	sources []routeSource
	maxAge  time.Duration // without a limit of its own, more than any source has
	rule    access.Rule
	headers identityHeaders

	challenge string // how challenges of this route begin
	// beside is the list of routes that this handler is in. It is complete once all routes are
	// loaded.
	beside caddyhttp.RouteList

	allowed prometheus.Counter
	// These are made when the configuration is loaded.
	missingToken   *rejection
	malformed      *rejection
	invalidToken   *rejection
	tooLong        *rejection
	unfit          *rejection
	nameless       *rejection
	insufficient   *rejection
	lacksClaim     *rejection
	ambiguous      *rejection
	insecure       *rejection
	undeterminable *rejection
}

// rejection is one way to refuse a request.
type rejection struct {
	status    int
	code      string // for {http.oauth.error}
	reason    string // for the log: code, or more than callers may know
	challenge string // WWW-Authenticate, or empty
	err       error  // public, through {http.error.message}
	count     prometheus.Counter
	// decision says what the token lacks, for the log. It is zero if that is not known.
	decision access.Decision
}

// about returns a copy of no for one decision.
func (no rejection) about(decision access.Decision) *rejection {
	no.decision = decision
	return &no
}

// CaddyModule returns the Caddy module information.
func (Protect) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.oauth_protect",
		New: func() caddy.Module { return new(Protect) },
	}
}

// Provision checks the configuration, finds the sources and prepares the rejections.
func (p *Protect) Provision(ctx caddy.Context) error {
	p.logger = ctx.Logger()
	p.trouble = thinned(p.logger)
	app, err := appFor(ctx, "oauth_protect")
	if err != nil {
		return err
	}
	p.app = app
	modules, err := p.loadSources(ctx)
	if err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	if p.HeaderPrefix == "" {
		p.HeaderPrefix = defaultHeaderPrefix
	}
	if p.headers, err = newIdentityHeaders(p.HeaderPrefix); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	p.sources, err = app.register(ctx, needs{sources: modules, realm: p.Realm, headerPrefix: p.headers.prefixes[0], judgesPaths: !p.AllowAmbiguousPaths})
	if err != nil {
		return err
	}
	if p.label, err = p.labelFor(p.sources); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	for _, rule := range p.Claims {
		if err := rule.check(); err != nil {
			return fmt.Errorf("oauth_protect: %w", err)
		}
	}
	if err := errors.Join(conf.CheckScopes("scopes", p.Scopes), conf.CheckScopes("any_scope", p.AnyScope)); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	if err := conf.CheckAudience("audience", p.Audience); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	if p.MaxAge < 0 {
		return errors.New("oauth_protect: max_age must be greater than zero")
	}
	p.maxAge = time.Duration(cmp.Or(p.MaxAge, math.MaxInt64))
	p.rule = access.Rule{Scopes: p.Scopes, AnyScope: p.AnyScope, Audience: p.Audience}
	for _, claim := range p.Claims {
		p.rule.Claims = append(p.rule.Claims, access.Claim(claim))
	}

	p.beside = routesBeside(ctx)
	p.prepareRejections()
	return nil
}

// prepareRejections makes the rejections. Their counters show up in the metrics before they
// count anything.
func (p *Protect) prepareRejections() {
	p.challenge = `Bearer realm="` + p.label + `"`
	newRejection := func(status int, code, challenge string) *rejection {
		return &rejection{
			status: status, code: code, reason: code, challenge: challenge, err: errors.New("oauth: " + code),
			count: collectors.checks.WithLabelValues(p.label, code),
		}
	}
	p.allowed = collectors.checks.WithLabelValues(p.label, "ok")
	p.missingToken = newRejection(http.StatusUnauthorized, "missing_token", p.challenge)
	p.malformed = newRejection(http.StatusBadRequest, "invalid_request", p.challenge+`, error="invalid_request", error_description="the request must carry exactly one well-formed bearer token"`)
	p.ambiguous = newRejection(http.StatusBadRequest, "ambiguous_path", "") // no challenge: no token would help
	p.invalidToken = newRejection(http.StatusUnauthorized, "invalid_token", p.challenge+`, error="invalid_token", error_description="the token is not valid here"`)
	// Callers can't tell these apart, so none of them reveals the token's state.
	because := func(reason string) *rejection {
		no := *p.invalidToken
		no.reason = reason
		return &no
	}
	p.tooLong, p.unfit, p.nameless = because("token_too_long"), because(string(access.CauseUnfit)), because(string(access.CauseNamesNobody))
	p.insufficient = newRejection(http.StatusForbidden, "insufficient_scope", "") // its challenge depends on the request
	// The caller doesn't learn which claim. RFC 6750 has no other code for a token that grants
	// too little.
	p.lacksClaim = newRejection(http.StatusForbidden, "insufficient_claims", p.challenge+`, error="insufficient_scope", error_description="the token lacks a claim"`)
	p.insecure = newRejection(http.StatusForbidden, "insecure_transport", "")
	p.undeterminable = newRejection(http.StatusServiceUnavailable, "temporarily_unavailable", "")
}

// ServeHTTP lets the request pass or refuses it: every return without a call of next is a
// refusal.
func (p *Protect) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if asksForTunnel(r) {
		refuseTunnel(w, r, p.logger)
		return nil
	}
	// A handler before this one may have let the request in already, and removed the token.
	earlier, _ := r.Context().Value(bearerCtxKey{}).(*bearer)
	authorization := r.Header["Authorization"]

	// Strip before anything is decided, so that error routes see no made-up identity and no
	// credentials either.
	prefixes := p.app.prefixes // of all headers that the backend of any route believes
	if earlier != nil {
		prefixes = p.headers.prefixes // that handler has set the others, and they are true
	}
	overrides, aside := strip(r, prefixes, true), takeAside(r)

	b, no := p.check(r, earlier, authorization)
	if no != nil {
		return p.refuse(w, r, no)
	}
	p.allowed.Inc()
	p.app.countsOf(b).passed.Add(1)
	if p.KeepToken && len(authorization) == 1 {
		r.Header["Authorization"] = authorization
	}
	if p.KeepOverrideHeaders {
		maps.Copy(r.Header, aside)
		maps.Copy(r.Header, overrides)
	}
	err := next.ServeHTTP(w, p.headers.identify(r, b))
	if err != nil {
		// These headers were kept for the backend, but error routes would see them too.
		delete(r.Header, "Authorization")
		if p.KeepOverrideHeaders {
			dropOverrides(r)
		}
	}
	return err
}

// check is judge, with a span if the request is traced.
func (p *Protect) check(r *http.Request, earlier *bearer, authorization []string) (*bearer, *rejection) {
	ctx, span := startSpan(r.Context(), "oauth.check", trace.SpanKindInternal)
	if span == nil {
		return p.judge(r, nil, earlier, authorization)
	}
	defer span.End() // a panic, too
	b, no := p.judge(r.WithContext(ctx), span, earlier, authorization)
	p.describeCheck(span, no)
	return b, no
}

// judge decides whether the request may pass, and returns its bearer if it may. The facts
// of the token come from the cache or from its source. The decision is always made anew,
// for this request and this route. span is nil unless the request is traced.
func (p *Protect) judge(r *http.Request, span trace.Span, earlier *bearer, authorization []string) (*bearer, *rejection) {
	if !p.InsecureHTTP && !secureOrLocal(r) {
		return nil, p.insecure
	}
	if ambiguousURL(r.URL, p.AllowAmbiguousPaths) {
		return nil, p.ambiguous
	}
	var token introspect.Token
	if earlier != nil {
		token = earlier.token
	} else {
		text, verdict := bearerToken(authorization)
		switch verdict {
		case tokenMissing:
			return nil, p.missingToken
		case tokenMalformed:
			return nil, p.malformed
		case tokenInvalid:
			return nil, p.invalidToken
		case tokenTooLong:
			return nil, p.tooLong
		}
		token = introspect.NewToken(text)
	}

	b := &bearer{token: token, by: p, earlier: earlier}
	err := p.app.await(r.Context())
	if err == nil {
		var found finding
		found, err = findOut(r.Context(), p.app, p.sources, &b.token, p.maxAge)
		b.facts, b.realm = found.facts, found.realm
		if span != nil {
			describeBearer(span, b)
		}
	}
	if err != nil {
		if r.Context().Err() == nil {
			p.trouble.Error("token could not be checked", zap.String("realm", p.label), zap.Error(err))
		}
		return nil, p.undeterminable
	}
	decision := access.Decide(&p.rule, b.facts, access.Request{Fit: b.introduce()})
	if !decision.Allowed {
		no := p.reject(r, b, decision)
		if b.facts.Active {
			p.app.countsOf(b).countRefused(no.code)
		}
		return nil, no
	}
	return b, nil
}

// reject returns the rejection for a decision against the bearer.
func (p *Protect) reject(r *http.Request, b *bearer, decision access.Decision) *rejection {
	switch decision.Cause {
	case access.CauseAudience:
		return p.invalidToken.about(decision)
	case access.CauseNamesNobody:
		return p.nameless
	case access.CauseUnfit:
		return p.unfit
	case access.CauseScope: // from here on it is known who is refused
		logIdentity(r.Context(), b)
		no := p.insufficient.about(decision)
		no.challenge = p.scopeChallenge(r, b, decision.Want)
		return no
	case access.CauseClaim:
		logIdentity(r.Context(), b)
		return p.lacksClaim.about(decision)
	}
	return p.invalidToken // nothing is known of the token, so there is nothing more to log
}

// loadSources loads the modules that say where tokens come from.
func (p *Protect) loadSources(ctx caddy.Context) ([]any, error) {
	if len(p.SourcesRaw) == 0 {
		return []any{new(LocalSource)}, nil
	}
	loaded, err := ctx.LoadModule(p, "SourcesRaw")
	if err != nil {
		return nil, fmt.Errorf("loading a source: %w", err)
	}
	return loaded.([]any), nil
}

// labelFor returns the name of the realm whose tokens the sources know, or noRealm.
func (p *Protect) labelFor(sources []routeSource) (string, error) {
	label := ""
	for _, s := range sources {
		label = cmp.Or(label, s.realmName())
	}
	named := func(s routeSource) bool { return s.realmName() == p.Realm }
	if p.Realm != "" && !slices.ContainsFunc(sources, named) {
		return "", fmt.Errorf("realm %q is named, but no source accepts its tokens: add 'source local', or don't name a realm", p.Realm)
	}
	return cmp.Or(label, noRealm), nil
}

// noRealm is the label of routes that accept no tokens of a realm here. It can't be the name
// of a realm, which has no capitals.
const noRealm = "External"

// ClaimRule is a claim that a token must have.
type ClaimRule struct {
	// The claim's name. Dots lead into objects, as in `realm_access.roles`. Where a name itself
	// has dots, the longest name that fits counts.
	Name string `json:"name,omitempty"`

	// The accepted values. The claim must have at least one of them, compared byte for byte.
	Values []string `json:"values,omitempty"`
}

func (c ClaimRule) check() error {
	if c.Name == "" || len(c.Values) == 0 {
		return errors.New("a claim needs a name and at least one accepted value")
	}
	return nil
}

// scopeChallenge returns the challenge for a token with too few scopes, which needs want at
// this handler. It names the scopes that the whole request needs, as far as this handler
// can tell: also those for the rules that the request has passed, and for rules behind this
// one among the same routes. Otherwise a client that fetches a token with the named scopes
// would fail at another rule next.
func (p *Protect) scopeChallenge(r *http.Request, b *bearer, want []string) string {
	needed := slices.Clone(want)
	for e := b.earlier; e != nil; e = e.earlier {
		needed = append(needed, e.by.rule.ScopesFor(e.facts)...)
	}
	for _, other := range p.behind(r) {
		needed = append(needed, other.rule.ScopesFor(b.facts)...)
	}
	slices.Sort(needed)
	return p.challenge + `, error="insufficient_scope", error_description="the token lacks a scope", scope="` + strings.Join(slices.Compact(needed), " ") + `"`
}

// behind returns the handlers that the request would meet next, in the list of routes that
// this one is in.
func (p *Protect) behind(r *http.Request) []*Protect {
	var others []*Protect
	var groups []string // of each, one route runs, and has been found
	behind := false
	for i := range p.beside {
		route := &p.beside[i]
		if behind {
			if slices.Contains(groups, route.Group) {
				continue
			}
			if matches, err := route.MatcherSets.AnyMatchWithError(r); err != nil || !matches {
				continue
			}
		}
		for _, handler := range route.Handlers {
			other, ok := handler.(*Protect)
			if ok && behind {
				others = append(others, other)
			}
			behind = behind || other == p
		}
		if behind && route.Terminal {
			break
		}
		if behind && route.Group != "" {
			groups = append(groups, route.Group)
		}
	}
	return others
}

// routesBeside returns the list of routes that the handler being provisioned is in.
func routesBeside(ctx caddy.Context) caddyhttp.RouteList {
	modules := ctx.Modules()
	if len(modules) < 2 {
		return nil
	}
	switch parent := modules[len(modules)-2].(type) {
	case *caddyhttp.Subroute:
		return parent.Routes
	case *caddyhttp.App:
		if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
			return configuredRoutes(server)
		}
	}
	return nil
}

// refuse is the one place that turns a rejection into headers and an error for Caddy.
// Caddy answers with the status and an empty body unless handle_errors says otherwise.
func (p *Protect) refuse(w http.ResponseWriter, r *http.Request, no *rejection) error {
	no.count.Inc()
	dontAwaitBody(w, r)
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if no.challenge != "" {
		h.Set("WWW-Authenticate", no.challenge)
	}
	if no.status == http.StatusServiceUnavailable {
		h.Set("Retry-After", retryAfter)
	}
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Set("http.oauth.error", no.code)
	}
	if c := p.logger.Check(zap.DebugLevel, "request refused"); c != nil {
		fields := []zap.Field{zap.String("realm", p.label), zap.String("reason", no.reason)}
		if d := &no.decision; d.Want != nil {
			if d.Claim != "" {
				fields = append(fields, zap.String("claim", d.Claim))
			}
			fields = append(fields, zap.Strings("want", d.Want), zap.Strings("has", d.Has))
		}
		c.Write(fields...)
	}
	return caddyhttp.Error(no.status, no.err)
}

// thinned returns a logger that writes ten lines of each message a second, and of the rest
// every thousandth: a caller whose tokens make another server fail must not fill the disk.
func thinned(logger *zap.Logger) *zap.Logger {
	return logger.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, time.Second, 10, 1000)
	}))
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Protect)(nil)
	_ caddyhttp.MiddlewareHandler = (*Protect)(nil)
)
