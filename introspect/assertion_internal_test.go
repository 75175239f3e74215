package introspect

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Whatever is wrong with an assertion, refusing it takes as long as for a client that nobody knows, or
// the time would tell who is registered.
func TestRefusedAssertionsTakeTheSameTime(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k"}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(file, set, 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := NewKeys(KeysConfig{Issuer: "client", KeysFile: file})
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	if err := keys.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	known, err := NewAssertions(AssertionsConfig{Keys: keys, Algorithms: []string{"ES256", "RS256"}})
	if err != nil {
		t.Fatal(err)
	}
	algorithms := append(known.Algorithms(), "PS256") // another client has that one
	encode := base64.RawURLEncoding.EncodeToString
	jwt := func(header, issuer string, signature int) string {
		claims := fmt.Sprintf(`{"iss":%q,"sub":"client","aud":"server","exp":%d,"jti":"1"}`, issuer, time.Now().Unix()+60)
		return encode([]byte(header)) + "." + encode([]byte(claims)) + "." + encode([]byte(strings.Repeat("s", signature)))
	}
	quickest := func(f func()) time.Duration {
		least := time.Duration(math.MaxInt64)
		for range 100 {
			begin := time.Now()
			f()
			least = min(least, time.Since(begin))
		}
		return least
	}
	for what, c := range map[string]struct {
		text  string
		cause Cause
	}{
		"a wrong signature":              {jwt(`{"alg":"ES256","kid":"k"}`, "client", 64), CauseSignature},
		"no kid":                         {jwt(`{"alg":"ES256"}`, "client", 64), CauseUnknownKey},
		"an unknown kid":                 {jwt(`{"alg":"ES256","kid":"x"}`, "client", 64), CauseUnknownKey},
		"a kid of a key of another kind": {jwt(`{"alg":"RS256","kid":"k"}`, "client", 256), CauseSignature},
		"another kind of key":            {jwt(`{"alg":"RS256"}`, "client", 256), CauseUnknownKey},
		"another issuer":                 {jwt(`{"alg":"ES256"}`, "other", 64), CauseIssuer},
		"another type":                   {jwt(`{"alg":"ES256","typ":"at+jwt"}`, "client", 64), CauseType},
		"another client's algorithm":     {jwt(`{"alg":"PS256"}`, "client", 256), CauseAlgorithm},
		"an algorithm of nobody":         {jwt(`{"alg":"ES512"}`, "client", 132), CauseAlgorithm},
	} {
		var cause Cause
		registered := quickest(func() { _, cause, err = known.Verify(context.Background(), c.text, algorithms) })
		if cause != c.cause || err != nil {
			t.Errorf("%s: %q, %v", what, cause, err)
		}
		nobody := quickest(func() { PretendToVerify(c.text, algorithms) })
		if registered > 3*nobody || nobody > 3*registered {
			t.Errorf("%s: %v for a client that is registered, %v for one that is not", what, registered, nobody)
		}
	}
}
