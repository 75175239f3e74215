package introspect

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Whatever is wrong with an assertion, refusing it takes as long as for a client that nobody knows, or
// the time would tell who is registered.
func TestRefusedAssertionsTakeTheSameTime(t *testing.T) {
	var set jose.JSONWebKeySet
	for _, kid := range []string{"k", "l", "m", "n", "o"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: key.Public(), KeyID: kid})
	}
	large, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range []struct {
		name   string
		keys   []jose.JSONWebKey
		causes map[string]Cause // where they differ from those of a client with keys of all kinds
	}{
		{"a client with one key", set.Keys[:1], nil},
		{"a client with five keys", set.Keys, nil},
		{"a client with keys without kid", []jose.JSONWebKey{{Key: set.Keys[0].Key}, {Key: set.Keys[1].Key}}, map[string]Cause{
			"a wrong signature": CauseUnknownKey, "a kid of a key of another kind": CauseUnknownKey,
		}},
		{"a client with two kinds of keys", append([]jose.JSONWebKey{{Key: large.Public(), KeyID: "r"}}, set.Keys[0]), nil},
	} {
		t.Run(one.name, func(t *testing.T) { refusalsTakeTheSameTime(t, one.keys, one.causes) })
	}
}

func refusalsTakeTheSameTime(t *testing.T, public []jose.JSONWebKey, causes map[string]Cause) {
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: public})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := NewKeys(KeysConfig{Issuer: "client", Set: string(set), Guarded: true})
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
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
		"a signature of a large key":     {jwt(`{"alg":"RS256","kid":"r"}`, "client", 512), ""},
		"a large signature":              {jwt(`{"alg":"RS256"}`, "client", 1024), CauseUnknownKey},
		"too large a signature":          {jwt(`{"alg":"RS256"}`, "client", 2048), CauseUnknownKey},
		"another kind of key":            {jwt(`{"alg":"RS256"}`, "client", 256), CauseUnknownKey},
		"another issuer":                 {jwt(`{"alg":"ES256"}`, "other", 64), CauseIssuer},
		"another type":                   {jwt(`{"alg":"ES256","typ":"at+jwt"}`, "client", 64), CauseType},
		"another client's algorithm":     {jwt(`{"alg":"PS256"}`, "client", 256), CauseAlgorithm},
		"an algorithm of nobody":         {jwt(`{"alg":"ES512"}`, "client", 132), CauseAlgorithm},
	} {
		// On a busy machine even the quickest of many may have been interrupted.
		for attempt := 1; ; attempt++ {
			var cause Cause
			registered := quickest(func() { _, cause, err = known.Verify(context.Background(), c.text, algorithms) })
			if want := cmp.Or(causes[what], c.cause); cause != want && want != "" || err != nil {
				t.Errorf("%s: %q, %v", what, cause, err)
			}
			nobody := quickest(func() { PretendToVerify(c.text, algorithms) })
			const parsing = 20 * time.Microsecond // with the race detector
			if registered*5 <= 8*nobody+5*parsing && nobody*5 <= 8*registered+5*parsing {
				break
			}
			if attempt == 20 {
				t.Errorf("%s: %v for a client that is registered, %v for one that is not", what, registered, nobody)
				break
			}
		}
	}
}

// An assertion is good only as it was signed, and nothing makes the verifier, or what pretends to be one,
// fail in another way.
func FuzzAssertion(f *testing.F) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: private.Public(), KeyID: "k"}}})
	if err != nil {
		f.Fatal(err)
	}
	now := time.Unix(2_000_000_000, 0)
	keys, err := NewKeys(KeysConfig{Issuer: "client", Set: string(set), Guarded: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(keys.Close)
	verifier, err := NewAssertions(AssertionsConfig{Keys: keys, Now: func() time.Time { return now }})
	if err != nil {
		f.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: private, KeyID: "k"}}, nil)
	if err != nil {
		f.Fatal(err)
	}
	signed := make(map[string]bool) // whether it is good
	for payload, good := range map[string]bool{
		`{"iss":"client","sub":"client","aud":"server","exp":2000000060,"jti":"1"}`:                         true,
		`{"iss":"client","sub":"client","aud":["server"],"exp":2e9,"jti":"1"}`:                              false,
		`{"iss":"client","sub":"client","aud":"server","exp":2000000060,"jti":"1","iss":"client"}`:          false,
		`{"iss":"other","sub":"client","aud":"server","exp":2000000060,"jti":"1"}`:                          false,
		`{"iss":"client","sub":"client","aud":"server","exp":2000000060.5,"nbf":2000000000,"jti":"\u0031"}`: true,
	} {
		jws, err := signer.Sign([]byte(payload))
		if err != nil {
			f.Fatal(err)
		}
		text, err := jws.CompactSerialize()
		if err != nil {
			f.Fatal(err)
		}
		signed[text] = good
		f.Add(text)
	}
	f.Add("eyJhbGciOiJub25lIn0.eyJpc3MiOiJjbGllbnQifQ.")
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, text string) {
		assertion, cause, err := verifier.Verify(t.Context(), text, DefaultAlgorithms())
		if err != nil || (assertion == nil) == (cause == "") {
			t.Fatalf("%q: %+v, %q, %v", text, assertion, cause, err)
		}
		if good := assertion != nil; good != signed[text] {
			t.Errorf("%q is good: %t, %q", text, good, cause)
		} else if good && (assertion.Issuer != "client" || assertion.ID != "1" || len(assertion.Audience) != 1 || !assertion.Expiry.After(now)) {
			t.Errorf("%q says %+v", text, assertion)
		}
		PretendToVerify(text, DefaultAlgorithms())
	})
}
