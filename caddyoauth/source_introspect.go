package caddyoauth

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
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

// Provision resolves what refers to something else. It connects to nothing.
func (s *IntrospectSource) Provision(caddy.Context) error {
	if err := s.check(); err != nil {
		return err
	}
	var err error
	s.cfg = s.settings()
	for _, text := range []struct {
		name, configured string
		resolved         *string
	}{{"url", s.URL, &s.cfg.URL}, {"client_id", s.ClientID, &s.cfg.ClientID}, {"issuer", s.Issuer, &s.cfg.Issuer}} {
		if *text.resolved, err = conf.Resolve(text.configured); err != nil {
			return fmt.Errorf("%s: %w", text.name, err)
		}
	}
	if s.ClientSecret != "" {
		if s.cfg.ClientSecret, err = conf.ResolveSecret(s.ClientSecret); err != nil {
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
	s.key = conf.PoolKey("introspect "+s.Label(), s.cfg.URL, s.cfg.ClientID, s.cfg.ClientSecret, s.Auth, s.cfg.Issuer, s.ClientClaim, s.ScopeClaim, s.Leeway, s.Headers, trust)
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

// check judges what can be judged without resolving anything.
func (s *IntrospectSource) check() error {
	switch {
	case (s.ClientID == "") != (s.ClientSecret == ""):
		return errors.New("client_id and client_secret belong together")
	case s.Auth != "" && s.ClientID == "":
		return errors.New("auth needs client_id and client_secret")
	case s.Timeout < 0 || s.MaxAge < 0 || s.NegativeMaxAge < 0 || s.ServeStale < 0:
		return errors.New("durations are greater than zero")
	case s.Leeway < 0 || s.Leeway > caddy.Duration(time.Minute):
		return errors.New("leeway is at most 1m")
	}
	if s.Auth != "" {
		if err := conf.OneOf("auth", s.Auth, oauth.AuthBasic, oauth.AuthPost); err != nil {
			return err
		}
	}
	if err := conf.CheckQuery("the endpoint", s.URL); err != nil {
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
	if err != nil || !conf.HTTPSOrLoopback(u) {
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

// Label implements TokenSource. It has no query, which may hold a secret.
func (s *IntrospectSource) Label() string {
	endpoint, _, _ := strings.Cut(s.cfg.URL, "?")
	return endpoint
}

// issuer is whose tokens the source knows, if its configuration says so.
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
	return introspect.NewRemote(s.cfg)
}

// rarely is for log lines that whoever sends tokens can cause: one a minute.
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
