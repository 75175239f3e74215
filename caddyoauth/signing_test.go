package caddyoauth_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/go-jose/go-jose/v4"

	"github.com/caddyoauth/gateway/caddyoauth"
)

// writeSigningKey makes a file with a new private key of P-256.
func writeSigningKey(t testing.TB, path string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// keySet fetches a JWK set as a verifier does, and returns its keys as JSON and as keys.
func (g *gateway) keySet(path string) (raw []map[string]any, set jose.JSONWebKeySet) {
	g.t.Helper()
	a := g.do(g.request("GET", path, ""))
	if a.StatusCode != 200 || a.Header.Get("Content-Type") != "application/json" || a.Header.Get("Cache-Control") != "public, max-age=600" || a.Header.Get("Access-Control-Allow-Origin") != "*" {
		g.t.Fatalf("%s: %d %v", path, a.StatusCode, a.Header)
	}
	var document struct{ Keys []map[string]any }
	if err := errors.Join(json.Unmarshal([]byte(a.Body), &document), json.Unmarshal([]byte(a.Body), &set)); err != nil {
		g.t.Fatal(err)
	}
	return document.Keys, set
}

// verified returns the claims of a token that a key of the set has signed, and nil for any other.
func verified(t testing.TB, token string, set jose.JSONWebKeySet) map[string]any {
	t.Helper()
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA, jose.RS256, jose.PS256})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range set.Key(jws.Signatures[0].Header.KeyID) {
		payload, err := jws.Verify(key)
		if err != nil {
			t.Errorf("the key of a token does not verify it: %v", err)
			continue
		}
		var claims map[string]any
		if err := json.Unmarshal(payload, &claims); err != nil {
			t.Error(err)
		}
		return claims
	}
	return nil
}

const jwtOptions = "issuer https://auth.example.com/oauth2\ntoken_format jwt\n"

// Everybody can fetch the public keys, and verify with them what the realm issues, by each of the
// algorithms. The documents say where they are, and hold nothing private.
func TestPublishedKeys(t *testing.T) {
	for algorithm, members := range map[string]string{
		"ES256": "alg crv kid kty use x y", "EdDSA": "alg crv kid kty use x", "RS256": "alg e kid kty n use", "PS256": "alg e kid kty n use",
	} {
		t.Run(algorithm, func(t *testing.T) {
			g := startGateway(t, "store memory\n"+jwtOptions+"signing {\nalgorithm "+algorithm+"\n}\n"+testClients+
				"realm beta {\nclient b {\nsecret_hash "+hashOf(testSecret)+"\nscopes read\ndefault_scopes read\n}\n}\n", gatewaySite)
			raw, set := g.keySet("/oauth2/connect/jwk_uri")
			if len(raw) != 1 || strings.Join(slices.Sorted(maps.Keys(raw[0])), " ") != members || raw[0]["use"] != "sig" || raw[0]["alg"] != algorithm {
				t.Errorf("the set is %v, want one key with %s", raw, members)
			}
			for _, path := range []string{"/oauth2/jwks", "/oauth2/realms/root/connect/jwk_uri"} {
				if other, _ := g.keySet(path); !reflect.DeepEqual(other, raw) {
					t.Errorf("%s has other keys: %v", path, other)
				}
			}
			_, beta := g.keySet("/oauth2/realms/root/realms/beta/jwks")
			token := g.token("reader")
			g.wants("a JWT", token, 200)
			claims := verified(t, token, set)
			if claims["iss"] != "https://auth.example.com/oauth2" || claims["client_id"] != "reader" || claims["aud"] != claims["iss"] {
				t.Errorf("the claims are %v", claims)
			}
			if verified(t, token, beta) != nil {
				t.Error("two realms have the same key")
			}
			if a := g.introspect("reader", token).json(t); a["jti"] != claims["jti"] || a["exp"] != claims["exp"] || a["iat"] != claims["iat"] || a["aud"] != nil {
				t.Errorf("introspection says %v of a token with %v", a, claims)
			}
			meta := g.do(g.request("GET", "/.well-known/oauth-authorization-server/oauth2", "")).json(t)
			if meta["jwks_uri"] != "https://auth.example.com/oauth2/connect/jwk_uri" {
				t.Errorf("the metadata says %v", meta["jwks_uri"])
			}
			head := g.do(g.request("HEAD", "/oauth2/jwks", ""))
			post := g.do(g.request("POST", "/oauth2/jwks", "a=b"))
			other := g.do(g.request("GET", "/oauth2/jwks?realm=/beta", ""))
			if head.StatusCode != 200 || head.Body != "" || post.StatusCode != 405 || post.Header.Get("Allow") != "GET, HEAD" || other.StatusCode != 400 {
				t.Errorf("HEAD is %d %q, POST %d, the keys of a realm that the path is not of %d", head.StatusCode, head.Body, post.StatusCode, other.StatusCode)
			}
		})
	}
}

// A realm that signs nothing has no keys to publish: the paths are the backend's.
func TestNoKeysToPublish(t *testing.T) {
	for name, options := range map[string]string{"opaque": "", "sealed": "token_format sealed\n"} {
		g := startGateway(t, "store memory\nissuer https://auth.example.com/oauth2\n"+options+testClients, "oauth_server\nreverse_proxy BACKEND")
		for _, path := range []string{"/oauth2/connect/jwk_uri", "/oauth2/jwks"} {
			if a := g.do(g.request("GET", path, "")); a.StatusCode != 200 || g.Backend.last(t).RequestURI != path {
				t.Errorf("%s: %s is %d", name, path, a.StatusCode)
			}
		}
		if meta := g.do(g.request("GET", "/.well-known/oauth-authorization-server/oauth2", "")).json(t); meta["jwks_uri"] != nil {
			t.Errorf("%s: the metadata says %v", name, meta["jwks_uri"])
		}
	}
	// With signing alone there are keys, whatever the tokens are.
	g := startGateway(t, "store memory\nissuer https://auth.example.com/oauth2\nsigning\n"+testClients, gatewaySite)
	if raw, _ := g.keySet("/oauth2/jwks"); len(raw) != 1 {
		t.Errorf("signing alone publishes %v", raw)
	}
}

// With keys from files it is the operator who rotates. A token is good while its key is there.
func TestKeyFiles(t *testing.T) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			first, second := filepath.Join(folder, "first.pem"), filepath.Join(folder, "second.pem")
			writeSigningKey(t, first)
			writeSigningKey(t, second)
			config := func(files string) string {
				if files != "" {
					files = "signing {\nkey_file " + files + "\n}\n"
				}
				return store + keyFiles(t, "key")["key"] + jwtOptions + files + testClients
			}
			g := startGateway(t, config(first), gatewaySite)
			_, old := g.keySet("/oauth2/jwks")
			tokens := []string{g.token("reader")}
			load := func(files string, published int) jose.JSONWebKeySet {
				t.Helper()
				if err := g.load(config(files), gatewaySite); err != nil {
					t.Fatal(err)
				}
				raw, set := g.keySet("/oauth2/jwks")
				if len(raw) != published {
					t.Errorf("with %q there are %d keys, want %d", files, len(raw), published)
				}
				tokens = append(tokens, g.token("reader"))
				g.wants("a new token", tokens[len(tokens)-1], 200)
				return set
			}
			load(first+" "+second, 2)
			if verified(t, tokens[1], old) == nil {
				t.Error("the second key signs")
			}
			set := load(second+" "+first, 2)
			if verified(t, tokens[2], set) == nil || verified(t, tokens[2], old) != nil {
				t.Error("the first key still signs")
			}
			g.wants("a token of the former key", tokens[0], 200)
			load(second, 1)
			g.wants("a token of a key that is gone", tokens[0], 401)
			g.wants("another of it, which was never used", tokens[1], 401)
			load("", 1) // a key that the gateway makes
			g.wants("a token of a file, when there is none", tokens[2], 401)
			load(first, 2) // and it stays while tokens of it may live
			for i, status := range []int{200, 200, 401, 401, 200, 200} {
				g.wants("after all that, token "+strconv.Itoa(i), tokens[i], status)
			}
			g.mustRevoke("reader", tokens[0])
			g.wants("a revoked token", tokens[0], 401)
		})
	}
}

// What would make JWTs unsafe or useless is refused when the configuration is loaded.
func TestSigningThatIsRefused(t *testing.T) {
	folder := t.TempDir()
	file := func(name string, mode os.FileMode, content string) string {
		t.Helper()
		path := filepath.Join(folder, name)
		if content == "" {
			writeSigningKey(t, path)
		} else if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	private := file("private.pem", 0o600, "")
	text, err := os.ReadFile(private)
	if err != nil {
		t.Fatal(err)
	}
	g := startGateway(t, "store memory\n"+testClients, gatewaySite)
	public, _ := json.Marshal(jose.JSONWebKey{Key: publicKey(t, text)})
	signing := func(lines string) string { return jwtOptions + "signing {\n" + lines + "\n}\n" }
	for what, c := range map[string]struct {
		config string
		parts  []string
	}{
		"no issuer":               {"token_format jwt\nsigning\nclient c {\nsecret_hash " + hashOf(testSecret) + "\n}\n", []string{`realm "root"`, "issuer"}},
		"no file":                 {signing("key_file " + folder + "/nothing.pem"), []string{"key_file", "nothing.pem", "no such file"}},
		"a file that others read": {signing("key_file " + file("open.pem", 0o644, "")), []string{"open.pem", "mode is 644", "chmod 600"}},
		"a public key first":      {signing("key_file " + file("public.json", 0o644, string(public))), []string{"public.json", "first key signs"}},
		"one key twice":           {signing("key_file " + private + " " + file("again.pem", 0o600, string(text))), []string{"again.pem", "private.pem has the same key"}},
		"no key":                  {signing("key_file " + file("text.pem", 0o600, "canary of a secret")), []string{"text.pem", "PEM"}},
		"one key for two realms":  {signing("key_file "+private) + "realm beta {\nsigning {\nkey_file " + private + "\n}\n}\n", []string{`"root"`, `"beta"`, "same key"}},
		"too many keys":           {"token_lifetime 90d\n" + signing("rotate 1h"), []string{"signing", "new keys each 1h0m0s are too many"}},
	} {
		clients := testClients
		if what == "no issuer" {
			clients = ""
		}
		// The test's own loader would add an issuer.
		config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(strings.ReplaceAll(caddyfileOf("store memory\n"+c.config+clients, gatewaySite), "BACKEND", "127.0.0.1:1")), nil)
		if err == nil {
			err = g.loadJSON(config)
		}
		if err == nil {
			t.Fatalf("%s: it loads", what)
		}
		for _, part := range c.parts {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v, want %q in it", what, err, part)
			}
		}
		if strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: the error quotes the file: %v", what, err)
		}
	}
	// Kubernetes gives a secret of root to a group that only this program is in.
	if err := g.load("store memory\n"+signing("key_file "+private)+testClients, gatewaySite); err != nil {
		t.Error(err)
	}
}

func publicKey(t testing.TB, private []byte) any {
	t.Helper()
	block, _ := pem.Decode(private)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*ecdsa.PrivateKey).Public()
}

// No dump of the configuration, no file of the store and no log holds a private key in clear, if
// there is an encryption key.
func TestPrivateKeysStayPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.db")
	g, logged := startLogged(t, "store bbolt "+path+"\n"+keyFiles(t, "key")["key"]+jwtOptions+testClients, gatewaySite)
	g.wants("a token", g.token("reader"), 200)
	if err := caddyoauth.CloseStore(); err != nil {
		t.Fatal(err)
	}
	stored, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(stored, []byte(`"sign":[{`)) {
		t.Error("the store has no signing key where this test looks for one")
	}
	for where, text := range map[string]string{"the store": string(stored), "the log": logged()} {
		for _, private := range []string{`"d":`, "PRIVATE KEY", "MIGHAgEAMBMGByqGSM49AgEG"} { // the beginning of PKCS #8 for P-256, in base64
			if strings.Contains(text, private) {
				t.Errorf("%s holds %q", where, private)
			}
		}
	}
}

// A JWT names the issuer. When the realm becomes another one, its JWTs are refused, whether or not they
// are in the cache. They are good again if it becomes the former one.
func TestJWTsOfAFormerIssuer(t *testing.T) {
	options := "store bbolt " + filepath.Join(t.TempDir(), "tokens.db") + "\n" + testClients
	g := startGateway(t, options+jwtOptions, gatewaySite)
	cached, unused := g.token("reader"), g.token("reader")
	g.wants("a token", cached, 200)
	if err := g.load(options+strings.Replace(jwtOptions, "auth.", "new.", 1), gatewaySite); err != nil {
		t.Fatal(err)
	}
	g.wants("of the former issuer, and cached", cached, 401)
	g.wants("of the former issuer", unused, 401)
	g.wants("of the new one", g.token("reader"), 200)
	if err := g.load(options+jwtOptions, gatewaySite); err != nil {
		t.Fatal(err)
	}
	g.wants("of the issuer of before", cached, 200)
	g.wants("of the issuer of before", unused, 200)
}
