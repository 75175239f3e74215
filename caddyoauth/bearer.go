package caddyoauth

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// bearer is who sends a request: its token, and what is known of it. It travels in the
// request's context, where placeholders and logs can't reach the token.
type bearer struct {
	// token remembers what has been read of it, also for handlers behind this one. Only the
	// request's own goroutine touches it.
	token introspect.Token
	facts *introspect.Facts
	realm string // of this gateway; empty for tokens from elsewhere
	// dpop is set if the token came by the scheme DPoP.
	dpop *dpopShown
	// basic is set if there is no token, but Basic credentials.
	basic *basicCaller

	// scope is what headers and placeholders say; see introduce.
	scope string
	// values is the memory of the identity headers' values. Handlers behind may change them in
	// place, so nothing else is read from it.
	values [4]string

	// assertion is what the backend is told, if by tells it one; nil for questions.
	assertion *assertion

	// by is the handler that let the request in, and rule the rule of it that did. earlier is the
	// bearer that a handler before it let in, nil if there was none; before is set if it let
	// somebody unnamed pass.
	by      *Protect
	rule    *access.Rule
	earlier *bearer
	before  *unnamed
	// last is the bearer that the last of several handlers let in. Only the first bearer of a
	// request has it, and only if there are others.
	last *bearer

	// context is the request's context, from where the bearer is let in.
	context bearerContext
}

// bearerContext is a context with a bearer in it. It is part of the bearer, since one from
// context.WithValue would take memory of its own for each request.
type bearerContext struct {
	context.Context //nolint:containedctx // this is a context, and it ends with its parent
	bearer          *bearer
}

// Value implements context.Context.
func (c *bearerContext) Value(key any) any {
	if key == (bearerCtxKey{}) {
		return c.bearer
	}
	return c.Context.Value(key)
}

// String says what contexts of Go say.
func (c *bearerContext) String() string { return fmt.Sprint(c.Context) + ".WithBearer" }

// Format implements fmt.Formatter: with some verbs, a context that is printed would show the token.
func (c *bearerContext) Format(f fmt.State, _ rune) { io.WriteString(f, c.String()) } //nolint:errcheck // as in fmt

// dpopShown is what comes with a token by the scheme DPoP.
type dpopShown struct {
	// proof is there once it was found to be good.
	proof oauth.ShownProof
	// reason is why it was not, and nonce what the next one must have.
	reason, nonce string
}

func (b *bearer) first() *bearer {
	for b.earlier != nil {
		b = b.earlier
	}
	return b
}

type bearerCtxKey struct{}

// FactsFromContext returns the facts of the token with which oauth_protect let a request
// in, for other Caddy modules. For Basic credentials these are the facts of the best token that
// their client could fetch, without an ID, a time of issue, and an end. The facts are shared between requests and read-only.
func FactsFromContext(ctx context.Context) (*introspect.Facts, bool) {
	if b, ok := ctx.Value(bearerCtxKey{}).(*bearer); ok {
		return b.facts, true
	}
	return nil, false
}

// tokenVerdict is what bearerToken finds in a request.
type tokenVerdict int

const (
	tokenPresent   tokenVerdict = iota
	tokenMissing                // no credentials for us
	tokenMalformed              // the header's structure is broken
	tokenInvalid                // one token, which no server can have issued
	tokenTooLong                // one token, too long for any server to have issued it
)

// bearerToken takes the token from the lines of the Authorization header (RFC 6750 section
// 2.1). It looks nowhere else: not in the query, the body or a cookie.
func bearerToken(lines []string) (string, tokenVerdict) { return tokenBy("bearer", lines) }

// tokenBy does it for any scheme, in small letters.
func tokenBy(scheme string, lines []string) (string, tokenVerdict) {
	switch len(lines) {
	case 0:
		return "", tokenMissing
	case 1:
	default:
		// Nobody knows which of them the backend would believe.
		return "", tokenMalformed
	}
	line := lines[0]
	if len(line) < len(scheme) || !strings.EqualFold(line[:len(scheme)], scheme) {
		return "", tokenMissing
	}
	rest := line[len(scheme):]
	if rest != "" && rest[0] != ' ' && rest[0] != '\t' && rest[0] != ',' {
		return "", tokenMissing // another scheme, which only begins like this one
	}
	token := strings.Trim(rest, " ")
	// Almost every request ends here: none of these characters is among those that are refused below.
	if rest != "" && rest[0] == ' ' && len(token) <= introspect.MaxTokenLength && isB64Token(token) {
		if len(rest) > len(token)+1 {
			token = strings.Clone(token) // events and lookups may keep it, and would keep the spaces
		}
		return token, tokenPresent
	}
	switch {
	case token == "" || rest[0] != ' ' || strings.ContainsAny(token, " \t,"):
		return "", tokenMalformed
	case len(token) > introspect.MaxTokenLength:
		return "", tokenTooLong
	}
	return "", tokenInvalid
}

// isB64Token reports whether s is a b64token (RFC 6750 section 2.1):
// 1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"=".
func isB64Token(s string) bool {
	s = strings.TrimRight(s, "=")
	for i := range len(s) {
		if !b64TokenChar[s[i]] {
			return false
		}
	}
	return s != ""
}

var b64TokenChar = func() (is [256]bool) {
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/" {
		is[c] = true
	}
	return is
}()
