package caddyoauth

import (
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// secureOrLocal reports whether nobody could read a request on its way to us: it came over TLS,
// or from this machine.
//
// If the peer is one of Caddy's trusted_proxies and says in X-Forwarded-Proto how the client
// reached it, that counts, for better or worse: plain HTTP to a load balancer is not made good by
// the way behind it, be that TLS or this machine. For everybody else only the connection counts.
func secureOrLocal(r *http.Request) bool {
	if secure, told := toldByProxy(r); told {
		return secure
	}
	if r.TLS != nil {
		return true
	}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && local.Network() == "unix" {
		return true
	}
	if r.RemoteAddr == "" || r.RemoteAddr == "@" { // a unix socket, too
		return true
	}
	addr, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && addr.Addr().Unmap().IsLoopback()
}

// usesTLS reports whether the client uses TLS, by what a trusted proxy says, or by the connection.
func usesTLS(r *http.Request) bool {
	secure, told := toldByProxy(r)
	return secure || !told && r.TLS != nil
}

// toldByProxy returns what a trusted proxy says of how the client reached it.
func toldByProxy(r *http.Request) (secure, told bool) {
	said := r.Header["X-Forwarded-Proto"]
	if said == nil {
		return false, false
	}
	trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool)
	return trusted && allSecure(said), trusted
}

// allSecure reports whether X-Forwarded-Proto says TLS throughout. With several proxies on the
// way there may be a value for each, in one line or several, and a single plain one is one too
// many. Some proxies say wss for a WebSocket.
func allSecure(lines []string) bool {
	for _, line := range lines {
		for proto := range strings.SplitSeq(line, ",") {
			if proto = strings.Trim(proto, " \t"); !strings.EqualFold(proto, "https") && !strings.EqualFold(proto, "wss") {
				return false
			}
		}
	}
	return true
}

// clientIP returns the address of the caller, for logs: the one that Caddy takes for the
// client's, which depends on trusted_proxies. It is empty if there is none, as with a unix
// socket.
func clientIP(r *http.Request) string {
	addr, ok := clientAddr(r)
	if !ok {
		return ""
	}
	var room [64]byte
	text := addr.AppendTo(room[:0])
	// Nearly always it is what Caddy has found, which needs no memory of its own.
	if ip, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string); ip == string(text) {
		return ip
	}
	return string(text)
}

// clientAddr is clientIP for those who compute with it. Without an address it is the zero Addr.
func clientAddr(r *http.Request) (addr netip.Addr, ok bool) {
	ip, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		peer, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil {
			return netip.Addr{}, false
		}
		addr = peer.Addr()
	}
	return addr.Unmap(), true
}
