package oauth

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

var sealKeyA, sealKeyB = SealKey{ID: [4]byte{1}, Key: [32]byte{1}}, SealKey{ID: [4]byte{2}, Key: [32]byte{2}}

func sealedOf(t testing.TB, keys ...SealKey) *sealed {
	t.Helper()
	s, err := newSealed("root", keys, func() time.Time { return time.UnixMilli(1_700_000_000_000) }, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// aSealedToken describes a token that is valid for an hour by the clock of sealedOf.
func aSealedToken() Token {
	return Token{
		Key: Key{Realm: "root", ExpiryMilli: 1_700_003_600_000}, ClientID: "reports", ClientGeneration: 300,
		Scopes: []string{"read", "write", "orders:list"}, Audience: []string{"https://api.example.com"},
		IssuedAt: time.UnixMilli(1_700_000_000_123),
	}
}

func read(s *sealed, text string) (Token, bool) {
	token := introspect.NewToken(text)
	return s.read(&token)
}

// A sealed token says what was sealed, is short, and is never the same twice.
func TestSealedTokenSaysWhatWasSealed(t *testing.T) {
	s := sealedOf(t, sealKeyA, sealKeyB)
	for name, change := range map[string]func(*Token){
		"all":                func(*Token) {},
		"no scopes":          func(t *Token) { t.Scopes = nil },
		"no audience":        func(t *Token) { t.Audience = nil },
		"several audiences":  func(t *Token) { t.Audience = []string{"a", "https://b.example/c d", strings.Repeat("x", 300)} },
		"a space in the ID":  func(t *Token) { t.ClientID = "my client" },
		"a large generation": func(t *Token) { t.ClientGeneration = 1<<64 - 1 },
		"a year":             func(t *Token) { t.ExpiryMilli = t.IssuedAt.UnixMilli() + 365*24*3600*1000 },
	} {
		want := aSealedToken()
		change(&want)
		text, err := s.mint(&want)
		if err != nil {
			t.Fatal(err)
		}
		want.ID = introspect.IDOf(text)
		got, ok := read(s, text)
		if !ok || got.Key != want.Key || got.ClientID != want.ClientID || got.ClientGeneration != want.ClientGeneration || !got.IssuedAt.Equal(want.IssuedAt) ||
			!reflect.DeepEqual(got.Scopes, want.Scopes) || strings.Join(got.Audience, "|") != strings.Join(want.Audience, "|") {
			t.Errorf("%s: read %+v, %t; want %+v", name, got, ok, want)
		}
		if name == "all" && len(text) >= 200 {
			t.Errorf("a token with three scopes has %d characters, want fewer than 200", len(text))
		}
		if again, err := s.mint(&want); err != nil || again == text {
			t.Errorf("%s: sealed twice, the token is the same (%v)", name, err)
		}
		if strings.Contains(text, "reports") || !HasForm(text) {
			t.Errorf("%s: %s", name, text)
		}
		// Whoever still has the key opens it, wherever it stands, and nobody else does.
		if _, ok := read(sealedOf(t, sealKeyB, sealKeyA), text); !ok {
			t.Errorf("%s: a key that no longer seals does not open", name)
		}
		for _, other := range []*sealed{sealedOf(t, sealKeyB), sealedOf(t, SealKey{ID: sealKeyA.ID, Key: sealKeyB.Key})} {
			if _, ok := read(other, text); ok {
				t.Errorf("%s: another key opens it", name)
			}
		}
	}
}

// No change of a sealed token leaves it good.
func TestSealedTokenCannotBeChanged(t *testing.T) {
	s := sealedOf(t, sealKeyA, sealKeyB)
	token := aSealedToken()
	text, err := s.mint(&token)
	if err != nil {
		t.Fatal(err)
	}
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_\n=. +/"
	changed := []string{"", SealedPrefix, text[:len(text)-1], text + "A", text + "\n", text + "=", " " + text, text[4:], TokenPrefix + text[4:], text[:40] + "\n" + text[40:], text + text[4:]}
	for i := range text {
		for _, c := range alphabet {
			if other := text[:i] + string(c) + text[i+1:]; other != text {
				changed = append(changed, other)
			}
		}
	}
	for _, other := range changed {
		if got, ok := read(s, other); ok {
			t.Fatalf("%q is good: %+v", other, got)
		}
	}
}

func TestSealedTokenHasABound(t *testing.T) {
	s := sealedOf(t, sealKeyA)
	token := aSealedToken()
	token.Audience = []string{strings.Repeat("x", 2800)}
	if text, err := s.mint(&token); err != nil {
		t.Error(err)
	} else if _, ok := read(s, text); !ok {
		t.Error("a long token is not good")
	}
	token.Audience = append(token.Audience, strings.Repeat("y", 200))
	if _, err := s.mint(&token); !errors.Is(err, errTooLong) {
		t.Errorf("a token that is too long: %v", err)
	}
}

func FuzzSealed(f *testing.F) {
	s := sealedOf(f, sealKeyA)
	s.random = strings.NewReader("the same in each process that fuzzes")
	token := aSealedToken()
	text, err := s.mint(&token)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text, []byte(nil))
	f.Add("", []byte{1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 'c', 0, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add("", []byte{1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 'c', 0, 1, 1, 'a'})
	f.Fuzz(func(t *testing.T, junk string, record []byte) {
		if _, ok := read(s, junk); ok && junk != text {
			t.Fatalf("%q is good", junk)
		}
		// What a program with the key sealed, but perhaps not this one.
		if len(record) < 11 || len(record) > 1000 {
			return
		}
		raw := append(bytes.Clone(sealKeyA.ID[:]), make([]byte, 24)...)
		raw = s.keys[sealKeyA.ID].Seal(raw, raw[4:28], record, sealKeyA.ID[:])
		got, ok := read(s, SealedPrefix+opaqueEncoding.EncodeToString(raw))
		if ok && len(got.Audience) > len(record) {
			t.Fatalf("%d bytes hold %d audiences", len(record), len(got.Audience))
		}
	})
}

// keyMap is a KeyStore in a map.
type keyMap struct {
	KeyStore // nil: only what is overridden is used
	mu       sync.Mutex
	epoch    Epoch
	denied   map[Key]bool
	err      error
	full     error // what Deny returns instead of denying
}

// Keys returns a keyring, unless the epoch is zero.
func (k *keyMap) Keys(context.Context, string) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.epoch == (Epoch{}) {
		return nil, k.err
	}
	return append(k.epoch[:], "keys"...), k.err
}

func (k *keyMap) Deny(_ context.Context, key Key, _ string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.full != nil {
		return k.full
	}
	k.denied[key] = true
	return k.err
}

func (k *keyMap) Denied(_ context.Context, epoch Epoch, key Key) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if epoch != k.epoch {
		return false, ErrOtherEpoch
	}
	return k.denied[key], k.err
}

// A sealed token is issued without a word to the store, and revoked in it. It dies with its epoch,
// its client and its key, and nobody says that it is dead when that can't be found out.
func TestEngineWithSealedTokens(t *testing.T) {
	kept := &keyMap{epoch: Epoch{7}, denied: make(map[Key]bool)}
	client := newClient("sealer", quickSecret(t, "secret"))
	client.TokenFormat = FormatSealed
	e := newEngine(t, func(s *Settings) { s.Keys = kept }, client)
	share := func(epoch Epoch, generation uint64, keys ...SealKey) {
		t.Helper()
		if err := e.Share(Shared{Key: []byte("x"), Generations: map[string]uint64{"sealer": generation}, Epoch: epoch, SealKeys: keys}); err != nil {
			t.Fatal(err)
		}
	}
	ask := request(t, "sealer", "secret", grantForm)
	fetch := func() string {
		t.Helper()
		grant, out, err := e.Token(context.Background(), ask)
		if err != nil {
			t.Fatal(err)
		}
		if out.TokenID != introspect.IDOf(grant.Token) {
			t.Errorf("the log has another token_id than the token")
		}
		return grant.Token
	}
	wants := func(text string, cause introspect.Cause) {
		t.Helper()
		facts, err := e.Tokens().Lookup(context.Background(), text)
		if err != nil || facts.Cause() != cause {
			t.Errorf("the cause is %q, %v; want %q", facts.Cause(), err, cause)
		}
	}

	if _, _, err := e.Token(context.Background(), ask); !errors.Is(err, ErrUnreachable) {
		t.Errorf("before there is a key: %v, want ErrUnreachable", err)
	}
	share(Epoch{7}, 1, sealKeyA)
	token := fetch()
	if e.store.puts.Load() != 0 {
		t.Error("issuing a sealed token wrote to the store")
	}
	wants(token, "")
	facts, _ := e.Tokens().Lookup(context.Background(), token)
	if facts.ClientID != "sealer" || facts.Expiry.Sub(facts.IssuedAt) != client.TokenLifetime || facts.Scopes[0] != client.Scopes[0] {
		t.Errorf("the facts are %+v", facts)
	}
	share(Epoch{7}, 1, sealKeyB, sealKeyA) // a new key, and the old one still opens
	wants(token, "")
	share(Epoch{7}, 1, sealKeyB) // withdrawn: the cached one, too
	wants(token, introspect.CauseUnknownKey)
	share(Epoch{7}, 1, sealKeyA)
	wants(token, "")
	share(Epoch{7}, 2, sealKeyA)
	wants(token, introspect.CauseClientGeneration)
	share(Epoch{7}, 1, sealKeyA)

	ask.Form.Set("token", token)
	kept.full = ErrClientFull
	if _, err := e.Revoke(context.Background(), ask); codeOf(err) != CodeTooManyRequests {
		t.Errorf("revoking without room: %v", err)
	}
	wants(token, "") // as it was: the client knows
	kept.full = nil
	if out, err := e.Revoke(context.Background(), ask); err != nil || out.TokenID != introspect.IDOf(token) {
		t.Fatalf("revoking: %v", err)
	}
	wants(token, introspect.CauseRevoked)
	if out, err := e.Revoke(context.Background(), ask); err != nil || out.TokenID != (introspect.TokenID{}) {
		t.Errorf("revoking again: %v", err)
	}

	another := fetch()
	kept.err = errors.New("the store is away")
	if _, err := e.Tokens().Lookup(context.Background(), another); err == nil {
		t.Error("a token passes although nobody could tell whether it was revoked")
	}
	kept.err = nil
	kept.epoch = Epoch{8} // the store was emptied: who knows what was revoked
	wants(another, introspect.CauseUnknownKey)
	e.advance(client.TokenLifetime)
	wants(token, introspect.CauseExpired)
}

// A gateway that has not heard yet of the keys that another one has made does not say that a token of
// those is revoked.
func TestRevokingASealedTokenOfUnknownKeys(t *testing.T) {
	kept := &keyMap{epoch: Epoch{8}, denied: make(map[Key]bool)}
	client := newClient("sealer", quickSecret(t, "secret"))
	client.TokenFormat = FormatSealed
	made := aSealedToken()
	text, err := sealedOf(t, sealKeyB).mint(&made)
	if err != nil {
		t.Fatal(err)
	}
	e := newEngine(t, func(s *Settings) { s.Keys = kept }, client)
	ask := request(t, "sealer", "secret", grantForm)
	ask.Form.Set("token", text)
	for _, step := range []struct {
		what         string
		stored, here Epoch
		err          error
	}{
		{"no keys here, but in the store", Epoch{8}, Epoch{}, ErrUnreachable},
		{"other keys here than in the store", Epoch{8}, Epoch{7}, ErrUnreachable},
		{"keys here, and none in the store", Epoch{}, Epoch{7}, ErrUnreachable},
		{"the same keys", Epoch{7}, Epoch{7}, nil},
		{"no keys anywhere", Epoch{}, Epoch{}, nil},
	} {
		kept.epoch = step.stored
		shared := Shared{Key: []byte("x"), Generations: map[string]uint64{"sealer": 1}, Epoch: step.here}
		if step.here != (Epoch{}) {
			shared.SealKeys = []SealKey{sealKeyA}
			shared.Covers = func(keyring []byte) bool { return bytes.HasPrefix(keyring, step.here[:]) }
		}
		if err := e.Share(shared); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Revoke(context.Background(), ask); !errors.Is(err, step.err) {
			t.Errorf("%s: %v, want %v", step.what, err, step.err)
		}
	}
	kept.err = errors.New("the store is away")
	if _, err := e.Revoke(context.Background(), ask); !errors.Is(err, kept.err) {
		t.Errorf("the store is away: %v", err)
	}
}

func BenchmarkSealed(b *testing.B) {
	s := sealedOf(b, sealKeyA)
	token := aSealedToken()
	text, err := s.mint(&token)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("mint", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.mint(&token); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("verify", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			token := introspect.NewToken(text)
			if _, ok := s.verify(&token); !ok {
				b.Fatal("not good")
			}
		}
	})
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			token := introspect.NewToken(text)
			if _, ok := s.read(&token); !ok {
				b.Fatal("not good")
			}
		}
	})
}
