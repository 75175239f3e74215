package caddyoauth_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// recipes are the cookbook's, by their headings: for each block, in order, what it has to do.
var recipes = map[string][]func(t *testing.T, b docBlock){
	"Let browsers call from another origin (CORS)": {corsRecipe},
	"Update without two processes on one file":     {updateRecipe},
}

// Every block of the cookbook does what its recipe says, in a real Caddy. A recipe that nobody
// tries fails.
func TestCookbook(t *testing.T) {
	const file = "docs/cookbook.md"
	blocks := make(map[string][]docBlock)
	var headings []string
	lines := strings.Split(readDocument(t, file), "\n")
	for i, line := range lines {
		if heading, ok := strings.CutPrefix(line, "## "); ok {
			headings = append(headings, heading)
			for _, b := range docBlocks(t, file) {
				if b.line > i && !strings.Contains(strings.Join(lines[i+1:b.line], "\n"), "\n## ") {
					blocks[heading] = append(blocks[heading], b)
				}
			}
		}
	}
	for _, heading := range headings {
		t.Run(heading, func(t *testing.T) {
			tries := recipes[heading]
			if len(tries) != len(blocks[heading]) || len(tries) == 0 {
				t.Fatalf("the recipe has %d blocks, %d of them are tried", len(blocks[heading]), len(tries))
			}
			for i, b := range blocks[heading] {
				t.Run(b.String(), func(t *testing.T) { tries[i](t, b) })
			}
		})
	}
	if len(recipes) != len(headings) {
		t.Errorf("%d recipes are tried, the cookbook has %d", len(recipes), len(headings))
	}
}

// startSite runs the lines of a site in the cookbook, with the test's backend in place of the
// one on port 9000.
func startSite(t *testing.T, b docBlock) *gateway {
	t.Helper()
	if b.kind != "caddyfile site" {
		t.Fatalf("%v: the block is of kind %q", b, b.kind)
	}
	return startGateway(t, "store memory\n"+docClients, strings.ReplaceAll(b.text, "127.0.0.1:9000", "BACKEND"))
}

// preflight asks for leave to send a request with a token from origin.
func (g *gateway) preflight(path, origin, method string) answer {
	g.t.Helper()
	return g.do(g.request("OPTIONS", path, "", "Origin", origin, "Access-Control-Request-Method", method, "Access-Control-Request-Headers", "authorization"))
}

func corsRecipe(t *testing.T, b docBlock) {
	g := startSite(t, b)
	const app = "https://app.example.com"
	for _, path := range []string{"/api/x", "/oauth2/access_token"} {
		a := g.preflight(path, app, "POST")
		h := a.Header
		if a.StatusCode != 204 || h.Get("Access-Control-Allow-Origin") != app || !strings.Contains(h.Get("Access-Control-Allow-Headers"), "Authorization") || !strings.Contains(h.Get("Access-Control-Allow-Methods"), "POST") {
			t.Errorf("a preflight of %s gets %d with %v", path, a.StatusCode, h)
		}
	}
	// What only looks like a preflight is no way in.
	for what, headers := range map[string][]string{
		"OPTIONS alone":            nil,
		"with no method asked for": {"Origin", app},
		"with no origin":           {"Access-Control-Request-Method", "GET"},
		"from another origin":      {"Origin", "https://evil.example", "Access-Control-Request-Method", "GET"},
	} {
		if a := g.do(g.request("OPTIONS", "/api/x", "", headers...)); a.StatusCode != 401 || a.Header.Get("Access-Control-Allow-Methods") != "" {
			t.Errorf("%s: %d with %v", what, a.StatusCode, a.Header)
		}
	}
	if a := g.do(g.request("GET", "/api/x", "", "Origin", app, "Access-Control-Request-Method", "GET")); a.StatusCode != 401 || a.Header.Get("Access-Control-Allow-Origin") != app {
		t.Errorf("without a token: %d, which the page may read if its origin is allowed: %v", a.StatusCode, a.Header)
	}
	if g.Backend.count() > 0 {
		t.Error("a request without a token has reached the backend")
	}

	issued := g.do(g.request("POST", "/oauth2/access_token", "grant_type=client_credentials&scope=read&client_id=myClient&client_secret="+testSecret,
		"Origin", app, "Content-Type", "application/x-www-form-urlencoded"))
	token, _ := issued.json(t)["access_token"].(string)
	if issued.StatusCode != 200 || issued.Header.Get("Access-Control-Allow-Origin") != app {
		t.Errorf("a token for the page: %d with %v", issued.StatusCode, issued.Header)
	}
	a := g.do(g.request("GET", "/api/x", "", "Origin", app, "Authorization", "Bearer "+token))
	if a.StatusCode != 200 || len(a.Header["Access-Control-Allow-Origin"]) != 1 || a.Body != "backend" {
		t.Errorf("with a token: %d %q with %v", a.StatusCode, a.Body, a.Header)
	}
}

func updateRecipe(t *testing.T, b docBlock) {
	path := filepath.Join(t.TempDir(), "tokens.db")
	release := holdInAnotherProcess(t, path)
	g := &gateway{t: t, Backend: newBackend(t), Client: newClient(t)}
	t.Cleanup(func() { caddy.Stop() })
	loaded := make(chan error, 1)
	go func() {
		loaded <- g.load(strings.ReplaceAll(b.text, "/var/lib/caddy/tokens.db", path)+testClients, gatewaySite)
	}()
	// Until one that waits as long as is the default has given up, the other one waits.
	if said := secondCaddyOn(t, path); !strings.Contains(said, "in use by another process") {
		t.Errorf("without lock_timeout: %s", said)
	}
	select {
	case err := <-loaded:
		t.Fatalf("it did not wait: %v", err)
	default:
	}
	release()
	if err := <-loaded; err != nil {
		t.Fatalf("when the old process has ended: %v", err)
	}
	if a := g.get("/x", g.token("reader")); a.StatusCode != 200 {
		t.Errorf("with a token: %d", a.StatusCode)
	}
}
