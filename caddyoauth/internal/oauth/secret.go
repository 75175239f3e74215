package oauth

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
	"weak"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// secretPrefix begins every generated secret, so that scanners find leaked ones.
const secretPrefix = "cos_"

// processKey belongs to this process and is never stored: what is remembered under it says
// nothing to anybody else.
var processKey = sync.OnceValue(func() []byte {
	key := make([]byte, 32)
	rand.Read(key) // never fails: the runtime ends the process instead
	return key
})

// Secret is one secret of a client, in a form that can check it but not reveal it: the plain
// SHA-256 of a generated secret, a slow hash of one that a person may have chosen, or, for a
// secret that the configuration refers to in plain text, a MAC under a key of this process.
type Secret struct {
	// ID names the secret among those of its client, for people. It must be of no use to whoever guesses.
	ID string

	// From is when the secret begins to be valid; the zero time is from the start. Until is when it stops;
	// the zero time is never.
	From, Until time.Time

	// RetireUnused is after how long without use the secret is to go, if there is a newer one, which is
	// listed below it; zero is never.
	RetireUnused time.Duration

	*digest
}

// digest is what a secret is compared with. It is immutable, and several configurations may
// share one.
type digest struct {
	kind  hashKind
	cost  slowCost // zero unless kind is slow
	bytes []byte   // for bcrypt the whole hash string
	salt  []byte   // Argon2id, PBKDF2
}

type hashKind int

const (
	kindSHA256 hashKind = iota
	kindProcessMAC
	kindArgon2id
	kindBcrypt
	kindPBKDF2SHA256
	kindPBKDF2SHA512
)

// slowCost identifies the work of one slow hash.
type slowCost struct {
	kind    hashKind
	memory  uint32 // Argon2id, KiB
	time    uint32 // Argon2id passes, PBKDF2 rounds, or bcrypt's cost
	threads uint8  // Argon2id
	length  uint32 // Argon2id and PBKDF2, of the digest
}

// String keeps the secret out of anything that prints the value.
func (s *Secret) String() string { return "REDACTED" }

// GoString keeps the secret out of %#v.
func (s *Secret) GoString() string { return "REDACTED" }

// Mark returns a value that is the same for secrets that are seen to be the same: of the same text,
// or with the same hash. It is for comparisons within a process.
func (s *Secret) Mark() [sha256.Size]byte {
	return sha256.Sum256(fmt.Appendf(nil, "%v %q %q", s.cost, s.salt, append([]byte{byte(s.kind)}, s.bytes...)))
}

// PlainSecret makes a Secret of plain text that the configuration refers to, in an environment
// variable or a file. The text is not kept. A secret that a person may have chosen is treated
// as if its Argon2id hash stood in the configuration, so that trying it out is slow. Computing
// that hash takes a moment, once for all successive configurations with this secret.
func PlainSecret(plain string) (*Secret, error) {
	if err := CheckSecret(plain); err != nil {
		return nil, err
	}
	if !canBeGuessed(plain) {
		return macSecret(plain), nil
	}
	return hashedHere.secret(plain)
}

// hashedHere holds the hashes of secrets that configurations refer to, by a MAC of the secret.
// The hash has a random salt, so a reload that leaves a secret as it is has to find it here to
// find what is remembered about it. An entry ends with the last configuration that uses its
// hash, so there are no more entries than the configurations in use have secrets.
var hashedHere = hashes{digests: make(map[[sha256.Size]byte]weak.Pointer[digest])}

type hashes struct {
	mu      sync.Mutex
	digests map[[sha256.Size]byte]weak.Pointer[digest]
}

func (h *hashes) secret(plain string) (*Secret, error) {
	key := processMAC(nil, plain)
	h.mu.Lock()
	known := h.digests[key].Value()
	h.mu.Unlock()
	if known != nil {
		return &Secret{digest: known}, nil
	}
	hash, err := HashArgon2id(plain)
	if err != nil {
		return nil, err
	}
	s, err := HashedSecret(hash)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.digests[key] = weak.Make(s.digest)
	h.mu.Unlock()
	runtime.AddCleanup(s.digest, h.drop, key)
	return s, nil
}

// drop removes an entry whose hash nobody uses anymore.
func (h *hashes) drop(key [sha256.Size]byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.digests[key].Value() == nil { // otherwise it has been made anew
		delete(h.digests, key)
	}
}

// canBeGuessed reports whether a person may have chosen a secret: it was not generated here and
// has less than 32 characters, enough for 128 random bits however they are written.
func canBeGuessed(plain string) bool { return !generated(plain) && len(plain) < 32 }

// macSecret makes a Secret that is checked in microseconds.
func macSecret(plain string) *Secret {
	mac := processMAC(nil, plain)
	return &Secret{digest: &digest{kind: kindProcessMAC, bytes: mac[:]}}
}

// HashedSecret makes a Secret from its hash:
//
//	$sha256$<base64>                                   for generated secrets of 256 random bits
//	$argon2id$v=19$m=<KiB>,t=<passes>,p=<threads>$<salt>$<digest>
//	$2a$, $2b$ or $2y$                                 bcrypt
//	$pbkdf2-sha256$i=<rounds>,l=<length>$<salt>$<digest>   as Ory Hydra writes it, or -sha512
//	$pbkdf2-sha512$<rounds>$<salt>$<digest>                as Authelia and passlib do, or -sha256
//
// It refuses a hash that is weak, or whose parameters would make each check a burden.
func HashedSecret(hash string) (*Secret, error) {
	switch {
	case strings.ContainsAny(hash, "\r\n"): // base64 would skip them, strict or not
		return nil, errors.New("the hash contains a line break")
	case strings.HasPrefix(hash, "$sha256$"):
		sum, err := base64.RawStdEncoding.Strict().DecodeString(hash[len("$sha256$"):])
		if err != nil || len(sum) != sha256.Size {
			return nil, errors.New("a $sha256$ hash has 43 characters of unpadded base64 after its prefix")
		}
		return &Secret{digest: &digest{kind: kindSHA256, bytes: sum}}, nil
	case strings.HasPrefix(hash, "$argon2id$"):
		return parseArgon2id(hash)
	case strings.HasPrefix(hash, "$pbkdf2-sha256$"):
		return parsePBKDF2(hash, kindPBKDF2SHA256, sha256.Size, 600_000, 2_000_000)
	case strings.HasPrefix(hash, "$pbkdf2-sha512$"):
		return parsePBKDF2(hash, kindPBKDF2SHA512, sha512.Size, 210_000, 1_000_000)
	case strings.HasPrefix(hash, "$2a$"), strings.HasPrefix(hash, "$2b$"), strings.HasPrefix(hash, "$2y$"):
		cost, err := bcrypt.Cost([]byte(hash))
		// With a character outside bcrypt's alphabet, each check would fail before it did its
		// work, and the time would tell that this client exists.
		if err != nil || len(hash) != 60 || hash[6] != '$' || strings.Trim(hash[7:], bcryptAlphabet) != "" {
			return nil, errors.New("the bcrypt hash is malformed")
		}
		if cost < 10 || cost > 14 {
			return nil, fmt.Errorf("bcrypt cost %d is not between 10 and 14: less is too weak, and more would let strangers burn this server's time", cost)
		}
		return &Secret{digest: &digest{kind: kindBcrypt, bytes: []byte(hash), cost: slowCost{kind: kindBcrypt, time: uint32(cost)}}}, nil
	case hash == "":
		return nil, errors.New("the hash is empty")
	}
	return nil, errors.New("the hash is of an unknown kind (known: $argon2id$, $2b$, $2a$ and $2y$ for bcrypt, $pbkdf2-sha256$, $pbkdf2-sha512$, and $sha256$ for generated secrets)")
}

// bcryptAlphabet has the characters of a bcrypt hash after its cost.
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
			return nil, errors.New("an Argon2id hash needs the parameters m, t and p, in that order")
		}
		numbers[i] = n
	}
	m, t, p := numbers[0], numbers[1], numbers[2]
	switch {
	case m > 256*1024 || t > 10 || p > 4:
		return nil, errors.New("the Argon2id parameters are too high (at most m=262144, t=10, p=4): each check would let strangers burn this server's memory and time")
	case p < 1 || m < 7*1024 || m*t < 32*1024:
		return nil, errors.New("the Argon2id parameters are too low (at least m=7168 and m×t=32768, such as m=19456,t=2,p=1)")
	}
	salt, err1 := base64.RawStdEncoding.Strict().DecodeString(parts[4])
	sum, err2 := base64.RawStdEncoding.Strict().DecodeString(parts[5])
	if err1 != nil || err2 != nil || len(salt) < 8 || len(salt) > 64 || len(sum) < 16 || len(sum) > 64 {
		return nil, errors.New("an Argon2id hash needs a salt of 8 to 64 and a digest of 16 to 64 bytes, in unpadded base64")
	}
	return &Secret{digest: &digest{
		kind: kindArgon2id, salt: salt, bytes: sum,
		cost: slowCost{kind: kindArgon2id, memory: uint32(m), time: uint32(t), threads: uint8(p), length: uint32(len(sum))},
	}}, nil
}

// parsePBKDF2 reads a hash whose digest has at most as many bytes as the hash function gives:
// more would be more work for this server, but not for anybody who guesses.
func parsePBKDF2(hash string, kind hashKind, size, least, most int) (*Secret, error) {
	parts := strings.Split(hash, "$") // "", pbkdf2-…, rounds, salt, digest
	if len(parts) != 5 {
		return nil, errMalformedPBKDF2
	}
	digits, salt64, sum64, length := parts[2], parts[3], parts[4], ""
	if named, ok := strings.CutPrefix(digits, "i="); ok {
		if digits, length, ok = strings.Cut(named, ",l="); !ok || length == "" {
			return nil, errMalformedPBKDF2
		}
	} else {
		// passlib's base64 has a period in the place of the plus sign.
		if strings.Contains(salt64+sum64, "+") {
			return nil, errMalformedPBKDF2
		}
		salt64, sum64 = strings.ReplaceAll(salt64, ".", "+"), strings.ReplaceAll(sum64, ".", "+")
	}
	rounds, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || digits != strconv.FormatUint(rounds, 10) {
		return nil, errMalformedPBKDF2
	}
	switch {
	case rounds < uint64(least):
		return nil, fmt.Errorf("PBKDF2 with %d rounds is too weak (%s needs at least %d)", rounds, parts[1], least)
	case rounds > uint64(most):
		return nil, fmt.Errorf("PBKDF2 with %d rounds is too expensive (%s may have at most %d): each check would let strangers burn this server's time", rounds, parts[1], most)
	}
	salt, err1 := base64.RawStdEncoding.Strict().DecodeString(salt64)
	sum, err2 := base64.RawStdEncoding.Strict().DecodeString(sum64)
	if err1 != nil || err2 != nil || len(salt) < 8 || len(salt) > 64 || len(sum) < 16 || len(sum) > size {
		return nil, fmt.Errorf("a %s hash needs a salt of 8 to 64 and a digest of 16 to %d bytes, in unpadded base64", parts[1], size)
	}
	if length != "" && length != strconv.Itoa(len(sum)) {
		return nil, errMalformedPBKDF2
	}
	return &Secret{digest: &digest{kind: kind, salt: salt, bytes: sum, cost: slowCost{kind: kind, time: uint32(rounds), length: uint32(len(sum))}}}, nil
}

var errMalformedPBKDF2 = errors.New("a PBKDF2 hash looks like $pbkdf2-sha256$i=<rounds>,l=<length>$<salt>$<digest>, or $pbkdf2-sha256$<rounds>$<salt>$<digest> with . in the place of + in its base64")

func (s *Secret) validAt(now time.Time) bool { return s.hasBegun(now) && !s.hasEnded(now) }

// AllEnd returns when the first of a client's secrets ends, of those that have not yet, and whether all
// have ended. first is zero if none of the others ends, or there are none.
func AllEnd(secrets []*Secret, now time.Time) (first time.Time, all bool) {
	ended := 0
	for _, s := range secrets {
		switch {
		case s.hasEnded(now):
			ended++
		case !s.Until.IsZero() && (first.IsZero() || s.Until.Before(first)):
			first = s.Until
		}
	}
	return first, ended > 0 && ended == len(secrets)
}

func (s *Secret) hasBegun(now time.Time) bool { return !now.Before(s.From) }

func (s *Secret) hasEnded(now time.Time) bool { return !s.Until.IsZero() && !now.Before(s.Until) }

// endsBefore reports whether s stops being valid before other does.
func (s *Secret) endsBefore(other *Secret) bool {
	return !s.Until.IsZero() && (other.Until.IsZero() || s.Until.Before(other.Until))
}

func (d *digest) slow() bool { return d.cost != slowCost{} }

// quick reports whether secret is right, where that takes microseconds. Of a slow hash it
// reports false.
func (d *digest) quick(secret string) bool {
	switch d.kind {
	case kindSHA256:
		var room [64]byte // for a generated secret, and most others
		sum := sha256.Sum256(append(room[:0], secret...))
		return subtle.ConstantTimeCompare(sum[:], d.bytes) == 1
	case kindProcessMAC:
		mac := processMAC(nil, secret)
		return hmac.Equal(mac[:], d.bytes)
	}
	return false
}

// processMAC returns a MAC, under the process's key, of some texts and of the hash that the
// last one was proved against, if there is one. It stands in memory for secrets: without the
// key, nobody can make anything of it.
func processMAC(d *digest, texts ...string) (sum [sha256.Size]byte) {
	mac := hmac.New(sha256.New, processKey())
	number := func(n uint64) { mac.Write(binary.BigEndian.AppendUint64(nil, n)) }
	for _, text := range texts {
		number(uint64(len(text)))
		io.WriteString(mac, text)
	}
	if d != nil {
		for _, n := range []uint64{uint64(d.kind), uint64(d.cost.memory), uint64(d.cost.time), uint64(d.cost.threads), uint64(len(d.salt))} {
			number(n)
		}
		mac.Write(d.salt)
		mac.Write(d.bytes)
	}
	mac.Sum(sum[:0])
	return sum
}

// hash computes the slow hash and reports whether secret is right.
func (d *digest) hash(secret string) bool {
	var sum []byte
	switch c := d.cost; d.kind {
	case kindBcrypt:
		// bcrypt reads 72 bytes and would let anything follow. The library refuses longer
		// secrets when it hashes, but not when it compares.
		tooLong := len(secret) > 72
		if tooLong {
			secret = secret[:72]
		}
		return bcrypt.CompareHashAndPassword(d.bytes, []byte(secret)) == nil && !tooLong
	case kindArgon2id:
		sum = argon2.IDKey([]byte(secret), d.salt, c.time, c.memory, c.threads, c.length)
	case kindPBKDF2SHA256:
		sum = pbkdf2Key(sha256.New, secret, d)
	case kindPBKDF2SHA512:
		sum = pbkdf2Key(sha512.New, secret, d)
	}
	return subtle.ConstantTimeCompare(sum, d.bytes) == 1
}

// pbkdf2Key returns nil where the process may not compute the key, as with a short salt under
// GODEBUG=fips140=only.
func pbkdf2Key[H hash.Hash](h func() H, secret string, d *digest) []byte {
	sum, err := pbkdf2.Key(h, secret, d.salt, int(d.cost.time), int(d.cost.length))
	if err != nil {
		return nil
	}
	return sum
}

// workload is how many hashes of each cost a failed authentication computes.
type workload map[slowCost]int

// heaviest returns the least work behind which every client's failure can hide: of each kind
// of hash, as many as the client with the most of them has. In most realms that is one.
func heaviest(clients map[string]*Client) workload {
	most := workload{}
	for _, c := range clients {
		for cost, n := range workOf(c.Secrets) {
			most[cost] = max(most[cost], n)
		}
	}
	return most
}

// hashes returns how many hashes of any cost these are.
func (w workload) hashes() (n int) {
	for _, of := range w {
		n += of
	}
	return n
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

// quickWork is how many secrets of each kind a failed authentication compares, of those that take
// microseconds.
type quickWork [kindProcessMAC + 1]int

// mostQuick is like heaviest for such secrets.
func mostQuick(clients map[string]*Client) (most quickWork) {
	for _, c := range clients {
		var w quickWork
		for _, s := range c.Secrets {
			if !s.slow() {
				w[s.kind]++
				most[s.kind] = max(most[s.kind], w[s.kind])
			}
		}
	}
	return most
}

// noDigest is compared with where there is no secret.
var noDigest = make([]byte, sha256.Size)

// dummy returns a digest of the given cost that nothing matches.
func dummy(cost slowCost) *digest {
	if cost.kind == kindBcrypt {
		return &digest{kind: kindBcrypt, cost: cost, bytes: dummyBcrypt(cost.time)}
	}
	return &digest{kind: cost.kind, cost: cost, salt: make([]byte, 16), bytes: make([]byte, cost.length)}
}

// dummyBcrypt returns a well-formed hash with a digest of zeros. Nobody knows a secret for it,
// and finding one would help nobody: dummies belong to no client.
func dummyBcrypt(cost uint32) []byte {
	return fmt.Appendf(nil, "$2a$%02d$%s", cost, strings.Repeat(".", 53))
}

// HashArgon2id hashes secret with the parameters that OWASP recommends first: 19 MiB, two
// passes, one thread. It takes tens of milliseconds.
func HashArgon2id(secret string) (string, error) {
	if err := CheckSecret(secret); err != nil {
		return "", err
	}
	const m, t, p = 19456, 2, 1
	salt := make([]byte, 16)
	rand.Read(salt)
	sum := argon2.IDKey([]byte(secret), salt, t, m, p, 32)
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, m, t, p, b64(salt), b64(sum)), nil
}

// HashBcrypt hashes secret with cost 12. It refuses secrets over 72 bytes: bcrypt would ignore
// the rest.
func HashBcrypt(secret string) (string, error) {
	if err := CheckSecret(secret); err != nil {
		return "", err
	}
	if len(secret) > 72 {
		return "", errors.New("bcrypt reads only the first 72 bytes of a secret; use argon2id for longer ones")
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(secret), 12)
	return string(hash), err
}

// HashGenerated hashes secret with plain SHA-256. It is for generated secrets only: a slow hash
// has nothing to add to their 256 random bits.
func HashGenerated(secret string) (string, error) {
	if !generated(secret) {
		return "", errors.New("sha256 is only for secrets made by generate-secret; hash others with argon2id")
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
	// Encoded again, because decoding skips line breaks and spare bits.
	return ok && err == nil && len(raw) == 32 && base64.RawURLEncoding.EncodeToString(raw) == text
}

// CheckSecret refuses what could never be sent as a secret, and what is hardly the secret that
// was meant, because an editor or a shell added to it. No error holds any of it.
func CheckSecret(secret string) error {
	switch {
	case secret == "":
		return errors.New("the secret is empty")
	case strings.HasPrefix(secret, "\xef\xbb\xbf"):
		return errors.New("the secret begins with a byte order mark; save it as UTF-8 without one")
	case !plainText(secret):
		return errors.New("the secret is not UTF-8 text, or contains a NUL; PowerShell writes UTF-16 unless it is told otherwise")
	case strings.HasPrefix(secret, secretPrefix) && strings.Contains(secret, "\nsecret_hash "):
		return errors.New("these are the two lines that 'caddy oauth generate-secret' prints; keep the first, which is the secret, and put the second into the client's block in the Caddyfile")
	case strings.HasPrefix(secret, "secret_hash "):
		return errors.New("this is the Caddyfile line with the secret's hash; where the secret belongs, give the secret itself, and where its hash belongs, only the hash, without the word secret_hash")
	case strings.Trim(secret, "\r\n") != secret:
		return errors.New("the secret begins or ends with an empty line; remove it, since only one line end is dropped")
	case strings.ContainsAny(secret, "\r\n"):
		return errors.New("the secret has more than one line")
	case strings.TrimSpace(secret) != secret:
		return errors.New("the secret begins or ends with a space or a tab; remove it")
	case len(secret) > maxSecretBytes:
		return fmt.Errorf("the secret is longer than %d bytes", maxSecretBytes)
	}
	return nil
}
