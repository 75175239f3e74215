package caddyoauth

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// The list of clients, GET /oauth/clients. Which clients it has, and in which order, the engines know;
// what they did last comes from the inventory. The store is asked about those alone that are shown, and
// about many at a time.

// listedClients is a page of clients.
type listedClients struct {
	Clients []shownClient `json:"clients"`
	// Next is the value of after that has the next page; empty on the last one.
	Next string `json:"next,omitempty"`
	// UsesSince is since when it is known what clients do, if the question was about that.
	UsesSince time.Time `json:"uses_since,omitzero"`
}

const (
	defaultClientsPage = 100
	maxClientsPage     = 1000
	// clientsStep is about how many clients are looked at together.
	clientsStep = 1000
)

// listParameters are those of the question, sorted.
var listParameters = []string{"after", "expiring", "limit", "managed", "realm", "search", "state", "unused"}

// What the parameters state and managed can be.
const (
	stateActive   = "active"
	stateDisabled = "disabled"
	stateUnusable = "unusable"
)

// clientFilter says which clients are listed. The zero value lists all.
type clientFilter struct {
	// search is a part of their IDs, in small letters.
	search string
	// state and managed are as in the parameters; empty for all kinds.
	state, managed string
	// unused is for how long they have done nothing, and expiring how soon a secret ends. Zero is for
	// any.
	unused, expiring time.Duration
	now              time.Time
}

// listedClient is a client that may be listed.
type listedClient struct {
	*oauth.Client
	managed bool
	created time.Time // zero unless managed
	// unusable is why it can't be used here; empty if it can. Of one that can't, nothing but its ID is known.
	unusable string
}

func (c listedClient) state() string {
	switch {
	case c.unusable != "":
		return stateUnusable
	case c.Disabled:
		return stateDisabled
	}
	return stateActive
}

// serveClients lists clients.
func serveClients(w http.ResponseWriter, r *http.Request) error {
	app, err := readAdminGet(w, r)
	if err != nil {
		return err
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil { // what can't be read may be a condition
		return adminError(http.StatusBadRequest, "the query can't be read: its parameters are separated by &, and percent-encoded")
	}
	names := sortedKeys(app.realms)
	if name := query.Get("realm"); name != "" {
		if app.realms[name] == nil {
			return unknownRealm(name, names)
		}
		names = []string{name}
	}
	limit := defaultClientsPage
	if text := query.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > maxClientsPage {
			return adminError(http.StatusBadRequest, "limit must be a number from 1 to %d", maxClientsPage)
		}
	}
	filter, err := readFilter(query)
	if err != nil {
		return adminError(http.StatusBadRequest, "%w", err)
	}
	afterRealm, afterID, ok := readCursor(query)
	if !ok {
		return adminError(http.StatusBadRequest, "after is not what this gateway has answered as next to the same question: begin without it")
	}
	l := listing{app: app, filter: filter, limit: limit, realm: afterRealm, id: afterID, page: listedClients{Clients: []shownClient{}}}
	for _, name := range names {
		if name < afterRealm {
			continue
		}
		more, err := l.add(r.Context(), app.realms[name])
		if err != nil {
			return adminError(http.StatusServiceUnavailable, "the token store: %w", err)
		}
		if more {
			l.page.Next = cursor(query, l.realm, l.id)
			break
		}
	}
	return answerJSON(w, l.page)
}

// readFilter reads the parameters that say which clients are wanted. One that is not known is refused:
// whoever has misspelt it would take all clients for those that were asked for.
func readFilter(query url.Values) (clientFilter, error) {
	filter := clientFilter{search: strings.ToLower(query.Get("search")), state: query.Get("state"), managed: query.Get("managed"), now: time.Now()}
	for _, name := range sortedKeys(query) {
		if !slices.Contains(listParameters, name) {
			return filter, fmt.Errorf("unknown parameter '%s' (known: %s)", loggedText(name), strings.Join(listParameters, ", "))
		}
		if name != "after" && query.Get(name) == "" {
			return filter, fmt.Errorf("%s is empty: leave it out", name)
		}
		if len(query[name]) > 1 {
			return filter, fmt.Errorf("there is more than one %s", name)
		}
	}
	for name, c := range map[string]struct {
		value string
		known []string
	}{"state": {filter.state, []string{stateActive, stateDisabled, stateUnusable}}, "managed": {filter.managed, []string{"true", "false"}}} {
		if c.value != "" && !slices.Contains(c.known, c.value) {
			return filter, fmt.Errorf("%s must be %s", name, alternatives(c.known))
		}
	}
	for name, place := range map[string]*time.Duration{"unused": &filter.unused, "expiring": &filter.expiring} {
		if text := query.Get(name); text != "" {
			d, err := caddy.ParseDuration(text)
			if err != nil || d <= 0 {
				return filter, fmt.Errorf("%s must be a duration, such as 90d", name)
			}
			*place = d
		}
	}
	return filter, nil
}

// alternatives returns texts for people, of which one is to be chosen.
func alternatives(texts []string) string {
	last := len(texts) - 1
	return strings.Join(texts[:last], ", ") + " or " + texts[last]
}

// listing is a page of clients in the making.
type listing struct {
	app    *App
	filter clientFilter
	limit  int
	page   listedClients
	// realm and id are the client up to which all is done, in the order of the list; both are empty at the
	// beginning.
	realm, id string
}

// add adds the clients of a realm that are wanted. It reports true if the page is full and there may be
// more.
func (l *listing) add(ctx context.Context, realm *servedRealm) (more bool, err error) {
	after, step := "", clientsStep
	if realm.name == l.realm {
		after = l.id
	}
	if l.filter.unused == 0 {
		step = l.limit // all of them are shown
	}
	var part []listedClient
	for c := range realm.listed(l.filter, after) {
		if part = append(part, c); len(part) > step { // one more, to know whether there is one
			if more, err := l.addPart(ctx, realm, part); more || err != nil {
				return more, err
			}
			part = part[:0]
		}
	}
	return l.addPart(ctx, realm, part)
}

// addPart is add for some clients of a realm, of which those that were in use lately are not wanted yet.
func (l *listing) addPart(ctx context.Context, realm *servedRealm, part []listedClient) (more bool, err error) {
	if len(part) == 0 {
		return false, nil
	}
	uses, err := l.app.usesOf(ctx, realm, idsOf(part))
	if err != nil {
		return false, err
	}
	if l.filter.unused != 0 {
		if l.page.UsesSince.Before(uses.Since) {
			l.page.UsesSince = uses.Since
		}
		part = slices.DeleteFunc(part, func(c listedClient) bool {
			last, known := c.unusedSince(uses)
			return !known || l.filter.now.Sub(last) < l.filter.unused
		})
	}
	fit := min(len(part), l.limit-len(l.page.Clients))
	shown, err := l.app.showClients(ctx, realm, part[:fit])
	if err != nil {
		return false, err
	}
	for _, c := range shown {
		c.addUse(uses.Clients[c.ID], realm.settings.InventoryAddresses)
		l.page.Clients = append(l.page.Clients, c)
	}
	if fit > 0 {
		l.realm, l.id = realm.name, part[fit-1].ID
	}
	return fit < len(part), nil
}

// listed returns the clients of the realm that the filter wants, but for unused, behind the one of ID
// after, by ID.
func (r *servedRealm) listed(filter clientFilter, after string) iter.Seq[listedClient] {
	return func(yield func(listedClient) bool) {
		configured, managed := sortedKeys(r.settings.Clients), []string(nil)
		if r.engine != nil && r.managed != nil {
			managed = r.managed.unusable.among(r.engine.ManagedIDs())
		}
		behind := func(ids []string) []string {
			i, found := slices.BinarySearch(ids, after)
			if found {
				i++
			}
			return ids[i:]
		}
		for configured, managed = behind(configured), behind(managed); len(configured)+len(managed) > 0; {
			var c listedClient
			switch {
			case len(managed) == 0 || len(configured) > 0 && configured[0] <= managed[0]:
				c.Client = r.settings.Clients[configured[0]]
				if len(managed) > 0 && managed[0] == configured[0] {
					managed = managed[1:] // the one of the configuration counts instead
				}
				configured = configured[1:]
			default:
				id := managed[0]
				managed = managed[1:]
				if filter.search != "" && !strings.Contains(strings.ToLower(id), filter.search) {
					continue // without a look at the client
				}
				if client, ok := r.engine.ManagedByID(id); ok {
					c = listedClient{client.Client, true, client.Created, ""}
				} else if unusable, ok := r.managed.unusable.find(id); ok {
					c = listedClient{&oauth.Client{ID: id}, true, unusable.since, unusable.why}
				} else {
					continue // it was removed meanwhile
				}
			}
			if filter.wants(c) && !yield(c) {
				return
			}
		}
	}
}

// wants reports whether the filter wants a client, but for unused.
func (f clientFilter) wants(c listedClient) bool {
	switch {
	case f.search != "" && !strings.Contains(strings.ToLower(c.ID), f.search),
		f.state != "" && c.state() != f.state,
		f.managed != "" && c.managed != (f.managed == "true"):
		return false
	}
	return f.expiring == 0 || c.unusable == "" && expires(c.Client, f.now.Add(f.expiring), f.now)
}

// expires reports whether a secret of a client ends before a time, or all have. Those of a client that is
// disabled are nobody's concern.
func expires(client *oauth.Client, before, now time.Time) bool {
	first, all := oauth.AllEnd(client.Secrets, now)
	return !client.Disabled && (all || !first.IsZero() && first.Before(before))
}

// unusedSince returns since when a client has done nothing, and not been there. known is false if that
// can't be told: it was never seen, and is older than what is known of clients.
func (c listedClient) unusedSince(uses oauth.Uses) (since time.Time, known bool) {
	if last := uses.Clients[c.ID].Last(); !last.IsZero() {
		return last, true
	}
	since = uses.Since
	if since.Before(c.created) {
		since = c.created
	}
	return since, !uses.Since.IsZero()
}

func idsOf(clients []listedClient) []string {
	ids := make([]string, len(clients))
	for i, c := range clients {
		ids[i] = c.ID
	}
	return ids
}

// showClients returns what is shown of clients, without managed ones that were removed meanwhile.
func (a *App) showClients(ctx context.Context, realm *servedRealm, clients []listedClient) ([]shownClient, error) {
	var managed []string
	for _, c := range clients {
		if c.managed {
			managed = append(managed, c.ID)
		}
	}
	records := make(map[string]oauth.ManagedClient, len(managed))
	if len(managed) > 0 {
		stored, err := a.run.opened.clients.ManagedClientsByID(ctx, realm.name, managed)
		if err != nil {
			return nil, err
		}
		for _, s := range stored {
			records[s.ID] = s
		}
	}
	var all []shownClient
	for _, c := range clients {
		switch stored := records[c.ID]; {
		case !c.managed:
			all = append(all, a.showConfigured(realm, c.ID))
		case stored.Data != nil:
			record, err := readManaged(stored)
			if err != nil {
				all = append(all, showUnreadable(realm.name, c.ID, err))
				continue
			}
			shown := showManaged(realm.name, c.ID, &record)
			shown.Unusable = c.unusable
			all = append(all, shown)
		}
	}
	return all, nil
}

// cursorSeal seals cursors under a key of this process, so nobody comes to rely on what is in them, and a
// cursor is good until the process ends.
var cursorSeal = sync.OnceValue(func() cipher.AEAD {
	key := make([]byte, 32)
	rand.Read(key) // never fails: the runtime ends the process instead
	block, err := aes.NewCipher(key)
	if err == nil {
		var seal cipher.AEAD
		if seal, err = cipher.NewGCMWithRandomNonce(block); err == nil {
			return seal
		}
	}
	panic(err) // the length of the key is right
})

// cursor returns what has the clients that follow one, for the same question.
func cursor(query url.Values, realm, id string) string {
	return base64.RawURLEncoding.EncodeToString(cursorSeal().Seal(nil, nil, []byte(realm+"\x00"+id), questionOf(query))) //nolint:gosec // the cipher makes the nonce
}

// readCursor returns the client that the parameter after of a question stands for; empty for none. It
// returns false if that is not from an answer to this question.
func readCursor(query url.Values) (realm, id string, ok bool) {
	text := query.Get("after")
	if text == "" {
		return "", "", true
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return "", "", false
	}
	last, err := cursorSeal().Open(nil, nil, raw, questionOf(query))
	if err != nil {
		return "", "", false
	}
	return strings.Cut(string(last), "\x00")
}

// questionOf returns which clients a query asks for, on whatever pages.
func questionOf(query url.Values) []byte {
	which := maps.Clone(query)
	delete(which, "after")
	delete(which, "limit")
	return []byte(which.Encode())
}
