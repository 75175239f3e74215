package caddyoauth

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// gatewayState is the answer to GET /oauth/: the state of everything, at a glance. Nothing in it is
// secret.
type gatewayState struct {
	Now     time.Time     `json:"now"`
	Console consoleState  `json:"console"`
	Realms  []realmState  `json:"realms"`
	Store   storeState    `json:"store"`
	Sources []sourceState `json:"sources"`
	Cache   cacheState    `json:"cache"`
}

// consoleState is what a browser may do.
type consoleState struct {
	Write bool `json:"write"`
}

type realmState struct {
	Name        string `json:"name"`
	Issuer      string `json:"issuer"` // empty if it has none
	TokenFormat string `json:"token_format"`
	// ManagedClients says that the realm may have managed ones.
	ManagedClients bool `json:"managed_clients"`
	Configured     int  `json:"configured"`
	Managed        int  `json:"managed"`
	// State is as in health, or none if nothing is issued or accepted here.
	State string `json:"state"`
}

type storeState struct {
	Kind string `json:"kind"` // none without a store
	// Address is the file, or where Redis is; empty for other stores.
	Address  string `json:"address,omitempty"`
	State    string `json:"state"`
	Coherent bool   `json:"coherent"`
	// Latency is how long operations took in the last minutes on average, in milliseconds.
	Latency storeLatency `json:"latency_ms"`
}

// storeLatency has what is known.
type storeLatency struct {
	Get *float64 `json:"get,omitempty"`
	Put *float64 `json:"put,omitempty"`
}

// sourceState is the state of all sources with one label and type.
type sourceState struct {
	Label string `json:"label"`
	Type  string `json:"type"` // the module's name
	State string `json:"state"`
	// Latency is how long requests to it took in the last minutes on average, in milliseconds.
	Latency *float64 `json:"latency_ms,omitempty"`
	// Stale says that it could not be asked in the last minute, and that somebody got what was
	// remembered.
	Stale bool `json:"stale"`
	// LastError is why the latest request to it failed; empty if it didn't.
	LastError string `json:"last_error,omitempty"`
	// UsedAt is how many oauth_protect use it.
	UsedAt int `json:"used_at"`
}

// cacheState is the state of the token cache. Hits and misses count from the start of the process.
type cacheState struct {
	Entries int    `json:"entries"`
	Max     int64  `json:"max"`
	Hits    uint64 `json:"hits"`
	Misses  uint64 `json:"misses"`
}

// serveState answers GET /oauth/.
func serveState(w http.ResponseWriter, r *http.Request) error {
	app, err := readAdminGet(w, r)
	if err != nil {
		return err
	}
	app.run.history.look(time.Now()) // durations up to now
	health := app.health(r.Context(), true)
	return answerJSON(w, gatewayState{
		Now: time.Now().UTC(), Console: consoleState{app.mayWrite()},
		Realms: app.realmStates(health), Store: app.storeState(health), Sources: app.sourceStates(),
		Cache: cacheState{app.run.opened.cache.Len(), app.Cache.MaxTokens, counted64(collectors.cacheHits), counted64(collectors.cacheMisses)},
	})
}

// realmStates is about all realms, by name.
func (a *App) realmStates(h health) []realmState {
	states := []realmState{}
	for _, name := range sortedKeys(a.realms) {
		realm := a.realms[name]
		state := realmState{
			Name: name, Issuer: realm.settings.Issuer, TokenFormat: realm.format, ManagedClients: realm.managed != nil,
			Configured: len(realm.settings.Clients), State: cmp.Or(h.Realms[name], stateNoStore),
		}
		if realm.managed != nil && realm.engine != nil {
			for range realm.engine.Managed {
				state.Managed++
			}
		}
		states = append(states, state)
	}
	return states
}

func (a *App) storeState(h health) storeState {
	state := storeState{Kind: stateNoStore, State: h.Store.State, Coherent: h.Store.Coherent}
	if a.run.opened.store == nil {
		return state
	}
	state.Kind = a.opener.(caddy.Module).CaddyModule().ID.Name() // every opener is a module of oauth.stores
	switch store := a.opener.(type) {
	case *BboltStore:
		state.Address = store.path
	case *RedisStore:
		state.Address = strings.Join(store.cfg.Addresses, " ")
	}
	state.Latency = storeLatency{a.run.history.mean(timedSeries{operation: "get"}), a.run.history.mean(timedSeries{operation: "put"})}
	return state
}

// sourceStates is about all sources of tokens from elsewhere, by label and type. Of several uses of one,
// such as with different bounds on memory, the worst state counts.
func (a *App) sourceStates() []sourceState {
	states := []sourceState{}
	for _, key := range sortedKeys(a.sources) {
		used := a.sources[key]
		state := sourceState{Label: used.module.Label(), State: used.state(), Stale: used.stale.within(staleCounts), UsedAt: used.routes}
		if module, ok := used.module.(caddy.Module); ok {
			state.Type = module.CaddyModule().ID.Name()
		}
		if source, ok := used.source.(interface{ LastError() error }); ok {
			if err := source.LastError(); err != nil {
				state.LastError = err.Error()
			}
		}
		state.Latency = a.run.history.mean(timedSeries{source: state.Label})
		i := slices.IndexFunc(states, func(s sourceState) bool { return s.Label == state.Label && s.Type == state.Type })
		if i < 0 {
			states = append(states, state)
			continue
		}
		other := &states[i]
		if other.State == stateOK || other.State == stateDenied && state.State != stateOK {
			other.State = state.State
		}
		other.Stale = other.Stale || state.Stale
		other.LastError = cmp.Or(other.LastError, state.LastError)
		other.UsedAt += state.UsedAt
	}
	slices.SortFunc(states, func(a, b sourceState) int { return cmp.Or(cmp.Compare(a.Label, b.Label), cmp.Compare(a.Type, b.Type)) })
	return states
}

// staleCounts is how long a source counts as stale after somebody got what was remembered.
const staleCounts = time.Minute

// lastTime is when something happened last.
type lastTime struct{ at atomic.Pointer[time.Time] }

func (l *lastTime) now() {
	now := time.Now()
	l.at.Store(&now)
}

// within reports whether it happened within a time.
func (l *lastTime) within(d time.Duration) bool {
	at := l.at.Load()
	return at != nil && time.Since(*at) < d
}

// counted64 returns the value of a counter.
func counted64(c prometheus.Counter) uint64 {
	var metric dto.Metric
	if c.Write(&metric) != nil {
		return 0
	}
	return uint64(metric.GetCounter().GetValue())
}
