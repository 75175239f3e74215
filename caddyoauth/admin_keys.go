package caddyoauth

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/keys"
)

// realmKeys describes the keys of a realm. Nothing in it is secret.
type realmKeys struct {
	Realm string `json:"realm"`
	// Epoch begins the name of the life of the store that the realm's self-contained tokens belong to.
	// It is empty if the realm has no keys there.
	Epoch string      `json:"epoch,omitempty"`
	Keys  []listedKey `json:"keys"`
}

// listedKey describes a key.
type listedKey struct {
	Use       string     `json:"use"` // "sign" or "seal"
	ID        string     `json:"id"`
	Algorithm string     `json:"algorithm,omitempty"`
	State     keys.State `json:"state"`
	// File is set for a key from a key_file. The times are those of other keys.
	File  bool       `json:"file,omitempty"`
	Made  *time.Time `json:"made,omitempty"`
	From  *time.Time `json:"from,omitempty"`
	Until *time.Time `json:"until,omitempty"` // not known as long as the key is in use
}

// statePublished is that of keys from files that don't sign: only who put them there knows whether they
// are next or old.
const statePublished keys.State = "published"

// listedKeys is the answer to GET /oauth/keys.
type listedKeys struct {
	Realms []realmKeys `json:"realms"`
}

// rotateRequest is the body of POST /oauth/keys/rotate.
type rotateRequest struct {
	// Realm may be left out if only one has keys.
	Realm string `json:"realm,omitempty"`
	// Withdraw ends the keys of before at once, and their tokens with them: those in Keys, or all.
	Withdraw bool     `json:"withdraw,omitempty"`
	Keys     []string `json:"keys,omitempty"`
}

// rotatedKeys is the answer to it.
type rotatedKeys struct {
	realmKeys
	New       []string `json:"new"` // IDs
	Withdrawn []string `json:"withdrawn"`
}

// serveKeyList lists the keys of all realms, or of the one that is named.
func serveKeyList(w http.ResponseWriter, r *http.Request) error {
	app, err := readAdminGet(w, r)
	if err != nil {
		return err
	}
	names := sortedKeys(app.realms)
	if name := r.URL.Query().Get("realm"); name != "" {
		if app.realms[name] == nil {
			return unknownRealm(name, names)
		}
		names = []string{name}
	}
	answer := listedKeys{Realms: []realmKeys{}}
	for _, name := range names {
		realm := app.realms[name]
		listed := realmKeys{Realm: name, Keys: realm.listFileKeys()}
		_, ring, err := app.storedRing(r.Context(), realm)
		switch {
		case errors.Is(err, errNoKeys):
		case err != nil:
			return adminError(http.StatusServiceUnavailable, "loading the keys of realm %q: %w", name, err)
		default:
			listed.add(ring, time.Now())
		}
		answer.Realms = append(answer.Realms, listed)
	}
	return answerJSON(w, answer)
}

// serveRotate gives a realm new keys. Once it answers 200, this gateway goes by them: a request that
// begins later doesn't pass with a token of a key that was withdrawn. After an error, the keys may
// have been rotated or not.
func serveRotate(w http.ResponseWriter, r *http.Request) error {
	var asked rotateRequest
	app, err := readAdminPost(w, r, &asked, "realm, a string, withdraw, true or false, and keys, a list of IDs")
	if err != nil {
		return err
	}
	if len(asked.Keys) > 0 && !asked.Withdraw {
		return adminError(http.StatusBadRequest, "keys are named only to withdraw them: set withdraw")
	}
	realm, err := app.realmToRotate(asked.Realm)
	if err != nil {
		return err
	}
	if len(realm.fileKeys()) > 0 && len(asked.Keys) == 0 {
		return adminError(http.StatusConflict, "the JWTs of realm %q are signed with keys from key_file: change the files, and reload", realm.name)
	}
	if realm.hmac != nil && len(asked.Keys) == 0 {
		return adminError(http.StatusConflict, "the JWTs of realm %q are signed with jwt_hmac_secret: change the secret, and reload", realm.name)
	}
	// Whoever asked may go away. If the store did it all the same, this gateway must go by it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), startTimeout)
	defer cancel()
	before, after, err := app.rotate(ctx, realm, asked)
	if err != nil {
		return err
	}
	answer := rotatedKeys{realmKeys: realmKeys{Realm: realm.name, Keys: realm.listFileKeys()}, New: newIDs(before, after), Withdrawn: newIDs(after, before)}
	answer.add(after, time.Now())
	app.logger.Info("keys rotated", append([]zap.Field{
		zap.String("event", "keys_rotated"), zap.String("realm", realm.name),
		zap.Strings("new", answer.New), zap.Strings("withdrawn", answer.Withdrawn),
	}, adminCaller(r)...)...)
	return answerJSON(w, answer)
}

func answerJSON(w http.ResponseWriter, answer any) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	return json.NewEncoder(w).Encode(answer)
}

func unknownRealm(name string, known []string) error {
	return adminError(http.StatusNotFound, "unknown realm '%s' (known: %s)", loggedText(name), strings.Join(known, ", "))
}

// realmToRotate returns the realm that is meant. The error is the answer, and lists what there is.
func (a *App) realmToRotate(name string) (*servedRealm, error) {
	if name != "" {
		realm := a.realms[name]
		if realm == nil {
			return nil, unknownRealm(name, sortedKeys(a.realms))
		}
		if !realm.hasKeys() {
			return nil, adminError(http.StatusConflict, "realm %q has no keys: it issues neither sealed tokens nor JWTs", name)
		}
		return realm, nil
	}
	var with []string
	for _, name := range sortedKeys(a.realms) {
		if a.realms[name].hasKeys() {
			with = append(with, name)
		}
	}
	switch len(with) {
	case 1:
		return a.realms[with[0]], nil
	case 0:
		return nil, adminError(http.StatusConflict, "no realm has keys: none issues sealed tokens or JWTs")
	}
	return nil, adminError(http.StatusBadRequest, "several realms have keys: name one of %s", strings.Join(with, ", "))
}

// errNoKeys means that a realm has no keys in the store.
var errNoKeys = errors.New("the realm has no keys in the token store")

// storedRing returns the keys of a realm that are in the store now, and how they are stored.
func (a *App) storedRing(ctx context.Context, r *servedRealm) (stored []byte, ring *keys.Ring, err error) {
	if a.run.opened == nil || a.run.opened.keys == nil {
		return nil, nil, errNoKeys
	}
	stored, err = a.run.opened.keys.Keys(ctx, r.name)
	if err == nil && stored == nil {
		err = errNoKeys
	}
	if err != nil {
		return nil, nil, err
	}
	ring, err = keys.Read(r.name, stored, a.cipher)
	return stored, ring, err
}

// rotate puts new keys of a realm into the store, and has this gateway go by them. The error is the
// answer.
func (a *App) rotate(ctx context.Context, r *servedRealm, asked rotateRequest) (before, after *keys.Ring, err error) {
	for {
		var stored []byte
		if stored, before, err = a.storedRing(ctx, r); err != nil {
			return nil, nil, adminError(http.StatusServiceUnavailable, "loading the keys of realm %q: %w", r.name, err)
		}
		if after, err = before.Rotated(time.Now(), r.wanted(), a.cipher, asked.Withdraw, asked.Keys...); err != nil {
			return nil, nil, adminError(http.StatusConflict, "%w", err)
		}
		swapped, err := a.run.opened.keys.SwapKeys(ctx, r.name, stored, after.Stored())
		if err != nil {
			a.run.opened.changed() // if they have been, agree finds out
			return nil, nil, adminError(http.StatusServiceUnavailable, "the keys may have been rotated or not, see 'caddy oauth keys list': the token store: %w", err)
		}
		if swapped {
			break
		} // else another gateway was quicker
	}
	// The encryption key of this App is that of the ring. An App that ends may not have it.
	if err := a.run.opened.shareKeys(r.name, func() (*keys.Ring, error) {
		_, ring, err := a.storedRing(ctx, r)
		return ring, err
	}); err != nil {
		return nil, nil, adminError(http.StatusServiceUnavailable, "the keys have been rotated, and this gateway will go by them once it can ask the token store again: %w", err)
	}
	return before, after, nil
}

// listFileKeys describes the realm's keys from files.
func (r *servedRealm) listFileKeys() []listedKey {
	list := []listedKey{}
	if r.signing == nil {
		return list
	}
	for i, k := range r.signing.files {
		state := keys.Used
		if i > 0 {
			state = statePublished
		}
		list = append(list, listedKey{Use: "sign", ID: k.ID(), Algorithm: k.Algorithm(), State: state, File: true})
	}
	return list
}

// add describes the keys of a ring.
func (k *realmKeys) add(ring *keys.Ring, now time.Time) {
	epoch := ring.Epoch()
	k.Epoch = hex.EncodeToString(epoch[:4])
	utc := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		t = t.UTC()
		return &t
	}
	for _, l := range ring.List(now) {
		k.Keys = append(k.Keys, listedKey{
			Use: l.Use, ID: l.ID, Algorithm: l.Algorithm, State: l.State, Made: utc(l.Made), From: utc(l.From), Until: utc(l.Until),
		})
	}
}

// newIDs returns the IDs of the keys that are in after and not in before.
func newIDs(before, after *keys.Ring) []string {
	ids := []string{}
	known := before.List(time.Time{})
	for _, k := range after.List(time.Time{}) {
		if !slices.ContainsFunc(known, func(o keys.Listed) bool { return o.ID == k.ID }) {
			ids = append(ids, k.ID)
		}
	}
	return ids
}
