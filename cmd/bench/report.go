package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// report is everything that was measured.
type report struct {
	Config        config        `json:"config"`
	Machine       machine       `json:"machine"`
	Comparisons   []comparison  `json:"comparisons,omitempty"`
	Beside        []besideRow   `json:"side_by_side,omitempty"`
	Ways          []besideRow   `json:"ways,omitempty"`
	Growth        growth        `json:"growth,omitzero"`
	GrowthInRedis growthInRedis `json:"growth_in_redis,omitzero"`
	Start         start         `json:"start,omitzero"`
	Cached        cached        `json:"cached,omitzero"`
	AtOnce        int64         `json:"let_in_at_once,omitzero"` // of Config.AtOnce tokens
	Notes         []string      `json:"notes,omitempty"`
	Peer          bool          `json:"another_gateway,omitempty"`
}

// comparison is one line of the table: what was measured, and the baseline that it was compared with.
type comparison struct {
	What        string `json:"what"`
	Store       string `json:"store"`
	Baseline    string `json:"beside"`
	Connections int    `json:"connections"`

	Ours      figures  `json:"ours"`
	Base      figures  `json:"beside_it"`
	CPURatio  *spread  `json:"cpu_ratio,omitempty"`
	RateRatio spread   `json:"rate_ratio"`
	CacheHits *float64 `json:"cache_hit_share,omitempty"`
	Together  *spread  `json:"cpu_ratio_at_the_same_time,omitempty"` // of another gateway, in processes of their own
}

// figures are those of one side, over all rounds. CPU is nil if the system does not report it.
type figures struct {
	CPU  *spread `json:"cpu_us_per_request,omitempty"`
	Rate spread  `json:"requests_per_second"`
	P50  spread  `json:"p50_ms"`
	P99  spread  `json:"p99_ms"`
}

// start is start-up time in milliseconds, and memory at rest in MiB.
type start struct {
	Startup          spread `json:"startup_ms"`
	StartupBaseline  spread `json:"startup_beside_ms"`
	Resident         spread `json:"resident_mib"`
	ResidentBaseline spread `json:"resident_beside_mib"`
	ResidentMore     spread `json:"resident_more_mib"`
	Live             spread `json:"live_heap_mib"`
	LiveBaseline     spread `json:"live_heap_beside_mib"`
}

type cached struct {
	Tokens    int64   `json:"tokens"`
	BytesEach float64 `json:"bytes_each"`
}

func newReport(cfg config) *report {
	r := &report{Config: cfg}
	if len(cfg.Only) > 0 {
		r.Notes = append(r.Notes, "This run measures only "+strings.Join(cfg.Only, ", ")+".")
	}
	if cfg.Name != "long" {
		r.Notes = append(r.Notes, "This is a "+cfg.Name+" run: few and short rounds, and "+thousands(cfg.Grow)+" tokens instead of a million.")
	}
	if _, err := os.Stat("/proc/self/schedstat"); err != nil {
		r.Notes = append(r.Notes, "This system does not report the CPU time and memory of another process.")
	}
	return r
}

// machine is what the figures were measured on.
type machine struct {
	CPU        string  `json:"cpu"`
	Processors int     `json:"processors"`
	MaxProcs   int     `json:"gomaxprocs"`
	System     string  `json:"system"`
	Go         string  `json:"go"`
	Disk       string  `json:"file_system,omitempty"`
	Sync       float64 `json:"sync_ms"` // of 4 KiB, in the folder of the token file
}

func machineOf(folder string) machine {
	m := machine{CPU: runtime.GOARCH, Processors: runtime.NumCPU(), MaxProcs: runtime.GOMAXPROCS(0), System: runtime.GOOS, Go: runtime.Version()}
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(info), "model name\t: "); ok {
			m.CPU, _, _ = strings.Cut(rest, "\n")
		}
	}
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.System += " " + strings.TrimSpace(string(release))
	}
	if mounts, err := os.ReadFile("/proc/mounts"); err == nil {
		longest := -1
		for line := range strings.Lines(string(mounts)) {
			if f := strings.Fields(line); len(f) > 2 && len(f[1]) > longest && (f[1] == "/" || folder == f[1] || strings.HasPrefix(folder, f[1]+"/")) {
				longest, m.Disk = len(f[1]), f[2]
			}
		}
	}
	m.Sync = syncTime(folder)
	return m
}

// syncTime returns how long it takes to sync 4 KiB to the disk, in milliseconds. That says more about
// a disk than its name does: every token in bbolt waits for two syncs.
func syncTime(folder string) float64 {
	f, err := os.Create(filepath.Join(folder, "sync"))
	if err != nil {
		return 0
	}
	defer f.Close()
	took := make([]float64, 0, 21)
	for range cap(took) {
		begin := time.Now()
		if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil || f.Sync() != nil {
			return 0
		}
		took = append(took, millis(time.Since(begin)))
	}
	return spreadOf(took).Median
}

// markdown returns the report as tables.
func (r *report) markdown() string {
	if r.Peer {
		return r.peerTable()
	}
	var t strings.Builder
	m := r.Machine
	fmt.Fprintf(&t, "%s, %d processors, GOMAXPROCS %d, %s, %s", m.CPU, m.Processors, m.MaxProcs, m.System, m.Go)
	if m.Disk != "" {
		fmt.Fprintf(&t, ", %s", m.Disk)
	}
	fmt.Fprintf(&t, "; a sync of 4 KiB takes %s ms. Load, backend and gateway share the machine.\n", number(m.Sync))
	fmt.Fprintf(&t, "%d rounds of up to %v or %s requests for each side, in turn: medians, ratios with the smallest and the largest.\n",
		r.Config.Rounds, r.Config.Round, thousands(r.Config.Most))
	for _, n := range r.Notes {
		fmt.Fprintf(&t, "%s\n", n)
	}

	if len(r.Ways) > 0 {
		return t.String() + "\n" + besideTable(r.Ways)
	}

	if len(r.Comparisons) > 0 {
		t.WriteString("\nIn turn: both sides are routes of one process, which may use all processors. The factor is what the gateway adds to\n" +
			"a request of a process that has the machine to itself.\n\n" + inTurnTable(r.Comparisons))
	}
	if len(r.Beside) > 0 {
		t.WriteString("\nSide by side: the gateway, and the same Caddy without it, start anew in each round and are under load at the same time,\n" +
			"on the same processor; load and backend have the others. The factor is what the gateway adds on a busy machine.\n\n" +
			besideTable(r.Beside))
	}
	if len(r.Growth.Points) > 0 {
		t.WriteString("\n" + r.Growth.table())
	}
	if len(r.GrowthInRedis.Points) > 0 {
		t.WriteString("\n" + r.GrowthInRedis.table())
	}
	if rows := r.processRows(); len(rows) > 0 {
		t.WriteString("\n| what | with the gateway | the same Caddy without | difference |\n|---|--:|--:|--:|\n" + strings.Join(rows, ""))
	}
	return t.String()
}

// inTurnTable returns what was measured in turn, as a table.
func inTurnTable(all []comparison) string {
	var t strings.Builder
	t.WriteString("| what | baseline | store | connections | CPU µs / baseline | CPU ratio | requests/s / baseline | requests/s ratio | p50 ms / baseline | p99 ms / baseline |\n|---|---|---|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, c := range all {
		cpu, ratio := "–", "–"
		if c.CPURatio != nil {
			cpu = pair(c.Ours.CPU.Median, c.Base.CPU.Median)
			ratio = withSpread(*c.CPURatio)
		}
		fmt.Fprintf(&t, "| %s | %s | %s | %d | %s | %s | %s | %s | %s | %s |\n", c.What, c.Baseline, c.Store, c.Connections, cpu, ratio,
			pair(c.Ours.Rate.Median, c.Base.Rate.Median), withSpread(c.RateRatio), pair(c.Ours.P50.Median, c.Base.P50.Median), pair(c.Ours.P99.Median, c.Base.P99.Median))
	}
	return t.String()
}

// table returns some of the points, and the end.
func (g growth) table() string {
	var t strings.Builder
	t.WriteString("| tokens in the bbolt file | CPU µs per token | tokens/s | p50 ms | p99 ms | file MiB | resident MiB | without the file | heap in use, MiB |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	row := func(label string, p point) {
		fmt.Fprintf(&t, "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", label, known(p.CPU), known(p.Rate), known(p.P50), known(p.P99),
			number(mib(p.File)), known(mib(p.Memory.Resident)), known(mib(p.Memory.Own)), number(mib(p.Memory.Live)))
	}
	for i, p := range g.Points {
		if shown(i, len(g.Points)) {
			row(thousands(p.Live), p)
		}
	}
	row("0, after all have expired", g.Empty)
	row(thousands(g.Refilled.Live)+" again", g.Refilled)
	fmt.Fprintf(&t, "\nAt the end the file has %s pages, %s of them free, and %s tokens.\n", thousands(g.Pages), thousands(g.Free), thousands(g.Left))
	return t.String()
}

// shown says whether a table has the point with index i of n.
func shown(i, n int) bool {
	last := n - 1
	return i <= 1 || i == last/4 || i == last/2 || i == last
}

// known formats a figure that is 0 where nothing was measured.
func known(f float64) string {
	if f == 0 {
		return "–"
	}
	return number(f)
}

// processRows returns what was measured of whole processes, as rows of a table.
func (r *report) processRows() []string {
	var rows []string
	add := func(format string, cells ...any) { rows = append(rows, fmt.Sprintf(format, cells...)) }
	if s := r.Start; s.Startup.Median > 0 {
		add("| start-up until the first token, or static answer, ms | %s | %s | %s |\n", withSpread(s.Startup), withSpread(s.StartupBaseline), number(s.Startup.Median-s.StartupBaseline.Median))
		if s.Resident.Median > 0 {
			add("| resident memory at rest, MiB | %s | %s | %s |\n", withSpread(s.Resident), withSpread(s.ResidentBaseline), withSpread(s.ResidentMore))
		}
		add("| heap in use at rest, MiB | %s | %s | %s |\n", withSpread(s.Live), withSpread(s.LiveBaseline), number(s.Live.Median-s.LiveBaseline.Median))
	}
	if c := r.Cached; c.Tokens > 0 {
		add("| memory per cached token, bytes, over %s tokens | %s | – | – |\n", thousands(int(c.Tokens)), number(c.BytesEach))
	}
	if r.AtOnce > 0 {
		add("| tokens accepted as soon as they were issued | %s of %s | – | – |\n", thousands(int(r.AtOnce)), thousands(r.Config.AtOnce))
	}
	return rows
}

func pair(ours, baseline float64) string { return number(ours) + " / " + number(baseline) }

func withSpread(s spread) string {
	return fmt.Sprintf("%s (%s to %s)", number(s.Median), number(s.Least), number(s.Greatest))
}

// number formats about three digits, which is more than the measurements support.
func number(f float64) string {
	switch a := math.Abs(f); {
	case a >= 100:
		return thousands(int(math.Round(f)))
	case a >= 10:
		return strconv.FormatFloat(f, 'f', 1, 64)
	default:
		return strconv.FormatFloat(f, 'f', 2, 64)
	}
}

func thousands(n int) string {
	digits := strconv.Itoa(n)
	for i := len(digits) - 3; i > 0 && digits[i-1] != '-'; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
