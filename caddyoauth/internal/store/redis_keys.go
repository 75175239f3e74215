package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// ErrEvicts is why a Redis can't serve self-contained tokens.
var ErrEvicts = errors.New("redis may evict keys to make room")

// Keeps implements oauth.KeyStore. It returns ErrEvicts if a server may evict keys. A server that
// does not tell is trusted, and reported: the manual says what it must be set to.
func (r *Redis) Keeps(ctx context.Context) error {
	return r.do(ctx, func(ctx context.Context, _ rueidis.Client) error {
		silent := ""
		for address, node := range r.client.Nodes() {
			policy, told := evictionPolicy(ctx, node)
			if !told {
				silent = address
			}
			if policy != "" {
				r.evicts.Store(true)
				return fmt.Errorf("%w: %s has maxmemory-policy %s; set it to noeviction, since a revocation that is evicted would revive a self-contained token", ErrEvicts, address, policy)
			}
		}
		if silent == "" {
			r.evicts.Store(false)
		}
		if was := r.silentOnEviction.Swap(silent != ""); silent != "" && !was {
			r.cfg.MayEvict(silent)
		}
		return nil
	})
}

// Keys implements oauth.KeyStore.
func (r *Redis) Keys(ctx context.Context, realm string) (keyring []byte, err error) {
	err = r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		keyring, err = c.Do(ctx, c.B().Get().Key(r.keysKey(realm)).Build()).AsBytes()
		if rueidis.IsRedisNil(err) {
			return nil
		}
		return err
	})
	return keyring, err
}

// SwapKeys implements oauth.KeyStore.
func (r *Redis) SwapKeys(ctx context.Context, realm string, old, next []byte) (swapped bool, err error) {
	key := r.keysKey(realm)
	err = r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		return c.Dedicated(func(c rueidis.DedicatedClient) error {
			if err := c.Do(ctx, c.B().Watch().Key(key).Build()).Error(); err != nil {
				return err
			}
			stored, err := c.Do(ctx, c.B().Get().Key(key).Build()).AsBytes()
			if err != nil && !rueidis.IsRedisNil(err) {
				return err
			}
			if !sameKeyring(stored, old) {
				return c.Do(ctx, c.B().Unwatch().Build()).Error()
			}
			for _, answer := range c.DoMulti(ctx, c.B().Multi().Build(),
				c.B().Set().Key(key).Value(rueidis.BinaryString(next)).Build(), c.B().Exec().Build()) {
				if err = answer.Error(); err != nil && !rueidis.IsRedisNil(err) {
					return err
				}
			}
			swapped = err == nil // EXEC answers nil if another gateway was quicker
			return nil
		})
	})
	return err == nil && swapped, err
}

// Deny implements oauth.KeyStore. Redis drops the denial when denialGrace is over.
func (r *Redis) Deny(ctx context.Context, key oauth.Key) error {
	k := r.deniedKey(key)
	err := r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		return c.Do(ctx, deny(c, k, key.Expiry())).Error()
	})
	if err == nil {
		r.remember(k, key.Expiry())
	}
	return err
}

// deny returns the command that writes a denial. Even one of a token that has long expired is
// written: this gateway's clock may be the only one that says so.
func deny(c rueidis.Client, key string, until time.Time) rueidis.Completed {
	// A duration, not a point in time: the clock of Redis may differ.
	life := max(time.Until(until), 0) + denialGrace
	return c.B().Set().Key(key).Value("").PxMilliseconds(life.Milliseconds()).Build()
}

// Denied implements oauth.KeyStore. It asks for the denial first. If Redis is emptied between the
// two questions, or was before, the second one says so. It fails if Redis was found to evict since
// the keyring was read.
func (r *Redis) Denied(ctx context.Context, epoch oauth.Epoch, key oauth.Key) (denied bool, err error) {
	if r.evicts.Load() {
		return false, ErrEvicts
	}
	err = r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		answers := c.DoMulti(ctx,
			c.B().Exists().Key(r.deniedKey(key)).Build(),
			c.B().Getrange().Key(r.keysKey(key.Realm)).Start(0).End(int64(len(epoch))-1).Build())
		if denied, err = answers[0].AsBool(); err != nil {
			return err
		}
		now, err := answers[1].AsBytes()
		if err != nil {
			return err
		}
		if !begins(now, epoch) {
			return oauth.ErrOtherEpoch
		}
		return nil
	})
	return denied, err
}

func (r *Redis) keysKey(realm string) string { return r.cfg.Prefix + "{realm:" + realm + "}:keys" }

func (r *Redis) deniedKey(key oauth.Key) string {
	return r.cfg.Prefix + "{realm:" + key.Realm + "}:denied:" + strconv.FormatInt(key.ExpiryMilli, 10) + ":" + key.ID.String()
}

// parseDeniedKey is the inverse of deniedKey, for the realm and the ID.
func (r *Redis) parseDeniedKey(key string) (realm string, id introspect.TokenID, ok bool) {
	rest, ok := strings.CutPrefix(key, r.cfg.Prefix+"{realm:")
	if !ok {
		return "", id, false
	}
	rest, id, ok = cutID(rest)
	realm, isDenial := strings.CutSuffix(rest, "}:denied")
	return realm, id, ok && isDenial
}
