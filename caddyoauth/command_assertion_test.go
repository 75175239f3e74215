package caddyoauth_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// caddy oauth generate-key makes a key whose lines, pasted into a Caddyfile, let a client in by what caddy
// oauth assertion makes of the key, once.
func TestGeneratedKeysAuthenticate(t *testing.T) {
	const audience = "https://auth.example.com/oauth2"
	for _, algorithm := range []string{"", "ES256", "EdDSA", "RS256", "PS256"} {
		t.Run(algorithm, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "key.pem")
			args, sign := []string{"generate-key", "--out", file}, []string{"assertion", "--key", file, "--client-id", "ci", "--audience", audience}
			if algorithm != "" {
				args, sign = append(args, "--algorithm", algorithm), append(sign, "-a", algorithm)
			}
			lines, stderr, err := caddyCLI(t, "", args...)
			if err != nil {
				t.Fatal(err)
			}
			if !regexp.MustCompile("^auth private_key_jwt\njwk `\\{.*\"kid\":\".*\"\\}`\n$").MatchString(lines) || strings.Contains(lines, `"d"`) {
				t.Fatalf("standard output is %q", lines)
			}
			private, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(string(private), "-----BEGIN PRIVATE KEY-----\n") || !strings.Contains(stderr, file) || strings.Contains(lines+stderr, strings.Split(string(private), "\n")[1]) {
				t.Errorf("the key is not in the file alone: %q, %q", lines, stderr)
			}
			if info, err := os.Stat(file); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
				t.Errorf("the file has the mode %v, %v", info.Mode(), err)
			}
			g := startGateway(t, "store memory\n"+issuerOption+"client ci {\n"+lines+"scopes read\ndefault_scopes read\n}\n", gatewaySite)
			assertion, stderr, err := caddyCLI(t, "", sign...)
			if err != nil || stderr != "" || strings.Count(assertion, "\n") != 1 {
				t.Fatalf("%q, %q, %v", assertion, stderr, err)
			}
			wantToken(t, g.ask(strings.TrimSpace(assertion)), "read")
			wantE401(t, g.ask(strings.TrimSpace(assertion)), "root")
		})
	}
}

// Without --out the private key comes first, and JSON has the same.
func TestGenerateKeyPrints(t *testing.T) {
	stdout, stderr, err := caddyCLI(t, "", "generate-key", "-a", "EdDSA")
	m := regexp.MustCompile("(?s)^(-----BEGIN PRIVATE KEY-----\n.*-----END PRIVATE KEY-----\n)auth private_key_jwt\njwk `(\\{.*\\})`\n$").FindStringSubmatch(stdout)
	if err != nil || m == nil || !strings.Contains(stderr, "shown only now") || strings.Contains(stderr, "PRIVATE") {
		t.Fatalf("%q, %q, %v", stdout, stderr, err)
	}
	file := filepath.Join(t.TempDir(), "key.pem")
	for _, out := range [][]string{nil, {"-o", file}} {
		stdout, stderr, err = caddyCLI(t, "", append([]string{"generate-key", "--json"}, out...)...)
		var made struct {
			Kid, Alg    string
			JWK         jose.JSONWebKey
			PrivateKey  string `json:"private_key"`
			PrivateFile string `json:"private_key_file"`
		}
		if err != nil || stderr != "" || json.Unmarshal([]byte(stdout), &made) != nil || made.Alg != "ES256" || made.JWK.KeyID != made.Kid || !made.JWK.IsPublic() || made.JWK.Use != "sig" ||
			strings.Contains(made.PrivateKey, "PRIVATE KEY") != (out == nil) || (made.PrivateFile == file) != (out != nil) {
			t.Errorf("%v: %q, %q, %v", out, stdout, stderr, err)
		}
	}
}

// An assertion as JSON has what goes into the form.
func TestAssertionAsJSON(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key.pem")
	if _, _, err := caddyCLI(t, "", "generate-key", "--out", file); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	stdout, _, err := caddyCLI(t, "", "assertion", "-k", file, "--client-id", "my client", "--audience", "https://a.example", "--lifetime", "5m", "--json")
	var made struct {
		Type      string `json:"client_assertion_type"`
		Assertion string `json:"client_assertion"`
		Until     time.Time
	}
	if err != nil || json.Unmarshal([]byte(stdout), &made) != nil || made.Type != assertionType || made.Until.Sub(before) < 5*time.Minute-time.Second || made.Until.Sub(before) > 5*time.Minute+10*time.Second {
		t.Fatalf("%q, %v", stdout, err)
	}
	jws, err := jose.ParseSigned(made.Assertion, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Iss, Sub, Aud, Jti string
		Exp, Iat           int64
	}
	if err := json.Unmarshal(jws.UnsafePayloadWithoutVerification(), &claims); err != nil || claims.Iss != "my client" || claims.Sub != "my client" || claims.Aud != "https://a.example" || len(claims.Jti) < 16 || claims.Exp != made.Until.Unix() {
		t.Errorf("it claims %+v, %v", claims, err)
	}
	if typ := jws.Signatures[0].Protected.ExtraHeaders["typ"]; typ != "client-authentication+jwt" {
		t.Errorf("its typ is %v", typ)
	}
}

// What can't be done is refused, and no error repeats a key.
func TestKeyCommandsRefuse(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, public := filepath.Join(dir, "key.pem"), write("public.json", newKeyClient(t, "a").jwk())
	if _, _, err := caddyCLI(t, "", "generate-key", "--out", key); err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := caddyCLI(t, "", "generate-key", "-a", "EdDSA")
	if err != nil {
		t.Fatal(err)
	}
	two := write("two.pem", string(pem)+strings.Split(other, "auth")[0])
	assertion := func(key string, more ...string) []string {
		return append([]string{"assertion", "--key", key, "--client-id", "a", "--audience", "b"}, more...)
	}
	for what, c := range map[string]struct {
		args []string
		want string
	}{
		"an unknown algorithm":       {[]string{"generate-key", "-a", "HS256"}, "unknown algorithm \"HS256\" (known: ES256, EdDSA, RS256, PS256)"},
		"a file that is there":       {[]string{"generate-key", "--out", key}, "exists already"},
		"a folder that is not there": {[]string{"generate-key", "--out", filepath.Join(dir, "none", "key.pem")}, "no such file"},
		"an argument":                {[]string{"generate-key", leakedSecret}, "unknown command"},
		"no flags":                   {[]string{"assertion"}, "is missing"},
		"no audience":                {[]string{"assertion", "--key", key, "--client-id", "a"}, "--audience is missing"},
		"a client that can't be":     {[]string{"assertion", "--key", key, "--client-id", "a,b", "--audience", "b"}, "a client ID must have"},
		"too long":                   {assertion(key, "--lifetime", "6m"), "not between 1s and 5m"},
		"no time":                    {assertion(key, "--lifetime", "0s"), "not between 1s and 5m"},
		"no file":                    {assertion(filepath.Join(dir, "none")), "no such file"},
		"a public key":               {assertion(public), "public keys alone"},
		"no key":                     {assertion(write("text", leakedSecret)), "neither PEM nor JSON"},
		"two keys":                   {assertion(two), "several private keys"},
		"another algorithm":          {assertion(key, "-a", "EdDSA"), "signs by ES256, not by EdDSA"},
		"an algorithm with a secret": {assertion(key, "-a", "HS256"), "unknown algorithm"},
		"a key in place of its file": {assertion(string(pem)), "takes the name of a file"},
		"a JWK in place of its file": {assertion(`{"d":"` + leakedSecret + `"}`), "takes the name of a file"},
	} {
		stdout, stderr, err := caddyCLI(t, "", c.args...)
		if err == nil || !strings.Contains(err.Error(), c.want) || stdout != "" {
			t.Errorf("%s: %v, %q, want %q", what, err, stdout, c.want)
		} else if what != "an argument" && (strings.Contains(err.Error()+stderr, leakedSecret) || strings.Contains(err.Error()+stderr, "PRIVATE KEY")) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if again, err := os.ReadFile(key); err != nil || string(again) != string(pem) {
		t.Errorf("the key that was there is another: %v", err)
	}
}

// What the manual says about trying an assertion works as it stands there.
func TestTryingWithCurl(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not installed")
	}
	var commands []string
	for _, b := range docBlocks(t, "docs/clients.md") {
		if b.kind == "sh" {
			commands = append(commands, strings.Split(strings.TrimSpace(b.text), "\n")...)
		}
	}
	if len(commands) != 2 || commands[0] != makeKeyCommand || commands[1] != tryKeyCommand {
		t.Fatalf("docs/clients.md has the commands %q", commands)
	}
	path, dir := caddyCommand(t)+":"+os.Getenv("PATH"), t.TempDir()
	run := func(command string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+path)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		return string(out)
	}
	g := startGateway(t, "store memory\n"+issuerOption+"client ci {\n"+run(commands[0])+"scopes read\ndefault_scopes read\n}\n", gatewaySite)
	for range 2 { // each time with another assertion
		if answer := run(strings.Replace(commands[1], "https://auth.example.com/oauth2/access_token", g.URL+"/oauth2/access_token", 1)); !strings.Contains(answer, `"access_token":"`) {
			t.Errorf("curl prints %s", answer)
		}
	}
}

// The commands in docs/clients.md.
const (
	makeKeyCommand = "caddy oauth generate-key --out ci.pem"
	tryKeyCommand  = `curl -d grant_type=client_credentials -d client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer -d client_assertion=$(caddy oauth assertion --key ci.pem --client-id ci --audience https://auth.example.com/oauth2) https://auth.example.com/oauth2/access_token`
)
