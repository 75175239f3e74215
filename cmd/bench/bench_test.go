package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// tiny measures everything, but as little of it as possible.
func tiny() config {
	return config{
		Name: "tiny", Rounds: 2, Round: 20 * time.Millisecond, Most: 128, Starts: 1, Rest: 20 * time.Millisecond,
		Cached: 500, AtOnce: 64, Grow: 600, Points: 3, GrowRoom: time.Second, Binary: binary,
	}
}

// binary is built once, as for a run.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		folder, err := os.MkdirTemp("", "gateway-bench-test")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(folder)
		if binary, err = build(context.Background(), folder); err != nil {
			fmt.Fprintln(os.Stderr, "building:", err)
			return 1
		}
		return m.Run()
	}())
}

// The whole program, against the real gateway.
func TestBench(t *testing.T) {
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary) // on systems that use it
	t.Setenv("TMP", temporary)
	var stderr bytes.Buffer
	cfg := tiny()
	cfg.Redis = redisServer(t)
	r, err := run(t.Context(), cfg, &stderr)
	if err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	if left, _ := os.ReadDir(temporary); len(left) > 0 {
		t.Errorf("%s is left behind", left[0].Name())
	}

	files := t.TempDir()
	var table, onlyJSON bytes.Buffer
	if err := deliver(r, &table, filepath.Join(files, "figures.json"), filepath.Join(files, "growth.svg")); err != nil {
		t.Fatal(err)
	}
	tables := 4
	if cfg.Redis != "" {
		tables++
	}
	checkTables(t, table.String(), tables)
	if err := deliver(r, &onlyJSON, "-", ""); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(filepath.Join(files, "figures.json"))
	if err != nil || !bytes.Equal(written, onlyJSON.Bytes()) {
		t.Errorf("the JSON in the file differs from that on standard output: %v", err)
	}
	var back report
	if err := json.Unmarshal(onlyJSON.Bytes(), &back); err != nil {
		t.Fatalf("the JSON can't be read back: %v", err)
	}

	stores, more := 2, 0
	if cfg.Redis != "" {
		stores, more = 3, 4
	}
	if got, want := len(back.Comparisons), stores*(3+7+2)+more+5+3+1; got != want {
		t.Errorf("%d comparisons, want %d", got, want)
	}
	for _, c := range back.Comparisons {
		name := fmt.Sprintf("%s, %s, %d connections", c.What, c.Store, c.Connections)
		for side, f := range map[string]figures{"ours": c.Ours, "baseline": c.Base} {
			if f.Rate.Median <= 0 || f.P50.Median <= 0 || f.P99.Median < f.P50.Least {
				t.Errorf("%s, %s: %+v", name, side, f)
			}
			if _, err := os.Stat("/proc/self/schedstat"); err == nil && (f.CPU == nil || f.CPU.Median <= 0) {
				t.Errorf("%s, %s: no CPU time", name, side)
			}
		}
		if c.RateRatio.Least > c.RateRatio.Median || c.RateRatio.Median > c.RateRatio.Greatest {
			t.Errorf("%s: ratios %+v", name, c.RateRatio)
		}
	}
	if got, want := len(back.Beside), 4+5+3+3; got != want {
		t.Errorf("%d rows side by side, want %d", got, want)
	}
	for _, r := range slices.Concat((*bench)(nil).tlsRows(), (*bench)(nil).sourceRows()) {
		of := func(what string) bool { return what == r.What }
		inTurn := slices.IndexFunc(back.Comparisons, func(c comparison) bool { return of(c.What) })
		if inTurn < 0 || !slices.ContainsFunc(back.Beside, func(b besideRow) bool { return of(b.What) }) {
			t.Errorf("%s: not measured in both ways", r.What)
		} else if hits := back.Comparisons[inTurn].CacheHits; hits == nil || *hits < 0.95 {
			t.Errorf("%s: the cache answered too few checks", r.What)
		}
	}
	for _, r := range back.Beside {
		if r.Ours.Objects.Median < 20 || r.Base.Objects.Median < 20 || r.Objects.Median < 1 || r.Bytes.Median <= 0 || r.Ours.Rate.Median <= 0 {
			t.Errorf("%s, %s, side by side: %+v", r.What, r.Store, r)
		}
	}
	g := back.Growth
	if n := len(g.Points); n != 4 || g.Points[0].Live != 0 || g.Points[n-1].Live != 600 || g.Points[n-1].File == 0 {
		t.Errorf("growth went through %+v", g.Points)
	}
	if g.Left == 0 || g.Left > 200 || g.Pages == 0 {
		t.Errorf("at the end the file has %d tokens and %d pages", g.Left, g.Pages)
	}
	if inRedis := back.GrowthInRedis.Points; cfg.Redis != "" {
		if n := len(inRedis); n != 4 || inRedis[0].Live != 0 || inRedis[n-1].Live != 600 {
			t.Errorf("growth in Redis went through %+v", inRedis)
		} else if last := inRedis[n-1]; last.RedisCPU <= 0 || last.Bytes < 100 || last.Bytes > 10_000 || last.Rate <= 0 {
			t.Errorf("growth in Redis ended with %+v", last)
		}
	}
	if back.Start.Startup.Median <= 0 || back.Start.Live.Median <= 0 || back.Cached.Tokens < 450 || back.Cached.BytesEach == 0 {
		t.Errorf("%+v, %+v", back.Start, back.Cached)
	}
	if back.AtOnce != 64 {
		t.Errorf("%d tokens were good at once, want 64", back.AtOnce)
	}
	checkSVG(t, filepath.Join(files, "growth.svg"))
}

// A part of the run gives the tables of that part, and no others.
func TestOnly(t *testing.T) {
	for _, c := range []struct {
		only                    []string
		inTurn, beside, process int
	}{
		{only: []string{"start"}, process: 1},
		{only: []string{"introspection", "cached"}, inTurn: 2 * 2, beside: 1, process: 1},
	} {
		cfg := tiny()
		cfg.Only = c.only
		var stderr, text bytes.Buffer
		r, err := run(t.Context(), cfg, &stderr)
		if err != nil {
			t.Fatalf("%q: %v\n%s", c.only, err, &stderr)
		}
		if len(r.Comparisons) != c.inTurn || len(r.Beside) != c.beside {
			t.Errorf("%q: %d in turn, %d side by side", c.only, len(r.Comparisons), len(r.Beside))
		}
		tables := c.process
		for _, there := range []bool{c.inTurn > 0, c.beside > 0} {
			if there {
				tables++
			}
		}
		checkTables(t, r.markdown(), tables)
		if err := deliver(r, &text, "-", ""); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text.String(), `"growth":`) {
			t.Errorf("%q: the JSON has growth, which was not measured:\n%s", c.only, &text)
		}
	}
}

// Growth needs to know how fast tokens are issued, also where nothing has measured that.
func TestTokenRate(t *testing.T) {
	b := prepared(t)
	rate, err := b.tokenRate(t.Context())
	if err != nil || rate <= 0 {
		t.Errorf("%v tokens a second, %v", rate, err)
	}
	measured := comparison{What: "token, generated secret", Store: "bbolt", Connections: fillConnections}
	measured.Ours.Rate.Median = 12345
	b.report.Comparisons = append(b.report.Comparisons, measured)
	if rate, err := b.tokenRate(t.Context()); err != nil || rate != 12345 {
		t.Errorf("%v tokens a second, %v; want what was measured", rate, err)
	}
}

// redisServer starts a Redis, and checks at the end of the test that no keys are left in it. It
// returns an empty address if Redis is not installed; the test then goes on without it.
func redisServer(t *testing.T) string {
	if _, err := exec.LookPath("redis-server"); err != nil {
		return ""
	}
	addr, release, err := freeAddr(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	_, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "", "--appendonly", "no")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if conn, err := net.Dial("tcp", addr); err != nil {
			t.Error(err)
		} else {
			io.WriteString(conn, "DBSIZE\r\n")
			answer := make([]byte, 64)
			n, _ := conn.Read(answer)
			if string(answer[:n]) != ":0\r\n" {
				t.Errorf("keys are left in Redis: %q", answer[:n])
			}
			conn.Close()
		}
		cmd.Process.Kill()
		cmd.Wait()
	})
	for range 500 {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			return addr
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("redis-server does not listen")
	return ""
}

// checkTables checks that each row of a table has as many cells as its head, and that no cell is
// empty or a failed number.
func checkTables(t *testing.T, text string, want int) {
	tables, cells := 0, 0
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "|") {
			cells = 0
			continue
		}
		n := strings.Count(line, "|")
		if cells == 0 {
			tables++
			cells = n
		}
		if n != cells {
			t.Errorf("a row with %d cells where the head has %d: %s", n-1, cells-1, line)
		}
		for _, wrong := range []string{"NaN", "Inf", "%!", "||"} {
			if strings.Contains(line, wrong) {
				t.Errorf("%s in %s", wrong, line)
			}
		}
	}
	if tables != want {
		t.Errorf("%d tables, want %d:\n%s", tables, want, text)
	}
}

func checkSVG(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for d := xml.NewDecoder(bytes.NewReader(text)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the drawing is not XML: %v", err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "polyline" {
			lines++
		}
	}
	if lines != 5 || bytes.Contains(text, []byte("NaN")) || bytes.Contains(text, []byte("Inf")) {
		t.Errorf("the drawing has %d lines, want 5:\n%s", lines, text)
	}
}

// An interrupted run leaves nothing behind, whether it was building or measuring.
func TestInterrupted(t *testing.T) {
	for name, c := range map[string]struct {
		binary string
		lines  int // of progress before the interrupt
	}{"building": {"", 1}, "measuring": {binary, 5}} {
		t.Run(name, func(t *testing.T) {
			temporary := t.TempDir()
			t.Setenv("TMPDIR", temporary)
			t.Setenv("TMP", temporary)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			begun := make(lineCounter, 100)
			go func() {
				for range c.lines {
					<-begun
				}
				time.Sleep(50 * time.Millisecond)
				cancel()
			}()
			cfg := tiny()
			cfg.Binary = c.binary
			if _, err := run(ctx, cfg, begun); !errors.Is(err, context.Canceled) {
				t.Errorf("%v, want context.Canceled", err)
			}
			if left, _ := os.ReadDir(temporary); len(left) > 0 {
				t.Errorf("%s is left behind", left[0].Name())
			}
		})
	}
}

// A Redis that goes away ends the run at once, which says what it could not clean up.
func TestRedisThatEnds(t *testing.T) {
	real := redisServer(t)
	if real == "" {
		t.Skip("redis-server is not installed")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	begun := make(lineCounter, 1000)
	go func() {
		in, err := listener.Accept() // of the bench; what else comes later is refused
		if err != nil {
			return
		}
		listener.Close()
		defer in.Close()
		out, err := net.Dial("tcp", real)
		if err != nil {
			return
		}
		go func() {
			io.Copy(out, in)
			out.Close()
		}()
		go io.Copy(in, out)
		<-begun // it is measuring
		out.Close()
	}()
	cfg := tiny()
	cfg.Redis, cfg.Only = listener.Addr().String(), []string{"cached"}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err = run(ctx, cfg, begun)
	if !errors.Is(err, errLeft) || !strings.Contains(fmt.Sprint(err), "keys in Redis that begin with bench-") || ctx.Err() != nil {
		t.Errorf("%v, want what is left in Redis, at once", err)
	}
}

// A gateway that does not start ends the run, shows its output, and leaves nothing behind.
func TestGatewayThatDoesNotStart(t *testing.T) {
	b := &bench{cfg: tiny(), binary: binary, folder: t.TempDir(), clients: []credentials{{id: "broken", line: "no_such_option"}}}
	if _, err := b.start(t.Context(), setup{store: "memory"}); !errors.Is(err, errEnded) {
		t.Errorf("%v, want %v", err, errEnded)
	}
	var stderr bytes.Buffer
	b.explain(&stderr)
	if !strings.Contains(stderr.String(), "no_such_option") {
		t.Errorf("the reason is missing:\n%s", &stderr)
	}
	for _, g := range b.gateways {
		select {
		case <-g.exited:
		default:
			t.Error("a process is left")
		}
	}
}

type lineCounter chan struct{}

func (c lineCounter) Write(p []byte) (int, error) {
	c <- struct{}{}
	return len(p), nil
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"-h"}, 0, "go run ./cmd/bench"},
		{[]string{"--fast"}, 2, "--quick"},
		{[]string{"quick"}, 2, "takes no arguments"},
		{[]string{"--only", "tls,everything"}, 2, "protected, tls, sources, tokens"},
		{[]string{"--only", "tls", "--ways"}, 2, "--only is for neither"},
		{[]string{"--only", "tls", "--plot", "x.svg"}, 2, "--plot draws growth"},
		{[]string{"--redis", "127.0.0.1:1", "--quick"}, 1, "connecting to Redis"},
	} {
		var stdout, stderr bytes.Buffer
		if status := mainWith(t.Context(), c.args, &stdout, &stderr); status != c.status {
			t.Errorf("%q: status %d, want %d", c.args, status, c.status)
		}
		if said := strings.ReplaceAll(stderr.String(), " -quick", " --quick"); !strings.Contains(said, c.says) {
			t.Errorf("%q: the output lacks %q:\n%s", c.args, c.says, said)
		}
	}
}

// A refusal of any kind ends the run, and never counts as a success.
func TestWrongAnswersEndTheRun(t *testing.T) {
	for name, c := range map[string]struct{ answer, says string }{
		"status":          {"HTTP/1.1 401 Unauthorized\r\nWww-Authenticate: Bearer\r\nContent-Length: 0\r\n\r\n", "status 401"},
		"body":            {"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"active\":false}", "does not begin with"},
		"no answer":       {"", "reading an answer"},
		"no HTTP":         {"what?\r\n\r\n", "reading an answer"},
		"cut short":       {"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"active\":true,", "reading the body"},
		"connection ends": {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 15\r\n\r\n{\"active\":true,", "kept alive"},
	} {
		t.Run(name, func(t *testing.T) {
			l := answering(t, c.answer)
			_, err := l.run(t.Context(), repeat([]byte("GET / HTTP/1.1\r\n\r\n")), 0, isActive)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want one with %q", err, c.says)
			}
		})
	}
}

// answering returns one connection to a server that gives one answer and closes it.
func answering(t *testing.T, answer string) *load {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		conn.Read(make([]byte, 1000))
		io.WriteString(conn, answer)
	}()
	l, err := dial(t.Context(), listener.Addr().String(), nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func TestRequestsEnd(t *testing.T) {
	all := [][]byte{{'a'}, {'b'}}
	for name, c := range map[string]struct {
		next requests
		want string
	}{
		"once":    {once(all), "ab---"},
		"cycle":   {cycle(all), "ababa"},
		"at most": {atMost(3, cycle(all)), "aba--"},
		"repeat":  {repeat(all[1]), "bbbbb"},
	} {
		got := ""
		for range 5 {
			if r := c.next(); r != nil {
				got += string(r)
			} else {
				got += "-"
			}
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		sorted []float64
		q      float64
		want   float64
	}{
		{nil, 0.5, 0},
		{[]float64{7}, 0.99, 7},
		{[]float64{1, 3}, 0.5, 2},
		{[]float64{1, 2, 9}, 0.5, 2},
		{[]float64{1, 2, 3, 4, 5}, 0.25, 2},
		{[]float64{1, 2, 3, 4, 5}, 1, 5},
		{[]float64{0, 10}, 0.99, 9.9},
	} {
		if got := quantile(c.sorted, c.q); got != c.want {
			t.Errorf("quantile %v of %v is %v, want %v", c.q, c.sorted, got, c.want)
		}
	}
	if got := quantile([]time.Duration{time.Second, 3 * time.Second}, 0.5); got != 2*time.Second {
		t.Errorf("of durations: %v", got)
	}
}

// The machine was half as fast in the second round, which does not change the result.
func TestMedianOfRatios(t *testing.T) {
	got := spreadOf(ratios([]float64{11, 20, 13}, []float64{10, 20, 10}))
	if got != (spread{Median: 1.1, Least: 1, LowerQuartile: 1.05, UpperQuartile: 1.2000000000000002, Greatest: 1.3}) {
		t.Errorf("%+v", got)
	}
}

func TestNumbers(t *testing.T) {
	for f, want := range map[float64]string{0: "0.00", 1.104: "1.10", 12.34: "12.3", 123.4: "123", 9876.5: "9,877", 1e6: "1,000,000", -1234: "-1,234", -123: "-123"} {
		if got := number(f); got != want {
			t.Errorf("%v is %q, want %q", f, got, want)
		}
	}
	for f, want := range map[float64]float64{0: 1, 0.3: 0.5, 1: 1, 1.1: 2, 21: 25, 99: 100, 600: 1000} {
		if got := roundUp(f); got != want {
			t.Errorf("%v is rounded up to %v, want %v", f, got, want)
		}
	}
}

// When a run fails it shows the output of the gateway: only the end of it, and no secrets.
func TestTail(t *testing.T) {
	var said tail
	for i := range 10_000 {
		fmt.Fprintf(&said, "line %d\n", i)
	}
	fmt.Fprintln(&said, `{"token":"coa_AQBrBpyui3c8","secret":"cos_abc-_1","hash":"$argon2id$v=19$m=19456,t=2,p=1$GmhSbm$Oe36v/Q"}`)
	got := said.String()
	if len(got) > tailSize || !strings.HasPrefix(got, "line ") || !strings.Contains(got, "line 9999\n") {
		t.Errorf("%d bytes: %.80s", len(got), got)
	}
	if !strings.HasSuffix(got, `{"token":"REDACTED","secret":"REDACTED","hash":"REDACTED"}`+"\n") {
		t.Errorf("it ends with %s", got[len(got)-150:])
	}
	said.Write(bytes.Repeat([]byte("x"), 100_000))
	if got := said.String(); len(got) > tailSize {
		t.Errorf("%d bytes", len(got))
	}
}

// Nobody else gets an address while it is kept, though nobody listens there yet. Otherwise two gateways could
// share it.
func TestFreeAddr(t *testing.T) {
	addr, release, err := freeAddr(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"kept", "free"} {
		got := "free"
		if other, err := net.ListenPacket("udp", addr); err != nil {
			got = "kept"
		} else {
			other.Close()
		}
		if got != want {
			t.Errorf("%s is %s, want %s", addr, got, want)
		}
		release()
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatalf("what was kept can't be listened on: %v", err)
	}
	listener.Close()
}
