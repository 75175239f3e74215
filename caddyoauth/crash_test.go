package caddyoauth_test

import (
	"bufio"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth"
)

// TestGatewayProcess is not a test: startGatewayProcess runs it in a process of its own, which
// serves until it is killed.
func TestGatewayProcess(t *testing.T) {
	options := os.Getenv("GATEWAY_TEST_OPTIONS")
	if options == "" {
		t.Skip("run by TestKilledGateway")
	}
	g := startGateway(t, options, cmp.Or(os.Getenv("GATEWAY_TEST_SITE"), "oauth_server\noauth_protect\nrespond ok"))
	fmt.Printf("gateway at %s\n", g.URL)
	flush := time.NewTicker(100 * time.Millisecond)
	defer flush.Stop()
	for end := time.After(time.Minute); ; { // no longer, in case the test process is killed first
		select {
		case <-flush.C:
			if os.Getenv("GATEWAY_TEST_USES") != "" {
				caddyoauth.WriteUses()
			}
		case <-end:
			return
		}
	}
}

// startGatewayProcess runs a gateway with these lines in the oauth block in another process and
// returns it with a way to kill it.
func startGatewayProcess(t *testing.T, options string) (g *gateway, kill func()) {
	t.Helper()
	return runGatewayProcess(t, gatewayProcess(options))
}

// gatewayProcess returns the command that startGatewayProcess runs.
func gatewayProcess(options string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], "-test.run=^TestGatewayProcess$", "-test.v")
	cmd.Env = append(os.Environ(), "GATEWAY_TEST_OPTIONS="+options)
	return cmd
}

func runGatewayProcess(t *testing.T, cmd *exec.Cmd) (g *gateway, kill func()) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		cmd.Process.Kill() // SIGKILL: no defer, no flush, no Stop
		cmd.Wait()
	}
	t.Cleanup(kill)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if _, address, ok := strings.Cut(lines.Text(), "gateway at "); ok {
			return &gateway{t: t, URL: address, Client: newClient(t)}, kill
		}
	}
	t.Fatal("the process ended before it served")
	return nil, nil
}

// What was answered with 200 is durable, even if the process is killed right after the answer.
func TestKilledGateway(t *testing.T) {
	options := "store bbolt " + filepath.Join(t.TempDir(), "tokens.db") + "\n" + testClients
	var revoked []string
	for round := range 3 {
		g, kill := startGatewayProcess(t, options)
		dead := g.token("reader")
		if a := g.get("/x", dead); a.StatusCode != 200 {
			t.Fatalf("round %d: a new token gets %d", round, a.StatusCode)
		}
		if a := g.revoke("reader", dead); a.StatusCode != 200 {
			t.Fatalf("round %d: revoking: %d", round, a.StatusCode)
		}
		revoked = append(revoked, dead)
		token := g.token("reader")
		kill()

		g, kill = startGatewayProcess(t, options)
		if a := g.get("/x", token); a.StatusCode != 200 {
			t.Errorf("round %d: the token issued before the kill gets %d", round, a.StatusCode)
		}
		for _, old := range revoked {
			if a := g.get("/x", old); a.StatusCode != 401 {
				t.Errorf("round %d: a token revoked before the kill gets %d", round, a.StatusCode)
			}
		}
		if a := g.revoke("reader", token); a.StatusCode != 200 {
			t.Fatalf("round %d: revoking: %d", round, a.StatusCode)
		}
		revoked = append(revoked, token)
		kill()
	}
	g, _ := startGatewayProcess(t, options)
	for _, old := range revoked {
		if a := g.introspect("reader", old); a.Body != `{"active":false}` {
			t.Errorf("after all the kills, a revoked token is %s", a.Body)
		}
	}
}
