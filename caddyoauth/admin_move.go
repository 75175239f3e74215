package caddyoauth

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// Managed clients move from one store to another, as from a bbolt file to Redis:
//
//	POST /oauth/clients/export   answers with all of them, with the hashes of their secrets
//	POST /oauth/clients/import   adds those of an export, at most maxImported at a time
//
// Tokens don't move. Whoever has an export can guess at secrets that a person has chosen, so it takes a
// POST with JSON, no browser gets one, not even for the console, and it is logged.

// exportVersion is the version of the exports that this program writes. It refuses those of a later
// one: a setting that it doesn't know may be one that restricts.
const exportVersion = 1

const (
	// maxImported bounds the clients of one import, and of other changes of many. They change together,
	// and other gateways hear of each.
	maxImported = 500
	// maxImportBody bounds the body of an import, in bytes. It has room for as many clients as there may be,
	// of which each would fit a PUT.
	maxImportBody = 2 * maxImported * maxAdminBody
	// maxRefusalsTold bounds how many refused clients an answer names.
	maxRefusalsTold = 10
)

// exportRequest is the body of a POST for an export.
type exportRequest struct {
	// Realm is the one whose clients are meant; empty for all.
	Realm string `json:"realm,omitempty"`
}

// exportedClients is an export: all managed clients, by realm and ID.
type exportedClients struct {
	// Version is that of this form; see exportVersion.
	Version int              `json:"version"`
	Clients []exportedClient `json:"clients"`
}

// exportedClient is a managed client as it moves.
type exportedClient struct {
	Realm string `json:"realm"`
	ID    string `json:"id"`
	// Settings are all of them, with the hashes of secrets.
	Settings Client `json:"settings"`
	// Created and Changed are when it was added, and last changed.
	Created time.Time `json:"created,omitzero"`
	Changed time.Time `json:"changed,omitzero"`
	// Use is what it did last, as far as that is known.
	Use *exportedUse `json:"use,omitempty"`
}

// exportedUse is what is kept of what a client did last.
type exportedUse struct {
	// Token is when it fetched a token, Seen when it did something else.
	Token time.Time `json:"token,omitzero"`
	Seen  time.Time `json:"seen,omitzero"`
	// From is where the last of all this came from.
	From string `json:"from,omitempty"`
	// Method and Credential are those by which it authenticated last.
	Method     string `json:"method,omitempty"`
	Credential string `json:"credential,omitempty"`
	// Credentials are when each of its credentials authenticated it last, by their IDs. Dropped is when the
	// last of those that are left out did.
	Credentials map[string]time.Time `json:"credentials,omitempty"`
	Dropped     time.Time            `json:"dropped,omitzero"`
}

// exportUse returns what is kept of a client, or nil if that is nothing.
func exportUse(use oauth.Use) *exportedUse {
	if use.Last().IsZero() {
		return nil
	}
	exported := exportedUse(use)
	return &exported
}

// use returns what is to be kept, no more exact than addresses says. Nothing was used later than now: that
// would be found unused only long after it is.
func (u *exportedUse) use(addresses string, now time.Time) oauth.Use {
	past := func(at time.Time) time.Time {
		if at.After(now) {
			return now
		}
		return at.UTC()
	}
	use := oauth.Use{Token: past(u.Token), Seen: past(u.Seen), From: oauth.CutAddress(u.From, addresses), Dropped: past(u.Dropped), Credentials: make(map[string]time.Time)}
	for name, at := range u.Credentials {
		use.Credentials[name] = past(at)
	}
	if slices.Contains(oauth.AuthMethods(), u.Method) {
		use.Method, use.Credential = u.Method, u.Credential
	}
	return use
}

// serveExport answers with the managed clients.
func serveExport(w http.ResponseWriter, r *http.Request) error {
	if fromBrowser(r.Header) {
		return adminError(http.StatusForbidden, "no page gets an export: take 'caddy oauth client export'")
	}
	var asked exportRequest
	app, err := readAdminPost(w, r, &asked, "realm, a string, or with nothing in it")
	if err != nil {
		return err
	}
	names := sortedKeys(app.realms)
	if asked.Realm != "" {
		if app.realms[asked.Realm] == nil {
			return unknownRealm(asked.Realm, names)
		}
		names = []string{asked.Realm}
	}
	export := exportedClients{Version: exportVersion, Clients: []exportedClient{}}
	for _, name := range names {
		clients, err := app.exportRealm(r.Context(), app.realms[name])
		if err != nil {
			return adminError(http.StatusServiceUnavailable, "realm '%s': %w", name, err)
		}
		export.Clients = append(export.Clients, clients...)
	}
	// Before the answer: whoever gets a part of it has that.
	app.logger.Info("clients exported", append([]zap.Field{zap.String("event", "clients_exported"), zap.String("realm", asked.Realm), zap.Int("clients", len(export.Clients))}, adminCaller(r)...)...)
	return answerJSON(w, export)
}

// exportRealm returns the managed clients of a realm as the store has them, sorted. One that can't be
// read is an error: an export with clients missing would lose them.
func (a *App) exportRealm(ctx context.Context, r *servedRealm) ([]exportedClient, error) {
	if r.managed == nil || a.run.opened.clients == nil {
		return nil, nil
	}
	answer, err := a.run.opened.clients.ManagedClients(ctx, r.name, "")
	if err != nil {
		return nil, fmt.Errorf("the token store: %w", err)
	}
	uses, err := a.usesOf(ctx, r, nil)
	if err != nil {
		return nil, fmt.Errorf("the token store: %w", err)
	}
	latest := make(map[string]oauth.ManagedClient, len(answer.Clients)) // one may be there twice
	for _, stored := range answer.Clients {
		latest[stored.ID] = stored
	}
	clients := make([]exportedClient, 0, len(latest))
	for _, id := range sortedKeys(latest) {
		if latest[id].Data == nil {
			continue
		}
		record, err := readManaged(latest[id])
		if err != nil {
			return nil, fmt.Errorf("client '%s': %w", loggedText(id), err)
		}
		clients = append(clients, exportedClient{Realm: r.name, ID: id, Settings: record.Client, Created: record.Created, Changed: record.Changed, Use: exportUse(uses.Clients[id])})
	}
	return clients, nil
}

// importRequest is the body of an import: an export, or a part of one.
type importRequest struct {
	exportedClients
	// Existing says what becomes of a client that is here already, with other settings: it is refused,
	// kept as it is, or replaced by the one of the import. The default is to refuse.
	Existing string `json:"existing,omitempty"`
	// Check only says what would be done.
	Check bool `json:"check,omitempty"`
}

// What becomes of clients that are here already.
const (
	existingRefuse  = "refuse"
	existingKeep    = "keep"
	existingReplace = "replace"
)

// importAnswer says how many clients were added, how many were replaced, and how many stayed as they
// were: Same because they were the same, Kept because the import said so.
type importAnswer struct {
	Added    int `json:"added"`
	Replaced int `json:"replaced"`
	Same     int `json:"same"`
	Kept     int `json:"kept"`
}

// add adds the numbers of another answer.
func (a *importAnswer) add(other importAnswer) {
	a.Added += other.Added
	a.Replaced += other.Replaced
	a.Same += other.Same
	a.Kept += other.Kept
}

// serveImport adds the clients of an export. If one is refused, it does nothing. The clients of a realm
// change together.
func serveImport(w http.ResponseWriter, r *http.Request) error {
	var asked importRequest
	app, err := readLongAdminPost(w, r, maxImportBody, &asked, "version and clients, as in an export, and existing and check")
	if err != nil {
		return err
	}
	if err := asked.check(); err != nil {
		return adminError(http.StatusBadRequest, "%w", err)
	}
	i := importing{app: app, existing: asked.Existing, byRealm: make(map[string]map[string]exportedClient)}
	for _, client := range asked.Clients {
		if i.byRealm[client.Realm] == nil {
			i.byRealm[client.Realm] = make(map[string]exportedClient)
		}
		if _, twice := i.byRealm[client.Realm][client.ID]; twice {
			return adminError(http.StatusBadRequest, "realm '%s' has client '%s' twice", loggedText(client.Realm), loggedText(client.ID))
		}
		i.byRealm[client.Realm][client.ID] = client
	}
	// All are checked before any is added.
	answer, err := i.run(r, true)
	if err == nil && !asked.Check {
		answer, err = i.run(r, false)
	}
	if err != nil {
		return err
	}
	return answerJSON(w, answer)
}

// check finds what doesn't make sense for any gateway.
func (q *importRequest) check() error {
	switch {
	case q.Version > exportVersion:
		return fmt.Errorf("a later version of the gateway has made this export (version %d, this program knows %d)", q.Version, exportVersion)
	case q.Version < 1:
		return errors.New("it is no export: it has no version")
	case len(q.Clients) > maxImported:
		return fmt.Errorf("there are %d clients in it; %d at a time are the most", len(q.Clients), maxImported)
	}
	q.Existing = cmp.Or(q.Existing, existingRefuse)
	return conf.OneOf("existing", q.Existing, existingKeep, existingRefuse, existingReplace)
}

// importing is an import.
type importing struct {
	app      *App
	existing string
	// fetched is how many sets of keys are to be fetched for those of a realm that were looked at.
	fetched int
	// kept are those of a realm that stay as they are, although the import has others.
	kept map[string]bool
	// checked are those of a realm that were looked at, and are good so far.
	checked []*oauth.Client
	byRealm map[string]map[string]exportedClient
}

// errChecked ends a change that was only to be checked.
var errChecked = errors.New("it was only checked")

// run imports the clients, or only checks whether it can.
func (i *importing) run(r *http.Request, onlyCheck bool) (answer importAnswer, err error) {
	var refusals []string
	for _, name := range sortedKeys(i.byRealm) {
		realm, clients := i.app.realms[name], i.byRealm[name]
		ids := sortedKeys(clients)
		if realm == nil {
			return answer, unknownRealm(name, sortedKeys(i.app.realms))
		}
		if realm.managed == nil || i.app.run.opened.clients == nil {
			return answer, i.app.mayChange(realm, "")
		}
		var counted importAnswer
		var refused []string
		changed, err := i.app.changeAllManaged(r.Context(), realm, ids, endsTokens, func(id string, was *managedRecord, _ uint64) (*managedRecord, error) {
			if id == ids[0] { // it may be called again for all of them
				counted, refused, i.fetched, i.kept, i.checked = importAnswer{}, nil, 0, make(map[string]bool), nil
			}
			next, err := i.next(realm, clients[id], was, &counted)
			if err != nil {
				refused = append(refused, fmt.Sprintf("client '%s' of realm '%s': %v", loggedText(id), realm.name, err))
			}
			if id == ids[len(ids)-1] && (onlyCheck || refused != nil) {
				return nil, errChecked
			}
			return next, nil
		})
		refusals = append(refusals, refused...)
		answer.add(counted)
		if refused == nil && !errors.Is(err, errChecked) {
			i.log(r, realm, changed, err)
			if err == nil {
				err = i.addUses(r.Context(), realm, clients)
			}
		}
		var conflict caddy.APIError
		if errors.As(err, &conflict) {
			return answer, conflict
		}
		if err != nil && !errors.Is(err, errChecked) {
			return answer, adminError(http.StatusServiceUnavailable, "the clients of realm '%s' may have been imported or not, so try again: the token store: %w", realm.name, err)
		}
	}
	if len(refusals) > 0 {
		more, what := "", "nothing was imported"
		if !onlyCheck { // they were not refused a moment ago
			what = "clients have changed meanwhile, and those of some realms were not imported"
		}
		if len(refusals) > maxRefusalsTold {
			more = fmt.Sprintf("; and %d more", len(refusals)-maxRefusalsTold)
			refusals = refusals[:maxRefusalsTold]
		}
		return answer, adminError(http.StatusConflict, "%s: %s%s", what, strings.Join(refusals, "; "), more)
	}
	return answer, nil
}

// endsTokens reports whether a client loses its tokens for good with a change, as one that is disabled
// does.
func endsTokens(was, next *managedRecord) bool { return next.Client.Disabled && !was.Client.Disabled }

// next returns what a client is to be, and counts it. The error says why it can't be imported.
func (i *importing) next(realm *servedRealm, client exportedClient, was *managedRecord, counted *importAnswer) (*managedRecord, error) {
	var refused caddy.APIError
	if err := i.app.mayChange(realm, client.ID); errors.As(err, &refused) {
		return nil, refused.Err
	}
	next := &managedRecord{Client: client.Settings, Created: client.Created.UTC(), Imported: time.Now().UTC().Truncate(time.Millisecond)}
	if next.Created.After(next.Imported) || next.Created.Year() < 1 {
		next.Created = time.Time{} // it is now
	}
	text, err := json.Marshal(&next.Client)
	switch {
	case err != nil:
		return nil, err
	case len(text) > maxAdminBody:
		return nil, fmt.Errorf("its settings have more than %d bytes", maxAdminBody)
	case was != nil && sameSettings(&was.Client, text):
		counted.Same++
		return was, nil
	case was != nil && i.existing == existingKeep:
		counted.Kept++
		i.kept[client.ID] = true
		return was, nil
	}
	provisioned, keys, err := realm.provisionManaged(client.ID, &next.Client)
	if err != nil {
		return nil, err
	}
	if err := realm.mayHaveHashes(append(slices.Clip(i.checked), provisioned)...); err != nil {
		return nil, err
	}
	i.checked = append(i.checked, provisioned)
	fetched, err := i.app.mayHaveKeys(realm, client.ID, keys, i.fetched)
	if errors.As(err, &refused) {
		return nil, refused.Err
	}
	i.fetched += fetched
	switch {
	case was == nil:
		counted.Added++
	case i.existing == existingReplace:
		next.Created, next.Imported = was.Created, was.Imported
		counted.Replaced++
	default:
		return nil, errors.New("there is one with other settings: say whether to keep or to replace it")
	}
	return next, nil
}

// sameSettings reports whether a client has these settings and secrets.
func sameSettings(client *Client, settings []byte) bool {
	text, err := json.Marshal(client)
	return err == nil && bytes.Equal(text, settings)
}

// addUses merges what clients did last into what is kept of them here.
func (i *importing) addUses(ctx context.Context, realm *servedRealm, clients map[string]exportedClient) error {
	uses, now := make(map[string]oauth.Use), time.Now().UTC()
	for id, client := range clients {
		if client.Use != nil && !i.kept[id] {
			uses[id] = client.Use.use(realm.settings.InventoryAddresses, now)
		}
	}
	if len(uses) == 0 || i.app.run.opened.inventory == nil {
		return nil
	}
	return i.app.run.opened.inventory.Add(context.WithoutCancel(ctx), realm.name, uses)
}

// log writes an event for each client that has changed. err is set if nobody can tell whether it has.
func (i *importing) log(r *http.Request, realm *servedRealm, changed []changedClient, err error) {
	for _, c := range changed {
		audit := clientAudit{event: "client_changed", was: c.was, next: c.next, err: err}
		switch {
		case c.next == c.was:
			continue
		case c.was == nil:
			audit.event = "client_added"
		default:
			audit.tokensEnded = endsTokens(c.was, c.next)
		}
		i.app.logChange(realm, c.id, audit, adminCaller(r)...)
	}
}
