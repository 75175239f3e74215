package oauth

import (
	"context"
	"errors"
	"math"
	"testing"

	"github.com/caddyoauth/gateway/introspect"
)

// oneManaged is a ClientStore with one client.
type oneManaged struct {
	ClientStore // nil: only what is overridden is used
	client      ManagedClient
}

func (m *oneManaged) ManagedClient(context.Context, ClientRef) (ManagedClient, error) {
	return m.client, nil
}

// A managed client that can't be used has no tokens. But if the store has another version of it, which nobody
// has told of yet, nobody can tell.
func TestTokensOfUnusableManagedClients(t *testing.T) {
	stored, unusable := &oneManaged{client: ManagedClient{ID: "m", Generation: 1}}, uint64(0)
	e := newEngine(t, func(s *Settings) {
		s.Managed, s.Coherent = stored, func() bool { return true }
		s.Unusable = func(string) (uint64, bool) { return unusable, unusable != 0 }
	})
	e.SetManaged(map[string]*Managed{"m": {Client: newClient("m", quickSecret(t, "secret")), Version: 1, Generation: 1}}, false)
	token, _ := e.issued.Screen(introspect.NewToken(e.issue(t, "m", "secret")))
	e.SetManaged(map[string]*Managed{"m": nil}, false)

	for _, c := range []struct {
		name             string
		unusable, stored uint64
		known            bool
	}{
		{"of which nothing was heard", 0, 2, false},
		{"in another version", 2, 3, false},
		{"in this version", 3, 3, true}, // the last one, since the cache has it then
	} {
		unusable, stored.client.Version = c.unusable, c.stored
		facts, err := e.tokens.LookupWithin(t.Context(), &token, math.MaxInt64)
		switch {
		case !c.known && !errors.Is(err, ErrUnreachable):
			t.Errorf("a client %s: %+v, %v, want that nobody can tell", c.name, facts, err)
		case c.known && (err != nil || facts.Active || facts.Cause() != introspect.CauseClientRemoved):
			t.Errorf("a client %s: %+v, %v, want %s", c.name, facts, err, introspect.CauseClientRemoved)
		}
	}
}
