package caddyoauth_test

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const signedAnswer = "application/token-introspection+jwt"

// introspectSigned asks a realm about a token, and for a signed answer.
func (g *gateway) introspectSigned(base, id, token string) answer {
	g.t.Helper()
	r := g.posting(base+"/introspect", id, testSecret, url.Values{"token": {token}})
	r.Header.Set("Accept", signedAnswer)
	return g.do(r)
}

// signedClaims checks a signed answer as RFC 9701 has it and returns what it says, as JSON.
func signedClaims(t testing.TB, a answer, set jose.JSONWebKeySet) string {
	t.Helper()
	for name, want := range map[string]string{"Content-Type": signedAnswer, "Cache-Control": "no-store", "Pragma": "no-cache", "X-Content-Type-Options": "nosniff", "Vary": "Accept"} {
		if got := a.Header[name]; len(got) != 1 || got[0] != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	jws, err := jose.ParseSignedCompact(a.Body, []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA, jose.RS256, jose.PS256})
	if err != nil || a.StatusCode != 200 {
		t.Fatalf("%d %s: %v", a.StatusCode, a.Body, err)
	}
	found := set.Key(jws.Signatures[0].Header.KeyID)
	if len(found) != 1 {
		t.Fatalf("%d published keys have the ID of the answer", len(found))
	}
	payload, err := jws.Verify(found[0])
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ := strings.Cut(a.Body, ".")
	raw, err := base64.RawURLEncoding.DecodeString(text)
	var header map[string]any
	if err != nil || json.Unmarshal(raw, &header) != nil {
		t.Fatalf("the header is %q: %v", raw, err)
	}
	if want := (map[string]any{"alg": found[0].Algorithm, "kid": found[0].KeyID, "typ": "token-introspection+jwt"}); !reflect.DeepEqual(header, want) {
		t.Errorf("the header is %v, want %v", header, want)
	}
	return string(payload)
}

// A signed answer says to each caller about each token just what the answer in JSON says, in whatever
// store, cache and format the token is. It is no token itself.
func TestSignedIntrospection(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			options := v.options(t)
			if !strings.Contains(options, "encryption_key") {
				options += keyFiles(t, "key")["key"]
			}
			signing := "issuer " + testIssuer + "\nsigning\n"
			g := startGateway(t, options+signing+askers()+"realm alpha {\n"+askers()+"}\n", "oauth_server\noauth_protect root\nreverse_proxy BACKEND")
			_, root := g.keySet("/oauth2/jwks")
			_, alpha := g.keySet(alphaBase + "/jwks")
			revoked := g.fetchAt("/oauth2", "maker", "a")
			g.revoke("maker", revoked)
			tokens := map[string]string{
				"maker": g.fetchAt("/oauth2", "maker", "a b c"), "stranger": g.fetchAt("/oauth2", "stranger", "a"),
				"resource": g.fetchAt("/oauth2", "resource", "a c"), "alpha maker": g.fetchAt(alphaBase, "maker", "a b c"),
				"revoked": revoked, "garbage": "garbage",
			}
			active := 0
			for range 2 { // the second time from the cache, if there is one
				for of, token := range tokens {
					for _, caller := range []string{"maker", "stranger", "resource", "orders", "elsewhere", "admin"} {
						for base, set := range map[string]jose.JSONWebKeySet{"/oauth2": root, alphaBase: alpha} {
							plain := g.introspectAt(base, caller, token)
							wantHeaders(t, plain)
							before := time.Now().Unix()
							payload := signedClaims(t, g.introspectSigned(base, caller, token), set)
							after := time.Now().Unix()
							var said struct {
								Iss, Aud string
								Iat      int64
							}
							if err := json.Unmarshal([]byte(payload), &said); err != nil {
								t.Fatal(err)
							}
							issuer := testIssuer + strings.TrimPrefix(base, "/oauth2")
							want := `{"iss":"` + issuer + `","aud":"` + caller + `","iat":`
							if rest, ok := strings.CutPrefix(payload, want); !ok || strings.TrimLeft(rest, "0123456789") != `,"token_introspection":`+plain.Body+"}" {
								t.Errorf("%s asks %s about the token of %s: %s, want %s and then %s", caller, base, of, payload, want, plain.Body)
							}
							if said.Iat < before || said.Iat > after {
								t.Errorf("iat is %d, from %d to %d", said.Iat, before, after)
							}
							if strings.Contains(plain.Body, `"active":true`) {
								active++
							} else if plain.Body != `{"active":false}` {
								t.Errorf("the answer in JSON is %s", plain.Body)
							}
						}
					}
				}
			}
			if active != 2*(4+2+2+4) {
				t.Errorf("%d answers were active", active)
			}

			// Here and in the other realm the answer is no token.
			jwt := g.introspectSigned("/oauth2", "maker", tokens["maker"]).Body
			g.wants("an answer in the place of a token", jwt, 401)
			for _, base := range []string{"/oauth2", alphaBase} {
				if a := g.introspectAt(base, "admin", jwt); a.Body != `{"active":false}` {
					t.Errorf("%s says of an answer: %s", base, a.Body)
				}
				if a := g.post(base+"/revoke", "maker", testSecret, url.Values{"token": {jwt}}); a.StatusCode != 200 || a.Body != "{}" {
					t.Errorf("revoking an answer: %d %s", a.StatusCode, a.Body)
				}
			}
			g.wants("the token that it was about", tokens["maker"], 200)
		})
	}
}

// Answers are signed by the key that signs tokens, and the metadata tells by which algorithm.
func TestAlgorithmOfSignedIntrospection(t *testing.T) {
	folder := t.TempDir()
	writeSigningKey(t, filepath.Join(folder, "first.pem"))
	writeSigningKey(t, filepath.Join(folder, "second.pem"))
	files := "key_file " + filepath.Join(folder, "first.pem") + " " + filepath.Join(folder, "second.pem")
	for option, algorithm := range map[string]string{
		"": "ES256", "algorithm ES256": "ES256", "algorithm EdDSA": "EdDSA", "algorithm RS256": "RS256", "algorithm PS256": "PS256", files: "ES256",
	} {
		t.Run(option, func(t *testing.T) {
			g := startGateway(t, "store memory\n"+jwtOptions+"signing {\n"+option+"\n}\n"+testClients, gatewaySite)
			_, set := g.keySet("/oauth2/jwks")
			token := g.token("reader")
			jwt := g.introspectSigned("/oauth2", "reader", token)
			signedClaims(t, jwt, set)
			parsed, err := jose.ParseSignedCompact(jwt.Body, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(algorithm)})
			if err != nil {
				t.Fatal(err)
			}
			tokens, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(algorithm)})
			if err != nil || tokens.Signatures[0].Header.KeyID != parsed.Signatures[0].Header.KeyID {
				t.Errorf("the token and the answer are from two keys: %v", err)
			}
			meta := g.do(g.request("GET", wellKnown+"/oauth2", "")).json(t)
			if got := meta["introspection_signing_alg_values_supported"]; !reflect.DeepEqual(got, []any{algorithm}) {
				t.Errorf("the metadata says %v", got)
			}
		})
	}
}

// Realms that don't sign answer in JSON, as does every realm to those who don't ask for a JWT, and
// the other endpoints. So are all refusals.
func TestIntrospectionThatIsNotSigned(t *testing.T) {
	g := startGateway(t, "store memory\nissuer "+testIssuer+"\ntoken_format sealed\n"+testClients+
		"realm beta {\nsigning\nclient b {\nsecret_hash "+hashOf(testSecret)+"\nscopes read\ndefault_scopes read\n}\n}\n", "oauth_server")
	const beta = "/oauth2/realms/root/realms/beta"
	a := g.introspectSigned("/oauth2", "reader", g.token("reader"))
	wantHeaders(t, a)
	if a.json(t)["active"] != true || a.Header["Vary"] != nil {
		t.Errorf("a realm without keys answers %s, Vary %q", a.Body, a.Header["Vary"])
	}
	if meta := g.do(g.request("GET", wellKnown+"/oauth2", "")).json(t); meta["introspection_signing_alg_values_supported"] != nil {
		t.Errorf("the metadata of a realm without keys says %v", meta)
	}

	ask := func(path, secret string, form url.Values, accept ...string) answer {
		r := g.posting(beta+path, "b", secret, form)
		r.Header["Accept"] = accept
		return g.do(r)
	}
	token := g.fetchAt(beta, "b", "read")
	about := url.Values{"token": {token}}
	for _, accept := range [][]string{nil, {"*/*"}, {"application/*"}, {"application/json"}, {"text/html"}, {signedAnswer + ";q=0"}, {"application/jwt"}} {
		a := ask("/introspect", testSecret, about, accept...)
		wantHeaders(t, a)
		if a.json(t)["active"] != true || !slices.Equal(a.Header["Vary"], []string{"Accept"}) {
			t.Errorf("Accept %q is answered with %s, Vary %q", accept, a.Body, a.Header["Vary"])
		}
	}
	wantE401(t, ask("/introspect", "wrong-secret", about, signedAnswer), "beta", token)
	wantE(t, ask("/introspect", testSecret, url.Values{}, signedAnswer), 400, "invalid_request")
	wantE(t, ask("/introspect?realm=/alpha", testSecret, about, signedAnswer), 400, "invalid_request", token)
	wantE(t, g.do(g.request("GET", beta+"/introspect", "", "Accept", signedAnswer)), 405, "invalid_request")
	wantToken(t, ask("/token", testSecret, url.Values{"grant_type": {"client_credentials"}}, signedAnswer), "read")
	wantHeaders(t, ask("/revoke", testSecret, about, signedAnswer))
}

// A caller that verifies an answer with a library for JWTs finds what it is for, and the next one that
// it is shown to finds that it is not meant.
func TestSignedIntrospectionNamesItsCaller(t *testing.T) {
	g := startGateway(t, "store memory\n"+jwtOptions+askers(), "oauth_server")
	_, set := g.keySet("/oauth2/jwks")
	token := g.fetchAt("/oauth2", "maker", "a b")
	ids := make(map[string]bool)
	for _, caller := range []string{"maker", "orders", "admin"} {
		var said map[string]any
		if err := json.Unmarshal([]byte(signedClaims(t, g.introspectSigned("/oauth2", caller, token), set)), &said); err != nil {
			t.Fatal(err)
		}
		if said["aud"] != caller {
			t.Errorf("an answer to %s is for %v", caller, said["aud"])
		}
		if members := slices.Sorted(maps.Keys(said)); !slices.Equal(members, []string{"aud", "iat", "iss", "token_introspection"}) {
			t.Errorf("an answer has %v", members)
		}
		about, _ := said["token_introspection"].(map[string]any)
		if about["active"] != true || about["client_id"] != "maker" {
			t.Errorf("%s is told %v", caller, about)
		}
		ids[about["jti"].(string)] = true
	}
	if len(ids) != 1 {
		t.Errorf("the token is called %v", ids)
	}
}
