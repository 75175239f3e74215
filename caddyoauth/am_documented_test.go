package caddyoauth_test

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// amCommand is a command as ForgeRock's and Ping's documentation has it, and what it prints: in one line, as
// the server sends it, with … for what differs each time.
type amCommand struct{ what, command, prints string }

// The commands of AM's own documentation work, word for word but for the host. In them, <access-token> stands
// for what the last token was.
func TestAMsDocumentedCommands(t *testing.T) {
	for _, program := range []string{"sh", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed: the commands can't be run", program)
		}
	}
	// The folder in which the commands run has the client's certificate and its key.
	dir := t.TempDir()
	own := newAuthority(t).issue(func(*x509.Certificate) {})
	writeCertificates(t, filepath.Join(dir, "myClientCertificate.pem"), own)
	key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"myClientCertificate.key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		".curlrc":                     []byte("insecure\nsilent\n"), // no authority vouches for the gateway
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g := startAsking(t, `
store memory
am_compat {
	tokens_in_query
}
issuer https://openam.example.com:8443/openam/oauth2
client myClient {
	auth self_signed_tls_client_auth
	certificate_file `+filepath.Join(dir, "myClientCertificate.pem")+`
	scopes write
}
realm alpha {
	signing
	client myClient {
		secret_hash `+hashOf("forgerock")+`
		scopes write profile back_channel_authentication
		default_scopes write
	}
	client idm-provisioning {
		secret_hash `+hashOf("openidm")+`
		scopes fr:idm:*
	}
	client example.com {
		secret_hash `+hashOf("s=cr%t")+`
		scopes write
		default_scopes write
	}
}
`, "oauth_server {\nbase_path /openam/oauth2 /am/oauth2\n}\nrespond 404", "mode request", "")
	const opaque = `{"access_token":"coa_…","scope":"write","token_type":"Bearer","expires_in":3599}`
	const introspected = `{"active":true,"scope":"write","realm":"/alpha","client_id":"myClient","user_id":"myClient","username":"myClient","token_type":"Bearer","exp":…,` +
		`"sub":"(age!myClient)","subname":"myClient","iss":"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha","auth_level":0,` +
		`"authGrantId":"…","auditTrackingId":"…","expires_in":…}`
	const tokenInfo = `{"access_token":"coa_…","token_type":"Bearer","expires_in":…,"scope":["write"],"client_id":"myClient","grant_type":"client_credentials","realm":"/alpha","write":""…}`
	here, token := "https://localhost:"+portOf(t, g.URL), ""
	for _, c := range []amCommand{
		{"a token, with the secret in the form", `curl \
--request POST \
--data "grant_type=client_credentials" \
--data "client_id=myClient" \
--data "client_secret=forgerock" \
--data "scope=write" \
"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha/access_token"`, opaque},
		{"what it means", `curl \
--request POST \
--user "myClient:forgerock" \
--data "token=<access-token>" \
"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha/introspect"`, introspected},
		{"that it ends", `curl \
--request POST \
--user "myClient:forgerock" \
--data "client_id=myClient" \
--data "token=<access-token>" \
"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha/token/revoke"`, `{}`},
		{"that it has ended", `curl \
--request POST \
--user "myClient:forgerock" \
--data "token=<access-token>" \
"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha/introspect"`, `{"active":false}`},
		{"a token, by Basic", `curl \
--request POST \
--user "myClient:forgerock" \
--data "grant_type=client_credentials" \
--data "scope=write" \
"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha/access_token"`, opaque},
		{"a token, with the realm in the query", `curl \
--request POST \
--user "myClient:forgerock" \
--data "grant_type=client_credentials" \
"https://openam.example.com:8443/openam/oauth2/access_token?realm=/alpha"`, opaque},
		{"the same without a slash", `curl \
--request POST \
--user "myClient:forgerock" \
--data "grant_type=client_credentials" \
"https://openam.example.com:8443/openam/oauth2/access_token?realm=alpha"`, opaque},
		{"the realm as older releases have it", `curl \
--request POST \
--user "myClient:forgerock" \
--data "grant_type=client_credentials" \
"https://openam.example.com:8443/openam/oauth2/alpha/access_token"`, opaque},
		{"the realm, and no root", `curl \
--request POST \
--user "myClient:forgerock" \
--data "grant_type=client_credentials" \
"https://openam.example.com:8443/openam/oauth2/realms/alpha/access_token"`, opaque},
		{"introspection with the secret in the form", `curl \
--request POST \
--data "client_id=myClient" \
--data "client_secret=forgerock" \
--data "token=<access-token>" \
"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha/introspect"`, introspected},
		{"introspection by the query, as before 7.2", `curl \
--request GET \
--user "myClient:forgerock" \
"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha/introspect?token=<access-token>"`, introspected},
		{"what it means, for whoever has it", `curl \
--request GET \
--header "Authorization: Bearer <access-token>" \
"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha/tokeninfo"`, tokenInfo},
		{"the same at the root", `curl \
--request GET \
--header "Authorization: Bearer <access-token>" \
"https://openam.example.com:8443/openam/oauth2/tokeninfo"`, tokenInfo},
		{"the same by the query", `curl -G \
--request GET 'https://openam.example.com:8443/am/oauth2/realms/root/realms/alpha/tokeninfo' \
--data-urlencode 'access_token=<access-token>'`, tokenInfo},
		{"revocation with the secret in the form", `curl \
--request POST \
--data "client_id=myClient" \
--data "client_secret=forgerock" \
--data "token=<access-token>" \
"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha/token/revoke"`, `{}`},
		{"a token, by a certificate", `curl \
--request POST \
--data "client_id=myClient" \
--data "grant_type=client_credentials" \
--data "scope=write" \
--data "response_type=token" \
--cert "myClientCertificate.pem" \
--key "myClientCertificate.key.pem" \
"https://openam.example.com:8443/openam/oauth2/realms/root/access_token"`, opaque},
		{"the other context, as in the guides to IDM", `curl \
--request POST \
--data "grant_type=client_credentials" \
--data "client_id=idm-provisioning" \
--data "client_secret=openidm" \
--data "scope=fr:idm:*" \
"http://am.example.com:8081/am/oauth2/realms/root/realms/alpha/access_token"`, `{"access_token":"coa_…","scope":"fr:idm:*","token_type":"Bearer","expires_in":3599}`},
		{"a scope for other endpoints", `curl \
--request POST \
--data "grant_type=client_credentials" \
--data "client_id=myClient" \
--data "client_secret=forgerock" \
--data "scope=back_channel_authentication" \
"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha/access_token"`, `{"access_token":"coa_…","scope":"back_channel_authentication","token_type":"Bearer","expires_in":3599}`},
		{"an ID and a secret that must be encoded", `curl \
--request POST \
--header "Authorization: Basic ZXhhbXBsZS5jb206cyUzRGNyJTI1dA==" \
--data "grant_type=client_credentials" \
"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha/access_token"`, opaque},
		{"discovery", `curl \
"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha/.well-known/openid-configuration"`,
			`{"issuer":"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha","token_endpoint":"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha/access_token",…` +
				`"introspection_endpoint":"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha/introspect",…`},
		{"discovery, with the realm in the query", `curl \
"https://openam.example.com:8443/openam/oauth2/.well-known/openid-configuration?realm=/alpha"`, `{"issuer":"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha",…`},
		{"the keys", `curl \
"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha/connect/jwk_uri"`, `{"keys":[{…}]}`},
		{"a secret that is wrong, in the form", `curl \
--request POST \
--data "grant_type=client_credentials" \
--data "client_id=myClient" \
--data "client_secret=wrong" \
"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha/access_token"`, `{"error_description":"Client authentication failed","error":"invalid_client"}`},
		{"a scope that the client has not", `curl \
--request POST \
--user "myClient:forgerock" \
--data "grant_type=client_credentials" \
--data "scope=admin" \
"https://openam.example.com:8443/openam/oauth2/realms/root/realms/alpha/access_token"`, `{"error_description":"Unknown/invalid scope(s): [admin]","error":"invalid_scope"}`},
	} {
		command := strings.NewReplacer("https://openam.example.com:8443", here, "http://am.example.com:8081", here, "<access-token>", token).Replace(c.command)
		sh := exec.CommandContext(t.Context(), "sh", "-c", command)
		sh.Dir, sh.Env = dir, []string{"HOME=" + dir, "LC_ALL=C.UTF-8", "NO_PROXY=localhost", "PATH=" + os.Getenv("PATH")}
		output, err := sh.Output()
		printed := strings.TrimRight(string(output), "\n")
		if err != nil || !consolePattern(c.prints).MatchString(printed) {
			t.Errorf("%s: %v\n%s\nwant\n%s", c.what, err, printed, c.prints)
		}
		if _, rest, found := strings.Cut(printed, `{"access_token":"`); found {
			token, _, _ = strings.Cut(rest, `"`)
		}
	}
}
