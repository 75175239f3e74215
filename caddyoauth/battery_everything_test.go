package caddyoauth_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// world is a configuration. Each of its answers has its number, so that it is known which
// configuration gave an answer, whatever happened in the meantime.
type world struct {
	number     int
	store      string // bbolt or memory
	alpha      bool   // whether there is a realm of that name
	temp       string // the state of the client temp: "", "disabled" or "gone"
	needsWrite bool   // whether root's route requires the scope write
}

func (w world) caddyfile(port, admin, file, log string) string {
	store := "store memory\n"
	if w.store == "bbolt" {
		store = "store bbolt " + file + "\n"
	}
	oauth := store + noFailureLimit + readerIs + writerIs
	if w.temp != "gone" {
		oauth += "client temp {\nsecret_hash " + testHash + "\nscopes read\ndefault_scopes read\n" + w.temp + "\n}\n"
	}
	// A route for each realm. Root's may require a scope; alpha's is 404 if there is no such realm.
	site := "header X-World " + strconv.Itoa(w.number) + "\nmetrics /metrics\noauth_server\noauth_protect /root/* root"
	if w.needsWrite {
		site += " {\nscopes write\n}"
	}
	if w.alpha {
		oauth += "realm alpha {\n" + readerIs + "}\n"
		site += "\noauth_protect /alpha/* alpha"
	} else {
		site += "\nrespond /alpha/* 404"
	}
	config := strings.Replace(patient(oauth, site+"\nrespond ok"), "\n:0 {", "\n:"+port+" {", 1)
	config = strings.Replace(config, "admin off", "admin "+admin, 1)
	return strings.Replace(config, "{\n", "{\nlog {\noutput file "+log+"\nlevel ERROR\n}\n", 1)
}

// worlds is what the callers know about the configurations.
type worlds struct {
	mu  sync.Mutex
	all []world // by number
}

func (ws *worlds) of(a answer) (w world, ok bool) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	n, err := strconv.Atoi(a.Header.Get("X-World"))
	if err != nil || n >= len(ws.all) {
		return world{}, false
	}
	return ws.all[n], true
}

// between reports whether a configuration between two others fulfils is.
func (ws *worlds) between(from, to world, is func(world) bool) bool {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for n := from.number + 1; n < to.number; n++ {
		if is(ws.all[n]) {
			return true
		}
	}
	return false
}

// next stands for a configuration behind all that there have been.
func (ws *worlds) next() world {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return world{number: len(ws.all)}
}

// everythingAtOnce has callers fetch, use, introspect and revoke tokens of two realms while the
// configuration changes: its clients, routes, realms and store.
func everythingAtOnce(t *testing.T, rounds int, requests *atomic.Int64) {
	folder := t.TempDir()
	file, log := filepath.Join(folder, "tokens.db"), filepath.Join(folder, "log")
	addr, admin := porttest.Address(t), porttest.Address(t)
	_, port, _ := net.SplitHostPort(addr)
	ws := &worlds{}
	load := func(g *gateway, w world) error {
		ws.mu.Lock()
		w.number = len(ws.all)
		ws.all = append(ws.all, w)
		ws.mu.Unlock()
		return g.loadCaddyfile(w.caddyfile(port, admin, file, log))
	}
	g := startGateway(t, "store memory\n"+testClients, gatewaySite)
	if err := load(g, world{store: "bbolt", alpha: true}); err != nil {
		t.Fatal(err)
	}
	// Its address stays the same, while each load sets that of g.
	caller := &gateway{t: t, URL: "http://" + addr, Client: newClient(t)}
	send := func(r *http.Request) (answer, world, bool) {
		a, err := caller.try(r)
		if err != nil {
			return a, world{}, false // the connection's server has gone away
		}
		requests.Add(1)
		w, ok := ws.of(a)
		switch {
		case !ok:
			t.Errorf("%s: an answer from no known configuration: %d", r.URL.Path, a.StatusCode)
		case a.StatusCode >= 500 && a.StatusCode != 503, a.StatusCode == 503 && a.Header.Get("Retry-After") == "":
			t.Errorf("%s: %d %s", r.URL.Path, a.StatusCode, a.Body)
		}
		return a, w, ok && a.StatusCode != 503
	}
	base := map[string]string{"root": "/oauth2", "alpha": "/oauth2/realms/root/realms/alpha"}
	get := func(realm, token string) (answer, world, bool) {
		return send(caller.request("GET", "/"+realm+"/x", "", "Authorization", "Bearer "+token))
	}
	post := func(realm, path, id string, form url.Values) (answer, world, bool) {
		return send(caller.posting(base[realm]+path, id, testSecret, form))
	}

	var accepted, revocations, deaths atomic.Int64
	stop := make(chan struct{})
	var all sync.WaitGroup
	forever := func(n int, do func()) {
		for range n {
			all.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						do()
					}
				}
			})
		}
	}

	// The life of a token, from issue to after its revocation.
	life := func(realm, id, scope string) {
		other := "alpha"
		if realm == "alpha" {
			other = "root"
		}
		a, issued, ok := post(realm, "/access_token", id, url.Values{"grant_type": {"client_credentials"}, "scope": {scope}})
		if !ok || tokenIn(a) == "" {
			return
		}
		token := tokenIn(a)
		lost := func(w world) bool { // whether the token may be gone with its store or realm
			changed := func(w world) bool { return w.store != issued.store || realm == "alpha" && !w.alpha }
			return changed(w) || ws.between(issued, w, changed)
		}
		// A request may outlast its configuration. Then it goes by what the next one has done in the
		// store meanwhile.
		outlasted := func() bool {
			return realm == "alpha" && ws.between(issued, ws.next(), func(w world) bool { return !w.alpha })
		}
		for range 3 {
			a, w, ok := get(realm, token)
			switch {
			case !ok || lost(w):
			case a.StatusCode == 200:
				accepted.Add(1)
				if realm == "root" && w.needsWrite && !strings.Contains(scope, "write") {
					t.Errorf("a token without the scope passed")
				}
			case a.StatusCode == 403 && realm == "root" && w.needsWrite && !strings.Contains(scope, "write"):
			case a.StatusCode == 401 && outlasted():
			default:
				t.Errorf("a good token of %s: %d", realm, a.StatusCode)
			}
			if a, _, ok := get(other, token); ok && a.StatusCode != 401 && a.StatusCode != 404 {
				t.Errorf("a token of %s at %s: %d", realm, other, a.StatusCode)
			}
		}
		a, w, ok := post(realm, "/token/revoke", id, url.Values{"token": {token}})
		if !ok || a.StatusCode != 200 || w.store != issued.store || realm == "alpha" && !w.alpha {
			return
		}
		revocations.Add(1)
		for range 3 {
			if a, w, ok := get(realm, token); ok && a.StatusCode != 401 && !(a.StatusCode == 404 && realm == "alpha" && !w.alpha) {
				t.Errorf("a revoked token of %s: %d", realm, a.StatusCode)
			}
			if a, _, ok := post(realm, "/introspect", id, url.Values{"token": {token}}); ok && strings.Contains(a.Body, `"active":true`) {
				t.Errorf("introspection of a revoked token: %s", a.Body)
			}
		}
	}
	forever(2, func() { life("root", "writer", "read write") })
	forever(1, func() { life("root", "reader", "read") })
	forever(1, func() { life("alpha", "reader", "read") })

	// Tokens of a client that comes and goes. Some of them are old.
	type old struct {
		token  string
		issued world
	}
	forever(1, func() {
		var olds []old
		for range 30 {
			if a, w, ok := post("root", "/access_token", "temp", clientCredentials); ok && tokenIn(a) != "" {
				olds = append(olds, old{tokenIn(a), w})
			}
			for range 3 {
				if len(olds) == 0 {
					continue
				}
				o := olds[rand.IntN(len(olds))]
				a, w, ok := get("root", o.token)
				left := func(w world) bool { return w.store == o.issued.store && w.temp != "" }
				if ok && (left(w) || ws.between(o.issued, w, left)) {
					deaths.Add(1)
					if a.StatusCode != 401 {
						t.Errorf("a token of a client that was disabled or removed: %d", a.StatusCode)
					}
				}
			}
		}
	})

	// An observer.
	forever(1, func() {
		if a, _, ok := send(caller.request("GET", "/metrics", "")); ok && (a.StatusCode != 200 || strings.Contains(a.Body, "coa_")) {
			t.Errorf("the metrics: %d", a.StatusCode)
		}
		r, err := http.NewRequest("GET", "http://"+admin+"/config/", nil)
		if err != nil {
			t.Error(err)
			return
		}
		if a, err := caller.try(r); err == nil && (a.StatusCode != 200 || strings.Contains(a.Body, "coa_")) {
			t.Errorf("the configuration: %d", a.StatusCode)
		}
		time.Sleep(10 * time.Millisecond)
	})

	kinds := []string{"", "disabled", "gone"}
	loads := 0
	for deadline := time.Now().Add(time.Duration(rounds) * time.Second); !t.Failed(); loads++ {
		// Not before each kind of caller has seen something, however slow the machine is.
		if time.Now().After(deadline) && accepted.Load() > 20 && revocations.Load() > 5 && deaths.Load() > 5 {
			break
		}
		w := world{store: "bbolt", alpha: rand.IntN(3) > 0, temp: kinds[rand.IntN(3)], needsWrite: rand.IntN(3) == 0}
		if rand.IntN(4) == 0 {
			w.store = "memory"
		}
		if err := load(g, w); err != nil {
			t.Error(err)
		}
		time.Sleep(rand.N(50 * time.Millisecond))
	}
	close(stop)
	all.Wait()
	if text, err := os.ReadFile(log); err != nil || strings.Contains(string(text), "panic") {
		t.Errorf("the log: %v\n%s", err, text)
	}
	t.Logf("%d configurations; %d tokens accepted, %d revoked, %d checks of tokens of a client that had gone", loads, accepted.Load(), revocations.Load(), deaths.Load())
	if err := g.load("store memory\n"+testClients, gatewaySite); err != nil { // ends the admin endpoint
		t.Error(err)
	}
	if t.Failed() {
		t.Log(fmt.Sprint(ws.all))
	}
}
