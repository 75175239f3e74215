package caddyoauth

import (
	"errors"
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/introspect"
)

func init() {
	caddy.RegisterModule(SPIFFESource{})
}

// SPIFFESource accepts JWT-SVIDs of a SPIFFE trust domain, as SPIRE gives them to workloads, as bearer
// tokens. A workload's SPIFFE ID is the subject. JWT-SVIDs have no client ID and no scopes, so routes
// ask for the subject, by `claim sub`. They can't be revoked.
type SPIFFESource struct {
	// The trust domain, such as `spiffe://example.org`.
	TrustDomain string `json:"trust_domain,omitempty"`

	// Where the trust domain's bundle is, as its bundle endpoint serves it: an https URL, or http on
	// loopback. Exactly one of this and `jwks_file` is needed.
	JWKSURI string `json:"jwks_uri,omitempty"`

	// A file with the bundle. It is read again every 5 seconds.
	JWKSFile string `json:"jwks_file,omitempty"`

	// Audiences, one of which a token must name: those that callers ask SPIRE for. At least one.
	Audience []string `json:"audience,omitempty"`

	// The accepted signature algorithms, as for `source jwt`. Default: `RS256`, `PS256`, `ES256`,
	// `EdDSA`, `Ed25519`.
	Algorithms []string `json:"algorithms,omitempty"`

	// How far the clock of the trust domain may be ahead, up to `1m`. It does not extend a token beyond
	// `exp`. Default: 0.
	Leeway caddy.Duration `json:"leeway,omitempty"`

	// How often the bundle is fetched, `10s` or more. Default: `15m`.
	RefreshInterval caddy.Duration `json:"refresh_interval,omitempty"`

	// Headers of each request for the bundle, as in the source introspect. Default: none.
	Headers map[string]string `json:"headers,omitempty"`

	// TLS settings of these requests. Default: trust the system's certificate authorities.
	TLS *TLSClient `json:"tls,omitempty"`

	// How long a verified token is used without verifying its signature again. It is refused as
	// soon as its key is withdrawn. Default: the cache's `max_age`, which is also the most.
	MaxAge caddy.Duration `json:"max_age,omitempty"`

	// jwt does the work.
	jwt *JWTSource
}

// CaddyModule returns the Caddy module information.
func (SPIFFESource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "oauth.sources.spiffe",
		New: func() caddy.Module { return new(SPIFFESource) },
	}
}

// Provision replaces placeholders and references to secrets. It opens no connection.
func (s *SPIFFESource) Provision(ctx caddy.Context) error {
	if err := s.check(); err != nil {
		return err
	}
	domain := s.TrustDomain
	if err := conf.Resolve("trust_domain", &domain); err != nil {
		return err
	}
	if err := checkTrustDomain(domain); err != nil {
		return err
	}
	s.jwt = s.asJWT()
	s.jwt.Issuer = domain
	return s.jwt.Provision(ctx)
}

// asJWT returns the source of JWTs that a source of JWT-SVIDs is.
func (s *SPIFFESource) asJWT() *JWTSource {
	return &JWTSource{
		Issuer: s.TrustDomain, JWKSURI: s.JWKSURI, JWKSFile: s.JWKSFile, Audience: s.Audience, Algorithms: s.Algorithms,
		Leeway: s.Leeway, RefreshInterval: s.RefreshInterval, Headers: s.Headers, TLS: s.TLS, MaxAge: s.MaxAge,
		spiffe: true,
	}
}

// check checks what can be checked before placeholders are replaced.
func (s *SPIFFESource) check() error {
	switch {
	case s.JWKSURI == "" && s.JWKSFile == "":
		return errors.New("source spiffe needs the trust domain's bundle: add a jwks_file or a jwks_uri")
	case len(s.Audience) == 0:
		return errors.New("source spiffe needs an audience: whom the tokens of callers are for")
	}
	if !placeholders.MatchString(s.TrustDomain) {
		if err := checkTrustDomain(s.TrustDomain); err != nil {
			return err
		}
	}
	return s.asJWT().check()
}

func checkTrustDomain(domain string) error {
	if !introspect.IsTrustDomain(domain) {
		return fmt.Errorf("source spiffe: '%s' is not a trust domain in lower case, such as spiffe://example.org", domain)
	}
	return nil
}

// Label implements TokenSource.
func (s *SPIFFESource) Label() string { return s.jwt.Label() }

// issuer returns whose tokens the source knows.
func (s *SPIFFESource) issuer() string { return s.jwt.issuer() }

// SourceKey implements TokenSource.
func (s *SPIFFESource) SourceKey() string { return s.jwt.SourceKey() }

// Memory implements TokenSource.
func (s *SPIFFESource) Memory() introspect.SourceConfig { return s.jwt.Memory() }

// OpenSource implements TokenSource.
func (s *SPIFFESource) OpenSource() (introspect.Source, error) { return s.jwt.OpenSource() }

// Recognizes implements TokenSource: a JWT-SVID says in which trust domain its workload is.
func (s *SPIFFESource) Recognizes(token *introspect.Token) Recognition {
	if token.UnverifiedTrustDomain() == s.jwt.issuer() {
		return Mine
	}
	return NotMine
}

// UnmarshalCaddyfile reads
//
//	spiffe <trust domain> {
//		jwks_uri         <url>
//		jwks_file        <file>
//		audience         <audience>...
//		algorithms       <name>...
//		leeway           <duration>
//		refresh_interval <duration>
//		header           <name> <value>
//		max_age          <duration>
//		tls {
//			<settings of TLSClient>
//		}
//	}
//
// header may repeat.
func (s *SPIFFESource) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the source's name
	if err := conf.Text(&s.TrustDomain).Read(d); err != nil {
		return err
	}
	return conf.Options{
		"jwks_uri":         conf.Text(&s.JWKSURI),
		"jwks_file":        conf.Text(&s.JWKSFile),
		"audience":         conf.Audience(&s.Audience),
		"algorithms":       conf.Texts(&s.Algorithms),
		"leeway":           conf.Duration(&s.Leeway),
		"refresh_interval": conf.Duration(&s.RefreshInterval),
		"header":           headerOption(&s.Headers),
		"max_age":          conf.Duration(&s.MaxAge),
		"tls":              tlsOption(&s.TLS),
	}.Read(d, "spiffe", s.check)
}

// Interface guards
var (
	_ caddy.Provisioner     = (*SPIFFESource)(nil)
	_ caddyfile.Unmarshaler = (*SPIFFESource)(nil)
	_ TokenSource           = (*SPIFFESource)(nil)
)
