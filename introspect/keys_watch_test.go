package introspect_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// watchers returns how many files are watched, and by how many goroutines. It gives them time to begin and
// to end until they are as many as wanted.
func watchers(wanted int) (files, goroutines int) {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
		if goroutines = introspect.FileWatchers(); goroutines == wanted {
			break
		}
	}
	return introspect.WatchedFiles(), goroutines
}

// Guarded keys in a file are there at once, and one goroutine looks at the files of all of them, for as
// long as there are any.
func TestFilesOfGuardedKeysAreWatched(t *testing.T) {
	t.Cleanup(func() { // when all keys are closed
		if files, goroutines := watchers(0); files != 0 || goroutines != 0 {
			t.Errorf("at the end, %d files are watched by %d goroutines", files, goroutines)
		}
	})
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, newer := keyFor("EdDSA"), keyFor("ES256")
	token, later := key.issue(goodClaims()), newer.issue(goodClaims())
	var told atomic.Int64
	var failure atomic.Value
	settings := jwtSettings{Guarded: true, OnFetch: func(kind string, _ time.Duration, err error) {
		told.Add(1)
		failure.Store("")
		if err != nil {
			failure.Store(err.Error())
		}
	}}
	open := func(path string) *introspect.JWT {
		s := settings
		s.KeysFile = path
		return newJWT(t, s)
	}
	path := write("keys", jwks(key.jwk(nil)))
	j := open(path)
	wants(t, j, token, "active")
	wants(t, j, later, "inactive")
	if n := introspect.WatchedFiles(); n != 1 {
		t.Errorf("%d files are watched", n)
	}
	for range 20 {
		open(path)
	}
	if files, goroutines := watchers(1); files != 21 || goroutines != 1 {
		t.Errorf("%d files are watched by %d goroutines", files, goroutines)
	}

	write("keys", jwks(newer.jwk(nil)))
	wants(t, j, token, "active") // nobody has looked
	introspect.LookAtFiles()
	wants(t, j, token, "inactive")
	wants(t, j, later, "active")
	told.Store(0)
	introspect.LookAtFiles()
	introspect.LookAtFiles()
	if n := told.Load(); n != 42 { // it was written a moment ago, so it is read again
		t.Errorf("told %d times about a new file", n)
	}
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(-time.Minute)); err != nil {
		t.Fatal(err)
	}
	introspect.LookAtFiles()
	told.Store(0)
	introspect.LookAtFiles()
	if n := told.Load(); n != 0 {
		t.Errorf("told %d times about a file that is as it was", n)
	}

	// What can't be used changes nothing, and is told once.
	for text, want := range map[string]string{"{": "parsing", jwks(key.jwk(claims{"d": "canary"})): "private key", "<html>": "invalid character"} {
		write("keys", text)
		told.Store(0)
		introspect.LookAtFiles()
		introspect.LookAtFiles()
		if message, _ := failure.Load().(string); told.Load() != 21 || !strings.Contains(message, want) || strings.Contains(message, "canary") {
			t.Errorf("told %d times: %s", told.Load(), message)
		}
		wants(t, j, later, "active")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	introspect.LookAtFiles()
	wants(t, j, later, "active")
	write("keys", jwks(key.jwk(nil)))
	introspect.LookAtFiles()
	wants(t, j, token, "active")

	// Without a file there are no keys, and no answer.
	broken := open(filepath.Join(dir, "none"))
	wants(t, broken, token, "error")
	write("none", jwks(key.jwk(nil)))
	introspect.LookAtFiles()
	wants(t, broken, token, "active")
}

// Keys in the configuration stay as they are, and must all be usable.
func TestKeysInASet(t *testing.T) {
	key := keyFor("EdDSA")
	j := newJWT(t, jwtSettings{Set: jwks(key.jwk(nil)), Guarded: true})
	wants(t, j, key.issue(goodClaims()), "active")
	wants(t, j, keyFor("ES256").issue(goodClaims()), "inactive")
	for name, c := range map[string]struct{ set, want string }{
		"a private key":     {jwks(key.jwk(nil), key.jwk(claims{"kid": "2", "d": "canary"})), `kid "2": it includes a private key`},
		"a secret":          {jwks(claims{"kty": "oct", "k": "canary"}), "private key"},
		"for encryption":    {jwks(key.jwk(nil), key.jwk(claims{"use": "enc"})), "use is not sig"},
		"no set":            {key.jwk(nil).json(), "not a JWK set"},
		"no keys":           {`{"keys":[]}`, "none of 0 keys"},
		"two of one member": {`{"keys":[{"kty":"OKP","kty":"oct"}]}`, "ambiguous"},
	} {
		err := introspect.KeysConfig{Issuer: "ci", Set: c.set, Guarded: true}.Check()
		if !contains(err, c.want) || !contains(err, `the keys of "ci"`) || contains(err, "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (introspect.KeysConfig{Issuer: "ci", Set: jwks(key.jwk(nil)), KeysFile: "x"}).Check(); !contains(err, "exactly one") {
		t.Errorf("a set and a file: %v", err)
	}
	// Guarded keys belong to whom they belong to, whatever the name.
	for _, name := range []string{"a*b", "{x}", "#1", "~"} {
		if err := (introspect.KeysConfig{Issuer: name, Set: jwks(key.jwk(nil)), Guarded: true}).Check(); err != nil {
			t.Error(err)
		}
	}
}

// What a file or a set has can be told before it is used.
func TestKeysAreRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, []byte(jwks(keyFor("EdDSA").jwk(nil), keyFor("RS256").jwk(nil), keyFor("ES256").jwk(claims{"use": "enc"}))), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := introspect.KeysConfig{Issuer: "ci", KeysFile: path, Guarded: true}
	for want, algorithms := range [][]string{{"ES256"}, {"EdDSA"}, nil} {
		if n, ignored, err := cfg.Read(algorithms); n != want || len(ignored) != 1 || err != nil {
			t.Errorf("%v: %d keys, %v, %v; want %d", algorithms, n, ignored, err, want)
		}
	}
	cfg.KeysFile += ".not"
	if _, _, err := cfg.Read(nil); !contains(err, "no such file") {
		t.Error(err)
	}
	if n, _, err := (introspect.KeysConfig{Issuer: "ci", JWKSURI: "https://keys.example/"}).Read(nil); n != 0 || err != nil {
		t.Errorf("keys elsewhere: %d, %v", n, err)
	}
}
