package caddyoauth_test

import (
	"context"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// A client library that many Go programs use fetches tokens and calls the backend, whichever way
// it authenticates, and with secrets that need encoding.
func TestRealClient(t *testing.T) {
	g := startGateway(t, "store memory\n"+endpointOptions(), "oauth_server\noauth_protect /alpha/* alpha\noauth_protect /root/* root\nreverse_proxy BACKEND")
	for name, style := range map[string]oauth2.AuthStyle{"in the header": oauth2.AuthStyleInHeader, "in the body": oauth2.AuthStyleInParams, "detected": oauth2.AuthStyleAutoDetect} {
		for _, c := range []struct {
			id, secret string
			styles     string // those that the client may use
		}{
			{"reader", testSecret, "in the header, in the body, detected"},
			{"my:app", oddSecret, "in the header, in the body, detected"},
			{"only-basic", testSecret, "in the header, detected"},
			{"only-post", testSecret, "in the body, detected"},
			{"off", testSecret, ""},
			{"reader", "wrong", ""},
		} {
			for route, base := range map[string]string{"/root/x": "/oauth2", "/alpha/x": alphaBase} {
				t.Run(c.id+" "+c.secret+" "+name+" at "+base, func(t *testing.T) {
					// The library remembers the detected style for each token URL. Another query for each
					// client makes it start afresh.
					config := clientcredentials.Config{
						ClientID: c.id, ClientSecret: c.secret, AuthStyle: style, Scopes: []string{"read"},
						TokenURL: g.URL + base + "/access_token?" + url.QueryEscape(c.id+c.secret),
					}
					ctx := context.WithValue(t.Context(), oauth2.HTTPClient, g.Client)
					token, err := config.Token(ctx)
					if !strings.Contains(c.styles, name) {
						if err == nil {
							t.Fatal("it got a token")
						}
						if retrieve, ok := err.(*oauth2.RetrieveError); !ok || retrieve.ErrorCode != "invalid_client" || retrieve.Response.StatusCode != 401 {
							t.Errorf("the error is %v", err)
						}
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					left := time.Until(token.Expiry)
					if token.TokenType != "Bearer" || token.RefreshToken != "" || left > time.Hour || left < 50*time.Minute || token.Extra("scope") != "read" {
						t.Errorf("the token is of type %q, lives for %v, with scope %v", token.TokenType, left, token.Extra("scope"))
					}
					res, err := config.Client(ctx).Get(g.URL + route)
					if err != nil {
						t.Fatal(err)
					}
					defer res.Body.Close()
					if body, _ := io.ReadAll(res.Body); res.StatusCode != 200 || string(body) != "backend" {
						t.Errorf("calling the backend: %d %s", res.StatusCode, body)
					}
				})
			}
		}
	}
}
