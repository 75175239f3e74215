package oauth

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// What is supposed of a client's token is what a lookup finds out about a real one, and is kept
// nowhere.
func TestASupposedTokenIsLikeARealOne(t *testing.T) {
	secret, err := PlainSecret(strings.Repeat("s", 40))
	if err != nil {
		t.Fatal(err)
	}
	client := newClient("c", secret)
	client.Audience = []string{"x", "y"}
	client.TokenLimit = Limit{Count: 1, Per: time.Hour}
	e := newEngine(t, nil, client)
	token, supposed, err := e.Suppose("c", []string{"a", "b"})
	if err != nil || !HasForm(token.Text()) {
		t.Fatalf("%v %v", token, err)
	}
	if e.store.puts.Load()+e.store.gets.Load() != 0 {
		t.Error("the store was asked")
	}
	form := map[string][]string{"grant_type": {GrantClientCredentials}, "scope": {"a b"}}
	grant, _, err := e.Token(t.Context(), request(t, "c", strings.Repeat("s", 40), form)) // the limit has not counted
	if err != nil {
		t.Fatal(err)
	}
	found, err := e.Tokens().Lookup(t.Context(), grant.Token)
	if err != nil {
		t.Fatal(err)
	}
	same := *supposed
	same.ID = found.ID
	if !reflect.DeepEqual(&same, found) {
		t.Errorf("supposed %+v, got %+v", supposed, found)
	}
	if facts, err := e.Tokens().Lookup(t.Context(), token.Text()); err != nil || facts.Active {
		t.Errorf("a supposed token is looked up as %+v, %v", facts, err)
	}
}

// A client that can have no token says why.
func TestSupposingSaysWhyThereIsNoToken(t *testing.T) {
	secret, err := PlainSecret(strings.Repeat("s", 40))
	if err != nil {
		t.Fatal(err)
	}
	old := *secret
	old.Until = time.Unix(1, 0)
	expired, introspects, off := newClient("expired", &old), newClient("introspects", secret), newClient("off", secret)
	introspects.GrantTypes, off.Disabled = nil, true
	e := newEngine(t, nil, newClient("c", secret), expired, introspects, off)
	for _, c := range []struct {
		client string
		scopes []string
		want   string
	}{
		{"nobody", []string{"a"}, "there is no client"},
		{"c", nil, "a token has at least one"},
		{"c", []string{"a", "z"}, "it may not have these scopes"},
		{"expired", []string{"a"}, "no secret that is accepted now"},
		{"introspects", []string{"a"}, "grant_types"},
	} {
		if _, _, err := e.Suppose(c.client, c.scopes); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %q: %v, want %q", c.client, c.scopes, err, c.want)
		}
	}
	if _, facts, err := e.Suppose("off", []string{"a"}); err != nil || facts.Active || facts.Cause() != introspect.CauseClientDisabled {
		t.Errorf("a disabled client: %+v %v", facts, err)
	}
	// Who proves itself in another way needs no secret.
	for _, method := range []string{AuthFederated, AuthPrivateKeyJWT, AuthTLS, AuthSelfSigned} {
		keyless := newClient("keyless")
		keyless.Auth = []string{method}
		if method == AuthFederated {
			keyless.Federated = []*Federated{{Issuer: "https://platform.example.com"}}
		}
		if _, facts, err := newEngine(t, nil, keyless).Suppose("keyless", []string{"a"}); err != nil || !facts.Active {
			t.Errorf("by %s: %+v %v", method, facts, err)
		}
	}
	apart := New(Settings{Realm: "r", Clients: map[string]*Client{"c": newClient("c", secret)}})
	if _, _, err := apart.Suppose("c", []string{"a"}); err == nil {
		t.Error("nothing has been shared")
	}
}
