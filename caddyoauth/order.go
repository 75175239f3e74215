package caddyoauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

// Handlers and matchers that run before oauth_protect don't know the caller. An identity
// placeholder or header is empty there, so `root * /srv/{http.auth.user.id}` is /srv/ with
// everybody's files. A configuration that can be seen to do this is refused when it is loaded.

// checkOrder walks through the routes of a server in the order in which they run. It returns an
// error if something in them uses the caller's identity before an oauth_protect can have
// established it. It is called for the first handler of the app that is provisioned in the
// server.
func checkOrder(ctx caddy.Context, server *caddyhttp.Server, logger *zap.Logger) error {
	w := orderWalk{prefixes: []string{strings.ToLower(defaultHeaderPrefix)}, named: make(map[string][]sourceRoute)}
	for name, s := range serversOf(ctx) {
		if s == server {
			w.server = name
		}
		w.collectPrefixes(sourceOf(configuredRoutes(s)))
		for _, route := range s.NamedRoutes {
			w.collectPrefixes(sourceOf(caddyhttp.RouteList{*route}))
		}
	}
	for name, route := range server.NamedRoutes {
		w.named[name] = sourceOf(caddyhttp.RouteList{*route})
	}
	w.routes(sourceOf(configuredRoutes(server)), "", knowledge{})
	for _, warning := range w.warnings {
		logger.Warn(warning, zap.String("server", w.server))
	}
	return errors.Join(w.errs...)
}

// sourceRoute is a route as the configuration has it.
type sourceRoute struct {
	Group    string            `json:"group,omitempty"`
	Match    []caddy.ModuleMap `json:"match,omitempty"`
	Handle   []json.RawMessage `json:"handle,omitempty"`
	Terminal bool              `json:"terminal,omitempty"`
}

// sourceOf returns routes as the configuration has them. Caddy has forgotten the source of
// what is already loaded, so that is written again.
func sourceOf(routes caddyhttp.RouteList) []sourceRoute {
	var source []sourceRoute
	for _, route := range routes {
		s := sourceRoute{Group: route.Group, Terminal: route.Terminal, Match: slices.Clone([]caddy.ModuleMap(route.MatcherSetsRaw)), Handle: slices.Clone(route.HandlersRaw)}
		for _, set := range route.MatcherSets {
			s.Match = append(s.Match, sourceOfMatchers(set))
		}
		for _, handler := range route.Handlers {
			// A module that can't be written again is not one of Caddy's own, and is not looked into.
			var ignored []caddyconfig.Warning
			var config any = handler
			if subroute, ok := handler.(*caddyhttp.Subroute); ok {
				config = map[string]any{"routes": sourceOf(subroute.Routes)}
			}
			s.Handle = append(s.Handle, caddyconfig.JSONModuleObject(config, "handler", caddy.GetModuleName(handler), &ignored))
		}
		source = append(source, s)
	}
	return source
}

func sourceOfMatchers(set caddyhttp.MatcherSet) caddy.ModuleMap {
	source := make(caddy.ModuleMap)
	for _, matcher := range set {
		config := matcher
		if not, ok := matcher.(*caddyhttp.MatchNot); ok {
			var sets []caddy.ModuleMap
			for _, inner := range not.MatcherSets {
				sets = append(sets, sourceOfMatchers(inner))
			}
			config = sets
		}
		var ignored []caddyconfig.Warning
		source[caddy.GetModuleName(matcher)] = caddyconfig.JSON(config, &ignored)
	}
	return source
}

// serversOf returns the servers of the http app that a module is being provisioned for.
func serversOf(ctx caddy.Context) map[string]*caddyhttp.Server {
	for _, module := range ctx.Modules() {
		if app, ok := module.(*caddyhttp.App); ok {
			return app.Servers
		}
	}
	return nil
}

// orderWalk is a walk through the routes of a server.
type orderWalk struct {
	server   string
	prefixes []string // of identity headers, folded
	named    map[string][]sourceRoute
	// aliases are placeholders that a map makes from an identity. Their values are computed
	// where they are used.
	aliases []string

	errs     []error
	warnings []string
}

// knowledge is what can be known about a request at one point of its way.
type knowledge struct {
	// protected: an oauth_protect may have run. Those that a request can pass unnamed count as well:
	// what comes after them may well use the identity of whoever has one.
	protected bool
	// named: an oauth_protect that nobody passes unnamed may have run, or a matcher has looked at the
	// caller.
	named bool
	// authenticated: another handler that sets {http.auth.user.*} may have run.
	authenticated bool
	// early are the uses of an identity so far. All of them come before any oauth_protect.
	early []*earlyUse
}

// earlyUse is a use of an identity. It comes too early if an oauth_protect comes after it.
type earlyUse struct {
	site, where, text, trouble string
	// certain is false for modules that are not Caddy's own: nobody knows when they look.
	certain, reported bool
}

// with returns k and what a part of the way adds to it.
func (k knowledge) with(more knowledge) knowledge {
	return knowledge{k.protected || more.protected, k.named || more.named, k.authenticated || more.authenticated, append(slices.Clip(k.early), more.early...)}
}

// routes walks through a list of routes, and returns what may be known after it.
func (w *orderWalk) routes(list []sourceRoute, site string, before knowledge) knowledge {
	// What the routes so far add. Groups are kept apart, since only one route of each runs.
	reached, groups := before, make(map[string]knowledge)
	upTo := func(group string) knowledge {
		k := reached
		for _, name := range sortedKeys(groups) {
			if name != group {
				k = k.with(groups[name])
			}
		}
		return k
	}
	for _, route := range list {
		site := site
		matching := upTo(route.Group)
		known := len(matching.early)
		for _, set := range route.Match {
			var hosts []string
			if json.Unmarshal(set["host"], &hosts) == nil && len(hosts) > 0 {
				site = strings.Join(hosts, ", ")
			}
			matching = w.matchers(set, site, matching)
		}
		// Matchers look at a request whether it then matches or not.
		reached = reached.with(knowledge{early: matching.early[known:]})
		after, looked := matching, len(matching.early)
		looksAtCaller := slices.ContainsFunc(route.Match, w.looksAtCaller)
		after.named = after.named || looksAtCaller
		for _, handler := range route.Handle {
			after = w.handler(handler, site, after)
		}
		if looksAtCaller {
			after.named = matching.named // it holds in this route alone
		}
		if route.Terminal {
			continue // nothing comes after it
		}
		more := knowledge{after.protected, after.named, after.authenticated, after.early[looked:]}
		if route.Group == "" {
			reached = reached.with(more)
		} else {
			groups[route.Group] = groups[route.Group].with(more)
		}
	}
	return upTo("")
}

// matchers looks at a set of matchers.
func (w *orderWalk) matchers(set caddy.ModuleMap, site string, k knowledge) knowledge {
	for _, name := range sortedKeys(set) {
		raw := set[name]
		where := "the matcher " + name
		switch name {
		case "not":
			var sets []caddy.ModuleMap
			if json.Unmarshal(raw, &sets) == nil {
				for _, inner := range sets {
					k = w.matchers(inner, site, k)
				}
			}
			continue
		case "oauth_scope":
			var scopes []string
			_ = json.Unmarshal(raw, &scopes) // anything but a list of scopes doesn't load
			k = w.use(k, earlyUse{site, where, strings.Join(scopes, " "), "no token is known yet", true, false})
		case "header", "header_regexp":
			var fields map[string]json.RawMessage
			_ = json.Unmarshal(raw, &fields) // anything else doesn't load
			for _, field := range sortedKeys(fields) {
				if isIdentity(field, w.prefixes) {
					k = w.use(k, earlyUse{site, where, field, isEmpty(field), true, false})
				}
			}
		case "expression":
			for text := range stringsIn(raw) {
				for _, prefix := range w.prefixes {
					for _, quote := range []string{`"`, `'`, "`"} {
						if strings.Contains(strings.ToLower(text), quote+prefix) {
							k = w.use(k, earlyUse{site, where, text, isEmpty("the header"), true, false})
						}
					}
				}
			}
		}
		if slices.Contains(globs, name) {
			w.patterns(raw, where, site, k)
		}
		k = w.placeholders(raw, where, site, isCaddys("http.matchers."+name), k)
	}
	return k
}

// globs are the matchers that read the value of a placeholder as a pattern.
var globs = []string{"path", "host", "header", "query"}

// patterns warns about identities in patterns: a token with the subject * would match everything.
func (w *orderWalk) patterns(raw json.RawMessage, where, site string, k knowledge) {
	for text := range stringsIn(raw) {
		if identity := w.identityIn(text, k.authenticated); identity != "" {
			w.warn(w.place(site) + asWritten(fmt.Sprintf(": '%s' in %s is a pattern, and a caller whose {%s} is * always matches it; compare in an expression instead",
				text, where, identity)))
		}
	}
}

// directives are the names of handlers in Caddyfiles, where they differ.
var directives = map[string]string{
	"vars": "root, vars", "rewrite": "rewrite, uri, method, try_files", "headers": "header, request_header",
	"static_response": "redir, respond", "authentication": "basic_auth", "reverse_proxy": "forward_auth",
}

// handler looks at a handler, and returns what may be known after it.
func (w *orderWalk) handler(raw json.RawMessage, site string, k knowledge) knowledge {
	var handler struct {
		Handler      string
		Routes       []sourceRoute
		Name         string
		Destinations []string
		Early        bool
		Response     struct {
			Deferred bool
			Require  any
		}
		HandleResponse []any `json:"handle_response"`
	}
	if json.Unmarshal(raw, &handler) != nil {
		// It has another shape than Caddy's own of that name, so only its name counts.
		var name struct{ Handler string }
		_ = json.Unmarshal(raw, &name) // a handler without a name doesn't load
		handler.Handler = name.Handler
	}
	scan := raw
	switch handler.Handler {
	case "subroute":
		return w.routes(handler.Routes, site, k)
	case "invoke":
		route := w.named[handler.Name]
		delete(w.named, handler.Name) // so that a route that invokes itself is walked only once
		defer func() { w.named[handler.Name] = route }()
		return w.routes(route, site, k)
	case "oauth_protect":
		if !k.protected {
			for _, u := range k.early {
				w.report(u)
			}
		}
		k.protected, k.named = true, k.named || !passesUnnamed(raw)
		return k
	case "authentication":
		k.authenticated = true
	case "map":
		return w.mapping(raw, handler.Destinations, site, k)
	case "headers":
		if handler.Response.Deferred || handler.Response.Require != nil {
			scan = without(raw, "response")
		}
	case "log_append":
		if !handler.Early {
			return k
		}
	case "reverse_proxy":
		if len(handler.HandleResponse) == 0 {
			return k // nothing runs after it
		}
	case "tracing", "intercept":
		return k // they look only when there is a response
	}
	where := "the handler " + handler.Handler
	if names := directives[handler.Handler]; names != "" {
		where += " (in a Caddyfile " + names + ")"
	}
	if slices.Contains(choosers, handler.Handler) && k.protected && !k.named {
		for text := range stringsIn(scan) {
			if identity := w.identityIn(text, k.authenticated); identity != "" && strings.Contains(text, "/") {
				w.warn(w.place(site) + asWritten(fmt.Sprintf(": '%s' in %s: requests that oauth_protect lets pass unnamed get here as well, and {%s} is then empty; give it a matcher that looks at the caller",
					text, where, identity)))
			}
		}
	}
	return w.placeholders(scan, where, site, isCaddys("http.handlers."+handler.Handler), k)
}

// choosers are the handlers that choose what is served.
var choosers = []string{"vars", "rewrite", "file_server"}

// passesUnnamed reports whether an oauth_protect may let requests pass without knowing the caller.
func passesUnnamed(raw json.RawMessage) bool {
	var protect struct {
		Optional   bool
		ReportOnly any `json:"report_only"`
		On         []struct{ Optional bool }
	}
	_ = json.Unmarshal(raw, &protect) // anything else doesn't load
	return protect.Optional || protect.ReportOnly != nil || slices.ContainsFunc(protect.On, func(on struct{ Optional bool }) bool { return on.Optional })
}

// looksAtCaller reports whether a set of matchers depends on who is calling.
func (w *orderWalk) looksAtCaller(set caddy.ModuleMap) bool {
	for name, raw := range set {
		if name == "oauth_scope" {
			return true
		}
		for text := range stringsIn(raw) {
			if w.identityIn(text, false) != "" {
				return true
			}
		}
	}
	return false
}

// mapping looks at a map. Its values are computed where they are used, so what it makes from an
// identity is an identity too.
func (w *orderWalk) mapping(raw json.RawMessage, destinations []string, site string, k knowledge) knowledge {
	ofIdentity := false
	for text := range stringsIn(without(raw, "destinations")) {
		ofIdentity = ofIdentity || w.identityIn(text, false) != ""
	}
	for _, d := range destinations {
		d = strings.Trim(d, "{}") // loaded maps have no braces
		if ofIdentity {
			w.aliases = append(w.aliases, d)
		}
		if strings.HasPrefix(d, "http.auth.user.") {
			k = w.use(k, earlyUse{site, "the handler map", "{" + d + "}", "it would override what the token says", true, false})
		}
	}
	return k
}

// without returns a JSON object without one of its members.
func without(raw json.RawMessage, member string) json.RawMessage {
	var object map[string]json.RawMessage
	_ = json.Unmarshal(raw, &object) // anything but an object doesn't load
	delete(object, member)
	rest, _ := json.Marshal(object)
	return rest
}

// placeholders looks for an identity in all text of a module's configuration.
func (w *orderWalk) placeholders(raw json.RawMessage, where, site string, certain bool, k knowledge) knowledge {
	for text := range stringsIn(raw) {
		if identity := w.identityIn(text, k.authenticated); identity != "" {
			k = w.use(k, earlyUse{site, where, text, isEmpty("{" + identity + "}"), certain, false})
		}
	}
	return k
}

// identityIn returns the first placeholder in text that stands for the caller. With
// authenticated, placeholders that another handler may have set don't count.
func (w *orderWalk) identityIn(text string, authenticated bool) string {
	for {
		_, rest, opened := strings.Cut(text, "{")
		if !opened {
			return ""
		}
		text = rest
		name, _, closed := strings.Cut(rest, "}")
		if !closed {
			return ""
		}
		header, isHeader := strings.CutPrefix(name, "http.request.header.")
		switch {
		case strings.HasPrefix(name, "http.auth.user.") && !authenticated,
			isHeader && isIdentity(header, w.prefixes),
			slices.Contains(w.aliases, name):
			return name
		}
	}
}

// use notes a use of an identity if the caller can't be known there.
func (w *orderWalk) use(k knowledge, u earlyUse) knowledge {
	if !k.protected {
		k.early = append(slices.Clip(k.early), &u)
	}
	return k
}

func isEmpty(what string) string { return "the caller is not known yet, and " + what + " is empty" }

// report turns a use that comes before an oauth_protect into an error, or into a warning if it
// is not certain.
func (w *orderWalk) report(u *earlyUse) {
	if u.reported {
		return
	}
	u.reported = true
	text := w.place(u.site) + asWritten(fmt.Sprintf(": '%s' in %s comes before oauth_protect: %s; put both into a route block, with oauth_protect first",
		u.text, u.where, u.trouble))
	if !u.certain {
		w.warn(text)
		return
	}
	w.errs = append(w.errs, errors.New(text))
}

// place names a site of the server.
func (w *orderWalk) place(site string) string {
	place := "server " + w.server
	if site != "" {
		place += ", site " + site
	}
	return place
}

// warn keeps a warning once: a named route may be walked through several times.
func (w *orderWalk) warn(text string) {
	if !slices.Contains(w.warnings, text) {
		w.warnings = append(w.warnings, text)
	}
}

// asWritten returns text with placeholders as Caddyfiles have them, so that they can be found
// there.
func asWritten(text string) string {
	return strings.ReplaceAll(text, "{http.request.header.", "{header.")
}

// collectPrefixes finds the prefixes of identity headers in routes.
func (w *orderWalk) collectPrefixes(routes []sourceRoute) {
	for _, route := range routes {
		for _, raw := range route.Handle {
			var handler struct {
				Handler      string
				Routes       []sourceRoute
				HeaderPrefix string `json:"header_prefix"`
				Assertion    *Assertion
			}
			if json.Unmarshal(raw, &handler) != nil {
				continue
			}
			if handler.Handler == "oauth_protect" && handler.HeaderPrefix != "" {
				w.prefixes = append(w.prefixes, strings.ToLower(handler.HeaderPrefix))
			}
			if handler.Handler == "oauth_protect" && handler.Assertion != nil {
				w.prefixes = append(w.prefixes, strings.ToLower(handler.Assertion.header()))
			}
			w.collectPrefixes(handler.Routes)
		}
	}
}

// isCaddys reports whether a module is part of Caddy itself.
func isCaddys(id string) bool {
	info, err := caddy.GetModule(id)
	if err != nil {
		return false
	}
	t := reflect.TypeOf(info.New())
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return strings.HasPrefix(t.PkgPath(), "github.com/caddyserver/caddy/v2/")
}

// stringsIn yields all strings in a JSON value, including the names of members, in order.
func stringsIn(raw json.RawMessage) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		decoder := json.NewDecoder(strings.NewReader(string(raw)))
		decoder.UseNumber() // a number that no float64 can be, such as 1e400, is no end
		for {
			token, err := decoder.Token()
			if err != nil {
				return
			}
			if text, ok := token.(string); ok && !yield(text) {
				return
			}
		}
	}
}
