package caddyoauth

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// revokeRequest is the body of POST /oauth/tokens/revoke: which tokens end. It names a client, and its
// realm if several have one of that ID, or a realm with All set, or it has one token.
type revokeRequest struct {
	Token  string `json:"token,omitempty"`
	Realm  string `json:"realm,omitempty"`
	Client string `json:"client,omitempty"`
	All    bool   `json:"all,omitempty"`
}

// check finds what doesn't make sense for any gateway.
func (q revokeRequest) check() error {
	switch {
	case q.Token != "" && q == revokeRequest{Token: q.Token}:
		return nil
	case q.Token != "":
		return errors.New("a token says itself whose it is: name no client and no realm beside it")
	case q.All == (q.Client != "") || q.All && q.Realm == "":
		return errors.New("name a client, and its realm if several have it, or a realm with all")
	}
	return nil
}

// revokeAnswer is the answer to it.
type revokeAnswer struct {
	Realm  string `json:"realm"`
	Client string `json:"client,omitempty"`
	// Clients is how many clients' tokens have ended. It is not there for one token.
	Clients *int `json:"clients,omitempty"`
	// TokenID is the ID of the token that was revoked. It is empty if that was no longer good, and for
	// all tokens of clients.
	TokenID string `json:"token_id,omitempty"`
}

// serveRevoke ends a token, or all tokens of a client or of all clients of a realm. Once it answers 200, this is
// durable, no request that begins later at this gateway passes with one of them, and tokens that are
// issued later are good. After an error, the tokens may have ended or not.
func serveRevoke(w http.ResponseWriter, r *http.Request) error {
	var asked revokeRequest
	app, err := readAdminPost(w, r, &asked, "realm and client, both strings, or realm and all, which is true or false, or token")
	if err != nil {
		return err
	}
	if err := asked.check(); err != nil {
		return adminError(http.StatusBadRequest, "%w", err)
	}
	if asked.Token != "" {
		return app.serveRevokeToken(w, r, asked.Token)
	}
	realm, err := app.realmToRevoke(asked)
	if err != nil {
		return err
	}
	answer := revokeAnswer{Realm: realm.name, Client: asked.Client}
	clients, err := app.endTokens(r.Context(), realm, asked.Client)
	if errors.Is(err, oauth.ErrNotFound) && realm.settings.Clients[asked.Client] == nil && asked.Client != "" {
		// A managed client that was removed meanwhile: its tokens are dead.
		return adminError(http.StatusNotFound, "realm '%s' has no client '%s' any more", realm.name, loggedText(asked.Client))
	}
	if err != nil {
		return adminError(http.StatusServiceUnavailable, "the tokens may have been revoked or not, so try again: the token store: %w", err)
	}
	answer.Clients = &clients
	fields := []zap.Field{zap.String("event", "tokens_revoked_all"), zap.String("realm", realm.name)}
	message := "all tokens of a realm revoked"
	if asked.Client != "" {
		fields = append(fields, zap.String("client_id", asked.Client))
		message = "all tokens of a client revoked"
	}
	app.logger.Info(message, append(append(fields, zap.Int("clients", clients)), adminCaller(r)...)...)
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(answer)
}

// serveRevokeToken revokes one token, whichever client has it.
func (a *App) serveRevokeToken(w http.ResponseWriter, r *http.Request, token string) error {
	for _, name := range sortedKeys(a.realms) {
		engine := a.realms[name].engine
		if engine == nil {
			continue // nothing is issued here
		}
		revoked, ours, err := engine.RevokeForAnybody(context.WithoutCancel(r.Context()), token)
		if err != nil {
			return adminError(http.StatusServiceUnavailable, "the token may have been revoked or not, so try again: %w", err)
		}
		if !ours {
			continue
		}
		answer := revokeAnswer{Realm: name, Client: revoked.ClientID}
		if revoked.ClientID != "" {
			answer.TokenID = revoked.ID.String()
			fields := []zap.Field{zap.String("event", "token_revoked"), zap.String("realm", name), zap.String("client_id", revoked.ClientID), zap.String("token_id", answer.TokenID)}
			if revoked.JTI != "" {
				fields = append(fields, zap.String("jti", revoked.JTI))
			}
			a.logger.Info("token revoked by an operator", append(fields, adminCaller(r)...)...)
		}
		w.Header().Set("Content-Type", "application/json")
		return json.NewEncoder(w).Encode(answer)
	}
	return adminError(http.StatusNotFound, "no realm of this gateway has issued the token")
}

// realmToRevoke returns the realm that is meant. The error is the answer, and lists what there is.
func (a *App) realmToRevoke(asked revokeRequest) (*servedRealm, error) {
	names := sortedKeys(a.realms)
	if asked.Realm != "" {
		if a.realms[asked.Realm] == nil {
			return nil, adminError(http.StatusNotFound, "unknown realm '%s' (known: %s)", loggedText(asked.Realm), strings.Join(names, ", "))
		}
		names = []string{asked.Realm}
	}
	if asked.All {
		return a.realms[names[0]], nil
	}
	var in, known []string
	for _, name := range names {
		realm := a.realms[name]
		if realm.settings.Clients[asked.Client] != nil || realm.isManaged(asked.Client) {
			in = append(in, name)
		}
		known = append(known, sortedKeys(realm.settings.Clients)...)
	}
	switch len(in) {
	case 1:
		return a.realms[in[0]], nil
	case 0:
		slices.Sort(known)
		return nil, adminError(http.StatusNotFound, "unknown client '%s' (known: %s)", loggedText(asked.Client), cmp.Or(strings.Join(loggedTexts(slices.Compact(known)), ", "), "none"))
	}
	return nil, adminError(http.StatusBadRequest, "there is a client '%s' in several realms: name one of %s", asked.Client, strings.Join(in, ", "))
}

// endTokens ends all tokens of a client of a realm, or of all its clients if none is named. It returns
// how many clients that were.
func (a *App) endTokens(ctx context.Context, realm *servedRealm, client string) (int, error) {
	opened := a.run.opened
	if opened.store == nil {
		return 0, nil // nothing is issued here
	}
	// Whoever asked may go away. If the store did it all the same, the engines must go by it.
	ctx = context.WithoutCancel(ctx)
	if opened.coherent != nil {
		// A store that reports changes reports this one, too, if it is carried out later. With
		// another, wait for as long as it takes.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, startTimeout)
		defer cancel()
	}
	if client != "" && realm.settings.Clients[client] == nil {
		ended, err := a.endManaged(ctx, realm, client)
		if err == nil && ended == 0 {
			err = oauth.ErrNotFound
		}
		return ended, err
	}
	clients, ended := []string{client}, 0
	if client != "" && realm.isManaged(client) {
		// The configuration hides a managed client, whose tokens would be good again without that.
		if _, err := a.endManaged(ctx, realm, client); err != nil {
			return 0, err
		}
	}
	if client == "" {
		clients = sortedKeys(realm.settings.Clients)
		managed, err := a.managedInStore(ctx, realm)
		if err != nil {
			return 0, err
		}
		for ids := range slices.Chunk(managed, maxImported) {
			n, err := a.endManaged(ctx, realm, ids...)
			if err != nil {
				return 0, err
			}
			ended += n
		}
	}
	others, err := opened.endTokens(ctx, realm.name, clients, client == "", a.heldGenerations())
	return ended + others, err
}

// managedInStore returns the IDs of all managed clients of a realm, also those that another gateway has
// just added. It leaves out what this gateway can't read: it knows nothing of such a client's tokens.
func (a *App) managedInStore(ctx context.Context, realm *servedRealm) (ids []string, err error) {
	if realm.managed == nil || a.run.opened.clients == nil {
		return nil, nil
	}
	all, err := a.run.opened.clients.ManagedClients(ctx, realm.name, "")
	for _, client := range all.Clients {
		if client.Data == nil {
			continue
		}
		if _, err := readManaged(client); err == nil {
			ids = append(ids, client.ID)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), err
}

// adminCaller returns the fields that say who has called the admin endpoint: the address, or the Unix
// socket, whose file says who may call, and, by remote administration, the certificate.
func adminCaller(r *http.Request) (fields []zap.Field) {
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && local.Network() == "unix" {
		fields = append(fields, zap.String("admin_socket", local.String()))
	} else {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			host = r.RemoteAddr
		}
		fields = append(fields, zap.String("remote_ip", host))
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		cert := r.TLS.PeerCertificates[0]
		name := cert.Subject.String()
		if name == "" && len(cert.URIs) > 0 { // as an X.509-SVID of SPIFFE
			name = cert.URIs[0].String()
		}
		fields = append(fields, zap.String("admin", loggedText(name)), zap.String("admin_certificate", introspect.CertificateThumbprint(cert)))
	}
	return fields
}
