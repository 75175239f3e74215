package caddyoauth

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// throughCaddy begins the names of the paths through a whole Caddy.
const throughCaddy = "through Caddy, "

// backendText is what the backend of these paths answers with.
const backendText = "This is the backend."

// pathsThroughCaddy starts Caddy with two servers: one that has nothing to do with us, and a gateway with an
// open and a protected route. Caller and backend allocate nothing.
func pathsThroughCaddy(t *testing.T) (paths []hotPath) {
	backend := silentBackend(t)
	file := `{
	admin off
	persist_config off
	skip_install_trust
	auto_https off
	grace_period 1s
	log {
		output file /dev/null
	}
	oauth {
		store memory
		client reader {
			secret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0
			scopes read
			default_scopes read
		}
	}
}
PLAIN {
	bind 127.0.0.1
	respond /oauth2/* 404
	route /plain/* {
		reverse_proxy BACKEND
	}
}
GATEWAY {
	bind 127.0.0.1
	oauth_server /oauth2/*
	route /api/* {
		oauth_protect {
			scopes read
		}
		reverse_proxy BACKEND
	}
	route /plain/* {
		reverse_proxy BACKEND
	}
}
`
	without, gateway := porttest.Address(t), porttest.Address(t)
	file = strings.NewReplacer("BACKEND", backend, "PLAIN", portOf(without), "GATEWAY", portOf(gateway)).Replace(file)
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(file), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		t.Fatal(err)
	}
	if err := caddy.Load(config, true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
	})
	token := tokenFrom(t, gateway)
	// A caller with few headers, and one with as many as most libraries and browsers send.
	for _, caller := range []struct{ name, headers string }{
		{"", "User-Agent: test\r\nAccept: */*\r\n"},
		{", with ten headers", "User-Agent: test\r\nAccept: */*\r\nAccept-Encoding: gzip\r\nAccept-Language: en\r\nCache-Control: no-cache\r\n" +
			"Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nX-Request-Id: 1\r\nReferer: http://localhost/\r\nOrigin: http://localhost\r\n"},
	} {
		for _, way := range []struct{ name, addr, path string }{
			{"without the gateway", without, "/plain/orders/17"},
			{"open route", gateway, "/plain/orders/17"},
			{"protected, warm, opaque", gateway, "/api/orders/17"},
		} {
			c := dialSilently(t, way.addr)
			c.request = []byte("GET " + way.path + " HTTP/1.1\r\nHost: " + way.addr + "\r\n" + caller.headers + "Authorization: Bearer " + token + "\r\n\r\n")
			paths = append(paths, hotPath{name: throughCaddy + way.name + caller.name, do: c.send, status: 200})
		}
	}
	return paths
}

// portOf returns the port of an address as the address of a site that has all hosts.
func portOf(addr string) string { return addr[strings.LastIndexByte(addr, ':'):] }

// tokenFrom fetches a token.
func tokenFrom(t *testing.T, gateway string) string {
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+gateway+"/oauth2/access_token", strings.NewReader(url.Values{"grant_type": {"client_credentials"}}.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth("reader", "abc")
	r.Close = true
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || answer.Token == "" {
		t.Fatalf("no token: %d, %v", res.StatusCode, err)
	}
	return answer.Token
}

// silentBackend serves the same answer to all requests without a body until the test ends, and returns its
// address. Only its connections allocate.
func silentBackend(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 20\r\n\r\n" + backendText)
	serve := func(c net.Conn) {
		defer c.Close()
		request, n := make([]byte, 8<<10), 0
		for {
			read, err := c.Read(request[n:])
			if err != nil {
				return // Caddy has stopped
			}
			if n += read; bytes.HasSuffix(request[:n], []byte("\r\n\r\n")) {
				n = 0
				if _, err := c.Write(answer); err != nil {
					return
				}
			}
		}
	}
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return // it is closed
			}
			go serve(c)
		}
	}()
	return listener.Addr().String()
}

// silentCaller sends the same request again and again. It allocates nothing.
type silentCaller struct {
	net.Conn
	request []byte
	answer  [4 << 10]byte
}

func dialSilently(t *testing.T, addr string) *silentCaller {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	return &silentCaller{Conn: c}
}

// send returns the status of the answer if it is the backend's, or 0.
func (c *silentCaller) send() int {
	if _, err := c.Write(c.request); err != nil {
		return 0
	}
	for n := 0; ; {
		read, err := c.Read(c.answer[n:])
		n += read
		switch {
		case err != nil || n == len(c.answer):
			return 0
		case bytes.HasSuffix(c.answer[:n], []byte(backendText)):
			return http.StatusOK
		}
	}
}
