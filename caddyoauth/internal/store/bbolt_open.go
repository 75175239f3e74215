package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// The buckets of the file, and what lies in them:
//
//	meta     "version" → the version of the file, in decimal
//	tokens   expiry (8 bytes, big-endian unix milliseconds), token ID (32 bytes) → record
//	clients  realm, NUL, client ID → clientState
//	secrets  name → bytes
//	keys     realm → keyring
//	denied   expiry, token ID → realm; the self-contained tokens that were revoked
//	used     ID → its end (8 bytes, big-endian unix milliseconds); what may be used once
//	used_until  end, ID → nothing; the same, by its end
//	managed  realm, NUL, client ID → version (8 bytes, big-endian), what is kept of the managed client
//	uses     realm, NUL, client ID → what the client did last; without a client, since when that is kept
//
// Keys of tokens begin with the expiry: new tokens go to the end of the tree, where
// the pages are hot, and expired ones are a range at its beginning.
var (
	bucketMeta    = []byte("meta")
	bucketTokens  = []byte("tokens")
	bucketClients = []byte("clients")
	bucketSecrets = []byte("secrets")
	bucketKeys    = []byte("keys")
	bucketDenied  = []byte("denied")
	bucketUsed    = []byte("used")

	bucketUsedUntil = []byte("used_until")
	bucketManaged   = []byte("managed")
	bucketUses      = []byte("uses")

	keyVersion = []byte("version")
)

// fileVersion is the version of the files that this program makes. A file of a later version
// is refused and left alone; a file without a number is of version 1.
//
// A change of layout raises it, adds its buckets to fileBuckets, and brings a file from one
// version to the next by a function, called where OpenBbolt calls makeBuckets: there the
// change and the new number are one transaction, so a crash leaves one version or the other.
const fileVersion = 4

// fileBuckets are the buckets that a file of each version has, beside meta.
var fileBuckets = map[int][][]byte{
	1: {bucketTokens, bucketClients, bucketSecrets},
	2: {bucketTokens, bucketClients, bucketSecrets, bucketKeys, bucketDenied, bucketUsed, bucketUsedUntil},
	3: {bucketTokens, bucketClients, bucketSecrets, bucketKeys, bucketDenied, bucketUsed, bucketUsedUntil, bucketManaged},
	4: {bucketTokens, bucketClients, bucketSecrets, bucketKeys, bucketDenied, bucketUsed, bucketUsedUntil, bucketManaged},
}

// optionalBuckets are those that a file may have or not, from version 3. Nothing depends on what is in them,
// so OpenBbolt makes them where they are missing, without another version.
var optionalBuckets = [][]byte{bucketUses}

// lockTimeout is how long to wait for another process to close the file.
const lockTimeout = time.Second

// ErrInUse is why a file can't be opened that another process has open.
var ErrInUse = errors.New("is in use by another process")

// OpenBbolt opens or creates the file at path, with mode 0600, and creates its folder with
// mode 0700 if there is none. It refuses a file that is damaged or was written by a later
// version of this program and, on Unix, a file that belongs to a user other than this one and
// root, and a folder that everybody may write to. It waits up to a second for another process
// that has the file open, then returns ErrInUse. now is the wall clock that decides which
// tokens have expired and are dropped.
func OpenBbolt(path string, now func() time.Time) (_ *Bbolt, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, Unusable(path, err)
	}
	if err := checkFolder(path); err != nil {
		return nil, err
	}
	// A link could make this process open, and chmod, whatever it points to.
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, Unusable(path, err)
	case !info.Mode().IsRegular():
		return nil, notAFile(path)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		// bbolt checks little of what it finds when it opens a file: a damaged one can make it
		// panic, and one cut short can make it fault.
		if r := recover(); r != nil {
			err = damaged(path, panicked())
		}
	}()
	// Judge the file that was opened, not the one that lay there a moment before.
	var refusal error
	open := func(path string, flag int, mode fs.FileMode) (*os.File, error) {
		file, err := os.OpenFile(path, flag|noFollow, mode)
		if err != nil {
			return nil, err
		}
		if refusal = makePrivate(file); refusal != nil {
			file.Close()
			return nil, refusal
		}
		return file, nil
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockTimeout, FreelistType: bolt.FreelistMapType, OpenFile: open})
	switch {
	case refusal != nil:
		return nil, refusal
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("the token store %s %w: stop the other process, give each its own file with 'store bbolt <path>' or, if one replaces the other, set a longer lock_timeout", path, ErrInUse)
	case errors.As(err, new(*fs.PathError)):
		return nil, Unusable(path, err)
	case err != nil:
		return nil, damaged(path, err)
	}
	b := &Bbolt{db: db, path: path, now: now, writes: make(chan write, maxBatch), closing: make(chan struct{}), done: make(chan struct{}), proofs: newProofs(now), patience: oauth.StoreTimeout}
	b.waiters.New = newWaiter
	version, err := checkFile(path)
	if err != nil {
		b.closeFile()
		return nil, err
	}
	// A transaction even if there is nothing to change: a file that can't be written to is
	// refused now, not when the first token is issued.
	if err := b.update(func(tx *bolt.Tx) error {
		var err error
		switch version {
		case 0:
			err = makeBuckets(tx)
		case 1:
			err = errors.Join(addKeys(tx), addManaged(tx), allowCompact(tx))
		case 2:
			err = errors.Join(addManaged(tx), allowCompact(tx))
		case 3:
			err = allowCompact(tx)
		}
		return errors.Join(err, addUses(tx))
	}); err != nil {
		b.closeFile()
		return nil, Unusable(path, err)
	}
	b.denials.max = maxDenials
	if err := b.view(b.denials.load); err != nil {
		b.closeFile()
		return nil, damaged(path, err)
	}
	go b.commit()
	return b, nil
}

// makeBuckets makes an empty file one of fileVersion.
func makeBuckets(tx *bolt.Tx) error {
	for _, name := range fileBuckets[fileVersion] {
		if _, err := tx.CreateBucket(name); err != nil {
			return err
		}
	}
	meta, err := tx.CreateBucket(bucketMeta)
	if err != nil {
		return err
	}
	return setValue(meta, keyVersion, []byte(strconv.Itoa(fileVersion)))
}

// addKeys makes a file of version 1 one of version 2, which has room for the keys of
// self-contained tokens, for those that were revoked, and for what may be used once.
func addKeys(tx *bolt.Tx) error {
	for _, name := range [][]byte{bucketKeys, bucketDenied, bucketUsed, bucketUsedUntil} {
		if _, err := tx.CreateBucket(name); err != nil {
			return err
		}
	}
	meta, err := tx.CreateBucketIfNotExists(bucketMeta)
	if err != nil {
		return err
	}
	return setValue(meta, keyVersion, []byte("2"))
}

// allowCompact makes a file of version 3 one of version 4, which may have compact records. Those that are
// there stay as they are.
func allowCompact(tx *bolt.Tx) error {
	return setValue(tx.Bucket(bucketMeta), keyVersion, []byte("4"))
}

// makePrivate refuses a file of another user, and denies all others access to it.
func makePrivate(file *os.File) error {
	info, err := file.Stat()
	switch {
	case err != nil:
		return Unusable(file.Name(), err)
	case !info.Mode().IsRegular():
		return notAFile(file.Name())
	}
	if err := checkOwner(file.Name(), info, os.Geteuid()); err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		if err := file.Chmod(0o600); err != nil {
			return Unusable(file.Name(), fmt.Errorf("other users have access to it, and making it private failed: %w", err))
		}
	}
	return nil
}

// checkFile returns the version of the file, 0 if it is empty, and refuses a file that is damaged
// or of a later version. bbolt holds the lock on it.
func checkFile(path string) (version int, err error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, Unusable(path, err)
	}
	defer file.Close()
	switch version, err = checkIntact(file); {
	case err != nil:
		return 0, damaged(path, err)
	case version > fileVersion:
		return 0, fmt.Errorf("the token store %s was written by a later version of the gateway (its format is version %d, this program knows up to %d): run the later version, or name another file with 'store bbolt <path>', which begins without tokens, so that clients fetch new ones", path, version, fileVersion)
	}
	return version, nil
}

func notAFile(path string) error {
	return fmt.Errorf("the token store %s is not a regular file: name the file itself, not a link or a folder", path)
}

// Unusable is the error for a file that the operating system refuses; err says why.
func Unusable(path string, err error) error {
	return fmt.Errorf("the token store %s can't be used (%w): let the user that runs the gateway read and write the file and its folder, make room on the disk if it is full, or name another file with 'store bbolt <path>'", path, err)
}

// damaged is the error for a file that is not as this program left it; finding says what is wrong.
func damaged(path string, finding error) error {
	return fmt.Errorf("the token store %s is damaged or not a token store (%w): move it away, and the next start creates an empty one; all tokens have then ended, and clients fetch new ones. Don't put an old copy in its place: tokens revoked since would be valid in it", path, finding)
}

// panicked is what damaged says of a panic that the calling function has just recovered:
// where it was. The panic's own text would speak of the insides of bbolt or of Go.
func panicked() error {
	callers := make([]uintptr, 64)
	frames := runtime.CallersFrames(callers[:runtime.Callers(2, callers)])
	for inside := false; ; {
		frame, more := frames.Next()
		ofRuntime := strings.HasPrefix(frame.Function, "runtime.")
		if inside && !ofRuntime || !more {
			return fmt.Errorf("%s can't read it", frame.Function)
		}
		inside = inside || ofRuntime
	}
}
