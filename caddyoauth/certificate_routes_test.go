package caddyoauth_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A bound token is refused without its certificate, and passes with it, on every kind of route.
func TestCertificateBoundOnEveryRoute(t *testing.T) {
	own, other := selfSigned(t, "own"), selfSigned(t, "other")
	clients := "client bound {\nsecret_hash " + testHash + "\nscopes read\ndefault_scopes read\ncertificate_bound\n}\n"
	site := `oauth_server
		handle /twice/* {
			route {
				oauth_protect
				oauth_protect {
					scopes read
				}
				reverse_proxy BACKEND
			}
		}
		handle /reports/* {
			oauth_protect {
				report_only
			}
			reverse_proxy BACKEND
		}
		handle /reports-first/* {
			route {
				oauth_protect {
					report_only
				}
				oauth_protect
				reverse_proxy BACKEND
			}
		}
		handle /optional/* {
			oauth_protect {
				optional
			}
			reverse_proxy BACKEND
		}
		handle /kept/* {
			oauth_protect {
				keep_token
			}
			reverse_proxy BACKEND
		}
		handle /basic/* {
			oauth_protect {
				basic
			}
			reverse_proxy BACKEND
		}`
	g := startAsking(t, "store memory\n"+noFailureLimit+clients, site, "mode request", "")
	token := g.with(own).token("bound")
	byOwn, byOther, byNobody := g.with(own), g.with(other), g.with()
	named := func() bool { return g.Backend.last(t).Header.Get("X-Oauth-Client-Id") == "bound" }
	for range 2 { // the second time from the cache
		for _, path := range []string{"/twice/x", "/optional/x", "/kept/x", "/basic/x", "/reports-first/x", "/reports/x"} {
			if a := byOwn.get(path, token); a.StatusCode != 200 || !named() {
				t.Errorf("%s with its certificate: %d, named %v", path, a.StatusCode, named())
			}
			for what, by := range map[string]*gateway{"another": byOther, "none": byNobody} {
				a := by.get(path, token)
				if path == "/reports/x" {
					if a.StatusCode != 200 || named() {
						t.Errorf("%s with %s: %d, named %v", path, what, a.StatusCode, named())
					}
					continue
				}
				challenge := a.Header.Get("WWW-Authenticate")
				if a.StatusCode != 401 || !strings.HasPrefix(challenge, `Bearer realm="root", error="invalid_token", error_description="the token is not valid here"`) {
					t.Errorf("%s with %s: %d, %q", path, what, a.StatusCode, challenge)
				}
			}
		}
	}
	if a := byNobody.get("/optional/x", ""); a.StatusCode != 200 || named() {
		t.Errorf("without a token where none is needed: %d", a.StatusCode)
	}
	// A secret alone must not do what a token can't without its certificate.
	for what, by := range map[string]*gateway{"no certificate": byNobody, "a certificate": byOwn} {
		if a := by.do(by.request("GET", "/basic/x", "", "Authorization", basic("bound", testSecret))); a.StatusCode != http.StatusUnauthorized {
			t.Errorf("Basic with %s: %d", what, a.StatusCode)
		}
	}
	waitUntil(t, "the refusals are logged", func() bool {
		return strings.Contains(g.logged(), `"cause":"binding"`) && strings.Contains(g.logged(), `"reason":"no_tokens"`)
	})
}

// A question about a client with bound tokens is asked as if the request showed the certificate, and
// says so.
func TestExplainAssumesTheCertificate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "Caddyfile")
	config := "{\nauto_https off\noauth {\nstore memory\nclient bound {\nsecret_hash " + testHash + "\nscopes read\ncertificate_bound\n}\nexpect {\nbound GET http://127.0.0.1:8080/x pass\n}\n}\n}\n:8080 {\noauth_server\noauth_protect {\nscopes read\n}\nrespond ok\n}\n"
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, err := caddyCLI(t, "", "explain", "--config", file, "--client", "bound", "GET", "http://127.0.0.1:8080/x")
	if err != nil || !strings.Contains(stdout, "the token is bound to a certificate, which the request is assumed to show") || !strings.Contains(stdout, "It is answered with 200") {
		t.Errorf("%s%s%v", stdout, stderr, err)
	}
}

// Tokens of other servers that are bound to a certificate are held to it, too.
func TestForeignTokensBoundToACertificate(t *testing.T) {
	own, other := selfSigned(t, "own"), selfSigned(t, "other")
	f := newForeign(t)
	cnf := `"cnf":{"x5t#S256":"` + thumbprint(own) + `"}`
	f.knows("opaque", strings.Replace(activeForeign, "{", "{"+cnf+",", 1))
	f.knows("otherwise", strings.Replace(activeForeign, "{", `{"cnf":{"kid":"a"},`, 1))
	tokens := map[string]string{"introspected": "opaque", "signed": f.jwt(t, ","+cnf)}
	site := "oauth_server\noauth_protect {\n" + f.sources("") + "}\nreverse_proxy BACKEND"
	g := startAsking(t, "store memory\n"+testClients, site, "mode request", "")
	byOwn, byOther, byNobody := g.with(own), g.with(other), g.with()
	for kind, token := range tokens {
		waitUntil(t, "the issuer's keys are there", func() bool { return byOwn.get("/x", token).StatusCode == 200 })
		for range 2 {
			for by, want := range map[*gateway]int{byOwn: 200, byOther: 401, byNobody: 401} {
				if a := by.get("/x", token); a.StatusCode != want {
					t.Errorf("%s: %d, want %d", kind, a.StatusCode, want)
				}
			}
		}
	}
	if a := byOwn.do(byOwn.request("GET", "/x", "", "Authorization", "Bearer otherwise")); a.StatusCode != 401 {
		t.Errorf("bound otherwise: %d", a.StatusCode)
	}
}
