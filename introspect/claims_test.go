package introspect_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
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
		var answer map[string]any
		decoder := json.NewDecoder(bytes.NewReader([]byte(facts.Claims)))
		decoder.UseNumber()
		if err := decoder.Decode(&answer); err != nil {
			t.Fatal(err)
		}
		compareClaims(t, facts, "x", answer["x"])
	})
}

// compareClaims compares what a name leads to, and everything below it, except for what is
// beside a name with a dot, which can be taken for a path.
func compareClaims(t *testing.T, facts *introspect.Facts, name string, value any) {
	var want []string
	text := func(v any) {
		switch v.(type) {
		case string, json.Number, bool:
			want = append(want, fmt.Sprint(v))
		}
	}
	switch value := value.(type) {
	case map[string]any:
		dotted := func(member string) bool { return strings.Contains(member, ".") }
		plain := !slices.ContainsFunc(slices.Collect(maps.Keys(value)), dotted)
		for member, v := range value {
			if v != nil && v != false {
				want = append(want, member)
			}
			if plain {
				compareClaims(t, facts, name+"."+member, v)
			}
		}
	case []any:
		for _, v := range value {
			text(v)
		}
	default:
		text(value)
	}
	got := facts.ClaimValues(name)
	if _, object := value.(map[string]any); object {
		slices.Sort(got)
		slices.Sort(want)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q is %q, want %q, in %s", name, got, want, facts.Claims)
	}
}
