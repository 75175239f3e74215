package verifiers

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// outside does things for a test that runs by a clock of its own. Verifiers keep keys for ten minutes
// or an hour, so they run in a bubble of package synctest, where time passes when nobody has anything
// to do. The gateway is outside, as are connections to it: what a bubble waits for by the channels
// of an outside, which are made before it, stops its clock.
type outside struct {
	ask  chan func()
	done chan struct{}
	// cache is on everybody's way to the gateway, as that of a content delivery network is. It keeps what
	// an answer allows it to keep, by the clock of the bubble.
	cache map[string]cached
}

type cached struct {
	*http.Response
	body  []byte
	until time.Time
}

// inBubble runs a test by a clock that begins now.
func inBubble(t *testing.T, test func(t *testing.T, out outside)) {
	t.Helper()
	out := outside{make(chan func()), make(chan struct{}), make(map[string]cached)}
	go func() {
		for do := range out.ask {
			do()
			out.done <- struct{}{}
		}
	}()
	defer close(out.ask)
	now := time.Now()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(now))
		test(t, out)
	})
}

// do does something outside and waits until it is done.
func (o outside) do(what func()) {
	o.ask <- what // whoever comes second waits here
	<-o.done
}

// client returns an HTTP client for the bubble. It can only get documents, one at a time.
func (o outside) client() *http.Client {
	return &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		target, now := r.URL.String(), time.Now()
		var answer cached
		var err error
		// It makes a request of its own: the contexts and channels of the bubble are nobody else's.
		o.do(func() { answer, err = o.get(target, now) })
		if err != nil {
			return nil, err
		}
		res := *answer.Response
		res.Request, res.Body = r, io.NopCloser(bytes.NewReader(answer.body))
		return &res, nil
	})}
}

// get gets a document from the gateway or from the cache.
func (o outside) get(target string, now time.Time) (answer cached, err error) {
	if answer, ok := o.cache[target]; ok && now.Before(answer.until) {
		return answer, nil
	}
	if answer.Response, err = http.Get(target); err != nil {
		return answer, err
	}
	defer answer.Body.Close()
	answer.body, err = io.ReadAll(answer.Body)
	if _, text, ok := strings.Cut(answer.Header.Get("Cache-Control"), "public, max-age="); ok && err == nil {
		var seconds int
		seconds, err = strconv.Atoi(text)
		answer.until = now.Add(time.Duration(seconds) * time.Second)
		o.cache[target] = answer
	}
	return answer, err
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
