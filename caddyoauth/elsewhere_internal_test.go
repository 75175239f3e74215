package caddyoauth

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// hostIs matches a host. Other matchers would have to be provisioned.
type hostIs string

func (h hostIs) MatchWithError(r *http.Request) (bool, error) { return r.Host == string(h), nil }

// How two handlers stand to each other depends on the first list of routes in which their ways part, and on
// those in front of the first.
func TestSites(t *testing.T) {
	type routes = caddyhttp.RouteList
	a, b := new(Server), new(Server)
	route := func(group string, handlers ...caddyhttp.MiddlewareHandler) caddyhttp.Route {
		return caddyhttp.Route{Group: group, Handlers: handlers}
	}
	terminal := func(r caddyhttp.Route) caddyhttp.Route { r.Terminal = true; return r }
	at := func(host hostIs, r caddyhttp.Route) caddyhttp.Route {
		r.MatcherSets = caddyhttp.MatcherSets{caddyhttp.MatcherSet{host}}
		return r
	}
	block := func(inside ...caddyhttp.Route) *caddyhttp.Subroute { return &caddyhttp.Subroute{Routes: inside} }
	for name, c := range map[string]struct {
		routes                  routes
		apart, leads, wouldLead bool // wouldLead is for a request whose host matches no route
	}{
		"one after the other":                          {routes{route("", a), route("", b)}, false, true, true},
		"one before the other":                         {routes{route("", b), route("", a)}, false, false, false},
		"in one route":                                 {routes{route("", a, b)}, false, true, true},
		"in one route, the other way round":            {routes{route("", b, a)}, false, false, false},
		"in one group":                                 {routes{route("1", a), route("1", b)}, true, false, false},
		"in two groups":                                {routes{route("1", a), route("2", b)}, false, true, true},
		"behind a route that ends":                     {routes{terminal(route("", a)), route("", b)}, true, false, false},
		"in front of a route that ends":                {routes{route("", a), terminal(route("", b))}, false, true, true},
		"the other ends before":                        {routes{terminal(route("", b)), route("", a)}, true, false, false},
		"in one block":                                 {routes{terminal(route("", block(route("", a), route("", b))))}, false, true, true},
		"in blocks of one group":                       {routes{route("1", block(route("", a))), route("1", block(route("", b)))}, true, false, false},
		"in blocks of two groups":                      {routes{route("1", block(route("1", a))), route("2", block(route("1", b)))}, false, true, true},
		"in a block with an end inside":                {routes{route("", block(terminal(route("", a)))), route("", b)}, true, false, false},
		"in a block with an end at another place":      {routes{route("", block(route("", a), terminal(route("")))), route("", b)}, false, true, true},
		"in two blocks of one route":                   {routes{route("", block(route("", a)), block(route("", b)))}, false, true, true},
		"behind a matcher":                             {routes{route("", a), at("b.example", route("", b))}, false, true, false},
		"behind a matcher and another handler":         {routes{route("", a), route("", new(caddyhttp.VarsMiddleware)), at("b.example", route("", b))}, false, true, true},
		"behind a matcher, after another in its route": {routes{route("", new(caddyhttp.VarsMiddleware), a), at("b.example", route("", b))}, false, true, false},
		"behind a matcher, and in front of another":    {routes{route("", new(caddyhttp.VarsMiddleware)), route("", a), at("b.example", route("", b))}, false, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			server := &caddyhttp.Server{Routes: c.routes}
			siteIn := func(s *Server) site {
				return site{server, append([]caddy.Module{new(caddyhttp.App)}, wayTo(s, c.routes)...)}
			}
			first, second := siteIn(a), siteIn(b)
			if got := first.apart(second); got != c.apart {
				t.Errorf("apart: %t", got)
			}
			if got := second.apart(first); got != c.apart {
				t.Errorf("the other way round, apart: %t", got)
			}
			for host, want := range map[string]bool{"b.example": c.leads, "a.example": c.wouldLead} {
				r := httptest.NewRequest(http.MethodPost, "http://"+host+"/", nil)
				if got := first.leadsTo(second, r); got != want {
					t.Errorf("a request at %s comes to the other: %t", host, got)
				}
			}
			if got := first.leadsTo(second, nil); got != c.leads {
				t.Errorf("a request of which nothing is known comes to the other: %t", got)
			}
		})
	}

	elsewhere := site{new(caddyhttp.Server), []caddy.Module{new(caddyhttp.App), b}}
	here := site{&caddyhttp.Server{Routes: routes{route("", a)}}, []caddy.Module{new(caddyhttp.App), a}}
	if !here.apart(elsewhere) {
		t.Error("handlers of two servers are not apart")
	}
	// One in a named route, say.
	if unknown := (site{here.server, []caddy.Module{new(caddyhttp.App), b}}); here.apart(unknown) || !here.leadsTo(unknown, nil) {
		t.Error("what nobody can tell is taken for certain")
	}
	// Handlers that run outside of Caddy's servers, in a module of somebody else's.
	outside := func(s *Server) site { return site{nil, []caddy.Module{new(caddyhttp.App), s}} }
	if outside(a).apart(outside(b)) || !outside(a).leadsTo(outside(b), nil) {
		t.Error("what nobody can tell outside of a server is taken for certain")
	}
}

// wayTo returns the handlers through which a request comes to s, and s.
func wayTo(s *Server, routes caddyhttp.RouteList) []caddy.Module {
	for _, route := range routes {
		for _, handler := range route.Handlers {
			switch handler := handler.(type) {
			case *Server:
				if handler == s {
					return []caddy.Module{s}
				}
			case *caddyhttp.Subroute:
				if way := wayTo(s, handler.Routes); way != nil {
					return append([]caddy.Module{handler}, way...)
				}
			}
		}
	}
	return nil
}
