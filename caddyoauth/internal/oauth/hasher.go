package oauth

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// hashWait is how long a request waits for its turn at a slow hash.
	hashWait = 2 * time.Second
	// hashQueue bounds the requests that wait for a hash, and hashShare those from one address.
	// One client ID has half of that share, because the address may be a load balancer's.
	hashQueue = 2048
	hashShare = hashQueue / 4

	// rememberFor is how long the success of a slow hash is remembered after its last use. Reloads
	// don't end it: it counts for one hash, and is of no use to a configuration without it.
	rememberFor = 5 * time.Minute
	// maxRemembered bounds the successes remembered, of 56 bytes each. Only right secrets are
	// among them, one for each hash.
	maxRemembered = 16_384
)

// Hasher computes the slow hashes of a process: a few at a time, the same one only once for
// everybody who asks for it meanwhile. It remembers which secrets were right. Requests that
// wait are served in a fair order, so that a caller who guesses does not shut out the others:
// addresses take turns, and so do the client IDs claimed from one address, which may be that of
// a load balancer with all clients behind it. A computation runs in a goroutine that ends with
// it. A Hasher is safe for concurrent use and needs no end.
type Hasher struct {
	slots, queue, share int

	mu      sync.Mutex
	flights map[flightKey]*flight // those that wait or run
	line    []*flight             // those that wait, oldest first; at most queue
	running int                   // at most slots
	waiting int                   // requests, at most queue
	rows    map[string]*row       // by address; those with requests that wait
	turn    uint64                // of the last flight that left the line

	remembered map[[sha256.Size]byte]time.Time // until when, by processMAC
	swept      time.Time                       // when expired entries were last dropped

	hashes atomic.Int64
}

// Hashes returns how many slow hashes have been computed, for tests of equal work.
func (h *Hasher) Hashes() int64 { return h.hashes.Load() }

// NewHasher makes a Hasher for this machine, with a slot for every processor but one: that one
// stays free for clients whose secrets are quick to check.
func NewHasher() *Hasher {
	return &Hasher{
		slots: max(1, runtime.GOMAXPROCS(0)-1), queue: hashQueue, share: hashShare,
		flights: make(map[flightKey]*flight), rows: make(map[string]*row), remembered: make(map[[sha256.Size]byte]time.Time),
	}
}

// hashNetwork names a caller in the queue: its address, or for IPv6 its /48. A site gets that many
// addresses for the asking (RFC 6177), and a home gets a /56. A client with a neighbor in its /48 who
// guesses shares a turn with that neighbor; with smaller networks, all the world would.
func hashNetwork(addr netip.Addr) string {
	switch {
	case !addr.IsValid():
		return ""
	case addr.Is6():
		if network, err := addr.WithZone("").Prefix(48); err == nil {
			return network.String()
		}
	}
	return addr.String()
}

// attempt is the work of an authentication that could not be settled quickly.
type attempt struct {
	work     workload // what failure costs for each reading
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
	requests int // without any, it leaves the line

	// Where it waits.
	from         string            // the address that began it
	client       [sha256.Size]byte // the client ID claimed
	turn, within uint64            // among addresses, and among the clients of its row

	started, done chan struct{}
	// Set before done is closed.
	right *Secret // what matched
	err   error   // why nobody can tell
}

// flightKey names a computation by what was sent, and by the clients among whom it was claimed
// to be right: another realm's clients, or those from before a change, have other secrets.
// Nothing in the key depends on whether what was sent is right, or on who is registered: if
// only the failures of known clients shared a computation, two requests at once would tell
// known clients from others.
type flightKey struct {
	clients *Clients
	sent    [sha256.Size]byte // Credentials.mac
	instead bool              // as claim.instead
}

// row counts what waits from one address.
type row struct {
	requests int                       // at most Hasher.share
	clients  map[[sha256.Size]byte]int // requests for each client ID claimed; no entry is zero
	turn     uint64                    // of the last client that left it
}

// errHashesBusy tells the client to come back. It says nothing about its credentials.
var errHashesBusy = &Error{Code: CodeUnavailable, Description: "too many authentications under way", Reason: "busy"}

// check returns the Secret that matches, valid or not, or nil if none does. It takes a turn of the address
// from and of the client ID claimed. It blocks for up to hashWait for that turn, and then until
// the computation is done or ctx ends.
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

// join returns the flight of that key, which it begins if necessary, and a function that leaves
// it. It returns nil if there is no room to wait.
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

// enqueue puts a flight into the line. Its turn is the one after that of its address's last
// flight. An address without any is treated as if it had just had one, so that newcomers can't
// overtake others forever. The same goes for the client among those of its address.
func (h *Hasher) enqueue(f *flight) {
	// Go by the address, not by its row: a row ends with its requests, though others may want
	// its flights, so an address could begin anew as often as it likes.
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

// dispatch starts flights while there are slots. A computation takes so long that going through
// the whole line before each one costs nothing.
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

// run computes a flight, then lets the next one go. A panic ends the flight and not the process,
// just as it would end only the request if the request computed the hash itself.
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

// compute does the work of an attempt: for each reading, the hashes of its candidates, and
// dummies for the rest of the workload, unless one of the candidates is right and valid. Those that
// are not valid now come last. If only one of them is right, it is returned after all the work.
func (h *Hasher) compute(a attempt) (invalid *Secret) {
	for _, r := range a.readings {
		done := workload{}
		for _, valid := range []bool{true, false} {
			for _, c := range r.candidates {
				if !c.slow() || c.validAt(a.now) != valid {
					continue
				}
				// Whoever asks for a computation may have looked for its success a moment before it was
				// remembered, and come when the one that found it was over.
				if valid && h.remembers(c, r.secret, a.now) {
					return c
				}
				done[c.cost]++
				h.hashes.Add(1)
				switch matches := c.hash(r.secret); {
				case matches && valid:
					h.remember(c, r.secret, a.now)
					return c
				case matches:
					invalid = c
				}
			}
		}
		for cost, n := range a.work {
			for range n - done[cost] {
				h.hashes.Add(1)
				dummy(cost).hash(r.secret)
			}
		}
	}
	return invalid
}

// remember records that secret is right for c.
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

// remembers reports whether secret was proved right for c less than rememberFor ago, and if so
// remembers it for as long again: a busy client pays for the hash once.
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
