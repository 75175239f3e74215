package caddyoauth_test

import "testing"

// A caller can't use an open route to tell the backend who it is.
func TestOpenRoutesCarryNoIdentity(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, `
		oauth_server
		oauth_protect /api/*
		oauth_protect /partners/* {
			header_prefix X-Partner-
		}
		reverse_proxy BACKEND`)
	r := g.request("GET", "/open", "",
		"X-OAuth-Client-Id", "admin", "x_oauth.scope", "all", "X-Partner-Client-Id", "admin",
		"Connection", "X-Partner-Subject", "X-Other", "stays")
	r.Header["x_oauth.scope"] = []string{"all"}
	if a := g.do(r); a.StatusCode != 200 {
		t.Fatalf("the open route answered %d", a.StatusCode)
	}
	got := g.Backend.last(t).Header
	for _, name := range []string{"X-Oauth-Client-Id", "X_oauth.scope", "X-Partner-Client-Id"} {
		if v := got.Values(name); v != nil {
			t.Errorf("the backend was told %s: %q", name, v)
		}
	}
	if got.Get("X-Other") != "stays" {
		t.Errorf("other headers were removed: %v", got)
	}
}

// In a route block, the user chooses the order. An oauth_server must not remove the identity that
// an oauth_protect before it has set.
func TestServerAfterProtectKeepsIdentity(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, `
		oauth_server /oauth2/*
		route /api/* {
			oauth_protect
			oauth_server
			reverse_proxy BACKEND
		}`)
	if a := g.get("/api/x", g.token("reader")); a.StatusCode != 200 {
		t.Fatalf("answered %d", a.StatusCode)
	}
	if id := g.Backend.last(t).Header.Get("X-OAuth-Client-Id"); id != "reader" {
		t.Errorf("the backend was told %q", id)
	}
}
