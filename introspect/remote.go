package introspect

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http/httpproxy"
)

// Remote is a Source of tokens that a remote authorization server issued. It asks the
// server about each of them (RFC 7662).
//
// A token is active if the server says so in an answer that makes sense, and if a bearer
// may use it: one with cnf, or of another token_type than Bearer, is bound to a key that
// the bearer would have to prove (RFC 9449 section 7.2, RFC 8705 section 3); one that the
// server calls a refresh or ID token is none for resources. Answers are read liberally
// where they are clear: a number may be a text, null is absent, an exp of 0 or less says
// nothing. One that makes no sense, such as "active":"true" or an exp of 1e308, is an
// error, never a "no" and never a "yes".
//
// Whether the server is away and whether a token gets a sensible answer are two things,
// because everybody may send tokens that make a server fail. An error is [ErrOutage] if
// there was no connection, no answer in time, or status 429, 502, 503 or 504; but where
// there was a connection, only if up to three other tokens that were active lately get no answer
// either, if there are such. After several failures in a row Remote leaves the server alone
// for a while; see RemoteConfig.MaxFailures. Every other answer is an error of that token
// alone, which is remembered for a second and harms no other. A server that fails that way
// for everybody is left alone, too, once it fails for tokens of two clients at least that
// it called active in the last ten minutes; Remote keeps the last tokens of three clients
// for all this.
//
// Remote remembers no other answers: put a [Cache] in front, with [Cache.WrapWith] and
// [Remote.Name]. Cache-Control in answers means nothing here: servers say no-store, and how
// late a revocation may arrive is for the cache's owner to say.
//
// It is safe for concurrent use. End it with [Remote.Close], which also ends the one
// goroutine that it may have, while it asks about tokens that were active.
type Remote struct {
	*remoteServer
	timeout time.Duration
}

// remoteServer is what all Remotes of one server share; see [Remote.WithTimeout].
type remoteServer struct {
	cfg           RemoteConfig
	shown         string // the endpoint for error texts, without its query
	authorization string // the header of client_secret_basic
	client        *http.Client
	circuit       circuit

	good   remembered[struct{}]     // tokens that were active
	faulty remembered[*RemoteError] // tokens that got no sensible answer

	// A part of the requests that may be under way is kept for tokens that were active
	// lately: others can be made up, and each may take the server long.
	first, known lane

	// patience is the longest timeout that anybody has had: who is in a greater hurry than
	// others must not decide for them that the server is away. It counts up to
	// defaultRemoteTimeout, which is as long as a cache waits.
	patience  atomic.Int64
	witnesses witnesses
	ctx       context.Context // of asking about them; ends with Close
	cancel    context.CancelFunc
	checks    sync.WaitGroup
	closing   sync.Mutex // so that no check begins when Close waits for the last one
	closed    atomic.Bool
}

// lane is where requests wait for their turn.
type lane struct {
	slots   chan struct{} // requests under way
	waiting chan struct{} // lookups that wait for a slot
}

// RemoteConfig are the settings of a Remote. URL is needed, and ClientID and ClientSecret
// unless Auth is none; the zero value of each other field is its default.
type RemoteConfig struct {
	// URL is the introspection endpoint: an https URL, or http if the host is localhost or
	// a loopback address. Redirects are not followed: the secret and the token would travel.
	URL string

	// InsecureHTTP allows http to any host. Then everybody on the way can read the client's
	// secret and all tokens, and call any token active. Default: false.
	InsecureHTTP bool

	// ClientID and ClientSecret are the credentials at the endpoint.
	ClientID, ClientSecret string

	// Auth is how they are sent: client_secret_basic (an Authorization header with both
	// form-urlencoded inside, RFC 6749 section 2.3.1), client_secret_post (in the body), or
	// none, for endpoints that want something else, which goes into Header or TLS, such as
	// a bearer token or a certificate. Default: client_secret_basic.
	Auth string

	// Header is sent with each request. Accept and the headers that describe the body or
	// the connection can't be set, nor can Authorization with client_secret_basic.
	Header http.Header

	// HeaderFunc is called for each request and returns more of them, for credentials that
	// change while the program runs. With an error, or a header that can't be set, nothing
	// is sent, as if there were no connection. Its error must hold no secret.
	HeaderFunc func() (http.Header, error)

	// Issuer, if set, is what iss in the answers must be, byte for byte; tokens of another
	// issuer are inactive. An answer without iss passes: the endpoint vouches for it.
	// Default: iss is not checked, so the server may name any.
	Issuer string

	// ClientClaims are the claims that name the client: the first that is there counts. Dots
	// lead into objects, as in [Facts.ClaimValues]. Default: client_id and azp, which must agree
	// where both are there; without either, appid or cid.
	ClientClaims []string

	// ScopeClaims are the claims that have the scopes: the first that is there counts. It is a
	// string with spaces, a list, or an object with scopes as names. Default: scope, scp.
	ScopeClaims []string

	// Leeway is how far the server's clock may be ahead when nbf is checked, at most 60s. It
	// never lengthens a token's life: the token is dead at exp. Default: 0.
	Leeway time.Duration

	// TLS is how connections are secured. Default: the system's certificate authorities.
	TLS *tls.Config

	// Proxy returns the proxy for a request, as in http.Transport. Default: for https what
	// HTTPS_PROXY and NO_PROXY say when the Remote is made, because the proxy sees no more
	// than the host; for http none, because it would read all secrets and tokens.
	Proxy func(*http.Request) (*url.URL, error)

	// Timeout bounds one request, from the connection to the last byte of the answer. Where
	// a Cache is in front, its LookupTimeout bounds it too. Default: 2s.
	Timeout time.Duration

	// MaxAnswer bounds the size of an answer in bytes; a larger one is an error. Default: 65536.
	MaxAnswer int64

	// MaxConcurrent bounds the requests that are under way at once. A quarter of them is
	// kept for tokens that were active lately, so that made-up ones don't take all. As many
	// lookups again wait for a place, until their context ends or Timeout has passed; these,
	// and whoever comes beyond that, end with ErrBusy. So a server that hangs holds at most
	// twice as many lookups, and leaves places in the cache for other sources. Default: 64.
	MaxConcurrent int

	// MaxFailures is after how many failures in a row the circuit opens: for OpenFor, or for
	// as long as a Retry-After in the last answer says, at most 60s, no request is sent and
	// lookups end with RemoteCircuitOpen at once. Then one request goes through as a probe.
	// If it gets an answer the circuit closes, else it is open as long again. Status 429 with
	// Retry-After opens it at the first time.
	//
	// A failure is no connection, no answer, or status 429, 502, 503 or 504, except that the
	// caller went away or gave the server less than half of Timeout or of 2s. Where there was
	// a connection, the token may still be what the server stumbled over. So up to three
	// other tokens that were active lately are asked about then, at most once a second, and
	// an answer about one of them ends the row. As many answers in a row that make no sense
	// have the same done, and open the circuit only if there are two such tokens or more.
	// Default: 5.
	MaxFailures int

	// OpenFor is how long the circuit stays open. Default: 5s.
	OpenFor time.Duration

	// Now is the clock by which tokens expire and the circuit opens and closes. Default:
	// time.Now.
	Now func() time.Time

	// OnRequest is called after each request: kind is RemoteActive,
	// RemoteInactive, RemoteCanceled or the Kind of the RemoteError. OnCircuit is called when
	// the circuit changes, which begins closed: state is "open", "half_open" while the probe
	// is under way, or "closed". Both must return at once, and OnCircuit must not call Lookup.
	OnRequest func(kind string, took time.Duration)
	OnCircuit func(state string)
}

// Kinds of a RemoteError. There are no others, so they can be the label of a metric.
const (
	// RemoteTimeout: there was no complete answer in time.
	RemoteTimeout = "timeout"
	// RemoteRefused: no connection, or it broke before the answer was complete.
	RemoteRefused = "refused"
	// RemoteStatus: an answer with a status that has no kind of its own here. With 502, 503
	// or 504 the server is away, with another it does not like this token.
	RemoteStatus = "status"
	// RemoteMalformed: an answer with status 2xx that makes no sense.
	RemoteMalformed = "malformed"
	// RemoteTooLarge: an answer of more than RemoteConfig.MaxAnswer bytes.
	RemoteTooLarge = "too_large"
	// RemoteRedirect: a redirect, which is never followed.
	RemoteRedirect = "redirect"
	// RemoteCredentials: status 401 or 403. The credentials in RemoteConfig are wrong, or
	// may not ask, and somebody has to do something about it; or this token made the server
	// say so.
	RemoteCredentials = "credentials"
	// RemoteThrottled: status 429.
	RemoteThrottled = "throttled"
	// RemoteCircuitOpen: nothing was sent, because of failures before.
	RemoteCircuitOpen = "circuit_open"
)

// Further kinds for RemoteConfig.OnRequest, of requests that did not fail.
const (
	RemoteActive   = "active"
	RemoteInactive = "inactive"
	// RemoteCanceled: who asked went away, or left the server too little time to count.
	RemoteCanceled = "canceled"
)

// RemoteError is why a Remote could not find out what a token means. Its text holds no
// token, no secret, and nothing of the answer's body or headers. With errors.Is it is the
// context's error if that ended the request.
type RemoteError struct {
	// Kind is one of the constants above.
	Kind string
	// Status is the answer's status, or 0.
	Status int
	// RetryAfter is after how long asking again may help: what the server said, at most
	// 60s, or what is left until the circuit lets a probe through. 0 if nobody knows.
	RetryAfter time.Duration

	endpoint string
	detail   string
	cause    error
	// outage: the server is away, by all that this request can tell. unreached: and the
	// token has no part in it.
	outage, unreached bool
}

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

// Is reports whether target is ErrOutage, and the error is one.
func (e *RemoteError) Is(target error) bool { return target == ErrOutage && e.outage }

// outcome is what it means to the circuit.
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

const (
	// maxRetryAfter bounds what a server can ask of us, so that a mistake there ends here.
	maxRetryAfter = time.Minute
	// maxIdle is how long connections are kept for the next request.
	maxIdle = 30 * time.Second
	// maxDial bounds making a connection, which goes on when the request that wanted it is over.
	maxDial = 5 * time.Second
	// faultAge is for how long a token that got no sensible answer is not asked about again:
	// long for a client that tries again at once, short for a server that stumbled.
	faultAge = time.Second
	// goodAge is for how long a token that was active is given the better places.
	goodAge = time.Hour

	defaultRemoteTimeout = 2 * time.Second
)

// NewRemote makes a source that asks the introspection endpoint of cfg. It sends nothing
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
			// What a few bytes unpack to is not bounded by what arrives.
			DisableCompression: true,
			ForceAttemptHTTP2:  true,
			// Without pings, requests go on into a connection that a firewall has forgotten,
			// for a quarter of an hour.
			HTTP2: &http.HTTP2Config{SendPingTimeout: maxDial, PingTimeout: maxDial},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return r, nil
}

// WithTimeout returns the same source with another Timeout. It shares all else, such as
// connections and what is known of the server, and ends with r.
func (r *Remote) WithTimeout(timeout time.Duration) *Remote {
	timeout = cmp.Or(timeout, defaultRemoteTimeout)
	for {
		longest := r.patience.Load()
		if int64(timeout) <= longest || r.patience.CompareAndSwap(longest, int64(timeout)) {
			return &Remote{r.remoteServer, timeout}
		}
	}
}

// proxyForHTTPS returns the one rule by which sources use a proxy: that of HTTPS_PROXY and
// NO_PROXY for https, which it carries through unread, and none for http.
func proxyForHTTPS() func(*http.Request) (*url.URL, error) {
	fromEnvironment := httpproxy.FromEnvironment().ProxyFunc()
	return func(r *http.Request) (*url.URL, error) {
		if r.URL.Scheme != "https" {
			return nil, nil
		}
		return fromEnvironment(r.URL)
	}
}

// Check reports what NewRemote would refuse.
func (cfg RemoteConfig) Check() error {
	_, err := cfg.complete()
	return err
}

// complete checks the settings and puts the defaults in.
func (cfg *RemoteConfig) complete() (*url.URL, error) {
	// The text of a parse error holds the URL, and that may hold a password.
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, errors.New("URL can't be parsed")
	}
	switch {
	case u.Host == "" || u.Opaque != "":
		return nil, errors.New("URL must have a host")
	case u.User != nil:
		return nil, errors.New("URL must not have a user name or password: use ClientID and ClientSecret")
	case u.Fragment != "":
		return nil, errors.New("URL must not have a fragment")
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, fmt.Errorf("URL of scheme %q: accepted are https and http", u.Scheme)
	case u.Scheme == "http" && !cfg.InsecureHTTP && !loopback(u.Hostname()):
		return nil, fmt.Errorf("URL must be https, because %q is not a loopback address; InsecureHTTP allows it", u.Hostname())
	}
	switch cfg.Auth {
	case "":
		cfg.Auth = "client_secret_basic"
	case "client_secret_basic", "client_secret_post", "none":
	default:
		return nil, fmt.Errorf("auth %q: accepted are client_secret_basic, client_secret_post and none", cfg.Auth)
	}
	if cfg.Auth == "none" && (cfg.ClientID != "" || cfg.ClientSecret != "") {
		return nil, errors.New("ClientID and ClientSecret are not sent with Auth none")
	}
	// An empty secret comes from a reference that leads nowhere.
	if cfg.Auth != "none" && (cfg.ClientID == "" || cfg.ClientSecret == "") {
		return nil, fmt.Errorf("%s needs ClientID and ClientSecret", cfg.Auth)
	}
	cfg.ClientClaims, cfg.ScopeClaims = slices.Clone(cfg.ClientClaims), slices.Clone(cfg.ScopeClaims)
	if err := errors.Join(checkClaimNames("ClientClaims", cfg.ClientClaims), checkClaimNames("ScopeClaims", cfg.ScopeClaims)); err != nil {
		return nil, err
	}
	cfg.Header = cfg.Header.Clone()
	if err := cfg.checkHeader(cfg.Header); err != nil {
		return nil, err
	}
	if cfg.Leeway < 0 || cfg.Leeway > maxLeeway {
		return nil, fmt.Errorf("leeway of %v: accepted are 0 to %v", cfg.Leeway, maxLeeway)
	}
	for _, number := range []struct {
		name    string
		value   *int64
		initial int64
	}{{"MaxAnswer", &cfg.MaxAnswer, 64 << 10}, {"Timeout", (*int64)(&cfg.Timeout), int64(defaultRemoteTimeout)}, {"OpenFor", (*int64)(&cfg.OpenFor), int64(5 * time.Second)}} {
		if *number.value < 0 {
			return nil, fmt.Errorf("%s is negative", number.name)
		}
		if *number.value == 0 {
			*number.value = number.initial
		}
	}
	if cfg.MaxConcurrent < 0 || cfg.MaxFailures < 0 {
		return nil, errors.New("MaxConcurrent or MaxFailures is negative")
	}
	if cfg.MaxConcurrent == 0 {
		cfg.MaxConcurrent = 64
	}
	if cfg.MaxFailures == 0 {
		cfg.MaxFailures = 5
	}
	if cfg.Proxy == nil {
		cfg.Proxy = proxyForHTTPS()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.OnRequest == nil {
		cfg.OnRequest = func(string, time.Duration) {}
	}
	if cfg.OnCircuit == nil {
		cfg.OnCircuit = func(string) {}
	}
	return u, nil
}

// checkHeader refuses headers that would not be sent as they stand. The transport refuses
// malformed ones as well, but with the value in its error.
func (cfg *RemoteConfig) checkHeader(header http.Header) error {
	for name, values := range header {
		switch canonical := http.CanonicalHeaderKey(name); canonical {
		case "Accept", "Accept-Encoding", "Connection", "Content-Encoding", "Content-Length", "Content-Type", "Expect",
			"Host", "Idempotency-Key", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
			return fmt.Errorf("header %s can't be set", canonical)
		case "Authorization":
			if cfg.Auth == "client_secret_basic" {
				return errors.New("header Authorization is taken by client_secret_basic")
			}
		}
		if err := wellFormedHeader(name, values); err != nil {
			return err
		}
	}
	return nil
}

// wellFormedHeader refuses what can't be sent. Its errors hold no value.
func wellFormedHeader(name string, values []string) error {
	if !httpguts.ValidHeaderFieldName(name) {
		return fmt.Errorf("header %q has no valid name", name)
	}
	for _, value := range values {
		if !httpguts.ValidHeaderFieldValue(value) {
			return fmt.Errorf("header: the value of %s has a control character", name)
		}
	}
	return nil
}

// Name is a name for [Cache.Wrap] that covers the settings by which one server may answer
// differently, or be understood differently: URL, ClientID, Header, Issuer, ClientClaims,
// ScopeClaims and Leeway. Remotes that differ in them never share what a cache holds, and one
// with the same settings finds it again. TLS and HeaderFunc are not covered: whose endpoint
// tells callers apart by their certificates or by what HeaderFunc returns joins something to
// the name.
// It is a digest and shows nothing of the settings.
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

// Close closes the idle connections, and forgets the tokens that were kept. Lookups that
// come later work, and keep none.
func (r *Remote) Close() {
	r.closing.Lock()
	r.closed.Store(true)
	r.closing.Unlock()
	r.cancel()
	r.checks.Wait()
	r.witnesses.clear()
	r.client.CloseIdleConnections()
}

// Screen reports whether token can be sent as a bearer token at all: the characters of
// RFC 6750 section 2.1, at most 16 KiB of them.
func (r *Remote) Screen(token Token) (Token, bool) { return token, isBearerToken(token.text) }

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

// Lookup asks the server about token. An error is a *RemoteError, ErrBusy, or ctx's.
func (r *Remote) Lookup(ctx context.Context, token Token) (*Facts, error) {
	if !isBearerToken(token.text) {
		return inactive, nil
	}
	// Before waiting for a place: those who hold one may be hanging.
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
	// Whatever happens, the circuit hears of it: a probe that nobody ends would be the last.
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
	// A caller who goes away, or is in a greater hurry than the configuration, says nothing
	// about the server: else five of them could close it for all.
	if ctx.Err() != nil && (errors.Is(ctx.Err(), context.Canceled) || took < min(r.timeout, defaultRemoteTimeout)/2) {
		r.cfg.OnRequest(RemoteCanceled, took)
		return nil, ctx.Err()
	}
	outcome = failure.outcome()
	if outcome == circuitFault {
		r.faulty.put(id, r.cfg.Now(), failure)
	}
	r.cfg.OnRequest(failure.Kind, took)
	return nil, failure
}

// count tells OnRequest of an answer.
func (r *Remote) count(facts *Facts, took time.Duration) {
	if facts.Active {
		r.cfg.OnRequest(RemoteActive, took)
	} else {
		r.cfg.OnRequest(RemoteInactive, took)
	}
}

// leave tells the circuit how the request about a token ended, and has the witnesses asked
// if they have to decide what that means. A failure of this token alone is no outage.
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

// check asks about witnesses, at once, and tells the circuit what came of it.
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

// enter takes a place among the requests that are under way, and returns where to give it
// back, or ErrBusy.
func (r *Remote) enter(ctx context.Context, id TokenID) (chan struct{}, error) {
	better, waiting := chan struct{}(nil), r.first.waiting // of nil nobody gets one
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

func (r *Remote) fails(kind string, status int, detail string, retryAfter time.Duration) *RemoteError {
	e := &RemoteError{Kind: kind, Status: status, RetryAfter: retryAfter, endpoint: r.shown, detail: detail}
	switch {
	case kind == RemoteTimeout, kind == RemoteRefused, kind == RemoteThrottled, kind == RemoteCircuitOpen,
		status == http.StatusBadGateway, status == http.StatusServiceUnavailable, status == http.StatusGatewayTimeout:
		e.outage = true
	}
	return e
}

// ask sends one request and understands the answer.
func (r *Remote) ask(ctx context.Context, token Token) (*Facts, *RemoteError) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	form := url.Values{"token": {token.text}, "token_type_hint": {"access_token"}}
	if r.cfg.Auth == "client_secret_post" {
		form.Set("client_id", r.cfg.ClientID)
		form.Set("client_secret", r.cfg.ClientSecret)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.cfg.URL, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, r.unsent("the request can't be made")
	}
	more, err := r.moreHeader()
	if err != nil {
		return nil, r.unsent(err.Error())
	}
	for _, header := range []http.Header{r.cfg.Header, more} {
		for name, values := range header {
			req.Header[http.CanonicalHeaderKey(name)] = values
		}
	}
	if r.authorization != "" {
		req.Header.Set("Authorization", r.authorization)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	// To the transport an empty list means that a POST may be repeated, and is not sent. The
	// server may close an idle connection just when the next request uses it; asking again
	// harms nobody.
	req.Header["Idempotency-Key"] = []string{}
	req.Close = r.closed.Load()
	defer func() {
		if r.closed.Load() {
			r.client.CloseIdleConnections() // this one may have come back after Close
		}
	}()

	resp, err := r.client.Do(req)
	if err != nil {
		return nil, r.broken(err, connected.Load())
	}
	defer resp.Body.Close()
	switch status := resp.StatusCode; {
	case status >= 200 && status < 300:
	case status >= 300 && status < 400:
		return nil, r.fails(RemoteRedirect, status, "", 0)
	case status == http.StatusBadRequest:
		return nil, r.fails(RemoteStatus, status, strings.TrimPrefix(r.encodingHint(), "; "), 0)
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return nil, r.fails(RemoteCredentials, status, "the server does not accept this client, or says so of this token"+r.encodingHint(), 0)
	case status == http.StatusTooManyRequests:
		return nil, r.fails(RemoteThrottled, status, "", r.retryAfter(resp))
	default:
		return nil, r.fails(RemoteStatus, status, "", r.retryAfter(resp))
	}
	if !saysJSON(resp.Header.Get("Content-Type")) {
		return nil, r.fails(RemoteMalformed, 0, "the answer's Content-Type is not one of JSON", 0)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, min(r.cfg.MaxAnswer, 1<<62)+1))
	if err != nil {
		return nil, r.broken(err, true)
	}
	if int64(len(body)) > r.cfg.MaxAnswer {
		return nil, r.fails(RemoteTooLarge, 0, fmt.Sprintf("more than %d bytes", r.cfg.MaxAnswer), 0)
	}
	facts, err := r.understand(body)
	if err != nil {
		return nil, r.fails(RemoteMalformed, 0, err.Error(), 0)
	}
	if facts.Active {
		facts.ID = token.ID()
	}
	return facts, nil
}

// moreHeader is what HeaderFunc returns, if that can be sent.
func (r *Remote) moreHeader() (http.Header, error) {
	if r.cfg.HeaderFunc == nil {
		return nil, nil
	}
	header, err := r.cfg.HeaderFunc()
	if err != nil {
		return nil, err
	}
	return header, r.cfg.checkHeader(header)
}

// unsent is the error of a request that could not even be made.
func (r *Remote) unsent(detail string) *RemoteError {
	e := r.fails(RemoteRefused, 0, detail, 0)
	e.unreached = true
	return e
}

// encodingHint says what to try with a server that takes the credentials of Basic as they
// come, if that makes a difference for these.
func (r *Remote) encodingHint() string {
	if r.cfg.Auth != "client_secret_basic" || url.QueryEscape(r.cfg.ClientID) == r.cfg.ClientID && url.QueryEscape(r.cfg.ClientSecret) == r.cfg.ClientSecret {
		return ""
	}
	return "; the ID or the secret has characters that are form-encoded before they are sent (RFC 6749 section 2.3.1): if this server does not decode them, try auth client_secret_post"
}

// saysJSON reports whether a Content-Type is one of JSON, or absent. A signed answer
// (RFC 9701) is none: its type ends in +jwt.
func saysJSON(contentType string) bool {
	if contentType == "" {
		return true
	}
	mediaType, _, err := mime.ParseMediaType(contentType)
	return err == nil && (mediaType == "application/json" || mediaType == "text/json" || strings.HasSuffix(mediaType, "+json"))
}

// broken makes an error of one from the network.
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

// networkTrouble says of an error from the network what is known to be harmless: net/http
// quotes malformed answers in its errors, and a server may answer with the request that it
// got, which holds secrets.
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

// retryAfter is what the answer's Retry-After says (RFC 9110 section 10.2.3), within bounds.
func (r *Remote) retryAfter(resp *http.Response) time.Duration {
	value := resp.Header.Get("Retry-After")
	if value == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(value, 10, 64); err == nil {
		return time.Duration(min(seconds, uint64(maxRetryAfter/time.Second))) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(r.cfg.Now()), 0), maxRetryAfter)
}

// understand makes facts of an answer (RFC 7662 section 2.2). Members that are null are
// taken as absent. Its errors name members, and quote nothing.
func (r *Remote) understand(body []byte) (*Facts, error) {
	answer, ok := decodeObject(body)
	if !ok {
		return nil, errors.New("the answer is not a JSON object, or is ambiguous")
	}
	switch active, ok := answer["active"].(bool); {
	case !ok:
		return nil, errors.New("active is not a boolean")
	case !active:
		return inactive, nil
	}
	for name, value := range answer {
		if value == nil {
			delete(answer, name)
		}
	}
	facts := &Facts{Active: true, Claims: string(bytes.TrimSpace(body))}

	var notBefore time.Time
	for name, at := range map[string]*time.Time{"exp": &facts.Expiry, "iat": &facts.IssuedAt, "nbf": &notBefore} {
		if value, present := answer[name]; present {
			// Wrong, exp must not become "for ever".
			if *at, ok = answeredDate(value); !ok {
				return nil, fmt.Errorf("%s is not a time", name)
			}
		}
	}
	if value, present := answer["sub"]; present {
		if facts.Subject, ok = nameText(value); !ok {
			return nil, errors.New("sub is not a string")
		}
	}
	for _, name := range []string{"iss", "token_type", "token_use", "typ"} {
		if value, present := answer[name]; present {
			if _, ok = value.(string); !ok {
				return nil, fmt.Errorf("%s is not a string", name)
			}
		}
	}
	facts.Issuer, _ = answer["iss"].(string)
	// Some servers send an empty list or text for a token without audience.
	if value, present := answer["aud"]; present && value != "" {
		if facts.Audience, ok = texts(value); !ok || slices.Contains(facts.Audience, "") {
			return nil, errors.New("aud is not a name or a list of names")
		}
	}
	if facts.ClientID, ok = clientOf(facts.Claims, r.cfg.ClientClaims); !ok {
		return nil, errors.New("the client is not a name, or two claims name different ones")
	}
	if facts.Scopes, ok = scopesOf(facts.Claims, r.cfg.ScopeClaims); !ok {
		return nil, errors.New("scope is not a list of scopes, or is too long")
	}

	now := r.cfg.Now()
	_, bound := answer["cnf"]
	switch {
	case !facts.Expiry.IsZero() && !now.Before(facts.Expiry),
		bound,
		otherKind(answer, false), // endpoints answer for refresh tokens too
		r.cfg.Issuer != "" && facts.Issuer != "" && facts.Issuer != r.cfg.Issuer:
		return inactive, nil
	}
	if usable := notBefore.Add(-r.cfg.Leeway); now.Before(usable) {
		return &Facts{notYet: usable}, nil
	}
	if facts.Issuer == "" {
		facts.Issuer = r.cfg.Issuer // for whom the endpoint is known to speak
	}
	return facts, nil
}

// answeredDate reads a NumericDate as servers send it: also as a text, and as a number that
// is not above zero where they know of no time, which is the zero time.
func answeredDate(value any) (time.Time, bool) {
	if text, ok := value.(string); ok {
		value = json.Number(text)
	}
	number, _ := value.(json.Number)
	digits, negative := strings.CutPrefix(number.String(), "-")
	at, ok := numericDate(json.Number(digits))
	if negative || at.Equal(time.Unix(0, 0)) {
		at = time.Time{}
	}
	return at, ok
}
