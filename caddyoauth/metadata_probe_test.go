package caddyoauth_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// jwsAlgorithms are all asymmetric algorithms that a JWT here may be signed by.
var jwsAlgorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"}

// signers has a key for each of jwsAlgorithms.
type signers map[string]crypto.Signer

func newSigners(t testing.TB) signers {
	t.Helper()
	must := func(key crypto.Signer, err error) crypto.Signer {
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	onCurve := func(curve elliptic.Curve) crypto.Signer {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		return must(key, err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(rsaKey, err)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	s := signers{"ES256": onCurve(elliptic.P256()), "ES384": onCurve(elliptic.P384()), "ES512": onCurve(elliptic.P521()), "EdDSA": must(edKey, err), "Ed25519": edKey}
	for _, alg := range jwsAlgorithms {
		if s[alg] == nil {
			s[alg] = rsaKey
		}
	}
	return s
}

// public is the JWK of the algorithm's key.
func (s signers) public(alg string) jose.JSONWebKey {
	return jose.JSONWebKey{Key: s[alg].Public(), KeyID: "of " + alg}
}

// sign signs a JWT by an algorithm, whether go-jose knows it or not.
func (s signers) sign(t testing.TB, alg string, header, claims map[string]any) string {
	t.Helper()
	header = maps.Clone(header)
	header["alg"] = alg
	part := func(v any) string {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(text)
	}
	signed := part(header) + "." + part(claims)
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[alg[2:]]
	var options crypto.SignerOpts = hash
	digest := []byte(signed)
	switch alg[:2] {
	case "Ed":
		options = crypto.Hash(0)
	case "PS":
		options = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	if alg[:2] != "Ed" {
		h := hash.New()
		h.Write(digest)
		digest = h.Sum(nil)
	}
	var signature []byte
	var err error
	if key, ok := s[alg].(*ecdsa.PrivateKey); ok {
		r, v, failed := ecdsa.Sign(rand.Reader, key, digest)
		size := (key.Params().BitSize + 7) / 8
		if err = failed; err == nil {
			signature = append(r.FillBytes(make([]byte, size)), v.FillBytes(make([]byte, size))...)
		}
	} else {
		signature, err = s[alg].Sign(rand.Reader, digest, options)
	}
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// credentials are what a request shows.
type credentials struct {
	certificates  []tls.Certificate
	authorization string
	form          url.Values
}

// Whatever the metadata says is so, at the endpoint that it says it of, and what it doesn't say is not.
// A new member, or a new method, needs a probe here.
func TestMetadataIsTrue(t *testing.T) {
	keys, ca, own, stranger := newSigners(t), newAuthority(t), selfSigned(t, "own"), selfSigned(t, "own")
	folder := t.TempDir()
	ownFile, jwks, curves := filepath.Join(folder, "own.pem"), filepath.Join(folder, "keys.json"), filepath.Join(folder, "curves.json")
	writeCertificates(t, ownFile, own)
	trusted := filepath.Join(folder, "trusted.pem")
	writeCertificates(t, trusted, own, stranger)
	for file, set := range map[string]jose.JSONWebKeySet{
		jwks:   {Keys: []jose.JSONWebKey{keys.public("RS256"), keys.public("ES256"), keys.public("EdDSA")}},
		curves: {Keys: []jose.JSONWebKey{keys.public("ES384"), keys.public("ES512")}},
	} {
		text, err := json.Marshal(set)
		if err != nil {
			t.Fatal(err)
		}
		replaceFile(t, file, text)
	}
	kids := map[string]string{"R": "of RS256", "P": "of RS256", "d": "of EdDSA"}
	assertion := func(issuer, alg string) string {
		client, kid := "key", kids[alg[:1]]
		switch {
		case strings.HasPrefix(alg, "Ed"):
			kid = kids["d"]
		case alg == "ES384" || alg == "ES512":
			client, kid = "curves", "of "+alg
		case kid == "":
			kid = "of " + alg
		}
		return keys.sign(t, alg, map[string]any{"kid": kid}, map[string]any{"iss": client, "sub": client, "aud": issuer, "exp": time.Now().Add(time.Minute).Unix(), "jti": rand.Text()})
	}
	byAssertion := func(text string) credentials {
		return credentials{form: url.Values{"client_assertion": {text}, "client_assertion_type": {assertionType}}}
	}
	secretOf := func(right bool) string {
		if right {
			return testSecret
		}
		return "wrong"
	}
	// The methods of client authentication that exist.
	methods := map[string]func(issuer string, right bool) credentials{
		"client_secret_basic": func(_ string, right bool) credentials {
			return credentials{authorization: basic("by-basic", secretOf(right))}
		},
		"client_secret_post": func(_ string, right bool) credentials {
			return credentials{form: url.Values{"client_id": {"by-post"}, "client_secret": {secretOf(right)}}}
		},
		"private_key_jwt": func(issuer string, right bool) credentials {
			text := assertion(issuer, "ES256")
			if !right {
				text = spoiled(text)
			}
			return byAssertion(text)
		},
		"tls_client_auth": func(_ string, right bool) credentials {
			host := map[bool]string{true: "ci.example.com", false: "other.example.com"}[right]
			return credentials{certificates: []tls.Certificate{ca.forHost(host)}, form: url.Values{"client_id": {"named"}}}
		},
		"self_signed_tls_client_auth": func(_ string, right bool) credentials {
			certificate := own
			if !right {
				certificate = stranger
			}
			return credentials{certificates: []tls.Certificate{certificate}, form: url.Values{"client_id": {"own"}}}
		},
	}
	client := func(id, lines string) string {
		return "client " + id + " {\nscopes read\ndefault_scopes read\n" + lines + "\n}\n"
	}
	secret := "secret_hash " + hashOf(testSecret) + "\n"
	alpha := ""
	for _, id := range []string{"by-basic", "by-post", "key", "curves", "named", "own"} { // as in root, with one method
		alpha += client(id, secret+"auth client_secret_basic")
	}
	g := startAsking(t, "store memory\nissuer "+testIssuer+"\nmtls_base_url https://mtls.example.com/oauth2\n"+noFailureLimit+
		client("by-basic", secret+"auth client_secret_basic\ntoken_format jwt")+client("by-post", secret+"auth client_secret_post")+
		client("key", "auth private_key_jwt\njwks_file "+jwks)+client("curves", "auth private_key_jwt\nassertion_algorithms ES384\njwks_file "+curves)+
		client("named", "auth tls_client_auth\ntls_client_auth san_dns ci.example.com\ncertificate_bound")+client("own", "auth self_signed_tls_client_auth\ncertificate_file "+ownFile)+
		"dpop\nauthorization_endpoint\nintrospect_scope read\nrealm alpha {\n"+alpha+"}\n",
		"oauth_server", "mode verify_if_given\ntrust_pool file "+ca.file+" "+trusted, "")
	pathOf := func(text any) string {
		t.Helper()
		u, err := url.Parse(fmt.Sprint(text))
		if err != nil || u.Host == "" {
			t.Fatalf("%v is no URL", text)
		}
		return u.Path
	}
	// forms are what the endpoints need beside credentials.
	forms := map[string]url.Values{"token": {"grant_type": {"client_credentials"}}, "introspection": {"token": {"x"}}, "revocation": {"token": {"x"}}}
	send := func(path, kind string, c credentials, headers ...string) answer {
		t.Helper()
		form := maps.Clone(forms[kind])
		maps.Copy(form, c.form)
		headers = append(headers, "Content-Type", "application/x-www-form-urlencoded")
		if c.authorization != "" {
			headers = append(headers, "Authorization", c.authorization)
		}
		by := g.with(c.certificates...)
		return by.do(by.request("POST", path, form.Encode(), headers...))
	}
	methods["Bearer"] = func(issuer string, right bool) credentials {
		token := "x"
		if right {
			base := "/oauth2" + strings.TrimPrefix(issuer, testIssuer)
			token = wantToken(t, send(base+"/token", "token", methods["client_secret_basic"](issuer, true)), "read")
		}
		return credentials{authorization: "Bearer " + token}
	}
	waitUntil(t, "the clients' keys are read", func() bool {
		for _, alg := range []string{"ES256", "ES384"} {
			if send("/oauth2/token", "token", byAssertion(assertion(testIssuer, alg))).StatusCode != 200 {
				return false
			}
		}
		return true
	})

	probed := make(map[string]bool)
	for issuer, path := range map[string]string{testIssuer: wellKnown + "/oauth2", testIssuer + alphaSuffix: wellKnown + "/oauth2" + alphaSuffix} {
		var document map[string]any
		if err := json.Unmarshal([]byte(g.with().get(path, "").Body), &document); err != nil {
			t.Fatal(err)
		}
		list := func(member string) (all []string) {
			for _, value := range document[member].([]any) {
				all = append(all, value.(string))
			}
			return all
		}
		// A method or an algorithm is in the list if, and only if, it works.
		probe := func(member string, all []string, try func(value string) answer) {
			for _, value := range list(member) {
				if !slices.Contains(all, value) {
					t.Errorf("%s: %s has %s, which nothing here probes", issuer, member, value)
				}
			}
			for _, value := range all {
				if a := try(value); (a.StatusCode == 200) != slices.Contains(list(member), value) {
					t.Errorf("%s: %s is %s, and with %s the answer is %d %s", issuer, member, list(member), value, a.StatusCode, a.Body)
				}
			}
		}
		endpoints := map[string]string{"token": pathOf(document["token_endpoint"]), "introspection": pathOf(document["introspection_endpoint"]), "revocation": pathOf(document["revocation_endpoint"])}
		for member, value := range document {
			probed[member] = true
			kind, about, _ := strings.Cut(member, "_endpoint")
			switch {
			case endpoints[kind] != "" && about == "":
				if a := send(endpoints[kind], kind, methods["client_secret_basic"](issuer, true)); a.StatusCode != 200 {
					t.Errorf("%s: %s answers %d", issuer, member, a.StatusCode)
				}
			case endpoints[kind] != "" && about == "_auth_methods_supported":
				probe(member, slices.Sorted(maps.Keys(methods)), func(method string) answer {
					if a := send(endpoints[kind], kind, methods[method](issuer, false)); a.StatusCode != 401 {
						t.Errorf("%s: wrong credentials by %s get %d at the %s endpoint", issuer, method, a.StatusCode, kind)
					}
					return send(endpoints[kind], kind, methods[method](issuer, true))
				})
			case endpoints[kind] != "" && about == "_auth_signing_alg_values_supported":
				probe(member, jwsAlgorithms, func(alg string) answer {
					return send(endpoints[kind], kind, byAssertion(assertion(issuer, alg)))
				})
			case member == "issuer":
				if value != issuer {
					t.Errorf("the issuer is %v, want %s", value, issuer)
				}
			case member == "authorization_endpoint":
				if a := g.with().get(pathOf(value), ""); a.StatusCode != 400 || a.json(t)["error"] != "unsupported_response_type" {
					t.Errorf("%s: the authorization endpoint answers %d %s", issuer, a.StatusCode, a.Body)
				}
			case member == "response_types_supported":
				if len(list(member)) != 0 {
					t.Errorf("%s: it has response types: %v", issuer, value)
				}
			case member == "grant_types_supported":
				probe(member, []string{"client_credentials", "authorization_code", "refresh_token", "password", "urn:ietf:params:oauth:grant-type:jwt-bearer"}, func(grant string) answer {
					c := methods["client_secret_basic"](issuer, true)
					c.form = url.Values{"grant_type": {grant}}
					return send(endpoints["token"], "token", c)
				})
			case member == "jwks_uri":
				if keys, _ := g.with().get(pathOf(value), "").json(t)["keys"].([]any); len(keys) == 0 {
					t.Errorf("%s: the key set is empty", issuer)
				}
			case member == "introspection_signing_alg_values_supported":
				a := send(endpoints["introspection"], "introspection", methods["client_secret_basic"](issuer, true), "Accept", "application/token-introspection+jwt")
				header, _ := base64.RawURLEncoding.DecodeString(strings.SplitN(a.Body, ".", 2)[0])
				if len(list(member)) != 1 || !bytes.Contains(header, []byte(`"alg":"`+list(member)[0]+`"`)) {
					t.Errorf("%s: an answer is signed by %s, and the metadata has %s", issuer, header, list(member))
				}
			case member == "dpop_signing_alg_values_supported":
				probe(member, jwsAlgorithms, func(alg string) answer {
					proof := func(nonce string) string {
						key := jose.JSONWebKey{Key: keys[alg].Public()}
						claims := map[string]any{"jti": rand.Text(), "htm": "POST", "htu": document["token_endpoint"], "iat": time.Now().Unix()}
						maps.Copy(claims, withNonce(nonce))
						return keys.sign(t, alg, map[string]any{"typ": "dpop+jwt", "jwk": key}, claims)
					}
					a := send(endpoints["token"], "token", methods["client_secret_basic"](issuer, true), "DPoP", proof(""))
					if nonce := a.Header.Get("DPoP-Nonce"); nonce != "" && a.StatusCode != 200 {
						a = send(endpoints["token"], "token", methods["client_secret_basic"](issuer, true), "DPoP", proof(nonce))
					}
					if a.StatusCode == 200 && a.json(t)["token_type"] != "DPoP" {
						t.Errorf("%s: a proof by %s is ignored: %s", issuer, alg, a.Body)
					}
					return a
				})
			case member == "tls_client_certificate_bound_access_tokens":
				c := methods["tls_client_auth"](issuer, true)
				token, _ := send(endpoints["token"], "token", c).json(t)["access_token"].(string)
				c.form = url.Values{"client_id": {"named"}, "token": {token}}
				if cnf, _ := send(endpoints["introspection"], "introspection", c).json(t)["cnf"].(map[string]any); value != true || cnf["x5t#S256"] != thumbprint(c.certificates[0]) {
					t.Errorf("%s: %s is %v, and the token is bound to %v", issuer, member, value, cnf)
				}
			case member == "mtls_endpoint_aliases":
				for alias, text := range value.(map[string]any) {
					kind := strings.TrimSuffix(alias, "_endpoint")
					if endpoints[kind] == "" || pathOf(text) != endpoints[kind] {
						t.Errorf("%s: there is nothing at the alias %s, %v", issuer, alias, text)
					}
				}
			default:
				t.Errorf("%s: nothing here probes %s", issuer, member)
			}
		}
	}
	for _, member := range []string{
		"authorization_endpoint", "jwks_uri", "introspection_signing_alg_values_supported", "token_endpoint_auth_signing_alg_values_supported", "revocation_endpoint_auth_signing_alg_values_supported",
		"introspection_endpoint_auth_signing_alg_values_supported", "dpop_signing_alg_values_supported", "tls_client_certificate_bound_access_tokens", "mtls_endpoint_aliases",
	} {
		if !probed[member] {
			t.Errorf("no document has %s", member)
		}
	}
}
