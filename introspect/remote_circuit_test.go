package introspect_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// circuitTest is a remote source, its server, and a clock that stands still.
type circuitTest struct {
	*introspect.Remote
	t      *testing.T
	server *authServer
	clock  clocks
	states []string
}

func newCircuitTest(t *testing.T, answer http.HandlerFunc) *circuitTest {
	c := &circuitTest{t: t, server: newAuthServer(t, answer)}
	cfg := remoteConfig(c.server.URL)
	cfg.Timeout = 20 * time.Second
	cfg.Now = c.clock.now
	cfg.OnCircuit = func(state string) { c.states = append(c.states, state) }
	c.Remote = newRemote(t, cfg)
	return c
}

// lookup returns the kind of the failure, or "ok".
func (c *circuitTest) lookup() (kind string, retryAfter time.Duration) {
	c.t.Helper()
	facts, err := c.Lookup(c.t.Context(), introspect.NewToken(remoteToken))
	if err == nil {
		return "ok", 0
	}
	var remote *introspect.RemoteError
	errors.As(err, &remote)
	return kindOf(c.t, facts, err), remote.RetryAfter
}

// expect looks a token up n times.
func (c *circuitTest) expect(n int, kind string) {
	c.t.Helper()
	for i := range n {
		if got, _ := c.lookup(); got != kind {
			c.t.Errorf("lookup %d of %d: %s, want %s", i+1, n, got, kind)
		}
	}
}

// asked checks how many requests reached the server since the last call.
func (c *circuitTest) asked(want int64) {
	c.t.Helper()
	if n := c.server.asked.Swap(0); n != want {
		c.t.Errorf("the server was asked %d times, want %d", n, want)
	}
}

func (c *circuitTest) expectStates(want ...string) {
	c.t.Helper()
	if !slices.Equal(c.states, want) {
		c.t.Errorf("the states of the circuit were %q, want %q", c.states, want)
	}
	c.states = nil
}

// After five failures in a row the server is left alone for five seconds. Then one request decides.
func TestTheCircuit(t *testing.T) {
	c := newCircuitTest(t, status(503))
	c.expect(4, "status")
	c.server.answers(says(`{"active":false}`))
	c.expect(1, "ok") // a "no" is an answer, so it ends the row
	c.server.answers(status(503))
	c.expect(4, "status")
	c.expectStates()
	c.expect(1, "status")
	c.expectStates("open")
	c.asked(10)

	c.expect(10, "circuit_open")
	if _, wait := c.lookup(); wait != 5*time.Second {
		t.Errorf("told to try again after %v, want 5s", wait)
	}
	c.clock.advance(5*time.Second - 1)
	c.expect(1, "circuit_open")
	c.asked(0)

	c.clock.advance(1)
	c.expect(1, "status") // the probe
	c.expect(5, "circuit_open")
	c.expectStates("half_open", "open")
	c.asked(1)

	c.clock.advance(5 * time.Second)
	c.server.answers(says(`{"active":true}`))
	c.expect(5, "ok")
	c.expectStates("half_open", "closed")
	c.server.answers(status(503))
	c.expect(5, "status") // a new row
	c.expectStates("open")
}

// While the probe is under way, nobody else asks.
func TestTheCircuitLetsOneThrough(t *testing.T) {
	c := newCircuitTest(t, status(503))
	c.expect(5, "status")
	c.asked(5)
	arrived, open := make(chan struct{}), make(chan struct{})
	c.server.answers(func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-open
		says(`{"active":true}`)(w, r)
	})
	c.clock.advance(5 * time.Second)
	probe := make(chan error)
	go func() {
		_, err := c.Lookup(t.Context(), introspect.NewToken(remoteToken))
		probe <- err
	}()
	<-arrived
	c.expect(10, "circuit_open")
	close(open)
	if err := <-probe; err != nil {
		t.Error(err)
	}
	c.asked(1)
	c.expectStates("open", "half_open", "closed")
}

// A probe whose caller goes away decides nothing, and the next request is the probe.
func TestTheCircuitWhenTheProbeGoesAway(t *testing.T) {
	c := newCircuitTest(t, status(503))
	c.expect(5, "status")
	arrived := make(chan struct{})
	c.server.answers(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	c.clock.advance(5 * time.Second)
	ctx, hangUp := context.WithCancel(t.Context())
	probe := make(chan error)
	go func() {
		_, err := c.Lookup(ctx, introspect.NewToken(remoteToken))
		probe <- err
	}()
	<-arrived
	hangUp()
	if err := <-probe; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller that hung up got %v", err)
	}
	c.server.answers(says(`{"active":true}`))
	c.expect(3, "ok")
	c.expectStates("open", "half_open", "open", "half_open", "closed")
}

// Requests that began before the circuit opened neither prolong nor end the pause.
func TestTheCircuitIgnoresLateAnswers(t *testing.T) {
	for _, late := range []struct {
		name   string
		answer http.HandlerFunc
	}{{"good", says(`{"active":true}`)}, {"bad", status(429, "Retry-After", "60")}} {
		t.Run(late.name, func(t *testing.T) {
			arrived, open := make(chan struct{}), make(chan struct{})
			c := newCircuitTest(t, func(w http.ResponseWriter, r *http.Request) {
				arrived <- struct{}{}
				<-open
				late.answer(w, r)
			})
			slow := make(chan struct{})
			go func() {
				c.Lookup(t.Context(), introspect.NewToken("slow"))
				close(slow)
			}()
			<-arrived
			c.server.answers(status(503))
			c.expect(5, "status")
			c.clock.advance(4 * time.Second)
			close(open)
			<-slow
			if _, wait := c.lookup(); wait != time.Second {
				t.Errorf("told to try again after %v, want 1s", wait)
			}
			c.expectStates("open")
		})
	}
}

// What a server says about when to try again is respected, within bounds.
func TestTheCircuitAndRetryAfter(t *testing.T) {
	for _, c := range []struct {
		name     string
		status   int
		value    string
		failures int // until it opens
		open     time.Duration
	}{
		{"429 with seconds", 429, "7", 1, 7 * time.Second},
		{"429 with a date", 429, start.Add(9 * time.Second).Format(http.TimeFormat), 1, 9 * time.Second},
		{"429 with an hour", 429, "3600", 1, time.Minute},
		{"429 with a number beyond 64 bits", 429, "99999999999999999999", 5, 5 * time.Second},
		{"429 with the largest number", 429, "18446744073709551615", 1, time.Minute},
		{"429 with a year", 429, start.AddDate(1, 0, 0).Format(http.TimeFormat), 1, time.Minute},
		{"429 with the past", 429, start.Add(-time.Hour).Format(http.TimeFormat), 5, 5 * time.Second},
		{"429 with a negative number", 429, "-1", 5, 5 * time.Second},
		{"429 with zero", 429, "0", 5, 5 * time.Second},
		{"429 without Retry-After", 429, "", 5, 5 * time.Second},
		{"429 with nonsense", 429, "soon", 5, 5 * time.Second},
		{"503 with seconds", 503, "7", 5, 7 * time.Second},
		{"503 with an hour", 503, "3600", 5, time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			answer := status(c.status)
			if c.value != "" {
				answer = status(c.status, "Retry-After", c.value)
			}
			test := newCircuitTest(t, answer)
			for range c.failures {
				test.expectStates()
				test.lookup()
			}
			test.expectStates("open")
			if kind, wait := test.lookup(); kind != "circuit_open" || wait != c.open {
				t.Errorf("%s, for %v, want circuit_open for %v", kind, wait, c.open)
			}
			test.clock.advance(c.open)
			test.server.answers(says(`{"active":true}`))
			test.expect(1, "ok")
		})
	}
}

// Every outage counts, whatever it looks like, and a "no" does not count.
func TestTheCircuitCountsOutages(t *testing.T) {
	hangUp := func(w http.ResponseWriter, _ *http.Request) {
		conn, _, _ := http.NewResponseController(w).Hijack()
		conn.Close()
	}
	for name, answer := range map[string]http.HandlerFunc{
		"502": status(502), "503": status(503), "504": status(504), "429": status(429), "hangs up": hangUp,
	} {
		c := newCircuitTest(t, answer)
		for range 5 {
			if facts, err := c.Lookup(t.Context(), introspect.NewToken(remoteToken)); !errors.Is(err, introspect.ErrOutage) {
				t.Errorf("%s: %+v, %v; want an outage", name, facts, err)
			}
		}
		c.expect(1, "circuit_open")
		if _, err := c.Lookup(t.Context(), introspect.NewToken(remoteToken)); !errors.Is(err, introspect.ErrOutage) {
			t.Errorf("%s: an open circuit is not an outage: %v", name, err)
		}
	}
	c := newCircuitTest(t, says(`{"active":false}`))
	c.expect(20, "ok")
	c.expectStates()

	c = newCircuitTest(t, says(`{"active":false}`))
	c.server.Close()
	c.expect(5, "refused")
	c.expect(1, "circuit_open")
}

// faultyAnswers are answers that a server may give about a token that it does not like.
func faultyAnswers() map[string]http.HandlerFunc {
	answers := map[string]http.HandlerFunc{
		"no JSON": says("junk"), "active is no boolean": says(`{"active":1}`), "too large": says(fmt.Sprintf(`{"a":"%070000d"}`, 0)), "a page": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") },
	}
	for code := 301; code <= 505; code++ {
		switch {
		case code == 429, code >= 502 && code <= 504, code > 305 && code < 400, code > 431 && code < 500 && code != 451:
			continue
		}
		answers[fmt.Sprint(code)] = status(code, "Retry-After", "60")
	}
	return answers
}

// Whatever a server answers about junk, and however often, only the junk fails. It is not asked
// about again for a second, and does not open the circuit.
func TestJunkOpensNoCircuit(t *testing.T) {
	for name, answer := range faultyAnswers() {
		t.Run(name, func(t *testing.T) {
			c := newCircuitTest(t, func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.PostFormValue("token"), "good") {
					says(`{"active":true,"client_id":"`+r.PostFormValue("token")+`"}`)(w, r)
				} else {
					answer(w, r)
				}
			})
			for i := range 40 {
				c.clock.advance(250 * time.Millisecond)
				facts, err := c.Lookup(t.Context(), introspect.NewToken(fmt.Sprint("junk", i)))
				kindOf(t, facts, err)
				if errors.Is(err, introspect.ErrOutage) {
					t.Fatalf("a token that the server does not like counts as an outage: %v", err)
				}
				if facts, err := c.Lookup(t.Context(), introspect.NewToken(fmt.Sprint("good", i%3))); err != nil || !facts.Active {
					t.Fatalf("beside %d junk tokens, a good token got %+v, %v", i+1, facts, err)
				}
			}
			c.settle()
			c.server.asked.Store(0)
			c.expect(10, kindOf(t, nil, lookupError(c, remoteToken)))
			c.asked(1)
			c.clock.advance(time.Second)
			lookupError(c, remoteToken)
			c.settle()
			c.asked(1)
			c.expectStates()
		})
	}
}

func lookupError(c *circuitTest, token string) error {
	_, err := c.Lookup(c.t.Context(), introspect.NewToken(token))
	return err
}

// settle waits until no witness is being asked about.
func (c *circuitTest) settle() { c.Settle() }

// A server that makes no sense to anybody is down in effect. Tokens that it knew prove it, if they
// belong to two clients: with those of one, their holder alone could claim it.
func TestWitnessesDecide(t *testing.T) {
	for _, test := range []struct {
		name string
		// knows lists the tokens that were active, as client/token.
		knows  []string
		broken http.HandlerFunc
		fails  func(token string) bool // which tokens fail then
		want   []string                // the states of the circuit after five failures of junk
	}{
		{"500 to all", []string{"a/1", "b/1"}, status(500), all, []string{"open"}},
		{"401 to all", []string{"a/1", "b/1", "c/1", "d/1"}, status(401), all, []string{"open"}},
		{"a page to all", []string{"a/1", "b/1"}, says("<html>"), all, []string{"open"}},
		{"500 to all, known by one client", []string{"a/1", "a/2", "a/3"}, status(500), all, nil},
		{"500 to all, known by nobody", nil, status(500), all, nil},
		{"500 to all but one", []string{"a/1", "b/1", "c/1"}, status(500), func(token string) bool { return token != "b/1" }, nil},
		{"500 to all but an older one", []string{"a/1", "b/1", "c/1", "d/1"}, status(500), func(token string) bool { return token != "a/1" }, []string{"open"}},
		{"503 to junk", []string{"a/1"}, status(503), func(token string) bool { return strings.HasPrefix(token, "junk") }, nil},
		{"503 to all, known by one client", []string{"a/1"}, status(503), all, []string{"open"}},
		{"503 to all, known by nobody", nil, status(503), all, []string{"open"}},
		{"the connection breaks for junk", []string{"a/1"}, func(w http.ResponseWriter, _ *http.Request) {
			conn, _, _ := http.NewResponseController(w).Hijack()
			conn.Close()
		}, func(token string) bool { return strings.HasPrefix(token, "junk") }, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			broken := false
			c := newCircuitTest(t, func(w http.ResponseWriter, r *http.Request) {
				token := r.PostFormValue("token")
				client, _, _ := strings.Cut(token, "/")
				if broken && test.fails(token) {
					test.broken(w, r)
				} else {
					says(`{"active":true,"client_id":"`+client+`"}`)(w, r)
				}
			})
			for _, token := range test.knows {
				if err := lookupError(c, token); err != nil {
					t.Fatal(err)
				}
			}
			broken = true
			for i := range 5 {
				c.expectStates()
				lookupError(c, fmt.Sprint("junk", i))
			}
			c.settle()
			c.expectStates(test.want...)
			if test.want == nil {
				return
			}
			// In the half-open state, an answer that makes no sense does not close the circuit.
			c.clock.advance(5 * time.Second)
			lookupError(c, "junk")
			c.settle()
			if test.knows != nil {
				c.expectStates("half_open", "open")
				c.clock.advance(5 * time.Second)
			} else {
				c.states = nil
				c.clock.advance(5 * time.Second)
			}
			// But an answer about a token that the server knows does, and so do witnesses if junk asks
			// first.
			broken = false
			c.server.answers(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.PostFormValue("token"), "junk") {
					test.broken(w, r)
				} else {
					says(`{"active":true}`)(w, r)
				}
			})
			if test.knows != nil {
				lookupError(c, "junk")
				c.settle()
			} else if err := lookupError(c, "good"); err != nil {
				t.Error(err)
			}
			c.expectStates("half_open", "closed")
		})
	}
}

func all(string) bool { return true }

// A server that is up, and fails for everybody from the first moment, is asked about each token.
func TestAnAnswerClosesWithoutWitnesses(t *testing.T) {
	c := newCircuitTest(t, status(503))
	c.expect(5, "status")
	c.expectStates("open")
	c.clock.advance(5 * time.Second)
	c.server.answers(status(404))
	c.expect(1, "status")
	c.expectStates("half_open", "closed")
}

// A token about which the server fails says nothing about others by failing once more.
func TestATokenIsNotItsOwnWitness(t *testing.T) {
	var broken atomic.Bool
	c := newCircuitTest(t, func(w http.ResponseWriter, r *http.Request) {
		if broken.Load() {
			w.WriteHeader(500)
			return
		}
		says(`{"active":true,"client_id":"`+r.PostFormValue("token")+`"}`)(w, r)
	})
	for _, token := range []string{"a", "b"} {
		if err := lookupError(c, token); err != nil {
			t.Fatal(err)
		}
	}
	broken.Store(true)
	for range 20 {
		lookupError(c, "a")
		c.settle()
		c.clock.advance(time.Second)
	}
	c.expectStates()
}

// A probe that fails while witnesses are still being asked about because of earlier failures opens
// the circuit again: their answers will not be about it.
func TestAProbeDuringAnEarlierCheck(t *testing.T) {
	open, arrived := make(chan struct{}), make(chan struct{}, 1)
	var junk atomic.Int64
	var hang atomic.Bool
	c := newCircuitTest(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.PostFormValue("token"), "junk") {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(int(junk.Load()))
			return
		}
		if hang.Load() {
			arrived <- struct{}{}
			<-open
		}
		says(`{"active":true}`)(w, r)
	})
	if err := lookupError(c, "good"); err != nil {
		t.Fatal(err)
	}
	hang.Store(true)
	junk.Store(503)
	lookupError(c, "junk0")
	<-arrived // a witness is being asked about
	junk.Store(429)
	lookupError(c, "junk1")
	c.expectStates("open")
	junk.Store(503)
	c.clock.advance(time.Second)
	lookupError(c, "junk2")
	c.expectStates("half_open", "open")
	hang.Store(false)
	close(open)
	c.settle()
	c.expectStates()
	c.clock.advance(time.Second)
	if err := lookupError(c, "good"); err != nil {
		t.Error(err)
	}
	c.expectStates("half_open", "closed")
}

// Witnesses expire after ten minutes, with their tokens, and with the source.
func TestWitnessesEnd(t *testing.T) {
	for name, end := range map[string]func(*circuitTest){
		"by age":            func(c *circuitTest) { c.clock.advance(10 * time.Minute) },
		"with their tokens": func(c *circuitTest) { c.clock.advance(time.Minute) },
		"with the source":   func(c *circuitTest) { c.Close() },
		"with a no": func(c *circuitTest) {
			c.server.answers(says(`{"active":false}`))
			lookupError(c, "a")
			lookupError(c, "b")
		},
	} {
		t.Run(name, func(t *testing.T) {
			answer := `{"active":true,"client_id":"%s"}`
			if name == "with their tokens" {
				answer = `{"active":true,"client_id":"%s","exp":` + at(start.Add(time.Minute)) + `}`
			}
			c := newCircuitTest(t, func(w http.ResponseWriter, r *http.Request) {
				says(fmt.Sprintf(answer, r.PostFormValue("token")))(w, r)
			})
			for _, token := range []string{"a", "b"} {
				if err := lookupError(c, token); err != nil {
					t.Fatal(err)
				}
			}
			if n := c.Witnesses(); n != 2 {
				t.Fatalf("%d witnesses, want 2", n)
			}
			end(c)
			if n := c.Witnesses(); n != 0 {
				t.Errorf("%d witnesses are left", n)
			}
		})
	}
}

// Made-up tokens that take the server long leave places for those that it knows.
func TestJunkLeavesPlaces(t *testing.T) {
	open := make(chan struct{})
	var under atomic.Int64
	server := newAuthServer(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.PostFormValue("token"), "junk") {
			under.Add(1)
			<-open
		}
		says(`{"active":true}`)(w, r)
	})
	cfg := remoteConfig(server.URL)
	cfg.MaxConcurrent, cfg.Timeout = 8, 20*time.Second
	remote := newRemote(t, cfg)
	if facts, err := remote.Lookup(t.Context(), introspect.NewToken("good")); err != nil || !facts.Active {
		t.Fatal(facts, err)
	}
	results := make(chan error, 40)
	for i := range 40 {
		go func() {
			_, err := remote.Lookup(t.Context(), introspect.NewToken(fmt.Sprint("junk", i)))
			results <- err
		}()
	}
	for range 40 - 2*6 {
		if err := <-results; !errors.Is(err, introspect.ErrBusy) || errors.Is(err, introspect.ErrOutage) {
			t.Fatalf("%v, want ErrBusy, which is not an outage", err)
		}
	}
	for range 10 {
		if facts, err := remote.Lookup(t.Context(), introspect.NewToken("good")); err != nil || !facts.Active {
			t.Errorf("beside junk that hangs, a token that was good got %+v, %v", facts, err)
		}
	}
	close(open)
	for range 12 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// StaleFor does not apply to a revoked token about which a server fails, as long as it answers about
// others. Once it answers about none, it applies to all.
func TestOneTokensOutageIsNone(t *testing.T) {
	var down, revoked atomic.Bool
	c := newCircuitTest(t, func(w http.ResponseWriter, r *http.Request) {
		token := r.PostFormValue("token")
		if down.Load() || token == "revoked" && revoked.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		says(`{"active":true,"client_id":"`+token+`","exp":`+at(start.Add(24*time.Hour))+`}`)(w, r)
	})
	cache := newCache(t, c.clock.config())
	s := cache.WrapWith(c.Name(), c.Remote, introspect.SourceConfig{MaxAge: 10 * time.Second, StaleFor: time.Hour})
	warm(t, cache, s, "revoked")
	warm(t, cache, s, "other")
	revoked.Store(true)
	for range 20 {
		c.clock.advance(10 * time.Second)
		if facts, err := s.Lookup(t.Context(), "revoked"); err == nil {
			t.Fatalf("a revoked token, while others get their answers: %+v", facts)
		}
		c.settle()
	}
	c.expectStates()
	down.Store(true)
	c.clock.advance(10 * time.Second)
	s.Lookup(t.Context(), "other")
	c.settle()
	for range 20 {
		c.clock.advance(10 * time.Second)
		if !active(t, s, "other") {
			t.Error("StaleFor does not apply in an outage")
		}
		c.settle()
	}
	down.Store(false)
	c.clock.advance(10 * time.Second)
	if !active(t, s, "other") {
		t.Error("after the outage")
	}
	c.clock.advance(10 * time.Second)
	if facts, err := s.Lookup(t.Context(), "revoked"); err == nil {
		t.Errorf("a revoked token, after the outage: %+v", facts)
	}
}

// Junk that makes a server hang does not open the circuit as long as it answers about others.
func TestJunkThatHangs(t *testing.T) {
	c := newCircuitTest(t, func(w http.ResponseWriter, r *http.Request) {
		if r.PostFormValue("token") == "good" {
			says(`{"active":true}`)(w, r)
			return
		}
		<-r.Context().Done()
	})
	if err := lookupError(c, "good"); err != nil {
		t.Fatal(err)
	}
	// All at once, so that together they hang only as long as one.
	hasty := c.WithTimeout(time.Second)
	var junk sync.WaitGroup
	for i := range 7 {
		junk.Go(func() {
			facts, err := hasty.Lookup(t.Context(), introspect.NewToken(fmt.Sprint("junk", i)))
			if kind := kindOf(t, facts, err); kind != "timeout" {
				t.Errorf("%s: %v", kind, err)
			}
		})
	}
	junk.Wait()
	c.settle()
	c.expectStates()
	if err := lookupError(c, "good"); err != nil {
		t.Error(err)
	}
}

// Of several users of a server, one in a hurry does not decide that it is down: for the others it
// may be in time.
func TestTheHastyDecideNothing(t *testing.T) {
	open := make(chan struct{})
	c := newCircuitTest(t, func(w http.ResponseWriter, r *http.Request) {
		if r.PostFormValue("token") != "good" {
			<-open
		}
		says(`{"active":true,"client_id":"`+r.PostFormValue("token")+`"}`)(w, r)
	})
	hasty := c.WithTimeout(10 * time.Millisecond)
	if err := lookupError(c, "good"); err != nil {
		t.Fatal(err)
	}
	slow := c.server.answer.Load()
	c.server.answers(func(w http.ResponseWriter, r *http.Request) {
		<-open
		(*slow)(w, r)
	})
	for i := range 5 {
		facts, err := hasty.Lookup(t.Context(), introspect.NewToken(fmt.Sprint("other", i)))
		if kind := kindOf(t, facts, err); kind != "timeout" {
			t.Errorf("%s: %v", kind, err)
		}
	}
	close(open)
	c.settle()
	c.expectStates()
	if err := lookupError(c, "another"); err != nil {
		t.Error(err)
	}
}

// If a token is revoked, and its holder sends junk for which the server has no sensible answer, the
// token is refused once its facts are too old, with StaleFor or without.
func TestJunkKeepsNoRevokedTokenAlive(t *testing.T) {
	for name, answer := range faultyAnswers() {
		t.Run(name, func(t *testing.T) {
			var revoked atomic.Bool
			c := newCircuitTest(t, func(w http.ResponseWriter, r *http.Request) {
				switch token := r.PostFormValue("token"); {
				case strings.HasPrefix(token, "junk"):
					answer(w, r)
				case token == "revoked" && revoked.Load():
					says(`{"active":false}`)(w, r)
				case strings.HasPrefix(token, "mine") && revoked.Load():
					answer(w, r) // the server has no sensible answer about these once they are revoked
				default:
					says(`{"active":true,"client_id":"attacker","exp":`+at(start.Add(24*time.Hour))+`}`)(w, r)
				}
			})
			cache := newCache(t, c.clock.config())
			s := cache.WrapWith(c.Name(), c.Remote, introspect.SourceConfig{MaxAge: 10 * time.Second, StaleFor: time.Hour})
			for _, token := range []string{"revoked", "mine1", "mine2"} {
				warm(t, cache, s, token)
			}
			revoked.Store(true)
			for i := range 60 {
				c.clock.advance(250 * time.Millisecond)
				s.Lookup(t.Context(), fmt.Sprint("junk", i))
				s.Lookup(t.Context(), fmt.Sprint("mine", i%2+1))
				c.settle()
				facts, err := s.Lookup(t.Context(), "revoked")
				refused := err == nil && !facts.Active
				if good := err == nil && facts.Active; good != (i < 39) || good == refused {
					t.Fatalf("%v after its revocation: %+v, %v", time.Duration(i+1)*250*time.Millisecond, facts, err)
				}
			}
			// Nor is one good about which the server no longer has a sensible answer.
			if facts, err := s.Lookup(t.Context(), "mine1"); err == nil {
				t.Errorf("a revoked token about which the server fails: %+v", facts)
			}
			c.expectStates()
		})
	}
}

// Callers that go away, or have no time, can't make the source leave the server alone.
func TestTheCircuitIsNotOpenedByCallers(t *testing.T) {
	c := newCircuitTest(t, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	for range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		if _, err := c.Lookup(ctx, introspect.NewToken(remoteToken)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want the deadline's error", err)
		}
		cancel()
	}
	c.expectStates()
	if n := c.InCircuit(); n != 0 {
		t.Errorf("%d failures are counted", n)
	}
}

// The cache's own deadline does count, even if it is as short as Timeout.
func TestTheCircuitCountsTheCachesDeadline(t *testing.T) {
	server := newAuthServer(t, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	cfg := remoteConfig(server.URL)
	cfg.Timeout = 100 * time.Millisecond
	var states atomic.Pointer[string]
	cfg.OnCircuit = func(state string) { states.Store(&state) }
	remote := newRemote(t, cfg)
	cache := newCache(t, introspect.CacheConfig{LookupTimeout: 100 * time.Millisecond})
	s := cache.Wrap(remote.Name(), remote, time.Minute)
	open := func() bool { state := states.Load(); return state != nil && *state == "open" }
	// On a busy machine, a question may come so late that the server has too little time for it to
	// count.
	for range 20 {
		if _, err := s.Lookup(t.Context(), remoteToken); !open() && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want the deadline's error", err)
		}
		if open() {
			return
		}
	}
	t.Error("a server that hangs did not open the circuit")
}
