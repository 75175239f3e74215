package caddyoauth

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func newFeed() *eventFeed { return &eventFeed{watchers: make(map[*eventWatcher]struct{})} }

// A watcher that is too slow loses events and is told how many, and holds up nobody. One that hears
// nothing else hears something every 15 seconds. All of that ends with it.
func TestSlowWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := newFeed()
		slow, _ := feed.watch(nil)
		quick, _ := feed.watch(nil)
		logger := zap.New(&feedCore{feed: feed}).With(zap.String("bound", "b"))
		var mu sync.Mutex
		var got strings.Builder
		received := func() string { // since the last time
			mu.Lock()
			defer mu.Unlock()
			defer got.Reset()
			return got.String()
		}
		read := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			slow.send(ctx, nil, func(text []byte, _ bool) error {
				<-read
				mu.Lock()
				defer mu.Unlock()
				got.Write(text)
				return nil
			})
		}()
		synctest.Wait() // it is stuck with the first line
		for range maxUnsent + 5 {
			logger.Info("something", zap.String("event", "happened"), zap.Int("n", 1))
		}
		logger.Info("no event")
		logger.Debug("too fine", zap.String("event", "happened"))
		if len(slow.unsent) != maxUnsent || len(quick.unsent) != maxUnsent {
			t.Fatalf("%d and %d wait, want %d", len(slow.unsent), len(quick.unsent), maxUnsent)
		}
		close(read)
		synctest.Wait()
		text := received()
		if n := strings.Count(text, "event: happened\ndata: {\"time\":\""); n != maxUnsent || !strings.Contains(text, `"bound":"b","event":"happened","n":1}`) {
			t.Errorf("%d events: %.300s", n, text)
		}
		if !strings.HasSuffix(text, "\n\nevent: dropped\ndata: {\"count\":5}\n\n") {
			t.Errorf("it ends with %q", text[len(text)-60:])
		}
		time.Sleep(31 * time.Second)
		if text := received(); text != ":\n\n:\n\n" {
			t.Errorf("in half a minute it hears %q", text)
		}
		cancel()
		<-done
	})
}

// There is a bound to how many watch. While nobody does, nothing is even built.
func TestWatchersAreBounded(t *testing.T) {
	t.Parallel()
	feed := newFeed()
	core := &feedCore{feed: feed}
	if core.Enabled(zapcore.ErrorLevel) {
		t.Error("it takes events that nobody wants")
	}
	var all []*eventWatcher
	for range maxWatchers {
		w, ok := feed.watch([]string{"other"})
		if !ok {
			t.Fatalf("watcher %d is refused", len(all)+1)
		}
		all = append(all, w)
	}
	if _, ok := feed.watch(nil); ok {
		t.Error("there is no bound")
	}
	if !core.Enabled(zapcore.InfoLevel) || core.Enabled(zapcore.DebugLevel) {
		t.Error("it takes other levels than info and above")
	}
	feed.hand("happened", func() []byte { t.Error("encoded for nobody"); return nil })
	for _, w := range all {
		feed.leave(w)
	}
	if core.Enabled(zapcore.ErrorLevel) || len(feed.watchers) != 0 {
		t.Error("it goes on")
	}
}

// A watcher that doesn't receive is given up, and so is one whose configuration ends.
func TestWatchersEnd(t *testing.T) {
	t.Parallel()
	feed := newFeed()
	w, _ := feed.watch(nil)
	w.send(t.Context(), nil, func([]byte, bool) error { return errors.New("gone") })
	ended := make(chan struct{})
	close(ended)
	w.send(t.Context(), ended, func([]byte, bool) error { return nil })
}
