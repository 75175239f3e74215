package caddyoauth_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// linted is a finding as 'caddy oauth lint --json' prints it.
type linted struct {
	Code, Kind, At, Path, Text, Means, Do string
	Certain                               bool
	Sites                                 []string
	Silenced                              *struct{ Reason, At string }
}

// lintOf returns what lint finds in the configuration in a file.
func lintOf(t testing.TB, file string) []linted {
	t.Helper()
	stdout, stderr, err := caddyCLI(t, "", "lint", "--json", "--config", file)
	var answer struct{ Findings []linted }
	if json.Unmarshal([]byte(stdout), &answer) != nil || stderr != "" {
		t.Fatalf("%v\n%s\n%s", err, stdout, stderr)
	}
	loud := false
	for i := range answer.Findings {
		f := &answer.Findings[i]
		f.At = strings.TrimPrefix(f.At, filepath.Dir(file)+string(filepath.Separator))
		loud = loud || f.Silenced == nil
	}
	if loud != (err != nil) {
		t.Errorf("the exit status is %v with %v", err, answer.Findings)
	}
	return answer.Findings
}

// lintCaddyfile returns what lint finds in a Caddyfile.
func lintCaddyfile(t testing.TB, text string) []linted {
	t.Helper()
	file := filepath.Join(t.TempDir(), "Caddyfile")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return lintOf(t, file)
}

// lintJSON returns what lint finds in a configuration that has been adapted already.
func lintJSON(t testing.TB, config []byte) []linted {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	return lintOf(t, file)
}

// A secret for Caddyfiles in these tests, and others.
const (
	lintSecret  = "secret_hash $sha256$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	lintSecret2 = "secret_hash $sha256$BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	lintSecret3 = "secret_hash $sha256$CAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	publicHash  = "secret_hash $sha256$v5tDTgJZiCU1P6ax79sJUhYHoKwhGPfC/OFisNq64es"
)

// lintClients are what most of these tests have in their oauth block.
const lintClients = `client reader {
	` + lintSecret + `
	scopes read
	audience https://api.example.com
}
client writer {
	` + lintSecret2 + `
	scopes read write
}
`

// lintFile returns a Caddyfile with these lines in the oauth block and in a site.
func lintFile(oauth, site string) string {
	return "{\n\tadmin off\n\tauto_https off\n\toauth {\nstore memory\n" + oauth + "}\n}\n:8080 {\n" + site + "}\n"
}

var lintMark = regexp.MustCompile(`# (\S+)$`)

// checkLint lints a Caddyfile. Each line with a finding ends with a comment, its code; for one
// whose line is not known the comment is the first line. Nothing else may be found.
func checkLint(t *testing.T, text string) []linted {
	t.Helper()
	text = formatted(text)
	var want, got []string
	for i, line := range strings.Split(text, "\n") {
		m := lintMark.FindStringSubmatch(line)
		switch {
		case m == nil:
		case i == 0:
			want = append(want, m[1])
		case strings.HasPrefix(line, "\t") && strings.HasPrefix(strings.TrimSpace(line), "#"): // after a brace
			want = append(want, fmt.Sprintf("Caddyfile:%d %s", i, m[1]))
		default:
			want = append(want, fmt.Sprintf("Caddyfile:%d %s", i+1, m[1]))
		}
	}
	findings := lintCaddyfile(t, text)
	for _, f := range findings {
		if f.Silenced == nil {
			got = append(got, strings.TrimSpace(f.At+" "+f.Code))
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("found %q, want %q, in\n%s", got, want, text)
		for _, f := range findings {
			t.Logf("%s %s %s: %s", f.At, f.Path, f.Code, f.Text)
		}
	}
	return findings
}

// Each finding has a configuration that has it, and its nearest neighbours that don't.
func TestLintFindings(t *testing.T) {
	site := func(lines string) string { return lintFile(lintClients, "oauth_server\n"+lines) }
	ca := newAuthority(t)
	// A site that asks for certificates, and serves these realms.
	asking := func(clientAuth, realms string) string {
		return "https://mtls.example.com:8443 {\ntls internal {\nclient_auth {\n" + clientAuth + "\n}\n}\noauth_server " + realms + "\n}\n"
	}
	// A server that trusts proxies, with these options besides.
	trusting := func(options, text string) string {
		return strings.Replace(text, "{\n", "{\nservers {\ntrusted_proxies static private_ranges"+options+"}\n", 1)
	}
	const certificateLines = "auth tls_client_auth\ntls_client_auth san_dns ci.example.com\nscopes read\n"
	for name, text := range map[string]string{
		"scope: somebody has it":                    site("oauth_protect {\nscopes read write\n}\n"),
		"scope: a typo":                             site("oauth_protect { # scope-nobody-has\nscopes raed\n}\n"),
		"scope: another case":                       site("oauth_protect { # scope-nobody-has\nscopes Read\n}\n"),
		"scope: any of them":                        site("oauth_protect {\nany_scope read write\n}\n"),
		"scope: any of them, one is a typo":         site("oauth_protect { # alternative-nobody-has\nany_scope read wirte\n}\n"),
		"scope: any of them, and nobody has one":    site("oauth_protect { # scope-nobody-has\nany_scope raed wirte\n}\n"),
		"scope: for a method":                       site("oauth_protect { # scope-nobody-has\nscopes read\non POST PUT {\nscopes wirte\n}\n}\n"),
		"scope: for the other methods":              site("oauth_protect { # scope-nobody-has\nscopes read\non GET {\nscopes read\n}\non * {\nscopes wirte\n}\n}\n"),
		"scope: replaced for all methods":           site("oauth_protect {\nscopes wirte\non * {\nscopes write\n}\n}\n"),
		"scope: of a disabled client":               lintFile(lintClients+"client admin {\n"+publicHash+"\nscopes admin\ndisabled\n}\n", "bind 127.0.0.1\noauth_server\noauth_protect { # scope-nobody-has\nscopes admin\n}\n"),
		"scope: of a client that fetches none":      lintFile(lintClients+"client admin {\n"+publicHash+"\nscopes admin\ngrant_types none\n}\n", "bind 127.0.0.1\noauth_server\noauth_protect { # scope-nobody-has\nscopes admin\n}\n"),
		"scope: tokens from elsewhere have others":  site("oauth_protect {\nscopes admin\nsource local\nsource jwt https://login.example.com {\naudience a\n}\n}\n"),
		"scope: of another realm":                   lintFile(lintClients+"realm a {\nclient c {\n"+lintSecret3+"\nscopes admin\n}\n}\n", "oauth_server\noauth_protect root { # scope-nobody-has\nscopes admin\n}\n"),
		"scope: of one of two realms":               lintFile(lintClients+"realm a {\nclient c {\n"+lintSecret3+"\nscopes admin\n}\n}\n", "oauth_server\noauth_protect {\nscopes admin\nsource local root\nsource local a\n}\n"),
		"scope: where there are no clients at all":  lintFile("client c {\n"+lintSecret+"\nscopes read\ndisabled\n}\n", "oauth_server\noauth_protect {\nscopes admin\n}\n"),
		"audience: somebody has it":                 site("oauth_protect {\naudience https://api.example.com\n}\n"),
		"audience: one of two":                      site("oauth_protect {\naudience https://old.example.com https://api.example.com\n}\n"),
		"audience: a slash at the end":              site("oauth_protect { # audience-nobody-has\naudience https://api.example.com/\n}\n"),
		"audience: for a method":                    site("oauth_protect { # audience-nobody-has\non DELETE {\naudience api\n}\n}\n"),
		"claim: no token has it":                    site("oauth_protect { # claim-nobody-has\nclaim role admin\n}\n"),
		"claim: tokens from elsewhere may have it":  site("oauth_protect {\nclaim role admin\nsource jwt https://login.example.com {\naudience a\n}\n}\n"),
		"claim: the client":                         site("oauth_protect {\nclaim client_id reader other\n}\n"),
		"claim: another client":                     site("oauth_protect { # claim-nobody-has\nclaim client_id Reader\n}\n"),
		"claim: a scope":                            site("oauth_protect {\nclaim scope write\n}\n"),
		"rule: nobody has both":                     site("oauth_protect { # rule-nobody-meets\nscopes write\naudience https://api.example.com\n}\n"),
		"rule: somebody has both":                   site("oauth_protect {\nscopes read\naudience https://api.example.com\n}\n"),
		"rule: the client can't":                    site("oauth_protect { # rule-nobody-meets\nscopes write\nclaim client_id reader\n}\n"),
		"rule: two kinds of scopes":                 lintFile(lintClients+"client lister {\n"+publicHash+"\nscopes list\n}\n", "bind 127.0.0.1\noauth_server\noauth_protect { # rule-nobody-meets\nscopes list\nany_scope read write\n}\n"),
		"realm: no server":                          lintFile(lintClients, "oauth_protect # realm-not-served\n"),
		"realm: another one is served":              lintFile(lintClients+"realm a {\nclient c {\n"+lintSecret3+"\nscopes read\n}\n}\n", "oauth_server a\noauth_protect /a/* a\noauth_protect /b/* root # realm-not-served\n"),
		"realm: another gateway may serve it":       strings.Replace(lintFile(lintClients, "oauth_protect\n"), "store memory", "store redis 127.0.0.1:6379", 1),
		"realm: another site serves it":             lintFile(lintClients, "oauth_protect\n") + ":8081 {\noauth_server\n}\n",
		"realm: tokens from elsewhere":              lintFile("", "oauth_protect {\nsource jwt https://login.example.com {\naudience a\n}\n}\n"),
		"client: no scopes":                         lintFile(lintClients+"client c { # client-without-scopes\n"+publicHash+"\n}\n", "bind 127.0.0.1\noauth_server\n"),
		"client: it introspects":                    lintFile(lintClients+"client c {\n"+publicHash+"\nintrospect realm\n}\n", "bind 127.0.0.1\noauth_server\n"),
		"client: it fetches no tokens":              lintFile(lintClients+"client c {\n"+publicHash+"\ngrant_types none\n}\n", "bind 127.0.0.1\noauth_server\n"),
		"client: disabled":                          lintFile(lintClients+"client c {\n"+publicHash+"\ndisabled\n}\n", "bind 127.0.0.1\noauth_server\n"),
		"realm: no clients":                         "# realm-without-clients\n" + lintFile("", "oauth_server\n"),
		"realm: managed clients":                    lintFile("managed_clients\n", "oauth_server\noauth_protect {\nscopes whatever\n}\n"),
		"realm: managed clients, and one disabled":  lintFile("managed_clients\nclient c {\n"+lintSecret+"\nscopes read\ndisabled\n}\n", "oauth_server\noauth_protect {\nscopes whatever\naudience urn:a\n}\n"),
		"realm: no clients, in a block":             lintFile(lintClients+"realm a { # realm-without-clients\n}\n", "oauth_server\n"),
		"realm: no clients, and nobody uses it":     lintFile("", "respond ok\n"),
		"basic_auth: over all":                      site2("basic_auth {\nu $2a$10$kVgX/6erEKdQ8SKSIdW7zOo3TCo5RVGdC9HUwfb8zBtnxPOsaT32W\n}\noauth_server # basic-auth-first\n"),
		"basic_auth: over another path":             site2("basic_auth /admin/* {\nu $2a$10$kVgX/6erEKdQ8SKSIdW7zOo3TCo5RVGdC9HUwfb8zBtnxPOsaT32W\n}\noauth_server\n"),
		"basic_auth: over the endpoint":             site2("basic_auth /oauth2/* {\nu $2a$10$kVgX/6erEKdQ8SKSIdW7zOo3TCo5RVGdC9HUwfb8zBtnxPOsaT32W\n}\noauth_server # basic-auth-first\n"),
		"basic_auth: over another endpoint":         site2("basic_auth /oauth2/introspect {\nu $2a$10$kVgX/6erEKdQ8SKSIdW7zOo3TCo5RVGdC9HUwfb8zBtnxPOsaT32W\n}\noauth_server\n"),
		"basic_auth: over a protected route":        site2("oauth_server\nhandle /api/* {\nbasic_auth {\nu $2a$10$kVgX/6erEKdQ8SKSIdW7zOo3TCo5RVGdC9HUwfb8zBtnxPOsaT32W\n}\noauth_protect # basic-auth-first\n}\n"),
		"basic_auth: over part of a route":          site2("oauth_server\nhandle /api/* {\nbasic_auth /api/x/* {\nu $2a$10$kVgX/6erEKdQ8SKSIdW7zOo3TCo5RVGdC9HUwfb8zBtnxPOsaT32W\n}\noauth_protect\n}\n"),
		"basic_auth: beside an optional token":      site2("oauth_server\nhandle /api/* {\nbasic_auth {\nu $2a$10$kVgX/6erEKdQ8SKSIdW7zOo3TCo5RVGdC9HUwfb8zBtnxPOsaT32W\n}\noauth_protect {\noptional\n}\n}\n"),
		"basic_auth: in another handle":             site2("oauth_server\nhandle /a/* {\nbasic_auth {\nu $2a$10$kVgX/6erEKdQ8SKSIdW7zOo3TCo5RVGdC9HUwfb8zBtnxPOsaT32W\n}\nrespond ok\n}\nhandle {\noauth_protect\n}\n"),
		"basic_auth: the header is removed":         site2("oauth_server\nroute /api/* {\nbasic_auth {\nu $2a$10$kVgX/6erEKdQ8SKSIdW7zOo3TCo5RVGdC9HUwfb8zBtnxPOsaT32W\n}\nrequest_header Authorization \"Bearer {query.token}\"\noauth_protect\n}\n"),
		"endpoint: protected":                       site2("route {\noauth_protect\noauth_server # token-endpoint-protected\n}\n"),
		"endpoint: protected by its path":           site2("route {\noauth_protect /oauth2/*\noauth_server # token-endpoint-protected\n}\n"),
		"endpoint: another path is protected":       site2("route {\noauth_protect /api/*\noauth_server\n}\n"),
		"endpoint: first":                           site2("route {\noauth_server\noauth_protect\n}\n"),
		"endpoint: the directives are sorted":       site2("oauth_protect /api/*\noauth_server {\nbase_path /api/oauth2\n}\n"),
		"endpoint: another realm's is protected":    lintFile(lintClients+"realm a {\nclient c {\n"+lintSecret3+"\nscopes read\n}\n}\n", "route {\noauth_protect /oauth2/realms/* root\noauth_server\n}\n"),
		"oauth_scope: somebody has it":              site("oauth_protect\n@w oauth_scope write\nrespond @w ok\n"),
		"oauth_scope: nobody has it":                site("oauth_protect\n@w oauth_scope wirte\nrespond @w ok # oauth-scope-nobody-has\n"),
		"oauth_scope: nobody has it, negated":       site("oauth_protect\n@w not oauth_scope wirte\nrespond @w ok # oauth-scope-nobody-has\n"),
		"oauth_scope: one of two":                   site("oauth_protect\n@w oauth_scope write admin\nrespond @w ok\n"),
		"oauth_scope: tokens from elsewhere":        site("oauth_protect {\nsource jwt https://login.example.com {\naudience a\n}\n}\n@w oauth_scope wirte\nrespond @w ok\n"),
		"oauth_scope: unprotected":                  site("@w oauth_scope write\nrespond @w ok # oauth-scope-without-protect\n"),
		"oauth_scope: in another handle":            site("handle /a/* {\noauth_protect\n}\nhandle {\n@w oauth_scope write\nrespond @w ok # oauth-scope-without-protect\n}\n"),
		"oauth_scope: in an error route":            site("oauth_protect\nhandle_errors {\n@w oauth_scope write\nrespond @w ok\n}\n"),
		"reached: the narrower one is first":        site2("oauth_server\nroute {\nhandle /a/b/* {\noauth_protect\n}\nhandle /a/* {\noauth_protect\n}\n}\n"),
		"reached: the wider one is first":           site2("oauth_server\nroute {\nhandle /a/* {\noauth_protect\n}\nhandle /a/b/* {\noauth_protect # never-reached\n}\n}\n"),
		"reached: the same path, written otherwise": site2("oauth_server\nroute {\nhandle /a/* {\nrespond ok\n}\nhandle /A/* {\noauth_protect # never-reached\n}\n}\n"),
		"reached: all are taken":                    site2("oauth_server\nroute {\nhandle {\nrespond ok\n}\nhandle /a/* {\noauth_protect # never-reached\n}\n}\n"),
		"reached: another matcher besides":          site2("oauth_server\n@x {\npath /a/*\nheader X-A 1\n}\nroute {\nhandle @x {\nrespond ok\n}\nhandle /a/b/* {\noauth_protect\n}\n}\n"),
		"reached: no more of a path than that":      site2("oauth_server\nroute {\nhandle /a/* {\nrespond ok\n}\nhandle /a {\noauth_protect\n}\nhandle /b* {\noauth_protect\n}\n}\n"),
		"reached: a part of the methods":            site2("oauth_server\n@x {\npath /a/*\nmethod GET HEAD\n}\n@y {\npath /a/b\nmethod GET\n}\n@z {\npath /a/b\nmethod GET POST\n}\nroute {\nhandle @x {\nrespond ok\n}\nhandle @y {\noauth_protect # never-reached\n}\nhandle @z {\noauth_protect\n}\n}\n"),
		"issuer: of another host":                   strings.Replace(lintFile("issuer https://auth.example.com/oauth2\n"+lintClients, "oauth_server\n"), ":8080", "api.example.com", 1),
		"issuer: of a wildcard":                     strings.Replace(lintFile("issuer https://auth.example.com/oauth2\n"+lintClients, "oauth_server\n"), ":8080", "*.example.com", 1),
		"issuer: of any site":                       lintFile("issuer https://auth.example.com/oauth2\n"+lintClients, "oauth_server\n"),
		"published: to everybody":                   lintFile("client c { # published-secret\n"+publicHash+"\nscopes read\n}\n", "oauth_server\n"),
		"published: to this machine":                lintFile("client c {\n"+publicHash+"\nscopes read\n}\n", "bind 127.0.0.1\noauth_server\n"),
		"published: only a route is for everybody":  lintFile("client c { # published-secret\n"+publicHash+"\nscopes read\n}\n", "oauth_protect\n") + ":8081 {\nbind 127.0.0.1\noauth_server\n}\n",
		"published: not any more":                   lintFile("client c {\n"+publicHash+" until 2020-01-01T00:00:00Z\n"+lintSecret+"\nscopes read\n}\n", "oauth_server\n"),
		"gap: between two":                          lintFile("client c { # secret-gap\n"+lintSecret+" until 2098-01-01T00:00:00Z\n"+lintSecret2+" from 2098-01-02T00:00:00Z\nscopes read\n}\n", "oauth_server\n"),
		"gap: before the first":                     lintFile("client c { # secret-gap\n"+lintSecret+" from 2098-01-01T00:00:00Z\nscopes read\n}\n", "oauth_server\n"),
		"gap: after the last":                       lintFile("client c { # secret-gap\n"+lintSecret+" until 2020-01-01T00:00:00Z\nscopes read\n}\n", "oauth_server\n"),
		"gap: one follows another":                  lintFile("client c {\n"+lintSecret+" until 2098-01-02T00:00:00Z\n"+lintSecret2+" from 2098-01-01T00:00:00Z until 2099-01-01T00:00:00Z\nscopes read\n}\n", "oauth_server\n"),
		"published: by reference":                   lintFile("client c { # published-secret\nsecret {env.LINT_DEMO}\nscopes read\n}\n", "oauth_server\n"),
		"guards: all off":                           site("oauth_protect { # all-guards-off\ninsecure_http\nkeep_token\nallow_ambiguous_paths\n}\n"),
		"guards: two off":                           site("oauth_protect {\ninsecure_http\nkeep_token\n}\n"),
		"shared: one hash":                          lintFile(lintClients+"client zebra { # shared-secret\n"+lintSecret2+"\nscopes read\n}\n", "oauth_server\n"),
		"shared: one reference":                     lintFile("client a {\nsecret {env.LINT_SECRET}\nscopes read\n}\nclient b { # shared-secret\nsecret {env.LINT_SECRET}\nscopes read\n}\n", "oauth_server\n"),
		"shared: one client of two realms":          lintFile(lintClients+"realm a {\nclient reader {\n"+lintSecret+"\nscopes read\n}\n}\n", "oauth_server\n"),
		"lifetime: of a realm":                      lintFile("token_lifetime 365d\n"+lintClients, "oauth_server\n"),
		"lifetime: of a client":                     lintFile("client c { # token-for-months\n"+lintSecret+"\nscopes read\ntoken_lifetime 90d\n}\n", "oauth_server\n"),
		"lifetime: two months":                      lintFile("client c {\n"+lintSecret+"\nscopes read\ntoken_lifetime 60d\n}\n", "oauth_server\n"),
		"signing: in memory":                        strings.Replace(lintFile("issuer https://auth.example.com\nsigning\n"+lintClients, "oauth_server\n"), "oauth {", "oauth { # keys-in-memory", 1),
		"signing: in memory, of a realm":            lintFile("issuer https://auth.example.com\nclient c {\n"+lintSecret+"\nscopes read\n}\nrealm a { # keys-in-memory\nclient c {\n"+lintSecret3+"\nscopes read\naudience a\ntoken_format jwt\n}\n}\n", "oauth_server\n"),
		"keys: in clear":                            strings.Replace(strings.Replace(lintFile("token_format sealed\n"+lintClients, "oauth_server\n"), "store memory", "store bbolt ./tokens.db", 1), "oauth {", "oauth { # keys-in-clear", 1),
		"keys: encrypted":                           strings.Replace(lintFile("issuer https://auth.example.com\nsigning\nencryption_key {env.LINT_SECRET}\n"+lintClients, "oauth_server\n"), "store memory", "store bbolt ./tokens.db", 1),
		"jwt: no audience":                          strings.Replace(lintFile("encryption_key {env.LINT_SECRET}\nissuer https://auth.example.com\nclient c { # jwt-without-audience\n"+lintSecret+"\nscopes read\ntoken_format jwt\n}\n", "oauth_server\n"), "store memory", "store bbolt ./tokens.db", 1),
		"jwt: for days":                             strings.Replace(lintFile("encryption_key {env.LINT_SECRET}\nissuer https://auth.example.com\nclient c { # jwt-for-days\n"+lintSecret+"\nscopes read\naudience a\ntoken_format jwt\ntoken_lifetime 25h\n}\n", "oauth_server\n"), "store memory", "store bbolt ./tokens.db", 1),
		"jwt: disabled":                             strings.Replace(lintFile("encryption_key {env.LINT_SECRET}\nissuer https://auth.example.com\n"+lintClients+"client c {\nscopes read\ntoken_format jwt\ndisabled\n}\n", "oauth_server\n"), "store memory", "store bbolt ./tokens.db", 1),
		"certificate: nobody asks":                  lintFile("client c { # certificate-nobody-asks-for\n"+certificateLines+"}\n", "oauth_server\n"),
		"certificate: to bind tokens":               lintFile("client c { # certificate-nobody-asks-for\n"+lintSecret+"\nscopes read\ncertificate_bound\n}\n", "oauth_server\n"),
		"certificate: or a secret":                  lintFile("client c {\n"+strings.Replace(certificateLines, "auth tls", "auth client_secret_basic tls", 1)+lintSecret+"\n}\n", "oauth_server\n"),
		"certificate: disabled":                     lintFile(lintClients+"client c {\ndisabled\n"+certificateLines+"}\n", "oauth_server\n"),
		"certificate: asked by another realm":       lintFile("realm a {\nclient c { # certificate-nobody-asks-for\n"+certificateLines+"}\n}\n"+lintClients, "oauth_server a\n") + asking("mode verify_if_given\ntrust_pool file "+ca.file, "root"),
		"certificate: asked at another port":        lintFile("client c {\n"+certificateLines+"}\n", "oauth_server\n") + asking("mode verify_if_given\ntrust_pool file "+ca.file, ""),
		"certificate: always demanded":              lintFile("client c {\n"+certificateLines+"}\n", "respond ok\n") + asking("trust_pool file "+ca.file, ""),
		"certificate: nobody verifies":              lintFile("client c { # certificate-nobody-verifies\n"+certificateLines+"}\n", "respond ok\n") + asking("mode request", ""),
		"certificate: nobody needs to verify":       lintFile("client c {\n"+lintSecret+"\nscopes read\ncertificate_bound\n}\n", "respond ok\n") + asking("mode request", ""),
		"certificate: authorities of our own":       lintFile("client_certificates {\ntrusted_ca_file "+ca.file+"\n}\nclient c {\n"+certificateLines+"}\n", "respond ok\n") + asking("mode require", ""),
		"certificate: from a proxy":                 lintFile("client_certificates {\nclient_cert_header\ntrusted_ca_file "+ca.file+"\n}\nclient c {\n"+certificateLines+"}\n", "oauth_server\n"),
		"certificate: from a proxy, no authorities": lintFile("client_certificates {\nclient_cert_header\n}\nclient c { # certificate-nobody-verifies\n"+certificateLines+"}\n", "oauth_server\n"),
		"certificate: another gateway may ask":      strings.Replace(lintFile("client c {\n"+certificateLines+"}\n", "oauth_server\n"), "store memory", "store redis 127.0.0.1:6379", 1),
		"federated: one of its own":                 lintFile("issuer https://auth.example.com\n"+"client c {\nfederated https://gitlab.com {\nsubject project_path:acme/app:ref_type:branch:ref:main\n}\nscopes read\n}\n", "oauth_server\n"),
		"federated: anybody":                        lintFile("issuer https://auth.example.com\n"+"client c { # federated-anybody\nfederated https://gitlab.com {\nsubject project_path:*/app\nclaim project_id 7\n}\nscopes read\n}\n", "oauth_server\n"),
		"federated: another audience":               lintFile("issuer https://auth.example.com\n"+"client c { # federated-audience\nfederated https://gitlab.com {\nsubject project_path:acme/app:ref_type:branch:ref:main\naudience https://auth.example.com api://x\n}\nscopes read\n}\n", "oauth_server\n"),
		"federated: two clients":                    lintFile("issuer https://auth.example.com\n"+"client a {\nfederated https://gitlab.com {\nsubject project_path:acme/app:ref_type:branch:ref:main\n}\nscopes read\n}\n"+"client b { # federated-twice\nfederated https://gitlab.com {\nsubject project_path:acme/app:ref_type:branch:ref:main\nclaim ref_protected true\n}\nscopes read\n}\n", "oauth_server\n"),
		"federated: two clients, another claim":     lintFile("issuer https://auth.example.com\n"+"client a {\nfederated https://gitlab.com {\nsubject project_path:acme/app:ref_type:branch:ref:main\nclaim project_id 1 2\n}\nscopes read\n}\n"+"client b {\nfederated https://gitlab.com {\nsubject project_path:acme/app:ref_type:branch:ref:main\nclaim project_id 3\n}\nscopes read\n}\n", "oauth_server\n"),
		"federated: two clients, one disabled":      lintFile("issuer https://auth.example.com\n"+"client a {\nfederated https://gitlab.com {\nsubject project_path:acme/app:ref_type:branch:ref:main\n}\nscopes read\ndisabled\n}\n"+"client b {\nfederated https://gitlab.com {\nsubject project_path:acme/app:ref_type:branch:ref:main\n}\nscopes read\n}\n", "oauth_server\n"),
		"max_age: of a route, above the cache's":    site("oauth_protect { # max-age-without-effect\nmax_age 2m\n}\n"),
		"max_age: of a route, below the cache's":    site("oauth_protect {\nmax_age 30s\n}\n"),
		"max_age: of a source":                      site("oauth_protect { # max-age-without-effect\nsource jwt https://login.example.com {\naudience a\nmax_age 10m\n}\n}\n"),
		"max_age: the cache is off":                 lintFile("cache off\n"+lintClients, "oauth_server\noauth_protect { # max-age-without-effect\nmax_age 5s\n}\n"),
		"stale: ten days":                           site("oauth_protect { # stale-for-hours\nsource introspect https://login.example.com/introspect {\nclient_id a\nclient_secret {env.LINT_SECRET}\nserve_stale 240h\n}\n}\n"),
		"stale: an hour":                            site("oauth_protect {\nsource introspect https://login.example.com/introspect {\nclient_id a\nclient_secret {env.LINT_SECRET}\nserve_stale 1h\n}\n}\n"),
		"jwt: any kind for anybody":                 site("oauth_protect { # any-jwt\nsource jwt https://login.example.com {\ntyp any\n}\n}\n"),
		"jwt: any kind for an audience":             site("oauth_protect {\naudience https://api.example.com\nsource jwt https://login.example.com {\ntyp any\n}\n}\n"),
		"jwt: any kind for the source's audience":   site("oauth_protect {\nsource jwt https://login.example.com {\ntyp any\naudience a\n}\n}\n"),
		"jwt: any kind with a scope":                site("oauth_protect {\nscopes admin\nsource jwt https://login.example.com {\ntyp any\n}\n}\n"),
		"jwt: any kind with a claim":                site("oauth_protect {\nclaim azp a\nsource jwt https://login.example.com {\ntyp any\n}\n}\n"),
		"jwt: any kind for an audience, on POST":    site("oauth_protect { # any-jwt\non POST {\naudience a\n}\nsource jwt https://login.example.com {\ntyp any\n}\n}\n"),
		"introspection: without credentials":        site("oauth_protect { # introspection-without-credentials\nsource introspect https://login.example.com/introspect\n}\n"),
		"introspection: on this machine":            site("oauth_protect {\nsource introspect http://127.0.0.1:4445/introspect\n}\n"),
		"introspection: with a header":              site("oauth_protect {\nsource introspect https://login.example.com/introspect {\nheader Authorization \"Bearer {env.LINT_SECRET}\"\n}\n}\n"),
		"introspection: with a header for a tenant": site("oauth_protect { # introspection-without-credentials\nsource introspect https://login.example.com/introspect {\nheader X-Tenant a\n}\n}\n"),
		"expect: kept":                              lintFile(lintClients+"expect {\nreader GET http://127.0.0.1:8080/ pass\n}\n", "oauth_server\noauth_protect {\nscopes read\n}\nreverse_proxy 127.0.0.1:9\n"),
		"expect: broken":                            lintFile(lintClients+"expect {\nreader GET http://127.0.0.1:8080/ pass\nreader * http://127.0.0.1:8080/ 403 # expectation-broken\n}\n", "oauth_server\noauth_protect {\nscopes read\n}\nreverse_proxy 127.0.0.1:9\n"),
		"report_only: no end":                       site("oauth_protect { # report-only-without-end\nreport_only\n}\n"),
		"report_only: an end":                       site("oauth_protect {\nreport_only until 2099-01-01T00:00:00Z\n}\n"),
		"report_only: over":                         site("oauth_protect { # report-only-ended\nreport_only until 2020-01-01T00:00:00Z\n}\n"),
		"report_only: over the endpoint":            site2("route {\noauth_protect {\nreport_only until 2099-01-01T00:00:00Z\n}\noauth_server\n}\n"),
		"limit: by a claimed address":               trusting("\n", lintFile(lintClients, "oauth_server # limit-by-claimed-address\n")),
		"limit: by a claimed address, for basic":    trusting("\n", lintFile(lintClients, "oauth_server # limit-by-claimed-address\noauth_protect { # limit-by-claimed-address\nbasic until 2099-01-01T00:00:00Z\n}\n")),
		"limit: by an address, strictly":            trusting("\ntrusted_proxies_strict\n", lintFile(lintClients, "oauth_server\n")),
		"limit: by another header":                  trusting("\nclient_ip_headers X-Real-IP\n", lintFile(lintClients, "oauth_server\n")),
		"limit: none":                               trusting("\n", lintFile("limit failures off\n"+lintClients, "oauth_server\n")),
		"am_compat: tokens in the query":            lintFile("realm a { # tokens-in-query\nam_compat {\ntokens_in_query\n}\n"+lintClients+"}\n", "oauth_server\n"),
		"am_compat: credentials in the query":       lintFile("realm a { # credentials-in-query\nam_compat {\ncredentials_in_query\n}\n"+lintClients+"}\n", "oauth_server\n"),
		"am_compat: none":                           lintFile("am_compat\nrealm a {\n"+lintClients+"}\n", "oauth_server\n"),
		"am_compat: JWTs without an audience":       strings.Replace(lintFile("encryption_key {env.LINT_SECRET}\nissuer https://auth.example.com\nam_compat\nclient c {\n"+lintSecret+"\nscopes read\ntoken_format jwt\n}\n", "oauth_server\n"), "store memory", "store bbolt ./tokens.db", 1),
		"basic: no end":                             site("oauth_protect { # basic-without-end\nbasic\n}\n"),
		"basic: an end":                             site("oauth_protect {\nbasic until 2099-01-01T00:00:00Z\n}\n"),
		"basic: over":                               site("oauth_protect { # basic-ended\nbasic until 2020-01-01T00:00:00Z\n}\n"),
		"basic: no server is needed":                lintFile(lintClients, "oauth_protect {\nbasic until 2099-01-01T00:00:00Z\n}\n"),
		"basic: over, and no server":                lintFile(lintClients, "oauth_protect { # realm-not-served\nscopes read\n}\n"),
		"assertion: keys are published":             strings.Replace(lintFile("encryption_key {env.LINT_SECRET}\nissuer https://auth.example.com\nsigning\n"+lintClients, "oauth_server\noauth_protect {\nassertion {\naudience a\n}\n}\n"), "store memory", "store bbolt ./tokens.db", 1),
		"assertion: keys of another realm":          strings.Replace(lintFile("encryption_key {env.LINT_SECRET}\nissuer https://auth.example.com\nsigning\n"+lintClients+"realm a {\nclient c {\n"+lintSecret3+"\nscopes read\n}\n}\n", "oauth_server root\noauth_protect root { # assertion-keys-hidden\nassertion {\naudience a\nrealm a\n}\n}\n"), "store memory", "store bbolt ./tokens.db", 1),
		"pattern: a path":                           site("oauth_protect\n@o path /users/{http.auth.user.subject}/*\nrespond @o ok # identity-as-pattern\n"),
		"pattern: an expression":                    site("oauth_protect\n@o expression `{path.1} == {http.auth.user.subject}`\nrespond @o ok\n"),
		"pattern: not of ours":                      lintFile(lintClients, "oauth_server\n@o path /users/{http.auth.user.id}/*\nrespond @o ok\n"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("LINT_DEMO", "mySecret")
			t.Setenv("LINT_SECRET", "0123456789abcdef0123456789abcdef")
			if code := map[string]string{"issuer: of another host": "issuer-nobody-serves", "scope: where there are no clients at all": "all-clients-disabled", "lifetime: of a realm": "token-for-months"}[name]; code != "" {
				text = strings.Replace(text, "oauth {", "oauth { # "+code, 1)
			}
			checkLint(t, text)
		})
	}
}

// site2 is a Caddyfile with these lines in its site.
func site2(lines string) string { return lintFile(lintClients, lines) }

// A code that does not exist silences nothing, so it is refused, in a Caddyfile and in JSON.
func TestLintIgnoreOfAnUnknownCode(t *testing.T) {
	_, err := adapt(t, formatted(lintFile("lint_ignore no-such-code because\n", "")))
	if err == nil || !strings.Contains(err.Error(), "unknown lint_ignore 'no-such-code' (known: ") || !strings.Contains(err.Error(), "client-without-scopes") {
		t.Errorf("%v", err)
	}
	for part, json := range map[string]string{
		"app":    `{"apps":{"oauth":{"lint_ignore":[IGNORE]}}}`,
		"realm":  `{"apps":{"oauth":{"realms":{"a":{"lint_ignore":[IGNORE]}}}}}`,
		"client": `{"apps":{"oauth":{"realms":{"a":{"clients":{"c":{"disabled":true,"lint_ignore":[IGNORE]}}}}}}}`,
		"server": `{"apps":{"oauth":{},"http":{"servers":{"s":{"routes":[{"handle":[{"handler":"oauth_server","lint_ignore":[IGNORE]}]}]}}}}}`,
		"route":  `{"apps":{"oauth":{},"http":{"servers":{"s":{"routes":[{"handle":[{"handler":"oauth_protect","lint_ignore":[IGNORE]}]}]}}}}}`,
	} {
		for ignore, want := range map[string]string{
			`{"code":"no-such-code","reason":"x"}`:                                 "unknown lint_ignore 'no-such-code'",
			`{"code":"client-without-scopes"}`:                                     "give the reason",
			`{"code":"client-without-scopes","reason":"x","site":"a.example.com"}`: "a site can be named only in the oauth app",
		} {
			err := validate([]byte(strings.Replace(json, "IGNORE", ignore, 1)))
			switch {
			case part == "app" && strings.Contains(ignore, "site"):
				if err != nil {
					t.Errorf("%s: %v", part, err)
				}
			case err == nil || !strings.Contains(err.Error(), want):
				t.Errorf("%s: %v, want %q", part, err, want)
			}
		}
	}
}

// The examples have no findings.
func TestLintOfTheExamples(t *testing.T) {
	for _, file := range stories(t) {
		t.Run(file, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("XDG_DATA_HOME", dir)
			t.Setenv("MAILER_SECRET", "demo-secret-from-env")
			t.Setenv("GATEWAY_SECRETS", dir)
			for name, content := range map[string]string{"reports": strings.Repeat("r", 40), "billing": strings.TrimPrefix(lintSecret, "secret_hash ")} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			t.Chdir(repositoryRoot) // the examples name files from there
			for _, f := range lintOf(t, file) {
				if f.Silenced == nil {
					t.Errorf("%s: %s: %s", f.At, f.Code, f.Text)
				}
			}
		})
	}
}

// lint_ignore silences what is in the part of the configuration that it stands in, and nothing else.
func TestLintIgnore(t *testing.T) {
	const ignore = "lint_ignore scope-nobody-has \"to come\"\n"
	protect := func(more string) string { return "oauth_protect {\nscopes admin\n" + more + "}\n" }
	clientless := "client c {\n" + lintSecret3 + "\n%s}\n"
	const ignoreClient = "lint_ignore client-without-scopes \"to come\"\n"
	for name, text := range map[string]string{
		"in the directive":                    lintFile(lintClients, "oauth_server\n"+protect(ignore)),
		"in another directive":                lintFile(lintClients, "oauth_server\noauth_protect /a {\n"+ignore+"# lint-ignore-unused\n}\noauth_protect /b { # scope-nobody-has\nscopes admin\n}\n"),
		"in oauth_server":                     lintFile(lintClients, "route {\noauth_protect\noauth_server {\nlint_ignore token-endpoint-protected \"by the outer gateway's\"\n}\n}\n"),
		"in the oauth block":                  lintFile(ignore+lintClients, "oauth_server\n"+protect("")),
		"in the oauth block, by host":         strings.Replace(lintFile("lint_ignore scope-nobody-has api.example.com \"to come\"\n"+lintClients, "oauth_server\n"+protect("")), ":8080", "api.example.com, www.example.com", 1),
		"in the oauth block, by scheme":       strings.Replace(lintFile("lint_ignore scope-nobody-has https://api.example.com \"to come\"\n"+lintClients, "oauth_server\n"+protect("")), ":8080", "api.example.com", 1),
		"in the oauth block, by port":         strings.Replace(lintFile("lint_ignore scope-nobody-has api.example.com:8443 \"to come\"\n"+lintClients, "oauth_server\n"+protect("")), ":8080", "api.example.com:8443", 1),
		"in the oauth block, by address":      lintFile("lint_ignore scope-nobody-has :8080 \"to come\"\n"+lintClients, "oauth_server\n"+protect("")),
		"in the oauth block, by another host": strings.Replace(lintFile("lint_ignore scope-nobody-has www.example.com \"to come\"\n# lint-ignore-unused\n"+lintClients, "oauth_server\noauth_protect { # scope-nobody-has\nscopes admin\n}\n"), ":8080", "api.example.com", 1),
		"in the client":                       lintFile(lintClients+fmt.Sprintf(clientless, ignoreClient), "oauth_server\n"),
		"in the realm":                        lintFile(lintClients+"realm a {\n"+ignoreClient+fmt.Sprintf(clientless, "")+"}\n", "oauth_server\n"),
		"in the oauth block, a client":        lintFile(ignoreClient+lintClients+"realm a {\n"+fmt.Sprintf(clientless, "")+"}\n", "oauth_server\n"),
		"the innermost counts":                lintFile(ignoreClient+"# lint-ignore-unused\n"+lintClients+fmt.Sprintf(clientless, ignoreClient), "oauth_server\n"),
		"another code":                        lintFile(lintClients+"client c { # client-without-scopes\n"+lintSecret3+"\nlint_ignore shared-secret \"no\"\n# lint-ignore-unused\n}\n", "oauth_server\n"),
		"nothing to silence":                  lintFile(lintClients+"client c {\n"+lintSecret3+"\nscopes read\n"+ignoreClient+"# lint-ignore-unused\n}\n", "oauth_server\n"),
		"what silences nothing":               lintFile(lintClients+"client c {\n"+lintSecret3+"\nscopes read\n"+ignoreClient+"lint_ignore lint-ignore-unused \"until May\"\n}\n", "oauth_server\n"),
		"a snippet of two sites":              "(api) {\noauth_protect {\nscopes admin\n" + ignore + "}\n}\n" + lintFile(lintClients, "oauth_server\nimport api\n") + ":8081 {\nimport api\n}\n",
		"a snippet, needed by one":            "(api) {\noauth_protect {\nscopes {args[0]}\n" + ignore + "}\n}\n" + lintFile(lintClients, "oauth_server\nimport api read\n") + ":8081 {\nimport api admin\n}\n",
	} {
		t.Run(name, func(t *testing.T) {
			if strings.HasPrefix(text, "(") { // the global options come first
				snippet, rest, _ := strings.Cut(text, "{\n\tadmin")
				globals, sites, _ := strings.Cut("{\n\tadmin"+rest, ":8080")
				text = globals + snippet + ":8080" + sites
			}
			checkLint(t, text)
		})
	}
	findings := lintCaddyfile(t, formatted(lintFile(lintClients, "oauth_server\n"+protect(ignore))))
	if len(findings) != 1 || findings[0].Silenced == nil || findings[0].Silenced.Reason != "to come" || findings[0].Silenced.At == "" {
		t.Errorf("JSON doesn't say what is silenced, and why: %+v", findings)
	}
}

// What a snippet brings into several sites is one finding, with all its sites.
func TestLintOfASnippet(t *testing.T) {
	text := strings.Replace(lintFile(lintClients, "oauth_server\nimport api\n"), ":8080", "(api) {\noauth_protect {\nscopes admin\n}\n}\nb.example.com", 1) + "a.example.com {\nimport api\n}\n"
	findings := lintCaddyfile(t, formatted(text))
	if len(findings) != 1 || !slices.Equal(findings[0].Sites, []string{"b.example.com", "a.example.com"}) {
		t.Errorf("%+v", findings)
	}
}

// What lint prints is in testdata/lint. After an intended change, run the test with -update and read
// the diff.
func TestLintOutput(t *testing.T) {
	t.Chdir(filepath.Join("testdata", "lint"))
	for file, args := range map[string][]string{"output.txt": {"lint"}, "output.json": {"lint", "--json"}} {
		stdout, stderr, err := caddyCLI(t, "", args...)
		if err == nil || stderr != "" {
			t.Errorf("%q ends with %v and says %q", args, err, stderr)
		}
		if *update {
			if err := os.WriteFile(file, []byte(stdout), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if want := strings.ReplaceAll(string(want), "\r\n", "\n"); stdout != want {
			t.Errorf("%q prints\n%s\nwant\n%s", args, stdout, want)
		}
	}
}

// The exit status is 0 if nothing is found, 1 if something is, and 2 if the configuration can't be
// loaded. What is found is all of standard output.
func TestLintInAProcess(t *testing.T) {
	program := filepath.Join(caddyCommand(t), "caddy")
	good := formatted(lintFile(lintClients, "oauth_server\noauth_protect {\nscopes read\n}\n"))
	for name, c := range map[string]struct {
		caddyfile, args string
		status          int
		stdout, stderr  string
	}{
		"nothing":              {good, "", 0, "Nothing found.\n", ""},
		"a silenced finding":   {strings.Replace(good, "scopes read\n\t}\n}\n", "scopes admin\nlint_ignore scope-nobody-has \"to come\"\n\t}\n}\n", 1), "", 0, "Nothing found, 1 silenced.\n", ""},
		"nothing, in JSON":     {good, "--json", 0, `{"findings":[]}` + "\n", ""},
		"a finding":            {strings.Replace(good, "scopes read\n\t}\n}\n", "scopes \"raed\"\n\t}\n}\n", 1), "", 1, "is \"read\" meant? (:8080)\n", ""},
		"a mistake":            {strings.Replace(good, "scopes read", "scope read", 1), "", 2, "", "Caddyfile:8"},
		"a mistake at the end": {strings.Replace(good, "store memory", "store redis nobody", 1), "", 2, "", "Error: "},
		"no such adapter":      {good, "--config Caddyfile --adapter yaml", 2, "", "yaml"},
		"an argument":          {good, "Caddyfile", 1, "", "unknown command"},
		"no Caddyfile":         {"", "", 2, "", "--config"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if c.caddyfile != "" {
				if err := os.WriteFile(filepath.Join(dir, "Caddyfile"), []byte(c.caddyfile), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.CommandContext(t.Context(), program, append([]string{"oauth", "lint"}, strings.Fields(c.args)...)...)
			cmd.Dir = dir
			var stdout, stderr strings.Builder
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			_ = cmd.Run() // its exit status is looked at
			if status := cmd.ProcessState.ExitCode(); status != c.status || !strings.Contains(stderr.String(), c.stderr) {
				t.Errorf("status %d, want %d; it says %s", status, c.status, stderr.String())
			}
			if !strings.Contains(stdout.String(), c.stdout) || (c.status != 1 || c.stdout == "") && stdout.String() != c.stdout {
				t.Errorf("it prints %q", stdout.String())
			}
		})
	}
}

// A start logs what is certain, once, unless it is silenced, and starts all the same.
func TestLintWarningsAtAStart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	startCaddyfile(t, strings.Replace(caddyfileOf("store memory\n"+testClients+"\nclient idle {\n"+lintSecret+"\n}\nclient later {\n"+lintSecret2+"\nlint_ignore client-without-scopes \"to come\"\n}",
		"oauth_server\noauth_protect /api/* {\nscopes raed\n}\noauth_protect /b/* {\nany_scope read wirte\n}\nrespond ok"), "{\n", "{\nlog {\noutput file "+file+"\n}\n", 1))
	got := lintWarnings(t, file)
	slices.Sort(got)
	if len(got) != 2 || !strings.HasPrefix(got[0], "client-without-scopes Caddyfile:") || !strings.HasPrefix(got[1], "scope-nobody-has Caddyfile:") {
		t.Errorf("the log has %q", got)
	}
}

// lintWarnings returns code and place of each warning of lint in a log file.
func lintWarnings(t testing.TB, file string) (warnings []string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var event struct {
			Level, Logger, Msg, Code, At string
			Site                         []string
			More                         int
		}
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			t.Fatal(err)
		}
		if event.Logger == "oauth.lint" {
			if event.Level != "warn" || event.Msg == "" || len(event.Site) == 0 && event.Code != "client-without-scopes" && event.More == 0 {
				t.Errorf("%s", line)
			}
			if event.More > 0 {
				event.Code = fmt.Sprint(event.More, " more")
			}
			warnings = append(warnings, strings.TrimSpace(event.Code+" "+event.At))
		}
	}
	return warnings
}

// Ten thousand clients with a finding each make a few lines, and no delay.
func TestLintWarningsAreBounded(t *testing.T) {
	var clients strings.Builder
	for i := range 10_000 {
		hash := base64.RawStdEncoding.EncodeToString(fmt.Appendf(nil, "%032d", i))
		fmt.Fprintf(&clients, "client c%d {\nsecret_hash $sha256$%s\n}\n", i, hash)
	}
	file := filepath.Join(t.TempDir(), "log")
	startCaddyfile(t, strings.Replace(caddyfileOf("store memory\n"+clients.String()+testClients, "oauth_server\noauth_protect {\nscopes read write\n}"), "{\n", "{\nlog {\noutput file "+file+"\n}\n", 1))
	got := lintWarnings(t, file)
	if len(got) != 21 || got[20] != "9980 more" {
		t.Errorf("the log has %q", got)
	}
}
