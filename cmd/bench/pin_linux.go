package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// placement says which processor the gateways share. This process, with load and backend, keeps to the
// others.
type placement struct {
	all, gateways, rest unix.CPUSet
}

// newPlacement chooses the last processor that this process may use. The error says why there is
// nothing to choose.
func newPlacement() (*placement, error) {
	p := new(placement)
	if err := unix.SchedGetaffinity(0, &p.all); err != nil {
		return nil, fmt.Errorf("this system does not say which processors there are: %w", err)
	}
	if p.all.Count() < 2 {
		return nil, errors.New("this machine has only one processor for us")
	}
	p.rest = p.all
	for cpu := len(p.all)*64 - 1; ; cpu-- {
		if p.all.IsSet(cpu) {
			p.gateways.Set(cpu)
			p.rest.Clear(cpu)
			return p, nil
		}
	}
}

// others is how many processors are left for this process.
func (p *placement) others() int { return p.rest.Count() }

func (p *placement) moveAway() error { return move(&p.rest) }
func (p *placement) moveBack() error { return move(&p.all) }

// move gives these processors to all threads of this process. A thread that starts later has those of
// the thread that starts it, so it looks again until there is no thread that it has not moved.
func move(to *unix.CPUSet) error {
	moved := make(map[string]bool)
	for again := true; again; {
		again = false
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, t := range threads {
			if moved[t.Name()] {
				continue
			}
			moved[t.Name()], again = true, true
			id, err := strconv.Atoi(t.Name())
			if err != nil {
				return err
			}
			if err := unix.SchedSetaffinity(id, to); err != nil && !errors.Is(err, unix.ESRCH) { // it has ended
				return fmt.Errorf("choosing processors: %w", err)
			}
		}
	}
	return nil
}

// start starts a process on the gateways' processor, or anywhere without a placement. From the start
// its Go runtime then finds only one.
func (p *placement) start(cmd *exec.Cmd) error {
	if p == nil {
		return cmd.Start()
	}
	// A child has the processors of the thread that starts it.
	runtime.LockOSThread()
	if err := unix.SchedSetaffinity(0, &p.gateways); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("choosing processors: %w", err)
	}
	err := cmd.Start()
	if back := unix.SchedSetaffinity(0, &p.rest); back != nil {
		return errors.Join(err, back) // and the thread stays locked: it ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}
