package oauth

import (
	"container/list"
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// maxFailing bounds the client IDs, each from one network, whose failures are remembered. They take
	// half a KiB each. If there are more, the network that has not failed for the longest
	// time is forgotten. Whoever wants his own failures forgotten needs that many others, and could
	// have guessed with each of them.
	maxFailing = 65_536
	// maxFailingHere bounds those from one network in one realm. All other client IDs from there share
	// a count, so nobody gains by naming many clients.
	maxFailingHere = 64
	// maxPause bounds how long an attempt has to wait after another failure, unless the limit's own
	// rate is slower.
	maxPause = 5 * time.Minute
)

// Failures counts failed authentications, by realm, by the network that they come from, and by the
// client ID that was claimed, as a realm's limit says. When the failures of a client from a network
// have used up the limit, everything that network sends in the client's name is refused without a
// look at it, for as long as the limit takes to allow another failure. Each failure after that
// doubles the time, up to maxPause. Once a client has been left alone for as long as the limit's
// period after a pause, or after its last failure, it begins anew.
//
// What succeeds changes nothing: a guesser may share an address with the client. What comes from
// other networks is not affected, so nobody can lock out a client there. Client IDs that nobody has
// count like others, so a pause tells nothing about who is registered.
//
// A Failures is bounded by maxFailing, is safe for concurrent use, needs no end, and never blocks.
type Failures struct {
	most int // maxFailing, but for tests

	mu       sync.Mutex
	networks map[failingAt]*list.Element
	order    *list.List // of *failingNetwork; the one that failed last is last
	held     int        // of failing, in all networks
}

// NewFailures makes a Failures in which nobody has failed.
func NewFailures() *Failures {
	return &Failures{most: maxFailing, networks: make(map[failingAt]*list.Element), order: list.New()}
}

// failingAt is where failures count together, whoever is claimed.
type failingAt struct {
	realm   string
	network netip.Addr // zero if unknown, as with a unix socket
}

type failingNetwork struct {
	failingAt
	clients []*failing // at most maxFailingHere
	others  *failing   // for client IDs for which there was no room; nil if there was
}

// failing are the failures in the name of one client from one network.
type failing struct {
	client [16]byte      // the client ID claimed; see failingID
	bucket *rate.Limiter // of failures that are allowed without a pause
	pauses int           // how many have begun
	until  time.Time     // when the last pause ends
	last   time.Time     // when it failed last
	// waiting are the attempts that wait for something slow, which end when a pause begins.
	waiting map[*context.CancelFunc]struct{}
}

// trial is one authentication, as Failures sees it. The zero trial is without a limit.
type trial struct {
	failures *Failures
	limit    Limit
	at       failingAt
	creds    Credentials
}

// trial returns the trial that a request's authentication is.
func (e *Engine) trial(req Request) trial {
	if e.cfg.Failures == nil || e.cfg.FailureLimit.Count == 0 {
		return trial{}
	}
	return trial{e.cfg.Failures, e.cfg.FailureLimit, failingAt{e.cfg.Realm, failureNetwork(req.From)}, req.Credentials}
}

// failureNetwork returns the network that an address counts as: itself, or for IPv6 its /64, in
// which a machine can take any address.
func failureNetwork(addr netip.Addr) netip.Addr {
	if !addr.Is6() {
		return addr
	}
	network, err := addr.WithZone("").Prefix(64)
	if err != nil {
		return addr
	}
	return network.Addr()
}

// failingID is what stands for a client ID, which may be anything that fits into a request, even a
// mistyped secret.
func failingID(id string) (short [16]byte) {
	mac := processMAC(nil, id)
	copy(short[:], mac[:])
	return short
}

// clients returns what stands for the client IDs that are claimed, or for nobody if none could be read.
// All readings count, so that the same client can't be named in another spelling. A platform's token
// that names no client is somebody by its issuer and its subject: the other workloads of the platform
// have done nothing.
func (t trial) clients() [][16]byte {
	ids := t.creds.ClientIDs
	if t.creds.assertion != "" && !t.creds.named && t.creds.subject != t.creds.issuer {
		ids = []string{t.creds.issuer + "\x00" + t.creds.subject}
	}
	if len(ids) == 0 {
		return [][16]byte{{}}
	}
	all := make([][16]byte, len(ids))
	for i, id := range ids {
		all[i] = failingID(id)
	}
	return all
}

// pause returns how long attempts like this one are refused. It is zero if there is no pause.
func (t trial) pause(now time.Time) time.Duration {
	if t.failures == nil {
		return 0
	}
	f := t.failures
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.networks[t.at] == nil { // as for nearly everybody
		return 0
	}
	return f.pause(t, t.clients(), now)
}

func (f *Failures) pause(t trial, clients [][16]byte, now time.Time) (wait time.Duration) {
	element := f.networks[t.at]
	if element == nil {
		return 0
	}
	for _, client := range clients {
		if counted := element.Value.(*failingNetwork).of(client); counted != nil && counted.countsBy(t.limit) {
			wait = max(wait, counted.until.Sub(now))
		}
	}
	return wait
}

// failed notes that the attempt has failed, and returns how long attempts like it are refused from
// now on, or zero. If a pause has begun since it was let in, it is not noted, and must be answered
// like those that come during the pause: wait is how long that still lasts.
func (t trial) failed(now time.Time) (begun, wait time.Duration) {
	if t.failures == nil {
		return 0, 0
	}
	f, clients := t.failures, t.clients()
	f.mu.Lock()
	defer f.mu.Unlock()
	if wait := f.pause(t, clients, now); wait > 0 {
		return 0, wait
	}
	for _, client := range clients {
		begun = max(begun, f.counted(t, client, now).fail(t.limit, now))
	}
	return begun, 0
}

// watch returns a context that ends, too, when a pause for such attempts begins. It is for what
// takes long: what others have begun meanwhile must not go on to tell them more than the limit
// allows. The caller calls stop.
func (t trial) watch(ctx context.Context, now time.Time) (_ context.Context, stop func()) {
	if t.failures == nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	f, clients := t.failures, t.clients()
	f.mu.Lock()
	defer f.mu.Unlock()
	var watched []*failing
	for _, client := range clients {
		counted := f.counted(t, client, now)
		if counted.until.After(now) {
			cancel()
		}
		if counted.waiting == nil {
			counted.waiting = make(map[*context.CancelFunc]struct{})
		}
		counted.waiting[&cancel] = struct{}{}
		watched = append(watched, counted)
	}
	return ctx, func() {
		cancel()
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, counted := range watched {
			delete(counted.waiting, &cancel)
		}
	}
}

// of returns what counts for a client ID, or nil if nothing does yet.
func (n *failingNetwork) of(client [16]byte) *failing {
	for _, counted := range n.clients {
		if counted.client == client {
			return counted
		}
	}
	if len(n.clients) >= maxFailingHere {
		return n.others
	}
	return nil
}

// counted returns what counts for a client ID of the trial's, which it begins if necessary.
func (f *Failures) counted(t trial, client [16]byte, now time.Time) *failing {
	element := f.networks[t.at]
	if element == nil {
		element = f.order.PushBack(&failingNetwork{failingAt: t.at})
		f.networks[t.at] = element
	}
	f.order.MoveToBack(element)
	n := element.Value.(*failingNetwork)
	counted := n.of(client)
	if counted == nil || counted == n.others {
		if len(n.clients) >= maxFailingHere {
			f.held -= len(n.clients)
			n.clients = slices.DeleteFunc(n.clients, func(c *failing) bool { return c.forgiven(t.limit, now) })
			f.held += len(n.clients)
		}
		switch {
		case len(n.clients) < maxFailingHere:
			counted = &failing{client: client}
			n.clients = append(n.clients, counted)
			f.held++
		case n.others == nil:
			counted = new(failing)
			n.others = counted
			f.held++
		}
		f.makeRoom()
	}
	if !counted.countsBy(t.limit) || counted.forgiven(t.limit, now) {
		*counted = failing{client: counted.client, bucket: t.limit.limiter(), last: now, waiting: counted.waiting}
	}
	return counted
}

// makeRoom forgets the networks that have not failed for the longest time, while there are too many.
// The last one is much smaller than that.
func (f *Failures) makeRoom() {
	for f.held > f.most {
		oldest := f.order.Front()
		n := f.order.Remove(oldest).(*failingNetwork)
		delete(f.networks, n.failingAt)
		f.held -= len(n.clients)
		if n.others != nil {
			f.held--
		}
	}
}

// countsBy reports whether it has counted by that limit, and not by one from before a reload.
func (c *failing) countsBy(limit Limit) bool {
	return c.bucket != nil && c.bucket.Burst() == limit.Count && c.bucket.Limit() == limit.rate()
}

// forgiven reports whether it may begin anew.
func (c *failing) forgiven(limit Limit, now time.Time) bool {
	begin := c.last
	if c.until.After(begin) {
		begin = c.until
	}
	return len(c.waiting) == 0 && now.Sub(begin) >= limit.Per
}

// fail notes a failure, and returns how long the pause is that begins with it, or zero.
func (c *failing) fail(limit Limit, now time.Time) time.Duration {
	c.last = now
	if c.pauses == 0 {
		c.bucket.AllowN(now, 1)
		if c.bucket.TokensAt(now) >= 1 {
			return 0
		}
	}
	least := max(limit.Per/time.Duration(limit.Count), time.Second)
	pause := max(least, min(least<<min(c.pauses, 9), maxPause)) // 9 are enough for a second
	c.pauses++
	c.until = now.Add(pause)
	for cancel := range c.waiting {
		(*cancel)()
	}
	return pause
}
