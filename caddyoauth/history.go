package caddyoauth

import (
	"cmp"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// GET /oauth/live shows what happened in the last hour, a minute at a time. Requests count as they do
// for the metrics, and once a minute somebody looks at these counts and notes what has come to them.
// So the past costs a request nothing, and is there when somebody looks for the first time.

const (
	historyStep  = time.Minute
	historySteps = 60 // how many are kept
	// recentSteps is how far back durations go, the step in course included.
	recentSteps = 5
)

// openHistories holds one entry, at historyKey: the past of this process, which survives a reload.
var openHistories = caddy.NewUsagePool()

const historyKey = "history"

// history is what has come to the counts of this process, by minutes of the wall clock. It has an entry
// for each series of a few metrics, whose number is bounded; one takes half a kilobyte. One goroutine
// looks at them, from newHistory to Destruct. It is safe for concurrent use.
type history struct {
	read func() readings // returns the counts as they are

	mu sync.Mutex
	// step is when the minute in course began.
	step      time.Time
	counts    map[countedSeries]*pastCounts
	durations map[timedSeries]*pastDurations

	end, ended chan struct{}
}

// countedSeries is requests that ended alike.
type countedSeries struct {
	Realm string `json:"realm"`
	// Kind is route, token, introspect, revoke or tokeninfo.
	Kind string `json:"kind"`
	// Outcome is the result that metrics have. Cause is why, for routes.
	Outcome string `json:"outcome"`
	Cause   string `json:"cause"`
}

// timedSeries is an operation of the store, or requests to a source.
type timedSeries struct{ operation, source string }

// duration is how many took how long, in all.
type duration struct {
	count   uint64
	seconds float64
}

// readings are counts as they are now.
type readings struct {
	counts    map[countedSeries]uint64
	durations map[timedSeries]duration
}

// pastCounts are how many there were in each minute. That of a minute is at its number, modulo their
// number.
type pastCounts struct {
	last  uint64 // reading
	steps [historySteps]uint64
}

// pastDurations is the same for durations.
type pastDurations struct {
	last  duration
	steps [recentSteps]duration
}

// newHistory begins with what comes from now on. Destruct ends it.
func newHistory(read func() readings) *history {
	h := &history{
		read: read, step: time.Now().Truncate(historyStep),
		counts: make(map[countedSeries]*pastCounts), durations: make(map[timedSeries]*pastDurations),
		end: make(chan struct{}), ended: make(chan struct{}),
	}
	before := read()
	for series, n := range before.counts {
		h.counts[series] = &pastCounts{last: n}
	}
	for series, d := range before.durations {
		h.durations[series] = &pastDurations{last: d}
	}
	go h.keep()
	return h
}

// Destruct implements [caddy.Destructor].
func (h *history) Destruct() error {
	close(h.end)
	<-h.ended
	return nil
}

// keep notes each minute when it is over.
func (h *history) keep() {
	defer close(h.ended)
	for {
		now := time.Now()
		timer := time.NewTimer(now.Truncate(historyStep).Add(historyStep).Sub(now))
		select {
		case <-h.end:
			timer.Stop()
			return
		case <-timer.C:
			h.mu.Lock()
			h.note(time.Now())
			h.mu.Unlock()
		}
	}
}

// stepAt returns where a step has its place among n.
func stepAt(step time.Time, n int64) int64 { return step.Unix() / int64(historyStep/time.Second) % n }

// note adds what has come since the last time to the step in course then, and begins those that have
// begun since. It needs mu.
func (h *history) note(now time.Time) {
	readings := h.read()
	for series, n := range readings.counts {
		past := h.counts[series]
		if past == nil {
			past = new(pastCounts)
			h.counts[series] = past
		}
		if n < past.last { // the series has begun anew
			past.last = 0
		}
		past.steps[stepAt(h.step, historySteps)] += n - past.last
		past.last = n
	}
	for series, d := range readings.durations {
		past := h.durations[series]
		if past == nil {
			past = new(pastDurations)
			h.durations[series] = past
		}
		if d.count < past.last.count {
			past.last = duration{}
		}
		step := &past.steps[stepAt(h.step, recentSteps)]
		step.count += d.count - past.last.count
		step.seconds += d.seconds - past.last.seconds
		past.last = d
	}
	begun := now.Truncate(historyStep)
	if late := h.step.Sub(begun); late > 0 && late <= historyStep {
		begun = h.step // now is from before somebody else ended that minute, or the clock was set back a little
	}
	steps := int(begun.Sub(h.step) / historyStep)
	if steps < 0 {
		steps = historySteps // the clock was set back: nobody can tell what belongs where
	}
	for i := range min(steps, historySteps) {
		step := begun.Add(-time.Duration(i) * historyStep)
		for _, past := range h.counts {
			past.steps[stepAt(step, historySteps)] = 0
		}
		for _, past := range h.durations {
			past.steps[stepAt(step, recentSteps)] = duration{}
		}
	}
	h.step = begun
	for series, past := range h.counts {
		if _, counted := readings.counts[series]; !counted { // its realm is gone
			if past.last = 0; past.steps == [historySteps]uint64{} {
				delete(h.counts, series)
			}
		}
	}
}

// liveSeries is a series as it is shown.
type liveSeries struct {
	countedSeries
	// Counts are how many there were in each step, the oldest first. The last step is not over.
	Counts [historySteps]uint64 `json:"counts"`
}

// live is the answer to GET /oauth/live.
type live struct {
	Now         time.Time    `json:"now"`
	StepSeconds int          `json:"step_seconds"`
	Series      []liveSeries `json:"series"` // those with anything in them
}

// look returns the last hour.
func (h *history) look(now time.Time) live {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.note(now)
	l := live{Now: now.UTC(), StepSeconds: int(historyStep / time.Second), Series: []liveSeries{}}
	for series, past := range h.counts {
		if past.steps == [historySteps]uint64{} {
			continue
		}
		shown := liveSeries{countedSeries: series}
		for i := range shown.Counts {
			step := h.step.Add(-time.Duration(historySteps-1-i) * historyStep)
			shown.Counts[i] = past.steps[stepAt(step, historySteps)]
		}
		l.Series = append(l.Series, shown)
	}
	slices.SortFunc(l.Series, func(a, b liveSeries) int {
		return cmp.Or(cmp.Compare(a.Realm, b.Realm), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Outcome, b.Outcome), cmp.Compare(a.Cause, b.Cause))
	})
	return l
}

// mean returns how many milliseconds something took of late on average, or nil if there was none of it.
func (h *history) mean(series timedSeries) *float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	past := h.durations[series]
	if past == nil {
		return nil
	}
	var all duration
	for _, step := range past.steps {
		all.count += step.count
		all.seconds += step.seconds
	}
	if all.count == 0 {
		return nil
	}
	mean := 1000 * all.seconds / float64(all.count)
	return &mean
}

// serveLive answers GET /oauth/live.
func serveLive(w http.ResponseWriter, r *http.Request) error {
	app, err := readAdminGet(w, r)
	if err != nil {
		return err
	}
	return answerJSON(w, app.run.history.look(time.Now()))
}

const (
	kindRoute = "route"
	// outcomeGuarded is that of requests that were refused without a look at any token, and
	// outcomeStripped that of those which went on without what was removed.
	outcomeGuarded  = "guarded"
	outcomeStripped = "stripped"
)

// read returns what history notes of the metrics.
func (m *metrics) read() readings {
	all := readings{counts: make(map[countedSeries]uint64), durations: make(map[timedSeries]duration)}
	count := func(metric *dto.Metric, series countedSeries) {
		all.counts[series] += uint64(metric.GetCounter().GetValue())
	}
	took := func(metric *dto.Metric, series timedSeries) {
		d := all.durations[series]
		d.count += metric.GetHistogram().GetSampleCount()
		d.seconds += metric.GetHistogram().GetSampleSum()
		all.durations[series] = d
	}
	eachSeries(m.checks, func(metric *dto.Metric, labels map[string]string) {
		count(metric, countedSeries{labels["realm"], kindRoute, labels["result"], labels["cause"]})
	})
	eachSeries(m.requests, func(metric *dto.Metric, labels map[string]string) {
		count(metric, countedSeries{labels["realm"], labels["endpoint"], labels["result"], ""})
	})
	eachSeries(m.reportOnly, func(metric *dto.Metric, labels map[string]string) {
		if labels["realm"] == noEndpoint { // those of other realms are among the checks
			count(metric, countedSeries{noEndpoint, kindRoute, reportOnlyResult, labels["cause"]})
		}
	})
	eachSeries(m.guard, func(metric *dto.Metric, labels map[string]string) {
		outcome := outcomeGuarded
		if labels["cause"] == string(strippedIdentity) || labels["cause"] == string(strippedUpgrade) {
			outcome = outcomeStripped
		}
		count(metric, countedSeries{noEndpoint, kindRoute, outcome, labels["cause"]})
	})
	eachSeries(m.storeDuration, func(metric *dto.Metric, labels map[string]string) {
		took(metric, timedSeries{operation: labels["operation"]})
	})
	eachSeries(m.sourceDuration, func(metric *dto.Metric, labels map[string]string) {
		took(metric, timedSeries{source: labels["source"]})
	})
	return all
}

// eachSeries calls visit for each series of a collector. What can't be read is left out, as it is from
// the metrics.
func eachSeries(c prometheus.Collector, visit func(metric *dto.Metric, labels map[string]string)) {
	series := make(chan prometheus.Metric)
	go func() {
		defer close(series)
		c.Collect(series)
	}()
	for s := range series {
		var metric dto.Metric
		if s.Write(&metric) != nil {
			continue
		}
		labels := make(map[string]string, len(metric.GetLabel()))
		for _, label := range metric.GetLabel() {
			labels[label.GetName()] = label.GetValue()
		}
		visit(&metric, labels)
	}
}
