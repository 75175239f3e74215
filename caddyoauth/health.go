package caddyoauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
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
	stateNoStore     = "none"               // the configuration needs no store
	stateUnreachable = "unreachable"        // the store doesn't answer
	stateReadOnly    = "refuses_writes"     // the store answers, and keeps no token or revocation
	stateWaiting     = "waiting_for_store"  // the realm has not learnt the store's key yet
	stateOpen        = "circuit_open"       // the source is left alone for a while
	stateNoKeys      = "no_keys"            // the source has no keys that fit its algorithms
	stateDenied      = "credentials_denied" // the source says that it doesn't know this gateway
)

// health is the answer to GET /oauth/health.
type health struct {
	Ready bool `json:"ready"`
	// Degraded tells that something can't be done which no other gateway could do either, or which
	// may be the fault of callers. So that alone doesn't make a gateway unready.
	Degraded bool        `json:"degraded,omitempty"`
	Store    storeHealth `json:"store"`
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

// health looks at everything that the app needs. It asks the store, and no other server. A part that
// is only degraded doesn't make the gateway unready: a balancer that takes it out for that stops the
// tokens that can still be checked, and gains nothing, since all gateways share the store, or none has
// this one's file.
func (a *App) health(ctx context.Context, ignoreSources bool) health {
	h := health{
		Ready: true, Store: storeHealth{stateNoStore, true},
		Realms: make(map[string]string), Sources: make(map[string]string),
	}
	if opened := a.run.opened; opened.store != nil {
		h.Store = storeHealth{stateOK, opened.coherent == nil || opened.coherent()}
		h.Store.State = opened.look(ctx, len(a.servers) > 0)
		h.Ready, h.Degraded = h.Store.State != stateUnreachable, h.Store.State == stateReadOnly
		for name, realm := range a.realms {
			h.Realms[name] = stateOK
			if !realm.engine.Agreed() {
				h.Realms[name], h.Ready = stateWaiting, false
			}
		}
	}
	for _, used := range a.sources {
		label, state := used.module.Label(), used.state()
		switch was := h.Sources[label]; { // of several uses, the worst
		case was == "", was == stateOK, was == stateDenied && state != stateOK:
			h.Sources[label] = state
		}
		h.Degraded = h.Degraded || state == stateDenied
		if state != stateOK && state != stateDenied && !ignoreSources {
			h.Ready = false
		}
	}
	return h
}

// look returns the state of the store: whether it can be read and, if tokens are issued here, written.
// It passes by timedStore, whose metrics are about requests.
//
// A read of a file in memory ends when the disk answers, whatever the deadline says. So nobody waits
// for that beyond healthTimeout, and while one look is under way no other one begins.
func (s *openStore) look(ctx context.Context, writes bool) string {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	store := s.store
	if timed, ok := store.(timedStore); ok {
		store = timed.TokenStore
	}
	nothing := oauth.Key{Realm: rootRealm} // no token has it
	works := func(what string, look func(context.Context) error) bool {
		looked := s.looks.DoChan(what, func() (any, error) {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), healthTimeout)
			defer cancel()
			return nil, look(ctx)
		})
		select {
		case <-ctx.Done():
			return false
		case did := <-looked:
			return did.Err == nil || errors.Is(did.Err, oauth.ErrNotFound)
		}
	}
	switch {
	case !works("read", func(ctx context.Context) error { _, err := store.Get(ctx, nothing); return err }):
		return stateUnreachable
	case writes && (s.writes.failing(time.Now()) || !works("write", func(ctx context.Context) error { return store.Revoke(ctx, nothing) })):
		return stateReadOnly
	}
	return stateOK
}

// writes is how the latest writes for requests went. A store may refuse tokens and take revocations,
// as one without room does, or a Redis whose memory is full.
type writes struct{ put, revoke atomic.Pointer[time.Time] } // when the latest one failed, nil if it didn't

// failureCounts is how long a failed write counts if none has been tried since.
const failureCounts = time.Minute

// ended records how a write went. One whose caller went away says nothing, nor does the refusal of a
// client that has its share.
func (w *writes) ended(ctx context.Context, latest *atomic.Pointer[time.Time], err error) {
	switch {
	case err == nil:
		if latest.Load() != nil {
			latest.Store(nil)
		}
	case errors.Is(ctx.Err(), context.Canceled), errors.Is(err, oauth.ErrClientFull), errors.Is(err, oauth.ErrNotFound):
	default:
		now := time.Now()
		latest.Store(&now)
	}
}

// failing reports whether the latest write of a kind has failed, not long ago.
func (w *writes) failing(now time.Time) bool {
	failed := func(at *time.Time) bool { return at != nil && now.Sub(*at) < failureCounts }
	return failed(w.put.Load()) || failed(w.revoke.Load())
}

// state returns what is known of the source without asking it. Sources of other modules are
// believed to be well.
func (u *usedSource) state() string {
	switch source := u.source.(type) {
	case *introspect.Remote:
		switch {
		case !source.Available():
			return stateOpen
		case source.Denied():
			return stateDenied
		}
	case interface{ HasKeys() bool }:
		if !source.HasKeys() {
			return stateNoKeys
		}
	}
	return stateOK
}
