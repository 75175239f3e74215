package caddyoauth

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

func init() {
	caddy.RegisterModule(IntrospectSource{})
}

// IntrospectSource asks another authorization server what a token means (RFC 7662). Its answers
// are cached: a token that is revoked there is refused here after `max_age` at the latest, or at
// once if that server tells the admin endpoint `/oauth/forget`.
type IntrospectSource struct {
	// The introspection endpoint: https, or http on loopback. Redirects are not followed.
	URL string `json:"url,omitempty"`

	// The client ID that the gateway authenticates with. Default: none; without headers that do
	// so, the gateway does not authenticate.
	ClientID string `json:"client_id,omitempty"`

	// The secret that belongs to it, as `{env.NAME}` or `{file./path}`.
	ClientSecret string `json:"client_secret,omitempty"`

	// How the gateway authenticates: `client_secret_basic` or `client_secret_post`.
	// Default: `client_secret_basic`.
	Auth string `json:"auth,omitempty"`

	// What `iss` must be in an answer that has one. Default: anything except the issuer of
	// another source or of a realm of this gateway.
	Issuer string `json:"issuer,omitempty"`

	// The claims that name the client; the first one that is present counts. Dots lead into
	// objects. Default: `client_id` and `azp`, which must agree if both are present; without
	// either, `appid` or `cid`.
	ClientClaim []string `json:"client_claim,omitempty"`

	// The claims that hold the scopes; the first one that is present counts. It is a string with
	// spaces, a list, or an object with scopes as names. Default: `scope`, `scp`.
	ScopeClaim []string `json:"scope_claim,omitempty"`

	// How far the server's clock may be ahead, up to `1m`, when it says that a token is not valid
	// yet (`nbf`). It does not extend a token beyond `exp`. Default: 0.
	Leeway caddy.Duration `json:"leeway,omitempty"`

	// Headers of each request to the server. A value is `{env.NAME}` or `{file./path}`, alone or
	// after `Bearer`, `Basic`, `Token`, `ApiKey` or `Key`, and is looked up for each request.
	// Plain text is accepted only in headers that are known to hold no secret, such as
	// `User-Agent` and `X-Tenant`. Default: none.
	Headers map[string]string `json:"headers,omitempty"`

	// TLS settings of the connections to the server. Default: trust the system's certificate
	// authorities.
	TLS *TLSClient `json:"tls,omitempty"`

	// How long the server may take to answer. Default: `2s`.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// How long an answer is used without asking again, but never beyond the token's expiry.
	// Default: the cache's `max_age`, which is also the most.
	MaxAge caddy.Duration `json:"max_age,omitempty"`

	// How long the answer "not active" is remembered. Default: `5s`.
	NegativeMaxAge caddy.Duration `json:"negative_max_age,omitempty"`

	// How much longer than `max_age` an answer is used while the server is away: no connection,
	// no answer in time, 429, 502, 503 or 504. It is never used beyond the token's expiry or a
	// route's own `max_age`, nor if the token has no expiry. Default: not at all.
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

// Provision replaces placeholders and references to secrets. It opens no connection.
func (s *IntrospectSource) Provision(caddy.Context) error {
	if err := s.check(); err != nil {
		return err
	}
	s.cfg = s.settings()
	err := cmp.Or(conf.Resolve("url", &s.cfg.URL), conf.Resolve("client_id", &s.cfg.ClientID), conf.Resolve("issuer", &s.cfg.Issuer))
	if err != nil {
		return err
	}
	if s.ClientSecret != "" {
		if s.cfg.ClientSecret, err = conf.ResolveSecret(s.ClientSecret); err != nil {
			return fmt.Errorf("client_secret: %w", err)
		}
	}
	if s.cfg.HeaderFunc, err = headerFunc(s.Headers); err != nil {
		return err
	}
	var trust string
	if s.TLS != nil {
		if s.cfg.TLS, trust, err = s.TLS.config(); err != nil {
			return fmt.Errorf("tls: %w", err)
		}
	}
	if err := cmp.Or(conf.CheckURL("the introspection endpoint", s.cfg.URL), s.cfg.Check()); err != nil {
		return err
	}
	// The key has all that decides what an answer means, and so what may be remembered in the
	// source's name. The timeout is not in it: with another one, what the server has said, and
	// what is known of its health, still holds.
	s.key = conf.PoolKey("introspect "+s.Label(), s.cfg.URL, s.cfg.ClientID, s.cfg.ClientSecret, s.Auth, s.cfg.Issuer, s.ClientClaim, s.ScopeClaim, s.Leeway, s.Headers, trust)
	name, client := s.Label(), s.cfg.ClientID
	// The source outlives this configuration, and with it the configuration's logger.
	logger := func() *zap.Logger {
		return caddy.Log().Named("oauth.sources.introspect").With(zap.String("url", name))
	}
	var refused rarely
	s.cfg.OnRequest = func(result string, took time.Duration) {
		collectors.sourceDuration.WithLabelValues(name, result).Observe(took.Seconds())
		if result == introspect.RemoteCredentials && refused.now(time.Now()) {
			logger().Error("the server answered 401 or 403, because of a token or of the gateway's own credentials: if all of its tokens get 503, check client_id, client_secret and header",
				zap.String("client_id", client))
		}
	}
	s.cfg.OnSend = traceRequests(name, s.cfg.URL)
	s.cfg.OnCircuit = func(state string) {
		up := 0.0
		switch state {
		case "closed":
			up = 1
			logger().Info("the server is answering again")
		case "open":
			logger().Error("the server is out of reach: answering 503 for its tokens, without asking, until it is back")
		}
		collectors.sourceUp.WithLabelValues(name).Set(up)
	}
	return nil
}

// check checks what can be checked before placeholders are replaced.
func (s *IntrospectSource) check() error {
	switch {
	case (s.ClientID == "") != (s.ClientSecret == ""):
		return errors.New("client_id and client_secret need each other")
	case s.Auth != "" && s.ClientID == "":
		return errors.New("auth needs client_id and client_secret")
	case s.Timeout < 0 || s.MaxAge < 0 || s.NegativeMaxAge < 0 || s.ServeStale < 0:
		return errors.New("timeout, max_age, negative_max_age and serve_stale must not be negative")
	case s.Leeway < 0 || s.Leeway > caddy.Duration(time.Minute):
		return errors.New("leeway must be between 0 and 1m")
	}
	if s.Auth != "" {
		if err := conf.OneOf("auth", s.Auth, oauth.AuthBasic, oauth.AuthPost); err != nil {
			return err
		}
	}
	if err := conf.CheckQuery("the introspection endpoint", s.URL); err != nil {
		return err
	}
	if !strings.Contains(s.URL, "{") { // else it is checked when its value is known
		if err := cmp.Or(conf.CheckURL("the introspection endpoint", s.URL), s.settings().Check()); err != nil {
			return err
		}
	}
	// Which headers can be set depends on how the gateway authenticates, but not on their values.
	names := http.Header{}
	for name := range s.Headers {
		names.Set(name, "")
	}
	settable := introspect.RemoteConfig{URL: "https://localhost", Auth: "none", Header: names}
	if s.ClientID != "" {
		settable.Auth, settable.ClientID, settable.ClientSecret = s.Auth, s.ClientID, "-"
	}
	return cmp.Or(settable.Check(), checkHeaders(s.Headers))
}

// settings returns the settings as configured, with placeholders and references in them.
func (s *IntrospectSource) settings() introspect.RemoteConfig {
	cfg := introspect.RemoteConfig{URL: s.URL, AcceptBound: true, ClientID: s.ClientID, Auth: s.Auth, Issuer: s.Issuer, ClientClaims: s.ClientClaim, ScopeClaims: s.ScopeClaim, Leeway: time.Duration(s.Leeway), Timeout: time.Duration(s.Timeout)}
	if s.ClientID == "" {
		cfg.Auth = "none"
	} else {
		cfg.ClientSecret = s.ClientSecret // a reference; it is replaced before anything is sent
	}
	return cfg
}

// Label implements TokenSource. It omits the query, which may hold a secret.
func (s *IntrospectSource) Label() string {
	endpoint, _, _ := strings.Cut(s.cfg.URL, "?")
	return endpoint
}

// issuer returns whose tokens the source knows, or "" if its configuration does not say.
func (s *IntrospectSource) issuer() string { return s.cfg.Issuer }

// SourceKey implements TokenSource.
func (s *IntrospectSource) SourceKey() string { return s.key }

// Recognizes implements TokenSource.
func (s *IntrospectSource) Recognizes(*introspect.Token) Recognition { return PerhapsMine }

// Memory implements TokenSource.
func (s *IntrospectSource) Memory() introspect.SourceConfig {
	return introspect.SourceConfig{
		MaxAge: time.Duration(s.MaxAge), NegativeAge: time.Duration(cmp.Or(s.NegativeMaxAge, caddy.Duration(introspect.DefaultNegativeAge))), StaleFor: time.Duration(s.ServeStale),
	}
}

// OpenSource implements TokenSource.
func (s *IntrospectSource) OpenSource() (introspect.Source, error) {
	collectors.sourceUp.WithLabelValues(s.Label()).Set(1) // until OnCircuit says otherwise
	return introspect.NewRemote(s.cfg)
}

// rarely limits a log line that anybody who sends tokens can cause to one a minute.
type rarely struct{ last atomic.Int64 }

func (r *rarely) now(now time.Time) bool {
	last := r.last.Load()
	return (last == 0 || now.Unix()-last >= 60) && r.last.CompareAndSwap(last, now.Unix())
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
	if err := conf.Text(&s.URL).Read(d); err != nil {
		return err
	}
	return conf.Options{
		"client_id":        conf.Text(&s.ClientID),
		"client_secret":    conf.Secret(&s.ClientSecret),
		"auth":             conf.Text(&s.Auth),
		"issuer":           conf.Text(&s.Issuer),
		"client_claim":     conf.Texts(&s.ClientClaim),
		"scope_claim":      conf.Texts(&s.ScopeClaim),
		"leeway":           conf.Duration(&s.Leeway),
		"header":           headerOption(&s.Headers),
		"timeout":          conf.Duration(&s.Timeout),
		"max_age":          conf.Duration(&s.MaxAge),
		"negative_max_age": conf.Duration(&s.NegativeMaxAge),
		"serve_stale":      conf.Duration(&s.ServeStale),
		"tls":              tlsOption(&s.TLS),
	}.Read(d, "introspect", s.check)
}

// Interface guards
var (
	_ caddy.Provisioner     = (*IntrospectSource)(nil)
	_ caddyfile.Unmarshaler = (*IntrospectSource)(nil)
	_ TokenSource           = (*IntrospectSource)(nil)
)
