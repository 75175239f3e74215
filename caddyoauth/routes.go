package caddyoauth

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// 'caddy oauth routes' lists who gets in where. It finds the rows out by asking the policy about
// made-up requests, beginning with one for any host and path. A watcher watches the walk of each:
// where a matcher asks for a host, path or method that only a part of the requests have which the
// made-up one stands for, that part becomes a row of its own, and this request goes on as one of
// the rest. Where a matcher asks for anything else, such as a header, both answers are tried, and
// the rows say on what they depend. So a row is not what happened to one example: every matcher
// that a request of the row can meet was answered for all of them.

// The bounds of what is listed, for each of Caddy's servers. Beyond them a row depends on a
// matcher instead of being split, or says that it isn't known who gets in.
const (
	maxRouteHosts      = 2000
	maxRoutePaths      = 500 // for each host
	maxRouteConditions = 6   // on which one row depends: each can double the rows
	maxRouteQuestions  = 2_000_000
)

// routeTable is what 'caddy oauth routes' finds out. With --json it is printed with these names, so
// they stay.
type routeTable struct {
	Sites []*routeSite `json:"sites"`

	// Cut says that a bound was reached: some rows depend on matchers for hosts or paths, or say
	// that it isn't known who gets in.
	Cut bool `json:"cut"`
}

// routeSite is the hosts of one of Caddy's servers whose requests are treated alike. Of several
// sites of a server, the first that fits counts.
type routeSite struct {
	// Server is the server's name in the JSON configuration, and Listen its addresses.
	Server string   `json:"server"`
	Listen []string `json:"listen"`

	// Hosts may have * for a label. Without any, the site is for all hosts that no other has.
	Hosts []string `json:"hosts,omitempty"`

	// TLS says that the site is served over TLS.
	TLS bool `json:"tls"`

	// Notes are what holds for all rows.
	Notes []string `json:"notes,omitempty"`

	// Rows are its rows. Of several that fit a request, the first counts.
	Rows []routeRow `json:"rows"`
}

// routeRow says who gets in with the requests of one kind.
type routeRow struct {
	// Paths are as in Caddy's matcher path, but may have a * in the middle, which stands for
	// anything. Methods is * for those that no row before names.
	Paths   []string `json:"paths"`
	Methods []string `json:"methods"`

	// When are the matchers that the request must fit as well.
	When []string `json:"when,omitempty"`

	routeAnswer
}

// routeAnswer is who gets in, and where to.
type routeAnswer struct {
	Who routeAccess `json:"who"`

	// Clients are the clients here that get in, with the best token that they can fetch.
	Clients []routeClient `json:"clients,omitempty"`

	// Foreign are sources of tokens from elsewhere, and the managed clients of realms. Nobody knows what
	// their tokens have.
	Foreign []routeForeign `json:"foreign,omitempty"`

	// Why says why nobody gets in, who decides where that is not known, or whom an endpoint answers that is
	// not for clients with their own credentials.
	Why string `json:"why,omitempty"`

	// To is where the requests go that get in, or how they are answered.
	To []string `json:"to,omitempty"`

	// Rules are the oauth_protect that decide, by file and line, or by their place in the JSON
	// configuration.
	Rules []string `json:"rules,omitempty"`

	// Notes are what else there is to know, such as that the rule only reports.
	Notes []string `json:"notes,omitempty"`
}

// routeAccess is who gets in, in a word.
type routeAccess string

const (
	routeOpen     routeAccess = "open"     // everybody, without a token
	routeClients  routeAccess = "clients"  // those that are listed
	routeEndpoint routeAccess = "endpoint" // clients, with their own credentials
	routeNobody   routeAccess = "nobody"   // no token that can be had gets in
	routeAnswered routeAccess = "answered" // nobody gets anywhere: Caddy answers with an error, or not at all
	routeUnknown  routeAccess = "unknown"  // something decides that isn't looked into
)

type routeClient struct {
	Realm string `json:"realm"`
	ID    string `json:"id"`
}

type routeForeign struct {
	// Source is the issuer or the endpoint, or says whose managed clients these are.
	Source string `json:"source"`
	// Realm is the realm whose managed clients these are; empty for tokens from elsewhere.
	Realm string `json:"realm,omitempty"`
	// Needs are what its tokens must have.
	Needs []string `json:"needs,omitempty"`
}

// listRoutes finds out who gets in where.
func listRoutes(ctx context.Context, p *policy) (*routeTable, error) {
	s := &survey{ctx: ctx, policy: p, about: make(map[caddyhttp.MiddlewareHandler]*handlerFacts)}
	return &s.table, s.run()
}

// surveying has room for one survey: a large configuration takes a core for a second or two.
var surveying = make(chan struct{}, 1)

// serveRoutes answers GET /oauth/routes with what 'caddy oauth routes --json' prints, of the
// configuration in force.
func serveRoutes(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return adminError(http.StatusMethodNotAllowed, "GET or HEAD only")
	}
	select {
	case surveying <- struct{}{}:
		defer func() { <-surveying }()
	case <-r.Context().Done():
		return nil // nobody waits any more
	}
	p, err := policyOf(caddy.ActiveContext())
	if err != nil {
		return adminError(http.StatusNotFound, "%w", err)
	}
	table, err := listRoutes(r.Context(), p)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	return table.printJSON(w)
}

// run surveys all servers.
func (s *survey) run() error {
	p := s.policy
	mentioned := make(map[string]bool)
	for _, server := range p.http.Servers {
		lists := []caddyhttp.RouteList{configuredRoutes(server)}
		for _, named := range server.NamedRoutes {
			lists = append(lists, caddyhttp.RouteList{*named})
		}
		if server.Errors != nil {
			lists = append(lists, server.Errors.Routes)
		}
		for _, list := range lists {
			source, err := json.Marshal(sourceOf(list))
			if err != nil {
				return err
			}
			for text := range stringsIn(source) {
				mentioned[text] = true
			}
		}
	}
	s.classify(mentioned)
	for _, name := range sortedKeys(p.http.Servers) {
		if name == autoRedirects {
			continue
		}
		if err := s.server(name); err != nil {
			return err
		}
	}
	return nil
}

// autoRedirects is the server in which Caddy's automatic HTTPS redirects from HTTP.
const autoRedirects = "remaining_auto_https_redirects"

// survey finds out the rows of all servers.
type survey struct {
	ctx     context.Context //nolint:containedctx // a survey lasts as long as the call that needs it
	policy  *policy
	classes []clientClass
	clients []classedClient // by realm and ID
	about   map[caddyhttp.MiddlewareHandler]*handlerFacts
	table   routeTable
	asked   int // questions in all

	// The server that is being surveyed.
	name  string
	to    *caddyhttp.Server
	hosts patternSet[hostPattern]
}

// clientClass is clients that no rule can tell apart.
type clientClass struct {
	realm string
	*oauth.Client
}

// classedClient is a client, and the index of its class.
type classedClient struct {
	routeClient
	class int
}

// classify puts the clients of all realms into classes. mentioned are all texts in the
// configuration of the servers: a scope, audience or ID that is not among them makes no difference.
func (s *survey) classify(mentioned map[string]bool) {
	for _, name := range sortedKeys(s.policy.app.realms) {
		clients := s.policy.app.realms[name].settings.Clients
		classes := make(map[string]int)
		for _, id := range sortedKeys(clients) {
			client := clients[id]
			of := func(texts []string) []string {
				texts = slices.DeleteFunc(slices.Clone(texts), func(text string) bool { return !mentioned[text] })
				slices.Sort(texts)
				return slices.Compact(texts)
			}
			// A token with other scopes alone is one that no matcher oauth_scope fits.
			others := slices.ContainsFunc(client.Scopes, func(scope string) bool { return !mentioned[scope] })
			key := fmt.Sprintf("%q %q %q %t %t %t %t %t", of(client.Scopes), of(client.Audience), of([]string{id}),
				len(client.Scopes) == 0, others, len(client.Audience) == 0, len(client.GrantTypes) == 0, client.Disabled)
			i, known := classes[key]
			if !known {
				i = len(s.classes)
				classes[key] = i
				s.classes = append(s.classes, clientClass{name, client})
			}
			s.clients = append(s.clients, classedClient{routeClient{name, id}, i})
		}
	}
}

// server surveys one of Caddy's servers.
func (s *survey) server(name string) error {
	s.name, s.to = name, s.policy.http.Servers[name]
	s.hosts = patternSet[hostPattern]{all: []hostPattern{everyHost}, max: maxRouteHosts}
	sites := make(map[hostPattern]routeSite)
	for i := 0; i < len(s.hosts.all); i++ { //nolint:intrange // walks find more
		host := s.hosts.all[i]
		site, err := s.site(host)
		if err != nil {
			return err
		}
		sites[host] = site
	}

	for _, host := range smallestFirst(s.hosts.all) {
		site := sites[host]
		// Nothing is where everybody gets Caddy's empty answer.
		if host == everyHost && !slices.ContainsFunc(site.Rows, func(r routeRow) bool { return r.Who != routeAnswered || len(r.To) > 0 }) {
			continue
		}
		if host != everyHost {
			site.Hosts = []string{host.String()}
		}
		// Hosts of one site stand one after the other.
		if last := len(s.table.Sites) - 1; last >= 0 && host != everyHost {
			before := s.table.Sites[last]
			if before.Server == name && len(before.Hosts) > 0 && reflect.DeepEqual(before.Rows, site.Rows) {
				before.Hosts = append(before.Hosts, site.Hosts...)
				continue
			}
		}
		s.table.Sites = append(s.table.Sites, &site)
	}
	return nil
}

// pathBlock is the rows of one path.
type pathBlock struct {
	path  pathPattern
	shown string
	rows  []routeRow // without paths
}

// site surveys one host, or what stands for several.
func (s *survey) site(host hostPattern) (routeSite, error) {
	site := routeSite{Server: s.name, Listen: s.to.Listen, TLS: len(s.to.TLSConnPolicies) > 0}
	of := &hostSurvey{
		survey: s, host: host,
		paths:    patternSet[pathPattern]{all: []pathPattern{everyPath}, max: maxRoutePaths},
		examples: make(map[pathPattern]string),
	}
	found := make(map[pathPattern]pathBlock)
	for i := 0; i < len(of.paths.all); i++ { //nolint:intrange // walks find more
		path := of.paths.all[i]
		block := pathBlock{path: path, shown: cmp.Or(of.examples[path], path.String())}
		methods := []string{otherMethod}
		var outcomes []*outcomes
		for k := 0; k < len(methods); k++ { //nolint:intrange // walks find more
			o, err := of.outcomes(path, methods[k], &methods, nil)
			if err != nil {
				return site, err
			}
			outcomes = append(outcomes, o)
		}
		block.rows = byMethod(methods, outcomes)
		found[path] = block
	}
	var blocks []pathBlock
	for _, path := range smallestFirst(of.paths.all) {
		blocks = append(blocks, found[path])
	}
	site.Rows = rowsOf(blocks)
	if of.secret && !site.TLS {
		site.Notes = []string{"plain HTTP: tokens and secrets are accepted only from this machine, and from trusted proxies that say https"}
	}
	return site, nil
}

// otherMethod stands for any method that is not named. It is one that nobody has.
const otherMethod = "ANY-0Q7X"

// byMethod turns what was found for each method, the first of which is otherMethod, into rows.
func byMethod(methods []string, found []*outcomes) []routeRow {
	var rows []routeRow
	done := make([]bool, len(methods))
	add := func(names []string, o *outcomes) {
		for _, row := range o.rows(nil) {
			row.Methods = names
			rows = append(rows, row)
		}
	}
	for i := 1; i < len(methods); i++ {
		if done[i] || reflect.DeepEqual(found[i], found[0]) {
			continue
		}
		names := []string{methods[i]}
		for k := i + 1; k < len(methods); k++ {
			if !done[k] && reflect.DeepEqual(found[i], found[k]) {
				done[k] = true
				names = append(names, methods[k])
			}
		}
		add(names, found[i])
	}
	add([]string{"*"}, found[0])
	return rows
}

// rowsOf returns the rows of a site, without those that say the same as a later one that holds
// for their requests, too.
func rowsOf(blocks []pathBlock) []routeRow {
	var kept []pathBlock
	for _, block := range slices.Backward(blocks) {
		later := slices.IndexFunc(kept, func(b pathBlock) bool { return block.path.within(b.path) })
		if later < 0 || !kept[later].path.looksLike(block.path) || !reflect.DeepEqual(block.rows, kept[later].rows) {
			kept = slices.Insert(kept, 0, block)
		}
	}
	var rows []routeRow
	done := make([]bool, len(kept))
	for i, block := range kept {
		if done[i] {
			continue
		}
		// Single paths can stand in any order, other paths only one after the other.
		paths, between := []string{block.shown}, false
		for k := i + 1; k < len(kept); k++ {
			same := !done[k] && reflect.DeepEqual(block.rows, kept[k].rows)
			if same && (!between || block.path.exact && kept[k].path.exact) {
				done[k] = true
				paths = append(paths, kept[k].shown)
			}
			between = between || !same
		}
		slices.SortStableFunc(paths, func(a, b string) int { return cmp.Compare(len(a), len(b)) })
		for _, row := range block.rows {
			row.Paths = paths
			rows = append(rows, row)
		}
	}
	return rows
}

// outcomes is a tree: what depends on a condition, or an answer.
type outcomes struct {
	Condition string // as shown
	Yes, No   *outcomes
	Answer    *routeAnswer
}

// rows returns a row for each answer, first those that depend on the most.
func (o *outcomes) rows(when []string) []routeRow {
	if o.Answer != nil {
		return []routeRow{{When: when, routeAnswer: *o.Answer}}
	}
	return append(o.Yes.rows(append(slices.Clip(when), o.Condition)), o.No.rows(when)...)
}

// alike reports whether two trees are the same apart from where requests go, and returns the tree
// of both together.
func alike(a, b *outcomes) (*outcomes, bool) {
	if a.Answer == nil || b.Answer == nil {
		return a, reflect.DeepEqual(a, b)
	}
	x, y := *a.Answer, *b.Answer
	x.To, y.To = nil, nil
	if !reflect.DeepEqual(x, y) {
		return nil, false
	}
	x.To = union(a.Answer.To, b.Answer.To)
	return &outcomes{Answer: &x}, true
}

// union returns the elements of a, and those of b that are not among them.
func union(a, b []string) []string {
	all := slices.Clip(a)
	for _, s := range b {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

// hostSurvey finds out the rows of one host.
type hostSurvey struct {
	*survey
	host  hostPattern
	paths patternSet[pathPattern]
	// examples are paths as the configuration spells them, where the letters' case counts.
	examples map[pathPattern]string
	secret   bool // something needs a private connection
}

// outcomes finds out who gets in with one method at one path. assumed are the conditions on which
// that depends so far. It adds to methods those that matter here.
func (s *hostSurvey) outcomes(path pathPattern, method string, methods *[]string, assumed []condition) (*outcomes, error) {
	answer, need, err := s.answer(path, method, methods, assumed)
	if err != nil {
		return nil, err
	}
	if need == nil {
		return &outcomes{Answer: answer}, nil
	}
	if len(assumed) == maxRouteConditions || s.asked > maxRouteQuestions {
		s.table.Cut = true
		return &outcomes{Answer: &routeAnswer{Who: routeUnknown, Why: "it depends on too many matchers, among them " + need.shown}}, nil
	}
	with := func(holds bool) (*outcomes, error) {
		c := *need
		c.holds = holds
		return s.outcomes(path, method, methods, append(slices.Clip(assumed), c))
	}
	yes, err := with(true)
	if err != nil {
		return nil, err
	}
	no, err := with(false)
	if err != nil {
		return nil, err
	}
	if both, same := alike(yes, no); same {
		return both, nil
	}
	return &outcomes{Condition: need.shown, Yes: yes, No: no}, nil
}

// condition is what a matcher says that is not for hosts, paths or methods.
type condition struct {
	key, shown string
	holds      bool
}

// answer asks for everybody. If a walk needs a condition that is not assumed, it returns that.
func (s *hostSurvey) answer(path pathPattern, method string, methods *[]string, assumed []condition) (*routeAnswer, *condition, error) {
	ask := func(who visitor, foreign string) (*journey, *condition, error) {
		return s.ask(path, method, methods, assumed, who, foreign)
	}
	anonymous, need, err := ask(visitor{}, "")
	if err != nil || need != nil {
		return nil, need, err
	}
	found := &answering{survey: s.survey, anonymous: anonymous}
	if len(anonymous.protects) > 0 && anonymous.endpoint == nil {
		alike, err := s.alike(ask)
		if err != nil {
			return nil, nil, err
		}
		asked := make(map[string]*journey)
		for _, class := range s.classes {
			key := alike(class)
			if asked[key] == nil {
				if asked[key], need, err = ask(visitor{realm: class.realm, client: class.ID}, ""); err != nil || need != nil {
					return nil, need, err
				}
			}
			found.clients = append(found.clients, asked[key])
		}
		for _, source := range anonymous.foreign() {
			j, need, err := ask(visitor{}, source)
			if err != nil || need != nil {
				return nil, need, err
			}
			found.sources, found.foreign = append(found.sources, source), append(found.foreign, j)
		}
	}
	return found.answer(), nil, nil
}

// ask asks for one visitor. A client may have a token that takes it further than the one with all its
// scopes, where matchers look at scopes.
func (s *hostSurvey) ask(path pathPattern, method string, methods *[]string, assumed []condition, who visitor, foreign string) (best *journey, need *condition, err error) {
	tokens := [][]string{nil}
	if who.client != "" {
		scopes := s.policy.app.realms[who.realm].settings.Clients[who.client].Scopes
		tokens = slices.Concat([][]string{scopes}, lesserScopes(scopes, scopesMatched(s.to)))
	}
	for _, scopes := range tokens {
		if err := s.ctx.Err(); err != nil {
			return nil, nil, err
		}
		s.asked++
		p := &watcher{hostSurvey: s, path: path, methods: methods, assumed: assumed, foreign: foreign}
		p.now.fixed = path.exact
		target := &url.URL{Scheme: "http", Host: s.host.example(), Path: p.example()}
		if len(s.to.TLSConnPolicies) > 0 {
			target.Scheme = "https"
		}
		if strings.Contains(target.Host, ":") {
			target.Host = "[" + target.Host + "]"
		}
		// Over plain HTTP, only this machine is let in.
		q := question{method: method, who: who, from: netip.AddrFrom4([4]byte{127, 0, 0, 1}), watcher: p}
		w, err := s.policy.walk(s.ctx, s.to, s.name, target, q, scopes)
		if err != nil {
			return nil, nil, err
		}
		if p.need != nil {
			return p.journey(w), p.need, nil // as far as that is known
		}
		s.secret = s.secret || p.secret
		if j := p.journey(w); best == nil || j.end < best.end {
			best = j
		}
		if best.end == endsSomewhere {
			break
		}
	}
	return best, nil, nil
}

// alike returns a function whose result is the same for classes that the rules here treat alike, so
// that only one of them needs to be asked for. The rules are those that somebody meets whom all of
// them let in. Where matchers look at scopes, the way depends on more than rules.
func (s *hostSurvey) alike(ask func(visitor, string) (*journey, *condition, error)) (func(clientClass) string, error) {
	if len(scopesMatched(s.to)) > 0 {
		return func(class clientClass) string { return class.realm + " " + class.ID }, nil
	}
	all, _, err := ask(visitor{}, anySource)
	if err != nil {
		return nil, err
	}
	var matter []string
	for _, rule := range all.rules {
		for ; rule != nil; rule = rule.Also {
			matter = slices.Concat(matter, rule.Scopes, rule.AnyScope, rule.Audience)
			for _, claim := range rule.Claims {
				matter = append(matter, claim.Values...)
			}
		}
	}
	return func(class clientClass) string {
		key := []byte(class.realm)
		flag := func(is bool) {
			if is {
				key = append(key, '+')
			} else {
				key = append(key, '.') // which no realm has
			}
		}
		flag(class.Disabled)
		flag(len(class.GrantTypes) > 0)
		flag(len(class.Scopes) > 0)
		flag(len(class.Audience) > 0)
		for _, text := range matter {
			flag(class.ID == text)
			flag(slices.Contains(class.Scopes, text))
			flag(slices.Contains(class.Audience, text))
		}
		return string(key)
	}, nil
}

// anySource stands for any source of tokens, also the realms here. No source has a line end in its
// label.
const anySource = "\n"

// only keeps rows of these kinds.
func (t *routeTable) only(kinds ...routeAccess) {
	for _, site := range t.Sites {
		site.Rows = slices.DeleteFunc(site.Rows, func(row routeRow) bool { return !slices.Contains(kinds, row.Who) })
	}
	t.Sites = slices.DeleteFunc(t.Sites, func(site *routeSite) bool { return len(site.Rows) == 0 })
}
