package introspect

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"
)

// fileRefresh is how often the files of guarded keys are looked at.
const fileRefresh = 5 * time.Second

// watched are the files of all guarded keys. There may be one for each of thousands of clients, so one
// goroutine looks at all of them. It runs from the first that is added until the last is removed.
var watched = keyFiles{files: make(map[*Keys]*keyFile)}

type keyFiles struct {
	mu    sync.Mutex
	files map[*Keys]*keyFile // those of Keys that are not closed
	stop  chan struct{}      // ends the goroutine; nil if there is none
}

// keyFile is what is known of one file.
type keyFile struct {
	info os.FileInfo // when it was last read; nil if it could not be
	// told is the error that OnFetch was last called with, and when.
	told   string
	toldAt time.Time
}

func (w *keyFiles) add(k *Keys) {
	file := &keyFile{}
	k.lookAt(file)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.files[k] = file
	if w.stop == nil {
		w.stop = make(chan struct{})
		go w.keep(w.stop)
	}
}

// remove returns when nothing looks at the file any more.
func (w *keyFiles) remove(k *Keys) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.files, k)
	if len(w.files) == 0 && w.stop != nil {
		close(w.stop)
		w.stop = nil
	}
}

func (w *keyFiles) keep(stop <-chan struct{}) {
	ticker := time.NewTicker(fileRefresh)
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
			w.lookAtAll()
		}
	}
}

// lookAtAll looks at one file after the other. Between them others are added and removed.
func (w *keyFiles) lookAtAll() {
	w.mu.Lock()
	all := slices.Collect(maps.Keys(w.files))
	w.mu.Unlock()
	for _, k := range all {
		w.mu.Lock()
		if file := w.files[k]; file != nil {
			k.lookAt(file)
		}
		w.mu.Unlock()
	}
}

// lookAt reads the file of the keys if it may have changed. Errors are told when they change, and else
// once in maxBackoff.
func (k *Keys) lookAt(file *keyFile) {
	begin := time.Now()
	info, err := os.Stat(k.cfg.KeysFile)
	if err == nil && file.unchanged(info, begin) {
		return
	}
	if err == nil {
		err = k.readFile()
	}
	if err != nil {
		file.info = nil
		if err.Error() == file.told && begin.Sub(file.toldAt) < maxBackoff {
			return
		}
		file.told, file.toldAt = err.Error(), begin
	} else {
		file.info, file.told = info, ""
	}
	k.cfg.OnFetch("file", time.Since(begin), err)
}

// unchanged reports whether a file can't have changed since it was read. A file that was written just
// before could have been written once more, within the resolution of its time.
func (f *keyFile) unchanged(info os.FileInfo, now time.Time) bool {
	return f.info != nil && os.SameFile(f.info, info) && f.info.Size() == info.Size() && f.info.ModTime().Equal(info.ModTime()) &&
		now.Sub(info.ModTime()) > 2*fileRefresh
}

func (k *Keys) readFile() (err error) {
	// Outside data is parsed here, in a goroutine that nobody watches.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("reading keys panicked: %v", r)
		}
	}()
	data, err := readKeysFile(k.cfg.KeysFile)
	if err != nil {
		return err
	}
	return k.accept(data, k.cfg.parser(parseKeysFile))
}
