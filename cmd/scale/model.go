package main

import (
	"cmp"
	"container/heap"
	"container/list"
	"math"
	"math/rand/v2" //nolint:depguard // nothing secret; a simulation must be repeatable
	"slices"
	"time"
)

// costs are what one thing costs, as it was measured. Times are µs of CPU, sizes are bytes.
type costs struct {
	Machine string `json:"machine"` // what they were measured on

	Gateway struct {
		Cores       int     `json:"cores"`        // of one gateway's machine
		Pass        float64 `json:"pass"`         // a request with a cached token, with all that Caddy does to proxy it
		FirstUse    float64 `json:"first_use"`    // one whose token is asked of bbolt
		FirstRedis  float64 `json:"first_redis"`  // one whose token is asked of Redis
		Issue       float64 `json:"issue"`        // a token, into bbolt
		IssueRedis  float64 `json:"issue_redis"`  // a token, into Redis
		Revoke      float64 `json:"revoke"`       // a token, in bbolt
		RevokeRedis float64 `json:"revoke_redis"` // a token, in Redis
		Hear        float64 `json:"hear"`         // a message from Redis about a token that has changed or expired
		Memory      float64 `json:"memory"`       // at rest
		CachedToken float64 `json:"cached_token"` // in memory
		FileToken   float64 `json:"file_token"`   // in the bbolt file
	} `json:"gateway"`

	Redis struct {
		Version string  `json:"version"`
		Set     float64 `json:"set"`    // to write a record
		Get     float64 `json:"get"`    // to read one, and to note who did
		Delete  float64 `json:"delete"` // to delete one; also when it expires
		Tell    float64 `json:"tell"`   // to tell one gateway of it
		Record  float64 `json:"record"` // memory of a record
		// Redis notes who has read a record. Tracked is the memory of the first, and Reader that of each
		// one more.
		Tracked float64 `json:"tracked"`
		Reader  float64 `json:"reader"`
	} `json:"redis"`
}

// workload is what a number of gateways have to do together.
type workload struct {
	Gateways int
	// Nodes are those of the Redis Cluster, or 1. With none, the only gateway has a bbolt file.
	Nodes int
	// Rate is how many requests a second come with tokens, and Tokens is how many tokens are live and in
	// use. Some are used more often than others: the rates of single tokens have a log-normal
	// distribution with this Spread.
	Rate, Tokens, Spread float64
	// Seen is at how many gateways a token is used: all of them, unless the balancer in front sends
	// what belongs together to the same ones.
	Seen int
	// Revoked tokens a second, beside those that expire.
	Revoked float64

	Lifetime, MaxAge time.Duration
	MaxTokens        float64 // of a gateway's cache
}

// hits is how one gateway fares with its cache.
type hits struct {
	Rate   float64 // requests a second
	Misses float64 // of these, how many ask the store
	Read   float64 // of the live tokens that may come here, the share that has come since it was issued
	End    float64 // the same of those that expire now
}

// The size of a simulation. It looks at a sample of the tokens, with a cache that is smaller by as much.
const (
	mostEvents = 150_000
	mostTokens = 10_000
	leastToken = 200
	ages       = 10 // how many times max_age it lasts
	seed       = 1
)

// simulate lets requests come to one of the gateways, at random times, and counts those that find their
// token in its cache. It has the same result each time.
func simulate(w workload) hits {
	// The gateways are alike. Each token is used at Seen of them, so one gateway sees that share.
	seen := cmp.Or(w.Seen, w.Gateways)
	tokens := w.Tokens * float64(seen) / float64(w.Gateways)
	mean := w.Rate / w.Tokens / float64(seen) // of one token at one gateway
	maxAge, lifetime := w.MaxAge.Seconds(), w.Lifetime.Seconds()
	end := ages * maxAge
	n := min(tokens, mostTokens, max(leastToken, mostEvents/(mean*end)))
	n = max(1, math.Floor(n))
	random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // as above
	s := simulation{lru: list.New(), most: max(1, int(w.MaxTokens*n/tokens))}
	var h hits
	for range int(n) {
		t := &token{rate: mean * math.Exp(w.Spread*random.NormFloat64()-w.Spread*w.Spread/2), lifetime: lifetime}
		t.expires = random.Float64() * lifetime
		t.next = random.ExpFloat64() / t.rate
		s.queue = append(s.queue, t)
		// The share of its life in which it has been read, and whether it has been in the end.
		x := t.rate * lifetime
		h.Read += (1 - (1-math.Exp(-x))/x) / n
		h.End += (1 - math.Exp(-x)) / n
	}
	heap.Init(&s.queue)
	asked, all := 0.0, 0.0
	for {
		t := s.queue[0]
		now := t.next
		if now > end {
			break
		}
		hit := s.use(t, now, maxAge)
		if now > 2*maxAge { // until then the cache is filling
			all++
			if !hit {
				asked++
			}
		}
		t.next = now + random.ExpFloat64()/t.rate
		heap.Fix(&s.queue, 0)
	}
	h.Rate = w.Rate / float64(w.Gateways)
	if all > 0 {
		h.Misses = h.Rate * asked / all
	}
	return h
}

// token is one in a simulation. Times are seconds.
type token struct {
	rate     float64
	next     float64 // when it is used next
	expires  float64
	lifetime float64
	read     float64       // when the store was asked last
	place    *list.Element // in the cache, or nil
}

type simulation struct {
	queue tokensByNext
	// lru are the tokens in the cache, the one used last in front, and at most so many.
	lru  *list.List
	most int
}

// use reports whether a token is in the cache, and has it there afterwards.
func (s *simulation) use(t *token, now, maxAge float64) (hit bool) {
	for now >= t.expires { // its owner has another one by now
		t.expires += t.lifetime
		s.drop(t)
	}
	if t.place != nil && now-t.read < maxAge {
		s.lru.MoveToFront(t.place)
		return true
	}
	s.drop(t)
	t.read, t.place = now, s.lru.PushFront(t)
	if s.lru.Len() > s.most {
		s.drop(s.lru.Back().Value.(*token))
	}
	return false
}

func (s *simulation) drop(t *token) {
	if t.place != nil {
		s.lru.Remove(t.place)
		t.place = nil
	}
}

// tokensByNext is a heap of tokens.
type tokensByNext []*token

func (q tokensByNext) Len() int           { return len(q) }
func (q tokensByNext) Less(i, j int) bool { return q[i].next < q[j].next }
func (q tokensByNext) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *tokensByNext) Push(x any)        { *q = append(*q, x.(*token)) }
func (q *tokensByNext) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

// demand is what a workload takes.
type demand struct {
	workload
	Hits float64 // the share of requests whose token was cached

	GatewayCPU    float64 // the share of a gateway's processors
	GatewayMemory float64 // bytes
	File          float64 // bytes of the bbolt file

	RedisCPU    float64 // the share of one processor, which is all that a node uses for commands
	RedisMemory float64 // bytes, of one node
	TrackedKeys float64 // of one node
	Connections float64 // to one node
	Told        float64 // messages a second, of all nodes to all gateways
	ToldRevoked float64 // messages for one revocation
}

// demandOf works out what a workload takes.
func demandOf(w workload, c costs) demand {
	return w.demand(simulate(w), c)
}

// demand works out what a workload takes if the caches fare like this.
func (w workload) demand(h hits, c costs) demand {
	d := demand{workload: w, Hits: 1}
	if h.Rate > 0 {
		d.Hits = 1 - h.Misses/h.Rate
	}
	n, seen := float64(w.Gateways), float64(cmp.Or(w.Seen, w.Gateways))
	expired := w.Tokens / w.Lifetime.Seconds()
	issued := expired + w.Revoked // who has lost a token gets another
	first, issue, revoke := c.Gateway.FirstUse, c.Gateway.Issue, c.Gateway.Revoke
	if w.Nodes > 0 {
		first, issue, revoke = c.Gateway.FirstRedis, c.Gateway.IssueRedis, c.Gateway.RevokeRedis
		d.ToldRevoked = seen * h.Read
		d.Told = expired*seen*h.End + w.Revoked*d.ToldRevoked
		gets := n*h.Misses + w.Revoked // whose token it is that is to be revoked
		nodes := float64(w.Nodes)
		deletes := issued + w.Revoked // a revocation asks twice
		d.RedisCPU = (issued*c.Redis.Set + deletes*c.Redis.Delete + gets*c.Redis.Get + d.Told*c.Redis.Tell) / 1e6 / nodes
		readers := w.Tokens * seen * h.Read
		tracked := min(w.Tokens, readers)
		d.TrackedKeys = tracked / nodes
		d.RedisMemory = (w.Tokens*c.Redis.Record + tracked*c.Redis.Tracked + (readers-tracked)*c.Redis.Reader) / nodes
		d.Connections = 2 * n // one for records, and one for what is revoked of self-contained tokens
	} else {
		d.File = w.Tokens * c.Gateway.FileToken
	}
	d.GatewayCPU = (h.Rate*c.Gateway.Pass + h.Misses*(first-c.Gateway.Pass) + issued/n*issue + w.Revoked/n*revoke + d.Told/n*c.Gateway.Hear) / 1e6 / float64(c.Gateway.Cores)
	d.GatewayMemory = c.Gateway.Memory + min(w.Tokens*seen/n*h.Read, w.MaxTokens)*c.Gateway.CachedToken
	return d
}

// The bounds within which everything should stay. What is busier than that answers late when it gets
// busier still.
const (
	mostBusy        = 0.7
	mostRedisMemory = 8 << 30
	mostConnections = 10_000    // maxclients of Redis, unless set
	mostTrackedKeys = 1_000_000 // tracking-table-max-keys of Redis, unless set
)

// A bound is how much of what there is a workload takes, and what to do about it.
type bound struct {
	Name   string
	Share  float64
	Advice string
}

// bounds returns the bounds, the one met first in front.
func (d demand) bounds() []bound {
	all := []bound{
		{"the gateways' processors", d.GatewayCPU / mostBusy, "more gateways, or more processors for each"},
		{"Redis' processor", d.RedisCPU / mostBusy, "a balancer that sends a token's requests to the same few gateways; a Cluster; `sealed` tokens"},
		{"Redis' memory", d.RedisMemory / mostRedisMemory, "more memory; shorter lifetimes; a Cluster; `sealed` tokens"},
		{"Redis' connections", d.Connections / mostConnections, "a larger `maxclients`"},
	}
	slices.SortStableFunc(all, func(a, b bound) int { return cmp.Compare(b.Share, a.Share) })
	return all
}

// carry returns what can be carried at most: the workload with the highest rate that stays within all
// bounds, if each token is used perSecond times a second.
func carry(w workload, c costs, perSecond float64) (demand, bound) {
	at := func(rate float64) demand {
		w := w
		w.Rate, w.Tokens = rate, max(1, rate/perSecond)
		return demandOf(w, c)
	}
	low, high := 1.0, 1e9
	for high/low > 1.005 {
		middle := math.Sqrt(low * high)
		if at(middle).bounds()[0].Share <= 1 {
			low = middle
		} else {
			high = middle
		}
	}
	d := at(low)
	return d, d.bounds()[0]
}

// revocations returns how many tokens a second can be revoked on top of a workload.
func revocations(w workload, c costs) float64 {
	h := simulate(w)
	low, high := 0.0, 1e7
	for high-low > 1 {
		w.Revoked = (low + high) / 2
		if w.demand(h, c).bounds()[0].Share <= 1 {
			low = w.Revoked
		} else {
			high = w.Revoked
		}
	}
	return low
}
