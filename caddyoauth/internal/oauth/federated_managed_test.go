package oauth

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

// A platform vouches for managed clients also where no other client signs anything. It ends with the client.
func TestFederatedManagedClients(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	const issuer = "https://platform.example.com"
	platform := newSigner(t, issuer, func() time.Time { return now })
	e := newEngine(t, func(cfg *Settings) { cfg.Issuer = testIssuer }, newClient("secretive", quickSecret(t, "secret")))
	e.nanos.Store(now.UnixNano())
	wants := func(when, want string) {
		t.Helper()
		text := platform.assert(t, now, map[string]any{"sub": "job", "iat": now.Unix()})
		grant, out, err := e.Token(context.Background(), asserting(t, text))
		refused := (*Error)(nil)
		switch {
		case want == "" && (err != nil || grant.Token == "" || out.ClientID != "m" || out.Proof.Identity != issuer+" job"):
			t.Errorf("%s: %+v, %v", when, out, err)
		case want != "" && (!errors.As(err, &refused) || refused.Reason != want):
			t.Errorf("%s: %v, want %s", when, err, want)
		}
	}
	client := func(disabled bool) *Client {
		m := newClient("m")
		m.Auth, m.Disabled = []string{AuthFederated}, disabled
		m.Federated = []*Federated{{Issuer: issuer, Assertions: platform.Assertions, Subjects: []string{"job"}, Audience: []string{testIssuer}, MaxLifetime: time.Hour}}
		return m
	}
	set := func(m *Client) {
		t.Helper()
		clients := map[string]*Managed{"m": nil}
		if m != nil {
			clients["m"] = &Managed{Client: m, Version: 1, Generation: 1}
		}
		e.SetManaged(clients, false)
	}
	wants("before the client is there", "unknown_client")
	set(client(false))
	wants("once it is", "")
	if offers := e.ManagedOffers(); !slices.Equal(offers.Auth, []string{AuthFederated}) || !slices.Contains(offers.Algorithms, "ES256") || offers.CertificateBound {
		t.Errorf("the client offers %+v", offers)
	}
	set(client(true))
	wants("while it is disabled", "client_disabled")
	if offers := e.ManagedOffers(); len(offers.Auth)+len(offers.Algorithms) != 0 {
		t.Errorf("a client that is disabled offers %+v", offers)
	}
	set(client(false))
	wants("once it is enabled", "")
	e.SetClients(map[string]*Client{"m": newClient("m", quickSecret(t, "secret"))})
	wants("with a client of the configuration in its place", "unknown_client")
	e.SetClients(nil)
	wants("with that one gone", "")
	e.SetManaged(nil, true)
	wants("once it is gone", "unknown_client")
}
