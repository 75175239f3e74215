package caddyoauth

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/fileserver"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/rewrite"
	"github.com/caddyserver/caddy/v2/modules/caddytls"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// This file looks for open doors: requests that reach without a token what an oauth_protect is
// there to close. It doesn't guess from the text of matchers. It makes up requests that meet an
// oauth_protect, sees which backend they reach once they are let in, and then tries what a
// stranger would try: the path with a slash and without, another method, another host, another
// site. Whatever reaches the same backend without a token is an open door.
//
// What is meant to be open is none: nothing is said about a path unless a backend can take it for
// the protected one.

// lintOpenChecks are about doors that somebody can open who should not.
func lintOpenChecks() []lintCheck {
	var last *openDoors // all checks look at the same
	check := func(code string, certain bool, means, do string) lintCheck {
		return lintCheck{code: code, kind: lintOpen, certain: certain, means: means, do: do, find: func(l *linted, report lintReport) {
			if last == nil || last.l != l {
				last = lookForOpenDoors(l)
			}
			for _, d := range last.found[code] {
				report(d.place, "%s", d.text())
			}
		}}
	}
	return []lintCheck{
		check("answered-before-protect", true,
			"A handler before `oauth_protect` already answers the requests that `oauth_protect` is there for, so they never get there.",
			"Put `oauth_protect` first. In a `route` block, the order is the written one."),
		check("rewritten-before-protect", true,
			"A `rewrite`, `uri`, `try_files` or `handle_path` changes the path before the matcher of `oauth_protect` sees it, so the matcher doesn't match.",
			"Write the path into the matcher as it is after the change, or put both into a `route` block with `oauth_protect` first. Inside `handle_path`, leave out the prefix."),
		check("path-left-open", true,
			"The matcher of `oauth_protect` leaves out a path that belongs to the protected one: `/admin/*` is not `/admin`, and `/admin` is not `/admin/`.",
			"Name both, as in `@admin path /admin /admin/*`, and write `oauth_protect @admin`; or protect everything and leave out what is public."),
		check("case-left-open", true,
			"The matcher tells upper and lower case apart, and many backends don't. Caddy's `path` doesn't either; `path_regexp` and expressions do.",
			"Use `path`, or begin the regular expression with `(?i)`."),
		check("method-left-open", true,
			"`oauth_protect` is for some methods only, and the backend gets others on the same path without a token.",
			"Leave the method out of the matcher. To ask for another scope to write, use a second `oauth_protect` with `not method GET HEAD`."),
		check("reading-left-open", false,
			"`oauth_protect` is for methods that write, so anybody may read.",
			"Leave the method out of the matcher, unless reading is meant to be open to all."),
		check("error-page-serves-refused", true,
			"What `oauth_protect` refuses goes through `handle_errors`, and what stands there serves the very thing that was refused.",
			"Rewrite to an error page first, as in `rewrite * /{err.status_code}.html`, or give the handler there another root or backend."),
		check("front-controller-left-open", true,
			"PHP runs one script for many paths: `/index.php/admin/x` is `/admin/x` to the application, but not to a matcher.",
			"Protect everything and leave out what is public, or refuse such paths before `php_fastcgi`: `@script path *.php *.php/*` and `error @script 404`."),
		check("suffix-left-open", false,
			"The matcher of `oauth_protect` leaves out all paths that end in some way, such as `*.css`, and the backend decides what they are. Many frameworks read `/orders/1.css` as `/orders/1`.",
			"Leave out folders, as in `not path /assets/*`, or serve such files with a `file_server`."),
		check("ambiguous-path-left-open", false,
			"A path such as `/x/..;/admin/` gets past the matcher, and is `/admin/` to some backends: `allow_ambiguous_paths` lets it pass, or nothing guards what a `handle` leaves out.",
			"Remove `allow_ambiguous_paths`. Of an `oauth_protect` in a `handle`, guard the rest with an `oauth_server` in the site, or move it out of the `handle` and give it a matcher."),
		check("other-path-left-open", true,
			"Under another path, the same backend gets the same request without a token, or the same file is served.",
			"Put an `oauth_protect` there too, or serve a folder that doesn't contain the protected one."),
		check("site-left-open", true,
			"Another site passes requests to the same backend without a token.",
			"Put an `oauth_protect` there too, or don't pass these paths on."),
		check("host-left-open", true,
			"`oauth_protect` is for some hosts only, and the backend gets requests for others without a token. Callers choose the header Host.",
			"Take the host out of the matcher, or refuse other hosts."),
		check("backend-left-open", true,
			"The backend is a site of the same configuration, and listens for everybody, not just for the gateway.",
			"Put `bind 127.0.0.1` into that site."),
		check("caller-decides", true,
			"Whether `oauth_protect` is asked depends on a header, a cookie or a query, which callers choose.",
			"Take it out of the matcher. To let requests without a token pass, use `optional`."),
		check("address-left-open", true,
			"`oauth_protect` is for some addresses only, and callers from the internet need no token.",
			"Put `not` before the addresses that need no token, in place of naming those that do."),
		check("address-of-proxy", true,
			"Behind a proxy, `remote_ip` is the address of the proxy, so it says the same of all callers.",
			"Use `client_ip`, and `trusted_proxies_strict`."),
		check("address-claimed", false,
			"Without `trusted_proxies_strict`, `client_ip` takes the first address of `X-Forwarded-For`. Callers choose that if the proxy appends to what they send, as most do.",
			"Add `trusted_proxies_strict` to the server's options."),
		check("identity-of-nobody", true,
			"Requests without a token get to a handler that uses the caller's identity, which is then empty: `root * /srv/{http.auth.user.id}` is `/srv/` with everybody's files.",
			"Put an `oauth_protect` before it that matches at least as much."),
		check("not-all-tried", false,
			"The configuration is too large to try everything, so there may be open doors that were not found.",
			"Check it in parts, such as one site at a time."),
		check("nothing-protected", true,
			"Tokens are issued, but nothing asks for one: there is no `oauth_protect`, and no client may look at the tokens of others.",
			"Put an `oauth_protect` in front of the backend. If another server is to check the tokens, give it a client with `introspect`."),
	}
}

// openDoors is what is found in one configuration.
type openDoors struct {
	l    *linted
	ways []way
	left int // of maxTried
	// arrivals are those of the probes so far.
	arrivals map[string]arrival
	// targets are the ways to each upstream, and under "" to all file servers.
	targets map[string][]*target
	found   map[string][]door
}

// door is one finding.
type door struct {
	place lintPlace
	texts []string
}

// target is a way to a backend, by which somebody may get what another way protects.
type target struct {
	way
	tried bool
	probe *probe // that gets there; nil if none is known
	root  string // of a file server
}

// lookForOpenDoors tries everything. It sends nothing and writes nothing.
func lookForOpenDoors(l *linted) *openDoors {
	o := &openDoors{l: l, left: maxTried, arrivals: make(map[string]arrival), targets: make(map[string][]*target), found: make(map[string][]door)}
	if l.inUse {
		o.left = maxTriedAtStart
	}
	for _, s := range l.servers {
		o.collect(s.routes, way{}, nil)
	}
	o.nothingProtected()
	var protects []way
	for _, at := range o.ways {
		switch module := at.module.(type) {
		case *Protect:
			protects = append(protects, at)
		case *reverseproxy.Handler:
			t := &target{way: at}
			for _, upstream := range module.Upstreams {
				dial := dialOf(upstream.Dial)
				o.targets[dial] = append(o.targets[dial], t)
			}
		case *fileserver.FileServer:
			o.targets[""] = append(o.targets[""], &target{way: at})
		}
	}
	o.identities()
	for i, at := range protects {
		o.look(at)
		if o.left <= 0 {
			o.report("not-all-tried", l.atApp(), "the configuration is so large that only the first %d of %d oauth_protect were looked at", i, len(protects))
			break
		}
	}
	return o
}

// report notes a finding. Of several with one code at one place, the first stands for all.
func (o *openDoors) report(code string, place lintPlace, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	for i := range o.found[code] {
		if d := &o.found[code][i]; d.place.path == place.path {
			if !slices.Contains(d.texts, text) {
				d.texts = append(d.texts, text)
			}
			return
		}
	}
	o.found[code] = append(o.found[code], door{place, []string{text}})
}

// text is what a finding says.
func (d door) text() string {
	if more := len(d.texts) - 1; more > 0 {
		return fmt.Sprintf("%s; and %d more like this", d.texts[0], more)
	}
	return d.texts[0]
}

// nothingProtected looks for backends beside a token endpoint whose tokens nobody can check.
func (o *openDoors) nothingProtected() {
	if o.l.app == nil {
		return
	}
	if _, shared := o.l.app.opener.(*RedisStore); shared {
		return // another gateway may check them
	}
	for name, realm := range o.l.app.Realms {
		for id, client := range realm.Clients {
			if cmp.Or(client.TokenFormat, realm.TokenFormat) == oauth.FormatJWT {
				return // anybody may check them
			}
			if o.l.realms[name].settings.Clients[id].Introspect != oauth.IntrospectOwn {
				return
			}
		}
	}
	var servers []*lintHandler
	backends := false
	for h := range o.l.handlers {
		switch h.module.(type) {
		case *Protect:
			return
		case *Server:
			servers = append(servers, h)
		case *reverseproxy.Handler, *fileserver.FileServer:
			backends = true
		}
	}
	for _, h := range servers {
		if backends {
			o.report("nothing-protected", h.place(), "oauth_server issues tokens, and no oauth_protect asks for them")
		}
	}
}

// identities looks for handlers that use the identity of a caller who may be nobody.
func (o *openDoors) identities() {
	w := &orderWalk{prefixes: []string{strings.ToLower(defaultHeaderPrefix)}}
	for h := range o.l.handlers {
		if p, ok := h.module.(*Protect); ok {
			w.prefixes = append(w.prefixes, strings.ToLower(p.HeaderPrefix))
			if p.Assertion != nil {
				w.prefixes = append(w.prefixes, strings.ToLower(p.Assertion.header()))
			}
		}
	}
	reported := make(map[*lintHandler]bool)
	for _, at := range o.ways {
		var text string
		switch module := at.module.(type) {
		case *rewrite.Rewrite, *caddyhttp.VarsMiddleware, caddyhttp.VarsMiddleware:
			text = string(at.source())
		case *fileserver.FileServer:
			text = module.Root
		case *reverseproxy.Handler:
			for _, upstream := range module.Upstreams {
				text += upstream.Dial + " "
			}
		}
		identity := w.identityIn(text, false)
		if identity == "" || reported[at.lintHandler] {
			continue
		}
		o.candidates(at, func(p probe, _ string) bool {
			a := o.try(p, false)
			if !slices.Contains(a.passed, at.lintHandler) {
				return false
			}
			// Of requests that pass without a token on purpose, a start warns already.
			if !a.doubt && (len(a.met) == 0 || !o.l.inUse) {
				reported[at.lintHandler] = true
				directive := at.name
				if names := directives[at.name]; names != "" {
					directive = names
				}
				o.report("identity-of-nobody", at.place(), "'%s' gets to %s without a token, where %s is empty", p, directive, asWritten("{"+identity+"}"))
			}
			return true
		})
	}
}

// find returns a request that gets to a target, nil if none is known.
func (o *openDoors) find(t *target) *probe {
	if !t.tried {
		t.tried = true
		o.candidates(t.way, func(p probe, _ string) bool {
			a := o.try(p, true)
			if a.backend == nil || a.backend.handler != t.lintHandler {
				return false
			}
			if t.probe == nil {
				t.probe, t.root = &p, a.backend.root
			}
			return true
		})
	}
	return t.probe
}

// look looks for ways around an oauth_protect.
func (o *openDoors) look(at way) {
	in := ingredientsOf(at)
	var deadBy, deadExample string // code of what keeps requests away from it
	var witnesses []witness
	o.candidates(at, func(p probe, pattern string) bool {
		admitted := o.try(p, true)
		if !slices.Contains(admitted.passed, at.lintHandler) {
			if deadBy == "" {
				deadBy, deadExample = o.kept(at, p)
			}
			return false
		}
		witnesses = append(witnesses, witness{p, pattern, admitted})
		return true
	})
	if deadBy != "" {
		o.report(deadBy, at.place(), "%s", deadExample)
	}
	if deadBy == "rewritten-before-protect" {
		return // its matcher is for other paths than it seems to be
	}
	for _, w := range witnesses {
		// Whoever may come without a token is meant to.
		refused := o.try(w.probe, false)
		if !refused.refused && len(w.header) == 0 {
			continue
		}
		o.errorPages(at, w, refused)
		if w.backend == nil {
			continue
		}
		for _, v := range o.variations(in, w) {
			if a := o.try(v.probe, false); a.open() && w.backend.same(a.backend) && a.backend.path == v.arrives {
				o.report(v.code, at.place(), "'%s' needs a token, but %s reaches %s without one", w.probe, v.name(), a.backend)
			}
		}
		o.methods(at, w)
		o.otherWays(at, w)
		o.backends(at, w)
	}
}

// kept returns the code for a request that is meant for an oauth_protect, doesn't get there, and
// is answered without a token, and what to say of it.
func (o *openDoors) kept(at way, p probe) (code, text string) {
	a := o.try(p, false)
	if !a.open() || !o.matches(at, p) {
		return "", ""
	}
	if a.rewritten {
		if !a.backend.knows(p.path) {
			return "", "" // the backend can't tell what was asked for
		}
		return "rewritten-before-protect", fmt.Sprintf("'%s' becomes '%s' before this matcher sees it, and reaches %s without a token", p, a.backend.uri, a.backend)
	}
	// Of a group, the first that matches answers. That is a choice, not an order.
	for _, route := range at.routes {
		if route.Group != "" && slices.ContainsFunc(a.routes, func(r *lintRoute) bool {
			return r != route && r.Group == route.Group
		}) {
			return "", ""
		}
	}
	return "answered-before-protect", fmt.Sprintf("'%s' reaches %s before it gets here", p, a.backend)
}

// variation is a request that a stranger would try.
type variation struct {
	code  string
	probe probe
	how   string // it differs, if not by its path
	// arrives is the path that the backend gets, if it gets what the stranger wants.
	arrives string
}

// name is what a finding calls it.
func (v variation) name() string {
	if v.how != "" {
		return "the same " + v.how
	}
	return "'" + v.probe.String() + "'"
}

// variations returns what a stranger would try to get what a witness gets.
func (o *openDoors) variations(in *ingredients, w witness) (list []variation) {
	// What changes the path, changes the path that the backend gets in the same way: otherwise the
	// backend gets something else.
	path := func(code string, change func(string) string) {
		v := variation{code: code, probe: w.with(func(p *probe) { p.path = change(p.path) }), arrives: change(w.backend.path)}
		if w.backend.isFiles() {
			v.arrives = filepath.Clean(v.arrives)
		}
		if v.probe.path != w.path && strings.HasPrefix(v.probe.path, "/") {
			list = append(list, v)
		}
	}
	appended := func(suffix string) func(string) string {
		return func(path string) string { return strings.TrimSuffix(path, "/") + suffix }
	}
	files := w.backend.isFiles()
	// A file server sends callers from a folder's name to the one with a slash, which is protected.
	corrects := files && w.backend.redirects
	base := w.path[strings.LastIndexByte(w.path, '/')+1:]
	switch {
	case w.pattern == "": // the path doesn't matter
	case strings.HasSuffix(w.pattern, "/*") && !corrects:
		path("path-left-open", func(path string) string { return strings.TrimSuffix(path, "/"+sample) })
	case !strings.Contains(w.pattern, "*") && !strings.Contains(base, "."):
		if base != "" {
			path("path-left-open", appended("/"))
		} else if !corrects {
			path("path-left-open", appended(""))
		}
		path("path-left-open", appended("/"+sample))
	}
	if !files {
		path("case-left-open", strings.ToUpper)
		path("case-left-open", strings.ToLower)
		for _, pattern := range in.excluded {
			if suffix, ok := strings.CutPrefix(pattern, "*."); ok && !strings.ContainsAny(suffix, "*{}%") {
				path("suffix-left-open", appended("."+suffix))
			}
		}
		for _, before := range []string{"/" + sample + "/..;", "/" + sample + "%2f.."} {
			path("ambiguous-path-left-open", func(path string) string { return before + path })
		}
	}
	if w.backend.fastcgi && !strings.Contains(w.path, ".php") {
		path("front-controller-left-open", func(path string) string { return "/index.php" + path })
	}
	for _, k := range in.knobs {
		list = append(list, k.turns(w)...)
	}
	return append(list, o.addresses(in, w)...)
}

// turns returns what callers can do to a part of a request.
func (k knob) turns(w witness) (list []variation) {
	add := func(how string, change func(*probe)) {
		list = append(list, variation{"caller-decides", w.with(change), how, w.backend.path})
	}
	set := k.setter()
	add("without the "+k.kind+" "+k.name, func(p *probe) { set(p, "") })
	for _, value := range append(slices.Clip(distinct(k.values)), sample) {
		if len(list) > maxTurns {
			break
		}
		add("with the "+k.kind+" "+k.name+": "+value, func(p *probe) { set(p, value) })
	}
	return list
}

// addresses returns how callers come to another address.
func (o *openDoors) addresses(in *ingredients, w witness) (list []variation) {
	add := func(code, how string, p probe) { list = append(list, variation{code, p, how, w.backend.path}) }
	if w.from != stranger && reachOf(w.server) == reachAll {
		add("address-left-open", "from the internet", w.with(func(p *probe) { p.from = stranger }))
	}
	for _, r := range in.remote {
		if a, ok := addressIn(r); ok {
			through := w.with(func(p *probe) { p.from = a; p.header.Set("X-Forwarded-For", stranger.String()) })
			if through.trusted() {
				add("address-of-proxy", "through the proxy "+a.String(), through)
			}
		}
	}
	for _, r := range in.clients {
		a, ok := addressIn(r)
		if !ok {
			continue
		}
		for _, proxy := range proxies {
			claimed := w.with(func(p *probe) { p.from = proxy; p.header.Set("X-Forwarded-For", a.String()+", "+stranger.String()) })
			if claimed.trusted() {
				add("address-claimed", "with the header X-Forwarded-For: "+a.String(), claimed)
				break
			}
		}
	}
	return list
}

// proxies are addresses that proxies often have.
var proxies = []netip.Addr{neighbor, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("172.16.0.1"), netip.MustParseAddr("192.168.0.1")}

// methods looks for methods that reach the witness's backend without a token.
func (o *openDoors) methods(at way, w witness) {
	var open, writing, protected []string
	for _, method := range usualMethods {
		p := w.with(func(p *probe) { p.method = method })
		a := o.try(p, false)
		switch {
		case a.open() && w.backend.same(a.backend) && w.backend.path == a.backend.path:
			open = append(open, method)
			if method != http.MethodGet && method != http.MethodHead {
				writing = append(writing, method)
			}
		case a.refused:
			protected = append(protected, method)
		}
	}
	// Whoever may not GET may not learn what HEAD tells either.
	readable := slices.Contains(open, http.MethodGet) || !slices.Contains(protected, http.MethodGet)
	switch {
	case len(open) == 0 || len(protected) == 0:
	case len(writing) > 0 || !readable:
		o.report("method-left-open", at.place(), "'%s' needs a token, but %s %s reaches %s without one", w.probe, strings.Join(open, ", "), w.path, w.backend)
	default:
		o.report("reading-left-open", at.place(), "'%s' needs a token, but %s %s reaches %s without one", w.probe, strings.Join(open, ", "), w.path, w.backend)
	}
}

// otherWays looks for other sites, hosts and paths by which somebody gets what a witness gets.
func (o *openDoors) otherWays(at way, w witness) {
	try := func(code string, p probe, place lintPlace) bool {
		a := o.try(p, false)
		if !a.open() || !w.backend.sameResource(a.backend) {
			return false
		}
		where := "'" + p.String() + "'"
		if p.host != w.host || p.server != w.server {
			where = "the same as '" + p.URL() + "'"
		}
		o.report(code, place, "'%s' needs a token%s, but %s reaches %s without one", w.URL(), o.by(at, place), where, a.backend)
		return true
	}
	if try("host-left-open", w.with(func(p *probe) { p.host = unknownHost }), at.place()) {
		return
	}
	var targets []*target
	for _, upstream := range w.backend.upstreams {
		targets = append(targets, o.targets[upstream]...)
	}
	if w.backend.isFiles() {
		targets = o.targets[""]
	}
	for _, t := range targets[:min(len(targets), maxTargets)] {
		if reachOf(t.route.server) < reachOf(w.server) || demandsCertificates(t.route.server) && t.route.server != w.server {
			continue // not everybody can get there
		}
		begin := o.find(t)
		if begin == nil {
			continue
		}
		paths := []string{w.path, t.prefix + w.backend.path}
		if w.backend.isFiles() {
			name, ok := strings.CutPrefix(w.backend.path, strings.TrimSuffix(t.root, string(filepath.Separator))+string(filepath.Separator))
			if !ok {
				continue
			}
			paths = []string{t.prefix + "/" + filepath.ToSlash(name)}
		}
		for _, path := range distinct(paths) {
			p := begin.with(func(p *probe) { p.path, p.method, p.from = path, w.method, w.from })
			if p.server == w.server && p.host == w.host && p.path == w.path {
				continue
			}
			code, place := "site-left-open", t.place()
			if p.server == w.server && p.host == w.host {
				code, place = "other-path-left-open", at.place()
			}
			if try(code, p, place) {
				break
			}
		}
	}
}

// by says which oauth_protect asks for the token, where a finding stands elsewhere.
func (o *openDoors) by(at way, place lintPlace) string {
	if own := at.place(); own.where() != place.where() {
		return " (" + own.where() + ")"
	}
	return ""
}

// errorPages looks for error routes that serve what was refused.
func (o *openDoors) errorPages(at way, w witness, refused arrival) {
	if refused.errorBackend != nil && w.backend.sameResource(refused.errorBackend) {
		o.report("error-page-serves-refused", at.place(), "'%s' is refused here, and handle_errors then gets it from %s", w.probe, refused.errorBackend)
	}
}

// backends looks for backends that are sites of this configuration and listen for everybody.
func (o *openDoors) backends(at way, w witness) {
	for _, address := range w.backend.upstreams {
		port, ok := strings.CutPrefix(address, "127.0.0.1:")
		if !ok {
			continue
		}
		for _, s := range o.l.servers {
			if !slices.Contains(s.ports, port) || reachOf(s) == reachMachine || demandsCertificates(s) {
				continue
			}
			p := probe{server: s, method: w.backend.method, host: "127.0.0.1:" + port, path: w.backend.path, from: stranger}
			if a := o.try(p, false); a.answered && !a.refused && !a.doubt && len(a.met) == 0 {
				o.report("backend-left-open", a.routes[len(a.routes)-1].place(), "'%s' needs a token (%s), but its backend answers everybody on port %s", w.probe, at.place().where(), port)
			}
		}
	}
}

// reach is from where callers can connect to a server.
type reach int

const (
	reachMachine reach = iota // from programs on this machine
	reachNetwork              // from a private network
	reachAll
)

func reachOf(s *lintServer) reach {
	reach := reachMachine
	for _, listen := range s.server.Listen {
		address, err := caddy.ParseNetworkAddress(listen)
		if err != nil {
			return reachAll
		}
		ip, err := netip.ParseAddr(address.Host)
		switch {
		case address.IsUnixNetwork(), address.Host == "localhost", err == nil && ip.IsLoopback():
		case err == nil && ip.IsPrivate():
			reach = max(reach, reachNetwork)
		default:
			return reachAll
		}
	}
	return reach
}

// demandsCertificates reports whether a server lets only callers with a certificate connect, at
// least for some of its hosts. In two modes of client_auth, others connect as well.
func demandsCertificates(s *lintServer) bool {
	return slices.ContainsFunc(s.server.TLSConnPolicies, func(p *caddytls.ConnectionPolicy) bool {
		auth := p.ClientAuthentication
		return auth != nil && auth.Active() && auth.Mode != "request" && auth.Mode != "verify_if_given"
	})
}
