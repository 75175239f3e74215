package caddyoauth

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/store"
	"github.com/caddyoauth/gateway/introspect"
)

func init() {
	caddy.RegisterModule(RedisStore{})
}

const (
	defaultRedisPrefix  = "caddy-oauth:"
	defaultRedisTimeout = caddy.Duration(time.Second)
	// A request waits two seconds for its store.
	maxRedisTimeout = caddy.Duration(2 * time.Second)
)

// RedisStore keeps tokens in a Redis or Valkey server, version 6 or later, that several gateways
// share: a token that one of them issues is good at all of them, and a token that one revokes is
// refused by all, usually within a round trip, and within two seconds if a link fails. The
// exception is a split network in which two servers take themselves for the master. All gateways
// must have the same clients.
//
// Without Redis, the gateway starts and keeps running, answers 503, and recovers by itself.
type RedisStore struct {
	// Where Redis is, as `host:port`: one address, or several of a Cluster or of Sentinels.
	Addresses []string `json:"addresses,omitempty"`

	// Whether the addresses are nodes of a Redis Cluster. Default: false.
	Cluster bool `json:"cluster,omitempty"`

	// The name of the master, if the addresses are Sentinels that watch it. Default: none; the
	// addresses are not Sentinels.
	Sentinel string `json:"sentinel,omitempty"`

	// The user to authenticate as. Default: Redis' own `default` user.
	Username string `json:"username,omitempty"`

	// The password, as `{env.NAME}` or `{file./path}`. Default: none.
	Password string `json:"password,omitempty"`

	// The user to authenticate as to the Sentinels. Default: their own `default` user.
	SentinelUsername string `json:"sentinel_username,omitempty"`

	// The password for the Sentinels, as `{env.NAME}` or `{file./path}`. Default: none.
	SentinelPassword string `json:"sentinel_password,omitempty"`

	// TLS settings of the connections. Default: none; connections are not encrypted.
	TLS *TLSClient `json:"tls,omitempty"`

	// The number of the database, which is 0 for a Cluster. Default: 0.
	DB int `json:"db,omitempty"`

	// What every key begins with: up to 128 characters, no control characters. Gateways with
	// different prefixes share nothing. With a Cluster, the first brace must not be that of an empty
	// pair, `{}`. Default: `caddy-oauth:`.
	Prefix string `json:"prefix,omitempty"`

	// How long connecting may take, including TLS and authentication, up to `2s`. Default: `1s`.
	DialTimeout caddy.Duration `json:"dial_timeout,omitempty"`

	// How long Redis may take to answer, up to `2s`. After that, the request that waits gets 503.
	// Default: `1s`.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	cfg   store.RedisConfig
	trust string // the trust that comes with TLS, for poolKey
}

// CaddyModule returns the Caddy module information.
func (RedisStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "oauth.stores.redis",
		New: func() caddy.Module { return new(RedisStore) },
	}
}

// Provision replaces placeholders and references to secrets. It opens no connection.
func (s *RedisStore) Provision(caddy.Context) error {
	if err := s.check(); err != nil {
		return err
	}
	s.cfg = store.RedisConfig{
		Cluster: s.Cluster, SentinelMaster: s.Sentinel, DB: s.DB, Username: s.Username, SentinelUsername: s.SentinelUsername,
		Prefix:      cmp.Or(s.Prefix, defaultRedisPrefix),
		DialTimeout: time.Duration(cmp.Or(s.DialTimeout, defaultRedisTimeout)),
		Timeout:     time.Duration(cmp.Or(s.Timeout, defaultRedisTimeout)),
	}
	for _, address := range s.Addresses {
		resolved := address
		if err := conf.Resolve("addresses", &resolved); err != nil {
			return err
		}
		if err := checkAddress(address, resolved); err != nil {
			return err
		}
		s.cfg.Addresses = append(s.cfg.Addresses, resolved)
	}
	err := cmp.Or(conf.Resolve("username", &s.cfg.Username), conf.Resolve("sentinel_username", &s.cfg.SentinelUsername))
	if err != nil {
		return err
	}
	if s.Password != "" {
		if s.cfg.Password, err = conf.ResolveSecret(s.Password); err != nil {
			return fmt.Errorf("password: %w", err)
		}
	}
	if s.SentinelPassword != "" {
		if s.cfg.SentinelPassword, err = conf.ResolveSecret(s.SentinelPassword); err != nil {
			return fmt.Errorf("sentinel_password: %w", err)
		}
	}
	if s.TLS != nil {
		if s.cfg.TLS, s.trust, err = s.TLS.config(); err != nil {
			return fmt.Errorf("tls: %w", err)
		}
	}
	return nil
}

// check checks what can be checked before placeholders are replaced.
func (s *RedisStore) check() error {
	switch {
	case len(s.Addresses) == 0:
		return errors.New("redis takes at least one address, such as 127.0.0.1:6379")
	case s.Cluster && s.Sentinel != "":
		return errors.New("cluster and sentinel can't be used together")
	case len(s.Addresses) > 1 && !s.Cluster && s.Sentinel == "":
		return errors.New("several addresses are those of a Cluster or of Sentinels: add 'cluster' or 'sentinel <master>'")
	case s.DB < 0 || s.DB > 0 && s.Cluster:
		return errors.New("db must not be negative, and must be 0 for a Cluster")
	case s.Username != "" && s.Password == "":
		return errors.New("username needs password")
	case (s.SentinelUsername != "" || s.SentinelPassword != "") && s.Sentinel == "":
		return errors.New("sentinel_username and sentinel_password need sentinel")
	case s.SentinelUsername != "" && s.SentinelPassword == "":
		return errors.New("sentinel_username needs sentinel_password")
	case len(s.Prefix) > 128 || strings.ContainsFunc(s.Prefix, func(c rune) bool { return c < ' ' || c == 0x7f }):
		return errors.New("prefix must have at most 128 characters, and no control characters")
	case s.Cluster && hasEmptyTag(s.Prefix):
		return errors.New("prefix must not have '{}' before any other brace: in a Cluster it would spread keys that belong together over several nodes")
	case s.DialTimeout < 0 || s.DialTimeout > maxRedisTimeout || s.Timeout < 0 || s.Timeout > maxRedisTimeout:
		return fmt.Errorf("dial_timeout and timeout must be between 1ms and %s, the time that a request waits for its store", time.Duration(maxRedisTimeout))
	}
	return nil
}

// hasEmptyTag reports whether keys with this prefix have an empty hash tag. Then a Cluster goes by the
// whole key, and the tag that keeps a realm's keyring and its denials on one node has no effect.
func hasEmptyTag(prefix string) bool {
	_, tag, ok := strings.Cut(prefix, "{")
	return ok && strings.HasPrefix(tag, "}")
}

// checkAddress checks an address, whose placeholders are replaced. Errors name it as configured.
func checkAddress(configured, address string) error {
	if strings.ContainsAny(configured+address, "/@") { // not repeated: there may be a password in it
		return errors.New("an address is host:port, such as 127.0.0.1:6379, not a URL; the rest of a URL goes into username, password, db and tls")
	}
	host, port, err := net.SplitHostPort(address)
	if n, portErr := strconv.Atoi(port); err != nil || host == "" || portErr != nil || n < 1 || n > 65535 {
		return fmt.Errorf("address '%s' is not host:port, such as 127.0.0.1:6379", configured)
	}
	return nil
}

// poolKey names the place of the data, and all settings: a configuration that connects in another
// way gets a connection of its own.
func (s *RedisStore) poolKey() (string, error) {
	name := fmt.Sprintf("redis %s, database %d, prefix %s", strings.Join(s.cfg.Addresses, " "), s.cfg.DB, s.cfg.Prefix)
	return conf.PoolKey(name, s, s.trust, s.cfg.Addresses, s.cfg.Username, s.cfg.Password, s.cfg.SentinelUsername, s.cfg.SentinelPassword), nil
}

func (s *RedisStore) open(key string, owner *openStore) (oauth.TokenStore, error) {
	// The store outlives this configuration, and with it the configuration's logger.
	logger := caddy.Log().Named("oauth.stores.redis").With(zap.String("store", key))
	cfg := s.cfg
	cfg.Revoked = func(realm string, id introspect.TokenID) {
		collectors.invalidations.Inc()
		owner.cache.Forget(oauth.CacheName(realm), id)
	}
	cfg.Flush = func() {
		collectors.flushes.Inc()
		owner.cache.Flush()
	}
	cfg.Lost = func(err error) {
		logger.Error("no longer receiving revocations from other gateways: asking Redis for every token", zap.Error(err))
	}
	cfg.Regained = func() { logger.Info("receiving revocations from other gateways") }
	cfg.Changed = owner.changed
	cfg.Evicting = func(address, policy string) {
		logger.Warn("this Redis server drops keys when its memory is full, and their tokens are then refused early: set maxmemory-policy noeviction",
			zap.String("address", address), zap.String("maxmemory_policy", policy))
	}
	cfg.MayEvict = func(address string) {
		logger.Warn("this Redis server doesn't say whether it drops keys when its memory is full, which would revive sealed tokens that were revoked: check that its maxmemory-policy is noeviction or maxmemory 0, or allow the gateway +info|memory",
			zap.String("address", address))
	}
	cfg.Ended = func(realm string) {
		logger.Warn("Redis was restarted, or another server has taken its place, and no gateway that runs knows what was revoked before: all self-contained tokens of the realm have ended",
			zap.String("realm", realm))
	}
	return store.OpenRedis(cfg), nil
}

// UnmarshalCaddyfile reads
//
//	redis <host:port>... {
//		cluster
//		sentinel          <master>
//		username          <name>
//		password          {env.NAME}|{file./path}
//		sentinel_username <name>
//		sentinel_password {env.NAME}|{file./path}
//		tls {
//			<settings of TLSClient>
//		}
//		db           <number>
//		prefix       <text>
//		dial_timeout <duration>
//		timeout      <duration>
//	}
func (s *RedisStore) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the store's name
	s.Addresses = d.RemainingArgs()
	for _, address := range s.Addresses {
		// An address with a placeholder is checked when its value is known.
		if err := checkAddress(address, address); err != nil && !strings.Contains(address, "{") {
			return d.WrapErr(err)
		}
	}
	return conf.Options{
		"cluster":           conf.Flag(&s.Cluster),
		"sentinel":          conf.Text(&s.Sentinel),
		"username":          conf.Text(&s.Username),
		"password":          conf.Secret(&s.Password),
		"sentinel_username": conf.Text(&s.SentinelUsername),
		"sentinel_password": conf.Secret(&s.SentinelPassword),
		"tls":               tlsOption(&s.TLS),
		"db":                conf.Number(&s.DB),
		"prefix":            conf.Text(&s.Prefix),
		"dial_timeout":      conf.Duration(&s.DialTimeout),
		"timeout":           conf.Duration(&s.Timeout),
	}.Read(d, "redis", s.check)
}

// Interface guards
var (
	_ caddy.Provisioner     = (*RedisStore)(nil)
	_ caddyfile.Unmarshaler = (*RedisStore)(nil)
	_ storeOpener           = (*RedisStore)(nil)
	_ sharedStore           = (*store.Redis)(nil)
)
