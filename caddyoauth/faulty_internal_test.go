package caddyoauth

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/store"
)

func init() {
	caddy.RegisterModule(FaultyStore{})
}

// StoreFault is what the reads of a `store faulty` do first; nil is nothing. An error
// ends the read.
var StoreFault atomic.Pointer[func(context.Context) error]

// FaultyStore is the store in memory, with reads that tests can break or hold up.
type FaultyStore struct{}

// CaddyModule returns the Caddy module information.
func (FaultyStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "oauth.stores.faulty",
		New: func() caddy.Module { return new(FaultyStore) },
	}
}

// UnmarshalCaddyfile reads
//
//	faulty
func (*FaultyStore) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	return nothingMore(d)
}

func (*FaultyStore) poolKey() (string, error) { return "faulty", nil }

func (*FaultyStore) open() (oauth.TokenStore, error) {
	return faultyStore{store.NewMemory(time.Now)}, nil
}

type faultyStore struct{ oauth.TokenStore }

func (s faultyStore) Get(ctx context.Context, key oauth.Key) (oauth.Token, error) {
	if fault := StoreFault.Load(); fault != nil {
		if err := (*fault)(ctx); err != nil {
			return oauth.Token{}, err
		}
	}
	return s.TokenStore.Get(ctx, key)
}
