package introspect

import (
	"net/http"
	"time"
)

// WithTransport returns cfg with another network.
func WithTransport(cfg JWTConfig, transport http.RoundTripper) JWTConfig {
	cfg.transport = transport
	return cfg
}

// ParseKeys returns how many keys of a JWK set are usable.
func ParseKeys(data []byte) (int, error) {
	set, err := parseKeys(data, asymmetric)
	if err != nil {
		return 0, err
	}
	return len(set.keys), nil
}

// NumericDate reads a time of JSON.
func NumericDate(value any) (time.Time, bool) { return numericDate(value) }
