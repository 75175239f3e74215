package caddyoauth_test

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// theState is what the admin endpoint says of everything.
type theState struct {
	Now     time.Time
	Console struct{ Write bool }
	Realms  []struct {
		Name, Issuer        string
		TokenFormat         string `json:"token_format"`
		ManagedClients      bool   `json:"managed_clients"`
		Configured, Managed int
		State               string
	}
	Store struct {
		Kind, Address, State string
		Coherent             bool
		Latency              struct{ Get, Put *float64 } `json:"latency_ms"`
	}
	Sources []struct {
		Label, Type, State string
		Latency            *float64 `json:"latency_ms"`
		Stale              bool
		LastError          string `json:"last_error"`
		UsedAt             int    `json:"used_at"`
	}
	Cache struct{ Entries, Max, Hits, Misses int }
}

// state calls GET /oauth/.
func (a admin) state() (s theState) {
	a.t.Helper()
	res := a.must(200, "GET", "/oauth/", "")
	if err := json.Unmarshal([]byte(res.Body), &s); err != nil || res.Header.Get("Cache-Control") != "no-store" {
		a.t.Fatalf("%v: %s", err, res.Body)
	}
	return s
}

// The state of everything: realms with their clients, the store with its latency, and the cache. The
// last hour has what was just done.
func TestState(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens.db")
	stores := map[string][2]string{"memory": {"memory", ""}, "bbolt": {"bbolt " + file, file}}
	if _, err := exec.LookPath("redis-server"); err == nil { // TestFleet reports if it is missing
		address := redistest.Start(t).Addr
		stores["redis"] = [2]string{"redis " + address, address}
	}
	for kind, store := range stores {
		t.Run(kind, func(t *testing.T) {
			config, address := withAdmin(t, caddyfileOf("store "+store[0]+"\nissuer https://auth.example.com/oauth2\ncache {\nmax_tokens 77\n}\nrealm partners {\nmanaged_clients\n}\n"+managedOptions, managedSite))
			a := admin{startCaddyfile(t, config), address}
			before := a.state()
			a.must(201, "PUT", "/oauth/clients/root/batch", `{"scopes":["read"]}`)
			token := a.token("reader", "read")
			a.get("/x", token)
			a.get("/x", token)
			a.get("/x", "")

			s := a.state()
			if len(s.Realms) != 2 || s.Realms[0].Name != "partners" || s.Realms[0].Issuer != "https://auth.example.com/oauth2/realms/root/realms/partners" {
				t.Fatalf("%+v", s.Realms)
			}
			if root := s.Realms[1]; root.TokenFormat != "opaque" || !root.ManagedClients || root.Configured != 2 || root.Managed != 1 || root.State != "ok" {
				t.Errorf("%+v", root)
			}
			if s.Store.Kind != kind || s.Store.State != "ok" || !s.Store.Coherent || !strings.HasSuffix(s.Store.Address, store[1]) || (store[1] == "") != (s.Store.Address == "") {
				t.Errorf("%+v", s.Store)
			}
			if l := s.Store.Latency; l.Get == nil || l.Put == nil || *l.Get < 0 || *l.Put <= 0 || *l.Put > 60_000 {
				t.Errorf("%+v", s.Store.Latency)
			}
			if c := s.Cache; c.Max != 77 || c.Entries > 1 || c.Misses-before.Cache.Misses != 1 || c.Hits-before.Cache.Hits != 1 {
				t.Errorf("%+v, and before %+v", c, before.Cache)
			}
			if s.Console.Write || len(s.Sources) != 0 || time.Since(s.Now) > time.Minute {
				t.Errorf("%+v", s)
			}

			var live struct {
				Now    time.Time
				Step   int `json:"step_seconds"`
				Series []struct {
					Realm, Kind, Outcome, Cause string
					Counts                      []int
				}
			}
			if res := a.must(200, "GET", "/oauth/live", ""); json.Unmarshal([]byte(res.Body), &live) != nil || live.Step != 60 || time.Since(live.Now) > time.Minute {
				t.Fatalf("%s", res.Body)
			}
			got := make(map[string]bool)
			for _, series := range live.Series {
				if len(series.Counts) != 60 {
					t.Errorf("%d steps", len(series.Counts))
				}
				got[series.Realm+" "+series.Kind+" "+series.Outcome+" "+series.Cause] = true
			}
			for _, want := range []string{"root token ok ", "root route ok ", "root route missing_token missing"} {
				if !got[want] {
					t.Errorf("nothing of %q in %v", want, got)
				}
			}
			a.must(405, "POST", "/oauth/", "{}")
			a.must(405, "POST", "/oauth/live", "{}")
			a.must(404, "GET", "/oauth/unknown", "")
		})
	}
}

// Sources of tokens from elsewhere: who uses them, whether they can be asked, why not, and who is served
// what was remembered.
func TestStateOfSources(t *testing.T) {
	f := newForeign(t)
	f.knows("opaque", activeForeign)
	route := func(path, maxAge string) string {
		return "route " + path + " {\noauth_protect {\n" + f.introspect("max_age "+maxAge+"\nserve_stale 1h") + "}\nreverse_proxy BACKEND\n}\n"
	}
	config, address := withAdmin(t, caddyfileOf("console write", route("/a", "100ms")+route("/b", "110ms")))
	a := admin{startCaddyfile(t, config), address}
	if res := a.get("/a", "opaque"); res.StatusCode != 200 {
		t.Fatal(res.StatusCode)
	}
	s := a.state()
	if len(s.Sources) != 1 || s.Store.Kind != "none" || s.Store.State != "none" || s.Realms[0].State != "none" || !s.Console.Write {
		t.Fatalf("%+v", s)
	}
	if source := s.Sources[0]; source.Type != "introspect" || source.State != "ok" || source.UsedAt != 2 || source.Stale || source.LastError != "" ||
		source.Latency == nil || !strings.HasPrefix(source.Label, "http://127.0.0.1:") {
		t.Errorf("%+v", source)
	}
	f.away.Store(true)
	waitUntil(t, "the cache answers in its place", func() bool {
		a.get("/b", "opaque")
		return a.state().Sources[0].Stale
	})
	if source := a.state().Sources[0]; !strings.HasPrefix(source.LastError, "asking http://127.0.0.1:") || strings.Contains(source.LastError, "opaque") {
		t.Errorf("%+v", source)
	}
	f.away.Store(false)
	waitUntil(t, "it answers", func() bool {
		a.get("/a", "opaque")
		source := a.state().Sources[0]
		return source.LastError == "" && source.State == "ok"
	})
}

// Keys that can't be fetched say why.
func TestStateOfKeys(t *testing.T) {
	config, address := withAdmin(t, caddyfileOf("", "oauth_protect {\nsource jwt https://127.0.0.1:1 {\naudience a\n}\n}\nreverse_proxy BACKEND"))
	a := admin{startCaddyfile(t, config), address}
	waitUntil(t, "the keys could not be fetched", func() bool { return a.state().Sources[0].LastError != "" })
	if source := a.state().Sources[0]; source.Type != "jwt" || source.State != "no_keys" || source.Label != "https://127.0.0.1:1" {
		t.Errorf("%+v", source)
	}
}
