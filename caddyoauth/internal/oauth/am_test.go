package oauth

import (
	"context"
	"crypto/x509"
	"errors"
	"maps"
	"net/url"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// Whoever asks what a token means, without being a client, must have what it is bound to, and those who
// guess are refused while good tokens are answered.
func TestTokenInfo(t *testing.T) {
	leaf := func(name string) *Certificate {
		return &Certificate{Leaf: newCertificate(t, func(c *x509.Certificate) { c.Subject.CommonName = name })}
	}
	own := leaf("own")
	bound, plain := newClient("bound", quickSecret(t, "secret")), newClient("plain", quickSecret(t, "secret"))
	bound.CertificateBound = true
	now := time.Now()
	clock := func() time.Time { return now }
	e := newEngine(t, func(cfg *Settings) { cfg.Now = clock }, bound, plain)
	issue := func(id string) string {
		t.Helper()
		grant, _, err := e.Token(context.Background(), Request{
			Form: url.Values{"grant_type": {GrantClientCredentials}, "scope": {"a"}}, Certificate: own,
			Credentials: Credentials{Method: AuthBasic, ClientIDs: []string{id}, Secrets: []string{"secret"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return grant.Token
	}
	ask := func(text string, shown *Certificate) string {
		token := introspect.NewToken(text)
		facts, out, err := e.TokenInfo(context.Background(), &token, shown, func(*introspect.Token) *Engine { return nil })
		if refused := (*Error)(nil); errors.As(err, &refused) {
			return string(refused.Code) + " " + refused.Reason
		}
		if err != nil || !facts.Active || out.TokenID != facts.ID || out.ClientID != "" {
			t.Fatalf("%v, %+v, %v", facts, out, err)
		}
		return facts.ClientID
	}
	before := maps.Clone(e.store.tokens)
	byKey := issue("plain")
	for key, record := range e.store.tokens {
		if _, former := before[key]; !former {
			record.Confirmation = introspect.Confirmation{Key: "key"}
			e.store.tokens[key] = record
		}
	}
	good, certified := issue("plain"), issue("bound")
	for what, c := range map[string]struct {
		token string
		shown *Certificate
		want  string
	}{
		"a bearer token":                 {good, nil, "plain"},
		"with a certificate":             {good, own, "plain"},
		"its certificate":                {certified, own, "bound"},
		"no certificate":                 {certified, nil, "invalid_token binding"},
		"another certificate":            {certified, leaf("another"), "invalid_token binding"},
		"one that can't be read":         {certified, &Certificate{}, "invalid_token binding"},
		"bound to a key":                 {byKey, own, "invalid_token binding"},
		"a token of nobody":              {"made-up", nil, "invalid_token no_source"},
		"a credential in place of token": {"secret", nil, "invalid_token no_source"},
		"nothing":                        {"", nil, "invalid_token no_source"},
	} {
		if got := ask(c.token, c.shown); got != c.want {
			t.Errorf("%s: %s, want %s", what, got, c.want)
		}
	}

	for range 2000 {
		ask("made-up", nil)
	}
	if got := ask("made-up", nil); got != "slow_down " {
		t.Errorf("after many guesses: %s", got)
	}
	if got := ask(good, nil); got != "plain" {
		t.Errorf("a good token after many guesses: %s", got)
	}
	now = now.Add(time.Second)
	if got := ask("made-up", nil); got != "invalid_token no_source" {
		t.Errorf("a guess later: %s", got)
	}
	now = now.Add(plain.TokenLifetime)
	if got := ask(good, nil); got != "invalid_token expired" {
		t.Errorf("a token at its end: %s", got)
	}
}
