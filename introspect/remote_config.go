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
