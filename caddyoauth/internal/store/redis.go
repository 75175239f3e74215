package store

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// Redis keeps tokens in a Redis or Valkey that several gateways share: standalone, behind
// Sentinels, or a Cluster. It needs version 6 or later, for RESP3 and client tracking. It
// is safe for concurrent use.
//
// # Keys
//
// Under Prefix, which is "caddy-oauth:" unless set:
//
//	realm:<realm>:token:<expiry, unix ms>:<token ID, hex>   a record, which expires with its token
//	realm:<realm>:clients                                   a hash: client ID → clientState
//	realms                                                  a set: the realms that have clients
//	secrets                                                 a hash: name → secret
//	used:<ID, hex>, proof:<ID, hex>                         what may be used once, and DPoP proofs, until they are over
//	proofs-since                                            since when Redis knows which proofs were used, unix ms
//	{realm:<realm>}:keys                                    the realm's keyring
//	{realm:<realm>}:denials                                 a sorted set: the IDs of revoked self-contained tokens, by expiry
//	{realm:<realm>}:denied:<expiry, unix ms>:<token ID>     touched when that token is revoked, and gone again
//	{realm:<realm>}:managed                                 a hash: client ID → version and what is kept of the managed client
//	{realm:<realm>}:uses                                    a hash: client ID → what the client did last
//	{realm:<realm>}:managed-changes                         a stream: the IDs of managed clients that were changed, and their versions
//	{realm:<realm>}:server                                  the server that has all denials, see redis_denials.go
//	{realm:<realm>}:asking                                  touched by a gateway that asks who vouches for another server
//
// The braces keep a realm's keyring and its denials on one node of a Cluster, so that a node
// which loses its data loses both. Otherwise no two keys are used together, and a Cluster may
// spread them as it likes.
//
// The keys carry no version of their layout; each record carries one, see recordVersion. What is
// written once for many requests is JSON.
//
// # Coherence
//
// All reads go over connections with client tracking on: Redis remembers what this
// gateway has read and tells it, over the same connection, when somebody else changes it.
// Facts enter the cache only through such a read. Whenever a connection ends, everything
// is flushed. A PING every half second proves that a connection still carries messages:
// its answer comes after all messages sent before it. The answer buys a lease, and the
// cache may answer only while the lease lasts, by the monotonic clock and by the wall
// clock, so that a machine that wakes from suspension does not answer from memory. Other
// gateways therefore see a revocation within a round trip, and after leaseTime at the
// latest, whatever the network does. Revoke and Deny return once Redis has sent them the news. Denials of
// self-contained tokens are heard in another way, see redis_denials.go, which the same lease covers.
//
// Reads never go to replicas. If Redis acknowledged a revocation and then lost it, in a
// failover or a crash, the revocation is repeated: that of a recorded token if it was at most
// replayTime old when the link was lost, as is a change of a client's generation, and a denial in
// any case.
//
// # Bounds
//
// At most maxCommands commands are under way. A call that waits longer than Timeout for
// an answer or for its turn fails, at most DialTimeout later if a connection was being
// made. OpenRedis starts two goroutines, which Close ends.
type Redis struct {
	cfg RedisConfig

	// client is nil until the first connection; then connected is closed. tried is closed
	// when the first attempt is over.
	client           rueidis.Client
	connected, tried chan struct{}
	failure          atomic.Pointer[error] // of the last attempt to connect; nil before the first failure

	proofsSince      atomic.Int64 // unix milliseconds, as it was read last; 0 if it was not
	evicts           atomic.Bool  // whether a server was found that may evict keys; see Keeps
	silentOnEviction atomic.Bool  // whether a server did not tell Keeps

	slots chan struct{} // holds a value for each command under way
	stop  chan struct{} // closed by Close
	done  chan struct{} // closed when run has ended
	close sync.Once
	wake  chan struct{} // makes run look at the link at once

	base  time.Time    // start of the monotonic clock of lease
	lease atomic.Int64 // end by the monotonic clock, nanoseconds since base; 0: ended
	wall  atomic.Int64 // end by the wall clock, unix nanoseconds

	telling sync.Mutex // held while news are told; mu may be taken under it

	mu     sync.Mutex
	losses uint64    // how often the link was lost
	up     bool      // whether it was up at the last look
	owed   bool      // whether what was written before a loss, and since, still has to be repeated
	lostAt time.Time // when it was lost, the first time since nothing was owed
	// news are the calls of Lost and Regained that are still to be made, oldest first. There are at most
	// three: whoever adds one calls tell, and run does so before it looks again.
	news     []func()
	conns    map[*cutConn]struct{}
	silent   map[string]int  // PINGs in a row without an answer, by address
	replicas map[string]bool // whether a Cluster node says it is a replica, by address
	revoked  []revocation    // those since keptSince, oldest first; at most maxReplay
	// written is what was written about clients since keptSince: an entry for a client.
	written map[oauth.ClientRef]writtenClient
	// writtenManaged is the same of managed clients, at most maxReplay.
	writtenManaged map[oauth.ClientRef]writtenManaged

	// realms has an entry for each realm that was asked about; see denialsOf. It is replaced as a
	// whole, under mu.
	keyrings  map[string][]byte // by realm, as they were last seen; under mu
	realms    atomic.Pointer[map[string]*denials]
	loading   sync.Mutex    // held while ears are opened, and while what is said over them is judged
	denied    atomic.Int64  // how many denials are remembered
	breaks    atomic.Uint64 // how often the link broke; an ear is of no use after the next time
	attention chan struct{} // makes attend look after the realms at once
	asked     atomic.Bool   // whether somebody has asked who vouches for a server
}

const (
	// maxCommands stays below the 2^redisRing commands that a connection can queue; beyond
	// that a caller would wait without a deadline. A command whose caller has given up keeps
	// its place in the queue until it is answered or the connection is cut, at most 2.5 s
	// later.
	maxCommands = 512
	redisRing   = 11
)

// RedisConfig holds the settings of a Redis store.
type RedisConfig struct {
	// Addresses are the host:port of the server, of Cluster nodes, or of Sentinels.
	Addresses []string
	// Cluster says that the addresses are nodes of a Redis Cluster.
	Cluster bool
	// SentinelMaster is the name of the master that the Sentinels at Addresses watch. Empty
	// means that there are no Sentinels.
	SentinelMaster string
	// Username and Password authenticate to the server, the Sentinel ones to the Sentinels.
	Username, Password                 string
	SentinelUsername, SentinelPassword string
	// TLS is nil for plain connections.
	TLS *tls.Config
	// DB is the database number; a Cluster has only 0.
	DB int
	// Prefix begins every key.
	Prefix string
	// DialTimeout bounds connecting, including TLS and authentication; Timeout bounds a command.
	DialTimeout, Timeout time.Duration

	// The functions below report what happens elsewhere. They must be set, return at once,
	// and call no method of the store.

	// Revoked reports that a token was revoked or has expired, or that Redis no longer
	// remembers that this gateway has read it.
	Revoked func(realm string, id introspect.TokenID)
	// Flush reports that a connection ended or that Redis dropped all its data: anything
	// known so far may be out of date.
	Flush func()
	// Lost and Regained report that revocations no longer arrive, and that they arrive
	// again. They alternate, one call after the other, and the last says how things are. Regained comes
	// first if the first attempt to connect succeeds.
	Lost     func(err error)
	Regained func()
	// Changed reports that Secret and Admit may answer differently from before. It may call Lease.
	Changed func()
	// Evicting reports that this server may drop keys to make room. It comes with each
	// Regained.
	Evicting func(address, policy string)
	// MayEvict reports that Keeps could not find out whether this server drops keys. It comes once,
	// and again only after Keeps could.
	MayEvict func(address string)
	// Ended reports that all self-contained tokens of a realm have ended, because nobody could say
	// what was revoked.
	Ended func(realm string)

	// These are less in tests; see their constants.
	maxDenials                        int64
	vouchGap, vouchWait, tidyInterval time.Duration
	// now, in tests, is the wall clock that says which denials are over.
	now func() time.Time
}

// OpenRedis makes a store and starts to connect, without waiting. Until the first attempt to
// connect is over, calls wait for it; while there is no connection they fail, with
// oauth.ErrUnreachable if that may pass by itself. Close ends the store.
func OpenRedis(cfg RedisConfig) *Redis {
	r := &Redis{
		cfg: cfg, base: time.Now(),
		connected: make(chan struct{}), tried: make(chan struct{}), slots: make(chan struct{}, maxCommands),
		stop: make(chan struct{}), done: make(chan struct{}), wake: make(chan struct{}, 1), attention: make(chan struct{}, 1),
		conns: make(map[*cutConn]struct{}), replicas: make(map[string]bool), silent: make(map[string]int),
		written: make(map[oauth.ClientRef]writtenClient), writtenManaged: make(map[oauth.ClientRef]writtenManaged), keyrings: make(map[string][]byte),
	}
	r.cfg.maxDenials = cmp.Or(cfg.maxDenials, maxDenials)
	r.cfg.vouchGap, r.cfg.vouchWait = cmp.Or(cfg.vouchGap, vouchGap), cmp.Or(cfg.vouchWait, vouchWait)
	r.cfg.tidyInterval = cmp.Or(cfg.tidyInterval, tidyInterval)
	if r.cfg.now == nil {
		r.cfg.now = time.Now
	}
	r.realms.Store(&map[string]*denials{})
	go r.run()
	return r
}

func (r *Redis) options() rueidis.ClientOption {
	return rueidis.ClientOption{
		InitAddress: r.cfg.Addresses, SelectDB: r.cfg.DB, ClientName: "caddy-oauth",
		Username: r.cfg.Username, Password: r.cfg.Password, TLSConfig: r.cfg.TLS,
		Sentinel: rueidis.SentinelOption{
			MasterSet: r.cfg.SentinelMaster, TLSConfig: r.cfg.TLS,
			Username: r.cfg.SentinelUsername, Password: r.cfg.SentinelPassword,
		},
		ForceSingleClient: !r.cfg.Cluster && r.cfg.SentinelMaster == "",

		// Track every key that is read. No NOLOOP: a revocation of our own may be carried out
		// after its caller has given up, and then only Redis tells us of it.
		ClientTrackingOptions: []string{"OPTOUT"},
		OnInvalidations:       r.invalidated,

		// One connection to each server, so that the answer to a PING vouches for all reads.
		PipelineMultiplex:  -1,
		RingScaleEachConn:  redisRing,
		Dialer:             net.Dialer{Timeout: r.cfg.DialTimeout, KeepAlive: pingTimeout},
		DialCtxFn:          r.dial,
		ConnWriteTimeout:   2 * pingTimeout,
		ReadBufferEachConn: 64 << 10, WriteBufferEachConn: 64 << 10,
		// A read whose connection ended is retried on another one: at once, or not at all.
		RetryDelay: func(attempts int, _ rueidis.Completed, _ error) time.Duration {
			if attempts > 2 {
				return -1
			}
			return time.Duration(attempts) * 5 * time.Millisecond
		},
	}
}

// Put implements oauth.TokenStore. Redis drops the record when it expires.
func (r *Redis) Put(ctx context.Context, t oauth.Token) error {
	// A duration, not a point in time: the clock of Redis may differ.
	life := time.Until(t.Expiry()).Milliseconds()
	if life <= 0 {
		return nil // it can never be found
	}
	return r.doWithin(ctx, min(r.cfg.Timeout, oauth.StoreTimeout), func(ctx context.Context, c rueidis.Client) error {
		return c.Do(ctx, c.B().Set().Key(r.tokenKey(t.Key)).Value(rueidis.BinaryString(encodeRecord(t))).PxMilliseconds(life).Build()).Error()
	})
}

// Get implements oauth.TokenStore.
func (r *Redis) Get(ctx context.Context, key oauth.Key) (t oauth.Token, err error) {
	k := r.tokenKey(key)
	err = r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		value, err := c.Do(ctx, c.B().Get().Key(k).Build()).ToString()
		if rueidis.IsRedisNil(err) {
			return oauth.ErrNotFound
		}
		if err != nil {
			return err
		}
		if r.owesRevocation(k) {
			return oauth.ErrNotFound
		}
		t, err = decodeRecord(key, value)
		return err
	})
	return t, err
}

// Revoke implements oauth.TokenStore.
func (r *Redis) Revoke(ctx context.Context, key oauth.Key) error {
	k := r.tokenKey(key)
	return r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		if err := c.Do(ctx, c.B().Del().Key(k).Build()).Error(); err != nil {
			return err
		}
		r.remember(k) // before anything else: Redis may fail now
		// Redis answers before it tells the other gateways, and on a busy machine it may have to wait for a
		// processor in between. Once it has answered again, it has told them. The same command goes to the
		// same node of a Cluster. If it fails, the token is revoked all the same.
		c.Do(ctx, c.B().Del().Key(k).Build())
		return nil
	})
}

// Secret implements oauth.TokenStore.
func (r *Redis) Secret(ctx context.Context, name string, fresh []byte) (secret []byte, err error) {
	key := r.cfg.Prefix + "secrets"
	err = r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		// Read first: a full Redis refuses every write, needed or not, and a gateway that
		// starts meanwhile must still serve the tokens there are.
		secret, err = c.Do(ctx, c.B().Hget().Key(key).Field(name).Build()).AsBytes()
		if !rueidis.IsRedisNil(err) {
			return err
		}
		answers := c.DoMulti(ctx,
			c.B().Hsetnx().Key(key).Field(name).Value(rueidis.BinaryString(fresh)).Build(),
			c.B().Hget().Key(key).Field(name).Build())
		if err := answers[0].Error(); err != nil {
			return err
		}
		secret, err = answers[1].AsBytes()
		return err
	})
	return secret, err
}

// Close implements oauth.TokenStore. It waits for an attempt to connect to end, at most
// DialTimeout.
func (r *Redis) Close() error {
	r.close.Do(func() { close(r.stop) })
	<-r.done
	r.lease.Store(0)
	return nil
}

// do runs f, which sends commands, once there is a connection and a free slot. ctx gets the
// deadline that Timeout sets.
func (r *Redis) do(ctx context.Context, f func(context.Context, rueidis.Client) error) error {
	return r.doWithin(ctx, r.cfg.Timeout, f)
}

// doWithin is do with another deadline.
func (r *Redis) doWithin(ctx context.Context, limit time.Duration, f func(context.Context, rueidis.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case <-r.tried:
	case <-r.stop:
		return oauth.ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("%w: still connecting: %w", oauth.ErrUnreachable, ctx.Err())
	}
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return fmt.Errorf("%w: waiting for a turn: %w", oauth.ErrUnreachable, ctx.Err())
	}
	select {
	case <-r.stop:
		return oauth.ErrClosed
	default:
	}
	select {
	case <-r.connected:
	default:
		return redisError(*r.failure.Load())
	}
	if err := f(ctx, r.client); err != nil {
		return redisError(err)
	}
	return nil
}

// redisError turns an error of rueidis into one of oauth.TokenStore. Trouble that may pass by
// itself becomes oauth.ErrUnreachable; what somebody has to fix, such as a wrong password, does not.
func redisError(err error) error {
	answer, answered := rueidis.IsRedisErr(err)
	switch {
	case errors.Is(err, oauth.ErrNotFound), errors.Is(err, oauth.ErrOtherEpoch), errors.Is(err, errCorrupt), errors.Is(err, ErrEvicts), errors.Is(err, oauth.ErrUnreachable):
		return err
	case errors.Is(err, rueidis.ErrClosing):
		return oauth.ErrClosed
	case errors.Is(err, rueidis.ErrNoCache):
		return fmt.Errorf("redis: client tracking is not available; it needs Redis 6 or later and permission to call CLIENT: %w", err)
	case answered:
		// rueidis has removed the word ERR.
		for _, lasting := range []string{
			"WRONGPASS", "NOAUTH", "NOPERM", "WRONGTYPE", "AUTH", "DB index", "invalid DB index", "unknown command", "unknown subcommand",
			"SELECT is not allowed in cluster mode",
		} {
			if strings.HasPrefix(answer.Error(), lasting) {
				return fmt.Errorf("redis: %w", err)
			}
		}
	}
	// No answer, or one such as LOADING, READONLY, MASTERDOWN, CLUSTERDOWN, OOM.
	return fmt.Errorf("%w: redis: %w", oauth.ErrUnreachable, err)
}

func (r *Redis) tokenKey(key oauth.Key) string {
	b := make([]byte, 0, 256) // on the stack, for all but long realms
	b = append(b, r.cfg.Prefix...)
	b = append(b, "realm:"...)
	b = append(b, key.Realm...)
	b = append(b, ":token:"...)
	b = strconv.AppendInt(b, key.ExpiryMilli, 10)
	b = append(b, ':')
	return string(hex.AppendEncode(b, key.ID[:]))
}

// parseTokenKey is the inverse of tokenKey. It reads from the end, because a realm may contain
// colons while what follows it does not.
func (r *Redis) parseTokenKey(key string) (realm string, id introspect.TokenID, ok bool) {
	rest, ok := strings.CutPrefix(key, r.cfg.Prefix+"realm:")
	if !ok {
		return "", id, false
	}
	rest, id, _, ok = cutID(rest)
	realm, isToken := strings.CutSuffix(rest, ":token")
	return realm, id, ok && isToken
}

// cutID cuts an expiry and a token ID off the end of a key.
func cutID(key string) (rest string, id introspect.TokenID, expiryMilli int64, ok bool) {
	colon := strings.LastIndexByte(key, ':')
	if colon < 0 || len(key)-colon-1 != hex.EncodedLen(len(id)) {
		return "", id, 0, false
	}
	if _, err := hex.Decode(id[:], []byte(key[colon+1:])); err != nil {
		return "", id, 0, false
	}
	key = key[:colon]
	colon = strings.LastIndexByte(key, ':')
	if colon < 0 {
		return "", id, 0, false
	}
	expiryMilli, err := strconv.ParseInt(key[colon+1:], 10, 64)
	return key[:colon], id, expiryMilli, err == nil
}
