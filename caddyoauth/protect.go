package caddyoauth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/introspect"
)

func init() {
	caddy.RegisterModule(Protect{})
}

// Protect lets a request pass only with a valid bearer token (RFC 6750), and tells the
// backend who is calling. Put it in front of `reverse_proxy` or any other handler; two
// of them on one request mean that both must be content.
//
// It removes the caller's own copies of the identity headers from every request, then
// sets, for those it lets in, `X-OAuth-Client-Id`, `X-OAuth-Subject`, `X-OAuth-Scope`
// and `X-OAuth-Realm`, and these placeholders:
//
// Placeholder | Description
// ------------|------------
// `{http.auth.user.id}` | The client
// `{http.auth.user.client_id}` | The client
// `{http.auth.user.subject}` | Whom the token speaks for; with client credentials, the client
// `{http.auth.user.scope}` | The token's scopes, separated by spaces
// `{http.auth.user.realm}` | The realm
// `{http.auth.user.expires}` | When the token expires (RFC 3339)
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

	// Accepts tokens over plain HTTP from other machines, too, where anybody on the way
	// can read them. Default: false.
	InsecureHTTP bool `json:"insecure_http,omitempty"`

	logger  *zap.Logger
	realm   *realm
	headers identityHeaders

	allowed        prometheus.Counter
	missingToken   *refusal
	malformed      *refusal
	invalidToken   *refusal
	insufficient   *refusal
	ambiguous      *refusal
	insecure       *refusal
	undeterminable *refusal
}

// refusal is a way to say no, made when the configuration is loaded.
type refusal struct {
	status    int
	code      string // for {http.oauth.error}
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
	app, err := configuredApp(ctx, "oauth_protect")
	if err != nil {
		return err
	}
	if p.realm, err = app.realm(p.Realm); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
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
	if p.HeaderPrefix == "" {
		p.HeaderPrefix = defaultHeaderPrefix
	}
	if p.headers, err = newIdentityHeaders(p.HeaderPrefix); err != nil {
		return fmt.Errorf("oauth_protect: %w", err)
	}
	app.reservePrefix(p.headers.prefixes[0])
	app.judgesPaths = app.judgesPaths || !p.AllowAmbiguousPaths

	needed := slices.Concat(p.Scopes, p.AnyScope)
	slices.Sort(needed)
	needed = slices.Compact(needed)
	challenge := `Bearer realm="` + p.realm.name + `"`
	newRefusal := func(status int, code, challenge string) *refusal {
		return &refusal{
			status: status, code: code, challenge: challenge, err: errors.New("oauth: " + code),
			count: collectors.checks.WithLabelValues(p.realm.name, code),
		}
	}
	p.allowed = collectors.checks.WithLabelValues(p.realm.name, "ok")
	p.missingToken = newRefusal(http.StatusUnauthorized, "missing_token", challenge)
	p.malformed = newRefusal(http.StatusBadRequest, "invalid_request", challenge+`, error="invalid_request", error_description="the request must carry exactly one well-formed bearer token"`)
	p.ambiguous = newRefusal(http.StatusBadRequest, "ambiguous_path", "") // no token would help
	p.invalidToken = newRefusal(http.StatusUnauthorized, "invalid_token", challenge+`, error="invalid_token", error_description="the token is not valid here"`)
	p.insufficient = newRefusal(http.StatusForbidden, "insufficient_scope", challenge+`, error="insufficient_scope", error_description="the token lacks a scope", scope="`+strings.Join(needed, " ")+`"`)
	p.insecure = newRefusal(http.StatusForbidden, "insecure_transport", "")
	p.undeterminable = newRefusal(http.StatusServiceUnavailable, "temporarily_unavailable", "")
	return nil
}

// ServeHTTP judges the request. Every way out that is not a call of next is a refusal.
func (p *Protect) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	// A handler before this one may have let the request in already, and taken the token.
	earlier, _ := r.Context().Value(bearerCtxKey{}).(*bearer)
	authorization := r.Header["Authorization"]

	// Before anything is decided, so that error routes get no foreign identity and no
	// credentials either.
	prefixes := p.realm.app.prefixes // all that any route's backend believes
	if earlier != nil {
		prefixes = p.headers.prefixes // what that handler has set is true
	}
	stripIdentity(r, true, prefixes)

	b, no := p.judge(r, earlier, authorization)
	if no != nil {
		return p.refuse(w, r, no)
	}
	p.allowed.Inc()
	if p.KeepToken && len(authorization) == 1 {
		r.Header["Authorization"] = authorization
	}
	err := next.ServeHTTP(w, p.headers.identify(r, b))
	if err != nil {
		// Error routes see these headers; the token was kept for the backend, not for them.
		delete(r.Header, "Authorization")
	}
	return err
}

// judge decides whether the request may pass: the facts of its token come from the
// cache or its source, the decision is made here, for this request and this route.
func (p *Protect) judge(r *http.Request, earlier *bearer, authorization []string) (*bearer, *refusal) {
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
		}
	}

	facts, err := p.lookup(r.Context(), token)
	if err != nil {
		if r.Context().Err() == nil {
			p.logger.Error("token could not be checked", zap.String("realm", p.realm.name), zap.Error(err))
		}
		return nil, p.undeterminable
	}
	if !facts.Active || !p.audienceFits(facts) {
		return nil, p.invalidToken
	}
	b := &bearer{token: token, facts: facts, realm: p.realm.name}
	if !p.scopesSuffice(facts) {
		logIdentity(r.Context(), b) // the one refusal where we know whom we refuse
		return nil, p.insufficient
	}
	return b, nil
}

// lookup finds out what token means.
func (p *Protect) lookup(ctx context.Context, token string) (*introspect.Facts, error) {
	engine, err := p.realm.await(ctx)
	if err != nil {
		return nil, err
	}
	if p.MaxAge == 0 {
		return engine.Tokens().Lookup(ctx, token)
	}
	return engine.Tokens().LookupWithin(ctx, token, time.Duration(p.MaxAge))
}

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

// refuse is the one place that turns a refusal into headers and an error for Caddy,
// which answers with the status and an empty body unless handle_errors says otherwise.
func (p *Protect) refuse(w http.ResponseWriter, r *http.Request, no *refusal) error {
	no.count.Inc()
	answerBeforeBody(w, r)
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
		c.Write(zap.String("realm", p.realm.name), zap.String("reason", no.code))
	}
	return caddyhttp.Error(no.status, no.err)
}

type tokenVerdict int

const (
	tokenPresent   tokenVerdict = iota
	tokenMissing                // no credentials for us
	tokenMalformed              // the header's structure is broken
	tokenInvalid                // one token, which can't be any server's
)

// maxTokenLength bounds what is hashed and looked up.
const maxTokenLength = 8 << 10

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
	if len(token) > maxTokenLength || !isB64Token(token) {
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
