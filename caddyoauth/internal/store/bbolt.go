package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"maps"
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

const (
	maxBatch = 1024 // writes in one transaction
	// Each transaction also drops expired tokens: up to twice as many as it writes, and this
	// many more. So the file shrinks faster than it grows, and no step takes long.
	dropAtLeast = 64
	// An idle store drops expired tokens this often, in transactions of idleStep.
	idleEvery = 10 * time.Second
	idleStep  = 1024
)

// Bbolt keeps tokens in a bbolt file, for one process. It is safe for concurrent use.
//
// Writes are group commits: one goroutine takes whatever waits, carries it out in one
// transaction, which is on disk then, and answers everybody. A lone write costs a transaction of its own,
// with two syncs of the disk: bbolt wants the pages there before the one that refers to them. Concurrent
// writes share it; see gather. OpenBbolt starts the goroutine, Close ends it.
type Bbolt struct {
	db   *bolt.DB
	path string
	now  func() time.Time

	// writes is the queue. It holds maxBatch; once it is full, writers wait to get into it.
	writes    chan write
	closing   chan struct{} // closed by Close
	done      chan struct{} // closed when the committer has ended
	closeOnce sync.Once

	// waiters are of *waiter.
	waiters  sync.Pool
	patience time.Duration // oauth.StoreTimeout, less in tests

	// broken is set once, by a panic inside bbolt; see guarded.
	broken atomic.Pointer[error]

	denials fileDenials
	proofs  *proofs
}

// fileDenials is what Denied needs of the file, in memory: a look into the file costs as much as
// everything else that a request does. Nobody else writes to the file. The committer changes it
// after each commit, before it answers.
type fileDenials struct {
	mu     sync.RWMutex
	closed bool
	epochs map[string]string               // by realm
	known  map[introspect.TokenID]struct{} // nil if there are more than max; then the file is asked
	max    int                             // maxDenials, less in tests
}

// change changes what is in memory. If it has become too much, nothing is.
func (f *fileDenials) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	if len(f.known) > f.max {
		f.known = nil
	}
}

// add and drop are for change.
func (f *fileDenials) add(id introspect.TokenID) {
	if f.known != nil {
		f.known[id] = struct{}{}
	}
}

func (f *fileDenials) drop(keys [][]byte) {
	for _, key := range keys {
		delete(f.known, introspect.TokenID(key[8:]))
	}
}

// load reads what is in the file.
func (f *fileDenials) load(tx *bolt.Tx) error {
	f.epochs, f.known = make(map[string]string), make(map[introspect.TokenID]struct{})
	err := tx.Bucket(bucketKeys).ForEach(func(realm, keyring []byte) error {
		f.epochs[string(realm)] = epochOf(keyring)
		return nil
	})
	c := tx.Bucket(bucketDenied).Cursor()
	for k, _ := c.First(); k != nil && err == nil && f.known != nil; k, _ = c.Next() {
		if len(k) != 8+len(introspect.TokenID{}) {
			return errCorrupt
		}
		f.change(func() { f.add(introspect.TokenID(k[8:])) })
	}
	return err
}

// epochOf returns what a keyring begins with.
func epochOf(keyring []byte) string { return string(keyring[:min(len(keyring), len(oauth.Epoch{}))]) }

// write is one change to the file, what to do once it is in the file, and where to report its
// outcome.
type write struct {
	change func(*bolt.Tx) error
	after  func() // nil for nothing
	err    chan<- error
}

// waiter is what a writer waits with. It is used again once the outcome has come: then nobody else has
// a part of it any more.
type waiter struct {
	err   chan error // has room for the one outcome
	timer *time.Timer
}

func newWaiter() any {
	w := &waiter{err: make(chan error, 1), timer: time.NewTimer(time.Hour)}
	w.timer.Stop()
	return w
}

// Close implements oauth.TokenStore. It carries out the writes in the queue first.
func (b *Bbolt) Close() error {
	b.closeOnce.Do(func() { close(b.closing) })
	<-b.done
	return b.closeFile()
}

func (b *Bbolt) closeFile() error {
	b.denials.change(func() { b.denials.closed = true })
	b.proofs.close()
	if broken := b.broken.Load(); broken != nil {
		return *broken // bbolt would wait for its locks forever
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
			clear(batch)
			g = gathering{writers: len(batch) + len(b.writes), took: time.Since(start), room: batch[:0]}
		case <-idle.C:
			b.dropIdle()
		case <-b.closing:
			for { // what was in the queue before Close still counts
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

// gathering is what the last commit suggests for the next one.
type gathering struct {
	writers int           // how many were answered, or waited already when it ended
	took    time.Duration // how long the commit took
	room    []write       // empty, with the memory of the last batch: maxBatch at most
}

// maxGather bounds how long a write waits for company.
const maxGather = 2 * time.Millisecond

// gather collects the next batch: first, whatever waits behind it, and the writers of
// the last batch that are about to come back. Without waiting for those, writers fall
// into two groups that take turns, each with a sync of its own. They come one by one, since each
// takes the processor for a while. So the wait ends when there are as many as last time, or once
// none has come for as long as the last commit took; a writer that was alone does not wait at all.
// The batch lies in last's room if it fits.
func (b *Bbolt) gather(first write, last *gathering) []write {
	batch := append(last.room, first)
	var timeout <-chan time.Time
	var timer *time.Timer
	var until time.Time // the end of the wait
	before := 0         // how many there were when the timer was set
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
		if timer == nil {
			timer = time.NewTimer(min(last.took, maxGather))
			defer timer.Stop()
			timeout, until, before = timer.C, time.Now().Add(maxGather), len(batch)
		}
		select {
		case w := <-b.writes:
			batch = append(batch, w)
		case <-timeout:
			left := time.Until(until)
			if len(batch) == before || left <= 0 {
				return batch
			}
			timer.Reset(min(last.took, left))
			before = len(batch)
		case <-b.closing:
			return batch
		}
	}
	return batch
}

// commitBatch carries out a batch in one transaction, and answers everybody in it.
func (b *Bbolt) commitBatch(batch []write) {
	for len(batch) > 0 {
		failed := -1 // the write whose own change failed, if any
		var over [][]byte
		err := b.update(func(tx *bolt.Tx) error {
			for i, w := range batch {
				failed = i
				if err := w.change(tx); err != nil {
					return err
				}
			}
			failed = -1
			var err error
			_, over, err = dropExpired(tx, b.now(), 2*len(batch)+dropAtLeast)
			return err
		})
		if failed < 0 {
			b.committed(err, over, batch...)
			for _, w := range batch {
				w.err <- err
			}
			return
		}
		// The others are not to blame: try again without it.
		batch[failed].err <- err
		batch = slices.Delete(batch, failed, failed+1)
	}
}

// committed brings what is in memory up to what is in the file now, unless the commit failed.
func (b *Bbolt) committed(err error, over [][]byte, batch ...write) {
	if err != nil {
		return
	}
	b.denials.change(func() {
		b.denials.drop(over)
		for _, w := range batch {
			if w.after != nil {
				w.after()
			}
		}
	})
}

// dropIdle drops expired tokens while nobody writes. It reports no failure: the next write
// meets the same one, and has a caller to tell.
func (b *Bbolt) dropIdle() {
	for more := true; more; {
		if !b.hasExpired() {
			return
		}
		var over [][]byte
		err := b.update(func(tx *bolt.Tx) (err error) {
			var n int
			n, over, err = dropExpired(tx, b.now(), idleStep)
			more = n == idleStep
			return err
		})
		b.committed(err, over)
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

// hasExpired reports whether the file has something that has expired; if not, an idle gateway
// writes nothing.
func (b *Bbolt) hasExpired() (expired bool) {
	b.view(func(tx *bolt.Tx) error {
		for _, e := range expiring {
			k, _ := tx.Bucket(e.bucket).Cursor().First()
			expired = expired || isExpired(k, b.now().Add(-e.grace))
		}
		return nil
	})
	return expired
}

// expiring are the buckets whose keys begin with an expiry, how much longer they are kept, and what
// else goes with a key.
var expiring = []struct {
	bucket []byte
	grace  time.Duration
	forget func(tx *bolt.Tx, key []byte) error
}{{bucketTokens, 0, nil}, {bucketDenied, denialGrace, nil}, {bucketUsedUntil, 0, forgetUsed}}

func isExpired(key []byte, now time.Time) bool {
	return len(key) >= 8 && binary.BigEndian.Uint64(key) <= uint64(now.UnixMilli())
}

// dropExpired deletes up to most of what has expired. It returns how much it deleted, and the keys of
// the denials in it.
func dropExpired(tx *bolt.Tx, now time.Time, most int) (dropped int, denials [][]byte, _ error) {
	for _, e := range expiring {
		bucket := tx.Bucket(e.bucket)
		var keys [][]byte
		c := bucket.Cursor()
		for k, _ := c.First(); isExpired(k, now.Add(-e.grace)) && dropped < most; k, _ = c.Next() {
			keys = append(keys, k)
			dropped++
		}
		for _, k := range keys {
			if e.forget != nil {
				if err := e.forget(tx, k); err != nil {
					return 0, nil, err
				}
			}
			if bytes.Equal(e.bucket, bucketDenied) {
				denials = append(denials, bytes.Clone(k))
			}
			if err := deleteValue(bucket, k); err != nil {
				return 0, nil, err
			}
		}
	}
	return dropped, denials, nil
}

// update runs a transaction that writes, view one that reads.
func (b *Bbolt) update(change func(*bolt.Tx) error) error { return b.guarded(b.db.Update, change) }
func (b *Bbolt) view(read func(*bolt.Tx) error) error     { return b.guarded(b.db.View, read) }

// guarded runs a transaction and turns a panic in it, which a damaged file causes, into an
// error. A panic in do is an error like any other. A panic in bbolt itself leaves locks
// behind that would block every later caller, so from then on the store is broken.
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

// write has the committer carry out change, and waits for the outcome. If ctx ends first, change
// may still be carried out later.
func (b *Bbolt) write(ctx context.Context, change func(*bolt.Tx) error) error {
	return b.writeAnd(ctx, change, nil)
}

// writeAnd is write, and has the committer call after once change is in the file.
func (b *Bbolt) writeAnd(ctx context.Context, change func(*bolt.Tx) error, after func()) error {
	return b.writeWithin(ctx, 0, change, after)
}

// writeWithin is writeAnd for a caller that waits no longer than limit, either; 0 is no limit. A context
// that ends by then would do, but costs several times as much as the rest of the wait.
func (b *Bbolt) writeWithin(ctx context.Context, limit time.Duration, change func(*bolt.Tx) error, after func()) error {
	waiting := b.waiters.Get().(*waiter)
	w := write{change: change, after: after, err: waiting.err}
	var timeout <-chan time.Time
	if limit > 0 {
		waiting.timer.Reset(limit)
		timeout = waiting.timer.C
	}
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
	case <-timeout:
		return context.DeadlineExceeded
	}
	select {
	case err := <-waiting.err:
		// From here on it may be somebody else's. A waiter that was left with an outcome to come, or with a
		// timer that has fired, is nobody's.
		if limit == 0 || waiting.timer.Stop() {
			b.waiters.Put(waiting)
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-timeout:
		return context.DeadlineExceeded
	case <-b.done:
		// The committer has ended. Either it has answered, or it never saw this write.
		select {
		case err := <-waiting.err:
			return err
		default:
			return oauth.ErrClosed
		}
	}
}

// Put implements oauth.TokenStore.
func (b *Bbolt) Put(ctx context.Context, t oauth.Token) error {
	key, value := tokenKey(t.Key), encodeRecord(t)
	return b.writeWithin(ctx, b.patience, func(tx *bolt.Tx) error {
		tokens := tx.Bucket(bucketTokens)
		// Most tokens go to the end of the tree, so a page that is split need not stay half
		// empty for later ones.
		tokens.FillPercent = 0.9
		return setValue(tokens, key, value)
	}, nil)
}

// Get implements oauth.TokenStore. It ignores ctx: it reads mapped memory.
func (b *Bbolt) Get(_ context.Context, key oauth.Key) (t oauth.Token, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		value := tx.Bucket(bucketTokens).Get(tokenKey(key))
		if value == nil {
			return oauth.ErrNotFound
		}
		t, err = decodeRecord(key, string(value))
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
	// Set by the committer, perhaps after this call has given up and returned.
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

// Retire implements oauth.TokenStore. All clients in the file are configured ones.
func (b *Bbolt) Retire(ctx context.Context, active []oauth.ClientRef) error {
	return b.updateClients(ctx, func(table clientTable) clientTable { return table.retire(active) })
}

// Leave implements oauth.TokenStore.
func (b *Bbolt) Leave(ctx context.Context, stay []oauth.ClientRef) error {
	return b.updateClients(ctx, func(table clientTable) clientTable { return table.leave(stay) })
}

// EndTokens implements oauth.TokenStore.
func (b *Bbolt) EndTokens(ctx context.Context, realm string, clients []string, all bool, held map[oauth.ClientRef]uint64) (map[oauth.ClientRef]uint64, error) {
	// The committer may use both after this call has given up.
	e := ending{realm: realm, clients: slices.Clone(clients), all: all, held: maps.Clone(held)}
	if err := b.updateClients(ctx, e.change); err != nil {
		return nil, err
	}
	return e.reached, nil
}

// Generation implements oauth.TokenStore. It ignores ctx: it reads mapped memory.
func (b *Bbolt) Generation(_ context.Context, client oauth.ClientRef) (generation uint64, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		value := tx.Bucket(bucketClients).Get(clientKey(client))
		if value == nil {
			return oauth.ErrNotFound
		}
		var state clientState
		if err := json.Unmarshal(value, &state); err != nil {
			return errors.New("the record of a client is corrupt")
		}
		generation = state.Generation
		return nil
	})
	return generation, err
}

// updateClients updates what is stored about clients. change gets the stored states and returns
// those that become different.
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
	var kept []byte // set by the committer, as in Admit
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

// Keeps implements oauth.KeyStore.
func (b *Bbolt) Keeps(context.Context) error { return nil }

// Keys implements oauth.KeyStore.
func (b *Bbolt) Keys(_ context.Context, realm string) (keyring []byte, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		keyring = slices.Clone(tx.Bucket(bucketKeys).Get([]byte(realm)))
		return nil
	})
	return keyring, err
}

// SwapKeys implements oauth.KeyStore.
func (b *Bbolt) SwapKeys(ctx context.Context, realm string, old, next []byte) (bool, error) {
	next = slices.Clone(next) // the committer may use it after this call has given up
	swapped := false          // set by the committer, as in Admit
	err := b.writeAnd(ctx, func(tx *bolt.Tx) error {
		keys := tx.Bucket(bucketKeys)
		if swapped = sameKeyring(keys.Get([]byte(realm)), old); !swapped {
			return nil
		}
		return setValue(keys, []byte(realm), next)
	}, func() {
		if swapped {
			b.denials.epochs[realm] = epochOf(next)
		}
	})
	return err == nil && swapped, err
}

// Deny implements oauth.KeyStore.
func (b *Bbolt) Deny(ctx context.Context, key oauth.Key, _ string) error {
	k := tokenKey(key)
	return b.writeAnd(ctx, func(tx *bolt.Tx) error { return setValue(tx.Bucket(bucketDenied), k, []byte(key.Realm)) },
		func() { b.denials.add(key.ID) })
}

// Denied implements oauth.KeyStore. It ignores ctx: it reads memory, or mapped memory.
func (b *Bbolt) Denied(_ context.Context, epoch oauth.Epoch, key oauth.Key) (bool, error) {
	if broken := b.broken.Load(); broken != nil {
		return false, *broken
	}
	f := &b.denials
	f.mu.RLock()
	defer f.mu.RUnlock()
	switch {
	case f.closed:
		return false, oauth.ErrClosed
	case f.epochs[key.Realm] != string(epoch[:]):
		return false, oauth.ErrOtherEpoch
	case f.known == nil:
		return b.deniedInFile(key)
	}
	_, denied := f.known[key.ID]
	return denied, nil
}

func (b *Bbolt) deniedInFile(key oauth.Key) (denied bool, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		denied = tx.Bucket(bucketDenied).Get(tokenKey(key)) != nil
		return nil
	})
	return denied, err
}

func tokenKey(key oauth.Key) []byte {
	k := make([]byte, 8, 8+len(introspect.TokenID{}))
	binary.BigEndian.PutUint64(k, uint64(key.ExpiryMilli))
	return append(k, key.ID[:]...)
}

func clientKey(ref oauth.ClientRef) []byte { return []byte(ref.Realm + "\x00" + ref.ClientID) }

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
		if err := setValue(tx.Bucket(bucketClients), clientKey(ref), value); err != nil {
			return err
		}
	}
	return nil
}
