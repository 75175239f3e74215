package caddyoauth

import (
	"maps"
	"net/http"
	"net/netip"
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
	// writeEvery is how long an event waits to be written, together with those that come meanwhile.
	writeEvery = 100 * time.Millisecond
	// maxLoggedText bounds texts in the log that come from a request, in bytes.
	maxLoggedText = 256
)

// refusalLog writes the events of one handler: request_refused for each refusal, and
// request_stripped for each request from which something was removed, but at most maxRefusals
// or maxStripped of a cause in each second. If there are more, events_left_out follows at the
// end of the second, with their number by cause. So a flood can't fill the disk, hides no event
// with another cause, and is counted.
//
// A request only notes its event, which is the same work whatever the cause is and whether the
// event will be written. Otherwise a caller could tell by the time of an answer which of several
// causes with that answer it was: after a flood of one of them, only the others take the time of
// writing. Every writeEvery a timer writes what was noted, in that order.
//
// It holds a number for each cause and the events that are not written yet, at most maxRefusals of
// a cause, and has a timer from the first event until the end of the second. App.Cleanup ends it.
type refusalLog struct {
	logger *zap.Logger
	realm  string // the realm that tokens are for, empty if none are asked for
	rule   string // the handler's place in the configuration, empty if unknown
	// asked hears of what would be counted, if nobody sent a request and it is only asked what
	// would happen; see walk.go. Nil for requests.
	asked func(access.Cause)

	writing sync.Mutex // held by whoever writes, so that events keep their order; before mu

	mu    sync.Mutex
	begun time.Time // the second that the timer is for
	seen  map[access.Cause]int
	first *refusedEvent // of a list of events that are not written yet
	last  *refusedEvent
	due   *time.Timer // nil if there is nothing to write or to sum up
}

// refusedEvent is what a request leaves for the log. Nothing in it changes when the request goes on.
type refusedEvent struct {
	at     time.Time
	cause  access.Cause
	status int // 0 if the request was not refused
	// reportOnly is set if the request was only reported, and the status is what it would have been.
	reportOnly bool
	fields     func() []zap.Field // what else there is to say; nil if nothing
	from       netip.Addr
	// What the head of the request has, bounded and copied: parts of it would hold all of it.
	method, host, path string
	next               *refusedEvent
}

// write notes the event of a refusal. fields are called only if it is written, after the request:
// they must not touch anything that the request's goroutine still changes.
func (l *refusalLog) write(r *http.Request, cause access.Cause, status int, fields func() []zap.Field) {
	l.note(r, &refusedEvent{cause: cause, status: status, fields: fields})
}

// writeReported is write for a request that passes under report_only.
func (l *refusalLog) writeReported(r *http.Request, cause access.Cause, status int, fields func() []zap.Field) {
	l.note(r, &refusedEvent{cause: cause, status: status, fields: fields, reportOnly: true})
}

// note keeps an event for writeNoted, unless there are enough with that cause.
func (l *refusalLog) note(r *http.Request, e *refusedEvent) {
	if !l.logger.Core().Enabled(zap.InfoLevel) {
		return
	}
	e.at, e.method, e.host = time.Now(), strings.Clone(loggedText(r.Method)), strings.Clone(loggedText(r.Host))
	e.from, _ = clientAddr(r)
	// Rewrites and handle_path have changed the path; the log has what the caller sent.
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok && original.URL != nil {
		e.path = original.URL.EscapedPath()
	} else {
		e.path = r.URL.EscapedPath()
	}
	e.path = strings.Clone(loggedText(e.path))
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.due == nil {
		l.begun = e.at
		l.due = time.AfterFunc(writeEvery, l.writeDue)
	}
	l.seen[e.cause]++
	switch {
	case l.seen[e.cause] > mostOf(e.cause):
	case l.last == nil:
		l.first, l.last = e, e
	default:
		l.last.next, l.last = e, e
	}
}

// mostOf returns how many events with a cause are written in a second.
func mostOf(cause access.Cause) int {
	if cause == strippedIdentity || cause == strippedUpgrade {
		return maxStripped
	}
	return maxRefusals
}

// writeDue runs when the timer fires.
func (l *refusalLog) writeDue() {
	l.writeNoted(func() bool { return time.Since(l.begun) >= maxRefusalsPer })
}

// end writes what is left. Requests that outlive their configuration may still be refused. Their
// events have a timer of their own, which ends within a second.
func (l *refusalLog) end() { l.writeNoted(func() bool { return true }) }

// writeNoted writes the events that have been noted. If the second is over, it also writes how many
// were left out; otherwise the timer goes on.
func (l *refusalLog) writeNoted(over func() bool) {
	l.writing.Lock()
	defer l.writing.Unlock()
	e, left := l.takeNoted(over)
	for ; e != nil; e = e.next {
		l.writeEvent(e)
	}
	l.sum(left)
}

// takeNoted returns the list of events that have been noted and, if the second is over, what was left
// out of it.
func (l *refusalLog) takeNoted(over func() bool) (first *refusedEvent, left leftOut) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first = l.first
	l.first, l.last = nil, nil
	switch {
	case l.due == nil: // somebody else has been faster
	case over():
		l.due.Stop()
		l.due = nil
		left = make(leftOut)
		for cause, n := range l.seen {
			if most := mostOf(cause); n > most {
				left[cause] = n - most
			}
		}
		clear(l.seen)
	default:
		l.due.Reset(writeEvery)
	}
	return first, left
}

// writeEvent writes an event in full. A panic costs the event and not the process, just as it would
// only end the request if the request wrote the event itself.
func (l *refusalLog) writeEvent(e *refusedEvent) {
	defer func() {
		if recover() != nil {
			l.logger.Error("an event could not be written", zap.String("cause", string(e.cause)))
		}
	}()
	event, message := "request_refused", "request refused"
	switch {
	case e.status == 0:
		event, message = "request_stripped", "removed from a request"
	case e.reportOnly:
		message = "request would be refused, and passes under report_only"
	}
	c := l.logger.Check(zap.InfoLevel, message)
	if c == nil {
		return
	}
	c.Time = e.at
	all := append(make([]zap.Field, 0, 16), zap.String("event", event), zap.String("cause", string(e.cause)))
	if e.status != 0 {
		all = append(all, zap.Int("status", e.status))
	}
	if e.reportOnly {
		all = append(all, zap.Bool("report_only", true))
	}
	all = append(all, l.place()...)
	if e.fields != nil {
		all = append(all, e.fields()...)
	}
	from := ""
	if e.from.IsValid() {
		from = e.from.String()
	}
	c.Write(append(all, zap.String("remote_ip", from), zap.String("method", e.method), zap.String("host", e.host), zap.String("path", e.path))...)
}

// stripped counts what was removed from a request, and notes an event for each. Most requests
// lose nothing, so that costs no call.
func (l *refusalLog) stripped(r *http.Request, gone removed) {
	if gone != 0 && !ownHeaders(r) {
		for _, what := range gone.causes() {
			l.count(what)
			l.note(r, &refusedEvent{cause: what})
		}
	}
}

// count counts what was refused or removed where no token is asked for.
func (l *refusalLog) count(cause access.Cause) {
	if l.asked != nil {
		l.asked(cause)
		return
	}
	collectors.guarded[cause].Inc()
}

// countReported counts what would have been refused where no token is asked for.
func (l *refusalLog) countReported(cause access.Cause) {
	if l.asked != nil {
		l.asked(cause)
		return
	}
	collectors.reportOnly.WithLabelValues(noEndpoint, string(cause)).Inc()
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

func (l *refusalLog) place() (fields []zap.Field) {
	if l.realm != "" {
		fields = append(fields, zap.String("realm", l.realm))
	}
	if l.rule != "" {
		fields = append(fields, zap.String("rule", l.rule))
	}
	return fields
}

// sum writes what was left out, if anything was.
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
