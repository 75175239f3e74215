package caddyoauth

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddyoauth/gateway/introspect"
)

func init() {
	caddy.RegisterModule(ReadingSource{})
}

// ReadingSource is a source of tokens that counts how often a token is read.
type ReadingSource struct {
	Name string `json:"name"`
}

// reads counts the tokens that any ReadingSource had to read. It is also the owner of what they
// note.
var reads int

// CaddyModule returns the Caddy module information.
func (ReadingSource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "oauth.sources.reading",
		New: func() caddy.Module { return new(ReadingSource) },
	}
}

// read finds out what only reading the token can tell, unless it is noted.
func read(token *introspect.Token) {
	if _, ok := token.Noted(&reads); !ok {
		reads++
		token.Note(&reads, 1)
	}
}

// Label implements TokenSource.
func (s *ReadingSource) Label() string { return s.Name }

// SourceKey implements TokenSource.
func (s *ReadingSource) SourceKey() string { return "reading " + s.Name }

// OpenSource implements TokenSource.
func (s *ReadingSource) OpenSource() (introspect.Source, error) { return s, nil }

// Memory implements TokenSource.
func (s *ReadingSource) Memory() introspect.SourceConfig { return introspect.SourceConfig{} }

// Recognizes implements TokenSource. Only one source claims the token.
func (s *ReadingSource) Recognizes(token *introspect.Token) Recognition {
	if read(token); s.Name == "mine" {
		return Mine
	}
	return NotMine
}

// Screen implements introspect.Screener.
func (s *ReadingSource) Screen(token introspect.Token) (introspect.Token, bool) {
	read(&token)
	return token, true
}

// Lookup implements introspect.Source.
func (s *ReadingSource) Lookup(_ context.Context, token introspect.Token) (*introspect.Facts, error) {
	read(&token)
	return &introspect.Facts{Active: true, ID: token.ID(), ClientID: "reader", Expiry: time.Now().Add(time.Hour)}, nil
}

func TestATokenIsReadOnceARequest(t *testing.T) {
	ctx, app := benchmarkApp(t)
	route := func(sources ...string) *Protect {
		p := new(Protect)
		for _, name := range sources {
			p.SourcesRaw = append(p.SourcesRaw, json.RawMessage(`{"source":"reading","name":"`+name+`"}`))
		}
		if err := p.Provision(ctx); err != nil {
			t.Fatal(err)
		}
		return p
	}
	outer, inner := route("mine"), route("other", "mine", "another")
	if err := app.Start(); err != nil {
		t.Fatal(err)
	}
	for token, chain := range map[string][2]*Protect{"one-then-several": {outer, inner}, "several-then-one": {inner, outer}} {
		for _, when := range []string{"at first", "from the cache"} {
			reads = 0
			passed := false
			last := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { passed = true; return nil })
			next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error { return chain[1].ServeHTTP(w, r, last) })
			r := httptest.NewRequest("GET", "https://gateway.example/", nil)
			r.Header.Set("Authorization", "Bearer "+token)
			if err := chain[0].ServeHTTP(httptest.NewRecorder(), r, next); err != nil || !passed {
				t.Fatalf("%s, %s: passed %t, %v", token, when, passed, err)
			}
			if reads != 1 {
				t.Errorf("sources %s, %s: the token was read %d times, want once", token, when, reads)
			}
		}
	}
}
