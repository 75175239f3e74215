package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"

	bolt "go.etcd.io/bbolt"
)

// bbolt believes what it reads. A bit that has changed, or a page that a disk has lost, can
// make it follow its tree in circles, use pages that it had let go, in which revoked tokens
// still stand, or miss what is there. So before a file is used it is read once from the
// beginning to the end, which is half a second of work for a million tokens.
//
// The structure must be that of a tree. And each bucket has a digest of all that is in it,
// kept where bbolt has a number for each bucket that its users may set: it tells of changed
// and missing records. All this is against accidents; who can write the file can do anything.

// setValue and deleteValue are how buckets are changed: they keep the digest.
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

// digestOf is what a record adds to the digest of its bucket: nothing if there is none.
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

// What bbolt writes, version 2 of its format: 16 bytes of header in each page, and elements
// of 16 bytes behind it that say where keys and values are.
const (
	pageHeader = 16
	element    = 16

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10

	bucketElement = 0x01
	metaSum       = pageHeader + 56 // where the checksum of a meta page is, behind what it is of
	metaEnd       = metaSum + 8
)

// bboltFile is a file that is being checked.
type bboltFile struct {
	io.ReaderAt
	pageSize int64
	high     uint64 // the number of pages
	used     []bool // pages that somebody has referred to
}

// checkIntact reads a file that nobody writes to, and returns an error if it is damaged.
func checkIntact(r io.ReaderAt) error {
	f := &bboltFile{ReaderAt: r}
	meta, err := f.meta(0)
	if err != nil {
		return err
	}
	f.pageSize = int64(binary.NativeEndian.Uint32(meta[24:]))
	// There are two meta pages, of the last transaction and of the one before. bbolt makes do
	// with either; with the older one, the last revocations would be undone. A crash leaves
	// neither damaged: what counts lies in one sector, which disks write whole or not at all.
	other, err := f.meta(f.pageSize)
	if err != nil {
		return err
	}
	txid := func(meta []byte) uint64 { return binary.NativeEndian.Uint64(meta[64:]) }
	if txid(other) > txid(meta) {
		meta = other
	}
	root, freelist := binary.NativeEndian.Uint64(meta[32:]), binary.NativeEndian.Uint64(meta[48:])
	f.high = binary.NativeEndian.Uint64(meta[56:])
	if _, err := f.ReadAt(make([]byte, 1), int64(f.high)*f.pageSize-1); err != nil {
		return errors.New("it was cut short")
	}
	f.used = make([]bool, f.high)

	if err := f.free(freelist); err != nil {
		return err
	}
	buckets := 0
	if err := f.walk(root, nil, nil, func(flags uint32, name, value []byte) error {
		buckets++
		known := slices.ContainsFunc(allBuckets, func(b []byte) bool { return bytes.Equal(b, name) })
		if flags != bucketElement || len(value) < 16 || !known {
			return fmt.Errorf("%q is no bucket of a token store", name)
		}
		digest := binary.NativeEndian.Uint64(value[8:])
		each := func(flags uint32, key, value []byte) error {
			if flags != 0 {
				return errors.New("a record is marked as something else")
			}
			digest ^= digestOf(key, value)
			return nil
		}
		var err error
		if root := binary.NativeEndian.Uint64(value); root != 0 {
			err = f.walk(root, nil, nil, each)
		} else { // a small bucket lies in its value, in the form of a page
			_, err = f.elements(value[16:], nil, nil, each)
		}
		if err == nil && digest != 0 {
			err = fmt.Errorf("records in the bucket %q have changed or are missing", name)
		}
		return err
	}); err != nil {
		return err
	}
	if buckets != 0 && buckets != len(allBuckets) {
		return errors.New("a bucket is missing")
	}
	for id := uint64(2); id < f.high; id++ {
		if !f.used[id] {
			return fmt.Errorf("page %d is neither used nor free", id)
		}
	}
	return nil
}

// meta reads what counts of a meta page.
func (f *bboltFile) meta(at int64) ([]byte, error) {
	meta := make([]byte, metaEnd)
	if _, err := f.ReadAt(meta, at); err != nil {
		return nil, errors.New("it was cut short")
	}
	sum := fnv.New64a()
	sum.Write(meta[pageHeader:metaSum])
	if sum.Sum64() != binary.NativeEndian.Uint64(meta[metaSum:]) {
		return nil, errors.New("which transaction was the last can't be told")
	}
	return meta, nil
}

// page reads a page with those that continue it, and marks them as used.
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
		return nil, fmt.Errorf("page %d is something else", id)
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
		return fmt.Errorf("page %d is no list of free pages", id)
	}
	count, list := uint64(binary.NativeEndian.Uint16(page[10:])), page[pageHeader:]
	if count == 0xffff { // then the number stands in the place of the first
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

// walk calls each for the records under a page, in the order of their keys. Keys are not less
// than least, and less than bound, if there are these. It ends, since no page is used twice.
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

// child is an element of a branch: a page, and what its keys are not less than.
type child struct {
	key []byte
	id  uint64
}

// elements calls each for the records of a leaf, or returns the children of a branch.
func (f *bboltFile) elements(page, least, bound []byte, each func(flags uint32, key, value []byte) error) ([]child, error) {
	broken := errors.New("a page has changed")
	if len(page) < pageHeader {
		return nil, broken
	}
	kind, count := binary.NativeEndian.Uint16(page[8:]), int(binary.NativeEndian.Uint16(page[10:]))
	if pageHeader+count*element > len(page) || kind != leafPage && kind != branchPage || kind == branchPage && count == 0 {
		return nil, broken
	}
	var children []child
	for i := range count {
		e := page[pageHeader+i*element:] // positions count from here
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
