package caddyoauth

import (
	"cmp"
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("oauth", parseApp)
	httpcaddyfile.RegisterDirective("oauth_server", parseServerRoute)
	httpcaddyfile.RegisterDirective("oauth_protect", parseProtectRoutes)
	// The server comes first, so that the token endpoint never needs a token. Both come before
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
//		cache ...
//		client_certificates { client_cert_header, trusted_ca_file }
//		console write
//		lint_ignore <code> [<site>] <reason>
//
//		<realm settings>          # of the root realm
//		realm <name> {
//			<realm settings>
//		}
//	}
//
// where realm settings are those of realmOptions.
func parseApp(d *caddyfile.Dispenser, existing any) (any, error) {
	d.Next() // the option's name
	begin := at(d)
	if existing != nil {
		return nil, d.Err("oauth is already configured; put everything into one oauth block")
	}
	if _, err := conf.Args(d, 0, 0); err != nil {
		return nil, err
	}
	app := &App{Realms: make(map[string]*Realm)}
	root := new(Realm)
	options := realmOptions(root)
	maps.Copy(options, conf.Options{
		"store": conf.Module("oauth.stores", func(raw json.RawMessage, _ caddyfile.Unmarshaler) error {
			app.StoreRaw = raw
			return nil
		}),
		"cache":       cacheOption(&app.Cache),
		"console":     consoleOption(&app.Console),
		"dpop":        appDPoPOption(&app.DPoP),
		"lint_ignore": lintIgnoreOption(&app.LintIgnore, true),

		"client_certificates": clientCertificatesOption(&app.ClientCertificates),
		"encryption_key": conf.Repeatable(conf.Func(func(d *caddyfile.Dispenser) error {
			args, err := conf.Args(d, 1, 1)
			if err != nil {
				return err
			}
			if !conf.IsSecretReference(args[0]) {
				return d.WrapErr(conf.ErrLiteralSecret)
			}
			app.EncryptionKeys = append(app.EncryptionKeys, args[0])
			return conf.NoBlock(d, "encryption_key")
		})),
		"realm": realmOption(app.Realms),
	})
	if err := options.Read(d, "oauth"); err != nil {
		return nil, err
	}
	if !reflect.ValueOf(*root).IsZero() {
		root.At = begin
		app.Realms[rootRealm] = root
	}
	raw, err := json.Marshal(app)
	if err != nil {
		return nil, d.WrapErr(err)
	}
	return httpcaddyfile.App{Name: "oauth", Value: raw}, nil
}

// at says where the current token of d stands.
func at(d *caddyfile.Dispenser) string {
	return cmp.Or(d.File(), "Caddyfile") + ":" + strconv.Itoa(d.Line())
}

// cacheOption reads one of
//
//	cache off
//	cache {
//		max_tokens <n>
//		max_size   <bytes>
//		max_age    <duration>
//	}
func cacheOption(place **CacheSettings) conf.Option {
	return conf.Func(func(d *caddyfile.Dispenser) error {
		cache := new(CacheSettings)
		*place = cache
		args, err := conf.Args(d, 0, 1)
		if err != nil {
			return err
		}
		if len(args) > 0 {
			if args[0] != "off" {
				return d.Errf("cache takes a block or the word off, not '%s'", args[0])
			}
			cache.Disabled = true
			return conf.NoBlock(d, "cache off")
		}
		return conf.Options{
			"max_tokens": conf.Number(&cache.MaxTokens, checkMaxTokens),
			"max_size":   conf.Size(&cache.MaxSize, checkMaxSize),
			"max_age":    conf.Duration(&cache.MaxAge),
		}.Read(d, "cache")
	})
}

// realmOption reads realm <name> and a block of realmOptions.
func realmOption(realms map[string]*Realm) conf.Option {
	return conf.Repeatable(conf.Func(func(d *caddyfile.Dispenser) error {
		begin := at(d)
		args, err := conf.Args(d, 1, 1)
		if err != nil {
			return err
		}
		name := args[0]
		if err := checkRealmName(name); err != nil {
			return d.Errf("realm '%s': %v", name, err)
		}
		if name == rootRealm {
			return d.Err("the root realm has no block of its own; put its settings directly into the oauth block")
		}
		if realms[name] != nil {
			return d.Errf("duplicate realm '%s'", name)
		}
		realms[name] = &Realm{At: begin}
		return realmOptions(realms[name]).Read(d, "realm")
	}))
}

// realmOptions returns the settings of a realm:
//
//	issuer         <url>
//	mtls_base_url  <url>
//	no_openid_configuration
//	authorization_endpoint
//	managed_clients
//	am_compat      off | { <settings of AMCompat> }
//	inventory_addresses prefix|full|off
//	token_lifetime <duration>
//	token_format   opaque|sealed|jwt
//	signing        { algorithm, rotate, key_file }
//	limit          failures|tokens|inquiries <n> <duration>|off
//	introspect_scope <scope>
//	default_scopes <scope>...
//	client         <id> { ... }
//	lint_ignore    <code> <reason>
//	expect         { <client>|anonymous <method>|* <url> pass|<status> }
func realmOptions(realm *Realm) conf.Options {
	return conf.Options{
		"issuer":                  conf.Text(&realm.Issuer),
		"mtls_base_url":           conf.Text(&realm.MTLSBaseURL),
		"no_openid_configuration": conf.Flag(&realm.NoOpenIDConfiguration),
		"authorization_endpoint":  conf.Flag(&realm.AuthorizationEndpoint),
		"managed_clients":         conf.Flag(&realm.ManagedClients),
		"am_compat":               amCompatOption(&realm.AMCompat),
		"inventory_addresses":     conf.Text(&realm.InventoryAddresses, checkInventoryAddresses),
		"token_lifetime":          conf.Lifetime(&realm.TokenLifetime),
		"token_format":            conf.Text(&realm.TokenFormat, checkTokenFormat),
		"signing":                 signingOption(&realm.Signing),
		"limit":                   limitOption(&realm.Limits, false),
		"introspect_scope":        conf.Text(&realm.IntrospectScope, checkIntrospectScope),
		"default_scopes":          scopesOption(&realm.DefaultScopes),
		"client":                  clientOption(realm),
		"lint_ignore":             lintIgnoreOption(&realm.LintIgnore, false),
		"expect":                  expectOption(realm),
	}
}

// limitOption reads limit <name> <n> <duration>, or limit <name> off.
func limitOption(limits **Limits, ofClient bool) conf.Option {
	return conf.Repeatable(conf.Func(func(d *caddyfile.Dispenser) error {
		if *limits == nil {
			*limits = new(Limits)
		}
		args, known := d.RemainingArgs(), (*limits).byName()
		if len(args) > 0 {
			if ofClient && args[0] == "failures" {
				return d.WrapErr(errFailuresOfClient)
			}
			if ofClient {
				delete(known, "failures")
			}
			if err := conf.OneOf("limit", args[0], sortedKeys(known)...); err != nil {
				return d.WrapErr(err)
			}
		}
		off := len(args) == 2 && args[1] == "off"
		if len(args) != 3 && !off {
			return d.Err("limit takes a name, a number and a duration, as in 'limit tokens 600 1m', or a name and the word off")
		}
		option, limit := "limit "+args[0], known[args[0]]
		if *limit != nil {
			return d.Errf("duplicate option %s", option)
		}
		if *limit = new(Limit); off {
			(*limit).Off = true
			return conf.NoBlock(d, option)
		}
		n, err := conf.ParseNumber[int](option, args[1])
		if err != nil {
			return d.WrapErr(err)
		}
		per, err := conf.ParseDuration(option, args[2])
		if err != nil {
			return d.WrapErr(err)
		}
		(*limit).Count, (*limit).Per = n, per
		if err := (*limit).check(); err != nil {
			return d.Errf("%s: %v", option, err)
		}
		return conf.NoBlock(d, option)
	}))
}

// clientOption reads
//
//	client <id> {
//		secret_hash    <hash> [from <time>] [until <time>]
//		secret         {env.NAME}|{file./path} [from <time>] [until <time>]
//		scopes         <scope>...
//		default_scopes <scope>...
//		audience       <audience>...
//		grant_types    client_credentials|none
//		auth           client_secret_basic|client_secret_post|private_key_jwt|tls_client_auth|self_signed_tls_client_auth|federated...
//		jwks_file      <path>
//		jwks_uri       <url>
//		private_hosts  <host>...
//		jwk            <json>
//		assertion_algorithms <name>...
//		tls_client_auth subject_dn|san_dns|san_uri|san_ip|san_email <value>
//		certificate_file <path>...
//		federated      <issuer> { <settings of Federated> }
//		token_format   opaque|sealed|jwt
//		certificate_bound
//		dpop           required
//		token_lifetime <duration>
//		limit          tokens|inquiries <n> <duration>|off
//		introspect     own|audience [<audience>...]|realm
//		upstream_header <name> <value>
//		disabled
//		lint_ignore    <code> <reason>
//	}
//
// secret, secret_hash, jwk, federated, upstream_header and lint_ignore may repeat.
func clientOption(realm *Realm) conf.Option {
	return conf.Repeatable(conf.Func(func(d *caddyfile.Dispenser) error {
		begin := at(d)
		args, err := conf.Args(d, 1, 1)
		if err != nil {
			return err
		}
		id := args[0]
		if err := conf.CheckClientID(id); err != nil {
			return d.Errf("client '%s': %v", id, err)
		}
		if realm.Clients[id] != nil {
			return d.Errf("duplicate client '%s'", id)
		}
		client := &Client{At: begin}
		if realm.Clients == nil {
			realm.Clients = make(map[string]*Client)
		}
		realm.Clients[id] = client
		if err := (conf.Options{
			"secret":         secretOption(client),
			"secret_hash":    secretOption(client),
			"scopes":         scopesOption(&client.Scopes),
			"default_scopes": scopesOption(&client.DefaultScopes),
			"audience":       conf.Audience(&client.Audience),
			"grant_types": conf.Texts(&client.GrantTypes, func([]string) error {
				_, err := client.grantTypes()
				return err
			}),
			"auth": conf.Texts(&client.Auth, func([]string) error {
				_, err := client.authMethods()
				return err
			}),
			"jwks_file":            conf.Text(&client.JWKSFile),
			"tls_client_auth":      tlsClientAuthOption(&client.TLSClientAuth),
			"certificate_file":     conf.Texts(&client.CertificateFiles),
			"jwks_uri":             conf.Text(&client.JWKSURI, checkKeysURI),
			"private_hosts":        conf.Texts(&client.PrivateHosts),
			"jwk":                  jwkOption(id, client),
			"assertion_algorithms": conf.Texts(&client.AssertionAlgorithms, checkAssertionAlgorithms),
			"federated":            federatedOption(&client.Federated),
			"token_format":         conf.Text(&client.TokenFormat, checkTokenFormat),
			"certificate_bound":    conf.Flag(&client.CertificateBound),
			"dpop":                 conf.Text(&client.DPoP, checkClientDPoP),
			"token_lifetime":       conf.Lifetime(&client.TokenLifetime),
			"limit":                limitOption(&client.Limits, true),
			"introspect": conf.Func(func(d *caddyfile.Dispenser) error {
				args, err := conf.Args(d, 1, -1)
				if err != nil {
					return err
				}
				client.Introspect, client.IntrospectAudience = args[0], args[1:]
				_, _, err = client.introspects(id)
				return conf.At(d, err)
			}),
			"upstream_header": upstreamOption(&client.UpstreamHeaders),
			"disabled":        conf.Flag(&client.Disabled),
			"lint_ignore":     lintIgnoreOption(&client.LintIgnore, false),
		}).Read(d, "client"); err != nil {
			return err
		}
		if err := new(AMCompat).client(client).checkDefaultScopes("its default scope", scopesOfAM(client.DefaultScopes)); err != nil {
			return d.Errf("client '%s': %v", id, err)
		}
		return nil
	}))
}

// secretTakes says what secret and secret_hash take.
func secretTakes(option string) string {
	return option + " takes one value, and optionally 'from' and 'until', each with a time"
}

// secretOption reads a reference to a secret, or its hash. No error repeats the value.
func secretOption(client *Client) conf.Option {
	return conf.Repeatable(conf.Func(func(d *caddyfile.Dispenser) error {
		option := d.Val()
		args := d.RemainingArgs()
		if len(args) != 1 && len(args) != 3 && len(args) != 5 {
			return d.Err(secretTakes(option))
		}
		var secret ClientSecret
		times := map[string]*time.Time{"from": &secret.From, "until": &secret.Until}
		for word := range slices.Chunk(args[1:], 2) {
			place := times[word[0]]
			if place == nil || !place.IsZero() {
				return d.Err(secretTakes(option))
			}
			var err error
			if *place, err = conf.ParseTime(word[0], word[1]); err != nil {
				return d.WrapErr(err)
			}
		}
		isReference := conf.IsSecretReference(args[0])
		if option == "secret" {
			if !isReference {
				return d.WrapErr(errLiteralClientSecret)
			}
			secret.Secret = args[0]
		} else {
			secret.Hash = args[0]
			if !isReference {
				if _, err := secret.provision(); err != nil {
					return d.Errf("%s: %v", option, err)
				}
			}
		}
		if err := secret.checkTimes(); err != nil {
			return d.Errf("%s: %v", option, err)
		}
		client.Secrets = append(client.Secrets, secret)
		return conf.NoBlock(d, option)
	}))
}

// configuredRealms returns the realms of the oauth option, so that the error about a directive that
// names another realm has the directive's place. The app checks again, because a configuration may
// never have been a Caddyfile.
func configuredRealms(h httpcaddyfile.Helper) (map[string]*Realm, error) {
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

// checkRealmArgument refuses an argument of a directive that is not a realm, and says what it was
// probably meant to be. Caddy has already removed the first argument if it looks like a matcher.
func checkRealmArgument(h httpcaddyfile.Helper, directive string, realms map[string]*Realm, options conf.Options) error {
	arg := h.Val()
	_, err := chooseRealm(realms, arg)
	if err == nil {
		return nil
	}
	if _, is := options[arg]; is {
		line := strings.Join(append([]string{arg}, h.RemainingArgs()...), " ")
		return h.Errf("'%s' is an option of %s, and options go into a block: %s {, then a line '%s', then }", arg, directive, directive, line)
	}
	switch {
	case strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, "@") || arg == "*":
		return h.Errf("'%s' is a second matcher, and %s takes one: put several paths into a named matcher, such as '@api path /a /a/*', and write %s @api", arg, directive, directive)
	case strings.ContainsAny(arg, "/*"):
		return h.Errf("'%s' is neither a realm nor a path: a path begins with a slash, as in %s /%s", arg, directive, arg)
	}
	return h.WrapErr(err)
}

// parseServerRoute returns the route of an oauth_server.
func parseServerRoute(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	h.Next() // the directive's name; ExtractMatcherSet goes back to before it
	matcher, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, h.WrapErr(err)
	}
	server, err := parseServer(h)
	if err != nil {
		return nil, err
	}
	return newRoute(h, matcher, server), nil
}

// newRoute returns the route of a handler. Inside a named route it always has a matcher: if nothing
// in a named route has one, Caddy keeps the first handler and silently drops the others, which may
// include the one that protects the rest.
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
//		base_path <path>...
//		default_realm <realm>
//		insecure_http
//		allow_ambiguous_paths
//		lint_ignore <code> <reason>
//	}
//
// lint_ignore may repeat.
func parseServer(h httpcaddyfile.Helper) (*Server, error) {
	h.Next() // the directive's name
	begin := at(h.Dispenser)
	realms, err := configuredRealms(h)
	if err != nil {
		return nil, err
	}
	s := &Server{At: begin}
	var basePaths []string
	options := conf.Options{
		"base_path":             conf.Texts(&basePaths, checkBasePaths),
		"default_realm":         conf.Text(&s.DefaultRealm),
		"insecure_http":         conf.Flag(&s.InsecureHTTP),
		"allow_ambiguous_paths": conf.Flag(&s.AllowAmbiguousPaths),
		"lint_ignore":           lintIgnoreOption(&s.LintIgnore, false),
	}
	for h.NextArg() {
		if err := checkRealmArgument(h, "oauth_server", realms, options); err != nil {
			return nil, err
		}
		if slices.Contains(s.Realms, h.Val()) {
			return nil, h.Errf("duplicate realm '%s'", h.Val())
		}
		s.Realms = append(s.Realms, h.Val())
	}
	if err := options.Read(h.Dispenser, "oauth_server"); err != nil {
		return nil, err
	}
	if len(basePaths) > 0 {
		s.BasePath, s.OtherBasePaths = basePaths[0], basePaths[1:]
	}
	served := s.Realms
	if len(served) == 0 {
		served = servedRealms(realms)
	}
	if err := checkDefaultRealm(s.DefaultRealm, served); err != nil {
		return nil, h.WrapErr(err)
	}
	return s, nil
}

// parseProtectRoutes returns the route of an oauth_protect, and, if it has a matcher, a second route
// that guards what the matcher leaves out. The second has no matcher, so Caddy sorts it after the
// first.
func parseProtectRoutes(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	h.Next() // the directive's name; ExtractMatcherSet goes back to before it
	matcher, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, h.WrapErr(err)
	}
	protect, err := parseProtect(h)
	if err != nil {
		return nil, err
	}
	routes := newRoute(h, matcher, protect)
	if matcher != nil {
		routes = append(routes, h.NewRoute(nil, &Guard{At: protect.At, AllowAmbiguousPaths: protect.AllowAmbiguousPaths, KeepOverrideHeaders: protect.KeepOverrideHeaders, ReportOnly: protect.ReportOnly})...)
	}
	return routes, nil
}

// parseProtect reads
//
//	oauth_protect [<matcher>] [<realm>] {
//		scopes        <scope>...
//		any_scope     <scope>...
//		audience      <audience>...
//		claim         <name> <value>...
//		optional
//		on            <method>...|* { ... }
//		basic         [until <time>]
//		dpop          [required|off] { origin <url>... }
//		resource      <url>
//		assertion     [<header>] { audience, lifetime, realm }
//		max_age       <duration>
//		header_prefix <prefix>
//		keep_token
//		keep_override_headers
//		allow_ambiguous_paths
//		insecure_http
//		ig_challenges [<realm>]
//		report_only   [until <time>]
//		source        <name> ...
//		lint_ignore   <code> <reason>
//	}
//
// claim, on, source and lint_ignore may repeat.
func parseProtect(h httpcaddyfile.Helper) (*Protect, error) {
	h.Next() // the directive's name
	begin := at(h.Dispenser)
	realms, err := configuredRealms(h)
	if err != nil {
		return nil, err
	}
	p := &Protect{At: begin}
	var accepted []string // the realms whose tokens it accepts
	accept := func(name string) error {
		realm, err := chooseRealm(realms, name)
		accepted = append(accepted, realm)
		return err
	}
	options := conf.Options{
		"scopes":    conf.Scopes(&p.Scopes),
		"any_scope": conf.Scopes(&p.AnyScope),
		"audience":  conf.Audience(&p.Audience),
		"claim":     claimOption(&p.Claims),
		"optional":  conf.Flag(&p.Optional),
		"on":        onOption(&p.On),
		"basic":     basicOption(&p.Basic),
		"dpop":      routeDPoPOption(&p.DPoP),
		"resource":  conf.Text(&p.Resource, checkResource),
		"assertion": assertionOption(&p.Assertion, realms),
		"max_age":   conf.Duration(&p.MaxAge),
		"header_prefix": conf.Text(&p.HeaderPrefix, func(prefix string) error {
			_, err := newIdentityHeaders(prefix)
			return err
		}),
		"keep_token":            conf.Flag(&p.KeepToken),
		"keep_override_headers": conf.Flag(&p.KeepOverrideHeaders),
		"allow_ambiguous_paths": conf.Flag(&p.AllowAmbiguousPaths),
		"insecure_http":         conf.Flag(&p.InsecureHTTP),
		"ig_challenges":         igChallengesOption(&p.IGChallenges),
		"report_only":           reportOption(&p.ReportOnly),
		"lint_ignore":           lintIgnoreOption(&p.LintIgnore, false),
		"source": conf.Repeatable(conf.Module("oauth.sources", func(raw json.RawMessage, module caddyfile.Unmarshaler) error {
			p.SourcesRaw = append(p.SourcesRaw, raw)
			if local, ok := module.(*LocalSource); ok {
				return accept(cmp.Or(local.Realm, p.Realm))
			}
			return nil
		})),
	}
	for n := 0; h.NextArg(); n++ {
		if err := checkRealmArgument(h, "oauth_protect", realms, options); err != nil {
			return nil, err
		}
		if n > 0 {
			return nil, h.Err("oauth_protect takes one realm; to accept tokens of several, write a line 'source local <realm>' for each")
		}
		p.Realm = h.Val()
	}
	return p, options.Read(h.Dispenser, "oauth_protect", func() error {
		if len(p.SourcesRaw) == 0 {
			if err := accept(p.Realm); err != nil {
				return err
			}
		}
		return errors.Join(p.checkUpstream(realms, accepted), p.checkBasic(accepted))
	})
}

// onOption reads
//
//	on <method>...|* {
//		scopes    <scope>...
//		any_scope <scope>...
//		audience  <audience>...
//		claim     <name> <value>...
//		dpop      required
//		optional
//	}
//
// claim may repeat.
func onOption(place *[]MethodRule) conf.Option {
	return conf.Repeatable(conf.Func(func(d *caddyfile.Dispenser) error {
		on := MethodRule{Methods: d.RemainingArgs()}
		if err := checkMethods(on.Methods); err != nil {
			return d.WrapErr(err)
		}
		if err := checkMethodsOnce(append(*place, on)); err != nil {
			return d.WrapErr(err)
		}
		if err := (conf.Options{
			"scopes":    conf.Scopes(&on.Scopes),
			"any_scope": conf.Scopes(&on.AnyScope),
			"audience":  conf.Audience(&on.Audience),
			"claim":     claimOption(&on.Claims),
			"dpop":      conf.Text(&on.DPoP, checkClientDPoP),
			"optional":  conf.Flag(&on.Optional),
		}).Read(d, "on"); err != nil {
			return err
		}
		if d.Val() != "}" {
			return d.Errf("on takes methods and a block: on %s {, then a line such as 'scopes read', then }", strings.Join(on.Methods, " "))
		}
		*place = append(*place, on)
		return nil
	}))
}

// claimOption reads claim <name> <value>...
func claimOption(place *[]ClaimRule) conf.Option {
	return conf.Repeatable(conf.Func(func(d *caddyfile.Dispenser) error {
		args := d.RemainingArgs()
		if len(args) < 2 {
			name := append(args, "role")[0]
			return d.Errf("claim takes a name and the values that a token may have there, as in 'claim %s admin'", name)
		}
		rule := ClaimRule{Name: args[0], Values: args[1:]}
		*place = append(*place, rule)
		return conf.At(d, rule.check())
	}))
}

// lintIgnoreOption reads lint_ignore <code> <reason>, or, with sites, lint_ignore <code> [<site>]
// <reason>.
func lintIgnoreOption(place *[]LintIgnore, sites bool) conf.Option {
	return conf.Repeatable(conf.Func(func(d *caddyfile.Dispenser) error {
		ignore := LintIgnore{At: at(d)}
		args := d.RemainingArgs()
		switch {
		case len(args) == 0:
			return d.Err("lint_ignore takes the code of a finding and a reason, in quotes")
		case len(args) == 3 && sites:
			ignore.Site = args[1]
		case len(args) > 2:
			return d.Errf("lint_ignore %s takes one reason: put it in quotes, as in lint_ignore %s \"%s\"", args[0], args[0], strings.Join(args[1:], " "))
		}
		ignore.Code = args[0]
		if len(args) > 1 {
			ignore.Reason = args[len(args)-1]
		}
		*place = append(*place, ignore)
		if err := ignore.check(); err != nil {
			return d.WrapErr(err)
		}
		return conf.NoBlock(d, "lint_ignore")
	}))
}
