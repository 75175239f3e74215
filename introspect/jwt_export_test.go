package introspect

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"time"
)

// IsPublic reports whether guarded keys may come from an address.
func IsPublic(address netip.Addr) bool { return isPublic(address) }

// DialPublic connects as guarded keys do.
func DialPublic(ctx context.Context, address string, privateHosts ...string) (net.Conn, error) {
	return dialPublic(privateHosts)(ctx, "tcp", address)
}

// UsesProxies reports whether proxies may connect for the keys.
func (k *Keys) UsesProxies() bool { return k.client.Transport.(*http.Transport).Proxy != nil }

// WithTransport returns cfg with another network.
func WithTransport(cfg KeysConfig, transport http.RoundTripper) KeysConfig {
	cfg.transport = transport
	return cfg
}

// Keys returns the keys of j.
func (j *JWT) Keys() *Keys { return j.cfg.Keys }

// ParseKeys returns the number of usable keys in a file.
func ParseKeys(data []byte) (int, error) {
	set, _, err := parseKeysFile(data)
	if err != nil {
		return 0, err
	}
	return len(set.keys), nil
}

// NumericDate reads a time from JSON.
func NumericDate(value any) (time.Time, bool) { return numericDate(value) }

// LookAtFiles looks at the files of all guarded keys at once.
func LookAtFiles() { watched.lookAtAll() }

// WatchedFiles returns how many files are watched.
func WatchedFiles() int {
	watched.mu.Lock()
	defer watched.mu.Unlock()
	return len(watched.files)
}

// FileWatchers returns how many goroutines watch them.
func FileWatchers() int {
	stacks := make([]byte, 1<<20)
	return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "introspect.(*keyFiles).keep(")
}
