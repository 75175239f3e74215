package store

import (
	"maps"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// clientState is what a store keeps of a client.
type clientState struct {
	Generation uint64 `json:"generation"`
	// Retired: the configuration that was last in force did not have it.
	Retired bool `json:"retired,omitempty"`
	// Left: a configuration that had it has left the store, and since then nobody has said
	// that it is still here.
	Left bool `json:"left,omitempty"`
}

// clientTable is the rules of Admit, Retire and Leave, apart from where the states are kept.
// It holds an entry for every client that was ever configured, and so grows with
// them alone.
type clientTable map[oauth.ClientRef]clientState

// admit returns the generations of clients, and the states that change by it.
func (t clientTable) admit(clients []oauth.ClientRef, held map[oauth.ClientRef]uint64) (map[oauth.ClientRef]uint64, clientTable) {
	generations, changed := make(map[oauth.ClientRef]uint64, len(clients)), clientTable{}
	for _, ref := range clients {
		state, known := t[ref]
		if !known {
			state.Generation = 1
		}
		if state.Left && held[ref] != state.Generation {
			state.Generation++ // it may have been removed while nobody looked
		}
		if !known || state.Retired || state.Left {
			state.Retired, state.Left = false, false
			changed[ref] = state
		}
		generations[ref] = state.Generation
	}
	return generations, changed
}

// retire returns the states that change when only the active clients are left.
func (t clientTable) retire(active []oauth.ClientRef) clientTable {
	changed := clientTable{}
	for ref, state := range t.without(active) {
		changed[ref] = clientState{Generation: state.Generation + 1, Retired: true}
	}
	return changed
}

// leave returns the states that change when a configuration leaves all clients but those
// that stay.
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

// without returns the states of active clients other than those named.
func (t clientTable) without(named []oauth.ClientRef) clientTable {
	rest := maps.Clone(t)
	for _, ref := range named {
		delete(rest, ref)
	}
	maps.DeleteFunc(rest, func(_ oauth.ClientRef, state clientState) bool { return state.Retired })
	return rest
}
