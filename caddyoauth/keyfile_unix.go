//go:build unix

package caddyoauth

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// checkPrivate refuses a file with a private key that others can read or have written. A group that
// may read is how Kubernetes hands out a secret to a user other than root, so it counts as private
// if the file is root's.
func checkPrivate(path string, info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if ok && stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to user %d, but the gateway runs as user %d: 'chown' it to that user or to root", stat.Uid, os.Geteuid())
	}
	open := fs.FileMode(0o077)
	if ok && stat.Uid == 0 && os.Geteuid() != 0 {
		open = 0o037
	}
	if mode := info.Mode().Perm(); mode&open != 0 {
		return fmt.Errorf("other users can use the private key in it (its mode is %o): 'chmod %o %s'", mode, mode&^open, path)
	}
	return nil
}
