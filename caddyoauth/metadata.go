package caddyoauth

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// servePublic answers a request to one of the endpoints that know no clients, and reports whether it
// was one.
func (s *Server) servePublic(w http.ResponseWriter, r *http.Request, e *route) bool {
	switch e.kind {
	case endpointMetadata, endpointKeys:
		s.servePublished(w, r, e)
	case endpointAuthorize:
		refuseAuthorization(w, r)
	default:
		return false
	}
	return true
}

// authorizePath is where a realm has its authorization endpoint, after the base path.
const authorizePath = "/authorize"

// nameAuthorization has the metadata of a realm name an authorization endpoint, and has its servers
// serve that, because the document about a resource names the realm's issuer. The endpoint supports
// no response type, so RFC 8414 section 2 lets the metadata leave it out. But MCP clients, of the
// SDKs for TypeScript and Python, take no metadata without one, although those with the client
// credentials grant never call it. They come from such documents, so other realms need none.
func (a *App) nameAuthorization(r *servedRealm) error {
	r.authorization = true
	for _, s := range a.servers { // those to come look for themselves
		if slices.Contains(s.served, r) {
			if err := s.layOutMetadata(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// refuseAuthorization answers at the authorization endpoint. No client has a redirection URI, so it
// redirects nobody (RFC 6749 section 4.1.2.1).
func refuseAuthorization(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	dontAwaitBody(w, r)
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost:
		writeError(w, http.StatusBadRequest, &oauth.Error{Code: oauth.CodeUnsupportedResponseType, Description: "nobody can log in here; programs get tokens from the token endpoint"})
	default:
		h.Set("Allow", "GET, HEAD, POST")
		writeError(w, http.StatusMethodNotAllowed, &oauth.Error{Code: oauth.CodeInvalidRequest, Description: "the method must be GET or POST"})
	}
}

// servePublished answers with a document that is for everybody: the realm's metadata, or its JWK set.
func (s *Server) servePublished(w http.ResponseWriter, r *http.Request, e *route) {
	h := w.Header()
	dontAwaitBody(w, r) // it means nothing
	refuse := func(status int, refusal *oauth.Error) {
		h.Set("Cache-Control", "no-store")
		writeError(w, status, refusal)
	}
	switch {
	case e.kind == endpointMetadata && e.metadata == nil:
		refuse(http.StatusNotFound, &oauth.Error{Code: oauth.CodeInvalidRequest, Description: "there is no OpenID Connect here, and no metadata under its name"})
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		h.Set("Allow", "GET, HEAD")
		refuse(http.StatusMethodNotAllowed, &oauth.Error{Code: oauth.CodeInvalidRequest, Description: "the method must be GET"})
		return
	case e.contradictedBy(r.URL.RawQuery):
		refuse(http.StatusBadRequest, errOtherRealm)
		return
	}
	if e.kind == endpointKeys {
		s.serveKeys(w, r, e)
		return
	}
	document, err := s.currentMetadata(r.Context(), e)
	if err != nil {
		h.Set("Retry-After", retryAfter)
		refuse(http.StatusServiceUnavailable, &oauth.Error{Code: oauth.CodeUnavailable, Description: "try again later"})
		return
	}
	serveDocument(w, r, document, metadataMaxAge)
}

// currentMetadata returns a realm's document with what its managed clients make it offer now, as far as the
// store has been asked.
func (s *Server) currentMetadata(ctx context.Context, e *route) ([]byte, error) {
	if e.realm.managed == nil {
		return e.metadata, nil
	}
	engine, err := e.realm.await(ctx)
	if err != nil {
		return nil, err
	}
	return s.metadata(e.realm, engine.ManagedOffers())
}

// metadataMaxAge is how long others may keep the metadata, in seconds.
const metadataMaxAge = "300"

// serveDocument answers with a JSON document that others may keep for maxAge seconds.
func serveDocument(w http.ResponseWriter, r *http.Request, document []byte, maxAge string) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "public, max-age="+maxAge)
	h.Set("Access-Control-Allow-Origin", "*") // it is public, and a page may want to read it
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		w.Write(document) //nolint:gosec,nolintlint // it is JSON, made of the configuration alone
	}
}

// named returns what the paths begin with that the metadata of a realm names, and that a client is
// pointed to.
func (s *Server) named(r *servedRealm) string {
	bases := s.bases(r)
	if r.name != s.DefaultRealm || r.name == rootRealm || r.issuer == nil {
		return bases[0]
	}
	// Another handler, at another host, may serve the realm where it is not the default one, and the
	// issuer may be there. The issuer says which form it has.
	at := strings.TrimSuffix(r.issuer.Path, "/")
	if strings.HasSuffix(at, bases[0]) && !strings.HasSuffix(at, bases[1]) {
		return bases[0]
	}
	return bases[1]
}

// front returns what comes before our paths in the URLs of a realm with an issuer.
func (s *Server) front(r *servedRealm) string {
	front, named := url.URL{Scheme: r.issuer.Scheme, Host: r.issuer.Host}, s.named(r)
	// Usually the issuer ends with a path under which we serve, after whatever a proxy in front of us
	// adds. If not, the endpoints are at the issuer's host.
	at := strings.TrimSuffix(r.issuer.Path, "/")
	for _, base := range s.basePaths {
		own := base + strings.TrimPrefix(named, s.BasePath)
		if r.name == rootRealm && !s.isDefault(r) && !strings.HasSuffix(at, own) {
			own = base // elsewhere, it is the default one
		}
		if before, ok := strings.CutSuffix(at, own); ok {
			front.Path = before
			break
		}
	}
	return front.String()
}

// publicBase returns what the URLs of the endpoints begin with, for a realm with an issuer.
func (s *Server) publicBase(r *servedRealm) string {
	named := s.named(r)
	if strings.HasSuffix(strings.TrimSuffix(r.issuer.Path, "/"), named) {
		return strings.TrimSuffix(r.settings.Issuer, "/")
	}
	return s.front(r) + (&url.URL{Path: named}).EscapedPath()
}

// The paths of the endpoints that the metadata names, after what its URLs begin with.
const (
	tokenPath         = "/access_token"
	introspectionPath = "/introspect"
	revocationPath    = "/token/revoke"
)

// endpointAliases are the URLs of the endpoints for clients that show a certificate.
type endpointAliases struct {
	Token         string `json:"token_endpoint"`
	Introspection string `json:"introspection_endpoint"`
	Revocation    string `json:"revocation_endpoint"`
}

// metadata makes a realm's document (RFC 8414 section 2). It advertises what is served and
// nothing else. Its URLs depend on the configured issuer alone. offers are of the managed clients.
func (s *Server) metadata(r *servedRealm, offers *oauth.Offers) ([]byte, error) {
	base := s.publicBase(r)
	methods := append([]string{}, offers.Auth...)
	for _, c := range r.settings.Clients {
		if !c.Disabled {
			methods = append(methods, c.Auth...)
		}
	}
	if r.managed != nil {
		methods = append(methods, r.managedMethods()...)
	}
	for i, m := range methods {
		if m == oauth.AuthFederated {
			methods[i] = oauth.AuthPrivateKeyJWT // it is one method to others
		}
	}
	slices.Sort(methods)
	methods = slices.Compact(methods)
	introspectionMethods := methods
	if r.settings.IntrospectScope != "" {
		// RFC 8414 section 2 has types of access tokens in this list, too.
		introspectionMethods = append(slices.Clone(methods), "Bearer")
	}
	authorization := ""
	if r.authorization {
		authorization = base + authorizePath
	}
	algorithms := r.assertionAlgorithms(offers)
	var proofAlgorithms []string
	if r.settings.Proofs != nil {
		proofAlgorithms = r.settings.Proofs.Algorithms()
	}
	certificateBound := offers.CertificateBound
	for _, c := range r.settings.Clients {
		certificateBound = certificateBound || c.CertificateBound && !c.Disabled
	}
	var aliases *endpointAliases
	if r.mtlsBase != "" {
		aliases = &endpointAliases{r.mtlsBase + tokenPath, r.mtlsBase + introspectionPath, r.mtlsBase + revocationPath}
	}
	jwksURI := ""
	var introspectionAlgorithms []string
	if r.signing != nil {
		jwksURI = base + "/connect/jwk_uri"
		introspectionAlgorithms = []string{r.signing.signs()}
	}
	return json.Marshal(struct {
		Issuer                string   `json:"issuer"`
		AuthorizationEndpoint string   `json:"authorization_endpoint,omitempty"`
		TokenEndpoint         string   `json:"token_endpoint"`
		IntrospectionEndpoint string   `json:"introspection_endpoint"`
		RevocationEndpoint    string   `json:"revocation_endpoint"`
		JWKSURI               string   `json:"jwks_uri,omitempty"` // only if there are keys
		GrantTypes            []string `json:"grant_types_supported"`
		// Empty, because nobody can log in. RFC 8414 requires the member all the same.
		ResponseTypes            []string `json:"response_types_supported"`
		TokenAuthMethods         []string `json:"token_endpoint_auth_methods_supported"`
		IntrospectionAuthMethods []string `json:"introspection_endpoint_auth_methods_supported"`
		RevocationAuthMethods    []string `json:"revocation_endpoint_auth_methods_supported"`
		IntrospectionAlgorithms  []string `json:"introspection_signing_alg_values_supported,omitempty"` // RFC 9701 section 7
		// These are there if a client may authenticate by an assertion.
		TokenAuthAlgorithms         []string `json:"token_endpoint_auth_signing_alg_values_supported,omitempty"`
		IntrospectionAuthAlgorithms []string `json:"introspection_endpoint_auth_signing_alg_values_supported,omitempty"`
		RevocationAuthAlgorithms    []string `json:"revocation_endpoint_auth_signing_alg_values_supported,omitempty"`
		DPoPAlgorithms              []string `json:"dpop_signing_alg_values_supported,omitempty"` // RFC 9449 section 5.1
		// These are for clients that show a certificate (RFC 8705 sections 3.3 and 5).
		CertificateBound bool             `json:"tls_client_certificate_bound_access_tokens,omitempty"`
		MTLSAliases      *endpointAliases `json:"mtls_endpoint_aliases,omitempty"`
	}{
		Issuer:                   r.settings.Issuer,
		AuthorizationEndpoint:    authorization,
		TokenEndpoint:            base + tokenPath,
		IntrospectionEndpoint:    base + introspectionPath,
		RevocationEndpoint:       base + revocationPath,
		JWKSURI:                  jwksURI,
		GrantTypes:               []string{oauth.GrantClientCredentials},
		ResponseTypes:            []string{},
		TokenAuthMethods:         methods,
		IntrospectionAuthMethods: introspectionMethods,
		RevocationAuthMethods:    methods,
		IntrospectionAlgorithms:  introspectionAlgorithms,

		TokenAuthAlgorithms:         algorithms,
		IntrospectionAuthAlgorithms: algorithms,
		RevocationAuthAlgorithms:    algorithms,
		DPoPAlgorithms:              proofAlgorithms,

		CertificateBound: certificateBound,
		MTLSAliases:      aliases,
	})
}
