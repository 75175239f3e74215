// Command secretless stands in for a platform, such as Kubernetes or a cloud: it gives workloads tokens
// that say which workload they are, and publishes the keys to verify them by.
package main

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"time"
)

// platform has one key, for as long as it runs.
type platform struct {
	issuer string
	key    *ecdsa.PrivateKey
}

// token answers with a token for a workload. A real platform knows who is asking, from where the
// request comes. This one takes everybody's word for it, so that you can try several.
func (p *platform) token(w http.ResponseWriter, r *http.Request) {
	now := time.Now().Unix()
	token, err := p.sign(map[string]any{
		"iss": p.issuer, "sub": "system:serviceaccount:" + r.PathValue("namespace") + ":" + r.PathValue("account"),
		"aud": r.URL.Query()["audience"], "iat": now, "nbf": now, "exp": now + 600,
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, token)
}

// sign makes a JWT (RFC 7519), signed by ES256.
func (p *platform) sign(claims map[string]any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	encode := base64.RawURLEncoding.EncodeToString
	input := encode([]byte(`{"alg":"ES256","kid":"demo"}`)) + "." + encode(payload)
	digest := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, p.key, digest[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return input + "." + encode(signature), nil
}

// metadata says where the keys are (OpenID Connect Discovery).
func (p *platform) metadata(w http.ResponseWriter, _ *http.Request) {
	answer(w, map[string]any{"issuer": p.issuer, "jwks_uri": p.issuer + "/keys"})
}

// keys answers with the public key, as a JWK set (RFC 7517).
func (p *platform) keys(w http.ResponseWriter, _ *http.Request) {
	point, err := p.key.PublicKey.Bytes() // a 4, then both coordinates
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	encode := base64.RawURLEncoding.EncodeToString
	answer(w, map[string]any{"keys": []any{map[string]string{
		"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "demo", "x": encode(point[1:33]), "y": encode(point[33:]),
	}}})
}

func answer(w http.ResponseWriter, document any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(document); err != nil {
		log.Println(err)
	}
}

func main() {
	log.SetOutput(os.Stdout)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+cmp.Or(os.Getenv("PORT"), "8201"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening on", listener.Addr())
	p := &platform{issuer: "http://" + listener.Addr().String(), key: key}
	http.HandleFunc("GET /token/{namespace}/{account}", p.token)
	http.HandleFunc("GET /.well-known/openid-configuration", p.metadata)
	http.HandleFunc("GET /keys", p.keys)
	log.Fatal(http.Serve(listener, nil))
}
