package caddyoauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/keys"
)

// A backend that can be reached past the gateway can't believe headers: anybody there could send
// them. It can believe a JWT that only the gateway can have signed, for just this backend, a moment
// ago. Whoever lays hands on one can use it for as long as it lives, at any path: it says who is
// calling, and nothing about the request.

// Assertion has the backend told who is calling by a short-lived JWT. The backend verifies it with
// the realm's JWK set, and need not believe headers then.
//
// Its header has `typ` `oauth-assertion+jwt`, so it is no access token anywhere. Its claims are
// `iss`, the realm's issuer; `aud`; `iat` and `exp`; `client_id`, `sub` and `scope`, as far as the
// caller's token has them; `token_iss`, the issuer of that token if it is known; and `realm`, that
// of a client here. It has no `jti`, since several requests get the same one.
type Assertion struct {
	// The header that carries it. Callers can't send it themselves: it is removed from all requests
	// of the configuration, in any spelling. Of several `oauth_protect` with one header, the last
	// that a request meets decides. Default: `X-OAuth-Assertion`.
	Header string `json:"header,omitempty"`

	// Whom it is for: the names of the backend. A backend that refuses assertions for others is safe
	// from those that another backend has got. Required.
	Audience []string `json:"audience,omitempty"`

	// How long it lives, in whole seconds, from `10s` to `1h`, and never longer than the token. Requests
	// get the same one for the first half of that. It ends a token that is revoked no sooner: the
	// gateway refuses the next request, but the backend does not learn why none comes. Default: `60s`.
	Lifetime caddy.Duration `json:"lifetime,omitempty"`

	// The realm that signs it, which must have an issuer and `signing`. Default: the first realm whose
	// tokens the `oauth_protect` accepts; if there is none, the only realm, or `root`.
	Realm string `json:"realm,omitempty"`
}

const (
	defaultAssertionHeader   = "X-OAuth-Assertion"
	defaultAssertionLifetime = caddy.Duration(time.Minute)
	minAssertionLifetime     = 10 * time.Second
	// A key is published for minKeyLife after its last use, and assertions must not outlive that.
	maxAssertionLifetime = minKeyLife

	// typAssertion is the type of assertions. Access tokens have another, so none is ever taken for
	// the other.
	typAssertion = "oauth-assertion+jwt" //nolint:gosec // a type, and no credential
)

// check refuses what no realm or route could make good.
func (a *Assertion) check() error {
	if a == nil {
		return nil
	}
	if len(a.Audience) == 0 {
		return errors.New("assertion needs an audience, the name of the backend: a backend must be able to refuse what was meant for another; add a line such as 'audience https://orders.internal.example.com'")
	}
	if err := conf.CheckAudience("audience", a.Audience); err != nil {
		return fmt.Errorf("assertion: %w", err)
	}
	if err := checkAssertionLifetime(a.Lifetime); err != nil {
		return fmt.Errorf("assertion: %w", err)
	}
	return checkAssertionHeader(a.header())
}

func checkAssertionLifetime(lifetime caddy.Duration) error {
	l := time.Duration(lifetime)
	if l != 0 && (l < minAssertionLifetime || l > maxAssertionLifetime || l%time.Second != 0) {
		return fmt.Errorf("lifetime %s must be whole seconds, from %s to %s", l, minAssertionLifetime, maxAssertionLifetime)
	}
	return nil
}

// header returns the name of the header, as it is configured.
func (a *Assertion) header() string {
	if a.Header == "" {
		return defaultAssertionHeader
	}
	return a.Header
}

func checkAssertionHeader(name string) error {
	switch {
	case !isHeaderName(name) || strings.HasSuffix(name, "-"):
		return fmt.Errorf("assertion %q: the name of a header consists of letters, digits and -, and doesn't end with -", name)
	case isReservedHeader(name), isOneOf(name, everydayNames), isOneOf(name, credentialHeaders):
		return fmt.Errorf("assertion %s: HTTP, proxies or callers need this header themselves; take another, such as %s", name, defaultAssertionHeader)
	}
	return nil
}

// everydayNames are the everydayHeaders, folded.
var everydayNames = func() (names []string) {
	for _, name := range everydayHeaders {
		names = append(names, strings.ToLower(name))
	}
	return names
}()

// checkIdentityHeaders refuses an assertion in a header that tells something else.
func (a *App) checkIdentityHeaders() error {
	for _, prefix := range a.prefixes {
		if !strings.HasSuffix(prefix, "-") {
			continue
		}
		ih, err := newIdentityHeaders(prefix)
		if err != nil {
			return err
		}
		for _, name := range ih.names() {
			if slices.Contains(a.prefixes, strings.ToLower(name)) {
				return fmt.Errorf("assertion %s: this header is one of those by which an oauth_protect tells who is calling; take another, such as %s", name, defaultAssertionHeader)
			}
		}
	}
	return nil
}

// provisionAssertion returns what makes the route's assertions, or nil without the option.
func (p *Protect) provisionAssertion() (*asserter, error) {
	if p.Assertion == nil {
		return nil, nil
	}
	name := p.Assertion.Realm
	if accepted := p.localRealms(); name == "" && len(accepted) > 0 {
		name = accepted[0]
	}
	realm, err := p.app.realm(name)
	if err != nil {
		return nil, fmt.Errorf("assertion: %w", err)
	}
	if realm.signing == nil {
		where := "the oauth block"
		if realm.name != rootRealm {
			where = "its block"
		}
		return nil, fmt.Errorf("assertion: realm %q signs nothing, so it has no key for assertions: add 'signing' to %s, and an issuer if it has none", realm.name, where)
	}
	a := &asserter{header: http.CanonicalHeaderKey(p.Assertion.header()), realm: realm, lifetime: int64(time.Duration(p.Assertion.Lifetime) / time.Second)}
	if a.lifetime == 0 {
		a.lifetime = int64(time.Duration(defaultAssertionLifetime) / time.Second)
	}
	a.claims.Issuer = realm.settings.Issuer
	a.claims.Audience = p.Assertion.Audience
	if len(p.Assertion.Audience) == 1 {
		a.claims.Audience = p.Assertion.Audience[0] // as some libraries want it
	}
	return a, nil
}

// asserter makes a route's assertions. It is safe for concurrent use.
type asserter struct {
	header   string // canonical
	realm    *servedRealm
	lifetime int64           // in seconds
	claims   assertionClaims // what all have in common

	// What has been signed is remembered by what it says, so nothing that changes can be overlooked.
	// young takes what is new. When it has maxAssertions bytes it becomes old, and what was old is
	// forgotten. So at most twice that is remembered, and what is in use stays.
	mu         sync.Mutex
	young, old map[asserted]*assertion
	size       int // of young, in bytes
}

// maxAssertions bounds each of the two parts of a route's memory, in bytes. One caller takes about a
// KiB.
const maxAssertions = 4 << 20

// asserted is what an assertion says of the caller.
type asserted struct {
	realm, issuer, client, subject, scope string
	// ends is when the token does, in unix seconds; 0 if the assertion does before. So a client's
	// tokens share an assertion, unless they end.
	ends int64
}

// assertion is a JWT, once signed.
type assertion struct {
	header string // of the JWT, so also which key signs it
	// In unix seconds. It is used again until last.
	made, last, expiry int64

	sign sync.Once
	text string
	err  error
}

// String keeps the text out of anything that prints the value.
func (*assertion) String() string { return "REDACTED" }

// assertionClaims are the claims of an assertion. Those that say nothing are left out.
type assertionClaims struct {
	Issuer      string `json:"iss"`
	Audience    any    `json:"aud"`
	Subject     string `json:"sub,omitempty"`
	ClientID    string `json:"client_id,omitempty"`
	Scope       string `json:"scope,omitempty"`
	IssuedAt    int64  `json:"iat"`
	Expiry      int64  `json:"exp"`
	Realm       string `json:"realm,omitempty"`
	TokenIssuer string `json:"token_iss,omitempty"`
}

var (
	errNoSigner = errors.New("the realm has no key yet to sign an assertion with")
	errNotUTF8  = errors.New("a name in the token is not UTF-8, and an assertion can't say it")
)

// about returns the assertion about a bearer that is let in at now.
func (a *asserter) about(b *bearer, now time.Time) (*assertion, error) {
	signer := a.realm.signing.assertion.Load()
	if signer == nil {
		return nil, errNoSigner
	}
	jwts := (*signer)(now)
	if jwts == nil {
		return nil, errNoSigner
	}
	f := b.facts
	what := asserted{realm: b.realm, issuer: f.Issuer, client: f.ClientID, subject: f.Subject, scope: b.scope}
	made := now.Unix()
	// What lives as long as the token does could not live longer if it were signed again.
	last, expiry := made+a.lifetime/2, made+a.lifetime
	if ends := f.Expiry.Unix(); !f.Expiry.IsZero() && ends < expiry {
		what.ends, last, expiry = ends, ends, ends
	}
	told := a.remember(&what, jwts.Header(), made, last, expiry)
	told.sign.Do(func() {
		claims := a.claims
		claims.Realm, claims.TokenIssuer = what.realm, what.issuer
		claims.ClientID, claims.Subject, claims.Scope = what.client, what.subject, what.scope
		claims.IssuedAt, claims.Expiry = told.made, told.expiry
		told.text, told.err = claims.signed(jwts)
	})
	return told, told.err
}

// remember returns the assertion that says what under a key, if there is one that is good at made. If
// not, it returns one that is not signed yet.
func (a *asserter) remember(what *asserted, header string, made, last, expiry int64) *assertion {
	a.mu.Lock()
	defer a.mu.Unlock()
	told, isYoung := a.young[*what]
	if !isYoung {
		told = a.old[*what]
	}
	// The clock may have been set back since it was made.
	if told == nil || told.header != header || made < told.made || made >= told.last {
		told = &assertion{header: header, made: made, last: last, expiry: expiry}
	} else if isYoung {
		return told
	}
	if !isYoung {
		if a.young == nil || a.size > maxAssertions {
			a.young, a.old, a.size = make(map[asserted]*assertion), a.young, 0
		}
		a.size += what.size()
	}
	a.young[*what] = told
	return told
}

// size is about what a caller takes in memory, in bytes: its names twice, here and in Base64, and
// what an entry with a signature of RSA has besides.
func (what *asserted) size() int {
	return 3*(len(what.realm)+len(what.issuer)+len(what.client)+len(what.subject)+len(what.scope)) + 1<<10
}

// signed returns the claims as a JWT.
func (c *assertionClaims) signed(jwts *keys.JWTs) (string, error) {
	for _, text := range []string{c.ClientID, c.Subject, c.Scope, c.TokenIssuer} {
		if !utf8.ValidString(text) { // JSON would have another name instead
			return "", errNotUTF8
		}
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	return jwts.Sign(payload)
}

// decide is judge, and makes the assertion for a request that may pass.
func (p *Protect) decide(r *http.Request, span trace.Span, earlier *bearer, authorization, proof []string) (*bearer, access.Decision) {
	b, decision := p.judge(r, span, earlier, authorization, proof)
	if p.asserter == nil || !decision.Allowed || b == nil {
		return b, decision
	}
	var err error
	if b.assertion, err = p.asserter.about(b, time.Now()); err != nil {
		p.trouble().Error("the assertion could not be made", zap.String("realm", p.asserter.realm.name), zap.Error(err))
		return b, access.Decision{Cause: access.CauseOutage}
	}
	return b, decision
}

// assertionsBefore returns the headers with the assertions of handlers before this one, which
// stripping may remove.
func assertionsBefore(earlier *bearer, h http.Header) (told http.Header) {
	for e := earlier; e != nil; e = e.earlier {
		if e.by.asserter == nil {
			continue
		}
		if values := h[e.by.asserter.header]; values != nil {
			if told == nil {
				told = make(http.Header)
			}
			told[e.by.asserter.header] = values
		}
	}
	return told
}

// assert tells the backend who is calling. It does not where the backend would send that back: the
// caller could use it past the gateway, for what the gateway would refuse.
func (p *Protect) assert(r *http.Request, b *bearer) {
	if p.asserter == nil || isOneOf(r.Method, echoes) {
		return
	}
	text := b.assertion.String() // for questions, which sign nothing
	if b.assertion != nil {
		text = b.assertion.text
	}
	r.Header[p.asserter.header] = []string{text} // not shared: handlers behind may change it in place
}

// told says what the option means, in an explanation.
func (a *asserter) told() string {
	audience, _ := a.claims.Audience.([]string)
	if one, ok := a.claims.Audience.(string); ok {
		audience = []string{one}
	}
	return "tells the backend who is calling by a JWT in " + a.header + ", for " + strings.Join(audience, " ")
}

// assertionOption reads
//
//	assertion [<header>] {
//		audience <audience>...
//		lifetime <duration>
//		realm    <name>
//	}
func assertionOption(place **Assertion, realms map[string]*Realm) conf.Option {
	return conf.Func(func(d *caddyfile.Dispenser) error {
		args, err := conf.Args(d, 0, 1)
		if err != nil {
			return err
		}
		a := new(Assertion)
		*place = a
		if len(args) > 0 {
			a.Header = args[0]
			if err := checkAssertionHeader(a.Header); err != nil {
				return d.WrapErr(err)
			}
		}
		return conf.Options{
			"audience": conf.Audience(&a.Audience),
			"lifetime": conf.Duration(&a.Lifetime, checkAssertionLifetime),
			"realm": conf.Text(&a.Realm, func(name string) error {
				_, err := chooseRealm(realms, name)
				return err
			}),
		}.Read(d, "assertion", a.check)
	})
}
