package store

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// The versions of a token's stored form. A reader fails on versions that it does not know, as after a
// downgrade: it can't find out what the token means, which is not "no". A bound token has a version of
// its own, so that no program takes it for a bearer token.
//
// The compact ones begin with their version, as a byte that no JSON begins with; the rest is in
// encodeRecord. The first two are JSON. They are no longer written, but a file or a Redis may have
// some from earlier. Programs that know only those fail on compact records, since they are no JSON.
const (
	recordVersion = 1
	recordBound   = 2
	compact       = 3
	compactBound  = 4
)

// record is a token's earlier stored form, as JSON. It contains the token's ID, so that one record can't stand
// in for another, but not the expiry, which is in the key.
type record struct {
	Version    int      `json:"v"`
	ID         []byte   `json:"id"`
	Realm      string   `json:"r"`
	ClientID   string   `json:"c"`
	Generation uint64   `json:"g"`
	Scope      string   `json:"s,omitempty"`
	Audience   []string `json:"a,omitempty"`
	IssuedAt   int64    `json:"i"` // unix milliseconds

	Confirmation introspect.Confirmation `json:"b,omitzero"` // with recordBound
}

// errCorrupt is why this program can't read what is stored.
var errCorrupt = errors.New("stored record is corrupt")

// encodeRecord encodes a token. The version is followed by the ID as it is, then
// by the realm, the client's ID and generation, the time of issue, the scopes and the audience, and
// for a bound token by both parts of its confirmation. Numbers are varints, the time of issue is in
// unix milliseconds, and texts and lists come after their length. As in JSON, the ID is there so that
// one record can't stand in for another.
func encodeRecord(t oauth.Token) []byte {
	size := 80 + len(t.Realm) + len(t.ClientID) + len(t.Confirmation.Certificate) + len(t.Confirmation.Key)
	for _, list := range [][]string{t.Scopes, t.Audience} {
		for _, text := range list {
			size += len(text) + 2
		}
	}
	return appendRecord(make([]byte, 0, size), t)
}

// appendRecord is encodeRecord for a caller that has memory for it.
func appendRecord(b []byte, t oauth.Token) []byte {
	version := byte(compact)
	if t.Confirmation != (introspect.Confirmation{}) {
		version = compactBound
	}
	b = append(b, version)
	b = append(b, t.ID[:]...)
	b = appendText(b, t.Realm)
	b = appendText(b, t.ClientID)
	b = binary.AppendUvarint(b, t.ClientGeneration)
	b = binary.AppendVarint(b, t.IssuedAt.UnixMilli())
	b = appendTexts(b, t.Scopes)
	b = appendTexts(b, t.Audience)
	if version == compactBound {
		b = appendText(b, t.Confirmation.Certificate)
		b = appendText(b, t.Confirmation.Key)
	}
	return b
}

func appendText(b []byte, text string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(text))), text...)
}

func appendTexts(b []byte, texts []string) []byte {
	b = binary.AppendUvarint(b, uint64(len(texts)))
	for _, text := range texts {
		b = appendText(b, text)
	}
	return b
}

// decodeRecord decodes what is stored under key. Anything but that key's own record is an error. The
// token's texts are parts of stored.
func decodeRecord(key oauth.Key, stored string) (oauth.Token, error) {
	switch {
	case stored == "":
		return oauth.Token{}, errCorrupt
	case stored[0] == compact || stored[0] == compactBound:
		return decodeCompact(key, stored)
	case stored[0] < '\t': // what JSON can begin with is above
		return oauth.Token{}, unknownVersion(int(stored[0]))
	}
	return decodeJSON(key, stored)
}

func unknownVersion(version int) error {
	return fmt.Errorf("%w: it has version %d, but this program knows only %d to %d", errCorrupt, version, recordVersion, compactBound)
}

var errOtherRecord = fmt.Errorf("%w or belongs to another token", errCorrupt)

func decodeJSON(key oauth.Key, stored string) (oauth.Token, error) {
	var r record
	if err := json.Unmarshal([]byte(stored), &r); err != nil {
		return oauth.Token{}, errCorrupt // err would quote the record
	}
	if r.Version != recordVersion && r.Version != recordBound {
		return oauth.Token{}, unknownVersion(r.Version)
	}
	if (r.Version == recordBound) != (r.Confirmation != introspect.Confirmation{}) {
		return oauth.Token{}, errCorrupt
	}
	if string(r.ID) != string(key.ID[:]) || r.Realm != key.Realm || r.ClientID == "" {
		return oauth.Token{}, errOtherRecord
	}
	t := oauth.Token{
		Key: key, ClientID: r.ClientID, ClientGeneration: r.Generation, Audience: r.Audience,
		IssuedAt: time.UnixMilli(r.IssuedAt), Confirmation: r.Confirmation,
	}
	if r.Scope != "" {
		t.Scopes = strings.Split(r.Scope, " ")
	}
	return t, nil
}

func decodeCompact(key oauth.Key, stored string) (oauth.Token, error) {
	id, rest := stored[1:], ""
	if len(id) >= len(key.ID) {
		id, rest = id[:len(key.ID)], id[len(key.ID):]
	}
	if id != string(key.ID[:]) {
		return oauth.Token{}, errOtherRecord
	}
	r := reading{rest: rest}
	realm := r.text()
	t := oauth.Token{Key: key, ClientID: r.text(), ClientGeneration: r.number()}
	zigzag := r.number() // as binary.AppendVarint has it
	t.IssuedAt = time.UnixMilli(int64(zigzag>>1) ^ -int64(zigzag&1))
	t.Scopes, t.Audience = r.texts(), r.texts()
	if stored[0] == compactBound {
		t.Confirmation = introspect.Confirmation{Certificate: r.text(), Key: r.text()}
		r.bad = r.bad || t.Confirmation == introspect.Confirmation{}
	}
	switch {
	case r.bad || r.rest != "":
		return oauth.Token{}, errCorrupt
	case realm != key.Realm || t.ClientID == "":
		return oauth.Token{}, errOtherRecord
	}
	return t, nil
}

// reading is what is left of a compact record. Once bad, it yields nothing more.
type reading struct {
	rest string
	bad  bool
}

// number reads a varint. It must be written as AppendUvarint does, so that each token has one record.
func (r *reading) number() (n uint64) {
	for i := range min(len(r.rest), binary.MaxVarintLen64) {
		c := r.rest[i]
		n |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			r.bad = r.bad || i > 0 && c == 0 || i == binary.MaxVarintLen64-1 && c > 1
			r.rest = r.rest[i+1:]
			return n
		}
	}
	r.bad, r.rest = true, ""
	return 0
}

func (r *reading) text() (text string) {
	n := r.number()
	if n > uint64(len(r.rest)) {
		r.bad, r.rest = true, ""
		return ""
	}
	text, r.rest = r.rest[:n], r.rest[n:]
	return text
}

// texts reads a list. It is nil if there is nothing in it.
func (r *reading) texts() []string {
	n := r.number()
	if r.bad || n > uint64(len(r.rest)) { // each has a length, so makes the record longer
		r.bad = true
		return nil
	}
	if n == 0 {
		return nil
	}
	texts := make([]string, n)
	for i := range texts {
		texts[i] = r.text()
	}
	return texts
}
