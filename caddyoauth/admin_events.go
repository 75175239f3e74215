package caddyoauth

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
)

// GET /oauth/events shows the events of the log as they are written, as server-sent events (HTML
// Standard section 9.2): those of level info and above, whatever level the log has. While nobody
// watches, an event costs one look at a number.

const (
	// maxWatchers bounds how many watch at once.
	maxWatchers = 32
	// maxUnsent bounds the events that wait for a watcher. Further ones are dropped, and counted.
	maxUnsent = 256
	// watcherPulse is how often a watcher hears something, so that it can tell a quiet gateway from a
	// lost connection, and a proxy doesn't give up.
	watcherPulse = 15 * time.Second
	// watcherTimeout is how long a watcher may take to receive something.
	watcherTimeout = 30 * time.Second
	// maxWatchedNames bounds the events that a watcher may name.
	maxWatchedNames = 64
)

// eventFeed hands events on to those who watch. It is safe for concurrent use, and starts nothing.
type eventFeed struct {
	watching atomic.Int32 // how many do; written under mu
	mu       sync.Mutex
	watchers map[*eventWatcher]struct{} // at most maxWatchers
}

// events has the events of all configurations.
var events = &eventFeed{watchers: make(map[*eventWatcher]struct{})}

// eventWatcher is somebody who watches. unsent is full when others have to be dropped.
type eventWatcher struct {
	names   []string // of the events it wants; all if there are none
	unsent  chan watchedEvent
	dropped atomic.Int64
}

// watchedEvent is an event as it is sent: data is a JSON object in one line.
type watchedEvent struct {
	name string
	data []byte
}

// watch adds a watcher, unless there are too many. leave ends it.
func (f *eventFeed) watch(names []string) (*eventWatcher, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.watchers) == maxWatchers {
		return nil, false
	}
	w := &eventWatcher{names: names, unsent: make(chan watchedEvent, maxUnsent)}
	f.watchers[w] = struct{}{}
	f.watching.Store(int32(len(f.watchers)))
	return w, true
}

func (f *eventFeed) leave(w *eventWatcher) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.watchers, w)
	f.watching.Store(int32(len(f.watchers)))
}

// hand hands an event to all who want it. It waits for nobody. encode is called once at most, and not
// at all if nobody has room for the event.
func (f *eventFeed) hand(name string, encode func() []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var data []byte
	for w := range f.watchers {
		if len(w.names) > 0 && !slices.Contains(w.names, name) {
			continue
		}
		if len(w.unsent) == cap(w.unsent) { // under mu, nobody else fills it
			w.dropped.Add(1)
			continue
		}
		if data == nil {
			data = encode()
		}
		w.unsent <- watchedEvent{name, data}
	}
}

// watched returns a logger whose events go to the feed as well.
func watched(logger *zap.Logger) *zap.Logger {
	return logger.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewTee(core, &feedCore{feed: events})
	}))
}

// feedCore hands on what is logged and has a field event.
type feedCore struct {
	feed  *eventFeed
	bound []zap.Field // what the logger says with everything
}

// Enabled implements [zapcore.LevelEnabler].
func (c *feedCore) Enabled(level zapcore.Level) bool {
	return level >= zapcore.InfoLevel && c.feed.watching.Load() > 0
}

// With implements [zapcore.Core].
func (c *feedCore) With(fields []zap.Field) zapcore.Core {
	return &feedCore{c.feed, slices.Concat(c.bound, fields)}
}

// Check implements [zapcore.Core].
func (c *feedCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

// Write implements [zapcore.Core].
func (c *feedCore) Write(entry zapcore.Entry, fields []zap.Field) error {
	named := slices.IndexFunc(fields, func(f zap.Field) bool { return f.Key == "event" && f.Type == zapcore.StringType })
	if named < 0 {
		return nil
	}
	c.feed.hand(fields[named].String, func() []byte {
		text, err := eventEncoder.EncodeEntry(entry, slices.Concat(c.bound, fields))
		if err != nil {
			return []byte("{}") // a field that can't be encoded says so itself; this doesn't happen
		}
		defer (*buffer.Buffer).Free(text)
		return slices.Clone(text.Bytes())
	})
	return nil
}

// Sync implements [zapcore.Core].
func (*feedCore) Sync() error { return nil }

// eventEncoder writes the fields of an event, with its time.
var eventEncoder = zapcore.NewJSONEncoder(zapcore.EncoderConfig{
	TimeKey: "time", EncodeTime: zapcore.TimeEncoder(func(t time.Time, enc zapcore.PrimitiveArrayEncoder) {
		enc.AppendString(t.UTC().Format(time.RFC3339Nano))
	}),
	EncodeDuration: zapcore.SecondsDurationEncoder, SkipLineEnding: true,
})

// serveEvents answers GET /oauth/events with the events from now on, until the caller goes away or
// the configuration is replaced. A browser then asks the next one by itself.
func serveEvents(w http.ResponseWriter, r *http.Request) error {
	app, err := readAdminGet(w, r)
	if err != nil {
		return err
	}
	names := r.URL.Query()["event"]
	if len(names) > maxWatchedNames {
		return adminError(http.StatusBadRequest, "name at most %d events", maxWatchedNames)
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	if r.Method == http.MethodHead {
		return nil
	}
	watcher, ok := events.watch(names)
	if !ok {
		w.Header().Set("Retry-After", retryAfter)
		return adminError(http.StatusServiceUnavailable, "%d watch already", maxWatchers)
	}
	defer events.leave(watcher)
	control := http.NewResponseController(w)
	// Caddy's admin server gives a request ten seconds to be read, and takes their end for the caller's.
	_ = control.SetReadDeadline(time.Time{})
	watcher.send(r.Context(), app.ctx.Done(), func(text []byte, last bool) error {
		_ = control.SetWriteDeadline(time.Now().Add(watcherTimeout))
		if _, err := w.Write(text); err != nil || !last { //nolint:gosec // no browser takes an event stream for a page
			return err
		}
		return control.Flush()
	})
	return nil
}

// send sends events by write until ctx or the configuration ends, or write fails, which is told when
// there is nothing more to be sent for now.
func (w *eventWatcher) send(ctx context.Context, ended <-chan struct{}, write func(text []byte, last bool) error) {
	pulse := time.NewTicker(watcherPulse)
	defer pulse.Stop()
	if write([]byte("retry: 1000\n\n"), true) != nil {
		return
	}
	for {
		var text []byte
		select {
		case <-ctx.Done():
			return
		case <-ended:
			return
		case <-pulse.C:
			text = []byte(":\n\n")
		case e := <-w.unsent:
			text = append(append(append(append([]byte("event: "), e.name...), "\ndata: "...), e.data...), "\n\n"...)
		}
		last := len(w.unsent) == 0
		if last {
			if n := w.dropped.Swap(0); n > 0 {
				text = append(strconv.AppendInt(append(text, "event: dropped\ndata: {\"count\":"...), n, 10), "}\n\n"...)
			}
		}
		if write(text, last) != nil {
			return
		}
	}
}
