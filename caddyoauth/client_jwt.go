package caddyoauth

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

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
}

// assertionKeys checks how the client authenticates by assertions, and returns where its keys are, or
// nil if it doesn't.
func (cc *Client) assertionKeys(id string, auth []string, issuer string) (*assertionKeys, error) {
	uses := slices.Contains(auth, oauth.AuthPrivateKeyJWT)
	switch {
	case !uses && cc.JWKSFile != "":
		return nil, fmt.Errorf("it has a jwks_file, and may not use it: add 'auth %s'", oauth.AuthPrivateKeyJWT)
	case !uses && len(cc.AssertionAlgorithms) > 0:
		return nil, fmt.Errorf("it has assertion_algorithms, and may not use them: add 'auth %s'", oauth.AuthPrivateKeyJWT)
	case !uses:
		return nil, nil
	case cc.JWKSFile == "":
		return nil, fmt.Errorf("auth %s needs the client's public keys: add a jwks_file", oauth.AuthPrivateKeyJWT)
	case issuer == "":
		return nil, fmt.Errorf("auth %s needs an issuer, which assertions must name: give the realm an issuer", oauth.AuthPrivateKeyJWT)
	}
	file := cc.JWKSFile
	if err := conf.Resolve("jwks_file", &file); err != nil {
		return nil, err
	}
	if _, err := os.Stat(file); err != nil {
		return nil, fmt.Errorf("jwks_file %s: %w", cc.JWKSFile, err)
	}
	k := &assertionKeys{keys: introspect.KeysConfig{Issuer: id, KeysFile: file}, algorithms: cc.AssertionAlgorithms}
	if err := errors.Join(k.keys.Check(), (introspect.JWTConfig{Algorithms: k.algorithms}).Check()); err != nil {
		return nil, err
	}
	return k, nil
}

// openAssertionKeys opens the keys of the realm's clients, or shares those of the configuration before.
// hold is told of each reference that is taken.
func (a *App) openAssertionKeys(r *servedRealm, hold func(reference)) error {
	for id, from := range r.assertions {
		key := conf.PoolKey("client keys", r.name, id, from.keys.KeysFile)
		opened, _, err := loadOrOpen(openKeys, key, func() (openIssuerKeys, error) {
			cfg := from.keys
			cfg.OnKeys = func(n int, ignored []introspect.IgnoredKey) {
				if n == 0 || len(ignored) > 0 {
					a.logger.Warn("keys of a client can't be used", zap.String("realm", r.name), zap.String("client_id", id), zap.String("file", cfg.KeysFile), zap.Int("usable", n), zap.Stringers("ignored", ignored))
				}
			}
			cfg.OnFetch = func(_ string, _ time.Duration, err error) {
				if err != nil {
					a.logger.Warn("cannot read the keys of a client: those from before stay in use", zap.String("realm", r.name), zap.String("client_id", id), zap.Error(err))
				}
			}
			keys, err := introspect.NewKeys(cfg)
			return openIssuerKeys{keys}, err
		})
		if err != nil {
			return fmt.Errorf("the keys of client %q: %w", id, err)
		}
		hold(reference{openKeys, key})
		assertions, err := introspect.NewAssertions(introspect.AssertionsConfig{Keys: opened.Keys, Algorithms: from.algorithms})
		if err != nil {
			return fmt.Errorf("the keys of client %q: %w", id, err)
		}
		// Nobody has the client yet: the engine is made after this.
		r.settings.Clients[id].Assertions = assertions
	}
	return nil
}

// assertionAlgorithms returns the algorithms that assertions of the realm's clients may have, sorted.
func (r *servedRealm) assertionAlgorithms() []string {
	var all []string
	for id, from := range r.assertions {
		if r.settings.Clients[id].Disabled {
			continue
		}
		algorithms := from.algorithms
		if len(algorithms) == 0 {
			algorithms = introspect.DefaultAlgorithms()
		}
		all = append(all, algorithms...)
	}
	for _, from := range r.federated {
		if from.used {
			all = append(all, from.algorithms...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// checkAssertionAlgorithms refuses what is no asymmetric algorithm.
func checkAssertionAlgorithms(algorithms []string) error {
	return (introspect.JWTConfig{Algorithms: algorithms}).Check()
}
