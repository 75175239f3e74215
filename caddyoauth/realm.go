package caddyoauth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/keys"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// Realm is an authorization server: an issuer with its own clients and tokens. Its name has lower-case
// letters, digits, `-` and `_`. That of a nested realm has up to eight such parts with `/` between them, as
// in `retail/eu`. Nesting is in names and URLs alone: a realm takes nothing from the one around it, which
// need not exist, and no token of one is good in the other.
type Realm struct {
	// Where its block begins in the Caddyfile, as in `Caddyfile:12`. The adapter writes it, for people:
	// it decides nothing. Default: none.
	At string `json:"at,omitempty"`

	// The issuer identifier (RFC 8414): an https URL without query or fragment, such as
	// `https://auth.example.com/oauth2`. Plain http is accepted for loopback hosts only.
	// A realm without one uses root's, followed by `/realms/root/realms/<name>`, or by
	// `/realms/root/realms/<part>/realms/<part>` if it is nested. Without any issuer there is no metadata; tokens work all the same. Placeholders are
	// replaced when the configuration is loaded.
	Issuer string `json:"issuer,omitempty"`

	// What the URLs of the endpoints begin with for clients that show a certificate, where these have a
	// host of their own (RFC 8705 section 5): an https URL that ends with the base path, such as
	// `https://mtls.example.com/oauth2`. Its site has an `oauth_server` for the same realm, and asks for
	// certificates, which browsers at the issuer's host are then spared. The metadata names it. A realm
	// without one uses root's, followed by `/realms/root/realms/<name>`. Placeholders are replaced when
	// the configuration is loaded. Default: none; all clients use the same endpoints.
	MTLSBaseURL string `json:"mtls_base_url,omitempty"`

	// How long a token lives, in whole seconds, at most a year. Default: `1h`.
	TokenLifetime caddy.Duration `json:"token_lifetime,omitempty"`

	// What tokens look like: `opaque`, which stand for a record in the store; `sealed`, which carry
	// what they say, encrypted, so that the store keeps only those that are revoked; or `jwt`, signed
	// JWTs (RFC 9068), which others can read and verify as well. Who verifies them without asking here
	// does not learn that a token was revoked. A change is for new tokens; the others stay good until
	// they end. Default: `opaque`.
	TokenFormat string `json:"token_format,omitempty"`

	// How the realm signs JWTs. Set for root, it applies to all realms that don't say otherwise.
	// Default: as a Signing without settings, if any client has `token_format jwt`; else the realm has
	// no keys.
	Signing *Signing `json:"signing,omitempty"`

	// Answers 404 where OpenID Connect has its metadata: at `/.well-known/openid-configuration`
	// under the base path, where ForgeRock AM serves the RFC 8414 document and where it is
	// served without this option, and at the same name followed by the path of the issuer.
	// Libraries that look there first, such as Spring's `issuer-uri`, stop at a document without
	// `jwks_uri`; if there is none, they go on to RFC 8414's own place. Set for root, it applies
	// to all realms. Default: false.
	NoOpenIDConfiguration bool `json:"no_openid_configuration,omitempty"`

	// How exact the addresses are that clients are said to have come from, in the inventory: `prefix` for
	// the network, a /24 of IPv4 or a /64 of IPv6; `full` for the address; or `off`. It holds for what is
	// noted from now on, and what was noted before is shown no more exactly. Default: root's; there it is
	// `prefix`.
	InventoryAddresses string `json:"inventory_addresses,omitempty"`

	// Has the metadata name an authorization endpoint, at `/authorize` under the base path, which
	// refuses everybody: nobody can log in here. MCP clients demand one. If an `oauth_protect` of this
	// configuration has a `resource` and accepts the realm's tokens, the metadata does so without
	// this option, which is for gateways that only issue tokens. Set for root, it applies to all
	// realms. Default: false.
	AuthorizationEndpoint bool `json:"authorization_endpoint,omitempty"`

	// How much each client may do in a given time, for each limit that the realm sets. Default: root's.
	Limits *Limits `json:"limits,omitempty"`

	// A scope. With an access token of the realm that has it, a client may introspect without other
	// credentials, as far as its `introspect` goes: it sends the token as a bearer token. Whoever gets
	// hold of such a token can do the same, so it should go nowhere else. A token that is bound to a
	// certificate is good with that certificate; one that is bound to a key is refused. Default: root's;
	// there it is none, and clients need their credentials.
	IntrospectScope string `json:"introspect_scope,omitempty"`

	// What a client gets if it asks for no scope and has no default of its own. Each must be
	// among the client's scopes. Default: none, and such a request is refused.
	DefaultScopes []string `json:"default_scopes,omitempty"`

	// Findings of `caddy oauth lint` that are meant to be, in the realm and its clients. Default: none.
	LintIgnore []LintIgnore `json:"lint_ignore,omitempty"`

	// How requests must end, in the name of the realm's clients or of nobody. A configuration that
	// breaks one of these is refused when it is started. Default: none.
	Expect []Expectation `json:"expect,omitempty"`

	// Lets operators add clients while gateways run, by the admin endpoint and `caddy oauth client`.
	// They lie in the token store, so all gateways that share it have the same ones, and a reload
	// changes nothing about them. A client of this configuration that has the same ID counts instead.
	// Default: false; the clients below are all there are.
	ManagedClients bool `json:"managed_clients,omitempty"`

	// Answers as ForgeRock AM does where that differs from the RFCs. Default: root's; there it is off.
	AMCompat *AMCompat `json:"am_compat,omitempty"`

	// The clients, by client ID. An ID has 1 to 256 visible ASCII characters other than `"`,
	// `\` and `,`; it may have spaces inside.
	Clients map[string]*Client `json:"clients,omitempty"`
}

// servedRealm is a Realm ready for requests.
type servedRealm struct {
	name   string
	issuer *url.URL // of settings.Issuer; nil if there is none
	// mtlsBase is what the URLs of the endpoints begin with for clients that show a certificate; empty if
	// they use the same as others.
	mtlsBase string
	// noOpenIDConfiguration is set if the metadata is not served where OpenID Connect has it.
	noOpenIDConfiguration bool
	// format is the token_format of clients that have none of their own.
	format string
	// signing is nil if the realm signs nothing.
	signing  *signing
	app      *App
	settings oauth.Settings
	// am is nil if the realm does not answer as ForgeRock AM.
	am *AMCompat
	// hmac signs the realm's JWTs, in the place of its keys, if am has a secret for that; else it is nil.
	hmac *keys.HMACKey
	// queryWarnings are nil if clients may not have their credentials in the query of a URL. A copy of the
	// realm shares them.
	queryWarnings *queryWarnings
	// counts are by client ID, with an entry for each client, and one for all managed ones. The map is read-only.
	counts map[string]*clientCounts
	// upstream are by client ID, with an entry for each client that has any. The map is read-only.
	upstream map[string]upstreamHeaders
	// assertions are by client ID, with an entry for each client that authenticates by assertions. The
	// map is read-only.
	assertions map[string]*assertionKeys
	// certificates are the files of clients, by ID, that have certificates of their own. The map is
	// read-only.
	certificates map[string][]string
	// federated are by issuer, with an entry for each platform whose tokens are credentials of a client.
	// The map is read-only.
	federated map[string]*federatedKeys
	// takesSVIDs is set if one of these is a SPIFFE trust domain.
	takesSVIDs bool
	// managed is nil if the realm has no managed clients.
	managed *managedRealm
	// opened are the keys that are open for them. A copy of the realm shares it.
	opened *openedKeys
	// takesBasic is set if there is a route where its clients may use Basic. Provisioning such a
	// route sets it.
	takesBasic bool
	// besideOthers is set if there is a route that takes its tokens and tokens from elsewhere.
	// Provisioning such a route sets it.
	besideOthers bool
	// authorization is set if its metadata names an authorization endpoint. Provisioning a protected
	// resource whose document names its issuer sets it, by nameAuthorization.
	authorization bool
	// engine is nil until the app's Start. Use await.
	engine *oauth.Engine
}

// await returns the realm's engine, waiting for it while the app starts.
func (r *servedRealm) await(ctx context.Context) (*oauth.Engine, error) {
	if err := r.app.await(ctx); err != nil {
		return nil, err
	}
	return r.engine, nil
}

// selfContained reports whether any client of the realm gets tokens that carry their facts.
func (r *servedRealm) selfContained() bool {
	for _, client := range r.settings.Clients {
		if oauth.SelfContained(client.TokenFormat) {
			return true
		}
	}
	return r.managed != nil && oauth.SelfContained(r.managed.format)
}

// hasKeys reports whether the realm has a ring of keys.
func (r *servedRealm) hasKeys() bool { return r.signing != nil || r.selfContained() }

// realmPart is a part of a realm's name: all of it, unless the realm is nested. Nothing else may be in
// names, since stores separate them from what follows by NUL and by colons, and Redis takes braces for
// hash tags.
var realmPart = regexp.MustCompile(`^[a-z0-9_-]+$`)

// maxRealmParts bounds how deep realms nest.
const maxRealmParts = 8

// provision checks the realm's settings, with root's where it has none, and turns them
// into what requests use.
func (rc *Realm) provision(name string, root *Realm, logger *zap.Logger) (*servedRealm, error) {
	if err := checkRealmName(name); err != nil {
		return nil, err
	}
	if err := rc.checkExpect(); err != nil {
		return nil, err
	}
	if err := checkLintIgnores(rc.LintIgnore, false); err != nil {
		return nil, err
	}
	issuer, issuerURL, err := rc.resolveIssuer(name, root)
	if err != nil {
		return nil, err
	}
	lifetime := cmp.Or(rc.TokenLifetime, root.TokenLifetime, caddy.Duration(time.Hour))
	if err := conf.CheckLifetime("token_lifetime", lifetime); err != nil {
		return nil, err
	}
	format := cmp.Or(rc.TokenFormat, root.TokenFormat, oauth.FormatOpaque)
	if err := checkTokenFormat(format); err != nil {
		return nil, err
	}
	am := rc.AMCompat.or(root.AMCompat)
	if am != nil && am.TokensInQuery {
		logger.Warn("tokens_in_query: the realm takes tokens from the query of URLs, which get into the logs of all proxies on the way", zap.String("realm", name))
	}
	defaultScopes := am.scopes(rc.DefaultScopes)
	if len(defaultScopes) == 0 {
		defaultScopes = am.scopes(root.DefaultScopes)
	}
	if err := conf.CheckScopes("default_scopes", defaultScopes); err != nil {
		return nil, err
	}
	introspectScope := cmp.Or(rc.IntrospectScope, root.IntrospectScope)
	if err := checkIntrospectScope(introspectScope); err != nil {
		return nil, err
	}
	addresses := cmp.Or(rc.InventoryAddresses, root.InventoryAddresses, oauth.AddressPrefix)
	if err := checkInventoryAddresses(addresses); err != nil {
		return nil, err
	}
	if err := rc.AMCompat.check(); err != nil {
		return nil, fmt.Errorf("am_compat: %w", err)
	}
	limits := rc.Limits.or(root.Limits)
	if limits.Failures == nil {
		limits.Failures = &defaultFailures
	}
	if err := limits.check(); err != nil {
		return nil, err
	}
	if len(rc.Clients) == 0 && !rc.ManagedClients {
		logger.Warn("realm has no clients: nobody can fetch a token", zap.String("realm", name))
	}

	r := &servedRealm{name: name, format: format, issuer: issuerURL, noOpenIDConfiguration: rc.NoOpenIDConfiguration || root.NoOpenIDConfiguration, authorization: rc.AuthorizationEndpoint || root.AuthorizationEndpoint, upstream: make(map[string]upstreamHeaders), assertions: make(map[string]*assertionKeys), certificates: make(map[string][]string), am: am, federated: make(map[string]*federatedKeys), opened: new(openedKeys)}
	if r.am != nil && r.am.CredentialsInQuery {
		r.queryWarnings = new(queryWarnings)
		logger.Warn("am_compat has credentials_in_query: secrets in URLs get into the logs of proxies and servers; have clients send them by Basic or in the form", zap.String("realm", name))
	}
	if rc.ManagedClients {
		r.managed = &managedRealm{format: format, lifetime: lifetime, scopes: defaultScopes, limits: limits}
	}
	r.settings = oauth.Settings{Realm: name, Issuer: issuer, Clients: make(map[string]*oauth.Client), FailureLimit: limits.Failures.limit(), IntrospectScope: introspectScope, InventoryAddresses: addresses, GrantTypeFirst: r.am != nil}
	for _, id := range sortedKeys(rc.Clients) {
		if slices.ContainsFunc(rc.Clients[id].Secrets, func(s ClientSecret) bool { return s.RetireUnused != 0 }) {
			return nil, fmt.Errorf("client %q: retire_unused is for secrets of managed clients: the gateway can't change a configuration", id)
		}
		client, err := am.client(rc.Clients[id]).provision(id, format, lifetime, defaultScopes, limits, logger)
		if err != nil {
			return nil, fmt.Errorf("client %q: %w", id, err)
		}
		client.Introspect = cmp.Or(am.introspects(rc.Clients[id]), client.Introspect)
		client.Auth = r.am.authMethods(client)
		r.settings.Clients[id] = client
		assertions, err := rc.Clients[id].assertionKeys(id, client.Auth, issuer)
		if err != nil {
			return nil, fmt.Errorf("client %q: %w", id, err)
		}
		if assertions != nil {
			assertions.lifetime = r.am.assertionLifetime()
			r.assertions[id] = assertions
		}
		certificates, err := rc.Clients[id].provisionCertificates(client, logger)
		if err != nil {
			return nil, fmt.Errorf("client %q: %w", id, err)
		}
		if len(certificates) > 0 {
			r.certificates[id] = certificates
		}
		if err := r.federate(rc.Clients[id], client); err != nil {
			return nil, fmt.Errorf("client %q: %w", id, err)
		}
		upstream, err := resolveUpstream(rc.Clients[id].UpstreamHeaders)
		if err != nil {
			return nil, fmt.Errorf("client %q: %w", id, err)
		}
		if len(upstream) > 0 {
			r.upstream[id] = upstream
		}
	}
	if err := r.checkFederated(); err != nil {
		return nil, err
	}
	if r.mtlsBase, err = rc.resolveMTLSBase(name, root); err != nil {
		return nil, err
	}
	if r.signing, err = rc.signing(root, r); err != nil {
		return nil, err
	}
	if err := r.provisionAM(rc.AMCompat); err != nil {
		return nil, err
	}
	return r, nil
}

// checkIntrospectScope checks a scope, if there is one.
func checkIntrospectScope(scope string) error {
	if scope == "" {
		return nil
	}
	return conf.CheckScopes("introspect_scope", []string{scope})
}

// resolveIssuer returns the realm's issuer, derived from root's if it has none of its own, or
// nothing if there is no issuer at all.
func (rc *Realm) resolveIssuer(name string, root *Realm) (string, *url.URL, error) {
	issuer, suffix := rc.Issuer, ""
	if issuer == "" && name != rootRealm {
		issuer, suffix = root.Issuer, realmPath(name)
	}
	if issuer == "" {
		return "", nil, nil
	}
	if err := conf.Resolve("issuer", &issuer); err != nil {
		return "", nil, err
	}
	if suffix != "" {
		issuer = strings.TrimSuffix(issuer, "/") + suffix
	}
	u, err := url.Parse(issuer)
	switch {
	case err != nil: // the issuer is not repeated: there may be a password in it
		return "", nil, errors.New("issuer is not a URL")
	case u.User != nil: // not repeated either
		return "", nil, errors.New("issuer contains a user: it is published, so it must have a host and no user, query or fragment")
	case u.Host == "" || u.RawQuery != "" || u.ForceQuery || strings.Contains(issuer, "#"):
		return "", nil, fmt.Errorf("issuer %q must have a host and no user, query or fragment", issuer)
	case !conf.HTTPSOrLoopback(u):
		return "", nil, fmt.Errorf("issuer %q must be an https URL (RFC 8414 section 2); plain http is accepted for loopback hosts only", issuer)
	case !conf.VisibleASCII(issuer) || strings.ContainsAny(issuer, `"\`):
		return "", nil, fmt.Errorf("issuer %q has a character that is not allowed in a URL", issuer)
	}
	return issuer, u, nil
}

// resolveMTLSBase returns what the endpoints' URLs begin with for clients that show a certificate,
// derived from root's if the realm has none of its own, or nothing.
func (rc *Realm) resolveMTLSBase(name string, root *Realm) (string, error) {
	base, suffix := rc.MTLSBaseURL, ""
	if base == "" && name != rootRealm {
		base, suffix = root.MTLSBaseURL, realmPath(name)
	}
	if base == "" {
		return "", nil
	}
	if err := conf.Resolve("mtls_base_url", &base); err != nil {
		return "", err
	}
	u, err := url.Parse(base)
	switch {
	case err != nil || u.User != nil: // not repeated: there may be a password in it
		return "", errors.New("mtls_base_url is not a URL without a user")
	case u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.ForceQuery || strings.Contains(base, "#"):
		return "", fmt.Errorf("mtls_base_url %q must be an https URL without query and fragment", base)
	case !conf.VisibleASCII(base) || strings.ContainsAny(base, `"\`):
		return "", fmt.Errorf("mtls_base_url %q has a character that is not allowed in a URL", base)
	case rc.Issuer == "" && root.Issuer == "":
		return "", errors.New("mtls_base_url is for the metadata, which the realm has only with an issuer: give it one")
	}
	return strings.TrimSuffix(base, "/") + suffix, nil
}

// realmPath is the part between the base path and the endpoints of a realm.
func realmPath(name string) string {
	if name == rootRealm {
		return ""
	}
	return "/realms/root/realms/" + strings.ReplaceAll(name, "/", "/realms/")
}

func checkTokenFormat(format string) error {
	return conf.OneOf("token_format", format, oauth.FormatOpaque, oauth.FormatSealed, oauth.FormatJWT)
}

func checkInventoryAddresses(exact string) error {
	return conf.OneOf("inventory_addresses", exact, oauth.AddressPrefix, oauth.AddressFull, oauth.AddressOff)
}

// checkRealmName checks a realm's name. In a nested realm's, root and realms can't be parts: in a path
// such as /realms/root/realms/a, nobody could tell these words from names.
func checkRealmName(name string) error {
	parts := strings.Split(name, "/")
	if len(parts) > maxRealmParts {
		return fmt.Errorf("the name of a nested realm may have at most %d parts", maxRealmParts)
	}
	for _, part := range parts {
		if !realmPart.MatchString(part) {
			return errors.New("the name of a realm may only have lower-case letters, digits, - and _, with / between the parts of a nested one")
		}
		if len(parts) > 1 && (part == rootRealm || part == "realms") {
			return fmt.Errorf("'%s' can't be a part of a nested realm's name: it has a meaning of its own in the paths of realms", part)
		}
	}
	return nil
}
