package keys

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var start = time.Unix(1_800_000_000, 0)

// kept asks for the ring that must be at now, and checks what holds for every answer.
func kept(t testing.TB, r *Ring, now time.Time, w Wanted, c *Cipher) (*Ring, time.Time) {
	t.Helper()
	next, changed, wake, err := r.Kept(now, w, c)
	if err != nil {
		t.Fatal(err)
	}
	if changed == bytes.Equal(next.Stored(), r.Stored()) || next.Epoch() != r.Epoch() {
		t.Fatalf("changed: %t", changed)
	}
	if !wake.IsZero() && (!wake.After(now) || wake.After(now.Add(maxWake))) {
		t.Fatalf("to be asked again %v from now", wake.Sub(now))
	}
	if _, again, later, err := next.Kept(now, w.later(), c); again || err != nil || !later.Equal(wake) {
		t.Fatalf("what was kept is to be changed again: %t, %v, and again at %v, not %v", again, err, later, wake)
	}
	read, err := Read(r.realm, next.Stored(), c)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(read.List(now)), fmt.Sprint(next.List(now)); got != want {
		t.Fatalf("read as %s\nwritten as %s", got, want)
	}
	if len(next.signs) > MaxKeys || len(next.seals) > MaxKeys {
		t.Fatalf("%d keys sign, %d seal", len(next.signs), len(next.seals))
	}
	return next, wake
}

// later is what a configuration wants once it is in force.
func (w Wanted) later() Wanted { w.Switch = false; return w }

// wantedRing returns a ring as w wants it at start, with the ID of its signing key.
func wantedRing(t testing.TB, w Wanted) (*Ring, string) {
	t.Helper()
	r, err := New("root", start, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Signer(start) != nil || r.SigningKeys() != nil {
		t.Fatal("a new ring signs")
	}
	r, _ = kept(t, r, start, w, nil)
	if w.Algorithm == "" {
		return r, ""
	}
	return r, r.Signer(start).ID()
}

func ids(keys []*SigningKey) (ids []string) {
	for _, k := range keys {
		ids = append(ids, k.ID())
	}
	return ids
}

// The life of signing keys: the first signs at once, each other one is published first, and all are
// kept for as long as their tokens live.
func TestSigningKeysSucceedEachOther(t *testing.T) {
	w := Wanted{Algorithm: ES256, Rotate: 30 * 24 * time.Hour, Life: 2*time.Hour + time.Millisecond}
	r, first := wantedRing(t, w)
	if list := r.List(start); len(list) != 2 || list[0].State != Used || !list[0].From.Equal(start) || !list[0].Until.IsZero() {
		t.Fatalf("at first: %v", list)
	}
	at := func(after time.Duration) {
		t.Helper()
		r, _ = kept(t, r, start.Add(after), w, nil)
	}
	at(w.Rotate - 1)
	if len(r.signs) != 1 {
		t.Fatal("the next key is made before it is time")
	}
	at(w.Rotate)
	if len(r.signs) != 2 || len(r.seals) != 2 {
		t.Fatal("no next key is made")
	}
	second := r.SigningKeys()[1].ID()
	for after, signer := range map[time.Duration]string{0: first, Lead - 1: first, Lead: second, 1000 * time.Hour: second} {
		if got := r.Signer(start.Add(w.Rotate + after)).ID(); got != signer {
			t.Errorf("%v after it was made: %s signs", after, got)
		}
	}
	end := w.Rotate + Lead + 2*time.Hour + time.Second + grace // the lifetime, rounded up
	at(end - time.Second)
	if got := ids(r.SigningKeys()); !slices.Equal(got, []string{first, second}) {
		t.Errorf("a key whose tokens live is gone: %v", got)
	}
	if list := r.List(start.Add(w.Rotate)); list[0].State != Used || list[1].State != Next || !list[0].Until.Equal(start.Add(end)) {
		t.Errorf("while the next waits: %v", list)
	}
	if list := r.List(start.Add(end - 1)); list[0].State != Old || list[1].State != Used {
		t.Errorf("when the next is in use: %v", list)
	}
	at(end)
	if got := ids(r.SigningKeys()); !slices.Equal(got, []string{second}) {
		t.Errorf("a key without tokens is kept: %v", got)
	}
	if len(r.seals) != 1 {
		t.Errorf("%d keys seal", len(r.seals))
	}
}

// The key that seals changes a minute after the next one is known, and opens until its last token
// has expired.
func TestSealingKeysSucceedEachOther(t *testing.T) {
	w := Wanted{Rotate: time.Hour, Life: 3 * time.Hour}
	r, _ := wantedRing(t, w)
	first := r.Seals(start)[0]
	now := start.Add(w.Rotate)
	r, wake := kept(t, r, now, w, nil)
	if r.SigningKeys() != nil {
		t.Error("a ring that need not sign does")
	}
	if !wake.Equal(now.Add(sealLead)) || r.Seals(now)[0] != first || len(r.Seals(now)) != 2 {
		t.Errorf("to be asked again after %v", wake.Sub(now))
	}
	if seals := r.Seals(wake); seals[0] == first || seals[1] != first {
		t.Error("the next key does not seal, or the one before does not open")
	}
	w.Rotate = 0
	end := wake.Add(w.Life + grace)
	if r, _ = kept(t, r, end.Add(-1), w, nil); len(r.seals) != 2 {
		t.Error("a key whose tokens live is gone")
	}
	if r, wake = kept(t, r, end, w, nil); len(r.seals) != 1 || !wake.IsZero() {
		t.Errorf("%d keys, to be asked again at %v", len(r.seals), wake)
	}
}

// A key is kept as long as the longest lifetime needs that any configuration had while it was in use.
func TestLifetimesOnlyGrow(t *testing.T) {
	long := Wanted{Algorithm: EdDSA, Life: 24 * time.Hour}
	short := Wanted{Algorithm: EdDSA, Life: time.Hour}
	r, _ := wantedRing(t, short)
	r, _ = kept(t, r, start, long, nil)
	r, _ = kept(t, r, start, short, nil)
	r, err := r.Rotated(start, short, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	list := r.List(start)
	if want := start.Add(Lead + long.Life + grace); !list[0].Until.Equal(want) {
		t.Errorf("the signing key is kept until %v, want %v", list[0].Until, want)
	}
	if want := start.Add(sealLead + long.Life + grace); !list[2].Until.Equal(want) {
		t.Errorf("the sealing key is kept until %v, want %v", list[2].Until, want)
	}
	// The key that waits will make such tokens too; the one that is out of use makes none.
	later := start.Add(Lead)
	r, _ = kept(t, r, later, Wanted{Algorithm: EdDSA, Life: 100 * time.Hour}, nil)
	if got := r.signs[0].life; got != long.Life {
		t.Errorf("a key that is out of use has the lifetime %v", got)
	}
	if got := r.signs[1].life; got != 100*time.Hour {
		t.Errorf("the key in use has the lifetime %v", got)
	}
	// A configuration without JWTs does not say anything about theirs.
	r, _ = kept(t, r, later, Wanted{Life: 200 * time.Hour}, nil)
	if got := r.signs[1].life; got != 100*time.Hour {
		t.Errorf("the key in use has the lifetime %v", got)
	}
}

// Two gateways whose configurations name different algorithms make no keys in turns. The one whose
// configuration comes into force makes one key.
func TestAnotherAlgorithmIsSwitchedToOnce(t *testing.T) {
	es, ed := Wanted{Algorithm: ES256, Life: time.Hour}, Wanted{Algorithm: EdDSA, Life: time.Hour}
	r, first := wantedRing(t, es)
	for i := range 10 {
		r, _ = kept(t, r, start.Add(time.Duration(i)*time.Hour), []Wanted{es, ed}[i%2], nil)
	}
	if got := ids(r.SigningKeys()); !slices.Equal(got, []string{first}) {
		t.Fatalf("%d keys", len(got))
	}
	ed.Switch = true
	now := start.Add(10 * time.Hour)
	r, _ = kept(t, r, now, ed, nil)
	r, _ = kept(t, r, now, ed, nil) // tried again: it has the key
	if len(r.signs) != 2 || len(r.seals) != 1 || r.Signer(now).Algorithm() != ES256 || r.Signer(now.Add(Lead)).Algorithm() != EdDSA {
		t.Errorf("%v", r.List(now))
	}
	for i := range MaxKeys { // too much of it is an error, and never a lost key
		w := []Wanted{es, ed}[i%2]
		w.Switch = true
		next, _, _, err := r.Kept(now, w, nil)
		if err == nil {
			r = next
		} else if !errors.Is(err, errFull) || len(r.signs) != MaxKeys {
			t.Fatalf("with %d keys: %v", len(r.signs), err)
		}
	}
	if len(r.signs) != MaxKeys {
		t.Errorf("%d keys", len(r.signs))
	}
}

// Keys that a clock made which was wrong do no lasting harm.
func TestClocksThatAreSet(t *testing.T) {
	w := Wanted{Algorithm: EdDSA, Rotate: 24 * time.Hour, Life: time.Hour}
	const year = 365 * 24 * time.Hour
	for name, c := range map[string]struct {
		made  time.Duration // the first key's time, after now
		keys  int           // that sign at now
		later int           // and when the next is in use, but for the time of their tokens
	}{
		"a day ahead, as another gateway's may be": {24 * time.Hour, 1, 1},
		"a year ahead":   {year, 2, 2},
		"a year behind":  {-year, 2, 2},
		"decades behind": {-50 * year, 2, 2},
	} {
		r, err := New("root", start.Add(c.made), nil)
		if err != nil {
			t.Fatal(err)
		}
		r, _ = kept(t, r, start.Add(c.made), w, nil)
		first := r.Signer(start).ID() // although its time may not have come
		seal := r.Seals(start)[0]
		r, _ = kept(t, r, start, w, nil)
		if len(r.signs) != c.keys || r.Signer(start).ID() != first || r.Seals(start)[0] != seal {
			t.Errorf("%s: %v", name, r.List(start))
		}
		r, _ = kept(t, r, start.Add(Lead), w, nil)
		if len(r.signs) != c.later || (r.Signer(start.Add(Lead)).ID() == first) != (c.later == 1) {
			t.Errorf("%s, then: %v", name, r.List(start.Add(Lead)))
		}
		r, _ = kept(t, r, start.Add(Lead+w.Life+grace), w, nil)
		if len(r.signs) != 1 {
			t.Errorf("%s, at the end: %v", name, r.List(start))
		}
	}
	// A clock that goes back finds the key from before, which is good for a while.
	r, first := wantedRing(t, w)
	r, _ = kept(t, r, start.Add(w.Rotate), w, nil)
	if r.Signer(start.Add(w.Rotate+Lead)).ID() == first || r.Signer(start).ID() != first {
		t.Error("the key in use is not that of the time")
	}
}

// Gateways with clocks that differ a little keep one ring, by compare-and-swap, under changing
// configurations. At any time every token that has not expired is good with the ring as it is, those
// who keep a JWK set for ten minutes know every key, and nobody makes more keys than he must.
func TestFleetKeepsOneRing(t *testing.T) {
	for seed := range uint64(6) {
		random := rand.New(rand.NewPCG(seed, 1))
		type token struct {
			key     string
			seal    [4]byte
			expires time.Time
		}
		r, err := New("root", start, nil)
		if err != nil {
			t.Fatal(err)
		}
		skews := []time.Duration{0, time.Duration(random.Int64N(int64(grace))) - grace/2, time.Duration(random.Int64N(int64(grace))) - grace/2}
		lives := []time.Duration{time.Hour, 24 * time.Hour, 10 * time.Minute}
		wakes := make([]time.Time, len(skews))
		held := make([]*Ring, len(skews)) // what each gateway goes by
		var tokens []token
		published := map[string]time.Time{}
		rotate := []time.Duration{MinRotate, 5 * time.Hour, 24 * time.Hour}[seed%3]
		wanted := func(gateway int) Wanted {
			return Wanted{Algorithm: EdDSA, Rotate: rotate, Life: lives[gateway]}
		}
		if err := (Wanted{Rotate: rotate, Life: 24 * time.Hour}).Check(); err != nil {
			t.Fatal(err)
		}
		count := 0
		for minute := range 5 * 24 * 60 {
			now := start.Add(time.Duration(minute) * time.Minute)
			swapped := false
			for gateway, skew := range skews {
				clock := now.Add(skew)
				if held[gateway] != r || !wakes[gateway].IsZero() && !clock.Before(wakes[gateway]) {
					next, changed, wake, err := r.Kept(clock, wanted(gateway), nil)
					if err != nil {
						t.Fatal(err)
					}
					for _, k := range next.SigningKeys() {
						if _, known := published[k.ID()]; !known {
							published[k.ID()] = now
							count++
						}
					}
					swapped = swapped || changed
					r, held[gateway], wakes[gateway] = next, next, wake
				}
			}
			if swapped { // all of them hear of it
				for gateway, skew := range skews {
					next, _, wake, err := r.Kept(now.Add(skew), wanted(gateway), nil)
					if err != nil {
						t.Fatal(err)
					}
					r, held[gateway], wakes[gateway] = next, next, wake
				}
			}
			for gateway, skew := range skews {
				clock := now.Add(skew)
				signer := held[gateway].Signer(clock)
				if since := now.Sub(published[signer.ID()]); now.Sub(start) > 10*time.Minute && since < 10*time.Minute && skew <= 5*time.Minute {
					t.Fatalf("seed %d, %v: a key signs %v after it was published", seed, now.Sub(start), since)
				}
				tokens = append(tokens, token{signer.ID(), held[gateway].Seals(clock)[0].ID, clock.Add(lives[gateway])})
			}
			if minute%17 != 0 {
				continue
			}
			tokens = slices.DeleteFunc(tokens, func(k token) bool { return !now.Add(-grace / 2).Before(k.expires) })
			knows := map[string]bool{}
			for _, k := range r.SigningKeys() {
				knows[k.ID()] = true
			}
			opens := map[[4]byte]bool{}
			for _, k := range r.Seals(now) {
				opens[k.ID] = true
			}
			for _, k := range tokens {
				if !knows[k.key] || !opens[k.seal] {
					t.Fatalf("seed %d, %v: a token that expires %v is refused", seed, now.Sub(start), k.expires.Sub(start))
				}
			}
			if len(r.signs) > MaxKeys || len(r.seals) > MaxKeys {
				t.Fatalf("%d keys", len(r.signs))
			}
		}
		if most := int(5*24*time.Hour/rotate) + 2; count > most || count < most-3 {
			t.Errorf("seed %d: %d keys in 5 days, at most %d are needed", seed, count, most)
		}
	}
}

func TestRotatedAndWithdrawn(t *testing.T) {
	w := Wanted{Algorithm: EdDSA, Life: time.Hour}
	base, first := wantedRing(t, w)
	seal := base.seals[0].id
	rotated := func(r *Ring, now time.Time, w Wanted, withdraw bool, ids ...string) *Ring {
		t.Helper()
		next, err := r.Rotated(now, w, nil, withdraw, ids...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Read("root", next.Stored(), nil); err != nil || next.Epoch() != r.Epoch() {
			t.Fatal(err)
		}
		return next
	}
	// states of the signing and of the sealing keys, with the IDs that are known by then.
	states := func(r *Ring, now time.Time) string {
		var words []string
		names := map[string]string{first: "first", seal: "first"}
		for _, l := range r.List(now) {
			name := names[l.ID]
			if name == "" {
				name = "new"
			}
			words = append(words, fmt.Sprintf("%s %s %s", l.Use, name, l.State))
		}
		return strings.Join(words, ", ")
	}
	for name, c := range map[string]struct {
		got  *Ring
		want string
	}{
		"rotated":                        {rotated(base, start, w, false), "sign first in use, sign new next, seal first in use, seal new next"},
		"withdrawn":                      {rotated(base, start, w, true), "sign new in use, seal new in use"},
		"the signing key withdrawn":      {rotated(base, start, w, true, first), "sign new in use, seal first in use"},
		"the sealing key withdrawn":      {rotated(base, start, w, true, seal), "sign first in use, seal new in use"},
		"both withdrawn":                 {rotated(base, start, w, true, first, seal), "sign new in use, seal new in use"},
		"without JWTs":                   {rotated(base, start, Wanted{}, false), "sign first in use, seal first in use, seal new next"},
		"withdrawn, without JWTs":        {rotated(base, start, Wanted{}, true), "seal new in use"},
		"the key withdrawn, no JWTs":     {rotated(base, start, Wanted{}, true, first), "seal first in use"},
		"the next key withdrawn":         {},
		"withdrawn while one waits":      {rotated(rotated(base, start, w, false), start, w, true), "sign new in use, seal new in use"},
		"the first one, while one waits": {rotated(rotated(base, start, w, false), start, w, true, first), "sign new old, sign new in use, seal first in use, seal new next"},
	} {
		if name == "the next key withdrawn" {
			waiting := rotated(base, start, w, false)
			c.got, c.want = rotated(waiting, start, w, true, waiting.signs[1].id), "sign first in use, seal first in use, seal new next"
		}
		if got := states(c.got, start); got != c.want {
			t.Errorf("%s: %s\nwant %s", name, got, c.want)
		}
	}
	later := rotated(base, start, w, false)
	if signer := later.Signer(start.Add(Lead)); signer.ID() == first {
		t.Error("the new key never signs")
	}
	// An old one alone is withdrawn, and nobody else notices.
	old := start.Add(Lead)
	if got := states(rotated(later, old, w, true, first), old); got != "sign new in use, seal first old, seal new in use" {
		t.Errorf("the old key withdrawn: %s", got)
	}
	// The first signing key of all.
	bare, err := New("root", start, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := rotated(bare, start, w, false).List(start)[0]; got.Use != "sign" || got.State != Used {
		t.Errorf("the first: %v", got)
	}
	// Another algorithm, by the way.
	if got := rotated(base, start, Wanted{Algorithm: ES256}, true).Signer(start).Algorithm(); got != ES256 {
		t.Errorf("signs by %s", got)
	}

	if _, err := base.Rotated(start, w, nil, false, first); err == nil {
		t.Error("keys may be named without being withdrawn")
	}
	_, err = base.Rotated(start, w, nil, true, first, "nobody")
	if err == nil || !strings.Contains(err.Error(), `no key "nobody"`) || !strings.Contains(err.Error(), first+" (sign, in use), "+seal+" (seal, in use)") {
		t.Errorf("an unknown key: %v", err)
	}
	full := base
	for len(full.signs) < MaxKeys {
		full = rotated(full, start, w, false)
	}
	if _, err := full.Rotated(start, w, nil, false); !errors.Is(err, errFull) {
		t.Errorf("with %d keys: %v", MaxKeys, err)
	}
	seals := make([]string, 0, MaxKeys)
	for _, k := range full.seals {
		seals = append(seals, k.id)
	}
	if _, err := rotated(full, start, w, true, seals...).Rotated(start, w, nil, false); !errors.Is(err, errFull) {
		t.Errorf("with %d keys that sign: %v", MaxKeys, err)
	}
	if got := states(rotated(full, start, w, true), start); got != "sign new in use, seal new in use" {
		t.Errorf("withdrawn: %s", got)
	}
	// When it is time, no key is made while there is no room, and it goes on.
	daily := Wanted{Algorithm: EdDSA, Life: 1000 * time.Hour, Rotate: 24 * time.Hour}
	full, _ = kept(t, full, start, daily, nil)
	full, wake := kept(t, full, start.Add(48*time.Hour), daily, nil)
	if len(full.signs) != MaxKeys || wake.IsZero() {
		t.Errorf("%d keys, to be asked again at %v", len(full.signs), wake)
	}
}

// A configuration that is only starting, and may yet be refused, makes nothing that the one in force,
// or a gateway that does not have the new encryption key, could not read.
func TestNewKeysAreEncryptedAsTheOthersAre(t *testing.T) {
	a, b, both := cipherOf(t, secretA), cipherOf(t, secretB), cipherOf(t, secretB, secretA)
	w := Wanted{Algorithm: ES256, Life: time.Hour, Rotate: time.Hour}
	for name, c := range map[string]struct{ before, now *Cipher }{"another first": {a, both}, "now with one": {nil, b}} {
		r, err := New("root", start, c.before)
		if err != nil {
			t.Fatal(err)
		}
		r, _, _, err = r.Kept(start.Add(time.Hour), w, c.now)
		if err != nil {
			t.Fatal(err)
		}
		rotated, err := r.Rotated(start, w, c.now, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, stored := range [][]byte{r.Stored(), rotated.Stored()} {
			if got, err := Read("root", stored, c.before); err != nil || len(got.SigningKeys()) == 0 || len(got.Seals(start)) < 2 {
				t.Errorf("%s: the one before reads %v", name, err)
			}
		}
		r, changed, err := r.Encrypted(c.now)
		if err != nil || !changed {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := Read("root", r.Stored(), b); err != nil {
			t.Errorf("%s: a signing key is not encrypted anew: %v", name, err)
		}
		if _, err := Read("root", r.Stored(), c.before); !errors.Is(err, ErrNotConfigured) {
			t.Errorf("%s: the old encryption key still reads it: %v", name, err)
		}
		if _, changed, err := r.Encrypted(c.now); changed || err != nil {
			t.Errorf("%s: encrypted again: %v", name, err)
		}
	}
	r, err := New("root", start, a)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := r.Kept(start, w, b); !errors.Is(err, ErrNotConfigured) {
		t.Errorf("kept without its encryption key: %v", err)
	}
}

// What is in a store gives no private key away if there is an encryption key.
func TestNoPrivateKeyIsInTheStore(t *testing.T) {
	for _, algorithm := range Algorithms {
		r, err := New("root", start, cipherOf(t, secretA))
		if err != nil {
			t.Fatal(err)
		}
		r.signs = []ringKey{{id: made()[algorithm].ID(), sign: made()[algorithm], made: start, from: start, under: r.under()}}
		if r, err = r.encode(cipherOf(t, secretA)); err != nil {
			t.Fatal(err)
		}
		plain, err := x509.MarshalPKCS8PrivateKey(made()[algorithm].private)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 { // base64 by each of its offsets
			piece := base64.StdEncoding.EncodeToString(plain[i:])
			if piece = piece[:len(piece)-4]; bytes.Contains(r.Stored(), []byte(piece[len(piece)-40:])) {
				t.Errorf("%s: it is there", algorithm)
			}
		}
		if bytes.Contains(r.Stored(), plain[len(plain)-16:]) {
			t.Errorf("%s: it is there", algorithm)
		}
		read, err := Read("root", r.Stored(), cipherOf(t, secretA))
		if err != nil || read.Signer(start).ID() != made()[algorithm].ID() || read.Signer(start).Algorithm() != algorithm {
			t.Errorf("%s: %v", algorithm, err)
		}
	}
}

func TestSigningKeysThatAreNotAsTheyWereWritten(t *testing.T) {
	for encrypted, c := range map[string]*Cipher{"encrypted": cipherOf(t, secretA), "in clear": nil} {
		r, err := New("root", start, c)
		if err != nil {
			t.Fatal(err)
		}
		r, _ = kept(t, r, start, Wanted{Algorithm: ES256, Life: time.Hour}, c)
		r, err = r.Rotated(start, Wanted{Algorithm: ES256, Life: time.Hour}, c, false)
		if err != nil {
			t.Fatal(err)
		}
		for name, change := range map[string]func(s map[string]any, sign, seal []any){
			"another algorithm":        func(_ map[string]any, sign, _ []any) { sign[0].(map[string]any)["alg"] = "EdDSA" },
			"an unknown algorithm":     func(_ map[string]any, sign, _ []any) { sign[0].(map[string]any)["alg"] = "ES512" },
			"no algorithm":             func(_ map[string]any, sign, _ []any) { delete(sign[0].(map[string]any), "alg") },
			"a seal with an algorithm": func(_ map[string]any, _, seal []any) { seal[0].(map[string]any)["alg"] = "ES256" },
			"the ID of the other":      func(_ map[string]any, sign, _ []any) { sign[0].(map[string]any)["id"] = sign[1].(map[string]any)["id"] },
			"the key of the other": func(_ map[string]any, sign, _ []any) {
				sign[0].(map[string]any)["key"] = sign[1].(map[string]any)["key"]
			},
			"a key twice":              func(s map[string]any, sign, _ []any) { s["sign"] = append(sign, sign[0]) },
			"a seal twice":             func(s map[string]any, _, seal []any) { s["seal"] = append(seal, seal[0]) },
			"a seal that signs":        func(s map[string]any, _, seal []any) { s["sign"] = seal },
			"a signing key that seals": func(s map[string]any, sign, _ []any) { s["seal"] = sign },
			"a negative lifetime":      func(_ map[string]any, sign, _ []any) { sign[0].(map[string]any)["life"] = -1 },
			"a lifetime without end":   func(_ map[string]any, sign, _ []any) { sign[0].(map[string]any)["life"] = 1 << 40 },
			"a time that is none":      func(_ map[string]any, sign, _ []any) { sign[0].(map[string]any)["from"] = 1 << 60 },
			"a time before all":        func(_ map[string]any, sign, _ []any) { sign[0].(map[string]any)["made"] = -1 },
			"too many": func(s map[string]any, _, seal []any) {
				for range MaxKeys {
					k := newSealKey(start, start, 0, "")
					seal = append(seal, map[string]any{"id": k.id, "made": 1, "key": k.seal.Key[:]})
				}
				s["seal"] = seal
			},
			"a member of a later program": func(s map[string]any, _, _ []any) { s["more"] = 1 },
			"the same in a key":           func(_ map[string]any, sign, _ []any) { sign[0].(map[string]any)["more"] = 1 },
			"encrypted, or not": func(_ map[string]any, sign, _ []any) {
				k := sign[0].(map[string]any)
				if delete(k, "under"); c == nil {
					k["key"] = []byte("x")
				}
			},
		} {
			var s map[string]any
			if err := json.Unmarshal(r.Stored()[16:], &s); err != nil {
				t.Fatal(err)
			}
			change(s, s["sign"].([]any), s["seal"].([]any))
			text, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Read("root", append(epochBytes(r), text...), c); !errors.Is(err, errCorrupt) {
				t.Errorf("%s, %s: %v", encrypted, name, err)
			}
		}
	}
}

func TestCovers(t *testing.T) {
	w := Wanted{Algorithm: EdDSA, Life: time.Hour}
	r, first := wantedRing(t, w)
	other, _ := wantedRing(t, w)
	more, err := r.Rotated(start, w, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	signs, err := r.Rotated(start, w, nil, true, first)
	if err != nil {
		t.Fatal(err)
	}
	seals, err := r.Rotated(start, w, nil, true, r.seals[0].id)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		ring   *Ring
		stored []byte
		want   bool
	}{
		"itself":                 {r, r.Stored(), true},
		"one with fewer keys":    {more, r.Stored(), true},
		"one with more keys":     {r, more.Stored(), false},
		"another signing key":    {r, signs.Stored(), false},
		"another sealing key":    {r, seals.Stored(), false},
		"another epoch":          {r, other.Stored(), false},
		"none":                   {r, nil, false},
		"what can't be read":     {r, r.Stored()[:len(r.Stored())-1], false},
		"one of a later version": {r, bytes.Replace(r.Stored(), []byte(`"v":1`), []byte(`"v":2`), 1), false},
	} {
		if got := c.ring.Covers(c.stored); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// Who can't decrypt a ring any more sees all the same which keys are gone.
func TestRemaining(t *testing.T) {
	w := Wanted{Algorithm: EdDSA, Life: time.Hour}
	r, first := wantedRing(t, w)
	other, _ := wantedRing(t, w)
	withdrawn := func(ids ...string) []byte {
		t.Helper()
		next, err := r.Rotated(start, w, nil, true, ids...)
		if err != nil {
			t.Fatal(err)
		}
		if next, _, err = next.Encrypted(cipherOf(t, secretA)); err != nil {
			t.Fatal(err)
		}
		return next.Stored()
	}
	more, err := r.Rotated(start, w, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		stored       []byte
		signs, seals int
	}{
		"all withdrawn":             {withdrawn(), 0, 0},
		"the signing key withdrawn": {withdrawn(first), 0, 1},
		"the sealing key withdrawn": {withdrawn(r.seals[0].id), 1, 0},
		"rotated":                   {more.Stored(), 1, 1},
		"another epoch":             {other.Stored(), 1, 1},
		"none":                      {nil, 1, 1},
		"a later version":           {bytes.Replace(withdrawn(), []byte(`"v":1`), []byte(`"v":2`), 1), 1, 1},
	} {
		got := r.Remaining(c.stored)
		if len(got.SigningKeys()) != c.signs || len(got.Seals(start)) != c.seals || (got.Signer(start) != nil) != (c.signs == 1) || got.Epoch() != r.Epoch() {
			t.Errorf("%s: %v", name, got.List(start))
		}
	}
	if len(r.signs) != 1 || len(r.seals) != 1 {
		t.Error("the ring itself has changed")
	}
}

// A ring from before there were signing keys, and times of use.
func TestRingWithoutTimesOfUse(t *testing.T) {
	epoch := strings.Repeat("e", 16)
	r, err := Read("root", []byte(epoch+`{"v":1,"seal":[{"id":"00000000","made":1800000000,"key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}]}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !r.seals[0].from.Equal(start) {
		t.Errorf("in use from %v", r.seals[0].from)
	}
	// Nobody knows for how long it has to be kept, so it is kept.
	r.seals = append(r.seals, newSealKey(start, start, time.Hour, ""))
	if r, err = r.encode(nil); err != nil {
		t.Fatal(err)
	}
	if r, _ = kept(t, r, start.Add(100000*time.Hour), Wanted{Life: time.Hour}, nil); len(r.seals) != 2 {
		t.Error("it is gone")
	}
}

func TestSchedulesThatCanNotBeKept(t *testing.T) {
	for _, c := range []struct {
		rotate, life time.Duration
		ok           bool
	}{
		{0, 1000 * time.Hour, true},
		{time.Hour, time.Hour, true},
		{time.Hour, 28 * time.Hour, true},
		{time.Hour, 29 * time.Hour, false},
		{time.Hour - 1, time.Minute, false},
		{time.Nanosecond, 0, false},
		{30 * 24 * time.Hour, 24 * 365 * time.Hour, true},
	} {
		if err := (Wanted{Rotate: c.rotate, Life: c.life}).Check(); (err == nil) != c.ok {
			t.Errorf("each %v for tokens that live %v: %v", c.rotate, c.life, err)
		}
	}
}
