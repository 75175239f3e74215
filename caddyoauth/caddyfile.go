package caddyoauth

import (
	"cmp"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("oauth", parseApp)
	httpcaddyfile.RegisterDirective("oauth_server", parseServerRoute)
	httpcaddyfile.RegisterDirective("oauth_protect", parseProtectRoutes)
	// The server first, so that the token endpoint never needs a token; both before
	// request_header, which may then use {http.auth.user.*}.
	httpcaddyfile.RegisterDirectiveOrder("oauth_server", httpcaddyfile.Before, "request_header")
	httpcaddyfile.RegisterDirectiveOrder("oauth_protect", httpcaddyfile.Before, "request_header")
}

// parseApp reads the global option
//
//	oauth {
//		store bbolt [<path>] { ... }
//		store memory
//		store redis <host:port>... { ... }
//		cache off
//		cache {
//			max_tokens <n>
//			max_size   <bytes>
//			max_age    <duration>
//		}
//
//		<realm settings>          # of the root realm
//		realm <name> {
//			<realm settings>
//		}
//	}
//
// where realm settings are those of parseRealmOption.
func parseApp(d *caddyfile.Dispenser, existing any) (any, error) {
	d.Next() // the option's name
	if existing != nil {
		return nil, d.Err("oauth is configured already; put everything into one oauth block")
	}
	if d.NextArg() {
		return nil, d.ArgErr()
	}
	app := &App{Realms: make(map[string]*Realm)}
	root := new(Realm)
	once, rootOnce := make(onceOnly), make(onceOnly)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		switch d.Val() {
		case "store":
			if err := once.check(d); err != nil {
				return nil, err
			}
			if err := parseStore(d, app); err != nil {
				return nil, err
			}
		case "cache":
			if err := once.check(d); err != nil {
				return nil, err
			}
			if err := parseCache(d, app); err != nil {
				return nil, err
			}
		case "realm":
			if err := parseRealm(d, app); err != nil {
				return nil, err
			}
		default:
			known, err := parseRealmOption(d, root, rootOnce)
			if err != nil {
				return nil, err
			}
			if !known {
				return nil, unrecognized(d, "oauth", "store, cache, realm, "+strings.Join(realmOptions, ", "))
			}
		}
	}
	if len(rootOnce) > 0 || len(root.Clients) > 0 {
		app.Realms[rootRealm] = root
	}
	raw, err := json.Marshal(app)
	if err != nil {
		return nil, d.WrapErr(err)
	}
	return httpcaddyfile.App{Name: "oauth", Value: raw}, nil
}

// onceOnly remembers the options of a block that may stand there once.
type onceOnly map[string]bool

func (o onceOnly) check(d *caddyfile.Dispenser) error {
	if o[d.Val()] {
		return d.Errf("%s is there twice", d.Val())
	}
	o[d.Val()] = true
	return nil
}

// unrecognized is the error for a word that is none of a block's options.
func unrecognized(d *caddyfile.Dispenser, block, known string) error {
	if d.Val() == "{" {
		return d.Err("the option before this block takes none")
	}
	return d.Errf("unrecognized %s option '%s' (known: %s)", block, d.Val(), known)
}

// parseOptions reads a block of options, each of them once but for those that may repeat. Each
// function reads what stands behind its option.
func parseOptions(d *caddyfile.Dispenser, block string, options map[string]func() error, repeats ...string) error {
	once := make(onceOnly)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		parse := options[option]
		if parse == nil {
			return unrecognized(d, block, strings.Join(sortedKeys(options), ", "))
		}
		if !slices.Contains(repeats, option) {
			if err := once.check(d); err != nil {
				return err
			}
		}
		if err := parse(); err != nil {
			return err
		}
	}
	return nil
}

// parseDurationInto is parseDuration for a place.
func parseDurationInto(d *caddyfile.Dispenser, place *caddy.Duration) (err error) {
	*place, err = parseDuration(d)
	return err
}

// parseStore reads store <name> ..., with what the module of that name reads.
func parseStore(d *caddyfile.Dispenser, app *App) error {
	if !d.NextArg() {
		return d.ArgErr()
	}
	name := d.Val()
	id := "oauth.stores." + name
	if _, err := caddy.GetModule(id); err != nil {
		var known []string
		for _, m := range caddy.GetModules("oauth.stores") {
			known = append(known, m.ID.Name())
		}
		return d.Errf("there is no store '%s' (known: %s)", name, strings.Join(known, ", "))
	}
	unmarshaler, err := caddyfile.UnmarshalModule(d, id)
	if err != nil {
		return err
	}
	app.StoreRaw = caddyconfig.JSONModuleObject(unmarshaler, "store", name, nil)
	return nil
}

// nothingMore makes sure that a line has no further argument and no block.
func nothingMore(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	name := d.Val()
	if d.NextBlock(d.Nesting()) {
		return d.Errf("%s takes no block", name)
	}
	return nil
}

// parseCache reads cache off, or cache with a block.
func parseCache(d *caddyfile.Dispenser, app *App) error {
	app.Cache = new(CacheSettings)
	if d.NextArg() {
		if d.Val() != "off" {
			return d.Errf("cache takes a block or the word off, not '%s'", d.Val())
		}
		app.Cache.Disabled = true
		return nothingMore(d)
	}
	once := make(onceOnly)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if err := once.check(d); err != nil {
			return err
		}
		var value string
		switch option {
		case "max_tokens":
			if !d.AllArgs(&value) {
				return d.ArgErr()
			}
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return d.Errf("max_tokens '%s' is not a number", value)
			}
			if err := checkMaxTokens(n); err != nil {
				return d.WrapErr(err)
			}
			app.Cache.MaxTokens = n
		case "max_size":
			if !d.AllArgs(&value) {
				return d.ArgErr()
			}
			size, err := humanize.ParseBytes(value)
			if err != nil {
				return d.Errf("max_size '%s' is not a size, such as 64MiB", value)
			}
			if err := checkMaxSize(int64(min(size, math.MaxInt64))); err != nil {
				return d.WrapErr(err)
			}
			app.Cache.MaxSize = int64(size)
		case "max_age":
			age, err := parseDuration(d)
			if err != nil {
				return err
			}
			app.Cache.MaxAge = age
		default:
			return unrecognized(d, "cache", "max_tokens, max_size, max_age")
		}
	}
	return nil
}

// parseDuration reads the one argument of an option, a duration greater than zero.
func parseDuration(d *caddyfile.Dispenser) (caddy.Duration, error) {
	option := d.Val()
	var value string
	if !d.AllArgs(&value) {
		return 0, d.ArgErr()
	}
	duration, err := caddy.ParseDuration(value)
	if err != nil {
		return 0, d.Errf("%s '%s' is not a duration, such as 30s, 5m or 1h", option, value)
	}
	if duration <= 0 {
		return 0, d.Errf("%s '%s' is not greater than zero", option, value)
	}
	return caddy.Duration(duration), nil
}

// parseRealm reads realm <name> { ... }.
func parseRealm(d *caddyfile.Dispenser, app *App) error {
	var name string
	if !d.AllArgs(&name) {
		return d.ArgErr()
	}
	switch {
	case name == rootRealm:
		return d.Err("the settings of the root realm stand directly in the oauth block")
	case !realmName.MatchString(name):
		return d.Errf("realm name '%s' must consist of lower-case letters, digits, - and _", name)
	case app.Realms[name] != nil:
		return d.Errf("realm '%s' is there twice", name)
	}
	realm := new(Realm)
	app.Realms[name] = realm
	once := make(onceOnly)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		known, err := parseRealmOption(d, realm, once)
		if err != nil {
			return err
		}
		if !known {
			return unrecognized(d, "realm", strings.Join(realmOptions, ", "))
		}
	}
	return nil
}

var realmOptions = []string{"issuer", "no_openid_configuration", "token_lifetime", "token_format", "limit", "default_scopes", "client"}

// parseRealmOption reads one of
//
//	issuer         <url>
//	no_openid_configuration
//	token_lifetime <duration>
//	token_format   opaque
//	limit          tokens <n> <duration>
//	default_scopes <scope>...
//	client <id> {
//		<client settings>
//	}
//
// and reports whether the option is one of them.
func parseRealmOption(d *caddyfile.Dispenser, realm *Realm, once onceOnly) (known bool, err error) {
	option := d.Val()
	if !slices.Contains(realmOptions, option) {
		return false, nil
	}
	if option != "client" && option != "limit" {
		if err := once.check(d); err != nil {
			return true, err
		}
	}
	switch option {
	case "issuer":
		if !d.AllArgs(&realm.Issuer) || realm.Issuer == "" {
			return true, d.ArgErr()
		}
	case "no_openid_configuration":
		realm.NoOpenIDConfiguration, err = true, nothingMore(d)
	case "token_lifetime":
		realm.TokenLifetime, err = parseLifetime(d)
	case "token_format":
		if !d.AllArgs(&realm.TokenFormat) {
			return true, d.ArgErr()
		}
		if realm.TokenFormat != tokenOpaque {
			return true, d.Errf("token_format '%s' is not known (known: %s)", realm.TokenFormat, tokenOpaque)
		}
	case "limit":
		once[option] = true
		err = parseLimit(d, &realm.Limits)
	case "default_scopes":
		realm.DefaultScopes, err = parseScopes(d)
	case "client":
		err = parseClient(d, realm)
	}
	return true, err
}

// parseLimit reads limit <name> <n> <duration>.
func parseLimit(d *caddyfile.Dispenser, limits **Limits) error {
	if *limits == nil {
		*limits = new(Limits)
	}
	if !d.NextArg() {
		return d.ArgErr()
	}
	name, known := d.Val(), (*limits).byName()
	limit := known[name]
	if limit == nil {
		return d.Errf("there is no limit '%s' (known: %s)", name, strings.Join(sortedKeys(known), ", "))
	}
	if *limit != nil {
		return d.Errf("limit %s is there twice", name)
	}
	var number, per string
	if !d.AllArgs(&number, &per) {
		return d.Errf("limit %s takes a number and a duration, such as 600 1m", name)
	}
	n, err := strconv.Atoi(number)
	if err != nil {
		return d.Errf("limit %s: '%s' is not a number", name, number)
	}
	duration, err := caddy.ParseDuration(per)
	if err != nil {
		return d.Errf("limit %s: '%s' is not a duration, such as 30s, 5m or 1h", name, per)
	}
	*limit = &Limit{Count: n, Per: caddy.Duration(duration)}
	if err := (*limit).check(); err != nil {
		return d.Errf("limit %s: %v", name, err)
	}
	if d.NextBlock(d.Nesting()) {
		return d.Errf("limit %s takes no block", name)
	}
	return nil
}

func parseLifetime(d *caddyfile.Dispenser) (caddy.Duration, error) {
	lifetime, err := parseDuration(d)
	if err != nil {
		return 0, err
	}
	if err := checkLifetime(lifetime); err != nil {
		return 0, d.WrapErr(err)
	}
	return lifetime, nil
}

// parseScopes reads the arguments of an option, one scope or more.
func parseScopes(d *caddyfile.Dispenser) ([]string, error) {
	option := d.Val()
	scopes := d.RemainingArgs()
	if len(scopes) == 0 {
		return nil, d.ArgErr()
	}
	if err := checkScopes(option, scopes); err != nil {
		return nil, d.WrapErr(err)
	}
	return scopes, nil
}

const clientOptions = "secret, secret_hash, scopes, default_scopes, audience, grant_types, auth, token_lifetime, limit, introspect, disabled"

// parseClient reads
//
//	client <id> {
//		secret_hash    <hash> [until <time>]
//		secret         {env.NAME}|{file./path} [until <time>]
//		scopes         <scope>...
//		default_scopes <scope>...
//		audience       <audience>...
//		grant_types    client_credentials|none
//		auth           client_secret_basic|client_secret_post...
//		token_lifetime <duration>
//		limit          tokens <n> <duration>
//		introspect     own|audience [<audience>...]|realm
//		disabled
//	}
//
// secret and secret_hash may repeat.
func parseClient(d *caddyfile.Dispenser, realm *Realm) error {
	var id string
	if !d.AllArgs(&id) {
		return d.ArgErr()
	}
	if err := checkClientID(id); err != nil {
		return d.Errf("client '%s': %v", id, err)
	}
	if realm.Clients[id] != nil {
		return d.Errf("client '%s' is there twice", id)
	}
	client := new(Client)
	if realm.Clients == nil {
		realm.Clients = make(map[string]*Client)
	}
	realm.Clients[id] = client
	once := make(onceOnly)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if option != "secret" && option != "secret_hash" && option != "limit" {
			if err := once.check(d); err != nil {
				return err
			}
		}
		var err error
		switch option {
		case "secret", "secret_hash":
			err = parseSecret(d, client)
		case "scopes":
			client.Scopes, err = parseScopes(d)
		case "default_scopes":
			client.DefaultScopes, err = parseScopes(d)
		case "audience":
			client.Audience, err = parseAudience(d)
		case "grant_types":
			client.GrantTypes, err = atLeastOne(d)
			if err == nil {
				_, err = client.grantTypes()
				err = wrapErr(d, err)
			}
		case "auth":
			client.Auth, err = atLeastOne(d)
			if err == nil {
				_, err = client.authMethods()
				err = wrapErr(d, err)
			}
		case "token_lifetime":
			client.TokenLifetime, err = parseLifetime(d)
		case "limit":
			err = parseLimit(d, &client.Limits)
		case "introspect":
			if !d.NextArg() {
				return d.ArgErr()
			}
			client.Introspect, client.IntrospectAudience = d.Val(), d.RemainingArgs()
			_, _, err = client.introspects(id)
			err = wrapErr(d, err)
		case "disabled":
			client.Disabled = true
			err = nothingMore(d)
		default:
			err = unrecognized(d, "client", clientOptions)
		}
		if err != nil {
			return err
		}
	}
	if err := client.checkDefaultScopes("its default scope", client.DefaultScopes); err != nil {
		return d.Errf("client '%s': %v", id, err)
	}
	return nil
}

// parseAudience reads the arguments of an option, one audience or more.
func parseAudience(d *caddyfile.Dispenser) ([]string, error) {
	audience, err := atLeastOne(d)
	if err != nil {
		return nil, err
	}
	return audience, wrapErr(d, checkAudience(audience))
}

func atLeastOne(d *caddyfile.Dispenser) ([]string, error) {
	args := d.RemainingArgs()
	if len(args) == 0 {
		return nil, d.ArgErr()
	}
	return args, nil
}

func wrapErr(d *caddyfile.Dispenser, err error) error {
	if err == nil {
		return nil
	}
	return d.WrapErr(err)
}

// parseSecret reads a secret or its hash. No error repeats the value.
func parseSecret(d *caddyfile.Dispenser, client *Client) error {
	option := d.Val()
	if !d.NextArg() {
		return d.ArgErr()
	}
	var secret ClientSecret
	value := d.Val()
	switch {
	case option == "secret" && !secretReference.MatchString(value):
		return d.WrapErr(errLiteralClientSecret)
	case option == "secret":
		secret.Secret = value
	case !secretReference.MatchString(value):
		if _, err := (ClientSecret{Hash: value}).provision(); err != nil {
			return d.Errf("secret_hash: %v", err)
		}
		fallthrough
	default:
		secret.Hash = value
	}
	if d.NextArg() {
		var until string
		if d.Val() != "until" || !d.AllArgs(&until) {
			return d.Errf("%s takes one value, and optionally 'until' and a time", option)
		}
		t, err := time.Parse(time.RFC3339, until)
		if err != nil {
			return d.Errf("until '%s' is not a time like 2026-12-31T00:00:00Z", until)
		}
		secret.Until = t
	}
	client.Secrets = append(client.Secrets, secret)
	if d.NextBlock(d.Nesting()) {
		return d.Errf("%s takes no block", option)
	}
	return nil
}

// realmsOf returns the realms of the oauth option, so that a directive that names
// another is refused where it stands. The app checks again, for configurations that
// never were Caddyfiles.
func realmsOf(h httpcaddyfile.Helper) (map[string]*Realm, error) {
	option, ok := h.Option("oauth").(httpcaddyfile.App)
	if !ok {
		return nil, h.Errf("%s needs an 'oauth' block in the global options", h.Val())
	}
	var app App
	if err := json.Unmarshal(option.Value, &app); err != nil {
		return nil, h.WrapErr(err)
	}
	return app.Realms, nil
}

// checkRealmArgument refuses an argument of a directive that is no realm, and sees what it was
// meant to be. Caddy has taken the matcher away, if the first one looks like a matcher.
func checkRealmArgument(h httpcaddyfile.Helper, directive string, known map[string]*Realm, options string) error {
	arg := h.Val()
	_, err := chooseRealm(known, arg)
	switch {
	case err == nil:
		return nil
	case slices.Contains(strings.Split(options, ", "), arg):
		line := strings.Join(append([]string{arg}, h.RemainingArgs()...), " ")
		return h.Errf("'%s' is an option of %s, and options stand in a block: %s {, then a line '%s', then }", arg, directive, directive, line)
	case strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, "@") || arg == "*":
		return h.Errf("'%s' is a second matcher, and %s takes one: put several paths into a named matcher, such as '@api path /a /a/*', and write %s @api", arg, directive, directive)
	case strings.ContainsAny(arg, "/*"):
		return h.Errf("'%s' is neither a realm nor a path: a path begins with a slash, as in %s /%s", arg, directive, arg)
	}
	return h.WrapErr(err)
}

const serverOptions = "base_path, insecure_http, allow_ambiguous_paths"

// parseServerRoute makes the route of an oauth_server.
func parseServerRoute(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	h.Next() // the directive's name, which ExtractMatcherSet goes back to
	matcher, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, err
	}
	server, err := parseServer(h)
	if err != nil {
		return nil, err
	}
	return newRoute(h, matcher, server), nil
}

// newRoute makes the route of a handler. In a named route it has a matcher in any case: of
// a named route in which nothing has one, Caddy keeps the first handler and drops the others
// without a word, the one that protects the rest among them.
func newRoute(h httpcaddyfile.Helper, matcher caddy.ModuleMap, handler caddyhttp.MiddlewareHandler) []httpcaddyfile.ConfigValue {
	// Caddy reads named routes first, and sets this option when it is done with them.
	if matcher == nil && h.Option("named_routes") == nil {
		matcher = caddy.ModuleMap{} // matches everything
	}
	return h.NewRoute(matcher, handler)
}

// parseServer reads
//
//	oauth_server [<matcher>] [<realm>...] {
//		base_path <path>
//		insecure_http
//		allow_ambiguous_paths
//	}
func parseServer(h httpcaddyfile.Helper) (*Server, error) {
	h.Next() // the directive's name
	known, err := realmsOf(h)
	if err != nil {
		return nil, err
	}
	s := new(Server)
	for h.NextArg() {
		if err := checkRealmArgument(h, "oauth_server", known, serverOptions); err != nil {
			return nil, err
		}
		if slices.Contains(s.Realms, h.Val()) {
			return nil, h.Errf("realm '%s' is there twice", h.Val())
		}
		s.Realms = append(s.Realms, h.Val())
	}
	once := make(onceOnly)
	for h.NextBlock(0) {
		option := h.Val()
		if err := once.check(h.Dispenser); err != nil {
			return nil, err
		}
		switch option {
		case "base_path":
			if !h.AllArgs(&s.BasePath) {
				return nil, h.ArgErr()
			}
			if err := checkBasePath(s.BasePath); err != nil {
				return nil, h.WrapErr(err)
			}
		case "insecure_http":
			s.InsecureHTTP = true
			if err := nothingMore(h.Dispenser); err != nil {
				return nil, err
			}
		case "allow_ambiguous_paths":
			s.AllowAmbiguousPaths = true
			if err := nothingMore(h.Dispenser); err != nil {
				return nil, err
			}
		default:
			return nil, unrecognized(h.Dispenser, "oauth_server", serverOptions)
		}
	}
	return s, nil
}

// parseProtectRoutes makes the route of an oauth_protect, and, if it has a matcher, a
// second one that guards what the matcher leaves out. The second has no matcher, so it
// sorts behind the first.
func parseProtectRoutes(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	h.Next() // the directive's name, which ExtractMatcherSet goes back to
	matcher, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, err
	}
	protect, err := parseProtect(h)
	if err != nil {
		return nil, err
	}
	routes := newRoute(h, matcher, protect)
	if matcher != nil {
		routes = append(routes, h.NewRoute(nil, &Guard{AllowAmbiguousPaths: protect.AllowAmbiguousPaths, KeepOverrideHeaders: protect.KeepOverrideHeaders})...)
	}
	return routes, nil
}

const protectOptions = "scopes, any_scope, audience, claim, max_age, header_prefix, keep_token, keep_override_headers, allow_ambiguous_paths, insecure_http, source"

// parseProtect reads
//
//	oauth_protect [<matcher>] [<realm>] {
//		scopes        <scope>...
//		any_scope     <scope>...
//		audience      <audience>...
//		claim         <name> <value>...
//		max_age       <duration>
//		header_prefix <prefix>
//		keep_token
//		keep_override_headers
//		allow_ambiguous_paths
//		insecure_http
//		source        <name> ...
//	}
//
// claim and source may repeat.
func parseProtect(h httpcaddyfile.Helper) (*Protect, error) {
	h.Next() // the directive's name
	known, err := realmsOf(h)
	if err != nil {
		return nil, err
	}
	p := new(Protect)
	if h.NextArg() {
		if err := checkRealmArgument(h, "oauth_protect", known, protectOptions); err != nil {
			return nil, err
		}
		p.Realm = h.Val()
		if h.NextArg() {
			if err := checkRealmArgument(h, "oauth_protect", known, protectOptions); err != nil {
				return nil, err
			}
			return nil, h.Errf("oauth_protect takes one realm; two of them on one route mean that both must be content")
		}
	}
	once := make(onceOnly)
	for h.NextBlock(0) {
		option := h.Val()
		if option != "claim" && option != "source" {
			if err := once.check(h.Dispenser); err != nil {
				return nil, err
			}
		}
		var err error
		switch option {
		case "claim":
			err = parseClaim(h.Dispenser, p)
		case "source":
			err = parseSource(h.Dispenser, p, known)
		case "scopes":
			p.Scopes, err = parseScopes(h.Dispenser)
		case "any_scope":
			p.AnyScope, err = parseScopes(h.Dispenser)
		case "audience":
			p.Audience, err = parseAudience(h.Dispenser)
		case "max_age":
			p.MaxAge, err = parseDuration(h.Dispenser)
		case "header_prefix":
			if !h.AllArgs(&p.HeaderPrefix) {
				return nil, h.ArgErr()
			}
			if _, bad := newIdentityHeaders(p.HeaderPrefix); bad != nil {
				err = h.WrapErr(bad)
			}
		case "keep_token":
			p.KeepToken, err = true, nothingMore(h.Dispenser)
		case "keep_override_headers":
			p.KeepOverrideHeaders, err = true, nothingMore(h.Dispenser)
		case "allow_ambiguous_paths":
			p.AllowAmbiguousPaths, err = true, nothingMore(h.Dispenser)
		case "insecure_http":
			p.InsecureHTTP, err = true, nothingMore(h.Dispenser)
		default:
			err = unrecognized(h.Dispenser, "oauth_protect", protectOptions)
		}
		if err != nil {
			return nil, err
		}
	}
	if len(p.SourcesRaw) == 0 {
		if _, err := chooseRealm(known, p.Realm); err != nil {
			return nil, h.WrapErr(err)
		}
	}
	return p, nil
}

// parseSource reads source <name> ..., with what the module of that name reads.
func parseSource(d *caddyfile.Dispenser, p *Protect, realms map[string]*Realm) error {
	if !d.NextArg() {
		return d.ArgErr()
	}
	name := d.Val()
	id := "oauth.sources." + name
	if _, err := caddy.GetModule(id); err != nil {
		var known []string
		for _, m := range caddy.GetModules("oauth.sources") {
			known = append(known, m.ID.Name())
		}
		return d.Errf("there is no source '%s' (known: %s)", name, strings.Join(known, ", "))
	}
	unmarshaler, err := caddyfile.UnmarshalModule(d, id)
	if err != nil {
		return err
	}
	if local, ok := unmarshaler.(*LocalSource); ok {
		if _, err := chooseRealm(realms, cmp.Or(local.Realm, p.Realm)); err != nil {
			return d.WrapErr(err)
		}
	}
	p.SourcesRaw = append(p.SourcesRaw, caddyconfig.JSONModuleObject(unmarshaler, "source", name, nil))
	return nil
}

// parseClaim reads claim <name> <value>...
func parseClaim(d *caddyfile.Dispenser, p *Protect) error {
	args := d.RemainingArgs()
	if len(args) < 2 {
		name := "role"
		if len(args) == 1 {
			name = args[0]
		}
		return d.Errf("claim needs a name, and behind it the values of which a token must have one, as in 'claim %s admin'", name)
	}
	rule := ClaimRule{Name: args[0], Values: args[1:]}
	p.Claims = append(p.Claims, rule)
	return wrapErr(d, rule.check())
}

// parseWord reads the one argument of an option.
func parseWord(d *caddyfile.Dispenser, word *string) error {
	if !d.AllArgs(word) || *word == "" {
		return d.ArgErr()
	}
	return nil
}

// parseWords reads the arguments of an option, one or more.
func parseWords(d *caddyfile.Dispenser, words *[]string) (err error) {
	if *words, err = atLeastOne(d); err == nil && slices.Contains(*words, "") {
		err = d.ArgErr()
	}
	return err
}

// parseSecretReference reads the one argument of an option, which refers to a secret. No error
// repeats it.
func parseSecretReference(d *caddyfile.Dispenser, reference *string) error {
	option := d.Val()
	if err := parseWord(d, reference); err != nil {
		return err
	}
	if !secretReference.MatchString(*reference) {
		return d.Errf("%s: %v", option, errLiteralSecret)
	}
	return nil
}
