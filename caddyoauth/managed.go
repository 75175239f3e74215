package caddyoauth

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// Managed clients are those of no configuration: operators add them while gateways run, by the admin
// endpoint, and they lie in the token store. So a fleet has one truth about them, and a reload changes
// nothing. A client of the configuration that has the same ID counts instead.

// managedRealm is what a realm with managed clients gives to those that say nothing of their own.
type managedRealm struct {
	format   string
	lifetime caddy.Duration
	scopes   []string
	limits   Limits

	// unusable are those that can't be used here.
	unusable unusableClients
}

// unusableClients are the managed clients of a realm that the engine doesn't know because this program, or
// this configuration, can't use them: at most as many as the store keeps. The zero value has none, and is
// safe to share.
type unusableClients struct {
	mu   sync.Mutex
	byID map[string]unusableClient
}

// unusableClient is why a client can't be used, since when it is there, if that can be read, and its version.
type unusableClient struct {
	why     string
	since   time.Time
	version uint64
}

// take goes by what is known now of some clients, or with all set of all: which of them can't be used.
func (u *unusableClients) take(ids iter.Seq[string], unusable map[string]unusableClient, all bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if all || u.byID == nil {
		u.byID = unusable
		return
	}
	for id := range ids {
		delete(u.byID, id)
	}
	maps.Copy(u.byID, unusable)
}

// find returns one of them.
func (u *unusableClients) find(id string) (client unusableClient, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	client, ok = u.byID[id]
	return client, ok
}

// version returns the version of one of them.
func (u *unusableClients) version(id string) (version uint64, ok bool) {
	client, ok := u.find(id)
	return client.version, ok
}

// among returns the IDs of these clients and others, which are sorted, each once and sorted.
func (u *unusableClients) among(ids []string) []string {
	u.mu.Lock()
	unusable := slices.Collect(maps.Keys(u.byID))
	u.mu.Unlock() // requests may wait for it
	if len(unusable) == 0 {
		return ids
	}
	ids = slices.Concat(ids, unusable)
	slices.Sort(ids)
	return slices.Compact(ids)
}

// managedRecord is what the store keeps of a managed client. It holds hashes of secrets alone.
type managedRecord struct {
	// Version is that of this form; see managedRecordVersion.
	Version int `json:"v"`
	// Client are its settings.
	Client Client `json:"client"`
	// Created and Changed are when it was added, and last changed.
	Created time.Time `json:"created"`
	Changed time.Time `json:"changed"`
	// Imported is when it came from another store; zero if it never did. What it did before may not be
	// known here, so that it did nothing counts from then.
	Imported time.Time `json:"imported,omitzero"`
	// Idle is since when the disuse of each secret counts, by its ID: since it was added, or since the
	// client was enabled again.
	Idle map[string]time.Time `json:"idle,omitempty"`
}

// there returns since when the client has been here.
func (m *managedRecord) there() time.Time {
	if m.Imported.After(m.Created) {
		return m.Imported
	}
	return m.Created
}

// managedRecordVersion is the version of the records that this program writes. It can't tell what those
// of a later one mean, so such a client can't authenticate here.
const managedRecordVersion = 1

// readManaged decodes what the store keeps of a managed client.
func readManaged(stored oauth.ManagedClient) (record managedRecord, err error) {
	decoder := json.NewDecoder(bytes.NewReader(stored.Data))
	decoder.DisallowUnknownFields() // a setting that this program doesn't know may be one that restricts
	switch err := decoder.Decode(&record); {
	case record.Version > managedRecordVersion:
		return record, fmt.Errorf("a later version of the gateway has written it (version %d, this program knows %d)", record.Version, managedRecordVersion)
	case err != nil || record.Version < 1:
		return record, errors.New("what the store keeps of it can't be read")
	}
	return record, nil
}

// provisionManaged checks the settings of a managed client, and turns them into what the engine uses, but
// for the keys that verify its assertions: it says where they are, and opens nothing.
func (r *servedRealm) provisionManaged(id string, cc *Client) (client *oauth.Client, keys managedKeys, err error) {
	if client, err = r.provisionManagedSettings(id, cc); err != nil {
		return nil, keys, err
	}
	keys, err = r.provisionManagedKeys(id, cc, client)
	return client, keys, err
}

// provisionManagedSettings is provisionManaged for all but the keys.
func (r *servedRealm) provisionManagedSettings(id string, cc *Client) (*oauth.Client, error) {
	if id == "." || id == ".." {
		return nil, errors.New("no browser can ask for a client of this ID: give it another")
	}
	if err := cc.checkManaged(); err != nil {
		return nil, err
	}
	if r.federated[id] != nil {
		return nil, errors.New("there is a federated of this name, so nobody could tell the client's assertions from those of the issuer; give it another ID")
	}
	m := r.managed
	client, err := r.am.client(cc).provision(id, m.format, m.lifetime, m.scopes, m.limits, zap.NewNop())
	if err != nil {
		return nil, err
	}
	client.Introspect = cmp.Or(r.am.introspects(cc), client.Introspect)
	client.Auth = r.am.authMethods(client)
	if _, err := cc.provisionCertificates(client, zap.NewNop()); err != nil { // checkManaged refuses files
		return nil, err
	}
	if client.DPoPRequired && r.settings.Proofs == nil {
		return nil, errors.New("dpop required: the realm judges no proofs; give the oauth block a dpop")
	}
	if oauth.SelfContained(client.TokenFormat) && !r.hasKeys() {
		return nil, fmt.Errorf("token_format %s: the realm has no keys for such tokens; give it that token_format, or signing", client.TokenFormat)
	}
	if oauth.SelfContained(client.TokenFormat) && client.TokenLifetime > time.Duration(m.lifetime) {
		return nil, fmt.Errorf("token_lifetime %s: it may be at most the realm's, %s, for token_format %s, because that is how long old keys are kept", client.TokenLifetime, time.Duration(m.lifetime), client.TokenFormat)
	}
	if client.TokenFormat == oauth.FormatJWT && (r.signing == nil || r.settings.Issuer == "") {
		return nil, errors.New("token_format jwt: the realm signs nothing; give it signing and an issuer")
	}
	return client, nil
}

// managedMethods returns the methods by which managed clients may authenticate.
func (r *servedRealm) managedMethods() []string {
	if r.issuer == nil {
		return secretMethods
	}
	return append([]string{oauth.AuthPrivateKeyJWT}, secretMethods...)
}

// checkManaged refuses what only a client of a configuration can have: what lies in a file or in the
// environment of one gateway is no truth for a fleet.
func (cc *Client) checkManaged() error {
	for _, has := range [...]struct {
		name string
		set  bool
	}{
		{"at", cc.At != ""}, {"certificate_files", len(cc.CertificateFiles) > 0}, {"jwks_file", cc.JWKSFile != ""},
		{"lint_ignore", len(cc.LintIgnore) > 0}, {"upstream_headers", len(cc.UpstreamHeaders) > 0},
	} {
		if has.set {
			return fmt.Errorf("%s is for clients of a configuration", has.name)
		}
	}
	if strings.Contains(cc.JWKSURI, "{") {
		return errors.New("jwks_uri: a placeholder is for clients of a configuration")
	}
	for _, f := range cc.Federated {
		if err := f.checkManaged(); err != nil {
			return err
		}
	}
	if len(cc.Secrets) > maxSecrets {
		return fmt.Errorf("it has %d secrets; %d are the most", len(cc.Secrets), maxSecrets)
	}
	for i, secret := range cc.Secrets {
		if secret.Secret != "" || secret.Hash == "" || conf.IsSecretReference(secret.Hash) {
			return fmt.Errorf("secret %d: give its hash, which 'caddy oauth hash-secret' makes, and no reference", i+1)
		}
		if slices.ContainsFunc(cc.Secrets[:i], func(s ClientSecret) bool { return s.Hash == secret.Hash }) {
			return fmt.Errorf("secret %d is there twice", i+1) // by its ID, both would be meant
		}
	}
	return nil
}

// maxSlowHashes bounds how many slow hashes managed clients can have a failed authentication compute, which
// is all that anybody's failure could compute: of each kind, with other parameters being another kind, as
// many as the client with the most of them has. Otherwise an import from a system whose parameters differ
// from client to client would let strangers burn the gateway's time. Those of the configuration count,
// and are its own business.
const maxSlowHashes = 10

// mayHaveHashes refuses managed clients that are to be added or changed, if their hashes would be of too
// many kinds.
func (r *servedRealm) mayHaveHashes(clients ...*oauth.Client) error {
	if now, then := r.engine.SlowHashes(clients...); then > now && then > maxSlowHashes {
		return fmt.Errorf("with its hashes, whoever fails to authenticate has the gateway compute %d slow ones, as many of each kind as a client has, and %d are the most: use the kind and parameters of other clients' hashes, or a generated secret; those of clients that are gone count until the configuration is loaded anew", then, maxSlowHashes)
	}
	return nil
}

// isManaged reports whether the realm has a managed client of that ID.
func (r *servedRealm) isManaged(id string) bool {
	if r.managed == nil || r.engine == nil {
		return false
	}
	_, ok := r.engine.ManagedByID(id)
	return ok
}

// useManaged has a realm's engine go by what the store keeps of managed clients. With all set, there are no
// others. A client that can't be used here is reported, and the engine doesn't get it: it can't authenticate,
// and its tokens are refused. The caller holds run.agreeing.
func (a *App) useManaged(r *servedRealm, stored []oauth.ManagedClient, all bool) error {
	if r.opened.closed {
		return nil // the configuration has ended
	}
	clients, used := make(map[string]*oauth.Managed, len(stored)), make(map[string]clientKeys)
	unusable := make(map[string]unusableClient)
	for i, parsed := range r.parseManaged(stored) {
		s := stored[i]
		if err := r.opened.giveBack(used[s.ID]); err != nil { // if it is there twice, the later one counts
			return err
		}
		delete(unusable, s.ID)
		if parsed.known != nil {
			clients[s.ID] = parsed.known
			delete(used, s.ID)
			continue
		}
		clients[s.ID], used[s.ID] = nil, clientKeys{}
		if s.Data == nil {
			continue
		}
		err := parsed.err
		if err == nil {
			used[s.ID], err = r.opened.open(r, parsed.client, parsed.keys)
		}
		if err != nil {
			a.logger.Error("a managed client can't be used: it can't authenticate, and its tokens are refused", zap.String("realm", r.name), zap.String("client_id", loggedText(s.ID)), zap.Error(err))
			unusable[s.ID] = unusableClient{err.Error(), parsed.created, s.Version}
			continue
		}
		if r.settings.Clients[s.ID] != nil {
			a.logger.Warn("a managed client has the ID of a client of the configuration, which counts instead", zap.String("realm", r.name), zap.String("client_id", loggedText(s.ID)))
		}
		clients[s.ID] = &oauth.Managed{Client: parsed.client, Version: s.Version, Generation: s.Generation, Created: parsed.created}
	}
	r.managed.unusable.take(maps.Keys(clients), unusable, all)
	r.engine.SetManaged(clients, all)
	if all {
		for id := range r.opened.clients {
			if clients[id] == nil {
				used[id] = clientKeys{}
			}
		}
	}
	return r.opened.replace(used)
}

// parsedManaged is what the store keeps of a managed client, as the engine is to use it: known, if it has
// this version of it already, or client, its keys and when it was added, or why it can't be used. Of a
// client that was removed there is none of that.
type parsedManaged struct {
	known   *oauth.Managed
	client  *oauth.Client
	keys    managedKeys
	created time.Time
	err     error
}

// parseManaged reads and checks what the store keeps of managed clients, on all processors if there are
// many: a start waits for it.
func (r *servedRealm) parseManaged(stored []oauth.ManagedClient) []parsedManaged {
	parsed := make([]parsedManaged, len(stored))
	parse := func(i int) {
		s, p := stored[i], &parsed[i]
		if s.Data == nil {
			return
		}
		if known, ok := r.engine.ManagedByID(s.ID); ok && known.Version == s.Version {
			p.known = &known
			return
		}
		var record managedRecord
		if record, p.err = readManaged(s); p.err == nil {
			p.client, p.keys, p.err = r.provisionManaged(s.ID, &record.Client)
			p.created = record.there()
		}
	}
	each := len(stored)/runtime.GOMAXPROCS(0) + 1
	var group sync.WaitGroup
	for from := 0; from < len(stored); from += max(each, 1000) {
		group.Go(func() {
			for i := from; i < min(from+max(each, 1000), len(stored)); i++ {
				parse(i)
			}
		})
	}
	group.Wait()
	return parsed
}

// managedChange is a change of a managed client. It gets the record as it is, nil if there is no such
// client, and returns what it is to be, nil for none. It may be called several times.
type managedChange func(was *managedRecord, version uint64) (*managedRecord, error)

// changeManaged changes a managed client in the store, and has every App that uses the store go by it
// before it returns. ends says whether the client's tokens end. It returns what was, nil for none, and
// what is, with its version. After an error that is not the change's own, the client may have changed
// or not.
func (a *App) changeManaged(ctx context.Context, r *servedRealm, id string, ends func(was, next *managedRecord) bool, change managedChange) (was, next *managedRecord, version uint64, err error) {
	changed, err := a.changeAllManaged(ctx, r, []string{id}, ends, func(_ string, was *managedRecord, version uint64) (*managedRecord, error) {
		return change(was, version)
	})
	if len(changed) == 0 {
		return nil, nil, 0, err
	}
	return changed[0].was, changed[0].next, changed[0].version, err
}

// changedClient is what has become of a managed client: what was, nil for none, and what is, with its
// version.
type changedClient struct {
	id        string
	was, next *managedRecord
	version   uint64
}

// changeAllManaged is changeManaged for several clients of a realm: all change, or none does. A change
// that returns what it was given leaves the client as it is.
func (a *App) changeAllManaged(ctx context.Context, r *servedRealm, ids []string, ends func(was, next *managedRecord) bool, change func(id string, was *managedRecord, version uint64) (*managedRecord, error)) ([]changedClient, error) {
	store := a.run.opened.clients
	// Whoever asked may go away. If the store did it all the same, the engines must go by it.
	ctx = context.WithoutCancel(ctx)
	if a.run.opened.coherent != nil {
		// A store that reports changes reports this one, too, if it is carried out later. With another,
		// wait for as long as it takes.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, startTimeout)
		defer cancel()
	}
	for {
		var all []changedClient
		var writes []oauth.ManagedClient
		var written []string
		for _, id := range ids {
			c := changedClient{id: id}
			stored, err := store.ManagedClient(ctx, oauth.ClientRef{Realm: r.name, ClientID: id})
			switch {
			case err == nil:
				record, err := readManaged(stored)
				if err != nil {
					return nil, adminError(http.StatusConflict, "client '%s': %w", loggedText(id), err)
				}
				c.was = &record
			case !errors.Is(err, oauth.ErrNotFound):
				return nil, err
			}
			c.version = stored.Version
			if c.next, err = change(id, c.was, stored.Version); err != nil {
				// The error may tell of a change by somebody who has had no answer yet. It must be in
				// force before anybody is told.
				return nil, cmp.Or(a.run.opened.shareManaged(ctx, r.name, []string{id}), err)
			}
			if all = append(all, c); c.next != nil && c.next == c.was {
				continue
			}
			write := oauth.ManagedClient{ID: id, Version: stored.Version, Generation: stored.Generation}
			if c.next != nil {
				c.next.Version, c.next.Changed = managedRecordVersion, time.Now().UTC().Truncate(time.Millisecond)
				if c.next.Created.IsZero() {
					c.next.Created = c.next.Changed
				}
				c.next.countDisuse(c.was)
				if c.was == nil || ends(c.was, c.next) {
					// By the clock, so a client that was removed and is added anew doesn't get the
					// generation that it had.
					write.Generation = max(stored.Generation+1, uint64(time.Now().UnixMicro()))
				}
				if write.Data, err = json.Marshal(c.next); err != nil {
					return nil, err
				}
			}
			writes, written = append(writes, write), append(written, id)
		}
		versions, err := store.SwapManagedClients(ctx, r.name, writes)
		if errors.Is(err, oauth.ErrChanged) {
			continue // somebody was quicker
		}
		for i, next := 0, 0; i < len(all) && next < len(versions); i++ {
			if all[i].id == written[next] {
				all[i].version = versions[next]
				next++
			}
		}
		// Whatever the store said: it may have done it.
		shared := a.run.opened.shareManaged(ctx, r.name, written)
		return all, errors.Join(err, shared)
	}
}
