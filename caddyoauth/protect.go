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
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
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
	// Where it stands in the Caddyfile, as in `Caddyfile:12`. The adapter writes it, for people:
	// it is named in logs and decides nothing. Default: none.
	At string `json:"at,omitempty"`

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

	// The identifier of the resource that this protects (RFC 9728): an https URL without query or
	// fragment, such as `https://api.example.com/v1`; plain http is accepted for loopback hosts only.
	// The server then answers GET requests for `/.well-known/oauth-protected-resource` followed by
	// its path, at its host, with a document that says who issues tokens for it. Challenges name that
	// document as `resource_metadata`, and the scopes that the request needs. The realm, or one of the sources, must have an issuer.
	// Several `oauth_protect` may protect one resource. It is no rule: whether a token must name the
	// resource is for `audience` to say. Placeholders are replaced when the configuration is loaded.
	// Default: none.
	Resource string `json:"resource,omitempty"`

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

	// Lets requests without a bearer token pass, unnamed: the backend is told of no client, and
	// placeholders are empty. A request with a token is judged as ever. Default: false.
	Optional bool `json:"optional,omitempty"`

	// What is asked for instead if a request has certain methods. A method may be in one of
	// them. Default: the same for all methods.
	On []MethodRule `json:"on,omitempty"`

	// Takes a client's ID and secret by Basic (RFC 7617) in the place of a token. Such a caller has
	// what the best token has that the client could fetch: all its scopes, and its whole audience.
	// The sources must accept the tokens of exactly one realm here, whose clients may do so, if
	// `client_secret_basic` is among their methods and they can have tokens. Default: tokens alone.
	Basic *Basic `json:"basic,omitempty"`

	// How tokens are taken that are bound to a key (DPoP, RFC 9449). Default: with their proof, if the block
	// `oauth` has `dpop`, or a client of the realm; elsewhere they are refused.
	DPoP *RouteDPoP `json:"dpop,omitempty"`

	// Has the backend told who is calling by a JWT that the realm signs, so that a backend which can be
	// reached past the gateway need not believe headers. Requests that pass unnamed have none. Default:
	// headers alone.
	Assertion *Assertion `json:"assertion,omitempty"`

	// Words challenges as IG's `OAuth2ResourceServerFilter` does, for clients that compare them. What is refused
	// and the status stay as they are. Default: challenges name the realm, and are worded in another way.
	IGChallenges *IGChallenges `json:"ig_challenges,omitempty"`

	// Lets requests pass that would be refused, and reports them in logs and metrics. They have no
	// identity, and tunnels and targets without a path are refused all the same. Default: refuses
	// them.
	ReportOnly *ReportOnly `json:"report_only,omitempty"`

	// Where tokens may come from: modules of the namespace `oauth.sources`. A token that says
	// where it is from is looked up there. Any other token is looked up at the remote
	// endpoints, in this order, until one of them knows it. An outage of one source doesn't
	// affect the tokens of another. Default: `local`, the tokens of the realm.
	SourcesRaw []json.RawMessage `json:"sources,omitempty" caddy:"namespace=oauth.sources inline_key=source"`

	// Findings of `caddy oauth lint` that are meant to be, in this handler. Default: none.
	LintIgnore []LintIgnore `json:"lint_ignore,omitempty"`

	logger  *zap.Logger
	trouble func() *zap.Logger // for messages that any request may cause; see thinned
	app     *App
	label   string // in challenges, logs and metrics: the realm, or noRealm
	sources []routeSource
	maxAge  time.Duration // without a limit of its own, more than any source has
	headers identityHeaders

	// rule is for requests whose method no other rule names; see ruleFor.
	rule access.Rule
	// named are the rules by method, and misspelt those for a method that differs from a named one
	// by case. Both are nil if no method has a rule of its own.
	named, misspelt map[string]*access.Rule

	basic       *basicRoute // nil without the option
	dpop        *dpopRoute  // nil if no tokens are taken that are bound to keys
	asserter    *asserter   // nil without the option
	metadataURL string      // of the document about Resource; empty without one
	challenge   string      // how challenges of this route begin
	words       wording     // how they go on
	// besideOthers are the realms whose tokens the route takes beside tokens from elsewhere.
	besideOthers []*servedRealm
	// beside is the list of routes that this handler is in. It is complete once all routes are
	// loaded.
	beside caddyhttp.RouteList

	refusals *refusalLog
	// asked hears of each decision, if it is only asked what would happen; see walk.go. Nil for
	// requests.
	asked   func(*bearer, access.Decision)
	allowed prometheus.Counter
	// anonymous counts the requests that pass without a token. It is nil if none can.
	anonymous prometheus.Counter
	// rejections are made when the configuration is loaded: one for each cause.
	rejections map[access.Cause]*rejection
}

// rejection is one way to refuse a request. What callers see depends on the result alone, so
// that they can't tell its causes apart.
type rejection struct {
	status    int
	result    access.Result // for {http.oauth.error}
	cause     access.Cause  // for logs and metrics
	challenge string        // WWW-Authenticate, or empty
	err       error         // public, through {http.error.message}
	count     prometheus.Counter
	// passed and reported count the requests that pass under report_only all the same. They are nil
	// without it.
	passed, reported prometheus.Counter
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
	if err := p.Assertion.check(); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	if err := p.IGChallenges.check(); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	p.sources, err = app.register(ctx, needs{sources: modules, realm: p.Realm, proofs: p.asksForDPoP(app), headerPrefix: p.headers.prefixes[0], assertion: p.Assertion, protect: p})
	if err != nil {
		return err
	}
	if p.label, err = p.labelFor(p.sources); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	if err := p.checkUpstream(app.Realms, p.localRealms()); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	if err := p.provisionRules(); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	p.warnOfOptional()
	p.ReportOnly.warnOfEnd(p.logger, p.At)
	if err := checkLintIgnores(p.LintIgnore, false); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	if p.basic, err = p.provisionBasic(); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	if p.asserter, err = p.provisionAssertion(); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	if p.MaxAge < 0 {
		return errors.New("oauth_protect: max_age must be greater than zero")
	}
	p.maxAge = time.Duration(cmp.Or(p.MaxAge, math.MaxInt64))

	if err := p.provisionResource(ctx); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	if p.dpop, err = p.provisionDPoP(ctx); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	p.beside = routesBeside(ctx)
	p.refusals = app.refusalLogFor(ctx, p.label, p.At)
	p.besideOthers = p.realmsBesideOthers()
	app.useSeries(p.label)
	p.prepareRejections(collectors)
	return nil
}

// prepareRejections makes the rejections, and all counters of the route out of m. They show up in
// the metrics before they count anything.
func (p *Protect) prepareRejections(m *metrics) {
	realm := p.label
	p.words = ownWording
	if p.IGChallenges != nil {
		realm = cmp.Or(p.IGChallenges.Realm, defaultIGRealm)
		p.words = igWording
	}
	p.challenge = `Bearer realm="` + realm + `"`
	if p.metadataURL != "" {
		p.challenge += `, resource_metadata="` + p.metadataURL + `"`
	}
	ways := map[access.Result]rejection{
		access.ResultMissing: {status: http.StatusUnauthorized, challenge: p.challenge},
		access.ResultRequest: {status: http.StatusBadRequest, challenge: p.challenge + p.words.request},
		access.ResultToken:   {status: http.StatusUnauthorized, challenge: p.challenge + p.words.token},
		access.ResultProof:   {status: http.StatusUnauthorized, challenge: p.challenge + `, error="invalid_dpop_proof", error_description="the DPoP proof is not valid here"`},
		access.ResultNonce:   {status: http.StatusUnauthorized, challenge: p.challenge + `, error="use_dpop_nonce", error_description="the DPoP proof needs the nonce that comes with this answer"`},
		access.ResultScope:   {status: http.StatusForbidden}, // its challenge depends on the request
		access.ResultClient:  {status: http.StatusUnauthorized, challenge: p.challenge},
		// The caller doesn't learn which claim. RFC 6750 has no other code for a token that grants
		// too little.
		access.ResultClaims:      {status: http.StatusForbidden, challenge: p.challenge + p.words.claim},
		access.ResultTooEarly:    {status: http.StatusTooEarly},   // RFC 8470 section 5.2
		access.ResultPath:        {status: http.StatusBadRequest}, // no challenge: no token would help
		access.ResultInsecure:    {status: http.StatusForbidden},
		access.ResultSlowDown:    {status: http.StatusTooManyRequests},
		access.ResultUnavailable: {status: http.StatusServiceUnavailable},
		access.ResultCanceled:    {status: http.StatusServiceUnavailable},
	}
	p.allowed = m.checks.WithLabelValues(p.label, "ok", "")
	if p.anyOptional() {
		p.anonymous = m.checks.WithLabelValues(p.label, "anonymous", "")
	}
	p.rejections = make(map[access.Cause]*rejection)
	for _, e := range access.Explanations {
		no, ok := ways[e.Result]
		if !ok {
			continue // tunnels, which are refused before anything else
		}
		if p.dpop == nil && slices.Contains(access.CausesOfDPoP, e.Cause) {
			continue
		}
		if p.basic == nil && slices.Contains(access.CausesOfBasic, e.Cause) {
			continue
		}
		no.result, no.cause, no.err = e.Result, e.Cause, errors.New("oauth: "+string(e.Result))
		no.count = m.checks.WithLabelValues(p.label, string(e.Result), string(e.Cause))
		if p.ReportOnly != nil {
			no.passed = m.checks.WithLabelValues(p.label, reportOnlyResult, string(e.Cause))
			no.reported = m.reportOnly.WithLabelValues(p.label, string(e.Cause))
		}
		p.rejections[e.Cause] = &no
	}
}

// ServeHTTP lets the request pass or refuses it: every return without a call of next is a
// refusal.
func (p *Protect) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if asksForTunnel(r) {
		refuseTunnel(w, r, p.refusals)
		return nil
	}
	// A handler before this one may have let the request in already, and removed the token.
	earlier, before := callerOf(r.Context())
	sent := r.Header["Authorization"]
	authorization := before.original(sent)
	if earlier != nil && earlier.basic != nil {
		authorization = earlier.basic.authorization
	}
	proof := r.Header["Dpop"]
	if proof == nil && before != nil {
		proof = before.proof
	}
	reports := r.URL.Opaque == "" && p.ReportOnly.holds()
	var letIn http.Header // what an earlier handler has let in
	if reports && earlier != nil {
		letIn = maps.Clone(r.Header)
	}

	// Strip before anything is decided, so that error routes see no made-up identity and no
	// credentials either.
	told := assertionsBefore(earlier, r.Header)
	prefixes := p.app.prefixes // of all headers that the backend of any route believes
	if earlier != nil {
		prefixes = p.headers.prefixes // that handler has set the others, and they are true
	}
	overrides, gone := strip(r, prefixes, p.app.credentials, true)
	aside := takeAside(r)
	if earlier == nil && before == nil { // otherwise what is removed may have been set since
		p.refusals.stripped(r, gone)
	}

	keepsToken := p.KeepToken && len(sent) == 1 && !p.isSecret(sent)
	b, decision := p.check(r, reports, earlier, authorization, proof)
	switch {
	case !decision.Allowed && !reports:
		return p.refuse(w, r, b, decision, earlier)
	case !decision.Allowed && earlier != nil:
		p.report(r, b, decision, earlier)
		return passAsLetIn(w, r, next, earlier, letIn, keepsToken)
	case !decision.Allowed || b == nil:
		var goesOn []string // of Authorization, to the backend
		if !decision.Allowed {
			p.report(r, b, decision, nil)
			goesOn = p.otherSchemes(sent)
		} else {
			p.anonymous.Inc()
		}
		if keepsToken {
			goesOn = sent
		}
		if p.KeepOverrideHeaders {
			keepAside(r, aside, overrides) // for an oauth_protect behind that lets in a token
		}
		return passUnnamed(w, r, next, before, authorization, proof, goesOn)
	}
	b.before = before
	p.allowed.Inc()
	p.app.countsOf(b).passed.Add(1)
	p.countElsewhere(b)
	p.app.noteSeen(r, b)
	if keepsToken {
		r.Header["Authorization"] = sent
		if b.dpop != nil {
			r.Header["Dpop"] = proof
		}
	}
	if b.dpop != nil && b.dpop.proof.NextNonce != "" {
		w.Header().Set(nonceHeader, b.dpop.proof.NextNonce)
	}
	if p.KeepOverrideHeaders {
		maps.Copy(r.Header, aside)
		maps.Copy(r.Header, overrides)
	}
	upstream := p.app.upstreamOf(b)
	upstream.set(r)
	maps.Copy(r.Header, told)
	p.assert(r, b)
	var ending *basicRoute
	if b.basic != nil {
		ending = b.endsFirst()
		w = ending.deprecating(w)
	}
	err := next.ServeHTTP(w, p.headers.identify(r, b))
	if err != nil {
		if ending != nil {
			ending.deprecate(w.Header()) // error routes don't get the wrapped writer
		}
		// These headers are for the backend, but error routes would see them too.
		delete(r.Header, "Authorization")
		delete(r.Header, "Dpop")
		upstream.unset(r)
		if p.asserter != nil {
			delete(r.Header, p.asserter.header)
		}
		if p.KeepOverrideHeaders {
			dropOverrides(r)
		}
	}
	return err
}

// check is decide, with a span if the request is traced. reports is set if the request passes in any
// case.
func (p *Protect) check(r *http.Request, reports bool, earlier *bearer, authorization, proof []string) (*bearer, access.Decision) {
	if p.asked != nil {
		b, decision := p.judge(r, nil, earlier, authorization, proof)
		p.asked(b, decision)
		return b, decision
	}
	ctx, span := startSpan(r.Context(), "oauth.check", trace.SpanKindInternal)
	if span == nil {
		return p.decide(r, nil, earlier, authorization, proof)
	}
	defer span.End() // a panic, too
	b, decision := p.decide(r.WithContext(ctx), span, earlier, authorization, proof)
	p.describeCheck(ctx, span, reports, b, decision)
	return b, decision
}

// judge decides whether the request may pass, and returns its bearer, which is nil if no token
// was looked up: a request that is allowed without a bearer passes unnamed. The facts of the
// token come from the cache or from its source. The decision is always made anew, for this
// request and this route. span is nil unless the request is traced.
func (p *Protect) judge(r *http.Request, span trace.Span, earlier *bearer, authorization, proof []string) (*bearer, access.Decision) {
	if !p.InsecureHTTP && !secureOrLocal(r) {
		return nil, access.Decision{Cause: access.CauseInsecure}
	}
	if ambiguousURL(r.URL, p.AllowAmbiguousPaths) {
		return nil, access.Decision{Cause: access.CauseAmbiguousPath}
	}
	rule := p.ruleFor(r.Method)
	var token introspect.Token
	var dpop *dpopShown
	if earlier != nil && earlier.basic == nil {
		token = earlier.token
	} else {
		text, verdict := bearerToken(authorization)
		if verdict == tokenMissing && p.dpop != nil {
			text, verdict = tokenBy("dpop", authorization)
			if verdict == tokenPresent {
				dpop = new(dpopShown)
			}
		}
		switch verdict {
		case tokenMissing:
			if p.basic.takes(authorization, time.Now()) {
				return p.judgeBasic(r, span, earlier, rule, authorization)
			}
			if rule.Optional && earlier == nil {
				return nil, access.Decision{Allowed: true}
			}
			return nil, access.Decision{Cause: access.CauseMissing}
		case tokenMalformed:
			return nil, access.Decision{Cause: access.CauseMalformedAuthorization}
		case tokenInvalid:
			return nil, access.Decision{Cause: introspect.CauseMalformed}
		case tokenTooLong:
			return nil, access.Decision{Cause: access.CauseTooLong}
		}
		token = introspect.NewToken(text)
	}

	b := &bearer{token: token, dpop: dpop, by: p, rule: rule, earlier: earlier}
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
		if r.Context().Err() != nil {
			// Not an outage: otherwise, callers that hang up could raise the alert for one.
			return b, access.Decision{Cause: access.CauseCanceled}
		}
		p.trouble().Error("token could not be checked", zap.String("realm", p.label), zap.Error(err))
		return b, access.Decision{Cause: access.CauseOutage}
	}
	switch {
	case earlier != nil: // with the same token, whose proof is used up
		b.dpop = earlier.dpop
	case b.dpop != nil && b.facts.Active:
		if cause := p.verifyProof(r, b, proof); cause != "" {
			return b, access.Decision{Cause: cause}
		}
	}
	decision := access.Decide(rule, b.facts, access.Request{
		Proven: p.proven(r, b), TooEarly: b.facts.Confirmation.Certificate != "" && p.asked == nil && tooEarly(r), Fit: b.introduce(),
	})
	switch {
	case !decision.Allowed:
		decision.Cause = p.app.whyNot(p.sources, &b.token, decision.Cause)
	case b.dpop != nil && earlier == nil:
		if cause := p.useProof(r, b); cause != "" {
			return b, access.Decision{Cause: cause}
		}
	}
	return b, decision
}

// proven returns what the sender of the request has proven to have, of what its token demands. A
// question about what would happen is asked for somebody who can prove it.
func (p *Protect) proven(r *http.Request, b *bearer) (proven introspect.Confirmation) {
	demanded := b.facts.Confirmation
	if p.asked != nil {
		return p.supposedProof(b)
	}
	if demanded.Certificate != "" {
		proven = p.app.ClientCertificates.provenBy(r, demanded)
	}
	if b.dpop != nil && !p.dpopIsOff() {
		proven.Key = b.dpop.proof.Thumbprint()
	}
	return proven
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
		needed = append(needed, e.rule.ScopesFor(e.facts)...)
	}
	for _, other := range behind(p, p.beside, r) {
		if !other.ReportOnly.holds() {
			needed = append(needed, other.ruleFor(r.Method).ScopesFor(b.facts)...)
		}
	}
	slices.Sort(needed)
	return p.challenge + p.words.insufficientScope(strings.Join(slices.Compact(needed), " "))
}

// withScopes adds to a challenge the scopes that a request without a good token needs, as far as this
// handler can tell: a program that has found its way by the challenge asks for these (RFC 6750
// section 3). Where one of several would do, a challenge can't say so, and names none.
func (p *Protect) withScopes(challenge string, r *http.Request) string {
	rules := []*access.Rule{p.ruleFor(r.Method)}
	for _, other := range behind(p, p.beside, r) {
		if !other.ReportOnly.holds() {
			rules = append(rules, other.ruleFor(r.Method))
		}
	}
	var needed []string
	for _, rule := range rules {
		for ; rule != nil; rule = rule.Also {
			if len(rule.AnyScope) > 1 {
				return challenge
			}
			needed = slices.Concat(needed, rule.Scopes, rule.AnyScope)
		}
	}
	if len(needed) == 0 {
		return challenge
	}
	slices.Sort(needed)
	return challenge + `, scope="` + strings.Join(slices.Compact(needed), " ") + `"`
}

// behind returns the handlers of a kind that the request would meet behind one of them, in the list of
// routes that this one is in.
func behind[H interface {
	comparable
	caddyhttp.MiddlewareHandler
}](this H, beside caddyhttp.RouteList, r *http.Request) []H {
	var others []H
	var groups []string // of each, one route runs, and has been found
	met := false
	for i := range beside {
		route := &beside[i]
		if met {
			if slices.Contains(groups, route.Group) {
				continue
			}
			if matches, err := route.MatcherSets.AnyMatchWithError(r); err != nil || !matches {
				continue
			}
		}
		for _, handler := range route.Handlers {
			other, ok := handler.(H)
			if ok && met {
				others = append(others, other)
			}
			met = met || ok && other == this
		}
		if met && route.Terminal {
			break
		}
		if met && route.Group != "" {
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

// refuse is the one place that turns a decision into headers and an error for Caddy. Caddy
// answers with the status and an empty body unless handle_errors says otherwise. The bearer is
// nil if no token was looked up. A handler before this one has let in earlier, which is nil if
// there was none.
func (p *Protect) refuse(w http.ResponseWriter, r *http.Request, b *bearer, decision access.Decision, earlier *bearer) error {
	no := p.rejections[decision.Cause]
	no.count.Inc()
	p.countRefused(b, string(no.result), no.cause)
	dontAwaitBody(w, r)
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	challenge := no.challenge
	if decision.Cause == access.CauseScope {
		challenge = p.scopeChallenge(r, b, decision.Want)
	} else if no.status == http.StatusUnauthorized && p.metadataURL != "" {
		challenge = p.withScopes(challenge, r)
	}
	switch {
	case challenge == "":
	case p.dpop != nil:
		p.dpop.challenge(h, p.challenge, challenge, p.ruleFor(r.Method).KeyBound, b != nil && b.dpop != nil)
	default:
		h.Set("WWW-Authenticate", challenge)
	}
	if no.result == access.ResultNonce {
		h.Set(nonceHeader, b.dpop.nonce)
	}
	if no.status == http.StatusUnauthorized && p.basic.on(time.Now()) {
		h.Add("WWW-Authenticate", p.basic.challenge)
	}
	switch no.status {
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", retryAfter)
	case http.StatusTooManyRequests:
		h.Set("Retry-After", secondsUntil(b.basic.retryAfter))
	}
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Set("http.oauth.error", string(no.result))
	}
	named := earlier
	if lacksRight(decision) {
		named = b
	}
	logRefused(r.Context(), named, no.result, no.cause)
	p.refusals.write(r, no.cause, no.status, func() []zap.Field {
		return append([]zap.Field{zap.String("error", string(no.result))}, b.refused(decision)...)
	})
	return caddyhttp.Error(no.status, no.err)
}

// lacksRight reports whether a request is refused although its token is good.
func lacksRight(decision access.Decision) bool {
	return decision.Cause == access.CauseScope || decision.Cause == access.CauseClaim
}

// countRefused counts what became of a client's token, if it is one.
func (p *Protect) countRefused(b *bearer, result string, cause access.Cause) {
	if b != nil && b.facts != nil && b.facts.Active {
		p.app.countsOf(b).countRefused(result, cause)
		p.countElsewhere(b)
	}
}

// refused returns what the event of a refusal says about the token. The bearer may be nil. It is
// called after the request, so it only reads.
func (b *bearer) refused(decision access.Decision) (fields []zap.Field) {
	if b != nil && b.dpop != nil && b.dpop.reason != "" {
		fields = append(fields, zap.String("reason", b.dpop.reason))
	}
	if decision.Claim != "" {
		fields = append(fields, zap.String("claim", decision.Claim))
	}
	if decision.Want != nil {
		fields = append(fields, zap.Strings("want", decision.Want))
		if decision.Cause != access.CauseClaim {
			fields = append(fields, zap.Strings("has", loggedTexts(decision.Has)))
		}
	}
	if b == nil {
		return fields
	}
	if b.basic != nil {
		return append(fields, b.basic.refused()...)
	}
	token := b.token // a copy, in which it is noted what is read
	about := b.facts
	if about != nil && !about.Active {
		about = about.Was()
	}
	client, issuer := "", ""
	hasForm := oauth.HasForm(token.Text())
	switch {
	case about != nil && b.realm != "":
		client = about.ClientID
	case about != nil:
		client, issuer = headerText(about.ClientID), headerText(about.Issuer)
	case !hasForm: // nothing has proved what the token says, but it helps to know what that is
		issuer = headerText(token.UnverifiedIssuer())
	}
	// An ID is a plain hash. What nobody recognized, and doesn't look like a token either, may be a
	// password that was sent by mistake, which could be guessed from it.
	if hasForm || issuer != "" || !slices.Contains(causesOfAnything, decision.Cause) {
		fields = append(fields, zap.Stringer("token_id", token.ID()))
	}
	if client != "" {
		fields = append(fields, zap.String("client_id", loggedText(client)))
	}
	if issuer != "" {
		fields = append(fields, zap.String("issuer", loggedText(issuer)))
	}
	return fields
}

// causesOfAnything are those that whatever a caller sends in the place of a token may have.
var causesOfAnything = []access.Cause{
	introspect.CauseMalformed, introspect.CauseNoSource, introspect.CauseUnknown, access.CauseOutage, access.CauseCanceled,
}

// thinned returns a logger that writes ten lines of each message a second, and of the rest
// every thousandth: a caller whose tokens make another server fail must not fill the disk. It takes half a
// megabyte, so it is made when it is asked for: most handlers never need theirs.
func thinned(logger *zap.Logger) func() *zap.Logger {
	return sync.OnceValue(func() *zap.Logger {
		return logger.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
			return zapcore.NewSamplerWithOptions(core, time.Second, 10, 1000)
		}))
	})
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Protect)(nil)
	_ caddyhttp.MiddlewareHandler = (*Protect)(nil)
)
