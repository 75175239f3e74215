package caddyoauth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/caddyoauth/gateway/caddyoauth"
)

// platform gives tokens to workloads.
type platform struct {
	t      testing.TB
	issuer string
	key    *ecdsa.PrivateKey
	kid    string
	file   string // its public key
}

func newPlatform(t testing.TB, issuer string) *platform {
	t.Helper()
	p := &platform{t: t, issuer: issuer, file: filepath.Join(t.TempDir(), "jwks.json")}
	p.rotate()
	return p
}

// rotate gives the platform another key.
func (p *platform) rotate() {
	p.t.Helper()
	var err error
	if p.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		p.t.Fatal(err)
	}
	p.kid = rand.Text()
	replaceFile(p.t, p.file, p.jwks())
}

func (p *platform) jwks() []byte {
	p.t.Helper()
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.key.Public(), KeyID: p.kid, Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		p.t.Fatal(err)
	}
	return set
}

func replaceFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// token signs a token for a subject, with these changes to a good one. A claim that is nil is left out.
func (p *platform) token(subject string, changes map[string]any) string {
	p.t.Helper()
	now := time.Now()
	claims := map[string]any{"iss": p.issuer, "sub": subject, "aud": "https://auth.example.com/oauth2", "exp": now.Add(5 * time.Minute).Unix(), "iat": now.Unix()}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, value any) bool { return value == nil })
	return sign(p.t, jose.ES256, p.key, map[jose.HeaderKey]any{"typ": "JWT", "kid": p.kid}, claims)
}

func sign(t testing.TB, algorithm jose.SignatureAlgorithm, key any, header map[jose.HeaderKey]any, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, &jose.SignerOptions{ExtraHeaders: header})
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// federated is a client of the platform.
func (p *platform) federated(id string, lines ...string) string {
	return "client " + id + " {\nfederated " + p.issuer + " {\njwks_file " + p.file + "\n" + strings.Join(lines, "\n") + "\n}\nscopes read\ndefault_scopes read\n}\n"
}

const (
	actions  = "https://token.actions.githubusercontent.com"
	mainOfIt = "repo:acme/app:ref:refs/heads/main"
)

// eventAfter returns the last event of a log that was written after before, once there is one.
func eventAfter(t testing.TB, logged func() string, before int, event string) (fields map[string]any) {
	t.Helper()
	waitUntil(t, "the event "+event, func() bool {
		for line := range strings.Lines(logged()[before:]) {
			var each map[string]any
			if json.Unmarshal([]byte(line), &each) == nil && each["event"] == event {
				fields = each
			}
		}
		return fields != nil
	})
	return fields
}

// A token of a platform is a client's credential, with the client's ID or without, at every endpoint
// and more than once. The event says whose it was.
func TestFederated(t *testing.T) {
	p := newPlatform(t, actions)
	g, logged := startLogged(t, "store memory\n"+issuerOption+
		p.federated("ci", "subject repo:acme/*:ref:refs/heads/main repo:acme/*:environment:prod", "subject repo:acme/tool:pull_request")+
		"client secretive {\nsecret_hash "+hashOf(testSecret)+"\nscopes read\ndefault_scopes read\n}\n", gatewaySite)
	waitUntil(t, "the platform's keys are read", func() bool { return g.ask(p.token(mainOfIt, nil)).StatusCode == 200 })
	for _, subject := range []string{mainOfIt, "repo:acme/other:environment:prod", "repo:acme/tool:pull_request"} {
		for _, more := range [][]string{nil, {"client_id", "ci"}} {
			text, before := p.token(subject, nil), len(logged())
			var token string
			for range 2 {
				token = wantToken(t, g.ask(text, more...), "read")
			}
			g.wants("its token", token, 200)
			event := eventAfter(t, logged, before, "token_issued")
			if event["client_id"] != "ci" || event["auth_method"] != "federated" || event["identity"] != actions+" "+subject || event["key"] == nil {
				t.Errorf("the event says %v", event)
			}
			if a := g.post("/oauth2/introspect", "", "", by(text, "token", token)).json(t); a["active"] != true || a["client_id"] != "ci" {
				t.Errorf("introspection says %v", a)
			}
			if a := g.post("/oauth2/token/revoke", "", "", by(text, append([]string{"token", token}, more...)...)); a.StatusCode != 200 {
				t.Errorf("revoking: %d", a.StatusCode)
			}
			g.wants("a revoked token", token, 401)
			if strings.Contains(logged(), text) {
				t.Error("the log has the platform's token")
			}
		}
	}
	meta := g.do(g.request("GET", "/.well-known/oauth-authorization-server/oauth2", "")).json(t)
	if methods, _ := json.Marshal(meta["token_endpoint_auth_methods_supported"]); string(methods) != `["client_secret_basic","client_secret_post","private_key_jwt"]` {
		t.Errorf("the metadata has the methods %s", methods)
	}
	if algorithms, _ := meta["token_endpoint_auth_signing_alg_values_supported"].([]any); !slices.Contains(algorithms, any("RS256")) {
		t.Errorf("the metadata has the algorithms %v", algorithms)
	}
}

// A token of the platform proves only what it says. Every failure has one answer.
func TestFederatedTokensThatAreRefused(t *testing.T) {
	p, stranger := newPlatform(t, actions), newPlatform(t, actions)
	other := newPlatform(t, "https://gitlab.example.com")
	signer := newKeyClient(t, "signer")
	main := "subject repo:acme/*:ref:refs/heads/main"
	g, logged := startLogged(t, "store memory\n"+noFailureLimit+issuerOption+
		p.federated("ci", main, "claim environment production staging", "claim runner.group trusted")+
		p.federated("long", "subject repo:long/app:ref:refs/heads/main", "max_lifetime 24h", "audience https://api.example.com https://other.example.com")+
		strings.Replace(p.federated("off", "subject repo:off/app:ref:refs/heads/main"), "scopes read\n", "scopes read\ndisabled\n", 1)+
		p.federated("wide", "subject repo:off/*:ref:refs/heads/main")+
		p.federated("twin", "subject repo:twin/app:*")+p.federated("twins", "subject repo:twin/*:x")+
		other.federated("gitlab", "subject "+mainOfIt)+signer.lines()+
		"client secretive {\nsecret_hash "+hashOf(testSecret)+"\nscopes read\ndefault_scopes read\n}\n", gatewaySite)
	type claims = map[string]any
	good := claims{"environment": "production", "runner": claims{"group": []string{"x", "trusted"}}}
	with := func(changes claims) claims {
		all := maps.Clone(good)
		maps.Copy(all, changes)
		return all
	}
	waitUntil(t, "all keys are read", func() bool {
		return g.ask(p.token(mainOfIt, good)).StatusCode == 200 && g.ask(other.token(mainOfIt, nil)).StatusCode == 200 && g.ask(signer.assert(nil, nil)).StatusCode == 200
	})
	now := time.Now()
	in := func(d time.Duration) int64 { return now.Add(d).Unix() }
	api := claims{"aud": "https://api.example.com"}
	for what, r := range map[string]struct {
		token, id, reason string
	}{
		"another repository's owner":     {p.token("repo:evil/app:ref:refs/heads/main", good), "", "assertion_subject"},
		"a longer name":                  {p.token("repo:acme-evil/app:ref:refs/heads/main", good), "ci", "assertion_subject"},
		"a part more":                    {p.token("repo:acme/a/b:ref:refs/heads/main", good), "ci", "assertion_subject"},
		"another branch":                 {p.token("repo:acme/app:ref:refs/heads/dev", good), "ci", "assertion_subject"},
		"no subject":                     {p.token("", with(claims{"sub": nil})), "ci", "assertion_malformed"},
		"another environment":            {p.token(mainOfIt, with(claims{"environment": "dev"})), "", "assertion_claim"},
		"an environment in upper case":   {p.token(mainOfIt, with(claims{"environment": "Production"})), "", "assertion_claim"},
		"no environment":                 {p.token(mainOfIt, with(claims{"environment": nil})), "ci", "assertion_claim"},
		"one claim of two":               {p.token(mainOfIt, with(claims{"runner": claims{"group": "x"}})), "ci", "assertion_claim"},
		"the platform's own audience":    {p.token(mainOfIt, with(claims{"aud": "https://github.com/acme"})), "ci", "assertion_audience"},
		"two audiences":                  {p.token(mainOfIt, with(claims{"aud": []string{"https://auth.example.com/oauth2", "https://github.com/acme"}})), "ci", "assertion_audience"},
		"no audience":                    {p.token(mainOfIt, with(claims{"aud": nil})), "ci", "assertion_audience"},
		"the audience of another client": {p.token(mainOfIt, with(api)), "ci", "assertion_audience"},
		"bound to a key":                 {p.token(mainOfIt, with(claims{"cnf": claims{"jkt": "x"}})), "ci", "assertion_binding"},
		"over":                           {p.token(mainOfIt, with(claims{"exp": in(-time.Second)})), "ci", "assertion_expired"},
		"no end":                         {p.token(mainOfIt, with(claims{"exp": nil})), "ci", "assertion_malformed"},
		"not yet":                        {p.token(mainOfIt, with(claims{"nbf": in(time.Minute)})), "ci", "assertion_not_yet"},
		"over an hour":                   {p.token(mainOfIt, with(claims{"iat": in(0), "exp": in(time.Hour + time.Second)})), "ci", "assertion_lifetime"},
		"over an hour, most of it past":  {p.token(mainOfIt, with(claims{"iat": in(-time.Hour), "exp": in(time.Minute)})), "ci", "assertion_lifetime"},
		"over an hour from now":          {p.token(mainOfIt, with(claims{"iat": nil, "exp": in(time.Hour + time.Minute)})), "ci", "assertion_lifetime"},
		"over eight days":                {p.token(mainOfIt, with(claims{"exp": in(8 * 24 * time.Hour)})), "ci", "assertion_lifetime"},
		"another's key":                  {stranger.token(mainOfIt, good), "ci", "assertion_unknown_key"},
		"a client of another platform":   {p.token(mainOfIt, good), "gitlab", "assertion_subject"},
		"another platform's key":         {sign(t, jose.ES256, p.key, map[jose.HeaderKey]any{"kid": p.kid}, claims{"iss": other.issuer, "sub": mainOfIt, "aud": "https://auth.example.com/oauth2", "exp": in(time.Minute)}), "gitlab", "assertion_unknown_key"},
		"an unknown platform":            {sign(t, jose.ES256, p.key, map[jose.HeaderKey]any{"kid": p.kid}, claims{"iss": actions + "/", "sub": mainOfIt, "aud": "https://auth.example.com/oauth2", "exp": in(time.Minute)}), "ci", "auth_method_not_allowed"},
		"an unknown client":              {p.token(mainOfIt, good), "nobody", "unknown_client"},
		"a client with a secret":         {p.token(mainOfIt, good), "secretive", "auth_method_not_allowed"},
		"a client with a key":            {p.token(mainOfIt, good), "signer", "auth_method_not_allowed"},
		"another client":                 {p.token(mainOfIt, good), "long", "assertion_subject"},
		"the platform as the client":     {p.token(mainOfIt, good), actions, "unknown_client"},
		"a disabled client":              {p.token("repo:off/app:ref:refs/heads/main", nil), "off", "client_disabled"},
		"one that is disabled or wide":   {p.token("repo:off/app:ref:refs/heads/main", nil), "", "assertion_ambiguous"},
		"two clients":                    {p.token("repo:twin/app:x", nil), "", "assertion_ambiguous"},
		"an access token":                {sign(t, jose.ES256, p.key, map[jose.HeaderKey]any{"kid": p.kid, "typ": "at+jwt"}, with(claims{"iss": actions, "sub": mainOfIt, "aud": "https://auth.example.com/oauth2", "exp": in(time.Minute)})), "ci", "assertion_typ"},
		"another algorithm":              {sign(t, jose.HS256, []byte(strings.Repeat("k", 32)), map[jose.HeaderKey]any{"kid": p.kid}, with(claims{"iss": actions, "sub": mainOfIt, "aud": "https://auth.example.com/oauth2", "exp": in(time.Minute)})), "ci", "assertion_alg"},
		"spoiled":                        {spoiled(p.token(mainOfIt, good)), "ci", "assertion_"}, // the last character may be one that can't stand there
		"the client's own":               {signer.assert(claims{"iss": "ci", "sub": "ci"}, nil), "", "auth_method_not_allowed"},
	} {
		t.Run(what, func(t *testing.T) {
			g.t = t
			more := []string{}
			if r.id != "" {
				more = []string{"client_id", r.id}
			}
			before := len(logged())
			wantE401(t, g.ask(r.token, more...), "root", r.token)
			event := eventAfter(t, logged, before, "token_refused")
			if reason, _ := event["reason"].(string); !strings.HasPrefix(reason, r.reason) {
				t.Errorf("the event says %v, want the reason %s", event, r.reason)
			}
			// Only a genuine token says whose it is.
			genuine := what != "no audience" && slices.Contains([]string{"assertion_subject", "assertion_claim", "assertion_audience", "assertion_binding", "assertion_ambiguous"}, r.reason)
			if genuine && !strings.HasPrefix(fmt.Sprint(event["identity"]), actions+" repo:") || r.reason == "assertion_" && event["identity"] != nil {
				t.Errorf("the event says %v", event)
			}
		})
	}
	g.t = t
	// Good ones, among all those.
	for what, r := range map[string]struct{ token, id string }{
		"a list of one audience":   {p.token(mainOfIt, with(claims{"aud": []string{"https://auth.example.com/oauth2"}})), ""},
		"an hour":                  {p.token(mainOfIt, with(claims{"iat": in(0), "exp": in(time.Hour)})), ""},
		"a day":                    {p.token("repo:long/app:ref:refs/heads/main", with(claims{"aud": "https://other.example.com", "iat": in(0), "exp": in(24 * time.Hour)})), ""},
		"no time of issue":         {p.token(mainOfIt, with(claims{"iat": nil})), ""},
		"the other environment":    {p.token(mainOfIt, with(claims{"environment": "staging"})), "ci"},
		"the narrow one of two":    {p.token("repo:twin/app:x", nil), "twin"},
		"the wide one of two":      {p.token("repo:twin/app:x", nil), "twins"},
		"the wide one":             {p.token("repo:off/app:ref:refs/heads/main", nil), "wide"},
		"one that only one covers": {p.token("repo:twin/app:y", nil), ""},
	} {
		more := []string{}
		if r.id != "" {
			more = []string{"client_id", r.id}
		}
		if a := g.ask(r.token, more...); a.StatusCode != 200 {
			t.Errorf("%s: %d %s", what, a.StatusCode, a.Body)
		}
	}
}

// The platform may change its keys while the gateway runs.
func TestFederatedKeysThatChange(t *testing.T) {
	p := newPlatform(t, actions)
	config := "store memory\n" + noFailureLimit + issuerOption + p.federated("ci", "subject "+mainOfIt)
	g := startGateway(t, config, gatewaySite)
	former := p.token(mainOfIt, nil)
	wantToken(t, g.ask(former), "read")
	replaceFile(t, p.file, []byte("broken"))
	if err := g.load(config+"client another {\ndisabled\n}\n", gatewaySite); err == nil {
		t.Error("a file without keys loads")
	}
	wantToken(t, g.ask(former), "read") // what is broken changes nothing
	p.rotate()
	waitUntil(t, "the new key is read", func() bool { return g.ask(p.token(mainOfIt, nil)).StatusCode == 200 })
	wantE401(t, g.ask(former), "root")
	if err := g.load(config+"client another {\ndisabled\n}\n", gatewaySite); err != nil {
		t.Fatal(err)
	}
	wantToken(t, g.ask(p.token(mainOfIt, nil)), "read") // the keys went on
}

// What can't be meant is refused when the configuration is loaded.
func TestFederatedSettingsThatAreRefused(t *testing.T) {
	p := newPlatform(t, actions)
	g := startGateway(t, "store memory\n"+testClients, gatewaySite)
	another := newPlatform(t, actions)
	main := "subject " + mainOfIt
	for what, r := range map[string]struct{ config, part string }{
		"no subject":        {issuerOption + p.federated("ci"), "federated needs a subject"},
		"anybody":           {issuerOption + p.federated("ci", "subject *"), "anybody's"},
		"anybody's URL":     {issuerOption + p.federated("ci", "subject https://*"), "anybody's"},
		"any owner":         {issuerOption + p.federated("ci", "subject repo:*/app:ref:refs/heads/main"), "anybody's"},
		"owners of a name":  {issuerOption + p.federated("ci", "subject repo:acme*/app:ref:refs/heads/main"), "anybody's"},
		"no audience":       {p.federated("ci", main), "give the realm an issuer"},
		"other keys":        {issuerOption + p.federated("ci", main) + another.federated("other", main), `the client "ci" has other jwks_uri`},
		"other algorithms":  {issuerOption + p.federated("ci", main) + p.federated("other", main, "algorithms ES256"), "other"},
		"no file":           {issuerOption + strings.Replace(p.federated("ci", main), p.file, p.file+".not", 1), "no such file"},
		"two places":        {issuerOption + p.federated("ci", main, "jwks_uri https://example.com/keys"), "can't be used together"},
		"no URL":            {issuerOption + "client ci {\nfederated kubernetes/serviceaccount {\n" + main + "\n}\n}\n", "the issuer must be an https URL"},
		"a life of weeks":   {issuerOption + p.federated("ci", main, "max_lifetime 8d"), "max_lifetime"},
		"another method":    {issuerOption + strings.Replace(p.federated("ci", main), "scopes read\n", "auth client_secret_basic\nsecret_hash "+hashOf(testSecret)+"\nscopes read\n", 1), "add 'auth federated'"},
		"nothing to verify": {issuerOption + "client ci {\nauth federated\n}\n", "add a federated"},
		"a client's name":   {issuerOption + p.federated("ci", main) + "client " + actions + " {\ndisabled\n}\n", "give it another ID"},
	} {
		if err := g.load("store memory\n"+r.config, gatewaySite); err == nil {
			t.Errorf("%s: it loads", what)
		} else if !strings.Contains(err.Error(), r.part) {
			t.Errorf("%s: %v, want %q in it", what, err, r.part)
		}
	}
	for what, config := range map[string]string{
		"anybody with a claim":   p.federated("ci", "subject *", "claim repository_owner acme"),
		"a secret, too":          strings.Replace(p.federated("ci", main), "scopes read\n", "secret_hash "+hashOf(testSecret)+"\nscopes read\n", 1),
		"two blocks":             strings.Replace(p.federated("ci", main), "scopes read\n", "federated "+actions+" {\njwks_file "+p.file+"\nsubject x\n}\nscopes read\n", 1),
		"an audience, no issuer": "",
	} {
		options := issuerOption
		if config == "" {
			options, config = "", p.federated("ci", main, "audience https://api.example.com")
		}
		if err := g.load("store memory\n"+options+config, gatewaySite); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// What fails without a client ID counts for the workload that it claims to be: others of the platform, at
// the same address, are not paused.
func TestFailuresCountForTheWorkload(t *testing.T) {
	p := newPlatform(t, actions)
	g := startGateway(t, "store memory\nlimit failures 2 1h\n"+issuerOption+p.federated("ci", "subject repo:acme/*:ref:refs/heads/main"), gatewaySite)
	bad, good := p.token("repo:acme/app:pull_request", nil), p.token(mainOfIt, nil)
	for _, want := range []int{401, 401, 429, 429} {
		if a := g.ask(bad); a.StatusCode != want {
			t.Errorf("%d, want %d", a.StatusCode, want)
		}
	}
	wantToken(t, g.ask(good), "read")
	for range 2 {
		wantE401(t, g.ask(bad, "client_id", "ci"), "root")
	}
	if a := g.ask(good, "client_id", "ci"); a.StatusCode != 429 {
		t.Errorf("in the name of the client: %d", a.StatusCode)
	}
}

// No client that is added later takes the place of a platform.
func TestNoManagedClientIsAPlatform(t *testing.T) {
	p := newPlatform(t, actions)
	config, address := withAdmin(t, caddyfileOf("store memory\n"+issuerOption+managedOptions+p.federated("ci", "subject "+mainOfIt), gatewaySite))
	a := admin{startCaddyfile(t, config), address}
	if res := a.must(400, "PUT", "/oauth/clients/root/"+url.PathEscape(actions), `{"scopes":["read"]}`); !strings.Contains(res.Body, "another ID") {
		t.Errorf("the answer is %s", res.Body)
	}
	wantToken(t, a.ask(p.token(mainOfIt, nil)), "read")
}

// Each of many clients of one platform is found by its subject alone, and the platform's keys are there
// once for all of them.
func TestManyClientsOfOnePlatform(t *testing.T) {
	p := newPlatform(t, actions)
	const most = 2000
	var clients strings.Builder
	for i := range most {
		clients.WriteString(p.federated(fmt.Sprintf("c%d", i), fmt.Sprintf("subject repo:acme/app%d:ref:refs/heads/*", i)))
	}
	g := startGateway(t, "store memory\n"+issuerOption+clients.String(), gatewaySite)
	for _, i := range []int{0, 1, 10, 100, 1234, most - 1} {
		token := wantToken(t, g.ask(p.token(fmt.Sprintf("repo:acme/app%d:ref:refs/heads/main", i), nil)), "read")
		g.wants("its token", token, 200)
		if got, want := g.Backend.last(t).Header.Get("X-OAuth-Client-Id"), fmt.Sprintf("c%d", i); got != want {
			t.Errorf("the client is %s, want %s", got, want)
		}
	}
	wantE401(t, g.ask(p.token(fmt.Sprintf("repo:acme/app%d:ref:refs/heads/main", most), nil)), "root")
	if open := caddyoauth.OpenKeys(); open != 1 {
		t.Errorf("the keys are there %d times", open)
	}
}

// newTrustDomain returns a platform whose tokens are JWT-SVIDs.
func newTrustDomain(t testing.TB, domain string) *platform {
	t.Helper()
	p := newPlatform(t, domain)
	p.bundle()
	return p
}

// bundle writes the platform's key as SPIRE does, beside one for X.509-SVIDs.
func (p *platform) bundle() {
	p.t.Helper()
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	set, err := json.Marshal(map[string]any{"spiffe_sequence": 2, "spiffe_refresh_hint": 300, "keys": []jose.JSONWebKey{
		{Key: other.Public(), Use: "x509-svid"}, {Key: p.key.Public(), KeyID: p.kid, Use: "jwt-svid"},
	}})
	if err != nil {
		p.t.Fatal(err)
	}
	replaceFile(p.t, p.file, set)
}

// A JWT-SVID is the credential of the client that its SPIFFE ID belongs to, whatever its iss is, as
// either type of assertion.
func TestSVIDsAreCredentials(t *testing.T) {
	p, signer := newTrustDomain(t, "spiffe://example.org"), newKeyClient(t, "signer")
	idp := newPlatform(t, "https://oidc.example.org")
	g, logged := startLogged(t, "store memory\n"+noFailureLimit+issuerOption+
		p.federated("ci", "subject spiffe://example.org/ci/*")+p.federated("spiffe://example.org/one", "subject spiffe://example.org/one")+
		idp.federated("idp", "subject spiffe://example.org/idp")+signer.lines(), gatewaySite)
	type claims = map[string]any
	none := claims{"iss": nil}
	waitUntil(t, "all keys are read", func() bool {
		return g.ask(p.token("spiffe://example.org/ci/runner", none)).StatusCode == 200 && g.ask(idp.token("spiffe://example.org/idp", nil)).StatusCode == 200 && g.ask(signer.assert(nil, nil)).StatusCode == 200
	})
	const svid = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"
	as := func(text, kind string, more ...string) answer {
		form := by(text, append([]string{"grant_type", "client_credentials"}, more...)...)
		form.Set("client_assertion_type", kind)
		return g.post("/oauth2/access_token", "", "", form)
	}
	header := func(typ any) map[jose.HeaderKey]any {
		h := map[jose.HeaderKey]any{"kid": p.kid}
		if typ != nil {
			h["typ"] = typ
		}
		return h
	}
	good := claims{"sub": "spiffe://example.org/ci/runner", "aud": []string{"https://auth.example.com/oauth2"}, "exp": time.Now().Add(5 * time.Minute).Unix()}
	for what, a := range map[string]answer{
		"by either type":         as(p.token("spiffe://example.org/ci/runner", none), svid),
		"with its client":        as(p.token("spiffe://example.org/ci/runner", none), svid, "client_id", "ci"),
		"whose ID is the client": as(p.token("spiffe://example.org/one", none), svid, "client_id", "spiffe://example.org/one"),
		"without typ":            as(sign(t, jose.ES256, p.key, header(nil), good), assertionType),
		"with typ JOSE":          as(sign(t, jose.ES256, p.key, header("JOSE"), good), svid),
		"with an issuer":         as(p.token("spiffe://example.org/ci/runner", claims{"iss": "https://spire.example.org"}), assertionType),
		"with a known issuer":    as(p.token("spiffe://example.org/ci/runner", claims{"iss": idp.issuer}), svid),
	} {
		if a.StatusCode != 200 {
			t.Errorf("%s: %d %s", what, a.StatusCode, a.Body)
		}
	}
	before := len(logged())
	wantToken(t, as(p.token("spiffe://example.org/ci/runner", none), svid), "read")
	if event := eventAfter(t, logged, before, "token_issued"); event["client_id"] != "ci" || event["auth_method"] != "federated" || event["identity"] != "spiffe://example.org/ci/runner" {
		t.Errorf("the event says %v", event)
	}
	for what, text := range map[string]string{
		"another trust domain":           p.token("spiffe://example.com/ci/runner", none),
		"one that begins like it":        p.token("spiffe://example.org.evil/ci/runner", none),
		"another workload":               p.token("spiffe://example.org/web", none),
		"a part more":                    p.token("spiffe://example.org/ci/a/b", none),
		"an ID that is spelled oddly":    p.token("spiffe://example.org/ci/../one", none),
		"the trust domain itself":        p.token("spiffe://example.org", none),
		"another audience":               p.token("spiffe://example.org/ci/runner", claims{"iss": nil, "aud": "https://api.example.com"}),
		"the typ of an access token":     sign(t, jose.ES256, p.key, header("at+jwt"), good),
		"the key of an issuer":           idp.token("spiffe://example.org/ci/runner", claims{"iss": nil}),
		"the workload of another issuer": idp.token("spiffe://example.org/ci/runner", nil),
		"a known issuer's workload":      p.token("spiffe://example.org/idp", claims{"iss": idp.issuer}),
		"a client's own":                 signer.assert(nil, nil),
	} {
		before := len(logged())
		wantE401(t, as(text, svid), "root", text)
		eventAfter(t, logged, before, "token_refused")
		_ = what
	}
	a := as("x", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer")
	if wantE(t, a, 400, "invalid_request"); !strings.Contains(a.Body, svid) {
		t.Errorf("the answer is %s", a.Body)
	}
	// Where there is no trust domain, nobody knows the type.
	if err := g.load("store memory\n"+issuerOption+idp.federated("idp", "subject spiffe://example.org/idp"), gatewaySite); err != nil {
		t.Fatal(err)
	}
	if a = as("x", svid); a.StatusCode != 400 || strings.Contains(a.Body, "spiffe") {
		t.Errorf("the answer is %d %s", a.StatusCode, a.Body)
	}
}

// JWT-SVIDs are bearer tokens on routes that accept their trust domain, and whose audience they name.
func TestSourceSPIFFE(t *testing.T) {
	p := newTrustDomain(t, "spiffe://example.org")
	const api = "https://api.example.com"
	source := "source spiffe spiffe://example.org {\njwks_file " + p.file + "\naudience " + api + "\n}\n"
	g := startGateway(t, "store memory\n"+issuerOption+testClients, "oauth_server\noauth_protect /any/* {\n"+source+"source local\nresource http://127.0.0.1/any\n}\noauth_protect /one/* {\n"+source+"claim sub spiffe://example.org/ci/runner\n}\noauth_protect /scope/* {\n"+source+"scopes read\n}\nreverse_proxy BACKEND")
	type claims = map[string]any
	with := func(more claims) claims {
		all := claims{"iss": nil, "aud": []string{"https://other.example.com", api}}
		maps.Copy(all, more)
		return all
	}
	runner, web := p.token("spiffe://example.org/ci/runner", with(nil)), p.token("spiffe://example.org/web", with(nil))
	waitUntil(t, "the bundle is read", func() bool { return g.get("/any/x", runner).StatusCode == 200 })
	for path, want := range map[string][2]int{"/any/x": {200, 200}, "/one/x": {200, 403}, "/scope/x": {403, 403}} {
		for i, text := range []string{runner, web, runner, web} { // the second time from the cache
			if a := g.get(path, text); a.StatusCode != want[i%2] {
				t.Errorf("%s: %d, want %d: %s", path, a.StatusCode, want[i%2], a.Body)
			}
		}
	}
	g.get("/any/x", runner)
	if got := g.Backend.last(t).Header; got.Get("X-OAuth-Subject") != "spiffe://example.org/ci/runner" || got.Get("X-OAuth-Issuer") != "spiffe://example.org" || got.Get("X-OAuth-Client-Id") != "" {
		t.Errorf("the backend got %v", got)
	}
	if a := g.get("/any/x", g.token("reader", "read")); a.StatusCode != 200 {
		t.Errorf("a token from here: %d", a.StatusCode)
	}
	// A trust domain is not a server that anybody could get tokens from.
	r := g.request("GET", "/.well-known/oauth-protected-resource/any", "")
	r.Host = "127.0.0.1"
	if servers, _ := json.Marshal(g.do(r).json(t)["authorization_servers"]); string(servers) != `["https://auth.example.com/oauth2"]` {
		t.Errorf("the document about the resource names %s", servers)
	}
	other := newTrustDomain(t, "spiffe://example.org")
	for what, text := range map[string]string{
		"another audience":     p.token("spiffe://example.org/ci/runner", with(claims{"aud": "https://other.example.com"})),
		"no audience":          p.token("spiffe://example.org/ci/runner", with(claims{"aud": nil})),
		"another trust domain": p.token("spiffe://example.com/ci/runner", with(nil)),
		"no SPIFFE ID":         p.token("runner", with(nil)),
		"the issuer's name":    p.token("runner", with(claims{"iss": "spiffe://example.org"})),
		"another key":          other.token("spiffe://example.org/ci/runner", with(nil)),
		"over":                 p.token("spiffe://example.org/ci/runner", with(claims{"exp": time.Now().Add(-time.Second).Unix()})),
		"another typ":          sign(t, jose.ES256, p.key, map[jose.HeaderKey]any{"typ": "at+jwt", "kid": p.kid}, with(claims{"sub": "spiffe://example.org/ci/runner", "exp": time.Now().Add(time.Minute).Unix()})),
		"spoiled":              spoiled(runner),
	} {
		for _, path := range []string{"/any/x", "/one/x"} {
			if a := g.get(path, text); a.StatusCode != 401 {
				t.Errorf("%s: %s answers %d", what, path, a.StatusCode)
			}
		}
	}
}

// The keys of a platform come from public addresses, or from hosts that the configuration names.
func TestFederatedKeysAreGuarded(t *testing.T) {
	p := newPlatform(t, actions)
	served := http.NewServeMux()
	var down atomic.Bool
	server := httptest.NewServer(served)
	t.Cleanup(server.Close)
	p.issuer = server.URL
	served.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":"%s/keys"}`, server.URL, server.URL)
	})
	served.HandleFunc("/keys", func(w http.ResponseWriter, r *http.Request) {
		if down.Load() || r.Header.Get("Authorization") != "Bearer "+testSecret {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Write(p.jwks())
	})
	pod := filepath.Join(t.TempDir(), "token")
	replaceFile(t, pod, []byte(testSecret+"\n"))
	client := func(lines string) string {
		return "store memory\n" + noFailureLimit + issuerOption + "client ci {\nfederated " + p.issuer + " {\nsubject " + mainOfIt + "\n" + lines + "\n}\nscopes read\ndefault_scopes read\n}\n"
	}
	header := "header Authorization \"Bearer {file." + pod + "}\"\n"
	// The gateway starts while the platform is down. Nobody is told what the matter is.
	down.Store(true)
	g, logged := startLogged(t, client(header+"private_hosts 127.0.0.1"), gatewaySite)
	before := len(logged())
	wantE401(t, g.ask(p.token(mainOfIt, nil)), "root")
	if event := eventAfter(t, logged, before, "token_refused"); event["reason"] != "assertion_keys_unknown" {
		t.Errorf("without keys the event says %v", event)
	}
	down.Store(false)
	waitUntil(t, "the keys are fetched", func() bool { return g.ask(p.token(mainOfIt, nil)).StatusCode == 200 })
	for what, lines := range map[string]string{
		"a private address":  header,
		"the wrong host":     header + "private_hosts localhost",
		"hosts for a file":   "jwks_file " + p.file + "\nprivate_hosts 127.0.0.1",
		"a host with a port": header + "private_hosts 127.0.0.1:80",
	} {
		if err := g.load(client(lines), gatewaySite); err == nil {
			t.Errorf("%s: it loads", what)
		} else {
			t.Logf("%s: %v", what, err)
		}
	}
}
