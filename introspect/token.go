package introspect

import (
	"encoding/base64"
	"encoding/json"
	"strings"
)

// Token is a token on its way through the sources that may know it, together with what has
// been found out about it so far. It is created once per request, so that no source decodes
// or computes what an earlier step already has.
//
// A Token is a value, and copies are independent of each other: what a method remembers, it
// remembers in its receiver alone. So a copy may be handed to another goroutine and may
// outlive the request.
type Token struct {
	text string

	idKnown bool
	id      TokenID

	issuerRead bool
	cache      cacheAnswer // beside the bool, where it takes no room
	issuer     string

	owner any
	note  int64
}

// NewToken returns the token with exactly this text. It computes nothing yet.
func NewToken(text string) Token { return Token{text: text} }

// Text returns the token itself. It is a secret: don't log it or put it into an error.
func (t Token) Text() string { return t.text }

// ID returns the token's ID; see [IDOf]. The first call computes it, so a token that is refused
// for its form alone costs no digest.
func (t *Token) ID() TokenID {
	if !t.idKnown {
		t.id, t.idKnown = IDOf(t.text), true
	}
	return t.id
}

// String returns the token's ID in hexadecimal, so that a Token that is printed by accident
// gives nothing away.
func (t Token) String() string { return t.ID().String() }

// GoString is like String, for the verb %#v.
func (t Token) GoString() string { return t.String() }

// UnverifiedIssuer returns the issuer that the token claims if it is a signed JWT, or the
// empty string otherwise. Anybody can claim anything: use it only to choose which source to
// ask, and let that source verify the token. The first call decodes the token, which takes
// time and memory in proportion to at most MaxTokenLength; later calls remember the result.
func (t *Token) UnverifiedIssuer() string {
	if !t.issuerRead {
		t.issuer, t.issuerRead = claimedText(t.text, "iss"), true
	}
	return t.issuer
}

// Note remembers a finding about the token for [Token.Noted] with the same owner. There is
// room for one, and the last one counts. The owner is a pointer to what the finding depends
// on, such as the key that verified a MAC, so that nobody takes it for a finding of their own.
func (t *Token) Note(owner any, finding int64) { t.owner, t.note = owner, finding }

// Noted returns the finding that was noted with this owner, if there is one.
func (t Token) Noted(owner any) (finding int64, ok bool) {
	if owner == nil || t.owner != owner {
		return 0, false
	}
	return t.note, true
}

// cacheAnswer is where a [CachedSource] has an answer from; see [Token.Cache].
type cacheAnswer uint8

const (
	cacheHit cacheAnswer = 1 + iota
	cacheNegative
	cacheMiss
	cacheStale
)

// Cache returns where the latest [CachedSource] that was asked about the token had its answer
// from: "hit" for facts and "negative" for a "no" that the cache remembered, "miss" if the source
// was asked, whatever came of it, or "stale" if that was unreachable and older facts were used. It
// is empty if no source had to look.
func (t Token) Cache() string {
	return [...]string{"", "hit", "negative", "miss", "stale"}[t.cache]
}

// claimedText returns a member of a JWT's payload, or the empty string if the token has no such
// payload or the member is not a string.
func claimedText(token, member string) string {
	if !outline(token) {
		return ""
	}
	_, rest, _ := strings.Cut(token, ".")
	payload, _, _ := strings.Cut(rest, ".")
	data, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return ""
	}
	if !json.Valid(data) {
		return ""
	}
	text := ""
	for name, value := range jsonMembers(skipSpace(string(data))) {
		if name != member {
			continue
		}
		// Of several, the last one counts, as for encoding/json. Which one does not matter: such
		// a token is refused once it is verified.
		text = ""
		if value[0] == '"' {
			text = stringText(value)
		}
	}
	return strings.Clone(text) // so that it doesn't hold on to the whole payload
}

// outline reports whether token has three parts, of which the first may be a JSON object in
// base64. An encrypted JWT has five parts. Nothing is split or allocated: a megabyte of dots
// was enough to exhaust parsers that did (CVE-2025-27144, CVE-2025-30204).
func outline(token string) bool {
	return len(token) <= MaxTokenLength && strings.HasPrefix(token, "e") && strings.Count(token, ".") == 2
}
