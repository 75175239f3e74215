package caddyoauth

import (
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
)

// This file removes from requests what a caller must not tell a backend, and must not make the
// proxy do: who it is, the credentials that were meant for us, another path than the one
// that was judged, another protocol.

// foldedBytes maps a byte of a header's name to what the most careless backend makes of it:
// case never counts, and all bytes other than letters and digits are the same. CGI, WSGI and
// PHP turn - into _; lighttpd's mod_cgi and busybox's httpd turn all of these into _.
var foldedBytes = func() (folded [256]byte) {
	for i := range folded {
		switch c := byte(i); {
		case 'A' <= c && c <= 'Z':
			folded[i] = c + 'a' - 'A'
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
			folded[i] = c
		default:
			folded[i] = '-'
		}
	}
	return folded
}()

// hasFoldedPrefix reports whether a backend could read name as a name that begins with
// prefix, which is folded.
func hasFoldedPrefix(name, prefix string) bool {
	if len(name) < len(prefix) {
		return false
	}
	for i := range len(prefix) {
		if foldedBytes[name[i]] != prefix[i] {
			return false
		}
	}
	return true
}

// hasOddByte reports whether a header's name has a character that some backends read as -
// and nobody uses. Caddy itself drops names with _ and . for the same reason, unless it is
// told to expect them.
func hasOddByte(name string) bool {
	for i := range len(name) {
		if c := name[i]; foldedBytes[c] == '-' && c != '-' && c != '_' && c != '.' {
			return true
		}
	}
	return false
}

// isOneOf reports whether a backend could read name as one of names, which are folded.
func isOneOf(name string, names []string) bool {
	for _, folded := range names {
		if len(name) == len(folded) && hasFoldedPrefix(name, folded) {
			return true
		}
	}
	return false
}

// isIdentity reports whether a backend could read name as an identity header. The prefixes are
// folded; one that doesn't end with - is a whole name.
func isIdentity(name string, prefixes []string) bool {
	for _, prefix := range prefixes {
		if hasFoldedPrefix(name, prefix) && (len(name) == len(prefix) || strings.HasSuffix(prefix, "-")) {
			return true
		}
	}
	return false
}

var (
	// credentialHeaders carry the credentials that a caller shows to us.
	credentialHeaders = []string{"authorization", "proxy-authorization", "dpop"}

	// settingsHeader belongs to a switch to HTTP/2, and to nothing else (RFC 7540 section 3.2.1).
	settingsHeader = []string{"http2-settings"}

	// overrideHeaders make some backends use a path or method other than the request's, which
	// our matchers and rules have judged. They are meant for rewriting proxies and for clients
	// that can send only GET and POST.
	overrideHeaders = []string{
		// The path: rewriting modules of IIS, and so older Symfony, Drupal, Zend, Yii,
		// WordPress; nginx, as its auth_request is usually set up.
		"x-original-url", "x-rewrite-url", "x-original-uri",
		// What to cut off the front of the path: middleware for WSGI and others.
		"x-script-name", "x-forwarded-prefix",
		// The method: Rack and Rails, Symfony and Laravel, Express, ASP.NET, Jersey, Slim,
		// Plack; OData and SharePoint. Some of them only if they are configured to.
		"x-http-method-override", "x-http-method", "x-method-override",
	}
)

// overrideLengths has a bit for the length of each of the overrideHeaders. Most names are told from
// them by that alone.
var overrideLengths = func() (lengths uint64) {
	for _, name := range overrideHeaders {
		lengths |= 1 << len(name)
	}
	return lengths
}()

// isOverride reports whether name is an override header that the caller may not set. As Caddy
// does with X-Forwarded-For, it believes X-Forwarded-Prefix from a trusted proxy.
func isOverride(r *http.Request, name string) bool {
	if overrideLengths>>len(name)&1 == 0 || !isOneOf(name, overrideHeaders) {
		return false
	}
	trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool)
	return !trusted || !hasFoldedPrefix(name, "x-forwarded-")
}

// strip removes from a request's headers and trailers everything that begins with one of the
// prefixes, which are folded, in any spelling. If judged is set, it also removes the headers
// that carry credentials, whose names are folded, too; trailers lose those in any case. It
// removes every switch to another protocol except to a WebSocket. It also removes the override
// headers and returns them; most callers drop them. gone is what the request loses besides.
func strip(r *http.Request, prefixes, credentials []string, judged bool) (overrides http.Header, gone removed) {
	for name, values := range r.Header {
		switch {
		case isIdentity(name, prefixes):
			delete(r.Header, name)
			gone |= removedIdentity
		case isOneOf(name, settingsHeader), judged && isOneOf(name, credentials):
			delete(r.Header, name)
		case isOverride(r, name):
			if overrides == nil {
				overrides = make(http.Header)
			}
			overrides[name] = values
			delete(r.Header, name)
		}
	}
	if r.Header["Upgrade"] != nil && !opensWebSocket(r) {
		delete(r.Header, "Upgrade")
		gone |= removedUpgrade
	}
	cleanConnection(r.Header)
	guardTrailers(r, prefixes, credentials)
	return overrides, gone
}

// removed is what a request has lost that somebody should hear of: it was an attempt to pass
// for somebody else or to get past the gateway, or a client that relies on what can't work.
type removed uint8

const (
	removedIdentity removed = 1 << iota // a header that tells who is calling, or could be read as one
	removedUpgrade                      // a switch to another protocol
)

// causes returns the names of what was removed, for logs and metrics.
func (gone removed) causes() (causes []access.Cause) {
	if gone&removedIdentity != 0 {
		causes = append(causes, strippedIdentity)
	}
	if gone&removedUpgrade != 0 {
		causes = append(causes, strippedUpgrade)
	}
	return causes
}

const (
	strippedIdentity access.Cause = "identity_header"
	strippedUpgrade  access.Cause = "upgrade"
)

// opensWebSocket reports whether a request's Upgrade is for a WebSocket and nothing else. Such
// a request is a GET without a body (RFC 6455 section 4.1): a backend that takes the bytes after
// the header as those after the switch, and then doesn't switch, would find another request in
// a body.
func opensWebSocket(r *http.Request) bool {
	upgrade := r.Header["Upgrade"]
	return len(upgrade) == 1 && lowerASCII(upgrade[0]) == "websocket" && r.Method == http.MethodGet && r.ContentLength == 0
}

// stripServer is strip for all sites of a server, including those that have nothing to do with
// us: it removes identity headers, headers about a certificate that nobody believes, and switches to another HTTP. Such a switch would carry
// requests past Caddy to anything that the backend serves. It removes all names with an odd
// byte: Remote!User would become the Remote-User that an operator sets from the token.
func stripServer(r *http.Request, app *App) (gone removed) {
	for name := range r.Header {
		if strings.HasPrefix(name, ":") {
			continue // a pseudo-header of HTTP/2
		}
		if isIdentity(name, app.prefixes) || isOneOf(name, settingsHeader) || hasOddByte(name) || app.ClientCertificates.isMadeUp(r, name) {
			delete(r.Header, name)
			if !isOneOf(name, settingsHeader) {
				gone |= removedIdentity
			}
		}
	}
	if slices.ContainsFunc(r.Header["Upgrade"], leadsToHTTP) {
		delete(r.Header, "Upgrade")
		gone |= removedUpgrade
	}
	cleanConnection(r.Header)
	guardTrailers(r, app.prefixes, app.credentials)
	return gone
}

// leadsToHTTP reports whether a value of Upgrade contains anything that some backend reads as
// HTTP/2, or as TLS with another HTTP inside (RFC 2817).
func leadsToHTTP(value string) bool {
	value = strings.ToLower(value)
	return strings.Contains(value, "h2") || strings.Contains(value, "http") || strings.Contains(value, "tls")
}

// cleanConnection leaves in Connection only what is still needed. A proxy removes the headers
// that Connection names, and it must not remove one that we or the operator have set.
func cleanConnection(h http.Header) {
	lines := h["Connection"]
	harmless := func(word string) bool {
		switch lowerASCII(strings.Trim(word, " \t")) { // EqualFold would take the sign for kelvin for k
		case "keep-alive", "close", "te":
			return true
		case "upgrade":
			return h["Upgrade"] != nil
		}
		return false
	}
	if !slices.ContainsFunc(lines, func(line string) bool {
		for word := range strings.SplitSeq(line, ",") {
			if !harmless(word) {
				return true
			}
		}
		return false
	}) {
		return
	}
	var kept []string
	for _, line := range lines {
		for word := range strings.SplitSeq(line, ",") {
			if harmless(word) {
				kept = append(kept, strings.Trim(word, " \t"))
			}
		}
	}
	if h["Connection"] = kept; kept == nil {
		delete(h, "Connection")
	}
}

// guardTrailers makes sure that trailers carry no more than headers may. They arrive at the
// end of the body and are passed on after it.
func guardTrailers(r *http.Request, prefixes, credentials []string) {
	if r.Body == nil || r.Body == http.NoBody || r.Trailer == nil && r.ContentLength >= 0 {
		return
	}
	if _, guarded := r.Body.(*trailerGuard); guarded {
		return // the first handler guards against everything there is
	}
	cleanTrailer(r.Trailer, prefixes, credentials)
	r.Body = &trailerGuard{ReadCloser: r.Body, request: r, prefixes: prefixes, credentials: credentials}
}

// trailerGuard is a request body that cleans the request's trailers as soon as they arrive,
// before anybody can pass them on.
type trailerGuard struct {
	io.ReadCloser
	request               *http.Request
	prefixes, credentials []string
}

func (g *trailerGuard) Read(p []byte) (int, error) {
	n, err := g.ReadCloser.Read(p)
	if err != nil {
		cleanTrailer(g.request.Trailer, g.prefixes, g.credentials)
	}
	return n, err
}

// cleanTrailer deletes what a trailer must not carry.
func cleanTrailer(trailer http.Header, prefixes, credentials []string) {
	for name := range trailer {
		if isIdentity(name, prefixes) || hasOddByte(name) || isOneOf(name, credentials) || isOneOf(name, overrideHeaders) || isOneOf(name, settingsHeader) || isOneOf(name, certificateHeaders) {
			delete(trailer, name)
		}
	}
}

// asideVar is the variable with the override headers that were removed from a request before
// it met an oauth_protect. They are kept there for one that lets them through.
const asideVar = "oauth.override_headers"

type overridesAside http.Header

func setAside(r *http.Request, overrides http.Header) {
	if overrides != nil {
		caddyhttp.SetVar(r.Context(), asideVar, overridesAside(overrides))
	}
}

// keepAside sets aside what was taken from there, and what has been removed since.
func keepAside(r *http.Request, aside, overrides http.Header) {
	if aside == nil {
		aside = overrides
	} else {
		maps.Copy(aside, overrides)
	}
	setAside(r, aside)
}

// dropOverrides removes override headers for good, those set aside included.
func dropOverrides(r *http.Request) {
	maps.DeleteFunc(r.Header, func(name string, _ []string) bool { return isOverride(r, name) })
	takeAside(r)
}

// takeAside returns what was set aside, and removes it from there.
func takeAside(r *http.Request) http.Header {
	aside, ok := caddyhttp.GetVar(r.Context(), asideVar).(overridesAside)
	if ok {
		caddyhttp.SetVar(r.Context(), asideVar, nil)
	}
	return http.Header(aside)
}

// asksForTunnel reports whether a request is a CONNECT that is not for a WebSocket (RFC 8441,
// RFC 9220). Nobody can judge what goes through a tunnel. Worse, Caddy's proxy sends the body of
// a CONNECT that came over HTTP/2 unchanged, and a backend that doesn't know CONNECT takes it
// for the next request.
func asksForTunnel(r *http.Request) bool {
	protocol := r.Header[":protocol"] // where net/http puts the pseudo-header of HTTP/2
	if r.Method != http.MethodConnect {
		return protocol != nil
	}
	switch r.ProtoMajor {
	case 2:
		return len(protocol) != 1 || protocol[0] != "websocket"
	case 3:
		return r.Proto != "websocket"
	}
	return true
}

// refuseTunnel answers a request that asksForTunnel. It returns no error to Caddy, because
// error routes may contain a proxy.
func refuseTunnel(w http.ResponseWriter, r *http.Request, log *refusalLog) {
	dontAwaitBody(w, r)
	w.Header().Set("Cache-Control", "no-store")
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Set("http.oauth.error", string(access.ResultTunnel))
	}
	w.WriteHeader(http.StatusNotImplemented) // RFC 9220 section 3
	log.count(access.CauseTunnel)
	log.write(r, access.CauseTunnel, http.StatusNotImplemented, nil)
	logRefused(r.Context(), nil, access.ResultTunnel, access.CauseTunnel)
}
