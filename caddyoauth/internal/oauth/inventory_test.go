package oauth

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// usesOfMap is a UsageStore in a map that counts what is written, and fails if it has to.
type usesOfMap struct {
	mu     sync.Mutex
	kept   map[ClientRef]Use
	begun  map[string]bool
	writes map[string]int // uses by client ID
	broken error
}

func newUses() *usesOfMap {
	return &usesOfMap{kept: make(map[ClientRef]Use), begun: make(map[string]bool), writes: make(map[string]int)}
}

func (u *usesOfMap) AddUses(_ context.Context, realm string, uses map[string]Use) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.broken != nil {
		return u.broken
	}
	u.begun[realm] = true
	for id, use := range uses {
		ref := ClientRef{realm, id}
		u.kept[ref] = u.kept[ref].Merge(use)
		u.writes[id]++
	}
	return nil
}

func (u *usesOfMap) Uses(_ context.Context, realm string, ids []string) (Uses, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	answer := Uses{Since: time.Unix(1, 0), Clients: make(map[string]Use)}
	for ref, use := range u.kept {
		if ref.Realm == realm {
			answer.Clients[ref.ClientID] = use
		}
	}
	return answer, u.broken
}

func (u *usesOfMap) ForgetUses(_ context.Context, realm string, ids []string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, id := range ids {
		delete(u.kept, ClientRef{realm, id})
	}
	return nil
}

// secretOf is a quickSecret with an ID.
func secretOf(t testing.TB, id, plain string) *Secret {
	secret := quickSecret(t, plain)
	secret.ID = id
	return secret
}

// useOf returns what is known of a client.
func useOf(t testing.TB, i *Inventory, id string) Use {
	t.Helper()
	uses, err := i.Uses(t.Context(), "root", []string{id})
	if err != nil {
		t.Fatal(err)
	}
	return uses.Clients[id]
}

// What a client does is known at once, and is in the store after the next write. Between two writes, a
// client is written once, however much it does.
func TestInventory(t *testing.T) {
	store := newUses()
	inventory := NewInventory(store)
	e := newEngine(t, func(s *Settings) { s.Inventory, s.InventoryAddresses = inventory, AddressPrefix },
		newClient("c", secretOf(t, "first", "one"), secretOf(t, "second", "two")), newClient("idle", secretOf(t, "only", "three")))
	at := e.now().UTC().Truncate(time.Millisecond)
	want := func(what string, want Use) {
		t.Helper()
		if got := useOf(t, inventory, "c"); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", what, got, want)
		}
	}
	want("before it does anything", Use{})
	e.issue(t, "c", "one")
	use := Use{Token: at, From: "192.0.2.0/24", Method: AuthBasic, Credential: "first", Credentials: map[string]time.Time{"first": at}}
	want("after its first token", use)
	if err := inventory.Write(t.Context()); err != nil {
		t.Fatal(err)
	}
	want("after that was written", use)

	e.advance(time.Second)
	later := at.Add(time.Second)
	if !e.Unseen("c") {
		t.Error("a client that has done nothing with its token counts as seen")
	}
	e.Saw("c", netip.MustParseAddr("2001:db8:1:2:3:4:5:6"))
	if e.Unseen("c") {
		t.Error("it has to be noted twice")
	}
	use.Seen, use.From = later, "2001:db8:1:2::/64"
	want("after it passed a route", use)
	e.advance(time.Second)
	for range 100 {
		e.Saw("c", from)
		e.issue(t, "c", "one")
		e.issue(t, "c", "two")
	}
	latest := later.Add(time.Second)
	use.Token, use.From, use.Credential, use.Credentials = latest, "192.0.2.0/24", "second", map[string]time.Time{"first": latest, "second": latest}
	want("after more tokens", use)
	for range 3 {
		if err := inventory.Write(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want("after that was written, too", use)
	if !maps.Equal(store.writes, map[string]int{"c": 2}) {
		t.Errorf("written were %v, want c twice", store.writes)
	}
	if use := useOf(t, inventory, "idle"); !reflect.DeepEqual(use, Use{}) || e.Unseen("nobody") {
		t.Errorf("of who did nothing, %+v is known", use)
	}

	// Requests that fail are nobody's use, or anybody could keep a client's secret from being out of use.
	e.advance(time.Minute)
	e.Token(t.Context(), request(t, "c", "wrong", grantForm))
	want("after somebody failed", use)
	// One that is refused for another reason has proved its secret.
	e.Token(t.Context(), request(t, "c", "one", url.Values{"grant_type": {"password"}}))
	now := e.now().UTC().Truncate(time.Millisecond)
	use.Credential, use.Credentials = "first", map[string]time.Time{"first": now, "second": latest}
	want("after a request that was refused", use)
	e.Introspect(t.Context(), request(t, "c", "one", url.Values{"token": {"x"}}))
	use.Seen = now
	want("after it introspected", use)
	e.advance(time.Minute)
	if err := inventory.Write(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.Revoke(t.Context(), request(t, "c", "two", url.Values{"token": {"x"}}))
	now = e.now().UTC().Truncate(time.Millisecond)
	use.Seen, use.Credential, use.Credentials["second"] = now, "second", now
	want("after it revoked", use)
}

// What the store refuses is written later, and what a client did that is gone never.
func TestInventoryOfABrokenStore(t *testing.T) {
	store := newUses()
	inventory := NewInventory(store)
	e := newEngine(t, func(s *Settings) { s.Inventory = inventory }, newClient("c", secretOf(t, "first", "one")))
	managed := newClient("m", secretOf(t, "m", "two"))
	e.SetManaged(map[string]*Managed{"m": {Client: managed, Version: 1, Generation: 1}}, false)
	e.issue(t, "c", "one")
	e.Saw("m", from)
	store.broken = errors.New("full")
	if err := inventory.Write(t.Context()); !errors.Is(err, store.broken) {
		t.Errorf("%v, want that the store is full", err)
	}
	e.SetManaged(map[string]*Managed{"m": nil}, false)
	store.broken = nil
	if store.begun["root"] {
		t.Error("a store that is full has begun to keep uses")
	}
	if err := inventory.Write(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(store.kept) != 1 || store.kept[ClientRef{"root", "c"}].Token.IsZero() {
		t.Errorf("kept is %v, want c alone", store.kept)
	}

	// A realm whose clients do nothing begins, too: otherwise nobody could say that they do nothing.
	idle := newUses()
	quiet := NewInventory(idle)
	newEngine(t, func(s *Settings) { s.Inventory = quiet })
	if err := quiet.Write(t.Context()); err != nil || !idle.begun["root"] {
		t.Errorf("an idle realm has begun: %t, %v", idle.begun["root"], err)
	}
}

// While two credentials are used at the same time, both are noted in each round.
func TestInventoryOfTwoCredentials(t *testing.T) {
	store := newUses()
	inventory := NewInventory(store)
	e := newEngine(t, func(s *Settings) { s.Inventory = inventory }, newClient("c", secretOf(t, "first", "one"), secretOf(t, "second", "two")))
	for round := range 50 {
		e.advance(time.Second)
		var all sync.WaitGroup
		for _, secret := range []string{"one", "two", "one", "two"} {
			all.Go(func() {
				for range 5 {
					if _, _, err := e.Token(context.Background(), request(t, "c", secret, grantForm)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		now := e.now().UTC().Truncate(time.Millisecond)
		if use := useOf(t, inventory, "c"); !use.Credentials["first"].Equal(now) || !use.Credentials["second"].Equal(now) {
			t.Fatalf("round %d at %v: %v", round, now, use.Credentials)
		}
		if err := inventory.Write(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// Reports about a client come to the same in any order, and however often; no time is lost by it, and
// nothing grows without bound.
func TestMergedUses(t *testing.T) {
	at := rapid.Map(rapid.IntRange(0, 40), func(n int) time.Time {
		if n == 0 {
			return time.Time{}
		}
		return time.Unix(int64(n), 0)
	})
	someUse := rapid.Custom(func(t *rapid.T) Use {
		u := Use{Token: at.Draw(t, "token"), Seen: at.Draw(t, "seen"), From: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "from")}
		for i := range rapid.IntRange(0, 40).Draw(t, "credentials") {
			if u.Credentials == nil {
				u.Credentials = make(map[string]time.Time)
			}
			u.Credential = fmt.Sprint("c", rapid.IntRange(i, 80).Draw(t, "credential"))
			u.Credentials[u.Credential] = time.Unix(int64(rapid.IntRange(1, 40).Draw(t, "used")), 0)
		}
		return Use{}.Merge(u)
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := someUse.Draw(t, "a"), someUse.Draw(t, "b")
		ab, ba := a.Merge(b), b.Merge(a)
		if !reflect.DeepEqual(ab, ba) {
			t.Fatalf("in one order %+v, in the other %+v", ab, ba)
		}
		if again := ab.Merge(b).Merge(a); !reflect.DeepEqual(ab, again) {
			t.Fatalf("again %+v, after %+v", again, ab)
		}
		if len(ab.Credentials) > maxCredentials {
			t.Fatalf("%d credentials", len(ab.Credentials))
		}
		since := time.Unix(-1, 0)
		for _, u := range []Use{a, b} {
			if ab.Last().Before(u.Last()) {
				t.Fatalf("last %v, after %v", ab.Last(), u.Last())
			}
			for name, used := range u.Credentials {
				unused, known := Uses{Since: since, Clients: map[string]Use{"c": ab}}.UnusedSince("c", name)
				if !known || unused.Before(used) {
					t.Fatalf("%s is unused since %v, and was used at %v", name, unused, used)
				}
			}
		}
	})
}

// A credential of which nothing is known was last used before that began to be kept, at the latest.
func TestUnusedSince(t *testing.T) {
	begun, used := time.Unix(100, 0), time.Unix(200, 0)
	for _, c := range []struct {
		uses  Uses
		since time.Time
		known bool
	}{
		{Uses{}, time.Time{}, false},
		{Uses{Since: begun}, begun, true},
		{Uses{Since: begun, Clients: map[string]Use{"c": {Token: used}}}, begun, true},
		{Uses{Since: begun, Clients: map[string]Use{"c": {Credentials: map[string]time.Time{"s": used}}}}, used, true},
		{Uses{Since: begun, Clients: map[string]Use{"c": {Dropped: used}}}, used, true},
		{Uses{Since: begun, Clients: map[string]Use{"other": {Credentials: map[string]time.Time{"s": used}}}}, begun, true},
	} {
		if since, known := c.uses.UnusedSince("c", "s"); known != c.known || known && !since.Equal(c.since) {
			t.Errorf("%+v: %v, %t; want %v, %t", c.uses, since, known, c.since, c.known)
		}
	}
}

// An address is as exact as wanted, also one that was noted when more was wanted.
func TestCutAddress(t *testing.T) {
	for _, c := range [][4]string{
		{"192.0.2.7", "192.0.2.7", "192.0.2.0/24", ""},
		{"192.0.2.0/24", "192.0.2.0/24", "192.0.2.0/24", ""},
		{"2001:db8:1:2:3::4", "2001:db8:1:2:3::4", "2001:db8:1:2::/64", ""},
		{"fe80::1%eth0", "fe80::1", "fe80::/64", ""},
		{"2001:db8:1:2::/64", "2001:db8:1:2::/64", "2001:db8:1:2::/64", ""},
		{"@", "", "", ""},
		{"", "", "", ""},
	} {
		for i, exact := range []string{AddressFull, AddressPrefix, AddressOff} {
			if got := CutAddress(c[0], exact); got != c[i+1] {
				t.Errorf("%s, %s: %q, want %q", c[0], exact, got, c[i+1])
			}
		}
	}
}

// The name of a credential is the client's own, and no longer than it may be.
func TestCredentialNames(t *testing.T) {
	client := &Client{Secrets: []*Secret{{ID: "one"}, {ID: "two"}}}
	for _, c := range []struct {
		proof Proof
		want  string
	}{
		{Proof{Secret: 2}, "two"}, {Proof{Key: "k"}, "k"}, {Proof{Certificate: "x"}, "x"}, {Proof{Identity: "issuer sub", Key: "k"}, "issuer sub"},
		{Proof{Identity: strings.Repeat("ü", maxCredentialLength)}, strings.Repeat("ü", maxCredentialLength/2)},
	} {
		if got := client.credential(c.proof); got != c.want {
			t.Errorf("%+v: %q, want %q", c.proof, got, c.want)
		}
	}
}

// To see that nothing has to be noted costs no memory.
func TestUnseenDoesNotAllocate(t *testing.T) {
	e := newEngine(t, func(s *Settings) { s.Inventory = NewInventory(newUses()) }, newClient("c", secretOf(t, "first", "one")))
	e.SetManaged(map[string]*Managed{"m": {Client: newClient("m"), Version: 1, Generation: 1}}, false)
	for _, id := range []string{"c", "m", "nobody"} {
		e.Saw(id, from)
		if n := testing.AllocsPerRun(100, func() { e.Unseen(id) }); n != 0 {
			t.Errorf("%s: %v allocations", id, n)
		}
	}
}
