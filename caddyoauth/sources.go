package caddyoauth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// TokenSource is a module in the namespace oauth.sources: a way to find out what a token
// means, for the sources of oauth_protect. The app caches its answers.
//
// A module is provisioned with its configuration, and must not open or contact anything then.
// All methods are called later, and must be safe for concurrent use.
type TokenSource interface {
	// Label is what people call the source, such as its URL, in metrics and at the admin
	// endpoint. It comes from the configuration and holds no secret.
	Label() string

	// SourceKey distinguishes the source from all others. Two sources with the same key are
	// one: they share one open source and what the cache remembers, on all routes and across
	// reloads. So the key must cover everything that decides what a token means, secrets as a
	// digest. It may appear in logs.
	SourceKey() string

	// OpenSource starts the source. It doesn't wait for the network. If the result has a
	// method Close, that is called when no configuration uses the source any more.
	OpenSource() (introspect.Source, error)

	// Memory says how the cache may use the source's answers. A MaxAge of zero stands for the
	// app's own, which is also the maximum. StaleFor helps against errors that are
	// introspect.ErrOutage.
	Memory() introspect.SourceConfig

	// Recognizes reports whether the token can be this source's. It looks at nothing but the
	// token, and takes microseconds. What it reads stays noted in the token, so that it is
	// read only once a request.
	Recognizes(token *introspect.Token) Recognition
}

// Recognition is what a source says about a token at first sight.
type Recognition int

const (
	// NotMine is for tokens that the source can't know.
	NotMine Recognition = iota
	// PerhapsMine is for tokens that the source can judge only by asking. Such sources are
	// asked one after the other, about tokens that no source claims.
	PerhapsMine
	// Mine is for tokens that name this source themselves. No other source is asked, except
	// those with the same Label that say Mine too.
	Mine
)

// routeSource is a source of tokens as routes use it: a realm of this gateway (servedRealm),
// or a source of tokens from elsewhere (usedSource). Its methods are safe for concurrent use.
// Those that take a token are for requests, after the app's Start.
type routeSource interface {
	// label is what people call the source. Sources with the same label are rivals: they can
	// claim the same tokens, and each makes its own demands.
	label() string
	// realmName is the realm whose tokens the source knows; empty for tokens from elsewhere.
	realmName() string
	// near reports whether the source is on this machine. It may then be this gateway itself,
	// and may see tokens that were issued here.
	near() bool
	// recognizes reports at first sight whether the token can be this source's. See
	// TokenSource.
	recognizes(token *introspect.Token) Recognition
	// ask returns what the token means, from the cache or from the source. See
	// introspect.CachedSource.LookupWithin.
	ask(ctx context.Context, token *introspect.Token, maxAge time.Duration) (*introspect.Facts, error)
	// remembered returns what ask would answer from the cache. See
	// introspect.CachedSource.Remembered.
	remembered(token *introspect.Token, maxAge time.Duration) (*introspect.Facts, bool)
}

// usedSource is a TokenSource of this configuration, on one route or more.
type usedSource struct {
	module TokenSource
	// The app's Start sets these.
	lookup *introspect.CachedSource
	source introspect.Source // what lookup asks
	issuer string            // whose tokens it knows, if the configuration says so
	taken  map[string]bool   // the issuers of all sources and realms

	routes int      // how many oauth_protect use it
	stale  lastTime // when the cache answered in its place, because it could not be asked

	warn sync.Once // about the first token that names one of the other issuers
}

// useKey distinguishes the uses of sources. The same source with other bounds on memory, or
// with another timeout, is another use.
func useKey(module TokenSource) string {
	memory := module.Memory()
	key := fmt.Sprintf("%s\x00%d %d %d", module.SourceKey(), memory.MaxAge, memory.NegativeAge, memory.StaleFor)
	if remote, ok := module.(*IntrospectSource); ok {
		key += fmt.Sprintf(" %d", remote.Timeout)
	}
	return key
}

// foreignName is what the cache knows a source by.
func foreignName(key string) string { return introspect.CacheName("foreign", key) }

func (u *usedSource) label() string     { return u.module.Label() }
func (u *usedSource) realmName() string { return "" }

// near goes by the scheme: http is accepted for loopback hosts only.
func (u *usedSource) near() bool { return strings.HasPrefix(u.module.Label(), "http:") }

func (u *usedSource) recognizes(token *introspect.Token) Recognition {
	return u.module.Recognizes(token)
}

func (u *usedSource) ask(ctx context.Context, token *introspect.Token, maxAge time.Duration) (*introspect.Facts, error) {
	facts, err := u.lookup.LookupWithin(ctx, token, maxAge)
	if err != nil {
		return nil, err
	}
	return u.own(facts), nil
}

func (u *usedSource) remembered(token *introspect.Token, maxAge time.Duration) (*introspect.Facts, bool) {
	facts, ok := u.lookup.Remembered(token, maxAge)
	if !ok {
		return nil, false
	}
	return u.own(facts), true
}

// own returns the facts if the source may speak for their issuer, and refuses them if not:
// an answer may name any issuer, and the backend believes it.
func (u *usedSource) own(facts *introspect.Facts) *introspect.Facts {
	if u.speaksFor(facts) {
		return facts
	}
	u.warn.Do(func() {
		caddy.Log().Named("oauth.sources").Warn("refusing a token, because its source names an issuer that belongs to another source or realm; if this source speaks for that issuer, give it the option issuer",
			zap.String("source", u.module.Label()), zap.String("issuer", facts.Issuer))
	})
	return facts.Refused(introspect.CauseIssuer)
}

// speaksFor reports whether the source may say such facts.
func (u *usedSource) speaksFor(facts *introspect.Facts) bool {
	return !facts.Active || facts.Issuer == u.issuer || !u.taken[facts.Issuer]
}

// mayHaveIssued reports whether the token has a form that only tokens of gateways like this one have,
// or is a JWT that a realm of this gateway issued or that says so.
func (a *App) mayHaveIssued(token *introspect.Token) bool {
	if oauth.HasForm(token.Text()) {
		return true
	}
	for _, r := range a.realms {
		if r.engine == nil {
			continue // the app opened no store, so nothing is issued here
		}
		if minted, err := r.engine.Minted(token); minted || err != nil {
			return true
		}
	}
	return false
}

// minted reports whether a realm of this gateway issued the token, be it still good or not.
// The error means that nobody can tell yet.
func (a *App) minted(token *introspect.Token) (_ bool, unsure error) {
	for _, r := range a.realms {
		if r.engine == nil {
			continue // the app opened no store, so nothing is issued here
		}
		minted, err := r.engine.Minted(token)
		if minted {
			return true, nil
		}
		if err != nil {
			unsure = err
		}
	}
	return false, unsure
}

// whyNot returns why sources of a route don't accept a token: the cause that they found, unless none
// of them could say more than that the token isn't one of theirs or that it doesn't know it. It is
// called for requests that are refused, and for introspections of tokens that are not good.
//
// For a token of our form it computes a MAC for each realm, whatever the cause and whoever issued the
// token, so that the time of an answer doesn't tell one from another. That is a microsecond a realm.
// A JWT says itself who issued it.
func (a *App) whyNot(sources []routeSource, token *introspect.Token, cause introspect.Cause) introspect.Cause {
	silent := cause == introspect.CauseNoSource || cause == introspect.CauseForged || cause == introspect.CauseUnknown || cause == introspect.CauseUnknownKey
	if !a.mayHaveIssued(token) {
		// Only a source of tokens from elsewhere goes by the issuer, and it has read that already.
		elsewhere := func(s routeSource) bool { return s.realmName() == "" }
		if cause == introspect.CauseNoSource && slices.ContainsFunc(sources, elsewhere) && token.UnverifiedIssuer() != "" {
			return introspect.CauseIssuer
		}
		return cause
	}
	accepted, minted := false, false
	for _, r := range a.realms {
		if r.engine == nil {
			continue // the app opened no store, so nothing is issued here
		}
		anew := introspect.NewToken(token.Text()) // in which no MAC is noted
		if ok, _ := r.engine.Minted(&anew); ok {
			minted = true
			accepted = accepted || slices.ContainsFunc(sources, func(s routeSource) bool { return s.realmName() == r.name })
		}
	}
	switch {
	case !silent:
		return cause
	case accepted && oauth.HasForm(token.Text()): // and not recognized
		return introspect.CauseExpired
	case accepted:
		return cause // of a JWT that only says so: its key is gone, or was never ours
	case minted:
		return access.CauseOtherRealm
	case cause == introspect.CauseUnknownKey:
		return cause
	case cause == introspect.CauseUnknown:
		return cause // another server was asked: it may issue tokens of our form
	}
	return introspect.CauseForged
}

// finding is what a route found out about a token.
type finding struct {
	facts *introspect.Facts
	// realm is the realm that issued the token, or that refuses it; empty for tokens from elsewhere.
	realm string
}

// findOut asks the sources that the token can belong to. An error means that one of them
// could not be asked, and none of the others knows the token.
func findOut(ctx context.Context, app *App, sources []routeSource, token *introspect.Token, maxAge time.Duration) (finding, error) {
	for _, s := range sources {
		if used, ok := s.(*usedSource); ok && used.lookup.RecallIssuer(token) {
			break
		}
	}
	if len(sources) == 1 && (sources[0].realmName() != "" || !app.mayHaveIssued(token)) {
		return askEach(ctx, sources, token, maxAge) // the cache screens it, too
	}
	var few [4]routeSource // more than most routes have, without memory from the heap
	perhaps := few[:0]
	for i, s := range sources {
		switch s.recognizes(token) {
		case Mine:
			// The sources before this one have said no, so its rivals are behind it. The first
			// that accepts the token speaks for it, whatever is in the cache: each may make
			// something else of it.
			mine := append(few[:0], s)
			for _, rival := range sources[i+1:] {
				if rival.label() == s.label() && rival.recognizes(token) == Mine {
					mine = append(mine, rival)
				}
			}
			return askEach(ctx, mine, token, maxAge)
		case PerhapsMine:
			perhaps = append(perhaps, s)
		}
	}
	far := func(s routeSource) bool { return !s.near() }
	if !slices.ContainsFunc(perhaps, far) {
		return recallOrAsk(ctx, perhaps, token, maxAge)
	}
	// Nobody elsewhere gets to see tokens that were issued here, good or not.
	minted, unsure := app.minted(token)
	if minted || unsure != nil {
		perhaps = slices.DeleteFunc(perhaps, far)
	}
	found, err := recallOrAsk(ctx, perhaps, token, maxAge)
	if err == nil && !found.facts.Active {
		err = unsure // a source that may know the token was not asked
	}
	return found, err
}

// recallOrAsk is askEach for sources that can judge a token only by asking. The token belongs
// to the source that the cache remembers as having found it good, unless that source may not
// say so. Then the sources before it, which may be away, need not be asked again.
func recallOrAsk(ctx context.Context, sources []routeSource, token *introspect.Token, maxAge time.Duration) (finding, error) {
	if len(sources) > 1 {
		for _, s := range sources {
			if facts, ok := s.remembered(token, maxAge); ok && facts.Active {
				return finding{facts, s.realmName()}, nil
			}
		}
	}
	return askEach(ctx, sources, token, maxAge)
}

// askEach asks sources one after the other, so that a source sees no token that the one
// before it knows.
func askEach(ctx context.Context, sources []routeSource, token *introspect.Token, maxAge time.Duration) (finding, error) {
	var unsure error
	var no finding
	for i, s := range sources {
		facts, err := s.ask(ctx, token, maxAge)
		if err == nil && facts.Active {
			return finding{facts, s.realmName()}, nil
		}
		// Of several, the first that says more than "unknown" counts.
		if err == nil && (i == 0 || no.facts != nil && no.facts.Cause() == introspect.CauseUnknown) {
			no = finding{facts, s.realmName()}
		}
		unsure = errors.Join(unsure, err)
	}
	if no.facts == nil { // there was nobody to ask, or nobody who knew
		no.facts = introspect.InactiveBecause(introspect.CauseNoSource)
	}
	return no, unsure
}
