package caddyoauth_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// BenchmarkProcessAuthenticate compares the CPU time of a token for which the client signs an assertion
// with that of a token for a generated secret. It also reports what the bare verification of a
// signature costs, and the ratio without that.
func BenchmarkProcessAuthenticate(b *testing.B) {
	for _, algorithm := range []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA, jose.RS256} {
		b.Run("private_key_jwt-"+string(algorithm), func(b *testing.B) {
			client := newBenchSigner(b, algorithm)
			set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: client.key.Public(), KeyID: "1"}}})
			if err != nil {
				b.Fatal(err)
			}
			file := filepath.Join(b.TempDir(), "keys.json")
			if err := os.WriteFile(file, set, 0o600); err != nil {
				b.Fatal(err)
			}
			compareAuthentication(b, issuerOption+"client signer {\nauth private_key_jwt\njwks_file "+file+"\nscopes read\ndefault_scopes read\n}\n", client.verification, func(p *process) *http.Request {
				return p.asserting(client.assert(b, map[string]any{"iss": "signer", "sub": "signer", "aud": "https://auth.example.com/oauth2", "jti": rand.Text()}))
			})
		})
	}
}

// BenchmarkProcessFederated is BenchmarkProcessAuthenticate for tokens of a platform. The client shows the
// same one again and again, as programs do, and there are as many clients of the platform as it says.
func BenchmarkProcessFederated(b *testing.B) {
	for _, c := range []struct {
		algorithm jose.SignatureAlgorithm
		clients   int
	}{{jose.ES256, 1}, {jose.RS256, 1}, {jose.RS256, 1000}} {
		b.Run(fmt.Sprintf("%s-clients=%d", c.algorithm, c.clients), func(b *testing.B) {
			platform := newBenchSigner(b, c.algorithm)
			set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: platform.key.Public(), KeyID: "1"}}})
			if err != nil {
				b.Fatal(err)
			}
			file := filepath.Join(b.TempDir(), "keys.json")
			if err := os.WriteFile(file, set, 0o600); err != nil {
				b.Fatal(err)
			}
			clients := ""
			for i := range c.clients {
				clients += fmt.Sprintf("client c%d {\nfederated %s {\njwks_file %s\nsubject repo:acme/app%d:ref:refs/heads/*\n}\nscopes read\ndefault_scopes read\n}\n", i, actions, file, i)
			}
			token := platform.assert(b, map[string]any{"iss": actions, "sub": "repo:acme/app0:ref:refs/heads/main", "aud": "https://auth.example.com/oauth2", "jti": rand.Text()})
			compareAuthentication(b, issuerOption+clients, platform.verification, func(p *process) *http.Request { return p.asserting(token) })
		})
	}
}

// compareAuthentication is one line of the benchmark. The memory store has room for a quarter of a
// million records of one client, and as many assertions, so each comparison has a new gateway.
func compareAuthentication(b *testing.B, options string, verification func(), request func(*process) *http.Request) {
	b.Helper()
	var p *process
	sent := 0
	ready := func(request func() *http.Request) float64 {
		if sent += requestsPerRound; p == nil || sent > 200_000 {
			if p != nil {
				p.stop()
			}
			p, sent = startProcess(b, "store memory\n"+options+testClients, "oauth_server", ""), requestsPerRound
			p.load(b, func() *http.Request { return p.post("/oauth2/access_token") })
		}
		return p.cpuPerRequest(b, request)
	}
	var bare, less []float64
	compare(b, "cpu", func() float64 {
		cost := ready(func() *http.Request { return request(p) })
		bare = append(bare, bareCost(b, verification))
		less = append(less, cost-bare[len(bare)-1])
		return cost
	}, func() float64 {
		cost := ready(func() *http.Request { return p.post("/oauth2/access_token") })
		less[len(less)-1] /= cost
		return cost
	})
	b.ReportMetric(median(less[1:]), "less-verification-ratio") // the first one warmed up
	b.ReportMetric(median(bare[1:])*1e6, "verification-µs")
}

// asserting asks for a token by an assertion.
func (p *process) asserting(assertion string) *http.Request {
	form := by(assertion, "grant_type", "client_credentials")
	r, _ := http.NewRequest("POST", p.url+"/oauth2/access_token", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r
}

// benchSigner signs what proves a client.
type benchSigner struct {
	key    crypto.Signer
	signer jose.Signer
	// verification verifies a signature, with nothing around it.
	verification func()
}

func newBenchSigner(b *testing.B, algorithm jose.SignatureAlgorithm) benchSigner {
	b.Helper()
	message := make([]byte, 400) // about as much as an assertion says
	rand.Read(message)
	digest := sha256.Sum256(message)
	var s benchSigner
	var err error
	switch algorithm {
	case jose.ES256:
		key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		signature, _ := key.Sign(rand.Reader, digest[:], crypto.SHA256)
		s.key, s.verification = key, func() { ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature) }
	case jose.EdDSA:
		public, key, _ := ed25519.GenerateKey(rand.Reader)
		signature := ed25519.Sign(key, message)
		s.key, s.verification = key, func() { ed25519.Verify(public, message, signature) }
	case jose.RS256:
		key, _ := rsa.GenerateKey(rand.Reader, 2048)
		signature, _ := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
		s.key, s.verification = key, func() { rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, digest[:], signature) }
	}
	if s.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: jose.JSONWebKey{Key: s.key, KeyID: "1"}}, nil); err != nil {
		b.Fatal(err)
	}
	return s
}

// assert signs claims, with the times of now.
func (s benchSigner) assert(b *testing.B, claims map[string]any) string {
	now := time.Now()
	claims["iat"], claims["exp"] = now.Unix(), now.Add(4*time.Minute).Unix()
	payload, err := json.Marshal(claims)
	if err != nil {
		b.Fatal(err)
	}
	jws, err := s.signer.Sign(payload)
	if err != nil {
		b.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		b.Fatal(err)
	}
	return text
}

func median(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	return values[len(values)/2]
}
