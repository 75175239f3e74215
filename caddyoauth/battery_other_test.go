//go:build !linux

package caddyoauth_test

import (
	"sync/atomic"
	"testing"
)

const linuxOnly = "limits of another process, namespaces and open files without a name are tested on Linux only"

func diskFull(t *testing.T, _ int, _ *atomic.Int64)      { t.Skip(linuxOnly) }
func unusableFiles(t *testing.T, _ int, _ *atomic.Int64) { t.Skip(linuxOnly) }
func folderRemoved(t *testing.T, _ int, _ *atomic.Int64) { t.Skip(linuxOnly) }
