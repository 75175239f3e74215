package store

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
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
// Sentinel, or a Cluster. It wants version 6 or later, for RESP3 and client tracking.
//
// # Keys
//
// Under Prefix, which is "caddy-oauth:" unless set:
//
//	realm:<realm>:token:<expiry, unix ms>:<token ID, hex>   a record, which expires with its token
//	realm:<realm>:clients                                   a hash: client ID → generation
//	realms                                                  a set: the realms that have clients
//	secrets                                                 a hash: name → secret
//
// No command touches two keys, so a Cluster may spread them as it likes.
//
// # Coherence
//
// All reads go over connections with client tracking on: Redis remembers what this
// gateway has read, and tells it, in the same connection, when another changes it. Facts
// can be in the cache only through such a read. Whenever a connection ends, everything is
// flushed. That a connection still carries messages is proved by a PING every half second;
// its answer comes behind all messages from before. It buys a lease: while the
// lease lasts the cache may answer, by the monotonic clock and by the wall clock, so that
// a machine that was suspended does not answer from memory when it wakes up. A revocation
// is so seen elsewhere within a round trip, and after leaseTime at the latest,
// whatever the network does.
//
// Reads never go to replicas. A revocation that Redis had acknowledged and then lost, in a
// failover or a crash, is repeated if it was not older than replayTime then.
//
// # Bounds
//
// At most maxCommands commands are under way; what waits longer than Timeout for its answer
// or its turn fails, DialTimeout later at most if a connection was being made. OpenRedis
// starts one goroutine, which Close ends.
type Redis struct {
	cfg RedisConfig

	// client is nil until the first connection; connected is closed then. tried is closed
	// when the first attempt is over.
	client           rueidis.Client
	connected, tried chan struct{}
	failure          atomic.Pointer[error] // the last one to connect; nil before the first

	slots chan struct{}
	stop  chan struct{} // closed by Close
	done  chan struct{} // closed when run is over
	close sync.Once
	wake  chan struct{} // has run ping at once

	base  time.Time    // what the monotonic side of lease counts from
	lease atomic.Int64 // monotonic end, nanoseconds since base; 0 is over
	wall  atomic.Int64 // wall clock end, unix nanoseconds

	mu       sync.Mutex
	losses   uint64    // how often the link was lost
	lostAt   time.Time // when it stood last
	up       bool      // the link stood when last looked at
	conns    map[*cutConn]struct{}
	silent   map[string]int  // PINGs in a row without an answer, by address
	replicas map[string]bool // Cluster nodes that said they are replicas, by address
	revoked  []revocation    // of the last replayTime, oldest first; maxReplay at most
}

type revocation struct {
	key string
	at  time.Time
}

const (
	pingInterval = 500 * time.Millisecond
	pingTimeout  = time.Second
	// leaseTime bounds how long a revocation elsewhere may stay unseen.
	leaseTime = 2 * time.Second
	// maxCommands stays below the 2^redisRing that a connection can queue, where a caller
	// would wait without a deadline: a command whose caller gave up keeps its place
	// there until it is answered or the connection is cut, 2.5 s later at most.
	maxCommands = 512
	redisRing   = 11
	replayTime  = time.Minute
	maxReplay   = 4096
)

// RedisConfig are the settings of a Redis store.
type RedisConfig struct {
	// Addresses are host:port: of the server, of Cluster nodes, or of Sentinels.
	Addresses []string
	// Cluster: the addresses are nodes of a Redis Cluster.
	Cluster bool
	// SentinelMaster is the name of the master that the Sentinels at Addresses watch. Empty:
	// no Sentinels.
	SentinelMaster string
	// Username and Password authenticate at the server, the Sentinel ones at the Sentinels.
	Username, Password                 string
	SentinelUsername, SentinelPassword string
	// TLS is nil for plain connections.
	TLS *tls.Config
	// DB is the database number; a Cluster has only 0.
	DB int
	// Prefix begins every key.
	Prefix string
	// DialTimeout bounds connecting, TLS and authentication included; Timeout bounds a command.
	DialTimeout, Timeout time.Duration

	// What happens elsewhere. The functions return at once and call nothing of the store.

	// Revoked: a token was revoked, or it expired, or Redis can't remember any longer that
	// this gateway knows of it.
	Revoked func(realm string, id introspect.TokenID)
	// Flush: a connection ended, or Redis dropped all its data. All that is known may be out
	// of date.
	Flush func()
	// Lost and Regained: revocations are not heard of, and heard of again. They take turns;
	// Regained is first if the first connection succeeds.
	Lost     func(err error)
	Regained func()
	// Changed: Secret and Admit may answer differently from before.
	Changed func()
	// Evicting: this server may drop keys to make room; called with each Regained.
	Evicting func(address, policy string)
}

// OpenRedis makes a store and starts to connect. It does not wait: until a connection
// stands, calls wait for the first attempt to end and then fail with oauth.ErrUnreachable.
func OpenRedis(cfg RedisConfig) *Redis {
	r := &Redis{
		cfg: cfg, base: time.Now(),
		connected: make(chan struct{}), tried: make(chan struct{}), slots: make(chan struct{}, maxCommands),
		stop: make(chan struct{}), done: make(chan struct{}), wake: make(chan struct{}, 1),
		conns: make(map[*cutConn]struct{}), replicas: make(map[string]bool), silent: make(map[string]int),
	}
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

		// Every key that is read is tracked. No NOLOOP: a revocation of our own may be carried
		// out after its caller has given up, and then only Redis tells of it.
		ClientTrackingOptions: []string{"OPTOUT"},
		OnInvalidations:       r.invalidated,

		// One connection to a server, so that the answer to a PING says something of all reads.
		PipelineMultiplex:  -1,
		RingScaleEachConn:  redisRing,
		Dialer:             net.Dialer{Timeout: r.cfg.DialTimeout, KeepAlive: pingTimeout},
		DialCtxFn:          r.dial,
		ConnWriteTimeout:   2 * pingTimeout,
		ReadBufferEachConn: 64 << 10, WriteBufferEachConn: 64 << 10,
		// A read that met a connection's end is tried again on another, at once or never.
		RetryDelay: func(attempts int, _ rueidis.Completed, _ error) time.Duration {
			if attempts > 2 {
				return -1
			}
			return time.Duration(attempts) * 5 * time.Millisecond
		},
	}
}

// Put implements oauth.TokenStore. Redis expires the record by itself.
func (r *Redis) Put(ctx context.Context, t oauth.Token) error {
	value, err := encodeRecord(t)
	if err != nil {
		return err
	}
	// A span, not a moment: Redis may have another idea of the time.
	life := time.Until(t.Expiry()).Milliseconds()
	if life <= 0 {
		return nil // it can never be found
	}
	return r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		return c.Do(ctx, c.B().Set().Key(r.tokenKey(t.Key)).Value(rueidis.BinaryString(value)).PxMilliseconds(life).Build()).Error()
	})
}

// Get implements oauth.TokenStore.
func (r *Redis) Get(ctx context.Context, key oauth.Key) (t oauth.Token, err error) {
	err = r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		value, err := c.Do(ctx, c.B().Get().Key(r.tokenKey(key)).Build()).AsBytes()
		if rueidis.IsRedisNil(err) {
			return oauth.ErrNotFound
		}
		if err != nil {
			return err
		}
		t, err = decodeRecord(key, value)
		return err
	})
	return t, err
}

// Revoke implements oauth.TokenStore.
func (r *Redis) Revoke(ctx context.Context, key oauth.Key) error {
	k := r.tokenKey(key)
	err := r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		return c.Do(ctx, c.B().Del().Key(k).Build()).Error()
	})
	if err == nil {
		r.remember(k)
	}
	return err
}

// Admit implements oauth.TokenStore. It is atomic for each realm.
func (r *Redis) Admit(ctx context.Context, clients []oauth.ClientRef, held map[oauth.ClientRef]uint64) (map[oauth.ClientRef]uint64, error) {
	byRealm := make(map[string][]oauth.ClientRef)
	for _, ref := range clients {
		byRealm[ref.Realm] = append(byRealm[ref.Realm], ref)
	}
	generations := make(map[oauth.ClientRef]uint64, len(clients))
	for realm, refs := range byRealm {
		err := r.updateClients(ctx, realm, func(table clientTable) clientTable {
			admitted, changed := table.admit(refs, held)
			for ref, generation := range admitted {
				generations[ref] = generation
			}
			return changed
		})
		if err != nil {
			return nil, err
		}
	}
	return generations, nil
}

// Retire implements oauth.TokenStore. It is atomic for each realm.
func (r *Redis) Retire(ctx context.Context, active []oauth.ClientRef) error {
	return r.updateRealms(ctx, func(table clientTable) clientTable { return table.retire(active) })
}

// Leave implements oauth.TokenStore. It is atomic for each realm.
func (r *Redis) Leave(ctx context.Context, stay []oauth.ClientRef) error {
	return r.updateRealms(ctx, func(table clientTable) clientTable { return table.leave(stay) })
}

// updateRealms changes what is kept of the clients of every realm; see updateClients.
func (r *Redis) updateRealms(ctx context.Context, change func(clientTable) clientTable) error {
	var realms []string
	err := r.do(ctx, func(ctx context.Context, c rueidis.Client) (err error) {
		realms, err = c.Do(ctx, c.B().Smembers().Key(r.cfg.Prefix+"realms").Build()).AsStrSlice()
		return err
	})
	for i := 0; i < len(realms) && err == nil; i++ {
		err = r.updateClients(ctx, realms[i], change)
	}
	return err
}

// updateClients changes what is kept of a realm's clients. change gets the states there are
// and returns those that become different; it is called several times.
func (r *Redis) updateClients(ctx context.Context, realm string, change func(clientTable) clientTable) error {
	key := r.clientsKey(realm)
	read := func(ctx context.Context, c rueidis.CoreClient) (clientTable, error) {
		stored, err := c.Do(ctx, c.B().Hgetall().Key(key).Build()).AsStrMap()
		if err != nil {
			return nil, err
		}
		table := make(clientTable, len(stored))
		for id, value := range stored {
			var state clientState
			if err := json.Unmarshal([]byte(value), &state); err != nil || state.Generation == 0 {
				return nil, fmt.Errorf("the state of client %q of realm %q: %w", id, realm, errCorrupt)
			}
			table[oauth.ClientRef{Realm: realm, ClientID: id}] = state
		}
		return table, nil
	}
	for {
		done := false
		err := r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
			// First over the connection that is watched. What is read there last is what
			// Redis tells of when it changes; and most often there is nothing to do.
			table, err := read(ctx, c)
			if err != nil {
				return err
			}
			if len(change(table)) == 0 {
				done = true
				return nil
			}
			// The realm before its clients: Retire must find them if this gateway dies here.
			if err := c.Do(ctx, c.B().Sadd().Key(r.cfg.Prefix+"realms").Member(realm).Build()).Error(); err != nil {
				return err
			}
			return c.Dedicated(func(c rueidis.DedicatedClient) error {
				if err := c.Do(ctx, c.B().Watch().Key(key).Build()).Error(); err != nil {
					return err
				}
				table, err := read(ctx, c)
				if err != nil {
					return err
				}
				changed := change(table)
				if len(changed) == 0 {
					return c.Do(ctx, c.B().Unwatch().Build()).Error()
				}
				set := c.B().Hset().Key(key).FieldValue()
				for ref, state := range changed {
					value, err := json.Marshal(state)
					if err != nil {
						return err
					}
					set = set.FieldValue(ref.ClientID, string(value))
				}
				for _, answer := range c.DoMulti(ctx, c.B().Multi().Build(), set.Build(), c.B().Exec().Build()) {
					// The first says what is wrong. EXEC answers nil if another gateway was
					// quicker: the next round sees what it did.
					if err := answer.Error(); err != nil && !rueidis.IsRedisNil(err) {
						return err
					}
				}
				return nil
			})
		})
		if done || err != nil {
			return err
		}
	}
}

// Secret implements oauth.TokenStore.
func (r *Redis) Secret(ctx context.Context, name string, fresh []byte) (secret []byte, err error) {
	key := r.cfg.Prefix + "secrets"
	err = r.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		// Read first: a Redis that is full refuses every write, needed or not, and a gateway
		// that starts shall serve the tokens that there are.
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

// Close implements oauth.TokenStore. It waits for an attempt to connect, DialTimeout at most.
func (r *Redis) Close() error {
	r.close.Do(func() { close(r.stop) })
	<-r.done
	return nil
}

// Coherent reports whether every revocation up to a moment ago has been told to Revoked.
func (r *Redis) Coherent() bool {
	now := time.Now()
	return int64(now.Sub(r.base)) < r.lease.Load() && now.UnixNano() < r.wall.Load()
}

// do runs commands, when there is a connection and a place for them.
func (r *Redis) do(ctx context.Context, f func(context.Context, rueidis.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
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

// redisError tells what may pass by itself from what somebody has to mend, such as a wrong
// password.
func redisError(err error) error {
	answer, answered := rueidis.IsRedisErr(err)
	switch {
	case errors.Is(err, oauth.ErrNotFound), errors.Is(err, errCorrupt):
		return err
	case errors.Is(err, rueidis.ErrClosing):
		return oauth.ErrClosed
	case errors.Is(err, rueidis.ErrNoCache):
		return fmt.Errorf("redis: no client tracking, which needs Redis 6 or later and the right to call CLIENT: %w", err)
	case answered:
		// rueidis has taken the word ERR away.
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

// run connects, then watches the link until Close.
func (r *Redis) run() {
	defer close(r.done)
	pause := 50 * time.Millisecond
	for {
		client, err := rueidis.NewClient(r.options())
		if err == nil {
			r.client = client
			close(r.connected)
			if r.failure.Load() == nil {
				close(r.tried)
			}
			break
		}
		if client != nil {
			client.Close()
		}
		if r.failure.Swap(&err) == nil {
			close(r.tried)
		}
		r.lose(err)
		select {
		case <-r.stop:
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Second)
	}
	defer r.client.Close()
	ticker := time.NewTicker(pingInterval)
	defer ticker.Stop()
	owed := false // revocations have to be repeated
	for {
		regained := r.look()
		// Tried until it works: what stands now may be a replica that is promoted later.
		if owed = owed || regained; owed && r.Coherent() {
			owed = !r.repeatRevocations()
		}
		if regained {
			r.cfg.Changed()
			r.findEvicting()
			r.cfg.Regained()
		}
		select {
		case <-r.stop:
			return
		case <-ticker.C:
		case <-r.wake:
		}
	}
}

// look asks every server whether the link stands, and draws the consequences. It reports
// whether it was lost before and stands now.
func (r *Redis) look() (regained bool) {
	r.mu.Lock()
	losses := r.losses
	r.mu.Unlock()
	asked := time.Now()
	if err := r.ping(); err != nil {
		r.lose(err)
		return false
	}
	r.mu.Lock()
	if r.losses != losses {
		r.mu.Unlock() // lost meanwhile, and woken for the next look
		return false
	}
	regained = !r.up
	r.up = true
	// The lease counts from before the question: all that Redis sent before its answer has
	// been heard.
	r.wall.Store(asked.Add(leaseTime).UnixNano())
	r.lease.Store(int64(asked.Sub(r.base) + leaseTime))
	r.mu.Unlock()
	return regained
}

// lose ends the lease, and tells of it once.
func (r *Redis) lose(err error) {
	r.mu.Lock()
	r.losses++
	r.lease.Store(0)
	r.cfg.Flush() // before anybody can grant another lease
	first := r.up || r.losses == 1
	if r.up {
		r.lostAt = time.Now()
	}
	r.up = false
	r.mu.Unlock()
	if first {
		r.cfg.Lost(err)
	}
}

// ping asks all servers that reads may go to. In a Cluster, replicas need not answer.
func (r *Redis) ping() error {
	ctx, cancel := context.WithTimeout(context.Background(), pingTimeout)
	defer cancel()
	if !r.cfg.Cluster {
		err := answered(r.client.Do(ctx, r.client.B().Ping().Build()).Error())
		r.cutSilent("", err)
		return err
	}
	nodes := r.client.Nodes()
	failures := make(chan error, len(nodes))
	for address, node := range nodes {
		go func() {
			role, err := node.Do(ctx, node.B().Role().Build()).ToArray()
			err = answered(err)
			r.cutSilent(address, err)
			r.mu.Lock()
			defer r.mu.Unlock()
			was, known := r.replicas[address]
			if len(role) > 0 {
				name, _ := role[0].ToString()
				r.replicas[address] = name == "slave"
			}
			switch is := r.replicas[address]; {
			case is && known && !was:
				// It may have been read from, and hears of changes from its new master only.
				err = errors.Join(err, errors.New("a node became a replica"))
			case is:
				err = nil // nothing was read from it; were it promoted, it would have to answer
			}
			failures <- err
		}()
	}
	var err error
	for range nodes {
		err = errors.Join(err, <-failures)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for address, replica := range r.replicas {
		if nodes[address] == nil {
			if !replica {
				// Read from, perhaps over a connection that stands for a while yet, and told no more.
				err = errors.Join(err, errors.New("a node left the cluster"))
			}
			delete(r.replicas, address) // the topology changed
			delete(r.silent, address)
		}
	}
	return err
}

// answered drops the errors that a server answered with: it is there.
func answered(err error) error {
	if _, isAnswer := rueidis.IsRedisErr(err); isAnswer {
		return nil
	}
	return err
}

// invalidated hears that keys which this gateway has read were changed, or, with nil, that a
// connection ended or all data went. It runs in the goroutine that reads the
// connection, so nothing that Redis sends later is seen before it returns.
func (r *Redis) invalidated(keys []rueidis.RedisMessage) {
	if keys == nil {
		select {
		case <-r.stop:
			return
		default:
		}
		r.lose(errors.New("a connection ended, or Redis was emptied"))
		select {
		case r.wake <- struct{}{}:
		default:
		}
		return
	}
	for _, message := range keys {
		key, err := message.ToString()
		if err != nil {
			continue
		}
		if realm, id, ok := r.parseTokenKey(key); ok {
			r.cfg.Revoked(realm, id)
		} else {
			r.cfg.Changed()
		}
	}
}

// remember keeps a revocation, to be repeated if the link is lost soon.
func (r *Redis) remember(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	drop := 0
	for drop < len(r.revoked) && (now.Sub(r.revoked[drop].at) > replayTime || len(r.revoked)-drop >= maxReplay) {
		drop++
	}
	r.revoked = append(r.revoked[drop:], revocation{key, now})
}

// repeatRevocations revokes again what was revoked shortly before the link was lost, and
// since: the server that stands now may be a replica that had not heard of it, or have lost
// its last second in a crash.
func (r *Redis) repeatRevocations() (done bool) {
	r.mu.Lock()
	var again rueidis.Commands
	for _, revoked := range r.revoked {
		if r.lostAt.Sub(revoked.at) <= replayTime {
			again = append(again, r.client.B().Del().Key(revoked.key).Build())
		}
	}
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Timeout)
	defer cancel()
	for _, answer := range r.client.DoMulti(ctx, again...) {
		if answer.Error() != nil {
			return false
		}
	}
	return true
}

// findEvicting looks for servers that may drop keys to make room. A token that is dropped is
// refused, so this costs its owner a token, not safety.
func (r *Redis) findEvicting() {
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Timeout)
	defer cancel()
	for address, node := range r.client.Nodes() {
		info, err := node.Do(ctx, node.B().Info().Section("memory").Build()).ToString()
		if err != nil {
			continue // perhaps not allowed to ask
		}
		fields := make(map[string]string)
		for line := range strings.Lines(info) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			fields[name] = value
		}
		if policy := fields["maxmemory_policy"]; fields["maxmemory"] != "0" && policy != "noeviction" && policy != "" {
			r.cfg.Evicting(address, policy)
		}
	}
}

func (r *Redis) clientsKey(realm string) string { return r.cfg.Prefix + "realm:" + realm + ":clients" }

func (r *Redis) tokenKey(key oauth.Key) string {
	return r.cfg.Prefix + "realm:" + key.Realm + ":token:" + strconv.FormatInt(key.ExpiryMilli, 10) + ":" + key.ID.String()
}

// parseTokenKey is the inverse of tokenKey. It reads from the end, where nothing has a colon.
func (r *Redis) parseTokenKey(key string) (realm string, id introspect.TokenID, ok bool) {
	rest, ok := strings.CutPrefix(key, r.cfg.Prefix+"realm:")
	colon := strings.LastIndexByte(rest, ':')
	if !ok || colon < 0 || len(rest)-colon-1 != hex.EncodedLen(len(id)) {
		return "", id, false
	}
	if _, err := hex.Decode(id[:], []byte(rest[colon+1:])); err != nil {
		return "", id, false
	}
	rest = rest[:colon]
	colon = strings.LastIndexByte(rest, ':')
	if colon < 0 {
		return "", id, false
	}
	realm, ok = strings.CutSuffix(rest[:colon], ":token")
	return realm, id, ok
}

// dial connects, and remembers the connection for cutSilent.
func (r *Redis) dial(ctx context.Context, address string, dialer *net.Dialer, config *tls.Config) (conn net.Conn, err error) {
	if config != nil {
		conn, err = (&tls.Dialer{NetDialer: dialer, Config: config}).DialContext(ctx, "tcp", address)
	} else {
		conn, err = dialer.DialContext(ctx, "tcp", address)
	}
	if err != nil {
		return nil, err
	}
	c := &cutConn{Conn: conn, r: r, address: address}
	r.mu.Lock()
	r.conns[c] = struct{}{}
	r.mu.Unlock()
	return c, nil
}

// cutSilent ends the connections to a server, or all if it has no name, that has let two
// PINGs pass. What waits for an answer there fails now, and makes room: its callers
// have gone already.
func (r *Redis) cutSilent(address string, err error) {
	r.mu.Lock()
	var conns []*cutConn
	if errors.Is(err, context.DeadlineExceeded) {
		r.silent[address]++
	} else {
		delete(r.silent, address)
	}
	if r.silent[address] == 2 {
		delete(r.silent, address)
		for c := range r.conns {
			if address == "" || c.address == address {
				conns = append(conns, c)
			}
		}
	}
	r.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

// cutConn is a connection that its Redis remembers until it is closed.
type cutConn struct {
	net.Conn
	r       *Redis
	address string
}

func (c *cutConn) Close() error {
	c.r.mu.Lock()
	delete(c.r.conns, c)
	c.r.mu.Unlock()
	return c.Conn.Close()
}
