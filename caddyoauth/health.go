package caddyoauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// healthTimeout bounds how long GET /oauth/health waits for the store.
const healthTimeout = time.Second

// What health says about a part. All but stateOK and stateNoStore mean that something can't be done.
const (
	stateOK          = "ok"
	stateNoStore     = "none"              // the configuration needs no store
	stateUnreachable = "unreachable"       // the store doesn't answer
	stateWaiting     = "waiting_for_store" // the realm has not learnt the store's key yet
	stateOpen        = "circuit_open"      // the source is left alone for a while
	stateNoKeys      = "no_keys"           // the source has no keys that fit its algorithms
)

// health is the answer to GET /oauth/health.
type health struct {
	Ready bool        `json:"ready"`
	Store storeHealth `json:"store"`
	// Realms and Sources are by name and label.
	Realms  map[string]string `json:"realms"`
	Sources map[string]string `json:"sources"`
}

type storeHealth struct {
	State string `json:"state"`
	// Coherent tells whether the cache may answer. If not, every check asks the store: slower, and
	// just as right, so that alone doesn't make a gateway unready.
	Coherent bool `json:"coherent"`
}

// serveHealth says whether this gateway can do what its configuration promises: 200 if it can, 503
// if not. The body says which part can't. With ?ignore=sources only the store and the realms decide,
// for a balancer that must not give up all gateways because another server is down.
func serveHealth(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return caddy.APIError{HTTPStatus: http.StatusMethodNotAllowed, Err: errors.New("GET or HEAD only")}
	}
	ignore := r.URL.Query().Get("ignore")
	if ignore != "" && ignore != "sources" {
		return caddy.APIError{HTTPStatus: http.StatusBadRequest, Err: errors.New("ignore can be sources, and nothing else")}
	}
	app := activeApp()
	if app == nil {
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: errors.New("oauth is not configured")}
	}
	h := app.health(r.Context(), ignore == "sources")
	body, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if !h.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, err = w.Write(append(body, '\n'))
	return err
}

// health looks at everything that the app needs. It asks the store, and no other server.
func (a *App) health(ctx context.Context, ignoreSources bool) health {
	h := health{
		Ready: true, Store: storeHealth{stateNoStore, true},
		Realms: make(map[string]string), Sources: make(map[string]string),
	}
	if opened := a.run.opened; opened.store != nil {
		h.Store = storeHealth{stateOK, opened.coherent == nil || opened.coherent()}
		if !opened.reachable(ctx) {
			h.Store.State, h.Ready = stateUnreachable, false
		}
		for name, realm := range a.realms {
			h.Realms[name] = stateOK
			if !realm.engine.Agreed() {
				h.Realms[name], h.Ready = stateWaiting, false
			}
		}
	}
	for _, used := range a.sources {
		label, state := used.module.Label(), used.state()
		if h.Sources[label] == "" || state != stateOK { // of several uses, the worst
			h.Sources[label] = state
		}
		if state != stateOK && !ignoreSources {
			h.Ready = false
		}
	}
	return h
}

// reachable asks the store for a token that can't exist. It passes by timedStore, whose metrics are
// about requests.
func (s *openStore) reachable(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	store := s.store
	if timed, ok := store.(timedStore); ok {
		store = timed.TokenStore
	}
	_, err := store.Get(ctx, oauth.Key{Realm: rootRealm})
	return err == nil || errors.Is(err, oauth.ErrNotFound)
}

// state returns what is known of the source without asking it. Sources of other modules are
// believed to be well.
func (u *usedSource) state() string {
	switch source := u.source.(type) {
	case *introspect.Remote:
		if !source.Available() {
			return stateOpen
		}
	case interface{ HasKeys() bool }:
		if !source.HasKeys() {
			return stateNoKeys
		}
	}
	return stateOK
}
