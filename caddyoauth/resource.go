package caddyoauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
)

// A program that knows nothing but a URL can find its way to a token if the protected resource says
// who issues them (RFC 9728): the challenge names a document, and the document the authorization
// server. An oauth_protect with a resource is the one who knows. But it need not see requests for
// the document, which lies at another path and needs no token. So the earlyStrip in front of all the
// server's routes answers them.

// resourceMetadataPath is where a resource has its document: between its host and its path.
const resourceMetadataPath = "/.well-known/oauth-protected-resource"

// protectedResource is a resource of a server, with all that protects it. It is complete when the
// last handler has been provisioned, and so before any request.
type protectedResource struct {
	identifier string
	protects   []*Protect

	write    sync.Once
	document []byte
}

// parseResource checks a resource identifier. Errors don't repeat it if there may be a password in
// it.
func parseResource(identifier string) (*url.URL, error) {
	u, err := url.Parse(identifier)
	switch {
	case err != nil:
		return nil, errors.New("it is not a URL")
	case u.User != nil || u.Host == "" || u.RawQuery != "" || u.ForceQuery || strings.Contains(identifier, "#"):
		return nil, errors.New("it must have a host and no user, query or fragment")
	case !conf.HTTPSOrLoopback(u):
		return nil, errors.New("it must be an https URL (RFC 9728 section 1.2); plain http is accepted for loopback hosts only")
	case !conf.VisibleASCII(identifier) || strings.ContainsAny(identifier, `"\`):
		return nil, errors.New("it has a character that is not allowed in a URL")
	}
	return u, nil
}

// checkResource is for an identifier that may still have placeholders.
func checkResource(identifier string) error {
	if strings.Contains(identifier, "{") {
		return nil // Provision replaces them
	}
	_, err := parseResource(identifier)
	if err != nil {
		return fmt.Errorf("resource: %w", err)
	}
	return nil
}

// provisionResource has the server that p is in serve the document of its resource, and makes
// challenges name it.
func (p *Protect) provisionResource(ctx caddy.Context) error {
	if p.Resource == "" {
		return nil
	}
	identifier := p.Resource
	if err := conf.Resolve("resource", &identifier); err != nil {
		return err
	}
	u, err := parseResource(identifier)
	if err != nil {
		return fmt.Errorf("resource: %w", err)
	}
	issuers := p.issuers()
	if len(issuers) == 0 {
		return errors.New("resource: nobody could find out who issues its tokens: give the realm an issuer, or the source an 'issuer'")
	}
	path := resourceMetadataPath
	if u.Path != "/" { // a slash that follows the host is left out
		path += u.EscapedPath()
	}
	p.metadataURL = u.Scheme + "://" + u.Host + path

	server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	early := earlyOf(server)
	if !ok || early == nil {
		return errors.New("resource: it can't be described from a named route or an error route alone: put an oauth_protect or an oauth_server into the site itself")
	}
	if early.resources == nil {
		early.resources = make(map[string]*protectedResource)
	}
	place := hostOf(u.Scheme, u.Host) + path
	resource := early.resources[place]
	if resource == nil {
		resource = &protectedResource{identifier: identifier}
		early.resources[place] = resource
	}
	if resource.identifier != identifier {
		return fmt.Errorf("resource: %s and %s would have the same document", resource.identifier, identifier)
	}
	resource.protects = append(resource.protects, p)
	for _, realm := range p.app.realms {
		if slices.Contains(issuers, realm.settings.Issuer) {
			if err := p.app.nameAuthorization(realm); err != nil {
				return err
			}
		}
	}
	return nil
}

// issuers returns the issuers whose tokens the route accepts, as far as the configuration says.
func (p *Protect) issuers() (issuers []string) {
	for _, s := range p.sources {
		issuer := ""
		switch s := s.(type) {
		case *servedRealm:
			issuer = s.settings.Issuer
		case *usedSource:
			if _, spiffe := s.module.(*SPIFFESource); spiffe {
				continue // a trust domain is no authorization server
			}
			if named, ok := s.module.(interface{ issuer() string }); ok {
				issuer = named.issuer()
			}
		}
		if issuer != "" && !slices.Contains(issuers, issuer) {
			issuers = append(issuers, issuer)
		}
	}
	return issuers
}

// hostOf returns a host, in lower case and without the port that a scheme has anyway.
func hostOf(scheme, host string) string {
	host = strings.ToLower(host)
	switch scheme {
	case "https":
		return strings.TrimSuffix(host, ":443")
	case "http":
		return strings.TrimSuffix(host, ":80")
	}
	return host
}

// resourceAt returns the resource whose document a request is for, or nil.
func (e *earlyStrip) resourceAt(r *http.Request) *protectedResource {
	if e.resources == nil || !strings.HasPrefix(r.URL.Path, resourceMetadataPath) {
		return nil
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	path := r.URL.EscapedPath()
	if found := e.resources[hostOf(scheme, r.Host)+path]; found != nil {
		return found
	}
	// TLS may end at a balancer.
	return e.resources[hostOf("https", r.Host)+path]
}

// serve answers with the document. It is public, and depends on the configuration alone.
func (d *protectedResource) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	dontAwaitBody(w, r) // it means nothing
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		h.Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	d.write.Do(d.describe)
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "public, max-age=300")
	h.Set("Access-Control-Allow-Origin", "*") // a page may want to read it
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		w.Write(d.document)
	}
}

// describe writes the document (RFC 9728 section 2). Members without a value are left out.
func (d *protectedResource) describe() {
	document := struct {
		Resource             string   `json:"resource"`
		AuthorizationServers []string `json:"authorization_servers,omitempty"`
		Scopes               []string `json:"scopes_supported,omitempty"`
		Methods              []string `json:"bearer_methods_supported"`
		// These are there if a token may be bound to a key, or must be.
		DPoPAlgorithms []string `json:"dpop_signing_alg_values_supported,omitempty"`
		DPoPRequired   bool     `json:"dpop_bound_access_tokens_required,omitempty"`
	}{Resource: d.identifier, Methods: []string{"header"}}
	required := true
	for _, p := range d.protects {
		if p.dpop != nil {
			document.DPoPAlgorithms = p.dpop.proofs.Algorithms()
		}
		required = required && p.allKeyBound()
		document.AuthorizationServers = append(document.AuthorizationServers, p.issuers()...)
		document.Scopes = slices.Concat(document.Scopes, p.Scopes, p.AnyScope)
		for _, on := range p.On {
			document.Scopes = slices.Concat(document.Scopes, on.Scopes, on.AnyScope)
		}
	}
	document.AuthorizationServers = unique(document.AuthorizationServers)
	document.Scopes = unique(document.Scopes)
	document.DPoPRequired = required
	d.document, _ = json.Marshal(document) // strings alone can't fail
}

// unique returns texts without duplicates, in their order.
func unique(texts []string) []string {
	var once []string
	for _, text := range texts {
		if !slices.Contains(once, text) {
			once = append(once, text)
		}
	}
	return once
}
