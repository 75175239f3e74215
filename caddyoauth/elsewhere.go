package caddyoauth

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// A site may have several oauth_server, each with its own realms. One that gets a request for an endpoint
// of another lets it go on, if the routes may lead there. Whether they do depends on all that lies between, and
// at worst they lead to a backend. So the request goes on without its secrets, which only another
// oauth_server can take back.

// servedElsewhere reports whether another oauth_server, which the request may still come to, serves
// its path, or would if a prefix of that were stripped. In a spelling of ForgeRock AM's, it
// has to come to that one next: matchers and blocks that lead to the full path may not know the spelling,
// and lead to a backend.
func (s *Server) servedElsewhere(r *http.Request) bool {
	path := r.URL.Path
	for _, other := range s.app.servers {
		if other == s.itself {
			continue
		}
		for p := range other.endpoints {
			if s.endpoints[p] != nil || !strings.HasSuffix(path, p) {
				continue
			}
			// Where a prefix would have to go first, matchers can't be asked yet.
			as := r
			if p != path {
				as = nil
			}
			if s.site.leadsTo(other.site, as) {
				return true
			}
		}
	}
	for _, next := range behind(s.itself, s.beside, r) {
		if e, _ := next.find(r); e != nil {
			return true
		}
	}
	return false
}

// site is where a handler stands: in which of Caddy's servers, and through which handlers a request
// comes to it there. The first of modules is the http app, the last is the handler itself.
type site struct {
	server  *caddyhttp.Server
	modules []caddy.Module
}

func siteOf(ctx caddy.Context) site {
	server, _ := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	return site{server, slices.Clone(ctx.Modules())}
}

// stand is where a handler stands in a list of routes.
type stand struct{ route, handler int }

// standIn returns where a handler stands in a list of routes, if it is in it.
func standIn(routes caddyhttp.RouteList, handler caddy.Module) (stand, bool) {
	for i := range routes {
		for j, h := range routes[i].Handlers {
			if h, ok := h.(caddy.Module); ok && h == handler {
				return stand{i, j}, true
			}
		}
	}
	return stand{}, false
}

// part follows two handlers down to the list of routes in which their ways part, and returns where each
// of them goes on, and how many modules led there. known is false if there is no such list: one of the two
// may be in a named route, or in a handler of another kind, which runs its routes when it likes.
func (a site) part(b site) (routes caddyhttp.RouteList, x, y stand, depth int, known bool) {
	routes = configuredRoutes(a.server)
	for depth = 1; depth < min(len(a.modules), len(b.modules)); depth++ {
		var inX, inY bool
		x, inX = standIn(routes, a.modules[depth])
		y, inY = standIn(routes, b.modules[depth])
		if !inX || !inY {
			return nil, x, y, depth, false
		}
		if x != y {
			return routes, x, y, depth, true
		}
		block, ok := a.modules[depth].(*caddyhttp.Subroute)
		if !ok {
			break
		}
		routes = block.Routes
	}
	return nil, x, y, depth, false
}

// apart reports whether no request can meet the handlers at both. If nobody can tell, they are not.
func (a site) apart(b site) bool {
	if a.server != b.server {
		return true
	}
	routes, x, y, depth, known := a.part(b)
	switch {
	case !known || x.route == y.route:
		return false
	case routes[x.route].Group != "" && routes[x.route].Group == routes[y.route].Group:
		return true // only one of a group runs
	case x.route < y.route:
		return a.ends(routes, x, depth)
	default:
		return b.ends(routes, y, depth)
	}
}

// ends reports whether the way to a handler, from where it stands in routes, has a route after which
// no other runs. The way there has depth modules.
func (a site) ends(routes caddyhttp.RouteList, at stand, depth int) bool {
	for {
		if routes[at.route].Terminal {
			return true
		}
		block, ok := a.modules[depth].(*caddyhttp.Subroute)
		if depth++; !ok || depth == len(a.modules) {
			return false
		}
		routes = block.Routes
		if at, ok = standIn(routes, a.modules[depth]); !ok {
			return false
		}
	}
}

// leadsTo reports whether a request at the first handler may still come to the second, as far as the routes
// tell. r is the request as it is at the first, or nil if it can't be what the second would get.
func (a site) leadsTo(b site, r *http.Request) bool {
	if a.apart(b) {
		return false
	}
	routes, x, y, _, known := a.part(b)
	switch {
	case !known:
		return true
	case x.route == y.route:
		return x.handler < y.handler
	case x.route > y.route:
		return false // it would have come there before
	case r == nil || !onlyServers(routes, x, y):
		return true
	}
	matches, err := routes[y.route].MatcherSets.AnyMatchWithError(r)
	return err == nil && matches
}

// onlyServers reports whether nothing but oauth_server stands in a list of routes from x up to the route of y.
// All else may change what the matchers of that route go by.
func onlyServers(routes caddyhttp.RouteList, x, y stand) bool {
	for i := x.route; i < y.route; i++ {
		for j, handler := range routes[i].Handlers {
			if _, ok := handler.(*Server); !ok && (i > x.route || j >= x.handler) {
				return false
			}
		}
	}
	return true
}

// heldBack is what may be secret in a request that may be for another oauth_server.
type heldBack struct {
	body          string
	contentLength int64
	encoding      []string
	query, shown  string      // shown is what was left of the query
	headers       http.Header // those that carry credentials, and Content-Length
}

type heldBackCtxKey struct{}

// holdBack takes from a request its body, its query but for ForgeRock AM's realm, and the headers that carry
// credentials, for takeBack. So nobody else gets them, however the routes go on: a backend gets a request
// without anything. The error is readBody's.
//
// It changes the request itself, since placeholders read it, and not the one that is returned. Handlers before
// this one may have copied it, and error routes and others go on with their copy. So the body is read: it is
// the same for all copies, and then there is nothing left in it.
func (s *Server) holdBack(w http.ResponseWriter, r *http.Request) (*http.Request, error) {
	body, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	held := &heldBack{body: body, contentLength: r.ContentLength, encoding: r.TransferEncoding, query: r.URL.RawQuery, headers: make(http.Header)}
	held.shown = s.withhold(r, held.headers)
	return r.WithContext(context.WithValue(r.Context(), heldBackCtxKey{}, held)), nil
}

// withhold takes from a request what holdBack says, and returns what it leaves of the query. taken gets the
// headers, and may be nil. It is also for requests that are answered here: handlers before this one, such as
// intercept, may go on with them, and have a backend make another answer.
func (s *Server) withhold(r *http.Request, taken http.Header) (query string) {
	for name, values := range r.Header {
		if isOneOf(name, s.app.credentials) || name == "Content-Length" {
			if taken != nil {
				taken[name] = values
			}
			delete(r.Header, name)
		}
	}
	r.Body, r.ContentLength, r.TransferEncoding = http.NoBody, 0, nil
	if r.URL.RawQuery != "" {
		if realm := r.URL.Query()["realm"]; realm != nil { // matchers may go by it
			query = url.Values{"realm": realm}.Encode()
		}
	}
	setQuery(r, query)
	return query
}

// takeBack gives a request back what another oauth_server has held back, and reports whether one had.
func (s *Server) takeBack(r *http.Request) bool {
	if len(s.app.servers) == 1 {
		return false
	}
	held, ok := r.Context().Value(heldBackCtxKey{}).(*heldBack)
	if !ok {
		return false
	}
	for name, values := range held.headers {
		if r.Header[name] == nil {
			r.Header[name] = values
		}
	}
	r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(strings.NewReader(held.body)), held.contentLength, held.encoding
	if r.URL.RawQuery == held.shown {
		setQuery(r, held.query)
	}
	return true
}

// setQuery sets the query of a request, and of what Caddy keeps as the original one, for placeholders and for
// FastCGI's backends.
func setQuery(r *http.Request, query string) {
	r.URL.RawQuery = query
	original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request)
	if !ok || original.URL == nil || original.URL.RawQuery == query {
		return
	}
	original.URL.RawQuery = query
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Set("http.request.orig_uri", original.URL.RequestURI()) // which comes before Caddy's own
	}
}
