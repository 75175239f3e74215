package caddyoauth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// amServer is what ForgeRock AM 7 is to a gateway beside it: it publishes OpenID Connect's metadata alone
// and its keys, and tells what tokens mean, all below the path of a realm.
type amServer struct {
	*httptest.Server
	issuer string
	key    *ecdsa.PrivateKey
	tokens sync.Map // the answer about each opaque token
}

func newAMServer(t *testing.T) *amServer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	am := &amServer{key: key}
	const realm = "/am/oauth2/realms/root/realms/alpha"
	write := func(w http.ResponseWriter, document any) {
		w.Header().Set("Content-Type", "application/json;charset=UTF-8")
		json.NewEncoder(w).Encode(document)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+realm+"/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		write(w, map[string]any{"issuer": am.issuer, "jwks_uri": am.issuer + "/connect/jwk_uri", "introspection_endpoint": am.issuer + "/introspect"})
	})
	mux.HandleFunc("GET "+realm+"/connect/jwk_uri", func(w http.ResponseWriter, _ *http.Request) {
		write(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
			{Key: key.Public(), KeyID: "wU3ifIIaLOUAReRB/FG6eM1P1QM=", Algorithm: "ES256", Use: "sig"},
		}})
	})
	mux.HandleFunc("POST "+realm+"/introspect", func(w http.ResponseWriter, r *http.Request) {
		if id, secret, _ := r.BasicAuth(); id != "gateway" || secret != leakedSecret {
			w.Header().Set("WWW-Authenticate", `Basic realm="/alpha"`)
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, `{"error_description":"Client authentication failed","error":"invalid_client"}`)
		} else if answer, ok := am.tokens.Load(r.PostFormValue("token")); ok {
			w.Header().Set("Content-Type", "application/json;charset=UTF-8")
			io.WriteString(w, answer.(string))
		} else {
			write(w, map[string]any{"active": false})
		}
	})
	am.Server = httptest.NewServer(mux)
	t.Cleanup(am.Close)
	t.Setenv("OAUTH_TEST_SECRET", leakedSecret)
	am.issuer = am.URL + realm
	return am
}

// sources returns the lines of a route that takes AM's tokens of both kinds.
func (am *amServer) sources() string {
	return "source jwt " + am.issuer + " {\ntyp any\nclient_claim client_id aud\n}\n" + am.introspection()
}

// introspection returns the one that asks AM.
func (am *amServer) introspection() string {
	return "source introspect " + am.issuer + "/introspect {\nclient_id gateway\nclient_secret {env.OAUTH_TEST_SECRET}\nissuer " + am.issuer + "\n}\n"
}

// jwt returns a "client-based" token of a client, with changes to its header and claims: a member that is
// nil goes.
func (am *amServer) jwt(t *testing.T, client string, header, claims map[string]any) string {
	t.Helper()
	now := time.Now().Unix()
	all := withMembers(t, fmt.Sprintf(`{"sub":"(age!%[1]s)","cts":"OAUTH2_STATELESS_GRANT","auditTrackingId":"5f1c2a40-77aa-4b0e-9c55-0d6e2b1f7d10-9321","subname":"%[1]s",
		"iss":"%[2]s","tokenName":"access_token","token_type":"Bearer","authGrantId":"mB2xq3kQm1uRrP0wq8rE5c1dT3A","aud":"%[1]s","nbf":%[3]d,
		"grant_type":"client_credentials","scope":["orders:read"],"auth_time":%[3]d,"realm":"/alpha","exp":%[4]d,"iat":%[3]d,"expires_in":3600,"jti":"q0hJm4cKx7bT2nV9yZsD1fGe6uI"}`,
		client, am.issuer, now-1, now+3599), claims)
	h := map[string]any{"typ": "JWT", "zip": "NONE", "kid": "wU3ifIIaLOUAReRB/FG6eM1P1QM="}
	for name, value := range header {
		h[name] = value
	}
	options := &jose.SignerOptions{}
	for name, value := range h {
		if value != nil {
			options = options.WithHeader(jose.HeaderKey(name), value)
		}
	}
	key := jose.SigningKey{Algorithm: jose.ES256, Key: am.key}
	if h["alg"] == "HS256" {
		key = jose.SigningKey{Algorithm: jose.HS256, Key: []byte(strings.Repeat(leakedSecret, 5))}
	}
	signer, err := jose.NewSigner(key, options)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign([]byte(all))
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// opaque returns a "server-based" token of a client, with changes to AM's answer about it.
func (am *amServer) opaque(t *testing.T, client string, changes map[string]any) string {
	t.Helper()
	token := rand.Text() + "A" // of 27 characters
	am.tokens.Store(token, withMembers(t, fmt.Sprintf(`{"active":true,"scope":"orders:read","realm":"/alpha","client_id":"%[1]s","user_id":"%[1]s","username":"%[1]s",
		"token_type":"Bearer","exp":%[3]d,"sub":"(age!%[1]s)","subname":"%[1]s","iss":"%[2]s","auth_level":0,
		"authGrantId":"mB2xq3kQm1uRrP0wq8rE5c1dT3A","auditTrackingId":"5f1c2a40-77aa-4b0e-9c55-0d6e2b1f7d10-9321","expires_in":3575}`,
		client, am.issuer, time.Now().Unix()+3575), changes))
	return token
}

const movingClients = `
realm alpha {
	client reports {
		secret_hash SECRET
		scopes orders:read
		default_scopes orders:read
	}
	client billing {
		secret_hash SECRET
		scopes orders:read
		default_scopes orders:read
	}
}
`

// While clients move from AM, one route takes AM's tokens of both kinds beside those of the gateway, and
// nothing else that AM signs. The backend is told the same client either way, and it is counted who still
// comes with a token of AM.
func TestAMBesideTheGateway(t *testing.T) {
	for _, format := range []string{"opaque", "jwt"} {
		t.Run(format, func(t *testing.T) {
			am := newAMServer(t)
			realms := strings.ReplaceAll(movingClients, "SECRET", testHash)
			realms = strings.Replace(realms, "realm alpha {\n", "realm alpha {\ntoken_format "+format+"\nissuer https://auth.example.com/oauth2/realms/root/realms/alpha\n", 1)
			// AM's metadata may be asked for before it listens, in a real move.
			g := startGateway(t, "store memory\n"+realms, "metrics /metrics\noauth_server\noauth_protect {\nsource local alpha\n"+am.sources()+"scopes orders:read\n}\nreverse_proxy BACKEND")
			const base = "/oauth2/realms/root/realms/alpha"
			waitUntil(t, "AM's keys are known", func() bool { return g.get("/x", am.jwt(t, "reports", nil, nil)).StatusCode == 200 })
			before := clientSeries(t, "caddy_oauth_client_elsewhere_total", "realm", "client_id")

			own := g.fetchAt(base, "reports", "orders:read")
			for what, c := range map[string]struct{ token, subject, issuer string }{
				"the gateway's":    {own, "reports", ""},
				"AM's JWT":         {am.jwt(t, "reports", nil, nil), "(age!reports)", am.issuer},
				"that of AM 8":     {am.jwt(t, "reports", nil, map[string]any{"client_id": "reports"}), "(age!reports)", am.issuer},
				"an upgraded AM's": {am.jwt(t, "reports", nil, map[string]any{"sub": "reports"}), "reports", am.issuer},
				"AM's opaque":      {am.opaque(t, "reports", nil), "(age!reports)", am.issuer},
			} {
				for range 2 {
					if a := g.get("/x", c.token); a.StatusCode != 200 {
						t.Fatalf("%s: %d %s", what, a.StatusCode, a.challenges())
					}
					told := g.Backend.last(t).Header
					if told.Get("X-OAuth-Client-Id") != "reports" || told.Get("X-OAuth-Subject") != c.subject || told.Get("X-OAuth-Scope") != "orders:read" || told.Get("X-OAuth-Issuer") != c.issuer {
						t.Errorf("%s: the backend is told %v", what, told)
					}
				}
			}
			if a := g.get("/x", am.opaque(t, "billing", map[string]any{"scope": "profile"})); a.StatusCode != 403 {
				t.Errorf("AM's, without the scope: %d", a.StatusCode)
			}
			if a := g.get("/x", am.jwt(t, "stranger", nil, nil)); a.StatusCode != 200 { // it is no client here, but one of AM's
				t.Errorf("AM's, of a client that is not known here: %d", a.StatusCode)
			}
			after := clientSeries(t, "caddy_oauth_client_elsewhere_total", "realm", "client_id")
			for name := range after {
				after[name] -= before[name]
			}
			expectSeries(t, "tokens from elsewhere", after, map[string]float64{"alpha/reports": 8, "alpha/billing": 1})

			for what, token := range map[string]string{
				"a refresh token":               am.jwt(t, "reports", nil, map[string]any{"tokenName": "refresh_token"}),
				"an ID token":                   am.jwt(t, "reports", map[string]any{"zip": nil}, map[string]any{"tokenName": "id_token", "tokenType": "JWTToken", "scope": nil}),
				"compressed":                    am.jwt(t, "reports", map[string]any{"zip": "DEF"}, nil),
				"of another realm":              am.jwt(t, "reports", nil, map[string]any{"iss": strings.Replace(am.issuer, "alpha", "beta", 1), "realm": "/beta"}),
				"with a port that is not there": am.jwt(t, "reports", nil, map[string]any{"iss": "https://am.example.com:443/am/oauth2/realms/root/realms/alpha"}),
				"signed by HMAC":                am.jwt(t, "reports", map[string]any{"alg": "HS256"}, nil),
				"an opaque refresh token":       am.opaque(t, "reports", map[string]any{"token_type": "refresh_token"}),
				"opaque, of another realm":      am.opaque(t, "reports", map[string]any{"iss": strings.Replace(am.issuer, "alpha", "beta", 1)}),
				"opaque, expired":               am.opaque(t, "reports", map[string]any{"exp": 1700000000}),
				"unknown to AM":                 rand.Text(),
				"spoiled":                       spoiled(own),
			} {
				if a := g.get("/x", token); a.StatusCode != 401 {
					t.Errorf("%s: %d", what, a.StatusCode)
				}
			}
			// Without AM, the gateway's own tokens are as good as before, and AM's opaque ones can't be judged.
			unknown := am.opaque(t, "reports", nil)
			am.Close()
			if a := g.get("/x", own); a.StatusCode != 200 {
				t.Errorf("the gateway's, without AM: %d", a.StatusCode)
			}
			if a := g.get("/x", unknown); a.StatusCode != 503 || a.Header.Get("Retry-After") == "" {
				t.Errorf("AM's, without AM: %d", a.StatusCode)
			}
		})
	}
}

// What only AM can verify, AM is asked about, also if it looks like a JWT.
func TestAMJudgesItsTokensByHMAC(t *testing.T) {
	am := newAMServer(t)
	g := startGateway(t, "store memory\n"+strings.ReplaceAll(movingClients, "SECRET", testHash), "oauth_server\noauth_protect {\nsource local alpha\n"+am.introspection()+"}\nreverse_proxy BACKEND")
	signed := am.jwt(t, "reports", map[string]any{"alg": "HS256"}, nil)
	if a := g.get("/x", signed); a.StatusCode != 401 {
		t.Errorf("unknown to AM: %d", a.StatusCode)
	}
	token := am.jwt(t, "billing", map[string]any{"alg": "HS256"}, nil)
	known, _ := am.tokens.Load(am.opaque(t, "billing", map[string]any{"cts": "OAUTH2_STATELESS_GRANT"}))
	am.tokens.Store(token, known)
	if a := g.get("/x", token); a.StatusCode != 200 || g.Backend.last(t).Header.Get("X-OAuth-Client-Id") != "billing" {
		t.Errorf("known to AM: %d", a.StatusCode)
	}
}

// Whoever is no client of the configuration is counted together, where there may be managed clients. How
// often one of the configuration came is shown with it.
func TestManagedClientsThatComeFromElsewhere(t *testing.T) {
	am := newAMServer(t)
	realms := strings.Replace(strings.ReplaceAll(movingClients, "SECRET", testHash), "realm alpha {\n", "realm alpha {\nmanaged_clients\n", 1)
	config, address := withAdmin(t, caddyfileOf("store memory\n"+realms, "oauth_server\noauth_protect {\nsource local alpha\n"+am.sources()+"}\nrespond ok"))
	g := startCaddyfile(t, config)
	for _, client := range []string{"stranger", "another", "reports"} {
		if a := g.get("/x", am.opaque(t, client, nil)); a.StatusCode != 200 {
			t.Errorf("%s: %d", client, a.StatusCode)
		}
	}
	expectSeries(t, "tokens from elsewhere", clientSeries(t, "caddy_oauth_client_elsewhere_total", "realm", "client_id"),
		map[string]float64{"alpha/": 2, "alpha/reports": 1, "alpha/billing": 0})
	a := admin{g, address}
	a.must(201, "PUT", "/oauth/clients/alpha/stranger", `{"scopes":["read"]}`)
	for path, want := range map[string]any{"alpha/reports": 1., "alpha/billing": 0., "alpha/stranger": nil} {
		if got := a.must(200, "GET", "/oauth/clients/"+path, "").json(t)["elsewhere"]; got != want {
			t.Errorf("%s is shown to have come %v times, want %v", path, got, want)
		}
	}
	if shown := a.mustCLI("client", "show", "reports", "--realm", "alpha"); !strings.Contains(shown, "tokens from elsewhere: 1,") {
		t.Errorf("it is shown as %s", shown)
	}
}
