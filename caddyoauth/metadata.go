package caddyoauth

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// serveMetadata answers with the realm's metadata document.
func (s *Server) serveMetadata(w http.ResponseWriter, r *http.Request, e *route) {
	h := w.Header()
	refuse := func(status int, refusal *oauth.Error) {
		h.Set("Cache-Control", "no-store")
		dontAwaitBody(w, r)
		writeError(w, status, refusal)
	}
	switch {
	case e.metadata == nil:
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
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "public, max-age=300")
	h.Set("Access-Control-Allow-Origin", "*") // it is public, and a page may want to read it
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		w.Write(e.metadata)
	}
}

// publicBase returns what the URLs of the endpoints begin with, for a realm with an issuer.
func (s *Server) publicBase(r *servedRealm) string {
	path := s.BasePath + realmPath(r.name)
	// Usually the issuer ends with the path under which we serve, after whatever a proxy in
	// front of us adds. If not, the endpoints are at the issuer's host.
	if strings.HasSuffix(strings.TrimSuffix(r.issuer.Path, "/"), path) {
		return strings.TrimSuffix(r.settings.Issuer, "/")
	}
	return (&url.URL{Scheme: r.issuer.Scheme, Host: r.issuer.Host, Path: path}).String()
}

// metadata makes a realm's document (RFC 8414 section 2). It advertises what is served and
// nothing else. Its URLs depend on the configured issuer alone.
func (s *Server) metadata(r *servedRealm) ([]byte, error) {
	base := s.publicBase(r)
	methods := []string{}
	for _, c := range r.settings.Clients {
		for _, m := range c.Auth {
			if !c.Disabled && !slices.Contains(methods, m) {
				methods = append(methods, m)
			}
		}
	}
	slices.Sort(methods)
	return json.Marshal(struct {
		Issuer                string   `json:"issuer"`
		TokenEndpoint         string   `json:"token_endpoint"`
		IntrospectionEndpoint string   `json:"introspection_endpoint"`
		RevocationEndpoint    string   `json:"revocation_endpoint"`
		GrantTypes            []string `json:"grant_types_supported"`
		// Empty, because there is no authorization endpoint. RFC 8414 requires the member all the
		// same.
		ResponseTypes            []string `json:"response_types_supported"`
		TokenAuthMethods         []string `json:"token_endpoint_auth_methods_supported"`
		IntrospectionAuthMethods []string `json:"introspection_endpoint_auth_methods_supported"`
		RevocationAuthMethods    []string `json:"revocation_endpoint_auth_methods_supported"`
	}{
		Issuer:                   r.settings.Issuer,
		TokenEndpoint:            base + "/access_token",
		IntrospectionEndpoint:    base + "/introspect",
		RevocationEndpoint:       base + "/token/revoke",
		GrantTypes:               []string{oauth.GrantClientCredentials},
		ResponseTypes:            []string{},
		TokenAuthMethods:         methods,
		IntrospectionAuthMethods: methods,
		RevocationAuthMethods:    methods,
	})
}
