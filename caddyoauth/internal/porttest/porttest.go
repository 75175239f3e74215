// Package porttest reserves ports for tests that must know a port before something listens on it,
// or while nothing does.
package porttest

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
)

// Ports lie below those that systems hand out themselves. One of those could be given to another
// test's server, or to a connection, before the server that it is meant for has it.
//
// The tests of several packages run at once, each in a process. A process takes whole blocks of
// ports, by listening on a block's first port until it ends, and hands out the others.
const (
	firstPort = 20_000
	blocks    = 40
	blockSize = 250
)

var (
	mu   sync.Mutex
	free []int // ports of this process's blocks, the one that was used last at the end
	// held keeps the listeners that stand for blocks. There are at most as many as blocks.
	held []net.Listener
)

// Reserve returns a port that is free over TCP and UDP on 127.0.0.1. Until the test has ended,
// nobody else gets it from this package, in this process or in another.
func Reserve(t testing.TB) int {
	t.Helper()
	mu.Lock()
	defer mu.Unlock()
	for {
		for range free {
			port := free[0]
			free = free[1:]
			if isFree(port) {
				t.Cleanup(func() { giveBack(port) })
				return port
			}
			free = append(free, port) // somebody who knows nothing of this package has it
		}
		if !takeBlock() {
			t.Fatalf("no free port between %d and %d", firstPort, firstPort+blocks*blockSize)
		}
	}
}

// Address reserves a port, and returns it with its host.
func Address(t testing.TB) string {
	t.Helper()
	return address(Reserve(t))
}

func giveBack(port int) {
	mu.Lock()
	defer mu.Unlock()
	free = append(free, port)
}

// takeBlock makes the ports of another block free, and reports whether there was one left.
func takeBlock() bool {
	for i := range blocks {
		// Processes begin with different blocks, so that they rarely try each other's.
		first := firstPort + (os.Getpid()+i)%blocks*blockSize
		listener, err := net.Listen("tcp", address(first))
		if err != nil {
			continue // this process or another has it
		}
		held = append(held, listener)
		for port := first + 1; port < first+blockSize; port++ {
			free = append(free, port)
		}
		return true
	}
	return false
}

func isFree(port int) bool {
	// A process that is started meanwhile, by another test, would have the listener for a moment more:
	// the port would be taken, and whoever connects to it would be reset. On macOS that can't be helped:
	// there, net.Listen takes this lock itself, and would wait forever if somebody wanted to start a
	// process in between.
	if runtime.GOOS != "darwin" {
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
	}
	tcp, err := net.Listen("tcp", address(port))
	if err != nil {
		return false
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", address(port))
	if err != nil {
		return false
	}
	udp.Close()
	return true
}

func address(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
