package introspect

import (
	"sync"
	"time"
)

// circuit decides whether a server that fails is asked at all. Closed, everybody may ask.
// Open, nobody may. When the pause is over it is half open: one may ask, as a probe, and
// decides for all.
//
// Whoever sends tokens chooses what the server is asked, so a failure that a token can
// provoke must not open it, nor keep it open. It is opened at once by failures that no token
// has a part in. Of the others there may be a row, and then witnesses decide: tokens that
// the server knew a short while ago. If it answers about one of them it is well, and what
// failed is the others' own fault.
type circuit struct {
	most    int
	pause   time.Duration
	changed func(state string) // called with mu held, so that the order is right

	mu       sync.Mutex
	failures int       // in a row, of those that mean that the server is away
	faults   int       // answers that made no sense since the last one that did
	until    time.Time // when the pause is over; zero if closed
	probing  bool
	// checking: witnesses are being asked, and answered tells whether meanwhile somebody
	// else got an answer. decisive: they were asked because of answers that make no sense.
	// vouched is when a witness last had an answer. away: they had none, nor anybody since.
	checking, answered, decisive, away bool
	vouched                            time.Time
	// turn counts the changes. How a request ended counts only in the turn in which it
	// began: when the circuit opens, 63 others may be about to fail as well.
	turn int
}

// circuitOutcome is how a request ended.
type circuitOutcome int

const (
	circuitUnknown   circuitOutcome = iota // it says nothing about the server
	circuitWell                            // the server answered
	circuitUnreached                       // there was no connection, whatever the token
	circuitUnwell                          // no answer, or one that says so; perhaps only to this token
	circuitFault                           // an answer that makes no sense, perhaps only to this token
	circuitSentAway                        // it said how long to stay away
)

const (
	// enoughWitnesses are needed to call a server that does answer, but not sensibly, away:
	// they are of different clients, so that nobody vouches for an outage with his own tokens.
	enoughWitnesses = 2
	// vouchedFor is how long the word of a witness holds, so that a flood of junk makes one
	// more question a second.
	vouchedFor = time.Second
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
// wants to be left alone. witnesses is how many there are beside the token that was asked
// about. If check is true, they have to be asked, and checked be called. outage is whether
// the server is away, by all that is known, and not only for that token.
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
		if c.probing { // the next one probes
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
		// Nobody can tell whose fault it is. The server is there, though.
		c.closeLocked()
	}
	return false, outage
}

// checkLocked reports whether the witnesses have to be asked.
func (c *circuit) checkLocked(now time.Time, pause time.Duration, decisive bool) bool {
	if c.checking {
		if c.probing { // that check is of an earlier turn, and will not end this one
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

// checked tells what came of asking the witnesses: circuitWell if one of them got an
// answer; circuitFault if one got at least an answer that makes no sense, and
// circuitUnwell if none got any; or circuitUnknown.
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

// closeLocked closes it, if it is half open.
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
