package caddyoauth_test

import (
	"net/url"
	"strings"
	"testing"
)

// AM tells how many seconds are left of a token's life when the answer is written, rounded down. A
// realm has what root has, unless it says otherwise.
func TestAMTellsHowMuchOfATokensLifeIsLeft(t *testing.T) {
	client := "client reader {\nsecret_hash " + hashOf(testSecret) + "\nscopes read\n}\n"
	for _, tc := range []struct{ root, realm, want string }{
		{"", "", "3600"},
		{"am_compat\n", "", "3599"},
		{"", "am_compat\n", "3599"},
		{"am_compat\n", "am_compat off\n", "3600"},
		{"am_compat off\n", "", "3600"},
	} {
		g := startGateway(t, "store memory\n"+tc.root+"realm alpha {\n"+tc.realm+client+"}\n", "oauth_server")
		a := g.post("/oauth2/realms/root/realms/alpha/access_token", "reader", testSecret, url.Values{"grant_type": {"client_credentials"}, "scope": {"read"}})
		if !strings.HasSuffix(a.Body, `"expires_in":`+tc.want+"}") {
			t.Errorf("root %q, realm %q: the answer is %d %s, want expires_in %s", tc.root, tc.realm, a.StatusCode, a.Body, tc.want)
		}
	}
}
