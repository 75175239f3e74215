package caddyoauth

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// How our own handlers answer a question: as copies of themselves. A copy runs the same code as the
// handler, so it can't decide otherwise. It has another app, whose realms and counts are nobody's;
// other sources of tokens; and no log.

// supposedApp returns the app for questions about clients: each realm has an engine that supposes
// tokens and has no store.
func supposedApp(app *App) (*App, error) {
	started := &running{ready: make(chan struct{})}
	close(started.ready)
	return app.forQuestions(started, func(realm *servedRealm) error {
		settings := realm.settings
		settings.Store, settings.Keys, settings.Cache, settings.Coherent, settings.Hasher, settings.Failures = nil, nil, nil, nil, nil, nil
		settings.Inventory = nil
		shared := oauth.Shared{Key: make([]byte, 32), Generations: make(map[string]uint64)}
		if _, err := rand.Read(shared.Key); err != nil {
			return err
		}
		for id := range settings.Clients {
			shared.Generations[id] = 0
		}
		realm.engine = oauth.New(settings)
		return realm.engine.Share(shared)
	})
}

// inquiringApp returns the app for questions about a token: that of the running gateway, whose
// engines know what they have issued, without its counts.
func inquiringApp(app *App) *App {
	inquiring, _ := app.forQuestions(app.run, func(*servedRealm) error { return nil })
	return inquiring
}

// equip gives the walk the token of a visitor, and what its handlers find out about tokens from. The
// token is empty for a client that can have none.
func (w *walker) equip(who visitor, scopes []string) string {
	if who.token != nil {
		w.app, w.source = inquiringApp(w.p.app), w.inquiring
		return who.token.Text()
	}
	w.app = w.p.supposed
	realm := w.app.realms[who.realm]
	token, facts, err := realm.engine.Suppose(who.client, scopes)
	if err != nil {
		w.Result.Token = fmt.Sprintf("none: client '%s' can have none, because %s", who.client, err)
		w.source = w.nobodys
		return ""
	}
	w.Result.Token = fmt.Sprintf("the best of client '%s' of realm %s: scopes %s", who.client, who.realm, strings.Join(scopes, " "))
	if audience := realm.settings.Clients[who.client].Audience; len(audience) > 0 {
		w.Result.Token += "; audience " + strings.Join(audience, " ")
	}
	w.source = func(s routeSource) routeSource {
		switch s := s.(type) {
		case *servedRealm:
			about := introspect.InactiveBecause(introspect.CauseForged)
			if s.name == who.realm {
				about = facts
			}
			return supposedSource{w.app.realms[s.name], about}
		default:
			return unaskedSource{s, w}
		}
	}
	return token.Text()
}

// nobodys is what routes ask about tokens that nobody is said to have.
func (w *walker) nobodys(s routeSource) routeSource { return unaskedSource{s, w} }

// supposedSource is a realm that knows one token, which it has supposed.
type supposedSource struct {
	*servedRealm
	facts *introspect.Facts
}

func (s supposedSource) ask(context.Context, *introspect.Token, time.Duration) (*introspect.Facts, error) {
	return s.facts, nil
}

func (s supposedSource) remembered(*introspect.Token, time.Duration) (*introspect.Facts, bool) {
	return s.facts, s.facts.Active
}

// unaskedSource is a source that only a running gateway could ask.
type unaskedSource struct {
	routeSource
	w *walker
}

func (s unaskedSource) recognizes(token *introspect.Token) Recognition {
	if s.realmName() != "" { // no realm here knows a token that nobody has
		return PerhapsMine
	}
	return s.routeSource.recognizes(token)
}

func (s unaskedSource) ask(context.Context, *introspect.Token, time.Duration) (*introspect.Facts, error) {
	s.w.unasked = append(s.w.unasked, s.label())
	return nil, introspect.ErrNotAsked
}

func (s unaskedSource) remembered(*introspect.Token, time.Duration) (*introspect.Facts, bool) {
	return nil, false
}

// inquiring is how routes ask about a token of a running gateway.
func (w *walker) inquiring(s routeSource) routeSource { return inquiringSource{s, w} }

// inquiringSource asks what the source would ask, and leaves no trace.
type inquiringSource struct {
	routeSource
	w *walker
}

// lookup returns the source as the cache has it.
func (s inquiringSource) lookup() *introspect.CachedSource {
	if realm, ok := s.routeSource.(*servedRealm); ok {
		return realm.engine.Tokens()
	}
	return s.routeSource.(*usedSource).lookup
}

// own is like usedSource.own, without its warning.
func (s inquiringSource) own(facts *introspect.Facts) *introspect.Facts {
	if used, ok := s.routeSource.(*usedSource); ok && !used.speaksFor(facts) {
		return facts.Refused(introspect.CauseIssuer)
	}
	return facts
}

func (s inquiringSource) ask(ctx context.Context, token *introspect.Token, maxAge time.Duration) (*introspect.Facts, error) {
	facts, err := s.lookup().Inquire(ctx, token, maxAge, func() {
		what := s.label()
		if s.realmName() != "" {
			what = "the store of realm " + what
		}
		s.w.Result.Asked = append(s.w.Result.Asked, what)
	})
	if err != nil {
		s.w.unasked = append(s.w.unasked, s.label())
		return nil, err
	}
	return s.own(facts), nil
}

func (s inquiringSource) remembered(token *introspect.Token, maxAge time.Duration) (*introspect.Facts, bool) {
	facts, ok := s.lookup().Known(token, maxAge)
	if !ok {
		return nil, false
	}
	return s.own(facts), true
}

// quiet returns a log that writes nothing, and tells asked what would be counted.
func quiet(asked func(access.Cause)) *refusalLog {
	return &refusalLog{logger: zap.NewNop(), asked: asked}
}

// noted notes in the step at i what a handler refuses or removes without a look at any token.
func (w *walker) noted(i int) *refusalLog {
	return quiet(func(cause access.Cause) {
		switch cause {
		case strippedIdentity:
			w.say(i, "removed from the request: headers that say who is calling")
		case strippedUpgrade:
			w.say(i, "removed from the request: a switch to another protocol")
		default:
			w.Result.Steps[i].Cause = cause
		}
	})
}

// protect asks an oauth_protect.
func (w *walker) protect(rw http.ResponseWriter, r *http.Request, h *Protect, i int, next caddyhttp.Handler) error {
	silent := w.p.silent[h]
	if silent == nil {
		copied := *h
		silent = &copied
		silent.logger, silent.trouble = zap.NewNop(), zap.NewNop
		silent.prepareRejections(w.p.counts)
		w.p.silent[h] = silent
	}
	p := *silent
	p.app, p.refusals, p.sources = w.app, w.noted(i), nil
	for _, s := range h.sources {
		p.sources = append(p.sources, w.source(s))
	}
	if w.watcher != nil {
		if allowed, decided := w.watcher.lets(h, r); allowed {
			return next.ServeHTTP(rw, r)
		} else if decided {
			return caddyhttp.Error(http.StatusUnauthorized, nil)
		}
	}
	w.unasked = nil
	p.asked = func(b *bearer, decision access.Decision) {
		step := &w.Result.Steps[i]
		step.Cause, step.Want, step.Has = decision.Cause, decision.Want, decision.Has
		w.say(i, wants(p.ruleFor(r.Method)))
		if p.basic.on(time.Now()) {
			w.say(i, p.basic.told())
		}
		switch {
		case b != nil && b.basic != nil && decision.Cause == access.CauseOutage:
			w.say(i, "a question checks no secrets")
			w.undecided(i)
		case len(w.unasked) > 0 && decision.Cause == access.CauseOutage:
			w.say(i, "nobody can tell here what the token means: not asked: "+strings.Join(w.unasked, ", "))
			w.undecided(i)
		case b == nil && decision.Allowed:
			w.say(i, "passes without a token, unnamed: optional")
		case b != nil && b.facts != nil && b.facts.Active:
			step.Has = loggedTexts(b.facts.Scopes)
			if decision.Cause == introspect.CauseAudience {
				step.Has = loggedTexts(b.facts.Audience)
			}
			w.knows(b)
			if b.facts.Confirmation.Certificate != "" {
				w.say(i, "the token is bound to a certificate, which the request is assumed to show")
			}
			if decision.Allowed && (b.facts.Confirmation.Key != "" || p.ruleFor(r.Method).KeyBound) {
				w.say(i, "the token is bound to a key, and the request is assumed to have its DPoP proof")
			}
			if decision.Allowed && p.asserter != nil {
				w.say(i, p.asserter.told())
			}
		case b != nil && b.facts != nil:
			if was := b.facts.Was(); was != nil {
				w.say(i, "it was a token of client '"+headerText(was.ClientID)+"'")
			}
		}
		if decision.Claim != "" {
			w.say(i, "the claim is "+decision.Claim)
		}
	}
	return p.ServeHTTP(rw, r, next)
}

// knows says whose token the request has, once a source has told.
func (w *walker) knows(b *bearer) {
	if w.Result.Token != "" {
		return
	}
	parts := []string{"client '" + loggedText(headerText(b.facts.ClientID)) + "'"}
	if b.realm != "" {
		parts = append(parts, "realm "+b.realm)
	} else if b.facts.Issuer != "" {
		parts = append(parts, "issuer "+loggedText(headerText(b.facts.Issuer)))
	}
	parts = append(parts, "scopes "+strings.Join(loggedTexts(b.facts.Scopes), " "))
	if len(b.facts.Audience) > 0 {
		parts = append(parts, "audience "+strings.Join(loggedTexts(b.facts.Audience), " "))
	}
	if !b.facts.Expiry.IsZero() {
		parts = append(parts, "expires "+b.facts.Expiry.UTC().Format(time.RFC3339))
	}
	w.Result.Token = strings.Join(parts, "; ")
}

// wants says what a rule asks for.
func wants(rule *access.Rule) string {
	var parts []string
	add := func(what string, values []string) {
		if len(values) > 0 {
			parts = append(parts, what+" "+strings.Join(values, " "))
		}
	}
	add("scopes", rule.Scopes)
	add("any scope of", rule.AnyScope)
	add("any audience of", rule.Audience)
	for _, claim := range rule.Claims {
		add("claim "+claim.Name, claim.Values)
	}
	text := "wants " + strings.Join(parts, "; ")
	if len(parts) == 0 {
		text = "wants a valid token"
	}
	if rule.KeyBound {
		text += ", bound to a key"
	}
	if rule.Optional {
		text += "; a token is optional"
	}
	if rule.Also != nil {
		// The method differs only by case from one that has a rule of its own.
		text += "; and " + wants(rule.Also)
	}
	return text
}

// guard asks an oauth_guard.
func (w *walker) guard(rw http.ResponseWriter, r *http.Request, h *Guard, i int, next caddyhttp.Handler) error {
	g := *h
	g.app, g.refusals = w.app, w.noted(i)
	return g.ServeHTTP(rw, r, next)
}

// endpoints asks an oauth_server. It answers no request to an endpoint: that is known once the
// endpoint has got it.
func (w *walker) endpoints(rw http.ResponseWriter, r *http.Request, h *Server, i int, next caddyhttp.Handler) error {
	s := *h
	s.app, s.refusals, s.logger = w.app, w.noted(i), zap.NewNop()
	held := s.takeBack(r)
	e, missing := s.find(r)
	if e == nil {
		if missing != "" && !s.servedElsewhere(r) {
			w.say(i, "no endpoint at this path, which is that of a realm that is not served")
			w.answered(i, http.StatusNotFound)
			return nil
		}
		kind, _ := s.misdirected(r)
		if kind != "" && !s.servedElsewhere(r) {
			w.say(i, "no endpoint at this path, which looks like one")
			w.answered(i, http.StatusNotFound)
			return nil
		}
		if kind != "" || missing != "" || held {
			without, err := s.holdBack(rw, r)
			if err != nil {
				return err // can't happen: a question has no body
			}
			r = without
		}
		return s.passOn(rw, r, next)
	}
	w.say(i, "the "+string(e.kind)+" endpoint of realm "+e.realm.name)
	if s.servePublic(rw, r, e) {
		w.answered(i, w.status)
		return nil
	}
	status, refusal := s.unfit(r, e)
	if refusal != nil {
		w.say(i, refusal.Description)
	}
	w.answered(i, status) // 0 if it depends on the body
	return nil
}

// strips asks an earlyStrip, which nobody has configured: it only shows if it does something.
func (w *walker) strips(rw http.ResponseWriter, r *http.Request, e *earlyStrip, next caddyhttp.Handler) error {
	i := w.step(e, w.path)
	early := &earlyStrip{app: w.app, refusals: w.noted(i), marks: e.marks}
	w.Result.Steps[i].Handler = "(before all routes)"
	if !early.admit(rw, r) {
		w.refuse(i)
		return nil
	}
	if w.Result.Steps[i].Text == "" {
		w.Result.Steps = w.Result.Steps[:i]
	} else {
		w.Result.Steps[i].Did = didPass
	}
	if resource := e.resourceAt(r); resource != nil {
		i := w.step(e, w.path)
		w.Result.Steps[i].Handler = "(before all routes)"
		w.say(i, "the document about "+resource.identifier+", which a 'resource' of oauth_protect asks for")
		resource.serve(rw, r)
		w.answered(i, w.status)
		return nil
	}
	return w.routes(e.routes, w.path+"/routes", next).ServeHTTP(rw, r)
}

// whoPasses returns the clients whose best token gets a request through, as realm/client, and how
// many clients were asked. It stops after most.
func (p *policy) whoPasses(ctx context.Context, q question, most int) (names []string, asked int, err error) {
	for _, realm := range sortedKeys(p.app.realms) {
		for _, id := range slices.Sorted(maps.Keys(p.app.realms[realm].settings.Clients)) {
			if asked == most {
				return names, asked, nil
			}
			if err := ctx.Err(); err != nil {
				return nil, asked, err
			}
			asked++
			q.who = visitor{realm: realm, client: id}
			walk, err := p.ask(ctx, q)
			if err != nil {
				return nil, asked, err
			}
			if walk.Outcome.passes() {
				names = append(names, clientName(realm, id))
			}
		}
	}
	return names, asked, nil
}
