package verifiers

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"
)

var algorithms = []string{"ES256", "EdDSA", "RS256", "PS256"}

// realms returns options with a realm for each algorithm.
func realms() string {
	var b strings.Builder
	b.WriteString("issuer ISSUER\ntoken_format jwt\ntoken_lifetime 1h\n" + clients)
	for _, algorithm := range algorithms {
		b.WriteString("realm " + strings.ToLower(algorithm) + " {\nsigning {\nalgorithm " + algorithm + "\n}\n" + clients + "}\n")
	}
	return b.String()
}

// Everybody's library accepts the tokens, by each algorithm, for what they are, and for nothing else. The
// same holds for signed answers of introspection.
func TestTokensAreAccepted(t *testing.T) {
	f := startFleet(t, 1, "store memory\n"+realms())
	for _, algorithm := range algorithms {
		t.Run(algorithm, func(t *testing.T) {
			path := "/oauth2/realms/root/realms/" + strings.ToLower(algorithm)
			token, err := f.gateways[0].fetch(path)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := f.gateways[0].introspect(path, token)
			if err != nil {
				t.Fatal(err)
			}
			foreign, err := f.gateways[0].fetch("/oauth2")
			if err != nil {
				t.Fatal(err)
			}
			inBubble(t, func(t *testing.T, out outside) {
				want := issued{issuer: f.URL + path, set: f.URL + path + "/jwks", audience: audience, algorithms: []string{algorithm}}
				all := startVerifiers(t, out, want)
				wantsAll(t, all, token, want)
				wantsNone(t, "a token of another realm", all, foreign)
				parts := strings.Split(token, ".")
				payload, err := base64.RawURLEncoding.DecodeString(parts[1])
				if err != nil {
					t.Fatal(err)
				}
				other := base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(payload), `"scope":"read"`, `"scope":"root"`, 1)))
				wantsNone(t, "a token that was changed", all, parts[0]+"."+other+"."+parts[2])
				elsewhere := want
				elsewhere.audience = "https://other.example.com"
				wantsNone(t, "a token for another server", startVerifiers(t, out, elsewhere), token)
				wantsAll(t, all, token, want)

				answers := want
				answers.answer, answers.audience = true, "reader"
				wantsNone(t, "an answer of introspection", all, answer)
				for _, v := range []verifier{withJWX(t, t.Context(), out, answers), withJose(t, out, answers)} {
					claims, err := v.verify(answer)
					if err != nil {
						t.Errorf("%s refuses an answer: %v", v.name, err)
						continue
					}
					if said, ok := claims["token_introspection"].(map[string]any); !ok || said["active"] != true || said["client_id"] != "reader" {
						t.Errorf("%s reads %v", v.name, claims)
					}
					wantsNone(t, "an access token for an answer", []verifier{v}, token)
				}

				time.Sleep(time.Hour)
				wantsNone(t, "a token that has expired", all, token)
			})
		})
	}
}
