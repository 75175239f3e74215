package caddyoauth

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/introspect"
)

func init() {
	caddy.RegisterModule(JWTSource{})
}

// JWTSource accepts tokens that their issuer has signed (RFC 9068, or what Keycloak, Entra ID and
// others sign). It can't know whether such a token has been revoked.
type JWTSource struct {
	// What `iss` must be, byte for byte.
	Issuer string `json:"issuer,omitempty"`

	// Where the issuer's keys are: an https URL, or http on loopback. Default: where the issuer's
	// metadata says (RFC 8414, OpenID Connect Discovery).
	JWKSURI string `json:"jwks_uri,omitempty"`

	// A file with the keys, instead of `jwks_uri`: a JWK set, or public keys or certificates in
	// PEM. It is read again every 5 seconds.
	JWKSFile string `json:"jwks_file,omitempty"`

	// The accepted signature algorithms, out of RS256, RS384, RS512, PS256, PS384, PS512, ES256,
	// ES384, ES512, EdDSA, and Ed25519, its newer name. Default: RS256, PS256, ES256, EdDSA and
	// Ed25519.
	Algorithms []string `json:"algorithms,omitempty"`

	// Audiences, one of which a token must name. Default: that of the route, if it has one.
	// Without any, tokens that were issued for somebody else are accepted.
	Audience []string `json:"audience,omitempty"`

	// The `typ` that a token's header must have: `at+jwt` (RFC 9068), or `any` for issuers that
	// don't say what a token is. With `any`, access tokens are told from others only by their
	// audience and by claims that name another kind. Default: `at+jwt`.
	Type string `json:"typ,omitempty"`

	// The claims that name the client; the first one that is present counts. Dots lead into
	// objects. Default: `client_id` and `azp`, which must agree if both are present; without
	// either, `appid` or `cid`.
	ClientClaim []string `json:"client_claim,omitempty"`

	// The claims that hold the scopes; the first one that is present counts. It is a string with
	// spaces, a list, or an object with scopes as names. Default: `scope`, `scp`.
	ScopeClaim []string `json:"scope_claim,omitempty"`

	// How far the issuer's clock may be ahead, up to `1m`. It does not extend a token beyond
	// `exp`. Default: 0.
	Leeway caddy.Duration `json:"leeway,omitempty"`

	// How often the keys are fetched, `10s` or more. If sources share keys, the shortest interval
	// counts. Default: `15m`.
	RefreshInterval caddy.Duration `json:"refresh_interval,omitempty"`

	// Headers of each request for keys, as in the source introspect. They are sent to the host of
	// `jwks_uri`, or, without it, to that of the issuer. Default: none.
	Headers map[string]string `json:"headers,omitempty"`

	// Further hosts that get the headers, over https, if the issuer's metadata says that the keys
	// are there. A host has a port if the URL has one. Default: none.
	HeaderHosts []string `json:"header_hosts,omitempty"`

	// TLS settings of the connections to the issuer. Default: trust the system's certificate
	// authorities.
	TLS *TLSClient `json:"tls,omitempty"`

	// How long a verified token is used without verifying its signature again. It is refused as
	// soon as its key is withdrawn. Default: the cache's `max_age`, which is also the most.
	MaxAge caddy.Duration `json:"max_age,omitempty"`

	// spiffe is set for the source that is in a SPIFFESource.
	spiffe bool

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

// Provision replaces placeholders and references to secrets. It opens no connection.
func (s *JWTSource) Provision(caddy.Context) error {
	if err := s.check(); err != nil {
		return err
	}
	s.keys, s.cfg = s.settings()
	err := cmp.Or(conf.Resolve("issuer", &s.keys.Issuer), conf.Resolve("jwks_uri", &s.keys.JWKSURI), conf.Resolve("jwks_file", &s.keys.KeysFile))
	if err != nil {
		return err
	}
	if s.keys.HeaderFunc, err = headerFunc(s.Headers); err != nil {
		return err
	}
	var trust string
	if s.TLS != nil {
		if s.keys.TLS, trust, err = s.TLS.config(); err != nil {
			return fmt.Errorf("tls: %w", err)
		}
	}
	if err := checkJWT(s.keys, s.cfg); err != nil {
		return err
	}
	// The first key has what decides which keys there are, the second also what the source accepts
	// by them.
	s.keysKey = conf.PoolKey("keys "+s.keys.Issuer, s.spiffe, s.keys.JWKSURI, s.keys.KeysFile, s.Headers, s.HeaderHosts, trust)
	s.key = conf.PoolKey("jwt "+s.keys.Issuer, s.keysKey, s.Algorithms, s.Audience, s.Type, s.ClientClaim, s.ScopeClaim, s.Leeway, s.RefreshInterval)
	name := s.Label()
	// The keys outlive this configuration, and with it the configuration's logger.
	logger := func() *zap.Logger {
		return caddy.Log().Named("oauth.sources.jwt").With(zap.String("issuer", name))
	}
	s.keys.OnFetch = func(kind string, took time.Duration, err error) {
		result := "ok"
		if err != nil {
			result = "error"
			logger().Error("fetching the issuer's keys failed: keeping the current ones", zap.String("what", kind), zap.Error(err))
		}
		collectors.sourceDuration.WithLabelValues(name, result).Observe(took.Seconds())
	}
	s.keys.OnSend = traceRequests(name, cmp.Or(s.keys.JWKSURI, s.keys.Issuer))
	s.keys.OnKeys = func(n int, ignored []introspect.IgnoredKey) {
		collectors.sourceUp.WithLabelValues(name).Set(1)
		logger().Info("fetched the issuer's keys", zap.Int("keys", n), zap.Stringers("ignored", ignored))
	}
	s.cfg.OnKeys = func(n int) {
		if n == 0 {
			logger().Error("none of the issuer's keys is for an accepted algorithm: its tokens are refused", zap.Strings("algorithms", s.Algorithms))
		}
	}
	return nil
}

// check checks what can be checked before placeholders are replaced.
func (s *JWTSource) check() error {
	if s.JWKSURI != "" && s.JWKSFile != "" {
		return errors.New("jwks_uri and jwks_file can't be used together")
	}
	if s.MaxAge < 0 {
		return errors.New("max_age must not be negative")
	}
	for _, reference := range placeholders.FindAllString(s.Issuer, -1) {
		if !strings.HasPrefix(reference, "{env.") && !strings.HasPrefix(reference, "{file.") {
			return fmt.Errorf("issuer %s: %s has no value when the configuration is loaded, and an issuer can't be a template: each tenant is an issuer of its own, so write a source for each", s.Issuer, reference)
		}
	}
	if entraTemplate.MatchString(s.Issuer) {
		return fmt.Errorf("issuer %s: no token names it, because Entra ID's tokens name the tenant by its ID: write a source for each tenant", s.Issuer)
	}
	if !strings.Contains(s.Issuer+s.JWKSURI+s.JWKSFile, "{") {
		if err := checkJWT(s.settings()); err != nil {
			return err
		}
	}
	if err := conf.CheckQuery("jwks_uri", s.JWKSURI); err != nil {
		return err
	}
	for _, host := range s.HeaderHosts {
		if u, err := url.Parse("https://" + host); err != nil || u.Host != host || host == "" {
			return errors.New("header_hosts: each must be a host, with a port if the URL has one, and nothing else")
		}
	}
	if len(s.HeaderHosts) > 0 && len(s.Headers) == 0 {
		return errors.New("header_hosts needs at least one header to send there")
	}
	return cmp.Or(conf.CheckAudience("audience", s.Audience), checkHeaders(s.Headers))
}

var (
	placeholders = regexp.MustCompile(`\{[^{}]*\}`)
	// entraTemplate matches the names under which Entra ID serves several tenants at once. In its
	// tokens, the tenant's ID is in their place.
	entraTemplate = regexp.MustCompile(`(?i)^https://(login\.microsoftonline\.com|sts\.windows\.net)/(common|organizations|consumers)(/|$)`)
)

// checkJWT checks settings without placeholders. Package introspect calls them by the names of its
// fields, so what is often wrong is checked before, in the words of a configuration.
func checkJWT(keys introspect.KeysConfig, cfg introspect.JWTConfig) error {
	if keys.JWKSURI != "" {
		if err := conf.CheckURL("jwks_uri", keys.JWKSURI); err != nil {
			return err
		}
	}
	if keys.Discovery && keys.Issuer != "" {
		if err := conf.CheckURL("without jwks_uri and jwks_file, the issuer", keys.Issuer); err != nil {
			return err
		}
	}
	if err := keys.Check(); err != nil {
		return err
	}
	if err := cfg.Check(); err != nil {
		return fmt.Errorf("JWT source for %q: %w", keys.Issuer, err)
	}
	return nil
}

// settings returns the settings as configured, with placeholders and references in them.
func (s *JWTSource) settings() (introspect.KeysConfig, introspect.JWTConfig) {
	return introspect.KeysConfig{
			Issuer: s.Issuer, SPIFFE: s.spiffe, JWKSURI: s.JWKSURI, KeysFile: s.JWKSFile, Discovery: s.JWKSURI == "" && s.JWKSFile == "", HeaderHosts: s.HeaderHosts,
		}, introspect.JWTConfig{
			AcceptBound: true,
			Algorithms:  s.Algorithms, Audience: s.Audience, Type: s.Type, ClientClaims: s.ClientClaim, ScopeClaims: s.ScopeClaim,
			Leeway:          time.Duration(s.Leeway),
			RefreshInterval: time.Duration(s.RefreshInterval),
		}
}

// Label implements TokenSource.
func (s *JWTSource) Label() string { return s.keys.Issuer }

// issuer returns whose tokens the source knows.
func (s *JWTSource) issuer() string { return s.keys.Issuer }

// SourceKey implements TokenSource.
func (s *JWTSource) SourceKey() string { return s.key }

// Recognizes implements TokenSource: a JWT says who issued it.
func (s *JWTSource) Recognizes(token *introspect.Token) Recognition {
	if token.UnverifiedIssuer() == s.keys.Issuer {
		return Mine
	}
	return NotMine
}

// Memory implements TokenSource.
func (s *JWTSource) Memory() introspect.SourceConfig {
	return introspect.SourceConfig{MaxAge: time.Duration(s.MaxAge)}
}

// OpenSource implements TokenSource.
func (s *JWTSource) OpenSource() (introspect.Source, error) {
	keys, _, err := loadOrOpen(openKeys, s.keysKey, func() (openIssuerKeys, error) {
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

// openKeys holds the keys of issuers. Several sources may share them.
var openKeys = caddy.NewUsagePool()

// openIssuerKeys are the keys of one issuer in openKeys.
type openIssuerKeys struct{ *introspect.Keys }

// Destruct stops fetching the keys.
func (k openIssuerKeys) Destruct() error {
	k.Close()
	return nil
}

// openJWT is a JWT source that holds a reference to its keys in openKeys.
type openJWT struct {
	*introspect.JWT
	keysKey string
}

// Close ends the source, and stops fetching the keys if no other source uses them.
func (s openJWT) Close() error {
	s.JWT.Close()
	_, err := openKeys.Delete(s.keysKey)
	return err
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
	if err := conf.Text(&s.Issuer).Read(d); err != nil {
		return err
	}
	return conf.Options{
		"jwks_uri":         conf.Text(&s.JWKSURI),
		"jwks_file":        conf.Text(&s.JWKSFile),
		"algorithms":       conf.Texts(&s.Algorithms),
		"audience":         conf.Audience(&s.Audience),
		"typ":              conf.Text(&s.Type),
		"client_claim":     conf.Texts(&s.ClientClaim),
		"scope_claim":      conf.Texts(&s.ScopeClaim),
		"leeway":           conf.Duration(&s.Leeway),
		"refresh_interval": conf.Duration(&s.RefreshInterval),
		"header":           headerOption(&s.Headers),
		"header_hosts":     conf.Texts(&s.HeaderHosts),
		"max_age":          conf.Duration(&s.MaxAge),
		"tls":              tlsOption(&s.TLS),
	}.Read(d, "jwt", s.check)
}

// Interface guards
var (
	_ caddy.Provisioner     = (*JWTSource)(nil)
	_ caddyfile.Unmarshaler = (*JWTSource)(nil)
	_ TokenSource           = (*JWTSource)(nil)
)
