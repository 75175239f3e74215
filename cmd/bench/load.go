package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// requests returns the bytes of one request after another, and nil when there are no more. It must be
// safe for concurrent use.
type requests func() []byte

// repeat returns the same request for ever.
func repeat(request []byte) requests { return func() []byte { return request } }

// cycle returns each request in turn, for ever.
func cycle(all [][]byte) requests {
	var n atomic.Uint64
	return func() []byte { return all[(n.Add(1)-1)%uint64(len(all))] }
}

// once returns each request once.
func once(all [][]byte) requests {
	var n atomic.Uint64
	return func() []byte {
		if i := n.Add(1) - 1; i < uint64(len(all)) {
			return all[i]
		}
		return nil
	}
}

// atMost returns at most n requests.
func atMost(n int, next requests) requests {
	var taken atomic.Int64
	return func() []byte {
		if taken.Add(1) > int64(n) {
			return nil
		}
		return next()
	}
}

// load is a set of connections that are kept alive. Each sends the next request once it has read the
// answer to the last one: a closed loop, in which a slow server gets fewer requests. With HTTP/2, each
// of the streams of a connection does so.
type load struct {
	conns []*loadConn
}

type loadConn struct {
	sender
	foreign bool // see gateway
}

// sender is a connection, or its part in one, that carries one request at a time. Whatever ends it ends
// the whole connection.
type sender interface {
	// send sends a request and returns the answer, whose body is still to be read and closed.
	send(request []byte) (*http.Response, error)
	SetDeadline(time.Time) error
	Close() error
}

// streams is how many requests an HTTP/2 connection carries at a time.
const streams = 4

// dial opens the connections. Without TLS, and unless over asks for HTTP/2, they speak HTTP/1.1. The
// caller must Close them.
func dial(ctx context.Context, addr string, over *tls.Config, connections int) (*load, error) {
	l := new(load)
	for range connections {
		all, err := dialOne(ctx, addr, over)
		if err != nil {
			l.Close()
			return nil, err
		}
		for _, s := range all {
			l.conns = append(l.conns, &loadConn{sender: s})
		}
	}
	return l, nil
}

// dialOne opens one connection.
func dialOne(ctx context.Context, addr string, over *tls.Config) ([]sender, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if over == nil {
		return []sender{http1Conn{conn, bufio.NewReader(conn)}}, nil
	}
	secure := tls.Client(conn, over)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close() //nolint:errcheck // the other error says more
		return nil, fmt.Errorf("TLS: %w", err)
	}
	if len(over.NextProtos) == 0 {
		return []sender{http1Conn{secure, bufio.NewReader(secure)}}, nil
	}
	client, err := http2Client(ctx, addr, secure)
	if err != nil {
		conn.Close() //nolint:errcheck // as above
		return nil, err
	}
	return slices.Repeat([]sender{http2Stream{secure, client}}, streams), nil
}

// http1Conn is not an http.Client, which would use as much CPU time as the gateway, on a machine that
// both share.
type http1Conn struct {
	net.Conn
	r *bufio.Reader
}

func (c http1Conn) send(request []byte) (*http.Response, error) {
	if _, err := c.Write(request); err != nil {
		return nil, fmt.Errorf("sending a request: %w", err)
	}
	return http.ReadResponse(c.r, nil)
}

// http2Stream is one place on a connection that several share.
type http2Stream struct {
	net.Conn
	client *http.ClientConn
}

// http2Client returns the client of a connection on which HTTP/2 must have been agreed upon.
func http2Client(ctx context.Context, addr string, conn *tls.Conn) (*http.ClientConn, error) {
	if agreed := conn.ConnectionState().NegotiatedProtocol; agreed != "h2" {
		return nil, fmt.Errorf("the server does not speak HTTP/2, but %q", agreed)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	t := &http.Transport{
		DialTLSContext:     func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		Protocols:          protocols,
		DisableCompression: true,
	}
	return t.NewClientConn(ctx, "https", addr)
}

// send turns the request, whose bytes are those of HTTP/1.1, into one of HTTP/2.
func (s http2Stream) send(request []byte) (*http.Response, error) {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(request)))
	if err != nil {
		return nil, err
	}
	r.RequestURI, r.URL.Scheme, r.URL.Host = "", "https", r.Host
	return s.client.RoundTrip(r)
}

func (l *load) Close() {
	for _, c := range l.conns {
		c.Close() //nolint:errcheck // whatever is still unanswered is of no interest
	}
}

// patience is how long the requests of one run may take together, beyond the time that they have. The
// longest are those that fill a part of a file. If the gateway hangs, the run ends after that.
const patience = 5 * time.Minute

func (l *load) setDeadline(t time.Time) {
	for _, c := range l.conns {
		c.SetDeadline(t) //nolint:errcheck // fails if it is closed, as reading then does
	}
}

// sample is the result of one side of one round.
type sample struct {
	requests  int
	took      time.Duration
	latencies []time.Duration // sorted
	size      int             // of the body of an answer
}

// run sends requests until there are no more, or for the time most unless that is zero. Every answer
// must have status 200 and a body that check accepts; check must be safe for concurrent use. The
// first wrong answer ends the run.
func (l *load) run(ctx context.Context, next requests, most time.Duration, check func(body []byte) error) (sample, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	start := time.Now()
	l.setDeadline(start.Add(most + patience))
	// Reads take no context.
	defer context.AfterFunc(ctx, func() { l.setDeadline(start) })()
	outcomes := make([]sample, len(l.conns))
	var all sync.WaitGroup
	for i, c := range l.conns {
		all.Go(func() {
			if err := c.loop(ctx, next, start, most, check, &outcomes[i]); err != nil {
				cancel(err)
			}
		})
	}
	all.Wait()
	sum := sample{took: time.Since(start)}
	if ctx.Err() != nil {
		return sample{}, context.Cause(ctx)
	}
	for _, o := range outcomes {
		sum.latencies = append(sum.latencies, o.latencies...)
		sum.size = max(sum.size, o.size)
	}
	slices.Sort(sum.latencies)
	if sum.requests = len(sum.latencies); sum.requests == 0 {
		return sample{}, errors.New("no request was sent")
	}
	return sum, nil
}

func (c *loadConn) loop(ctx context.Context, next requests, start time.Time, most time.Duration, check func([]byte) error, to *sample) error {
	var body bytes.Buffer
	for before := start; ctx.Err() == nil && (most == 0 || before.Sub(start) < most); {
		request := next()
		if request == nil {
			break
		}
		body.Reset()
		if err := c.exchange(request, &body); err != nil {
			return err
		}
		if err := check(body.Bytes()); err != nil {
			return fmt.Errorf("%w, after %d correct answers on this connection", err, len(to.latencies))
		}
		now := time.Now()
		to.latencies = append(to.latencies, now.Sub(before))
		to.size = body.Len()
		before = now
	}
	return nil
}

// exchange sends a request and reads its answer.
func (c *loadConn) exchange(request []byte, body *bytes.Buffer) error {
	res, err := c.send(request)
	if err != nil {
		return fmt.Errorf("reading an answer: %w", err)
	}
	defer res.Body.Close()
	if _, err := body.ReadFrom(io.LimitReader(res.Body, 1<<20)); err != nil {
		return fmt.Errorf("reading the body of an answer: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		refused := statusError{code: res.StatusCode}
		if !c.foreign {
			// The challenge says why. Neither it nor the body of a refusal holds a secret.
			refused.said = fmt.Sprintf(": %s %.200s", res.Header.Get("WWW-Authenticate"), body)
		}
		return refused
	}
	if res.Close {
		return errors.New("the server closes a connection that should be kept alive")
	}
	return nil
}

// statusError is an answer with another status than 200.
type statusError struct {
	code int
	said string // by our own gateway; others may say anything
}

func (e statusError) Error() string {
	return fmt.Sprintf("status %d %s, want 200%s", e.code, http.StatusText(e.code), e.said)
}
