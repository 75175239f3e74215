package introspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	// guardedRefresh is the default of KeysConfig.MinRefresh for guarded keys.
	guardedRefresh = time.Minute
	// guardedAge is how long guarded keys count after they were last fetched.
	guardedAge = 20 * time.Minute
)

var (
	errNotPublic = errors.New("not a public address: if it may be connected to, list its host as a private host")
	errNoKeys    = errors.New("there are none that could be fetched lately")
)

// dialPublic returns a function that connects to public addresses only, and to those of the private
// hosts. It looks at the address that a name was resolved to, right before it connects: a name that
// leads elsewhere the second time (DNS rebinding) gains nothing.
func dialPublic(privateHosts []string) func(ctx context.Context, network, address string) (net.Conn, error) {
	anywhere := &net.Dialer{}
	public := &net.Dialer{Control: func(_, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil || !isPublic(at.Addr()) {
			return errNotPublic
		}
		return nil
	}}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		if slices.Contains(privateHosts, plainHost(host)) {
			return anywhere.DialContext(ctx, network, address)
		}
		return public.DialContext(ctx, network, address)
	}
}

// plainHost returns the spelling by which hosts are compared.
func plainHost(host string) string {
	return strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
}

// notPublic are the IPv4 networks that are set aside for something else than public hosts, apart from
// those that package netip knows (RFC 6890 and its registry).
var notPublic = prefixes("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24",
	"198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4")

// Of IPv6 only global unicast addresses are public, but for those in notPublic6. Two of these have IPv4
// addresses in them: Teredo, which is in 2001::/23, and 6to4. So does NAT64, which is not in 2000::/3.
var (
	public6    = netip.MustParsePrefix("2000::/3")
	notPublic6 = prefixes("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)

func prefixes(texts ...string) []netip.Prefix {
	all := make([]netip.Prefix, 0, len(texts))
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// isPublic reports whether anybody on the Internet could connect to an address.
func isPublic(address netip.Addr) bool {
	address = address.Unmap()
	within := func(p netip.Prefix) bool { return p.Contains(address) }
	if !address.IsGlobalUnicast() || address.IsPrivate() || address.Zone() != "" {
		return false
	}
	if address.Is4() {
		return !slices.ContainsFunc(notPublic, within)
	}
	return public6.Contains(address) && !slices.ContainsFunc(notPublic6, within)
}

// guard checks the settings of guarded keys.
func (cfg *KeysConfig) guard() error {
	if !cfg.Guarded {
		if len(cfg.PrivateHosts) > 0 {
			return errors.New("only guarded keys have private hosts")
		}
		return nil
	}
	cfg.MinRefresh = cmp.Or(cfg.MinRefresh, guardedRefresh)
	hosts := make([]string, 0, len(cfg.PrivateHosts))
	for _, host := range cfg.PrivateHosts {
		plain := plainHost(host)
		if _, err := netip.ParseAddr(plain); err != nil && (plain == "" || strings.ContainsAny(plain, ":/*@?# ")) {
			return fmt.Errorf("private host %q: must be the name or the address of one host, without scheme and port", host)
		}
		hosts = append(hosts, plain)
	}
	cfg.PrivateHosts = hosts
	for _, uri := range []string{cfg.JWKSURI, cfg.metadataURI()} {
		if u, err := url.Parse(uri); uri != "" && err == nil && cfg.surelyPrivate(u.Hostname()) {
			return fmt.Errorf("%s: %q is %w", place(u), u.Hostname(), errNotPublic)
		}
	}
	return nil
}

// metadataURI returns the URL that tells where the keys are, or the empty text if nobody asks.
func (cfg *KeysConfig) metadataURI() string {
	if cfg.Discovery {
		return cfg.Issuer
	}
	return ""
}

// surelyPrivate reports whether a host can be told to be private before it is resolved, and is not one
// of the private hosts.
func (cfg *KeysConfig) surelyPrivate(host string) bool {
	host = plainHost(host)
	if slices.Contains(cfg.PrivateHosts, host) {
		return false
	}
	address, err := netip.ParseAddr(host)
	return err == nil && !isPublic(address) || host == "localhost" || strings.HasSuffix(host, ".localhost")
}
