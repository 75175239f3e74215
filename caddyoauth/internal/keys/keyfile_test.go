package keys

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

func inPEM(kind string, der []byte, err error) string {
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func pkcs8(key any) string {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return inPEM("PRIVATE KEY", der, err)
}

func pkix(key any) string {
	der, err := x509.MarshalPKIXPublicKey(key)
	return inPEM("PUBLIC KEY", der, err)
}

// jwkOf returns key as a JWK, with members added or replaced.
func jwkOf(key any, members map[string]any) string {
	text, err := json.Marshal(jose.JSONWebKey{Key: key})
	if err != nil {
		panic(err)
	}
	var document map[string]any
	if err := json.Unmarshal(text, &document); err != nil {
		panic(err)
	}
	for name, value := range members {
		document[name] = value
	}
	if text, err = json.Marshal(document); err != nil {
		panic(err)
	}
	return string(text)
}

func jwkSet(jwks ...string) string { return `{"keys":[` + strings.Join(jwks, ",") + `]}` }

func TestKeyFilesAreRead(t *testing.T) {
	es, ed, rs := made()[ES256], made()[EdDSA], made()[RS256]
	ec := es.private.(*ecdsa.PrivateKey)
	sec1, err := x509.MarshalECPrivateKey(ec)
	parameters := "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
	for name, c := range map[string]struct {
		file, algorithm string
		want            []string // algorithm, ID and whether it signs
	}{
		"PKCS #8, P-256":           {pkcs8(es.private), "", []string{"ES256 " + es.ID() + " signs"}},
		"PKCS #8, Ed25519":         {pkcs8(ed.private), "", []string{"EdDSA " + ed.ID() + " signs"}},
		"PKCS #8, RSA":             {pkcs8(rs.private), "", []string{"RS256 " + rs.ID() + " signs"}},
		"RSA for PS256":            {pkcs8(rs.private), PS256, []string{"PS256 " + rs.ID() + " signs"}},
		"RSA beside ES256":         {pkcs8(rs.private), ES256, []string{"RS256 " + rs.ID() + " signs"}},
		"SEC 1":                    {inPEM("EC PRIVATE KEY", sec1, err), "", []string{"ES256 " + es.ID() + " signs"}},
		"SEC 1, as of openssl":     {parameters + inPEM("EC PRIVATE KEY", sec1, err), "", []string{"ES256 " + es.ID() + " signs"}},
		"PKCS #1":                  {inPEM("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rs.private.(*rsa.PrivateKey)), nil), "", []string{"RS256 " + rs.ID() + " signs"}},
		"PKCS #1, public":          {inPEM("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(rs.public.(*rsa.PublicKey)), nil), PS256, []string{"PS256 " + rs.ID()}},
		"public":                   {pkix(es.public), "", []string{"ES256 " + es.ID()}},
		"public, Ed25519":          {pkix(ed.public), "", []string{"EdDSA " + ed.ID()}},
		"several, with text":       {"first\n" + pkcs8(es.private) + "then\n" + pkix(ed.public) + pkix(rs.public) + "end\n", "", []string{"ES256 " + es.ID() + " signs", "EdDSA " + ed.ID(), "RS256 " + rs.ID()}},
		"with the breaks of DOS":   {strings.ReplaceAll(pkcs8(es.private), "\n", "\r\n"), "", []string{"ES256 " + es.ID() + " signs"}},
		"a JWK":                    {jwkOf(es.private, nil), "", []string{"ES256 " + es.ID() + " signs"}},
		"a JWK, Ed25519":           {" \n" + jwkOf(ed.private, map[string]any{"alg": "EdDSA", "use": "sig", "key_ops": []string{"sign"}, "kid": "1"}), "", []string{"EdDSA " + ed.ID() + " signs"}},
		"a JWK with the new name":  {jwkOf(ed.public, map[string]any{"alg": "Ed25519"}), "", []string{"EdDSA " + ed.ID()}},
		"a JWK, RSA":               {jwkOf(rs.private, nil), "", []string{"RS256 " + rs.ID() + " signs"}},
		"a JWK, RSA for PS256":     {jwkOf(rs.private, nil), PS256, []string{"PS256 " + rs.ID() + " signs"}},
		"a JWK that says PS256":    {jwkOf(rs.private, map[string]any{"alg": "PS256"}), RS256, []string{"PS256 " + rs.ID() + " signs"}},
		"a JWK that says RS256":    {jwkOf(rs.private, map[string]any{"alg": "RS256"}), PS256, []string{"RS256 " + rs.ID() + " signs"}},
		"a public JWK":             {jwkOf(es.public, map[string]any{"key_ops": []string{"verify"}}), "", []string{"ES256 " + es.ID()}},
		"a JWK set":                {jwkSet(jwkOf(es.private, nil), jwkOf(ed.public, nil)), "", []string{"ES256 " + es.ID() + " signs", "EdDSA " + ed.ID()}},
		"what this gateway serves": {string(mustJWKSet(t, es, ed, rs)), PS256, []string{"ES256 " + es.ID(), "EdDSA " + ed.ID(), "RS256 " + rs.ID()}},
	} {
		keys, err := ReadKeyFile([]byte(c.file), c.algorithm)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got []string
		for _, k := range keys {
			says := k.Algorithm() + " " + k.ID()
			if k.Signs() {
				says += " signs"
				j := k.For("JWT")
				if _, ok := publicHalf(t, k).For("JWT").Verify(signed(t, j, "{}")); !ok {
					t.Errorf("%s: the signature is bad", name)
				}
			}
			got = append(got, says)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func mustJWKSet(t *testing.T, keys ...*SigningKey) []byte {
	t.Helper()
	text, err := JWKSet(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Whatever can't be used is refused with a reason, and nothing of a key is in the reason.
func TestKeyFilesThatAreRefused(t *testing.T) {
	es, ed, rs := made()[ES256], made()[EdDSA], made()[RS256]
	other, err := NewSigningKey(ES256)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	long := &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 4096, 1), E: 65537}
	one := &rsa.PublicKey{N: rs.public.(*rsa.PublicKey).N, E: 1}
	var mine struct{ D string }
	if err := json.Unmarshal([]byte(jwkOf(es.private, nil)), &mine); err != nil {
		t.Fatal(err)
	}
	foreign := jwkOf(other.private, map[string]any{"d": mine.D})
	foreignEd := jwkOf(ed.private, map[string]any{"x": encode(strings.Repeat("x", 32))})
	weak := ed25519.PublicKey(make([]byte, 32))
	damaged := strings.Replace(pkcs8(es.private), "M", "!", 1)
	//nolint:staticcheck // it must be refused
	encrypted, err := x509.EncryptPEMBlock(rand.Reader, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rs.private.(*rsa.PrivateKey)), []byte("x"), x509.PEMCipherAES256)
	if err != nil {
		t.Fatal(err)
	}
	many := make([]string, maxFileKeys+1)
	manyPEM := ""
	for i := range many {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		many[i] = jwkOf(key, nil)
		manyPEM += pkcs8(key)
	}
	for name, c := range map[string]struct{ file, want string }{
		"empty":                          {"", "it is empty"},
		"blank":                          {" \n", "it is empty"},
		"text":                           {"hello", "neither PEM nor JSON"},
		"DER":                            {"\x30\x82\x01\x02", "neither PEM nor JSON"},
		"a JSON list":                    {"[]", "neither PEM nor JSON"},
		"an incomplete JWK":              {jwkOf(es.private, nil)[:90], "not a JSON object"},
		"two JWKs":                       {jwkOf(es.private, nil) + jwkOf(ed.private, nil), "not a JSON object"},
		"an empty object":                {"{}", "key 1: it is not a JWK"},
		"a set of nothing":               {`{"keys":[]}`, "no keys"},
		"a set of null":                  {`{"keys":null}`, "no keys"},
		"a set that is none":             {`{"keys":{}}`, "not a JWK set"},
		"a set of text":                  {`{"keys":["x"]}`, "key 1: it is not a JWK"},
		"a set with null":                {jwkSet(jwkOf(es.private, nil), "null"), "key 2: it is not a JWK"},
		"a symmetric JWK":                {`{"kty":"oct","k":"c2VjcmV0"}`, "symmetric"},
		"a symmetric JWK in a set":       {jwkSet(jwkOf(es.private, nil), `{"kty":"oct","k":"c2VjcmV0"}`), "key 2: it is a symmetric key"},
		"a JWK for encryption":           {jwkOf(es.private, map[string]any{"use": "enc"}), "its use is not sig"},
		"a JWK for other operations":     {jwkOf(es.private, map[string]any{"key_ops": []string{"verify"}}), "do not include sign"},
		"a public JWK for encryption":    {jwkOf(rs.public, map[string]any{"key_ops": []string{"encrypt"}}), "do not include verify"},
		"a JWK for RS512":                {jwkOf(rs.private, map[string]any{"alg": "RS512"}), "its alg is none of"},
		"a JWK for HS256":                {jwkOf(rs.public, map[string]any{"alg": "HS256"}), "its alg is none of"},
		"a JWK with the alg of another":  {jwkOf(es.private, map[string]any{"alg": "EdDSA"}), "can't sign by EdDSA"},
		"a JWK with the alg of RSA":      {jwkOf(ed.private, map[string]any{"alg": "PS256"}), "can't sign by PS256"},
		"a JWK of another curve":         {jwkOf(p384, nil), "P-256, not P-384"},
		"a JWK of an unknown curve":      {jwkOf(es.private, map[string]any{"crv": "secp256k1"}), "not supported"},
		"a JWK of an unknown kind":       {`{"kty":"AKP","alg":"ML-DSA-44","pub":"AA"}`, "not supported"},
		"a JWK for X25519":               {`{"kty":"OKP","crv":"X25519","x":"` + encode(strings.Repeat("x", 32)) + `"}`, "not supported"},
		"a JWK off the curve":            {jwkOf(es.public, map[string]any{"x": encode(strings.Repeat("x", 32))}), "not valid"},
		"a JWK of two keys":              {foreign, "do not belong together"},
		"a JWK of two keys of Ed25519":   {foreignEd, "not valid"},
		"a JWK of RSA without primes":    {jwkOf(rs.public, map[string]any{"d": "AQAB"}), "not complete"},
		"a JWK of RSA, damaged":          {jwkOf(rs.private, map[string]any{"dp": "AQAB"}), "key 1: "},
		"a JWK of RSA, too short":        {jwkOf(short, nil), "2048 to 4096 bits, not 1024"},
		"a JWK with a weak key":          {`{"kty":"OKP","crv":"Ed25519","x":"` + encode(string(weak)) + `"}`, "not valid"},
		"a JWK with numbers for text":    {jwkOf(es.public, map[string]any{"kty": 1}), "it is not a JWK"},
		"RSA, too short":                 {pkcs8(short), "2048 to 4096 bits, not 1024"},
		"RSA, too long":                  {pkix(long), "2048 to 4096 bits, not 4097"},
		"RSA with exponent 1":            {pkix(one), "key 1: "},
		"RSA with an even exponent":      {jwkOf(rs.public, map[string]any{"e": "BA"}), "odd exponent"},
		"another curve":                  {pkcs8(p384), "P-256, not P-384"},
		"a weak public key":              {pkix(weak), "no valid public key"},
		"a certificate":                  {inPEM("CERTIFICATE", []byte("x"), nil), "it is a certificate"},
		"a certificate behind a key":     {pkcs8(es.private) + inPEM("CERTIFICATE", []byte("x"), nil), "key 2: it is a certificate"},
		"encrypted, in the old way":      {string(pem.EncodeToMemory(encrypted)), "it is encrypted"},
		"encrypted, in the new way":      {inPEM("ENCRYPTED PRIVATE KEY", []byte("x"), nil), "it is encrypted"},
		"of OpenSSH":                     {inPEM("OPENSSH PRIVATE KEY", []byte("x"), nil), "ssh-keygen"},
		"an unknown block":               {inPEM("SECRET", []byte("x"), nil), "not supported"},
		"parameters alone":               {inPEM("EC PARAMETERS", []byte("x"), nil), "no keys"},
		"no key in a block":              {inPEM("PRIVATE KEY", []byte("x"), nil), "can't be read as a private key"},
		"a public key said to be one":    {strings.ReplaceAll(pkix(es.public), "PUBLIC", "PRIVATE"), "can't be read as a private key"},
		"a damaged block":                {damaged, "incomplete or damaged"},
		"a damaged block before another": {damaged + pkcs8(ed.private), "incomplete or damaged"},
		"an incomplete block":            {pkcs8(es.private) + pkcs8(ed.private)[:60], "incomplete or damaged"},
		"a key twice":                    {pkcs8(es.private) + pkcs8(ed.private) + pkcs8(es.private), "keys 1 and 3 are the same"},
		"both halves of a key":           {jwkSet(jwkOf(es.private, nil), jwkOf(es.public, nil)), "keys 1 and 2 are the same"},
		"a key for two algorithms":       {jwkSet(jwkOf(rs.private, map[string]any{"alg": "RS256"}), jwkOf(rs.private, map[string]any{"alg": "PS256"})), "keys 1 and 2 are the same"},
		"too many JWKs":                  {jwkSet(many...), "more than 32 keys"},
		"too many in PEM":                {manyPEM, "more than 32 keys"},
	} {
		keys, err := ReadKeyFile([]byte(c.file), "")
		if err == nil {
			t.Errorf("%s: read as %d keys", name, len(keys))
			continue
		}
		says := err.Error()
		if !strings.Contains(says, c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
		if !strings.Contains(says, "the same key") && !strings.Contains(says, "as a JWK set") {
			t.Errorf("%s: %v does not say what is accepted", name, err)
		}
		for line := range bytes.Lines([]byte(c.file)) {
			for _, word := range strings.FieldsFunc(string(line), func(r rune) bool { return strings.ContainsRune("\"{}:, \r\n", r) }) {
				if len(word) >= 12 && strings.Contains(says, word) {
					t.Errorf("%s: the error quotes the file: %v", name, err)
				}
			}
		}
	}
}

func FuzzReadKeyFile(f *testing.F) {
	es, ed := made()[ES256], made()[EdDSA]
	for _, seed := range []string{
		"", "{", "{}", `{"keys":[{}]}`, pkcs8(es.private), pkix(ed.public), pkcs8(es.private) + pkcs8(ed.private),
		jwkOf(es.private, nil), jwkOf(ed.private, map[string]any{"alg": "EdDSA", "key_ops": []string{"sign"}}), jwkSet(jwkOf(es.public, nil), jwkOf(ed.public, nil)),
		jwkOf(made()[RS256].private, nil), pkix(made()[RS256].public), "-----BEGIN PRIVATE KEY-----\n", `{"kty":"oct","k":"c2VjcmV0"}`,
	} {
		f.Add([]byte(seed), "PS256")
	}
	f.Fuzz(func(t *testing.T, data []byte, algorithm string) {
		keys, err := ReadKeyFile(data, algorithm)
		if err != nil {
			return
		}
		if len(keys) == 0 || len(keys) > maxFileKeys {
			t.Fatalf("%d keys", len(keys))
		}
		text, err := JWKSet(keys...)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ReadKeyFile(text, "")
		if err != nil || len(again) != len(keys) {
			t.Fatalf("what is published can't be read: %v", err)
		}
		for i, k := range keys {
			if !slices.Contains(Algorithms, k.Algorithm()) || again[i].ID() != k.ID() || again[i].Algorithm() != k.Algorithm() || again[i].Signs() {
				t.Fatalf("%v", k)
			}
			if !k.Signs() {
				continue
			}
			if _, ok := again[i].For("JWT").Verify(signed(t, k.For("JWT"), "{}")); !ok {
				t.Fatal("it signs what nobody accepts")
			}
		}
	})
}
