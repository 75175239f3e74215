package caddyoauth_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// serverTokens are what one kind of authorization server issues: a good access token, and other
// tokens of the same issuer that must not pass. A change removes the members of a JSON object that
// are null in it.
type serverTokens struct {
	header string // of a JWT; empty for an opaque token, whose claims are the server's answer
	claims string
	// What the backend is told.
	client, subject, scope, issuer string
	// nearMisses are changes to header and claims, with the status that they get.
	nearMisses []nearMiss
}

type nearMiss struct {
	what, header, claims string
	status               int
}

// Each server's token also has exp, iat and nbf.
var authorizationServers = map[string][]serverTokens{
	"ForgeRock AM": {{
		header: `{"typ":"JWT","zip":"NONE","kid":"KID","alg":"RS256"}`,
		claims: `{"sub":"reports","cts":"OAUTH2_STATELESS_GRANT","auditTrackingId":"5f1c2a40-77aa-4b0e-9c55-0d6e2b1f7d10-9321","subname":"reports",
			"iss":"https://am.example.com:443/am/oauth2/realms/root/realms/alpha","tokenName":"access_token","token_type":"Bearer","authGrantId":"mB2xq3kQm1uRrP0wq8rE5c1dT3A",
			"client_id":"reports","aud":"reports","grant_type":"client_credentials","scope":["orders:read"],"auth_time":1700000000,"realm":"/alpha","expires_in":3600,"jti":"q0hJm4cKx7bT2nV9yZsD1fGe6uI"}`,
		client: "reports", subject: "reports", scope: "orders:read", issuer: "https://am.example.com:443/am/oauth2/realms/root/realms/alpha",
		nearMisses: []nearMiss{
			{"a refresh token", ``, `{"tokenName":"refresh_token"}`, 401},
			{"an ID token", `{"zip":null}`, `{"tokenName":"id_token","tokenType":"JWTToken","at_hash":"x","scope":null}`, 401},
			{"an issuer without the port", ``, `{"iss":"https://am.example.com/am/oauth2/realms/root/realms/alpha"}`, 401},
			{"compressed", `{"zip":"DEF"}`, ``, 401},
			{"another scope", ``, `{"scope":["profile"]}`, 403},
		},
	}, {
		header: `{"typ":"JWT","zip":"NONE","kid":"KID","alg":"RS256"}`, // an older release
		claims: `{"sub":"reports","cts":"OAUTH2_STATELESS_GRANT","iss":"https://am.example.com:443/am/oauth2/realms/root/realms/alpha","tokenName":"access_token","aud":"reports",
			"grant_type":"client_credentials","scope":["orders:read"],"realm":"/alpha","expires_in":3600,"jti":"q0hJm4cKx7bT2nV9yZsD1fGe6uI"}`,
		client: "reports", subject: "reports", scope: "orders:read", issuer: "https://am.example.com:443/am/oauth2/realms/root/realms/alpha",
	}, {
		claims: `{"active":true,"scope":"orders:read","realm":"/alpha","client_id":"reports","user_id":"reports","username":"reports","token_type":"Bearer","sub":"(age!reports)",
			"subname":"reports","iss":"https://am.example.com:443/am/oauth2/realms/root/realms/alpha","auth_level":0,"authGrantId":"mB2xq3kQm1uRrP0wq8rE5c1dT3A","expires_in":3599}`,
		client: "reports", subject: "(age!reports)", scope: "orders:read", issuer: "https://am.example.com:443/am/oauth2/realms/root/realms/alpha",
		nearMisses: []nearMiss{
			{"revoked", ``, `{"active":false}`, 401},
			{"another scope", ``, `{"scope":"profile"}`, 403},
		},
	}},
	"Keycloak": {{
		header: `{"alg":"RS256","typ":"JWT","kid":"KID"}`,
		claims: `{"jti":"trrtcc:0b7b0e61-52d1-4f8e-9f0a-1f4ff24d9a11","iss":"https://sso.example.com/realms/acme","aud":["orders","account"],"sub":"6f1de1b5-3c6c-4a55-8e3e-7f4f4a0f0f5e",
			"typ":"Bearer","azp":"reports","acr":"1","allowed-origins":["/*"],"realm_access":{"roles":["default-roles-acme","offline_access"]},
			"resource_access":{"orders":{"roles":["reader","writer"]},"account":{"roles":["view-profile"]}},"scope":"email profile","email_verified":false,
			"clientHost":"192.0.2.7","preferred_username":"service-account-reports","clientAddress":"192.0.2.7","client_id":"reports"}`,
		client: "reports", subject: "6f1de1b5-3c6c-4a55-8e3e-7f4f4a0f0f5e", scope: "reader writer", issuer: "https://sso.example.com/realms/acme",
		nearMisses: []nearMiss{
			{"an ID token", ``, `{"typ":"ID","at_hash":"x"}`, 401},
			{"a refresh token", ``, `{"typ":"Refresh","aud":"https://sso.example.com/realms/acme"}`, 401},
			{"an offline token", ``, `{"typ":"Offline"}`, 401},
			{"for another service", ``, `{"aud":"account"}`, 401},
			{"of another realm", ``, `{"iss":"https://sso.example.com/realms/other"}`, 401},
			{"two clients", ``, `{"client_id":"admin"}`, 401},
			{"no role", ``, `{"resource_access":{"account":{"roles":["reader"]}}}`, 403},
		},
	}},
	"Entra ID v1.0": {{
		header: `{"typ":"JWT","alg":"RS256","x5t":"KID","kid":"KID"}`,
		claims: `{"aud":"api://orders","iss":"https://sts.windows.net/8b2f6c4e-51a7-4d36-9a0c-2f4f5f0a7c11/","aio":"E2NgYBBVd3ex","appid":"c0f1e2d3-0a1b-4c2d-8e3f-405162738495","appidacr":"1",
			"idp":"https://sts.windows.net/8b2f6c4e-51a7-4d36-9a0c-2f4f5f0a7c11/","oid":"11d2c3b4-a596-4788-9ab0-bcdef0123456","rh":"0.AAAA","roles":["Orders.Read"],
			"sub":"11d2c3b4-a596-4788-9ab0-bcdef0123456","tid":"8b2f6c4e-51a7-4d36-9a0c-2f4f5f0a7c11","uti":"x7Yz","ver":"1.0"}`,
		client: "c0f1e2d3-0a1b-4c2d-8e3f-405162738495", subject: "11d2c3b4-a596-4788-9ab0-bcdef0123456", scope: "Orders.Read", issuer: "https://sts.windows.net/8b2f6c4e-51a7-4d36-9a0c-2f4f5f0a7c11/",
		nearMisses: []nearMiss{
			{"for Microsoft Graph", ``, `{"aud":"https://graph.microsoft.com"}`, 401},
			{"an ID token", ``, `{"aud":"c0f1e2d3-0a1b-4c2d-8e3f-405162738495","appid":null,"nonce":"n"}`, 401},
			{"of another tenant", ``, `{"iss":"https://sts.windows.net/00000000-1111-4222-8333-444444444444/"}`, 401},
			{"of a program without the role", ``, `{"roles":["Orders.List"]}`, 403},
			{"of a person without the scope, with the role", ``, `{"scp":"Orders.List","roles":["Orders.Read"]}`, 403},
		},
	}},
	"Entra ID v2.0": {{
		header: `{"typ":"JWT","alg":"RS256","kid":"KID"}`,
		claims: `{"aud":"3d5e8a90-7b1c-4f62-8e24-6a9d0c1b2e33","iss":"https://login.microsoftonline.com/8b2f6c4e-51a7-4d36-9a0c-2f4f5f0a7c11/v2.0","aio":"AXQAi","azp":"c0f1e2d3-0a1b-4c2d-8e3f-405162738495",
			"azpacr":"0","name":"Robin","oid":"22d2c3b4-a596-4788-9ab0-bcdef0123456","preferred_username":"robin@acme.example","rh":"0.AAAA","scp":"Orders.Read Orders.List",
			"sub":"Vb1pM3nQkLr","tid":"8b2f6c4e-51a7-4d36-9a0c-2f4f5f0a7c11","uti":"x7Yz","ver":"2.0"}`,
		client: "c0f1e2d3-0a1b-4c2d-8e3f-405162738495", subject: "Vb1pM3nQkLr", scope: "Orders.Read Orders.List", issuer: "https://login.microsoftonline.com/8b2f6c4e-51a7-4d36-9a0c-2f4f5f0a7c11/v2.0",
		nearMisses: []nearMiss{
			{"an ID token", ``, `{"aud":"c0f1e2d3-0a1b-4c2d-8e3f-405162738495","azp":null,"azpacr":null,"scp":null,"nonce":"n"}`, 401},
			{"an ID token of the API itself", ``, `{"azp":null,"azpacr":null,"scp":null,"nonce":"n"}`, 403},
			{"of v1.0", ``, `{"iss":"https://sts.windows.net/8b2f6c4e-51a7-4d36-9a0c-2f4f5f0a7c11/","ver":"1.0"}`, 401},
		},
	}},
	"Okta": {{
		header: `{"kid":"KID","alg":"RS256"}`,
		claims: `{"ver":1,"jti":"AT.k2w7Yh","iss":"https://acme.okta.com/oauth2/default","aud":"api://default","cid":"0oa1b2c3d4","scp":["orders.read"],"sub":"0oa1b2c3d4"}`,
		client: "0oa1b2c3d4", subject: "0oa1b2c3d4", scope: "orders.read", issuer: "https://acme.okta.com/oauth2/default",
		nearMisses: []nearMiss{
			{"an ID token", ``, `{"jti":"ID.k2w7Yh","aud":"0oa1b2c3d4","at_hash":"x","amr":["pwd"],"cid":null,"scp":null}`, 401},
			{"of the organization", ``, `{"iss":"https://acme.okta.com","aud":"https://acme.okta.com"}`, 401},
			{"for another service", ``, `{"aud":"api://billing"}`, 401},
		},
	}},
	"Auth0": {{
		header: `{"alg":"RS256","typ":"JWT","kid":"KID"}`,
		claims: `{"iss":"https://acme.eu.auth0.com/","sub":"Ab3dEf6hIj@clients","aud":"https://orders.example.com","scope":"read:orders","gty":"client-credentials","azp":"Ab3dEf6hIj","permissions":["read:orders"]}`,
		client: "Ab3dEf6hIj", subject: "Ab3dEf6hIj@clients", scope: "read:orders", issuer: "https://acme.eu.auth0.com/",
		nearMisses: []nearMiss{
			{"an ID token", ``, `{"aud":"Ab3dEf6hIj","azp":null,"scope":null,"nonce":"n"}`, 401},
			{"for the management API", ``, `{"aud":"https://acme.eu.auth0.com/api/v2/"}`, 401},
			{"an issuer without the slash", ``, `{"iss":"https://acme.eu.auth0.com"}`, 401},
			{"another scope", ``, `{"scope":"list:orders"}`, 403},
		},
	}},
	"Amazon Cognito": {{
		header: `{"kid":"KID","alg":"RS256"}`,
		claims: `{"sub":"5kq2tv3n7c","token_use":"access","scope":"orders/read","auth_time":1700000000,"iss":"https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_Ab12Cd34E","version":2,
			"jti":"9e0f5a50-0c0f-4c53-9a59-0d6cf5f1d0ab","client_id":"5kq2tv3n7c"}`,
		client: "5kq2tv3n7c", subject: "5kq2tv3n7c", scope: "orders/read", issuer: "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_Ab12Cd34E",
		nearMisses: []nearMiss{
			{"an ID token", ``, `{"token_use":"id","aud":"5kq2tv3n7c","client_id":null,"scope":null}`, 401},
			{"of another user pool", ``, `{"iss":"https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_Zz99Yy88X"}`, 401},
			{"of a person, for the pool itself", ``, `{"scope":"aws.cognito.signin.user.admin","username":"robin"}`, 403},
		},
	}},
	"Ory Hydra": {{
		claims: `{"active":true,"scope":"orders.read","client_id":"reports","sub":"reports","aud":[],"iss":"https://hydra.example.com","token_type":"Bearer","token_use":"access_token"}`,
		client: "reports", subject: "reports", scope: "orders.read", issuer: "https://hydra.example.com",
		nearMisses: []nearMiss{
			{"a refresh token", ``, `{"token_use":"refresh_token"}`, 401},
			{"revoked", ``, `{"active":false}`, 401},
			{"another scope", ``, `{"scope":"offline"}`, 403},
		},
	}},
	"Duende IdentityServer": {{
		header: `{"alg":"RS256","kid":"KID","typ":"at+jwt"}`,
		claims: `{"iss":"https://ids.example.com","aud":"orders","scope":["orders.read"],"client_id":"reports","jti":"5D2A8E4F9B7C6D5E4F3A2B1C0D9E8F7A"}`,
		client: "reports", scope: "orders.read", issuer: "https://ids.example.com",
		nearMisses: []nearMiss{
			{"an ID token", `{"typ":"JWT"}`, `{"aud":"reports","at_hash":"x","sub":"1"}`, 401},
			{"a logout token", `{"typ":"logout+jwt"}`, `{"events":{"http://schemas.openid.net/event/backchannel-logout":{}}}`, 401},
			{"for another service", ``, `{"aud":["billing"]}`, 401},
		},
	}},
	"Zitadel": {{
		header: `{"alg":"RS256","kid":"KID","typ":"JWT"}`,
		claims: `{"iss":"https://acme.zitadel.cloud","sub":"170086824411201793","aud":["reports","270086774599581953"],"jti":"170090000000000001","client_id":"reports",
			"urn:zitadel:iam:org:project:270086774599581953:roles":{"reader":{"170086305301135617":"acme.example"}}}`,
		client: "reports", subject: "170086824411201793", scope: "reader", issuer: "https://acme.zitadel.cloud",
		nearMisses: []nearMiss{
			{"for another project", ``, `{"aud":["reports","270086774599581954"]}`, 401},
			{"an ID token", ``, `{"aud":["reports"],"azp":"reports","at_hash":"x"}`, 401},
			{"a role in another project", ``, `{"urn:zitadel:iam:org:project:270086774599581953:roles":null,"urn:zitadel:iam:org:project:1:roles":{"reader":{}}}`, 403},
		},
	}},
	"Authelia": {{
		claims: `{"active":true,"client_id":"reports","scope":"orders.read","sub":"reports","aud":[],"token_type":"bearer"}`,
		client: "reports", subject: "reports", scope: "orders.read",
		nearMisses: []nearMiss{
			{"unknown there", ``, `{"active":false}`, 401},
			{"another scope", ``, `{"scope":"openid"}`, 403},
		},
	}},
	"Google": {{
		header: `{"alg":"RS256","kid":"KID","typ":"JWT"}`,
		claims: `{"aud":"https://orders.example.com","azp":"110022003300440055006","email":"loader@acme-shop.iam.gserviceaccount.com","email_verified":true,"iss":"https://accounts.google.com","sub":"110022003300440055006"}`,
		client: "loader@acme-shop.iam.gserviceaccount.com", subject: "110022003300440055006", issuer: "https://accounts.google.com",
		nearMisses: []nearMiss{
			{"for another service", ``, `{"aud":"https://billing.example.com"}`, 401},
			{"of somebody who logged in elsewhere", ``, `{"aud":"1234.apps.googleusercontent.com","email":"loader@acme-shop.iam.gserviceaccount.com"}`, 401},
			{"of an account in another project", ``, `{"email":"loader@evil-shop.iam.gserviceaccount.com"}`, 403},
			{"of an address that nobody has verified", ``, `{"email_verified":false}`, 403},
		},
	}},
	"Kubernetes service accounts": {{
		header: `{"alg":"RS256","kid":"KID"}`,
		claims: `{"aud":["https://orders.example.com"],"iss":"https://kubernetes.default.svc.cluster.local","jti":"7c2f4c5a-4b0d-4a57-8f3c-2f9b1a6d0e11",
			"kubernetes.io":{"namespace":"shop","node":{"name":"node-1","uid":"1"},"pod":{"name":"loader-0","uid":"2"},"serviceaccount":{"name":"loader","uid":"3"},"warnafter":1700003607},
			"sub":"system:serviceaccount:shop:loader"}`,
		client: "system:serviceaccount:shop:loader", subject: "system:serviceaccount:shop:loader", issuer: "https://kubernetes.default.svc.cluster.local",
		nearMisses: []nearMiss{
			{"for the API server", ``, `{"aud":["https://kubernetes.default.svc.cluster.local"]}`, 401},
			{"of another cluster", ``, `{"iss":"https://kubernetes.default.svc"}`, 401},
			{"of another namespace", ``, `{"kubernetes.io":{"namespace":"play","serviceaccount":{"name":"loader"}},"sub":"system:serviceaccount:play:loader"}`, 403},
			{"of another account", ``, `{"kubernetes.io":{"namespace":"shop","serviceaccount":{"name":"default"}},"sub":"system:serviceaccount:shop:default"}`, 403},
			{"of a pod that is named like the account", ``, `{"kubernetes.io":{"namespace":"shop","pod":{"name":"loader"},"serviceaccount":{"name":"default"}}}`, 403},
		},
	}},
	"GitHub Actions": {{
		header: `{"typ":"JWT","alg":"RS256","x5t":"KID","kid":"KID"}`,
		claims: `{"jti":"e5f3","sub":"repo:acme/shop:ref:refs/heads/main","aud":"https://orders.example.com","ref":"refs/heads/main","sha":"0a1b","repository":"acme/shop","repository_owner":"acme",
			"repository_owner_id":"9919","run_id":"77","run_number":"10","run_attempt":"1","repository_visibility":"private","repository_id":"417203355","actor_id":"12","actor":"robin","workflow":"load",
			"head_ref":"","base_ref":"","event_name":"push","ref_protected":"true","ref_type":"branch","workflow_ref":"acme/shop/.github/workflows/load.yml@refs/heads/main","workflow_sha":"0a1b",
			"job_workflow_ref":"acme/shop/.github/workflows/load.yml@refs/heads/main","job_workflow_sha":"0a1b","runner_environment":"github-hosted","iss":"https://token.actions.githubusercontent.com"}`,
		client: "acme/shop", subject: "repo:acme/shop:ref:refs/heads/main", issuer: "https://token.actions.githubusercontent.com",
		nearMisses: []nearMiss{
			{"for another service", ``, `{"aud":"https://github.com/acme"}`, 401},
			{"of another repository", ``, `{"repository":"evil/shop","repository_id":"5","sub":"repo:evil/shop:ref:refs/heads/main"}`, 403},
			{"of one that has taken the name", ``, `{"repository_id":"500000001"}`, 403},
			{"of another branch", ``, `{"ref":"refs/heads/try","sub":"repo:acme/shop:ref:refs/heads/try"}`, 403},
		},
	}},
	"GitLab CI": {{
		header: `{"kid":"KID","typ":"JWT","alg":"RS256"}`,
		claims: `{"namespace_id":"72","namespace_path":"acme","project_id":"48210377","project_path":"acme/shop","user_id":"1","user_login":"robin","user_email":"robin@acme.example","user_access_level":"maintainer",
			"pipeline_id":"574","pipeline_source":"push","job_id":"302","ref":"main","ref_type":"branch","ref_path":"refs/heads/main","ref_protected":"true","groups_direct":["acme"],"runner_id":1,
			"runner_environment":"gitlab-hosted","sha":"0a1b","project_visibility":"private","ci_config_ref_uri":"gitlab.com/acme/shop//.gitlab-ci.yml@refs/heads/main","jti":"235b","iss":"https://gitlab.com",
			"sub":"project_path:acme/shop:ref_type:branch:ref:main","aud":"https://orders.example.com"}`,
		client: "acme/shop", subject: "project_path:acme/shop:ref_type:branch:ref:main", issuer: "https://gitlab.com",
		nearMisses: []nearMiss{
			{"for another service", ``, `{"aud":"https://vault.example.com"}`, 401},
			{"of another project", ``, `{"project_id":"5","project_path":"evil/shop"}`, 403},
			{"of a branch that everybody may push to", ``, `{"ref":"try","ref_protected":"false"}`, 403},
			{"of a person who logs in with GitLab", ``, `{"aud":"f00d","project_id":null,"project_path":null}`, 401},
		},
	}},
}

// Each block of the page on authorization servers lets in a token of that server's own form, tells
// the backend the right things, and keeps out what else the server issues. All blocks run in one
// Caddy, each below a path of its own.
func TestAuthorizationServers(t *testing.T) {
	const file = "docs/authorization-servers.md"
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	var answers sync.Map // by token
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/keys" {
			json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "KID", Use: "sig"}}})
		} else if answer, ok := answers.Load(r.PostFormValue("token")); ok {
			io.WriteString(w, answer.(string))
		} else {
			io.WriteString(w, `{"active":false}`)
		}
	}))
	t.Cleanup(server.Close)
	t.Setenv("OAUTH_TEST_SECRET", leakedSecret)

	// The sections with a block, and a site that has them all.
	var headings []string
	var site strings.Builder
	heading, blocks := "", docBlocks(t, file)
	for i, line := range strings.Split(readDocument(t, file), "\n") {
		if h, ok := strings.CutPrefix(line, "## "); ok {
			heading = h
			headings = append(headings, h)
		}
		for _, b := range blocks {
			if b.line == i+2 {
				site.WriteString("handle " + pathOf(heading) + "/* {\n" + atServer(b.text, server.URL) + "}\n")
			}
		}
	}
	if kinds := slices.Sorted(maps.Keys(authorizationServers)); !slices.Equal(kinds, slices.Sorted(slices.Values(headings))) || len(blocks) != len(headings) {
		t.Fatalf("the page has %q, with %d blocks, and there are tokens for %q", headings, len(blocks), kinds)
	}
	for _, h := range headings {
		if anchor := "(#" + strings.ReplaceAll(pathOf(h)[1:], "_", "-") + ")"; !strings.Contains(readDocument(t, file), anchor) {
			t.Errorf("%s is not in the table, or not under %s", h, anchor)
		}
	}

	g := startGateway(t, "", site.String())
	number := 0
	// issue makes a token, and the server's answer about it if it is opaque.
	issue := func(header, claims string) string {
		number++
		if header != "" {
			return signRS256(t, key, header, claims)
		}
		token := "opaque-" + strings.Repeat("x", number)
		answers.Store(token, claims)
		return token
	}
	for _, h := range headings {
		t.Run(h, func(t *testing.T) {
			for _, s := range authorizationServers[h] {
				now := time.Now().Unix()
				claims := withMembers(t, s.claims, map[string]any{"exp": now + 3600, "iat": now - 1, "nbf": now - 1})
				for range 2 {
					if a := g.get(pathOf(h)+"/x", issue(s.header, claims)); a.StatusCode != 200 {
						t.Fatalf("%d, challenge %q, for %s", a.StatusCode, a.Header.Get("WWW-Authenticate"), claims)
					}
					header := g.Backend.last(t).Header
					for name, want := range map[string]string{"X-OAuth-Client-Id": s.client, "X-OAuth-Subject": s.subject, "X-OAuth-Scope": s.scope, "X-OAuth-Issuer": s.issuer, "Authorization": ""} {
						if got := header.Get(name); got != want {
							t.Errorf("the backend is told %s: %q, want %q", name, got, want)
						}
					}
				}
				before := g.Backend.count()
				for _, miss := range append(s.nearMisses, nearMiss{"expired", ``, `{"exp":1700000000}`, 401}) {
					header := s.header
					if header != "" {
						header = withMembers(t, header, objectOf(t, miss.header))
					}
					if a := g.get(pathOf(h)+"/x", issue(header, withMembers(t, claims, objectOf(t, miss.claims)))); a.StatusCode != miss.status {
						t.Errorf("%s: %d, want %d", miss.what, a.StatusCode, miss.status)
					}
				}
				if g.Backend.count() != before {
					t.Error("a token that must not pass reached the backend")
				}
			}
		})
	}
}

// pathOf returns the path below which the test serves a section, after its anchor in the table.
func pathOf(heading string) string {
	return "/" + strings.NewReplacer(" ", "-", ".", "").Replace(strings.ToLower(heading))
}

var (
	keysOption      = regexp.MustCompile(`(?m)^\s*jwks_(uri|file) .*\n`)
	jwtSource       = regexp.MustCompile(`(?m)^\s*source jwt \S+ \{\n`)
	introspectPlace = regexp.MustCompile(`source introspect \S+`)
	secretFile      = regexp.MustCompile(`\{file\.[^{}]+\}`)
)

// atServer returns a block of the page with a server on this machine in place of the real one.
func atServer(block, url string) string {
	block = keysOption.ReplaceAllString(block, "")
	block = jwtSource.ReplaceAllString(block, "${0}jwks_uri "+url+"/keys\n")
	block = introspectPlace.ReplaceAllString(block, "source introspect "+url+"/introspect")
	block = secretFile.ReplaceAllString(block, "{env.OAUTH_TEST_SECRET}")
	return strings.ReplaceAll(block, "127.0.0.1:9000", "BACKEND")
}

func objectOf(t *testing.T, text string) map[string]any {
	t.Helper()
	object := make(map[string]any)
	if text == "" {
		return object
	}
	if err := json.Unmarshal([]byte(text), &object); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return object
}

// withMembers returns a JSON object with some members replaced, or removed where they are null.
func withMembers(t *testing.T, text string, changes map[string]any) string {
	t.Helper()
	object := objectOf(t, text)
	for name, value := range changes {
		if value == nil {
			delete(object, name)
		} else {
			object[name] = value
		}
	}
	b, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// signRS256 signs with the header as it is; go-jose would restrict what may be in it.
func signRS256(t *testing.T, key *rsa.PrivateKey, header, claims string) string {
	t.Helper()
	input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	digest := sha256.Sum256([]byte(input))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature)
}
