package caddyoauth

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// The keys that verify the assertions of managed clients, and the tokens of platforms that vouch for them.
// They come and go with the clients, while the configuration stays.

// maxFetchedKeys bounds how many sets of keys a gateway fetches for the managed clients of a realm: one for
// each client with a jwks_uri, and one for each platform that the configuration doesn't name. Each has a
// goroutine, and a request every 15 minutes. Who adds a client is refused beyond that; those who add
// clients at the same moment may exceed it by as many.
const maxFetchedKeys = 1000

// managedKeys are where the keys of a managed client are.
type managedKeys struct {
	own       *assertionKeys   // nil if it signs no assertions itself
	platforms []*federatedKeys // of each of its federated
}

// fetchesOwn reports whether keys are fetched for the client alone.
func (k managedKeys) fetchesOwn() bool { return k.own != nil && k.own.keys.JWKSURI != "" }

// provisionManagedKeys checks how a managed client authenticates by assertions, and returns where the
// keys are. It gives the engine's client the identities that platforms vouch for. It opens nothing.
func (r *servedRealm) provisionManagedKeys(id string, cc *Client, client *oauth.Client) (keys managedKeys, err error) {
	if keys.own, err = cc.assertionKeys(id, client.Auth, r.settings.Issuer); err != nil {
		return keys, err
	}
	if keys.own != nil && r.settings.Replays == nil {
		return keys, errors.New("this kind of token store can't remember which assertions were used")
	}
	if keys.own != nil {
		keys.own.lifetime = r.am.assertionLifetime()
	}
	if err := cc.checkFederatedAuth(client.Auth); err != nil {
		return keys, err
	}
	for _, f := range cc.Federated {
		identity, from, err := f.provisionManaged(r)
		if err != nil {
			return keys, fmt.Errorf("federated %s: %w", f.Issuer, err)
		}
		if r.settings.Clients[identity.Issuer] != nil {
			return keys, fmt.Errorf("federated %s: there is a client with this ID, so nobody could tell its assertions from those of the issuer", identity.Issuer)
		}
		client.Federated, keys.platforms = append(client.Federated, identity), append(keys.platforms, from)
	}
	return keys, nil
}

// provisionManaged is provision for a managed client. If the configuration names the platform, too, its
// keys are those that it says there. Otherwise they are where the metadata of the issuer says: so all
// managed clients agree on the keys of a platform, and no request at run time makes a gateway trust
// others for it.
func (f *Federated) provisionManaged(r *servedRealm) (*oauth.Federated, *federatedKeys, error) {
	known := r.federated[f.Issuer]
	if known == nil {
		if strings.HasPrefix(f.Issuer, "spiffe:") {
			return nil, nil, errors.New("a trust domain needs its bundle: have a client of the configuration name it, with a jwks_file or a jwks_uri; it may be disabled")
		}
		return f.provision(r.settings.Issuer)
	}
	if err := f.checkIdentity(); err != nil {
		return nil, nil, err
	}
	if known.keys.SPIFFE {
		if err := f.checkSVIDSubjects(known.keys.Issuer); err != nil {
			return nil, nil, err
		}
	}
	identity, err := f.identity(known.keys.Issuer, r.settings.Issuer)
	return identity, known, err
}

// checkManaged refuses what would have to be the same for all clients of the platform, or lies in a file.
func (f *Federated) checkManaged() error {
	if f == nil {
		return errors.New("federated needs the issuer of the tokens")
	}
	has := map[string]bool{
		"jwks_uri": f.JWKSURI != "", "jwks_file": f.JWKSFile != "", "private_hosts": len(f.PrivateHosts) > 0, "algorithms": len(f.Algorithms) > 0,
		"headers": len(f.Headers) > 0, "tls": f.TLS != nil, "at": f.At != "",
	}
	for _, name := range sortedKeys(has) {
		if has[name] {
			return fmt.Errorf("federated %s: %s is for a client of the configuration that names the same issuer, and counts for this one, too; it may be disabled", f.Issuer, name)
		}
	}
	if strings.Contains(f.Issuer, "{") {
		return errors.New("federated: a placeholder in the issuer is for clients of a configuration")
	}
	return nil
}

// openedKeys are the keys that are open for the managed clients of a realm. The zero value is ready.
// running.agreeing guards it.
type openedKeys struct {
	clients   map[string]clientKeys       // by client ID; those that have any
	platforms map[string]*managedPlatform // by issuer; those that the configuration doesn't name
	own       int                         // how many clients have a reference
	closed    bool
}

// clientKeys are what one client uses of them.
type clientKeys struct {
	own     *reference // in openKeys; nil if its keys are in its settings
	issuers []string   // in platforms
}

// managedPlatform is a platform that vouches for users clients.
type managedPlatform struct {
	assertions *introspect.Assertions
	ref        reference
	users      int
}

// open opens the keys of a client, or shares those that are open, and gives the engine's client what
// verifies by them. replace has to be called with what it returns. If the client is disabled, nothing is
// opened: it can't authenticate.
func (o *openedKeys) open(r *servedRealm, client *oauth.Client, keys managedKeys) (used clientKeys, err error) {
	if client.Disabled {
		return used, nil
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.giveBack(used))
			used = clientKeys{}
		}
	}()
	switch {
	case keys.fetchesOwn():
		var ref reference
		if client.Assertions, ref, err = openClientKeys(r.name, client.ID, keys.own); err != nil {
			return used, err
		}
		used.own = &ref
		o.own++
	case keys.own != nil: // they are in its settings, so nothing has to be closed
		if client.Assertions, err = keys.own.inSettings(); err != nil {
			return used, err
		}
	}
	for i, identity := range client.Federated {
		from := keys.platforms[i]
		if from.assertions != nil {
			identity.Assertions = from.assertions // of the configuration
			continue
		}
		platform := o.platforms[identity.Issuer]
		if platform == nil {
			platform = new(managedPlatform)
			if platform.assertions, platform.ref, err = from.open(identity.Issuer); err != nil {
				return used, err
			}
			if o.platforms == nil {
				o.platforms = make(map[string]*managedPlatform)
			}
			o.platforms[identity.Issuer] = platform
		}
		platform.users++
		used.issuers = append(used.issuers, identity.Issuer)
		identity.Assertions = platform.assertions
	}
	return used, nil
}

// replace notes what these clients use from now on, and closes what nobody uses any more. The engine must
// know of the change: requests that have begun go on with keys that are closed.
func (o *openedKeys) replace(next map[string]clientKeys) error {
	if o.clients == nil {
		o.clients = make(map[string]clientKeys)
	}
	var errs []error
	for id, used := range next {
		errs = append(errs, o.giveBack(o.clients[id]))
		delete(o.clients, id)
		if used.own != nil || used.issuers != nil {
			o.clients[id] = used
		}
	}
	return errors.Join(errs...)
}

// giveBack closes what a client has used, unless others use it.
func (o *openedKeys) giveBack(used clientKeys) error {
	var errs []error
	if used.own != nil {
		o.own--
		_, err := used.own.pool.Delete(used.own.key)
		errs = append(errs, err)
	}
	for _, issuer := range used.issuers {
		platform := o.platforms[issuer]
		if platform.users--; platform.users == 0 {
			delete(o.platforms, issuer)
			_, err := platform.ref.pool.Delete(platform.ref.key)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// close closes all, and leaves nothing to be opened.
func (o *openedKeys) close() error {
	o.closed = true
	var errs []error
	for _, used := range o.clients {
		errs = append(errs, o.giveBack(used))
	}
	o.clients = nil
	return errors.Join(errs...)
}

// closeManagedKeys closes the keys of the managed clients of all realms.
func (a *App) closeManagedKeys() error {
	a.run.agreeing.Lock() // somebody may have begun to share a change
	defer a.run.agreeing.Unlock()
	var errs []error
	for _, r := range a.realms {
		errs = append(errs, r.opened.close())
	}
	return errors.Join(errs...)
}

// mayHaveKeys refuses the keys of a managed client that is to be added or changed, if they would be too
// many, or if nobody could tell a client from a platform. It returns how many sets of keys are to be
// fetched for it that are not yet. others are how many are to be fetched for clients that are added
// together with it. The error is the answer.
func (a *App) mayHaveKeys(r *servedRealm, id string, keys managedKeys, others int) (fetched int, err error) {
	a.run.agreeing.Lock()
	defer a.run.agreeing.Unlock()
	if r.opened.platforms[id] != nil {
		return 0, adminError(http.StatusBadRequest, "client '%s': a managed client has a federated of this name, so nobody could tell the client's assertions from those of the issuer; give it another ID", loggedText(id))
	}
	if keys.fetchesOwn() && r.opened.clients[id].own == nil {
		fetched++
	}
	for _, from := range keys.platforms {
		issuer := from.keys.Issuer
		if r.isManaged(issuer) || issuer == id {
			return 0, adminError(http.StatusBadRequest, "client '%s': federated %s: there is a client with this ID, so nobody could tell its assertions from those of the issuer", loggedText(id), loggedText(issuer))
		}
		if from.assertions == nil && r.opened.platforms[issuer] == nil {
			fetched++
		}
	}
	if there := r.opened.own + len(r.opened.platforms); fetched > 0 && there+others+fetched > maxFetchedKeys {
		return 0, adminError(http.StatusConflict, "client '%s': the keys of %d managed clients and platforms are fetched already, and more are too many: give the client's keys in jwk, or name the platform in the configuration", loggedText(id), there)
	}
	return fetched, nil
}
