package introspect

import (
	"sync"
	"time"
)

// circuit decides whether a server that fails is asked at all. Closed, everybody may ask.
// After most failures in a row it is open, and nobody may. When the pause is over it is
// half open: one may ask, as a probe, and decides for all.
type circuit struct {
	most    int
	pause   time.Duration
	changed func(state string) // called with mu held, so that the order is right

	mu       sync.Mutex
	failures int       // in a row
	until    time.Time // when the pause is over; zero if closed
	probing  bool
	// turn counts the changes. How a request ended counts only in the turn in which it
	// began: when the circuit opens, 63 others may be about to fail as well.
	turn int
}

// circuitOutcome is how a request ended.
type circuitOutcome int

const (
	circuitUnknown  circuitOutcome = iota // it says nothing about the server
	circuitWell                           // the server answered
	circuitUnwell                         // it did not
	circuitSentAway                       // it said how long to stay away
)

// asks reports whether somebody may ask now, and if not, how long to wait; 0 if a probe
// is under way.
func (c *circuit) asks(now time.Time) (wait time.Duration, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asksLocked(now)
}

func (c *circuit) asksLocked(now time.Time) (wait time.Duration, ok bool) {
	switch {
	case c.until.IsZero():
		return 0, true
	case c.probing:
		return 0, false
	}
	wait = c.until.Sub(now)
	return max(wait, 0), wait <= 0
}

// enter is asks for somebody who then does ask, and must call leave with turn.
func (c *circuit) enter(now time.Time) (turn int, wait time.Duration, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if wait, ok = c.asksLocked(now); !ok {
		return 0, wait, false
	}
	if !c.until.IsZero() {
		c.probing = true
		c.changeLocked("half_open")
	}
	return c.turn, 0, true
}

// leave tells how the request of that turn ended. pause, if not 0, is how long the server
// wants to be left alone.
func (c *circuit) leave(turn int, now time.Time, outcome circuitOutcome, pause time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if turn != c.turn {
		return
	}
	switch outcome {
	case circuitUnknown:
		if c.probing { // the next one probes
			c.probing = false
			c.changeLocked("open")
		}
	case circuitWell:
		c.failures = 0
		if c.probing {
			c.probing, c.until = false, time.Time{}
			c.changeLocked("closed")
		}
	case circuitUnwell, circuitSentAway:
		c.failures++
		if c.probing || c.failures >= c.most || outcome == circuitSentAway {
			if pause == 0 {
				pause = c.pause
			}
			c.probing, c.failures, c.until = false, 0, now.Add(pause)
			c.changeLocked("open")
		}
	}
}

func (c *circuit) changeLocked(state string) {
	c.turn++
	c.changed(state)
}
