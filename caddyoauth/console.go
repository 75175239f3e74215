package caddyoauth

import (
	"embed"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
)

// The console is a page on the admin endpoint, at /oauth/console/, that shows in a browser what the
// other paths below /oauth/ answer. It knows nothing that they don't, and has no session and no
// cookies: who may reach the admin endpoint may see the page.

// Console says what may be done in a browser. The page is there in any case.
type Console struct {
	// Lets a browser change things at the admin endpoint: add and change managed clients, rotate
	// keys, revoke tokens. Without it, a browser can only look; commands and other programs may do
	// what they do. Default: false.
	Write bool `json:"write,omitempty"`
}

// mayWrite reports whether browsers may change things. The App may be nil.
func (a *App) mayWrite() bool { return a != nil && a.Console != nil && a.Console.Write }

// consoleOption reads console write.
func consoleOption(place **Console) conf.Option {
	return conf.Func(func(d *caddyfile.Dispenser) error {
		args := d.RemainingArgs()
		if len(args) != 1 || args[0] != "write" {
			return d.Err("console takes the word write, and nothing else")
		}
		*place = &Console{Write: true}
		return conf.NoBlock(d, "console write")
	})
}

// consoleFiles are all that the page consists of.
//
//go:embed console/index.html console/console.css console/console.js
var consoleFiles embed.FS

// consoleRoot is where the page is.
const consoleRoot = "/oauth/console/"

// consoleTypes are the files by the rest of their path, with their media types.
var consoleTypes = map[string]struct{ file, mediaType string }{
	"":            {"index.html", "text/html; charset=utf-8"},
	"console.css": {"console.css", "text/css; charset=utf-8"},
	"console.js":  {"console.js", "text/javascript; charset=utf-8"},
}

// consoleHeaders keep the page to itself. Whatever text from a log or a token ends up in it can load
// nothing, send nothing elsewhere and submit nothing, and no other page can frame it or reach into it.
//
// Caddy's admin endpoint asks a browser for an Origin or a Referer and compares it with its own
// address. A browser sends no Origin with a GET to the same origin, so the page can't be without a
// Referer; nobody else gets one.
var consoleHeaders = map[string]string{
	"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	"Referrer-Policy":              "same-origin",
	"Cross-Origin-Opener-Policy":   "same-origin",
	"Cross-Origin-Resource-Policy": "same-origin",
	"X-Content-Type-Options":       "nosniff",
	"X-Frame-Options":              "DENY",
	"Cache-Control":                "no-store",
}

// serveConsole answers with a file of the page.
func serveConsole(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return adminError(http.StatusMethodNotAllowed, "GET or HEAD only")
	}
	if activeApp() == nil {
		return adminError(http.StatusNotFound, "oauth is not configured")
	}
	served, ok := consoleTypes[strings.TrimPrefix(r.URL.Path, consoleRoot)]
	if !ok {
		return adminError(http.StatusNotFound, "the console has no such file")
	}
	content, err := consoleFiles.ReadFile("console/" + served.file)
	if err != nil {
		return err
	}
	for name, value := range consoleHeaders {
		w.Header().Set(name, value)
	}
	w.Header().Set("Content-Type", served.mediaType)
	_, err = w.Write(content)
	return err
}
