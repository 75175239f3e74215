package store

import (
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"testing"
)

// A list that says it is longer than its record costs no memory: whoever can write to the store could have
// the gateway run out of it.
func TestRecordWithALongList(t *testing.T) {
	token := tokenOf("a")
	record := string(encodeRecord(token))
	const list = "\x02\x04read\x05write"
	if strings.Count(record, list) != 1 {
		t.Fatalf("no list of scopes in %q", record)
	}
	const n = 1 << 20 // of empty texts, 16 MiB
	wrong := strings.Replace(record, list, string(binary.AppendUvarint(nil, n))+list[1:], 1)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := decodeRecord(token.Key, wrong)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, errCorrupt) {
		t.Errorf("a list that is too long: %v", err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 1<<20 {
		t.Errorf("a record of %d bytes took %d", len(wrong), took)
	}
}
