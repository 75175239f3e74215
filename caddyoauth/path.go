package caddyoauth

import "net/url"

// ambiguousURL reports whether a request's target can be read in more than one way. With
// allow, its path may be ambiguous.
func ambiguousURL(u *url.URL, allow bool) bool {
	// An opaque target, as in "GET http:http://backend/admin/", has no path that a matcher can
	// see, but goes upstream with one. No honest client sends it.
	return u.Opaque != "" || !allow && ambiguousPath(u.EscapedPath())
}

// ambiguousPath reports whether a backend could read an escaped path differently from the
// matchers that chose its route: Caddy matches the decoded, cleaned path, but forwards the
// path as it came. escaped is what goes upstream, (*url.URL).EscapedPath.
func ambiguousPath(escaped string) bool {
	// The length of the current segment, decoded, and how many of its bytes are dots.
	length, dots := 0, 0
	afterSlash := false
	// How much of a percent escape stands in the decoded text: 1 is the sign alone.
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
		case c&0xc0 == 0x80 && (before&0xfe == 0xc0 || before == 0xe0 && c < 0xa0 || before == 0xf0 && c < 0x90):
			// A character in more bytes than it needs. UTF-8 forbids it, but some decoders read
			// it, for example as a slash or a dot.
			return true
		}
		before = c
		// A decoded percent sign that makes what follows an escape: the path is encoded twice.
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

// unescape decodes the percent escape at the beginning of s.
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
