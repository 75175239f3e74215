// Package promql checks the rules and the dashboard of examples/observe with Prometheus' own parser
// and engine, against a recorded run of the example's gateway. That the record is right is tested
// in caddyoauth. The package is a module of its own, so that Prometheus is no dependency of ours.
package promql

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

const repositoryRoot = "../.."

// step is the time between two values of a series. The record took half a second a step; by this
// clock it is slow enough for rates over minutes.
const step = 30 * time.Second

// start is the time of the first values: ten days before a secret in the record ends.
var start = time.Date(2099, 12, 21, 0, 0, 0, 0, time.UTC)

var promQL = parser.NewParser(parser.Options{})

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(repositoryRoot, filepath.FromSlash(file)))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// series are all there are in a Prometheus.
type series []storage.Series

// load reads series in the notation of Prometheus' own tests, as they would be after a scrape.
func load(t *testing.T, text string) (all series, steps int) {
	t.Helper()
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		lset, values, err := promQL.ParseSeriesDesc(line)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		scraped := labels.NewBuilder(lset)
		for name, value := range map[string]string{"job": "caddy-oauth", "instance": "127.0.0.1:8173"} {
			if lset.Get(name) == "" {
				scraped.Set(name, value)
			}
		}
		var samples []chunks.Sample
		for i, v := range values {
			if !v.Omitted {
				samples = append(samples, sample{start.Add(time.Duration(i) * step).UnixMilli(), v.Value})
			}
		}
		all, steps = append(all, storage.NewListSeries(scraped.Labels(), samples)), max(steps, len(values))
	}
	return all, steps
}

// record is the recorded run, with what Prometheus adds.
func record(t *testing.T) (series, int) {
	t.Helper()
	all, steps := load(t, read(t, "examples/observe/run.txt"))
	if steps < 50 {
		t.Fatalf("the record has only %d steps", steps)
	}
	up, _ := load(t, fmt.Sprintf("up 1x%d", steps-1))
	return append(all, up...), steps
}

// Querier implements [storage.Queryable].
func (s series) Querier(int64, int64) (storage.Querier, error) { return querier{s: s}, nil }

// querier has no lists of labels: only APIs ask for them.
type querier struct {
	storage.LabelQuerier
	s series
}

func (q querier) Close() error { return nil }

func (q querier) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	return &seriesSet{rest: slices.DeleteFunc(slices.Clone(q.s), func(s storage.Series) bool {
		return slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.Labels().Get(m.Name)) })
	})}
}

type seriesSet struct {
	at   storage.Series
	rest series
}

func (s *seriesSet) Next() bool {
	if len(s.rest) == 0 {
		return false
	}
	s.at, s.rest = s.rest[0], s.rest[1:]
	return true
}
func (s *seriesSet) At() storage.Series                { return s.at }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

type sample struct {
	t int64
	f float64
}

func (s sample) T() int64                      { return s.t }
func (s sample) ST() int64                     { return 0 }
func (s sample) F() float64                    { return s.f }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample           { return s }

// evaluate returns what becomes of an expression.
func (s series) evaluate(t *testing.T, expr string, steps int) promql.Matrix {
	t.Helper()
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1_000_000, Timeout: time.Minute, LookbackDelta: 5 * time.Minute, Parser: promQL})
	defer engine.Close()
	q, err := engine.NewRangeQuery(t.Context(), s, nil, expr, start, start.Add(time.Duration(steps-1)*step), step)
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	defer q.Close()
	result := q.Exec(t.Context())
	matrix, err := result.Matrix()
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	copied := make(promql.Matrix, len(matrix))
	for i, s := range matrix { // Close takes the values back
		copied[i] = promql.Series{Metric: s.Metric, Floats: slices.Clone(s.Floats)}
	}
	return copied
}

// rules are those of the example.
func rules(t *testing.T) (all []rulefmt.Rule) {
	t.Helper()
	groups, errs := rulefmt.Parse([]byte(read(t, "examples/observe/rules.yml")), false, model.UTF8Validation, promQL, slog.New(slog.NewTextHandler(io.Discard, nil)))
	for _, err := range errs {
		t.Error(err)
	}
	if t.Failed() {
		t.FailNow()
	}
	for _, group := range groups.Groups {
		all = append(all, group.Rules...)
	}
	return all
}

// dashboard is what of Grafana's format matters here.
type dashboard struct {
	Title  string
	Panels []panel
}

type panel struct {
	Title, Type string
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct{ Expr, LegendFormat string }
	FieldConfig struct {
		Defaults struct {
			Unit       string
			Decimals   *int
			Thresholds struct {
				Steps []struct {
					Color string
					Value *float64
				}
			}
		}
	}
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	if err := json.Unmarshal([]byte(read(t, "examples/observe/dashboard.json")), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// grafana replaces Grafana's variables in an expression.
var grafana = strings.NewReplacer("$__rate_interval", "2m", "$instance", ".+")

// known are the labels of each metric, with their values.
type known map[string]map[string]map[string]bool

func knownFrom(all series) known {
	k := make(known)
	for _, s := range all {
		name := s.Labels().Get(labels.MetricName)
		if k[name] == nil {
			k[name] = make(map[string]map[string]bool)
		}
		s.Labels().Range(func(l labels.Label) {
			if k[name][l.Name] == nil {
				k[name][l.Name] = make(map[string]bool)
			}
			k[name][l.Name][l.Value] = true
		})
	}
	return k
}

// check returns what is wrong with an expression: what it names and no gateway has. Values of labels
// that the record lacks must be in the manual.
func (k known) check(expr, manual string) (problems []string) {
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)+": "+expr) }
	parsed, err := promQL.ParseExpr(expr)
	if err != nil {
		problem("%v", err)
		return problems
	}
	has := make(map[string]bool) // the labels of all metrics in it
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		selector, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		if k[selector.Name] == nil {
			problem("no gateway has %q", selector.Name)
		}
		for label := range k[selector.Name] {
			has[label] = true
		}
		for _, m := range selector.LabelMatchers {
			values := k[selector.Name][m.Name]
			if values == nil {
				problem("%s has no label %s", selector.Name, m.Name)
			}
			for value := range strings.SplitSeq(m.Value, "|") {
				if !values[value] && value != "" && value != ".+" && !strings.Contains(manual, "`"+value+"`") {
					problem("%s never has %s=%q", selector.Name, m.Name, value)
				}
			}
		}
		return nil
	})
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		if by, ok := node.(*parser.AggregateExpr); ok {
			for _, label := range by.Grouping {
				if !has[label] {
					problem("nothing has the label %s", label)
				}
			}
		}
		return nil
	})
	return problems
}

// All expressions are PromQL, and name metrics and labels that a gateway has.
func TestExpressions(t *testing.T) {
	all, _ := record(t)
	k, manual := knownFrom(all), read(t, "docs/operations.md")
	for _, r := range rules(t) {
		for _, problem := range k.check(r.Expr, manual) {
			t.Errorf("rules.yml, %s: %s", r.Alert+r.Record, problem)
		}
	}
	expressions := 0
	for _, p := range readDashboard(t).Panels {
		for _, target := range p.Targets {
			for _, problem := range k.check(grafana.Replace(target.Expr), manual) {
				t.Errorf("dashboard.json, %s: %s", p.Title, problem)
			}
			expressions++
		}
	}
	if expressions < 25 {
		t.Errorf("only %d expressions are on the dashboard", expressions)
	}
}

// The check of expressions finds what is wrong.
func TestExpressionsThatAreWrong(t *testing.T) {
	all, _ := record(t)
	k, manual := knownFrom(all), read(t, "docs/operations.md")
	for _, expr := range []string{
		`rate(caddy_oauth_request_total[5m])`,
		`rate(caddy_oauth_requests_total{results="ok"}[5m])`,
		`rate(caddy_oauth_requests_total{result="okay"}[5m])`,
		`sum by (client) (rate(caddy_oauth_client_checks_total[5m]))`,
		`rate(caddy_oauth_requests_total)`,
		`sum(`,
	} {
		if len(k.check(expr, manual)) == 0 {
			t.Errorf("nothing is wrong with %s", expr)
		}
	}
}

// Each panel shows something of the record, and its legend names labels that are there.
func TestPanelsShowTheRecord(t *testing.T) {
	all, steps := record(t)
	for _, p := range readDashboard(t).Panels {
		for _, target := range p.Targets {
			matrix := all.evaluate(t, grafana.Replace(target.Expr), steps)
			if len(matrix) == 0 {
				t.Errorf("%s is empty", p.Title)
			}
			for _, s := range matrix {
				if name := legend(target.LegendFormat, s.Metric); strings.Contains(name, "{{") || p.Type != "stat" && strings.Trim(name, " :,()") == "" {
					t.Errorf("%s calls %s %q", p.Title, s.Metric, name)
				}
			}
		}
	}
}

// legend replaces labels in a legend, as Grafana does. Those that aren't there stay.
func legend(format string, metric labels.Labels) string {
	return regexp.MustCompile(`\{\{(\w+)\}\}`).ReplaceAllStringFunc(format, func(label string) string {
		if name := strings.Trim(label, "{}"); metric.Has(name) {
			return metric.Get(name)
		}
		return label
	})
}

// fires reports whether an alert fires at some time.
func (s series) fires(t *testing.T, r rulefmt.Rule, steps int) bool {
	t.Helper()
	for _, result := range s.evaluate(t, r.Expr, steps) {
		var since int64
		for i, point := range result.Floats {
			if i == 0 || point.T-result.Floats[i-1].T > step.Milliseconds() {
				since = point.T
			}
			if point.T-since >= time.Duration(r.For).Milliseconds() {
				return true
			}
		}
	}
	return false
}

// Each alert fires on what it is for, and not on what looks like it.
func TestAlerts(t *testing.T) {
	cases := map[string]struct{ fires, quiet string }{
		"OAuthGatewayDown": {
			`up{job="caddy-oauth"} 1x3 0x3`,
			`up{job="caddy-oauth"} 1x3 0 1x3`},
		"OAuthReloadRefused": {
			`caddy_config_last_reload_successful 1x3 0`,
			`caddy_config_last_reload_successful 1x9`},
		"OAuthStoreFails": {
			`caddy_oauth_store_duration_seconds_count{operation="put",result="error"} _x5 1+1x9`,
			`caddy_oauth_store_duration_seconds_count{operation="get",result="not_found"} 0+5x20
			 caddy_oauth_store_duration_seconds_count{operation="get",result="refused"} 0+5x20`},
		"OAuthUnavailable": {
			`caddy_oauth_bearer_checks_total{realm="root",result="temporarily_unavailable",cause="outage"} 0x3 1+1x20`,
			// A single one, and a caller that went away.
			`caddy_oauth_bearer_checks_total{realm="root",result="temporarily_unavailable",cause="outage"} 0x3 1x40
			 caddy_oauth_bearer_checks_total{realm="root",result="canceled",cause="canceled"} 0+1x40`},
		"OAuthStoreLinkLost": {
			`caddy_oauth_store_link_up 1x3 0x3`,
			`caddy_oauth_store_link_up 1x3 0 1x3`},
		"OAuthSourceAway": {
			`caddy_oauth_source_up{source="https://login.example.com"} 1x3 0x5`,
			`caddy_oauth_source_up{source="https://login.example.com"} 1x3 0x2 1x9`},
		"OAuthSourceCredentials": {
			`caddy_oauth_source_duration_seconds_count{source="https://login.example.com",result="credentials"} _x5 1 3 5 7 9`,
			// One token that the server answers with 401.
			`caddy_oauth_source_duration_seconds_count{source="https://login.example.com",result="credentials"} 0x5 1x20`},
		"OAuthKeysFail": {
			`caddy_oauth_source_duration_seconds_count{source="https://login.example.com",result="error"} 0 1 2 3 4x10`,
			`caddy_oauth_source_duration_seconds_count{source="https://login.example.com",result="error"} 0x5 1x40
			 caddy_oauth_source_duration_seconds_count{source="https://login.example.com",result="ok"} 0+1x40`},
		"OAuthStaleAnswers": {
			`caddy_oauth_stale_answers_total 0x3 1+3x30`,
			`caddy_oauth_stale_answers_total 0x3 9x60`},
		"OAuthSecretEnds": {
			// In ten days; and some that ended.
			fmt.Sprintf(`caddy_oauth_secret_expiry_timestamp_seconds{realm="root",client_id="a",secret="1"} %d`, start.AddDate(0, 0, 10).Unix()),
			// A rotation: there is a newer one.
			fmt.Sprintf(`caddy_oauth_secret_expiry_timestamp_seconds{realm="root",client_id="a",secret="1"} %d
			 caddy_oauth_secret_expiry_timestamp_seconds{realm="root",client_id="a",secret="2"} Inf
			 caddy_oauth_secret_expiry_timestamp_seconds{realm="root",client_id="b",secret="1"} %d`, start.AddDate(0, 0, 1).Unix(), start.AddDate(0, 0, 15).Unix())},
		"OAuthManagedSecretsEnd": {
			`caddy_oauth_managed_clients_expiring{realm="root",days="7"} 0x3 2x40`,
			`caddy_oauth_managed_clients_expiring{realm="root",days="7"} 0x3 2x5 0x40
			 caddy_oauth_managed_clients_expiring{realm="root",days="30"} 2x40`},
		"OAuthWrongSecrets": {
			`caddy_oauth_client_requests_total{realm="root",client_id="a",endpoint="token",result="wrong_secret"} _x3 1 10x20
			 caddy_oauth_client_requests_total{realm="root",client_id="a",endpoint="token",result="failure_limit"} _x4 1+2x20`,
			`caddy_oauth_client_requests_total{realm="root",client_id="a",endpoint="token",result="wrong_secret"} 0x3 5x20
			 caddy_oauth_client_requests_total{realm="root",client_id="a",endpoint="token",result="ok"} 0+90x20`},
		"OAuthGuessing": {
			`caddy_oauth_failure_limits_total{realm="root"} 0+1x30`,
			`caddy_oauth_failure_limits_total{realm="root"} 0x3 1x5 4x40
			 caddy_oauth_requests_total{realm="root",endpoint="token",result="invalid_client"} 0+60x30`},
		"OAuthSlowDown": {
			`caddy_oauth_requests_total{realm="root",endpoint="token",result="slow_down"} _x3 1+1x40`,
			`caddy_oauth_requests_total{realm="root",endpoint="token",result="slow_down"} 0x3 9x60`},
		"OAuthMisdirected": {
			// The first one must not be missed.
			`caddy_oauth_requests_total{realm="None",endpoint="token",result="no_such_endpoint"} 0x3 1x20`,
			`caddy_oauth_requests_total{realm="None",endpoint="token",result="no_such_endpoint"} 7x20`},
		"OAuthCacheTooSmall": {
			`caddy_oauth_cache_evictions_total 0+600x130`,
			`caddy_oauth_cache_evictions_total 0+60x130`},
	}
	recorded, steps := record(t)
	k, manual := knownFrom(recorded), read(t, "docs/operations.md")
	var inRecord []string
	for _, r := range rules(t) {
		if r.Alert == "" {
			continue
		}
		c, ok := cases[r.Alert]
		if !ok {
			t.Errorf("%s: nothing says what it fires on", r.Alert)
		}
		delete(cases, r.Alert)
		if all, n := load(t, c.fires); !all.fires(t, r, n) {
			t.Errorf("%s does not fire on %s", r.Alert, c.fires)
		}
		if all, n := load(t, c.quiet); all.fires(t, r, n) {
			t.Errorf("%s fires on %s", r.Alert, c.quiet)
		}
		// What was made up is like what a gateway has.
		for line := range strings.Lines(c.fires + "\n" + c.quiet) {
			name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
			selector := regexp.MustCompile(`(client_id|source|secret)="[^"]*"`).ReplaceAllString(name, `$1=~".+"`)
			for _, problem := range k.check(selector, manual) {
				t.Errorf("the case of %s: %s", r.Alert, problem)
			}
		}
		if recorded.fires(t, r, steps) {
			inRecord = append(inRecord, r.Alert)
		}
	}
	for alert := range cases {
		t.Errorf("rules.yml has no %s", alert)
	}
	// The README of the example says so.
	want := []string{"OAuthUnavailable", "OAuthSourceAway", "OAuthSourceCredentials", "OAuthStaleAnswers", "OAuthSecretEnds", "OAuthWrongSecrets", "OAuthMisdirected"}
	if !slices.Equal(inRecord, want) {
		t.Errorf("in the record, these fire: %q, want %q", inRecord, want)
	}
}

// What the rules record is a share, or a time.
func TestRecordingRules(t *testing.T) {
	all, steps := record(t)
	for _, r := range rules(t) {
		if r.Record == "" {
			continue
		}
		points := 0
		for _, s := range all.evaluate(t, r.Expr, steps) {
			for _, point := range s.Floats {
				if point.F < 0 || point.F > 1 {
					t.Errorf("%s is %v", r.Record, point.F)
				}
				points++
			}
		}
		if points < steps/2 {
			t.Errorf("%s has %d values in %d steps", r.Record, points, steps)
		}
	}
}
