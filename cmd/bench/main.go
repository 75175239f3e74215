// Command bench measures the gateway on this machine and prints the tables of docs/performance.md:
//
//	go run ./cmd/bench
//
// It sees the gateway from outside: it builds ./cmd/caddy, runs it as a separate process, and
// speaks HTTP to it. Most figures are ratios: what a request costs that process, divided by what a
// baseline request costs it. The two sides take turns, round by round, so that whatever else the
// machine does affects both.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const usage = `Measures the gateway on this machine and prints the tables of docs/performance.md:

	go run ./cmd/bench [--quick] [--json <file>|-] [--plot <file>.svg] [--redis <host:port>]

It builds ./cmd/caddy into a temporary folder and runs it as a separate process, on loopback
and with its own data. The backend and the load generator run in this process. It measures

  - a protected request, compared with the same request to a plain reverse_proxy;
  - issuing, introspecting and revoking a token, compared with a static answer of the
    same size;
  - a bbolt file that grows to a million live tokens, and is empty again once they expire;
  - start-up time and memory, compared with the same Caddy without the gateway, and the
    memory of a cached token;
  - whether a token works as soon as it is issued, for each of 100,000.

The two sides of a ratio take turns, round by round. The tables show the median of the
rounds' ratios, with the smallest and the largest. CPU time is that of the gateway's process
alone; throughput and latency are those of a machine that also generates the load. An
unexpected answer ends the run, so that no refusal counts as a success.

A full run takes about 25 minutes and needs 1 GB in the temporary folder; set TMPDIR to use
another one. Nothing else should be running on the machine. To stop early, interrupt it: it
cleans up after itself.

`

// config says how much to measure, and for how long.
type config struct {
	Name     string        `json:"name"`
	Rounds   int           `json:"rounds"`             // of each comparison
	Round    time.Duration `json:"round_ns"`           // the most time for one side of a round
	Most     int           `json:"requests_per_round"` // and the most requests
	Starts   int           `json:"starts"`             // of each kind of Caddy
	Rest     time.Duration `json:"rest_ns"`            // between a start and looking at memory
	Cached   int           `json:"cached_tokens"`
	AtOnce   int           `json:"used_at_once"` // tokens
	Grow     int           `json:"grow_to"`      // tokens
	Points   int           `json:"points"`       // on the growth curve
	GrowRoom time.Duration `json:"-"`            // how much longer the tokens live than filling should take
	Redis    string        `json:"-"`            // host:port; empty to leave Redis out
	UseRedis bool          `json:"over_redis"`   // the figures need not name the address
	Binary   string        `json:"-"`            // an existing binary; empty to build one
}

func long() config {
	return config{
		Name: "long", Rounds: 11, Round: time.Second, Most: 8192, Starts: 9, Rest: time.Second,
		Cached: 50_000, AtOnce: 100_000, Grow: 1_000_000, Points: 40, GrowRoom: 10 * time.Second,
	}
}

func quick() config {
	return config{
		Name: "quick", Rounds: 3, Round: 150 * time.Millisecond, Most: 2048, Starts: 2, Rest: 500 * time.Millisecond,
		Cached: 5_000, AtOnce: 2_000, Grow: 50_000, Points: 10, GrowRoom: 2 * time.Second,
	}
}

func main() {
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	defer stop()
	os.Exit(mainWith(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// mainWith is main without os.Exit: it returns the exit status.
func mainWith(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	var (
		short    = flags.Bool("quick", false, "take only about a minute, to try it out: fewer and shorter rounds, and 50,000 tokens")
		jsonFile = flags.String("json", "", "also write all figures as JSON to this `file`; - means standard output, which then gets no tables")
		plotFile = flags.String("plot", "", "also draw growth and latency as SVG into this `file`")
		redis    = flags.String("redis", "", "also measure with the Redis at this `host:port`, except for growth; its keys get a prefix of their own and are deleted at the end")
	)
	flags.Usage = func() {
		fmt.Fprint(stderr, usage)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintln(stderr, "bench takes no arguments, but got:", flags.Arg(0)+"; see -h")
		return 2
	}
	cfg := long()
	if *short {
		cfg = quick()
	}
	cfg.Redis, cfg.UseRedis = *redis, *redis != ""

	err := func() error {
		r, err := run(ctx, cfg, stderr)
		if err != nil {
			return err
		}
		return deliver(r, stdout, *jsonFile, *plotFile)
	}()
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "interrupted; everything was cleaned up")
		return 130 // what shells report for SIGINT
	case err != nil:
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

// deliver writes the report to where the flags want it.
func deliver(r *report, stdout io.Writer, jsonFile, plotFile string) error {
	if jsonFile != "" {
		text, err := json.MarshalIndent(r, "", "\t")
		if err != nil {
			return err
		}
		text = append(text, '\n')
		if jsonFile == "-" {
			_, err = stdout.Write(text)
		} else {
			err = os.WriteFile(jsonFile, text, 0o644) //nolint:gosec // anybody may read the figures
		}
		if err != nil {
			return fmt.Errorf("writing the figures: %w", err)
		}
	}
	if plotFile != "" {
		if err := os.WriteFile(plotFile, []byte(r.plot()), 0o644); err != nil { //nolint:gosec // as above
			return fmt.Errorf("writing the drawing: %w", err)
		}
	}
	if jsonFile == "-" {
		return nil
	}
	_, err := io.WriteString(stdout, r.markdown())
	return err
}
