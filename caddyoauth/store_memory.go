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

// MemoryStore keeps tokens in memory, a million at most, and a quarter of that for one client;
// revoked ones count until they would have expired. They survive a reload of the
// configuration and are gone after a restart. There is one such store in a process.
type MemoryStore struct{}

// CaddyModule returns the Caddy module information.
func (MemoryStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "oauth.stores.memory",
		New: func() caddy.Module { return new(MemoryStore) },
	}
}

func (*MemoryStore) poolKey() (string, error) { return "memory", nil }

func (*MemoryStore) open(string, *openStore) (oauth.TokenStore, error) {
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
