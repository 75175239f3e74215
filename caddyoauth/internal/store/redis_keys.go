package store

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
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
		silent, unknown := "", false
		for address, node := range r.client.Nodes() {
			policy, err := evictionPolicy(ctx, node)
			switch {
			case errors.Is(err, errSilent):
				silent = address
			case err != nil:
				unknown = true // whoever can't reach it judges nothing by it either
			case policy != "":
				r.evicts.Store(true)
				return fmt.Errorf("%w: %s has maxmemory-policy %s; set it to noeviction, since a revocation that is evicted would revive a self-contained token", ErrEvicts, address, policy)
			}
		}
		if silent == "" && !unknown {
			r.evicts.Store(false)
			r.silentOnEviction.Store(false)
		}
		if silent != "" && !r.silentOnEviction.Swap(true) {
			r.cfg.MayEvict(silent)
		}
		return nil
	})
}

// errOldKeys is why a keyring can't be read for a moment.
var errOldKeys = fmt.Errorf("%w: redis: it has an old copy of the keys, which nobody has put right yet", oauth.ErrUnreachable)

// Keys implements oauth.KeyStore. It fails if this gateway knows that the keyring in Redis was
// replaced by another one: a key may have been withdrawn, and must not come back.
func (r *Redis) Keys(ctx context.Context, realm string) (keyring []byte, err error) {
	for before := []byte(nil); ; before = keyring {
		err = r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
			keyring, err = c.Do(ctx, c.B().Get().Key(r.keysKey(realm)).Build()).AsBytes()
			if rueidis.IsRedisNil(err) {
				return nil
			}
			return err
		})
		if err != nil || keyring == nil {
			return nil, err
		}
		if d := (*r.realms.Load())[realm]; d == nil || !d.remembers(keyringID(keyring)) {
			r.sawKeys(realm, keyring)
			return keyring, nil
		}
		// Perhaps it was replaced at this very moment. Then there is another one by now.
		if bytes.Equal(keyring, before) {
			return nil, errOldKeys
		}
	}
}

// sawKeys remembers a keyring in case Redis loses it.
func (r *Redis) sawKeys(realm string, keyring []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keyrings[realm] = slices.Clone(keyring)
}

// keyringID is what stands among the denials of a realm for a keyring that was replaced by another
// one of its epoch. So whoever knows the denials knows which keyring is the last one.
func keyringID(keyring []byte) introspect.TokenID { return sha256.Sum256(keyring) }

// never is when the denial of a keyring may be dropped.
const never = 1 << 52

// SwapKeys implements oauth.KeyStore. A keyring is only replaced by another one of its epoch at a
// server that the gateways vouch for: another one may have an old keyring.
func (r *Redis) SwapKeys(ctx context.Context, realm string, old, next []byte) (swapped bool, err error) {
	key := r.keysKey(realm)
	err = r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		return c.Dedicated(func(c rueidis.DedicatedClient) error {
			if err := c.Do(ctx, c.B().Watch().Key(key, r.serverKey(realm)).Build()).Error(); err != nil {
				return err
			}
			stored, err := c.Do(ctx, c.B().Get().Key(key).Build()).AsBytes()
			if err != nil && !rueidis.IsRedisNil(err) {
				return err
			}
			if !sameKeyring(stored, old) {
				return c.Do(ctx, c.B().Unwatch().Build()).Error()
			}
			server, err := serverName(ctx, c)
			if err != nil {
				return err
			}
			commands := rueidis.Commands{c.B().Set().Key(key).Value(rueidis.BinaryString(next)).Build()}
			if n := len(oauth.Epoch{}); len(stored) < n || !bytes.HasPrefix(next, stored[:n]) {
				// Of a new epoch there are no denials yet, so this server has them all.
				commands = append(commands, c.B().Set().Key(r.serverKey(realm)).Value(server).Build())
			} else {
				vouched, err := c.Do(ctx, c.B().Get().Key(r.serverKey(realm)).Build()).ToString()
				if err != nil && !rueidis.IsRedisNil(err) {
					return err
				}
				if vouched != server {
					r.asked.Store(true) // perhaps it only has another name than before
					r.denialsOf(realm)
					r.attract()
					return cmp.Or(c.Do(ctx, c.B().Unwatch().Build()).Error(), errUnvouched)
				}
				if !bytes.Equal(stored, next) {
					commands = append(commands, r.denying(c.B(), realm, []introspect.TokenID{keyringID(stored)}, []int64{never})...)
				}
			}
			swapped, err = transact(ctx, c, commands...) // false if another gateway was quicker
			return err
		})
	})
	if err != nil || !swapped {
		return false, err
	}
	if d := (*r.realms.Load())[realm]; d != nil {
		switch sameEpoch := old != nil && bytes.HasPrefix(next, old[:min(len(old), len(oauth.Epoch{}))]); {
		case !sameEpoch:
			d.unsettle()
			r.attract()
		case !bytes.Equal(old, next):
			d.remember(keyringID(old), never)
		}
		d.tryAgain()
	}
	r.sawKeys(realm, next)
	return true, nil
}

// Deny implements oauth.KeyStore. Even the denial of a token that has long expired is kept for
// denialGrace: this gateway's clock may be the only one that says so.
func (r *Redis) Deny(ctx context.Context, key oauth.Key, _ string) error {
	return r.over(ctx, key.Realm, func(ctx context.Context, _ *denials, e *ear) error {
		// For the others the token may be good for a while yet.
		key.ExpiryMilli = max(key.ExpiryMilli, time.Now().UnixMilli())
		if err := r.deny(ctx, e, key.Realm, []introspect.TokenID{key.ID}, []int64{key.ExpiryMilli}); err != nil {
			return err
		}
		// Redis says so as well, but perhaps not before this returns.
		r.learn(key.Realm, key.ID, key.ExpiryMilli)
		// As in Revoke, once Redis has answered again, it has told the other gateways. This deletes nothing:
		// the transaction has.
		e.client.Do(ctx, e.client.B().Del().Key(r.deniedKey(key)).Build())
		return nil
	})
}

// deny writes denials, in one transaction. What tells other gateways of them is gone at its end.
func (r *Redis) deny(ctx context.Context, e *ear, realm string, ids []introspect.TokenID, expiries []int64) error {
	_, err := transact(ctx, e.client, r.denying(e.client.B(), realm, ids, expiries)...)
	return err
}

// denying returns the commands that write denials.
func (r *Redis) denying(b rueidis.Builder, realm string, ids []introspect.TokenID, expiries []int64) rueidis.Commands {
	add := b.Zadd().Key(r.denialsKey(realm)).ScoreMember()
	commands := make(rueidis.Commands, 1, 1+2*len(ids))
	for i, id := range ids {
		add = add.ScoreMember(float64(expiries[i]), string(id[:]))
		bell := r.deniedKey(oauth.Key{Realm: realm, ExpiryMilli: expiries[i], ID: id})
		commands = append(commands, b.Set().Key(bell).Value("").Build(), b.Del().Key(bell).Build())
	}
	commands[0] = add.Build()
	return commands
}

// Denied implements oauth.KeyStore. It answers from memory where it can. Otherwise it asks for the
// denial first: if Redis is emptied between the two questions, or was before, the second one says
// so. It fails if Redis was found to evict since the keyring was read.
func (r *Redis) Denied(ctx context.Context, epoch oauth.Epoch, key oauth.Key) (denied bool, err error) {
	if r.evicts.Load() {
		return false, ErrEvicts
	}
	if d := (*r.realms.Load())[key.Realm]; d != nil && r.Coherent() {
		if denied, ok := d.recall(epoch, key.ID); ok {
			return denied, nil
		}
	}
	return r.askDenied(ctx, epoch, key)
}

// askDenied is Denied by asking Redis.
func (r *Redis) askDenied(ctx context.Context, epoch oauth.Epoch, key oauth.Key) (denied bool, err error) {
	err = r.over(ctx, key.Realm, func(ctx context.Context, d *denials, e *ear) error {
		answers := e.client.DoMulti(ctx,
			e.client.B().Zscore().Key(r.denialsKey(key.Realm)).Member(string(key.ID[:])).Build(),
			r.askEpoch(e.client, key.Realm))
		score, err := answers[0].AsFloat64()
		if denied = err == nil; err != nil && !rueidis.IsRedisNil(err) {
			return err
		}
		now, err := answers[1].AsBytes()
		switch {
		case err != nil:
			return err
		case !begins(now, epoch):
			return oauth.ErrOtherEpoch
		case denied:
			// What this gateway has found denied once, it must not find good again from memory.
			r.learn(key.Realm, key.ID, int64(score))
			return nil
		}
		var ok bool
		if denied, ok = d.adds(e, key.ID); !ok {
			return errDistrusted
		}
		return nil
	})
	return denied, err
}

func (r *Redis) keysKey(realm string) string { return r.realmKey(realm) + "keys" }

func (r *Redis) denialsKey(realm string) string { return r.realmKey(realm) + "denials" }

func (r *Redis) serverKey(realm string) string { return r.realmKey(realm) + "server" }

func (r *Redis) askingKey(realm string) string { return r.realmKey(realm) + "asking" }

func (r *Redis) realmKey(realm string) string { return r.cfg.Prefix + "{realm:" + realm + "}:" }

func (r *Redis) deniedKey(key oauth.Key) string {
	return r.realmKey(key.Realm) + "denied:" + strconv.FormatInt(key.ExpiryMilli, 10) + ":" + key.ID.String()
}

// parseDeniedKey is the inverse of deniedKey.
func (r *Redis) parseDeniedKey(key string) (realm string, id introspect.TokenID, expiryMilli int64, ok bool) {
	rest, ok := strings.CutPrefix(key, r.cfg.Prefix+"{realm:")
	if !ok {
		return "", id, 0, false
	}
	rest, id, expiryMilli, ok = cutID(rest)
	realm, isDenial := strings.CutSuffix(rest, "}:denied")
	return realm, id, expiryMilli, ok && isDenial
}
