// Command scale says what one gateway, ten and a thousand can carry, and which bound is met first. It
// prints the tables of docs/performance.md:
//
//	go run ./cmd/scale
//
// It works from what single things cost, as they were measured, and from a simulation of how often the
// caches of the gateways have what is asked for. So it takes seconds, and no thousand machines.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const usage = `Says what one gateway, ten and a thousand can carry, and which bound is met first:

	go run ./cmd/scale
	go run ./cmd/scale --gateways 12 --rate 50000 --tokens 20000

The first form prints the tables of docs/performance.md. The second says what a workload of
your own takes. All of it follows from cmd/scale/costs.json: what single things cost, as they
were measured. To measure what things cost at a Redis of your own, which should be idle:

	go run ./cmd/scale --redis <host:port> > costs.json
	go run ./cmd/scale --costs costs.json

`

//go:embed costs.json
var recorded []byte

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(mainWith(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// mainWith is main without os.Exit: it returns the exit status.
func mainWith(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("scale", flag.ContinueOnError)
	flags.SetOutput(stderr)
	w := defaults()
	var (
		file     = flags.String("costs", "", "a `file` with other costs, instead of those that were recorded")
		redis    = flags.String("redis", "", "measure what things cost the Redis at this `address`, host:port or unix:///path, and print the costs with them")
		gateways = flags.Int("gateways", 0, "how many gateways a workload of your own has; from 2 on, they share a Redis")
	)
	flags.IntVar(&w.Nodes, "nodes", 1, "how many nodes the Redis Cluster has")
	flags.Float64Var(&w.Rate, "rate", 0, "how many requests a second come, at all gateways together")
	flags.Float64Var(&w.Tokens, "tokens", 0, "how many tokens are live and in use")
	flags.Float64Var(&w.Revoked, "revoked", 0, "how many of them are revoked a second")
	flags.IntVar(&w.Seen, "seen", 0, "at how many gateways a token is used; 0 is all, and 1 is what a balancer does that goes by the token")
	flags.DurationVar(&w.Lifetime, "lifetime", w.Lifetime, "how long tokens live")
	flags.DurationVar(&w.MaxAge, "max-age", w.MaxAge, "max_age of the cache")
	flags.Float64Var(&w.MaxTokens, "max-tokens", w.MaxTokens, "max_tokens of the cache")
	flags.Float64Var(&w.Spread, "spread", w.Spread, "how differently tokens are used: sigma of a log-normal distribution; 0 is all alike")
	flags.Usage = func() {
		fmt.Fprint(stderr, usage)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	fail := func(err error) int {
		fmt.Fprintln(stderr, "scale:", err)
		return 1
	}
	text := recorded
	if *file != "" {
		var err error
		if text, err = os.ReadFile(*file); err != nil {
			return fail(err)
		}
	}
	c, err := parseCosts(text)
	if err != nil {
		return fail(err)
	}
	switch {
	case flags.NArg() > 0:
		fmt.Fprintln(stderr, "scale takes no arguments, but got:", flags.Arg(0)+"; see -h")
		return 2
	case *redis != "":
		if err := measureRedis(ctx, *redis, &c, 200_000, 100); err != nil {
			return fail(err)
		}
		text, err := json.MarshalIndent(c, "", "\t")
		if err != nil {
			return fail(err)
		}
		fmt.Fprintln(stdout, string(text))
	case *gateways > 0:
		if !(w.Rate > 0 && w.Rate < 1e12) || !(w.Tokens >= 1 && w.Tokens < 1e12) || *gateways > 1e6 || w.Nodes < 1 || w.Seen < 0 || w.Seen > *gateways || w.Revoked < 0 || w.Lifetime < time.Second || w.MaxAge <= 0 || w.MaxTokens < 1 || w.Spread < 0 {
			fmt.Fprintln(stderr, "scale: a workload needs a --rate above 0, --tokens of at least 1, no more --seen than --gateways, and nothing that is beyond all measure; see -h")
			return 2
		}
		if w.Gateways = *gateways; w.Gateways == 1 {
			w.Nodes = 0
		}
		fmt.Fprint(stdout, demandOf(w, c).text())
	default:
		fmt.Fprint(stdout, tables(c))
	}
	return 0
}

// parseCosts reads what --redis prints.
func parseCosts(text []byte) (c costs, err error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		return c, fmt.Errorf("reading the costs: %w", err)
	}
	if c.Gateway.Cores < 1 || c.Gateway.Pass <= 0 {
		return c, errors.New("reading the costs: a gateway must have cores, and a request must cost something")
	}
	return c, nil
}

// defaults is what gateways do unless they are told otherwise.
func defaults() workload {
	return workload{Lifetime: time.Hour, MaxAge: time.Minute, MaxTokens: 100_000, Spread: 1}
}

// text says what a workload takes.
func (d demand) text() string {
	var b strings.Builder
	line := func(format string, values ...any) { fmt.Fprintf(&b, format+"\n", values...) }
	line("requests that find their token cached  %s", percent(d.Hits))
	line("a gateway's processors                 %s", percent(d.GatewayCPU))
	line("a gateway's memory                     %s", size(d.GatewayMemory))
	if d.Nodes == 0 {
		line("the bbolt file                         %s", size(d.File))
	} else {
		line("Redis' processor, each node            %s", percent(d.RedisCPU))
		line("Redis' memory, each node               %s", size(d.RedisMemory))
		line("records that a node keeps track of     %s", thousands(d.TrackedKeys))
		line("messages about changes a second        %s", thousands(d.Told))
	}
	first := d.bounds()[0]
	if first.Share > 1 {
		line("\nThis is too much for %s, by a factor of %.2g. What helps: %s.", first.Name, first.Share, first.Advice)
	} else {
		line("\nThe bound that would be met first is %s, at %.2g times as much. What helps then: %s.", first.Name, 1/first.Share, first.Advice)
	}
	if d.TrackedKeys > mostTrackedKeys {
		line("Set tracking-table-max-keys of Redis to 0, or it forgets who has read what and tells gateways to ask again.")
	}
	return b.String()
}

// tables are those of docs/performance.md.
func tables(c costs) string {
	var b strings.Builder
	b.WriteString("| gateways | store | a token is used | requests/s | live tokens | cached | Redis CPU | Redis MiB | a gateway's MiB | revocations/s | met first |\n")
	b.WriteString("|--:|---|---|--:|--:|--:|--:|--:|--:|--:|---|\n")
	for _, use := range []struct {
		name      string
		perSecond float64
	}{{"once a second", 1}, {"once a minute", 1. / 60}} {
		for _, at := range []struct {
			gateways, nodes, seen int
			store                 string
		}{
			{1, 0, 0, "bbolt"}, {10, 1, 0, "Redis"}, {100, 1, 0, "Redis"}, {100, 1, 2, "Redis, 2 gateways a token"},
			{1000, 1, 0, "Redis"}, {1000, 1, 2, "Redis, 2 gateways a token"}, {1000, 10, 2, "Cluster of 10, 2 gateways a token"},
		} {
			w := defaults()
			w.Gateways, w.Nodes, w.Seen = at.gateways, at.nodes, at.seen
			d, first := carry(w, c, use.perSecond)
			half := d.workload
			half.Rate, half.Tokens = d.Rate/2, max(1, d.Tokens/2)
			cpu, memory := "–", "–"
			if at.nodes > 0 {
				cpu, memory = percent(d.RedisCPU), thousands(d.RedisMemory/(1<<20))
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", thousands(float64(at.gateways)), at.store, use.name,
				rounded(d.Rate), rounded(d.Tokens), percent(d.Hits), cpu, memory, thousands(d.GatewayMemory/(1<<20)),
				rounded(revocations(half, c)), first.Name)
		}
	}
	return b.String()
}

func percent(share float64) string { return fmt.Sprintf("%.3g %%", 100*share) }

func size(bytes float64) string { return fmt.Sprintf("%.3g MiB", bytes/(1<<20)) }

// rounded has two digits that count, which is as many as such figures deserve.
func rounded(n float64) string {
	if n <= 0 {
		return "0"
	}
	unit := math.Pow(10, math.Floor(math.Log10(n))-1)
	return thousands(math.Floor(n/unit) * unit)
}

func thousands(n float64) string {
	text := fmt.Sprintf("%.0f", n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
