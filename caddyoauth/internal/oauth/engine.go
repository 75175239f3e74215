package oauth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// storeTimeout bounds what a token request does with the store, and a revocation. An
// answer that takes longer is an outage for whoever waits. Lookups have the timeout of
// the cache.
const storeTimeout = 2 * time.Second

// Settings are what one realm is made of. They are not changed after New.
type Settings struct {
	// Realm is the realm's name; "root" is the one without a name.
	Realm string
	// Issuer is the issuer identifier (RFC 8414 section 2), or empty.
	Issuer string
	// Clients are the realm's clients by client ID.
	Clients map[string]*Client

	// Store keeps the tokens. The realm does not close it.
	Store TokenStore
	// Cache stands in front of the store, and of every lookup. The realm does not close it.
	Cache *introspect.Cache
	// MaxAge bounds how long the cache answers without asking the store; zero or less
	// turns it off.
	MaxAge time.Duration
	// Coherent reports whether the store has told of all that other gateways did to it; see
	// [introspect.Coherent]. Nil for a store that nobody else writes to.
	Coherent func() bool

	// Hasher bounds the slow secret hashes. Realms may share one.
	Hasher *Hasher
	// Now is the wall clock. Default: time.Now.
	Now func() time.Time
	// Random is where token bytes come from. Default: crypto/rand.
	Random io.Reader
}

// Engine is the authorization server of one realm. It is safe for concurrent use and
// owns nothing that needs closing.
//
// It is an [introspect.Source] for the tokens that it issued: Screen judges a token by
// computation, Lookup reads the store, Revise applies what the configuration says of
// the token's client now.
type Engine struct {
	cfg    Settings
	lookup *introspect.CachedSource
	// agreed is nil until the first Share.
	agreed atomic.Pointer[agreement]
	// work is what a failed authentication costs in this realm, whatever made it fail.
	work workload
}

// Shared is what all gateways that share a store must agree on. It lies in the store.
type Shared struct {
	// Key authenticates tokens.
	Key []byte
	// Generations are those of the realm's clients by client ID, from TokenStore.Admit.
	Generations map[string]uint64
}

// agreement is a Shared in use.
type agreement struct {
	taggers     sync.Pool // of *tagger, with this realm's key
	generations map[string]uint64
}

// New makes the server of a realm. Until Share is called all it says is ErrUnreachable.
func New(cfg Settings) *Engine {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	e := &Engine{cfg: cfg}
	for _, c := range cfg.Clients {
		c.guesses = newGuessLimit()
		c.fetches = c.TokenLimit.limiter()
	}
	e.lookup = cfg.Cache.Wrap(CacheName(cfg.Realm), e, cfg.MaxAge)
	e.work = heaviest(cfg.Clients)
	return e
}

// Share tells the server what the store says now. It may be called while requests run.
func (e *Engine) Share(shared Shared) {
	// A key of the realm's own: a token of one realm is garbage to every other.
	derive := hmac.New(sha256.New, shared.Key)
	io.WriteString(derive, "opaque token v1\x00"+e.cfg.Realm)
	realmKey := derive.Sum(nil)
	a := &agreement{generations: maps.Clone(shared.Generations)}
	a.taggers.New = func() any { return &tagger{mac: hmac.New(sha256.New, realmKey)} }
	e.agreed.Store(a)
}

// agreement returns what was shared last.
func (e *Engine) agreement() (*agreement, error) {
	if a := e.agreed.Load(); a != nil {
		return a, nil
	}
	return nil, fmt.Errorf("%w: not once since the start", ErrUnreachable)
}

// CacheName is what the cache knows the tokens of a realm by; see [introspect.Cache.Wrap].
func CacheName(realm string) string { return introspect.CacheName("local", realm) }

// Tokens is how everybody else asks about the realm's tokens: this server with the
// cache in front.
func (e *Engine) Tokens() *introspect.CachedSource { return e.lookup }

// TokenResponse is a successful answer of the token endpoint (RFC 6749 section 5.1),
// its members in the order of the wire form.
type TokenResponse struct {
	AccessToken string `json:"access_token"`
	Scope       string `json:"scope"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int64  `json:"expires_in"`
}

// Outcome says, for logs and metrics, what a request to an endpoint came to. It holds
// no secret and no token.
type Outcome struct {
	// ClientID is the client, once it is known to be registered here.
	ClientID string
	// TokenID is the token that was issued, asked about or revoked, once it is known to
	// be one of ours.
	TokenID introspect.TokenID
	// Scope is the scope granted, space-separated.
	Scope string
	// NotPermitted: the token is good, and the client may not ask about it. It was told what
	// it is told of any token that is not good.
	NotPermitted bool
}

// Token answers a token request with the client credentials grant (RFC 6749 section
// 4.4). The order of checks gives strangers no oracle: the form, the client, the
// grant, the scope. The token is in the store, durably, before Token returns.
//
// The error is an *Error, or tells that the store or the random source failed.
func (e *Engine) Token(ctx context.Context, req Request) (*TokenResponse, Outcome, error) {
	var out Outcome
	grant := req.Form.Get("grant_type")
	if grant == "" {
		return nil, out, invalidRequest("grant_type is missing")
	}
	client, err := e.authenticate(ctx, req, &out)
	if err != nil {
		return nil, out, err
	}
	if grant != GrantClientCredentials {
		return nil, out, &Error{Code: CodeUnsupportedGrantType, Description: "the grant type is not supported"}
	}
	if !slices.Contains(client.GrantTypes, grant) {
		return nil, out, &Error{Code: CodeUnauthorizedClient, Description: "the client is not authorized to use this grant type"}
	}
	scopes, err := client.grantScopes(req.Form.Get("scope"))
	if err != nil {
		return nil, out, err
	}

	agreed, err := e.agreement()
	if err != nil {
		return nil, out, err
	}
	now := e.cfg.Now()
	if client.fetches != nil && !client.fetches.AllowN(now, 1) {
		return nil, out, &Error{Code: CodeTooManyRequests, Description: "the client fetches too many tokens", Reason: "token_limit"}
	}
	issued := now.Truncate(time.Millisecond) // as exact as the token itself
	token, key, err := e.mint(agreed, issued.Add(client.TokenLifetime))
	if err != nil {
		return nil, out, err
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	err = e.cfg.Store.Put(ctx, Token{
		Key:              key,
		ClientID:         client.ID,
		ClientGeneration: agreed.generations[client.ID],
		Scopes:           scopes,
		Audience:         client.Audience,
		IssuedAt:         issued,
	})
	if errors.Is(err, ErrClientFull) {
		return nil, out, &Error{Code: CodeTooManyRequests, Description: "the client has too many tokens", Reason: "store_share"}
	}
	if err != nil {
		return nil, out, fmt.Errorf("storing a token: %w", err)
	}
	out.TokenID, out.Scope = key.ID, strings.Join(scopes, " ")
	return &TokenResponse{
		AccessToken: token,
		Scope:       out.Scope,
		TokenType:   "Bearer",
		ExpiresIn:   int64(client.TokenLifetime / time.Second),
	}, out, nil
}

// Introspection is an answer of the introspection endpoint (RFC 7662 section 2.2). The
// zero value is {"active":false} and nothing more.
type Introspection struct {
	Active    bool     `json:"active"`
	Scope     string   `json:"scope,omitempty"`
	ClientID  string   `json:"client_id,omitempty"`
	TokenType string   `json:"token_type,omitempty"`
	Expiry    int64    `json:"exp,omitempty"`
	IssuedAt  int64    `json:"iat,omitempty"`
	Subject   string   `json:"sub,omitempty"`
	Audience  audience `json:"aud,omitempty"`
	Issuer    string   `json:"iss,omitempty"`
	JTI       string   `json:"jti,omitempty"`
}

// Introspect answers an introspection request. A token that is not good, or that the
// caller may not ask about, is inactive, and the two look alike. A caller that keeps
// asking about tokens that are no good is refused for a while (RFC 7662 section 4).
func (e *Engine) Introspect(ctx context.Context, req Request) (*Introspection, Outcome, error) {
	var out Outcome
	caller, err := e.authenticate(ctx, req, &out)
	if err != nil {
		return nil, out, err
	}
	text := req.Form.Get("token")
	if text == "" {
		return nil, out, invalidRequest("token is missing")
	}
	token, mine := e.Screen(introspect.NewToken(text))
	// What carries our mark and is not expired is always looked up: callers of a resource
	// server must not be able to use up its answers for good tokens with made-up ones.
	now := e.cfg.Now()
	if !mine && !caller.guesses.mayAsk(now) {
		return nil, out, &Error{Code: CodeTooManyRequests, Description: "too many inquiries about tokens that are not active"}
	}
	facts, err := e.lookup.LookupWithin(ctx, token, math.MaxInt64)
	if err != nil {
		return nil, out, fmt.Errorf("looking up a token: %w", err)
	}
	scopes, permitted := caller.mayIntrospect(facts)
	if facts.Active {
		out.TokenID, out.NotPermitted = facts.ID, !permitted
	}
	if !permitted {
		caller.guesses.wrong(now)
		return &Introspection{}, out, nil
	}
	return &Introspection{
		Active:    true,
		Scope:     strings.Join(scopes, " "),
		ClientID:  facts.ClientID,
		TokenType: "Bearer",
		Expiry:    facts.Expiry.Unix(),
		IssuedAt:  facts.IssuedAt.Unix(),
		Subject:   facts.Subject,
		Audience:  facts.Audience,
		Issuer:    facts.Issuer,
		JTI:       jtiOf(facts.ID),
	}, out, nil
}

// Revoke answers a revocation request (RFC 7009). A token that is unknown, expired or
// revoked already is a success; one of another client is refused and stays as it is.
// When Revoke returns nil the revocation is durable and no request that begins later
// passes with the token. Outcome.TokenID is zero if there was nothing to revoke.
func (e *Engine) Revoke(ctx context.Context, req Request) (out Outcome, err error) {
	client, err := e.authenticate(ctx, req, &out)
	if err != nil {
		return out, err
	}
	text := req.Form.Get("token")
	if text == "" {
		return out, invalidRequest("token is missing")
	}
	agreed, err := e.agreement()
	if err != nil {
		return out, err
	}
	token := introspect.NewToken(text)
	expiry, inTime := e.verify(agreed, &token)
	if expiry == 0 {
		return out, nil
	}
	// One whose time is over is revoked too: a clock that went wrong may be set back, and
	// the token would be good again.
	key := e.key(token.ID(), expiry)
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	// The store, not the cache: a revocation must not be decided by what was.
	record, err := e.get(ctx, key)
	if errors.Is(err, ErrNotFound) {
		// Another revocation may have come so far and not yet to the cache; or it was
		// given up by its caller, then carried out by the store after a lookup.
		e.lookup.Forget(key.ID)
		return out, nil
	}
	if err != nil {
		return out, fmt.Errorf("looking up a token to revoke: %w", err)
	}
	if record.ClientID != client.ID {
		if !inTime {
			return out, nil
		}
		return out, &Error{Code: CodeInvalidGrant, Description: "the token was issued to another client"}
	}
	done := e.lookup.Revoking(key.ID)
	err = e.cfg.Store.Revoke(ctx, key)
	done() // whatever the store said: it may have done it
	if err != nil {
		return out, fmt.Errorf("revoking a token: %w", err)
	}
	out.TokenID = key.ID
	return out, nil
}

// Screen reports whether token carries this realm's mark and has not expired. See
// [introspect.Screener].
func (e *Engine) Screen(token introspect.Token) (introspect.Token, bool) {
	agreed, err := e.agreement()
	if err != nil {
		return token, true // it may be: Lookup says that nobody knows
	}
	_, ok := e.verify(agreed, &token)
	return token, ok
}

// HasForm reports whether token has the form of the tokens that are issued here. It says
// nothing of which realm issued it, or whether any did.
func HasForm(token string) bool {
	return len(token) == tokenLength && token[:len(tokenPrefix)] == tokenPrefix
}

// Recognizes reports whether token has our form, carries this realm's mark and has not
// expired. Before the first Share nobody can tell, so whatever has our form counts: a
// lookup then says that nobody knows.
func (e *Engine) Recognizes(token introspect.Token) (introspect.Token, bool) {
	if !HasForm(token.Text()) {
		return token, false
	}
	return e.Screen(token)
}

// Minted reports whether this realm issued token, whether or not the token is still good.
// Before the first Share nobody can tell of a token that has our form, which is the error.
func (e *Engine) Minted(token introspect.Token) (bool, error) {
	if !HasForm(token.Text()) {
		return false, nil
	}
	agreed, err := e.agreement()
	if err != nil {
		return false, err
	}
	expiry, _ := e.verify(agreed, &token)
	return expiry != 0, nil
}

// Coherent reports whether the cache may answer. See [introspect.Coherent].
func (e *Engine) Coherent() bool {
	// Revise knows no generations before the first Share.
	return e.agreed.Load() != nil && (e.cfg.Coherent == nil || e.cfg.Coherent())
}

// Lookup reads the facts of a token from the store. See [introspect.Source].
func (e *Engine) Lookup(ctx context.Context, token introspect.Token) (*introspect.Facts, error) {
	agreed, err := e.agreement()
	if err != nil {
		return nil, err
	}
	expiry, ok := e.verify(agreed, &token)
	if !ok {
		return introspect.Inactive(), nil
	}
	key := e.key(token.ID(), expiry)
	record, err := e.get(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return introspect.Inactive(), nil
	}
	if err != nil {
		return nil, err
	}
	return &introspect.Facts{
		Active:   true,
		ID:       key.ID,
		ClientID: record.ClientID,
		Subject:  record.ClientID,
		Issuer:   e.cfg.Issuer,
		Scopes:   record.Scopes,
		Audience: record.Audience,
		IssuedAt: record.IssuedAt,
		Expiry:   key.Expiry(),
		Revision: record.ClientGeneration,
	}, nil
}

// get reads a record and checks that it is what was asked for: a store that mixes up
// its answers must not hand one token's rights to another.
func (e *Engine) get(ctx context.Context, key Key) (Token, error) {
	record, err := e.cfg.Store.Get(ctx, key)
	if err != nil {
		return Token{}, err
	}
	if record.ID != key.ID || record.Realm != e.cfg.Realm {
		return Token{}, errors.New("the store returned another token's record")
	}
	return record, nil
}

// Revise applies the client's state of now: a client that is gone, disabled, or of a
// later generation has no tokens, and one whose scopes or audience were narrowed has
// tokens as narrow. See [introspect.Reviser].
func (e *Engine) Revise(facts *introspect.Facts) *introspect.Facts {
	client := e.cfg.Clients[facts.ClientID]
	agreed := e.agreed.Load()
	if client == nil || client.Disabled || agreed == nil || agreed.generations[client.ID] != facts.Revision {
		return introspect.Inactive()
	}
	scopesHold := containsAll(client.Scopes, facts.Scopes)
	audienceHolds := containsAll(client.Audience, facts.Audience)
	if scopesHold && audienceHolds && facts.Issuer == e.cfg.Issuer {
		return facts
	}
	revised := *facts
	revised.Issuer = e.cfg.Issuer
	revised.Scopes = intersect(facts.Scopes, client.Scopes)
	revised.Audience = intersect(facts.Audience, client.Audience)
	if len(facts.Audience) > 0 && len(revised.Audience) == 0 {
		// Without any audience left the token would be good everywhere.
		return introspect.Inactive()
	}
	return &revised
}

func containsAll(have, want []string) bool {
	for _, w := range want {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return true
}

// intersect returns what of a is also in b, in a's order, in memory of its own.
func intersect(a, b []string) []string {
	var both []string
	for _, v := range a {
		if slices.Contains(b, v) {
			both = append(both, v)
		}
	}
	return both
}
