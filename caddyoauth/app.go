package caddyoauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

func init() {
	caddy.RegisterModule(App{})
}

const (
	defaultMaxTokens = 100_000
	defaultMaxAge    = caddy.Duration(time.Minute)
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

	// realms are those that are served, by name.
	realms map[string]*servedRealm

	// What the handlers need, all together. Only register adds to it. It is complete when the
	// last handler has been provisioned, so before Start and before any request.

	// usesStore reports that tokens are issued here, or accepted that were.
	usesStore bool
	// sources are those of tokens from elsewhere, by what distinguishes their uses.
	sources map[string]*usedSource
	// prefixes are what identity headers begin with, folded.
	prefixes []string
	// judgesPaths reports that some oauth_protect refuses ambiguous paths.
	judgesPaths bool
	// servers are all oauth_server handlers.
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
	a.prefixes = []string{strings.ToLower(defaultHeaderPrefix)}
	a.sources = make(map[string]*usedSource)
	a.ordered = make(map[*caddyhttp.Server]bool)

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

// appFor returns the app of the configuration that a handler is provisioned in.
func appFor(ctx caddy.Context, handler string) (*App, error) {
	app, err := ctx.AppIfConfigured("oauth")
	if err != nil {
		if errors.Is(err, caddy.ErrNotConfigured) {
			return nil, fmt.Errorf("%s needs the oauth app: add an 'oauth' block to the global options", handler)
		}
		return nil, fmt.Errorf("%s: %w", handler, err)
	}
	return app.(*App), nil
}

// needs is what a handler needs the app to do.
type needs struct {
	// store: open the token store, which holds the tokens issued here.
	store bool
	// sources are modules of the namespace oauth.sources: open those of tokens from
	// elsewhere. A LocalSource needs the store.
	sources []any
	// headerPrefix, folded, is what the identity headers that it sets begin with: make every
	// handler remove such headers, so that no other route can be used to tell a backend who
	// is calling. Empty if it sets none.
	headerPrefix string
	// judgesPaths: make every oauth_server refuse ambiguous paths, too.
	judgesPaths bool
	// server is the handler itself, if it is an oauth_server: make it known to the others.
	server *Server
}

// register tells the app what a handler needs, and prepares the server that the handler
// stands in: the order of its routes is checked, and it strips requests early. It returns
// how the handler uses each of its sources, nil for what is no TokenSource. Each handler calls it
// once, in Provision; Caddy provisions one handler after the other.
func (a *App) register(ctx caddy.Context, n needs) ([]*usedSource, error) {
	a.usesStore = a.usesStore || n.store
	used := make([]*usedSource, len(n.sources))
	for i, module := range n.sources {
		switch module := module.(type) {
		case *LocalSource:
			a.usesStore = true
		case TokenSource:
			key := useKey(module)
			if a.sources[key] == nil {
				a.sources[key] = &usedSource{module: module}
			}
			used[i] = a.sources[key]
		}
	}
	if n.headerPrefix != "" && !slices.Contains(a.prefixes, n.headerPrefix) {
		a.prefixes = append(a.prefixes, n.headerPrefix)
	}
	a.judgesPaths = a.judgesPaths || n.judgesPaths
	if n.server != nil {
		a.servers = append(a.servers, n.server)
	}

	// Without a server, as in tests, a handler strips for itself alone, which it does in any
	// case.
	server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok {
		return used, nil
	}
	if !a.ordered[server] {
		a.ordered[server] = true
		if err := checkOrder(ctx, server, a.logger); err != nil {
			return nil, err
		}
	}
	return used, stripEarly(ctx, server, a)
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
	_ caddy.Provisioner = (*App)(nil)
)
