package caddyoauth

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// ForgeRock AM's legacy endpoint /tokeninfo: whoever holds a token is told what it means, without
// being asked who he is. A realm that answers as AM has it, for the tokens of all such realms that the
// handler serves.
//
// A guess is as good here as at a protected route, where anybody may try tokens, too: it takes a MAC or a
// signature to find out that it is none, and no lookup.

// tokenInfoPath is where it is, after the base path. There is no slash at its end.
const tokenInfoPath = "/tokeninfo"

// amTwoTokens is AM's text for a token in the header and one in the query.
const amTwoTokens = "Access Token cannot be provided in both query and header"

// layOutTokenInfo adds the endpoint at the base paths themselves, and at those of root, if the handler
// serves root nowhere. In AM, which always has a root, any realm's path answers for the tokens of all, and
// it is root's that programs have been told. What comes there counts as a request to the first of the realms
// that have the endpoint.
func (s *Server) layOutTokenInfo() {
	first := s.served[slices.IndexFunc(s.served, func(r *servedRealm) bool { return r.am != nil })]
	s.rootTokenInfo = make(map[string]*route)
	for _, base := range s.basePaths {
		for _, root := range []string{base, base + "/realms/root"} {
			if s.endpoints[root+tokenPath] == nil {
				s.rootTokenInfo[root+tokenInfoPath] = s.endpoints[s.basePaths[0]+fullRealmPath(first.name)+tokenInfoPath]
			}
		}
	}
}

// inRootsPlace returns the endpoint at a path that layOutTokenInfo has added, or nil. Where another
// oauth_server of the site serves a realm there, the path is that one's.
func (s *Server) inRootsPlace(path string) *route {
	e := s.rootTokenInfo[path]
	if e == nil {
		return nil
	}
	token := strings.TrimSuffix(path, tokenInfoPath) + tokenPath
	for _, other := range s.app.servers {
		if other != s.itself && !s.site.apart(other.site) && other.endpoints[token] != nil {
			return nil
		}
	}
	return e
}

// serveTokenInfo answers a request to the endpoint.
func (s *Server) serveTokenInfo(w http.ResponseWriter, r *http.Request, e *route) {
	h := w.Header()
	h.Set("Cache-Control", "no-cache, no-store")
	h.Del("Pragma")
	if status, refusal := s.unfit(r, e); refusal != nil {
		if status == http.StatusMethodNotAllowed {
			h.Set("Allow", http.MethodGet)
		}
		s.refuse(w, r, e, status, refusal)
		return
	}
	dontAwaitBody(w, r) // it means nothing
	text, err := e.tokenInQuestion(r)
	if err != nil {
		s.answer(w, r, e, nil, nil, oauth.Outcome{}, err)
		return
	}
	engine, err := e.realm.await(r.Context())
	if err != nil {
		s.answer(w, r, e, nil, nil, oauth.Outcome{}, err)
		return
	}
	token := introspect.NewToken(text)
	facts, out, err := engine.TokenInfo(r.Context(), &token, s.app.ClientCertificates.of(r), func(token *introspect.Token) *oauth.Engine {
		return issuerAmong(s.served, e.realm, token)
	})
	if err != nil {
		s.answer(w, r, e, nil, nil, out, err)
		return
	}
	issuer := e.realm
	if other := s.app.realms[out.TokenRealm]; other != nil {
		issuer = other
	}
	s.answer(w, r, e, nil, issuer.tokenInfo(&token, facts, time.Now()), out, nil)
}

// unfitForTokenInfo is unfit for /tokeninfo.
func (s *Server) unfitForTokenInfo(r *http.Request, e *route) (status int, _ *oauth.Error) {
	if r.Method != http.MethodGet {
		return http.StatusMethodNotAllowed, &oauth.Error{Code: oauth.CodeInvalidRequest, Description: "the method must be GET", Reason: reasonMethod}
	}
	return s.unfitTransport(r, e)
}

// tokenInQuestion returns the token that a request is about: that of its Authorization header, or of its
// query, if that is allowed.
func (e *route) tokenInQuestion(r *http.Request) (string, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", &oauth.Error{Code: oauth.CodeInvalidRequest, Description: "the query is not well-formed", Reason: "query"}
	}
	asked := slices.Compact(query["access_token"])
	text, verdict := bearerToken(r.Header["Authorization"])
	switch {
	case verdict == tokenMalformed:
		return "", &oauth.Error{Code: oauth.CodeInvalidRequest, Description: "the Authorization header must have one well-formed bearer token", Reason: "bearer_malformed"}
	case verdict != tokenMissing && len(asked) > 0:
		return "", &oauth.Error{Code: oauth.CodeInvalidRequest, Description: amTwoTokens, Reason: "two_tokens"}
	case len(asked) > 1:
		return "", &oauth.Error{Code: oauth.CodeInvalidRequest, Description: "access_token is repeated", Reason: "two_tokens"}
	case verdict == tokenPresent:
		return text, nil
	case verdict != tokenMissing:
		return "", invalidTokenOfAM(introspect.CauseForged)
	case len(asked) == 0:
		return "", invalidTokenOfAM("missing")
	case !e.realm.am.TokensInQuery:
		return "", invalidTokenOfAM("token_in_query")
	case len(asked[0]) > introspect.MaxTokenLength || !isB64Token(asked[0]):
		return "", invalidTokenOfAM(introspect.CauseForged)
	}
	return asked[0], nil
}

// invalidTokenOfAM is how AM refuses a token, whatever is wrong with it.
func invalidTokenOfAM(cause introspect.Cause) *oauth.Error {
	return &oauth.Error{Code: oauth.CodeInvalidToken, Description: oauth.AMInvalidToken, Reason: string(cause)}
}

// amMember is a member of an object whose members have an order.
type amMember struct {
	name  string
	value any
}

// amTokenInfo is what /tokeninfo says of a token.
type amTokenInfo []amMember

// MarshalJSON implements [json.Marshaler].
func (t amTokenInfo) MarshalJSON() ([]byte, error) {
	var out bytes.Buffer
	out.WriteByte('{')
	for i, member := range t {
		if i > 0 {
			out.WriteByte(',')
		}
		name, err := json.Marshal(member.name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(member.value)
		if err != nil {
			return nil, err
		}
		out.Write(name)
		out.WriteByte(':')
		out.Write(value)
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}

// has reports whether there is a member of this name.
func (t amTokenInfo) has(name string) bool {
	return slices.ContainsFunc(t, func(m amMember) bool { return m.name == name })
}

// tokenInfo returns what is said of a token that the realm issued: what AM says, a member for each scope
// with a value that is always empty here, and of a JWT whatever else it says itself. No scope and no claim
// takes the place of a member that AM has.
func (r *servedRealm) tokenInfo(token *introspect.Token, facts *introspect.Facts, now time.Time) amTokenInfo {
	jti := introspectionAnswerOf(facts).JTI
	info := amTokenInfo{
		{"access_token", token.Text()},
		{"token_type", tokenType(facts.Confirmation.Key)},
		{"expires_in", secondsLeft(facts, now)},
		{"scope", append([]string{}, facts.Scopes...)},
		{"client_id", facts.ClientID},
		{"grant_type", oauth.GrantClientCredentials},
		{"realm", realmOfAM(r.name)},
	}
	fixed := amTokenInfo{
		{"auditTrackingId", oauth.AMTrackingID(jti)},
		{"authGrantId", oauth.AMGrantID(jti)},
	}
	if facts.Confirmation != (introspect.Confirmation{}) {
		fixed = slices.Insert(fixed, 0, amMember{"cnf", facts.Confirmation})
	}
	claims := r.otherClaims(token, facts)
	for _, scope := range facts.Scopes {
		if !info.has(scope) && !fixed.has(scope) && !claims.has(scope) {
			info = append(info, amMember{scope, ""})
		}
	}
	info = append(info, fixed...)
	for _, claim := range claims {
		if !info.has(claim.name) {
			info = append(info, claim)
		}
	}
	return info
}

// otherClaims returns what a JWT of the realm says, in its order, but for what is for the gateway alone.
// Somebody has verified its signature. What was taken from its audience since is not in it.
func (r *servedRealm) otherClaims(token *introspect.Token, facts *introspect.Facts) amTokenInfo {
	if facts.JTI == "" {
		return nil
	}
	_, payload, _ := strings.Cut(token.Text(), ".")
	payload, _, _ = strings.Cut(payload, ".")
	text, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return nil // can't be: its facts were read from there
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	if start, err := decoder.Token(); err != nil || start != json.Delim('{') {
		return nil // likewise
	}
	var claims amTokenInfo
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return claims
		}
		claim := amMember{name: name.(string)}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return claims
		}
		claim.value = value
		switch claim.name {
		case "epoch", "generation", "unrestricted":
			continue
		case "aud":
			var told audience
			if json.Unmarshal(value, &told) != nil {
				continue
			}
			claim.value = slices.DeleteFunc(told, func(aud string) bool {
				return aud != facts.ClientID && aud != facts.Issuer && !slices.Contains(facts.Audience, aud)
			})
		}
		claims = append(claims, claim)
	}
	return claims
}
