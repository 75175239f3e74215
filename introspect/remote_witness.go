package introspect

import (
	"cmp"
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// witnesses are tokens that the server called active a short while ago, the latest one of each
// of a few clients. If the server has no sensible answer about other tokens, it is asked about
// these once more, to tell a server that is down from tokens that make it fail.
//
// They are secrets that stay in memory longer than the request that brought them: at most
// maxWitnesses of them, for witnessAge or until they expire, and nowhere else.
type witnesses struct {
	mu   sync.Mutex
	list []witness // the latest last
}

type witness struct {
	client string
	token  Token
	until  time.Time
}

const (
	maxWitnesses = 3
	witnessAge   = 10 * time.Minute
)

// add records a token that is active.
func (w *witnesses) add(facts *Facts, token Token, now time.Time) {
	is := witness{client: cmp.Or(facts.ClientID, facts.Subject), token: token, until: now.Add(witnessAge)}
	if !facts.Expiry.IsZero() && facts.Expiry.Before(is.until) {
		is.until = facts.Expiry
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(slices.DeleteFunc(w.list, func(old witness) bool { return old.client == is.client || !now.Before(old.until) }), is)
	if len(w.list) > maxWitnesses {
		w.list = slices.Delete(w.list, 0, 1)
	}
}

// drop removes a token that is no longer active.
func (w *witnesses) drop(id TokenID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = slices.DeleteFunc(w.list, func(old witness) bool { return old.token.ID() == id })
}

// beside returns those other than the token with that ID.
func (w *witnesses) beside(id TokenID, now time.Time) []witness {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = slices.DeleteFunc(w.list, func(old witness) bool { return !now.Before(old.until) })
	return slices.DeleteFunc(slices.Clone(w.list), func(old witness) bool { return old.token.ID() == id })
}

// clear removes them all.
func (w *witnesses) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = nil
}

// remembered is what is known about some tokens for a while: at most 1024, each in the place
// that its ID selects. Two with the same place evict each other, which costs a question.
type remembered[T any] [1 << 10]atomic.Pointer[rememberedToken[T]]

type rememberedToken[T any] struct {
	id   TokenID
	at   time.Time
	what T
}

func (r *remembered[T]) place(id TokenID) *atomic.Pointer[rememberedToken[T]] {
	return &r[int(binary.BigEndian.Uint16(id[:]))%len(r)]
}

func (r *remembered[T]) put(id TokenID, now time.Time, what T) {
	r.place(id).Store(&rememberedToken[T]{id, now, what})
}

// get returns what was put less than age ago.
func (r *remembered[T]) get(id TokenID, now time.Time, age time.Duration) (what T, ok bool) {
	is := r.place(id).Load()
	if is == nil || is.id != id {
		return what, false
	}
	// A clock that is set back must not make it last longer.
	if passed := now.Sub(is.at); passed < 0 || passed >= age {
		return what, false
	}
	return is.what, true
}
