package caddyoauth

import (
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// Any page that an operator looks at can have the browser send requests to the admin endpoint, which
// knows nobody by name. Caddy keeps most of them out; this keeps out the rest, and has browsers change
// nothing unless the configuration says so. Commands, curl and other programs are not browsers, and
// none of this is for them.

// guarded returns a route of the admin endpoint whose handler gets from browsers only what it may get,
// and from remote administration only paths that Caddy has compared with what the caller may do.
func guarded(pattern string, handler caddy.AdminHandlerFunc) caddy.AdminRoute {
	return caddy.AdminRoute{Pattern: pattern, Handler: caddy.AdminHandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			dontAwaitBody(w, r) // it means nothing
		}
		if r.TLS != nil && !isPermitted(r.URL.Path) { // remote administration has TLS, and nothing else here does
			return adminError(http.StatusForbidden, "remote administration can't take a path with /../, /./ or // in it, even if it is encoded")
		}
		if fromBrowser(r.Header) {
			w.Header().Set("X-Content-Type-Options", "nosniff")
			w.Header().Set("Cross-Origin-Resource-Policy", "same-origin")
			if err := checkBrowser(r, pattern); err != nil {
				return err
			}
		}
		return handler(w, r)
	})}
}

// isPermitted reports whether Caddy has compared this path with those that the permissions of remote
// administration list. It decodes and cleans a path before, and so takes /oauth/clients/a/..%2Fb/c, which
// is a client of realm a, for /oauth/clients/b/c.
func isPermitted(decoded string) bool { return path.Clean(decoded) == strings.TrimSuffix(decoded, "/") }

// explainPattern is where to ask for an explanation. That is a POST, and changes nothing.
const explainPattern = "/oauth/explain"

// fromBrowser reports whether a browser sends the request. Browsers say so to places that they trust,
// which are https and this machine. To others they only send what all of them always send: a language,
// which a page can change and not remove. In some browsers it can have them call themselves something
// other than Mozilla, as some programs call themselves Mozilla; and Caddy's commands send an Origin.
func fromBrowser(header http.Header) bool {
	for name := range header {
		if strings.HasPrefix(name, "Sec-Fetch-") {
			return true
		}
	}
	return header["Accept-Language"] != nil ||
		strings.HasPrefix(header.Get("User-Agent"), "Mozilla/") && (header["Origin"] != nil || header["Referer"] != nil)
}

// checkBrowser returns why a browser's request is refused, or nil.
func checkBrowser(r *http.Request, pattern string) error {
	if !sameOrigin(r) {
		return adminError(http.StatusForbidden, "a page from elsewhere can't call this")
	}
	if !namesThisHost(r) {
		return adminError(http.StatusForbidden, "call this by localhost or an IP address, or open it with 'caddy oauth console': any other name may be one that an attacker has made point here")
	}
	changes := r.Method != http.MethodGet && r.Method != http.MethodHead && pattern != explainPattern
	if changes && !activeApp().mayWrite() {
		return adminError(http.StatusForbidden, "a browser can't change anything here: give the oauth block 'console write'")
	}
	return nil
}

// sameOrigin reports whether the browser sends the request for a page from here, or because somebody
// has typed the address.
func sameOrigin(r *http.Request) bool {
	for _, site := range r.Header["Sec-Fetch-Site"] {
		if site != "same-origin" && site != "none" {
			return false
		}
	}
	for _, name := range []string{"Origin", "Referer"} {
		for _, text := range r.Header[name] {
			from, err := url.Parse(text)
			if err != nil || !strings.EqualFold(from.Host, r.Host) {
				return false
			}
		}
	}
	return true
}

// namesThisHost reports whether the host that the browser takes this for is this one. Whoever owns a
// domain can have its name resolve to this machine, and then be of the same origin (DNS rebinding).
// Nobody owns an address or localhost. Another name is good if Caddy has compared it with those that
// its configuration lists, which it does with an Origin and, if there is a Sec-Fetch-Mode, with a
// Referer. Where it compares the Host header, no other name comes this far; it doesn't where the
// admin endpoint listens on all addresses or on a Unix socket.
func namesThisHost(r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	if strings.EqualFold(host, "localhost") || net.ParseIP(strings.Trim(host, "[]")) != nil {
		return true
	}
	compared := r.Header.Get("Origin")
	if compared == "" && r.Header["Sec-Fetch-Mode"] != nil {
		compared = r.Header.Get("Referer")
	}
	return compared != "" // sameOrigin has found that it is of this host
}
