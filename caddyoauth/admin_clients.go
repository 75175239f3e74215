package caddyoauth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// The part of the admin endpoint that is about clients:
//
//	GET    /oauth/clients                                 lists all, a page at a time; see admin_list.go
//	GET    /oauth/clients/<realm>/<id>                    shows one
//	PUT    /oauth/clients/<realm>/<id>                    adds a managed client, or changes its settings
//	DELETE /oauth/clients/<realm>/<id>                    removes it
//	POST   /oauth/clients/<realm>/<id>/secrets            gives it another secret
//	DELETE /oauth/clients/<realm>/<id>/secrets/<secret>   takes one away
//
// ID and secret are percent-encoded. A nested realm has ~ in the place of /; see adminRealm. ETag and
// If-Match keep two operators from undoing each other's changes unseen. No answer has a secret or its
// hash but the one that makes the secret.

// shownClient is what is shown of a client.
type shownClient struct {
	Realm string `json:"realm"`
	ID    string `json:"id"`
	// Managed is false for a client of the configuration.
	Managed bool `json:"managed"`
	// Unusable is why a managed client can't be used here: it can't authenticate, and its tokens are refused.
	// If it can't even be read, there are no settings. Empty for clients that can be used.
	Unusable string `json:"unusable,omitempty"`
	// Settings are as in the configuration, without secrets.
	Settings Client `json:"settings"`
	// Introspects is whose tokens it may ask about, `realm` or `any_realm`, if that follows from its
	// scopes.
	Introspects string `json:"introspects,omitempty"`
	// Secrets are those that it has.
	Secrets []shownSecret `json:"secrets"`
	// Use is what it did last; nil if nothing is known of that.
	Use *shownUse `json:"use,omitempty"`
	// Elsewhere is how often a client of the configuration came with a valid token of another server, as
	// `caddy_oauth_client_elsewhere_total` counts at this gateway. It is there if a route takes such
	// tokens beside those of the realm.
	Elsewhere *uint64 `json:"elsewhere,omitempty"`
	// Created and Changed are for managed clients.
	Created time.Time `json:"created,omitzero"`
	Changed time.Time `json:"changed,omitzero"`
	// Secret is one that was just made. It is shown only now.
	Secret string `json:"secret,omitempty"`
}

// shownSecret is what is shown of a secret.
type shownSecret struct {
	// ID names it in a DELETE. It is a digest of the hash, or of where the secret is that a configuration
	// refers to, so it is of no use to a guesser.
	ID string `json:"id,omitempty"`
	// From and Until are when it begins and stops to be accepted. RetireUnused is as in [ClientSecret], and
	// a duration such as 168h.
	From         time.Time `json:"from,omitzero"`
	Until        time.Time `json:"until,omitzero"`
	RetireUnused string    `json:"retire_unused,omitempty"`
	// Used is when it authenticated the client last; zero if that is not known.
	Used time.Time `json:"used,omitzero"`
}

// secretID is the ID of a secret, by its hash or, if a configuration refers to the secret itself, by that
// reference.
func secretID(hash string) string {
	sum := sha256.Sum256([]byte("secret id\x00" + hash))
	return hex.EncodeToString(sum[:6])
}

// show returns what is shown of a client.
func show(realm, id string, managed bool, settings Client) shownClient {
	shown := shownClient{Realm: realm, ID: id, Managed: managed, Settings: settings, Secrets: []shownSecret{}}
	for _, secret := range settings.Secrets {
		shown.Secrets = append(shown.Secrets, shownSecret{
			ID: secretID(secret.Hash), From: secret.From, Until: secret.Until, RetireUnused: shownDuration(secret.RetireUnused),
		})
	}
	shown.Settings.Secrets = nil
	// Their values are templates of secrets; what is secret of them isn't here, but the names are enough.
	shown.Settings.UpstreamHeaders = nil
	return shown
}

// shownDuration returns a duration without the parts that are zero; empty for none.
func shownDuration(d caddy.Duration) string {
	text := time.Duration(d).String()
	switch {
	case d == 0:
		return ""
	case strings.HasSuffix(text, "h0m0s"):
		return strings.TrimSuffix(text, "0m0s")
	}
	return text
}

func showManaged(realm, id string, record *managedRecord) shownClient {
	shown := show(realm, id, true, record.Client)
	shown.Created, shown.Changed = record.Created, record.Changed
	return shown
}

// showUnreadable returns what is shown of a managed client that can't be read. What could be read of it may
// mean something else.
func showUnreadable(realm, id string, why error) shownClient {
	return shownClient{Realm: realm, ID: id, Managed: true, Unusable: why.Error(), Secrets: []shownSecret{}}
}

// etag is the entity tag of a managed client.
func etag(version uint64) string { return `"` + strconv.FormatUint(version, 10) + `"` }

// showClient returns what is shown of a client, and its version if it is a managed one. The error is
// oauth.ErrNotFound if there is none.
func (a *App) showClient(ctx context.Context, realm *servedRealm, id string) (shown shownClient, version uint64, err error) {
	if realm.settings.Clients[id] != nil {
		return a.showConfigured(realm, id), 0, nil
	}
	if realm.managed == nil || a.run.opened.clients == nil {
		return shown, 0, oauth.ErrNotFound
	}
	stored, err := a.run.opened.clients.ManagedClient(ctx, oauth.ClientRef{Realm: realm.name, ClientID: id})
	if err != nil {
		return shown, 0, err
	}
	record, err := readManaged(stored)
	if err != nil {
		return showUnreadable(realm.name, id, err), stored.Version, nil
	}
	shown = showManaged(realm.name, id, &record)
	shown.Introspects = realm.am.introspects(&record.Client)
	unusable, _ := realm.managed.unusable.find(id)
	shown.Unusable = unusable.why
	return shown, stored.Version, nil
}

// showConfigured returns what is shown of a client of the configuration.
func (a *App) showConfigured(realm *servedRealm, id string) shownClient {
	shown := show(realm.name, id, false, *a.Realms[realm.name].Clients[id])
	shown.Introspects = realm.am.introspects(&shown.Settings)
	for i, secret := range realm.settings.Clients[id].Secrets {
		shown.Secrets[i].ID = secret.ID // its hash may be a reference
	}
	if counts := realm.counts[id]; counts != nil && realm.besideOthers {
		n := counts.elsewhere.Load()
		shown.Elsewhere = &n
	}
	return shown
}

// adminRealm is how the path of a client spells its realm. An encoded slash would not do: Caddy decodes a
// path before it compares it with the permissions of remote administration, so who may change the
// clients of the realm retail could change those of retail/eu, and the other way round, by a client of the
// realm retail whose ID begins with eu/. No name of a realm has a ~, which no URL has to encode.
func adminRealm(name string) string { return strings.ReplaceAll(name, "/", "~") }

// serveClient answers what is about one client.
func serveClient(w http.ResponseWriter, r *http.Request) error {
	app := activeApp()
	if app == nil {
		return adminError(http.StatusNotFound, "oauth is not configured")
	}
	parts := strings.Split(strings.TrimPrefix(r.URL.EscapedPath(), "/oauth/clients/"), "/")
	for i, part := range parts {
		var err error
		if parts[i], err = url.PathUnescape(part); err != nil || parts[i] == "" {
			return adminError(http.StatusNotFound, "the path must be /oauth/clients/<realm>/<id>, and /secrets or /secrets/<secret> behind it")
		}
	}
	if len(parts) < 2 || len(parts) > 4 || len(parts) > 2 && parts[2] != "secrets" {
		return adminError(http.StatusNotFound, "the path must be /oauth/clients/<realm>/<id>, and /secrets or /secrets/<secret> behind it")
	}
	if strings.Contains(parts[0], "/") {
		return adminError(http.StatusNotFound, "in this path, the name of a nested realm has ~ in the place of /, as in /oauth/clients/retail~eu/<id>")
	}
	name := strings.ReplaceAll(parts[0], "~", "/")
	realm := app.realms[name]
	if realm == nil {
		return unknownRealm(name, sortedKeys(app.realms))
	}
	c := clientRequestAdmin{app: app, realm: realm, id: parts[1], w: w, r: r}
	methods := map[string]func() error{}
	switch len(parts) {
	case 2:
		methods = map[string]func() error{http.MethodGet: c.get, http.MethodHead: c.get, http.MethodPut: c.put, http.MethodDelete: c.remove}
	case 3:
		methods = map[string]func() error{http.MethodPost: c.addSecret}
	case 4:
		methods = map[string]func() error{http.MethodDelete: func() error { return c.removeSecret(parts[3]) }}
	}
	answer := methods[r.Method]
	if answer == nil {
		w.Header().Set("Allow", strings.Join(sortedKeys(methods), ", "))
		return adminError(http.StatusMethodNotAllowed, "%s only", strings.Join(sortedKeys(methods), ", "))
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		if r.URL.RawQuery != "" && len(parts) < 4 {
			return adminError(http.StatusBadRequest, "there is something in the query: what is wanted of this goes into the body")
		}
		if err := app.mayChange(realm, c.id); err != nil {
			return err
		}
	}
	return answer()
}

// clientRequestAdmin is a request about one client.
type clientRequestAdmin struct {
	app   *App
	realm *servedRealm
	id    string
	w     http.ResponseWriter
	r     *http.Request
	// endsTokens is set if all tokens of the client end with the change.
	endsTokens bool
}

// mayChange refuses changes of clients that are not managed. The error is the answer.
func (a *App) mayChange(realm *servedRealm, id string) error {
	switch settings := a.Realms[realm.name]; {
	case settings != nil && settings.Clients[id] != nil:
		return adminError(http.StatusConflict, "client '%s' is in the configuration: change it there, and reload", loggedText(id))
	case realm.managed == nil:
		return adminError(http.StatusConflict, "realm '%s' has no managed clients: give it managed_clients in the configuration", realm.name)
	case a.run.opened.clients == nil:
		return adminError(http.StatusConflict, "this kind of token store can't keep clients")
	}
	return nil
}

// read reads the JSON object in the body.
func (c *clientRequestAdmin) read(place any, wanted string) error {
	if err := requireJSON(c.r); err != nil {
		return err
	}
	return decodeAdminBody(c.w, c.r, maxAdminBody, place, wanted)
}

func (c *clientRequestAdmin) get() error {
	shown, version, err := c.app.showClient(c.r.Context(), c.realm, c.id)
	switch {
	case errors.Is(err, oauth.ErrNotFound):
		return c.unknown()
	case err != nil:
		return adminError(http.StatusServiceUnavailable, "the token store: %w", err)
	}
	uses, err := c.app.usesOf(c.r.Context(), c.realm, []string{c.id})
	if err != nil {
		return adminError(http.StatusServiceUnavailable, "the token store: %w", err)
	}
	shown.addUse(uses.Clients[c.id], c.realm.settings.InventoryAddresses)
	if shown.Managed {
		c.w.Header().Set("ETag", etag(version))
	}
	return answerJSON(c.w, shown)
}

func (c *clientRequestAdmin) unknown() error {
	return adminError(http.StatusNotFound, "realm '%s' has no client '%s'", c.realm.name, loggedText(c.id))
}

var errPrecondition = errors.New("somebody else has changed the client: read it again, and make your change to what it is now")

// precondition checks If-Match and If-None-Match (RFC 9110 section 13). One that can't be fulfilled as it is
// written, such as an empty one of a script that has lost the tag, is not fulfilled. Of If-None-Match, only
// * is known.
func (c *clientRequestAdmin) precondition(exists bool, version uint64) error {
	for _, match := range c.r.Header.Values("If-Match") {
		if !exists || match != "*" && match != etag(version) {
			return errPrecondition
		}
	}
	for _, match := range c.r.Header.Values("If-None-Match") {
		if match != "*" || exists {
			return errPrecondition
		}
	}
	return nil
}

// put adds a client, or replaces its settings. Without secrets in the body, a new client that takes
// secrets gets one, and one that is there keeps those that it has.
func (c *clientRequestAdmin) put() error {
	var settings Client
	if err := c.read(&settings, "a client's settings, as a configuration in JSON has them"); err != nil {
		return err
	}
	secret := ""
	return c.change("client_changed", func(was *managedRecord, version uint64) (*managedRecord, error) {
		secret = "" // of an attempt before, when the client was not there yet
		if err := c.precondition(was != nil, version); err != nil {
			return nil, err
		}
		next := managedRecord{Client: settings}
		auth, _ := settings.authMethods() // what is wrong with them is said below
		switch {
		case was != nil:
			next.Created, next.Imported = was.Created, was.Imported
			if settings.Secrets == nil {
				next.Client.Secrets = was.Client.Secrets
			}
		case settings.Secrets == nil && !settings.Disabled && takesSecrets(auth):
			var hash string
			var err error
			if secret, hash, err = newSecret(); err != nil {
				return nil, err
			}
			next.Client.Secrets = []ClientSecret{{Hash: hash}}
		}
		return &next, nil
	}, &secret)
}

func newSecret() (secret, hash string, err error) {
	secret = oauth.GenerateSecret()
	hash, err = oauth.HashGenerated(secret)
	return secret, hash, err
}

func (c *clientRequestAdmin) remove() error {
	return c.change("client_removed", func(was *managedRecord, version uint64) (*managedRecord, error) {
		if was == nil {
			return nil, oauth.ErrNotFound
		}
		return nil, c.precondition(true, version)
	}, nil)
}

// secretRequest is the body of a POST for another secret.
type secretRequest struct {
	// From and Until are when the new secret begins and stops to be accepted; zero is at once, and never.
	From  time.Time `json:"from,omitzero"`
	Until time.Time `json:"until,omitzero"`
	// OthersUntil is when the client's other secrets end, those that don't end before; zero leaves them
	// as they are.
	OthersUntil time.Time `json:"others_until,omitzero"`
	// OthersRetireUnused is after how long without use the other secrets are removed, those that don't go
	// earlier; zero leaves them as they are.
	OthersRetireUnused caddy.Duration `json:"others_retire_unused,omitempty"`
	// RevokeTokens ends all tokens of the client, so that whoever has stolen a secret keeps none.
	RevokeTokens bool `json:"revoke_tokens,omitempty"`
}

// check finds what can't be meant.
func (q secretRequest) check(now time.Time) error {
	switch {
	case !q.Until.IsZero() && !now.Before(q.Until):
		return errors.New("until is over: nobody could use the secret")
	case !q.OthersUntil.IsZero() && q.From.After(now) && q.OthersUntil.Before(q.From):
		return errors.New("others_until is before from: in between, the client would have no secret")
	}
	return checkRetireUnused("others_retire_unused", q.OthersRetireUnused)
}

// secretBody says what the body of a POST for another secret has.
const secretBody = "from, until and others_until, all times as in 2027-01-01T00:00:00Z, others_retire_unused, a duration as in 168h, and revoke_tokens, which is true or false"

// maxSecrets bounds the secrets of a managed client. Each failed authentication costs as much as the
// secrets of the client that has most.
const maxSecrets = 5

func (c *clientRequestAdmin) addSecret() error {
	var asked secretRequest
	if err := c.read(&asked, secretBody); err != nil {
		return err
	}
	if err := asked.check(time.Now()); err != nil {
		return adminError(http.StatusBadRequest, "%w", err)
	}
	c.endsTokens = asked.RevokeTokens
	secret, hash, err := newSecret()
	if err != nil {
		return err
	}
	return c.change("client_secret_added", func(was *managedRecord, version uint64) (*managedRecord, error) {
		if was == nil {
			return nil, oauth.ErrNotFound
		}
		if err := c.precondition(true, version); err != nil {
			return nil, err
		}
		next, now := *was, time.Now()
		next.Client.Secrets = nil
		for _, other := range was.Client.Secrets {
			if !other.Until.IsZero() && !now.Before(other.Until) {
				continue // it is over
			}
			if !asked.OthersUntil.IsZero() && (other.Until.IsZero() || asked.OthersUntil.Before(other.Until)) {
				other.Until = asked.OthersUntil
				if !other.From.Before(other.Until) {
					continue // it would never begin
				}
			}
			if retire := asked.OthersRetireUnused; retire != 0 && (other.RetireUnused == 0 || retire < other.RetireUnused) {
				other.RetireUnused = retire
			}
			next.Client.Secrets = append(next.Client.Secrets, other)
		}
		if len(next.Client.Secrets) >= maxSecrets {
			// After a theft, there is room in the place of those that end now.
			next.Client.Secrets = slices.DeleteFunc(next.Client.Secrets, func(s ClientSecret) bool { return !s.Until.IsZero() && !now.Before(s.Until) })
		}
		if len(next.Client.Secrets) >= maxSecrets {
			return nil, adminError(http.StatusConflict, "the client has %d secrets: take one away first", maxSecrets)
		}
		// The newest is the last, as in a configuration.
		next.Client.Secrets = append(next.Client.Secrets, ClientSecret{Hash: hash, From: asked.From, Until: asked.Until})
		return &next, nil
	}, &secret)
}

func (c *clientRequestAdmin) removeSecret(secret string) error {
	// One that is misspelt would leave the tokens to a thief.
	switch c.r.URL.RawQuery {
	case "", "revoke_tokens=false":
	case "revoke_tokens=true":
		c.endsTokens = true
	default:
		return adminError(http.StatusBadRequest, "the query is revoke_tokens=true or revoke_tokens=false, or empty")
	}
	return c.change("client_secret_removed", func(was *managedRecord, version uint64) (*managedRecord, error) {
		if was == nil {
			return nil, oauth.ErrNotFound
		}
		if err := c.precondition(true, version); err != nil {
			return nil, err
		}
		next := *was
		next.Client.Secrets = slices.DeleteFunc(slices.Clone(was.Client.Secrets), func(s ClientSecret) bool { return secretID(s.Hash) == secret })
		if len(next.Client.Secrets) == len(was.Client.Secrets) {
			return nil, adminError(http.StatusNotFound, "the client has no secret '%s'", loggedText(secret))
		}
		return &next, nil
	}, nil)
}

// change changes the client, logs that, and answers. secret is what is shown only now, if anything is.
func (c *clientRequestAdmin) change(event string, change managedChange, secret *string) error {
	checked := func(was *managedRecord, version uint64) (*managedRecord, error) {
		next, err := change(was, version)
		if err != nil || next == nil {
			return nil, err
		}
		client, keys, err := c.realm.provisionManaged(c.id, &next.Client)
		if err != nil {
			return nil, adminError(http.StatusBadRequest, "client '%s': %w", loggedText(c.id), err)
		}
		if err := c.realm.mayHaveHashes(client); err != nil {
			return nil, adminError(http.StatusConflict, "client '%s': %w", loggedText(c.id), err)
		}
		if _, err := c.app.mayHaveKeys(c.realm, c.id, keys, 0); err != nil {
			return nil, err
		}
		return next, nil
	}
	ends := func(was, next *managedRecord) bool { return c.endsTokens || endsTokens(was, next) }
	was, next, version, err := c.app.changeManaged(c.r.Context(), c.realm, c.id, ends, checked)
	var refused caddy.APIError
	switch {
	case errors.Is(err, errPrecondition):
		return adminError(http.StatusPreconditionFailed, "%w", err)
	case errors.Is(err, oauth.ErrNotFound):
		return c.unknown()
	case errors.As(err, &refused):
		return err
	}
	status := http.StatusOK
	if was == nil && next != nil {
		event, status = "client_added", http.StatusCreated
	}
	if was != nil || next != nil { // otherwise the store could not even be read
		audit := clientAudit{event: event, was: was, next: next, tokensEnded: was != nil && (next == nil || ends(was, next)), err: err}
		c.app.logChange(c.realm, c.id, audit, adminCaller(c.r)...)
	}
	if err != nil {
		return adminError(http.StatusServiceUnavailable, "the client may have changed or not, so look at it: the token store: %w", err)
	}
	if next == nil {
		c.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	shown := showManaged(c.realm.name, c.id, next)
	if secret != nil {
		shown.Secret = *secret
	}
	c.w.Header().Set("ETag", etag(version))
	c.w.Header().Set("Cache-Control", "no-store")
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(status)
	return json.NewEncoder(c.w).Encode(shown) //nolint:gosec // whoever asked for a secret gets it, this once
}

// clientAudit is a change of a managed client, for the log.
type clientAudit struct {
	event string
	// was and next are what was before, and what is now; nil for no client.
	was, next *managedRecord
	// tokensEnded is set if all tokens of the client have ended with the change.
	tokensEnded bool
	// err is set if nobody can tell whether the change was made.
	err error
}

// logChange writes the event of a change, without secrets. by says who has made it, or why.
func (a *App) logChange(realm *servedRealm, id string, audit clientAudit, by ...zap.Field) {
	fields := []zap.Field{zap.String("event", audit.event), zap.String("realm", realm.name), zap.String("client_id", id)}
	for _, side := range []struct {
		name   string
		record *managedRecord
	}{{"before", audit.was}, {"after", audit.next}} {
		if side.record == nil {
			continue
		}
		if text, err := json.Marshal(showManaged(realm.name, id, side.record)); err == nil { //nolint:gosec // it has no secret
			fields = append(fields, zap.Any(side.name, json.RawMessage(text)))
		}
	}
	if audit.tokensEnded {
		fields = append(fields, zap.Bool("tokens_revoked", true))
	}
	level, message := zap.InfoLevel, strings.ReplaceAll(audit.event, "_", " ")
	if audit.err != nil {
		level, message = zap.WarnLevel, message+", or not: the token store could not say"
		fields = append(fields, zap.Error(audit.err))
	}
	a.logger.Log(level, message, append(fields, by...)...)
}

// endManaged ends all tokens of managed clients, and returns how many of them there are.
func (a *App) endManaged(ctx context.Context, realm *servedRealm, ids ...string) (int, error) {
	ended := 0
	always := func(_, _ *managedRecord) bool { return true }
	changed, err := a.changeAllManaged(ctx, realm, ids, always, func(_ string, was *managedRecord, _ uint64) (*managedRecord, error) {
		if was == nil {
			return nil, nil
		}
		next := *was
		return &next, nil
	})
	for _, client := range changed {
		if client.next != nil {
			ended++
		}
	}
	return ended, err
}
