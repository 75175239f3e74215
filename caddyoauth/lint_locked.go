package caddyoauth

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/caddyauth"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// lintLockedChecks are about doors that somebody can't open who should.
func lintLockedChecks() []lintCheck {
	return []lintCheck{{
		code: "scope-nobody-has", kind: lintLocked, certain: true,
		means: "The route asks for a scope that no client of its realms has, so all callers are refused with 403 `insufficient_scope`.",
		do:    "Correct the scope, or give it to a client with `scopes`.",
		find:  lintScopes,
	}, {
		code: "audience-nobody-has", kind: lintLocked, certain: true,
		means: "The route asks for an audience that no client of its realms has, so all callers are refused with 401 `invalid_token`. Audiences are compared byte for byte: a slash at the end makes another one.",
		do:    "Correct the audience, or give it to a client with `audience`.",
		find:  lintAudiences,
	}, {
		code: "claim-nobody-has", kind: lintLocked, certain: true,
		means: "The route asks for a claim that no token of its realms has, so all callers are refused with 403 `insufficient_scope`. Tokens that are issued here have `client_id`, `sub`, `iss`, `aud` and `scope`, and no other claims.",
		do:    "Ask for a scope instead. `claim` is for tokens from elsewhere.",
		find:  lintClaims,
	}, {
		code: "rule-nobody-meets", kind: lintLocked, certain: true,
		means: "Some clients have each of the things that the route asks for, but none has all of them, so all callers are refused.",
		do:    "Give one client all of it, or ask for less.",
		find:  lintRules,
	}, {
		code: "realm-not-served", kind: lintLocked, certain: true,
		means: "The route accepts the tokens of a realm that no `oauth_server` serves, and the store is not shared with other gateways, so nobody can fetch one.",
		do:    "Add an `oauth_server`, or name the realm in the one that is there.",
		find:  lintUnserved,
	}, {
		code: "client-without-scopes", kind: lintLocked, certain: true,
		means: "The client has no `scopes`, so each of its requests for a token is refused with `invalid_scope`.",
		do:    "Give it `scopes`, or, if it only introspects and revokes, `grant_types none`.",
		find:  lintClientsWithoutScopes,
	}, {
		// A start has a warning of its own if all have ended.
		code: "secret-gap", kind: lintLocked,
		means: "For a time, or from now on, none of the client's secrets is valid, so it can't authenticate.",
		do:    "Have the next secret begin before the last one ends.",
		find:  lintSecretGaps,
	}, {
		code: "all-clients-disabled", kind: lintLocked, certain: true,
		means: "Every client of the realm is disabled, so nobody can fetch a token.",
		do:    "Enable one, or remove the realm.",
		find: func(l *linted, report lintReport) {
			lintRealmsWithout(l, func(clients int) bool { return clients > 0 }, report)
		},
	}, {
		// A start has always had a warning of its own about this.
		code: "realm-without-clients", kind: lintLocked,
		means: "The realm has no clients, so nobody can fetch a token.",
		do:    "Add a `client`.",
		find: func(l *linted, report lintReport) {
			lintRealmsWithout(l, func(clients int) bool { return clients == 0 }, report)
		},
	}, {
		code: "basic-auth-first", kind: lintLocked, certain: true,
		means: "`basic_auth` asks for a password of its own before the request gets here. A request has one `Authorization`, so it can't have both that and a token or the client's secret.",
		do:    "Take this path out of the matcher of `basic_auth`.",
		find:  lintBasicAuth,
	}, {
		code: "token-endpoint-protected", kind: lintLocked, certain: true,
		means: "An `oauth_protect` comes before the token endpoint, so that one needs a token to fetch a token.",
		do:    "Put `oauth_server` first. In a `route` block, the order is the written one.",
		find:  lintProtectedEndpoints,
	}, {
		code: "oauth-scope-nobody-has", kind: lintLocked, certain: true,
		means: "The matcher `oauth_scope` is about scopes that no client of the accepted realms has, so it never matches.",
		do:    "Correct the scope, or give it to a client with `scopes`.",
		find:  lintMatchedScopes,
	}, {
		code: "oauth-scope-without-protect", kind: lintLocked, certain: true,
		means: "The matcher `oauth_scope` stands where no `oauth_protect` has let the caller in, so it never matches.",
		do:    "Put an `oauth_protect` before it.",
		find:  lintUnprotectedScopes,
	}, {
		code: "never-reached", kind: lintLocked, certain: true,
		means: "An earlier `handle`, or another route that ends the handling of a request, takes all requests that would get here.",
		do:    "Put the narrower one first, or change one of the matchers.",
		find:  lintUnreachable,
	}, {
		code: "expectation-broken", kind: lintLocked,
		means: "A request doesn't end as `expect` says, so the configuration is refused when it starts.",
		do:    "See with `caddy oauth explain` which way the request goes, and correct the rules or the expectation.",
		find:  lintExpectations,
	}, {
		code: "issuer-nobody-serves", kind: lintLocked,
		means: "No site with the `oauth_server` of the realm is for the host of its `issuer`, where programs look for the metadata and the endpoints that it names.",
		do:    "Correct the issuer, or serve the realm in a site with that name. Behind a proxy that changes the name, this may be meant.",
		find:  lintIssuers,
	}}
}

// lintClients are the clients whose tokens a route accepts: those that can fetch one, each as the
// best token that it can fetch.
type lintClients struct {
	realms                    []string
	byID, byScope, byAudience map[string][]*introspect.Facts
	all                       []*introspect.Facts
}

// clientsOf returns the clients of the realms. ok is unset if somebody else's tokens are accepted,
// too, or clients may be added while the gateway runs: nobody knows what those have.
func (l *linted) clientsOf(sources []routeSource) (_ *lintClients, ok bool) {
	var names []string
	for _, s := range sources {
		if realm := l.realms[s.realmName()]; realm == nil || realm.managed != nil {
			return nil, false
		}
		names = append(names, s.realmName())
	}
	slices.Sort(names)
	key := strings.Join(names, " ")
	if known := l.clients[key]; known != nil {
		return known, true
	}
	index := &lintClients{realms: names, byID: make(map[string][]*introspect.Facts), byScope: make(map[string][]*introspect.Facts), byAudience: make(map[string][]*introspect.Facts)}
	for _, name := range names {
		realm := l.realms[name]
		for _, c := range realm.settings.Clients {
			if c.Disabled || len(c.GrantTypes) == 0 || len(c.Scopes) == 0 {
				continue
			}
			best := &introspect.Facts{Active: true, ClientID: c.ID, Subject: c.ID, Issuer: realm.settings.Issuer, Scopes: c.Scopes, Audience: c.Audience}
			index.all = append(index.all, best)
			index.byID[c.ID] = append(index.byID[c.ID], best)
			for _, scope := range c.Scopes {
				index.byScope[scope] = append(index.byScope[scope], best)
			}
			for _, audience := range c.Audience {
				index.byAudience[audience] = append(index.byAudience[audience], best)
			}
		}
	}
	if l.clients == nil {
		l.clients = make(map[string]*lintClients)
	}
	l.clients[key] = index
	return index, true
}

// String names them.
func (c *lintClients) String() string {
	if len(c.realms) == 1 {
		return "no client of the realm " + c.realms[0]
	}
	return "no client of the realms " + strings.Join(c.realms, ", ")
}

// among returns a few clients, all of which are candidates for the rule: those that have the thing
// that it asks for and that the fewest have.
func (c *lintClients) among(rule *access.Rule) []*introspect.Facts {
	few := c.all
	ofAny := func(names []string, index map[string][]*introspect.Facts) {
		n := 0
		for _, name := range names {
			n += len(index[name])
		}
		if n >= len(few) {
			return
		}
		few = nil
		for _, name := range names {
			few = append(few, index[name]...)
		}
	}
	for _, scope := range rule.Scopes {
		ofAny([]string{scope}, c.byScope)
	}
	if len(rule.AnyScope) > 0 {
		ofAny(rule.AnyScope, c.byScope)
	}
	if len(rule.Audience) > 0 {
		ofAny(rule.Audience, c.byAudience)
	}
	for _, claim := range rule.Claims {
		if claim.Name == "client_id" || claim.Name == "sub" {
			ofAny(claim.Values, c.byID)
		}
	}
	return few
}

// meets reports whether any of them passes the rule.
func (c *lintClients) meets(rule *access.Rule) bool {
	return slices.ContainsFunc(c.among(rule), func(facts *introspect.Facts) bool {
		proven := facts.Confirmation
		proven.Key = cmp.Or(proven.Key, oauth.SupposedKey) // clients can have such tokens, where a rule asks for them
		return access.Decide(rule, facts, access.Request{Proven: proven, Fit: true}).Allowed
	})
}

// lintRule is what a route asks for, of requests with some methods.
type lintRule struct {
	*access.Rule
	at      *lintHandler
	on      string // "on GET: ", or nothing for all methods
	clients *lintClients
}

// rules yields what routes ask for, where only tokens that are issued here are accepted, and there
// is somebody who can fetch one.
func (l *linted) rules(yield func(lintRule) bool) {
	for h := range l.handlers {
		p, ok := h.module.(*Protect)
		if !ok {
			continue
		}
		clients, ok := l.clientsOf(p.sources)
		if !ok || len(clients.all) == 0 {
			continue
		}
		for on, rule := range rulesOf(p) {
			if !yield(lintRule{rule, h, on, clients}) {
				return
			}
		}
	}
}

// rulesOf yields what a route asks for, with what findings begin with: "on GET: ", or nothing for
// methods that no rule names.
func rulesOf(p *Protect) func(yield func(on string, rule *access.Rule) bool) {
	return func(yield func(on string, rule *access.Rule) bool) {
		if !yield("", &p.rule) {
			return
		}
		var seen []*access.Rule
		for _, method := range sortedKeys(p.named) {
			rule := p.named[method]
			if slices.Contains(seen, rule) {
				continue
			}
			seen = append(seen, rule)
			if !yield("on "+method+": ", rule) {
				return
			}
		}
	}
}

func lintScopes(l *linted, report lintReport) {
	for rule := range l.rules {
		for _, scope := range rule.Scopes {
			if rule.clients.byScope[scope] == nil {
				report(rule.at.place(), "%s%s has the scope %s%s", rule.on, rule.clients, quote(scope), meant(scope, rule.clients.byScope))
			}
		}
		missing := missingOf(rule.AnyScope, rule.clients.byScope)
		if len(missing) > 0 && len(missing) == len(rule.AnyScope) {
			report(rule.at.place(), "%s%s has one of the scopes %s%s", rule.on, rule.clients, quote(missing...), meant(missing[0], rule.clients.byScope))
		}
	}
}

func lintAudiences(l *linted, report lintReport) {
	for rule := range l.rules {
		missing := missingOf(rule.Audience, rule.clients.byAudience)
		if len(missing) > 0 && len(missing) == len(rule.Audience) {
			report(rule.at.place(), "%s%s has the audience %s%s", rule.on, rule.clients, strings.ReplaceAll(quote(missing...), ", ", " or "), meant(missing[0], rule.clients.byAudience))
		}
	}
}

func lintClaims(l *linted, report lintReport) {
	for rule := range l.rules {
		for _, claim := range rule.Claims {
			only := access.Rule{Claims: []access.Claim{claim}}
			if rule.clients.meets(&only) {
				continue
			}
			if slices.ContainsFunc(rule.clients.all, func(facts *introspect.Facts) bool { return len(facts.ClaimValues(claim.Name)) > 0 }) {
				report(rule.at.place(), "%s%s has the claim %s with the value %s", rule.on, rule.clients, claim.Name, strings.ReplaceAll(quote(claim.Values...), ", ", " or "))
			} else {
				report(rule.at.place(), "%s%s has the claim %s", rule.on, rule.clients, claim.Name)
			}
		}
	}
}

func lintRules(l *linted, report lintReport) {
	for rule := range l.rules {
		if len(missingOf(rule.Scopes, rule.clients.byScope)) > 0 || rule.clients.meets(rule.Rule) {
			continue
		}
		// Each of these is a finding of its own.
		alone := []access.Rule{{AnyScope: rule.AnyScope}, {Audience: rule.Audience}}
		for _, claim := range rule.Claims {
			alone = append(alone, access.Rule{Claims: []access.Claim{claim}})
		}
		if slices.ContainsFunc(alone, func(part access.Rule) bool { return !rule.clients.meets(&part) }) {
			continue
		}
		var asked []string
		if len(rule.Scopes) > 0 {
			asked = append(asked, "scopes "+strings.Join(rule.Scopes, " "))
		}
		if len(rule.AnyScope) > 0 {
			asked = append(asked, "any_scope "+strings.Join(rule.AnyScope, " "))
		}
		if len(rule.Audience) > 0 {
			asked = append(asked, "audience "+strings.Join(rule.Audience, " "))
		}
		for _, claim := range rule.Claims {
			asked = append(asked, "claim "+claim.Name+" "+strings.Join(claim.Values, " "))
		}
		report(rule.at.place(), "%s%s has all of what is asked for: %s", rule.on, rule.clients, strings.Join(asked, ", "))
	}
}

func missingOf(names []string, index map[string][]*introspect.Facts) (missing []string) {
	for _, name := range names {
		if index[name] == nil {
			missing = append(missing, name)
		}
	}
	return missing
}

func quote(names ...string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = strconv.Quote(name)
	}
	return strings.Join(quoted, ", ")
}

// maxGuessed bounds how many names a guess is made among, and how long they are: a start makes
// guesses, too.
const maxGuessed, maxGuessedLength = 1000, 100

// meant returns a guess at what a name should have been, to be appended to a finding.
func meant(name string, index map[string][]*introspect.Facts) string {
	best, distance := "", 1+min(2, len(name)/3)
	if len(index) > maxGuessed || len(name) > maxGuessedLength {
		return ""
	}
	for _, other := range sortedKeys(index) {
		if d := editDistance(name, other, distance); d < distance {
			best, distance = other, d
		}
	}
	if best == "" {
		return ""
	}
	return "; is " + strconv.Quote(best) + " meant?"
}

// editDistance returns how many bytes of a must be added, removed, changed, or swapped with the next
// to make b, or limit if it is not less. Upper and lower case are the same.
func editDistance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	a, b = strings.ToLower(a), strings.ToLower(b)
	// d[i][j] is the distance of the first i bytes of a from the first j of b.
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := d[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			d[i][j] = min(change, d[i-1][j]+1, d[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return min(d[len(a)][len(b)], limit)
}

func lintUnserved(l *linted, report lintReport) {
	if l.app == nil {
		return
	}
	if _, shared := l.app.opener.(*RedisStore); shared {
		return // another gateway may serve it
	}
	served := make(map[string]bool)
	for h := range l.handlers {
		if s, ok := h.module.(*Server); ok {
			for _, e := range s.endpoints {
				served[e.realm.name] = true
			}
		}
	}
	for h := range l.handlers {
		p, ok := h.module.(*Protect)
		if !ok || p.basic.on(time.Now()) { // a secret is enough
			continue
		}
		for _, s := range p.sources {
			if name := s.realmName(); name != "" && !served[name] {
				report(h.place(), "no oauth_server serves the realm %s", name)
			}
		}
	}
}

func lintSecretGaps(l *linted, report lintReport) {
	now := time.Now()
	for name := range l.realms {
		for id, client := range l.realms[name].settings.Clients {
			onlySecrets := !slices.ContainsFunc(client.Auth, func(method string) bool { return !slices.Contains(secretMethods, method) })
			if client.Disabled || !onlySecrets || len(client.Secrets) == 0 {
				continue
			}
			from, until, gap := secretGap(client.Secrets, now)
			switch {
			case !gap:
			case until.IsZero():
				report(l.atClient(name, id), "all secrets of the client %s have ended", strconv.Quote(id))
			default:
				report(l.atClient(name, id), "the client %s has no valid secret from %s to %s", strconv.Quote(id), from.Format(time.RFC3339), until.Format(time.RFC3339))
			}
		}
	}
}

// secretGap returns the first time from now on in which no secret is valid, and after which one is. If
// none is valid any more, until is zero.
func secretGap(secrets []*oauth.Secret, now time.Time) (from, until time.Time, gap bool) {
	for at := now; ; {
		var end, next time.Time
		valid, forever := false, false
		for _, s := range secrets {
			switch ended := !s.Until.IsZero() && !at.Before(s.Until); {
			case ended:
			case at.Before(s.From):
				if next.IsZero() || s.From.Before(next) {
					next = s.From
				}
			default:
				valid, forever = true, forever || s.Until.IsZero()
				if end.Before(s.Until) {
					end = s.Until
				}
			}
		}
		switch {
		case forever:
			return from, until, false
		case valid:
			at = end
		default:
			return at, next, !next.IsZero() || at.Equal(now)
		}
	}
}

func lintClientsWithoutScopes(l *linted, report lintReport) {
	for name, realm := range l.realms {
		for id, c := range realm.settings.Clients {
			// One that may see others' tokens is there for that.
			if !c.Disabled && len(c.GrantTypes) > 0 && len(c.Scopes) == 0 && c.Introspect == oauth.IntrospectOwn {
				report(l.atClient(name, id), "the client %s can have no token", strconv.Quote(id))
			}
		}
	}
}

// lintRealmsWithout reports realms in use without a client that is not disabled, if they have a
// number of clients.
func lintRealmsWithout(l *linted, number func(clients int) bool, report lintReport) {
	used := make(map[string]bool)
	for h := range l.handlers {
		switch module := h.module.(type) {
		case *Server:
			for _, e := range module.endpoints {
				used[e.realm.name] = true
			}
		case *Protect:
			for _, s := range module.sources {
				used[s.realmName()] = true
			}
		}
	}
	for name, realm := range l.realms {
		clients := realm.settings.Clients
		enabled := false
		for _, c := range clients {
			enabled = enabled || !c.Disabled
		}
		if !enabled && used[name] && realm.managed == nil && number(len(clients)) {
			if len(clients) == 0 {
				report(l.atRealm(name), "the realm %s has no clients", name)
			} else {
				report(l.atRealm(name), "all clients of the realm %s are disabled", name)
			}
		}
	}
}

// endpointDemands returns what a request for the token endpoints that a handler serves must match.
func (h *lintHandler) endpointDemands() (demands, bool) {
	var paths []string
	for path, e := range h.module.(*Server).endpoints {
		if e.kind == endpointToken {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	around, known := demandsOf(h.chain())
	for i := range around {
		around[i] = append(slices.Clip(around[i]), matcherSet{"path": {list: paths}})
	}
	return around, known && len(paths) > 0
}

func lintBasicAuth(l *linted, report lintReport) {
	for h := range l.handlers {
		var special demands
		var known bool
		switch module := h.module.(type) {
		case *Server:
			special, known = h.endpointDemands()
		case *Protect:
			special, known = demandsOf(h.chain())
			known = known && module.demandsToken()
		}
		if !known {
			continue
		}
		asked, removed := false, false
		for earlier, around := range h.before {
			// Another provider may let a request in without a password.
			auth, ok := earlier.module.(*caddyauth.Authentication)
			if ok && auth.Providers["http_basic"] != nil && len(auth.Providers) == 1 {
				asked = asked || surely(around, special)
			}
			removed = removed || earlier.name == "headers" && strings.Contains(string(earlier.source()), "uthorization")
		}
		if asked && !removed {
			report(h.place(), "basic_auth comes before %s", h.name)
		}
	}
}

// demandsToken reports whether every request needs a token here.
func (p *Protect) demandsToken() bool {
	return !p.anyOptional() && !p.ReportOnly.holds() && !p.basic.on(time.Now())
}

func lintProtectedEndpoints(l *linted, report lintReport) {
	for h := range l.handlers {
		if _, ok := h.module.(*Server); !ok {
			continue
		}
		special, known := h.endpointDemands()
		if !known {
			continue
		}
		for earlier, around := range h.before {
			p, ok := earlier.module.(*Protect)
			if ok && p.demandsToken() && surely(around, special) {
				report(h.place(), "oauth_protect (%s) comes before the token endpoint", earlier.place().where())
				break
			}
		}
	}
}

// matchers yields all matchers oauth_scope, with the first handler of their route. Negated ones are
// among them.
func (l *linted) scopeMatchers(yield func(h *lintHandler, scopes MatchScope) bool) {
	for h := range l.handlers {
		if h.index > 0 {
			continue
		}
		for _, set := range h.route.match() {
			for _, scopes := range scopesIn(set) {
				if !yield(h, scopes) {
					return
				}
			}
		}
	}
}

func scopesIn(set caddy.ModuleMap) (found []MatchScope) {
	var scopes MatchScope
	if json.Unmarshal(set["oauth_scope"], &scopes) == nil && len(scopes) > 0 {
		found = append(found, scopes)
	}
	var not []caddy.ModuleMap
	if json.Unmarshal(set["not"], &not) == nil {
		for _, inner := range not {
			found = append(found, scopesIn(inner)...)
		}
	}
	return found
}

// protectsBefore returns the oauth_protect that may have let in a request that gets to the handler.
// In an error route, and in a named one, these are all of the server.
func (h *lintHandler) protectsBefore() (protects []*Protect) {
	s := h.route.server
	outermost := h.chain()[0]
	if !slices.Contains(s.routes, outermost) {
		for other := range h.route.l.handlers {
			if p, ok := other.module.(*Protect); ok && other.route.server == s {
				protects = append(protects, p)
			}
		}
		return protects
	}
	for earlier := range h.before {
		if p, ok := earlier.module.(*Protect); ok {
			protects = append(protects, p)
		}
	}
	return protects
}

func lintMatchedScopes(l *linted, report lintReport) {
	for h, scopes := range l.scopeMatchers {
		var sources []routeSource
		for _, p := range h.protectsBefore() {
			for _, s := range p.sources {
				if !slices.Contains(sources, s) {
					sources = append(sources, s)
				}
			}
		}
		if len(sources) == 0 {
			continue
		}
		clients, ok := l.clientsOf(sources)
		if !ok || len(clients.all) == 0 || len(missingOf(scopes, clients.byScope)) < len(scopes) {
			continue
		}
		what := "the scope"
		if len(scopes) > 1 {
			what = "one of the scopes"
		}
		report(h.route.place(), "oauth_scope %s: %s has %s%s", strings.Join(scopes, " "), clients, what, meant(scopes[0], clients.byScope))
	}
}

func lintUnprotectedScopes(l *linted, report lintReport) {
	for h, scopes := range l.scopeMatchers {
		if len(h.protectsBefore()) == 0 {
			report(h.route.place(), "oauth_scope %s: no oauth_protect comes before it", strings.Join(scopes, " "))
		}
	}
}

// maxCompared bounds how many routes are compared, which are as many as the square of those beside
// each other.
const maxCompared = 500_000

func lintUnreachable(l *linted, report lintReport) {
	compared := 0
	for h := range l.handlers {
		switch h.module.(type) {
		case *Protect, *Server:
		default:
			continue
		}
		chain := h.chain()
		special, known := demandsOf(chain)
		if !known {
			continue
		}
		for _, r := range chain {
			if compared += r.index; compared > maxCompared {
				return
			}
			i := slices.IndexFunc(r.beside[:r.index], func(other *lintRoute) bool {
				return (other.Terminal || other.Group != "" && other.Group == r.Group) && cover(other.demand(), special)
			})
			if i >= 0 {
				report(h.place(), "no request gets to this %s: %s takes all of them", h.name, cmp.Or(r.beside[i].first(), r.beside[i].path))
				break
			}
		}
	}
}

// first returns where the first handler of ours in a route stands, if there is one with a place.
func (r *lintRoute) first() string {
	for _, h := range r.handlers {
		if at := h.place().at; at != "" {
			return "the route with " + h.name + " in " + at
		}
		for _, inside := range h.routes {
			if at := inside.first(); at != "" {
				return at
			}
		}
	}
	return ""
}

func lintIssuers(l *linted, report lintReport) {
	for name, realm := range l.realms {
		if realm.issuer == nil {
			continue
		}
		host := realm.issuer.Hostname()
		var sites []string
		anywhere := false
		for h := range l.handlers {
			s, ok := h.module.(*Server)
			if !ok {
				continue
			}
			serves := false
			for _, e := range s.endpoints {
				serves = serves || e.realm == realm
			}
			if !serves {
				continue
			}
			var hosts []string
			for _, r := range h.chain() {
				if own := hostsOf(r.MatcherSets); len(own) > 0 {
					hosts = own
				}
			}
			matches := func(pattern string) bool { return strings.Contains(pattern, "{") || hostCovers(pattern, host) }
			anywhere = anywhere || len(hosts) == 0 || slices.ContainsFunc(hosts, matches) || h.inNamedRoute()
			sites = append(sites, hosts...)
		}
		if !anywhere && len(sites) > 0 {
			report(l.atRealm(name), "the issuer of the realm %s is at the host %s, and its oauth_server is in the site %s", name, host, strings.Join(sites, ", "))
		}
	}
}

// inNamedRoute reports whether the handler is in a named route: any site may invoke it.
func (h *lintHandler) inNamedRoute() bool {
	outermost := h.chain()[0]
	for _, named := range outermost.server.named {
		if named == outermost {
			return true
		}
	}
	return false
}

func lintExpectations(l *linted, report lintReport) {
	if l.policy == nil {
		return // a start looks at them by itself
	}
	for _, name := range sortedKeys(l.app.Realms) {
		realm := l.app.Realms[name]
		for i := range realm.Expect {
			e := &realm.Expect[i]
			err := l.policy.holds(context.Background(), name, e)
			if err == nil {
				continue
			}
			place := l.atRealm(name)
			place.at, place.path = cmp.Or(e.At, place.at), place.path+"/expect/"+strconv.Itoa(i)
			// The error shows the whole way. Its second line is the request.
			text := "the expectation '" + e.String() + "' is broken"
			if lines := strings.Split(err.Error(), "\n"); e.Method == anyOfMethods && len(lines) > 1 {
				text += " by " + lines[1]
			}
			report(place, "%s", text)
		}
	}
}
