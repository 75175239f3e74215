//go:build unix

package store

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A file of another user is refused and left as it is, because its owner could make tokens in it.
// One's own file and root's are used.
func TestBboltFileBelongsToTheGateway(t *testing.T) {
	folder := t.TempDir()
	if err := os.Chmod(folder, 0o777|fs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, "tokens.db")
	b, err := OpenBbolt(path, time.Now) // a sticky folder, such as /tmp, will do
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	me := os.Geteuid()
	if err := checkOwner(path, info, me); err != nil {
		t.Errorf("one's own file: %v", err)
	}
	refused := func(err error, owner, user int) {
		t.Helper()
		if err == nil {
			t.Fatal("the file is used")
		}
		for _, want := range []string{path, fmt.Sprintf("belongs to user %d", owner), fmt.Sprintf("as user %d", user), fmt.Sprintf("chown %d %s", user, path), "move it away"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the error does not say %q: %v", want, err)
			}
		}
	}
	if me != 0 {
		refused(checkOwner(path, info, me+1), me, me+1)
		return
	}
	if err := checkOwner(path, info, 1000); err != nil {
		t.Errorf("root's file: %v", err)
	}
	// Only root can give a file away.
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	for _, content := range []bool{true, false} {
		if !content { // an empty file, laid there for the gateway to fill
			if err := os.Truncate(path, 0); err != nil {
				t.Fatal(err)
			}
		}
		b, err := OpenBbolt(path, time.Now)
		if err == nil {
			b.Close()
		}
		refused(err, 65534, 0)
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 || !content && info.Size() != 0 {
			t.Errorf("the file was changed: mode %o, %d bytes, %v", info.Mode().Perm(), info.Size(), err)
		}
	}
}

// A folder that everybody may write to is refused, and the error says how to use a volume. A group
// that may write, or another owner, is no reason to refuse it: volumes have them.
func TestBboltFolderIsNotEverybodys(t *testing.T) {
	for mode, ok := range map[fs.FileMode]bool{
		0o700: true, 0o755: true, 0o770: true, 0o775 | fs.ModeSetgid: true, 0o777 | fs.ModeSticky: true,
		0o777: false, 0o777 | fs.ModeSetgid: false, 0o702: false, 0o773: false,
	} {
		folder := filepath.Join(t.TempDir(), "volume")
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(folder, mode); err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() == 0 {
			if err := os.Chown(folder, 1000, 1000); err != nil {
				t.Fatal(err)
			}
		}
		path := filepath.Join(folder, "tokens.db")
		b, err := OpenBbolt(path, time.Now)
		if (err == nil) != ok {
			t.Errorf("a folder of mode %v: %v", mode, err)
		}
		if err == nil {
			b.Close()
			continue
		}
		below := filepath.Join(folder, "oauth", "tokens.db")
		if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "chmod o-w "+folder) || !strings.Contains(err.Error(), "store bbolt "+below) {
			t.Errorf("the error does not say what to do: %v", err)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("the file was created: %v", err)
		}
		openBbolt(t, below, time.Now)
	}
}
