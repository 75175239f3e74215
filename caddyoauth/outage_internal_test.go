package caddyoauth

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/store"
)

func init() {
	caddy.RegisterModule(OutageStore{})
}

// Outage says how a `store outage` fails. Each method of the store first calls it with its own
// name, and returns the error if there is one. If Outage is nil, the store works. Admit and EndTokens
// also call it when they are done.
var Outage atomic.Pointer[func(ctx context.Context, method string) error]

// StoreErrors are the errors in the contract of a store, by name.
var StoreErrors = map[string]error{
	"closed": oauth.ErrClosed, "full": oauth.ErrFull, "client full": oauth.ErrClientFull, "not found": oauth.ErrNotFound,
}

// OutageStore is the memory store in a form that tests can break.
type OutageStore struct{}

// CaddyModule returns the Caddy module information.
func (OutageStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "oauth.stores.outage",
		New: func() caddy.Module { return new(OutageStore) },
	}
}

// UnmarshalCaddyfile reads
//
//	outage
func (*OutageStore) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	return conf.NoBlock(d, "outage")
}

func (*OutageStore) poolKey() (string, error) { return "outage", nil }

func (*OutageStore) open(string, *openStore) (oauth.TokenStore, error) {
	return outageStore{store.NewMemory(time.Now)}, nil
}

type outageStore struct{ oauth.TokenStore }

func fail(ctx context.Context, method string) error {
	if f := Outage.Load(); f != nil {
		return (*f)(ctx, method)
	}
	return nil
}

func (s outageStore) Put(ctx context.Context, t oauth.Token) error {
	ctx, cancel := context.WithTimeout(ctx, oauth.StoreTimeout)
	defer cancel()
	if err := fail(ctx, "Put"); err != nil {
		return err
	}
	return s.TokenStore.Put(ctx, t)
}

func (s outageStore) Get(ctx context.Context, key oauth.Key) (oauth.Token, error) {
	if err := fail(ctx, "Get"); err != nil {
		return oauth.Token{}, err
	}
	return s.TokenStore.Get(ctx, key)
}

func (s outageStore) EndTokens(ctx context.Context, realm string, clients []string, all bool, held map[oauth.ClientRef]uint64) (map[oauth.ClientRef]uint64, error) {
	if err := fail(ctx, "EndTokens"); err != nil {
		return nil, err
	}
	generations, err := s.TokenStore.EndTokens(ctx, realm, clients, all, held)
	return generations, errors.Join(err, fail(ctx, "EndTokens done"))
}

func (s outageStore) Admit(ctx context.Context, clients []oauth.ClientRef, held map[oauth.ClientRef]uint64) (map[oauth.ClientRef]uint64, error) {
	if err := fail(ctx, "Admit"); err != nil {
		return nil, err
	}
	generations, err := s.TokenStore.Admit(ctx, clients, held)
	return generations, errors.Join(err, fail(ctx, "Admit done"))
}

func (s outageStore) Revoke(ctx context.Context, key oauth.Key) error {
	if err := fail(ctx, "Revoke"); err != nil {
		return err
	}
	return s.TokenStore.Revoke(ctx, key)
}
