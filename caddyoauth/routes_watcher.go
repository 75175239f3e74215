package caddyoauth

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
)

// A watcher watches a walk, and answers what the walk can't know about all requests of a row.
type watcher struct {
	*hostSurvey
	path    pathPattern
	methods *[]string
	assumed []condition
	foreign string // the source whose token the visitor has; empty for others

	need *condition // the first condition that is not assumed

	now currentPath
	// method is set once a handler has changed the request's.
	method methodChange
	// last is the handler that was met last, and may have changed the path to another than lastPath.
	last     *handlerFacts
	lastPath string
	failed   bool // error routes run
	changes  int  // of what conditions look at
	strips   int  // of headers that ours remove

	met      []*handlerFacts
	protects []*Protect
	rules    []*access.Rule // of them, for the request's method
	endpoint *route
	leak     string // where error routes send the request, as it came
	needs    []string
	root     string // of files
	secret   bool   // something needs a private connection
	vague    bool   // a rule is for a method that nobody knows
}

type methodChange int

const (
	sameMethod methodChange = iota
	fixedMethod
	anotherMethod
)

// currentPath says how the path that matchers see comes from the request's own.
type currentPath struct {
	unknown  bool // in a way that depends on more than the path
	fixed    bool // it is the same for all requests of the row, apart from the case of letters
	constant bool // and it stands in the configuration
	// Otherwise strip was removed from its beginning, and then add put there.
	strip, add string
}

// handlerFacts is what is known about a handler from its configuration.
type handlerFacts struct {
	handler caddyhttp.MiddlewareHandler
	name    string
	config  json.RawMessage
	changes bool // what matchers look at, apart from path and method
}

// factsOf reads the configuration of a handler.
func (s *survey) factsOf(handler caddyhttp.MiddlewareHandler) *handlerFacts {
	comparable := reflect.TypeOf(handler).Comparable()
	if comparable && s.about[handler] != nil {
		return s.about[handler]
	}
	f := &handlerFacts{handler: handler}
	if module, ok := handler.(caddy.Module); ok {
		f.name = caddy.GetModuleName(module)
		f.changes = !isCaddys("http.handlers."+f.name) || slices.Contains([]string{"rewrite", "headers", "vars", "map"}, f.name)
	}
	switch handler.(type) {
	case *Protect, *Guard, *Server, *caddyhttp.Subroute:
		f.changes = false
	default:
		f.config, _ = json.Marshal(handler) // one that can't be written is not one of Caddy's own
	}
	if comparable {
		s.about[handler] = f
	}
	return f
}

// matches is called in place of the matchers of a route.
func (p *watcher) matches(sets caddyhttp.MatcherSets, r *http.Request) bool {
	p.arrive(r)
	for _, set := range sets {
		if p.all(set, r) {
			return true
		}
	}
	return len(sets) == 0
}

// all reports whether all matchers of a set match. It asks first those that are easy to tell.
func (p *watcher) all(set caddyhttp.MatcherSet, r *http.Request) bool {
	rank := func(matcher any) int {
		switch matcher.(type) {
		case *caddyhttp.MatchHost, caddyhttp.MatchHost:
			return 0
		case *caddyhttp.MatchPath, caddyhttp.MatchPath:
			return 1
		case *caddyhttp.MatchMethod, caddyhttp.MatchMethod:
			return 2
		case *caddyhttp.MatchNot:
			return 4
		}
		return 3
	}
	sorted := slices.SortedStableFunc(slices.Values(set), func(a, b any) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(moduleName(a), moduleName(b)))
	})
	for _, matcher := range sorted {
		if !p.one(matcher, r) {
			return false
		}
	}
	return true
}

func moduleName(module any) string {
	if m, ok := module.(caddy.Module); ok {
		return caddy.GetModuleName(m)
	}
	return fmt.Sprintf("%T", module)
}

func (p *watcher) one(matcher any, r *http.Request) bool {
	switch m := matcher.(type) {
	case *caddyhttp.MatchHost:
		return slices.ContainsFunc(*m, p.isHost)
	case *caddyhttp.MatchPath:
		return slices.ContainsFunc(*m, func(text string) bool { return p.isPath(text, r) })
	case *caddyhttp.MatchMethod:
		return slices.ContainsFunc(*m, func(method string) bool { return p.isMethod(method, r) })
	case *caddyhttp.MatchNot:
		return !slices.ContainsFunc(m.MatcherSets, func(set caddyhttp.MatcherSet) bool { return p.all(set, r) })
	case *caddyhttp.MatchPathRE:
		return p.isPathRegexp(m, r)
	case *caddyhttp.MatchProtocol:
		if *m == "https" || *m == "http" {
			return (*m == "https") == (len(p.to.TLSConnPolicies) > 0)
		}
	case *MatchScope:
		if p.foreign == "" {
			return m.Match(r)
		}
	}
	return p.condition(matcher)
}

func (p *watcher) isHost(text string) bool {
	host, ok := parseHost(text)
	switch {
	case !ok:
		return p.holds("host "+text, "host "+text)
	case p.host.within(host):
		return true
	}
	for _, common := range p.host.and(host) {
		if !p.hosts.add(common) {
			p.table.Cut = true
			return p.holds("host "+text, "host "+text)
		}
	}
	return false
}

func (p *watcher) isMethod(method string, r *http.Request) bool {
	if p.method == anotherMethod {
		return p.holds(fmt.Sprintf("method %s %d", method, p.changes), "method "+method+" after a rewrite")
	}
	if p.method == sameMethod && !slices.Contains(*p.methods, method) {
		*p.methods = append(*p.methods, method)
	}
	return r.Method == method
}

func (p *watcher) isPath(text string, r *http.Request) bool {
	depends := func() bool {
		shown := "path " + text
		if p.now != (currentPath{fixed: p.path.exact}) {
			shown += " after a rewrite"
		}
		return p.holds(fmt.Sprintf("path %s %d", text, p.changes), shown)
	}
	pattern, empty, ok := parsePath(text)
	switch {
	case text == "*":
		return true
	case p.now.unknown, !ok && strings.ContainsAny(text, "{%"):
		return depends()
	case p.now.fixed:
		matches, err := caddyhttp.MatchPath{strings.ToLower(text)}.MatchWithError(r)
		return err == nil && matches
	case ok && empty:
		return false
	case !ok && p.now == currentPath{}:
		// A pattern as of a shell. What it begins with may rule it out.
		begin := strings.ToLower(text[:strings.IndexAny(text+"*", `*?[\`)])
		if !strings.HasPrefix(begin, p.path.text) && !strings.HasPrefix(p.path.text, begin) {
			return false
		}
		return depends()
	case !ok:
		return depends()
	}
	own, ok := p.now.before(pattern)
	switch {
	case !ok:
		return depends()
	case own == nil:
		return false
	case p.path.within(*own):
		return true
	}
	for _, common := range p.path.and(*own) {
		if !p.paths.add(common) {
			p.table.Cut = true
			return depends()
		}
	}
	return false
}

// before returns the pattern for the request's own path that says what one for the current path
// says, or nil if no path fits.
func (c currentPath) before(pattern pathPattern) (own *pathPattern, ok bool) {
	if c == (currentPath{}) {
		return &pattern, true
	}
	if strings.LastIndexByte(pattern.suffix, '/') > 0 {
		return nil, false // it may reach into what was added or stripped
	}
	text, below := strings.CutPrefix(pattern.text, c.add)
	switch {
	case below:
		pattern.text = c.strip + text
	case !pattern.exact && strings.HasPrefix(c.add, pattern.text):
		pattern.text = c.strip
	default:
		return nil, true
	}
	if pattern.text == "" {
		if pattern.exact {
			return nil, true
		}
		pattern.text = "/"
	}
	return &pattern, true
}

func (p *watcher) isPathRegexp(m *caddyhttp.MatchPathRE, r *http.Request) bool {
	path := p.path.text
	if p.now.fixed {
		path = strings.ToLower(r.URL.Path)
	}
	// A row is for capitals and small letters alike, as the matcher path is, but this matcher is not.
	if p.now.constant || p.now.fixed && path == strings.ToUpper(path) {
		matches, err := m.MatchWithError(r)
		return err == nil && matches
	}
	if p.now.fixed || p.now == (currentPath{}) {
		// What it begins with may rule it out.
		begin := strings.ToLower(literalBegin(m.Pattern))
		if !strings.HasPrefix(path, begin) && (p.now.fixed || !strings.HasPrefix(begin, path)) {
			return false
		}
	}
	shown := "path_regexp " + m.Pattern
	if p.now != (currentPath{fixed: p.path.exact}) {
		shown += " after a rewrite"
	}
	return p.holds(fmt.Sprintf("path_regexp %s %d", m.Pattern, p.changes), shown)
}

// literalBegin returns what a text must begin with to match a regular expression.
func literalBegin(pattern string) string {
	rest, anchored := strings.CutPrefix(pattern, "^")
	if !anchored || strings.Contains(rest, "|") {
		return ""
	}
	compiled, err := regexp.Compile(rest)
	if err != nil {
		return ""
	}
	begin, _ := compiled.LiteralPrefix()
	return begin
}

// condition is for all other matchers. Only names are shown where a value may be a secret.
func (p *watcher) condition(matcher any) bool {
	name := moduleName(matcher)
	config, err := json.Marshal(matcher)
	if err != nil {
		config = []byte(fmt.Sprintf("%p", matcher))
	}
	shown, changes := name, p.changes
	switch m := matcher.(type) {
	case *caddyhttp.MatchExpression:
		shown += " " + m.Expr
	case *caddyhttp.MatchProtocol:
		shown += " " + string(*m)
	case *MatchScope:
		shown += " " + strings.Join(*m, " ")
	default:
		switch name {
		case "header", "header_regexp", "query", "vars", "vars_regexp":
			var fields map[string]json.RawMessage
			_ = json.Unmarshal(config, &fields) // anything else is shown by its name alone
			names := sortedKeys(fields)
			shown += " " + strings.Join(names, " ")
			if slices.ContainsFunc(names, p.isStripped) {
				changes += p.strips << 16
			}
		case "remote_ip", "client_ip":
			var ranges struct{ Ranges []string }
			_ = json.Unmarshal(config, &ranges)
			shown += " " + strings.Join(ranges.Ranges, " ")
		}
	}
	return p.holds(fmt.Sprintf("%s %s %d", name, config, changes), shown)
}

// isStripped reports whether our handlers remove a header.
func (p *watcher) isStripped(name string) bool {
	return isIdentity(name, p.policy.app.prefixes) || isOneOf(name, credentialHeaders) || isOneOf(name, overrideHeaders)
}

// holds returns what is assumed about a condition.
func (p *watcher) holds(key, shown string) bool {
	for _, c := range p.assumed {
		if c.key == key {
			return c.holds
		}
	}
	if p.need == nil {
		p.need = &condition{key: key, shown: shown}
	}
	return false
}

// meets is called before each handler of the walk.
func (p *watcher) meets(handler caddyhttp.MiddlewareHandler, r *http.Request) {
	p.arrive(r)
	f := p.factsOf(handler)
	p.last, p.lastPath = f, r.URL.Path
	p.met = append(p.met, f)
	if f.changes {
		p.changes++
	}
	switch h := handler.(type) {
	case *Protect:
		p.protects = append(p.protects, h)
		p.rules = append(p.rules, h.ruleFor(r.Method))
		p.strips++
		p.secret = p.secret || !h.InsecureHTTP
		p.vague = p.vague || p.method == anotherMethod && len(h.On) > 0
		for i := range h.On {
			for _, method := range h.On[i].Methods {
				if method != anyMethod && p.method == sameMethod && !slices.Contains(*p.methods, method) {
					*p.methods = append(*p.methods, method)
				}
			}
		}
	case *Guard:
		p.strips++
	case *Server:
		p.meetsServer(h, r)
	}
	if p.failed && (f.name == "reverse_proxy" || f.name == "file_server") {
		if to, _ := p.goal(f); r.URL.Path == p.example() {
			p.leak = to
		}
	}
	if f.name == "vars" {
		var vars struct{ Root string }
		if json.Unmarshal(f.config, &vars) == nil && vars.Root != "" {
			p.root = vars.Root
		}
	}
}

// meetsServer gives each endpoint a row.
func (p *watcher) meetsServer(server *Server, r *http.Request) {
	p.endpoint = nil
	if p.now.unknown {
		return
	}
	if p.now.fixed {
		p.endpoint, _ = server.find(r)
		return
	}
	for _, path := range sortedKeys(server.endpoints) {
		own, ok := p.now.before(pathPattern{text: strings.ToLower(path), exact: true})
		if !ok || own == nil || !own.within(p.path) {
			continue
		}
		if !p.paths.add(*own) {
			p.table.Cut = true
			continue
		}
		// As the handler has it, since it compares letters by case.
		p.examples[*own] = p.now.strip + strings.TrimPrefix(path, p.now.add)
	}
}

// lets decides in place of an oauth_protect if the visitor has a token of which nobody knows what it has.
// One of an accepted source gets in if it has what the rule needs.
func (p *watcher) lets(protect *Protect, r *http.Request) (allowed, decided bool) {
	switch p.foreign {
	case "":
		return false, false
	case anySource:
		return true, true
	}
	for _, source := range protect.sources {
		if p.unknownOf(source) == p.foreign {
			if !protect.ReportOnly.holds() {
				p.needs = union(p.needs, needsOf(protect.ruleFor(r.Method)))
			}
			return true, true
		}
	}
	return protect.ReportOnly.holds(), true
}

// needsOf says what a rule demands of a token.
func needsOf(rule *access.Rule) (needs []string) {
	if rule.Also != nil {
		needs = needsOf(rule.Also)
	}
	for _, scope := range rule.Scopes {
		needs = append(needs, "scope "+scope)
	}
	if len(rule.AnyScope) > 0 {
		needs = append(needs, "scope "+strings.Join(rule.AnyScope, " or "))
	}
	if len(rule.Audience) > 0 {
		needs = append(needs, "audience "+strings.Join(rule.Audience, " or "))
	}
	for _, claim := range rule.Claims {
		needs = append(needs, "claim "+claim.Name+" "+strings.Join(claim.Values, " or "))
	}
	return slices.Compact(needs)
}

// example is the path of the request.
func (p *watcher) example() string { return cmp.Or(p.examples[p.path], p.path.example()) }

// arrive notes what the handler before has made of the request's path and method.
func (p *watcher) arrive(r *http.Request) {
	if !p.failed && r.Context().Value(caddyhttp.ErrorCtxKey) != nil {
		p.failed = true
		if r.URL.Path == p.example() {
			p.now, p.method = currentPath{fixed: p.path.exact}, sameMethod // Caddy has put it back
			p.last = nil
		}
	}
	last := p.last
	p.last = nil
	switch {
	case last == nil:
	case last.name == "rewrite" && isCaddys("http.handlers.rewrite"):
		p.rewritten(last.config)
	case r.URL.Path != p.lastPath:
		p.now = currentPath{unknown: true}
	}
}

// rewritten follows a rewrite.
func (p *watcher) rewritten(config json.RawMessage) {
	var rewrite struct {
		Method, URI     string
		StripPathPrefix string            `json:"strip_path_prefix"`
		StripPathSuffix string            `json:"strip_path_suffix"`
		URISubstring    []json.RawMessage `json:"uri_substring"`
		PathRegexp      []json.RawMessage `json:"path_regexp"`
	}
	if json.Unmarshal(config, &rewrite) != nil {
		p.now = currentPath{unknown: true}
		return
	}
	if rewrite.Method != "" {
		p.method = fixedMethod
		if strings.Contains(rewrite.Method, "{") {
			p.method = anotherMethod
		}
	}
	path, _, _ := strings.Cut(rewrite.URI, "?")
	path, _, _ = strings.Cut(path, "#")
	if path != "" {
		begin, placeholder, _ := strings.Cut(path, "{")
		switch placeholder {
		case "":
			p.now = currentPath{fixed: true, constant: true}
		case "http.request.uri}", "http.request.uri.path}":
			switch {
			case strings.Contains(begin, "//") || strings.ContainsAny(begin, "%.") || !strings.HasPrefix(begin+"/", "/"): // or matchers clean it
				p.now = currentPath{unknown: true}
			case !p.now.fixed && !p.now.unknown:
				p.now.add = strings.TrimSuffix(strings.ToLower(begin), "/") + p.now.add
			}
		default:
			p.now = currentPath{unknown: true}
		}
	}
	if prefix := strings.ToLower(rewrite.StripPathPrefix); prefix != "" {
		p.stripped(prefix)
	}
	if rewrite.StripPathSuffix != "" && (!p.now.fixed || strings.Contains(rewrite.StripPathSuffix, "{")) ||
		len(rewrite.URISubstring) > 0 || len(rewrite.PathRegexp) > 0 {
		p.now = currentPath{unknown: true}
	}
}

// stripped follows a path prefix that a rewrite strips.
func (p *watcher) stripped(prefix string) {
	if !strings.HasPrefix(prefix, "/") {
		prefix = "/" + prefix
	}
	switch {
	case p.now.unknown:
		return
	case strings.ContainsAny(prefix, "{%") || strings.Contains(prefix, "//"):
		p.now = currentPath{unknown: true}
		return
	case p.now.fixed:
		return // the walk has done it
	}
	if rest, ok := strings.CutPrefix(p.now.add, prefix); ok && (rest == "" || rest[0] == '/') {
		p.now.add = rest
		return
	}
	rest, ok := strings.CutPrefix(prefix, p.now.add)
	if !ok {
		if strings.HasPrefix(p.now.add, prefix) {
			p.now = currentPath{unknown: true} // a part of a name
		}
		return
	}
	p.now = p.strippedOwn(p.now.strip + rest)
}

// strippedOwn follows a prefix that is stripped from the request's own path. Paths that have it
// become rows of their own.
func (p *watcher) strippedOwn(prefix string) currentPath {
	has := pathPattern{text: prefix}
	below, itself := pathPattern{text: prefix + "/"}, pathPattern{text: prefix, exact: true}
	if p.path.within(below) {
		return currentPath{strip: prefix}
	}
	split := slices.Concat(p.path.and(below), p.path.and(itself))
	if !p.path.within(has) {
		split = append(split, p.path.and(has)...)
	}
	for _, common := range split {
		if !p.paths.add(common) {
			p.table.Cut = true
			return currentPath{unknown: true}
		}
	}
	if p.path.within(has) {
		return currentPath{unknown: true} // what is left begins in the middle of a name
	}
	return p.now
}
