package caddyoauth_test

import (
	"strings"
	"testing"
	"time"
)

// Clients of AM name the token endpoint as the audience of their assertions, which is accepted where it is
// asked for, and give them up to half an hour, which is with am_compat.
func TestAMsAssertions(t *testing.T) {
	const base = "https://auth.example.com/oauth2"
	const wrongAudience = `{"error_description":"Audience validation failed","error":"invalid_client"}`
	for _, tc := range []struct {
		setting          string
		endpoint, longer bool // accepted
	}{
		{"", false, false},
		{"am_compat\n", false, true},
		{"am_compat {\nassertion_audience issuer\n}\n", false, true},
		{"am_compat {\nassertion_audience token_endpoint\n}\n", true, true},
	} {
		t.Run(strings.Fields(tc.setting + "off")[0]+" "+strings.ReplaceAll(tc.setting, "\n", " "), func(t *testing.T) {
			c := newKeyClient(t, "signer")
			g := startGateway(t, "store memory\nlimit failures off\n"+issuerOption+tc.setting+c.lines()+"realm alpha {\n"+testClients+"}\n", "oauth_server {\nbase_path /oauth2 /am/oauth2\n}")
			waitUntil(t, "the client's keys are read", func() bool { return g.ask(c.assert(nil, nil)).StatusCode == 200 })
			check := func(what string, good bool, changes map[string]any, at string) {
				t.Helper()
				a := g.post(at, "", "", by(c.assert(changes, nil), "grant_type", "client_credentials", "token", "none"))
				if (a.StatusCode == 200) != good {
					t.Errorf("%s at %s: %d %s", what, at, a.StatusCode, a.Body)
				}
				if !good && strings.HasPrefix(tc.setting, "am_compat") && changes["exp"] == nil && a.Body != wrongAudience {
					t.Errorf("%s at %s: %s, want %s", what, at, a.Body, wrongAudience)
				}
			}
			for _, aud := range []string{base + "/access_token", base + "/realms/root/access_token", "https://auth.example.com/am/oauth2/access_token", base + "/token"} {
				check("aud "+aud, tc.endpoint, map[string]any{"aud": aud}, "/oauth2/access_token")
				check("aud "+aud, tc.endpoint, map[string]any{"aud": aud}, "/oauth2/introspect")
			}
			check("a list", tc.endpoint, map[string]any{"aud": []string{base + "/access_token"}}, "/oauth2/access_token")
			for what, aud := range map[string]any{
				"another host":      "https://other.example.com/oauth2/access_token",
				"another realm":     base + "/realms/root/realms/alpha/access_token",
				"another endpoint":  base + "/introspect",
				"two":               []string{base, base + "/access_token"},
				"one beside it":     []string{base + "/access_token", "https://other.example.com"},
				"another case":      base + "/Access_Token",
				"without the host":  "/oauth2/access_token",
				"with a query":      base + "/access_token?x",
				"plain":             "http://auth.example.com/oauth2/access_token",
				"the base path":     "https://auth.example.com/am/oauth2",
				"a realm's issuer":  base + "/realms/root/realms/alpha",
				"the path of a dir": base + "/access_token/../access_token",
			} {
				check("aud: "+what, false, map[string]any{"aud": aud}, "/oauth2/access_token")
			}
			check("the issuer", true, nil, "/oauth2/access_token")
			check("29 minutes", tc.longer, map[string]any{"exp": time.Now().Add(29 * time.Minute).Unix()}, "/oauth2/access_token")
			check("31 minutes", false, map[string]any{"exp": time.Now().Add(31 * time.Minute).Unix()}, "/oauth2/access_token")
			// Each is good once, however long it lives.
			once := map[string]any{"jti": "once", "exp": time.Now().Add(4 * time.Minute).Unix()}
			check("once", true, once, "/oauth2/access_token")
			check("twice", false, once, "/oauth2/access_token")
		})
	}
}
