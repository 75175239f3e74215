package store

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

// This file keeps the link to Redis: it connects, proves with PINGs that news of revocations
// arrives, grants and ends the lease under which the cache may answer, and makes up for
// what was lost while the link was down.

const (
	pingInterval = 500 * time.Millisecond
	pingTimeout  = time.Second
	// leaseTime bounds how long a revocation at another gateway can go unnoticed.
	leaseTime = 2 * time.Second

	replayTime = time.Minute
	maxReplay  = 4096
)

// revocation is the revocation of a recorded token that Redis has acknowledged, kept in case Redis
// loses it.
type revocation struct {
	key string // of the record
	at  time.Time
}

// writtenClient is a state of a client that Redis has acknowledged, kept in case Redis loses it.
type writtenClient struct {
	clientState
	at time.Time
}

// Coherent implements introspect.Coherent: it reports whether Revoked has been told of every
// revocation up to a moment ago. It does not block.
func (r *Redis) Coherent() bool {
	return r.before(r.lease.Load(), r.wall.Load())
}

// Lease returns a function that reports whether what this gateway knows now may still be used, even
// if others have changed it since. It is for whoever is told of a change and needs time to act on it:
// the lease that was granted last began before the change was made. It does not block.
func (r *Redis) Lease() (valid func() bool) {
	lease, wall := r.lease.Load(), r.wall.Load()
	return func() bool { return r.before(lease, wall) }
}

// before reports whether a lease has not ended by either clock.
func (r *Redis) before(lease, wall int64) bool {
	now := time.Now()
	return int64(now.Sub(r.base)) < lease && now.UnixNano() < wall
}

// run connects, then watches the link until Close.
func (r *Redis) run() {
	defer close(r.done)
	if !r.connect() {
		return
	}
	defer r.client.Close()
	attended := make(chan struct{})
	go func() {
		defer close(attended)
		r.attend()
	}()
	defer func() { <-attended }()
	ticker := time.NewTicker(pingInterval)
	defer ticker.Stop()
	for {
		regained := r.look()
		// Retried until it works: the server we reach now may be a replica that is promoted later.
		if r.Coherent() {
			r.repeatRevocations()
		}
		if regained {
			r.attract()
			r.cfg.Changed()
			r.findEvicting()
			r.tell()
		}
		select {
		case <-r.stop:
			return
		case <-ticker.C:
		case <-r.wake:
		}
	}
}

// connect tries to connect until it succeeds. It returns false if Close comes first.
func (r *Redis) connect() bool {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		client, err := rueidis.NewClient(r.options())
		if err == nil {
			r.client = client
			close(r.connected)
			if r.failure.Load() == nil {
				close(r.tried)
			}
			return true
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
			return false
		case <-time.After(pause):
		}
	}
}

// look asks every server whether the link is up, and extends or ends the lease accordingly. It
// reports whether the link was down before and is up now.
func (r *Redis) look() (regained bool) {
	r.mu.Lock()
	losses, breaks := r.losses, r.breaks.Load()
	r.mu.Unlock()
	asked := time.Now()
	var confirmed map[*denials]*ear
	var deaf error
	var both sync.WaitGroup
	both.Go(func() { confirmed, deaf = r.confirm(breaks) })
	err := r.ping()
	both.Wait()
	if err = errors.Join(err, deaf); err != nil {
		r.lose(err)
		return false
	}
	r.mu.Lock()
	if r.losses != losses {
		r.mu.Unlock() // lost meanwhile; wake brings the next look
		return false
	}
	if regained = !r.up; regained {
		// Tell of what may have been missed before there is a lease, so that nobody goes by it.
		r.cfg.Changed()
		r.news = append(r.news, r.cfg.Regained) // for run to tell
		r.owed = true                           // also at first: something may have been written before
	}
	r.up = true
	for d, e := range confirmed {
		d.confirm(e, asked)
	}
	// The lease starts before the question: the answer proves only that everything Redis sent
	// before it has been heard.
	r.wall.Store(asked.Add(leaseTime).UnixNano())
	r.lease.Store(int64(asked.Sub(r.base) + leaseTime))
	r.mu.Unlock()
	return regained
}

// lose ends the lease, and reports the loss once.
func (r *Redis) lose(err error) {
	r.mu.Lock()
	r.losses++
	r.lease.Store(0)
	for _, d := range *r.realms.Load() {
		d.unconfirm()
	}
	r.cfg.Flush() // under mu, before look can grant another lease
	if r.up || r.losses == 1 {
		r.news = append(r.news, func() { r.cfg.Lost(err) })
	}
	if r.up {
		if !r.owed {
			r.owed, r.lostAt = true, time.Now()
		}
		r.breaks.Add(1)
	}
	r.up = false
	r.mu.Unlock()
	r.attract()
	r.tell()
}

// tell calls Lost and Regained in the order in which the link was lost and came back, whoever noticed: the
// call that comes last says how things are.
func (r *Redis) tell() {
	r.telling.Lock()
	defer r.telling.Unlock()
	r.mu.Lock()
	news := r.news
	r.news = nil
	r.mu.Unlock()
	for _, tell := range news {
		tell()
	}
}

// ping asks every server that reads may go to. In a Cluster, replicas need not answer.
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
				// We may have read from it, and from now on only its new master hears of changes.
				err = errors.Join(err, errors.New("a node became a replica"))
			case is:
				err = nil // nothing was read from it; once promoted, it will have to answer
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
		if nodes[address] == nil { // the topology changed
			if !replica {
				// We have read from it, perhaps over a connection that stays open for a while yet,
				// but it no longer hears of changes.
				err = errors.Join(err, errors.New("a node left the cluster"))
			}
			delete(r.replicas, address)
			delete(r.silent, address)
		}
	}
	return err
}

// answered drops an error that the server itself answered with: it proves that the server is
// there.
func answered(err error) error {
	if _, isAnswer := rueidis.IsRedisErr(err); isAnswer {
		return nil
	}
	return err
}

// invalidated hears that keys which this gateway has read were changed or, if keys is nil, that a
// connection ended or all data was dropped. It runs in the goroutine that reads the
// connection, so nothing that Redis sends later is seen before it returns.
func (r *Redis) invalidated(keys []rueidis.RedisMessage) {
	if keys == nil {
		select {
		case <-r.stop:
			return
		default:
		}
		r.lost()
		return
	}
	for _, message := range keys {
		key, err := message.ToString()
		if err != nil {
			continue
		}
		if realm, id, ok := r.parseTokenKey(key); ok {
			r.cfg.Revoked(realm, id)
		} else if !r.isUsesKey(key) {
			r.cfg.Changed()
		}
	}
}

// lost is called when a connection ended, or Redis said that all data was dropped.
func (r *Redis) lost() {
	r.breaks.Add(1)
	r.lose(errors.New("a connection ended, or Redis was emptied"))
	r.lookNow()
}

// lookNow makes run look at the link at once.
func (r *Redis) lookNow() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// keptSince returns since when what was written is kept, to repeat it. While it is owed, none is given
// up: an outage may have taken longer than replayTime. The caller holds mu.
func (r *Redis) keptSince() time.Time {
	if r.owed {
		return r.lostAt.Add(-replayTime)
	}
	return time.Now().Add(-replayTime)
}

// remember keeps a revocation, to repeat it if the link is lost soon.
func (r *Redis) remember(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	since, drop := r.keptSince(), 0
	for drop < len(r.revoked) && (r.revoked[drop].at.Before(since) || len(r.revoked)-drop >= maxReplay) {
		drop++
	}
	r.revoked = append(r.revoked[drop:], revocation{key, time.Now()})
}

// owesRevocation reports whether the record under key was revoked here, and a server may have lost that:
// before it is repeated, the server does not know better. A new master may refuse writes for long.
func (r *Redis) owesRevocation(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.owed && slices.ContainsFunc(r.revoked, func(revoked revocation) bool { return revoked.key == key })
}

// repeatRevocations repeats the revocations made shortly before the link was lost, and since, if that is
// owed: the server we reach now may be a replica that had not heard of them, or may have lost its
// last second in a crash.
func (r *Redis) repeatRevocations() {
	r.mu.Lock()
	owed, losses, since := r.owed, r.losses, r.keptSince()
	var again rueidis.Commands
	for _, revoked := range r.revoked {
		if owed && !revoked.at.Before(since) {
			again = append(again, r.client.B().Del().Key(revoked.key).Build())
		}
	}
	r.mu.Unlock()
	if !owed {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Timeout)
	defer cancel()
	for _, answer := range r.client.DoMulti(ctx, again...) {
		if answer.Error() != nil {
			return
		}
	}
	if errors.Join(r.repeatClients(ctx), r.repeatManaged(ctx)) != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.owed = r.losses != losses // if it was lost meanwhile, there may be another server
}

// findEvicting looks for servers that may drop keys to make room. A dropped token is refused, so
// eviction costs the client a token but never lets anybody in.
func (r *Redis) findEvicting() {
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Timeout)
	defer cancel()
	for address, node := range r.client.Nodes() {
		if policy, _ := evictionPolicy(ctx, node); policy != "" {
			r.evicts.Store(true)
			r.cfg.Evicting(address, policy)
		}
	}
}

// errSilent is returned for a server that does not tell whether it drops keys, as if INFO is not allowed.
var errSilent = errors.New("redis: the server does not tell its maxmemory-policy")

// evictionPolicy returns by which policy a server drops keys to make room; empty if it drops none.
func evictionPolicy(ctx context.Context, node rueidis.Client) (string, error) {
	fields, err := infoOf(ctx, node, "memory")
	policy := fields["maxmemory_policy"]
	_, refused := rueidis.IsRedisErr(err)
	switch {
	case refused, err == nil && (policy == "" || fields["maxmemory"] == ""):
		return "", errSilent
	case err != nil:
		return "", err
	case fields["maxmemory"] == "0", policy == "noeviction":
		return "", nil
	}
	return policy, nil
}

// dial connects, and records the connection for cutSilent.
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

// cutSilent takes the outcome of a PING to the server at address, and closes the connections
// there once two PINGs in a row got no answer. An empty address stands for all servers.
// Commands that wait for an answer on those connections fail now and give up their
// places; their callers have already left.
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

// cutConn is a connection that stands in Redis.conns until it is closed.
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
