package caddyoauth

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/intercept"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
)

// Some configurations load without a word and can't be what was meant. 'caddy oauth lint' finds
// them, and a start logs those that are certain. lintChecks is the list.

// lintKind says what a finding does to a gateway.
type lintKind string

const (
	// lintOpen: somebody may get in who should not.
	lintOpen lintKind = "open"
	// lintLocked: somebody can't get in who should.
	lintLocked lintKind = "locked"
	// lintDoubtful: it works, and is probably not what was meant.
	lintDoubtful lintKind = "doubtful"
)

// lintCheck is one thing that lint looks for.
type lintCheck struct {
	// code is the name by which it is reported and silenced.
	code string
	kind lintKind
	// certain is set if no sane configuration has such a finding. A start then logs it as a
	// warning, so find must take milliseconds for ten thousand clients, and must not write
	// modules again that are not Caddy's own or ours: they may already be in use.
	certain bool
	// means and do are what an operator reads: what the finding means, and what to do about it.
	// They may have Markdown, since the manual has them, too.
	means, do string
	// find reports each place that has it. It reads the configuration and changes nothing.
	find func(l *linted, report lintReport)
}

// lintReport reports a finding at a place. The text says what is wrong there, in one line. It
// holds no secret.
type lintReport func(at lintPlace, format string, args ...any)

// lintChecks returns everything that lint looks for. It is a function because the checks and what
// they look at refer to each other.
func lintChecks() []lintCheck {
	return slices.Concat(lintOpenChecks(), lintLockedChecks(), lintDoubtfulChecks(), lintKeyChecks(), lintCertificateChecks(), lintFederatedChecks(), []lintCheck{{
		code: lintUnused, kind: lintDoubtful,
		means: "A `lint_ignore` silences nothing: what it was written for is gone, or it stands in the wrong place.",
		do:    "Remove it, or move it to where the finding is.",
		// What is unused is known when everything else has been found; see findUnused.
		find: func(*linted, lintReport) {},
	}})
}

// lintUnused is the code of a LintIgnore without any finding.
const lintUnused = "lint-ignore-unused"

// LintIgnore silences findings of `caddy oauth lint`, and the warnings of a start that are about the
// same, where they are meant to be as they are. It holds for the part of the configuration that it
// stands in.
type LintIgnore struct {
	// The code of the findings, as `caddy oauth lint` prints it.
	Code string `json:"code,omitempty"`

	// The site that they are about: its host or address. Only in the app itself, for sites that have
	// no handler of ours. Default: all.
	Site string `json:"site,omitempty"`

	// Why they are meant to be.
	Reason string `json:"reason,omitempty"`

	// Where it stands in the Caddyfile, as in `Caddyfile:12`. The adapter writes it, for people: it
	// decides nothing. Default: none.
	At string `json:"at,omitempty"`
}

// check refuses what can't silence anything.
func (i *LintIgnore) check() error {
	var known []string
	for _, c := range lintChecks() {
		known = append(known, c.code)
	}
	slices.Sort(known)
	if err := conf.OneOf("lint_ignore", i.Code, known...); err != nil {
		return err
	}
	if strings.TrimSpace(i.Reason) == "" {
		return fmt.Errorf("lint_ignore %s: give the reason, for those who read this later", i.Code)
	}
	return nil
}

// checkLintIgnores checks all of a part of the configuration. sites says whether they may have one.
func checkLintIgnores(ignores []LintIgnore, sites bool) error {
	for i := range ignores {
		if err := ignores[i].check(); err != nil {
			return err
		}
		if ignores[i].Site != "" && !sites {
			return fmt.Errorf("lint_ignore %s: a site can be named only in the oauth app itself", ignores[i].Code)
		}
	}
	return nil
}

// lintFinding is something that a check has found.
type lintFinding struct {
	check lintCheck
	place lintPlace
	text  string
	// silenced is what silences it, nil if nothing does.
	silenced *LintIgnore
}

// lintPlace is a part of the configuration.
type lintPlace struct {
	// at is the file and line, if that is known.
	at string
	// path is the part's path in the JSON, as in apps/http/servers/srv0/routes/0/handle/1.
	path string
	// sites are the hosts or addresses of the site that it is in, none if it is in no site.
	sites []string
	// ports are those that the site listens on.
	ports []string
	// ignores are what may silence findings here, the innermost first.
	ignores []*lintIgnoreUse
}

// where is what people find the place by.
func (p lintPlace) where() string { return cmp.Or(p.at, p.path) }

// lintIgnoreUse is a LintIgnore, and whether it has silenced anything.
type lintIgnoreUse struct {
	*LintIgnore
	place func() lintPlace // the part of the configuration that it stands in
	used  bool
}

// silences reports whether it holds for findings with this code at the place, which is one that it
// stands around.
func (u *lintIgnoreUse) silences(code string, p lintPlace) bool {
	if u.Code != code {
		return false
	}
	if u.Site == "" {
		return true
	}
	site := u.Site
	if _, address, ok := strings.Cut(site, "://"); ok {
		site = address
	}
	return slices.ContainsFunc(p.sites, func(s string) bool {
		return strings.EqualFold(s, site) || slices.ContainsFunc(p.ports, func(port string) bool { return strings.EqualFold(s+":"+port, site) })
	})
}

// linted is a configuration that is being linted: the provisioned apps, and the routes of all
// servers as trees.
type linted struct {
	app     *App                    // nil if there is none
	policy  *policy                 // nil when a configuration starts
	realms  map[string]*servedRealm // the app's
	servers []*lintServer
	ignores map[*LintIgnore]*lintIgnoreUse
	clients map[string]*lintClients // by the names of their realms
	// inUse is set where other requests may already use the modules. Only Caddy's own and ours are
	// then written again; see lintCheck.certain.
	inUse bool
}

// lintServer is an HTTP server.
type lintServer struct {
	name   string
	server *caddyhttp.Server
	routes []*lintRoute // of requests
	errors []*lintRoute // of handle_errors
	named  map[string]*lintRoute
	ports  []string // that it listens on
}

// lintRoute is a route of a server, or inside a handler.
type lintRoute struct {
	*caddyhttp.Route
	l        *linted
	server   *lintServer
	in       *lintHandler // that it is inside of, nil for a route of the server itself
	beside   []*lintRoute // the list that it is in, with itself
	index    int          // in that list
	path     string       // in the JSON
	sites    []string     // its site's hosts, or the server's addresses
	handlers []*lintHandler

	demands  []matcherSet // what demand has returned
	demanded bool
}

// lintHandler is a handler in a route.
type lintHandler struct {
	route  *lintRoute
	index  int    // in the route
	path   string // in the JSON
	name   string // of its module, such as reverse_proxy
	module caddyhttp.MiddlewareHandler
	// routes are those inside: of a subroute, or those that run for a backend's answers.
	routes []*lintRoute
}

// newLinted prepares a configuration. All apps must be provisioned. Either may be nil.
func newLinted(app *App, http *caddyhttp.App) *linted {
	l := &linted{app: app, ignores: make(map[*LintIgnore]*lintIgnoreUse)}
	if app != nil {
		l.realms = app.realms
		l.addIgnores(app.LintIgnore, l.atApp)
		for name, realm := range app.Realms {
			l.addIgnores(realm.LintIgnore, func() lintPlace { return l.atRealm(name) })
			for id, client := range realm.Clients {
				l.addIgnores(client.LintIgnore, func() lintPlace { return l.atClient(name, id) })
			}
		}
	}
	if http == nil {
		return l
	}
	for _, name := range sortedKeys(http.Servers) {
		l.servers = append(l.servers, l.serverOf(name, http.Servers[name]))
	}
	return l
}

func (l *linted) serverOf(name string, server *caddyhttp.Server) *lintServer {
	s := &lintServer{name: name, server: server, named: make(map[string]*lintRoute)}
	for _, address := range server.Listen {
		if parsed, err := caddy.ParseNetworkAddress(address); err == nil && parsed.StartPort != 0 {
			s.ports = append(s.ports, strconv.FormatUint(uint64(parsed.StartPort), 10))
		}
	}
	path := "apps/http/servers/" + name
	numbered := func(list string) func(int) string {
		return func(i int) string { return path + list + strconv.Itoa(i) }
	}
	s.routes = l.routesOf(s, nil, configuredRoutes(server), numbered("/routes/"), server.Listen)
	if server.Errors != nil {
		routes := server.Errors.Routes
		if len(routes) > 0 && len(routes[0].Handlers) > 0 {
			if _, ours := routes[0].Handlers[0].(*earlyErrorStrip); ours { // nobody has configured it
				routes = routes[1:]
			}
		}
		s.errors = l.routesOf(s, nil, routes, numbered("/errors/routes/"), server.Listen)
	}
	for _, route := range sortedKeys(server.NamedRoutes) {
		at := func(int) string { return path + "/named_routes/" + route }
		s.named[route] = l.routesOf(s, nil, caddyhttp.RouteList{*server.NamedRoutes[route]}, at, nil)[0]
	}
	return s
}

func (l *linted) routesOf(s *lintServer, in *lintHandler, list caddyhttp.RouteList, path func(int) string, sites []string) []*lintRoute {
	routes := make([]*lintRoute, len(list))
	for i := range list {
		r := &lintRoute{Route: &list[i], l: l, server: s, in: in, beside: routes, index: i, path: path(i), sites: sites}
		if hosts := hostsOf(list[i].MatcherSets); len(hosts) > 0 {
			r.sites = hosts
		}
		routes[i] = r
		for n, module := range r.Handlers {
			h := &lintHandler{route: r, index: n, path: r.path + "/handle/" + strconv.Itoa(n), module: module, name: nameOf(module)}
			inside := func(list string) func(int) string {
				return func(i int) string { return h.path + list + strconv.Itoa(i) }
			}
			var responses []caddyhttp.ResponseHandler
			switch module := module.(type) {
			case *caddyhttp.Subroute:
				h.routes = l.routesOf(s, h, module.Routes, inside("/routes/"), r.sites)
			case *reverseproxy.Handler:
				responses = module.HandleResponse
			case *intercept.Intercept:
				responses = module.HandleResponse
			case *Protect:
				l.addIgnores(module.LintIgnore, h.place)
			case *Server:
				l.addIgnores(module.LintIgnore, h.place)
			}
			for i, response := range responses {
				h.routes = append(h.routes, l.routesOf(s, h, response.Routes, inside("/handle_response/"+strconv.Itoa(i)+"/routes/"), r.sites)...)
			}
			r.handlers = append(r.handlers, h)
		}
	}
	return routes
}

// nameOf returns the name of a handler's module. Not all handlers in a route are modules.
func nameOf(module caddyhttp.MiddlewareHandler) string {
	m, ok := module.(caddy.Module)
	if !ok {
		return ""
	}
	return m.CaddyModule().ID.Name()
}

// hostsOf returns the hosts that a route is for, none if it is for any.
func hostsOf(sets caddyhttp.MatcherSets) (hosts []string) {
	for _, set := range sets {
		before := len(hosts)
		for _, matcher := range set {
			if host, ok := matcher.(*caddyhttp.MatchHost); ok {
				hosts = append(hosts, *host...)
			}
		}
		if len(hosts) == before {
			return nil
		}
	}
	return hosts
}

// handlers yields all handlers of all servers, those of error routes and named routes too, in the
// order of the configuration. A handler comes before those inside it.
func (l *linted) handlers(yield func(*lintHandler) bool) {
	var walk func(routes []*lintRoute) bool
	walk = func(routes []*lintRoute) bool {
		for _, r := range routes {
			for _, h := range r.handlers {
				if !yield(h) || !walk(h.routes) {
					return false
				}
			}
		}
		return true
	}
	for _, s := range l.servers {
		if !walk(s.routes) || !walk(s.errors) {
			return
		}
		for _, name := range sortedKeys(s.named) {
			if !walk([]*lintRoute{s.named[name]}) {
				return
			}
		}
	}
}

// match returns the route's own matchers as the configuration has them, none if it takes all
// requests. A matcher that must not be written again is null.
func (r *lintRoute) match() []caddy.ModuleMap {
	var sets []caddy.ModuleMap
	for _, set := range r.MatcherSets {
		sets = append(sets, r.l.sourceOf(set))
	}
	return sets
}

func (l *linted) sourceOf(set caddyhttp.MatcherSet) caddy.ModuleMap {
	var known caddyhttp.MatcherSet
	source := make(caddy.ModuleMap)
	for _, matcher := range set {
		if l.writable(matcher) {
			known = append(known, matcher)
		} else {
			source[caddy.GetModuleName(matcher)] = json.RawMessage("null")
		}
	}
	maps.Copy(source, sourceOfMatchers(known))
	return source
}

// writable reports whether a module may be written again. Those that are neither Caddy's nor ours
// may not while others use them: nobody knows what they change in the meantime.
func (l *linted) writable(module any) bool {
	if !l.inUse {
		return true
	}
	if not, ok := module.(*caddyhttp.MatchNot); ok {
		return !slices.ContainsFunc(not.MatcherSets, func(set caddyhttp.MatcherSet) bool {
			return slices.ContainsFunc(set, func(matcher any) bool { return !l.writable(matcher) })
		})
	}
	t := reflect.TypeOf(module)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return strings.HasPrefix(t.PkgPath(), "github.com/caddyserver/caddy/v2/") || t.PkgPath() == reflect.TypeFor[App]().PkgPath()
}

// source returns the handler as the configuration has it, without what is inside its routes. It is
// null for one that must not be written again.
func (h *lintHandler) source() json.RawMessage {
	if h.route.l.inUse && !h.route.l.writable(h.module) {
		return json.RawMessage("null")
	}
	var ignored []caddyconfig.Warning // what can't be written is not looked into
	var config any = h.module
	if _, ok := h.module.(*caddyhttp.Subroute); ok {
		config = struct{}{}
	}
	return caddyconfig.JSONModuleObject(config, "handler", h.name, &ignored)
}

// The places of findings.

// atApp is the oauth block.
func (l *linted) atApp() lintPlace {
	p := lintPlace{path: "apps/oauth", ignores: l.ignoresOf(l.app.LintIgnore)}
	if root := l.app.Realms[rootRealm]; root != nil {
		p.at = root.At
	}
	return p
}

// atRealm is a realm. One that is not configured is the app itself.
func (l *linted) atRealm(name string) lintPlace {
	p := l.atApp()
	if realm := l.app.Realms[name]; realm != nil {
		p.at, p.path = realm.At, p.path+"/realms/"+name
		p.ignores = append(l.ignoresOf(realm.LintIgnore), p.ignores...)
	}
	return p
}

// atClient is a client of a realm.
func (l *linted) atClient(realm, id string) lintPlace {
	p := l.atRealm(realm)
	client := l.app.Realms[realm].Clients[id]
	p.at, p.path = client.At, p.path+"/clients/"+id
	p.ignores = append(l.ignoresOf(client.LintIgnore), p.ignores...)
	return p
}

// place is where the handler stands.
func (h *lintHandler) place() lintPlace {
	p := h.route.place()
	p.path = h.path
	switch module := h.module.(type) {
	case *Protect:
		p.at = module.At
		p.ignores = append(h.route.l.ignoresOf(module.LintIgnore), p.ignores...)
	case *Guard:
		p.at = module.At
	case *Server:
		p.at = module.At
		p.ignores = append(h.route.l.ignoresOf(module.LintIgnore), p.ignores...)
	default:
		p.at = h.line()
	}
	return p
}

// line is the file and line of a handler, if that can be found out.
func (h *lintHandler) line() string {
	if h.route.l.policy == nil {
		return ""
	}
	return h.route.l.policy.where(h.route.server.server, h.path, h.module)
}

// place is where the route stands: where its first handler does.
func (r *lintRoute) place() lintPlace {
	p := lintPlace{path: r.path, sites: r.sites, ports: r.server.ports}
	if len(r.handlers) > 0 {
		switch module := r.handlers[0].module.(type) {
		case *Protect:
			p.at = module.At
		case *Guard:
			p.at = module.At
		case *Server:
			p.at = module.At
		default:
			p.at = r.handlers[0].line()
		}
	}
	if r.l.app != nil {
		p.ignores = r.l.ignoresOf(r.l.app.LintIgnore)
	}
	return p
}

// addIgnores notes what a part of the configuration silences. place returns where that part is.
func (l *linted) addIgnores(ignores []LintIgnore, place func() lintPlace) {
	for i := range ignores {
		l.ignores[&ignores[i]] = &lintIgnoreUse{LintIgnore: &ignores[i], place: place}
	}
}

// ignoresOf returns the uses of what a part of the configuration silences.
func (l *linted) ignoresOf(ignores []LintIgnore) (uses []*lintIgnoreUse) {
	for i := range ignores {
		uses = append(uses, l.ignores[&ignores[i]])
	}
	return uses
}

// find returns what the checks find, in the order of the configuration. Findings that are silenced
// are among them.
func (l *linted) find(checks []lintCheck) []lintFinding {
	type key struct {
		code, where, text string
		silenced          bool
	}
	var findings []lintFinding
	index := make(map[key]int)
	reportFor := func(c lintCheck) lintReport {
		return func(at lintPlace, format string, args ...any) {
			f := lintFinding{check: c, place: at, text: fmt.Sprintf(format, args...)}
			for _, use := range at.ignores {
				if use.silences(c.code, at) {
					use.used, f.silenced = true, use.LintIgnore
					break
				}
			}
			k := key{c.code, at.where(), f.text, f.silenced != nil}
			if i, found := index[k]; found { // a snippet brings it into several sites
				sites := slices.Clone(findings[i].place.sites)
				for _, site := range at.sites {
					if !slices.Contains(sites, site) {
						sites = append(sites, site)
					}
				}
				findings[i].place.sites = sites
				return
			}
			index[k] = len(findings)
			findings = append(findings, f)
		}
	}
	for _, c := range checks {
		c.find(l, reportFor(c))
		if c.code == lintUnused {
			l.findUnused(reportFor(c))
		}
	}
	slices.SortFunc(findings, func(a, b lintFinding) int {
		return cmp.Or(compareWhere(a.place.where(), b.place.where()), cmp.Compare(a.check.code, b.check.code), cmp.Compare(a.text, b.text))
	})
	return findings
}

// findUnused reports each LintIgnore that has silenced nothing. All other checks must have run.
func (l *linted) findUnused(report lintReport) {
	// Those that silence the findings of this very check are judged last.
	for _, last := range []bool{false, true} {
		used := make(map[string]bool) // a snippet brings one into several sites
		for _, use := range l.ignores {
			if use.used && use.At != "" {
				used[use.At] = true
			}
		}
		for _, use := range l.ignores {
			if (use.Code == lintUnused) == last && !use.used && !used[use.At] {
				at := use.place()
				at.at = cmp.Or(use.At, at.at)
				report(at, "'lint_ignore %s' silences nothing here", use.Code)
			}
		}
	}
}

// loudOf returns the findings that are not silenced.
func loudOf(findings []lintFinding) (loud []lintFinding) {
	for _, f := range findings {
		if f.silenced == nil {
			loud = append(loud, f)
		}
	}
	return loud
}

// compareWhere compares places of findings: files by name, lines by number.
func compareWhere(a, b string) int {
	split := func(where string) (string, int) {
		i := strings.LastIndexByte(where, ':')
		line, err := strconv.Atoi(where[i+1:])
		if i < 0 || err != nil {
			return where, 0
		}
		return where[:i], line
	}
	fileA, lineA := split(a)
	fileB, lineB := split(b)
	return cmp.Or(cmp.Compare(fileA, fileB), cmp.Compare(lineA, lineB))
}

// lintWarnings is how many findings a start logs. There may be one for each client.
const lintWarnings = 20

// warnOfFindings logs what is certainly not meant, when a configuration starts. It never keeps a
// configuration from starting, whatever goes wrong in it.
func (a *App) warnOfFindings() {
	logger := a.logger.Named("lint")
	defer func() {
		if r := recover(); r != nil {
			logger.Error("looking for mistakes in the configuration failed: please report this; the configuration starts all the same", zap.Any("panic", r), zap.Stack("stack"))
		}
	}()
	var http *caddyhttp.App
	if app, err := a.ctx.AppIfConfigured("http"); err == nil {
		http, _ = app.(*caddyhttp.App)
	}
	l := newLinted(a, http)
	l.inUse = true // Caddy may have started the servers
	checks := slices.DeleteFunc(lintChecks(), func(c lintCheck) bool { return !c.certain })
	loud := loudOf(l.find(checks))
	for i, f := range loud {
		if i == lintWarnings {
			logger.Warn("there is more like this in the configuration: see 'caddy oauth lint'", zap.Int("more", len(loud)-i))
			return
		}
		logger.Warn(f.text, zap.String("code", f.check.code), zap.String("at", f.place.where()), zap.Strings("site", f.place.sites))
	}
}
