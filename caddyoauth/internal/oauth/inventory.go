package oauth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Use is what a client has done last. A time in it is that of the first such event since the last write, so
// the event itself may have been again up to a minute later. It holds nothing secret.
type Use struct {
	// Token is when it fetched a token; zero if it never has.
	Token time.Time
	// Seen is when it did something else: a route let a token of it pass, or its secret in the place of
	// one, or it introspected or revoked. Zero if it never has.
	Seen time.Time
	// From is the address that the last of all this came from, as exact as [CutAddress] has made it;
	// empty if that is not known.
	From string
	// Method and Credential are those by which it authenticated last: one of AuthMethods, and the ID of
	// the secret, or the thumbprint of the key or the certificate, or whom a platform's token named. Both
	// are empty if it never has.
	Method, Credential string
	// Credentials is when each of its credentials authenticated it last: the maxCredentials that were
	// used last. It is read-only.
	Credentials map[string]time.Time
	// Dropped is when the last of those that are left out was used; zero if none is.
	Dropped time.Time
}

// maxCredentials bounds Use.Credentials. A platform's token may name any number of workloads, and each counts as
// a credential.
const maxCredentials = 32

// maxCredentialLength bounds the name of a credential, in bytes. Names that are longer have the same
// beginning, and count as one.
const maxCredentialLength = 512

// Last returns when the client did anything; zero if it never has.
func (u Use) Last() time.Time { return latest(latest(u.Token, u.Seen), u.Authenticated()) }

// Authenticated returns when the client authenticated last; zero if it never has.
func (u Use) Authenticated() time.Time {
	last := u.Dropped
	for _, at := range u.Credentials {
		last = latest(last, at)
	}
	return last
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// Merge returns what two reports about the same client come to. In which order they are merged makes no
// difference, nor does it to merge one twice.
func (u Use) Merge(other Use) Use {
	merged := u
	// Of two at the same time, one counts, whichever comes first.
	if cmp.Or(other.Last().Compare(u.Last()), cmp.Compare(other.From, u.From)) > 0 {
		merged.From = other.From
	}
	if cmp.Or(other.Authenticated().Compare(u.Authenticated()), cmp.Compare(other.Credential, u.Credential), cmp.Compare(other.Method, u.Method)) > 0 {
		merged.Method, merged.Credential = other.Method, other.Credential
	}
	merged.Token, merged.Seen, merged.Dropped = latest(u.Token, other.Token), latest(u.Seen, other.Seen), latest(u.Dropped, other.Dropped)
	merged.Credentials = maps.Clone(u.Credentials)
	for name, at := range other.Credentials {
		if merged.Credentials == nil {
			merged.Credentials = make(map[string]time.Time)
		}
		merged.Credentials[name] = latest(merged.Credentials[name], at)
	}
	for len(merged.Credentials) > maxCredentials {
		oldest := ""
		for name, at := range merged.Credentials {
			if was := merged.Credentials[oldest]; oldest == "" || at.Before(was) || at.Equal(was) && name < oldest {
				oldest = name
			}
		}
		merged.Dropped = latest(merged.Dropped, merged.Credentials[oldest])
		delete(merged.Credentials, oldest)
	}
	return merged
}

// UsageStore is the ability of a store to keep what clients did last. It serves people who ask, and
// decides nothing about a request.
//
// The rules of [TokenStore] about contexts, errors and concurrency hold here too. What is kept of a
// managed client goes when SwapManagedClient removes it.
type UsageStore interface {
	// AddUses merges uses into what is kept of clients of a realm, by client ID, as Use.Merge does. If
	// nothing is kept of the realm yet, not even since when, it is from now on. After an error, some of
	// them may be merged.
	AddUses(ctx context.Context, realm string, uses map[string]Use) error

	// Uses returns what is kept of these clients of a realm, or of all if ids is nil.
	Uses(ctx context.Context, realm string, ids []string) (Uses, error)

	// ForgetUses drops what is kept of clients of a realm.
	ForgetUses(ctx context.Context, realm string, ids []string) error
}

// Uses are what clients of a realm did last.
type Uses struct {
	// Since is when this began to be kept; zero if it has not begun. Before, anything may have happened.
	Since time.Time
	// Clients are by client ID, without those of which nothing is known.
	Clients map[string]Use
}

// UnusedSince returns since when a credential of a client has not authenticated it: its last use, or when
// uses began to be kept. known is false if that can't be told. A use at this gateway is known at once, one
// at another gateway a minute later, unless that one can't write to the store.
func (u Uses) UnusedSince(id, credential string) (since time.Time, known bool) {
	use := u.Clients[id]
	at, used := use.Credentials[credential]
	if !used {
		at = u.Since
	}
	return latest(at, use.Dropped), used || !u.Since.IsZero()
}

// How exact the addresses in an inventory are.
const (
	AddressFull   = "full"
	AddressPrefix = "prefix" // a /24 of IPv4, a /64 of IPv6
	AddressOff    = "off"    // none at all
)

// CutAddress returns the text of an address or a network, no more exact than one of the Address constants
// says. It is empty for what is none.
func CutAddress(address, exact string) string {
	if exact == AddressOff {
		return ""
	}
	network, err := netip.ParsePrefix(address)
	if err != nil {
		addr, err := netip.ParseAddr(address)
		if err != nil {
			return ""
		}
		addr = addr.WithZone("")
		if exact == AddressFull {
			return addr.String()
		}
		network = netip.PrefixFrom(addr, addr.BitLen())
	}
	most := 64
	if network.Addr().Is4() {
		most = 24
	}
	if exact != AddressFull && network.Bits() > most {
		network = netip.PrefixFrom(network.Addr(), most)
	}
	return network.Masked().String()
}

// Inventory notes what clients do, and has a store keep it, a while later: of each client there is at most
// one write from one Write to the next. It is safe for concurrent use.
//
// What costs most requests nothing is that each is noted once only between two writes. So the times are no
// more exact than that.
type Inventory struct {
	store UsageStore
	// round counts the writes, from 1. What was noted in this one need not be noted again.
	round atomic.Uint64

	// oneWrite is held by Write. The others hold mu, for a moment.
	oneWrite, mu sync.Mutex
	// noted is what has happened since the last Write began, and writing what that has not written yet. Both
	// have an entry for a client that is registered, at most.
	noted, writing map[ClientRef]Use
	// realms has an entry for each realm that was ever served, and says whether the store has begun to
	// keep what its clients do.
	realms map[string]bool
}

// NewInventory makes an inventory that a store keeps.
func NewInventory(store UsageStore) *Inventory {
	i := &Inventory{store: store, noted: make(map[ClientRef]Use), realms: make(map[string]bool)}
	i.round.Store(1)
	return i
}

// begin has the next Write begin to keep a realm's uses.
func (i *Inventory) begin(realm string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, known := i.realms[realm]; !known {
		i.realms[realm] = false
	}
}

// note merges what a client does. mark gets the round in which it need not be noted again.
func (i *Inventory) note(client ClientRef, use Use, mark func(round uint64)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.noted[client] = i.noted[client].Merge(use)
	mark(i.round.Load())
}

// forget drops what is noted of a client that is gone.
func (i *Inventory) forget(client ClientRef) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.noted, client)
	delete(i.writing, client)
}

// Write has the store keep what was noted, and begins another round. What it could not write is tried again
// by the next one.
func (i *Inventory) Write(ctx context.Context) error {
	i.oneWrite.Lock()
	defer i.oneWrite.Unlock()
	i.mu.Lock()
	byRealm := make(map[string]map[string]Use)
	for realm, begun := range i.realms {
		if !begun {
			byRealm[realm] = make(map[string]Use)
		}
	}
	for client, use := range i.noted {
		if byRealm[client.Realm] == nil {
			byRealm[client.Realm] = make(map[string]Use)
		}
		byRealm[client.Realm][client.ClientID] = use
	}
	i.writing, i.noted = i.noted, make(map[ClientRef]Use)
	i.round.Add(1)
	i.mu.Unlock()

	var errs []error
	for _, realm := range slices.Sorted(maps.Keys(byRealm)) {
		err := i.store.AddUses(ctx, realm, byRealm[realm])
		i.mu.Lock()
		for id := range byRealm[realm] {
			client := ClientRef{Realm: realm, ClientID: id}
			if use, still := i.writing[client]; still && err != nil {
				i.noted[client] = i.noted[client].Merge(use)
			}
			delete(i.writing, client)
		}
		if err == nil {
			i.realms[realm] = true
		} else {
			errs = append(errs, fmt.Errorf("realm %q: %w", realm, err))
		}
		i.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Uses returns what clients of a realm did last, at all gateways that share the store: these, or all if
// ids is nil. A use at another gateway is there once that has written it.
func (i *Inventory) Uses(ctx context.Context, realm string, ids []string) (Uses, error) {
	// First what is not written yet, or it might be written in between and not be in either.
	here := make(map[string]Use)
	i.mu.Lock()
	for _, noted := range []map[ClientRef]Use{i.writing, i.noted} {
		if ids == nil {
			for client, use := range noted {
				if client.Realm == realm {
					here[client.ClientID] = here[client.ClientID].Merge(use)
				}
			}
			continue
		}
		for _, id := range ids {
			if use, ok := noted[ClientRef{Realm: realm, ClientID: id}]; ok {
				here[id] = here[id].Merge(use)
			}
		}
	}
	i.mu.Unlock()
	uses, err := i.store.Uses(ctx, realm, ids)
	if err != nil {
		return Uses{}, err
	}
	if uses.Clients == nil {
		uses.Clients = make(map[string]Use, len(here))
	}
	for id, use := range here {
		uses.Clients[id] = uses.Clients[id].Merge(use)
	}
	return uses, nil
}

// Touch has the store write what it keeps of a client once more, as it is. Unless that fails, the store
// takes what gateways have noted.
func (i *Inventory) Touch(ctx context.Context, client ClientRef) error {
	return i.store.AddUses(ctx, client.Realm, map[string]Use{client.ClientID: {}})
}

// Add has the store merge what clients of a realm did elsewhere. Credentials with names that are longer
// than those of this program are left out.
func (i *Inventory) Add(ctx context.Context, realm string, uses map[string]Use) error {
	bounded := make(map[string]Use, len(uses))
	for id, use := range uses {
		if len(use.Credential) > maxCredentialLength {
			use.Method, use.Credential = "", ""
		}
		use.Credentials = maps.Clone(use.Credentials)
		maps.DeleteFunc(use.Credentials, func(name string, _ time.Time) bool { return len(name) > maxCredentialLength })
		bounded[id] = Use{}.Merge(use)
	}
	return i.store.AddUses(ctx, realm, bounded)
}

// Forget drops what is kept of clients of a realm.
func (i *Inventory) Forget(ctx context.Context, realm string, ids []string) error {
	for _, id := range ids {
		i.forget(ClientRef{Realm: realm, ClientID: id})
	}
	return i.store.ForgetUses(ctx, realm, ids)
}

// marks say in which round of an Inventory it was noted last what a client did. Requests read them, and
// change them about once a round.
type marks struct {
	fetched, seen atomic.Uint64
	proved        atomic.Pointer[proofMark] // nil for never
}

// proofMark is by which credential a client authenticated, and in which round that was noted.
type proofMark struct {
	round              uint64
	method, credential string
}

// Unseen reports whether [Engine.Saw] has something to note: what it notes is good for a while. It neither
// blocks nor allocates.
func (e *Engine) Unseen(clientID string) bool {
	if e.cfg.Inventory == nil {
		return false
	}
	client := e.state.Load().clients.find(clientID)
	return client != nil && client.marks.seen.Load() != e.cfg.Inventory.round.Load()
}

// Saw notes that a client did something with a token, or with its secret in the place of one. from is as
// [Request.From].
func (e *Engine) Saw(clientID string, from netip.Addr) {
	if client := e.state.Load().clients.find(clientID); client != nil {
		e.saw(client, from)
	}
}

func (e *Engine) saw(client *registered, from netip.Addr) {
	if i := e.cfg.Inventory; i != nil && client.marks.seen.Load() != i.round.Load() {
		i.note(e.ref(client), e.use(from, func(u *Use, now time.Time) { u.Seen = now }), client.marks.seen.Store)
	}
}

// fetched notes that a client got a token.
func (e *Engine) fetched(client *registered, from netip.Addr) {
	if i := e.cfg.Inventory; i != nil && client.marks.fetched.Load() != i.round.Load() {
		i.note(e.ref(client), e.use(from, func(u *Use, now time.Time) { u.Token = now }), client.marks.fetched.Store)
	}
}

// authenticated notes by which credential a client has authenticated.
func (e *Engine) authenticated(client *registered, method string, proof Proof, from netip.Addr) {
	i := e.cfg.Inventory
	if i == nil {
		return
	}
	credential := client.credential(proof)
	if m := client.marks.proved.Load(); m != nil && m.round == i.round.Load() && m.method == method && m.credential == credential {
		return
	}
	i.note(e.ref(client), e.use(from, func(u *Use, now time.Time) {
		u.Method, u.Credential, u.Credentials = method, credential, map[string]time.Time{credential: now}
	}), func(round uint64) { client.marks.proved.Store(&proofMark{round, method, credential}) })
}

// use returns what set makes of a Use that says no more than where it came from.
func (e *Engine) use(from netip.Addr, set func(u *Use, now time.Time)) Use {
	var use Use
	if from.IsValid() {
		use.From = CutAddress(from.String(), e.cfg.InventoryAddresses)
	}
	set(&use, e.cfg.Now().UTC().Truncate(time.Millisecond))
	return use
}

func (e *Engine) ref(client *registered) ClientRef {
	return ClientRef{Realm: e.cfg.Realm, ClientID: client.ID}
}

// credential names what has proved that a sender is the client: see Use.
func (c *Client) credential(proof Proof) string {
	name := proof.Certificate
	switch {
	case proof.Secret > 0 && proof.Secret <= len(c.Secrets):
		name = c.Secrets[proof.Secret-1].ID
	case proof.Identity != "":
		name = proof.Identity
	case proof.Key != "":
		name = proof.Key
	}
	if len(name) > maxCredentialLength {
		name = strings.ToValidUTF8(name[:maxCredentialLength], "")
	}
	return name
}
