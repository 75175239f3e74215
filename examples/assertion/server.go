// Command assertion is a backend that believes nobody but the gateway, whoever can reach it: it demands
// an assertion, a JWT by which the gateway says who is calling, signed for just this backend.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
)

// audience is what the gateway calls this backend.
const audience = "https://go.internal.example.com"

// caller is who sends a request.
type caller struct {
	jwt.RegisteredClaims
	ClientID string `json:"client_id"`
	Scope    string `json:"scope"`
}

// asserted wraps a handler: it answers 401 to requests that don't come from the gateway.
func asserted(issuer string, keys keyfunc.Keyfunc, next func(http.ResponseWriter, *http.Request, *caller)) http.Handler {
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{"ES256"}), // the realm's algorithm, and no other
		jwt.WithIssuer(issuer),
		jwt.WithAudience(audience),
		jwt.WithExpirationRequired(),
	)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := new(caller)
		token, err := parser.ParseWithClaims(r.Header.Get("X-OAuth-Assertion"), who, keys.Keyfunc)
		if err == nil && token.Header["typ"] != "oauth-assertion+jwt" {
			err = errors.New("it is another kind of JWT")
		}
		if err != nil {
			log.Println("refused:", err)
			http.Error(w, "Come through the gateway.", http.StatusUnauthorized)
			return
		}
		next(w, r, who)
	})
}

func main() {
	log.SetOutput(os.Stdout)
	listener, err := net.Listen("tcp", "127.0.0.1:"+cmp.Or(os.Getenv("PORT"), "8191"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening on", listener.Addr())
	issuer := cmp.Or(os.Getenv("ISSUER"), "http://127.0.0.1:8190/oauth2")
	// It fetches the keys again now and then, and when it meets one that it doesn't know.
	keys, err := keyfunc.NewDefaultCtx(context.Background(), []string{issuer + "/jwks"})
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(listener, asserted(issuer, keys, func(w http.ResponseWriter, _ *http.Request, who *caller) {
		fmt.Fprintf(w, "Go knows you, %s: you may %s.\n", who.ClientID, who.Scope)
	})))
}
