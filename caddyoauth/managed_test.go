package caddyoauth_test

import (
	"crypto"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/caddyoauth/gateway/caddyoauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// admin is a caller of the admin endpoint.
type admin struct {
	*gateway
	address string
}

// send sends a request about clients. Headers are name and value in turn.
func (a admin) send(method, path, body string, headers ...string) answer {
	a.t.Helper()
	// A reload replaces the admin endpoint, and may close a connection before it has been answered.
	var res answer
	waitUntil(a.t, "the admin endpoint answers", func() bool {
		r, err := http.NewRequest(method, "http://"+a.address+path, strings.NewReader(body))
		if err != nil {
			a.t.Fatal(err)
		}
		if body != "" {
			r.Header.Set("Content-Type", "application/json")
		}
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		if host := r.Header.Get("Host"); host != "" {
			r.Host = host // what a header of this name says is not sent
		}
		res, err = a.try(r)
		return err == nil
	})
	return res
}

// must is send where the status must be this one. A store that is late on a busy machine leaves open whether
// a change was made. Then it is made anew, but for a POST, which might add another secret.
func (a admin) must(status int, method, path, body string, headers ...string) answer {
	a.t.Helper()
	var res answer
	late := false
	waitUntil(a.t, "the gateway is in time", func() bool {
		if late && method == http.MethodPut && status == http.StatusCreated && a.send(http.MethodDelete, path, "").StatusCode == http.StatusServiceUnavailable {
			return false
		}
		res = a.send(method, path, body, headers...)
		if late && method == http.MethodDelete && status == http.StatusNoContent && res.StatusCode == http.StatusNotFound {
			res.StatusCode = status // it was made
		}
		late = a.late(res) && status != res.StatusCode && method != http.MethodPost
		return !late
	})
	if res.StatusCode != status {
		a.t.Fatalf("%s %s: %d %s, want %d", method, path, res.StatusCode, res.Body, status)
	}
	return res
}

// fetchBy asks the root realm for a token with this secret.
func (g *gateway) fetchBy(id, secret string) answer {
	g.t.Helper()
	return g.patiently(func() answer {
		return g.post("/oauth2/access_token", id, secret, map[string][]string{"grant_type": {"client_credentials"}, "scope": {"read"}})
	})
}

func (g *gateway) tokenBy(id, secret string) string {
	g.t.Helper()
	a := g.fetchBy(id, secret)
	if a.StatusCode != 200 {
		g.t.Fatalf("no token for %s: %d %s", id, a.StatusCode, a.Body)
	}
	return fmt.Sprint(a.json(g.t)["access_token"])
}

// managedSite wants a scope.
const managedSite = "oauth_server\noauth_protect /x {\nscopes read\n}\nreverse_proxy BACKEND"

const managedOptions = "managed_clients\nlimit failures off\n" + testClients

// Clients that the configuration no longer fits are listed with what is wrong with them, until somebody mends
// or removes them.
func TestUnusableManagedClientsAreListed(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			config, address := withAdmin(t, caddyfileOf(v.options(t)+managedOptions+"am_compat\n", managedSite))
			a := admin{startCaddyfile(t, config), address}
			secret := fmt.Sprint(a.must(201, "PUT", "/oauth/clients/root/mended", `{"scopes":["read|Read orders"]}`).json(t)["secret"])
			a.must(201, "PUT", "/oauth/clients/root/removed", `{"scopes":["read|Read orders"]}`)
			a.must(201, "PUT", "/oauth/clients/root/usable", `{"scopes":["read"]}`)
			token := a.tokenBy("mended", secret)
			a.wants("a token with am_compat", token, 200)
			unseen := a.tokenBy("mended", secret) // no cache has it
			if err := a.loadCaddyfile(strings.Replace(config, "am_compat\n", "", 1)); err != nil {
				t.Fatal(err)
			}

			const why = `"read|Read orders" is not a scope`
			for what, token := range map[string]string{"a token": token, "a token that no cache has": unseen} {
				if got := a.getInTime("/x", token).StatusCode; got != 401 {
					t.Errorf("%s of a client that can't be used: %d, want 401", what, got)
				}
			}
			states := clientSeries(t, "caddy_oauth_managed_clients", "realm", "state")
			if want := map[string]float64{"root/active": 1, "root/disabled": 0, "root/unusable": 2}; !maps.Equal(states, want) {
				t.Errorf("the clients are counted as %v, want %v", states, want)
			}
			if unused := clientSeries(t, "caddy_oauth_managed_clients_unused", "realm", "days"); unused["root/30"] != 0 {
				t.Errorf("of clients that can't be used, %v are counted as unused", unused["root/30"])
			}
			for query, want := range map[string]string{
				"managed=true":                 "mended removed usable",
				"state=unusable":               "mended removed",
				"state=active&managed=true":    "usable",
				"search=men&managed=true":      "mended",
				"expiring=30d&managed=true":    "",
				"state=unusable&managed=false": "",
			} {
				if got := a.listOf(query, 1); got != want {
					t.Errorf("%s lists %q, want %q", query, got, want)
				}
			}
			if list := a.mustCLI("client", "list"); !regexp.MustCompile(`(?m)^root +mended +managed +unusable `).MatchString(list) || strings.Count(list, why) != 2 {
				t.Errorf("the list is\n%s", list)
			}
			if shown := a.mustCLI("client", "show", "mended"); !strings.Contains(shown, "unusable, managed") || !strings.Contains(shown, why) {
				t.Errorf("it is shown as %s", shown)
			}

			a.mustCLI("client", "remove", "removed")
			a.must(200, "PUT", "/oauth/clients/root/mended", `{"scopes":["read"]}`)
			if mended := a.must(200, "GET", "/oauth/clients/root/mended", ""); mended.json(t)["unusable"] != nil {
				t.Errorf("it is still unusable: %s", mended.Body)
			}
			if got := a.listOf("managed=true", 10) + a.listOf("state=unusable", 10); got != "mended usable" {
				t.Errorf("then the list is %q", got)
			}
			a.tokenBy("mended", secret)
		})
	}
}

// Of a client that a later version of the gateway has written, it is shown that it is there, and why it can't be
// used. It can't be changed or removed here.
func TestManagedClientsOfALaterVersion(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			config, address := withAdmin(t, caddyfileOf(v.options(t)+managedOptions, managedSite))
			a := admin{startCaddyfile(t, config), address}
			const path, why = "/oauth/clients/root/later", "a later version of the gateway has written it (version 2, this program knows 1)"
			secret := fmt.Sprint(a.must(201, "PUT", path, `{"scopes":["read"]}`).json(t)["secret"])
			token := a.tokenBy("later", secret)
			if err := caddyoauth.KeepManaged("root", "later", []byte(`{"v":2,"client":{"scopes":["read"],"disabled":"perhaps"}}`)); err != nil {
				t.Fatal(err)
			}
			a.wants("its token", token, 401)
			if res := a.fetchBy("later", secret); res.StatusCode != 401 {
				t.Errorf("the client: %d, want 401", res.StatusCode)
			}
			if got := a.listOf("state=unusable", 10); got != "later" {
				t.Errorf("listed as unusable is %q", got)
			}
			shown := a.must(200, "GET", path, "")
			if got := shown.json(t); got["unusable"] != why || got["managed"] != true || strings.Contains(shown.Body, "scopes") || shown.Header.Get("ETag") == "" {
				t.Errorf("it is shown as %s", shown.Body)
			}
			if shown := a.mustCLI("client", "show", "later"); !strings.Contains(shown, "can't be used: "+why) || strings.Contains(shown, "added") {
				t.Errorf("client show says %s", shown)
			}
			for what, res := range map[string]answer{
				"a change":       a.send("PUT", path, `{"scopes":["write"]}`),
				"another secret": a.send("POST", path+"/secrets", "{}"),
				"the removal":    a.send("DELETE", path, ""),
				"an import":      a.send("POST", "/oauth/clients/import", `{"version":1,"existing":"replace","clients":[{"realm":"root","id":"later","settings":{"scopes":["write"]}}]}`),
			} {
				if res.StatusCode != 409 || !strings.Contains(res.Body, why) {
					t.Errorf("%s: %d %s, want 409 that says why", what, res.StatusCode, res.Body)
				}
			}
		})
	}
}

// A client that an operator adds fetches tokens at once, and goes on after a reload and a restart. Its
// tokens end when it is disabled or removed, and stay dead when it comes back.
func TestManagedClients(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			options := v.options(t) + managedOptions
			file := filepath.Join(t.TempDir(), "log")
			config, address := withAdmin(t, caddyfileOf(options, managedSite))
			config = logTo(file, config)
			g := startCaddyfile(t, config)
			a := admin{g, address}
			const path = "/oauth/clients/root/batch"

			if res := g.fetchBy("batch", "x"); res.StatusCode != 401 {
				t.Fatalf("before it is added: %d, want 401", res.StatusCode)
			}
			added := a.must(201, "PUT", path, `{"scopes":["read","write"]}`)
			secret := fmt.Sprint(added.json(t)["secret"])
			token := g.tokenBy("batch", secret)
			g.wants("a token of the new client", token, 200)
			if res := g.fetchBy("batch", secret+"x"); res.StatusCode != 401 {
				t.Errorf("with a wrong secret: %d, want 401", res.StatusCode)
			}

			shown := a.must(200, "GET", path, "")
			if strings.Contains(shown.Body, secret) || strings.Contains(shown.Body, "$sha256$") || shown.json(t)["managed"] != true {
				t.Errorf("it is shown as %s", shown.Body)
			}
			if err := g.loadCaddyfile(strings.Replace(config, "grace_period 1s", "grace_period 2s", 1)); err != nil {
				t.Fatal(err)
			}
			g.wants("its token after a reload", token, 200)
			token = g.tokenBy("batch", secret)

			// A scope that is taken away is gone from its tokens.
			a.must(200, "PUT", path, `{"scopes":["write"]}`)
			if res := g.getInTime("/x", token); res.StatusCode != 403 {
				t.Errorf("its token without the scope: %d, want 403", res.StatusCode)
			}
			a.must(200, "PUT", path, `{"scopes":["read"]}`)
			g.wants("its token with the scope", token, 200)

			// Disabled, its tokens end for good.
			a.must(200, "PUT", path, `{"scopes":["read"],"disabled":true}`)
			g.wants("its token while it is disabled", token, 401)
			if res := g.fetchBy("batch", secret); res.StatusCode != 401 {
				t.Errorf("while it is disabled: %d, want 401", res.StatusCode)
			}
			a.must(200, "PUT", path, `{"scopes":["read"]}`)
			g.wants("its token from before it was disabled", token, 401)
			token = g.tokenBy("batch", secret)
			g.wants("a new token", token, 200)

			// As with the clients of a configuration, an operator ends its tokens.
			g.mustRevokeAll(address, `{"client":"batch"}`, `{"realm":"root","client":"batch","clients":1}`)
			g.wants("its token after all were revoked", token, 401)
			token = g.tokenBy("batch", secret)
			g.wants("a token fetched since", token, 200)

			// Removed and added anew, it is another client.
			a.must(204, "DELETE", path, "")
			g.wants("its token after it was removed", token, 401)
			if res := g.fetchBy("batch", secret); res.StatusCode != 401 {
				t.Errorf("after it was removed: %d, want 401", res.StatusCode)
			}
			a.must(404, "GET", path, "")
			a.must(404, "DELETE", path, "")
			again := fmt.Sprint(a.must(201, "PUT", path, `{"scopes":["read"]}`).json(t)["secret"])
			g.wants("its token after it was added anew", token, 401)
			if res := g.fetchBy("batch", secret); res.StatusCode != 401 {
				t.Errorf("with the secret from before: %d, want 401", res.StatusCode)
			}
			token = g.tokenBy("batch", again)
			g.wants("a token of the client that was added anew", token, 200)

			if v.store != "memory" {
				g.restart(options, managedSite)
				g.wants("its token after a restart", token, 200)
				g.tokenBy("batch", again)
			}
			logged, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for event, n := range map[string]int{"client_added": 2, "client_changed": 4, "client_removed": 1} {
				if got := strings.Count(string(logged), `"event":"`+event+`"`); got != n {
					t.Errorf("%d events %s, want %d", got, event, n)
				}
			}
			for _, hidden := range []string{secret, again, "$sha256$"} {
				if strings.Contains(string(logged), hidden) {
					t.Errorf("the log has %s", hidden)
				}
			}
		})
	}
}

// Several secrets are good at a time, each until its end, and one that is taken away is refused at once.
func TestManagedSecrets(t *testing.T) {
	config, address := withAdmin(t, caddyfileOf("store memory\n"+managedOptions, managedSite))
	g := startCaddyfile(t, config)
	a := admin{g, address}
	const path = "/oauth/clients/root/batch"
	first := fmt.Sprint(a.must(201, "PUT", path, `{"scopes":["read"]}`).json(t)["secret"])
	works := func(name, secret string, want bool) {
		t.Helper()
		if got := g.fetchBy("batch", secret).StatusCode == 200; got != want {
			t.Errorf("%s: accepted is %t, want %t", name, got, want)
		}
	}
	second := fmt.Sprint(a.must(200, "POST", path+"/secrets", "{}").json(t)["secret"])
	works("the first", first, true)
	works("the second", second, true)

	rotated := a.must(200, "POST", path+"/secrets", fmt.Sprintf(`{"others_until":%q}`, time.Now().Add(-time.Second).Format(time.RFC3339)))
	third := fmt.Sprint(rotated.json(t)["secret"])
	works("the first after its end", first, false)
	works("the second after its end", second, false)
	works("the third", third, true)

	fourth := a.must(200, "POST", path+"/secrets", "{}") // which drops those that are over
	secrets, _ := fourth.json(t)["secrets"].([]any)
	if len(secrets) != 2 {
		t.Fatalf("it has %v, want two secrets", secrets)
	}
	a.must(404, "DELETE", path+"/secrets/000000000000", "")
	a.must(200, "DELETE", path+"/secrets/"+fmt.Sprint(secrets[0].(map[string]any)["id"]), "")
	works("the third after it was taken away", third, false)
	works("the fourth", fmt.Sprint(fourth.json(t)["secret"]), true)
	// Together with the tokens that it may have got for a thief.
	fifth := a.must(200, "POST", path+"/secrets", "{}").json(t)
	token := g.tokenBy("batch", fmt.Sprint(fifth["secret"]))
	stolen := fifth["secrets"].([]any)[1].(map[string]any)["id"]
	for _, query := range []string{"revoke_tokens=yes", "revoke_tokens", "revoke_tokens=", "revoke_token=true", "revoke_tokens=false&revoke_tokens=true"} {
		a.must(400, "DELETE", path+"/secrets/"+fmt.Sprint(stolen)+"?"+query, "")
	}
	a.must(400, "POST", path+"/secrets?revoke_tokens=true", "{}")
	g.wants("a token of before", token, 200)
	if stdout, stderr, err := caddyCLI(t, "", "client", "remove-secret", "batch", fmt.Sprint(stolen), "--revoke-tokens", "--address", address); err != nil {
		t.Errorf("%v %s %s", err, stdout, stderr)
	}
	works("a secret that was removed with the tokens", fmt.Sprint(fifth["secret"]), false)
	g.wants("a token after that", token, 401)
	// The last one can't be: the client could do nothing.
	a.must(400, "DELETE", path+"/secrets/"+fmt.Sprint(secrets[1].(map[string]any)["id"]), "")
	for range maxSecretsOfManaged - 1 {
		a.must(200, "POST", path+"/secrets", "{}")
	}
	a.must(409, "POST", path+"/secrets", "{}")
	// After a theft nobody has to take one away first.
	theft := fmt.Sprintf(`{"others_until":%q,"revoke_tokens":true}`, time.Now().Add(-time.Second).Format(time.RFC3339))
	last := a.must(200, "POST", path+"/secrets", theft).json(t)
	if secrets, _ := last["secrets"].([]any); len(secrets) != 1 {
		t.Errorf("it has %v, want one secret", secrets)
	}
	works("the fourth after its end", fmt.Sprint(fourth.json(t)["secret"]), false)
	works("the last", fmt.Sprint(last["secret"]), true)
}

// While a client of the configuration hides a managed one, to end the tokens of that ID ends those of both.
func TestRevokeOfHiddenManagedClient(t *testing.T) {
	config, address := withAdmin(t, caddyfileOf("store memory\n"+managedOptions, managedSite))
	g := startCaddyfile(t, config)
	a := admin{g, address}
	secret := fmt.Sprint(a.must(201, "PUT", "/oauth/clients/root/batch", `{"scopes":["read"]}`).json(t)["secret"])
	token := g.tokenBy("batch", secret)
	g.wants("a token of the managed client", token, 200)
	hiding := strings.Replace(config, "managed_clients\n", "managed_clients\nclient batch {\nsecret_hash "+testHash+"\nscopes read\n}\n", 1)
	if err := g.loadCaddyfile(hiding); err != nil {
		t.Fatal(err)
	}
	g.mustRevokeAll(address, `{"client":"batch"}`, `{"realm":"root","client":"batch","clients":1}`)
	if err := g.loadCaddyfile(config); err != nil {
		t.Fatal(err)
	}
	g.wants("the token once nothing hides its client", token, 401)
	g.wants("a token fetched since", g.tokenBy("batch", secret), 200)
}

const maxSecretsOfManaged = 5

// A secret is good from its beginning, and what is asked of the others is asked of those that would stay
// longer. After a theft, one step gives the client another secret and ends its tokens.
func TestManagedSecretsWithDates(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	config, address := withAdmin(t, caddyfileOf("store memory\n"+managedOptions, managedSite))
	g := startCaddyfile(t, logTo(file, config))
	a := admin{g, address}
	const path = "/oauth/clients/root/batch"
	first := fmt.Sprint(a.must(201, "PUT", path, `{"scopes":["read"]}`).json(t)["secret"])
	at := func(in time.Duration) string { return time.Now().Add(in).UTC().Format(time.RFC3339) }

	begins, ends := at(time.Hour), at(2*time.Hour)
	for _, member := range []string{"from", "until", "others_until"} {
		body := `{"` + member + `":"2099-01-01T00:00:00+24:00"}`
		if got := a.must(400, "POST", path+"/secrets", body).Body; !strings.Contains(got, "has an offset") {
			t.Errorf("%s: %s", body, got)
		}
	}
	later := a.must(200, "POST", path+"/secrets", fmt.Sprintf(`{"from":%q,"until":%q,"others_until":%q,"others_retire_unused":"7d"}`, begins, ends, begins)).json(t)
	if res := g.fetchBy("batch", fmt.Sprint(later["secret"])); res.StatusCode != 401 {
		t.Errorf("a secret that has not begun: %d, want 401", res.StatusCode)
	}
	if event := eventsIn(t, file, "token_refused"); len(event) != 1 || event[0]["reason"] != "secret_not_yet_valid" {
		t.Errorf("the events are %v", event)
	}
	token := g.tokenBy("batch", first)
	if event := eventsIn(t, file, "token_issued"); len(event) != 1 || event[0]["rotation"] != nil {
		t.Errorf("nobody can change over yet, and the events are %v", event)
	}
	secrets := func() string {
		text, err := json.Marshal(a.must(200, "GET", path, "").json(t)["secrets"])
		if err != nil {
			t.Fatal(err)
		}
		return regexp.MustCompile(`"id":"[0-9a-f]{12}",?|,"used":"[^"]*"`).ReplaceAllString(string(text), "")
	}
	if want := fmt.Sprintf(`[{"retire_unused":"168h","until":%q},{"from":%q,"until":%q}]`, begins, begins, ends); secrets() != want {
		t.Errorf("its secrets are %s, want %s", secrets(), want)
	}

	a.must(200, "POST", path+"/secrets", `{"others_retire_unused":"8d"}`)
	g.tokenBy("batch", first)
	if event := eventsIn(t, file, "token_issued"); len(event) != 2 || event[1]["rotation"] != true {
		t.Errorf("there is a newer secret, and the events are %v", event)
	}
	stolen := fmt.Sprintf(`{"others_until":%q,"others_retire_unused":"24h","revoke_tokens":true}`, at(0))
	last := a.must(200, "POST", path+"/secrets", stolen).json(t)["secret"]
	g.wants("a token from before", token, 401)
	if res := g.fetchBy("batch", first); res.StatusCode != 401 {
		t.Errorf("a secret from before: %d, want 401", res.StatusCode)
	}
	g.wants("a token by the new secret", g.tokenBy("batch", fmt.Sprint(last)), 200)
	if got := secrets(); strings.Count(got, `"retire_unused":"24h"`) != 2 || strings.Contains(got, `"from"`) {
		t.Errorf("its secrets are %s", got)
	}
	added := eventsIn(t, file, "client_secret_added")
	if len(added) != 3 || added[1]["tokens_revoked"] != nil || added[2]["tokens_revoked"] != true || added[2]["remote_ip"] != "127.0.0.1" {
		t.Errorf("the events are %v", added)
	}
}

// A change that the store can't confirm is in the log as one, and one that was not even tried is not.
func TestChangesThatNobodyCanConfirm(t *testing.T) {
	redis := redistest.Start(t)
	file := filepath.Join(t.TempDir(), "log")
	config, address := withAdmin(t, caddyfileOf(at(redis.Addr)+managedOptions, fleetSite))
	a := admin{startCaddyfile(t, logTo(file, config)), address}
	const path = "/oauth/clients/root/batch"
	a.must(201, "PUT", path, `{"scopes":["read"]}`)
	redis.CLI("config", "set", "maxmemory", "1") // it can be read, and takes no writes
	a.must(503, "POST", path+"/secrets", `{"revoke_tokens":true}`)
	a.must(412, "PUT", path, `{"scopes":["write"]}`, "If-None-Match", "*")
	redis.Stop()
	a.must(503, "PUT", path, `{"scopes":["write"]}`)
	if events := eventsIn(t, file, "client_changed"); len(events) != 0 {
		t.Errorf("of what was not tried, the events are %v", events)
	}
	events := eventsIn(t, file, "client_secret_added")
	if len(events) != 1 || events[0]["level"] != "warn" || events[0]["error"] == nil || events[0]["tokens_revoked"] != true || events[0]["before"] == nil || events[0]["after"] == nil {
		t.Errorf("of what the store did not confirm, the events are %v", events)
	}
}

// Two operators don't undo each other's changes unseen.
func TestManagedClientsConcurrency(t *testing.T) {
	config, address := withAdmin(t, caddyfileOf("store memory\n"+managedOptions, managedSite))
	a := admin{startCaddyfile(t, config), address}
	const path = "/oauth/clients/root/batch"
	a.must(412, "PUT", path, `{"scopes":["read"]}`, "If-Match", `"1"`)
	first := a.must(201, "PUT", path, `{"scopes":["read"]}`, "If-None-Match", "*").Header.Get("ETag")
	a.must(412, "PUT", path, `{"scopes":["read"]}`, "If-None-Match", "*")
	if got := a.must(200, "GET", path, "").Header.Get("ETag"); got != first || first == "" {
		t.Errorf("ETag is %s, want %s", got, first)
	}
	second := a.must(200, "PUT", path, `{"scopes":["write"]}`, "If-Match", first).Header.Get("ETag")
	a.must(412, "PUT", path, `{"scopes":["read"]}`, "If-Match", first)
	a.must(412, "DELETE", path, "", "If-Match", first)
	a.must(412, "POST", path+"/secrets", "{}", "If-Match", first)
	for _, condition := range [][2]string{{"If-Match", ""}, {"If-Match", "W/" + second}, {"If-Match", second + ", " + first}, {"If-None-Match", first}, {"If-None-Match", first + ", *"}} {
		a.must(412, "PUT", path, `{"scopes":["read"]}`, condition[0], condition[1])
	}
	a.must(200, "POST", path+"/secrets", "{}", "If-Match", second)
	a.must(204, "DELETE", path, "", "If-Match", "*")
}

// What can't be is refused, and the answer says why and repeats no secret.
func TestManagedClientsRefuse(t *testing.T) {
	platform := newKeyClient(t, "platform")
	platformOption := "client workload {\nfederated https://platform.example.com {\nsubject job\njwks_file " + platform.file + "\n}\nscopes read\n}\n"
	config, address := withAdmin(t, caddyfileOf("store memory\n"+issuerOption+managedOptions+platformOption+"realm beta {\nclient b {\nsecret_hash "+testHash+"\nscopes read\n}\n}\n", bothSite))
	a := admin{startCaddyfile(t, config), address}
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"PUT", "/oauth/clients/root/reader", `{"scopes":["read"]}`, 409, "in the configuration"},
		{"DELETE", "/oauth/clients/root/reader", "", 409, "in the configuration"},
		{"PUT", "/oauth/clients/beta/x", `{"scopes":["read"]}`, 409, "managed_clients"},
		{"PUT", "/oauth/clients/gamma/x", `{"scopes":["read"]}`, 404, "known: beta, root"},
		{"GET", "/oauth/clients/root/nobody", "", 404, "no client 'nobody'"},
		{"GET", "/oauth/clients/root", "", 404, "the path must be"},
		{"GET", "/oauth/clients/root/x/keys", "", 404, "the path must be"},
		{"PATCH", "/oauth/clients/root/x", "{}", 405, "only"},
		{"POST", "/oauth/clients", "{}", 405, "GET"},
		{"PUT", "/oauth/clients/root/x", `{"scope":["canary"]}`, 400, "JSON object"},
		{"PUT", "/oauth/clients/root/x", `[]`, 400, "JSON object"},
		{"PUT", "/oauth/clients/root/x", `{} {}`, 400, "behind the JSON object"},
		{"PUT", "/oauth/clients/root/x", ` null`, 400, "JSON object"},
		{"PUT", "/oauth/clients/root/%2e%2e", `{"scopes":["read"]}`, 400, "another"},
		{"PUT", "/oauth/clients/root/x", `{"secrets":[{"hash":"` + testHash + `"},{"hash":"` + testHash + `","until":"2099-01-01T00:00:00Z"}]}`, 400, "secret 2 is there twice"},
		{"PUT", "/oauth/clients/root/x", `{"scopes":["a,b"]}`, 400, "scopes"},
		{"PUT", "/oauth/clients/root/x%22", `{"scopes":["read"]}`, 400, "client"},
		{"PUT", "/oauth/clients/root/x", `{"secrets":[{"secret":"canary"}]}`, 400, "hash"},
		{"PUT", "/oauth/clients/root/x", `{"secrets":[{"secret":"{env.CANARY}"}]}`, 400, "hash"},
		{"PUT", "/oauth/clients/root/x", `{"secrets":[{"hash":"{file./canary}"}]}`, 400, "hash"},
		{"PUT", "/oauth/clients/root/x", `{"secrets":[{"hash":"canary"}]}`, 400, "secret 1"},
		{"PUT", "/oauth/clients/root/x", `{"secrets":[]}`, 400, "no secret"},
		{"PUT", "/oauth/clients/root/x", `{"jwks_file":"/x"}`, 400, "jwks_file"},
		{"PUT", "/oauth/clients/root/x", `{"auth":["self_signed_tls_client_auth"],"certificate_files":["/x"]}`, 400, "certificate_files"},
		{"PUT", "/oauth/clients/root/x", `{"auth":["self_signed_tls_client_auth"]}`, 400, "certificate_file"},
		{"PUT", "/oauth/clients/root/x", `{"auth":["tls_client_auth"]}`, 400, "subject of the client's certificate"},
		{"PUT", "/oauth/clients/root/x", `{"auth":["tls_client_auth"],"tls_client_auth":{"kind":"san_dns","value":"*.example.com"}}`, 400, "wildcard"},
		{"PUT", "/oauth/clients/root/x", `{"upstream_headers":{"A":"{env.X}"}}`, 400, "upstream_headers"},
		{"PUT", "/oauth/clients/root/x", `{"token_format":"jwt"}`, 400, "token_format"},
		{"PUT", "/oauth/clients/root/x", `{"dpop":"required"}`, 400, "dpop"},
		{"PUT", "/oauth/clients/root/x", `{"federated":[{}]}`, 400, "needs the issuer"},
		{"PUT", "/oauth/clients/root/x", `{"federated":[null]}`, 400, "needs the issuer"},
		{"PUT", "/oauth/clients/root/x", `{"federated":[{"issuer":"https://platform.example.com"}]}`, 400, "needs a subject"},
		{"PUT", "/oauth/clients/root/x", `{"federated":[{"issuer":"https://new.example.com","subject":["repo:*"]}]}`, 400, "leaves open"},
		{"PUT", "/oauth/clients/root/x", `{"federated":[{"issuer":"https://platform.example.com","subject":["repo:*"]}]}`, 400, "leaves open"},
		{"PUT", "/oauth/clients/root/x", `{"federated":[{"issuer":"http://new.example.com","subject":["job"]}]}`, 400, "https"},
		{"PUT", "/oauth/clients/root/x", `{"federated":[{"issuer":"https://127.0.0.1","subject":["job"]}]}`, 400, "not a public address"},
		{"PUT", "/oauth/clients/root/x", `{"federated":[{"issuer":"{env.CANARY}","subject":["job"]}]}`, 400, "placeholder"},
		{"PUT", "/oauth/clients/root/x", `{"federated":[{"issuer":"spiffe://example.org","subject":["spiffe://example.org/job"]}]}`, 400, "bundle"},
		{"PUT", "/oauth/clients/root/x", `{"federated":[{"issuer":"reader","subject":["job"]}]}`, 400, "federated reader"},
		{"PUT", "/oauth/clients/root/x", `{"federated":[{"issuer":"https://platform.example.com","subject":["job"],"jwks_uri":"https://canary.example.com/keys"}]}`, 400, "jwks_uri is for a client of the configuration"},
		{"PUT", "/oauth/clients/root/x", `{"federated":[{"issuer":"https://new.example.com","subject":["job"],"jwks_file":"/canary"}]}`, 400, "jwks_file is for"},
		{"PUT", "/oauth/clients/root/x", `{"federated":[{"issuer":"https://new.example.com","subject":["job"],"private_hosts":["canary"]}]}`, 400, "private_hosts is for"},
		{"PUT", "/oauth/clients/root/x", `{"federated":[{"issuer":"https://new.example.com","subject":["job"],"headers":{"A":"canary"}}]}`, 400, "headers is for"},
		{"PUT", "/oauth/clients/root/x", `{"federated":[{"issuer":"https://new.example.com","subject":["job"],"tls":{}}]}`, 400, "tls is for"},
		{"PUT", "/oauth/clients/root/x", `{"federated":[{"issuer":"https://new.example.com","subject":["job"],"algorithms":["ES256"]}]}`, 400, "algorithms is for"},
		{"PUT", "/oauth/clients/root/x", `{"auth":["client_secret_basic"],"federated":[{"issuer":"https://platform.example.com","subject":["job"]}]}`, 400, "add 'auth federated'"},
		{"PUT", "/oauth/clients/root/https:%2F%2Fplatform.example.com", `{"scopes":["read"]}`, 400, "federated"},
		{"PUT", "/oauth/clients/root/x", `{"auth":["federated"]}`, 400, "auth federated"},
		{"PUT", "/oauth/clients/root/x", `{"jwks_uri":"https://x.example.com/{env.CANARY}","auth":["private_key_jwt"]}`, 400, "placeholder"},
		{"PUT", "/oauth/clients/root/x", `{"jwks_uri":"http://x.example.com","auth":["private_key_jwt"]}`, 400, "jwks_uri"},
		{"PUT", "/oauth/clients/root/x", `{"jwks_uri":"https://127.0.0.1","auth":["private_key_jwt"]}`, 400, "not a public address"},
		{"PUT", "/oauth/clients/root/x", `{"jwks_uri":"https://x.example.com"}`, 400, "add 'auth private_key_jwt'"},
		{"POST", "/oauth/clients/root/nobody/secrets", "{}", 404, "no client 'nobody'"},
		{"POST", "/oauth/clients/root/nobody/secrets", `{"from":"tomorrow"}`, 400, "others_until"},
		{"POST", "/oauth/clients/root/nobody/secrets", `{"until":"2020-01-01T00:00:00Z"}`, 400, "until is over"},
		{"PUT", "/oauth/clients/root/x", `{"secrets":[{"hash":"` + testHash + `","until":"2099-01-01T00:00:00+24:00"}]}`, 400, "until has an offset"},
		{"POST", "/oauth/clients/root/nobody/secrets", `{"from":"2099-01-02T00:00:00Z","others_until":"2099-01-01T00:00:00Z"}`, 400, "would have no secret"},
		{"POST", "/oauth/clients/root/nobody/secrets", `{"others_retire_unused":"59m"}`, 400, "between 1h and a year"},
		{"PUT", "/oauth/clients/root/x", `{"secrets":[{"hash":"` + testHash + `","from":"2099-01-01T00:00:00Z","until":"2099-01-01T00:00:00Z"}]}`, 400, "secret 1: until"},
		{"PUT", "/oauth/clients/root/x", `{"secrets":[{"hash":"` + testHash + `","retire_unused":"9000h"}]}`, 400, "secret 1: retire_unused"},
		{"POST", "/oauth/clients/root/nobody/secrets", "", 415, "application/json"}, // a web page could have it sent
		{"GET", "/oauth/clients?realm=gamma", "", 404, "known: beta, root"},
		{"GET", "/oauth/clients?limit=0", "", 400, "limit"},
		{"GET", "/oauth/clients?after=!", "", 400, "after"},
	} {
		res := a.send(c.method, c.path, c.body)
		if res.StatusCode != c.status || !strings.Contains(res.Body, c.says) || strings.Contains(res.Body, "canary") {
			t.Errorf("%s %s %s: %d %s, want %d and %q", c.method, c.path, c.body, res.StatusCode, res.Body, c.status, c.says)
		}
	}
	r, err := http.NewRequest("PUT", "http://"+address+"/oauth/clients/root/x", strings.NewReader(`{"scopes":["read"]}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "text/plain") // as a web page can have a browser send it
	if res := a.do(r); res.StatusCode != 415 {
		t.Errorf("as text: %d, want 415", res.StatusCode)
	}
}

// The list has all clients, a page at a time.
func TestListClients(t *testing.T) {
	platform := newKeyClient(t, "platform")
	platformOption := "client workload {\nfederated https://platform.example.com {\nsubject job\njwks_file " + platform.file + "\n}\nscopes read\n}\n"
	config, address := withAdmin(t, caddyfileOf("store memory\n"+issuerOption+managedOptions+platformOption+"realm beta {\nclient b {\nsecret_hash "+testHash+"\nscopes read\n}\n}\n", bothSite))
	a := admin{startCaddyfile(t, config), address}
	for i := range 5 {
		a.must(201, "PUT", fmt.Sprintf("/oauth/clients/root/m%d%%2F%%20x", i), `{"scopes":["read"]}`)
	}
	var all []string
	for after := ""; ; {
		page := a.must(200, "GET", "/oauth/clients?limit=2&after="+after, "")
		if after != "" { // it says nothing, and is good for this question alone
			raw, err := base64.RawURLEncoding.DecodeString(after)
			if err != nil || strings.Contains(string(raw), "root") || strings.Contains(string(raw), "beta") {
				t.Errorf("next is %q, %v", raw, err)
			}
			a.must(400, "GET", "/oauth/clients?limit=2&after="+spoiled(after), "")
			a.must(400, "GET", "/oauth/clients?realm=root&after="+after, "")
		}
		if strings.Contains(page.Body, "$") {
			t.Errorf("it shows a hash: %s", page.Body)
		}
		clients, _ := page.json(t)["clients"].([]any)
		for _, client := range clients {
			c := client.(map[string]any)
			all = append(all, fmt.Sprint(c["realm"], " ", c["id"], " ", c["managed"]))
		}
		next, more := page.json(t)["next"].(string)
		if len(clients) > 2 || more && len(clients) != 2 {
			t.Fatalf("a page has %d clients", len(clients))
		}
		if !more {
			break
		}
		after = next
	}
	want := "beta b false,root m0/ x true,root m1/ x true,root m2/ x true,root m3/ x true,root m4/ x true,root reader false,root workload false,root writer false"
	if got := strings.Join(all, ","); got != want {
		t.Errorf("the list is %s, want %s", got, want)
	}
}

// A managed client may have a key in the place of a secret.
func TestManagedClientWithAKey(t *testing.T) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			config, address := withAdmin(t, caddyfileOf(store+issuerOption+managedOptions, managedSite))
			g := startCaddyfile(t, config)
			a := admin{g, address}
			client := newKeyClient(t, "signer")
			jwk, err := json.Marshal(jose.JSONWebKey{Key: client.key.Public(), KeyID: "1"})
			if err != nil {
				t.Fatal(err)
			}
			a.must(400, "PUT", "/oauth/clients/root/signer", `{"scopes":["read"],"auth":["private_key_jwt"]}`)
			added := a.must(201, "PUT", "/oauth/clients/root/signer", `{"scopes":["read"],"default_scopes":["read"],"auth":["private_key_jwt"],"jwk":[`+string(jwk)+`]}`)
			if added.json(t)["secret"] != nil {
				t.Errorf("it has got a secret: %s", added.Body)
			}
			assertion := client.assert(nil, nil)
			if res := g.patiently(func() answer { return g.ask(assertion) }); res.StatusCode != 200 {
				t.Errorf("with its key: %d %s", res.StatusCode, res.Body)
			}
			key := jose.JSONWebKey{Key: client.key.Public()}
			thumbprint, err := key.Thumbprint(crypto.SHA256)
			if err != nil {
				t.Fatal(err)
			}
			if s := a.show("signer"); s.Use == nil || s.Use.Method != "private_key_jwt" || s.Use.Credential != base64.RawURLEncoding.EncodeToString(thumbprint) {
				t.Errorf("the key that was used: %+v", s.Use)
			}
			if res := g.patiently(func() answer { return g.ask(assertion) }); res.StatusCode != 401 {
				t.Errorf("the same assertion again: %d, want 401", res.StatusCode)
			}
			if res := g.patiently(func() answer { return g.ask(newKeyClient(t, "signer").assert(nil, nil)) }); res.StatusCode != 401 {
				t.Errorf("with another key: %d, want 401", res.StatusCode)
			}
			document := g.do(g.request("GET", "/.well-known/oauth-authorization-server/oauth2", "")).json(t)
			if got := fmt.Sprint(document["token_endpoint_auth_methods_supported"]); got != "[client_secret_basic client_secret_post private_key_jwt]" {
				t.Errorf("the metadata has %s", got)
			}
			private, err := json.Marshal(jose.JSONWebKey{Key: client.key, KeyID: "1"})
			if err != nil {
				t.Fatal(err)
			}
			if res := a.must(400, "PUT", "/oauth/clients/root/signer", `{"scopes":["read"],"auth":["private_key_jwt"],"jwk":[`+string(private)+`]}`); strings.Contains(res.Body, "\"d\"") {
				t.Errorf("it repeats a private key: %s", res.Body)
			}
		})
	}
}

// Gateways that share a Redis have the same managed clients, and hear of changes as of revocations.
func TestManagedClientsInAFleet(t *testing.T) {
	redis := redistest.Start(t)
	options := at(redis.Addr) + managedOptions
	config, address := withAdmin(t, caddyfileOf(options, fleetSite))
	here := startCaddyfile(t, config)
	a := admin{here, address}
	first := fmt.Sprint(a.must(201, "PUT", "/oauth/clients/root/before", `{"scopes":["read"]}`).json(t)["secret"])
	there, _ := startGatewayProcess(t, options)
	here.linked()
	there.tokenBy("before", first) // it was there when that gateway started

	const path = "/oauth/clients/root/batch"
	for round := range 5 {
		secret := fmt.Sprint(a.must(201, "PUT", path, `{"scopes":["read"]}`).json(t)["secret"])
		here.tokenBy("batch", secret)
		begin := time.Now()
		waitUntil(t, "the other gateway has heard of the client", func() bool { return there.fetchBy("batch", secret).StatusCode == 200 })
		if took := time.Since(begin); took > fleetBound+lateness {
			t.Errorf("round %d: the other gateway knows the client after %v", round, took)
		}
		tokens := []string{here.tokenBy("batch", secret), there.tokenBy("batch", secret)}
		for _, token := range tokens {
			here.wants("a token", token, 200)
			there.wants("a token elsewhere", token, 200)
		}
		if round%2 == 0 {
			a.must(200, "PUT", path, `{"scopes":["read"],"disabled":true}`)
		} else {
			here.mustRevokeAll(address, `{"client":"batch"}`, `{"realm":"root","client":"batch","clients":1}`)
		}
		ended := time.Now()
		for _, token := range tokens {
			here.wants("where they ended", token, 401)
			there.refusedAfter(token, ended)
		}
		a.must(204, "DELETE", path, "")
		for _, token := range tokens {
			there.wants("after the client was removed", token, 401)
		}
	}
	there.tokenBy("before", first)
}

// A gateway that can't hear of changes trusts nothing that it knows of managed clients.
func TestManagedClientsWhileAGatewayIsCutOff(t *testing.T) {
	redis := redistest.Start(t)
	way := redistest.StartProxy(t, redis)
	options := keyFiles(t, "key")["key"] + "token_format sealed\n" + managedOptions
	config, address := withAdmin(t, caddyfileOf(at(redis.Addr)+options, fleetSite))
	here := startCaddyfile(t, config)
	a := admin{here, address}
	there, _ := startGatewayProcess(t, at(way.Addr)+options)
	const path = "/oauth/clients/root/batch"
	secret := fmt.Sprint(a.must(201, "PUT", path, `{"scopes":["read"]}`).json(t)["secret"])
	waitUntil(t, "the other gateway has heard of the client", func() bool { return there.fetchBy("batch", secret).StatusCode == 200 })
	token := there.tokenBy("batch", secret)
	there.wants("its token", token, 200)

	way.Cut()
	waitUntil(t, "the other gateway knows that it can't hear", func() bool { return there.get("/x", token).StatusCode == 503 })
	a.must(200, "PUT", path, `{"scopes":["read"],"disabled":true}`)
	ask := func() answer {
		return there.post("/oauth2/access_token", "batch", secret, url.Values{"grant_type": {"client_credentials"}, "scope": {"read"}})
	}
	if res := ask(); res.StatusCode != 503 {
		t.Errorf("fetching a token where nobody can tell: %d, want 503", res.StatusCode)
	}
	if res := there.get("/x", token); res.StatusCode == 200 {
		t.Errorf("a token where nobody can tell: %d", res.StatusCode)
	}
	// Nor can it tell which clients and secrets there are by now, and all failures are alike.
	late := fmt.Sprint(a.must(201, "PUT", path+"-late", `{"scopes":["read"]}`).json(t)["secret"])
	for id, secret := range map[string]string{"batch-late": late, "batch": late, "reader": late, "nobody": late} {
		if res := there.post("/oauth2/access_token", id, secret, url.Values{"grant_type": {"client_credentials"}, "scope": {"read"}}); res.StatusCode != 503 {
			t.Errorf("%s with a secret that is not known there: %d, want 503", id, res.StatusCode)
		}
	}
	way.Heal()
	waitUntil(t, "the other gateway knows that the client is disabled", func() bool {
		res := ask()
		if res.StatusCode == 200 {
			t.Fatal("a client that is disabled gets a token")
		}
		return res.StatusCode == 401
	})
	if res := there.fetchBy("batch-late", late); res.StatusCode != 200 {
		t.Errorf("a client that was added meanwhile: %d, want 200", res.StatusCode)
	}
	waitUntil(t, "its token is dead", func() bool {
		res := there.get("/x", token)
		if res.StatusCode == 200 {
			t.Fatal("a token of a client that is disabled passes")
		}
		return res.StatusCode == 401
	})
}

// The commands do what they say, by way of the running gateway.
func TestClientCommands(t *testing.T) {
	config, address := withAdmin(t, caddyfileOf("store memory\n"+managedOptions, managedSite))
	g := startCaddyfile(t, config)
	run := func(args ...string) (stdout, stderr string) {
		t.Helper()
		stdout, stderr, err := caddyCLI(t, "", append(append([]string{"client"}, args...), "--address", address)...)
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		return stdout, stderr
	}
	fails := func(says string, args ...string) {
		t.Helper()
		if stdout, _, err := caddyCLI(t, "", append(append([]string{"client"}, args...), "--address", address)...); err == nil || stdout != "" || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %q, %v; want an error that says %q", args, stdout, err, says)
		}
	}
	stdout, stderr := run("add", "batch", "--scopes", "read,write")
	secret := strings.TrimSpace(stdout)
	token := g.tokenBy("batch", secret)
	if stdout != secret+"\n" || !strings.Contains(stderr, "shown only now") {
		t.Errorf("add prints %q and %q", stdout, stderr)
	}
	fails("412", "add", "batch", "--scopes", "read")
	fails("in the configuration", "add", "reader", "--scopes", "read")
	fails("scopes", "add", "other", "--scopes", "a\"b")
	if stdout, _ := run("list"); !regexp.MustCompile(`root   batch   managed  active  \d{4}-\d\d-\d\d  -\n`).MatchString(stdout) || !strings.Contains(stdout, "root   reader  config   active  -           -\n") {
		t.Errorf("list prints\n%s", stdout)
	}
	if stdout, _ := run("list", "--json"); !strings.HasPrefix(stdout, `{"clients":[{"realm":"root","id":"batch","managed":true,`) || strings.Contains(stdout, "sha256") {
		t.Errorf("list --json prints %s", stdout)
	}
	if stdout, _ := run("show", "batch"); !strings.HasPrefix(stdout, `client "batch" of realm "root": active, managed, added `) || !strings.Contains(stdout, `settings: {"scopes":["read","write"]}`) {
		t.Errorf("show prints %s", stdout)
	}
	fails("no client 'nobody'", "show", "nobody")
	fails("no client '..'", "show", "..") // and not the list
	fails("unused is empty", "list", "--unused", "")

	if stdout, _ := run("disable", "batch"); !strings.HasPrefix(stdout, `client "batch" of realm "root": disabled, `) {
		t.Errorf("disable prints %s", stdout)
	}
	g.wants("its token while it is disabled", token, 401)
	if stdout, _ := run("enable", "batch"); !strings.HasPrefix(stdout, `client "batch" of realm "root": active, `) || strings.Contains(stdout, "disabled") {
		t.Errorf("enable prints %s", stdout)
	}
	token = g.tokenBy("batch", secret)
	fails("in the configuration", "disable", "reader")
	run("revoke-tokens", "batch")
	g.wants("its token after they were revoked", token, 401)

	stdout, _ = run("rotate", "batch", "--overlap", "1h")
	g.tokenBy("batch", secret)
	next := strings.TrimSpace(stdout)
	g.tokenBy("batch", next)
	stdout, _ = run("rotate", "batch", "--overlap", "0s")
	g.tokenBy("batch", strings.TrimSpace(stdout))
	for _, old := range []string{secret, next} {
		if res := g.fetchBy("batch", old); res.StatusCode != 401 {
			t.Errorf("a secret from before: %d, want 401", res.StatusCode)
		}
	}
	token = g.tokenBy("batch", strings.TrimSpace(stdout))
	stolen := strings.TrimSpace(stdout)
	stdout, _ = run("rotate", "batch", "--revoke-tokens")
	g.wants("a token from before the theft was known", token, 401)
	if res := g.fetchBy("batch", stolen); res.StatusCode != 401 {
		t.Errorf("the stolen secret: %d, want 401", res.StatusCode)
	}
	g.tokenBy("batch", strings.TrimSpace(stdout))
	run("rotate", "batch", "--retire-unused", "7d", "--from", "2098-01-01T00:00:00Z", "--until", "2099-01-01T00:00:00Z")
	g.tokenBy("batch", strings.TrimSpace(stdout))
	if stdout, _ := run("show", "batch"); !strings.Contains(stdout, ": without end, or once unused for 168h, last used ") || !strings.Contains(stdout, ": from ") {
		t.Errorf("show prints %s", stdout)
	}
	fails("--overlap must not be negative", "rotate", "batch", "--overlap=-1h")
	fails("--from", "rotate", "batch", "--from", "tomorrow")
	run("remove", "batch")
	fails("no client 'batch'", "remove", "batch")

	// Settings may come from a file, and options count before them.
	file := filepath.Join(t.TempDir(), "settings.json")
	replaceFile(t, file, []byte(`{"scopes":["write"],"audience":["https://api.example.com"]}`))
	stdout, _ = run("add", "batch", "--settings", file, "--scopes", "read")
	g.wants("a token of the client from the file", g.tokenBy("batch", strings.TrimSpace(stdout)), 200)
	if stdout, _ := run("show", "batch"); !strings.Contains(stdout, `settings: {"scopes":["read"],"audience":["https://api.example.com"]}`) {
		t.Errorf("show prints %s", stdout)
	}
	replaceFile(t, file, []byte(`{"scope":"canary"}`))
	fails("the settings must be a JSON object", "add", "other", "--settings", file)
	fails("don't go together", "add", "other", "--settings", file, "--caddyfile")
	fails("no such file", "add", "other", "--settings", file+"x")

	// The block that is printed instead is one.
	stdout, _ = run("add", "my batch", "--scopes", "read,write", "--default-scopes", "read", "--audience", "https://api.example.com", "--token-lifetime", "5m", "--caddyfile")
	secret, block, _ := strings.Cut(stdout, "\n")
	g = startGateway(t, "store memory\n"+block, managedSite)
	g.tokenBy("my batch", secret)
}

// Questions about managed clients are answered as those about configured ones.
func TestExplainManagedClient(t *testing.T) {
	config, address := withAdmin(t, caddyfileOf("store memory\nmanaged_clients\n", managedSite))
	a := admin{startCaddyfile(t, config), address}
	explain := func(status int, wants string) {
		t.Helper()
		res := a.must(status, "POST", "/oauth/explain", `{"method":"GET","url":"`+a.URL+`/x","client":"batch"}`)
		if !strings.Contains(res.Body, wants) {
			t.Errorf("the answer has no %s: %s", wants, res.Body)
		}
	}
	explain(400, "there is no client 'batch'")
	a.must(201, "PUT", "/oauth/clients/root/batch", `{"scopes":["read"]}`)
	explain(200, `"outcome":{"kind":"pass"`)
	a.must(200, "PUT", "/oauth/clients/root/batch", `{"scopes":["write"]}`)
	explain(200, `"outcome":{"kind":"refused","status":403,"cause":"scope"`)
	a.must(200, "PUT", "/oauth/clients/root/batch", `{"scopes":["read"],"disabled":true}`)
	explain(200, `"outcome":{"kind":"refused","status":401`)

	// A question is no use of the client.
	secret := fmt.Sprint(a.must(201, "PUT", "/oauth/clients/root/asked", `{"scopes":["read"]}`).json(t)["secret"])
	res := a.must(200, "POST", "/oauth/explain", `{"method":"GET","url":"`+a.URL+`/x","token":"`+a.tokenBy("asked", secret)+`"}`)
	if !strings.Contains(res.Body, `"outcome":{"kind":"pass"`) {
		t.Errorf("a token of it would not pass: %s", res.Body)
	}
	if shown := a.must(200, "GET", "/oauth/clients/root/asked", "").Body; strings.Contains(shown, `"seen"`) || !strings.Contains(shown, `"token"`) {
		t.Errorf("after a question, the client is %s", shown)
	}
	a.must(204, "DELETE", "/oauth/clients/root/batch", "")
	explain(400, "there is no client 'batch'")
}

// An export of a system whose hashes have other parameters for each client would make every failure as
// dear as all of them.
func TestManagedClientsHaveFewKindsOfHashes(t *testing.T) {
	config, address := withAdmin(t, caddyfileOf("store memory\n"+managedOptions, managedSite))
	a := admin{startCaddyfile(t, config), address}
	hashed := func(n int) string {
		return fmt.Sprintf(`{"scopes":["read"],"secrets":[{"hash":"$argon2id$v=19$m=%d,t=2,p=1$GmhSbmKu6MsdY71bwGWBGw$Oe36vHuGNEvukTHYFyPwOiZF5q6MMG/L6taSzBcWCEw"}]}`, 19456+n)
	}
	var clients []string
	for n := range 11 {
		clients = append(clients, fmt.Sprintf(`{"realm":"root","id":"c%d","settings":%s}`, n, hashed(n)))
	}
	all := func(n int) string { return `{"version":1,"clients":[` + strings.Join(clients[:n], ",") + `]}` }
	if res := a.must(409, "POST", "/oauth/clients/import", all(11)); !strings.Contains(res.Body, "'c9' of realm 'root': with its hashes, whoever fails to authenticate has the gateway compute 11") || strings.Contains(res.Body, "'c8'") {
		t.Errorf("too many kinds are told as %s", res.Body)
	}
	a.must(404, "GET", "/oauth/clients/root/c1", "")
	a.must(200, "POST", "/oauth/clients/import", all(10))
	a.must(409, "PUT", "/oauth/clients/root/x", hashed(11))
	a.must(201, "PUT", "/oauth/clients/root/x", hashed(9))
	a.must(201, "PUT", "/oauth/clients/root/y", `{"scopes":["read"]}`)
}
