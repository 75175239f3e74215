package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
)

// Each way between in turn and side by side is measured, and afterwards this process may use all
// processors again.
func TestWays(t *testing.T) {
	processors := runtime.GOMAXPROCS(0)
	p, err := newPlacement()
	cfg := tiny()
	cfg.Ways, cfg.Rounds = true, 1
	var stderr bytes.Buffer
	r, err2 := run(t.Context(), cfg, &stderr)
	if err2 != nil {
		t.Fatalf("%v\n%s", err2, &stderr)
	}
	if len(r.Ways) != len(ways) {
		t.Errorf("%d ways, want %d", len(r.Ways), len(ways))
	}
	for i, w := range r.Ways {
		if w.Objects.Median < 1 || w.Objects.Median > 3 || w.Ours.Objects.Median < 100 || w.Bytes.Median <= 0 || w.Ours.Rate.Median <= 0 {
			t.Errorf("%s: %+v", w.Way, w)
		}
		if ways[i].way.noGC && w.Ours.GC.Greatest+w.Base.GC.Greatest > 0 {
			t.Errorf("%s: garbage was collected: %+v and %+v", w.Way, w.Ours.GC, w.Base.GC)
		}
	}
	checkTables(t, r.markdown(), 1)
	if n := runtime.GOMAXPROCS(0); n != processors {
		t.Errorf("GOMAXPROCS is %d, and was %d", n, processors)
	}
	if err == nil {
		again, err := newPlacement()
		if err != nil {
			t.Fatalf("afterwards: %v", err)
		}
		if again.others() != p.others() {
			t.Errorf("afterwards there are %d other processors, and were %d", again.others(), p.others())
		}
	} else if len(r.Notes) < 2 {
		t.Errorf("processes were not pinned (%v), and the report does not say so: %q", err, r.Notes)
	}
}

// A gateway that is pinned finds one processor, and the load keeps to the others.
func TestPlacement(t *testing.T) {
	b := &bench{cfg: tiny(), report: newReport(tiny()), bar: newProgress(io.Discard, 1), binary: binary, folder: t.TempDir()}
	restore := b.place()
	defer restore()
	if b.placement == nil {
		if n := len(b.report.Notes); n == 0 {
			t.Error("nothing is pinned, and the report does not say so")
		}
		return
	}
	g, err := b.start(t.Context(), setup{})
	if err != nil {
		t.Fatal(err)
	}
	defer g.stop()
	if n, err := g.number(t.Context(), "/metrics", "go_sched_gomaxprocs_threads "); err != nil || n != 1 {
		t.Errorf("the gateway uses %d processors, want 1: %v", n, err)
	}
	allowed := func(pid int) string {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		_, list, _ := strings.Cut(string(text), "Cpus_allowed_list:")
		list, _, _ = strings.Cut(list, "\n")
		return list
	}
	if theirs, ours := allowed(g.pid), allowed(os.Getpid()); theirs == ours {
		t.Errorf("the gateway and the load both have the processors %s", ours)
	}
	if n := runtime.GOMAXPROCS(0); n != b.placement.others() {
		t.Errorf("the load uses %d processors, want %d", n, b.placement.others())
	}
}
