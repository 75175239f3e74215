package caddyoauth

import (
	"net/http"
	"net/netip"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// secureOrLocal reports whether what a request carries could be read by nobody on the
// way to us: it came over TLS, or from this machine. The peer of the connection
// counts; what a header says of earlier hops does not.
func secureOrLocal(r *http.Request) bool {
	if r.TLS != nil {
		return true
	}
	if r.RemoteAddr == "" || strings.HasPrefix(r.RemoteAddr, "@") {
		return true // a unix socket
	}
	addr, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && addr.Addr().Unmap().IsLoopback()
}

// clientNetwork names the caller in the queue for slow hashes: the address that Caddy
// holds for the client's, or its /64 for IPv6, where one machine has as many addresses
// as it likes.
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
		if network, err := addr.WithZone("").Prefix(64); err == nil {
			return network.String()
		}
	}
	return addr.String()
}
