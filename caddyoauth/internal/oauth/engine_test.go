package oauth

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/caddyoauth/gateway/introspect"
)

// mapStore is a TokenStore in a map that counts what it is asked. If misfile is set, Get answers
// what misfile makes of the record.
type mapStore struct {
	TokenStore // nil: these tests use only what is overridden
	mu         sync.Mutex
	tokens     map[Key]Token
	puts, gets atomic.Int64
	misfile    func(Token) Token
}

func (m *mapStore) Put(_ context.Context, t Token) error {
	m.puts.Add(1)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens[t.Key] = t
	return nil
}

func (m *mapStore) Get(_ context.Context, key Key) (Token, error) {
	m.gets.Add(1)
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.tokens[key]
	if !ok {
		return Token{}, ErrNotFound
	}
	if m.misfile != nil {
		t = m.misfile(t)
	}
	return t, nil
}

func (m *mapStore) Revoke(_ context.Context, key Key) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.tokens, key)
	return nil
}

// engine is a realm with a clock that the test sets.
type engine struct {
	*Engine
	store *mapStore
	nanos atomic.Int64
}

func (e *engine) now() time.Time          { return time.Unix(0, e.nanos.Load()) }
func (e *engine) advance(d time.Duration) { e.nanos.Add(int64(d)) }

// newEngine makes a realm with these clients. change, if not nil, adapts its settings.
func newEngine(t testing.TB, change func(*Settings), clients ...*Client) *engine {
	t.Helper()
	e := &engine{store: &mapStore{tokens: make(map[Key]Token)}}
	e.nanos.Store(time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC).UnixNano())
	cache, err := introspect.NewCache(introspect.CacheConfig{MaxTokens: 1000, Now: e.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cache.Close)
	cfg := Settings{
		Realm: "root", Clients: make(map[string]*Client), Store: e.store, Cache: cache, MaxAge: time.Minute,
		Hasher: NewHasher(), Now: e.now,
	}
	for _, c := range clients {
		cfg.Clients[c.ID] = c
	}
	if change != nil {
		change(&cfg)
	}
	e.Engine = New(cfg)
	e.agree("a key of thirty-two random bytes")
	return e
}

// agree shares a key, and a generation for each client.
func (e *engine) agree(key string) {
	generations := make(map[string]uint64)
	for id := range e.state.Load().clients.byID {
		generations[id] = 1
	}
	e.Share(Shared{Key: []byte(key), Generations: generations})
}

// authenticate asks the engine as it is now.
func (e *engine) authenticate(ctx context.Context, r Request, out *Outcome) (*registered, error) {
	return e.Engine.authenticate(ctx, e.state.Load().clients, r, out)
}

// newClient makes a client that may do everything, with these secrets.
func newClient(id string, secrets ...*Secret) *Client {
	return &Client{
		ID: id, Secrets: secrets, Scopes: []string{"a", "b"}, DefaultScopes: []string{"a"},
		GrantTypes: []string{GrantClientCredentials}, Auth: []string{AuthBasic, AuthPost},
		TokenLifetime: 2 * time.Second, Introspect: IntrospectOwn,
	}
}

// quickSecret is a Secret that is checked in microseconds.
func quickSecret(t testing.TB, plain string) *Secret {
	t.Helper()
	return macSecret(plain)
}

// slowSecret is a Secret behind an Argon2id hash of m KiB.
func slowSecret(t testing.TB, plain string, m, passes uint32) *Secret {
	t.Helper()
	salt := []byte("salt of " + fmt.Sprint(m, passes, len(plain)))
	b64 := base64.RawStdEncoding.EncodeToString
	s, err := HashedSecret(fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=1$%s$%s", m, passes, b64(salt), b64(argon2.IDKey([]byte(plain), salt, passes, m, 1, 32))))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// from is where most requests come from.
var from = netip.MustParseAddr("192.0.2.1")

// request is a form posted with Basic credentials, from an address.
func request(t testing.TB, id, secret string, form url.Values) Request {
	t.Helper()
	pair := url.QueryEscape(id) + ":" + url.QueryEscape(secret)
	r, err := ParseRequest(Incoming{
		Authorization: []string{"Basic " + base64.StdEncoding.EncodeToString([]byte(pair))}, Body: form.Encode(), From: from,
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var grantForm = url.Values{"grant_type": {GrantClientCredentials}}

// issue fetches a token that must be given.
func (e *engine) issue(t testing.TB, id, secret string) string {
	t.Helper()
	grant, _, err := e.Token(t.Context(), request(t, id, secret, grantForm))
	if err != nil {
		t.Fatalf("no token for %s: %v", id, err)
	}
	return grant.Token
}

// uncached asks the realm itself, without the cache.
type uncached struct{ *issued }

func (u uncached) Lookup(ctx context.Context, text string) (*introspect.Facts, error) {
	return u.issued.Lookup(ctx, introspect.NewToken(text))
}

// active asks whether a token is good, of the cache or of the source itself.
func active(t testing.TB, src interface {
	Lookup(ctx context.Context, text string) (*introspect.Facts, error)
}, token string) bool {
	t.Helper()
	facts, err := src.Lookup(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	return facts.Active
}

// codeOf is the code of a refusal, "" for success, and "outage" for any other error.
func codeOf(err error) Code {
	var refusal *Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &refusal):
		return refusal.Code
	}
	return "outage"
}

// A token is good until its expiry and dead at it, from the cache and from the store.
func TestTokenLivesAsLongAsItSaid(t *testing.T) {
	for _, maxAge := range []time.Duration{time.Minute, 0} {
		e := newEngine(t, func(cfg *Settings) { cfg.MaxAge = maxAge }, newClient("c", quickSecret(t, "s")))
		grant, _, err := e.Token(t.Context(), request(t, "c", "s", grantForm))
		if err != nil {
			t.Fatal(err)
		}
		if grant.Lifetime != 2*time.Second {
			t.Fatalf("the lifetime is %v", grant.Lifetime)
		}
		token, issued := grant.Token, e.now()
		expiry := issued.Add(2 * time.Second).Truncate(time.Millisecond)
		for _, c := range []struct {
			at   time.Time
			want bool
		}{
			{issued, true},
			{issued.Add(1500 * time.Millisecond), true},
			{expiry.Add(-time.Millisecond), true},
			{expiry.Add(-1), true},
			{expiry, false},
			{expiry.Add(1), false},
			{issued.Add(2050 * time.Millisecond), false},
			{issued.Add(24 * time.Hour), false},
		} {
			e.nanos.Store(c.at.UnixNano())
			for name, got := range map[string]bool{
				"the cache": active(t, e.Tokens(), token), "the cache once more": active(t, e.Tokens(), token), "the realm": active(t, uncached{e.issued}, token),
			} {
				if got != c.want {
					t.Errorf("max age %v, %v after the issue: %s says that active is %t", maxAge, c.at.Sub(issued), name, got)
				}
			}
			facts, _, err := e.Introspect(t.Context(), request(t, "c", "s", url.Values{"token": {token}}))
			if err != nil || facts.Active != c.want {
				t.Errorf("max age %v, %v after the issue: introspection says %v, %v", maxAge, c.at.Sub(issued), facts, err)
			}
		}
	}
}

// What a request has found out about its token holds for one realm, one key and one moment: it is
// no finding of another realm, of a key that was shared since, or of a later time.
func TestAFindingHoldsForOneRealmOneKeyAndOneMoment(t *testing.T) {
	const key, another = "a key of thirty-two random bytes", "another key that is just as long"
	e := newEngine(t, nil, newClient("c", quickSecret(t, "s")))
	other := newEngine(t, func(cfg *Settings) { cfg.Realm = "other"; cfg.Now = e.now }, newClient("c", quickSecret(t, "s")))
	token := introspect.NewToken(e.issue(t, "c", "s"))
	check := func(when string, e *engine, recognized, minted bool) {
		t.Helper()
		// Each in turn, and again with what the one before has left in the token.
		for range 2 {
			if got := e.Recognizes(&token); got != recognized {
				t.Errorf("%s: recognized is %t", when, got)
			}
			if got, err := e.Minted(&token); got != minted || err != nil {
				t.Errorf("%s: minted is %t, %v", when, got, err)
			}
			if facts, err := e.Tokens().LookupWithin(t.Context(), &token, time.Minute); err != nil || facts.Active != recognized {
				t.Errorf("%s: a lookup says %v, %v", when, facts, err)
			}
		}
	}
	check("in its realm", e, true, true)
	check("in another realm, with the same key", other, false, false)
	check("in its realm again", e, true, true)
	e.agree(another)
	check("with another key", e, false, false)
	e.agree(key)
	check("with its key again", e, true, true)
	e.advance(2 * time.Second)
	check("at its expiry", e, false, true)
	check("in another realm at its expiry", other, false, false)
}

// A string that was not minted here costs no lookup, and nothing that resembles a token is that
// token.
func TestOnlyTheExactTokenCounts(t *testing.T) {
	e := newEngine(t, nil, newClient("c", quickSecret(t, "s")))
	token := e.issue(t, "c", "s")
	refuse := func(what, text string) {
		t.Helper()
		if text == token {
			return
		}
		if _, ok := e.issued.Screen(introspect.NewToken(text)); ok || active(t, e.Tokens(), text) || active(t, uncached{e.issued}, text) {
			t.Errorf("%s is accepted: %q", what, text)
		}
		r := request(t, "c", "s", url.Values{"token": {"x"}})
		r.Form["token"] = []string{text} // also what no form lets through
		if out, err := e.Revoke(t.Context(), r); out.TokenID != (introspect.TokenID{}) || err != nil && codeOf(err) == "outage" {
			t.Errorf("%s revokes: %q, %v", what, text, err)
		}
	}
	for n := range len(token) {
		refuse("a proper prefix", token[:n])
		refuse("a proper suffix", token[n+1:])
		c := token[n : n+1]
		refuse("one character in another case", token[:n]+strings.ToUpper(c)+token[n+1:])
		refuse("one character in another case", token[:n]+strings.ToLower(c)+token[n+1:])
		refuse("one character left out", token[:n]+token[n+1:])
		refuse("one character twice", token[:n]+c+token[n:])
		for _, other := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/=. %\n\x00" {
			refuse("one character changed", token[:n]+string(other)+token[n+1:])
		}
		if n+1 < len(token) {
			refuse("two characters swapped", token[:n]+token[n+1:n+2]+c+token[n+2:])
		}
	}
	for what, text := range map[string]string{
		"nothing": "", "the prefix alone": TokenPrefix, "a character more": token + "A", "padding": token + "=", "more padding": token + "==",
		"a line break after it": token + "\n", "a line break in it": token[:20] + "\n" + token[20:], "a carriage return in it": token[:20] + "\r" + token[21:],
		"a space before it": " " + token, "a space after it": token + " ", "the standard alphabet": strings.NewReplacer("-", "+", "_", "/").Replace(token) + "=",
		"percent-encoded": url.QueryEscape(token[:10]) + "%5F" + token[11:], "upper case": strings.ToUpper(token), "lower case": strings.ToLower(token),
		"twice": token + token, "another prefix": "cos_" + token[4:], "no prefix": token[4:], "a NUL after it": token + "\x00", "10 KiB": strings.Repeat("x", 10<<10),
		"the scheme before it": "Bearer " + token,
	} {
		refuse(what, text)
	}

	// The same bytes with another version, another expiry, other randomness: the tag knows.
	raw, err := opaqueEncoding.DecodeString(token[len(TokenPrefix):])
	if err != nil {
		t.Fatal(err)
	}
	if TokenPrefix+opaqueEncoding.EncodeToString(raw) != token {
		t.Error("the token is not its own encoding")
	}
	for i := range raw {
		for bit := range 8 {
			raw[i] ^= 1 << bit
			refuse(fmt.Sprintf("byte %d, bit %d", i, bit), TokenPrefix+opaqueEncoding.EncodeToString(raw))
			raw[i] ^= 1 << bit
		}
	}
	// Another realm of the same key, and the same realm under another key.
	other := newEngine(t, func(cfg *Settings) { cfg.Realm = "alpha" }, newClient("c", quickSecret(t, "s")))
	refuse("a token of another realm", other.issue(t, "c", "s"))
	rekeyed := newEngine(t, nil, newClient("c", quickSecret(t, "s")))
	rekeyed.agree("another key")
	refuse("a token under another key", rekeyed.issue(t, "c", "s"))

	if n := e.store.gets.Load(); n != 0 {
		t.Errorf("the store was asked %d times about tokens that were not minted here", n)
	}
	if !active(t, e.Tokens(), token) {
		t.Error("the token itself is refused")
	}
}

// Of 100000 tokens no two are alike, and their random bytes look random.
func TestTokensAreRandom(t *testing.T) {
	const n = 100_000
	e := newEngine(t, nil)
	seen := make(map[string]bool, n)
	ids := make(map[introspect.TokenID]bool, n)
	var total [256]int
	var at [opaqueTag - opaqueRandom][256]int
	for range n {
		token, _, err := e.state.Load().agreed.opaque.mint(e.now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := opaqueEncoding.DecodeString(token[len(TokenPrefix):])
		if err != nil {
			t.Fatal(err)
		}
		random := raw[opaqueRandom:opaqueTag]
		seen[string(random)] = true
		ids[introspect.IDOf(token)] = true
		for i, b := range random {
			total[b]++
			at[i][b]++
		}
	}
	if len(seen) != n || len(ids) != n {
		t.Errorf("of %d tokens %d have different random bytes and %d different IDs", n, len(seen), len(ids))
	}
	if bits := 8 * (opaqueTag - opaqueRandom); bits < 160 {
		t.Errorf("a token has %d random bits, want 160 at least", bits)
	}
	// Chi-square with 255 degrees of freedom has mean 255 and deviation 22.6. Ten deviations
	// are beyond any chance; too even is no more random than too uneven.
	chi := func(counts *[256]int) (sum float64) {
		all := 0
		for _, c := range counts {
			all += c
		}
		expected := float64(all) / 256
		for _, c := range counts {
			sum += (float64(c) - expected) * (float64(c) - expected) / expected
		}
		return sum
	}
	if x := chi(&total); x < 100 || x > 480 {
		t.Errorf("chi-square over all random bytes is %.0f, want about 255", x)
	}
	for i := range at {
		if x := chi(&at[i]); x < 100 || x > 480 {
			t.Errorf("chi-square over random byte %d is %.0f, want about 255", i, x)
		}
	}
}

// Without randomness there is no token, and nothing is stored.
func TestNoTokenWithoutRandomness(t *testing.T) {
	for name, random := range map[string]io.Reader{
		"an error":    noEntropy{},
		"nothing":     strings.NewReader(""),
		"a byte less": strings.NewReader(strings.Repeat("r", opaqueTag-opaqueRandom-1)),
	} {
		e := newEngine(t, func(cfg *Settings) { cfg.Random = random }, newClient("c", quickSecret(t, "s")))
		grant, out, err := e.Token(t.Context(), request(t, "c", "s", grantForm))
		if grant.Token != "" || codeOf(err) != "outage" || out.TokenID != (introspect.TokenID{}) {
			t.Errorf("%s: %v, %v", name, grant, err)
		}
		if e.store.puts.Load() != 0 {
			t.Errorf("%s: something was stored", name)
		}
	}
}

type noEntropy struct{}

func (noEntropy) Read([]byte) (int, error) { return 0, errors.New("no entropy") }

// The store gets the token's ID, never the token.
func TestStoreNeverSeesTheToken(t *testing.T) {
	e := newEngine(t, nil, newClient("c", quickSecret(t, "canary-secret")))
	token := e.issue(t, "c", "canary-secret")
	for key, record := range e.store.tokens {
		if key.ID != introspect.IDOf(token) || record.Key != key || record.Realm != "root" || record.ClientID != "c" {
			t.Errorf("the record is %+v under %+v", record, key)
		}
		dump := fmt.Sprintf("%+v %#v", record, record)
		if strings.Contains(dump, token) || strings.Contains(dump, token[4:20]) || strings.Contains(dump, "canary") {
			t.Errorf("the record holds the token or the secret: %s", dump)
		}
	}
}

// A record that is not the one asked for is an outage, not an answer.
func TestMisfiledRecords(t *testing.T) {
	for name, misfile := range map[string]func(Token) Token{
		"another token's": func(t Token) Token { t.ID[0]++; return t },
		"another realm's": func(t Token) Token { t.Realm = "alpha"; return t },
		"an empty one":    func(Token) Token { return Token{} },
	} {
		e := newEngine(t, nil, newClient("c", quickSecret(t, "s")))
		token := e.issue(t, "c", "s")
		e.store.misfile = misfile
		if facts, err := e.Tokens().Lookup(t.Context(), token); err == nil {
			t.Errorf("%s record is an answer: %+v", name, facts)
		}
		form := url.Values{"token": {token}}
		if _, _, err := e.Introspect(t.Context(), request(t, "c", "s", form)); codeOf(err) != "outage" {
			t.Errorf("%s record at introspection: %v", name, err)
		}
		if _, err := e.Revoke(t.Context(), request(t, "c", "s", form)); codeOf(err) != "outage" {
			t.Errorf("%s record at revocation: %v", name, err)
		}
	}
}

// A client may ask about garbage a thousand times at once, then a hundred times a second. Questions
// about good tokens are free and always answered: otherwise anybody who sends a resource server
// garbage could shut out its other callers.
func TestGuessesAreLimited(t *testing.T) {
	c := newClient("c", quickSecret(t, "s"))
	c.TokenLifetime = time.Hour
	e := newEngine(t, nil, c, newClient("d", quickSecret(t, "s")))
	good := e.issue(t, "c", "s")
	ask := func(id, token string) Code {
		_, _, err := e.Introspect(t.Context(), request(t, id, "s", url.Values{"token": {token}}))
		return codeOf(err)
	}
	for range 1500 {
		if code := ask("c", good); code != "" {
			t.Fatalf("a question about a good token: %s", code)
		}
	}
	for i := range 1000 {
		if code := ask("c", "garbage"); code != "" {
			t.Fatalf("question %d about garbage: %s", i+1, code)
		}
	}
	if code := ask("c", "garbage"); code != CodeTooManyRequests {
		t.Errorf("beyond the limit, about garbage: %q", code)
	}
	if code := ask("c", good); code != "" {
		t.Errorf("beyond the limit, about a good token: %q", code)
	}
	if code := ask("d", "garbage"); code != "" {
		t.Errorf("another client: %q", code)
	}
	e.advance(20 * time.Millisecond)
	for i, want := range []Code{"", "", CodeTooManyRequests} {
		if code := ask("c", "garbage"); code != want {
			t.Errorf("question %d after 20 ms: %q, want %q", i+1, code, want)
		}
	}
}

// A client fetches as many tokens as its limit says, and more as time passes. Requests that were
// refused for another reason don't count, and other clients are not affected.
func TestTokenLimit(t *testing.T) {
	limited := newClient("limited", quickSecret(t, "s"))
	limited.TokenLimit = Limit{Count: 3, Per: time.Minute}
	e := newEngine(t, nil, limited, newClient("free", quickSecret(t, "s")))
	fetch := func(id, scope string) Code {
		form := url.Values{"grant_type": {GrantClientCredentials}, "scope": {scope}}
		_, _, err := e.Token(t.Context(), request(t, id, "s", form))
		return codeOf(err)
	}
	for range 10 {
		if code := fetch("limited", "unknown"); code != CodeInvalidScope {
			t.Fatalf("a scope that it does not have: %q", code)
		}
	}
	for i, c := range []struct {
		advance time.Duration
		want    Code
	}{
		{0, ""}, {0, ""}, {0, ""}, {0, CodeTooManyRequests}, {19 * time.Second, CodeTooManyRequests},
		{time.Second, ""}, {0, CodeTooManyRequests}, {time.Hour, ""}, {0, ""}, {0, ""}, {0, CodeTooManyRequests},
	} {
		e.advance(c.advance)
		puts := e.store.puts.Load()
		if code := fetch("limited", "a"); code != c.want {
			t.Errorf("request %d: %q, want %q", i, code, c.want)
		}
		if n := e.store.puts.Load() - puts; (n == 1) != (c.want == "") {
			t.Errorf("request %d: %d tokens were stored", i, n)
		}
		if code := fetch("free", "a"); code != "" {
			t.Errorf("another client: %q", code)
		}
	}
}

// generationStore knows the generation of each client.
type generationStore struct {
	*mapStore
	current atomic.Uint64
}

func (g *generationStore) Generation(context.Context, ClientRef) (uint64, error) {
	return g.current.Load(), nil
}

// A token that was issued after a change that the gateway has not heard of yet is good if the store says
// so, and then no former token is.
func TestATokenTellsOfAChange(t *testing.T) {
	t.Parallel()
	store := &generationStore{mapStore: &mapStore{tokens: make(map[Key]Token)}}
	store.current.Store(1)
	node := func() *engine {
		return newEngine(t, func(cfg *Settings) { cfg.Store, cfg.Coherent = store, func() bool { return true } }, newClient("reader", quickSecret(t, "secret")))
	}
	here, there := node(), node()
	good := func(token string) bool {
		facts, err := uncached{here.issued}.Lookup(t.Context(), token)
		return err == nil && here.issued.Revise(facts).Active
	}
	former := there.issue(t, "reader", "secret")
	if !good(former) {
		t.Fatal("a token is not good at the other gateway")
	}
	store.current.Store(2)
	there.Raise(map[string]uint64{"reader": 2})
	later := there.issue(t, "reader", "secret")
	if !good(later) {
		t.Error("a token that was issued after the change is not good")
	}
	if good(former) {
		t.Error("a token from before the change is good")
	}
	// What no store says is no change.
	there.Raise(map[string]uint64{"reader": 3})
	if good(there.issue(t, "reader", "secret")) {
		t.Error("a token of a generation that the store knows nothing of is good")
	}
}
