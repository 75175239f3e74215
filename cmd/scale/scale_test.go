package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
)

// within reports whether two figures differ by at most a share of the second.
func within(got, want, share float64) bool { return math.Abs(got-want) <= share*want }

// A token that is used at random times, on average rate times a second, is asked of the store once in
// each max_age and the pause that follows it. That is the known result for caches with a fixed time to
// live.
func TestSimulationAgreesWithTheFormula(t *testing.T) {
	for _, rate := range []float64{0.002, 1. / 60, 0.1, 1, 10} {
		for _, gateways := range []int{1, 10} {
			w := workload{Gateways: gateways, Rate: 1000 * rate * float64(gateways), Tokens: 1000, Lifetime: 1e6 * time.Second, MaxAge: time.Minute, MaxTokens: 1e6}
			h := simulate(w)
			want := 1000 * rate / (1 + rate*60)
			if !within(h.Misses, want, 0.07) {
				t.Errorf("a token used %g times a second at each of %d gateways: %.4g questions a second, want about %.4g", rate, gateways, h.Misses, want)
			}
		}
	}
}

// A cache that holds a tenth of the tokens has a tenth of what is asked for, if all are used alike, and
// more if some are used more often.
func TestSimulationOfACacheThatIsTooSmall(t *testing.T) {
	w := workload{Gateways: 1, Rate: 100_000, Tokens: 1_000_000, Lifetime: time.Hour, MaxAge: time.Hour, MaxTokens: 100_000}
	alike := demandOf(w, costs{}).Hits
	if alike < 0.05 || alike > 0.11 {
		t.Errorf("%.3g of the requests find their token in a cache for a tenth of them", alike)
	}
	w.Spread = 1
	if unlike := demandOf(w, costs{}).Hits; unlike < 1.5*alike {
		t.Errorf("%.3g of the requests find their token if some are used more often, want more than %.3g", unlike, alike)
	}
}

// A new token has to be asked for, even if the cache never forgets.
func TestSimulationReplacesTokensThatExpire(t *testing.T) {
	w := workload{Gateways: 1, Rate: 1000, Tokens: 1000, Lifetime: 10 * time.Second, MaxAge: time.Minute, MaxTokens: 1e6}
	h := simulate(w)
	// Of a hundred tokens a second, each is used after a second on average, and a few never are.
	if want := 100 * h.End; !within(h.Misses, want, 0.05) {
		t.Errorf("%.4g questions a second, want about %.4g", h.Misses, want)
	}
	if h.End < 0.99 || h.Read < 0.85 || h.Read > 0.95 {
		t.Errorf("%.3g of the live tokens and %.3g of those that expire were used, want 0.9 and nearly all", h.Read, h.End)
	}
}

// What can be carried is right below the first bound, and no simulation changes between runs.
func TestCarriedIsRightBelowTheBound(t *testing.T) {
	c := recordedCosts(t)
	for _, nodes := range []int{0, 1} {
		w := defaults()
		w.Gateways, w.Nodes = 1+99*nodes, nodes
		d, first := carry(w, c, 1)
		if first.Share > 1 || first.Share < 0.97 {
			t.Errorf("%d gateways carry %.0f requests a second with %.3g of %s", w.Gateways, d.Rate, first.Share, first.Name)
		}
		if again, _ := carry(w, c, 1); again != d {
			t.Errorf("the result of the same question differs: %+v and %+v", d, again)
		}
		d.Rate /= 2
		d.Tokens /= 2
		w = d.workload
		w.Revoked = revocations(w, c)
		if share := demandOf(w, c).bounds()[0].Share; w.Revoked < 1 || share > 1 || share < 0.97 {
			t.Errorf("with %.0f revocations a second, the first bound is met by %.3g", w.Revoked, share)
		}
	}
}

// More gateways and more nodes never carry less, if each token keeps to a few gateways.
func TestMoreCarryMore(t *testing.T) {
	c := recordedCosts(t)
	last := 0.0
	for _, gateways := range []int{2, 10, 100} {
		w := defaults()
		w.Gateways, w.Nodes, w.Seen = gateways, 4, 2
		d, _ := carry(w, c, 1)
		if d.Rate < last {
			t.Errorf("%d gateways carry %.0f requests a second, fewer than less of them, which carry %.0f", gateways, d.Rate, last)
		}
		last = d.Rate
	}
}

func recordedCosts(t *testing.T) costs {
	t.Helper()
	c, err := parseCosts(recorded)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The tables in the documentation are those that the command prints.
func TestDocumentedTablesAreTrue(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("other processors round differently, so a last digit may differ")
	}
	text, err := os.ReadFile("../../docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := tables(recordedCosts(t)); !strings.Contains(string(text), want) {
		t.Errorf("docs/performance.md has another table than:\n%s", want)
	}
}

// redisSocket starts a Redis for a test and returns the socket that it listens at.
func redisSocket(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("redis-server is not installed")
	}
	folder, err := os.MkdirTemp("", "redis") //nolint:usetesting // whose name may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	socket := filepath.Join(folder, "socket")
	server := exec.Command(program, "--port", "0", "--unixsocket", socket, "--dir", folder, "--save", "", "--appendonly", "no")
	output, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Process.Kill()
		server.Wait()
	})
	for lines := bufio.NewScanner(output); lines.Scan() && !strings.Contains(lines.Text(), "to accept connections"); {
	}
	go io.Copy(io.Discard, output)
	return socket
}

// What things cost is measured at a real Redis, and nothing is left in it.
func TestMeasuresARedis(t *testing.T) {
	socket := redisSocket(t)
	c := recordedCosts(t)
	c.Redis.Version = ""
	if err := measureRedis(t.Context(), "unix://"+socket, &c, 20_000, 10); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]float64{
		"set": c.Redis.Set, "get": c.Redis.Get, "delete": c.Redis.Delete, "record": c.Redis.Record, "tracked": c.Redis.Tracked, "reader": c.Redis.Reader,
	} {
		if value <= 0 || value > 10_000 {
			t.Errorf("%s is %g", name, value)
		}
	}
	if c.Redis.Version == "" || c.Redis.Record < recordBytes {
		t.Errorf("Redis %q, a record of %g bytes", c.Redis.Version, c.Redis.Record)
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "DBSIZE\r\n")
	answer := make([]byte, 64)
	if n, _ := conn.Read(answer); string(answer[:n]) != ":0\r\n" {
		t.Errorf("keys are left in Redis: %q", answer[:n])
	}
}

// Whoever interrupts the measurement finds nothing left in his Redis, and no password in an error.
func TestAnInterruptedMeasurementLeavesNothing(t *testing.T) {
	address := "unix://" + redisSocket(t)
	o, err := rueidis.ParseURL(address)
	if err != nil {
		t.Fatal(err)
	}
	o.DisableCache, o.ForceSingleClient = true, true
	client, err := rueidis.NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	size := func() int64 {
		n, err := client.Do(t.Context(), client.B().Dbsize().Build()).AsInt64()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	ctx, interrupt := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		c := recordedCosts(t)
		done <- measureRedis(ctx, address, &c, 1_000_000, 10)
	}()
	for size() == 0 {
		runtime.Gosched()
	}
	interrupt()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the measurement ended with %v", err)
	}
	if n := size(); n > 0 {
		t.Errorf("%d records are left", n)
	}
	c := recordedCosts(t)
	if err := measureRedis(t.Context(), "redis://:s3cret%zz@127.0.0.1:1", &c, 1, 2); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a malformed URL: %v", err)
	}
}

func TestCommand(t *testing.T) {
	for _, tc := range []struct {
		args         string
		status       int
		stdout, errs string
	}{
		{"--gateways 1 --rate 1000 --tokens 100", 0, "the bbolt file", ""},
		{"--gateways 12 --rate 50000 --tokens 20000", 0, "Redis' processor, each node", ""},
		{"--gateways 1000 --rate 5000000 --tokens 20000000", 0, "tracking-table-max-keys", ""},
		{"--gateways 2", 2, "", "a workload needs a --rate above 0"},
		{"--gateways 2 --rate 1 --tokens 10 --seen 3", 2, "", "no more --seen than --gateways"},
		{"--gateways 2 --rate NaN --tokens 10", 2, "", "a workload needs"},
		{"more", 2, "", "takes no arguments"},
		{"--costs nowhere.json", 1, "", "nowhere.json"},
		{"--redis 127.0.0.1:1", 1, "", "connecting to Redis"},
		{"-h", 0, "", "go run ./cmd/scale"},
	} {
		var stdout, stderr strings.Builder
		if status := mainWith(t.Context(), strings.Fields(tc.args), &stdout, &stderr); status != tc.status {
			t.Errorf("scale %s: exit status %d, want %d; it says %s", tc.args, status, tc.status, stderr.String())
		}
		if !strings.Contains(stdout.String(), tc.stdout) || !strings.Contains(stderr.String(), tc.errs) {
			t.Errorf("scale %s says %q and %q, want %q and %q in them", tc.args, stdout.String(), stderr.String(), tc.stdout, tc.errs)
		}
	}
}
