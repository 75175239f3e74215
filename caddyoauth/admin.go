package caddyoauth

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

// adminAPI adds to Caddy's admin endpoint, which itself decides who may call it. With POST
// /oauth/forget, an authorization server that revokes a token can have the gateway forget what it
// has cached of the token. POST /oauth/tokens/revoke ends a token, or all of a client or a realm.
// /oauth/clients lists clients, and what is below it adds and changes managed ones. GET
// /oauth/keys lists the keys of realms, and POST /oauth/keys/rotate makes new ones. POST
// /oauth/explain says which way a request would go, and GET /oauth/routes who gets in where. GET
// /oauth/health says whether the gateway can do its work, and GET /oauth/ how everything is. GET
// /oauth/live has the last hour, and GET /oauth/events what happens now. /oauth/console/ is a page that
// shows all that.
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.oauth",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Routes implements caddy.AdminRouter.
func (adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{
		guarded("/oauth/clients", serveClients),
		guarded("/oauth/clients/", serveClient),
		guarded("/oauth/clients/export", serveExport),
		guarded("/oauth/clients/import", serveImport),
		guarded(consoleRoot, serveConsole),
		guarded("/oauth/events", serveEvents),
		guarded(explainPattern, serveExplain),
		guarded("/oauth/forget", forget),
		guarded("/oauth/health", serveHealth),
		guarded("/oauth/live", serveLive),
		guarded("/oauth/{$}", serveState),
		guarded("/oauth/keys", serveKeyList),
		guarded("/oauth/keys/rotate", serveRotate),
		guarded("/oauth/openapi.json", serveOpenAPI),
		guarded("/oauth/routes", serveRoutes),
		guarded("/oauth/tokens/revoke", serveRevoke),
	}
}

// forgetRequest says what to forget: one token, all tokens of a client, or all tokens of a source.
type forgetRequest struct {
	Token    string `json:"token"`
	ClientID string `json:"client_id"`
	Source   string `json:"source"`
}

// maxAdminBody bounds the body of a POST to the admin endpoint.
const maxAdminBody = 64 << 10

func adminError(status int, format string, args ...any) error {
	return caddy.APIError{HTTPStatus: status, Err: fmt.Errorf(format, args...)}
}

// readAdminGet returns the App in force for a request that only looks. The error is the answer.
func readAdminGet(w http.ResponseWriter, r *http.Request) (*App, error) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return nil, adminError(http.StatusMethodNotAllowed, "GET or HEAD only")
	}
	app := activeApp()
	if app == nil {
		return nil, adminError(http.StatusNotFound, "oauth is not configured")
	}
	return app, nil
}

// readAdminPost reads the JSON object that is posted to the admin endpoint into place, and returns
// the App in force. The error is the answer; for a body that can't be read it says what is wanted.
func readAdminPost(w http.ResponseWriter, r *http.Request, place any, wanted string) (*App, error) {
	return readLongAdminPost(w, r, maxAdminBody, place, wanted)
}

// readLongAdminPost is readAdminPost for a body of up to most bytes.
func readLongAdminPost(w http.ResponseWriter, r *http.Request, most int64, place any, wanted string) (*App, error) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return nil, adminError(http.StatusMethodNotAllowed, "POST only")
	}
	if err := requireJSON(r); err != nil {
		return nil, err
	}
	// Don't use the app of the configuration that provisioned this route: it may have ended.
	app := activeApp()
	if app == nil {
		return nil, adminError(http.StatusNotFound, "oauth is not configured")
	}
	return app, decodeAdminBody(w, r, most, place, wanted)
}

// requireJSON refuses what a web page can make a browser send to this address: a form, but not JSON.
func requireJSON(r *http.Request) error {
	if mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mediaType != "application/json" {
		return adminError(http.StatusUnsupportedMediaType, "the body must be application/json")
	}
	return nil
}

// decodeAdminBody reads the JSON object in a request's body, of up to most bytes, into place. wanted says
// what it has.
func decodeAdminBody(w http.ResponseWriter, r *http.Request, most int64, place any, wanted string) error {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	body := json.NewDecoder(bytes.NewReader(text))
	body.DisallowUnknownFields()
	// A null would be all defaults: a script that has found no settings would give a client those.
	if err != nil || !bytes.HasPrefix(bytes.TrimLeft(text, " \t\r\n"), []byte("{")) || body.Decode(place) != nil {
		// Don't repeat an error: it may quote the body, and with it a secret or a token.
		return adminError(http.StatusBadRequest, "the body must be a JSON object with %s", wanted)
	}
	if _, err := body.Token(); !errors.Is(err, io.EOF) {
		return adminError(http.StatusBadRequest, "there is something behind the JSON object")
	}
	return nil
}

// forget makes the cache forget. Once it answers 200, no request that begins later is let in because
// of what was cached before.
func forget(w http.ResponseWriter, r *http.Request) error {
	var what forgetRequest
	app, err := readAdminPost(w, r, &what, "token, client_id or source, all of them strings")
	if err != nil {
		return err
	}
	if what.Token != "" && what.ClientID != "" || what == (forgetRequest{}) {
		return adminError(http.StatusBadRequest, "name a token, a client_id, or a source alone; source may stand beside either")
	}
	names := app.sourceNames(what.Source)
	if len(names) == 0 {
		return adminError(http.StatusNotFound, "there is no source %q (known: %s)", what.Source, strings.Join(app.knownSources(), ", "))
	}
	field := zap.Skip()
	for _, name := range names {
		switch {
		case what.Token != "":
			id := introspect.IDOf(what.Token)
			field = zap.Stringer("token_id", id)
			app.run.opened.cache.Forget(name, id)
		case what.ClientID != "":
			field = zap.String("client_id", what.ClientID)
			app.run.opened.cache.ForgetClient(name, what.ClientID)
		default:
			app.run.opened.cache.ForgetSource(name)
		}
	}
	app.logger.Info("cached tokens forgotten", append([]zap.Field{zap.String("event", "cache_forgotten"), zap.String("source", what.Source), field}, adminCaller(r)...)...)
	w.Header().Set("Content-Type", "application/json")
	_, err = io.WriteString(w, "{}\n")
	return err
}

// sourceNames returns the names under which the cache knows the sources called name, or all sources
// if name is empty.
func (a *App) sourceNames(name string) []string {
	var names []string
	for _, key := range sortedKeys(a.sources) {
		if name == "" || a.sources[key].module.Label() == name {
			names = append(names, foreignName(a.sources[key].module.SourceKey()))
		}
	}
	for _, realm := range sortedKeys(a.realms) {
		if name == "" || realm == name {
			names = append(names, oauth.CacheName(realm))
		}
	}
	return names
}

// knownSources returns the source names that a forgetRequest may have.
func (a *App) knownSources() []string {
	known := sortedKeys(a.realms)
	for _, key := range sortedKeys(a.sources) {
		known = append(known, a.sources[key].module.Label())
	}
	slices.Sort(known)
	return slices.Compact(known)
}

// Interface guards
var _ caddy.AdminRouter = (*adminAPI)(nil)
