package introspect

import (
	"net/http"
	"time"
)

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
