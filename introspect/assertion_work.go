package introspect

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"slices"
	"strings"
	"sync"
)

// The time of a refusal must not tell whether somebody is known, nor which keys they have. So each
// refusal verifies as many signatures as any guarded keys can make us verify, some of them with keys that
// are nobody's.

// mostWork has how many signatures a token can make us verify. It grows with the keys that become
// known, for as long as the process lives. A number is at most maxGuardedTried, and there is one for each
// algorithm and each size of key.
var mostWork struct {
	sync.RWMutex
	of map[workKind]int
}

// workKind is what the time of one verification depends on.
type workKind struct {
	alg string
	// size is that of the signature in bytes, if it is of RSA, and otherwise 0. Keys of RSA are not
	// tried for one of another size.
	size int
}

func (s signedToken) workKind() workKind {
	if isRSA(s.alg) {
		return workKind{s.alg, len(s.signature())}
	}
	return workKind{alg: s.alg}
}

func isRSA(alg string) bool { return strings.HasPrefix(alg, "RS") || strings.HasPrefix(alg, "PS") }

// announce raises mostWork to what the keys can cause.
func (s *keySet) announce() {
	work := make(map[workKind]int)
	for _, alg := range asymmetric {
		for i := range s.keys {
			if k := &s.keys[i]; k.fits(alg) {
				kind := workKind{alg: alg}
				if public, ok := k.public.(*rsa.PublicKey); ok {
					kind.size = public.Size()
				}
				work[kind]++
			}
		}
	}
	mostWork.Lock()
	defer mostWork.Unlock()
	if mostWork.of == nil {
		mostWork.of = make(map[workKind]int)
	}
	for kind, n := range work {
		mostWork.of[kind] = max(mostWork.of[kind], min(n, s.maxTried()))
	}
}

// worked returns how many signatures verify has verified for a token that it refused.
func (s *keySet) worked(token signedToken) (done int) {
	if s == nil {
		return 0
	}
	known := s.knows(token.kid)
	for i := range s.keys {
		k := &s.keys[i]
		if k.mayHaveSigned(token.alg, token.kid, known) && k.canMake(token.signature()) {
			done++
		}
	}
	return min(done, s.maxTried())
}

// pretend does the work of refusing a token, some of which is done.
func (s signedToken) pretend(done int) {
	kind := s.workKind()
	mostWork.RLock()
	most := max(1, mostWork.of[kind])
	mostWork.RUnlock()
	var decoy keySet
	if isRSA(kind.alg) {
		if kind.size < minModulus/8 || kind.size > maxModulus/8 {
			return // no key is tried for such a signature
		}
		// Any odd number takes as long as a modulus, and this one is tried for all signatures.
		modulus := new(big.Int).SetBytes(slices.Repeat([]byte{0xff}, kind.size))
		decoy.keys = []publicKey{{public: &rsa.PublicKey{N: modulus, E: 65537}}}
	} else if set, err := decoys(); err == nil {
		decoy = *set
	}
	s.kid = "" // which none of the decoys has
	for range most - done {
		decoy.verify(s)
	}
}

// decoys are keys that nobody has the private half of, one for each curve.
var decoys = sync.OnceValues(func() (*keySet, error) {
	ed25519Key, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	set := &keySet{keys: []publicKey{{public: ed25519Key}}}
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			return nil, err
		}
		set.keys = append(set.keys, publicKey{public: &key.PublicKey})
	}
	return set, nil
})
