package caddyoauth

import (
	"errors"
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
)

func init() {
	caddy.RegisterModule(MatchScope{})
}

// MatchScope matches requests that `oauth_protect` has let in with a token that has at least
// one of the scopes. A request without a token never matches. Use it on directives that come
// after `oauth_protect`. Before it, no token is known yet, and such a configuration is refused.
type MatchScope []string

// CaddyModule returns the Caddy module information.
func (MatchScope) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.matchers.oauth_scope",
		New: func() caddy.Module { return new(MatchScope) },
	}
}

// UnmarshalCaddyfile reads
//
//	oauth_scope <scope>...
func (m *MatchScope) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	for d.Next() { // repeated lines add to the list
		scopes, err := conf.Args(d, 1, -1)
		if err != nil {
			return err
		}
		if err := conf.CheckScopes("oauth_scope", scopes); err != nil {
			return d.WrapErr(err)
		}
		*m = append(*m, scopes...)
		if err := conf.NoBlock(d, "oauth_scope"); err != nil {
			return err
		}
	}
	return nil
}

// Validate refuses an empty list, which can only be a mistake.
func (m MatchScope) Validate() error {
	if len(m) == 0 {
		return errors.New("oauth_scope needs at least one scope")
	}
	return nil
}

// Match reports whether the request's token has one of the scopes.
func (m MatchScope) Match(r *http.Request) bool {
	match, _ := m.MatchWithError(r)
	return match
}

// MatchWithError is Match; it never fails.
func (m MatchScope) MatchWithError(r *http.Request) (bool, error) {
	facts, ok := FactsFromContext(r.Context())
	return ok && slices.ContainsFunc(m, facts.HasScope), nil
}

// Interface guards
var (
	_ caddy.Validator                   = (*MatchScope)(nil)
	_ caddyhttp.RequestMatcherWithError = (*MatchScope)(nil)
	_ caddyfile.Unmarshaler             = (*MatchScope)(nil)
)
