package keys

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// maxFileKeys bounds how many keys a file may have. All of them are published.
const maxFileKeys = 32

// accepted says what a key file may be, for errors.
const accepted = "a key file has EC keys on P-256, Ed25519 keys, or RSA keys of 2048 to 4096 bits, in PEM (PKCS #8, SEC 1, PKCS #1 or a public key), as a JWK or as a JWK set"

// ReadKeyFile reads a file with keys: PEM with private keys (PKCS #8, SEC 1, PKCS #1) and public
// ones, a JWK, or a JWK set. A key of RSA signs by RS256 or PS256: as the "alg" of its JWK says, or
// else by algorithm if that is one of the two, or else by RS256. The "kid" of a JWK does not count,
// since a key has the ID that its thumbprint gives it. Errors quote nothing of what is in the file.
func ReadKeyFile(data []byte, algorithm string) ([]*SigningKey, error) {
	var read func([]byte, string) ([]*SigningKey, error)
	switch {
	case bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")):
		read = readJWKs
	case bytes.Contains(data, pemBegin):
		read = readPEM
	case len(bytes.TrimSpace(data)) == 0:
		return nil, fmt.Errorf("it is empty: %s", accepted)
	default:
		return nil, fmt.Errorf("it is neither PEM nor JSON: %s", accepted)
	}
	keys, err := read(data, algorithm)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, accepted)
	}
	for i, k := range keys {
		if j := slices.IndexFunc(keys, func(other *SigningKey) bool { return other.id == k.id }); j < i {
			return nil, fmt.Errorf("keys %d and %d are the same key", j+1, i+1)
		}
	}
	return keys, nil
}

// nth says which key of a file is wrong.
func nth(i int, err error) error { return fmt.Errorf("key %d: %w", i+1, err) }

var errTooMany = fmt.Errorf("it has more than %d keys", maxFileKeys)

var pemBegin = []byte("-----BEGIN ")

func readPEM(data []byte, algorithm string) (keys []*SigningKey, err error) {
	blocks := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		blocks++
		if block.Type == "EC PARAMETERS" {
			continue // openssl writes the curve's name before the key, which says it too
		}
		if len(keys) == maxFileKeys {
			return nil, errTooMany
		}
		key, err := parseBlock(block)
		if err != nil {
			return nil, nth(len(keys), err)
		}
		k, err := newSigningKey(key, algorithmOf(key, algorithm))
		if err != nil {
			return nil, nth(len(keys), err)
		}
		keys = append(keys, k)
	}
	// The decoder skips blocks that it can't read.
	if blocks != bytes.Count(data, pemBegin) {
		return nil, errors.New("a PEM block is incomplete or damaged")
	}
	if len(keys) == 0 {
		return nil, errors.New("it has no keys")
	}
	return keys, nil
}

func parseBlock(block *pem.Block) (key any, err error) {
	if _, encrypted := block.Headers["DEK-Info"]; encrypted || block.Type == "ENCRYPTED PRIVATE KEY" {
		return nil, errors.New("it is encrypted: decrypt it, for instance with 'openssl pkey', and protect the file instead")
	}
	what := "a private key"
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "PUBLIC KEY":
		what = "a public key"
		key, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		what = "a public key"
		key, err = x509.ParsePKCS1PublicKey(block.Bytes)
	case "CERTIFICATE":
		return nil, errors.New("it is a certificate: give the key alone")
	case "OPENSSH PRIVATE KEY":
		return nil, errors.New("it is in the format of OpenSSH: convert it with 'ssh-keygen -p -m PKCS8'")
	default:
		return nil, errors.New("this kind of PEM block is not supported")
	}
	if err != nil {
		return nil, fmt.Errorf("it can't be read as %s, or its curve is not supported", what) // err might quote it
	}
	return key, nil
}

// algorithmOf returns the algorithm of a key that does not name one.
func algorithmOf(key any, wanted string) string {
	switch key.(type) {
	case *ecdsa.PrivateKey, *ecdsa.PublicKey:
		return ES256
	case ed25519.PrivateKey, ed25519.PublicKey:
		return EdDSA
	case *rsa.PrivateKey, *rsa.PublicKey:
		if wanted == PS256 {
			return PS256
		}
		return RS256
	}
	return "" // newSigningKey refuses it
}

func readJWKs(data []byte, algorithm string) (keys []*SigningKey, err error) {
	var document map[string]json.RawMessage
	if err := json.Unmarshal(data, &document); err != nil {
		return nil, errors.New("it begins like JSON, but is not a JSON object")
	}
	jwks := []json.RawMessage{data}
	if set, ok := document["keys"]; ok {
		if err := json.Unmarshal(set, &jwks); err != nil {
			return nil, errors.New("it is not a JWK set, whose keys are a list")
		}
	}
	if len(jwks) == 0 {
		return nil, errors.New("it has no keys")
	}
	if len(jwks) > maxFileKeys {
		return nil, errTooMany
	}
	for i, raw := range jwks {
		k, err := parseJWK(raw, algorithm)
		if err != nil {
			return nil, nth(i, err)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func parseJWK(raw []byte, algorithm string) (*SigningKey, error) {
	var says struct {
		KeyType    string   `json:"kty"`
		Use        *string  `json:"use"`
		Operations []string `json:"key_ops"`
		Private    any      `json:"d"`
	}
	if err := json.Unmarshal(raw, &says); err != nil {
		return nil, errors.New("it is not a JWK")
	}
	operation := "verify"
	if says.Private != nil {
		operation = "sign"
	}
	switch {
	case says.KeyType == "":
		return nil, errors.New("it is not a JWK, which has a kty")
	case says.KeyType == "oct":
		return nil, errors.New("it is a symmetric key: whoever could verify a token could make one")
	case says.Use != nil && *says.Use != "sig":
		return nil, errors.New("its use is not sig")
	case says.Operations != nil && !slices.Contains(says.Operations, operation):
		return nil, fmt.Errorf("its key_ops do not include %s", operation)
	}
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(raw); err != nil {
		return nil, errors.New("it is not valid, not complete, or of a kind that is not supported") // err might quote it
	}
	switch {
	case jwk.Algorithm == "":
		algorithm = algorithmOf(jwk.Key, algorithm)
	case jwk.Algorithm == "Ed25519": // RFC 9864's name for it
		algorithm = EdDSA
	case slices.Contains(Algorithms, jwk.Algorithm):
		algorithm = jwk.Algorithm
	default:
		return nil, fmt.Errorf("its alg is none of %s", strings.Join(Algorithms, ", "))
	}
	return newSigningKey(jwk.Key, algorithm)
}
