package caddyoauth_test

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

// caddy oauth console lets a browser see the console wherever the admin endpoint is, by the address that
// it prints and by no other, and lets it do no more than the configuration says.
func TestConsoleCommand(t *testing.T) {
	for _, where := range []string{"tcp", "unix"} {
		for _, write := range []bool{false, true} {
			name, option := where, ""
			if write {
				name, option = where+", write", "console write\n"
			}
			t.Run(name, func(t *testing.T) {
				config, address := withAdmin(t, caddyfileOf("store memory\n"+option+managedOptions, managedSite))
				if where == "unix" {
					socket := "unix/" + filepath.Join(t.TempDir(), "admin.sock")
					config, address = strings.Replace(config, "admin "+address, "admin "+socket+"|0200", 1), socket
				}
				g := startCaddyfile(t, config)
				printed := startConsole(t, "--address", address)
				page, err := url.Parse(printed)
				if err != nil {
					t.Fatal(err)
				}
				ask := func(method, path, body string, headers ...string) answer {
					t.Helper()
					at, err := page.Parse(path)
					if err != nil {
						t.Fatal(err)
					}
					r, err := http.NewRequest(method, at.String(), strings.NewReader(body))
					if err != nil {
						t.Fatal(err)
					}
					r.Header.Set("Sec-Fetch-Mode", "cors")
					for i := 0; i < len(headers); i += 2 {
						if headers[i] == "Host" {
							r.Host = headers[i+1]
						}
						r.Header.Set(headers[i], headers[i+1])
					}
					return g.do(r)
				}
				own := []string{"Sec-Fetch-Site", "same-origin", "Origin", page.Scheme + "://" + page.Host, "Content-Type", "application/json"}
				if a := ask("GET", "", "", "Sec-Fetch-Site", "none"); a.StatusCode != 200 || !strings.Contains(a.Body, "<title>") || !strings.Contains(a.Header.Get("Content-Security-Policy"), "default-src 'none'") {
					t.Errorf("the page: %d %v", a.StatusCode, a.Header)
				}
				if a := ask("GET", "../", "", own...); a.StatusCode != 200 || a.json(t)["realms"] == nil || a.Header.Get("Access-Control-Allow-Origin") != "" {
					t.Errorf("the state of everything: %d %s %v", a.StatusCode, a.Body, a.Header)
				}
				want := http.StatusForbidden
				if write {
					want = http.StatusCreated
				}
				added := ask("PUT", "../clients/root/a%2F..%2Fb", `{"scopes":["read"]}`, own...)
				if added.StatusCode != want || write == (added.Header.Get("ETag") == "") {
					t.Errorf("adding a client: %d %s, want %d", added.StatusCode, added.Body, want)
				}
				if write {
					if a := ask("DELETE", "../clients/root/a%2F..%2Fb", "", append(own, "If-Match", `"1"`)...); a.StatusCode != 412 {
						t.Errorf("removing another version: %d %s, want 412", a.StatusCode, a.Body)
					}
				}

				// Events come as they happen.
				res, err := g.Client.Get(page.ResolveReference(&url.URL{Path: "../events"}).String())
				if err != nil {
					t.Fatal(err)
				}
				if line, err := bufio.NewReader(res.Body).ReadString('\n'); err != nil || line != "retry: 1000\n" {
					t.Errorf("the stream of events: %d %q %v", res.StatusCode, line, err)
				}
				res.Body.Close()

				// Nobody else, and nothing else.
				for what, a := range map[string]answer{
					"without the secret":       ask("GET", "/oauth/", ""),
					"with another one":         ask("GET", "/"+strings.Repeat("A", 26)+"/oauth/", ""),
					"the configuration":        ask("GET", "../../config/", "", own...),
					"the configuration, by ..": ask("GET", strings.TrimSuffix(page.Path, "console/")+"%2e%2e/config/", "", own...),
				} {
					if a.StatusCode != 404 {
						t.Errorf("%s: %d %s, want 404", what, a.StatusCode, a.Body)
					}
				}
				for what, headers := range map[string][]string{
					"a page from elsewhere":    {"Sec-Fetch-Site", "cross-site"},
					"another port":             {"Origin", "http://127.0.0.1:1"},
					"a name that points here":  {"Host", "evil.example"},
					"a port that is forwarded": {"Host", "127.0.0.1:1"},
				} {
					if a := ask("GET", "../", "", headers...); a.StatusCode != 403 || headers[0] == "Host" && !strings.Contains(a.Body, page.Host) {
						t.Errorf("%s: %d %s, want 403", what, a.StatusCode, a.Body)
					}
				}
			})
		}
	}
	for args, says := range map[string]string{
		"--listen 0.0.0.0:0":      "must be an address of this machine alone",
		"--listen example.com:80": "must be an address of this machine alone",
		"--address 127.0.0.1:1":   "127.0.0.1:1",
	} {
		config, address := withAdmin(t, caddyfileOf("store memory\n"+testClients, managedSite))
		startCaddyfile(t, config)
		line := append([]string{"console"}, strings.Fields(args)...)
		if !strings.Contains(args, "--address") {
			line = append(line, "--address", address)
		}
		if _, _, err := caddyCLI(t, "", line...); exitStatus(err) != 2 || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: status %d, %v", args, exitStatus(err), err)
		}
	}
}

// startConsole runs the command until the test ends, and returns the address that it prints.
func startConsole(t *testing.T, args ...string) string {
	t.Helper()
	command := caddycmd.Commands()["oauth"]
	root := &cobra.Command{Use: "oauth", SilenceUsage: true, SilenceErrors: true}
	command.CobraFunc(root)
	out, in := io.Pipe()
	root.SetOut(in)
	root.SetErr(io.Discard)
	root.SetArgs(append([]string{"console"}, args...))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		err := root.ExecuteContext(ctx)
		in.CloseWithError(io.EOF)
		ended <- err
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the command ends with %v", err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("it prints %q: %v", line, err)
	}
	return strings.TrimSpace(line)
}
