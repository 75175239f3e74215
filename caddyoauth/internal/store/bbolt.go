package store

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// The file has three buckets:
//
//	tokens   expiry (8 bytes, big-endian unix milliseconds), token ID (32 bytes) → record
//	clients  realm, NUL, client ID → clientState
//	secrets  name → bytes
//
// Keys of tokens begin with the expiry: new tokens go to the end of the tree, where
// the pages are hot, and expired ones are a range at its beginning.
var (
	bucketTokens  = []byte("tokens")
	bucketClients = []byte("clients")
	bucketSecrets = []byte("secrets")

	allBuckets = [][]byte{bucketTokens, bucketClients, bucketSecrets}
)

const (
	lockTimeout = time.Second // how long to wait for another process to let go of the file
	maxBatch    = 1024        // writes in one transaction
	// Each transaction also drops expired tokens: twice as many as it writes, and this
	// many more. So the file shrinks faster than it grows, and no step is long.
	dropAtLeast = 64
	// Without writes, expired tokens are looked for this often, in steps of idleStep.
	idleEvery = 10 * time.Second
	idleStep  = 1024
)

// Bbolt keeps tokens in a bbolt file, for one process.
//
// Writes are group commits: one goroutine takes whatever waits, carries it out in one
// transaction, syncs, and answers everybody. Alone, a write costs one sync of the
// disk; together, they share it; see gather. Close ends the goroutine.
type Bbolt struct {
	db   *bolt.DB
	path string
	now  func() time.Time

	// writes is where they wait; a full channel makes writers wait in Put and Revoke.
	writes    chan write
	closing   chan struct{} // closed by Close
	done      chan struct{} // closed when the committer has ended
	closeOnce sync.Once

	// broken is set once, by a panic inside bbolt; see guarded.
	broken atomic.Pointer[error]
}

// write is one change to the file, and where its outcome goes.
type write struct {
	change func(*bolt.Tx) error
	err    chan error // has room for the one outcome
}

// ErrInUse is why a file can't be opened that another process has open.
var ErrInUse = errors.New("is in use by another process")

// OpenBbolt opens or creates the file at path, with mode 0600, in a folder that is
// made with mode 0700 if it is not there. On Unix a file that belongs to another user than
// this one and root is refused, and so is a folder that everybody may write in. It waits up
// to a second for another process that has the file open, and then returns ErrInUse. now is
// the wall clock by which expired tokens are dropped.
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
		// bbolt checks little of what it finds when it opens; a damaged file can make it
		// panic, and one cut short can fault.
		if r := recover(); r != nil {
			err = damaged(path, panicked())
		}
	}()
	// What was opened is judged, not what lay there a moment before.
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
		return nil, fmt.Errorf("the token store %s %w: stop the other one, give each its own file with 'store bbolt <path>', or, where one follows the other, set a longer lock_timeout", path, ErrInUse)
	case errors.As(err, new(*fs.PathError)):
		return nil, Unusable(path, err)
	case err != nil:
		return nil, damaged(path, err)
	}
	b := &Bbolt{db: db, path: path, now: now, writes: make(chan write, maxBatch), closing: make(chan struct{}), done: make(chan struct{})}
	if err := checkFile(path); err != nil {
		b.closeFile()
		return nil, err
	}
	if err := b.update(func(tx *bolt.Tx) error {
		for _, name := range allBuckets {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		b.closeFile()
		return nil, Unusable(path, err)
	}
	go b.commit()
	return b, nil
}

// makePrivate refuses a file that is somebody else's, and takes it away from all others.
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
			return Unusable(file.Name(), fmt.Errorf("it is open to other users, and making it private failed: %w", err))
		}
	}
	return nil
}

func notAFile(path string) error {
	return fmt.Errorf("the token store %s is not a regular file; name the file itself", path)
}

// checkFile refuses a damaged file. bbolt has the lock on it.
func checkFile(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return Unusable(path, err)
	}
	defer file.Close()
	if err := checkIntact(file); err != nil {
		return damaged(path, err)
	}
	return nil
}

// Unusable is the error for a file that the system refuses; err says why.
func Unusable(path string, err error) error {
	return fmt.Errorf("the token store %s can't be used (%w): let the user that runs the gateway read and write the file and its folder, on a disk with room, or name another file with 'store bbolt <path>'", path, err)
}

// damaged is the error for a file that is not as we left it; finding says what is wrong.
func damaged(path string, finding error) error {
	return fmt.Errorf("the token store %s is damaged, or is no token store (%w): move it away, and the next start makes an empty one; then all tokens have ended, and clients fetch new ones. Don't put an old copy in its place, in which revoked tokens are still good", path, finding)
}

// panicked is what damaged says of a panic that the calling function has just recovered:
// where it was. What bbolt panics with is about its insides, or is Go's own.
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

// Close implements oauth.TokenStore. Writes that wait are carried out first.
func (b *Bbolt) Close() error {
	b.closeOnce.Do(func() { close(b.closing) })
	<-b.done
	return b.closeFile()
}

func (b *Bbolt) closeFile() error {
	if broken := b.broken.Load(); broken != nil {
		return *broken // bbolt would wait for its locks
	}
	return b.db.Close()
}

// commit is the committer: it runs until Close.
func (b *Bbolt) commit() {
	defer close(b.done)
	idle := time.NewTicker(idleEvery)
	defer idle.Stop()
	var g gathering
	for {
		select {
		case first := <-b.writes:
			batch := b.gather(first, &g)
			start := time.Now()
			b.commitBatch(batch)
			g = gathering{writers: len(batch) + len(b.writes), took: time.Since(start)}
		case <-idle.C:
			b.dropIdle()
		case <-b.closing:
			for { // what had found a place before Close still counts
				select {
				case first := <-b.writes:
					b.commitBatch([]write{first})
				default:
					return
				}
			}
		}
	}
}

// gathering is what the last commit tells about the next one.
type gathering struct {
	writers int           // how many were answered or already waited again
	took    time.Duration // by the commit
}

// maxGather bounds how long a write waits for company.
const maxGather = 2 * time.Millisecond

// gather collects the next batch: first, whatever waits behind it, and those writers
// of a moment ago that are about to come back. Without that wait, writers fall into
// two groups that take turns, each with a sync of its own. It ends when as many as
// last time are there, and costs at most the time of one more commit; a writer that
// has been alone does not wait at all.
func (b *Bbolt) gather(first write, last *gathering) []write {
	batch := []write{first}
	var timeout <-chan time.Time
	for len(batch) < maxBatch {
		select {
		case w := <-b.writes:
			batch = append(batch, w)
			continue
		default:
		}
		if len(batch) >= last.writers {
			break
		}
		if timeout == nil {
			timer := time.NewTimer(min(last.took, maxGather))
			defer timer.Stop()
			timeout = timer.C
		}
		select {
		case w := <-b.writes:
			batch = append(batch, w)
		case <-timeout:
			return batch
		case <-b.closing:
			return batch
		}
	}
	return batch
}

// commitBatch carries out a batch in one transaction, and answers everybody in it.
func (b *Bbolt) commitBatch(batch []write) {
	for len(batch) > 0 {
		failed := -1 // the write whose own change went wrong, if any
		err := b.update(func(tx *bolt.Tx) error {
			for i, w := range batch {
				failed = i
				if err := w.change(tx); err != nil {
					return err
				}
			}
			failed = -1
			_, err := dropExpired(tx, b.now(), 2*len(batch)+dropAtLeast)
			return err
		})
		if failed < 0 {
			for _, w := range batch {
				w.err <- err
			}
			return
		}
		// The others are not to blame: once more without it.
		batch[failed].err <- err
		batch = slices.Delete(batch, failed, failed+1)
	}
}

// dropIdle drops what has expired while nobody writes. A failure is not reported: the
// next write meets the same one and has somebody to tell.
func (b *Bbolt) dropIdle() {
	for more := true; more; {
		if !b.expiredWait() {
			return
		}
		err := b.update(func(tx *bolt.Tx) error {
			n, err := dropExpired(tx, b.now(), idleStep)
			more = n == idleStep
			return err
		})
		select {
		case <-b.closing:
			return
		default:
		}
		if err != nil || len(b.writes) > 0 {
			return
		}
	}
}

// expiredWait reports whether an expired token lies in the file, so that an idle
// gateway writes nothing.
func (b *Bbolt) expiredWait() (expired bool) {
	b.view(func(tx *bolt.Tx) error {
		k, _ := tx.Bucket(bucketTokens).Cursor().First()
		expired = isExpired(k, b.now())
		return nil
	})
	return expired
}

func isExpired(key []byte, now time.Time) bool {
	return len(key) >= 8 && binary.BigEndian.Uint64(key) <= uint64(now.UnixMilli())
}

// dropExpired deletes up to most expired tokens and says how many it found.
func dropExpired(tx *bolt.Tx, now time.Time, most int) (int, error) {
	tokens := tx.Bucket(bucketTokens)
	var keys [][]byte
	c := tokens.Cursor()
	for k, _ := c.First(); isExpired(k, now) && len(keys) < most; k, _ = c.Next() {
		keys = append(keys, k)
	}
	for _, k := range keys {
		if err := deleteValue(tokens, k); err != nil {
			return 0, err
		}
	}
	return len(keys), nil
}

// update runs one writing transaction, view a reading one.
func (b *Bbolt) update(change func(*bolt.Tx) error) error { return b.guarded(b.db.Update, change) }
func (b *Bbolt) view(read func(*bolt.Tx) error) error     { return b.guarded(b.db.View, read) }

// guarded runs a transaction and makes an error of what panics in it because the file is
// damaged. In do that is one error among others. In bbolt itself it leaves locks
// behind that would hold everybody who came after, so from then on the store is broken.
func (b *Bbolt) guarded(run func(func(*bolt.Tx) error) error, do func(*bolt.Tx) error) (err error) {
	if broken := b.broken.Load(); broken != nil {
		return *broken
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // a file cut short faults in its mapping
	defer func() {
		if r := recover(); r != nil {
			broken := damaged(b.path, panicked())
			b.broken.Store(&broken)
			err = broken
		}
	}()
	return closedError(run(func(tx *bolt.Tx) (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = damaged(b.path, panicked())
			}
		}()
		return do(tx)
	}))
}

func closedError(err error) error {
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return oauth.ErrClosed
	}
	return err
}

// write has the committer carry out change, and waits for the outcome.
func (b *Bbolt) write(ctx context.Context, change func(*bolt.Tx) error) error {
	w := write{change: change, err: make(chan error, 1)}
	select {
	case <-b.closing:
		return oauth.ErrClosed
	default:
	}
	select {
	case b.writes <- w:
	case <-b.closing:
		return oauth.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-w.err:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-b.done:
		// The committer has ended. It answered before it did, or never saw this write.
		select {
		case err := <-w.err:
			return err
		default:
			return oauth.ErrClosed
		}
	}
}

// Put implements oauth.TokenStore.
func (b *Bbolt) Put(ctx context.Context, t oauth.Token) error {
	value, err := encodeRecord(t)
	if err != nil {
		return err
	}
	key := tokenKey(t.Key)
	return b.write(ctx, func(tx *bolt.Tx) error {
		tokens := tx.Bucket(bucketTokens)
		// Most tokens go to the end: pages there are not halved to make room for later.
		tokens.FillPercent = 0.9
		return setValue(tokens, key, value)
	})
}

// Get implements oauth.TokenStore. It does not ask ctx: a read is one of mapped memory.
func (b *Bbolt) Get(_ context.Context, key oauth.Key) (t oauth.Token, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		value := tx.Bucket(bucketTokens).Get(tokenKey(key))
		if value == nil {
			return oauth.ErrNotFound
		}
		t, err = decodeRecord(key, value)
		return err
	})
	return t, err
}

// Revoke implements oauth.TokenStore.
func (b *Bbolt) Revoke(ctx context.Context, key oauth.Key) error {
	k := tokenKey(key)
	return b.write(ctx, func(tx *bolt.Tx) error { return deleteValue(tx.Bucket(bucketTokens), k) })
}

// Admit implements oauth.TokenStore.
func (b *Bbolt) Admit(ctx context.Context, clients []oauth.ClientRef, held map[oauth.ClientRef]uint64) (map[oauth.ClientRef]uint64, error) {
	// Written by the committer, perhaps after a caller that gave up has returned.
	var generations map[oauth.ClientRef]uint64
	err := b.updateClients(ctx, func(table clientTable) clientTable {
		g, changed := table.admit(clients, held)
		generations = g
		return changed
	})
	if err != nil {
		return nil, err
	}
	return generations, nil
}

// Retire implements oauth.TokenStore.
func (b *Bbolt) Retire(ctx context.Context, active []oauth.ClientRef) error {
	return b.updateClients(ctx, func(table clientTable) clientTable { return table.retire(active) })
}

// Leave implements oauth.TokenStore.
func (b *Bbolt) Leave(ctx context.Context, stay []oauth.ClientRef) error {
	return b.updateClients(ctx, func(table clientTable) clientTable { return table.leave(stay) })
}

// updateClients changes what is kept of clients. change gets the states there are and
// returns those that become different.
func (b *Bbolt) updateClients(ctx context.Context, change func(clientTable) clientTable) error {
	return b.write(ctx, func(tx *bolt.Tx) error {
		table, err := readClients(tx)
		if err != nil {
			return err
		}
		return writeClients(tx, change(table))
	})
}

// Secret implements oauth.TokenStore.
func (b *Bbolt) Secret(ctx context.Context, name string, fresh []byte) ([]byte, error) {
	var kept []byte // as in Admit
	err := b.write(ctx, func(tx *bolt.Tx) error {
		secrets := tx.Bucket(bucketSecrets)
		if old := secrets.Get([]byte(name)); old != nil {
			kept = append([]byte(nil), old...)
			return nil
		}
		kept = append([]byte(nil), fresh...)
		return setValue(secrets, []byte(name), kept)
	})
	if err != nil {
		return nil, err
	}
	return kept, nil
}

func tokenKey(key oauth.Key) []byte {
	k := make([]byte, 8, 8+len(introspect.TokenID{}))
	binary.BigEndian.PutUint64(k, uint64(key.ExpiryMilli))
	return append(k, key.ID[:]...)
}

func readClients(tx *bolt.Tx) (clientTable, error) {
	table := clientTable{}
	err := tx.Bucket(bucketClients).ForEach(func(k, v []byte) error {
		realm, id, ok := strings.Cut(string(k), "\x00")
		var state clientState
		if err := json.Unmarshal(v, &state); err != nil || !ok {
			return errors.New("the record of a client is corrupt")
		}
		table[oauth.ClientRef{Realm: realm, ClientID: id}] = state
		return nil
	})
	return table, err
}

func writeClients(tx *bolt.Tx, changed clientTable) error {
	for ref, state := range changed {
		value, err := json.Marshal(state)
		if err != nil {
			return err
		}
		if err := setValue(tx.Bucket(bucketClients), []byte(ref.Realm+"\x00"+ref.ClientID), value); err != nil {
			return err
		}
	}
	return nil
}
