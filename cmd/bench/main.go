// Command bench measures the gateway on this machine and prints the tables of docs/performance.md:
//
//	go run ./cmd/bench
//
// It sees the gateway from outside: it builds ./cmd/caddy, runs it as a separate process, and
// speaks HTTP to it. Most figures are ratios: what a request costs that process, divided by what a
// baseline request costs it. The two sides take turns, round by round, so that whatever else the
// machine does affects both; what matters most is also measured side by side.
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
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const usage = `Measures the gateway on this machine and prints the tables of docs/performance.md:

	go run ./cmd/bench [--quick] [--json <file>|-] [--plot <file>.svg] [--redis <host:port>]
	go run ./cmd/bench --only <topic>,...
	go run ./cmd/bench --ways
	go run ./cmd/bench --against <url> --pid <pid> --baseline <url> --token-endpoint <url> ...

It builds ./cmd/caddy into a temporary folder and runs it as a separate process, on loopback
and with its own data. The backend and the load generator run in this process. It measures

  protected      a protected request, compared with the same request to a plain
                 reverse_proxy
  tls            the same with both over TLS, by HTTP/1.1 and by HTTP/2, and with a token
                 that is bound to a certificate
  sources        the same with tokens of another issuer, verified or introspected, and with
                 three sources on a route
  tokens         issuing a token, compared with a static answer of the same size
  introspection  introspecting and revoking a token, likewise
  growth         a bbolt file that grows to a million live tokens, and is empty again once
                 they expire; with --redis, a Redis that grows as much
  start          start-up time and memory, compared with the same Caddy without the gateway
  cached         the memory of a cached token
  at-once        whether a token works as soon as it is issued, for each of 100,000

--only measures one of these topics, or several.

Connections are kept alive, so TLS here means records, not handshakes. An HTTP/2 connection
carries four requests at a time. The certificates are made for the run, and the other issuer
is part of this process.

The two sides of a ratio take turns, round by round: both are routes of one process. What
matters most is also measured side by side: the gateway, and the same Caddy without it, start
anew in each round and are under load at the same time, on one processor that they have for
themselves (on Linux, with two processors at least). --ways shows what each difference
between the two ways does.

The tables show the median of the rounds' ratios, with the smallest and the largest. CPU time
is that of the gateway's process alone; throughput and latency are those of a machine that
also generates the load. An unexpected answer ends the run, so that no refusal counts as a
success.

With --pid, it measures another gateway, or an authorization server, that runs on this machine
(Linux only). docs/performance.md has recipes. It checks that the gateway refuses a request
without a token, and that all answers are the same. It prints neither tokens nor secrets.

A full run takes about 30 minutes and needs 1 GB in the temporary folder; set TMPDIR to use
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
	AtOnce   int           `json:"used_at_once"`   // tokens
	Grow     int           `json:"grow_to"`        // tokens
	Points   int           `json:"points"`         // on the growth curve
	GrowRoom time.Duration `json:"-"`              // how much longer the tokens live than filling should take
	Redis    string        `json:"-"`              // host:port; empty to leave Redis out
	UseRedis bool          `json:"over_redis"`     // the figures need not name the address
	Ways     bool          `json:"-"`              // only compare the ways of measuring
	Only     []string      `json:"only,omitempty"` // of topics; empty for all
	Binary   string        `json:"-"`              // an existing binary; empty to build one
}

// topics are what --only knows.
var topics = []string{"protected", "tls", "sources", "tokens", "introspection", "growth", "start", "cached", "at-once"}

// wants says whether a topic is to be measured.
func (c config) wants(topic string) bool { return len(c.Only) == 0 || slices.Contains(c.Only, topic) }

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
		short    = flags.Bool("quick", false, "take only a minute or two, to try it out: fewer and shorter rounds, and 50,000 tokens")
		jsonFile = flags.String("json", "", "also write all figures as JSON to this `file`; - means standard output, which then gets no tables")
		plotFile = flags.String("plot", "", "also draw growth and latency as SVG into this `file`")
		each     = flags.Bool("ways", false, "only measure one protected request, in each of the ways that lie between in turn and side by side")
		redis    = flags.String("redis", "", "also measure with the Redis at this `host:port`, which nobody else should use meanwhile; its keys get a prefix of their own and are deleted at the end")
	)
	var only []string
	flags.Func("only", "measure these `topics` alone, with commas between them: "+strings.Join(topics, ", "), func(text string) error {
		for topic := range strings.SplitSeq(text, ",") {
			if !slices.Contains(topics, topic) {
				return fmt.Errorf("want topics with commas between them: %s", strings.Join(topics, ", "))
			}
			only = append(only, topic)
		}
		return nil
	})
	var p peer
	flags.StringVar(&p.Protected, "against", "", "measure another gateway on this machine instead: the `URL` of a protected route")
	flags.StringVar(&p.Baseline, "baseline", "", "the `URL` of a route of the same gateway to the same backend that is not protected")
	flags.Func("pid", "the `process` of the gateway, or several with commas between them; children count with them", pidsTo(&p.PIDs))
	flags.Func("baseline-pid", "the `process` of the baseline if it is another one; both are then also put under load at the same time", pidsTo(&p.BaselinePIDs))
	flags.StringVar(&p.TokenEndpoint, "token-endpoint", "", "the `URL` where tokens come from, which is measured as well")
	flags.StringVar(&p.Introspection, "introspection-endpoint", "", "the `URL` where resource servers ask about tokens, which is measured as well")
	flags.StringVar(&p.ClientID, "client-id", "", "the `client` that fetches tokens")
	flags.StringVar(&p.SecretFile, "client-secret-file", "", "the `file` with its secret")
	flags.StringVar(&p.ClientAuth, "client-auth", "basic", "`how` it authenticates: basic, or post, in the form")
	flags.StringVar(&p.Scope, "scope", "", "the `scope` that it asks for")
	flags.StringVar(&p.TokenFile, "token-file", "", "a `file` with a token in each line, for a gateway that issues none")
	flags.StringVar(&p.Backend, "backend", "", "serve a backend at this `host:port`, for the gateway to proxy to")
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
	if len(only) > 0 && (*each || p.given()) {
		fmt.Fprintln(stderr, "--only is for neither --ways nor other gateways; see -h")
		return 2
	}
	if *plotFile != "" && (*each || p.given() || !(config{Only: only}).wants("growth")) {
		fmt.Fprintln(stderr, "--plot draws growth, which this does not measure; see -h")
		return 2
	}
	cfg := long()
	if *short {
		cfg = quick()
	}
	cfg.Redis, cfg.UseRedis, cfg.Ways, cfg.Only = *redis, *redis != "", *each, only

	err := func() error {
		measure := run
		if p.given() {
			measure = func(ctx context.Context, cfg config, stderr io.Writer) (*report, error) {
				return runAgainst(ctx, cfg, p, stderr)
			}
		}
		r, err := measure(ctx, cfg, stderr)
		if err != nil {
			return err
		}
		return deliver(r, stdout, *jsonFile, *plotFile)
	}()
	switch {
	case ctx.Err() != nil:
		if errors.Is(err, errLeft) {
			fmt.Fprintln(stderr, "bench:", err)
		} else {
			fmt.Fprintln(stderr, "interrupted; everything was cleaned up")
		}
		return 130 // what shells report for SIGINT
	case err != nil:
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

// pidsTo reads the numbers of processes.
func pidsTo(pids *[]int) func(string) error {
	return func(text string) error {
		for one := range strings.SplitSeq(text, ",") {
			pid, err := strconv.Atoi(one)
			if err != nil || pid < 2 {
				return errors.New("want the number of a process")
			}
			*pids = append(*pids, pid)
		}
		return nil
	}
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
