package introspect

import (
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"
	"unicode"
)

// Claims are kept as the text they came in and read in place: decoded, 64 KiB of JSON take
// up to 2 MB, and callers decide how much of it a cache holds.

// ClaimValues returns the values of a claim as text. A string, number or boolean has one
// value, a list of them has several. The values of an object are the names of its members,
// except those that are false or null. Anything else has none, and neither has a list or an
// object with more than a thousand values.
//
// name is a member of Claims, or a path into objects with dots between the names, as in
// realm_access.roles. The names themselves may contain dots: at each level the longest
// member name that name starts with is tried first, then the next shorter one. A member that
// is null counts as absent.
//
// client_id, sub, iss, aud and scope come from the corresponding fields of Facts; scope has
// one value per scope.
func (f *Facts) ClaimValues(name string) []string {
	values, _ := f.claim(name)
	return values
}

// ClaimText returns a claim as one text, as for a header, with commas between the values of a
// list or an object. It leaves out values that a header's reader would misread: one that
// contains a comma, if the claim can have several values, even if there is only one; one with
// a control character; and one that starts or ends with a space, which would be lost.
func (f *Facts) ClaimText(name string) string {
	values, several := f.claim(name)
	odd := func(v string) bool {
		return several && strings.Contains(v, ",") || v != strings.TrimSpace(v) || strings.ContainsFunc(v, unicode.IsControl)
	}
	if slices.ContainsFunc(values, odd) {
		values = slices.DeleteFunc(slices.Clone(values), odd)
	}
	return strings.Join(values, ",")
}

// claim returns the values of a claim, and whether such a claim can have several.
func (f *Facts) claim(name string) (values []string, several bool) {
	one := func(s string) ([]string, bool) {
		if s == "" {
			return nil, false
		}
		return []string{s}, false
	}
	switch name {
	case "client_id":
		return one(f.ClientID)
	case "sub":
		return one(f.Subject)
	case "iss":
		return one(f.Issuer)
	case "aud":
		return f.Audience, true
	case "scope":
		return f.Scopes, true
	}
	value, _ := findClaim(f.Claims, name)
	several = strings.HasPrefix(value, "[") || strings.HasPrefix(value, "{")
	for v := range claimValues(value) {
		if len(values) == maxNames {
			return nil, several
		}
		values = append(values, v)
	}
	return values, several
}

// findClaim returns the JSON text of the claim that name leads to in object, unless it is
// null. It scans each object on the path once: only one path leads to an object, so trying
// shorter names does not multiply the work.
func findClaim(object, name string) (value string, ok bool) {
	type way struct{ object, rest string }
	var few [4]way
	ways := few[:0]
	for member, value := range jsonMembers(object) {
		rest, begins := strings.CutPrefix(name, member)
		switch {
		case !begins || value == "null":
		case rest == "":
			return value, true
		case rest[0] == '.' && value[0] == '{':
			ways = append(ways, way{value, rest[1:]})
		}
	}
	slices.SortFunc(ways, func(a, b way) int { return len(a.rest) - len(b.rest) })
	for _, w := range ways {
		if value, ok := findClaim(w.object, w.rest); ok {
			return value, true
		}
	}
	return "", false
}

// claimValues returns the values of a claim; see Facts.ClaimValues.
func claimValues(value string) iter.Seq[string] {
	return func(yield func(string) bool) {
		switch {
		case strings.HasPrefix(value, "["):
			for element := range jsonElements(value) {
				if text, ok := scalarText(element); ok && !yield(text) {
					return
				}
			}
		case strings.HasPrefix(value, "{"):
			for name, member := range jsonMembers(value) {
				if member != "null" && member != "false" && !yield(name) {
					return
				}
			}
		default:
			if text, ok := scalarText(value); ok {
				yield(text)
			}
		}
	}
}

// scalarText returns a string, number or boolean as text.
func scalarText(value string) (string, bool) {
	switch {
	case value == "" || value == "null" || value[0] == '{' || value[0] == '[':
		return "", false
	case value[0] == '"':
		return stringText(value), true
	}
	return value, true
}

// maxNames is the maximum number of scopes of a token, of its audiences, and of the values of
// a claim: every request searches them. A token with more scopes or audiences is refused.
const maxNames = 1000

// clientClaims name the client unless the configuration says otherwise. client_id is the name
// in RFC 7662 and RFC 9068, azp that in OpenID Connect (Keycloak, Entra ID v2, Auth0,
// Google). If a token has both, they must agree. appid (Entra ID v1) and cid (Okta) are the
// names of a single vendor each, and other issuers may mean something else by them, so they
// count only in the absence of the first two.
var clientClaims = [][]string{{"client_id", "azp"}, {"appid", "cid"}}

// clientOf returns the client that claims name: by the first of names that is present or, if
// there are no names, by clientClaims. It fails if the claim is neither a string nor a whole
// number, or if two claims that count name different clients.
func clientOf(claims string, names []string) (client string, ok bool) {
	ways := clientClaims
	if len(names) > 0 {
		ways = nil
		for _, name := range names {
			ways = append(ways, []string{name})
		}
	}
	for _, equals := range ways {
		for _, name := range equals {
			value, _ := findClaim(claims, name)
			if value == "" {
				continue
			}
			text := value
			switch {
			case value[0] == '"':
				text = stringText(value)
			case value[0] < '0' || value[0] > '9' || strings.ContainsAny(value, ".eE"): // not a whole number, as databases use for names
				return "", false
			}
			if client != "" && text != "" && text != client {
				return "", false
			}
			client = cmp.Or(client, text)
		}
		if client != "" {
			break
		}
	}
	return client, true
}

// scopeClaims hold the scopes unless the configuration says otherwise: in RFC 7662 and
// RFC 9068, and with Entra ID and Okta.
var scopeClaims = []string{"scope", "scp"}

// scopesOf returns the scopes in the first of names that is present or, if there are no names,
// of scopeClaims: a string with spaces, a list of strings or, only if names are given, an
// object with the scopes as member names. It leaves out scopes with characters that RFC 6749
// section 3.3 does not allow.
func scopesOf(claims string, names []string) (scopes []string, ok bool) {
	objects := len(names) > 0
	if !objects {
		names = scopeClaims
	}
	var value string
	for _, name := range names {
		if value, ok = findClaim(claims, name); ok {
			break
		}
	}
	if !ok {
		return nil, true
	}
	var candidates iter.Seq[string]
	switch {
	case value[0] == '"':
		candidates = strings.SplitSeq(stringText(value), " ")
	case value[0] == '[':
		for element := range jsonElements(value) {
			if element[0] != '"' {
				return nil, false
			}
		}
		candidates = claimValues(value)
	case value[0] == '{' && objects:
		candidates = claimValues(value)
	default:
		return nil, false
	}
	seen := make(map[string]bool)
	n := 0
	for scope := range candidates {
		if n++; n > maxNames {
			return nil, false
		}
		if scope == "" || seen[scope] || strings.ContainsFunc(scope, noScopeCharacter) {
			continue
		}
		seen[scope] = true
		scopes = append(scopes, strings.Clone(scope)) // so that it doesn't hold on to the whole line
	}
	return scopes, true
}

// noScopeCharacter reports whether c can't be part of a scope (RFC 6749 section 3.3). A scope
// with a space in it would become two as soon as somebody joins them.
func noScopeCharacter(c rune) bool { return c < 0x21 || c > 0x7e || c == '"' || c == '\\' }

// checkClaimNames checks the claim names of a configuration.
func checkClaimNames(setting string, names []string) error {
	if slices.Contains(names, "") {
		return fmt.Errorf("%s contains an empty name", setting)
	}
	return nil
}

// texts returns a string as a list of one, and a list of at most maxNames strings as it is.
func texts(value any) ([]string, bool) {
	switch value := value.(type) {
	case string:
		return []string{value}, true
	case []any:
		if len(value) > maxNames {
			return nil, false
		}
		list := make([]string, len(value))
		for i, element := range value {
			s, ok := element.(string)
			if !ok {
				return nil, false
			}
			list[i] = s
		}
		return list, true
	}
	return nil, false
}

// nameText returns a name as text. Databases turn names into whole numbers.
func nameText(value any) (string, bool) {
	switch value := value.(type) {
	case string:
		return value, true
	case json.Number:
		return value.String(), !strings.ContainsAny(value.String(), ".eE")
	}
	return "", false
}
