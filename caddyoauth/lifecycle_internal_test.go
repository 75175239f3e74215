package caddyoauth

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/keys"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/store"
)

// overtaken is a store in which something else happens to the keys before the first swap.
type overtaken struct {
	oauth.KeyStore
	before func()
}

func (o *overtaken) SwapKeys(ctx context.Context, realm string, old, next []byte) (bool, error) {
	if f := o.before; f != nil {
		o.before = nil
		f()
	}
	return o.KeyStore.SwapKeys(ctx, realm, old, next)
}

// A configuration that comes into force gets a key of its algorithm even if another gateway rotates
// the keys at that moment.
func TestAlgorithmChangesWhileOthersRotate(t *testing.T) {
	ctx, now := t.Context(), time.Now()
	memory := store.NewMemory(time.Now)
	defer memory.Close()
	r := &servedRealm{name: "root", signing: &signing{algorithm: keys.ES256}}
	ring, err := keys.New("root", now, nil)
	if err != nil {
		t.Fatal(err)
	}
	if ring, _, _, err = ring.Kept(now, r.wanted(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := memory.SwapKeys(ctx, "root", nil, ring.Stored()); err != nil {
		t.Fatal(err)
	}
	rotated, err := ring.Rotated(now, r.wanted(), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	raced := &overtaken{memory, func() {
		if swapped, err := memory.SwapKeys(ctx, "root", ring.Stored(), rotated.Stored()); err != nil || !swapped {
			t.Errorf("%t %v", swapped, err)
		}
	}}
	r.signing.algorithm = keys.EdDSA
	a := &App{realms: map[string]*servedRealm{"root": r}, run: &running{opened: &openStore{keys: raced}}}
	if err := a.renewKeys(ctx); err != nil {
		t.Fatal(err)
	}
	stored, err := memory.Keys(ctx, "root")
	if err != nil {
		t.Fatal(err)
	}
	if ring, err = keys.Read("root", stored, nil); err != nil {
		t.Fatal(err)
	}
	var algorithms []string
	for _, key := range ring.SigningKeys() {
		algorithms = append(algorithms, key.Algorithm())
	}
	if !slices.Equal(algorithms, []string{keys.ES256, keys.ES256, keys.EdDSA}) {
		t.Errorf("there are keys of %q", algorithms)
	}
}
