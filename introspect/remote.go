package introspect

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Remote is a [Source] of tokens issued by a remote authorization server. It asks the server
// about each of them (RFC 7662).
//
// A token is active if the server says so in an answer that makes sense, and if a bearer may
// use it. A token with cnf is bound to a key whose possession the bearer has to prove; see
// RemoteConfig.AcceptBound. One with a token_type other than Bearer, or DPoP if it is bound so,
// can't be used here. A token that the server calls a refresh or ID token is not for resources. Answers are read
// liberally where they are clear: a number may be a string, null means absent, an exp of 0
// or less says nothing. An answer that makes no sense, such as "active":"true" or an exp of
// 1e308, is an error, never a "no" and never a "yes".
//
// Whether the server is down and whether it has a sensible answer about one token are two
// questions, because anybody can send tokens that make a server fail. An error is
// [ErrOutage] if there was no connection, no answer in time, or status 429, 502, 503 or 504.
// But if there was a connection, up to three other tokens that were active lately are asked
// about, if there are any, and the error is ErrOutage only if they get no answer either.
// After several failures in a row, Remote leaves the server alone for a while; see
// RemoteConfig.MaxFailures. Every other failure concerns only its token; it is remembered for
// a second and harms no other. If a server fails that way for everybody, it is left alone
// too, once it fails for tokens of at least two clients that it called active in the last ten
// minutes. For all this, Remote keeps the latest tokens of three clients.
//
// Remote remembers no other answers: put a [Cache] in front, with [Cache.WrapWith] and
// [Remote.Name]. Cache-Control in answers is ignored: servers say no-store, and how late a
// revocation may arrive is the decision of the cache's owner.
//
// It is safe for concurrent use. End it with [Remote.Close], which also ends the goroutines
// that it runs while it asks about tokens that were active.
type Remote struct {
	*remoteServer
	timeout time.Duration
}

// remoteServer is what all Remotes of one server share; see [Remote.WithTimeout].
type remoteServer struct {
	cfg           RemoteConfig
	shown         string // the endpoint for error texts, without its query
	authorization string // the header value for client_secret_basic
	client        *http.Client
	circuit       circuit

	denied atomic.Bool            // see Denied
	failed atomic.Pointer[string] // see LastError

	good   remembered[struct{}]     // tokens that were active
	faulty remembered[*RemoteError] // tokens that got no sensible answer

	// Some of the concurrent requests are reserved for tokens that were active lately, in known:
	// other tokens can be made up, and each may keep the server busy for long.
	first, known lane

	// patience is the longest timeout of any caller: a caller in a greater hurry must not decide
	// for the others that the server is down. It counts up to defaultRemoteTimeout, which is how
	// long a cache waits.
	patience  atomic.Int64
	witnesses witnesses
	ctx       context.Context // for asking about witnesses; ends with Close
	cancel    context.CancelFunc
	checks    sync.WaitGroup
	closing   sync.Mutex // so that no check begins while Close waits for the last one
	closed    atomic.Bool
}

// lane is where requests wait for their turn.
type lane struct {
	slots   chan struct{} // requests under way
	waiting chan struct{} // lookups that wait for a slot
}

const (
	// maxRetryAfter limits how long a server can keep us away, and thus the harm of a mistake there.
	maxRetryAfter = time.Minute
	// maxIdle is how long idle connections are kept for the next request.
	maxIdle = 30 * time.Second
	// maxDial bounds the time to connect. Connecting goes on after the request that wanted it is over.
	maxDial = 5 * time.Second
	// faultAge is how long a token that got no sensible answer is not asked about again: long
	// for a client that retries at once, short for a server that had a hiccup.
	faultAge = time.Second
	// goodAge is how long a token that was active may use the reserved requests.
	goodAge = time.Hour

	defaultRemoteTimeout = 2 * time.Second
)

// Available reports whether the server may be asked now. It is false while the server is left
// alone, and true again when that time is over, although only the next request can tell whether
// the server is back. It asks nobody.
func (r *Remote) Available() bool {
	_, ok := r.circuit.asks(r.cfg.Now())
	return ok
}

// Denied reports whether the server answered the latest requests with [RemoteCredentials], and none
// sensibly since. The credentials are then probably wrong; but some servers say that of a token.
func (r *Remote) Denied() bool { return r.denied.Load() }

// LastError returns why the latest request to the server failed, or nil if the server answered it. A
// token may have made it fail. Its text is that of a [RemoteError].
func (r *Remote) LastError() error {
	if text := r.failed.Load(); text != nil {
		return errors.New(*text)
	}
	return nil
}

// NewRemote creates a source that asks the introspection endpoint of cfg. It sends nothing
// yet. An error means that the configuration is wrong.
func NewRemote(cfg RemoteConfig) (*Remote, error) {
	endpoint, err := cfg.complete()
	if err != nil {
		return nil, fmt.Errorf("remote token source: %w", err)
	}
	r := &Remote{&remoteServer{
		cfg:     cfg,
		shown:   place(endpoint),
		circuit: circuit{most: cfg.MaxFailures, pause: cfg.OpenFor, changed: cfg.OnCircuit},
	}, cfg.Timeout}
	r.patience.Store(int64(cfg.Timeout))
	r.ctx, r.cancel = context.WithCancel(context.Background())
	for i, lane := range []*lane{&r.first, &r.known} {
		size := [...]int{cfg.MaxConcurrent - cfg.MaxConcurrent/4, cfg.MaxConcurrent / 4}[i]
		lane.slots, lane.waiting = make(chan struct{}, size), make(chan struct{}, size)
	}
	if cfg.Auth == "client_secret_basic" {
		var req http.Request
		req.Header = http.Header{}
		req.SetBasicAuth(url.QueryEscape(cfg.ClientID), url.QueryEscape(cfg.ClientSecret))
		r.authorization = req.Header.Get("Authorization")
	}
	dialer := &net.Dialer{Timeout: maxDial}
	r.client = &http.Client{
		Transport: &http.Transport{
			Proxy:                  cfg.Proxy,
			DialContext:            dialer.DialContext,
			TLSClientConfig:        cfg.TLS.Clone(),
			TLSHandshakeTimeout:    maxDial,
			MaxIdleConnsPerHost:    cfg.MaxConcurrent,
			IdleConnTimeout:        maxIdle,
			MaxResponseHeaderBytes: 64 << 10,
			// The size of a compressed answer does not bound what it unpacks to.
			DisableCompression: true,
			ForceAttemptHTTP2:  true,
			// Without pings, requests keep going into a connection that a firewall has forgotten, for
			// a quarter of an hour.
			HTTP2: &http.HTTP2Config{SendPingTimeout: maxDial, PingTimeout: maxDial},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return r, nil
}

// WithTimeout returns the same source with another Timeout. It shares everything else, such
// as connections and what is known about the server, and ends with r.
func (r *Remote) WithTimeout(timeout time.Duration) *Remote {
	timeout = cmp.Or(timeout, defaultRemoteTimeout)
	for {
		longest := r.patience.Load()
		if int64(timeout) <= longest || r.patience.CompareAndSwap(longest, int64(timeout)) {
			return &Remote{r.remoteServer, timeout}
		}
	}
}

// Name returns a name for [Cache.Wrap]. It covers the settings by which a server may answer
// differently, or its answers be read differently: URL, ClientID, Header, Issuer,
// ClientClaims, ScopeClaims and Leeway. Remotes that differ in any of them never share cache
// entries; one with the same settings finds them again. The name does not cover TLS and
// HeaderFunc: if the endpoint tells callers apart by their certificates or by what HeaderFunc
// returns, add something to it. It is a digest and reveals nothing of the settings.
func (r *Remote) Name() string {
	parts := []string{"remote", r.cfg.URL, r.cfg.ClientID, r.cfg.Issuer, CacheName(r.cfg.ClientClaims...), CacheName(r.cfg.ScopeClaims...), r.cfg.Leeway.String()}
	var names []string
	for name := range r.cfg.Header {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		parts = append(parts, name, CacheName(r.cfg.Header[name]...))
	}
	digest := sha256.Sum256([]byte(CacheName(parts...)))
	return "remote " + hex.EncodeToString(digest[:])
}

// Close closes the idle connections and forgets the tokens that were kept. Later lookups still
// work, and keep none.
func (r *Remote) Close() {
	r.closing.Lock()
	r.closed.Store(true)
	r.closing.Unlock()
	r.cancel()
	r.checks.Wait()
	r.witnesses.clear()
	r.client.CloseIdleConnections()
}

// Screen reports whether token can be sent as a bearer token at all: at most MaxTokenLength of
// the characters in RFC 6750 section 2.1.
func (r *Remote) Screen(token Token) (Token, bool) { return token, isBearerToken(token.text) }

// WhyNot implements [Explainer].
func (r *Remote) WhyNot(Token) Cause { return CauseMalformed }

func isBearerToken(token string) bool {
	if token == "" || len(token) > MaxTokenLength {
		return false
	}
	body := strings.TrimRight(token, "=")
	for i := range len(body) {
		c := body[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_', c == '~', c == '+', c == '/':
		default:
			return false
		}
	}
	return body != ""
}

// Lookup asks the server about token. An error is a [*RemoteError], [ErrBusy], or the error of
// ctx.
func (r *Remote) Lookup(ctx context.Context, token Token) (*Facts, error) {
	if !isBearerToken(token.text) {
		return InactiveBecause(CauseMalformed), nil
	}
	// Before waiting for a place: those who hold one may be stuck.
	if wait, ok := r.circuit.asks(r.cfg.Now()); !ok {
		return nil, r.fails(RemoteCircuitOpen, 0, "", wait)
	}
	id := token.ID()
	if err, ok := r.faulty.get(id, r.cfg.Now(), faultAge); ok {
		return nil, err
	}
	slots, err := r.enter(ctx, id)
	if err != nil {
		return nil, err
	}
	defer func() { <-slots }()
	turn, wait, ok := r.circuit.enter(r.cfg.Now())
	if !ok {
		return nil, r.fails(RemoteCircuitOpen, 0, "", wait)
	}
	// The circuit must hear of it whatever happens: a probe that never ends would be the last.
	outcome := circuitUnknown
	var failure *RemoteError
	defer func() { r.leave(id, turn, outcome, failure) }()

	begin := time.Now()
	var facts *Facts
	facts, failure = r.ask(ctx, token)
	took := time.Since(begin)
	if failure == nil {
		outcome = circuitWell
		r.count(facts, took)
		if facts.Active && !r.closed.Load() {
			r.good.put(id, r.cfg.Now(), struct{}{})
			r.witnesses.add(facts, token, r.cfg.Now())
		} else {
			r.witnesses.drop(id)
		}
		return facts, nil
	}
	// A caller who goes away, or who is in a greater hurry than the configuration, says nothing
	// about the server. Otherwise five of them could close it for everybody.
	if ctx.Err() != nil && (errors.Is(ctx.Err(), context.Canceled) || took < min(r.timeout, defaultRemoteTimeout)/2) {
		r.cfg.OnRequest(RemoteCanceled, took)
		return nil, ctx.Err()
	}
	if failure.Kind == RemoteCredentials {
		r.denied.Store(true)
	}
	text := failure.Error()
	r.failed.Store(&text)
	outcome = failure.outcome()
	if outcome == circuitFault {
		r.faulty.put(id, r.cfg.Now(), failure)
	}
	r.cfg.OnRequest(failure.Kind, took)
	return nil, failure
}

// Inquire asks the server about token as Lookup does, once. It takes no place from lookups,
// leaves the circuit and what is remembered of tokens as they are, and is not reported to
// OnRequest. If the server is left alone, it isn't asked. See [Inquirer].
func (r *Remote) Inquire(ctx context.Context, token Token) (*Facts, error) {
	if !isBearerToken(token.text) {
		return InactiveBecause(CauseMalformed), nil
	}
	if wait, ok := r.circuit.asks(r.cfg.Now()); !ok {
		return nil, r.fails(RemoteCircuitOpen, 0, "", wait)
	}
	if err, ok := r.faulty.get(token.ID(), r.cfg.Now(), faultAge); ok {
		return nil, err
	}
	facts, failure := r.ask(ctx, token)
	if failure != nil {
		return nil, failure
	}
	return facts, nil
}

// count reports an answer to OnRequest. It makes sense, so the server knows us.
func (r *Remote) count(facts *Facts, took time.Duration) {
	r.denied.Store(false)
	r.failed.Store(nil)
	if facts.Active {
		r.cfg.OnRequest(RemoteActive, took)
	} else {
		r.cfg.OnRequest(RemoteInactive, took)
	}
}

// leave tells the circuit how the request about a token ended, and starts asking about the
// witnesses if they have to decide what that means. A failure of one token is no outage.
func (r *Remote) leave(id TokenID, turn int, outcome circuitOutcome, failure *RemoteError) {
	now, pause := r.cfg.Now(), time.Duration(0)
	if failure != nil {
		pause = failure.RetryAfter
	}
	var beside []witness
	if outcome == circuitUnwell || outcome == circuitFault {
		beside = r.witnesses.beside(id, now)
	}
	check, outage := r.circuit.leave(turn, now, outcome, pause, len(beside))
	if outcome == circuitUnwell {
		failure.outage = outage
	}
	if !check {
		return
	}
	r.closing.Lock()
	defer r.closing.Unlock()
	if r.closed.Load() {
		r.circuit.checked(turn, now, circuitUnknown, 0)
		return
	}
	r.checks.Go(func() { r.check(turn, beside, pause) })
}

// check asks about all witnesses at once, and tells the circuit the result.
func (r *Remote) check(turn int, beside []witness, pause time.Duration) {
	outcome := circuitUnwell
	// Whatever happens; see Lookup.
	defer func() {
		if r.ctx.Err() != nil {
			outcome = circuitUnknown
		}
		r.circuit.checked(turn, r.cfg.Now(), outcome, pause)
	}()
	patient := &Remote{r.remoteServer, max(r.timeout, min(time.Duration(r.patience.Load()), defaultRemoteTimeout))}
	failures := make(chan *RemoteError, len(beside))
	for _, w := range beside {
		r.checks.Go(func() {
			begin := time.Now()
			facts, failure := patient.ask(r.ctx, w.token)
			switch took := time.Since(begin); {
			case failure != nil && r.ctx.Err() != nil:
				r.cfg.OnRequest(RemoteCanceled, took)
			case failure != nil:
				r.cfg.OnRequest(failure.Kind, took)
			default:
				r.count(facts, took)
				if !facts.Active {
					r.witnesses.drop(w.token.ID())
				}
			}
			failures <- failure
		})
	}
	for range beside {
		failure := <-failures
		if failure == nil {
			outcome = circuitWell
			return // the others end by themselves
		}
		if failure.outcome() == circuitFault {
			outcome = circuitFault
		}
		pause = max(pause, failure.RetryAfter)
	}
}

// enter takes one of the places for concurrent requests and returns the channel to give it
// back to, or ErrBusy.
func (r *Remote) enter(ctx context.Context, id TokenID) (chan struct{}, error) {
	better, waiting := chan struct{}(nil), r.first.waiting // a nil channel never has a place
	if _, ok := r.good.get(id, r.cfg.Now(), goodAge); ok && cap(r.known.slots) > 0 {
		better, waiting = r.known.slots, r.known.waiting
	}
	select {
	case r.first.slots <- struct{}{}:
		return r.first.slots, nil
	default:
	}
	select {
	case better <- struct{}{}:
		return better, nil
	default:
	}
	select {
	case waiting <- struct{}{}:
		defer func() { <-waiting }()
	default:
		return nil, ErrBusy
	}
	timeout := time.NewTimer(r.timeout)
	defer timeout.Stop()
	select {
	case r.first.slots <- struct{}{}:
		return r.first.slots, nil
	case better <- struct{}{}:
		return better, nil
	case <-ctx.Done():
	case <-timeout.C:
	}
	return nil, ErrBusy
}
