package keys

import (
	"bytes"
	"encoding/base64"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

func cipherOf(t testing.TB, secrets ...string) *Cipher {
	t.Helper()
	c, err := NewCipher(secrets...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var secretA, secretB = strings.Repeat("a", MinSecret), strings.Repeat("b", MinSecret)

func newRing(t testing.TB, realm string, c *Cipher) *Ring {
	t.Helper()
	r, err := New(realm, time.Now(), c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A ring is read as it was written, by whoever has its encryption key, in whatever place.
func TestRingIsReadAsItWasWritten(t *testing.T) {
	for name, c := range map[string]struct{ write, read *Cipher }{
		"not encrypted":                       {nil, nil},
		"encrypted":                           {cipherOf(t, secretA), cipherOf(t, secretA)},
		"encrypted under a former key":        {cipherOf(t, secretA), cipherOf(t, secretB, secretA)},
		"from before there was an encryption": {nil, cipherOf(t, secretA)},
	} {
		r := newRing(t, "root", c.write)
		got, err := Read("root", r.Stored(), c.read)
		if err != nil || got.Epoch() != r.Epoch() || !reflect.DeepEqual(got.Seals(time.Now()), r.Seals(time.Now())) || len(r.Seals(time.Now())) != 1 {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.HasPrefix(r.Stored(), epochBytes(r)) {
			t.Errorf("%s: the stored form does not begin with the epoch", name)
		}
		key := r.Seals(time.Now())[0].Key
		inClear := bytes.Contains(r.Stored(), []byte(base64.StdEncoding.EncodeToString(key[:])))
		if inClear != (c.write == nil) {
			t.Errorf("%s: the key is in clear: %t", name, inClear)
		}
	}
}

func epochBytes(r *Ring) []byte { epoch := r.Epoch(); return epoch[:] }

func TestRingsAreDifferent(t *testing.T) {
	a, b := newRing(t, "root", nil), newRing(t, "root", nil)
	if a.Epoch() == b.Epoch() || a.Seals(time.Now())[0] == b.Seals(time.Now())[0] || a.Epoch() == (oauth.Epoch{}) || a.Seals(time.Now())[0].Key == [32]byte{} {
		t.Error("two rings have something in common")
	}
}

// Without its encryption key a ring can't be read, and nobody takes it for another or for none.
func TestRingNeedsItsEncryptionKey(t *testing.T) {
	stored := newRing(t, "root", cipherOf(t, secretA)).Stored()
	for name, c := range map[string]*Cipher{"none": nil, "another": cipherOf(t, secretB)} {
		if _, err := Read("root", stored, c); !errors.Is(err, ErrNotConfigured) {
			t.Errorf("%s: %v, want ErrNotConfigured", name, err)
		}
	}
}

// A stored ring that was damaged, or put together from others, is refused. The error quotes
// nothing of it.
func TestRingThatIsNotAsItWasWritten(t *testing.T) {
	c := cipherOf(t, secretA)
	r, other := newRing(t, "root", c), newRing(t, "root", c)
	changed := func(old, new string) []byte { return bytes.Replace(r.Stored(), []byte(old), []byte(new), 1) }
	for name, stored := range map[string][]byte{
		"empty":                   {},
		"an epoch alone":          epochBytes(r),
		"of a later version":      changed(`"v":1`, `"v":2`),
		"without keys":            append(epochBytes(r), `{"v":1,"seal":[]}`...),
		"no JSON":                 r.Stored()[:len(r.Stored())-1],
		"of another epoch":        append(epochBytes(other), r.Stored()[len(epochBytes(r)):]...),
		"with another ID":         changed(`"id":"`, `"id":"0`),
		"with an ID of no number": changed(`"id":"`, `"id":"zz`),
		"said to be in clear":     changed(`"under"`, `"unter"`),
	} {
		if got, err := Read("root", stored, c); err == nil {
			t.Errorf("%s: it is read as %v", name, got.Seals(time.Now()))
		} else if strings.Contains(err.Error(), `"id"`) {
			t.Errorf("%s: the error quotes it: %v", name, err)
		}
	}
	if _, err := Read("other", r.Stored(), c); err == nil {
		t.Error("another realm reads it")
	}
}

// A ring is encrypted anew when the encryption key changes, and only then.
func TestRingIsEncryptedAnew(t *testing.T) {
	for name, c := range map[string]struct {
		before, now *Cipher
		changes     bool
	}{
		"never encrypted": {nil, nil, false},
		"the same key":    {cipherOf(t, secretA), cipherOf(t, secretA), false},
		"another behind":  {cipherOf(t, secretA), cipherOf(t, secretA, secretB), false},
		"another first":   {cipherOf(t, secretA), cipherOf(t, secretB, secretA), true},
		"now with a key":  {nil, cipherOf(t, secretA), true},
	} {
		r := newRing(t, "root", c.before)
		next, changed, err := r.Encrypted(c.now)
		if err != nil || changed != c.changes || bytes.Equal(next.Stored(), r.Stored()) == changed {
			t.Errorf("%s: changed %t, %v; want %t", name, changed, err, c.changes)
			continue
		}
		got, err := Read("root", next.Stored(), c.now)
		if err != nil || got.Epoch() != r.Epoch() || !reflect.DeepEqual(got.Seals(time.Now()), r.Seals(time.Now())) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCipherRefusesWhatIsNoKey(t *testing.T) {
	for name, secrets := range map[string][]string{"short": {secretA[1:]}, "empty": {""}, "twice": {secretA, secretA}} {
		if _, err := NewCipher(secrets...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if c, err := NewCipher(); c != nil || err != nil {
		t.Errorf("without secrets: %v, %v", c, err)
	}
}

func FuzzRead(f *testing.F) {
	signing, _, _, err := newRing(f, "root", nil).Kept(time.Now(), Wanted{Algorithm: ES256}, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signing.Stored())
	c := cipherOf(f, secretA)
	epoch := strings.Repeat("e", len(oauth.Epoch{}))
	f.Add([]byte(epoch + `{"v":1,"seal":[{"id":"00000000","key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}]}`))
	f.Add([]byte(epoch + `{"v":1,"seal":[{"id":"00000000","under":"0000000000000000","key":"AAAA"}]}`))
	f.Fuzz(func(t *testing.T, stored []byte) {
		r, err := Read("root", stored, c)
		if err != nil {
			return
		}
		if again, _, err := r.Encrypted(c); err != nil {
			t.Fatal(err)
		} else if _, err := Read("root", again.Stored(), c); err != nil {
			t.Fatalf("what was read can't be read again: %v", err)
		}
		now := time.Now()
		kept, _, wake, err := r.Kept(now, Wanted{Rotate: MinRotate, Life: time.Hour}, c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Read("root", kept.Stored(), c); err != nil || len(kept.Seals(now)) == 0 || !wake.IsZero() && !wake.After(now) {
			t.Fatalf("what was kept can't be read again, or is to be looked at %v: %v", wake, err)
		}
	})
}
