//go:build !linux

package caddyoauth_test

import (
	"sync/atomic"
	"testing"
)

const linuxOnly = "limits of another process, namespaces and files that are open without a name are tried on Linux"

func diskFull(t *testing.T, _ int, _ *atomic.Int64)      { t.Skip(linuxOnly) }
func unusableFiles(t *testing.T, _ int, _ *atomic.Int64) { t.Skip(linuxOnly) }
func folderRemoved(t *testing.T, _ int, _ *atomic.Int64) { t.Skip(linuxOnly) }
