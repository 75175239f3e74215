package caddyoauth_test

import (
	"bufio"
	"bytes"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/caddyoauth/gateway/caddyoauth"
)

// clientAuthCases are the rules of client authentication for a single request. All endpoints
// authenticate in the same way, so every case runs on all of them.
func clientAuthCases() []endpointCase {
	const assertionType = "urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer"
	authorization := func(values ...string) call {
		var c call
		for _, v := range values {
			c.headers = append(c.headers, "Authorization", v)
		}
		return c
	}
	good := basic("reader", testSecret)
	inScheme := func(scheme string) call { return authorization(scheme + strings.TrimPrefix(good, "Basic")) }
	withBody := func(c call, body string) call {
		c.body = body
		return c
	}
	post := func(id, secret string) call {
		return call{body: "FORM&client_id=" + url.QueryEscape(id) + "&client_secret=" + url.QueryEscape(secret)}
	}
	cases := []endpointCase{
		// A scheme's name may be in any case, with any number of spaces after it (RFC 9110
		// section 11.1).
		{name: "Basic", call: authorization(good)},
		{name: "the scheme name in lower case", call: inScheme("basic")},
		{name: "the scheme name in upper case", call: inScheme("BASIC")},
		{name: "two spaces after the scheme", call: inScheme("Basic ")},
		{name: "no space after the scheme", status: 401, call: authorization(strings.Replace(good, " ", "", 1))},

		// Inside Basic, ID and secret are form-urlencoded (RFC 6749 section 2.3.1): split at the
		// first raw colon, then decode each once. A secret is accepted raw, too, for the many
		// clients that don't encode it.
		{name: "ID and secret form-urlencoded", call: call{}.as("my:app", oddSecret)},
		{name: "a space as %20", call: authorization(rawBasic("my%3Aapp:p%25%2B%20%C3%A4%2F%3D%26%3A"))},
		{name: "a space as +", call: authorization(rawBasic("my%3Aapp:p%25%2B+%C3%A4%2F%3D%26%3A"))},
		{name: "lower-case escapes", call: authorization(rawBasic("my%3aapp:p%25%2b%20%c3%a4%2f%3d%26%3a"))},
		{name: "=, / and : unescaped in the secret", call: authorization(rawBasic("my%3Aapp:p%25%2B%20%C3%A4/=%26:"))},
		{name: "ID and secret sent raw: the first colon ends the ID", status: 401, call: authorization(rawBasic("my:app:" + oddSecret))},
		{name: "the secret sent raw", call: authorization(rawBasic("my%3Aapp:" + oddSecret))},
		{name: "encoded twice", status: 401, call: call{}.as(url.QueryEscape("my:app"), url.QueryEscape(oddSecret))},
		{name: "only the secret encoded twice", status: 401, call: call{}.as("my:app", url.QueryEscape(oddSecret))},
		{name: "a + meant literally in an encoded secret", status: 401, call: authorization(rawBasic("my%3Aapp:p%25++%C3%A4%2F%3D%26%3A"))},
		{name: "%zz in the secret", status: 401, call: authorization(rawBasic("reader:%zz"))},
		{name: "%zz in the ID", status: 401, call: authorization(rawBasic("%zz:abc"))},
		{name: "no colon", status: 401, call: authorization(rawBasic("reader"))},
		{name: "empty credentials", status: 401, call: authorization(rawBasic(""))},
		{name: "only a colon", status: 401, call: authorization(rawBasic(":"))},
		{name: "a secret without an ID", status: 401, call: authorization(rawBasic(":" + testSecret))},
		{name: "not base64", status: 401, call: authorization("Basic %%%%")},
		{name: "base64 without padding", status: 401, call: authorization("Basic " + base64.RawStdEncoding.EncodeToString([]byte("reader:abc4")))},
		{name: "base64 with stray bits", status: 401, call: authorization("Basic cmVhZGVyOmFiY5==")},
		{name: "text after the base64", status: 401, call: authorization(good + ", Basic x")},
		{name: "NUL in the secret", status: 401, call: authorization(rawBasic("reader:abc%00"))},
		{name: "a secret that is not UTF-8", status: 401, call: authorization(rawBasic("reader:abc\xff"))},
		{name: "a space after the secret", status: 401, call: authorization(rawBasic("reader:abc+"))},
		{name: "a line break after the secret", status: 401, call: authorization(rawBasic("reader:abc\n"))},
		{name: "the ID in another case", status: 401, call: call{}.as("Reader", testSecret)},
		{name: "the secret in another case", status: 401, call: call{}.as("reader", "ABC")},

		// A client uses only the methods that it is registered for; by default, both.
		{name: "post", call: post("reader", testSecret)},
		{name: "post, with characters that need encoding", call: post("my:app", oddSecret)},
		{name: "post by a client that may only use Basic", status: 401, call: post("only-basic", testSecret)},
		{name: "Basic by a client that may only use Basic", call: call{}.as("only-basic", testSecret)},
		{name: "Basic by a client that may only use post", status: 401, call: call{}.as("only-post", testSecret)},
		{name: "post by a client that may only use post", call: post("only-post", testSecret)},

		// The body may repeat the client_id of Basic, but not contradict it.
		{name: "Basic with the same client_id in the body", call: withBody(authorization(good), "FORM&client_id=reader")},
		{name: "Basic with a different client_id in the body", status: 400, code: "invalid_request", call: withBody(authorization(good), "FORM&client_id=writer")},
		{name: "Basic with an empty client_id in the body", call: withBody(authorization(good), "FORM&client_id=")},

		// One method a request (RFC 6749 section 2.3), even if each would do by itself.
		{name: "Basic and client_secret", status: 400, code: "invalid_request", call: withBody(authorization(good), "FORM&client_secret=abc")},
		{name: "Basic and the same credentials posted", status: 400, code: "invalid_request", call: withBody(authorization(good), post("reader", testSecret).body)},
		{name: "wrong Basic credentials and good ones posted", status: 400, code: "invalid_request", call: withBody(call{}.as("reader", "wrong-secret"), post("reader", testSecret).body)},
		{name: "a Bearer token and good credentials posted", status: 400, code: "invalid_request", call: withBody(authorization("Bearer canary"), post("reader", testSecret).body)},
		{name: "Basic and an assertion", status: 400, code: "invalid_request", call: withBody(authorization(good), "FORM&client_assertion=canary&client_assertion_type="+assertionType)},
		{name: "a secret and an assertion", status: 400, code: "invalid_request", call: call{body: post("reader", testSecret).body + "&client_assertion=canary&client_assertion_type=" + assertionType}},
		{name: "two equal Authorization lines", status: 400, code: "invalid_request", call: authorization(good, good)},
		{name: "two Authorization lines, the second wrong", status: 400, code: "invalid_request", call: authorization(good, basic("writer", "wrong-secret"))},
		{name: "two Authorization lines of different schemes", status: 400, code: "invalid_request", call: authorization("Bearer canary", good)},
		{name: "two Authorization lines, one empty", status: 400, code: "invalid_request", call: authorization(good, "")},

		{name: "no credentials", status: 401, call: call{}},
		{name: "an ID without a secret", status: 401, call: call{body: "FORM&client_id=reader"}},
		{name: "a posted secret without an ID", status: 401, call: call{body: "FORM&client_secret=abc"}},
		{name: "an assertion, which is not supported", status: 401, call: call{body: "FORM&client_id=reader&client_assertion=canary&client_assertion_type=" + assertionType}},

		// No other scheme authenticates a client.
		{name: "Bearer", status: 401, call: authorization("Bearer canary")},
		{name: "Negotiate", status: 401, call: authorization("Negotiate Y2FuYXJ5")},
		{name: "Digest", status: 401, call: authorization(`Digest username="reader"`)},
		{name: "credentials without a scheme", status: 401, call: authorization(base64.StdEncoding.EncodeToString([]byte("reader:abc")))},
		{name: "an empty Authorization header", status: 401, call: authorization("")},
		{name: "Bearer beside a client_id", status: 401, call: withBody(authorization("Bearer canary"), "FORM&client_id=reader")},

		// Whatever is wrong with the credentials, the answer is the same (see
		// TestFailedAuthenticationsLookAlike).
		{name: "an unknown client", status: 401, call: call{}.as("nobody-known", "wrong-secret")},
		{name: "a wrong secret", status: 401, call: call{}.as("reader", "wrong-secret")},
		{name: "a disabled client", status: 401, call: call{}.as("off", testSecret)},
		{name: "an expired secret", status: 401, call: call{}.as("expired", testSecret)},
		{name: "another client's secret", status: 401, call: call{}.as("my:app", testSecret)},
		{name: "a wrong secret, posted", status: 401, call: post("reader", "wrong-secret")},
		{name: "a secret of 10 KiB", status: 401, call: post("reader", strings.Repeat("s", 10<<10))},
		{name: "the right secret followed by 10 KiB", status: 401, call: post("reader", testSecret+strings.Repeat("s", 10<<10))},

		// An empty secret never authenticates, nor does what is stored in place of one.
		{name: "an empty secret in Basic", status: 401, call: authorization(rawBasic("reader:"))},
		{name: "an empty secret, posted", status: 401, call: call{body: "FORM&client_id=reader&client_secret="}},
		{name: "an empty secret of a disabled client", status: 401, call: authorization(rawBasic("off:"))},
		{name: "the hash instead of the secret", status: 401, call: call{}.as("reader", hashOf(testSecret))},
		{name: "the digest instead of the secret", status: 401, call: call{}.as("reader", strings.TrimPrefix(hashOf(testSecret), "$sha256$"))},
	}
	return cases
}

// Clients authenticate by the same rules at every endpoint.
func TestClientAuthentication(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			g := startGateway(t, v.options(t)+endpointOptions(), "oauth_server")
			runCases(t, g, clientAuthCases())
		})
	}
}

// rawAnswer posts a form over a connection of its own and returns the whole answer, head
// included, byte for byte but for the Date.
func rawAnswer(t *testing.T, g *gateway, path, authorization, body string) string {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(g.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if authorization != "" {
		authorization = "Authorization: " + authorization + "\r\n"
	}
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/x-www-form-urlencoded\r\n%sContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		path, authorization, len(body), body)
	all, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(all)), nil); err != nil {
		t.Fatalf("%q is not an HTTP response: %v", all, err)
	}
	return regexp.MustCompile(`(?m)^Date: .*\r\n`).ReplaceAllString(string(all), "")
}

// A client ID may contain spaces. They survive both methods of authentication, the store, and
// the headers and placeholders for the backend; one space more is another client.
func TestClientIDWithSpaces(t *testing.T) {
	client := func(id, more string) string {
		return "client \"" + id + "\" {\nsecret_hash " + hashOf(testSecret) + "\nscopes read\ndefault_scopes read\n" + more + "}\n"
	}
	const site = "oauth_server\noauth_protect\nrequest_header X-Seen \"{http.auth.user.id}\"\nreverse_proxy BACKEND"
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			options := v.options(t)
			clients := client("my  nice client", "") + client("~ !#$%&'()*+-./:;<=>?@[]^_{|}`", "introspect realm\n")
			g := startGateway(t, options+clients, site)
			for _, id := range []string{"my  nice client", "~ !#$%&'()*+-./:;<=>?@[]^_{|}`"} {
				token := wantToken(t, g.post("/oauth2/token", id, testSecret, url.Values{"grant_type": {"client_credentials"}}), "read")
				a := g.do(g.request("GET", "/x", "", "Authorization", "Bearer "+token))
				got := g.Backend.last(t).Header
				if a.StatusCode != 200 || got.Get("X-OAuth-Client-Id") != id || got.Get("X-OAuth-Subject") != id || got.Get("X-Seen") != id {
					t.Errorf("for client %q the backend was told %v", id, got)
				}
				if facts := g.introspect(id, token).json(t); facts["client_id"] != id || facts["sub"] != id {
					t.Errorf("the token of %q says %v", id, facts)
				}
			}
			T := endpoint{'T', "root", "/oauth2/token"}
			spaced := "my  nice client"
			for name, c := range map[string]call{
				"plus":                {headers: []string{"Authorization", rawBasic("my++nice+client:" + testSecret)}},
				"%20":                 {headers: []string{"Authorization", rawBasic("my%20%20nice%20client:" + testSecret)}},
				"as it is":            {headers: []string{"Authorization", rawBasic(spaced + ":" + testSecret)}},
				"in the form":         {body: "FORM&client_id=my++nice%20client&client_secret=" + testSecret},
				"Basic, and its name": {body: "FORM&client_id=my++nice+client", headers: []string{"Authorization", basic(spaced, testSecret)}},
			} {
				if a := c.send(g, T); a.StatusCode != 200 {
					t.Errorf("%s: %d %s", name, a.StatusCode, a.Body)
				}
			}
			for _, id := range []string{"my nice client", " my  nice client", "my  nice client ", "my\u00a0 nice client"} {
				wantE401(t, call{}.as(id, testSecret).send(g, T), "root")
			}
			// The client is disabled and enabled again; its tokens stay dead.
			token := wantToken(t, g.post("/oauth2/token", spaced, testSecret, url.Values{"grant_type": {"client_credentials"}}), "read")
			for _, clients := range []string{client(spaced, "disabled\n"), client(spaced, "")} {
				if err := g.load(options+clients, site); err != nil {
					t.Fatal(err)
				}
				if a := g.get("/x", token); a.StatusCode != 401 {
					t.Errorf("after a reload: %d", a.StatusCode)
				}
			}
		})
	}
}

// argonHash is the Argon2id hash of a secret with these parameters. Tests prefer it to bcrypt,
// which the race detector slows down thirtyfold.
func argonHash(secret string, m, t uint32, p uint8) string {
	salt := []byte("sixteen byte salt")
	digest := argon2.IDKey([]byte(secret), salt, t, m, p, 32)
	return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", m, t, p, base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(digest))
}

// slowHash is argonHash with the cheapest parameters that a configuration may have.
func slowHash(secret string) string { return argonHash(secret, 16384, 2, 1) }

// Whatever makes an authentication fail, the answer is the same, byte for byte. One client has
// a slow hash, so that the paths through the code differ as much as they can.
func TestFailedAuthenticationsLookAlike(t *testing.T) {
	g := startGateway(t, "store memory\n"+noFailureLimit+endpointClients()+"client slow {\nsecret_hash "+slowHash("correct horse")+"\nscopes read\n}\n", "oauth_server")
	for _, e := range endpoints() {
		if e.realm != "root" || strings.Contains(e.path, "realms") {
			continue
		}
		form := e.leastForm()
		want := rawAnswer(t, g, e.path, basic("nobody", "wrong"), form)
		if !strings.HasPrefix(want, "HTTP/1.1 401 ") {
			t.Errorf("an unknown client gets %s", want)
		}
		for name, got := range map[string]string{
			"wrong secret":           rawAnswer(t, g, e.path, basic("reader", "wrong"), form),
			"wrong secret, slow":     rawAnswer(t, g, e.path, basic("slow", "wrong"), form),
			"disabled client":        rawAnswer(t, g, e.path, basic("off", testSecret), form),
			"expired secret":         rawAnswer(t, g, e.path, basic("expired", testSecret), form),
			"wrong method":           rawAnswer(t, g, e.path, basic("only-post", testSecret), form),
			"empty secret":           rawAnswer(t, g, e.path, basic("reader", ""), form),
			"no credentials":         rawAnswer(t, g, e.path, "", form),
			"malformed Basic":        rawAnswer(t, g, e.path, "Basic %", form),
			"another scheme":         rawAnswer(t, g, e.path, "Bearer x", form),
			"unknown client, posted": rawAnswer(t, g, e.path, "", form+"&client_id=nobody&client_secret=wrong"),
			"wrong secret, posted":   rawAnswer(t, g, e.path, "", form+"&client_id=reader&client_secret=wrong"),
			"overlong secret":        rawAnswer(t, g, e.path, "", form+"&client_id=reader&client_secret="+strings.Repeat("x", 10<<10)),
		} {
			if got != want {
				t.Errorf("%s: %s: the answer\n%s\ndiffers from that to an unknown client\n%s", e.path, name, got, want)
			}
		}
	}
}

// A secret that is stored as a slow hash authenticates, and nothing close to it does.
func TestSlowHashes(t *testing.T) {
	const (
		secret      = "correct horse battery staple"
		cryptSecret = "$2a$10$EMBOBUc0qF0HiUuSJqy.Aux25Pt3FMJEkkzi/9/YrffME8Xsvwsoe"
		cryptLong   = "$2a$10$P7snOx9lebNlTPDR1i65deh.pQBrntHeBUM2NdV3L2J/K.ntgcypK" // of 72 × a
	)
	long := strings.Repeat("a", 72)
	client := func(id, hash string) string {
		return "client " + id + " {\nsecret_hash " + hash + "\nscopes read\ndefault_scopes read\n}\n"
	}
	salt, b64 := []byte("sixteen\xfb\xef\xbe salt"), base64.RawStdEncoding.EncodeToString
	derived := func(h func() hash.Hash, rounds, length int) []byte {
		sum, err := pbkdf2.Key(h, secret, salt, rounds, length)
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	// Each has a realm of its own: a failure costs as much as the most expensive hash of its realm.
	g := startGateway(t, "store memory\n"+
		"realm argon {\n"+client("owasp", argonHash(secret, 19456, 2, 1))+"}\n"+
		"realm threads {\n"+client("threads", argonHash(secret, 9216, 4, 4))+"}\n"+
		"realm hydra {\n"+client("hydra", "$pbkdf2-sha256$i=600000,l=32$"+b64(salt)+"$"+b64(derived(sha256.New, 600_000, 32)))+"}\n"+
		"realm authelia {\n"+client("authelia", strings.ReplaceAll("$pbkdf2-sha512$310000$"+b64(salt)+"$"+b64(derived(sha512.New, 310_000, 64)), "+", "."))+"}\n"+
		"realm crypt {\n"+client("crypt", cryptSecret)+client("crypt2y", "$2y$"+cryptSecret[4:])+client("long", cryptLong)+"}\n", "oauth_server")
	g.Client.Timeout = 0 // with the race detector, on a busy machine, bcrypt may take longer than any
	form := url.Values{"grant_type": {"client_credentials"}}
	for _, c := range []struct {
		name, realm, client, secret string
		ok                          bool
	}{
		{"Argon2id", "argon", "owasp", secret, true},
		{"a wrong secret after the right one", "argon", "owasp", secret + "!", false},
		{"the right one again", "argon", "owasp", secret, true},
		{"an empty secret", "argon", "owasp", "", false},
		{"Argon2id with four threads", "threads", "threads", secret, true},
		{"bcrypt", "crypt", "crypt", secret, true},
		{"bcrypt as PHP writes it", "crypt", "crypt2y", secret, true},
		{"a secret that differs from bcrypt's in case", "crypt", "crypt", "Correct horse battery staple", false},
		{"PBKDF2 as Hydra writes it", "hydra", "hydra", secret, true},
		{"a space after the secret of PBKDF2", "hydra", "hydra", secret + " ", false},
		{"PBKDF2 as Authelia writes it", "authelia", "authelia", secret, true},
		{"a letter before the secret of PBKDF2", "authelia", "authelia", "x" + secret, false},
		// bcrypt hashes the first 72 bytes only.
		{"72 bytes with bcrypt", "crypt", "long", long, true},
		{"72 bytes and a suffix with bcrypt, after the right secret", "crypt", "long", long + "XYZ", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := g.post("/oauth2/realms/root/realms/"+c.realm+"/token", c.client, c.secret, form)
			if c.ok {
				wantToken(t, a, "read")
			} else {
				wantE401(t, a, c.realm)
			}
		})
	}
}

// A hash that is weak, malformed or too expensive to check is refused at load, and the error
// does not repeat it.
func TestHashesRefusedAtLoad(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server")
	const salt, digest = "c2l4dGVlbiBieXRlcyE", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	for _, c := range []struct{ name, hash string }{
		{"plain text", "correct-horse-battery-staple"},
		{"MD5", "5f4dcc3b5aa765d61d8327deb882cf99"},
		{"MD5 crypt", "$1$saltsalt$2vnaRpHa6Jxjz5n83ok8Z0"},
		{"LDAP SHA", "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g="},
		{"SHA-512 crypt", "$6$saltsalt$qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2/jctKu9YterLp8wwnSq.qc.eoxqOmSuNp2xS0ktL3nh/"},
		{"bcrypt of cost 4", "$2a$04$iHpDtqw7fyGCzMYNaLXkXu1tFsmUXlmeJXJnVnkVPs1UHM5LiW6Zm"},
		{"Argon2i", "$argon2i$v=19$m=65536,t=3,p=1$" + salt + "$" + digest},
		{"Argon2id with little memory", "$argon2id$v=19$m=1024,t=2,p=1$" + salt + "$" + digest},
		{"Argon2id without a salt", "$argon2id$v=19$m=19456,t=2,p=1$$" + digest},
		{"Argon2id with 4 GiB", "$argon2id$v=19$m=4194304,t=2,p=1$" + salt + "$" + digest},
		{"Argon2id with 11 passes", "$argon2id$v=19$m=19456,t=11,p=1$" + salt + "$" + digest},
		{"Argon2id with 5 threads", "$argon2id$v=19$m=65536,t=2,p=5$" + salt + "$" + digest},
		{"bcrypt of cost 15", "$2a$15$iHpDtqw7fyGCzMYNaLXkXu1tFsmUXlmeJXJnVnkVPs1UHM5LiW6Zm"},
		{"bcrypt of cost 31", "$2a$31$iHpDtqw7fyGCzMYNaLXkXu1tFsmUXlmeJXJnVnkVPs1UHM5LiW6Zm"},
		{"PBKDF2 with Hydra's default number of rounds", "$pbkdf2-sha256$i=25000,l=32$" + salt + "$" + digest},
		{"PBKDF2 with ten million rounds", "$pbkdf2-sha512$10000000$" + salt + "$" + digest},
		{"an empty Argon2id digest", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$"},
		{"a bcrypt hash cut short", "$2a$10$iHpDtqw7fyGCzMYNaLXkXu1tFsmUXlmeJXJnVnkVPs1UHM5LiW6Z"},
		{"a bcrypt hash with characters outside its alphabet", "$2a$10$!!pDtqw7fyGCzMYNaLXkXu1tFsmUXlmeJXJnVnkVPs1UHM5LiW6Zm"},
		{"an empty SHA-256", "$sha256$"},
		{"half a SHA-256", "$sha256$ungWv48Bz+pBQUDeXa4iIw"},
		{"only a prefix", "$argon2id$"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := g.load("store memory\nclient c {\nsecret_hash \""+c.hash+"\"\nscopes read\n}\n", "oauth_server")
			if err == nil {
				t.Fatal("the hash was accepted")
			}
			if len(c.hash) > 20 && strings.Contains(err.Error(), c.hash[len(c.hash)-12:]) {
				t.Errorf("the error repeats the hash: %v", err)
			}
		})
	}
	// A refused configuration changes nothing.
	g.token("reader")
}

// A secret given by reference works. One that can't be resolved, or is empty, is refused at
// load, and so is a literal one, which the error does not repeat.
func TestSecretsByReference(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("from a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GATEWAY_TEST_SECRET", "from the environment")
	t.Setenv("GATEWAY_TEST_HASH", hashOf("hashed"))
	t.Setenv("GATEWAY_TEST_EMPTY", "")
	client := func(id, secret string) string {
		return "client " + id + " {\n" + secret + "\nscopes read\ndefault_scopes read\n}\n"
	}
	g := startGateway(t, "store memory\n"+client("env", "secret {env.GATEWAY_TEST_SECRET}")+client("file", "secret {file."+file+"}")+
		client("hash", "secret_hash {env.GATEWAY_TEST_HASH}"), "oauth_server")
	form := url.Values{"grant_type": {"client_credentials"}}
	for id, secret := range map[string]string{"env": "from the environment", "file": "from a file", "hash": "hashed"} {
		wantToken(t, g.post("/oauth2/token", id, secret, form), "read")
		wantE401(t, g.post("/oauth2/token", id, "", form), "root")
		wantE401(t, g.post("/oauth2/token", id, secret+"x", form), "root")
		wantE401(t, g.post("/oauth2/token", id, "{env.GATEWAY_TEST_SECRET}", form), "root")
	}
	for name, secret := range map[string]string{
		"a variable that is not set":  "secret {env.GATEWAY_TEST_UNSET}",
		"an empty variable":           "secret {env.GATEWAY_TEST_EMPTY}",
		"a file that is not there":    "secret {file." + file + ".missing}",
		"an empty file":               "secret {file." + empty + "}",
		"a hash that is not set":      "secret_hash {env.GATEWAY_TEST_UNSET}",
		"a literal secret":            "secret canary-literal",
		"a literal and a reference":   "secret canary-{env.GATEWAY_TEST_SECRET}",
		"a literal secret for a hash": "secret_hash canary-literal",
		"no secret":                   "auth client_secret_basic",
	} {
		t.Run(name, func(t *testing.T) {
			err := g.load("store memory\n"+client("c", secret), "oauth_server")
			if err == nil {
				t.Fatal("the configuration was accepted")
			}
			if strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "from the environment") {
				t.Errorf("the error repeats the secret: %v", err)
			}
		})
	}
}

// A file or variable whose content is unlikely to be the intended secret is refused at load.
// The error says what is wrong with it and repeats none of it.
func TestSecretsThatLookWrongAreRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config := func(line string) string {
		return "store memory\nclient c {\n" + line + "\nscopes read\ndefault_scopes read\n}\n"
	}
	write("canary-secret\r\n")
	g := startGateway(t, config("secret {file."+file+"}"), "oauth_server")
	form := url.Values{"grant_type": {"client_credentials"}}
	wantToken(t, g.post("/oauth2/token", "c", "canary-secret", form), "read")

	const generated = "cos_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	for _, c := range []struct{ text, want string }{
		{"canary-secret\n\n", "empty line"}, {"canary-secret\r\n\r\n", "empty line"}, {"\ncanary-secret\n", "empty line"}, {"\n\n", "empty line"},
		{"\ufeffcanary-secret\n", "byte order mark"},
		{"\xff\xfec\x00a\x00n\x00a\x00r\x00y\x00", "UTF-16"},
		{"canary-secret \n", "space"}, {" canary-secret", "space"}, {"\tcanary-secret", "space or a tab"}, {"canary-secret\u00a0\n", "space"},
		{"canary\nsecret\n", "more than one line"},
		{generated + "\nsecret_hash " + hashOf("canary") + "\n", "generate-secret"},
		{"secret_hash " + hashOf("canary") + "\n", "give the secret itself"},
		{strings.Repeat("canary", 200), "longer than"},
	} {
		write(c.text)
		lines := map[string]string{"a secret": config("secret {file." + file + "}"), "a hash": config("secret_hash {file." + file + "}")}
		lines["the password of a Redis"] = "store redis 127.0.0.1:1 {\npassword {file." + file + "}\n}\n" + testClients
		if variable := strings.TrimSuffix(strings.TrimSuffix(c.text, "\n"), "\r"); !strings.Contains(c.text, "\x00") {
			t.Setenv("GATEWAY_TEST_SECRET", variable)
			lines["a variable"] = config("secret {env.GATEWAY_TEST_SECRET}")
		}
		for what, line := range lines {
			err := g.load(line, "oauth_server")
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), generated) {
				t.Errorf("%s with %.20q: %v, want an error about %q", what, c.text, err, c.want)
			}
		}
		site := "oauth_server\noauth_protect {\nsource introspect https://127.0.0.1:1 {\nclient_id x\nclient_secret {file." + file + "}\n}\n}"
		if err := g.load("store memory\n"+testClients, site); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("the secret of a source with %.20q: %v, want an error about %q", c.text, err, c.want)
		}
	}
	write(hashOf("canary") + "\n")
	if err := g.load(config("secret {file."+file+"}"), "oauth_server"); err == nil || !strings.Contains(err.Error(), "refer to it with secret_hash") {
		t.Errorf("a hash in place of the secret: %v", err)
	}
	wantToken(t, g.post("/oauth2/token", "c", "canary-secret", form), "read") // a refused configuration changes nothing
}

// Both secrets work during the overlap. The old one stops at its until, although its success
// is remembered.
func TestRotation(t *testing.T) {
	config := func(until time.Time) string {
		return "store memory\nclient c {\nsecret_hash " + slowHash("old secret") + " until " + until.Format(time.RFC3339Nano) +
			"\nsecret_hash " + hashOf("new secret") + "\nscopes read\ndefault_scopes read\n}\n"
	}
	until := time.Now().Add(3 * time.Second)
	g := startGateway(t, config(until), "oauth_server")
	form := url.Values{"grant_type": {"client_credentials"}}
	fetch := func(secret string) answer { return g.post("/oauth2/token", "c", secret, form) }

	// Remembered from now on, unless the machine is so busy that the secret needs to live longer for that.
	a := fetch("old secret")
	for life := 6 * time.Second; !time.Now().Before(until); life *= 2 {
		until = time.Now().Add(life)
		if err := g.load(config(until), "oauth_server"); err != nil {
			t.Fatal(err)
		}
		a = fetch("old secret")
	}
	wantToken(t, a, "read")
	wantToken(t, fetch("new secret"), "read")
	for {
		begin := time.Now()
		a := fetch("old secret")
		end := time.Now()
		if begin.After(until) {
			wantE401(t, a, "root")
			break
		}
		if end.Before(until) {
			wantToken(t, a, "read")
		}
		time.Sleep(10 * time.Millisecond) // let others have the machine
	}
	wantToken(t, fetch("new secret"), "read")
}

// A remembered success does not outlive the configuration that had the secret.
func TestReloadForgetsSecrets(t *testing.T) {
	hash := func(secret string) string {
		return "store memory\nclient c {\nsecret_hash " + slowHash(secret) + "\nscopes read\ndefault_scopes read\n}\n"
	}
	g := startGateway(t, hash("first"), "oauth_server")
	form := url.Values{"grant_type": {"client_credentials"}}
	wantToken(t, g.post("/oauth2/token", "c", "first", form), "read")
	if err := g.load(hash("second"), "oauth_server"); err != nil {
		t.Fatal(err)
	}
	wantE401(t, g.post("/oauth2/token", "c", "first", form), "root")
	wantToken(t, g.post("/oauth2/token", "c", "second", form), "read")
}

// Whoever guesses at a slow hash is refused, or told to come back later. Meanwhile, clients
// whose secrets are quick to check, or remembered, don't notice, and one that has to wait for
// its slow hash is served, though it comes from the same address.
func TestGuessersDoNotShutOutOthers(t *testing.T) {
	slow := func(id string) string {
		return "client " + id + " {\nsecret_hash " + slowHash("secret of "+id) + "\nscopes read\ndefault_scopes read\n}\n"
	}
	g := startGateway(t, "store memory\n"+noFailureLimit+testClients+slow("known")+slow("late"), "oauth_server")
	form := url.Values{"grant_type": {"client_credentials"}}
	wantToken(t, g.post("/oauth2/token", "known", "secret of known", form), "read")

	var guessers sync.WaitGroup
	var refused atomic.Int64
	done := make(chan struct{})
	for i := range 60 {
		guessers.Go(func() {
			for n := 0; ; n++ {
				a := g.post("/oauth2/token", "known", fmt.Sprintf("guess-%d-%d", i, n), form)
				if a.StatusCode == 401 {
					refused.Add(1)
					wantE401(t, a, "root")
				} else {
					wantE(t, a, 503, "temporarily_unavailable")
				}
				select {
				case <-done:
					return
				case <-time.After(20 * time.Millisecond): // sooner than they are told to come back
				}
			}
		})
	}
	defer guessers.Wait()
	defer close(done)
	waitUntil(t, "a guess is refused", func() bool { return refused.Load() > 0 })
	// On a busy machine a hash may take longer than a request waits for it. Who has to stand behind the
	// guessers would never be served.
	late := g.post("/oauth2/token", "late", "secret of late", form)
	for tries := 1; tries < 5 && late.StatusCode == 503; tries++ {
		late = g.post("/oauth2/token", "late", "secret of late", form)
	}
	wantToken(t, late, "read")
	for range 20 {
		wantToken(t, g.fetch("reader"), "read")
		wantToken(t, g.post("/oauth2/token", "known", "secret of known", form), "read")
	}
}

// Clients that fetch their first tokens at the same time, and workers that share a secret, are
// all served, although their secrets have slow hashes. After a reload no hash is computed again,
// not even for a secret that comes from the environment.
func TestFirstTokensAtOnce(t *testing.T) {
	t.Setenv("GATEWAY_TEST_SECRET", "chosen by a person")
	config := "store memory\nclient referred {\nsecret {env.GATEWAY_TEST_SECRET}\nscopes read\ndefault_scopes read\n}\n"
	secrets := map[string]string{"referred": "chosen by a person"}
	for i := range 9 {
		id := fmt.Sprint("client", i)
		secrets[id] = "secret of " + id + rand.Text() // which no test before has had remembered
		config += "client " + id + " {\nsecret_hash " + slowHash(secrets[id]) + "\nscopes read\ndefault_scopes read\n}\n"
	}
	g := startGateway(t, config, "oauth_server")
	form := url.Values{"grant_type": {"client_credentials"}}
	all := func() {
		var workers sync.WaitGroup
		for id, secret := range secrets {
			for range 3 {
				workers.Go(func() {
					a := g.patiently(func() answer { return g.post("/oauth2/token", id, secret, form) })
					wantToken(t, a, "read")
				})
			}
		}
		workers.Wait()
	}
	before := caddyoauth.SlowHashes()
	all()
	if n := caddyoauth.SlowHashes() - before; n != int64(len(secrets)) {
		t.Errorf("three workers for each of ten clients cost %d slow hashes, want %d", n, len(secrets))
	}
	if err := g.load(config, "oauth_server"); err != nil {
		t.Fatal(err)
	}
	all()
	if n := caddyoauth.SlowHashes() - before; n != int64(len(secrets)) {
		t.Errorf("after a reload, %d slow hashes had been computed, want the same %d as before it", n, len(secrets))
	}
}

// Right and wrong secrets of two clients, checked at the same time, are never mixed up.
func TestConcurrentAuthenticationsAreNotMixedUp(t *testing.T) {
	client := func(id, secret string) string {
		return "client " + id + " {\nsecret_hash " + hashOf(secret) + "\nscopes " + id + "\ndefault_scopes " + id + "\n}\n"
	}
	g := startGateway(t, "store memory\n"+noFailureLimit+client("one", "secret of one")+client("two", "secret of two"), "oauth_server")
	form := url.Values{"grant_type": {"client_credentials"}}
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for range 25 {
				wantToken(t, g.post("/oauth2/token", "one", "secret of one", form), "one")
				wantE401(t, g.post("/oauth2/token", "two", "secret of one", form), "root")
				wantToken(t, g.post("/oauth2/token", "two", "secret of two", form), "two")
				wantE401(t, g.post("/oauth2/token", "one", "secret of two", form), "root")
			}
		})
	}
	callers.Wait()
}
