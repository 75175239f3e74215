package caddyoauth

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The last hour is kept by minutes, the one in course included, and goes by what counts say, not by
// when somebody looks.
func TestHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := countedSeries{"root", "route", "ok", ""}, countedSeries{"gone", "route", "invalid_token", "expired"}
		store := timedSeries{operation: "get"}
		now := readings{counts: map[countedSeries]uint64{a: 1000, b: 1}, durations: map[timedSeries]duration{store: {10, 10}}}
		h := newHistory(func() readings { return now })
		defer h.Destruct()
		count := func(what func()) { // while nobody reads
			h.mu.Lock()
			defer h.mu.Unlock()
			what()
		}
		if l := h.look(time.Now()); len(l.Series) != 0 || l.StepSeconds != 60 {
			t.Errorf("it begins with %+v", l)
		}
		time.Sleep(30 * time.Second) // now it is half past a minute, and it stays so
		counts := func(series countedSeries) (shown [historySteps]uint64) {
			t.Helper()
			for _, s := range h.look(time.Now()).Series {
				if s.countedSeries == series {
					shown = s.Counts
				}
			}
			return shown
		}
		want := func(what string, got [historySteps]uint64, want map[int]uint64) {
			t.Helper()
			for i, n := range got {
				if n != want[i-historySteps] {
					t.Errorf("%s: %v, want %v from the end", what, got, want)
					return
				}
			}
		}
		count(func() { now.counts[a] += 5 })
		want("in course", counts(a), map[int]uint64{-1: 5})
		count(func() { now.counts[a] += 2 })
		want("and more of it", counts(a), map[int]uint64{-1: 7})
		count(func() { now.durations[store] = duration{12, 10.5} })
		time.Sleep(time.Minute)
		count(func() { now.counts[a], now.counts[b] = now.counts[a]+1, 4 })
		want("a minute later", counts(a), map[int]uint64{-2: 7, -1: 1})
		if mean := h.mean(store); mean == nil || *mean != 250 {
			t.Errorf("the mean is %v, want 250 ms", mean)
		}
		time.Sleep(10 * time.Minute) // in which nobody looks
		want("ten minutes later", counts(a), map[int]uint64{-12: 7, -11: 1})
		if mean := h.mean(store); mean != nil {
			t.Errorf("of what is long ago, the mean is %v", *mean)
		}

		// A realm goes, and comes back with counts that begin anew.
		count(func() { delete(now.counts, b) })
		time.Sleep(time.Minute)
		count(func() { now.counts[b] = 9 })
		want("that has begun anew", counts(b), map[int]uint64{-13: 0, -12: 3, -1: 9})
		count(func() { delete(now.counts, b) })
		time.Sleep(time.Hour)
		want("an hour later", counts(a), nil)
		if len(h.counts) != 1 {
			t.Errorf("%d series are kept, want that of the one realm", len(h.counts))
		}

		// Counts begin anew while nobody looks.
		count(func() { now.counts[a] = 2 })
		want("from nothing", counts(a), map[int]uint64{-1: 2})

		// Somebody began to look before a minute was over, and is late.
		before := time.Now()
		time.Sleep(time.Minute)
		want("a minute later", counts(a), map[int]uint64{-2: 2})
		count(func() { now.counts[a] += 3 })
		for _, s := range h.look(before).Series {
			want("for who is late", s.Counts, map[int]uint64{-2: 2, -1: 3})
		}
		want("after that", counts(a), map[int]uint64{-2: 2, -1: 3})

		// The clock is set back, and then forth.
		back := time.Now().Add(-time.Hour)
		h.look(back)
		count(func() { now.counts[a]++ })
		if l := h.look(back); len(l.Series) != 1 || l.Series[0].Counts[historySteps-1] != 1 {
			t.Errorf("an hour back: %v", l.Series)
		}
		h.look(time.Now())
		count(func() { now.counts[a]++ })
		want("and back to now", counts(a), map[int]uint64{-1: 1})
	})
}

// What is counted for metrics is what the past is made of, each request once.
func TestHistoryReadsMetrics(t *testing.T) {
	t.Parallel()
	m := newCollectors()
	m.checks.WithLabelValues("root", "ok", "").Add(3)
	m.checks.WithLabelValues("root", reportOnlyResult, "expired").Inc()
	m.reportOnly.WithLabelValues("root", "expired").Inc() // the same request
	m.reportOnly.WithLabelValues(noEndpoint, "ambiguous_path").Inc()
	m.requests.WithLabelValues("root", "token", "invalid_client").Add(2)
	m.guarded["tunnel"].Inc()
	m.guarded[strippedIdentity].Inc()
	m.storeDuration.WithLabelValues("get", "ok").Observe(1)
	m.storeDuration.WithLabelValues("get", "not_found").Observe(2)
	m.sourceDuration.WithLabelValues("https://login.example.com", "timeout").Observe(4)
	got := m.read()
	for series, n := range got.counts {
		if n == 0 {
			delete(got.counts, series) // those that are made in advance
		}
	}
	want := map[countedSeries]uint64{
		{"root", "route", "ok", ""}:                        3,
		{"root", "route", "report_only", "expired"}:        1,
		{"None", "route", "report_only", "ambiguous_path"}: 1,
		{"root", "token", "invalid_client", ""}:            2,
		{"None", "route", "guarded", "tunnel"}:             1,
		{"None", "route", "stripped", "identity_header"}:   1,
	}
	for series, n := range want {
		if got.counts[series] != n {
			t.Errorf("%v: %d, want %d", series, got.counts[series], n)
		}
	}
	if len(got.counts) != len(want) {
		t.Errorf("%v, want %v", got.counts, want)
	}
	if d := got.durations[timedSeries{operation: "get"}]; d != (duration{2, 3}) {
		t.Errorf("the store: %v", d)
	}
	if d := got.durations[timedSeries{source: "https://login.example.com"}]; d != (duration{1, 4}) {
		t.Errorf("the source: %v", d)
	}
}

// The names in the answer are what the console goes by.
func TestLiveInJSON(t *testing.T) {
	t.Parallel()
	text, err := json.Marshal(live{StepSeconds: 60, Series: []liveSeries{{countedSeries: countedSeries{"root", "route", "ok", ""}}}})
	if want := `{"now":"0001-01-01T00:00:00Z","step_seconds":60,"series":[{"realm":"root","kind":"route","outcome":"ok","cause":"","counts":[0,`; err != nil || !strings.HasPrefix(string(text), want) {
		t.Errorf("%s, %v", text, err)
	}
}
