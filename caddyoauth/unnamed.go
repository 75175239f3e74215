package caddyoauth

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// unnamed is the caller of a request that an oauth_protect has let pass without knowing who it
// is. It travels in the request's context, in the place of a bearer.
type unnamed struct {
	// authorization is what the caller sent in Authorization, for an oauth_protect behind that
	// wants to know, and left what that oauth_protect left of it.
	authorization, left []string
	// proof are the lines of DPoP that it sent.
	proof []string
	// bearer is whom an oauth_protect behind has let in; nil if none has.
	bearer *bearer
}

// original returns what the caller sent in Authorization, given what is there now. A handler may
// have set something else after the oauth_protect, which counts then. u is nil if there was none.
func (u *unnamed) original(now []string) []string {
	if u != nil && slices.Equal(now, u.left) {
		return u.authorization
	}
	return now
}

// callerOf returns whom an earlier oauth_protect has let in. Both are nil if the request has met
// none, and at most one is not.
func callerOf(ctx context.Context) (*bearer, *unnamed) {
	switch caller := ctx.Value(bearerCtxKey{}).(type) {
	case *bearer:
		return caller, nil
	case *unnamed:
		return nil, caller
	}
	return nil, nil
}

// passUnnamed lets a request pass without an identity. It has been stripped of whatever the caller
// must not say. caller is nil if this is the first oauth_protect that it meets. authorization is
// what the caller sent, with a proof perhaps, and goesOn what the backend gets of it.
func passUnnamed(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, caller *unnamed, authorization, proof, goesOn []string) error {
	first := caller == nil
	if first {
		caller = new(unnamed)
	}
	caller.authorization, caller.proof, caller.left = authorization, proof, goesOn
	if goesOn != nil {
		r.Header["Authorization"] = goesOn
	}
	ctx := r.Context()
	if repl, ok := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		// A handler that authenticated somebody before us must not speak for our caller.
		repl.DeleteByPrefix("http.auth.user.")
		if first {
			repl.Map(caller.placeholder)
		}
	}
	if first {
		r = r.WithContext(context.WithValue(ctx, bearerCtxKey{}, caller))
	}
	err := next.ServeHTTP(w, r)
	if err != nil {
		delete(r.Header, "Authorization") // it was for the backend, but error routes would see it too
	}
	return err
}

// placeholder returns the value of a placeholder. Nobody's are empty: those that nothing knows
// would be passed on as they are written.
func (u *unnamed) placeholder(name string) (any, bool) {
	if u.bearer != nil {
		return u.bearer.placeholder(name)
	}
	return "", strings.HasPrefix(name, "http.auth.user.")
}
