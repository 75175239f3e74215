package oauth_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/store"
	"github.com/caddyoauth/gateway/introspect"
)

// longBattery is set where the battery of faults runs for long. It does not for every change.
var longBattery = os.Getenv("BATTERY") == "long"

// However the clocks run and are set, no token is good after its expiry by the wall clock or after
// its revocation, and a token whose time was never over is good.
func TestBatteryClocks(t *testing.T) {
	for name, open := range map[string]func(t *testing.T, now func() time.Time) oauth.TokenStore{
		"memory": func(_ *testing.T, now func() time.Time) oauth.TokenStore { return store.NewMemory(now) },
		"bbolt": func(t *testing.T, now func() time.Time) oauth.TokenStore {
			b, err := store.OpenBbolt(filepath.Join(t.TempDir(), "tokens.db"), now)
			if err != nil {
				t.Fatal(err)
			}
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			steps := 5_000
			if longBattery {
				steps = 500_000
			}
			wall, elapsed := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), time.Duration(0)
			// The committer of bbolt reads the clock as well, but only while somebody waits for it, or
			// once in ten seconds. clock is for that.
			clock := make(chan struct{}, 1)
			locked := func(do func()) { clock <- struct{}{}; do(); <-clock }
			now := func() (t time.Time) { locked(func() { t = wall }); return t }
			cfg := introspect.CacheConfig{Now: now, Elapsed: func() (d time.Duration) { locked(func() { d = elapsed }); return d }}
			r := newRealmAt(t, open(t, now), oauth.FormatOpaque, nil, cfg, 30*time.Minute, now)

			type token struct {
				text          string
				expiry        time.Time
				revoked, over bool // over: its time was over once, so the store may have dropped it
			}
			seed := rand.Uint64()
			random := rand.New(rand.NewPCG(seed, 0))
			upTo := func(most time.Duration) time.Duration { return time.Duration(random.Int64N(int64(most))) }
			var tokens [20]*token
			set := func(wallStep, elapsedStep time.Duration) {
				locked(func() { wall, elapsed = wall.Add(wallStep), elapsed+elapsedStep })
				for _, is := range tokens {
					if is != nil && !now().Before(is.expiry) {
						is.over = true
					}
				}
			}
			good, refused := 0, 0
			for step := range steps {
				slot := random.IntN(len(tokens))
				is := tokens[slot]
				switch dice := random.IntN(100); {
				case is == nil || dice < 4:
					tokens[slot] = &token{text: r.issue(), expiry: now().Truncate(time.Millisecond).Add(time.Hour)}
				case dice < 6:
					r.revoke(is.text)
					is.revoked = true
				case dice < 8:
					set(upTo(4*time.Hour)-2*time.Hour, 0)
				case dice < 9:
					set(0, upTo(2*time.Hour))
				case dice < 20:
					d := upTo(5 * time.Minute)
					set(d, d)
				default:
					active := r.check(is.text)
					switch {
					case active && is.revoked:
						t.Error("a revoked token passes")
					case active && !now().Before(is.expiry):
						t.Errorf("a token passes %v after its expiry", now().Sub(is.expiry))
					case !active && !is.revoked && !is.over:
						t.Errorf("a good token does not pass, %v before its expiry", is.expiry.Sub(now()))
					case active:
						good++
					default:
						refused++
					}
				}
				if t.Failed() {
					t.Fatalf("in step %d with seed %d", step, seed)
				}
			}
			if good < steps/50 || refused < steps/50 {
				t.Errorf("%d passed and %d did not, in %d steps: the test tests nothing", good, refused, steps)
			}
			t.Logf("battery: %d steps of two clocks: %d checks passed, %d did not", steps, good, refused)
		})
	}
}

// A revocation holds even if the clock was wrong when it was made and said that the token had
// expired.
func TestARevocationByAClockThatIsWrong(t *testing.T) {
	wall := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	now := func() time.Time { return wall }
	for _, maxAge := range []time.Duration{time.Hour, 0} {
		r := newRealmAt(t, store.NewMemory(now), oauth.FormatOpaque, nil, introspect.CacheConfig{Now: now}, maxAge, now)
		token := r.issue()
		if !r.check(token) {
			t.Fatal("a new token does not pass")
		}
		wall = wall.Add(2 * time.Hour)
		r.revoke(token)
		wall = wall.Add(-2 * time.Hour)
		if r.check(token) {
			t.Error("the token passes")
		}
	}
}
