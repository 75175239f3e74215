package caddyoauth_test

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Some tests run programs for Node: examples, and what others have written for it. Their packages
// are in the folders that have a package-lock.json; .ci/node installs them. Without Node or the
// packages, such a test is skipped, which .ci/run does not accept.

// nodeIn returns the program node for what is in a folder of the repository.
func nodeIn(t *testing.T, folder string) string {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("node is not installed")
	}
	if _, err := os.Stat(filepath.Join(repositoryRoot, folder, "node_modules")); err != nil {
		t.Skipf("the packages of %s are not installed; .ci/node does it", folder)
	}
	return node
}

// nodeCommand returns a command that runs a program of the repository on Node, with what the tests'
// environment must not change: no settings of the user, no proxy. The variables are added.
func nodeCommand(t *testing.T, program string, args, variables []string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), nodeIn(t, filepath.ToSlash(filepath.Dir(program))), append([]string{program}, args...)...)
	cmd.Dir = repositoryRoot
	cmd.Env = append([]string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}, variables...)
	return cmd
}

// runNode runs a program to its end and returns what it prints, errors among it. A program that
// fails has printed why.
func runNode(t *testing.T, program string, args, variables []string) string {
	t.Helper()
	output, err := nodeCommand(t, program, args, variables).CombinedOutput()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		t.Fatalf("%s: %v", program, err)
	}
	return string(output)
}

// startNode runs a server until the test ends. It chooses a port itself, because PORT is 0, and
// prints "listening on" and its address, which is returned.
func startNode(t *testing.T, program string, variables ...string) (address string) {
	t.Helper()
	return startBackend(t, program, nodeCommand(t, program, nil, variables))
}

// startBackend does this with any program, which it calls name.
func startBackend(t *testing.T, name string, cmd *exec.Cmd) (address string) {
	t.Helper()
	cmd.Env = append(cmd.Env, "PORT=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if stderr.Len() > 0 {
			t.Errorf("%s says: %s", name, stderr.String())
		}
	})
	line, err := bufio.NewReader(output).ReadString('\n')
	address, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if !ok {
		t.Fatalf("%s does not listen: %q, %v", name, line, err)
	}
	return address
}
