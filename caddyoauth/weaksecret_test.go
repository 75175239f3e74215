package caddyoauth_test

import (
	"net/url"
	"strings"
	"testing"
)

// A secret given by reference works, whether it can be guessed, and so is checked slowly, or not.
// Which secrets are checked slowly is tested beside the rule.
func TestReferencedSecretsThatCanBeGuessed(t *testing.T) {
	t.Setenv("OAUTH_TEST_WEAK", "summer")
	t.Setenv("OAUTH_TEST_STRONG", strings.Repeat("s3cret-", 6))
	g := startGateway(t, `store memory
		client weak {
			secret {env.OAUTH_TEST_WEAK}
			scopes read
			default_scopes read
		}
		client strong {
			secret {env.OAUTH_TEST_STRONG}
			scopes read
			default_scopes read
		}`, "oauth_server")
	grant := url.Values{"grant_type": {"client_credentials"}}
	for id, secret := range map[string]string{"weak": "summer", "strong": strings.Repeat("s3cret-", 6)} {
		if a := g.post("/oauth2/token", id, secret, grant); a.StatusCode != 200 {
			t.Errorf("%s with its secret: %d %s", id, a.StatusCode, a.Body)
		}
		if a := g.post("/oauth2/token", id, "winter", grant); a.StatusCode != 401 {
			t.Errorf("%s with another secret: %d", id, a.StatusCode)
		}
	}
}

// A configuration that asks for more cache than there can be memory is refused, and the next one
// loads.
func TestCacheBeyondMemory(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server")
	err := g.load("store memory\ncache {\nmax_tokens 100000000000000000\n}\n"+testClients, "oauth_server")
	if err == nil || !strings.Contains(err.Error(), "max_tokens") {
		t.Errorf("loading a cache that is too large: %v", err)
	}
	if err := g.load("store memory\n"+testClients, "oauth_server"); err != nil {
		t.Error(err)
	}
	g.token("reader")
}
