package caddyoauth_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// importOf runs 'caddy oauth import', and returns what it prints, the report, and the secrets that it has
// made by realm and client.
func importOf(t *testing.T, status int, args ...string) (caddyfile, report string, made map[string]string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secrets")
	caddyfile, report, err := caddyCLI(t, "", append(append([]string{"import"}, args...), "--secrets", file)...)
	if got := exitStatus(err); got != status {
		t.Fatalf("import %q ends with %d: %s", args, got, report)
	}
	made = make(map[string]string)
	text, err := os.ReadFile(file)
	if err != nil {
		return caddyfile, report, made
	}
	if info, err := os.Stat(file); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("others can read the secrets: %v, %v", info, err)
	}
	for line := range strings.Lines(string(text)) {
		var secret struct{ Realm, Client, Secret string }
		if err := json.Unmarshal([]byte(line), &secret); err != nil {
			t.Fatal(err)
		}
		made[secret.Realm+"/"+secret.Client] = secret.Secret
		if strings.Contains(caddyfile+report, secret.Secret) {
			t.Errorf("the secret of %s is printed", secret.Client)
		}
	}
	return caddyfile, report, made
}

var (
	madeHash   = regexp.MustCompile(`\$sha256\$[A-Za-z0-9+/]{43}`)
	argon2Hash = regexp.MustCompile(`\$argon2id\$v=19\$m=19456,t=2,p=1\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}`)
)

// wantImport compares what an import prints and reports with a golden file, and has Caddy load the
// configuration.
func wantImport(t *testing.T, golden, certificates string, args ...string) {
	t.Helper()
	caddyfile, report, _ := importOf(t, 1, args...)
	if caddyfile != formatted(caddyfile) {
		t.Error("the Caddyfile is not formatted")
	}
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	adapted, err := adapt(t, caddyfile)
	if err != nil {
		t.Fatal(err)
	}
	var config caddy.Config
	if err := json.Unmarshal(adapted, &config); err != nil {
		t.Fatal(err)
	}
	if err := caddy.Validate(&config); err != nil {
		t.Errorf("Caddy doesn't take it: %v", err)
	}

	got := caddyfile + separator + report
	got = madeHash.ReplaceAllString(argon2Hash.ReplaceAllString(got, "ARGON2ID"), "SHA256")
	got = strings.ReplaceAll(filepath.ToSlash(got), filepath.ToSlash(certificates), "CERTIFICATES")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if strings.ReplaceAll(string(want), "\r\n", "\n") != got {
		t.Errorf("%s is other than what is printed now; look at the difference, and use -update\n%s", golden, got)
	}
}

const importFolder = "testdata/import"

// What AM answers, and what Amster and frodo export, becomes a configuration that Caddy takes, and the
// report says what is not in it.
func TestImportAM(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
	}{
		{"rest", []string{"rest"}},
		{"amster", []string{"amster"}},
		{"frodo", []string{"frodo"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			certificates := t.TempDir()
			args := []string{"am", filepath.Join(importFolder, "am", c.name), "--issuer", "https://auth.example.com/oauth2", "--certificates", certificates}
			wantImport(t, filepath.Join(importFolder, "am", c.name+".golden"), certificates, args...)
		})
	}
}

// What Keycloak exports, and Hydra lists, becomes a configuration that Caddy takes.
func TestImportOfOthers(t *testing.T) {
	for product, file := range map[string]string{"keycloak": "realm.json", "hydra": "pages.json"} {
		t.Run(product, func(t *testing.T) {
			folder := filepath.Join(importFolder, product)
			wantImport(t, filepath.Join(folder, product+".golden"), folder, product, filepath.Join(folder, file), "--issuer", "https://auth.example.com/oauth2")
		})
	}
}

// What is missing in an export of Keycloak or Hydra, the report says.
func TestImportOfOthersSaysWhatIsLost(t *testing.T) {
	const rest = `"serviceAccountsEnabled":true,"secret":"tu7Yh2kqLr5wNc9vXz3mBd8sGf1jPa6e"`
	for _, c := range []struct{ product, export, want string }{
		{"keycloak", `{"realm":"a","clients":[{"clientId":"c",` + rest + `}]}`, "for JWTs, give --issuer"},
		{"keycloak", `{"realm":"a","enabled":false,"clients":[{"clientId":"c",` + rest + `}]}`, "the realm is disabled, and so are its clients here"},
		{"keycloak", `{"realm":"My Realm","clients":[{"clientId":"c",` + rest + `}]}`, "name: it is my-realm here"},
		{"keycloak", `{"realm":"a","newInKeycloak":1,"clients":[{"clientId":"c","new":2,"attributes":{"newer":"3"},` + rest + `}]}`, `"attributes.newer": this field is unknown`},
		{"keycloak", `{"realm":"a","clients":[{"clientId":"c",` + rest + `},{"clientId":"c",` + rest + `}]}`, `client "c" is left out: the export has another client of this ID`},
		{"keycloak", `{"realm":"a","clients":[{"clientId":"c",` + rest + `},7]}`, "client 2: it is not a JSON object"},
		{"keycloak", `{"realm":"a","clients":[{"clientId":"c",` + rest + `,"protocolMappers":[{"name":"plan","protocolMapper":"oidc-hardcoded-claim-mapper"}]}]}`, `the mapper "plan" puts into tokens what they don't say here`},
		{"keycloak", `{"realm":"a","clients":[{"clientId":"c",` + rest + `,"attributes":{"client.secret.rotated":"a\nb","client.secret.rotated.expiration.time":"32503680000"}}]}`, "client.secret.rotated: the secret has more than one line"},
		{"keycloak", `[{"realm":"a","clients":[{"clientId":"c",` + rest + `}]},{"realm":"a","clients":[]}]`, `it has realm "a" again`},
		{"keycloak", `[{"realm":"a","clients":[{"clientId":"c",` + rest + `}]},{"realm":"a","users":[{"serviceAccountClientId":"c","realmRoles":["boss"]}]}]`, "say with scopes what a client may do: boss"},
		{"hydra", `{"items":[{"client_id":"c","grant_types":["client_credentials"]}],"next_page_token":"x","is_last_page":false}`, "the last page is not among these"},
		{"hydra", `[{"client_id":"c","grant_types":["client_credentials"],"new_in_hydra":true}]`, `"new_in_hydra": this field is unknown`},
		{"hydra", `{"client_id":"c","grant_types":["client_credentials","implicit"]}`, "there is no implicit here"},
		{"hydra", `[{"client_id":"c","grant_types":["client_credentials"]},{"grant_types":[]}]`, "client 2: it has no client_id"},
	} {
		file := filepath.Join(t.TempDir(), "export.json")
		if err := os.WriteFile(file, []byte(c.export), 0o600); err != nil {
			t.Fatal(err)
		}
		_, report, _ := importOf(t, 1, c.product, file)
		if !strings.Contains(report, c.want) {
			t.Errorf("%s reports %s, want %q", c.export, report, c.want)
		}
	}
}

// importAsShown runs a command of a document with an export of the kind that it names.
func importAsShown(t *testing.T, args []string) {
	t.Helper()
	exports := map[string]string{"export": importFolder + "/am/amster", "realm.json": importFolder + "/keycloak/realm.json", "clients.json": importFolder + "/hydra/pages.json"}
	for i, arg := range args {
		switch {
		case exports[arg] != "":
			args[i] = exports[arg]
		case strings.HasSuffix(arg, ".json"), strings.HasSuffix(arg, ".caddyfile"):
			args[i] = filepath.Join(t.TempDir(), arg)
		}
	}
	if _, report, err := caddyCLI(t, "", args...); exitStatus(err) == 2 {
		t.Errorf("%q: %s", args, report)
	}
}

// startImported starts a gateway with a Caddyfile that an import has printed.
func startImported(t *testing.T, caddyfile string) *gateway {
	t.Helper()
	_, options, ok := strings.Cut(caddyfile, "oauth {\n")
	if !ok {
		t.Fatalf("no oauth block:\n%s", caddyfile)
	}
	return startCaddyfile(t, "{\nadmin off\npersist_config off\nskip_install_trust\nauto_https off\ngrace_period 1s\noauth {\nstore memory\n"+options+":0 {\nbind 127.0.0.1\noauth_server\n}\n")
}

// Clients get tokens after an import, by the secrets that the export has, or by new ones.
func TestImportedClientsGetTokens(t *testing.T) {
	caddyfile, _, made := importOf(t, 1, "am", filepath.Join(importFolder, "am/amster"))
	g := startImported(t, caddyfile)
	for _, c := range []struct {
		path, id, secret, scope string
		lifetime                float64
	}{
		{"/oauth2", "weather", "sunny days", "forecast", 1799},
		{"/oauth2", "sealed", made["root/sealed"], "forecast", 1799},
		{"/oauth2", "templated", made["root/templated"], "forecast", 1799},
		{"/oauth2/realms/root/realms/retail/realms/eu", "till", made["retail/eu/till"], "sales", 299},
	} {
		form := url.Values{"grant_type": {"client_credentials"}, "scope": {c.scope}}
		got := g.post(c.path+"/access_token", c.id, c.secret, form)
		if got.StatusCode != 200 || got.json(t)["expires_in"] != c.lifetime {
			t.Errorf("%s gets %d %s", c.id, got.StatusCode, got.Body)
		}
		if got := g.post(c.path+"/access_token", c.id, c.secret+"x", form); got.StatusCode != 401 {
			t.Errorf("with another secret, %s gets %d", c.id, got.StatusCode)
		}
	}
	if len(made) != 3 {
		t.Errorf("%d secrets were made, want 3", len(made))
	}
}

// With --managed, the clients go to the gateway that is running.
func TestImportManaged(t *testing.T) {
	config, address := withAdmin(t, caddyfileOf("store memory\nmanaged_clients\nrealm retail/eu {\nmanaged_clients\n}\n", "oauth_server"))
	a := admin{startCaddyfile(t, config), address}
	stdout, _, made := importOf(t, 1, "am", filepath.Join(importFolder, "am/amster"), "--managed", "--address", address)
	if stdout != "added: 4, replaced: 0, the same as before: 0, kept as they were: 0\n" {
		t.Errorf("it prints %s", stdout)
	}
	for id, secret := range map[string]string{"weather": "sunny days", "sealed": made["root/sealed"]} {
		got := a.patiently(func() answer {
			return a.post("/oauth2/access_token", id, secret, url.Values{"grant_type": {"client_credentials"}, "scope": {"forecast"}})
		})
		if got.StatusCode != 200 || got.json(t)["expires_in"] != 1800. {
			t.Errorf("%s gets %d %s", id, got.StatusCode, got.Body)
		}
	}
	_, report, made := importOf(t, 2, "am", filepath.Join(importFolder, "am/amster"), "--managed", "--address", address)
	if !strings.Contains(report, "say whether to keep or to replace it") || len(made) > 0 {
		t.Errorf("importing them again makes %d secrets and says %s", len(made), report)
	}
	if _, report, _ := importOf(t, 2, "am", filepath.Join(importFolder, "am/amster"), "--managed", "--issuer", "https://a.example.com"); !strings.Contains(report, "leave out --issuer") {
		t.Errorf("with --issuer it says %s", report)
	}
}

// amFile writes an export of AM with one client whose settings are these, on top of those that let it have
// tokens.
func amFile(t *testing.T, id string, core, advanced, sign map[string]any) string {
	t.Helper()
	all := map[string]map[string]any{
		"coreOAuth2ClientConfig":     {"clientType": "Confidential", "status": "Active", "scopes": []string{"read"}, "userpassword": nil},
		"advancedOAuth2ClientConfig": {"grantTypes": []string{"client_credentials"}, "tokenEndpointAuthMethod": "client_secret_basic"},
		"signEncOAuth2ClientConfig":  {},
	}
	for group, settings := range map[string]map[string]any{"coreOAuth2ClientConfig": core, "advancedOAuth2ClientConfig": advanced, "signEncOAuth2ClientConfig": sign} {
		for name, value := range settings {
			all[group][name] = value
		}
	}
	client := map[string]any{"_id": id, "_type": map[string]any{"_id": "OAuth2Client"}}
	for group, settings := range all {
		client[group] = settings
	}
	text, err := json.Marshal(client)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "client.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Nothing in an export becomes a line of the Caddyfile, a placeholder or a variable of the environment, or
// anything else that the client was not.
func TestImportIsNotDeceived(t *testing.T) {
	t.Setenv("IMPORT_TEST", "injected")
	for _, text := range []string{
		"a\nadmin :2019", "a } client b {", "{env.IMPORT_TEST}", "{$IMPORT_TEST}", "{args[0]}", "a`b", "a\"b", "a\\b", "a\tb", "a\x00b", "a\u2028b", "\x1b[2J", " a", "<<EOF", "# a", "import /etc/passwd", "(a)", "&(a)", "a;b", "a,b", "@a", "é", strings.Repeat("a", 257),
	} {
		for where, file := range map[string]string{
			"the ID":            amFile(t, text, nil, nil, nil),
			"a scope":           amFile(t, "c", map[string]any{"scopes": []string{"read", text}}, nil, nil),
			"a description":     amFile(t, "c", map[string]any{"scopes": []string{"read|" + text}}, nil, nil),
			"a subject":         amFile(t, "c", nil, map[string]any{"tokenEndpointAuthMethod": "tls_client_auth"}, map[string]any{"mTLSSubjectDN": "CN=" + text}),
			"the place of keys": amFile(t, "c", nil, map[string]any{"tokenEndpointAuthMethod": "private_key_jwt"}, map[string]any{"jwksUri": "https://a.example.com/" + text}),
			"an algorithm":      amFile(t, "c", nil, map[string]any{"tokenEndpointAuthMethod": "private_key_jwt"}, map[string]any{"jwksUri": "https://a.example.com/", "tokenEndpointAuthSigningAlgorithm": text}),
			"a method":          amFile(t, "c", nil, map[string]any{"tokenEndpointAuthMethod": text}, nil),
			"a key": amFile(t, "c", nil, map[string]any{"tokenEndpointAuthMethod": "private_key_jwt"}, map[string]any{"publicKeyLocation": "jwks", "jwkSet": fmt.Sprintf(
				`{"keys":[{"kty":"EC","crv":"P-256","kid":%q,"x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`, strings.ToValidUTF8(text, ""))}),
			"an unknown field": amFile(t, "c", map[string]any{text: "x"}, nil, nil),
		} {
			// That the Caddyfile is what was read is checked by the command itself.
			caddyfile, report, err := caddyCLI(t, "", "import", "am", file, "--issuer", "https://auth.example.com", "--secrets", filepath.Join(t.TempDir(), "secrets"))
			if exitStatus(err) == 2 && !strings.Contains(report, "none of the clients can be carried over") {
				t.Errorf("%q as %s: %s", text, where, report)
			}
			if exitStatus(err) == 2 {
				caddyfile = "{\n}\n" // nothing is printed
			}
			if strings.Contains(caddyfile, "injected") || strings.ContainsAny(caddyfile+report, "\x00\x1b\u2028") || strings.Count(report, "\n") > 20 {
				t.Errorf("%q as %s prints\n%s\nand reports\n%s", text, where, caddyfile, report)
			}
			if lines := regexp.MustCompile(`(?m)^\t*(admin|import|client b)`).FindAllString(caddyfile, -1); lines != nil {
				t.Errorf("%q as %s is a line of its own:\n%s", text, where, caddyfile)
			}
			if _, err := adapt(t, caddyfile); err != nil {
				t.Errorf("%q as %s: %v", text, where, err)
			}
		}
	}
}

// What the gateway can't do as AM does, the report says.
func TestImportSaysWhatIsLost(t *testing.T) {
	basic := map[string]any{}
	for _, c := range []struct {
		name                 string
		core, advanced, sign map[string]any
		want                 string
	}{
		{"a lifetime of more than a year", map[string]any{"accessTokenLifetime": 1 << 30}, nil, nil, "accessTokenLifetime: 1073741824 seconds are too long"},
		{"a default that is no scope", map[string]any{"defaultScopes": []string{"write"}}, nil, nil, `"write" was not among the scopes, and is now`},
		{"assertions", nil, map[string]any{"tokenEndpointAuthMethod": "private_key_jwt"}, map[string]any{"jwksUri": "https://a.example.com/"}, "note: assertions of clients must have the issuer as their audience"},
		{"every realm's tokens", map[string]any{"scopes": []string{"am-introspect-all-tokens-any-realm"}}, nil, nil, "its own realm alone"},
		{"an unknown status", map[string]any{"status": "Asleep"}, nil, nil, "is left out: status: it is neither Active nor Inactive"},
		{"a form that nobody knows", map[string]any{"scopes": "read"}, nil, nil, "is left out: scopes: it has another form than is known"},
		{"no grants", nil, map[string]any{"grantTypes": []string{}}, nil, "is left out: grantTypes: it can't use client credentials, but none at all"},
		{"an unknown method", nil, map[string]any{"tokenEndpointAuthMethod": "magic"}, nil, "is left out: tokenEndpointAuthMethod: there is no magic here"},
		{"a symmetric algorithm", nil, map[string]any{"tokenEndpointAuthMethod": "private_key_jwt"}, map[string]any{"jwksUri": "https://a.example.com/", "tokenEndpointAuthSigningAlgorithm": "HS256"}, "is left out: tokenEndpointAuthSigningAlgorithm: "},
		{"keys by plain http", nil, map[string]any{"tokenEndpointAuthMethod": "private_key_jwt"}, map[string]any{"jwksUri": "http://a.example.com/"}, "is left out: jwks_uri must be an https URL"},
		{"no keys", nil, map[string]any{"tokenEndpointAuthMethod": "private_key_jwt"}, map[string]any{"publicKeyLocation": "jwks"}, "is left out: jwkSet: it is not a JWK set"},
		{"a private key", nil, map[string]any{"tokenEndpointAuthMethod": "private_key_jwt"}, map[string]any{"publicKeyLocation": "jwks", "jwkSet": `{"keys":[{"kty":"oct","k":"aHVudGVyMg"}]}`}, "is left out: jwkSet: there is no key in it that can be used: a key without kid: it includes a private key"},
		{"no certificate", nil, map[string]any{"tokenEndpointAuthMethod": "self_signed_tls_client_auth"}, nil, "is left out: mTLSTrustedCert: the certificate of the client is not in the export"},
		{"what is no certificate", nil, map[string]any{"tokenEndpointAuthMethod": "self_signed_tls_client_auth"}, map[string]any{"mTLSTrustedCert": "hunter2"}, "is left out: mTLSTrustedCert: it is not a certificate"},
		{"a secret with a key", map[string]any{"userpassword": "hunter2"}, map[string]any{"tokenEndpointAuthMethod": "tls_client_auth"}, map[string]any{"mTLSSubjectDN": "CN=a"}, "userpassword: it authenticates by tls_client_auth here"},
		{"a weak hash", map[string]any{"userpassword": "$2a$04$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy"}, nil, nil, "bcrypt cost 4 is not between 10 and 14: less is too weak"},
		{"a secret of two lines", map[string]any{"userpassword": "hunter2\nhunter2"}, nil, nil, "userpassword: the secret has more than one line"},
		{"signed answers", nil, nil, map[string]any{"tokenIntrospectionResponseFormat": "SignedJWT"}, "says so by Accept here"},
		{"an unknown group", basic, map[string]any{}, map[string]any{"x": "y"}, `"x": this field is unknown`},
	} {
		t.Run(c.name, func(t *testing.T) {
			caddyfile, report, err := caddyCLI(t, "", "import", "am", amFile(t, "c", c.core, c.advanced, c.sign), "--issuer", "https://auth.example.com", "--secrets", filepath.Join(t.TempDir(), "secrets"), "--certificates", t.TempDir())
			status := 1
			if strings.Contains(c.want, "is left out") {
				status = 2
			}
			if exitStatus(err) != status || !strings.Contains(report, c.want) {
				t.Errorf("status %d, and no %q:\n%s%s", exitStatus(err), c.want, report, caddyfile)
			}
			if strings.Contains(report+caddyfile, leakedSecret) || strings.Contains(report+caddyfile, "aHVudGVyMg") {
				t.Errorf("a secret is repeated:\n%s%s", report, caddyfile)
			}
		})
	}
}

// A client may be the only one in its realm that has JWTs. Whoever verifies them must hear how they were signed.
func TestImportSaysHowAClientSigned(t *testing.T) {
	t.Parallel()
	const client = `{"_type":{"_id":"OAuth2Client"},"_id":"c","advancedOAuth2ClientConfig":{"grantTypes":["client_credentials"]},
		"overrideOAuth2ClientConfig":{"providerOverridesEnabled":true,"statelessTokensEnabled":%t%s}}`
	const provider = `{"_type":{"_id":"oauth-oidc"},"coreOAuth2Config":{"statelessTokensEnabled":%t,"accessTokenLifetime":60},
		"advancedOAuth2Config":{"grantTypes":["client_credentials"],"tokenSigningAlgorithm":%q}}`
	const rs256 = `,"tokenSigningAlgorithm":"RS256"`
	for _, c := range []struct {
		name             string
		client, provider string
		format, reports  bool // of the client
	}{
		{"the provider's algorithm", fmt.Sprintf(client, true, ""), fmt.Sprintf(provider, false, "HS256"), true, true},
		{"its own algorithm", fmt.Sprintf(client, true, rs256), fmt.Sprintf(provider, false, "ES256"), true, true},
		{"its own where all have JWTs", fmt.Sprintf(client, true, rs256), fmt.Sprintf(provider, true, "ES256"), false, true},
		{"no provider", fmt.Sprintf(client, true, rs256), "", true, true},
		{"the same algorithm as here", fmt.Sprintf(client, true, ""), fmt.Sprintf(provider, false, "ES256"), true, false},
		{"no JWTs", fmt.Sprintf(client, false, ""), fmt.Sprintf(provider, false, "HS256"), false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for name, text := range map[string]string{"client.json": c.client, "provider.json": c.provider} {
				if text == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			caddyfile, report, _ := importOf(t, 1, "am", dir, "--issuer", "https://auth.example.com")
			_, ofClient, _ := strings.Cut(report, `client "c"`)
			if reports := strings.Contains(ofClient, "tokenSigningAlgorithm: JWTs are signed with ES256 here"); reports != c.reports {
				t.Errorf("that it is reported is %t:\n%s", reports, report)
			}
			_, block, _ := strings.Cut(caddyfile, "client c {")
			if format := strings.Contains(block, "token_format jwt"); format != c.format {
				t.Errorf("that the client has a token_format is %t:\n%s", format, caddyfile)
			}
		})
	}
}

// A realm that was imported answers as AM does, which other products' realms don't.
func TestImportedRealmsAnswerAsAM(t *testing.T) {
	caddyfile, report, made := importOf(t, 1, "am", filepath.Join(importFolder, "am/amster"))
	if strings.Count(report, "with am_compat, the realm answers as AM does") != strings.Count(report, "Realm ") {
		t.Errorf("not every realm says so:\n%s", report)
	}
	g := startImported(t, caddyfile)
	for _, path := range []string{"/oauth2", "/oauth2/realms/root/realms/retail/realms/eu"} {
		got := g.post(path+"/access_token", "nobody", made["root/sealed"], url.Values{"grant_type": {"client_credentials"}})
		if got.StatusCode != 401 || !strings.HasPrefix(got.Body, `{"error_description":`) {
			t.Errorf("%s answers %d %s", path, got.StatusCode, got.Body)
		}
	}
	caddyfile, report, _ = importOf(t, 1, "keycloak", filepath.Join(importFolder, "keycloak/realm.json"), "--issuer", "https://auth.example.com")
	if strings.Contains(caddyfile+report, "am_compat") {
		t.Errorf("Keycloak's realm is AM's:\n%s%s", report, caddyfile)
	}
}

// A client all of which is carried over is reported so, and the status is 0.
func TestImportCarriesAllOver(t *testing.T) {
	const hash = "$2b$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy"
	file := amFile(t, "c", map[string]any{"userpassword": hash}, nil, nil)
	provider := filepath.Join(t.TempDir(), "provider.json")
	if err := os.WriteFile(provider, []byte(`{"_type":{"_id":"oauth-oidc"},"coreOAuth2Config":{"accessTokenLifetime":60},"advancedOAuth2Config":{"grantTypes":["client_credentials"]}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	output := filepath.Join(t.TempDir(), "Caddyfile")
	stdout, report, made := importOf(t, 0, "am", file, provider, "--json", "--output", output)
	if stdout != "" || len(made) > 0 || !strings.Contains(report, `"carried":["userpassword","clientType"`) && !strings.Contains(report, `"carried":["clientType"`) {
		t.Errorf("it prints %s, makes %d secrets, and reports %s", stdout, len(made), report)
	}
	text, err := os.ReadFile(output)
	if err != nil || !strings.Contains(string(text), hash) || !strings.Contains(string(text), "token_lifetime 1m0s") {
		t.Errorf("the Caddyfile is %s, %v", text, err)
	}
	if _, report, _ := importOf(t, 2, "am", file, "--output", output); !strings.Contains(report, "exists already") {
		t.Errorf("a second import over the first says %s", report)
	}
}

// A folder stands for the exports in it, and not for what links in it lead to. frodo's folders say the realm.
func TestImportOfAFolder(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "realm", "root-alpha", "oauth2.app")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	for client, file := range map[string]string{"inside": "a.oauth2.app.json", "elsewhere": "b.json"} {
		if err := os.Rename(amFile(t, client, nil, nil, nil), filepath.Join(folder, file)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(amFile(t, "outside", nil, nil, nil), filepath.Join(folder, "c.json")); err != nil && runtime.GOOS != "windows" {
		t.Fatal(err)
	}
	_, _, made := importOf(t, 1, "am", dir, "--realm", "/bravo")
	if len(made) != 2 || made["alpha/inside"] == "" || made["bravo/elsewhere"] == "" {
		t.Errorf("these were imported: %v", slices.Sorted(maps.Keys(made)))
	}
}

// An import without a result writes nothing and says why.
func TestImportOfNothing(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	secrets := write("secrets", "of before")
	signer := amFile(t, "c", nil, map[string]any{"tokenEndpointAuthMethod": "private_key_jwt"}, map[string]any{"jwksUri": "https://a.example.com/"})
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"a file that isn't there", []string{"am", filepath.Join(dir, "missing.json")}, "missing.json"},
		{"no JSON", []string{"am", write("text.json", "hunter2")}, "text.json: it is not JSON"},
		{"nothing of AM's", []string{"am", write("other.json", `{"code":404,"reason":"Not Found"}`)}, "it is neither a client nor a provider"},
		{"JSON that is too deep", []string{"am", write("deep.json", strings.Repeat("[", 20_000))}, "deep.json: it is not JSON"},
		{"a folder without exports", []string{"am", t.TempDir()}, "there are no clients in it"},
		{"a name twice", []string{"am", write("twice.json", `{"_type":{"_id":"OAuth2Client"},"_id":"a","_id":"b"}`)}, `it has "_id" twice`},
		{"new secrets and no place for them", []string{"am", amFile(t, "c", nil, nil, nil)}, "1 clients need new secrets: give --secrets"},
		{"secrets over others", []string{"am", amFile(t, "c", nil, nil, nil), "--secrets", secrets}, "exists already; it is left as it is"},
		{"an assertion and no issuer", []string{"am", signer}, `client "c" signs assertions, which must name the issuer: give --issuer`},
		{"an issuer that is none", []string{"am", signer, "--issuer", "http://a.example.com"}, "must be an https URL"},
		{"two realms of one name", []string{"am", write("a.json", `{"metadata":{"realm":"/A-b","entityType":"OAuth2Provider"},"data":{}}`), write("b.json", `{"metadata":{"realm":"/a-b","entityType":"OAuth2Provider"},"data":{}}`)}, "would both be called a-b here"},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout, report, err := caddyCLI(t, "", append([]string{"import"}, c.args...)...)
			if exitStatus(err) != 2 || stdout != "" || !strings.Contains(report, c.want) || strings.Contains(report, leakedSecret) {
				t.Errorf("status %d, prints %q, and says %s", exitStatus(err), stdout, report)
			}
		})
	}
	if text, err := os.ReadFile(secrets); err != nil || string(text) != "of before" {
		t.Errorf("the file of before is %q, %v", text, err)
	}
}
