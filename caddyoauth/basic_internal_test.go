package caddyoauth

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/caddyoauth/gateway/introspect"
)

func TestBasicEndsByItself(t *testing.T) {
	end := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	right := []string{"Basic YTpi"}
	for name, c := range map[string]struct {
		basic *basicRoute
		now   time.Time
		want  bool
	}{
		"before its end":   {&basicRoute{until: end}, end.Add(-1), true},
		"at its end":       {&basicRoute{until: end}, end, false},
		"without an end":   {&basicRoute{}, end, true},
		"without basic":    {nil, end, false},
		"long after it":    {&basicRoute{until: end}, end.AddDate(100, 0, 0), false},
		"at the zero time": {&basicRoute{until: end}, time.Time{}, true},
	} {
		if c.basic.on(c.now) != c.want || c.basic.takes(right, c.now) != c.want {
			t.Errorf("%s: on %t, takes %t, want %t", name, c.basic.on(c.now), c.basic.takes(right, c.now), c.want)
		}
	}
}

func TestWhatIsBasic(t *testing.T) {
	on := new(basicRoute)
	for line, want := range map[string]bool{
		"Basic YTpi": true, "basic YTpi": true, "BASIC  YTpi": true, "Basic": true, "Basic ": true, "Basic\tYTpi": true, "Basic,x": true, "Basic !": true,
		"": false, "Basi": false, "BasicYTpi": false, "Basicx YTpi": false, "Basic=x": false, " Basic YTpi": false, "Bearer YTpi": false, "Digest Basic": false,
	} {
		if got := on.takes([]string{line}, time.Time{}); got != want {
			t.Errorf("%q: %t, want %t", line, got, want)
		}
	}
}

// Whatever writes the header of a response, it has Deprecation.
func TestEachWayOfWritingIsDeprecated(t *testing.T) {
	b := &basicRoute{deprecation: "@1", sunset: "Tue, 01 Jan 2030 00:00:00 GMT"}
	for name, write := range map[string]func(http.ResponseWriter){
		"WriteHeader": func(w http.ResponseWriter) { w.WriteHeader(http.StatusTeapot) },
		"Write":       func(w http.ResponseWriter) { w.Write([]byte("x")) },
		"Flush":       func(w http.ResponseWriter) { http.NewResponseController(w).Flush() },
		"ReadFrom":    func(w http.ResponseWriter) { w.(io.ReaderFrom).ReadFrom(strings.NewReader("x")) },
	} {
		recorder := httptest.NewRecorder()
		w := b.deprecating(recorder)
		w.Header().Set("Sunset", "mine")
		write(w)
		if h := recorder.Result().Header; h.Get("Deprecation") != "@1" || h.Get("Sunset") != "mine" {
			t.Errorf("%s: %v", name, h)
		}
	}
}

// No Authorization is both a bearer token and Basic, and of several lines none is Basic.
func FuzzBasicIsNoBearer(f *testing.F) {
	for _, seed := range []string{"", "Basic YTpi", "basic", "Basic\tx", "Bearer x", "BasicBearer x", "Bearer", "Basic, Bearer x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		_, verdict := bearerToken([]string{line})
		if isBasic([]string{line}) && verdict != tokenMissing {
			t.Fatalf("%q is Basic, and as a bearer token %d", line, verdict)
		}
		if isBasic(nil) || isBasic([]string{line, line}) {
			t.Fatalf("%q is Basic without being one line", line)
		}
	})
}

// A name and a value that are accepted make a header that a request can carry, which is no identity
// and means nothing to HTTP.
func FuzzUpstreamHeader(f *testing.F) {
	for _, seed := range [][2]string{
		{"X-Api-Key", "{env.UPSTREAM_FUZZ}"}, {"Authorization", "Basic {env.UPSTREAM_FUZZ}"}, {"x-oauth-key", "{env.UPSTREAM_FUZZ}"}, {"Connection", "a"},
		{"X_Api_Key", "{env.UPSTREAM_FUZZ}"}, {"Content-Length", "{env.UPSTREAM_FUZZ}"}, {"A", "{env.UPSTREAM_FUZZ}\r\nB: c"}, {"A", "{{env.UPSTREAM_FUZZ}}"}, {"A", "{env.UPSTREAM_FUZZ}{http.request.host}"},
		{"A", "\"{env.UPSTREAM_FUZZ}\""}, {"Proxy-Authorization", "{env.UPSTREAM_FUZZ}"}, {"X-HTTP-Method", "{file./etc/hostname}"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Setenv("UPSTREAM_FUZZ", "hunter2")
	f.Fuzz(func(t *testing.T, name, value string) {
		if strings.Contains(value, "{file.") || strings.Contains(strings.ReplaceAll(value, "{env.UPSTREAM_FUZZ}", ""), "{env.") {
			return // no file is read here, and no variable of whoever runs the test
		}
		all, err := resolveUpstream(map[string]string{name: value})
		if err != nil {
			if strings.Contains(err.Error(), "hunter2") && !strings.Contains(name+value, "hunter2") {
				t.Fatalf("the error holds the secret: %v", err)
			}
			return
		}
		h := all[0]
		if len(all) != 1 || !httpguts.ValidHeaderFieldName(h.name) || !httpguts.ValidHeaderFieldValue(h.value) || !strings.Contains(h.value, "hunter2") || strings.ContainsAny(h.value, "{}\r\n") {
			t.Fatalf("%q %q make %q: %q", name, value, h.name, h.value)
		}
		if isIdentity(h.name, []string{strings.ToLower(defaultHeaderPrefix)}) || isOneOf(h.name, overrideHeaders) || isOneOf(h.name, []string{"connection", "host", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "proxy-authorization"}) {
			t.Fatalf("%q is accepted", name)
		}
	})
}

// An explanation says where Basic is taken. A question that brings Basic credentials has nobody
// check them: it would count, and could be used to guess.
func TestQuestionsAboutBasic(t *testing.T) {
	t.Setenv("BASIC_ASKED", "password")
	a, end, err := startAsked(t, `{
		admin off
		persist_config off
		auto_https off
		oauth {
			store memory
			client one {
				secret {env.BASIC_ASKED}
				scopes read
			}
		}
	}
	api.example.com:8080 {
		handle /ends {
			oauth_protect {
				basic until 2099-01-01T00:00:00Z
			}
		}
		handle /ended {
			oauth_protect {
				basic until 2020-01-01T00:00:00Z
			}
		}
	}`)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	credentials := http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte("one:password"))}}
	for path, takes := range map[string]bool{"/ends": true, "/ended": false} {
		before := a.app.realms[rootRealm].counts["one"].basic.Load() + uint64(SlowHashes())
		for _, header := range []http.Header{nil, credentials} {
			walk, err := a.policy.ask(t.Context(), question{method: "GET", url: "http://api.example.com:8080" + path, header: header, from: netip.MustParseAddr("127.0.0.1")})
			if err != nil {
				t.Fatal(err)
			}
			said := ""
			for _, step := range walk.Steps {
				said += step.Text + "\n"
			}
			if got := strings.Contains(said, "takes a client's ID and secret by Basic, too, until 2099-01-01T00:00:00Z"); got != takes {
				t.Errorf("%s: %s", path, said)
			}
			if got := strings.Contains(said, "a question checks no secrets"); got != (takes && header != nil) {
				t.Errorf("%s with %v: %s", path, header, said)
			}
		}
		if after := a.app.realms[rootRealm].counts["one"].basic.Load() + uint64(SlowHashes()); after != before {
			t.Errorf("%s: a secret was checked", path)
		}
	}
}

// What backends get in a client's name is in no answer to a question, not even where a handler makes
// something of it.
func TestQuestionsDontShowUpstreamHeaders(t *testing.T) {
	t.Setenv("UPSTREAM_ASKED", "hunter2-hunter2")
	t.Setenv("UPSTREAM_SECRET", walkSecret)
	a, end, err := startAsked(t, `{
		admin off
		persist_config off
		auto_https off
		oauth {
			store memory
			client one {
				secret {env.UPSTREAM_SECRET}
				scopes read
				upstream_header X-Api-Key {env.UPSTREAM_ASKED}
			}
		}
	}
	http://:8080 {
		route {
			oauth_server {
				insecure_http
			}
			oauth_protect {
				insecure_http
			}
			@key header X-Api-Key *
			rewrite @key /{header.X-Api-Key}
			respond "{header.X-Api-Key} {uri}"
		}
	}`)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	token := introspect.NewToken(a.token("root", "one", []string{"read"}))
	for _, who := range []visitor{{realm: "root", client: "one"}, {token: &token}} {
		walk, err := a.policy.ask(t.Context(), question{method: "GET", url: "http://api.example.com:8080/x", who: who, from: netip.MustParseAddr("127.0.0.1")})
		if err != nil {
			t.Fatal(err)
		}
		answer, err := json.Marshal(walk)
		if err != nil || strings.Contains(string(answer), "hunter2") {
			t.Errorf("%v: %s", err, answer)
		}
		if !strings.Contains(string(answer), "REDACTED") {
			t.Errorf("the answer shows nothing of the header, so this test proves nothing: %s", answer)
		}
	}
}
