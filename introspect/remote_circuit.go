package introspect

import (
	"sync"
	"time"
)

// circuit decides whether a failing server is asked at all. While it is closed, everybody may
// ask. While it is open, nobody may. After a pause it is half open: one request may go out as
// a probe, and decides for all.
//
// Whoever sends tokens chooses what the server is asked, so a failure that a token can provoke
// must neither open the circuit nor keep it open. Failures in which no token plays a part open
// it directly. After a row of other failures, witnesses decide: tokens that the server knew a
// short while ago. If it answers about one of them, it is well, and the failures are the fault
// of their tokens.
type circuit struct {
	most    int
	pause   time.Duration
	changed func(state string) // called with mu held, so that the order is right

	mu       sync.Mutex
	failures int       // in a row, of those that mean that the server is down
	faults   int       // answers that made no sense since the last one that did
	until    time.Time // the end of the pause; zero while closed
	probing  bool
	// checking: witnesses are being asked about. answered: meanwhile another request got an
	// answer. decisive: the check was caused by answers that make no sense. away: the witnesses
	// got no answer, nor has any request since. vouched is when a witness last got an answer.
	checking, answered, decisive, away bool
	vouched                            time.Time
	// turn counts the changes of state. How a request ended counts only in the turn in which it
	// began: when the circuit opens, 63 others may be about to fail as well.
	turn int
}

// circuitOutcome is how a request ended.
type circuitOutcome int

const (
	circuitUnknown   circuitOutcome = iota // it says nothing about the server
	circuitWell                            // the server answered
	circuitUnreached                       // there was no connection, whatever the token
	circuitUnwell                          // no answer, or one that says so; perhaps only for this token
	circuitFault                           // an answer that makes no sense, perhaps only for this token
	circuitSentAway                        // the server said how long to stay away
)

const (
	// enoughWitnesses is how many it takes to call a server down that does answer, but not
	// sensibly. They belong to different clients, so that nobody can fake an outage with tokens
	// of their own.
	enoughWitnesses = 2
	// vouchedFor is how long a witness vouches for the server, so that a flood of junk causes
	// only one more question a second.
	vouchedFor = time.Second
)

// asks reports whether a request may go out now and, if not, how long to wait; 0 if a probe is
// under way.
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

// enter is like asks for a caller that does send a request, and must call leave with turn.
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

// leave records how the request of that turn ended. pause, if not 0, is how long the server
// wants to be left alone. witnesses is how many there are besides the token in question. If
// check is true, the caller has to ask about them and call checked. outage is whether the
// server is down as far as is known, and not just for that token.
func (c *circuit) leave(turn int, now time.Time, outcome circuitOutcome, pause time.Duration, witnesses int) (check, outage bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch outcome {
	case circuitUnreached, circuitSentAway:
		outage = true
	case circuitUnwell:
		outage = witnesses == 0 || c.away || !c.until.IsZero()
	}
	if turn != c.turn {
		return false, outage
	}
	switch outcome {
	case circuitUnknown:
		if c.probing { // the next request probes
			c.probing = false
			c.changeLocked("open")
		}
	case circuitWell:
		c.failures, c.faults, c.answered, c.away = 0, 0, true, false
		c.closeLocked()
	case circuitSentAway:
		c.openLocked(now, pause)
	case circuitUnreached:
		if c.failures++; c.probing || c.failures >= c.most {
			c.openLocked(now, pause)
		}
	case circuitUnwell:
		c.failures++
		switch {
		case witnesses > 0 && (c.probing || !c.away):
			return c.checkLocked(now, pause, false), outage
		case c.probing || c.failures >= c.most:
			c.openLocked(now, pause)
		}
	case circuitFault:
		if c.faults++; !c.probing && c.faults < c.most {
			return false, outage
		}
		c.faults = 0
		if witnesses >= enoughWitnesses {
			return c.checkLocked(now, pause, true), outage
		}
		// Nobody can tell whose fault it is. But the server is there.
		c.closeLocked()
	}
	return false, outage
}

// checkLocked reports whether the witnesses have to be asked about.
func (c *circuit) checkLocked(now time.Time, pause time.Duration, decisive bool) bool {
	if c.checking {
		if c.probing { // that check belongs to an earlier turn and will not end this one
			c.openLocked(now, pause)
		}
		return false
	}
	if age := now.Sub(c.vouched); !c.probing && age >= 0 && age < vouchedFor {
		c.failures = 0
		return false
	}
	c.checking, c.answered, c.decisive = true, false, decisive
	return true
}

// checked records the result of asking about the witnesses: circuitWell if one of them got an
// answer, circuitFault if at least one got an answer that makes no sense, circuitUnwell if
// none got any, or circuitUnknown.
func (c *circuit) checked(turn int, now time.Time, outcome circuitOutcome, pause time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.checking = false
	if turn != c.turn {
		return
	}
	switch {
	case outcome == circuitWell || c.answered, outcome == circuitFault && !c.decisive:
		c.failures, c.faults, c.vouched, c.away = 0, 0, now, false
		c.closeLocked()
	case outcome == circuitUnwell || outcome == circuitFault:
		c.away = true
		if c.probing || c.decisive || c.failures >= c.most {
			c.openLocked(now, pause)
		}
	case c.probing:
		c.probing = false
		c.changeLocked("open")
	}
}

// openLocked opens the circuit, again if it is half open.
func (c *circuit) openLocked(now time.Time, pause time.Duration) {
	if pause == 0 {
		pause = c.pause
	}
	c.probing, c.failures, c.faults, c.until = false, 0, 0, now.Add(pause)
	c.changeLocked("open")
}

// closeLocked closes the circuit if it is half open.
func (c *circuit) closeLocked() {
	if c.probing {
		c.probing, c.until = false, time.Time{}
		c.changeLocked("closed")
	}
}

func (c *circuit) changeLocked(state string) {
	c.turn++
	c.changed(state)
}
