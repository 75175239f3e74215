package caddyoauth

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

func init() {
	caddy.RegisterModule(Server{})
}

// Server serves the OAuth 2.0 endpoints of realms: token (RFC 6749 section 4.4),
// introspection (RFC 7662), revocation (RFC 7009) and metadata (RFC 8414). Requests for
// other paths go to the next handler, guarded: without the identity headers that only
// `oauth_protect` may set, and without anything that leads around it. See `oauth_guard`.
//
// It serves these paths under each base path. Those of a realm other than root come after
// `/realms/root/realms/<realm>`, and those of a nested one, such as `retail/eu`, after
// `/realms/root/realms/retail/realms/eu`:
//
// Path | What
// -----|-----
// `/access_token`, `/token` | token endpoint, POST
// `/introspect` | introspection, POST; a signed answer (RFC 9701) for those who accept one, if the realm has keys
// `/token/revoke`, `/revoke` | revocation, POST
// `/tokeninfo` | what the token in the Authorization header means, GET, if the realm has `am_compat`
// `/connect/jwk_uri`, `/jwks` | the public keys of JWTs (RFC 7517), if the realm has any
// `/.well-known/openid-configuration` | metadata, where ForgeRock AM has it
// `/authorize` | an authorization endpoint that refuses everybody, if an `oauth_protect` with a `resource` accepts the realm's tokens
//
// A realm with `am_compat` also has the other spellings of ForgeRock AM: `/realms/alpha`, `/alpha`, and the
// parameter `realm` of the query.
//
// It also serves `/.well-known/oauth-authorization-server` followed by the path of the issuer.
// A slash at the end of a path for POST makes no difference.
//
// A request that only looks as if it were for an endpoint is answered with 404, so that its
// secret reaches no backend. Below the base path, that is a request whose path ends with the
// name of an endpoint. Elsewhere, the request must also be able to carry a secret, and its path
// must have `oauth2` or the end of the base path as one of its parts. At the base path itself,
// it is any request that can carry a secret. Give `oauth_server` a matcher to leave out what a
// backend serves itself.
//
// That matcher should be for hosts only: with one for paths, the metadata is not served, and
// other requests are not guarded.
type Server struct {
	// Where it stands in the Caddyfile, as in `Caddyfile:12`. The adapter writes it, for people:
	// it is named in logs and decides nothing. Default: none.
	At string `json:"at,omitempty"`

	// The realms to serve. Default: all.
	Realms []string `json:"realms,omitempty"`

	// The path under which the endpoints are served. It begins with `/` and has no `?`, `#`, `%`
	// or `\`. The metadata names the endpoints there. Default: `/oauth2`.
	BasePath string `json:"base_path,omitempty"`

	// More such paths, for programs that know the endpoints by them. A realm has one issuer all the
	// same, and one metadata document, wherever it is fetched. Default: none.
	OtherBasePaths []string `json:"other_base_paths,omitempty"`

	// One of the realms served, for which the host of the site stands. Its endpoints are at the base path
	// itself, too, and those of root only after `/realms/root`. Where the issuers of several realms have
	// the same path, and differ in their hosts, it is this one's metadata that is at
	// `/.well-known/oauth-authorization-server` and that path. Default: root, and such issuers are
	// refused.
	DefaultRealm string `json:"default_realm,omitempty"`

	// Serves callers on other machines over plain HTTP, too. Their secrets and tokens can then be
	// read on the way. Plain HTTP from this machine is served in any case. For a proxy among the
	// server's `trusted_proxies`, what it says in `X-Forwarded-Proto` counts instead of how it
	// connects itself. Default: false.
	InsecureHTTP bool `json:"insecure_http,omitempty"`

	// Passes on a request for another path even if a backend could read its path differently;
	// see `oauth_protect`. Default: false, and such requests are answered with 400 if any
	// `oauth_protect` in the configuration would do so.
	AllowAmbiguousPaths bool `json:"allow_ambiguous_paths,omitempty"`

	// Findings of `caddy oauth lint` that are meant to be, in this handler. Default: none.
	LintIgnore []LintIgnore `json:"lint_ignore,omitempty"`

	app      *App
	logger   *zap.Logger
	refusals *refusalLog
	// basePaths are BasePath and OtherBasePaths, without a slash at the end.
	basePaths []string
	// endpoints are by path. Nothing is matched by prefix.
	endpoints map[string]*route
	served    []*servedRealm
	// am are the realms served, by name, if any of them has am_compat; see am_realms.go. Else it is nil.
	am map[string]*servedRealm
	// rootTokenInfo are the paths of /tokeninfo in the place of a root that is not served.
	rootTokenInfo map[string]*route
	// site is where this handler stands, and beside the list of routes that it is in. Both can be followed
	// once all routes are loaded. itself is this handler, of which others may have a copy.
	site   site
	beside caddyhttp.RouteList
	itself *Server
	// noSuchEndpoint answers what misdirected finds.
	noSuchEndpoint *oauth.Error
}

// route is one path of one realm.
type route struct {
	realm *servedRealm
	kind  endpointKind
	// metadata is the document, ready to send. Nil says that there is none.
	metadata []byte
	// proofURLs are those that DPoP proofs may be made for; none if proofs are ignored.
	proofURLs []string
	// audiences are what an assertion may be for, beside the issuer.
	audiences []string
	span      string                 // the name of its spans
	requests  *prometheus.CounterVec // by result
}

type endpointKind string

const (
	endpointToken      endpointKind = "token"
	endpointIntrospect endpointKind = "introspect"
	endpointRevoke     endpointKind = "revoke"
	endpointMetadata   endpointKind = "metadata"
	endpointAuthorize  endpointKind = "authorization"
	endpointKeys       endpointKind = "keys"
	endpointTokenInfo  endpointKind = "tokeninfo"
)

// published reports whether there is a document for everybody.
func (k endpointKind) published() bool { return k == endpointMetadata || k == endpointKeys }

// CaddyModule returns the Caddy module information.
func (Server) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.oauth_server",
		New: func() caddy.Module { return new(Server) },
	}
}

// Provision finds the realms and lays out their paths.
func (s *Server) Provision(ctx caddy.Context) error {
	s.logger = watched(ctx.Logger())
	app, err := appFor(ctx, "oauth_server")
	if err != nil {
		return err
	}
	s.app, s.refusals = app, app.refusalLogFor(ctx, "", s.At)
	if s.BasePath == "" {
		s.BasePath = "/oauth2"
	}
	paths := append([]string{s.BasePath}, s.OtherBasePaths...)
	if err := checkBasePaths(paths); err != nil {
		return fmt.Errorf("oauth_server: %w", err)
	}
	for _, path := range paths {
		s.basePaths = append(s.basePaths, strings.TrimSuffix(path, "/"))
	}
	s.BasePath = s.basePaths[0]
	if err := checkLintIgnores(s.LintIgnore, false); err != nil {
		return fmt.Errorf("oauth_server: %w", err)
	}
	names := s.Realms
	if len(names) == 0 {
		names = sortedKeys(app.realms)
	}
	if err := checkDefaultRealm(s.DefaultRealm, names); err != nil {
		return fmt.Errorf("oauth_server: %w", err)
	}
	s.endpoints = make(map[string]*route)
	for _, name := range names {
		r, err := app.realm(name)
		if err != nil {
			return fmt.Errorf("oauth_server: %w", err)
		}
		if err := s.layOut(r); err != nil {
			return fmt.Errorf("oauth_server: %w", err)
		}
		s.served = append(s.served, r)
	}
	if slices.ContainsFunc(s.served, func(r *servedRealm) bool { return r.am != nil }) {
		s.am = make(map[string]*servedRealm)
		for _, r := range s.served {
			s.am[r.name] = r
		}
		s.layOutTokenInfo()
	}
	s.noSuchEndpoint = s.directions(s.served)
	s.site, s.beside, s.itself = siteOf(ctx), routesBeside(ctx), s
	_, err = app.register(ctx, needs{store: true, server: s})
	return err
}

func checkBasePaths(paths []string) error {
	for i, path := range paths {
		if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "?#%\\") {
			return fmt.Errorf("base_path %q must begin with / and must not have ?, #, %% or \\", path)
		}
		if slices.ContainsFunc(paths[:i], func(other string) bool { return strings.TrimSuffix(other, "/") == strings.TrimSuffix(path, "/") }) {
			return fmt.Errorf("base_path %q is there twice", path)
		}
	}
	return nil
}

// checkDefaultRealm checks the default_realm of a handler that serves these realms.
func checkDefaultRealm(name string, served []string) error {
	if name != "" && !slices.Contains(served, name) {
		return fmt.Errorf("default_realm '%s' is not a realm that is served here (those are %s)", name, strings.Join(served, ", "))
	}
	return nil
}

// fullRealmPath is what comes between the base path and the endpoints of a realm in the form in which
// root has one, too.
func fullRealmPath(name string) string { return cmp.Or(realmPath(name), "/realms/root") }

// isDefault reports whether the endpoints of a realm are at the base path itself.
func (s *Server) isDefault(r *servedRealm) bool { return r.name == cmp.Or(s.DefaultRealm, rootRealm) }

// bases returns what the paths of a realm's endpoints begin with.
func (s *Server) bases(r *servedRealm) []string {
	var bases []string
	for _, base := range s.basePaths {
		if s.isDefault(r) {
			bases = append(bases, base)
		}
		bases = append(bases, base+fullRealmPath(r.name))
	}
	return bases
}

// layOut adds the endpoints of a realm.
func (s *Server) layOut(r *servedRealm) error {
	s.app.useSeries(r.name)
	collectors.failureLimits.WithLabelValues(r.name) // Prometheus sees no increase where a series begins
	counted := func(kind endpointKind) *route {
		labels := prometheus.Labels{"realm": r.name, "endpoint": string(kind)}
		return &route{realm: r, kind: kind, span: "oauth." + string(kind), requests: collectors.requests.MustCurryWith(labels)}
	}
	jwks := &route{realm: r, kind: endpointKeys}
	token, introspection, revocation := counted(endpointToken), counted(endpointIntrospect), counted(endpointRevoke)
	tokenInfo := counted(endpointTokenInfo)
	if r.settings.Proofs != nil {
		token.proofURLs = s.tokenURLs(r)
	}
	if r.am != nil && r.am.AssertionAudience == audienceTokenEndpoint && r.issuer != nil {
		urls := s.tokenURLs(r)
		token.audiences, introspection.audiences, revocation.audiences = urls, urls, urls
	}
	for _, base := range s.bases(r) {
		// A base path may also end with the first half of /token/revoke.
		for _, end := range []string{tokenPath, "/revoke", "/token/revoke"} {
			if other := s.endpoints[base+end]; other != nil && other.realm != r {
				return fmt.Errorf("the endpoints of realms %q and %q would both be at %s; choose base paths of which none leads into another", other.realm.name, r.name, base)
			}
		}
		// Several client libraries add the slash.
		for _, end := range []string{"", "/"} {
			s.endpoints[base+"/access_token"+end], s.endpoints[base+"/token"+end] = token, token
			s.endpoints[base+"/introspect"+end] = introspection
			s.endpoints[base+"/token/revoke"+end], s.endpoints[base+"/revoke"+end] = revocation, revocation
		}
		if r.am != nil {
			s.endpoints[base+tokenInfoPath] = tokenInfo
		}
		if r.signing != nil {
			s.endpoints[base+"/connect/jwk_uri"], s.endpoints[base+"/jwks"] = jwks, jwks
		}
	}
	return s.layOutMetadata(r)
}

// layOutMetadata adds the metadata of a realm, if it has any. It is called again if the metadata
// changes while the configuration is being loaded.
func (s *Server) layOutMetadata(r *servedRealm) error {
	if r.issuer == nil {
		return nil
	}
	document, err := s.metadata(r, new(oauth.Offers))
	if err != nil {
		return err
	}
	meta := &route{realm: r, kind: endpointMetadata, metadata: document}
	// The path of the document depends on the issuer's path alone, so issuers that differ in
	// their host need handlers of their own.
	wellKnown := "/.well-known/oauth-authorization-server" + strings.TrimSuffix(r.issuer.Path, "/")
	other := s.endpoints[wellKnown]
	if other == nil || other.realm == r || s.DefaultRealm == r.name {
		s.endpoints[wellKnown] = meta
	} else if s.DefaultRealm != other.realm.name {
		return fmt.Errorf("the metadata of realms %q and %q would both be at %s; give their issuers different paths, or say by default_realm for which of them the site's host stands, or serve each realm from its own oauth_server in its own site", other.realm.name, r.name, wellKnown)
	}
	if r.noOpenIDConfiguration {
		// Don't leave this to the next handler: libraries that look for OpenID Connect, in both of
		// its places (RFC 8414 section 5), go on to our own place only if they are told that it is
		// not there.
		meta = &route{realm: r, kind: endpointMetadata}
		s.endpoints["/.well-known/openid-configuration"+strings.TrimSuffix(r.issuer.Path, "/")] = meta
	}
	for _, base := range s.bases(r) {
		s.endpoints[base+"/.well-known/openid-configuration"] = meta
		if r.authorization {
			s.endpoints[base+authorizePath] = &route{realm: r, kind: endpointAuthorize}
		}
	}
	return nil
}

// find returns the endpoint that a request is for, or nil. missing is then set if it is for one of a realm
// that there isn't, in a spelling of ForgeRock AM's, and says which.
func (s *Server) find(r *http.Request) (e *route, missing endpointKind) {
	if e = s.endpoints[r.URL.Path]; e == nil {
		e = s.inRootsPlace(r.URL.Path)
	}
	if s.am == nil || e != nil && (e.realm.am == nil || r.URL.RawQuery == "") {
		return e, ""
	}
	return s.findAM(r, e)
}

// ServeHTTP answers requests for the endpoints and passes on all others.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	held := s.takeBack(r)
	e, missing := s.find(r)
	if e == nil {
		if missing != "" && !s.servedElsewhere(r) {
			s.refuseUnknownRealm(w, r, missing)
			return nil
		}
		kind, meant := s.misdirected(r)
		if kind != "" && !s.servedElsewhere(r) {
			s.refuseMisdirected(w, r, kind, meant, http.StatusNotFound, s.noSuchEndpoint)
			return nil
		}
		if kind != "" || missing != "" || held {
			without, err := s.holdBack(w, r)
			if err != nil {
				status, refusal := unreadable(err)
				s.refuseMisdirected(w, r, cmp.Or(kind, missing), meantPath(r), status, refusal)
				return nil
			}
			r = without
		}
		return s.passOn(w, r, next)
	}
	defer s.withhold(r, nil)
	h := w.Header()
	// One array holds the values of all three. Whoever appends to one of them gets another.
	values := [...]string{"nosniff", "no-store", "no-cache"}
	h["X-Content-Type-Options"] = values[0:1:1]
	if s.servePublic(w, r, e) {
		return nil
	}
	if ctx, span := startSpan(r.Context(), e.span, trace.SpanKindInternal); span != nil {
		defer span.End()
		r = r.WithContext(ctx)
	}
	h["Cache-Control"], h["Pragma"] = values[1:2:2], values[2:3:3]
	if e.kind == endpointTokenInfo {
		s.serveTokenInfo(w, r, e)
		return nil
	}

	if status, refusal := s.unfit(r, e); refusal != nil {
		if status == http.StatusMethodNotAllowed {
			h.Set("Allow", http.MethodPost)
			if e.takesQueryToken() {
				h.Set("Allow", http.MethodGet+", "+http.MethodPost)
			}
		}
		s.refuse(w, r, e, status, refusal)
		return nil
	}
	body, err := readBody(w, r)
	if err != nil {
		status, refusal := unreadable(err)
		s.refuse(w, r, e, status, refusal)
		return nil
	}
	from, _ := clientAddr(r)
	bearer, badBearer := e.bearer(r)
	in := oauth.Incoming{Authorization: r.Header["Authorization"], Bearer: bearer, Body: body, Certificate: s.app.ClientCertificates.of(r), DPoP: r.Header["Dpop"], SVIDs: e.realm.takesSVIDs, URLs: s.urlsOf(e, r, e.proofURLs), Audiences: s.urlsOf(e, r, e.audiences), From: from}
	if am := e.realm.am; am != nil {
		in.Query, in.TakeQueryCredentials, in.TakeQueryToken, in.Lenient = r.URL.RawQuery, am.CredentialsInQuery, e.takesQueryToken(), true
	}
	req, err := oauth.ParseRequest(in)
	if err == nil && e.contradicts(req.Form.Get("realm")) {
		err = errOtherRealm
	}
	if err == nil && badBearer != nil {
		err = badBearer
	}
	if err == nil && e.kind == endpointToken && e.realm.am.refusesKey(req.Form) {
		err = errCnfKey
	}
	if err != nil {
		s.answer(w, r, e, req.Form, nil, oauth.Outcome{}, err)
		return nil
	}
	engine, err := e.realm.await(r.Context())
	if err != nil {
		s.answer(w, r, e, req.Form, nil, oauth.Outcome{}, err)
		return nil
	}

	var reply any
	var out oauth.Outcome
	switch e.kind {
	case endpointToken:
		var grant oauth.Grant
		if grant, out, err = engine.Token(r.Context(), req); err == nil {
			reply = encodedAnswer(e.tokenAnswerOf(grant).encode())
			if grant.NextNonce != "" {
				h.Set(nonceHeader, grant.NextNonce)
			}
		}
	case endpointIntrospect:
		var facts *introspect.Facts
		issuer := e.realm
		if issuer.am != nil {
			req.Elsewhere = issuer.elsewhere
		}
		if facts, out, err = engine.Introspect(r.Context(), req); err == nil {
			if other := s.app.realms[out.TokenRealm]; other != nil {
				issuer = other
			}
			now := time.Now()
			answer := issuer.introspected(facts, now)
			reply = answer
			if e.realm.signing != nil {
				h.Add("Vary", "Accept")
				if prefersSigned(r.Header["Accept"]) {
					reply, err = e.realm.signAnswer(out.ClientID, answer, now)
				}
			}
			if !facts.Active { // another realm here may have issued it
				token := introspect.NewToken(req.Form.Get("token"))
				out.Cause = s.app.whyNot([]routeSource{e.realm}, &token, out.Cause)
			}
		}
	case endpointRevoke:
		out, err = engine.Revoke(r.Context(), req)
		reply = struct{}{}
	}
	s.answer(w, r, e, req.Form, reply, out, err)
	return nil
}

// bearer returns the access token that authenticates the caller, if the endpoint takes one and there is
// one, or how one that can't be any is refused.
func (e *route) bearer(r *http.Request) (string, error) {
	if e.kind != endpointIntrospect || e.realm.settings.IntrospectScope == "" {
		return "", nil
	}
	token, verdict := bearerToken(r.Header["Authorization"])
	switch verdict {
	case tokenMalformed:
		return "", &oauth.Error{Code: oauth.CodeInvalidRequest, Description: "the Authorization header must have one well-formed bearer token", Reason: "bearer_malformed"}
	case tokenInvalid, tokenTooLong:
		return "", &oauth.Error{Code: oauth.CodeInvalidToken, Description: "the token is not valid here", Reason: "bearer_malformed"}
	}
	return token, nil
}

// Reasons of unfit that a realm with am_compat has to tell from others.
const (
	reasonMethod      = "method"
	reasonContentType = "content_type"
)

// unfit returns how a request to an endpoint is refused for what can be told before its body is
// read, or nil.
func (s *Server) unfit(r *http.Request, e *route) (status int, _ *oauth.Error) {
	if e.kind == endpointTokenInfo {
		return s.unfitForTokenInfo(r, e)
	}
	asks := r.Method == http.MethodGet && e.takesQueryToken()
	if r.Method != http.MethodPost && !asks {
		return http.StatusMethodNotAllowed, &oauth.Error{Code: oauth.CodeInvalidRequest, Description: "the method must be POST", Reason: reasonMethod}
	}
	if status, refusal := s.unfitTransport(r, e); refusal != nil {
		return status, refusal
	}
	if !isForm(r.Header["Content-Type"]) && !(asks && r.ContentLength == 0) {
		return http.StatusBadRequest, &oauth.Error{Code: oauth.CodeInvalidRequest, Description: "the content type must be application/x-www-form-urlencoded", Reason: reasonContentType}
	}
	return 0, nil
}

// takesQueryToken reports whether the endpoint takes the token that a request is about from the query, and
// so by GET, too.
func (e *route) takesQueryToken() bool {
	return e.kind == endpointIntrospect && e.realm.am != nil && e.realm.am.TokensInQuery
}

// unfitTransport is the part of unfit that goes by how a request has come, and by its query.
func (s *Server) unfitTransport(r *http.Request, e *route) (status int, _ *oauth.Error) {
	switch {
	case !s.InsecureHTTP && !secureOrLocal(r):
		return http.StatusForbidden, &oauth.Error{Code: oauth.CodeInvalidRequest, Description: "TLS is required", Reason: "insecure_transport"}
	case tooEarly(r):
		return http.StatusTooEarly, &oauth.Error{Code: oauth.CodeInvalidRequest, Description: "send it again after the TLS handshake", Reason: "early_data"}
	case e.contradictedBy(r.URL.RawQuery):
		return http.StatusBadRequest, errOtherRealm
	}
	return 0, nil
}

// passOn hands a request that is for no endpoint to the next handler, guarded.
func (s *Server) passOn(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if asksForTunnel(r) {
		refuseTunnel(w, r, s.refusals)
		return nil
	}
	// In a route block an oauth_protect may have come before. Then the headers are ours.
	if _, letIn := FactsFromContext(r.Context()); !letIn {
		// Only an oauth_protect behind us can tell whether these may pass.
		overrides, gone := strip(r, s.app.prefixes, s.app.credentials, false)
		s.refusals.stripped(r, gone)
		setAside(r, overrides)
	}
	if ambiguousURL(r.URL, s.AllowAmbiguousPaths || !s.app.refusesPaths()) {
		return refuseAmbiguous(w, r, s.refusals)
	}
	return next.ServeHTTP(w, r)
}

// logOutcome logs the event of a request that was answered, and counts it.
func (s *Server) logOutcome(r *http.Request, e *route, out oauth.Outcome) {
	result := "ok"
	switch {
	case out.NotPermitted:
		result = "not_permitted"
	case out.TokenID == (introspect.TokenID{}):
		result = "inactive" // there was nothing to tell or to revoke
	}
	e.requests.WithLabelValues(result).Inc()
	e.countClient(out, result)
	describeRequest(r.Context(), e, out.ClientID, result, string(out.Cause))
	// Why an answer to an introspection is inactive is for operators alone.
	why := string(out.Cause)
	if result == "not_permitted" {
		why = result
	}
	if why != "" {
		collectors.inactive.WithLabelValues(e.realm.name, why).Inc()
	}

	var event, message string
	level := zap.InfoLevel
	switch e.kind {
	case endpointToken:
		event, message = "token_issued", "token issued"
	case endpointIntrospect:
		event, message, level = "token_introspected", "token introspected", zap.DebugLevel
	case endpointTokenInfo:
		event, message, level = "tokeninfo_answered", "tokeninfo answered", zap.DebugLevel
	case endpointRevoke:
		event, message = "token_revoked", "token revoked"
		if result == "inactive" {
			message = "nothing to revoke"
		}
	}
	if c := s.logger.Check(level, message); c != nil {
		fields := append(make([]zap.Field, 0, 10), zap.String("event", event), zap.String("realm", e.realm.name), zap.String("client_id", out.ClientID))
		if e.kind == endpointIntrospect {
			fields = append(fields, zap.String("result", result))
			if out.Cause != "" {
				fields = append(fields, zap.String("cause", string(out.Cause)))
			}
		}
		if out.TokenRealm != "" {
			fields = append(fields, zap.String("token_realm", out.TokenRealm))
		}
		if result != "inactive" {
			fields = append(fields, zap.String("token_id", out.TokenID.String()))
			if out.JTI != "" {
				fields = append(fields, zap.String("jti", out.JTI))
			}
		}
		if out.Key != "" {
			fields = append(fields, zap.String("jkt", out.Key))
		}
		if out.Scope != "" {
			fields = append(fields, zap.String("scope", out.Scope))
		}
		c.Write(sender(fields, r, out)...)
	}
}

// countClient counts a request in the name of a client, if that is registered. Whether it was the
// client that sent it, the result says.
func (e *route) countClient(out oauth.Outcome, result string) {
	if counts := e.realm.countsOf(out.ClientID); counts != nil && out.ClientID != "" {
		counts.countRequest(e.kind, result)
	}
}

// sender appends the fields that say who sent a request and how that was proved.
func sender(fields []zap.Field, r *http.Request, out oauth.Outcome) []zap.Field {
	fields = append(fields, zap.String("remote_ip", clientIP(r)))
	if out.CredentialsInQuery {
		fields = append(fields, zap.Bool("credentials_in_query", true))
	}
	return provedBy(fields, out)
}

// provedBy appends the fields that say how it was proved who sent a request.
func provedBy(fields []zap.Field, out oauth.Outcome) []zap.Field {
	if out.AuthMethod != "" {
		fields = append(fields, zap.String("auth_method", out.AuthMethod))
	}
	if out.Proof.Secret != 0 {
		fields = append(fields, zap.Int("secret", out.Proof.Secret))
	}
	if out.Proof.Key != "" {
		fields = append(fields, zap.String("key", out.Proof.Key))
	}
	if out.Proof.Certificate != "" {
		fields = append(fields, zap.String("certificate", out.Proof.Certificate))
	}
	if out.Proof.Identity != "" {
		fields = append(fields, zap.String("identity", out.Proof.Identity))
	}
	if !out.Proof.Until.IsZero() {
		fields = append(fields, zap.String("secret_until", out.Proof.Until.UTC().Format(time.RFC3339)))
	}
	if out.Proof.Old {
		fields = append(fields, zap.Bool("rotation", true))
	}
	return fields
}

// logRefusal logs the event of a request that was refused, and counts it. It names the client
// only if that is registered: what else stands in its place may be anything, even a mistyped
// secret.
func (s *Server) logRefusal(r *http.Request, e *route, refusal *oauth.Error, out oauth.Outcome) {
	result := string(refusal.Code)
	if refusal.Reason == reasonCanceled {
		result = reasonCanceled
	}
	e.requests.WithLabelValues(result).Inc()
	e.countClient(out, cmp.Or(refusal.Reason, result))
	describeRequest(r.Context(), e, out.ClientID, result, cmp.Or(refusal.Reason, refusal.Description))
	level := zap.InfoLevel
	if refusal.Reason == oauth.ReasonFailureLimit {
		level = zap.DebugLevel // the event of the pause is enough, for a flood and for a program that goes on
	}
	if e.kind == endpointTokenInfo && (refusal.Code == oauth.CodeInvalidToken || refusal.Code == oauth.CodeTooManyRequests) {
		level = zap.DebugLevel // as where a client asks, and anybody can do this
	}
	if c := s.logger.Check(level, string(e.kind)+" request refused"); c != nil {
		c.Write(sender([]zap.Field{
			zap.String("event", string(e.kind)+"_refused"), zap.String("realm", e.realm.name), zap.String("client_id", out.ClientID),
			zap.String("error", result), zap.String("reason", cmp.Or(refusal.Reason, refusal.Description)),
		}, r, out)...)
	}
	s.app.logPause(r, e.realm.name, out)
}

// logPause logs the event of a pause that began with a request's failure, and counts it. It names
// the client only if that is registered.
func (a *App) logPause(r *http.Request, realm string, out oauth.Outcome) {
	if out.Paused == 0 {
		return
	}
	collectors.failureLimits.WithLabelValues(realm).Inc()
	if c := a.limited().Check(zap.InfoLevel, "too many failed authentications: for a while, nothing that comes from there in the client's name is looked at"); c != nil {
		c.Write(sender([]zap.Field{
			zap.String("event", "failures_limited"), zap.String("realm", realm), zap.String("client_id", out.ClientID),
			zap.Int64("retry_after", int64(roundUp(out.Paused)/time.Second)),
		}, r, out)...)
	}
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Server)(nil)
	_ caddyhttp.MiddlewareHandler = (*Server)(nil)
)
