//go:build !linux

package main

import (
	"errors"
	"os/exec"
)

// placement is only possible on Linux.
type placement struct{}

func newPlacement() (*placement, error) {
	return nil, errors.New("processes can be pinned only on Linux")
}

func (*placement) others() int               { return 1 }
func (*placement) moveAway() error           { return nil }
func (*placement) moveBack() error           { return nil }
func (*placement) start(cmd *exec.Cmd) error { return cmd.Start() }
