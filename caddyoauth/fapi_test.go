package caddyoauth_test

import (
	"crypto/tls"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// fapiClient is a client as the FAPI 2.0 Security Profile wants it: it signs assertions, and its tokens
// are bound.
type fapiClient struct {
	*keyClient
	g      *gateway // with its certificate, if it has one
	issuer string
	aud    any
	// prover makes its DPoP proofs; nil for a client with a certificate. nonces are the latest that it
	// has been given, by the methods of its requests: tokens are fetched by POST, and used by GET.
	prover *prover
	nonces map[string]string
	// scheme is that of its Authorization headers.
	scheme string
}

// bound is what a request has that proves what a token is bound to, besides a certificate.
func (c *fapiClient) bound(method, url, token string) http.Header {
	if c.prover == nil {
		return nil
	}
	return http.Header{"Dpop": {c.prover.proof(method, url, token, withNonce(c.nonces[method]))}}
}

// learn keeps the nonce of an answer.
func (c *fapiClient) learn(a answer) answer {
	if nonce := a.Header.Get("DPoP-Nonce"); nonce != "" && c.nonces != nil {
		c.nonces[a.Request.Method] = nonce
	}
	return a
}

// request asks for a token with these changes to a good assertion and form.
func (c *fapiClient) request(claims map[string]any, form url.Values, header http.Header) answer {
	c.t.Helper()
	good := map[string]any{"aud": c.aud}
	maps.Copy(good, claims)
	return c.requestBy(c.assert(good, nil), form, header)
}

func (c *fapiClient) requestBy(assertion string, form url.Values, header http.Header) answer {
	c.t.Helper()
	body := by(assertion, "grant_type", "client_credentials")
	maps.Copy(body, form)
	r := c.g.request("POST", "/oauth2/access_token", body.Encode(), "Content-Type", "application/x-www-form-urlencoded")
	if header == nil {
		header = c.bound("POST", c.issuer+"/access_token", "")
	}
	maps.Copy(r.Header, header)
	return c.learn(c.g.do(r))
}

// fapiGateway starts a gateway for such clients, in one of the two ways in which tokens are bound.
func fapiGateway(t *testing.T, binding string) (c, other *fapiClient, plain *gateway) {
	t.Helper()
	certFile, keyFile, trust := certificate(t)
	base := fmt.Sprintf("https://localhost:%d", porttest.Reserve(t))
	one, two := newKeyClient(t, "one"), newKeyClient(t, "two")
	lines := strings.ReplaceAll(one.lines()+two.lines(), "introspect own\n", "introspect own\nassertion_algorithms PS256 ES256 EdDSA\n"+binding+"\n")
	g := startCaddyfile(t, "{\nadmin off\npersist_config off\nskip_install_trust\nauto_https off\ngrace_period 1s\noauth {\nstore memory\nlimit failures off\nissuer "+base+"/oauth2\n"+lines+
		"}\n}\n"+base+" {\nbind 127.0.0.1\ntls "+certFile+" "+keyFile+" {\nclient_auth {\nmode request\n}\n}\noauth_server\noauth_protect /api/* {\nscopes read\n}\nreverse_proxy BACKEND\n}\n")
	as := func(k *keyClient, certificates ...tls.Certificate) *fapiClient {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trust, Certificates: certificates, MinVersion: tls.VersionTLS12}}
		t.Cleanup(transport.CloseIdleConnections)
		return &fapiClient{keyClient: k, issuer: base + "/oauth2", aud: base + "/oauth2", scheme: "Bearer", g: &gateway{t: t, URL: base, Backend: g.Backend, Client: &http.Client{Transport: transport, Timeout: 30 * time.Second}}}
	}
	if binding == "certificate_bound" {
		return as(one, selfSigned(t, "one")), as(two, selfSigned(t, "two")), as(one).g
	}
	proving := func(c *fapiClient) *fapiClient {
		c.prover, c.nonces, c.scheme = newProver(t), make(map[string]string), "DPoP"
		// After a start the gateway gives each client a nonce, here and there.
		c.request(nil, nil, nil)
		token := fmt.Sprint(c.request(nil, nil, nil).json(t)["access_token"])
		r := c.g.request("GET", "/api/x", "", "Authorization", "DPoP "+token)
		maps.Copy(r.Header, c.bound("GET", base+"/api/x", token))
		c.learn(c.g.do(r))
		return c
	}
	return proving(as(one)), proving(as(two)), as(one).g
}

// What the FAPI 2.0 Security Profile demands of an authorization server and of resource servers for the
// client credentials grant, as the conformance tests of the OpenID Foundation check it.
func TestFAPI2(t *testing.T) {
	for name, binding := range map[string]string{"certificate": "certificate_bound", "DPoP": "dpop required"} {
		t.Run(name, func(t *testing.T) {
			c, other, plain := fapiGateway(t, binding)
			granted := c.request(nil, nil, nil)
			if granted.StatusCode != 200 {
				t.Fatalf("no token: %d %s", granted.StatusCode, granted.Body)
			}
			t.Run("metadata", func(t *testing.T) { fapiMetadata(t, c) })
			t.Run("token answer", func(t *testing.T) { fapiTokenAnswer(t, granted, c.scheme) })
			t.Run("assertions", func(t *testing.T) { fapiAssertions(t, c, other) })
			t.Run("bound tokens", func(t *testing.T) { fapiBoundTokens(t, c, other, plain) })
			if c.prover != nil {
				t.Run("DPoP proofs", func(t *testing.T) { fapiProofs(t, c) })
			}
			t.Run("TLS", func(t *testing.T) { fapiTLS(t, c) })
		})
	}
}

func fapiMetadata(t *testing.T, c *fapiClient) {
	a := c.g.do(c.g.request("GET", "/.well-known/oauth-authorization-server/oauth2", ""))
	document := a.json(t)
	if document["issuer"] != c.issuer {
		t.Errorf("issuer is %v, want %s", document["issuer"], c.issuer)
	}
	if !strings.HasPrefix(fmt.Sprint(document["token_endpoint"]), "https://") {
		t.Errorf("token_endpoint is %v, want one over https", document["token_endpoint"])
	}
	for _, name := range []string{"token", "introspection", "revocation"} {
		if got := fmt.Sprint(document[name+"_endpoint_auth_methods_supported"]); got != "[private_key_jwt]" {
			t.Errorf("%s_endpoint_auth_methods_supported is %s, want private_key_jwt alone", name, got)
		}
		if got := fmt.Sprint(document[name+"_endpoint_auth_signing_alg_values_supported"]); got != "[ES256 EdDSA PS256]" {
			t.Errorf("%s_endpoint_auth_signing_alg_values_supported is %s", name, got)
		}
	}
	if got := fmt.Sprint(document["grant_types_supported"]); got != "[client_credentials]" {
		t.Errorf("grant_types_supported is %s", got)
	}
}

func fapiTokenAnswer(t *testing.T, a answer, scheme string) {
	body := a.json(t)
	token, _ := body["access_token"].(string)
	lifetime, _ := body["expires_in"].(float64)
	switch {
	case a.Header.Get("Cache-Control") != "no-store":
		t.Errorf("Cache-Control is %q", a.Header.Get("Cache-Control"))
	case !strings.HasPrefix(a.Header.Get("Content-Type"), "application/json"):
		t.Errorf("Content-Type is %q", a.Header.Get("Content-Type"))
	case body["token_type"] != scheme:
		t.Errorf("token_type is %v, want %s", body["token_type"], scheme)
	case len(token) < 40: // 128 bits and more
		t.Errorf("the token has %d characters", len(token))
	case lifetime <= 0 || body["refresh_token"] != nil || body["scope"] != "read":
		t.Errorf("the answer is %s", a.Body)
	}
}

func fapiAssertions(t *testing.T, c, other *fapiClient) {
	now := time.Now()
	in := func(d time.Duration) int64 { return now.Add(d).Unix() }
	for name, claims := range map[string]map[string]any{
		"aud is the issuer":          nil,
		"iat 8 seconds ahead":        {"iat": in(8 * time.Second)},
		"nbf 8 seconds ahead":        {"nbf": in(8 * time.Second)},
		"no iat":                     {"iat": nil},
		"a claim that nobody knows":  {"x": "y"},
		"an exp of less than 5 min.": {"exp": in(4 * time.Minute)},
	} {
		if a := c.request(claims, nil, nil); a.StatusCode != 200 {
			t.Errorf("%s: %d %s, want 200", name, a.StatusCode, a.Body)
		}
	}
	refused := func(name string, a answer) {
		t.Helper()
		if a.StatusCode != 401 || a.json(t)["error"] != "invalid_client" {
			t.Errorf("%s: %d %s, want 401 invalid_client", name, a.StatusCode, a.Body)
		}
	}
	for name, claims := range map[string]map[string]any{
		"aud is the token endpoint":               {"aud": c.issuer + "/access_token"},
		"aud is another server":                   {"aud": "https://other.example.com"},
		"aud has another server besides":          {"aud": []string{c.issuer, "https://other.example.com"}},
		"aud has the token endpoint besides":      {"aud": []string{c.issuer, c.issuer + "/access_token"}},
		"no aud":                                  {"aud": nil},
		"exp was 5 minutes ago":                   {"exp": in(-5 * time.Minute)},
		"no exp":                                  {"exp": nil},
		"exp in a day":                            {"exp": in(24 * time.Hour)},
		"iat 61 seconds ahead":                    {"iat": in(61 * time.Second)},
		"nbf 61 seconds ahead":                    {"nbf": in(61 * time.Second)},
		"no jti":                                  {"jti": nil},
		"no sub":                                  {"sub": nil},
		"sub is another client":                   {"sub": "two"},
		"no iss":                                  {"iss": nil},
		"iss is another client":                   {"iss": "two"},
		"iss and sub are another client":          {"iss": "two", "sub": "two"},
		"iss and sub are a client that is nobody": {"iss": "nobody", "sub": "nobody"},
	} {
		refused(name, c.request(claims, nil, nil))
	}
	once := c.assert(map[string]any{"aud": c.aud}, nil)
	if a := c.requestBy(once, nil, nil); a.StatusCode != 200 {
		t.Errorf("the first use of an assertion: %d %s", a.StatusCode, a.Body)
	}
	refused("the second use of an assertion", c.requestBy(once, nil, nil))

	refused("another client's assertion in one's own name", c.requestBy(other.assert(map[string]any{"aud": c.aud, "iss": "one", "sub": "one"}, nil), nil, nil))
	head, rest, _ := strings.Cut(c.assert(map[string]any{"aud": c.aud}, nil), ".")
	payload, signature, _ := strings.Cut(rest, ".")
	refused("a signature that was changed", c.requestBy(head+"."+payload+"."+spoiled(signature), nil, nil))
	refused("no signature", c.requestBy(head+"."+payload+".", nil, nil))
	for _, alg := range []string{"none", "None", "HS256", "RS256"} {
		refused("alg "+alg, c.requestBy(b64(fmt.Sprintf(`{"alg":%q,"kid":"1"}`, alg))+"."+payload+"."+signature, nil, nil))
	}
	refused("typ of an access token", c.requestBy(c.assert(map[string]any{"aud": c.aud}, map[jose.HeaderKey]any{"typ": "at+jwt"}), nil, nil))
	refused("no client authentication", c.requestBy("", url.Values{"client_assertion_type": nil, "client_assertion": nil, "client_id": {"one"}}, nil))
	if a := c.request(nil, url.Values{"client_secret": {"x"}}, nil); a.StatusCode != 400 || a.json(t)["error"] != "invalid_request" {
		t.Errorf("two methods: %d %s, want 400 invalid_request", a.StatusCode, a.Body)
	}
	if a := c.request(nil, url.Values{"client_id": {"two"}}, nil); a.StatusCode == 200 {
		t.Errorf("client_id is another client: %d %s", a.StatusCode, a.Body)
	}
	if a := c.request(nil, url.Values{"grant_type": {"password"}}, nil); a.StatusCode != 400 || a.json(t)["error"] != "unsupported_grant_type" {
		t.Errorf("another grant: %d %s, want 400 unsupported_grant_type", a.StatusCode, a.Body)
	}
}

// fapiBoundTokens checks that a token is good in the hands of its client alone.
func fapiBoundTokens(t *testing.T, c, other *fapiClient, plain *gateway) {
	unbound := *c
	unbound.g = plain
	if a := unbound.request(nil, nil, http.Header{}); a.StatusCode != 400 {
		t.Errorf("a request without what the token is to be bound to: %d %s, want 400", a.StatusCode, a.Body)
	}
	token := fmt.Sprint(c.request(nil, nil, nil).json(t)["access_token"])
	call := func(by *fapiClient, g *gateway, path string, header http.Header) int {
		t.Helper()
		r := g.request("GET", path, "")
		maps.Copy(r.Header, by.bound("GET", g.URL+"/api/x", token))
		maps.Copy(r.Header, header)
		return g.do(r).StatusCode
	}
	header := http.Header{"Authorization": {c.scheme + " " + token}}
	lower := http.Header{"Authorization": {strings.ToLower(c.scheme) + " " + token}}
	for range 2 { // cold and warm
		for name, got := range map[string][2]int{
			"its client":                           {call(c, c.g, "/api/x", header), 200},
			"its client, the scheme in lower case": {call(c, c.g, "/api/x", lower), 200},
			"its client, with a query":             {call(c, c.g, "/api/x?y=z", header), 200},
			"another client":                       {call(other, other.g, "/api/x", header), 401},
			"nobody":                               {call(&fapiClient{}, plain, "/api/x", header), 401},
			"its client, the token in the query":   {call(c, c.g, "/api/x?access_token="+token, nil), 401},
			"its client, another token":            {call(c, c.g, "/api/x", http.Header{"Authorization": {c.scheme + " " + spoiled(token)}}), 401},
		} {
			if got[0] != got[1] {
				t.Errorf("%s: %d, want %d", name, got[0], got[1])
			}
		}
	}
	assertion := c.assert(map[string]any{"aud": c.aud}, nil)
	introspected := c.g.post("/oauth2/introspect", "", "", by(assertion, "token", token)).json(t)
	if cnf, _ := introspected["cnf"].(map[string]any); introspected["active"] != true || len(cnf) != 1 {
		t.Errorf("introspection says %v, want an active token with cnf", introspected)
	}
}

// fapiProofs checks what a DPoP proof must be, at the token endpoint and at a route.
func fapiProofs(t *testing.T, c *fapiClient) {
	token := fmt.Sprint(c.request(nil, nil, nil).json(t)["access_token"])
	proof := func(method, url, token string, changes map[string]any) string {
		all := withNonce(c.nonces[method])
		if all == nil {
			all = make(map[string]any)
		}
		maps.Copy(all, changes)
		return c.prover.proof(method, url, token, all)
	}
	ask := func(proofs ...string) int {
		t.Helper()
		a := c.request(nil, nil, http.Header{"Dpop": proofs})
		if a.StatusCode != 200 && a.json(t)["error"] != "invalid_dpop_proof" {
			t.Errorf("the token endpoint answers %s, want invalid_dpop_proof", a.Body)
		}
		return a.StatusCode
	}
	call := func(proofs ...string) int {
		t.Helper()
		r := c.g.request("GET", "/api/x", "", "Authorization", "DPoP "+token)
		r.Header["Dpop"] = proofs
		a := c.learn(c.g.do(r))
		if a.StatusCode == 401 && !strings.Contains(strings.Join(a.Header["Www-Authenticate"], " "), "DPoP ") {
			t.Errorf("the route answers with the challenges %q, want one for DPoP", a.Header["Www-Authenticate"])
		}
		return a.StatusCode
	}
	now := time.Now()
	for name, changes := range map[string]map[string]any{
		"no jti": {"jti": nil}, "no htm": {"htm": nil}, "no htu": {"htu": nil}, "no iat": {"iat": nil},
		"another method":              {"htm": "PUT"},
		"another URL":                 {"htu": "https://other.example.com/oauth2/access_token"},
		"made an hour ago":            {"iat": now.Add(-time.Hour).Unix()},
		"made in an hour":             {"iat": now.Add(time.Hour).Unix()},
		"iat as a text":               {"iat": fmt.Sprint(now.Unix())},
		"jti as a number":             {"jti": 1},
		"the method in lower case":    {"htm": "get"},
		"the URL without a path":      {"htu": c.g.URL},
		"the URL of plain HTTP":       {"htu": "http" + strings.TrimPrefix(c.g.URL, "https") + "/api/x"},
		"a jti that is far too long":  {"jti": strings.Repeat("x", 1000)},
		"the URL with another server": {"htu": "https://localhost.example.com/api/x"},
	} {
		if got := ask(proof("POST", c.issuer+"/access_token", "", changes)); got != 400 {
			t.Errorf("%s: the token endpoint answers %d, want 400", name, got)
		}
		if got := call(proof("GET", c.g.URL+"/api/x", token, changes)); got != 401 {
			t.Errorf("%s: the route answers %d, want 401", name, got)
		}
	}
	for name, changes := range map[string]map[string]any{
		"made 8 seconds ago":      {"iat": now.Add(-8 * time.Second).Unix()},
		"made in 8 seconds":       {"iat": time.Now().Add(8 * time.Second).Unix()},
		"a claim nobody knows":    {"x": "y"},
		"the URL with a query":    {"htu": c.g.URL + "/api/x?y=z"},
		"the URL with upper case": {"htu": "HTTPS" + strings.Replace(strings.TrimPrefix(c.g.URL, "https"), "localhost", "LOCALHOST", 1) + "/api/x"},
	} {
		if got := call(proof("GET", c.g.URL+"/api/x", token, changes)); got != 200 {
			t.Errorf("%s: the route answers %d, want 200", name, got)
		}
	}
	good := proof("GET", c.g.URL+"/api/x", token, nil)
	if first, second := call(good), call(good); first != 200 || second != 401 {
		t.Errorf("a proof used twice: %d and %d, want 200 and 401", first, second)
	}
	good = proof("POST", c.issuer+"/access_token", "", nil)
	if first, second := ask(good), ask(good); first != 200 || second != 400 {
		t.Errorf("a proof used twice at the token endpoint: %d and %d, want 200 and 400", first, second)
	}
	two := []string{proof("GET", c.g.URL+"/api/x", token, nil), proof("GET", c.g.URL+"/api/x", token, nil)}
	if got := call(two...); got != 401 && got != 400 {
		t.Errorf("two proofs: %d, want a refusal", got)
	}
	if got := call(proof("GET", c.g.URL+"/api/x", spoiled(token), nil)); got != 401 {
		t.Errorf("a proof for another token: %d, want 401", got)
	}
	if got := call(proof("GET", c.g.URL+"/api/x", "", nil)); got != 401 {
		t.Errorf("a proof for no token: %d, want 401", got)
	}
	if got := call(newProver(t).proof("GET", c.g.URL+"/api/x", token, withNonce(c.nonces["GET"]))); got != 401 {
		t.Errorf("a proof by another key: %d, want 401", got)
	}
	head, rest, _ := strings.Cut(proof("GET", c.g.URL+"/api/x", token, nil), ".")
	payload, signature, _ := strings.Cut(rest, ".")
	for _, header := range []string{`{"typ":"dpop+jwt","alg":"none"}`, `{"typ":"dpop+jwt","alg":"HS256","jwk":{"kty":"oct","k":"AA"}}`, `{"typ":"JWT","alg":"ES256"}`, `{"typ":"dpop+jwt","alg":"ES256"}`} {
		if got := call(b64(header) + "." + payload + "." + signature); got != 401 {
			t.Errorf("the header %s: %d, want 401", header, got)
		}
	}
	for _, wrong := range []string{head + "." + payload + "." + spoiled(signature), head + "." + payload, "x", ""} {
		if got := call(wrong); got != 401 && got != 400 {
			t.Errorf("the proof %.40q: %d, want a refusal", wrong, got)
		}
	}
	r := c.g.request("GET", "/api/x", "", "Authorization", "Bearer "+token, "DPoP", proof("GET", c.g.URL+"/api/x", token, nil))
	if a := c.g.do(r); a.StatusCode != 401 {
		t.Errorf("a bound token as a bearer token: %d, want 401", a.StatusCode)
	}
}

// fapiTLS checks that old versions of TLS and weak ciphers are refused.
func fapiTLS(t *testing.T, c *fapiClient) {
	address := strings.TrimPrefix(c.g.URL, "https://")
	trust := c.g.Client.Transport.(*http.Transport).TLSClientConfig.RootCAs
	for name, config := range map[string]*tls.Config{
		"TLS 1.1":                    {MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		"RSA key exchange":           {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}},
		"CBC":                        {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
		"3DES":                       {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}},
		"TLS 1.2 with a good cipher": {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}},
	} {
		config.RootCAs, config.ServerName = trust, "localhost"
		connection, err := tls.Dial("tcp", strings.Replace(address, "localhost", "127.0.0.1", 1), config)
		if good := strings.Contains(name, "good"); (err == nil) != good {
			t.Errorf("%s: %v, want that it is accepted: %t", name, err, good)
		}
		if err == nil {
			connection.Close()
		}
	}
}
