package caddyoauth

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// What can be said about the order of handlers, and about matchers, without any request. When in
// doubt the answer is no, so that what is certain remains so.

// before yields the handlers of a server that may run before h, with the routes around each that a
// request must match to get there, except those around h as well.
func (h *lintHandler) before(yield func(earlier *lintHandler, around []*lintRoute) bool) {
	var all func(r *lintRoute, handlers []*lintHandler, around []*lintRoute) bool
	all = func(r *lintRoute, handlers []*lintHandler, around []*lintRoute) bool {
		for _, earlier := range handlers {
			if !yield(earlier, around) {
				return false
			}
			inside := earlier.routes
			if invoke, ok := earlier.module.(*caddyhttp.Invoke); ok {
				if named := r.server.named[invoke.Name]; named != nil && len(around) < maxDepth && !slices.Contains(around, named) {
					inside = []*lintRoute{named}
				}
			}
			for _, r := range inside {
				if !all(r, r.handlers, append(slices.Clip(around), r)) {
					return false
				}
			}
		}
		return true
	}
	for at := h; at != nil; at = at.route.in {
		r := at.route
		if !all(r, r.handlers[:at.index], nil) {
			return
		}
		for _, other := range r.beside[:r.index] {
			// After a terminal route, and after one of its group, this one doesn't run.
			if other.Terminal || other.Group != "" && other.Group == r.Group {
				continue
			}
			if !all(other, other.handlers, []*lintRoute{other}) {
				return
			}
		}
	}
}

// maxDepth bounds how deep named routes are followed, which may invoke each other.
const maxDepth = 16

// chain returns the routes around the handler, the outermost first.
func (h *lintHandler) chain() (routes []*lintRoute) {
	for at := h; at != nil; at = at.route.in {
		routes = append(routes, at.route)
	}
	slices.Reverse(routes)
	return routes
}

// matcherSet is a set of matchers, by name.
type matcherSet map[string]matcherSource

// matcherSource is a matcher as the configuration has it: its JSON, and if that is a list of strings,
// the list.
type matcherSource struct {
	raw  string
	list []string
}

// demand returns what match does, in a form that is quick to compare.
func (r *lintRoute) demand() []matcherSet {
	if r.demanded {
		return r.demands
	}
	r.demanded = true
	for _, set := range r.match() {
		source := make(matcherSet)
		for name, raw := range set {
			var list []string
			_ = json.Unmarshal(raw, &list) // most others are no lists
			source[name] = matcherSource{string(raw), list}
		}
		r.demands = append(r.demands, source)
	}
	return r.demands
}

// demands are sets of matchers: a request matches if it matches all of one set. A set is a list of
// maps because routes inside each other may have the same kind of matcher.
type demands [][]matcherSet

// maxDemands bounds the sets, which multiply with each route.
const maxDemands = 256

// demandsOf returns what a request must match to get through the routes, and whether it is known.
func demandsOf(routes []*lintRoute) (demands, bool) {
	all := demands{nil}
	for _, r := range routes {
		sets := r.demand()
		if len(sets) == 0 {
			continue
		}
		var next demands
		for _, so := range all {
			for _, set := range sets {
				next = append(next, append(slices.Clip(so), set))
			}
		}
		if all = next; len(all) > maxDemands {
			return nil, false
		}
	}
	return all, true
}

// cover reports whether the matchers of a route surely match all requests that meet the demands.
func cover(sets []matcherSet, special demands) bool {
	if len(sets) == 0 {
		return true
	}
	for _, demand := range special {
		covers := func(set matcherSet) bool {
			for name, general := range set {
				if !slices.ContainsFunc(demand, func(d matcherSet) bool {
					special, ok := d[name]
					return ok && matcherCovers(name, general, special)
				}) {
					return false
				}
			}
			return true
		}
		if !slices.ContainsFunc(sets, covers) {
			return false
		}
	}
	return true
}

// matcherCovers reports whether a matcher surely matches whatever another one of its kind does.
func matcherCovers(name string, general, special matcherSource) bool {
	if general.raw == "null" || special.raw == "null" {
		return false // nobody knows what it is
	}
	if general.raw == special.raw {
		return true
	}
	var covers func(general, special string) bool
	switch name {
	case "path":
		covers = pathCovers
	case "host":
		covers = hostCovers
	case "method":
		covers = func(general, special string) bool { return general == special }
	default:
		return false
	}
	for _, s := range special.list {
		if !slices.ContainsFunc(general.list, func(g string) bool { return covers(g, s) }) {
			return false
		}
	}
	return len(special.list) > 0
}

// pathCovers reports whether one pattern of the matcher path surely matches whatever another does.
func pathCovers(general, special string) bool {
	general, special = strings.ToLower(general), strings.ToLower(special)
	if general == special || general == "*" || general == "/*" {
		return true
	}
	// These have rules of their own.
	if strings.ContainsAny(general, "{%") || strings.Contains(general, "//") || strings.ContainsAny(special, "{%") || strings.Contains(special, "//") {
		return false
	}
	prefix, ok := strings.CutSuffix(general, "*")
	if !ok || strings.ContainsAny(prefix, "*?[\\") {
		return false
	}
	if i := strings.IndexAny(special, "*?[\\"); i >= 0 {
		special = special[:i]
	}
	return strings.HasPrefix(special, prefix)
}

// hostCovers reports whether one pattern of the matcher host surely matches whatever another does.
func hostCovers(general, special string) bool {
	if strings.EqualFold(general, special) {
		return true
	}
	if strings.ContainsAny(general+special, "{") {
		return false
	}
	domain, ok := strings.CutPrefix(strings.ToLower(general), "*.")
	if !ok || strings.Contains(domain, "*") {
		return false
	}
	_, of, ok := strings.Cut(strings.ToLower(special), ".")
	return ok && of == domain
}

// surely reports whether every request that meets the demands matches all the routes.
func surely(routes []*lintRoute, special demands) bool {
	return !slices.ContainsFunc(routes, func(r *lintRoute) bool { return !cover(r.demand(), special) })
}
