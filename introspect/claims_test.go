package introspect_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/caddyoauth/gateway/introspect"
)

// Every request searches scopes and audiences, so their number is bounded.
func TestScopesAndAudiencesAreBounded(t *testing.T) {
	remote := newRemote(t, remoteConfig("https://as.example"))
	numbered := func(n int) (names []string) {
		for i := range n {
			names = append(names, fmt.Sprint("s", i))
		}
		return names
	}
	list := func(names []string) string {
		text, _ := json.Marshal(names)
		return string(text)
	}
	for _, c := range []struct {
		name, members string
		good          bool
	}{
		{"a thousand scopes", `"scope":"` + strings.Join(numbered(1000), " ") + `"`, true},
		{"one more", `"scope":"` + strings.Join(numbered(1001), " ") + `"`, false},
		{"a thousand in a list", `"scope":` + list(numbered(1000)), true},
		{"one more in a list", `"scp":` + list(numbered(1001)), false},
		{"a line full of spaces", `"scope":"` + strings.Repeat(" ", 60_000) + `"`, false},
		{"the same again and again", `"scope":"` + strings.Repeat("a ", 30_000) + `"`, false},
		{"a thousand audiences", `"aud":` + list(numbered(1000)), true},
		{"one audience more", `"aud":` + list(numbered(1001)), false},
	} {
		facts, err := remote.Understand([]byte(`{"active":true,` + c.members + `}`))
		if (err == nil) != c.good {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.good && len(facts.Scopes)+len(facts.Audience) != 1000 {
			t.Errorf("%s: %d scopes, %d audiences", c.name, len(facts.Scopes), len(facts.Audience))
		}
	}
	facts, err := remote.Understand([]byte(`{"active":true,"scope":" b a  b c a "}`))
	if err != nil || !slices.Equal(facts.Scopes, []string{"b", "a", "c"}) {
		t.Errorf("%v, %v", facts, err)
	}
}

// Claims that are read in place are those that encoding/json finds.
func FuzzClaims(f *testing.F) {
	for _, seed := range []string{
		`{}`, ` { } `, `{"a":1}`, `{"a":{"b":[1,"x",true,null,{"c":[]}]},"a.b":"y"}`, `{"\u0061":"\ud83d\ude00","":{"":[]}}`, `{"a":"}]\",","b":[{}, [] ,"]"],"c":-1.5e3}`,
		`{"a":1,"\u0061":2}`, `{"a":"\ud800"}`, `{"a.b":{"c":1},"a":{"b.c":2}}`, `{"a" : [ 1 , 2 ] , "b" : { "c" : null } }`,
		`{"a":{"b":1}},"x.a":{"b":2}`, `{"a":{"b":1}},"x.a":{"b":null,"c":3}`, `1,"cnf":{}`, `1,"exp":1`, `1,"nbf":99999999999`,
		`{"` + strings.Repeat(".", 60) + `":{"":{"":1}},"":{".":{"":2}}}`,
		`[` + strings.Repeat(`0,`, 999) + `1]`, `[` + strings.Repeat(`0,`, 1000) + `1]`,
	} {
		f.Add([]byte(seed))
	}
	remote := newRemote(f, remoteConfig("https://as.example"))
	f.Fuzz(func(t *testing.T, inner []byte) {
		facts, err := remote.Understand(slices.Concat([]byte(`{"active":true,"x":`), inner, []byte(`}`)))
		if err != nil {
			// Whatever it is, the lookup of a claim ends.
			broken := &introspect.Facts{Claims: string(inner)}
			broken.ClaimValues("a.b.c")
			broken.ClaimValues("")
			return
		}
		if !facts.Active { // for what is behind the value, such as an exp
			if facts.Claims != "" {
				t.Errorf("a token that is not good has claims: %s", facts.Claims)
			}
			return
		}
		var answer map[string]any
		decoder := json.NewDecoder(bytes.NewReader([]byte(facts.Claims)))
		decoder.UseNumber()
		if err := decoder.Decode(&answer); err != nil {
			t.Fatal(err)
		}
		compareClaims(t, facts, answer, "x", answer["x"])
	})
}

// claimAt returns what name leads to in object, by the rules of ClaimValues: at each level the longest
// name is tried first, and what is null is absent.
func claimAt(object map[string]any, name string) any {
	if value := object[name]; value != nil {
		return value
	}
	for end := len(name) - 1; end >= 0; end-- {
		if name[end] != '.' {
			continue
		}
		if inner, ok := object[name[:end]].(map[string]any); ok {
			if value := claimAt(inner, name[end+1:]); value != nil {
				return value
			}
		}
	}
	return nil
}

// compareClaims compares what a name leads to, and the names of everything below value, which is one
// of the places that the name can mean.
func compareClaims(t *testing.T, facts *introspect.Facts, answer map[string]any, name string, value any) {
	if object, ok := value.(map[string]any); ok {
		for member, v := range object {
			compareClaims(t, facts, answer, name+"."+member, v)
		}
	}
	var want []string
	text := func(v any) {
		switch v.(type) {
		case string, json.Number, bool:
			want = append(want, fmt.Sprint(v))
		}
	}
	meant := claimAt(answer, name)
	switch meant := meant.(type) {
	case map[string]any:
		for member, v := range meant {
			if v != nil && v != false {
				want = append(want, member)
			}
		}
	case []any:
		for _, v := range meant {
			text(v)
		}
	default:
		text(meant)
	}
	if len(want) > 1000 {
		want = nil
	}
	got := facts.ClaimValues(name)
	if _, object := meant.(map[string]any); object {
		slices.Sort(got)
		slices.Sort(want)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q is %q, want %q, in %s", name, got, want, facts.Claims)
	}
}
