package introspect_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/caddyoauth/gateway/introspect"
)

// Claims become headers and decisions, so a name leads to one value or to none, whatever
// an issuer puts into its answers.
func TestClaimValues(t *testing.T) {
	facts := &introspect.Facts{
		Active: true, ClientID: "client", Issuer: "https://issuer.example", Scopes: []string{"read", "write"},
		Claims: map[string]any{
			"client_id": "forged", "iss": "forged", "aud": "forged", "scope": "admin", "sub": "forged",
			"text": "a", "empty": "", "number": json.Number("12345678901234567890"), "yes": true, "no": false, "null": nil,
			"list":                      []any{"a", json.Number("1"), true, nil, map[string]any{"x": "y"}, []any{"deep"}, "b"},
			"nothing":                   []any{},
			"object":                    map[string]any{"a": "1"},
			"realm_access":              map[string]any{"roles": []any{"admin", "user"}, "a.b": "dotted inside", "": "unnamed"},
			"https://example.com/roles": []any{"urls have dots"},
			"realm_access.roles.fake":   "whole names come first",
			"deep":                      map[string]any{"er": map[string]any{"est": "found"}},
			"deep.er":                   "whole, not a way",
			"":                          map[string]any{"": "nameless"},
			".":                         "a dot",
			"text.sub":                  "under a text",
			"client_id.x":               "not the client",
		},
	}
	for name, want := range map[string][]string{
		// What has a field comes from it, never from a member that says otherwise.
		"client_id": {"client"}, "iss": {"https://issuer.example"}, "sub": nil, "aud": nil, "scope": {"read", "write"},

		"text": {"a"}, "empty": {""}, "number": {"12345678901234567890"}, "yes": {"true"}, "no": {"false"}, "null": nil, "missing": nil,
		"list": {"a", "1", "true", "b"}, "nothing": nil, "object": nil, "object.a": {"1"}, "object.b": nil,

		"realm_access.roles": {"admin", "user"}, "realm_access": nil, "realm_access.": {"unnamed"}, "realm_access.roles.": nil,
		"realm_access.roles.0": nil, "realm_access..roles": nil, ".realm_access.roles": nil, "realm_access.a.b": nil,
		"https://example.com/roles": {"urls have dots"}, "realm_access.roles.fake": {"whole names come first"},
		"deep.er": {"whole, not a way"}, "deep.er.est": {"found"}, "deep.er.est.": nil, "deep.er.est.more": nil,
		"text.sub": {"under a text"}, "text.other": nil, "client_id.x": {"not the client"}, "client_id.y": nil,
		"": nil, ".": {"a dot"}, "..": nil,
		strings.Repeat(".", 100_000): nil, strings.Repeat("deep.", 100_000): nil,
	} {
		if got := facts.ClaimValues(name); !slices.Equal(got, want) {
			t.Errorf("%.40q: %q, want %q", name, got, want)
		}
	}
	if got := introspect.Inactive().ClaimValues("client_id"); got != nil {
		t.Errorf("an inactive token has the client %q", got)
	}
	if got := (&introspect.Facts{}).ClaimValues("a.b.c"); got != nil {
		t.Errorf("facts without claims have %q", got)
	}
}
