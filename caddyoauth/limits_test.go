package caddyoauth_test

import (
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// failing is how requests fail in the limit's tests, by what the client sends where.
func (g *gateway) failing(path, id, secret, address string) answer {
	g.t.Helper()
	headers := []string{"X-Forwarded-For", address, "Authorization", basic(id, secret)}
	if path == "/x" {
		return g.do(g.request("GET", path, "", headers...))
	}
	form := url.Values{"grant_type": {"client_credentials"}, "token": {"x"}}
	return g.do(g.request("POST", path, form.Encode(), append(headers, "Content-Type", "application/x-www-form-urlencoded")...))
}

// limitsSite is a site with the endpoints and a route that takes Basic, behind a balancer.
func limitsSite(oauth string) string {
	return withGlobals("servers {\ntrusted_proxies static 127.0.0.0/8\n}", oauth, "metrics /metrics\noauth_server\noauth_protect /x root {\nbasic\n}\nreverse_proxy BACKEND")
}

// After ten failures in a minute, nothing that comes from the same address in the client's name is
// looked at for a while, wherever it is sent. Nobody else is affected, and from elsewhere not even
// that client. That is so without any option.
func TestFailureLimit(t *testing.T) {
	g := startCaddyfile(t, limitsSite("store memory\n"+testClients))
	// On a machine that is busy with other things, a pause may be over before it is seen. The next addresses
	// have one of their own.
	for i := range 20 {
		if pausesAfterTenFailures(t, g, fmt.Sprintf("192.0.2.%d", 2*i+1), fmt.Sprintf("192.0.2.%d", 2*i+2)) {
			return
		}
	}
	t.Error("no pause was seen to its end")
}

// pausesAfterTenFailures checks this for one address, while another one is elsewhere. It returns false if that
// took longer than a pause.
func pausesAfterTenFailures(t *testing.T, g *gateway, address, elsewhere string) bool {
	const pause = 6 * time.Second // a tenth of the minute
	begin := time.Now()
	paths := []string{"/oauth2/token", "/oauth2/introspect", "/oauth2/revoke", "/x"}
	for _, id := range []string{"reader", "nobody"} {
		for i := range 10 {
			if a := g.failing(paths[i%4], id, "wrong", address); a.StatusCode != 401 || a.Header["Retry-After"] != nil {
				t.Fatalf("failure %d of %s: %d", i+1, id, a.StatusCode)
			}
		}
	}
	for _, path := range paths {
		want := ""
		for _, c := range [][2]string{{"reader", "wrong"}, {"nobody", "wrong"}, {"reader", testSecret}} {
			a := g.failing(path, c[0], c[1], address)
			took := time.Since(begin)
			if took >= pause {
				return false
			}
			if wait, err := time.ParseDuration(a.Header.Get("Retry-After") + "s"); a.StatusCode != 429 || err != nil || wait > pause || wait < pause-took {
				t.Fatalf("%s at %s, after %v: %d, Retry-After %q", c, path, took, a.StatusCode, a.Header.Get("Retry-After"))
			}
			a.Header.Set("Retry-After", "6") // seconds may have passed
			if got := fingerprint(a); want == "" {
				want = got
			} else if got != want {
				t.Errorf("%s at %s gets\n%s\nand others\n%s", c, path, got, want)
			}
			if path != "/x" {
				wantE(t, a, 429, "slow_down", c[0], c[1])
			} else if a.Body != "" || a.Header["Www-Authenticate"] != nil || a.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("the route says %v %q", a.Header, a.Body)
			}
		}
		if a := g.failing(path, "reader", testSecret, elsewhere); a.StatusCode != 200 {
			t.Errorf("%s from elsewhere: %d", path, a.StatusCode)
		}
		if a := g.failing(path, "writer", testSecret, address); a.StatusCode == 401 || a.StatusCode == 429 {
			t.Errorf("%s by another client from there: %d", path, a.StatusCode)
		}
	}
	return true
}

// A reload changes nothing about who is refused, unless it changes the limit. A realm has its own
// limit, or root's, and can have none.
func TestFailureLimitAcrossReloads(t *testing.T) {
	config := func(limit string) string {
		return limitsSite("store memory\n" + testClients + limit + "\nrealm none {\nlimit failures off\n" + testClients + "}\nrealm roots {\n" + testClients + "}\n")
	}
	g := startCaddyfile(t, config("limit failures 3 1h"))
	fail := func(realm string, times, want int) {
		t.Helper()
		for i := range times {
			if a := g.failing("/oauth2"+realm+"/token", "reader", "wrong", "192.0.2.1"); a.StatusCode != want {
				t.Fatalf("failure %d in %q: %d, want %d", i+1, realm, a.StatusCode, want)
			}
		}
	}
	load := func(limit string) {
		t.Helper()
		if err := g.loadCaddyfile(config(limit)); err != nil {
			t.Fatal(err)
		}
	}
	const none, roots = "/realms/root/realms/none", "/realms/root/realms/roots"
	fail("", 3, 401)
	fail("", 1, 429)
	fail(roots, 3, 401)
	fail(roots, 1, 429)
	fail(none, 20, 401)
	load("limit failures 3 1h\nlimit tokens 100 1h")
	fail("", 1, 429)
	load("limit failures 4 1h")
	fail("", 4, 401)
	fail("", 1, 429)
	load("limit failures off")
	fail("", 20, 401)
}

// The log has one line about a client that is refused unseen, and none about each of its requests.
// The metrics have both.
func TestFailureLimitIsTold(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	g := startCaddyfile(t, strings.Replace(logTo(file, limitsSite("store memory\nlimit failures 2 1h\n"+testClients)), "DEBUG", "INFO", 1))
	const limited, client = `caddy_oauth_failure_limits_total{realm="root"}`, `caddy_oauth_client_requests_total{client_id="reader",endpoint="token",realm="root",result="failure_limit"}`
	for _, id := range []string{"reader", "nobody"} {
		for range 5 {
			g.failing("/oauth2/token", id, "wrong", "192.0.2.1")
		}
	}
	for range 3 {
		g.failing("/x", "writer", "wrong", "2001:db8::1")
	}
	var told []string
	for _, e := range eventsIn(t, file, "failures_limited") {
		told = append(told, fmt.Sprint(e["level"], " ", e["logger"], " ", e["realm"], " ", e["client_id"], " ", e["remote_ip"], " ", e["auth_method"], " ", e["retry_after"]))
	}
	if want := []string{"info oauth root reader 192.0.2.1 client_secret_basic 1800", "info oauth root  192.0.2.1 client_secret_basic 1800", "info oauth root writer 2001:db8::1 client_secret_basic 1800"}; !slices.Equal(told, want) {
		t.Errorf("the events are %q", told)
	}
	if n := len(eventsIn(t, file, "token_refused")); n != 4 {
		t.Errorf("%d token_refused, want 4", n)
	}
	for _, e := range eventsIn(t, file, "token_refused") {
		if e["reason"] == "failure_limit" {
			t.Errorf("what is refused unseen has an event: %v", e)
		}
	}
	refused := eventsIn(t, file, "request_refused")
	if last := refused[len(refused)-1]; last["cause"] != "failure_limit" || last["status"] != 429. || last["error"] != "slow_down" || last["client_id"] != "writer" {
		t.Errorf("the last refusal at the route is %v", last)
	}
	if n := g.metricOf(limited); n < 3 {
		t.Errorf("%v limits were counted", n)
	}
	if n := g.metricOf(client); n != 3 {
		t.Errorf("%v refusals of the client were counted, want 3", n)
	}
}

// What a client asks about is limited as what it fetches is, by itself, its realm or root.
func TestInquiryLimits(t *testing.T) {
	g := startGateway(t, "store memory\nlimit inquiries 2 1h\n"+readerIs+strings.Replace(writerIs, "{\n", "{\nlimit inquiries 3 1h\n", 1)+
		"realm alpha {\n"+readerIs+"}\nrealm beta {\nlimit inquiries off\n"+readerIs+"}\n", "oauth_server")
	ask := func(realm, client, token string) answer {
		return g.post("/oauth2"+realm+"/introspect", client, testSecret, url.Values{"token": {token}})
	}
	for _, c := range []struct {
		realm, client string
		may           int
	}{{"", "reader", 2}, {"", "writer", 3}, {"/realms/root/realms/alpha", "reader", 2}} {
		token := "x"
		if c.realm == "" {
			token = g.token("reader")
		}
		begin, every := time.Now(), time.Hour/time.Duration(c.may)
		for range c.may {
			if a := ask(c.realm, c.client, token); a.StatusCode != 200 {
				t.Fatalf("%s%s: %d", c.client, c.realm, a.StatusCode)
			}
		}
		a := ask(c.realm, c.client, token)
		wantE(t, a, 429, "slow_down", testSecret)
		if wait, err := time.ParseDuration(a.Header.Get("Retry-After") + "s"); err != nil || wait > every || wait < every-time.Since(begin) {
			t.Errorf("%s%s may come back after %s s", c.client, c.realm, a.Header.Get("Retry-After"))
		}
		wantE(t, g.post("/oauth2"+c.realm+"/introspect", c.client, testSecret, nil), 400, "invalid_request")
		if a := g.post("/oauth2"+c.realm+"/revoke", c.client, testSecret, url.Values{"token": {"x"}}); a.StatusCode != 200 {
			t.Errorf("%s%s can't revoke any more: %d", c.client, c.realm, a.StatusCode)
		}
	}
	for range 20 {
		if a := ask("/realms/root/realms/beta", "reader", "x"); a.StatusCode != 200 {
			t.Fatalf("without a limit: %d", a.StatusCode)
		}
	}
}
