package caddyoauth

import (
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"strings"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
)

func init() {
	caddy.RegisterModule(LocalSource{})
}

// LocalSource accepts tokens that a realm of this gateway issued.
type LocalSource struct {
	// The realm. Default: the one that the oauth_protect names.
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
	s.Realm = strings.Join(args, "")
	return conf.NoBlock(d, "local")
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*LocalSource)(nil)
)
