package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// issuer is another authorization server, for routes that accept its tokens. It is part of this
// process, as the backend is, and serves its keys and an introspection endpoint on loopback.
type issuer struct {
	url    string // of the server
	jwt    string // a token that it has signed
	opaque string // one that it must be asked about

	server *http.Server
}

const issuerName = "https://issuer.example.com"

// newIssuer starts one. The caller must Close its server.
func newIssuer(ctx context.Context) (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, new(jose.SignerOptions).WithType("at+jwt"))
	if err != nil {
		return nil, err
	}
	// Long enough for any run, and as many claims as the gateway's own tokens have.
	now := time.Now()
	claims := map[string]any{
		"iss": issuerName, "sub": "elsewhere", "client_id": "elsewhere", "scope": "read", "aud": "https://api.example.com", "jti": rand.Text(),
		"iat": now.Unix(), "exp": now.Add(24 * time.Hour).Unix(),
	}
	i := &issuer{opaque: rand.Text()}
	if i.jwt, err = jwt.Signed(signer).Claims(claims).Serialize(); err != nil {
		return nil, err
	}
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "1", Algorithm: string(jose.ES256), Use: "sig"}}})
	if err != nil {
		return nil, err
	}
	// Where two sources name the same issuer, the gateway believes neither about it without being told.
	delete(claims, "iss")
	claims["active"] = true
	active, err := json.Marshal(claims)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, body []byte) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	}
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) { answer(w, keys) })
	mux.HandleFunc("POST /introspect", func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		if r.FormValue("token") != i.opaque {
			answer(w, []byte(`{"active":false}`))
			return
		}
		answer(w, active)
	})
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	i.url = "http://" + listener.Addr().String()
	i.server = &http.Server{Handler: mux, ReadHeaderTimeout: patience}
	go i.server.Serve(listener) //nolint:errcheck // returns after Close, with nothing to report
	return i, nil
}

// caddyfile returns the options of a route that accepts tokens of these kinds: local, introspect, jwt.
func (i *issuer) caddyfile(kinds []string) string {
	options := ""
	for _, kind := range kinds {
		switch kind {
		case "introspect":
			kind += " " + i.url + "/introspect"
		case "jwt":
			kind += fmt.Sprintf(" %s {\n\t\t\t\tjwks_uri %s/keys\n\t\t\t}", issuerName, i.url)
		}
		options += "\t\t\tsource " + kind + "\n"
	}
	return options
}
