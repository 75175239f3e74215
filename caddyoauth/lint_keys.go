package caddyoauth

import (
	"strconv"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// lintJWTLifetime is how long a JWT may live before that is doubtful.
const lintJWTLifetime = 24 * time.Hour

// lintKeyChecks are about keys, and what they sign.
func lintKeyChecks() []lintCheck {
	return []lintCheck{{
		code: "jwt-without-audience", kind: lintDoubtful,
		means: "A client gets JWTs and has no `audience`, so the claim `aud` names the issuer. A server that verifies JWTs and knows what it is called refuses them.",
		do:    "Give the client the `audience` that those servers ask for. Where only routes of this gateway take the tokens, `opaque` or `sealed` does.",
		find: func(l *linted, report lintReport) {
			eachJWTClient(l, func(realm, id string, c *oauth.Client) {
				if len(c.Audience) == 0 && l.realms[realm].am == nil { // in AM, it names the client
					report(l.atClient(realm, id), "the client %s gets JWTs without an audience", strconv.Quote(id))
				}
			})
		},
	}, {
		code: "jwt-for-days", kind: lintDoubtful,
		means: "JWTs live for longer than a day. Who verifies them elsewhere doesn't learn that one was revoked, or that its client was disabled.",
		do:    "Set a shorter `token_lifetime`: programs can fetch a new token at any time.",
		find: func(l *linted, report lintReport) {
			eachJWTClient(l, func(realm, id string, c *oauth.Client) {
				if c.TokenLifetime > lintJWTLifetime {
					report(l.atClient(realm, id), "JWTs of the client %s live for %s", strconv.Quote(id), c.TokenLifetime)
				}
			})
		},
	}, {
		code: "keys-in-clear", kind: lintDoubtful,
		means: "The keys of self-contained tokens lie in the store as they are. Whoever can read its file, or a backup of it, can make tokens.",
		do:    "Add an `encryption_key`.",
		find: func(l *linted, report lintReport) {
			if l.app == nil || l.app.cipher != nil || inMemory(l) {
				return
			}
			for name, realm := range l.realms {
				if realm.hasKeys() {
					report(l.atRealm(name), "the keys of the realm %s are not encrypted in the store", name)
				}
			}
		},
	}, {
		code: "keys-in-memory", kind: lintDoubtful,
		means: "The gateway signs with keys that lie in memory. After a restart it has others, and servers that verify JWTs refuse what is signed with them until they fetch the keys again.",
		do:    "Use another `store`, or give the realm a `key_file` in `signing`.",
		find: func(l *linted, report lintReport) {
			for name, realm := range l.realms {
				if inMemory(l) && realm.signing != nil && len(realm.signing.files) == 0 {
					report(l.atRealm(name), "the signing keys of the realm %s are lost with the process", name)
				}
			}
		},
	}}
}

// eachJWTClient calls do for each client that can get JWTs.
func eachJWTClient(l *linted, do func(realm, id string, c *oauth.Client)) {
	for name, realm := range l.realms {
		for id, c := range realm.settings.Clients {
			if c.TokenFormat == oauth.FormatJWT && !c.Disabled && len(c.GrantTypes) > 0 && len(c.Scopes) > 0 {
				do(name, id, c)
			}
		}
	}
}

func inMemory(l *linted) bool {
	_, ok := l.app.opener.(*MemoryStore)
	return ok
}
