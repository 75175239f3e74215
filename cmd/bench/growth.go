package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	bolt "go.etcd.io/bbolt"
)

// growth is how a bbolt file, and the process that uses it, fare while the number of tokens grows
// and falls again.
type growth struct {
	Tokens   int           `json:"tokens"`
	Lifetime time.Duration `json:"token_lifetime_ns"`
	Points   []point       `json:"points"` // the first is for an empty file
	Empty    point         `json:"empty_again"`
	// After as many tokens as between two points were issued into the emptied file.
	Refilled point `json:"refilled"`
	// What is in the file at the end, as bbolt counts it.
	Left  int `json:"tokens_in_file_at_end"`
	Free  int `json:"free_pages_at_end"`
	Pages int `json:"pages_at_end"`
}

// point is one state of growth: the cost of issuing the tokens since the last point, and what there
// is now.
type point struct {
	Live   int     `json:"live_tokens"`
	CPU    float64 `json:"cpu_us_per_token,omitempty"`
	Rate   float64 `json:"tokens_per_second,omitempty"`
	P50    float64 `json:"p50_ms,omitempty"`
	P99    float64 `json:"p99_ms,omitempty"`
	File   int64   `json:"file_bytes,omitempty"`
	Memory memory  `json:"memory"`
}

const (
	fillConnections = 128
	// dropEvery is how often an idle gateway looks for expired tokens.
	dropEvery = 10 * time.Second
)

func (b *bench) growth(ctx context.Context) error {
	b.bar.say("growth")
	rate, err := b.tokenRate(ctx)
	if err != nil {
		return err
	}
	grown := growth{Tokens: b.cfg.Grow, Lifetime: b.growthLifetime(rate)}
	full, err := b.start(ctx, setup{store: "bbolt", lifetime: grown.Lifetime})
	if err != nil {
		return err
	}
	defer full.stop()
	empty, err := b.start(ctx, setup{store: "bbolt"})
	if err != nil {
		return err
	}
	defer empty.stop()
	l, err := full.dial(ctx, fillConnections)
	if err != nil {
		return err
	}
	defer l.Close()

	first := time.Now()
	p, err := full.look(ctx)
	if err != nil {
		return err
	}
	grown.Points = append(grown.Points, p)
	for i := range b.cfg.Points {
		b.bar.say(fmt.Sprintf("growth, %s tokens", thousands(grown.Points[i].Live)))
		if p, err = b.fill(ctx, full, l, b.cfg.Grow/b.cfg.Points); err != nil {
			return err
		}
		p.Live += grown.Points[i].Live
		grown.Points = append(grown.Points, p)
		b.bar.step()
	}
	l.Close() // the gateway would wait for the connections when it ends

	token := func(g *gateway) side {
		return side{gateway: g, check: isToken, next: always(repeat(g.post("/oauth2/access_token", "grant_type=client_credentials", b.generated)))}
	}
	if err := b.compare(ctx, comparison{What: "token, " + thousands(p.Live) + " live ones in the file", Store: "bbolt", Baseline: "token, empty file", Connections: 16}, token(full), token(empty)); err != nil {
		return err
	}
	last := time.Now()
	if last.Sub(first) > grown.Lifetime {
		b.report.Notes = append(b.report.Notes, "The machine was slower than expected: the first tokens expired before the last ones were issued.")
	}

	b.bar.say("growth, waiting for the tokens to expire")
	if err := emptied(ctx, full.store, last.Add(grown.Lifetime)); err != nil {
		return err
	}
	if grown.Empty, err = full.look(ctx); err != nil {
		return err
	}
	b.bar.step()

	b.bar.say("growth, again")
	if l, err = full.dial(ctx, fillConnections); err != nil {
		return err
	}
	defer l.Close()
	refill := b.cfg.Grow / b.cfg.Points
	if grown.Refilled, err = b.fill(ctx, full, l, refill); err != nil {
		return err
	}
	grown.Refilled.Live = refill
	l.Close()
	b.bar.step()

	full.stop()
	if err := grown.count(full.store); err != nil {
		return err
	}
	if grown.Left > refill {
		return fmt.Errorf("%d tokens are in the file, but only %d are live", grown.Left, refill)
	}
	b.report.Growth = grown
	b.bar.step()
	return nil
}

// tokenRate returns how many tokens can be issued in a second, as was measured before, or else in one
// round.
func (b *bench) tokenRate(ctx context.Context) (float64, error) {
	for _, c := range b.report.Comparisons {
		if c.Store == "bbolt" && c.What == "token, generated secret" && c.Connections == fillConnections {
			return c.Ours.Rate.Median, nil
		}
	}
	g, err := b.start(ctx, setup{store: "bbolt"})
	if err != nil {
		return 0, err
	}
	defer g.stop()
	l, err := g.dial(ctx, fillConnections)
	if err != nil {
		return 0, err
	}
	defer l.Close()
	p, err := b.fill(ctx, g, l, b.cfg.Most)
	return p.Rate, err
}

// growthLifetime returns a token lifetime that is long enough to issue and measure all tokens while
// they live, but not much longer, since the run has to wait until they expire. The rate is in tokens
// per second.
func (b *bench) growthLifetime(rate float64) time.Duration {
	seconds := 1.5*float64(b.cfg.Grow)/rate + 3*float64(b.cfg.Rounds)*b.cfg.Round.Seconds() + b.cfg.GrowRoom.Seconds()
	return time.Duration(math.Ceil(seconds)) * time.Second
}

// fill fetches n tokens and returns what that cost.
func (b *bench) fill(ctx context.Context, g *gateway, l *load, n int) (point, error) {
	before, ok := g.cpu()
	got, err := l.run(ctx, atMost(n, repeat(g.post("/oauth2/access_token", "grant_type=client_credentials", b.generated))), 0, isToken)
	if err != nil {
		return point{}, err
	}
	after, _ := g.cpu()
	p, err := g.look(ctx)
	if err != nil {
		return point{}, err
	}
	p.Live = got.requests
	if ok {
		p.CPU = micros(after-before) / float64(got.requests)
	}
	p.Rate = float64(got.requests) / got.took.Seconds()
	p.P50, p.P99 = millis(quantile(got.latencies, 0.5)), millis(quantile(got.latencies, 0.99))
	return p, nil
}

// look returns what there is now: the size of the file if there is one, and memory.
func (g *gateway) look(ctx context.Context) (p point, err error) {
	if p.Memory, err = g.memory(ctx); err != nil {
		return point{}, err
	}
	if g.store == "" {
		return p, nil
	}
	info, err := os.Stat(g.store)
	if err != nil {
		return point{}, err
	}
	p.File = info.Size()
	return p, nil
}

// emptied waits until all tokens have expired and the gateway has dropped them. It can't open a file
// that is in use. But a gateway that drops tokens writes to it without a pause, and one that has
// neither tokens to drop nor requests to serve writes nothing.
func emptied(ctx context.Context, file string, end time.Time) error {
	const (
		quiet  = 2 * time.Second
		commit = 200 * time.Millisecond // a write that began before the end is done by then
	)
	for deadline := end.Add(10 * time.Minute); ; {
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		now, written := time.Now(), info.ModTime()
		if now.Sub(written) > quiet {
			if written.After(end.Add(commit)) {
				return nil
			}
			// Or it dropped the last ones at the very moment when they expired.
			if now.After(end.Add(3 * dropEvery)) {
				return nil
			}
		}
		if now.After(deadline) {
			return errors.New("the gateway is still writing ten minutes after the last token expired")
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// count counts what is in the file of a gateway that has ended.
func (g *growth) count(file string) error {
	db, err := bolt.Open(file, 0o600, &bolt.Options{ReadOnly: true, PreLoadFreelist: true, Timeout: time.Second})
	if err != nil {
		return err
	}
	defer db.Close()
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	g.Free = db.Stats().FreePageN
	g.Pages = int(info.Size()) / db.Info().PageSize
	return db.View(func(tx *bolt.Tx) error {
		tokens := tx.Bucket([]byte("tokens"))
		if tokens == nil {
			return errors.New("the file has no bucket for tokens")
		}
		g.Left = tokens.Stats().KeyN
		return nil
	})
}
