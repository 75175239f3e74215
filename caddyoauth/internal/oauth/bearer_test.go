package oauth

import (
	"context"
	"crypto/x509"
	"errors"
	"maps"
	"net/url"
	"testing"

	"github.com/caddyoauth/gateway/introspect"
)

// Who introspects by an access token must have proven what the token is bound to, and the token must have
// the scope for it.
func TestTokensThatIntrospect(t *testing.T) {
	leaf := func(name string) *Certificate {
		return &Certificate{Leaf: newCertificate(t, func(c *x509.Certificate) { c.Subject.CommonName = name })}
	}
	own := leaf("own")
	bound, plain := newClient("bound", quickSecret(t, "secret")), newClient("plain", quickSecret(t, "secret"))
	bound.CertificateBound = true
	e := newEngine(t, func(cfg *Settings) { cfg.IntrospectScope = "a" }, bound, plain)
	issue := func(id, scope string) string {
		t.Helper()
		grant, _, err := e.Token(context.Background(), Request{
			Form: url.Values{"grant_type": {GrantClientCredentials}, "scope": {scope}}, Certificate: own,
			Credentials: Credentials{Method: AuthBasic, ClientIDs: []string{id}, Secrets: []string{"secret"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return grant.Token
	}
	token := issue("bound", "a")
	boundToKey := func(id string) string {
		t.Helper()
		before := maps.Clone(e.store.tokens)
		text := issue(id, "a")
		for key, record := range e.store.tokens {
			if _, former := before[key]; !former {
				record.Confirmation = introspect.Confirmation{Key: "key"}
				e.store.tokens[key] = record
			}
		}
		return text
	}
	for what, c := range map[string]struct {
		token       string
		certificate *Certificate
		want        string
	}{
		"a bearer token":                 {issue("plain", "a"), nil, ""},
		"with a certificate":             {issue("plain", "a"), own, ""},
		"its certificate":                {token, own, ""},
		"no certificate":                 {token, nil, "bearer_binding"},
		"another certificate":            {token, leaf("another"), "bearer_binding"},
		"one that can't be read":         {token, &Certificate{}, "bearer_binding"},
		"bound to a key":                 {boundToKey("plain"), own, "bearer_binding"},
		"another scope":                  {issue("plain", "b"), nil, "bearer_scope"},
		"another scope, no certificate":  {issue("bound", "b"), nil, "bearer_binding"},
		"a token of nobody":              {"made-up", nil, "bearer_no_source"},
		"a credential in place of token": {"secret", nil, "bearer_no_source"},
	} {
		req, err := ParseRequest(Incoming{Bearer: c.token, Authorization: []string{"Bearer " + c.token}, Body: "token=" + c.token, Certificate: c.certificate})
		if err != nil {
			t.Fatal(err)
		}
		facts, out, err := e.Introspect(context.Background(), req)
		got := ""
		if refused := (*Error)(nil); errors.As(err, &refused) {
			got = refused.Reason
		} else if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if got != c.want || err == nil && (!facts.Active || out.ClientID != facts.ClientID || out.AuthMethod != "bearer") {
			t.Errorf("%s: %q, %+v, want %q", what, got, out, c.want)
		}
	}
}
