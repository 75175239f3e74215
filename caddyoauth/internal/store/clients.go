package store

import (
	"crypto/rand"
	"encoding/binary"
	"maps"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// clientState is what a store keeps about a client.
type clientState struct {
	Generation uint64 `json:"generation"`
	// Retired says that the configuration that was last in force did not have the client.
	Retired bool `json:"retired,omitempty"`
	// Left says that a configuration that had the client has left the store, and that nobody
	// has claimed the client since.
	Left bool `json:"left,omitempty"`
}

// clientTable holds the rules of Admit, Retire, Leave and EndTokens, apart from where the states are
// stored.
// It has an entry for every client that was ever configured, and grows with nothing else: a client
// that is not configured must not stand in it, since retire would take it for one that is gone.
type clientTable map[oauth.ClientRef]clientState

// admit returns the generations of clients, and the states that become different.
func (t clientTable) admit(clients []oauth.ClientRef, held map[oauth.ClientRef]uint64) (map[oauth.ClientRef]uint64, clientTable) {
	generations, changed := make(map[oauth.ClientRef]uint64, len(clients)), clientTable{}
	for _, ref := range clients {
		state, known := t[ref]
		if !known {
			state.Generation = 1
		}
		// A store that has lost a change, in a failover or with a node of a Cluster, gets it back from
		// whoever has seen it: tokens of former generations must not be good again.
		lost := held[ref] > state.Generation
		switch {
		case lost && known:
			state.Generation = later(held[ref])
		case lost:
			state.Generation = held[ref]
		case state.Left && held[ref] != state.Generation:
			state.Generation++ // it may have been removed meanwhile
		}
		if !known || lost || state.Retired || state.Left {
			state.Retired, state.Left = false, false
			changed[ref] = state
		}
		generations[ref] = state.Generation
	}
	return generations, changed
}

// later returns a generation later than g. The step is random, so that two gateways of which one
// has not heard of the other, because a failover lost what that did, don't arrive at the same
// generation: tokens that the first one issued in it would count although the second has ended them.
// For the same reason a generation that was lost is not restored as it was, if others may have used
// the former one since.
func later(g uint64) uint64 {
	var step [2]byte
	rand.Read(step[:])
	return g + 1 + uint64(binary.BigEndian.Uint16(step[:]))
}

// ending is one EndTokens. Its change may be tried several times. The first attempt says at which
// generations it aims, so another one does nothing more once they have been reached.
type ending struct {
	realm   string
	clients []string
	all     bool
	held    map[oauth.ClientRef]uint64

	aims map[oauth.ClientRef]uint64 // nil before the first attempt
	// reached are the generations after the last attempt. It is the caller's once no attempt follows.
	reached map[oauth.ClientRef]uint64
}

// change returns the states that become different.
func (e *ending) change(t clientTable) clientTable {
	admitted := make(map[oauth.ClientRef]bool, len(e.clients))
	for _, id := range e.clients {
		admitted[oauth.ClientRef{Realm: e.realm, ClientID: id}] = true
	}
	if e.aims == nil {
		e.aims = make(map[oauth.ClientRef]uint64)
		for ref := range admitted {
			e.aims[ref] = later(max(t[ref].Generation, e.held[ref]))
		}
		for ref, state := range t {
			if e.all && ref.Realm == e.realm && !state.Retired && !admitted[ref] {
				e.aims[ref] = later(state.Generation)
			}
		}
	}
	changed := clientTable{}
	e.reached = make(map[oauth.ClientRef]uint64, len(e.aims))
	for ref, aim := range e.aims {
		state := t[ref]
		if state.Generation < aim {
			state.Generation = aim
			if admitted[ref] {
				state.Retired, state.Left = false, false
			}
			changed[ref] = state
		}
		e.reached[ref] = state.Generation
	}
	return changed
}

// again returns the states that become different when what this gateway wrote is written once more,
// because the store may have lost it.
func (t clientTable) again(written clientTable) clientTable {
	changed := clientTable{}
	for ref, state := range written {
		now, known := t[ref]
		if now.Generation >= state.Generation {
			continue
		}
		if known {
			state.Generation = later(state.Generation)
		}
		changed[ref] = state
	}
	return changed
}

// retire returns the states that become different when only the active clients are left.
func (t clientTable) retire(active []oauth.ClientRef) clientTable {
	changed := clientTable{}
	for ref, state := range t.without(active) {
		changed[ref] = clientState{Generation: state.Generation + 1, Retired: true}
	}
	return changed
}

// leave returns the states that become different when a configuration leaves all clients but
// those in stay.
func (t clientTable) leave(stay []oauth.ClientRef) clientTable {
	changed := clientTable{}
	for ref, state := range t.without(stay) {
		if !state.Left {
			state.Left = true
			changed[ref] = state
		}
	}
	return changed
}

// without returns the states of the clients that are not retired, but for those named.
func (t clientTable) without(named []oauth.ClientRef) clientTable {
	rest := maps.Clone(t)
	for _, ref := range named {
		delete(rest, ref)
	}
	maps.DeleteFunc(rest, func(_ oauth.ClientRef, state clientState) bool { return state.Retired })
	return rest
}
