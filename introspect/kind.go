package introspect

import "strings"

// Servers sign tokens of several kinds with one key: access tokens, refresh tokens, ID
// tokens, logout tokens. RFC 9068 tells them apart by the header's typ. Servers that predate
// it, or ignore it, use claims.

var (
	// kindMembers are the claims in which servers name a token's kind: Keycloak, Cognito and
	// Hydra, RFC 6749, ForgeRock AM, Casdoor, Oracle, Curity.
	kindMembers = []string{"typ", "token_use", "token_type", "tokenName", "tokenType", "tok_type", "purpose"}
	// accessKinds are the names for an access token, or for any token; see kindWord.
	accessKinds = map[string]bool{"access": true, "at": true, "at+jwt": true, "bearer": true, "jwt": true}
	// otherKinds are the names for other kinds.
	otherKinds = map[string]bool{
		"refresh": true, "rt": true, "offline": true, "id": true, "it": true, "logout": true, "session": true,
		"code": true, "authcode": true, "authorizationcode": true, "devicecode": true,
	}
	// otherMembers occur only in tokens of other kinds: OpenID Connect Core section 3.1.3.6 and
	// Financial-grade API (ID tokens), RFC 8417 (security events, logouts), RFC 9701.
	otherMembers = []string{"at_hash", "c_hash", "s_hash", "events", "token_introspection"}
)

// otherKind reports whether claims belong to something other than an access token. A kind
// that they name must be a known name for an access token, unless something else vouches for
// the token, as the header's typ does: then it is enough that the claims don't contradict.
// Members that are null count as absent.
func otherKind(claims map[string]any, bound Confirmation, vouched bool) bool {
	for _, name := range otherMembers {
		if claims[name] != nil {
			return true
		}
	}
	for _, name := range kindMembers {
		value := claims[name]
		if value == nil {
			continue
		}
		word, ok := kindWord(value)
		if word == "dpop" && name == "token_type" && bound.Key != "" { // RFC 9449 section 6.2
			continue
		}
		if otherKinds[word] || !vouched && !(ok && accessKinds[word]) {
			return true
		}
	}
	// Many servers use "type" for something else.
	word, _ := kindWord(claims["type"])
	return otherKinds[word]
}

// kindWord returns the name of a kind without the differences between servers: access_token,
// access-token, AccessToken and urn:ietf:params:oauth:token-type:access_token are all access.
func kindWord(value any) (word string, ok bool) {
	if word, ok = value.(string); !ok {
		return "", false
	}
	word = strings.ReplaceAll(strings.ReplaceAll(strings.ToLower(word), "_", ""), "-", "")
	word = strings.TrimPrefix(strings.TrimPrefix(word, "urn:ietf:params:oauth:tokentype:"), "application/")
	return strings.TrimSuffix(word, "token"), true
}
