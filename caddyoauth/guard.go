package caddyoauth

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

func init() {
	caddy.RegisterModule(Guard{})
}

// Guard stands on the requests that the matcher of an `oauth_protect` leaves out, so
// that they are no way around it. It removes identity headers, which only
// `oauth_protect` may set, and refuses paths that a backend could read differently
// from Caddy's matchers: `/public/..;/admin/` does not match `/admin/*`, and is just
// that to some backends. It asks for no token, and leaves alone what an
// `oauth_protect` before it has let in.
//
// In a Caddyfile every `oauth_protect` with a matcher brings its own guard.
type Guard struct {
	// What the names of identity headers begin with; ends with `-`. Default: `X-OAuth-`.
	HeaderPrefix string `json:"header_prefix,omitempty"`

	// Accepts paths that a backend could read differently. Default: false, and such
	// requests are answered with 400.
	AllowAmbiguousPaths bool `json:"allow_ambiguous_paths,omitempty"`

	logger  *zap.Logger
	headers identityHeaders
}

// CaddyModule returns the Caddy module information.
func (Guard) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.oauth_guard",
		New: func() caddy.Module { return new(Guard) },
	}
}

// Provision checks the prefix.
func (g *Guard) Provision(ctx caddy.Context) error {
	g.logger = ctx.Logger()
	if g.HeaderPrefix == "" {
		g.HeaderPrefix = defaultHeaderPrefix
	}
	var err error
	if g.headers, err = newIdentityHeaders(g.HeaderPrefix); err != nil {
		return fmt.Errorf("oauth_guard: %w", err)
	}
	return nil
}

// ServeHTTP cleans the request and passes it on, or refuses it for its path.
func (g *Guard) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if err := guard(w, r, g.logger, g.AllowAmbiguousPaths, g.headers.prefixes); err != nil {
		return err
	}
	return next.ServeHTTP(w, r)
}

var errAmbiguousPath = errors.New("oauth: ambiguous_path")

// guard is what happens to a request that nobody has let in and that needs no token.
func guard(w http.ResponseWriter, r *http.Request, logger *zap.Logger, allowAmbiguousPaths bool, prefixes []string) error {
	// In a route block an oauth_protect may have come before: then the headers are ours.
	if _, ok := FactsFromContext(r.Context()); ok {
		return nil
	}
	stripIdentity(r, false, prefixes)
	if !ambiguousURL(r.URL, allowAmbiguousPaths) {
		return nil
	}
	answerBeforeBody(w, r)
	w.Header().Set("Cache-Control", "no-store")
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Set("http.oauth.error", "ambiguous_path")
	}
	if c := logger.Check(zap.DebugLevel, "request refused"); c != nil {
		c.Write(zap.String("reason", "ambiguous_path"))
	}
	return caddyhttp.Error(http.StatusBadRequest, errAmbiguousPath)
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Guard)(nil)
	_ caddyhttp.MiddlewareHandler = (*Guard)(nil)
)
