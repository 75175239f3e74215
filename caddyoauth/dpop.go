package caddyoauth

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// DPoP says how clients prove that they have the key of their token (RFC 9449). With it, every client may
// have its tokens bound to a key, by sending a proof with its token request.
type DPoP struct {
	// How proofs may be signed, as `algorithms` of the source `jwt`. An RSA key must have 2048 to
	// 4096 bits. Default: `RS256`, `PS256`, `ES256`, `EdDSA`, `Ed25519`.
	Algorithms []string `json:"algorithms,omitempty"`

	// How long a proof is good after it was made, from `10s` to `2m`. Clients' clocks may be 10 seconds
	// ahead. Default: `1m`.
	MaxAge caddy.Duration `json:"max_age,omitempty"`

	// Has every proof carry a nonce, which the gateway gave to the client at most this long ago, from
	// `1m` to `1h`. A stolen device can then not make proofs in advance. A client without one is
	// told `use_dpop_nonce`, with a nonce for the next attempt. Default: nonces are asked for only in the
	// first seconds after a start.
	NonceLifetime caddy.Duration `json:"nonce_lifetime,omitempty"`
}

const (
	defaultNonceLifetime = caddy.Duration(5 * time.Minute)
	minNonceLifetime     = caddy.Duration(time.Minute)
	maxNonceLifetime     = caddy.Duration(time.Hour)
	minProofAge          = caddy.Duration(10 * time.Second)
)

func checkProofAge(age caddy.Duration) error {
	if age < minProofAge || age > caddy.Duration(oauth.MaxProofAge) {
		return errors.New("max_age must be between 10s and 2m")
	}
	return nil
}

func checkNonceLifetime(lifetime caddy.Duration) error {
	if lifetime < minNonceLifetime || lifetime > maxNonceLifetime {
		return errors.New("the lifetime of a nonce must be between 1m and 1h")
	}
	return nil
}

// dpopRequired is the value of the options dpop for what is only for tokens that are bound to a key.
const dpopRequired = "required"

// proofJudges judge the DPoP proofs that come to one configuration.
type proofJudges struct{ endpoint, resource *oauth.Proofs }

// newProofJudges checks the settings. cfg is nil for the defaults.
func newProofJudges(cfg *DPoP) (*proofJudges, error) {
	if cfg == nil {
		cfg = new(DPoP)
	}
	if cfg.MaxAge != 0 {
		if err := checkProofAge(cfg.MaxAge); err != nil {
			return nil, err
		}
	}
	if cfg.NonceLifetime != 0 {
		if err := checkNonceLifetime(cfg.NonceLifetime); err != nil {
			return nil, err
		}
	}
	verifier, err := introspect.NewProofs(introspect.ProofsConfig{Algorithms: cfg.Algorithms, MaxAge: time.Duration(cfg.MaxAge)})
	if err != nil {
		return nil, err
	}
	judge := func(place oauth.Place) *oauth.Proofs {
		return oauth.NewProofs(place, verifier, time.Duration(cfg.NonceLifetime), time.Now)
	}
	return &proofJudges{judge(oauth.AtEndpoint), judge(oauth.AtResource)}, nil
}

// each calls f for both judges.
func (j *proofJudges) each(f func(*oauth.Proofs)) { f(j.endpoint); f(j.resource) }

// takesProofs reports whether the clients of a realm may have their tokens bound to keys.
func (a *App) takesProofs(r *servedRealm) (bool, error) {
	takes := a.DPoP != nil && (len(r.settings.Clients) > 0 || r.managed != nil)
	for _, client := range r.settings.Clients {
		takes = takes || client.DPoPRequired
	}
	if takes && r.issuer == nil {
		return false, errors.New("dpop needs an issuer, which the URLs begin with that proofs are made for: give the realm an issuer")
	}
	return takes, nil
}

// tokenURLs returns the URLs of a realm's token endpoint. The realm has an issuer.
func (s *Server) tokenURLs(r *servedRealm) (urls []string) {
	named, ends := s.named(r), []string{"/access_token", "/token", "/access_token/", "/token/"}
	for _, base := range s.bases(r) {
		at := s.front(r) + (&url.URL{Path: base}).EscapedPath()
		if rest, ok := strings.CutPrefix(base, named); ok {
			at = s.publicBase(r) + rest // as the issuer spells it
		}
		for _, end := range ends {
			urls = append(urls, at+end)
		}
	}
	if r.mtlsBase != "" {
		for _, end := range ends {
			if urls = append(urls, r.mtlsBase+end); r.name == rootRealm {
				urls = append(urls, r.mtlsBase+fullRealmPath(r.name)+end)
			}
		}
	}
	return urls
}

// urlsOf returns the URLs of a request's endpoint, given those that it has in any case, if any count. The
// client may know it by a spelling of ForgeRock AM's.
func (s *Server) urlsOf(e *route, r *http.Request, urls []string) []string {
	if len(urls) == 0 || e.kind != endpointToken || s.endpoints[r.URL.Path] == e {
		return urls
	}
	return append(slices.Clip(urls), s.front(e.realm)+r.URL.EscapedPath())
}

// appDPoPOption reads
//
//	dpop {
//		algorithms <name>...
//		max_age    <duration>
//		nonce      [<lifetime>]
//	}
func appDPoPOption(place **DPoP) conf.Option {
	return conf.Func(func(d *caddyfile.Dispenser) error {
		if _, err := conf.Args(d, 0, 0); err != nil {
			return err
		}
		dpop := new(DPoP)
		*place = dpop
		return conf.Options{
			"algorithms": conf.Texts(&dpop.Algorithms, func(names []string) error {
				return (introspect.ProofsConfig{Algorithms: names}).Check()
			}),
			"max_age": conf.Duration(&dpop.MaxAge, checkProofAge),
			"nonce": conf.Func(func(d *caddyfile.Dispenser) error {
				args, err := conf.Args(d, 0, 1)
				if err != nil {
					return err
				}
				dpop.NonceLifetime = defaultNonceLifetime
				if len(args) > 0 {
					if dpop.NonceLifetime, err = conf.ParseDuration("nonce", args[0]); err != nil {
						return d.WrapErr(err)
					}
				}
				if err := checkNonceLifetime(dpop.NonceLifetime); err != nil {
					return d.WrapErr(err)
				}
				return conf.NoBlock(d, "nonce")
			}),
		}.Read(d, "dpop")
	})
}

func checkClientDPoP(value string) error { return conf.OneOf("dpop", value, dpopRequired) }
