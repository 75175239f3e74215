package caddyoauth

import (
	"bytes"
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/introspect"
)

// journey is how a walk went.
type journey struct {
	*watcher
	end    ending
	cause  access.Cause // of a refusal by an oauth_protect
	to     string
	others []string // handlers that decide something and were not followed
}

// ending is how a walk ended, the best first.
type ending int

const (
	endsSomewhere ending = iota // a backend, a file, an answer
	endsInError                 // an answer with an error, by Caddy itself
	endsNowhere                 // Caddy's empty answer
	endsRefused                 // by an oauth_protect
)

func (j *journey) refused() bool { return j.end == endsRefused }

// foreign returns the sources of tokens of which nobody here knows what they have, and that an
// oauth_protect accepts.
func (j *journey) foreign() (sources []string) {
	for _, p := range j.protects {
		for _, source := range p.sources {
			if label := j.unknownOf(source); label != "" {
				sources = union(sources, []string{label})
			}
		}
	}
	return sources
}

// unknownOf returns what to call a source if nobody knows what its tokens have: one from elsewhere, or a
// realm to which clients may be added at any time. It is empty for the others.
func (s *survey) unknownOf(source routeSource) string {
	switch realm := s.policy.app.realms[source.realmName()]; {
	case realm == nil:
		return source.label()
	case realm.managed != nil:
		return managedClientsOf + realm.name
	}
	return ""
}

// managedClientsOf is what the managed clients of a realm are called, with its name behind it.
const managedClientsOf = "managed clients of "

// answering makes an answer of the journeys of everybody.
type answering struct {
	*survey
	anonymous *journey
	clients   []*journey // by class; none if anonymous got in
	sources   []string
	foreign   []*journey // by source
}

func (f *answering) answer() *routeAnswer {
	j := f.anonymous
	a := &routeAnswer{}
	switch {
	case j.endpoint != nil && j.endpoint.kind.published():
		a.Who, a.To = routeOpen, []string{j.to}
	case j.endpoint != nil && j.endpoint.kind == endpointTokenInfo:
		// Its realm need not have clients: it knows the tokens of others, too.
		a.Who, a.Why, a.To = routeEndpoint, "whoever has a token", []string{j.to}
	case j.endpoint != nil:
		a.Who, a.To = routeEndpoint, []string{j.to}
		able := 0
		for _, client := range j.endpoint.realm.settings.Clients {
			if !client.Disabled && (j.endpoint.kind != endpointToken || len(client.GrantTypes) > 0) {
				able++
			}
		}
		if able == 0 && j.endpoint.realm.managed == nil {
			a.Who, a.Why = routeNobody, "realm "+j.endpoint.realm.name+" has no client that can authenticate"
		}
	case j.refused(), j.end != endsSomewhere && slices.ContainsFunc(slices.Concat(f.clients, f.foreign), f.getsIn):
		f.judge(a)
	case j.end == endsNowhere:
		a.Who, a.Why = routeAnswered, "no handler answers"
	case j.end == endsInError:
		a.Who, a.To = routeAnswered, []string{j.to}
	default:
		a.Who, a.To, a.Rules = routeOpen, []string{j.to}, places(j)
		a.Notes = notes(j)
		for _, other := range slices.Concat(f.clients, f.foreign) {
			if f.getsIn(other) {
				a.To = union(a.To, other.goals())
			}
		}
	}
	for _, j := range slices.Concat([]*journey{j}, f.clients, f.foreign) {
		if j.vague {
			return &routeAnswer{Who: routeUnknown, Why: "decided by a method that comes from a placeholder", Rules: places(j)}
		}
	}
	if j.refused() && j.leak != "" {
		a.Who, a.Why, a.To = routeOpen, "", union(a.To, []string{j.leak})
		a.Notes = append(a.Notes, "error routes send what is refused to "+j.leak)
	}
	return f.qualify(a)
}

// getsIn reports whether the visitor of a journey gets in where others don't.
func (f *answering) getsIn(j *journey) bool {
	return j.end == endsSomewhere || f.anonymous.refused() && !j.refused()
}

// judge says who gets in if a token is needed.
func (f *answering) judge(a *routeAnswer) {
	for _, j := range f.clients {
		if !f.getsIn(j) {
			continue
		}
		a.To, a.Rules, a.Notes = union(a.To, j.goals()), union(a.Rules, places(j)), union(a.Notes, notes(j))
	}
	for _, client := range f.survey.clients {
		if f.getsIn(f.clients[client.class]) {
			a.Clients = append(a.Clients, client.routeClient)
		}
	}
	for i, j := range f.foreign {
		if !f.getsIn(j) {
			continue
		}
		realm, _ := strings.CutPrefix(f.sources[i], managedClientsOf)
		if realm == f.sources[i] {
			realm = ""
		}
		a.Foreign = append(a.Foreign, routeForeign{Source: f.sources[i], Realm: realm, Needs: j.needs})
		a.To, a.Rules, a.Notes = union(a.To, j.goals()), union(a.Rules, places(j)), union(a.Notes, notes(j))
	}
	a.Who = routeClients
	if len(a.Clients)+len(a.Foreign) == 0 {
		a.Who, a.Why = routeNobody, f.whyNobody()
		a.Rules = places(f.closest())
	}
}

// closest returns the journey that came the furthest before it was refused.
func (f *answering) closest() *journey {
	best := f.anonymous
	rank := func(j *journey) int {
		switch j.cause {
		case access.CauseMissing:
			return 0
		case access.CauseScope, access.CauseClaim:
			return 3
		case introspect.CauseAudience:
			return 2
		}
		return 1
	}
	for _, j := range slices.Concat(f.clients, f.foreign) {
		if cmp.Or(cmp.Compare(len(j.protects), len(best.protects)), cmp.Compare(rank(j), rank(best))) > 0 {
			best = j
		}
	}
	return best
}

// whyNobody says what it would take to get in.
func (f *answering) whyNobody() string {
	best := f.closest()
	last, rule := best.protects[len(best.protects)-1], best.rules[len(best.rules)-1]
	// Clients that this rule can be about.
	var clients []int
	for i, class := range f.classes {
		if slices.ContainsFunc(last.sources, func(s routeSource) bool { return s.realmName() == class.realm }) {
			clients = append(clients, i)
		}
	}
	client := func(i int) clientClass { return f.classes[i] }
	scopes := func(i int) []string { return client(i).Scopes }
	audience := func(i int) []string { return client(i).Audience }
	if !slices.ContainsFunc(clients, func(i int) bool { return !client(i).Disabled && len(client(i).GrantTypes) > 0 }) {
		if len(clients) == 0 {
			return "realm " + last.label + " has no clients"
		}
		return "realm " + last.label + " has no client that can fetch tokens"
	}
	// lacks returns who lacks a scope or an audience: nobody, if one has it that can fetch tokens.
	lacks := func(has func(client int) []string, want string) (who string) {
		who = "no client has"
		for _, i := range clients {
			switch {
			case !slices.Contains(has(i), want):
			case client(i).Disabled || len(client(i).GrantTypes) == 0:
				who = "only clients that can't fetch tokens have"
			default:
				return ""
			}
		}
		return who
	}
	switch {
	case len(best.protects) > 1 && best.cause == access.CauseOtherRealm:
		return "no token is good for all the rules"
	case best.cause == access.CauseScope:
		for ; rule != nil; rule = rule.Also {
			for _, scope := range rule.Scopes {
				if who := lacks(scopes, scope); who != "" {
					return who + " the scope " + scope
				}
			}
			if len(rule.AnyScope) > 0 && !slices.ContainsFunc(rule.AnyScope, func(scope string) bool { return lacks(scopes, scope) == "" }) {
				return "no client has the scope " + strings.Join(rule.AnyScope, " or ")
			}
		}
		return "no client has all the scopes"
	case best.cause == access.CauseClaim:
		return "no client has the claims"
	case best.cause == introspect.CauseAudience:
		if len(rule.Audience) > 0 && !slices.ContainsFunc(rule.Audience, func(text string) bool { return lacks(audience, text) == "" }) {
			return "no client has the audience " + strings.Join(rule.Audience, " or ")
		}
		return "no client has the audience and all else"
	}
	return "no client that could get in can fetch a token"
}

// qualify adds what the rules are marked with, and who else decides.
func (f *answering) qualify(a *routeAnswer) *routeAnswer {
	var others []string
	for _, j := range slices.Concat([]*journey{f.anonymous}, f.clients, f.foreign) {
		if j == f.anonymous || !j.refused() {
			others = union(others, j.others)
		}
	}
	auth := slices.ContainsFunc(others, func(name string) bool { return name == "authentication" || name == "reverse_proxy" })
	for i, name := range others {
		if names := map[string]string{"authentication": "basic_auth", "reverse_proxy": "forward_auth"}[name]; names != "" {
			others[i] = names
		}
	}
	switch list := strings.Join(others, ", "); {
	case list == "":
	case auth && a.Who == routeOpen:
		a.Who, a.Why = routeUnknown, "decided by "+list
	default:
		a.Notes = append(a.Notes, list+" may refuse, too")
	}
	return a
}

func (j *journey) goals() []string {
	if j.end == endsNowhere {
		return []string{"nothing"}
	}
	return []string{j.to}
}

// places returns where the oauth_protect of a journey stand.
func places(j *journey) []string {
	var places []string
	for _, p := range j.protects {
		places = union(places, []string{p.refusals.rule})
	}
	return places
}

// notes returns what is special about the rules that a journey has passed.
func notes(j *journey) (notes []string) {
	for i, p := range j.protects {
		switch {
		case !p.ReportOnly.holds():
			if j.rules[i].Optional {
				notes = union(notes, []string{"a token is optional"})
			}
		case p.ReportOnly.Until.IsZero():
			notes = union(notes, []string{"report_only: whom the rule refuses gets in, too"})
		default:
			notes = union(notes, []string{"report_only: whom the rule refuses gets in, too, until " + p.ReportOnly.Until.Format(time.RFC3339)})
		}
		if p.basic.on(time.Now()) {
			notes = union(notes, []string{"basic: also with client ID and secret"})
		}
	}
	return notes
}

// journey says how a walk went that the watcher has watched.
func (p *watcher) journey(w *walk) *journey {
	j := &journey{watcher: p, end: endsNowhere}
	end := w.Outcome
	if end.AsIf != nil {
		end = *end.AsIf
	}
	for _, step := range w.Steps {
		_, protects := step.handler.(*Protect)
		switch {
		case step.Did == didIgnore && protects:
			// Only tokens from elsewhere could get in, and the visitor has none.
			j.end = endsRefused
			return j
		case step.Did == didIgnore:
			j.others = union(j.others, []string{step.Handler})
		case step.Did == didRefuse && protects && end.Kind == outcomeRefuse:
			j.end, j.cause = endsRefused, end.Cause
			return j
		case step.Did == didRefuse:
			j.to, j.end = "respond "+strconv.Itoa(end.Status), endsInError
			return j
		case step.Did == didAnswer || step.Did == didForward:
			if step.handler == nil {
				j.to, j.end = "error "+strconv.Itoa(end.Status), endsInError // of a matcher
				continue
			}
			j.to, j.end = p.goal(p.factsOf(step.handler))
		}
	}
	return j
}

// goal says where a handler sends requests.
func (p *watcher) goal(last *handlerFacts) (string, ending) {
	if _, ok := last.handler.(*Server); ok {
		if p.endpoint == nil {
			return "respond 404", endsInError // it looks like an endpoint
		}
		kinds := map[endpointKind]string{endpointToken: "token endpoint", endpointIntrospect: "introspection endpoint", endpointRevoke: "revocation endpoint", endpointTokenInfo: "tokeninfo endpoint", endpointAuthorize: "authorization endpoint"}
		if p.endpoint.kind == endpointMetadata {
			if p.endpoint.metadata == nil {
				return "respond 404", endsInError
			}
			return "metadata of " + p.endpoint.realm.name, endsSomewhere
		}
		if p.endpoint.kind == endpointKeys {
			return "keys of " + p.endpoint.realm.name, endsSomewhere
		}
		return kinds[p.endpoint.kind] + " of " + p.endpoint.realm.name, endsSomewhere
	}
	var config struct {
		Upstreams []struct{ Dial string }
		Dynamic   json.RawMessage `json:"dynamic_upstreams"`
		Root      string
		Status    any `json:"status_code"`
		Headers   http.Header
		Abort     bool
	}
	_ = json.Unmarshal(last.config, &config) // what isn't like Caddy's own is called by its name
	status := 0
	switch s := config.Status.(type) {
	case float64:
		status = int(s)
	case string:
		status, _ = strconv.Atoi(s) // a placeholder may be anything
	}
	switch last.name {
	case "reverse_proxy":
		var to []string
		for _, upstream := range config.Upstreams {
			to = append(to, upstream.Dial)
		}
		if len(config.Dynamic) > 0 && !bytes.Equal(config.Dynamic, []byte("null")) {
			to = append(to, "dynamic upstreams")
		}
		return strings.Join(to, ", "), endsSomewhere
	case "file_server":
		root := config.Root
		if root == "" || root == "{http.vars.root}" {
			root = cmp.Or(p.root, ".")
		}
		return "files in " + root, endsSomewhere
	case "static_response":
		switch {
		case config.Abort:
			return "abort", endsInError
		case status >= 400:
			return "respond " + strconv.Itoa(status), endsInError
		case len(config.Headers["Location"]) > 0:
			return "redirect to " + strings.ReplaceAll(config.Headers["Location"][0], "{http.request.", "{"), endsSomewhere
		}
		return "respond " + strconv.Itoa(cmp.Or(status, 200)), endsSomewhere
	case "error":
		return "error " + strconv.Itoa(cmp.Or(status, 500)), endsInError
	}
	return last.name, endsSomewhere
}
