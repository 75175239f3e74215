package oauth

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// limited returns a realm with a limit of failures.
func limited(t testing.TB, n int, per time.Duration, clients ...*Client) *engine {
	t.Helper()
	return newEngine(t, func(s *Settings) { s.Failures, s.FailureLimit = NewFailures(), Limit{n, per} }, clients...)
}

// at returns the request from another address.
func (r Request) at(addr string) Request {
	r.From = netip.MustParseAddr(addr)
	return r
}

// retryAfter authenticates, and returns the code of the refusal and when the caller may come back.
func (e *engine) retryAfter(t testing.TB, r Request) (code Code, wait time.Duration) {
	t.Helper()
	var out Outcome
	_, err := e.authenticate(t.Context(), r, &out)
	var refusal *Error
	if err != nil && !errors.As(err, &refusal) {
		t.Fatal(err)
	}
	if refusal == nil {
		return "", 0
	}
	return refusal.Code, refusal.RetryAfter
}

// wants authenticates some times, which must all end with the code.
func (e *engine) wants(t testing.TB, code Code, times int, r Request) {
	t.Helper()
	for i := range times {
		if got, _ := e.retryAfter(t, r); got != code {
			t.Fatalf("attempt %d: %q, want %q", i+1, got, code)
		}
	}
}

// Whatever fails, and however, so many failures are answered and no more. What comes next is refused
// unseen, right credentials included, and only in that name and from there.
func TestFailuresAreLimited(t *testing.T) {
	off := newClient("off", quickSecret(t, "s"))
	off.Disabled = true
	basicOnly := newClient("basic", quickSecret(t, "s"))
	basicOnly.Auth = []string{AuthBasic}
	e := limited(t, 3, time.Minute, newClient("quick", quickSecret(t, "right")), newClient("slow", slowSecret(t, "right", memoryA, passesA)), newClient("other", quickSecret(t, "right")), off, basicOnly)
	authorization := func(line string) Request {
		r, err := ParseRequest(Incoming{Authorization: []string{line}, Body: grantForm.Encode(), From: from})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	post := func(form url.Values) Request {
		form.Set("grant_type", GrantClientCredentials)
		r, err := ParseRequest(Incoming{Body: form.Encode(), From: from})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for i, c := range []struct {
		name  string
		fails Request
	}{
		{"wrong secret", request(t, "quick", "wrong", grantForm)},
		{"wrong slow secret", request(t, "slow", "wrong", grantForm)},
		{"unknown client", request(t, "nobody", "wrong", grantForm)},
		{"disabled client", request(t, "off", "s", grantForm)},
		{"method that is not allowed", post(url.Values{"client_id": {"basic"}, "client_secret": {"s"}})},
		{"empty secret", request(t, "quick", "", grantForm)},
		{"secret of 10 KiB", request(t, "nobody", string(make([]byte, 10<<10)), grantForm)},
		{"assertion", post(url.Values{"client_id": {"quick"}, "client_assertion": {"a.b.c"}, "client_assertion_type": {AssertionType}})},
		{"another scheme", authorization("Digest x")},
		{"ID without a readable secret", authorization("Basic " + base64.StdEncoding.EncodeToString([]byte("quick:\xff")))},
	} {
		here := fmt.Sprintf("192.0.2.%d", 10+i)
		e.wants(t, CodeInvalidClient, 3, c.fails.at(here))
		if code, wait := e.retryAfter(t, c.fails.at(here)); code != CodeTooManyRequests || wait != 20*time.Second {
			t.Errorf("%s: after three failures: %q, %v", c.name, code, wait)
		}
		e.wants(t, "", 1, request(t, "other", "right", grantForm).at(here))
		e.wants(t, CodeInvalidClient, 1, c.fails.at(fmt.Sprintf("192.0.3.%d", i)))
	}
	e.wants(t, CodeTooManyRequests, 1, request(t, "quick", "right", grantForm).at("192.0.2.10"))
	e.wants(t, "", 20, request(t, "quick", "right", grantForm).at("192.0.2.9"))
	verifier := verifiers[AuthBasic]
	defer func() { verifiers[AuthBasic] = verifier }()
	verifiers[AuthBasic] = func(*Engine, context.Context, claim) (Proof, string, error) {
		t.Error("what is refused unseen was looked at")
		return Proof{}, "", nil
	}
	e.wants(t, CodeTooManyRequests, 5, request(t, "slow", "another guess", grantForm).at("192.0.2.11"))
	verifiers[AuthBasic] = verifier
	e.wants(t, CodeInvalidClient, 20, post(url.Values{})) // offers nothing
}

// After each further failure it takes twice as long until the next attempt is looked at, up to
// five minutes. What is refused unseen doesn't prolong it. Once nothing has failed for a while,
// all is as in the beginning.
func TestPausesGrow(t *testing.T) {
	e := limited(t, 2, time.Minute, newClient("c", quickSecret(t, "right")))
	wrong, right := request(t, "c", "wrong", grantForm), request(t, "c", "right", grantForm)
	e.wants(t, CodeInvalidClient, 2, wrong)
	for _, seconds := range []int{30, 60, 120, 240, 300, 300} {
		want := time.Duration(seconds) * time.Second
		if code, wait := e.retryAfter(t, wrong); code != CodeTooManyRequests || wait != want {
			t.Fatalf("%q, come back after %v, want %v", code, wait, want)
		}
		e.advance(want - 1)
		if code, wait := e.retryAfter(t, right); code != CodeTooManyRequests || wait != 1 {
			t.Fatalf("just before the end of %v: %q, %v", want, code, wait)
		}
		e.advance(1)
		e.wants(t, "", 3, right) // which changes nothing
		e.wants(t, CodeInvalidClient, 1, wrong)
	}
	e.advance(6 * time.Minute)
	e.wants(t, CodeInvalidClient, 2, wrong)
	if code, wait := e.retryAfter(t, wrong); code != CodeTooManyRequests || wait != 30*time.Second {
		t.Errorf("a new beginning: %q, %v", code, wait)
	}
	// A limit that is slower than five minutes stays so.
	slow := limited(t, 1, 24*time.Hour, newClient("c"))
	slow.wants(t, CodeInvalidClient, 1, wrong)
	if _, wait := slow.retryAfter(t, wrong); wait != 24*time.Hour {
		t.Errorf("with one failure a day: %v", wait)
	}
	// Failures that come slowly enough lead to no pause.
	e.advance(time.Hour)
	for range 20 {
		e.wants(t, CodeInvalidClient, 1, wrong)
		e.advance(30 * time.Second)
	}
}

// An outcome says that a pause begins, once, and names nobody who is not registered.
func TestPausesAreTold(t *testing.T) {
	e := limited(t, 2, time.Minute, newClient("c", quickSecret(t, "right")))
	for _, id := range []string{"c", "nobody"} {
		var paused []time.Duration
		for range 5 {
			var out Outcome
			e.authenticate(t.Context(), request(t, id, "wrong", grantForm), &out)
			paused = append(paused, out.Paused)
			if (out.ClientID == "c") != (id == "c") {
				t.Errorf("%s is told as %q", id, out.ClientID)
			}
		}
		if fmt.Sprint(paused) != "[0s 30s 0s 0s 0s]" {
			t.Errorf("%s: %v", id, paused)
		}
	}
}

// IPv6 counts by /64, and a client has one count in all spellings of its ID.
func TestFailuresOfOne(t *testing.T) {
	e := limited(t, 3, time.Minute, newClient("a b", quickSecret(t, "right")), newClient("a+b", quickSecret(t, "right")), newClient("c%20d", quickSecret(t, "right")))
	basic := func(pair string) Request {
		r, err := ParseRequest(Incoming{Authorization: []string{"Basic " + base64.StdEncoding.EncodeToString([]byte(pair))}, Body: grantForm.Encode(), From: from})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for i, spelling := range []string{"a%20b:x", "%61+b:x", "a b:x"} {
		e.wants(t, CodeInvalidClient, 1, basic(spelling).at(fmt.Sprintf("2001:db8::%x", i)))
	}
	for _, spelling := range []string{"a b:right", "%61%20%62:right", "a+b:right"} {
		e.wants(t, CodeTooManyRequests, 1, basic(spelling).at("2001:db8::ffff:ffff:ffff:ffff"))
	}
	e.wants(t, "", 1, basic("a%2Bb:right").at("2001:db8::"))
	e.wants(t, CodeInvalidClient, 2, basic("c%20d:x"))
	e.wants(t, CodeInvalidClient, 1, basic("c%2520d:x"))
	e.wants(t, CodeTooManyRequests, 1, basic("c%20d:right"))
	e.wants(t, CodeTooManyRequests, 1, basic("c%2520d:right"))
	e.wants(t, "", 1, basic("a b:right").at("2001:db8:0:1::"))
	for addr, want := range map[string]string{"192.0.2.1": "192.0.2.1", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::", "fe80::1%eth0": "fe80::"} {
		if got := failureNetwork(netip.MustParseAddr(addr)).String(); got != want {
			t.Errorf("%s counts as %s, want %s", addr, got, want)
		}
	}
	// Workloads whose platform speaks for them are told apart, and so are their clients if they name one.
	claims := func(sub string) string {
		return "eyJhbGciOiJFUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"https://platform.example.com","sub":"`+sub+`"}`)) + ".AAAA"
	}
	workload := func(sub string, more ...string) Request {
		form := url.Values{"grant_type": {GrantClientCredentials}, "client_assertion": {claims(sub)}, "client_assertion_type": {AssertionType}}
		for _, id := range more {
			form.Set("client_id", id)
		}
		r, err := ParseRequest(Incoming{Body: form.Encode(), From: from})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	e.wants(t, CodeInvalidClient, 3, workload("one"))
	e.wants(t, CodeTooManyRequests, 1, workload("one"))
	e.wants(t, CodeInvalidClient, 3, workload("two"))
	e.wants(t, CodeInvalidClient, 1, workload("one", "x"))
	e.wants(t, CodeInvalidClient, 2, workload("two", "x"))
	e.wants(t, CodeTooManyRequests, 1, workload("three", "x"))
	e.wants(t, CodeInvalidClient, 3, workload("https://platform.example.com"))
	if failureNetwork(netip.Addr{}).IsValid() {
		t.Error("unknown addresses don't count together")
	}
}

// The queue for slow hashes goes by larger networks.
func TestHashNetwork(t *testing.T) {
	for addr, want := range map[string]string{"192.0.2.7": "192.0.2.7", "2001:db8:1:2:3:4:5:6": "2001:db8:1::/48", "2001:db8:1:ffff:ffff::1": "2001:db8:1::/48", "fe80::1%eth0": "fe80::/48"} {
		if got := hashNetwork(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
	if got := hashNetwork(netip.Addr{}); got != "" {
		t.Errorf("unknown addresses: %s", got)
	}
}

// Of guesses that come all at once, exactly as many are answered as of those that come one after the
// other, and not all hashes are computed in vain.
func TestParallelGuesses(t *testing.T) {
	for _, c := range []struct {
		name    string
		secret  *Secret
		guesses int
	}{{"quick", quickSecret(t, "right"), 10_000}, {"slow", slowSecret(t, "right", memoryA, passesA), 100}} {
		e := limited(t, 10, time.Hour, newClient("c", c.secret))
		e.cfg.Hasher.slots = 2
		for round, want := range []int64{10, 1, 1} {
			var answered, unseen, late atomic.Int64 // late: not within the time that a hash may wait for its turn
			var all sync.WaitGroup
			begin := make(chan struct{})
			for i := range c.guesses {
				r := request(t, "c", fmt.Sprint("guess ", i), grantForm)
				all.Go(func() {
					<-begin
					switch code, _ := e.retryAfter(t, r); code {
					case CodeInvalidClient:
						answered.Add(1)
					case CodeTooManyRequests:
						unseen.Add(1)
					case CodeUnavailable:
						late.Add(1)
					default:
						t.Errorf("%s: a guess gets %q", c.name, code)
					}
				})
			}
			before := e.cfg.Hasher.Hashes()
			close(begin)
			all.Wait()
			if answered.Load() > want || late.Load() == 0 && (answered.Load() != want || unseen.Load() != int64(c.guesses)-want) || c.name == "quick" && late.Load() != 0 {
				t.Errorf("%s, round %d: %d guesses are answered and %d refused unseen, want %d answered", c.name, round, answered.Load(), unseen.Load(), want)
			}
			if late.Load() > 0 {
				break // the machine is too busy to go on: not all of what was to be answered was
			}
			if n := e.cfg.Hasher.Hashes() - before; n >= int64(c.guesses) { // usually, it is a few more than are answered
				t.Errorf("%s, round %d: %d hashes", c.name, round, n)
			}
			e.advance(6 * time.Minute << round)
		}
	}
}

// What is right, but proved only after a pause has begun, is refused like what is wrong: at once, and
// not after its own time.
func TestPauseEndsWhatWaits(t *testing.T) {
	e := limited(t, 2, time.Minute, newClient("c", slowSecret(t, "right", memoryA, passesA)))
	e.cfg.Hasher.slots = 0 // nobody gets a turn
	right := request(t, "c", "right", grantForm)
	h := e.cfg.Hasher
	synctest.Test(t, func(t *testing.T) {
		answered := make(chan Code, 3)
		for range 3 {
			go func() {
				code, _ := e.retryAfter(t, right)
				answered <- code
			}()
		}
		synctest.Wait()
		begin := time.Now()
		for range 2 {
			e.trial(right).failed(e.now())
		}
		for range 3 {
			if code := <-answered; code != CodeTooManyRequests || time.Since(begin) != 0 {
				t.Errorf("what waited gets %q after %v", code, time.Since(begin))
			}
		}
	})
	if h.waiting != 0 || h.Hashes() != 0 {
		t.Errorf("%d are still waiting, and %d hashes were computed", h.waiting, h.Hashes())
	}
	// What is quick can't be stopped, so its result is dropped.
	verifier := verifiers[AuthBasic]
	defer func() { verifiers[AuthBasic] = verifier }()
	for addr, proof := range map[string]Proof{"192.0.2.77": {Secret: 1}, "192.0.2.78": {}} {
		r := right.at(addr)
		verifiers[AuthBasic] = func(*Engine, context.Context, claim) (Proof, string, error) {
			e.trial(r).failed(e.now())
			e.trial(r).failed(e.now())
			return proof, "", nil
		}
		var out Outcome
		if client, err := e.authenticate(t.Context(), r, &out); client != nil || codeOf(err) != CodeTooManyRequests || out.Proof != (Proof{}) || out.Paused != 0 {
			t.Errorf("%+v after a pause had begun: %+v, %v", proof, out, err)
		}
	}
}

// A limit that was changed begins anew, and one that was not goes on, with other clients, too.
func TestFailuresOutliveAnEngine(t *testing.T) {
	failures := NewFailures()
	with := func(n int, realm string) *engine {
		return newEngine(t, func(s *Settings) {
			s.Realm, s.Failures, s.FailureLimit = realm, failures, Limit{n, time.Minute}
		}, newClient("c", quickSecret(t, "right")))
	}
	wrong := request(t, "c", "wrong", grantForm)
	with(2, "root").wants(t, CodeInvalidClient, 2, wrong)
	with(2, "root").wants(t, CodeTooManyRequests, 1, wrong)
	with(2, "other").wants(t, CodeInvalidClient, 2, wrong)
	with(0, "root").wants(t, CodeInvalidClient, 5, wrong)
	with(3, "root").wants(t, CodeInvalidClient, 3, wrong)
	with(3, "root").wants(t, CodeTooManyRequests, 1, wrong)
}

// Whoever names many clients has no more guesses than the bound on clients allows, and what others do
// from there does not make anybody's pause end.
func TestFailuresOfManyClients(t *testing.T) {
	e := limited(t, 2, time.Minute, newClient("victim", quickSecret(t, "right")))
	e.wants(t, CodeInvalidClient, 2, request(t, "victim", "wrong", grantForm))
	answered := 0
	for i := range 1000 {
		for range 3 {
			if code, _ := e.retryAfter(t, request(t, fmt.Sprint("made-up-", i), "wrong", grantForm)); code == CodeInvalidClient {
				answered++
			}
		}
	}
	if want := 2 * maxFailingHere; answered != want { // the victim's among them, and all others as one
		t.Errorf("%d guesses are answered, want %d", answered, want)
	}
	e.wants(t, CodeTooManyRequests, 1, request(t, "victim", "right", grantForm))
	e.wants(t, "", 1, request(t, "victim", "right", grantForm).at("192.0.2.2"))
	// When these are forgiven there is room again.
	e.advance(10 * time.Minute)
	e.wants(t, CodeInvalidClient, 2, request(t, "yet-another", "wrong", grantForm))
	e.wants(t, CodeInvalidClient, 2, request(t, "one-more", "wrong", grantForm))
	if held := e.cfg.Failures.held; held != 3 {
		t.Errorf("%d are remembered", held)
	}
}

// The memory is bounded, whatever anybody sends from anywhere.
func TestFailuresAreBounded(t *testing.T) {
	e := limited(t, 2, time.Minute)
	f := e.cfg.Failures
	heap := func() uint64 {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	before := heap()
	var addr [16]byte
	copy(addr[:], "\x20\x01\x0d\xb8")
	const many = maxFailing + maxFailing/4
	for i := range many {
		addr[4], addr[5], addr[6], addr[7] = byte(i>>24), byte(i>>16), byte(i>>8), byte(i)
		trial := e.trial(Request{From: netip.AddrFrom16(addr), Credentials: Credentials{ClientIDs: []string{fmt.Sprint(i)}}})
		trial.failed(e.now())
		trial.failed(e.now())
		trial.pause(e.now())
	}
	grown := max(heap(), before) - before // what other tests have left may be gone
	t.Logf("%d failures from as many networks: %d remembered, %d bytes for each", many, f.held, grown/uint64(f.held))
	if f.held != maxFailing || len(f.networks) != maxFailing || f.order.Len() != maxFailing {
		t.Errorf("%d, %d, %d are remembered", f.held, len(f.networks), f.order.Len())
	}
	if most := uint64(maxFailing * 768); grown > most {
		t.Errorf("they take %d bytes", grown)
	}
	// The last ones are those that are remembered.
	if e.trial(Request{From: netip.AddrFrom16(addr), Credentials: Credentials{ClientIDs: []string{fmt.Sprint(many - 1)}}}).pause(e.now()) == 0 {
		t.Error("the last one is forgotten")
	}
	runtime.KeepAlive(f)
}

// What a client may fetch and ask about is limited, and the answer says when there is more.
func TestWhenThereIsMore(t *testing.T) {
	c := newClient("c", quickSecret(t, "right"))
	c.TokenLimit, c.InquiryLimit = Limit{2, time.Minute}, Limit{3, time.Minute}
	e := newEngine(t, nil, c)
	token := e.issue(t, "c", "right")
	ask := func() error {
		_, _, err := e.Introspect(t.Context(), request(t, "c", "right", url.Values{"token": {token}}))
		return err
	}
	fetch := func() error {
		_, _, err := e.Token(t.Context(), request(t, "c", "right", grantForm))
		return err
	}
	wait := func(err error, reason string, want time.Duration) {
		t.Helper()
		var refusal *Error
		if !errors.As(err, &refusal) || refusal.Code != CodeTooManyRequests || refusal.Reason != reason || (refusal.RetryAfter-want).Abs() > time.Millisecond {
			t.Errorf("got %+v, want %s and %v", refusal, reason, want)
		}
	}
	good := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	good(fetch())
	wait(fetch(), "token_limit", 30*time.Second)
	e.advance(10 * time.Second)
	wait(fetch(), "token_limit", 20*time.Second)
	e.advance(20*time.Second + time.Millisecond)
	good(fetch())
	for range 3 {
		good(ask())
	}
	wait(ask(), "inquiry_limit", 20*time.Second)
	// It is the same client under other settings.
	next := *c
	next.Scopes = []string{"a"}
	e.SetClients(map[string]*Client{"c": &next})
	wait(ask(), "inquiry_limit", 20*time.Second)
	changed := next
	changed.InquiryLimit = Limit{1, time.Minute}
	e.SetClients(map[string]*Client{"c": &changed})
	good(ask())
	wait(ask(), "inquiry_limit", time.Minute)
}
