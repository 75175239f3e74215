package caddyoauth_test

import (
	"maps"
	"net/url"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// clientSeries returns the series of the metrics about clients in Caddy's registry: labels as in
// `realm/client/…`, and what they count.
func clientSeries(t *testing.T, name string, labels ...string) map[string]float64 {
	t.Helper()
	ctx := caddy.ActiveContext()
	families, err := ctx.GetMetricsRegistry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := make(map[string]float64)
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			have := make(map[string]string)
			for _, pair := range m.GetLabel() {
				have[pair.GetName()] = pair.GetValue()
			}
			var key []string
			for _, label := range labels {
				key = append(key, have[label])
			}
			series[strings.Join(key, "/")] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return series
}

func clientRequests(t *testing.T) map[string]float64 {
	t.Helper()
	return clientSeries(t, "caddy_oauth_client_requests_total", "realm", "client_id", "endpoint", "result")
}

func clientChecks(t *testing.T) map[string]float64 {
	t.Helper()
	return clientSeries(t, "caddy_oauth_client_checks_total", "realm", "client_id", "result", "cause")
}

// ownChecks leaves out the clients of tokens from elsewhere.
func ownChecks(t *testing.T) map[string]float64 {
	t.Helper()
	all := clientChecks(t)
	maps.DeleteFunc(all, func(series string, _ float64) bool { return strings.HasPrefix(series, "External/") })
	return all
}

func foreignChecks(t *testing.T) float64 {
	t.Helper()
	return clientChecks(t)["External/External/ok/"]
}

func expectSeries(t *testing.T, what string, have, want map[string]float64) {
	t.Helper()
	if !maps.Equal(have, want) {
		t.Errorf("%s: %v, want %v", what, have, want)
	}
}

const countedClients = `
client one {
	secret_hash SECRET
	scopes a b
	default_scopes a
}
client two {
	secret_hash SECRET until 2099-12-31T23:59:59Z
	secret_hash SECRET2
	scopes a
	default_scopes a
}
client off {
	secret_hash SECRET
	disabled
}
realm other {
	client one {
		secret_hash SECRET
		scopes a
		default_scopes a
	}
}
`

func counted(clients string) string {
	return "store memory\n" + strings.NewReplacer("SECRET2", hashOf("another"), "SECRET", hashOf(testSecret)).Replace(clients)
}

// What a client does is counted under its realm and ID. What nobody can be blamed for is not.
func TestClientsAreCounted(t *testing.T) {
	server := junkServer(t, nil, nil)
	site := "oauth_server\nroute /a {\noauth_protect {\nscopes a\n}\nrespond ok\n}\nroute /b {\noauth_protect {\nscopes b\n}\nrespond ok\n}\n" +
		"route /far {\noauth_protect {\nsource local\nsource introspect " + server.URL + "\n}\nrespond ok\n}\nroute /other {\noauth_protect other\nrespond ok\n}"
	g := startGateway(t, counted(countedClients), site)
	expectSeries(t, "requests before any", clientRequests(t), map[string]float64{})
	foreign := foreignChecks(t) // they outlive the configurations of other tests
	expectSeries(t, "checks before any", ownChecks(t), map[string]float64{"root/one/ok/": 0, "root/two/ok/": 0, "root/off/ok/": 0, "other/one/ok/": 0})

	grant := url.Values{"grant_type": {"client_credentials"}}
	one, two := g.token("one"), g.token("two")
	other := g.fetchAt("/oauth2/realms/root/realms/other", "one", "a")
	g.post("/oauth2/token", "one", "wrong", grant)
	g.post("/oauth2/token", "one", testSecret, url.Values{"grant_type": {"client_credentials"}, "scope": {"nothing"}})
	g.post("/oauth2/token", "off", testSecret, grant)
	g.post("/oauth2/token", "nobody", testSecret, grant)
	g.do(g.request("POST", "/oauth2/token", "grant_type=client_credentials", "Content-Type", "text/plain"))
	g.introspect("two", two)
	g.introspect("two", one)
	g.introspect("two", "junk")
	g.revoke("two", "junk")
	expectSeries(t, "requests", clientRequests(t), map[string]float64{
		"root/one/token/ok": 1, "root/one/token/wrong_secret": 1, "root/one/token/invalid_scope": 1,
		"root/two/token/ok": 1, "root/two/introspect/ok": 1, "root/two/introspect/not_permitted": 1, "root/two/introspect/inactive": 1, "root/two/revoke/inactive": 1,
		"root/off/token/client_disabled": 1, "other/one/token/ok": 1,
	})

	for _, c := range []struct {
		path, token string
		status      int
	}{
		{"/a", one, 200}, {"/a", one, 200}, {"/b", one, 403}, {"/far", one, 200}, {"/b", two, 403}, {"/a", two, 200}, {"/other", other, 200},
		{"/a", other, 401}, {"/a", "", 401}, {"/a", "garbage", 401}, {"/far", "foreign-1", 200}, {"/far", "foreign-2", 200},
	} {
		if a := g.get(c.path, c.token); a.StatusCode != c.status {
			t.Errorf("%s: %d, want %d", c.path, a.StatusCode, c.status)
		}
	}
	expectSeries(t, "checks", ownChecks(t), map[string]float64{
		"root/one/ok/": 3, "root/one/insufficient_scope/scope": 1, "root/two/ok/": 1, "root/two/insufficient_scope/scope": 1, "root/off/ok/": 0, "other/one/ok/": 1,
	})
	if n := foreignChecks(t) - foreign; n != 2 {
		t.Errorf("%v tokens from elsewhere were counted, want 2", n)
	}
}

// Counts go on across a reload, and end with their client. A configuration that is refused changes
// none of it.
func TestCountsOfClientsSurviveReloads(t *testing.T) {
	const site = "oauth_server\noauth_protect /x\nrespond ok"
	g := startGateway(t, counted(countedClients), site)
	g.get("/x", g.token("one"))
	g.get("/x", g.token("two"))
	if err := g.load(counted(countedClients), site); err != nil {
		t.Fatal(err)
	}
	g.get("/x", g.token("one"))
	all := map[string]float64{"root/one/ok/": 2, "root/two/ok/": 1, "root/off/ok/": 0, "other/one/ok/": 0}
	expectSeries(t, "after a reload", clientChecks(t), all)

	only, _, _ := strings.Cut(countedClients, "client two")
	if err := g.load(counted(only), site+"\nbind 127.0.0.1:1:1"); err == nil {
		t.Fatal("the configuration was accepted")
	}
	expectSeries(t, "after a reload that was refused", clientChecks(t), all)

	if err := g.load(counted(only), site); err != nil {
		t.Fatal(err)
	}
	expectSeries(t, "without the client", clientChecks(t), map[string]float64{"root/one/ok/": 2})
	expectSeries(t, "its requests", clientRequests(t), map[string]float64{"root/one/token/ok": 2})
	if err := g.load(counted(countedClients), site); err != nil {
		t.Fatal(err)
	}
	all["root/two/ok/"] = 0
	expectSeries(t, "after it has come back", clientChecks(t), all)
}

// The end of each secret is known before it comes.
func TestSecretExpiryIsAMetric(t *testing.T) {
	startGateway(t, counted(countedClients), "oauth_server")
	ends := clientSeries(t, "caddy_oauth_secret_expiry_timestamp_seconds", "realm", "client_id", "secret")
	never := ends["root/one/1"]
	if never < 1e300 {
		t.Errorf("a secret without an end has %v", never)
	}
	expectSeries(t, "ends", ends, map[string]float64{"root/one/1": never, "root/two/1": 4102444799, "root/two/2": never, "other/one/1": never})
}

// The series of a realm end with the last configuration that has it, and neither end nor begin anew
// before. A configuration that is refused leaves none.
func TestSeriesOfRealmsEndWithThem(t *testing.T) {
	realm := func(name string) string {
		return "realm " + name + " {\nclient c {\nsecret_hash " + hashOf(testSecret) + "\nscopes a\ndefault_scopes a\n}\n}\n"
	}
	site := func(realms ...string) string {
		s := "oauth_server\n"
		for _, name := range realms {
			s += "route /" + name + " {\noauth_protect " + name + "\nrespond ok\n}\n"
		}
		return s
	}
	checks := func(name string) (n float64, there bool) {
		n, there = clientSeries(t, "caddy_oauth_bearer_checks_total", "realm", "result", "cause")[name+"/missing_token/missing"]
		return n, there
	}
	requests := func(name string) bool {
		_, there := clientSeries(t, "caddy_oauth_requests_total", "realm", "endpoint", "result")[name+"/token/ok"]
		return there
	}
	expect := func(when, name string, want float64) {
		t.Helper()
		if n, there := checks(name); n != want || !there {
			t.Errorf("%s: %v checks of the realm %s (%t), want %v", when, n, name, there, want)
		}
	}
	gone := func(when, name string) {
		t.Helper()
		if _, there := checks(name); there || requests(name) {
			t.Errorf("%s: the realm %s still has series", when, name)
		}
	}
	both := "store memory\n" + realm("stays-counted") + realm("goes-counted")
	g := startGateway(t, both, site("stays-counted", "goes-counted"))
	g.get("/stays-counted", "")
	g.get("/goes-counted", "")
	g.fetchAt("/oauth2/realms/root/realms/goes-counted", "c", "a")
	if err := g.load(both, site("stays-counted", "goes-counted")+"header X y"); err != nil {
		t.Fatal(err)
	}
	g.get("/stays-counted", "")
	expect("after a reload", "stays-counted", 2)
	expect("after a reload", "goes-counted", 1)
	if !requests("goes-counted") {
		t.Error("a request to an endpoint was not counted")
	}

	if err := g.load(both+realm("refused-counted"), site("stays-counted", "refused-counted")+"bind 127.0.0.1:1:1"); err == nil {
		t.Fatal("the configuration was accepted")
	}
	gone("after a reload that was refused", "refused-counted")
	expect("after a reload that was refused", "goes-counted", 1)

	one := "store memory\n" + realm("stays-counted")
	if err := g.load(one, site("stays-counted")); err != nil {
		t.Fatal(err)
	}
	gone("without the realm", "goes-counted")
	expect("without the other realm", "stays-counted", 2)
	if err := g.load(both, site("stays-counted", "goes-counted")); err != nil {
		t.Fatal(err)
	}
	expect("after it has come back", "goes-counted", 0)
	expect("after the other has come back", "stays-counted", 2)
}
