package oauth

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// hashWait is how long a request waits for its turn at a slow hash.
	hashWait = 2 * time.Second
	// hashQueue bounds the requests that wait for a hash, and hashShare those from one address, of
	// which one client has half: the address may be a balancer's.
	hashQueue = 2048
	hashShare = hashQueue / 4

	// rememberFor is how long a success of a slow hash is remembered after its last use. Reloads
	// don't matter: it counts for one hash, and is of no use to a configuration without it.
	rememberFor = 5 * time.Minute
	// maxRemembered bounds the successes remembered, of 56 bytes each. Only right secrets are
	// among them, one for each hash.
	maxRemembered = 16_384
)

// Hasher computes the slow hashes of a process: a few at once, the same only once for all
// who ask for it at a time, and it remembers what was right. Those who wait are
// served in a fair order, so that one who guesses does not shut out the others: addresses
// take turns, and so do the client IDs claimed from one address, which may be that of a
// balancer with all clients behind it. A computation runs in a goroutine that ends with it.
// A Hasher is safe for concurrent use.
type Hasher struct {
	slots, queue, share int

	mu      sync.Mutex
	flights map[flightKey]*flight // those that wait or run
	line    []*flight             // those that wait, the oldest first; at most queue
	running int                   // at most slots
	waiting int                   // requests, at most queue
	rows    map[string]*row       // by address; those with requests that wait
	turn    uint64                // of the flight that left the line last

	remembered map[[sha256.Size]byte]time.Time // until when, by processMAC
	swept      time.Time                       // when what was over was last dropped

	hashes atomic.Int64
}

// Hashes is how many slow hashes have been computed, for tests of equal work.
func (h *Hasher) Hashes() int64 { return h.hashes.Load() }

// NewHasher makes a Hasher for this machine: a slot for each processor but one, which
// stays free for clients whose secrets are quick to check.
func NewHasher() *Hasher {
	return &Hasher{
		slots: max(1, runtime.GOMAXPROCS(0)-1), queue: hashQueue, share: hashShare,
		flights: make(map[flightKey]*flight), rows: make(map[string]*row), remembered: make(map[[sha256.Size]byte]time.Time),
	}
}

// attempt is the work of an authentication that is not settled quickly.
type attempt struct {
	work     workload // what failing costs for each reading
	readings []reading
	now      time.Time
}

// reading is one meaning of what was sent as the secret, and what it may match.
type reading struct {
	secret     string
	candidates []*Secret
}

// flight is one computation, for all requests that want it.
type flight struct {
	flightKey
	attempt  attempt
	requests int // without any it leaves the line

	// Where it waits.
	from         string            // the address that it began with
	client       [sha256.Size]byte // the client ID that is claimed
	turn, within uint64            // among addresses, and among the clients of its row

	started, done chan struct{}
	// Set before done is closed.
	right *Secret // what matched
	err   error   // nobody can tell
}

// flightKey names a computation by what was sent, and by the clients that it was sent to: a
// secret that other clients had, or had before a change, is none of these. Nothing in it
// depends on whether what was sent is right, or on who is registered: if only failures of known
// clients shared a computation, two requests at once would tell them from others.
type flightKey struct {
	clients *Clients
	sent    [sha256.Size]byte // Credentials.mac
}

// row is what waits from one address.
type row struct {
	requests int                       // at most Hasher.share
	clients  map[[sha256.Size]byte]int // requests for each client ID that is claimed; no entry is zero
	turn     uint64                    // of the client that left it last
}

// errHashesBusy tells the client to come back; it says nothing of its credentials.
var errHashesBusy = &Error{Code: CodeUnavailable, Description: "too many authentications under way", Reason: "busy"}

// check returns the Secret that matches, or nil if none does. from and client are whose turn
// it takes.
func (h *Hasher) check(ctx context.Context, key flightKey, a attempt, from, client string) (*Secret, error) {
	f, leave := h.join(key, a, from, client)
	if f == nil {
		return nil, errHashesBusy
	}
	defer leave()
	turn := time.NewTimer(hashWait)
	defer turn.Stop()
	select {
	case <-f.started:
	case <-turn.C:
		return nil, errHashesBusy
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case <-f.done:
		return f.right, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// join returns the flight of that key, which it may have to begin, and a function that
// leaves it. It returns nil if there is no room to wait.
func (h *Hasher) join(key flightKey, a attempt, from, client string) (f *flight, leave func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	claimed := sha256.Sum256([]byte(client))
	r := h.rows[from]
	if h.waiting >= h.queue || r != nil && (r.requests >= h.share || r.clients[claimed] >= h.share/2) {
		return nil, nil
	}
	if r == nil {
		r = &row{clients: make(map[[sha256.Size]byte]int)}
		h.rows[from] = r
	}
	f = h.flights[key]
	if f == nil {
		f = &flight{flightKey: key, attempt: a, from: from, client: claimed, started: make(chan struct{}), done: make(chan struct{})}
		h.flights[key] = f
		h.enqueue(f)
	}
	h.waiting++
	r.requests++
	r.clients[claimed]++
	f.requests++
	h.dispatch()
	return f, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.waiting--
		if r.requests--; r.requests == 0 {
			delete(h.rows, from)
		}
		if r.clients[claimed]--; r.clients[claimed] == 0 {
			delete(r.clients, claimed)
		}
		f.requests--
		if i := slices.Index(h.line, f); i >= 0 && f.requests == 0 {
			h.line = slices.Delete(h.line, i, i+1)
			delete(h.flights, f.flightKey)
		}
	}
}

// enqueue puts a flight into the line. Its turn is the one after that of its address's
// last flight; an address without any is treated as if it had just had one, so that
// newcomers don't overtake for ever. Likewise for the client among those of its address.
func (h *Hasher) enqueue(f *flight) {
	// By the address, not by its row, which ends with its requests though others may want
	// its flights: an address could begin anew as often as it likes.
	f.turn, f.within = h.turn, h.rows[f.from].turn
	for _, other := range h.line {
		if other.from != f.from {
			continue
		}
		f.turn = max(f.turn, other.turn)
		if other.client == f.client {
			f.within = max(f.within, other.within)
		}
	}
	f.turn++
	f.within++
	h.line = append(h.line, f)
}

// dispatch lets flights go while there are slots. A computation takes so long that looking
// through the whole line before each costs nothing.
func (h *Hasher) dispatch() {
	for h.running < h.slots && len(h.line) > 0 {
		next := slices.MinFunc(h.line, func(a, b *flight) int { return cmp.Compare(a.turn, b.turn) })
		for _, f := range h.line {
			if f.from == next.from && f.within < next.within {
				f.turn, next.turn = next.turn, f.turn
				next = f
			}
		}
		h.turn = next.turn
		if r := h.rows[next.from]; r != nil {
			r.turn = next.within
		}
		h.line = slices.DeleteFunc(h.line, func(f *flight) bool { return f == next })
		h.running++
		close(next.started)
		go h.run(next)
	}
}

// run computes a flight and lets the next one go. A panic is the end of the flight, as it
// would be of the request if that computed the hash itself, and not of the process.
func (h *Hasher) run(f *flight) {
	defer func() {
		if r := recover(); r != nil {
			f.right, f.err = nil, fmt.Errorf("checking a secret: panic: %v", r)
		}
		h.mu.Lock()
		h.running--
		delete(h.flights, f.flightKey)
		h.dispatch()
		h.mu.Unlock()
		close(f.done)
	}()
	f.right = h.compute(f.attempt)
}

// compute does the work of an attempt: for each reading the hashes of its candidates and,
// unless one of them is right, dummies for the rest.
func (h *Hasher) compute(a attempt) *Secret {
	for _, r := range a.readings {
		done := workload{}
		for _, c := range r.candidates {
			if !c.slow() || !c.validAt(a.now) {
				continue
			}
			done[c.cost]++
			h.hashes.Add(1)
			if c.hash(r.secret) {
				h.remember(c, r.secret, a.now)
				return c
			}
		}
		for cost, n := range a.work {
			for range n - done[cost] {
				h.hashes.Add(1)
				dummy(cost).hash(r.secret)
			}
		}
	}
	return nil
}

// remember notes that secret is right for c.
func (h *Hasher) remember(c *Secret, secret string, now time.Time) {
	key := processMAC(c.digest, secret)
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.remembered) >= maxRemembered || now.Sub(h.swept) > rememberFor {
		maps.DeleteFunc(h.remembered, func(_ [sha256.Size]byte, until time.Time) bool { return !now.Before(until) })
		h.swept = now
	}
	if len(h.remembered) < maxRemembered {
		h.remembered[key] = now.Add(rememberFor)
	}
}

// remembers reports whether secret was proved right for c a while ago, and if so keeps that
// for another while: a client that is busy pays for the hash once.
func (h *Hasher) remembers(c *Secret, secret string, now time.Time) bool {
	if !c.slow() {
		return false
	}
	key := processMAC(c.digest, secret)
	h.mu.Lock()
	defer h.mu.Unlock()
	until, ok := h.remembered[key]
	if !ok || !now.Before(until) {
		return false
	}
	h.remembered[key] = now.Add(rememberFor)
	return true
}
