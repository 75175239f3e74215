package caddyoauth

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/keys"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// Signing is how a realm signs JWTs. A realm that has this, or a client with `token_format jwt`,
// has signing keys, and publishes them at `/connect/jwk_uri` and `/jwks` below the base path.
type Signing struct {
	// The algorithm of the keys that the gateway makes: `ES256`, `EdDSA` (with Ed25519), `RS256` or
	// `PS256`. A change is for new tokens: a key of the new algorithm is made, published, and signs
	// half an hour later. Default: `ES256`, which every library knows.
	Algorithm string `json:"algorithm,omitempty"`

	// How long a key that the gateway made signs, at least `1h`; then the next one takes its place,
	// having been published for half an hour. `0` is forever. The keys lie in the token store,
	// encrypted under `encryption_keys`, and each is published until the last token of it has
	// expired. Default: `30d`.
	Rotate *caddy.Duration `json:"rotate,omitempty"`

	// Files with your own keys, in the place of those that the gateway makes: PEM, a JWK, or a JWK set.
	// The first key signs, and must be a private one; all are published, and verify. So put a new key
	// behind the old one first, and in front of it when everybody has had the time to fetch it. A
	// token is refused at once when its key is gone. Only the user that runs the gateway may be able
	// to read the files. They are read when the configuration is loaded. Set for root, this does not
	// apply to other realms. Default: none.
	KeyFiles []string `json:"key_files,omitempty"`
}

const (
	defaultRotate = 30 * 24 * time.Hour
	minRotate     = time.Hour
	// minKeyLife is how long at least a key stays published after its last use. It may sign other
	// things than tokens.
	minKeyLife = time.Hour
	// jwksMaxAge is how long others may keep the JWK set, in seconds. A new key does not sign before
	// that is over; see keys.Lead.
	jwksMaxAge = "600"
)

// The types of JWTs, which stand in their headers. No type is accepted in the place of another.
const (
	typAccessToken   = "at+jwt" // RFC 9068 section 2.1
	typAMAccessToken = "JWT"    // of tokens with ForgeRock AM's claims
)

func checkSigningAlgorithm(algorithm string) error {
	return conf.OneOf("algorithm", algorithm, keys.Algorithms...)
}

func checkRotate(rotate caddy.Duration) error {
	if r := time.Duration(rotate); r < 0 || r > 0 && r < minRotate {
		return fmt.Errorf("rotate %s must be at least %s, or 0 for never", r, minRotate)
	}
	return nil
}

// signingOption reads
//
//	signing {
//		algorithm ES256|EdDSA|RS256|PS256
//		rotate    <duration>
//		key_file  <path>...
//	}
func signingOption(place **Signing) conf.Option {
	return conf.Func(func(d *caddyfile.Dispenser) error {
		if _, err := conf.Args(d, 0, 0); err != nil {
			return err
		}
		s := new(Signing)
		*place = s
		return conf.Options{
			"algorithm": conf.Text(&s.Algorithm, checkSigningAlgorithm),
			"rotate": conf.Func(func(d *caddyfile.Dispenser) error {
				args, err := conf.Args(d, 1, 1)
				if err != nil {
					return err
				}
				rotate, err := conf.ParseDuration("rotate", args[0])
				if err == nil {
					err = checkRotate(rotate)
				}
				s.Rotate = &rotate
				return errors.Join(conf.At(d, err))
			}),
			"key_file": conf.Texts(&s.KeyFiles),
		}.Read(d, "signing")
	})
}

// signing is how a realm signs, ready for use.
type signing struct {
	algorithm string
	rotate    time.Duration
	// files are the keys from files, of which the first signs. Without any, the keys are in the
	// realm's ring.
	files []*keys.SigningKey
	// published is the JWK set, ready to send. It is nil until agree knows the keys.
	published atomic.Pointer[[]byte]
	// introspection signs introspection answers, and assertion signs assertions. Both are nil until
	// agree knows the keys.
	introspection, assertion atomic.Pointer[jwtSigner]
}

// jwtSigner returns what signs JWTs of one type at a time, or nil if the realm has no key then.
type jwtSigner func(now time.Time) *keys.JWTs

// jwtSigner returns what signs JWTs of a type with the keys in ring, and those from files.
func (r *servedRealm) jwtSigner(ring *keys.Ring, typ string) *jwtSigner {
	byID := make(map[string]*keys.JWTs)
	for _, key := range r.signingKeys(ring) {
		byID[key.ID()] = key.For(typ)
	}
	signer := jwtSigner(func(now time.Time) *keys.JWTs {
		if key := r.signer(ring, now); key != nil {
			return byID[key.ID()]
		}
		return nil
	})
	return &signer
}

// signs returns the algorithm by which new JWTs are signed. For half an hour after a change
// of the option, the former one still is.
func (s *signing) signs() string {
	if len(s.files) > 0 {
		return s.files[0].Algorithm()
	}
	return s.algorithm
}

// signing returns how the realm signs, and nil if it signs nothing.
func (rc *Realm) signing(root *Realm, r *servedRealm) (*signing, error) {
	own := cmp.Or(rc.Signing, new(Signing))
	others := cmp.Or(root.Signing, new(Signing))
	s := &signing{algorithm: cmp.Or(own.Algorithm, others.Algorithm, keys.Algorithms[0]), rotate: defaultRotate}
	needed := rc.Signing != nil || root.Signing != nil
	for _, client := range r.settings.Clients {
		needed = needed || client.TokenFormat == oauth.FormatJWT
	}
	needed = needed || r.managed != nil && r.managed.format == oauth.FormatJWT
	if !needed {
		return nil, nil
	}
	if r.issuer == nil {
		return nil, errors.New("it signs JWTs, which name their issuer: give it an issuer")
	}
	if err := checkSigningAlgorithm(s.algorithm); err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	if rotate := cmp.Or(own.Rotate, others.Rotate); rotate != nil {
		if err := checkRotate(*rotate); err != nil {
			return nil, fmt.Errorf("signing: %w", err)
		}
		s.rotate = time.Duration(*rotate)
	}
	known := make(map[string]string) // the files of keys, by their IDs
	for _, file := range own.KeyFiles {
		read, err := readKeyFile(file, s.algorithm)
		if err != nil {
			return nil, fmt.Errorf("signing: key_file %s: %w", file, err)
		}
		for _, key := range read {
			if other, twice := known[key.ID()]; twice {
				return nil, fmt.Errorf("signing: key_file %s: %s has the same key", file, other)
			}
			known[key.ID()] = file
		}
		s.files = append(s.files, read...)
	}
	if len(s.files) > 0 && !s.files[0].Signs() {
		return nil, fmt.Errorf("signing: key_file %s: its first key signs, so it must be a private key", own.KeyFiles[0])
	}
	r.signing = s
	if err := r.wanted().Check(); err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return s, nil
}

// readKeyFile reads a file with keys. It refuses private ones that others can read.
func readKeyFile(path, algorithm string) ([]*keys.SigningKey, error) {
	path, err := caddy.NewReplacer().ReplaceOrErr(path, true, true)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular(): // opening a pipe may take forever
		return nil, errors.New("it is not a regular file")
	case info.Size() > maxKeyFile:
		return nil, fmt.Errorf("it has %d bytes, more than any key file", info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	read, err := keys.ReadKeyFile(data, algorithm)
	if err != nil {
		return nil, err
	}
	for _, key := range read {
		if key.Signs() {
			return read, checkPrivate(path, info)
		}
	}
	return read, nil
}

// maxKeyFile bounds the size of a key file, in bytes.
const maxKeyFile = 1 << 20

// wanted is what the realm asks of its ring.
func (r *servedRealm) wanted() keys.Wanted {
	w := keys.Wanted{Life: minKeyLife}
	for _, client := range r.settings.Clients {
		if oauth.SelfContained(client.TokenFormat) {
			w.Life = max(w.Life, client.TokenLifetime)
		}
	}
	if r.managed != nil {
		w.Life = max(w.Life, time.Duration(r.managed.lifetime))
	}
	if r.signing != nil && len(r.signing.files) == 0 {
		w.Algorithm, w.Rotate = r.signing.algorithm, r.signing.rotate
	}
	return w
}

// signingKeys returns the realm's keys for JWTs: those from files, and those in its ring, which may be
// from before a change of the configuration and then only verify.
func (r *servedRealm) signingKeys(ring *keys.Ring) []*keys.SigningKey {
	if r.signing == nil || len(r.signing.files) == 0 {
		return ring.SigningKeys()
	}
	all := slices.Clone(r.signing.files)
	for _, key := range ring.SigningKeys() {
		if !slices.ContainsFunc(all, func(k *keys.SigningKey) bool { return k.ID() == key.ID() }) {
			all = append(all, key)
		}
	}
	return all
}

// fileKeys returns the IDs of the keys from files.
func (r *servedRealm) fileKeys() (ids []string) {
	if r.signing != nil {
		for _, key := range r.signing.files {
			ids = append(ids, key.ID())
		}
	}
	return ids
}

// signer returns the key that signs at a time, or nil if there is none.
func (r *servedRealm) signer(ring *keys.Ring, now time.Time) *keys.SigningKey {
	if r.signing != nil && len(r.signing.files) > 0 {
		return r.signing.files[0]
	}
	return ring.Signer(now)
}

// shareKeys adds the keys in ring, and those from files, to what a realm's engine is told, and
// publishes those of JWTs. shared tells whether other gateways use the store.
func (r *servedRealm) shareKeys(to *oauth.Shared, ring *keys.Ring, shared bool) error {
	to.Others = shared
	if ring == nil {
		return nil
	}
	to.Epoch, to.SealKeys, to.Covers = ring.Epoch(), ring.Seals(time.Now()), ring.Covers
	all := r.signingKeys(ring)
	byID := make(map[string]oauth.JWTKey)
	for _, key := range all {
		// Whatever new tokens are, those of the other type that are alive stay good.
		jwts, am := key.For(typAccessToken), key.For(typAMAccessToken)
		to.JWTKeys, to.AMJWTKeys = append(to.JWTKeys, jwts), append(to.AMJWTKeys, am)
		byID[key.ID()] = jwts
		if r.am != nil {
			byID[key.ID()] = am
		}
	}
	to.Signer = func(now time.Time) oauth.JWTKey {
		if key := r.signer(ring, now); key != nil {
			return byID[key.ID()]
		}
		return nil
	}
	if r.hmac != nil {
		to.AMJWTKeys = append(to.AMJWTKeys, r.hmac)
		to.Signer = func(time.Time) oauth.JWTKey { return r.hmac }
	}
	// The files of another gateway may differ, as when keys are replaced in one after the other, and so
	// may its secret.
	to.OtherJWTKeys = shared && (r.signing != nil && len(r.signing.files) > 0 || r.hmac != nil)
	if r.signing == nil {
		return nil // nothing is published; the keys are from before
	}
	set, err := keys.JWKSet(all...)
	if err != nil {
		return err
	}
	r.signing.published.Store(&set)
	r.signing.introspection.Store(r.jwtSigner(ring, typIntrospection))
	r.signing.assertion.Store(r.jwtSigner(ring, typAssertion))
	return nil
}

// serveKeys answers with the realm's JWK set.
func (s *Server) serveKeys(w http.ResponseWriter, r *http.Request, e *route) {
	h := w.Header()
	if _, err := e.realm.await(r.Context()); err != nil || e.realm.signing.published.Load() == nil {
		h.Set("Cache-Control", "no-store")
		h.Set("Retry-After", retryAfter)
		writeError(w, http.StatusServiceUnavailable, &oauth.Error{Code: oauth.CodeUnavailable, Description: "try again later"})
		return
	}
	serveDocument(w, r, *e.realm.signing.published.Load(), jwksMaxAge)
}
