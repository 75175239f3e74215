package store

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// openBbolt opens a store. When the test is over it closes it and checks that the file is
// consistent.
func openBbolt(t testing.TB, path string, now func() time.Time) *Bbolt {
	t.Helper()
	b, err := OpenBbolt(path, now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("closing the store: %v", err)
		}
		consistent(t, path)
	})
	return b
}

func consistent(t testing.TB, path string) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: 10 * time.Second, PreLoadFreelist: true})
	if err != nil {
		t.Errorf("opening the file to check it: %v", err)
		return
	}
	defer db.Close()
	db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			t.Errorf("the file is inconsistent: %v", err)
		}
		return nil
	})
}

// stored counts the tokens in the file.
func stored(t testing.TB, b *Bbolt) (n int) {
	t.Helper()
	if err := b.view(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketTokens).ForEach(func(k, v []byte) error { n++; return nil })
	}); err != nil {
		t.Error(err)
	}
	return n
}

// Nobody else can read the file, whatever mode it had when it was found.
func TestBboltFileIsPrivate(t *testing.T) {
	mode := func(path string) os.FileMode {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}
	path := filepath.Join(t.TempDir(), "new", "folder", "tokens.db")
	b := openBbolt(t, path, time.Now)
	for _, c := range []struct {
		path string
		want os.FileMode
	}{{path, 0o600}, {filepath.Dir(path), 0o700}, {filepath.Dir(filepath.Dir(path)), 0o700}} {
		if got := mode(c.path); got != c.want {
			t.Errorf("%s has mode %o, want %o", c.path, got, c.want)
		}
	}
	token := tokenOf("a")
	put(t, b, token)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for _, open := range []os.FileMode{0o644, 0o660, 0o666, 0o604} {
		if err := os.Chmod(path, open); err != nil {
			t.Fatal(err)
		}
		b := openBbolt(t, path, time.Now)
		if got := mode(path); got != 0o600 {
			t.Errorf("after opening, a file of mode %o has mode %o, want 600", open, got)
		}
		present(t, b, token)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A link, or anything else that is not a regular file, is refused and left alone.
func TestBboltOpensNothingButAFile(t *testing.T) {
	folder := t.TempDir()
	target := filepath.Join(folder, "target")
	if err := os.WriteFile(target, []byte("somebody's"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func(path string) error{
		"link":            func(path string) error { return os.Symlink(target, path) },
		"link to nothing": func(path string) error { return os.Symlink(filepath.Join(folder, "nothing"), path) },
		"folder":          func(path string) error { return os.Mkdir(path, 0o755) },
	} {
		path := filepath.Join(folder, name)
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if b, err := OpenBbolt(path, time.Now); err == nil {
			b.Close()
			t.Errorf("%s: it was opened", name)
		} else if !strings.Contains(err.Error(), path) {
			t.Errorf("%s: the message does not name the path: %v", name, err)
		}
	}
	if text, err := os.ReadFile(target); err != nil || string(text) != "somebody's" {
		t.Errorf("the target now holds %q, %v", text, err)
	}
	if info, err := os.Stat(target); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the target's mode was changed")
	}
	if _, err := os.Stat(filepath.Join(folder, "nothing")); !errors.Is(err, os.ErrNotExist) {
		t.Error("a file was created at the end of a link")
	}
}

// helpers are the roles that this binary can play as another process.
var helpers = map[string]func(path string) error{"hold": holdFile, "write": writeUntilKilled}

// helper starts this binary in a role. If it still runs when the test is over, it is killed.
func helper(t *testing.T, role, path string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "STORE_TEST_ROLE="+role, "STORE_TEST_PATH="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	// It ends when its standard input does, so it can't outlive this process.
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return cmd, bufio.NewScanner(out)
}

func holdFile(path string) error {
	b, err := OpenBbolt(path, time.Now)
	if err != nil {
		return err
	}
	fmt.Println("holding")
	io.Copy(io.Discard, os.Stdin)
	return b.Close()
}

// A file that another process has open is refused soon, with its path and a way
// out. Once the other process has gone, it can be opened.
func TestBboltFileInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.db")
	other, lines := helper(t, "hold", path)
	if !lines.Scan() || lines.Text() != "holding" {
		t.Fatalf("the other process says %q", lines.Text())
	}
	begun := time.Now()
	b, err := OpenBbolt(path, time.Now)
	if err == nil {
		b.Close()
		t.Fatal("the file was opened twice")
	}
	if !errors.Is(err, ErrInUse) {
		t.Errorf("the error is not ErrInUse: %v", err)
	}
	if waited := time.Since(begun); waited > 15*time.Second { // it waits for a second, but the machine may be busy
		t.Errorf("it took %v", waited)
	}
	for _, part := range []string{path, "in use by another process", "stop the other process", "store bbolt <path>", "longer lock_timeout"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the message does not say %q: %v", part, err)
		}
	}
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	other.Wait()
	openBbolt(t, path, time.Now)
}

// writeUntilKilled issues and revokes tokens as fast as it can, and reports it on standard output:
// "put" once a token is acknowledged, "revoking" before it is revoked, "revoked" once the
// revocation is acknowledged.
func writeUntilKilled(path string) error {
	b, err := OpenBbolt(path, time.Now)
	if err != nil {
		return err
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(1) // the parent is gone
	}()
	var line sync.Mutex // a line is one write, so it arrives whole or not at all
	say := func(verb, name string) {
		line.Lock()
		defer line.Unlock()
		os.Stdout.WriteString(verb + " " + name + "\n")
	}
	failed := make(chan error)
	for w := range 8 {
		go func() {
			for i := 0; ; i++ {
				name := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
				// Both processes use the same expiry, and no test runs late enough to see it pass.
				token := tokenUntil(name, farAway)
				if err := b.Put(ctx, token); err != nil {
					failed <- err
					return
				}
				say("put", name)
				if i%3 == 0 {
					continue
				}
				say("revoking", name)
				if err := b.Revoke(ctx, token.Key); err != nil {
					failed <- err
					return
				}
				say("revoked", name)
			}
		}()
	}
	return <-failed
}

var farAway = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)

// What was acknowledged holds even if the process is killed in the middle of its work: every
// token is there, and so is every revocation.
func TestBboltSurvivesKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.db")
	state := map[string]string{} // the last verb reported for each token
	rounds := 5
	if testing.Short() {
		rounds = 2
	}
	for range rounds {
		child, lines := helper(t, "write", path)
		lineCount, killAt := 0, 200+rand.IntN(2000)
		deadline := time.AfterFunc(20*time.Second, func() { child.Process.Kill() })
		for lines.Scan() { // to the end, including what was in the pipe when it was killed
			verb, name, ok := strings.Cut(lines.Text(), " ")
			if !ok {
				t.Fatalf("the child says %q", lines.Text())
			}
			state[name] = verb
			if lineCount++; lineCount == killAt {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		deadline.Stop()
		if err := child.Wait(); err == nil {
			t.Fatal("the child ended by itself")
		}
		if lineCount < 100 {
			t.Fatalf("the child wrote only %d lines", lineCount)
		}

		b := openBbolt(t, path, time.Now)
		// A kill doesn't lose the system's buffers, so that writes are synced shows only here.
		if b.db.NoSync || b.db.NoGrowSync {
			t.Error("the file is not synced")
		}
		count := map[string]int{}
		for name, verb := range state {
			count[verb]++
			switch token := tokenUntil(name, farAway); verb {
			case "put":
				present(t, b, token)
			case "revoked":
				absent(t, b, token.Key)
			case "revoking": // present or absent, but nothing else
				if got, err := b.Get(ctx, token.Key); err == nil && !same(got, token) || err != nil && !errors.Is(err, oauth.ErrNotFound) {
					t.Errorf("a token that was being revoked: %+v, %v", got, err)
				}
			}
		}
		t.Logf("killed after %d lines; so far %v", lineCount, count)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		consistent(t, path)
	}
}

// Tokens, revocations, generations and secrets are still there after the file was closed and
// opened again.
func TestBboltRemembers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.db")
	kept, revoked := tokenOf("kept"), tokenOf("revoked")
	stays, goes := oauth.ClientRef{Realm: "root", ClientID: "stays"}, oauth.ClientRef{Realm: "root", ClientID: "goes"}
	b := openBbolt(t, path, time.Now)
	put(t, b, kept, revoked)
	if err := b.Revoke(ctx, revoked.Key); err != nil {
		t.Fatal(err)
	}
	admit(t, b, stays, goes)
	if err := b.Retire(ctx, []oauth.ClientRef{stays}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Secret(ctx, "key", []byte("first")); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	b = openBbolt(t, path, time.Now)
	present(t, b, kept)
	absent(t, b, revoked.Key)
	if got := admit(t, b, stays, goes); got[stays] != 1 || got[goes] != 2 {
		t.Errorf("generations are %v, want 1 for the one that stayed and 2 for the other", got)
	}
	if got, err := b.Secret(ctx, "key", []byte("second")); err != nil || string(got) != "first" {
		t.Errorf("the secret is %q, %v", got, err)
	}
}

// The file never contains a token, only its ID.
func TestBboltFileHoldsNoMoreThanItWasGiven(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.db")
	b := openBbolt(t, path, time.Now)
	token := tokenOf("canary-token")
	token.ClientID = "somebody"
	put(t, b, token)
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(file, []byte("canary-token")) {
		t.Error("the file holds the token")
	}
	if !bytes.Contains(file, token.ID[:]) {
		t.Error("the file does not hold the token's ID")
	}
}

// fileToDamage makes a store with 500 tokens in it, closes it, and returns its path, the tokens
// and the size of a page.
func fileToDamage(t *testing.T) (path string, tokens []oauth.Token, pageSize int) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "tokens.db")
	b, err := OpenBbolt(path, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 500 {
		tokens = append(tokens, tokenOf(fmt.Sprint(i)))
	}
	var all sync.WaitGroup
	for _, token := range tokens {
		all.Go(func() { put(t, b, token) })
	}
	all.Wait()
	admit(t, b, oauth.ClientRef{Realm: "root", ClientID: "a"})
	if _, err := b.Secret(ctx, "key", []byte("secret")); err != nil {
		t.Fatal(err)
	}
	pageSize = b.db.Info().PageSize
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return path, tokens, pageSize
}

// honest opens a file that may be damaged, and asks for all tokens. Opening and reading may fail,
// but must not panic, hang, or claim that a token is absent.
func honest(t *testing.T, path string, tokens []oauth.Token) (failed int) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		b, err := OpenBbolt(path, time.Now)
		if err != nil {
			failed = len(tokens)
			saysWhatToDo(t, err, path)
			return
		}
		for _, token := range tokens {
			got, err := b.Get(ctx, token.Key)
			switch {
			case errors.Is(err, oauth.ErrNotFound):
				t.Errorf("a token that can't be read is reported as absent")
				return
			case err != nil:
				failed++
			case !same(got, token):
				t.Errorf("got %+v, want %+v", got, token)
			}
		}
		if err := b.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("the store hangs")
	}
	return failed
}

// saysWhatToDo checks the message about a damaged file: it names the file and a way out that keeps
// revoked tokens revoked, and contains nothing of what bbolt or Go panicked with.
func saysWhatToDo(t *testing.T, err error, path string) {
	t.Helper()
	for _, part := range []string{path, "damaged or not a token store (", "move it away", "all tokens have then ended", "fetch new ones", "Don't put an old copy in its place"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the message does not say %q: %v", part, err)
		}
	}
	for _, part := range []string{"restore", "panic", "runtime", "goroutine", "nil pointer", "invalid memory address", "index out of range", "assertion failed", "0x", "()"} {
		if strings.Contains(err.Error(), part) {
			t.Errorf("the message says %q: %v", part, err)
		}
	}
}

// A damaged file causes an error that says what to do, never a panic, and never a "no".
func TestBboltDamagedFile(t *testing.T) {
	t.Run("not a bbolt file", func(t *testing.T) {
		for _, size := range []int{1, 100, 100_000} {
			path := filepath.Join(t.TempDir(), "tokens.db")
			if err := os.WriteFile(path, bytes.Repeat([]byte("x"), size), 0o600); err != nil {
				t.Fatal(err)
			}
			b, err := OpenBbolt(path, time.Now)
			if err == nil {
				b.Close()
				t.Fatalf("%d bytes of garbage were opened", size)
			}
			saysWhatToDo(t, err, path)
		}
	})
	t.Run("cut short", func(t *testing.T) {
		path, tokens, page := fileToDamage(t)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if honest(t, path, tokens) != 0 {
			t.Fatal("the file is damaged to begin with")
		}
		used := 0
		db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		db.View(func(tx *bolt.Tx) error { used = int(tx.Size()); return nil })
		db.Close()
		for size := 1; size < len(whole); size += page * 3 / 2 {
			cut := filepath.Join(t.TempDir(), "tokens.db")
			if err := os.WriteFile(cut, whole[:size], 0o600); err != nil {
				t.Fatal(err)
			}
			// The rest of the file may well be unused.
			if failed := honest(t, cut, tokens); failed == 0 && size < used {
				t.Errorf("of a file that uses %d bytes, the first %d were read without an error", used, size)
			}
		}
	})
	t.Run("a page of zeros", func(t *testing.T) {
		path, tokens, page := fileToDamage(t)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		failed := 0
		// Pages 0 and 1 are the meta pages, which can stand in for each other.
		for at := 2 * page; at+page <= len(whole); at += page {
			damaged := bytes.Clone(whole)
			clear(damaged[at : at+page])
			path := filepath.Join(t.TempDir(), "tokens.db")
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			failed += honest(t, path, tokens)
		}
		if failed == 0 {
			t.Error("a file without some of its pages was read without an error")
		}
	})
	t.Run("cut short while it is open", func(t *testing.T) {
		path, tokens, page := fileToDamage(t)
		b, err := OpenBbolt(path, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, int64(page)); err != nil {
			t.Fatal(err)
		}
		for _, token := range tokens {
			if _, err := b.Get(ctx, token.Key); err == nil || errors.Is(err, oauth.ErrNotFound) {
				t.Fatalf("Get: %v, want an error that is not ErrNotFound", err)
			} else {
				saysWhatToDo(t, err, path)
			}
		}
		limited, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if err := b.Put(limited, tokenOf("another")); err == nil {
			t.Error("a token was acknowledged")
		}
		if err := b.Revoke(limited, tokens[0].Key); err == nil {
			t.Error("a revocation was acknowledged")
		}
		closed := make(chan struct{})
		go func() { b.Close(); close(closed) }()
		select {
		case <-closed:
		case <-time.After(30 * time.Second):
			t.Error("the store can't be closed")
		}
	})
}

// A client's state that is not what it should be causes an error, and harms no token.
func TestBboltClientsThatAreWrong(t *testing.T) {
	b := openBbolt(t, filepath.Join(t.TempDir(), "tokens.db"), time.Now)
	token := tokenOf("a")
	for _, state := range []string{"", "null?", "[]", `{"generation":-1}`, `{"generation":"1"}`} {
		if err := b.update(func(tx *bolt.Tx) error { return tx.Bucket(bucketClients).Put([]byte("root\x00a"), []byte(state)) }); err != nil {
			t.Fatal(err)
		}
		// Starting again at generation 1 would bring tokens back.
		if got, err := b.Admit(ctx, []oauth.ClientRef{{Realm: "root", ClientID: "a"}}, nil); err == nil {
			t.Errorf("a client's state %q: %v", state, got)
		}
		if err := b.Retire(ctx, nil); err == nil {
			t.Errorf("a client's state %q was retired", state)
		}
	}
	put(t, b, token)
	present(t, b, token)
}

// hold makes the committer wait until the returned function is called.
func hold(t *testing.T, b *Bbolt) (release func()) {
	t.Helper()
	begun, end := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- b.write(ctx, func(*bolt.Tx) error { close(begun); <-end; return nil })
	}()
	<-begun
	return func() {
		close(end)
		if err := <-done; err != nil {
			t.Errorf("the write that held up the others: %v", err)
		}
	}
}

// A caller whose context ends leaves at once. What it asked for may still be done later, and
// does no harm.
func TestBboltCallersMayLeave(t *testing.T) {
	b := openBbolt(t, filepath.Join(t.TempDir(), "tokens.db"), time.Now)
	ref := oauth.ClientRef{Realm: "root", ClientID: "a"}
	release := hold(t, b)
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	b.patience = 20 * time.Millisecond
	token := tokenOf("a")
	var callers sync.WaitGroup
	for what, call := range map[string]func() error{
		"Put":                                 func() error { return b.Put(short, token) },
		"Put, with all the time in the world": func() error { return b.Put(ctx, token) },
		"Revoke":                              func() error { return b.Revoke(short, token.Key) },
		"Admit":                               func() error { _, err := b.Admit(short, []oauth.ClientRef{ref}, nil); return err },
		"Retire":                              func() error { return b.Retire(short, []oauth.ClientRef{ref}) },
		"Secret":                              func() error { _, err := b.Secret(short, "name", []byte("x")); return err },
	} {
		callers.Go(func() {
			if err := call(); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v, want the context's error", what, err)
			}
		})
	}
	callers.Wait()          // this would hang if one of them waited for the committer
	absent(t, b, token.Key) // reads go on meanwhile
	release()
	b.patience = oauth.StoreTimeout
	put(t, b, tokenOf("b"))
	present(t, b, tokenOf("b"))
	if got := admit(t, b, ref)[ref]; got == 0 {
		t.Error("the client has no generation")
	}
}

// What a writer waits with is used again, but not while an outcome is still to come. So nobody gets the
// outcome of a write whose caller has left, and a timer that has been used before rings when it must.
func TestBboltWaitersAreUsedAgain(t *testing.T) {
	b := openBbolt(t, filepath.Join(t.TempDir(), "tokens.db"), time.Now)
	wrong := errors.New("this write fails")
	gone, cancel := context.WithCancel(ctx)
	cancel()
	for range 20 { // the pool may drop what it is given
		put(t, b, tokenOf("a"))
		release := hold(t, b)
		b.patience = time.Millisecond
		begun := time.Now()
		if err := b.Put(ctx, tokenOf("b")); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) < b.patience {
			t.Errorf("with a committer that does not answer: %v after %v", err, time.Since(begun))
		}
		if err := b.Revoke(gone, tokenOf("c").Key); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that has ended: %v", err)
		}
		b.patience = oauth.StoreTimeout
		release()
		for range 3 { // both of those that have left will have succeeded
			if err := b.write(ctx, func(*bolt.Tx) error { return wrong }); !errors.Is(err, wrong) {
				t.Fatalf("a write that fails was answered with %v", err)
			}
		}
	}
}

// Writers that come back one by one get into one batch, if there are no long gaps between them. None
// waits for one that stays away, and none waits for long.
func TestBboltWritersComeBackOneByOne(t *testing.T) {
	const took = 100 * time.Microsecond
	for name, test := range map[string]struct {
		before, come, want int // writers
		apart              time.Duration
		takes              time.Duration // at most
	}{
		"all come back":          {16, 15, 16, 80 * time.Microsecond, 15 * 80 * time.Microsecond},
		"one stays away":         {16, 14, 15, 80 * time.Microsecond, 15*80*time.Microsecond + 2*took},
		"long gaps":              {16, 15, 1, 150 * time.Microsecond, took},
		"too many":               {1000, 999, 23, 90 * time.Microsecond, maxGather},
		"a writer that is alone": {1, 1, 1, time.Microsecond, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := &Bbolt{writes: make(chan write, maxBatch), closing: make(chan struct{})}
			gone := make(chan struct{})
			go func() {
				for range test.come {
					time.Sleep(test.apart)
					b.writes <- write{}
				}
				close(gone)
			}()
			begin := time.Now()
			batch := b.gather(write{}, &gathering{writers: test.before, took: took})
			if len(batch) != test.want || time.Since(begin) > test.takes {
				t.Errorf("%s: a batch of %d after %v, want %d within %v", name, len(batch), time.Since(begin), test.want, test.takes)
			}
			<-gone
		})
	}
}

// Writes that are carried out together succeed or fail one by one.
func TestBboltOneFailureIsNotEverybodys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.db")
	b := openBbolt(t, path, time.Now)
	release := hold(t, b)
	trouble := errors.New("trouble")
	const n = 30
	errs := make([]error, n)
	var callers sync.WaitGroup
	for i := range n {
		callers.Go(func() {
			switch i {
			case 10:
				errs[i] = b.write(ctx, func(tx *bolt.Tx) error {
					if err := tx.Bucket(bucketTokens).Put([]byte("left behind"), []byte("x")); err != nil {
						return err
					}
					return trouble
				})
			case 20:
				errs[i] = b.write(ctx, func(*bolt.Tx) error { panic("a damaged page") }) // which the message must not repeat
			default:
				errs[i] = b.Put(ctx, tokenOf(fmt.Sprint(i)))
			}
		})
	}
	for len(b.writes) < n { // until all wait behind the one that holds them up
		time.Sleep(time.Millisecond)
	}
	release()
	callers.Wait()
	for i, err := range errs {
		switch i {
		case 10:
			if !errors.Is(err, trouble) {
				t.Errorf("the write that failed: %v", err)
			}
		case 20:
			if err == nil {
				t.Fatal("the write that panicked succeeded")
			}
			saysWhatToDo(t, err, path)
			if strings.Contains(err.Error(), "a damaged page") || !strings.Contains(err.Error(), "TestBboltOneFailureIsNotEverybodys") {
				t.Errorf("the message does not say where it panicked, or says with what: %v", err)
			}
		default:
			if err != nil {
				t.Errorf("write %d: %v", i, err)
			}
			present(t, b, tokenOf(fmt.Sprint(i)))
		}
	}
	if got := stored(t, b); got != n-2 {
		t.Errorf("%d tokens are stored, want %d: a write that failed left something behind", got, n-2)
	}
}

// Writes that were in the queue before Close are carried out and acknowledged.
func TestBboltCloseCarriesOutWhatWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.db")
	b := openBbolt(t, path, time.Now)
	release := hold(t, b)
	const n = 20
	var callers sync.WaitGroup
	acknowledged := make([]bool, n)
	for i := range n {
		callers.Go(func() {
			err := b.Put(ctx, tokenOf(fmt.Sprint(i)))
			acknowledged[i] = err == nil
			if err != nil && !errors.Is(err, oauth.ErrClosed) {
				t.Error(err)
			}
		})
	}
	for len(b.writes) < n {
		time.Sleep(time.Millisecond)
	}
	callers.Go(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	release()
	callers.Wait()
	b = openBbolt(t, path, time.Now)
	for i, ok := range acknowledged {
		if !ok {
			t.Errorf("write %d was in the queue and was refused", i)
			continue
		}
		present(t, b, tokenOf(fmt.Sprint(i)))
	}
}

// While tokens are written, expired ones are dropped: more than come in, but never so many that a
// write takes long.
func TestBboltDropsWhatHasExpiredWhileItWrites(t *testing.T) {
	var now atomic.Int64
	now.Store(1000)
	b := openBbolt(t, filepath.Join(t.TempDir(), "tokens.db"), func() time.Time { return time.Unix(now.Load(), 0) })
	const old = 1000
	if err := b.update(func(tx *bolt.Tx) error {
		for i := range old {
			token := tokenUntil(fmt.Sprint("old ", i), time.Unix(2000+int64(i%2), 0))
			if err := tx.Bucket(bucketTokens).Put(tokenKey(token.Key), encodeRecord(token)); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	now.Store(2000) // half of them expire at this very second
	for i := range 20 {
		before := stored(t, b)
		put(t, b, tokenUntil(fmt.Sprint("new ", i), time.Unix(9000, 0)))
		if dropped := before + 1 - stored(t, b); dropped > 2+dropAtLeast {
			t.Fatalf("one write dropped %d tokens, want at most %d", dropped, 2+dropAtLeast)
		}
	}
	if got, want := stored(t, b), old/2+20; got != want {
		t.Errorf("%d tokens are left, want %d", got, want)
	}
	for i := range old {
		token := tokenUntil(fmt.Sprint("old ", i), time.Unix(2000+int64(i%2), 0))
		if i%2 == 1 {
			present(t, b, token)
		} else {
			absent(t, b, token.Key)
		}
	}
}

// Expired tokens are also dropped while nobody writes. With nothing to drop, an idle store leaves
// its file alone.
func TestBboltDropsWhatHasExpiredWhileIdle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.db")
	synctest.Test(t, func(t *testing.T) { // its clock makes the store's ticker tick at once
		b, err := OpenBbolt(path, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		later := tokenUntil("later", time.Now().Add(24*time.Hour))
		put(t, b, later)
		if err := b.update(func(tx *bolt.Tx) error {
			for i := range 3*idleStep + 5 {
				if err := tx.Bucket(bucketTokens).Put(tokenKey(tokenUntil(fmt.Sprint(i), time.Now().Add(time.Minute)).Key), []byte("x")); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if got, want := stored(t, b), 3*idleStep+6; got != want {
			t.Errorf("before they expire %d tokens are left, want %d", got, want)
		}
		time.Sleep(idleEvery + time.Second)
		synctest.Wait()
		if got := stored(t, b); got != 1 {
			t.Errorf("%d tokens are left, want 1", got)
		}
		present(t, b, later)

		transactions := func() (id int) {
			b.view(func(tx *bolt.Tx) error { id = tx.ID(); return nil })
			return id
		}
		before := transactions()
		time.Sleep(10 * idleEvery)
		synctest.Wait()
		if got := transactions(); got != before {
			t.Errorf("an idle store with nothing to drop made %d transactions", got-before)
		}
	})
	consistent(t, path)
}
