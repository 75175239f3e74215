package caddyoauth_test

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// BenchmarkProcessCertificate compares the CPU time of a token for which the client shows a certificate
// with that of a token for a generated secret: over TLS, whose handshake is over, and from a proxy that
// sends the certificate, which the gateway then verifies. It also reports what the bare verification
// costs. The memory store has room for a quarter of a million records of one client, so run it with
// -benchtime 20x at most.
func BenchmarkProcessCertificate(b *testing.B) {
	ca := newAuthority(b)
	own := ca.forHost("ci.example.com")
	clients := "client ci {\nauth tls_client_auth\ntls_client_auth san_dns ci.example.com\nscopes read\ndefault_scopes read\n}\n" + testClients
	ask := func(p *process, headers ...string) *http.Request {
		form := url.Values{"grant_type": {"client_credentials"}, "client_id": {"ci"}}
		r, _ := http.NewRequest("POST", p.url+"/oauth2/access_token", strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		return r
	}
	run := func(b *testing.B, p *process, headers ...string) {
		roots := x509.NewCertPool()
		roots.AddCert(ca.cert)
		verification := func() {
			own.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		}
		compare(b, "cpu", func() float64 {
			return p.cpuPerRequest(b, func() *http.Request { return ask(p, headers...) })
		}, func() float64 {
			return p.cpuPerRequest(b, func() *http.Request { return p.post("/oauth2/access_token") })
		})
		b.ReportMetric(bareCost(b, verification)*1e6, "verification-µs")
	}
	b.Run("connection", func(b *testing.B) {
		certFile, keyFile, trust := certificate(b)
		p := startProcess(b, "store memory\n"+clients, "tls "+certFile+" "+keyFile+" {\nclient_auth {\nmode verify_if_given\ntrust_pool file "+ca.file+"\n}\n}\noauth_server", "")
		p.url = "https://localhost:" + portOf(b, p.url)
		transport := &http.Transport{MaxIdleConnsPerHost: 256, DialContext: dialLocal, TLSClientConfig: &tls.Config{RootCAs: trust, Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS13}}
		b.Cleanup(transport.CloseIdleConnections)
		p.client = &http.Client{Transport: transport}
		run(b, p)
	})
	b.Run("proxy", func(b *testing.B) {
		p := startProcessWith(b, "admin off\nservers {\ntrusted_proxies static 127.0.0.0/8\n}", "store memory\nclient_certificates {\nclient_cert_header\ntrusted_ca_file "+ca.file+"\n}\n"+clients, "oauth_server", "")
		run(b, p, "Client-Cert", sequence(own))
	})
}
