package oauth

import (
	"crypto/x509"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// shown is a certificate that a request shows, and counts how often it is verified.
type shown struct {
	*x509.Certificate
	trusted  bool
	verified int
}

// request asks for a token by the certificate.
func (s *shown) request(t testing.TB, id string, more ...string) Request {
	t.Helper()
	form := url.Values{"grant_type": {GrantClientCredentials}, "client_id": {id}}
	for i := 0; i < len(more); i += 2 {
		form.Set(more[i], more[i+1])
	}
	in := Incoming{Body: form.Encode(), From: from}
	if s != nil {
		in.Certificate = &Certificate{Leaf: s.Certificate, Verified: func() bool { s.verified++; return s.trusted }}
	}
	r, err := ParseRequest(in)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// certificateEngine has a client for each method and state, and a certificate that is right for all
// that take one.
func certificateEngine(t testing.TB) (*engine, *x509.Certificate) {
	t.Helper()
	right := newCertificate(t, func(c *x509.Certificate) {
		c.DNSNames = []string{"ci.example.com"}
		c.NotBefore, c.NotAfter = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC)
	})
	subject, err := NewCertificateSubject("san_dns", "ci.example.com")
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewCertificateSubject("subject_dn", "CN=other")
	if err != nil {
		t.Fatal(err)
	}
	client := func(id string, change func(*Client), auth ...string) *Client {
		return newClient(id).with(func(c *Client) {
			c.Auth, c.CertificateSubject = auth, subject
			c.Certificates = func(thumbprint string) bool { return thumbprint == introspect.CertificateThumbprint(right) }
			change(c)
		})
	}
	same := func(*Client) {}
	return newEngine(t, nil,
		client("named", same, AuthTLS), client("pinned", same, AuthSelfSigned), client("either", same, AuthTLS, AuthSelfSigned),
		client("bound", func(c *Client) { c.CertificateBound = true }, AuthTLS),
		client("off", func(c *Client) { c.Disabled = true }, AuthTLS),
		client("elsewhere", func(c *Client) { c.CertificateSubject = other }, AuthTLS),
		client("unready", func(c *Client) { c.CertificateSubject, c.Certificates = nil, nil }, AuthTLS),
		client("unready-file", func(c *Client) { c.Certificates = nil }, AuthSelfSigned),
		newClient("secretive", quickSecret(t, "s")), client("both", func(c *Client) { c.Secrets = []*Secret{quickSecret(t, "s")} }, AuthTLS, AuthPost),
	), right
}

// Who shows a certificate is the client that it belongs to, by the client's own methods, and a failure
// says nothing about what was wrong: neither the answer nor what was done for it.
func TestCertificateAuthentication(t *testing.T) {
	t.Parallel()
	e, right := certificateEngine(t)
	for _, c := range []struct {
		id      string
		trusted bool
		method  string
		why     string // empty: it is let in
		change  func(*x509.Certificate)
	}{
		{id: "named", trusted: true, method: AuthTLS},
		{id: "named", method: AuthTLS, why: "certificate_unverified"},
		{id: "pinned", method: AuthSelfSigned},
		{id: "pinned", trusted: true, method: AuthSelfSigned},
		{id: "either", method: AuthSelfSigned},
		{id: "either", trusted: true, method: AuthTLS, change: func(c *x509.Certificate) { c.Raw = []byte("another") }},
		{id: "either", method: AuthTLS, why: "certificate_unverified", change: func(c *x509.Certificate) { c.Raw = []byte("another") }},
		{id: "pinned", trusted: true, method: AuthSelfSigned, why: "certificate_unknown", change: func(c *x509.Certificate) { c.Raw = []byte("another") }},
		{id: "elsewhere", trusted: true, method: AuthTLS, why: "certificate_subject"},
		{id: "unready", trusted: true, method: AuthTLS, why: "certificate_subject"},
		{id: "unready-file", trusted: true, method: AuthSelfSigned, why: "certificate_unknown"},
		{id: "off", trusted: true, method: AuthTLS, why: "client_disabled"},
		{id: "secretive", trusted: true, method: AuthTLS, why: "auth_method_not_allowed"},
		{id: "nobody", trusted: true, method: AuthTLS, why: "unknown_client"},
		{id: "named", trusted: true, method: AuthTLS, why: "certificate_expired", change: func(c *x509.Certificate) { c.NotAfter = c.NotBefore }},
		{id: "pinned", trusted: true, method: AuthSelfSigned, why: "certificate_not_yet_valid", change: func(c *x509.Certificate) { c.NotBefore = c.NotAfter }},
	} {
		leaf := *right
		if c.change != nil {
			c.change(&leaf)
		}
		s := &shown{Certificate: &leaf, trusted: c.trusted}
		_, out, err := e.Token(t.Context(), s.request(t, c.id))
		refusal, _ := err.(*Error)
		switch {
		case c.why == "" && (err != nil || out.Proof.Certificate != introspect.CertificateThumbprint(&leaf)):
			t.Errorf("%s, trusted %v: %v, the proof is %+v", c.id, c.trusted, err, out.Proof)
		case c.why != "" && (refusal == nil || refusal.Code != CodeInvalidClient || refusal.Reason != c.why || out.Proof != (Proof{})):
			t.Errorf("%s, trusted %v: %v, want %s", c.id, c.trusted, err, c.why)
		}
		if out.AuthMethod != c.method || s.verified != 1 {
			t.Errorf("%s, trusted %v: by %s, verified %d times", c.id, c.trusted, out.AuthMethod, s.verified)
		}
	}
}

// A certificate is a method only where a request has no other, and none at all without the client's ID.
func TestCertificateBesideOtherCredentials(t *testing.T) {
	t.Parallel()
	e, right := certificateEngine(t)
	s := &shown{Certificate: right, trusted: true}
	for _, c := range []struct {
		id, more string
		method   string
		ok       bool
	}{
		{"both", "", AuthTLS, true}, {"both", "client_secret=s", AuthPost, true}, {"both", "client_secret=wrong", AuthPost, false}, {"named", "client_secret=s", AuthPost, false}, {"", "", "", false},
		{"named", "client_assertion_type=" + AssertionType + "&client_assertion=x", AuthPrivateKeyJWT, false},
	} {
		var more []string
		for pair := range strings.SplitSeq(c.more, "&") {
			if name, value, ok := strings.Cut(pair, "="); ok {
				more = append(more, name, value)
			}
		}
		_, out, err := e.Token(t.Context(), s.request(t, c.id, more...))
		if out.AuthMethod != c.method || (err == nil) != c.ok {
			t.Errorf("%q with %q: by %q, %v", c.id, c.more, out.AuthMethod, err)
		}
	}
	// What can't be read fails whatever there is.
	r := request(t, "secretive", "s", grantForm)
	r.Certificate = new(Certificate)
	for _, r := range []Request{r, {Form: grantForm, Certificate: new(Certificate), Credentials: Credentials{Method: AuthTLS, ClientIDs: []string{"named"}, certificate: new(Certificate)}}} {
		if _, _, err := e.Token(t.Context(), r); codeOf(err) != CodeInvalidClient || err.(*Error).Reason != "malformed_certificate" {
			t.Errorf("a certificate that can't be read: %v", err)
		}
	}
}

// Tokens are bound to the certificate that they were fetched with, if their client wants that.
func TestTokensAreBoundToTheCertificate(t *testing.T) {
	t.Parallel()
	e, right := certificateEngine(t)
	s := &shown{Certificate: right, trusted: true}
	for id, want := range map[string]string{"bound": introspect.CertificateThumbprint(right), "named": ""} {
		grant, _, err := e.Token(t.Context(), s.request(t, id))
		if err != nil {
			t.Fatal(err)
		}
		token := introspect.NewToken(grant.Token)
		facts, err := e.Tokens().LookupWithin(t.Context(), &token, time.Hour)
		if err != nil || facts.Confirmation != (introspect.Confirmation{Certificate: want}) {
			t.Errorf("the token of %s is bound to %+v, %v", id, facts.Confirmation, err)
		}
	}
}

// BenchmarkCertificate measures an authentication by certificate, and failures, whose times must not
// differ by what is wrong.
func BenchmarkCertificate(b *testing.B) {
	e, right := certificateEngine(b)
	for _, id := range []string{"named", "pinned", "elsewhere", "off", "secretive", "nobody"} {
		b.Run(id, func(b *testing.B) {
			s := &shown{Certificate: right, trusted: true}
			r := s.request(b, id)
			b.ReportAllocs()
			for b.Loop() {
				var out Outcome
				if _, err := e.authenticate(b.Context(), r, &out); (err == nil) != slices.Contains([]string{"named", "pinned"}, id) {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("by a secret", func(b *testing.B) {
		r := request(b, "secretive", "s", grantForm)
		b.ReportAllocs()
		for b.Loop() {
			var out Outcome
			if _, err := e.authenticate(b.Context(), r, &out); err != nil {
				b.Fatal(err)
			}
		}
	})
}
