package caddyoauth

import (
	"context"
	"fmt"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
	"weak"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/introspect"
)

// observedLog returns a log of refusals, and what it writes.
func observedLog() (*refusalLog, *observer.ObservedLogs) {
	core, written := observer.New(zap.InfoLevel)
	return &refusalLog{logger: zap.New(core), seen: make(map[access.Cause]int)}, written
}

// A request must not take longer because its event is written: whether it is depends on how many
// others had the same cause, which is nothing that a caller may learn.
func TestNoRequestWritesItsEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, written := observedLog()
		r := httptest.NewRequest("GET", "/some%20path", nil)
		var asked atomic.Int64
		fields := func() []zap.Field {
			return []zap.Field{zap.Int64("number", asked.Add(1))}
		}
		begun := time.Now()
		for range maxRefusals + 3 {
			l.write(r, introspect.CauseForged, 401, fields)
		}
		l.write(r, introspect.CauseRevoked, 401, fields)
		l.stripped(r, removedIdentity)
		r.Method, r.Host, r.URL.Path = "CHANGED", "changed.example.com", "/changed" // by the handlers of error routes
		if n := written.Len(); n != 0 || asked.Load() != 0 {
			t.Fatalf("the request has written %d events, and looked up the fields of %d", n, asked.Load())
		}

		time.Sleep(writeEvery)
		synctest.Wait()
		all := written.TakeAll()
		if len(all) != maxRefusals+2 {
			t.Fatalf("%d events are written, want %d", len(all), maxRefusals+2)
		}
		for i, e := range all {
			want := map[string]any{"event": "request_refused", "cause": "forged", "status": int64(401), "number": int64(i + 1), "remote_ip": "192.0.2.1", "method": "GET", "host": "example.com", "path": "/some%20path"}
			switch i {
			case maxRefusals:
				want["cause"] = "revoked"
			case maxRefusals + 1:
				want["event"], want["cause"] = "request_stripped", "identity_header"
				delete(want, "status")
				delete(want, "number")
			}
			if got := e.ContextMap(); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("event %d is %v, want %v", i, got, want)
			}
			if !e.Time.Equal(begun) {
				t.Errorf("event %d is of %v, want the time of its request", i, e.Time.Sub(begun))
			}
		}

		time.Sleep(maxRefusalsPer)
		synctest.Wait()
		all = written.TakeAll()
		if len(all) != 1 || all[0].ContextMap()["count"] != int64(3) {
			t.Errorf("the summary is %v, want 3 left out", all)
		}
		if l.due != nil {
			t.Error("the timer goes on after the second")
		}
		l.write(r, introspect.CauseForged, 401, nil)
		time.Sleep(writeEvery)
		synctest.Wait()
		if written.Len() != 1 {
			t.Error("the next second has no room of its own")
		}
		time.Sleep(maxRefusalsPer)
	})
}

// An event waits to be written, for as long as the log takes. It doesn't hold a request line of
// megabytes meanwhile, and neither does the token or the secret in it hold a line of Authorization.
func TestAnEventHoldsNoLongText(t *testing.T) {
	l, written := observedLog()
	var held []weak.Pointer[byte]
	line := func(begin, end string) string {
		text := begin + strings.Repeat(" ", 1<<20) + end
		held = append(held, weak.Make(unsafe.StringData(text)))
		return text
	}
	func() {
		request := line("GET /path?", "")
		r := httptest.NewRequest("GET", "/", nil)
		r.Method, r.URL = request[:3], &url.URL{Path: request[4:9], RawQuery: request[10:]}
		l.write(r, introspect.CauseForged, 401, nil)
		long := line("/", "")
		r.Method, r.URL = long, &url.URL{Path: long}
		l.write(r, introspect.CauseForged, 401, nil)

		token, _ := bearerToken([]string{line("Bearer", "token")})
		b := &bearer{token: introspect.NewToken(token)}
		l.write(r, introspect.CauseForged, 401, func() []zap.Field { return b.refused(access.Decision{Cause: introspect.CauseForged}) })
		gone, hangUp := context.WithCancel(t.Context())
		hangUp()
		p := &Protect{basic: &basicRoute{realm: &servedRealm{app: &App{run: &running{ready: make(chan struct{})}}}}}
		refused, _ := p.judgeBasic(r.WithContext(gone), nil, nil, nil, []string{line("Basic ", "")})
		l.write(r, access.CauseBasic, 401, func() []zap.Field { return refused.refused(access.Decision{Cause: access.CauseBasic}) })
	}()
	runtime.GC()
	for i, text := range held {
		if text.Value() != nil {
			t.Errorf("text %d is still there", i)
		}
	}
	l.end()
	if all := written.All(); len(all) != 4 || all[0].ContextMap()["method"] != "GET" || all[0].ContextMap()["path"] != "/path" {
		t.Errorf("the log has %v", all)
	}
}

// The end of a configuration waits for events that are being written, and loses none.
func TestTheEndLosesNoEvent(t *testing.T) {
	l, written := observedLog()
	r := httptest.NewRequest("GET", "/", nil)
	causes := introspect.Causes()
	const each = 200
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range each {
				l.write(r, causes[i%len(causes)], 401, nil)
				if i%50 == 0 {
					l.writeDue()
				}
			}
		})
	}
	all.Wait()
	l.end()
	n := 0
	for _, e := range written.All() {
		if fields := e.ContextMap(); fields["event"] == "events_left_out" {
			n += int(fields["count"].(int64))
		} else {
			n++
		}
	}
	if n != 8*each {
		t.Errorf("%d events are written or counted, want %d", n, 8*each)
	}
}

// What can't be written costs neither the process nor the other events.
func TestAnEventThatPanicsCostsNothingElse(t *testing.T) {
	l, written := observedLog()
	r := httptest.NewRequest("GET", "/", nil)
	l.write(r, introspect.CauseForged, 401, func() []zap.Field { panic("over a token") })
	l.write(r, introspect.CauseRevoked, 401, nil)
	l.end()
	if all := written.All(); len(all) != 2 || all[0].Level != zap.ErrorLevel || all[1].ContextMap()["cause"] != "revoked" {
		t.Errorf("the log has %v", all)
	}
}

// A tunnel is refused before any other handler, which can still read why, as after every refusal.
func TestARefusedTunnelSaysWhy(t *testing.T) {
	l, _ := observedLog()
	repl := caddy.NewReplacer()
	r := httptest.NewRequest("CONNECT", "example.com:443", nil)
	refuseTunnel(httptest.NewRecorder(), r.WithContext(context.WithValue(r.Context(), caddy.ReplacerCtxKey, repl)), l)
	if why := repl.ReplaceAll("{http.oauth.error}", ""); why != "tunnel" {
		t.Errorf("{http.oauth.error} is %q", why)
	}
	l.end()
}
