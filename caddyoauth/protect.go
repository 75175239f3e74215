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
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddyoauth/gateway/introspect"
)

func init() {
	caddy.RegisterModule(Protect{})
}

// Protect lets a request pass only with a valid bearer token (RFC 6750), and tells the
// backend who is calling. Put it in front of `reverse_proxy` or any other handler; two
// of them on one request mean that both must be content.
//
// It removes the caller's own copies of the identity headers from every request, also
// before any other handler or matcher of the same server (listener) can read them, and
// what could lead past it: switches to another protocol than WebSocket, and headers that
// give another path or method. Then it sets, for those it lets in, `X-OAuth-Client-Id`, `X-OAuth-Subject`, `X-OAuth-Scope`,
// `X-OAuth-Realm` or, for tokens from elsewhere, `X-OAuth-Issuer`, and these placeholders:
//
// Placeholder | Description
// ------------|------------
// `{http.auth.user.id}` | The client
// `{http.auth.user.client_id}` | The client
// `{http.auth.user.subject}` | Whom the token speaks for; with client credentials, the client
// `{http.auth.user.scope}` | The token's scopes, separated by spaces
// `{http.auth.user.realm}` | The realm; empty for tokens from elsewhere
// `{http.auth.user.expires}` | When the token expires (RFC 3339)
// `{http.auth.user.<claim>}` | Any claim of a token from elsewhere, several values with a comma between
// `{http.oauth.error}` | Why a request was refused, for `handle_errors`
type Protect struct {
	// The realm whose tokens are accepted. Default: the only one there is, else `root`.
	Realm string `json:"realm,omitempty"`

	// Scopes that the token must have, all of them: visible ASCII characters without
	// quotes, backslashes and commas. Default: none.
	Scopes []string `json:"scopes,omitempty"`

	// Scopes of which the token must have at least one. Default: none.
	AnyScope []string `json:"any_scope,omitempty"`

	// Audiences of which the token must name at least one, compared byte for byte: visible
	// ASCII characters without quotes and backslashes. A token that names none is then
	// refused. Default: any token is for this route.
	Audience []string `json:"audience,omitempty"`

	// For how long facts from the cache are good enough for this route. More than the
	// cache's own `max_age` has no effect. Default: the cache's.
	MaxAge caddy.Duration `json:"max_age,omitempty"`

	// What the names of identity headers begin with; ends with `-`. Default: `X-OAuth-`.
	HeaderPrefix string `json:"header_prefix,omitempty"`

	// Lets `Authorization` through to the backend, which can then use the token itself,
	// elsewhere too. Of several `oauth_protect` on one request, each needs it. Default:
	// false.
	KeepToken bool `json:"keep_token,omitempty"`

	// Accepts paths that a backend could read differently from Caddy's matchers: with
	// `..`, `//`, encoded slashes, `;` and the like. With it, a matcher may protect less
	// than it seems to. Default: false, and such requests are answered with 400.
	AllowAmbiguousPaths bool `json:"allow_ambiguous_paths,omitempty"`

	// Lets through `X-HTTP-Method-Override`, `X-HTTP-Method`, `X-Method-Override`,
	// `X-Original-URL`, `X-Rewrite-URL`, `X-Original-URI`, `X-Script-Name` and
	// `X-Forwarded-Prefix`, by which some backends go instead of the request's own method and
	// path. Matchers and rules don't look at them. Of several `oauth_protect` on one request,
	// each needs it. Default: false, and they are removed.
	KeepOverrideHeaders bool `json:"keep_override_headers,omitempty"`

	// Accepts tokens over plain HTTP from other machines, too, where anybody on the way
	// can read them; see `oauth_server`. Default: false.
	InsecureHTTP bool `json:"insecure_http,omitempty"`

	// Claims that the token must have, all of them. Default: none.
	Claims []ClaimRule `json:"claims,omitempty"`

	// Where tokens may come from, as modules of the namespace `oauth.sources`. A token goes
	// to the source that it says it is from; what says nothing goes to the remote endpoints,
	// in this order, until one knows it. An outage of one source fails no token of another.
	// Default: `local`, the tokens of the realm.
	SourcesRaw []json.RawMessage `json:"sources,omitempty" caddy:"namespace=oauth.sources inline_key=source"`

	logger  *zap.Logger
	trouble *zap.Logger // for what every request may cause; see thinned
	app     *App
	label   string // of challenges, logs and metrics: the realm, if tokens of one are accepted
	sources []routeSource
	maxAge  time.Duration // without a limit of its own, more than any source has
	headers identityHeaders

	challenge string // what challenges of this route begin with
	// beside are the routes among which this handler stands; complete when all are loaded.
	beside caddyhttp.RouteList

	allowed        prometheus.Counter
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

// rejection is a way to say no, made when the configuration is loaded.
type rejection struct {
	status    int
	code      string // for {http.oauth.error}
	reason    string // for the log: code, or what callers need not know
	challenge string // WWW-Authenticate, or empty
	err       error  // public, through {http.error.message}
	count     prometheus.Counter
}

// CaddyModule returns the Caddy module information.
func (Protect) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.oauth_protect",
		New: func() caddy.Module { return new(Protect) },
	}
}

// Provision finds the realm and makes the refusals.
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
	used, err := app.register(ctx, needs{sources: modules, headerPrefix: p.headers.prefixes[0], judgesPaths: !p.AllowAmbiguousPaths})
	if err != nil {
		return err
	}
	if err := p.provisionSources(modules, used); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	for _, rule := range p.Claims {
		if err := rule.check(); err != nil {
			return fmt.Errorf("oauth_protect: %w", err)
		}
	}
	if err := errors.Join(checkScopes("scopes", p.Scopes), checkScopes("any_scope", p.AnyScope)); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	if err := checkAudience(p.Audience); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	if p.MaxAge < 0 {
		return errors.New("oauth_protect: max_age must be greater than zero")
	}
	p.maxAge = time.Duration(cmp.Or(p.MaxAge, math.MaxInt64))

	p.beside = routesBeside(ctx)
	p.challenge = `Bearer realm="` + p.label + `"`
	newRefusal := func(status int, code, challenge string) *rejection {
		return &rejection{
			status: status, code: code, reason: code, challenge: challenge, err: errors.New("oauth: " + code),
			count: collectors.checks.WithLabelValues(p.label, code),
		}
	}
	p.allowed = collectors.checks.WithLabelValues(p.label, "ok")
	p.missingToken = newRefusal(http.StatusUnauthorized, "missing_token", p.challenge)
	p.malformed = newRefusal(http.StatusBadRequest, "invalid_request", p.challenge+`, error="invalid_request", error_description="the request must carry exactly one well-formed bearer token"`)
	p.ambiguous = newRefusal(http.StatusBadRequest, "ambiguous_path", "") // no token would help
	p.invalidToken = newRefusal(http.StatusUnauthorized, "invalid_token", p.challenge+`, error="invalid_token", error_description="the token is not valid here"`)
	// To callers these are one: none of them tells anything of the token's state.
	because := func(reason string) *rejection {
		no := *p.invalidToken
		no.reason = reason
		return &no
	}
	p.tooLong, p.unfit, p.nameless = because("token_too_long"), because("unfit_for_headers"), because("names_nobody")
	p.insufficient = newRefusal(http.StatusForbidden, "insufficient_scope", "") // its challenge depends on the request
	// Which claim is nobody's business; RFC 6750 has no other code for too little.
	p.lacksClaim = newRefusal(http.StatusForbidden, "insufficient_claims", p.challenge+`, error="insufficient_scope", error_description="the token lacks a claim"`)
	p.insecure = newRefusal(http.StatusForbidden, "insecure_transport", "")
	p.undeterminable = newRefusal(http.StatusServiceUnavailable, "temporarily_unavailable", "")
	return nil
}

// ServeHTTP judges the request. Every way out that is not a call of next is a refusal.
func (p *Protect) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if asksForTunnel(r) {
		refuseTunnel(w, r, p.logger)
		return nil
	}
	// A handler before this one may have let the request in already, and taken the token.
	earlier, _ := r.Context().Value(bearerCtxKey{}).(*bearer)
	authorization := r.Header["Authorization"]

	// Before anything is decided, so that error routes get no foreign identity and no
	// credentials either.
	prefixes := p.app.prefixes // all that any route's backend believes
	if earlier != nil {
		prefixes = p.headers.prefixes // what that handler has set is true
	}
	overrides, aside := strip(r, prefixes, true), takeAside(r)

	b, no := p.judge(r, earlier, authorization)
	if no != nil {
		return p.refuse(w, r, no)
	}
	p.allowed.Inc()
	if p.KeepToken && len(authorization) == 1 {
		r.Header["Authorization"] = authorization
	}
	if p.KeepOverrideHeaders {
		maps.Copy(r.Header, aside)
		maps.Copy(r.Header, overrides)
	}
	err := next.ServeHTTP(w, p.headers.identify(r, b))
	if err != nil {
		// Error routes see these headers, which were kept for the backend, not for them.
		delete(r.Header, "Authorization")
		if p.KeepOverrideHeaders {
			dropOverrides(r)
		}
	}
	return err
}

// judge decides whether the request may pass: the facts of its token come from the
// cache or its source, the decision is made here, for this request and this route.
func (p *Protect) judge(r *http.Request, earlier *bearer, authorization []string) (*bearer, *rejection) {
	if !p.InsecureHTTP && !secureOrLocal(r) {
		return nil, p.insecure
	}
	if ambiguousURL(r.URL, p.AllowAmbiguousPaths) {
		return nil, p.ambiguous
	}
	var token string
	if earlier != nil {
		token = earlier.token
	} else {
		var verdict tokenVerdict
		switch token, verdict = bearerToken(authorization); verdict {
		case tokenMissing:
			return nil, p.missingToken
		case tokenMalformed:
			return nil, p.malformed
		case tokenInvalid:
			return nil, p.invalidToken
		case tokenTooLong:
			return nil, p.tooLong
		}
	}

	err := p.app.await(r.Context())
	var found finding
	if err == nil {
		found, err = findOut(r.Context(), p.app, p.sources, token, p.maxAge)
	}
	if err != nil {
		if r.Context().Err() == nil {
			p.trouble.Error("token could not be checked", zap.String("realm", p.label), zap.Error(err))
		}
		return nil, p.undeterminable
	}
	facts := found.facts
	if !facts.Active || !p.audienceFits(facts) {
		return nil, p.invalidToken
	}
	if facts.ClientID == "" && facts.Subject == "" {
		return nil, p.nameless // the backend would take its bearer for nobody
	}
	b := &bearer{token: token, facts: facts, realm: found.realm, rule: p, earlier: earlier}
	if !b.introduce() {
		return nil, p.unfit
	}
	// The refusals where we know whom we refuse.
	if !p.scopesSuffice(facts) {
		logIdentity(r.Context(), b)
		return nil, p.lacksScope(r, b)
	}
	if !p.claimsSuffice(facts) {
		logIdentity(r.Context(), b)
		return nil, p.lacksClaim
	}
	return b, nil
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

// provisionSources finds the sources, which the app has registered as used, and what to call
// the route after.
func (p *Protect) provisionSources(modules []any, used []*usedSource) error {
	for i, module := range modules {
		var source routeSource
		switch module := module.(type) {
		case *LocalSource:
			realm, err := p.app.realm(cmp.Or(module.Realm, p.Realm))
			if err != nil {
				return err
			}
			p.label = cmp.Or(p.label, realm.name)
			source.realm = realm
		case TokenSource:
			source.source = used[i]
			source.near = strings.HasPrefix(module.Label(), "http:") // for loopback only
		default:
			return fmt.Errorf("%T is not a source of tokens", module)
		}
		if slices.Contains(p.sources, source) {
			return errors.New("a source is there twice")
		}
		p.sources = append(p.sources, source)
	}
	accepted := func(s routeSource) bool { return s.realm != nil && s.realm.name == p.Realm }
	if p.Realm != "" && !slices.ContainsFunc(p.sources, accepted) {
		return fmt.Errorf("realm %q is named, and no source local for it: its tokens would be refused; add 'source local', or name no realm", p.Realm)
	}
	p.label = cmp.Or(p.label, noRealm)
	return nil
}

// noRealm is what routes are called, in challenges and metrics, that accept no tokens of a
// realm here. Names of realms have no capitals.
const noRealm = "External"

func (p *Protect) audienceFits(facts *introspect.Facts) bool {
	return len(p.Audience) == 0 || slices.ContainsFunc(p.Audience, facts.HasAudience)
}

func (p *Protect) scopesSuffice(facts *introspect.Facts) bool {
	for _, s := range p.Scopes {
		if !facts.HasScope(s) {
			return false
		}
	}
	return len(p.AnyScope) == 0 || slices.ContainsFunc(p.AnyScope, facts.HasScope)
}

func (p *Protect) claimsSuffice(facts *introspect.Facts) bool {
	for _, rule := range p.Claims {
		values := facts.ClaimValues(rule.Name)
		if !slices.ContainsFunc(rule.Values, func(v string) bool { return slices.Contains(values, v) }) {
			return false
		}
	}
	return true
}

// ClaimRule is a claim that a token must have.
type ClaimRule struct {
	// The claim's name; dots lead into objects, as in `realm_access.roles`. Where names have
	// dots themselves, the longest that fits counts.
	Name string `json:"name,omitempty"`

	// The values of which the claim must have at least one, compared byte for byte.
	Values []string `json:"values,omitempty"`
}

func (c ClaimRule) check() error {
	if c.Name == "" || len(c.Values) == 0 {
		return errors.New("a claim needs a name, and one value or more that are accepted")
	}
	return nil
}

// lacksScope is the refusal of a token with too few scopes. Its challenge names the scopes
// that the whole request needs, as far as can be told: those of rules before this one, and
// of rules behind it among the same routes. A client that fetches a token with what the
// challenge names must not fail at another rule the next time.
func (p *Protect) lacksScope(r *http.Request, b *bearer) *rejection {
	needed := p.scopesFor(b.facts)
	for e := b.earlier; e != nil; e = e.earlier {
		needed = append(needed, e.rule.scopesFor(e.facts)...)
	}
	for _, rule := range p.rulesBehind(r) {
		needed = append(needed, rule.scopesFor(b.facts)...)
	}
	no := *p.insufficient
	no.challenge = p.scopeChallenge(needed)
	return &no
}

// scopesFor are the scopes that the bearer of a token needs for this rule: of alternatives
// those that it has, and if it has none all of them, as a challenge can't say "one of".
func (p *Protect) scopesFor(facts *introspect.Facts) []string {
	alternatives := p.AnyScope
	if slices.ContainsFunc(alternatives, facts.HasScope) {
		alternatives = slices.DeleteFunc(slices.Clone(alternatives), func(s string) bool { return !facts.HasScope(s) })
	}
	return slices.Concat(p.Scopes, alternatives)
}

func (p *Protect) scopeChallenge(needed []string) string {
	slices.Sort(needed)
	return p.challenge + `, error="insufficient_scope", error_description="the token lacks a scope", scope="` + strings.Join(slices.Compact(needed), " ") + `"`
}

// rulesBehind are the rules that the request would meet next, among the routes where this
// one stands.
func (p *Protect) rulesBehind(r *http.Request) []*Protect {
	var rules []*Protect
	var groups []string // of each one route runs
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
			rule, ok := handler.(*Protect)
			if ok && behind {
				rules = append(rules, rule)
			}
			behind = behind || rule == p
		}
		if behind && route.Terminal {
			break
		}
		if behind && route.Group != "" {
			groups = append(groups, route.Group)
		}
	}
	return rules
}

// routesBeside are the routes among which the handler stands that is being provisioned.
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

// refuse is the one place that turns a refusal into headers and an error for Caddy,
// which answers with the status and an empty body unless handle_errors says otherwise.
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
		c.Write(zap.String("realm", p.label), zap.String("reason", no.reason))
	}
	return caddyhttp.Error(no.status, no.err)
}

// thinned writes ten lines of one message a second, and of the rest every thousandth: a
// caller whose tokens make another server fail must not fill the disk.
func thinned(logger *zap.Logger) *zap.Logger {
	return logger.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, time.Second, 10, 1000)
	}))
}

type tokenVerdict int

const (
	tokenPresent   tokenVerdict = iota
	tokenMissing                // no credentials for us
	tokenMalformed              // the header's structure is broken
	tokenInvalid                // one token, which can't be any server's
	tokenTooLong                // likewise, for its length
)

// bearerToken takes the token out of the Authorization header lines (RFC 6750 section
// 2.1). Nowhere else is looked: not in the query, the body or a cookie.
func bearerToken(lines []string) (string, tokenVerdict) {
	switch len(lines) {
	case 0:
		return "", tokenMissing
	case 1:
	default:
		// Which of them would the backend believe?
		return "", tokenMalformed
	}
	const scheme = "bearer"
	line := lines[0]
	if len(line) < len(scheme) || !strings.EqualFold(line[:len(scheme)], scheme) {
		return "", tokenMissing
	}
	rest := line[len(scheme):]
	if rest != "" && rest[0] != ' ' && rest[0] != '\t' && rest[0] != ',' {
		return "", tokenMissing // a scheme that only begins like ours
	}
	token := strings.Trim(rest, " ")
	if token == "" || strings.ContainsAny(token, " \t,") {
		return "", tokenMalformed
	}
	if rest[0] != ' ' {
		return "", tokenMalformed
	}
	if len(token) > introspect.MaxTokenLength {
		return "", tokenTooLong
	}
	if !isB64Token(token) {
		return "", tokenInvalid
	}
	return token, tokenPresent
}

// isB64Token reports whether s is 1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"=".
func isB64Token(s string) bool {
	s = strings.TrimRight(s, "=")
	for i := range len(s) {
		if !b64TokenChar[s[i]] {
			return false
		}
	}
	return s != ""
}

var b64TokenChar = func() (is [256]bool) {
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/" {
		is[c] = true
	}
	return is
}()

// Interface guards
var (
	_ caddy.Provisioner           = (*Protect)(nil)
	_ caddyhttp.MiddlewareHandler = (*Protect)(nil)
)
