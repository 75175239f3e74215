package caddyoauth_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// BenchmarkProcessDPoP compares the CPU time of a protected request whose token is bound to a key, and
// which comes with a proof, with that of the same request with a bearer token. It also reports what the
// bare verification of a signature costs, and the ratio without that.
func BenchmarkProcessDPoP(b *testing.B) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok")) }))
	b.Cleanup(backend.Close)
	stores := map[string]string{"memory": "memory"}
	if _, err := exec.LookPath("redis-server"); err == nil {
		stores["redis"] = "redis " + redistest.Start(b).Addr
	}
	for name, store := range stores {
		for _, algorithm := range []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA} {
			b.Run(name+"-"+string(algorithm), func(b *testing.B) {
				key := newBenchSigner(b, algorithm)
				p := &prover{t: b}
				var err error
				if p.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key.key}, (&jose.SignerOptions{EmbedJWK: true}).WithType("dpop+jwt")); err != nil {
					b.Fatal(err)
				}
				g := startProcess(b, "store "+store+"\nissuer "+dpopIssuer+"\ndpop {\nnonce 1h\n}\n"+testClients, dpopSite, backend.Listener.Addr().String())
				var answer struct {
					Token string `json:"access_token"`
				}
				ask := func(r *http.Request) *http.Response {
					b.Helper()
					res, err := g.client.Do(r)
					if err != nil {
						b.Fatal(err)
					}
					b.Cleanup(func() { res.Body.Close() })
					return res
				}
				for nonce := ""; answer.Token == ""; { // the first is asked for a nonce
					r := g.post("/oauth2/access_token")
					r.Header.Set("DPoP", p.proof("POST", dpopIssuer+"/access_token", "", withNonce(nonce)))
					res := ask(r)
					nonce = res.Header.Get("DPoP-Nonce")
					if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
						b.Fatal(err)
					}
				}
				proven := func(nonce string) *http.Request {
					r := g.get("/api/orders/17", answer.Token)
					r.Header.Set("Authorization", "DPoP "+answer.Token)
					r.Header.Set("DPoP", p.proof("GET", dpopOrigin+"/api/orders/17", answer.Token, withNonce(nonce)))
					return r
				}
				nonce := ask(proven("")).Header.Get("DPoP-Nonce")
				bearer := g.token(b)
				var bare, less []float64
				compare(b, "cpu", func() float64 {
					cost := g.cpuPerRequest(b, func() *http.Request { return proven(nonce) })
					bare = append(bare, bareCost(b, key.verification))
					less = append(less, cost-bare[len(bare)-1])
					return cost
				}, func() float64 {
					cost := g.cpuPerRequest(b, func() *http.Request { return g.get("/api/orders/17", bearer) })
					less[len(less)-1] /= cost
					return cost
				})
				b.ReportMetric(median(less[1:]), "less-verification-ratio") // the first one warmed up
				b.ReportMetric(median(bare[1:])*1e6, "verification-µs")
			})
		}
	}
}
