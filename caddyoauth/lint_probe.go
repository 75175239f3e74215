package caddyoauth

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/fileserver"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy/fastcgi"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/rewrite"
)

// This file makes up the requests that lint_open.go tries, and says what each of them reaches.

// Bounds on what is tried, so that a large configuration is loaded as fast as a small one. A
// request costs about as much as there are routes.
const (
	// maxTried is how many routes all requests together may meet: a few seconds' work. At a start
	// it is maxTriedAtStart.
	maxTried        = 8_000_000
	maxTriedAtStart = 300_000
	// maxCandidates is how many requests are made up to meet one oauth_protect.
	maxCandidates = 96
	// maxWitnesses is how many different requests that meet an oauth_protect are varied.
	maxWitnesses = 16
	// maxTargets is how many other ways to its backend are tried for a request.
	maxTargets = 64
	// maxEarlier is how many routes before one are looked at for what they take.
	maxEarlier = 32
	// maxKnobs is how many headers, cookies and queries of a request are changed.
	maxKnobs = 16
	// maxTurns is how many values of a header or a query are tried.
	maxTurns = 8
	// maxWays is how many handlers are looked at. A named route counts once for each invoke.
	maxWays = 20_000
)

// way is how requests get to a handler.
type way struct {
	*lintHandler
	// routes are those that a request must match to get there, from the outside in.
	routes []*lintRoute
	// prefixes are what has been removed from the path before each of them sees it, as handle_path
	// does, and prefix is what has been removed at the handler.
	prefixes []string
	prefix   string
}

// probe is a request that is tried.
type probe struct {
	server                    *lintServer
	method, host, path, query string // the path as it would be sent, escaped
	header                    http.Header
	from                      netip.Addr
}

// String is the request as people write it, without its host.
func (p probe) String() string {
	if p.query != "" {
		return p.method + " " + p.path + "?" + p.query
	}
	return p.method + " " + p.path
}

// URL is the request as people write it, with its host if it has one.
func (p probe) URL() string {
	host := p.host
	if host == unknownHost {
		host = strings.Join(p.server.server.Listen, ",")
	}
	return p.method + " " + host + strings.TrimPrefix(p.String(), p.method+" ")
}

// with returns a copy of p that change has changed.
func (p probe) with(change func(*probe)) probe {
	p.header = p.header.Clone()
	if p.header == nil {
		p.header = make(http.Header)
	}
	change(&p)
	return p
}

// request returns the request, prepared as Caddy prepares it.
func (p probe) request() *http.Request {
	u := &url.URL{Path: p.path, RawQuery: p.query}
	if parsed, err := url.ParseRequestURI(p.path); err == nil {
		u.Path, u.RawPath = parsed.Path, parsed.RawPath
	}
	r := &http.Request{
		Method: p.method, URL: u, Host: p.host, RequestURI: u.RequestURI(), Header: p.header.Clone(), Body: http.NoBody,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, RemoteAddr: netip.AddrPortFrom(p.from, 50000).String(),
	}
	if r.Header == nil {
		r.Header = make(http.Header)
	}
	if len(p.server.server.TLSConnPolicies) > 0 {
		r.TLS = &tls.ConnectionState{ServerName: p.host, HandshakeComplete: true, Version: tls.VersionTLS13}
	}
	dropAliases(r.Header, p.server.server)
	r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), discardedAnswer{}, p.server.server)
	if early := earlyOf(p.server.server); early != nil {
		stripServer(r, early.app)
	}
	return r
}

// trusted reports whether it comes from a proxy that the server trusts.
func (p probe) trusted() bool {
	trusted, _ := caddyhttp.GetVar(p.request().Context(), caddyhttp.TrustedProxyVarKey).(bool)
	return trusted
}

// key tells probes apart.
func (p probe) key(admitted bool) string {
	return fmt.Sprint(p.server.name, " ", admitted, " ", p.URL(), " ", p.from, " ", p.header)
}

// discardedAnswer is where answers go that nobody reads.
type discardedAnswer struct{}

func (discardedAnswer) Header() http.Header         { return make(http.Header) }
func (discardedAnswer) Write(p []byte) (int, error) { return len(p), nil }
func (discardedAnswer) WriteHeader(int)             {}

// A stranger is somebody far away, a neighbor is on this machine. Nobody has the stranger's
// address: it is for documentation (RFC 5737).
var (
	stranger = netip.MustParseAddr("203.0.113.7")
	neighbor = netip.AddrFrom4([4]byte{127, 0, 0, 1})
)

// arrival is how far a probe gets.
type arrival struct {
	passed    []*lintHandler // that let it through, in order
	routes    []*lintRoute   // that it matched
	met       []*Protect     // those that judged it
	refused   bool           // by one of them
	doubt     bool           // something that was not looked into may have stopped it
	rewritten bool           // its path was changed
	answered  bool
	backend   *backend // who gets it; nil if nobody does
	// errorBackend is who gets it once it is refused, from the error routes.
	errorBackend *backend
}

// open reports whether somebody without a token surely reaches the backend.
func (a arrival) open() bool { return a.backend != nil && !a.refused && !a.doubt && len(a.met) == 0 }

// backend is what a request reaches in the end, and as what.
type backend struct {
	handler   *lintHandler
	upstreams []string // of a proxy, sorted; none for files
	fastcgi   bool
	// redirects says that it is a file server that corrects slashes at the end.
	redirects bool
	root      string // of a file server
	// path is what the backend gets; for files the name of the file. uri has the query too.
	method, path, uri string
}

// String is what a finding calls it.
func (b *backend) String() string {
	if b.isFiles() {
		return "the files in " + b.root
	}
	return strings.Join(b.upstreams, ", ")
}

func (b *backend) isFiles() bool { return b.upstreams == nil }

// same reports whether both are one backend, whatever the request is.
func (b *backend) same(c *backend) bool {
	if b == nil || c == nil || b.isFiles() != c.isFiles() {
		return false
	}
	return b.isFiles() && b.root == c.root || slices.ContainsFunc(b.upstreams, func(u string) bool { return slices.Contains(c.upstreams, u) })
}

// sameResource reports whether the same request gets to the same backend, or the same file is
// served.
func (b *backend) sameResource(c *backend) bool {
	return b != nil && c != nil && b.path == c.path && (b.isFiles() && c.isFiles() || b.same(c) && b.method == c.method)
}

// knows reports whether the backend can still tell which path was asked for.
func (b *backend) knows(path string) bool {
	return b.fastcgi || strings.Contains(b.uri, path[strings.LastIndexByte(path, '/')+1:])
}

// backendOf returns the backend that a handler passes a request to, nil if it is none.
func backendOf(handler *lintHandler, r *http.Request) *backend {
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	switch h := handler.module.(type) {
	case *reverseproxy.Handler:
		b := &backend{handler: handler, upstreams: []string{}}
		for _, u := range h.Upstreams {
			b.upstreams = append(b.upstreams, dialOf(repl.ReplaceAll(u.Dial, "")))
		}
		if len(h.Upstreams) == 0 { // found anew for each request: the same if it is the same handler
			b.upstreams = append(b.upstreams, handler.path)
		}
		slices.Sort(b.upstreams)
		_, b.fastcgi = h.Transport.(*fastcgi.Transport)
		if h.Rewrite != nil {
			r = r.Clone(r.Context())
			h.Rewrite.Rewrite(r, repl)
		}
		b.method, b.path, b.uri = r.Method, r.URL.EscapedPath(), r.URL.RequestURI()
		if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok && b.fastcgi {
			b.path = original.URL.EscapedPath() // REQUEST_URI, from which most applications take their route
		}
		return b
	case *fileserver.FileServer:
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			return nil // answered with 405
		}
		b := &backend{handler: handler, method: r.Method, redirects: h.CanonicalURIs == nil || *h.CanonicalURIs}
		root := repl.ReplaceAll(h.Root, "")
		var err, err2 error
		b.root, err = filepath.Abs(cmp.Or(root, "."))
		b.path, err2 = filepath.Abs(caddyhttp.SanitizedPathJoin(root, r.URL.Path))
		b.uri = filepath.ToSlash(b.path)
		if err != nil || err2 != nil || isHidden(b.path, h.Hide) {
			return nil
		}
		return b
	}
	return nil
}

// isHidden reports whether a file server hides a file.
func isHidden(name string, hide []string) bool {
	for _, pattern := range hide {
		if !strings.ContainsRune(pattern, filepath.Separator) {
			for part := range strings.SplitSeq(name, string(filepath.Separator)) {
				if match, _ := filepath.Match(pattern, part); match {
					return true
				}
			}
			continue
		}
		if absolute, err := filepath.Abs(pattern); err == nil {
			match, _ := filepath.Match(absolute, name)
			if match || strings.HasPrefix(name, absolute+string(filepath.Separator)) {
				return true
			}
		}
	}
	return false
}

// dialOf writes addresses of this machine in one way.
func dialOf(address string) string {
	for _, local := range []string{"localhost:", "[::1]:"} {
		if port, ok := strings.CutPrefix(address, local); ok {
			return "127.0.0.1:" + port
		}
	}
	return address
}

// collect finds the ways to all handlers in a list of routes.
func (o *openDoors) collect(list []*lintRoute, outer way, invoked []string) {
	prefix := outer.prefix
	for _, route := range list {
		at := way{routes: append(slices.Clip(outer.routes), route), prefixes: append(slices.Clip(outer.prefixes), prefix), prefix: prefix}
		for _, h := range route.handlers {
			if len(o.ways) == maxWays {
				return
			}
			at.lintHandler = h
			o.ways = append(o.ways, at)
			switch module := h.module.(type) {
			case *caddyhttp.Subroute:
				o.collect(h.routes, at, invoked)
			case *caddyhttp.Invoke:
				if named := route.server.named[module.Name]; named != nil && !slices.Contains(invoked, module.Name) {
					o.collect([]*lintRoute{named}, at, append(slices.Clip(invoked), module.Name))
				}
			case *rewrite.Rewrite:
				at.prefix += module.StripPathPrefix
			}
		}
		if len(route.MatcherSets) == 0 && route.Group == "" {
			prefix = at.prefix // everything after it lacks the prefix
		}
	}
}

// ingredients is what the matchers on the way to a handler look at. What is excluded by a "not" is
// kept too: it is what the other side looks like.
type ingredients struct {
	paths, hosts, methods []string // nearest to the handler first
	excluded              []string // patterns of paths
	knobs                 []knob
	header                http.Header // needed to get there
	query                 url.Values
	remote, clients       []string // ranges of addresses, of remote_ip and client_ip
	// prefix is what was removed before the matchers that are being looked at, and bare are their
	// patterns as they are written.
	prefix string
	bare   []string
}

// knob is a part of a request that callers choose, and that a matcher looks at.
type knob struct {
	kind, name string   // kind: header, query, cookie
	values     []string // that a matcher compares it with
}

// ingredientsOf collects the ingredients of all matchers on the way.
func ingredientsOf(at way) *ingredients {
	in := &ingredients{header: make(http.Header), query: make(url.Values)}
	for i, route := range slices.Backward(at.routes) {
		in.prefix = at.prefixes[i]
		for _, set := range route.MatcherSets {
			in.add(set, false)
		}
		// What an earlier route takes doesn't get here.
		for _, earlier := range route.beside[max(0, route.index-maxEarlier):route.index] {
			for _, set := range earlier.MatcherSets {
				in.add(set, true)
			}
		}
	}
	in.paths = distinct(append(in.paths, in.bare...))
	return in
}

func (in *ingredients) add(set caddyhttp.MatcherSet, negated bool) {
	for _, matcher := range set {
		switch m := matcher.(type) {
		case *caddyhttp.MatchNot:
			for _, inner := range m.MatcherSets {
				in.add(inner, !negated)
			}
		case *caddyhttp.MatchPath:
			in.path([]string(*m), negated)
		case caddyhttp.MatchPath:
			in.path([]string(m), negated)
		case *caddyhttp.MatchPathRE:
			in.path([]string{exampleOf(m.Pattern)}, negated)
		case caddyhttp.MatchPathRE:
			in.path([]string{exampleOf(m.Pattern)}, negated)
		case *caddyhttp.MatchHost:
			in.list(&in.hosts, *m, negated)
		case caddyhttp.MatchHost:
			in.list(&in.hosts, m, negated)
		case *caddyhttp.MatchMethod:
			in.list(&in.methods, *m, negated)
		case caddyhttp.MatchMethod:
			in.list(&in.methods, m, negated)
		case *caddyhttp.MatchHeader:
			in.headers(http.Header(*m), negated)
		case caddyhttp.MatchHeader:
			in.headers(http.Header(m), negated)
		case *caddyhttp.MatchHeaderRE:
			in.headersRE(*m, negated)
		case caddyhttp.MatchHeaderRE:
			in.headersRE(m, negated)
		case *caddyhttp.MatchQuery:
			in.queries(url.Values(*m), negated)
		case caddyhttp.MatchQuery:
			in.queries(url.Values(m), negated)
		case *caddyhttp.VarsMatcher:
			for _, name := range sortedKeys(*m) {
				in.placeholder(name, (*m)[name])
			}
		case caddyhttp.VarsMatcher:
			for _, name := range sortedKeys(m) {
				in.placeholder(name, m[name])
			}
		case *caddyhttp.MatchRemoteIP:
			in.remote = append(in.remote, m.Ranges...)
		case caddyhttp.MatchRemoteIP:
			in.remote = append(in.remote, m.Ranges...)
		case *caddyhttp.MatchClientIP:
			in.clients = append(in.clients, m.Ranges...)
		case caddyhttp.MatchClientIP:
			in.clients = append(in.clients, m.Ranges...)
		case *caddyhttp.MatchExpression:
			in.expression(m.Expr, negated)
		case caddyhttp.MatchExpression:
			in.expression(m.Expr, negated)
		}
	}
}

func (in *ingredients) path(patterns []string, negated bool) {
	if negated {
		in.excluded = append(in.excluded, patterns...)
		return
	}
	for _, pattern := range patterns {
		if in.prefix != "" && strings.HasPrefix(pattern, "/") {
			in.bare = append(in.bare, pattern)
			pattern = in.prefix + pattern
		}
		in.paths = append(in.paths, pattern)
	}
}

func (in *ingredients) list(to *[]string, values []string, negated bool) {
	if !negated {
		*to = append(*to, values...)
	}
}

func (in *ingredients) headers(fields http.Header, negated bool) {
	for _, name := range sortedKeys(fields) {
		var values []string
		for _, v := range fields[name] {
			values = append(values, strings.ReplaceAll(v, "*", "x"))
		}
		in.turn("header", name, values)
		if len(values) > 0 && !negated {
			in.header.Set(name, values[0])
		}
	}
}

func (in *ingredients) headersRE(fields caddyhttp.MatchHeaderRE, negated bool) {
	for _, name := range sortedKeys(fields) {
		value := exampleOfText(fields[name].Pattern)
		in.turn("header", name, []string{value})
		if !negated {
			in.header.Set(name, value)
		}
	}
}

func (in *ingredients) queries(fields url.Values, negated bool) {
	for _, name := range sortedKeys(fields) {
		var values []string
		for _, v := range fields[name] {
			values = append(values, strings.ReplaceAll(v, "*", "x"))
		}
		in.turn("query", name, values)
		if len(values) > 0 && !negated {
			in.query.Set(name, values[0])
		}
	}
}

// turn notes a knob.
func (in *ingredients) turn(kind, name string, values []string) {
	i := slices.IndexFunc(in.knobs, func(k knob) bool { return k.kind == kind && strings.EqualFold(k.name, name) })
	if i < 0 {
		if len(in.knobs) == maxKnobs {
			return
		}
		i = len(in.knobs)
		in.knobs = append(in.knobs, knob{kind: kind, name: name})
	}
	in.knobs[i].values = append(in.knobs[i].values, values...)
}

// askedFor finds what an expression or a placeholder asks a request for.
var askedFor = regexp.MustCompile(`http\.request\.(header|uri\.query|cookie)\.([A-Za-z0-9_-]+)|\b(header|query)\(\{\s*['"]([^'"]+)['"]`)

// literalsIn finds the literals of an expression.
var literalsIn = regexp.MustCompile(`"([^"\\]*)"|'([^'\\]*)'|` + "`([^`]*)`")

func (in *ingredients) placeholder(name string, values []string) {
	for _, m := range askedFor.FindAllStringSubmatch(name, -1) {
		in.turn(strings.TrimPrefix(cmp.Or(m[1], m[3]), "uri."), cmp.Or(m[2], m[4]), values)
	}
}

// expression takes all literals of an expression for all that they may be compared with.
func (in *ingredients) expression(text string, negated bool) {
	var literals []string
	for _, m := range literalsIn.FindAllStringSubmatch(text, -1) {
		literal := cmp.Or(m[1], m[2], m[3])
		literals = append(literals, literal)
		switch {
		case strings.HasPrefix(literal, "^/"):
			in.path([]string{exampleOf(literal)}, negated)
		case strings.HasPrefix(literal, "/"):
			in.path([]string{literal}, negated)
		case slices.Contains(usualMethods, literal):
			in.methods = append(in.methods, literal)
		}
	}
	in.placeholder(text, literals)
}

var usualMethods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}

// exampleOf returns a path that matches a regular expression, if a simple one does.
func exampleOf(pattern string) string {
	text := exampleOfText(pattern)
	if !strings.HasPrefix(text, "/") {
		return "/" + text
	}
	return text
}

// exampleOfText returns a text that matches a regular expression, if a simple one does.
func exampleOfText(pattern string) string {
	re, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return ""
	}
	var b strings.Builder
	writeExample(&b, re)
	return b.String()
}

// writeExample writes the shortest text that it can find. It stops at a length that no honest
// path has.
func writeExample(b *strings.Builder, re *syntax.Regexp) {
	if b.Len() > 1000 {
		return
	}
	switch re.Op {
	case syntax.OpLiteral:
		b.WriteString(string(re.Rune))
	case syntax.OpCharClass:
		for _, preferred := range "xX1/-" {
			for i := 0; i+1 < len(re.Rune); i += 2 {
				if re.Rune[i] <= preferred && preferred <= re.Rune[i+1] {
					b.WriteRune(preferred)
					return
				}
			}
		}
		if len(re.Rune) > 0 {
			b.WriteRune(re.Rune[0])
		}
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		b.WriteByte('x')
	case syntax.OpCapture, syntax.OpPlus:
		writeExample(b, re.Sub[0])
	case syntax.OpRepeat:
		for range re.Min {
			writeExample(b, re.Sub[0])
		}
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			writeExample(b, sub)
		}
	case syntax.OpAlternate:
		writeExample(b, re.Sub[0])
	}
}

// concrete returns a path that a pattern of Caddy's path matcher matches, or "".
func concrete(pattern string) string {
	if !strings.HasPrefix(pattern, "/") {
		pattern = "/" + pattern
	}
	if before, ok := strings.CutSuffix(pattern, "*"); ok && !strings.HasSuffix(before, "/") {
		pattern = before + "/*" // "/api*" begins "/api/x" too
	}
	text := strings.ReplaceAll(pattern, "*", sample)
	for {
		before, rest, opened := strings.Cut(text, "{")
		_, after, closed := strings.Cut(rest, "}")
		if !opened || !closed {
			break
		}
		text = before + "x" + after
	}
	if u, err := url.Parse(text); err != nil || u.Path == "" || u.RawQuery != "" || ambiguousPath(u.EscapedPath()) {
		return ""
	}
	return text
}

// concreteHost returns a host that a host matcher matches, or "".
func concreteHost(pattern string) string {
	host := strings.ReplaceAll(pattern, "*", "any")
	if strings.ContainsAny(host, "{} /") {
		return ""
	}
	return host
}

// distinct returns what is in a list, once, and without empty texts.
func distinct(list []string) []string {
	var once []string
	for _, text := range list {
		if text != "" && !slices.Contains(once, text) {
			once = append(once, text)
		}
	}
	return once
}

// mapped returns what f makes of each text, once.
func mapped(list []string, f func(string) string) []string {
	out := make([]string, 0, len(list))
	for _, text := range list {
		out = append(out, f(text))
	}
	return distinct(out)
}

// setter returns what changes this part of a request. An empty value removes it.
func (k knob) setter() func(p *probe, value string) {
	switch k.kind {
	case "header":
		return func(p *probe, value string) {
			p.header.Del(k.name)
			if value != "" {
				p.header.Set(k.name, value)
			}
		}
	case "cookie":
		return func(p *probe, value string) {
			p.header.Del("Cookie")
			if value != "" {
				p.header.Set("Cookie", k.name+"="+url.QueryEscape(value))
			}
		}
	}
	return func(p *probe, value string) {
		query, _ := url.ParseQuery(p.query)
		query.Del(k.name)
		if value != "" {
			query.Set(k.name, value)
		}
		p.query = query.Encode()
	}
}

// sample stands for whatever a pattern leaves open. It is a word that no configuration has.
const sample = "any-path"

// unknownHost is a host that no site has (RFC 6761).
const unknownHost = "unknown.invalid"

// witness is a request that meets an oauth_protect, and what it reaches once it is let in.
type witness struct {
	probe
	pattern string // of the path that it was made from; empty if from none
	arrival
}

// candidates calls will with requests that may get to a handler. For each pattern of a path it
// goes on until will returns true.
func (o *openDoors) candidates(at way, will func(p probe, pattern string) bool) {
	in := ingredientsOf(at)
	patterns := distinct(append(slices.Clip(in.paths), at.prefix+"/"+sample))
	if len(patterns) > maxWitnesses {
		patterns = patterns[:maxWitnesses]
	}
	hosts := distinct(append(mapped(in.hosts, concreteHost), unknownHost))
	methods := distinct(append(slices.Clip(in.methods), usualMethods...))
	type field struct {
		header http.Header
		query  string
	}
	fields := []field{{in.header, in.query.Encode()}}
	if len(in.header)+len(in.query) > 0 {
		fields = append(fields, field{})
	}
	from := []netip.Addr{stranger}
	if reachOf(at.route.server) == reachMachine {
		from[0] = neighbor
	}
	for _, r := range slices.Concat(in.remote, in.clients) {
		if a, ok := addressIn(r); ok && len(from) < 4 {
			from = append(from, a)
		}
	}
	each := max(maxCandidates/len(patterns), 1)
	for _, pattern := range patterns {
		path := concrete(pattern)
		if path == "" {
			continue
		}
		of := pattern
		if pattern == at.prefix+"/"+sample {
			of = ""
		}
		// All combinations of what the matchers look at, the likeliest first.
		n := 0
		some := func() bool {
			for _, a := range from {
				for _, f := range fields {
					for _, host := range hosts {
						for _, method := range methods {
							if n++; n > each {
								return false
							}
							if will(probe{at.route.server, method, host, path, f.query, f.header, a}, of) {
								return true
							}
						}
					}
				}
			}
			return false
		}
		some()
	}
}

// addressIn returns an address in a range, such as 10.0.0.0/8.
func addressIn(text string) (netip.Addr, bool) {
	if prefix, err := netip.ParsePrefix(text); err == nil {
		if prefix.IsSingleIP() {
			return prefix.Addr(), true
		}
		return prefix.Masked().Addr().Next(), true
	}
	a, err := netip.ParseAddr(text)
	return a, err == nil
}

// matches reports whether a request, as it comes, matches everything on the way to a handler.
func (o *openDoors) matches(at way, p probe) bool {
	r := p.request()
	for _, route := range at.routes {
		o.left--
		if ok, err := route.MatcherSets.AnyMatchWithError(r); !ok || err != nil {
			return false
		}
	}
	return true
}

// try says how far a request gets: one without a token, or one that every oauth_protect admits.
// When there is too much to try, it says that nobody knows.
func (o *openDoors) try(p probe, admitted bool) arrival {
	key := p.key(admitted)
	if a, ok := o.arrivals[key]; ok {
		return a
	}
	if o.left <= 0 {
		return arrival{doubt: true}
	}
	t := &trial{o: o, server: p.server, r: p.request(), admitted: admitted, groups: make(map[string]bool), path: p.path}
	t.run(p.server.routes)
	o.arrivals[key] = t.arrival
	return t.arrival
}

// trial is a request on its way. It is a walk (walk.go) without the words: it costs a tenth, says
// which backend gets what, and takes what nobody can tell for doubtful. TestProbesAgreeWithWalks
// compares the two.
type trial struct {
	o        *openDoors
	server   *lintServer
	r        *http.Request
	admitted bool
	groups   map[string]bool
	path     string
	depth    int
	inError  bool
	arrival
}

// run takes the request through routes, and reports whether it ends there.
func (t *trial) run(routes []*lintRoute) (ended bool) {
	if t.depth++; t.depth > 200 {
		t.doubt = true
		return true
	}
	defer func() { t.depth-- }()
	for _, route := range routes {
		if t.o.left--; t.o.left <= 0 {
			t.doubt = true
			return true
		}
		if route.Group != "" && t.groups[route.Group] {
			continue
		}
		ok, err := route.MatcherSets.AnyMatchWithError(t.r)
		if err != nil {
			t.doubt = true
			return true
		}
		if !ok && !t.lastFile(route) {
			continue
		}
		if route.Group != "" {
			t.groups[route.Group] = true
		}
		t.routes = append(t.routes, route)
		for _, h := range route.handlers {
			if t.handle(h) {
				return true
			}
			t.passed = append(t.passed, h)
		}
		if route.Terminal {
			t.answered = true
			return true
		}
	}
	return false
}

// lastFile reports whether a request takes a route of try_files that it has not matched, since no
// file is there. The files may be on another machine, so it is taken to find the last of them.
func (t *trial) lastFile(route *lintRoute) bool {
	if len(route.handlers) == 0 || route.handlers[0].name != "rewrite" || len(route.MatcherSets) != 1 {
		return false
	}
	found := false
	set := slices.Clone(route.MatcherSets[0])
	for i, matcher := range set {
		if file, ok := matcher.(*fileserver.MatchFile); ok && len(file.TryFiles) > 1 {
			last := *file
			last.TryPolicy, set[i], found = "first_exist_fallback", &last, true
		}
	}
	if !found {
		return false
	}
	ok, err := set.MatchWithError(t.r)
	return ok && err == nil
}

func (t *trial) handle(h *lintHandler) (ended bool) {
	next := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })
	switch module := h.module.(type) {
	case *caddyhttp.Subroute:
		return t.run(h.routes)
	case *caddyhttp.Invoke:
		if named := t.server.named[module.Name]; named != nil {
			return t.run([]*lintRoute{named})
		}
		return true
	case *Protect:
		t.met = append(t.met, module)
		if t.admitted || module.ruleFor(t.r.Method).Optional && !ambiguousURL(t.r.URL, module.AllowAmbiguousPaths) {
			return false
		}
		t.refused = true
		t.fail()
		return true
	case *Guard:
		if ambiguousURL(t.r.URL, module.AllowAmbiguousPaths) {
			t.answered = true
			return true
		}
	case *rewrite.Rewrite:
		before := t.r.URL.Path
		module.Rewrite(t.r, t.r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer))
		t.rewritten = t.rewritten || before != t.r.URL.Path
	case *reverseproxy.Handler:
		if len(module.HandleResponse) > 0 && module.Rewrite != nil && module.Rewrite.URI != "" {
			t.doubt = true // forward_auth
			return false
		}
		t.ends(backendOf(h, t.r))
		return true
	case *fileserver.FileServer:
		t.ends(backendOf(h, t.r))
		return true
	case *Server:
		kind, _ := module.misdirected(t.r)
		e, missing := module.find(t.r)
		if kind != "" || e != nil || missing != "" || ambiguousURL(t.r.URL, module.AllowAmbiguousPaths || !module.app.refusesPaths()) {
			t.answered = true
			return true
		}
	default:
		switch h.name {
		case "static_response", "error", "abort":
			t.answered = h.name == "static_response"
			return true
		case "vars", "map", "headers":
			_ = h.module.ServeHTTP(discardedAnswer{}, t.r, next)
		case "rate_limit", "waf", "crowdsec", "appsec": // not Caddy's, but they ask for no identity
		case "encode", "templates", "request_body", "push", "intercept", "tracing", "log_append", "timeouts":
		default:
			t.doubt = true
		}
	}
	return false
}

func (t *trial) ends(b *backend) {
	if t.inError {
		t.errorBackend = b
		return
	}
	t.backend, t.answered = b, true
}

// fail takes a refused request through the error routes.
func (t *trial) fail() {
	if t.inError || t.server.server.Errors == nil {
		return
	}
	t.inError = true
	doubt := t.doubt
	if original, ok := t.r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		t.r.Method, t.r.RequestURI = original.Method, original.RequestURI
		u := *original.URL
		t.r.URL = &u
	}
	t.r = t.server.server.Errors.WithError(t.r, caddyhttp.Error(http.StatusUnauthorized, errAmbiguousPath))
	t.run(t.server.errors)
	t.doubt, t.inError = doubt, false
}
