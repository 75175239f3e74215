package caddyoauth_test

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
)

// A balancer that Caddy trusts says how the client connected to it. If X-Forwarded-Proto is http,
// endpoints and routes refuse the request, however the balancer itself connects, unless
// insecure_http allows it. A balancer that Caddy does not trust is not believed.
func TestTLSThatEndsAtABalancer(t *testing.T) {
	const site = "oauth_server {\nINSECURE\n}\noauth_protect {\nINSECURE\n}\nreverse_proxy BACKEND"
	for _, c := range []struct {
		name, servers, insecure string
		status                  map[string]int // by X-Forwarded-Proto
	}{
		{"trusted", "trusted_proxies static 127.0.0.0/8", "", map[string]int{"https": 200, "http": 403, "http, https": 403, "": 200}},
		{"trusted, with the switch", "trusted_proxies static 127.0.0.0/8", "insecure_http", map[string]int{"https": 200, "http": 200, "": 200}},
		{"another proxy is trusted", "trusted_proxies static 192.0.2.1", "", map[string]int{"https": 200, "http": 200, "": 200}},
		{"no proxy is trusted", "", "", map[string]int{"https": 200, "http": 200, "": 200}},
	} {
		t.Run(c.name, func(t *testing.T) {
			caddyfile := caddyfileOf("store memory\n"+testClients, strings.ReplaceAll(site, "INSECURE", c.insecure))
			caddyfile = strings.Replace(caddyfile, "{\n", "{\nservers {\n"+c.servers+"\n}\n", 1)
			g := startCaddyfile(t, caddyfile)
			token := g.token("reader")
			for said, status := range c.status {
				post := g.posting("/oauth2/token", "reader", testSecret, url.Values{"grant_type": {"client_credentials"}})
				get := g.request("GET", "/x", "", "Authorization", "Bearer "+token)
				for _, r := range []*http.Request{post, get} {
					if said != "" {
						r.Header.Set("X-Forwarded-Proto", said)
					}
					before := g.Backend.count()
					if a := g.do(r); a.StatusCode != status {
						t.Errorf("%s %s with X-Forwarded-Proto %q: %d %s", r.Method, r.URL.Path, said, a.StatusCode, a.Body)
					}
					if n := g.Backend.count() - before; status != 200 && n != 0 {
						t.Error("the request reached the backend")
					}
				}
			}
		})
	}
}

// The comments in the deployment example, for those behind a balancer, are a valid configuration.
func TestDeploymentBehindABalancer(t *testing.T) {
	text := readDocument(t, "examples/deploy/Caddyfile")
	before, after, found := strings.Cut(text, "\t# servers {\n")
	lines, after, _ := strings.Cut(after, "\t# }\n")
	if !found || !strings.Contains(lines, "trusted_proxies_strict") {
		t.Fatal("the Caddyfile shows no trusted_proxies")
	}
	text = before + "\tservers {\n" + strings.ReplaceAll(lines, "\t# ", "\t") + "\t}\n" + after
	checkFormat(t, text)
	config := string(adaptDocument(t, text))
	if !strings.Contains(config, `"trusted_proxies":{"ranges":["192.0.2.10"],"source":"static"}`) {
		t.Errorf("the configuration is %s", config)
	}
}

// A unix socket counts as local, unless Caddy trusts the peer there and that says http.
func TestForwardedOverAUnixSocket(t *testing.T) {
	for servers, status := range map[string]int{"": 200, "trusted_proxies_unix": 403} {
		t.Run("servers "+servers, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			caddyfile := caddyfileOf("store memory\n"+testClients, "") + "http:// {\nbind unix/" + socket + "\noauth_server\n}\n"
			startCaddyfile(t, strings.Replace(caddyfile, "{\n", "{\nservers {\n"+servers+"\n}\n", 1))
			client := newClient(t)
			client.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			}
			for said, want := range map[string]int{"https": 200, "http": status} {
				g := &gateway{t: t, URL: "http://gateway", Client: client}
				r := g.posting("/oauth2/token", "reader", testSecret, url.Values{"grant_type": {"client_credentials"}})
				r.Header.Set("X-Forwarded-Proto", said)
				if a := g.do(r); a.StatusCode != want {
					t.Errorf("with X-Forwarded-Proto %s: %d %s", said, a.StatusCode, a.Body)
				}
			}
		})
	}
}
