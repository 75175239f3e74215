package porttest_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// asAnother makes TestReserve print the ports of another process, and wait until its input ends.
const asAnother = "PORTTEST_AS_ANOTHER"

// No two tests have a port at once, even if they run in two processes and need more than a block.
func TestReserve(t *testing.T) {
	const ports = 300
	if os.Getenv(asAnother) != "" {
		for range ports {
			fmt.Println("port", porttest.Reserve(t))
		}
		return
	}
	seen := make(map[int]string)
	see := func(port int, who string) {
		t.Helper()
		if before, ok := seen[port]; ok {
			t.Errorf("%s and %s both have port %d", before, who, port)
		}
		seen[port] = who
	}
	for range ports {
		see(porttest.Reserve(t), "this process")
	}
	another := exec.Command(os.Args[0], "-test.run=^TestReserve$")
	another.Env = append(os.Environ(), asAnother+"=1")
	out, err := another.CombinedOutput()
	if err != nil {
		t.Fatalf("another process: %v: %s", err, out)
	}
	n := 0
	for line := range strings.Lines(string(out)) {
		var port int
		if _, err := fmt.Sscanf(line, "port %d", &port); err == nil {
			see(port, "another process")
			n++
		}
	}
	if n != ports {
		t.Errorf("another process has %d ports, want %d", n, ports)
	}
}

// A port is another test's again when the test has ended, and not while somebody still listens.
func TestReserveAgain(t *testing.T) {
	had := make(map[int]bool)
	t.Run("a test", func(t *testing.T) {
		for range 300 {
			had[porttest.Reserve(t)] = true
		}
	})
	again := 0
	for range 500 {
		address := porttest.Address(t)
		listener, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatalf("a reserved port is not free: %v", err)
		}
		t.Cleanup(func() { listener.Close() })
		if had[listener.Addr().(*net.TCPAddr).Port] {
			again++
		}
	}
	if again == 0 {
		t.Error("no port came back")
	}
}
