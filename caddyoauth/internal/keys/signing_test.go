package keys

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// made holds a key of each algorithm, and another one of ES256 and EdDSA. Making one of RSA is slow.
var made = sync.OnceValue(func() map[string]*SigningKey {
	keys := make(map[string]*SigningKey)
	for _, algorithm := range []string{ES256, EdDSA, RS256} {
		k, err := NewSigningKey(algorithm)
		if err != nil {
			panic(err)
		}
		keys[algorithm] = k
	}
	ps, err := newSigningKey(keys[RS256].private, PS256)
	if err != nil {
		panic(err)
	}
	keys[PS256] = ps
	return keys
})

// publicHalf returns k as those have it who only verify.
func publicHalf(t testing.TB, k *SigningKey) *SigningKey {
	t.Helper()
	public, err := newSigningKey(k.public, k.Algorithm())
	if err != nil {
		t.Fatal(err)
	}
	return public
}

func signed(t testing.TB, j *JWTs, payload string) string {
	t.Helper()
	token, err := j.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func encode(data string) string { return base64.RawURLEncoding.EncodeToString([]byte(data)) }

func TestAKeyVerifiesWhatItSigned(t *testing.T) {
	for algorithm, k := range made() {
		j := k.For("at+jwt")
		public := publicHalf(t, k)
		if !k.Signs() || public.Signs() || k.Algorithm() != algorithm || public.ID() != k.ID() {
			t.Errorf("%s: the halves are not what they should be", algorithm)
		}
		if want := encode(`{"alg":"` + algorithm + `","kid":"` + k.ID() + `","typ":"at+jwt"}`); j.Header() != want || public.For("at+jwt").Header() != want {
			t.Errorf("%s: the header is %s", algorithm, j.Header())
		}
		for _, payload := range []string{`{"iss":"https://auth.example.com"}`, "{}", "", "\x00\xff", "?????>>>>>"} {
			token := signed(t, j, payload)
			if !strings.HasPrefix(token, j.Header()+".") {
				t.Errorf("%s: %s does not begin with the header", algorithm, token)
			}
			for _, verifier := range []*JWTs{j, public.For("at+jwt")} {
				if got, ok := verifier.Verify(token); !ok || string(got) != payload {
					t.Errorf("%s: %q, %t; want %q", algorithm, got, ok, payload)
				}
			}
		}
		if _, err := public.For("at+jwt").Sign(nil); err == nil {
			t.Errorf("%s: a public key signs", algorithm)
		}
	}
}

// An ES256 signature has a twin that is good as well. We never make the one that we refuse.
func TestOfTwoSignaturesOneIsMade(t *testing.T) {
	j := made()[ES256].For("at+jwt")
	for range 64 {
		token := signed(t, j, "{}")
		if _, ok := j.Verify(token); !ok {
			t.Fatalf("%s is refused by who made it", token)
		}
	}
}

// The library alone, as others use it, accepts what we sign.
func TestOthersAcceptWhatWeSign(t *testing.T) {
	var all []*SigningKey
	for _, algorithm := range []string{ES256, EdDSA, RS256} { // PS256 is the same key
		all = append(all, made()[algorithm])
	}
	text, err := JWKSet(all...)
	if err != nil {
		t.Fatal(err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(text, &set); err != nil {
		t.Fatal(err)
	}
	for _, k := range all {
		for range 8 {
			jws, err := jose.ParseSigned(signed(t, k.For("at+jwt"), `{"a":1}`), []jose.SignatureAlgorithm{k.algorithm})
			if err != nil {
				t.Fatal(err)
			}
			if payload, err := jws.Verify(set); err != nil || string(payload) != `{"a":1}` {
				t.Errorf("%s: %q, %v", k.Algorithm(), payload, err)
			}
		}
	}
}

func TestJWKSetShowsPublicKeysOnly(t *testing.T) {
	if text, err := JWKSet(); err != nil || string(text) != `{"keys":[]}` {
		t.Errorf("of no keys: %s, %v", text, err)
	}
	members := map[string][]string{
		ES256: {"alg", "crv", "kid", "kty", "use", "x", "y"},
		EdDSA: {"alg", "crv", "kid", "kty", "use", "x"},
		RS256: {"alg", "e", "kid", "kty", "n", "use"},
		PS256: {"alg", "e", "kid", "kty", "n", "use"},
	}
	for algorithm, k := range made() {
		text, err := JWKSet(k)
		if err != nil {
			t.Fatal(err)
		}
		var set struct{ Keys []map[string]string }
		if err := json.Unmarshal(text, &set); err != nil {
			t.Fatal(err)
		}
		got := set.Keys[0]
		var names []string
		for name := range got {
			names = append(names, name)
		}
		slices.Sort(names)
		if !slices.Equal(names, members[algorithm]) || got["alg"] != algorithm || got["kid"] != k.ID() || got["use"] != "sig" {
			t.Errorf("%s: %s", algorithm, text)
		}
	}
}

// The example of RFC 7638 section 3.1.
func TestTheIDIsTheThumbprint(t *testing.T) {
	keys, err := ReadKeyFile([]byte(`{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}`), "")
	if err != nil || keys[0].ID() != "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs" {
		t.Errorf("%v, %v", keys, err)
	}
}

// withSpareBits returns text, which is base64url, with its spare bits set: another text for the same
// bytes. It returns text itself if it has no spare bits.
func withSpareBits(text string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	if len(text)%4 == 0 {
		return text
	}
	last := strings.IndexByte(alphabet, text[len(text)-1])
	return text[:len(text)-1] + string(alphabet[last|1])
}

// negateS returns an ES256 signature's twin.
func negateS(signature []byte) []byte {
	twin := bytes.Clone(signature)
	s := new(big.Int).SetBytes(twin[32:])
	s.Sub(p256Order, s).FillBytes(twin[32:])
	return twin
}

// rawSign signs any text with the key, as the library does, or as somebody does who has the private
// key and breaks the rules.
func rawSign(t testing.TB, k *SigningKey, algorithm, input string) []byte {
	t.Helper()
	digest := sha256.Sum256([]byte(input))
	var signature []byte
	var err error
	switch private := k.private.(type) {
	case *ecdsa.PrivateKey:
		var r, s *big.Int
		r, s, err = ecdsa.Sign(rand.Reader, private, digest[:])
		signature = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
		makeLow(signature)
	case ed25519.PrivateKey:
		signature = ed25519.Sign(private, []byte(input))
	case *rsa.PrivateKey:
		if algorithm == PS256 {
			signature, err = rsa.SignPSS(rand.Reader, private, crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		} else {
			signature, err = rsa.SignPKCS1v15(nil, private, crypto.SHA256, digest[:])
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

// A token counts only if it is, letter for letter, what the key has signed. Everybody else's token is
// refused, also if its signature is good under the rules of JOSE.
func TestForgeriesAreRefused(t *testing.T) {
	for algorithm, k := range made() {
		j := k.For("at+jwt")
		claims := []string{`{"sub":"a"}`, `{"sub":"ab"}`, `{"sub":"abc"}`} // with 2, 4 and no spare bits
		for _, claim := range claims {
			token := signed(t, j, claim)
			parts := strings.Split(token, ".")
			header, payload := parts[0], parts[1]
			signature, err := base64.RawURLEncoding.DecodeString(parts[2])
			if err != nil {
				t.Fatal(err)
			}
			join := func(parts ...string) string { return strings.Join(parts, ".") }
			// good signs another header, or another text of the payload, with the key itself.
			good := func(header, payload string) string {
				return join(header, payload, encode(string(rawSign(t, k, algorithm, header+"."+payload))))
			}
			if _, ok := j.Verify(good(header, payload)); !ok {
				t.Fatalf("%s: the test's own signature is refused", algorithm)
			}
			headers := map[string]string{
				"alg none":         `{"alg":"none","kid":"` + k.ID() + `","typ":"at+jwt"}`,
				"alg HS256":        `{"alg":"HS256","kid":"` + k.ID() + `","typ":"at+jwt"}`,
				"alg in lower":     `{"alg":"` + strings.ToLower(algorithm) + `","kid":"` + k.ID() + `","typ":"at+jwt"}`,
				"alg twice":        `{"alg":"none","alg":"` + algorithm + `","kid":"` + k.ID() + `","typ":"at+jwt"}`,
				"no kid":           `{"alg":"` + algorithm + `","typ":"at+jwt"}`,
				"no typ":           `{"alg":"` + algorithm + `","kid":"` + k.ID() + `"}`,
				"kid of a file":    `{"alg":"` + algorithm + `","kid":"../../x","typ":"at+jwt"}`,
				"jwk":              `{"alg":"` + algorithm + `","jwk":{},"kid":"` + k.ID() + `","typ":"at+jwt"}`,
				"jku":              `{"alg":"` + algorithm + `","jku":"https://evil.example","kid":"` + k.ID() + `","typ":"at+jwt"}`,
				"x5u":              `{"alg":"` + algorithm + `","kid":"` + k.ID() + `","typ":"at+jwt","x5u":"https://evil.example"}`,
				"x5c":              `{"alg":"` + algorithm + `","kid":"` + k.ID() + `","typ":"at+jwt","x5c":["AA=="]}`,
				"crit":             `{"alg":"` + algorithm + `","crit":["x"],"kid":"` + k.ID() + `","typ":"at+jwt","x":1}`,
				"zip":              `{"alg":"` + algorithm + `","kid":"` + k.ID() + `","typ":"at+jwt","zip":"DEF"}`,
				"b64":              `{"alg":"` + algorithm + `","b64":false,"crit":["b64"],"kid":"` + k.ID() + `","typ":"at+jwt"}`,
				"another order":    `{"typ":"at+jwt","alg":"` + algorithm + `","kid":"` + k.ID() + `"}`,
				"a space":          `{"alg":"` + algorithm + `", "kid":"` + k.ID() + `","typ":"at+jwt"}`,
				"another typ":      `{"alg":"` + algorithm + `","kid":"` + k.ID() + `","typ":"JWT"}`,
				"typ in full":      `{"alg":"` + algorithm + `","kid":"` + k.ID() + `","typ":"application/at+jwt"}`,
				"typ in upper":     `{"alg":"` + algorithm + `","kid":"` + k.ID() + `","typ":"AT+JWT"}`,
				"no JSON":          `x`,
				"nothing":          ``,
				"text behind JSON": `{"alg":"` + algorithm + `","kid":"` + k.ID() + `","typ":"at+jwt"} `,
			}
			forged := map[string]string{
				"without signature":             join(header, payload, ""),
				"of two parts":                  join(header, payload),
				"of one part":                   header,
				"with a part more":              join(header, payload, parts[2], ""),
				"with two parts more":           join(header, payload, parts[2], parts[2], parts[2]),
				"with a dot before":             "." + token,
				"a signature of zeros":          join(header, payload, encode(string(make([]byte, len(signature))))),
				"a longer signature":            join(header, payload, encode(string(signature)+"\x00")),
				"a longer signature, in front":  join(header, payload, encode("\x00"+string(signature))),
				"a shorter signature":           join(header, payload, encode(string(signature[:len(signature)-1]))),
				"spare bits in the signature":   join(header, payload, withSpareBits(parts[2])),
				"spare bits in the payload":     join(header, withSpareBits(payload), parts[2]),
				"spare bits in the header":      join(withSpareBits(header), payload, parts[2]),
				"padding":                       token + "=",
				"padding of the payload":        join(header, payload+"=", parts[2]),
				"padding of the header":         join(header+"=", payload, parts[2]),
				"a line break behind":           token + "\n",
				"a line break in the signature": join(header, payload, parts[2][:4]+"\n"+parts[2][4:]),
				"a line break for a letter":     join(header, payload, parts[2][:len(parts[2])-1]+"\n"),
				"a line break in the payload":   join(header, payload[:4]+"\r\n"+payload[4:], parts[2]),
				"signed breaks in the payload":  good(header, payload[:4]+"\n"+payload[4:]),
				"a line break in the header":    join(header[:4]+"\n"+header[4:], payload, parts[2]),
				"a space before":                " " + token,
				"a space behind":                token + " ",
				"another alphabet":              join(header, payload, "+/"+parts[2][2:]),
				"another payload":               join(header, encode(`{"sub":"root"}`), parts[2]),
				"no payload":                    join(header, "", parts[2]),
				"JSON form":                     `{"payload":"` + payload + `","protected":"` + header + `","signature":"` + parts[2] + `"}`,
			}
			if other := withSpareBits(payload); other != payload {
				forged["signed spare bits in the payload"] = good(header, other)
			}
			for what, text := range headers {
				forged["a header with "+what] = good(encode(text), payload)
				forged["an empty signature and a header with "+what] = join(encode(text), payload, "")
			}
			public, err := x509.MarshalPKIXPublicKey(k.public)
			if err != nil {
				t.Fatal(err)
			}
			mac := hmac.New(sha256.New, public)
			mac.Write([]byte(encode(headers["alg HS256"]) + "." + payload))
			forged["HS256 with the public key"] = join(encode(headers["alg HS256"]), payload, encode(string(mac.Sum(nil))))
			forged["of another type"] = signed(t, k.For("token-introspection+jwt"), claim)
			for other, ok := range made() {
				if other != algorithm {
					forged["of the key for "+other] = signed(t, ok.For("at+jwt"), claim)
					forged["signed by the key for "+other] = join(header, payload, encode(string(rawSign(t, ok, other, header+"."+payload))))
				}
			}
			switch algorithm {
			case ES256:
				forged["the signature's twin"] = join(header, payload, encode(string(negateS(signature))))
				order := p256Order.FillBytes(make([]byte, 32))
				forged["r = 0"] = join(header, payload, encode(string(make([]byte, 32))+string(signature[32:])))
				forged["s = 0"] = join(header, payload, encode(string(signature[:32])+string(make([]byte, 32))))
				forged["r = n"] = join(header, payload, encode(string(order)+string(signature[32:])))
				forged["s = n"] = join(header, payload, encode(string(signature[:32])+string(order)))
				asn, err := k.private.Sign(rand.Reader, make([]byte, 32), crypto.SHA256)
				if err != nil {
					t.Fatal(err)
				}
				forged["in ASN.1"] = join(header, payload, encode(string(asn)))
			case EdDSA:
				forged["s + order"] = join(header, payload, encode(string(addEdOrder(signature))))
			case RS256, PS256:
				n := k.public.(*rsa.PublicKey).N
				s := new(big.Int).SetBytes(signature)
				if s.Add(s, n); s.BitLen() <= 8*len(signature) {
					forged["s + n"] = join(header, payload, encode(string(s.FillBytes(make([]byte, len(signature))))))
				}
			}
			for name, token := range forged {
				if token == strings.Join(parts, ".") {
					continue // nothing was to be changed here
				}
				if got, ok := j.Verify(token); ok {
					t.Errorf("%s, %s: accepted as %q: %s", algorithm, name, got, token)
				} else if got != nil {
					t.Errorf("%s, %s: refused, but says %q", algorithm, name, got)
				}
			}
			// Every single letter counts.
			if claim != claims[0] {
				continue
			}
			for i := range token {
				for _, c := range []byte("AZ.=\n") {
					if other := token[:i] + string(c) + token[i+1:]; other != token {
						if _, ok := j.Verify(other); ok {
							t.Fatalf("%s: accepted with letter %d changed to %q: %s", algorithm, i, c, token)
						}
					}
				}
			}
		}
	}
}

// addEdOrder returns an Ed25519 signature whose number s is not the least that fits.
func addEdOrder(signature []byte) []byte {
	order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	changed := bytes.Clone(signature)
	slices.Reverse(changed[32:])
	s := new(big.Int).SetBytes(changed[32:])
	s.Add(s, order).FillBytes(changed[32:])
	slices.Reverse(changed[32:])
	return changed
}

// What junk costs does not depend on how much of it there is.
func TestJunkIsCheap(t *testing.T) {
	j := made()[ES256].For("at+jwt")
	const size = 1 << 20
	dots, letters := strings.Repeat(".", size), strings.Repeat("A", size)
	for name, token := range map[string]string{
		"dots":                             dots,
		"the header, then dots":            j.Header() + dots,
		"letters":                          letters,
		"the header, then letters":         j.Header() + "." + letters,
		"three parts of the right lengths": j.Header() + "." + letters + "." + letters[:86],
		"nothing":                          "",
		"the header":                       j.Header(),
		"the header and its dot":           j.Header() + ".",
	} {
		begun := time.Now()
		var ok bool
		if allocations := testing.AllocsPerRun(10, func() { _, ok = j.Verify(token) }); allocations > 0 || ok {
			t.Errorf("%s: accepted %t, %v allocations", name, ok, allocations)
		}
		if took := time.Since(begun); took > 20*time.Second { // it is microseconds, but a machine may stall
			t.Errorf("%s: took %v", name, took)
		}
	}
}

func TestAJWTHasABound(t *testing.T) {
	j := made()[EdDSA].For("at+jwt")
	longest := (maxJWT - len(j.Header()) - 2 - 86) / 4 * 3
	if _, ok := j.Verify(signed(t, j, strings.Repeat("x", longest))); !ok {
		t.Error("the longest that may be signed is refused")
	}
	if _, err := j.Sign(make([]byte, longest+3)); err == nil {
		t.Error("what is too long to be verified is signed")
	}
}

func TestNewSigningKeyRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, algorithm := range []string{"", "none", "HS256", "ES384", "es256"} {
		if _, err := NewSigningKey(algorithm); err == nil || !strings.Contains(err.Error(), "ES256, EdDSA, RS256, PS256") {
			t.Errorf("%q: %v", algorithm, err)
		}
	}
	if a, _ := NewSigningKey(ES256); a.ID() == made()[ES256].ID() {
		t.Error("two keys are the same")
	}
}

// Whatever is accepted is, letter for letter, what the key itself makes of the same claims.
func FuzzVerify(f *testing.F) {
	// The seeds are good in each process that fuzzes, so it has to be the same key.
	key, err := newSigningKey(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), EdDSA)
	if err != nil {
		f.Fatal(err)
	}
	ed := key.For("at+jwt")
	es := made()[ES256].For("at+jwt")
	token := signed(f, ed, `{"sub":"a"}`)
	for _, seed := range []string{"", ".", "..", token, token + ".", token + "=", ed.Header() + "..", strings.Repeat(".", 99)} {
		f.Add(seed)
		f.Add(strings.TrimPrefix(seed, ed.Header()))
	}
	f.Fuzz(func(t *testing.T, text string) {
		// A fuzzer does not find a header by itself.
		for _, text := range []string{text, ed.Header() + text, ed.Header() + "." + text} {
			if payload, ok := ed.Verify(text); ok && signed(t, ed, string(payload)) != text {
				t.Errorf("%q is accepted", text)
			}
		}
		if _, ok := es.Verify(es.Header() + text); ok {
			t.Errorf("%q is accepted", text)
		}
		again, err := es.Sign([]byte(text))
		if tooLong := len(es.Header())+len(encode(text))+2+86 > maxJWT; (err != nil) != tooLong {
			t.Errorf("signing %d bytes: %v", len(text), err)
		}
		if payload, ok := es.Verify(again); err == nil && (!ok || string(payload) != text) {
			t.Errorf("%q is refused", again)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	payload := []byte(`{"aud":"https://api.example.com","client_id":"batch","epoch":"AAAAAAAAAAAAAAAAAAAAAA","exp":1764400000,"generation":1,"iat":1764396400,"iss":"https://auth.example.com/oauth2","jti":"AAAAAAAAAAAAAAAAAAAAAA","scope":"read write","sub":"batch"}`)
	for _, algorithm := range Algorithms {
		k := made()[algorithm]
		j := k.For("at+jwt")
		token := signed(b, j, string(payload))
		input := []byte(token[:strings.LastIndexByte(token, '.')])
		b.Run(algorithm+"/bare", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				digest := sha256.Sum256(input)
				var err error
				switch private := k.private.(type) {
				case *ecdsa.PrivateKey:
					_, err = ecdsa.SignASN1(rand.Reader, private, digest[:])
				case ed25519.PrivateKey:
					ed25519.Sign(private, input)
				case *rsa.PrivateKey:
					_, err = rsa.SignPKCS1v15(nil, private, crypto.SHA256, digest[:])
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(algorithm+"/JWT", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := j.Sign(payload); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	payload := strings.Repeat("x", 256)
	for _, algorithm := range Algorithms {
		k := made()[algorithm]
		j := k.For("at+jwt")
		token := signed(b, j, payload)
		dot := strings.LastIndexByte(token, '.')
		input := []byte(token[:dot])
		signature, err := base64.RawURLEncoding.DecodeString(token[dot+1:])
		if err != nil {
			b.Fatal(err)
		}
		b.Run(algorithm+"/bare", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				digest := sha256.Sum256(input)
				switch public := k.public.(type) {
				case *ecdsa.PublicKey:
					ecdsa.Verify(public, digest[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
				case ed25519.PublicKey:
					ed25519.Verify(public, input, signature)
				case *rsa.PublicKey:
					rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature)
				}
			}
		})
		b.Run(algorithm+"/JWT", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := j.Verify(token); !ok {
					b.Fatal("refused")
				}
			}
		})
	}
	dots := strings.Repeat(".", 1<<20)
	b.Run("a megabyte of dots", func(b *testing.B) {
		j := made()[ES256].For("at+jwt")
		b.ReportAllocs()
		for b.Loop() {
			j.Verify(dots)
		}
	})
}
