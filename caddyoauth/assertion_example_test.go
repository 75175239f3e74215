package caddyoauth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// The backends of examples/assertion let in whom the gateway tells them of, and nobody else: each
// check that they make refuses somebody.
func TestBackendsOfTheExampleVerifyAssertions(t *testing.T) {
	key := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	ours, others := key(), key()
	published := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/oauth2/jwks" {
			http.NotFound(w, r)
			return
		}
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: ours.Public(), KeyID: "one", Algorithm: "ES256", Use: "sig"}}})
	}))
	t.Cleanup(published.Close)
	issuer := published.URL + "/oauth2"
	sign := func(alg jose.SignatureAlgorithm, key any, typ string, claims map[string]any) string {
		t.Helper()
		options := new(jose.SignerOptions)
		if typ != "" {
			options = options.WithType(jose.ContentType(typ))
		}
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: "one"}}, options)
		if err != nil {
			t.Fatal(err)
		}
		payload, err := json.Marshal(claims)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := signer.Sign(payload)
		if err != nil {
			t.Fatal(err)
		}
		text, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	public := ours.Public().(*ecdsa.PublicKey)
	point, err := public.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ address, audience string }{
		"Go":   {startGo(t, "examples/assertion", "ISSUER="+issuer), "https://go.internal.example.com"},
		"Node": {startNode(t, "examples/assertion/server.mjs", "ISSUER="+issuer), "https://node.internal.example.com"},
	} {
		const typ = "oauth-assertion+jwt"
		claims := func(changed map[string]any) map[string]any {
			all := map[string]any{"iss": issuer, "aud": c.audience, "sub": "shop", "client_id": "shop", "scope": "a b", "realm": "root", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix()}
			maps.Copy(all, changed)
			maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
			return all
		}
		good := sign(jose.ES256, ours, typ, claims(nil))
		parts := strings.Split(good, ".")
		none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"one","typ":"oauth-assertion+jwt"}`))
		for what, tried := range map[string]struct {
			assertion string
			status    int
		}{
			"an assertion":                 {good, 200},
			"one for several":              {sign(jose.ES256, ours, typ, claims(map[string]any{"aud": []string{"other", c.audience}})), 200},
			"nothing":                      {"", 401},
			"text":                         {"shop", 401},
			"another key":                  {sign(jose.ES256, others, typ, claims(nil)), 401},
			"another algorithm":            {sign(jose.HS256, point, typ, claims(nil)), 401},
			"no algorithm":                 {none + "." + parts[1] + ".", 401},
			"no signature":                 {parts[0] + "." + parts[1] + ".", 401},
			"an access token":              {sign(jose.ES256, ours, "at+jwt", claims(nil)), 401},
			"an introspection answer":      {sign(jose.ES256, ours, "token-introspection+jwt", claims(nil)), 401},
			"no type":                      {sign(jose.ES256, ours, "", claims(nil)), 401},
			"another issuer":               {sign(jose.ES256, ours, typ, claims(map[string]any{"iss": issuer + "/realms/root/realms/other"})), 401},
			"no issuer":                    {sign(jose.ES256, ours, typ, claims(map[string]any{"iss": nil})), 401},
			"for another backend":          {sign(jose.ES256, ours, typ, claims(map[string]any{"aud": "https://other.internal.example.com"})), 401},
			"for nobody":                   {sign(jose.ES256, ours, typ, claims(map[string]any{"aud": nil})), 401},
			"of before":                    {sign(jose.ES256, ours, typ, claims(map[string]any{"exp": time.Now().Add(-time.Second).Unix()})), 401},
			"without an end":               {sign(jose.ES256, ours, typ, claims(map[string]any{"exp": nil})), 401},
			"the claims of somebody else":  {parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"client_id":"root"}`)) + "." + parts[2], 401},
			"an assertion, after all that": {good, 200},
		} {
			r, err := http.NewRequest("GET", "http://"+c.address+"/x", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("X-OAuth-Client-Id", "root")
			if tried.assertion != "" {
				r.Header.Set("X-OAuth-Assertion", tried.assertion)
			}
			g := &gateway{t: t, Client: newClient(t)}
			a := g.do(r)
			if want := map[int]string{200: name + " knows you, shop: you may a b.\n", 401: "Come through the gateway.\n"}[tried.status]; a.StatusCode != tried.status || a.Body != want {
				t.Errorf("%s, %s: %d %q", name, what, a.StatusCode, a.Body)
			}
		}
	}
}
