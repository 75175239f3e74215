package caddyoauth_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/caddyoauth/gateway/caddyoauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
)

// eventsIn returns the events of that name in a log file, with those that the gateway has still to
// write.
func eventsIn(t *testing.T, file, name string) (events []map[string]any) {
	t.Helper()
	caddyoauth.WriteEvents()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var fields map[string]any
		if json.Unmarshal([]byte(line), &fields) == nil && fields["event"] == name {
			events = append(events, fields)
		}
	}
	return events
}

// signedBy returns a JWT with this header.
func signedBy(t *testing.T, key ed25519.PrivateKey, kid, typ, claims string) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, (&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign([]byte(claims))
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// Each cause for which a route refuses a request has its event, its count and its place in the
// access log, and the caller sees none of it: whatever is wrong with a token, the answer is the
// same.
func TestEachRefusalHasItsCause(t *testing.T) {
	f := newForeign(t)
	dir := t.TempDir()
	log, accessLog := filepath.Join(dir, "log"), filepath.Join(dir, "access")
	client := func(id, more string) string {
		return "client " + id + " {\nsecret_hash " + hashOf(testSecret) + "\nscopes read\ndefault_scopes read\n" + more + "\n}\n"
	}
	realms := func(clients string) string {
		return "store memory\n" + clients + "realm other {\n" + client("alien", "") + "}\n"
	}
	const steady = "reader"
	site := "log {\noutput file " + accessLog + "\n}\nmetrics /metrics\noauth_server\n"
	for path, block := range map[string]string{
		"own": "", "audience": "audience https://a.example.com", "scope": "scopes write", "claim": "claim tenant a",
		"introspect": f.introspect(""), "jwt": f.jwtSource(), "jwt-claim": f.jwtSource() + "\nclaim tenant a", "all": f.sources(""),
	} {
		realm := " root"
		if path == "introspect" || strings.HasPrefix(path, "jwt") {
			realm = ""
		}
		site += "handle_path /" + path + "/* {\noauth_protect" + realm + " {\n" + block + "\n}\nrespond 200\n}\n"
	}
	config := func(clients string) string { return logTo(log, caddyfileOf(realms(clients), site)) }
	all := client(steady, "") + client("brief", "token_lifetime 1s") + client("moved", "audience https://b.example.com")
	before := all + client("gone", "") + client("off", "") + client("back", "")
	g := startCaddyfile(t, config(before))

	tokens := make(map[string]string)
	for _, id := range []string{steady, "brief", "moved", "gone", "off", "back", "revoked"} {
		from := id
		if id == "revoked" {
			from = steady
		}
		// Into the cache. On a busy machine, a token of brief may be dead before.
		waitUntil(t, "a token of "+id+" is good", func() bool {
			tokens[id] = g.token(from)
			return g.get("/own/x", tokens[id]).StatusCode == 200
		})
	}
	issued := time.Now()
	g.revoke(steady, tokens["revoked"])
	alien := g.fetchAt("/oauth2/realms/root/realms/other", "alien", "read")
	if err := g.loadCaddyfile(config(all + client("gone", "") + client("off", ""))); err != nil {
		t.Fatal(err)
	}
	if err := g.loadCaddyfile(config(all + client("off", "disabled") + client("back", ""))); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(issued.Add(1100 * time.Millisecond))) // the token with a lifetime of 1s expires, which nothing tells

	claims := func(more string) string {
		return `{"iss":"https://issuer.example.com","aud":"api","client_id":"signed","exp":4102444800` + more + `}`
	}
	_, stranger, _ := ed25519.GenerateKey(rand.Reader)
	hmac := func() string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte("0123456789abcdef0123456789abcdef")}, (&jose.SignerOptions{}).WithType("at+jwt"))
		if err != nil {
			t.Fatal(err)
		}
		signed, _ := signer.Sign([]byte(claims("")))
		token, _ := signed.CompactSerialize()
		return token
	}()
	if a := g.get("/jwt/x", f.signs(t, claims(""))); a.StatusCode != 200 {
		t.Fatalf("a good JWT: %d", a.StatusCode)
	}
	answers := map[string]string{
		"remote-expired": `{"active":true,"client_id":"c","exp":1}`, "remote-bound": `{"active":true,"client_id":"c","cnf":{"jkt":"x"}}`,
		"remote-early":   fmt.Sprintf(`{"active":true,"client_id":"c","nbf":%d}`, time.Now().Add(time.Hour).Unix()),
		"remote-refresh": `{"active":true,"client_id":"c","token_type":"refresh_token"}`,
		"remote-nobody":  `{"active":true}`, "remote-unfit": `{"active":true,"client_id":"a\u0007b"}`,
		"remote-scope": `{"active":true,"client_id":"c","scope":"read","iss":"https://as.example.com"}`,
	}
	lookalike := "coa_" + strings.Repeat("B", 60)
	answers[lookalike] = `{"active":true,"iss":"https://as.example.com"}`
	for token, answer := range answers {
		f.knows(token, answer)
	}

	type row struct {
		name, path, token, cause string
		fields                   map[string]any // some that the event must have
	}
	rows := []row{
		{"no token", "own", "", "missing", nil},
		{"impossible characters", "own", "$$$", "malformed", nil},
		{"too long", "own", strings.Repeat("x", 16<<10+1), "token_too_long", nil},
		{"none of ours", "own", "garbage", "no_source", nil},
		{"a JWT where none is accepted", "own", f.jwt(t, ""), "no_source", map[string]any{"issuer": "https://issuer.example.com"}},
		{"our form without our mark", "own", "coa_" + strings.Repeat("A", 60), "forged", nil},
		{"our form without our mark, and somebody else to ask", "all", "coa_" + strings.Repeat("A", 60), "unknown", nil},
		{"of another realm", "own", alien, "other_realm", nil},
		{"of another realm, several sources", "all", alien, "other_realm", nil},
		{"of our realm, where it is not accepted", "introspect", tokens[steady], "other_realm", nil},
		{"expired", "own", tokens["brief"], "expired", nil},
		{"expired, several sources", "all", tokens["brief"], "expired", nil},
		{"revoked", "own", tokens["revoked"], "revoked", nil},
		{"a client that is gone", "own", tokens["gone"], "client_removed", map[string]any{"client_id": "gone"}},
		{"a client that is disabled", "own", tokens["off"], "client_disabled", map[string]any{"client_id": "off"}},
		{"a client that was away", "own", tokens["back"], "client_generation", map[string]any{"client_id": "back"}},
		{"another audience", "audience", tokens["moved"], "audience", map[string]any{"client_id": "moved", "want": []any{"https://a.example.com"}, "has": []any{"https://b.example.com"}}},
		{"too little scope", "scope", tokens[steady], "scope", map[string]any{"client_id": steady, "want": []any{"write"}, "has": []any{"read"}}},
		{"a claim too little", "claim", tokens[steady], "claim", map[string]any{"client_id": steady, "claim": "tenant", "want": []any{"a"}}},
		{"another value of a claim", "jwt-claim", f.signs(t, claims(`,"tenant":"personal-data"`)), "claim", map[string]any{"client_id": "signed", "claim": "tenant", "want": []any{"a"}}},

		{"unknown to the other server", "introspect", "made-up", "unknown", nil},
		{"unknown, remembered", "introspect", "made-up", "unknown", nil},
		{"expired, says the other server", "introspect", "remote-expired", "expired", nil},
		{"expired, remembered", "introspect", "remote-expired", "expired", nil},
		{"bound", "introspect", "remote-bound", "binding", nil},
		{"not good yet", "introspect", "remote-early", "not_yet", nil},
		{"a refresh token", "introspect", "remote-refresh", "kind", nil},
		{"naming nobody", "introspect", "remote-nobody", "names_nobody", nil},
		{"in our form, and another server's", "introspect", lookalike, "names_nobody", map[string]any{"issuer": "https://as.example.com"}},
		{"a name with a bell", "introspect", "remote-unfit", "unfit_for_headers", map[string]any{"client_id": "a%07b"}},

		{"no JWT", "jwt", "garbage", "no_source", nil},
		{"another issuer", "jwt", f.signs(t, strings.Replace(claims(""), "issuer.", "other.", 1)), "issuer", map[string]any{"issuer": "https://other.example.com"}},
		{"another issuer, and somebody else to ask", "all", f.signs(t, strings.Replace(claims(""), "issuer.", "other.", 1)), "unknown", map[string]any{"issuer": "https://other.example.com"}},
		{"without exp", "jwt", f.signs(t, `{"iss":"https://issuer.example.com","aud":"api","client_id":"x"}`), "malformed", map[string]any{"issuer": "https://issuer.example.com"}},
		{"another typ", "jwt", signedBy(t, f.key, f.kid, "JWT", claims("")), "typ", nil},
		{"another alg", "jwt", hmac, "alg", nil},
		{"an unknown key", "jwt", signedBy(t, stranger, "unknown", "at+jwt", claims("")), "unknown_key", nil},
		{"a wrong signature", "jwt", signedBy(t, stranger, f.kid, "at+jwt", claims("")), "signature", nil},
		{"for others", "jwt", f.signs(t, strings.Replace(claims(""), `"api"`, `"web"`, 1)), "audience", nil},
		{"an expired JWT", "jwt", f.signs(t, strings.Replace(claims(""), "4102444800", "1", 1)), "expired", nil},
		{"a JWT from the future", "jwt", f.signs(t, claims(`,"nbf":4102444799`)), "not_yet", nil},
		{"a bound JWT", "jwt", f.signs(t, claims(`,"cnf":{}`)), "binding", nil},
		{"an ID token", "jwt", f.signs(t, claims(`,"at_hash":"x"`)), "kind", nil},
	}
	results := make(map[string]string)
	for _, e := range access.Explanations {
		results[string(e.Cause)] = string(e.Result)
	}
	told := make(map[string]string) // what callers saw, by result
	for i, c := range rows {
		realm := "root"
		if c.path == "introspect" || strings.HasPrefix(c.path, "jwt") {
			realm = "External"
		}
		series := fmt.Sprintf(`caddy_oauth_bearer_checks_total{cause=%q,realm=%q,result=%q}`, c.cause, realm, results[c.cause])
		counted := g.metricOf(series)
		r := g.request("GET", fmt.Sprintf("/%s/row%d?secret=in-the-query", c.path, i), "")
		if c.token != "" {
			r.Header.Set("Authorization", "Bearer "+c.token)
		}
		a := g.do(r)
		a.Header.Del("Date")
		saw := fmt.Sprint(a.StatusCode, strings.Replace(fmt.Sprint(a.Header), "External", "root", 1), a.Body)
		if first, ok := told[results[c.cause]]; ok && saw != first && c.cause != "scope" {
			t.Errorf("%s: the caller sees\n%s, and with another cause\n%s", c.name, saw, first)
		}
		told[results[c.cause]] = saw
		if n := g.metricOf(series) - counted; n != 1 {
			t.Errorf("%s: %s went up by %v, want 1", c.name, series, n)
		}
		if strings.Contains(saw, c.cause) && c.cause != "scope" && c.cause != "claim" && c.cause != "missing" {
			t.Errorf("%s: the caller is told: %s", c.name, saw)
		}
	}

	waitUntil(t, "the access log has all requests", func() bool {
		text, _ := os.ReadFile(accessLog)
		return strings.Contains(string(text), fmt.Sprintf("/row%d?", len(rows)-1))
	})
	text, _ := os.ReadFile(accessLog)
	byPath := make(map[string]map[string]any)
	for _, event := range eventsIn(t, log, "request_refused") {
		byPath[event["path"].(string)] = event
	}
	for i, c := range rows {
		path := fmt.Sprintf("/%s/row%d", c.path, i)
		event := byPath[path]
		if event == nil {
			t.Errorf("%s: no event", c.name)
			continue
		}
		if strings.Contains(fmt.Sprint(event), "in-the-query") {
			t.Errorf("%s: the event holds the query: %v", c.name, event)
		}
		want := map[string]any{"cause": c.cause, "error": results[c.cause], "method": "GET", "remote_ip": "127.0.0.1", "level": "info"}
		maps.Copy(want, c.fields)
		for name, value := range want {
			if fmt.Sprint(event[name]) != fmt.Sprint(value) {
				t.Errorf("%s: the event has %s %v, want %v", c.name, name, event[name], value)
			}
		}
		if rule, _ := event["rule"].(string); !strings.HasPrefix(rule, "Caddyfile:") {
			t.Errorf("%s: the rule is %q", c.name, rule)
		}
		if _, has := event["has"]; has != (c.cause == "scope" || c.cause == "audience" && event["want"] != nil) {
			t.Errorf("%s: what the token has is logged: %v, %v", c.name, has, event["has"])
		}
		// What nobody recognized may be a password, so not even its hash is logged, unless it looks like
		// a token.
		recognized := !slices.Contains([]string{"missing", "token_too_long", "no_source", "malformed", "unknown"}, c.cause) ||
			strings.HasPrefix(c.token, "coa_") || event["issuer"] != nil
		if id, there := event["token_id"].(string); there != recognized || there && len(id) != 64 {
			t.Errorf("%s: the token's ID is %q", c.name, id)
		}
		found := false
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, path+"?") {
				found = strings.Contains(line, fmt.Sprintf(`"cause":%q`, c.cause)) && strings.Contains(line, fmt.Sprintf(`"error":%q`, results[c.cause]))
			}
		}
		if !found {
			t.Errorf("%s: the access log lacks the cause %s", c.name, c.cause)
		}
	}
	both, _ := os.ReadFile(log)
	if strings.Contains(string(both), "personal-data") {
		t.Error("the log holds the value of a token's claim")
	}
	for _, c := range rows {
		if len(c.token) > 10 && strings.Contains(string(both), c.token) {
			t.Errorf("%s: the log holds the token", c.name)
		}
	}
}

// An outage and a broken header have their causes too.
func TestRefusalsWithoutATokenHaveTheirCause(t *testing.T) {
	f := newForeign(t)
	log := filepath.Join(t.TempDir(), "log")
	g := startCaddyfile(t, logTo(log, caddyfileOf("", "log\noauth_protect {\n"+f.introspect("")+"}\nrespond 200")))
	f.away.Store(true)
	if a := g.get("/outage", "token"); a.StatusCode != 503 {
		t.Errorf("an outage: %d", a.StatusCode)
	}
	r := g.request("GET", "/twice", "")
	r.Header["Authorization"] = []string{"Bearer a", "Bearer b"}
	if a := g.do(r); a.StatusCode != 400 {
		t.Errorf("two tokens: %d", a.StatusCode)
	}
	if a := g.rawRequest("GET //path"); a.StatusCode != 400 {
		t.Errorf("an ambiguous path: %d", a.StatusCode)
	}
	if a := g.rawRequest("CONNECT example.com:443"); a.StatusCode != http.StatusNotImplemented {
		t.Errorf("a tunnel: %d", a.StatusCode)
	}
	got := make(map[string]string)
	for _, event := range eventsIn(t, log, "request_refused") {
		got[event["path"].(string)] = event["cause"].(string)
	}
	for _, event := range eventsIn(t, log, "request_refused") {
		if event["token_id"] != nil {
			t.Errorf("the hash of what may be a password is logged: %v", event)
		}
	}
	want := map[string]string{"/outage": "outage", "/twice": "malformed_authorization", "//path": "ambiguous_path", "": "tunnel"}
	if !maps.Equal(got, want) {
		t.Errorf("the causes are %v, want %v", got, want)
	}
	for cause, result := range map[string]string{"outage": "temporarily_unavailable", "malformed_authorization": "invalid_request", "ambiguous_path": "ambiguous_path", "tunnel": "tunnel"} {
		waitUntil(t, "the access log has error and cause of "+cause, func() bool {
			text, _ := os.ReadFile(log)
			for line := range strings.Lines(string(text)) {
				if strings.Contains(line, `"http.log.access`) && strings.Contains(line, fmt.Sprintf(`"error":%q,"cause":%q`, result, cause)) {
					return true
				}
			}
			return false
		})
	}
}

// A caller that hangs up while its token is checked is no outage, so it can't raise the alert for one.
func TestACallerThatHangsUpIsNoOutage(t *testing.T) {
	f := newForeign(t)
	log := filepath.Join(t.TempDir(), "log")
	g := startCaddyfile(t, logTo(log, caddyfileOf("", "metrics /metrics\noauth_protect /slow {\n"+f.introspect("")+"}\nrespond /slow 200")))
	outage := `caddy_oauth_bearer_checks_total{cause="outage",realm="External",result="temporarily_unavailable"}`
	canceled := `caddy_oauth_bearer_checks_total{cause="canceled",realm="External",result="canceled"}`
	counted, outages := g.metricOf(canceled), g.metricOf(outage)
	f.mu.Lock() // the other server is slow
	goesOn := sync.OnceFunc(f.mu.Unlock)
	defer goesOn()
	hasty, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	f.reached.Store(&hangUp)
	if a, err := g.try(g.request("GET", "/slow", "", "Authorization", "Bearer slow").WithContext(hasty)); err == nil {
		t.Errorf("the slow server: %d", a.StatusCode)
	}
	waitUntil(t, "the refusal is logged", func() bool { return len(eventsIn(t, log, "request_refused")) == 1 })
	goesOn()
	if event := eventsIn(t, log, "request_refused")[0]; event["status"] != 503.0 || event["error"] != "canceled" {
		t.Errorf("a caller that hangs up: %v", event)
	}
	if now, then := g.metricOf(canceled), g.metricOf(outage); now != counted+1 || then != outages {
		t.Errorf("a caller that hangs up: %s went up by %v, and outages by %v", canceled, now-counted, then-outages)
	}
}

// Nor is one that hangs up while its token is stored.
func TestAClientThatHangsUpIsNoOutage(t *testing.T) {
	stored := make(chan struct{})
	waits := func(ctx context.Context, method string) error {
		if method != "Put" {
			return nil
		}
		close(stored)
		<-ctx.Done()
		return ctx.Err()
	}
	log := filepath.Join(t.TempDir(), "log")
	g := startCaddyfile(t, logTo(log, caddyfileOf("store outage\n"+testClients, "metrics /metrics\noauth_server")))
	caddyoauth.Outage.Store(&waits)
	t.Cleanup(func() { caddyoauth.Outage.Store(nil) })
	requests := func(result string) float64 {
		return metric(t, "caddy_oauth_requests_total", "endpoint", "token", "result", result)
	}
	puts := func(result string) float64 {
		return metric(t, "caddy_oauth_store_duration_seconds", "operation", "put", "result", result)
	}
	before := []float64{requests("canceled"), puts("canceled"), requests("temporarily_unavailable"), puts("error")}
	hasty, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	go func() { <-stored; hangUp() }()
	if a, err := g.try(g.posting("/oauth2/token", "reader", testSecret, url.Values{"grant_type": {"client_credentials"}}).WithContext(hasty)); err == nil {
		t.Errorf("the client has an answer: %d", a.StatusCode)
	}
	waitUntil(t, "the refusal is logged", func() bool { return len(eventsIn(t, log, "token_refused")) == 1 })
	if event := eventsIn(t, log, "token_refused")[0]; event["error"] != "canceled" || event["reason"] != "canceled" {
		t.Errorf("a client that hangs up: %v", event)
	}
	want := []float64{before[0] + 1, before[1] + 1, before[2], before[3]}
	if got := []float64{requests("canceled"), puts("canceled"), requests("temporarily_unavailable"), puts("error")}; !slices.Equal(got, want) {
		t.Errorf("requests and writes that are canceled, and outages: %v, want %v", got, want)
	}
}

// A flood of refusals fills no disk, hides no refusal with another cause, and is counted.
func TestAFloodOfRefusalsIsSummedUp(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	g := startCaddyfile(t, logTo(log, caddyfileOf("store memory\n"+testClients, "oauth_protect\nrespond 200")))
	const flood = 300
	begin := time.Now()
	for range flood {
		g.get("/flood", "garbage")
	}
	g.get("/alone", "")
	seconds := int(time.Since(begin)/time.Second) + 1
	written, left := 0, 0
	waitUntil(t, "every refusal is written or counted", func() bool {
		written, left = 0, 0
		for _, event := range eventsIn(t, log, "request_refused") {
			if event["cause"] == "no_source" {
				written++
			}
		}
		for _, event := range eventsIn(t, log, "events_left_out") {
			causes := event["causes"].(map[string]any)
			if n, _ := causes["no_source"].(float64); len(causes) != 1 || event["count"] != n || event["realm"] != "root" || event["rule"] == "" {
				t.Errorf("the summary is %v", event)
			}
			left += int(event["count"].(float64))
		}
		return written+left == flood
	})
	if written < 10 || written > 10*seconds {
		t.Errorf("%d of %d refusals in %d s are written in full, want 10 a second", written, flood, seconds)
	}
	if alone := eventsIn(t, log, "request_refused"); alone[len(alone)-1]["cause"] != "missing" {
		t.Error("the flood hides a refusal with another cause")
	}
}

// What was left out when a configuration ends is written then.
func TestAFloodIsSummedUpWhenTheConfigurationEnds(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	config := logTo(log, caddyfileOf("store memory\n"+testClients, "oauth_protect\nrespond 200"))
	g := startCaddyfile(t, config)
	for range 50 {
		g.get("/flood", "garbage")
	}
	if err := g.loadCaddyfile(config); err != nil {
		t.Fatal(err)
	}
	written := len(eventsIn(t, log, "request_refused"))
	for _, event := range eventsIn(t, log, "events_left_out") {
		written += int(event["count"].(float64))
	}
	if written != 50 {
		t.Errorf("%d refusals are written or counted, want 50", written)
	}
}

// The manual explains each cause in the words of the code, and no others.
func TestTheManualExplainsEachCause(t *testing.T) {
	var table strings.Builder
	table.WriteString("| `cause` | `error` | what it means | what to do |\n|---|---|---|---|\n")
	for _, e := range access.Explanations {
		fmt.Fprintf(&table, "| `%s` | `%s` | %s | %s |\n", e.Cause, e.Result, e.Means, e.Do)
	}
	if !strings.Contains(readDocument(t, "docs/operations.md"), "\n\n"+table.String()+"\n") {
		t.Errorf("docs/operations.md needs this table of causes:\n%s", table.String())
	}
}

// What is kept from backends where no token is asked for is counted and logged too.
func TestWhatTheGuardDoesIsCountedAndLogged(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	g := startCaddyfile(t, logTo(log, caddyfileOf("store memory\n"+testClients, "metrics /metrics\noauth_server\noauth_protect /private/*\nroute /twice {\noauth_protect\noauth_protect\nrespond 200\n}\nrespond /p* 200")))
	token := g.token("reader")
	type seen struct{ event, cause string }
	for _, c := range []struct {
		name, request string
		headers       []string
		status        int
		want          []seen // in the order of time
	}{
		{"nothing special", "GET /public", nil, 200, nil},
		{"with a token", "GET /private/x", []string{"Authorization: Bearer " + token}, 200, nil},
		{"past two handlers, with the names that the first has set", "GET /twice", []string{"Authorization: Bearer " + token}, 200, nil},
		{"an ambiguous path", "GET /public/..%2fprivate/x", nil, 400, []seen{{"request_refused", "ambiguous_path"}}},
		{"a tunnel", "CONNECT example.com:443", nil, 501, []seen{{"request_refused", "tunnel"}}},
		{"a name of its own", "GET /public", []string{"X-OAuth-Client-Id: admin"}, 200, []seen{{"request_stripped", "identity_header"}}},
		{"a name that is read as one", "GET /public", []string{"X!OAuth!Client!Id: admin"}, 200, []seen{{"request_stripped", "identity_header"}}},
		{"another HTTP", "GET /public", []string{"Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"}, 200, []seen{{"request_stripped", "upgrade"}}},
		{"another protocol, with a token", "GET /private/x", []string{"Connection: Upgrade", "Upgrade: foo", "Authorization: Bearer " + token}, 200, []seen{{"request_stripped", "upgrade"}}},
		{"a WebSocket", "GET /public", []string{"Connection: Upgrade", "Upgrade: websocket"}, 200, nil},
		{"both", "GET /public", []string{"X-OAuth-Subject: admin", "Connection: Upgrade", "Upgrade: TLS/1.2"}, 200, []seen{{"request_stripped", "identity_header"}, {"request_stripped", "upgrade"}}},
	} {
		if slices.ContainsFunc(c.want, func(s seen) bool { return s.event == "request_stripped" }) {
			time.Sleep(time.Second) // only one of a cause is written a second
		}
		series := func(cause string) string { return `caddy_oauth_guard_total{cause="` + cause + `"}` }
		counts := make(map[string]float64)
		for _, cause := range []string{"ambiguous_path", "tunnel", "identity_header", "upgrade"} {
			counts[cause] = g.metricOf(series(cause))
		}
		before := len(eventsIn(t, log, "request_refused")) + len(eventsIn(t, log, "request_stripped"))
		if a := g.rawRequest(c.request, c.headers...); a.StatusCode != c.status {
			t.Errorf("%s: %d, want %d", c.name, a.StatusCode, c.status)
		}
		var got []seen
		for _, name := range []string{"request_refused", "request_stripped"} {
			for _, event := range eventsIn(t, log, name) {
				got = append(got, seen{name, event["cause"].(string)})
				if strings.Contains(fmt.Sprint(event), "admin") {
					t.Errorf("%s: the event holds a header's value: %v", c.name, event)
				}
				if event["remote_ip"] != "127.0.0.1" || event["rule"] == nil {
					t.Errorf("%s: %v", c.name, event)
				}
			}
		}
		if len(got) != before+len(c.want) {
			t.Errorf("%s: %d events more, want %v", c.name, len(got)-before, c.want)
		}
		for _, want := range c.want {
			counts[want.cause]++
			if !slices.Contains(got, want) {
				t.Errorf("%s: no event %v", c.name, want)
			}
		}
		for cause, n := range counts {
			if now := g.metricOf(series(cause)); now != n {
				t.Errorf("%s: %s is %v, want %v", c.name, series(cause), now, n)
			}
		}
	}
}

// On an error route, what is removed are the names that oauth_protect has set itself: an outage of
// the backend must not look like an attack by the caller.
func TestErrorRoutesBlameNobodyForOurHeaders(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	site := "metrics /metrics\noauth_server\noauth_protect /private/*\nerror /private/* 502\nhandle_errors {\noauth_protect /admin*\nrespond 502\n}"
	g := startCaddyfile(t, logTo(log, caddyfileOf("store memory\n"+testClients, site)))
	const count = `caddy_oauth_guard_total{cause="identity_header"}`
	before := g.metricOf(count)
	if a := g.get("/private/x", g.token("reader")); a.StatusCode != 502 {
		t.Errorf("a backend that is away: %d", a.StatusCode)
	}
	if n := g.metricOf(count) - before; n != 0 {
		t.Errorf("%v requests with made-up names were counted, and there was none", n)
	}
	if events := eventsIn(t, log, "request_stripped"); len(events) != 0 {
		t.Errorf("the caller is blamed: %v", events)
	}
}

// A configuration that was a Caddyfile names the line. Of any other, the event has the position of
// the route, and in a named route only the server, with error routes beside it, too.
func TestTheRuleIsALineOrARoute(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	text := caddyfileOf("store memory\n"+testClients, "handle /here {\noauth_protect\n}\ninvoke /named named\nhandle_errors {\nrespond 401\n}")
	text = logTo(log, text+"&(named) {\noauth_protect\n}\n")
	g := startCaddyfile(t, text)
	g.get("/named", "")
	g.get("/here", "")
	config, err := adapt(t, formatted(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.loadJSON(withoutPlaces(t, config)); err != nil {
		t.Fatal(err)
	}
	g.get("/named", "")
	g.get("/here", "")
	line := func(what string, after int) string {
		at := after + strings.Index(text[after:], what)
		return fmt.Sprintf("Caddyfile:%d", 1+strings.Count(text[:at], "\n"))
	}
	want := []string{line("oauth_protect", strings.Index(text, "&(named)")), line("oauth_protect", 0), "srv0", "srv0/routes/1/routes/0"}
	var got []string
	for _, event := range eventsIn(t, log, "request_refused") {
		got = append(got, fmt.Sprint(event["rule"]))
	}
	// Each handler writes its own events in order.
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the rules are %q, want %q", got, want)
	}
}

// A caller that always sends an identity header fills no disk, and is counted.
func TestStrippedRequestsAreSummedUp(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	g := startCaddyfile(t, logTo(log, caddyfileOf("store memory\n"+testClients, "oauth_protect /private/*\nrespond 200")))
	const flood = 100
	begin := time.Now()
	for range flood {
		g.do(g.request("GET", "/public", "", "X-OAuth-Client-Id", "admin"))
	}
	seconds := int(time.Since(begin)/time.Second) + 1
	written, left := 0, 0
	waitUntil(t, "every request is written or counted", func() bool {
		written, left = len(eventsIn(t, log, "request_stripped")), 0
		for _, event := range eventsIn(t, log, "events_left_out") {
			left += int(event["causes"].(map[string]any)["identity_header"].(float64))
		}
		return written+left == flood
	})
	if written > seconds {
		t.Errorf("%d of %d events in %d s are written, want one a second", written, flood, seconds)
	}
}
