package store

import "github.com/caddyoauth/gateway/caddyoauth/internal/oauth"

// clientState is what a store keeps of a client.
type clientState struct {
	Generation uint64 `json:"generation"`
	// Retired: the configuration that was last in force did not have it.
	Retired bool `json:"retired,omitempty"`
}

// clientTable is the rules of Admit and Retire, apart from where the states are kept.
// It holds an entry for every client that was ever configured, and so grows with
// them alone.
type clientTable map[oauth.ClientRef]clientState

// admit returns the generations of clients, and the states that change by it.
func (t clientTable) admit(clients []oauth.ClientRef) (map[oauth.ClientRef]uint64, clientTable) {
	generations, changed := make(map[oauth.ClientRef]uint64, len(clients)), clientTable{}
	for _, ref := range clients {
		state, known := t[ref]
		if !known {
			state.Generation = 1
		}
		if !known || state.Retired {
			state.Retired = false
			changed[ref] = state
		}
		generations[ref] = state.Generation
	}
	return generations, changed
}

// retire returns the states that change when only the active clients are left.
func (t clientTable) retire(active []oauth.ClientRef) clientTable {
	stays := make(map[oauth.ClientRef]bool, len(active))
	for _, ref := range active {
		stays[ref] = true
	}
	changed := clientTable{}
	for ref, state := range t {
		if !stays[ref] && !state.Retired {
			changed[ref] = clientState{Generation: state.Generation + 1, Retired: true}
		}
	}
	return changed
}
