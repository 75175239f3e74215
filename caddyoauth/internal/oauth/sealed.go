package oauth

import (
	"crypto/cipher"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/caddyoauth/gateway/introspect"
)

// SealedPrefix begins every sealed token.
const SealedPrefix = "coe_"

// A sealed token is SealedPrefix and the base64url form of
//
//	key      4 bytes   the ID of the key
//	nonce   24 bytes   of crypto/rand; long enough to be drawn at random without end
//	record             encrypted with XChaCha20-Poly1305
//	tag     16 bytes   which also vouches for the key's ID
//
// where the record is
//
//	version      1 byte    1; 2 if the token is bound, so that no program takes it for a bearer token
//	expiry       6 bytes   unix milliseconds, big-endian
//	lifetime     varint    milliseconds from issue to expiry
//	generation   varint    the client's
//	client ID    text
//	scopes       text      separated by spaces
//	audience     varint    their number, then a text each
//	certificate  text      with version 2: what the token is bound to; empty if it is not bound to one
//	key          text      likewise
//
// and a text is a varint, its length, and that many bytes. The encoding has no padding, and its
// spare bits must be zero, so no two strings are one token.
const (
	sealedVersion = 1
	sealedBound   = 2
	sealedNonce   = 4 // offset
	sealedRecord  = sealedNonce + chacha20poly1305.NonceSizeX
	sealedLeast   = sealedRecord + chacha20poly1305.Overhead + 11 // the shortest record
	// maxSealed bounds a sealed token's length. It has to fit into a header of a request at any
	// server.
	maxSealed = 4096
)

// SealKey is a key of sealed tokens.
type SealKey struct {
	// ID is in the token, so that the key is found without trying.
	ID  [4]byte
	Key [chacha20poly1305.KeySize]byte
}

// errTooLong means that a token would be longer than servers accept.
var errTooLong = errors.New("the token would be too long")

// sealed is the format of a realm's sealed tokens under its keys. It is safe for concurrent use.
type sealed struct {
	realm  string
	now    func() time.Time
	random io.Reader
	keys   map[[4]byte]cipher.AEAD
	first  [4]byte   // the key that seals
	memory sync.Pool // of *[]byte, to make and open tokens in
}

// newSealed makes the format for keys, of which the first seals and all open. Without any there
// are no sealed tokens, and it returns nil.
func newSealed(realm string, keys []SealKey, now func() time.Time, random io.Reader) (*sealed, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	s := &sealed{realm: realm, now: now, random: random, keys: make(map[[4]byte]cipher.AEAD), first: keys[0].ID}
	for _, key := range keys {
		aead, err := chacha20poly1305.NewX(key.Key[:])
		if err != nil {
			return nil, err
		}
		s.keys[key.ID] = aead
	}
	s.memory.New = func() any { return new([]byte) }
	return s, nil
}

func hasSealedForm(token string) bool {
	return strings.HasPrefix(token, SealedPrefix) && len(token) <= maxSealed &&
		base64.RawURLEncoding.DecodedLen(len(token)-len(SealedPrefix)) >= sealedLeast
}

// mint makes the token that t describes. It needs no record.
func (s *sealed) mint(t *Token) (string, error) {
	if t.ExpiryMilli < 0 || t.ExpiryMilli > maxTokenExpiry {
		return "", fmt.Errorf("expiry %d does not fit a token", t.ExpiryMilli)
	}
	memory := s.memory.Get().(*[]byte)
	defer s.memory.Put(memory)
	raw := slices.Grow((*memory)[:0], sealedRecord)[:sealedRecord]
	copy(raw, s.first[:])
	if _, err := io.ReadFull(s.random, raw[sealedNonce:]); err != nil {
		return "", fmt.Errorf("reading random bytes for a token: %w", err)
	}
	bound, version := t.Confirmation != (introspect.Confirmation{}), byte(sealedVersion)
	if bound {
		version = sealedBound
	}
	raw = append(raw, version, 0, 0, 0, 0, 0, 0)
	putExpiry(raw[sealedRecord+1:], t.ExpiryMilli)
	raw = binary.AppendUvarint(raw, uint64(t.ExpiryMilli-t.IssuedAt.UnixMilli()))
	raw = binary.AppendUvarint(raw, t.ClientGeneration)
	raw = appendText(raw, t.ClientID)
	raw = appendText(raw, strings.Join(t.Scopes, " "))
	raw = binary.AppendUvarint(raw, uint64(len(t.Audience)))
	for _, audience := range t.Audience {
		raw = appendText(raw, audience)
	}
	if bound {
		raw = appendText(appendText(raw, t.Confirmation.Certificate), t.Confirmation.Key)
	}
	// The encrypted record takes the place of the plain one.
	raw = s.keys[s.first].Seal(raw[:sealedRecord], raw[sealedNonce:sealedRecord], raw[sealedRecord:], raw[:sealedNonce])
	length := len(SealedPrefix) + base64.RawURLEncoding.EncodedLen(len(raw))
	start := len(raw)
	raw = opaqueEncoding.AppendEncode(append(raw, SealedPrefix...), raw)
	*memory = raw
	if length > maxSealed {
		return "", errTooLong
	}
	return string(raw[start:]), nil
}

// verify is opaque.verify for sealed tokens: it reports whether this realm sealed token and the
// token has not expired, and returns its expiry, or zero if the realm did not seal it.
func (s *sealed) verify(token *introspect.Token) (expiryMilli int64, ok bool) {
	expiryMilli, known := token.Noted(s)
	if !known {
		memory := s.memory.Get().(*[]byte)
		if record := s.open(token.Text(), memory); record != nil {
			expiryMilli = getExpiry(record[1:])
			token.Note(s, expiryMilli)
		}
		s.memory.Put(memory)
	}
	return expiryMilli, s.now().UnixMilli() < expiryMilli
}

// knowsKey reports whether the key that token names is one of the realm's.
func (s *sealed) knowsKey(token string) bool {
	var id [6]byte
	n, err := base64.RawURLEncoding.Decode(id[:], []byte(token[len(SealedPrefix):len(SealedPrefix)+8]))
	return err == nil && n == len(id) && s.keys[[4]byte(id[:])] != nil
}

// open decrypts the record of a token into memory, and returns nil if the realm did not seal it.
// The record is not valid once the memory is used again.
func (s *sealed) open(token string, memory *[]byte) (record []byte) {
	if !hasSealedForm(token) {
		return nil
	}
	text := token[len(SealedPrefix):]
	raw, err := opaqueEncoding.AppendDecode((*memory)[:0], []byte(text))
	*memory = raw
	// The decoder skips line breaks, and then there are too few bytes.
	if err != nil || len(raw) != base64.RawURLEncoding.DecodedLen(len(text)) {
		return nil
	}
	aead := s.keys[[4]byte(raw)]
	if aead == nil {
		return nil
	}
	record, err = aead.Open(raw[sealedRecord:sealedRecord], raw[sealedNonce:sealedRecord], raw[sealedRecord:], raw[:sealedNonce])
	if err != nil || record[0] != sealedVersion && record[0] != sealedBound {
		return nil
	}
	return record
}

// read returns what a token says, and false if this realm did not seal it.
func (s *sealed) read(token *introspect.Token) (t Token, ok bool) {
	memory := s.memory.Get().(*[]byte)
	defer s.memory.Put(memory)
	record := s.open(token.Text(), memory)
	if record == nil {
		return t, false
	}
	t.Key = Key{Realm: s.realm, ExpiryMilli: getExpiry(record[1:]), ID: token.ID()}
	token.Note(s, t.ExpiryMilli)
	r := recordReader{rest: record[7:]}
	t.IssuedAt = time.UnixMilli(t.ExpiryMilli - int64(r.number()))
	t.ClientGeneration = r.number()
	t.ClientID = r.text()
	if scopes := r.text(); scopes != "" {
		t.Scopes = strings.Split(scopes, " ")
	}
	n := r.number()
	if n > uint64(len(r.rest)) {
		return t, false
	}
	t.Audience = slices.Grow(t.Audience, int(n))
	for range n {
		t.Audience = append(t.Audience, r.text())
	}
	if record[0] == sealedBound {
		t.Confirmation = introspect.Confirmation{Certificate: r.text(), Key: r.text()}
		if t.Confirmation == (introspect.Confirmation{}) {
			return t, false
		}
	}
	return t, !r.short && len(r.rest) == 0
}

func appendText(b []byte, text string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(text))), text...)
}

// recordReader reads a record. What it reads was written by mint, since it has passed the tag, but
// perhaps by another version of this program: so it checks lengths all the same.
type recordReader struct {
	rest  []byte
	short bool
}

func (r *recordReader) number() uint64 {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 {
		r.short = true
		return 0
	}
	r.rest = r.rest[size:]
	return n
}

func (r *recordReader) text() string {
	n := r.number()
	if n > uint64(len(r.rest)) {
		r.short = true
		return ""
	}
	text := string(r.rest[:n])
	r.rest = r.rest[n:]
	return text
}
