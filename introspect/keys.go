package introspect

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Keys are the public keys of an issuer, for any number of [JWT] sources. Each source decides
// what it accepts; the keys are fetched once for all of them.
//
// One goroutine fetches them, from the moment [NewKeys] returns until [Keys.Close]; the files of all
// guarded keys share one. The last
// good set is kept until it is replaced, for as long as the Keys live: while the issuer is
// down, its tokens stay good. For guarded keys, that ends after 20 minutes.
type Keys struct {
	cfg    KeysConfig
	client *http.Client

	// current is the set in use; nil until the first one has arrived. Sets never change. Use set,
	// which knows whether it still counts.
	current atomic.Pointer[keySet]
	// confirmed is when current was last fetched, in Unix nanoseconds.
	confirmed atomic.Int64

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	done   chan struct{} // closed when the goroutine has ended
	// wake asks the goroutine to fetch, with the values of the context of the lookup that wants
	// it; has room for one.
	wake chan context.Context
	// waiting bounds the lookups that wait for a fetch.
	waiting chan struct{}

	mu sync.Mutex
	// flight is closed when the fetch that is under way or requested has ended. It is nil if
	// there is none.
	flight  chan struct{}
	ended   time.Time // when the latest fetch ended
	failure error     // and how; nil if it succeeded
	// users are the sources that use the keys.
	users map[*JWT]struct{}
	// joined tells the goroutine that there is another user; has room for one.
	joined chan struct{}

	// For whoever fetches alone: the digest of what current was made from, and which of the two
	// places last had the issuer's metadata.
	digest   [sha256.Size]byte
	metadata int
}

// KeysConfig are the settings of [Keys]. Issuer and exactly one of Discovery, JWKSURI, KeysFile and
// Set are required; the zero value of each other field is its default.
type KeysConfig struct {
	// Issuer is the issuer that the keys belong to, and what the iss of their tokens must be,
	// byte for byte: a slash at the end or upper case in the host makes another issuer. It is a
	// single issuer, not a pattern. If Guarded, it may be any name.
	Issuer string

	// Discovery finds the keys through the issuer's metadata. Each refresh asks for it at
	// /.well-known/oauth-authorization-server, inserted before Issuer's path (RFC 8414), and at
	// Issuer with /.well-known/openid-configuration appended, until one of them has it, starting
	// with the one that had it last. The issuer in the document must be Issuer, byte for byte.
	// Its jwks_uri follows the rules of JWKSURI and may be on another host. Issuer itself must
	// then be a URL that follows those rules.
	Discovery bool

	// JWKSURI is where the issuer publishes its keys: an https URL, or http if the host is
	// localhost or a loopback address. Redirects are not followed.
	JWKSURI string

	// KeysFile is the path of a file with the keys, for issuers that can't be reached: a JWK set,
	// or PEM with public keys and certificates, of which only the key counts. Keys in PEM have no
	// kid, so they are tried for tokens with any kid. The file is read again every MinRefresh.
	// Replace it by renaming. If it is written in place, half of it may be read, which does no
	// harm: what can't be parsed changes nothing.
	KeysFile string

	// Set is a JWK set, for keys that stay as they are. All of them must be usable.
	Set string

	// MinRefresh is how long after a fetch no other fetch begins, whatever arrives: 1s to 1m. A
	// token with an unknown kid causes a fetch and waits for it; within MinRefresh of the last
	// fetch it gets its answer at once. So MinRefresh bounds how late a new key becomes known.
	// Until there are any keys it is 250ms, and tokens wait for the fetch. Default: 5s, or 1m if
	// Guarded.
	MinRefresh time.Duration

	// Guarded is for keys of those who are not trusted otherwise, and in whose name anybody can ask,
	// such as clients that authenticate by their own keys:
	//
	//   - Only public addresses are connected to, and those of PrivateHosts, whatever a name resolves
	//     to and a document says. No proxy is used, since it would connect for us.
	//   - Whatever arrives, fetches are MinRefresh apart; until there are any keys, attempts follow
	//     each other after 250ms, 500ms and so on.
	//   - Only the first fetch is waited for. A token with an unknown kid causes one and is refused:
	//     the time of an answer would tell whose keys are known here.
	//   - Keys count for 20 minutes after they were last fetched.
	//   - A file is read before NewKeys returns, and looked at every 5 seconds after that.
	Guarded bool

	// PrivateHosts are the hosts that guarded keys may come from although their addresses are not
	// public, or may not be: names, without a port, or addresses. They are the hosts of URLs, which
	// are compared before they are resolved. Default: none, not even localhost.
	PrivateHosts []string

	// SPIFFE has Issuer be a SPIFFE trust domain, such as spiffe://example.org, and the keys be those of
	// its bundle whose use is jwt-svid. Its tokens are JWT-SVIDs: instead of iss, which may say anything,
	// their sub counts, which is a SPIFFE ID in that trust domain. There is no Discovery.
	SPIFFE bool

	// Timeout bounds one fetch including discovery, whose requests share it. Default: 5s.
	Timeout time.Duration

	// Header is sent with each request, for issuers that require an API key. It goes to the host
	// of JWKSURI or, with Discovery, of Issuer, and to other hosts that a document names only if
	// they are in HeaderHosts.
	Header http.Header

	// HeaderFunc is called for each request that Header goes with and returns further headers,
	// for credentials that change while the program runs. If it returns an error, or a header
	// that can't be sent, nothing is sent. Its error must not contain a secret.
	HeaderFunc func() (http.Header, error)

	// HeaderHosts are further hosts to which Header is sent, over https, if a document names
	// them: with a port if the URL has one. Default: none.
	HeaderHosts []string

	// TLS is how connections are secured. Default: the system's certificate authorities.
	TLS *tls.Config

	// Now is the wall clock. Default: time.Now.
	Now func() time.Time

	// OnFetch is called after each attempt to get something. kind is "discovery", "jwks" or
	// "file"; err is nil if it was got and made sense. OnKeys is called for each set that becomes
	// the current one and differs from the one before, with the number of keys that can be used
	// by some source, and with the keys that no source can use. Both must return at once.
	OnFetch func(kind string, took time.Duration, err error)
	OnKeys  func(n int, ignored []IgnoredKey)

	// OnSend, if set, is called with each request just before it is sent, as in
	// [RemoteConfig.OnSend]. The request has the values of the context of the lookup that wants
	// the keys; those that are fetched because it is time have none. The document may have named
	// the host that the request goes to. kind is "ok" or one of RemoteTimeout, RemoteRefused,
	// RemoteStatus, RemoteRedirect and RemoteTooLarge.
	OnSend func(req *http.Request) (done func(status int, kind string))

	// transport, in tests, stands in for the network.
	transport http.RoundTripper
}

const (
	// defaultRefresh is how often keys are fetched unless a source says otherwise.
	defaultRefresh = 15 * time.Minute
	// firstPause is the pause between fetches until the first one succeeds.
	firstPause = 250 * time.Millisecond
	// maxBackoff is the longest pause between two attempts that fail.
	maxBackoff = time.Minute
	// maxWaiting is how many lookups may wait for a fetch. The others get ErrBusy: made-up kids
	// and a slow issuer must not take all places that a cache has for lookups.
	maxWaiting = 64
	// maxKeysSize is how much of a document is read, in bytes.
	maxKeysSize = 512 << 10
)

var (
	errKeysClosed = errors.New("the keys are closed")
	errKeysSize   = fmt.Errorf("more than %d bytes", maxKeysSize)
)

// NewKeys starts fetching the keys. It does not wait for them, so it succeeds while the issuer
// is down. An error here means that the configuration is wrong. End them with [Keys.Close].
func NewKeys(cfg KeysConfig) (*Keys, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if cfg.transport == nil {
		transport := &http.Transport{
			Proxy:                  proxyForHTTPS(),
			TLSClientConfig:        cfg.TLS.Clone(),
			ForceAttemptHTTP2:      true,
			MaxResponseHeaderBytes: 64 << 10,
			// An idle connection would stay open for a quarter of an hour, and outlive Close.
			DisableKeepAlives: true,
		}
		if cfg.Guarded {
			transport.Proxy, transport.DialContext = nil, dialPublic(cfg.PrivateHosts)
		}
		cfg.transport = transport
	}
	k := &Keys{
		cfg: cfg,
		client: &http.Client{
			Transport: cfg.transport,
			// With a redirect, whoever can cause one could choose the keys, or make this host call
			// an address that only it can reach.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		done:    make(chan struct{}),
		wake:    make(chan context.Context, 1),
		waiting: make(chan struct{}, maxWaiting),
		flight:  make(chan struct{}), // for the first fetch, which is about to begin
		users:   make(map[*JWT]struct{}),
		joined:  make(chan struct{}, 1),
	}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	switch {
	case cfg.Set != "":
		close(k.done)
		return k, k.accept([]byte(cfg.Set), parseKeys)
	case cfg.watched():
		close(k.done)
		watched.add(k)
	default:
		go k.keep()
	}
	return k, nil
}

// watched reports whether the keys are in a file that is looked at together with others.
func (cfg *KeysConfig) watched() bool { return cfg.Guarded && cfg.KeysFile != "" }

// fetched reports whether the keys come from a server.
func (cfg *KeysConfig) fetched() bool { return cfg.Discovery || cfg.JWKSURI != "" }

// Read returns how many keys of a set or a file fit one of the algorithms, whose default is as for a
// [JWT], and the keys that can't be used by any. It reports what NewKeys would, and that the file can't
// be read or has no key that can be used. For other keys, it returns 0.
func (cfg KeysConfig) Read(algorithms []string) (fitting int, ignored []IgnoredKey, err error) {
	if err := cfg.complete(); err != nil || cfg.fetched() {
		return 0, nil, err
	}
	if len(algorithms) == 0 {
		algorithms = DefaultAlgorithms()
	}
	data := []byte(cfg.Set)
	if cfg.KeysFile != "" {
		if data, err = readKeysFile(cfg.KeysFile); err != nil {
			return 0, nil, err
		}
	}
	set, ignored, err := cfg.parser(parseKeysFile)(data)
	if err != nil {
		return 0, nil, err
	}
	return set.fitting(algorithms), ignored, nil
}

// Check reports what NewKeys would refuse, and starts nothing.
func (cfg KeysConfig) Check() error { return cfg.complete() }

// complete checks the settings and fills in the defaults.
func (cfg *KeysConfig) complete() error {
	if cfg.Issuer == "" {
		return errors.New("JWT source: Issuer is required")
	}
	failed := func(err error) error {
		if cfg.Guarded {
			return fmt.Errorf("the keys of %q: %w", cfg.Issuer, err)
		}
		return fmt.Errorf("JWT source for %q: %w", cfg.Issuer, err)
	}
	if strings.ContainsAny(cfg.Issuer, "*{}") && (!cfg.Guarded || cfg.Discovery) {
		return failed(errors.New("an issuer is not a pattern: each tenant is an issuer of its own and needs a source of its own"))
	}
	ways := 0
	for _, way := range []bool{cfg.Discovery, cfg.JWKSURI != "", cfg.KeysFile != "", cfg.Set != ""} {
		if way {
			ways++
		}
	}
	if ways != 1 {
		return failed(errors.New("exactly one of Discovery, JWKSURI, KeysFile and Set must be set"))
	}
	if cfg.Discovery {
		issuer, err := endpoint(cfg.Issuer)
		if err != nil {
			return failed(fmt.Errorf("the issuer can't be asked for its metadata: %w", err))
		}
		if issuer.RawQuery != "" || issuer.ForceQuery {
			return failed(errors.New("an issuer has no query"))
		}
	}
	if cfg.JWKSURI != "" {
		if _, err := endpoint(cfg.JWKSURI); err != nil {
			return failed(fmt.Errorf("JWKSURI: %w", err))
		}
	}
	if cfg.Set != "" {
		if _, ignored, err := parseKeys([]byte(cfg.Set)); err != nil {
			return failed(err)
		} else if len(ignored) > 0 {
			return failed(errors.New(ignored[0].String()))
		}
	}
	if err := cmp.Or(cfg.checkSPIFFE(), cfg.guard()); err != nil {
		return failed(err)
	}
	if cfg.MinRefresh == 0 {
		cfg.MinRefresh = 5 * time.Second
	}
	if cfg.MinRefresh < time.Second || cfg.MinRefresh > time.Minute {
		return failed(fmt.Errorf("minimum refresh interval %v: must be between 1s and 1m", cfg.MinRefresh))
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.Timeout < 0 {
		return failed(fmt.Errorf("timeout %v: must not be negative", cfg.Timeout))
	}
	cfg.Header = cfg.Header.Clone()
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.OnFetch == nil {
		cfg.OnFetch = func(string, time.Duration, error) {}
	}
	if cfg.OnKeys == nil {
		cfg.OnKeys = func(int, []IgnoredKey) {}
	}
	return nil
}

// endpoint parses a URL that keys may come from. Whoever can change its answers can sign
// tokens, so it must be https, or must not leave this host.
func endpoint(s string) (*url.URL, error) {
	// The errors contain only what place keeps of the URL: the rest may be secret.
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, errors.New("the URL can't be parsed")
	case u.Host == "" || u.Opaque != "":
		return nil, errors.New("not a URL with a host")
	case u.User != nil:
		return nil, errors.New("the URL must not have a user name or password")
	case u.Fragment != "":
		return nil, fmt.Errorf("%q must not have a fragment", place(u))
	case u.Scheme != "https" && !(u.Scheme == "http" && loopback(u.Hostname())):
		return nil, fmt.Errorf("%q must be https, or http to a loopback address", place(u))
	}
	return u, nil
}

// loopback reports whether host is this machine.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Close ends the goroutine and waits for it. Sources keep using the keys that are known.
// Close may be called twice.
func (k *Keys) Close() {
	k.cancel()
	<-k.done
	if k.cfg.watched() {
		watched.remove(k)
	}
}

// set returns the set in use, or nil if there is none, or none that still counts.
func (k *Keys) set() *keySet {
	if k.cfg.Guarded && k.cfg.fetched() && k.cfg.Now().Sub(time.Unix(0, k.confirmed.Load())) > guardedAge {
		return nil
	}
	return k.current.Load()
}

// join makes j one of the users.
func (k *Keys) join(j *JWT) {
	k.mu.Lock()
	k.users[j] = struct{}{}
	k.mu.Unlock()
	if set := k.set(); set != nil {
		j.cfg.OnKeys(set.fitting(j.cfg.Algorithms))
	}
	select {
	case k.joined <- struct{}{}:
	default: // the signal that is pending covers both
	}
}

func (k *Keys) leave(j *JWT) {
	k.mu.Lock()
	delete(k.users, j)
	k.mu.Unlock()
}

// interval returns how often the keys are fetched: as often as the most demanding source wants.
func (k *Keys) interval() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.users) == 0 {
		return defaultRefresh
	}
	shortest := time.Duration(math.MaxInt64)
	for j := range k.users {
		shortest = min(shortest, j.cfg.RefreshInterval)
	}
	return max(shortest, k.cfg.MinRefresh)
}

// refresh waits for a fetch of the keys and returns its error. Within MinRefresh of the last
// fetch it requests no other and returns the error of that one, unless there are no keys at
// all. It requests guarded keys without waiting, unless none were ever fetched.
func (k *Keys) refresh(ctx context.Context) error {
	if k.cfg.Set != "" || k.cfg.watched() {
		return nil // there are no others yet
	}
	k.mu.Lock()
	if k.flight == nil {
		if k.cfg.Now().Sub(k.ended) < k.cfg.MinRefresh && (k.cfg.Guarded || k.set() != nil) {
			defer k.mu.Unlock()
			return k.failure
		}
		k.flight = make(chan struct{})
		k.wake <- context.WithoutCancel(ctx) // there is room: it is drained while there is a flight
	}
	flight, first := k.flight, k.ended.IsZero()
	k.mu.Unlock()
	if k.cfg.Guarded && !first {
		return nil
	}

	select {
	case k.waiting <- struct{}{}:
		defer func() { <-k.waiting }()
	default:
		return ErrBusy
	}
	select {
	case <-flight:
	case <-ctx.Done():
		return ctx.Err()
	case <-k.ctx.Done():
		return errKeysClosed
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failure
}

// lastError returns how the latest fetch ended.
func (k *Keys) lastError() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failure
}

// leastPause returns the least time between two fetches. Without any keys it is short: the
// issuer may be starting at the same time as this program, and all its tokens wait.
func (k *Keys) leastPause() time.Duration {
	if k.set() == nil {
		return firstPause
	}
	return k.cfg.MinRefresh
}

// keep is the goroutine that fetches the keys. Nothing else does.
func (k *Keys) keep() {
	defer close(k.done)
	backoff, cause := k.leastPause(), context.Background()
	for k.ctx.Err() == nil {
		k.mu.Lock()
		if k.flight == nil {
			k.flight = make(chan struct{})
		}
		select {
		case cause = <-k.wake: // requested, and about to be done
		default:
		}
		k.mu.Unlock()

		good, err := k.fetch(cause)

		k.mu.Lock()
		k.ended, k.failure = k.cfg.Now(), err
		close(k.flight)
		k.flight = nil
		k.mu.Unlock()

		if err != nil {
			good = backoff
			backoff = max(k.leastPause(), min(2*backoff, maxBackoff, k.interval()))
		} else {
			backoff = k.cfg.MinRefresh
		}
		cause = k.rest(good) //nolint:fatcontext // another request's; none is made from the one before
	}
}

// rest waits until the next fetch is requested, or is due because good or the interval is
// over. As long as there are no keys at all, requests wait for an attempt that comes
// firstPause after the last one: often the issuer has started just after this program, or is
// served by it.
//
// It returns the context of the lookup that wants the next fetch, or one without values.
func (k *Keys) rest(good time.Duration) (cause context.Context) {
	cause = context.Background()
	for begin := time.Now(); ; {
		timer := time.NewTimer(min(good, k.interval()) - time.Since(begin))
		select {
		case <-k.joined: // the new user may want it sooner
			timer.Stop()
			continue
		case <-k.ctx.Done():
		case cause = <-k.wake:
			timer.Stop()
			if k.set() == nil {
				k.waitFor(firstPause - time.Since(begin))
			}
		case <-timer.C:
		}
		timer.Stop()
		return cause
	}
}

// waitFor returns after d, or when the keys are closed.
func (k *Keys) waitFor(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-k.ctx.Done():
	}
}

// fetch gets the keys and makes them the current ones. It returns how long they may be used
// before the next fetch. Its requests have the values of cause; they end with Close.
func (k *Keys) fetch(cause context.Context) (good time.Duration, err error) {
	// Outside data is parsed here, in a goroutine that nobody watches.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("fetching keys panicked: %v", r)
		}
	}()
	ctx, cancel := context.WithTimeout(cause, k.cfg.Timeout)
	defer cancel()
	defer context.AfterFunc(k.ctx, cancel)()

	if k.cfg.KeysFile != "" {
		return k.cfg.MinRefresh, k.observed("file", func() error {
			data, err := readKeysFile(k.cfg.KeysFile)
			if err != nil {
				return err
			}
			return k.accept(data, k.cfg.parser(parseKeysFile))
		})
	}
	uri := k.cfg.JWKSURI
	if k.cfg.Discovery {
		err := k.observed("discovery", func() (err error) {
			uri, err = k.discover(ctx)
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	err = k.observed("jwks", func() error {
		data, header, err := k.get(ctx, uri)
		if err != nil {
			return err
		}
		good = k.goodFor(header)
		return k.accept(data, k.cfg.parser(parseKeys))
	})
	return good, err
}

// observed runs f and reports the result to OnFetch.
func (k *Keys) observed(kind string, f func() error) error {
	begin := time.Now()
	err := f()
	k.cfg.OnFetch(kind, time.Since(begin), err)
	return err
}

// parser returns what reads the keys: usual, unless they are a bundle.
func (cfg *KeysConfig) parser(usual func([]byte) (*keySet, []IgnoredKey, error)) func([]byte) (*keySet, []IgnoredKey, error) {
	if cfg.SPIFFE {
		return parseBundle
	}
	return usual
}

// accept makes the keys that parse finds in data the current ones.
func (k *Keys) accept(data []byte, parse func([]byte) (*keySet, []IgnoredKey, error)) error {
	digest := sha256.Sum256(data)
	if digest == k.digest {
		k.confirmed.Store(k.cfg.Now().UnixNano())
		return nil // they are already
	}
	set, ignored, err := parse(data)
	if err != nil {
		return err
	}
	k.digest = digest
	k.confirmed.Store(k.cfg.Now().UnixNano())
	if k.cfg.Guarded {
		set.most = maxGuardedTried
		set.announce()
	}
	k.current.Store(set)
	k.cfg.OnKeys(len(set.keys), ignored)
	k.mu.Lock()
	users := slices.Collect(maps.Keys(k.users))
	k.mu.Unlock()
	for _, j := range users {
		j.cfg.OnKeys(set.fitting(j.cfg.Algorithms))
	}
	return nil
}

// discover returns the jwks_uri from the issuer's metadata.
func (k *Keys) discover(ctx context.Context) (string, error) {
	issuer, err := endpoint(k.cfg.Issuer)
	if err != nil {
		return "", err
	}
	origin, path := issuer.Scheme+"://"+issuer.Host, strings.TrimSuffix(issuer.EscapedPath(), "/")
	places := [...]string{
		origin + "/.well-known/oauth-authorization-server" + path,
		origin + path + "/.well-known/openid-configuration",
	}
	var failures []error
	for i := range places {
		which := (k.metadata + i) % len(places)
		// Two places and the keys share the time, so that one that hangs leaves the others theirs.
		attempt, cancel := context.WithTimeout(ctx, remaining(ctx)/time.Duration(len(places)+1-i))
		uri, err := k.readMetadata(attempt, places[which])
		cancel()
		if err == nil {
			k.metadata = which
			return uri, nil
		}
		failures = append(failures, err)
	}
	return "", errors.Join(failures...)
}

// remaining is how much time ctx has left.
func remaining(ctx context.Context) time.Duration {
	deadline, _ := ctx.Deadline()
	return time.Until(deadline)
}

// readMetadata returns the jwks_uri from the document at from, if it is the issuer's.
func (k *Keys) readMetadata(ctx context.Context, from string) (string, error) {
	data, _, err := k.get(ctx, from)
	if err != nil {
		return "", err
	}
	document, ok := decodeObject(data)
	if !ok {
		return "", fmt.Errorf("%s is not a JSON object", from)
	}
	if document["issuer"] != k.cfg.Issuer {
		// RFC 8414 section 3.3. Otherwise another tenant of that host could answer for this one.
		return "", fmt.Errorf("%s is the metadata of %.256q", from, document["issuer"])
	}
	uri, _ := document["jwks_uri"].(string)
	uri = strings.Clone(uri) // so that it doesn't hold on to the whole document
	if _, err := endpoint(uri); err != nil {
		return "", fmt.Errorf("jwks_uri in %s: %w", from, err)
	}
	return uri, nil
}

// get returns the answer of uri, if its status is 200 and it is not too large.
func (k *Keys) get(ctx context.Context, uri string) ([]byte, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return nil, nil, err
	}
	if k.sendsHeader(req.URL) {
		if err := k.setHeader(req.Header); err != nil {
			return nil, nil, fmt.Errorf("asking %s: %w", place(req.URL), err)
		}
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	status, kind := 0, "ok"
	if k.cfg.OnSend != nil {
		done := k.cfg.OnSend(req)
		defer func() { done(status, kind) }()
	}
	resp, err := k.client.Do(req)
	if err != nil {
		kind = brokenKind(err)
		return nil, nil, fmt.Errorf("asking %s: %s", place(req.URL), networkTrouble(err))
	}
	defer resp.Body.Close()
	status = resp.StatusCode
	switch {
	case status == http.StatusOK:
	case status/100 == 3:
		kind = RemoteRedirect
		where := "somewhere"
		if to, err := resp.Location(); err == nil {
			where = place(to)
		}
		return nil, nil, fmt.Errorf("%s answered %d with a redirect to %s, which is not followed: if the keys are there, configure that", place(req.URL), status, where)
	default:
		kind = RemoteStatus
		return nil, nil, fmt.Errorf("%s answered %d", place(req.URL), status)
	}
	data, err := readKeys(resp.Body)
	switch {
	case errors.Is(err, errKeysSize):
		kind = RemoteTooLarge
		return nil, nil, fmt.Errorf("reading %s: %w", place(req.URL), err)
	case err != nil:
		kind = brokenKind(err)
		return nil, nil, fmt.Errorf("reading %s: %s", place(req.URL), networkTrouble(err))
	}
	return data, resp.Header, nil
}

// brokenKind returns the kind of a network error, as for a Remote.
func brokenKind(err error) string {
	if outOfTime(err) {
		return RemoteTimeout
	}
	return RemoteRefused
}

// sendsHeader reports whether Header goes to u.
func (k *Keys) sendsHeader(u *url.URL) bool {
	own, err := url.Parse(cmp.Or(k.cfg.JWKSURI, k.cfg.Issuer))
	return err == nil && own.Scheme == u.Scheme && own.Host == u.Host ||
		u.Scheme == "https" && slices.ContainsFunc(k.cfg.HeaderHosts, func(host string) bool { return strings.EqualFold(host, u.Host) })
}

// setHeader copies Header and the result of HeaderFunc into header.
func (k *Keys) setHeader(header http.Header) error {
	for name, values := range k.cfg.Header {
		header[http.CanonicalHeaderKey(name)] = values
	}
	if k.cfg.HeaderFunc == nil {
		return nil
	}
	more, err := k.cfg.HeaderFunc()
	if err != nil {
		return err
	}
	for name, values := range more {
		if err := wellFormedHeader(name, values); err != nil {
			return err
		}
		header[http.CanonicalHeaderKey(name)] = values
	}
	return nil
}

// place returns u for error texts, without user and query, which may be secret.
func place(u *url.URL) string { return u.Scheme + "://" + u.Host + u.EscapedPath() }

// goodFor returns the max-age of the answer's Cache-Control, but not less than MinRefresh.
func (k *Keys) goodFor(header http.Header) time.Duration {
	for directive := range strings.SplitSeq(strings.Join(header.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		if !strings.EqualFold(name, "max-age") {
			continue
		}
		seconds, err := strconv.ParseInt(strings.Trim(value, `"`), 10, 32)
		if err != nil || seconds <= 0 {
			break
		}
		return max(time.Duration(seconds)*time.Second, k.cfg.MinRefresh)
	}
	return math.MaxInt64
}

// readKeysFile reads a file with keys.
func readKeysFile(path string) ([]byte, error) {
	// Opening a pipe would wait for a writer, and Close would wait with it.
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readKeys(f)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return data, nil
}

func readKeys(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxKeysSize+1))
	if err == nil && len(data) > maxKeysSize {
		err = errKeysSize
	}
	return data, err
}
