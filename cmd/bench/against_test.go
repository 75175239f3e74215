package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// ownPeer starts our gateway, and returns how to measure it as if it were another one.
func ownPeer(t *testing.T) (peer, *gateway) {
	b := &bench{cfg: tiny(), report: newReport(tiny()), bar: newProgress(io.Discard, 1), binary: binary, folder: t.TempDir()}
	backend, err := b.serveBackend(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { backend.Close() })
	if err := b.prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	g, err := b.start(t.Context(), setup{store: "memory"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.stop)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(b.generated.secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	site := "http://" + g.addr
	return peer{
		Protected: site + "/api/orders/17", Baseline: site + "/plain/orders/17", PIDs: []int{g.pid},
		TokenEndpoint: site + "/oauth2/access_token", Introspection: site + "/oauth2/introspect",
		ClientID: b.generated.id, SecretFile: secret, ClientAuth: "basic",
	}, g
}

// Our own gateway, as a peer, with all flags.
func TestAgainst(t *testing.T) {
	if _, ok := cpuOf([]int{os.Getpid()}); !ok {
		t.Skip("measuring another gateway needs Linux")
	}
	p, g := ownPeer(t)
	pid := strconv.Itoa(g.pid)
	for name, c := range map[string]struct {
		args []string
		rows []string
	}{
		"all": {
			[]string{"--baseline", p.Baseline, "--baseline-pid", pid, "--token-endpoint", p.TokenEndpoint, "--introspection-endpoint", p.Introspection},
			[]string{"protected request, one token", "protected request, 1,000 tokens", "introspection, 1,000 tokens", "token"},
		},
		"no protected route": {
			[]string{"--against", "", "--token-endpoint", p.TokenEndpoint},
			[]string{"token"},
		},
		"no baseline": {
			[]string{"--client-auth", "post", "--scope", "read", "--token-endpoint", p.TokenEndpoint},
			[]string{"protected request, one token", "protected request, 1,000 tokens", "token"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			file := filepath.Join(t.TempDir(), "figures.json")
			args := append([]string{"--quick", "--json", file, "--against", p.Protected, "--pid", pid, "--client-id", p.ClientID, "--client-secret-file", p.SecretFile}, c.args...)
			if status := mainWith(t.Context(), args, &stdout, &stderr); status != 0 {
				t.Fatalf("status %d: %s", status, &stderr)
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var r report
			if err := json.Unmarshal(text, &r); err != nil {
				t.Fatal(err)
			}
			var rows []string
			for _, row := range r.Comparisons {
				rows = append(rows, row.What)
				if row.Ours.CPU == nil || row.Ours.CPU.Median <= 0 || row.Ours.Rate.Median <= 0 || row.Ours.P99.Median <= 0 {
					t.Errorf("%s: %+v", row.What, row.Ours)
				}
				compared := name == "all" && strings.HasPrefix(row.What, "protected")
				if (row.CPURatio != nil) != compared || (row.Together != nil) != compared {
					t.Errorf("%s: ratios %v and %v", row.What, row.CPURatio, row.Together)
				}
				if !strings.Contains(stdout.String(), "| "+row.What+" |") {
					t.Errorf("the table lacks %s:\n%s", row.What, &stdout)
				}
			}
			if !slices.Equal(rows, c.rows) {
				t.Errorf("measured %q, want %q", rows, c.rows)
			}
			checkTables(t, stdout.String(), 1)
			secret, _ := os.ReadFile(p.SecretFile)
			if all := stdout.String() + stderr.String() + string(text); strings.Contains(all, strings.TrimSpace(string(secret))) || strings.Contains(all, "coa_") {
				t.Error("the output holds a secret")
			}
		})
	}
}

// A gateway without a token endpoint is measured with tokens from a file.
func TestAgainstTokenFile(t *testing.T) {
	if _, ok := cpuOf([]int{os.Getpid()}); !ok {
		t.Skip("measuring another gateway needs Linux")
	}
	p, g := ownPeer(t)
	b := &bench{cfg: tiny(), report: newReport(tiny()), bar: newProgress(io.Discard, 1)}
	if err := p.check(); err != nil {
		t.Fatal(err)
	}
	tokens, err := p.tokens(t.Context(), b)
	if err != nil || len(tokens) != b.cfg.Most || !strings.HasPrefix(tokens[0], "coa_") || g.addr == "" {
		t.Fatalf("%d tokens, %v", len(tokens), err)
	}
	p.TokenEndpoint, p.Introspection, p.Baseline, p.SecretFile, p.ClientID = "", "", "", "", ""
	p.TokenFile = filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(p.TokenFile, []byte(strings.Join(tokens[:3], "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := runAgainst(t.Context(), tiny(), p, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Comparisons) != 2 || r.Comparisons[1].What != "protected request, 3 tokens" {
		t.Errorf("%+v", r.Comparisons)
	}
}

// What can't be measured as it should ends the run, and no error holds a secret.
func TestAgainstRefuses(t *testing.T) {
	if _, ok := cpuOf([]int{os.Getpid()}); !ok {
		t.Skip("measuring another gateway needs Linux")
	}
	p, _ := ownPeer(t)
	right, err := os.ReadFile(p.SecretFile)
	if err != nil {
		t.Fatal(err)
	}
	const wrong = "not-the-secret"
	folder := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// A server that shows whatever it was sent, and answers to everybody.
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		if r.URL.Path == "/refuse" {
			w.WriteHeader(http.StatusBadRequest)
		}
		fmt.Fprint(w, r.Form, r.Header)
	}))
	t.Cleanup(mirror.Close)
	for name, c := range map[string]struct {
		change func(*peer)
		says   string
	}{
		"not protected":            {func(p *peer) { p.Protected = p.Baseline }, "as if it were not protected"},
		"another body":             {func(p *peer) { p.Baseline = mirror.URL }, "not the same as the first"},
		"wrong secret":             {func(p *peer) { p.SecretFile = file("wrong", wrong) }, "status 401"},
		"a secret that comes back": {func(p *peer) { p.TokenEndpoint, p.ClientAuth = mirror.URL+"/refuse", "post" }, "status 400"},
		"no token":                 {func(p *peer) { p.TokenEndpoint, p.ClientAuth = mirror.URL, "post" }, "no access_token"},
		"not active":               {func(p *peer) { p.Introspection = mirror.URL }, "active"},
		"no secret":                {func(p *peer) { p.SecretFile = "" }, "--client-secret-file"},
		"empty secret":             {func(p *peer) { p.SecretFile = file("empty", "\n") }, "is empty"},
		"no process":               {func(p *peer) { p.PIDs = nil }, "--pid"},
		"a process that is gone":   {func(p *peer) { p.PIDs = []int{1 << 30} }, "process 1073741824"},
		"another machine":          {func(p *peer) { p.Protected = "http://192.0.2.1/" }, "not a loopback address"},
		"another machine's tokens": {func(p *peer) { p.TokenEndpoint = "http://example.com/token" }, "not a loopback address"},
		"TLS":                      {func(p *peer) { p.Protected = "https://127.0.0.1/" }, "http://"},
		"where tokens come from":   {func(p *peer) { p.TokenEndpoint = "" }, "--token-file"},
		"a token that is a header": {func(p *peer) { p.TokenEndpoint, p.TokenFile = "", file("tokens", "a\x00b") }, "no header can hold"},
		"no tokens":                {func(p *peer) { p.TokenEndpoint, p.TokenFile = "", file("none", "\n") }, "there is no token"},
		"how to authenticate":      {func(p *peer) { p.ClientAuth = "jwt" }, "basic or post"},
		"a baseline that is not":   {func(p *peer) { p.Baseline, p.BaselinePIDs = "", p.PIDs }, "needs --baseline"},
	} {
		t.Run(name, func(t *testing.T) {
			p := p
			c.change(&p)
			_, err := runAgainst(t.Context(), tiny(), p, io.Discard)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("error %v, want one with %q", err, c.says)
			}
			for _, secret := range []string{strings.TrimSpace(string(right)), wrong, "coa_"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error holds a secret")
				}
			}
		})
	}
}

// The backend for another gateway is that for our own.
func TestBackendForPeer(t *testing.T) {
	addr, release, err := freeAddr(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	b := new(bench)
	server, err := b.serveBackendAt(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
	if answer, err := io.ReadAll(conn); err != nil || !bytes.HasSuffix(answer, []byte(backendBody)) {
		t.Errorf("%q, %v", answer, err)
	}
}
