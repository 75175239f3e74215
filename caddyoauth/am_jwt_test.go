package caddyoauth_test

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// Lines by which realms have JWTs with ForgeRock AM's claims.
const amJWTs = jwtOptions + "am_compat\n"

// hmacSecret makes a file with a secret for HS256, and returns the lines by which a realm signs with it.
func hmacSecret(t testing.TB, name string) (lines, secret string) {
	t.Helper()
	path, secret := filepath.Join(t.TempDir(), name), "the HMAC secret that is called "+name+"."
	if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	return jwtOptions + "am_compat {\njwt_hmac_secret {file." + path + "}\n}\n", secret
}

// What a resource server that was written for AM finds in a token: the header, and each claim in the
// form that AM gives it. The gateway's own endpoints say the same of the token.
func TestAMTokensAsAResourceServerSeesThem(t *testing.T) {
	hmac, secret := hmacSecret(t, "own")
	// AM's secret is any bytes, in base64.
	encoded, bytes := filepath.Join(t.TempDir(), "base64"), "\x00\xff\n"+strings.Repeat("\xfe", 29)
	if err := os.WriteFile(encoded, []byte(base64.StdEncoding.EncodeToString([]byte(bytes))+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ options, alg, sub, secret string }{
		"ES256":            {amJWTs, "ES256", "(age!ID)", ""},
		"bare":             {jwtOptions + "am_compat {\nsubject bare\n}\n", "ES256", "ID", ""},
		"HS256":            {hmac, "HS256", "(age!ID)", secret},
		"HS256, in base64": {jwtOptions + "am_compat {\njwt_hmac_secret {file." + encoded + "}\njwt_hmac_base64\n}\n", "HS256", "(age!ID)", bytes},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t, "store memory\n"+c.options+testClients, gatewaySite)
			raw, set := g.keySet("/oauth2/connect/jwk_uri")
			if len(raw) != 1 || raw[0]["kty"] != "EC" {
				t.Errorf("published: %v", raw)
			}
			for id, aud := range map[string]any{"reader": "reader", "writer": []any{"writer", "https://api.example.com"}} {
				a := g.fetch(id, "read").json(t)
				token, _ := a["access_token"].(string)
				jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(c.alg)})
				if err != nil {
					t.Fatal(err)
				}
				header := jws.Signatures[0].Header
				var key any = []byte(c.secret)
				if c.alg != "HS256" {
					key = set.Key(header.KeyID)[0].Key
				}
				payload, err := jws.Verify(key)
				if err != nil || header.ExtraHeaders["typ"] != "JWT" || (header.KeyID == "") != (c.alg == "HS256") {
					t.Fatalf("%s: %v, header %+v", id, err, header)
				}
				var claims map[string]any
				if err := json.Unmarshal(payload, &claims); err != nil {
					t.Fatal(err)
				}
				issued, _ := claims["iat"].(float64)
				for claim, want := range map[string]any{
					"sub": strings.Replace(c.sub, "ID", id, 1), "subname": id, "aud": aud, "client_id": id, "scope": []any{"read"}, "tokenName": "access_token", "token_type": "Bearer",
					"cts": "OAUTH2_STATELESS_GRANT", "grant_type": "client_credentials", "realm": "/", "iss": "https://auth.example.com/oauth2",
					"nbf": issued, "auth_time": issued, "exp": issued + 3600, "expires_in": 3600.0,
				} {
					if got, _ := json.Marshal(claims[claim]); string(got) != string(marshal(t, want)) {
						t.Errorf("%s: %s is %s, want %s", id, claim, got, marshal(t, want))
					}
				}
				if a["expires_in"] != 3599.0 {
					t.Errorf("%s: expires_in in the answer is %v", id, a["expires_in"])
				}
				if said := g.introspect(id, token).json(t); said["active"] != true || said["client_id"] != id || said["exp"] != claims["exp"] || said["jti"] != claims["jti"] || said["scope"] != "read" {
					t.Errorf("%s: introspection says %v", id, said)
				}
			}
			token := g.token("reader")
			g.wants("a token", token, 200)
			if id := g.Backend.last(t).Header.Get("X-OAuth-Client-Id"); id != "reader" {
				t.Errorf("the backend hears of %q", id)
			}
			if a := g.revoke("reader", token); a.StatusCode != 200 {
				t.Errorf("revoking: %d", a.StatusCode)
			}
			g.wants("a revoked token", token, 401)
			if said := g.introspect("reader", token); said.Body != `{"active":false}` {
				t.Errorf("introspection of a revoked token: %s", said.Body)
			}
		})
	}
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A realm that is switched to AM's claims and back goes on with the tokens of both kinds, in all stores,
// and what was revoked stays dead.
func TestAMTokensLiveThroughReloads(t *testing.T) {
	hmac, _ := hmacSecret(t, "own")
	steps := []struct{ options, typ string }{{jwtOptions, "at+jwt"}, {amJWTs, "JWT"}, {jwtOptions, "at+jwt"}, {hmac, "JWT"}, {amJWTs, "JWT"}, {hmac, "JWT"}}
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			store += keyFiles(t, "key")["key"]
			g := startGateway(t, store+steps[0].options+testClients, gatewaySite)
			var good, revoked []string
			for i, step := range steps {
				if err := g.load(store+step.options+testClients, gatewaySite); err != nil {
					t.Fatal(err)
				}
				good, revoked = append(good, g.token("reader")), append(revoked, g.token("reader"))
				header, err := base64.RawURLEncoding.DecodeString(strings.Split(good[i], ".")[0])
				if err != nil || !strings.Contains(string(header), `"typ":"`+step.typ+`"`) {
					t.Errorf("step %d: the header is %s", i, header)
				}
				g.wants("a new token", revoked[i], 200)
				if a := g.revoke("reader", revoked[i]); a.StatusCode != 200 {
					t.Errorf("revoking: %d", a.StatusCode)
				}
				for j := range good {
					want := 200
					if j == 3 && step.options != hmac {
						want = 401 // nobody has its secret now
					}
					g.wants("after step "+strconv.Itoa(i)+", token "+strconv.Itoa(j), good[j], want)
					g.wants("after step "+strconv.Itoa(i)+", revoked token "+strconv.Itoa(j), revoked[j], 401)
				}
			}
			if name == "memory" {
				return
			}
			g.restart(store+amJWTs+testClients, gatewaySite)
			for j := range good {
				want := 200
				if j == 3 || j == 5 {
					want = 401
				}
				g.wants("after a restart, token "+strconv.Itoa(j), good[j], want)
				g.wants("after a restart, revoked token "+strconv.Itoa(j), revoked[j], 401)
			}
		})
	}
}

// Gateways that share a store take each other's tokens, although one has AM's claims and the other has
// not. Only a secret must be known to both: without it, no gateway says that a token of it is revoked.
func TestFleetWithAMTokens(t *testing.T) {
	redis := redistest.Start(t)
	store := at(redis.Addr) + keyFiles(t, "key")["key"] + noFailureLimit
	secret, _ := hmacSecret(t, "one")
	other, _ := hmacSecret(t, "another")
	here := startGateway(t, store+jwtOptions+testClients, fleetSite)
	there, _ := startGatewayProcess(t, store+amJWTs+testClients)
	third, _ := startGatewayProcess(t, store+secret+testClients)
	here.linked()
	pairs := [][2]*gateway{{here, there}, {there, here}, {there, third}, {here, third}}
	for round, pair := range pairs {
		from, to := pair[0], pair[1]
		token := from.token("reader")
		to.wants("issued elsewhere", token, 200)
		if a := to.revoke("reader", token); a.StatusCode != 200 {
			t.Fatalf("round %d: revoking: %d", round, a.StatusCode)
		}
		waitUntil(t, "a token that was revoked elsewhere is dead", func() bool { return from.get("/x", token).StatusCode == 401 })
	}
	signed := third.token("reader")
	third.wants("with the secret", signed, 200)
	for name, g := range map[string]*gateway{"without am_compat": here, "with am_compat": there} {
		g.wants("without the secret", signed, 401)
		if a := g.revoke("reader", signed); a.StatusCode != 503 {
			t.Errorf("%s: revoking a token that another gateway has signed with its secret: %d %s", name, a.StatusCode, a.Body)
		}
	}
	if err := here.load(store+other+testClients, fleetSite); err != nil {
		t.Fatal(err)
	}
	here.linked()
	here.wants("with another secret", signed, 401)
	if a := here.revoke("reader", signed); a.StatusCode != 503 {
		t.Errorf("revoking a token that another gateway may have signed: %d %s", a.StatusCode, a.Body)
	}
	if err := here.load(store+secret+testClients, fleetSite); err != nil {
		t.Fatal(err)
	}
	here.linked()
	here.wants("with the same secret", signed, 200)
	if a := here.revoke("reader", signed); a.StatusCode != 200 {
		t.Errorf("revoking: %d %s", a.StatusCode, a.Body)
	}
	waitUntil(t, "it is dead elsewhere", func() bool { return third.get("/x", signed).StatusCode == 401 })
}

// A token is only as good as the secret that signed it: with another, it is dead at once, although the
// cache knew it. Another realm does not take it, and must have another secret; root's is root's alone.
func TestSecretsOfAMTokens(t *testing.T) {
	one, secret := hmacSecret(t, "one")
	other, _ := hmacSecret(t, "other")
	realm := func(name, options string) string {
		return "realm " + name + " {\n" + options + "client b {\nsecret_hash " + hashOf(testSecret) + "\nscopes read\ndefault_scopes read\n}\n}\n"
	}
	alphas, _ := hmacSecret(t, "alpha")
	alpha := strings.Replace(alphas, jwtOptions, "", 1)
	config := func(root string) string {
		return "store memory\n" + noFailureLimit + root + testClients + realm("alpha", alpha) + realm("beta", "")
	}
	site := "oauth_server\nhandle /alpha/* {\noauth_protect {\nsource local alpha\n}\nreverse_proxy BACKEND\n}\nhandle {\noauth_protect\nreverse_proxy BACKEND\n}"
	g, logged := startLogged(t, config(one), site)
	token := g.token("reader")
	g.wants("a token", token, 200)
	if a := g.get("/alpha/x", token); a.StatusCode != 401 {
		t.Errorf("root's token in another realm: %d", a.StatusCode)
	}
	of := func(realm string) string {
		t.Helper()
		a := g.post("/oauth2/realms/root/realms/"+realm+"/access_token", "b", testSecret, url.Values{"grant_type": {"client_credentials"}})
		token, _ := a.json(t)["access_token"].(string)
		if claims := payloadOf(t, token); claims["realm"] != "/"+realm || claims["sub"] != "(age!b)" {
			t.Errorf("the claims of realm %s are %v", realm, claims)
		}
		return token
	}
	ofAlpha, ofBeta := of("alpha"), of("beta")
	if a := g.get("/alpha/x", ofAlpha); a.StatusCode != 200 {
		t.Errorf("the realm's own token: %d", a.StatusCode)
	}
	g.wants("the realm's token at root", ofAlpha, 401)
	if header, _ := base64.RawURLEncoding.DecodeString(strings.Split(ofBeta, ".")[0]); !strings.Contains(string(header), `"alg":"ES256"`) {
		t.Errorf("a realm without a secret has tokens with the header %s", header)
	}
	parts := strings.Split(token, ".")
	for what, text := range map[string]string{
		"signed by the other realm": parts[0] + "." + parts[1] + "." + strings.Split(ofAlpha, ".")[2],
		"without signature":         parts[0] + "." + parts[1] + ".",
		"spoiled":                   spoiled(token),
	} {
		g.wants(what, text, 401)
	}
	if err := g.loadCaddyfile(caddyfileOf(config(alphas), site)); err == nil || !strings.Contains(err.Error(), `realms "alpha" and "root" have the same jwt_hmac_secret`) {
		t.Errorf("two realms with one secret: %v", err)
	}
	if err := g.loadCaddyfile(caddyfileOf(config(other), site)); err != nil {
		t.Fatal(err)
	}
	g.wants("a token of the former secret", token, 401)
	g.wants("a new one", g.token("reader"), 200)
	if a := g.revoke("reader", token); a.StatusCode != 200 {
		t.Errorf("revoking a token of the former secret: %d", a.StatusCode)
	}
	if text := logged(); strings.Contains(text, secret) || strings.Contains(text, token) || !strings.Contains(text, "token issued") {
		t.Errorf("the log holds the secret or the token, or nothing:\n%s", text)
	}
}

// A token that is bound to a key says so among AM's claims, and is no bearer token.
func TestBoundAMTokens(t *testing.T) {
	hmac, _ := hmacSecret(t, "own")
	for name, options := range map[string]string{"ES256": amJWTs, "HS256": hmac} {
		t.Run(name, func(t *testing.T) {
			strict := "client strict {\nsecret_hash " + testHash + "\nscopes read\ndpop required\n}\n"
			g := startGateway(t, "store memory\n"+options+testClients+strict, gatewaySite)
			p := newProver(t)
			token := g.boundToken(p, dpopIssuer, "strict")
			claims := payloadOf(t, token)
			if cnf, _ := claims["cnf"].(map[string]any); len(cnf) != 1 || cnf["jkt"] != p.jkt || claims["token_type"] != "DPoP" {
				t.Errorf("the claims are %v", claims)
			}
			if about := g.introspect("strict", token).json(t); about["active"] != true || about["token_type"] != "DPoP" {
				t.Errorf("introspection says %v", about)
			}
			for range 2 { // the second is warm
				g.wants("as a bearer token", token, 401)
			}
			g.wants("another client's", g.token("reader"), 200)
		})
	}
}

// The keys of the realm can be listed, but who wants its JWTs dead must change the secret: to rotate the
// keys would end none of them.
func TestKeysOfARealmWithAnHMACSecret(t *testing.T) {
	hmac, secret := hmacSecret(t, "own")
	config, admin := withAdmin(t, caddyfileOf("store memory\n"+hmac+testClients, gatewaySite))
	g := startCaddyfile(t, config)
	for _, body := range []string{`{}`, `{"withdraw":true}`} {
		if a := g.adminCall(admin, "/oauth/keys/rotate", body); a.StatusCode != 409 || !strings.Contains(a.Body, "jwt_hmac_secret") {
			t.Errorf("%s: %d %s", body, a.StatusCode, a.Body)
		}
	}
	for _, path := range []string{"/config/", "/oauth/keys", "/oauth/"} {
		a := g.adminCall(admin, path, "")
		if a.StatusCode != 200 || strings.Contains(a.Body, secret) || path == "/config/" && !strings.Contains(a.Body, `"jwt_hmac_secret":"{file.`) {
			t.Errorf("%s: %d %s", path, a.StatusCode, a.Body)
		}
	}
}

// payloadOf returns the claims of a JWT, unverified.
func payloadOf(t testing.TB, token string) (claims map[string]any) {
	t.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

func TestHMACSecretsThatAreRefused(t *testing.T) {
	short := filepath.Join(t.TempDir(), "short")
	const secret = "a secret of too few letters"
	if err := os.WriteFile(short, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	const digits = "0123456789abcdef0123456789abcdef"
	few := filepath.Join(t.TempDir(), "few")
	if err := os.WriteFile(few, []byte(digits), 0o600); err != nil {
		t.Fatal(err)
	}
	for lines, want := range map[string]string{
		"jwt_hmac_secret {file." + few + "}\njwt_hmac_base64":   "at least 32 bytes, not 24",
		"jwt_hmac_secret {file." + short + "}\njwt_hmac_base64": "must be written in base64",
		"jwt_hmac_base64":                            "needs a jwt_hmac_secret",
		"jwt_hmac_secret {file." + short + "}":       "at least 32 bytes, not 27",
		"jwt_hmac_secret {file." + short + ".none}":  "is not set, empty, or can't be read",
		"jwt_hmac_secret " + strings.Repeat("x", 40): "never literally",
	} {
		g := &gateway{t: t, Backend: newBackend(t), Client: newClient(t)}
		err := g.load("store memory\n"+jwtOptions+"am_compat {\n"+lines+"\n}\n"+testClients, gatewaySite)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), digits) || strings.Contains(err.Error(), "xxxx") {
			t.Errorf("%s: %v, want %q", lines, err, want)
		}
	}
}

// Another gateway takes the tokens as it takes AM's own: by the published keys, or by asking.
func TestAMTokensAtAnotherGateway(t *testing.T) {
	hmac, _ := hmacSecret(t, "own")
	for name, options := range map[string]string{"a key pair": amJWTs, "a secret": hmac} {
		t.Run(name, func(t *testing.T) {
			issuer, _ := startGatewayProcess(t, "store memory\n"+options+strings.Replace(testClients, "client writer {", "client writer {\nintrospect realm", 1))
			secret := filepath.Join(t.TempDir(), "secret")
			if err := os.WriteFile(secret, []byte(testSecret), 0o600); err != nil {
				t.Fatal(err)
			}
			g := startGateway(t, "store memory\n"+noFailureLimit, "handle /jwt/* {\noauth_protect {\nsource jwt https://auth.example.com/oauth2 {\njwks_uri "+issuer.URL+"/oauth2/connect/jwk_uri\ntyp any\nclient_claim client_id aud\n}\nscopes read\n}\nreverse_proxy BACKEND\n}\n"+
				"handle /api/* {\noauth_protect {\nsource jwt https://auth.example.com/oauth2 {\njwks_uri "+issuer.URL+"/oauth2/connect/jwk_uri\ntyp any\naudience https://api.example.com\n}\n}\nreverse_proxy BACKEND\n}\n"+
				"handle /strict/* {\noauth_protect {\nsource jwt https://auth.example.com/oauth2 {\njwks_uri "+issuer.URL+"/oauth2/connect/jwk_uri\naudience https://api.example.com\n}\n}\nreverse_proxy BACKEND\n}\n"+
				"handle {\noauth_protect {\nsource introspect "+issuer.URL+"/oauth2/introspect {\nclient_id writer\nclient_secret {file."+secret+"}\nmax_age 1ms\nissuer https://auth.example.com/oauth2\n}\nscopes read\n}\nreverse_proxy BACKEND\n}")
			reader, writer := issuer.token("reader"), issuer.token("writer", "read")
			wants := map[string]map[string]int{
				"/jwt/x":    {reader: 200, writer: 200},
				"/api/x":    {reader: 401, writer: 200}, // only one has that audience
				"/strict/x": {reader: 401, writer: 401}, // AM's header doesn't say what kind of token it is
				"/x":        {reader: 200, writer: 200},
			}
			if options == hmac { // whose keys nobody knows
				wants["/jwt/x"], wants["/api/x"] = map[string]int{reader: 401, writer: 401}, map[string]int{reader: 401, writer: 401}
			}
			for _, path := range slices.Sorted(maps.Keys(wants)) {
				for token, want := range wants[path] {
					a := g.get(path, token)
					if a.StatusCode != want {
						t.Errorf("%s: %d %s, want %d", path, a.StatusCode, a.Header.Get("WWW-Authenticate"), want)
					}
					if want != 200 {
						continue
					}
					id := map[string]string{reader: "reader", writer: "writer"}[token]
					if got := g.Backend.last(t).Header; got.Get("X-OAuth-Client-Id") != id || got.Get("X-OAuth-Scope") != "read" {
						t.Errorf("%s: the backend hears of %v", path, got)
					}
				}
			}
			if a := issuer.revoke("reader", reader); a.StatusCode != 200 {
				t.Fatalf("revoking: %d", a.StatusCode)
			}
			waitUntil(t, "who asks learns of the revocation", func() bool { return g.get("/x", reader).StatusCode == 401 })
		})
	}
}
