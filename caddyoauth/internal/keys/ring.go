package keys

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// Ring is the keys of one realm in one epoch. It is immutable. What changes is made anew, and counts
// once it has been swapped in where the ring lies.
type Ring struct {
	realm string
	epoch oauth.Epoch
	// signs and seals have the keys in the order in which they were made. There is always one that
	// seals.
	signs, seals []ringKey
	stored       []byte
}

// ringKey is a key in a ring.
type ringKey struct {
	id   string
	sign *SigningKey // nil for one that seals
	seal oauth.SealKey
	made time.Time
	// from is when the key comes into use. Before that it is only known, so that nobody meets a token
	// of a key that he has not heard of.
	from time.Time
	// life is the longest lifetime of the tokens that it makes.
	life time.Duration
	// under names the encryption key that it is encrypted under in the store.
	under string
}

// storedRing is what follows the epoch in a store, as JSON.
type storedRing struct {
	Version int         `json:"v"`
	Signs   []storedKey `json:"sign,omitempty"`
	Seals   []storedKey `json:"seal"`
}

// storedKey is one key in a store. Times are unix seconds.
type storedKey struct {
	ID        string `json:"id"`
	Algorithm string `json:"alg,omitempty"` // of a key that signs
	Made      int64  `json:"made"`
	From      int64  `json:"from,omitempty"` // absent: made
	Life      int64  `json:"life,omitempty"` // seconds; absent: not known
	// Under names the encryption key; empty if Key is not encrypted.
	Under string `json:"under,omitempty"`
	// Key is PKCS #8 for a key that signs.
	Key []byte `json:"key"`
}

// ringVersion is the version of the stored form. A reader fails on versions, and on members, that it
// does not know: it must not replace what a later program has written.
const ringVersion = 1

const (
	// MaxKeys bounds how many keys of a kind a ring has.
	MaxKeys = 32
	// Lead is how long a signing key is published before it comes into use. Some verifiers fetch a JWK
	// set only each quarter of an hour, whatever key a token names. What they get may come from a
	// cache on the way, which may keep it for ten minutes; see jwksMaxAge in caddyoauth.
	Lead = 30 * time.Minute
	// sealLead is the same for keys that seal. Only the gateways of a store have to know them.
	sealLead = time.Minute
	// MinRotate is the least time between two keys that are made by schedule.
	MinRotate = time.Hour
	// grace is how long a key is kept after its last token should have expired, for clocks that are
	// not the same, and for a gateway that comes to know late that there is another key.
	grace = time.Hour
	// maxAhead is how far ahead of now a key may have been made by a gateway whose clock is not the
	// same. If it is more, a clock has been set back, and the schedule begins anew.
	maxAhead = 48 * time.Hour
	// maxWake bounds how long a ring is not looked at, as a timer does not notice that the clock was
	// set.
	maxWake = time.Hour
	// maxTime and maxLife bound what is believed of a stored key.
	maxTime = 1 << 38
	maxLife = 100 * 366 * 24 * 3600
)

var errCorrupt = errors.New("the keys in the token store are corrupt")

// Wanted is what a configuration asks of a ring.
type Wanted struct {
	// Algorithm is how the realm's JWTs are signed: one of Algorithms. Empty: it makes none.
	Algorithm string
	// Switch asks for a key of Algorithm at once if the newest key has another algorithm. Only a
	// configuration that comes into force asks for it, and once: gateways whose configurations differ
	// would otherwise make keys in turns.
	Switch bool
	// Rotate is how old the newest key may become; zero: as old as it will.
	Rotate time.Duration
	// Life is the longest lifetime of the realm's self-contained tokens.
	Life time.Duration
}

// Check returns an error if a ring could not have all the keys that would have to be kept.
func (w Wanted) Check() error {
	if w.Rotate == 0 {
		return nil
	}
	if w.Rotate < MinRotate {
		return fmt.Errorf("new keys each %v are too many: at least %v must lie between them", w.Rotate, MinRotate)
	}
	// Beside those with live tokens there are the one in use and the next.
	least := (w.Life + grace + Lead) / (MaxKeys - 2)
	if w.Rotate < least {
		return fmt.Errorf("new keys each %v are too many for tokens that live %v: each key is kept until its last token has expired, and at most %d are; at least %v must lie between them",
			w.Rotate, w.Life, MaxKeys, least.Truncate(time.Second)+time.Second)
	}
	return nil
}

// New makes the ring of a new epoch, with a key that seals. now is when it is made.
func New(realm string, now time.Time, c *Cipher) (*Ring, error) {
	r := &Ring{realm: realm, epoch: oauth.Epoch(random(len(oauth.Epoch{})))}
	r.seals = []ringKey{newSealKey(now, now, 0, c.name())}
	return r.encode(c)
}

func newSealKey(now, from time.Time, life time.Duration, under string) ringKey {
	k := ringKey{made: second(now), from: second(from), life: life, under: under}
	k.seal = oauth.SealKey{ID: [4]byte(random(4)), Key: [32]byte(random(32))}
	k.id = hex.EncodeToString(k.seal.ID[:])
	return k
}

func newSignKey(algorithm string, now, from time.Time, life time.Duration, under string) (ringKey, error) {
	key, err := NewSigningKey(algorithm)
	if err != nil {
		return ringKey{}, err
	}
	return ringKey{id: key.ID(), sign: key, made: second(now), from: second(from), life: life, under: under}, nil
}

// second returns t as it is stored.
func second(t time.Time) time.Time { return time.Unix(t.Unix(), 0) }

// Read reads a ring as it lies in a store. It returns ErrNotConfigured if c can't decrypt it.
func Read(realm string, stored []byte, c *Cipher) (*Ring, error) {
	r := &Ring{realm: realm, stored: slices.Clone(stored)}
	if copy(r.epoch[:], stored) < len(r.epoch) {
		return nil, errCorrupt
	}
	text := stored[len(r.epoch):]
	var version struct {
		Version int `json:"v"`
	}
	if err := json.Unmarshal(text, &version); err != nil {
		return nil, errCorrupt // err would quote it
	}
	if version.Version != ringVersion {
		return nil, fmt.Errorf("%w: they have version %d, but this program knows only %d", errCorrupt, version.Version, ringVersion)
	}
	var s storedRing
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return nil, errCorrupt
	}
	var err error
	if r.signs, err = r.read(s.Signs, "sign", c); err != nil {
		return nil, err
	}
	if r.seals, err = r.read(s.Seals, "seal", c); err != nil {
		return nil, err
	}
	if len(r.seals) == 0 {
		return nil, errCorrupt
	}
	return r, nil
}

// read reads the keys for one use.
func (r *Ring) read(stored []storedKey, use string, c *Cipher) ([]ringKey, error) {
	if len(stored) > MaxKeys {
		return nil, errCorrupt
	}
	var keys []ringKey
	for _, s := range stored {
		if s.From == 0 {
			s.From = s.Made
		}
		if s.Made < 0 || s.Made > maxTime || s.From < 0 || s.From > maxTime || s.Life < 0 || s.Life > maxLife {
			return nil, errCorrupt
		}
		plain, err := c.decrypt(s.Under, s.Key, r.about(use, s.ID))
		if err != nil {
			return nil, err
		}
		k := ringKey{made: time.Unix(s.Made, 0), from: time.Unix(s.From, 0), life: time.Duration(s.Life) * time.Second, under: s.Under}
		if use == "sign" {
			private, err := x509.ParsePKCS8PrivateKey(plain)
			if err != nil {
				return nil, errCorrupt
			}
			if k.sign, err = newSigningKey(private, s.Algorithm); err != nil {
				return nil, errCorrupt
			}
			k.id = k.sign.ID()
		} else {
			id, err := hex.DecodeString(s.ID)
			if err != nil || len(id) != len(k.seal.ID) || len(plain) != len(k.seal.Key) || s.Algorithm != "" {
				return nil, errCorrupt
			}
			k.seal = oauth.SealKey{ID: [4]byte(id), Key: [32]byte(plain)}
			k.id = hex.EncodeToString(id)
		}
		if k.id != s.ID || slices.ContainsFunc(keys, func(other ringKey) bool { return other.id == k.id }) {
			return nil, errCorrupt
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// about is what a stored key is bound to, so that it can't be put in the place of another.
func (r *Ring) about(use, id string) string {
	return use + "\x00" + r.realm + "\x00" + hex.EncodeToString(r.epoch[:]) + "\x00" + id
}

// encode returns the ring with its stored form, each key encrypted by c as its "under" says.
func (r *Ring) encode(c *Cipher) (*Ring, error) {
	s := storedRing{Version: ringVersion}
	for _, k := range r.signs {
		plain, err := x509.MarshalPKCS8PrivateKey(k.sign.private)
		if err != nil {
			return nil, err
		}
		stored, err := r.encodeKey(k, plain, "sign", c)
		if err != nil {
			return nil, err
		}
		stored.Algorithm = k.sign.Algorithm()
		s.Signs = append(s.Signs, stored)
	}
	for _, k := range r.seals {
		stored, err := r.encodeKey(k, k.seal.Key[:], "seal", c)
		if err != nil {
			return nil, err
		}
		s.Seals = append(s.Seals, stored)
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	next := *r
	next.stored = append(bytes.Clone(r.epoch[:]), text...)
	return &next, nil
}

func (r *Ring) encodeKey(k ringKey, plain []byte, use string, c *Cipher) (storedKey, error) {
	key, err := c.encrypt(k.under, plain, r.about(use, k.id))
	return storedKey{ID: k.id, Made: k.made.Unix(), From: k.from.Unix(), Life: int64(k.life / time.Second), Under: k.under, Key: key}, err
}

// Encrypted returns the ring as c encrypts it, and whether that is another stored form than it has
// now: it is if the encryption key has changed.
func (r *Ring) Encrypted(c *Cipher) (_ *Ring, changed bool, _ error) {
	next := *r
	for _, keys := range []*[]ringKey{&next.signs, &next.seals} {
		*keys = slices.Clone(*keys)
		for i := range *keys {
			if k := &(*keys)[i]; k.under != c.name() {
				k.under, changed = c.name(), true
			}
		}
	}
	if !changed {
		return r, false, nil
	}
	encoded, err := next.encode(c)
	return encoded, err == nil, err
}

// Stored returns the form in which the ring lies in a store: its epoch, then text. The caller must
// not change it.
func (r *Ring) Stored() []byte { return r.stored }

// Epoch returns the ring's epoch.
func (r *Ring) Epoch() oauth.Epoch { return r.epoch }

// Covers reports whether the ring has all keys of another stored form of it. It has not if another
// gateway has made a key, or has begun another epoch.
func (r *Ring) Covers(stored []byte) bool {
	s, ok := r.outline(stored)
	lacks := func(stored []storedKey, keys []ringKey) bool {
		return slices.ContainsFunc(stored, func(s storedKey) bool {
			return !slices.ContainsFunc(keys, func(k ringKey) bool { return k.id == s.ID })
		})
	}
	return ok && !lacks(s.Signs, r.signs) && !lacks(s.Seals, r.seals)
}

// Remaining returns the ring without the keys that another stored form of it does not have any more.
// It is for those who lack the encryption key of that form: to them, too, keys that were withdrawn are
// gone. It may be without any keys. If the form can't be understood at all, the ring is as it was.
func (r *Ring) Remaining(stored []byte) *Ring {
	s, ok := r.outline(stored)
	if !ok {
		return r
	}
	next := *r
	remaining := func(keys []ringKey, stored []storedKey) []ringKey {
		return slices.DeleteFunc(slices.Clone(keys), func(k ringKey) bool {
			return !slices.ContainsFunc(stored, func(s storedKey) bool { return s.ID == k.id })
		})
	}
	next.signs, next.seals = remaining(r.signs, s.Signs), remaining(r.seals, s.Seals)
	return &next
}

// outline reads what is not encrypted of another stored form of the ring.
func (r *Ring) outline(stored []byte) (s storedRing, ok bool) {
	text, ok := bytes.CutPrefix(stored, r.epoch[:])
	ok = ok && json.Unmarshal(text, &s) == nil && s.Version == ringVersion
	return s, ok
}

// inUse returns which of keys is in use: the last one whose time has come, or else the first one, as
// this gateway's clock may be behind. It returns -1 if there are none.
func inUse(keys []ringKey, now time.Time) int {
	for i, k := range slices.Backward(keys) {
		if !k.from.After(now) {
			return i
		}
	}
	return min(0, len(keys)-1)
}

// until returns when a key has not been needed any more, which is when its last token has expired. It
// returns the zero time if that can't be told: the key is the last one, or it is not known how long
// its tokens live.
func until(keys []ringKey, i int) time.Time {
	if i == len(keys)-1 || keys[i].life == 0 {
		return time.Time{}
	}
	next := slices.MinFunc(keys[i+1:], func(a, b ringKey) int { return a.from.Compare(b.from) })
	return next.from.Add(keys[i].life + grace)
}

// Seals returns the keys of sealed tokens. The first one, which is in use at now, seals; all of them
// open.
func (r *Ring) Seals(now time.Time) []oauth.SealKey {
	used := inUse(r.seals, now)
	if used < 0 {
		return nil // see Remaining
	}
	keys := []oauth.SealKey{r.seals[used].seal}
	for i, k := range r.seals {
		if i != used {
			keys = append(keys, k.seal)
		}
	}
	return keys
}

// Signer returns the key that signs at now, or nil if the ring has no signing keys.
func (r *Ring) Signer(now time.Time) *SigningKey {
	if i := inUse(r.signs, now); i >= 0 {
		return r.signs[i].sign
	}
	return nil
}

// SigningKeys returns the signing keys, the oldest first. All of them are published and verify.
func (r *Ring) SigningKeys() []*SigningKey {
	var keys []*SigningKey
	for _, k := range r.signs {
		keys = append(keys, k.sign)
	}
	return keys
}

// State says what a key is for at a certain time.
type State string

// The states of a key.
const (
	Next State = "next"   // known, so that it can come into use
	Used State = "in use" // makes tokens
	Old  State = "old"    // has made tokens that may be alive
)

// Listed describes a key to people.
type Listed struct {
	Use       string // "sign" or "seal"
	ID        string
	Algorithm string // of a key that signs
	State     State
	Made      time.Time
	From      time.Time // when it comes, or came, into use
	Until     time.Time // when it will be dropped; zero: that is not known yet
}

// List describes the keys, those that sign first, and the oldest of a kind first.
func (r *Ring) List(now time.Time) []Listed {
	var list []Listed
	for _, keys := range [][]ringKey{r.signs, r.seals} {
		used := inUse(keys, now)
		for i, k := range keys {
			l := Listed{Use: "seal", ID: k.id, State: Used, Made: k.made, From: k.from, Until: until(keys, i)}
			if k.sign != nil {
				l.Use, l.Algorithm = "sign", k.sign.Algorithm()
			}
			switch {
			case i > used:
				l.State = Next
			case i < used:
				l.State = Old
			}
			list = append(list, l)
		}
	}
	return list
}

// Kept returns the ring as it must be at now. It makes the first signing key if there is none, which
// is in use at once. It makes the next key of a kind when the newest is old enough, notes for how long
// keys have to be kept, and drops the keys whose last token has expired.
//
// The caller swaps it in if it has changed, or reads the ring again and starts anew if another
// gateway was quicker. It asks again at wake, since then there is something to do or another key
// comes into use; the zero time stands for never.
//
// New keys are encrypted as the others are: whoever can read the ring now must be able to read it
// then. See Encrypted.
func (r *Ring) Kept(now time.Time, w Wanted, c *Cipher) (next *Ring, changed bool, wake time.Time, err error) {
	made := *r
	if made.signs, err = keep(r.signs, now, w, w.Algorithm != "", Lead, func(from time.Time) (ringKey, error) {
		return newSignKey(w.Algorithm, now, from, roundUp(w.Life), r.under())
	}); err != nil {
		return nil, false, wake, err
	}
	if made.seals, err = keep(r.seals, now, w, true, sealLead, func(from time.Time) (ringKey, error) {
		return newSealKey(now, from, roundUp(w.Life), r.under()), nil
	}); err != nil {
		return nil, false, wake, err
	}
	for _, t := range []time.Time{wakeAt(made.signs, now, w, w.Algorithm != ""), wakeAt(made.seals, now, w, true)} {
		if latest := now.Add(maxWake); t.After(latest) {
			t = latest
		}
		if wake.IsZero() || !t.IsZero() && t.Before(wake) {
			wake = t
		}
	}
	if slices.Equal(made.signs, r.signs) && slices.Equal(made.seals, r.seals) {
		return r, false, wake, nil
	}
	next, err = made.encode(c)
	return next, err == nil, wake, err
}

// under names the encryption key that the ring is encrypted under.
func (r *Ring) under() string { return r.seals[len(r.seals)-1].under }

// keep does for the keys of one kind what Kept says. The configuration makes tokens with them if
// wanted is set. lead is how long a new key is known before it comes into use, and newKey makes one.
func keep(keys []ringKey, now time.Time, w Wanted, wanted bool, lead time.Duration, newKey func(from time.Time) (ringKey, error)) ([]ringKey, error) {
	var kept []ringKey
	for i, k := range keys {
		if end := until(keys, i); end.IsZero() || now.Before(end) {
			kept = append(kept, k)
		}
	}
	if !wanted {
		return kept, nil
	}
	var from time.Time // of a new key, if there is to be one
	if len(kept) == 0 {
		from = now
	} else {
		newest := kept[len(kept)-1]
		other := w.Switch && newest.sign != nil && newest.sign.Algorithm() != w.Algorithm
		if other && len(kept) >= MaxKeys {
			return nil, errFull
		}
		if at := due(newest, now, w); other || !at.IsZero() && !now.Before(at) && len(kept) < MaxKeys {
			from = now.Add(lead)
		}
	}
	if !from.IsZero() {
		k, err := newKey(from)
		if err != nil {
			return nil, err
		}
		kept = append(kept, k)
	}
	// Those that are not in use any more make no tokens of this lifetime.
	for i := inUse(kept, now); i < len(kept); i++ {
		kept[i].life = max(kept[i].life, roundUp(w.Life))
	}
	return kept, nil
}

// due returns when the newest key has to get a successor. The zero time stands for never.
func due(newest ringKey, now time.Time, w Wanted) time.Time {
	switch {
	case w.Rotate == 0:
		return time.Time{}
	case newest.made.After(now.Add(maxAhead)):
		return now
	}
	return newest.made.Add(w.Rotate)
}

// wakeAt returns when something is to be done about keys, or another one comes into use. The zero
// time stands for never.
func wakeAt(keys []ringKey, now time.Time, w Wanted, wanted bool) (wake time.Time) {
	sooner := func(t time.Time) {
		if t.After(now) && (wake.IsZero() || t.Before(wake)) {
			wake = t
		}
	}
	for i, k := range keys {
		sooner(k.from)
		sooner(until(keys, i))
	}
	if wanted {
		sooner(due(keys[len(keys)-1], now, w))
	}
	return wake
}

// roundUp returns a lifetime as it is stored.
func roundUp(life time.Duration) time.Duration {
	return min((life + time.Second - 1).Truncate(time.Second), maxLife*time.Second)
}

var errFull = fmt.Errorf("the realm has %d keys, which is the most: withdraw old ones, or wait until their last tokens have expired", MaxKeys)

// Rotated returns the ring with a new key of each kind that the configuration makes tokens with.
// They come into use as others do: once they have been published for a while. It fails if there are
// too many.
//
// If withdraw is set, all keys of before are gone at once, and with them their tokens; the new ones
// are in use at once. If ids name keys, just these are gone, and a new key of a kind is made only if
// the one in use was among them.
func (r *Ring) Rotated(now time.Time, w Wanted, c *Cipher, withdraw bool, ids ...string) (*Ring, error) {
	if len(ids) > 0 && !withdraw {
		return nil, errors.New("keys are named only to withdraw them")
	}
	for _, id := range ids {
		if !slices.ContainsFunc(slices.Concat(r.signs, r.seals), func(k ringKey) bool { return k.id == id }) {
			var known []string
			for _, l := range r.List(now) {
				known = append(known, fmt.Sprintf("%s (%s, %s)", l.ID, l.Use, l.State))
			}
			return nil, fmt.Errorf("the realm has no key %q: it has %s", id, strings.Join(known, ", "))
		}
	}
	// from says when a new key of a kind comes into use. The zero time says that there is to be none.
	after := func(keys []ringKey, lead time.Duration) (rest []ringKey, from time.Time) {
		if !withdraw {
			return slices.Clone(keys), now.Add(lead)
		}
		used := inUse(keys, now)
		for i, k := range keys {
			if len(ids) > 0 && !slices.Contains(ids, k.id) {
				rest = append(rest, k)
			} else if i == used {
				from = now
			}
		}
		return rest, from
	}
	next := *r
	var from time.Time
	next.signs, from = after(r.signs, Lead)
	if len(r.signs) == 0 {
		from = now
	}
	if w.Algorithm != "" && !from.IsZero() {
		k, err := newSignKey(w.Algorithm, now, from, roundUp(w.Life), r.under())
		if err != nil {
			return nil, err
		}
		next.signs = append(next.signs, k)
	}
	if next.seals, from = after(r.seals, sealLead); !from.IsZero() {
		next.seals = append(next.seals, newSealKey(now, from, roundUp(w.Life), r.under()))
	}
	if len(next.signs) > MaxKeys || len(next.seals) > MaxKeys {
		return nil, errFull
	}
	return next.encode(c)
}
