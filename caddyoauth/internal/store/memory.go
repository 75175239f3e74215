package store

import (
	"container/heap"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// maxMemoryTokens bounds the tokens in a Memory store, and apart from them the revoked
// self-contained ones; beyond it Put and Deny return ErrFull. One client may have a quarter of
// either, so that it can't shut out all others; beyond it they return ErrClientFull.
const maxMemoryTokens = 1_000_000

// Memory keeps tokens in memory, for as long as the process lives: maxMemoryTokens at most, each
// of about 0.3 KiB. It is safe for concurrent use. It starts nothing, so it need not be
// closed; once it is, its methods return oauth.ErrClosed.
type Memory struct {
	now func() time.Time
	max int // maxMemoryTokens, less in tests

	mu     sync.RWMutex
	closed bool
	// tokens holds records: a million of them are less work for the garbage collector than as many
	// tokens, which have nine pointers each.
	tokens map[oauth.Key]string
	// expiries orders the keys of tokens by expiry. A revoked token's key stays until it expires.
	expiries keyHeap
	// holders has an entry for each client with keys in expiries, and so never more than those.
	holders map[oauth.ClientRef]*holder
	clients clientTable
	secrets map[string][]byte

	keyrings map[string][]byte // by realm
	// denied holds the revoked self-contained tokens until denialGrace after their expiry, max at
	// most, and a quarter of that for one client; deniedUntil orders them by expiry. deniers has an
	// entry for each client with keys in it.
	denied      map[oauth.Key]struct{}
	deniedUntil keyHeap
	deniers     map[oauth.ClientRef]*holder

	used   used
	proofs *proofs

	// managed holds the managed clients, max at most.
	managed map[oauth.ClientRef]oauth.ManagedClient
	// uses are by realm.
	uses map[string]*realmUses
}

// NewMemory makes an empty store. now is the wall clock that decides which tokens have expired
// and are dropped.
func NewMemory(now func() time.Time) *Memory {
	return &Memory{
		now:     now,
		max:     maxMemoryTokens,
		tokens:  make(map[oauth.Key]string),
		holders: make(map[oauth.ClientRef]*holder),
		clients: make(clientTable),
		secrets: make(map[string][]byte),

		keyrings: make(map[string][]byte),
		denied:   make(map[oauth.Key]struct{}),
		deniers:  make(map[oauth.ClientRef]*holder),

		used:   used{ids: make(map[oauth.ReplayID]struct{}), users: make(map[oauth.ClientRef]*holder)},
		proofs: newProofs(now),

		managed: make(map[oauth.ClientRef]oauth.ManagedClient),
		uses:    make(map[string]*realmUses),
	}
}

// Put implements oauth.TokenStore.
func (m *Memory) Put(_ context.Context, t oauth.Token) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return oauth.ErrClosed
	}
	client := oauth.ClientRef{Realm: t.Realm, ClientID: t.ClientID}
	h := m.holders[client]
	hasShare := func() bool { return h != nil && h.keys >= m.max/4 }
	// Each Put drops up to four expired tokens, so the store shrinks faster than it grows and
	// needs no sweeper. Before it refuses a client it drops all of them, since that client's
	// whole share may have expired.
	now := m.now().UnixMilli()
	for i := 0; (i < 4 || hasShare()) && len(m.expiries) > 0 && m.expiries[0].ExpiryMilli <= now; i++ {
		delete(m.tokens, m.expiries.drop(m.holders))
	}
	// Count the heap, not the map: the heap keeps the keys of revoked tokens until they expire.
	switch {
	case hasShare():
		return oauth.ErrClientFull
	case len(m.expiries) >= m.max:
		return oauth.ErrFull
	case h == nil || h.keys == 0: // all that it had was dropped, and so was its entry
		h = &holder{client: client}
		m.holders[client] = h
	}
	h.keys++
	var room [256]byte // for most
	m.tokens[t.Key] = string(appendRecord(room[:0], t))
	m.expiries.add(heldKey{t.Key, h})
	return nil
}

// Get implements oauth.TokenStore.
func (m *Memory) Get(_ context.Context, key oauth.Key) (oauth.Token, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return oauth.Token{}, oauth.ErrClosed
	}
	stored, ok := m.tokens[key]
	if !ok {
		return oauth.Token{}, oauth.ErrNotFound
	}
	return decodeRecord(key, stored)
}

// Revoke implements oauth.TokenStore.
func (m *Memory) Revoke(_ context.Context, key oauth.Key) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return oauth.ErrClosed
	}
	delete(m.tokens, key)
	return nil
}

// Admit implements oauth.TokenStore.
func (m *Memory) Admit(_ context.Context, clients []oauth.ClientRef, held map[oauth.ClientRef]uint64) (map[oauth.ClientRef]uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, oauth.ErrClosed
	}
	generations, changed := m.clients.admit(clients, held)
	maps.Copy(m.clients, changed)
	return generations, nil
}

// Retire implements oauth.TokenStore. All clients in the store are configured ones.
func (m *Memory) Retire(_ context.Context, active []oauth.ClientRef) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return oauth.ErrClosed
	}
	maps.Copy(m.clients, m.clients.retire(active))
	return nil
}

// Leave implements oauth.TokenStore.
func (m *Memory) Leave(_ context.Context, stay []oauth.ClientRef) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return oauth.ErrClosed
	}
	maps.Copy(m.clients, m.clients.leave(stay))
	return nil
}

// EndTokens implements oauth.TokenStore.
func (m *Memory) EndTokens(_ context.Context, realm string, clients []string, all bool, held map[oauth.ClientRef]uint64) (map[oauth.ClientRef]uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, oauth.ErrClosed
	}
	e := ending{realm: realm, clients: clients, all: all, held: held}
	maps.Copy(m.clients, e.change(m.clients))
	return e.reached, nil
}

// Generation implements oauth.TokenStore.
func (m *Memory) Generation(_ context.Context, client oauth.ClientRef) (uint64, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return 0, oauth.ErrClosed
	}
	state, known := m.clients[client]
	if !known {
		return 0, oauth.ErrNotFound
	}
	return state.Generation, nil
}

// Secret implements oauth.TokenStore.
func (m *Memory) Secret(_ context.Context, name string, fresh []byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, oauth.ErrClosed
	}
	if m.secrets[name] == nil {
		m.secrets[name] = slices.Clone(fresh)
	}
	return slices.Clone(m.secrets[name]), nil
}

// Close implements oauth.TokenStore. It forgets everything.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.tokens, m.expiries, m.holders, m.clients, m.secrets = nil, nil, nil, nil, nil
	m.keyrings, m.denied, m.deniedUntil, m.deniers = nil, nil, nil, nil
	m.used = used{}
	m.proofs.close()
	return nil
}

// Keeps implements oauth.KeyStore.
func (m *Memory) Keeps(context.Context) error { return nil }

// Keys implements oauth.KeyStore.
func (m *Memory) Keys(_ context.Context, realm string) ([]byte, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return nil, oauth.ErrClosed
	}
	return slices.Clone(m.keyrings[realm]), nil
}

// SwapKeys implements oauth.KeyStore.
func (m *Memory) SwapKeys(_ context.Context, realm string, old, next []byte) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false, oauth.ErrClosed
	}
	if !sameKeyring(m.keyrings[realm], old) {
		return false, nil
	}
	m.keyrings[realm] = slices.Clone(next)
	return true, nil
}

// Deny implements oauth.KeyStore. It drops the denials that are over.
func (m *Memory) Deny(_ context.Context, key oauth.Key, clientID string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return oauth.ErrClosed
	}
	over := m.now().Add(-denialGrace).UnixMilli()
	for len(m.deniedUntil) > 0 && m.deniedUntil[0].ExpiryMilli <= over {
		delete(m.denied, m.deniedUntil.drop(m.deniers))
	}
	if _, already := m.denied[key]; already {
		return nil
	}
	client := oauth.ClientRef{Realm: key.Realm, ClientID: clientID}
	h := m.deniers[client]
	switch {
	case h != nil && h.keys >= m.max/4:
		return oauth.ErrClientFull
	case len(m.denied) >= m.max:
		return oauth.ErrFull
	case h == nil:
		h = &holder{client: client}
		m.deniers[client] = h
	}
	h.keys++
	m.denied[key] = struct{}{}
	m.deniedUntil.add(heldKey{key, h})
	return nil
}

// Denied implements oauth.KeyStore.
func (m *Memory) Denied(_ context.Context, epoch oauth.Epoch, key oauth.Key) (bool, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return false, oauth.ErrClosed
	}
	if !begins(m.keyrings[key.Realm], epoch) {
		return false, oauth.ErrOtherEpoch
	}
	_, denied := m.denied[key]
	return denied, nil
}

// add puts a key into the heap. heap.Push would allocate an interface for it, and heap.Pop another.
func (h *keyHeap) add(k heldKey) {
	*h = append(*h, k)
	heap.Fix(h, len(*h)-1)
}

// drop takes the first key off the heap, and off what its holder has.
func (h *keyHeap) drop(holders map[oauth.ClientRef]*holder) oauth.Key {
	over, last := (*h)[0], len(*h)-1
	(*h)[0], (*h)[last] = (*h)[last], heldKey{}
	if *h = (*h)[:last]; last > 0 {
		heap.Fix(h, 0)
	}
	if over.holder.keys--; over.holder.keys == 0 {
		delete(holders, over.holder.client)
	}
	return over.Key
}

// holder is a client, and how many keys in the heap belong to its tokens.
type holder struct {
	client oauth.ClientRef
	keys   int
}

type heldKey struct {
	oauth.Key
	holder *holder
}

// keyHeap is a heap of keys, the first to expire on top.
type keyHeap []heldKey

func (h keyHeap) Len() int           { return len(h) }
func (h keyHeap) Less(i, j int) bool { return h[i].ExpiryMilli < h[j].ExpiryMilli }
func (h keyHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *keyHeap) Push(k any)        { *h = append(*h, k.(heldKey)) }
func (h *keyHeap) Pop() any {
	old := *h
	k := old[len(old)-1]
	*h = old[:len(old)-1]
	return k
}
