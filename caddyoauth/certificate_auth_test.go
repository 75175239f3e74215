package caddyoauth_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// authority makes certificates for clients.
type authority struct {
	t    testing.TB
	file string // its own certificate
	cert *x509.Certificate
	key  crypto.Signer
	made int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, file: filepath.Join(t.TempDir(), "ca.pem")}
	self := a.issue(func(c *x509.Certificate) {
		c.Subject = pkix.Name{CommonName: "Test CA"}
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
	})
	a.cert, a.key = self.Leaf, self.PrivateKey.(crypto.Signer)
	writeCertificates(t, a.file, self)
	return a
}

// issue makes a certificate for a client with the common name ci, with some changes. Without a key, the
// authority makes its own.
func (a *authority) issue(change func(*x509.Certificate)) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.made++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.made), Subject: pkix.Name{CommonName: "ci"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	change(template)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// forHost makes a certificate with an alternative name.
func (a *authority) forHost(name string) tls.Certificate {
	a.t.Helper()
	return a.issue(func(c *x509.Certificate) { c.DNSNames = []string{name} })
}

func writeCertificates(t testing.TB, file string, certificates ...tls.Certificate) {
	t.Helper()
	var text []byte
	for _, certificate := range certificates {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]})...)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// tlsGateway is a gateway with a site for localhost that asks its callers for certificates.
type tlsGateway struct {
	*gateway
	trust  *x509.CertPool
	logged func() string
}

// startAsking starts one. The site's client_auth has the given lines; global are further global options.
func startAsking(t testing.TB, oauth, site, clientAuth, global string) tlsGateway {
	t.Helper()
	certFile, keyFile, trust := certificate(t)
	log := filepath.Join(t.TempDir(), "log")
	config := logTo(log, "{\nadmin off\npersist_config off\nskip_install_trust\nauto_https off\ngrace_period 1s\n"+global+"\noauth {\n"+oauth+
		fmt.Sprintf("\n}\n}\nhttps://localhost:%d {\nbind 127.0.0.1\ntls ", porttest.Reserve(t))+certFile+" "+keyFile+" {\nclient_auth {\n"+clientAuth+"\n}\n}\n"+site+"\n}\n")
	// At level DEBUG, Caddy makes an event of each handshake, for which it reads what the start of its TLS app
	// has written. That the datagrams of HTTP/3 come later, the race detector can't see: it knows no order
	// between sending and receiving them.
	g := startCaddyfile(t, strings.Replace(config, "level DEBUG", "level INFO", 1))
	return tlsGateway{g, trust, func() string {
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}}
}

// with returns the gateway for a caller with these certificates.
func (g tlsGateway) with(certificates ...tls.Certificate) *gateway {
	transport := &http.Transport{TLSClientConfig: g.config(certificates), DialContext: dialLocal, ForceAttemptHTTP2: true}
	g.t.Cleanup(transport.CloseIdleConnections)
	return g.by(transport)
}

// overHTTP3 is with, over HTTP/3.
func (g tlsGateway) overHTTP3(certificates ...tls.Certificate) *gateway {
	transport := &http3.Transport{TLSClientConfig: g.config(certificates), Dial: dialLocalQUIC}
	g.t.Cleanup(func() { transport.Close() })
	return g.by(transport)
}

func (g tlsGateway) by(transport http.RoundTripper) *gateway {
	return &gateway{t: g.t, URL: "https://localhost:" + portOf(g.t, g.URL), Backend: g.Backend, Client: &http.Client{Transport: transport, Timeout: 30 * time.Second}}
}

// config shows a certificate whatever authorities the server names, as an attacker would.
func (g tlsGateway) config(certificates []tls.Certificate) *tls.Config {
	return &tls.Config{RootCAs: g.trust, ServerName: "localhost", MinVersion: tls.VersionTLS12, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if len(certificates) == 0 {
			return new(tls.Certificate), nil
		}
		return &certificates[0], nil
	}}
}

// fetchAs is how a client fetches a token that has a certificate and nothing else.
func fetchAs(g *gateway, id string) answer {
	g.t.Helper()
	return g.post("/oauth2/access_token", "", "", url.Values{"grant_type": {"client_credentials"}, "client_id": {id}})
}

// reasonOf returns the reason in the last event.
func (g tlsGateway) reasonOf(event string) (reason string) {
	g.t.Helper()
	waitUntil(g.t, "the event is logged", func() bool {
		lines := strings.Split(strings.TrimSpace(g.logged()), "\n")
		for _, line := range slices.Backward(lines) {
			if _, after, ok := strings.Cut(line, `"event":"`+event+`"`); ok {
				_, after, _ = strings.Cut(after, `"reason":"`)
				reason, _, _ = strings.Cut(after, `"`)
				return true
			}
		}
		return false
	})
	return reason
}

const mutualSite = "oauth_server\noauth_protect /api/* {\nscopes read\n}\nreverse_proxy BACKEND"

// certificateClients are clients that authenticate by a certificate, one for each kind of name.
func certificateClients() string {
	client := func(id, subject string) string {
		return "client " + id + " {\nauth tls_client_auth\ntls_client_auth " + subject + "\nscopes read\ndefault_scopes read\nintrospect own\n}\n"
	}
	return client("dn", `subject_dn "CN=ci+OU=x,O=Example\, Inc."`) + client("dns", "san_dns ci.example.com") + client("uri", "san_uri https://example.com/ci") +
		client("ip", "san_ip 192.0.2.7") + client("email", "san_email ci@example.com") + client("spiffe", "san_uri spiffe://example.org/ci") + testClients
}

// A client whose certificate an authority has made needs no secret: at every endpoint, over every
// version of HTTP, by one name that its certificate must have.
func TestTLSClientAuth(t *testing.T) {
	ca := newAuthority(t)
	g := startAsking(t, "store memory\n"+noFailureLimit+certificateClients()+"client gone {\ndisabled\nauth tls_client_auth\ntls_client_auth san_dns ci.example.com\n}\n", mutualSite,
		"mode verify_if_given\ntrust_pool file "+ca.file, "")
	uri := func(uris ...string) tls.Certificate {
		return ca.issue(func(c *x509.Certificate) {
			for _, text := range uris {
				u, err := url.Parse(text)
				if err != nil {
					t.Fatal(err)
				}
				c.URIs = append(c.URIs, u)
			}
		})
	}
	good := map[string]tls.Certificate{
		"dn": ca.issue(func(c *x509.Certificate) {
			c.RawSubject = subject(t, []pkix.AttributeTypeAndValue{{Type: []int{2, 5, 4, 10}, Value: "Example, Inc."}}, []pkix.AttributeTypeAndValue{{Type: []int{2, 5, 4, 3}, Value: "ci"}, {Type: []int{2, 5, 4, 11}, Value: "x"}})
		}),
		"dns":   ca.forHost("ci.example.com"),
		"uri":   uri("https://example.com/ci"),
		"ip":    ca.issue(func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 7)} }),
		"email": ca.issue(func(c *x509.Certificate) { c.EmailAddresses = []string{"ci@example.com"} }), "spiffe": uri("spiffe://example.org/ci"),
	}
	for id, certificate := range good {
		for protocol, by := range map[string]*gateway{"h2": g.with(certificate), "h3": g.overHTTP3(certificate)} {
			t.Run(id+" over "+protocol, func(t *testing.T) {
				by.t = t
				token := wantToken(t, fetchAs(by, id), "read")
				if a := by.get("/api/x", token); a.StatusCode != 200 {
					t.Errorf("its token: %d", a.StatusCode)
				}
				if a := by.post("/oauth2/introspect", "", "", url.Values{"token": {token}, "client_id": {id}}); a.json(t)["active"] != true {
					t.Errorf("introspection: %s", a.Body)
				}
				if a := by.post("/oauth2/token/revoke", "", "", url.Values{"token": {token}, "client_id": {id}}); a.StatusCode != 200 {
					t.Errorf("revocation: %d", a.StatusCode)
				}
				for other := range good {
					if other != id {
						wantE401(t, fetchAs(by, other), "root")
					}
				}
			})
		}
	}
	waitUntil(t, "the event names the certificate", func() bool {
		return strings.Contains(g.logged(), `"auth_method":"tls_client_auth","certificate":"`+thumbprint(good["dns"])+`"`)
	})

	byName := g.with(good["dns"])
	for what, c := range map[string]struct {
		by     *gateway
		id     string
		reason string
	}{
		"no certificate":                      {g.with(), "dns", "no_credentials"},
		"the name as the common name alone":   {g.with(ca.issue(func(c *x509.Certificate) { c.Subject.CommonName = "ci.example.com" })), "dns", "certificate_subject"},
		"a wildcard":                          {g.with(ca.forHost("*.example.com")), "dns", "certificate_subject"},
		"the name of the host above":          {g.with(ca.forHost("example.com")), "dns", "certificate_subject"},
		"an SVID with a second URI":           {g.with(uri("spiffe://example.org/ci", "spiffe://example.org/other")), "spiffe", "certificate_subject"},
		"a client that has a secret":          {byName, "reader", "auth_method_not_allowed"},
		"nobody":                              {byName, "nobody", "unknown_client"},
		"a disabled client":                   {byName, "gone", "client_disabled"},
		"no client_id":                        {byName, "", "no_credentials"},
		"the client's name in the wrong kind": {g.with(ca.issue(func(c *x509.Certificate) { c.EmailAddresses = []string{"ci@ci.example.com"} })), "dns", "certificate_subject"},
		"a subject with its parts the other way": {g.with(ca.issue(func(c *x509.Certificate) {
			c.RawSubject = subject(t, []pkix.AttributeTypeAndValue{{Type: []int{2, 5, 4, 3}, Value: "ci"}, {Type: []int{2, 5, 4, 11}, Value: "x"}}, []pkix.AttributeTypeAndValue{{Type: []int{2, 5, 4, 10}, Value: "Example, Inc."}})
		})), "dn", "certificate_subject"},
	} {
		t.Run(what, func(t *testing.T) {
			c.by.t = t
			wantE401(t, fetchAs(c.by, c.id), "root")
			if reason := g.reasonOf("token_refused"); reason != c.reason {
				t.Errorf("the reason is %s, want %s", reason, c.reason)
			}
		})
	}

	// A certificate counts only where nothing else is offered, and is then no second method.
	for what, c := range map[string]struct {
		form   url.Values
		secret string // by Basic
		want   int
	}{
		"a secret by Basic":              {url.Values{}, testSecret, 200},
		"and the client_id":              {url.Values{"client_id": {"reader"}}, testSecret, 200},
		"a secret in the form":           {url.Values{"client_id": {"reader"}, "client_secret": {testSecret}}, "", 200},
		"a wrong secret":                 {url.Values{"client_id": {"dns"}, "client_secret": {"wrong-secret"}}, "", 401},
		"a secret of another client":     {url.Values{"client_id": {"dns"}, "client_secret": {testSecret}}, "", 401},
		"an empty secret, which is none": {url.Values{"client_id": {"dns"}, "client_secret": {""}}, "", 200},
	} {
		c.form.Set("grant_type", "client_credentials")
		id := ""
		if c.secret != "" {
			id = "reader"
		}
		if a := byName.post("/oauth2/access_token", id, c.secret, c.form); a.StatusCode != c.want {
			t.Errorf("a certificate and %s: %d %s", what, a.StatusCode, a.Body)
		}
	}

	// Of what nobody trusts, TLS itself refuses the connection.
	stranger := newAuthority(t)
	for what, certificate := range map[string]tls.Certificate{
		"another authority": stranger.forHost("ci.example.com"),
		"an expired one": ca.issue(func(c *x509.Certificate) {
			c.DNSNames, c.NotAfter = []string{"ci.example.com"}, time.Now().Add(-time.Minute)
		}),
		"one for servers": ca.issue(func(c *x509.Certificate) {
			c.DNSNames, c.ExtKeyUsage = []string{"ci.example.com"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}),
	} {
		by := g.with(certificate)
		if a, err := by.try(by.posting("/oauth2/access_token", "", "", url.Values{"grant_type": {"client_credentials"}, "client_id": {"dns"}})); err == nil && a.StatusCode == 200 {
			t.Errorf("a certificate of %s: %d %s", what, a.StatusCode, a.Body)
		}
	}
}

// subject encodes a name.
func subject(t testing.TB, parts ...[]pkix.AttributeTypeAndValue) []byte {
	t.Helper()
	var name pkix.RDNSequence
	for _, part := range parts {
		name = append(name, part)
	}
	der, err := asn1.Marshal(name)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// A site that asks for certificates and verifies none proves only that a client has some key: the name
// that a certificate gives itself counts for nothing.
func TestUnverifiedCertificateIsNoName(t *testing.T) {
	ca := newAuthority(t)
	for _, mode := range []string{"mode request", "mode require", "mode request\ntrust_pool file " + ca.file} {
		t.Run(mode, func(t *testing.T) {
			g := startAsking(t, "store memory\n"+noFailureLimit+certificateClients(), mutualSite, mode, "")
			for _, certificate := range []tls.Certificate{ca.forHost("ci.example.com"), newAuthority(t).forHost("ci.example.com")} {
				wantE401(t, fetchAs(g.with(certificate), "dns"), "root")
				if reason := g.reasonOf("token_refused"); reason != "certificate_unverified" {
					t.Errorf("the reason is %s", reason)
				}
			}
		})
	}
}

// A certificate that nobody vouches for authenticates the client that has registered just this one.
func TestSelfSignedTLSClientAuth(t *testing.T) {
	dir := t.TempDir()
	own, next, other, ends := selfSigned(t, "ci"), selfSigned(t, "ci"), selfSigned(t, "ci"), newAuthority(t).issue(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	writeCertificates(t, filepath.Join(dir, "own.pem"), own, ends)
	writeCertificates(t, filepath.Join(dir, "next.pem"), next)
	config := "store memory\n" + noFailureLimit + "client ci {\nauth self_signed_tls_client_auth\ncertificate_file " + dir + "/own.pem " + dir + "/next.pem\nscopes read\ndefault_scopes read\n}\n" +
		"client both {\nauth self_signed_tls_client_auth tls_client_auth client_secret_basic\ncertificate_file " + dir + "/own.pem\ntls_client_auth subject_dn CN=ci\nsecret_hash " + testHash + "\nscopes read\ndefault_scopes read\n}\n" + testClients
	g := startAsking(t, config, mutualSite, "mode request", "")
	for name, certificate := range map[string]tls.Certificate{"own": own, "next": next} {
		wantToken(t, fetchAs(g.with(certificate), "ci"), "read")
		wantToken(t, fetchAs(g.overHTTP3(certificate), "ci"), "read")
		waitUntil(t, "the event names the certificate", func() bool {
			return strings.Contains(g.logged(), `"auth_method":"self_signed_tls_client_auth","certificate":"`+thumbprint(certificate)+`"`)
		})
		_ = name
	}
	wantToken(t, fetchAs(g.with(own), "both"), "read")
	wantToken(t, g.with(other).fetch("both"), "read") // by its secret
	for what, c := range map[string]struct {
		by         *gateway
		id, reason string
	}{
		"another with the same subject": {g.with(other), "ci", "certificate_unknown"},
		"an expired one":                {g.with(ends), "ci", "certificate_expired"},
		"none":                          {g.with(), "ci", "no_credentials"},
		"one for the other method":      {g.with(next), "both", "certificate_unverified"},
		"that of a client with secrets": {g.with(own), "reader", "auth_method_not_allowed"},
		"nobody's":                      {g.with(own), "nobody", "unknown_client"},
	} {
		t.Run(what, func(t *testing.T) {
			c.by.t = t
			wantE401(t, fetchAs(c.by, c.id), "root")
			if reason := g.reasonOf("token_refused"); reason != c.reason {
				t.Errorf("the reason is %s, want %s", reason, c.reason)
			}
		})
	}
	wantE401(t, g.with(own).fetch("ci"), "root") // by a secret that it doesn't have
}

// What a client's certificate must be is settled when the configuration is loaded.
func TestCertificateSettingsThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	ca := newAuthority(t)
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return "certificate_file " + path + "\n"
	}
	g := startGateway(t, "store memory\n"+noFailureLimit+testClients, gatewaySite)
	selfSigned, byCA := "auth self_signed_tls_client_auth\n", "auth tls_client_auth\n"
	for what, r := range map[string]struct{ lines, part string }{
		"no subject":             {byCA, "add a line such as 'tls_client_auth san_dns ci.example.com'"},
		"a subject and a secret": {"secret_hash " + testHash + "\ntls_client_auth san_dns a.example.com\n", "add 'auth tls_client_auth'"},
		"a secret, too":          {byCA + "tls_client_auth san_dns a.example.com\nsecret_hash " + testHash + "\n", "it has a secret, and may not use it"},
		"a wildcard":             {byCA + "tls_client_auth san_dns *.example.com\n", "has a wildcard"},
		"two subjects":           {byCA + "tls_client_auth san_dns a.example.com\ntls_client_auth san_dns b.example.com\n", "duplicate"},
		"no file":                {selfSigned, "add a certificate_file"},
		"a file and a secret":    {"secret_hash " + testHash + "\ncertificate_file " + ca.file + "\n", "add 'auth self_signed_tls_client_auth'"},
		"a folder":               {selfSigned + "certificate_file " + dir + "\n", "not a regular file"},
		"a file that is gone":    {selfSigned + "certificate_file " + dir + "/none.pem\n", "no such file"},
		"an empty file":          {selfSigned + file("empty.pem", ""), "no certificate in PEM"},
		"a private key":          {selfSigned + file("key.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), "a private key in it"},
		"a broken certificate":   {selfSigned + file("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "certificate 1"},
	} {
		if err := g.load("store memory\n"+noFailureLimit+"client c {\nscopes read\n"+r.lines+"}\n", gatewaySite); err == nil {
			t.Errorf("%s: it loads", what)
		} else if !strings.Contains(err.Error(), r.part) {
			t.Errorf("%s: %v, want %q in it", what, err, r.part)
		}
	}
}

func certificatesRecipe(t *testing.T, b docBlock) {
	ca := newAuthority(t)
	certFile, keyFile, trust := certificate(t)
	text := changed(t, b.text, "127.0.0.1:9000", "BACKEND", "/etc/caddy/client-ca.pem", ca.file, "\ttls {", "\ttls "+certFile+" "+keyFile+" {",
		"api.example.com {", fmt.Sprintf("https://localhost:%d {\n\tbind 127.0.0.1", porttest.Reserve(t)),
		"\toauth {", "\tadmin off\n\tpersist_config off\n\tauto_https off\n\tskip_install_trust\n\toauth {\n\t\tstore memory")
	g := tlsGateway{gateway: startCaddyfile(t, text), trust: trust}
	fetch := func(by *gateway, id string) answer {
		return by.post("/oauth2/token", "", "", url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "scope": {"read"}})
	}
	workload, err := url.Parse("spiffe://example.org/ci/runner")
	if err != nil {
		t.Fatal(err)
	}
	for id, certificate := range map[string]tls.Certificate{
		"batch": ca.forHost("batch.example.com"), "runner": ca.issue(func(c *x509.Certificate) { c.URIs = []*url.URL{workload} }),
	} {
		token := wantToken(t, fetch(g.with(certificate), id), "read")
		for by, want := range map[*gateway]int{g.with(certificate): 200, g.with(ca.forHost("other.example.com")): 401, g.with(): 401} {
			if a := by.get("/api/x", token); a.StatusCode != want {
				t.Errorf("the token of %s: %d, want %d", id, a.StatusCode, want)
			}
		}
		wantE401(t, fetch(g.with(ca.forHost("other.example.com")), id), "root")
		wantE401(t, fetch(g.with(ca.forHost("*.example.com")), id), "root")
		wantE401(t, fetch(g.with(), id), "root")
	}
	if a := g.with().get("/open", ""); a.StatusCode != 200 {
		t.Errorf("a browser: %d", a.StatusCode)
	}
	by := g.with(newAuthority(t).forHost("batch.example.com"))
	if a, err := by.try(by.request("GET", "/open", "")); err == nil {
		t.Errorf("with a certificate that nobody vouches for: %d", a.StatusCode)
	}
}
