package oauth

import (
	"time"

	"golang.org/x/time/rate"
)

// Clients is an immutable snapshot of a realm's clients, with what depends on all of them
// together. [Engine.SetClients] makes one.
//
// State that outlives a snapshot has another owner. How much a client has done belongs to the
// limiters in registered, which newClients hands on while the client stays. What is remembered
// of secrets belongs to the Hasher, by their hash, so it counts in every snapshot that has the
// hash.
type Clients struct {
	byID map[string]*registered
	costs
	// federations are by issuer, or by SPIFFE trust domain.
	federations map[string]*federation
	// managed are the managed clients. All snapshots share them.
	managed *managed
}

// registered is a client with its limiters. They are safe for concurrent use, and successive
// snapshots share them.
type registered struct {
	*Client
	guesses guessLimit
	fetches *rate.Limiter // by TokenLimit; nil without one
	asks    *rate.Limiter // by InquiryLimit; nil without one
	marks   *marks

	// managed is set for a managed client, and the others are its own then.
	managed             bool
	version, generation uint64
	created             time.Time
}

// newClients makes the snapshot that follows another. A client that stays, by its ID, keeps its
// limiters; a limit that was changed begins anew.
func newClients(clients map[string]*Client, before *Clients) *Clients {
	all := &Clients{byID: make(map[string]*registered, len(clients)), costs: costsOf(clients), managed: before.managed}
	if all.managed == nil {
		all.managed = new(managed)
	}
	all.costs = all.with(all.managed.hidden)
	for id, client := range clients {
		all.byID[id] = newRegistered(client, before.byID[id])
	}
	all.federate()
	return all
}

// newRegistered returns a client with its limiters: those from before, if it stays.
func newRegistered(client *Client, was *registered) *registered {
	next := &registered{Client: client, guesses: newGuessLimit(), fetches: client.TokenLimit.limiter(), asks: client.InquiryLimit.limiter(), marks: new(marks)}
	if was != nil {
		next.guesses, next.marks = was.guesses, was.marks
		if was.TokenLimit == client.TokenLimit {
			next.fetches = was.fetches
		}
		if was.InquiryLimit == client.InquiryLimit {
			next.asks = was.asks
		}
	}
	return next
}

// find returns the client of that ID, or nil. One of the configuration counts before a managed one.
func (c *Clients) find(id string) *registered {
	if client := c.byID[id]; client != nil {
		return client
	}
	return c.managed.find(id)
}

// named returns the client that ids name, or nil. The IDs are the readings of what one request
// sent, the RFC's first. If each names a client, the first counts: a client whose ID could be
// taken for another's has to encode it.
func (c *Clients) named(ids []string) *registered {
	for _, id := range ids {
		if client := c.find(id); client != nil {
			return client
		}
	}
	return nil
}

// Limit is how much a client may do: Count at once, and as much again in each Per, evenly.
// The zero Limit is no limit.
type Limit struct {
	Count int
	Per   time.Duration
}

// limiter returns nil if there is no limit.
func (l Limit) limiter() *rate.Limiter {
	if l.Count == 0 {
		return nil
	}
	return rate.NewLimiter(l.rate(), l.Count)
}

func (l Limit) rate() rate.Limit { return rate.Limit(float64(l.Count) / l.Per.Seconds()) }

// use takes one of what the limiter allows. If there is none left, it returns how long until there
// is. Nil allows all.
func use(limiter *rate.Limiter, now time.Time) (wait time.Duration) {
	if limiter == nil || limiter.AllowN(now, 1) {
		return 0
	}
	missing := 1 - limiter.TokensAt(now)
	return max(time.Duration(missing/float64(limiter.Limit())*float64(time.Second)), 1)
}

// guessLimit bounds how often a client may ask about tokens that turn out not to be active:
// 1000 times at once, then 100 times a second. Tokens that carry the realm's mark are
// answered all the same.
type guessLimit struct{ limiter *rate.Limiter }

func newGuessLimit() guessLimit { return guessLimit{rate.NewLimiter(100, 1000)} }

func (g guessLimit) mayAsk(now time.Time) bool { return g.limiter.TokensAt(now) >= 1 }
func (g guessLimit) wrong(now time.Time)       { g.limiter.AllowN(now, 1) }
