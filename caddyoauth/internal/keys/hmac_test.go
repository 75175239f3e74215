package keys

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

var hmacSecret = strings.Repeat("0123456789abcdef", 2)

func hmacKey(t testing.TB, secret, realm, typ string) *HMACKey {
	t.Helper()
	k, err := NewHMACKey(secret, realm, typ)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Whoever has the secret can verify what it signed, by any JOSE library, and nobody else can. Each
// secret, realm and type has a header of its own, and it is always the same.
func TestHMACKey(t *testing.T) {
	k := hmacKey(t, hmacSecret, "root", "JWT")
	token, err := k.Sign([]byte(`{"sub":"a"}`))
	if err != nil {
		t.Fatal(err)
	}
	if payload, ok := k.Verify(token); !ok || string(payload) != `{"sub":"a"}` {
		t.Errorf("it reads %q, %t", payload, ok)
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.HS256})
	if err != nil {
		t.Fatal(err)
	}
	if payload, err := jws.Verify([]byte(hmacSecret)); err != nil || string(payload) != `{"sub":"a"}` {
		t.Errorf("somebody with the secret reads %q, %v", payload, err)
	}
	header, err := base64.RawURLEncoding.DecodeString(k.Header())
	if err != nil || !strings.HasPrefix(string(header), `{"alg":"HS256","key":"`) || !strings.HasSuffix(string(header), `","typ":"JWT"}`) || len(header) != 47 {
		t.Errorf("the header is %s, %v", header, err)
	}
	if again := hmacKey(t, hmacSecret, "root", "JWT"); again.Header() != k.Header() {
		t.Error("the same secret has another header")
	}
	for what, other := range map[string]*HMACKey{
		"another secret": hmacKey(t, hmacSecret+"x", "root", "JWT"),
		"another realm":  hmacKey(t, hmacSecret, "alpha", "JWT"),
		"another type":   hmacKey(t, hmacSecret, "root", "at+jwt"),
	} {
		if _, ok := other.Verify(token); ok || other.Header() == k.Header() {
			t.Errorf("%s: it verifies %t, with the header %s", what, ok, other.Header())
		}
	}
}

func TestHMACSecretHasALeastLength(t *testing.T) {
	for _, secret := range []string{"", "short-one", hmacSecret[1:]} {
		if k, err := NewHMACKey(secret, "root", "JWT"); err == nil || secret != "" && strings.Contains(err.Error(), secret) {
			t.Errorf("%d bytes: %v, %v", len(secret), k, err)
		}
	}
}

// A token counts only if it is, letter for letter, what the secret has signed.
func TestForgeriesOfHMACAreRefused(t *testing.T) {
	k := hmacKey(t, hmacSecret, "root", "JWT")
	for _, claims := range []string{`{"sub":"a"}`, `{"sub":"ab"}`, `{"sub":"abc"}`} { // with 2, 4 and no spare bits
		token, err := k.Sign([]byte(claims))
		if err != nil {
			t.Fatal(err)
		}
		for i := range token {
			for _, c := range []byte("AZ.=\n") {
				if other := token[:i] + string(c) + token[i+1:]; other != token {
					if _, ok := k.Verify(other); ok {
						t.Fatalf("accepted with letter %d changed to %q: %s", i, c, token)
					}
				}
			}
		}
		parts := strings.Split(token, ".")
		for what, text := range map[string]string{
			"spare bits in the payload":   parts[0] + "." + withSpareBits(parts[1]) + "." + parts[2],
			"spare bits in the signature": parts[0] + "." + parts[1] + "." + withSpareBits(parts[2]),
			"padding":                     token + "=",
			"a line break behind":         token + "\n",
			"no signature":                parts[0] + "." + parts[1] + ".",
			"alg none":                    encode(`{"alg":"none","typ":"JWT"}`) + "." + parts[1] + ".",
			"no header":                   "." + parts[1] + "." + parts[2],
			"too long":                    parts[0] + "." + strings.Repeat("A", maxJWT) + "." + parts[2],
		} {
			if _, ok := k.Verify(text); ok && text != token {
				t.Errorf("%s: accepted", what)
			}
		}
	}
	if _, err := k.Sign(make([]byte, maxJWT)); err == nil {
		t.Error("what is too long to be verified is signed")
	}
}
