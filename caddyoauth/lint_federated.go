package caddyoauth

import (
	"slices"
	"strconv"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// lintFederatedChecks are about clients for which platforms vouch.
func lintFederatedChecks() []lintCheck {
	return []lintCheck{{
		code: "federated-anybody", kind: lintDoubtful,
		means: "The `subject` of a `federated` doesn't say whose workload it is. On a platform that many share, anybody is the client whose tokens have the claims.",
		do:    "Name the owner in the `subject`. If a `claim` names him, silence this.",
		find: func(l *linted, report lintReport) {
			eachFederated(l, func(realm, id string, f *oauth.Federated) {
				if i := slices.IndexFunc(f.Subjects, opensToAll); i >= 0 {
					report(l.atClient(realm, id), "the subject %s of the client %s may be anybody's at %s", strconv.Quote(f.Subjects[i]), strconv.Quote(id), f.Issuer)
				}
			})
		},
	}, {
		code: "federated-audience", kind: lintDoubtful,
		means: "A `federated` takes tokens for another audience than the realm's issuer. Whoever else gets tokens for that audience can use them here.",
		do:    "Have the programs ask for tokens whose audience is the realm's issuer. If their platform can't give them such, as Entra ID can't, take an audience that nobody else has, and silence this.",
		find: func(l *linted, report lintReport) {
			eachFederated(l, func(realm, id string, f *oauth.Federated) {
				for _, audience := range f.Audience {
					if audience != l.realms[realm].settings.Issuer {
						report(l.atClient(realm, id), "the client %s is known by tokens of %s for %s", strconv.Quote(id), f.Issuer, strconv.Quote(audience))
						break
					}
				}
			})
		},
	}, {
		code: "federated-twice", kind: lintLocked,
		means: "Two clients are known by the same tokens of a platform, so a program that shows one has to send its `client_id`: without it, it is refused.",
		do:    "Make it one client, or give them subjects or claims that differ.",
		find:  lintFederatedTwice,
	}}
}

// eachFederated calls do for each platform of each client that isn't disabled, in the order of their
// names.
func eachFederated(l *linted, do func(realm, id string, f *oauth.Federated)) {
	for _, name := range sortedKeys(l.realms) {
		clients := l.realms[name].settings.Clients
		for _, id := range sortedKeys(clients) {
			for _, f := range clients[id].Federated {
				if !clients[id].Disabled {
					do(name, id, f)
				}
			}
		}
	}
}

// lintFederatedTwice goes by subjects that are spelled alike: patterns that overlap are often meant.
func lintFederatedTwice(l *linted, report lintReport) {
	type subject struct{ realm, issuer, pattern string }
	type owner struct {
		id string
		*oauth.Federated
	}
	owners := make(map[subject][]owner)
	told := make(map[string]bool) // realm and client
	eachFederated(l, func(realm, id string, f *oauth.Federated) {
		for _, pattern := range f.Subjects {
			at := subject{realm, f.Issuer, pattern}
			for _, other := range owners[at] {
				if key := realm + " " + id; other.id != id && !told[key] && mayBeOne(f, other.Federated) {
					told[key] = true
					report(l.atClient(realm, id), "the clients %s and %s are known by the same tokens of %s, with the subject %s", strconv.Quote(other.id), strconv.Quote(id), f.Issuer, strconv.Quote(pattern))
				}
			}
			if len(owners[at]) < 100 { // enough to find the next one
				owners[at] = append(owners[at], owner{id, f})
			}
		}
	})
}

// mayBeOne reports whether a token can have the audience and the claims of both.
func mayBeOne(a, b *oauth.Federated) bool {
	apart := func(x, y []string) bool {
		return !slices.ContainsFunc(x, func(value string) bool { return slices.Contains(y, value) })
	}
	if apart(a.Audience, b.Audience) {
		return false
	}
	for _, claim := range a.Claims {
		for _, other := range b.Claims {
			if claim.Name == other.Name && apart(claim.Values, other.Values) {
				return false
			}
		}
	}
	return true
}
