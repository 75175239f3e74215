// Package introspect answers one question: what does this token mean?
//
// A [Source] finds out the [Facts] of a token: from a local store, from a remote
// RFC 7662 endpoint, from a signature. A [Cache] stands in front of any number of
// sources and remembers facts for a while. Whether a request may pass with those
// facts is the caller's decision, made anew for every request; decisions are never
// cached.
//
// The package knows neither Caddy nor the authorization server in this repository,
// so a Go program that protects itself can import it alone.
package introspect

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"time"
)

// TokenID is the SHA-256 digest of a token. It identifies the token without being
// one: stores, caches and logs see the ID and nothing else. It is an array, not a
// slice, so that nobody can append to somebody else's key.
type TokenID [sha256.Size]byte

// IDOf returns the ID of exactly this token string. Nothing is trimmed or decoded
// first: two spellings of one token are two tokens.
func IDOf(token string) TokenID {
	var buf [128]byte // on the stack: most tokens are short, and this is on every request's way
	return sha256.Sum256(append(buf[:0], token...))
}

// String is the ID in hexadecimal. It may be logged, and is not for answers to callers.
func (id TokenID) String() string { return hex.EncodeToString(id[:]) }

// MaxTokenLength bounds a token, in bytes: a longer one is no source's. It is what fits into
// the headers of a request with servers in their default settings, and more than issuers
// who put 200 groups into a token need.
const MaxTokenLength = 16 << 10

// Facts are what a token says, with its state at the time of the lookup. They are
// shared between requests once returned: treat every field, slices included, as
// read-only.
//
// The zero value is an inactive token.
type Facts struct {
	// Active is RFC 7662's "active". When it is false all other fields are empty.
	Active bool

	// ID is the token's ID.
	ID TokenID

	// ClientID is the client the token was issued to, Subject whom it speaks for. In
	// the client credentials grant they are equal.
	ClientID string
	Subject  string

	// Issuer is the issuer identifier of the authorization server, if it has one.
	Issuer string

	// Scopes are the granted scopes, without duplicates, in the order of the grant.
	Scopes []string

	// Audience holds the resource servers the token is meant for (RFC 7519 section
	// 4.1.3). Empty means that the token was not restricted.
	Audience []string

	// IssuedAt and Expiry bound the token's life. The token is dead at Expiry, not after.
	IssuedAt time.Time
	Expiry   time.Time

	// Claims is all that the token's issuer said: the text of a JSON object, without two members
	// of one name anywhere, for encoding/json or [Facts.ClaimValues]. Empty if the source
	// knows the fields above and nothing more.
	Claims string

	// Revision belongs to the source that found the facts out: what it wants to see again
	// when it is asked to revise them. It means nothing to anybody else.
	Revision uint64

	// verifiedBy is the key that a JWT was verified with; see [JWT.Revise].
	verifiedBy string

	// notYet is, of an inactive token that its source knows, when that may change.
	notYet time.Time
}

// HasScope reports whether scope was granted. Scopes are compared as whole strings
// (RFC 6749 section 3.3): there are no prefixes and no wildcards.
func (f *Facts) HasScope(scope string) bool { return slices.Contains(f.Scopes, scope) }

// HasAudience reports whether the token names audience, compared byte for byte. A
// token without audience names none.
func (f *Facts) HasAudience(audience string) bool { return slices.Contains(f.Audience, audience) }

// inactive is the one answer for every token that is not good.
var inactive = &Facts{}

// Inactive returns the facts of a token that is not good, whatever the reason.
func Inactive() *Facts { return inactive }

// Source finds out what tokens mean.
type Source interface {
	// Lookup reports what token means now. A token that is unknown, malformed, expired
	// or revoked is Inactive and a nil error: "no" is an answer. An error means that
	// the source could not find out, and the caller must answer so (503), never that
	// the token is bad.
	//
	// Lookup is safe for concurrent use. It may block on I/O, no longer than ctx lives.
	// The facts returned are never changed afterwards.
	Lookup(ctx context.Context, token Token) (*Facts, error)
}

// Screener is an optional ability of a Source: to tell by computation alone that a
// token can't be its own.
type Screener interface {
	// Screen reports whether a lookup of token can be worthwhile. It does no I/O, takes
	// microseconds, and is called before the cache is asked, on every request. False settles
	// the matter: the token is inactive. So garbage costs no lookup and no cache entry.
	//
	// It returns the token with what it found out noted in it, for the Lookup that may follow.
	Screen(token Token) (Token, bool)
}

// Reviser is an optional ability of a Source: to bring facts that were found out
// earlier up to date with state that it holds in memory, such as a client that a
// new configuration disables.
type Reviser interface {
	// Revise returns what facts amount to now: the same pointer if nothing changed,
	// other facts if something did. It is called on every answer, from the cache or
	// fresh, so it must be cheap, must not block, and must not change its argument.
	Revise(facts *Facts) *Facts
}

// Doubter is an optional ability of a Source: to call for a new lookup of what it found out
// earlier, by what it has learned since.
type Doubter interface {
	// Doubts reports whether facts from the cache are to be found out anew, as if they were
	// not there. It is called on every answer from memory, so it must be cheap and must not
	// block.
	Doubts(facts *Facts) bool
}

// Coherent is an optional ability of a Source: to learn of revocations that happen
// elsewhere, and to tell the cache with [Cache.Forget] and [Cache.Flush]. It is for
// sources that others change too.
type Coherent interface {
	// Coherent reports whether everything that happened elsewhere up to a moment ago has
	// been told. While it is false the cache answers nothing from memory. It is called
	// on every lookup, so it must be cheap and must not block.
	Coherent() bool
}

// ErrBusy is returned when too many lookups are under way already. The token may be
// good; the caller should answer 503 and have the client try again.
var ErrBusy = errors.New("too many token lookups under way")

// ErrOutage is what errors.Is finds in the error of a Source that is away, as far as it can
// tell: whatever the token, there would have been no answer. Only then is there the grace
// of [SourceConfig.StaleFor]. An error that a token can provoke must not be one, or who holds a
// revoked token could go on with it.
var ErrOutage = errors.New("token source is away")

// ErrClosed is returned by lookups after the cache was closed.
var ErrClosed = errors.New("token cache is closed")
