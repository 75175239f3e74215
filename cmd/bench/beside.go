package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// way says how the two sides of a ratio are measured. The zero value is the usual way, in which both
// sides are routes of one process, on all processors, and take turns; but with a new process in each
// round.
type way struct {
	apart    bool // each side is a process of its own
	without  bool // and that of the baseline is Caddy without the gateway
	together bool // both sides are under load at the same time
	pinned   bool // both processes share one processor, and all else has the others
	noGC     bool // nothing collects garbage
}

// sideBySide is the strict way.
var sideBySide = way{apart: true, without: true, together: true, pinned: true}

// ways leads from the usual way to the strict one, to show what each difference does.
var ways = []struct {
	name string
	way  way
}{
	{"one process, all processors, in turn", way{}},
	{"the same, without garbage collection", way{noGC: true}},
	{"one process, one processor, in turn", way{pinned: true}},
	{"the same, without garbage collection", way{pinned: true, noGC: true}},
	{"two processes, all processors, in turn", way{apart: true}},
	{"two processes, one processor, in turn", way{apart: true, pinned: true}},
	{"two processes, one processor, at the same time", way{apart: true, pinned: true, together: true}},
	{"the same, one process without the gateway", sideBySide},
	{"the same, without garbage collection", way{apart: true, without: true, together: true, pinned: true, noGC: true}},
}

// besideRow is one line of a table of what was measured side by side.
type besideRow struct {
	Way         string `json:"way,omitempty"` // where the table compares ways
	What        string `json:"what"`
	Store       string `json:"store"`
	Baseline    string `json:"beside"`
	Connections int    `json:"connections"`

	Ours, Base besideFigures
	CPURatio   *spread `json:"cpu_ratio,omitempty"`
	Objects    spread  `json:"objects_ratio"`
	Bytes      spread  `json:"bytes_ratio"`
}

// besideFigures are those of one side, for one request. CPU is nil if the system does not report it.
type besideFigures struct {
	CPU     *spread `json:"cpu_us"`
	Rate    spread  `json:"requests_per_second"`
	Objects spread  `json:"objects"`
	Bytes   spread  `json:"bytes"`
	GC      spread  `json:"collections_per_1000_requests"`
}

// besideRows are the rows that matter most.
func (b *bench) besideRows() []row {
	rows := append(b.protectedRows("bbolt"), b.protectedRows("memory")[0])
	rows = append(rows, b.tlsRows()...)
	rows = append(rows, b.sourceRows()...)
	rows = append(rows,
		b.tokenRow("token, generated secret", b.generated, "bbolt", 16),
		b.tokenRow("token, generated secret", b.generated, "memory", 16),
		b.introspectionRow("bbolt"))
	return slices.DeleteFunc(rows, func(r row) bool { return !b.cfg.wants(r.topic) })
}

// beside measures them in the strict way.
func (b *bench) beside(ctx context.Context) error {
	defer b.place()()
	for _, r := range b.besideRows() {
		b.bar.say(r.What + ", " + r.Store + ", side by side")
		measured, err := b.compareIn(ctx, sideBySide, r)
		if err != nil {
			return err
		}
		b.report.Beside = append(b.report.Beside, measured)
	}
	return nil
}

// eachWay measures one row in each way.
func (b *bench) eachWay(ctx context.Context) error {
	r := b.protectedRows("bbolt")[0]
	for _, w := range ways {
		b.bar.say(r.What + ": " + w.name)
		err := func() error {
			if w.way.pinned {
				defer b.place()()
			}
			measured, err := b.compareIn(ctx, w.way, r)
			measured.Way = w.name
			b.report.Ways = append(b.report.Ways, measured)
			return err
		}()
		if err != nil {
			return err
		}
	}
	return nil
}

// place moves this process, with load and backend, to the processors where no gateway will run, until
// the returned function is called. If that is not possible, the report says so, and everything runs
// where it is put.
func (b *bench) place() (restore func()) {
	p, err := newPlacement()
	if err == nil {
		err = p.moveAway()
	}
	if err != nil {
		b.report.note("Side by side here means at the same time, but not on the same processor: " + err.Error() + ".")
		return func() {}
	}
	b.placement = p
	procs := runtime.GOMAXPROCS(p.others())
	return func() {
		b.placement = nil
		runtime.GOMAXPROCS(procs)
		if err := p.moveBack(); err != nil {
			b.report.note("After some measurements the load could not use all processors again: " + err.Error() + ".")
		}
	}
}

// compareIn measures a row in one of the ways, with new processes in each round.
func (b *bench) compareIn(ctx context.Context, w way, r row) (besideRow, error) {
	var ours, base besideSide
	var cpu, objects, bytes []float64
	for range b.cfg.Rounds {
		one, other, err := b.besideRound(ctx, w, r)
		if err != nil {
			return besideRow{}, err
		}
		ours.add(one)
		base.add(other)
		if one.cpu > 0 && other.cpu > 0 {
			cpu = append(cpu, one.cpu/other.cpu)
		}
		objects = append(objects, one.objects/other.objects)
		bytes = append(bytes, one.bytes/other.bytes)
		b.bar.step()
	}
	measured := besideRow{
		What: r.What, Store: r.Store, Baseline: r.Baseline, Connections: r.Connections,
		Ours: ours.figures(), Base: base.figures(), Objects: spreadOf(objects), Bytes: spreadOf(bytes),
	}
	if len(cpu) == b.cfg.Rounds {
		ratio := spreadOf(cpu)
		measured.CPURatio = &ratio
	}
	return measured, nil
}

// besideSide are the rounds of one side.
type besideSide struct{ cpu, rate, objects, bytes, gc []float64 }

func (s *besideSide) add(c cost) {
	s.cpu = append(s.cpu, c.cpu)
	s.rate = append(s.rate, c.rate)
	s.objects = append(s.objects, c.objects)
	s.bytes = append(s.bytes, c.bytes)
	s.gc = append(s.gc, c.gc)
}

func (s *besideSide) figures() besideFigures {
	f := besideFigures{Rate: spreadOf(s.rate), Objects: spreadOf(s.objects), Bytes: spreadOf(s.bytes), GC: spreadOf(s.gc)}
	if cpu := spreadOf(s.cpu); cpu.Least > 0 {
		f.CPU = &cpu
	}
	return f
}

// cost is that of one request: CPU time in microseconds, and what it allocates.
type cost struct{ cpu, rate, objects, bytes, gc float64 }

// besideRound starts what one round needs, warms it up, and measures it.
func (b *bench) besideRound(ctx context.Context, w way, r row) (ours, base cost, err error) {
	fail := func(err error) (cost, cost, error) { return cost{}, cost{}, err }
	b.gateways = nil
	with := r.setup()
	with.noGC = w.noGC
	g, err := b.start(ctx, with)
	if err != nil {
		return fail(err)
	}
	defer g.stop()
	plain := g
	if w.apart {
		if w.without {
			with.store = ""
		}
		if plain, err = b.start(ctx, with); err != nil {
			return fail(err)
		}
		defer plain.stop()
	}
	one, other, err := r.sides(ctx, g, plain)
	if err != nil {
		return fail(err)
	}
	var loads [2]*load
	for i, s := range []side{one, other} {
		if loads[i], err = s.gateway.dial(ctx, r.Connections); err != nil {
			return fail(err)
		}
		defer loads[i].Close()
	}
	measure := func() error {
		if w.together {
			costs, err := b.underLoad(ctx, []*load{loads[0], loads[1]}, []side{one, other})
			if err == nil {
				ours, base = costs[0], costs[1]
			}
			return err
		}
		for i, s := range []side{one, other} {
			costs, err := b.underLoad(ctx, []*load{loads[i]}, []side{s})
			if err != nil {
				return err
			}
			if i == 0 {
				ours = costs[0]
			} else {
				base = costs[0]
			}
		}
		return nil
	}
	if err := measure(); err != nil { // to warm up
		return fail(err)
	}
	if _, err := g.cacheShare(ctx, r, measure); err != nil {
		return fail(err)
	}
	return ours, base, nil
}

// underLoad puts all sides under load at the same time, and ends with the first that has no more
// requests.
func (b *bench) underLoad(ctx context.Context, loads []*load, sides []side) ([]cost, error) {
	var over atomic.Bool
	nexts := make([]requests, len(sides))
	before, reading := make([]allocated, len(sides)), make([]allocated, len(sides))
	for i, s := range sides {
		next, err := s.next(ctx)
		if err != nil {
			return nil, err
		}
		nexts[i] = func() []byte {
			if over.Load() {
				return nil
			}
			request := next()
			if request == nil {
				over.Store(true)
			}
			return request
		}
		// What looking allocates must not count, so look twice to find out how much that is.
		first, err := s.gateway.allocated(ctx)
		if err != nil {
			return nil, err
		}
		if before[i], err = s.gateway.allocated(ctx); err != nil {
			return nil, err
		}
		reading[i] = before[i].since(first)
	}
	samples, cpu := make([]sample, len(sides)), make([]float64, len(sides))
	all, running := errgroup.WithContext(ctx)
	for i, s := range sides {
		used, _ := s.gateway.cpu()
		cpu[i] = micros(used)
		all.Go(func() (err error) {
			samples[i], err = loads[i].run(running, nexts[i], b.cfg.Round, s.check)
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return nil, err
	}
	costs := make([]cost, len(sides))
	for i, s := range sides {
		used, _ := s.gateway.cpu()
		cpu[i] = micros(used) - cpu[i]
	}
	for i, s := range sides {
		after, err := s.gateway.allocated(ctx)
		if err != nil {
			return nil, err
		}
		n, got := float64(samples[i].requests), after.since(before[i]).since(reading[i])
		costs[i] = cost{
			cpu: cpu[i] / n, rate: n / samples[i].took.Seconds(),
			objects: float64(got.objects) / n, bytes: float64(got.bytes) / n, gc: 1000 * float64(got.collections) / n,
		}
	}
	return costs, nil
}

// allocated is what a Go process has allocated so far.
type allocated struct{ objects, bytes, collections int64 }

func (a allocated) since(b allocated) allocated {
	return allocated{a.objects - b.objects, a.bytes - b.bytes, a.collections - b.collections}
}

// allocated asks the gateway. Others are not asked.
func (g *gateway) allocated(ctx context.Context) (allocated, error) {
	if g.foreign {
		return allocated{}, nil
	}
	n, err := g.numbers(ctx, "/debug/pprof/heap?debug=1", "# Mallocs = ", "# TotalAlloc = ", "# NumGC = ")
	if err != nil {
		return allocated{}, err
	}
	return allocated{n[0], n[1], n[2]}, nil
}

// note adds a note once.
func (r *report) note(text string) {
	for _, n := range r.Notes {
		if n == text {
			return
		}
	}
	r.Notes = append(r.Notes, text)
}

// environment returns the environment of a gateway whose data is in this folder.
func (s setup) environment(data string) []string {
	env := append(os.Environ(), "HOME="+data, "XDG_DATA_HOME="+data, "XDG_CONFIG_HOME="+data)
	if s.noGC {
		env = append(env, "GOGC=off")
	}
	return env
}

// besideTable returns what was measured side by side, as a table.
func besideTable(rows []besideRow) string {
	text := "| "
	if rows[0].Way != "" {
		text += "way | "
	}
	text += "what | baseline | store | connections | CPU µs / baseline | CPU ratio | objects / baseline | objects ratio | bytes / baseline | bytes ratio | collections per 1,000 requests / baseline |\n|"
	if rows[0].Way != "" {
		text += "---|"
	}
	text += "---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
	for _, r := range rows {
		cpu, ratio := "–", "–"
		if r.CPURatio != nil {
			cpu, ratio = pair(r.Ours.CPU.Median, r.Base.CPU.Median), withSpread(*r.CPURatio)
		}
		if r.Way != "" {
			text += "| " + r.Way + " "
		}
		text += fmt.Sprintf("| %s | %s | %s | %d | %s | %s | %s | %s | %s | %s | %s |\n", r.What, r.Baseline, r.Store, r.Connections, cpu, ratio,
			pair(r.Ours.Objects.Median, r.Base.Objects.Median), withSpread(r.Objects),
			pair(r.Ours.Bytes.Median, r.Base.Bytes.Median), withSpread(r.Bytes), pair(r.Ours.GC.Median, r.Base.GC.Median))
	}
	return text
}
