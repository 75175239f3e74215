package oauth

import (
	"context"
	"errors"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// Key is where a token's record lies. Expiry and ID come from the token itself, so a lookup
// needs no index. The expiry comes first, so that a store can keep what expires together in
// one place.
type Key struct {
	// Realm is the realm that issued the token. IDs are unique among all realms; the realm is
	// for stores that keep the tokens of a realm together.
	Realm string
	// ExpiryMilli is when the token expires, in unix milliseconds. Seconds would do for the
	// rules, but not for the order: the tokens of one second lie in the random order of their
	// IDs, and a busy server would write a page of the tree for each of them.
	ExpiryMilli int64
	// ID is the token's ID.
	ID introspect.TokenID
}

// Expiry returns when the token expires.
func (k Key) Expiry() time.Time { return time.UnixMilli(k.ExpiryMilli) }

// Token is the record of a token. The token itself is nowhere in it.
type Token struct {
	Key
	ClientID string
	// ClientGeneration is the client's generation when the token was issued; see
	// [TokenStore.Admit].
	ClientGeneration uint64
	Scopes           []string
	Audience         []string
	IssuedAt         time.Time
	// Confirmation is what whoever shows the token must prove to have.
	Confirmation introspect.Confirmation
	// JTI is the ID that stands in a JWT. A record in a store has none.
	JTI string
}

// ClientRef names a client among all realms.
type ClientRef struct {
	Realm, ClientID string
}

// Errors of a TokenStore. They may be wrapped.
var (
	// ErrNotFound means that there is no such record: the token was never issued, has expired
	// or was revoked.
	ErrNotFound = errors.New("token not found")
	// ErrClosed means that the store was closed, as happens to requests that outlive their
	// configuration.
	ErrClosed = errors.New("token store is closed")
	// ErrFull means that the store has no room for another token.
	ErrFull = errors.New("token store is full")
	// ErrOtherEpoch means that the store has another keyring than the caller thinks, or none.
	ErrOtherEpoch = errors.New("the token store has begun another epoch")
	// ErrClientFull means that the store has room, but not for another token of this client, or
	// another revoked one.
	ErrClientFull = errors.New("the client has its share of the token store")
	// ErrChanged means that somebody else has changed a managed client.
	ErrChanged = errors.New("the client was changed by somebody else")
	// ErrUnreachable means that the store lies elsewhere and does not answer now. It may later.
	ErrUnreachable = errors.New("token store can't be reached")
)

// TokenStore keeps issued tokens, and the little else that has to outlive a process.
//
// "Durable" means that something survives the death of the process and, as far as the medium
// promises it, of the machine; for a store in memory it means no more than the process.
// "Absent" means that Get returns ErrNotFound. Absence is the only form of "no" that a store
// knows: it keeps no list of revoked tokens, so losing data can only ever refuse.
//
// All methods are safe for concurrent use and return ErrClosed once the store is closed. They
// wait no longer than ctx lives, except for a read of mapped memory; a write that was handed to
// the medium may still be carried out after ctx has ended. An error other than ErrNotFound
// means that the store could not do it or could not find out; the caller answers 503. A store
// never panics over what it finds in its medium.
//
// TokenStore is what every store must do. What only some stores can do is an interface of its
// own: it has the methods of that ability alone, is declared where it is used, and is found by a
// type assertion, as [introspect.Coherent] is on a store that other gateways write to as well.
// The assertion is on the store itself: a wrapper that embeds a TokenStore has no other methods.
type TokenStore interface {
	// Put makes the record durable, then returns nil. A Get that begins after that finds it.
	// Keys are unique by construction, so Put need not look for an older record. After an
	// error the record may or may not be there; nobody has its token. Put waits no longer than
	// StoreTimeout, either. It sees to that itself: a timer for each token costs much beside a store
	// that never waits.
	Put(ctx context.Context, token Token) error

	// Get returns the record under key, or ErrNotFound. It may return a record that has
	// expired: the caller judges time by its own clock. The record names its own key, which the
	// caller compares with the one it asked for. Slices in the record belong to the caller.
	Get(ctx context.Context, key Key) (Token, error)

	// Revoke makes the absence of key durable, then returns nil. A Get that begins after that
	// returns ErrNotFound, forever. Revoke is idempotent. After an error the record may or may
	// not be there.
	Revoke(ctx context.Context, key Key) error

	// Admit returns the current generation of each client, and creates one for each client that
	// the store has not met. Tokens carry the generation of their client, and count only while
	// it is current. held is what Admit last returned to this caller, nil for a caller that
	// begins. Because of held, another caller's Leave ends nothing of a client that is here, and a
	// store that has lost generations gets back those that its callers hold, or later ones.
	Admit(ctx context.Context, clients []ClientRef, held map[ClientRef]uint64) (map[ClientRef]uint64, error)

	// Retire says that the clients in active are all that are configured. Every other client
	// that the store knows as active passes to its next generation, durably: if it comes back
	// one day, its old tokens stay dead. Retire is about configured clients, the only ones that
	// Admit is told of. A client that a store keeps itself is in no configuration, so its absence
	// from active must not retire it: a store with such clients keeps them apart.
	Retire(ctx context.Context, active []ClientRef) error

	// Leave says, durably, that the caller no longer uses the store, except for the clients in
	// stay. Every other active client passes to its next generation when some caller begins
	// with it, unless a caller that holds it, and so has had it all the time, says so first.
	Leave(ctx context.Context, stay []ClientRef) error

	// EndTokens ends all tokens of clients of a realm: it passes the clients to their next
	// generations, durably, and returns these. clients are the caller's, whom it admits, too; held is
	// as in Admit, and the next generation is later than what the caller holds. If all is set, the
	// realm's other clients that the store knows as active pass, too, and stay as they are otherwise.
	// An Admit or Generation that begins after that returns no former generation. After an error the
	// clients may have passed or not.
	EndTokens(ctx context.Context, realm string, clients []string, all bool, held map[ClientRef]uint64) (map[ClientRef]uint64, error)

	// Generation returns the current generation of a client, or ErrNotFound if the store does not
	// know the client. It is for callers who may not have heard yet of what others did.
	Generation(ctx context.Context, client ClientRef) (uint64, error)

	// Secret returns the secret kept under name. If there is none, it keeps fresh and returns
	// that. Several callers at once, on one node or many, all get the same.
	Secret(ctx context.Context, name string, fresh []byte) ([]byte, error)

	// Close releases what the store holds, after the calls under way have ended.
	Close() error
}

// Epoch is one life of what a store keeps about a realm's self-contained tokens: the keyring and
// the denials, which come and go together. It is random, so no two are the same.
type Epoch [16]byte

// KeyStore is the ability of a store to serve self-contained tokens, which have no record: it
// keeps the keys that make them, and which of them were revoked. Losing such a denial would
// revive a token, so a store that loses data must lose the keyring before or together with the
// denials. Then the tokens die with their epoch.
//
// The rules of [TokenStore] about durability, contexts, errors and concurrency hold here too.
type KeyStore interface {
	// Keeps returns an error if the store may drop what it has acknowledged, as a Redis that evicts
	// does. A dropped denial would revive a token, so such a store can't serve them.
	Keeps(ctx context.Context) error

	// Keys returns the keyring of a realm, or nil if there is none. Other gateways may have
	// replaced it; the store reports that as it reports changed generations.
	Keys(ctx context.Context, realm string) ([]byte, error)

	// SwapKeys makes next, which begins with its Epoch, the realm's keyring if old still is. An
	// old of nil stands for none. It reports whether it did. After an error it may have.
	SwapKeys(ctx context.Context, realm string, old, next []byte) (bool, error)

	// Deny makes the revocation of the self-contained token under key durable, then returns nil.
	// A Denied that begins after that says so, until the token's expiry at least. The token is one of
	// clientID, in the key's realm: a store with little room may return ErrClientFull.
	Deny(ctx context.Context, key Key, clientID string) error

	// Denied reports whether the token under key was revoked. It returns ErrOtherEpoch if the
	// keyring of the key's realm does not begin with epoch: the denials may have been lost since
	// the caller read its keyring, so only a token of the present epoch can be judged.
	Denied(ctx context.Context, epoch Epoch, key Key) (bool, error)
}

// ClientStore is the ability of a store to keep managed clients: those that are added while gateways
// run. What it keeps of one is for the caller to make sense of, and holds no secret.
//
// The rules of [TokenStore] about durability, contexts, errors and concurrency hold here too. A managed
// client is in no configuration, so Admit, Retire and Leave have nothing to do with it.
type ClientStore interface {
	// ManagedClients returns the managed clients of a realm. With since, the Position of an earlier
	// answer, these are only those that changed after it, if the store still knows them all.
	ManagedClients(ctx context.Context, realm, since string) (ManagedClients, error)

	// ManagedClient returns one, or ErrNotFound. It is for callers who may not have heard yet of what
	// others did.
	ManagedClient(ctx context.Context, client ClientRef) (ManagedClient, error)

	// ManagedClientsByID returns some of the managed clients of a realm, in order, those that are gone with
	// no data. It asks once for about a thousand.
	ManagedClientsByID(ctx context.Context, realm string, ids []string) ([]ManagedClient, error)

	// SwapManagedClient makes next what is kept of a client of a realm, if the client's version still
	// is next.Version. 0 stands for a client that is not there, and nil data removes the client. It
	// returns the new version. If the client has another version, it changes nothing and returns
	// ErrChanged. After another error it may have changed the client. A ManagedClients that begins
	// after it returns sees the change.
	SwapManagedClient(ctx context.Context, realm string, next ManagedClient) (version uint64, err error)

	// SwapManagedClients is SwapManagedClient for several clients of a realm, no two of the same ID: it
	// changes all of them, or none. It returns their new versions, in order.
	SwapManagedClients(ctx context.Context, realm string, next []ManagedClient) (versions []uint64, err error)
}

// ManagedClients is an answer of a ClientStore.
type ManagedClients struct {
	// Clients are the clients, in no order. One that was changed meanwhile may be there twice, the
	// later one last.
	Clients []ManagedClient
	// All means that there are no others. Otherwise Clients are those that changed.
	All bool
	// Position is what the next question begins at.
	Position string
}

// ManagedClient is what a ClientStore keeps of a client.
type ManagedClient struct {
	ID string
	// Version is greater than any that the client had before.
	Version uint64
	// Generation is that of the client's tokens, which count only while it is current.
	Generation uint64
	// Data is nil if the client was removed.
	Data []byte
}
