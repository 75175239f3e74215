package oauth

import (
	"maps"
	"net/url"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// with is a client like c, of another pointer, with a change.
func (c *Client) with(change func(*Client)) *Client {
	other := *c
	change(&other)
	return &other
}

// set replaces the engine's clients.
func (e *engine) set(clients ...*Client) {
	byID := make(map[string]*Client)
	for _, c := range clients {
		byID[c.ID] = c
	}
	e.SetClients(byID)
}

// A change of the clients holds at once, for their tokens too, and does not wait for the cache.
func TestClientsCanBeReplaced(t *testing.T) {
	stays, goes := newClient("stays", quickSecret(t, "s")), newClient("goes", quickSecret(t, "s"))
	e := newEngine(t, nil, stays, goes)
	of := map[string]string{"stays": e.issue(t, "stays", "s"), "goes": e.issue(t, "goes", "s")}
	for id, token := range of {
		if !active(t, e.Tokens(), token) {
			t.Fatalf("a token of %s is not good", id)
		}
	}
	e.set(stays.with(func(c *Client) { c.Secrets = []*Secret{quickSecret(t, "another")} }), newClient("comes", quickSecret(t, "s")))
	if !active(t, e.Tokens(), of["stays"]) {
		t.Error("a token of the client that stays is refused")
	}
	if active(t, e.Tokens(), of["goes"]) {
		t.Error("a token of the client that is gone is good")
	}
	for _, c := range []struct {
		id, secret string
		want       Code
	}{
		{"stays", "s", CodeInvalidClient}, {"stays", "another", ""}, {"goes", "s", CodeInvalidClient},
		{"comes", "s", "outage"}, // until its generation is known
	} {
		if _, _, err := e.Token(t.Context(), request(t, c.id, c.secret, grantForm)); codeOf(err) != c.want {
			t.Errorf("%s with the secret %q: %v", c.id, c.secret, err)
		}
	}
	e.agree("a key of thirty-two random bytes")
	if token := e.issue(t, "comes", "s"); !active(t, e.Tokens(), token) {
		t.Error("a token of the client that came is refused")
	}
}

// Clients, and what the store says of them, can change while requests run: none of them fails, and
// no token of a client that stays is refused.
func TestClientsChangeWhileRequestsRun(t *testing.T) {
	stays, other := newClient("stays", quickSecret(t, "s")), newClient("other", quickSecret(t, "s"))
	e := newEngine(t, nil, stays)
	done := make(chan struct{})
	var changes sync.WaitGroup
	changes.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			if i%2 == 0 {
				e.set(stays, other)
			} else {
				e.set(stays)
			}
			e.agree("a key of thirty-two random bytes")
		}
	})
	var requests sync.WaitGroup
	for range 4 {
		requests.Go(func() {
			for range 200 {
				grant, _, err := e.Token(t.Context(), request(t, "stays", "s", grantForm))
				if err != nil {
					t.Errorf("a token request: %v", err)
					return
				}
				if !active(t, e.Tokens(), grant.Token) {
					t.Error("a new token is refused")
				}
				if out, err := e.Revoke(t.Context(), request(t, "stays", "s", url.Values{"token": {grant.Token}})); err != nil || out.TokenID != introspect.IDOf(grant.Token) {
					t.Errorf("a revocation: %v, %v", out, err)
				}
			}
		})
	}
	requests.Wait()
	close(done)
	changes.Wait()
}

// A change of the clients gives nobody its limits back: neither may a client that stays fetch
// more tokens, nor may it guess more.
func TestLimitsOutliveAChangeOfTheClients(t *testing.T) {
	limit := Limit{Count: 2, Per: time.Hour}
	c := newClient("c", quickSecret(t, "s")).with(func(c *Client) { c.TokenLimit = limit })
	e := newEngine(t, nil, c)
	fetch := func() Code {
		_, _, err := e.Token(t.Context(), request(t, "c", "s", grantForm))
		return codeOf(err)
	}
	guess := func() Code {
		_, _, err := e.Introspect(t.Context(), request(t, "c", "s", url.Values{"token": {"garbage"}}))
		return codeOf(err)
	}
	for range 1000 {
		guess()
	}
	for i, step := range []struct {
		change func(*Client)
		want   Code
	}{
		{func(*Client) {}, ""}, {func(*Client) {}, ""}, {func(*Client) {}, CodeTooManyRequests},
		{func(c *Client) { c.Scopes = []string{"a"} }, CodeTooManyRequests},
		{func(c *Client) { c.TokenLimit = Limit{Count: 1, Per: time.Hour} }, ""}, // anew
		{func(c *Client) { c.TokenLimit = Limit{Count: 1, Per: time.Hour} }, CodeTooManyRequests},
		{func(c *Client) { c.TokenLimit = Limit{} }, ""},
	} {
		e.set(c.with(step.change))
		if code := fetch(); code != step.want {
			t.Errorf("step %d: a token request is answered with %q, want %q", i, code, step.want)
		}
		if code := guess(); code != CodeTooManyRequests {
			t.Errorf("step %d: a guess is answered with %q", i, code)
		}
	}
}

// An engine leaves its settings as they are: a second one of the same clients has limits of its
// own.
func TestNewChangesNoClient(t *testing.T) {
	c := newClient("c", quickSecret(t, "s")).with(func(c *Client) { c.TokenLimit = Limit{Count: 1, Per: time.Hour} })
	clients := map[string]*Client{"c": c}
	for range 2 {
		e := newEngine(t, func(cfg *Settings) { cfg.Clients = clients })
		e.issue(t, "c", "s")
		if _, _, err := e.Token(t.Context(), request(t, "c", "s", grantForm)); codeOf(err) != CodeTooManyRequests {
			t.Errorf("beyond the limit: %v", err)
		}
	}
	if !maps.Equal(clients, map[string]*Client{"c": c}) {
		t.Errorf("the clients are %v", clients)
	}
}

// What a secret proves is computed once for all who send it at a time, but not across a change
// of the clients: a secret that was taken away is wrong for whoever comes after that, and one
// that was added is right.
func TestNoComputationIsSharedAcrossAChangeOfTheClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := newClient("c", slowSecret(t, "old", memoryA, passesA))
		e := newEngine(t, nil, before)
		ask := func(secret string) <-chan Code {
			answer := make(chan Code, 1)
			go func() {
				var out Outcome
				_, err := e.authenticate(t.Context(), request(t, "c", secret, grantForm), &out)
				answer <- codeOf(err)
			}()
			synctest.Wait()
			return answer
		}
		release := e.cfg.Hasher.hold()
		oldBefore, newBefore := ask("old"), ask("new")
		e.set(before.with(func(c *Client) { c.Secrets = []*Secret{slowSecret(t, "new", memoryA, passesA)} }))
		oldAfter, newAfter := ask("old"), ask("new")
		release()
		for name, c := range map[string]struct {
			answer <-chan Code
			want   Code
		}{
			"the old secret, before": {oldBefore, ""}, "the new one, before": {newBefore, CodeInvalidClient},
			"the old secret, after": {oldAfter, CodeInvalidClient}, "the new one, after": {newAfter, ""},
		} {
			if code := <-c.answer; code != c.want {
				t.Errorf("%s the change: %q, want %q", name, code, c.want)
			}
		}
	})
}
