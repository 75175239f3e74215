package introspect_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

const (
	remoteSecret = "s3cret-of-the-gateway"
	remoteToken  = "token-nobody-may-read"
)

// authServer is a remote authorization server that counts the requests. Its answer may be
// changed at any time.
type authServer struct {
	*httptest.Server
	asked  atomic.Int64
	answer atomic.Pointer[http.HandlerFunc]
}

func newAuthServer(t testing.TB, answer http.HandlerFunc) *authServer {
	s := &authServer{}
	s.answers(answer)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		(*s.answer.Load())(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *authServer) answers(answer http.HandlerFunc) { s.answer.Store(&answer) }

// says returns an answer with a JSON body.
func says(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, body)
	}
}

// status returns an answer with a status and headers.
func status(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

// remoteConfig returns settings for the server at address.
func remoteConfig(address string) introspect.RemoteConfig {
	return introspect.RemoteConfig{URL: address + "/introspect", ClientID: "gateway", ClientSecret: remoteSecret}
}

func newRemote(t testing.TB, cfg introspect.RemoteConfig) *introspect.Remote {
	t.Helper()
	r, err := introspect.NewRemote(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// kindOf returns the kind of a failed lookup, whose error must contain no secret.
func kindOf(t testing.TB, facts *introspect.Facts, err error) string {
	t.Helper()
	if err == nil {
		t.Errorf("no error, but active is %v", facts.Active)
		return ""
	}
	if facts != nil {
		t.Errorf("both facts and an error: %+v, %v", facts, err)
	}
	for _, secret := range []string{remoteSecret, remoteToken, "echo", base64.StdEncoding.EncodeToString([]byte("gateway:" + remoteSecret))} {
		for e := err; e != nil; e = errors.Unwrap(e) {
			if strings.Contains(fmt.Sprintf("%v %+v", e, e), secret) {
				t.Errorf("the error shows %q: %v", secret, e)
			}
		}
	}
	var remote *introspect.RemoteError
	if !errors.As(err, &remote) {
		t.Errorf("%v is not a RemoteError", err)
		return ""
	}
	return remote.Kind
}

func at(when time.Time) string { return fmt.Sprint(when.Unix()) }

// RFC 7662 section 2.2, with what servers add to it.
func TestRemoteFacts(t *testing.T) {
	server := newAuthServer(t, says(`{
		"active": true, "scope": "read write read", "client_id": "reports", "username": "r", "token_type": "bearer",
		"exp": 1893459600, "iat": 1893456000.5, "nbf": 1893456000, "sub": "user 7", "aud": ["https://a.example", "b"],
		"iss": "https://issuer.example", "jti": "x", "token_use": "access_token", "extra": {"roles": ["a", "b"], "n": 12345678901234567890},
		"nothing": null}`))
	cfg := remoteConfig(server.URL)
	cfg.Now = func() time.Time { return start }
	facts, err := newRemote(t, cfg).Lookup(t.Context(), introspect.NewToken(remoteToken))
	if err != nil {
		t.Fatal(err)
	}
	if !facts.Active || facts.ID != introspect.IDOf(remoteToken) || facts.ClientID != "reports" || facts.Subject != "user 7" ||
		facts.Issuer != "https://issuer.example" || !slices.Equal(facts.Scopes, []string{"read", "write"}) ||
		!slices.Equal(facts.Audience, []string{"https://a.example", "b"}) ||
		!facts.Expiry.Equal(start.Add(time.Hour)) || !facts.IssuedAt.Equal(start.Add(500*time.Millisecond)) {
		t.Errorf("%+v", facts)
	}
	if n := facts.ClaimValues("extra.n"); !slices.Equal(n, []string{"12345678901234567890"}) || facts.ClaimValues("nothing") != nil {
		t.Errorf("a large number was read as %v, and null as %v", n, facts.ClaimValues("nothing"))
	}
	if roles := facts.ClaimValues("extra.roles"); !slices.Equal(roles, []string{"a", "b"}) {
		t.Errorf("roles are %v", roles)
	}
}

// What is sent to the server, and how the client authenticates.
func TestRemoteRequests(t *testing.T) {
	type request struct {
		method, uri, body string
		header            http.Header
	}
	for _, c := range []struct {
		name          string
		change        func(*introspect.RemoteConfig)
		authorization string
		form          url.Values
	}{
		{name: "client_secret_basic is the default, and form-urlencodes id and secret",
			change:        func(c *introspect.RemoteConfig) { c.ClientID, c.ClientSecret = "my:app", "p%+ ä/=&:" },
			authorization: "Basic " + base64.StdEncoding.EncodeToString([]byte("my%3Aapp:p%25%2B+%C3%A4%2F%3D%26%3A"))},
		{name: "client_secret_post",
			change: func(c *introspect.RemoteConfig) {
				c.Auth, c.ClientID, c.ClientSecret = "client_secret_post", "my:app", "p%+ &"
			},
			form: url.Values{"client_id": {"my:app"}, "client_secret": {"p%+ &"}}},
		{name: "none with a header",
			change: func(c *introspect.RemoteConfig) {
				c.Auth, c.ClientID, c.ClientSecret = "none", "", ""
				c.Header = http.Header{"authorization": {"Bearer of-the-gateway"}, "X-Tenant": {"a", "b"}}
			},
			authorization: "Bearer of-the-gateway"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got request
			server := newAuthServer(t, func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				got = request{r.Method, r.RequestURI, string(body), r.Header}
				says(`{"active":false}`)(w, r)
			})
			cfg := remoteConfig(server.URL)
			cfg.URL += "?realm=a"
			c.change(&cfg)
			if facts, err := newRemote(t, cfg).Lookup(t.Context(), introspect.NewToken("a+/b==")); err != nil || facts.Active {
				t.Fatalf("%+v, %v", facts, err)
			}
			form, err := url.ParseQuery(got.body)
			if err != nil {
				t.Fatal(err)
			}
			want := url.Values{"token": {"a+/b=="}, "token_type_hint": {"access_token"}}
			maps.Copy(want, c.form)
			if !reflect.DeepEqual(form, want) {
				t.Errorf("the body is %v, want %v", form, want)
			}
			if got.method != "POST" || got.uri != "/introspect?realm=a" {
				t.Errorf("%s %s", got.method, got.uri)
			}
			for name, value := range map[string]string{
				"Authorization": c.authorization, "Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded",
				"X-Tenant": strings.Join(cfg.Header["X-Tenant"], ","), "Accept-Encoding": "", "Idempotency-Key": "",
			} {
				if sent := strings.Join(got.header.Values(name), ","); sent != value {
					t.Errorf("%s is %q, want %q", name, sent, value)
				}
			}
		})
	}
}

// Whatever a server does instead of answering, nobody is told "no" because of it, it ends in
// time, and it is forgotten after a second.
func TestRemoteFailures(t *testing.T) {
	half := func(declared int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			conn, buffer, _ := http.NewResponseController(w).Hijack()
			fmt.Fprintf(buffer, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", declared, body)
			buffer.Flush()
			conn.Close()
		}
	}
	raw := func(bytes string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			conn, buffer, _ := http.NewResponseController(w).Hijack()
			io.WriteString(buffer, bytes)
			buffer.Flush()
			conn.Close()
		}
	}
	hang := func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // otherwise the server doesn't notice that the client is gone
		<-r.Context().Done()
	}
	drip := func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		for i := 0; r.Context().Err() == nil; i++ {
			io.WriteString(w, " ")
			http.NewResponseController(w).Flush()
			time.Sleep(20 * time.Millisecond)
		}
	}
	good := `{"active":true,"client_id":"echo"}`
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		kind   string
		status int
	}{
		{"500", status(500), "status", 500},
		{"503", status(503, "Retry-After", "1"), "status", 503},
		{"404", status(404), "status", 404},
		{"400", status(400), "status", 400},
		{"201 without an answer", status(201, "Content-Type", "application/json"), "malformed", 0},
		{"204", status(204), "malformed", 0},
		{"401", status(401), "credentials", 401},
		{"403", status(403), "credentials", 403},
		{"429", status(429), "throttled", 429},
		{"301", status(301, "Location", "/elsewhere"), "redirect", 301},
		{"304", status(304), "redirect", 304},
		{"a page", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, good)
		}, "malformed", 0},
		{"a signed answer", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/token-introspection+jwt")
			io.WriteString(w, good)
		}, "malformed", 0},
		{"nothing", says(""), "malformed", 0},
		{"no JSON", says("echo"), "malformed", 0},
		{"half of the JSON", says(good[:20]), "malformed", 0},
		{"half of an answer", half(1000, good), "refused", 0},
		{"no HTTP", raw("echo " + remoteSecret + "\r\n\r\n"), "refused", 0},
		{"a malformed header", raw("HTTP/1.1 200 OK\r\necho " + remoteSecret + "\r\n\r\n"), "refused", 0},
		{"endless headers", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("echo", 1<<16))
			says(good)(w, nil)
		}, "refused", 0},
		{"too large an answer", says(good[:len(good)-1] + strings.Repeat(" ", 64<<10) + "}"), "too_large", 0},
		{"no answer", hang, "timeout", 0},
		{"a slow answer", drip, "timeout", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := newAuthServer(t, c.answer)
			cfg := remoteConfig(server.URL)
			cfg.Timeout = 300 * time.Millisecond
			if c.kind != "timeout" {
				cfg.Timeout = 20 * time.Second // only the hanging cases are about time
			}
			var clock clocks
			cfg.Now = clock.now
			kinds := make(chan string, 10)
			cfg.OnRequest = func(kind string, _ time.Duration) { kinds <- kind }
			remote := newRemote(t, cfg)
			cache := newCache(t, introspect.CacheConfig{LookupTimeout: 30 * time.Second})
			s := cache.WrapWith(remote.Name(), remote, introspect.SourceConfig{MaxAge: time.Minute, NegativeAge: time.Minute})
			// If this machine stands still, the time of a question may be over before it is sent.
			for i := 0; i < 2 || c.kind == "timeout" && server.asked.Load() < 2 && i < 4; i++ {
				begin := time.Now()
				facts, err := s.Lookup(t.Context(), remoteToken)
				if kind := kindOf(t, facts, err); kind != c.kind {
					t.Errorf("kind %q, want %q: %v", kind, c.kind, err)
				}
				if kind := <-kinds; kind != c.kind {
					t.Errorf("OnRequest was called with %q", kind)
				}
				var remote *introspect.RemoteError
				if errors.As(err, &remote) && remote.Status != c.status {
					t.Errorf("status %d, want %d", remote.Status, c.status)
				}
				if errors.Is(err, context.DeadlineExceeded) != (c.kind == "timeout") {
					t.Errorf("matches the deadline's error: %v", err)
				}
				if took := time.Since(begin); c.kind == "timeout" && took > 20*time.Second {
					t.Errorf("it took %v", took)
				}
				clock.advance(time.Second)
			}
			if n := server.asked.Load(); n < 2 { // the transport repeats requests that broke on a reused connection
				t.Errorf("the server was asked %d times, want another question after a failure", n)
			}
			server.answers(says(`{"active":true}`))
			for i := 0; c.kind == "timeout" && i < 4; i++ { // a good answer may be late, too
				if _, err := s.Lookup(t.Context(), remoteToken); err == nil {
					break
				}
			}
			if !active(t, s, remoteToken) {
				t.Error("the token is not active after the failures")
			}
		})
	}

	t.Run("no server", func(t *testing.T) {
		server := newAuthServer(t, status(500))
		remote := newRemote(t, remoteConfig(server.URL))
		server.Close()
		facts, err := remote.Lookup(t.Context(), introspect.NewToken(remoteToken))
		if kind := kindOf(t, facts, err); kind != "refused" || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("%s: %v", kind, err)
		}
	})
	t.Run("no such host", func(t *testing.T) {
		cfg := remoteConfig("https://host.invalid")
		cfg.URL += "?echo=x" // a query may contain a key
		facts, err := newRemote(t, cfg).Lookup(t.Context(), introspect.NewToken(remoteToken))
		if kind := kindOf(t, facts, err); kind != "refused" && kind != "timeout" {
			t.Errorf("%s: %v", kind, err)
		}
	})
	t.Run("a certificate from an unknown authority", func(t *testing.T) {
		server := httptest.NewUnstartedServer(says(good))
		server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		server.StartTLS()
		defer server.Close()
		facts, err := newRemote(t, remoteConfig(server.URL)).Lookup(t.Context(), introspect.NewToken(remoteToken))
		if kind := kindOf(t, facts, err); kind != "refused" || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: %v", kind, err)
		}
	})
}

// Answers that are odd but clear become facts, and widen nothing.
func TestRemoteReadsLiberally(t *testing.T) {
	for _, c := range []struct {
		name, contentType string
		status            int
		body              string
		client, subject   string
		audience          []string
		expiry            time.Time
	}{
		{"as it should be", "application/json", 200, `{"active":true,"client_id":"c","sub":"s","aud":"a","exp":1893459600}`, "c", "s", []string{"a"}, start.Add(time.Hour)},
		{"created", "application/json; charset=utf-8", 201, `{"active":true,"client_id":"c"}`, "c", "", nil, time.Time{}},
		{"another type of JSON", "application/hal+json", 202, `{"active":true,"client_id":"c"}`, "c", "", nil, time.Time{}},
		{"no type", "", 200, `{"active":true,"client_id":"c"}`, "c", "", nil, time.Time{}},
		{"numbers as texts", "application/json", 200, `{"active":true,"exp":"1893459600"}`, "", "", nil, start.Add(time.Hour)},
		{"an exponent", "application/json", 200, `{"active":true,"exp":1.8934596e+09}`, "", "", nil, start.Add(time.Hour)},
		{"names as numbers", "application/json", 200, `{"active":true,"client_id":12345678901234567890,"sub":-7}`, "12345678901234567890", "-7", nil, time.Time{}},
		{"times and names that say nothing", "application/json", 200, `{"active":true,"exp":-1,"sub":null,"aud":""}`, "", "", nil, time.Time{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := newAuthServer(t, func(w http.ResponseWriter, _ *http.Request) {
				if w.Header()["Content-Type"] = nil; c.contentType != "" {
					w.Header().Set("Content-Type", c.contentType)
				}
				w.WriteHeader(c.status)
				io.WriteString(w, c.body)
			})
			cfg := remoteConfig(server.URL)
			cfg.Now = func() time.Time { return start }
			facts, err := newRemote(t, cfg).Lookup(t.Context(), introspect.NewToken(remoteToken))
			if err != nil {
				t.Fatal(err)
			}
			if !facts.Active || facts.ClientID != c.client || facts.Subject != c.subject || !slices.Equal(facts.Audience, c.audience) || !facts.Expiry.Equal(c.expiry) {
				t.Errorf("%+v", facts)
			}
			if len(c.audience) == 0 && facts.HasAudience("") {
				t.Error("names an audience although it has none")
			}
		})
	}
}

// A token that becomes good in a second is refused for that second and no longer. Leeway lets it
// begin earlier, but not end later.
func TestRemoteNotBefore(t *testing.T) {
	for _, leeway := range []time.Duration{0, 30 * time.Second} {
		var clock clocks
		server := newAuthServer(t, says(`{"active":true,"nbf":`+at(start.Add(leeway+time.Second))+`,"exp":`+at(start.Add(leeway+time.Minute))+`}`))
		cfg := remoteConfig(server.URL)
		cfg.Now, cfg.Leeway = clock.now, leeway
		s := cached(t, newCache(t, clock.config()), newRemote(t, cfg))
		for range 3 {
			if active(t, s, remoteToken) {
				t.Errorf("leeway %v: good a second before its time", leeway)
			}
		}
		clock.advance(time.Second - 1)
		if active(t, s, remoteToken) || server.asked.Load() != 1 {
			t.Errorf("leeway %v: a nanosecond before its time: good, or asked %d times", leeway, server.asked.Load())
		}
		clock.advance(1)
		if !active(t, s, remoteToken) {
			t.Errorf("leeway %v: refused when its time has come", leeway)
		}
		clock.advance(leeway + time.Minute - time.Second - 1)
		if !active(t, s, remoteToken) {
			t.Errorf("leeway %v: refused before its expiry", leeway)
		}
		clock.advance(1)
		if active(t, s, remoteToken) {
			t.Errorf("leeway %v: good at its expiry", leeway)
		}
	}
}

// A header may come from a file that changes. If there is none, nothing is sent to anybody.
func TestRemoteHeaderFunc(t *testing.T) {
	var got atomic.Pointer[http.Header]
	server := newAuthServer(t, func(w http.ResponseWriter, r *http.Request) {
		got.Store(&r.Header)
		says(`{"active":true}`)(w, r)
	})
	cfg := remoteConfig(server.URL)
	cfg.Auth, cfg.ClientID, cfg.ClientSecret = "none", "", ""
	cfg.Header = http.Header{"X-Tenant": {"blue"}}
	value, wrong := "Bearer one", error(nil)
	cfg.HeaderFunc = func() (http.Header, error) { return http.Header{"authorization": {value}}, wrong }
	remote := newRemote(t, cfg)
	for _, value = range []string{"Bearer one", "Bearer two"} {
		if _, err := remote.Lookup(t.Context(), introspect.NewToken(remoteToken)); err != nil {
			t.Fatal(err)
		}
		if h := *got.Load(); h.Get("Authorization") != value || h.Get("X-Tenant") != "blue" {
			t.Errorf("sent %v, want %q", h, value)
		}
	}
	server.asked.Store(0)
	value = "Bearer " + remoteSecret + "\nX: y"
	facts, err := remote.Lookup(t.Context(), introspect.NewToken(remoteToken))
	if kind := kindOf(t, facts, err); kind != "refused" || !errors.Is(err, introspect.ErrOutage) {
		t.Errorf("a value that can't be sent: %s, %v", kind, err)
	}
	value, wrong = "", errors.New("{file./token} can't be read")
	facts, err = remote.Lookup(t.Context(), introspect.NewToken(remoteToken))
	if kind := kindOf(t, facts, err); kind != "refused" || !errors.Is(err, introspect.ErrOutage) || !strings.Contains(err.Error(), "{file./token} can't be read") {
		t.Errorf("no value: %s, %v", kind, err)
	}
	if n := server.asked.Load(); n != 0 {
		t.Errorf("%d requests were sent without the header", n)
	}
}

// If a server may not decode what RFC 6749 makes us encode, the error says what to try.
func TestRemoteHintsAtEncoding(t *testing.T) {
	for _, c := range []struct {
		secret, auth string
		status       int
		hint         bool
	}{
		{"a+b/c=", "client_secret_basic", 401, true}, {"a@b", "client_secret_basic", 400, true}, {"a b", "", 403, true},
		{"plain-secret_1.2~3", "", 401, false}, {"a+b/c=", "client_secret_post", 401, false}, {"a+b/c=", "client_secret_basic", 500, false},
	} {
		cfg := remoteConfig(newAuthServer(t, status(c.status)).URL)
		cfg.ClientSecret, cfg.Auth = c.secret, c.auth
		_, err := newRemote(t, cfg).Lookup(t.Context(), introspect.NewToken(remoteToken))
		if err == nil || strings.Contains(err.Error(), "auth client_secret_post") != c.hint || strings.Contains(err.Error(), c.secret) {
			t.Errorf("%q, %s, %d: %v", c.secret, c.auth, c.status, err)
		}
	}
}

// There is one rule for proxies: for https the environment's, since a proxy can't read it; for
// http none.
func TestRemoteProxies(t *testing.T) {
	var connected atomic.Pointer[string]
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		line := r.Method + " " + r.RequestURI
		connected.Store(&line)
		w.WriteHeader(http.StatusBadGateway)
	}))
	defer proxy.Close()
	t.Setenv("HTTPS_PROXY", proxy.URL)
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("NO_PROXY", "direct.invalid")
	for address, want := range map[string]string{
		"https://as.invalid/introspect": "CONNECT as.invalid:443", "https://direct.invalid/introspect": "", "http://as.invalid/introspect": "", "http://127.0.0.1:1/introspect": "",
	} {
		connected.Store(new(string))
		cfg := remoteConfig("")
		cfg.URL, cfg.InsecureHTTP = address, true
		facts, err := newRemote(t, cfg).Lookup(t.Context(), introspect.NewToken(remoteToken))
		kindOf(t, facts, err)
		if got := *connected.Load(); got != want {
			t.Errorf("%s: the proxy was asked %q, want %q", address, got, want)
		}
	}
}

// Over TLS, with HTTP/2 if the server has it.
func TestRemoteTLS(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		says(fmt.Sprintf(`{"active":true,"sub":%q}`, r.Proto))(w, r)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	cfg := remoteConfig(server.URL)
	cfg.TLS = &tls.Config{RootCAs: roots}
	remote := newRemote(t, cfg)
	for range 3 {
		facts, err := remote.Lookup(t.Context(), introspect.NewToken(remoteToken))
		if err != nil || facts.Subject != "HTTP/2.0" {
			t.Fatalf("%+v, %v", facts, err)
		}
	}
}

// Each answer means exactly one of yes, no, or an error.
func TestRemoteAnswers(t *testing.T) {
	var (
		hour = at(start.Add(time.Hour))
		now  = at(start)
	)
	const yes, no, wrong = "active", "inactive", "malformed"
	for _, c := range []struct{ body, want string }{
		{`{"active":true}`, yes},
		{`{"active":false}`, no},
		{` {"active" : true } ` + "\n", yes},
		{`{"active":false,"exp":"nonsense","aud":7}`, no}, // it says no, so nothing else matters

		// active is a boolean; otherwise nothing is known.
		{`{}`, wrong}, {`{"active":null}`, wrong}, {`{"active":"true"}`, wrong}, {`{"active":"false"}`, wrong},
		{`{"active":1}`, wrong}, {`{"active":0}`, wrong}, {`{"active":[true]}`, wrong}, {`{"active":{}}`, wrong},
		{`{"Active":true}`, wrong}, {`{"active ":true}`, wrong}, {`{"token_introspection":{"active":true}}`, wrong},
		{`true`, wrong}, {`[{"active":true}]`, wrong}, {`"active"`, wrong}, {`null`, wrong}, {`{"active":TRUE}`, wrong},

		// Nothing that two parsers could read differently.
		{`{"active":false,"active":true}`, wrong}, {`{"active":true,"active":true}`, wrong}, {`{"active":true,"scope":"a","scope":"admin"}`, wrong},
		{`{"active":true,"a":{"b":1,"b":2}}`, wrong}, {`{"active":true}{"active":true}`, wrong}, {`{"active":true}x`, wrong}, {`{"active":true},`, wrong},
		{"{\"active\":true,\"sub\":\"\xff\"}", wrong}, {`{"active":true,"a":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, wrong},
		{"\ufeff" + `{"active":true}`, wrong}, {`{"active":true,"\u0061ctive":false}`, wrong},

		// exp is a time, and never "forever".
		{`{"active":true,"exp":` + hour + `}`, yes}, {`{"active":true,"exp":` + hour + `.25}`, yes},
		{`{"active":true,"exp":` + now + `}`, no}, {`{"active":true,"exp":` + now + `.000000001}`, yes}, {`{"active":true,"exp":0.5}`, no},
		{`{"active":true,"exp":1e308}`, wrong}, {`{"active":true,"exp":1e10}`, yes}, {`{"active":true,"exp":1.5e9}`, no}, {`{"active":true,"exp":1e12}`, wrong},
		{`{"active":true,"exp":NaN}`, wrong}, {`{"active":true,"exp":-1e308}`, wrong},
		{`{"active":true,"exp":9223372036854775807}`, wrong}, {`{"active":true,"exp":99999999999999999999}`, wrong}, {`{"active":true,"exp":true}`, wrong},
		{`{"active":true,"exp":[` + hour + `]}`, wrong}, {`{"active":true,"exp":""}`, wrong}, {`{"active":true,"exp":Infinity}`, wrong},
		// A string is read as the number in it, and may contain nothing else.
		{`{"active":true,"exp":"` + hour + `"}`, yes}, {`{"active":true,"exp":"` + now + `"}`, no}, {`{"active":true,"exp":"1.5e9"}`, no}, {`{"active":true,"exp":"1e308"}`, wrong},
		{`{"active":true,"exp":" ` + hour + `"}`, wrong}, {`{"active":true,"exp":"` + hour + `s"}`, wrong}, {`{"active":true,"exp":"2030-01-01"}`, wrong}, {`{"active":true,"exp":"-"}`, wrong},
		// If there is no time, servers write one that says nothing.
		{`{"active":true,"exp":null}`, yes}, {`{"active":true,"exp":0}`, yes}, {`{"active":true,"exp":-1}`, yes}, {`{"active":true,"exp":-0}`, yes}, {`{"active":true,"exp":"-1"}`, yes},

		// nbf, without leeway. iat is for information only.
		{`{"active":true,"nbf":` + now + `}`, yes}, {`{"active":true,"nbf":` + now + `.1}`, no}, {`{"active":true,"nbf":"` + now + `"}`, yes}, {`{"active":true,"nbf":"` + hour + `"}`, no},
		{`{"active":true,"nbf":"soon"}`, wrong}, {`{"active":true,"nbf":1e308}`, wrong}, {`{"active":true,"nbf":-1,"iat":0}`, yes},
		{`{"active":true,"iat":` + hour + `}`, yes}, {`{"active":true,"iat":"` + now + `"}`, yes}, {`{"active":true,"iat":null,"nbf":null}`, yes}, {`{"active":true,"iat":{}}`, wrong},

		// A token that is bound to a key is not for bearers.
		{`{"active":true,"token_type":"Bearer"}`, yes}, {`{"active":true,"token_type":"BEARER"}`, yes}, {`{"active":true,"token_type":null}`, yes},
		{`{"active":true,"token_type":"DPoP"}`, no}, {`{"active":true,"token_type":"N_A"}`, no}, {`{"active":true,"token_type":""}`, no},
		{`{"active":true,"token_type":"Bearer "}`, no}, {`{"active":true,"token_type":["Bearer"]}`, wrong},
		{`{"active":true,"token_type":"Bearer","cnf":{"jkt":"` + thumb + `"}}`, no}, {`{"active":true,"cnf":{}}`, no}, {`{"active":true,"cnf":"x"}`, no},
		{`{"active":true,"cnf":null}`, yes},

		// Nor is one that is not an access token.
		{`{"active":true,"token_use":"access_token"}`, yes}, {`{"active":true,"token_use":"access"}`, yes}, {`{"active":true,"token_use":"refresh_token"}`, no},
		{`{"active":true,"tokenName":"access_token"}`, yes}, {`{"active":true,"tokenName":"refresh_token"}`, no}, {`{"active":true,"purpose":"refresh_token"}`, no},
		{`{"active":true,"type":"refresh"}`, no}, {`{"active":true,"type":"service"}`, yes}, {`{"active":true,"at_hash":"x"}`, no}, {`{"active":true,"typ":"Initial"}`, no},
		{`{"active":true,"token_use":"id"}`, no}, {`{"active":true,"typ":"Bearer"}`, yes}, {`{"active":true,"typ":"Refresh"}`, no}, {`{"active":true,"typ":"Offline"}`, no},

		{`{"active":true,"iss":"https://issuer.example"}`, yes}, {`{"active":true,"iss":"https://issuer.example/"}`, no}, {`{"active":true,"iss":["https://issuer.example"]}`, wrong},

		{`{"active":true,"aud":"a"}`, yes}, {`{"active":true,"aud":["a","b"]}`, yes}, {`{"active":true,"aud":[]}`, yes}, {`{"active":true,"aud":null}`, yes},
		{`{"active":true,"aud":[""]}`, wrong}, {`{"active":true,"aud":["a",""]}`, wrong}, {`{"active":true,"aud":""}`, yes}, {`{"active":true,"aud":7}`, wrong}, {`{"active":true,"aud":["a",1]}`, wrong}, {`{"active":true,"aud":{"a":1}}`, wrong},

		{`{"active":true,"scope":""}`, yes}, {`{"active":true,"scope":"a b"}`, yes}, {`{"active":true,"scope":["a","b"]}`, yes}, {`{"active":true,"scope":null}`, yes},
		{`{"active":true,"scope":["a b"]}`, yes}, {`{"active":true,"scope":"a\"b"}`, yes}, {`{"active":true,"scope":"a\tb"}`, yes}, {`{"active":true,"scope":7}`, wrong},
		{`{"active":true,"scope":{"admin":true}}`, wrong}, {`{"active":true,"scope":["a",null]}`, wrong},

		{`{"active":true,"client_id":7}`, yes}, {`{"active":true,"client_id":7.5}`, wrong}, {`{"active":true,"client_id":7e1}`, wrong}, {`{"active":true,"client_id":true}`, wrong}, {`{"active":true,"client_id":["a"]}`, wrong}, {`{"active":true,"client_id":"a","azp":"b"}`, wrong},
		{`{"active":true,"sub":{}}`, wrong}, {`{"active":true,"sub":null,"client_id":null,"iss":null,"token_use":null,"typ":null}`, yes},
	} {
		server := newAuthServer(t, says(c.body))
		cfg := remoteConfig(server.URL)
		cfg.Now = func() time.Time { return start }
		cfg.Issuer = "https://issuer.example"
		facts, err := newRemote(t, cfg).Lookup(t.Context(), introspect.NewToken(remoteToken))
		got := no
		switch {
		case err != nil:
			got = kindOf(t, facts, err)
		case facts.Active:
			got = yes
			if facts.ID != introspect.IDOf(remoteToken) {
				t.Errorf("%s: the facts belong to another token", c.body)
			}
		case facts.ID != (introspect.TokenID{}) || facts.ClientID != "" || facts.Issuer != "" || !facts.Expiry.IsZero():
			t.Errorf("%s: an inactive token has facts: %+v", c.body, facts)
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s (%v)", c.body, got, c.want, err)
		}
		server.Close()
	}
}

func TestRemoteConfigIsChecked(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*introspect.RemoteConfig)
		want   string // in the error; empty if there is none
	}{
		{"http to loopback", func(c *introspect.RemoteConfig) { c.URL = "http://127.0.0.1:1/" }, ""},
		{"http to IPv6 loopback", func(c *introspect.RemoteConfig) { c.URL = "http://[::1]:1/" }, ""},
		{"http to localhost", func(c *introspect.RemoteConfig) { c.URL = "http://localhost/" }, ""},
		{"http elsewhere", func(c *introspect.RemoteConfig) { c.URL = "http://as.example/" }, "must be https"},
		{"http to a fake localhost", func(c *introspect.RemoteConfig) { c.URL = "http://localhost.example/" }, "must be https"},
		{"http elsewhere, allowed", func(c *introspect.RemoteConfig) { c.URL, c.InsecureHTTP = "http://as.example/", true }, ""},
		{"no URL", func(c *introspect.RemoteConfig) { c.URL = "" }, "host"},
		{"no host", func(c *introspect.RemoteConfig) { c.URL = "https:///x" }, "host"},
		{"another scheme", func(c *introspect.RemoteConfig) { c.URL, c.InsecureHTTP = "ftp://as.example/", true }, "scheme"},
		{"a fragment", func(c *introspect.RemoteConfig) { c.URL += "#x" }, "fragment"},
		{"a password", func(c *introspect.RemoteConfig) { c.URL = "https://gateway:" + remoteSecret + "@as.example/" }, "password"},
		{"a password in an unparsable URL", func(c *introspect.RemoteConfig) { c.URL = "https://gateway:" + remoteSecret + "@as.example:x/" }, "parsed"},
		{"no client", func(c *introspect.RemoteConfig) { c.ClientID = "" }, "ClientID"},
		{"no secret", func(c *introspect.RemoteConfig) { c.ClientSecret = "" }, "ClientSecret"},
		{"no secret in the body", func(c *introspect.RemoteConfig) { c.Auth, c.ClientSecret = "client_secret_post", "" }, "ClientSecret"},
		{"a secret that is not sent", func(c *introspect.RemoteConfig) { c.Auth, c.ClientID = "none", "" }, "none"},
		{"another method", func(c *introspect.RemoteConfig) { c.Auth = "private_key_jwt" }, "must be client_secret_basic"},
		{"two credentials", func(c *introspect.RemoteConfig) { c.Header = http.Header{"authorization": {"Bearer x"}} }, "Authorization"},
		{"another Accept", func(c *introspect.RemoteConfig) { c.Header = http.Header{"accept": {"*/*"}} }, "Accept"},
		{"a Host that would not be sent", func(c *introspect.RemoteConfig) { c.Header = http.Header{"Host": {"x"}} }, "Host"},
		{"an invalid header name", func(c *introspect.RemoteConfig) { c.Header = http.Header{"X Y": {"x"}} }, "not valid"},
		{"two headers in one", func(c *introspect.RemoteConfig) { c.Header = http.Header{"X": {remoteSecret + "\r\nY: z"}} }, "control character"},
		{"too much leeway", func(c *introspect.RemoteConfig) { c.Leeway = time.Hour }, "leeway"},
		{"negative sizes", func(c *introspect.RemoteConfig) { c.MaxAnswer = -1 }, "MaxAnswer"},
		{"negative times", func(c *introspect.RemoteConfig) { c.Timeout = -1 }, "Timeout"},
		{"negative pauses", func(c *introspect.RemoteConfig) { c.OpenFor = -1 }, "OpenFor"},
		{"negative numbers", func(c *introspect.RemoteConfig) { c.MaxConcurrent = -1 }, "MaxConcurrent"},
		{"negative failures", func(c *introspect.RemoteConfig) { c.MaxFailures = -1 }, "MaxFailures"},
	} {
		cfg := remoteConfig("https://as.example")
		c.change(&cfg)
		r, err := introspect.NewRemote(cfg)
		if err == nil {
			r.Close()
		}
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error about %q", c.name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), remoteSecret) {
			t.Errorf("%s: the error shows the secret: %v", c.name, err)
		}
	}
}

// RFC 6750 section 2.1: what can't have come in an Authorization header is not sent.
func TestRemoteScreens(t *testing.T) {
	server := newAuthServer(t, says(`{"active":true}`))
	remote := newRemote(t, remoteConfig(server.URL))
	for token, want := range map[string]bool{
		"a": true, "a=": true, "a==": true, "AZaz09-._~+/": true, strings.Repeat("a", 16<<10): true,
		"": false, "=": false, "=a": false, "a=b": false, "a b": false, "a\n": false, "a\x00": false, "ä": false, "a,b": false, "a&b": false,
		"a%20": false, "\xff": false, strings.Repeat("a", 16<<10+1): false,
	} {
		if _, got := remote.Screen(introspect.NewToken(token)); got != want {
			t.Errorf("%.20q: %v, want %v", token, got, want)
		}
		asked := server.asked.Load()
		facts, err := remote.Lookup(t.Context(), introspect.NewToken(token))
		if err != nil || facts.Active != want || (server.asked.Load() > asked) != want {
			t.Errorf("%.20q: %+v, %v, after %d requests", token, facts, err, server.asked.Load()-asked)
		}
	}
}

// A name covers everything that changes the answers, and reveals nothing.
func TestRemoteNames(t *testing.T) {
	names := map[string]string{}
	for what, change := range map[string]func(*introspect.RemoteConfig){
		"as it is":        func(*introspect.RemoteConfig) {},
		"another URL":     func(c *introspect.RemoteConfig) { c.URL += "2" },
		"another query":   func(c *introspect.RemoteConfig) { c.URL += "?realm=b" },
		"another client":  func(c *introspect.RemoteConfig) { c.ClientID = "x" },
		"another issuer":  func(c *introspect.RemoteConfig) { c.Issuer = "x" },
		"a leeway":        func(c *introspect.RemoteConfig) { c.Leeway = 1 },
		"a header":        func(c *introspect.RemoteConfig) { c.Header = http.Header{"X": {"a"}} },
		"another value":   func(c *introspect.RemoteConfig) { c.Header = http.Header{"X": {"b"}} },
		"two values":      func(c *introspect.RemoteConfig) { c.Header = http.Header{"X": {"a", "b"}} },
		"another, joined": func(c *introspect.RemoteConfig) { c.Header = http.Header{"X": {"ab"}} },
		"a client claim":  func(c *introspect.RemoteConfig) { c.ClientClaims = []string{"sub"} },
		"a scope claim":   func(c *introspect.RemoteConfig) { c.ScopeClaims = []string{"sub"} },
		"scope claims":    func(c *introspect.RemoteConfig) { c.ScopeClaims = []string{"sub", "scope"} },
		"two headers":     func(c *introspect.RemoteConfig) { c.Header = http.Header{"X": {"a"}, "Y": {"b"}} },
	} {
		cfg := remoteConfig("https://as.example")
		change(&cfg)
		name := newRemote(t, cfg).Name()
		if other, taken := names[name]; taken {
			t.Errorf("%s and %s have the same name", what, other)
		}
		names[name] = what
		if strings.Contains(name, "as.example") || name != newRemote(t, cfg).Name() {
			t.Errorf("%s: %q", what, name)
		}
	}
	cfg := remoteConfig("https://as.example")
	cfg.ClientSecret = "another"
	if names[newRemote(t, cfg).Name()] != "as it is" {
		t.Error("a new secret makes another name")
	}
}

// Many concurrent first uses of a token are one question, and a caller that goes away harms
// nobody.
func TestRemoteIsAskedOnce(t *testing.T) {
	const callers = 200
	// A question too many must not block the test that detects it.
	arrived, open := make(chan struct{}, callers), make(chan struct{})
	server := newAuthServer(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-open
		says(`{"active":true}`)(w, r)
	})
	cfg := remoteConfig(server.URL)
	cfg.Timeout = 20 * time.Second
	remote := newRemote(t, cfg)
	var missed sync.WaitGroup
	missed.Add(callers)
	cache := newCache(t, introspect.CacheConfig{LookupTimeout: 20 * time.Second, OnMiss: missed.Done})
	s := cache.WrapWith(remote.Name(), remote, introspect.SourceConfig{MaxAge: time.Minute, NegativeAge: introspect.DefaultNegativeAge, StaleFor: time.Minute})

	ctx, hangUp := context.WithCancel(t.Context())
	leader := make(chan error)
	go func() {
		_, err := s.Lookup(ctx, remoteToken)
		leader <- err
	}()
	<-arrived
	var others sync.WaitGroup
	var good atomic.Int64
	for range callers - 1 {
		others.Go(func() {
			if active(t, s, remoteToken) {
				good.Add(1)
			}
		})
	}
	missed.Wait() // all are waiting for the one answer, or are about to
	hangUp()
	if err := <-leader; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller that hung up got %v", err)
	}
	close(open)
	others.Wait()
	if good.Load() != callers-1 || server.asked.Load() != 1 {
		t.Errorf("%d of %d got their answer, after %d questions", good.Load(), callers-1, server.asked.Load())
	}
}

// At most MaxConcurrent requests are under way, the same number waits, and the others are told
// at once to try again.
func TestRemoteIsBounded(t *testing.T) {
	open := make(chan struct{})
	var under, most atomic.Int64
	server := newAuthServer(t, func(w http.ResponseWriter, r *http.Request) {
		n := under.Add(1)
		defer under.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-open
		says(`{"active":true}`)(w, r)
	})
	cfg := remoteConfig(server.URL)
	cfg.MaxConcurrent, cfg.Timeout = 5, 20*time.Second // one of the five is reserved for tokens that were good
	remote := newRemote(t, cfg)
	results := make(chan error, 100)
	for i := range 20 {
		go func() {
			_, err := remote.Lookup(t.Context(), introspect.NewToken(fmt.Sprint(i)))
			results <- err
		}()
	}
	for range 12 {
		if err := <-results; !errors.Is(err, introspect.ErrBusy) {
			t.Fatalf("%v, want ErrBusy while the server hangs", err)
		}
	}
	for under.Load() < 4 { // the test's own deadline ends it
		time.Sleep(time.Millisecond)
	}
	close(open)
	for range 8 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if most.Load() != 4 {
		t.Errorf("%d requests were under way at once, want 4", most.Load())
	}

	t.Run("waiting ends", func(t *testing.T) {
		server := newAuthServer(t, func(_ http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		})
		cfg := remoteConfig(server.URL)
		cfg.MaxConcurrent, cfg.Timeout = 1, 20*time.Second
		remote := newRemote(t, cfg)
		first := make(chan error)
		waits, hangUp := context.WithCancel(t.Context())
		defer hangUp()
		go func() {
			_, err := remote.Lookup(waits, introspect.NewToken("first"))
			first <- err
		}()
		for server.asked.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := remote.Lookup(ctx, introspect.NewToken("second")); !errors.Is(err, introspect.ErrBusy) {
			t.Errorf("%v, want ErrBusy", err)
		}
		hangUp()
		<-first
	})
}

// A server may close an idle connection just as it is used again. No lookup fails because of it.
func TestRemoteSurvivesClosedConnections(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served atomic.Int64
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if served.Add(1) == 2 {
			io.Copy(io.Discard, r.Body)
			conn, _, _ := http.NewResponseController(w).Hijack()
			conn.Close()
			return
		}
		says(`{"active":true}`)(w, r)
	})}
	go server.Serve(listener)
	defer server.Close()
	remote := newRemote(t, remoteConfig("http://"+listener.Addr().String()))
	for i := range 3 {
		if _, err := remote.Lookup(t.Context(), introspect.NewToken(remoteToken)); err != nil {
			t.Errorf("request %d: %v", i, err)
		}
	}
}

// After Close, lookups work and leave no connection behind.
func TestRemoteClose(t *testing.T) {
	server := httptest.NewUnstartedServer(says(`{"active":true}`))
	connections := map[net.Conn]bool{}
	var mu sync.Mutex
	server.Config.ConnState = func(c net.Conn, state http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		if connections[c] = true; state == http.StateClosed {
			delete(connections, c)
		}
	}
	server.Start()
	defer server.Close()
	remote := newRemote(t, remoteConfig(server.URL))
	left := func(want int) {
		t.Helper()
		var n int
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			mu.Lock()
			n = len(connections)
			mu.Unlock()
			if n == want {
				return
			}
		}
		t.Errorf("%d connections, want %d", n, want)
	}
	for range 5 {
		if _, err := remote.Lookup(t.Context(), introspect.NewToken(remoteToken)); err != nil {
			t.Fatal(err)
		}
	}
	left(1)
	remote.Close()
	left(0)
	for range 5 {
		if _, err := remote.Lookup(t.Context(), introspect.NewToken(remoteToken)); err != nil {
			t.Fatal(err)
		}
	}
	left(0)
	remote.Close()
}

// FuzzAnswer checks that nothing panics, whatever a server answers, and that no token is active
// without "active": true, after its expiry, or with an expiry that was not understood.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		`{"active":true,"exp":1893459600,"scope":"a b","aud":["x"],"client_id":"c","iss":"i","token_type":"Bearer"}`,
		`{"active":"true"}`, `{"active":true,"exp":1e308}`, `{"active":true,"active":false}`, `{"active":true,"cnf":{}}`, `{"active":true}x`, `[]`, ``,
		`{"active":true,"exp":null}`, `{"active":true,"exp":"1893459600","sub":7,"aud":""}`, `{"active":true,"exp":"-1"}`, `{"active":true,"exp":1.9e9}`, `{"active":true,"exp":"0x7p30"}`, `{"active":true,"a":[[[{}]]],"nbf":1}`, `{"Active":true}`,
		`{"active":true,"a":1e400}`, `{"active":false,"exp":-1e400}`, `{"active":true,"exp":1e400}`,
	} {
		f.Add([]byte(seed))
	}
	cfg := remoteConfig("https://as.example")
	cfg.Now = func() time.Time { return start }
	remote := newRemote(f, cfg)
	f.Fuzz(func(t *testing.T, body []byte) {
		facts, err := remote.Understand(body)
		if err != nil {
			if facts != nil {
				t.Error("both facts and an error")
			}
			return
		}
		// Another parser's reading. It takes the last of two members.
		var answer map[string]any
		decoder := json.NewDecoder(bytes.NewReader(body))
		decoder.UseNumber() // JSON has numbers that no float64 has
		if err := decoder.Decode(&answer); err != nil || !json.Valid(body) {
			t.Fatalf("accepted something that is not a JSON object: %v", err)
		}
		if active, ok := answer["active"].(bool); !ok || facts.Active && !active {
			t.Errorf("active is %v", answer["active"])
		}
		if !facts.Active {
			return
		}
		exp, seconds := answer["exp"], 0.0
		switch exp.(type) {
		case nil:
		case json.Number, string:
			seconds, err = strconv.ParseFloat(fmt.Sprint(exp), 64)
		default:
			err = errors.New("neither a number nor a string")
		}
		if err != nil || facts.Expiry.IsZero() != (seconds <= 0) || seconds > 0 && (seconds < float64(start.Unix())-1 || !start.Before(facts.Expiry)) {
			t.Errorf("exp %v was read as %v", exp, facts.Expiry)
		}
		for _, scope := range facts.Scopes {
			if scope == "" || strings.ContainsAny(scope, " \"\\") {
				t.Errorf("scope %q", scope)
			}
		}
		if _, bound := answer["cnf"].(map[string]any); bound {
			t.Error("a bound token is active")
		}
		for name, value := range answer {
			if text, ok := value.(string); ok && name != "client_id" && name != "sub" && name != "iss" && name != "aud" && name != "scope" && !slices.Equal(facts.ClaimValues(name), []string{text}) {
				t.Errorf("claim %q is %q, want %q", name, facts.ClaimValues(name), text)
			}
		}
	})
}
