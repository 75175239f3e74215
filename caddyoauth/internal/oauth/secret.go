package oauth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// secretPrefix begins every generated secret, so that scanners find leaked ones.
const secretPrefix = "cos_"

// rememberFor is how long a success of a slow hash is remembered.
const rememberFor = 5 * time.Minute

// processKey is this process's own, never stored: what is remembered under it says
// nothing to anybody else.
var processKey = sync.OnceValue(func() []byte {
	key := make([]byte, 32)
	rand.Read(key) // never fails: the runtime ends the process instead
	return key
})

// Secret is one secret of a client, in a form that can check but not reveal it: the
// plain SHA-256 of a generated one, a slow hash of one that a person may have chosen,
// or, for one that the configuration refers to in plain text, a MAC under a key of
// this process.
type Secret struct {
	// Until ends the secret's life; the zero time never does.
	Until time.Time

	kind  hashKind
	cost  slowCost // zero unless kind is slow
	bytes []byte   // digest; for bcrypt the whole hash string
	salt  []byte   // Argon2id

	// success is the last proof that this secret was right, at most one for each
	// configured secret, so it needs no other bound. A new configuration has new
	// Secrets and so forgets all.
	success atomic.Pointer[success]
}

type hashKind int

const (
	kindSHA256 hashKind = iota
	kindProcessMAC
	kindArgon2id
	kindBcrypt
)

// slowCost identifies the work of one slow hash.
type slowCost struct {
	kind    hashKind
	memory  uint32 // Argon2id, KiB
	time    uint32 // Argon2id passes, or bcrypt's cost
	threads uint8  // Argon2id
	length  uint32 // Argon2id, of the digest
}

type success struct {
	mac   [sha256.Size]byte
	until time.Time
}

// String keeps it out of anything that prints.
func (s *Secret) String() string { return "REDACTED" }

// GoString likewise.
func (s *Secret) GoString() string { return "REDACTED" }

// PlainSecret makes a Secret of plain text that the configuration refers to, in an
// environment variable or a file. The text is not kept. One that a person may have
// chosen is treated as if its Argon2id hash stood in the configuration, so that trying
// it out is slow; computing that hash takes a moment.
func PlainSecret(plain string) (*Secret, error) {
	if err := checkSecret(plain); err != nil {
		return nil, err
	}
	if !canBeGuessed(plain) {
		return macSecret(plain), nil
	}
	hash, err := HashArgon2id(plain)
	if err != nil {
		return nil, err
	}
	return HashedSecret(hash)
}

// canBeGuessed reports whether a secret may be one that a person has chosen: it was not
// generated here and has less than 32 characters, in which 128 random bits fit however
// they are written.
func canBeGuessed(plain string) bool { return !generated(plain) && len(plain) < 32 }

// macSecret makes a Secret that is checked in microseconds.
func macSecret(plain string) *Secret {
	s := &Secret{kind: kindProcessMAC}
	s.bytes = s.mac(plain)
	return s
}

// HashedSecret makes a Secret of its hash:
//
//	$sha256$<base64>                                   for generated secrets of 256 random bits
//	$argon2id$v=19$m=<KiB>,t=<passes>,p=<threads>$<salt>$<digest>
//	$2a$, $2b$ or $2y$                                 bcrypt
//
// A hash that is weak, or whose parameters would make each check a burden, is refused.
func HashedSecret(hash string) (*Secret, error) {
	switch {
	case strings.ContainsAny(hash, "\r\n"): // base64 would pass over them, strict or not
		return nil, errors.New("the hash has a line break")
	case strings.HasPrefix(hash, "$sha256$"):
		digest, err := base64.RawStdEncoding.Strict().DecodeString(hash[len("$sha256$"):])
		if err != nil || len(digest) != sha256.Size {
			return nil, errors.New("a $sha256$ hash is 43 characters of unpadded base64 after its prefix")
		}
		return &Secret{kind: kindSHA256, bytes: digest}, nil
	case strings.HasPrefix(hash, "$argon2id$"):
		return parseArgon2id(hash)
	case strings.HasPrefix(hash, "$2a$"), strings.HasPrefix(hash, "$2b$"), strings.HasPrefix(hash, "$2y$"):
		cost, err := bcrypt.Cost([]byte(hash))
		// With a character that is not bcrypt's own, each check would fail before it did its
		// work, and the time would tell that this client exists.
		if err != nil || len(hash) != 60 || hash[6] != '$' || strings.Trim(hash[7:], bcryptAlphabet) != "" {
			return nil, errors.New("the bcrypt hash is malformed")
		}
		if cost < 10 || cost > 14 {
			return nil, fmt.Errorf("bcrypt cost %d is outside 10 to 14: less is too weak, more lets strangers burn this server's time", cost)
		}
		return &Secret{kind: kindBcrypt, bytes: []byte(hash), cost: slowCost{kind: kindBcrypt, time: uint32(cost)}}, nil
	case hash == "":
		return nil, errors.New("the hash is empty")
	}
	return nil, errors.New("the hash is of no known kind (known: $argon2id$, $2b$ for bcrypt, $sha256$ for generated secrets)")
}

// bcryptAlphabet is what a bcrypt hash is written in after its cost.
const bcryptAlphabet = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

func parseArgon2id(hash string) (*Secret, error) {
	parts := strings.Split(hash, "$") // "", argon2id, v=19, m=…,t=…,p=…, salt, digest
	if len(parts) != 6 || parts[2] != "v=19" {
		return nil, errors.New("an Argon2id hash looks like $argon2id$v=19$m=<KiB>,t=<passes>,p=<threads>$<salt>$<digest>")
	}
	var numbers [3]uint64
	params := strings.Split(parts[3], ",")
	if len(params) != 3 {
		return nil, errors.New("an Argon2id hash needs the parameters m, t and p")
	}
	for i, name := range []string{"m=", "t=", "p="} {
		digits, ok := strings.CutPrefix(params[i], name)
		n, err := strconv.ParseUint(digits, 10, 32)
		if !ok || err != nil || digits != strconv.FormatUint(n, 10) {
			return nil, errors.New("an Argon2id hash needs the parameters m, t and p, in this order")
		}
		numbers[i] = n
	}
	m, t, p := numbers[0], numbers[1], numbers[2]
	switch {
	case m > 256*1024 || t > 10 || p > 4:
		return nil, errors.New("Argon2id parameters are too high (at most m=262144, t=10, p=4): each check would let strangers burn this server's memory and time")
	case p < 1 || m < 7*1024 || m*t < 32*1024:
		return nil, errors.New("Argon2id parameters are too low (at least m=7168 and m×t=32768, such as m=19456,t=2,p=1)")
	}
	salt, err1 := base64.RawStdEncoding.Strict().DecodeString(parts[4])
	digest, err2 := base64.RawStdEncoding.Strict().DecodeString(parts[5])
	if err1 != nil || err2 != nil || len(salt) < 8 || len(salt) > 64 || len(digest) < 16 || len(digest) > 64 {
		return nil, errors.New("an Argon2id hash needs a salt of 8 to 64 and a digest of 16 to 64 bytes, in unpadded base64")
	}
	return &Secret{
		kind: kindArgon2id, salt: salt, bytes: digest,
		cost: slowCost{kind: kindArgon2id, memory: uint32(m), time: uint32(t), threads: uint8(p), length: uint32(len(digest))},
	}, nil
}

func (s *Secret) validAt(now time.Time) bool { return s.Until.IsZero() || now.Before(s.Until) }

func (s *Secret) slow() bool { return s.kind == kindArgon2id || s.kind == kindBcrypt }

// quick reports whether secret is right, if that can be told in microseconds.
func (s *Secret) quick(secret string) bool {
	switch s.kind {
	case kindSHA256:
		sum := sha256.Sum256([]byte(secret))
		return subtle.ConstantTimeCompare(sum[:], s.bytes) == 1
	case kindProcessMAC:
		return hmac.Equal(s.mac(secret), s.bytes)
	}
	return false
}

// mac is a MAC of secret under the process's key; for a slow hash together with the
// hash that it was proved against, so that a success counts for that hash alone.
func (s *Secret) mac(secret string) []byte {
	mac := hmac.New(sha256.New, processKey())
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(secret)))
	mac.Write(n[:])
	mac.Write([]byte(secret))
	if s.slow() {
		mac.Write(s.salt)
		mac.Write(s.bytes)
	}
	return mac.Sum(nil)
}

// remembered reports whether secret was proved right by the slow hash a short while ago.
func (s *Secret) remembered(secret string, now time.Time) bool {
	last := s.success.Load()
	return last != nil && now.Before(last.until) && hmac.Equal(s.mac(secret), last.mac[:])
}

// hash computes the slow hash and reports whether secret is right.
func (s *Secret) hash(secret string) bool {
	if s.kind == kindBcrypt {
		// bcrypt reads 72 bytes and would let anything follow. The library refuses longer
		// ones when hashing but not when comparing.
		tooLong := len(secret) > 72
		if tooLong {
			secret = secret[:72]
		}
		return bcrypt.CompareHashAndPassword(s.bytes, []byte(secret)) == nil && !tooLong
	}
	c := s.cost
	digest := argon2.IDKey([]byte(secret), s.salt, c.time, c.memory, c.threads, c.length)
	return subtle.ConstantTimeCompare(digest, s.bytes) == 1
}

// workload is how many hashes of each cost a failed authentication computes.
type workload map[slowCost]int

// heaviest is the least work under which every client's failure can hide: of each
// kind of hash, as many as the client with the most of them has. In the usual realm
// that is one.
func heaviest(clients map[string]*Client) workload {
	most := workload{}
	for _, c := range clients {
		for cost, n := range workOf(c.Secrets) {
			most[cost] = max(most[cost], n)
		}
	}
	return most
}

func workOf(secrets []*Secret) workload {
	w := workload{}
	for _, s := range secrets {
		if s.slow() {
			w[s.cost]++
		}
	}
	return w
}

// Hasher bounds the slow hashes of a configuration: a few at once, a short queue behind them,
// and of the queue no more than a share for each address, so that one who guesses
// does not shut out the others. It is safe for concurrent use.
type Hasher struct {
	slots chan struct{}

	mu      sync.Mutex
	waiting map[string]int // by address; never more entries than queue
	total   int
	queue   int
	share   int

	// hashes counts the slow hashes computed, for tests of equal work.
	hashes atomic.Int64
}

// NewHasher makes a Hasher for this machine: a slot for each processor but one, which
// stays free for clients whose secrets are quick to check; 16 places in the queue for
// each slot; a quarter of the queue for each address.
func NewHasher() *Hasher {
	n := max(1, runtime.GOMAXPROCS(0)-1)
	return &Hasher{slots: make(chan struct{}, n), queue: 16 * n, share: 4 * n, waiting: make(map[string]int)}
}

// errHashesBusy tells the client to come back; it says nothing of its credentials.
var errHashesBusy = &Error{Code: CodeUnavailable, Description: "too many authentications under way", Reason: "busy"}

// check computes the workload: first the hashes of the candidates, then, unless one of
// them was right, dummies for the rest. All that work stands in one place of the queue.
func (h *Hasher) check(ctx context.Context, work workload, candidates []*Secret, secret string, now time.Time, from string) (bool, error) {
	if len(work) == 0 {
		return false, nil // no slow hashes in this realm: failing is quick for everybody
	}
	if err := h.enter(ctx, from); err != nil {
		return false, err
	}
	defer func() { <-h.slots }()

	done := workload{}
	for _, c := range candidates {
		if !c.slow() || !c.validAt(now) {
			continue
		}
		done[c.cost]++
		h.hashes.Add(1)
		if c.hash(secret) {
			remember := &success{until: now.Add(rememberFor)}
			copy(remember.mac[:], c.mac(secret))
			c.success.Store(remember)
			return true, nil
		}
	}
	for cost, n := range work {
		for range n - done[cost] {
			h.hashes.Add(1)
			dummy(cost).hash(secret)
		}
	}
	return false, nil
}

// enter waits for a slot. The caller gives it back.
func (h *Hasher) enter(ctx context.Context, from string) error {
	h.mu.Lock()
	if h.total >= h.queue || h.waiting[from] >= h.share {
		h.mu.Unlock()
		return errHashesBusy
	}
	h.total++
	h.waiting[from]++
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.total--
		if h.waiting[from]--; h.waiting[from] == 0 {
			delete(h.waiting, from)
		}
	}()
	select {
	case h.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// quickDummy stands in where there is no secret to compare with.
var quickDummy = &Secret{kind: kindSHA256, bytes: make([]byte, sha256.Size)}

// dummy is a Secret of the given cost that nothing matches.
func dummy(cost slowCost) *Secret {
	if cost.kind == kindBcrypt {
		return &Secret{kind: kindBcrypt, cost: cost, bytes: dummyBcrypt(cost.time)}
	}
	return &Secret{kind: kindArgon2id, cost: cost, salt: make([]byte, 16), bytes: make([]byte, cost.length)}
}

// dummyBcrypt is a well-formed hash with a digest of zeros. Nobody knows a secret for
// it, and were one found it would help nobody: dummies belong to no client.
func dummyBcrypt(cost uint32) []byte {
	return fmt.Appendf(nil, "$2a$%02d$%s", cost, strings.Repeat(".", 53))
}

// HashArgon2id hashes secret with the parameters OWASP recommends first: 19 MiB, two
// passes, one thread.
func HashArgon2id(secret string) (string, error) {
	if err := checkSecret(secret); err != nil {
		return "", err
	}
	const m, t, p = 19456, 2, 1
	salt := make([]byte, 16)
	rand.Read(salt)
	digest := argon2.IDKey([]byte(secret), salt, t, m, p, 32)
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, m, t, p, b64(salt), b64(digest)), nil
}

// HashBcrypt hashes secret with cost 12. Secrets over 72 bytes are refused: bcrypt
// would ignore the rest.
func HashBcrypt(secret string) (string, error) {
	if err := checkSecret(secret); err != nil {
		return "", err
	}
	if len(secret) > 72 {
		return "", errors.New("bcrypt reads only the first 72 bytes of a secret; use argon2id for longer ones")
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(secret), 12)
	return string(hash), err
}

// HashGenerated is the plain SHA-256 form, for generated secrets only: their 256
// random bits leave a slow hash nothing to add.
func HashGenerated(secret string) (string, error) {
	if !generated(secret) {
		return "", errors.New("sha256 is for secrets made by generate-secret; hash others with argon2id")
	}
	sum := sha256.Sum256([]byte(secret))
	return "$sha256$" + base64.RawStdEncoding.EncodeToString(sum[:]), nil
}

// GenerateSecret makes a secret of 256 random bits.
func GenerateSecret() string {
	b := make([]byte, 32)
	rand.Read(b)
	return secretPrefix + base64.RawURLEncoding.EncodeToString(b)
}

func generated(secret string) bool {
	text, ok := strings.CutPrefix(secret, secretPrefix)
	raw, err := base64.RawURLEncoding.DecodeString(text)
	// Written again, because reading passes over line breaks and spare bits.
	return ok && err == nil && len(raw) == 32 && base64.RawURLEncoding.EncodeToString(raw) == text
}

// checkSecret refuses what could never be sent as a secret.
func checkSecret(secret string) error {
	switch {
	case secret == "":
		return errors.New("the secret is empty")
	case len(secret) > maxSecretBytes:
		return fmt.Errorf("the secret is longer than %d bytes", maxSecretBytes)
	case !plainText(secret):
		return errors.New("the secret is not UTF-8 text, or holds a NUL")
	}
	return nil
}
