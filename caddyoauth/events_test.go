package caddyoauth_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// lastEvent returns the fields of the last event in a log, which must be this one.
func lastEvent(t *testing.T, log, event string) map[string]any {
	t.Helper()
	for _, line := range slices.Backward(strings.Split(log, "\n")) {
		var fields map[string]any
		if json.Unmarshal([]byte(line), &fields) != nil || fields["event"] == nil {
			continue // Caddy writes lines of its own, at any time
		}
		if fields["event"] != event {
			t.Fatalf("the last event is %s, want %s", line, event)
		}
		return fields
	}
	t.Fatalf("the log has no event, want %s", event)
	return nil
}

// The events of the endpoints say from where a request came, how it was authenticated, and with
// which secret.
func TestEventsTellTheSender(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	config := logTo(file, caddyfileOf("store memory\nclient c {\nsecret_hash "+hashOf("old-secret")+" until 2099-12-31T23:00:00+01:00\nsecret_hash "+hashOf("new-secret")+
		"\nscopes a\ndefault_scopes a\n}\n", "oauth_server\nrespond 404"))
	g := startCaddyfile(t, strings.Replace(config, "{\n", "{\nservers {\ntrusted_proxies static 127.0.0.0/8\n}\n", 1))
	logged := func() string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	grant := url.Values{"grant_type": {"client_credentials"}}
	inBody := func(form url.Values) url.Values {
		return url.Values{"client_id": {"c"}, "client_secret": {"new-secret"}, "grant_type": form["grant_type"], "token": form["token"]}
	}
	const basic, post = "client_secret_basic", "client_secret_post"
	for _, c := range []struct {
		name, path string
		secret     string // empty: without the header
		form       url.Values
		event      string
		method     any
		position   any
		old        bool
	}{
		{"the old secret", "token", "old-secret", grant, "token_issued", basic, 1.0, true},
		{"the new one", "token", "new-secret", grant, "token_issued", basic, 2.0, false},
		{"the new one in the body", "token", "", inBody(grant), "token_issued", post, 2.0, false},
		{"a wrong one", "token", "not-a-secret", grant, "token_refused", basic, nil, false},
		{"none", "token", "", grant, "token_refused", nil, nil, false},
		{"a refusal after the authentication", "token", "old-secret", url.Values{"grant_type": {"password"}}, "token_refused", basic, 1.0, true},
		{"a refusal of the form", "token", "old-secret", url.Values{"grant_type": {"a", "b"}}, "token_refused", nil, nil, false},
		{"introspection", "introspect", "old-secret", url.Values{"token": {"x"}}, "token_introspected", basic, 1.0, true},
		{"a refused one", "introspect", "not-a-secret", url.Values{"token": {"x"}}, "introspect_refused", basic, nil, false},
		{"revocation", "revoke", "new-secret", url.Values{"token": {"x"}}, "token_revoked", basic, 2.0, false},
		{"a refused one, too", "revoke", "not-a-secret", url.Values{"token": {"x"}}, "revoke_refused", basic, nil, false},
		{"a path without an endpoint", "no/token", "new-secret", grant, "no_such_endpoint", nil, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := g.posting("/oauth2/"+c.path, "c", c.secret, c.form)
			if c.secret == "" {
				r.Header.Del("Authorization")
			}
			r.Header.Set("X-Forwarded-For", "203.0.113.9")
			g.do(r)
			fields := lastEvent(t, logged(), c.event)
			want := map[string]any{"remote_ip": "203.0.113.9", "auth_method": c.method, "secret": c.position, "secret_until": nil, "rotation": nil}
			if c.old {
				want["secret_until"], want["rotation"] = "2099-12-31T22:00:00Z", true
			}
			for name, value := range want {
				if fields[name] != value {
					t.Errorf("%s is %v, want %v", name, fields[name], value)
				}
			}
		})
	}
	for _, secret := range []string{"old-secret", "new-secret", "not-a-secret"} {
		if strings.Contains(logged(), secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
}

// A header that anybody can send is not an address: only a trusted proxy may name the client.
func TestEventsDontBelieveStrangersAboutTheirAddress(t *testing.T) {
	g, logged := startLogged(t, "store memory\n"+testClients, "oauth_server")
	r := g.posting("/oauth2/token", "reader", testSecret, url.Values{"grant_type": {"client_credentials"}})
	r.Header.Set("X-Forwarded-For", "203.0.113.9")
	if a := g.do(r); a.StatusCode != http.StatusOK {
		t.Fatal(a.StatusCode, a.Body)
	}
	if ip := fmt.Sprint(lastEvent(t, logged(), "token_issued")["remote_ip"]); ip != "127.0.0.1" {
		t.Errorf("remote_ip is %s", ip)
	}
}
