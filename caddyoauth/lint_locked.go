package caddyoauth

import "github.com/caddyoauth/gateway/caddyoauth/internal/oauth"

// lintLockedChecks are about doors that somebody can't open who should.
func lintLockedChecks() []lintCheck {
	return []lintCheck{{
		code: "client-without-scopes", kind: lintLocked, certain: true,
		means: "The client has no `scopes`, so each of its requests for a token is refused with `invalid_scope`.",
		do:    "Give it `scopes`, or, if it only introspects and revokes, `grant_types none`.",
		find: func(l *linted, report lintReport) {
			for name, realm := range l.realms {
				for id, c := range realm.settings.Clients {
					// One that may see others' tokens is there for that.
					if !c.Disabled && len(c.GrantTypes) > 0 && len(c.Scopes) == 0 && c.Introspect == oauth.IntrospectOwn {
						report(l.atClient(name, id), "the client %s can have no token", id)
					}
				}
			}
		},
	}}
}
