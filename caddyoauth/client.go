package caddyoauth

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// Client is a program that fetches tokens, or asks about them. Every client is confidential:
// it has a secret, a private key, or a
// certificate.
type Client struct {
	// Where its block begins in the Caddyfile, as in `Caddyfile:12`. The adapter writes it, for people:
	// it decides nothing. Default: none.
	At string `json:"at,omitempty"`

	// The secrets it may authenticate with: several while one replaces another, at least one
	// unless the client is disabled or authenticates without one.
	Secrets []ClientSecret `json:"secrets,omitempty"`

	// What it may ask for: visible ASCII characters other than `"`, `\` and `,`. A token
	// request for anything else is refused, and tokens issued earlier lose a scope that is
	// taken away here. In a realm with `am_compat`, each may have ForgeRock AM's description after a
	// `|`, which is ignored, and with the scope `am-introspect-all-tokens` or
	// `am-introspect-all-tokens-any-realm` the client may ask about all tokens of its realm, or of
	// all realms with `am_compat`, unless its `introspect` says otherwise. Default: none, so that the client can have no token.
	Scopes []string `json:"scopes,omitempty"`

	// What it gets if it asks for no scope. Each must be among its scopes. Default: the
	// realm's.
	DefaultScopes []string `json:"default_scopes,omitempty"`

	// The resource servers its tokens are meant for, recorded in each token and compared
	// byte for byte by routes that require an audience: visible ASCII characters other
	// than `"` and `\`. A token request with `resource` parameters (RFC 8707) gets a token for
	// just those of them. Default: none.
	Audience []string `json:"audience,omitempty"`

	// The grant types it may use: `client_credentials`, or `none` for a client that only
	// introspects and revokes. Default: `client_credentials`.
	GrantTypes []string `json:"grant_types,omitempty"`

	// How it may authenticate: `client_secret_basic`, `client_secret_post`, and `private_key_jwt`
	// (RFC 7523), by a JWT that it signs for each request, so that nobody else has its secret;
	// `tls_client_auth` and `self_signed_tls_client_auth` (RFC 8705), by the certificate of its
	// connection; `federated`, by a token that a platform has given it. Default: the first two if it
	// has a secret or no `federated`, and `federated` if it has that.
	Auth []string `json:"auth,omitempty"`

	// With `private_key_jwt`: a file with the client's public keys, as a JWK set or in PEM. It is looked
	// at every few seconds. An assertion must have the client ID as `iss` and `sub`, the realm's
	// issuer alone as `aud`, an `exp` at most five minutes ahead, and a `jti` that was never used
	// before. Placeholders are replaced when the configuration is loaded. A client has its keys at one
	// place: here, in `jwk`, or at `jwks_uri`. Default: none.
	JWKSFile string `json:"jwks_file,omitempty"`

	// With `private_key_jwt`: the client's public keys themselves, each as a JWK (RFC 7517). `caddy
	// oauth generate-key` makes one. A private key is refused. Default: none.
	JWK []json.RawMessage `json:"jwk,omitempty"`

	// With `private_key_jwt`: where the client publishes its keys, an https URL, or http on loopback.
	// They are fetched again after 15 minutes or their `max-age`, and in between if an assertion names
	// a key that is not known, at most once a minute; that assertion is refused. They count for 20
	// minutes. Redirects are not followed, no proxy is used, and the host must have a public address
	// unless `private_hosts` has it. Placeholders are replaced when the configuration is loaded.
	// Default: none.
	JWKSURI string `json:"jwks_uri,omitempty"`

	// With `jwks_uri`: hosts that may have addresses that are not public, such as those of a private
	// network or of this machine: names or addresses, without a port. Default: none, not even
	// localhost.
	PrivateHosts []string `json:"private_hosts,omitempty"`

	// With `private_key_jwt`: the algorithms that the client may sign by, as for `source jwt`. Default:
	// `RS256`, `PS256`, `ES256`, `EdDSA`, `Ed25519`.
	AssertionAlgorithms []string `json:"assertion_algorithms,omitempty"`

	// With `tls_client_auth`: what the certificate names, which Caddy's `client_auth` must have
	// verified. Default: none.
	TLSClientAuth *CertificateSubject `json:"tls_client_auth,omitempty"`

	// With `self_signed_tls_client_auth`: files with its certificates in PEM, several while one
	// replaces another. Who has made a certificate makes no difference; it is known by all its bytes,
	// and is refused when its time is over. The files are read again every few seconds. Placeholders in
	// their paths are replaced when the configuration is loaded. Default: none.
	CertificateFiles []string `json:"certificate_files,omitempty"`
	// The platforms whose tokens prove that a program is this client, such as Kubernetes or GitHub
	// Actions: it needs no secret. Default: none.
	Federated []*Federated `json:"federated,omitempty"`

	// What its tokens look like: `opaque`, `sealed` or `jwt`; see the realm's. Default: the realm's.
	TokenFormat string `json:"token_format,omitempty"`

	// Binds its tokens to the certificate with which it fetches them (RFC 8705 section 3): the
	// token endpoint and routes then take them only over a TLS connection with that certificate, so
	// a stolen token is worth nothing. The site needs `client_auth` in its `tls` for that. Any method of
	// authentication goes with it. Default: false; its tokens are bearer tokens.
	CertificateBound bool `json:"certificate_bound,omitempty"`

	// `required` gives it no token without a proof that it has a key (DPoP, RFC 9449), to which the
	// token is bound: routes take it only with a proof by the same key. Proofs are made for the URL of
	// the token endpoint, so the realm needs an issuer. Default: its tokens are bound if it sends a
	// proof.
	DPoP string `json:"dpop,omitempty"`

	// How long its tokens live, in whole seconds, at most a year. Default: the realm's.
	TokenLifetime caddy.Duration `json:"token_lifetime,omitempty"`

	// How much it may do in a given time. Default: the realm's, for each limit that it does not
	// set.
	Limits *Limits `json:"limits,omitempty"`

	// Whose tokens it may ask about at the introspection endpoint: `own`; `audience`, which is
	// its own and those for `introspect_audience`; or `realm`, all of its realm. Default: `own`, unless
	// its `scopes` say more.
	Introspect string `json:"introspect,omitempty"`

	// With `introspect` set to `audience`: the client sees tokens whose audience has one of
	// these, compared byte for byte: visible ASCII characters other than `"` and `\`. Default:
	// its client ID.
	IntrospectAudience []string `json:"introspect_audience,omitempty"`

	// What a backend gets in the client's name, by header: on each request that an
	// `oauth_protect` lets in as this client, these headers are set, to an API key for example. A
	// value has at least one `{env.NAME}` or `{file./path}`, and may have other text before and
	// after it, as in `Basic {env.NAME}`. References are resolved when the configuration is loaded.
	// Whatever callers send under these names is removed from every request that meets an
	// `oauth_protect`, whoever the caller is. With `Authorization`, routes that accept the client
	// can't have `keep_token`. Default: none.
	UpstreamHeaders map[string]string `json:"upstream_headers,omitempty"`

	// Keeps the client in the configuration but out of the gateway: it can't authenticate, and
	// its tokens are refused at once. They stay refused when it is enabled again. Default: false.
	Disabled bool `json:"disabled,omitempty"`

	// Findings of `caddy oauth lint` that are meant to be, in the client. Default: none.
	LintIgnore []LintIgnore `json:"lint_ignore,omitempty"`
}

// Limits say how much one client may do in a given time. What is beyond a limit is refused with 429
// `slow_down`, and a `Retry-After` that says when it would be allowed. Each gateway counts for itself,
// and starts anew after a reload, except for `failures`.
type Limits struct {
	// How often authentication may fail, in the name of one client from one IPv4 address, or one /64
	// of IPv6. After that, everything that comes from there in the client's name is refused without a
	// look at it: at the endpoints, and for routes with `basic`. It takes a part of the duration, as in
	// 6 s for 10 in a minute, until one more attempt is looked at. If that fails too, it takes twice as
	// long, and so on up to five minutes. Once nothing has failed for the duration after that
	// time, it starts anew. From other addresses, the client is not affected. Client IDs that nobody has
	// count alike, which is why only a realm has this limit, and no client its own. A gateway counts for
	// at most 65,536 client IDs and addresses, in some 35 MiB, and for 64 client IDs of an address, all
	// others together. Default: 10 in `1m`.
	Failures *Limit `json:"failures,omitempty"`

	// How many tokens it may fetch. Default: no limit.
	Tokens *Limit `json:"tokens,omitempty"`

	// How many tokens it may ask about at the introspection endpoint. Default: no limit.
	Inquiries *Limit `json:"inquiries,omitempty"`
}

// defaultFailures is the limit of failures in a realm that has no other.
var defaultFailures = Limit{Count: 10, Per: caddy.Duration(time.Minute)}

// Limit is a number in a given time. That many are allowed at once, and what was used comes
// back evenly over that time.
type Limit struct {
	// There is no limit, whatever the default is or the realm says. Default: false.
	Off bool `json:"off,omitempty"`

	// How many, from 1 to 1000000.
	Count int `json:"count,omitempty"`

	// In how long, from `1s` to `24h`.
	Per caddy.Duration `json:"per,omitempty"`
}

// ClientSecret is one secret of a client: a reference to it, or its hash.
type ClientSecret struct {
	// Where the secret is: exactly `{env.NAME}` or `{file./path}`. The secret itself is refused
	// here, because the configuration is dumped, saved and logged in many places. A value that
	// is unlikely to be the secret that was meant is refused, too: one with a byte order mark, several
	// lines, or a space at either end. One line end is dropped from a file. A secret of less than
	// 32 characters that was not generated here is assumed to be one that can be guessed, and is
	// hashed with Argon2id when the configuration is loaded.
	Secret string `json:"secret,omitempty"`

	// The secret's hash: `$argon2id$…` (m×t of 32768 KiB to m=262144, t=10, p=4); `$2b$…`,
	// `$2a$…` or `$2y$…` (bcrypt, cost 10 to 14); `$pbkdf2-sha256$…` (600000 to 2000000 rounds)
	// or `$pbkdf2-sha512$…` (210000 to 1000000), as Ory Hydra, Authelia and passlib write them;
	// or `$sha256$…` for generated secrets. `caddy oauth hash-secret` and `caddy oauth
	// generate-secret` make one. It may also be `{env.NAME}` or `{file./path}`.
	Hash string `json:"hash,omitempty"`

	// When the secret begins to be accepted, without a reload. Default: at once.
	From time.Time `json:"from,omitzero"`

	// When the secret stops being accepted, without a reload. Default: never.
	Until time.Time `json:"until,omitzero"`

	// For a managed client: the secret is removed once it has not been used for this long while a
	// newer one, which is listed below it, is valid. From an hour to a year. Default: it stays.
	RetireUnused caddy.Duration `json:"retire_unused,omitempty"`

	// published is set if everybody can read it in the documents.
	published bool
}

// provision checks the client's settings and turns them into what the engine uses.
func (cc *Client) provision(id, format string, lifetime caddy.Duration, realmDefaults []string, limits Limits, logger *zap.Logger) (*oauth.Client, error) {
	if err := conf.CheckClientID(id); err != nil {
		return nil, err
	}
	if err := checkLintIgnores(cc.LintIgnore, false); err != nil {
		return nil, err
	}
	if err := conf.CheckScopes("scopes", cc.Scopes); err != nil {
		return nil, err
	}
	if err := conf.CheckScopes("default_scopes", cc.DefaultScopes); err != nil {
		return nil, err
	}
	defaults, whose := cc.DefaultScopes, "its default scope"
	if len(defaults) == 0 && len(cc.Scopes) > 0 {
		defaults, whose = realmDefaults, "the realm's default scope"
	}
	if err := cc.checkDefaultScopes(whose, defaults); err != nil {
		return nil, err
	}
	if err := conf.CheckAudience("audience", cc.Audience); err != nil {
		return nil, err
	}
	grants, err := cc.grantTypes()
	if err != nil {
		return nil, err
	}
	auth, err := cc.authMethods()
	if err != nil {
		return nil, err
	}
	format = cmp.Or(cc.TokenFormat, format)
	if err := checkTokenFormat(format); err != nil {
		return nil, err
	}
	lifetime = cmp.Or(cc.TokenLifetime, lifetime)
	if err := conf.CheckLifetime("token_lifetime", lifetime); err != nil {
		return nil, err
	}
	if cc.Limits != nil && cc.Limits.Failures != nil {
		return nil, errFailuresOfClient
	}
	if cc.DPoP != "" {
		if err := checkClientDPoP(cc.DPoP); err != nil {
			return nil, err
		}
	}
	limits = cc.Limits.or(&limits)
	if err := limits.check(); err != nil {
		return nil, err
	}
	introspect, introspectAudience, err := cc.introspects(id)
	if err != nil {
		return nil, err
	}
	c := &oauth.Client{
		ID: id, Scopes: cc.Scopes, DefaultScopes: defaults, Audience: cc.Audience,
		GrantTypes: grants, Auth: auth, TokenFormat: format, CertificateBound: cc.CertificateBound, DPoPRequired: cc.DPoP == dpopRequired, TokenLifetime: time.Duration(lifetime),
		Introspect: introspect, IntrospectAudience: introspectAudience, Disabled: cc.Disabled,
	}
	c.TokenLimit, c.InquiryLimit = limits.Tokens.limit(), limits.Inquiries.limit()
	now, alive := time.Now(), 0
	for i := range cc.Secrets {
		secret, err := cc.Secrets[i].provision()
		if err != nil {
			return nil, fmt.Errorf("secret %d: %w", i+1, err)
		}
		c.Secrets = append(c.Secrets, secret)
		if secret.Until.IsZero() || now.Before(secret.Until) {
			alive++ // now, or one day
		}
	}
	switch {
	case cc.Disabled:
	case !takesSecrets(auth) && len(cc.Secrets) > 0:
		return nil, errors.New("it has a secret, and may not use it: remove the secret, or add client_secret_basic to auth")
	case !takesSecrets(auth):
	case len(cc.Secrets) == 0:
		return nil, errors.New("it has no secret; make one with 'caddy oauth generate-secret'")
	case alive == 0:
		logger.Warn("all secrets of a client have expired: it can't authenticate", zap.String("client_id", id))
	}
	return c, nil
}

// published reports whether everybody can read a secret of the client in the documents.
func (cc *Client) published() bool {
	return slices.ContainsFunc(cc.Secrets, func(s ClientSecret) bool { return s.published && (s.Until.IsZero() || time.Now().Before(s.Until)) })
}

// or returns these limits, completed by others.
func (l *Limits) or(others *Limits) Limits {
	var all Limits
	for i, limit := range all.each() {
		for _, limits := range [...]*Limits{l, others} {
			if limits != nil && *limit.place == nil {
				*limit.place = *limits.each()[i].place
			}
		}
	}
	return all
}

// namedLimit is a limit with its name in a configuration.
type namedLimit struct {
	name  string
	place **Limit
}

// each returns all limits that exist, sorted by name. Each of many thousand clients is asked for them when
// a configuration is loaded.
func (l *Limits) each() [3]namedLimit {
	return [...]namedLimit{{"failures", &l.Failures}, {"inquiries", &l.Inquiries}, {"tokens", &l.Tokens}}
}

// byName returns all limits that exist, by their names in a configuration.
func (l *Limits) byName() map[string]**Limit {
	limits := make(map[string]**Limit)
	for _, limit := range l.each() {
		limits[limit.name] = limit.place
	}
	return limits
}

var errFailuresOfClient = errors.New("limit failures is for a realm: a client with its own could be told from one that doesn't exist")

func (l *Limits) check() error {
	for _, limit := range l.each() {
		if *limit.place == nil {
			continue
		}
		if err := (*limit.place).check(); err != nil {
			return fmt.Errorf("limit %s: %w", limit.name, err)
		}
	}
	return nil
}

// limit returns what the engine uses: the zero Limit for none.
func (l *Limit) limit() oauth.Limit {
	if l == nil {
		return oauth.Limit{}
	}
	return oauth.Limit{Count: l.Count, Per: time.Duration(l.Per)}
}

func (l *Limit) check() error {
	switch per := time.Duration(l.Per); {
	case l.Off && (l.Count != 0 || per != 0):
		return errors.New("it is off, and has a number or a time")
	case l.Off:
	case l.Count < 1 || l.Count > 1_000_000:
		return fmt.Errorf("%d is not between 1 and 1000000", l.Count)
	case per < time.Second || per > 24*time.Hour:
		return fmt.Errorf("%s is not between 1s and 24h", per)
	}
	return nil
}

func (cc *Client) checkDefaultScopes(whose string, defaults []string) error {
	for _, s := range defaults {
		if !slices.Contains(cc.Scopes, s) {
			return fmt.Errorf("%s %q is not among its scopes; add it to scopes, or give the client its own default_scopes", whose, s)
		}
	}
	return nil
}

func (cc *Client) grantTypes() ([]string, error) {
	switch {
	case len(cc.GrantTypes) == 0:
		return []string{oauth.GrantClientCredentials}, nil
	case len(cc.GrantTypes) == 1 && cc.GrantTypes[0] == "none":
		return nil, nil
	}
	for _, g := range cc.GrantTypes {
		if g != oauth.GrantClientCredentials {
			return nil, fmt.Errorf("unknown grant type '%s' (known: %s, or none alone)", g, oauth.GrantClientCredentials)
		}
	}
	return cc.GrantTypes, nil
}

// secretMethods are how a client may authenticate unless it says otherwise: with its secret, which
// every client has. Any other method needs something more, such as a key, so it must be named in
// the configuration of each client that may use it.
var secretMethods = []string{oauth.AuthBasic, oauth.AuthPost}

// takesSecrets reports whether one of the methods needs a secret.
func takesSecrets(auth []string) bool {
	return slices.ContainsFunc(auth, func(method string) bool { return slices.Contains(secretMethods, method) })
}

func (cc *Client) authMethods() ([]string, error) {
	if len(cc.Auth) == 0 {
		return cc.defaultAuth(), nil
	}
	for _, method := range cc.Auth {
		if err := conf.OneOf("auth", method, oauth.AuthMethods()...); err != nil {
			return nil, err
		}
	}
	return cc.Auth, nil
}

// defaultAuth returns how a client may authenticate that doesn't say so.
func (cc *Client) defaultAuth() []string {
	if len(cc.Federated) == 0 {
		return secretMethods
	}
	auth := []string{oauth.AuthFederated}
	if len(cc.Secrets) > 0 {
		auth = append(auth, secretMethods...)
	}
	return auth
}

// introspects returns whose tokens the client may ask about, and with which audiences.
func (cc *Client) introspects(id string) (whose string, audience []string, err error) {
	whose = cmp.Or(cc.Introspect, oauth.IntrospectOwn)
	if err := conf.OneOf("introspect", whose, oauth.IntrospectOwn, oauth.IntrospectAudience, oauth.IntrospectRealm); err != nil {
		return "", nil, err
	}
	switch {
	case whose != oauth.IntrospectAudience && len(cc.IntrospectAudience) > 0:
		return "", nil, fmt.Errorf("introspect %s takes no audience; only introspect %s does", whose, oauth.IntrospectAudience)
	case whose != oauth.IntrospectAudience:
		return whose, nil, nil
	case len(cc.IntrospectAudience) > 0:
		if err := conf.CheckAudience("introspect audience", cc.IntrospectAudience); err != nil {
			return "", nil, err
		}
		return whose, cc.IntrospectAudience, nil
	case strings.Contains(id, " "):
		return "", nil, errors.New("introspect audience: no token has a client ID with a space as its audience; name an audience")
	}
	return whose, []string{id}, nil
}

var errLiteralClientSecret = fmt.Errorf("%w; or give its hash, which 'caddy oauth hash-secret' makes", conf.ErrLiteralSecret)

// provision resolves references and parses the hash. No error holds the secret.
func (sc *ClientSecret) provision() (*oauth.Secret, error) {
	if (sc.Secret == "") == (sc.Hash == "") {
		return nil, errors.New("give either a reference to the secret or its hash")
	}
	if err := sc.checkTimes(); err != nil {
		return nil, err
	}
	if sc.Secret != "" && !conf.IsSecretReference(sc.Secret) {
		return nil, errLiteralClientSecret
	}
	value := sc.Secret + sc.Hash
	if conf.IsSecretReference(value) {
		var err error
		if value, err = conf.ResolveSecret(value); err != nil {
			return nil, err
		}
	}
	sc.published = publishedSecrets[value]
	secret, err := oauth.HashedSecret(value)
	switch {
	case sc.Hash != "" && err != nil:
		return nil, fmt.Errorf("%w; make one with 'caddy oauth hash-secret'", err)
	case sc.Secret != "" && err == nil:
		return nil, fmt.Errorf("%s is a hash: refer to it with secret_hash", sc.Secret)
	case sc.Secret != "":
		if secret, err = oauth.PlainSecret(value); err != nil {
			return nil, err
		}
	}
	secret.From, secret.Until, secret.RetireUnused = sc.From, sc.Until, time.Duration(sc.RetireUnused)
	secret.ID = secretID(value)
	if sc.Secret != "" {
		// By where it is, not by what it is: what can be guessed must not be told by its ID.
		secret.ID = secretID(sc.Secret)
	}
	return secret, nil
}

// leastRetireUnused is the least that retire_unused can be. A use is known to a whole fleet after
// minutes, so a secret that has not been used for less may be in use.
const leastRetireUnused = time.Hour

// checkTimes refuses times at which the secret would never be valid, or would go before anybody can
// tell whether it is used, and those that can't be written down.
func (sc *ClientSecret) checkTimes() error {
	if err := cmp.Or(conf.CheckTime("from", sc.From), conf.CheckTime("until", sc.Until)); err != nil {
		return err
	}
	if !sc.Until.IsZero() && !sc.From.Before(sc.Until) {
		return fmt.Errorf("until %s is not after from %s", sc.Until.Format(time.RFC3339), sc.From.Format(time.RFC3339))
	}
	return checkRetireUnused("retire_unused", sc.RetireUnused)
}

func checkRetireUnused(option string, d caddy.Duration) error {
	if unused := time.Duration(d); unused != 0 && (unused < leastRetireUnused || unused > 365*24*time.Hour) {
		return fmt.Errorf("%s %s is not between 1h and a year", option, unused)
	}
	return nil
}
