package introspect

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// clientSource knows tokens of the form client/anything, and counts how often it is asked.
type clientSource struct{ asked atomic.Int64 }

func (s *clientSource) Lookup(_ context.Context, token Token) (*Facts, error) {
	s.asked.Add(1)
	client, _, _ := strings.Cut(token.Text(), "/")
	return &Facts{Active: true, ID: token.ID(), ClientID: client, Expiry: time.Now().Add(time.Hour)}, nil
}

func TestForgetClientAndSource(t *testing.T) {
	c, err := NewCache(CacheConfig{MaxTokens: 1000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	one, other := new(clientSource), new(clientSource)
	a, b := c.Wrap("a", one, time.Hour), c.Wrap("b", other, time.Hour)
	// looks reports whether the lookup reached the source.
	looks := func(s *CachedSource, src *clientSource, token string) bool {
		t.Helper()
		before := src.asked.Load()
		if facts, err := s.Lookup(context.Background(), token); err != nil || !facts.Active {
			t.Fatalf("%s: %v, %v", token, facts, err)
		}
		c.Wait()
		return src.asked.Load() > before
	}
	warm := func() {
		for _, token := range []string{"x/1", "x/2", "y/1"} {
			looks(a, one, token)
			looks(b, other, token)
			if looks(a, one, token) || looks(b, other, token) {
				t.Fatalf("%s is not cached", token)
			}
		}
	}
	check := func(what string, want map[string]bool) {
		t.Helper()
		for token, forgotten := range want {
			source, rest, _ := strings.Cut(token, "/")
			s, src := a, one
			if source == "b" {
				s, src = b, other
			}
			if got := looks(s, src, rest); got != forgotten {
				t.Errorf("%s: %s of source %s is forgotten: %v, want %v", what, rest, source, got, forgotten)
			}
		}
	}

	warm()
	c.ForgetClient("a", "x")
	check("client x of a", map[string]bool{"a/x/1": true, "a/x/2": true, "a/y/1": false, "b/x/1": false, "b/y/1": false})
	check("what was asked about after that", map[string]bool{"a/x/1": false, "a/x/2": false})
	c.ForgetSource("b")
	check("source b", map[string]bool{"a/x/1": false, "a/y/1": false, "b/x/1": true, "b/x/2": true, "b/y/1": true})
	c.ForgetClient("nowhere", "x")
	c.ForgetClient("a", "")
	check("nothing", map[string]bool{"a/x/1": false, "b/x/1": false})

	// Beyond the bound everything is forgotten, and the list is short again.
	for i := range maxForgotten {
		c.ForgetClient("a", fmt.Sprint("client ", i))
	}
	check("too many to remember", map[string]bool{"a/x/1": true, "b/x/1": true})
	if n := len(*c.forgotten.Load()); n > maxForgotten {
		t.Errorf("%d calls are remembered", n)
	}
}

// A lookup that was under way during ForgetClient is no answer for callers that come later.
func TestForgetClientDuringALookup(t *testing.T) {
	c, err := NewCache(CacheConfig{MaxTokens: 1000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	asked, release := make(chan struct{}, 2), make(chan struct{})
	var calls atomic.Int64
	s := c.Wrap("a", sourceFunc(func(_ context.Context, token string) (*Facts, error) {
		facts := &Facts{Active: calls.Add(1) == 1, ID: IDOf(token), ClientID: "x", Expiry: time.Now().Add(time.Hour)}
		asked <- struct{}{}
		<-release
		return facts, nil
	}), time.Hour)
	go s.Lookup(context.Background(), "x/1")
	<-asked
	c.ForgetClient("a", "x")
	later := make(chan *Facts)
	go func() {
		facts, err := s.Lookup(context.Background(), "x/1")
		if err != nil {
			t.Error(err)
		}
		later <- facts
	}()
	time.Sleep(10 * time.Millisecond) // it joins, or comes a little later: both must work
	close(release)
	if facts := <-later; facts.Active {
		t.Error("a lookup that began after ForgetClient got the answer from before")
	}
	c.Wait()
	if facts, err := s.Lookup(context.Background(), "x/1"); err != nil || facts.Active {
		t.Errorf("the answer from before was cached: %v, %v", facts, err)
	}
}

type sourceFunc func(context.Context, string) (*Facts, error)

func (f sourceFunc) Lookup(ctx context.Context, token Token) (*Facts, error) {
	return f(ctx, token.Text())
}
