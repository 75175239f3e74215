package conf

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// CheckScopes checks that the list holds scopes, each of them once. The error names the option.
func CheckScopes(option string, scopes []string) error {
	for i, s := range scopes {
		if !IsScope(s) {
			return fmt.Errorf("%s: %q is not a scope: only visible ASCII characters are allowed, and no quotes, backslashes or commas; separate scopes with spaces", option, s)
		}
		if slices.Contains(scopes[:i], s) {
			return fmt.Errorf("%s: duplicate scope %q", option, s)
		}
	}
	return nil
}

// IsScope reports whether s is a scope (RFC 6749 section 3.3) without a comma. The RFC allows
// commas, but in a configuration a comma is always a mistake for a space, and in a header with a
// list of scopes it would make two scopes of one.
func IsScope(s string) bool { return oauth.ValidScope(s) && !strings.Contains(s, ",") }

// CheckAudience checks that the list holds audiences. The error names the option.
func CheckAudience(option string, audience []string) error {
	for _, a := range audience {
		if !VisibleASCII(a) || strings.ContainsAny(a, `"\`) {
			return fmt.Errorf("%s: %q is not an audience: only visible ASCII characters are allowed, and no quotes or backslashes", option, a)
		}
	}
	return nil
}

// CheckClientID refuses client IDs that can't be sent in a header to the backend or in a challenge,
// or written to a log, without being changed.
func CheckClientID(id string) error {
	// A header loses spaces at its ends, so two IDs would become one.
	if id != strings.Trim(id, " ") || !VisibleASCII(strings.ReplaceAll(id, " ", "_")) || strings.ContainsAny(id, `"\,`) || len(id) > 256 {
		return errors.New("a client ID must have 1 to 256 visible ASCII characters, and no quotes, backslashes or commas; spaces are allowed, but not at its ends")
	}
	return nil
}

// maxLifetime leaves room for a leap year.
const maxLifetime = 366 * 24 * time.Hour

// CheckLifetime checks how long something that the gateway issues lives: from a second to a year, in
// whole seconds, because expires_in and exp can express no others. The error names the option.
func CheckLifetime(option string, lifetime caddy.Duration) error {
	if l := time.Duration(lifetime); l < time.Second || l > maxLifetime || l%time.Second != 0 {
		return fmt.Errorf("%s %s must be a number of whole seconds between 1s and a year", option, l)
	}
	return nil
}

// VisibleASCII reports whether s is not empty and consists of %x21-7E.
func VisibleASCII(s string) bool {
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e {
			return false
		}
	}
	return s != ""
}

// OneOf refuses a value of the option that is not one of those that are known.
func OneOf(option, value string, known ...string) error {
	if !slices.Contains(known, value) {
		return fmt.Errorf("unknown %s '%s' (known: %s)", option, value, strings.Join(known, ", "))
	}
	return nil
}

// CheckURL checks a URL to which secrets or tokens are sent, or whose answers are believed. The
// error calls it what, and does not repeat it, because it may hold a secret.
func CheckURL(what, uri string) error {
	u, err := url.Parse(uri)
	switch {
	case err != nil || !HTTPSOrLoopback(u):
		return fmt.Errorf("%s must be an https URL; http is accepted for loopback hosts only", what)
	case u.User != nil || u.Fragment != "":
		return fmt.Errorf("%s must have no user name, password or fragment", what)
	}
	return nil
}

// HTTPSOrLoopback reports whether what is sent to u can't be read on the way: u is an https URL
// with a host, or an http URL of a loopback host.
func HTTPSOrLoopback(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	loopback := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	return u.Host != "" && (u.Scheme == "https" || u.Scheme == "http" && loopback)
}
