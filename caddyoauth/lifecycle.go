package caddyoauth

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"

	"github.com/caddyoauth/gateway/caddyoauth/internal/keys"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// # The life of a configuration
//
// Every configuration has an App of its own. Caddy loads a new configuration while the old one
// still serves, one load at a time. Its App goes through these steps:
//
//	Provision  The app is provisioned first, then the handlers, each of which calls register.
//	           Nothing is opened and no other server is asked, so 'caddy validate', which goes
//	           no further, works beside a running gateway.
//	Start      Caddy starts its apps in random order, so the HTTP server may take requests
//	           before our Start is over. They wait for it in await. Start checks what the
//	           configuration expects, opens the store and the sources, or shares those of the
//	           old configuration, makes the realms' engines, and agrees.
//	in force   All apps have started, and Caddy has put the new configuration in the place of
//	           the old one. From now on activeApp returns this App.
//	Stop       When the next configuration is in force, Caddy stops the apps of this one, again
//	           in random order. Its last requests may still run, so Stop closes nothing.
//	Cleanup    follows at once, without waiting for those requests. It gives back what Start
//	           took, and what no other App uses is closed. A request that outlives its store
//	           gets oauth.ErrClosed, and its caller 503.
//
// There are four ways through them:
//
//   - No other App is in force when this one starts. Start commits, since nobody else's tokens are
//     at stake.
//   - It replaces another App. Start agrees but does not commit. When the new configuration is in
//     force, the Stop of the old App commits for it, and leaves the old store if the new App does
//     not use it.
//   - It is refused. If Provision or our own Start fails, only Cleanup follows. If another app fails
//     after our Start, Stop runs too, although this App was never in force. In both cases Cleanup
//     withdraws, and the old configuration goes on as if nothing had happened.
//   - The process ends. Stop and Cleanup run while nothing is in force. That removes no client, so
//     Stop has nothing to do.
//
// During a reload two Apps are alive. What must outlive the old one is in pools, under a key that
// says what it is: a store with its cache in openStores, a source of tokens from elsewhere in
// openSources. Everything else ends with its App.
//
// The tokens of a client must die when the client is removed, and stay dead if it ever comes back.
// So the store keeps a generation for each client. Tokens carry it, and count only while it is
// current. The following keeps that true across reloads and between gateways. Secret, Admit, Retire,
// Leave and EndTokens are methods of the store; oauth.TokenStore has their contract.
//
//   - agree gets from the store what all gateways that share it must have in common: the key that
//     authenticates tokens (Secret), and the generation of each client (Admit), which creates the
//     clients that the store does not know. It ends nothing, so even a configuration that may yet be
//     refused can do it. It runs in Start, and in keepAgreeing after each change that another
//     gateway makes.
//   - share (Engine.Share) is how agree hands this to the engines, while requests run. An engine that
//     has not been told anything yet answers oauth.ErrUnreachable, and its caller gets 503. So a
//     gateway can start while its store is down.
//   - follow (openStore.follow) has the store report changes by other gateways. It begins before the
//     first agree, so that no change is missed in between, and ends in Cleanup. A change that is heard
//     of is acted on when agree is over. What the engines go by counts until then, but no longer than
//     the store's lease from before the change: afterwards, and after Cleanup, they ask the store for
//     the generation of each token's client.
//   - commit makes final what the configuration says: the size of the cache, and that clients which
//     it does not have are gone. An App commits once, and only when it is in force or no other App
//     is: a configuration that is only being tried must not end the tokens of the one that goes on.
//     If the store can't be reached, keepAgreeing tries again.
//   - retire (Retire) is the part of commit about clients: every client that the configuration does
//     not have passes to its next generation.
//   - leave (Leave) does the same in a store that the next configuration does not use, since nobody
//     would be there to retire a client that is removed in the meantime.
//   - withdraw (also Leave) undoes what a refused configuration has said in the store of the one that
//     goes on: it has admitted clients which that one does not have, and may even have served them.
//   - end (openStore.endTokens) is how an operator ends all tokens of clients that stay. The store
//     passes them to their next generations, and every App that uses the store, one that is only
//     being tried included, goes by these before the operator has the answer. Other gateways hear of
//     it as of any change.
//   - shareKeys (openStore.shareKeys) does the same for keys that an operator has rotated. Each App
//     reads them under the mutex of agree, so the keys of before don't come back with an agree that
//     had read them already.
//
// Beside that, keepRetiringSecrets removes secrets of managed clients that nobody uses any more, as an
// operator would, from Start to Stop while the App is in force.

const (
	// startTimeout bounds all that Start does with the store, and all that Stop and Cleanup do.
	startTimeout = 30 * time.Second
	// readyTimeout bounds how long a request waits for Start.
	readyTimeout = 10 * time.Second
)

// running is what an App has from Start to Cleanup. Provision makes it, with nothing but ready.
//
// Start sets the other fields and then closes ready. Whoever reads them must know that Start is over:
// requests after await, others because they have the App from activeApp. After Start only agree,
// commit and Cleanup change what they keep here for themselves.
type running struct {
	// ready is closed when Start is over, and err says how that went.
	ready chan struct{}
	err   error

	// before is the context of the configuration that was in force during Start, nil if none was. If
	// the same one is in force when this App ends, this App never was.
	before context.Context

	// opened is the store with its cache. It is nil if Start failed early.
	opened *openStore
	// news is what this App hears of the store. It is nil if it needs none.
	news *news
	// history is what this process has done in the last hour.
	history *history
	// held is what this App took from the pools. Cleanup gives back exactly that: giving back one
	// reference too many would close what the configuration in force uses.
	held []reference

	// agreeing is held while realms are given what gateways have in common. tokenKey and rings, which
	// are by realm, are what the store said of that last, and need it. The generations of clients are
	// with the engines.
	agreeing sync.Mutex
	tokenKey []byte
	nonceKey []byte // likewise; nil unless DPoP proofs are judged
	rings    map[string]*keys.Ring
	// managed is how far the changes of managed clients were followed, by realm.
	managed map[string]string
	// wake is when agree has to run again, because keys are due for something; zero for never. Only
	// agree and keepAgreeing touch it.
	wake time.Time

	// endAgreeing makes keepAgreeing return, which closes agreeingEnded. Both are nil if it never
	// ran.
	endAgreeing   context.CancelFunc
	agreeingEnded chan struct{}
	// endRetiring makes keepRetiringSecrets return, which closes retiringEnded. Both are nil if it never ran.
	endRetiring   context.CancelFunc
	retiringEnded chan struct{}

	// committed tells whether commit is done. The App's own keepAgreeing and the Stop of its
	// predecessor may both call it, hence the mutex.
	committing sync.Mutex
	committed  bool
}

// Start opens the store and the sources, then releases the requests that wait for it.
func (a *App) Start() error {
	a.run.before = caddy.ActiveContext().Context
	a.warnOfFindings()
	a.run.err = a.start()
	close(a.run.ready)
	return a.run.err
}

func (a *App) start() error {
	if err := a.checkExpectations(a.ctx); err != nil {
		return err
	}
	opener := a.opener
	if !a.usesStore {
		opener = noStore{}
	}
	key, err := opener.poolKey()
	if err != nil {
		return err
	}
	opened, shared, err := loadOrOpen(openStores, key, func() (*openStore, error) { return newOpenStore(opener, key, a.Cache) })
	if err != nil {
		return err
	}
	a.run.held = append(a.run.held, reference{openStores, key})
	a.run.opened = opened
	if a.run.history, _, err = loadOrOpen(openHistories, historyKey, func() (*history, error) { return newHistory(collectors.read), nil }); err != nil {
		return err
	}
	a.run.held = append(a.run.held, reference{openHistories, historyKey})
	if err := a.openAllSources(); err != nil {
		return err
	}
	if !a.usesStore {
		return nil // the cache has its size, or gets it from commit after a reload
	}
	a.logger.Info("token store is open", zap.String("store", key), zap.Bool("shared_with_previous_config", shared))

	failures, _, err := loadOrOpen(openFailures, failuresKey, func() (openedFailures, error) { return openedFailures{oauth.NewFailures()}, nil })
	if err != nil {
		return err
	}
	a.run.held = append(a.run.held, reference{openFailures, failuresKey})
	if a.usesProofs {
		if opened.proofs == nil {
			return errors.New("this kind of token store can't remember which DPoP proofs were used")
		}
		a.proofs.each(func(p *oauth.Proofs) { p.Keep(opened.proofs) })
	}
	for _, r := range a.realms {
		r.settings.Store, r.settings.Keys = opened.store, opened.keys
		if r.managed != nil {
			r.settings.Managed, r.settings.Unusable = opened.clients, r.managed.unusable.version
		}
		r.settings.Cache, r.settings.Coherent, r.settings.Immediate = opened.cache, a.coherent, opened.immediate
		if opened.inventory != nil {
			r.settings.Inventory = opened.inventory.Inventory
		}
		if r.settings.Replays = opened.replays; len(r.assertions) > 0 && opened.replays == nil {
			return fmt.Errorf("realm %q: this kind of token store can't remember which assertions were used", r.name)
		}
		if err := a.openAssertionKeys(r, func(ref reference) { a.run.held = append(a.run.held, ref) }); err != nil {
			return fmt.Errorf("realm %q: %w", r.name, err)
		}
		if err := r.openCertificateFiles(func(ref reference) { a.run.held = append(a.run.held, ref) }); err != nil {
			return fmt.Errorf("realm %q: %w", r.name, err)
		}
		if err := r.openFederated(func(ref reference) { a.run.held = append(a.run.held, ref) }); err != nil {
			return fmt.Errorf("realm %q: %w", r.name, err)
		}
		r.settings.Hasher, r.settings.Failures = hasher(), failures.Failures
		r.settings.MaxAge = time.Duration(a.Cache.MaxAge)
		if a.Cache.Disabled {
			r.settings.MaxAge = 0
		}
		r.engine = oauth.New(r.settings)
	}
	a.run.news = opened.follow(a) // from here on, others use the engines
	if err := a.beginAgreeing(key); err != nil {
		return err
	}
	a.beginRetiringSecrets()
	return nil
}

// beginRetiringSecrets starts keepRetiringSecrets if a realm has managed clients and the store can tell what they use.
func (a *App) beginRetiringSecrets() {
	hasManaged := func(r *servedRealm) bool { return r.managed != nil }
	if a.run.opened.clients == nil || a.run.opened.inventory == nil || !slices.ContainsFunc(slices.Collect(maps.Values(a.realms)), hasManaged) {
		return
	}
	var running context.Context
	running, a.run.endRetiring = context.WithCancel(context.Background())
	a.run.retiringEnded = make(chan struct{})
	go a.keepRetiringSecrets(running)
}

// beginAgreeing agrees for the first time, commits if no other App is in force, and starts
// keepAgreeing if other gateways may use the store. A store that can't be reached yet is no failure;
// the log names it by store, its key.
func (a *App) beginAgreeing(store string) error {
	ctx, cancel := context.WithTimeout(a.ctx, startTimeout)
	defer cancel()
	err := a.agree(ctx)
	if err == nil && activeApp() == nil {
		err = a.commit(ctx)
	}
	unreachable := errors.Is(err, oauth.ErrUnreachable)
	if err != nil && !unreachable {
		return err
	}
	if unreachable {
		a.logger.Error("cannot reach the token store: answering 503 until it can be reached", zap.String("store", store), zap.Error(err))
	}
	keyed := slices.ContainsFunc(slices.Collect(maps.Values(a.realms)), (*servedRealm).hasKeys)
	if a.run.opened.coherent == nil && !keyed {
		return nil // no other gateway can change anything, and nothing changes with time
	}
	var running context.Context
	running, a.run.endAgreeing = context.WithCancel(context.Background())
	a.run.agreeingEnded = make(chan struct{})
	go a.keepAgreeing(running, a.run.news.changed, unreachable)
	return nil
}

// openAllSources opens the sources that handlers use, and puts the cache in front of them.
func (a *App) openAllSources() error {
	for _, use := range sortedKeys(a.sources) {
		used := a.sources[use]
		key := used.module.SourceKey()
		pooled, _, err := loadOrOpen(openSources, key, func() (openSource, error) {
			source, err := used.module.OpenSource()
			return openSource{source}, err
		})
		if err != nil {
			return fmt.Errorf("source %s: %w", key, err)
		}
		a.run.held = append(a.run.held, reference{openSources, key})
		memory := used.module.Memory()
		// Zero means the app's own max_age, which no source may exceed.
		if own := time.Duration(a.Cache.MaxAge); memory.MaxAge == 0 || memory.MaxAge > own {
			memory.MaxAge = own
		}
		if a.Cache.Disabled {
			memory = introspect.SourceConfig{}
		}
		memory.OnStale = func() {
			collectors.staleAnswers.Inc()
			used.stale.now()
		}
		source := pooled.Source
		if remote, ok := used.module.(*IntrospectSource); ok {
			source = source.(*introspect.Remote).WithTimeout(time.Duration(remote.Timeout))
		}
		used.source = source
		used.lookup = a.run.opened.cache.WrapWith(foreignName(key), source, memory)
	}
	a.shareOutIssuers()
	return nil
}

// shareOutIssuers tells each source which issuers belong to other sources and to realms. An answer
// may name any issuer, and the backend believes it.
func (a *App) shareOutIssuers() {
	taken := make(map[string]bool)
	for _, realm := range a.realms {
		taken[realm.settings.Issuer] = true
	}
	for _, used := range a.sources {
		if s, ok := used.module.(interface{ issuer() string }); ok {
			used.issuer = s.issuer()
			taken[used.issuer] = true
		}
	}
	delete(taken, "")
	for _, used := range a.sources {
		used.taken = taken
	}
}

// await waits until Start is over, for readyTimeout at most. An error means that nothing can be
// found out: Start takes too long, or has failed.
func (a *App) await(ctx context.Context) error {
	select {
	case <-a.run.ready:
	default:
		ctx, cancel := context.WithTimeout(ctx, readyTimeout)
		defer cancel()
		select {
		case <-a.run.ready:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the token store to open: %w", ctx.Err())
		}
	}
	return a.run.err
}

// agree gets from the store what all gateways that share it must have in common, and gives it to the
// realms. Only Start and then keepAgreeing call it.
func (a *App) agree(ctx context.Context) error {
	a.run.agreeing.Lock()
	defer a.run.agreeing.Unlock()
	heard := a.run.opened.heard(a.run.news)
	// A store that has lost its data gets back the key that its gateways use.
	fresh := a.run.tokenKey
	if fresh == nil {
		fresh = make([]byte, 32)
		rand.Read(fresh)
	}
	tokenKey, err := a.run.opened.store.Secret(ctx, "token-key", fresh)
	if err != nil {
		return fmt.Errorf("loading the token key: %w", err)
	}
	generations, err := a.run.opened.store.Admit(ctx, a.activeClients(), a.heldGenerations())
	if err != nil {
		return fmt.Errorf("loading the generations of clients: %w", err)
	}
	a.run.tokenKey = tokenKey
	if a.usesProofs {
		if err := a.shareNonceKey(ctx); err != nil {
			return err
		}
	}
	a.run.wake = time.Time{}
	if a.run.rings == nil {
		a.run.rings = make(map[string]*keys.Ring)
	}
	var errs []error
	byRealm := make(map[string]map[string]uint64)
	for _, r := range a.realms {
		byRealm[r.name] = make(map[string]uint64)
		for id := range r.settings.Clients {
			byRealm[r.name][id] = generations[oauth.ClientRef{Realm: r.name, ClientID: id}]
		}
		// They count at once: it may take a while to find out about the keys of all realms.
		r.engine.Raise(byRealm[r.name])
	}
	for _, r := range a.realms {
		if err := a.loadManaged(ctx, r); err != nil {
			errs = append(errs, fmt.Errorf("realm %q: %w", r.name, err))
		}
		ring, err := a.ringOf(ctx, r)
		if err != nil {
			errs = append(errs, fmt.Errorf("loading the keys of realm %q: %w", r.name, err))
			// The store judges tokens of the keys from before.
			known, before := a.run.rings[r.name]
			if !before {
				continue // nobody can tell anything about the realm's tokens yet
			}
			ring = known
			if known != nil {
				// Whoever lacks the encryption key must not go on with keys that were withdrawn.
				if stored, err := a.run.opened.keys.Keys(ctx, r.name); err == nil {
					ring = known.Remaining(stored)
				}
			}
		}
		if err := a.share(r, ring, byRealm[r.name]); err != nil {
			errs = append(errs, fmt.Errorf("realm %q: %w", r.name, err))
		}
	}
	if len(errs) == 0 {
		a.run.opened.actedOn(a.run.news, heard)
	}
	return errors.Join(errs...)
}

// shareNonceKey gets from the store the key of nonces, which all gateways share.
func (a *App) shareNonceKey(ctx context.Context) error {
	// A store that may drop what it has acknowledged would forget which proofs were used.
	if a.run.opened.keys != nil {
		if err := a.run.opened.keys.Keeps(ctx); err != nil {
			return fmt.Errorf("DPoP: %w", err)
		}
	}
	fresh := a.run.nonceKey
	if fresh == nil {
		fresh = make([]byte, 32)
		rand.Read(fresh)
	}
	key, err := a.run.opened.store.Secret(ctx, "dpop-nonce-key", fresh)
	if err != nil {
		return fmt.Errorf("loading the key of DPoP nonces: %w", err)
	}
	if err := a.run.opened.proofs.BeginProofs(ctx); err != nil {
		return fmt.Errorf("asking since when DPoP proofs are remembered: %w", err)
	}
	a.run.nonceKey = key
	a.proofs.each(func(p *oauth.Proofs) { p.Share(key) })
	return nil
}

// share gives a realm its keys and the generations of its clients. The caller holds run.agreeing.
func (a *App) share(r *servedRealm, ring *keys.Ring, generations map[string]uint64) error {
	a.run.rings[r.name] = ring
	shared := oauth.Shared{Key: a.run.tokenKey, Generations: generations}
	if err := r.shareKeys(&shared, ring, a.run.opened.coherent != nil); err != nil {
		return err
	}
	return r.engine.Share(shared)
}

// shareAnew gives a realm the keys that read gets from the store now, unless it has never agreed. So
// whoever has changed the keys knows that this App goes by them: an agree that has read them before
// ends before, or they would be those from before again.
func (a *App) shareAnew(realm string, read func() (*keys.Ring, error)) error {
	a.run.agreeing.Lock()
	defer a.run.agreeing.Unlock()
	r := a.realms[realm]
	if _, agreed := a.run.rings[realm]; r == nil || !agreed {
		return nil
	}
	ring, err := read()
	if err != nil {
		return err
	}
	return a.share(r, ring, r.engine.Generations())
}

// loadManaged tells a realm's engine of the managed clients that changed since the last time. The
// caller holds run.agreeing.
func (a *App) loadManaged(ctx context.Context, r *servedRealm) error {
	store := a.run.opened.clients
	switch {
	case r.managed == nil:
		return nil
	case store == nil:
		return errors.New("managed_clients: this kind of token store can't keep clients")
	}
	if a.run.opened.keys != nil {
		if err := a.run.opened.keys.Keeps(ctx); err != nil {
			return fmt.Errorf("managed_clients: %w", err)
		}
	}
	answer, err := store.ManagedClients(ctx, r.name, a.run.managed[r.name])
	if err != nil {
		return fmt.Errorf("loading managed clients: %w", err)
	}
	if err := a.useManaged(r, answer.Clients, answer.All); err != nil {
		return err
	}
	if a.run.managed == nil {
		a.run.managed = make(map[string]string)
	}
	a.run.managed[r.name] = answer.Position
	return nil
}

// takeManaged tells a realm's engine what the store says of some managed clients now.
func (a *App) takeManaged(ctx context.Context, realm string, ids []string) error {
	a.run.agreeing.Lock() // an agree that has read the clients before ends before
	defer a.run.agreeing.Unlock()
	r := a.realms[realm]
	if r == nil || r.managed == nil {
		return nil
	}
	var all []oauth.ManagedClient
	for _, id := range ids {
		stored, err := a.run.opened.clients.ManagedClient(ctx, oauth.ClientRef{Realm: realm, ClientID: id})
		switch {
		case errors.Is(err, oauth.ErrNotFound):
			stored = oauth.ManagedClient{ID: id}
		case err != nil:
			return err
		}
		all = append(all, stored)
	}
	return a.useManaged(r, all, false)
}

// coherent reports whether the store has told this App of everything that others did to it, and
// whether the App has acted on that. If not, nothing is known but what the store is asked.
func (a *App) coherent() bool {
	opened := a.run.opened
	return (opened.coherent == nil || opened.coherent()) && a.run.news.acted()
}

// heldGenerations returns the generations that the engines go by.
func (a *App) heldGenerations() map[oauth.ClientRef]uint64 {
	held := make(map[oauth.ClientRef]uint64)
	for _, r := range a.realms {
		for id, generation := range r.engine.Generations() {
			held[oauth.ClientRef{Realm: r.name, ClientID: id}] = generation
		}
	}
	return held
}

// ringOf returns a realm's keys, as they must be now. If there are none, it makes them, or returns
// nil if the realm needs none. It never replaces a ring that is there but can't be read: that is an
// error.
func (a *App) ringOf(ctx context.Context, r *servedRealm) (*keys.Ring, error) {
	store, needed := a.run.opened.keys, r.hasKeys()
	switch {
	case store == nil && needed:
		return nil, errors.New("this kind of token store can't keep keys, as self-contained tokens and signing need")
	case store == nil:
		return nil, nil
	}
	if needed || len(r.assertions) > 0 {
		if err := store.Keeps(ctx); err != nil {
			return nil, err
		}
	}
	for {
		stored, err := store.Keys(ctx, r.name)
		switch {
		case err != nil:
			return nil, err
		case stored != nil:
			ring, err := keys.Read(r.name, stored, a.cipher)
			if errors.Is(err, keys.ErrNotConfigured) && !needed {
				a.logger.Warn("the realm's self-contained tokens of before are refused: their keys are encrypted under an encryption_key that is no longer configured", zap.String("realm", r.name))
				return nil, nil
			}
			if err != nil || !needed {
				return ring, err
			}
			// Ask about a token that nobody has, so that a configuration whose tokens could not be
			// judged, as for want of rights in Redis, is refused now. No request has asked it, so it does
			// not count.
			_, err = store.Denied(context.WithValue(ctx, askingCtxKey{}, true), ring.Epoch(), oauth.Key{Realm: r.name})
			if errors.Is(err, oauth.ErrOtherEpoch) {
				continue // another gateway has replaced them
			}
			if err != nil {
				return nil, err
			}
			kept, changed, wake, err := ring.Kept(time.Now(), r.wanted(), a.cipher)
			if err != nil || !changed {
				a.wakeAt(wake)
				return kept, err
			}
			// Read them again: only the ring in the store counts, and it may be another gateway's.
			swapped, err := store.SwapKeys(ctx, r.name, stored, kept.Stored())
			if err != nil {
				return nil, err
			}
			if swapped {
				// The configuration that goes on, if this one is refused, publishes a key as long as it
				// has to before it signs.
				a.run.opened.changed()
			}
			continue
		case !needed:
			return nil, nil
		}
		ring, err := keys.New(r.name, time.Now(), a.cipher)
		if err != nil {
			return nil, err
		}
		// Then read them as they lie there now: another gateway may have been quicker.
		if _, err := store.SwapKeys(ctx, r.name, nil, ring.Stored()); err != nil {
			return nil, err
		}
	}
}

// wakeAt has keepAgreeing agree again at a time, or never if that is zero.
func (a *App) wakeAt(wake time.Time) {
	if !wake.IsZero() && (a.run.wake.IsZero() || wake.Before(a.run.wake)) {
		a.run.wake = wake
	}
}

// renewKeys encrypts the realms' keys under the encryption key that is now the first, and makes
// signing keys of the algorithm that is configured now. Only a configuration in force does this: the
// one before it may not have that encryption key, and two that are in force on different gateways
// must not take turns.
func (a *App) renewKeys(ctx context.Context) error {
	store := a.run.opened.keys
	if store == nil {
		return nil
	}
	for _, r := range a.realms {
		for renewed := false; !renewed; {
			var err error
			if renewed, err = a.renewKeysOf(ctx, store, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// renewKeysOf does it for one realm. It reports false if another gateway was quicker. What that has
// changed may be something else, so try again.
func (a *App) renewKeysOf(ctx context.Context, store oauth.KeyStore, r *servedRealm) (bool, error) {
	stored, err := store.Keys(ctx, r.name)
	if err != nil {
		return false, err
	}
	if stored == nil {
		return true, nil
	}
	ring, err := keys.Read(r.name, stored, a.cipher)
	if errors.Is(err, keys.ErrNotConfigured) && !r.hasKeys() {
		return true, nil // see ringOf
	}
	if err != nil {
		return false, err
	}
	ring, encrypted, err := ring.Encrypted(a.cipher)
	if err != nil {
		return false, err
	}
	wanted := r.wanted()
	wanted.Switch = true
	ring, changed, _, err := ring.Kept(time.Now(), wanted, a.cipher)
	if err != nil {
		return false, err
	}
	if !encrypted && !changed {
		return true, nil
	}
	swapped, err := store.SwapKeys(ctx, r.name, stored, ring.Stored())
	if swapped && changed {
		a.run.opened.tell(a) // keepAgreeing shares the new keys long before they are used
	}
	return swapped, err
}

// keepAgreeing agrees again whenever the store reports a change by another gateway, and when keys are
// due to be replaced. If again is set, it begins by doing so. After a failure it tries every second.
// Once the App is in force it also commits, unless Start or the Stop of the predecessor has. It
// returns when ctx ends.
func (a *App) keepAgreeing(ctx context.Context, changed <-chan struct{}, again bool) {
	defer close(a.run.agreeingEnded)
	refused := false // the last attempt failed for a reason that somebody has to mend
	for {
		var retry <-chan time.Time
		switch {
		case again:
			retry = time.After(time.Second)
		case !a.run.wake.IsZero():
			// The clock may be set meanwhile, so don't sleep for long.
			retry = time.After(min(max(time.Until(a.run.wake), time.Second), time.Minute))
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-retry:
			if !again && time.Now().Before(a.run.wake) {
				continue
			}
		}
		attempt, cancel := context.WithTimeout(ctx, startTimeout)
		err := a.agree(attempt)
		if err == nil && activeApp() == a {
			err = a.commit(attempt)
		}
		cancel()
		// Say why once, and again if the store can be reached now but won't do.
		was := refused
		refused = err != nil && !errors.Is(err, oauth.ErrUnreachable)
		if err != nil && (!again || refused && !was) && ctx.Err() == nil {
			a.logger.Error("cannot ask the token store what gateways share: trying again every second", zap.Error(err))
		}
		again = err != nil
	}
}

// commit makes final what this configuration says about the cache's size and about clients. The caller
// makes sure that this App is in force, or that none is. After a success it does nothing.
func (a *App) commit(ctx context.Context) error {
	a.run.committing.Lock()
	defer a.run.committing.Unlock()
	if a.run.committed {
		return nil
	}
	a.run.opened.cache.Resize(a.Cache.MaxTokens, a.Cache.MaxSize)
	if a.usesStore {
		if err := a.run.opened.store.Retire(ctx, a.activeClients()); err != nil {
			return fmt.Errorf("recording which clients are gone: %w", err)
		}
		if err := a.renewKeys(ctx); err != nil {
			return fmt.Errorf("renewing keys: %w", err)
		}
	}
	a.run.committed = true
	return nil
}

// Stop runs when another configuration has replaced this one, when this one is refused after it
// has started, and when the process ends. In the first two cases the configuration that is now in
// force can no longer be refused, so it commits. In the first case this App also leaves its store,
// unless the other one uses it. The store stays open: requests of this configuration may still run.
func (a *App) Stop() error {
	a.stopAgreeing()
	a.stopRetiringSecrets()
	inForce := caddy.ActiveContext().Context
	if inForce == nil {
		return nil // the process ends
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	next := activeApp()
	if next != nil {
		if err := next.commit(ctx); err != nil {
			next.logger.Error("cannot record which clients were removed: their tokens are refused, but would be accepted again if the clients came back; reload to try again", zap.Error(err))
		}
	}
	if inForce != a.run.before {
		if err := a.leave(ctx, next); err != nil {
			a.logger.Error("cannot end the tokens in the store that is no longer used: they are refused, but would be accepted if that store were used again", zap.Error(err))
		}
	}
	return nil
}

// stopAgreeing ends keepAgreeing, and waits for it. It may be called twice.
func (a *App) stopAgreeing() {
	if a.run.endAgreeing != nil {
		a.run.endAgreeing()
		<-a.run.agreeingEnded
	}
}

// stopRetiringSecrets ends keepRetiringSecrets, and waits for it. It may be called twice.
func (a *App) stopRetiringSecrets() {
	if a.run.endRetiring != nil {
		a.run.endRetiring()
		<-a.run.retiringEnded
	}
}

// leave ends the tokens in this configuration's store if the next one uses another store or none. A
// client may be removed while this store is not in use, and its old tokens must not come back with it.
// If the process dies before that, nothing can be done.
//
// In a store that other gateways use, two kinds of clients keep their tokens: those of the next
// configuration, which may reach the same store in another way, and those that another gateway has
// had all the time.
func (a *App) leave(ctx context.Context, next *App) error {
	opened := a.run.opened
	if opened == nil || opened.store == nil || next != nil && next.run.opened == opened {
		return nil
	}
	var stay []oauth.ClientRef
	if next != nil && opened.coherent != nil {
		stay = next.activeClients()
	}
	return opened.store.Leave(ctx, stay)
}

// withdraw undoes what a refused configuration has said in the store of the one that goes on. It has
// admitted clients that the other does not have, and may have served them until another app failed.
// Their tokens must not be valid again when such a client comes back.
func (a *App) withdraw() error {
	inForce, goesOn := caddy.ActiveContext().Context, activeApp()
	if inForce != a.run.before || goesOn == nil || goesOn.run.opened != a.run.opened || a.run.opened.store == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	return a.run.opened.store.Leave(ctx, goesOn.activeClients())
}

// Cleanup gives back what this App took from the pools. It also runs after a Provision or a Start
// that failed, and then without Stop.
func (a *App) Cleanup() error {
	a.stopAgreeing()
	a.stopRetiringSecrets()
	if a.run.opened != nil {
		a.run.opened.unfollow(a)
	}
	errs := []error{a.withdraw(), a.closeManagedKeys()}
	for _, ref := range slices.Backward(a.run.held) {
		_, err := ref.pool.Delete(ref.key)
		errs = append(errs, err)
	}
	a.run.held = nil
	for _, l := range a.refusals {
		l.end()
	}
	for _, realm := range a.counted {
		realmSeries.leave(realm)
	}
	a.counted = nil
	return errors.Join(errs...)
}

// activeApp returns the App of the configuration in force, or nil if there is none.
func activeApp() *App {
	app, err := caddy.ActiveContext().AppIfConfigured("oauth")
	if err != nil {
		return nil
	}
	a, _ := app.(*App)
	return a
}

// activeClients returns the clients that may have tokens.
func (a *App) activeClients() []oauth.ClientRef {
	var refs []oauth.ClientRef
	for _, r := range a.realms {
		for id, c := range r.settings.Clients {
			if !c.Disabled {
				refs = append(refs, oauth.ClientRef{Realm: r.name, ClientID: id})
			}
		}
	}
	return refs
}

// The pools of what outlives a configuration. Every App that uses an entry holds a reference to it,
// and the last one to give it back closes it.
var (
	// openStores holds the stores by storeOpener.poolKey.
	openStores = caddy.NewUsagePool()
	// openSources holds the sources by TokenSource.SourceKey, so that fetched keys, and what is known
	// of a server's health, survive a reload.
	openSources = caddy.NewUsagePool()
	// openFailures holds one entry, at failuresKey: who has failed to authenticate, in all realms. A
	// guesser doesn't begin anew with a reload.
	openFailures = caddy.NewUsagePool()
)

const failuresKey = "failures"

// openedFailures is an entry of openFailures.
type openedFailures struct{ *oauth.Failures }

// Destruct implements [caddy.Destructor].
func (openedFailures) Destruct() error { return nil }

// hasher computes the slow hashes of all configurations: what it remembers survives a reload, and
// its bounds hold for the whole process. It needs no end.
var hasher = sync.OnceValue(oauth.NewHasher)

// reference is a reference to an entry of a pool.
type reference struct {
	pool *caddy.UsagePool
	key  string
}

// loadOrOpen returns what pool has under key, or opens it if nobody uses it yet; shared tells the
// two apart. The caller holds a reference then, which pool.Delete gives back.
func loadOrOpen[T caddy.Destructor](pool *caddy.UsagePool, key string, open func() (T, error)) (_ T, shared bool, _ error) {
	pooled, shared, err := pool.LoadOrNew(key, func() (_ caddy.Destructor, err error) {
		// A panic would leave the pool's lock taken, and block every later load.
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("opening %s panicked: %v", key, r)
			}
		}()
		return open()
	})
	if err != nil {
		var none T
		return none, false, err
	}
	return pooled.(T), shared, nil
}

// storeOpener is a module in the namespace oauth.stores.
type storeOpener interface {
	// poolKey names what can't be opened twice. Configurations whose stores have the same key
	// share one store. It may create the folder that the store lies in.
	poolKey() (string, error)
	// open opens the store of that key. It may block for as long as its settings say, or a second or
	// two if they say nothing. A store that other gateways write to as well implements
	// introspect.Coherent, and tells owner what they do to it.
	open(key string, owner *openStore) (oauth.TokenStore, error)
}

// noStore is for configurations that neither issue tokens nor accept tokens issued here: there is a
// cache, and nothing to open.
type noStore struct{}

func (noStore) poolKey() (string, error) { return "no store", nil }

func (noStore) open(string, *openStore) (oauth.TokenStore, error) { return nil, nil }

// openStore is an entry of openStores: a store and the cache that belongs to it.
type openStore struct {
	store oauth.TokenStore // nil for noStore
	// keys is the store's ability to serve self-contained tokens; nil if it has none.
	keys oauth.KeyStore
	// clients is the store's ability to keep managed clients; nil if it has none.
	clients oauth.ClientStore
	// replays is the store's ability to remember what was used; nil if it has none.
	replays oauth.ReplayStore
	// proofs is the store's ability to remember which DPoP proofs were used; nil if it has none.
	proofs oauth.ProofStore
	// inventory has the store keep what clients do; nil if it can't.
	inventory *inventory
	cache     *introspect.Cache
	// coherent and lease are nil for a store that no other gateway writes to; see sharedStore.
	coherent func() bool
	lease    func() (valid func() bool)
	// immediate is whether reads of the store wait for nobody, as its opener has said; see
	// oauth.Settings.
	immediate bool
	// writes and looks are for GET /oauth/health.
	writes writes
	looks  singleflight.Group

	mu sync.Mutex
	// followers has an entry for each App that follows.
	followers map[*App]*news
}

// sharedStore is a store that other gateways write to. It reports that by openStore.changed.
type sharedStore interface {
	introspect.Coherent
	// Lease returns a function that reports whether what is known now may still be used, even if
	// others have changed it since.
	Lease() (valid func() bool)
}

// news is what an App hears of the store that it uses.
type news struct {
	// changed delivers a value after a change; one value may stand for several changes.
	changed chan struct{}
	// heard counts the changes. openStore.mu guards it.
	heard uint64
	// pending is nil if the App has acted on all changes. Otherwise it reports whether what the App
	// goes by may still be used.
	pending atomic.Pointer[func() bool]
}

// acted reports whether what the App goes by may be used. A revocation must be heard of, and acted on,
// within the time that the store gives, and the store gives it only as long as it can be heard.
func (n *news) acted() bool {
	valid := n.pending.Load()
	return valid == nil || (*valid)()
}

func newOpenStore(opener storeOpener, key string, bounds *CacheSettings) (*openStore, error) {
	cache, err := introspect.NewCache(introspect.CacheConfig{
		MaxTokens: bounds.MaxTokens,
		MaxSize:   bounds.MaxSize,
		OnHit:     collectors.cacheHits.Inc,
		OnMiss:    collectors.cacheMisses.Inc,
		OnEvict:   collectors.cacheEvictions.Inc,
	})
	if err != nil {
		return nil, err
	}
	s := &openStore{cache: cache, followers: make(map[*App]*news)}
	store, err := opener.open(key, s)
	if err != nil {
		cache.Close()
		return nil, err
	}
	if store == nil {
		return s, nil
	}
	// Ask the store itself for its abilities: timedStore has the methods of TokenStore only.
	if shared, ok := store.(sharedStore); ok {
		s.coherent, s.lease = shared.Coherent, shared.Lease
	}
	system := "other"
	if module, ok := opener.(caddy.Module); ok {
		system = module.CaddyModule().ID.Name()
	}
	if able, ok := store.(oauth.KeyStore); ok {
		s.keys = timedKeys{able, system, &s.writes}
	}
	s.clients, _ = store.(oauth.ClientStore)
	if able, ok := store.(oauth.ReplayStore); ok {
		s.replays = timedReplays{able, system, &s.writes}
	}
	if able, ok := store.(oauth.ProofStore); ok {
		s.proofs = timedProofs{able, system, &s.writes}
	}
	s.store = timedStore{store, system, &s.writes}
	s.inventory = startInventory(store, s)
	return s, nil
}

// Destruct closes the store and the cache. Requests that still run get ErrClosed.
func (s *openStore) Destruct() error {
	s.cache.Close()
	if s.store == nil {
		return nil
	}
	s.inventory.end()
	return s.store.Close()
}

// follow returns what an App hears from now on of changes by other gateways. unfollow ends it.
func (s *openStore) follow(a *App) *news {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := &news{changed: make(chan struct{}, 1)}
	s.followers[a] = n
	return n
}

// heard returns how many changes have been heard of, for actedOn.
func (s *openStore) heard(n *news) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return n.heard
}

// actedOn records that an App has acted on so many changes.
func (s *openStore) actedOn(n *news, heard uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.heard == heard {
		n.pending.Store(nil)
	}
}

// tell has the App agree again, if it follows.
func (s *openStore) tell(a *App) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.followers[a]; n != nil {
		n.wake()
	}
}

// wake has whoever waits for a change look.
func (n *news) wake() {
	select {
	case n.changed <- struct{}{}:
	default: // one is waiting already
	}
}

// unfollow ends follow. Requests that go on, or begin later on a connection that stays open, ask the
// store for everything.
func (s *openStore) unfollow(a *App) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.followers[a]; n != nil {
		n.heard++
		gone := func() bool { return false }
		n.pending.Store(&gone)
		delete(s.followers, a)
	}
}

// endTokens ends all tokens of clients of a realm, as oauth.TokenStore.EndTokens does, and has every
// App that uses the store go by it. It returns how many clients that were. After an error, the tokens
// may have ended or not.
func (s *openStore) endTokens(ctx context.Context, realm string, clients []string, all bool, held map[oauth.ClientRef]uint64) (int, error) {
	generations, err := s.store.EndTokens(ctx, realm, clients, all, held)
	if err != nil {
		return 0, err
	}
	reached := make(map[string]uint64, len(generations))
	for ref, generation := range generations {
		reached[ref.ClientID] = generation
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// An App that begins to follow later has not asked the store yet.
	for a := range s.followers {
		if r := a.realms[realm]; r != nil {
			r.engine.Raise(reached)
		}
	}
	return len(reached), nil
}

// shareKeys has every App that uses the store go by the keys of a realm that read gets from it now.
func (s *openStore) shareKeys(realm string, read func() (*keys.Ring, error)) error {
	s.mu.Lock()
	// An App that begins to follow later has not asked the store yet.
	followers := slices.Collect(maps.Keys(s.followers))
	s.mu.Unlock()
	var errs []error
	for _, a := range followers {
		errs = append(errs, a.shareAnew(realm, read))
	}
	s.changed() // so that each agrees when one of the keys comes into use, and if an error was met
	return errors.Join(errs...)
}

// changed tells every App that uses the store that what gateways share has changed. If others may have
// changed it, the App may go by what it knows for as long as the store's lease lasts, and no longer
// until it has acted on it.
func (s *openStore) changed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.followers {
		n.heard++
		if s.lease != nil && n.pending.Load() == nil {
			valid := s.lease()
			n.pending.Store(&valid)
		}
		n.wake()
	}
}

// openSource is an entry of openSources.
type openSource struct{ introspect.Source }

// Destruct closes the source.
func (s openSource) Destruct() error {
	switch source := s.Source.(type) {
	case interface{ Close() }:
		source.Close()
	case io.Closer:
		return source.Close()
	}
	return nil
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
	_ caddy.Destructor   = (*openStore)(nil)
	_ caddy.Destructor   = openSource{}
)

// shareManaged has every App that uses the store go by what it says of some managed clients now.
func (s *openStore) shareManaged(ctx context.Context, realm string, ids []string) error {
	s.mu.Lock()
	// An App that begins to follow later has not asked the store yet.
	followers := slices.Collect(maps.Keys(s.followers))
	s.mu.Unlock()
	var errs []error
	for _, a := range followers {
		errs = append(errs, a.takeManaged(ctx, realm, ids))
	}
	return errors.Join(errs...)
}
