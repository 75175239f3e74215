package caddyoauth

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

func init() {
	caddy.RegisterModule(App{})
}

const (
	defaultMaxTokens = 100_000
	defaultMaxAge    = caddy.Duration(time.Minute)

	// startTimeout bounds what Start does with the store, and commit likewise.
	startTimeout = 30 * time.Second
	// readyTimeout bounds how long a request waits for Start.
	readyTimeout = 10 * time.Second
)

// App is the OAuth 2.0 authorization server behind the `oauth_server` and
// `oauth_protect` handlers: its realms with their clients, the store where issued
// tokens live, and the cache in front of it.
type App struct {
	// Where issued tokens live. Default: `bbolt`, in Caddy's data directory. Two
	// configurations that name the same store share it, so tokens survive a reload.
	StoreRaw json.RawMessage `json:"store,omitempty" caddy:"namespace=oauth.stores inline_key=store"`

	// The cache of token facts.
	Cache *CacheSettings `json:"cache,omitempty"`

	// The realms by name. A realm is an authorization server of its own: issuer, clients
	// and tokens; what one realm issued is refused by every other. The realm `root` is
	// the one whose endpoints stand directly under the base path, and its settings,
	// clients excepted, hold for every realm that does not have its own. If `root` has
	// no clients while other realms exist, it only lends its settings. Names consist of
	// lower-case letters, digits, `-` and `_`.
	Realms map[string]*Realm `json:"realms,omitempty"`

	ctx    caddy.Context
	logger *zap.Logger
	opener storeOpener

	// sources are the foreign ones that handlers use, by key; usesStore tells that some handler
	// needs the tokens issued here. Complete when the last handler has been provisioned.
	sources   map[string]*usedSource
	usesStore bool

	// realms are those that are served, by name.
	realms map[string]*servedRealm
	// prefixes are what identity headers begin with anywhere in this configuration, folded.
	prefixes []string
	// judgesPaths: some oauth_protect refuses ambiguous paths. Like prefixes it is complete
	// when the last handler has been provisioned, so before any request.
	judgesPaths bool
	// servers are all oauth_server; complete likewise.
	servers []*Server

	// ordered are the servers whose routes checkOrder has been through.
	ordered map[*caddyhttp.Server]bool

	// What Start sets, before it closes ready.
	before   context.Context // of the configuration that was in force then; nil if none was
	ready    chan struct{}
	startErr error
	opened   *openStore

	// tokenKey and generations are what the store had last; agree alone touches them.
	tokenKey    []byte
	generations map[oauth.ClientRef]uint64
	// unfollow ends keepAgreeing, which closes following when it is over.
	unfollow  context.CancelFunc
	following chan struct{}

	// held is the key of the store that this instance took from the pool, empty if it
	// took none. Cleanup gives back exactly that.
	held string
	// heldSources likewise.
	heldSources []string
	// committed tells whether commit has done its work; opened.committing guards it.
	committed bool
}

// CacheSettings are the settings of the token cache.
type CacheSettings struct {
	// Turns the cache off: every check asks the store. Parallel questions about one
	// token still share one answer. Default: false.
	Disabled bool `json:"disabled,omitempty"`

	// How many tokens are cached at most, up to ten million. Default: 100000.
	MaxTokens int64 `json:"max_tokens,omitempty"`

	// How many bytes the cached tokens may take together, 1 MiB or more; a token issued here
	// takes about 0.7 KiB, one from elsewhere its claims besides. The process takes two and a
	// half times as much at the most, and 43 bytes for each of `max_tokens`. Default: 128 MiB,
	// or 1 KiB for each of `max_tokens` if that is more.
	MaxSize int64 `json:"max_size,omitempty"`

	// For how long facts are used without asking their source again. Tokens issued here
	// are refused at once when they are revoked, whatever this says. Default: `60s`.
	MaxAge caddy.Duration `json:"max_age,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "oauth",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision reads the configuration into what the request path uses. It opens nothing
// and asks nobody, so `caddy validate` works beside a running server.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx = ctx
	a.logger = ctx.Logger()
	a.ready = make(chan struct{})
	a.reservePrefix(strings.ToLower(defaultHeaderPrefix))

	if err := registerMetrics(ctx.GetMetricsRegistry()); err != nil {
		return err
	}

	if a.Cache == nil {
		a.Cache = new(CacheSettings)
	}
	if a.Cache.MaxTokens == 0 {
		a.Cache.MaxTokens = defaultMaxTokens
	}
	if a.Cache.MaxAge == 0 {
		a.Cache.MaxAge = defaultMaxAge
	}
	if err := checkMaxTokens(a.Cache.MaxTokens); err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	if a.Cache.MaxSize != 0 {
		if err := checkMaxSize(a.Cache.MaxSize); err != nil {
			return fmt.Errorf("cache: %w", err)
		}
	}
	if a.Cache.MaxAge < 0 {
		return errors.New("cache: max_age must be greater than zero; to do without a cache, turn it off")
	}

	if a.StoreRaw == nil {
		a.StoreRaw = json.RawMessage(`{"store":"bbolt"}`)
	}
	mod, err := ctx.LoadModule(a, "StoreRaw")
	if err != nil {
		return fmt.Errorf("loading the token store: %w", err)
	}
	a.opener = mod.(storeOpener)

	// In JSON a realm or a client may be null; it is then an empty one.
	for name, r := range a.Realms {
		if r == nil {
			r = new(Realm)
			a.Realms[name] = r
		}
		for id, c := range r.Clients {
			if c == nil {
				r.Clients[id] = new(Client)
			}
		}
	}
	root := a.Realms[rootRealm]
	if root == nil {
		root = new(Realm)
	}
	a.realms = make(map[string]*servedRealm)
	issuers := make(map[string]string)
	for _, name := range servedRealms(a.Realms) {
		own := a.Realms[name]
		if own == nil {
			own = root
		}
		r, err := own.provision(name, root, a.logger)
		if err != nil {
			return fmt.Errorf("realm %q: %w", name, err)
		}
		// A slash at the end makes no difference to where the metadata is (RFC 8414 section 3).
		issuer := strings.TrimSuffix(r.settings.Issuer, "/")
		if other, taken := issuers[issuer]; taken && issuer != "" {
			return fmt.Errorf("realms %q and %q have the same issuer %s; each needs its own", other, name, r.settings.Issuer)
		}
		issuers[issuer] = name
		r.app = a
		a.realms[name] = r
		a.usesStore = a.usesStore || len(r.settings.Clients) > 0
	}
	return nil
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

// reservePrefix makes every handler remove headers that begin with prefix, so that no
// other route can be used to tell a backend who is calling.
func (a *App) reservePrefix(prefix string) {
	if !slices.Contains(a.prefixes, prefix) {
		a.prefixes = append(a.prefixes, prefix)
	}
}

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

// realm returns the realm of that name, or, for no name, the only one there is, else
// root. The error says which realms exist.
func (a *App) realm(name string) (*servedRealm, error) {
	name, err := chooseRealm(a.Realms, name)
	if err != nil {
		return nil, err
	}
	return a.realms[name], nil
}

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

// hasher computes the slow hashes of all configurations: what it remembers outlives a
// reload, and its bounds hold for the process. It needs no end.
var hasher = sync.OnceValue(oauth.NewHasher)

// openStores holds the open stores by their pool key. Every App that started holds one
// reference, and the last Cleanup closes the store.
var openStores = caddy.NewUsagePool()

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

// maxMaxTokens bounds max_tokens: the cache allocates 43 bytes for each at once.
const maxMaxTokens = 10_000_000

func checkMaxTokens(n int64) error {
	if n < 1 || n > maxMaxTokens {
		return fmt.Errorf("max_tokens %d is not between 1 and %d; to do without a cache, turn it off", n, maxMaxTokens)
	}
	return nil
}

// minMaxSize has room for some tokens with large claims.
const minMaxSize = 1 << 20

func checkMaxSize(n int64) error {
	if n < minMaxSize || n > math.MaxInt64/16 {
		return fmt.Errorf("max_size of %d bytes is not between 1MiB and 512PiB; to do without a cache, turn it off", n)
	}
	return nil
}

// rootRealm is the name of the realm without a name.
const rootRealm = "root"

// servedRealms are the realms that exist in a configuration, sorted: every named one,
// and root if it has clients or stands alone.
func servedRealms(realms map[string]*Realm) []string {
	var names []string
	for name, r := range realms {
		if name != rootRealm || len(r.Clients) > 0 {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return []string{rootRealm}
	}
	slices.Sort(names)
	return names
}

// chooseRealm resolves the realm that a handler names, or does not name.
func chooseRealm(realms map[string]*Realm, name string) (string, error) {
	served := servedRealms(realms)
	switch {
	case name == "" && len(served) == 1:
		return served[0], nil
	case name == "" && !slices.Contains(served, rootRealm):
		return "", fmt.Errorf("there are several realms and none is named: name one of %s", strings.Join(served, ", "))
	case name == "":
		name = rootRealm
	}
	if !slices.Contains(served, name) {
		return "", fmt.Errorf("there is no realm %q (known: %s)", name, strings.Join(served, ", "))
	}
	return name, nil
}

// sortedKeys returns the keys of m in order, for output and errors that don't vary.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
	_ caddy.Destructor   = (*openStore)(nil)
)
