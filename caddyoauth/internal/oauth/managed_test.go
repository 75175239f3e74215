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
	err         error
}

func (m *oneManaged) ManagedClient(context.Context, ClientRef) (ManagedClient, error) {
	return m.client, m.err
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

// A gateway that knows a managed client as it was before, disabled or with fewer rights, can't tell yet what a
// token of the client as it is now is good for. Once it has heard of the change, or if there was none, it can.
func TestTokensOfManagedClientsAreOlderThanTheGatewayKnows(t *testing.T) {
	for name, before := range map[string]func(*Client){
		"disabled":             func(c *Client) { c.Disabled = true },
		"without a scope":      func(c *Client) { c.Scopes = nil },
		"without the audience": func(c *Client) { c.Audience = []string{"https://other.example"} },
	} {
		t.Run(name, func(t *testing.T) {
			stored := &oneManaged{client: ManagedClient{ID: "m", Generation: 1, Version: 3}}
			e := newEngine(t, func(s *Settings) { s.Managed, s.Coherent = stored, func() bool { return true } })
			generation := uint64(1)
			know := func(version uint64, change func(*Client)) {
				client := newClient("m", quickSecret(t, "secret"))
				client.Scopes, client.Audience = []string{"read"}, []string{"https://api.example"}
				change(client)
				e.SetManaged(map[string]*Managed{"m": {Client: client, Version: version, Generation: generation}}, false)
			}
			look := func() (*introspect.Facts, error) {
				token, _ := e.issued.Screen(introspect.NewToken(e.issue(t, "m", "secret")))
				know(2, before)
				return e.tokens.LookupWithin(t.Context(), &token, math.MaxInt64)
			}
			know(3, func(*Client) {})
			if facts, err := look(); !errors.Is(err, ErrUnreachable) {
				t.Errorf("before it has heard of the change: %+v, %v, want that nobody can tell", facts, err)
			}
			know(3, func(*Client) {})
			stored.client.Version = 2
			if facts, err := look(); err != nil || facts.Active && len(facts.Scopes) > 0 {
				t.Errorf("there was no change: %+v, %v", facts, err)
			}
			// Once they have ended, nobody has to be asked.
			know(3, func(*Client) {})
			token, _ := e.issued.Screen(introspect.NewToken(e.issue(t, "m", "secret")))
			generation, stored.err = 2, ErrUnreachable
			know(4, before)
			if facts, err := e.tokens.LookupWithin(t.Context(), &token, math.MaxInt64); err != nil || facts.Active {
				t.Errorf("an ended token, while the store is away: %+v, %v", facts, err)
			}
		})
	}
}
