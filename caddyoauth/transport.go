package caddyoauth

import (
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// secureOrLocal reports whether what a request carries could be read by nobody on the
// way to us: it came over TLS, or from this machine.
//
// Where the peer is one of Caddy's trusted_proxies and says how the client came to it, in
// X-Forwarded-Proto, that counts, for better or worse: plain HTTP up to a balancer is not
// made good by the way behind it, be that TLS or this machine. Of everybody else only the
// connection counts.
func secureOrLocal(r *http.Request) bool {
	if said := r.Header["X-Forwarded-Proto"]; said != nil {
		if trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool); trusted {
			return allSecure(said)
		}
	}
	if r.TLS != nil {
		return true
	}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && local.Network() == "unix" {
		return true
	}
	if r.RemoteAddr == "" || r.RemoteAddr == "@" { // a unix socket as well
		return true
	}
	addr, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && addr.Addr().Unmap().IsLoopback()
}

// allSecure reports whether all that X-Forwarded-Proto says is TLS. With several proxies on
// the way there may be a value for each, in one line or several, and one that is plain is one
// too many. Some say wss for a WebSocket.
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

// clientNetwork names the caller in the queue for slow hashes: the address that Caddy
// holds for the client's, or its /48 for IPv6: a site has up to that many addresses for the
// asking (RFC 6177), and a home a /56 of them. Who has a neighbor there that guesses shares a
// turn with it; with smaller networks all the world would.
func clientNetwork(r *http.Request) string {
	ip, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		peer, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil {
			return ""
		}
		addr = peer.Addr()
	}
	if addr = addr.Unmap(); addr.Is6() {
		if network, err := addr.WithZone("").Prefix(48); err == nil {
			return network.String()
		}
	}
	return addr.String()
}
