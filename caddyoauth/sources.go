package caddyoauth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// TokenSource is what a module in the namespace oauth.sources is: a way to find out what a
// token means, for the sources of oauth_protect. The cache of the app stands in front of
// it.
//
// A module is provisioned with its configuration, where it may open nothing and ask nobody.
// All methods are called after that, and are safe for concurrent use.
type TokenSource interface {
	// Label is what people know the source by, such as its URL, in metrics and for the
	// admin endpoint. It comes from the configuration and holds no secret.
	Label() string

	// SourceKey tells the source from all others. Two with the same key are one: they share one open source
	// and what the cache remembers, on all routes and across reloads. So all that decides
	// what a token means must be in it, secrets as a digest. It may appear in logs.
	SourceKey() string

	// OpenSource starts the source. It does not wait for the network. If what it returns has a
	// method Close, that is called when no configuration uses it any more.
	OpenSource() (introspect.Source, error)

	// Memory is how the cache may use what the source said. A MaxAge of zero is the app's own,
	// which is also the most. StaleFor helps against errors that are introspect.ErrOutage.
	Memory() introspect.SourceConfig

	// Recognizes says, from the token alone and in microseconds, whether it can be this
	// source's. It returns the token with what it read noted in it, so that nobody reads it
	// again in this request.
	Recognizes(token introspect.Token) (introspect.Token, Recognition)
}

// Recognition is what a source says of a token at first sight.
type Recognition int

const (
	// NotMine is for tokens that the source can't know.
	NotMine Recognition = iota
	// PerhapsMine is for tokens of which only asking can tell. Such sources are asked one after
	// the other, about tokens that no source claims.
	PerhapsMine
	// Mine is for tokens that say so. No other source is asked, but those of the same
	// Label that say Mine, too.
	Mine
)

// usedSource is a TokenSource of this configuration, on one route or more.
type usedSource struct {
	module TokenSource
	// These are set by the app's Start.
	lookup *introspect.CachedSource
	issuer string          // whose tokens it knows, if the configuration says so
	taken  map[string]bool // the issuers of all sources and realms

	warn sync.Once // of the first token that is of one of the others
}

// useKey tells the use of a source from others. With other bounds on memory it is another use
// of the same source.
func useKey(module TokenSource) string {
	memory := module.Memory()
	key := fmt.Sprintf("%s\x00%d %d %d", module.SourceKey(), memory.MaxAge, memory.NegativeAge, memory.StaleFor)
	if remote, ok := module.(*IntrospectSource); ok {
		key += fmt.Sprintf(" %d", remote.Timeout) // or with more patience
	}
	return key
}

// own returns facts if the source may say that, or else inactive ones.
func (u *usedSource) own(facts *introspect.Facts) *introspect.Facts {
	if !facts.Active || facts.Issuer == u.issuer || !u.taken[facts.Issuer] {
		return facts
	}
	u.warn.Do(func() {
		caddy.Log().Named("oauth.sources").Warn("a token is refused, because its source says that it is of an issuer that another source, or a realm, stands for; if the source speaks for that issuer, give it the option issuer",
			zap.String("source", u.module.Label()), zap.String("issuer", facts.Issuer))
	})
	return introspect.Inactive()
}

// foreignName is what the cache knows a source by.
func foreignName(key string) string { return introspect.CacheName("foreign", key) }

// routeSource is one of the sources of a route: a realm of this gateway, or a usedSource.
type routeSource struct {
	realm  *servedRealm
	source *usedSource
	// near: it is on this machine, and may be this gateway itself.
	near bool
}

func (s routeSource) recognizes(token introspect.Token) (introspect.Token, Recognition) {
	if s.source != nil {
		return s.source.module.Recognizes(token)
	}
	// By its form and its MAC: a token in our form that this realm did not mint may be
	// another gateway's.
	if token, ok := s.realm.engine.Recognizes(token); ok {
		return token, Mine
	} else {
		return token, NotMine
	}
}

// isRival reports whether s and other go by one name: two jwt sources of one issuer, with
// different audiences perhaps.
func (s routeSource) isRival(other routeSource) bool {
	return s.source != nil && other.source != nil && s.source.module.Label() == other.source.module.Label()
}

// cached is the source with the cache in front, and the realm that its tokens are of.
func (s routeSource) cached() (*introspect.CachedSource, string) {
	if s.realm != nil {
		return s.realm.engine.Tokens(), s.realm.name
	}
	return s.source.lookup, ""
}

// ask asks the source, by way of the cache.
func (s routeSource) ask(ctx context.Context, token introspect.Token, maxAge time.Duration) (finding, error) {
	source, realm := s.cached()
	facts, err := source.LookupWithin(ctx, token, maxAge)
	if err == nil && s.source != nil {
		facts = s.source.own(facts)
	}
	return finding{facts, realm}, err
}

// minted reports whether a realm of this gateway issued token. An error means that nobody
// can tell yet.
func (a *App) minted(token introspect.Token) (_ bool, unsure error) {
	for _, r := range a.realms {
		if r.engine == nil {
			continue // the app opened no store: nothing is issued here
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

// finding is what a route found out about a token.
type finding struct {
	facts *introspect.Facts
	// realm is the realm that issued the token; empty for tokens from elsewhere.
	realm string
}

// findOut asks the sources that the token can belong to. An error means that one of them
// could not be asked, and none of the others knows the token.
func findOut(ctx context.Context, app *App, sources []routeSource, text string, maxAge time.Duration) (finding, error) {
	token := introspect.NewToken(text)
	if len(sources) == 1 && (sources[0].realm != nil || !oauth.HasForm(text)) {
		return sources[0].ask(ctx, token, maxAge) // which screens it, too
	}
	var few [4]routeSource // more than most routes have, without memory from the heap
	perhaps := few[:0]
	for i, s := range sources {
		var recognition Recognition
		token, recognition = s.recognizes(token)
		switch recognition {
		case Mine:
			// Its rivals, of the same name and with other demands, are behind it: those before
			// have said no. The first that accepts the token speaks for it, whatever is in the
			// cache: what each makes of it may differ.
			mine := append(few[:0], s)
			for _, rival := range sources[i+1:] {
				if rival.isRival(s) {
					if token, recognition = rival.recognizes(token); recognition == Mine {
						mine = append(mine, rival)
					}
				}
			}
			return askEach(ctx, mine, token, maxAge)
		case PerhapsMine:
			perhaps = append(perhaps, s)
		}
	}
	far := func(s routeSource) bool { return !s.near }
	if !slices.ContainsFunc(perhaps, far) {
		return recallOrAsk(ctx, perhaps, token, maxAge)
	}
	// Nobody elsewhere has to know the tokens that were issued here, good or not.
	minted, unsure := app.minted(token)
	if minted || unsure != nil {
		perhaps = slices.DeleteFunc(perhaps, far)
	}
	k, err := recallOrAsk(ctx, perhaps, token, maxAge)
	if err == nil && !k.facts.Active {
		err = unsure // who may know it was not asked
	}
	return k, err
}

// recallOrAsk is askEach for sources of which only asking can tell: one that has found the
// token good is the one that it belongs to, unless it may not say so. Those before it need
// not be asked again, and may be away.
func recallOrAsk(ctx context.Context, sources []routeSource, token introspect.Token, maxAge time.Duration) (finding, error) {
	if len(sources) > 1 {
		for _, s := range sources {
			source, realm := s.cached()
			if facts, ok := source.Remembered(token, maxAge); ok {
				if s.source != nil {
					facts = s.source.own(facts)
				}
				if facts.Active {
					return finding{facts, realm}, nil
				}
			}
		}
	}
	return askEach(ctx, sources, token, maxAge)
}

// askEach asks sources one after the other, so that nobody is shown a token that the one
// before knows.
func askEach(ctx context.Context, sources []routeSource, token introspect.Token, maxAge time.Duration) (finding, error) {
	if len(sources) == 1 {
		return sources[0].ask(ctx, token, maxAge)
	}
	var unsure error
	for _, s := range sources {
		k, err := s.ask(ctx, token, maxAge)
		if err == nil && k.facts.Active {
			return k, nil
		}
		unsure = errors.Join(unsure, err)
	}
	return finding{facts: introspect.Inactive()}, unsure
}
