package oauth

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// TokenPrefix begins every opaque token.
const TokenPrefix = "coa_"

// An opaque token is TokenPrefix and the base64url form of
//
//	version  1 byte    1
//	expiry   6 bytes   unix milliseconds, big-endian
//	random  22 bytes   176 bits of crypto/rand
//	tag     16 bytes   HMAC-SHA-256 over everything before it, truncated
//
// under a key of the realm. 45 bytes are 60 characters without padding and without spare
// bits, so no two strings decode to one token. The tag makes a token prove that it was issued
// here before anything is looked up; the prefix lets secret scanners find tokens that leak.
const (
	opaqueVersion  = 1
	opaqueRandom   = 7  // offset
	opaqueTag      = 29 // offset
	opaqueBytes    = 45
	opaqueLength   = len(TokenPrefix) + opaqueBytes/3*4
	maxTokenExpiry = 1<<48 - 1
)

// opaqueEncoding is strict, so that a character outside the alphabet is an error. It skips
// line breaks all the same, but then there are too few bytes for the length that verify wants.
var opaqueEncoding = base64.RawURLEncoding.Strict()

func hasOpaqueForm(token string) bool {
	return len(token) == opaqueLength && token[:len(TokenPrefix)] == TokenPrefix
}

// opaque is the format of a realm's tokens under one key. It is safe for concurrent use.
type opaque struct {
	now     func() time.Time
	random  io.Reader
	taggers sync.Pool // of *tagger, with this realm's key
}

// newOpaque makes the format of a realm. Its key is derived from the one given, so a token of
// one realm is garbage to every other.
func newOpaque(realm string, key []byte, now func() time.Time, random io.Reader) *opaque {
	derive := hmac.New(sha256.New, key)
	io.WriteString(derive, "opaque token v1\x00"+realm)
	realmKey := derive.Sum(nil)
	o := &opaque{now: now, random: random}
	o.taggers.New = func() any { return &tagger{mac: hmac.New(sha256.New, realmKey)} }
	return o
}

// mint makes a token that expires at expiry, which it returns in unix milliseconds. An error
// means that there was no randomness to be had.
func (o *opaque) mint(expiry time.Time) (token string, expiryMilli int64, err error) {
	expiryMilli = expiry.UnixMilli()
	if expiryMilli < 0 || expiryMilli > maxTokenExpiry {
		return "", 0, fmt.Errorf("expiry %d does not fit a token", expiryMilli)
	}
	// What comes before the tag is written where the tagger has memory for it already.
	t := o.taggers.Get().(*tagger)
	defer o.taggers.Put(t)
	t.msg[0] = opaqueVersion
	putExpiry(t.msg[1:], expiryMilli)
	if _, err := io.ReadFull(o.random, t.msg[opaqueRandom:]); err != nil {
		return "", 0, fmt.Errorf("reading random bytes for a token: %w", err)
	}
	var raw [opaqueBytes]byte
	copy(raw[:], t.msg[:])
	copy(raw[opaqueTag:], t.tag(raw[:opaqueTag]))
	var text [len(TokenPrefix) + (opaqueBytes*8+5)/6]byte
	return string(opaqueEncoding.AppendEncode(append(text[:0], TokenPrefix...), raw[:])), expiryMilli, nil
}

// verify reports whether this realm minted token and the token has not expired. It also returns
// when the token expires or expired, in unix milliseconds, or zero if the realm did not mint it.
// It costs one MAC, no I/O and no memory. A genuine token costs the MAC once a request: it is
// noted in the token which expiry the MAC vouches for, under this key. Each call judges the time
// anew.
func (o *opaque) verify(token *introspect.Token) (expiryMilli int64, ok bool) {
	expiryMilli, known := token.Noted(o)
	if !known {
		if expiryMilli = o.open(token.Text()); expiryMilli != 0 {
			token.Note(o, expiryMilli)
		}
	}
	return expiryMilli, o.now().UnixMilli() < expiryMilli
}

// ExpiryIn returns the expiry, in UTC, that stands in a token of our form. Nobody has verified it. It
// reports false for a token that was certainly not issued here.
func ExpiryIn(token string) (expiry time.Time, ok bool) {
	raw, ok := unpack(token)
	if !ok {
		return time.Time{}, false
	}
	expiry = time.UnixMilli(getExpiry(raw[1:])).UTC()
	if expiry.Year() > 9999 {
		return time.Time{}, false // no lifetime reaches that far, and RFC 3339 can't write it
	}
	return expiry, true
}

// unpack returns the bytes of a token, if it has our form and version.
func unpack(token string) (raw [opaqueBytes]byte, ok bool) {
	if !hasOpaqueForm(token) {
		return raw, false
	}
	var text [opaqueLength]byte
	copy(text[:], token)
	n, err := opaqueEncoding.Decode(raw[:], text[len(TokenPrefix):])
	return raw, err == nil && n == opaqueBytes && raw[0] == opaqueVersion
}

// open returns when a token with this realm's tag expires, in unix milliseconds, or zero if the
// token does not have it.
func (o *opaque) open(token string) (expiryMilli int64) {
	raw, ok := unpack(token)
	if !ok {
		return 0
	}
	t := o.taggers.Get().(*tagger)
	genuine := hmac.Equal(t.tag(raw[:opaqueTag]), raw[opaqueTag:])
	o.taggers.Put(t)
	if !genuine {
		return 0
	}
	return getExpiry(raw[1:])
}

// tagger computes a realm's tags. It is pooled together with the memory that its MAC reads
// from and writes to.
type tagger struct {
	mac hash.Hash
	msg [opaqueTag]byte
	sum [sha256.Size]byte
}

// tag returns the truncated MAC of msg, in memory that the next call overwrites.
func (t *tagger) tag(msg []byte) []byte {
	t.mac.Reset()
	t.mac.Write(t.msg[:copy(t.msg[:], msg)])
	return t.mac.Sum(t.sum[:0])[:opaqueBytes-opaqueTag]
}

func putExpiry(b []byte, milli int64) {
	binary.BigEndian.PutUint16(b, uint16(milli>>32))
	binary.BigEndian.PutUint32(b[2:], uint32(milli))
}

func getExpiry(b []byte) int64 {
	return int64(binary.BigEndian.Uint16(b))<<32 | int64(binary.BigEndian.Uint32(b[2:]))
}
