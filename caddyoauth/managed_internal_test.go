package caddyoauth

import (
	"maps"
	"slices"
	"testing"
)

// What is heard of some clients says nothing of others; what is heard of all does.
func TestUnusableClients(t *testing.T) {
	t.Parallel()
	var u unusableClients
	unusable := func(ids ...string) map[string]unusableClient {
		all := make(map[string]unusableClient)
		for _, id := range ids {
			all[id] = unusableClient{why: "it is"}
		}
		return all
	}
	heard := func(ids ...string) map[string]int {
		all := make(map[string]int)
		for i, id := range ids {
			all[id] = i
		}
		return all
	}
	usable := []string{"b", "y"}
	for _, c := range []struct {
		ids      map[string]int
		unusable map[string]unusableClient
		all      bool
		want     []string // with those that are usable
	}{
		{heard("b"), unusable(), false, []string{"b", "y"}},
		{heard("a", "b", "x", "z"), unusable("a", "x", "z"), false, []string{"a", "b", "x", "y", "z"}},
		{heard("x"), unusable(), false, []string{"a", "b", "y", "z"}},
		{heard("y"), unusable("y"), false, []string{"a", "b", "y", "z"}},
		{heard("b", "z"), unusable("z"), true, []string{"b", "y", "z"}},
	} {
		u.take(maps.Keys(c.ids), c.unusable, c.all)
		if got := u.among(usable); !slices.Equal(got, c.want) {
			t.Errorf("after %v: %v, want %v", c.ids, got, c.want)
		}
	}
	if _, ok := u.find("y"); ok {
		t.Error("what is heard of all left an unusable one")
	}
	if client, ok := u.find("z"); !ok || client.why != "it is" {
		t.Errorf("%v, %t", client, ok)
	}
}
