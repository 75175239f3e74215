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

// Claims are kept as the text they came in, and read where they stand: decoded, 64 KiB of
// JSON take up to 2 MB, and a cache holds what many callers can make it hold.

// ClaimValues returns the values of a claim as text: a string, number or boolean is one
// value, a list of such has several, an object has the names of its members as values,
// apart from members that are false or null. Anything else has none, and neither has a list
// or an object with more than a thousand.
//
// name is a member of Claims, or a way into objects with dots between the names, as in
// realm_access.roles. Names may have dots themselves. So at each level the longest name
// counts that name begins with; if the way does not go on from there, the next shorter
// one. A member that is null is not there.
//
// client_id, sub, iss, aud and scope come from the fields of their meaning; scope has a
// value for each scope.
func (f *Facts) ClaimValues(name string) []string {
	values, _ := f.claim(name)
	return values
}

// ClaimText is a claim as one text, as in a header: the values of a list or an object have
// commas between them. What would be read as something else there is left out: one of
// several with a comma in it, also if it is alone in its list, and any with a control
// character, or with a space at an end, which is lost on the way.
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

// claim returns the values of a claim, and whether it is one that can have several.
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

// findClaim returns the JSON text of the claim that name leads to in object, which is not
// null. It goes through each object on the way once: only one way leads to an object, so
// going back to shorter names does not multiply the work.
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

// claimValues are the values of a claim; see Facts.ClaimValues.
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

// scalarText is a string, number or boolean as text.
func scalarText(value string) (string, bool) {
	switch {
	case value == "" || value == "null" || value[0] == '{' || value[0] == '[':
		return "", false
	case value[0] == '"':
		return stringText(value), true
	}
	return value, true
}

// maxNames bounds the scopes of a token, its audiences, and the values of a claim: they are
// looked through on each request. A token with more scopes or audiences is refused.
const maxNames = 1000

// clientClaims name the client, where no configuration says which: client_id is the name of
// RFC 7662 and RFC 9068, azp that of OpenID Connect (Keycloak, Entra ID v2, Auth0, Google).
// Where a token has both, they must agree. appid (Entra ID v1) and cid (Okta) are the names
// of one vendor each, and other issuers may mean something else by them, so they count only
// where neither of the others is there.
var clientClaims = [][]string{{"client_id", "azp"}, {"appid", "cid"}}

// clientOf returns the client that claims name: by the first of names that is there or, without
// names, by clientClaims. It fails if the claim is neither a string nor a whole number, or if
// two claims that count name different clients.
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
			case value[0] < '0' || value[0] > '9' || strings.ContainsAny(value, ".eE"): // not what databases make of a name
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

// scopeClaims have the scopes, where no configuration says which: RFC 7662 and RFC 9068;
// Entra ID and Okta.
var scopeClaims = []string{"scope", "scp"}

// scopesOf returns the scopes in the first of names that is there or, without names, of
// scopeClaims: a string with spaces, a list of strings, or, where a configuration asks for it, an object
// with scopes as names. A scope of other characters than RFC 6749 section 3.3 has is left out.
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
		scopes = append(scopes, strings.Clone(scope)) // not the whole line with each
	}
	return scopes, true
}

// noScopeCharacter reports whether c is none of a scope's (RFC 6749 section 3.3). What has
// one is left out: with a space in it, it would be two scopes as soon as somebody joins
// them.
func noScopeCharacter(c rune) bool { return c < 0x21 || c > 0x7e || c == '"' || c == '\\' }

// checkClaimNames judges the names of a configuration.
func checkClaimNames(setting string, names []string) error {
	if slices.Contains(names, "") {
		return fmt.Errorf("%s has an empty name", setting)
	}
	return nil
}

// texts returns a string as a list of one, and a list of strings, at most maxNames.
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

// nameText is a name, which databases make a whole number of, as text.
func nameText(value any) (string, bool) {
	switch value := value.(type) {
	case string:
		return value, true
	case json.Number:
		return value.String(), !strings.ContainsAny(value.String(), ".eE")
	}
	return "", false
}
