package introspect

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strconv"
	"time"
)

// Kinds of a [RemoteError]. There are no others, so they may serve as the label of a metric.
const (
	// RemoteTimeout means that there was no complete answer in time.
	RemoteTimeout = "timeout"
	// RemoteRefused means that there was no connection, or that it broke before the answer was
	// complete.
	RemoteRefused = "refused"
	// RemoteStatus means an answer with a status that has no kind of its own. With 502, 503 or
	// 504 the server is down; with any other it does not like this token.
	RemoteStatus = "status"
	// RemoteMalformed means an answer with status 2xx that makes no sense.
	RemoteMalformed = "malformed"
	// RemoteTooLarge means an answer of more than RemoteConfig.MaxAnswer bytes.
	RemoteTooLarge = "too_large"
	// RemoteRedirect means a redirect, which is never followed.
	RemoteRedirect = "redirect"
	// RemoteCredentials means status 401 or 403. Either the credentials in RemoteConfig are wrong
	// or may not introspect, and somebody has to act; or this token made the server say so.
	RemoteCredentials = "credentials"
	// RemoteThrottled means status 429.
	RemoteThrottled = "throttled"
	// RemoteCircuitOpen means that nothing was sent, because of earlier failures.
	RemoteCircuitOpen = "circuit_open"
)

// Further kinds for RemoteConfig.OnRequest, for requests that did not fail.
const (
	RemoteActive   = "active"
	RemoteInactive = "inactive"
	// RemoteCanceled means that the caller went away, or left the server too little time to count.
	RemoteCanceled = "canceled"
)

// RemoteError is why a [Remote] could not find out what a token means. Its text contains no
// token, no secret, and nothing of the answer's body or headers. It wraps the context's error
// if that ended the request.
type RemoteError struct {
	// Kind is one of the constants above, such as RemoteTimeout.
	Kind string
	// Status is the HTTP status of the answer, or 0.
	Status int
	// RetryAfter is how long to wait before asking again: what the server said, at most 60s, or
	// the time until the circuit lets a probe through. It is 0 if that is unknown.
	RetryAfter time.Duration

	endpoint string
	detail   string
	cause    error
	// outage: as far as this request can tell, the server is down. unreached: and the token has
	// nothing to do with it.
	outage, unreached bool
}

// Error says what failed at which endpoint.
func (e *RemoteError) Error() string {
	text := "asking " + e.endpoint + ": " + e.Kind
	if e.Status != 0 {
		text += " (" + strconv.Itoa(e.Status) + ")"
	}
	if e.detail != "" {
		text += ": " + e.detail
	}
	return text
}

// Unwrap returns the context's error, or nil.
func (e *RemoteError) Unwrap() error { return e.cause }

// Is reports whether target is ErrOutage and the error is one.
func (e *RemoteError) Is(target error) bool { return target == ErrOutage && e.outage }

// outcome returns what the error means to the circuit.
func (e *RemoteError) outcome() circuitOutcome {
	switch {
	case e.Kind == RemoteThrottled && e.RetryAfter > 0:
		return circuitSentAway
	case e.unreached:
		return circuitUnreached
	case e.outage:
		return circuitUnwell
	}
	return circuitFault
}

func (r *Remote) fails(kind string, status int, detail string, retryAfter time.Duration) *RemoteError {
	e := &RemoteError{Kind: kind, Status: status, RetryAfter: retryAfter, endpoint: r.shown, detail: detail}
	switch {
	case kind == RemoteTimeout, kind == RemoteRefused, kind == RemoteThrottled, kind == RemoteCircuitOpen,
		status == http.StatusBadGateway, status == http.StatusServiceUnavailable, status == http.StatusGatewayTimeout:
		e.outage = true
	}
	return e
}

// unsent returns the error for a request that could not even be made.
func (r *Remote) unsent(detail string) *RemoteError {
	e := r.fails(RemoteRefused, 0, detail, 0)
	e.unreached = true
	return e
}

// broken turns a network error into a RemoteError.
func (r *Remote) broken(err error, connected bool) *RemoteError {
	if outOfTime(err) {
		e := r.fails(RemoteTimeout, 0, "", 0)
		e.cause, e.unreached = context.DeadlineExceeded, !connected
		return e
	}
	e := r.fails(RemoteRefused, 0, networkTrouble(err), 0)
	e.unreached = !connected
	if errors.Is(err, context.Canceled) {
		e.cause = context.Canceled
	}
	return e
}

func outOfTime(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

// networkTrouble describes a network error in words that are known to be harmless: net/http
// quotes malformed answers in its errors, and a server may answer with the request that it
// got, which contains secrets.
func networkTrouble(err error) string {
	var operation *net.OpError // dialing, reading, writing, TLS alerts
	var name *net.DNSError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case errors.Is(err, context.Canceled):
		return "canceled"
	case outOfTime(err):
		return "no answer in time"
	case errors.As(err, &certificate):
		return certificate.Error()
	case errors.As(err, &operation):
		return operation.Error()
	case errors.As(err, &name):
		return name.Error()
	case errors.As(err, &record):
		return "the server does not speak TLS"
	}
	return "the connection broke"
}
