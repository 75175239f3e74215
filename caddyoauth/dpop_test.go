package caddyoauth_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// prover makes the DPoP proofs of one client.
type prover struct {
	t      testing.TB
	signer jose.Signer
	jkt    string // the thumbprint of its key
}

func newProver(t testing.TB) *prover {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{EmbedJWK: true}).WithType("dpop+jwt"))
	if err != nil {
		t.Fatal(err)
	}
	digest, err := (&jose.JSONWebKey{Key: key.Public()}).Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return &prover{t, signer, base64.RawURLEncoding.EncodeToString(digest)}
}

// proof makes a proof with a jti of its own, for a token if that is not empty, and with these changes. A
// change to nil removes a claim.
func (p *prover) proof(method, url, token string, changes map[string]any) string {
	p.t.Helper()
	claims := map[string]any{"jti": rand.Text(), "htm": method, "htu": url, "iat": time.Now().Unix()}
	if token != "" {
		digest := sha256.Sum256([]byte(token))
		claims["ath"] = base64.RawURLEncoding.EncodeToString(digest[:])
	}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, value any) bool { return value == nil })
	text, err := json.Marshal(claims)
	if err != nil {
		p.t.Fatal(err)
	}
	jws, err := p.signer.Sign(text)
	if err != nil {
		p.t.Fatal(err)
	}
	proof, err := jws.CompactSerialize()
	if err != nil {
		p.t.Fatal(err)
	}
	return proof
}

// insisting sends what make makes of a nonce, which is empty at first, and once more if the answer demands
// another. So do client libraries.
func (g *gateway) insisting(make func(nonce string) *http.Request) answer {
	g.t.Helper()
	return g.patiently(func() answer {
		a := g.do(make(""))
		if nonce := a.Header.Get("DPoP-Nonce"); nonce != "" && a.StatusCode >= 400 {
			a = g.do(make(nonce))
		}
		return a
	})
}

// withNonce returns the change that adds a nonce.
func withNonce(nonce string) map[string]any {
	if nonce == "" {
		return nil
	}
	return map[string]any{"nonce": nonce}
}

// proving returns a token request with proofs.
func (g *gateway) proving(id string, proofs ...string) *http.Request {
	r := g.posting("/oauth2/access_token", id, testSecret, url.Values{"grant_type": {"client_credentials"}, "scope": {"read"}})
	r.Header["Dpop"] = proofs
	return r
}

// boundToken fetches a token that is bound to p's key, at the endpoint of this issuer.
func (g *gateway) boundToken(p *prover, issuer, id string) string {
	g.t.Helper()
	a := g.insisting(func(nonce string) *http.Request {
		return g.proving(id, p.proof("POST", issuer+"/access_token", "", withNonce(nonce)))
	})
	token, _ := a.json(g.t)["access_token"].(string)
	if a.StatusCode != 200 || token == "" || a.json(g.t)["token_type"] != "DPoP" {
		g.t.Fatalf("no bound token for %s: %d %s", id, a.StatusCode, a.Body)
	}
	return token
}

const dpopIssuer = "https://auth.example.com/oauth2"

// A token that was fetched with a proof says so, whatever its format and wherever it is kept.
func TestTokensBoundByDPoP(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			strict := "client strict {\nsecret_hash " + testHash + "\nscopes read\ndpop required\n}\n"
			g := startGateway(t, v.options(t)+"issuer "+dpopIssuer+"\n"+testClients+strict, "oauth_server\noauth_protect\nreverse_proxy BACKEND")
			p := newProver(t)
			token := g.boundToken(p, dpopIssuer, "strict")
			about := g.introspect("strict", token).json(t)
			if cnf, _ := about["cnf"].(map[string]any); len(cnf) != 1 || cnf["jkt"] != p.jkt || about["token_type"] != "DPoP" {
				t.Errorf("introspection says %v", about)
			}
			if v.format == "jwt" {
				payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
				if err != nil || !strings.Contains(string(payload), `"cnf":{"jkt":"`+p.jkt+`"}`) {
					t.Errorf("%s, %v", payload, err)
				}
			}
			for range 2 { // the second is warm
				if a := g.get("/", token); a.StatusCode != 401 {
					t.Errorf("as a bearer token: %d", a.StatusCode)
				}
			}
			// Others may, and need not.
			g.boundToken(p, dpopIssuer, "reader")
			if a := g.fetch("reader"); a.json(t)["token_type"] != "Bearer" {
				t.Errorf("without a proof: %s", a.Body)
			}
		})
	}
}

func TestDPoPAtTheTokenEndpoint(t *testing.T) {
	strict := "client strict {\nsecret_hash " + testHash + "\nscopes read\ndpop required\n}\n"
	g := startGateway(t, "store memory\nissuer "+dpopIssuer+"\n"+testClients+strict, "oauth_server")
	p := newProver(t)
	const at = dpopIssuer + "/access_token"
	// Its time says that it is younger than the gateway, as soon as that is a second old.
	young := map[string]any{"iat": time.Now().Unix() + 10}
	fresh := func(changes map[string]any) string {
		all := maps.Clone(young)
		maps.Copy(all, changes)
		return p.proof("POST", at, "", all)
	}
	waitUntil(t, "a proof can be younger than the gateway", func() bool {
		young["iat"] = time.Now().Unix() + 10
		return g.do(g.proving("reader", fresh(nil))).StatusCode == 200
	})
	used := fresh(nil)
	if a := g.do(g.proving("reader", used)); a.StatusCode != 200 || a.Header.Get("DPoP-Nonce") != "" {
		t.Fatalf("%d %s", a.StatusCode, a.Body)
	}
	for what, c := range map[string]struct {
		id, path string
		proofs   []string
		status   int
		error    string
	}{
		"again":                         {"reader", "", []string{used}, 400, "invalid_dpop_proof"},
		"by another client, again":      {"writer", "", []string{used}, 400, "invalid_dpop_proof"},
		"two":                           {"reader", "", []string{fresh(nil), fresh(nil)}, 400, "invalid_dpop_proof"},
		"one and an empty one":          {"reader", "", []string{fresh(nil), ""}, 400, "invalid_dpop_proof"},
		"an empty one":                  {"reader", "", []string{""}, 400, "invalid_dpop_proof"},
		"no JWT":                        {"reader", "", []string{"x"}, 400, "invalid_dpop_proof"},
		"none, which is needed":         {"strict", "", nil, 400, "invalid_dpop_proof"},
		"another method":                {"reader", "", []string{fresh(map[string]any{"htm": "GET"})}, 400, "invalid_dpop_proof"},
		"another URL":                   {"reader", "", []string{fresh(map[string]any{"htu": "https://evil.example/oauth2/access_token"})}, 400, "invalid_dpop_proof"},
		"the address that was called":   {"reader", "", []string{fresh(map[string]any{"htu": g.URL + "/oauth2/access_token"})}, 400, "invalid_dpop_proof"},
		"introspection's URL":           {"reader", "", []string{fresh(map[string]any{"htu": dpopIssuer + "/introspect"})}, 400, "invalid_dpop_proof"},
		"an hour early":                 {"reader", "", []string{fresh(map[string]any{"iat": time.Now().Unix() + 3600})}, 400, "invalid_dpop_proof"},
		"an hour late":                  {"reader", "", []string{fresh(map[string]any{"iat": time.Now().Unix() - 3600})}, 400, "invalid_dpop_proof"},
		"older than the gateway":        {"reader", "", []string{fresh(map[string]any{"iat": time.Now().Unix() - 30})}, 400, "use_dpop_nonce"},
		"an unknown client's":           {"nobody", "", []string{"x"}, 401, "invalid_client"},
		"the other name of the path":    {"reader", "", []string{fresh(map[string]any{"htu": dpopIssuer + "/token"})}, 200, ""},
		"the explicit name of root":     {"reader", "", []string{fresh(map[string]any{"htu": dpopIssuer + "/realms/root/access_token/"})}, 200, ""},
		"another spelling":              {"reader", "", []string{fresh(map[string]any{"htu": "HTTPS://AUTH.example.com:443/oauth2/%61ccess_token?x#y"})}, 200, ""},
		"a token that is of no concern": {"reader", "", []string{fresh(map[string]any{"ath": "x"})}, 200, ""},
		"strict's own":                  {"strict", "", []string{fresh(nil)}, 200, ""},
	} {
		r := g.proving(c.id, c.proofs...)
		r.Host = "evil.example"
		a := g.do(r)
		object := a.json(t)
		if got, _ := object["error"].(string); a.StatusCode != c.status || got != c.error {
			t.Errorf("%s: %d %s", what, a.StatusCode, a.Body)
		}
		if (a.Header.Get("DPoP-Nonce") != "") != (c.error == "use_dpop_nonce") || a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", what, a.Header)
		}
		if description, _ := object["error_description"].(string); strings.Contains(description, "again") || strings.Contains(description, "used") {
			t.Errorf("%s: %s tells too much", what, description)
		}
	}
	var meta struct {
		Algorithms []string `json:"dpop_signing_alg_values_supported"`
	}
	if err := json.Unmarshal([]byte(g.get("/.well-known/oauth-authorization-server/oauth2", "").Body), &meta); err != nil || len(meta.Algorithms) != 5 {
		t.Errorf("metadata: %v, %v", meta, err)
	}
}

// Where nobody has asked for DPoP, proofs are ignored, as they always were.
func TestNoDPoP(t *testing.T) {
	g := startGateway(t, "store memory\nissuer "+dpopIssuer+"\n"+testClients, "oauth_server\noauth_protect\nreverse_proxy BACKEND")
	if a := g.do(g.proving("reader", "x", "y")); a.json(t)["token_type"] != "Bearer" || a.StatusCode != 200 {
		t.Errorf("%d %s", a.StatusCode, a.Body)
	}
	if a := g.get("/.well-known/oauth-authorization-server/oauth2", ""); strings.Contains(a.Body, "dpop") {
		t.Errorf("metadata: %s", a.Body)
	}
	token := g.token("reader")
	a := g.do(g.request("GET", "/", "", "Authorization", "DPoP "+token, "DPoP", "x"))
	if got := a.Header["Www-Authenticate"]; a.StatusCode != 401 || len(got) != 1 || got[0] != `Bearer realm="root"` {
		t.Errorf("%d %q", a.StatusCode, got)
	}
}

// With nonce, each proof must have one that the gateway gave out. A new one comes along before the old one
// ends.
func TestDPoPNonceAtTheTokenEndpoint(t *testing.T) {
	g := startGateway(t, "store memory\nissuer "+dpopIssuer+"\ndpop {\nnonce 1m\n}\n"+testClients, "oauth_server")
	p := newProver(t)
	const at = dpopIssuer + "/access_token"
	a := g.do(g.proving("reader", p.proof("POST", at, "", nil)))
	nonce := a.Header.Get("DPoP-Nonce")
	if a.StatusCode != 400 || a.json(t)["error"] != "use_dpop_nonce" || nonce == "" || a.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %s", a.StatusCode, a.Body)
	}
	for range 2 { // it is good for several proofs
		if a := g.do(g.proving("reader", p.proof("POST", at, "", withNonce(nonce)))); a.StatusCode != 200 {
			t.Errorf("%d %s", a.StatusCode, a.Body)
		}
	}
	if a := g.do(g.proving("reader", p.proof("POST", at, "", withNonce(spoiled(nonce))))); a.StatusCode != 400 || a.Header.Get("DPoP-Nonce") == "" {
		t.Errorf("%d %s", a.StatusCode, a.Body)
	}
	if a := g.do(g.proving("nobody", p.proof("POST", at, "", nil))); a.StatusCode != 401 || a.Header.Get("DPoP-Nonce") != "" {
		t.Errorf("a stranger gets no nonce: %d %s", a.StatusCode, a.Body)
	}
	if a := g.fetch("reader"); a.json(t)["token_type"] != "Bearer" {
		t.Errorf("without a proof: %s", a.Body)
	}
	// A reload ends none, and tokens are still bearer tokens without a proof.
	if err := g.load("store memory\nissuer "+dpopIssuer+"\ndpop {\nnonce 2m\n}\n"+testClients, "oauth_server"); err != nil {
		t.Fatal(err)
	}
	if a := g.do(g.proving("reader", p.proof("POST", at, "", withNonce(nonce)))); a.StatusCode != 200 {
		t.Errorf("after a reload: %d %s", a.StatusCode, a.Body)
	}
}

func TestDPoPSettingsThatAreRefused(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server")
	strict := "client strict {\nsecret_hash " + testHash + "\nscopes read\ndpop required\n}\n"
	for what, c := range map[string]struct{ config, part string }{
		"a client without an issuer": {strict, "dpop needs an issuer"},
		"a realm without an issuer":  {"dpop\nrealm a {\n" + testClients + "}\n", "dpop needs an issuer"},
	} {
		if err := g.load("store memory\n"+c.config, "oauth_server"); err == nil || !strings.Contains(err.Error(), c.part) {
			t.Errorf("%s: %v, not %q", what, err, c.part)
		}
	}
	for what, c := range map[string]struct{ json, part string }{
		"a client": {`{"realms":{"root":{"issuer":"https://a.example","clients":{"a":{"dpop":"perhaps"}}}}}`, "unknown dpop 'perhaps' (known: required)"},
		"max_age":  {`{"dpop":{"max_age":"1h"}}`, "max_age must be between"},
		"a nonce":  {`{"dpop":{"nonce_lifetime":"1s"}}`, "nonce must be between"},
		"no key":   {`{"dpop":{"algorithms":["none"]}}`, "must be one of"},
	} {
		if err := g.loadJSON([]byte(`{"admin":{"disabled":true},"apps":{"oauth":` + c.json + `}}`)); err == nil || !strings.Contains(err.Error(), c.part) {
			t.Errorf("%s: %v, not %q", what, err, c.part)
		}
	}
	// A gateway that only takes tokens from elsewhere may have dpop without an issuer.
	if err := g.load("store memory\ndpop\n", "respond ok"); err != nil {
		t.Error(err)
	}
}
