package introspect_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// A program that accepts an issuer's JWTs verifies them with the keys that the issuer
// publishes. It puts a cache in front, so that each token is verified once.
func ExampleJWT() {
	// An issuer, which would be somebody else's.
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		fmt.Println(err)
		return
	}
	encode := base64.RawURLEncoding.EncodeToString
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"2030","use":"sig","x":%q}]}`, encode(public))
	}))
	defer issuer.Close()
	issue := func(audience string, scope string) string {
		claims, _ := json.Marshal(map[string]any{
			"iss": issuer.URL, "aud": audience, "client_id": "reporting", "sub": "reporting", "scope": scope,
			"exp": time.Now().Add(time.Hour).Unix(),
		})
		signed := encode([]byte(`{"typ":"at+jwt","alg":"EdDSA","kid":"2030"}`)) + "." + encode(claims)
		return signed + "." + encode(ed25519.Sign(private, []byte(signed)))
	}

	// The program.
	keys, err := introspect.NewKeys(introspect.KeysConfig{
		Issuer:  issuer.URL,
		JWKSURI: issuer.URL + "/jwks", // or Discovery: true
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer keys.Close()
	source, err := introspect.NewJWT(introspect.JWTConfig{Keys: keys, Audience: []string{"https://invoices.example"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer source.Close()
	cache, err := introspect.NewCache(introspect.CacheConfig{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cache.Close()
	tokens := cache.Wrap("jwt", source, time.Minute)

	mayRead := func(token string) string {
		facts, err := tokens.Lookup(context.Background(), token)
		switch {
		case err != nil:
			return "503" // the keys could not be fetched
		case !facts.Active:
			return "401"
		case !facts.HasScope("invoices:read"):
			return "403"
		}
		return "200 for " + facts.ClientID
	}
	good := issue("https://invoices.example", "invoices:read")
	fmt.Println(mayRead(good))
	fmt.Println(mayRead(issue("https://invoices.example", "invoices:write")))
	fmt.Println(mayRead(issue("https://payments.example", "invoices:read")))
	fmt.Println(mayRead(good[:len(good)-1]))
	// Output:
	// 200 for reporting
	// 403
	// 401
	// 401
}

// If tokens of several issuers arrive, each goes to the source of its issuer. That source
// decides whether the token really comes from there.
func ExampleToken_UnverifiedIssuer() {
	signed := introspect.NewToken("eyJhbGciOiJFUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"https://issuer.example"}`)) + ".c2ln")
	opaque := introspect.NewToken("coa_opaque")
	fmt.Printf("%q %q\n", signed.UnverifiedIssuer(), opaque.UnverifiedIssuer())
	// Output:
	// "https://issuer.example" ""
}
