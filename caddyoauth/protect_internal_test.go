package caddyoauth

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/introspect"
)

// oauth_protect has an answer to every cause, except to tunnels, which are refused before it
// decides anything.
func TestEveryCauseHasAnAnswer(t *testing.T) {
	p := &Protect{label: "every cause", basic: new(basicRoute), dpop: new(dpopRoute)}
	t.Cleanup(func() { collectors.checks.DeletePartialMatch(prometheus.Labels{"realm": p.label}) })
	p.prepareRejections(collectors)
	for _, e := range access.Explanations {
		no := p.rejections[e.Cause]
		if e.Cause == access.CauseTunnel {
			continue
		}
		if no == nil || no.status < 400 || no.cause != e.Cause || no.err == nil || no.count == nil {
			t.Errorf("%s is answered with %+v", e.Cause, no)
		}
	}
}

// Behind an oauth_protect, the request's context has the facts of the token, and whatever it had
// before. It ends as before, and whoever prints it learns nothing of the token.
func TestContextsHaveTheBearer(t *testing.T) {
	type key struct{}
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
	defer cancel()
	headers, err := newIdentityHeaders(defaultHeaderPrefix)
	if err != nil {
		t.Fatal(err)
	}
	const token = "a-token-that-nobody-may-see"
	b := &bearer{token: introspect.NewToken(token), realm: rootRealm, facts: &introspect.Facts{Active: true, ClientID: "reader"}}
	before := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	behind, stop := context.WithCancel(headers.identify(before, b).Context())
	defer stop()
	if facts, ok := FactsFromContext(behind); !ok || facts != b.facts {
		t.Errorf("the facts are %v", facts)
	}
	if facts, ok := FactsFromContext(before.Context()); ok {
		t.Errorf("in front of the handler, there are the facts %v", facts)
	}
	if value := behind.Value(key{}); value != "value" {
		t.Errorf("another value became %v", value)
	}
	if missing := behind.Value(rootRealm); missing != nil {
		t.Errorf("a value that is not there is %v", missing)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%t"} {
		if text := fmt.Sprintf(verb, &b.context) + fmt.Sprintf(verb, behind); strings.Contains(text, token) || strings.Contains(text, fmt.Sprintf("%x", token)) {
			t.Errorf("%s prints %s", verb, text)
		}
	}
	cancel()
	<-behind.Done()
	if behind.Err() == nil {
		t.Error("it has no end")
	}
}
