package caddyoauth

import (
	"encoding/json"
	"fmt"
	"iter"
	"mime"
	"strconv"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/keys"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// Answers of the introspection endpoint as signed JWTs (RFC 9701), in realms that sign. The caller
// can prove to others what it was told.

const (
	typIntrospection  = "token-introspection+jwt" // RFC 9701 section 5
	mediaJSON         = "application/json"
	mediaForm         = "application/x-www-form-urlencoded"
	mediaIntrospected = "application/" + typIntrospection
)

// introspectionClaims are what a signed answer says (RFC 9701 section 5). There must be no sub and no
// exp beside them: with those, the answer could be taken for the token.
type introspectionClaims struct {
	Issuer   string `json:"iss"`
	Audience string `json:"aud"` // the client ID of the caller
	IssuedAt int64  `json:"iat"`
	Answer   any    `json:"token_introspection"`
}

// signedAnswer is an answer that is sent as it is, as a JWT.
type signedAnswer string

// signAnswer signs an answer to a caller.
func (r *servedRealm) signAnswer(caller string, answer any, now time.Time) (signedAnswer, error) {
	var key *keys.JWTs
	if signer := r.signing.introspection.Load(); signer != nil {
		key = (*signer)(now)
	}
	if key == nil {
		return "", fmt.Errorf("%w: no key may sign an introspection answer yet", oauth.ErrUnreachable)
	}
	payload, err := json.Marshal(introspectionClaims{Issuer: r.settings.Issuer, Audience: caller, IssuedAt: now.Unix(), Answer: answer})
	if err != nil {
		return "", err
	}
	jwt, err := key.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("signing an introspection answer: %w", err)
	}
	return signedAnswer(jwt), nil
}

// prefersSigned reports whether the Accept headers of a request ask for a signed answer (RFC 9701
// section 4). They must name its type: what only has `*/*` gets JSON, and so does what prefers that
// (RFC 9110 section 12.5.1). A range that is malformed does not count.
func prefersSigned(accept []string) bool {
	signed := 0.0
	plain, specific := 0.0, -1 // the most specific range that JSON is in counts
	for name, quality := range mediaRanges(accept) {
		at := -1
		switch name {
		case mediaIntrospected:
			signed = max(signed, quality)
		case "*/*":
			at = 0
		case "application/*":
			at = 1
		case mediaJSON:
			at = 2
		}
		if at > specific {
			plain, specific = 0, at
		}
		if at >= 0 && at == specific {
			plain = max(plain, quality)
		}
	}
	return signed > 0 && signed >= plain
}

// mediaRanges yields the media ranges in Accept headers, in lower case, with their qualities.
func mediaRanges(accept []string) iter.Seq2[string, float64] {
	return func(yield func(string, float64) bool) {
		for _, header := range accept {
			for header != "" {
				var one string
				one, header = cutElement(header)
				name, parameters, err := mime.ParseMediaType(one)
				if err != nil {
					continue
				}
				quality := 1.0
				if q, ok := parameters["q"]; ok {
					quality, err = strconv.ParseFloat(q, 64)
				}
				if err != nil || !(quality >= 0 && quality <= 1) { // it may be NaN
					continue
				}
				if !yield(name, quality) {
					return
				}
			}
		}
	}
}

// cutElement cuts a list at its first comma that is not in quotes (RFC 9110 section 5.6).
func cutElement(list string) (element, rest string) {
	quoted := false
	for i := 0; i < len(list); i++ {
		switch c := list[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		case c == ',' && !quoted:
			return list[:i], list[i+1:]
		}
	}
	return list, ""
}
