package introspect_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

func TestAPrintedTokenIsNoSecret(t *testing.T) {
	token := introspect.NewToken("a secret")
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		for _, value := range []any{token, &token, []introspect.Token{token}, struct{ Token introspect.Token }{token}} {
			if text := fmt.Sprintf(format, value); strings.Contains(text, "secret") || strings.Contains(text, fmt.Sprintf("%x", "secret")) {
				t.Errorf("%s of %T shows the token: %s", format, value, text)
			}
		}
	}
	if token.Text() != "a secret" || token.ID() != introspect.IDOf("a secret") || token.String() != token.ID().String() {
		t.Errorf("text %q, ID %v, %v", token.Text(), token.ID(), token)
	}
}

// A note must not count for anybody else: a source trusts it instead of verifying the token
// again.
func TestANoteIsForItsOwnerOnly(t *testing.T) {
	type key struct{ _ int }
	mine, other := new(key), new(key)
	token := introspect.NewToken("token")
	for _, owner := range []any{nil, mine, other} {
		if note, ok := token.Noted(owner); ok || note != 0 {
			t.Errorf("without a note: %d, %v for %v", note, ok, owner)
		}
	}
	before := token
	token.Note(mine, 17)
	if note, ok := token.Noted(mine); !ok || note != 17 {
		t.Errorf("its owner reads %d, %v", note, ok)
	}
	for _, owner := range []any{nil, (*key)(nil), other} {
		if note, ok := token.Noted(owner); ok || note != 0 {
			t.Errorf("%v reads the note of another: %d, %v", owner, note, ok)
		}
	}
	if _, ok := before.Noted(mine); ok {
		t.Error("a copy from before has the note")
	}
	token.Note(other, 18)
	if _, ok := token.Noted(mine); ok {
		t.Error("there is room for two notes")
	}
}

// noting is a source that notes in Screen what Lookup needs.
type noting struct{ screened, noted int }

func (n *noting) Screen(token introspect.Token) (introspect.Token, bool) {
	if _, ok := token.Noted(n); !ok {
		n.screened++
		token.Note(n, int64(len(token.Text())))
	}
	return token, true
}

func (n *noting) Lookup(_ context.Context, token introspect.Token) (*introspect.Facts, error) {
	if note, ok := token.Noted(n); ok && note == int64(len(token.Text())) {
		n.noted++
	}
	return &introspect.Facts{Active: true, ID: token.ID(), Expiry: time.Now().Add(time.Hour)}, nil
}

func TestALookupGetsWhatScreenNoted(t *testing.T) {
	src := new(noting)
	s := newCache(t, introspect.CacheConfig{}).Wrap("src", src, 0)
	if !active(t, s, "token") || src.screened != 1 || src.noted != 1 {
		t.Fatalf("screened %d times, noted %d times", src.screened, src.noted)
	}
	// It is not found out again if somebody did so before.
	token, _ := src.Screen(introspect.NewToken("another token"))
	for range 3 {
		if facts, err := s.LookupWithin(t.Context(), &token, time.Hour); err != nil || facts.ID != token.ID() {
			t.Fatal(facts, err)
		}
	}
	if src.screened != 2 || src.noted != 4 {
		t.Errorf("screened %d times, noted %d times", src.screened, src.noted)
	}
}

// renaming is a source whose Screen returns another token, which it must not.
type renaming struct{ *registry }

func (renaming) Screen(introspect.Token) (introspect.Token, bool) {
	return introspect.NewToken("good"), true
}

func TestScreenCannotReplaceTheToken(t *testing.T) {
	reg := newRegistry(time.Now)
	reg.issue("good", time.Now().Add(time.Hour))
	s := newCache(t, introspect.CacheConfig{}).Wrap("src", renaming{reg}, time.Hour)
	for range 2 {
		if !active(t, s, "good") || active(t, s, "bad") {
			t.Fatal("a token is taken for another")
		}
	}
}

// The ID of a token is computed without memory from the heap, however long the token is, and is that of
// its whole text.
func TestIDOfLongTokens(t *testing.T) {
	for _, n := range []int{0, 1, 127, 128, 129, 1023, 1024, 1025, 2048, introspect.MaxTokenLength} {
		text := strings.Repeat("0123456789abcdef", n/16+1)[:n]
		var id introspect.TokenID
		allocations := testing.AllocsPerRun(10, func() { id = introspect.IDOf(text) })
		if id != sha256.Sum256([]byte(text)) || allocations > 0 {
			t.Errorf("%d bytes: %x, %v allocations", n, id, allocations)
		}
	}
}
