package caddyoauth

import (
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/store"
)

func init() {
	caddy.RegisterModule(MemoryStore{})
}

// MemoryStore keeps tokens in memory: a million at most, and no more than a quarter of them for
// one client. Revoked tokens count until they would have expired; those that have no record in the
// store count apart, until a day later. Tokens survive a reload of the
// configuration, but not a restart. A process has one such store.
type MemoryStore struct{}

// CaddyModule returns the Caddy module information.
func (MemoryStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "oauth.stores.memory",
		New: func() caddy.Module { return new(MemoryStore) },
	}
}

func (*MemoryStore) poolKey() (string, error) { return "memory", nil }

func (*MemoryStore) open(_ string, owner *openStore) (oauth.TokenStore, error) {
	owner.immediate = true
	return store.NewMemory(time.Now), nil
}

// UnmarshalCaddyfile reads
//
//	memory
func (*MemoryStore) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the store's name
	if _, err := conf.Args(d, 0, 0); err != nil {
		return err
	}
	return conf.NoBlock(d, "memory")
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*MemoryStore)(nil)
	_ storeOpener           = (*MemoryStore)(nil)
)
