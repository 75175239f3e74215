package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"strconv"

	bolt "go.etcd.io/bbolt"
)

// bbolt trusts what it reads. A flipped bit, or a page that a disk has lost, can make it
// follow its tree in circles, miss records, or use pages that it had freed, which still
// hold revoked tokens. So before a file is used it is read once from beginning to end,
// which takes half a second for a million tokens.
//
// The pages must form a tree. And each bucket has a digest of everything in it, which
// reveals changed and missing records. It is stored as the bucket's sequence number, which
// bbolt leaves to its users. All this guards against accidents, not attacks: whoever can
// write the file can do anything.

// setValue and deleteValue change a bucket and its digest. Every change goes through them.
func setValue(b *bolt.Bucket, key, value []byte) error {
	if err := b.SetSequence(b.Sequence() ^ digestOf(key, b.Get(key)) ^ digestOf(key, value)); err != nil {
		return err
	}
	return b.Put(key, value)
}

func deleteValue(b *bolt.Bucket, key []byte) error {
	if err := b.SetSequence(b.Sequence() ^ digestOf(key, b.Get(key))); err != nil {
		return err
	}
	return b.Delete(key)
}

// digestOf is what a record adds to the digest of its bucket; a nil value, for no record, adds
// nothing.
func digestOf(key, value []byte) uint64 {
	if value == nil {
		return 0
	}
	const offset, prime = 14695981039346656037, 1099511628211 // FNV-1a; hash/fnv would allocate
	sum := uint64(offset)
	for _, b := range key {
		sum = (sum ^ uint64(b)) * prime
	}
	for _, b := range value {
		sum = (sum ^ uint64(b)) * prime
	}
	return sum
}

// The format of bbolt, version 2: each page has a header of 16 bytes, followed by elements of
// 16 bytes that say where keys and values are.
const (
	pageHeader = 16
	element    = 16

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10

	bucketElement = 0x01
	metaSum       = pageHeader + 56 // where the checksum of a meta page is, after what it covers
	metaEnd       = metaSum + 8
)

// bboltFile is a file that is being checked.
type bboltFile struct {
	io.ReaderAt
	pageSize int64
	high     uint64 // the number of pages
	used     []bool // the pages that something refers to
}

// checkIntact reads a file that nobody writes to. It returns the version of the file, 0 if there is
// nothing in it, and an error if the file is damaged. Of a later version than fileVersion it
// checks no more than the number: only a later program knows what belongs in the rest.
func checkIntact(r io.ReaderAt) (version int, err error) {
	f := &bboltFile{ReaderAt: r}
	meta, err := f.meta(0)
	if err != nil {
		return 0, err
	}
	f.pageSize = int64(binary.NativeEndian.Uint32(meta[24:]))
	// There are two meta pages, one of the last transaction and one of the transaction before.
	// bbolt is content with either, but the older one would undo the last revocations. A crash
	// damages neither: what counts lies in one sector, which disks write whole or not at all.
	other, err := f.meta(1)
	if err != nil {
		return 0, err
	}
	txid := func(meta []byte) uint64 { return binary.NativeEndian.Uint64(meta[64:]) }
	if txid(other) > txid(meta) {
		meta = other
	}
	root, freelist := binary.NativeEndian.Uint64(meta[32:]), binary.NativeEndian.Uint64(meta[48:])
	f.high = binary.NativeEndian.Uint64(meta[56:])
	if _, err := f.ReadAt(make([]byte, 1), int64(f.high)*f.pageSize-1); err != nil {
		return 0, errors.New("it was cut short")
	}
	f.used = make([]bool, f.high)

	if err := f.free(freelist); err != nil {
		return 0, err
	}
	buckets := make(map[string][]byte) // name → where its records are
	if err := f.walk(root, nil, nil, func(flags uint32, name, value []byte) error {
		if flags != bucketElement || len(value) < 16 {
			return notABucket(name)
		}
		buckets[string(name)] = value
		return nil
	}); err != nil {
		return 0, err
	}
	version, err = f.version(buckets)
	if err != nil || version > fileVersion {
		return version, err
	}
	optional := optionalBuckets
	if version < 3 {
		optional = nil
	}
	for _, name := range slices.Concat(fileBuckets[version], optional) { // none for 0
		value := buckets[string(name)]
		if value == nil && slices.ContainsFunc(optional, func(o []byte) bool { return bytes.Equal(o, name) }) {
			continue
		}
		if value == nil {
			return 0, fmt.Errorf("the bucket %q is missing", name)
		}
		if err := f.bucket(name, value, func(_, _ []byte) {}); err != nil {
			return 0, err
		}
		delete(buckets, string(name))
	}
	for name := range buckets {
		if name != string(bucketMeta) {
			return 0, notABucket([]byte(name))
		}
	}
	for id := uint64(2); id < f.high; id++ {
		if !f.used[id] {
			return 0, fmt.Errorf("page %d is neither used nor free", id)
		}
	}
	return version, nil
}

func notABucket(name []byte) error { return fmt.Errorf("%q is not a bucket of a token store", name) }

// version finds the version of a file with these buckets: 0 if there are none, 1 if there is no
// number, as in files from before they had one.
func (f *bboltFile) version(buckets map[string][]byte) (int, error) {
	meta := buckets[string(bucketMeta)]
	if meta == nil {
		return min(len(buckets), 1), nil
	}
	var number string
	if err := f.bucket(bucketMeta, meta, func(key, value []byte) {
		if bytes.Equal(key, keyVersion) {
			number = string(value)
		}
	}); err != nil {
		return 0, err
	}
	version, err := strconv.Atoi(number)
	if err != nil || version < 1 {
		return 0, errors.New("it has no valid version number")
	}
	return version, nil
}

// bucket checks a bucket, and calls each for the records in it. value is its element in the root.
func (f *bboltFile) bucket(name, value []byte, each func(key, value []byte)) (err error) {
	digest := binary.NativeEndian.Uint64(value[8:])
	record := func(flags uint32, key, value []byte) error {
		if flags != 0 {
			return errors.New("a record is marked as something else")
		}
		digest ^= digestOf(key, value)
		each(key, value)
		return nil
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		err = f.walk(root, nil, nil, record)
	} else { // a small bucket lies in its element, in the form of a page
		_, err = f.elements(value[16:], nil, nil, record)
	}
	if err == nil && digest != 0 {
		err = fmt.Errorf("records in the bucket %q have changed or are missing", name)
	}
	return err
}

// meta reads the part of a meta page, 0 or 1, that counts. Neither may have taken the place of the other: if
// that of the last transaction is gone, the file looks as it did before.
func (f *bboltFile) meta(id uint64) ([]byte, error) {
	meta := make([]byte, metaEnd)
	if _, err := f.ReadAt(meta, int64(id)*f.pageSize); err != nil {
		return nil, errors.New("it was cut short")
	}
	sum := fnv.New64a()
	sum.Write(meta[pageHeader:metaSum])
	if binary.NativeEndian.Uint64(meta) != id || sum.Sum64() != binary.NativeEndian.Uint64(meta[metaSum:]) {
		return nil, errors.New("it doesn't say which transaction was the last")
	}
	return meta, nil
}

// page reads a page with its overflow pages, and marks them as used.
func (f *bboltFile) page(id uint64) ([]byte, error) {
	if err := f.use(id); err != nil {
		return nil, err
	}
	page := make([]byte, f.pageSize)
	if _, err := f.ReadAt(page, int64(id)*f.pageSize); err != nil {
		return nil, err
	}
	more := uint64(binary.NativeEndian.Uint32(page[12:]))
	if binary.NativeEndian.Uint64(page) != id || more > f.high {
		return nil, fmt.Errorf("page %d is not what it should be", id)
	}
	if more == 0 {
		return page, nil
	}
	for next := id + 1; next <= id+more; next++ {
		if err := f.use(next); err != nil {
			return nil, err
		}
	}
	page = make([]byte, int64(1+more)*f.pageSize)
	_, err := f.ReadAt(page, int64(id)*f.pageSize)
	return page, err
}

func (f *bboltFile) use(id uint64) error {
	if id < 2 || id >= f.high {
		return fmt.Errorf("there is no page %d", id)
	}
	if f.used[id] {
		return fmt.Errorf("page %d is used twice", id)
	}
	f.used[id] = true
	return nil
}

// free reads the list of free pages.
func (f *bboltFile) free(id uint64) error {
	page, err := f.page(id)
	if err != nil {
		return err
	}
	if flags := binary.NativeEndian.Uint16(page[8:]); flags != freelistPage {
		return fmt.Errorf("page %d is not a list of free pages", id)
	}
	count, list := uint64(binary.NativeEndian.Uint16(page[10:])), page[pageHeader:]
	if count == 0xffff { // then the first element is the count
		count, list = binary.NativeEndian.Uint64(list), list[8:]
	}
	if count > uint64(len(list)/8) {
		return errors.New("the list of free pages is too long")
	}
	for i := range count {
		if err := f.use(binary.NativeEndian.Uint64(list[8*i:])); err != nil {
			return err
		}
	}
	return nil
}

// walk calls each for the records under a page, in the order of their keys. Keys must be at least
// least and below bound, where these are not nil. It ends, because no page may be used twice.
func (f *bboltFile) walk(id uint64, least, bound []byte, each func(flags uint32, key, value []byte) error) error {
	page, err := f.page(id)
	if err != nil {
		return err
	}
	children, err := f.elements(page, least, bound, each)
	if err != nil {
		return err
	}
	for i, c := range children {
		next := bound
		if i+1 < len(children) {
			next = children[i+1].key
		}
		if err := f.walk(c.id, c.key, next, each); err != nil {
			return err
		}
	}
	return nil
}

// child is an element of a branch: a page, and the least key that it may have.
type child struct {
	key []byte
	id  uint64
}

// elements calls each for the records of a leaf, or returns the children of a branch.
func (f *bboltFile) elements(page, least, bound []byte, each func(flags uint32, key, value []byte) error) ([]child, error) {
	broken := errors.New("a page is damaged")
	if len(page) < pageHeader {
		return nil, broken
	}
	kind, count := binary.NativeEndian.Uint16(page[8:]), int(binary.NativeEndian.Uint16(page[10:]))
	if pageHeader+count*element > len(page) || kind != leafPage && kind != branchPage || kind == branchPage && count == 0 {
		return nil, broken
	}
	var children []child
	for i := range count {
		e := page[pageHeader+i*element:] // positions are relative to it
		word := func(n int) uint64 { return uint64(binary.NativeEndian.Uint32(e[4*n:])) }
		position, keySize, valueSize := word(1), word(2), word(3)
		if kind == branchPage {
			position, keySize, valueSize = word(0), word(1), 0
		}
		if position+keySize+valueSize > uint64(len(e)) {
			return nil, broken
		}
		key, value := e[position:position+keySize], e[position+keySize:position+keySize+valueSize]
		order := bytes.Compare(key, least)
		if order < 0 || order == 0 && i > 0 || bound != nil && bytes.Compare(key, bound) >= 0 {
			return nil, broken
		}
		least = key
		if kind == branchPage {
			children = append(children, child{key, binary.NativeEndian.Uint64(e[8:])})
		} else if err := each(uint32(word(0)), key, value); err != nil {
			return nil, err
		}
	}
	return children, nil
}
