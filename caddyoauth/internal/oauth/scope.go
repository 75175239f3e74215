package oauth

import (
	"errors"
	"slices"
	"strings"
)

// Bounds on what one request may ask for.
const (
	maxScopes     = 100
	maxScopeBytes = 4096
)

// ParseScope splits a scope parameter by the grammar of RFC 6749 section 3.3: scope tokens with
// exactly one space between them. It drops duplicates and keeps the order. An empty string is
// an error; a request without a scope is for the caller to deal with.
func ParseScope(s string) ([]string, error) {
	if len(s) > maxScopeBytes {
		return nil, errors.New("scope is longer than 4096 bytes")
	}
	var scopes []string
	for token := range strings.SplitSeq(s, " ") {
		if !ValidScope(token) {
			return nil, errors.New("scope has an empty element or a character that RFC 6749 does not allow")
		}
		if slices.Contains(scopes, token) {
			continue
		}
		if len(scopes) == maxScopes {
			return nil, errors.New("scope has more than 100 elements")
		}
		scopes = append(scopes, token)
	}
	return scopes, nil
}

// ValidScope reports whether s is one scope token: 1*( %x21 / %x23-5B / %x5D-7E ).
func ValidScope(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x21 || c > 0x7e || c == '"' || c == '\\' {
			return false
		}
	}
	return s != ""
}

// grantScopes returns the scopes that a request for scope gets: all that it asks for, or none
// and a refusal. Nothing is ever silently added or left out.
func (c *Client) grantScopes(scope string) ([]string, error) {
	if scope == "" {
		if len(c.DefaultScopes) == 0 {
			return nil, &Error{Code: CodeInvalidScope, Description: NoScope}
		}
		return c.DefaultScopes, nil
	}
	requested, err := ParseScope(scope)
	if err != nil {
		return nil, &Error{Code: CodeInvalidScope, Description: MalformedScope}
	}
	if !containsAll(c.Scopes, requested) {
		refused := slices.DeleteFunc(requested, func(scope string) bool { return slices.Contains(c.Scopes, scope) })
		return nil, &Error{Code: CodeInvalidScope, Description: "the client may not have a scope that was requested", Scopes: refused}
	}
	return requested, nil
}
