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
)

// revokeRequest is the body of POST /oauth/tokens/revoke: whose tokens end. Either it names a client,
// and its realm if several have one of that ID, or it names a realm with All set.
type revokeRequest struct {
	Realm  string `json:"realm,omitempty"`
	Client string `json:"client,omitempty"`
	All    bool   `json:"all,omitempty"`
}

// check finds what doesn't make sense for any gateway.
func (q revokeRequest) check() error {
	if q.All == (q.Client != "") || q.All && q.Realm == "" {
		return errors.New("name a client, and its realm if several have it, or a realm with all")
	}
	return nil
}

// revokeAnswer is the answer to it.
type revokeAnswer struct {
	Realm  string `json:"realm"`
	Client string `json:"client,omitempty"`
	// Clients is how many clients' tokens have ended.
	Clients int `json:"clients"`
}

// serveRevoke ends all tokens of a client or of all clients of a realm. Once it answers 200, this is
// durable, no request that begins later at this gateway passes with one of them, and tokens that are
// issued later are good. After an error, the tokens may have ended or not.
func serveRevoke(w http.ResponseWriter, r *http.Request) error {
	var asked revokeRequest
	app, err := readAdminPost(w, r, &asked, "realm and client, both strings, or realm and all, which is true or false")
	if err != nil {
		return err
	}
	if err := asked.check(); err != nil {
		return adminError(http.StatusBadRequest, "%w", err)
	}
	realm, err := app.realmToRevoke(asked)
	if err != nil {
		return err
	}
	answer := revokeAnswer{Realm: realm.name, Client: asked.Client}
	if answer.Clients, err = app.endTokens(r.Context(), realm, asked.Client); err != nil {
		return adminError(http.StatusServiceUnavailable, "the tokens may have been revoked or not, so try again: the token store: %w", err)
	}
	fields := []zap.Field{zap.String("event", "tokens_revoked_all"), zap.String("realm", realm.name)}
	message := "all tokens of a realm revoked"
	if asked.Client != "" {
		fields = append(fields, zap.String("client_id", asked.Client))
		message = "all tokens of a client revoked"
	}
	app.logger.Info(message, append(append(fields, zap.Int("clients", answer.Clients)), adminCaller(r)...)...)
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(answer)
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
		if a.realms[name].settings.Clients[asked.Client] != nil {
			in = append(in, name)
		}
		known = append(known, sortedKeys(a.realms[name].settings.Clients)...)
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
	clients := []string{client}
	if client == "" {
		clients = sortedKeys(realm.settings.Clients)
	}
	return opened.endTokens(ctx, realm.name, clients, client == "", a.heldGenerations())
}

// adminCaller returns the fields that say who has called the admin endpoint: the address and, by
// remote administration, the certificate.
func adminCaller(r *http.Request) []zap.Field {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr // of a Unix socket
	}
	fields := []zap.Field{zap.String("remote_ip", host)}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		fields = append(fields, zap.String("admin", loggedText(r.TLS.PeerCertificates[0].Subject.String())))
	}
	return fields
}
