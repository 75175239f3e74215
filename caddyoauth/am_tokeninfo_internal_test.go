package caddyoauth

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// Whatever scopes a token has, and whatever a JWT says, the answer is one object in which no name comes
// twice, and what AM has in it is what the gateway knows.
func FuzzAMTokenInfo(f *testing.F) {
	f.Add("write", `{"sub":"(age!c)","scope":["write"],"realm":"/other","aud":["c","api"],"epoch":"x","expires_in":1}`)
	f.Add("client_id access_token cnf authGrantId a|b", `{"a":1,"a":2,"write":[{}],"aud":"api","auditTrackingId":null}`)
	f.Add("<b> jti", `{"jti":"x","":{},"aud":7}`)
	f.Add("", "[]")
	f.Fuzz(func(t *testing.T, scope, claims string) {
		r := &servedRealm{name: "alpha", am: new(AMCompat)}
		facts := &introspect.Facts{Active: true, ClientID: "c", Subject: "c", Audience: []string{"api"}, JTI: "id", Expiry: time.Unix(200, 0), IssuedAt: time.Unix(100, 0)}
		for _, s := range strings.Fields(scope) {
			if oauth.ValidScope(s) && !slices.Contains(facts.Scopes, s) {
				facts.Scopes = append(facts.Scopes, s)
			}
		}
		token := introspect.NewToken("eyJ." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".x")
		if len(token.Text()) > introspect.MaxTokenLength {
			return // none that long comes here; encoding/json could not write what is nested in it
		}
		body, err := json.Marshal(r.tokenInfo(&token, facts, time.Unix(150, 5)))
		if err != nil {
			t.Fatal(err)
		}
		decoder := json.NewDecoder(bytes.NewReader(body))
		if _, err := decoder.Token(); err != nil {
			t.Fatal(err)
		}
		told := make(map[string]string)
		for decoder.More() {
			name, err := decoder.Token()
			if err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			var value json.RawMessage
			if err := decoder.Decode(&value); err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			if _, twice := told[name.(string)]; twice {
				t.Fatalf("%q is there twice: %s", name, body)
			}
			told[name.(string)] = string(value)
		}
		for name, want := range map[string]string{
			"token_type": `"Bearer"`, "expires_in": "49", "client_id": `"c"`, "grant_type": `"client_credentials"`, "realm": `"/alpha"`,
			"authGrantId": `"` + oauth.AMGrantID("id") + `"`, "auditTrackingId": `"` + oauth.AMTrackingID("id") + `"`,
		} {
			if told[name] != want {
				t.Errorf("%s is %s, want %s: %s", name, told[name], want, body)
			}
		}
		var scopes []string
		if json.Unmarshal([]byte(told["scope"]), &scopes) != nil || !slices.Equal(scopes, facts.Scopes) {
			t.Errorf("scope is %s, want %q", told["scope"], facts.Scopes)
		}
		var audience []string
		if text := told["aud"]; text != "" && json.Unmarshal([]byte(text), &audience) == nil {
			for _, aud := range audience {
				if aud != "c" && aud != "api" && aud != "" {
					t.Errorf("aud has %q, which the token is not for", aud)
				}
			}
		}
		for _, s := range facts.Scopes {
			if _, ok := told[s]; !ok && s != "epoch" && s != "generation" && s != "unrestricted" {
				t.Errorf("there is no member for %q: %s", s, body)
			}
		}
	})
}

// A token is taken from the header, or from the query where that is allowed, as it stands there; no refusal
// has anything that was sent.
func FuzzAMTokenInfoRequest(f *testing.F) {
	f.Add("Bearer abc", "", true)
	f.Add("", "access_token=abc", true)
	f.Add("", "access_token=abc&access_token=abc", false)
	f.Add("Bearer abc", "access_token=%zz;x", true)
	f.Add("Bearer a,b", "access_token=\x00", false)
	descriptions := []string{oauth.AMInvalidToken, amTwoTokens, "access_token is repeated", "the query is not well-formed", "the Authorization header must have one well-formed bearer token"}
	f.Fuzz(func(t *testing.T, authorization, query string, allowed bool) {
		r := &http.Request{Header: make(http.Header), URL: &url.URL{RawQuery: query}}
		if authorization != "" {
			r.Header["Authorization"] = []string{authorization}
		}
		e := &route{realm: &servedRealm{am: &AMCompat{TokensInQuery: allowed}}, kind: endpointTokenInfo}
		text, err := e.tokenInQuestion(r)
		if refused := (*oauth.Error)(nil); err != nil {
			if !errors.As(err, &refused) || !slices.Contains(descriptions, refused.Description) || text != "" {
				t.Errorf("%q, %v", text, err)
			}
			return
		}
		byHeader, _ := bearerToken(r.Header["Authorization"])
		byQuery := r.URL.Query()["access_token"]
		if text == "" || text != byHeader && !(allowed && authorization == "" || allowed && byHeader == "") || byHeader == "" && !slices.Contains(byQuery, text) || byHeader != "" && len(byQuery) > 0 {
			t.Errorf("Authorization %q, query %q, allowed %t: %q", authorization, query, allowed, text)
		}
	})
}

// A scope is what stands between a number and a description, and nothing else is lost or changed.
func FuzzScopesOfAM(f *testing.F) {
	f.Add("read|Read things", "[0]=write|en|Write")
	f.Add("[x]=a", "[]=b|")
	f.Add("|", "[1]=[2]=c")
	f.Fuzz(func(t *testing.T, a, b string) {
		scopes := scopesOfAM([]string{a, b})
		if len(scopes) == 0 || len(scopes) > 2 || scopes[0] != scopeOfAM(a) {
			t.Fatalf("%q, %q: %q", a, b, scopes)
		}
		for _, entry := range []string{a, b} {
			scope := scopeOfAM(entry)
			if !slices.Contains(scopes, scope) || strings.Contains(scope, "|") || !strings.Contains(entry, scope) {
				t.Errorf("%q stands for %q", entry, scope)
			}
			if !strings.ContainsAny(entry, "|[") && scope != entry {
				t.Errorf("%q, which has nothing behind or before it, stands for %q", entry, scope)
			}
		}
	})
}
