package caddyoauth_test

import (
	"context"
	"errors"
	"net/url"
	"testing"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// A token for a resource is good there and nowhere else (RFC 8707), for every store, with the
// cache and without.
func TestTokenForAResource(t *testing.T) {
	const a, b = "https://a.example/api", "urn:example:b"
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			g := startGateway(t, v.options(t)+`
				client both {
					secret_hash `+hashOf(testSecret)+`
					scopes read
					audience `+a+` `+b+` orders
				}
				client neither {
					secret_hash `+hashOf(testSecret)+`
					scopes read
				}`, `oauth_server
				handle /a/* {
					oauth_protect {
						audience `+a+`
					}
					reverse_proxy BACKEND
				}
				handle /b/* {
					oauth_protect {
						audience `+b+`
					}
					reverse_proxy BACKEND
				}`)
			fetch := func(id string, resources ...string) answer {
				return g.inTime(func() answer {
					return g.post("/oauth2/access_token", id, testSecret, url.Values{"grant_type": {"client_credentials"}, "scope": {"read"}, "resource": resources})
				})
			}
			for _, c := range []struct {
				resources []string
				atA, atB  int
			}{
				{nil, 200, 200},
				{[]string{""}, 200, 200},
				{[]string{a}, 200, 401},
				{[]string{b}, 401, 200},
				{[]string{b, a, b}, 200, 200},
			} {
				token := wantToken(t, fetch("both", c.resources...), "read")
				for range 2 { // the second time from the cache, if there is one
					if got := g.getInTime("/a/x", token).StatusCode; got != c.atA {
						t.Errorf("a token for %q gets %d at %s, want %d", c.resources, got, a, c.atA)
					}
					if got := g.getInTime("/b/x", token).StatusCode; got != c.atB {
						t.Errorf("a token for %q gets %d at %s, want %d", c.resources, got, b, c.atB)
					}
				}
			}
			for _, refused := range []answer{
				fetch("both", a+"/"), fetch("both", a, "https://other.example"), fetch("both", "orders"), fetch("both", a+"#"), fetch("neither", a),
			} {
				wantE(t, refused, 400, "invalid_target")
			}
			wantE(t, g.post("/oauth2/access_token", "both", "wrong-secret", url.Values{"grant_type": {"client_credentials"}, "resource": {"junk"}}), 401, "invalid_client")

			library := clientcredentials.Config{
				ClientID: "both", ClientSecret: testSecret, TokenURL: g.URL + "/oauth2/access_token",
				Scopes: []string{"read"}, EndpointParams: url.Values{"resource": {a}},
			}
			var token *oauth2.Token
			waitUntil(t, "the gateway is in time", func() bool {
				var err error
				token, err = library.Token(context.Background())
				var refused *oauth2.RetrieveError
				if err != nil && (!errors.As(err, &refused) || refused.Response.StatusCode != 503 || g.inMemory) {
					t.Fatal(err)
				}
				return err == nil
			})
			about := g.inTime(func() answer { return g.introspectAt("/oauth2", "both", token.AccessToken) })
			if aud := about.json(t)["aud"]; aud != a {
				t.Errorf("the library's token is for %v, want %s alone", aud, a)
			}
		})
	}
}
