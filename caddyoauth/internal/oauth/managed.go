package oauth

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// Managed is a managed client: one that was added while gateways run. It lies in the store, which says
// what is true of it.
type Managed struct {
	*Client
	// Version and Generation are as in [ManagedClient].
	Version, Generation uint64
	// Created is when it was added.
	Created time.Time
}

// managed are the managed clients of a realm. There may be many, and they change one at a time, so
// unlike Clients this is no snapshot: whoever asks twice may get two answers. It grows with what is in
// the store.
type managed struct {
	byID sync.Map // client ID → *registered

	// ids are those of byID, sorted; nil if nobody has asked since a client was added or removed. It
	// needs Engine.changing, like changes of byID.
	ids []string

	// hidden is what a failed authentication must cost so that it can be that of any managed client
	// there has been. It, and changes of byID and of what is below, need Engine.changing.
	hidden costs
	// federated are those of byID that platforms vouch for.
	federated map[string]*registered
	// offered counts those of byID that make the realm offer something.
	offered map[offer]int
	// offers are what that comes to.
	offers atomic.Pointer[Offers]
}

// Offers are what managed clients make a realm offer, sorted, for its metadata. Those that are disabled
// don't count.
type Offers struct {
	// Auth are methods by which one of them may authenticate.
	Auth []string
	// Algorithms are those by which one of them may sign assertions, or a platform that vouches for it.
	Algorithms []string
	// CertificateBound is set if the tokens of one of them are bound to its certificate.
	CertificateBound bool
}

// offer is a part of Offers: one of its fields.
type offer struct {
	auth, algorithm  string
	certificateBound bool
}

// offers returns what a client makes its realm offer. An offer may be there twice.
func (c *Client) offers() (all []offer) {
	if c.Disabled {
		return nil
	}
	for _, method := range c.Auth {
		all = append(all, offer{auth: method})
	}
	add := func(by *introspect.Assertions) {
		if by != nil {
			for _, algorithm := range by.Algorithms() {
				all = append(all, offer{algorithm: algorithm})
			}
		}
	}
	add(c.Assertions)
	for _, f := range c.Federated {
		add(f.Assertions)
	}
	if c.CertificateBound {
		all = append(all, offer{certificateBound: true})
	}
	return all
}

// put makes next the client of an ID, or leaves none if next is nil. It reports whether a platform
// vouches for the one that was, or for next.
func (m *managed) put(id string, next *registered) (federated bool) {
	if m.offered == nil {
		m.offered, m.federated = make(map[offer]int), make(map[string]*registered)
	}
	if was := m.find(id); was != nil {
		federated = len(was.Federated) > 0
		for _, o := range was.offers() {
			if m.offered[o]--; m.offered[o] == 0 {
				delete(m.offered, o)
			}
		}
	}
	delete(m.federated, id)
	if next == nil {
		m.byID.Delete(id)
		return federated
	}
	for _, o := range next.offers() {
		m.offered[o]++
	}
	if len(next.Federated) > 0 {
		m.federated[id] = next
		federated = true
	}
	m.byID.Store(id, next)
	return federated
}

// publish makes offers of what is offered.
func (m *managed) publish() {
	offers := new(Offers)
	for o := range m.offered {
		switch {
		case o.auth != "":
			offers.Auth = append(offers.Auth, o.auth)
		case o.algorithm != "":
			offers.Algorithms = append(offers.Algorithms, o.algorithm)
		default:
			offers.CertificateBound = true
		}
	}
	slices.Sort(offers.Auth)
	slices.Sort(offers.Algorithms)
	m.offers.Store(offers)
}

// ManagedOffers returns what the managed clients make the realm offer now. It is read-only.
func (e *Engine) ManagedOffers() *Offers {
	if offers := e.state.Load().clients.managed.offers.Load(); offers != nil {
		return offers
	}
	return new(Offers)
}

// costs are what a failed authentication costs, whatever made it fail.
type costs struct {
	work  workload
	quick quickWork
	// algorithms are those by which some client may sign assertions. One of another algorithm is
	// refused quickly, whoever it names.
	algorithms []string
}

// with returns what both cost at most.
func (c costs) with(other costs) costs {
	c.work = maps.Clone(c.work)
	if c.work == nil {
		c.work = workload{}
	}
	for cost, n := range other.work {
		c.work[cost] = max(c.work[cost], n)
	}
	for kind, n := range other.quick {
		c.quick[kind] = max(c.quick[kind], n)
	}
	all := slices.Concat(c.algorithms, other.algorithms)
	slices.Sort(all)
	c.algorithms = slices.Compact(all)
	return c
}

// covers reports whether with would add nothing.
func (c costs) covers(other costs) bool {
	both := c.with(other)
	return maps.Equal(both.work, c.work) && both.quick == c.quick && len(both.algorithms) == len(c.algorithms)
}

// costsOf returns what hides the failure of any of these clients.
func costsOf(clients map[string]*Client) costs {
	c := costs{work: heaviest(clients), quick: mostQuick(clients)}
	for _, client := range clients {
		if client.Assertions != nil && !client.Disabled {
			c.algorithms = append(c.algorithms, client.Assertions.Algorithms()...)
		}
		for _, f := range client.Federated {
			if f.Assertions != nil { // otherwise the engine can only suppose
				c.algorithms = append(c.algorithms, f.Assertions.Algorithms()...)
			}
		}
	}
	slices.Sort(c.algorithms)
	c.algorithms = slices.Compact(c.algorithms)
	return c
}

// SlowHashes returns how many slow hashes a failed authentication computes, and how many it would if the
// realm had these managed clients, too. It never becomes less while the engine lives: see managed.hidden.
func (e *Engine) SlowHashes(clients ...*Client) (now, then int) {
	all := make(map[string]*Client, len(clients))
	for _, c := range clients {
		all[c.ID] = c
	}
	here := e.state.Load().clients.costs
	return here.work.hashes(), here.with(costsOf(all)).work.hashes()
}

// find returns a managed client, or nil.
func (m *managed) find(id string) *registered {
	if m == nil {
		return nil
	}
	client, _ := m.byID.Load(id)
	found, _ := client.(*registered)
	return found
}

// SetManaged tells the engine of managed clients, by ID; nil is one that is gone. With all set, there
// are no others. It may be called while requests run: those that have begun go on with what they have
// read. A client that stays keeps what it has used up of its limits.
//
// A client of the configuration that has the same ID counts instead.
func (e *Engine) SetManaged(clients map[string]*Managed, all bool) {
	here := make(map[string]*Client)
	for id, client := range clients {
		if client != nil {
			here[id] = client.Client
		}
	}
	batch := costsOf(here)
	e.change(func(next *state) {
		// Another snapshot in any case: an answer about credentials that was begun with the clients from
		// before is not for those who come after this. Its costs come first: the failure of a client
		// must not show once the client is there.
		m, snapshot := next.clients.managed, *next.clients
		if !m.hidden.covers(batch) {
			m.hidden = m.hidden.with(batch)
			snapshot.costs = snapshot.with(batch)
		}
		next.clients = &snapshot
		dearer := *next
		e.state.Store(&dearer)
		federated := false
		if all {
			m.byID.Range(func(id, _ any) bool {
				if clients[id.(string)] == nil {
					federated = e.removeManaged(m, id.(string)) || federated
				}
				return true
			})
		}
		for id, client := range clients {
			if client == nil {
				federated = e.removeManaged(m, id) || federated
				continue
			}
			was := m.find(id)
			if was == nil {
				m.ids = nil
			}
			registered := newRegistered(client.Client, was)
			registered.managed, registered.version, registered.generation, registered.created = true, client.Version, client.Generation, client.Created
			federated = m.put(id, registered) || federated
		}
		m.publish()
		last := snapshot
		if federated {
			last.federate()
		}
		next.clients = &last
	})
}

// removeManaged forgets a managed client, and what it did that no store keeps yet. It reports whether a
// platform vouched for it.
func (e *Engine) removeManaged(m *managed, id string) (federated bool) {
	federated = m.put(id, nil)
	m.ids = nil
	if e.cfg.Inventory != nil {
		e.cfg.Inventory.forget(ClientRef{Realm: e.cfg.Realm, ClientID: id})
	}
	return federated
}

// Managed calls yield for each managed client that the engine knows, until that returns false.
func (e *Engine) Managed(yield func(Managed) bool) {
	e.state.Load().clients.managed.byID.Range(func(_, value any) bool {
		client := value.(*registered)
		return yield(Managed{client.Client, client.version, client.generation, client.created})
	})
}

// ManagedIDs returns the IDs of the managed clients, sorted. They are read-only. It takes longer after a
// client was added or removed, and then keeps other changes waiting.
func (e *Engine) ManagedIDs() []string {
	e.changing.Lock()
	defer e.changing.Unlock()
	m := e.state.Load().clients.managed
	if m.ids == nil {
		m.byID.Range(func(id, _ any) bool {
			m.ids = append(m.ids, id.(string))
			return true
		})
		slices.Sort(m.ids)
	}
	return m.ids
}

// ManagedByID returns a managed client as the engine knows it.
func (e *Engine) ManagedByID(id string) (client Managed, ok bool) {
	found := e.state.Load().clients.managed.find(id)
	if found == nil {
		return client, false
	}
	return Managed{found.Client, found.version, found.generation, found.created}, true
}

// generationOf returns the generation of a client's tokens, and false if nobody has told it yet.
func (a *agreement) generationOf(client *registered) (uint64, bool) {
	if client.managed {
		return client.generation, true
	}
	generation, known := a.generations[client.ID]
	return generation, known
}

// askGeneration is generationOf by asking the store, for one who may not have heard of what others did.
// It returns ErrNotFound if the client is no longer there, and the version of a managed client.
func (i *issued) askGeneration(ctx context.Context, id string) (generation, version uint64, err error) {
	ref := ClientRef{i.cfg.Realm, id}
	if client := i.state.Load().clients.find(id); (client == nil || client.managed) && i.cfg.Managed != nil {
		current, err := i.cfg.Managed.ManagedClient(ctx, ref)
		return current.Generation, current.Version, err
	}
	generation, err = i.cfg.Store.Generation(ctx, ref)
	if errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("%w: it has lost the generation of the token's client", ErrUnreachable)
	}
	return generation, 0, err
}

// stillIs fails if nobody can tell whether a managed client is what the engine knows of it: another
// gateway may have disabled it, or taken its secret away.
func (e *Engine) stillIs(ctx context.Context, client *registered) error {
	if !client.managed || e.issued.Coherent() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	current, err := e.cfg.Managed.ManagedClient(ctx, ClientRef{e.cfg.Realm, client.ID})
	switch {
	case err != nil && !errors.Is(err, ErrNotFound):
		return fmt.Errorf("looking up a managed client: %w", err)
	case err != nil || current.Version != client.version:
		return fmt.Errorf("%w: it has another version of a managed client, which has not been heard of yet", ErrUnreachable)
	}
	return nil
}
