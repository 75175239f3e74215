package caddyoauth_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// keyFiles makes files with encryption keys that differ, and returns a line for each.
func keyFiles(t testing.TB, names ...string) map[string]string {
	t.Helper()
	lines, folder := make(map[string]string), t.TempDir()
	for _, name := range names {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte("the encryption key that is called "+name), 0o600); err != nil {
			t.Fatal(err)
		}
		lines[name] = "encryption_key {file." + path + "}\n"
	}
	return lines
}

func (g *gateway) wants(what, token string, status int) {
	g.t.Helper()
	ask := func() answer { return g.getInTime("/x", token) }
	if status == 503 {
		ask = func() answer { return g.get("/x", token) }
	}
	for range 2 { // the second time from the cache
		if a := ask(); a.StatusCode != status {
			g.t.Errorf("%s: %d, want %d", what, a.StatusCode, status)
		}
	}
}

// getInTime is get for a store that may be too late on a busy machine.
func (g *gateway) getInTime(path, token string) answer {
	g.t.Helper()
	return g.inTime(func() answer { return g.get(path, token) })
}

// mustRevoke revokes a token of the root realm, also if the store is late.
func (g *gateway) mustRevoke(id, token string) {
	g.t.Helper()
	if a := g.inTime(func() answer { return g.revoke(id, token) }); a.StatusCode != 200 {
		g.t.Fatalf("revoking: %d", a.StatusCode)
	}
}

// The format of new tokens changes with a reload; those of the former one stay good, and those that
// were revoked stay dead. A client may have a format of its own.
func TestTokenFormatChanges(t *testing.T) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			key := keyFiles(t, "key")["key"] + "issuer https://auth.example.com/oauth2\n"
			g := startGateway(t, store+key+testClients, gatewaySite)
			var good, revoked []string
			issue := func(prefix string) {
				t.Helper()
				token, other := g.token("reader"), g.token("reader")
				if !strings.HasPrefix(token, prefix) {
					t.Errorf("the token is %s, want %s", token, prefix)
				}
				g.wants("a new token", other, 200)
				g.mustRevoke("reader", other)
				good, revoked = append(good, token), append(revoked, other)
				for i := range good {
					g.wants("a token of a former format", good[i], 200)
					g.wants("a revoked one", revoked[i], 401)
				}
			}
			issue("coa_")
			for _, format := range []string{"sealed", "opaque", "jwt", "sealed", "opaque", "jwt"} {
				if err := g.load(store+key+"token_format "+format+"\n"+testClients, gatewaySite); err != nil {
					t.Fatal(err)
				}
				issue(map[string]string{"opaque": "coa_", "sealed": "coe_", "jwt": "eyJ"}[format])
			}
			own := strings.Replace(testClients, "client reader {", "client reader {\ntoken_format opaque", 1)
			if err := g.load(store+key+"token_format sealed\n"+own, gatewaySite); err != nil {
				t.Fatal(err)
			}
			issue("coa_")
			if name == "memory" {
				return
			}
			g.restart(store+key+testClients, gatewaySite)
			for i := range good {
				g.wants("a token from before a restart", good[i], 200)
				g.wants("a revoked one from before a restart", revoked[i], 401)
			}
		})
	}
}

// formats are the lines for each self-contained format of tokens.
var formats = map[string]string{
	"sealed": "token_format sealed\n",
	"jwt":    "token_format jwt\nissuer https://auth.example.com/oauth2\n",
}

// selfContained returns the lines of stores whose tokens are of each self-contained format.
func selfContained(t testing.TB) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for format, lines := range formats {
		for name, store := range stores(t) {
			all[name+", "+format] = store + keyFiles(t, "key")["key"] + lines
		}
	}
	return all
}

// A self-contained token dies with its client, like any other, and stays dead.
func TestSelfContainedTokenOfAClientThatGoes(t *testing.T) {
	for name, store := range selfContained(t) {
		t.Run(name, func(t *testing.T) {
			base := store
			leaving := "client leaving {\nsecret_hash " + hashOf(testSecret) + "\nscopes read\ndefault_scopes read\n"
			g := startGateway(t, base+testClients+leaving+"}\n", gatewaySite)
			token := g.token("leaving")
			g.wants("before", token, 200)
			for _, step := range []struct {
				what, clients string
			}{
				{"disabled", leaving + "disabled\n}\n"}, {"enabled", leaving + "}\n"}, {"removed", ""}, {"back", leaving + "}\n"},
			} {
				if err := g.load(base+testClients+step.clients, gatewaySite); err != nil {
					t.Fatal(err)
				}
				g.wants(step.what, token, 401)
			}
			g.wants("a new one", g.token("leaving"), 200)
		})
	}
}

// A store that has lost its data begins another epoch: no self-contained token of before is good,
// revoked or not.
func TestSelfContainedTokensDieWithTheirStore(t *testing.T) {
	for name, format := range formats {
		t.Run(name, func(t *testing.T) {
			t.Run("bbolt", func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "tokens.db")
				config := "store bbolt " + path + "\n" + format + testClients
				g := startGateway(t, config, gatewaySite)
				token, revoked := g.token("reader"), g.token("reader")
				g.mustRevoke("reader", revoked)
				g.wants("before", token, 200)
				if err := caddy.Stop(); err != nil {
					t.Fatal(err)
				}
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				if err := g.load(config, gatewaySite); err != nil {
					t.Fatal(err)
				}
				g.wants("after the file was lost", token, 401)
				g.wants("a revoked one after the file was lost", revoked, 401)
				g.wants("a new one", g.token("reader"), 200)
			})
			t.Run("redis", func(t *testing.T) {
				redis := redistest.Start(t)
				config := at(redis.Addr) + keyFiles(t, "key")["key"] + format + testClients
				g := startGateway(t, config, fleetSite)
				there, _ := startGatewayProcess(t, config)
				g.linked()
				token, revoked := g.token("reader"), g.token("reader")
				g.mustRevoke("reader", revoked)
				g.cacheIt(token)
				there.wants("elsewhere", token, 200)
				redis.CLI("flushall")
				for _, gateway := range []*gateway{g, there} {
					waitUntil(t, "a token is dead after Redis was emptied", func() bool { return gateway.get("/x", token).StatusCode == 401 })
					// While the gateways agree on a new epoch, nobody can tell, but nobody may say yes either.
					waitUntil(t, "a revoked one is dead after Redis was emptied", func() bool {
						status := gateway.get("/x", revoked).StatusCode
						if status == 200 {
							t.Error("a revoked token is good after Redis was emptied")
						}
						return status == 401
					})
				}
				waitUntil(t, "new tokens are good at both", func() bool {
					a := g.fetch("reader", "read")
					if a.StatusCode != 200 {
						return false
					}
					token := wantToken(t, a, "read")
					return g.get("/x", token).StatusCode == 200 && there.get("/x", token).StatusCode == 200
				})
				g.wants("the old one later", token, 401)
			})
		})
	}
}

// A self-contained token that one gateway issues is good at all, and one that it revokes is soon refused by
// all, from their caches, too.
func TestFleetWithSelfContainedTokens(t *testing.T) {
	for name, format := range formats {
		t.Run(name, func(t *testing.T) {
			redis := redistest.Start(t)
			config := at(redis.Addr) + keyFiles(t, "key")["key"] + format + testClients
			here := startGateway(t, config, fleetSite)
			there, _ := startGatewayProcess(t, config)
			here.linked()
			for round := range 10 {
				from, to := here, there
				if round%2 == 0 {
					from, to = there, here
				}
				token := from.token("reader")
				to.wants("issued elsewhere", token, 200)
				from.mustRevoke("reader", token)
				waitUntil(t, "a token that was revoked elsewhere is dead", func() bool { return to.get("/x", token).StatusCode == 401 })
				from.wants("where it was revoked", token, 401)
			}
			// Nothing but denials was written: there is no record of any token.
			if records := redis.CLI("--raw", "keys", "*:token:*"); strings.TrimSpace(records) != "" {
				t.Errorf("the tokens have records: %s", records)
			}
		})
	}
}

// While the keys of a realm can't be read, clients end all the same.
func TestGenerationsCountWithoutKeys(t *testing.T) {
	redis := redistest.Start(t)
	config := at(redis.Addr) + keyFiles(t, "key")["key"] + "token_format sealed\n" +
		strings.Replace(testClients, "client reader {", "client reader {\ntoken_format opaque", 1)
	g := startGateway(t, config, fleetSite)
	g.linked()
	token := g.token("reader")
	g.wants("before", token, 200)
	redis.CLI("set", "caddy-oauth:{realm:root}:keys", "what no program has written")
	redis.CLI("hset", "caddy-oauth:realm:root:clients", "reader", `{"generation":9}`)
	waitUntil(t, "a token of a former generation is dead", func() bool { return g.get("/x", token).StatusCode == 401 })
	g.wants("a new one", g.token("reader"), 200)
}

// A gateway that starts without its store says so when it finds out that it can't use the keys
// there. Nothing of the realm counts until then.
func TestKeysThatCannotBeUsedAfterAnOutage(t *testing.T) {
	redis := redistest.Start(t, "--appendonly", "yes", "--dir", t.TempDir())
	key := keyFiles(t, "first", "second")
	config := func(key string) string { return at(redis.Addr) + key + "token_format sealed\n" + testClients }
	g := startGateway(t, config(key["first"]), fleetSite)
	g.linked()
	token := g.token("reader")
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	redis.Stop()
	g, logged := startLogged(t, config(key["second"]), fleetSite)
	redis.Restart()
	waitUntil(t, "the log says what is wrong", func() bool {
		return strings.Contains(logged(), "encrypted under an encryption_key that is not configured")
	})
	g.wants("the keys can't be used", token, 503)
}

// Keys are never replaced because they can't be read, and a change of the encryption key ends no
// token.
func TestEncryptionKey(t *testing.T) {
	for name, format := range formats {
		t.Run(name, func(t *testing.T) {
			for name, store := range map[string]string{
				"bbolt": "store bbolt " + filepath.Join(t.TempDir(), "tokens.db") + "\n",
				"redis": at(redistest.Start(t).Addr),
			} {
				t.Run(name, func(t *testing.T) {
					key := keyFiles(t, "first", "second")
					config := func(keys string) string { return store + keys + format + testClients }
					g := startGateway(t, config(key["first"]), gatewaySite)
					token := g.token("reader")
					for _, step := range []struct {
						keys string
						good bool
					}{
						{key["second"], false},
						{key["first"] + key["second"], true},
						{key["second"], false}, // the first still encrypts
						{key["second"] + key["first"], true},
						{key["second"], true}, // they were encrypted anew
						{key["first"], false},
						{"", false},
						{key["second"], true},
					} {
						if err := caddy.Stop(); err != nil {
							t.Fatal(err)
						}
						err := g.load(config(step.keys), gatewaySite)
						if (err == nil) != step.good {
							t.Fatalf("with %q: %v, want good %t", step.keys, err, step.good)
						}
						if step.good {
							g.wants("the token of the beginning", token, 200)
						} else if !strings.Contains(err.Error(), "encryption_key") {
							t.Errorf("the error does not say what is wrong: %v", err)
						}
					}
				})
			}
		})
	}
}

// What would make sealed tokens unsafe is refused when the configuration is loaded.
func TestSealedTokensNeedASafeStore(t *testing.T) {
	redis := redistest.Start(t)
	key := keyFiles(t, "key")["key"]
	g := startGateway(t, "store memory\n"+testClients, gatewaySite)
	refused := func(what, config string, parts ...string) {
		t.Helper()
		err := g.load(config+testClients, gatewaySite)
		if err == nil {
			t.Fatalf("%s: it loads", what)
		}
		for _, part := range parts {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v, want %q in it", what, err, part)
			}
		}
	}
	refused("Redis without encryption", at(redis.Addr)+"token_format sealed\n", `realm "root"`, "encryption_key")
	redis.CLI("acl", "setuser", "default", "-zscan")
	refused("Redis where denials can't be read", at(redis.Addr)+key+"token_format sealed\n", `realm "root"`, "zscan")
	redis.CLI("acl", "setuser", "default", "+zscan", "-info")
	refused("Redis that doesn't say which server it is", at(redis.Addr)+key+"token_format sealed\n", `realm "root"`, "info")
	redis.CLI("acl", "setuser", "default", "+info|server", "+info|replication")
	unsure, logged := startLogged(t, at(redis.Addr)+key+"token_format sealed\n"+testClients, gatewaySite)
	unsure.wants("a token where INFO is not allowed", unsure.token("reader"), 200)
	if !strings.Contains(logged(), "doesn't say whether it drops keys") {
		t.Error("nobody is told that Redis may evict")
	}
	redis.CLI("acl", "setuser", "default", "+info")
	redis.CLI("config", "set", "maxmemory", "100mb")
	redis.CLI("config", "set", "maxmemory-policy", "volatile-lru")
	refused("Redis that evicts", at(redis.Addr)+key+"token_format sealed\n", "volatile-lru", "noeviction")
	if err := g.load(at(redis.Addr)+testClients, gatewaySite); err != nil {
		t.Errorf("opaque tokens need no such thing: %v", err)
	}
	redis.CLI("config", "set", "maxmemory-policy", "noeviction")
	if err := g.load(at(redis.Addr)+key+"token_format sealed\n"+testClients, gatewaySite); err != nil {
		t.Error(err)
	}
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte("canary-short"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("a short encryption key", "store memory\nencryption_key {file."+short+"}\n", "at least 32 characters")
	refused("an encryption key in clear", "store memory\nencryption_key canary-literal-key-of-32-characters\n", "{env.NAME}")
}
