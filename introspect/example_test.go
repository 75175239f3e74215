package introspect_test

import (
	"context"
	"fmt"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// table is a Source that knows its tokens by heart. A real one would ask a database or
// an introspection endpoint.
type table map[string]*introspect.Facts

func (t table) Lookup(_ context.Context, token string) (*introspect.Facts, error) {
	facts := t[token]
	fmt.Printf("looking up %q\n", token)
	if facts == nil {
		return introspect.Inactive(), nil // "no" is an answer, not an error
	}
	return facts, nil
}

// A program that protects itself puts a cache in front of its source, asks for each
// request, and decides from the facts each time anew.
func Example() {
	cache, err := introspect.NewCache(introspect.Config{MaxTokens: 10_000})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cache.Close()

	source := table{"secret": {
		Active: true, ID: introspect.IDOf("secret"), ClientID: "reporting", Subject: "reporting",
		Scopes: []string{"invoices:read"}, Expiry: time.Now().Add(time.Hour),
	}}
	tokens := cache.Wrap("table", source, time.Minute)

	mayRead := func(token string) string {
		facts, err := tokens.Lookup(context.Background(), token)
		switch {
		case err != nil:
			return "503" // could not find out
		case !facts.Active:
			return "401"
		case !facts.HasScope("invoices:read"):
			return "403"
		}
		return "200 for " + facts.ClientID
	}
	fmt.Println(mayRead("secret"))
	fmt.Println(mayRead("guess"))
	// Output:
	// looking up "secret"
	// 200 for reporting
	// looking up "guess"
	// 401
}

// A revocation reaches the source first. Once Forget has returned, no lookup that
// begins later is answered from before.
func ExampleCachedSource_Forget() {
	cache, err := introspect.NewCache(introspect.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cache.Close()

	source := table{"secret": {Active: true, ID: introspect.IDOf("secret"), Expiry: time.Now().Add(time.Hour)}}
	tokens := cache.Wrap("table", source, time.Minute)
	facts, _ := tokens.Lookup(context.Background(), "secret")
	fmt.Println("active:", facts.Active)

	delete(source, "secret")
	tokens.Forget(introspect.IDOf("secret"))
	facts, _ = tokens.Lookup(context.Background(), "secret")
	fmt.Println("active:", facts.Active)
	// Output:
	// looking up "secret"
	// active: true
	// looking up "secret"
	// active: false
}

// The parts of a source's name are joined so that no two lists of parts make one name.
func ExampleSourceName() {
	fmt.Println(introspect.SourceName("local", "a", "bc") == introspect.SourceName("local", "ab", "c"))
	// Output: false
}
