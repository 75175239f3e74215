package caddyoauth

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"
	"golang.org/x/net/http/httpguts"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

func init() {
	caddy.RegisterModule(LocalSource{})
	caddy.RegisterModule(IntrospectSource{})
	caddy.RegisterModule(JWTSource{})
}

// LocalSource accepts tokens that a realm of this gateway issued.
type LocalSource struct {
	// The realm. Default: the one that the oauth_protect names.
	Realm string `json:"realm,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (LocalSource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "oauth.sources.local",
		New: func() caddy.Module { return new(LocalSource) },
	}
}

// IntrospectSource asks another authorization server what a token means (RFC 7662). Its
// answers are cached; a token that was revoked there is refused here after the cache's
// max_age at the latest, or at once if that server tells the admin endpoint
// `/oauth/forget`.
type IntrospectSource struct {
	// The introspection endpoint: https, or http on loopback. Redirects are not followed.
	URL string `json:"url,omitempty"`

	// Who the gateway is at that server. Default: it does not authenticate, unless by
	// headers.
	ClientID string `json:"client_id,omitempty"`

	// The secret, as `{env.NAME}` or `{file./path}`.
	ClientSecret string `json:"client_secret,omitempty"`

	// How the gateway authenticates: `client_secret_basic` or `client_secret_post`.
	// Default: `client_secret_basic`.
	Auth string `json:"auth,omitempty"`

	// What `iss` of an answer must be, if it has one. Default: anything but the issuer of
	// another source, or of a realm here.
	Issuer string `json:"issuer,omitempty"`

	// The claims that name the client; of several the first that is there counts. Dots lead
	// into objects. Default: `client_id` and `azp`, which must agree where both are there; without
	// either, `appid` or `cid`.
	ClientClaim []string `json:"client_claim,omitempty"`

	// The claims that have the scopes; of several the first that is there counts: a string with
	// spaces, a list, or an object with scopes as names. Default: `scope`, `scp`.
	ScopeClaim []string `json:"scope_claim,omitempty"`

	// By how much the server's clock may be ahead, up to 1m, when it says that a token is not
	// good yet (`nbf`). A token is dead at `exp` all the same. Default: 0.
	Leeway caddy.Duration `json:"leeway,omitempty"`

	// Headers of each request to the server. A value is `{env.NAME}` or `{file./path}`, alone
	// or behind `Bearer`, `Basic`, `Token`, `ApiKey` or `Key`, and is looked up for each
	// request; plain text is accepted in headers that are known to hold no secret, such as
	// `User-Agent` and `X-Tenant`. Default: none.
	Headers map[string]string `json:"headers,omitempty"`

	// How the server is connected to. Default: the system's certificate authorities.
	TLS *TLSClient `json:"tls,omitempty"`

	// How long the server may take to answer. Default: `2s`.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// For how long an answer is used without asking again, never beyond the token's expiry.
	// Default: the cache's `max_age`.
	MaxAge caddy.Duration `json:"max_age,omitempty"`

	// For how long the answer "not active" is remembered. Default: `5s`.
	NegativeMaxAge caddy.Duration `json:"negative_max_age,omitempty"`

	// For how much longer than `max_age` an answer is used while the server is away: no
	// connection, no answer in time, 429, 502, 503 or 504; never beyond the token's expiry,
	// not without one, nor beyond a route's own `max_age`. Default: not at all.
	ServeStale caddy.Duration `json:"serve_stale,omitempty"`

	key string
	cfg introspect.RemoteConfig
}

// CaddyModule returns the Caddy module information.
func (IntrospectSource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "oauth.sources.introspect",
		New: func() caddy.Module { return new(IntrospectSource) },
	}
}

// JWTSource accepts tokens that carry a signature of their issuer (RFC 9068, or what Keycloak,
// Entra ID and others sign). It can't know that such a token was revoked.
type JWTSource struct {
	// What `iss` must be, byte for byte.
	Issuer string `json:"issuer,omitempty"`

	// Where the issuer's keys are: an https URL, or http on loopback. Default: found through
	// the issuer's metadata (RFC 8414, OpenID Connect Discovery).
	JWKSURI string `json:"jwks_uri,omitempty"`

	// A file with the keys, instead: a JWK set, or in PEM public keys or certificates. It is
	// read again every 5 seconds.
	JWKSFile string `json:"jwks_file,omitempty"`

	// The signature algorithms that are accepted, of RS256, RS384, RS512, PS256, PS384,
	// PS512, ES256, ES384, ES512, EdDSA and Ed25519, its newer name. Default: RS256, PS256,
	// ES256, EdDSA and Ed25519.
	Algorithms []string `json:"algorithms,omitempty"`

	// Audiences of which a token must name one. Default: that of the route, if it has one.
	// Without any, tokens that were issued for somebody else are accepted.
	Audience []string `json:"audience,omitempty"`

	// The `typ` that headers must have: `at+jwt` (RFC 9068), or `any` for issuers that don't
	// say what a token is; then claims that name another kind, and audience, are what tells
	// access tokens from others. Default: `at+jwt`.
	Type string `json:"typ,omitempty"`

	// The claims that name the client; of several the first that is there counts. Dots lead
	// into objects. Default: `client_id` and `azp`, which must agree where both are there; without
	// either, `appid` or `cid`.
	ClientClaim []string `json:"client_claim,omitempty"`

	// The claims that have the scopes; of several the first that is there counts: a string with
	// spaces, a list, or an object with scopes as names. Default: `scope`, `scp`.
	ScopeClaim []string `json:"scope_claim,omitempty"`

	// By how much the issuer's clock may be ahead, up to 1m. A token is dead at `exp` all the
	// same. Default: 0.
	Leeway caddy.Duration `json:"leeway,omitempty"`

	// How often the keys are fetched, `10s` or more; of sources that share them the smallest
	// counts. Default: `15m`.
	RefreshInterval caddy.Duration `json:"refresh_interval,omitempty"`

	// Headers of each request for keys; as in the source introspect. They go to the host of
	// `jwks_uri`, or without it to that of the issuer. Default: none.
	Headers map[string]string `json:"headers,omitempty"`

	// Further hosts that get the headers, over https, when the issuer's metadata names them as
	// the place of the keys: with the port where the URL has one. Default: none.
	HeaderHosts []string `json:"header_hosts,omitempty"`

	// How the issuer is connected to. Default: the system's certificate authorities.
	TLS *TLSClient `json:"tls,omitempty"`

	// For how long a verified token is used without looking at its signature again. It is
	// dead when its key is withdrawn, all the same. Default: the cache's `max_age`.
	MaxAge caddy.Duration `json:"max_age,omitempty"`

	key, keysKey string
	cfg          introspect.JWTConfig
	keys         introspect.KeysConfig
}

// CaddyModule returns the Caddy module information.
func (JWTSource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "oauth.sources.jwt",
		New: func() caddy.Module { return new(JWTSource) },
	}
}

// Provision resolves what refers to something else. It connects to nothing.
func (s *IntrospectSource) Provision(caddy.Context) error {
	if err := s.check(); err != nil {
		return err
	}
	replace := caddy.NewReplacer()
	var err error
	s.cfg = s.settings()
	for _, text := range []struct {
		name, configured string
		resolved         *string
	}{{"url", s.URL, &s.cfg.URL}, {"client_id", s.ClientID, &s.cfg.ClientID}, {"issuer", s.Issuer, &s.cfg.Issuer}} {
		if *text.resolved, err = replace.ReplaceOrErr(text.configured, true, true); err != nil {
			return fmt.Errorf("%s: %w", text.name, err)
		}
	}
	if s.ClientSecret != "" {
		if s.cfg.ClientSecret, err = resolveSecret(s.ClientSecret); err != nil {
			return fmt.Errorf("client_secret: %w", err)
		}
	}
	if s.cfg.HeaderFunc, err = headers(s.Headers); err != nil {
		return err
	}
	var trust string
	if s.TLS != nil {
		if s.cfg.TLS, trust, err = s.TLS.config(); err != nil {
			return fmt.Errorf("tls: %w", err)
		}
	}
	if err := errors.Join(checkEndpoint(s.cfg.URL), s.cfg.Check()); err != nil {
		return err
	}
	// What the source is, and so what may be remembered in its name. Not how long an answer
	// may take: another timeout does not make what the server said, or its health, unknown.
	s.key = sourceKey("introspect", s.Label(), []any{s.cfg.URL, s.cfg.ClientID, s.cfg.ClientSecret, s.Auth, s.cfg.Issuer, s.ClientClaim, s.ScopeClaim, s.Leeway, s.Headers, trust})
	name, client := s.Label(), s.cfg.ClientID
	// The source outlives this configuration, and its logger.
	logger := func() *zap.Logger {
		return caddy.Log().Named("oauth.sources.introspect").With(zap.String("url", name))
	}
	var refused rarely
	s.cfg.OnRequest = func(result string, took time.Duration) {
		collectors.sourceDuration.WithLabelValues(name, result).Observe(took.Seconds())
		if result == introspect.RemoteCredentials && refused.now(time.Now()) {
			logger().Error("the server answered 401 or 403, to a token or to the gateway's own credentials: if it does so for all tokens, and they get 503, check client_id, client_secret and header",
				zap.String("client_id", client))
		}
	}
	s.cfg.OnCircuit = func(state string) {
		up := 0.0
		switch state {
		case "closed":
			up = 1
			logger().Info("the server answers again")
		case "open":
			logger().Error("the server can't be asked: answering 503 for its tokens without asking, until it can")
		}
		collectors.sourceUp.WithLabelValues(name).Set(up)
	}
	return nil
}

// Provision resolves what refers to something else. It connects to nothing.
func (s *JWTSource) Provision(caddy.Context) error {
	replace := caddy.NewReplacer()
	var err error
	s.keys, s.cfg = s.settings()
	for _, text := range []struct {
		name, configured string
		resolved         *string
	}{
		{"issuer", s.Issuer, &s.keys.Issuer}, {"jwks_uri", s.JWKSURI, &s.keys.JWKSURI}, {"jwks_file", s.JWKSFile, &s.keys.KeysFile},
	} {
		if *text.resolved, err = replace.ReplaceOrErr(text.configured, true, true); err != nil {
			return fmt.Errorf("%s: %w", text.name, err)
		}
	}
	if s.keys.HeaderFunc, err = headers(s.Headers); err != nil {
		return err
	}
	var trust string
	if s.TLS != nil {
		if s.keys.TLS, trust, err = s.TLS.config(); err != nil {
			return fmt.Errorf("tls: %w", err)
		}
	}
	if err := s.check(); err != nil {
		return err
	}
	if err := checkJWT(s.keys, s.cfg); err != nil {
		return err
	}
	// What the keys are, and beyond it what the source accepts by them.
	s.keysKey = sourceKey("keys", s.keys.Issuer, []any{s.keys.JWKSURI, s.keys.KeysFile, s.Headers, s.HeaderHosts, trust})
	s.key = sourceKey("jwt", s.keys.Issuer, []any{s.keysKey, s.Algorithms, s.Audience, s.Type, s.ClientClaim, s.ScopeClaim, s.Leeway, s.RefreshInterval})
	name := s.Label()
	// The keys outlive this configuration, and its logger.
	logger := func() *zap.Logger {
		return caddy.Log().Named("oauth.sources.jwt").With(zap.String("issuer", name))
	}
	s.keys.OnFetch = func(kind string, took time.Duration, err error) {
		result := "ok"
		if err != nil {
			result = "error"
			logger().Error("fetching the issuer's keys: going on with those there are", zap.String("what", kind), zap.Error(err))
		}
		collectors.sourceDuration.WithLabelValues(name, result).Observe(took.Seconds())
	}
	s.keys.OnKeys = func(n int, ignored []introspect.IgnoredKey) {
		collectors.sourceUp.WithLabelValues(name).Set(1)
		logger().Info("the issuer's keys are here", zap.Int("keys", n), zap.Stringers("ignored", ignored))
	}
	s.cfg.OnKeys = func(n int) {
		if n == 0 {
			logger().Error("none of the issuer's keys is for an algorithm that is accepted: its tokens are refused", zap.Strings("algorithms", s.Algorithms))
		}
	}
	return nil
}

// Label implements TokenSource. It has no query, which may hold a secret.
func (s *IntrospectSource) Label() string {
	endpoint, _, _ := strings.Cut(s.cfg.URL, "?")
	return endpoint
}

// Label implements TokenSource.
func (s *JWTSource) Label() string { return s.keys.Issuer }

// issuer is whose tokens the source knows, if its configuration says so.
func (s *IntrospectSource) issuer() string { return s.cfg.Issuer }

// issuer is whose tokens the source knows.
func (s *JWTSource) issuer() string { return s.keys.Issuer }

// rarely is for log lines that whoever sends tokens can cause: one a minute.
type rarely struct{ last atomic.Int64 }

func (r *rarely) now(now time.Time) bool {
	last := r.last.Load()
	return (last == 0 || now.Unix()-last >= 60) && r.last.CompareAndSwap(last, now.Unix())
}

// SourceKey implements TokenSource.
func (s *IntrospectSource) SourceKey() string { return s.key }

// SourceKey implements TokenSource.
func (s *JWTSource) SourceKey() string { return s.key }

// sourceKey is a source's kind and place, and a digest of all its settings.
func sourceKey(kind, place string, settings []any) string {
	text, err := json.Marshal(settings)
	if err != nil {
		panic(err) // strings, numbers and lists of them
	}
	digest := sha256.Sum256(slices.Concat(poolSecret, text))
	return kind + " " + place + " (" + hex.EncodeToString(digest[:8]) + ")"
}

// headers returns what resolves the values of headers, for each request anew: a file may
// change, such as the token that Kubernetes gives a pod. An error means that it can't be done
// now. No error holds a value.
func headers(configured map[string]string) (func() (http.Header, error), error) {
	if len(configured) == 0 {
		return nil, nil
	}
	resolve := func() (http.Header, error) {
		replace := caddy.NewReplacer()
		header := make(http.Header)
		for name, value := range configured {
			resolved, err := replace.ReplaceOrErr(value, true, true)
			if err != nil || resolved == "" {
				return nil, fmt.Errorf("header %s: %s is not set, empty, or can't be read", name, value)
			}
			header.Set(name, resolved)
		}
		return header, nil
	}
	_, err := resolve()
	return resolve, err
}

// Recognizes implements TokenSource.
func (s *IntrospectSource) Recognizes(string) Recognition { return PerhapsMine }

// Recognizes implements TokenSource: a JWT says who issued it.
func (s *JWTSource) Recognizes(token string) Recognition {
	if issuer, ok := introspect.UnverifiedIssuer(token); ok && issuer == s.keys.Issuer {
		return Mine
	}
	return NotMine
}

// check judges what can be judged without resolving anything.
func (s *IntrospectSource) check() error {
	switch {
	case (s.ClientID == "") != (s.ClientSecret == ""):
		return errors.New("client_id and client_secret belong together")
	case s.Auth != "" && s.ClientID == "":
		return errors.New("auth needs client_id and client_secret")
	case s.Auth != "" && s.Auth != string(oauth.AuthBasic) && s.Auth != string(oauth.AuthPost):
		return fmt.Errorf("auth %q is not known (known: %s, %s)", s.Auth, oauth.AuthBasic, oauth.AuthPost)
	case s.Timeout < 0 || s.MaxAge < 0 || s.NegativeMaxAge < 0 || s.ServeStale < 0:
		return errors.New("durations are greater than zero")
	case s.Leeway < 0 || s.Leeway > caddy.Duration(time.Minute):
		return errors.New("leeway is at most 1m")
	}
	if err := checkQuery("the endpoint", s.URL); err != nil {
		return err
	}
	if !strings.Contains(s.URL, "{") { // else it is judged when it is known
		if err := checkEndpoint(s.URL); err != nil {
			return err
		}
		if err := s.settings().Check(); err != nil {
			return err
		}
	}
	reserved := http.Header{}
	for name := range s.Headers {
		reserved.Set(name, "")
	}
	own := introspect.RemoteConfig{URL: "https://localhost", Auth: "none", Header: reserved}
	if s.ClientID != "" {
		own.Auth, own.ClientID, own.ClientSecret = s.Auth, s.ClientID, "-"
	}
	return cmp.Or(own.Check(), checkHeaders(s.Headers))
}

// checkEndpoint says more plainly than what comes after it which URLs are good.
func checkEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "https" && !(u.Scheme == "http" && isLoopbackHost(u.Hostname())) {
		return errors.New("the endpoint is not an https URL; http is accepted for loopback hosts only")
	}
	return nil
}

// settings are those that refer to nothing.
func (s *IntrospectSource) settings() introspect.RemoteConfig {
	cfg := introspect.RemoteConfig{URL: s.URL, ClientID: s.ClientID, Auth: s.Auth, Issuer: s.Issuer, ClientClaims: s.ClientClaim, ScopeClaims: s.ScopeClaim, Leeway: time.Duration(s.Leeway), Timeout: time.Duration(s.Timeout)}
	if s.ClientID == "" {
		cfg.Auth = "none"
	} else {
		cfg.ClientSecret = s.ClientSecret // a reference, which is not sent
	}
	return cfg
}

// check judges what can be judged without resolving anything.
func (s *JWTSource) check() error {
	if s.JWKSURI != "" && s.JWKSFile != "" {
		return errors.New("give jwks_uri or jwks_file, not both")
	}
	if s.MaxAge < 0 {
		return errors.New("durations are greater than zero")
	}
	for _, reference := range placeholders.FindAllString(s.Issuer, -1) {
		if !strings.HasPrefix(reference, "{env.") && !strings.HasPrefix(reference, "{file.") {
			return fmt.Errorf("issuer %s: %s has no value when the configuration is loaded, and an issuer is no template: each tenant is an issuer of its own, so write a source for each", s.Issuer, reference)
		}
	}
	if entraTemplate.MatchString(s.Issuer) {
		return fmt.Errorf("issuer %s: no token names it, because Entra ID issues in the name of a tenant, by its ID: write a source for each tenant", s.Issuer)
	}
	if !strings.Contains(s.Issuer+s.JWKSURI+s.JWKSFile, "{") {
		if err := checkJWT(s.settings()); err != nil {
			return err
		}
	}
	if err := checkQuery("jwks_uri", s.JWKSURI); err != nil {
		return err
	}
	for _, host := range s.HeaderHosts {
		if u, err := url.Parse("https://" + host); err != nil || u.Host != host || host == "" {
			return errors.New("header_hosts: each is a host, with a port where the URL has one, and nothing else")
		}
	}
	if len(s.HeaderHosts) > 0 && len(s.Headers) == 0 {
		return errors.New("header_hosts needs a header that they get")
	}
	return errors.Join(checkAudience(s.Audience), checkHeaders(s.Headers))
}

var (
	placeholders = regexp.MustCompile(`\{[^{}]*\}`)
	// entraTemplate are the names under which Entra ID serves several tenants at once. Its
	// tokens have the tenant's ID there.
	entraTemplate = regexp.MustCompile(`(?i)^https://(login\.microsoftonline\.com|sts\.windows\.net)/(common|organizations|consumers)(/|$)`)
)

// checkJWT judges settings that refer to nothing any more.
func checkJWT(keys introspect.KeysConfig, cfg introspect.JWTConfig) error {
	if err := keys.Check(); err != nil {
		return err
	}
	if err := cfg.Check(); err != nil {
		return fmt.Errorf("JWT source for %q: %w", keys.Issuer, err)
	}
	return nil
}

// settings are those that refer to nothing.
func (s *JWTSource) settings() (introspect.KeysConfig, introspect.JWTConfig) {
	return introspect.KeysConfig{
			Issuer: s.Issuer, JWKSURI: s.JWKSURI, KeysFile: s.JWKSFile, Discovery: s.JWKSURI == "" && s.JWKSFile == "", HeaderHosts: s.HeaderHosts,
		}, introspect.JWTConfig{
			Algorithms: s.Algorithms, Audience: s.Audience, Type: s.Type, ClientClaims: s.ClientClaim, ScopeClaims: s.ScopeClaim,
			Leeway:          time.Duration(s.Leeway),
			RefreshInterval: time.Duration(s.RefreshInterval),
		}
}

// headerReference is a value that may stand in any header: a reference to a secret, alone or
// behind the word that says what it is.
var headerReference = regexp.MustCompile(`^(?i:(Bearer|Basic|Token|ApiKey|Key) +)?\{(env|file)\.[^{}]+\}$`)

// openHeaders are those whose values are no secrets, so they may stand in a configuration.
// Nobody can tell from its name which other header is one.
var openHeaders = []string{
	"Accept-Api-Version", "Accept-Language", "From", "Origin", "Prefer", "Referer", "User-Agent", "X-Client-Name", "X-Correlation-Id",
	"X-Forwarded-Host", "X-Forwarded-Proto", "X-Realm", "X-Request-Id", "X-Requested-By", "X-Requested-With", "X-Tenant", "X-Tenant-Id",
}

// checkHeaders refuses what no request can carry, and what may be a secret that stands in
// the configuration. No error holds a value.
func checkHeaders(headers map[string]string) error {
	for _, name := range sortedKeys(headers) {
		switch {
		case !httpguts.ValidHeaderFieldName(name):
			return fmt.Errorf("header %q has no valid name", name)
		case !headerReference.MatchString(headers[name]) && !slices.Contains(openHeaders, http.CanonicalHeaderKey(name)):
			return fmt.Errorf("header %s: %w. It may follow Bearer, Basic, Token, ApiKey or Key. Literal values are accepted only in %s",
				name, errLiteralSecret, strings.Join(openHeaders, ", "))
		}
	}
	return nil
}

// secretParameter is a parameter of a query whose value is a secret.
var secretParameter = regexp.MustCompile(`(?i)key$|token$|secret|passw|pwd|credential|signature|^(sig|auth|code)$`)

// checkQuery refuses a secret that stands in the query of a URL. No error holds it.
func checkQuery(what, uri string) error {
	_, query, _ := strings.Cut(uri, "?")
	for parameter := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(parameter, "=")
		if value != "" && secretParameter.MatchString(name) && !secretReference.MatchString(value) {
			return fmt.Errorf("%s has a parameter %q in its query: %w", what, name, errLiteralSecret)
		}
	}
	return nil
}

// Memory implements TokenSource.
func (s *IntrospectSource) Memory() introspect.SourceConfig {
	return introspect.SourceConfig{
		MaxAge: time.Duration(s.MaxAge), NegativeAge: time.Duration(cmp.Or(s.NegativeMaxAge, caddy.Duration(introspect.DefaultNegativeAge))), StaleFor: time.Duration(s.ServeStale),
	}
}

// Memory implements TokenSource.
func (s *JWTSource) Memory() introspect.SourceConfig {
	return introspect.SourceConfig{MaxAge: time.Duration(s.MaxAge)}
}

// OpenSource implements TokenSource.
func (s *IntrospectSource) OpenSource() (introspect.Source, error) {
	return introspect.NewRemote(s.cfg)
}

// openKeys holds the keys of issuers, of which many sources may make use.
var openKeys = caddy.NewUsagePool()

// openIssuerKeys are keys in openKeys.
type openIssuerKeys struct{ *introspect.Keys }

// Destruct ends the fetching.
func (k openIssuerKeys) Destruct() error {
	k.Close()
	return nil
}

// openJWT is a JWT source with its share in openKeys.
type openJWT struct {
	*introspect.JWT
	keysKey string
}

// Close ends the source, and the keys if no other one uses them.
func (s openJWT) Close() error {
	s.JWT.Close()
	_, err := openKeys.Delete(s.keysKey)
	return err
}

// OpenSource implements TokenSource.
func (s *JWTSource) OpenSource() (introspect.Source, error) {
	keys, err := loadOrOpen(openKeys, s.keysKey, func() (openIssuerKeys, error) {
		keys, err := introspect.NewKeys(s.keys)
		return openIssuerKeys{keys}, err
	})
	if err != nil {
		return nil, err
	}
	cfg := s.cfg
	cfg.Keys = keys.Keys
	jwt, err := introspect.NewJWT(cfg)
	if err != nil {
		_, closeErr := openKeys.Delete(s.keysKey)
		return nil, errors.Join(err, closeErr)
	}
	return openJWT{jwt, s.keysKey}, nil
}

// parseSource reads source <name> ..., with what the module of that name reads.
func parseSource(d *caddyfile.Dispenser, p *Protect, realms map[string]*Realm) error {
	if !d.NextArg() {
		return d.ArgErr()
	}
	name := d.Val()
	id := "oauth.sources." + name
	if _, err := caddy.GetModule(id); err != nil {
		var known []string
		for _, m := range caddy.GetModules("oauth.sources") {
			known = append(known, m.ID.Name())
		}
		return d.Errf("there is no source '%s' (known: %s)", name, strings.Join(known, ", "))
	}
	unmarshaler, err := caddyfile.UnmarshalModule(d, id)
	if err != nil {
		return err
	}
	if local, ok := unmarshaler.(*LocalSource); ok {
		if _, err := chooseRealm(realms, cmp.Or(local.Realm, p.Realm)); err != nil {
			return d.WrapErr(err)
		}
	}
	p.SourcesRaw = append(p.SourcesRaw, caddyconfig.JSONModuleObject(unmarshaler, "source", name, nil))
	return nil
}

// UnmarshalCaddyfile reads
//
//	local [<realm>]
func (s *LocalSource) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the source's name
	if d.NextArg() {
		s.Realm = d.Val()
	}
	return nothingMore(d)
}

// UnmarshalCaddyfile reads
//
//	introspect <url> {
//		client_id        <id>
//		client_secret    {env.NAME}|{file./path}
//		auth             client_secret_basic|client_secret_post
//		issuer           <issuer>
//		client_claim     <name>...
//		scope_claim      <name>...
//		leeway           <duration>
//		header           <name> <value>
//		timeout          <duration>
//		max_age          <duration>
//		negative_max_age <duration>
//		serve_stale      <duration>
//		tls {
//			<settings of TLSClient>
//		}
//	}
//
// header may repeat.
func (s *IntrospectSource) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the source's name
	if err := parseWord(d, &s.URL); err != nil {
		return err
	}
	if err := parseOptions(d, "introspect", map[string]func() error{
		"client_id":        func() error { return parseWord(d, &s.ClientID) },
		"client_secret":    func() error { return parseSecretReference(d, &s.ClientSecret) },
		"auth":             func() error { return parseWord(d, &s.Auth) },
		"issuer":           func() error { return parseWord(d, &s.Issuer) },
		"client_claim":     func() error { return parseWords(d, &s.ClientClaim) },
		"scope_claim":      func() error { return parseWords(d, &s.ScopeClaim) },
		"leeway":           func() error { return parseDurationInto(d, &s.Leeway) },
		"header":           func() error { return parseHeader(d, &s.Headers) },
		"timeout":          func() error { return parseDurationInto(d, &s.Timeout) },
		"max_age":          func() error { return parseDurationInto(d, &s.MaxAge) },
		"negative_max_age": func() error { return parseDurationInto(d, &s.NegativeMaxAge) },
		"serve_stale":      func() error { return parseDurationInto(d, &s.ServeStale) },
		"tls": func() error {
			s.TLS = new(TLSClient)
			return s.TLS.parse(d)
		},
	}, "header"); err != nil {
		return err
	}
	return wrapErr(d, s.check())
}

// UnmarshalCaddyfile reads
//
//	jwt <issuer> {
//		jwks_uri         <url>
//		jwks_file        <file>
//		algorithms       <name>...
//		audience         <audience>...
//		typ              at+jwt|any
//		client_claim     <name>...
//		scope_claim      <name>...
//		leeway           <duration>
//		refresh_interval <duration>
//		header           <name> <value>
//		header_hosts     <host>...
//		max_age          <duration>
//		tls {
//			<settings of TLSClient>
//		}
//	}
//
// header may repeat.
func (s *JWTSource) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the source's name
	if err := parseWord(d, &s.Issuer); err != nil {
		return err
	}
	if err := parseOptions(d, "jwt", map[string]func() error{
		"jwks_uri":   func() error { return parseWord(d, &s.JWKSURI) },
		"jwks_file":  func() error { return parseWord(d, &s.JWKSFile) },
		"algorithms": func() error { return parseWords(d, &s.Algorithms) },
		"audience": func() (err error) {
			s.Audience, err = parseAudience(d)
			return err
		},
		"typ":              func() error { return parseWord(d, &s.Type) },
		"client_claim":     func() error { return parseWords(d, &s.ClientClaim) },
		"scope_claim":      func() error { return parseWords(d, &s.ScopeClaim) },
		"leeway":           func() error { return parseDurationInto(d, &s.Leeway) },
		"refresh_interval": func() error { return parseDurationInto(d, &s.RefreshInterval) },
		"header":           func() error { return parseHeader(d, &s.Headers) },
		"header_hosts": func() (err error) {
			s.HeaderHosts, err = atLeastOne(d)
			return err
		},
		"max_age": func() error { return parseDurationInto(d, &s.MaxAge) },
		"tls": func() error {
			s.TLS = new(TLSClient)
			return s.TLS.parse(d)
		},
	}, "header"); err != nil {
		return err
	}
	return wrapErr(d, s.check())
}

// parseHeader reads the name and the value of a header.
func parseHeader(d *caddyfile.Dispenser, headers *map[string]string) error {
	var name, value string
	if !d.AllArgs(&name, &value) {
		return d.ArgErr()
	}
	if *headers == nil {
		*headers = make(map[string]string)
	}
	if (*headers)[name] != "" {
		return d.Errf("header %s is there twice", name)
	}
	(*headers)[name] = value
	return nil
}

// parseClaim reads claim <name> <value>...
func parseClaim(d *caddyfile.Dispenser, p *Protect) error {
	args := d.RemainingArgs()
	if len(args) < 2 {
		name := "role"
		if len(args) == 1 {
			name = args[0]
		}
		return d.Errf("claim needs a name, and behind it the values of which a token must have one, as in 'claim %s admin'", name)
	}
	rule := ClaimRule{Name: args[0], Values: args[1:]}
	p.Claims = append(p.Claims, rule)
	return wrapErr(d, rule.check())
}

// Interface guards
var (
	_ caddy.Provisioner     = (*IntrospectSource)(nil)
	_ caddy.Provisioner     = (*JWTSource)(nil)
	_ caddyfile.Unmarshaler = (*LocalSource)(nil)
	_ caddyfile.Unmarshaler = (*IntrospectSource)(nil)
	_ caddyfile.Unmarshaler = (*JWTSource)(nil)
	_ TokenSource           = (*IntrospectSource)(nil)
	_ TokenSource           = (*JWTSource)(nil)
)
