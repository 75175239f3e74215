package oauth

import (
	"context"
	"crypto/rand"
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

// StoreTimeout bounds what a token request or a revocation does with the store. To whoever
// waits, an answer that takes longer is an outage. Lookups have the timeout of the cache.
const StoreTimeout = 2 * time.Second

// Settings are what one realm is made of. They don't change after New.
type Settings struct {
	// Realm is the realm's name; "root" is the one without a name.
	Realm string
	// Issuer is the issuer identifier (RFC 8414 section 2), or empty.
	Issuer string
	// AM is what new JWTs with the claims of ForgeRock AM say of the realm.
	AM AMClaims
	// Clients are the realm's clients by client ID. [Engine.SetClients] replaces them.
	Clients map[string]*Client

	// Store keeps the tokens. The engine does not close it.
	Store TokenStore
	// Keys is the store's ability to serve self-contained tokens. Nil if it has none; then no client
	// has such tokens.
	Keys KeyStore
	// IntrospectScope is the scope of the access tokens by which clients may introspect, instead of their
	// credentials. Empty if none may.
	IntrospectScope string
	// Replays is the store's ability to remember which assertions were used. Nil if it has none; then
	// no client authenticates by one.
	Replays ReplayStore
	// Proofs judges the DPoP proofs of token requests. Nil if the realm ignores them; then no client has
	// DPoPRequired.
	Proofs *Proofs
	// Managed is the store's ability to keep managed clients. Nil if it has none, or the realm has no
	// managed clients.
	Managed ClientStore
	// Unusable returns the version of a managed client that has been heard of and can't be used, so that
	// SetManaged has none of it. It reports false for all others. Nil if there are none.
	Unusable func(id string) (version uint64, ok bool)
	// Inventory notes what clients do; nil if nobody wants to know. InventoryAddresses is one of the
	// Address constants; the default is AddressPrefix.
	Inventory          *Inventory
	InventoryAddresses string
	// Cache stands in front of the store for every lookup. The engine does not close it. An
	// engine without Store and Cache can only suppose; see [Engine.Suppose].
	Cache *introspect.Cache
	// MaxAge bounds how long the cache answers without asking the store. Zero or less turns
	// the cache off.
	MaxAge time.Duration
	// Coherent reports whether the store has told of everything that others did to it, and
	// whether that has been shared with the engine; see [introspect.Coherent]. While it has not,
	// nothing is answered from the cache, and generations are asked of the store. Nil if nobody
	// else writes to the store.
	Coherent func() bool

	// Immediate says that the store answers Get, Generation and Denied from the memory or the files of
	// this process, so that they wait for nobody; see [introspect.Immediate].
	Immediate bool

	// Hasher bounds the slow secret hashes. Realms may share one.
	Hasher *Hasher
	// Failures counts failed authentications, for FailureLimit. Realms may share one. With none, or
	// with the zero FailureLimit, there is no limit.
	Failures     *Failures
	FailureLimit Limit
	// GrantTypeFirst refuses a grant type that doesn't exist before it is known which client asks. It
	// tells a stranger which grant types there are, which is no secret.
	GrantTypeFirst bool
	// Now is the wall clock. Default: time.Now.
	Now func() time.Time
	// Random is where the random bytes of tokens come from. Default: crypto/rand.
	Random io.Reader
}

// Engine is the authorization server of one realm: the rules of its endpoints. It is safe
// for concurrent use and owns nothing that needs closing.
type Engine struct {
	cfg    Settings
	issued *issued
	tokens *introspect.CachedSource // issued, behind the cache
	// strangers bounds the guesses of all who ask without being a client; see TokenInfo.
	strangers guessLimit

	// state is replaced as a whole, by whoever holds changing.
	state    atomic.Pointer[state]
	changing sync.Mutex
}

// state is what the engine goes by at one moment. It is immutable. A request reads it once and
// goes on with it, so that it sees one truth: a client that was authenticated before a change gets
// a token of its generation from before, which the change may have ended.
type state struct {
	clients *Clients
	agreed  *agreement // nil until the first Share
	// least are generations that some clients have reached; see Raise. It grows with the clients
	// of the realm.
	least map[string]uint64
}

// agreement is a Shared in use. Generations stand here rather than with the clients, because
// the store decides them and other gateways may raise them.
type agreement struct {
	realm, issuer string
	opaque        *opaque
	sealed        *sealed // nil if the realm has no keys for it
	jwts          *jwts   // likewise
	// epoch is that of the keys of self-contained tokens.
	epoch Epoch
	// covers, others and otherJWTKeys are from Shared.
	covers               func(keyring []byte) bool
	others, otherJWTKeys bool
	generations          map[string]uint64
}

// agreement returns what was shared last.
func (s *state) agreement() (*agreement, error) {
	if s.agreed == nil {
		return nil, fmt.Errorf("%w: not once since the start", ErrUnreachable)
	}
	return s.agreed, nil
}

// New makes the engine of a realm. Until Share is called, whatever takes the store fails with
// ErrUnreachable.
func New(cfg Settings) *Engine {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	e := &Engine{cfg: cfg, strangers: newGuessLimit()}
	e.cfg.Clients = nil // from here on they are in the state
	e.state.Store(&state{clients: new(Clients)})
	e.SetClients(cfg.Clients)
	if cfg.Inventory != nil {
		cfg.Inventory.begin(cfg.Realm)
	}
	e.issued = &issued{cfg: &e.cfg, state: &e.state, raise: e.Raise}
	if cfg.Cache != nil {
		e.tokens = cfg.Cache.Wrap(CacheName(cfg.Realm), e.issued, cfg.MaxAge)
	}
	return e
}

// SetClients replaces the realm's clients. It may be called while requests run: those that
// have begun go on with the clients from before. The map and the clients in it must not change
// afterwards.
//
// A client that stays, by its ID, keeps what it has used up of its limits. A client that is
// new gets no tokens before Share has told its generation, so call Share first.
func (e *Engine) SetClients(clients map[string]*Client) {
	e.change(func(next *state) { next.clients = newClients(clients, next.clients) })
}

// Shared is what all gateways that share a store must agree on. The store keeps it.
type Shared struct {
	// Key authenticates tokens.
	Key []byte
	// Generations are those of the realm's clients, by client ID, as [TokenStore.Admit]
	// returned them.
	Generations map[string]uint64
	// Epoch is that of the realm's keyring.
	Epoch Epoch
	// Covers reports whether all keys of a keyring, as it lies in the store, are shared here, and no
	// gateway can have others. Nil if there was no keyring.
	Covers func(keyring []byte) bool
	// SealKeys are the keys of sealed tokens in it: the first seals, all open. Without keys there
	// are no sealed tokens.
	SealKeys []SealKey
	// JWTKeys are the keys of JWTs with the claims of RFC 9068, and AMJWTKeys those of JWTs with the
	// claims of ForgeRock AM. Each verifies, and Signer returns the one that signs at a time, or nil if
	// none does yet. Without keys there are no JWTs.
	JWTKeys, AMJWTKeys []JWTKey
	Signer             func(now time.Time) JWTKey
	// Others is set if other gateways use the store.
	Others bool
	// OtherJWTKeys is set if another gateway may have keys of JWTs that are in no keyring.
	OtherJWTKeys bool
}

// Share tells the engine what the store says now. It may be called while requests run.
//
// The error says that a key is unusable. The engine then goes on with what it had.
func (e *Engine) Share(shared Shared) error {
	sealed, err := newSealed(e.cfg.Realm, shared.SealKeys, e.cfg.Now, e.cfg.Random)
	if err != nil {
		return fmt.Errorf("the keys of sealed tokens: %w", err)
	}
	agreed := &agreement{
		realm: e.cfg.Realm, issuer: e.cfg.Issuer,
		opaque: newOpaque(e.cfg.Realm, shared.Key, e.cfg.Now, e.cfg.Random),
		sealed: sealed,
		jwts:   newJWTs(&e.cfg, &shared),
		epoch:  shared.Epoch,
		covers: shared.Covers, others: shared.Others, otherJWTKeys: shared.OtherJWTKeys,
		generations: maps.Clone(shared.Generations),
	}
	var before *agreement
	e.change(func(next *state) {
		raise(agreed.generations, next.least)
		before, next.agreed = next.agreed, agreed
	})
	if before != nil && before.epoch != agreed.epoch && e.cfg.Cache != nil {
		// A key from a file goes on, so screen takes its tokens of before for good ones, and the cache
		// would answer.
		e.cfg.Cache.Flush()
	}
	return nil
}

// Raise tells the engine to which generations clients have passed, by client ID, as
// [TokenStore.EndTokens] returned them. No request that begins after it passes with a token of a
// former generation, and a Share that brings what the store said before that changes nothing.
func (e *Engine) Raise(generations map[string]uint64) {
	e.change(func(next *state) {
		next.least = maps.Clone(next.least)
		if next.least == nil {
			next.least = make(map[string]uint64)
		}
		raise(next.least, generations)
		if next.agreed != nil {
			agreed := *next.agreed
			agreed.generations = maps.Clone(agreed.generations)
			raise(agreed.generations, generations)
			next.agreed = &agreed
		}
	})
}

// raise makes generations at least as high as least. They never go back.
func raise(generations, least map[string]uint64) {
	for id, generation := range least {
		generations[id] = max(generations[id], generation)
	}
}

// Generations returns the generations that the engine goes by, by client ID; nil before the first
// Share.
func (e *Engine) Generations() map[string]uint64 {
	agreed := e.state.Load().agreed
	if agreed == nil {
		return nil
	}
	return maps.Clone(agreed.generations)
}

// Agreed reports whether Share has been called: until then, nobody can tell anything about a token
// of the realm.
func (e *Engine) Agreed() bool { return e.state.Load().agreed != nil }

// change puts another state in the place of the current one.
func (e *Engine) change(alter func(next *state)) {
	e.changing.Lock()
	defer e.changing.Unlock()
	next := *e.state.Load()
	alter(&next)
	e.state.Store(&next)
}

// CacheName is the name under which the cache knows a realm's tokens; see
// [introspect.Cache.Wrap].
func CacheName(realm string) string { return introspect.CacheName("local", realm) }

// Tokens is how everybody else asks about the realm's tokens: the tokens that it issued, with
// the cache in front.
func (e *Engine) Tokens() *introspect.CachedSource { return e.tokens }

// Recognizes reports whether token has a form of ours, carries this realm's mark and has not
// expired. Before the first Share nobody can tell, so whatever has our form counts; a lookup
// then says that nobody knows. What was found out is noted in token, so that nobody computes
// it again. The mark of a JWT is the key that it names, or else its issuer: its signature is
// verified by a lookup.
func (e *Engine) Recognizes(token *introspect.Token) (ok bool) {
	switch {
	case HasForm(token.Text()):
		*token, ok = e.issued.Screen(*token)
	case hasJWTForm(token.Text()):
		ok, _ = e.Minted(token)
	}
	return ok
}

// Minted reports whether this realm issued token, whether or not the token is still good. A JWT
// counts if it says so itself: nobody else has any use for it. Before the first Share nobody can
// tell this about a token that has our form; that is the error.
func (e *Engine) Minted(token *introspect.Token) (bool, error) {
	isJWT := hasJWTForm(token.Text())
	if !isJWT && !HasForm(token.Text()) {
		return false, nil
	}
	agreed, err := e.state.Load().agreement()
	switch {
	case isJWT && agreed != nil && agreed.knowsKey(token.Text()):
		return true, nil
	case isJWT && agreed != nil && agreed.covers == nil:
		return false, nil // the realm never had keys
	case isJWT:
		return e.cfg.Issuer != "" && token.UnverifiedIssuer() == e.cfg.Issuer, nil
	case err != nil:
		return false, err
	}
	_, minted, err := agreed.identify(token)
	return minted || err != nil, nil
}

// Issued reports whether this realm issued token, and it may be good still. Unlike Recognizes, it
// verifies the signature of a JWT. Before the first Share nobody can tell, so whatever has our form
// counts; a lookup then says that nobody knows.
func (e *Engine) Issued(token *introspect.Token) bool {
	if !HasForm(token.Text()) && !hasJWTForm(token.Text()) {
		return false
	}
	screened, mine := e.issued.Screen(*token)
	*token = screened
	return mine && e.issued.genuine(screened)
}

// Outcome says, for logs and metrics, how a request to an endpoint ended. It holds no secret
// and no token.
type Outcome struct {
	// ClientID is the client, once it is known to be registered here.
	ClientID string
	// AuthMethod is the method of client authentication that was tried, one of AuthMethods, or
	// empty.
	AuthMethod string
	// Proof is what authenticated the client. It is zero if nothing did.
	Proof Proof
	// CredentialsInQuery is as in Request.
	CredentialsInQuery bool
	// Paused is how long nothing in the client's name is looked at from now on, if it comes from where
	// the request came from: its failure was one too many. It is zero otherwise; see [Failures].
	Paused time.Duration
	// TokenID is the token that was issued, asked about or revoked, once it is known to be
	// one of ours. JTI is the ID that stands in it, if it is a JWT.
	TokenID introspect.TokenID
	JTI     string
	// Key is the thumbprint of the key that the token is bound to, by a DPoP proof.
	Key string
	// Scope is the scope granted, space-separated.
	Scope string
	// TokenRealm is the realm that issued the token that was asked about, if it is another one.
	TokenRealm string
	// NotPermitted is set if the token is good but the client may not ask about it. The
	// client is told what it is told of any token that is not good.
	NotPermitted bool
	// Cause is why a token that was asked about is not good. It is empty if the token is good.
	Cause introspect.Cause
}

// Grant is what a token request was given.
type Grant struct {
	// Token is the access token itself.
	Token string
	// Key is the thumbprint of the key that the token is bound to, by a DPoP proof; empty if it is a
	// bearer token in that respect.
	Key string
	// NextNonce is for the client's next DPoP proof; empty if it has a good one.
	NextNonce string
	// Scope is the scope granted, space-separated (RFC 6749 section 3.3).
	Scope string
	// Lifetime is how long the token lives, at least a second. What has begun of a second must not count
	// where it is told, or a program might use a token that has expired.
	Lifetime time.Duration
}

// Token answers a token request with the client credentials grant (RFC 6749 section 4.4). The
// order of the checks gives strangers no oracle: the form, the client, the grant, the scope, the
// resources, what the token is bound to.
// The token is in the store, durably, before Token returns.
//
// The error is an *Error, or says that the store or the random source failed.
func (e *Engine) Token(ctx context.Context, req Request) (Grant, Outcome, error) {
	var out Outcome
	state := e.state.Load()
	grant := req.Form.Get("grant_type")
	if grant == "" {
		return Grant{}, out, invalidRequest(NoGrantType)
	}
	if e.cfg.GrantTypeFirst && grant != GrantClientCredentials {
		return Grant{}, out, errUnsupportedGrantType
	}
	client, err := e.authenticate(ctx, state.clients, req, &out)
	if err != nil {
		return Grant{}, out, err
	}
	if grant != GrantClientCredentials {
		return Grant{}, out, errUnsupportedGrantType
	}
	if !slices.Contains(client.GrantTypes, grant) {
		return Grant{}, out, &Error{Code: CodeUnauthorizedClient, Description: "the client is not authorized to use this grant type"}
	}
	scopes, err := client.grantScopes(req.Form.Get("scope"))
	if err != nil {
		return Grant{}, out, err
	}
	audience, err := client.grantAudience(req.Form[resourceParameter])
	if err != nil {
		return Grant{}, out, err
	}

	confirmation, err := client.confirm(req)
	if err != nil {
		return Grant{}, out, err
	}
	proof, err := e.proofOf(client.Client, req)
	if err != nil {
		return Grant{}, out, err
	}
	confirmation.Key = proof.Thumbprint()

	agreed, err := state.agreement()
	if err != nil {
		return Grant{}, out, err
	}
	generation, known := agreed.generationOf(client)
	if !known {
		return Grant{}, out, fmt.Errorf("the generation of client %q has not been shared", client.ID)
	}
	now := e.cfg.Now()
	if wait := use(client.fetches, now); wait > 0 {
		return Grant{}, out, &Error{Code: CodeTooManyRequests, Description: "the client fetches too many tokens", RetryAfter: wait, Reason: "token_limit"}
	}
	// Last of all that can refuse the request, so that what is wrong with it uses up no proof.
	if err := e.useProof(ctx, client.Client, proof); err != nil {
		return Grant{}, out, err
	}
	issuedAt := now.Truncate(time.Millisecond) // as exact as the token itself
	record := client.token(generation, scopes, audience, issuedAt)
	record.Confirmation = confirmation
	text, err := e.issue(ctx, agreed, client.TokenFormat, &record, issuedAt.Add(client.TokenLifetime))
	if err != nil {
		return Grant{}, out, err
	}
	e.fetched(client, req.From)
	out.TokenID, out.JTI, out.Key, out.Scope = record.ID, record.JTI, confirmation.Key, strings.Join(scopes, " ")
	lifetime := max(record.Expiry().Sub(issuedAt), time.Second)
	return Grant{Token: text, Key: confirmation.Key, NextNonce: proof.NextNonce, Scope: out.Scope, Lifetime: lifetime}, out, nil
}

var errUnsupportedGrantType = &Error{Code: CodeUnsupportedGrantType, Description: "the grant type is not supported"}

// token returns the record of a token for the client, all but its key.
func (c *Client) token(generation uint64, scopes, audience []string, issuedAt time.Time) Token {
	return Token{ClientID: c.ID, ClientGeneration: generation, Scopes: scopes, Audience: audience, IssuedAt: issuedAt}
}

// Suppose makes a token as the client would get one if it asked for these scopes, all of its own,
// and for no resource in particular. It returns the token and what a lookup would find out about
// it. No record is kept, so nobody else takes the token for a good one, and no limit counts.
// If all the client's tokens are bound to keys, so is this one, to SupposedKey. Whatever the client's
// format is, the token has a form that needs a record.
//
// The error says why the client can have no such token. A disabled client had tokens, which are
// refused now: that is no error.
func (e *Engine) Suppose(clientID string, scopes []string) (introspect.Token, *introspect.Facts, error) {
	none := func(err error) (introspect.Token, *introspect.Facts, error) { return introspect.Token{}, nil, err }
	state := e.state.Load()
	client := state.clients.find(clientID)
	now := e.cfg.Now()
	current := func(s *Secret) bool { return s.validAt(now) }
	switch {
	case client == nil:
		return none(fmt.Errorf("there is no client %q", clientID))
	case client.Disabled: // Revise knows
	case !slices.Contains(client.GrantTypes, GrantClientCredentials):
		return none(errors.New("its grant_types allow it no tokens"))
	case len(scopes) == 0 || !containsAll(client.Scopes, scopes):
		return none(errors.New("it may not have these scopes, and a token has at least one"))
	case !slices.ContainsFunc(client.Secrets, current) && !slices.ContainsFunc(client.Auth, takesNoSecret):
		return none(errors.New("it has no secret that is accepted now"))
	}
	audience, err := client.grantAudience(nil)
	if err != nil {
		return none(err)
	}
	agreed, err := state.agreement()
	if err != nil {
		return none(err)
	}
	issuedAt := now.Truncate(time.Millisecond)
	text, expiryMilli, err := agreed.opaque.mint(issuedAt.Add(client.TokenLifetime))
	if err != nil {
		return none(err)
	}
	generation, _ := agreed.generationOf(client)
	record := client.token(generation, scopes, audience, issuedAt)
	record.Key = e.issued.key(introspect.IDOf(text), expiryMilli)
	if client.CertificateBound {
		record.Confirmation.Certificate = "supposed" // no certificate has this thumbprint
	}
	if client.DPoPRequired {
		record.Confirmation.Key = SupposedKey
	}
	facts := e.issued.facts(record)
	facts.Expiry = record.Expiry()
	return introspect.NewToken(text), e.issued.Revise(facts), nil
}

// issue makes the token that t describes, all but its key and JTI, which it sets, and makes it
// durable if it needs a record.
func (e *Engine) issue(ctx context.Context, agreed *agreement, format string, t *Token, expiry time.Time) (text string, err error) {
	t.Key = Key{Realm: e.cfg.Realm, ExpiryMilli: expiry.UnixMilli()}
	switch format {
	case FormatSealed:
		if agreed.sealed == nil {
			return "", fmt.Errorf("%w: the keys of sealed tokens have not been shared", ErrUnreachable)
		}
		text, err = agreed.sealed.mint(t)
	case FormatJWT:
		if agreed.jwts == nil {
			return "", fmt.Errorf("%w: the keys of JWTs have not been shared", ErrUnreachable)
		}
		// Times in JWTs are in whole seconds. The token begins a part of a second too early and
		// ends as much too early: a verifier with a clock like ours must not find it too young, or
		// older than it may be.
		t.ExpiryMilli -= t.IssuedAt.UnixMilli() % 1000
		text, t.JTI, err = agreed.jwts.mint(t)
	default:
		return e.record(ctx, agreed, t, expiry)
	}
	if errors.Is(err, errTooLong) {
		err = &Error{Code: CodeInvalidScope, Description: "the token would be too long; ask for fewer scopes or resources"}
	}
	t.ID = introspect.IDOf(text)
	return text, err
}

// record is issue for opaque tokens.
func (e *Engine) record(ctx context.Context, agreed *agreement, t *Token, expiry time.Time) (text string, err error) {
	text, expiryMilli, err := agreed.opaque.mint(expiry)
	if err != nil {
		return "", err
	}
	t.Key = e.issued.key(introspect.IDOf(text), expiryMilli)
	err = e.cfg.Store.Put(ctx, *t)
	if errors.Is(err, ErrClientFull) {
		return "", &Error{Code: CodeTooManyRequests, Description: "the client has too many tokens", Reason: "store_share"}
	}
	if err != nil {
		return "", fmt.Errorf("storing a token: %w", err)
	}
	return text, nil
}

// Introspect answers an introspection request (RFC 7662) with the facts that the caller may
// see. A token that is not good, and one that the caller may not ask about, are both
// inactive and look alike. A caller that keeps asking about tokens that are no good is
// refused for a while (RFC 7662 section 4).
func (e *Engine) Introspect(ctx context.Context, req Request) (*introspect.Facts, Outcome, error) {
	var out Outcome
	caller, err := e.inquirer(ctx, req, &out)
	if err != nil {
		return nil, out, err
	}
	e.saw(caller, req.From)
	text := req.Form.Get("token")
	if text == "" {
		return nil, out, invalidRequest(NoToken)
	}
	now := e.cfg.Now()
	if wait := use(caller.asks, now); wait > 0 {
		return nil, out, &Error{Code: CodeTooManyRequests, Description: "too many inquiries", RetryAfter: wait, Reason: "inquiry_limit"}
	}
	issuer := e
	token, mine := e.issued.Screen(introspect.NewToken(text))
	if caller.Introspect == IntrospectAnyRealm && req.Elsewhere != nil && !(mine && e.issued.genuine(token)) {
		if other := req.Elsewhere(&token); other != nil {
			issuer, out.TokenRealm = other, other.cfg.Realm
			token, mine = other.issued.Screen(token)
		}
	}
	// A token that carries our mark and has not expired is always looked up: callers of a
	// resource server must not be able to use up its answers about good tokens by sending it
	// made-up ones.
	if !caller.guesses.mayAsk(now) && !(mine && issuer.issued.genuine(token)) {
		return nil, out, &Error{Code: CodeTooManyRequests, Description: "too many inquiries about tokens that are not active"}
	}
	facts, err := issuer.tokens.LookupWithin(ctx, &token, math.MaxInt64)
	if err != nil {
		return nil, out, fmt.Errorf("looking up a token: %w", err)
	}
	visible := caller.visible(facts)
	if facts.Active {
		out.TokenID, out.JTI, out.NotPermitted = facts.ID, facts.JTI, !visible.Active
	} else {
		out.Cause = facts.Cause()
	}
	if !visible.Active {
		caller.guesses.wrong(now)
	}
	return visible, out, nil
}

// Revoke answers a revocation request (RFC 7009). Revoking a token that is unknown, expired or
// already revoked succeeds; a token of another client is refused and stays as it is. When
// Revoke returns nil, the revocation is durable and no request that begins later passes with
// the token. Outcome.TokenID is zero if there was nothing to revoke.
func (e *Engine) Revoke(ctx context.Context, req Request) (out Outcome, err error) {
	state := e.state.Load()
	client, err := e.authenticate(ctx, state.clients, req, &out)
	if err != nil {
		return out, err
	}
	e.saw(client, req.From)
	text := req.Form.Get("token")
	if text == "" {
		return out, invalidRequest(NoToken)
	}
	revoked, _, err := e.revoke(ctx, state, text, client.ID)
	out.TokenID, out.JTI = revoked.ID, revoked.JTI
	return out, err
}

// RevokeForAnybody revokes the token with this text, whichever client has it, for an operator. It
// promises what Revoke does. ours says whether the realm issued the token; revoked is zero if there was
// nothing to revoke.
func (e *Engine) RevokeForAnybody(ctx context.Context, text string) (revoked Token, ours bool, err error) {
	return e.revoke(ctx, e.state.Load(), text, "")
}

// revoke revokes a token of the client, or of any client if none is named.
func (e *Engine) revoke(ctx context.Context, state *state, text, clientID string) (revoked Token, ours bool, err error) {
	none := func(ours bool, err error) (Token, bool, error) { return Token{}, ours, err }
	agreed, err := state.agreement()
	if err != nil {
		return none(false, err)
	}
	token := introspect.NewToken(text)
	told, ok, err := agreed.identify(&token)
	if err != nil {
		return none(true, err)
	}
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	if !ok {
		return none(false, e.issued.isNobodys(ctx, agreed, &token))
	}
	// An expired token is revoked as well: a wrong clock may be set back, and the token would
	// be good again.
	key := told.Key
	// Ask the store, not the cache: the past must not decide a revocation.
	record, err := e.issued.recordOf(ctx, agreed, &token, told)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrOtherEpoch) {
		// Another revocation may have reached the store but not yet the cache. Or its caller
		// gave it up, and the store carried it out after a lookup.
		e.tokens.Forget(key.ID)
		return none(true, nil)
	}
	if err != nil {
		return none(true, fmt.Errorf("looking up a token to revoke: %w", err))
	}
	if clientID != "" && record.ClientID != clientID {
		if key.expired(e.cfg.Now()) {
			return none(true, nil)
		}
		return none(true, &Error{Code: CodeInvalidGrant, Description: "the token was issued to another client"})
	}
	done := e.tokens.Revoking(key.ID)
	if carriesFacts(text) {
		err = e.cfg.Keys.Deny(ctx, key, record.ClientID)
	} else {
		err = e.cfg.Store.Revoke(ctx, key)
	}
	done() // whatever the store said: it may have revoked the token
	if errors.Is(err, ErrClientFull) {
		return none(true, &Error{Code: CodeTooManyRequests, Description: "the client has revoked too many tokens", Reason: "store_share"})
	}
	if err != nil {
		return none(true, fmt.Errorf("revoking a token: %w", err))
	}
	return record, true, nil
}
