package keys

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// Ring is the keys of one realm in one epoch. It is immutable.
type Ring struct {
	realm  string
	epoch  oauth.Epoch
	seals  []sealKey // the first is in use
	stored []byte
}

type sealKey struct {
	oauth.SealKey
	made time.Time
}

// storedRing is what follows the epoch in a store, as JSON.
type storedRing struct {
	Version int         `json:"v"`
	Seals   []storedKey `json:"seal"`
}

// storedKey is one key in a store.
type storedKey struct {
	ID   string `json:"id"`
	Made int64  `json:"made"` // unix seconds
	// Under names the encryption key; empty if Key is not encrypted.
	Under string `json:"under,omitempty"`
	Key   []byte `json:"key"`
}

// ringVersion is the version of the stored form. A reader fails on versions that it does not know:
// it must not replace what a later program has written.
const ringVersion = 1

var errCorrupt = errors.New("the keys in the token store are corrupt")

// New makes the ring of a new epoch, with keys of its own. now is when it is made.
func New(realm string, now time.Time, c *Cipher) (*Ring, error) {
	r := &Ring{realm: realm, epoch: oauth.Epoch(random(len(oauth.Epoch{})))}
	r.seals = []sealKey{{oauth.SealKey{ID: [4]byte(random(4)), Key: [32]byte(random(32))}, now.Truncate(time.Second)}}
	return r.encode(c)
}

// Read reads a ring as it lies in a store. It returns ErrNotConfigured if c can't decrypt it.
func Read(realm string, stored []byte, c *Cipher) (*Ring, error) {
	r := &Ring{realm: realm, stored: slices.Clone(stored)}
	if copy(r.epoch[:], stored) < len(r.epoch) {
		return nil, errCorrupt
	}
	var s storedRing
	if err := json.Unmarshal(stored[len(r.epoch):], &s); err != nil {
		return nil, errCorrupt // err would quote it
	}
	if s.Version != ringVersion {
		return nil, fmt.Errorf("%w: they have version %d, but this program knows only %d", errCorrupt, s.Version, ringVersion)
	}
	for _, k := range s.Seals {
		key := sealKey{made: time.Unix(k.Made, 0)}
		if n, err := hex.Decode(key.ID[:], []byte(k.ID)[:min(len(k.ID), 2*len(key.ID))]); err != nil || n != len(key.ID) {
			return nil, errCorrupt
		}
		plain, err := c.decrypt(k.Under, k.Key, r.about("seal", k.ID))
		if err != nil {
			return nil, err
		}
		if copy(key.Key[:], plain) != len(key.Key) || len(plain) != len(key.Key) {
			return nil, errCorrupt
		}
		r.seals = append(r.seals, key)
	}
	if len(r.seals) == 0 {
		return nil, errCorrupt
	}
	return r, nil
}

// about is what a stored key is bound to, so that it can't be put in the place of another.
func (r *Ring) about(use, id string) string {
	return use + "\x00" + r.realm + "\x00" + hex.EncodeToString(r.epoch[:]) + "\x00" + id
}

// encode returns the ring with its stored form, encrypted by c.
func (r *Ring) encode(c *Cipher) (*Ring, error) {
	s := storedRing{Version: ringVersion}
	for _, k := range r.seals {
		id := hex.EncodeToString(k.ID[:])
		under, key := c.encrypt(k.Key[:], r.about("seal", id))
		s.Seals = append(s.Seals, storedKey{ID: id, Made: k.made.Unix(), Under: under, Key: key})
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	next := *r
	next.stored = append(bytes.Clone(r.epoch[:]), text...)
	return &next, nil
}

// Encrypted returns the ring as c encrypts it, and whether that is another stored form than it has
// now: it is if the encryption key has changed.
func (r *Ring) Encrypted(c *Cipher) (_ *Ring, changed bool, _ error) {
	var s storedRing
	if err := json.Unmarshal(r.stored[len(r.epoch):], &s); err != nil {
		return nil, false, errCorrupt
	}
	if !slices.ContainsFunc(s.Seals, func(k storedKey) bool { return !c.current(k.Under) }) {
		return r, false, nil
	}
	next, err := r.encode(c)
	return next, true, err
}

// Stored returns the form in which the ring lies in a store: its epoch, then text. The caller must
// not change it.
func (r *Ring) Stored() []byte { return r.stored }

// Epoch returns the ring's epoch.
func (r *Ring) Epoch() oauth.Epoch { return r.epoch }

// Seals returns the keys of sealed tokens. The first one seals, all of them open.
func (r *Ring) Seals() []oauth.SealKey {
	var keys []oauth.SealKey
	for _, k := range r.seals {
		keys = append(keys, k.SealKey)
	}
	return keys
}
