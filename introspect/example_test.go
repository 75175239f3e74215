package introspect_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// table is a Source that simply contains its tokens. A real one would ask a database or an
// introspection endpoint.
type table map[string]*introspect.Facts

func (t table) Lookup(_ context.Context, token introspect.Token) (*introspect.Facts, error) {
	facts := t[token.Text()]
	fmt.Printf("looking up %q\n", token.Text())
	if facts == nil {
		return introspect.Inactive(), nil // "no" is an answer, not an error
	}
	return facts, nil
}

// A program that protects itself puts a cache in front of its source, asks it on each request,
// and decides anew each time.
func Example() {
	cache, err := introspect.NewCache(introspect.CacheConfig{MaxTokens: 10_000})
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

// A revocation reaches the source first. No lookup that begins after Forget has returned gets
// an answer from before.
func ExampleCachedSource_Forget() {
	cache, err := introspect.NewCache(introspect.CacheConfig{})
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

// Different lists of parts never make the same name.
func ExampleCacheName() {
	fmt.Println(introspect.CacheName("local", "a", "bc") == introspect.CacheName("local", "ab", "c"))
	// Output: false
}

// A program that accepts the tokens of a remote authorization server asks it about each of
// them. It puts a cache in front, so that it asks about each token only once a minute.
func ExampleRemote() {
	// An authorization server, which would be somebody else's.
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if id, secret, _ := r.BasicAuth(); id != "invoices" || secret != "its-secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Println("asked about", r.PostFormValue("token"))
		w.Header().Set("Content-Type", "application/json")
		if r.PostFormValue("token") != "good" {
			io.WriteString(w, `{"active":false}`)
			return
		}
		fmt.Fprintf(w, `{"active":true,"client_id":"reporting","scope":"invoices:read","exp":%d,"department":{"name":"sales"}}`,
			time.Now().Add(time.Hour).Unix())
	}))
	defer server.Close()

	// The program.
	source, err := introspect.NewRemote(introspect.RemoteConfig{
		URL:      server.URL + "/introspect",
		ClientID: "invoices", ClientSecret: "its-secret",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer source.Close()
	cache, err := introspect.NewCache(introspect.CacheConfig{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cache.Close()
	tokens := cache.WrapWith(source.Name(), source, introspect.SourceConfig{
		MaxAge: time.Minute, NegativeAge: introspect.DefaultNegativeAge,
	})

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
		return fmt.Sprint("200 for ", facts.ClientID, " of ", facts.ClaimValues("department.name"))
	}
	fmt.Println(mayRead("good"))
	fmt.Println(mayRead("guess"))
	fmt.Println(mayRead("guess")) // remembered
	fmt.Println(mayRead("no token at all"))
	// Output:
	// asked about good
	// 200 for reporting of [sales]
	// asked about guess
	// 401
	// 401
	// 401
}

// The error says what kept the server from answering, for a metric and for whoever has to act on
// it. Callers get 503 in every case.
func ExampleRemoteError() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer server.Close()
	source, err := introspect.NewRemote(introspect.RemoteConfig{URL: server.URL, ClientID: "invoices", ClientSecret: "an old secret"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer source.Close()

	_, err = source.Lookup(context.Background(), introspect.NewToken("token"))
	var failure *introspect.RemoteError
	if errors.As(err, &failure) {
		fmt.Println(failure.Kind == introspect.RemoteCredentials, failure.Status)
	}
	// Output: true 401
}
