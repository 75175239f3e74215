package caddyoauth_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// Forged tokens. Whoever makes them here even has the realm's own key, as another service would that
// shares a key file with it, and all tokens that the gateway has issued.

// forger makes JWTs out of any texts.
type forger struct {
	t         testing.TB
	algorithm string
	key       crypto.Signer
}

func newForger(t testing.TB, algorithm string) *forger {
	t.Helper()
	f := &forger{t: t, algorithm: algorithm}
	var err error
	switch algorithm {
	case "ES256":
		f.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "EdDSA":
		_, f.key, err = ed25519.GenerateKey(rand.Reader)
	default:
		f.key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// file writes the key into a new file.
func (f *forger) file() (path string) {
	f.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(f.key)
	path = filepath.Join(f.t.TempDir(), "key.pem")
	if err == nil {
		err = os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return path
}

// signature signs what comes before the last dot of a JWT.
func (f *forger) signature(algorithm, text string) []byte {
	f.t.Helper()
	digest := sha256.Sum256([]byte(text))
	var signature []byte
	var err error
	switch algorithm {
	case "EdDSA":
		signature, err = f.key.Sign(nil, []byte(text), crypto.Hash(0))
	case "ES256":
		var r, s *big.Int
		if r, s, err = ecdsa.Sign(rand.Reader, f.key.(*ecdsa.PrivateKey), digest[:]); err != nil {
			break
		}
		order := elliptic.P256().Params().N
		if s.Cmp(new(big.Int).Rsh(order, 1)) > 0 { // the gateway takes the lower one of the two
			s.Sub(order, s)
		}
		signature = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	case "RS256":
		signature, err = f.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	case "PS256":
		signature, err = f.key.Sign(rand.Reader, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return signature
}

func b64(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// sign returns a JWT with this header and these claims.
func (f *forger) sign(header, claims string) string {
	f.t.Helper()
	text := b64(header) + "." + b64(claims)
	return text + "." + b64(string(f.signature(f.algorithm, text)))
}

// tamperings returns texts that are made of a good token alone, with a key that the gateway does not
// have, or with a header that is not the gateway's.
func (f *forger) tamperings(token, elsewhere string) map[string]string {
	f.t.Helper()
	parts := strings.Split(token, ".")
	header, claims := unb64(f.t, parts[0]), unb64(f.t, parts[1])
	signature := []byte(unb64(f.t, parts[2]))
	other := newForger(f.t, f.algorithm)
	public, err := x509.MarshalPKIXPublicKey(f.key.Public())
	if err != nil {
		f.t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	publicJWK, err := json.Marshal(jose.JSONWebKey{Key: f.key.Public()})
	if err != nil {
		f.t.Fatal(err)
	}
	otherJWK, err := json.Marshal(jose.JSONWebKey{Key: other.key.Public()})
	if err != nil {
		f.t.Fatal(err)
	}
	with := func(member string) string { return strings.TrimSuffix(header, "}") + "," + member + "}" }
	instead := func(old, new string) string {
		changed := strings.Replace(header, old, new, 1)
		if changed == header {
			f.t.Fatalf("no %s in %s", old, header)
		}
		return changed
	}
	alg := `"alg":"` + f.algorithm + `"`
	kid := `"kid":"` + f.kid(header) + `"`
	mac := func(header string, key []byte) string {
		text := b64(header) + "." + parts[1]
		sum := hmac.New(sha256.New, key)
		sum.Write([]byte(text))
		return text + "." + b64(string(sum.Sum(nil)))
	}
	hs := instead(alg, `"alg":"HS256"`)
	all := map[string]string{
		// Another key, which the header offers, or says where to find.
		"another key":                   other.sign(header, claims),
		"another key, in the header":    other.sign(with(`"jwk":`+string(otherJWK)), claims),
		"another key, at a URL":         other.sign(with(`"jku":"`+elsewhere+`"`), claims),
		"another certificate, at a URL": other.sign(with(`"x5u":"`+elsewhere+`"`), claims),
		"another certificate":           other.sign(with(`"x5c":["AAAA"]`), claims),
		"a kid that is a path":          f.sign(instead(kid, `"kid":"../../x"`), claims),
		"a kid that is a file":          f.sign(instead(kid, `"kid":"/dev/null"`), claims),
		"a kid that is SQL":             f.sign(instead(kid, `"kid":"' OR '1'='1"`), claims),
		"a kid that is a number":        f.sign(instead(kid, `"kid":1`), claims),
		"an empty kid":                  f.sign(instead(kid, `"kid":""`), claims),
		"no kid":                        f.sign(instead(kid+",", ``), claims),
		"the empty key of no kid":       mac(instead(kid, `"kid":""`), nil),

		// Another algorithm.
		"none":                           b64(instead(alg, `"alg":"none"`)) + "." + parts[1] + ".",
		"None":                           b64(instead(alg, `"alg":"None"`)) + "." + parts[1] + ".",
		"NONE, with a signature":         b64(instead(alg, `"alg":"NONE"`)) + "." + parts[1] + "." + parts[2],
		"none, without the last dot":     b64(instead(alg, `"alg":"none"`)) + "." + parts[1],
		"an empty alg":                   b64(instead(alg, `"alg":""`)) + "." + parts[1] + ".",
		"no alg":                         b64(instead(alg+",", ``)) + "." + parts[1] + ".",
		"an alg in small letters":        f.sign(instead(alg, `"alg":"`+strings.ToLower(f.algorithm)+`"`), claims),
		"the public key as a secret":     mac(hs, publicPEM),
		"the same without a line end":    mac(hs, bytes.TrimSpace(publicPEM)),
		"the public key in DER":          mac(hs, public),
		"the public JWK as a secret":     mac(hs, publicJWK),
		"an empty secret":                mac(hs, nil),
		"a MAC under the token's header": mac(header, publicPEM),

		// Extensions, and other words for the same header. All are signed by the very key.
		"b64":                           f.sign(with(`"b64":false,"crit":["b64"]`), claims),
		"an extension that is critical": f.sign(with(`"crit":["x"],"x":1`), claims),
		"an empty crit":                 f.sign(with(`"crit":[]`), claims),
		"compressed":                    f.sign(with(`"zip":"DEF"`), claims),
		"a content type":                f.sign(with(`"cty":"JWT"`), claims),
		"a key twice":                   f.sign(with(kid), claims),
		"two algorithms, none last":     f.sign(with(`"alg":"none"`), claims),
		"two types":                     f.sign(with(`"typ":"at+jwt"`), claims),
		"a space in the header":         f.sign(strings.Replace(header, ",", ", ", 1), claims),
		"a line break in the header":    f.sign(header+"\n", claims),
		"an escape in the header":       f.sign(instead(`"alg"`, `"\u0061lg"`), claims),
		"another order":                 f.sign(`{`+kid+`,`+alg+`,"typ":"at+jwt"}`, claims),
		"a header that is a list":       f.sign("["+header+"]", claims),
		"no header":                     "." + parts[1] + "." + parts[2],
		"an empty header":               f.sign("{}", claims),

		// JWTs for other purposes.
		"an ID token":                f.sign(instead(`"at+jwt"`, `"JWT"`), claims),
		"no type":                    f.sign(`{`+alg+`,`+kid+`}`, claims),
		"a type in capitals":         f.sign(instead(`"at+jwt"`, `"AT+JWT"`), claims),
		"the long type":              f.sign(instead(`"at+jwt"`, `"application/at+jwt"`), claims),
		"an introspection answer":    f.sign(instead(`"at+jwt"`, `"token-introspection+jwt"`), claims),
		"an assertion for a backend": f.sign(instead(`"at+jwt"`, `"oauth-assertion+jwt"`), claims),
		"an assertion of a client":   f.sign(instead(`"at+jwt"`, `"client-authentication+jwt"`), claims),
		"a DPoP proof":               f.sign(instead(`"at+jwt"`, `"dpop+jwt"`), claims),
		"a logout token":             f.sign(instead(`"at+jwt"`, `"logout+jwt"`), claims),

		// The signature.
		"no signature":                parts[0] + "." + parts[1] + ".",
		"neither signature nor dot":   parts[0] + "." + parts[1],
		"a signature of zeros":        parts[0] + "." + parts[1] + "." + b64(string(make([]byte, len(signature)))),
		"a signature of ones":         parts[0] + "." + parts[1] + "." + b64(strings.Repeat("\xff", len(signature))),
		"half a signature":            parts[0] + "." + parts[1] + "." + b64(string(signature[:len(signature)/2])),
		"a byte more":                 parts[0] + "." + parts[1] + "." + b64(string(signature)+"\x00"),
		"another token's signature":   parts[0] + "." + parts[1] + "." + strings.Split(f.sign(header, "{}"), ".")[2],
		"the signature of the claims": parts[0] + "." + parts[1] + "." + b64(string(f.signature(f.algorithm, parts[1]))),
		"claims of another token":     parts[0] + "." + b64(strings.Replace(claims, `"scope":"read"`, `"scope":"read write"`, 1)) + "." + parts[2],

		// The same bytes in another text.
		"padding":                        token + "=",
		"more padding":                   parts[0] + "." + parts[1] + "==." + parts[2],
		"a dot more":                     token + ".",
		"a part more":                    token + "." + parts[2],
		"two dots":                       parts[0] + ".." + parts[1] + "." + parts[2],
		"the parts in another order":     parts[1] + "." + parts[0] + "." + parts[2],
		"a header in capitals":           strings.ToUpper(parts[0]) + "." + parts[1] + "." + parts[2],
		"encrypted":                      b64(`{"alg":"dir","enc":"A128GCM"}`) + ".." + b64("iv") + "." + b64("text") + "." + b64("tag"),
		"encrypted under a password":     b64(`{"alg":"PBES2-HS256+A128KW","enc":"A128GCM","p2c":2147483647,"p2s":"AAAA"}`) + "." + b64("key") + "." + b64("iv") + "." + b64("text") + "." + b64("tag"),
		"a token in a token":             f.sign(with(`"cty":"JWT"`), token),
		"only dots":                      "..",
		"a thousand dots":                strings.Repeat(".", 1000),
		"the header and a thousand dots": parts[0] + strings.Repeat(".", 1000),
		"very long":                      parts[0] + "." + strings.Repeat("A", 10_000) + "." + parts[2],
	}
	last := "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	if spare := map[int]int{1: 16, 2: 4}[len(signature)%3]; spare != 0 {
		at := strings.IndexByte(last, token[len(token)-1])
		all["spare bits"] = token[:len(token)-1] + last[at+1:at+2]
	}
	if std := base64.RawStdEncoding.EncodeToString(signature); std != parts[2] {
		all["the other alphabet"] = parts[0] + "." + parts[1] + "." + std
	}
	switch key := f.key.(type) {
	case *ecdsa.PrivateKey:
		order := key.Params().N
		r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
		high := append(bytes.Clone(signature[:32]), new(big.Int).Sub(order, s).FillBytes(make([]byte, 32))...)
		all["the other signature that is good"] = parts[0] + "." + parts[1] + "." + b64(string(high))
		der, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
		if err != nil {
			f.t.Fatal(err)
		}
		all["a signature in DER"] = parts[0] + "." + parts[1] + "." + b64(string(der))
		all["r and s of the order"] = parts[0] + "." + parts[1] + "." + b64(string(append(order.FillBytes(make([]byte, 32)), order.FillBytes(make([]byte, 32))...)))
		all["ES384"] = f.sign(instead(alg, `"alg":"ES384"`), claims)
	case *rsa.PrivateKey:
		for _, algorithm := range []string{"RS256", "PS256"} {
			if algorithm != f.algorithm {
				text := parts[0] + "." + parts[1]
				all["a signature of "+algorithm] = text + "." + b64(string(f.signature(algorithm, text)))
				text = b64(instead(alg, `"alg":"`+algorithm+`"`)) + "." + parts[1]
				all["all of "+algorithm] = text + "." + b64(string(f.signature(algorithm, text)))
			}
		}
		order := key.N
		if s := new(big.Int).Add(new(big.Int).SetBytes(signature), order); len(s.Bytes()) == len(signature) {
			all["a signature beyond the modulus"] = parts[0] + "." + parts[1] + "." + b64(string(s.Bytes()))
		}
	}
	return all
}

func unb64(t testing.TB, text string) string {
	t.Helper()
	decoded, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(decoded)
}

// kid returns the ID in a header.
func (f *forger) kid(header string) string {
	f.t.Helper()
	var read struct {
		Kid string `json:"kid"`
	}
	if err := json.Unmarshal([]byte(header), &read); err != nil || read.Kid == "" {
		f.t.Fatalf("no key in %s, %v", header, err)
	}
	return read.Kid
}

// claimsOfOthers returns JWTs that the key itself has signed as access tokens, but with claims that are
// not those of a token of this realm and this store.
func (f *forger) claimsOfOthers(token string) map[string]string {
	f.t.Helper()
	parts := strings.Split(token, ".")
	header := unb64(f.t, parts[0])
	var said map[string]json.RawMessage
	if err := json.Unmarshal([]byte(unb64(f.t, parts[1])), &said); err != nil {
		f.t.Fatal(err)
	}
	change := func(name, value string) string {
		changed := make(map[string]json.RawMessage)
		for n, v := range said {
			changed[n] = v
		}
		if changed[name] = json.RawMessage(value); value == "" {
			delete(changed, name)
		}
		text, err := json.Marshal(changed)
		if err != nil {
			f.t.Fatal(err)
		}
		return f.sign(header, string(text))
	}
	all := map[string]string{
		"another issuer": change("iss", `"https://other.example.com/oauth2"`), "a realm's issuer": change("iss", `"https://auth.example.com/oauth2/realms/root/realms/beta"`),
		"the issuer and a slash": change("iss", `"https://auth.example.com/oauth2/"`), "no issuer": change("iss", ""), "issuers": change("iss", `["https://auth.example.com/oauth2"]`),
		"another client's subject": change("sub", `"reader"`), "another client": change("client_id", `"reader"`), "no subject": change("sub", ""), "no client": change("client_id", ""),
		"a client that is a number": change("client_id", "1"),
		"another epoch":             change("epoch", `"AAAAAAAAAAAAAAAAAAAAAA"`), "no epoch": change("epoch", ""), "an epoch that is null": change("epoch", "null"),
		"another generation": change("generation", "999"), "no generation": change("generation", ""), "a generation below zero": change("generation", "-1"),
		"no audience": change("aud", ""), "an empty list of audiences": change("aud", "[]"), "an audience that is a number": change("aud", "1"), "an audience that is an object": change("aud", "{}"),
		"a list with a number in it": change("aud", `["https://api.example.com",1]`), "an audience that is null": change("aud", "null"),
		"a scope that is a list": change("scope", `["write"]`), "a scope that is a number": change("scope", `1`),
		"claims that are text": f.sign(header, "claims"), "claims that are a list": f.sign(header, "[]"), "no claims": f.sign(header, ""), "empty claims": f.sign(header, "{}"),
		"claims that are null": f.sign(header, "null"), "two objects": f.sign(header, unb64(f.t, parts[1])+"{}"),
	}
	for _, when := range []string{"exp", "iat"} {
		for what, value := range map[string]string{
			"absent": "", "null": "null", "text": `"1900000000"`, "a fraction": "1900000000.5", "in the scientific notation": "1.9e9", "huge": "9223372036854775807", "beyond 64 bits": "1e300",
			"the least": "-9223372036854775808", "-1": "-1", "true": "true", "a list": "[1900000000]", "an object": "{}", "in the far future": "99999999999999",
		} {
			all[when+" is "+what] = change(when, value)
		}
	}
	delete(all, "iat is absent") // means 1970 to the gateway; nothing depends on it
	delete(all, "iat is null")
	all["exp is zero"], all["exp is over"] = change("exp", "0"), change("exp", string(said["iat"]))
	return all
}

// Nothing passes but the texts that the gateway has issued: not by forging, and not by the key itself
// when it signs for others. Each text gets the answer of any unknown token, everywhere, and no token that
// is good suffers from it.
func TestForgedTokens(t *testing.T) {
	var fetched atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { fetched.Add(1) }))
	t.Cleanup(elsewhere.Close)
	caches := []string{"", "cache {\nmax_tokens 1\n}\n", "cache off\n"}
	for name, store := range stores(t) {
		for i, algorithm := range []string{"ES256", "EdDSA", "RS256", "PS256"} {
			t.Run(name+", "+algorithm, func(t *testing.T) {
				f := newForger(t, algorithm)
				g := startGateway(t, store+keyFiles(t, "key")["key"]+caches[(i+len(name))%3]+jwtOptions+"signing {\nalgorithm "+algorithm+"\nkey_file "+f.file()+"\n}\n"+testClients+
					"realm beta {\nsigning {\nalgorithm "+algorithm+"\nkey_file "+newForger(t, algorithm).file()+"\n}\n"+testClients+"}\n", gatewaySite)
				token := g.token("writer", "read")
				g.wants("a good token", token, 200)
				if again := f.sign(unb64(t, strings.Split(token, ".")[0]), unb64(t, strings.Split(token, ".")[1])); algorithm != "EdDSA" && algorithm != "RS256" && again == token {
					t.Error("the forger makes no signatures of its own")
				} else {
					g.wants("the same, as the forger signs it", again, 200)
				}
				forged := f.tamperings(token, elsewhere.URL)
				for what, text := range f.claimsOfOthers(token) {
					forged["signed by the key: "+what] = text
				}
				a := g.post("/oauth2/realms/root/realms/beta/access_token", "writer", testSecret, url.Values{"grant_type": {"client_credentials"}, "scope": {"read"}})
				forged["a token of another realm"], _ = a.json(t)["access_token"].(string)
				challenge := g.get("/x", "unknown").Header.Get("WWW-Authenticate")
				for what, text := range forged {
					a := g.get("/x", text)
					got := a.Header.Get("WWW-Authenticate")
					if a.StatusCode != 401 || !strings.Contains(got, `error="invalid_token"`) || got != challenge {
						t.Errorf("%s: %d, %s", what, a.StatusCode, got)
					}
					if a := g.introspect("writer", text); a.StatusCode != 200 || a.Body != `{"active":false}` {
						t.Errorf("%s: introspection says %d %s", what, a.StatusCode, a.Body)
					}
					// Another gateway at the same Redis may know its key, so nobody says that it is revoked.
					if a := g.revoke("writer", text); a.StatusCode != 200 && !(a.StatusCode == 503 && name == "redis") {
						t.Errorf("%s: revocation says %d %s", what, a.StatusCode, a.Body)
					}
				}
				g.wants("the good token, after all that", token, 200)
				if n := fetched.Load(); n > 0 {
					t.Errorf("the gateway has fetched %d keys that callers named", n)
				}
			})
		}
	}
}

// Dots are refused before anybody looks at what is between them, as many as there may be in a request.
func TestDots(t *testing.T) {
	g := startGateway(t, "store memory\n"+jwtOptions+testClients, gatewaySite)
	token := g.token("reader")
	header, _, _ := strings.Cut(token, ".")
	for what, begin := range map[string]string{"dots": "", "a header and dots": header, "a token and dots": token} {
		for count, status := range map[int]int{10: 401, 1000: 401, 10_000: 401, 1 << 20: 431} {
			if a := g.get("/x", begin+strings.Repeat(".", count)); a.StatusCode != status {
				t.Errorf("%s, %d: %d, want %d", what, count, a.StatusCode, status)
			}
			if a := g.introspect("reader", begin+strings.Repeat(".", count)); a.Body != `{"active":false}` && a.StatusCode != 413 {
				t.Errorf("%s, %d: introspection says %d %s", what, count, a.StatusCode, a.Body)
			}
		}
	}
	g.wants("the token itself", token, 200)
}
