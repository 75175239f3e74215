package introspect

import "net/http"

// WithTransport returns cfg with another network.
func WithTransport(cfg JWTConfig, transport http.RoundTripper) JWTConfig {
	cfg.transport = transport
	return cfg
}
