package caddyoauth_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth"
)

// stream is a stream of server-sent events.
type stream struct {
	t     *testing.T
	lines chan string // closed at its end
}

// watch asks for events, and waits until they are being watched.
func (a admin) watch(t *testing.T, query string) stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // nothing takes that long
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, "GET", "http://"+a.address+"/oauth/events"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := new(http.Transport).RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	if res.StatusCode != 200 || res.Header.Get("Content-Type") != "text/event-stream" || res.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v", res.StatusCode, res.Header)
	}
	s := stream{t, make(chan string, 100)}
	go func() {
		defer close(s.lines)
		for scan := bufio.NewScanner(res.Body); scan.Scan(); {
			s.lines <- scan.Text()
		}
	}()
	if first := <-s.lines; first != "retry: 1000" {
		t.Fatalf("it begins with %q", first)
	}
	return s
}

// next returns the next event.
func (s stream) next() (name string, fields map[string]any) {
	s.t.Helper()
	for line := range s.lines {
		if after, ok := strings.CutPrefix(line, "event: "); ok {
			name = after
		}
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			if err := json.Unmarshal([]byte(data), &fields); err != nil {
				s.t.Fatalf("%s: %v", data, err)
			}
			return name, fields
		}
	}
	s.t.Fatal("the stream has ended")
	return "", nil
}

// Whoever watches gets the events of the log, with the same fields, as they happen, and without secrets
// or tokens; also where the log doesn't have them.
func TestEventsAreStreamed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	config, address := withAdmin(t, caddyfileOf("store memory\n"+managedOptions, managedSite))
	a := admin{startCaddyfile(t, logTo(file, config)), address}
	all, some := a.watch(t, ""), a.watch(t, "?event=request_refused&event=client_added")

	token := a.token("reader", "read")
	name, issued := all.next()
	if name != "token_issued" || issued["client_id"] != "reader" || issued["auth_method"] != "client_secret_basic" {
		t.Errorf("%s: %v", name, issued)
	}
	a.get("/x", spoiled(token))
	caddyoauth.WriteEvents()
	name, refused := all.next()
	if name != "request_refused" || refused["status"] != 401.0 {
		t.Errorf("%s: %v", name, refused)
	}
	logged := eventsIn(t, file, "request_refused")[0]
	for field, want := range logged {
		switch field {
		case "level", "ts", "logger", "msg":
		default:
			if refused[field] != want {
				t.Errorf("%s is %v, and in the log %v", field, refused[field], want)
			}
		}
	}
	if _, ok := refused["time"].(string); !ok || len(refused) != len(logged)-3 {
		t.Errorf("not as in the log: %v", refused)
	}
	secret, _ := a.must(201, "PUT", "/oauth/clients/root/batch", `{"scopes":["read"]}`).json(t)["secret"].(string)
	name, added := some.next() // the refusal
	if name != "request_refused" {
		t.Errorf("%s: %v", name, added)
	}
	if name, added = some.next(); name != "client_added" || added["client_id"] != "batch" {
		t.Errorf("%s: %v", name, added)
	}
	if text, _ := json.Marshal([]any{issued, refused, added}); strings.Contains(string(text), token) || strings.Contains(string(text), secret) || strings.Contains(string(text), "$sha256$") {
		t.Errorf("a secret is in %s", text)
	}

	// A reload ends the stream, so that it doesn't hold up the one that replaces the admin endpoint; and
	// the next one has the events of the next configuration, whose log has none.
	quiet := strings.Replace(strings.Replace(logTo(file, config), "level DEBUG", "level ERROR", 1), "grace_period 1s", "grace_period 2s", 1)
	if err := a.loadCaddyfile(quiet); err != nil {
		t.Fatal(err)
	}
	for range all.lines {
	}
	again := a.watch(t, "")
	a.token("reader", "read")
	if name, _ := again.next(); name != "token_issued" {
		t.Errorf("after a reload: %s", name)
	}
	a.must(405, "POST", "/oauth/events", "{}")
	a.must(400, "GET", "/oauth/events?"+strings.Repeat("event=a&", 65), "")
}
