package oauth

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// Most parsers here are held to one property: what they accept, written again, is what they
// accepted. A parser that reads two things as one has been an attack more than once.

func FuzzForm(f *testing.F) {
	for _, seed := range []string{
		"", "&", "=", "a", "a=", "a=b", "=b", "a=b&a=b", "a=b&A=c", "a=%00", "a=%ff", "a=%zz", "a=b;c=d", "a+b=c+d",
		"grant_type=client_credentials&scope=read+write&client_id=a&client_secret=b%26c",
		strings.Repeat("a&", 70), "a=%F0%9F%8D%AA", "a=1&b=&c", "a%3Db=c", "a=b=c", "a=b&&c=d",
		"resource=a&resource=b&resource=a", "resource=&resource=a", "resource=&resource=", "resource[]=a",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		form, err := parseBody(body)
		if err != nil {
			if refusal := (*Error)(nil); !errors.As(err, &refusal) || refusal.Code != CodeInvalidRequest {
				t.Fatalf("%q is refused with %v", body, err)
			}
			if form != nil {
				t.Fatalf("%q is refused, and is %v", body, form)
			}
			return
		}
		if len(form) > maxParameters {
			t.Fatalf("%q has %d parameters", body, len(form))
		}
		for name, values := range form {
			wrong := func(value string) bool { return value == "" || !plainText(value) }
			if len(values) == 0 || len(values) > 1 && name != resourceParameter || !plainText(name) || slices.ContainsFunc(values, wrong) {
				t.Fatalf("%q has the parameter %q with the values %q", body, name, values)
			}
		}
		again, err := parseBody(form.Encode())
		if err != nil || !maps.EqualFunc(form, again, slices.Equal) {
			t.Fatalf("%q is %v, and written again %v, %v", body, form, again, err)
		}
	})
}

func FuzzBasic(f *testing.F) {
	for _, seed := range [][3]string{
		{"Basic YTpi", "a", "b"}, {"basic  YTpi", "", ""}, {"Basic YTpi=", "a:b", "c:d"}, {"Basic", "%", "+"}, {"Bearer YTpi", "é", "\x00"},
		{"Basic " + base64.StdEncoding.EncodeToString([]byte("%zz:a")), "a b", "a%20b"}, {"Basic YQ==", "\xff", ""},
		{"Basic YTpi\n", "\n", "\r\n"}, {"Basic YR==", "", ""}, {"Basic Og==", "", ""},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, header, id, secret string) {
		write := func(id, secret string) string {
			return "Basic " + base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(id)+":"+url.QueryEscape(secret)))
		}
		encoded := func(creds Credentials) string { return write(creds.ClientIDs[0], creds.Secrets[0]) }
		if creds, err := parseBasic(header); err != nil {
			if creds.Secrets != nil {
				t.Fatalf("%q is refused, and has the secrets %q", header, creds.Secrets)
			}
			if len(header) > 20 && strings.Contains(err.Error(), header[10:]) {
				t.Fatalf("the error repeats what was sent: %v", err)
			}
		} else {
			for _, readings := range [][]string{creds.ClientIDs, creds.Secrets} {
				if len(readings) < 1 || len(readings) > 2 || len(readings) == 2 && readings[0] == readings[1] || slices.ContainsFunc(readings, func(r string) bool { return !plainText(r) }) {
					t.Fatalf("%q has the readings %q", header, readings)
				}
			}
			if again, err := parseBasic(encoded(creds)); err != nil || again.ClientIDs[0] != creds.ClientIDs[0] || again.Secrets[0] != creds.Secrets[0] {
				t.Fatalf("%q is %q and %q, and written again %q and %q, %v", header, creds.ClientIDs, creds.Secrets, again.ClientIDs, again.Secrets, err)
			}
		}
		// Whatever text a client has for an ID and a secret arrives as it is.
		text := plainText(id) && plainText(secret)
		creds, err := parseBasic(write(id, secret))
		if text && (err != nil || creds.ClientIDs[0] != id || creds.Secrets[0] != secret) {
			t.Fatalf("%q and %q arrive form-encoded as %q and %q, %v", id, secret, creds.ClientIDs, creds.Secrets, err)
		}
		creds, err = parseBasic("Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+secret)))
		if text && !strings.Contains(id, ":") && (err != nil || !slices.Contains(creds.ClientIDs, id) || !slices.Contains(creds.Secrets, secret)) {
			t.Fatalf("%q and %q arrive raw as %q and %q, %v", id, secret, creds.ClientIDs, creds.Secrets, err)
		}
	})
}

func FuzzScope(f *testing.F) {
	for _, seed := range []string{"", " ", "read", "read write", "read  write", " read", "read ", "read read", "a\tb", "a\"b", "a\\b", "é", "a,b", "\x7f", "!~", strings.Repeat("a ", 200)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		scopes, err := ParseScope(s)
		if err != nil {
			if scopes != nil {
				t.Fatalf("%q is refused, and is %q", s, scopes)
			}
			return
		}
		if len(scopes) == 0 || len(scopes) > maxScopes || len(s) > maxScopeBytes {
			t.Fatalf("%d bytes are %d scopes", len(s), len(scopes))
		}
		for i, scope := range scopes {
			if !ValidScope(scope) || strings.ContainsAny(scope, " \"\\") || slices.Contains(scopes[:i], scope) {
				t.Fatalf("%q has the scope %q", s, scope)
			}
		}
		written := strings.Join(scopes, " ")
		if again, err := ParseScope(written); err != nil || !slices.Equal(again, scopes) {
			t.Fatalf("%q is %q, and written again %q, %v", s, scopes, again, err)
		}
		if written != s && strings.Count(written, " ") == strings.Count(s, " ") {
			t.Fatalf("%q has no duplicates and is %q", s, written)
		}
	})
}

// tokenServer is a realm that can mint and verify; its clock stands at 2020, and its
// tokens are the same in every process that takes part in the fuzzing.
func tokenServer(t testing.TB, realm string) *Engine {
	t.Helper()
	cache, err := introspect.NewCache(introspect.CacheConfig{MaxTokens: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cache.Close)
	s := New(Settings{
		Random: strings.NewReader("not so random, but this is a test of other things"),
		Realm:  realm, Cache: cache,
		Now: func() time.Time { return time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC) },
	})
	s.Share(Shared{Key: []byte("0123456789abcdef0123456789abcdef")})
	return s
}

func FuzzToken(f *testing.F) {
	s, other := tokenServer(f, "root"), tokenServer(f, "alpha")
	expiry := s.cfg.Now().Add(time.Hour)
	format := s.state.Load().agreed.opaque
	token, expires, err := format.mint(expiry)
	if err != nil {
		f.Fatal(err)
	}
	foreign, _, err := other.state.Load().agreed.opaque.mint(expiry)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{"", TokenPrefix, token, foreign, token + "=", token + "\n", " " + token, token[:len(token)-1], strings.ToUpper(token), token[len(TokenPrefix):]} {
		f.Add(seed, uint(10), byte(1))
	}
	for i := range uint(len(token)) {
		f.Add("", i, byte(1))
		f.Add("", i, byte(0x20))
	}
	verify := func(text string) (int64, bool) {
		token := introspect.NewToken(text)
		return format.verify(&token)
	}
	f.Fuzz(func(t *testing.T, text string, position uint, change byte) {
		// A string that happens to come up is one that was minted here.
		if got, ok := verify(text); ok != (text == token) {
			t.Fatalf("%q counts as a token: %v", text, ok)
		} else if ok && got != expires {
			t.Fatalf("the token expires at %d, want %d", got, expires)
		}
		if _, ok := verify(foreign); ok {
			t.Fatal("another realm's token counts")
		}
		// Nothing that differs in one byte counts.
		altered := []byte(token)
		altered[position%uint(len(token))] ^= change
		if _, ok := verify(string(altered)); ok != (change == 0) {
			t.Fatalf("a token with byte %d changed by %#x counts: %v", position%uint(len(token)), change, ok)
		}
	})
}

func FuzzSecretHash(f *testing.F) {
	const argon = "$argon2id$v=19$m=19456,t=2,p=1$GmhSbmKu6MsdY71bwGWBGw$Oe36vHuGNEvukTHYFyPwOiZF5q6MMG/L6taSzBcWCEw"
	// said counts what is said about seeds. What is said about more than one repeats none of them: it may
	// show what a hash looks like.
	said := make(map[string]int)
	for _, seed := range []string{
		"", "$", "hunter2", argon, "$sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0", "$sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa1",
		"$2a$12$" + strings.Repeat(".", 53), "$2b$10$" + strings.Repeat("a", 53), "$2y$14$" + strings.Repeat("Z", 53), "$2a$31$" + strings.Repeat(".", 53),
		"$2a$12$" + strings.Repeat("=", 53), "$2a$+9$" + strings.Repeat(".", 53), "$2x$12$" + strings.Repeat(".", 53),
		strings.Replace(argon, "m=19456", "m=019456", 1), strings.Replace(argon, "m=19456", "m=4294967296", 1), strings.Replace(argon, "t=2", "t=+2", 1),
		strings.Replace(argon, "p=1", "p=0", 1), strings.Replace(argon, "p=1", "p=256", 1), strings.Replace(argon, "p=1", "p=1,keyid=x", 1),
		strings.Replace(argon, "v=19", "v=16", 1), strings.Replace(argon, "$v=19", "", 1), "$pbkdf2-sha256$i=600000,l=32$GmhSbmKu6MsdY71bwGWBGw$Oe36vHuGNEvukTHYFyPwOiZF5q6MMG/L6taSzBcWCEw", "$pbkdf2-sha512$310000$GmhSbmKu6MsdY71bwGWB.w$Oe36vHuGNEvukTHYFyPwOiZF5q6MMG/L6taSzBcWCEw", "$pbkdf2-sha256$i=600000,l=0$AAAA$", argon + "$", argon + "=", argon + "\n", "$sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0\r", argon[:len(argon)-1] + "x",
		"$argon2id$v=19$m=", "$argon2id$v=19$m=<KiB>,t=<passes>", "$pbkdf2-sha256$i=", "$pbkdf2-sha256$<rounds>$<salt>$<digest>", "$sha256$ hash has 43", " $2b$, $2a$ and $2y$",
	} {
		f.Add(seed, "abc")
		if _, err := HashedSecret(seed); err != nil {
			said[err.Error()]++
		}
	}
	f.Fuzz(func(t *testing.T, hash, secret string) {
		if s, err := HashedSecret(hash); err != nil {
			if s != nil {
				t.Fatalf("%q is refused, and is a secret", hash)
			}
			// Somebody may have put the secret itself where the hash belongs.
			if len(hash) > 16 && strings.Contains(err.Error(), hash[1:]) && said[err.Error()] < 2 {
				t.Fatalf("the error repeats what was configured: %v", err)
			}
		} else {
			written := ""
			switch c := s.cost; s.kind {
			case kindSHA256:
				written = "$sha256$" + base64.RawStdEncoding.EncodeToString(s.bytes)
			case kindArgon2id:
				b64 := base64.RawStdEncoding.EncodeToString
				written = fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", c.memory, c.time, c.threads, b64(s.salt), b64(s.bytes))
				if c.memory > 256*1024 || c.time < 1 || c.time > 10 || c.threads < 1 || c.threads > 4 || len(s.bytes) > 64 || len(s.salt) > 64 {
					t.Fatalf("%q would burn the machine", hash)
				}
			case kindBcrypt:
				written = string(s.bytes)
				if c.time < 10 || c.time > 14 || strings.Trim(hash[7:], bcryptAlphabet) != "" {
					t.Fatalf("%q is no hash that bcrypt could check", hash)
				}
			case kindPBKDF2SHA256, kindPBKDF2SHA512:
				name, least, most := "sha256", uint32(600_000), uint32(2_000_000)
				if s.kind == kindPBKDF2SHA512 {
					name, least, most = "sha512", 210_000, 1_000_000
				}
				b64 := base64.RawStdEncoding.EncodeToString
				written = fmt.Sprintf("$pbkdf2-%s$i=%d,l=%d$%s$%s", name, c.time, c.length, b64(s.salt), b64(s.bytes))
				if written != hash {
					plus := strings.NewReplacer("+", ".")
					written = fmt.Sprintf("$pbkdf2-%s$%d$%s$%s", name, c.time, plus.Replace(b64(s.salt)), plus.Replace(b64(s.bytes)))
				}
				if c.time < least || c.time > most || len(s.bytes) > 64 || len(s.salt) > 64 {
					t.Fatalf("%q is weak, or would burn the machine", hash)
				}
			}
			if written != hash {
				t.Fatalf("%q is read as %q", hash, written)
			}
			if s.slow() == (s.cost == slowCost{}) || s.slow() && s.quick(secret) {
				t.Fatalf("%q is quick to check", hash)
			}
			if shown := fmt.Sprintf("%v %+v %#v %s", s, s, s, s); strings.Contains(shown, hash) || strings.ReplaceAll(shown, "REDACTED", "") != "   " {
				t.Fatalf("the secret prints as %s", shown)
			}
		}
		// A plain hash lets in the secret it was made of, and no other.
		sum := sha256.Sum256([]byte(secret))
		s, err := HashedSecret("$sha256$" + base64.RawStdEncoding.EncodeToString(sum[:]))
		if err != nil || !s.quick(secret) || s.quick(secret+"x") || s.quick(hash) != (hash == secret) {
			t.Fatalf("the hash of %q: %v", secret, err)
		}
	})
}
