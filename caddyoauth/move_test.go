package caddyoauth_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// mustCLI runs a 'caddy oauth' command that must succeed.
func (a admin) mustCLI(args ...string) string {
	a.t.Helper()
	stdout, _, err := caddyCLI(a.t, "", append(args, "--address", a.address)...)
	if err != nil {
		a.t.Fatalf("%q: %v", args, err)
	}
	return stdout
}

// exportOf returns what an export has of each client, without when it was last changed, and without other
// members.
func exportOf(t *testing.T, text string, without ...string) map[string]string {
	t.Helper()
	var export struct {
		Version int              `json:"version"`
		Clients []map[string]any `json:"clients"`
	}
	if err := json.Unmarshal([]byte(text), &export); err != nil || export.Version != 1 {
		t.Fatalf("this is no export: %v\n%s", err, text)
	}
	all := make(map[string]string)
	for _, client := range export.Clients {
		if client["changed"] == nil || client["created"] == nil {
			t.Errorf("no times: %v", client)
		}
		for _, name := range append(without, "changed") {
			delete(client, name)
		}
		what, err := json.Marshal(client)
		if err != nil {
			t.Fatal(err)
		}
		all[fmt.Sprint(client["realm"], "/", client["id"])] = string(what)
	}
	return all
}

// An operator moves from a file to Redis, or to another fleet, and loses no client: each goes on with its
// secrets and its keys, and with what it may do.
func TestClientsMove(t *testing.T) {
	redis := redistest.Start(t)
	const realms = "realm beta {\nmanaged_clients\n}\n"
	dir := t.TempDir()
	start := func(store string) admin {
		config, address := withAdmin(t, caddyfileOf(store+issuerOption+managedOptions+realms, fleetSite))
		return admin{startCaddyfile(t, logTo(filepath.Join(dir, "log"), config)), address}
	}
	a := start("store bbolt " + filepath.Join(dir, "tokens.db") + "\n")
	const path = "/oauth/clients/root/batch"
	first := fmt.Sprint(a.must(201, "PUT", path, `{"scopes":["read","write"],"default_scopes":["read"],"audience":["https://api.example.com"],"token_lifetime":"5m","limits":{"tokens":{"count":1000,"per":"1m"}}}`).json(t)["secret"])
	second := fmt.Sprint(a.must(200, "POST", path+"/secrets", fmt.Sprintf(`{"others_until":%q}`, time.Now().Add(time.Hour).Format(time.RFC3339))).json(t)["secret"])
	locked := fmt.Sprint(a.must(201, "PUT", "/oauth/clients/root/locked%20out", `{"scopes":["read"]}`).json(t)["secret"])
	a.must(200, "PUT", "/oauth/clients/root/locked%20out", `{"scopes":["read"],"disabled":true}`)
	a.must(201, "PUT", "/oauth/clients/beta/batch", `{"scopes":["write"]}`)
	signer := newKeyClient(t, "signer")
	jwk, err := json.Marshal(jose.JSONWebKey{Key: signer.key.Public(), KeyID: "1"})
	if err != nil {
		t.Fatal(err)
	}
	a.must(201, "PUT", "/oauth/clients/root/signer", `{"scopes":["read"],"default_scopes":["read"],"auth":["private_key_jwt"],"jwk":[`+string(jwk)+`]}`)
	token := a.tokenBy("batch", first)

	file := filepath.Join(dir, "clients.json")
	if stdout := a.mustCLI("client", "export", "--out", file); stdout != "" {
		t.Errorf("export --out prints %s", stdout)
	}
	if info, err := os.Stat(file); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("others can read the file: %v, %v", info, err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if a.mustCLI("client", "export") != string(text) {
		t.Error("export prints something else")
	}
	exported := exportOf(t, string(text), "use")
	if len(exported) != 4 {
		t.Errorf("the export has %v, want 4 clients", exported)
	}
	for _, secret := range []string{first, second, locked} {
		if strings.Contains(string(text), secret) {
			t.Error("the export has a secret")
		}
	}
	if beta := exportOf(t, a.mustCLI("client", "export", "--realm", "beta"), "use"); len(beta) != 1 || beta["beta/batch"] != exported["beta/batch"] {
		t.Errorf("the export of one realm has %v", beta)
	}

	a = start(at(redis.Addr))
	a.linked()
	if got := a.mustCLI("client", "import", "--check", file); got != "added: 4, replaced: 0, the same as before: 0, kept as they were: 0\n" {
		t.Errorf("import --check prints %s", got)
	}
	if got := a.fetchBy("batch", first); got.StatusCode != 401 {
		t.Errorf("after it was only checked, the client gets %d", got.StatusCode)
	}
	if got := a.mustCLI("client", "import", file, "--json"); got != `{"added":4,"replaced":0,"same":0,"kept":0}`+"\n" {
		t.Errorf("import prints %s", got)
	}
	a.wants("a token of before, which has not moved", token, 401)
	for _, secret := range []string{first, second} {
		a.wants("a token by a secret of before", a.tokenBy("batch", secret), 200)
	}
	if got := a.fetchBy("locked out", locked); got.StatusCode != 401 {
		t.Errorf("a client that is disabled gets %d", got.StatusCode)
	}
	if got := a.patiently(func() answer { return a.ask(signer.assert(nil, nil)) }); got.StatusCode != 200 {
		t.Errorf("a client with a key gets %d %s", got.StatusCode, got.Body)
	}
	if again := exportOf(t, a.mustCLI("client", "export"), "use"); fmt.Sprint(again) != fmt.Sprint(exported) {
		t.Errorf("what is exported there is\n%v\nwant\n%v", again, exported)
	}
	if got := a.mustCLI("client", "import", file); got != "added: 0, replaced: 0, the same as before: 4, kept as they were: 0\n" {
		t.Errorf("the second import prints %s", got)
	}

	logged, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	for event, n := range map[string]int{"client_added": 4 + 4, "clients_exported": 4} {
		if got := strings.Count(string(logged), `"event":"`+event+`"`); got != n {
			t.Errorf("%d events %s, want %d", got, event, n)
		}
	}
	for _, hidden := range []string{"$sha256$", first, second} {
		if strings.Contains(string(logged), hidden) {
			t.Errorf("the log has %s", hidden)
		}
	}
}

// A client that is here already with other settings is refused, kept or replaced, as the import says, and
// one that is refused keeps all others out.
func TestImportOfClientsThatAreHere(t *testing.T) {
	config, address := withAdmin(t, caddyfileOf("store memory\n"+managedOptions, managedSite))
	a := admin{startCaddyfile(t, config), address}
	const path = "/oauth/clients/root/batch"
	before := fmt.Sprint(a.must(201, "PUT", path, `{"scopes":["read"]}`).json(t)["secret"])
	export := a.must(200, "POST", "/oauth/clients/export", "{}").Body
	a.must(204, "DELETE", path, "")
	here := fmt.Sprint(a.must(201, "PUT", path, `{"scopes":["read","write"]}`).json(t)["secret"])
	token := a.tokenBy("batch", here)

	// what returns the export with another client, and says what to do.
	what := func(existing string, others ...string) string {
		return strings.Replace(strings.Replace(export, `"clients":[`, `"clients":[`+strings.Join(append(others, ""), ","), 1), `{"version"`, existing+`"version"`, 1)
	}
	const other = `{"realm":"root","id":"other","settings":{"secrets":[{"hash":"` + testHash + `"}],"scopes":["read"]}}`
	wants := func(when, secret string, status int) {
		t.Helper()
		if got := a.fetchBy("batch", secret); got.StatusCode != status {
			t.Errorf("%s: %d, want %d", when, got.StatusCode, status)
		}
	}
	for _, existing := range []string{"{", `{"existing":"refuse",`} {
		if got := a.must(409, "POST", "/oauth/clients/import", what(existing, other)); !strings.Contains(got.Body, "nothing was imported: client 'batch' of realm 'root': there is one with other settings") {
			t.Errorf("it says %s", got.Body)
		}
		a.must(404, "GET", "/oauth/clients/root/other", "")
		wants("the secret that is here, after a refusal", here, 200)
	}
	if got := a.must(200, "POST", "/oauth/clients/import", what(`{"existing":"keep",`, other)); got.Body != `{"added":1,"replaced":0,"same":0,"kept":1}`+"\n" {
		t.Errorf("keeping says %s", got.Body)
	}
	wants("the secret that is here, kept", here, 200)
	if got := a.must(200, "POST", "/oauth/clients/import", what(`{"existing":"replace","check":true,`, other)); got.Body != `{"added":0,"replaced":1,"same":1,"kept":0}`+"\n" {
		t.Errorf("checking says %s", got.Body)
	}
	wants("the secret that is here, after a check", here, 200)
	a.must(200, "POST", "/oauth/clients/import", what(`{"existing":"replace",`, other))
	wants("the secret that is here, replaced", here, 401)
	wants("the secret of the import", before, 200)
	a.wants("a token of before, as after any change of settings", token, 200)
}

// What can't be is refused, with no client imported, and the answer says why and repeats no hash.
func TestImportRefuses(t *testing.T) {
	config, address := withAdmin(t, caddyfileOf("store memory\n"+managedOptions+"console write\nrealm beta {\nclient b {\nsecret_hash "+testHash+"\nscopes read\n}\n}\n", bothSite))
	a := admin{startCaddyfile(t, config), address}
	const good = `{"realm":"root","id":"good","settings":{"secrets":[{"hash":"` + testHash + `"}],"scopes":["read"]}}`
	client := func(id, settings string) string {
		return `{"realm":"root","id":"` + id + `","settings":` + settings + `}`
	}
	many := strings.Repeat(good+",", 500) + good
	for name, c := range map[string]struct {
		body   string
		status int
		says   string
	}{
		"no version":                     {`{"clients":[` + good + `]}`, 400, "no version"},
		"a later version":                {`{"version":2,"clients":[` + good + `]}`, 400, "a later version"},
		"a setting that nobody knows":    {`{"version":1,"clients":[` + client("x", `{"narrow":true}`) + `,` + good + `]}`, 400, "version and clients"},
		"no JSON":                        {`{"version":1,"clients":[` + good, 400, "version and clients"},
		"something behind it":            {`{"version":1,"clients":[` + good + `]}{}`, 400, "behind"},
		"an unknown way":                 {`{"version":1,"existing":"drop","clients":[` + good + `]}`, 400, "existing"},
		"a client twice":                 {`{"version":1,"clients":[` + good + `,` + good + `]}`, 400, "twice"},
		"too many":                       {`{"version":1,"clients":[` + many + `]}`, 400, "500"},
		"a realm that is not here":       {`{"version":1,"clients":[` + good + `,{"realm":"zeta","id":"x","settings":{}}]}`, 404, "known: beta, root"},
		"a realm without managed ones":   {`{"version":1,"clients":[` + good + `,{"realm":"beta","id":"x","settings":{}}]}`, 409, "managed_clients"},
		"a client of the configuration":  {`{"version":1,"clients":[` + good + `,` + client("reader", `{}`) + `]}`, 409, "client 'reader' of realm 'root': client 'reader' is in the configuration"},
		"a client that could do nothing": {`{"version":1,"clients":[` + good + `,` + client("x", `{"scopes":["read"]}`) + `]}`, 409, "no secret"},
		"a secret":                       {`{"version":1,"clients":[` + good + `,` + client("x", `{"secrets":[{"secret":"canary"}]}`) + `]}`, 409, "hash"},
		"a reference to a secret":        {`{"version":1,"clients":[` + good + `,` + client("x", `{"secrets":[{"hash":"{env.CANARY}"}]}`) + `]}`, 409, "hash"},
		"a file of one machine":          {`{"version":1,"clients":[` + good + `,` + client("x", `{"jwks_file":"/canary"}`) + `]}`, 409, "jwks_file"},
		"an ID that can't be":            {`{"version":1,"clients":[` + good + `,` + client("x,y", `{"secrets":[{"hash":"`+testHash+`"}]}`) + `]}`, 409, "client"},
		"settings that are too long":     {`{"version":1,"clients":[` + good + `,` + client("x", `{"audience":["`+strings.Repeat("x", 64<<10)+`"]}`) + `]}`, 409, "more than"},
	} {
		res := a.send("POST", "/oauth/clients/import", c.body)
		if res.StatusCode != c.status || !strings.Contains(res.Body, c.says) || strings.Contains(res.Body, "canary") || strings.Contains(res.Body, "argon2id") {
			t.Errorf("%s: %d %s, want %d and %q", name, res.StatusCode, res.Body, c.status, c.says)
		}
		a.must(404, "GET", "/oauth/clients/root/good", "")
	}
	refused := make([]string, 0, 12)
	for i := range 12 {
		refused = append(refused, client(fmt.Sprint("x", i), `{}`))
	}
	if res := a.must(409, "POST", "/oauth/clients/import", `{"version":1,"clients":[`+strings.Join(refused, ",")+`]}`); !strings.Contains(res.Body, "and 2 more") {
		t.Errorf("many refusals are told as %s", res.Body)
	}
	// As a web page can have a browser send it, or follow a link.
	for _, path := range []string{"/oauth/clients/export", "/oauth/clients/import"} {
		a.must(405, "GET", path, "")
		a.must(415, "POST", path, "")
	}
	// The time when a client was added is of no use if it can't be, but the client is.
	for i, created := range []string{"9999-12-31T23:59:59-10:00", "0000-01-01T00:00:00+10:00", "2999-01-01T00:00:00Z"} {
		id := fmt.Sprint("late", i)
		a.must(200, "POST", "/oauth/clients/import", `{"version":1,"clients":[{"realm":"root","id":"`+id+`","created":"`+created+`","settings":{"secrets":[{"hash":"`+testHash+`"}]}}]}`)
		if shown := a.must(200, "GET", "/oauth/clients/root/"+id, "").json(t); shown["created"] != shown["changed"] {
			t.Errorf("%s: it is shown as added at %v", created, shown["created"])
		}
	}
	if res := a.must(403, "POST", "/oauth/clients/export", "{}", "Sec-Fetch-Site", "same-origin", "Origin", "http://"+address); strings.Contains(res.Body, "clients\"") {
		t.Errorf("a page gets %s", res.Body)
	}
	a.must(404, "POST", "/oauth/clients/export", `{"realm":"gamma"}`)
	a.must(400, "POST", "/oauth/clients/export", `{"all":true}`)
}

// What clients did last moves with them. Of what is not known, nothing is concluded: a client that was
// added elsewhere long ago, and was not seen here, is not one that nobody uses.
func TestUsesMove(t *testing.T) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			config, address := withAdmin(t, caddyfileOf(store+managedOptions, managedSite))
			a := admin{startCaddyfile(t, config), address}
			year := time.Now().Add(-365 * 24 * time.Hour).UTC().Truncate(time.Second)
			client := func(id, use string) string {
				return `{"realm":"root","id":"` + id + `","settings":{"secrets":[{"hash":"` + testHash + `"}],"scopes":["read"]},"created":"` + year.Format(time.RFC3339) + `"` + use + `}`
			}
			used := year.Add(time.Hour)
			text := func(at time.Time) string { return at.Format(time.RFC3339) }
			export := `{"version":1,"clients":[` + client("quiet", "") + "," +
				client("used", `,"use":{"token":"`+text(used)+`","seen":"`+text(used)+`","from":"192.0.2.7","method":"client_secret_basic","credential":"x","credentials":{"x":"`+text(used)+`","`+strings.Repeat("y", 513)+`":"`+text(used)+`"}}`) + "," +
				client("early", `,"use":{"token":"`+text(time.Now().Add(time.Hour))+`","method":"nonsense","credential":"z"}`) + `]}`
			g := a.gateway
			g.patiently(func() answer { return a.send("POST", "/oauth/clients/import", export) })
			shown := a.must(200, "GET", "/oauth/clients/root/used", "")
			if want := `"use":{"token":"` + text(used) + `","seen":"` + text(used) + `","from":"192.0.2.0/24","method":"client_secret_basic","credential":"x","authenticated":"` + text(used) + `"}`; !strings.Contains(shown.Body, want) {
				t.Errorf("it is shown as %s, want %s", shown.Body, want)
			}
			if shown := a.must(200, "GET", "/oauth/clients/root/early", ""); strings.Contains(shown.Body, "nonsense") || strings.Contains(shown.Body, `"z"`) {
				t.Errorf("what can't be is shown: %s", shown.Body)
			} else if at, err := time.Parse(time.RFC3339, fmt.Sprint(shown.json(t)["use"].(map[string]any)["token"])); err != nil || at.After(time.Now()) {
				t.Errorf("it was used at %v, %v", at, err)
			}
			if listed := a.must(200, "GET", "/oauth/clients?managed=true&unused=90d", ""); strings.Contains(listed.Body, `"quiet"`) || strings.Contains(listed.Body, `"early"`) || !strings.Contains(listed.Body, `"used"`) {
				t.Errorf("nobody uses %s", listed.Body)
			}
			a.must(200, "PUT", "/oauth/clients/root/quiet", `{"scopes":["write"]}`)
			if listed := a.must(200, "GET", "/oauth/clients?managed=true&unused=90d", ""); strings.Contains(listed.Body, `"quiet"`) {
				t.Errorf("after a change nobody uses %s", listed.Body)
			}
			exported := exportOf(t, a.must(200, "POST", "/oauth/clients/export", "{}").Body)
			if !strings.Contains(exported["root/used"], `"credentials":{"x":"`+text(used)+`"}`) || strings.Contains(exported["root/quiet"], `"use"`) {
				t.Errorf("what is exported is %v", exported)
			}
			// A client that stays as it is has done nothing else.
			other := strings.NewReplacer(`"version"`, `"existing":"keep","version"`, `["read"]`, `["read","write"]`, text(used), text(time.Now())).Replace(export)
			a.must(200, "POST", "/oauth/clients/import", other)
			if shown := a.must(200, "GET", "/oauth/clients/root/used", ""); !strings.Contains(shown.Body, `"token":"`+text(used)) {
				t.Errorf("a client that was kept is shown as %s", shown.Body)
			}
		})
	}
}

// The command imports what a single request could not, and nothing of a file that was cut off.
func TestImportCommand(t *testing.T) {
	config, address := withAdmin(t, caddyfileOf("store memory\n"+managedOptions+"realm beta {\nmanaged_clients\n}\n", managedSite))
	a := admin{startCaddyfile(t, config), address}
	clients := make([]string, 0, 501)
	for i := range 501 {
		clients = append(clients, fmt.Sprintf(`{"realm":"root","id":"m%03d","settings":{"auth":["tls_client_auth"],"tls_client_auth":{"kind":"san_dns","value":"m%d.example.com"},"scopes":["read"]}}`, i, i))
	}
	text := `{"version":1,"clients":[` + strings.Join(clients, ",") + `]}`
	fails := func(says, input string, args ...string) {
		t.Helper()
		stdout, _, err := caddyCLI(t, input, append(append([]string{"client", "import"}, args...), "--address", address)...)
		if err == nil || stdout != "" || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %q, %v; want an error that says %q", args, stdout, err, says)
		}
	}
	fails("not a whole one", text[:len(text)-1], "-")
	fails("behind the export", text+"{}", "-")
	fails("existing", text, "-", "--existing", "drop")
	fails("no such file", "", filepath.Join(t.TempDir(), "none"))
	// The last one is refused: the first 500 must not be there either.
	fails("client 'm500' of realm 'root'", strings.Replace(text, "m500.example.com", "*.example.com", 1), "-")
	a.must(404, "GET", "/oauth/clients/root/m000", "")

	stdout, _, err := caddyCLI(t, text, "client", "import", "-", "--address", address)
	if err != nil || stdout != "added: 501, replaced: 0, the same as before: 0, kept as they were: 0\n" {
		t.Errorf("import prints %q, %v", stdout, err)
	}
	a.must(200, "GET", "/oauth/clients/root/m500", "")
	if got := exportOf(t, a.mustCLI("client", "export")); len(got) != 501 {
		t.Errorf("%d clients are here", len(got))
	}
	one := `{"version":1,"clients":[` + clients[0] + `,` + clients[1] + `]}`
	if stdout, _, err := caddyCLI(t, one, "client", "import", "-", "--realm", "beta", "--address", address); err != nil || !strings.HasPrefix(stdout, "added: 2,") {
		t.Errorf("into another realm: %q, %v", stdout, err)
	}
	a.must(200, "GET", "/oauth/clients/beta/m001", "")
	fails("several realms", strings.Replace(one, `"realm":"root"`, `"realm":"beta"`, 1), "-", "--realm", "beta")
	// A page of the list has all of them, however long each is.
	text = strings.ReplaceAll(text, `"settings":{`, `"settings":{"audience":["urn:`+strings.Repeat("x", 40<<10)+`"],`)
	if stdout, _, err := caddyCLI(t, text, "client", "import", "-", "--existing", "replace", "--address", address); err != nil || !strings.HasPrefix(stdout, "added: 0, replaced: 501,") {
		t.Errorf("long ones: %.200q, %v", stdout, err)
	}
	if stdout, _, err := caddyCLI(t, "", "client", "list", "--realm", "root", "--address", address); err != nil || strings.Count(stdout, " managed ") != 501 {
		t.Errorf("long ones are listed as %.200q, %v", stdout, err)
	}
	if stdout, _, err := caddyCLI(t, `{"version":1,"clients":[]}`, "client", "import", "-", "--address", address); err != nil || !strings.HasPrefix(stdout, "added: 0,") {
		t.Errorf("nothing: %q, %v", stdout, err)
	}
}
