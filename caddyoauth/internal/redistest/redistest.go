// Package redistest starts real Redis servers for tests, on loopback and without persistence, and
// ends them with the test.
package redistest

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// Server is a redis-server process. It ends with the test.
type Server struct {
	Addr string

	t    testing.TB
	args []string
	cmd  *exec.Cmd
}

// Start starts a server on a free port, with additional arguments args. It skips the test if there
// is no redis-server on PATH.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("redis-server is not on PATH; install Redis to run this test")
	}
	port := reserve(t)
	s := &Server{t: t, Addr: net.JoinHostPort("127.0.0.1", port)}
	s.args = append([]string{
		"--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "", "--appendonly", "no", "--loglevel", "warning",
		"--repl-diskless-sync-delay", "0", // don't wait for more replicas
	}, args...)
	t.Cleanup(s.Stop)
	s.Restart()
	return s
}

// Restart starts the server again after Stop, at the same address. Its data is gone.
func (s *Server) Restart() {
	s.t.Helper()
	s.cmd = exec.Command("redis-server", s.args...)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	await(s.t, "redis-server listens on "+s.Addr, func() bool {
		conn, err := net.Dial("tcp", s.Addr)
		if err != nil {
			return false
		}
		defer conn.Close()
		// That it answers is enough: with a password, the answer is an error.
		if _, err := io.WriteString(conn, "PING\r\n"); err != nil {
			return false
		}
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err = conn.Read(make([]byte, 1))
		return err == nil
	})
}

// await waits for a server that is on its way, on a machine that may be busy.
func await(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 seconds: %s", what)
		}
	}
}

// Stop kills the server if it runs, and waits until it has ended.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	s.cmd.Process.Kill()
	s.cmd.Wait()
	s.cmd = nil
}

// CLI runs a command with redis-cli and returns its output.
func (s *Server) CLI(args ...string) string {
	s.t.Helper()
	out, err := s.TryCLI(args...)
	if err != nil {
		s.t.Fatalf("redis-cli %s: %v: %s", args, err, out)
	}
	return out
}

// TryCLI is CLI for a server that may end the connection, as when a Sentinel promotes it.
func (s *Server) TryCLI(args ...string) (string, error) {
	_, port, _ := net.SplitHostPort(s.Addr)
	out, err := exec.Command("redis-cli", append([]string{"-p", port}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// CPU returns how much CPU time the server has used.
func (s *Server) CPU() (used time.Duration) {
	s.t.Helper()
	for line := range strings.Lines(s.CLI("info", "cpu")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name != "used_cpu_sys" && name != "used_cpu_user" {
			continue
		}
		part, err := time.ParseDuration(value + "s")
		if err != nil {
			s.t.Fatal(err)
		}
		used += part
	}
	return used
}

// StartCluster starts a Cluster of three masters and waits until it is ready.
func StartCluster(t testing.TB) []*Server {
	t.Helper()
	var servers []*Server
	create := []string{"--cluster", "create"}
	for range 3 {
		s := Start(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", reserve(t))
		servers = append(servers, s)
		create = append(create, s.Addr)
	}
	servers[0].CLI(append(create, "--cluster-yes")...)
	await(t, "the cluster is ready", func() bool {
		for _, s := range servers {
			if !strings.Contains(s.CLI("cluster", "info"), "cluster_state:ok") {
				return false
			}
		}
		return true
	})
	return servers
}

// StartClusterReplica adds a replica of a master to its Cluster, and waits until it has the data.
func StartClusterReplica(t testing.TB, of *Server) *Server {
	t.Helper()
	s := Start(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", reserve(t))
	of.CLI("--cluster", "add-node", s.Addr, of.Addr, "--cluster-slave", "--cluster-master-id", of.CLI("cluster", "myid"))
	s.awaitData()
	return s
}

// awaitData waits until a replica has the data of its master.
func (s *Server) awaitData() {
	s.t.Helper()
	await(s.t, "the replica has the data", func() bool {
		return strings.Contains(s.CLI("info", "replication"), "master_link_status:up")
	})
}

// reserve returns a port for a server. Nobody else gets it, also not while the server is stopped.
func reserve(t testing.TB) string {
	t.Helper()
	return strconv.Itoa(porttest.Reserve(t))
}

// StartReplica starts a replica of the server at address of, and waits until it has the data.
func StartReplica(t testing.TB, of string) *Server {
	t.Helper()
	host, port, _ := net.SplitHostPort(of)
	s := Start(t, "--replicaof", host, port)
	s.awaitData()
	return s
}

// StartSentinel starts a Sentinel that watches a master under the name "main", and fails over when
// the master has been away for a second.
func StartSentinel(t testing.TB, master *Server) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("redis-server is not on PATH; install Redis to run this test")
	}
	port := reserve(t)
	_, masterPort, _ := net.SplitHostPort(master.Addr)
	config := filepath.Join(t.TempDir(), "sentinel.conf") // the Sentinel rewrites it
	err := os.WriteFile(config, []byte("port "+port+"\nbind 127.0.0.1\nloglevel warning\nsentinel monitor main 127.0.0.1 "+masterPort+
		" 1\nsentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, Addr: net.JoinHostPort("127.0.0.1", port), args: []string{config, "--sentinel"}}
	t.Cleanup(s.Stop)
	s.Restart()
	return s
}
