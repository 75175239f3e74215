package introspect

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// A signature is good exactly if it is for go-jose, whatever its length and its bits.
func TestMadeAsForGoJOSE(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	curve := func(c elliptic.Curve) *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	anyType := func(any, bool) (access, ok bool) { return false, true }
	for alg, private := range map[string]crypto.Signer{
		"RS256": rsaKey, "RS384": rsaKey, "RS512": rsaKey, "PS256": rsaKey, "PS384": rsaKey, "PS512": rsaKey,
		"ES256": curve(elliptic.P256()), "ES384": curve(elliptic.P384()), "ES512": curve(elliptic.P521()), "EdDSA": edKey,
	} {
		key := publicKey{public: private.Public()}
		for _, header := range []map[jose.HeaderKey]any{
			{"typ": "at+jwt"}, {"typ": "at+jwt", "x": []int{1}, "y": map[string]any{"z": nil}}, {"x5c": []string{}}, {"x5c": []string{"AA=="}}, {"jwk": "none"}, {"nonce": 7}, {"x": 1},
		} {
			options := new(jose.SignerOptions)
			for name, value := range header {
				options.WithHeader(name, value)
			}
			signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(alg), Key: private}, options)
			if err != nil {
				t.Fatal(err)
			}
			jws, err := signer.Sign([]byte(`{"sub":"a"}`))
			if err != nil {
				t.Fatal(err)
			}
			text, err := jws.CompactSerialize()
			if err != nil {
				t.Fatal(err)
			}
			signed, signature := text[:strings.LastIndexByte(text, '.')+1], jws.Signatures[0].Signature
			variants := [][]byte{signature, {}, signature[1:], signature[:len(signature)-1], append([]byte{0}, signature...), append(slices.Clone(signature), 0), make([]byte, len(signature)), slices.Repeat([]byte{0xff}, len(signature))}
			for _, at := range []int{0, len(signature)/2 - 1, len(signature) / 2, len(signature) - 1} {
				spoilt := slices.Clone(signature)
				spoilt[at] ^= 1
				variants = append(variants, spoilt)
			}
			texts := []string{text + ".", strings.Replace(text, ".", "..", 1), signed[:len(signed)-1], text[1:], "." + text, signed, spoiltAt(text, len(signed)-3), spoiltAt(text, 5)}
			for _, variant := range variants {
				texts = append(texts, signed+base64.RawURLEncoding.EncodeToString(variant))
			}
			goods := 0
			for _, text := range texts {
				token, _, cause := readHeader(text, asymmetric, anyType)
				good := cause == "" && key.fits(token.alg) && key.made(token)
				parsed, err := jose.ParseSignedCompact(text, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(alg)})
				want := false
				if err == nil {
					var payload []byte
					payload, err = parsed.Verify(key.public)
					if want = err == nil; want && good && string(payload) != string(token.payload) {
						t.Errorf("%s: the payload is %q, want %q", alg, token.payload, payload)
					}
				}
				if good != want {
					t.Errorf("%s: %s is good: %t (%s), for go-jose: %t (%v)", alg, text, good, cause, want, err)
				}
				if good {
					goods++
				}
			}
			if _, plain := header["typ"]; plain && goods == 0 {
				t.Errorf("%s: nothing is good", alg)
			}
		}
	}
}

// spoiltAt changes a bit of a character of base64, where it counts.
func spoiltAt(text string, at int) string {
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return text[:at] + string(digits[strings.IndexByte(digits, text[at])^32]) + text[at+1:]
}
