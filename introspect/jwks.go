package introspect

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxKeysSize = 256 << 10
	maxKeys     = 100
	// maxTried keys are tried for one token. It matters for tokens without a kid.
	maxTried = 4
	// maxBackoff is the longest pause between two attempts that fail.
	maxBackoff = time.Minute
	// minModulus is the least size of an RSA key in bits (RFC 7518 section 3.3).
	minModulus = 2048
)

var errJWTClosed = errors.New("JWT source is closed")

// asymmetric are the algorithms whose keys can be public. There are no others here:
// with HMAC the public key of an issuer would be a secret to sign with.
var asymmetric = []string{
	"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
}

// keySet are the usable keys of an issuer. It is never changed.
type keySet struct {
	keys []publicKey
	ids  map[string]struct{} // of keys
}

// publicKey is a key that may verify signatures.
type publicKey struct {
	kid, alg string // empty if the issuer does not say
	public   any    // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
	// id is the key's RFC 7638 thumbprint, of fixed length, then alg and kid: all that
	// could change what a cached verification is worth.
	id string
}

// fits reports whether the key is one for alg. A signature algorithm belongs to a key,
// not to a token: a key for PS256 must not verify RS256, nor one curve another's hash.
func (k *publicKey) fits(alg string) bool {
	if k.alg != "" && k.alg != alg {
		return false
	}
	switch public := k.public.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(alg, "RS") || strings.HasPrefix(alg, "PS")
	case *ecdsa.PublicKey:
		return alg == "ES256" && public.Curve == elliptic.P256() ||
			alg == "ES384" && public.Curve == elliptic.P384() ||
			alg == "ES512" && public.Curve == elliptic.P521()
	case ed25519.PublicKey:
		return alg == "EdDSA"
	}
	return false
}

// has reports whether a key of this id is in the set.
func (s *keySet) has(id string) bool {
	if s == nil {
		return false
	}
	_, ok := s.ids[id]
	return ok
}

// verify returns the payload of jws and the key that signed it, nil if none did. known
// is false if another set might have the key: this one has none of that kid, or the token
// has no kid, and so may be signed with any key.
func (s *keySet) verify(jws *jose.JSONWebSignature, kid string) (payload []byte, key *publicKey, known bool) {
	if s == nil {
		return nil, nil, false
	}
	alg := jws.Signatures[0].Header.Algorithm
	tried := 0
	for i := range s.keys {
		k := &s.keys[i]
		if kid != "" {
			if k.kid != kid {
				continue
			}
			known = true
		}
		if !k.fits(alg) {
			continue
		}
		if tried++; tried > maxTried {
			break
		}
		if payload, err := jws.Verify(k.public); err == nil {
			return payload, k, true
		}
	}
	return nil, nil, known
}

// parseKeys reads a JWK set and keeps the keys that can verify one of algorithms.
func parseKeys(data []byte, algorithms []string) (*keySet, error) {
	var document struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &document); err != nil {
		return nil, fmt.Errorf("parsing a JWK set: %w", err)
	}
	if len(document.Keys) > maxKeys {
		return nil, fmt.Errorf("JWK set of %d keys: at most %d are accepted", len(document.Keys), maxKeys)
	}
	set := &keySet{ids: map[string]struct{}{}}
	for _, raw := range document.Keys {
		key, ok := parseKey(raw)
		if !ok || !slices.ContainsFunc(algorithms, key.fits) {
			continue // RFC 7517 section 5: keys that are not understood are ignored
		}
		set.keys = append(set.keys, key)
		set.ids[key.id] = struct{}{}
	}
	if len(set.keys) == 0 {
		// It would make every token bad, and comes more often from a server that is starting,
		// or from a proxy, than from an issuer that gives up.
		return nil, fmt.Errorf("none of the %d keys of the JWK set can verify %s", len(document.Keys), strings.Join(algorithms, ", "))
	}
	return set, nil
}

// parseKey reads one JWK. ok is false if it is not a public key for signatures.
func parseKey(raw []byte) (key publicKey, ok bool) {
	jwk, ok := decodeObject(raw)
	if !ok {
		return key, false
	}
	// A secret that is published is no secret, and whoever read it can sign.
	for _, name := range []string{"k", "d", "p", "q", "dp", "dq", "qi", "oth"} {
		if _, private := jwk[name]; private {
			return key, false
		}
	}
	if use, present := jwk["use"]; present && use != "sig" {
		return key, false
	}
	if operations, present := jwk["key_ops"]; present {
		list, _ := operations.([]any)
		if !slices.Contains(list, any("verify")) {
			return key, false
		}
	}
	if alg, present := jwk["alg"]; present {
		if key.alg, ok = alg.(string); !ok || key.alg == "" {
			return key, false
		}
	}
	if kid, present := jwk["kid"]; present {
		if key.kid, ok = kid.(string); !ok {
			return key, false
		}
	}

	// Only the key itself goes further: certificates in x5c are neither needed nor trusted,
	// and one that Go can't parse must not cost the key.
	material := map[string]any{}
	for _, name := range []string{"kty", "n", "e", "crv", "x", "y"} {
		if value, present := jwk[name]; present {
			material[name] = value
		}
	}
	data, err := json.Marshal(material)
	if err != nil {
		return key, false
	}
	var parsed jose.JSONWebKey
	if parsed.UnmarshalJSON(data) != nil {
		return key, false
	}
	if public, ok := parsed.Key.(*rsa.PublicKey); ok {
		// With an exponent of 1 every signature can be computed from what it signs.
		if public.N.BitLen() < minModulus || public.E < 3 || public.E%2 == 0 || public.E > 1<<31-1 {
			return key, false
		}
	}
	thumbprint, err := parsed.Thumbprint(crypto.SHA256)
	if err != nil {
		return key, false
	}
	key.public = parsed.Key
	key.id = string(thumbprint) + key.alg + " " + key.kid
	return key, true
}

// refresh waits for a fetch of the keys and returns how it ended. Within MinRefresh of
// the last one it returns how that ended, and asks for no other.
func (j *JWT) refresh(ctx context.Context) error {
	j.mu.Lock()
	if j.flight == nil {
		if j.cfg.Now().Sub(j.ended) < j.leastPause() {
			defer j.mu.Unlock()
			return j.failure
		}
		j.flight = make(chan struct{})
		j.wake <- struct{}{} // there is room: it is emptied while there is a flight
	}
	flight := j.flight
	j.mu.Unlock()

	select {
	case j.waiting <- struct{}{}:
		defer func() { <-j.waiting }()
	default:
		return ErrBusy
	}
	select {
	case <-flight:
	case <-ctx.Done():
		return ctx.Err()
	case <-j.ctx.Done():
		return errJWTClosed
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failure
}

// leastPause is the least time between two fetches. Without any keys it is short: the issuer
// may be starting beside this program, and all its tokens wait.
func (j *JWT) leastPause() time.Duration {
	if j.keys.Load() == nil {
		return firstPause
	}
	return j.cfg.MinRefresh
}

// keepKeys is the goroutine that fetches the keys. Nobody else does.
func (j *JWT) keepKeys() {
	defer close(j.done)
	backoff := j.leastPause()
	for j.ctx.Err() == nil {
		j.mu.Lock()
		if j.flight == nil {
			j.flight = make(chan struct{})
		}
		select {
		case <-j.wake: // asked for, and about to be done
		default:
		}
		j.mu.Unlock()

		pause, err := j.fetch()
		if err != nil {
			pause = backoff
			backoff = max(j.leastPause(), min(2*backoff, maxBackoff, j.cfg.RefreshInterval))
		} else {
			backoff = j.cfg.MinRefresh
		}

		j.mu.Lock()
		j.ended, j.failure = j.cfg.Now(), err
		close(j.flight)
		j.flight = nil
		j.mu.Unlock()

		timer := time.NewTimer(pause)
		select {
		case <-j.ctx.Done():
		case <-j.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// fetch gets the keys and makes them the current ones. It returns how long they are good.
func (j *JWT) fetch() (good time.Duration, err error) {
	// What comes from outside is parsed here, in a goroutine that nobody watches.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("fetching keys panicked: %v", r)
		}
	}()
	ctx, cancel := context.WithTimeout(j.ctx, j.cfg.Timeout)
	defer cancel()

	var set *keySet
	if j.cfg.KeysFile != "" {
		good = j.cfg.MinRefresh
		err = j.observed("file", func() error {
			data, err := readKeysFile(j.cfg.KeysFile)
			if err != nil {
				return err
			}
			set, err = parseKeys(data, j.cfg.Algorithms)
			return err
		})
	} else {
		uri := j.cfg.JWKSURI
		if j.cfg.Discovery {
			if uri, err = j.discover(ctx); err != nil {
				return 0, err
			}
		}
		err = j.observed("jwks", func() error {
			data, header, err := j.get(ctx, uri)
			if err != nil {
				return err
			}
			good = j.goodFor(header)
			set, err = parseKeys(data, j.cfg.Algorithms)
			return err
		})
	}
	if err != nil {
		return 0, err
	}
	j.keys.Store(set)
	j.cfg.OnKeys(len(set.keys))
	return good, nil
}

// observed tells OnFetch how f went.
func (j *JWT) observed(kind string, f func() error) error {
	begin := time.Now()
	err := f()
	j.cfg.OnFetch(kind, time.Since(begin), err)
	return err
}

// discover returns the jwks_uri from the issuer's metadata.
func (j *JWT) discover(ctx context.Context) (string, error) {
	issuer, err := endpoint(j.cfg.Issuer)
	if err != nil {
		return "", err
	}
	origin, path := issuer.Scheme+"://"+issuer.Host, strings.TrimSuffix(issuer.EscapedPath(), "/")
	var failures []error
	for _, from := range []string{
		origin + "/.well-known/oauth-authorization-server" + path,
		origin + path + "/.well-known/openid-configuration",
	} {
		var uri string
		err := j.observed("discovery", func() error {
			data, _, err := j.get(ctx, from)
			if err != nil {
				return err
			}
			document, ok := decodeObject(data)
			if !ok {
				return fmt.Errorf("%s is not a JSON object", from)
			}
			if document["issuer"] != j.cfg.Issuer {
				// RFC 8414 section 3.3: or another tenant of that host could answer for this one.
				return fmt.Errorf("%s is the metadata of %q", from, document["issuer"])
			}
			uri, _ = document["jwks_uri"].(string)
			if _, err := endpoint(uri); err != nil {
				return fmt.Errorf("jwks_uri in %s: %w", from, err)
			}
			return nil
		})
		if err == nil {
			return uri, nil
		}
		failures = append(failures, err)
	}
	return "", errors.Join(failures...)
}

// get returns what uri answers, if it is 200 and not too large.
func (j *JWT) get(ctx context.Context, uri string) ([]byte, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return nil, nil, err
	}
	if own, err := url.Parse(cmp.Or(j.cfg.JWKSURI, j.cfg.Issuer)); err == nil && own.Scheme == req.URL.Scheme && own.Host == req.URL.Host {
		for name, values := range j.cfg.Header {
			req.Header[http.CanonicalHeaderKey(name)] = values
		}
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := j.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("%s answered %s", uri, resp.Status)
	}
	data, err := readKeys(resp.Body)
	if err != nil {
		return nil, nil, fmt.Errorf("reading %s: %w", uri, err)
	}
	return data, resp.Header, nil
}

// goodFor is RefreshInterval, or what the answer's Cache-Control says, if that is less.
func (j *JWT) goodFor(header http.Header) time.Duration {
	for directive := range strings.SplitSeq(strings.Join(header.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		if !strings.EqualFold(name, "max-age") {
			continue
		}
		seconds, err := strconv.ParseInt(strings.Trim(value, `"`), 10, 64)
		if err != nil || seconds <= 0 || seconds > int64(j.cfg.RefreshInterval/time.Second) {
			break
		}
		return max(time.Duration(seconds)*time.Second, j.cfg.MinRefresh)
	}
	return j.cfg.RefreshInterval
}

// readKeysFile reads a file with keys.
func readKeysFile(path string) ([]byte, error) {
	// Opening a pipe would wait for somebody to write, and Close with it.
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readKeys(f)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return data, nil
}

func readKeys(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxKeysSize+1))
	if err == nil && len(data) > maxKeysSize {
		err = fmt.Errorf("more than %d bytes", maxKeysSize)
	}
	return data, err
}

// loopback reports whether host is this machine.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
