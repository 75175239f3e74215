package caddyoauth

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// Keycloak exports a realm as an object with its clients and their scopes, several realms as a list of
// these, and users, among them those that stand for clients, there or in files of their own.

// keycloakRealm is what an export has of a realm.
type keycloakRealm struct {
	members map[string]json.RawMessage
	// roles are those of the users that stand for clients, by client ID.
	roles map[string][]string
}

// readKeycloak reads exports of realms.
func (m *migration) readKeycloak(files []importedFile) error {
	realms := make(map[string]*keycloakRealm)
	add := func(document json.RawMessage) error {
		members, err := decodeImported(document)
		if err != nil {
			return err
		}
		var name string
		if json.Unmarshal(members["realm"], &name) != nil || name == "" {
			return errors.New("it is not a realm as Keycloak exports it: it has no name")
		}
		realm := realms[name]
		if realm == nil {
			realm = &keycloakRealm{roles: make(map[string][]string)}
			realms[name] = realm
		}
		if err := realm.addUsers(members["users"]); err != nil {
			return err
		}
		switch {
		case members["clients"] == nil && members["users"] != nil && len(members) == 2: // users alone
			return nil
		case realm.members != nil:
			return fmt.Errorf("it has realm %q again, and the first counts", loggedText(name))
		}
		realm.members = members
		return nil
	}
	for _, file := range files {
		documents, err := file.documents()
		for _, document := range documents {
			all := []json.RawMessage{document}
			if bytes.HasPrefix(document, []byte("[")) && json.Unmarshal(document, &all) != nil {
				err = errors.New("it is not a list of realms")
			}
			for _, one := range all {
				err = errors.Join(err, add(one))
			}
		}
		if err != nil {
			m.report.problem(file.path, "%v", err)
		}
	}
	for _, name := range sortedKeys(realms) {
		if err := m.keycloakRealm(name, realms[name]); err != nil {
			return err
		}
	}
	return nil
}

// addUsers finds the users that stand for clients, and their roles.
func (r *keycloakRealm) addUsers(text json.RawMessage) error {
	var users []struct {
		Client      string              `json:"serviceAccountClientId"`
		RealmRoles  []string            `json:"realmRoles"`
		ClientRoles map[string][]string `json:"clientRoles"`
	}
	if !saysNothing(text) && json.Unmarshal(text, &users) != nil {
		return errors.New("its users have another form than is known")
	}
	for _, user := range users {
		if user.Client == "" {
			continue
		}
		for _, role := range user.RealmRoles {
			// Everybody has these.
			if role != "offline_access" && role != "uma_authorization" && !strings.HasPrefix(role, "default-roles-") {
				r.roles[user.Client] = append(r.roles[user.Client], role)
			}
		}
		for _, client := range sortedKeys(user.ClientRoles) {
			for _, role := range user.ClientRoles[client] {
				r.roles[user.Client] = append(r.roles[user.Client], client+"/"+role)
			}
		}
	}
	return nil
}

// keycloakRealmRest are the fields of a realm that aren't read.
var keycloakRealmRest = map[string]ignored{
	"clientPolicies": {"there are no client policies here", []string{`{"policies":[]}`, `{"policies":[],"globalPolicies":[]}`}},
	"clientProfiles": {"there are no client profiles here", []string{`{"profiles":[]}`, `{"profiles":[],"globalProfiles":[]}`}},
	"notBefore":      {"tokens of Keycloak are none of this gateway's", []string{"0"}},

	// These are for users who log in, for other grants, for signing, or for administrators.
	"accessCode*": {}, "accessTokenLifespanForImplicitFlow": {}, "accountTheme": {}, "actionToken*": {}, "adminEvents*": {}, "adminPermissions*": {},
	"adminTheme": {}, "attributes": {}, "authenticationFlows": {}, "authenticatorConfig": {}, "browser*": {}, "bruteForce*": {}, "certificate": {},
	"clientAuthenticationFlow": {}, "clientOffline*": {}, "clientScopeMappings": {}, "clientSession*": {}, "codeSecret": {}, "components": {},
	"default*": {}, "directGrantFlow": {}, "displayName*": {}, "dockerAuthenticationFlow": {}, "duplicateEmailsAllowed": {}, "editUsernameAllowed": {},
	"emailTheme": {}, "enabledEventTypes": {}, "events*": {}, "failureFactor": {}, "federatedUsers": {}, "firstBrokerLoginFlow": {}, "groups": {}, "id": {},
	"identityProvider*": {}, "internationalizationEnabled": {}, "keycloakVersion": {}, "localizationTexts": {}, "login*": {}, "max*": {}, "minimumQuickLoginWaitSeconds": {},
	"oauth2Device*": {}, "offlineSession*": {}, "organizations*": {}, "otp*": {}, "passwordPolicy": {}, "permanentLockout": {}, "privateKey": {},
	"protocolMappers": {}, "publicKey": {}, "quickLoginCheckMilliSeconds": {}, "realm": {}, "refreshToken*": {}, "registration*": {}, "rememberMe": {}, "required*": {},
	"resetCredentialsFlow": {}, "resetPasswordAllowed": {}, "revokeRefreshToken": {}, "roles": {}, "scopeMappings": {}, "smtpServer": {}, "social*": {}, "sslRequired": {},
	"ssoSession*": {}, "supportedLocales": {}, "userFederation*": {}, "userManagedAccessAllowed": {}, "users": {}, "verifiableCredentials*": {},
	"verifyEmail": {}, "waitIncrementSeconds": {}, "webAuthn*": {},
}

// keycloakOwn are clients that each realm of Keycloak has for itself.
var keycloakOwn = []string{"account", "account-console", "admin-cli", "broker", "realm-management", "security-admin-console"}

// keycloakScope is a client scope of a realm.
type keycloakScope struct {
	Name       string            `json:"name"`
	Attributes map[string]string `json:"attributes"`
	Mappers    []keycloakMapper  `json:"protocolMappers"`
}

// keycloakMapper puts something into tokens.
type keycloakMapper struct {
	Name   string            `json:"name"`
	Mapper string            `json:"protocolMapper"`
	Config map[string]string `json:"config"`
}

// keycloakRealm imports a realm.
func (m *migration) keycloakRealm(name string, from *keycloakRealm) error {
	if from.members == nil {
		m.report.problem(name, "there are users of this realm, and not the realm itself")
		return nil
	}
	realm, err := m.realm(name)
	if err != nil {
		return err
	}
	f := realm.report.fields(from.members)
	var scopes []keycloakScope
	f.list("clientScopes", &scopes)
	byName := make(map[string]keycloakScope, len(scopes))
	for _, scope := range scopes {
		byName[scope.Name] = scope
	}
	lifetime := f.seconds("accessTokenLifespan")
	if lifetime == 0 {
		lifetime = caddy.Duration(5 * time.Minute) // Keycloak's own default
	}
	closed := string(from.members["enabled"]) == "false"
	if delete(from.members, "enabled"); closed {
		realm.report.lose("enabled", "the realm is disabled, and so are its clients here")
	}
	switch {
	case m.managed:
	case m.issuer == "":
		realm.TokenLifetime = lifetime
		realm.report.lose("tokens", "they are JWTs in Keycloak, and opaque here; for JWTs, give --issuer")
	default:
		realm.TokenLifetime, realm.TokenFormat = lifetime, oauth.FormatJWT
	}
	var clients []json.RawMessage
	f.list("clients", &clients)
	f.rest(keycloakRealmRest)
	for n, text := range clients {
		members, err := decodeImported(text)
		if err != nil {
			realm.report.lose("clients", "client %d: %v", n+1, err)
			continue
		}
		if err := m.keycloakClient(realm, from, byName, lifetime, closed, members); err != nil {
			return err
		}
	}
	return nil
}

const keycloakRoles = "there are no roles here; say with scopes what a client may do"

// keycloakClientRest are the fields of a client that aren't read, and its attributes.
var keycloakClientRest = map[string]ignored{
	"authorizationServicesEnabled": {"there is no UMA here", []string{"false"}},
	"authorizationSettings":        {"there is no UMA here", nil},
	"defaultRoles":                 {keycloakRoles, nil},
	"directAccessGrantsEnabled":    {"there is no password grant here", []string{"false"}},
	"implicitFlowEnabled":          {nobodyLogsIn, []string{"false"}},
	"redirectUris":                 {nobodyLogsIn + ", so there is nobody to send back", nil},
	"standardFlowEnabled":          {nobodyLogsIn, []string{"false"}},
	"webOrigins":                   {"CORS is for Caddy's header directive; see the cookbook", nil},

	"attributes.access.token.signed.response.alg":                {"JWTs are signed by ES256 here, unless signing says otherwise", []string{"ES256"}},
	"attributes.client.use.lightweight.access.token.enabled":     {"JWTs say what RFC 9068 wants here", []string{"false"}},
	"attributes.client_credentials.use_refresh_token":            {"there are no refresh tokens here", []string{"false"}},
	"attributes.oauth2.device.authorization.grant.enabled":       {nobodyLogsIn, []string{"false"}},
	"attributes.oauth2.jwt.authorization.grant.enabled":          {"there is no such grant here", []string{"false"}},
	"attributes.oidc.ciba.grant.enabled":                         {nobodyLogsIn, []string{"false"}},
	"attributes.post.logout.redirect.uris":                       {nobodyLogsIn, []string{"+"}},
	"attributes.standard.token.exchange.enabled":                 {"there is no token exchange here", []string{"false"}},
	"attributes.client.introspection.response.allow.jwt.claim.*": {"a caller that wants a signed answer says so by Accept here", []string{"false"}},

	// These are for people, for users who log in, for SAML, or for administrators.
	"access": {}, "adminUrl": {}, "alwaysDisplayInConsole": {}, "authenticationFlowBindingOverrides": {}, "baseUrl": {}, "consentRequired": {}, "description": {},
	"frontchannelLogout": {}, "fullScopeAllowed": {}, "id": {}, "name": {}, "nodeReRegistrationTimeout": {}, "notBefore": {}, "origin": {}, "registeredNodes": {},
	"registrationAccessToken": {}, "rootUrl": {}, "surrogateAuthRequired": {}, "type": {},
	"attributes.access.token.header.type.rfc9068": {}, "attributes.acr.*": {}, "attributes.authorization.*": {}, "attributes.backchannel.*": {}, "attributes.client.offline.*": {},
	"attributes.client.secret.creation.time": {}, "attributes.client.session.*": {}, "attributes.consent.*": {}, "attributes.default.acr.values": {},
	"attributes.display.*": {}, "attributes.dpop.signing.*": {}, "attributes.exclude.*": {}, "attributes.frontchannel.*": {}, "attributes.id.token.*": {}, "attributes.login_theme": {},
	"attributes.logoUri": {}, "attributes.minimum.acr.value": {}, "attributes.pkce.*": {}, "attributes.policyUri": {}, "attributes.realm_client": {},
	"attributes.request.*": {}, "attributes.require.pushed.authorization.requests": {}, "attributes.saml*": {}, "attributes.token.response.type.bearer.lower-case": {},
	"attributes.tosUri": {}, "attributes.use.refresh.tokens": {}, "attributes.user.info.*": {},
}

// keycloakClient imports a client.
func (m *migration) keycloakClient(realm *importedRealm, from *keycloakRealm, scopes map[string]keycloakScope, lifetime caddy.Duration, closed bool, members map[string]json.RawMessage) error {
	var id string
	_ = json.Unmarshal(members["clientId"], &id) // one of another form is none
	if id == "" {
		realm.report.lose("clients", "there is one without a clientId")
		return nil
	}
	delete(members, "clientId")
	has := func(flag string) bool { return string(members[flag]) == "true" }
	if !has("serviceAccountsEnabled") && (slices.Contains(keycloakOwn, id) || strings.HasSuffix(id, "-realm") && has("bearerOnly")) {
		m.report.skip("clients of Keycloak's own")
		return nil
	}
	report, err := m.client(realm, id)
	if err != nil {
		return err
	}
	attributes := members["attributes"]
	if delete(members, "attributes"); !saysNothing(attributes) {
		values, failed := decodeImported(attributes)
		if failed != nil { // and with them, what the client may do
			report.leaveOut("attributes: %v", failed)
		}
		for name, value := range values {
			members["attributes."+name] = value
		}
	}
	var secret, rotated string
	_ = json.Unmarshal(members["secret"], &secret) // one of another form can't be read
	_ = json.Unmarshal(members["attributes.client.secret.rotated"], &rotated)
	for _, hidden := range []string{"secret", "attributes.client.secret.rotated"} {
		delete(members, hidden)
	}
	disabled := closed || string(members["enabled"]) == "false"
	delete(members, "enabled")

	f := report.fields(members)
	client := &Client{Disabled: disabled}
	switch protocol := f.text("protocol"); {
	case protocol != "" && protocol != "openid-connect":
		report.leaveOut("protocol: it speaks %s", loggedText(protocol))
	case f.flag("publicClient"):
		report.leaveOut("publicClient: it is a public client, which can't prove who it is")
	case f.flag("bearerOnly"):
		report.leaveOut("bearerOnly: it fetches no tokens")
	case !f.flag("serviceAccountsEnabled"):
		report.leaveOut("serviceAccountsEnabled: it can't use client credentials")
	}
	m.keycloakScopes(report, client, scopes, f)
	if roles := from.roles[id]; len(roles) > 0 {
		report.lose("roles", "%s: %s", keycloakRoles, strings.Join(loggedTexts(roles), ", "))
	}
	client.TokenLifetime = f.seconds("attributes.access.token.lifespan")
	if client.TokenLifetime == 0 && m.managed {
		client.TokenLifetime = lifetime
	}
	client.CertificateBound = f.flag("attributes.tls.client.certificate.bound.access.tokens")
	if f.flag("attributes.dpop.bound.access.tokens") {
		client.DPoP = dpopRequired
	}
	m.keycloakAuth(report, client, f, secret, rotated)
	f.rest(keycloakClientRest)
	m.add(realm, report, client)
	return nil
}

// keycloakBuiltIn are the client scopes that each realm of Keycloak has, whose mappers are for users.
var keycloakBuiltIn = []string{"acr", "address", "basic", "email", "microprofile-jwt", "offline_access", "organization", "phone", "profile", "role_list", "roles", "saml_organization", "service_account", "web-origins"}

// keycloakScopes imports the scopes of a client, and what they and the client put into the audience.
func (m *migration) keycloakScopes(report *reportedClient, client *Client, scopes map[string]keycloakScope, f *importedFields) {
	var mappers []keycloakMapper
	f.list("protocolMappers", &mappers)
	report.audience(client, "protocolMappers", mappers)
	for _, field := range []string{"defaultClientScopes", "optionalClientScopes"} {
		for _, name := range f.texts(field) {
			scope := scopes[name]
			switch {
			case name == "offline_access":
				// Each client may ask for it, and none gets anything for it by client credentials.
				continue
			case slices.Contains(keycloakBuiltIn, name):
			case field == "defaultClientScopes":
				report.audience(client, "client scope "+loggedText(name), scope.Mappers)
			case len(scope.Mappers) > 0:
				report.lose(field, "client scope %q puts something into tokens only if it is asked for; here, say so with audience", loggedText(name))
			}
			if scope.Attributes["include.in.token.scope"] == "false" {
				continue // no token says that it has it
			}
			client.Scopes = append(client.Scopes, name)
			if field == "defaultClientScopes" {
				client.DefaultScopes = append(client.DefaultScopes, name)
			}
		}
	}
}

// audience gives a client the audience that mappers put into its tokens. Other mappers are reported.
func (c *reportedClient) audience(client *Client, where string, mappers []keycloakMapper) {
	for _, mapper := range mappers {
		switch {
		case mapper.Mapper == "oidc-audience-mapper" && mapper.Config["access.token.claim"] == "true":
			for _, audience := range []string{mapper.Config["included.client.audience"], mapper.Config["included.custom.audience"]} {
				if audience != "" && !slices.Contains(client.Audience, audience) {
					client.Audience = append(client.Audience, audience)
				}
			}
		case mapper.Mapper == "oidc-usersessionmodel-note-mapper" && slices.Contains([]string{"client_id", "clientId", "clientAddress", "clientHost"}, mapper.Config["user.session.note"]):
			// Each client with a service account has these, which say from where it came.
		default:
			c.lose(where, "the mapper %q puts into tokens what they don't say here", loggedText(mapper.Name))
		}
	}
}

// keycloakAuth imports how a client authenticates.
func (m *migration) keycloakAuth(report *reportedClient, client *Client, f *importedFields, secret, rotated string) {
	until, rotatedUntil := f.time("attributes.client.secret.expiration.time"), f.time("attributes.client.secret.rotated.expiration.time")
	switch kind := f.text("clientAuthenticatorType"); kind {
	case "", "client-secret":
		if report.LeftOut == "" {
			m.keycloakSecrets(report, client, secret, rotated, until, rotatedUntil)
		}
	case "client-jwt":
		client.Auth = []string{oauth.AuthPrivateKeyJWT}
		client.AssertionAlgorithms = report.algorithms("token.endpoint.auth.signing.alg", f.text("attributes.token.endpoint.auth.signing.alg"))
		byURL, byText := f.flag("attributes.use.jwks.url"), f.flag("attributes.use.jwks.string")
		certificate, key := f.text("attributes.jwt.credential.certificate"), f.text("attributes.jwt.credential.public.key")
		switch {
		case byURL:
			if client.JWKSURI = f.text("attributes.jwks.url"); !canBeWritten(client.JWKSURI) {
				report.leaveOut("jwks.url: it has characters that can't be written in a Caddyfile")
			}
		case byText:
			report.keys(client, "jwks.string", []byte(f.text("attributes.jwks.string")))
		case certificate != "":
			report.keyOfCertificate(client, "jwt.credential.certificate", certificate)
		case key != "":
			report.leaveOut("jwt.credential.public.key: add its key by hand, as a jwk")
		default:
			report.leaveOut("jwt.credential.certificate: the keys of the client are not in the export")
		}
	case "client-x509":
		client.Auth = []string{oauth.AuthTLS}
		if f.flag("attributes.x509.allow.regex.pattern.comparison") {
			report.leaveOut("x509.allow.regex.pattern.comparison: its subject is a pattern, which anybody with a certificate of such a name would match")
		}
		client.TLSClientAuth = &CertificateSubject{Kind: "subject_dn", Value: f.text("attributes.x509.subjectdn")}
	case "client-secret-jwt":
		report.leaveOut("clientAuthenticatorType: it signs by its secret; give it a key, or let it send the secret")
	default:
		report.leaveOut("clientAuthenticatorType: there is no %s here", loggedText(kind))
	}
	if client.Auth != nil && secret != "" && strings.Trim(secret, "*") != "" {
		report.lose("secret", "it authenticates by %s here, and by nothing else", client.Auth[0])
	}
	for field := range f.values {
		// What is left of these are settings of methods that it doesn't use.
		for _, begin := range []string{"jwks.", "jwt.credential.", "token.endpoint.auth.signing.", "use.jwks.", "x509."} {
			if strings.HasPrefix(field, "attributes."+begin) {
				delete(f.values, field)
			}
		}
	}
}

// keycloakSecrets gives a client its secret, and the one of before while that is good.
func (m *migration) keycloakSecrets(report *reportedClient, client *Client, secret, rotated string, until, rotatedUntil time.Time) {
	m.secret(report, client, "secret", secret)
	if report.NewSecret || len(client.Secrets) == 0 {
		return
	}
	client.Secrets[0].Until = until
	if rotated == "" || !time.Now().Before(rotatedUntil) {
		return
	}
	newer, before := client.Secrets, &reportedClient{ID: report.ID}
	if m.secret(before, client, "client.secret.rotated", rotated); before.NewSecret {
		report.lose("client.secret.rotated", "%s", strings.TrimSuffix(before.Lost[0].Why, ", so the client has a new one"))
		client.Secrets = newer
		return
	}
	client.Secrets[0].Until = rotatedUntil
	client.Secrets = append(client.Secrets, newer...)
}
