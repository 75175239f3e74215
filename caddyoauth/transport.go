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

// clientNetwork is whom a request is counted against where there is not enough for
// all: the address that Caddy holds for the client's, or its /64 for IPv6, where one
// machine has as many addresses as it likes.
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

// ambiguousPath reports whether a backend could read an escaped path differently from
// the matchers that chose its route: Caddy matches the decoded, cleaned path and
// forwards the path as it came. escaped is what goes upstream, (*url.URL).EscapedPath.
func ambiguousPath(escaped string) bool {
	// Of the current segment, decoded: its length, and how much of it is dots.
	length, dots := 0, 0
	afterSlash := false
	// How much of a percent escape stands in what has been decoded: 1 is the sign alone.
	escape := 0
	var before byte
	dotSegment := func() bool { return length == dots && (length == 1 || length == 2) }
	for i := 0; i < len(escaped); i++ {
		c, wasEscaped := escaped[i], false
		if c == '%' {
			decoded, ok := unescape(escaped[i:])
			if !ok {
				return true
			}
			c, wasEscaped = decoded, true
			i += 2
		}
		switch {
		case c < 0x20, c == 0x7f, c == '\\', c == ';':
			return true
		case c == '/' && (wasEscaped || afterSlash || dotSegment()):
			return true
		case c&0xc0 == 0x80 && before&0xfe == 0xc0:
			// An ASCII character in two bytes, which UTF-8 forbids and some decoders read.
			return true
		}
		before = c
		// A percent sign that makes an escape of what follows: encoded twice.
		switch {
		case c == '%':
			escape = 1
		case escape > 0 && unhex(c) >= 0:
			if escape++; escape == 3 {
				return true
			}
		default:
			escape = 0
		}
		afterSlash = c == '/'
		if afterSlash {
			length, dots = 0, 0
			continue
		}
		length++
		if c == '.' {
			dots++
		}
	}
	return dotSegment()
}

// unescape decodes the percent escape that s begins with.
func unescape(s string) (byte, bool) {
	if len(s) < 3 {
		return 0, false
	}
	hi, lo := unhex(s[1]), unhex(s[2])
	return byte(hi<<4 | lo), hi >= 0 && lo >= 0
}

// unhex returns the value of a hexadecimal digit, or -1.
func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
