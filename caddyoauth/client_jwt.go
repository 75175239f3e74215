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
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// assertionKeys is where the keys are that verify a client's assertions.
type assertionKeys struct {
	keys introspect.KeysConfig
	// algorithms are the allowed ones; none for the default of introspect.AssertionsConfig.
	algorithms []string
	// lifetime is how far ahead their end may be; zero for the default.
	lifetime time.Duration
}

// assertionKeys checks how the client authenticates by assertions, and returns where its keys are, or
// nil if it doesn't.
func (cc *Client) assertionKeys(id string, auth []string, issuer string) (*assertionKeys, error) {
	places, own := []string{"jwk", "jwks_file", "jwks_uri"}, []string(nil)
	for i, used := range []bool{len(cc.JWK) > 0, cc.JWKSFile != "", cc.JWKSURI != ""} {
		if used {
			own = append(own, places[i])
		}
	}
	uses := slices.Contains(auth, oauth.AuthPrivateKeyJWT)
	switch {
	case !uses && len(own) > 0:
		return nil, fmt.Errorf("it has a %s, and may not use it: add 'auth %s'", own[0], oauth.AuthPrivateKeyJWT)
	case !uses && len(cc.AssertionAlgorithms) > 0:
		return nil, fmt.Errorf("it has assertion_algorithms, and may not use them: add 'auth %s'", oauth.AuthPrivateKeyJWT)
	case len(cc.PrivateHosts) > 0 && cc.JWKSURI == "":
		return nil, errors.New("it has private_hosts, which say where its jwks_uri may lead, and no jwks_uri")
	case !uses:
		return nil, nil
	case len(own) == 0:
		return nil, fmt.Errorf("auth %s needs the client's public keys: add a %s", oauth.AuthPrivateKeyJWT, strings.Join(places, ", or a "))
	case len(own) > 1:
		return nil, fmt.Errorf("its keys are at one place: %s can't be used together", strings.Join(own, " and "))
	case issuer == "":
		return nil, fmt.Errorf("auth %s needs an issuer, which assertions must name: give the realm an issuer", oauth.AuthPrivateKeyJWT)
	}
	k := &assertionKeys{
		keys:       introspect.KeysConfig{Issuer: id, KeysFile: cc.JWKSFile, JWKSURI: cc.JWKSURI, Guarded: true, PrivateHosts: cc.PrivateHosts},
		algorithms: cc.AssertionAlgorithms,
	}
	if err := cmp.Or(checkAssertionAlgorithms(k.algorithms), conf.CheckQuery("jwks_uri", cc.JWKSURI), conf.Resolve("jwks_file", &k.keys.KeysFile), conf.Resolve("jwks_uri", &k.keys.JWKSURI)); err != nil {
		return nil, err
	}
	var err error
	if k.keys.Set, err = jwkSet(id, cc.JWK); err != nil {
		return nil, err
	}
	if cc.JWKSURI != "" {
		return k, cmp.Or(conf.CheckURL("jwks_uri", k.keys.JWKSURI), named("jwks_uri", k.keys.Check()))
	}
	fitting, _, err := k.keys.Read(k.algorithms)
	if err != nil {
		return nil, named(own[0], err)
	}
	if fitting == 0 {
		return nil, fmt.Errorf("%s: none of the keys is for an algorithm that the client may sign by: %s", own[0], strings.Join(k.allowed(), ", "))
	}
	return k, nil
}

// named returns err with the name of the option that it is about. It returns nil if err is nil.
func named(option string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", option, err)
}

// allowed returns the algorithms that the client may sign by.
func (k *assertionKeys) allowed() []string {
	if len(k.algorithms) == 0 {
		return introspect.DefaultAlgorithms()
	}
	return k.algorithms
}

// jwkSet returns a JWK set of public keys, or an empty text if there are none. The error holds nothing of
// a key but its kid.
func jwkSet(id string, jwks []json.RawMessage) (string, error) {
	if len(jwks) == 0 {
		return "", nil
	}
	texts := make([]string, 0, len(jwks))
	for _, jwk := range jwks {
		if !json.Valid(jwk) {
			return "", errors.New("jwk: it is not JSON; put it into backquotes, as in jwk `{\"kty\":…}`")
		}
		texts = append(texts, string(jwk))
	}
	set := `{"keys":[` + strings.Join(texts, ",") + `]}`
	return set, named("jwk", introspect.KeysConfig{Issuer: id, Set: set, Guarded: true}.Check())
}

// jwkOption reads `jwk <json>`. What is wrong with a key is said at once: the adapted configuration must
// not have a private key.
func jwkOption(id string, client *Client) conf.Option {
	return conf.Repeatable(conf.Func(func(d *caddyfile.Dispenser) error {
		args, err := conf.Args(d, 1, 1)
		if err != nil {
			return err
		}
		client.JWK = append(client.JWK, json.RawMessage(args[0]))
		_, err = jwkSet(id, client.JWK)
		return conf.At(d, err)
	}))
}

// checkKeysURI checks what can be checked before placeholders are replaced.
func checkKeysURI(uri string) error {
	if strings.Contains(uri, "{") {
		return nil
	}
	return conf.CheckURL("jwks_uri", uri)
}

// openAssertionKeys opens the keys of the realm's clients, or shares those of the configuration before.
// hold is told of each reference that is taken.
func (a *App) openAssertionKeys(r *servedRealm, hold func(reference)) error {
	for id, from := range r.assertions {
		assertions, ref, err := openClientKeys(r.name, id, from)
		if err != nil {
			return err
		}
		hold(ref)
		// Nobody has the client yet: the engine is made after this.
		r.settings.Clients[id].Assertions = assertions
	}
	return nil
}

// openClientKeys opens the keys of a client, or shares those that are open. It returns what verifies by
// them, and the reference that it has taken.
func openClientKeys(realm, id string, from *assertionKeys) (*introspect.Assertions, reference, error) {
	// The keys outlive this configuration, and with it the configuration's logger.
	logger := func() *zap.Logger {
		return caddy.Log().Named("oauth").With(zap.String("realm", realm), zap.String("client_id", id))
	}
	ref := reference{openKeys, conf.PoolKey("client keys", realm, id, from.keys.KeysFile, from.keys.JWKSURI, from.keys.PrivateHosts, from.keys.Set)}
	opened, _, err := loadOrOpen(ref.pool, ref.key, func() (openIssuerKeys, error) {
		cfg, until := from.keys, "those from before stay in use"
		if cfg.JWKSURI != "" {
			until += " for 20 minutes"
		}
		cfg.OnKeys = func(n int, ignored []introspect.IgnoredKey) {
			if n == 0 || len(ignored) > 0 {
				logger().Warn("keys of a client can't be used", zap.Int("usable", n), zap.Stringers("ignored", ignored))
			}
		}
		cfg.OnFetch = func(_ string, _ time.Duration, err error) {
			if err != nil {
				logger().Warn("cannot get the keys of a client", zap.String("until_then", until), zap.Error(err))
			}
		}
		keys, err := introspect.NewKeys(cfg)
		return openIssuerKeys{keys}, err
	})
	if err != nil {
		return nil, reference{}, fmt.Errorf("the keys of client %q: %w", id, err)
	}
	assertions, err := introspect.NewAssertions(introspect.AssertionsConfig{Keys: opened.Keys, Algorithms: from.algorithms, MaxLifetime: from.lifetime})
	if err != nil {
		_, closed := ref.pool.Delete(ref.key)
		return nil, reference{}, errors.Join(fmt.Errorf("the keys of client %q: %w", id, err), closed)
	}
	return assertions, ref, nil
}

// inSettings returns what verifies by keys that are in the client's settings. It starts nothing.
func (k *assertionKeys) inSettings() (*introspect.Assertions, error) {
	keys, err := introspect.NewKeys(k.keys)
	if err != nil {
		return nil, err
	}
	return introspect.NewAssertions(introspect.AssertionsConfig{Keys: keys, Algorithms: k.algorithms, MaxLifetime: k.lifetime})
}

// assertionAlgorithms returns the algorithms that assertions of the realm's clients may have, sorted.
// offers are of its managed clients.
func (r *servedRealm) assertionAlgorithms(offers *oauth.Offers) []string {
	var all []string
	for id, from := range r.assertions {
		if r.settings.Clients[id].Disabled {
			continue
		}
		all = append(all, from.allowed()...)
	}
	for _, from := range r.federated {
		if from.used {
			all = append(all, from.algorithms...)
		}
	}
	if r.managed != nil {
		all = append(all, introspect.DefaultAlgorithms()...)
		all = append(all, offers.Algorithms...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// checkAssertionAlgorithms refuses what is no asymmetric algorithm.
func checkAssertionAlgorithms(algorithms []string) error {
	return (introspect.JWTConfig{Algorithms: algorithms}).Check()
}
