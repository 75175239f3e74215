package caddyoauth

import (
	"errors"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
)

func init() {
	caddy.RegisterModule(Guard{})
}

// Guard handles the requests that the matcher of an `oauth_protect` leaves out, so that
// they are no way around it. It removes the headers that `oauth_protect` removes, except
// credentials: headers that tell who is calling, whatever their `header_prefix`, and headers
// that give another path or method. It refuses paths that a backend could read differently
// from Caddy's matchers: `/public/..;/admin/` doesn't match `/admin/*`, but some backends
// read it as `/admin/`. It asks for no token. A request that an `oauth_protect` before it has
// let in keeps its identity, but its path is judged all the same.
//
// In a Caddyfile, every `oauth_protect` with a matcher brings its own guard.
type Guard struct {
	// Where its `oauth_protect` stands in the Caddyfile, as in `Caddyfile:12`. The adapter writes it, for people:
	// it is named in logs and decides nothing. Default: none.
	At string `json:"at,omitempty"`

	// Accepts paths that a backend could read differently. Default: false; such requests are
	// answered with 400.
	AllowAmbiguousPaths bool `json:"allow_ambiguous_paths,omitempty"`

	// Leaves `X-HTTP-Method-Override`, `X-Original-URL` and the like to an `oauth_protect` that
	// keeps them. Requests without a token lose them all the same. Default: false; these
	// headers are removed.
	KeepOverrideHeaders bool `json:"keep_override_headers,omitempty"`

	// Lets requests pass that would be refused for their path, and reports them. Tunnels and
	// targets without a path are refused all the same. Default: refuses them.
	ReportOnly *ReportOnly `json:"report_only,omitempty"`

	app      *App
	refusals *refusalLog
}

// CaddyModule returns the Caddy module information.
func (Guard) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.oauth_guard",
		New: func() caddy.Module { return new(Guard) },
	}
}

// Provision finds the app, which knows all header prefixes.
func (g *Guard) Provision(ctx caddy.Context) error {
	app, err := appFor(ctx, "oauth_guard")
	if err != nil {
		return err
	}
	g.app, g.refusals = app, app.refusalLogFor(ctx, "", g.At)
	_, err = app.register(ctx, needs{})
	return err
}

// ServeHTTP strips the request and passes it on, or refuses it for its path.
func (g *Guard) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if asksForTunnel(r) {
		refuseTunnel(w, r, g.refusals)
		return nil
	}
	_, letIn := FactsFromContext(r.Context())
	switch {
	case letIn && !g.KeepOverrideHeaders:
		dropOverrides(r)
	case !letIn && g.KeepOverrideHeaders:
		overrides, gone := strip(r, g.app.prefixes, g.app.credentials, false)
		g.refusals.stripped(r, gone)
		setAside(r, overrides)
	case !letIn:
		_, gone := strip(r, g.app.prefixes, g.app.credentials, false)
		g.refusals.stripped(r, gone)
		takeAside(r)
	}
	if ambiguousURL(r.URL, g.AllowAmbiguousPaths) {
		if r.URL.Opaque != "" || !g.ReportOnly.holds() {
			return refuseAmbiguous(w, r, g.refusals)
		}
		reportAmbiguous(r, g.refusals)
	}
	return next.ServeHTTP(w, r)
}

var errAmbiguousPath = errors.New("oauth: ambiguous_path")

// refuseAmbiguous refuses a request for its path where no token is asked for.
func refuseAmbiguous(w http.ResponseWriter, r *http.Request, log *refusalLog) error {
	dontAwaitBody(w, r)
	w.Header().Set("Cache-Control", "no-store")
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Set("http.oauth.error", "ambiguous_path")
	}
	log.count(access.CauseAmbiguousPath)
	log.write(r, access.CauseAmbiguousPath, http.StatusBadRequest, nil)
	logRefused(r.Context(), nil, access.ResultPath, access.CauseAmbiguousPath)
	return caddyhttp.Error(http.StatusBadRequest, errAmbiguousPath)
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Guard)(nil)
	_ caddyhttp.MiddlewareHandler = (*Guard)(nil)
)
