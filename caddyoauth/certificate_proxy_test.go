package caddyoauth_test

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// sequence writes a certificate as RFC 9440 has it.
func sequence(certificate tls.Certificate) string {
	return ":" + base64.StdEncoding.EncodeToString(certificate.Certificate[0]) + ":"
}

// startBehindProxy starts a gateway whose callers are a proxy's, if proxies are its addresses. ended are
// the lines of client_certificates.
func startBehindProxy(t testing.TB, oauth, ended, proxies string) (g *gateway, logged func() string) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	block := ""
	if ended != "" {
		block = "client_certificates {\n" + ended + "\n}\n"
	}
	config := caddyfileOf("store memory\n"+noFailureLimit+block+oauth, mutualSite)
	config = strings.Replace(config, "{\n", "{\nservers {\ntrusted_proxies static "+proxies+"\n}\n", 1)
	g = startCaddyfile(t, logTo(log, config))
	return g, func() string {
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
}

// fetchBy fetches a token as a proxy forwards it that ended the TLS of its client.
func fetchBy(g *gateway, id string, headers ...string) answer {
	g.t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {id}}
	return g.do(g.request("POST", "/oauth2/access_token", form.Encode(), append(headers, "Content-Type", "application/x-www-form-urlencoded", "X-Forwarded-Proto", "https")...))
}

// A proxy that ends TLS can tell the certificate of its client, in the headers of RFC 9440. Whether the
// name in it counts, the gateway verifies itself.
func TestCertificateFromAProxy(t *testing.T) {
	ca := newAuthority(t)
	between := ca.issue(func(c *x509.Certificate) {
		c.Subject.CommonName, c.IsCA, c.BasicConstraintsValid, c.KeyUsage = "between", true, true, x509.KeyUsageCertSign
	})
	issuing := &authority{t: t, cert: between.Leaf, key: between.PrivateKey.(crypto.Signer)}
	own := selfSigned(t, "own")
	ownFile := filepath.Join(t.TempDir(), "own.pem")
	writeCertificates(t, ownFile, own)
	clients := certificateClients() + "client own {\nauth self_signed_tls_client_auth\ncertificate_file " + ownFile + "\nscopes read\ndefault_scopes read\n}\n" +
		"client bound {\nsecret_hash " + testHash + "\nscopes read\ndefault_scopes read\ncertificate_bound\n}\n"
	g, logged := startBehindProxy(t, clients, "client_cert_header\ntrusted_ca_file "+ca.file, "127.0.0.0/8")
	good, deep := ca.forHost("ci.example.com"), issuing.forHost("ci.example.com")
	const cert, chain = "Client-Cert", "Client-Cert-Chain"

	for what, headers := range map[string][]string{
		"a certificate":                     {cert, sequence(good)},
		"spaces around it":                  {cert, "  " + sequence(good) + " "},
		"a certificate with its chain":      {cert, sequence(deep), chain, sequence(between)},
		"a chain with more than is needed":  {cert, sequence(deep), chain, sequence(own) + ", " + sequence(between)},
		"a chain of two lines":              {cert, sequence(deep), chain, sequence(own), chain, sequence(between)},
		"another header of the same nature": {cert, sequence(good), "X-SSL-Cert", "garbage", "X-Client-Cert", "garbage", "X-Forwarded-Client-Cert", "garbage"},
	} {
		if a := fetchBy(g, "dns", headers...); a.StatusCode != 200 {
			t.Errorf("%s: %d %s", what, a.StatusCode, a.Body)
		}
	}
	wantToken(t, fetchBy(g, "own", cert, sequence(own)), "read")

	long := strings.Join([]string{sequence(own), sequence(own), sequence(own), sequence(own), sequence(own), sequence(own), sequence(own), sequence(own), sequence(own), sequence(own), sequence(own)}, ",")
	pemText := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: good.Certificate[0]}))
	bare := strings.Trim(sequence(good), ":")
	for what, r := range map[string]struct {
		id      string
		headers []string
		reason  string
	}{
		"none":                        {"dns", nil, "no_credentials"},
		"no intermediate":             {"dns", []string{cert, sequence(deep)}, "certificate_unverified"},
		"another authority":           {"dns", []string{cert, sequence(newAuthority(t).forHost("ci.example.com"))}, "certificate_unverified"},
		"one that nobody vouches for": {"dns", []string{cert, sequence(selfSigned(t, "ci"))}, "certificate_unverified"},
		"another name":                {"dns", []string{cert, sequence(ca.forHost("other.example.com"))}, "certificate_subject"},
		"one for servers": {"dns", []string{cert, sequence(ca.issue(func(c *x509.Certificate) {
			c.DNSNames, c.ExtKeyUsage = []string{"ci.example.com"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}))}, "certificate_unverified"},
		"an expired one": {"dns", []string{cert, sequence(ca.issue(func(c *x509.Certificate) {
			c.DNSNames, c.NotAfter = []string{"ci.example.com"}, time.Now().Add(-time.Minute)
		}))}, "certificate_expired"},
		"the chain alone":                 {"dns", []string{chain, sequence(good)}, "malformed_certificate"},
		"two":                             {"dns", []string{cert, sequence(good), cert, sequence(good)}, "malformed_certificate"},
		"two in a line":                   {"dns", []string{cert, sequence(good) + ", " + sequence(good)}, "malformed_certificate"},
		"parameters":                      {"dns", []string{cert, sequence(good) + ";a=1"}, "malformed_certificate"},
		"no colons":                       {"dns", []string{cert, bare}, "malformed_certificate"},
		"one colon":                       {"dns", []string{cert, ":" + bare}, "malformed_certificate"},
		"a colon alone":                   {"dns", []string{cert, ":"}, "malformed_certificate"},
		"nothing between them":            {"dns", []string{cert, "::"}, "malformed_certificate"},
		"nothing":                         {"dns", []string{cert, ""}, "malformed_certificate"},
		"PEM as nginx escapes it":         {"dns", []string{cert, url.QueryEscape(pemText)}, "malformed_certificate"},
		"no base64":                       {"dns", []string{cert, ":!!!!:"}, "malformed_certificate"},
		"base64 for URLs":                 {"dns", []string{cert, ":" + base64.URLEncoding.EncodeToString(append(good.Certificate[0], 0xff, 0xfe)) + ":"}, "malformed_certificate"},
		"bytes behind it":                 {"dns", []string{cert, ":" + base64.StdEncoding.EncodeToString(append(good.Certificate[0], 0)) + ":"}, "malformed_certificate"},
		"too many bytes":                  {"dns", []string{cert, ":" + base64.StdEncoding.EncodeToString(make([]byte, 17<<10)) + ":"}, "malformed_certificate"},
		"a chain that is too long":        {"dns", []string{cert, sequence(good), chain, long}, "malformed_certificate"},
		"a chain that can't be read":      {"dns", []string{cert, sequence(good), chain, sequence(between) + ", ::"}, "malformed_certificate"},
		"another one than is registered":  {"own", []string{cert, sequence(selfSigned(t, "own"))}, "certificate_unknown"},
		"one that can't be read, unknown": {"nobody", []string{cert, ":AAAA:"}, "malformed_certificate"},
	} {
		t.Run(what, func(t *testing.T) {
			g.t = t
			before := len(logged())
			if wantE401(t, fetchBy(g, r.id, r.headers...), "root"); t.Failed() {
				return
			}
			event := ""
			waitUntil(t, "an event says why", func() bool {
				event = logged()[before:]
				return strings.Contains(event, `"reason":"`)
			})
			if !strings.Contains(event, `"reason":"`+r.reason+`"`) {
				t.Errorf("want %s, not %s", r.reason, event)
			}
		})
	}
	g.t = t
	// Who claims a certificate that can't be read is refused, whatever else there is.
	wantE401(t, fetchBy(g, "reader", cert, ":AAAA:", "Authorization", basic("reader", testSecret)), "root")
	if a := fetchBy(g, "dns", cert, sequence(good), "Early-Data", "1"); a.StatusCode != 425 {
		t.Errorf("a certificate before the handshake was complete: %d", a.StatusCode)
	}

	token := wantToken(t, fetchBy(g, "bound", cert, sequence(own), "Authorization", basic("bound", testSecret)), "read")
	for range 3 { // the first fills the cache
		for what, r := range map[string]struct {
			headers []string
			want    int
		}{
			"its certificate":               {[]string{cert, sequence(own)}, 200},
			"another":                       {[]string{cert, sequence(good)}, 401},
			"none":                          {nil, 401},
			"one that can't be read":        {[]string{cert, ":AAAA:"}, 401},
			"its own in the chain":          {[]string{cert, sequence(good), chain, sequence(own)}, 401},
			"its own before the handshake":  {[]string{cert, sequence(own), "Early-Data", "1"}, 425},
			"its own under another's name":  {[]string{"X-Client-Cert", sequence(own)}, 401},
			"its own twice":                 {[]string{cert, sequence(own), cert, sequence(own)}, 401},
			"its own in an unfolded header": {[]string{"Client-Certificate", sequence(own)}, 401},
		} {
			a := g.do(g.request("GET", "/api/x", "", append(r.headers, "Authorization", "Bearer "+token, "X-Forwarded-Proto", "https")...))
			if a.StatusCode != r.want {
				t.Errorf("a bound token with %s: %d, want %d", what, a.StatusCode, r.want)
			}
		}
	}
	if g.do(g.request("GET", "/open", "", cert, sequence(own), "X-Forwarded-Proto", "https")); g.Backend.last(t).Header.Get(cert) != sequence(own) {
		t.Error("the backend doesn't get what the proxy says of its client")
	}
}

// What anybody else says about a certificate is removed before anything can read it, and so is what a
// proxy says, unless it is believed.
func TestCertificateHeadersOfStrangers(t *testing.T) {
	ca := newAuthority(t)
	good := ca.forHost("ci.example.com")
	for what, c := range map[string]struct{ ended, proxies string }{
		"a stranger":                    {"client_cert_header\ntrusted_ca_file " + ca.file, "10.0.0.0/8"},
		"a proxy that is not believed":  {"", "127.0.0.0/8"},
		"a proxy, with authorities":     {"trusted_ca_file " + ca.file, "127.0.0.0/8"},
		"a stranger, nothing is set up": {"", "10.0.0.0/8"},
	} {
		t.Run(what, func(t *testing.T) {
			g, _ := startBehindProxy(t, certificateClients(), c.ended, c.proxies)
			wantE401(t, fetchBy(g, "dns", "Client-Cert", sequence(good)), "root")
			wantToken(t, fetchBy(g, "reader", "Client-Cert", ":AAAA:", "Authorization", basic("reader", testSecret)), "read")
			for _, name := range []string{"Client-Cert", "Client-Cert-Chain", "client-cert", "CLIENT-CERT", "Client_Cert", "Client.Cert"} {
				r := g.request("GET", "/open", "", "X-Forwarded-Proto", "https")
				r.Header[name] = []string{sequence(good)}
				g.do(r)
				for got := range g.Backend.last(t).Header {
					if strings.HasPrefix(strings.ToLower(got), "client") {
						t.Errorf("the backend gets %s", got)
					}
				}
			}
		})
	}
	// From a proxy that is believed, the two names alone.
	g, _ := startBehindProxy(t, certificateClients(), "client_cert_header", "127.0.0.0/8")
	r := g.request("GET", "/open", "", "Client-Cert", sequence(good), "X-Forwarded-Proto", "https")
	r.Header["client_cert"] = []string{"x"}
	g.do(r)
	if h := g.Backend.last(t).Header; h.Get("Client-Cert") != sequence(good) || h["Client_cert"] != nil {
		t.Errorf("the backend gets %v", h)
	}
	wantE401(t, fetchBy(g, "dns", "Client-Cert", sequence(good)), "root") // there are no authorities
}

// The authorities of the configuration decide, if there are any, whatever TLS has verified.
func TestAuthoritiesOfTheConfiguration(t *testing.T) {
	caddys, ours := newAuthority(t), newAuthority(t)
	options := "client_certificates {\ntrusted_ca_file " + ours.file + "\n}\nstore memory\n" + noFailureLimit + certificateClients()
	g := startAsking(t, options, mutualSite, "mode request", "")
	wantToken(t, fetchAs(g.with(ours.forHost("ci.example.com")), "dns"), "read")
	wantE401(t, fetchAs(g.with(caddys.forHost("ci.example.com")), "dns"), "root")
	wantE401(t, fetchAs(g.with(ours.issue(func(c *x509.Certificate) {
		c.DNSNames, c.NotAfter = []string{"ci.example.com"}, time.Now().Add(-time.Minute)
	})), "dns"), "root")
	g = startAsking(t, options, mutualSite, "mode verify_if_given\ntrust_pool file "+caddys.file+" "+ours.file, "")
	wantToken(t, fetchAs(g.with(ours.forHost("ci.example.com")), "dns"), "read")
	wantE401(t, fetchAs(g.with(caddys.forHost("ci.example.com")), "dns"), "root")

	dir := t.TempDir()
	empty, key := filepath.Join(dir, "empty.pem"), filepath.Join(dir, "key.pem")
	for file, text := range map[string]string{empty: "", key: "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for file, part := range map[string]string{filepath.Join(dir, "none.pem"): "no such file", empty: "no certificate in PEM", key: "ec private key", dir: "not a regular file"} {
		err := g.load("client_certificates {\ntrusted_ca_file "+file+"\n}\nstore memory\n"+testClients, gatewaySite)
		if err == nil || !strings.Contains(err.Error(), part) || !strings.Contains(err.Error(), "client_certificates: trusted_ca_file "+file) {
			t.Errorf("authorities in %s: %v", file, err)
		}
	}
}

// A proxy may show a certificate itself: that is not its client's.
func TestCertificateOfTheProxyItself(t *testing.T) {
	ca := newAuthority(t)
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {"dns"}}.Encode()
	for proxies, wants := range map[string]map[string]int{
		"127.0.0.0/8": {"X-Forwarded-For": 401, "Forwarded": 401, "X-Other": 200},
		"10.0.0.0/8":  {"X-Forwarded-For": 200, "Forwarded": 200, "X-Other": 200}, // a client may say so itself
	} {
		g := startAsking(t, "store memory\n"+noFailureLimit+certificateClients(), mutualSite, "mode verify_if_given\ntrust_pool file "+ca.file, "servers {\ntrusted_proxies static "+proxies+"\n}")
		by := g.with(ca.forHost("ci.example.com"))
		for header, want := range wants {
			a := by.do(by.request("POST", "/oauth2/access_token", form, "Content-Type", "application/x-www-form-urlencoded", header, "for=192.0.2.1"))
			if a.StatusCode != want {
				t.Errorf("with %s, and proxies in %s: %d, want %d", header, proxies, a.StatusCode, want)
			}
		}
	}
}

// A certificate counts for the host alone that the connection was made for, over every version of HTTP:
// another host's rules decide who is asked for one, and who verifies it.
func TestCertificateForAnotherHost(t *testing.T) {
	ca := newAuthority(t)
	certFile, keyFile, trust := certificate(t)
	for _, strict := range []bool{true, false} {
		t.Run(fmt.Sprintf("strict_sni_host %v", strict), func(t *testing.T) {
			servers := "servers {\nstrict_sni_host insecure_off\n}\n"
			if strict {
				servers = "" // Caddy's default where a site has a client_auth
			}
			port := porttest.Reserve(t)
			sites := ""
			for host, clientAuth := range map[string]string{"localhost": "mode verify_if_given\ntrust_pool file " + ca.file, "gateway.test": "mode request"} {
				sites += fmt.Sprintf("https://%s:%d {\nbind 127.0.0.1\ntls %s %s {\nclient_auth {\n%s\n}\n}\n%s\n}\n", host, port, certFile, keyFile, clientAuth, mutualSite)
			}
			g := startCaddyfile(t, "{\nadmin off\npersist_config off\nskip_install_trust\nauto_https off\ngrace_period 1s\n"+servers+"oauth {\nstore memory\n"+certificateClients()+
				"client bound {\nsecret_hash "+testHash+"\nscopes read\ndefault_scopes read\ncertificate_bound\n}\n}\n}\n"+sites)
			own := ca.forHost("ci.example.com")
			config := func(name string) *tls.Config {
				return &tls.Config{RootCAs: trust, ServerName: name, Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS12}
			}
			token := ""
			for _, name := range []string{"localhost", "gateway.test"} {
				h1 := &http.Transport{TLSClientConfig: config(name), DialContext: dialLocal, TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}
				h2 := &http.Transport{TLSClientConfig: config(name), DialContext: dialLocal, ForceAttemptHTTP2: true}
				h3 := &http3.Transport{TLSClientConfig: config(name), Dial: dialLocalQUIC}
				for proto, transport := range map[string]http.RoundTripper{"HTTP/1.1": h1, "HTTP/2.0": h2, "HTTP/3.0": h3} {
					by := &gateway{t: t, URL: fmt.Sprintf("https://localhost:%d", port), Backend: g.Backend, Client: &http.Client{Transport: transport, Timeout: 30 * time.Second}}
					want := 200
					if name != "localhost" {
						want = 401
						if strict {
							want = 421
						}
					}
					a := fetchAs(by, "dns")
					if a.StatusCode != want || a.Proto != proto {
						t.Errorf("the host localhost by the name %s: %d over %s, want %d over %s", name, a.StatusCode, a.Proto, want, proto)
					}
					if token == "" {
						token = by.token("bound")
					}
					if a := by.get("/api/x", token); a.StatusCode != want {
						t.Errorf("a bound token for the host localhost by the name %s, over %s: %d, want %d", name, a.Proto, a.StatusCode, want)
					}
				}
				h1.CloseIdleConnections()
				h2.CloseIdleConnections()
				h3.Close()
			}
		})
	}
}

// Each connection has its own certificate. Caddy resumes no TLS session where a site asks for them; if it
// did, the connection would have the certificate of that session.
func TestCertificateOfALaterConnection(t *testing.T) {
	g := startAsking(t, "store memory\n"+noFailureLimit+"client bound {\nsecret_hash "+testHash+"\nscopes read\ndefault_scopes read\ncertificate_bound\n}\n", mutualSite, "mode request", "")
	own := selfSigned(t, "own")
	token := g.with(own).token("bound")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for want, certificates := range map[int][]tls.Certificate{200: {own}, 401: nil} {
			config := g.config(certificates)
			config.ClientSessionCache, config.MinVersion, config.MaxVersion = tls.NewLRUClientSessionCache(1), version, version
			by := g.by(&http.Transport{TLSClientConfig: config, DialContext: dialLocal, DisableKeepAlives: true})
			for range 3 {
				if a := by.get("/api/x", token); a.StatusCode != want {
					t.Errorf("%s, resumed %v: %d, want %d", tls.VersionName(version), a.TLS.DidResume, a.StatusCode, want)
				}
			}
		}
	}
}

// A client that operators add can be one with a certificate, too: its name is all that the store keeps.
func TestManagedClientWithACertificate(t *testing.T) {
	ca := newAuthority(t)
	config, address := withAdmin(t, caddyfileOf("store memory\nclient_certificates {\nclient_cert_header\ntrusted_ca_file "+ca.file+"\n}\n"+managedOptions, managedSite))
	g := startCaddyfile(t, strings.Replace(config, "{\n", "{\nservers {\ntrusted_proxies static 127.0.0.0/8\n}\n", 1))
	a := admin{g, address}
	added := a.must(201, "PUT", "/oauth/clients/root/ci", `{"scopes":["read"],"default_scopes":["read"],"auth":["tls_client_auth"],"tls_client_auth":{"kind":"san_dns","value":"ci.example.com"},"certificate_bound":true}`)
	if added.json(t)["secret"] != nil {
		t.Errorf("it has got a secret: %s", added.Body)
	}
	own, other := ca.forHost("ci.example.com"), ca.forHost("other.example.com")
	token := wantToken(t, fetchBy(g, "ci", "Client-Cert", sequence(own)), "read")
	wantE401(t, fetchBy(g, "ci", "Client-Cert", sequence(other)), "root")
	wantE401(t, fetchBy(g, "ci"), "root")
	for want, certificate := range map[int]tls.Certificate{200: own, 401: other} {
		if res := g.do(g.request("GET", "/x", "", "Authorization", "Bearer "+token, "Client-Cert", sequence(certificate), "X-Forwarded-Proto", "https")); res.StatusCode != want {
			t.Errorf("its token: %d, want %d", res.StatusCode, want)
		}
	}
}
