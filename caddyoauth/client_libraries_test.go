package caddyoauth_test

import (
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// libraryClient is a client as a library for OAuth has it.
type libraryClient struct {
	Library string `json:"library"`
	Issuer  string `json:"issuer"`
	ID      string `json:"id"`
	Method  string `json:"method"`
	Secret  string `json:"secret,omitempty"`
	// KeyFile has the key that signs its assertions, by Algorithm.
	KeyFile   string `json:"keyFile,omitempty"`
	Algorithm string `json:"algorithm,omitempty"`
	// CertFile and CertKeyFile are its certificate, and CAFile is what it trusts.
	CertFile    string `json:"certFile,omitempty"`
	CertKeyFile string `json:"certKeyFile,omitempty"`
	CAFile      string `json:"caFile,omitempty"`
	Scope       string `json:"scope"`
	URL         string `json:"url"` // of the protected route
	// DPoP is the algorithm of its proofs; empty for a client without.
	DPoP string `json:"dpop,omitempty"`
}

// libraryOutcome is what became of it.
type libraryOutcome struct {
	Type         string         `json:"type"`
	Called       []any          `json:"called"` // status and body
	Again        []any          `json:"again"`
	Introspected map[string]any `json:"introspected"`
	Revoked      int            `json:"revoked"` // the status of a call after the revocation
}

// writePEM writes a PEM file.
func writePEM(t testing.TB, name, kind string, der []byte) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func writeKey(t testing.TB, name string, key crypto.PrivateKey) (path string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return writePEM(t, name, "PRIVATE KEY", der)
}

// What programs use to fetch tokens can do it here, by each method that the library and the gateway
// have in common: it finds the endpoints, fetches a token, calls with it twice, asks about it, and
// revokes it.
func TestClientLibraries(t *testing.T) {
	certFile, keyFile, trust := certificate(t)
	port := porttest.Reserve(t)
	base := fmt.Sprintf("https://localhost:%d", port)
	issuer := base + "/oauth2"
	signer := newKeyClient(t, "signer")
	own := selfSigned(t, "bound")
	startCaddyfile(t, "{\nadmin off\npersist_config off\nskip_install_trust\nauto_https off\ngrace_period 1s\noauth {\nstore memory\nissuer "+issuer+"\n"+signer.lines()+
		"client secretive {\nsecret_hash "+testHash+"\nscopes read\n}\n"+
		strings.NewReplacer("signer {", "bound {", "jwks_file", "certificate_bound\njwks_file").Replace(signer.lines())+
		"}\n}\nhttps://localhost:"+fmt.Sprint(port)+" {\nbind 127.0.0.1\ntls "+certFile+" "+keyFile+" {\nclient_auth {\nmode request\n}\n}\noauth_server\noauth_protect /api/* {\nscopes read\n}\nreverse_proxy BACKEND\n}\n")

	signing := writeKey(t, "signing.pem", signer.key)
	bound := libraryClient{CertFile: writePEM(t, "own.pem", "CERTIFICATE", own.Certificate[0]), CertKeyFile: writeKey(t, "own.key", own.PrivateKey)}
	for name, client := range map[string]libraryClient{
		"secret by Basic": {ID: "secretive", Method: "client_secret_basic", Secret: testSecret},
		"secret by form":  {ID: "secretive", Method: "client_secret_post", Secret: testSecret},
		"private_key_jwt": {ID: "signer", Method: "private_key_jwt", KeyFile: signing, Algorithm: "ES256"},
		"private_key_jwt, bound to a certificate": {
			ID: "bound", Method: "private_key_jwt", KeyFile: signing, Algorithm: "ES256", CertFile: bound.CertFile, CertKeyFile: bound.CertKeyFile,
		},
	} {
		client.Issuer, client.CAFile, client.Scope, client.URL = issuer, certFile, "read", base+"/api/x"
		for _, library := range []string{"openid-client", "oauth4webapi"} {
			t.Run(library+", "+name, func(t *testing.T) {
				t.Parallel()
				checkLibrary(t, client, runLibrary(t, library, client), own)
			})
		}
	}
	t.Run("x/oauth2, private_key_jwt", func(t *testing.T) {
		t.Parallel()
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trust, MinVersion: tls.VersionTLS12}}
		t.Cleanup(transport.CloseIdleConnections)
		ctx := context.WithValue(t.Context(), oauth2.HTTPClient, &http.Client{Transport: transport})
		form := url.Values{"client_assertion_type": {assertionType}, "client_assertion": {signer.assert(map[string]any{"aud": issuer}, nil)}}
		config := clientcredentials.Config{ClientID: "signer", TokenURL: issuer + "/access_token", Scopes: []string{"read"}, EndpointParams: form, AuthStyle: oauth2.AuthStyleInParams}
		answer, err := config.Client(ctx).Get(base + "/api/x")
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != 200 {
			t.Errorf("a call gets %d, want 200", answer.StatusCode)
		}
	})
}

// runLibrary runs .ci/clients/client.mjs.
func runLibrary(t *testing.T, library string, client libraryClient) (outcome libraryOutcome) {
	t.Helper()
	client.Library = library
	text, err := json.Marshal(client)
	if err != nil {
		t.Fatal(err)
	}
	output := runNode(t, ".ci/clients/client.mjs", nil, []string{"CLIENT=" + string(text)})
	if err := json.Unmarshal([]byte(output), &outcome); err != nil {
		t.Fatalf("the program says %s", output)
	}
	return outcome
}

// checkLibrary checks that all went well. certificate is the client's, if it has shown one.
func checkLibrary(t *testing.T, client libraryClient, outcome libraryOutcome, certificate tls.Certificate) {
	t.Helper()
	good := []any{200.0, "backend"}
	if !slices.Equal(outcome.Called, good) || !slices.Equal(outcome.Again, good) {
		t.Errorf("the calls get %v and %v, want %v", outcome.Called, outcome.Again, good)
	}
	tokenType, cnf := "bearer", map[string]any{}
	if client.CertFile != "" {
		cnf["x5t#S256"] = thumbprint(certificate)
	}
	if client.DPoP != "" {
		tokenType = "dpop"
	}
	if outcome.Type != tokenType {
		t.Errorf("the token's type is %q, want %q", outcome.Type, tokenType)
	}
	got, _ := outcome.Introspected["cnf"].(map[string]any)
	if key, ok := got["jkt"].(string); ok && client.DPoP != "" && len(key) == 43 {
		cnf["jkt"] = key
	}
	if outcome.Introspected["active"] != true || outcome.Introspected["client_id"] != client.ID || fmt.Sprint(got) != fmt.Sprint(cnf) || (client.DPoP != "") != (cnf["jkt"] != nil) {
		t.Errorf("introspection says %v, want the active token of %s with cnf %v", outcome.Introspected, client.ID, cnf)
	}
	if outcome.Revoked != 401 {
		t.Errorf("a call after the revocation gets %d, want 401", outcome.Revoked)
	}
}

// Libraries that know DPoP have their tokens bound to a key, with each kind of key, and answer when they are
// told to use a nonce.
func TestClientLibrariesWithDPoP(t *testing.T) {
	certFile, keyFile, _ := certificate(t)
	redis := redistest.Start(t)
	remembersLong(redis)
	signer := newKeyClient(t, "signer")
	own := selfSigned(t, "bound")
	signing := writeKey(t, "signing.pem", signer.key)
	bound := libraryClient{CertFile: writePEM(t, "own.pem", "CERTIFICATE", own.Certificate[0]), CertKeyFile: writeKey(t, "own.key", own.PrivateKey)}
	secretive := libraryClient{ID: "secretive", Method: "client_secret_basic", Secret: testSecret}
	asserting := libraryClient{ID: "signer", Method: "private_key_jwt", KeyFile: signing, Algorithm: "ES256"}
	both := asserting
	both.ID, both.CertFile, both.CertKeyFile = "bound", bound.CertFile, bound.CertKeyFile
	for dpop, clients := range map[string]map[string]libraryClient{
		"nonce": {"ES256": secretive, "ES256, private_key_jwt": asserting, "ES256, a bound certificate": both},
		"":      {"Ed25519": secretive, "PS256": asserting, "RS256": secretive},
	} {
		base := fmt.Sprintf("https://localhost:%d", porttest.Reserve(t))
		issuer := base + "/oauth2"
		// In Redis, since a gateway with another store asks for a nonce after its start.
		startCaddyfile(t, "{\nadmin off\npersist_config off\nskip_install_trust\nauto_https off\ngrace_period 1s\noauth {\nstore redis "+redis.Addr+"\nissuer "+issuer+"\ndpop {\n"+dpop+"\n}\n"+
			strings.Replace(signer.lines(), "jwks_file", "dpop required\njwks_file", 1)+
			"client secretive {\nsecret_hash "+testHash+"\nscopes read\n}\n"+
			strings.NewReplacer("signer {", "bound {", "jwks_file", "certificate_bound\ndpop required\njwks_file").Replace(signer.lines())+
			"}\n}\n"+base+" {\nbind 127.0.0.1\ntls "+certFile+" "+keyFile+" {\nclient_auth {\nmode request\n}\n}\noauth_server\noauth_protect /api/* {\ndpop required\n}\nreverse_proxy BACKEND\n}\n")
		t.Run(cmp.Or(dpop, "no nonce"), func(t *testing.T) {
			for name, client := range clients {
				client.DPoP, _, _ = strings.Cut(name, ",")
				client.Issuer, client.CAFile, client.Scope, client.URL = issuer, certFile, "read", base+"/api/x"
				for _, library := range []string{"openid-client", "oauth4webapi"} {
					t.Run(library+", "+name, func(t *testing.T) {
						t.Parallel()
						checkLibrary(t, client, runLibrary(t, library, client), own)
					})
				}
			}
		})
		if err := caddy.Stop(); err != nil {
			t.Fatal(err)
		}
	}
}
