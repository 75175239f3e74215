package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// redis is the Redis that gateways use, as seen by the bench.
type redis struct {
	client rueidis.Client
	prefix string // of all keys of this run
}

// openRedis connects to Redis. The caller must close it.
func openRedis(addr, prefix string) (*redis, error) {
	// Without retries, a Redis that is gone ends the run, which has no other.
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true, DisableRetry: true, ForceSingleClient: true})
	if err != nil {
		return nil, fmt.Errorf("connecting to Redis: %w", err)
	}
	return &redis{client: client, prefix: prefix}, nil
}

// close deletes all keys with the prefix, and nothing else.
func (r *redis) close() error {
	defer r.client.Close()
	// This also runs after an interrupt, but not for ever: all but a few keys expire by themselves.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	b := r.client.B()
	for cursor := uint64(0); ; {
		found, err := r.client.Do(ctx, b.Scan().Cursor(cursor).Match(r.prefix+"*").Count(1000).Build()).AsScanEntry()
		if err != nil {
			return fmt.Errorf("%w: keys in Redis that begin with %s: %w", errLeft, r.prefix, err)
		}
		if len(found.Elements) > 0 {
			if err := r.client.Do(ctx, b.Unlink().Key(found.Elements...).Build()).Error(); err != nil {
				return fmt.Errorf("%w: keys in Redis that begin with %s: %w", errLeft, r.prefix, err)
			}
		}
		if cursor = found.Cursor; cursor == 0 {
			return nil
		}
	}
}

// look returns how much CPU time Redis has used, in microseconds, and how much memory its data takes,
// in bytes.
func (r *redis) look(ctx context.Context) (cpu, memory float64, err error) {
	info, err := r.client.Do(ctx, r.client.B().Info().Build()).ToString()
	if err != nil {
		return 0, 0, fmt.Errorf("asking Redis: %w", err)
	}
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		part, _ := strconv.ParseFloat(value, 64)
		switch name {
		case "used_cpu_sys", "used_cpu_user":
			cpu += part * 1e6
		case "used_memory":
			memory = part
		}
	}
	if cpu == 0 || memory == 0 {
		return 0, 0, errors.New("this Redis does not say how much CPU time and memory it uses")
	}
	return cpu, memory, nil
}

// growthInRedis is how a Redis, and a gateway that uses it, fare while the number of tokens grows. Other
// users of that Redis would be counted as well.
type growthInRedis struct {
	Tokens int            `json:"tokens"`
	Points []pointInRedis `json:"points"` // the first is before any token of this gateway
}

// pointInRedis is one state of it.
type pointInRedis struct {
	point
	RedisCPU float64 `json:"redis_cpu_us_per_token,omitempty"`
	Bytes    float64 `json:"redis_bytes_per_token,omitempty"` // on average, of all tokens
	Redis    float64 `json:"redis_bytes"`                     // without what was there before
}

func (b *bench) growthInRedis(ctx context.Context) error {
	b.bar.say("growth in Redis")
	g, err := b.start(ctx, setup{store: "redis"})
	if err != nil {
		return err
	}
	defer g.stop()
	l, err := g.dial(ctx, fillConnections)
	if err != nil {
		return err
	}
	defer l.Close()
	grown := growthInRedis{Tokens: b.cfg.Grow}
	cpu, empty, err := b.redis.look(ctx)
	if err != nil {
		return err
	}
	p, err := g.look(ctx)
	if err != nil {
		return err
	}
	grown.Points = append(grown.Points, pointInRedis{point: p})
	for i := range b.cfg.Points {
		live := grown.Points[i].Live
		b.bar.say(fmt.Sprintf("growth in Redis, %s tokens", thousands(live)))
		if p, err = b.fill(ctx, g, l, b.cfg.Grow/b.cfg.Points); err != nil {
			return err
		}
		cpuAfter, memory, err := b.redis.look(ctx)
		if err != nil {
			return err
		}
		next := pointInRedis{point: p, RedisCPU: (cpuAfter - cpu) / float64(p.Live), Redis: memory - empty}
		next.Live += live
		next.Bytes = next.Redis / float64(next.Live)
		grown.Points, cpu = append(grown.Points, next), cpuAfter
		b.bar.step()
	}
	b.report.GrowthInRedis = grown
	return nil
}

// table returns some of the points.
func (g growthInRedis) table() string {
	var t strings.Builder
	t.WriteString("| tokens in Redis | CPU µs per token | in Redis | tokens/s | p50 ms | p99 ms | Redis MiB | bytes per token | resident MiB | heap in use, MiB |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for i, p := range g.Points {
		if shown(i, len(g.Points)) {
			fmt.Fprintf(&t, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", thousands(p.Live), known(p.CPU), known(p.RedisCPU), known(p.Rate), known(p.P50), known(p.P99),
				number(mib(int64(p.Redis))), known(p.Bytes), known(mib(p.Memory.Resident)), number(mib(p.Memory.Live)))
		}
	}
	return t.String()
}
