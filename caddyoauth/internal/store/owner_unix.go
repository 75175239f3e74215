//go:build unix

package store

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// noFollow makes an open refuse a link.
const noFollow = syscall.O_NOFOLLOW

// checkOwner refuses a file that belongs to neither user, who runs the gateway, nor root: its
// owner can write tokens into it, and read the key of their MAC.
func checkOwner(path string, info fs.FileInfo, user int) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || stat.Uid == 0 || int(stat.Uid) == user {
		return nil
	}
	return fmt.Errorf("the token store %s belongs to user %d, who can make tokens in it, but the gateway runs as user %d: run the gateway as user %[2]d (in a container: runAsUser or --user); if you trust what is in the file, 'chown %[3]d %[1]s'; or move it away to start with an empty one, which ends all tokens", path, stat.Uid, user)
}

// checkFolder refuses a folder in which everybody may replace files, unless its sticky bit
// leaves that to their owners, as in /tmp. The folder's owner and group don't matter, since
// volumes of containers belong to all sorts of users: they can take the file away, but a
// file that they put in its place is theirs, which checkOwner notices.
func checkFolder(path string) error {
	folder := filepath.Dir(path)
	info, err := os.Stat(folder)
	if err != nil {
		return Unusable(path, err)
	}
	if info.Mode().Perm()&0o002 == 0 || info.Mode()&fs.ModeSticky != 0 {
		return nil
	}
	return fmt.Errorf("the folder of the token store %s is writable by everybody (mode %o): 'chmod o-w %s' or, if it is a volume, let the gateway create a folder of its own in it with 'store bbolt %s'",
		path, info.Mode().Perm(), folder, filepath.Join(folder, "oauth", filepath.Base(path)))
}
