package caddyoauth_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/go-jose/go-jose/v4"

	"github.com/caddyoauth/gateway/caddyoauth"
)

// amRealms has a realm alpha that answers as AM does, and beta with the same clients that doesn't.
func amRealms(clients string) string {
	return "store memory\n" + noFailureLimit +
		"realm alpha {\nissuer https://auth.example.com/oauth2\nam_compat\n" + clients + "}\n" +
		"realm beta {\nissuer https://auth.example.com/beta\n" + clients + "}\n"
}

// amCase is a request, and how it is answered with am_compat and without. An answer is its status, the
// headers that depend on it, each behind a |, and the body.
type amCase struct {
	name string
	// request is the endpoint, and behind a space the body. A line above it is a method, if it is not
	// POST; lines below it are headers.
	request string
	on, off string
}

var issuedToken = regexp.MustCompile(`"access_token":"[^"]+"`)

// amAnswer sends a request to a realm and writes down the answer. All of them must forbid that they are
// kept, and be JSON.
func (g *gateway) amAnswer(realm, request string) string {
	g.t.Helper()
	method, rest, found := strings.Cut(request, "|")
	if !found {
		method, rest = "POST", request
	}
	target, headers, _ := strings.Cut(rest, "\n")
	target, body, _ := strings.Cut(target, " ")
	kind := "Content-Type: application/x-www-form-urlencoded\r\n"
	if strings.Contains(headers, "Content-Type") {
		kind = ""
	}
	if headers != "" {
		headers = strings.ReplaceAll(headers, "\n", "\r\n") + "\r\n"
	}
	a := readRaw(g.t, g.rawConn(fmt.Sprintf("%s /oauth2/realms/root/realms/%s/%s HTTP/1.1\r\nHost: localhost\r\n%s%sContent-Length: %d\r\n\r\n%s",
		method, realm, target, kind, headers, len(body), body)), method)
	if h := a.Header; h.Get("Cache-Control") != "no-store" || h.Get("Pragma") != "no-cache" || h.Get("Content-Type") != "application/json" {
		g.t.Errorf("%s: the headers are %v", request, h)
	}
	text := fmt.Sprint(a.StatusCode)
	for _, name := range []string{"Allow", "WWW-Authenticate", "Retry-After"} {
		if value := a.Header.Get(name); value != "" {
			text += " | " + name + ": " + value
		}
	}
	return text + " " + issuedToken.ReplaceAllString(a.Body, `"access_token":"…"`)
}

// The whole of each refusal, on and off. Texts, codes and statuses are those of AM 7, but for a client that
// may not use its method, and for outages.
func TestRefusalsAreAMs(t *testing.T) {
	g := startGateway(t, amRealms(testClients+"client asks {\nsecret_hash "+hashOf(testSecret)+"\ngrant_types none\n}\n"+
		"client bare {\nsecret_hash "+hashOf(testSecret)+"\nscopes read openid\n}\n"+
		"client posts {\nsecret_hash "+hashOf(testSecret)+"\nscopes read\nauth client_secret_post\n}\n"), "oauth_server")
	const (
		grant     = "access_token grant_type=client_credentials"
		byForm    = "&client_id=reader&client_secret=abc"
		assertion = "client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&client_assertion=x"
	)
	header := func(id, secret string) string { return "\nAuthorization: " + basic(id, secret) }
	reader := header("reader", testSecret)
	token := func(realm string) string {
		a := g.post("/oauth2/realms/root/realms/"+realm+"/access_token", "reader", testSecret, url.Values{"grant_type": {"client_credentials"}})
		_, rest, _ := strings.Cut(a.Body, `"access_token":"`)
		token, _, _ := strings.Cut(rest, `"`)
		return token
	}
	const (
		failedForm    = `400 {"error_description":"Client authentication failed","error":"invalid_client"}`
		failedHeader  = `401 | WWW-Authenticate: Basic realm="/alpha" {"error_description":"Client authentication failed","error":"invalid_client"}`
		failed        = `401 | WWW-Authenticate: Basic realm="beta" {"error":"invalid_client","error_description":"client authentication failed"}`
		twoMethods    = `400 {"error":"invalid_request","error_description":"there is more than one client authentication method"}`
		noGrantType   = `400 {"error":"invalid_request","error_description":"grant_type is missing"}`
		granted       = `200 {"access_token":"…","scope":"read","token_type":"Bearer","expires_in":3599}`
		grantedInFull = `200 {"access_token":"…","scope":"read","token_type":"Bearer","expires_in":3600}`
		postNotGet    = `405 | Allow: POST {"error":"invalid_request","error_description":"the method must be POST"}`
	)
	for _, tc := range []amCase{
		{"another method", "GET|access_token",
			`405 | Allow: POST {"error_description":"Required Method: POST found: GET","error":"method_not_allowed"}`, postNotGet},
		{"a method that nobody knows", "BREW|access_token",
			`405 | Allow: POST {"error_description":"Required Method: POST","error":"method_not_allowed"}`, postNotGet},
		{"another method, to introspect", "PUT|introspect",
			`405 | Allow: POST {"error_description":"Required Method: POST found: PUT","error":"method_not_allowed"}`, postNotGet},
		{"another method, to revoke", "DELETE|token/revoke",
			`405 | Allow: POST {"error_description":"Required Method: POST found: DELETE","error":"method_not_allowed"}`, postNotGet},
		{"not a form", "access_token {}\nContent-Type: application/json" + reader,
			`400 {"error_description":"Invalid Content Type","error":"invalid_request"}`,
			`400 {"error":"invalid_request","error_description":"the content type must be application/x-www-form-urlencoded"}`},
		{"no grant type", "access_token scope=read" + reader,
			`400 {"error_description":"Grant type is not set","error":"invalid_request"}`,
			`400 {"error":"invalid_request","error_description":"grant_type is missing"}`},
		{"nothing", "access_token",
			`400 {"error_description":"Grant type is not set","error":"invalid_request"}`,
			`400 {"error":"invalid_request","error_description":"grant_type is missing"}`},
		{"a grant type that doesn't exist", "access_token grant_type=Client_Credentials" + reader,
			`400 {"error_description":"Grant type is not supported","error":"unsupported_grant_type"}`,
			`400 {"error":"unsupported_grant_type","error_description":"the grant type is not supported"}`},
		{"the same of a stranger", "access_token grant_type=password" + header("nobody", "x"),
			`400 {"error_description":"Grant type is not supported","error":"unsupported_grant_type"}`, failed},
		{"a client without the grant", grant + header("asks", testSecret),
			`400 {"error_description":"The authenticated client is not authorized to use this authorization grant type.","error":"unauthorized_client"}`,
			`400 {"error":"unauthorized_client","error_description":"the client is not authorized to use this grant type"}`},

		{"a wrong secret by Basic", grant + header("reader", "x"), failedHeader, failed},
		{"nobody by Basic", grant + header("nobody", "x"), failedHeader, failed},
		{"an ID in other case by Basic", grant + header("Reader", testSecret), failedHeader, failed},
		{"Basic that can't be read", grant + "\nAuthorization: Basic %%%", failedHeader, failed},
		{"a method that the client may not use, with its secret", grant + header("posts", testSecret), failedHeader, failed},
		{"a bearer token", grant + "\nAuthorization: Bearer x", failedHeader, failed},
		{"a wrong secret in the form", grant + "&client_id=reader&client_secret=x", failedForm, failed},
		{"nobody in the form", grant + "&client_id=nobody&client_secret=x", failedForm, failed},
		{"a client without a secret in the form", grant + "&client_id=reader", failedForm, failed},
		{"no client", grant, failedForm, failed},
		{"a wrong secret, to introspect", "introspect token=x" + header("reader", "x"), failedHeader, failed},
		{"no client, to revoke", "token/revoke token=x", failedForm, failed},

		{"Basic and an equal client_id", "introspect token=x&client_id=reader" + reader, `200 {"active":false}`, `200 {"active":false}`},
		{"Basic and another client_id", grant + "&client_id=writer" + reader,
			`400 {"error_description":"Client authentication failed","error":"invalid_request"}`,
			`400 {"error":"invalid_request","error_description":"client_id differs from the authenticated client"}`},
		{"Basic and a secret in the form", grant + byForm + reader,
			`400 {"error_description":"Client authentication failed","error":"invalid_request"}`, twoMethods},
		{"Basic and an assertion", grant + "&" + assertion + reader, failedHeader, twoMethods},
		{"a secret and an assertion", grant + byForm + "&" + assertion,
			`400 {"error_description":"there is more than one client authentication method","error":"invalid_request"}`, twoMethods},

		{"scopes that the client may not have", grant + "&scope=write+read+x" + reader,
			`400 {"error_description":"Unknown/invalid scope(s): [write, x]","error":"invalid_scope"}`,
			`400 {"error":"invalid_scope","error_description":"the client may not have a scope that was requested"}`},
		{"a malformed scope", grant + "&scope=read++write" + reader,
			`400 {"error_description":"Unknown/invalid scope(s): []","error":"invalid_scope"}`,
			`400 {"error":"invalid_scope","error_description":"the scope is malformed or too long"}`},
		{"a scope with a quote", grant + "&scope=%22x%22" + reader,
			`400 {"error_description":"Unknown/invalid scope(s): []","error":"invalid_scope"}`,
			`400 {"error":"invalid_scope","error_description":"the scope is malformed or too long"}`},
		{"no scope, and no default", grant + header("bare", testSecret),
			`400 {"error_description":"No scope requested and no default scope configured","error":"invalid_scope"}`,
			`400 {"error":"invalid_scope","error_description":"no scope was requested and the client has no default scope"}`},
		{"cnf_key", grant + "&scope=x&cnf_key=e30" + reader,
			`400 {"error_description":"Invalid cnf_key parameter","error":"invalid_request"}`,
			`400 {"error":"invalid_scope","error_description":"the client may not have a scope that was requested"}`},

		{"no token to introspect", "introspect x=1" + reader,
			`400 {"error_description":"Missing parameter: token","error":"invalid_request"}`,
			`400 {"error":"invalid_request","error_description":"token is missing"}`},
		{"no token to revoke", "token/revoke x=1" + reader,
			`400 {"error_description":"Missing parameter: token","error":"invalid_request"}`,
			`400 {"error":"invalid_request","error_description":"token is missing"}`},
		{"nothing to revoke", "token/revoke token=x" + reader, `200 {}`, `200 {}`},
		{"another client's token", "token/revoke token=TOKEN" + header("writer", testSecret),
			`400 {"error_description":"The provided token id belongs to different access grant.","error":"invalid_grant"}`,
			`400 {"error":"invalid_grant","error_description":"the token was issued to another client"}`},

		{"state", grant + "&scope=x&state=a+%C3%A9%3C" + reader,
			`400 {"error_description":"Unknown/invalid scope(s): [x]","error":"invalid_scope","state":"a é\u003c"}`,
			`400 {"error":"invalid_scope","error_description":"the client may not have a scope that was requested"}`},
		{"state in the query of another method", "GET|access_token?state=12",
			`405 | Allow: POST {"error_description":"Required Method: POST found: GET","error":"method_not_allowed","state":"12"}`, postNotGet},
		{"a state that is no text", grant + "&scope=x&state=a%0Ab" + reader,
			`400 {"error_description":"Unknown/invalid scope(s): [x]","error":"invalid_scope"}`,
			`400 {"error":"invalid_scope","error_description":"the client may not have a scope that was requested"}`},
		{"a state that is too long", grant + "&scope=x&state=" + strings.Repeat("a", 1025) + reader,
			`400 {"error_description":"Unknown/invalid scope(s): [x]","error":"invalid_scope"}`,
			`400 {"error":"invalid_scope","error_description":"the client may not have a scope that was requested"}`},

		{"the query", "access_token?grant_type=client_credentials&scope=read" + reader, granted, noGrantType},
		{"the query, of no form", "access_token?scope=read\nContent-Type: text/plain" + reader,
			`400 {"error_description":"Invalid Content Type","error":"invalid_request"}`,
			`400 {"error":"invalid_request","error_description":"the content type must be application/x-www-form-urlencoded"}`},
		{"a query that can't be read", "access_token?a=%zz grant_type=client_credentials" + reader,
			`400 {"error_description":"the query is not well-formed","error":"invalid_request"}`, grantedInFull},
		{"the same in the query and in the form", "access_token?scope=read grant_type=client_credentials&scope=read" + reader, granted, grantedInFull},
		{"something else in the query", "access_token?scope=read grant_type=client_credentials&scope=write" + reader,
			`400 {"error_description":"scope is repeated","error":"invalid_request"}`,
			`400 {"error":"invalid_scope","error_description":"the client may not have a scope that was requested"}`},
		{"the same again", grant + "&scope=read&x=1&scope=read&x=1" + reader, granted, `400 {"error":"invalid_request","error_description":"scope is repeated"}`},
		{"something else again", grant + "&scope=read&scope=write" + reader,
			`400 {"error_description":"scope is repeated","error":"invalid_request"}`,
			`400 {"error":"invalid_request","error_description":"scope is repeated"}`},
		{"state in the query", "access_token?state=12 grant_type=client_credentials" + header("reader", "x"),
			`401 | WWW-Authenticate: Basic realm="/alpha" {"error_description":"Client authentication failed","error":"invalid_client","state":"12"}`, failed},
		{"cnf_key in the query", "access_token?cnf_key=e30 grant_type=client_credentials" + reader,
			`400 {"error_description":"Invalid cnf_key parameter","error":"invalid_request"}`, grantedInFull},
		{"credentials in the query", "access_token?client_id=reader&client_secret=abc grant_type=client_credentials", failedForm, failed},
		{"a secret in the query", "access_token?client_secret=abc grant_type=client_credentials&client_id=reader", failedForm, failed},
		{"an assertion in the query", "access_token?" + assertion + " grant_type=client_credentials", failedForm, failed},
		{"another client in the query", "access_token?client_id=writer&client_secret=x grant_type=client_credentials" + reader, granted, grantedInFull},
		{"a token to introspect in the query", "introspect?token=TOKEN" + reader,
			`400 {"error_description":"Missing parameter: token","error":"invalid_request"}`,
			`400 {"error":"invalid_request","error_description":"token is missing"}`},
		{"a token to revoke in the query", "token/revoke?token=TOKEN" + reader,
			`400 {"error_description":"Missing parameter: token","error":"invalid_request"}`,
			`400 {"error":"invalid_request","error_description":"token is missing"}`},

		{"what AM doesn't have", "access_token a[=1&resource[0]=x" + reader,
			`400 {"error_description":"resource must be repeated under its plain name, and not as a list with brackets","error":"invalid_request"}`,
			`400 {"error":"invalid_request","error_description":"resource must be repeated under its plain name, and not as a list with brackets"}`},
	} {
		for realm, want := range map[string]string{"alpha": tc.on, "beta": tc.off} {
			request := tc.request
			if strings.Contains(request, "TOKEN") {
				request = strings.ReplaceAll(request, "TOKEN", token(realm))
			}
			if got := g.amAnswer(realm, request); got != want {
				t.Errorf("%s, in %s:\n got %s\nwant %s", tc.name, realm, got, want)
			}
		}
	}
	if got := g.post("/oauth2/realms/root/realms/alpha/access_token", "bare", testSecret, url.Values{"grant_type": {"client_credentials"}, "scope": {"openid"}}); !strings.HasSuffix(got.Body, `,"scope":"openid","token_type":"Bearer","expires_in":3599}`) {
		t.Errorf("openid is granted as any other scope, without an id_token; the answer is %d %s", got.StatusCode, got.Body)
	}
}

// AM's texts about assertions are given where what the assertion says of itself is enough for them. For
// whoever is claimed, and whether or not the signature is right, they are the same.
func TestAMsTextsAboutAssertionsTellNothingOfClients(t *testing.T) {
	c, stranger := newKeyClient(t, "signer"), newKeyClient(t, "stranger")
	g := startGateway(t, amRealms(c.lines()), "oauth_server")
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	for name, tc := range map[string]struct {
		changes map[string]any
		id      string
		want    string
	}{
		"all is right but the signature": {nil, "", "JWT is not valid"},
		"another subject":                {map[string]any{"sub": "reader"}, "", "JWT 'iss' and 'sub' claims must be equal to the client_id"},
		"another client_id":              {nil, "&client_id=reader", "JWT 'iss' and 'sub' claims must be equal to the client_id"},
		"expired":                        {map[string]any{"exp": in(-time.Minute)}, "", "JWT has expired"},
		"no end in sight":                {map[string]any{"exp": in(time.Hour)}, "", "JWT expiration time is unreasonable"},
		"for another server":             {map[string]any{"aud": "https://other.example.com"}, "", "Audience validation failed"},
		"for several":                    {map[string]any{"aud": []string{"https://auth.example.com/oauth2", "x"}}, "", "Audience validation failed"},
		"no end":                         {map[string]any{"exp": nil}, "", "JWT is not valid"},
	} {
		for _, who := range []struct {
			name string
			*keyClient
			header map[jose.HeaderKey]any
		}{{"the client", c, map[jose.HeaderKey]any{"kid": "other"}}, {"a stranger", stranger, nil}} {
			assertion := who.assert(tc.changes, who.header)
			if who.name == "the client" {
				assertion = spoiled(assertion)
			}
			got := g.amAnswer("alpha", "access_token grant_type=client_credentials&client_assertion_type="+url.QueryEscape("urn:ietf:params:oauth:client-assertion-type:jwt-bearer")+"&client_assertion="+assertion+tc.id)
			if want := `400 {"error_description":"` + tc.want + `","error":"invalid_client"}`; got != want {
				t.Errorf("%s, %s:\n got %s\nwant %s", name, who.name, got, want)
			}
		}
	}
	for name, assertion := range map[string]string{"junk": "x", "junk in parts": "e.!.x", "no JSON": "e.e30x.x", "an array": "e.W10.x"} {
		if got := g.amAnswer("alpha", "access_token grant_type=client_credentials&client_assertion_type="+url.QueryEscape("urn:ietf:params:oauth:client-assertion-type:jwt-bearer")+"&client_assertion="+url.QueryEscape(assertion)); got != `400 {"error_description":"JWT is not valid","error":"invalid_client"}` {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// amTextsOfRefusals are what a description may be, whatever is sent. None but the first two repeats anything
// of a request: a scope, or a parameter that exists.
var amTextsOfRefusals = regexp.MustCompile(`^(Unknown/invalid scope\(s\): \[([!#-\[\]-~]+(, [!#-\[\]-~]+)*)?\]|` +
	`(grant_type|scope|client_id|client_secret|token|token_type_hint|client_assertion|client_assertion_type|realm) (is repeated|must be sent once, and not as a list with brackets)|` +
	`Required Method: POST( found: (GET|HEAD|PUT|PATCH|DELETE|CONNECT|OPTIONS|TRACE))?|` +
	`[A-Za-z0-9 .,;:'_/()-]+)$`)

// Whatever is sent, a refusal is JSON with AM's members in AM's order, and says nothing that a caller could
// have put there, but for scopes and state.
func FuzzRefusalsOfAM(f *testing.F) {
	const grant = "grant_type=client_credentials"
	for _, seed := range []struct{ method, endpoint, kind, authorization, query, body string }{
		{"POST", "access_token", "application/x-www-form-urlencoded", "Basic cmVhZGVyOmFiYw==", "", grant + "&scope=a+b%3C+c"},
		{"POST", "access_token", "application/x-www-form-urlencoded", "Basic cmVhZGVyOmFiYw==", "state=%22%5C&scope=%22", grant},
		{"POST", "access_token", "application/x-www-form-urlencoded", "", "client_id=reader&client_secret=abc", grant + "&state=%ff"},
		{"POST", "access_token", "application/x-www-form-urlencoded", "", "", grant + "&client_assertion=e.e30.x&client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
		{"POST", "introspect", "application/x-www-form-urlencoded", "Bearer <b>", "a=1&a=2", "token=x"},
		{"POST", "token/revoke", "application/x-www-form-urlencoded", "Basic cmVhZGVyOmFiYw==", "%zz", "token[0]=x"},
		{"<GET>", "access_token", "", "", "state=12", ""},
		{"POST", "access_token", "text/html", "", "realm=beta", "<"},
	} {
		f.Add(seed.method, seed.endpoint, seed.kind, seed.authorization, seed.query, seed.body)
	}
	config := caddyfileOf(amRealms(testClients), "oauth_server")
	startCaddyfile(f, strings.Replace(config, "{\n", "{\nlog {\nlevel ERROR\n}\n", 1))
	f.Fuzz(func(t *testing.T, method, endpoint, kind, authorization, query, body string) {
		path := "/oauth2/realms/root/realms/alpha/" + endpoint
		r := &http.Request{
			Method: method, URL: &url.URL{Path: path, RawQuery: query}, Host: "localhost", RemoteAddr: "127.0.0.1:1", ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{"Content-Type": {kind}}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
		}
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		w := httptest.NewRecorder()
		if err := caddyoauth.ServeEndpoint(w, r); err != nil {
			t.Fatal(err)
		}
		if w.Code == http.StatusOK || w.Code == http.StatusNotFound || !slices.Contains([]string{"access_token", "introspect", "token/revoke"}, endpoint) {
			return
		}
		var refusal struct {
			Description string  `json:"error_description"`
			Code        string  `json:"error"`
			State       *string `json:"state"`
		}
		decoder := json.NewDecoder(w.Body)
		text := w.Body.String()
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&refusal); err != nil || decoder.More() {
			t.Fatalf("the answer is %q: %v", text, err)
		}
		if !amTextsOfRefusals.MatchString(refusal.Description) || !regexp.MustCompile(`^[a-z_]+$`).MatchString(refusal.Code) {
			t.Fatalf("the answer is %q", text)
		}
		order := `^\{"error_description":"(?:[^"\\]|\\.)*","error":"[a-z_]+"(,"state":"(?:[^"\\]|\\.)+")?\}$`
		if !regexp.MustCompile(order).MatchString(text) {
			t.Fatalf("the answer is %q", text)
		}
		if s := refusal.State; s != nil && (len(*s) > 1024 || strings.ContainsFunc(*s, unicode.IsControl) || !strings.Contains(query+body, "state") && !strings.Contains(query+body, "%")) {
			t.Fatalf("the answer is %q", text)
		}
		if challenge := w.Header().Get("WWW-Authenticate"); (w.Code == 401) != (challenge == `Basic realm="/alpha"`) || (w.Code == 401) != (refusal.Code == "invalid_client" && authorization != "") {
			t.Fatalf("the answer is %d %q, with the challenge %q", w.Code, text, challenge)
		}
	})
}
