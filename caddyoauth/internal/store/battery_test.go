package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// longBattery makes the battery of faults run for long. It is not for every change.
var longBattery = os.Getenv("BATTERY") == "long"

// damage does something to a file with pages of a given size.
type damage struct {
	name string
	do   func(random *rand.Rand, file []byte, page int) []byte
}

const metaPage = 0x04

// pagesOf are the offsets of the pages of a kind.
func pagesOf(file []byte, page int, kind uint16) (offsets []int) {
	for at := 0; at+page <= len(file); at += page {
		if binary.NativeEndian.Uint16(file[at+8:]) == kind && binary.NativeEndian.Uint64(file[at:]) == uint64(at/page) {
			offsets = append(offsets, at)
		}
	}
	return offsets
}

// flips flips a few bits in one page of a kind, half of the time in its first 128 bytes, where its
// structure is.
func flips(kind uint16) func(*rand.Rand, []byte, int) []byte {
	return func(random *rand.Rand, file []byte, page int) []byte {
		offsets := pagesOf(file, page, kind)
		at := offsets[random.IntN(len(offsets))]
		within := page
		if random.IntN(2) == 0 {
			within = 128
		}
		for range 1 + random.IntN(4) {
			file[at+random.IntN(within)] ^= 1 << random.IntN(8)
		}
		return file
	}
}

var damages = []damage{
	{"bits of a meta page", flips(metaPage)},
	{"bits of the free list", flips(freelistPage)},
	{"bits of a branch", flips(branchPage)},
	{"bits of a leaf", flips(leafPage)},
	{"cut short", func(random *rand.Rand, file []byte, _ int) []byte { return file[:random.IntN(len(file))] }},
	{"a tail of zeros", func(random *rand.Rand, file []byte, _ int) []byte {
		clear(file[random.IntN(len(file)):])
		return file
	}},
	{"a page of noise", func(random *rand.Rand, file []byte, page int) []byte {
		at := random.IntN(len(file)/page) * page
		for i := range page {
			file[at+i] = byte(random.Uint32())
		}
		return file
	}},
	{"a page in place of another", func(random *rand.Rand, file []byte, page int) []byte {
		from, to := random.IntN(len(file)/page)*page, random.IntN(len(file)/page)*page
		copy(file[to:to+page], file[from:from+page])
		return file
	}},
	{"another magic number", func(random *rand.Rand, file []byte, page int) []byte {
		for _, at := range []int{0, page} {
			binary.NativeEndian.PutUint32(file[at+16:], random.Uint32())
		}
		return file
	}},
	{"another kind of file", func(random *rand.Rand, file []byte, _ int) []byte {
		for i := range file {
			file[i] = byte(random.Uint32())
		}
		copy(file, "SQLite format 3\x00")
		return file
	}},
	{"nothing in it", func(*rand.Rand, []byte, int) []byte { return nil }},
}

// history is a file, the tokens that are in it, and those that were in it and have been revoked.
type history struct {
	file            []byte
	page            int
	issued, revoked []oauth.Token
	secret          string
	client          oauth.ClientRef
	generation      uint64
}

// makeHistory makes a file in many transactions, so that freed pages still hold revoked tokens.
func makeHistory(t *testing.T) (h history) {
	t.Helper()
	path, tokens, page := fileToDamage(t)
	b, err := OpenBbolt(path, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		token := tokenOf(fmt.Sprint("revoked ", i))
		put(t, b, token)
		h.revoked = append(h.revoked, token)
	}
	h.client = oauth.ClientRef{Realm: "root", ClientID: "a"}
	if err := b.Retire(ctx, nil); err != nil {
		t.Fatal(err)
	}
	h.generation = admit(t, b, h.client)[h.client]
	var all sync.WaitGroup
	for _, token := range h.revoked[1:] {
		all.Go(func() {
			if err := b.Revoke(ctx, token.Key); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := b.Revoke(ctx, h.revoked[0].Key); err != nil { // the last transaction
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	h.issued, h.page, h.secret = tokens, page, "secret"
	if h.file, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	return h
}

// judge opens a damaged file and asks for everything that was in it. Either the file is refused or
// all answers are right; only a file with nothing in it may start as an empty store.
func (h history) judge(t *testing.T, path string) (outcome string) {
	t.Helper()
	b, err := OpenBbolt(path, time.Now)
	if err != nil {
		if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "move it away") && !strings.Contains(err.Error(), "name another file") {
			t.Errorf("the message does not name the file and what to do: %v", err)
		}
		return "refused"
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, token := range h.revoked {
		absent(t, b, token.Key)
	}
	secret, err := b.Secret(ctx, "key", []byte("fresh"))
	if err != nil {
		t.Error(err)
	}
	outcome = "well"
	if string(secret) == "fresh" { // with a new MAC key no old token is genuine
		outcome = "empty"
	} else {
		if string(secret) != h.secret {
			t.Errorf("the secret is %q", secret)
		}
		for _, token := range h.issued {
			present(t, b, token)
		}
		if got := admit(t, b, h.client)[h.client]; got != h.generation {
			t.Errorf("a client has generation %d, want %d", got, h.generation)
		}
	}
	fresh := tokenOf("fresh")
	put(t, b, fresh)
	present(t, b, fresh)
	if err := b.Revoke(ctx, fresh.Key); err != nil {
		t.Error(err)
	}
	absent(t, b, fresh.Key)
	return outcome
}

// Whatever happens to the file, the store refuses it, with its path and a way out, or answers
// truthfully from it. It never panics or hangs, never changes or loses a token, and never
// brings back a revoked one.
func TestBatteryDamagedFile(t *testing.T) {
	rounds := 4
	if longBattery {
		rounds = 200
	}
	h := makeHistory(t)
	folder := t.TempDir()
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			outcomes := map[string]int{}
			for range rounds {
				seed := rand.Uint64()
				damaged := d.do(rand.New(rand.NewPCG(seed, 0)), bytes.Clone(h.file), h.page)
				path := filepath.Join(folder, fmt.Sprintf("%x.db", seed))
				if err := os.WriteFile(path, damaged, 0o600); err != nil {
					t.Fatal(err)
				}
				done := make(chan string, 1)
				go func() { done <- h.judge(t, path) }()
				select {
				case outcome := <-done:
					outcomes[outcome]++
					if outcome == "empty" && len(damaged) > 0 && !bytes.Equal(damaged, make([]byte, len(damaged))) {
						t.Error("a file that is not empty was taken for empty")
					}
				case <-time.After(time.Minute):
					t.Fatalf("the store hangs, with seed %d", seed)
				}
				if t.Failed() {
					t.Fatalf("with seed %d", seed)
				}
				os.Remove(path)
			}
			t.Logf("battery: %d files with %s: %d refused, %d well, %d empty", rounds, d.name, outcomes["refused"], outcomes["well"], outcomes["empty"])
		})
	}
}

// A single flipped bit is found before the file is used, in each place where it would undo a
// revocation or widen what a token may do.
func TestBboltFindsWhatHasChanged(t *testing.T) {
	h := makeHistory(t)
	last := 0 // the meta page of the last transaction
	if txid := func(at int) uint64 { return binary.NativeEndian.Uint64(h.file[at+64:]) }; txid(h.page) > txid(0) {
		last = h.page
	}
	for name, c := range map[string]struct {
		content string // is in the page in use, and perhaps in freed ones
		changed int    // which of its bytes to change
	}{
		"the last transaction, a revocation, is undone": {string(h.file[last+64 : last+metaEnd]), 0},
		"the generation of a client":                    {`"generation":2`, 13},
		"a secret":                                      {"keysecret", 5},
		"the name of a bucket":                          {"clients", 0},
		"a scope":                                       {"\x04read\x05write", 1},
	} {
		refused := 0
		for from := 0; ; from++ {
			at := bytes.Index(h.file[from:], []byte(c.content))
			if at < 0 || refused > 3 {
				break
			}
			from += at
			path := filepath.Join(t.TempDir(), "tokens.db")
			damaged := bytes.Clone(h.file)
			damaged[from+c.changed] ^= 1
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			if h.judge(t, path) == "refused" {
				refused++
			}
		}
		if refused == 0 {
			t.Errorf("%s: the change was not found", name)
		}
	}
}

// The page of the last transaction isn't mistaken for the one before it, which may have got into its place:
// then the last revocation would be undone.
func TestBboltFindsAMetaPageInPlaceOfTheOther(t *testing.T) {
	h := makeHistory(t)
	for from, to := range map[int]int{0: h.page, h.page: 0} {
		path := filepath.Join(t.TempDir(), "tokens.db")
		damaged := bytes.Clone(h.file)
		copy(damaged[to:to+h.page], h.file[from:from+h.page])
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if outcome := h.judge(t, path); outcome != "refused" {
			t.Errorf("with that at %d in place of that at %d: %s", from, to, outcome)
		}
	}
}
