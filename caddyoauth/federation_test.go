package caddyoauth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// platformTokens are what one platform gives to a workload: a good token, and other tokens of the same
// issuer that must not pass. A change removes the members of a JSON object that are null in it.
type platformTokens struct {
	header, claims string
	// before is how long before its iat the token is valid already, by nbf; negative if it has no nbf.
	before, life time.Duration
	// identity is what the event says.
	identity string
	// nearMisses are changes to header and claims, and the reason in the event.
	nearMisses []platformMiss
}

type platformMiss struct {
	what, header, claims, reason string
	life                         time.Duration // if it is another
}

// Each token also has iat and exp.
var platforms = map[string]platformTokens{
	"Kubernetes": {
		header: `{"alg":"RS256","kid":"KID"}`,
		claims: `{"aud":["https://auth.example.com/oauth2"],"iss":"https://kubernetes.default.svc.cluster.local","jti":"5f5f1f0c-6a57-4d5a-a1cb-0b8f0e0d8d35",
			"kubernetes.io":{"namespace":"batch","node":{"name":"node-1","uid":"0d9e8e34-1d43-4a32-8f66-5f5f2a9a4a34"},"pod":{"name":"nightly-28391040-x7k2p","uid":"7e6f2b0e-6a51-4c5d-8e05-4b60f0a6a3b1"},
			"serviceaccount":{"name":"nightly","uid":"4d2f3c1e-9b1f-4c0e-9a25-3f0d0b6f7a10"}},"sub":"system:serviceaccount:batch:nightly"}`,
		life: time.Hour, identity: "https://kubernetes.default.svc.cluster.local system:serviceaccount:batch:nightly",
		nearMisses: []platformMiss{
			{"that of every pod", ``, `{"aud":["https://kubernetes.default.svc.cluster.local"]}`, "assertion_audience", 0},
			{"for the API server, too", ``, `{"aud":["https://auth.example.com/oauth2","https://kubernetes.default.svc.cluster.local"]}`, "assertion_audience", 0},
			{"of another service account", ``, `{"sub":"system:serviceaccount:batch:default"}`, "assertion_subject", 0},
			{"of another namespace", ``, `{"sub":"system:serviceaccount:web:nightly"}`, "assertion_subject", 0},
			{"of another cluster", ``, `{"iss":"https://oidc.eks.eu-central-1.amazonaws.com/id/EXAMPLED539D4633E53DE1B71EXAMPLE"}`, "unknown_client", 0},
			{"of a secret", ``, `{"iss":"kubernetes/serviceaccount","aud":null,"exp":null,"kubernetes.io/serviceaccount/namespace":"batch","kubernetes.io":null}`, "unknown_client", 0},
			{"that lives for a year", ``, ``, "assertion_lifetime", 365 * 24 * time.Hour},
		},
	},
	"GitHub Actions": {
		header: `{"typ":"JWT","alg":"RS256","x5t":"ykNaY4qM_ta4k2TgZOCEYLkcYlA","kid":"KID"}`,
		claims: `{"jti":"0b1f8e52-1f0b-4fb5-9b2e-0f0ef1f0f6a4","sub":"repo:acme/app:environment:production","environment":"production","aud":"https://auth.example.com/oauth2","ref":"refs/heads/main",
			"sha":"9d2e1f0c3b4a59687766554433221100ffeeddcc","repository":"acme/app","repository_owner":"acme","actor_id":"1001","repository_visibility":"private","repository_id":"74100205","repository_owner_id":"417203",
			"run_id":"9017730021","run_number":"10","run_attempt":"2","runner_environment":"github-hosted","actor":"robin","workflow":"deploy","head_ref":"","base_ref":"","event_name":"push","ref_protected":"true",
			"ref_type":"branch","workflow_ref":"acme/app/.github/workflows/deploy.yml@refs/heads/main","workflow_sha":"9d2e1f0c3b4a59687766554433221100ffeeddcc",
			"job_workflow_ref":"acme/app/.github/workflows/deploy.yml@refs/heads/main","job_workflow_sha":"9d2e1f0c3b4a59687766554433221100ffeeddcc","iss":"https://token.actions.githubusercontent.com"}`,
		before: 10 * time.Minute, life: 5 * time.Minute, identity: "https://token.actions.githubusercontent.com repo:acme/app:environment:production",
		nearMisses: []platformMiss{
			{"with the audience that it has by itself", ``, `{"aud":"https://github.com/acme"}`, "assertion_audience", 0},
			{"of another owner", ``, `{"sub":"repo:evil/app:environment:production","repository":"evil/app","repository_owner":"evil","repository_owner_id":"9"}`, "assertion_subject", 0},
			{"of whoever has taken the name", ``, `{"repository_owner_id":"9"}`, "assertion_claim", 0},
			{"of a pull request", ``, `{"sub":"repo:acme/app:pull_request","environment":null,"event_name":"pull_request"}`, "assertion_subject", 0},
			{"of a branch", ``, `{"sub":"repo:acme/app:ref:refs/heads/main","environment":null}`, "assertion_subject", 0},
			{"of an environment whose name goes on", ``, `{"sub":"repo:acme/app:environment:production%3Ax"}`, "assertion_subject", 0},
			{"of a runner of one's own", ``, `{"runner_environment":"self-hosted"}`, "assertion_claim", 0},
		},
	},
	"GitLab CI": {
		header: `{"kid":"KID","typ":"JWT","alg":"RS256"}`,
		claims: `{"namespace_id":"72","namespace_path":"acme","project_id":"48210377","project_path":"acme/app","user_id":"1","user_login":"robin","user_email":"robin@acme.example","user_access_level":"developer",
			"user_identities":[{"provider":"github","extern_uid":"2435223452345"}],"pipeline_id":"574","pipeline_source":"push","job_id":"302","ref":"main","ref_type":"branch","ref_path":"refs/heads/main",
			"ref_protected":"true","groups_direct":["acme/core"],"runner_id":1,"runner_environment":"gitlab-hosted","sha":"714a629c0b401fdce83e847fc9589983fc6f46bc","project_visibility":"private",
			"ci_config_ref_uri":"gitlab.com/acme/app//.gitlab-ci.yml@refs/heads/main","ci_config_sha":"714a629c0b401fdce83e847fc9589983fc6f46bc","jti":"235b3a54-b797-45c7-ae9a-f72d7bc6ef5b",
			"iss":"https://gitlab.com","sub":"project_path:acme/app:ref_type:branch:ref:main","aud":"https://auth.example.com/oauth2"}`,
		before: 5 * time.Second, life: 2 * time.Hour, identity: "https://gitlab.com project_path:acme/app:ref_type:branch:ref:main",
		nearMisses: []platformMiss{
			{"of another project", ``, `{"sub":"project_path:acme/other:ref_type:branch:ref:main","project_path":"acme/other"}`, "assertion_subject", 0},
			{"of a project of a subgroup", ``, `{"sub":"project_path:acme/app/x:ref_type:branch:ref:main"}`, "assertion_subject", 0},
			{"of a tag of the branch's name", ``, `{"sub":"project_path:acme/app:ref_type:tag:ref:main","ref_type":"tag"}`, "assertion_subject", 0},
			{"of whoever has taken the name", ``, `{"project_id":"9"}`, "assertion_claim", 0},
			{"of a branch that is not protected", ``, `{"ref_protected":"false"}`, "assertion_claim", 0},
			{"for somebody else", ``, `{"aud":"https://vault.example.com"}`, "assertion_audience", 0},
			{"of a job of many hours", ``, ``, "assertion_lifetime", 10 * time.Hour},
		},
	},
	"Entra managed identities": {
		header: `{"typ":"JWT","alg":"RS256","x5t":"KID","kid":"KID"}`,
		claims: `{"aud":"api://oauth-gateway","iss":"https://sts.windows.net/8b2f6c4e-51a7-4d36-9a0c-2f4f5f0a7c11/","aio":"E2NgYLiR","appid":"c0f1e2d3-0a1b-4c2d-8e3f-405162738495","appidacr":"2",
			"idp":"https://sts.windows.net/8b2f6c4e-51a7-4d36-9a0c-2f4f5f0a7c11/","idtyp":"app","oid":"11d2c3b4-a596-4788-9ab0-bcdef0123456","rh":"1.AAAA","sub":"11d2c3b4-a596-4788-9ab0-bcdef0123456",
			"tid":"8b2f6c4e-51a7-4d36-9a0c-2f4f5f0a7c11","uti":"x7Yz","ver":"1.0","xms_mirid":"/subscriptions/2f4f5f0a/resourcegroups/shop/providers/Microsoft.Compute/virtualMachines/loader"}`,
		life: 86700 * time.Second, identity: "https://sts.windows.net/8b2f6c4e-51a7-4d36-9a0c-2f4f5f0a7c11/ 11d2c3b4-a596-4788-9ab0-bcdef0123456",
		nearMisses: []platformMiss{
			{"for Azure itself", ``, `{"aud":"https://management.azure.com/"}`, "assertion_audience", 0},
			{"of another identity", ``, `{"sub":"22d2c3b4-a596-4788-9ab0-bcdef0123456","oid":"22d2c3b4-a596-4788-9ab0-bcdef0123456"}`, "assertion_subject", 0},
			{"of another tenant", ``, `{"iss":"https://sts.windows.net/00000000-1111-4222-8333-444444444444/"}`, "unknown_client", 0},
			{"of v2.0", ``, `{"iss":"https://login.microsoftonline.com/8b2f6c4e-51a7-4d36-9a0c-2f4f5f0a7c11/v2.0","ver":"2.0"}`, "unknown_client", 0},
			{"that proves a key, and has no proof", ``, `{"cnf":{"jwk":{"kty":"RSA"}}}`, "assertion_binding", 0},
		},
	},
	"Google": {
		header: `{"alg":"RS256","kid":"KID","typ":"JWT"}`,
		claims: `{"aud":"https://auth.example.com/oauth2","azp":"110248495921238986420","email":"importer@acme-shop.iam.gserviceaccount.com","email_verified":true,
			"google":{"compute_engine":{"instance_creation_timestamp":1700000000,"instance_id":"7261552102845432000","instance_name":"importer-1","project_id":"acme-shop","project_number":739419398126,"zone":"europe-west3-a"}},
			"iss":"https://accounts.google.com","sub":"110248495921238986420"}`,
		before: -1, life: time.Hour, identity: "https://accounts.google.com 110248495921238986420",
		nearMisses: []platformMiss{
			{"of another account", ``, `{"sub":"110248495921238986421","email":"x@evil.iam.gserviceaccount.com"}`, "assertion_subject", 0},
			{"of an account of the same address", ``, `{"sub":"110248495921238986421"}`, "assertion_subject", 0},
			{"of an account of another address", ``, `{"email":"other@acme-shop.iam.gserviceaccount.com"}`, "assertion_claim", 0},
			{"whose address is not verified", ``, `{"email_verified":false}`, "assertion_claim", 0},
			{"for somebody else", ``, `{"aud":"https://orders.example.com"}`, "assertion_audience", 0},
			{"of the issuer's other name", ``, `{"iss":"accounts.google.com"}`, "unknown_client", 0},
		},
	},
	"SPIRE": {
		header: `{"alg":"ES256","kid":"KID","typ":"JWT"}`,
		claims: `{"aud":["https://auth.example.com/oauth2"],"sub":"spiffe://example.org/ci/runner"}`,
		before: -1, life: 5 * time.Minute, identity: "spiffe://example.org/ci/runner",
		nearMisses: []platformMiss{
			{"of another workload", ``, `{"sub":"spiffe://example.org/web"}`, "assertion_subject", 0},
			{"of another trust domain", ``, `{"sub":"spiffe://example.com/ci/runner"}`, "unknown_client", 0},
			{"for two audiences", ``, `{"aud":["https://auth.example.com/oauth2","https://api.example.com"]}`, "assertion_audience", 0},
			{"of another kind", `{"typ":"wit+jwt"}`, ``, "assertion_typ", 0},
		},
	},
}

// placeOfKeys matches what says where a platform's keys are.
var placeOfKeys = regexp.MustCompile(`(?m)^\t\t(jwks_uri|jwks_file|private_hosts|header) .*\n|^\t\ttls \{\n(?:.*\n)*?\t\t\}\n`)

// What a platform's tokens have to say in docs/federation.md is what tokens of its form say, and what
// the page warns of is refused.
func TestFederationRecipes(t *testing.T) {
	const file = "docs/federation.md"
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, keys ...jose.JSONWebKey) string {
		set, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, set, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	jwks := write("jwks.json", jose.JSONWebKey{Key: rsaKey.Public(), KeyID: "KID", Use: "sig", Algorithm: "RS256"})
	bundle := write("bundle.json", jose.JSONWebKey{Key: ecKey.Public(), KeyID: "KID", Use: "jwt-svid"})

	// The sections with a block, and a gateway that has the clients of them all.
	var headings []string
	var clients strings.Builder
	heading, blocks := "", docBlocks(t, file)
	for i, line := range strings.Split(readDocument(t, file), "\n") {
		if h, ok := strings.CutPrefix(line, "## "); ok {
			heading = h
		}
		for _, b := range blocks {
			if b.line != i+2 {
				continue
			}
			headings = append(headings, heading)
			keys := "jwks_file " + jwks
			if strings.Contains(b.text, "federated spiffe://") {
				keys = "jwks_file " + bundle
			}
			text, ok := strings.CutPrefix(placeOfKeys.ReplaceAllString(b.text, ""), issuerOption)
			if !ok {
				t.Fatalf("%v begins with another issuer", b)
			}
			begin := regexp.MustCompile(`(?m)^\tfederated .* \{$`)
			if len(begin.FindAllString(text, -1)) != 1 {
				t.Fatalf("%v has another shape", b)
			}
			text = begin.ReplaceAllString(text, "$0\n"+keys)
			clients.WriteString(strings.Replace(text, "\tscopes ", "\tdefault_scopes read\n\tscopes read ", 1))
		}
	}
	if kinds := slices.Sorted(maps.Keys(platforms)); !slices.Equal(kinds, slices.Sorted(slices.Values(headings))) {
		t.Fatalf("the page has blocks for %q, and there are tokens of %q", headings, kinds)
	}
	g, logged := startLogged(t, "store memory\n"+noFailureLimit+issuerOption+clients.String(), gatewaySite)
	for name, p := range platforms {
		t.Run(name, func(t *testing.T) {
			g.t = t
			now := time.Now().Unix()
			made := map[string]any{"iat": now, "exp": now + int64(p.life/time.Second)}
			if p.before >= 0 {
				made["nbf"] = now - int64(p.before/time.Second)
			}
			claims := withMembers(t, p.claims, made)
			issue := func(header, claims string) string {
				if strings.Contains(header, "ES256") {
					return sign(t, jose.ES256, ecKey, headerOf(t, header), objectOf(t, claims))
				}
				return signRS256(t, rsaKey, header, claims)
			}
			before := len(logged())
			wantToken(t, g.ask(issue(p.header, claims)), "read")
			if event := eventAfter(t, logged, before, "token_issued"); event["identity"] != p.identity {
				t.Errorf("the event says %v, want %s", event, p.identity)
			}
			expired := platformMiss{what: "expired", claims: `{"exp":1700000000}`, reason: "assertion_expired"}
			for _, miss := range append(p.nearMisses, expired) {
				changed := objectOf(t, miss.claims)
				if miss.life != 0 {
					changed["exp"] = now + int64(miss.life/time.Second)
				}
				before := len(logged())
				text := issue(withMembers(t, p.header, objectOf(t, miss.header)), withMembers(t, claims, changed))
				wantE401(t, g.ask(text), "root", text)
				if event := eventAfter(t, logged, before, "token_refused"); event["reason"] != miss.reason {
					t.Errorf("%s: the event says %v, want the reason %s", miss.what, event, miss.reason)
				}
			}
		})
	}
}

// headerOf returns a header for sign, which adds alg itself.
func headerOf(t *testing.T, header string) map[jose.HeaderKey]any {
	t.Helper()
	all := make(map[jose.HeaderKey]any)
	for name, value := range objectOf(t, header) {
		if name != "alg" {
			all[jose.HeaderKey(name)] = value
		}
	}
	return all
}
