package caddyoauth

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyoauth/gateway/caddyoauth/internal/keys"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// What ForgeRock AM 6.5 to 8 exports has three wrappings around the same objects:
//
//	REST    an object with _id and _type, or {"result": [ … ]}
//	Amster  {"metadata": {"realm": …, "entityType": "OAuth2Clients", "entityId": …}, "data": { … }}
//	frodo   {"meta": …, "application": {"<id>": { …, "_provider": { … }}}}, {"service": {"oauth-oidc": { … }}},
//	        or {"realm": {"<realm>": … }}
//
// The settings of a client or a provider are in groups, such as coreOAuth2ClientConfig. A setting is a
// value, or {"inherited": …, "value": …} where clients may be in groups.

// amObjects are the objects of an export by realm, as the export calls it.
type amObjects map[string]*amRealm

// amRealm is what an export has of a realm.
type amRealm struct {
	provider map[string]json.RawMessage
	clients  []amClient
}

// amClient is a client of an export.
type amClient struct {
	id     string
	object json.RawMessage
}

// readAM reads what AM, Amster or frodo has exported. realm is that of objects that don't say theirs.
func (m *migration) readAM(files []importedFile, realm string) error {
	objects := make(amObjects)
	for _, file := range files {
		documents, err := file.documents()
		if err != nil {
			m.report.problem(file.path, "%v", err)
			continue
		}
		from := realm
		if there := amRealmOf(file.path); there != "" {
			from = there
		}
		for _, document := range documents {
			if err := objects.add(&m.report, document, from); err != nil {
				m.report.problem(file.path, "%v", err)
			}
		}
	}
	for _, from := range sortedKeys(objects) {
		if err := m.amRealm(from, objects[from]); err != nil {
			return err
		}
	}
	return nil
}

// amRealmOf returns the realm of a file by its path, as in realm/root-alpha/oauth2.app/ci.oauth2.app.json,
// where frodo says it nowhere else; empty if the path says nothing.
func amRealmOf(path string) string {
	parts := strings.Split(filepath.ToSlash(path), "/")
	if n := len(parts); n >= 4 && parts[n-4] == "realm" && strings.HasSuffix(parts[n-1], "."+parts[n-2]+".json") {
		return strings.TrimPrefix(parts[n-3], "root-")
	}
	return ""
}

// add finds the clients and the providers in a document.
func (o amObjects) add(report *importReport, document json.RawMessage, realm string) error {
	if bytes.HasPrefix(bytes.TrimSpace(document), []byte("[")) {
		return o.addAll(report, document, realm)
	}
	object, err := decodeImported(document)
	if err != nil {
		return err
	}
	var metadata struct {
		Realm      string `json:"realm"`
		EntityType string `json:"entityType"`
		EntityID   string `json:"entityId"`
	}
	switch {
	case object["metadata"] != nil && object["data"] != nil: // Amster
		if json.Unmarshal(object["metadata"], &metadata) != nil {
			return fmt.Errorf("its metadata has another form than is known")
		}
		if metadata.Realm != "" {
			realm = metadata.Realm
		}
		switch metadata.EntityType {
		case "OAuth2Clients", "OAuth2Client":
			return o.addClient(report, object["data"], realm, metadata.EntityID)
		case "OAuth2Provider":
			return o.addProvider(object["data"], realm)
		}
		report.skip(metadata.EntityType)
		return nil
	case object["result"] != nil: // a list of REST
		var page struct {
			Cookie    string `json:"pagedResultsCookie"`
			Remaining int    `json:"remainingPagedResults"`
		}
		if json.Unmarshal(document, &page) == nil && (page.Cookie != "" || page.Remaining > 0) {
			report.problem("result", "this is one page of several; ask for all clients, without _pageSize")
		}
		return o.addAll(report, object["result"], realm)
	case object["application"] != nil || object["service"] != nil || object["realm"] != nil && object["_id"] == nil:
		return o.addFrodo(report, object, realm)
	}
	return o.addObject(report, document, object, realm, "")
}

// addAll finds the clients and the providers in a list.
func (o amObjects) addAll(report *importReport, list json.RawMessage, realm string) error {
	var all []json.RawMessage
	if json.Unmarshal(list, &all) != nil {
		return fmt.Errorf("its result is not a list")
	}
	for n, item := range all {
		object, err := decodeImported(item)
		if err == nil {
			err = o.addObject(report, item, object, realm, "")
		}
		if err != nil {
			return fmt.Errorf("object %d: %w", n+1, err)
		}
	}
	return nil
}

// addFrodo finds the clients and the providers in what frodo has exported.
func (o amObjects) addFrodo(report *importReport, object map[string]json.RawMessage, realm string) error {
	for _, kind := range sortedKeys(object) {
		if kind == "meta" {
			continue
		}
		members, err := decodeImported(object[kind])
		switch {
		case kind != "application" && kind != "service" && kind != "realm":
			report.skip(kind)
			continue
		case err != nil:
			return fmt.Errorf("%s: %w", kind, err)
		}
		for _, name := range sortedKeys(members) {
			switch {
			case kind == "realm":
				var inner map[string]json.RawMessage
				if inner, err = decodeImported(members[name]); err == nil {
					err = o.addFrodo(report, inner, name)
				}
			case kind == "application":
				err = o.addClient(report, members[name], realm, name)
			case name == "oauth-oidc":
				err = o.addProvider(members[name], realm)
			default:
				report.skip(name)
			}
			if err != nil {
				return fmt.Errorf("%s %q: %w", kind, loggedText(name), err)
			}
		}
	}
	return nil
}

// addObject adds an object of REST.
func (o amObjects) addObject(report *importReport, document json.RawMessage, object map[string]json.RawMessage, realm, id string) error {
	var kind struct {
		ID string `json:"_id"`
	}
	_ = json.Unmarshal(object["_type"], &kind) // without it, the groups say what it is
	switch {
	case kind.ID == "OAuth2Client", kind.ID == "" && object["coreOAuth2ClientConfig"] != nil:
		return o.addClient(report, document, realm, id)
	case kind.ID == "oauth-oidc", kind.ID == "" && object["coreOAuth2Config"] != nil:
		return o.addProvider(document, realm)
	case kind.ID != "":
		report.skip(kind.ID)
		return nil
	}
	return fmt.Errorf("it is neither a client nor a provider as AM, Amster or frodo export them")
}

func (o amObjects) realm(name string) *amRealm {
	name = "/" + strings.Trim(name, "/")
	if name == "/"+rootRealm {
		name = "/"
	}
	if o[name] == nil {
		o[name] = &amRealm{}
	}
	return o[name]
}

// addClient adds a client. id is what is around it says, or empty.
func (o amObjects) addClient(report *importReport, document json.RawMessage, realm, id string) error {
	object, err := decodeImported(document)
	if err != nil {
		return err
	}
	var own string
	_ = json.Unmarshal(object["_id"], &own)
	if id == "" {
		id = own
	}
	if id == "" || own != "" && own != id {
		return fmt.Errorf("a client has no _id, or two")
	}
	if provider := object["_provider"]; !saysNothing(provider) {
		if err := o.addProvider(provider, realm); err != nil {
			report.problem(fmt.Sprintf("client %q", loggedText(id)), "_provider: %v", err)
		}
	}
	r := o.realm(realm)
	r.clients = append(r.clients, amClient{id, document})
	return nil
}

// addProvider adds the provider of a realm. Frodo has it again with each client.
func (o amObjects) addProvider(document json.RawMessage, realm string) error {
	object, err := decodeImported(document)
	if err != nil {
		return err
	}
	for _, wrapping := range []string{"_rev", "location", "nextDescendents"} { // frodo's, where it exports services
		delete(object, wrapping)
	}
	r := o.realm(realm)
	if r.provider == nil {
		r.provider = object
		return nil
	}
	was, err1 := json.Marshal(r.provider)
	is, err2 := json.Marshal(object)
	if err1 != nil || err2 != nil || !bytes.Equal(was, is) {
		return fmt.Errorf("it has another OAuth2 provider of the realm, and the first counts")
	}
	return nil
}

// amRealm imports a realm.
func (m *migration) amRealm(from string, objects *amRealm) error {
	realm, err := m.realm(from)
	if err != nil {
		return err
	}
	provider := m.amProvider(realm, objects.provider)
	seen := make(map[string][]byte, len(objects.clients))
	for _, client := range objects.clients {
		var compact bytes.Buffer
		if err := json.Compact(&compact, client.object); err != nil {
			return err
		}
		if bytes.Equal(seen[client.id], compact.Bytes()) {
			continue // exported twice, as by itself and among all
		}
		seen[client.id] = compact.Bytes()
		report, err := m.client(realm, client.id)
		if err != nil {
			return err
		}
		object, err := decodeImported(client.object)
		if err != nil {
			return err
		}
		m.amClient(realm, report, provider, object)
	}
	if !m.managed {
		realm.answersAsAM()
	}
	return nil
}

// answersAsAM has the realm answer as AM does, since its programs were written for that. Options by which it
// would take more are left to people; the report says when they may be needed.
func (r *importedRealm) answersAsAM() {
	r.AMCompat = &AMCompat{}
	r.report.note("with am_compat, the realm answers as AM does; without that line, as the RFCs have it")
	r.report.note("sub is (age!<client ID>), as in new installations of AM 7.1 and later; where AM says the bare ID, as it does after an upgrade, give am_compat a block with subject bare")
	for _, client := range r.Clients {
		if slices.Contains(client.Auth, oauth.AuthPrivateKeyJWT) {
			r.report.note("assertions of clients must have the issuer as their audience; where they have the URL of the token endpoint, give am_compat a block with assertion_audience token_endpoint")
			return
		}
	}
}

// amSettings returns the settings of all groups. Those of the groups in apart are called by the group, too,
// because others have such names as well. Those of the groups in ignored are left.
func amSettings(object map[string]json.RawMessage, apart string, ignored []string) (values map[string]json.RawMessage, inherited map[string]bool, err error) {
	values, inherited = make(map[string]json.RawMessage), make(map[string]bool)
	add := func(name string, value json.RawMessage) error {
		if _, twice := values[name]; twice {
			return fmt.Errorf("it has %s twice", quotedField(name))
		}
		if members, err := decodeImported(value); err == nil && len(members) == 2 && members["inherited"] != nil && members["value"] != nil {
			inherited[name] = string(members["inherited"]) == "true"
			value = members["value"]
		}
		values[name] = value
		return nil
	}
	for _, name := range sortedKeys(object) {
		switch {
		case name == "_id", name == "_rev", name == "_type", name == "_provider", slices.Contains(ignored, name):
			continue
		case !strings.HasSuffix(name, "Config") && name != "consent":
			if err := add(name, object[name]); err != nil {
				return nil, nil, err
			}
			continue
		}
		group, err := decodeImported(object[name])
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", quotedField(name), err)
		}
		for _, setting := range sortedKeys(group) {
			called := setting
			if name == apart {
				called = name + "." + setting
			}
			if err := add(called, group[setting]); err != nil {
				return nil, nil, err
			}
		}
	}
	return values, inherited, nil
}

// amProvider are the settings of a provider that matter to its clients.
type amProvider struct {
	// refuses is set if it has no client credentials grant.
	refuses bool
	// bindsNothing is set if it binds no tokens to certificates, whatever clients say.
	bindsNothing bool
	format       string
	// algorithm is what its JWTs are signed with, even if only those of single clients are JWTs.
	algorithm string
	lifetime  caddy.Duration
}

// amUserGroups are the groups of a provider that are for users who log in, or for agents of them.
var amUserGroups = []string{"advancedOIDCConfig", "aiAgentsConfig", "cibaConfig", "consent", "coreOIDCConfig", "deviceCodeConfig"}

const amSigning = "JWTs are signed with ES256 here, by keys that are published, unless the realm has signing; for HS256, am_compat has jwt_hmac_secret"

const amScripts = "scripts and plug-ins of AM don't run here"

// amProviderRest are the settings of a provider that aren't read.
var amProviderRest = map[string]ignored{
	"allowClientCredentialsInTokenRequestQueryParameters": {"credentials in the query are refused here, unless am_compat has credentials_in_query", []string{"false"}},
	"allowDynamicRegistration":                            {"clients don't register themselves here", []string{"false"}},
	"allowedAudienceValues":                               {"an assertion must have the issuer alone as its audience here, or the token endpoint with assertion_audience in am_compat", nil},
	"introspectionAudienceValidationEnabled":              {"say so with introspect audience, for each client that asks about tokens", []string{"false"}},
	"macaroonTokensEnabled":                               {"there are no macaroons here", []string{"false"}},
	"persistentClaims":                                    {"there are no such claims here", nil},
	"tlsCertificateRevocationCheckingEnabled":             {"say so in Caddy's own tls", []string{"false"}},
	"tlsClientCertificateTrustedHeader":                   {"say so with client_certificates", nil},
	"tokenCompressionEnabled":                             {"tokens are not compressed here", []string{"false"}},
	"tokenSigningHmacSharedSecret":                        {"for JWTs with HS256, give it to jwt_hmac_secret in am_compat, with jwt_hmac_base64", nil},
	"tokenEncryptionEnabled":                              {"JWTs are not encrypted here; token_format sealed is", []string{"false"}},
	"usePolicyEngineForScope":                             {"there is no policy engine here: a client gets all scopes of its own that it asks for", []string{"false"}},
	"useTokenIntrospectionClaimForJWT":                    {"the form of signed answers is RFC 9701's here", []string{"false"}},
	// The scripts of these names are AM's own defaults, which change nothing.
	"accessTokenModificationScript": {amScripts, []string{"[Empty]", "d22f9a0c-426a-4466-b95e-d0f125b0d5fa", "39c08084-1238-43e8-857f-2e11005eac49"}},
	"accessTokenMayActScript":       {amScripts, []string{"[Empty]"}},
	"accessTokenEnricherClass":      {amScripts, []string{"org.forgerock.*"}},
	"accessTokenModifierClass":      {amScripts, []string{"org.forgerock.*"}},
	"evaluateScopeClass":            {amScripts, []string{"org.forgerock.*"}},
	"evaluateScopePluginType":       {amScripts, []string{"JAVA"}},
	"scopeImplementationClass":      {amScripts, []string{"org.forgerock.*"}},
	"validateScopeClass":            {amScripts, []string{"org.forgerock.*"}},
	"validateScopePluginType":       {amScripts, []string{"JAVA"}},

	// These are for users who log in, for other grants, or for the registration of clients; or they are the
	// settings of what is named above.
	"acceptAudienceParametersInTokenExchangeRequests": {}, "accessTokenModificationPluginType": {}, "authenticationAttributes": {},
	"authorizeEndpointDataProvider*": {}, "codeLifetime": {}, "codeVerifierEnforced": {}, "customLoginUrlTemplate": {}, "defaultScopes": {},
	"displayNameAttribute": {}, "dynamicClientRegistrationScope": {}, "dynamicClientRegistrationScript": {},
	"dynamicClientRegistrationSoftwareStatementRequired": {}, "enableApplicationContext": {}, "enableRichAuthorizationRequests": {},
	"evaluateScopeScript": {}, "expClaimRequiredInRequestObject": {}, "generateRegistrationAccessTokens": {}, "hashSalt": {},
	"includeClientIdClaimInStatelessTokens": {}, "includeSubnameInTokenClaims": {}, "issueRefreshToken": {},
	"issueRefreshTokenOnRefreshedToken": {}, "macaroonTokenFormat": {}, "maxAgeOfRequestObjectNbfClaim": {},
	"maxDifferenceBetweenRequestObjectNbfAndExp": {}, "moduleMessageEnabledInPasswordGrant": {}, "nbfClaimRequiredInRequestObject": {},
	"oidcClaims*": {}, "oidcMayActScript": {}, "parRequestUriLifetime": {}, "passwordGrantAuthService": {}, "refreshTokenGracePeriod": {},
	"refreshTokenLifetime": {}, "requestObjectProcessing": {}, "requirePushedAuthorizationRequests": {}, "requiredSoftwareStatementAttestedAttributes": {},
	"responseTypeClasses": {}, "restrictTokenExchangeScopesToSubjectTokenScopes": {}, "scopesPolicySet": {}, "storeSoftwareStatementInOAuth2Client": {},
	"supportedScopes": {}, "supportedSubjectTypes": {}, "tlsClientCertificateChainValidationEnabled": {}, "tlsClientCertificateHeaderFormat": {},
	"tokenExchangeClasses": {}, "tokenSigningAlgorithm": {}, "tokenValidatorClasses": {}, "userCodeGeneratorClass": {}, "validateScopeScript": {},
}

// amProvider imports the provider of a realm. object is nil if the export has none.
func (m *migration) amProvider(realm *importedRealm, object map[string]json.RawMessage) amProvider {
	if object == nil {
		realm.report.lose("OAuth2 provider", "it is not in the export, so its lifetime of tokens, 1h by default, and its grant types are not known")
		realm.TokenLifetime = m.amDefault(realm)
		return amProvider{}
	}
	values, _, err := amSettings(object, "", amUserGroups)
	if err != nil {
		realm.report.lose("OAuth2 provider", "%v", err)
		realm.TokenLifetime = m.amDefault(realm)
		return amProvider{}
	}
	f := realm.report.fields(values)
	var p amProvider
	if _, there := values["grantTypes"]; there {
		p.refuses = !slices.Contains(f.texts("grantTypes"), oauth.GrantClientCredentials)
	}
	if _, there := values["tlsCertificateBoundAccessTokensEnabled"]; there {
		p.bindsNothing = !f.flag("tlsCertificateBoundAccessTokensEnabled")
	}
	if p.lifetime = f.seconds("accessTokenLifetime"); p.lifetime == 0 {
		f.lost("accessTokenLifetime", "it is none here; tokens live for an hour")
		p.lifetime = m.amDefault(realm)
	}
	p.format = oauth.FormatOpaque
	_ = json.Unmarshal(values["tokenSigningAlgorithm"], &p.algorithm) // what can't be read is reported below
	if f.flag("statelessTokensEnabled") {
		if m.issuer == "" || m.managed {
			f.lost("statelessTokensEnabled", "tokens are opaque here unless a realm with an issuer has token_format jwt")
		} else {
			p.format = oauth.FormatJWT
			if algorithm := f.text("tokenSigningAlgorithm"); algorithm != "" && algorithm != keys.ES256 {
				f.lost("tokenSigningAlgorithm", amSigning)
			}
		}
	}
	f.rest(amProviderRest)
	if !m.managed {
		realm.TokenLifetime = p.lifetime
		if p.format != oauth.FormatOpaque || realm.report.Name != rootRealm {
			realm.TokenFormat = p.format // others would have root's
		}
	}
	return p
}

// amDefault is the lifetime of tokens where nothing is known: AM's own default, which others would have
// from root otherwise.
func (m *migration) amDefault(realm *importedRealm) caddy.Duration {
	if m.managed || realm.report.Name == rootRealm {
		return 0
	}
	return amLifetime
}

// amLifetime is how long tokens live in AM where nothing is said.
const amLifetime = caddy.Duration(time.Hour)

// amClientRest are the settings of a client that aren't read.
var amClientRest = map[string]ignored{
	"redirectionUris":                  {nobodyLogsIn + ", so there is nobody to send back", nil},
	"postLogoutRedirectUri":            {nobodyLogsIn, nil},
	"clientSessionUri":                 {nobodyLogsIn, nil},
	"backchannel_logout_uri":           {nobodyLogsIn, nil},
	"claimsRedirectionUris":            {"there is no UMA here", nil},
	"javascriptOrigins":                {"CORS is for Caddy's header directive; see the cookbook", nil},
	"customProperties":                 {"a client has no properties of its own here", nil},
	"treeName":                         {nobodyLogsIn, []string{"[Empty]"}},
	"updateAccessToken":                {"clients don't register themselves here", nil},
	"idTokenEncryptionEnabled":         {noIDTokens, []string{"false"}},
	"idTokenPublicEncryptionKey":       {noIDTokens, nil},
	"idTokenSignedResponseAlg":         {noIDTokens, []string{"RS256"}},
	"userinfoResponseFormat":           {noUserinfo, []string{"JSON"}},
	"userinfoSignedResponseAlg":        {noUserinfo, nil},
	"userinfoEncryptedResponseAlg":     {noUserinfo, nil},
	"requestParameterSignedAlg":        {nobodyLogsIn, nil},
	"requestParameterEncryptedAlg":     {nobodyLogsIn, nil},
	"tokenIntrospectionResponseFormat": {"a caller that wants a signed answer says so by Accept here", []string{"JSON"}},
	"jwksCacheTimeout":                 {"keys are fetched again after 15 minutes, or as their server says", []string{"3600000"}},
	"jwkStoreCacheMissCacheTime":       {"an unknown key is asked for at most once a minute", []string{"60000"}},

	// These are for people, for users who log in, for other grants, or defaults of what is named above.
	"authorizationCodeLifetime": {}, "authorizationResponse*": {}, "backchannel_logout_session_required": {}, "claims": {}, "clientName": {},
	"clientUri": {}, "contacts": {}, "defaultAcrValues": {}, "defaultMaxAge": {}, "defaultMaxAgeEnabled": {}, "descriptions": {},
	"idTokenEncryptionAlgorithm": {}, "idTokenEncryptionMethod": {}, "isConsentImplied": {}, "jwtTokenLifetime": {}, "logoUri": {},
	"loopbackInterfaceRedirection": {}, "mixUpMitigation": {}, "name": {}, "policyUri": {}, "refreshTokenGracePeriod": {}, "refreshTokenLifetime": {},
	"requestParameterEncryptedEncryptionAlgorithm": {}, "requestUris": {}, "require_pushed_authorization_requests": {}, "responseTypes": {},
	"sectorIdentifierUri": {}, "softwareIdentity": {}, "softwareVersion": {}, "subjectType": {}, "tokenExchangeAuthLevel": {},
	"tokenIntrospectionEncryptedResponse*": {}, "tokenIntrospectionSignedResponseAlg": {}, "tosURI": {}, "userinfoEncryptedResponseEncryptionAlgorithm": {},
}

// amOverrides is the group of a client's own settings in the place of the provider's, which count only if
// that says so.
const amOverrides = "overrideOAuth2ClientConfig"

// amOverrideRest are those that aren't read.
var amOverrideRest = map[string]ignored{
	amOverrides + ".usePolicyEngineForScope":       amProviderRest["usePolicyEngineForScope"],
	amOverrides + ".tokenEncryptionEnabled":        amProviderRest["tokenEncryptionEnabled"],
	amOverrides + ".accessTokenModificationScript": amProviderRest["accessTokenModificationScript"],
	amOverrides + ".accessTokenMayActScript":       amProviderRest["accessTokenMayActScript"],
	amOverrides + ".evaluateScopePluginType":       {amScripts, []string{"PROVIDER", "JAVA"}},
	amOverrides + ".validateScopePluginType":       {amScripts, []string{"PROVIDER", "JAVA"}},
	amOverrides + ".evaluateScopeClass":            {amScripts, []string{"org.forgerock.*"}},
	amOverrides + ".validateScopeClass":            {amScripts, []string{"org.forgerock.*"}},
	amOverrides + ".customLoginUrlTemplate":        {nobodyLogsIn, nil},

	amOverrides + ".accessTokenModificationPluginType": {}, amOverrides + ".authorizeEndpointDataProvider*": {}, amOverrides + ".clientsCanSkipConsent": {},
	amOverrides + ".enableRemoteConsent": {}, amOverrides + ".evaluateScopeScript": {}, amOverrides + ".issueRefreshToken*": {}, amOverrides + ".oidc*": {},
	amOverrides + ".overrideableOIDCClaims": {}, amOverrides + ".remoteConsentServiceId": {}, amOverrides + ".scopesPolicySet": {},
	amOverrides + ".tokenSigningAlgorithm": {}, amOverrides + ".useForceAuthnForMaxAge": {}, amOverrides + ".useForceAuthnForPromptLogin": {}, amOverrides + ".validateScopeScript": {},
}

// amClient imports a client.
func (m *migration) amClient(realm *importedRealm, report *reportedClient, provider amProvider, object map[string]json.RawMessage) {
	client := &Client{}
	values, inherited, err := amSettings(object, amOverrides, nil)
	if err != nil {
		report.leaveOut("%v", err)
		return
	}
	// The secret is not taken as the others are, since an expression in its place is no reason to leave the
	// client out.
	secret, secretField := amSecret(values)
	f := report.fields(values)
	f.inherited = inherited

	if group := f.text("agentgroup"); group != "" {
		report.lose("agentgroup", "there are no groups here; what the client has of %q was taken as the export has it", loggedText(group))
	}
	if kind := f.text("clientType"); kind != "" && kind != "Confidential" {
		report.leaveOut("clientType: it is a public client, which can't prove who it is")
	}
	switch status := f.text("status"); status {
	case "Inactive":
		client.Disabled = true
	case "", "Active":
	default:
		report.leaveOut("status: it is neither Active nor Inactive")
	}
	client.Scopes = f.amScopes("scopes")
	client.DefaultScopes = f.amScopes("defaultScopes")
	amSpecialScopes(report, client)

	client.TokenLifetime = f.seconds("accessTokenLifetime")
	if client.TokenLifetime == 0 && m.managed {
		client.TokenLifetime = provider.lifetime
	}
	client.CertificateBound = f.flag("mTLSCertificateBoundAccessTokens")
	if client.CertificateBound && provider.bindsNothing {
		client.CertificateBound = false
		report.lose("mTLSCertificateBoundAccessTokens", "the provider binds no tokens to certificates, so it has no effect in AM either")
	}
	m.amOverrides(report, client, provider, f)
	m.amGrants(report, client, provider, f)
	m.amAuth(realm, report, client, f, secretField, secret)
	f.rest(amClientRest)
	m.add(realm, report, client)
}

// amSecret removes the secret of a client from its settings, and returns it with the name of its field. It
// is empty if there is none that can be read.
func amSecret(values map[string]json.RawMessage) (secret, field string) {
	field = "userpassword"
	if json.Unmarshal(values[field], &secret) != nil {
		secret = ""
	}
	if secret == "" && !saysNothing(values["userpassword-encrypted"]) {
		field, secret = "userpassword-encrypted", "{encrypted}"
	}
	delete(values, "userpassword")
	delete(values, "userpassword-encrypted")
	return secret, field
}

// amScopes returns scopes without what AM has behind and before them. What would still look like that in a
// configuration is none: the realm would take it for another scope, maybe one that allows more.
func (f *importedFields) amScopes(field string) (scopes []string) {
	for _, text := range f.texts(field) {
		scope := scopeOfAM(text)
		if scopeOfAM(scope) != scope {
			f.lost(field, fmt.Sprintf("%q can't be one here", loggedText(scope)))
			continue
		}
		scopes = append(scopes, scope)
	}
	return scopes
}

// amSpecialScopes turns scopes by which a client may ask about others' tokens into the option that says so
// here.
func amSpecialScopes(report *reportedClient, client *Client) {
	for _, scope := range client.Scopes {
		switch scope {
		case amIntrospectAny:
			report.lose("scopes", "%s: it may ask about the tokens of its own realm alone", amIntrospectAny)
			fallthrough
		case amIntrospectAll:
			client.Introspect = oauth.IntrospectRealm
		case "openid":
			report.lose("scopes", "openid is a scope like any other: %s", noIDTokens)
		}
	}
	special := func(scope string) bool { return scope == amIntrospectAll || scope == amIntrospectAny }
	client.Scopes = slices.DeleteFunc(client.Scopes, special)
	client.DefaultScopes = slices.DeleteFunc(client.DefaultScopes, special)
}

// amOverrides imports what a client has in the place of the provider's settings.
func (m *migration) amOverrides(report *reportedClient, client *Client, provider amProvider, f *importedFields) {
	if !f.flag(amOverrides + ".providerOverridesEnabled") {
		for field := range f.values {
			if strings.HasPrefix(field, amOverrides+".") {
				delete(f.values, field)
			}
		}
		return
	}
	format := oauth.FormatOpaque
	if f.flag(amOverrides + ".statelessTokensEnabled") {
		format = oauth.FormatJWT
	}
	switch {
	case format == oauth.FormatJWT && (m.issuer == "" || m.managed):
		report.lose("statelessTokensEnabled", "its tokens are opaque here unless it has token_format jwt, and the realm an issuer")
	case format != cmp.Or(provider.format, oauth.FormatOpaque) && !m.managed:
		client.TokenFormat = format
	}
	if format == oauth.FormatJWT && m.issuer != "" && !m.managed {
		var algorithm string
		f.list(amOverrides+".tokenSigningAlgorithm", &algorithm)
		if provider.format != oauth.FormatJWT { // otherwise the provider's is reported for the realm
			algorithm = cmp.Or(algorithm, provider.algorithm)
		}
		if algorithm != "" && algorithm != keys.ES256 {
			report.lose("tokenSigningAlgorithm", amSigning)
		}
	}
	overrides := *f
	overrides.values = make(map[string]json.RawMessage)
	for _, field := range sortedKeys(f.values) {
		if strings.HasPrefix(field, amOverrides+".") {
			overrides.values[field] = f.values[field]
			delete(f.values, field)
		}
	}
	overrides.rest(amOverrideRest)
}

// amGrants leaves a client out that can't use client credentials, unless it asks about tokens.
func (m *migration) amGrants(report *reportedClient, client *Client, provider amProvider, f *importedFields) {
	grants := f.texts("grantTypes")
	switch may := slices.Contains(grants, oauth.GrantClientCredentials); {
	case provider.refuses:
		report.leaveOut("the provider of its realm has no client credentials grant")
	case !may && client.Introspect != "":
		client.GrantTypes = []string{"none"}
	case !may:
		report.leaveOut("grantTypes: it can't use client credentials, but %s", listedOrNone(grants))
	}
	for _, grant := range grants {
		if grant != oauth.GrantClientCredentials {
			report.lose("grantTypes", "there is no %s here", loggedText(grant))
		}
	}
}

// listedOrNone returns texts of an export for people.
func listedOrNone(texts []string) string {
	if len(texts) == 0 {
		return "none at all"
	}
	return strings.Join(loggedTexts(texts), ", ")
}

// amAuth imports how a client authenticates.
func (m *migration) amAuth(realm *importedRealm, report *reportedClient, client *Client, f *importedFields, secretField, secret string) {
	if f.text("secretLabelIdentifier") != "" {
		report.lose("secretLabelIdentifier", "secrets and keys under this label are in AM's secret stores, not in the export")
	}
	method := f.text("tokenEndpointAuthMethod")
	switch method {
	case "", oauth.AuthBasic, oauth.AuthPost:
		// AM enforces which of the two it is only for clients that may ask for openid.
		if method != "" && slices.Contains(client.Scopes, "openid") {
			client.Auth = []string{method}
		}
		if report.LeftOut == "" {
			m.secret(report, client, secretField, secret)
		}
	case oauth.AuthPrivateKeyJWT:
		m.amKeys(report, client, f)
	case oauth.AuthTLS:
		client.TLSClientAuth = &CertificateSubject{Kind: "subject_dn", Value: f.text("mTLSSubjectDN")}
	case oauth.AuthSelfSigned:
		if trusted := f.text("mTLSTrustedCert"); trusted != "" {
			m.certificate(realm, report, client, "mTLSTrustedCert", trusted)
		} else {
			report.leaveOut("mTLSTrustedCert: the certificate of the client is not in the export")
		}
	case "none":
		report.leaveOut("tokenEndpointAuthMethod: it is none, so the client can't prove who it is")
	default:
		report.leaveOut("tokenEndpointAuthMethod: there is no %s here", loggedText(method))
	}
	if client.Auth == nil && !takesSecret(method) {
		client.Auth = []string{method}
		if secret != "" {
			report.lose(secretField, "it authenticates by %s here, and by nothing else", loggedText(method))
		}
	}
	// What is left of these are settings of methods that it doesn't use.
	for _, unused := range []string{"publicKeyLocation", "jwksUri", "jwkSet", "clientJwtPublicKey", "mTLSSubjectDN", "mTLSTrustedCert", "tokenEndpointAuthSigningAlgorithm"} {
		delete(f.values, unused)
	}
}

// takesSecret reports whether a method of AM needs a secret. It is the default.
func takesSecret(method string) bool { return method == "" || takesSecrets([]string{method}) }

// amKeys imports the keys by which a client signs.
func (m *migration) amKeys(report *reportedClient, client *Client, f *importedFields) {
	client.AssertionAlgorithms = report.algorithms("tokenEndpointAuthSigningAlgorithm", f.text("tokenEndpointAuthSigningAlgorithm"))
	switch location := f.text("publicKeyLocation"); location {
	case "", "jwks_uri":
		if client.JWKSURI = f.text("jwksUri"); !canBeWritten(client.JWKSURI) {
			report.leaveOut("jwksUri: it has characters that can't be written in a Caddyfile")
		}
	case "jwks":
		report.keys(client, "jwkSet", []byte(f.text("jwkSet")))
	case "x509":
		report.keyOfCertificate(client, "clientJwtPublicKey", f.text("clientJwtPublicKey"))
	default:
		report.leaveOut("publicKeyLocation: %s is unknown", loggedText(location))
	}
}

// algorithms returns the one by which a client signs, for assertion_algorithms; none if the export has
// none.
func (c *reportedClient) algorithms(field, algorithm string) []string {
	if algorithm == "" {
		return nil
	}
	if err := checkAssertionAlgorithms([]string{algorithm}); err != nil {
		c.leaveOut("%s: %v", field, err)
		return nil
	}
	return []string{algorithm}
}
