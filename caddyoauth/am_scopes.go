package caddyoauth

import (
	"maps"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// How ForgeRock AM writes the scopes of a client, and what some of them let it do.

// The scopes by which AM lets a client ask about the tokens of others. That the client may have them is
// enough: no token needs them.
const (
	amIntrospectAll = "am-introspect-all-tokens"           // those of its realm
	amIntrospectAny = "am-introspect-all-tokens-any-realm" // those of all realms
)

// scopeOfAM returns the scope that an entry of AM's is for: scope, scope|description or
// scope|locale|description, maybe with [number]= before it, which old stores have.
func scopeOfAM(entry string) string {
	if number, rest, ok := strings.Cut(entry, "]="); ok && strings.HasPrefix(number, "[") && strings.Trim(number[1:], "0123456789") == "" {
		entry = rest
	}
	scope, _, _ := strings.Cut(entry, "|")
	return scope
}

// scopesOfAM returns the scopes of all entries. One that is there in several languages is there once.
func scopesOfAM(entries []string) []string {
	var scopes []string
	for _, entry := range entries {
		scope := scopeOfAM(entry)
		if entry == scope || !slices.Contains(scopes, scope) {
			scopes = append(scopes, scope)
		}
	}
	return scopes
}

// scopesOption reads scopes of a realm or a client. Whether a description counts as one is for
// Provision: that goes by the realm. Here, either reading will do.
func scopesOption(place *[]string) conf.Option {
	return conf.Func(func(d *caddyfile.Dispenser) (err error) {
		option := d.Val()
		if *place, err = conf.Args(d, 1, -1); err != nil {
			return err
		}
		if conf.CheckScopes(option, *place) == nil {
			return nil
		}
		return conf.At(d, conf.CheckScopes(option, scopesOfAM(*place)))
	})
}

// scopes returns what entries of scopes stand for in a realm: in one that doesn't answer as AM, a | is a
// character like any other.
func (am *AMCompat) scopes(entries []string) []string {
	if am == nil {
		return entries
	}
	return scopesOfAM(entries)
}

// client returns a client's settings as they count in a realm.
func (am *AMCompat) client(cc *Client) *Client {
	if am == nil {
		return cc
	}
	read := *cc
	read.Scopes, read.DefaultScopes = am.scopes(cc.Scopes), am.scopes(cc.DefaultScopes)
	return &read
}

// introspects returns whose tokens a client may ask about by its scopes. It is empty if that follows from
// its introspect setting alone.
func (am *AMCompat) introspects(cc *Client) string {
	if am == nil || cc.Introspect != "" {
		return ""
	}
	switch scopes := am.scopes(cc.Scopes); {
	case slices.Contains(scopes, amIntrospectAny):
		return oauth.IntrospectAnyRealm
	case slices.Contains(scopes, amIntrospectAll):
		return oauth.IntrospectRealm
	}
	return ""
}

// elsewhere returns the engine of another realm that has issued a token, of all that answer as AM; nil if
// there is none. It is called once all realms have engines.
func (r *servedRealm) elsewhere(token *introspect.Token) *oauth.Engine {
	return issuerAmong(slices.Collect(maps.Values(r.app.realms)), r, token)
}

// issuerAmong is elsewhere among some realms, but for one.
func issuerAmong(realms []*servedRealm, but *servedRealm, token *introspect.Token) *oauth.Engine {
	for _, r := range realms {
		if r != but && r.am != nil && r.engine != nil && r.engine.Issued(token) {
			return r.engine
		}
	}
	return nil
}
