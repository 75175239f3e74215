package oauth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/caddyoauth/gateway/introspect"
)

const testIssuer = "https://auth.example.com/oauth2"

// replays is a ReplayStore in a map.
type replays struct {
	sync.Mutex
	used map[ReplayID]time.Time
	err  error // if it is set, nothing works
}

func (r *replays) Once(_ context.Context, id ReplayID, _ ClientRef, until time.Time) (bool, error) {
	r.Lock()
	defer r.Unlock()
	if r.err != nil {
		return false, r.err
	}
	if _, again := r.used[id]; again {
		return false, nil
	}
	r.used[id] = until
	return true, nil
}

// signer is a client that signs assertions.
type signer struct {
	*Client
	key *ecdsa.PrivateKey
}

func newSigner(t testing.TB, id string, now func() time.Time) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "1"}}})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := introspect.NewKeys(introspect.KeysConfig{Issuer: id, Set: string(set), Guarded: true, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	assertions, err := introspect.NewAssertions(introspect.AssertionsConfig{Keys: keys, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return signer{&Client{
		ID: id, Assertions: assertions, Auth: []string{AuthPrivateKeyJWT}, Scopes: []string{"read"}, DefaultScopes: []string{"read"},
		GrantTypes: []string{GrantClientCredentials}, TokenLifetime: time.Hour, Introspect: IntrospectOwn,
	}, key}
}

// assert signs an assertion, with these changes to a good one. A claim that is nil is left out.
func (s signer) assert(t testing.TB, now time.Time, changes map[string]any) string {
	t.Helper()
	claims := map[string]any{"iss": s.ID, "sub": s.ID, "aud": testIssuer, "exp": now.Add(time.Minute).Unix(), "jti": rand.Text()}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, value any) bool { return value == nil })
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	by, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: s.key, KeyID: "1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := by.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// asserting returns a request for a token by an assertion.
func asserting(t testing.TB, assertion string) Request {
	t.Helper()
	req, err := ParseRequest(Incoming{Body: url.Values{
		"grant_type": {GrantClientCredentials}, "client_assertion_type": {AssertionType}, "client_assertion": {assertion},
	}.Encode()})
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// What the store can't remember is no proof: a client that has used too much is told so, and otherwise
// nobody can tell.
func TestAssertionsThatCannotBeRemembered(t *testing.T) {
	used := &replays{used: make(map[ReplayID]time.Time)}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := newSigner(t, "signer", func() time.Time { return now })
	e := newEngine(t, func(cfg *Settings) { cfg.Replays, cfg.Issuer = used, testIssuer }, s.Client)
	for _, c := range []struct {
		err  error
		want string
	}{{nil, ""}, {ErrClientFull, "store_share"}, {fmt.Errorf("wrapped: %w", ErrClientFull), "store_share"}, {ErrFull, "no answer"}, {ErrUnreachable, "no answer"}} {
		used.err = c.err
		_, _, err := e.Token(context.Background(), asserting(t, s.assert(t, now, nil)))
		got := ""
		if refused := (*Error)(nil); errors.As(err, &refused) {
			got = refused.Reason
			if refused.Code != CodeTooManyRequests {
				t.Errorf("%v: %s", c.err, refused.Code)
			}
		} else if err != nil {
			got = "no answer"
		}
		if got != c.want {
			t.Errorf("the store says %v: %v, want %q", c.err, err, c.want)
		}
	}
}
