package caddyoauth_test

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// With credentials_in_query, credentials count there as in the form. Events and a warning, once for each
// client that has been authenticated, say who has them there.
func TestCredentialsInTheQueryOfAMsClients(t *testing.T) {
	access := filepath.Join(t.TempDir(), "access")
	filter := "" // of the manual
	for _, b := range docBlocks(t, "docs/forgerock.md") {
		if strings.Contains(b.text, "replace client_secret") {
			filter = b.text
		}
	}
	g, logged := startLogged(t, "store memory\n"+noFailureLimit+"realm alpha {\nam_compat {\ncredentials_in_query\n}\n"+testClients+"client guessed {\nsecret_hash "+hashOf("other")+"\n}\n}\n",
		strings.Replace(filter, "log {", "log {\noutput file "+access, 1)+"\noauth_server")
	if !strings.Contains(logged(), "am_compat has credentials_in_query") {
		t.Error("nothing warns of credentials_in_query when it is loaded")
	}
	const granted = `200 {"access_token":"…","scope":"read","token_type":"Bearer","expires_in":3599}`
	for _, tc := range []struct{ name, request, want, event, client string }{
		{"by Basic", "access_token?scope=read grant_type=client_credentials\nAuthorization: " + basic("reader", testSecret), granted, "token_issued", ""},
		{"a wrong secret", "access_token?client_id=guessed&client_secret=x grant_type=client_credentials", `400 {"error_description":"Client authentication failed","error":"invalid_client"}`, "token_refused", "guessed"},
		{"all in the query", "access_token?client_id=reader&client_secret=abc&grant_type=client_credentials", granted, "token_issued", "reader"},
		{"a secret in the query", "access_token?client_secret=abc grant_type=client_credentials&client_id=reader", granted, "token_issued", "reader"},
		{"in both", "access_token?client_id=reader&client_secret=abc grant_type=client_credentials&client_id=reader&client_secret=abc", granted, "token_issued", "reader"},
		{"different ones", "access_token?client_id=reader&client_secret=abc grant_type=client_credentials&client_id=writer&client_secret=abc", `400 {"error_description":"client_id is repeated","error":"invalid_request"}`, "token_refused", ""},
		{"and Basic", "access_token?client_secret=abc grant_type=client_credentials\nAuthorization: " + basic("reader", testSecret), `400 {"error_description":"Client authentication failed","error":"invalid_request"}`, "token_refused", ""},
		{"to introspect", "introspect?client_id=writer&client_secret=abc token=x", `200 {"active":false}`, "token_introspected", "writer"},
		{"to revoke", "token/revoke?client_id=writer&client_secret=abc token=x", `200 {}`, "token_revoked", "writer"},
	} {
		before := len(logged())
		if got := g.amAnswer("alpha", tc.request); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.name, got, tc.want)
		}
		fields := eventAfter(t, logged, before, tc.event)
		if told, _ := fields["credentials_in_query"].(bool); told != (tc.client != "") || tc.client != "" && fields["client_id"] != tc.client {
			t.Errorf("%s: the event is %v", tc.name, fields)
		}
	}
	warnings := 0
	for line := range strings.Lines(logged()) {
		if strings.Contains(line, `"event":"credentials_in_query"`) {
			warnings++
		}
	}
	if warnings != 2 {
		t.Errorf("there are %d warnings of clients, want one for each of two:\n%s", warnings, logged())
	}
	if err := g.load("store memory\nrealm alpha {\nam_compat\n"+testClients+"}\n", "oauth_server"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(access)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "client_secret=REDACTED") || strings.Contains(string(text), "client_secret=abc") {
		t.Errorf("the log of requests is\n%s", text)
	}
}

// Without the option, an event says that the credentials were in the query.
func TestIgnoredCredentialsInTheQueryAreNoticed(t *testing.T) {
	g, logged := startLogged(t, amRealms(testClients), "oauth_server")
	g.amAnswer("alpha", "access_token?client_id=reader&client_secret=abc grant_type=client_credentials")
	if fields := eventAfter(t, logged, 0, "token_refused"); fields["reason"] != "credentials_in_query" || fields["credentials_in_query"] != true {
		t.Errorf("the event is %v", fields)
	}
	if strings.Contains(logged(), `"event":"credentials_in_query"`) {
		t.Error("a warning names a client that nobody has authenticated")
	}
}

// auth_methods decides for whom the two ways to send a secret are one. It opens nothing else.
func TestAuthMethodsOfAM(t *testing.T) {
	signer := newKeyClient(t, "signer")
	realm := func(name, methods string) string {
		client := func(id, lines string) string {
			return "client " + id + " {\nsecret_hash " + hashOf(testSecret) + "\ndefault_scopes read\n" + lines + "\n}\n"
		}
		return "realm " + name + " {\nissuer https://auth.example.com/" + name + "\nam_compat {\n" + methods + "\n}\n" +
			client("basic", "scopes read\nauth client_secret_basic") + client("post", "scopes read\nauth client_secret_post") +
			client("basic-openid", "scopes read openid\nauth client_secret_basic") + client("post-openid", "scopes read openid\nauth client_secret_post") +
			signer.lines() + "}\n"
	}
	g := startGateway(t, "store memory\n"+noFailureLimit+realm("default", "")+realm("always", "auth_methods always")+realm("openid", "auth_methods openid")+realm("never", "auth_methods never"), "oauth_server")
	either := map[string]bool{"default/basic": false, "always/basic": false, "openid/basic": true, "openid/basic-openid": false, "never/basic": true, "never/basic-openid": true}
	for where, want := range either {
		realm, id, _ := strings.Cut(where, "/")
		postID := strings.Replace(id, "basic", "post", 1)
		path := "/oauth2/realms/root/realms/" + realm + "/access_token"
		grant := url.Values{"grant_type": {"client_credentials"}}
		form := func(id string) string {
			return url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "client_secret": {testSecret}}.Encode()
		}
		const kind = "application/x-www-form-urlencoded"
		for name, got := range map[string]int{
			"Basic of one that has Basic":     g.post(path, id, testSecret, grant).StatusCode,
			"the form of one that has a form": g.do(g.request("POST", path, form(postID), "Content-Type", kind)).StatusCode,
		} {
			if got != 200 {
				t.Errorf("%s: %s gets %d", where, name, got)
			}
		}
		for name, got := range map[string]int{
			"the form of one that has Basic": g.do(g.request("POST", path, form(id), "Content-Type", kind)).StatusCode,
			"Basic of one that has a form":   g.post(path, postID, testSecret, grant).StatusCode,
		} {
			if (got == 200) != want {
				t.Errorf("%s: %s gets %d", where, name, got)
			}
		}
		if got := g.post(path, "signer", testSecret, grant).StatusCode; got != 401 {
			t.Errorf("%s: a client without a secret gets %d", where, got)
		}
	}
}
