package store

import (
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
const (
	recordVersion = 1
	recordBound   = 2
)

// record is a token's stored form. It contains the token's ID, so that one record can't stand in
// for another, but not the expiry, which is in the key.
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

func encodeRecord(t oauth.Token) ([]byte, error) {
	version := recordVersion
	if t.Confirmation != (introspect.Confirmation{}) {
		version = recordBound
	}
	return json.Marshal(record{
		Version: version, ID: t.ID[:], Realm: t.Realm, ClientID: t.ClientID, Generation: t.ClientGeneration,
		Scope: strings.Join(t.Scopes, " "), Audience: t.Audience,
		IssuedAt: t.IssuedAt.UnixMilli(), Confirmation: t.Confirmation,
	})
}

// decodeRecord decodes what is stored under key. Anything but that key's own record is an error.
func decodeRecord(key oauth.Key, b []byte) (oauth.Token, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return oauth.Token{}, errCorrupt // err would quote the record
	}
	if r.Version != recordVersion && r.Version != recordBound {
		return oauth.Token{}, fmt.Errorf("%w: it has version %d, but this program knows only %d and %d", errCorrupt, r.Version, recordVersion, recordBound)
	}
	if (r.Version == recordBound) != (r.Confirmation != introspect.Confirmation{}) {
		return oauth.Token{}, errCorrupt
	}
	if string(r.ID) != string(key.ID[:]) || r.Realm != key.Realm || r.ClientID == "" {
		return oauth.Token{}, fmt.Errorf("%w or belongs to another token", errCorrupt)
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
