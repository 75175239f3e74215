package store

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// This file keeps, in memory, what Redis knows about revoked self-contained tokens, so that the
// first use of such a token asks nobody.
//
// # What is heard
//
// For each server that holds a realm's keyring there is an ear: a connection on which Redis
// announces every change under {realm:, whether or not anybody has read what changes. A denial is
// one transaction that adds the token to the realm's denials and touches a key whose name says
// which token it is: that name is what the others hear. A realm is settled once an ear was open
// before all its denials were read: whatever was denied before is in what was read, and whatever
// is denied after is heard.
//
// An ear is one connection, and so leads to one process for as long as it lasts. With each PING
// of the link, every half second, each settled realm is confirmed over its ear: that the server
// still holds the realm's keyring, and in the same epoch. Whatever Redis has acknowledged to
// anybody before that question has been heard when the answer is there, or is on its way right
// behind it. So the lease of the link also holds for what is remembered here. Everything else
// about denials also goes over the ear, so it meets the same server.
//
// # What is believed
//
// A server that was restarted, promoted or restored may have a keyring without the denials that
// were made after it, or without the one that came after it. So beside the keyring there is the name of the server whose denials the
// gateways vouch for: of the process, and of its history of replication. If it is another one than
// the server that is there now, nothing that is not denied there is good, until a gateway that
// knew all denials shortly before has added those that are missing, and the last keyring. If none
// does within vouchWait, the epoch ends: the keyring is removed, and with it all tokens of before.
//
// A keyring that was replaced by another one of its epoch stands among the denials, too. So a
// gateway that knows the denials does not take an old keyring, with a key that was withdrawn, for
// the last one.
const (
	// maxDenials bounds how many denials are remembered, in all realms together: about 100 bytes
	// each. Of a realm that does not fit none are, and Redis is asked.
	maxDenials = 1_000_000
	// vouchGap bounds how long ago a gateway must have known all denials to vouch for a server.
	vouchGap = 5 * time.Minute
	// vouchWait is how long a gateway that can't vouch waits for another that can.
	vouchWait = 5 * time.Second
	// tidyInterval is how often denials that are over are dropped, and how often it is looked
	// whether Redis may evict.
	tidyInterval = time.Minute

	scanSize = 5000 // denials that are read at once
	denySize = 200  // denials that are written at once
)

// errUnvouched is why a realm can't be judged for a few seconds.
var errUnvouched = fmt.Errorf("%w: redis: another server is there than before, and no gateway has vouched for it yet", oauth.ErrUnreachable)

// errReplaced is why an attempt to read a realm's denials begins again. What the attempt has found about
// the server still holds.
var errReplaced = errors.New("redis: the keyring was replaced while the realm's denials were read")

// errDistrusted says that a server is not believed any more that was when it was asked.
var errDistrusted = errors.New("redis: another server has to be asked")

// denials is what this gateway knows of the denials of a realm.
type denials struct {
	realm string
	// total counts the denials that are remembered in all realms.
	total *atomic.Int64
	max   int64

	mu sync.RWMutex
	// epoch is what the realm's keyring begins with; empty if there is none.
	epoch string
	// known are denials in epoch. It is nil if there are too many. It survives the loss of the
	// link: a denial is never taken back.
	known map[introspect.TokenID]denial
	scan  uint32 // the number of the last time that they were read from Redis
	// ear is the connection to the server that is believed about this realm, or nil if the last
	// attempt to find one failed, with err. at is what breaks was before it.
	ear     *ear
	err     error
	at      uint64
	changed chan struct{} // closed when the above change
	// unvouched says that the server at ear is believed only together with known.
	unvouched bool
	// settled says that there is no more to do: known has all denials, or is nil for want of room.
	settled bool
	// confirmed says that the lease of the link holds for known. Only look sets it.
	confirmed bool
	// wholeAt is when known was last confirmed to have all denials.
	wholeAt time.Time

	// What is not vouched for, since when others can be asked, and when they were asked last; under
	// Redis.loading.
	awaited      doubt
	since, asked time.Time

	attempted atomic.Bool // whether an attempt to settle is under way
	missed    atomic.Bool // whether another one was wanted meanwhile
}

// doubt is about a keyring at a server that nobody here can vouch for, over the ear that leads there:
// whoever was cut off meanwhile has not waited for others.
type doubt struct {
	keyring, server string
	ear             *ear
}

// denial is a revoked token.
type denial struct {
	expiry int64 // unix milliseconds
	scan   uint32
}

// recall reports whether a token is denied, from memory. ok is false if Redis has to be asked. The
// caller has found the link coherent before.
func (d *denials) recall(epoch oauth.Epoch, id introspect.TokenID) (denied, ok bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if !d.confirmed || d.epoch != string(epoch[:]) {
		return false, false
	}
	_, denied = d.known[id]
	return denied, true
}

// remember adds a denial, unless there are too many.
func (d *denials) remember(id introspect.TokenID, expiry int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil {
		return
	}
	if _, already := d.known[id]; !already && d.total.Add(1) > d.max {
		d.total.Add(-1)
		d.forget()
		d.known, d.confirmed = nil, false
		if d.unvouched {
			d.ear, d.settled = nil, false // Redis lacks some of what was known
		}
		return
	}
	d.known[id] = denial{expiry, d.scan}
}

// remembers reports whether a token, or a keyring, is known to be denied.
func (d *denials) remembers(id introspect.TokenID) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	_, denied := d.known[id]
	return denied
}

// adds says whether a token is denied that was not, according to the server at e. ok is false if
// that server is not believed any more.
func (d *denials) adds(e *ear, id introspect.TokenID) (denied, ok bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	_, denied = d.known[id]
	return denied, d.ear == e
}

// forget drops all that is known. The caller holds mu.
func (d *denials) forget() {
	d.total.Add(-int64(len(d.known)))
	d.known, d.wholeAt = make(map[introspect.TokenID]denial), time.Time{}
}

// begin takes note of the epoch of the keyring in Redis. What is known from another epoch is
// forgotten. It reports whether all denials were known until shortly before, or until an attempt to vouch
// for the server at e, which was cut short: since then all that happens there has been heard.
func (d *denials) begin(epoch string, e *ear, gap time.Duration) (mayVouch bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.epoch != epoch || d.known == nil {
		d.forget()
		d.epoch = epoch
	}
	d.scan++
	if !d.wholeAt.IsZero() && d.unvouched && d.ear == e {
		return true
	}
	// By both clocks: one of them may stand still while the machine sleeps, and the other be set.
	return !d.wholeAt.IsZero() && time.Since(d.wholeAt) <= gap && time.Now().Round(0).Sub(d.wholeAt.Round(0)) <= gap
}

// missing returns what is known but was not found in Redis when it was last read, except what was over
// by then.
func (d *denials) missing(over time.Time) (ids []introspect.TokenID, expiries []int64) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for id, k := range d.known {
		if k.scan != d.scan && k.expiry >= over.UnixMilli() {
			ids, expiries = append(ids, id), append(expiries, k.expiry)
		}
	}
	return ids, expiries
}

// dropOld forgets denials that are over. As in Redis, the clock of this gateway alone does not say so:
// when it is set back, a token counts again, and what is known here is not asked of Redis.
func (d *denials) dropOld(over time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, k := range d.known {
		if k.expiry < over.UnixMilli() {
			delete(d.known, id)
			d.total.Add(-1)
		}
	}
}

// set says what an attempt has come to: an ear, or why there is none.
func (d *denials) set(at uint64, e *ear, unvouched bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at, d.ear, d.unvouched, d.err = at, e, unvouched, err
	d.settled, d.confirmed = false, false
	close(d.changed)
	d.changed = make(chan struct{})
}

// distrust says that e does not lead to the right server any more.
func (d *denials) distrust(e *ear) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ear == e {
		d.ear, d.settled, d.confirmed = nil, false, false
	}
}

// settle says that all denials in Redis have been read over e, or don't fit.
func (d *denials) settle(e *ear) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.settled, d.unvouched = d.ear == e, false
}

// unsettle takes nothing for known until it has been read again: this gateway has ended the epoch, and may hear so only in a moment.
func (d *denials) unsettle() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.settled, d.confirmed = false, false
}

// tryAgain makes whoever needs the ear wait for another attempt to find one.
func (d *denials) tryAgain() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = nil
}

func (d *denials) isSettled(breaks uint64) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.settled && d.at == breaks && !d.ear.ended.Load()
}

// overflowed reports whether there are too many denials to remember.
func (d *denials) overflowed() bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.known == nil
}

// heardOver returns the ear of a realm, the epoch that it has to confirm, and whether the realm is
// settled.
func (d *denials) heardOver(breaks uint64) (e *ear, epoch string, settled bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.at != breaks {
		return nil, "", false
	}
	return d.ear, d.epoch, d.settled
}

// confirm says that as of asked, everything had been heard over e.
func (d *denials) confirm(e *ear, asked time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ear == e && d.settled && d.known != nil {
		d.confirmed, d.wholeAt = true, asked
	}
}

func (d *denials) unconfirm() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.confirmed = false
}

// denialsOf returns what is known of a realm. The first call for a realm makes the store begin to
// listen. Callers name configured realms only, so it grows with nothing else.
func (r *Redis) denialsOf(realm string) *denials {
	if d := (*r.realms.Load())[realm]; d != nil {
		return d
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	before := *r.realms.Load()
	if d := before[realm]; d != nil {
		return d
	}
	d := &denials{realm: realm, total: &r.denied, max: r.cfg.maxDenials, known: make(map[introspect.TokenID]denial), changed: make(chan struct{})}
	next := maps.Clone(before)
	next[realm] = d
	r.realms.Store(&next)
	r.attract()
	return d
}

// attract makes attend look after the realms at once.
func (r *Redis) attract() {
	select {
	case r.attention <- struct{}{}:
	default:
	}
}

// learn takes note of a denial.
func (r *Redis) learn(realm string, id introspect.TokenID, expiry int64) {
	if d := (*r.realms.Load())[realm]; d != nil {
		d.remember(id, expiry)
	}
	r.cfg.Revoked(realm, id) // after: a lookup that begins now must not find it good
}

// over runs f with the connection to the server that is believed about a realm, and again if that
// connection ends or leads elsewhere.
func (r *Redis) over(ctx context.Context, realm string, f func(context.Context, *denials, *ear) error) error {
	d := r.denialsOf(realm)
	return r.do(ctx, func(ctx context.Context, _ rueidis.Client) error {
		for {
			e, err := r.earOf(ctx, d)
			if err != nil {
				return err
			}
			err = f(ctx, d, e)
			if err == nil || ctx.Err() != nil {
				return err
			}
			if elsewhere(err) {
				d.distrust(e)
			} else if !e.ended.Load() && !errors.Is(err, errDistrusted) {
				return err
			}
		}
	})
}

// elsewhere reports whether a node of a Cluster says that it doesn't have a key.
func elsewhere(err error) bool {
	answer, ok := rueidis.IsRedisErr(err)
	if !ok {
		return false
	}
	_, moved := answer.IsMoved()
	_, asks := answer.IsAsk()
	return moved || asks || strings.HasPrefix(answer.Error(), "EXECABORT")
}

// earOf waits for the ear of a realm.
func (r *Redis) earOf(ctx context.Context, d *denials) (*ear, error) {
	for {
		d.mu.RLock()
		e, at, err, changed := d.ear, d.at, d.err, d.changed
		d.mu.RUnlock()
		breaks := r.breaks.Load()
		r.mu.Lock()
		up := r.up
		r.mu.Unlock()
		switch {
		case e != nil && at == breaks && !e.ended.Load():
			return e, nil
		case err != nil && (at == breaks || !up):
			return nil, err
		}
		r.attract()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: redis: waiting for the connection over which denials are heard: %w", oauth.ErrUnreachable, ctx.Err())
		case <-r.stop:
			return nil, oauth.ErrClosed
		}
	}
}

// attend opens ears, reads denials, and drops what is over, until Close. It is the only one to open
// ears, and keeps them in a map by address. No realm waits until the node of a Cluster that has another
// one answers: each has a goroutine while an attempt to settle it is under way.
func (r *Redis) attend() {
	ears := make(map[string]*ear)
	var attempts sync.WaitGroup
	defer func() {
		attempts.Wait()
		for _, e := range ears {
			e.close()
		}
	}()
	ticker := time.NewTicker(r.cfg.tidyInterval)
	defer ticker.Stop()
	for called := true; ; {
		var retry <-chan time.Time
		breaks := r.breaks.Load()
		for _, d := range *r.realms.Load() {
			if d.isSettled(breaks) {
				continue
			}
			if retry == nil {
				retry = time.After(pingInterval)
			}
			if called {
				d.missed.Store(true)
			}
			if d.attempted.Swap(true) {
				continue
			}
			d.missed.Store(false)
			attempts.Go(func() {
				r.settle(d, ears)
				d.attempted.Store(false)
				if d.missed.Swap(false) { // after the above: whoever has seen that it was set has set this one before
					r.attract()
				}
			})
		}
		called = false
		select {
		case <-r.stop:
			return
		case <-retry:
		case <-r.attention:
			called = true
		case <-ticker.C:
			r.tidy()
		}
		if r.asked.Swap(false) {
			r.vouchAgain()
		}
	}
}

// settle makes one attempt to hear of a realm's denials.
func (r *Redis) settle(d *denials, ears map[string]*ear) {
	address, err := r.holder(d.realm)
	r.loading.Lock()
	defer r.loading.Unlock()
	breaks := r.breaks.Load() // now: an ear that another realm has opened meanwhile is good
	var e *ear
	if err == nil {
		e, err = r.earAt(address, breaks, ears)
	}
	if err == nil {
		err = r.load(d, e)
	}
	if err != nil {
		if e == nil || !d.leadsTo(e) {
			d.set(breaks, nil, false, err)
		}
		return
	}
	// Only a look that comes after this makes it count.
	r.lookNow()
}

func (d *denials) leadsTo(e *ear) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.ear == e
}

// holder returns the address of the server that holds the keyring of a realm.
func (r *Redis) holder(realm string) (address string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Timeout)
	defer cancel()
	nodes := r.client.Nodes()
	if !r.cfg.Cluster {
		for address := range nodes {
			return address, nil
		}
	}
	// Ask by the way that follows a slot, too, so that a node that is new becomes known.
	r.client.Do(ctx, r.client.B().Getrange().Key(r.keysKey(realm)).Start(0).End(0).Build())
	// Only the node that has the slot answers. Another one may be dead, so nobody waits for it.
	type answer struct {
		address string
		err     error
	}
	answers := make(chan answer, len(nodes))
	for address, node := range nodes {
		go func() {
			answers <- answer{address, node.Do(ctx, node.B().Getrange().Key(r.keysKey(realm)).Start(0).End(0).Build()).Error()}
		}()
	}
	err = errors.New("no node of the cluster has the realm's keyring")
	for range nodes {
		a := <-answers
		if a.err == nil {
			return a.address, nil
		}
		err = a.err
	}
	return "", err
}

// earAt returns an ear at a server.
func (r *Redis) earAt(address string, breaks uint64, ears map[string]*ear) (*ear, error) {
	if e := ears[address]; e != nil {
		if e.at == breaks && !e.ended.Load() {
			return e, nil
		}
		e.close()
		delete(ears, address)
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Timeout)
	defer cancel()
	e, err := r.openEar(ctx, address, breaks)
	if err != nil {
		return nil, err
	}
	ears[address] = e
	return e, nil
}

// load finds out whether the server at e is believed about a realm, and reads its denials.
func (r *Redis) load(d *denials, e *ear) error {
	keyring, vouched, err := r.readRealm(d.realm, e)
	if err != nil {
		return err
	}
	epoch := keyring[:min(len(keyring), len(oauth.Epoch{}))]
	mayVouch := d.begin(epoch, e, r.cfg.vouchGap)
	trusted := keyring == "" || vouched == e.server
	if !trusted {
		// It may have another name by now, as if e had been opened now; see vouchAgain.
		if err := r.nameServer(e); err != nil {
			return err
		}
		trusted = vouched == e.server
	}
	if !trusted && !mayVouch {
		return r.awaitVoucher(d, e, keyring)
	}
	over, err := r.dropDenials(d.realm, e) // what is over need not be read, but may be if writes are refused for a while
	if err != nil && (over.IsZero() || !errors.Is(redisError(err), oauth.ErrUnreachable)) {
		return err
	}
	d.set(e.at, e, !trusted, nil) // Redis may be asked, and what it has lost is known here
	if err := r.readDenials(d, e); err != nil {
		return err
	}
	// What Redis does not have is repeated even if another gateway has vouched for it: that one may
	// not have heard of it.
	ids, expiries := d.missing(over)
	for len(ids) > 0 {
		n := min(len(ids), denySize)
		ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Timeout)
		err := r.deny(ctx, e, d.realm, ids[:n], expiries[:n])
		cancel()
		if err != nil {
			return err
		}
		ids, expiries = ids[n:], expiries[n:]
	}
	last := keyring
	if d.remembers(keyringID([]byte(keyring))) {
		if now, _, err := r.readRealm(d.realm, e); err != nil || now != keyring {
			return cmp.Or(err, errReplaced)
		}
		// Redis has lost the one that came after it.
		r.mu.Lock()
		last = string(r.keyrings[d.realm])
		r.mu.Unlock()
		trusted = false
	}
	switch {
	case trusted:
	case d.overflowed(), !strings.HasPrefix(last, epoch), d.remembers(keyringID([]byte(last))):
		d.distrust(e)
		return r.awaitVoucher(d, e, keyring)
	default:
		if err := r.vouch(d.realm, e, keyring, last); err != nil {
			return err
		}
	}
	d.settle(e)
	return nil
}

// readRealm reads the keyring of a realm, which is empty if there is none, and which server is
// vouched for.
func (r *Redis) readRealm(realm string, e *ear) (keyring, vouched string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Timeout)
	defer cancel()
	b := e.client.B()
	answers := e.client.DoMulti(ctx, b.Get().Key(r.keysKey(realm)).Build(), b.Get().Key(r.serverKey(realm)).Build(),
		// Want of this right, too, must show before the realm can be served.
		b.Zscan().Key(r.denialsKey(realm)).Cursor(0).Count(1).Build())
	if keyring, err = answers[0].ToString(); err != nil && !rueidis.IsRedisNil(err) {
		return "", "", err
	}
	if vouched, err = answers[1].ToString(); rueidis.IsRedisNil(err) {
		err = nil
	}
	return keyring, vouched, cmp.Or(err, answers[2].Error())
}

// askEpoch returns the command that asks for the epoch of a realm's keyring.
func (r *Redis) askEpoch(c rueidis.Client, realm string) rueidis.Completed {
	return c.B().Getrange().Key(r.keysKey(realm)).Start(0).End(int64(len(oauth.Epoch{})) - 1).Build()
}

// readDenials adds what Redis has to what is known. If it is too much, nothing is known any more.
func (r *Redis) readDenials(d *denials, e *ear) error {
	for cursor := uint64(0); ; {
		ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Timeout)
		found, err := e.client.Do(ctx, e.client.B().Zscan().Key(r.denialsKey(d.realm)).Cursor(cursor).Count(scanSize).Build()).AsScanEntry()
		cancel()
		if err != nil {
			return err
		}
		for pair := range slices.Chunk(found.Elements, 2) {
			expiry, err := strconv.ParseFloat(pair[len(pair)-1], 64)
			if err != nil || len(pair[0]) != len(introspect.TokenID{}) {
				return fmt.Errorf("a denial of realm %q: %w", d.realm, errCorrupt)
			}
			d.remember(introspect.TokenID([]byte(pair[0])), int64(expiry))
		}
		select {
		case <-r.stop:
			return oauth.ErrClosed
		default:
		}
		if cursor = found.Cursor; cursor == 0 || d.overflowed() {
			return nil
		}
	}
}

// vouch says that the server at e has all denials of a realm, and the last keyring once that has
// taken the place of keyring. It fails if somebody else has changed either.
func (r *Redis) vouch(realm string, e *ear, keyring, last string) error {
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Timeout)
	defer cancel()
	done := false
	err := r.client.Dedicated(func(c rueidis.DedicatedClient) (err error) {
		if _, err = r.watchRealm(ctx, c, realm, keyring, e.server); err != nil {
			return err
		}
		commands := rueidis.Commands{c.B().Set().Key(r.serverKey(realm)).Value(e.server).Build()}
		if last != keyring {
			commands = append(commands, c.B().Set().Key(r.keysKey(realm)).Value(last).Build())
		}
		done, err = transact(ctx, c, commands...)
		return err
	})
	if err == nil && !done {
		err = errUnvouched
	}
	return err
}

// nameServer looks how the server at e is called now.
func (r *Redis) nameServer(e *ear) error {
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Timeout)
	defer cancel()
	server, err := serverName(ctx, e.client)
	if err == nil {
		e.server = server
	}
	return err
}

// watchRealm watches what vouch and awaitVoucher change, over a connection to the server of that
// name, and fails if the keyring is not the one given. It returns which server is vouched for.
func (r *Redis) watchRealm(ctx context.Context, c rueidis.DedicatedClient, realm, keyring, name string) (vouched string, err error) {
	keys, server := r.keysKey(realm), r.serverKey(realm)
	if err := c.Do(ctx, c.B().Watch().Key(keys, server).Build()).Error(); err != nil {
		return "", err
	}
	now, err := c.Do(ctx, c.B().Get().Key(keys).Build()).ToString()
	if err == nil || rueidis.IsRedisNil(err) {
		vouched, err = c.Do(ctx, c.B().Get().Key(server).Build()).ToString()
	}
	if err != nil && !rueidis.IsRedisNil(err) {
		return "", err
	}
	at, err := serverName(ctx, c)
	if err == nil && (now != keyring || at != name) {
		err = errUnvouched
	}
	if err != nil {
		c.Do(ctx, c.B().Unwatch().Build())
	}
	return vouched, err
}

// vouchAgain is for when somebody asks whether anybody can vouch for a server. The name of a server
// may change while it runs, as when it gets its first replica. Whoever has heard it all the time
// knows that it has lost nothing: it would have said so.
func (r *Redis) vouchAgain() {
	r.loading.Lock()
	defer r.loading.Unlock()
	breaks := r.breaks.Load()
	for _, d := range *r.realms.Load() {
		e, epoch, settled := d.heardOver(breaks)
		if !settled || epoch == "" {
			continue
		}
		if r.nameServer(e) != nil {
			continue // the link will be lost, or the next time is soon enough
		}
		if keyring, vouched, err := r.readRealm(d.realm, e); err == nil && vouched != e.server {
			_ = r.vouch(d.realm, e, keyring, keyring) // whoever asks, asks again
		}
	}
}

// awaitVoucher is for a realm that nobody here can vouch for. It asks whether others can, and ends
// the epoch once they have had enough time.
func (r *Redis) awaitVoucher(d *denials, e *ear, keyring string) error {
	if about := (doubt{keyring, e.server, e}); d.awaited != about {
		d.awaited, d.since, d.asked = about, time.Time{}, time.Time{}
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Timeout)
	defer cancel()
	if d.since.IsZero() || time.Since(d.since) < r.cfg.vouchWait {
		// This gateway hears its own question, too, which begins another attempt at once.
		if time.Since(d.asked) < pingInterval {
			return errUnvouched
		}
		d.asked = time.Now()
		key := r.askingKey(d.realm)
		for _, answer := range e.client.DoMulti(ctx, e.client.B().Set().Key(key).Value("").Build(), e.client.B().Del().Key(key).Build()) {
			if err := answer.Error(); err != nil {
				d.since = time.Time{} // while this server takes no questions, it takes no word of others, either
				return err
			}
		}
		if d.since.IsZero() {
			d.since = d.asked
		}
		return errUnvouched
	}
	ended := false
	err := r.client.Dedicated(func(c rueidis.DedicatedClient) error {
		vouched, err := r.watchRealm(ctx, c, d.realm, keyring, e.server)
		if err != nil {
			return err
		}
		// One that was vouched for since has all denials, but perhaps not the last keyring.
		if vouched == e.server && !d.remembers(keyringID([]byte(keyring))) {
			return c.Do(ctx, c.B().Unwatch().Build()).Error()
		}
		ended, err = transact(ctx, c, c.B().Del().Key(r.keysKey(d.realm)).Build())
		return err
	})
	if err != nil {
		d.since = time.Time{} // as above
		return err
	}
	if ended {
		r.cfg.Ended(d.realm)
	}
	return errUnvouched // the next attempt sees what there is now
}

// transact carries out commands in a transaction. It reports false if what was watched has changed.
func transact(ctx context.Context, c rueidis.CoreClient, commands ...rueidis.Completed) (bool, error) {
	all := append(append(rueidis.Commands{c.B().Multi().Build()}, commands...), c.B().Exec().Build())
	answers := c.DoMulti(ctx, all...)
	for _, answer := range answers[:len(answers)-1] {
		// The first error says what is wrong.
		if err := answer.Error(); err != nil {
			return false, err
		}
	}
	results, err := answers[len(answers)-1].ToArray()
	if rueidis.IsRedisNil(err) {
		return false, nil
	}
	for _, result := range results {
		if err == nil {
			err = result.Error()
		}
	}
	return err == nil, err
}

// serverName names a server: the process, and its history of replication. A replica that is promoted
// begins another history, and so does a server that was made a replica in the meantime.
func serverName(ctx context.Context, c rueidis.CoreClient) (string, error) {
	server, err := infoOf(ctx, c, "server")
	if err != nil {
		return "", err
	}
	replication, err := infoOf(ctx, c, "replication")
	if err != nil {
		return "", err
	}
	switch {
	case server["run_id"] == "" || replication["master_replid"] == "":
		return "", errors.New("INFO doesn't name the server")
	case replication["role"] != "master":
		return "", errors.New("the server is a replica, which may not have heard of all denials")
	}
	return server["run_id"] + " " + replication["master_replid"], nil
}

// infoOf returns a section of what a server says about itself.
func infoOf(ctx context.Context, c rueidis.CoreClient, section string) (map[string]string, error) {
	info, err := c.Do(ctx, c.B().Info().Section(section).Build()).ToString()
	if err != nil {
		return nil, err
	}
	fields := make(map[string]string)
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		fields[name] = value
	}
	return fields, nil
}

// confirm asks over the ears of all realms whether they still hold the keyring, and in the same
// epoch. It returns the realms for which that is so. Those that are not settled are asked about,
// too: what the cache has learned about them counts only while news would arrive.
func (r *Redis) confirm(breaks uint64) (confirmed map[*denials]*ear, err error) {
	type question struct {
		d     *denials
		epoch string
	}
	about := make(map[*ear][]question)
	for _, d := range *r.realms.Load() {
		if e, epoch, _ := d.heardOver(breaks); e != nil {
			about[e] = append(about[e], question{d, epoch})
		}
	}
	if len(about) == 0 {
		return nil, nil
	}
	nodes := r.client.Nodes()
	ctx, cancel := context.WithTimeout(context.Background(), pingTimeout)
	defer cancel()
	var mu sync.Mutex
	var all sync.WaitGroup
	confirmed = make(map[*denials]*ear)
	for e, questions := range about {
		if nodes[e.address] == nil {
			e.hangUp()
			err = errors.Join(err, errors.New("another server has taken the place of the one that tells of denials"))
			continue
		}
		all.Go(func() {
			var commands rueidis.Commands
			for _, q := range questions {
				commands = append(commands, r.askEpoch(e.client, q.d.realm))
			}
			answers := e.client.DoMulti(ctx, commands...)
			mu.Lock()
			defer mu.Unlock()
			for i, q := range questions {
				epoch, answer := answers[i].ToString()
				switch {
				case answer != nil:
					e.hangUp()
					err = errors.Join(err, answer)
				case epoch != q.epoch:
					q.d.distrust(e)
					r.attract()
				default:
					confirmed[q.d] = e
				}
			}
		})
	}
	all.Wait()
	return confirmed, err
}

// tidy drops what is over, here and in Redis, and looks whether the realms still can be served.
func (r *Redis) tidy() {
	realms := *r.realms.Load()
	if len(realms) == 0 {
		return
	}
	r.lookForEviction()
	r.tidyDenials(realms)
	r.vouchAgain()
}

// tidyDenials drops the denials that are over.
func (r *Redis) tidyDenials(realms map[string]*denials) {
	r.loading.Lock()
	defer r.loading.Unlock()
	breaks := r.breaks.Load()
	for _, d := range realms {
		e, _, settled := d.heardOver(breaks)
		if !settled {
			continue
		}
		if over, err := r.dropDenials(d.realm, e); err == nil { // else the next time is soon enough
			d.dropOld(over)
		}
		if d.overflowed() {
			d.distrust(e) // there may be room now
		}
	}
}

// lookForEviction sees whether Redis has begun to evict, or no longer does. In either case it may
// have dropped denials that are known here.
func (r *Redis) lookForEviction() {
	was := r.evicts.Load()
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Timeout)
	defer cancel()
	_ = r.Keeps(ctx)            // what it finds is in evicts
	if r.evicts.Load() != was { // reported when the link is regained
		r.lose(errors.New("redis has begun or ceased to evict keys"))
		r.attract()
	}
}

// dropDenials drops the denials of a realm that are over by the clock of Redis and by that of this
// gateway. It returns when their tokens must have expired for that.
func (r *Redis) dropDenials(realm string, e *ear) (over time.Time, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Timeout)
	defer cancel()
	clock, err := e.client.Do(ctx, e.client.B().Time().Build()).AsIntSlice()
	if err != nil {
		return over, err
	}
	over = time.Unix(min(r.cfg.now().Unix(), clock[0]), 0).Add(-denialGrace)
	for {
		old, err := e.client.Do(ctx, e.client.B().Zrangebyscore().Key(r.denialsKey(realm)).
			Min("-inf").Max("("+strconv.FormatInt(over.UnixMilli(), 10)).Limit(0, scanSize).Build()).AsStrSlice()
		if err != nil || len(old) == 0 {
			return over, err
		}
		if err := e.client.Do(ctx, e.client.B().Zrem().Key(r.denialsKey(realm)).Member(old...).Build()).Error(); err != nil {
			return over, err
		}
	}
}

// ear is a connection over which denials are heard. It is never replaced by another connection.
type ear struct {
	r       *Redis
	address string
	client  rueidis.Client
	at      uint64 // what Redis.breaks was when it was opened
	server  string // see serverName; under Redis.loading
	open    atomic.Bool
	ended   atomic.Bool
}

// openEar opens an ear at a server, and returns when everything that happens from now on is heard.
func (r *Redis) openEar(ctx context.Context, address string, breaks uint64) (*ear, error) {
	e := &ear{r: r, address: address, at: breaks}
	o := r.options()
	o.InitAddress, o.Sentinel, o.ForceSingleClient, o.DisableRetry = []string{address}, rueidis.SentinelOption{}, true, true
	o.ClientTrackingOptions = []string{"BCAST", "PREFIX", r.cfg.Prefix + "{realm:"}
	o.OnInvalidations = e.heard
	dial, dialed := o.DialCtxFn, new(atomic.Bool)
	o.DialCtxFn = func(ctx context.Context, address string, dialer *net.Dialer, config *tls.Config) (net.Conn, error) {
		if dialed.Swap(true) {
			return nil, errors.New("the connection over which denials were heard has ended")
		}
		return dial(ctx, address, dialer, config)
	}
	var err error
	if e.client, err = rueidis.NewClient(o); err == nil {
		e.open.Store(true)
		e.server, err = serverName(ctx, e.client)
	}
	if err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

// heard is told which keys have changed or, if keys is nil, that the connection ended or that all
// data was dropped. It runs in the goroutine that reads the connection, so nothing that Redis sends
// later is seen before it returns.
func (e *ear) heard(keys []rueidis.RedisMessage) {
	r := e.r
	if keys == nil {
		if e.open.Load() && !e.ended.Swap(true) {
			r.lost()
		}
		return
	}
	for _, message := range keys {
		key, err := message.ToString()
		if err != nil {
			continue
		}
		if realm, id, expiry, ok := r.parseDeniedKey(key); ok {
			r.learn(realm, id, expiry)
		} else if strings.HasSuffix(key, "}:keys") {
			r.keysChanged()
		} else if strings.HasSuffix(key, "}:asking") {
			r.asked.Store(true)
			r.attract()
		} else if strings.HasSuffix(key, "}:server") {
			r.attract()
		}
	}
}

// keysChanged is told that some keyring has changed.
func (r *Redis) keysChanged() {
	for _, d := range *r.realms.Load() {
		d.unconfirm() // until it is known whether the epoch is another one
	}
	r.lookNow()
	r.attract()
	r.cfg.Changed()
}

// hangUp ends the connection without telling anybody.
func (e *ear) hangUp() { e.ended.Store(true) }

func (e *ear) close() {
	e.ended.Store(true)
	if e.client != nil {
		e.client.Close()
	}
}
