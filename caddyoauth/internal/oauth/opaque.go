package oauth

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// An opaque token is tokenPrefix and the base64url form of
//
//	version  1 byte    1
//	expiry   6 bytes   unix milliseconds, big-endian
//	random  22 bytes   176 bits of crypto/rand
//	tag     16 bytes   HMAC-SHA-256 over all before it, truncated
//
// under a key of the realm. 45 bytes are 60 characters without padding and without
// spare bits, so no two strings decode to one token. The tag makes a token prove
// that it was issued here before anything is looked up; the prefix lets secret
// scanners find tokens that leak.
const (
	tokenPrefix = "coa_"

	tokenVersion   = 1
	tokenRandom    = 7  // offset
	tokenTag       = 29 // offset
	tokenBytes     = 45
	tokenLength    = len(tokenPrefix) + tokenBytes/3*4
	maxTokenExpiry = 1<<48 - 1
)

// strict, so that a character outside the alphabet is an error. Line breaks it passes
// over all the same, but then the bytes are too few for the length that verify wants.
var tokenEncoding = base64.RawURLEncoding.Strict()

// mint makes a token that expires at expiry. An error means that there was no
// randomness to be had.
func (e *Engine) mint(a *agreement, expiry time.Time) (token string, key Key, err error) {
	var raw [tokenBytes]byte
	milli := expiry.UnixMilli()
	if milli < 0 || milli > maxTokenExpiry {
		return "", Key{}, fmt.Errorf("expiry %d does not fit a token", milli)
	}
	raw[0] = tokenVersion
	putExpiry(raw[1:], milli)
	if _, err := io.ReadFull(e.cfg.Random, raw[tokenRandom:tokenTag]); err != nil {
		return "", Key{}, fmt.Errorf("reading random bytes for a token: %w", err)
	}
	t := a.taggers.Get().(*tagger)
	copy(raw[tokenTag:], t.tag(raw[:tokenTag]))
	a.taggers.Put(t)
	token = tokenPrefix + tokenEncoding.EncodeToString(raw[:])
	return token, e.key(introspect.IDOf(token), milli), nil
}

// verify reports whether this realm minted token and its time is not over, and when
// that will be, or was; zero if it is none of ours. It costs one MAC, no I/O and no memory.
// The MAC is computed once a request: token remembers what it vouches for, as long as a is
// what the gateways agree on. The time is judged by each call.
func (e *Engine) verify(a *agreement, token *introspect.Token) (expiryMilli int64, ok bool) {
	expiryMilli, known := token.Noted(a)
	if !known {
		if expiryMilli = a.open(token.Text()); expiryMilli != 0 {
			token.Note(a, expiryMilli)
		}
	}
	return expiryMilli, e.cfg.Now().UnixMilli() < expiryMilli
}

// open returns when a token expires that carries the tag of a's key, or else zero.
func (a *agreement) open(token string) (expiryMilli int64) {
	if !HasForm(token) {
		return 0
	}
	var raw [tokenBytes]byte
	var text [tokenLength]byte
	copy(text[:], token)
	if n, err := tokenEncoding.Decode(raw[:], text[len(tokenPrefix):]); err != nil || n != tokenBytes {
		return 0
	}
	if raw[0] != tokenVersion {
		return 0
	}
	t := a.taggers.Get().(*tagger)
	genuine := hmac.Equal(t.tag(raw[:tokenTag]), raw[tokenTag:])
	a.taggers.Put(t)
	if !genuine {
		return 0
	}
	return getExpiry(raw[1:])
}

// key is where the record of the token of that ID lies, in the store and in this realm.
func (e *Engine) key(id introspect.TokenID, expiryMilli int64) Key {
	return Key{Realm: e.cfg.Realm, ExpiryMilli: expiryMilli, ID: id}
}

// tagger computes a realm's tags. It is pooled, with the memory that its MAC reads from
// and writes to.
type tagger struct {
	mac hash.Hash
	msg [tokenTag]byte
	sum [sha256.Size]byte
}

// tag returns the truncated MAC of msg, in memory that the next call overwrites.
func (t *tagger) tag(msg []byte) []byte {
	t.mac.Reset()
	t.mac.Write(t.msg[:copy(t.msg[:], msg)])
	return t.mac.Sum(t.sum[:0])[:tokenBytes-tokenTag]
}

func putExpiry(b []byte, milli int64) {
	binary.BigEndian.PutUint16(b, uint16(milli>>32))
	binary.BigEndian.PutUint32(b[2:], uint32(milli))
}

func getExpiry(b []byte) int64 {
	return int64(binary.BigEndian.Uint16(b))<<32 | int64(binary.BigEndian.Uint32(b[2:]))
}

// jtiOf is the "jti" of a token in introspection answers. It identifies the token
// and is neither the token nor its ID: IDs stay inside.
func jtiOf(id introspect.TokenID) string {
	sum := sha256.Sum256(append([]byte("jti\x00"), id[:]...))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// audience is "aud" on the wire: a string if there is one, else an array (RFC 7519
// section 4.1.3).
type audience []string

func (a audience) MarshalJSON() ([]byte, error) {
	if len(a) == 1 {
		return json.Marshal(a[0])
	}
	return json.Marshal([]string(a))
}
