package caddyoauth_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// The rules and the dashboard of examples/observe are checked in two places. Here a gateway runs
// with the example's Caddyfile, and the metrics that they name are compared with those that it
// has. What happened to each of its series in such a run is recorded in recordedRun. Prometheus'
// own parser and engine, in .ci/promql, read all expressions, and check them against that record.

const recordedRun = "examples/observe/run.txt"

// observed is a gateway with the Caddyfile of examples/observe. It is a process of its own: in
// this one, other tests have counted.
type observed struct {
	*gateway
	partner, metrics, admin string // URLs

	caddyfile string

	reports, courier string   // tokens
	spare            []string // tokens of the partner that were never shown to the gateway
}

func startObserved(t *testing.T, spare int) *observed {
	t.Helper()
	text := readDocument(t, "examples/observe/Caddyfile")
	moved := strings.NewReplacer(freePorts(t, text)...)
	at := func(port string) string { return "http://127.0.0.1" + moved.Replace(port) }
	var addresses []string
	for _, m := range siteAddress.FindAllStringSubmatch(text, -1) {
		addresses = append(addresses, "127.0.0.1"+moved.Replace(m[1]+m[2]))
	}
	runProcess(t, moved.Replace(text), addresses...)
	o := &observed{gateway: &gateway{t: t, Client: newClient(t), URL: at(":8170")}, partner: at(":8172"), metrics: at(":8173"), admin: at(":8174"), caddyfile: text}
	o.reports, o.courier = o.tokenFrom(o.URL, "reports"), o.tokenFrom(o.partner, "courier")
	for range spare {
		o.spare = append(o.spare, o.tokenFrom(o.partner, "courier"))
	}
	return o
}

// secretOf returns a client's secret, which a comment in the Caddyfile gives away.
func (o *observed) secretOf(client string) string {
	o.t.Helper()
	m := regexp.MustCompile(`client ` + client + ` \{\n\s+# Demo secret: (\S+)`).FindStringSubmatch(o.caddyfile)
	if m == nil {
		o.t.Fatalf("no secret of %s in the Caddyfile", client)
	}
	return m[1]
}

// ask sends a form to an endpoint of a server.
func (o *observed) ask(server, path, client, secret string, form url.Values) answer {
	o.t.Helper()
	at := *o.gateway
	at.URL = server
	if server == o.partner {
		path = "/realms/root/realms/partner" + path
	}
	return at.post("/oauth2"+path, client, secret, form)
}

func (o *observed) tokenFrom(server, client string) string {
	o.t.Helper()
	a := o.ask(server, "/access_token", client, o.secretOf(client), url.Values{"grant_type": {"client_credentials"}})
	token, _ := a.json(o.t)["access_token"].(string)
	if token == "" {
		o.t.Fatalf("no token for %s: %d %s", client, a.StatusCode, a.Body)
	}
	return token
}

func (o *observed) unused() string {
	token := o.spare[0]
	o.spare = append(o.spare[1:], token) // comes round again when it is long out of the cache
	return token
}

// get is that of the gateway.
func (o *observed) get(path, token string) answer {
	o.t.Helper()
	return o.getAt(o.URL, path, token)
}

// getAt asks a server of the gateway, and again if the connection is cut. A reload does that to a connection that
// is idle, or that the old listener has not accepted yet, when that closes, which may be a moment after the
// reload was answered. It is between Caddy and the kernel, and any client has to try again.
func (o *observed) getAt(server, path, token string) (a answer) {
	o.t.Helper()
	at := *o.gateway
	at.URL = server
	waitUntil(o.t, "a request is answered", func() (answered bool) {
		r := at.request("GET", path, "")
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		var err error
		a, err = at.try(r)
		return err == nil
	})
	return a
}

// configure changes the gateway's configuration while it runs.
func (o *observed) configure(method, path, body string) {
	o.t.Helper()
	o.getAt(o.admin, "/config/admin", "") // finds a connection that lasts: the change can't be sent twice
	at := *o.gateway
	at.URL = o.admin
	if a := at.do(at.request(method, "/config/apps"+path, body, "Content-Type", "application/json")); a.StatusCode != 200 {
		o.t.Fatalf("%s %s: %d %s", method, path, a.StatusCode, a.Body)
	}
	o.Client.CloseIdleConnections() // to servers that were replaced
}

// series returns the samples of the metrics that the example is about.
func (o *observed) series() map[string]float64 {
	o.t.Helper()
	all := make(map[string]float64)
	for _, m := range regexp.MustCompile(`(?m)^((?:caddy_oauth_|caddy_config_last_reload_successful|process_resident_memory_bytes)\S*) (\S+)$`).FindAllStringSubmatch(o.getAt(o.metrics, "/metrics", "").Body, -1) {
		value, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			o.t.Fatal(err)
		}
		if !strings.Contains(m[1], "_sum{") {
			// The record must not depend on the ports of a run.
			all[strings.NewReplacer(o.partner, "http://127.0.0.1:8172").Replace(m[1])] = value
		}
	}
	return all
}

// total adds up the series with such a beginning.
func (o *observed) total(prefix string) (sum float64) {
	o.t.Helper()
	for series, value := range o.series() {
		if strings.HasPrefix(series, prefix) {
			sum += value
		}
	}
	return sum
}

// chapter is something that goes on for a while. The record has steps; from is the first one and
// to the one after the last. do does it n times, or something like that.
type chapter struct {
	from, to int
	begin    func()
	do       func(n int)
	end      func()
}

// recordedSteps is how many there are in the record.
const recordedSteps = 60

// story is what happens to the gateway.
func (o *observed) story() []chapter {
	times := func(do func()) func(int) {
		return func(n int) {
			for range n {
				do()
			}
		}
	}
	billing := o.secretOf("billing")
	var revoked, partner string
	batch, batched := o.secretOf("batch"), 0
	issue := url.Values{"grant_type": {"client_credentials"}}
	const partnersGateway = "/oauth/realms/partner/clients/gateway/secrets/0"
	return []chapter{
		// Every day.
		{from: 0, to: recordedSteps, do: times(func() { o.get("/orders/1", o.reports) })},
		{from: 0, to: recordedSteps, do: func(n int) {
			o.get("/orders/1", o.tokenFrom(o.URL, "reports"))
			for range n / 3 {
				o.get("/parcels/1", o.courier)
			}
			o.get("/parcels/1", o.unused())
		}},
		// A client of the partner is on its way here.
		{from: 0, to: 30, do: func(n int) {
			for range 1 + n/3 {
				o.get("/shipments/1", o.courier)
			}
		}},
		{from: 0, to: recordedSteps, do: func(n int) {
			for range 1 + n/4 {
				o.ask(o.URL, "/introspect", "billing", billing, url.Values{"token": {o.reports}})
			}
			o.get("/orders/1", "")
			o.get("/drafts/1", o.reports)
			invoice := o.request("GET", "/invoices/1", "")
			invoice.SetBasicAuth("billing", billing)
			o.do(invoice)
		}},
		// A job fetches a token for each request, and has not the scope that it needs.
		{from: 8, to: 14, do: func(n int) {
			for range 2 + n/4 {
				a := o.ask(o.URL, "/access_token", "batch", batch, issue)
				if token, _ := a.json(o.t)["access_token"].(string); token != "" {
					o.get("/orders/1", token)
				} else {
					batched++
				}
			}
		}, end: func() {
			for batched == 0 {
				if o.ask(o.URL, "/access_token", "batch", batch, issue).StatusCode == 429 {
					batched++
				}
			}
		}},
		// Another one has a typing error in its URL.
		{from: 16, to: 17, do: func(int) { o.post("/oauth2/reprots/token", "reports", o.secretOf("reports"), issue) }},
		// A token is revoked, and used all the same.
		{from: 18, to: 21, begin: func() { revoked = o.tokenFrom(o.URL, "reports") }, do: func(n int) {
			for range 2 { // the client repeats it
				o.ask(o.URL, "/token/revoke", "reports", o.secretOf("reports"), url.Values{"token": {revoked}})
			}
			for range 1 + n/4 {
				o.get("/orders/1", revoked)
				o.ask(o.URL, "/introspect", "billing", billing, url.Values{"token": {revoked}})
			}
			// Nobody may ask about another's token unless the configuration says so.
			o.ask(o.URL, "/introspect", "reports", o.secretOf("reports"), url.Values{"token": {o.tokenFrom(o.URL, "billing")}})
		}},
		// Somebody tries what may open the door.
		{from: 22, to: 28, do: func(n int) {
			for i, try := range []func(){
				// From the address of all the others, so it had better not be in the name of one of them.
				func() { o.ask(o.URL, "/access_token", "batch", "guessed", issue) },
				func() { o.ask(o.URL, "/access_token", "admin", "guessed", issue) },
				func() { o.get("/orders/1", o.reports[:len(o.reports)-4]+"AAAA") },
				func() { o.get("/orders/1", "guessed") },
				func() { o.get("/parcels/1", "guessed") },
				func() { o.rawRequest("GET /x/..%2forders/1") },
				func() { o.rawRequest("GET /x", "X-OAuth-Client-Id: admin") },
				func() {
					o.rawRequest("GET /x", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
				},
				func() { o.rawRequest("CONNECT example.com:443") },
			} {
				for range 1 + n*(9-i)/10 {
					try()
				}
			}
		}, end: func() {
			for o.ask(o.URL, "/access_token", "batch", "guessed", issue).StatusCode != 429 {
			}
		}},
		// The partner gives the gateway another secret and tells nobody.
		{from: 30, to: 33, begin: func() {
			o.configure("PATCH", partnersGateway, `{"hash":"$sha256$v5tDTgJZiCU1P6ax79sJUhYHoKwhGPfC/OFisNq64es"}`)
		}, do: func(int) {
			for range 2 { // few enough that the partner's server goes on to look
				o.get("/parcels/1", o.unused())
			}
		}, end: func() {
			sum := regexp.MustCompile(`client gateway \{\n.*\n\s+secret_hash (\S+)`).FindStringSubmatch(o.caddyfile)
			o.configure("PATCH", partnersGateway, `{"hash":"`+sum[1]+`"}`)
		}},
		// The partner's server is gone for a while.
		{from: 35, to: 43, begin: func() {
			o.get("/parcels/1", o.courier) // may be used when it is stale
			partner = o.getAt(o.admin, "/config/apps/http/servers/partner", "").Body
			o.configure("DELETE", "/http/servers/partner", "")
		}, do: times(func() {
			o.get("/parcels/1", o.courier)
			o.get("/parcels/1", o.unused())
		}), end: func() {
			waitUntil(o.t, "the gateway leaves the partner's server alone, and uses what it knows", func() bool {
				o.get("/parcels/1", o.courier)
				o.get("/parcels/1", o.unused())
				return o.total("caddy_oauth_source_up") == 0 && o.total("caddy_oauth_stale_answers_total") > 0
			})
			o.configure("PUT", "/http/servers/partner", partner)
		}},
	}
}

// The record of examples/observe has the series that a gateway has after the same story, and no
// others: their names, labels and values. With -update it is written anew, which takes half a
// minute, and so is the picture afterwards; see .ci/promql.
func TestObservedRun(t *testing.T) {
	spare := 20
	if *update {
		spare = 400
	}
	o := startObserved(t, spare)
	waitUntil(t, "the cache answers", func() bool {
		o.get("/orders/1", o.reports)
		return o.total("caddy_oauth_cache_hits_total") > 0
	})
	if *update {
		o.record(t)
		return
	}
	for _, c := range o.story() {
		if c.begin != nil {
			c.begin()
		}
		c.do(1)
		if c.end != nil {
			c.end()
		}
	}
	counted := func(all map[string]float64) map[string]bool {
		names := make(map[string]bool)
		for series, value := range all {
			name, _, _ := strings.Cut(series, "{")
			names[name] = true
			// Which bucket is a matter of luck, and so is a server that is late on a busy machine.
			if strings.HasSuffix(name, "_bucket") || strings.Contains(series, `result="timeout"`) {
				continue
			}
			if value != 0 || name == "caddy_oauth_source_up" { // it is away at the end
				names[series] = true
			}
		}
		return names
	}
	got, want := counted(o.series()), counted(readRecord(t))
	for series := range got {
		if !want[series] {
			t.Errorf("%s has no %s; write it anew: go test ./caddyoauth -run TestObservedRun -update", recordedRun, series)
		}
	}
	for series := range want {
		if !got[series] {
			t.Errorf("%s has %s, which the gateway has not", recordedRun, series)
		}
	}
}

// record goes through the story at half a second a step, and writes what became of each series.
func (o *observed) record(t *testing.T) {
	var steps []map[string]float64
	clock := time.NewTicker(time.Second / 2)
	defer clock.Stop()
	story := o.story()
	for step := range recordedSteps {
		n := 8 + int(4*math.Sin(float64(step)/8)) // days are not all the same
		for _, c := range story {
			if step == c.from && c.begin != nil {
				c.begin()
			}
			if step >= c.from && step < c.to {
				c.do(n)
			}
			if step == c.to-1 && c.end != nil {
				c.end()
			}
		}
		steps = append(steps, o.series())
		<-clock.C
	}
	var b strings.Builder
	b.WriteString("# What became of the gateway's series in the story that TestObservedRun tells, in Prometheus' notation:\n" +
		"# a value for each step, _x3 for three without one, and 5x3 for 5 and three more of it. Series that stayed at zero are\n" +
		"# left out if there are others of the metric.\n")
	last := steps[len(steps)-1]
	names := slices.Sorted(maps.Keys(last))
	written := map[string]bool{}
	for _, zeros := range []bool{false, true} {
		for _, series := range names {
			name, _, _ := strings.Cut(series, "{")
			some := slices.ContainsFunc(steps, func(s map[string]float64) bool { return s[series] != 0 })
			if some == zeros || zeros && written[name] {
				continue
			}
			written[name] = true
			b.WriteString(series)
			for i := 0; i < len(steps); {
				value, more := notation(steps[i], series), 0
				for i++; i < len(steps) && notation(steps[i], series) == value; i++ {
					more++
				}
				switch {
				case value == "Inf": // Prometheus reads no Infx3
					b.WriteString(strings.Repeat(" Inf", 1+more))
				case value == "_": // _x3 is three
					fmt.Fprintf(&b, " _x%d", 1+more)
				case more > 0:
					fmt.Fprintf(&b, " %sx%d", value, more)
				default:
					b.WriteString(" " + value)
				}
			}
			b.WriteString("\n")
		}
	}
	if err := os.WriteFile(filepath.Join(repositoryRoot, recordedRun), []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// notation returns a value as Prometheus' tests write it.
func notation(sample map[string]float64, series string) string {
	value, ok := sample[series]
	switch {
	case !ok:
		return "_"
	case math.IsInf(value, 1):
		return "Inf"
	}
	return strconv.FormatFloat(value, 'f', -1, 64)
}

// readRecord returns the recorded series with their last values.
func readRecord(t *testing.T) map[string]float64 {
	t.Helper()
	all := make(map[string]float64)
	for line := range strings.Lines(readDocument(t, recordedRun)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		series, values, _ := strings.Cut(strings.TrimSpace(line), " ")
		last, _, _ := strings.Cut(values[strings.LastIndex(values, " ")+1:], "x")
		value, err := strconv.ParseFloat(last, 64)
		if err != nil {
			t.Fatalf("%s: %s ends with %q", recordedRun, series, last)
		}
		all[series] = value
	}
	return all
}

// rule is an alert, as Prometheus reads it.
type rule struct {
	Alert, Expr, For string
	Annotations      map[string]string
}

func alertRules(t *testing.T) (rules []rule) {
	t.Helper()
	var file struct {
		Groups []struct{ Rules []rule }
	}
	if err := yaml.Unmarshal([]byte(readDocument(t, "examples/observe/rules.yml")), &file); err != nil {
		t.Fatal(err)
	}
	for _, group := range file.Groups {
		rules = append(rules, group.Rules...)
	}
	return slices.DeleteFunc(rules, func(r rule) bool { return r.Alert == "" })
}

// The alerts in docs/operations.md are those of the example's rules.
func TestRulesAreTheManuals(t *testing.T) {
	var table strings.Builder
	table.WriteString("| alert | if | for | then |\n|---|---|---|---|\n")
	for _, r := range alertRules(t) {
		fmt.Fprintf(&table, "| `%s` | `%s` |%s| %s\n", r.Alert, r.Expr, strings.TrimSuffix(" "+r.For, " ")+" ", strings.TrimSuffix(r.Annotations["summary"], "."))
	}
	_, section, _ := strings.Cut(readDocument(t, "docs/operations.md"), "\n### Alerts\n")
	section, _, _ = strings.Cut(section, "\n### ")
	// A row says more than the rule: what to do.
	rest := section
	for row := range strings.Lines(table.String()) {
		row = strings.TrimSuffix(row, "\n")
		_, after, found := strings.Cut(rest, "\n"+row)
		if !found {
			t.Errorf("the table of alerts in docs/operations.md has no row, or has it at another place, that begins\n%s", row)
			continue
		}
		rest = after
	}
	if rows := strings.Count(section, "\n| "); rows != strings.Count(table.String(), "\n| ")+1 {
		t.Errorf("the table of alerts in docs/operations.md has %d rows, and examples/observe/rules.yml has %d alerts", rows-1, len(alertRules(t)))
	}
}

// The dashboard has every metric of the gateway, which the manual has, and neither it nor the rules have any
// that don't exist. That labels exist, and that expressions are right, is checked in .ci/promql.
func TestDashboardHasEveryMetric(t *testing.T) {
	exist := make(map[string]bool)
	for series := range readRecord(t) {
		name, _, _ := strings.Cut(series, "{")
		exist[name] = true
	}
	must := maps.Clone(exist)
	for _, name := range regexp.MustCompile(`(?m)^\| `+"`(caddy_oauth_[a-z_]+)` ").FindAllStringSubmatch(readDocument(t, "docs/operations.md"), -1) {
		must[name[1]] = true
	}
	used := make(map[string]bool)
	for _, file := range []string{"rules.yml", "dashboard.json"} {
		for _, name := range regexp.MustCompile(`[a-zA-Z_:]*(?:caddy|process)_[a-z0-9_]*[a-zA-Z0-9_:]*`).FindAllString(readDocument(t, "examples/observe/"+file), -1) {
			if strings.Contains(name, ":") { // what a rule records
				continue
			}
			if !exist[name] {
				t.Errorf("examples/observe/%s has %s, which no gateway has", file, name)
			}
			if file == "dashboard.json" {
				used[family(name)] = true
			}
		}
	}
	for name := range must {
		if !used[family(name)] {
			t.Errorf("%s is not on the dashboard; put it there, with a panel that says what it is good for", name)
		}
	}
}

// The dashboard can be imported into any Grafana: it names no data source of ours.
func TestDashboardIsImportable(t *testing.T) {
	var dashboard struct {
		Title, UID string
		ID         *int
		Templating struct {
			List []struct{ Name, Type string }
		}
		Panels []struct {
			ID                 int
			Title, Description string
			Type               string
			Datasource         struct{ UID string }
			Targets            []struct {
				Expr       string
				Datasource struct{ UID string }
			}
		}
	}
	if err := json.Unmarshal([]byte(readDocument(t, "examples/observe/dashboard.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	if dashboard.ID != nil || dashboard.UID == "" || len(dashboard.Templating.List) == 0 || dashboard.Templating.List[0].Name != "datasource" || dashboard.Templating.List[0].Type != "datasource" {
		t.Errorf("it has the id %v, the uid %q and the variables %v", dashboard.ID, dashboard.UID, dashboard.Templating.List)
	}
	titles, ids := make(map[string]bool), make(map[int]bool)
	for _, p := range dashboard.Panels {
		if titles[p.Title] || ids[p.ID] || p.Title == "" {
			t.Errorf("there are two panels %q, or two with its ID %d", p.Title, p.ID)
		}
		titles[p.Title], ids[p.ID] = true, true
		if p.Type == "row" {
			continue
		}
		if p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("%s: the data source is %q, and there are %d expressions", p.Title, p.Datasource.UID, len(p.Targets))
		}
		for _, target := range p.Targets {
			if target.Datasource.UID != "${datasource}" || !strings.Contains(target.Expr, `instance=~"$instance"`) {
				t.Errorf("%s asks %q about all gateways: %s", p.Title, target.Datasource.UID, target.Expr)
			}
		}
	}
}

// Prometheus scrapes the example's gateway, and reads its rules.
func TestPrometheusScrapesTheExample(t *testing.T) {
	var config struct {
		RuleFiles     []string `yaml:"rule_files"`
		ScrapeConfigs []struct {
			JobName       string                       `yaml:"job_name"`
			StaticConfigs []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	if err := yaml.Unmarshal([]byte(readDocument(t, "examples/observe/prometheus.yml")), &config); err != nil {
		t.Fatal(err)
	}
	if len(config.RuleFiles) != 1 || config.RuleFiles[0] != "rules.yml" || len(config.ScrapeConfigs) != 1 || len(config.ScrapeConfigs[0].StaticConfigs) != 1 {
		t.Fatalf("the configuration is %+v", config)
	}
	scrape := config.ScrapeConfigs[0]
	_, port, _ := strings.Cut(scrape.StaticConfigs[0].Targets[0], ":")
	if !strings.Contains(readDocument(t, "examples/observe/Caddyfile"), "\n:"+port+" {\n\tbind 127.0.0.1\n\tmetrics /metrics\n}\n") {
		t.Errorf("there are no metrics at port %s", port)
	}
	if !strings.Contains(readDocument(t, "examples/observe/rules.yml"), `up{job="`+scrape.JobName+`"}`) {
		t.Errorf("no rule watches the job %s", scrape.JobName)
	}
}
