package caddyoauth_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Neither a refusal nor a document waits for the body, and the rest of the body is never read as another
// request.
func TestAnswersEndTheConnection(t *testing.T) {
	g := startGateway(t, "store memory\nissuer "+testIssuer+"\ntoken_format jwt\n"+testClients+"realm am {\nam_compat\n}\n", "oauth_server\n@rest not path /open /guarded/*\noauth_protect @rest {\nresource https://x\n}\nreverse_proxy BACKEND")
	const smuggled = "GET /open HTTP/1.1\r\nHost: x\r\n\r\n"
	form := "Content-Type: application/x-www-form-urlencoded\r\n"
	for name, c := range map[string]struct {
		request string
		status  int
	}{
		"a chunk without a size":       {"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n" + smuggled, 401},
		"a chunk without its end":      {"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX" + smuggled, 401},
		"a bad trailer":                {"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nbad trailer line\r\n" + smuggled, 401},
		"a body that does not come":    {"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 32\r\n\r\n", 401},
		"a guarded path":               {"POST /guarded/..;/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n" + smuggled, 400},
		"a body that waits":            {"POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 32\r\n\r\n", 401},
		"a chunked body that waits":    {"POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n" + smuggled, 401},
		"an endpoint's method":         {"PUT /oauth2/token HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n12345", 405},
		"an endpoint's content type":   {"POST /oauth2/token HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\n12345", 400},
		"an endpoint's size":           {"POST /oauth2/token HTTP/1.1\r\nHost: x\r\n" + form + "Content-Length: 200000\r\n\r\n12345", 413},
		"no endpoint, waiting":         {"POST /oauth2/x/token HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 32\r\n\r\n", 404},
		"no endpoint, in chunks":       {"POST /oauth2/x/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n" + smuggled, 404},
		"the metadata's method":        {"POST /.well-known/oauth-authorization-server/oauth2 HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 32\r\n\r\n", 405},
		"a token's meaning":            {"GET /oauth2/am/tokeninfo HTTP/1.1\r\nHost: x\r\nContent-Length: 32\r\n\r\n", 401},
		"metadata":                     {"GET /.well-known/oauth-authorization-server/oauth2 HTTP/1.1\r\nHost: x\r\nContent-Length: 32\r\n\r\n", 200},
		"metadata, waiting":            {"GET /.well-known/oauth-authorization-server/oauth2 HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 32\r\n\r\n", 200},
		"keys, in chunks":              {"GET /oauth2/jwks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", 200},
		"about a resource":             {"GET /.well-known/oauth-protected-resource HTTP/1.1\r\nHost: x\r\nContent-Length: 32\r\n\r\n", 200},
		"an endpoint's chunked method": {"PUT /oauth2/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n" + smuggled, 405},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they mostly wait, and one gateway serves them all
			before := g.Backend.count()
			conn, err := net.Dial("tcp", strings.TrimPrefix(g.URL, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(15 * time.Second)) // a quarter of Caddy's own timeout
			if _, err := io.WriteString(conn, c.request); err != nil {
				t.Fatal(err)
			}
			reader := bufio.NewReader(conn)
			res, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatalf("no answer: %v", err)
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.StatusCode != c.status {
				t.Errorf("answered %d, want %d", res.StatusCode, c.status)
			}
			// More of the "body" does not bring another answer.
			io.WriteString(conn, smuggled)
			conn.SetDeadline(time.Now().Add(time.Second))
			if res, err := http.ReadResponse(reader, nil); err == nil {
				t.Errorf("a second answer: %d", res.StatusCode)
			}
			if n := g.Backend.count() - before; n != 0 {
				t.Errorf("%d requests reached the backend", n)
			}
		})
	}
}

// Nor does the admin endpoint wait for the body of a question that has none.
func TestAdminAnswersDontAwaitABody(t *testing.T) {
	config, address := withAdmin(t, caddyfileOf("store memory\n"+testClients, "oauth_server"))
	startCaddyfile(t, config)
	var conns []net.Conn // all at once, since each answer takes a while
	for _, path := range []string{"/oauth/openapi.json", "/oauth/clients", "/oauth/console/"} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(8 * time.Second)) // Caddy's own timeout is longer
		if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: "+address+"\r\nContent-Length: 32\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	for i, conn := range conns {
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("no answer to question %d: %v", i, err)
			continue
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != 200 {
			t.Errorf("question %d: answered %d, %v", i, res.StatusCode, err)
		}
		res.Body.Close()
	}
}

// The headers that one route's backend believes can't be set by a caller of another route,
// either.
func TestPrefixesOfOtherRoutesAreRemoved(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "route /token/* {\nuri strip_prefix /token\noauth_server\n}\noauth_protect /a/* {\nheader_prefix X-A-\n}\noauth_protect /b/* {\nheader_prefix X-B-\n}\nreverse_proxy BACKEND")
	token := g.post("/token/oauth2/token", "reader", testSecret, map[string][]string{"grant_type": {"client_credentials"}}).json(t)["access_token"].(string)
	r := g.request("GET", "/a/x", "", "Authorization", "Bearer "+token, "X-B-Client-Id", "admin", "X-A-Client-Id", "admin", "X-OAuth-Client-Id", "admin")
	if a := g.do(r); a.StatusCode != 200 {
		t.Fatalf("answered %d", a.StatusCode)
	}
	got := g.Backend.last(t).Header
	if got.Get("X-A-Client-Id") != "reader" || got.Get("X-B-Client-Id") != "" || got.Get("X-OAuth-Client-Id") != "" {
		t.Errorf("the backend was told %v", got)
	}
}
