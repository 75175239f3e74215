package caddyoauth

import (
	"slices"
	"strings"
	"testing"

	"context"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"net/http/httptest"
	"pgregory.net/rapid"
)

// What a path pattern says is what Caddy's matcher does.
func TestPathPatternsAreThoseOfCaddy(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`\*?(/[aB.]{0,2}){0,3}[/*]?`).Draw(t, "pattern")
		path := rapid.StringMatching(`(/[aAb.]{0,2}){1,4}/?`).Draw(t, "path")
		p, empty, ok := parsePath(text)
		if !ok || strings.Contains(path, "//") || strings.Contains(path, "/./") || strings.Contains(path, "/..") || strings.HasSuffix(path, "/.") {
			return
		}
		matcher := caddyhttp.MatchPath{text}
		if err := matcher.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest("GET", path, nil)
		r = r.WithContext(context.WithValue(r.Context(), caddy.ReplacerCtxKey, caddy.NewReplacer()))
		want, err := matcher.MatchWithError(r)
		if err != nil {
			t.Fatal(err)
		}
		if got := !empty && p.has(strings.ToLower(path)); got != want {
			t.Errorf("%q is in %q: %t; Caddy says %t", path, text, got, want)
		}
	})
}

// The sets of a patternSet are such that a member of one, which is in no smaller one, is in the
// same patterns as all its other such members.
func TestNoPatternTellsMembersOfASetApart(t *testing.T) {
	t.Parallel()
	paths := rapid.StringMatching(`(/[ab]{0,2}){1,3}`)
	rapid.Check(t, func(t *rapid.T) {
		set := patternSet[pathPattern]{all: []pathPattern{everyPath}, max: 1000}
		var base []pathPattern
		for _, text := range rapid.SliceOfN(rapid.StringMatching(`\*?(/?[ab]{0,2}){0,3}[/*]?`), 1, 5).Draw(t, "patterns") {
			if p, empty, ok := parsePath(text); ok && !empty {
				base = append(base, p)
				if !set.add(p) {
					t.Fatal("there is no room")
				}
			}
		}
		sorted := smallestFirst(set.all)
		if len(sorted) != len(set.all) {
			t.Fatalf("%v became %v", set.all, sorted)
		}
		first := func(path string) pathPattern {
			return sorted[slices.IndexFunc(sorted, func(p pathPattern) bool { return p.has(path) })]
		}
		path := paths.Draw(t, "path")
		row := first(path)
		if example := row.example(); first(example) != row {
			t.Errorf("the example %s of %s is in %s", example, row, first(example))
		}
		for _, p := range base {
			if p.has(path) != p.has(row.example()) || p.has(path) != row.within(p) {
				t.Errorf("%s tells %s from the example of its row %s", p, path, row)
			}
		}
		// People read a row as it is written.
		if begin, end, wildcard := strings.Cut(row.String(), "*"); wildcard && len(path) < len(begin)+len(end) {
			t.Errorf("%s is in row %s", path, row)
		}
	})
}

func TestHostPatterns(t *testing.T) {
	t.Parallel()
	set := patternSet[hostPattern]{all: []hostPattern{everyHost}, max: 10}
	for _, h := range []hostPattern{"*.example.com", "api.example.com", "api.*.com", "*.example.org"} {
		set.add(h)
	}
	want := []hostPattern{"api.example.com", "*.example.com", "api.*.com", "*.example.org", ""}
	if got := smallestFirst(set.all); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	common := hostPattern("*.example.com").and("api.*.com")
	if !slices.Equal(common, []hostPattern{"api.example.com"}) {
		t.Errorf("in common: %q", common)
	}
	set.max = len(set.all)
	if set.add("other.example.com") || len(set.all) != set.max {
		t.Errorf("more than there is room for: %q", set.all)
	}
}
