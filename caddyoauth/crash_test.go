package caddyoauth_test

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// TestGatewayProcess is not a test: startGatewayProcess runs it in a process of its own, which
// serves until it is killed.
func TestGatewayProcess(t *testing.T) {
	options := os.Getenv("GATEWAY_TEST_OPTIONS")
	if options == "" {
		t.Skip("run by TestKilledGateway")
	}
	config := caddyfileOf(options, cmp.Or(os.Getenv("GATEWAY_TEST_SITE"), "oauth_server\noauth_protect\nrespond ok"))
	if admin := os.Getenv("GATEWAY_TEST_ADMIN"); admin != "" {
		config = strings.Replace(config, "admin off", "admin "+admin, 1)
	}
	g := startCaddyfile(t, config)
	fmt.Printf("gateway at %s\n", g.URL)
	orphaned := make(chan struct{})
	go func() {
		defer close(orphaned)
		io.Copy(io.Discard, os.Stdin) // ends with the test process, in case that is killed first
	}()
	flush := time.NewTicker(100 * time.Millisecond)
	defer flush.Stop()
	for {
		select {
		case <-flush.C:
			if os.Getenv("GATEWAY_TEST_USES") != "" {
				caddyoauth.WriteUses()
			}
		case <-orphaned:
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
	if _, err := cmd.StdinPipe(); err != nil { // TestGatewayProcess serves until it is closed
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

// An operator whose change was cut off by a crash, between the write and the answer say, can find out
// whether it happened: the client is whole, as before it or after it, and the entity tag tells which. A
// change that was answered is there, and in a fleet the other gateway goes by both.
func TestKilledWhileClientsChange(t *testing.T) {
	t.Run("bbolt", func(t *testing.T) {
		killedWhileClientsChange(t, "store bbolt "+filepath.Join(t.TempDir(), "tokens.db")+"\n"+managedOptions, false)
	})
	t.Run("redis", func(t *testing.T) { killedWhileClientsChange(t, at(redistest.Start(t).Addr)+managedOptions, true) })
}

func killedWhileClientsChange(t *testing.T, options string, fleet bool) {
	const path = "/oauth/clients/root/batch"
	var other *gateway
	if fleet {
		other, _ = startGatewayProcess(t, options)
	}
	start := func() (a admin, kill func()) {
		address := porttest.Address(t)
		cmd := gatewayProcess(options)
		cmd.Env = append(cmd.Env, "GATEWAY_TEST_ADMIN="+address)
		g, kill := runGatewayProcess(t, cmd)
		return admin{g, address}, kill
	}
	a, kill := start()
	a.must(201, "PUT", path, `{"scopes":["read"]}`)
	var dead []string // tokens that ended before an answer
	rounds, did := 8, 0
	for round := range rounds {
		// What the operator was told last, and a change that nobody may ever answer.
		state := a.must(200, "GET", path, "")
		etag, count := state.Header.Get("ETag"), secretsOf(t, state)
		if count == maxSecretsOfManaged {
			a.must(204, "DELETE", path, "")
			state = a.must(201, "PUT", path, `{"scopes":["read"]}`)
			etag, count = state.Header.Get("ETag"), 1
		}
		told := a.must(200, "POST", path+"/secrets", "{}", "If-Match", etag)
		secret, count := fmt.Sprint(told.json(t)["secret"]), count+1
		old := a.tokenBy("batch", secret)
		a.mustRevokeAll(a.address, `{"client":"batch"}`, `{"realm":"root","client":"batch","clients":1}`)
		dead = append(dead, old)
		etag = a.must(200, "GET", path, "").Header.Get("ETag")
		token := a.tokenBy("batch", secret)

		// One change after another, until the gateway dies. The lifetime tells which was the last.
		begun, ended := make(chan struct{}), make(chan struct{})
		answered := 0
		go func() {
			defer close(ended)
			for {
				r := a.request("PUT", "", fmt.Sprintf(`{"scopes":["read"],"default_scopes":["read"],"token_lifetime":"%dm"}`, answered+1), "Content-Type", "application/json", "If-Match", etag)
				r.Host, r.URL.Host, r.URL.Path = a.address, a.address, path
				res, err := a.try(r)
				if err != nil {
					return
				}
				if res.StatusCode != 200 {
					t.Errorf("round %d: %d %s", round, res.StatusCode, res.Body)
					return
				}
				if etag = res.Header.Get("ETag"); answered == 3 {
					close(begun)
				}
				answered++
			}
		}()
		select {
		case <-begun:
		case <-ended:
			t.Fatal("it ended before it was killed")
		}
		for end := time.Now().Add(time.Duration(rand.IntN(3000)) * time.Microsecond); time.Now().Before(end); {
			runtime.Gosched()
		}
		kill()
		<-ended

		a, kill = start()
		now := a.must(200, "GET", path, "")
		minutes := now.json(t)["settings"].(map[string]any)["token_lifetime"].(float64) / float64(time.Minute)
		changed := int(minutes) == answered+1
		switch {
		case int(minutes) != answered && !changed:
			t.Errorf("round %d: %d changes were answered, and it is as after %v", round, answered, minutes)
		case changed == (now.Header.Get("ETag") == etag):
			t.Errorf("round %d: changed is %t, and the entity tag was %s and is %s", round, changed, etag, now.Header.Get("ETag"))
		case secretsOf(t, now) != count:
			t.Errorf("round %d: it has %d secrets, want %d", round, secretsOf(t, now), count)
		}
		if changed {
			did++
		}
		// To do it again with the same condition does it once at most.
		want := 200
		if changed {
			want = 412
		}
		a.must(want, "PUT", path, `{"scopes":["read"],"default_scopes":["read"]}`, "If-Match", etag)
		gateways := []*gateway{a.gateway}
		if fleet {
			gateways = append(gateways, other)
		}
		for _, g := range gateways {
			g.wants("a token of before the crash", token, 200)
			g.tokenBy("batch", secret)
			for _, old := range dead {
				g.wants("a token that ended before a crash", old, 401)
			}
		}
	}
	t.Logf("of %d changes that were cut off, %d had happened", rounds, did)
}

func secretsOf(t *testing.T, a answer) int {
	t.Helper()
	all, _ := a.json(t)["secrets"].([]any)
	return len(all)
}
