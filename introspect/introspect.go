// Package introspect answers one question: what does this token mean?
//
// A [Source] determines the [Facts] of a token: from a local store, from a remote
// RFC 7662 endpoint, or from a signature. A [Cache] stands in front of any number of
// sources and keeps facts for a while. Whether those facts let a request pass is the
// caller's decision, made anew for every request. Decisions are never cached.
//
// The package knows nothing of Caddy or of the authorization server in this repository,
// so any Go program can import it to protect itself.
package introspect

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"time"
)

// TokenID is the SHA-256 digest of a token. It identifies the token without giving it
// away: stores, caches and logs see only the ID. It is an array rather than a slice, so
// that appending to one key can never change another.
type TokenID [sha256.Size]byte

// IDOf returns the ID of exactly this string. Nothing is trimmed or decoded first: two
// spellings of one token are two tokens.
func IDOf(token string) (id TokenID) {
	// On the stack, since every request comes through here. Opaque tokens are short; the longer buffer
	// is for JWTs, piece by piece, and costs those nothing.
	if len(token) <= 128 {
		var buf [128]byte
		return sha256.Sum256(append(buf[:0], token...))
	}
	var buf [1024]byte
	digest := sha256.New()
	for token != "" {
		n := copy(buf[:], token)
		digest.Write(buf[:n])
		token = token[n:]
	}
	digest.Sum(id[:0])
	return id
}

// String returns the ID in hexadecimal. It may be logged, but must not be sent to callers.
func (id TokenID) String() string {
	var text [2 * len(id)]byte
	hex.Encode(text[:], id[:])
	return string(text[:])
}

// MaxTokenLength is the length of the longest token, in bytes, that any source accepts. It is
// what fits into a request's headers with most servers' default settings, and more than an
// issuer needs that puts 200 groups into a token.
const MaxTokenLength = 16 << 10

// Facts describe a token and its state at the time of the lookup. Once returned, they are
// shared between requests: treat every field as read-only, including the slices.
//
// The zero value describes an inactive token.
type Facts struct {
	// Active is "active" of RFC 7662. If it is false, all other fields are empty; see
	// [Facts.Cause].
	Active bool

	// ID is the token's ID.
	ID TokenID

	// ClientID is the client that the token was issued to; Subject is whom the token speaks
	// for. In the client credentials grant they are equal.
	ClientID string
	Subject  string

	// Issuer is the authorization server's issuer identifier, if it has one.
	Issuer string

	// Scopes are the granted scopes in the order of the grant, without duplicates.
	Scopes []string

	// Audience lists the resource servers that the token is meant for (RFC 7519 section
	// 4.1.3). If it is empty, the token is not restricted.
	Audience []string

	// Confirmation is what whoever shows the token must prove to have. Its zero value is that of a
	// bearer token. Who uses the facts must check it.
	Confirmation Confirmation

	// JTI is the ID that the token itself has (RFC 7519 section 4.1.7). It is set for JWTs that the
	// source itself issued; of others it is among the Claims.
	JTI string

	// IssuedAt and Expiry bound the token's life. The token is dead at Expiry, not after it.
	IssuedAt time.Time
	Expiry   time.Time

	// Claims is everything the issuer said, as the text of a JSON object, for encoding/json or
	// [Facts.ClaimValues]. No object in it has two members of the same name. It is empty if the
	// source knows nothing beyond the fields above.
	Claims string

	// Revision belongs to the source that returned the facts: it is what the source wants to
	// see again when it is asked to revise them. It means nothing to anyone else.
	Revision uint64

	// verifiedBy identifies the key that a JWT was verified with; see [JWT.Revise].
	verifiedBy string

	// notYet is when an inactive token becomes usable, if its source knows.
	notYet time.Time

	// cause is why the token is inactive, and was what its facts were; see [Facts.Cause] and
	// [Facts.Was].
	cause Cause
	was   *Facts
}

// HasScope reports whether scope was granted. Scopes are compared as whole strings
// (RFC 6749 section 3.3), without prefixes or wildcards.
func (f *Facts) HasScope(scope string) bool { return slices.Contains(f.Scopes, scope) }

// HasAudience reports whether the token names audience, compared byte for byte. A token
// without an audience names none.
func (f *Facts) HasAudience(audience string) bool { return slices.Contains(f.Audience, audience) }

// inactive is the answer for every token that is not good for a reason that nobody knows.
var inactive = &Facts{}

// Inactive returns the facts of a token that is not good, if no more is known. If there is
// more, [InactiveBecause] says it to logs.
func Inactive() *Facts { return inactive }

// Source determines what tokens mean. It may have further abilities, which a [Cache] in front
// of it uses: [Screener], [Explainer], [Reviser], [Doubter], [Coherent] and [Inquirer].
type Source interface {
	// Lookup reports what token means now. For a token that is unknown, malformed, expired or
	// revoked it returns Inactive or InactiveBecause and a nil error: "no" is an answer. An error means that the
	// source could not find out; the caller must then answer 503, and never that the token is
	// bad.
	//
	// Lookup is safe for concurrent use. It may block on I/O, but not beyond the end of ctx.
	// The facts it returns never change.
	Lookup(ctx context.Context, token Token) (*Facts, error)
}

// Screener is an optional ability of a [Source]: to tell by computation alone that a token
// can't be one of its own.
type Screener interface {
	// Screen reports whether looking up token can be worthwhile. It does no I/O, takes
	// microseconds, and is called on every request, before the cache is consulted. False is
	// final: the token is inactive. So garbage costs neither a lookup nor a cache entry.
	//
	// Screen returns the same token, with what it found out noted in it for the Lookup that may
	// follow. It takes and returns a value, because a pointer would move every token to the heap.
	Screen(token Token) (Token, bool)
}

// Reviser is an optional ability of a [Source]: to bring earlier facts up to date with state
// that it holds in memory, such as a client that a new configuration disables.
type Reviser interface {
	// Revise returns what facts amount to now: the same pointer if nothing changed, other
	// facts if something did. It is called for every answer, cached or fresh, so it must be
	// cheap. It must not block, and must not change its argument.
	Revise(facts *Facts) *Facts
}

// Doubter is an optional ability of a [Source]: to demand a new lookup of facts that it
// returned earlier, because of what it has learned since.
type Doubter interface {
	// Doubts reports whether cached facts must be looked up again, as if they were not cached.
	// It is called for every answer from the cache, so it must be cheap and must not block.
	Doubts(facts *Facts) bool
}

// Coherent is an optional ability of a [Source]: to learn of revocations that happen
// elsewhere and pass them on with [Cache.Forget] and [Cache.Flush]. It is for sources that
// others change too.
type Coherent interface {
	// Coherent reports whether the cache has been told of everything that happened elsewhere
	// up to a moment ago. While it is false, the cache answers nothing from memory. It is
	// called on every lookup, so it must be cheap and must not block.
	Coherent() bool
}

// Immediate is an optional ability of a [Source]: to answer from the memory or the files of this
// process, without waiting for anybody.
type Immediate interface {
	// Immediate reports whether Lookup waits for nobody. Then each caller asks for itself, without a
	// goroutine and without a deadline: that costs less than to share what costs little. So a Lookup
	// that does wait holds its caller.
	Immediate() bool
}

// Inquirer is an optional ability of a [Source]: to answer without leaving a trace, for those
// who want to know what would happen.
type Inquirer interface {
	// Inquire returns what Lookup would, as far as it can without changing what later lookups
	// do or what is counted. What would take more, such as fetching keys, is ErrNotAsked. It
	// may send a request to another server, which then knows of it.
	Inquire(ctx context.Context, token Token) (*Facts, error)
}

// ErrNotAsked means that a question could not be answered without leaving a trace. Nobody was
// asked.
var ErrNotAsked = errors.New("not asked: the answer would take more than a question that changes nothing")

// ErrBusy means that too many lookups are already under way. The token may be good: answer
// 503, so that the client tries again.
var ErrBusy = errors.New("too many token lookups under way")

// ErrOutage is what errors.Is finds in the error of a Source that is unreachable: as far as
// the source can tell, it would have had no answer for any token. Only such errors are
// bridged by [SourceConfig.StaleFor]. An error that a token can provoke must not be one, or
// the holder of a revoked token could keep using it.
var ErrOutage = errors.New("token source is unreachable")

// ErrClosed is returned by lookups after the cache has been closed.
var ErrClosed = errors.New("token cache is closed")
