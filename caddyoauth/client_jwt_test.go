package caddyoauth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// keyClient is a client that authenticates by private_key_jwt.
type keyClient struct {
	t    testing.TB
	id   string
	key  *ecdsa.PrivateKey
	file string // its public key
}

func newKeyClient(t testing.TB, id string) *keyClient {
	t.Helper()
	c := &keyClient{t: t, id: id, file: filepath.Join(t.TempDir(), id+".json")}
	c.rotate()
	return c
}

// rotate gives the client another key.
func (c *keyClient) rotate() {
	c.t.Helper()
	var err error
	if c.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(c.file+".new", []byte(`{"keys":[`+c.jwk()+`]}`), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(c.file+".new", c.file); err != nil {
		c.t.Fatal(err)
	}
}

// jwk is its public key.
func (c *keyClient) jwk() string {
	c.t.Helper()
	key, err := json.Marshal(jose.JSONWebKey{Key: c.key.Public(), KeyID: "1"})
	if err != nil {
		c.t.Fatal(err)
	}
	return string(key)
}

// keysAt are the client's lines in the oauth block, with its keys elsewhere than in its file.
func (c *keyClient) keysAt(option string) string {
	return "client `" + c.id + "` {\nauth private_key_jwt\n" + option + "\nscopes read\ndefault_scopes read\n}\n"
}

// lines are the client's in the oauth block.
func (c *keyClient) lines() string {
	return "client " + c.id + " {\nauth private_key_jwt\njwks_file " + c.file + "\nscopes read\ndefault_scopes read\nintrospect own\n}\n"
}

// assert signs an assertion with these changes to a good one. A claim or member that is nil is left out.
func (c *keyClient) assert(changes map[string]any, header map[jose.HeaderKey]any) string {
	c.t.Helper()
	now := time.Now()
	claims := map[string]any{
		"iss": c.id, "sub": c.id, "aud": "https://auth.example.com/oauth2", "exp": now.Add(time.Minute).Unix(), "iat": now.Unix(), "jti": rand.Text(),
	}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, value any) bool { return value == nil })
	payload, err := json.Marshal(claims)
	if err != nil {
		c.t.Fatal(err)
	}
	options := &jose.SignerOptions{ExtraHeaders: header}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: c.key, KeyID: "1"}}, options)
	if err != nil {
		c.t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		c.t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		c.t.Fatal(err)
	}
	return text
}

// by returns a form that an assertion authenticates.
func by(assertion string, more ...string) url.Values {
	form := url.Values{"client_assertion": {assertion}, "client_assertion_type": {assertionType}}
	for i := 0; i < len(more); i += 2 {
		form.Set(more[i], more[i+1])
	}
	return form
}

// ask fetches a token by an assertion.
func (g *gateway) ask(assertion string, more ...string) answer {
	g.t.Helper()
	return g.post("/oauth2/access_token", "", "", by(assertion, append([]string{"grant_type", "client_credentials"}, more...)...))
}

const issuerOption = "issuer https://auth.example.com/oauth2\n"

// A client that signs an assertion for each request needs no secret: at every endpoint, over every
// store. Each assertion is good once.
func TestPrivateKeyJWT(t *testing.T) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			c, other := newKeyClient(t, "signer"), newKeyClient(t, "other")
			g := startGateway(t, store+issuerOption+c.lines()+other.lines(), gatewaySite)
			assertion := c.assert(map[string]any{"jti": "once"}, nil)
			waitUntil(t, "the client's keys are read", func() bool {
				return g.ask(c.assert(nil, nil)).StatusCode == 200 && g.ask(other.assert(nil, nil)).StatusCode == 200
			})
			token := wantToken(t, g.ask(assertion), "read")
			g.wants("its token", token, 200)
			for what, again := range map[string]string{"the same": assertion, "another with its ID": c.assert(map[string]any{"jti": "once"}, nil)} {
				wantE401(t, g.ask(again), "root", again)
				wantE401(t, g.post("/oauth2/introspect", "", "", by(again, "token", token)), "root", again)
				_ = what
			}
			wantToken(t, g.ask(other.assert(map[string]any{"jti": "once"}, nil)), "read") // the ID of another client's
			if a := g.post("/oauth2/introspect", "", "", by(c.assert(nil, nil), "token", token)).json(t); a["active"] != true {
				t.Errorf("introspection says %v", a)
			}
			if a := g.post("/oauth2/token/revoke", "", "", by(c.assert(nil, nil), "token", token)); a.StatusCode != 200 {
				t.Errorf("revoking: %d", a.StatusCode)
			}
			g.wants("a revoked token", token, 401)
			wantToken(t, g.ask(c.assert(nil, nil), "client_id", "signer"), "read")
			if name != "memory" {
				g.restart(store+issuerOption+c.lines()+other.lines(), gatewaySite)
				waitUntil(t, "the client's keys are read", func() bool { return g.ask(c.assert(nil, nil)).StatusCode == 200 })
				wantE401(t, g.ask(c.assert(map[string]any{"jti": "once"}, nil)), "root")
			}
			// Many at once: one gets a token.
			raced := c.assert(nil, nil)
			var won atomic.Int32
			var all sync.WaitGroup
			for range 20 {
				all.Go(func() {
					if g.ask(raced).StatusCode == 200 {
						won.Add(1)
					}
				})
			}
			all.Wait()
			if won.Load() != 1 {
				t.Errorf("%d of 20 requests got a token by one assertion", won.Load())
			}
		})
	}
}

// An assertion is good only as RFC 7523 and its successor have it. Every failure has one answer.
func TestAssertionsThatAreRefused(t *testing.T) {
	c, stranger := newKeyClient(t, "signer"), newKeyClient(t, "signer")
	g, logged := startLogged(t, "store memory\n"+noFailureLimit+issuerOption+c.lines()+
		"client secretive {\nsecret_hash "+hashOf(testSecret)+"\nscopes read\ndefault_scopes read\n}\nclient gone {\ndisabled\n}\n", gatewaySite)
	waitUntil(t, "the client's keys are read", func() bool { return g.ask(c.assert(nil, nil)).StatusCode == 200 })
	now := time.Now()
	in := func(d time.Duration) int64 { return now.Add(d).Unix() }
	type claims = map[string]any
	for what, r := range map[string]struct {
		assertion, reason string
	}{
		"another audience":        {c.assert(claims{"aud": "https://auth.example.com/oauth2/access_token"}, nil), "assertion_audience"},
		"two audiences":           {c.assert(claims{"aud": []string{"https://auth.example.com/oauth2", "https://other.example.com"}}, nil), "assertion_audience"},
		"an audience with slash":  {c.assert(claims{"aud": "https://auth.example.com/oauth2/"}, nil), "assertion_audience"},
		"no audience":             {c.assert(claims{"aud": nil}, nil), "assertion_audience"},
		"another subject":         {c.assert(claims{"sub": "secretive"}, nil), "assertion_subject"},
		"no subject":              {c.assert(claims{"sub": nil}, nil), "assertion_malformed"},
		"another issuer":          {c.assert(claims{"iss": "secretive"}, nil), "auth_method_not_allowed"},
		"nobody":                  {c.assert(claims{"iss": "nobody", "sub": "nobody"}, nil), "unknown_client"},
		"a disabled client":       {c.assert(claims{"iss": "gone", "sub": "gone"}, nil), "client_disabled"},
		"no issuer":               {c.assert(claims{"iss": nil}, nil), "unknown_client"},
		"no end":                  {c.assert(claims{"exp": nil}, nil), "assertion_malformed"},
		"an end that is text":     {c.assert(claims{"exp": "1e9"}, nil), "assertion_malformed"},
		"over":                    {c.assert(claims{"exp": in(-time.Second)}, nil), "assertion_expired"},
		"too long":                {c.assert(claims{"exp": in(6 * time.Minute)}, nil), "assertion_lifetime"},
		"for ever":                {c.assert(claims{"exp": 1e300}, nil), "assertion_malformed"},
		"not yet":                 {c.assert(claims{"nbf": in(61 * time.Second)}, nil), "assertion_not_yet"},
		"made tomorrow":           {c.assert(claims{"iat": in(24 * time.Hour)}, nil), "assertion_not_yet"},
		"no ID":                   {c.assert(claims{"jti": nil}, nil), "assertion_without_jti"},
		"an ID that is no text":   {c.assert(claims{"jti": 7}, nil), "assertion_malformed"},
		"the typ of a token":      {c.assert(nil, map[jose.HeaderKey]any{"typ": "at+jwt"}), "assertion_typ"},
		"the typ of a proof":      {c.assert(nil, map[jose.HeaderKey]any{"typ": "dpop+jwt"}), "assertion_typ"},
		"a critical extension":    {c.assert(nil, map[jose.HeaderKey]any{"crit": []string{"x"}, "x": 1}), "assertion_malformed"},
		"another key of the name": {stranger.assert(nil, nil), "assertion_signature"},
		"a key in the header":     {stranger.assert(nil, map[jose.HeaderKey]any{"jwk": jose.JSONWebKey{Key: stranger.key.Public()}}), "assertion_signature"},
		"no JWT":                  {"assertion", "unknown_client"},
		"a signature cut off":     {strings.TrimRight(c.assert(nil, nil), "-_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"), "assertion_"},
	} {
		t.Run(what, func(t *testing.T) {
			g.t = t
			before := len(logged())
			wantE401(t, g.ask(r.assertion), "root", r.assertion)
			waitUntil(t, "the event says why", func() bool {
				for line := range strings.Lines(logged()[before:]) {
					if strings.Contains(line, `"event":"token_refused"`) && strings.Contains(line, `"reason":"`+r.reason) {
						return true
					}
				}
				return false
			})
		})
	}
	g.t = t
	// Good ones, among all those.
	for what, assertion := range map[string]string{
		"the client's typ":        c.assert(nil, map[jose.HeaderKey]any{"typ": "client-authentication+jwt"}),
		"typ JWT":                 c.assert(nil, map[jose.HeaderKey]any{"typ": "JWT"}),
		"a list of one audience":  c.assert(claims{"aud": []string{"https://auth.example.com/oauth2"}}, nil),
		"a clock that is ahead":   c.assert(claims{"iat": in(8 * time.Second), "nbf": in(8 * time.Second)}, nil),
		"five minutes":            c.assert(claims{"exp": in(5 * time.Minute)}, nil),
		"a claim that is unknown": c.assert(claims{"nonce": "x"}, nil),
	} {
		if a := g.ask(assertion); a.StatusCode != 200 {
			t.Errorf("%s: %d %s", what, a.StatusCode, a.Body)
		}
	}
	// What is wrong with the request is told.
	good := c.assert(nil, nil)
	for what, form := range map[string]url.Values{
		"no type":        {"client_assertion": {good}},
		"another type":   {"client_assertion": {good}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:saml2-bearer"}},
		"no assertion":   {"client_assertion_type": {assertionType}},
		"a secret, too":  by(good, "client_secret", testSecret),
		"two assertions": {"client_assertion": {good, good}, "client_assertion_type": {assertionType}},
		"as a list":      {"client_assertion[0]": {good}, "client_assertion_type": {assertionType}},
	} {
		form.Set("grant_type", "client_credentials")
		t.Run(what, func(t *testing.T) {
			wantE(t, g.post("/oauth2/access_token", "", "", form), 400, "invalid_request", good)
		})
	}
	wantE(t, g.post("/oauth2/access_token", "signer", testSecret, by(good, "grant_type", "client_credentials")), 400, "invalid_request", good)
	wantE401(t, g.ask(c.assert(nil, nil), "client_id", "secretive"), "root")
	wantE401(t, g.post("/oauth2/access_token", "signer", testSecret, url.Values{"grant_type": {"client_credentials"}}), "root")
	if strings.Contains(logged(), good) {
		t.Error("the log has an assertion")
	}
}

// A key file may be replaced while the gateway runs, and a fleet refuses replays together.
func TestAssertionsInAFleet(t *testing.T) {
	redis := redistest.Start(t)
	c := newKeyClient(t, "signer")
	config := at(redis.Addr) + noFailureLimit + issuerOption + c.lines()
	here := startGateway(t, config, fleetSite)
	there, _ := startGatewayProcess(t, config)
	here.linked()
	for _, g := range []*gateway{here, there} {
		waitUntil(t, "the client's keys are read", func() bool { return g.ask(c.assert(nil, nil)).StatusCode == 200 })
	}
	for range 20 {
		assertion := c.assert(nil, nil)
		var won atomic.Int32
		var all sync.WaitGroup
		for _, g := range []*gateway{here, there, here, there} {
			all.Go(func() {
				if g.ask(assertion).StatusCode == 200 {
					won.Add(1)
				}
			})
		}
		all.Wait()
		if won.Load() != 1 {
			t.Errorf("%d of 4 requests at two gateways got a token by one assertion", won.Load())
		}
	}
	former := c.assert(nil, nil)
	c.rotate()
	waitUntil(t, "the new key is read", func() bool { return here.ask(c.assert(nil, nil)).StatusCode == 200 })
	wantE401(t, here.ask(former), "root")
	redis.Stop()
	if a := here.ask(c.assert(nil, nil)); a.StatusCode != 503 {
		t.Errorf("when nobody can tell what was used: %d", a.StatusCode)
	}
}

// The keys of a client may be in the configuration, or where it publishes them. Its ID may be any.
func TestPlacesOfClientKeys(t *testing.T) {
	inline, published := newKeyClient(t, "in*{line}"), newKeyClient(t, "published")
	var downloads atomic.Int64
	var set atomic.Value
	publish := func() { set.Store(`{"keys":[` + published.jwk() + `]}`) }
	publish()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		downloads.Add(1)
		io.WriteString(w, set.Load().(string))
	}))
	t.Cleanup(server.Close)
	former := inline.jwk()
	inline.rotate()
	g := startGateway(t, "store memory\n"+noFailureLimit+issuerOption+inline.keysAt("jwk `"+former+"`\njwk `"+strings.Replace(inline.jwk(), `"1"`, `"2"`, 1)+"`")+
		published.keysAt("jwks_uri "+server.URL+"/jwks\nprivate_hosts 127.0.0.1"), gatewaySite)
	// Another of its keys is called 1, and its assertion says 1.
	wantE401(t, g.ask(inline.assert(nil, nil)), "root")
	wantToken(t, g.ask(inline.assert(nil, map[jose.HeaderKey]any{"kid": "2"})), "read")
	wantToken(t, g.ask(published.assert(nil, nil)), "read") // waits for the keys, if it must

	published.rotate()
	publish()
	before := downloads.Load()
	for i := range 100 {
		wantE401(t, g.ask(published.assert(nil, map[jose.HeaderKey]any{"kid": strconv.Itoa(i + 2)})), "root")
	}
	if n := downloads.Load() - before; n > 1 {
		t.Errorf("%d downloads for 100 unknown keys", n)
	}
}

// What a client authenticates with is settled when the configuration is loaded.
func TestAssertionSettingsThatAreRefused(t *testing.T) {
	c := newKeyClient(t, "c")
	g := startGateway(t, "store memory\n"+testClients, gatewaySite)
	file, private := "jwks_file "+c.file+"\n", filepath.Join(t.TempDir(), "private.json")
	if err := os.WriteFile(private, []byte(`{"keys":[`+strings.Replace(c.jwk(), "{", `{"d":"canary",`, 1)+`]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, r := range map[string]struct{ config, part string }{
		"no keys":               {issuerOption + "client c {\nauth private_key_jwt\n}\n", "add a jwk, or a jwks_file, or a jwks_uri"},
		"keys at two places":    {issuerOption + c.keysAt(file+"jwk `"+c.jwk()+"`"), "jwk and jwks_file can't be used together"},
		"a key without method":  {issuerOption + "client c {\nsecret_hash " + hashOf(testSecret) + "\njwk `" + c.jwk() + "`\n}\n", "it has a jwk"},
		"a private key":         {issuerOption + c.keysAt("jwk `"+strings.Replace(c.jwk(), "{", `{"d":"canary",`, 1)+"`"), "it includes a private key"},
		"a private key in file": {issuerOption + c.keysAt("jwks_file "+private), "it includes a private key"},
		"a key of another kind": {issuerOption + c.keysAt(file+"assertion_algorithms RS256"), "none of the keys is for an algorithm that the client may sign by: RS256"},
		"no JSON":               {issuerOption + c.keysAt("jwk kty"), "backquotes"},
		"a private address":     {issuerOption + c.keysAt("jwks_uri https://10.0.0.1/jwks"), "not a public address"},
		"this machine":          {issuerOption + c.keysAt("jwks_uri http://localhost:1/jwks"), "not a public address"},
		"no TLS":                {issuerOption + c.keysAt("jwks_uri http://keys.example.com/jwks"), "must be an https URL"},
		"hosts without URI":     {issuerOption + c.keysAt(file+"private_hosts 10.0.0.1"), "no jwks_uri"},
		"a port":                {issuerOption + c.keysAt("jwks_uri https://keys.example.com/jwks\nprivate_hosts keys.example.com:443"), "without scheme and port"},
		"a secret in the URI":   {issuerOption + c.keysAt("jwks_uri https://keys.example.com/jwks?api_key=canary"), "api_key"},
		"no issuer":             {"client c {\nauth private_key_jwt\n" + file + "}\n", "give the realm an issuer"},
		"keys without method":   {issuerOption + "client c {\nsecret_hash " + hashOf(testSecret) + "\n" + file + "}\n", "auth private_key_jwt"},
		"a secret it can't use": {issuerOption + "client c {\nauth private_key_jwt\n" + file + "secret_hash " + hashOf(testSecret) + "\n}\n", "may not use it"},
		"no file":               {issuerOption + "client c {\nauth private_key_jwt\njwks_file " + c.file + ".not\n}\n", "no such file"},
		"a MAC":                 {issuerOption + "client c {\nauth private_key_jwt\nassertion_algorithms HS256\n" + file + "}\n", "HS256"},
		"no secret":             {issuerOption + "client c {\nauth private_key_jwt client_secret_basic\n" + file + "}\n", "no secret"},
	} {
		if err := g.load("store memory\n"+r.config, gatewaySite); err == nil {
			t.Errorf("%s: it loads", what)
		} else if !strings.Contains(err.Error(), r.part) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v, want %q in it", what, err, r.part)
		}
	}
	if err := g.load("store memory\n"+issuerOption+c.lines(), gatewaySite); err != nil {
		t.Fatal(err)
	}
	meta := g.do(g.request("GET", "/.well-known/oauth-authorization-server/oauth2", "")).json(t)
	if methods, _ := json.Marshal(meta["token_endpoint_auth_methods_supported"]); string(methods) != `["private_key_jwt"]` {
		t.Errorf("the metadata has the methods %s", methods)
	}
	for _, member := range []string{"token_endpoint", "introspection_endpoint", "revocation_endpoint"} {
		if algorithms, _ := json.Marshal(meta[member+"_auth_signing_alg_values_supported"]); string(algorithms) != `["Ed25519","EdDSA","ES256","PS256","RS256"]` && string(algorithms) != `["ES256","Ed25519","EdDSA","PS256","RS256"]` {
			t.Errorf("%s: the metadata has the algorithms %s", member, algorithms)
		}
	}
}
