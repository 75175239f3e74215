package caddyoauth

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

const (
	// startTimeout bounds what Start does with the store, and commit likewise.
	startTimeout = 30 * time.Second
	// readyTimeout bounds how long a request waits for Start.
	readyTimeout = 10 * time.Second
)

// Start opens the store, and lets waiting requests go.
func (a *App) Start() error {
	a.before = caddy.ActiveContext().Context
	a.startErr = a.start()
	close(a.ready)
	return a.startErr
}

func (a *App) start() error {
	opener := a.opener
	if !a.usesStore {
		opener = noStore{}
	}
	key, err := opener.poolKey()
	if err != nil {
		return err
	}
	pooled, shared, err := openStores.LoadOrNew(key, func() (caddy.Destructor, error) {
		return newOpenStore(opener, key, a.Cache)
	})
	if err != nil {
		return err
	}
	a.held = key
	a.opened = pooled.(*openStore)
	if err := a.openAllSources(); err != nil {
		return err
	}
	if !a.usesStore {
		return nil // its size is set by commit, after a reload
	}
	a.logger.Info("token store is open", zap.String("store", key), zap.Bool("shared_with_previous_config", shared))

	for _, r := range a.realms {
		r.settings.Store, r.settings.Cache, r.settings.Coherent = a.opened.store, a.opened.cache, a.opened.coherent
		r.settings.Hasher = hasher()
		r.settings.MaxAge = time.Duration(a.Cache.MaxAge)
		if a.Cache.Disabled {
			r.settings.MaxAge = 0
		}
		r.engine = oauth.New(r.settings)
	}

	ctx, cancel := context.WithTimeout(a.ctx, startTimeout)
	defer cancel()
	changed := a.opened.follow(a)
	err = a.agree(ctx)
	// With a predecessor, this configuration may yet be rejected; see Stop.
	if err == nil && activeApp() == nil {
		err = a.commit(ctx)
	}
	unreachable := errors.Is(err, oauth.ErrUnreachable)
	if err != nil && !unreachable {
		return err
	}
	if unreachable {
		a.logger.Error("the token store can't be reached: answering 503 until it can", zap.String("store", key), zap.Error(err))
	}
	if a.opened.coherent == nil {
		return nil // nobody else can change anything
	}
	a.following = make(chan struct{})
	var following context.Context
	following, a.unfollow = context.WithCancel(context.Background())
	go a.keepAgreeing(following, changed, unreachable)
	return nil
}

// openAllSources opens the sources that handlers use, with the cache in front.
func (a *App) openAllSources() error {
	for _, use := range sortedKeys(a.sources) {
		used := a.sources[use]
		key := used.module.SourceKey()
		pooled, err := loadOrOpen(openSources, key, func() (openSource, error) {
			source, err := used.module.OpenSource()
			return openSource{source}, err
		})
		if err != nil {
			return fmt.Errorf("source %s: %w", key, err)
		}
		a.heldSources = append(a.heldSources, key)
		memory := used.module.Memory()
		// Zero is the app's own; more than that no source may have.
		if own := time.Duration(a.Cache.MaxAge); memory.MaxAge == 0 || memory.MaxAge > own {
			memory.MaxAge = own
		}
		if a.Cache.Disabled {
			memory = introspect.SourceConfig{}
		}
		memory.OnStale = collectors.staleAnswers.Inc
		source := pooled.Source
		if remote, ok := used.module.(*IntrospectSource); ok {
			source = source.(*introspect.Remote).WithTimeout(time.Duration(remote.Timeout))
		}
		used.lookup = a.opened.cache.WrapWith(foreignName(key), source, memory)
	}
	a.shareOutIssuers()
	return nil
}

// shareOutIssuers tells the sources which issuers their tokens can't be of. An answer may
// name any issuer, and the backend believes it.
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

// await waits while the app starts. An error means that it did not.
func (a *App) await(ctx context.Context) error {
	select {
	case <-a.ready:
	default:
		ctx, cancel := context.WithTimeout(ctx, readyTimeout)
		defer cancel()
		select {
		case <-a.ready:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the token store to open: %w", ctx.Err())
		}
	}
	return a.startErr
}

// agree tells the realms what all gateways that share the store must agree on.
func (a *App) agree(ctx context.Context) error {
	// A store that has lost its data gets the key back that its gateways use.
	fresh := a.tokenKey
	if fresh == nil {
		fresh = make([]byte, 32)
		rand.Read(fresh)
	}
	tokenKey, err := a.opened.store.Secret(ctx, "token-key", fresh)
	if err != nil {
		return fmt.Errorf("loading the token key: %w", err)
	}
	generations, err := a.opened.store.Admit(ctx, a.activeClients(), a.generations)
	if err != nil {
		return fmt.Errorf("loading the state of clients: %w", err)
	}
	a.tokenKey, a.generations = tokenKey, generations
	for _, r := range a.realms {
		shared := oauth.Shared{Key: tokenKey, Generations: make(map[string]uint64)}
		for id := range r.settings.Clients {
			shared.Generations[id] = generations[oauth.ClientRef{Realm: r.name, ClientID: id}]
		}
		r.engine.Share(shared)
	}
	return nil
}

// keepAgreeing agrees anew when the store says that another gateway has changed something,
// and, if again is set, at once. It ends with ctx.
func (a *App) keepAgreeing(ctx context.Context, changed <-chan struct{}, again bool) {
	defer close(a.following)
	for {
		var retry <-chan time.Time
		if again {
			retry = time.After(time.Second)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-retry:
		}
		attempt, cancel := context.WithTimeout(ctx, startTimeout)
		err := a.agree(attempt)
		if err == nil && activeApp() == a {
			err = a.commit(attempt)
		}
		cancel()
		if err != nil && !again && ctx.Err() == nil {
			a.logger.Error("asking the token store what gateways share: trying again", zap.Error(err))
		}
		again = err != nil
	}
}

// commit makes final what this configuration says of clients and of the cache's size.
// What a configuration merely tried must not kill the tokens of the one that goes on,
// so this happens only once it is in force, or, if none is, when it starts.
func (a *App) commit(ctx context.Context) error {
	a.opened.committing.Lock()
	defer a.opened.committing.Unlock()
	if a.committed {
		return nil
	}
	a.opened.cache.Resize(a.Cache.MaxTokens, a.Cache.MaxSize)
	if !a.usesStore {
		a.committed = true
		return nil
	}
	if err := a.opened.store.Retire(ctx, a.activeClients()); err != nil {
		return fmt.Errorf("recording which clients are gone: %w", err)
	}
	a.committed = true
	return nil
}

// stopFollowing ends keepAgreeing. It may be called twice.
func (a *App) stopFollowing() {
	if a.unfollow != nil {
		a.unfollow()
		<-a.following
	}
	if a.opened != nil {
		a.opened.unfollow(a)
	}
}

// Stop is called when another configuration has taken over, when this one never came into
// force, and when the process ends. In the first two cases the one that is in force now has
// nothing to fear any more and commits; in the first, this one sees to it that what nobody
// serves any longer stays dead. The store stays open: requests of this configuration
// still run.
func (a *App) Stop() error {
	a.stopFollowing()
	inForce := caddy.ActiveContext().Context
	if inForce == nil {
		return nil // the process ends, which removes no client
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	next := activeApp()
	if next != nil && next.opened != nil {
		if err := next.commit(ctx); err != nil {
			next.logger.Error("tokens of removed clients are refused, but would be accepted if the clients came back; reload to try again", zap.Error(err))
		}
	}
	if inForce != a.before {
		if err := a.leave(ctx, next); err != nil {
			a.logger.Error("tokens in the store that is no longer used are refused, but would be accepted if it were used again", zap.Error(err))
		}
	}
	return nil
}

// leave ends what is in this configuration's store, if the next one has another or none: a
// client may be removed while nobody opens this store, and its old tokens must not come back
// with it. Nothing can be done if the process dies before.
//
// A store that other gateways use keeps the tokens of the clients that the next configuration
// has, which may reach the same store in another way, and of those that another gateway has
// all the time.
func (a *App) leave(ctx context.Context, next *App) error {
	if a.opened == nil || a.opened.store == nil || next != nil && next.opened == a.opened {
		return nil
	}
	var stay []oauth.ClientRef
	if next != nil && a.opened.coherent != nil {
		stay = next.activeClients()
	}
	return a.opened.store.Leave(ctx, stay)
}

// withdraw takes back what a configuration that never came into force has said in the store of
// the one that goes on. It has admitted clients that this one does not have, and perhaps served
// them until another app failed: those tokens must not be good when such a client comes back.
func (a *App) withdraw() error {
	inForce, goesOn := caddy.ActiveContext().Context, activeApp()
	if inForce != a.before || goesOn == nil || goesOn.opened != a.opened || a.opened.store == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	return a.opened.store.Leave(ctx, goesOn.activeClients())
}

// Cleanup gives back the store, if this instance took it.
func (a *App) Cleanup() error {
	a.stopFollowing() // Stop is not called after a failed Start
	err := errors.Join(a.withdraw(), a.closeSources())
	if key := a.held; key != "" {
		a.held = ""
		_, storeErr := openStores.Delete(key)
		err = errors.Join(err, storeErr)
	}
	return err
}

// closeSources gives back what openAllSources took.
func (a *App) closeSources() error {
	var errs []error
	for _, key := range a.heldSources {
		_, err := openSources.Delete(key)
		errs = append(errs, err)
	}
	a.heldSources = nil
	return errors.Join(errs...)
}

// activeApp is the App of the configuration in force, nil if there is none.
func activeApp() *App {
	app, err := caddy.ActiveContext().AppIfConfigured("oauth")
	if err != nil {
		return nil
	}
	a, _ := app.(*App)
	return a
}

// activeClients are the clients that may have tokens.
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

// storeOpener is what a module in the namespace oauth.stores is.
type storeOpener interface {
	// poolKey names the thing that can't be opened twice. Configurations whose stores have
	// the same key share one. It may make the folder that the store lies in.
	poolKey() (string, error)
	// open opens the store of that key. It may block for as long as its settings say, a
	// second or two if they say nothing. A sharedStore tells owner what other gateways do to
	// it.
	open(key string, owner *openStore) (oauth.TokenStore, error)
}

// sharedStore is a store that other gateways write to as well.
type sharedStore interface {
	oauth.TokenStore
	// Coherent is as in introspect.Coherent.
	Coherent() bool
}

// noStore is for configurations that issue no tokens and accept none that were issued here:
// there is a cache, and nothing to open.
type noStore struct{}

func (noStore) poolKey() (string, error) { return "no store", nil }

func (noStore) open(string, *openStore) (oauth.TokenStore, error) { return nil, nil }

// openStores holds the open stores by their pool key. Every App that started holds one
// reference, and the last Cleanup closes the store.
var openStores = caddy.NewUsagePool()

// openStore is what outlives a configuration: a store and the cache that belongs to it.
type openStore struct {
	store oauth.TokenStore
	cache *introspect.Cache
	// coherent is nil for a store that no other gateway writes to; see sharedStore.
	coherent func() bool

	// committing is held by commit: the next configuration's Stop and keepAgreeing may both
	// want to.
	committing sync.Mutex

	mu sync.Mutex
	// followers hears that gateways must agree anew. One for each App that runs.
	followers map[*App]chan struct{}
}

func newOpenStore(opener storeOpener, key string, bounds *CacheSettings) (_ *openStore, err error) {
	// A panic would leave the pool's lock taken, and every later load waiting for it.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("opening the token store panicked: %v", r)
		}
	}()
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
	s := &openStore{cache: cache, followers: make(map[*App]chan struct{})}
	store, err := opener.open(key, s)
	if err != nil {
		cache.Close()
		return nil, err
	}
	if store == nil {
		return s, nil
	}
	s.store = timedStore{store}
	if shared, ok := store.(sharedStore); ok {
		s.coherent = shared.Coherent
	}
	return s, nil
}

// Destruct closes the store and the cache. Requests that still run get ErrClosed.
func (s *openStore) Destruct() error {
	s.cache.Close()
	if s.store == nil {
		return nil
	}
	return s.store.Close()
}

// follow returns a channel that brings a value after each change that other gateways made
// to what all of them share. Several changes may bring one. unfollow ends it.
func (s *openStore) follow(a *App) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := make(chan struct{}, 1)
	s.followers[a] = c
	return c
}

func (s *openStore) unfollow(a *App) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.followers, a)
}

func (s *openStore) changed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.followers {
		select {
		case c <- struct{}{}:
		default: // there is one already
		}
	}
}

// openSources holds the open sources by their key, so that keys that were fetched, and
// what is known of a server's health, survive a reload.
var openSources = caddy.NewUsagePool()

// openSource is a source in openSources.
type openSource struct{ introspect.Source }

// Destruct ends the source.
func (s openSource) Destruct() error {
	switch source := s.Source.(type) {
	case interface{ Close() }:
		source.Close()
	case io.Closer:
		return source.Close()
	}
	return nil
}

// loadOrOpen returns what pool has under key, opened if nobody uses it yet.
func loadOrOpen[T caddy.Destructor](pool *caddy.UsagePool, key string, open func() (T, error)) (T, error) {
	pooled, _, err := pool.LoadOrNew(key, func() (_ caddy.Destructor, err error) {
		// A panic would leave the pool's lock taken, and every later load waiting for it.
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("opening the source panicked: %v", r)
			}
		}()
		return open()
	})
	if err != nil {
		var none T
		return none, err
	}
	return pooled.(T), nil
}

// hasher computes the slow hashes of all configurations: what it remembers outlives a
// reload, and its bounds hold for the process. It needs no end.
var hasher = sync.OnceValue(oauth.NewHasher)

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
	_ caddy.Destructor   = (*openStore)(nil)
	_ caddy.Destructor   = openSource{}
)
