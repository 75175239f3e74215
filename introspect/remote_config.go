package introspect

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http/httpproxy"
)

// RemoteConfig are the settings of a [Remote]. URL is required, and so are ClientID and
// ClientSecret unless Auth is none; the zero value of each other field is its default.
type RemoteConfig struct {
	// URL is the introspection endpoint: an https URL, or http if the host is localhost or a
	// loopback address. Redirects are not followed, because the secret and the token would go
	// along.
	URL string

	// InsecureHTTP allows http to any host. Anybody on the way can then read the client's secret
	// and all tokens, and declare any token active. Default: false.
	InsecureHTTP bool

	// ClientID and ClientSecret are the credentials for the endpoint.
	ClientID, ClientSecret string

	// Auth is how they are sent: client_secret_basic (in an Authorization header, both
	// form-urlencoded as in RFC 6749 section 2.3.1), client_secret_post (in the body), or none,
	// for endpoints that want something else that goes into Header or TLS, such as a bearer
	// token or a certificate. Default: client_secret_basic.
	Auth string

	// Header is sent with each request. It can't set Accept, the headers that describe the body
	// or the connection, or, with client_secret_basic, Authorization.
	Header http.Header

	// HeaderFunc is called for each request and returns further headers, for credentials that
	// change while the program runs. If it returns an error, or a header that can't be set,
	// nothing is sent, as if there were no connection. Its error must not contain a secret.
	HeaderFunc func() (http.Header, error)

	// Issuer, if set, is what iss in the answers must be, byte for byte; tokens of other issuers
	// are inactive. An answer without iss passes: the endpoint vouches for it. Default: iss is
	// not checked, so the server may name any issuer.
	Issuer string

	// ClientClaims are the claims that name the client; the first one present counts. Dots lead
	// into objects, as in [Facts.ClaimValues]. Default: client_id and azp, which must agree if
	// both are present; without either, appid or cid.
	ClientClaims []string

	// ScopeClaims are the claims that hold the scopes; the first one present counts. It is a
	// string with spaces, a list, or an object with the scopes as member names.
	// Default: scope, scp.
	ScopeClaims []string

	// AcceptBound has tokens with cnf be active (RFC 8705 section 3.2, RFC 9449 section 6.2), if it
	// says x5t#S256 or jkt and nothing else. Whoever uses the facts must then check
	// [Facts.Confirmation]. Default: false; such tokens are inactive, since a program that doesn't
	// check would take a stolen one.
	AcceptBound bool

	// Leeway is how far ahead the server's clock may be when nbf is checked, at most 60s. It
	// never prolongs a token's life: the token is dead at exp. Default: 0.
	Leeway time.Duration

	// TLS is how connections are secured. Default: the system's certificate authorities.
	TLS *tls.Config

	// Proxy returns the proxy for a request, as in http.Transport. Default: for https, the values
	// of HTTPS_PROXY and NO_PROXY when the Remote is created, because the proxy sees only the
	// host; for http none, because it would read all secrets and tokens.
	Proxy func(*http.Request) (*url.URL, error)

	// Timeout bounds one request, from connecting to the last byte of the answer. Behind a
	// Cache, its LookupTimeout applies too. Default: 2s.
	Timeout time.Duration

	// MaxAnswer is the maximum size of an answer in bytes; a larger one is an error. Default: 65536.
	MaxAnswer int64

	// MaxConcurrent is the maximum number of concurrent requests. A quarter of them is reserved
	// for tokens that were active lately, so that made-up tokens can't take all. The same number
	// of lookups may wait for a place, until their context ends or Timeout has passed. Those
	// that got none, and all beyond that number, end with ErrBusy. So a server that hangs holds
	// at most twice as many lookups, and leaves the cache places for other sources. Default: 64.
	MaxConcurrent int

	// MaxFailures is the number of failures in a row after which the circuit opens. Then no
	// request is sent, and lookups fail at once with RemoteCircuitOpen, for OpenFor or for as
	// long as the last answer's Retry-After says, at most 60s. After that, one request goes
	// through as a probe. If it gets an answer, the circuit closes; otherwise it stays open for
	// as long again. Status 429 with Retry-After opens it at once.
	//
	// A failure is no connection, no answer, or status 429, 502, 503 or 504, unless the caller
	// went away or gave the server less than half of Timeout or of 2s. If there was a connection,
	// the token itself may have made the server fail. So up to three other tokens that were
	// active lately are asked about, at most once a second, and an answer about one of them ends
	// the row. The same number of answers in a row that make no sense triggers these questions
	// too, but then the circuit opens only if there are at least two such tokens. Default: 5.
	MaxFailures int

	// OpenFor is how long the circuit stays open. Default: 5s.
	OpenFor time.Duration

	// Now is the clock by which tokens expire and the circuit opens and closes.
	// Default: time.Now.
	Now func() time.Time

	// OnRequest is called after each request. kind is RemoteActive, RemoteInactive,
	// RemoteCanceled or the Kind of the RemoteError. OnCircuit is called when the circuit
	// changes; at first it is closed. state is "open", "half_open" while the probe is under way,
	// or "closed". Both must return at once, and OnCircuit must not call Lookup.
	OnRequest func(kind string, took time.Duration)
	OnCircuit func(state string)

	// OnSend, if set, is called with each request just before it is sent. The request has the
	// values of the context of the lookup that causes it; behind a Cache, lookups are shared, and
	// that is the first one's. OnSend may read the request and add headers that carry a trace.
	// The function that it returns is called once, when the answer has been read or there is
	// none: status is that of the answer, or 0, and kind is RemoteActive, RemoteInactive or the
	// Kind of the RemoteError. Both must return at once.
	OnSend func(req *http.Request) (done func(status int, kind string))
}

// Check reports what NewRemote would refuse.
func (cfg RemoteConfig) Check() error {
	_, err := cfg.complete()
	return err
}

// complete checks the settings and fills in the defaults.
func (cfg *RemoteConfig) complete() (*url.URL, error) {
	// The text of a parse error contains the URL, which may contain a password.
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
		return nil, fmt.Errorf("URL with scheme %q: must be https or http", u.Scheme)
	case u.Scheme == "http" && !cfg.InsecureHTTP && !loopback(u.Hostname()):
		return nil, fmt.Errorf("URL must be https, because %q is not a loopback address; InsecureHTTP allows http", u.Hostname())
	}
	switch cfg.Auth {
	case "":
		cfg.Auth = "client_secret_basic"
	case "client_secret_basic", "client_secret_post", "none":
	default:
		return nil, fmt.Errorf("auth %q: must be client_secret_basic, client_secret_post or none", cfg.Auth)
	}
	if cfg.Auth == "none" && (cfg.ClientID != "" || cfg.ClientSecret != "") {
		return nil, errors.New("with Auth none, ClientID and ClientSecret are not sent and must be empty")
	}
	// An empty secret comes from a reference to something that does not exist.
	if cfg.Auth != "none" && (cfg.ClientID == "" || cfg.ClientSecret == "") {
		return nil, fmt.Errorf("%s requires ClientID and ClientSecret", cfg.Auth)
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
		return nil, fmt.Errorf("leeway %v: must be between 0 and %v", cfg.Leeway, maxLeeway)
	}
	for _, number := range []struct {
		name    string
		value   *int64
		initial int64
	}{{"MaxAnswer", &cfg.MaxAnswer, 64 << 10}, {"Timeout", (*int64)(&cfg.Timeout), int64(defaultRemoteTimeout)}, {"OpenFor", (*int64)(&cfg.OpenFor), int64(5 * time.Second)}} {
		if *number.value < 0 {
			return nil, fmt.Errorf("%s must not be negative", number.name)
		}
		if *number.value == 0 {
			*number.value = number.initial
		}
	}
	if cfg.MaxConcurrent < 0 || cfg.MaxFailures < 0 {
		return nil, errors.New("MaxConcurrent and MaxFailures must not be negative")
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

// checkHeader refuses headers that would not be sent as they are. The transport refuses
// malformed ones too, but with the value in its error.
func (cfg *RemoteConfig) checkHeader(header http.Header) error {
	for name, values := range header {
		switch canonical := http.CanonicalHeaderKey(name); canonical {
		case "Accept", "Accept-Encoding", "Connection", "Content-Encoding", "Content-Length", "Content-Type", "Expect",
			"Host", "Idempotency-Key", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
			return fmt.Errorf("header %s can't be set", canonical)
		case "Authorization":
			if cfg.Auth == "client_secret_basic" {
				return errors.New("header Authorization can't be set: client_secret_basic uses it")
			}
		}
		if err := wellFormedHeader(name, values); err != nil {
			return err
		}
	}
	return nil
}

// wellFormedHeader refuses a header that can't be sent. Its errors contain no value.
func wellFormedHeader(name string, values []string) error {
	if !httpguts.ValidHeaderFieldName(name) {
		return fmt.Errorf("header %q: the name is not valid", name)
	}
	for _, value := range values {
		if !httpguts.ValidHeaderFieldValue(value) {
			return fmt.Errorf("header %s: the value has a control character", name)
		}
	}
	return nil
}

// proxyForHTTPS returns the rule by which all sources use a proxy: for https as HTTPS_PROXY
// and NO_PROXY say, since a proxy can't read it, and never for http.
func proxyForHTTPS() func(*http.Request) (*url.URL, error) {
	fromEnvironment := httpproxy.FromEnvironment().ProxyFunc()
	return func(r *http.Request) (*url.URL, error) {
		if r.URL.Scheme != "https" {
			return nil, nil
		}
		return fromEnvironment(r.URL)
	}
}
