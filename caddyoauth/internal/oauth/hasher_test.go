package oauth

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// hold keeps all slots of a Hasher taken until it is released.
func (h *Hasher) hold() (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running += h.slots
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.running -= h.slots
		h.dispatch()
	}
}

// asked is how a request ended.
type asked struct {
	client *registered
	err    error
}

// askAtOnce authenticates all requests while the Hasher is held, so that they meet.
func (e *engine) askAtOnce(t *testing.T, requests ...Request) []asked {
	t.Helper()
	answers := make([]asked, len(requests))
	release := e.cfg.Hasher.hold()
	var all sync.WaitGroup
	for i, r := range requests {
		all.Go(func() {
			var out Outcome
			answers[i].client, answers[i].err = e.authenticate(t.Context(), r, &out)
		})
	}
	synctest.Wait()
	release()
	all.Wait()
	return answers
}

// Thirty workers of one client with one secret cost one hash, and all of them are served. So do
// thirty that are wrong in the same way, whatever is wrong: a shared computation tells nothing
// that a single failure does not.
func TestEqualAttemptsShareAComputation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, failures := attempts(t)
		failures["the right secret"] = request(t, "one", "right", grantForm)
		for name, r := range failures {
			before := e.cfg.Hasher.hashes.Load()
			want := CodeInvalidClient
			alone := 3 * int64(len(r.Credentials.Secrets))
			if name == "the right secret" {
				want, alone = "", 1
			}
			for _, a := range e.askAtOnce(t, slices.Repeat([]Request{r}, 30)...) {
				if codeOf(a.err) != want {
					t.Errorf("%s: %v", name, a.err)
				}
			}
			if n := e.cfg.Hasher.hashes.Load() - before; n != alone {
				t.Errorf("%s: thirty at once cost %d slow hashes, want the %d of one", name, n, alone)
			}
		}
	})
}

// Attempts that differ share nothing: another secret, another client, another realm, another
// method.
func TestDifferentAttemptsShareNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		only := newClient("basic", slowSecret(t, "right", memoryA, passesA))
		only.Auth = []string{AuthBasic}
		e := newEngine(t, nil, newClient("one", slowSecret(t, "right", memoryA, passesA)), newClient("two", slowSecret(t, "other", memoryA, passesA)), only)
		other := newEngine(t, func(cfg *Settings) { cfg.Hasher = e.cfg.Hasher }, newClient("one", slowSecret(t, "another", memoryA, passesA)))
		posted, err := ParseRequest(Incoming{Body: "client_id=basic&client_secret=right"})
		if err != nil {
			t.Fatal(err)
		}
		elsewhere := make(chan error, 1)
		go func() {
			var out Outcome
			_, err := other.authenticate(t.Context(), request(t, "one", "right", grantForm), &out)
			elsewhere <- err
		}()
		got := e.askAtOnce(t,
			request(t, "one", "right", grantForm), request(t, "one", "wrong", grantForm), request(t, "two", "right", grantForm),
			request(t, "basic", "right", grantForm), posted)
		for i, right := range []bool{true, false, false, true, false} {
			if (got[i].err == nil) != right {
				t.Errorf("request %d: %v", i, got[i].err)
			}
		}
		if err := <-elsewhere; codeOf(err) != CodeInvalidClient {
			t.Errorf("in another realm: %v", err)
		}
	})
}

// A secret that ends while its hash is computed lets nobody in, whoever began the computation.
func TestSharedComputationEndsWithItsSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := slowSecret(t, "old", memoryA, passesA)
		e := newEngine(t, nil, newClient("c", old))
		old.Until = e.now().Add(time.Second)
		release := e.cfg.Hasher.hold()
		answer := make(chan error, 1)
		go func() {
			var out Outcome
			_, err := e.authenticate(t.Context(), request(t, "c", "old", grantForm), &out)
			answer <- err
		}()
		synctest.Wait()
		e.advance(time.Second)
		release()
		if err := <-answer; codeOf(err) != CodeInvalidClient {
			t.Errorf("after its end: %v", err)
		}
	})
}

// Whoever began a computation may leave, and the others get their answer. If all leave before it
// begins, it never does.
func TestComputationOutlivesWhoeverBeganIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, nil, newClient("c", slowSecret(t, "right", memoryA, passesA)))
		h := e.cfg.Hasher
		r := request(t, "c", "right", grantForm)
		ask := func(ctx context.Context) <-chan error {
			answer := make(chan error, 1)
			go func() {
				var out Outcome
				_, err := e.authenticate(ctx, r, &out)
				answer <- err
			}()
			synctest.Wait()
			return answer
		}
		release := h.hold()
		leaving, leave := context.WithCancel(t.Context())
		first, second := ask(leaving), ask(t.Context())
		leave()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("the one who left: %v", err)
		}
		release()
		if err := <-second; err != nil {
			t.Errorf("the one who stayed: %v", err)
		}
		release = h.hold()
		r = request(t, "c", "wrong", grantForm)
		leaving, leave = context.WithCancel(t.Context())
		first = ask(leaving)
		leave()
		<-first
		release()
		if n := h.hashes.Load(); n != 1 {
			t.Errorf("%d slow hashes were computed, want 1", n)
		}
		if h.waiting != 0 || len(h.rows) != 0 || len(h.line) != 0 || len(h.flights) != 0 || h.running != 0 {
			t.Errorf("left over: %d waiting, %d rows, %d in line, %d flights, %d running", h.waiting, len(h.rows), len(h.line), len(h.flights), h.running)
		}
	})
}

// nothing is the key of an attempt that costs nothing and fails.
func nothing(i int) flightKey { return flightKey{sent: [32]byte{byte(i), byte(i >> 8)}} }

// A request that has to wait waits for two seconds, then is told to come back. A hundred at once
// are no reason to refuse any of them earlier.
func TestWaitForASlowHash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHasher()
		for _, enough := range []bool{false, true} {
			release := h.hold()
			begin := time.Now()
			var all sync.WaitGroup
			for i := range 100 {
				all.Go(func() {
					_, err := h.check(t.Context(), nothing(i), attempt{}, "192.0.2.1", fmt.Sprint(i))
					if enough && err != nil {
						t.Errorf("client %d: %v", i, err)
					}
					if waited := time.Since(begin); !enough && (codeOf(err) != CodeUnavailable || waited != 2*time.Second) {
						t.Errorf("client %d: %v, after %v", i, err, waited)
					}
				})
			}
			if enough {
				time.Sleep(2*time.Second - 1)
				release()
			}
			all.Wait()
			if !enough {
				release()
			}
		}
		if h.waiting != 0 || len(h.rows) != 0 || len(h.line) != 0 || len(h.flights) != 0 {
			t.Errorf("left over: %d waiting, %d rows, %d in line, %d flights", h.waiting, len(h.rows), len(h.line), len(h.flights))
		}
	})
}

// Each address has a share of the queue for slow hashes, and the whole queue has a bound. Beyond
// either, the caller is told at once to come back.
func TestQueueForSlowHashes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHasher()
		h.queue, h.share = 3, 2
		release := h.hold()
		answers := make(chan error, 10)
		n := 0
		wait := func(ctx context.Context, from string) {
			n++
			key := nothing(n)
			go func() {
				_, err := h.check(ctx, key, attempt{}, from, string(key.sent[:]))
				answers <- err
			}()
			synctest.Wait()
		}
		atOnce := func(from, who string) {
			t.Helper()
			begin := time.Now()
			// It equals one that waits, but is one more that waits all the same.
			if _, err := h.check(t.Context(), nothing(1), attempt{}, from, ""); codeOf(err) != CodeUnavailable || time.Since(begin) != 0 {
				t.Errorf("%s: %v, after %v", who, err, time.Since(begin))
			}
		}
		wait(t.Context(), "a")
		wait(t.Context(), "a")
		atOnce("a", "a third from one address")
		leaving, leave := context.WithCancel(t.Context())
		wait(leaving, "b")
		atOnce("c", "a fourth, from a new address")
		leave() // makes room
		if err := <-answers; !errors.Is(err, context.Canceled) {
			t.Errorf("the one who gave up: %v", err)
		}
		wait(t.Context(), "c")
		release()
		for range 3 {
			if err := <-answers; err != nil {
				t.Errorf("one who waited: %v", err)
			}
		}
		// One client of an address has half of that: whoever guesses its secret leaves room for
		// others.
		h.queue, h.share = 10, 4
		release = h.hold()
		for i, want := range []bool{true, true, false} {
			if f, _ := h.join(nothing(100+i), attempt{}, "balancer", "victim"); (f != nil) != want {
				t.Errorf("request %d for one client has room: %v, want %v", i, f != nil, want)
			}
		}
		if f, _ := h.join(nothing(200), attempt{}, "balancer", "other"); f == nil {
			t.Error("another client of the address has no room")
		}
		release()
		if h := NewHasher(); h.slots < 1 || h.share < 100 || h.queue < 4*h.share {
			t.Errorf("the real one has %d slots, a queue of %d, shares of %d", h.slots, h.queue, h.share)
		}
	})
}

// Addresses take turns, and so do the clients of an address: a caller who guesses, however much,
// delays another by one hash.
func TestTurnsAtSlowHashes(t *testing.T) {
	h := NewHasher()
	h.hold() // so that nothing leaves the line by itself
	who := make(map[*flight]string)
	add := func(n int, from, client, name string) {
		for range n {
			f, _ := h.join(nothing(len(who)), attempt{}, from, client)
			who[f] = name
		}
	}
	next := func(n int) string {
		var order []string
		for range n {
			before := slices.Clone(h.line)
			h.mu.Lock()
			slots := h.slots
			h.slots = h.running + 1
			h.dispatch()
			h.slots = slots
			h.mu.Unlock()
			for _, f := range before {
				if !slices.Contains(h.line, f) {
					order = append(order, who[f])
					<-f.done
				}
			}
		}
		return strings.Join(order, " ")
	}
	add(6, "balancer", "victim", "guess")
	add(1, "balancer", "one", "one")
	add(1, "balancer", "two", "two")
	add(2, "elsewhere", "victim", "elsewhere")
	if got, want := next(5), "guess elsewhere one elsewhere two"; got != want {
		t.Errorf("the order is %q, want %q", got, want)
	}
	// A stream of newcomers does not overtake those that already wait.
	add(1, "balancer", "three", "three")
	if got, want := next(2), "guess three"; got != want {
		t.Errorf("with one newcomer the order is %q, want %q", got, want)
	}
	for i := range 4 {
		add(1, fmt.Sprint("newcomer ", i), "x", "new")
	}
	if got, want := next(3), "guess new new"; got != want {
		t.Errorf("with more newcomers the order is %q, want %q", got, want)
	}
}

// Two addresses that work together don't overtake others either: one holds the flights that the
// other begins, and the other begins anew each time.
func TestTurnsOfAnAddressThatBeginsAnew(t *testing.T) {
	h := NewHasher()
	h.hold()
	for i := range 20 {
		_, leave := h.join(nothing(i), attempt{}, "begins", fmt.Sprint(i))
		h.join(nothing(i), attempt{}, "holds", fmt.Sprint(i))
		leave()
	}
	honest, _ := h.join(nothing(100), attempt{}, "honest", "honest")
	before := 0
	for _, f := range h.line {
		if f != honest && f.turn <= honest.turn {
			before++
		}
	}
	if before > 1 {
		t.Errorf("%d hashes of one address come before the first of another", before)
	}
}

// A panic in a computation is the answer for all who wait for it, and says nothing about their
// credentials. The next computation goes on.
func TestPanicInASlowHash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHasher()
		bad := attempt{readings: []reading{{secret: "x", candidates: []*Secret{{}}}}} // a Secret without a digest
		release := h.hold()
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				right, err := h.check(t.Context(), nothing(1), bad, "192.0.2.1", "c")
				if right != nil || codeOf(err) != "outage" {
					t.Errorf("the answer is %v, %v", right, err)
				}
			})
		}
		all.Go(func() {
			if _, err := h.check(t.Context(), nothing(2), attempt{}, "192.0.2.1", "d"); err != nil {
				t.Errorf("another one: %v", err)
			}
		})
		synctest.Wait()
		release()
		all.Wait()
		if h.waiting != 0 || len(h.rows) != 0 || len(h.line) != 0 || len(h.flights) != 0 || h.running != 0 {
			t.Errorf("left over: %d waiting, %d rows, %d in line, %d flights, %d running", h.waiting, len(h.rows), len(h.line), len(h.flights), h.running)
		}
	})
}

// A request may have looked for a success just before it was remembered, and ask for the computation when
// that is over. It costs no other hash.
func TestSuccessIsFoundByWhoeverLookedTooEarly(t *testing.T) {
	h := NewHasher()
	s := slowSecret(t, "right", memoryA, passesA)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for sent, want := range map[string]struct {
		is     *Secret
		hashes int64
	}{"right": {s, 1}, "wrong": {nil, 2}} {
		before := h.hashes.Load()
		for range 2 {
			a := attempt{now: now, readings: []reading{{sent, []*Secret{s}}}}
			if got, err := h.check(t.Context(), flightKey{}, a, "192.0.2.7", "c"); got != want.is || err != nil {
				t.Errorf("%s: %v, %v", sent, got, err)
			}
		}
		if n := h.hashes.Load() - before; n != want.hashes {
			t.Errorf("%s, twice: %d slow hashes, want %d", sent, n, want.hashes)
		}
	}
}

// What is remembered outlives a reload that leaves the hash as it is, whether the hash stands in
// the configuration or was made from a secret that it refers to. A reload that changes either
// begins anew.
func TestSuccessOutlivesAReload(t *testing.T) {
	hasher := NewHasher()
	referred := func() *Secret {
		s, err := PlainSecret("a person's choice")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := referred() // a configuration holds it until the next one has it
	for i, c := range []struct {
		secret *Secret
		plain  string
		hashes int64
	}{
		{first, "a person's choice", 1},
		{referred(), "a person's choice", 0},
		{slowSecret(t, "hashed", memoryA, passesA), "hashed", 1},
		{slowSecret(t, "hashed", memoryA, passesA), "hashed", 0},
		{slowSecret(t, "hashed", memoryB, passesB), "hashed", 1},
		{referred(), "a person's choice", 0},
	} {
		e := newEngine(t, func(cfg *Settings) { cfg.Hasher = hasher }, newClient("c", c.secret))
		before := hasher.hashes.Load()
		e.issue(t, "c", c.plain)
		if n := hasher.hashes.Load() - before; n != c.hashes {
			t.Errorf("configuration %d: %d slow hashes, want %d", i, n, c.hashes)
		}
		if _, _, err := e.Token(t.Context(), request(t, "c", c.plain+"x", grantForm)); codeOf(err) != CodeInvalidClient {
			t.Errorf("configuration %d, a wrong secret: %v", i, err)
		}
	}
	if second := referred(); second.digest != first.digest {
		t.Error("a secret that is referred to again is hashed again")
	}
}

// What is remembered is bounded, and expired entries make room.
func TestRememberedSuccessesAreBounded(t *testing.T) {
	h := NewHasher()
	s := slowSecret(t, "x", memoryA, passesA)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range maxRemembered + 10 {
		h.remember(s, fmt.Sprint(i), now)
	}
	if n := len(h.remembered); n != maxRemembered {
		t.Errorf("%d are remembered, want %d", n, maxRemembered)
	}
	if !h.remembers(s, "0", now.Add(rememberFor-1)) {
		t.Error("the first is forgotten")
	}
	h.remember(s, "another", now.Add(rememberFor))
	if n := len(h.remembered); n != 2 {
		t.Errorf("%d are remembered after all but one have expired, want 2", n)
	}
}

// Basic credentials are good as RFC 6749 encodes them and as they are, and in no other form that
// resembles them. The log has the client that is meant even if the secret can't be read.
func TestBothReadingsOfBasic(t *testing.T) {
	const odd = "p%+=&:%41 ä"
	e := newEngine(t, nil,
		newClient("quick", quickSecret(t, odd)), newClient("slow", slowSecret(t, odd, memoryA, passesA)),
		newClient("my:app", quickSecret(t, "s")), newClient("my%3Aapp", quickSecret(t, "raw")), newClient("a%3Ab", quickSecret(t, "s")), newClient("50%", quickSecret(t, "s")))
	for _, c := range []struct {
		pair, client string
		right        bool
	}{
		{"quick:" + odd, "quick", true},
		{"slow:" + odd, "slow", true},
		{"quick:p%25%2B%3D%26%3A%2541+%C3%A4", "quick", true},
		{"slow:p%25%2B%3D%26%3A%2541+%C3%A4", "slow", true},
		{"quick:p%25%2B%3D%26%3A%2541%20ä", "quick", true},
		{"quick:p%+=&:A ä", "quick", false},
		{"quick:" + odd + " ", "quick", false},
		{"slow:p%2525", "slow", false},
		{"my%3Aapp:s", "my:app", true},    // both names are registered: the RFC's is meant
		{"my%3Aapp:raw", "my:app", false}, // and the other one encodes its own
		{"my%253Aapp:raw", "my%3Aapp", true},
		{"a%3Ab:s", "a%3Ab", true},
		{"50%:s", "50%", true},
		{"50%25:s", "50%", true},
		{"quick:%", "quick", false},
		{"quick:\xff", "quick", false},
		{"nobody:%", "", false},
	} {
		r, err := ParseRequest(Incoming{Authorization: []string{"Basic " + base64.StdEncoding.EncodeToString([]byte(c.pair))}, Body: "grant_type=client_credentials"})
		if err != nil {
			t.Fatal(err)
		}
		_, out, err := e.Token(t.Context(), r)
		if (err == nil) != c.right || err != nil && codeOf(err) != CodeInvalidClient || out.ClientID != c.client {
			t.Errorf("%q is client %q, %v; want %q, right %t", c.pair, out.ClientID, err, c.client, c.right)
		}
	}
	// A client_id in the body says which of the two is meant.
	for named, want := range map[string]Code{"my:app": CodeInvalidClient, "my%3Aapp": "", "other": CodeInvalidRequest} {
		r, err := ParseRequest(Incoming{Authorization: []string{"Basic " + base64.StdEncoding.EncodeToString([]byte("my%3Aapp:raw"))}, Body: "grant_type=client_credentials&client_id=" + strings.ReplaceAll(named, "%", "%25")})
		if err == nil {
			_, _, err = e.Token(t.Context(), r)
		}
		if codeOf(err) != want {
			t.Errorf("with client_id %q: %v", named, err)
		}
	}
}

// In a realm with PBKDF2 hashes, a failure costs one of them, for everybody.
func TestFailuresOfPBKDF2CostTheSame(t *testing.T) {
	off := newClient("off", mustHash(t, "$pbkdf2-sha512$210000$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA"))
	off.Disabled = true
	e := newEngine(t, nil, off, newClient("c", mustHash(t, "$pbkdf2-sha512$210000$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA")), newClient("quick", quickSecret(t, "right")))
	for _, id := range []string{"off", "c", "quick", "nobody"} {
		before := e.cfg.Hasher.hashes.Load()
		if _, _, err := e.Token(t.Context(), request(t, id, "wrong", grantForm)); codeOf(err) != CodeInvalidClient {
			t.Errorf("%s: %v", id, err)
		}
		if n := e.cfg.Hasher.hashes.Load() - before; n != 1 {
			t.Errorf("%s costs %d slow hashes, want 1", id, n)
		}
	}
}
