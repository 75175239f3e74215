package caddyoauth_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
)

// A request has one method of client authentication (RFC 6749 section 2.3). Whoever offers two is
// refused for that, whether both are right, or one, or none, and whatever else the client may use: or
// what one part of a gateway takes for proved, another could take from credentials that nobody has
// looked at.
func TestOneMethodARequest(t *testing.T) {
	c := newKeyClient(t, "signer")
	g := startGateway(t, "store memory\n"+noFailureLimit+issuerOption+
		strings.Replace(c.lines(), "auth private_key_jwt\n", "auth client_secret_basic client_secret_post private_key_jwt\nsecret_hash "+hashOf(testSecret)+"\n", 1), "oauth_server")
	waitUntil(t, "the client's keys are read", func() bool { return g.ask(c.assert(nil, nil)).StatusCode == 200 })

	type part struct {
		name  string
		lines []string // of Authorization
		form  url.Values
		// offers tells whether it is credentials, right whether they are right, and broken whether their
		// form is wrong, so that they are refused before anybody looks at them.
		offers, right, broken bool
	}
	authorization := []part{
		{name: "no Authorization"},
		{name: "right Basic", lines: []string{basic("signer", testSecret)}, offers: true, right: true},
		{name: "wrong Basic", lines: []string{basic("signer", "wrong")}, offers: true},
		{name: "a bearer token", lines: []string{"Bearer x"}, offers: true},
		{name: "two Authorization", lines: []string{basic("signer", testSecret), basic("signer", testSecret)}, offers: true, broken: true},
		{name: "Basic and Bearer", lines: []string{basic("signer", testSecret), "Bearer x"}, offers: true, broken: true},
	}
	secrets := []part{
		{name: "no secret"},
		{name: "right secret", form: url.Values{"client_secret": {testSecret}}, offers: true, right: true},
		{name: "wrong secret", form: url.Values{"client_secret": {"wrong"}}, offers: true},
		{name: "empty secret", form: url.Values{"client_secret": {""}}}, // is absent (section 3.2)
		{name: "two secrets", form: url.Values{"client_secret": {testSecret, testSecret}}, offers: true, broken: true},
	}
	typed := func(text string) url.Values { return by(text) }
	assertions := []func() part{
		func() part { return part{name: "no assertion"} },
		func() part {
			return part{name: "right assertion", form: typed(c.assert(nil, nil)), offers: true, right: true}
		},
		func() part {
			return part{name: "spoiled assertion", form: typed(spoiled(c.assert(nil, nil))), offers: true}
		},
		func() part { return part{name: "junk assertion", form: typed("junk"), offers: true} },
		func() part { return part{name: "empty assertion", form: typed(""), offers: true, broken: true} },
		func() part {
			return part{name: "assertion without a type", form: url.Values{"client_assertion": {c.assert(nil, nil)}}, offers: true, broken: true}
		},
		func() part {
			return part{name: "type alone", form: url.Values{"client_assertion_type": {assertionType}}, offers: true, broken: true}
		},
		func() part {
			form := typed(c.assert(nil, nil))
			form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer")
			return part{name: "another type", form: form, offers: true, broken: true}
		},
		func() part {
			form := typed(c.assert(nil, nil))
			form.Add("client_assertion", c.assert(nil, nil))
			return part{name: "two assertions", form: form, offers: true, broken: true}
		},
	}
	for _, path := range []string{"/oauth2/access_token", "/oauth2/introspect", "/oauth2/revoke"} {
		for _, a := range authorization {
			for _, s := range secrets {
				for _, assertion := range assertions {
					for _, named := range []bool{true, false} {
						x := assertion()
						form := url.Values{"grant_type": {"client_credentials"}, "token": {"x"}}
						if named {
							form.Set("client_id", "signer")
						}
						offered, right, broken := 0, false, false
						for _, p := range []part{a, s, x} {
							for name, values := range p.form {
								form[name] = values
							}
							broken = broken || p.broken
							if p.offers {
								offered++
								right = p.right
							}
						}
						want := 401
						switch {
						case broken || offered > 1:
							want = 400
						case right && (named || s.form == nil || s.form.Get("client_secret") == ""):
							want = 200
						}
						what := fmt.Sprintf("%s: %s, %s, %s, client_id %t", path, a.name, s.name, x.name, named)
						r := g.request("POST", path, form.Encode(), "Content-Type", "application/x-www-form-urlencoded")
						if a.lines != nil {
							r.Header["Authorization"] = a.lines
						}
						got := g.do(r)
						if got.StatusCode != want {
							t.Errorf("%s: %d %s, want %d", what, got.StatusCode, got.Body, want)
						}
						if code := map[int]any{400: "invalid_request", 401: "invalid_client"}[want]; code != nil && got.json(t)["error"] != code {
							t.Errorf("%s: %s, want %s", what, got.Body, code)
						}
					}
				}
			}
		}
	}
}
