package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// Cipher encrypts keys at rest, with AES-256-GCM. A nil Cipher leaves them as they are. It is
// safe for concurrent use.
type Cipher struct {
	// own are the keys by their names; the one called first encrypts.
	own   map[string]cipher.AEAD
	first string
}

// MinSecret is the least length, in bytes, of the secret that an encryption key is derived from.
// A generated secret is longer.
const MinSecret = 32

// NewCipher makes the cipher for these secrets: the first encrypts, and all decrypt. Without any
// it returns nil.
func NewCipher(secrets ...string) (*Cipher, error) {
	if len(secrets) == 0 {
		return nil, nil
	}
	c := &Cipher{own: make(map[string]cipher.AEAD)}
	for i, secret := range secrets {
		if len(secret) < MinSecret {
			return nil, fmt.Errorf("an encryption key needs at least %d characters; make one with 'caddy oauth generate-secret'", MinSecret)
		}
		// The name tells keys apart and gives nothing away.
		name, err := hkdf.Key(sha256.New, []byte(secret), nil, "caddy-oauth encryption key name v1", 8)
		if err != nil {
			return nil, err
		}
		key, err := hkdf.Key(sha256.New, []byte(secret), nil, "caddy-oauth encryption key v1", 32)
		if err != nil {
			return nil, err
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, err
		}
		if _, twice := c.own[hex.EncodeToString(name)]; twice {
			return nil, errors.New("an encryption key is there twice")
		}
		c.own[hex.EncodeToString(name)] = aead
		if i == 0 {
			c.first = hex.EncodeToString(name)
		}
	}
	return c, nil
}

// ErrNotConfigured means that a key was encrypted under an encryption key that is not configured.
var ErrNotConfigured = errors.New("the keys in the token store are encrypted under an encryption_key that is not configured: add it again, behind the new one if there is one; without it these keys are lost, and with them all self-contained tokens")

// name returns the name of the encryption key that encrypts, which is empty for a nil Cipher.
func (c *Cipher) name() string {
	if c == nil {
		return ""
	}
	return c.first
}

// encrypt returns a key for the store, encrypted under the encryption key of this name, or as it is
// if that is empty. What it says about the key can't be changed in the store.
func (c *Cipher) encrypt(under string, key []byte, about string) ([]byte, error) {
	if under == "" {
		return key, nil
	}
	if c == nil || c.own[under] == nil {
		return nil, ErrNotConfigured
	}
	return c.own[under].Seal(nil, nil, key, []byte(about)), nil //nolint:gosec // it draws its nonces itself
}

// decrypt is the inverse of encrypt.
func (c *Cipher) decrypt(under string, stored []byte, about string) ([]byte, error) {
	if under == "" {
		return stored, nil
	}
	if c == nil || c.own[under] == nil {
		return nil, ErrNotConfigured
	}
	key, err := c.own[under].Open(nil, nil, stored, []byte(about))
	if err != nil {
		return nil, errCorrupt
	}
	return key, nil
}

// random returns n random bytes.
func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}
