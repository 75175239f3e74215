package caddyoauth

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyoauth/gateway/introspect"
)

// No more sets of keys are fetched for managed clients than a gateway can afford; those that are fetched
// already, those in settings, and those of a platform that the configuration names cost nothing more.
func TestManagedKeysAreBounded(t *testing.T) {
	own := managedKeys{own: &assertionKeys{keys: introspect.KeysConfig{JWKSURI: "https://client.example.com/jwks"}}}
	platform := func(issuer string, known bool) managedKeys {
		from := &federatedKeys{keys: introspect.KeysConfig{Issuer: issuer}}
		if known {
			from.assertions = new(introspect.Assertions)
		}
		return managedKeys{platforms: []*federatedKeys{from}}
	}
	r := &servedRealm{name: "root", opened: new(openedKeys)}
	r.opened.clients = map[string]clientKeys{"there": {own: new(reference)}}
	r.opened.platforms = map[string]*managedPlatform{"https://there.example.com": {users: 1}}
	a := &App{run: new(running)}
	for _, c := range []struct {
		name   string
		id     string
		keys   managedKeys
		open   int // beside the platform
		others int
		want   int // -1 for refused
	}{
		{"the last one", "new", own, maxFetchedKeys - 2, 0, 1},
		{"one too many", "new", own, maxFetchedKeys - 1, 0, -1},
		{"one too many with others", "new", own, maxFetchedKeys - 3, 2, -1},
		{"the last one with others", "new", own, maxFetchedKeys - 4, 2, 1},
		{"a client that has its own", "there", own, maxFetchedKeys - 1, 0, 0},
		{"keys in the settings", "new", managedKeys{own: &assertionKeys{keys: introspect.KeysConfig{Set: "{}"}}}, maxFetchedKeys - 1, 0, 0},
		{"a new platform", "new", platform("https://new.example.com", false), maxFetchedKeys - 1, 0, -1},
		{"a platform that others have", "new", platform("https://there.example.com", false), maxFetchedKeys - 1, 0, 0},
		{"a platform of the configuration", "new", platform("https://new.example.com", true), maxFetchedKeys - 1, 0, 0},
	} {
		r.opened.own = c.open
		got, err := a.mayHaveKeys(r, c.id, c.keys, c.others)
		var refused caddy.APIError
		switch {
		case c.want < 0 && (!errors.As(err, &refused) || refused.HTTPStatus != http.StatusConflict || !strings.Contains(err.Error(), "too many")):
			t.Errorf("%s: %d, %v; want 409", c.name, got, err)
		case c.want >= 0 && (err != nil || got != c.want):
			t.Errorf("%s: %d, %v; want %d", c.name, got, err, c.want)
		}
	}
}
