package caddyoauth_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// chainRules are kinds of oauth_protect that a request meets one after the other.
var chainRules = []string{
	"root {\nscopes read\n}",
	"root {\nscopes admin\n}",
	"root {\noptional\n}",
	"root {\noptional\nkeep_token\n}",
	"root {\nscopes admin\nreport_only\n}",
	"root {\nreport_only\nkeep_token\n}",
	"root {\nbasic\n}",
	"root {\nbasic\noptional\nreport_only\n}",
	"alpha {\nbasic\nheader_prefix X-Alpha-\n}",
	"alpha {\nreport_only\n}",
}

// Whatever comes before an oauth_protect or behind it, in any order, no request passes that it
// refuses alone, nobody is named whom none of them lets in, and no credentials go on that one of
// them keeps back.
func TestNoOauthProtectWeakensAnother(t *testing.T) {
	t.Setenv("OAUTH_TEST_KEY_READER", keyOfReader)
	client := func(id, more string) string {
		return "client " + id + " {\nsecret_hash " + testHash + "\nscopes read write\ndefault_scopes read\n" + more + "}\n"
	}
	var site strings.Builder
	site.WriteString("oauth_server\n")
	chain := func(rules ...int) string {
		path := "/chain"
		for _, i := range rules {
			path += fmt.Sprint("-", i)
		}
		site.WriteString("route " + path + " {\n")
		for _, i := range rules {
			site.WriteString("oauth_protect " + chainRules[i] + "\n")
		}
		site.WriteString("reverse_proxy BACKEND\n}\n")
		return path
	}
	chains := make(map[string][]int)
	for a := range chainRules {
		chains[chain(a)] = []int{a}
		for b := range chainRules {
			chains[chain(a, b)] = []int{a, b}
			for c := range chainRules {
				if (a+b+c)%3 == 0 { // a third of all is enough
					chains[chain(a, b, c)] = []int{a, b, c}
				}
			}
		}
	}
	g := startGateway(t, "store memory\n"+client("reader", "upstream_header X-Api-Key {env.OAUTH_TEST_KEY_READER}\n")+"realm alpha {\n"+client("alien", "")+"}", site.String())
	good, alien := "Bearer "+g.token("reader", "read"), "Bearer "+g.fetchAt("/oauth2/realms/root/realms/alpha", "alien", "read")
	sent := map[string][]string{
		"nothing": nil, "a token": {good}, "a token of another realm": {alien}, "a bad token": {"Bearer bad"},
		"a secret": {rawBasic("reader:" + testSecret)}, "a secret of another realm": {rawBasic("alien:" + testSecret)}, "a wrong secret": {rawBasic("reader:x")},
		"another scheme": {"Digest x"}, "a token and a secret": {good, rawBasic("reader:" + testSecret)},
	}
	passed, named := 0, 0
	for what, lines := range sent {
		passes := make(map[int]http.Header) // what the backend gets with each rule alone
		try := func(path string) http.Header {
			r := g.request("GET", path, "", "X-Api-Key", "forged", "X-OAuth-Client-Id", "forged", "X_Alpha_Subject", "forged")
			r.Header["Authorization"] = lines
			before := g.Backend.count()
			if a := g.do(r); a.StatusCode != 200 {
				if g.Backend.count() != before {
					t.Errorf("%s, %s: refused, and the backend was asked", path, what)
				}
				return nil
			}
			return g.Backend.last(t).Header
		}
		for i := range chainRules {
			passes[i] = try(fmt.Sprint("/chain-", i))
		}
		for path, rules := range chains {
			got := try(path)
			if got == nil {
				continue
			}
			passed++
			if got.Get("X-OAuth-Client-Id") != "" {
				named++
			}
			names, keys := map[string]bool{"": true}, map[string]bool{"": true}
			for _, i := range rules {
				alone := passes[i]
				if alone == nil {
					t.Errorf("%s, %s: passes, though rule %d refuses it", path, what, i)
					continue
				}
				for _, name := range []string{"X-OAuth-Client-Id", "X-Alpha-Client-Id"} {
					names[alone.Get(name)] = true
				}
				keys[alone.Get("X-Api-Key")] = true
				for _, line := range got["Authorization"] {
					if !slices.Contains(alone["Authorization"], line) {
						t.Errorf("%s, %s: the backend gets %q, which rule %d keeps back", path, what, line, i)
					}
				}
			}
			for name, values := range got {
				switch folded(name) {
				case "x-oauth-client-id", "x-alpha-client-id", "x-oauth-subject", "x-alpha-subject":
					if len(values) != 1 || !names[values[0]] {
						t.Errorf("%s, %s: the backend gets %s: %q", path, what, name, values)
					}
				case "x-api-key":
					if len(values) != 1 || !keys[values[0]] {
						t.Errorf("%s, %s: the backend gets %s: %q", path, what, name, values)
					}
				}
			}
		}
	}
	if passed < 100 || named < 10 || named == passed {
		t.Errorf("%d requests passed, %d of them with a name: that proves little", passed, named)
	}
	t.Logf("%d requests to %d routes, %d passed, %d of them with a name", len(sent)*len(chains), len(chains), passed, named)
}
