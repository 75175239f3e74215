// Command bench measures the gateway on this machine, and prints the tables of docs/performance.md:
//
//	go run ./cmd/bench
//
// It knows the gateway as a stranger does: it builds ./cmd/caddy, starts it as a process
// of its own, and speaks HTTP to it. Most figures are ratios of what that process costs
// with the gateway at work and beside it, in rounds that take turns, so that whatever
// else the machine does meets both.
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

const usage = `Measures the gateway on this machine, and prints the tables of docs/performance.md:

	go run ./cmd/bench [--quick] [--json <file>|-] [--plot <file>.svg] [--redis <host:port>]

It builds ./cmd/caddy into a temporary folder and starts it as a process of its own, on
loopback, with data of its own. Backend and load are in this process. Measured are

  - a protected request, beside the same request to a plain reverse_proxy;
  - a token, an introspection and a revocation, beside a static answer of the same size;
  - a bbolt file that grows to a million live tokens, and is emptied again by their end;
  - start-up and memory, beside the same Caddy without the gateway, and a cached token;
  - whether a token is good at once, for each of 100,000.

Both sides of a ratio take turns, round by round. Of the rounds' ratios there is the
median, with the least and the greatest. CPU time is that of the gateway's process alone;
throughput and latency are those of a machine that also has to make the load. An answer
that is not the expected one ends the run: nothing refused is counted as done.

The long form takes about 25 minutes and needs 1 GB in the temporary folder, which TMPDIR
moves. The machine should have nothing else to do. Interrupting ends everything.

`

// config is how long and how much is measured.
type config struct {
	Name     string        `json:"name"`
	Rounds   int           `json:"rounds"`             // of each comparison
	Round    time.Duration `json:"round_ns"`           // no side of a round takes longer
	Most     int           `json:"requests_per_round"` // nor does it send more requests
	Starts   int           `json:"starts"`             // of each kind of Caddy
	Rest     time.Duration `json:"rest_ns"`            // after a start, before memory is looked at
	Cached   int           `json:"cached_tokens"`
	AtOnce   int           `json:"used_at_once"` // tokens
	Grow     int           `json:"grow_to"`      // tokens
	Points   int           `json:"points"`       // of the curve of growth
	GrowRoom time.Duration `json:"-"`            // how much longer than expected the tokens live
	Redis    string        `json:"-"`            // host:port; empty: not measured
	UseRedis bool          `json:"over_redis"`   // the address is nobody's business
	Binary   string        `json:"-"`            // that is there already; empty: it is built
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

// mainWith is main, and returns the exit status.
func mainWith(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	var (
		short    = flags.Bool("quick", false, "take about a minute, with fewer and shorter rounds and 50,000 tokens; to try it out")
		jsonFile = flags.String("json", "", "also write all figures as JSON to this `file`; with -, write nothing else to standard output")
		plotFile = flags.String("plot", "", "also draw growth and latency into this SVG `file`")
		redis    = flags.String("redis", "", "also measure over the Redis at this `host:port`, under keys of its own that are deleted at the end; not its growth")
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
		fmt.Fprintln(stderr, "bench takes no arguments; -h says what it takes. It got:", flags.Arg(0))
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
		fmt.Fprintln(stderr, "interrupted; everything that was started has ended")
		return 130 // as a shell says it of SIGINT
	case err != nil:
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

// deliver writes what was measured to where it is wanted.
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
			err = os.WriteFile(jsonFile, text, 0o644) //nolint:gosec // figures are for everybody
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
