package caddyoauth_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyoauth/gateway/caddyoauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// shown is what the admin endpoint says of a client's use and its secrets.
type shown struct {
	ID  string `json:"id"`
	Use *struct {
		Token, Seen              time.Time
		From, Method, Credential string
	} `json:"use"`
	Secrets []struct {
		ID          string
		Until, Used time.Time
	} `json:"secrets"`
}

// show asks for a client of the root realm.
func (a admin) show(id string) (s shown) {
	a.t.Helper()
	if err := json.Unmarshal([]byte(a.must(200, "GET", "/oauth/clients/root/"+id, "").Body), &s); err != nil {
		a.t.Fatal(err)
	}
	if strings.Contains(fmt.Sprint(s), "sha256") {
		a.t.Errorf("there is a hash in %+v", s)
	}
	return s
}

// wantUse checks what is shown of a client's use. Times are since begin or not there.
func wantUse(t *testing.T, what string, s shown, begin time.Time, token, seen bool, from, method string) {
	t.Helper()
	if s.Use == nil {
		t.Errorf("%s: nothing is known of %s", what, s.ID)
		return
	}
	since := func(at time.Time, want bool) bool {
		return want && !at.Before(begin.Truncate(time.Millisecond)) && !at.After(time.Now()) || !want && at.IsZero()
	}
	if !since(s.Use.Token, token) || !since(s.Use.Seen, seen) || s.Use.From != from || s.Use.Method != method {
		t.Errorf("%s: %+v, want a token %t, seen %t, from %q, by %q, all since %v", what, *s.Use, token, seen, from, method, begin)
	}
}

const inventoryClients = `
client plain {
	secret {env.INVENTORY_SECRET}
	scopes read
	default_scopes read
}
client hashed {
	secret_hash ` + testHash + ` until 2090-01-01T00:00:00Z
	secret_hash {env.INVENTORY_HASH}
	scopes read
	default_scopes read
}
client idle {
	secret_hash ` + testHash + `
	scopes read
	default_scopes read
}
`

// What each client did last is shown, of managed ones and of those in the configuration, with the secret
// by which it was, and stays after a reload and a restart.
func TestInventory(t *testing.T) {
	t.Setenv("INVENTORY_SECRET", testSecret)
	t.Setenv("INVENTORY_HASH", testHash)
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			config, address := withAdmin(t, caddyfileOf(store+"managed_clients\nlimit failures off\n"+inventoryClients, managedSite+"\n"))
			g := startCaddyfile(t, config)
			a := admin{g, address}
			secret := fmt.Sprint(a.must(201, "PUT", "/oauth/clients/root/batch", `{"scopes":["read"]}`).json(t)["secret"])
			begin := time.Now()
			for _, id := range []string{"batch", "plain", "hashed", "idle"} {
				if s := a.show(id); s.Use != nil || !s.Secrets[0].Used.IsZero() || s.Secrets[0].ID == "" {
					t.Errorf("before it did anything: %+v", s)
				}
			}
			secrets := map[string]string{"batch": secret, "plain": testSecret, "hashed": testSecret}
			ids := make(map[string]string) // of the secrets that were used
			for id, secret := range secrets {
				token := g.tokenBy(id, secret)
				s := a.show(id)
				wantUse(t, "after a token", s, begin, true, false, "127.0.0.0/24", "client_secret_basic")
				if ids[id] = s.Secrets[0].ID; s.Use.Credential != ids[id] || s.Secrets[0].Used.Before(begin.Truncate(time.Millisecond)) {
					t.Errorf("the secret that was used: %+v, %+v", s.Use, s.Secrets)
				}
				if res := g.get("/x", spoiled(token)); res.StatusCode != 401 {
					t.Errorf("a token that was changed: %d", res.StatusCode)
				}
				if s := a.show(id); !s.Use.Seen.IsZero() {
					t.Errorf("%s is said to be here, by a token that is none", id)
				}
				if res := g.get("/x", token); res.StatusCode != 200 {
					t.Errorf("its token: %d", res.StatusCode)
				}
				wantUse(t, "after a request", a.show(id), begin, true, true, "127.0.0.0/24", "client_secret_basic")
			}
			if ids["batch"] == ids["plain"] || ids["plain"] == ids["hashed"] {
				t.Errorf("the IDs of secrets are %v", ids)
			}
			if err := g.loadCaddyfile(strings.Replace(config, "grace_period 1s", "grace_period 2s", 1)); err != nil {
				t.Fatal(err)
			}
			check := func(what string) {
				t.Helper()
				for id := range secrets {
					s := a.show(id)
					wantUse(t, what, s, begin, true, true, "127.0.0.0/24", "client_secret_basic")
					if s.Use != nil && (s.Secrets[0].ID != ids[id] || s.Use.Credential != ids[id] || s.Secrets[0].Used.IsZero()) {
						t.Errorf("%s: %s has the secrets %+v, and was authenticated by %s, want %s", what, id, s.Secrets, s.Use.Credential, ids[id])
					}
				}
				if s := a.show("idle"); s.Use != nil {
					t.Errorf("%s: who did nothing has %+v", what, s.Use)
				}
			}
			check("after a reload")
			if name != "memory" {
				g.restartCaddyfile(config)
				check("after a restart")
				caddyoauth.WriteUses()
				check("after a write")
			}
			if res := a.must(200, "GET", "/oauth/clients?limit=10", ""); strings.Count(res.Body, `"use":{"token":`) != 3 {
				t.Errorf("the list has %s", res.Body)
			}
			a.must(204, "DELETE", "/oauth/clients/root/batch", "")
			a.must(201, "PUT", "/oauth/clients/root/batch", `{"scopes":["read"]}`)
			if s := a.show("batch"); s.Use != nil {
				t.Errorf("removed and added anew, it has %+v", s.Use)
			}
		})
	}
}

// Everything that a client can do with its credentials counts, and a token that passes because nothing is
// enforced; a request that is refused doesn't.
func TestInventoryKnowsAllWays(t *testing.T) {
	site := "oauth_server\noauth_protect /open {\noptional\n}\noauth_protect /report {\nscopes other\nreport_only\n}\noauth_protect /basic {\nbasic\n}\noauth_protect /other {\nscopes other\n}\nreverse_proxy BACKEND"
	ways := map[string]func(g *gateway, id, token string) answer{
		"optional":      func(g *gateway, _, token string) answer { return g.get("/open", token) },
		"report only":   func(g *gateway, _, token string) answer { return g.get("/report", token) },
		"basic":         func(g *gateway, id, _ string) answer { return g.withBasic("/basic", id, testSecret) },
		"introspection": func(g *gateway, id, token string) answer { return g.introspect(id, token) },
		"revocation":    func(g *gateway, id, token string) answer { return g.revoke(id, "x") },
		"nothing":       func(g *gateway, _, token string) answer { return g.get("/open", "") },
		"refused":       func(g *gateway, _, token string) answer { return g.get("/other", token) },
		"wrong secret":  func(g *gateway, id, _ string) answer { return g.withBasic("/basic", id, testSecret+"x") },
	}
	options := "store memory\nlimit failures off\n"
	for name := range ways {
		options += "client \"" + name + "\" {\nsecret_hash " + testHash + "\nscopes read\ndefault_scopes read\n}\n"
	}
	config, address := withAdmin(t, caddyfileOf(options, site))
	g := startCaddyfile(t, config)
	a := admin{g, address}
	want := map[string]int{"refused": 403, "wrong secret": 401}
	for name, way := range ways {
		begin := time.Now()
		token := g.token(name)
		res := way(g, name, token)
		if wanted := max(want[name], 200); res.StatusCode != wanted && (wanted != 200 || want[name] != 0) {
			t.Errorf("%s: %d, want %d", name, res.StatusCode, wanted)
		}
		used := want[name] == 0 && name != "nothing"
		wantUse(t, name, a.show(url.PathEscape(name)), begin, true, used, "127.0.0.0/24", "client_secret_basic")
	}
}

// Addresses are as exact as the realm wants, and those from before are not shown more exactly.
func TestInventoryAddresses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens.db")
	var g *gateway
	var a admin
	for i, c := range []struct{ option, before, after string }{
		{"inventory_addresses full", "", "127.0.0.1"},
		{"", "127.0.0.0/24", "127.0.0.0/24"},
		{"inventory_addresses full", "127.0.0.0/24", "127.0.0.1"},
		{"inventory_addresses off", "", ""},
		{"inventory_addresses full", "", "127.0.0.1"},
	} {
		config, address := withAdmin(t, caddyfileOf("store bbolt "+file+"\n"+c.option+"\n"+testClients, managedSite))
		if i == 0 {
			g = startCaddyfile(t, config)
		} else if g.restartCaddyfile(config); g.t.Failed() {
			return
		}
		a = admin{g, address}
		if s := a.show("reader"); i > 0 && s.Use.From != c.before {
			t.Errorf("%d: before, it is from %q, want %q", i, s.Use.From, c.before)
		}
		g.token("reader")
		if s := a.show("reader"); s.Use.From != c.after {
			t.Errorf("%d: it is from %q, want %q", i, s.Use.From, c.after)
		}
	}
}

// Metrics say for how long clients of the configuration have done nothing, and how many managed ones have
// done nothing for long, or have secrets that end soon.
func TestInventoryMetrics(t *testing.T) {
	redis := redistest.Start(t)
	config, address := withAdmin(t, caddyfileOf(at(redis.Addr)+managedOptions+"realm beta {\nclient b {\nsecret_hash "+testHash+"\nscopes read\n}\n}\n", bothSite))
	g := startCaddyfile(t, config)
	a := admin{g, address}
	wants := func(what string, want map[string]float64) {
		t.Helper()
		got := make(map[string]float64)
		waitUntil(t, what, func() bool {
			clear(got)
			for series, n := range clientSeries(t, "caddy_oauth_client_unused_seconds", "realm", "client_id") {
				got["client "+series] = math.Floor(n / 3600)
			}
			for name, label := range map[string]string{"": "state", "_unused": "days", "_expiring": "days"} {
				for series, n := range clientSeries(t, "caddy_oauth_managed_clients"+name, "realm", label) {
					got[strings.TrimPrefix(name, "_")+" "+series] = n
				}
			}
			if !maps.Equal(got, want) {
				t.Logf("%v", got)
			}
			return maps.Equal(got, want)
		})
	}
	want := map[string]float64{" root/active": 0, " root/disabled": 0, " root/unusable": 0, "unused root/30": 0, "unused root/90": 0, "expiring root/7": 0, "expiring root/30": 0}
	wants("there are no managed clients, and nobody has been here", want)

	g.token("reader")
	for i := range 3 {
		a.must(201, "PUT", fmt.Sprintf("/oauth/clients/root/m%d", i), `{"scopes":["read"]}`)
	}
	a.must(200, "POST", "/oauth/clients/root/m0/secrets", fmt.Sprintf(`{"until":%q,"others_until":%q}`, day(3), day(2)))
	a.must(200, "POST", "/oauth/clients/root/m1/secrets", fmt.Sprintf(`{"until":%q,"others_until":%q}`, day(20), day(2)))
	a.must(200, "POST", "/oauth/clients/root/m2/secrets", fmt.Sprintf(`{"others_until":%q}`, day(2))) // a rotation
	a.must(201, "PUT", "/oauth/clients/root/off", `{"scopes":["read"],"disabled":true}`)
	caddyoauth.WriteUses()
	redis.CLI("hset", "caddy-oauth:{realm:root}:uses", "", fmt.Sprint(time.Now().Add(-50*time.Hour-time.Minute).UnixMilli()))
	if err := caddyoauth.KeepUses("root", map[string]oauth.Use{"m0": {Token: time.Now().AddDate(0, 0, -31)}, "m1": {Seen: time.Now().AddDate(0, 0, -91)}, "off": {Seen: time.Now().AddDate(0, 0, -91)}}); err != nil {
		t.Fatal(err)
	}
	maps.Copy(want, map[string]float64{
		" root/active": 3, " root/disabled": 1, "unused root/30": 2, "unused root/90": 1, "expiring root/7": 1, "expiring root/30": 2,
		"client root/reader": 0, "client root/writer": 50, "client beta/b": 0,
	})
	wants("they are counted", want)
	if err := g.loadCaddyfile(strings.Replace(config, "managed_clients\n", "", 1)); err != nil {
		t.Fatal(err)
	}
	wants("the realm has no managed clients", map[string]float64{"client root/reader": 0, "client root/writer": 50, "client beta/b": 0})
}

// What a client does at one gateway, another one shows once it was written, together with what it did there.
func TestInventoryOfAFleet(t *testing.T) {
	redis := redistest.Start(t)
	options := at(redis.Addr) + managedOptions
	config, address := withAdmin(t, caddyfileOf(options, fleetSite))
	here := startCaddyfile(t, config)
	a := admin{here, address}
	secret := fmt.Sprint(a.must(201, "PUT", "/oauth/clients/root/batch", `{"scopes":["read"]}`).json(t)["secret"])
	cmd := gatewayProcess(options)
	cmd.Env = append(cmd.Env, "GATEWAY_TEST_USES=write")
	there, _ := runGatewayProcess(t, cmd)
	begin := time.Now()
	waitUntil(t, "the other gateway knows the client", func() bool { return there.fetchBy("batch", secret).StatusCode == 200 })
	waitUntil(t, "this gateway knows what the client did there", func() bool {
		s := a.show("batch")
		return s.Use != nil && !s.Use.Token.IsZero() && !s.Secrets[0].Used.IsZero()
	})
	wantUse(t, "after a token", a.show("batch"), begin, true, false, "127.0.0.0/24", "client_secret_basic")
	here.wants("its token", there.tokenBy("batch", secret), 200)
	wantUse(t, "after a token there and a request here", a.show("batch"), begin, true, true, "127.0.0.0/24", "client_secret_basic")
	there.wants("a token", there.token("reader"), 200)
	waitUntil(t, "this gateway knows a client of the configuration", func() bool {
		s := a.show("reader")
		return s.Use != nil && !s.Use.Token.IsZero() && !s.Use.Seen.IsZero()
	})
	// A gateway that ends writes what it knows.
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	if n := redis.CLI("hlen", "caddy-oauth:{realm:root}:uses"); n != "3" { // and since when
		t.Errorf("there are %s fields, want 3", n)
	}
}
