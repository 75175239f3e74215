package introspect

import "strings"

// Servers issue tokens of several kinds under one key: for access, for refreshing, about a
// login, about a logout. RFC 9068 tells them apart by the header's typ. Before it, and
// beside it, there are claims.

var (
	// kindMembers are where servers say what kind a token is: Keycloak, Cognito and Hydra,
	// RFC 6749, ForgeRock AM, Casdoor, Oracle, Curity.
	kindMembers = []string{"typ", "token_use", "token_type", "tokenName", "tokenType", "tok_type", "purpose"}
	// accessKinds are what they then call an access token, or any; see kindWord.
	accessKinds = map[string]bool{"access": true, "at": true, "at+jwt": true, "bearer": true, "jwt": true}
	// otherKinds are what they call others.
	otherKinds = map[string]bool{
		"refresh": true, "rt": true, "offline": true, "id": true, "it": true, "logout": true, "session": true,
		"code": true, "authcode": true, "authorizationcode": true, "devicecode": true,
	}
	// otherMembers are in tokens of another kind alone: OpenID Connect Core section 3.1.3.6 and
	// Financial-grade API (ID tokens), RFC 8417 (security events, logouts), RFC 9701.
	otherMembers = []string{"at_hash", "c_hash", "s_hash", "events", "token_introspection"}
)

// otherKind reports whether claims say that they are those of no access token. Where they
// name a kind it must be known to be one for access, unless something else vouches for it,
// as the header's typ does: then the claims must not contradict. Members that are null are
// not there.
func otherKind(claims map[string]any, vouched bool) bool {
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
		if otherKinds[word] || !vouched && !(ok && accessKinds[word]) {
			return true
		}
	}
	// Many have a type of something else.
	word, _ := kindWord(claims["type"])
	return otherKinds[word]
}

// kindWord is the name of a kind without what differs from server to server: access_token,
// access-token, AccessToken and urn:ietf:params:oauth:token-type:access_token are access.
func kindWord(value any) (word string, ok bool) {
	if word, ok = value.(string); !ok {
		return "", false
	}
	word = strings.ReplaceAll(strings.ReplaceAll(strings.ToLower(word), "_", ""), "-", "")
	word = strings.TrimPrefix(strings.TrimPrefix(word, "urn:ietf:params:oauth:tokentype:"), "application/")
	return strings.TrimSuffix(word, "token"), true
}
