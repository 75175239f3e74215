package caddyoauth_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// twoHosts is a gateway that asks for certificates at one of its two addresses alone.
type twoHosts struct {
	tlsGateway
	issuer, mtls string // what the endpoints' URLs begin with
	ca           *authority
	own          tls.Certificate // of the client own
	serverCA     string          // a file
}

func startTwoHosts(t *testing.T) twoHosts {
	t.Helper()
	certFile, keyFile, trust := certificate(t)
	h := twoHosts{ca: newAuthority(t), own: selfSigned(t, "own"), serverCA: certFile}
	public, mutual := porttest.Reserve(t), porttest.Reserve(t)
	h.issuer, h.mtls = fmt.Sprintf("https://localhost:%d/oauth2", public), fmt.Sprintf("https://localhost:%d/oauth2", mutual)
	ownFile := filepath.Join(t.TempDir(), "own.pem")
	writeCertificates(t, ownFile, h.own)
	site := func(port int, tls, lines string) string {
		return fmt.Sprintf("https://localhost:%d {\nbind 127.0.0.1\ntls %s %s {\n%s\n}\noauth_server\n%s\n}\n", port, certFile, keyFile, tls, lines)
	}
	g := startCaddyfile(t, "{\nadmin off\npersist_config off\nskip_install_trust\nauto_https off\ngrace_period 1s\noauth {\nstore memory\nissuer "+h.issuer+"\nmtls_base_url "+h.mtls+"\ndpop\n"+
		"client named {\nauth tls_client_auth\ntls_client_auth san_dns ci.example.com\ncertificate_bound\nscopes read\ndefault_scopes read\n}\n"+
		"client own {\nauth self_signed_tls_client_auth\ncertificate_file "+ownFile+"\ncertificate_bound\nscopes read\ndefault_scopes read\n}\n"+
		"realm alpha {\n"+testClients+"}\n}\n}\n"+
		site(public, "protocols tls1.2 tls1.3", "respond 404")+
		site(mutual, "client_auth {\nmode verify_if_given\ntrust_pool file "+h.ca.file+" "+ownFile+"\n}", "oauth_protect /api/* {\nscopes read\n}\nreverse_proxy BACKEND"))
	h.tlsGateway = tlsGateway{gateway: g, trust: trust}
	return h
}

// at returns the gateway at one of its addresses.
func (h twoHosts) at(base string, certificates ...tls.Certificate) *gateway {
	transport := &http.Transport{TLSClientConfig: h.config(certificates), ForceAttemptHTTP2: true}
	h.t.Cleanup(transport.CloseIdleConnections)
	return &gateway{t: h.t, URL: strings.TrimSuffix(base, "/oauth2"), Backend: h.Backend, Client: &http.Client{Transport: transport, Timeout: 30 * time.Second}}
}

// The metadata says how clients authenticate by certificates, that tokens are bound to them, and where
// the endpoints for that are. All of it is true.
func TestMetadataOfCertificates(t *testing.T) {
	h := startTwoHosts(t)
	var documents []string
	for _, base := range []string{h.issuer, h.mtls} {
		documents = append(documents, h.at(base).get(wellKnown+"/oauth2", "").Body)
	}
	var document struct {
		Token   []string `json:"token_endpoint_auth_methods_supported"`
		Inquiry []string `json:"introspection_endpoint_auth_methods_supported"`
		Revoke  []string `json:"revocation_endpoint_auth_methods_supported"`
		Bound   bool     `json:"tls_client_certificate_bound_access_tokens"`
		Aliases struct {
			Token      string `json:"token_endpoint"`
			Inquiry    string `json:"introspection_endpoint"`
			Revocation string `json:"revocation_endpoint"`
		} `json:"mtls_endpoint_aliases"`
	}
	if err := json.Unmarshal([]byte(documents[0]), &document); err != nil || documents[0] != documents[1] {
		t.Fatalf("the documents are %s, %v", documents, err)
	}
	for _, methods := range [][]string{document.Token, document.Inquiry, document.Revoke} {
		if fmt.Sprint(methods) != "[self_signed_tls_client_auth tls_client_auth]" {
			t.Errorf("the methods are %s", methods)
		}
	}
	if !document.Bound {
		t.Error("it doesn't say that tokens are bound")
	}
	for id, certificate := range map[string]tls.Certificate{"named": h.ca.forHost("ci.example.com"), "own": h.own} {
		g := h.at(h.mtls, certificate)
		post := func(endpoint string, form url.Values) answer {
			form.Set("client_id", id)
			return g.post(strings.TrimPrefix(endpoint, g.URL), "", "", form)
		}
		token := wantToken(t, post(document.Aliases.Token, url.Values{"grant_type": {"client_credentials"}}), "read")
		cnf, _ := post(document.Aliases.Inquiry, url.Values{"token": {token}}).json(t)["cnf"].(map[string]any)
		if cnf["x5t#S256"] != thumbprint(certificate) {
			t.Errorf("the token of %s is bound to %v", id, cnf)
		}
		if a := g.get("/api/x", token); a.StatusCode != 200 {
			t.Errorf("the token of %s: %d", id, a.StatusCode)
		}
		if a := post(document.Aliases.Revocation, url.Values{"token": {token}}); a.StatusCode != 200 || g.get("/api/x", token).StatusCode != 401 {
			t.Errorf("revocation: %d", a.StatusCode)
		}
		// The others don't ask for a certificate.
		wantE401(t, fetchAs(h.at(h.issuer, certificate), id), "root")
		// A proof is made for the URL of the request.
		prover := newProver(t)
		for htu, want := range map[string]int{document.Aliases.Token: 200, h.issuer + "/access_token": 200, "https://other.example.com/oauth2/access_token": 400} {
			a := g.insisting(func(nonce string) *http.Request {
				r := g.posting("/oauth2/access_token", "", "", url.Values{"grant_type": {"client_credentials"}, "client_id": {id}})
				r.Header.Set("DPoP", prover.proof("POST", htu, "", withNonce(nonce)))
				return r
			})
			if a.StatusCode != want {
				t.Errorf("a proof for %s: %d %s", htu, a.StatusCode, a.Body)
			}
		}
	}
	alpha := h.at(h.issuer).get(wellKnown+"/oauth2/realms/root/realms/alpha", "").Body
	if !strings.Contains(alpha, `"mtls_endpoint_aliases":{"token_endpoint":"`+h.mtls+`/realms/root/realms/alpha/access_token"`) || strings.Contains(alpha, "tls_client_certificate_bound") {
		t.Errorf("the document of alpha is %s", alpha)
	}
	if err := h.load("store memory\nissuer "+testIssuer+"\n"+testClients+"client locked {\ndisabled\nauth tls_client_auth\ntls_client_auth san_dns a.example.com\ncertificate_bound\n}\n", gatewaySite); err != nil {
		t.Fatal(err)
	}
	if text := h.get(wellKnown+"/oauth2", "").Body; strings.Contains(text, "tls_") || strings.Contains(text, "aliases") {
		t.Errorf("without clients that have certificates, the document is %s", text)
	}
	for url, part := range map[string]string{
		"http://mtls.example.com/oauth2": "https", "https://mtls.example.com/oauth2?a": "query", "\"https://mtls.example.com/oauth2#\"": "fragment", "https://me:secret@mtls.example.com": "user",
		"mtls.example.com": "https", "https:///oauth2": "https", "{env.OAUTH_TEST_NOT_SET}": "OAUTH_TEST_NOT_SET",
	} {
		err := h.load("store memory\nissuer "+testIssuer+"\nmtls_base_url "+url+"\n"+testClients, gatewaySite)
		if err == nil || !strings.Contains(err.Error(), part) || !strings.Contains(err.Error(), "mtls_base_url") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", url, err)
		}
	}
	if err := h.load("store memory\nmtls_base_url https://mtls.example.com/oauth2\n"+testClients, gatewaySite); err == nil || !strings.Contains(err.Error(), "give it one") {
		t.Errorf("without an issuer: %v", err)
	}
}

// Programs that authenticate by a certificate find the endpoints by themselves, with Node's TLS and
// with Go's.
func TestLibrariesWithCertificates(t *testing.T) {
	h := startTwoHosts(t)
	for id, certificate := range map[string]tls.Certificate{"named": h.ca.forHost("ci.example.com"), "own": h.own} {
		client := libraryClient{
			Issuer: h.issuer, ID: id, Method: "tls_client_auth", CAFile: h.serverCA, Scope: "read", URL: strings.TrimSuffix(h.mtls, "/oauth2") + "/api/x",
			CertFile: writePEM(t, "cert.pem", "CERTIFICATE", certificate.Certificate[0]), CertKeyFile: writeKey(t, "key.pem", certificate.PrivateKey),
		}
		for _, library := range []string{"openid-client", "oauth4webapi"} {
			t.Run(library+", "+id, func(t *testing.T) {
				t.Parallel()
				checkLibrary(t, client, runLibrary(t, library, client), certificate)
			})
		}
		t.Run("x/oauth2, "+id, func(t *testing.T) {
			t.Parallel()
			ctx := context.WithValue(t.Context(), oauth2.HTTPClient, h.at(h.mtls, certificate).Client)
			config := clientcredentials.Config{ClientID: id, TokenURL: h.mtls + "/access_token", Scopes: []string{"read"}, AuthStyle: oauth2.AuthStyleInParams}
			answer, err := config.Client(ctx).Get(client.URL)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			if answer.StatusCode != 200 {
				t.Errorf("a call gets %d", answer.StatusCode)
			}
		})
	}
}
