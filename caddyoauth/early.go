package caddyoauth

import (
	"fmt"
	"net/http"
	"slices"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// Matchers, and handlers such as map, vars, root and rewrite, run before ours and may read any
// header. So what callers say about themselves is removed before all of them: the first of our
// handlers that is provisioned in a server puts an earlyStrip in front of all its routes.

// earlyStrip strips every request of a server, then runs the routes that the server was
// configured with.
type earlyStrip struct {
	app      *App
	refusals *refusalLog

	// routes are the configured routes. We take them while Caddy is provisioning them, and it
	// continues to do so in place.
	routes  caddyhttp.RouteList
	compile sync.Once
	chain   caddyhttp.Handler

	// marks is set if there are error routes, which need to know what has been stripped.
	marks bool

	// resources are the resources that the server's routes protect, by host and path of their
	// documents; see resource.go.
	resources map[string]*protectedResource
}

// strippedVar marks requests that an earlyStrip has seen. Caddy passes the same request to the
// error routes, when its identity headers may already be ours.
const strippedVar = "oauth.stripped"

type stripped struct{}

// stripEarly installs an earlyStrip in the server that a handler is being provisioned for,
// if it has none yet.
func stripEarly(ctx caddy.Context, server *caddyhttp.Server, app *App) error {
	if earlyOf(server) != nil {
		return nil
	}
	// Caddy forgets the source of a route's handlers once they are provisioned, so without any
	// source left, our handler is not in these routes.
	if !slices.ContainsFunc(server.Routes, func(r caddyhttp.Route) bool { return len(r.HandlersRaw) > 0 }) {
		ctx.Logger().Warn("this server has oauth handlers only in named routes or error routes: whatever runs before them, or without them, sees the identity headers that callers send; put an oauth_server or oauth_protect into the site itself")
		return nil
	}
	refusals := app.refusalLogFor(ctx, "", server.Name()) // in front of all its routes
	early := &earlyStrip{app: app, refusals: refusals, routes: server.Routes}
	if server.Errors != nil && len(server.Errors.Routes) > 0 {
		// Caddy provisions these routes later, and ours with them.
		early.marks = true
		server.Errors.Routes = slices.Insert(server.Errors.Routes, 0,
			caddyhttp.Route{Handlers: []caddyhttp.MiddlewareHandler{&earlyErrorStrip{app: app, refusals: refusals}}})
	}
	// Caddy is in the middle of a loop over the old list, and compiles what it finds in
	// server.Routes after the loop. So a longer list would lack the handlers of the routes that
	// are still to come: those go into the old list.
	route := caddyhttp.Route{Handlers: []caddyhttp.MiddlewareHandler{early}}
	if err := route.ProvisionHandlers(ctx, nil); err != nil {
		return fmt.Errorf("stripping headers early: %w", err)
	}
	server.Routes = caddyhttp.RouteList{route}
	return nil
}

// earlyOf returns the earlyStrip of a server, or nil if it has none.
func earlyOf(server *caddyhttp.Server) *earlyStrip {
	if server == nil || len(server.Routes) == 0 || len(server.Routes[0].Handlers) == 0 {
		return nil
	}
	early, _ := server.Routes[0].Handlers[0].(*earlyStrip)
	return early
}

// configuredRoutes returns the routes that a server was configured with. Without a server there are none.
func configuredRoutes(server *caddyhttp.Server) caddyhttp.RouteList {
	if server == nil {
		return nil
	}
	if early := earlyOf(server); early != nil {
		return early.routes
	}
	return server.Routes
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (e *earlyStrip) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if !e.admit(w, r) {
		return nil
	}
	if resource := e.resourceAt(r); resource != nil {
		resource.serve(w, r)
		return nil
	}
	// Caddy ends a server's routes with the same handler for all requests, so next never changes.
	e.compile.Do(func() { e.chain = e.routes.Compile(next) })
	return e.chain.ServeHTTP(w, r)
}

// admit strips a request, or answers it and returns false.
func (e *earlyStrip) admit(w http.ResponseWriter, r *http.Request) bool {
	if asksForTunnel(r) {
		refuseTunnel(w, r, e.refusals)
		return false
	}
	e.refusals.stripped(r, stripServer(r, e.app))
	if e.marks {
		caddyhttp.SetVar(r.Context(), strippedVar, stripped{})
	}
	return true
}

// earlyErrorStrip does the same in front of a server's error routes, for requests that failed
// before any route, such as requests without a Host.
type earlyErrorStrip struct {
	app      *App
	refusals *refusalLog
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (e *earlyErrorStrip) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if asksForTunnel(r) {
		refuseTunnel(w, r, e.refusals)
		return nil
	}
	if _, ok := caddyhttp.GetVar(r.Context(), strippedVar).(stripped); !ok {
		e.refusals.stripped(r, stripServer(r, e.app))
	}
	return next.ServeHTTP(w, r)
}

// Interface guards
var (
	_ caddyhttp.MiddlewareHandler = (*earlyStrip)(nil)
	_ caddyhttp.MiddlewareHandler = (*earlyErrorStrip)(nil)
)
