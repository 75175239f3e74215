package oauth_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/keys"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/store"
	"github.com/caddyoauth/gateway/introspect"
)

const jwtIssuer = "https://auth.example.com/oauth2"

// jwtRealm is an engine with a client whose tokens are JWTs, over a store in memory.
type jwtRealm struct {
	t      testing.TB
	engine *oauth.Engine
	store  *store.Memory
	epoch  oauth.Epoch
	nanos  atomic.Int64
	ask    oauth.Request

	// am is set if new tokens have the claims of ForgeRock AM, and signsHMAC if hmac signs them. others is
	// set if other gateways may have other keys.
	am, signsHMAC, others bool
	hmac                  oauth.JWTKey
	scopes                []string // of the client
}

func (r *jwtRealm) now() time.Time { return time.Unix(0, r.nanos.Load()) }

func newJWTRealm(t testing.TB, name string, audience ...string) *jwtRealm {
	t.Helper()
	return newJWTRealmOf(t, name, func(*oauth.Settings) {}, audience...)
}

// newJWTRealmOf is newJWTRealm with settings that change has changed.
func newJWTRealmOf(t testing.TB, name string, change func(*oauth.Settings), audience ...string) *jwtRealm {
	t.Helper()
	r := &jwtRealm{t: t}
	r.store = store.NewMemory(r.now)
	r.nanos.Store(time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC).UnixNano())
	cache, err := introspect.NewCache(introspect.CacheConfig{MaxTokens: 1000, Now: r.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cache.Close)
	plain := oauth.GenerateSecret()
	secret, err := oauth.PlainSecret(plain)
	if err != nil {
		t.Fatal(err)
	}
	settings := oauth.Settings{
		AM:    oauth.AMClaims{Realm: "/" + name, PrefixedSubject: true},
		Realm: name, Issuer: jwtIssuer, Store: r.store, Keys: r.store, Cache: cache, MaxAge: time.Hour, Hasher: oauth.NewHasher(), Now: r.now,
		Clients: map[string]*oauth.Client{"reader": {
			ID: "reader", Secrets: []*oauth.Secret{secret}, Scopes: []string{"read", "write"}, DefaultScopes: []string{"read"}, Audience: audience,
			GrantTypes: []string{oauth.GrantClientCredentials}, Auth: []string{oauth.AuthBasic},
			TokenFormat: oauth.FormatJWT, TokenLifetime: time.Minute, Introspect: oauth.IntrospectOwn,
		}},
	}
	change(&settings)
	r.scopes = settings.Clients["reader"].Scopes
	r.engine = oauth.New(settings)
	ring, err := keys.New(name, r.now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := r.store.SwapKeys(t.Context(), name, nil, ring.Stored()); !ok || err != nil {
		t.Fatal(err)
	}
	r.epoch = ring.Epoch()
	r.ask = oauth.Request{
		Form:        url.Values{"grant_type": {oauth.GrantClientCredentials}},
		Credentials: oauth.Credentials{Method: oauth.AuthBasic, ClientIDs: []string{"reader"}, Secrets: []string{plain}},
	}
	return r
}

// share tells the engine these keys, of which the first signs.
func (r *jwtRealm) share(generation uint64, signing ...*keys.SigningKey) {
	r.t.Helper()
	shared := oauth.Shared{
		Key: make([]byte, 32), Generations: map[string]uint64{"reader": generation}, Epoch: r.epoch, Covers: func([]byte) bool { return true },
	}
	for _, key := range signing {
		shared.JWTKeys = append(shared.JWTKeys, key.For("at+jwt"))
		shared.AMJWTKeys = append(shared.AMJWTKeys, key.For("JWT"))
	}
	signer := shared.JWTKeys[0]
	if r.am {
		signer = shared.AMJWTKeys[0]
	}
	if r.hmac != nil {
		shared.AMJWTKeys = append(shared.AMJWTKeys, r.hmac)
	}
	if r.signsHMAC {
		signer = r.hmac
	}
	shared.OtherJWTKeys = r.others
	shared.Signer = func(time.Time) oauth.JWTKey { return signer }
	if err := r.engine.Share(shared); err != nil {
		r.t.Fatal(err)
	}
}

func (r *jwtRealm) fetch() string {
	r.t.Helper()
	grant, out, err := r.engine.Token(context.Background(), r.ask)
	if err != nil {
		r.t.Fatal(err)
	}
	if out.TokenID != introspect.IDOf(grant.Token) || out.JTI != claimsOf(r.t, grant.Token)["jti"] {
		r.t.Error("the log has other IDs than the token")
	}
	return grant.Token
}

// wants looks a token up, as a route does, and wants it to be refused for this cause; none is for a
// good token.
func (r *jwtRealm) wants(what, text string, cause introspect.Cause) {
	r.t.Helper()
	facts, err := r.engine.Tokens().Lookup(context.Background(), text)
	if err != nil || facts.Cause() != cause {
		r.t.Errorf("%s: the cause is %q, %v; want %q", what, facts.Cause(), err, cause)
	}
}

func (r *jwtRealm) revoke(text string) (oauth.Outcome, error) {
	ask := r.ask
	ask.Form = url.Values{"token": {text}}
	return r.engine.Revoke(context.Background(), ask)
}

func claimsOf(t testing.TB, token string) (claims map[string]any) {
	t.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

func signingKey(t *testing.T) *keys.SigningKey {
	t.Helper()
	key, err := keys.NewSigningKey(keys.ES256)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// A JWT is issued without a word to the store, and revoked in it. It dies with its epoch, its client
// and its key, and nobody says that it is dead when that can't be found out.
func TestEngineWithJWTs(t *testing.T) {
	r, a, b := newJWTRealm(t, "root"), signingKey(t), signingKey(t)
	if _, _, err := r.engine.Token(t.Context(), r.ask); !errors.Is(err, oauth.ErrUnreachable) {
		t.Errorf("before there is a key: %v, want ErrUnreachable", err)
	}
	r.share(1, a)
	token := r.fetch()
	r.wants("a token", token, "")
	r.wants("the same, from the cache", token, "")
	facts, err := r.engine.Tokens().Lookup(t.Context(), token)
	if err != nil || facts.ClientID != "reader" || facts.Subject != "reader" || facts.Scopes[0] != "read" || facts.Audience != nil ||
		facts.Issuer != jwtIssuer || facts.JTI != claimsOf(t, token)["jti"] || facts.Expiry.Sub(facts.IssuedAt) != time.Minute {
		t.Errorf("the facts are %+v, %v", facts, err)
	}
	r.share(1, b, a)
	r.wants("a new key signs, and the old one still verifies", token, "")
	r.share(1, b)
	r.wants("the key is gone", token, introspect.CauseUnknownKey)
	r.share(1, a)
	r.wants("the key is back", token, "")
	r.share(2, a)
	r.wants("another generation of the client", token, introspect.CauseClientGeneration)
	r.share(1, a)

	if out, err := r.revoke(token); err != nil || out.TokenID != introspect.IDOf(token) || out.JTI == "" {
		t.Fatalf("revoking: %+v, %v", out, err)
	}
	r.wants("revoked", token, introspect.CauseRevoked)
	if out, err := r.revoke(token); err != nil || out.TokenID != (introspect.TokenID{}) {
		t.Errorf("revoking again: %+v, %v", out, err)
	}

	another := r.fetch()
	if before := r.epoch; true {
		r.epoch = oauth.Epoch{1}
		r.share(1, a)
		r.wants("a key from a file, in another epoch", another, introspect.CauseUnknownKey)
		r.epoch = before
		r.share(1, a)
	}
	r.wants("in time", another, "")
	r.nanos.Add(int64(time.Minute))
	r.wants("expired", another, introspect.CauseExpired)
	if err := r.store.Close(); err != nil {
		t.Fatal(err)
	}
	r.nanos.Add(-int64(time.Minute))
	if _, err := r.engine.Tokens().Lookup(t.Context(), r.fetch()); err == nil {
		t.Error("a token passes although nobody could tell whether it was revoked")
	}
}

// What a JWT says is what RFC 9068 section 2.2 asks for, in the types of RFC 7519.
func TestClaimsOfJWTs(t *testing.T) {
	for name, c := range map[string]struct {
		audience []string
		want     any
	}{
		"no audience":   {nil, jwtIssuer},
		"one":           {[]string{"https://api.example.com"}, "https://api.example.com"},
		"two":           {[]string{"https://api.example.com", "https://b.example.com"}, []any{"https://api.example.com", "https://b.example.com"}},
		"as the issuer": {[]string{jwtIssuer}, jwtIssuer},
	} {
		r := newJWTRealm(t, "root", c.audience...)
		r.share(7, signingKey(t))
		r.ask.Form.Set("scope", "read write")
		grant, _, err := r.engine.Token(t.Context(), r.ask)
		if err != nil {
			t.Fatal(err)
		}
		claims := claimsOf(t, grant.Token)
		begin := float64(r.now().Unix())
		for claim, want := range map[string]any{
			"iss": jwtIssuer, "sub": "reader", "client_id": "reader", "scope": "read write", "iat": begin, "exp": begin + 60, "aud": c.want,
			"epoch": base64.RawURLEncoding.EncodeToString(r.epoch[:]), "generation": float64(7),
		} {
			if got, _ := json.Marshal(claims[claim]); string(got) != string(mustJSON(t, want)) {
				t.Errorf("%s: %s is %s, want %s", name, claim, got, mustJSON(t, want))
			}
		}
		if jti, _ := claims["jti"].(string); len(jti) != 22 {
			t.Errorf("%s: jti is %q", name, claims["jti"])
		}
		// A caller that trusts expires_in must not use the token when it is dead.
		if grant.Lifetime.Truncate(time.Second) != 59*time.Second {
			t.Errorf("%s: expires_in is %v", name, grant.Lifetime)
		}
		facts, err := r.engine.Tokens().Lookup(t.Context(), grant.Token)
		if err != nil || len(facts.Audience) != len(c.audience) || strings.Join(facts.Scopes, " ") != "read write" {
			t.Errorf("%s: read as %+v, %v", name, facts, err)
		}
	}
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Only what the realm itself has signed as an access token, for this epoch, is one: not what its key
// has signed otherwise, and no other spelling of a token.
func TestForgedJWTs(t *testing.T) {
	r, key, other := newJWTRealm(t, "root"), signingKey(t), signingKey(t)
	r.share(1, key)
	token := r.fetch()
	r.wants("the token itself", token, "")
	parts := strings.Split(token, ".")
	said := claimsOf(t, token)
	sign := func(key *keys.SigningKey, typ string, change map[string]any) string {
		claims := make(map[string]any)
		for name, value := range said {
			claims[name] = value
		}
		for name, value := range change {
			if claims[name] = value; value == nil {
				delete(claims, name)
			}
		}
		text, err := key.For(typ).Sign(mustJSON(t, claims))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	r.wants("the same claims, signed again", sign(key, "at+jwt", nil), "")
	header := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	for what, c := range map[string]struct {
		text  string
		cause introspect.Cause
	}{
		"another key":                   {sign(other, "at+jwt", nil), introspect.CauseUnknownKey},
		"another type":                  {sign(key, "JWT", nil), introspect.CauseUnknownKey},
		"an introspection answer":       {sign(key, "token-introspection+jwt", nil), introspect.CauseUnknownKey},
		"another signature":             {parts[0] + "." + parts[1] + "." + strings.Split(sign(key, "at+jwt", map[string]any{"a": 1}), ".")[2], introspect.CauseSignature},
		"another payload":               {parts[0] + "." + header(`{"iss":"`+jwtIssuer+`"}`) + "." + parts[2], introspect.CauseSignature},
		"no signature":                  {parts[0] + "." + parts[1] + ".", introspect.CauseSignature},
		"alg none":                      {header(`{"alg":"none","typ":"at+jwt"}`) + "." + parts[1] + ".", introspect.CauseUnknownKey},
		"the header in other words":     {header(`{"alg":"ES256", "kid":"`+key.ID()+`","typ":"at+jwt"}`) + "." + parts[1] + "." + parts[2], introspect.CauseUnknownKey},
		"another issuer":                {sign(key, "at+jwt", map[string]any{"iss": "https://other.example.com"}), introspect.CauseUnknownKey},
		"no issuer":                     {sign(key, "at+jwt", map[string]any{"iss": nil}), introspect.CauseUnknownKey},
		"another epoch":                 {sign(key, "at+jwt", map[string]any{"epoch": "AAAA"}), introspect.CauseUnknownKey},
		"no epoch":                      {sign(key, "at+jwt", map[string]any{"epoch": nil}), introspect.CauseUnknownKey},
		"another subject":               {sign(key, "at+jwt", map[string]any{"sub": "writer"}), introspect.CauseUnknownKey},
		"no client":                     {sign(key, "at+jwt", map[string]any{"client_id": nil, "sub": nil}), introspect.CauseUnknownKey},
		"no audience":                   {sign(key, "at+jwt", map[string]any{"aud": nil}), introspect.CauseUnknownKey},
		"no expiry":                     {sign(key, "at+jwt", map[string]any{"exp": nil}), introspect.CauseUnknownKey},
		"an expiry that is text":        {sign(key, "at+jwt", map[string]any{"exp": "1798000000"}), introspect.CauseUnknownKey},
		"an expiry that is a fraction":  {sign(key, "at+jwt", map[string]any{"exp": 1798000000.5}), introspect.CauseUnknownKey},
		"an expiry that is enormous":    {sign(key, "at+jwt", map[string]any{"exp": int64(1) << 62}), introspect.CauseUnknownKey},
		"an expiry before its issue":    {sign(key, "at+jwt", map[string]any{"exp": 1, "iat": 2}), introspect.CauseUnknownKey},
		"an issue before all time":      {sign(key, "at+jwt", map[string]any{"iat": -1}), introspect.CauseUnknownKey},
		"a client that is not there":    {sign(key, "at+jwt", map[string]any{"client_id": "nobody", "sub": "nobody"}), introspect.CauseClientRemoved},
		"scopes that the client lacks":  {sign(key, "at+jwt", map[string]any{"scope": "admin"}), ""}, // and has none then
		"something that is no JSON":     {must(t)(key.For("at+jwt").Sign([]byte("claims"))), introspect.CauseUnknownKey},
		"a JWT of somebody else":        {sign(other, "at+jwt", map[string]any{"iss": "https://other.example.com"}), introspect.CauseNoSource},
		"a space behind":                {token + " ", introspect.CauseSignature},
		"a line break behind":           {token + "\n", introspect.CauseSignature},
		"padding":                       {token + "==", introspect.CauseSignature},
		"a part more":                   {token + ".", introspect.CauseSignature},
		"too long":                      {token + strings.Repeat("A", 4096), introspect.CauseNoSource},
		"what begins like the header":   {parts[0], introspect.CauseNoSource},
		"what begins like every header": {"eyJ", introspect.CauseNoSource},
	} {
		r.wants(what, c.text, c.cause)
		if c.cause == "" {
			continue
		}
		if out, err := r.revoke(c.text); c.cause != introspect.CauseClientRemoved && (err != nil || out.TokenID != (introspect.TokenID{})) {
			t.Errorf("%s: revoking it: %+v, %v", what, out, err)
		}
	}
	r.wants("the token, after all that", token, "")
	if facts, _ := r.engine.Tokens().Lookup(t.Context(), sign(key, "at+jwt", map[string]any{"scope": "admin"})); len(facts.Scopes) != 0 {
		t.Errorf("a token has a scope that its client may not have: %v", facts.Scopes)
	}

	// Another realm with the same key, as when one file is used for both, is another issuer.
	beta := newJWTRealm(t, "beta")
	beta.share(1, key)
	beta.wants("a token of another realm's epoch", token, introspect.CauseUnknownKey)
}

func must(t *testing.T) func(string, error) string {
	return func(text string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
}

// Nobody says that a JWT is revoked which another gateway may have signed with a key that is not known
// here yet.
func TestRevokingAJWTOfAnUnknownKey(t *testing.T) {
	r, known, unknown := newJWTRealm(t, "root"), signingKey(t), signingKey(t)
	r.share(1, unknown)
	token := r.fetch()
	for _, step := range []struct {
		what          string
		covers, files bool
		err           error
	}{
		{"the store has other keys", false, false, oauth.ErrUnreachable},
		{"all keys are known", true, false, nil},
		{"another gateway may have other files", true, true, oauth.ErrUnreachable},
	} {
		shared := oauth.Shared{
			Key: make([]byte, 32), Generations: map[string]uint64{"reader": 1}, Epoch: r.epoch, Covers: func([]byte) bool { return step.covers },
			OtherJWTKeys: step.files, JWTKeys: []oauth.JWTKey{known.For("at+jwt")},
		}
		shared.Signer = func(time.Time) oauth.JWTKey { return shared.JWTKeys[0] }
		if err := r.engine.Share(shared); err != nil {
			t.Fatal(err)
		}
		if _, err := r.revoke(token); !errors.Is(err, step.err) {
			t.Errorf("%s: %v, want %v", step.what, err, step.err)
		}
		// Of other issuers' tokens it is known that they are nothing to revoke.
		foreign, err := unknown.For("at+jwt").Sign([]byte(`{"iss":"https://other.example.com"}`))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.revoke(foreign); err != nil {
			t.Errorf("%s: another issuer's token: %v", step.what, err)
		}
	}
}

// jwtKey signs the JWTs of all tests that don't care by which key.
var jwtKey = sync.OnceValues(func() (*keys.SigningKey, error) { return keys.NewSigningKey(keys.ES256) })

// shareKeys adds keys for self-contained tokens, in the epoch that all users of a store agree on.
func shareKeys(t testing.TB, shared *oauth.Shared, s oauth.KeyStore) {
	t.Helper()
	key, err := jwtKey()
	if err != nil {
		t.Fatal(err)
	}
	jwts := key.For("at+jwt")
	shared.Epoch, shared.SealKeys, shared.Covers = agreeOnKeys(t, s), []oauth.SealKey{{}}, func([]byte) bool { return true }
	shared.JWTKeys, shared.Signer = []oauth.JWTKey{jwts}, func(time.Time) oauth.JWTKey { return jwts }
}

// A key from a file outlives the epoch, and what the cache remembers of its tokens does not: what was
// revoked before the store lost its data is not known any more.
func TestCachedJWTsDieWithTheirEpoch(t *testing.T) {
	r, key := newJWTRealm(t, "root"), signingKey(t)
	r.share(1, key)
	token, another := r.fetch(), r.fetch()
	r.wants("a token", token, "")
	r.wants("another", another, "")
	ring, err := keys.New("root", r.now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	old, err := r.store.Keys(t.Context(), "root")
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := r.store.SwapKeys(t.Context(), "root", old, ring.Stored()); !ok || err != nil {
		t.Fatal(err)
	}
	r.epoch = ring.Epoch()
	r.share(1, key)
	r.wants("of the epoch of before", token, introspect.CauseUnknownKey)
	if out, err := r.revoke(another); out.TokenID != (introspect.TokenID{}) || err != nil {
		t.Errorf("revoking one of them: %v %v", out, err)
	}
	r.wants("of the epoch of before, and revoked", another, introspect.CauseUnknownKey)
	r.wants("of this epoch", r.fetch(), "")
}
