package oauth_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/caddyoauth/gateway/caddyoauth/internal/keys"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// What a JWT says with the claims of ForgeRock AM: these, in this order.
func TestAMClaimsOfJWTs(t *testing.T) {
	for name, c := range map[string]struct {
		audience []string
		bare     bool
		key      string
		want     string
	}{
		"no audience": {want: `{"sub":"(age!reader)","cts":"OAUTH2_STATELESS_GRANT","auditTrackingId":"AUDIT","subname":"reader",` +
			`"iss":"https://auth.example.com/oauth2","tokenName":"access_token","token_type":"Bearer","authGrantId":"OWN",` +
			`"aud":"reader","nbf":1767323045,"grant_type":"client_credentials","scope":["read","write"],"auth_time":1767323045,` +
			`"realm":"/alpha","exp":1767323105,"iat":1767323045,"expires_in":60,"jti":"JTI","client_id":"reader","epoch":"EPOCH","generation":7}`},
		"an audience, and a bare subject": {audience: []string{"https://api.example.com", "https://b.example.com"}, bare: true, want: `{"sub":"reader",` +
			`"cts":"OAUTH2_STATELESS_GRANT","auditTrackingId":"AUDIT","subname":"reader",` +
			`"iss":"https://auth.example.com/oauth2","tokenName":"access_token","token_type":"Bearer","authGrantId":"OWN",` +
			`"aud":["reader","https://api.example.com","https://b.example.com"],"nbf":1767323045,"grant_type":"client_credentials","scope":["read","write"],"auth_time":1767323045,` +
			`"realm":"/alpha","exp":1767323105,"iat":1767323045,"expires_in":60,"jti":"JTI","client_id":"reader","epoch":"EPOCH","generation":7}`},
	} {
		r := newJWTRealmOf(t, "alpha", func(s *oauth.Settings) { s.AM.PrefixedSubject = !c.bare }, c.audience...)
		r.am = true
		r.share(7, signingKey(t))
		r.ask.Form.Set("scope", "read write")
		token := r.fetch()
		jti, _ := claimsOf(t, token)["jti"].(string)
		want := strings.NewReplacer("AUDIT", oauth.AMTrackingID(jti), "OWN", oauth.AMGrantID(jti), "JTI", jti,
			"EPOCH", base64.RawURLEncoding.EncodeToString(r.epoch[:])).Replace(c.want)
		payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
		if err != nil || string(payload) != want || len(jti) != 22 {
			t.Errorf("%s: the payload is\n%s\nwant\n%s", name, payload, want)
		}
		var header map[string]any
		text, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[0])
		if err := errors.Join(err, json.Unmarshal(text, &header)); err != nil || header["typ"] != "JWT" || header["alg"] != "ES256" || header["kid"] == "" || len(header) != 3 {
			t.Errorf("%s: the header is %s, %v", name, text, err)
		}
		// What routes and backends hear of it does not depend on the kind.
		facts, err := r.engine.Tokens().Lookup(t.Context(), token)
		if err != nil || facts.ClientID != "reader" || facts.Subject != "reader" || !slices.Equal(facts.Scopes, []string{"read", "write"}) ||
			!reflect.DeepEqual(facts.Audience, c.audience) || facts.Issuer != jwtIssuer || facts.JTI != jti || facts.Expiry.Sub(facts.IssuedAt) != time.Minute {
			t.Errorf("%s: the facts are %+v, %v", name, facts, err)
		}
	}
}

// A realm that switches between the claims of RFC 9068 and those of AM goes on with the tokens of both
// kinds, and revokes both.
func TestBothKindsOfJWTsLive(t *testing.T) {
	r, key := newJWTRealm(t, "root"), signingKey(t)
	hmac, err := keys.NewHMACKey(strings.Repeat("s", 32), "root", "JWT")
	if err != nil {
		t.Fatal(err)
	}
	r.hmac = hmac
	var good, revoked []string
	for i := range 6 {
		r.am, r.signsHMAC = i%3 > 0, i%3 == 2
		r.share(1, key)
		good, revoked = append(good, r.fetch()), append(revoked, r.fetch())
		r.wants("a new token", revoked[i], "")
		if out, err := r.revoke(revoked[i]); err != nil || out.JTI == "" {
			t.Errorf("revoking token %d: %+v, %v", i, out, err)
		}
		for j := range good {
			r.wants("token "+strconv.Itoa(j), good[j], "")
			r.wants("revoked token "+strconv.Itoa(j), revoked[j], introspect.CauseRevoked)
		}
	}
	r.share(2, key)
	for _, token := range good {
		r.wants("of a client of another generation", token, introspect.CauseClientGeneration)
	}
	r.share(1, key)
	r.hmac, r.signsHMAC = nil, false
	r.share(1, key)
	r.wants("the secret is gone", good[2], introspect.CauseUnknownKey)
	r.wants("the key is still there", good[1], "")
	r.nanos.Add(int64(time.Minute))
	r.wants("expired", good[1], introspect.CauseExpired)
}

// Whatever one key has signed, each type of JWT passes only with its own claims.
func TestNoKindOfJWTPassesAsAnother(t *testing.T) {
	r, key := newJWTRealm(t, "root"), signingKey(t)
	r.share(1, key)
	rfc := claimsOf(t, r.fetch())
	r.am = true
	r.share(1, key)
	am := claimsOf(t, r.fetch())
	both := maps.Clone(am)
	maps.Copy(both, rfc)
	const hasBoth = "AM's with those of RFC 9068 over them" // which is a token of RFC 9068 that says more
	shapes := map[string]map[string]any{
		"RFC 9068": rfc, "AM": am, hasBoth: both,
		"an introspection answer": {"iss": jwtIssuer, "aud": "reader", "iat": rfc["iat"], "token_introspection": am},
		"a client's assertion":    {"iss": "reader", "sub": "reader", "aud": jwtIssuer, "jti": "a", "iat": rfc["iat"], "exp": rfc["exp"]},
		"an assertion to a backend": {
			"iss": jwtIssuer, "sub": "reader", "client_id": "reader", "scope": "read", "aud": "reader", "iat": rfc["iat"], "exp": rfc["exp"], "jti": "a",
		},
	}
	for shape, claims := range shapes {
		for _, typ := range []string{"at+jwt", "JWT", "token-introspection+jwt", "oauth-assertion+jwt", "dpop+jwt", "jwt", "application/at+jwt"} {
			text := must(t)(key.For(typ).Sign(mustJSON(t, claims)))
			want := introspect.CauseUnknownKey
			switch {
			case shape == "RFC 9068" && typ == "at+jwt", shape == "AM" && typ == "JWT", shape == hasBoth && typ == "at+jwt":
				want = ""
			case claims["iss"] != jwtIssuer && typ != "at+jwt" && typ != "JWT":
				want = introspect.CauseNoSource
			}
			r.wants(shape+" of type "+typ, text, want)
		}
	}
}

// A token with AM's claims counts only if it is as this realm makes them: each claim by which it knows
// them again is needed, and no other value will do.
func TestForgedAMTokens(t *testing.T) {
	r, key := newJWTRealm(t, "root"), signingKey(t)
	r.am = true
	r.share(1, key)
	said := claimsOf(t, r.fetch())
	sign := func(change map[string]any) string {
		claims := maps.Clone(said)
		for name, value := range change {
			if claims[name] = value; value == nil {
				delete(claims, name)
			}
		}
		return must(t)(key.For("JWT").Sign(mustJSON(t, claims)))
	}
	r.wants("the same claims, signed again", sign(nil), "")
	r.wants("a bare subject", sign(map[string]any{"sub": "reader"}), "")
	for what, change := range map[string]map[string]any{
		"a refresh token":        {"tokenName": "refresh_token"},
		"an ID token":            {"tokenName": "id_token"},
		"no tokenName":           {"tokenName": nil},
		"another cts":            {"cts": "OAUTH2_GRANT_SET"},
		"another grant":          {"grant_type": "authorization_code"},
		"a user's":               {"sub": "(usr!reader)"},
		"another client's":       {"sub": "(age!writer)"},
		"a subname of another":   {"subname": "writer"},
		"a client_id of another": {"client_id": "writer"},
		"no client":              {"client_id": nil, "subname": nil, "sub": ""},
		"another audience":       {"aud": "writer"},
		"an audience before":     {"aud": []string{"https://api.example.com", "reader"}},
		"no audience":            {"aud": nil},
		"an empty audience":      {"aud": []string{}},
		"a scope that is text":   {"scope": "read"},
		"another nbf":            {"nbf": 1},
		"another issuer":         {"iss": "https://other.example.com"},
		"another epoch":          {"epoch": "AAAA"},
		"no epoch":               {"epoch": nil},
		"no expiry":              {"exp": nil},
		"an enormous expiry":     {"exp": int64(1) << 62},
		"an issue before time":   {"iat": -1, "nbf": -1},
	} {
		text := sign(change)
		r.wants(what, text, introspect.CauseUnknownKey)
		if out, err := r.revoke(text); err != nil || out.TokenID != (introspect.TokenID{}) {
			t.Errorf("%s: revoking it: %+v, %v", what, out, err)
		}
	}
	r.wants("a client that is not there", sign(map[string]any{"subname": "nobody", "client_id": "nobody", "sub": "nobody", "aud": "nobody"}), introspect.CauseClientRemoved)
}

// What changes anything of a token, in whatever part, makes it no token: with a key pair, or with a
// secret.
func TestChangedAMTokens(t *testing.T) {
	r, key := newJWTRealm(t, "root"), signingKey(t)
	var err error
	if r.hmac, err = keys.NewHMACKey(strings.Repeat("s", 32), "root", "JWT"); err != nil {
		t.Fatal(err)
	}
	var tokens []string
	for i := range 3 {
		r.am, r.signsHMAC = i > 0, i == 2
		r.share(1, key)
		tokens = append(tokens, r.fetch())
	}
	parts := make([][]string, len(tokens))
	for i, token := range tokens {
		parts[i] = strings.Split(token, ".")
	}
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.IntRange(0, len(tokens)-1)
		text := strings.Join([]string{parts[kind.Draw(t, "header")][0], parts[kind.Draw(t, "payload")][1], parts[kind.Draw(t, "signature")][2]}, ".")
		if rapid.Bool().Draw(t, "change") {
			at := rapid.IntRange(0, len(text)-1).Draw(t, "at")
			text = text[:at] + rapid.SampledFrom([]string{"", "A", ".", "=", "\n", "_"}).Draw(t, "for") + text[at+1:]
		}
		facts, err := r.engine.Tokens().Lookup(t.Context(), text)
		if err != nil || facts.Active != slices.Contains(tokens, text) {
			t.Fatalf("%s: %+v, %v", text, facts, err)
		}
	})
}

// A token that would not fit into a header is refused, as the others are.
func TestAMTokensHaveABound(t *testing.T) {
	r := newJWTRealmOf(t, "root", func(s *oauth.Settings) {
		for range 200 {
			s.Clients["reader"].Scopes = append(s.Clients["reader"].Scopes, "scope-of-many-letters-"+strconv.Itoa(len(s.Clients["reader"].Scopes)))
		}
	})
	r.am = true
	r.share(1, signingKey(t))
	fetch := func(n int) error {
		r.ask.Form.Set("scope", strings.Join(r.scopes[:n], " "))
		grant, _, err := r.engine.Token(t.Context(), r.ask)
		if err == nil {
			r.wants("a long token", grant.Token, "")
		}
		return err
	}
	var refused *oauth.Error
	if err := fetch(50); err != nil {
		t.Errorf("50 scopes: %v", err)
	}
	if err := fetch(200); !errors.As(err, &refused) || refused.Code != oauth.CodeInvalidScope {
		t.Errorf("200 scopes: %v, want invalid_scope", err)
	}
}

// Nobody says that a token is revoked which another gateway may have signed with another secret.
func TestRevokingATokenOfAnUnknownSecret(t *testing.T) {
	r, key := newJWTRealm(t, "root"), signingKey(t)
	secret := func(letter string) oauth.JWTKey {
		k, err := keys.NewHMACKey(strings.Repeat(letter, 32), "root", "JWT")
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	r.am, r.signsHMAC, r.hmac = true, true, secret("a")
	r.share(1, key)
	token := r.fetch()
	r.hmac = secret("b")
	for others, want := range map[bool]error{false: nil, true: oauth.ErrUnreachable} {
		r.others = others
		r.share(1, key)
		r.wants("of another secret", token, introspect.CauseUnknownKey)
		if _, err := r.revoke(token); !errors.Is(err, want) {
			t.Errorf("others may have other keys: %t: %v, want %v", others, err, want)
		}
	}
}

// Whatever a key has signed with the header of AM's tokens, it is a token only if it says so in all of
// its parts, and reading it again says the same.
func FuzzAMClaims(f *testing.F) {
	key, err := jwtKey()
	if err != nil {
		f.Fatal(err)
	}
	r := newJWTRealmOf(f, "root", func(s *oauth.Settings) { s.Immediate = true })
	r.am = true
	r.share(1, key)
	token := r.fetch()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		f.Fatal(err)
	}
	// Each process that fuzzes has an epoch of its own.
	epoch := base64.RawURLEncoding.EncodeToString(r.epoch[:])
	good := strings.Replace(string(payload), epoch, "EPOCH", 1)
	for _, seed := range []string{
		good, "", "{}", "null", strings.Replace(good, "access_token", "id_token", 1), strings.Replace(good, `"aud":"reader"`, `"aud":["reader","a"]`, 1),
		strings.Replace(good, "{", `{"more":1e400,`, 1),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		payload = strings.ReplaceAll(payload, "EPOCH", epoch)
		if len(payload) > 2000 {
			return
		}
		text, err := key.For("JWT").Sign([]byte(payload))
		if err != nil {
			t.Fatal(err)
		}
		facts, err := r.engine.Tokens().Lookup(t.Context(), text)
		if err != nil {
			t.Fatal(err)
		}
		again, err := r.engine.Tokens().Lookup(t.Context(), text)
		if err != nil || !reflect.DeepEqual(again, facts) {
			t.Fatalf("%+v, and then %+v, %v", facts, again, err)
		}
		if !facts.Active {
			return
		}
		var claims map[string]json.RawMessage // a number may be any
		if err := json.Unmarshal([]byte(payload), &claims); err != nil {
			t.Fatalf("%q passes: %v", payload, err)
		}
		if facts.ClientID != "reader" || facts.Issuer != jwtIssuer {
			t.Fatalf("%q passes as %+v", payload, facts)
		}
	})
}
