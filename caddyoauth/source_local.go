package caddyoauth

import (
	"context"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/introspect"
)

func init() {
	caddy.RegisterModule(LocalSource{})
}

// LocalSource accepts tokens that a realm of this gateway issued.
type LocalSource struct {
	// The realm. Default: the realm that the `oauth_protect` names.
	Realm string `json:"realm,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (LocalSource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "oauth.sources.local",
		New: func() caddy.Module { return new(LocalSource) },
	}
}

// UnmarshalCaddyfile reads
//
//	local [<realm>]
func (s *LocalSource) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the source's name
	args, err := conf.Args(d, 0, 1)
	if err != nil {
		return err
	}
	if len(args) > 0 {
		s.Realm = args[0]
	}
	return conf.NoBlock(d, "local")
}

// A realm is the source of the routes that accept its tokens. They ask in the same place as its
// endpoints, the engine's Tokens, through which revocations go too.

func (r *servedRealm) label() string     { return r.name }
func (r *servedRealm) realmName() string { return r.name }
func (r *servedRealm) near() bool        { return true }

// recognizes goes by the form and the MAC: a token in our form that this realm didn't issue
// may be another gateway's.
func (r *servedRealm) recognizes(token *introspect.Token) Recognition {
	if r.engine.Recognizes(token) {
		return Mine
	}
	return NotMine
}

func (r *servedRealm) ask(ctx context.Context, token *introspect.Token, maxAge time.Duration) (*introspect.Facts, error) {
	return r.engine.Tokens().LookupWithin(ctx, token, maxAge)
}

func (r *servedRealm) remembered(token *introspect.Token, maxAge time.Duration) (*introspect.Facts, bool) {
	return r.engine.Tokens().Remembered(token, maxAge)
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*LocalSource)(nil)
	_ routeSource           = (*servedRealm)(nil)
)
