package caddyoauth

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
)

// What the log says of requests that are refused in front of a backend. Anybody can cause such
// lines, so they are few: see refusalLog.

const (
	// maxRefusals is how many refusals of a cause a handler writes in full in maxRefusalsPer.
	maxRefusals    = 10
	maxRefusalsPer = time.Second
	// maxStripped is the same for requests that go on without what was removed from them.
	maxStripped = 1
	// maxLoggedText bounds texts in the log that come from a request, in bytes.
	maxLoggedText = 256
)

// refusalLog writes the events of one handler: request_refused for each refusal, and
// request_stripped for each request from which something was removed, but at most maxRefusals
// or maxStripped of a cause in each second. If there are more, events_left_out follows at the
// end of the second, with their number by cause. So a flood can't fill the disk, hides no event
// with another cause, and is counted.
//
// It holds two numbers for each cause, and a timer while a summary is due. The App ends it.
type refusalLog struct {
	logger *zap.Logger
	realm  string // the realm that tokens are for, empty if none are asked for
	rule   string // the handler's place in the configuration, empty if unknown

	mu    sync.Mutex
	begun time.Time // the current second
	seen  map[access.Cause]int
	left  leftOut
	due   *time.Timer // writes the summary; nil if there is nothing to write
	ended bool
}

// write writes the event of a refusal. fields are called only if it is written, for what the
// event has to say about the token.
func (l *refusalLog) write(r *http.Request, cause access.Cause, status int, fields func() []zap.Field) {
	c := l.logger.Check(zap.InfoLevel, "request refused")
	if c == nil || !l.has(cause, maxRefusals, time.Now()) {
		return
	}
	all := append(make([]zap.Field, 0, 16), zap.String("event", "request_refused"), zap.String("cause", string(cause)), zap.Int("status", status))
	all = append(all, l.place()...)
	if fields != nil {
		all = append(all, fields()...)
	}
	c.Write(append(all, asked(r)...)...)
}

// stripped counts what was removed from a request, and writes an event for each. Most requests
// lose nothing, so that costs no call.
func (l *refusalLog) stripped(r *http.Request, gone removed) {
	if gone != 0 && !ownHeaders(r) {
		l.writeStripped(r, gone)
	}
}

// ownHeaders reports whether what is removed from r may be ours rather than the caller's. Error
// routes get the request with the headers that an oauth_protect has set, but without the context
// that tells so. What the caller sent is gone by then: an earlyStrip has been there.
func ownHeaders(r *http.Request) bool {
	if r.Context().Value(caddyhttp.ErrorCtxKey) == nil {
		return false
	}
	_, early := caddyhttp.GetVar(r.Context(), strippedVar).(stripped)
	return early
}

func (l *refusalLog) writeStripped(r *http.Request, gone removed) {
	for _, what := range gone.causes() {
		collectors.guarded[what].Inc()
		c := l.logger.Check(zap.InfoLevel, "removed from a request")
		if c == nil || !l.has(what, maxStripped, time.Now()) {
			continue
		}
		all := []zap.Field{zap.String("event", "request_stripped"), zap.String("cause", string(what))}
		c.Write(append(append(all, l.place()...), asked(r)...)...)
	}
}

// asked returns the fields that say who asked for what.
func asked(r *http.Request) []zap.Field {
	path := r.URL
	// Rewrites and handle_path have changed the path; the log has what the caller sent.
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok && original.URL != nil {
		path = original.URL
	}
	return []zap.Field{zap.String("remote_ip", clientIP(r)), zap.String("method", loggedText(r.Method)), zap.String("path", loggedText(path.EscapedPath()))}
}

func (l *refusalLog) place() (fields []zap.Field) {
	if l.realm != "" {
		fields = append(fields, zap.String("realm", l.realm))
	}
	if l.rule != "" {
		fields = append(fields, zap.String("rule", l.rule))
	}
	return fields
}

// has reports whether there is room for one more event, of most in a second, and counts it.
func (l *refusalLog) has(cause access.Cause, most int, now time.Time) bool {
	room, left := l.count(cause, most, now)
	l.sum(left)
	return room
}

// count does the work of has, and returns what was left out in a second that is over.
func (l *refusalLog) count(cause access.Cause, most int, now time.Time) (room bool, left leftOut) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.begun) >= maxRefusalsPer {
		left = l.takeLeft()
		l.begun = now
	}
	l.seen[cause]++
	if l.seen[cause] <= most {
		return true, left
	}
	l.left[cause]++
	if l.due == nil && !l.ended {
		var due *time.Timer
		due = time.AfterFunc(maxRefusalsPer-now.Sub(l.begun), func() {
			l.mu.Lock()
			var left leftOut
			if l.due == due { // otherwise somebody else has it
				left = l.takeLeft()
			}
			l.mu.Unlock()
			l.sum(left)
		})
		l.due = due
	}
	return false, left
}

// takeLeft returns what was left out in the second that is over, and begins another. The caller
// holds mu.
func (l *refusalLog) takeLeft() leftOut {
	if l.due != nil {
		l.due.Stop()
		l.due = nil
	}
	left := maps.Clone(l.left)
	clear(l.seen)
	clear(l.left)
	return left
}

// sum writes what was left out, if anything was. The caller does not hold mu: a log that is slow
// must not hold up every request that is refused.
func (l *refusalLog) sum(left leftOut) {
	total := 0
	for _, n := range left {
		total += n
	}
	if total > 0 {
		fields := append([]zap.Field{zap.String("event", "events_left_out"), zap.Int("count", total)}, l.place()...)
		l.logger.Info("more events than are logged", append(fields, zap.Object("causes", left))...)
	}
}

// end writes what is left. Requests that outlive their configuration may still be refused, and
// are logged, but are not summed up.
func (l *refusalLog) end() {
	l.mu.Lock()
	left := l.takeLeft()
	l.ended = true
	l.mu.Unlock()
	l.sum(left)
}

// leftOut is the number of events that were left out, by cause.
type leftOut map[access.Cause]int

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (l leftOut) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	for _, cause := range slices.Sorted(maps.Keys(l)) {
		enc.AddInt(string(cause), l[cause])
	}
	return nil
}

// loggedText bounds a text from a request.
func loggedText(s string) string {
	if len(s) <= maxLoggedText {
		return s
	}
	return strings.ToValidUTF8(s[:maxLoggedText], "") + "…"
}

func loggedTexts(all []string) []string {
	const most = 32
	some := make([]string, 0, min(len(all), most+1))
	for i, s := range all {
		if i == most {
			return append(some, "…")
		}
		some = append(some, loggedText(s))
	}
	return some
}

// placeOf returns where the handler that is being provisioned stands: its server and, of each
// list of routes on the way to it, the position of the route, as in srv0/routes/1/routes/0. It
// is what 'caddy adapt' shows. It is as much as is known, and empty outside of a server.
func placeOf(ctx caddy.Context) string {
	server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok {
		return ""
	}
	place := server.Name()
	for _, module := range ctx.Modules() {
		var routes caddyhttp.RouteList
		switch module := module.(type) {
		case *caddyhttp.App:
			routes = configuredRoutes(server)
			if beingProvisioned(routes) < 0 && server.Errors != nil && beingProvisioned(server.Errors.Routes) >= 0 {
				routes, place = server.Errors.Routes, place+"/errors"
			}
		case *caddyhttp.Subroute:
			routes = module.Routes
		default:
			continue
		}
		at := beingProvisioned(routes)
		if at < 0 {
			return place
		}
		place += "/routes/" + strconv.Itoa(at)
	}
	return place
}

// beingProvisioned returns the position of the route whose handlers Caddy is provisioning, or
// -1. Caddy goes through a list in its order, and forgets the source of handlers once they are
// provisioned.
func beingProvisioned(routes caddyhttp.RouteList) int {
	for i := range routes {
		if len(routes[i].HandlersRaw) > 0 {
			return i
		}
	}
	return -1
}
