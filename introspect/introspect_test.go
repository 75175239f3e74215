package introspect_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/caddyoauth/gateway/introspect"
)

// Claims become headers and decisions, so a name leads to one value or to none, whatever an
// issuer puts into its answers.
func TestClaimValues(t *testing.T) {
	facts := &introspect.Facts{
		Active: true, ClientID: "client", Issuer: "https://issuer.example", Scopes: []string{"read", "write"},
		Claims: `{
			"client_id": "forged", "iss": "forged", "aud": "forged", "scope": "admin", "sub": "forged",
			"text": "a", "empty": "", "number": 12345678901234567890, "yes": true, "no": false, "null": null,
			"list": ["a", 1, true, null, {"x": "y"}, ["deep"], "b"],
			"nothing": [], "bare": {},
			"object": {"a": "1", "b": {}, "c": false, "d": null, "e": 0, "f": ""},
			"realm_access": {"roles": ["admin", "user"], "a.b": "dotted inside", "": "unnamed"},
			"https://example.com/roles": ["urls have dots"],
			"realm_access.roles.fake": "whole names come first",
			"deep": {"er": {"est": "found"}},
			"deep.er": "whole, not a way",
			"": {"": "nameless"},
			".": "a dot",
			"text.sub": "under a text",
			"client_id.x": "not the client",
			"kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "loader", "uid": "1"}, "empty": null},
			"kubernetes": {"io": {"namespace": "shorter name", "empty": "behind a null", "only": "shorter"}},
			"resource_access": {"com.example.orders": {"roles": ["writer"]}, "com": {"example.orders": {"roles": ["admin"], "more": "x"}}},
			"https://example.com/app_metadata": {"tier": "gold"},
			"urn:zitadel:iam:org:project:roles": {"admin": {"1": "acme.example"}, "viewer": {"1": "acme.example"}},
			"esc\u0061ped \"name\"": {"in\u002eside": ["\u00fc", "back\\slash", "brace } ] , \"", "\ud83d\ude00"]}
		}`,
	}
	for name, want := range map[string][]string{
		// Claims with a field come from that field, never from a member that says otherwise.
		"client_id": {"client"}, "iss": {"https://issuer.example"}, "sub": nil, "aud": nil, "scope": {"read", "write"},

		"text": {"a"}, "empty": {""}, "number": {"12345678901234567890"}, "yes": {"true"}, "no": {"false"}, "null": nil, "missing": nil,
		"list": {"a", "1", "true", "b"}, "nothing": nil, "bare": nil, "bare.x": nil,
		"object": {"a", "b", "e", "f"}, "object.a": {"1"}, "object.b": nil, "object.c": {"false"}, "object.d": nil, "object.z": nil,

		"realm_access.roles": {"admin", "user"}, "realm_access": {"roles", "a.b", ""}, "realm_access.": {"unnamed"}, "realm_access.roles.": nil,
		"realm_access.roles.0": nil, "realm_access..roles": nil, ".realm_access.roles": nil, "realm_access.a.b": {"dotted inside"},
		"https://example.com/roles": {"urls have dots"}, "realm_access.roles.fake": {"whole names come first"},
		"deep.er": {"whole, not a way"}, "deep.er.est": {"found"}, "deep.er.est.": nil, "deep.er.est.more": nil, "deep": {"er"},
		"text.sub": {"under a text"}, "text.other": nil, "client_id.x": {"not the client"}, "client_id.y": nil,
		"kubernetes.io.serviceaccount.name": {"loader"}, "kubernetes.io.serviceaccount": {"name", "uid"}, "kubernetes.io.namespace": {"shop"},
		"kubernetes.io.empty": {"behind a null"}, "kubernetes.io.only": {"shorter"}, "kubernetes.io.serviceaccount.x": nil,
		"resource_access.com.example.orders.roles": {"writer"}, "resource_access.com.example.orders.more": {"x"},
		"https://example.com/app_metadata.tier": {"gold"}, "urn:zitadel:iam:org:project:roles": {"admin", "viewer"},
		"urn:zitadel:iam:org:project:roles.admin.1": {"acme.example"},
		`escaped "name".in.side`:                    {"ü", `back\slash`, `brace } ] , "`, "\U0001F600"},
		"":                                          {""}, ".": {"a dot"}, "..": nil,
		strings.Repeat(".", 100_000): nil, strings.Repeat("deep.", 100_000): nil,
	} {
		if got := facts.ClaimValues(name); !slices.Equal(got, want) {
			t.Errorf("%.40q: %q, want %q", name, got, want)
		}
	}
	for n, want := range map[int]int{1000: 1000, 1001: 0} {
		many := &introspect.Facts{Claims: `{"list":[` + strings.Repeat(`"x",null,`, n-1) + `"x"]}`}
		if got := many.ClaimValues("list"); len(got) != want {
			t.Errorf("a list of %d values has %d, want %d", n, len(got), want)
		}
	}
	if got := introspect.Inactive().ClaimValues("client_id"); got != nil {
		t.Errorf("an inactive token has the client %q", got)
	}
	if got := (&introspect.Facts{}).ClaimValues("a.b.c"); got != nil {
		t.Errorf("facts without claims have %q", got)
	}
}
