package introspect_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
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
	facts, err := c.Lookup(c.t.Context(), remoteToken)
	if err == nil {
		return "ok", 0
	}
	var remote *introspect.RemoteError
	errors.As(err, &remote)
	return kindOf(c.t, facts, err), remote.RetryAfter
}

// expect looks up n times.
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
		c.t.Errorf("the circuit went through %q, want %q", c.states, want)
	}
	c.states = nil
}

// After five failures in a row the server has five seconds of rest; then one request
// decides.
func TestTheCircuit(t *testing.T) {
	c := newCircuitTest(t, status(500))
	c.expect(4, "status")
	c.server.answers(says(`{"active":false}`))
	c.expect(1, "ok") // a "no" is an answer: it ends the row
	c.server.answers(status(500))
	c.expect(4, "status")
	c.expectStates()
	c.expect(1, "status")
	c.expectStates("open")
	c.asked(10)

	c.expect(10, "circuit_open")
	if _, wait := c.lookup(); wait != 5*time.Second {
		t.Errorf("to come again after %v, want 5s", wait)
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
	c.server.answers(status(500))
	c.expect(5, "status") // the row begins anew
	c.expectStates("open")
}

// While the probe is under way, nobody else asks.
func TestTheCircuitLetsOneThrough(t *testing.T) {
	c := newCircuitTest(t, status(500))
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
		_, err := c.Lookup(t.Context(), remoteToken)
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

// A probe whose caller goes away decides nothing, and the next one probes.
func TestTheCircuitWhenTheProbeGoesAway(t *testing.T) {
	c := newCircuitTest(t, status(500))
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
		_, err := c.Lookup(ctx, remoteToken)
		probe <- err
	}()
	<-arrived
	hangUp()
	if err := <-probe; !errors.Is(err, context.Canceled) {
		t.Errorf("who hung up has %v", err)
	}
	c.server.answers(says(`{"active":true}`))
	c.expect(3, "ok")
	c.expectStates("open", "half_open", "open", "half_open", "closed")
}

// Requests that began before the circuit opened neither prolong nor end it.
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
				c.Lookup(t.Context(), "slow")
				close(slow)
			}()
			<-arrived
			c.server.answers(status(500))
			c.expect(5, "status")
			c.clock.advance(4 * time.Second)
			close(open)
			<-slow
			if _, wait := c.lookup(); wait != time.Second {
				t.Errorf("to come again after %v, want 1s", wait)
			}
			c.expectStates("open")
		})
	}
}

// What a server says about when to come again is respected, within bounds.
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
		{"429 with a number that is none", 429, "99999999999999999999", 5, 5 * time.Second},
		{"429 with the largest number", 429, "18446744073709551615", 1, time.Minute},
		{"429 with a year", 429, start.AddDate(1, 0, 0).Format(http.TimeFormat), 1, time.Minute},
		{"429 with the past", 429, start.Add(-time.Hour).Format(http.TimeFormat), 5, 5 * time.Second},
		{"429 with less than nothing", 429, "-1", 5, 5 * time.Second},
		{"429 with nothing", 429, "0", 5, 5 * time.Second},
		{"429 without", 429, "", 5, 5 * time.Second},
		{"429 with nonsense", 429, "soon", 5, 5 * time.Second},
		{"503 with seconds", 503, "7", 5, 7 * time.Second},
		{"503 with an hour", 503, "3600", 5, time.Minute},
		{"401, which says nothing about when", 401, "7", 5, 5 * time.Second},
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

// Every way to fail counts, and a "no" is none.
func TestTheCircuitCountsEveryFailure(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"credentials": status(403), "redirect": status(302, "Location", "/"), "malformed": says(`{"active":1}`), "too_large": says(fmt.Sprintf(`{"a":"%070000d"}`, 0)),
	} {
		c := newCircuitTest(t, answer)
		c.expect(5, name)
		c.expect(1, "circuit_open")
	}
	c := newCircuitTest(t, says(`{"active":false}`))
	c.expect(20, "ok")
	c.expectStates()
}

// Callers who go away, or have no time, can't make the source leave the server alone.
func TestTheCircuitIsNotOpenedByCallers(t *testing.T) {
	c := newCircuitTest(t, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	for range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		if _, err := c.Lookup(ctx, remoteToken); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want the deadline's error", err)
		}
		cancel()
	}
	c.expectStates()
	if n := c.InCircuit(); n != 0 {
		t.Errorf("%d failures are counted", n)
	}
}

// The cache's own deadline is one that counts: it may be as short as Timeout.
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
	cache := newCache(t, introspect.Config{LookupTimeout: 100 * time.Millisecond})
	s := cache.Wrap(remote.Name(), remote, time.Minute)
	for range 5 {
		if _, err := s.Lookup(t.Context(), remoteToken); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want the deadline's error", err)
		}
	}
	if states.Load() == nil || *states.Load() != "open" {
		t.Error("a server that hangs has not opened the circuit")
	}
}
