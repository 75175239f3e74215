package store

import (
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

// clientTable holds the rules of Admit, Retire and Leave, apart from where the states are stored.
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
		state.Generation = max(state.Generation, held[ref])
		if state.Left && held[ref] != state.Generation {
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
