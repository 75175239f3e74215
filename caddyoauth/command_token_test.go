package caddyoauth_test

import (
	"encoding/base64"
	"encoding/json"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyoauth/gateway/introspect"
)

// jwtOf is a token with these parts, which nobody has signed.
func jwtOf(header, claims string) string {
	b64 := base64.RawURLEncoding.EncodeToString
	return b64([]byte(header)) + "." + b64([]byte(claims)) + "." + b64([]byte("canary-signature"))
}

// tokenUntil has the form of the tokens that are issued here, and this expiry in milliseconds.
func tokenUntil(milli int64) string {
	raw := make([]byte, 45)
	raw[0] = 1
	for i := range 6 {
		raw[6-i] = byte(milli >> (8 * i))
	}
	return "coa_" + base64.RawURLEncoding.EncodeToString(raw)
}

const (
	untilLate = 4102444799_000 // 2099-12-31T23:59:59Z
	untilPast = 1577836800_250 // 2020-01-01T00:00:00.25Z
)

// caddy oauth token inspect prints what a token says, and not the token.
func TestTokenInspect(t *testing.T) {
	for _, c := range []struct {
		name, token, text, json string
	}{
		{"ours", tokenUntil(untilLate), `
kind      issued by this gateway or another one, by its form
token_id  ID
expires   2099-12-31T23:59:59Z
verified  no: this is only what the token says
`, `{"kind":"gateway","token_id":"ID","expires":"2099-12-31T23:59:59Z","verified":false}`},
		{"ours, expired", tokenUntil(untilPast), `
kind      issued by this gateway or another one, by its form
token_id  ID
expires   2020-01-01T00:00:00.25Z, which has passed
verified  no: this is only what the token says
`, `{"kind":"gateway","token_id":"ID","expires":"2020-01-01T00:00:00.25Z","verified":false}`},
		{"sealed", "coe_" + strings.Repeat("A", 80), `
kind      sealed by this gateway or another one, by its form: only that can read it
token_id  ID
verified  no: this is only what the token says
`, `{"kind":"sealed","token_id":"ID","verified":false}`},
		{"a JWT", jwtOf(`{"typ":"at+jwt","alg":"ES256","kid":"k1","x5c":["secret"]}`,
			`{"sub":"robot","iss":"https://issuer.example.com","aud":["a","b"],"client_id":"c","scope":"read write","exp":4102444799,"nbf":4102444000,"iat":1577836800,"email":"x@example.com"}`), `
kind             JWT
token_id         ID
verified         no: this is only what the token says
header alg       "ES256"
header typ       "at+jwt"
header kid       "k1"
claim iss        "https://issuer.example.com"
claim sub        "robot"
claim aud        "a", "b"
claim client_id  "c"
claim scope      "read write"
claim iat        1577836800 = 2020-01-01T00:00:00Z
claim nbf        4102444000 = 2099-12-31T23:46:40Z, which is still to come
claim exp        4102444799 = 2099-12-31T23:59:59Z
`, `{"kind":"jwt","token_id":"ID","header":{"alg":"ES256","kid":"k1","typ":"at+jwt"},"claims":{"aud":["a","b"],"client_id":"c","exp":4102444799,"iat":1577836800,"iss":"https://issuer.example.com","nbf":4102444000,"scope":"read write","sub":"robot"},"verified":false}`},
		{"a JWT whose values are odd, or meant for the terminal", jwtOf(`{"alg":"none"}`,
			`{"iss":"\u001b[2Jx\u009b","sub":null,"aud":7,"scope":{"a":"\u202e\""},"scp":[["x"],true],"exp":1e400,"nbf":"soon","iat":12345678901234567890,"jti":"\u0000"}`), `
kind         JWT
token_id     ID
verified     no: this is only what the token says
header alg   "none"
claim iss    "\x1b[2Jx\u009b"
claim sub    null
claim aud    7
claim scope  {"a":"\u202e\""}
claim scp    ["x"], true
claim iat    12345678901234567890
claim nbf    "soon"
claim exp    ?
claim jti    "\x00"
`, ""},
		{"a JWT with characters that a terminal obeys as they are", jwtOf(`{"alg":"none","kid":"\u007f"}`, "{\"iss\":\"\u009b2Jé\",\"sub\":\"\u202e\U000e0001\",\"scope\":{\"\u202e\":1}}"), `
kind         JWT
token_id     ID
verified     no: this is only what the token says
header alg   "none"
header kid   "\x7f"
claim iss    "\u009b2Jé"
claim sub    "\u202e\U000e0001"
claim scope  {"\u202e":1}
`, `{"kind":"jwt","token_id":"ID","header":{"alg":"none","kid":"\u007f"},"claims":{"iss":"\u009b2Jé","scope":{"\u202e":1},"sub":"\u202e\udb40\udc01"},"verified":false}`},
		{"an expired JWT without more", jwtOf(`{"alg":"RS256"}`, `{"exp":1577836800.5}`), `
kind        JWT
token_id    ID
verified    no: this is only what the token says
header alg  "RS256"
claim exp   1577836800.5 = 2020-01-01T00:00:00Z, which has passed
`, `{"kind":"jwt","token_id":"ID","header":{"alg":"RS256"},"claims":{"exp":1577836800.5},"verified":false}`},
		{"an encrypted JWT", jwtOf(`{"alg":"RSA-OAEP","enc":"A256GCM","kid":"k"}`, "x") + ".eA.eA", `
kind        encrypted JWT: only its recipient can read the claims
token_id    ID
verified    no: this is only what the token says
header alg  "RSA-OAEP"
header kid  "k"
`, `{"kind":"jwe","token_id":"ID","header":{"alg":"RSA-OAEP","kid":"k"},"verified":false}`},
		{"another server's opaque token", "gho_16C7e42F292c6912E7", `
kind      other: only the server that issued it can tell
token_id  ID
verified  no: this is only what the token says
`, `{"kind":"other","token_id":"ID","verified":false}`},
		{"one with two points", "a.b.c", `
kind      other: only the server that issued it can tell
token_id  ID
verified  no: this is only what the token says
`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := tokenID(c.token)
			for _, end := range []string{"", "\n", "\r\n"} {
				stdout, stderr, err := caddyCLI(t, c.token+end, "token", "inspect")
				if err != nil || stderr != "" {
					t.Fatalf("%v, %q", err, stderr)
				}
				if want := strings.ReplaceAll(c.text[1:], "ID", id); stdout != want {
					t.Errorf("it prints\n%s\nwant\n%s", stdout, want)
				}
			}
			stdout, _, err := caddyCLI(t, c.token, "token", "inspect", "--json")
			if want := strings.ReplaceAll(c.json, "ID", id) + "\n"; err != nil || c.json != "" && stdout != want {
				t.Errorf("%v, it prints\n%s\nwant\n%s", err, stdout, want)
			}
			if c.json != "" && !json.Valid([]byte(stdout)) {
				t.Errorf("not JSON: %s", stdout)
			}
			if strings.Contains(stdout, c.token) || strings.Contains(stdout, "canary") || strings.Contains(stdout, "x5c") {
				t.Errorf("it prints the token: %s", stdout)
			}
		})
	}
}

// What is no token is refused without being repeated.
func TestTokenInspectRefuses(t *testing.T) {
	ours := tokenUntil(untilLate)
	for _, c := range []struct {
		name, input string
		args        []string
		want        string
	}{
		{"nothing", "", nil, "standard input has no token"},
		{"an empty line", "\n", nil, "standard input has no token"},
		{"a header", "Bearer canary", nil, "without 'Bearer'"},
		{"two lines", "canary\ncanary\n", nil, "in one line"},
		{"two line ends", "canary\n\n", nil, "in one line"},
		{"not ASCII", "canary\xff", nil, "in one line"},
		{"too long", "canary" + strings.Repeat("x", 16<<10), nil, "longer than 16384 bytes"},
		{"ours, cut short", ours[:40] + "canary", nil, "part of it is missing or changed"},
		{"sealed, cut short", "coe_AAAA", nil, "part of it is missing"},
		{"ours, of another version", "coa_B" + ours[5:], nil, "part of it is missing or changed"},
		{"ours, with an expiry that can't be", tokenUntil(1<<48 - 1), nil, "beyond the year 9999"},
		{"ours, with an expiry that can't be, as JSON", tokenUntil(1<<48 - 1), []string{"--json"}, "beyond the year 9999"},
		{"a JWT with half a header", "eyJhbGci.canary.canary", nil, "its header can't be read"},
		{"a JWT without claims", jwtOf(`{"alg":"ES256"}`, "canary"), nil, "its claims can't be read"},
		{"a JWT whose claims are a list", jwtOf(`{"alg":"ES256"}`, `["canary"]`), nil, "its claims can't be read"},
		{"an argument", "", []string{"canary"}, "must come from standard input"},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout, stderr, err := caddyCLI(t, c.input, append([]string{"token", "inspect"}, c.args...)...)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			if stdout != "" || strings.Contains(err.Error()+stderr, "canary") {
				t.Errorf("it repeats its input: %q, %v, %q", stdout, err, stderr)
			}
		})
	}
	if stdout, stderr, err := caddyCLI(t, "", "token", "canary"); err == nil || strings.Contains(err.Error()+stdout+stderr, "canary") {
		t.Errorf("a token in the place of the command: %v", err)
	}
}

// The log, the command and the line in the manual agree on the ID of a token.
func TestTokenInspectKnowsTokensIssuedHere(t *testing.T) {
	g, logged := startLogged(t, "store memory\n"+testClients, "oauth_server")
	token := g.token("reader")
	stdout, _, err := caddyCLI(t, token, "token", "inspect", "--json")
	var told struct {
		Kind string
		ID   string `json:"token_id"`
	}
	if err != nil || json.Unmarshal([]byte(stdout), &told) != nil || told.Kind != "gateway" {
		t.Fatalf("%v, %s", err, stdout)
	}
	if id := lastEvent(t, logged(), "token_issued")["token_id"]; id != told.ID {
		t.Errorf("the log says %v, the command %s", id, told.ID)
	}
	m := regexp.MustCompile("`(read -rs T && .*; unset T)`").FindStringSubmatch(readDocument(t, "docs/operations.md"))
	if m == nil {
		t.Fatal("the manual has no line for Bash")
	}
	for _, tool := range []string{"bash", "sha256sum"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	bash := exec.CommandContext(t.Context(), "bash", "-c", m[1])
	bash.Stdin = strings.NewReader(token + "\n")
	if out, err := bash.Output(); err != nil || !strings.HasPrefix(string(out), told.ID+" ") {
		t.Errorf("the line in the manual: %v, %q", err, out)
	}
}

func tokenID(token string) string { return introspect.IDOf(token).String() }
