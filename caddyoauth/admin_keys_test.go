package caddyoauth_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/redis/rueidis"

	"github.com/caddyoauth/gateway/caddyoauth/internal/keys"
	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// bothFormats has a client with sealed tokens, and one whose tokens are JWTs.
var bothFormats = "issuer https://auth.example.com/oauth2\ntoken_format sealed\n" +
	"client reader {\nsecret_hash " + hashOf(testSecret) + "\nscopes read\ndefault_scopes read\n}\n" +
	"client signed {\ntoken_format jwt\nsecret_hash " + hashOf(testSecret) + "\nscopes read\ndefault_scopes read\n}\n"

// theKeys is what the admin endpoint says about a realm's keys.
type theKeys struct {
	Realm, Epoch   string
	New, Withdrawn []string
	Keys           []struct {
		Use, ID, Algorithm, State string
		File                      bool
		Made, From, Until         time.Time
	}
}

// states returns the keys as text, such as "sign next".
func (k theKeys) states() string {
	var states []string
	for _, key := range k.Keys {
		states = append(states, key.Use+" "+key.State)
	}
	return strings.Join(states, ", ")
}

// id returns the ID of the first key for a use.
func (k theKeys) id(use string) string {
	for _, key := range k.Keys {
		if key.Use == use {
			return key.ID
		}
	}
	return ""
}

// adminCall calls the admin endpoint: with a body by POST.
func (g *gateway) adminCall(admin, path, body string) answer {
	g.t.Helper()
	method := "GET"
	if body != "" {
		method = "POST"
	}
	r, err := http.NewRequest(method, "http://"+admin+path, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	return g.do(r)
}

// rotateKeys calls POST /oauth/keys/rotate, which must succeed.
func (g *gateway) rotateKeys(admin, body string) (rotated theKeys) {
	g.t.Helper()
	a := g.adminCall(admin, "/oauth/keys/rotate", body)
	if a.StatusCode != 200 || json.Unmarshal([]byte(a.Body), &rotated) != nil {
		g.t.Fatalf("%s: %d %s", body, a.StatusCode, a.Body)
	}
	return rotated
}

// listKeys calls GET /oauth/keys, which must answer with one realm.
func (g *gateway) listKeys(admin, realm string) theKeys {
	g.t.Helper()
	a := g.adminCall(admin, "/oauth/keys?realm="+realm, "")
	var list struct{ Realms []theKeys }
	if a.StatusCode != 200 || json.Unmarshal([]byte(a.Body), &list) != nil || len(list.Realms) != 1 {
		g.t.Fatalf("listing keys: %d %s", a.StatusCode, a.Body)
	}
	return list.Realms[0]
}

// New keys are published, and no token is refused. The keys that make tokens are still those of
// before, since not everybody knows the new ones yet.
func TestKeysAreRotated(t *testing.T) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			options := store + keyFiles(t, "key")["key"] + bothFormats
			config, admin := withAdmin(t, caddyfileOf(options, gatewaySite))
			g := startCaddyfile(t, config)
			sealed, signed := g.token("reader"), g.token("signed")
			before := g.listKeys(admin, "root")
			if before.states() != "sign in use, seal in use" || len(before.Epoch) != 8 {
				t.Fatalf("at first: %+v", before)
			}
			begun := time.Now().Add(-time.Second)
			after := g.rotateKeys(admin, `{"realm":"root"}`)
			if after.states() != "sign in use, sign next, seal in use, seal next" || len(after.New) != 2 || len(after.Withdrawn) != 0 ||
				after.Epoch != before.Epoch || after.id("sign") != before.id("sign") || after.id("seal") != before.id("seal") {
				t.Errorf("rotated: %+v", after)
			}
			for i, lead := range map[int]time.Duration{1: keys.Lead, 3: time.Minute} {
				next, used := after.Keys[i], after.Keys[i-1]
				if early := begun.Add(lead); next.From.Before(early) || next.From.After(time.Now().Add(lead)) || !next.Until.IsZero() || used.Until.Before(next.From) {
					t.Errorf("a new key is in use from %v", next.From)
				}
			}
			if _, set := g.keySet("/oauth2/jwks"); len(set.Keys) != 2 || verified(t, g.token("signed"), set) == nil {
				t.Errorf("%d keys are published", len(set.Keys))
			}
			check := func(when string, tokens ...string) {
				t.Helper()
				for _, token := range tokens {
					g.wants(when, token, 200)
				}
			}
			check("after keys were rotated", sealed, signed, g.token("reader"), g.token("signed"))
			if name != "memory" {
				g.restartCaddyfile(config)
				if got := g.listKeys(admin, "root"); got.states() != after.states() {
					t.Errorf("after a restart: %s", got.states())
				}
				check("after a restart", sealed, signed)
			}
		})
	}
}

// restartCaddyfile is restart for a whole Caddyfile.
func (g *gateway) restartCaddyfile(config string) {
	g.t.Helper()
	if err := caddy.Stop(); err != nil {
		g.t.Fatal(err)
	}
	if err := g.loadCaddyfile(config); err != nil {
		g.t.Fatal(err)
	}
}

// Keys that are withdrawn are gone when the answer comes, and with them all their tokens, cached or
// not, for good. New tokens are good at once.
func TestKeysAreWithdrawn(t *testing.T) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			options := store + keyFiles(t, "key")["key"] + bothFormats
			config, admin := withAdmin(t, caddyfileOf(options, gatewaySite))
			g := startCaddyfile(t, config)
			var dead []string
			// held is a token that the cache knows, and one that the gateway has not seen again.
			type held struct{ cached, fresh string }
			fetch := func(client string) held {
				t.Helper()
				h := held{g.token(client), g.token(client)}
				g.wants("a new token", h.cached, 200)
				return h
			}
			gone := func(h held) { dead = append(dead, h.cached, h.fresh) }
			check := func(when string, good ...held) {
				t.Helper()
				for _, token := range dead {
					g.wants("a token of a key that was withdrawn, "+when, token, 401)
					if active := g.introspect("reader", token).json(t)["active"]; active != false {
						t.Errorf("introspection calls it active: %v", active)
					}
				}
				for _, h := range good {
					g.wants("another token, "+when, h.cached, 200)
					g.wants("another token, "+when, h.fresh, 200)
				}
			}

			sealed, signed := fetch("reader"), fetch("signed")
			first := g.listKeys(admin, "root")
			got := g.rotateKeys(admin, `{"withdraw":true}`)
			if got.states() != "sign in use, seal in use" || len(got.New) != 2 || !slices.Equal(got.Withdrawn, []string{first.id("sign"), first.id("seal")}) {
				t.Errorf("withdrawn: %+v", got)
			}
			gone(sealed)
			gone(signed)
			sealed, signed = fetch("reader"), fetch("signed")
			check("after all were", sealed, signed)
			if _, set := g.keySet("/oauth2/jwks"); len(set.Keys) != 1 || set.Keys[0].KeyID != got.id("sign") || verified(t, signed.fresh, set) == nil {
				t.Errorf("the keys %v are published", set)
			}

			// One key by its ID. It was in use, so there is another one at once.
			g.rotateKeys(admin, `{"realm":"root","withdraw":true,"keys":["`+got.id("sign")+`"]}`)
			gone(signed)
			signed = fetch("signed")
			check("after the signing key was", sealed, signed)
			g.rotateKeys(admin, `{"realm":"root","withdraw":true,"keys":["`+got.id("seal")+`"]}`)
			gone(sealed)
			sealed = fetch("reader")
			check("after the sealing key was", sealed, signed)

			if err := g.loadCaddyfile(strings.Replace(config, "oauth {", "oauth {\ntoken_lifetime 2h", 1)); err != nil {
				t.Fatal(err)
			}
			check("after a reload", sealed, signed)
			if name != "memory" {
				g.restartCaddyfile(config)
				check("after a restart", sealed, signed)
			}
		})
	}
}

// The command does what the admin endpoint does, for people and for scripts.
func TestKeysCommand(t *testing.T) {
	beta := "realm beta {\nissuer https://auth.example.com/beta\nsigning {\nalgorithm EdDSA\n}\n}\nrealm gamma {\n}\n"
	config, admin := withAdmin(t, caddyfileOf("store memory\n"+bothFormats+beta, gatewaySite))
	g := startCaddyfile(t, config)
	run := func(status int, args ...string) (stdout, stderr string) {
		t.Helper()
		stdout, stderr, err := caddyCLI(t, "", append(append([]string{"keys"}, args...), "--address", admin)...)
		if exitStatus(err) != status {
			t.Errorf("%s: status %d, %v", args, exitStatus(err), err)
		}
		if err != nil {
			stderr += err.Error()
		}
		return stdout, stderr
	}
	const when = `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`
	like := func(what, got, want string) {
		t.Helper()
		if !regexp.MustCompile("^" + want + "$").MatchString(got) {
			t.Errorf("%s prints\n%s\nwant\n%s", what, got, want)
		}
	}
	list, _ := run(0, "list")
	like("list", list, `realm beta, epoch [0-9a-f]{8}
use   state   id  +algorithm  made  +from  +until
sign  in use  [\w-]{43}  EdDSA      `+when+`  `+when+`  -
seal  in use  [0-9a-f]{8} +- +`+when+`  `+when+`  -

realm gamma has no keys

realm root, epoch [0-9a-f]{8}
use   state   id  +algorithm  made  +from  +until
sign  in use  [\w-]{43}  ES256      `+when+`  `+when+`  -
seal  in use  [0-9a-f]{8} +- +`+when+`  `+when+`  -
`)
	one, _ := run(0, "list", "--realm", "root")
	if !strings.HasSuffix(list, "\n"+one) {
		t.Errorf("of one realm it prints %s", one)
	}
	rotated, _ := run(0, "rotate", "--realm", "root")
	like("rotate", rotated, `new: [\w-]{43}, [0-9a-f]{8}
realm root, epoch [0-9a-f]{8}
use   state   id  +algorithm  made  +from  +until
sign  in use  [\w-]{43}  ES256      `+when+`  `+when+`  `+when+`
sign  next    [\w-]{43}  ES256      `+when+`  `+when+`  -
seal  in use  [0-9a-f]{8} +- +`+when+`  `+when+`  `+when+`
seal  next    [0-9a-f]{8} +- +`+when+`  `+when+`  -
`)
	text, _ := run(0, "list", "--realm", "root", "--json")
	var listed struct{ Realms []theKeys }
	if err := json.Unmarshal([]byte(text), &listed); err != nil || listed.Realms[0].states() != g.listKeys(admin, "root").states() {
		t.Errorf("as JSON: %v %s", err, text)
	}
	var withdrawn theKeys
	text, _ = run(0, "rotate", "--realm", "root", "--withdraw", "--key", listed.Realms[0].Keys[0].ID, "--key", listed.Realms[0].Keys[2].ID, "--json")
	if err := json.Unmarshal([]byte(text), &withdrawn); err != nil || withdrawn.states() != "sign old, sign in use, seal old, seal in use" ||
		len(withdrawn.Withdrawn) != 2 || len(withdrawn.New) != 2 {
		t.Errorf("withdrawn: %v %s", err, text)
	}
	rotated, _ = run(0, "rotate", "--realm", "root", "--withdraw")
	like("rotate --withdraw", strings.SplitAfter(rotated, "realm")[0], `new: [\w-]{43}, [0-9a-f]{8}
withdrawn: [\w-]{43}, [\w-]{43}, [0-9a-f]{8}, [0-9a-f]{8}
realm`)

	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"rotate", "--realm", "root", "--key", "x"}, "needs --withdraw"},
		{[]string{"rotate"}, "several realms have keys: name one of beta, root"},
		{[]string{"rotate", "--realm", "nobody"}, "unknown realm 'nobody' (known: beta, gamma, root)"},
		{[]string{"list", "--realm", "nobody"}, "unknown realm 'nobody' (known: beta, gamma, root)"},
		{[]string{"rotate", "--realm", "gamma"}, "has no keys"},
		{[]string{"rotate", "--realm", "root", "--withdraw", "--key", "x"}, "(seal, in use)"},
		{[]string{"rotate", "extra"}, "unknown command"},
		{[]string{"list", "extra"}, "unknown command"},
	} {
		if stdout, stderr := run(map[bool]int{true: 1, false: 2}[c.want == "unknown command"], c.args...); stdout != "" || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: %q, %q; want %q", c.args, stdout, stderr, c.want)
		}
	}
	if _, _, err := caddyCLI(t, "", "keys", "turn"); err == nil || !strings.Contains(err.Error(), "(known: list, rotate)") {
		t.Errorf("an unknown command: %v", err)
	}
	if _, _, err := caddyCLI(t, "", "keys", "list", "--address", "127.0.0.1:1"); exitStatus(err) != 2 {
		t.Errorf("nobody to ask: %v", err)
	}
	for _, c := range []struct {
		path, body string
		status     int
	}{
		{"/oauth/keys", "{}", 405},
		{"/oauth/keys/rotate", "", 405},
		{"/oauth/keys/rotate", "[]", 400},
		{"/oauth/keys/rotate", `{"realm":"root","keys":["x"]}`, 400},
		{"/oauth/keys/rotate", `{"realm":"root","more":1}`, 400},
		{"/oauth/keys/rotate", `{"realm":"gamma"}`, 409},
	} {
		if a := g.adminCall(admin, c.path, c.body); a.StatusCode != c.status {
			t.Errorf("%s %s: %d %s", c.path, c.body, a.StatusCode, a.Body)
		}
	}
	// A full ring says so.
	var a answer
	for range keys.MaxKeys + 1 {
		if a = g.adminCall(admin, "/oauth/keys/rotate", `{"realm":"root"}`); a.StatusCode != 200 {
			break
		}
	}
	if a.StatusCode != 409 || !strings.Contains(a.Body, "32 keys, which is the most") {
		t.Errorf("too many keys: %d %s", a.StatusCode, a.Body)
	}
	// Without any keys.
	if err := g.loadCaddyfile(strings.Replace(config, bothFormats+beta, testClients, 1)); err != nil {
		t.Fatal(err)
	}
	if _, stderr := run(2, "rotate"); !strings.Contains(stderr, "no realm has keys") {
		t.Errorf("without keys: %s", stderr)
	}
}

// Keys from files are the operator's to change.
func TestKeysFromFilesAreNotRotated(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key.pem")
	writeSigningKey(t, file)
	files := "signing {\nkey_file " + file + "\n}\n"
	config, admin := withAdmin(t, caddyfileOf("store memory\n"+files+bothFormats, gatewaySite))
	g := startCaddyfile(t, config)
	before := g.listKeys(admin, "root")
	if before.states() != "sign in use, seal in use" || !before.Keys[0].File || before.Keys[1].File {
		t.Errorf("listed: %+v", before)
	}
	for _, body := range []string{`{}`, `{"withdraw":true}`} {
		if a := g.adminCall(admin, "/oauth/keys/rotate", body); a.StatusCode != 409 || !strings.Contains(a.Body, "key_file") {
			t.Errorf("%s: %d %s", body, a.StatusCode, a.Body)
		}
	}
	if a := g.adminCall(admin, "/oauth/keys/rotate", `{"withdraw":true,"keys":["`+before.id("sign")+`"]}`); a.StatusCode != 409 {
		t.Errorf("the key in the file is withdrawn: %d %s", a.StatusCode, a.Body)
	}
	sealed, signed := g.token("reader"), g.token("signed")
	if got := g.rotateKeys(admin, `{"withdraw":true,"keys":["`+before.id("seal")+`"]}`); got.states() != "sign in use, seal in use" || got.id("seal") == before.id("seal") {
		t.Errorf("the key in the store: %+v", got)
	}
	g.wants("a sealed token", sealed, 401)
	g.wants("a JWT", signed, 200)
}

// The log says who has rotated what, and neither it nor an answer holds a key.
func TestRotationIsLogged(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	config, admin := withAdmin(t, caddyfileOf("store memory\n"+bothFormats, gatewaySite))
	g := startCaddyfile(t, logTo(file, config))
	before := g.listKeys(admin, "root")
	got := g.rotateKeys(admin, `{"withdraw":true}`)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`.*"event":"keys_rotated".*`).Find(text)
	var event struct {
		Event, Realm   string
		New, Withdrawn []string
		RemoteIP       string `json:"remote_ip"`
	}
	if err := json.Unmarshal(line, &event); err != nil {
		t.Fatalf("%v in %s", err, line)
	}
	if event.Realm != "root" || event.RemoteIP != "127.0.0.1" || !slices.Equal(event.New, got.New) || !slices.Equal(event.Withdrawn, []string{before.id("sign"), before.id("seal")}) {
		t.Errorf("%s", line)
	}
	for _, a := range []answer{g.adminCall(admin, "/oauth/keys", ""), g.adminCall(admin, "/oauth/keys/rotate", "{}")} {
		if strings.Contains(a.Body, `"d"`) || strings.Contains(a.Body, `"key"`) || a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%v %s", a.Header, a.Body)
		}
	}
}

// Without its store a gateway can't say what the keys are, and nobody is told that they were rotated.
func TestKeysWithoutTheStore(t *testing.T) {
	redis := redistest.Start(t)
	config, admin := withAdmin(t, caddyfileOf(at(redis.Addr)+keyFiles(t, "key")["key"]+bothFormats, fleetSite))
	g := startCaddyfile(t, config)
	g.linked()
	before := g.listKeys(admin, "root")
	redis.Pause()
	for _, a := range []answer{g.adminCall(admin, "/oauth/keys", ""), g.adminCall(admin, "/oauth/keys/rotate", `{"withdraw":true}`)} {
		if a.StatusCode != 503 {
			t.Errorf("%d %s", a.StatusCode, a.Body)
		}
	}
	if _, _, err := caddyCLI(t, "", "keys", "rotate", "--address", admin); exitStatus(err) != 2 {
		t.Errorf("the command: %v", err)
	}
	redis.Resume()
	waitUntil(t, "Redis is back", func() bool { return g.adminCall(admin, "/oauth/keys", "").StatusCode == 200 })
	if got := g.listKeys(admin, "root"); got.states() != before.states() || got.id("sign") != before.id("sign") {
		t.Errorf("after the outage: %+v", got)
	}
}

// nextRing returns what puts new keys of realm root into a Redis, the same ones each time, which come into use
// at a time.
func nextRing(t *testing.T, redis *redistest.Server) (put func(inUse time.Time)) {
	t.Helper()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{redis.Addr}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	const name = "caddy-oauth:{realm:root}:keys"
	stored, err := client.Do(t.Context(), client.B().Get().Key(name).Build()).AsBytes()
	if err != nil {
		t.Fatal(err)
	}
	cipher, err := keys.NewCipher("the encryption key that is called key")
	if err != nil {
		t.Fatal(err)
	}
	ring, err := keys.Read("root", stored, cipher)
	if err != nil {
		t.Fatal(err)
	}
	if ring, err = ring.Rotated(time.Now(), keys.Wanted{Algorithm: keys.ES256, Life: time.Hour}, cipher, false); err != nil {
		t.Fatal(err)
	}
	epoch := ring.Epoch()
	var document map[string]any
	if err := json.Unmarshal(ring.Stored()[len(epoch):], &document); err != nil {
		t.Fatal(err)
	}
	return func(inUse time.Time) {
		t.Helper()
		for _, use := range []string{"sign", "seal"} {
			document[use].([]any)[1].(map[string]any)["from"] = inUse.Unix()
		}
		text, err := json.Marshal(document)
		if err != nil {
			t.Fatal(err)
		}
		if err := client.Do(t.Context(), client.B().Set().Key(name).Value(string(epoch[:])+string(text)).Build()).Error(); err != nil {
			t.Fatal(err)
		}
	}
}

// While keys change under load, no token is refused at any gateway, nor by those who verify JWTs
// themselves and know the key set of a while ago.
func TestFleetChangesKeysUnderLoad(t *testing.T) {
	redis := redistest.Start(t)
	options := at(redis.Addr) + keyFiles(t, "key")["key"] + bothFormats
	here := startGateway(t, options, fleetSite)
	there, _ := startGatewayProcess(t, options)
	here.linked()
	// The new keys are known everywhere before it is settled when they come into use, however long that takes.
	put := nextRing(t, redis)
	put(time.Now().Add(time.Hour))
	waitUntil(t, "both publish the next key", func() bool {
		_, a := here.keySet("/oauth2/jwks")
		_, b := there.keySet("/oauth2/jwks")
		return len(a.Keys) == 2 && len(b.Keys) == 2
	})
	_, known := there.keySet("/oauth2/jwks") // from now on nobody fetches it again
	ended := make(chan struct{})
	var checked atomic.Int64
	var working sync.WaitGroup
	stop := sync.OnceFunc(func() { close(ended); working.Wait() })
	defer stop()
	for _, from := range []*gateway{here, there} {
		for _, to := range []*gateway{here, there} {
			for _, client := range []string{"reader", "signed"} {
				working.Go(func() {
					var token string
					for {
						select {
						case <-ended:
							return
						default:
						}
						fetched := from.token(client)
						for _, token := range []string{fetched, token} {
							if token == "" {
								continue
							}
							if a := to.patiently(func() answer { return to.get("/x", token) }); a.StatusCode != 200 {
								t.Errorf("a token of %s gets %d", client, a.StatusCode)
								return
							}
							checked.Add(1)
						}
						token = fetched
					}
				})
			}
		}
	}
	signer := func(g *gateway) string {
		t.Helper()
		token := g.token("signed")
		if verified(t, token, known) == nil {
			t.Fatal("a verifier does not know a key")
		}
		return strings.SplitN(token, ".", 2)[0]
	}
	before := signer(here)
	if signer(there) != before {
		t.Error("the two sign by different keys before the next one is in use")
	}
	change := time.Now().Add(2 * time.Second)
	put(change)
	waitUntil(t, "the next key signs everywhere, for a second", func() bool {
		a, b := signer(here), signer(there)
		return a != before && b == a && time.Now().After(change.Add(time.Second))
	})
	stop()
	if checked.Load() == 0 {
		t.Error("nothing was tried")
	}
	t.Logf("%d checks", checked.Load())
}

// Keys that one gateway withdraws are gone at the others within the bound of a revocation.
func TestFleetWithdrawsKeys(t *testing.T) {
	redis := redistest.Start(t)
	options := at(redis.Addr) + keyFiles(t, "key")["key"] + bothFormats
	config, admin := withAdmin(t, caddyfileOf(options, fleetSite))
	here := startCaddyfile(t, config)
	there, _ := startGatewayProcess(t, options)
	here.linked()
	for range 3 {
		var tokens []string
		for _, client := range []string{"reader", "signed"} {
			for _, from := range []*gateway{here, there} {
				token := from.token(client)
				waitUntil(t, "the token is good everywhere", func() bool {
					return there.get("/x", token).StatusCode == 200 && here.get("/x", token).StatusCode == 200
				})
				there.wants("there", token, 200)
				here.wants("here", token, 200)
				tokens = append(tokens, token)
			}
		}
		begin := time.Now()
		here.rotateKeys(admin, `{"withdraw":true}`)
		for _, token := range tokens {
			here.wants("here, at once", token, 401)
		}
		for _, token := range tokens {
			if took := there.refusedAfter(token, begin); took > fleetBound+lateness {
				t.Errorf("there it took %v", took)
			}
		}
	}
}

// A gateway that lacks the encryption key under which the others keep the keys now can't read them. It
// refuses what they have withdrawn all the same, and goes on with the rest.
func TestFleetWithdrawsKeysFromThoseWhoCanNotReadThem(t *testing.T) {
	redis := redistest.Start(t)
	lines := keyFiles(t, "old", "new")
	there, _ := startGatewayProcess(t, at(redis.Addr)+lines["old"]+bothFormats)
	config, admin := withAdmin(t, caddyfileOf(at(redis.Addr)+lines["new"]+lines["old"]+bothFormats, fleetSite))
	here := startCaddyfile(t, config)
	here.linked()
	sealed, signed := here.token("reader"), here.token("signed")
	there.wants("before", sealed, 200)
	there.wants("before", signed, 200)
	begin := time.Now()
	here.rotateKeys(admin, `{"withdraw":true,"keys":["`+here.listKeys(admin, "root").id("sign")+`"]}`)
	there.refusedAfter(signed, begin)
	there.wants("a token of a key that is not withdrawn", sealed, 200)
	begin = time.Now()
	here.rotateKeys(admin, `{"withdraw":true}`)
	there.refusedAfter(sealed, begin)
	there.wants("the JWT, again", signed, 401)
}

// Gateways that rotate at the same time lose nothing that the other has made.
func TestKeysRotatedByManyAtOnce(t *testing.T) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			config, admin := withAdmin(t, caddyfileOf(store+keyFiles(t, "key")["key"]+bothFormats, gatewaySite))
			g := startCaddyfile(t, config)
			token := g.token("signed")
			var mu sync.Mutex
			made := map[string]bool{}
			var working sync.WaitGroup
			for range 8 {
				working.Go(func() {
					rotated := g.rotateKeys(admin, `{}`)
					mu.Lock()
					defer mu.Unlock()
					for _, id := range rotated.New {
						made[id] = true
					}
				})
			}
			working.Wait()
			list := g.listKeys(admin, "root")
			if len(made) != 16 || len(list.Keys) != 18 {
				t.Errorf("%d keys were made, and there are %d", len(made), len(list.Keys))
			}
			g.wants("a token of before", token, 200)
			if _, set := g.keySet("/oauth2/jwks"); len(set.Keys) != 9 {
				t.Errorf("%d keys are published", len(set.Keys))
			}
		})
	}
}

// Tokens of withdrawn keys stay dead while the configuration is reloaded, and others rotate.
func TestKeysWithdrawnDuringReloads(t *testing.T) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			config, admin := withAdmin(t, strings.Replace(caddyfileOf(store+keyFiles(t, "key")["key"]+bothFormats, gatewaySite), ":0 {", strings.TrimPrefix(porttest.Address(t), "127.0.0.1")+" {", 1))
			g := startCaddyfile(t, config)
			var configs [][]byte
			for _, lifetime := range []string{"1h", "2h"} {
				text := strings.Replace(config, "oauth {", "oauth {\ntoken_lifetime "+lifetime, 1)
				text = strings.ReplaceAll(text, "BACKEND", g.Backend.Listener.Addr().String())
				adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
				if err != nil {
					t.Fatal(err)
				}
				configs = append(configs, adapted)
			}
			ended := make(chan struct{})
			var working sync.WaitGroup
			working.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-ended:
						return
					default:
					}
					if err := caddy.Load(configs[i%2], true); err != nil {
						t.Error(err)
						return
					}
				}
			})
			defer working.Wait()
			defer close(ended)
			// A server that ends may close a connection that it has accepted, and on a busy machine the store
			// may take too long.
			persist := func(request func() *http.Request) (a answer) {
				t.Helper()
				waitUntil(t, "there is an answer", func() (ok bool) {
					var err error
					a, err = g.try(request())
					return err == nil && !g.late(a)
				})
				return a
			}
			grant := url.Values{"grant_type": {"client_credentials"}}
			var dead []string
			for range 15 {
				for _, client := range []string{"reader", "signed"} {
					a := persist(func() *http.Request { return g.posting("/oauth2/access_token", client, testSecret, grant) })
					token, _ := a.json(t)["access_token"].(string)
					if token == "" {
						t.Fatalf("no token: %d %s", a.StatusCode, a.Body)
					}
					dead = append(dead, token)
				}
				a := persist(func() *http.Request {
					r, err := http.NewRequest("POST", "http://"+admin+"/oauth/keys/rotate", strings.NewReader(`{"withdraw":true}`))
					if err != nil {
						t.Fatal(err)
					}
					r.Header.Set("Content-Type", "application/json")
					return r
				})
				if a.StatusCode != 200 {
					t.Fatalf("%d %s", a.StatusCode, a.Body)
				}
				for _, token := range dead {
					if a := persist(func() *http.Request { return g.request("GET", "/x", "", "Authorization", "Bearer "+token) }); a.StatusCode != 401 {
						t.Fatalf("a token of a key that was withdrawn gets %d", a.StatusCode)
					}
				}
			}
		})
	}
}
