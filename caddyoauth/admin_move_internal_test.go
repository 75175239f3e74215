package caddyoauth

import (
	"testing"
	"time"
)

// That a client did nothing counts from when it came, whenever it was added elsewhere.
func TestImportedClientIsThereSinceTheImport(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct{ created, imported, want time.Time }{
		{now.Add(-time.Hour), time.Time{}, now.Add(-time.Hour)},
		{now.Add(-time.Hour), now, now},
		{now.Add(time.Hour), now, now.Add(time.Hour)},
	} {
		if got := (&managedRecord{Created: c.created, Imported: c.imported}).there(); !got.Equal(c.want) {
			t.Errorf("created %v, imported %v: there since %v, want %v", c.created, c.imported, got, c.want)
		}
	}
}
