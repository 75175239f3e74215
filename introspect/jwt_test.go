package introspect_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/caddyoauth/gateway/introspect"
)

const issuerName = "https://issuer.example/tenant"

// signingKey signs tokens with nothing but the standard library, so that the source is not
// tested against its own JOSE library.
type signingKey struct {
	kid, alg string
	private  crypto.Signer
}

var hashes = map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}

// signature signs input with alg, whatever the key is meant for.
func (k signingKey) signature(alg string, input []byte) []byte {
	if alg == "EdDSA" {
		return must(k.private.Sign(nil, input, crypto.Hash(0)))
	}
	hash := hashes[alg[2:]]
	h := hash.New()
	h.Write(input)
	digest := h.Sum(nil)
	switch private := k.private.(type) {
	case *rsa.PrivateKey:
		if alg[:2] == "PS" {
			return must(rsa.SignPSS(rand.Reader, private, hash, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}))
		}
		return must(rsa.SignPKCS1v15(rand.Reader, private, hash, digest))
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, private, digest)
		if err != nil {
			panic(err)
		}
		size := (private.Curve.Params().BitSize + 7) / 8
		return append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
	}
	panic("no such key")
}

// token signs exactly this header and payload.
func (k signingKey) token(header, payload string) string {
	input := b64(header) + "." + b64(payload)
	return input + "." + b64(string(k.signature(k.alg, []byte(input))))
}

// issue signs claims as an access token.
func (k signingKey) issue(claims claims) string {
	return k.token(fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"at+jwt"}`, k.alg, k.kid), claims.json())
}

// jwk returns the public key with changes. A change to nil removes a member.
func (k signingKey) jwk(changes claims) claims {
	var jwk claims
	switch public := k.private.Public().(type) {
	case *rsa.PublicKey:
		jwk = claims{"kty": "RSA", "n": b64(string(public.N.Bytes())), "e": b64(string(big.NewInt(int64(public.E)).Bytes()))}
	case *ecdsa.PublicKey:
		point := must(public.Bytes())[1:]
		jwk = claims{"kty": "EC", "crv": public.Params().Name, "x": b64(string(point[:len(point)/2])), "y": b64(string(point[len(point)/2:]))}
	case ed25519.PublicKey:
		jwk = claims{"kty": "OKP", "crv": "Ed25519", "x": b64(string(public))}
	}
	jwk["kid"], jwk["alg"], jwk["use"] = k.kid, k.alg, "sig"
	return jwk.with(changes)
}

type claims map[string]any

func (c claims) with(changes claims) claims {
	c = maps.Clone(c)
	for name, value := range changes {
		if value == nil {
			delete(c, name)
		} else {
			c[name] = value
		}
	}
	return c
}

func (c claims) json() string { return string(must(json.Marshal(c))) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// Keys take long to generate, so all tests share them.
var (
	rsaKey  = sync.OnceValue(func() crypto.Signer { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	p256Key = sync.OnceValue(func() crypto.Signer { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	p384Key = sync.OnceValue(func() crypto.Signer { return must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) })
	p521Key = sync.OnceValue(func() crypto.Signer { return must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)) })
	edKey   = sync.OnceValue(newEdKey)
)

func newEdKey() crypto.Signer {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	return must(private, err)
}

func keyFor(alg string) signingKey {
	private := edKey
	switch alg {
	case "ES256":
		private = p256Key
	case "ES384":
		private = p384Key
	case "ES512":
		private = p521Key
	default:
		if alg != "EdDSA" {
			private = rsaKey
		}
	}
	return signingKey{kid: "kid of " + alg, alg: alg, private: private()}
}

func jwks(keys ...claims) string { return claims{"keys": keys}.json() }

// keyServer publishes a key set and counts the requests for it.
type keyServer struct {
	*httptest.Server
	requests atomic.Int64
	answer   atomic.Pointer[http.HandlerFunc]
}

func newKeyServer(t testing.TB, set string) *keyServer {
	s := &keyServer{}
	s.publish(set)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		(*s.answer.Load())(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *keyServer) do(answer http.HandlerFunc) { s.answer.Store(&answer) }

func (s *keyServer) publish(set string) {
	s.do(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, set) })
}

// jwtSettings are those of a source and of keys for it alone.
type jwtSettings struct {
	Issuer                               string // default: issuerName
	Discovery                            bool
	JWKSURI, KeysFile, Set               string
	RefreshInterval, MinRefresh, Timeout time.Duration
	Header                               http.Header
	TLS                                  *tls.Config
	Now                                  func() time.Time // default: start, forever
	OnFetch                              func(kind string, took time.Duration, err error)
	OnSend                               func(*http.Request) func(int, string)
	OnKeys                               func(n int, ignored []introspect.IgnoredKey)
	Algorithms, Audience                 []string
	ClientClaims, ScopeClaims            []string
	Type                                 string
	Leeway                               time.Duration
	AcceptBound                          bool
	Guarded                              bool
	PrivateHosts                         []string

	network http.RoundTripper
}

// overNetwork returns s with another network.
func overNetwork(s jwtSettings, network http.RoundTripper) jwtSettings {
	s.network = network
	return s
}

func (s jwtSettings) keys() (*introspect.Keys, error) {
	if s.Issuer == "" {
		s.Issuer = issuerName
	}
	cfg := introspect.KeysConfig{
		Issuer: s.Issuer, Discovery: s.Discovery, JWKSURI: s.JWKSURI, KeysFile: s.KeysFile, Set: s.Set, MinRefresh: s.MinRefresh,
		Timeout: s.Timeout, Header: s.Header, TLS: s.TLS, Now: s.Now, OnFetch: s.OnFetch, OnSend: s.OnSend, OnKeys: s.OnKeys,
		Guarded: s.Guarded, PrivateHosts: s.PrivateHosts,
	}
	if s.network != nil {
		cfg = introspect.WithTransport(cfg, s.network)
	}
	return introspect.NewKeys(cfg)
}

func (s jwtSettings) source(keys *introspect.Keys) (*introspect.JWT, error) {
	return introspect.NewJWT(introspect.JWTConfig{
		Keys: keys, Algorithms: s.Algorithms, Audience: s.Audience, Type: s.Type, Leeway: s.Leeway,
		RefreshInterval: s.RefreshInterval, AcceptBound: s.AcceptBound, Now: s.Now, ClientClaims: s.ClientClaims, ScopeClaims: s.ScopeClaims,
	})
}

func newKeys(t testing.TB, s jwtSettings) *introspect.Keys {
	t.Helper()
	if s.Now == nil {
		s.Now = (&clocks{}).now
	}
	keys, err := s.keys()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	return keys
}

// newJWT creates a source with keys of its own.
func newJWT(t testing.TB, s jwtSettings) *introspect.JWT {
	t.Helper()
	return newJWTOf(t, newKeys(t, s), s)
}

func newJWTOf(t testing.TB, keys *introspect.Keys, s jwtSettings) *introspect.JWT {
	t.Helper()
	if s.Now == nil {
		s.Now = (&clocks{}).now
	}
	j, err := s.source(keys)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.Close)
	return j
}

// goodClaims are the claims of an access token that is good for an hour.
func goodClaims() claims {
	return claims{
		"iss": issuerName, "sub": "alice", "client_id": "reporting", "aud": "api", "scope": "read write",
		"iat": start.Unix(), "exp": start.Add(time.Hour).Unix(), "jti": "1",
	}
}

// mayPass reports whether j accepts token. An error fails the test.
func mayPass(t testing.TB, j *introspect.JWT, token string) bool {
	t.Helper()
	facts, err := j.Lookup(context.Background(), introspect.NewToken(token))
	if err != nil {
		t.Errorf("%.300s: %v", token, err)
		return false
	}
	if _, ok := j.Screen(introspect.NewToken(token)); facts.Active && !ok {
		t.Errorf("%.300s is active, but Screen refuses it", token)
	}
	if !facts.Active && facts != introspect.InactiveBecause(facts.Cause()) {
		t.Errorf("%.300s is inactive, but has facts: %+v", token, facts)
	}
	return facts.Active
}

func TestJWTFacts(t *testing.T) {
	algorithms := []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
	var set []claims
	for _, alg := range algorithms {
		set = append(set, keyFor(alg).jwk(nil))
	}
	j := newJWT(t, jwtSettings{JWKSURI: newKeyServer(t, jwks(set...)).URL, Algorithms: algorithms, Audience: []string{"other", "api"}})
	for _, alg := range algorithms {
		token := keyFor(alg).issue(goodClaims().with(claims{"aud": []string{"web", "api"}, "scope": "read write read", "level": 7}))
		facts, err := j.Lookup(t.Context(), introspect.NewToken(token))
		if err != nil || !facts.Active {
			t.Errorf("%s: %+v, %v", alg, facts, err)
			continue
		}
		if facts.ID != introspect.IDOf(token) || facts.Subject != "alice" || facts.ClientID != "reporting" ||
			facts.Issuer != issuerName || !slices.Equal(facts.Scopes, []string{"read", "write"}) ||
			!slices.Equal(facts.Audience, []string{"web", "api"}) || !facts.IssuedAt.Equal(start) ||
			!facts.Expiry.Equal(start.Add(time.Hour)) || !slices.Equal(facts.ClaimValues("level"), []string{"7"}) {
			t.Errorf("%s: %+v", alg, facts)
		}
		if j.Revise(facts) != facts {
			t.Errorf("%s: Revise changes facts although their key is current", alg)
		}
	}
}

// Issuers put the client and the scopes into different claims.
func TestJWTClaimsOfIssuers(t *testing.T) {
	key := keyFor("EdDSA")
	j := newJWT(t, jwtSettings{JWKSURI: newKeyServer(t, jwks(key.jwk(nil))).URL})
	for _, c := range []struct {
		name    string
		changes claims
		client  string
		scopes  []string
	}{
		{"RFC 9068", nil, "reporting", []string{"read", "write"}},
		{"azp", claims{"client_id": nil, "azp": "billing"}, "billing", []string{"read", "write"}},
		{"client_id and azp agree", claims{"azp": "reporting"}, "reporting", []string{"read", "write"}},
		{"appid of Entra ID v1", claims{"client_id": nil, "appid": "billing"}, "billing", []string{"read", "write"}},
		{"cid of Okta", claims{"client_id": nil, "cid": "billing"}, "billing", []string{"read", "write"}},
		{"azp before vendors' names", claims{"client_id": nil, "azp": "billing", "appid": "a", "cid": "b"}, "billing", []string{"read", "write"}},
		{"a customer's ID beside client_id", claims{"cid": 17}, "reporting", []string{"read", "write"}},
		{"client_id empty or null", claims{"client_id": "", "azp": json.RawMessage("null"), "cid": "billing"}, "billing", []string{"read", "write"}},
		{"a name that only options can choose", claims{"client_id": nil, "client": "billing"}, "", []string{"read", "write"}},
		{"no client", claims{"client_id": nil}, "", []string{"read", "write"}},
		{"scope as a list", claims{"scope": []string{"read", "write"}}, "reporting", []string{"read", "write"}},
		{"scp as a list", claims{"scope": nil, "scp": []string{"read"}}, "reporting", []string{"read"}},
		{"scp as a string", claims{"scope": nil, "scp": "read write"}, "reporting", []string{"read", "write"}},
		{"scope before scp", claims{"scp": "admin"}, "reporting", []string{"read", "write"}},
		{"nulls", claims{"client_id": json.RawMessage("null"), "azp": json.RawMessage("null"), "sub": json.RawMessage("null"), "nbf": json.RawMessage("null"),
			"iat": json.RawMessage("null"), "aud": json.RawMessage("null"), "scope": json.RawMessage("null"), "at_hash": json.RawMessage("null"), "typ": json.RawMessage("null")}, "", nil},
		{"scope null, but not scp", claims{"scope": json.RawMessage("null"), "scp": "read"}, "reporting", []string{"read"}},
		{"numbers as names", claims{"client_id": 42, "sub": json.RawMessage("12345678901234567890123")}, "42", []string{"read", "write"}},
		{"one scope with a space", claims{"scope": []string{"read admin", "write"}}, "reporting", []string{"write"}},
		{"one scope with an accent", claims{"scope": "lire \u00e9crire read"}, "reporting", []string{"lire", "read"}},
		{"one scope with a line break", claims{"scope": "read\nadmin write"}, "reporting", []string{"write"}},
		{"one scope with a tab, quotes, a backslash", claims{"scope": nil, "scp": []string{"read\tadmin", "\"read\"", "a\\b", "write"}}, "reporting", []string{"write"}},
		{"an empty scope is no reason to look at scp", claims{"scope": "", "scp": "admin"}, "reporting", nil},
		{"no scope", claims{"scope": nil}, "reporting", nil},
	} {
		facts, err := j.Lookup(t.Context(), introspect.NewToken(key.issue(goodClaims().with(c.changes))))
		if err != nil || !facts.Active || facts.ClientID != c.client || !slices.Equal(facts.Scopes, c.scopes) {
			t.Errorf("%s: %+v, %v", c.name, facts, err)
		}
	}
}

// The configuration may say which claims name the client and the scopes.
func TestJWTChosenClaims(t *testing.T) {
	key := keyFor("EdDSA")
	server := newKeyServer(t, jwks(key.jwk(nil)))
	for _, c := range []struct {
		name            string
		clients, scopes []string
		changes         claims
		client          string
		want            []string
	}{
		{"client of Oracle", []string{"client"}, nil, claims{"client": "billing"}, "billing", []string{"read", "write"}},
		{"the subject", []string{"sub"}, nil, nil, "alice", []string{"read", "write"}},
		{"the first one present", []string{"cid", "azp", "client_id"}, nil, claims{"azp": "billing"}, "billing", []string{"read", "write"}},
		{"none present", []string{"cid", "appid"}, nil, nil, "", []string{"read", "write"}},
		{"inside an object", []string{"kubernetes.io.serviceaccount.name"}, nil, claims{"kubernetes.io": claims{"serviceaccount": claims{"name": "loader"}}}, "loader", []string{"read", "write"}},
		{"roles of Entra ID", nil, []string{"roles"}, claims{"roles": []string{"Orders.Read", "Orders.Write"}}, "reporting", []string{"Orders.Read", "Orders.Write"}},
		{"permissions of Auth0", nil, []string{"permissions", "scope"}, claims{"permissions": []string{"read:orders"}}, "reporting", []string{"read:orders"}},
		{"the next name", nil, []string{"permissions", "scope"}, nil, "reporting", []string{"read", "write"}},
		{"an empty list counts as present", nil, []string{"permissions", "scope"}, claims{"permissions": []string{}}, "reporting", nil},
		{"roles of a client of Keycloak", nil, []string{"resource_access.com.example.orders.roles"}, claims{"resource_access": claims{"com.example.orders": claims{"roles": []string{"writer"}}}}, "reporting", []string{"writer"}},
		{"roles of Zitadel", nil, []string{"urn:zitadel:iam:org:project:roles"}, claims{"urn:zitadel:iam:org:project:roles": claims{"admin": claims{"1": "x"}, "gone": nil}}, "reporting", []string{"admin"}},
		{"a string under another name", nil, []string{"scopes"}, claims{"scopes": "a b a"}, "reporting", []string{"a", "b"}},
	} {
		j := newJWT(t, jwtSettings{ClientClaims: c.clients, ScopeClaims: c.scopes, JWKSURI: server.URL})
		facts, err := j.Lookup(t.Context(), introspect.NewToken(key.issue(goodClaims().with(c.changes))))
		if err != nil || !facts.Active || facts.ClientID != c.client || !slices.Equal(facts.Scopes, c.want) {
			t.Errorf("%s: %+v, %v", c.name, facts, err)
		}
		if got := facts.ClaimValues("client_id"); c.client != "" && !slices.Equal(got, []string{c.client}) || !slices.Equal(facts.ClaimValues("scope"), c.want) {
			t.Errorf("%s: rules see the client %q and the scopes %q", c.name, got, facts.ClaimValues("scope"))
		}
	}
	for name, changes := range map[string]claims{
		"client in a list":     {"client": []string{"billing"}},
		"client an object":     {"client": claims{"billing": true}},
		"roles a number":       {"roles": 7},
		"too many roles":       {"roles": slices.Repeat([]string{"r"}, 1001)},
		"roles a boolean":      {"roles": true},
		"client a boolean":     {"client": true},
		"five thousand spaces": {"roles": strings.Repeat(" ", 5000)},
	} {
		j := newJWT(t, jwtSettings{ClientClaims: []string{"client"}, ScopeClaims: []string{"roles"}, JWKSURI: server.URL})
		if mayPass(t, j, key.issue(goodClaims().with(changes))) {
			t.Errorf("%s: good", name)
		}
	}
}

func TestJWTConfigIsChecked(t *testing.T) {
	good := jwtSettings{Issuer: issuerName, JWKSURI: "https://issuer.example/jwks"}
	for name, change := range map[string]func(*jwtSettings){
		"a pattern as issuer":         func(c *jwtSettings) { c.Issuer = "https://*.example/tenant" },
		"a template as issuer":        func(c *jwtSettings) { c.Issuer = "https://issuer.example/{tenantid}" },
		"no keys":                     func(c *jwtSettings) { c.JWKSURI = "" },
		"keys from two places":        func(c *jwtSettings) { c.KeysFile = "keys.json" },
		"keys over http":              func(c *jwtSettings) { c.JWKSURI = "http://issuer.example/jwks" },
		"keys from a fake localhost":  func(c *jwtSettings) { c.JWKSURI = "http://localhost.example/jwks" },
		"keys from a file URL":        func(c *jwtSettings) { c.JWKSURI = "file:///etc/keys" },
		"keys with a password":        func(c *jwtSettings) { c.JWKSURI = "https://a:b@issuer.example/jwks" },
		"discovery without a URL":     func(c *jwtSettings) { c.JWKSURI, c.Discovery, c.Issuer = "", true, "issuer" },
		"discovery with a query":      func(c *jwtSettings) { c.JWKSURI, c.Discovery, c.Issuer = "", true, issuerName+"?a=b" },
		"discovery over http":         func(c *jwtSettings) { c.JWKSURI, c.Discovery, c.Issuer = "", true, "http://issuer.example" },
		"algorithm none":              func(c *jwtSettings) { c.Algorithms = []string{"RS256", "none"} },
		"algorithm HS256":             func(c *jwtSettings) { c.Algorithms = []string{"HS256"} },
		"algorithm in lower case":     func(c *jwtSettings) { c.Algorithms = []string{"rs256"} },
		"an empty audience":           func(c *jwtSettings) { c.Audience = []string{""} },
		"an unknown type":             func(c *jwtSettings) { c.Type = "JWT" },
		"leeway over a minute":        func(c *jwtSettings) { c.Leeway = 61 * time.Second },
		"leeway below zero":           func(c *jwtSettings) { c.Leeway = -1 },
		"refresh too often":           func(c *jwtSettings) { c.RefreshInterval = 9 * time.Second },
		"algorithm Ed448":             func(c *jwtSettings) { c.Algorithms = []string{"Ed448"} },
		"no pause between refreshes":  func(c *jwtSettings) { c.MinRefresh = time.Millisecond },
		"a pause beyond the interval": func(c *jwtSettings) { c.MinRefresh = time.Hour },
		"a negative timeout":          func(c *jwtSettings) { c.Timeout = -1 },
	} {
		cfg := good
		change(&cfg)
		keys, err := cfg.keys()
		if err != nil {
			continue
		}
		if j, err := cfg.source(keys); err == nil {
			j.Close()
			t.Errorf("%s: accepted", name)
		}
		keys.Close()
	}
	if keys, err := introspect.NewKeys(introspect.KeysConfig{JWKSURI: good.JWKSURI}); err == nil {
		keys.Close()
		t.Error("no issuer: accepted")
	}
	if _, err := introspect.NewJWT(introspect.JWTConfig{}); err == nil {
		t.Error("no keys: accepted")
	}
}

// forgery returns a source with keys for all default algorithms, and with what a forger needs.
func forgery(t testing.TB, cfg jwtSettings) *introspect.JWT {
	var set []claims
	for _, alg := range []string{"RS256", "PS256", "ES256", "EdDSA"} {
		set = append(set, keyFor(alg).jwk(nil))
	}
	// Keys that don't say how they may be used.
	set = append(set,
		signingKey{"any RSA", "", rsaKey()}.jwk(claims{"alg": nil}),
		signingKey{"any EC", "", p256Key()}.jwk(claims{"alg": nil}))
	cfg.JWKSURI = newKeyServer(t, jwks(set...)).URL
	j := newJWT(t, cfg)
	for _, alg := range []string{"RS256", "PS256", "ES256", "EdDSA"} {
		if !mayPass(t, j, keyFor(alg).issue(goodClaims())) {
			t.Fatalf("a genuine token with %s is refused", alg)
		}
	}
	return j
}

// RFC 8725 section 2.1: alg none in any spelling, with and without the signature of another
// token.
func TestJWTAlgNone(t *testing.T) {
	j := forgery(t, jwtSettings{Type: "any"})
	genuine := keyFor("RS256").issue(goodClaims())
	signature := genuine[strings.LastIndexByte(genuine, '.')+1:]
	for i := range 16 {
		none := []byte("none")
		for bit := range none {
			if i>>bit&1 == 1 {
				none[bit] -= 'a' - 'A'
			}
		}
		for _, header := range []string{
			fmt.Sprintf(`{"alg":"%s"}`, none),
			fmt.Sprintf(`{"alg":"%s","kid":"kid of RS256","typ":"at+jwt"}`, none),
			fmt.Sprintf(`{"alg":" %s ","kid":"kid of RS256"}`, none),
		} {
			input := b64(header) + "." + b64(goodClaims().json())
			for _, token := range []string{input + ".", input + "." + signature, input} {
				if mayPass(t, j, token) {
					t.Errorf("%s is good", header)
				}
			}
		}
	}
	for _, alg := range []string{`""`, `null`, `0`, `true`, `["RS256"]`, `{}`, `"RS256\u0000"`, `"rs256"`} {
		if mayPass(t, j, keyFor("RS256").token(fmt.Sprintf(`{"alg":%s,"kid":"kid of RS256","typ":"at+jwt"}`, alg), goodClaims().json())) {
			t.Errorf("alg %s is good", alg)
		}
	}
}

// RFC 8725 section 2.1 and CVE-2026-11800 (Keycloak): the public key as an HMAC secret.
func TestCVE_2026_11800_AlgorithmConfusion(t *testing.T) {
	j := forgery(t, jwtSettings{})
	public := rsaKey().Public().(*rsa.PublicKey)
	pkix, pkcs1 := must(x509.MarshalPKIXPublicKey(public)), x509.MarshalPKCS1PublicKey(public)
	for name, secret := range map[string][]byte{
		"PEM":                 pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkix}),
		"PEM without newline": []byte(strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkix})))),
		"PKCS 1 PEM":          pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: pkcs1}),
		"DER":                 pkix,
		"PKCS 1 DER":          pkcs1,
		"JWK":                 []byte(keyFor("RS256").jwk(nil).json()),
		"modulus":             public.N.Bytes(),
		"nothing":             nil,
	} {
		for _, kid := range []string{"kid of RS256", "any RSA"} {
			input := b64(fmt.Sprintf(`{"alg":"HS256","kid":%q,"typ":"at+jwt"}`, kid)) + "." + b64(goodClaims().json())
			mac := hmac.New(sha256.New, secret)
			mac.Write([]byte(input))
			if mayPass(t, j, input+"."+b64(string(mac.Sum(nil)))) {
				t.Errorf("HS256 with the key's %s and kid %q is good", name, kid)
			}
		}
	}
}

// A key verifies the algorithm that it is for, and no other.
func TestJWTAlgorithmOfAnotherKey(t *testing.T) {
	j := forgery(t, jwtSettings{})
	wide := forgery(t, jwtSettings{Algorithms: []string{"RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "ES512", "EdDSA"}})
	for _, c := range []struct {
		header, kid, signed string // signed is the algorithm of the signature
	}{
		{"RS256", "kid of PS256", "RS256"}, // the same RSA key, for PSS only
		{"PS256", "kid of RS256", "PS256"},
		{"RS256", "kid of RS256", "PS256"},
		{"RS384", "kid of RS256", "RS384"},
		{"RS512", "kid of RS256", "RS512"},
		{"ES384", "kid of ES256", "ES384"},
		{"ES384", "any EC", "ES384"}, // P-256 with SHA-384
		{"ES256", "any EC", "ES384"},
		{"ES256", "kid of EdDSA", "ES256"},
		{"EdDSA", "kid of ES256", "EdDSA"},
		{"RS256", "kid of ES256", "RS256"},
		{"EdDSA", "kid of RS256", "EdDSA"},
	} {
		key := keyFor("RS256")
		switch c.signed[:2] {
		case "ES":
			key = keyFor("ES256")
		case "Ed":
			key = keyFor("EdDSA")
		}
		key.alg = c.signed
		token := key.token(fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"at+jwt"}`, c.header, c.kid), goodClaims().json())
		if mayPass(t, j, token) || mayPass(t, wide, token) {
			t.Errorf("%+v is good", c)
		}
	}
	// Allowed by the key, but not by the configuration.
	key := signingKey{"any RSA", "RS512", rsaKey()}
	if token := key.issue(goodClaims()); mayPass(t, j, token) || !mayPass(t, wide, token) {
		t.Error("the list of algorithms is ignored")
	}
}

// RFC 8725 section 2.6 and RFC 7515 section 10: what the header says about keys is neither used
// nor fetched.
func TestJWTKeyInjection(t *testing.T) {
	j := forgery(t, jwtSettings{})
	evil := signingKey{"kid of ES256", "ES256", must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))}
	trap := newKeyServer(t, jwks(evil.jwk(nil)))
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	certificate := must(x509.CreateCertificate(rand.Reader, template, template, evil.private.Public(), evil.private))
	for _, injected := range []claims{
		{"jwk": evil.jwk(nil)},
		{"jwk": evil.jwk(nil), "kid": nil},
		{"jku": trap.URL},
		{"jku": trap.URL, "kid": "unknown"},
		{"x5u": trap.URL},
		{"x5u": trap.URL, "kid": nil},
		{"x5c": []string{base64.StdEncoding.EncodeToString(certificate)}},
		{"x5c": []string{base64.StdEncoding.EncodeToString(certificate)}, "kid": nil},
		{"kid": trap.URL},
		{"kid": "../../../../dev/null"},
		{"kid": "' OR 1=1 --"},
		{"iss": trap.URL, "jwks_uri": trap.URL},
	} {
		header := claims{"alg": "ES256", "typ": "at+jwt", "kid": "kid of ES256"}.with(injected)
		if mayPass(t, j, evil.token(header.json(), goodClaims().json())) {
			t.Errorf("%v is good", injected)
		}
		// They are ignored, not forbidden: signed with the issuer's key, the token is good.
		if _, whose := injected["kid"]; !whose && !mayPass(t, j, keyFor("ES256").token(header.json(), goodClaims().json())) {
			t.Errorf("%v makes a genuine token bad", injected)
		}
	}
	if n := trap.requests.Load(); n != 0 {
		t.Errorf("%d requests to the attacker's server", n)
	}
}

// RFC 9068 section 4: the claims that bound a token's use.
func TestJWTForgedClaims(t *testing.T) {
	at := func(d time.Duration) int64 { return start.Add(d).Unix() }
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	j := forgery(t, jwtSettings{Audience: []string{"api"}})
	late := forgery(t, jwtSettings{Audience: []string{"api"}, Leeway: time.Minute})
	key := keyFor("EdDSA")
	for _, c := range []struct {
		name string
		claims
	}{
		{"another issuer", claims{"iss": "https://evil.example"}},
		{"no issuer", claims{"iss": nil}},
		{"issuer with a slash", claims{"iss": issuerName + "/"}},
		{"issuer without the tenant", claims{"iss": "https://issuer.example"}},
		{"issuer in upper case", claims{"iss": "https://ISSUER.example/tenant"}},
		{"issuer with a port", claims{"iss": "https://issuer.example:443/tenant"}},
		{"issuer with a space", claims{"iss": issuerName + " "}},
		{"issuers in a list", claims{"iss": []string{issuerName}}},
		{"another audience", claims{"aud": "web"}},
		{"other audiences", claims{"aud": []string{"web", "API", "api "}}},
		{"no audience", claims{"aud": nil}},
		{"an empty list of audiences", claims{"aud": []string{}}},
		{"an empty audience", claims{"aud": []string{"api", ""}}},
		{"audience as an object", claims{"aud": claims{"api": "api"}}},
		{"audience in a list in a list", claims{"aud": [][]string{{"api"}}}},
		{"audience beside a number", claims{"aud": []any{"api", 1}}},
		{"audience null", claims{"aud": raw("null")}},
		{"no expiry", claims{"exp": nil}},
		{"expiry null", claims{"exp": raw("null")}},
		{"expiry as text", claims{"exp": fmt.Sprint(at(time.Hour))}},
		{"expiry as a boolean", claims{"exp": true}},
		{"expiry in a list", claims{"exp": []int64{at(time.Hour)}}},
		{"expiry of 1e308", claims{"exp": raw("1e308")}},
		{"expiry of 1e12", claims{"exp": raw("1e12")}},
		{"expiry beyond 64 bits", claims{"exp": raw("18446744073709551616")}},
		{"expiry at the edge of 64 bits", claims{"exp": raw("9223372036854775807")}},
		{"expiry in milliseconds", claims{"exp": start.Add(time.Hour).UnixMilli()}},
		{"expiry negative", claims{"exp": -1}},
		{"expiry zero", claims{"exp": 0}},
		{"expiry with a long fraction", claims{"exp": raw(fmt.Sprint(at(time.Hour), ".", strings.Repeat("0", 10)))}},
		{"expired now", claims{"exp": at(0)}},
		{"expired a second ago", claims{"exp": at(-time.Second)}},
		{"expired half a second ago", claims{"exp": raw(fmt.Sprint(at(-time.Second), ".5"))}},
		{"not yet valid", claims{"nbf": at(time.Minute + time.Second)}},
		{"not before as text", claims{"nbf": fmt.Sprint(at(-time.Hour))}},
		{"not before negative", claims{"nbf": -1}},
		{"not before huge", claims{"nbf": raw("1e308")}},
		{"issued in the future", claims{"iat": at(time.Minute + time.Second)}},
		{"issued as text", claims{"iat": "0"}},
		{"issued huge", claims{"iat": raw("1e308")}},
		{"client in a list", claims{"client_id": []string{"reporting"}}},
		{"azp as an object", claims{"azp": claims{}}},
		{"scope as a number", claims{"scope": 1}},
		{"scope in a list with a number", claims{"scope": []any{"read", 1}}},
		{"two clients", claims{"azp": "billing"}},
		{"two clients under vendors' names", claims{"client_id": nil, "appid": "a", "cid": "b"}},
		{"client as a boolean", claims{"client_id": true}},
		{"bound to a certificate", claims{"cnf": claims{"x5t#S256": thumb}}},
		{"bound to a DPoP key", claims{"cnf": claims{"jkt": thumb}}},
		{"subject as a fraction", claims{"sub": 1.5}},
		{"subject as a number with an exponent", claims{"sub": raw("1e3")}},
		{"subject as a boolean", claims{"sub": true}},
		{"client in an object", claims{"client_id": claims{}}},
		{"scope as an object", claims{"scope": claims{"read": true}}},
		{"bound to nothing", claims{"cnf": raw("null")}},
	} {
		token := key.issue(goodClaims().with(c.claims))
		if mayPass(t, j, token) || mayPass(t, late, token) {
			t.Errorf("%s: good", c.name)
		}
	}
	for name, changes := range map[string]claims{
		"audience in a list":       {"aud": []string{"web", "api"}},
		"no iat":                   {"iat": nil},
		"expiry with a fraction":   {"exp": raw(fmt.Sprint(at(time.Hour), ".25"))},
		"the last second of 9999":  {"exp": raw("253402300799")},
		"expiry with an exponent":  {"exp": raw("1.9e+09")},
		"not before now":           {"nbf": at(0)},
		"no subject and no client": {"sub": nil, "client_id": nil},
	} {
		if !mayPass(t, j, key.issue(goodClaims().with(changes))) {
			t.Errorf("%s: refused", name)
		}
	}
	// Leeway applies to nbf and iat.
	for name, changes := range map[string]claims{"nbf": {"nbf": at(time.Minute)}, "iat": {"iat": at(time.Minute)}} {
		if token := key.issue(goodClaims().with(changes)); mayPass(t, j, token) || !mayPass(t, late, token) {
			t.Errorf("%s ahead by the leeway: accepted without leeway, or refused with it", name)
		}
	}
}

// RFC 8725 section 3.11: tokens of other kinds from the same issuer.
func TestJWTTypes(t *testing.T) {
	strict := forgery(t, jwtSettings{})
	anyType := forgery(t, jwtSettings{Type: "any"})
	key := keyFor("EdDSA")
	for _, c := range []struct {
		typ         string
		strict, any bool
	}{
		{`"typ":"at+jwt",`, true, true},
		{`"typ":"application/at+jwt",`, true, true},
		{`"typ":"AT+JWT",`, true, true},
		{`"typ":"JWT",`, false, true},
		{`"typ":"jwt",`, false, true},
		{``, false, true},
		{`"typ":null,`, false, false},
		{`"typ":"",`, false, false},
		{`"typ":["at+jwt"],`, false, false},
		{`"typ":"at+jwt ",`, false, false},
		{`"typ":"xat+jwt",`, false, false},
		{`"typ":"dpop+jwt",`, false, false},
		{`"typ":"token-introspection+jwt",`, false, false},
		{`"typ":"logout+jwt",`, false, false},
		{`"typ":"secevent+jwt",`, false, false},
		{`"typ":"oauth-authz-req+jwt",`, false, false},
		{`"typ":"client-authentication+jwt",`, false, false},
		{`"typ":"JOSE",`, false, true},
		{`"typ":"jose",`, false, true},
		{`"typ":"Bearer",`, false, true},
		{`"typ":"application/jwt",`, false, true},
		{`"typ":"application/JOSE",`, false, false},
		{`"typ":"JOSE+JSON",`, false, false},
		{`"typ":"id_token",`, false, false},
		{`"typ":"rt+jwt",`, false, false},
	} {
		token := key.token(`{`+c.typ+`"alg":"EdDSA","kid":"kid of EdDSA"}`, goodClaims().json())
		if got := mayPass(t, strict, token); got != c.strict {
			t.Errorf("%s with at+jwt: %v", c.typ, got)
		}
		if got := mayPass(t, anyType, token); got != c.any {
			t.Errorf("%s with any: %v", c.typ, got)
		}
	}
}

// RFC 8725 section 3.11: tokens whose claims say what kind they are.
func TestJWTKinds(t *testing.T) {
	strict := forgery(t, jwtSettings{})
	anyType := forgery(t, jwtSettings{Type: "any"})
	key := keyFor("EdDSA")
	plain := func(c claims) string { return key.token(`{"alg":"EdDSA","kid":"kid of EdDSA","typ":"JWT"}`, c.json()) }
	check := func(c claims, wantPlain, wantAccess bool) {
		t.Helper()
		c = goodClaims().with(c)
		if got := mayPass(t, anyType, plain(c)); got != wantPlain {
			t.Errorf("%v, header JWT: %v", c, got)
		}
		for name, j := range map[string]*introspect.JWT{"at+jwt": strict, "any": anyType} {
			if got := mayPass(t, j, key.issue(c)); got != wantAccess {
				t.Errorf("%v, header at+jwt, typ %s: %v", c, name, got)
			}
		}
	}
	for _, name := range []string{"typ", "token_use", "token_type", "tokenName", "tokenType", "tok_type", "purpose"} {
		for _, kind := range []any{
			"access_token", "access", "Access-Token", "AccessToken", "Bearer", "bearer", "AT", "at+jwt", "application/at+jwt", "JWT",
			"urn:ietf:params:oauth:token-type:access_token", json.RawMessage("null"),
		} {
			check(claims{name: kind}, true, true)
		}
		// Other kinds.
		for _, kind := range []any{"refresh_token", "Refresh", "refresh-token", "RT", "Offline", "ID", "id_token", "id", "Logout", "logout_token", "code", "authorization_code", "session"} {
			check(claims{name: kind}, false, false)
		}
		// Unknown kinds: refused, unless the header vouches for the token.
		for _, kind := range []any{"DPoP", "mac", "N_A", "verify-email", "RegistrationAccessToken", "nonce", "billing", "access_tokens", "Bearer ", "", 1, true, []string{"access_token"}, claims{"kind": "access_token"}} {
			check(claims{name: kind}, false, true)
		}
	}
	// Claims that only tokens of other kinds have.
	for _, other := range []claims{{"at_hash": "x"}, {"c_hash": "x"}, {"s_hash": "x"}, {"events": claims{}}, {"token_introspection": claims{"active": true}}} {
		check(other, false, false)
	}
	// A claim that says access does not make up for one that says otherwise.
	check(claims{"token_type": "Bearer", "tokenName": "refresh_token"}, false, false)
	// The type may be that of anything except another kind of token.
	check(claims{"type": "service"}, true, true)
	check(claims{"type": "access"}, true, true)
	check(claims{"type": "refresh"}, false, false)
	// As ForgeRock AM writes them: the access token and the refresh token of one grant.
	am := claims{"tokenName": "access_token", "token_type": "Bearer", "grant_type": "client_credentials", "auth_level": 0, "realm": "/alpha", "cts": "OAUTH2_STATELESS_GRANT"}
	for tokenName, want := range map[string]bool{"access_token": true, "refresh_token": false, "id_token": false} {
		token := key.token(`{"typ":"JWT","zip":"NONE","kid":"kid of EdDSA","alg":"EdDSA"}`, goodClaims().with(am).with(claims{"tokenName": tokenName}).json())
		if got := mayPass(t, anyType, token); got != want {
			t.Errorf("%s of ForgeRock AM: %v", tokenName, got)
		}
	}
}

// A token has only one spelling.
func TestJWTSpellings(t *testing.T) {
	j := forgery(t, jwtSettings{})
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	for _, alg := range []string{"RS256", "ES256", "EdDSA"} {
		// Payloads of each length modulo three, so that each kind of last character occurs.
		for pad := range 3 {
			token := keyFor(alg).issue(goodClaims().with(claims{"pad": strings.Repeat("~?", 5) + strings.Repeat("x", pad)}))
			if !mayPass(t, j, token) {
				t.Fatalf("%s: a genuine token is refused", alg)
			}
			bad := func(what, spelling string) {
				if spelling != token && mayPass(t, j, spelling) {
					t.Errorf("%s: %s is good: %s", alg, what, spelling)
				}
			}
			parts := strings.Split(token, ".")
			for i, part := range parts {
				with := func(s string) string {
					changed := slices.Clone(parts)
					changed[i] = s
					return strings.Join(changed, ".")
				}
				last := strings.IndexByte(alphabet, part[len(part)-1])
				for bits := range 16 {
					bad("another last character", with(part[:len(part)-1]+alphabet[last^bits:][:1]))
				}
				bad("padding", with(part+"="))
				bad("padding", with(part+"=="))
				bad("the standard alphabet", with(strings.NewReplacer("-", "+", "_", "/").Replace(part)))
				bad("one character less at the front", with(part[1:]))
				bad("nothing", with(""))
				bad("the part twice", with(part+part))
				for _, space := range []string{" ", "\n", "\r", "\r\n", "\t", "\x00", "%20", "\u00a0"} {
					bad("white space", with(part+space))
					bad("white space", with(space+part))
					bad("white space", with(part[:4]+space+part[4:]))
				}
			}
			bad("case", strings.ToUpper(token))
			bad("a dot at the end", token+".")
			bad("a dot in front", "."+token)
			bad("a scheme", "Bearer "+token)
			bad("quotes", `"`+token+`"`)
		}
	}
}

// CVE-2026-27840: a truncated token was still good.
func TestCVE_2026_27840_Prefixes(t *testing.T) {
	j := forgery(t, jwtSettings{})
	for _, alg := range []string{"RS256", "PS256", "ES256", "EdDSA"} {
		token := keyFor(alg).issue(goodClaims())
		for i := range len(token) {
			if mayPass(t, j, token[:i]) {
				t.Errorf("%s: the first %d of %d characters are good", alg, i, len(token))
			}
			if i > 0 && mayPass(t, j, token[i:]) {
				t.Errorf("%s: the characters from %d are good", alg, i)
			}
		}
		for c := range 256 {
			if mayPass(t, j, token+string([]byte{byte(c)})) {
				t.Errorf("%s: good with %q after it", alg, []byte{byte(c)})
			}
		}
	}
}

// What the header must not contain, and JSON that two parsers read differently.
func TestJWTForgedStructure(t *testing.T) {
	j := forgery(t, jwtSettings{Type: "any"})
	key := keyFor("EdDSA")
	good := goodClaims().json()
	head := func(more string) string { return `{"alg":"EdDSA","kid":"kid of EdDSA"` + more + `}` }
	if !mayPass(t, j, key.token(head(`,"x":{"y":[1]}`), good)) {
		t.Fatal("a genuine token is refused")
	}
	if !mayPass(t, j, key.token(head(`,"zip":"NONE"`), good)) {
		t.Error("zip NONE, which says that nothing is compressed, is refused")
	}
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	for name, token := range map[string]string{
		"crit":                      key.token(head(`,"crit":["exp"]`), good),
		"crit b64":                  key.token(head(`,"crit":["b64"],"b64":true`), good),
		"crit empty":                key.token(head(`,"crit":[]`), good),
		"crit null":                 key.token(head(`,"crit":null`), good),
		"b64 true":                  key.token(head(`,"b64":true`), good),
		"b64 false":                 key.token(head(`,"b64":false`), good),
		"zip":                       key.token(head(`,"zip":"DEF"`), good),
		"zip none in lower case":    key.token(head(`,"zip":"none"`), good),
		"zip none with a space":     key.token(head(`,"zip":"NONE "`), good),
		"zip none in a list":        key.token(head(`,"zip":["NONE"]`), good),
		"zip empty":                 key.token(head(`,"zip":""`), good),
		"zip null":                  key.token(head(`,"zip":null`), good),
		"zip twice":                 key.token(head(`,"zip":"NONE","zip":"DEF"`), good),
		"zip none and deflated":     key.token(head(`,"zip":"NONE"`), string(must(base64.StdEncoding.DecodeString("q1YqSS0uUbJSUCpOLSlVqgUA")))),
		"enc none":                  key.token(head(`,"enc":"NONE"`), good),
		"enc":                       key.token(head(`,"enc":"A256GCM"`), good),
		"kid as a number":           key.token(`{"alg":"EdDSA","kid":1}`, good),
		"kid as a list":             key.token(`{"alg":"EdDSA","kid":["kid of EdDSA"]}`, good),
		"alg twice":                 key.token(`{"alg":"none","alg":"EdDSA","kid":"kid of EdDSA"}`, good),
		"kid twice":                 key.token(`{"alg":"EdDSA","kid":"x","kid":"kid of EdDSA"}`, good),
		"alg in upper case":         key.token(`{"ALG":"EdDSA","kid":"kid of EdDSA"}`, good),
		"header is a list":          key.token(`[{"alg":"EdDSA"}]`, good),
		"header with white space":   key.token(" "+head(""), good),
		"header with text after":    key.token(head("")+"{}", good),
		"header deep":               key.token(head(`,"a":`+deep(40)), good),
		"header not UTF-8":          key.token(head(`,"a":"`+"\xff"+`"`), good),
		"header empty":              key.token("", good),
		"payload empty":             key.token(head(""), ""),
		"payload null":              key.token(head(""), "null"),
		"payload a list":            key.token(head(""), "["+good+"]"),
		"payload with text after":   key.token(head(""), good+"{}"),
		"payload deep":              key.token(head(""), good[:len(good)-1]+`,"a":`+deep(40)+`}`),
		"payload very deep":         key.token(head(""), good[:len(good)-1]+`,"a":`+strings.Repeat("[", 11_000)+`}`),
		"payload not UTF-8":         key.token(head(""), good[:len(good)-1]+`,"a":"`+"\xff"+`"}`),
		"iss twice":                 key.token(head(""), `{"iss":"https://evil.example",`+good[1:]),
		"iss twice, the good first": key.token(head(""), good[:len(good)-1]+`,"iss":"https://evil.example"}`),
		"exp twice":                 key.token(head(""), good[:len(good)-1]+`,"exp":1}`),
		"exp twice, once escaped":   key.token(head(""), good[:len(good)-1]+`,"\u0065xp":1}`),
		"a member twice inside":     key.token(head(""), good[:len(good)-1]+`,"a":{"b":1,"b":2}}`),
		"nested":                    key.token(head(`,"cty":"JWT"`), key.token(head(""), good)),
		"JSON serialization": fmt.Sprintf(`{"payload":%q,"protected":%q,"signature":%q}`,
			b64(good), b64(head("")), b64(string(key.signature("EdDSA", []byte(b64(head(""))+"."+b64(good)))))),
		"too long": key.issue(goodClaims().with(claims{"pad": strings.Repeat("x", 13_000)})),
	} {
		if mayPass(t, j, token) {
			t.Errorf("%s: good", name)
		}
	}
	if !mayPass(t, j, key.issue(goodClaims().with(claims{"pad": strings.Repeat("x", 11_000), "deep": json.RawMessage(deep(20))}))) {
		t.Error("a long token is refused")
	}
}

// ECDSA signatures of odd lengths and values (RFC 7518 section 3.4), including the zeros of
// CVE-2022-21449.
func TestJWTECDSASignatures(t *testing.T) {
	j := forgery(t, jwtSettings{})
	key := keyFor("ES256")
	token := key.issue(goodClaims())
	input := token[:strings.LastIndexByte(token, '.')]
	signature := must(base64.RawURLEncoding.DecodeString(token[len(input)+1:]))
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	n := elliptic.P256().Params().N
	digest := sha256.Sum256([]byte(input))
	fixed := func(r, s *big.Int, size int) []byte {
		return append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
	}
	zero, one := new(big.Int), big.NewInt(1)
	for name, forged := range map[string][]byte{
		"r and s zero":   fixed(zero, zero, 32),
		"r zero":         fixed(zero, s, 32),
		"s zero":         fixed(r, zero, 32),
		"r and s one":    fixed(one, one, 32),
		"r and s n":      fixed(n, n, 32),
		"exchanged":      fixed(s, r, 32),
		"wide":           fixed(r, s, 33),
		"ASN.1":          must(ecdsa.SignASN1(rand.Reader, key.private.(*ecdsa.PrivateKey), digest[:])),
		"a byte less":    signature[:63],
		"a byte more":    append(slices.Clone(signature), 0),
		"a zero between": slices.Concat(signature[:32], []byte{0}, signature[32:]),
		"twice":          slices.Concat(signature, signature),
	} {
		if mayPass(t, j, input+"."+b64(string(forged))) {
			t.Errorf("%s: good", name)
		}
	}
	// The twin, which can't be refused without refusing half of all genuine tokens. It says the
	// same but is another token, which is why revoked JWTs must not be listed by their ID.
	twin := input + "." + b64(string(fixed(r, new(big.Int).Sub(n, s), 32)))
	facts, err := j.Lookup(t.Context(), introspect.NewToken(twin))
	if err != nil || !facts.Active || facts.ID != introspect.IDOf(twin) || facts.Subject != "alice" {
		t.Errorf("the twin: %+v, %v", facts, err)
	}
}

// CVE-2025-27144 (go-jose), CVE-2025-30204 (golang-jwt), CVE-2025-22868 (x/oauth2): dots made
// parsers allocate. Here they cost no allocation at all.
func TestCVE_2025_27144_CVE_2025_30204_CVE_2025_22868_ManyDots(t *testing.T) {
	j := forgery(t, jwtSettings{})
	token := keyFor("EdDSA").issue(goodClaims())
	for _, dots := range []string{
		strings.Repeat(".", 1<<20), "e" + strings.Repeat(".", 1<<20), strings.Repeat(".", 100),
		"eyJ" + strings.Repeat(".", 10_000), token + strings.Repeat(".", 1000), "..", ".", "",
	} {
		token := introspect.NewToken(dots)
		if _, ok := j.Screen(token); ok || mayPass(t, j, dots) {
			t.Errorf("%.20s…: worth a lookup", dots)
		}
		if n := testing.AllocsPerRun(10, func() { j.Screen(token); j.Lookup(context.Background(), token) }); n != 0 {
			t.Errorf("%.20s…: %v allocations", dots, n)
		}
	}
}

// CVE-2026-34986 (JWE panic), CVE-2024-28180 (compression bomb), GHSA-2c7c-3mj9-8fqh (PBES2
// count), CVE-2024-28122: encrypted tokens are refused by the number of their parts.
func TestCVE_2026_34986_CVE_2024_28180_CVE_2024_28122_EncryptedTokens(t *testing.T) {
	j := forgery(t, jwtSettings{Type: "any"})
	for _, header := range []string{
		`{"alg":"RSA-OAEP","enc":"A256GCM","zip":"DEF","kid":"kid of RS256"}`,
		`{"alg":"PBES2-HS256+A128KW","enc":"A128GCM","p2c":2147483647,"p2s":"AAAA"}`,
		`{"alg":"ECDH-ES","enc":"A128GCM","epk":{"kty":"EC","crv":"P-256","x":"","y":""}}`,
		`{"alg":"A128KW","enc":"A128GCM"}`,
		`{"alg":"dir","enc":"A128GCM"}`,
	} {
		for _, token := range []string{
			b64(header) + "." + b64("key") + "." + b64("iv") + "." + b64(goodClaims().json()) + "." + b64("tag"),
			b64(header) + "....",
			b64(header) + "." + b64(goodClaims().json()) + "." + b64("tag"),
		} {
			if mayPass(t, j, token) {
				t.Errorf("%s: good", header)
			}
		}
	}
}

// CVE-2024-51744: an expired token with a bad signature was taken for one that is only expired.
// Here all of them get the same answer.
func TestCVE_2024_51744_ExpiredAndForged(t *testing.T) {
	j := forgery(t, jwtSettings{})
	token := keyFor("EdDSA").issue(goodClaims().with(claims{"exp": start.Unix() - 1}))
	facts, err := j.Lookup(t.Context(), introspect.NewToken(token[:len(token)-4]+"AAAA"))
	if err != nil || facts != introspect.InactiveBecause(introspect.CauseSignature) {
		t.Errorf("%+v, %v", facts, err)
	}
}

// CVE-2020-26160: a list of audiences was taken for none, and none for any. CVE-2026-55669: the
// audience was not checked.
func TestCVE_2020_26160_CVE_2026_55669_Audience(t *testing.T) {
	j := forgery(t, jwtSettings{Audience: []string{"api"}})
	for _, aud := range []any{[]string{}, []string{"web"}, []any{}, "", "web", 0, false, nil, claims{}} {
		if mayPass(t, j, keyFor("EdDSA").issue(goodClaims().with(claims{"aud": aud}))) {
			t.Errorf("audience %v is good", aud)
		}
	}
	// If no audience is required, having none is fine; servers write that in several ways. A
	// mistake must not pass for it.
	unchecked := forgery(t, jwtSettings{})
	for _, aud := range []any{[]string{}, "", json.RawMessage("null"), nil} {
		facts, err := unchecked.Lookup(t.Context(), introspect.NewToken(keyFor("EdDSA").issue(goodClaims().with(claims{"aud": aud}))))
		if err != nil || !facts.Active || len(facts.Audience) != 0 || facts.HasAudience("") {
			t.Errorf("audience %v, if it is not checked: %+v, %v", aud, facts, err)
		}
	}
	for _, aud := range []any{[]string{""}, []string{"api", ""}, 0, false, claims{}, []any{nil}, []any{[]any{}}} {
		if mayPass(t, unchecked, keyFor("EdDSA").issue(goodClaims().with(claims{"aud": aud}))) {
			t.Errorf("audience %v is good if it is not checked", aud)
		}
	}
}

// CVE-2024-21664: a JWS in JSON without a protected header made jwx panic.
func TestCVE_2024_21664_MissingParts(t *testing.T) {
	j := forgery(t, jwtSettings{Type: "any"})
	for _, token := range []string{
		`{"signatures":[{}]}`, `{"payload":"","signatures":[{"header":{}}]}`, `{}`, "e..", "e30..", "e30.e30.",
		b64("{}") + "." + b64(goodClaims().json()) + ".", b64(`{"alg":"RS256","kid":"kid of RS256"}`) + "." + b64(goodClaims().json()) + ".",
	} {
		if mayPass(t, j, token) {
			t.Errorf("%s: good", token)
		}
	}
}

// GO-2026-5732: a token without exp never expired.
func TestGO_2026_5732_NoExpiry(t *testing.T) {
	j := forgery(t, jwtSettings{})
	if mayPass(t, j, keyFor("EdDSA").issue(goodClaims().with(claims{"exp": nil}))) {
		t.Error("a token without an expiry is good")
	}
}

// A token is dead at exp, even if it was cached before.
func TestJWTDiesAtItsExpiry(t *testing.T) {
	clock := &clocks{}
	key := keyFor("EdDSA")
	j := newJWT(t, jwtSettings{JWKSURI: newKeyServer(t, jwks(key.jwk(nil))).URL, Now: clock.now, Leeway: time.Minute})
	cache := newCache(t, clock.config())
	s := cache.Wrap("jwt", j, 2*time.Hour)
	token := key.issue(goodClaims())
	warm(t, cache, s, token)
	clock.advance(time.Hour - 1)
	if !active(t, s, token) || !mayPass(t, j, token) {
		t.Error("dead before its expiry")
	}
	clock.advance(1)
	if active(t, s, token) || mayPass(t, j, token) {
		t.Error("alive at its expiry")
	}
}

// A token without a kid is tried with the keys that fit, and with no more than ten. An empty kid
// counts as none.
func TestJWTWithoutKid(t *testing.T) {
	var set []claims
	var keys []signingKey
	for i := range 12 {
		key := signingKey{"", "EdDSA", newEdKey()}
		keys = append(keys, key)
		set = append(set, key.jwk(claims{"kid": fmt.Sprint(i)}), keyFor("ES256").jwk(claims{"kid": fmt.Sprint("ec", i)}))
	}
	j := newJWT(t, jwtSettings{JWKSURI: newKeyServer(t, jwks(set...)).URL})
	for _, header := range []string{`{"alg":"EdDSA","typ":"at+jwt"}`, `{"alg":"EdDSA","typ":"at+jwt","kid":""}`, `{"alg":"EdDSA","typ":"at+jwt","kid":null}`} {
		for i, key := range keys {
			if got := mayPass(t, j, key.token(header, goodClaims().json())); got != (i < 10) {
				t.Errorf("%s signed with key %d: %v", header, i, got)
			}
		}
		if mayPass(t, j, signingKey{"", "EdDSA", newEdKey()}.token(header, goodClaims().json())) {
			t.Errorf("%s signed with a foreign key: good", header)
		}
	}
}

// A key without a kid may have signed any token, unless another key has the token's kid.
func TestJWTKeysWithoutKid(t *testing.T) {
	named, nameless, empty := signingKey{"named", "EdDSA", newEdKey()}, signingKey{"", "EdDSA", newEdKey()}, signingKey{"", "EdDSA", newEdKey()}
	j := newJWT(t, jwtSettings{JWKSURI: newKeyServer(t, jwks(named.jwk(nil), nameless.jwk(claims{"kid": nil}), empty.jwk(nil))).URL})
	for _, c := range []struct {
		name string
		key  signingKey
		kid  string
		want bool
	}{
		{"the named key", named, "named", true},
		{"the named key under another name", named, "other", false},
		{"the key without kid", nameless, "other", true},
		{"the key with an empty kid", empty, "other", true},
		{"the key without kid in the name of the other", nameless, "named", false},
		{"a foreign key", signingKey{"", "EdDSA", newEdKey()}, "other", false},
	} {
		c.key.kid = c.kid
		if got := mayPass(t, j, c.key.issue(goodClaims())); got != c.want {
			t.Errorf("signed with %s: %v", c.name, got)
		}
	}
}

// RFC 7518 section 3.5: the salt is as long as the hash.
func TestJWTSaltOfPSS(t *testing.T) {
	j := newJWT(t, jwtSettings{
		JWKSURI:    newKeyServer(t, jwks(keyFor("PS256").jwk(claims{"alg": nil}))).URL,
		Algorithms: []string{"PS256", "PS384", "PS512"},
	})
	for alg, hash := range map[string]crypto.Hash{"PS256": crypto.SHA256, "PS384": crypto.SHA384, "PS512": crypto.SHA512} {
		input := b64(fmt.Sprintf(`{"alg":%q,"kid":"kid of PS256","typ":"at+jwt"}`, alg)) + "." + b64(goodClaims().json())
		digest := hash.New()
		digest.Write([]byte(input))
		for _, salt := range []int{rsa.PSSSaltLengthAuto, 0, 1, 20, 32, 48, 64, 100} {
			if salt == 0 {
				salt = rsa.PSSSaltLengthAuto // as long as possible
			}
			signature, err := rsa.SignPSS(rand.Reader, rsaKey().(*rsa.PrivateKey), hash, digest.Sum(nil), &rsa.PSSOptions{SaltLength: salt})
			if err != nil {
				t.Fatal(err)
			}
			if got := mayPass(t, j, input+"."+b64(string(signature))); got != (salt == hash.Size()) {
				t.Errorf("%s with a salt of %d bytes: %v", alg, salt, got)
			}
		}
	}
}

// RFC 9864: Ed25519 is the newer name of EdDSA with that curve. The list in the configuration
// still goes by name.
func TestJWTEd25519(t *testing.T) {
	for _, alg := range []any{"EdDSA", "Ed25519", nil} {
		server := newKeyServer(t, jwks(signingKey{"x", "EdDSA", edKey()}.jwk(claims{"alg": alg})))
		for _, c := range []struct {
			allowed        []string
			eddsa, ed25519 bool
		}{
			{nil, true, true},
			{[]string{"EdDSA"}, true, false},
			{[]string{"Ed25519"}, false, true},
			{[]string{"ES256"}, false, false},
		} {
			j := newJWT(t, jwtSettings{JWKSURI: server.URL, Algorithms: c.allowed})
			for name, want := range map[string]bool{"EdDSA": c.eddsa, "Ed25519": c.ed25519, "Ed448": false, "ed25519": false} {
				token := signingKey{"x", "EdDSA", edKey()}.token(fmt.Sprintf(`{"alg":%q,"kid":"x","typ":"at+jwt"}`, name), goodClaims().json())
				if got := mayPass(t, j, token); got != want {
					t.Errorf("key for %v, allowed %v, token with %s: %v", alg, c.allowed, name, got)
				}
				forged := token[:len(token)-4] + "AAAA"
				if forged == token { // one signature in 65536 ends like that
					forged = token[:len(token)-4] + "BAAA"
				}
				if mayPass(t, j, forged) {
					t.Errorf("key for %v, allowed %v, forged token with %s: good", alg, c.allowed, name)
				}
			}
		}
	}
}

// RSA keys of 2048 to 8192 bits are used.
func TestJWTSizesOfRSA(t *testing.T) {
	mersenne := func(bits uint) *big.Int {
		return new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), bits), big.NewInt(1))
	}
	// The primes are no secret but available at once; searching for such primes takes many seconds.
	p, q, one := mersenne(4253), mersenne(3217), big.NewInt(1)
	n := new(big.Int).Mul(p, q)
	private := new(big.Int).ModInverse(big.NewInt(65537), new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one)))
	jwk := claims{"kty": "RSA", "kid": "large", "n": b64(string(n.Bytes())), "e": "AQAB"}
	j := newJWT(t, jwtSettings{JWKSURI: newKeyServer(t, jwks(jwk)).URL})
	input := b64(`{"alg":"RS256","kid":"large","typ":"at+jwt"}`) + "." + b64(goodClaims().json())
	digest := sha256.Sum256([]byte(input))
	info := "\x00" + string(must(base64.StdEncoding.DecodeString("MDEwDQYJYIZIAWUDBAIBBQAEIA=="))) + string(digest[:])
	size := (n.BitLen() + 7) / 8
	padded := new(big.Int).SetBytes([]byte("\x00\x01" + strings.Repeat("\xff", size-2-len(info)) + info))
	token := input + "." + b64(string(new(big.Int).Exp(padded, private, n).FillBytes(make([]byte, size))))
	if !mayPass(t, j, token) {
		t.Errorf("a genuine token with a key of %d bits is refused", n.BitLen())
	}
	if mayPass(t, j, token[:len(token)-4]+"AAAA") {
		t.Error("a forged token is good")
	}
	for bits, want := range map[uint]int{2047: 0, 2048: 1, 4097: 1, 8192: 1, 8193: 0, 16384: 0} {
		jwk["n"] = b64(string(mersenne(bits).Bytes()))
		if got, _ := introspect.ParseKeys([]byte(jwks(jwk))); got != want {
			t.Errorf("%d bits: %d keys are usable", bits, got)
		}
	}
}

// The cache knows whole tokens. A header and payload that it holds with another signature are
// another token.
func TestJWTCacheKnowsWholeTokens(t *testing.T) {
	j := forgery(t, jwtSettings{})
	cache := newCache(t, (&clocks{}).config())
	s := cache.Wrap("jwt", j, time.Hour)
	for _, alg := range []string{"RS256", "PS256", "ES256", "EdDSA"} {
		token := keyFor(alg).issue(goodClaims())
		warm(t, cache, s, token)
		input := token[:strings.LastIndexByte(token, '.')]
		flipped := must(base64.RawURLEncoding.DecodeString(token[len(input)+1:]))
		flipped[10] ^= 1
		for _, signature := range []string{"", "AAAA", b64(string(flipped)), b64(strings.Repeat("\x00", len(flipped)))} {
			if active(t, s, input+"."+signature) {
				t.Errorf("%s: good with another signature", alg)
			}
		}
		if !active(t, s, token) {
			t.Errorf("%s: the original token is refused", alg)
		}
	}
}

// Facts that no key of the source verified are not good, wherever they come from.
func TestJWTRevisesForeignFacts(t *testing.T) {
	j := forgery(t, jwtSettings{})
	if j.Revise(factsOf("token", start.Add(time.Hour))).Active {
		t.Error("facts without a key are good")
	}
}

func TestUnverifiedIssuer(t *testing.T) {
	key := keyFor("EdDSA")
	token := func(payload string) string { return key.token(`{"alg":"EdDSA"}`, payload) }
	for _, c := range []struct {
		name, token, issuer string
	}{
		{"a token", key.issue(goodClaims()), issuerName},
		{"a token with a bad signature", key.issue(goodClaims())[:200] + "..", ""},
		{"an expired token", key.issue(goodClaims().with(claims{"exp": 1})), issuerName},
		{"ISS is not iss", token(`{"iss":"a","ISS":"b"}`), "a"},
		{"only ISS", token(`{"ISS":"b"}`), ""},
		{"iss inside", token(`{"a":{"iss":"b"}}`), ""},
		{"iss as a number", token(`{"iss":1}`), ""},
		{"iss null", token(`{"iss":null}`), ""},
		{"iss in a list", token(`{"iss":["a"]}`), ""},
		{"a list", token(`["iss","a"]`), ""},
		{"half a payload", token(`{"iss":"a"`), ""},
		{"not base64", "eyJ.!!!.x", ""},
		{"opaque", "coa_0123456789", ""},
		{"nothing", "", ""},
		{"iss twice", token(`{"iss":"a","iss":"b"}`), "b"},
		{"iss twice, the second null", token(`{"iss":"a","iss":null}`), ""},
		{"iss escaped", token(`{"\u0069ss":"\u0061"}`), "a"},
		{"with spaces", token(" {\t\"iss\" :\r\n\"a\"} "), "a"},
		{"something after it", token(`{"iss":"a"}{}`), ""},
		{"encrypted", "eyJ.a.b.c.d", ""},
		{"too long", token(`{"iss":"a","b":"` + strings.Repeat("b", 16<<10) + `"}`), ""},
	} {
		token := introspect.NewToken(c.token)
		if issuer := token.UnverifiedIssuer(); issuer != c.issuer {
			t.Errorf("%s: %q", c.name, issuer)
		}
		again := ""
		if n := testing.AllocsPerRun(10, func() { again = token.UnverifiedIssuer() }); n != 0 || again != c.issuer {
			t.Errorf("%s: the second call returns %q after %v allocations, so it decodes the token again", c.name, again, n)
		}
	}
}

// Whatever arrives, nothing panics, and only what the issuer signed is good.
func FuzzJWT(f *testing.F) {
	j := forgery(f, jwtSettings{Type: "any"})
	genuine := map[string]bool{}
	for _, alg := range []string{"RS256", "PS256", "ES256", "EdDSA"} {
		token := keyFor(alg).issue(goodClaims())
		genuine[token] = true
		f.Add(token)
		f.Add(token + "=")
		f.Add(strings.ReplaceAll(token, ".", ".."))
		f.Add(signingKey{"x", alg, keyFor(alg).private}.token(`{"alg":"none","jwk":{},"x5c":["AA=="],"crit":["b64"],"b64":false}`, `{"iss":"`+issuerName+`","exp":1e308}`))
	}
	for _, header := range []string{
		`{"typ":"JWT","zip":"NONE","kid":"kid of EdDSA","alg":"EdDSA"}`, `{"alg":"Ed25519","kid":""}`, `{"alg":"EdDSA","kid":null,"typ":"JOSE"}`,
	} {
		token := keyFor("EdDSA").token(header, goodClaims().with(claims{"aud": []string{}, "sub": 7, "exp": json.RawMessage("4.1024448e9"), "tokenName": "access_token", "scope": json.RawMessage("null")}).json())
		genuine[token] = true
		f.Add(token)
		f.Add(keyFor("EdDSA").token(header, goodClaims().with(claims{"tokenName": "refresh_token", "aud": []any{nil}, "nbf": json.RawMessage("1e-400")}).json()))
	}
	f.Add("e..")
	f.Add("eyJ.a.b.c.d")
	f.Fuzz(func(t *testing.T, token string) {
		facts, err := j.Lookup(t.Context(), introspect.NewToken(token))
		if err != nil || facts.Active != genuine[token] {
			t.Errorf("%q: %+v, %v", token, facts, err)
		}
		if _, ok := j.Screen(introspect.NewToken(token)); genuine[token] && !ok {
			t.Errorf("%q is screened out", token)
		}
		checkUnverifiedIssuer(t, token)
	})
}

// checkUnverifiedIssuer compares the issuer that a token claims with what encoding/json reads.
func checkUnverifiedIssuer(t *testing.T, text string) {
	t.Helper()
	var claims map[string]json.RawMessage // not a struct, which would take ISS for iss
	if parts := strings.Split(text, "."); len(parts) == 3 && strings.HasPrefix(text, "e") && len(text) <= introspect.MaxTokenLength {
		payload, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err != nil || json.Unmarshal(payload, &claims) != nil {
			claims = nil
		}
	}
	want := ""
	if json.Unmarshal(claims["iss"], &want) != nil {
		want = ""
	}
	token := introspect.NewToken(text)
	// encoding/json replaces what is not UTF-8. No issuer is configured like that.
	if got := token.UnverifiedIssuer(); got != want && utf8.ValidString(got) {
		t.Errorf("%q claims the issuer %q, want %q", text, got, want)
	}
}

// Who issued a JWT that the cache knows is known without decoding it, whatever has become of it since.
// Of other tokens the cache says nothing.
func TestRecallIssuer(t *testing.T) {
	key := keyFor("EdDSA")
	j := forgery(t, jwtSettings{})
	cache := newCache(t, introspect.CacheConfig{})
	s := cache.Wrap("jwt", struct{ *introspect.JWT }{j}, time.Hour)
	text := key.issue(goodClaims())
	bad := text[:len(text)-8] + "AAAAAAAA"
	recalls := func(s *introspect.CachedSource, text string, want bool) {
		t.Helper()
		token := introspect.NewToken(text)
		if got := s.RecallIssuer(&token); got != want {
			t.Errorf("it is known: %t, want %t", got, want)
		}
		id := token.ID()
		if n := testing.AllocsPerRun(1, func() { token.UnverifiedIssuer() }); want && n != 0 {
			t.Errorf("%v allocations, so it was decoded", n)
		}
		if got := token.UnverifiedIssuer(); got != issuerName || token.ID() != id {
			t.Errorf("the issuer is %q", got)
		}
	}
	recalls(s, text, false)
	for _, text := range []string{text, bad} {
		if _, err := s.Lookup(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	recalls(s, text, true)
	recalls(s, bad, false)
	recalls(cache.Wrap("another", j, time.Hour), text, false)
	// A source that says who issued a token without having read that in it.
	other := newRegistry(time.Now)
	other.issue(text, time.Now().Add(time.Hour))
	claimed := cache.Wrap("registry", other, time.Hour)
	if _, err := claimed.Lookup(t.Context(), text); err != nil {
		t.Fatal(err)
	}
	recalls(claimed, text, false)
}

// BenchmarkJWTHit looks up a cached JWT, and for comparison the same token cached from a source
// without keys.
func BenchmarkJWTHit(b *testing.B) {
	key := keyFor("RS256")
	j := newJWT(b, jwtSettings{JWKSURI: newKeyServer(b, jwks(key.jwk(nil))).URL, Now: time.Now})
	token := key.issue(goodClaims().with(claims{"iat": nil, "exp": time.Now().Add(time.Hour).Unix()}))
	cache := newCache(b, introspect.CacheConfig{})
	plain := newRegistry(time.Now)
	plain.issue(token, time.Now().Add(time.Hour))
	for name, src := range map[string]introspect.Source{"jwt": j, "plain": plain} {
		b.Run(name, func(b *testing.B) {
			s := cache.Wrap(name, src, time.Hour)
			warm(b, cache, s, token)
			b.ReportAllocs()
			for b.Loop() {
				lookup(b, s, token)
			}
		})
	}
}

// BenchmarkJWTLookup verifies a JWT, and for comparison nothing but its signature.
func BenchmarkJWTLookup(b *testing.B) {
	for _, alg := range []string{"RS256", "ES256", "EdDSA"} {
		key := keyFor(alg)
		token := key.issue(goodClaims())
		b.Run(alg, func(b *testing.B) {
			j := forgery(b, jwtSettings{})
			b.ReportAllocs()
			for b.Loop() {
				if facts, err := j.Lookup(context.Background(), introspect.NewToken(token)); err != nil || !facts.Active {
					b.Fatal(facts, err)
				}
			}
		})
		b.Run(alg+"/bare", func(b *testing.B) {
			at := strings.LastIndexByte(token, '.')
			signed, signature := []byte(token[:at]), must(base64.RawURLEncoding.DecodeString(token[at+1:]))
			b.ReportAllocs()
			for b.Loop() {
				good := false
				switch public := key.private.Public().(type) {
				case *rsa.PublicKey:
					digest := sha256.Sum256(signed)
					good = rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature) == nil
				case *ecdsa.PublicKey:
					digest := sha256.Sum256(signed)
					good = ecdsa.Verify(public, digest[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
				case ed25519.PublicKey:
					good = ed25519.Verify(public, signed, signature)
				}
				if !good {
					b.Fatal("the signature is bad")
				}
			}
		})
	}
}

func BenchmarkUnverifiedIssuer(b *testing.B) {
	fresh := introspect.NewToken(keyFor("RS256").issue(goodClaims()))
	b.ReportAllocs()
	for b.Loop() {
		token := fresh // which has not been decoded yet
		token.UnverifiedIssuer()
	}
}
