package caddyoauth_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/net/websocket"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// switchingBackend starts a backend that accepts h2c upgrades as Hypercorn does: it requires
// neither HTTP2-Settings nor that Connection names them. It returns the backend's address and the
// requests that have reached it.
func switchingBackend(t testing.TB) (address string, seen func() []string) {
	t.Helper()
	var mu sync.Mutex
	var requests []string
	record := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		requests = append(requests, fmt.Sprintf("%s %s %s client=%q", r.Proto, r.Method, r.RequestURI, r.Header.Get("X-OAuth-Client-Id")))
		fmt.Fprint(w, "backend")
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(strings.ToLower(strings.Join(r.Header["Upgrade"], ",")), "h2c") {
			record(w, r)
			return
		}
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+r.Header.Get("Upgrade")+"\r\n\r\n")
		inside := &http.Server{Handler: record, Protocols: only((*http.Protocols).SetUnencryptedHTTP2)}
		t.Cleanup(func() { inside.Close() })
		inside.Serve(&oneConn{conn: &readAhead{conn, buffered.Reader}})
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String(), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return requests
	}
}

// smuggle asks for a switch to HTTP/2 and, if it takes place, sends another request inside. It
// returns the status of the first answer.
func smuggle(t testing.TB, conn net.Conn, request string) int {
	t.Helper()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(conn)
	res, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatalf("%q: no answer: %v", request, err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		return res.StatusCode
	}
	stream := openStream(conn, reader, 3, "DELETE", "/admin/secret", "x-oauth-client-id", "root-admin")
	if _, err := stream.status(); err != nil {
		t.Fatalf("%q: after the switch: %v", request, err)
	}
	return res.StatusCode
}

// h2Stream is a request over cleartext HTTP/2, frame by frame, since net/http's client can neither
// use a switched connection nor send an extended CONNECT.
type h2Stream struct {
	id     uint32
	framer *http2.Framer
	data   []byte // arrived, but not read yet
}

// openStream starts HTTP/2 on a connection with a request whose body stays open. Fields are name
// and value in turn.
func openStream(conn io.Writer, reader io.Reader, id uint32, method, path string, fields ...string) *h2Stream {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	fields = append([]string{":method", method, ":scheme", "http", ":path", path, ":authority", "localhost"}, fields...)
	for i := 0; i < len(fields); i += 2 {
		encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	io.WriteString(conn, http2.ClientPreface)
	s := &h2Stream{id: id, framer: http2.NewFramer(conn, reader)}
	s.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	s.framer.WriteSettings()
	s.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true})
	return s
}

// status waits for the answer's headers.
func (s *h2Stream) status() (string, error) {
	for {
		frame, err := s.framer.ReadFrame()
		if err != nil {
			return "", err
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			return frame.PseudoValue("status"), nil
		case *http2.RSTStreamFrame:
			return "", fmt.Errorf("the stream was reset: %v", frame.ErrCode)
		}
	}
}

func (s *h2Stream) Write(p []byte) (int, error) { return len(p), s.framer.WriteData(s.id, false, p) }

func (s *h2Stream) Read(p []byte) (int, error) {
	for len(s.data) == 0 {
		frame, err := s.framer.ReadFrame()
		if err != nil {
			return 0, err
		}
		if data, ok := frame.(*http2.DataFrame); ok {
			s.data = append(s.data, data.Data()...)
		}
	}
	n := copy(p, s.data)
	s.data = s.data[n:]
	return n, nil
}

// oneConn is a listener with a single connection that exists already.
type oneConn struct{ conn net.Conn }

func (l *oneConn) Accept() (net.Conn, error) {
	if l.conn == nil {
		return nil, net.ErrClosed
	}
	conn := l.conn
	l.conn = nil
	return conn, nil
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return new(net.TCPAddr) }

// readAhead is a connection from which reader has already read something.
type readAhead struct {
	net.Conn
	reader io.Reader
}

func (c *readAhead) Read(p []byte) (int, error) { return c.reader.Read(p) }

// openSites are the ways in which a request reaches a backend that also has protected paths. All
// but the first need no token.
var openSites = map[string]string{
	"a protected route":                     "oauth_server\noauth_protect\nreverse_proxy SWITCHING",
	"what a matcher leaves out":             "oauth_protect /admin/*\nreverse_proxy SWITCHING",
	"what oauth_server passes on":           "oauth_server\nhandle /admin/* {\noauth_protect\n}\nreverse_proxy SWITCHING",
	"an open handle beside a protected one": "handle /admin/* {\noauth_protect\nreverse_proxy SWITCHING\n}\nhandle {\nreverse_proxy SWITCHING\n}",
	"an error page":                         "oauth_protect /admin/*\nerror 500\nhandle_errors {\nreverse_proxy SWITCHING\n}",
}

// A switch to another version of HTTP would be a way around everything, since nobody checks what
// comes after it.
func TestNoSwitchToAnotherHTTP(t *testing.T) {
	settings := base64.RawURLEncoding.EncodeToString([]byte{0, 3, 0, 0, 0, 100, 0, 4, 0x40, 0, 0, 0, 0, 2, 0, 0, 0, 0})
	upgrades := map[string]string{
		"h2c":                     "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: " + settings + "\r\n",
		"settings in Connection":  "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: " + settings + "\r\n",
		"without settings":        "Connection: Upgrade\r\nUpgrade: h2c\r\n",
		"another case":            "connection: uPGRADE\r\nupgrade: H2C\r\nhttp2-settings: " + settings + "\r\n",
		"after websocket":         "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
		"before websocket":        "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n",
		"a line after websocket":  "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
		"a line before websocket": "Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
		"several lines":           "Connection: keep-alive\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n",
		"the name of a draft":     "Connection: Upgrade\r\nUpgrade: h2c-14\r\n",
		"a parameter":             "Connection: Upgrade\r\nUpgrade: h2c;x\r\n",
		"settings misspelled":     "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2!Settings: " + settings + "\r\n",
	}
	for site, lines := range openSites {
		t.Run(site, func(t *testing.T) {
			address, seen := switchingBackend(t)
			g := startGateway(t, "store memory\n"+testClients, strings.ReplaceAll(lines, "SWITCHING", address))
			authorization := ""
			if site == "a protected route" {
				authorization = "Authorization: Bearer " + g.token("reader") + "\r\n"
			}
			for name, upgrade := range upgrades {
				before := len(seen())
				status := smuggle(t, g.rawConn(""), "GET /health HTTP/1.1\r\nHost: localhost\r\n"+authorization+upgrade+"\r\n")
				if status != 200 {
					t.Errorf("%s: answered %d, want 200", name, status)
				}
				for _, request := range seen()[before:] {
					if strings.Contains(request, "/admin/") || strings.Contains(request, "root-admin") {
						t.Errorf("%s: reached the backend: %s", name, request)
					}
				}
				if n := len(seen()) - before; n != 1 {
					t.Errorf("%s: %d requests reached the backend, want only the first", name, n)
				}
			}
		})
	}
}

// Inside TLS, HTTP/1.1 is no different.
func TestNoSwitchToAnotherHTTPOverTLS(t *testing.T) {
	address, seen := switchingBackend(t)
	g := startTLS(t, "h1", "store memory\n"+testClients, "oauth_protect /admin/*\nreverse_proxy "+address)
	config := g.Client.Transport.(*http.Transport).TLSClientConfig.Clone()
	config.NextProtos = []string{"http/1.1"}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(g.URL, "https://"), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if status := smuggle(t, conn, "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"); status != 200 {
		t.Errorf("answered %d, want 200", status)
	}
	if got := seen(); len(got) != 1 || strings.Contains(got[0], "admin") {
		t.Errorf("reached the backend: %q", got)
	}
}

// Without the gateway's handlers the attack works, so the tests above prove something.
func TestSwitchToAnotherHTTPWorksWithoutUs(t *testing.T) {
	address, seen := switchingBackend(t)
	g := startGateway(t, "store memory\n"+testClients, "reverse_proxy "+address)
	smuggle(t, g.rawConn(""), "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
	if got := strings.Join(seen(), "\n"); !strings.Contains(got, `DELETE /admin/secret client="root-admin"`) {
		t.Errorf("the backend saw\n%s", got)
	}
}

// The body of a CONNECT over HTTP/2 or HTTP/3 would go to the backend as it is, without framing,
// and a backend that does not know CONNECT would take it for the next request.
func TestConnectOpensNoTunnel(t *testing.T) {
	const smuggled = "DELETE /admin/secret HTTP/1.1\r\nHost: localhost\r\nX-OAuth-Client-Id: root-admin\r\n\r\n"
	for site, lines := range openSites {
		for _, proto := range []string{"h2", "h3"} {
			t.Run(site+", "+proto, func(t *testing.T) {
				address, seen := switchingBackend(t)
				g := startTLS(t, proto, "store memory\n"+testClients, strings.ReplaceAll(lines, "SWITCHING", address))
				connect := g.request("CONNECT", "", "")
				if site == "a protected route" {
					connect.Header.Set("Authorization", "Bearer "+g.token("reader"))
				}
				connect.Body, connect.ContentLength = io.NopCloser(strings.NewReader(smuggled)), -1
				if a := g.do(connect); a.StatusCode != 501 {
					t.Errorf("answered %d, want 501", a.StatusCode)
				}
				if got := seen(); len(got) != 0 {
					t.Errorf("reached the backend: %q", got)
				}
			})
		}
		t.Run(site+", h1", func(t *testing.T) {
			address, seen := switchingBackend(t)
			g := startGateway(t, "store memory\n"+testClients, strings.ReplaceAll(lines, "SWITCHING", address))
			for _, target := range []string{"localhost", "localhost:80", "/health"} {
				chunk := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(smuggled), smuggled)
				if a := readRaw(t, g.rawConn("CONNECT "+target+" HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"+chunk), "POST"); a.StatusCode != 501 {
					t.Errorf("CONNECT %s: answered %d, want 501", target, a.StatusCode)
				}
			}
			if got := seen(); len(got) != 0 {
				t.Errorf("reached the backend: %q", got)
			}
		})
	}
}

// Without the gateway's handlers this attack works, too, so the test above proves something.
func TestConnectSmugglesWithoutUs(t *testing.T) {
	address, seen := switchingBackend(t)
	g := startTLS(t, "h2", "store memory\n"+testClients, "reverse_proxy "+address)
	waitUntil(t, "the backend reads on", func() bool {
		connect := g.request("CONNECT", "", "")
		connect.Body, connect.ContentLength = io.NopCloser(strings.NewReader("DELETE /admin/secret HTTP/1.1\r\nHost: localhost\r\nX-OAuth-Client-Id: root-admin\r\n\r\n")), -1
		g.do(connect)
		// The backend answers without waiting for the body. If that comes after the answer, Caddy drops it,
		// and the attacker tries again.
		return strings.Contains(strings.Join(seen(), "\n"), `DELETE /admin/secret client="root-admin"`)
	})
}

// WebSocket is the only switch of protocol that takes place over HTTP/1.1.
func TestWebSocketPasses(t *testing.T) {
	address := echoingBackend(t)
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect /api/*\nreverse_proxy "+address)
	for _, upgrade := range []string{"websocket", "WebSocket"} {
		for path, authorization := range map[string]string{"/api/x": "Authorization: Bearer " + g.token("reader") + "\r\n", "/open": ""} {
			conn := g.rawConn("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + authorization + "Origin: http://localhost\r\n" +
				"Connection: keep-alive, Upgrade\r\nUpgrade: " + upgrade + "\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
			reader := bufio.NewReader(conn)
			res, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != 101 || res.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
				t.Fatalf("%s of %s: %d %v", upgrade, path, res.StatusCode, res.Header)
			}
			checkEcho(t, conn, reader)
		}
	}
	if res := readRaw(t, g.rawConn("GET /api/x HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), "GET"); res.StatusCode != 401 {
		t.Errorf("without a token: %d", res.StatusCode)
	}
}

// A WebSocket is opened by a GET without a body. Anything else reaches the backend without its
// Upgrade.
func TestNoSwitchWithABody(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect /api/*\nreverse_proxy BACKEND")
	for path, authorization := range map[string]string{"/api/x": "Authorization: Bearer " + g.token("reader") + "\r\n", "/open": ""} {
		for request, want := range map[string]string{
			"GET " + path + " HTTP/1.1\r\nUpgrade: websocket\r\n\r\n":                                                     "websocket",
			"GET " + path + " HTTP/1.1\r\nUpgrade: websocket\r\nContent-Length: 4\r\n\r\nbody":                            "",
			"GET " + path + " HTTP/1.1\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n": "",
			"POST " + path + " HTTP/1.1\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n":                               "",
			"GET " + path + " HTTP/1.1\r\nUpgrade: websoc\u212aet\r\n\r\n":                                                "", // the sign for kelvin, which is no k
		} {
			request = strings.Replace(request, "\r\n", "\r\nHost: localhost\r\nConnection: Upgrade\r\n"+authorization, 1)
			if res := readRaw(t, g.rawConn(request), "GET"); res.StatusCode != 200 {
				t.Fatalf("%q: %d", request, res.StatusCode)
			}
			if upgrade := g.Backend.last(t).Header.Get("Upgrade"); upgrade != want {
				t.Errorf("%q: the backend saw Upgrade: %s", request, upgrade)
			}
		}
	}
}

// Over HTTP/2, a WebSocket is opened by an extended CONNECT (RFC 8441), which net/http accepts only
// if it is told to. No other protocol passes that way.
func TestWebSocketOverHTTP2(t *testing.T) {
	address := porttest.Address(t)
	config := filepath.Join(t.TempDir(), "Caddyfile")
	text := "{\nadmin off\npersist_config off\nauto_https off\nservers {\nprotocols h1 h2c\n}\noauth {\nstore memory\n" + testClients + "}\n}\nhttp://" + strings.TrimPrefix(address, "127.0.0.1") +
		" {\nbind 127.0.0.1\noauth_server\noauth_protect /api/*\nreverse_proxy " + echoingBackend(t) + "\n}\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestCalledAsCaddy$", "--", "run", "--config", config, "--adapter", "caddyfile")
	// net/http reads GODEBUG once, when the process starts.
	cmd.Env = append(os.Environ(), calledAsCaddy+"=1", "GODEBUG=http2xconnect=1", "XDG_DATA_HOME="+t.TempDir(), "XDG_CONFIG_HOME="+t.TempDir())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	waitUntil(t, "the gateway listens", func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	g := &gateway{t: t, URL: "http://" + address, Client: newClient(t)}
	token := g.token("reader")
	for _, tt := range []struct {
		protocol, path, token, status string
	}{
		{"websocket", "/api/x", token, "200"},
		{"websocket", "/open", "", "200"},
		{"websocket", "/api/x", "", "401"},
		{"WebSocket", "/api/x", token, "501"},
		{"connect-udp", "/api/x", token, "501"},
		{"h2c", "/open", "", "501"},
	} {
		t.Run(tt.protocol+" "+tt.path+" "+tt.status, func(t *testing.T) {
			conn := g.rawConn("")
			fields := []string{":protocol", tt.protocol, "sec-websocket-version", "13", "origin", "http://localhost"}
			if tt.token != "" {
				fields = append(fields, "authorization", "Bearer "+tt.token)
			}
			stream := openStream(conn, conn, 1, "CONNECT", tt.path, fields...)
			if status, err := stream.status(); status != tt.status {
				t.Fatalf("answered %s (%v), want %s", status, err, tt.status)
			}
			if tt.status == "200" {
				checkEcho(t, stream, stream)
			}
		})
	}
}

// Over HTTP/3, too, no other protocol passes by an extended CONNECT (RFC 9220).
func TestOtherTunnelsOverHTTP3(t *testing.T) {
	g := startTLS(t, "h3", "store memory\n"+testClients, "oauth_server\noauth_protect /api/*\nreverse_proxy BACKEND")
	for _, protocol := range []string{"connect-udp", "webtransport", "h2c"} {
		r := g.request("CONNECT", "/api/x", "", "Authorization", "Bearer "+g.token("reader"))
		r.Proto = protocol
		if a := g.do(r); a.StatusCode != 501 {
			t.Errorf("%s: answered %d, want 501", protocol, a.StatusCode)
		}
	}
	if n := g.Backend.count(); n != 0 {
		t.Errorf("%d requests reached the backend", n)
	}
}

// echoingBackend is a WebSocket server that sends back what it gets.
func echoingBackend(t testing.TB) (address string) {
	t.Helper()
	server := httptest.NewServer(websocket.Handler(func(c *websocket.Conn) { io.Copy(c, c) }))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// checkEcho sends a frame over an open WebSocket and waits for it to come back.
func checkEcho(t testing.TB, w io.Writer, r io.Reader) {
	t.Helper()
	// A text frame, masked with zeros (RFC 6455 section 5.2), and the same unmasked.
	if _, err := io.WriteString(w, "\x81\x85\x00\x00\x00\x00hello"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 7)
	if _, err := io.ReadFull(r, got); err != nil || string(got) != "\x81\x05hello" {
		t.Errorf("the WebSocket sent back %q, %v", got, err)
	}
}
