package oauth

import (
	"time"

	"golang.org/x/time/rate"
)

// Clients are the clients of a realm at one moment, an immutable snapshot, with what follows
// from all of them together. [Engine.SetClients] makes one.
//
// What outlives a snapshot is not in it. The limits of a client that stays are handed on by
// newClients. The Hasher owns what is remembered of secrets, by their hash, so it counts in
// every snapshot that has the hash.
type Clients struct {
	byID map[string]*registered
	// work is what a failed authentication costs in this realm, whatever made it fail.
	work workload
}

// registered is a client with how much it has done lately. The limits are safe for concurrent
// use, and the snapshots that have the client share them.
type registered struct {
	*Client
	guesses guessLimit
	fetches *rate.Limiter // by TokenLimit; nil without one
}

// newClients makes the snapshot that follows another. A client that stays keeps its limits; a
// limit that was changed begins anew.
func newClients(clients map[string]*Client, before *Clients) *Clients {
	all := &Clients{byID: make(map[string]*registered, len(clients)), work: heaviest(clients)}
	for id, client := range clients {
		next := &registered{Client: client, guesses: newGuessLimit(), fetches: client.TokenLimit.limiter()}
		if was := before.byID[id]; was != nil {
			next.guesses = was.guesses
			if was.TokenLimit == client.TokenLimit {
				next.fetches = was.fetches
			}
		}
		all.byID[id] = next
	}
	return all
}

// named returns the client of the first ID that is a client's, or nil. IDs are the readings of
// what one request sent. If both are clients', the RFC's reading counts: a client whose ID
// could be taken for another's has to encode it.
func (c *Clients) named(ids []string) *registered {
	for _, id := range ids {
		if client := c.byID[id]; client != nil {
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
	return rate.NewLimiter(rate.Limit(float64(l.Count)/l.Per.Seconds()), l.Count)
}

// guessLimit bounds how often a client may ask about tokens that turn out not to be active:
// 1000 times at once, then 100 times a second. Tokens that carry the realm's mark are
// answered all the same.
type guessLimit struct{ limiter *rate.Limiter }

func newGuessLimit() guessLimit { return guessLimit{rate.NewLimiter(100, 1000)} }

func (g guessLimit) mayAsk(now time.Time) bool { return g.limiter.TokensAt(now) >= 1 }
func (g guessLimit) wrong(now time.Time)       { g.limiter.AllowN(now, 1) }
