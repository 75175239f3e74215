package introspect

import (
	"cmp"
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// witnesses are tokens that the server called active a short while ago, the latest one of
// each of a few clients. When it gives no sensible answer about others, these are asked
// about once more, to tell a server that is away from tokens that make it fail.
//
// They are secrets that lie in memory longer than the request that brought them: at most
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

// add takes note of a token that is active.
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

// drop takes a token out that is not active any more.
func (w *witnesses) drop(id TokenID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = slices.DeleteFunc(w.list, func(old witness) bool { return old.token.ID() == id })
}

// beside are those that are not the token of that ID.
func (w *witnesses) beside(id TokenID, now time.Time) []witness {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = slices.DeleteFunc(w.list, func(old witness) bool { return !now.Before(old.until) })
	return slices.DeleteFunc(slices.Clone(w.list), func(old witness) bool { return old.token.ID() == id })
}

// clear forgets them all.
func (w *witnesses) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = nil
}

// remembered is what is known of some tokens for a while: 1024 at most, each in the place
// that its ID says. Two that share a place push each other out, which costs a question.
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
	// A clock that is set back must not make it last.
	if passed := now.Sub(is.at); passed < 0 || passed >= age {
		return what, false
	}
	return is.what, true
}
