package caddyoauth

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

const (
	defaultFederatedLifetime = caddy.Duration(time.Hour)
	// maxFederatedLifetime bounds max_lifetime.
	maxFederatedLifetime = caddy.Duration(7 * 24 * time.Hour)
)

// Federated has a client authenticate by tokens that a platform gives to its workloads, such as a
// service account token of Kubernetes or an ID token of a job of GitHub Actions: the program sends it
// as a client assertion (RFC 7523), and needs no secret. Such a token can be used more than once until
// it expires.
type Federated struct {
	// Where its block begins in the Caddyfile, as in `Caddyfile:12`. The adapter writes it, for people:
	// it decides nothing. Default: none.
	At string `json:"at,omitempty"`

	// The platform: what `iss` of its tokens must be, byte for byte. Or a SPIFFE trust domain, such as
	// `spiffe://example.org`: then the tokens are JWT-SVIDs, whose `sub` is an ID in that domain, and the
	// keys are its bundle. Clients of a realm that name the
	// same one must agree on how to verify its tokens: on `jwks_uri`, `jwks_file`, `algorithms`,
	// `headers`, `tls` and `private_hosts`. Placeholders are replaced when the configuration is loaded.
	Issuer string `json:"issuer,omitempty"`

	// Patterns, one of which `sub` must match, at least one. A `*` stands for one or more characters
	// other than `:` and `/`, as in `repo:acme/*:ref:refs/heads/main`. There must be none in the first
	// two parts, which say whose workload it is, unless `claims` say that.
	Subject []string `json:"subject,omitempty"`

	// Claims that a token must have, all of them, as on routes. Default: none.
	Claims []ClaimRule `json:"claims,omitempty"`

	// What the token's `aud` may be, which must have one value alone. Default: the realm's issuer.
	Audience []string `json:"audience,omitempty"`

	// Where the platform's public keys are: an https URL, or http on loopback. Default: where the
	// metadata of the issuer says, which is then a URL itself. Only public addresses are connected to,
	// except for the hosts in `private_hosts`, without a proxy, and redirects are not followed.
	JWKSURI string `json:"jwks_uri,omitempty"`

	// A file with the platform's public keys, instead of `jwks_uri`: a JWK set, or public keys or
	// certificates in PEM. It is read again every few seconds.
	JWKSFile string `json:"jwks_file,omitempty"`

	// Hosts that the keys may come from although their addresses are not public, such as
	// `kubernetes.default.svc`: names without a port, or addresses. Default: none.
	PrivateHosts []string `json:"private_hosts,omitempty"`

	// The accepted signature algorithms, as for `source jwt`. Default: `RS256`, `PS256`, `ES256`,
	// `EdDSA`, `Ed25519`.
	Algorithms []string `json:"algorithms,omitempty"`

	// How long a token may live, from its `iat` to its `exp`, up to `7d`. Default: `1h`.
	MaxLifetime caddy.Duration `json:"max_lifetime,omitempty"`

	// Headers of each request for keys, as in the source `jwt`. Default: none.
	Headers map[string]string `json:"headers,omitempty"`

	// TLS settings of the connections to the platform. Default: trust the system's certificate
	// authorities.
	TLS *TLSClient `json:"tls,omitempty"`
}

// federatedKeys are how a realm verifies the tokens of a platform.
type federatedKeys struct {
	keys       introspect.KeysConfig
	algorithms []string
	key        string // stands for both, and for what they depend on
	// assertions verify by the keys. Start sets it, for a platform that the configuration names.
	assertions *introspect.Assertions
	// used is set if a client that isn't disabled has such tokens.
	used bool
	// by is the first client that names the platform.
	by string
}

// federate checks the platforms of a client, and gives it to the engine's client.
func (r *servedRealm) federate(cc *Client, c *oauth.Client) error {
	if err := cc.checkFederatedAuth(c.Auth); err != nil {
		return err
	}
	for _, f := range cc.Federated {
		if f == nil {
			f = new(Federated) // null in JSON
		}
		identity, from, err := f.provision(r.settings.Issuer)
		if err != nil {
			return fmt.Errorf("federated %s: %w", f.Issuer, err)
		}
		from.by = c.ID
		if before := r.federated[identity.Issuer]; before == nil {
			r.federated[identity.Issuer] = from
		} else if before.key != from.key {
			return fmt.Errorf("federated %s: the client %q has other jwks_uri, jwks_file, algorithms, header, tls or private_hosts for this issuer, and each issuer has one set of keys in a realm", identity.Issuer, before.by)
		}
		r.takesSVIDs = r.takesSVIDs || from.keys.SPIFFE
		r.federated[identity.Issuer].used = r.federated[identity.Issuer].used || !c.Disabled
		c.Federated = append(c.Federated, identity)
	}
	return nil
}

// checkFederatedAuth checks that the client uses its platforms, and has those that it uses.
func (cc *Client) checkFederatedAuth(auth []string) error {
	uses := slices.Contains(auth, oauth.AuthFederated)
	switch {
	case uses && len(cc.Federated) == 0:
		return fmt.Errorf("auth %s needs a platform whose tokens the client has: add a federated", oauth.AuthFederated)
	case !uses && len(cc.Federated) > 0:
		return fmt.Errorf("it has a federated, and may not use it: add 'auth %s'", oauth.AuthFederated)
	}
	return nil
}

// checkFederated checks what depends on all clients. An assertion without client_id names its client
// by its issuer, or the platform: no name can be both.
func (r *servedRealm) checkFederated() error {
	for _, issuer := range sortedKeys(r.federated) {
		if r.settings.Clients[issuer] != nil {
			return fmt.Errorf("client %q: federated %s: there is a client with this ID, so nobody could tell its assertions from those of the issuer; give it another ID", r.federated[issuer].by, issuer)
		}
	}
	return nil
}

// provision returns whom the platform's tokens must name, and how they are verified.
func (f *Federated) provision(realmIssuer string) (*oauth.Federated, *federatedKeys, error) {
	if err := f.check(); err != nil {
		return nil, nil, err
	}
	from := &federatedKeys{keys: f.keys(), algorithms: f.Algorithms}
	err := cmp.Or(conf.Resolve("issuer", &from.keys.Issuer), conf.Resolve("jwks_uri", &from.keys.JWKSURI), conf.Resolve("jwks_file", &from.keys.KeysFile))
	if err != nil {
		return nil, nil, err
	}
	if from.keys.HeaderFunc, err = headerFunc(f.Headers); err != nil {
		return nil, nil, err
	}
	var trust string
	if f.TLS != nil {
		if from.keys.TLS, trust, err = f.TLS.config(); err != nil {
			return nil, nil, fmt.Errorf("tls: %w", err)
		}
	}
	if err := f.checkKeys(from.keys); err != nil {
		return nil, nil, err
	}
	if len(from.algorithms) == 0 {
		from.algorithms = introspect.DefaultAlgorithms()
	}
	fitting, _, err := from.keys.Read(from.algorithms)
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("jwks_file %s: %w", f.JWKSFile, err)
	case fitting == 0 && f.JWKSFile != "":
		return nil, nil, fmt.Errorf("jwks_file %s: none of the keys is for one of the algorithms %s", f.JWKSFile, strings.Join(from.algorithms, ", "))
	}
	from.key = conf.PoolKey("federated keys "+from.keys.Issuer, from.keys.JWKSURI, from.keys.KeysFile, from.keys.PrivateHosts, from.algorithms, f.Headers, trust)

	identity, err := f.identity(from.keys.Issuer, realmIssuer)
	return identity, from, err
}

// identity returns whom tokens of an issuer must name.
func (f *Federated) identity(issuer, realmIssuer string) (*oauth.Federated, error) {
	identity := &oauth.Federated{
		Issuer: issuer, Subjects: f.Subject, Audience: f.Audience,
		MaxLifetime: time.Duration(cmp.Or(f.MaxLifetime, defaultFederatedLifetime)),
	}
	for _, claim := range f.Claims {
		identity.Claims = append(identity.Claims, oauth.FederatedClaim(claim))
	}
	if len(identity.Audience) == 0 {
		if realmIssuer == "" {
			return nil, errors.New("the audience of tokens is the realm's issuer, and it has none: give the realm an issuer, or add an audience")
		}
		identity.Audience = []string{realmIssuer}
	}
	return identity, nil
}

// keys returns where the keys are, as configured.
func (f *Federated) keys() introspect.KeysConfig {
	spiffe := strings.HasPrefix(f.Issuer, "spiffe:")
	return introspect.KeysConfig{
		Issuer: f.Issuer, SPIFFE: spiffe, JWKSURI: f.JWKSURI, KeysFile: f.JWKSFile, Discovery: !spiffe && f.JWKSURI == "" && f.JWKSFile == "",
		Guarded: true, PrivateHosts: f.PrivateHosts,
	}
}

// checkKeys checks settings without placeholders.
func (f *Federated) checkKeys(keys introspect.KeysConfig) error {
	if keys.SPIFFE {
		switch {
		case !introspect.IsTrustDomain(keys.Issuer):
			return errors.New("this is not a trust domain in lower case, such as spiffe://example.org")
		case keys.JWKSURI == "" && keys.KeysFile == "":
			return errors.New("a trust domain needs its bundle: add a jwks_file or a jwks_uri")
		}
		if err := f.checkSVIDSubjects(keys.Issuer); err != nil {
			return err
		}
	}
	return checkJWT(keys, introspect.JWTConfig{Algorithms: f.Algorithms})
}

// checkSVIDSubjects checks the subjects of tokens of a trust domain.
func (f *Federated) checkSVIDSubjects(domain string) error {
	for _, subject := range f.Subject {
		if path, ok := strings.CutPrefix(subject, domain+"/"); !ok || path == "" {
			return fmt.Errorf("subject '%s' is in no part of this trust domain, so no token has it: it begins with %s/", subject, domain)
		}
	}
	return nil
}

// check checks what can be checked before placeholders are replaced.
func (f *Federated) check() error {
	switch {
	case f.JWKSURI != "" && f.JWKSFile != "":
		return errors.New("jwks_uri and jwks_file can't be used together")
	case f.JWKSFile != "" && len(f.PrivateHosts) > 0:
		return errors.New("private_hosts say where keys may be fetched from, and with jwks_file none are")
	}
	if err := f.checkIdentity(); err != nil {
		return err
	}
	if !strings.Contains(f.Issuer+f.JWKSURI+f.JWKSFile, "{") {
		if err := f.checkKeys(f.keys()); err != nil {
			return err
		}
	}
	return cmp.Or(conf.CheckQuery("jwks_uri", f.JWKSURI), checkHeaders(f.Headers))
}

// checkIdentity checks whom the tokens must name.
func (f *Federated) checkIdentity() error {
	switch {
	case f.Issuer == "":
		return errors.New("federated needs the issuer of the tokens")
	case len(f.Subject) == 0:
		return errors.New("federated needs a subject: whose tokens are meant, as in 'subject repo:acme/app:ref:refs/heads/main'")
	}
	if l := f.MaxLifetime; l != 0 && (l < caddy.Duration(time.Second) || l > maxFederatedLifetime) {
		return fmt.Errorf("max_lifetime %s is not between 1s and 7d", time.Duration(l))
	}
	for _, claim := range f.Claims {
		if err := claim.check(); err != nil {
			return err
		}
	}
	for _, subject := range f.Subject {
		if subject == "" {
			return errors.New("a subject must not be empty")
		}
		if opensToAll(subject) && len(f.Claims) == 0 {
			return fmt.Errorf("subject '%s' leaves open whose workload it is, so it may be anybody's on that platform: there must be no * in the first two parts, which end at : or /, unless a claim says whose it is", subject)
		}
	}
	return conf.CheckAudience("audience", f.Audience)
}

// opensToAll reports whether a pattern doesn't say whose workload it is about. On shared platforms the
// second part of a subject names the owner, as in repo:acme/app, and anybody can become a neighbour of
// that name.
func opensToAll(pattern string) bool {
	star := strings.IndexByte(pattern, '*')
	if star < 0 {
		return false
	}
	parts, begin := 0, 0
	for i, c := range pattern[:star] {
		if c == ':' || c == '/' {
			if i > begin { // an empty part, as in https://, says nothing
				parts++
			}
			begin = i + 1
		}
	}
	return parts < 2
}

// openFederated opens the keys of the platforms, or shares those of the configuration before. hold is
// told of each reference that is taken.
func (r *servedRealm) openFederated(hold func(reference)) error {
	for _, issuer := range sortedKeys(r.federated) {
		from := r.federated[issuer]
		assertions, ref, err := from.open(issuer)
		if err != nil {
			return err
		}
		hold(ref)
		from.assertions = assertions
		// Nobody has the clients yet: the engine is made after this.
		for _, client := range r.settings.Clients {
			for _, identity := range client.Federated {
				if identity.Issuer == issuer {
					identity.Assertions = assertions
				}
			}
		}
	}
	return nil
}

// open opens the keys of a platform, or shares those that are open. It returns what verifies by them, and
// the reference that it has taken.
func (from *federatedKeys) open(issuer string) (*introspect.Assertions, reference, error) {
	ref := reference{openKeys, from.key}
	opened, _, err := loadOrOpen(ref.pool, ref.key, func() (openIssuerKeys, error) {
		cfg := from.keys
		// The keys outlive this configuration, and with it the configuration's logger.
		logger := func() *zap.Logger { return caddy.Log().Named("oauth.federated").With(zap.String("issuer", issuer)) }
		cfg.OnFetch = func(kind string, _ time.Duration, err error) {
			if err != nil {
				logger().Error("fetching the keys of a platform failed: keeping the current ones", zap.String("what", kind), zap.Error(err))
			}
		}
		cfg.OnKeys = func(n int, ignored []introspect.IgnoredKey) {
			logger().Info("fetched the keys of a platform", zap.Int("keys", n), zap.Stringers("ignored", ignored))
		}
		cfg.OnSend = traceRequests(issuer, cmp.Or(cfg.JWKSURI, issuer))
		keys, err := introspect.NewKeys(cfg)
		return openIssuerKeys{keys}, err
	})
	if err != nil {
		return nil, reference{}, fmt.Errorf("the keys of %s: %w", issuer, err)
	}
	assertions, err := introspect.NewAssertions(introspect.AssertionsConfig{
		Keys: opened.Keys, Algorithms: from.algorithms,
		MaxLifetime: time.Duration(maxFederatedLifetime), // each identity has its own
	})
	if err != nil {
		_, closed := ref.pool.Delete(ref.key)
		return nil, reference{}, errors.Join(fmt.Errorf("the keys of %s: %w", issuer, err), closed)
	}
	return assertions, ref, nil
}

// federatedOption reads
//
//	federated <issuer> {
//		subject      <pattern>...
//		claim        <name> <value>...
//		audience     <audience>...
//		jwks_uri     <url>
//		jwks_file    <path>
//		private_hosts <host>...
//		algorithms   <name>...
//		max_lifetime <duration>
//		header       <name> <value>
//		tls {
//			<settings of TLSClient>
//		}
//	}
//
// subject, claim and header may repeat.
func federatedOption(place *[]*Federated) conf.Option {
	return conf.Repeatable(conf.Func(func(d *caddyfile.Dispenser) error {
		f := &Federated{At: at(d)}
		if err := conf.Text(&f.Issuer).Read(d); err != nil {
			return err
		}
		*place = append(*place, f)
		var subjects []string
		subject := conf.Texts(&subjects)
		return conf.Options{
			"subject": conf.Repeatable(conf.Func(func(d *caddyfile.Dispenser) error {
				err := subject.Read(d)
				f.Subject = append(f.Subject, subjects...)
				return err
			})),
			"claim":         claimOption(&f.Claims),
			"audience":      conf.Audience(&f.Audience),
			"jwks_uri":      conf.Text(&f.JWKSURI),
			"jwks_file":     conf.Text(&f.JWKSFile),
			"private_hosts": conf.Texts(&f.PrivateHosts),
			"algorithms":    conf.Texts(&f.Algorithms, checkAssertionAlgorithms),
			"max_lifetime":  conf.Duration(&f.MaxLifetime),
			"header":        headerOption(&f.Headers),
			"tls":           tlsOption(&f.TLS),
		}.Read(d, "federated", f.check)
	}))
}
