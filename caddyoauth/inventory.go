package caddyoauth

import (
	"context"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// The inventory is what each client did last, managed ones and those of configurations, at all gateways
// that share a store. Requests only note that there is something new, about once a minute and client. An
// openStore has it written.

const (
	// inventoryInterval is how often the store gets what was noted.
	inventoryInterval = time.Minute
	// tidyUsesInterval is how often the uses of clients that are gone are looked for, and tidyUsesFirst how
	// long after the start. usesKept is how long these are kept: another gateway may have a client that this
	// one doesn't know, and what is forgotten counts as never used. So it is longer than the longest
	// retire_unused.
	tidyUsesInterval = 24 * time.Hour
	tidyUsesFirst    = time.Hour
	usesKept         = 400 * 24 * time.Hour
	// inventoryTimeout bounds one write, also the last one, for which the end of the process waits.
	inventoryTimeout = 10 * time.Second
)

// inventory is the part of an openStore that writes what clients did. It has one goroutine, from
// startInventory to end.
type inventory struct {
	*oauth.Inventory
	stop, ended chan struct{}
}

// startInventory starts to have a store keep what clients do. It returns nil if the store can't.
func startInventory(store oauth.TokenStore, s *openStore) *inventory {
	able, ok := store.(oauth.UsageStore)
	if !ok {
		return nil
	}
	i := &inventory{oauth.NewInventory(able), make(chan struct{}), make(chan struct{})}
	go i.run(s)
	return i
}

// run writes what was noted, every inventoryInterval and once more at the end. A failure is logged once,
// until it works again: what was noted is not lost, and nothing else depends on it.
func (i *inventory) run(s *openStore) {
	defer close(i.ended)
	write, tidy := time.NewTicker(inventoryInterval), time.NewTimer(tidyUsesFirst)
	defer write.Stop()
	defer tidy.Stop()
	failing := false
	do := func(what func(context.Context) error) {
		ctx, cancel := context.WithTimeout(context.Background(), inventoryTimeout)
		defer cancel()
		err := what(ctx)
		if err != nil && !failing {
			s.log().Warn("the token store can't be told what clients did last: trying again every minute", zap.Error(err))
		}
		failing = err != nil
	}
	for {
		select {
		case <-write.C:
			do(i.Write)
		case <-tidy.C:
			do(func(ctx context.Context) error { return i.tidy(ctx, s) })
			tidy.Reset(tidyUsesInterval)
		case <-i.stop:
			do(i.Write)
			return
		}
	}
}

// end writes what is left and ends run. It waits for that, for inventoryTimeout at most.
func (i *inventory) end() {
	if i != nil {
		close(i.stop)
		<-i.ended
	}
}

// tidy forgets the uses of clients that no App knows, and that are usesKept old. Those of a managed client
// went with it.
func (i *inventory) tidy(ctx context.Context, s *openStore) error {
	now := time.Now()
	for name, realms := range s.realms() {
		uses, err := i.Uses(ctx, name, nil)
		if err != nil {
			return err
		}
		var gone []string
		for id, use := range uses.Clients {
			if now.Sub(use.Last()) > usesKept && !knows(realms, id) {
				gone = append(gone, id)
			}
		}
		if err := i.Forget(ctx, name, gone); err != nil {
			return err
		}
	}
	return nil
}

// knows reports whether any of these realms has a client of that ID.
func knows(realms []*servedRealm, id string) bool {
	for _, r := range realms {
		if r.settings.Clients[id] != nil || r.isManaged(id) {
			return true
		}
	}
	return false
}

// realms returns the realms of the Apps that use the store, by name.
func (s *openStore) realms() map[string][]*servedRealm {
	s.mu.Lock()
	defer s.mu.Unlock()
	realms := make(map[string][]*servedRealm)
	for a := range s.followers {
		for name, r := range a.realms {
			realms[name] = append(realms[name], r)
		}
	}
	return realms
}

// log returns the log of an App that uses the store, or one that drops everything.
func (s *openStore) log() *zap.Logger {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a := range s.followers {
		return a.logger
	}
	return zap.NewNop()
}

// noteSeen notes that a client is here, by a token or by its secret in the place of one. It costs a look
// unless it is the first time in a while.
func (a *App) noteSeen(r *http.Request, b *bearer) {
	realm := a.realms[b.realm] // nil for tokens from elsewhere
	if realm == nil || realm.counts == nil /* of App.forQuestions */ || !realm.engine.Unseen(b.facts.ClientID) {
		return
	}
	from, _ := clientAddr(r)
	realm.engine.Saw(b.facts.ClientID, from)
}

// usesOf returns what clients of a realm did last, these or all if ids is nil, at all gateways that share
// the store: here up to now, and at others up to a minute ago. Nothing is known with a store that can't
// keep it.
func (a *App) usesOf(ctx context.Context, realm *servedRealm, ids []string) (oauth.Uses, error) {
	if a.run.opened.inventory == nil {
		return oauth.Uses{}, nil
	}
	return a.run.opened.inventory.Uses(ctx, realm.name, ids)
}

// shownUse is what is shown of what a client did last. What is not known is not there.
type shownUse struct {
	// Token is when it fetched a token, Seen when it did something else.
	Token time.Time `json:"token,omitzero"`
	Seen  time.Time `json:"seen,omitzero"`
	// From is where the last of all this came from: by default the network.
	From string `json:"from,omitempty"`
	// Method and Credential are those by which it authenticated last, and Authenticated is when.
	Method        string    `json:"method,omitempty"`
	Credential    string    `json:"credential,omitempty"`
	Authenticated time.Time `json:"authenticated,omitzero"`
}

// addUse adds what the client did last.
func (c *shownClient) addUse(use oauth.Use, addresses string) {
	if use.Last().IsZero() {
		return
	}
	c.Use = &shownUse{Token: use.Token, Seen: use.Seen, From: oauth.CutAddress(use.From, addresses), Method: use.Method, Credential: use.Credential, Authenticated: use.Authenticated()}
	for i := range c.Secrets {
		c.Secrets[i].Used = use.Credentials[c.Secrets[i].ID]
	}
}
