package caddyoauth

import (
	"testing"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
)

func TestRuleForAMethod(t *testing.T) {
	p := &Protect{Scopes: []string{"own"}, On: []MethodRule{
		{Methods: []string{"GET", "M-SEARCH"}, Scopes: []string{"read"}}, {Methods: []string{"*"}, Scopes: []string{"rest"}}, {Methods: []string{"PUT"}, Optional: true},
	}}
	if err := p.provisionRules(); err != nil {
		t.Fatal(err)
	}
	for method, want := range map[string]string{
		"GET": "read", "M-SEARCH": "read", "HEAD": "rest", "POST": "rest", "": "rest", "PUT": "own",
		"CONNECT": "read", // a WebSocket over HTTP/2, which a backend sees as a GET
		"get":     "read", "m-search": "read", "connect": "rest",
	} {
		rule := p.ruleFor(method)
		if rule.Scopes[0] != want {
			t.Errorf("%q needs %q, want %q", method, rule.Scopes, want)
		}
		if also := rule.Also; (also != nil) != (method == "get" || method == "m-search") || also != nil && also.Scopes[0] != "rest" {
			t.Errorf("%q needs %+v, too", method, also)
		}
		if rule.Optional != (method == "PUT") {
			t.Errorf("%q: optional is %t", method, rule.Optional)
		}
	}
	inherits := &Protect{Optional: true, On: []MethodRule{{Methods: []string{"GET"}, Scopes: []string{"read"}}, {Methods: []string{"*"}, Scopes: []string{"rest"}}}}
	if err := inherits.provisionRules(); err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{"GET", "POST", "get"} {
		if !inherits.ruleFor(method).Optional {
			t.Errorf("%s does not inherit optional", method)
		}
	}
	if p.ruleFor("put").Optional {
		t.Error("put is optional, though only PUT should be")
	}
	var rule *access.Rule
	if n := testing.AllocsPerRun(100, func() { rule = p.ruleFor("GET"); rule = p.ruleFor("POST") }); n != 0 {
		t.Errorf("finding %v takes %v allocations", rule, n)
	}
}
