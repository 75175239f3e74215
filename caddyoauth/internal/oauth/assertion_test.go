package oauth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
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

// forge makes a JWT of the claims of a good assertion with these changes. sign signs it; nil for the key
// of the client.
func (s signer) forge(t testing.TB, now time.Time, header, changes map[string]any, sign func([]byte) []byte) string {
	t.Helper()
	head := map[string]any{"alg": "ES256", "kid": "1"}
	maps.Copy(head, header)
	claims := map[string]any{"iss": s.ID, "sub": s.ID, "aud": testIssuer, "exp": now.Add(time.Minute).Unix(), "jti": rand.Text()}
	maps.Copy(claims, changes)
	var parts []string
	for _, part := range []map[string]any{head, claims} {
		maps.DeleteFunc(part, func(_ string, value any) bool { return value == nil })
		text, err := json.Marshal(part)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, base64.RawURLEncoding.EncodeToString(text))
	}
	input := strings.Join(parts, ".")
	if sign == nil {
		sign = s.sign
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(sign([]byte(input)))
}

func (s signer) sign(input []byte) []byte {
	digest := sha256.Sum256(input)
	r, v, err := ecdsa.Sign(rand.Reader, s.key, digest[:])
	if err != nil {
		panic(err)
	}
	return append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...)
}

// asserted returns the form of a request for a token by an assertion.
func asserted(assertion string, more ...string) url.Values {
	form := url.Values{"grant_type": {GrantClientCredentials}, "client_assertion_type": {AssertionType}, "client_assertion": {assertion}}
	for i := 0; i < len(more); i += 2 {
		form.Set(more[i], more[i+1])
	}
	return form
}

// asserting returns a request for a token by an assertion.
func asserting(t testing.TB, assertion string) Request {
	t.Helper()
	req, err := ParseRequest(Incoming{Body: asserted(assertion).Encode()})
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// NewSigner makes a client that authenticates by assertions, and returns what makes one with this ID.
func NewSigner(t testing.TB, id string) (client *Client, assert func(jti string) string) {
	s := newSigner(t, id, time.Now)
	s.TokenFormat = FormatOpaque
	return s.Client, func(jti string) string { return s.assert(t, time.Now(), map[string]any{"jti": jti}) }
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

// What other servers have got wrong about assertions, by what it means here. An attack has several
// requests, of which only those at the end of a line may succeed.
func TestKnownAttacksOnAssertions(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	clock := func() time.Time { return now }
	s, other := newSigner(t, "signer", clock), newSigner(t, "other", clock)
	secretive := newClient("secretive", quickSecret(t, "secret"))
	// It has a secret as well, which its methods don't allow.
	s.Secrets = []*Secret{quickSecret(t, "secret")}
	var called atomic.Int64
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called.Add(1) }))
	defer server.Close()

	publicKey, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	hmacBy := func(key []byte) func([]byte) []byte {
		return func(input []byte) []byte {
			h := hmac.New(sha256.New, key)
			h.Write(input)
			return h.Sum(nil)
		}
	}
	// An ECDSA signature has a twin that anybody can compute from it.
	twin := func(assertion string) string {
		head, signature := assertion[:strings.LastIndexByte(assertion, '.')+1], assertion[strings.LastIndexByte(assertion, '.')+1:]
		raw, err := base64.RawURLEncoding.DecodeString(signature)
		if err != nil {
			t.Fatal(err)
		}
		v := new(big.Int).Sub(elliptic.P256().Params().N, new(big.Int).SetBytes(raw[32:]))
		return head + base64.RawURLEncoding.EncodeToString(append(raw[:32:32], v.FillBytes(make([]byte, 32))...))
	}
	type claims = map[string]any
	once := s.forge(t, now, nil, nil, nil)
	for _, attack := range []struct {
		what     string
		requests []url.Values
		good     int // how many of the last requests succeed
	}{
		{"CVE-2020-15222 (fosite), CVE-2020-5300 (Hydra): an assertion is used again", []url.Values{asserted(once), asserted(once), asserted(once, "client_id", "signer")}, 0},
		{"... with the other signature that it has", []url.Values{asserted(twin(once))}, 0},
		{"... with its ID in another assertion", []url.Values{asserted(s.forge(t, now, nil, claims{"jti": "used", "exp": now.Add(2 * time.Minute).Unix()}, nil))}, 0},
		{"... without an ID", []url.Values{asserted(s.forge(t, now, nil, claims{"jti": nil}, nil)), asserted(s.forge(t, now, nil, claims{"jti": ""}, nil))}, 0},
		{"Keycloak 49215: one that is refused uses up nothing", []url.Values{
			asserted(s.forge(t, now, nil, claims{"jti": "spared"}, other.sign)),
			asserted(s.forge(t, now, nil, claims{"jti": "spared", "aud": "https://elsewhere.example"}, nil)),
			asserted(s.forge(t, now, nil, claims{"jti": "spared", "aud": []string{testIssuer, "https://elsewhere.example"}}, nil)),
			asserted(s.forge(t, now, nil, claims{"jti": "spared", "sub": "other"}, nil)),
			asserted(s.forge(t, now, nil, claims{"jti": "spared", "exp": now.Unix()}, nil)),
			asserted(s.forge(t, now, nil, claims{"jti": "spared", "exp": now.Add(time.Hour).Unix()}, nil)),
			asserted(s.forge(t, now, nil, claims{"jti": "spared", "nbf": now.Add(time.Minute).Unix()}, nil)),
			asserted(s.forge(t, now, nil, claims{"jti": "spared"}, nil)),
		}, 1},
		{"... nor do those of another client", []url.Values{asserted(other.forge(t, now, nil, claims{"jti": "used"}, nil))}, 1},
		{"CVE-2026-16093 (Keycloak): an assertion that proves nothing beside a secret that does", []url.Values{
			asserted("junk", "client_id", "secretive", "client_secret", "secret"),
			asserted(s.forge(t, now, nil, nil, other.sign), "client_id", "signer", "client_secret", "secret"),
			asserted(s.forge(t, now, nil, nil, nil), "client_id", "signer", "client_secret", "secret"),
			asserted(s.forge(t, now, nil, nil, nil), "client_id", "secretive"),
			asserted(secretiveAssertion(s, t, now)),
			{"grant_type": {GrantClientCredentials}, "client_id": {"signer"}, "client_secret": {"secret"}},
		}, 0},
		{"CVE-2026-11800 (Keycloak): the public key as a secret", []url.Values{
			asserted(s.forge(t, now, claims{"alg": "HS256"}, nil, hmacBy(publicKey))),
			asserted(s.forge(t, now, claims{"alg": "HS256"}, nil, hmacBy(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicKey})))),
			asserted(s.forge(t, now, claims{"alg": "HS256", "kid": nil}, nil, hmacBy(nil))),
		}, 0},
		{"... no signature, or one by another algorithm", []url.Values{
			asserted(s.forge(t, now, claims{"alg": "none"}, nil, func([]byte) []byte { return nil })),
			asserted(s.forge(t, now, claims{"alg": "NonE"}, nil, func([]byte) []byte { return nil })),
			asserted(s.forge(t, now, claims{"alg": "ES384"}, nil, nil)),
			asserted(s.forge(t, now, nil, nil, func([]byte) []byte { return make([]byte, 64) })), // CVE-2022-21449
		}, 0},
		{"CVE-2026-22752 (Spring), CVE-2026-55671 (ZITADEL): where the keys are, says the assertion", []url.Values{
			asserted(s.forge(t, now, claims{"jku": server.URL}, nil, other.sign)),
			asserted(s.forge(t, now, claims{"x5u": server.URL, "kid": server.URL}, nil, other.sign)),
			asserted(s.forge(t, now, claims{"jwk": jose.JSONWebKey{Key: other.key.Public(), KeyID: "1"}}, nil, other.sign)),
			asserted(s.forge(t, now, claims{"iss": server.URL}, claims{"iss": server.URL, "sub": server.URL}, other.sign)),
		}, 0},
		{"the audience is another server's, too (RFC 7523bis)", []url.Values{
			asserted(s.forge(t, now, nil, claims{"aud": testIssuer + "/access_token"}, nil)),
			asserted(s.forge(t, now, nil, claims{"aud": testIssuer + "/"}, nil)),
			asserted(s.forge(t, now, nil, claims{"aud": []string{testIssuer, testIssuer}}, nil)),
			asserted(s.forge(t, now, nil, claims{"aud": []string{testIssuer}}, nil)),
		}, 1},
	} {
		// What was used before is the same for all.
		e := newEngine(t, func(cfg *Settings) {
			cfg.Replays, cfg.Issuer = &replays{used: make(map[ReplayID]time.Time)}, testIssuer
		}, s.Client, other.Client, secretive)
		for _, used := range []string{once, s.forge(t, now, nil, claims{"jti": "used"}, nil)} {
			if _, _, err := e.Token(t.Context(), asserting(t, used)); err != nil {
				t.Fatal(err)
			}
		}
		for i, form := range attack.requests {
			want := i >= len(attack.requests)-attack.good
			req, err := ParseRequest(Incoming{Body: form.Encode()})
			if err == nil {
				_, _, err = e.Token(t.Context(), req)
			}
			if (err == nil) != want {
				t.Errorf("%s: request %d: %v", attack.what, i+1, err)
			}
			if err == nil {
				continue
			}
			// The same at the other endpoints.
			form.Set("token", "x")
			if req, err = ParseRequest(Incoming{Body: form.Encode()}); err != nil {
				continue
			}
			if _, _, err = e.Introspect(t.Context(), req); err == nil {
				t.Errorf("%s: request %d introspects", attack.what, i+1)
			}
			if _, err = e.Revoke(t.Context(), req); err == nil {
				t.Errorf("%s: request %d revokes", attack.what, i+1)
			}
		}
	}
	if called.Load() != 0 {
		t.Error("an assertion has made the server call another")
	}
}

// secretiveAssertion is an assertion about a client that has a secret and no keys.
func secretiveAssertion(s signer, t testing.TB, now time.Time) string {
	return s.forge(t, now, nil, map[string]any{"iss": "secretive", "sub": "secretive"}, nil)
}
