package introspect_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// An address that only some can reach is not public, however it is spelled.
func TestPublicAddresses(t *testing.T) {
	for _, text := range []string{
		"127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
		"100.64.0.1", "100.100.100.200", "192.0.0.170", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1",
		"64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a00:1::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "3fff::1", "100::1", "5f00::1",
		"2606:4700::1%eth0",
	} {
		if introspect.IsPublic(netip.MustParseAddr(text)) {
			t.Errorf("%s counts as public", text)
		}
	}
	for _, text := range []string{"1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.32.0.1", "192.0.1.1", "::ffff:8.8.8.8", "2606:4700::1111", "2001:4860:4860::8888", "2a00:1450::1"} {
		if !introspect.IsPublic(netip.MustParseAddr(text)) {
			t.Errorf("%s does not count as public", text)
		}
	}
	if introspect.IsPublic(netip.Addr{}) {
		t.Error("no address counts as public")
	}
}

// The address that counts is the one that a name was resolved to.
func TestGuardedKeysConnectToPublicAddresses(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var accepted atomic.Int64
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			conn.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	for _, c := range []struct {
		host    string
		private []string
		want    bool
	}{
		{"127.0.0.1", nil, false},
		{"localhost", nil, false},
		{"::ffff:127.0.0.1", nil, false},
		{"localhost", []string{"127.0.0.1"}, false}, // names are listed, not where they lead
		{"127.0.0.1", []string{"localhost"}, false},
		{"127.0.0.1", []string{"127.0.0.1"}, true},
		{"LOCALHOST", []string{"localhost"}, true},
	} {
		before := accepted.Load()
		conn, err := introspect.DialPublic(t.Context(), net.JoinHostPort(c.host, port), c.private...)
		if err == nil {
			conn.Read(make([]byte, 1)) // until it was accepted and closed
			conn.Close()
		}
		if got := accepted.Load() > before; got != c.want || (err == nil) != c.want {
			t.Errorf("%s with private hosts %q: connected %v, error %v", c.host, c.private, got, err)
		}
		if !c.want && !contains(err, "not a public address") {
			t.Errorf("%s: %v", c.host, err)
		}
	}
}

// What can be told before anything is resolved is an error of the configuration.
func TestGuardedKeysAreChecked(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  introspect.KeysConfig
		want string // part of the error; empty if there is none
	}{
		{"a name", introspect.KeysConfig{JWKSURI: "https://keys.example/jwks"}, ""},
		{"loopback", introspect.KeysConfig{JWKSURI: "http://127.0.0.1:1/?canary"}, "not a public address"},
		{"localhost", introspect.KeysConfig{JWKSURI: "http://localhost:1/"}, "not a public address"},
		{"a name of localhost", introspect.KeysConfig{JWKSURI: "https://a.LOCALHOST./"}, "not a public address"},
		{"metadata of a cloud", introspect.KeysConfig{JWKSURI: "https://169.254.169.254/"}, "not a public address"},
		{"IPv6", introspect.KeysConfig{JWKSURI: "https://[::1]:8443/"}, "not a public address"},
		{"IPv4 in IPv6", introspect.KeysConfig{JWKSURI: "https://[::ffff:10.0.0.1]/"}, "not a public address"},
		{"discovery", introspect.KeysConfig{Issuer: "https://10.0.0.1", Discovery: true}, "not a public address"},
		{"a listed address", introspect.KeysConfig{JWKSURI: "https://[FD00::1]/", PrivateHosts: []string{"[fd00::1]"}}, ""},
		{"a listed name", introspect.KeysConfig{JWKSURI: "http://localhost:1/", PrivateHosts: []string{"LocalHost"}}, ""},
		{"a port", introspect.KeysConfig{JWKSURI: "https://keys.example/", PrivateHosts: []string{"keys.example:443"}}, "without scheme and port"},
		{"a URL", introspect.KeysConfig{JWKSURI: "https://keys.example/", PrivateHosts: []string{"https://keys.example"}}, "without scheme and port"},
		{"a pattern", introspect.KeysConfig{JWKSURI: "https://keys.example/", PrivateHosts: []string{"*.example"}}, "without scheme and port"},
		{"nothing", introspect.KeysConfig{JWKSURI: "https://keys.example/", PrivateHosts: []string{""}}, "without scheme and port"},
		{"http", introspect.KeysConfig{JWKSURI: "http://keys.example/", PrivateHosts: []string{"keys.example"}}, "must be https"},
	} {
		c.cfg.Guarded = true
		if c.cfg.Issuer == "" {
			c.cfg.Issuer = "ci"
		}
		err := c.cfg.Check()
		if (err == nil) != (c.want == "") || c.want != "" && !contains(err, c.want) || contains(err, "canary") {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := (introspect.KeysConfig{Issuer: "ci", JWKSURI: "https://keys.example/", PrivateHosts: []string{"keys.example"}}).Check(); !contains(err, "only guarded keys") {
		t.Errorf("private hosts of keys that are not guarded: %v", err)
	}
	keys := newKeys(t, jwtSettings{JWKSURI: "http://localhost:1/", Guarded: true, PrivateHosts: []string{"localhost"}})
	if keys.UsesProxies() {
		t.Error("a proxy may connect for guarded keys")
	}
}

// A document or a redirect does not lead to a host that is not listed.
func TestGuardedKeysGoNowhereElse(t *testing.T) {
	var asked atomic.Int64
	secret := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		fmt.Fprint(w, jwks(keyFor("EdDSA").jwk(nil)))
	}))
	defer secret.Close()
	elsewhere := strings.Replace(secret.URL, "127.0.0.1", "localhost", 1)
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/redirect" {
			http.Redirect(w, r, elsewhere, http.StatusFound)
			return
		}
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, server.URL, elsewhere)
	}))
	defer server.Close()
	for want, settings := range map[string]jwtSettings{
		"not a public address": {Issuer: server.URL, Discovery: true},
		"not followed":         {JWKSURI: server.URL + "/redirect"},
	} {
		failures := make(chan error, 100)
		settings.Guarded, settings.PrivateHosts = true, []string{"127.0.0.1"}
		settings.OnFetch = func(kind string, _ time.Duration, err error) {
			if kind == "jwks" {
				failures <- err
			}
		}
		newKeys(t, settings)
		if err := <-failures; !contains(err, want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if asked.Load() != 0 {
		t.Error("the other host was asked")
	}
}

// Whatever arrives, guarded keys are fetched once in a minute, and nobody waits for it. A new key is
// known after that.
func TestGuardedKeysAreFetchedRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fetches atomic.Int64
		var mu sync.Mutex
		set, broken := jwks(keyFor("EdDSA").jwk(nil)), false
		settings := overNetwork(jwtSettings{JWKSURI: "https://keys.example/jwks", Guarded: true, Now: time.Now}, network(func(*http.Request) (*http.Response, error) {
			fetches.Add(1)
			time.Sleep(time.Second)
			mu.Lock()
			defer mu.Unlock()
			if broken {
				return answering(503, nil, ""), nil
			}
			return answering(200, nil, set), nil
		}))
		j := newJWT(t, settings)
		ask := func(alg string) (active bool, err error) {
			facts, err := j.Lookup(t.Context(), introspect.NewToken(keyFor(alg).issue(goodClaims().with(claims{"iat": nil, "exp": time.Now().Add(24 * time.Hour).Unix()}))))
			return err == nil && facts.Active, err
		}
		// The first fetch is waited for.
		if active, err := ask("EdDSA"); !active || fetches.Load() != 1 {
			t.Fatalf("the first token: %v, %v after %d fetches", active, err, fetches.Load())
		}
		mu.Lock()
		set = jwks(keyFor("EdDSA").jwk(nil), keyFor("ES256").jwk(nil))
		mu.Unlock()
		unknown := func(n int) {
			t.Helper()
			begin := time.Now()
			for range n {
				if active, err := ask("ES256"); active || err != nil {
					t.Fatalf("a token of an unknown key: %v, %v", active, err)
				}
			}
			if took := time.Since(begin); took != 0 {
				t.Errorf("tokens of an unknown key waited for %v", took)
			}
		}
		unknown(1000)
		time.Sleep(50 * time.Second)
		unknown(1000)
		synctest.Wait()
		if n := fetches.Load(); n != 1 {
			t.Fatalf("%d fetches within a minute", n)
		}
		time.Sleep(10 * time.Second)
		unknown(1000)
		time.Sleep(2 * time.Second)
		if n := fetches.Load(); n != 2 {
			t.Fatalf("%d fetches after a minute, want 2", n)
		}
		if active, err := ask("ES256"); !active {
			t.Fatalf("the new key is unknown after the fetch: %v", err)
		}

		// While they can't be fetched, they count for 20 minutes.
		mu.Lock()
		broken = true
		mu.Unlock()
		time.Sleep(19*time.Minute + 50*time.Second)
		if active, err := ask("EdDSA"); !active {
			t.Fatalf("the keys are forgotten too early: %v", err)
		}
		time.Sleep(20 * time.Second)
		before := fetches.Load()
		begin := time.Now()
		for range 1000 {
			if active, err := ask("EdDSA"); active || err == nil {
				t.Fatal("a token of a key that was fetched more than 20 minutes ago is good")
			}
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("they waited for %v", took)
		}
		time.Sleep(2 * time.Second)
		if n := fetches.Load() - before; n > 1 {
			t.Errorf("%d fetches for them", n)
		}
		mu.Lock()
		broken = false
		mu.Unlock()
		time.Sleep(2 * time.Minute)
		if active, err := ask("EdDSA"); !active {
			t.Errorf("the keys can be fetched again, and don't count: %v", err)
		}
	})
}

// Until there are any keys, attempts follow each other quickly, and no token makes them faster.
func TestGuardedKeysAreFetchedQuicklyAtFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fetches atomic.Int64
		settings := overNetwork(jwtSettings{JWKSURI: "https://keys.example/jwks", Guarded: true, Now: time.Now}, network(func(*http.Request) (*http.Response, error) {
			fetches.Add(1)
			return nil, &url.Error{Op: "Get", URL: "https://keys.example/jwks", Err: context.DeadlineExceeded}
		}))
		j := newJWT(t, settings)
		begin := time.Now()
		for time.Since(begin) < 10*time.Second {
			if _, err := j.Lookup(t.Context(), introspect.NewToken(keyFor("EdDSA").issue(goodClaims()))); err == nil {
				t.Fatal("a token is judged without keys")
			}
			time.Sleep(time.Millisecond)
		}
		if n := fetches.Load(); n < 5 || n > 7 { // after 0, 0.25, 0.75, 1.75, 3.75, 7.75 s
			t.Errorf("%d fetches in 10 s", n)
		}
	})
}

// A set that never ends is not read to its end.
func TestGuardedKeysAreBounded(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := fmt.Fprint(w, strings.Repeat(" ", 64<<10)); err != nil {
				return
			}
		}
	}))
	defer server.Close()
	failures := make(chan error, 100)
	newKeys(t, jwtSettings{JWKSURI: server.URL, Guarded: true, PrivateHosts: []string{"127.0.0.1"}, OnFetch: func(_ string, _ time.Duration, err error) { failures <- err }})
	if err := <-failures; !contains(err, "more than 524288 bytes") {
		t.Error(err)
	}
}
