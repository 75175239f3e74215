package caddyoauth

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
)

const (
	// lintLifetime is how long a token may live before that is doubtful.
	lintLifetime = 90 * 24 * time.Hour
	// lintStale is how long an outage may keep a revoked token alive before that is doubtful.
	lintStale = time.Hour
)

// lintDoubtfulChecks are about what works and is probably not meant, and about secrets and
// settings that leave more open than they seem to.
func lintDoubtfulChecks() []lintCheck {
	return []lintCheck{{
		code: "published-secret", kind: lintOpen, certain: true,
		means: "The client has a secret that is printed in the documents of this project, so everybody can fetch its tokens. Nothing is said where all servers with the realm listen on this machine alone.",
		do:    "Make one with `caddy oauth generate-secret`.",
		find:  lintPublishedSecrets,
	}, {
		code: "all-guards-off", kind: lintOpen,
		means: "`insecure_http`, `keep_token` and `allow_ambiguous_paths` together: tokens can be read on the way, every backend can use them elsewhere, and some paths get around matchers.",
		do:    "Remove what isn't needed. Behind a balancer that terminates TLS, set `trusted_proxies` instead of `insecure_http`.",
		find: func(l *linted, report lintReport) {
			for h := range l.handlers {
				if p, ok := h.module.(*Protect); ok && p.InsecureHTTP && p.KeepToken && p.AllowAmbiguousPaths {
					report(h.place(), "insecure_http, keep_token and allow_ambiguous_paths are all on")
				}
			}
		},
	}, {
		code: "shared-secret", kind: lintDoubtful,
		means: "Two clients have one secret, so each can act as the other, and a rotation has to reach both at once.",
		do:    "Give each client a secret of its own.",
		find:  lintSharedSecrets,
	}, {
		code: "alternative-nobody-has", kind: lintDoubtful,
		means: "One of the scopes in `any_scope` is one that no client of the route's realms has.",
		do:    "Correct the scope, or remove it.",
		find:  lintAlternatives,
	}, {
		code: "token-for-months", kind: lintDoubtful,
		means: "Tokens live for 90 days or longer. A token that leaks is of use for as long, unless somebody notices and revokes it.",
		do:    "Set a shorter `token_lifetime`: programs can fetch a new token at any time.",
		find:  lintLifetimes,
	}, {
		code: "max-age-without-effect", kind: lintDoubtful,
		means: "A `max_age` is longer than that of the `cache`, or the cache is off, so it has no effect.",
		do:    "Remove it, or raise `max_age` in `cache`.",
		find:  lintMaxAges,
	}, {
		code: "stale-for-hours", kind: lintDoubtful,
		means: "With `serve_stale` of more than an hour, an outage of the other server keeps tokens alive for as long that it has revoked.",
		do:    "Set a shorter `serve_stale`.",
		find: func(l *linted, report lintReport) {
			for h, s := range sourcesOf[*IntrospectSource](l) {
				if stale := time.Duration(s.ServeStale); stale > lintStale {
					report(h.place(), "source introspect %s: serve_stale is %s", s.Label(), stale)
				}
			}
		},
	}, {
		code: "tokens-in-query", kind: lintDoubtful,
		means: "The realm takes tokens from URLs, which get into the logs of all proxies on the way: whoever reads those has the tokens.",
		do:    "Have programs send tokens in the Authorization header, or in the form of an introspection request, and remove `tokens_in_query` from `am_compat`.",
		find: func(l *linted, report lintReport) {
			for name, realm := range l.realms {
				if realm.am != nil && realm.am.TokensInQuery {
					report(l.atRealm(name), "the realm %s takes tokens from the query of URLs", name)
				}
			}
		},
	}, {
		code: "credentials-in-query", kind: lintDoubtful,
		means: "Clients of the realm may send their secrets in URLs, which get into the logs of all proxies on the way.",
		do:    "Find those that do by the field `credentials_in_query` of their events, have them send their secrets by Basic or in the form, and remove `credentials_in_query` from `am_compat`.",
		find: func(l *linted, report lintReport) {
			for name, realm := range l.realms {
				if realm.queryWarnings != nil {
					report(l.atRealm(name), "the realm %s takes credentials from the query of URLs", name)
				}
			}
		},
	}, {
		code: "any-jwt", kind: lintDoubtful,
		means: "With `typ any` and no `audience`, the route accepts whatever the issuer signs, for whomever: ID tokens, and tokens that were meant for other services. Nothing is said of routes that ask for a scope or a claim.",
		do:    "Add `audience` to the source or to the route, or remove `typ any`.",
		find: func(l *linted, report lintReport) {
			for h, s := range sourcesOf[*JWTSource](l) {
				if s.Type != "any" || len(s.Audience) > 0 {
					continue
				}
				for on, rule := range rulesOf(h.module.(*Protect)) {
					if len(rule.Audience)+len(rule.Scopes)+len(rule.AnyScope)+len(rule.Claims) == 0 {
						report(h.place(), "%ssource jwt %s accepts any kind of token for any audience", on, s.Label())
					}
				}
			}
		},
	}, {
		code: "introspection-without-credentials", kind: lintDoubtful,
		means: "The gateway doesn't authenticate to the introspection endpoint. Servers either refuse that, and then all tokens get 503, or they let anybody find out what tokens mean (RFC 7662 section 2.1).",
		do:    "Give the source `client_id` and `client_secret`, a `header` with a token, or a client certificate in `tls`.",
		find: func(l *linted, report lintReport) {
			for h, s := range sourcesOf[*IntrospectSource](l) {
				near := strings.HasPrefix(s.Label(), "http:") // on this machine
				if !near && s.ClientID == "" && !hasCredentials(s.Headers) && (s.TLS == nil || s.TLS.Certificate == "") && !strings.Contains(s.URL, "?") {
					report(h.place(), "source introspect %s has no credentials", s.Label())
				}
			}
		},
	}, {
		code: "report-only-without-end", kind: lintDoubtful,
		means: "The route lets everything pass until somebody remembers to remove `report_only`.",
		do:    "Say how long that is needed, as in `report_only until 2027-03-31T00:00:00Z`.",
		find: func(l *linted, report lintReport) {
			for h := range l.handlers {
				if p, ok := h.module.(*Protect); ok && p.ReportOnly != nil && p.ReportOnly.Until.IsZero() {
					report(h.place(), "report_only has no end")
				}
			}
		},
	}, {
		// A start has a warning of its own about this, and about the next but one.
		code: "report-only-ended", kind: lintDoubtful,
		means: "The time of `report_only` is over, so requests are refused.",
		do:    "Remove it, or give it another end.",
		find: func(l *linted, report lintReport) {
			for h := range l.handlers {
				if p, ok := h.module.(*Protect); ok && p.ReportOnly != nil && !p.ReportOnly.holds() {
					report(h.place(), "report_only ended on %s", p.ReportOnly.Until.Format(time.DateOnly))
				}
			}
		},
	}, {
		code: "basic-without-end", kind: lintDoubtful,
		means: "The route takes the secrets of clients with each request, until somebody remembers to remove `basic`.",
		do:    "Say how long that is needed, as in `basic until 2027-03-31T00:00:00Z`. Responses then tell callers.",
		find: func(l *linted, report lintReport) {
			for h := range l.handlers {
				if p, ok := h.module.(*Protect); ok && p.Basic != nil && p.Basic.Until.IsZero() {
					report(h.place(), "basic has no end")
				}
			}
		},
	}, {
		code: "basic-ended", kind: lintDoubtful,
		means: "The time of `basic` is over, so the route takes tokens alone.",
		do:    "Remove it, or give it another end.",
		find: func(l *linted, report lintReport) {
			for h := range l.handlers {
				if p, ok := h.module.(*Protect); ok && p.Basic != nil && !p.basic.on(time.Now()) {
					report(h.place(), "basic ended on %s", p.Basic.Until.Format(time.DateOnly))
				}
			}
		},
	}, {
		code: "limit-by-claimed-address", kind: lintDoubtful,
		means: "Without `trusted_proxies_strict`, a caller's address is the first of `X-Forwarded-For`. Callers choose that if the proxy appends to what they send, as most do. Then `limit failures` stops no guesser, and anybody can have a client refused at its own address.",
		do:    "Add `trusted_proxies_strict` to the server's options. If the proxy replaces the header, ignore this.",
		find:  lintClaimedAddresses,
	}, {
		code: "assertion-keys-hidden", kind: lintDoubtful,
		means: "The route has the backend told who is calling by an assertion, and no `oauth_server` publishes the keys of the realm that signs it. The backend can't fetch them here. Nothing is said of keys from a `key_file`.",
		do:    "Add an `oauth_server` that serves the realm, or give `assertion` a `realm` that one serves. If another gateway with the same store publishes them, ignore this.",
		find:  lintHiddenKeys,
	}, {
		code: "identity-as-pattern", kind: lintDoubtful,
		means: "A matcher takes what a token says as a pattern: a caller whose subject is `*` matches everything.",
		do:    "Compare in an `expression` instead, as in `{path.1} == {http.auth.user.subject}`.",
		find:  lintPatterns,
	}}
}

// publishedSecrets are the secrets in the documents and examples, and their hashes. A test compares
// them.
var publishedSecrets = map[string]bool{
	"$2a$10$kVgX/6erEKdQ8SKSIdW7zOo3TCo5RVGdC9HUwfb8zBtnxPOsaT32W":                                      true,
	"$argon2id$v=19$m=19456,t=2,p=1$/OIaUiQUA5ZzeuRigywCnw$aI0YPPawDGY7tMsiBrkeiyTiNGtvSGpq9hU6bKonEEM": true,
	"$argon2id$v=19$m=19456,t=2,p=1$4MHHpT+Rkk8EhysKl0mDIA$9CL0Ei8A+isGtxun6KT3NwW5khIMLUwiWH74hS4Q6Cc": true,
	"$argon2id$v=19$m=19456,t=2,p=1$GmhSbmKu6MsdY71bwGWBGw$Oe36vHuGNEvukTHYFyPwOiZF5q6MMG/L6taSzBcWCEw": true,
	"$argon2id$v=19$m=19456,t=2,p=1$KLpm2pbzNfHGqf3D02ITJw$2+KpLu5XpE6G5LkCDy5iz4y4CbVukyF/0GGUhHRSpe8": true,
	"$argon2id$v=19$m=19456,t=2,p=1$MUCv6iCmKRpAf/qxIrdGkg$jyLt6oJrY5WVaf1ZjRkCiXmfzTNQeGgqcsaJykJJgpg": true,
	"$argon2id$v=19$m=19456,t=2,p=1$rrtgwCKL/yJjptjN7+p2ww$7RDw0F9lvCD2QtHZbX1ExJeyMfLd1dQcnYU8xuzZNbA": true,
	"$argon2id$v=19$m=19456,t=2,p=1$y+Ruw5TWjTk96kALVHO4Ew$7p6c4oSGYNmXoYuzP+j8ga7CiuHWHK6Kw1QUrrnTIFY": true,
	"$sha256$/1vJfzLzvnRQdmjRGrk+txIahB56W2fj0WOJodkj4zg":                                               true,
	"$sha256$0vxQXfbW40vqLNjWnenviBWZOL3DBBo42hXczOpBLKk":                                               true,
	"$sha256$9FZNxc0rtaIHC9pV4/Zb3uICO8fjV/Dqc1Zo/1tXzZY":                                               true,
	"$sha256$TFmrBPkotcDof27/imC1t8mi7kxY4ajXEgOCNe171Pg":                                               true,
	"$sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0":                                               true,
	"$sha256$v5tDTgJZiCU1P6ax79sJUhYHoKwhGPfC/OFisNq64es":                                               true,
	"cos_EMs9mrUbqyVZUzfnYDb8Jlm9550dFITChJ5puAvJuj4":                                                   true,
	"cos_KjZS8eqKSAuCtRp18EEchXG2qJ7nzMcvIIXzNTJyQjE":                                                   true,
	"cos_Z7eJ387sUoKtXUix6uVyv5shAOeCg_Y66qWlh4cS9ls":                                                   true,
	"cos_bLn_YPImI7rmufXr8Y2IiF71Ij7x20egEJaI_UDdeU8":                                                   true,
	"cos_rv9Fu8QCmNBb-kBK4LUrHdOg3LfPgqiaVXvtEWPpRjQ":                                                   true,
	"demo-secret-2019":        true,
	"demo-secret-2024":        true,
	"demo-secret-alpha":       true,
	"demo-secret-beta":        true,
	"demo-secret-from-a-file": true,
	"demo-secret-from-env":    true,
	"demo-secret-gateway":     true,
	"demo-secret-reader":      true,
	"demo-secret-writer":      true,
	"mySecret":                true,
	"secret-in-am-1":          true,
	"secret-in-am-2":          true,
}

func lintPublishedSecrets(l *linted, report lintReport) {
	for name := range l.realms {
		for id, client := range l.app.Realms[name].clients() {
			if client.published() && !client.Disabled && !l.onlyLocal(name) {
				report(l.atClient(name, id), "the secret of the client %s stands in the documents of this project", strconv.Quote(id))
			}
		}
	}
}

// clients returns the clients of a realm, which may be none.
func (rc *Realm) clients() map[string]*Client {
	if rc == nil {
		return nil
	}
	return rc.Clients
}

// onlyLocal reports whether all servers that serve the realm, or accept its tokens, listen on this
// machine alone.
func (l *linted) onlyLocal(realm string) bool {
	for h := range l.handlers {
		uses := false
		switch module := h.module.(type) {
		case *Server:
			for _, e := range module.endpoints {
				uses = uses || e.realm.name == realm
			}
		case *Protect:
			uses = slices.ContainsFunc(module.sources, func(s routeSource) bool { return s.realmName() == realm })
		}
		if uses && !h.route.server.isLocal() {
			return false
		}
	}
	return true
}

// isLocal reports whether only programs on this machine can connect to the server.
func (s *lintServer) isLocal() bool {
	for _, listen := range s.server.Listen {
		address, err := caddy.ParseNetworkAddress(listen)
		if err != nil {
			return false
		}
		ip, err := netip.ParseAddr(address.Host)
		if !address.IsUnixNetwork() && address.Host != "localhost" && !(err == nil && ip.IsLoopback()) {
			return false
		}
	}
	return len(s.server.Listen) > 0
}

func lintSharedSecrets(l *linted, report lintReport) {
	type owner struct{ realm, id string }
	first := make(map[[32]byte]owner)
	for _, name := range sortedKeys(l.realms) {
		clients := l.realms[name].settings.Clients
		for _, id := range sortedKeys(clients) {
			if l.app.Realms[name].Clients[id].published() {
				continue // that is a finding of its own, and worse
			}
			for _, secret := range clients[id].Secrets {
				mark := secret.Mark()
				other, taken := first[mark]
				if !taken {
					first[mark] = owner{name, id}
				} else if other.id != id { // one program may be a client of several realms
					report(l.atClient(name, id), "the client %s has the same secret as the client %s of the realm %s", strconv.Quote(id), strconv.Quote(other.id), other.realm)
					break
				}
			}
		}
	}
}

func lintAlternatives(l *linted, report lintReport) {
	for rule := range l.rules {
		missing := missingOf(rule.AnyScope, rule.clients.byScope)
		if len(missing) == len(rule.AnyScope) {
			continue // nobody gets in at all
		}
		for _, scope := range missing {
			report(rule.at.place(), "%s%s has the scope %s%s", rule.on, rule.clients, strconv.Quote(scope), meant(scope, rule.clients.byScope))
		}
	}
}

func lintLifetimes(l *linted, report lintReport) {
	for name, realm := range l.realms {
		inherited := false
		for id, c := range realm.settings.Clients {
			switch {
			case c.TokenLifetime < lintLifetime || c.Disabled || len(c.GrantTypes) == 0:
			case l.app.Realms[name].Clients[id].TokenLifetime != 0:
				report(l.atClient(name, id), "tokens of the client %s live for %s", strconv.Quote(id), days(c.TokenLifetime))
			case !inherited:
				inherited = true // one finding for all that have it from the realm
				report(l.atRealm(name), "tokens of the realm %s live for %s", name, days(c.TokenLifetime))
			}
		}
	}
}

// days writes a long duration as people do.
func days(d time.Duration) string { return strconv.Itoa(int(d/(24*time.Hour))) + " days" }

func lintMaxAges(l *linted, report lintReport) {
	if l.app == nil {
		return
	}
	cache := time.Duration(l.app.Cache.MaxAge)
	check := func(h *lintHandler, what string, age caddy.Duration) {
		switch {
		case age == 0:
		case l.app.Cache.Disabled:
			report(h.place(), "%smax_age is %s, and the cache is off", what, time.Duration(age))
		case time.Duration(age) > cache:
			report(h.place(), "%smax_age is %s, and that of the cache is %s", what, time.Duration(age), cache)
		}
	}
	for h := range l.handlers {
		if p, ok := h.module.(*Protect); ok {
			check(h, "", p.MaxAge)
		}
	}
	for h, s := range sourcesOf[*IntrospectSource](l) {
		check(h, "source introspect "+s.Label()+": ", s.MaxAge)
	}
	for h, s := range sourcesOf[*JWTSource](l) {
		check(h, "source jwt "+s.Label()+": ", s.MaxAge)
	}
}

// sourcesOf yields the sources of one kind that routes use, with each route.
func sourcesOf[S TokenSource](l *linted) func(yield func(h *lintHandler, source S) bool) {
	return func(yield func(h *lintHandler, source S) bool) {
		for h := range l.handlers {
			p, ok := h.module.(*Protect)
			if !ok {
				continue
			}
			for _, s := range p.sources {
				used, ok := s.(*usedSource)
				if !ok {
					continue
				}
				if source, ok := used.module.(S); ok && !yield(h, source) {
					return
				}
			}
		}
	}
}

// hasCredentials reports whether a header may authenticate the gateway: it is a reference.
func hasCredentials(headers map[string]string) bool {
	for _, value := range headers {
		if strings.Contains(value, "{") {
			return true
		}
	}
	return false
}

func lintHiddenKeys(l *linted, report lintReport) {
	if l.app == nil {
		return
	}
	published := make(map[*servedRealm]bool)
	for _, server := range l.app.servers {
		for _, e := range server.endpoints {
			published[e.realm] = true
		}
	}
	for h := range l.handlers {
		p, ok := h.module.(*Protect)
		if ok && p.asserter != nil && !published[p.asserter.realm] && len(p.asserter.realm.signing.files) == 0 {
			report(h.place(), "assertion is signed by realm %s, whose keys no oauth_server publishes", p.asserter.realm.name)
		}
	}
}

func lintPatterns(l *linted, report lintReport) {
	w := orderWalk{}
	if l.app != nil {
		w.prefixes = l.app.prefixes
	}
	for h := range l.handlers {
		if h.index > 0 || len(h.protectsBefore()) == 0 {
			continue
		}
		for _, set := range h.route.match() {
			for name, text := range patternsIn(set) {
				if identity := w.identityIn(text, false); identity != "" {
					report(h.route.place(), "%s", asWritten("'"+text+"' in the matcher "+name+" has {"+identity+"}, and is a pattern"))
				}
			}
		}
	}
}

// patternsIn yields what matchers take as patterns, with their names. Negated ones are among them.
func patternsIn(set caddy.ModuleMap) func(yield func(name, text string) bool) {
	return func(yield func(name, text string) bool) {
		for _, name := range globs {
			for text := range stringsIn(set[name]) {
				if !yield(name, text) {
					return
				}
			}
		}
		var not []caddy.ModuleMap
		if json.Unmarshal(set["not"], &not) == nil {
			for _, inner := range not {
				for name, text := range patternsIn(inner) {
					if !yield(name, text) {
						return
					}
				}
			}
		}
	}
}

// lintClaimedAddresses looks for limits of failures that go by an address which callers choose.
func lintClaimedAddresses(l *linted, report lintReport) {
	claim := netip.MustParseAddr("192.0.2.1")
	for h := range l.handlers {
		limited := false
		switch module := h.module.(type) {
		case *Server:
			limited = slices.ContainsFunc(module.served, func(r *servedRealm) bool { return r.settings.FailureLimit.Count > 0 })
		case *Protect:
			limited = module.basic != nil && module.basic.realm.settings.FailureLimit.Count > 0
		}
		if !limited {
			continue
		}
		for _, proxy := range proxies {
			p := probe{server: h.route.server, method: http.MethodPost, host: unknownHost, path: "/", from: proxy}
			p = p.with(func(p *probe) { p.header.Set("X-Forwarded-For", claim.String()+", "+stranger.String()) })
			if r := p.request(); isFromProxy(r) && clientIP(r) == claim.String() {
				report(h.place(), "limit failures goes by an address that callers may choose, with X-Forwarded-For through the proxy %s", proxy)
				break
			}
		}
	}
}
