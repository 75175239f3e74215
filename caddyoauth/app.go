package caddyoauth

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/keys"
)

func init() {
	caddy.RegisterModule(App{})
}

const (
	defaultMaxTokens = 100_000
	defaultMaxAge    = caddy.Duration(time.Minute)
)

// App is the OAuth 2.0 authorization server behind the `oauth_server` and
// `oauth_protect` handlers: realms with their clients, the store that holds issued
// tokens, and the cache in front of it.
type App struct {
	// Where issued tokens are kept. Two configurations that name the same store share it, so
	// tokens survive a reload. Default: `bbolt`, in Caddy's data directory.
	StoreRaw json.RawMessage `json:"store,omitempty" caddy:"namespace=oauth.stores inline_key=store"`

	// The cache of what tokens mean.
	Cache *CacheSettings `json:"cache,omitempty"`

	// Secrets that protect keys at rest: each exactly `{env.NAME}` or `{file./path}`, of at least 32
	// characters. The keys of self-contained tokens lie in the token store, encrypted with
	// AES-256-GCM under the first of these; the others decrypt what was encrypted before. Losing them
	// loses the keys, and ends the tokens. Required for self-contained tokens in `redis`, where
	// whoever can read the store could make tokens otherwise. Default: none; the keys lie in the
	// store as they are.
	EncryptionKeys []string `json:"encryption_keys,omitempty"`

	// The realms by name. Each realm is an authorization server of its own, with its own
	// issuer, clients and tokens; a token of one realm is refused by every other. The
	// endpoints of the realm `root` are directly below the base path. Its settings, except
	// for its clients, are the defaults of all other realms. If `root` has no clients
	// while other realms exist, that is all it is for. A name consists of lower-case
	// letters, digits, `-` and `_`.
	Realms map[string]*Realm `json:"realms,omitempty"`

	// How clients prove that they have the key of their token (RFC 9449). Default: as a DPoP without
	// settings, where a client or an `oauth_protect` has `dpop`; elsewhere proofs are ignored.
	DPoP *DPoP `json:"dpop,omitempty"`

	// Which certificates of clients count, and who may have made them. Default: that of the TLS
	// connection, as Caddy's `client_auth` verifies it.
	ClientCertificates *ClientCertificates `json:"client_certificates,omitempty"`

	// What may be done in the console, a page on the admin endpoint. Default: as a Console without
	// settings, so a browser changes nothing.
	Console *Console `json:"console,omitempty"`

	// Findings of `caddy oauth lint` that are meant to be, in any part of the configuration. Default: none.
	LintIgnore []LintIgnore `json:"lint_ignore,omitempty"`

	// What Provision makes of the configuration.

	ctx    caddy.Context
	logger *zap.Logger
	opener storeOpener
	cipher *keys.Cipher // by EncryptionKeys; nil without them
	proofs *proofJudges
	realms map[string]*servedRealm // those that are served, by name

	// What all handlers together need. Only register adds to it. It is complete when the last
	// handler has been provisioned, and so before Start and before any request.

	// usesStore is set if tokens are issued here, or tokens issued here are accepted.
	usesStore bool
	// usesProofs is set if proofs by DPoP are judged here.
	usesProofs bool
	// sources are the sources of tokens from elsewhere, by useKey.
	sources map[string]*usedSource
	// prefixes are what the names of identity headers begin with, folded, and the names of those with
	// assertions, which don't end with -.
	prefixes []string
	// credentials are the folded names of the headers that carry credentials: those that callers
	// show to us, and those that clients have for backends. They are complete after Provision.
	credentials []string
	// judgesPaths is set if any oauth_protect refuses ambiguous paths; see refusesPaths. If one only
	// will, judgesPathsFrom is when.
	judgesPaths     bool
	judgesPathsFrom time.Time
	// servers are all oauth_server handlers.
	servers []*Server
	// foreign are the counts for the clients of tokens from elsewhere.
	foreign *clientCounts
	// counted are the realms whose series this configuration uses, until Cleanup.
	counted []string
	// refusals are the logs of refusals of all handlers, which Cleanup ends.
	refusals []*refusalLog
	// limited writes the events of Outcome.Paused, at any rate of guessing.
	limited func() *zap.Logger
	// ordered are the servers whose routes checkOrder has checked.
	ordered map[*caddyhttp.Server]bool

	// run is the rest, from Start to Cleanup; see lifecycle.go.
	run *running
}

// CacheSettings are the settings of the token cache.
type CacheSettings struct {
	// Turns the cache off: every check asks the token's source. Concurrent checks of one
	// token still share one answer. Default: false.
	Disabled bool `json:"disabled,omitempty"`

	// The most tokens to cache, up to ten million. Default: 100000.
	MaxTokens int64 `json:"max_tokens,omitempty"`

	// The most bytes that cached tokens may take together, 1 MiB or more. A token issued here
	// takes about 0.7 KiB, and one from elsewhere the size of its claims on top. The process
	// grows by at most two and a half times this size, plus 43 bytes for each of `max_tokens`.
	// Default: 128 MiB, or 1 KiB for each of `max_tokens` if that is more.
	MaxSize int64 `json:"max_size,omitempty"`

	// How long an answer is used before the token's source is asked again. Tokens issued here
	// are refused as soon as they are revoked, whatever this is. Default: `60s`.
	MaxAge caddy.Duration `json:"max_age,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "oauth",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision turns the configuration into what requests use. It opens nothing and asks no other
// server, so `caddy validate` works beside a running gateway.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx = ctx
	a.logger = watched(ctx.Logger())
	a.limited = thinned(a.logger)
	a.run = &running{ready: make(chan struct{})}
	a.prefixes = []string{strings.ToLower(defaultHeaderPrefix)}
	a.credentials = slices.Clone(credentialHeaders)
	a.foreign = foreignCounts
	a.sources = make(map[string]*usedSource)
	a.ordered = make(map[*caddyhttp.Server]bool)

	if err := registerMetrics(ctx.GetMetricsRegistry()); err != nil {
		return err
	}

	if a.Cache == nil {
		a.Cache = new(CacheSettings)
	}
	if err := checkLintIgnores(a.LintIgnore, true); err != nil {
		return err
	}
	if err := a.ClientCertificates.provision(); err != nil {
		return fmt.Errorf("client_certificates: %w", err)
	}
	if err := a.Cache.provision(); err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	if a.StoreRaw == nil {
		a.StoreRaw = json.RawMessage(`{"store":"bbolt"}`)
	}
	mod, err := ctx.LoadModule(a, "StoreRaw")
	if err != nil {
		return fmt.Errorf("loading the token store: %w", err)
	}
	a.opener = mod.(storeOpener)
	if err := a.provisionEncryption(); err != nil {
		return err
	}
	if a.proofs, err = newProofJudges(a.DPoP); err != nil {
		return fmt.Errorf("dpop: %w", err)
	}
	if err := a.provisionRealms(); err != nil {
		return err
	}
	a.warnOfDebug("headers of upstream_header, with the secrets in them", a.credentials[len(credentialHeaders):]...)
	return nil
}

func (a *App) provisionEncryption() (err error) {
	secrets := make([]string, len(a.EncryptionKeys))
	for i, reference := range a.EncryptionKeys {
		if secrets[i], err = conf.ResolveSecret(reference); err != nil {
			return fmt.Errorf("encryption_keys: %w", err)
		}
	}
	if a.cipher, err = keys.NewCipher(secrets...); err != nil {
		return fmt.Errorf("encryption_keys: %w", err)
	}
	return nil
}

// provision fills in the defaults and checks the rest.
func (c *CacheSettings) provision() error {
	c.MaxTokens = cmp.Or(c.MaxTokens, defaultMaxTokens)
	c.MaxAge = cmp.Or(c.MaxAge, defaultMaxAge)
	if err := checkMaxTokens(c.MaxTokens); err != nil {
		return err
	}
	if c.MaxSize != 0 {
		if err := checkMaxSize(c.MaxSize); err != nil {
			return err
		}
	}
	if c.MaxAge < 0 {
		return errors.New("max_age must be greater than zero; to do without a cache, turn it off")
	}
	return nil
}

// provisionRealms makes the realms that are served.
func (a *App) provisionRealms() error {
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
	if err := root.checkExpect(); err != nil { // it need not be served
		return fmt.Errorf("realm %q: %w", rootRealm, err)
	}
	a.realms = make(map[string]*servedRealm)
	issuers := make(map[string]string)
	signers := make(map[string]string) // the realms that have keys from files, by their IDs
	before := activeApp()              // whose counts go on
	for _, name := range servedRealms(a.Realms) {
		own := a.Realms[name]
		if own == nil {
			own = root
		}
		r, err := own.provision(name, root, a.logger)
		if err != nil {
			return fmt.Errorf("realm %q: %w", name, err)
		}
		// A trailing slash makes no difference to where the metadata is (RFC 8414 section 3).
		issuer := strings.TrimSuffix(r.settings.Issuer, "/")
		if other, taken := issuers[issuer]; taken && issuer != "" {
			return fmt.Errorf("realms %q and %q have the same issuer %s; each needs its own", other, name, r.settings.Issuer)
		}
		issuers[issuer] = name
		for _, id := range r.fileKeys() {
			if other, taken := signers[id]; taken {
				return fmt.Errorf("realms %q and %q have the same key in their key_file; each needs its own", other, name)
			}
			signers[id] = name
		}
		if r.hmac != nil {
			for _, other := range sortedKeys(a.realms) {
				if r.hmac.SharesSecret(a.realms[other].hmac) { // who can verify for one could sign for the other
					return fmt.Errorf("realms %q and %q have the same jwt_hmac_secret; each needs its own", other, name)
				}
			}
		}
		if _, shared := a.opener.(*RedisStore); shared && r.hasKeys() && a.cipher == nil {
			return fmt.Errorf("realm %q has self-contained tokens or signs JWTs, and the keys for that lie in Redis: give an encryption_key, or whoever can read that Redis can make tokens", name)
		}
		takesProofs, err := a.takesProofs(r)
		if err != nil {
			return fmt.Errorf("realm %q: %w", name, err)
		}
		if takesProofs {
			a.usesProofs, r.settings.Proofs = true, a.proofs.endpoint
		}
		r.app = a
		r.handOnCounts(before)
		a.credentials = append(a.credentials, r.upstreamNames()...)
		a.realms[name] = r
		a.usesStore = a.usesStore || len(r.settings.Clients) > 0 || r.managed != nil
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

// needs is what a handler needs the app to do. The zero value is for one that needs only what
// register does in any case.
type needs struct {
	// store has the app open the token store, which holds the tokens issued here.
	store bool
	// sources are modules of the namespace oauth.sources. The app opens each TokenSource; a
	// LocalSource needs the store. realm is the realm of a LocalSource that names none.
	sources []any
	realm   string
	// headerPrefix is what the names of the handler's identity headers begin with, folded. The
	// app has all handlers remove such headers, so that a caller can't use another route to
	// tell the backend who is calling. Empty for a handler that sets none.
	headerPrefix string
	// proofs has the app judge DPoP proofs, and open the store, which remembers them.
	proofs bool
	// assertion has the app remove its header as well, and open the store, which has the keys. Nil for
	// a handler without one.
	assertion *Assertion
	// protect is the handler itself if it is an oauth_protect: while it refuses ambiguous paths,
	// every oauth_server does.
	protect *Protect
	// server is the handler itself if it is an oauth_server: each must know the paths of the
	// others.
	server *Server
}

// register tells the app what a handler needs, and prepares the HTTP server that the handler
// is part of: it checks the order of the server's routes, and has the server strip requests
// early. It returns what stands for each source on the handler's route. Every handler calls it
// once, in Provision; Caddy provisions handlers one after the other.
func (a *App) register(ctx caddy.Context, n needs) ([]routeSource, error) {
	a.usesStore = a.usesStore || n.store || n.proofs || n.assertion != nil
	a.usesProofs = a.usesProofs || n.proofs
	sources, err := a.useSources(n.sources, n.realm)
	if err != nil {
		return nil, fmt.Errorf("oauth_protect: %w", err) // no other handler has sources
	}
	for _, name := range a.credentials {
		if n.headerPrefix != "" && hasFoldedPrefix(name, n.headerPrefix) {
			return nil, fmt.Errorf("oauth_protect: header_prefix %q covers %s, which is an upstream_header of a client; give one of them another name", n.headerPrefix, http.CanonicalHeaderKey(name))
		}
	}
	if n.headerPrefix != "" && !slices.Contains(a.prefixes, n.headerPrefix) {
		a.prefixes = append(a.prefixes, n.headerPrefix)
	}
	if n.assertion != nil {
		name := strings.ToLower(n.assertion.header())
		if isOneOf(name, a.credentials) {
			return nil, fmt.Errorf("oauth_protect: assertion %s: a client has an upstream_header of that name; give one of them another", n.assertion.header())
		}
		if !slices.Contains(a.prefixes, name) {
			a.prefixes = append(a.prefixes, name)
			a.warnOfDebug("assertions", name)
		}
	}
	if err := a.checkIdentityHeaders(); err != nil {
		return nil, fmt.Errorf("oauth_protect: %w", err)
	}
	if n.protect != nil {
		a.judgePaths(n.protect)
	}
	if n.server != nil {
		a.servers = append(a.servers, n.server)
	}

	// There is no server in some tests. The handler still strips requests itself, as it always
	// does.
	server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok {
		return sources, nil
	}
	if !a.ordered[server] {
		a.ordered[server] = true
		if err := checkOrder(ctx, server, a.logger); err != nil {
			return nil, err
		}
	}
	return sources, stripEarly(ctx, server, a)
}

// judgePaths notes whether an oauth_protect refuses ambiguous paths, or will.
func (a *App) judgePaths(p *Protect) {
	switch {
	case p.AllowAmbiguousPaths:
	case p.ReportOnly == nil:
		a.judgesPaths = true
	case !p.ReportOnly.Until.IsZero() && (a.judgesPathsFrom.IsZero() || p.ReportOnly.Until.Before(a.judgesPathsFrom)):
		a.judgesPathsFrom = p.ReportOnly.Until
	}
}

// refusesPaths reports whether an oauth_server must refuse ambiguous paths now.
func (a *App) refusesPaths() bool {
	return a.judgesPaths || !a.judgesPathsFrom.IsZero() && !time.Now().Before(a.judgesPathsFrom)
}

// refusalLogFor makes the refusalLog of the handler that is being provisioned. at says where that
// stands, if the configuration says so.
func (a *App) refusalLogFor(ctx caddy.Context, realm, at string) *refusalLog {
	l := &refusalLog{logger: watched(ctx.Logger()), realm: realm, rule: cmp.Or(at, placeOf(ctx)), seen: make(map[access.Cause]int)}
	a.refusals = append(a.refusals, l)
	return l
}

// useSources returns what routes use in place of modules of the namespace oauth.sources. A
// LocalSource that names no realm is about the given one.
func (a *App) useSources(modules []any, realm string) ([]routeSource, error) {
	var sources []routeSource
	for _, module := range modules {
		var source routeSource
		switch module := module.(type) {
		case *LocalSource:
			r, err := a.realm(cmp.Or(module.Realm, realm))
			if err != nil {
				return nil, err
			}
			a.usesStore = true
			source = r
		case TokenSource:
			key := useKey(module)
			if a.sources[key] == nil {
				a.sources[key] = &usedSource{module: module}
			}
			a.sources[key].routes++
			source = a.sources[key]
		default:
			return nil, fmt.Errorf("%T is not a source of tokens", module)
		}
		if slices.Contains(sources, source) {
			return nil, fmt.Errorf("duplicate source %s: list each source once", source.label())
		}
		sources = append(sources, source)
	}
	return sources, nil
}

// realm returns the realm of that name. Without a name it is the only realm there is, or else
// root. The error lists the realms that exist.
func (a *App) realm(name string) (*servedRealm, error) {
	name, err := chooseRealm(a.Realms, name)
	if err != nil {
		return nil, err
	}
	return a.realms[name], nil
}

// maxMaxTokens bounds max_tokens: the cache allocates 43 bytes for each in advance.
const maxMaxTokens = 10_000_000

func checkMaxTokens(n int64) error {
	if n < 1 || n > maxMaxTokens {
		return fmt.Errorf("max_tokens must be between 1 and %d, got %d; to do without a cache, turn it off", maxMaxTokens, n)
	}
	return nil
}

// minMaxSize has room for some tokens with large claims.
const minMaxSize = 1 << 20

func checkMaxSize(n int64) error {
	if n < minMaxSize || n > math.MaxInt64/16 {
		return fmt.Errorf("max_size must be between 1MiB and 512PiB, got %d bytes; to do without a cache, turn it off", n)
	}
	return nil
}

// rootRealm is the name of the realm without a name.
const rootRealm = "root"

// servedRealms returns the names of the realms that exist in a configuration, sorted: all but
// root, and root if it has clients or is the only one.
func servedRealms(realms map[string]*Realm) []string {
	var names []string
	for name, r := range realms {
		if name != rootRealm || len(r.Clients) > 0 || r.ManagedClients {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return []string{rootRealm}
	}
	slices.Sort(names)
	return names
}

// chooseRealm returns the name of the realm that a handler means by name, which may be empty.
func chooseRealm(realms map[string]*Realm, name string) (string, error) {
	served := servedRealms(realms)
	switch {
	case name == "" && len(served) == 1:
		return served[0], nil
	case name == "" && !slices.Contains(served, rootRealm):
		return "", fmt.Errorf("name a realm, because there are several (known: %s)", strings.Join(served, ", "))
	case name == "":
		name = rootRealm
	}
	if !slices.Contains(served, name) {
		return "", fmt.Errorf("unknown realm '%s' (known: %s)", name, strings.Join(served, ", "))
	}
	return name, nil
}

// sortedKeys returns the keys of m in order, for output and errors that are always the same.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// forQuestions returns a copy of the App for questions about the configuration: what it counts and
// what it knows of the backends' secrets is nobody's. change completes each of its realms, which are
// copies, too. See walk_handlers.go.
func (a *App) forQuestions(run *running, change func(*servedRealm) error) (*App, error) {
	asked := *a
	asked.run = run
	asked.foreign = newClientCounts()
	asked.realms = make(map[string]*servedRealm)
	for name, r := range a.realms {
		realm := *r
		realm.app, realm.counts = &asked, nil
		realm.upstream = withoutSecrets(r.upstream)
		if err := change(&realm); err != nil {
			return nil, err
		}
		asked.realms[name] = &realm
	}
	return &asked, nil
}

// useSeries is for handlers that count under a realm, before they make any counter.
func (a *App) useSeries(realm string) {
	if !slices.Contains(a.counted, realm) {
		a.counted = append(a.counted, realm)
		realmSeries.use(realm)
	}
}

// Interface guards
var _ caddy.Provisioner = (*App)(nil)
