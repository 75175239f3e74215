package introspect_test

import (
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// Headers go to the issuer's host. Another host that the metadata names gets them only if the
// configuration names it too, and only over https. If they can't be sent, nothing is asked.
func TestKeysHeaderHosts(t *testing.T) {
	for _, c := range []struct {
		name, uri string
		hosts     []string
		value     string
		err       error
		want      string // the value that the host of the keys was sent
		asked     bool
	}{
		{"the issuer's host", "https://as.example/keys", nil, "Bearer one", nil, "Bearer one", true},
		{"another host", "https://keys.example/keys", nil, "Bearer one", nil, "", true},
		{"another host that is configured", "https://KEYS.example/keys", []string{"keys.example"}, "Bearer one", nil, "Bearer one", true},
		{"another port of it", "https://keys.example:8443/keys", []string{"keys.example"}, "Bearer one", nil, "", true},
		{"a port that is configured", "https://keys.example:8443/keys", []string{"keys.example", "keys.example:8443"}, "Bearer one", nil, "Bearer one", true},
		{"a host that ends like it", "https://evil-keys.example/keys", []string{"keys.example"}, "Bearer one", nil, "", true},
		{"without TLS", "http://127.0.0.1:1/keys", []string{"127.0.0.1:1"}, "Bearer one", nil, "", true},
		{"a value that can't be sent", "https://as.example/keys", nil, "canary\n", nil, "", false},
		{"no value", "https://as.example/keys", nil, "", errors.New("{file./token} can't be read"), "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var mu sync.Mutex
			asked, sent := false, ""
			fetched := make(chan error, 10)
			cfg := introspect.WithTransport(introspect.KeysConfig{
				Issuer: "https://as.example", Discovery: true, HeaderHosts: c.hosts,
				HeaderFunc: func() (http.Header, error) { return http.Header{"Authorization": {c.value}}, c.err },
				OnFetch: func(_ string, _ time.Duration, err error) {
					select {
					case fetched <- err:
					default:
					}
				},
			}, network(func(r *http.Request) (*http.Response, error) {
				mu.Lock()
				defer mu.Unlock()
				if strings.HasPrefix(r.URL.Path, "/.well-known/") {
					if r.Header.Get("Authorization") != c.value {
						t.Errorf("the request for the metadata was sent with %q", r.Header.Get("Authorization"))
					}
					return answering(200, nil, `{"issuer":"https://as.example","jwks_uri":"`+c.uri+`"}`), nil
				}
				asked, sent = true, r.Header.Get("Authorization")
				return answering(200, nil, jwks(keyFor("EdDSA").jwk(nil))), nil
			}))
			keys, err := introspect.NewKeys(cfg)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := <-fetched; (err == nil) != c.asked || err != nil && strings.Contains(err.Error(), "canary") {
					t.Errorf("the fetch ended with %v", err)
				}
				if !c.asked {
					break
				}
			}
			keys.Close()
			if asked != c.asked || sent != c.want {
				t.Errorf("asked %v with %q, want %v with %q", asked, sent, c.asked, c.want)
			}
		})
	}
}
