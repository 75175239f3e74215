package caddyoauth

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// Ory Hydra lists its clients as {"items": [ … ], "next_page_token": …, "is_last_page": …} by its command,
// and as [ … ] by its admin API. Its realm is none, so the clients go to root.

// readHydra reads lists of clients.
func (m *migration) readHydra(files []importedFile) error {
	realm, err := m.realm("/")
	if err != nil {
		return err
	}
	pages, last := 0, false
	for _, file := range files {
		documents, err := file.documents()
		if err != nil {
			m.report.problem(file.path, "%v", err)
		}
		for _, document := range documents {
			var page struct {
				Items []json.RawMessage `json:"items"`
				Next  string            `json:"next_page_token"`
				Last  bool              `json:"is_last_page"`
			}
			switch {
			case bytes.HasPrefix(document, []byte("[")):
				err = json.Unmarshal(document, &page.Items)
			case bytes.Contains(document, []byte(`"client_id"`)) && !bytes.Contains(document, []byte(`"items"`)):
				page.Items = []json.RawMessage{document}
			default:
				if err = json.Unmarshal(document, &page); err == nil && page.Items == nil {
					err = errors.New("no items")
				}
				pages, last = pages+1, last || page.Last || page.Next == ""
			}
			if err != nil {
				m.report.problem(file.path, "it is not a list of clients as 'hydra list clients --format json' prints it")
				continue
			}
			for n, item := range page.Items {
				if err := m.hydraClient(realm, item); err != nil {
					m.report.problem(file.path, "client %d: %v", n+1, err)
				}
			}
		}
	}
	if pages > 0 && !last {
		m.report.problem("next_page_token", "the last page is not among these; ask for it with --page-token")
	}
	return nil
}

// hydraRest are the fields of a client that aren't read.
var hydraRest = map[string]ignored{
	"allowed_cors_origins":            {"CORS is for Caddy's header directive; see the cookbook", nil},
	"backchannel_logout_uri":          {nobodyLogsIn, nil},
	"frontchannel_logout_uri":         {nobodyLogsIn, nil},
	"metadata":                        {"a client has no properties of its own here", nil},
	"post_logout_redirect_uris":       {nobodyLogsIn, nil},
	"redirect_uris":                   {nobodyLogsIn + ", so there is nobody to send back", nil},
	"request_object_signing_alg":      {nobodyLogsIn, nil},
	"token_endpoint_auth_signing_alg": {"it doesn't sign", []string{"RS256"}},
	"userinfo_signed_response_alg":    {noUserinfo, []string{"none"}},

	// These are for people, for users who log in, for other grants, or of the registration.
	"authorization_code_grant_*": {}, "backchannel_logout_session_required": {}, "client_name": {}, "client_uri": {}, "contacts": {}, "created_at": {},
	"device_authorization_grant_*": {}, "frontchannel_logout_session_required": {}, "implicit_grant_*": {}, "jwt_bearer_grant_*": {}, "logo_uri": {}, "owner": {},
	"password_grant_*": {}, "policy_uri": {}, "refresh_token_grant_*": {}, "registration_*": {}, "request_uris": {}, "response_types": {},
	"rotated_secrets": {}, "sector_identifier_uri": {}, "skip_consent": {}, "skip_logout_consent": {}, "subject_type": {}, "tos_uri": {}, "updated_at": {},
}

// hydraClient imports a client.
func (m *migration) hydraClient(realm *importedRealm, text json.RawMessage) error {
	members, err := decodeImported(text)
	if err != nil {
		return err
	}
	var id, secret string
	if json.Unmarshal(members["client_id"], &id) != nil || id == "" {
		return errors.New("it has no client_id")
	}
	_ = json.Unmarshal(members["client_secret"], &secret) // one of another form can't be read
	delete(members, "client_id")
	delete(members, "client_secret")
	report, err := m.client(realm, id)
	if err != nil {
		return err
	}
	f := report.fields(members)
	client := &Client{Audience: f.texts("audience")}
	grants := f.texts("grant_types")
	if !slices.Contains(grants, oauth.GrantClientCredentials) {
		report.leaveOut("grant_types: it can't use client credentials, but %s", listedOrNone(grants))
	}
	for _, grant := range grants {
		if grant != oauth.GrantClientCredentials {
			report.lose("grant_types", "there is no %s here", loggedText(grant))
		}
	}
	for _, scope := range strings.Fields(f.text("scope")) {
		if strings.Contains(scope, "*") {
			report.lose("scope", "%q is a pattern in Hydra, and would be a scope like any other here; name the scopes", loggedText(scope))
			continue
		}
		client.Scopes = append(client.Scopes, scope)
	}
	if lifetime := f.text("client_credentials_grant_access_token_lifespan"); lifetime != "" {
		client.TokenLifetime = report.hydraLifetime(lifetime)
	}
	switch strategy := f.text("access_token_strategy"); {
	case strategy == "jwt" && (m.issuer == "" || m.managed):
		report.lose("access_token_strategy", "its tokens are opaque here unless it has token_format jwt, and the realm an issuer")
	case strategy == "jwt":
		client.TokenFormat = oauth.FormatJWT
	}
	m.hydraAuth(report, client, f, secret)
	f.rest(hydraRest)
	m.add(realm, report, client)
	return nil
}

// hydraLifetime returns a lifetime that the gateway takes, or 0.
func (c *reportedClient) hydraLifetime(text string) caddy.Duration {
	const field = "client_credentials_grant_access_token_lifespan"
	lifetime, err := conf.ParseDuration(field, text)
	if err == nil {
		err = conf.CheckLifetime(field, lifetime)
	}
	if err != nil {
		c.lose(field, "%v", err)
		return 0
	}
	return lifetime
}

// hydraAuth imports how a client authenticates.
func (m *migration) hydraAuth(report *reportedClient, client *Client, f *importedFields, secret string) {
	until := f.time("client_secret_expires_at")
	switch method := f.text("token_endpoint_auth_method"); method {
	case "", oauth.AuthBasic, oauth.AuthPost:
		if client.Auth = []string{oauth.AuthBasic}; method != "" {
			client.Auth = []string{method}
		}
		if report.LeftOut == "" {
			m.secret(report, client, "client_secret", secret)
		}
		if len(client.Secrets) > 0 && !report.NewSecret {
			client.Secrets[0].Until = until
		}
	case oauth.AuthPrivateKeyJWT:
		client.Auth = []string{method}
		client.AssertionAlgorithms = report.algorithms("token_endpoint_auth_signing_alg", f.text("token_endpoint_auth_signing_alg"))
		var set json.RawMessage
		switch uri := f.text("jwks_uri"); {
		case uri != "" && !canBeWritten(uri):
			report.leaveOut("jwks_uri: it has characters that can't be written in a Caddyfile")
		case uri != "":
			client.JWKSURI = uri
		case f.take("jwks", &set):
			report.keys(client, "jwks", set)
		default:
			report.leaveOut("jwks: the keys of the client are not in the export")
		}
	case "none":
		report.leaveOut("token_endpoint_auth_method: it is a public client, which can't prove who it is")
	default:
		report.leaveOut("token_endpoint_auth_method: there is no %s here", loggedText(method))
	}
	delete(f.values, "jwks") // of a method that it doesn't use
	delete(f.values, "jwks_uri")
}
