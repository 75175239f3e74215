package introspect_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// longBattery makes the battery of faults run for long, which is not for every change.
var longBattery = os.Getenv("BATTERY") == "long"

// However the two clocks run and are set, the cache never calls a token good that has expired
// by the wall clock, that is older than the time it had left when its source was asked, or
// that is revoked.
func TestBatteryClocks(t *testing.T) {
	steps := 50_000
	if longBattery {
		steps = 5_000_000
	}
	const maxAge = 2 * time.Hour
	type fill struct{ at, remaining time.Duration }
	type token struct {
		name    string
		expiry  time.Time
		revoked bool
		fills   []fill // the cache may hold any of them
	}
	var clock clocks
	reg := newRegistry(clock.now)
	cache := newCache(t, clock.config())
	s := cache.Wrap("reg", reg, maxAge)
	if rand.IntN(2) == 0 {
		s = cache.Wrap("reg", immediate{reg}, maxAge)
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	upTo := func(most time.Duration) int64 { return random.Int64N(int64(most)) }
	tokens := make([]*token, 20)
	hits, refused := 0, 0
	for step := range steps {
		slot := random.IntN(len(tokens))
		is := tokens[slot]
		switch dice := random.IntN(100); {
		case is == nil || dice < 4:
			if is != nil {
				reg.revoke(is.name)
			}
			is = &token{name: fmt.Sprint(step), expiry: clock.now().Add(time.Duration(1 + upTo(3*time.Hour)))}
			reg.issue(is.name, is.expiry)
			tokens[slot] = is
		case dice < 6:
			done := s.Revoking(introspect.IDOf(is.name))
			reg.revoke(is.name)
			done()
			is.revoked = true
		case dice < 8: // the clock is set
			clock.wall.Add(upTo(6*time.Hour) - int64(3*time.Hour))
		case dice < 9: // time passes while the wall clock stands still, or is held back
			clock.elapsed.Add(upTo(3 * time.Hour))
		case dice < 20:
			clock.advance(time.Duration(upTo(20 * time.Minute)))
		default:
			asked := reg.lookups.Load()
			good := active(t, s, is.name)
			hit := reg.lookups.Load() == asked
			now, elapsed := clock.now(), time.Duration(clock.elapsed.Load())
			over := is.revoked || !now.Before(is.expiry)
			if good == over {
				t.Errorf("active is %v; revoked %v, %v before its expiry", good, is.revoked, is.expiry.Sub(now))
			}
			switch {
			case !good:
				refused++
			case !hit:
				is.fills = append(is.fills, fill{elapsed, is.expiry.Sub(now)})
				cache.Wait()
			default:
				hits++
				allowed := false
				for _, f := range is.fills {
					allowed = allowed || elapsed-f.at < min(maxAge, f.remaining)
				}
				if !allowed {
					t.Errorf("answered from the cache, but no answer of the source was good for that long: %v", is.fills)
				}
			}
		}
		if t.Failed() {
			t.Fatalf("in step %d with seed %d", step, seed)
		}
	}
	if hits < steps/50 || refused < steps/50 {
		t.Errorf("%d hits and %d refusals in %d steps: the test tests nothing", hits, refused, steps)
	}
	t.Logf("battery: %d steps of two clocks: %d answers from memory, %d refusals", steps, hits, refused)
}
