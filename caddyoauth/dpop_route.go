package caddyoauth

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// A token that is bound to a key comes with a proof, made by the key for this very request (RFC 9449
// section 7). The proof names the URL that the client has called. What a request says about that decides
// nothing: whoever gets hold of a proof for another server could say the same here. So the URL must
// begin with what the configuration says, or with the site's own host names.

// RouteDPoP says how an `oauth_protect` takes tokens that are bound to a key.
type RouteDPoP struct {
	// `required` refuses all other tokens; `off` takes none that are bound to a key. Default: a token that
	// is bound to a key is taken with its proof, and any other as a bearer token.
	Mode string `json:"mode,omitempty"`

	// What the URLs begin with that clients call, as in `https://api.example.com`: scheme, host and port
	// alone. Proofs must be made for one of them. Placeholders are replaced when the configuration is
	// loaded. Default: the beginning of `resource`; without one, the host that was called, if that is
	// one of the site's host names.
	Origins []string `json:"origins,omitempty"`
}

const dpopOff = "off"

// dpopRoute is how a route takes tokens that are bound to keys.
type dpopRoute struct {
	proofs *oauth.Proofs
	// origins are what URLs begin with. Without any, it is hosts that say so.
	origins []string
	hosts   []*caddyhttp.MatchHost
	// algs ends challenges.
	algs string
}

// asksForDPoP reports whether the configuration asks for tokens that are bound to keys at this route,
// apart from the realms that issue such tokens.
func (p *Protect) asksForDPoP(app *App) bool {
	return !p.dpopIsOff() && (p.DPoP != nil || app.DPoP != nil || p.anyKeyBound())
}

func (p *Protect) dpopIsOff() bool { return p.DPoP != nil && p.DPoP.Mode == dpopOff }

// anyKeyBound reports whether requests with some method need a token that is bound to a key.
func (p *Protect) anyKeyBound() bool {
	if p.DPoP != nil && p.DPoP.Mode == dpopRequired {
		return true
	}
	for _, on := range p.On {
		if on.DPoP == dpopRequired {
			return true
		}
	}
	return false
}

// allKeyBound reports whether all requests need a token that is bound to a key.
func (p *Protect) allKeyBound() bool {
	for _, rule := range p.named {
		if !rule.KeyBound {
			return false
		}
	}
	return p.rule.KeyBound
}

// provisionDPoP returns how the route takes tokens that are bound to keys, or nil if it takes none.
func (p *Protect) provisionDPoP(ctx caddy.Context) (*dpopRoute, error) {
	if p.DPoP != nil {
		if err := checkDPoPMode(p.DPoP.Mode); err != nil {
			return nil, err
		}
	}
	if p.dpopIsOff() {
		if p.anyKeyBound() {
			return nil, errors.New("dpop is off, and required by an 'on': remove one of them")
		}
		return nil, nil
	}
	issued, unbound := false, "" // whether a realm issues such tokens, and one that does not
	for _, name := range p.localRealms() {
		if p.app.realms[name].settings.Proofs != nil {
			issued = true
		} else {
			unbound = name
		}
	}
	if unbound != "" && p.anyKeyBound() {
		return nil, fmt.Errorf("dpop required: realm %q issues no tokens that are bound to a key: add 'dpop' to the 'oauth' block, or 'dpop required' to its clients", unbound)
	}
	if !p.asksForDPoP(p.app) && !issued {
		return nil, nil
	}
	d := &dpopRoute{proofs: p.app.proofs.resource, hosts: hostsOfSite(ctx), algs: `, algs="` + strings.Join(p.app.proofs.resource.Algorithms(), " ") + `"`}
	var err error
	if d.origins, err = p.origins(); err != nil {
		return nil, err
	}
	if len(d.origins) > 0 || len(d.hosts) > 0 {
		return d, nil
	}
	if p.DPoP != nil || p.anyKeyBound() {
		return nil, errors.New("dpop: nobody could tell which URL a proof must be made for, since the site has no host name: give it one, or name what its URLs begin with, as in 'dpop { origin https://api.example.com }'")
	}
	p.logger.Warn("this route takes no tokens that are bound to a key, because nobody could tell which URL a proof must be made for: give the site a host name, or name what its URLs begin with, as in 'dpop { origin https://api.example.com }'; 'dpop off' is for a route that shall take none",
		zap.String("rule", p.At))
	return nil, nil
}

// origins returns what the configuration says that URLs begin with.
func (p *Protect) origins() (origins []string, err error) {
	var said []string
	if p.DPoP != nil {
		said = p.DPoP.Origins
	}
	for _, origin := range said {
		if err := conf.Resolve("origin", &origin); err != nil {
			return nil, err
		}
		u, err := parseOrigin(origin)
		if err != nil {
			return nil, fmt.Errorf("origin: %w", err)
		}
		origins = append(origins, u.Scheme+"://"+u.Host)
	}
	if len(origins) == 0 && p.Resource != "" {
		resource := p.Resource
		if err := conf.Resolve("resource", &resource); err != nil {
			return nil, err
		}
		u, err := parseResource(resource)
		if err != nil {
			return nil, fmt.Errorf("resource: %w", err)
		}
		origins = []string{u.Scheme + "://" + u.Host}
	}
	return origins, nil
}

func parseOrigin(origin string) (*url.URL, error) {
	u, err := parseResource(origin)
	switch {
	case err != nil:
		return nil, err
	case u.Path != "" && u.Path != "/":
		return nil, errors.New("it must end with the host and its port: the path is that of each request")
	}
	return u, nil
}

// checkOrigin is for one that may still have placeholders.
func checkOrigin(origin string) error {
	if strings.Contains(origin, "{") {
		return nil // Provision replaces them
	}
	if _, err := parseOrigin(origin); err != nil {
		return fmt.Errorf("origin: %w", err)
	}
	return nil
}

func checkDPoPMode(mode string) error {
	if mode == "" {
		return nil
	}
	return conf.OneOf("dpop", mode, dpopRequired, dpopOff)
}

// hostsOfSite returns the matchers of host names, one of which every request fits that comes to the
// handler that is being provisioned. Of several around each other, they are the innermost. Nil if there
// are none, as in a named route.
func hostsOfSite(ctx caddy.Context) (hosts []*caddyhttp.MatchHost) {
	server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok {
		return nil
	}
	for _, module := range ctx.Modules() {
		var routes caddyhttp.RouteList
		switch module := module.(type) {
		case *caddyhttp.App:
			routes = configuredRoutes(server)
			if beingProvisioned(routes) < 0 && server.Errors != nil {
				routes = server.Errors.Routes
			}
		case *caddyhttp.Subroute:
			routes = module.Routes
		default:
			continue
		}
		at := beingProvisioned(routes)
		if at < 0 {
			return nil
		}
		var inner []*caddyhttp.MatchHost
		for _, set := range routes[at].MatcherSets {
			before := len(inner)
			for _, matcher := range set {
				if host, ok := matcher.(*caddyhttp.MatchHost); ok {
					inner = append(inner, host)
				}
			}
			if len(inner) == before { // other hosts fit, too
				inner = nil
				break
			}
		}
		if inner != nil {
			hosts = inner
		}
	}
	return hosts
}

// originalOf returns the method and the URL of a request as they came: handlers before this one may have
// rewritten them.
func originalOf(r *http.Request) http.Request {
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		return original
	}
	return http.Request{Method: r.Method, URL: r.URL}
}

// urls returns the URL of a request as the configuration has it, in each of its forms. There is none for
// a host that is not the site's.
func (d *dpopRoute) urls(r *http.Request, path string) (urls []string) {
	for _, origin := range d.origins {
		urls = append(urls, origin+path)
	}
	if len(d.origins) == 0 && d.isHost(r) {
		scheme := "http://"
		if usesTLS(r) {
			scheme = "https://"
		}
		urls = append(urls, scheme+r.Host+path)
	}
	return urls
}

// isHost reports whether the host that a request names is one of the site's, with the port where it came
// in, or the one that its scheme has anyway.
func (d *dpopRoute) isHost(r *http.Request) bool {
	if _, port, err := net.SplitHostPort(r.Host); err == nil && port != "443" && port != "80" {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if local == nil {
			return false
		}
		if _, here, err := net.SplitHostPort(local.String()); err != nil || here != port {
			return false
		}
	}
	for _, host := range d.hosts {
		if matches, err := host.MatchWithError(r); err == nil && matches {
			return true
		}
	}
	return false
}

// verifyProof verifies the proof of a request whose token is good, as far as the token and the request
// go, and notes its key. It returns why the request is refused, or nothing.
func (p *Protect) verifyProof(r *http.Request, b *bearer, lines []string) access.Cause {
	if b.facts.Confirmation.Key == "" {
		return access.CauseUnbound
	}
	called := originalOf(r)
	var err error
	b.dpop.proof, err = p.dpop.proofs.Verify(lines, introspect.ProofOf{Method: called.Method, URLs: p.dpop.urls(r, called.URL.EscapedPath()), Token: b.token.Text()})
	return p.refusedProof(r, b, err)
}

// useProof uses up the proof. It is the last of all that can refuse a request.
func (p *Protect) useProof(r *http.Request, b *bearer) access.Cause {
	client := oauth.ClientRef{Realm: b.realm, ClientID: b.facts.ClientID}
	if b.realm == "" {
		client.Realm = b.facts.Issuer
	}
	return p.refusedProof(r, b, p.dpop.proofs.Use(r.Context(), b.dpop.proof, client))
}

// refusedProof returns why a request is refused for the error of its proof.
func (p *Protect) refusedProof(r *http.Request, b *bearer, err error) access.Cause {
	var refused *oauth.ProofError
	switch {
	case err == nil:
		return ""
	case !errors.As(err, &refused):
		if r.Context().Err() != nil {
			return access.CauseCanceled
		}
		p.trouble().Error("a DPoP proof could not be checked", zap.String("realm", p.label), zap.Error(err))
		return access.CauseOutage
	}
	b.dpop.reason, b.dpop.nonce = string(refused.Reason), refused.Nonce
	switch refused.Fault {
	case oauth.ProofMissing:
		return access.CauseProofMissing
	case oauth.ProofNoNonce:
		return access.CauseProofNonce
	case oauth.ProofReplayed:
		return access.CauseProofReplayed
	}
	return access.CauseProofInvalid
}

// supposedProof returns what somebody about whom a question is can prove: a client that can have tokens
// which are bound to keys has one, where that is asked for.
func (p *Protect) supposedProof(b *bearer) introspect.Confirmation {
	proven := b.facts.Confirmation
	if p.dpop == nil {
		proven.Key = ""
	} else if proven.Key == "" && p.supposes(b.realm) {
		proven.Key = oauth.SupposedKey
	}
	return proven
}

// supposes reports whether the tokens of a realm are only supposed, and could be bound to keys.
func (p *Protect) supposes(realm string) bool {
	for _, s := range p.sources {
		if supposed, ok := s.(supposedSource); ok && supposed.name == realm {
			return supposed.settings.Proofs != nil
		}
	}
	return false
}

// challenge sets the challenges of a refusal, given that of Bearer: the error goes with the scheme that
// the request used (RFC 9449 section 7.2).
func (d *dpopRoute) challenge(h http.Header, bare, bearer string, required, byDPoP bool) {
	proof := "DPoP" + strings.TrimPrefix(bearer, "Bearer")
	switch {
	case required:
		h["Www-Authenticate"] = []string{proof + d.algs}
	case byDPoP:
		h["Www-Authenticate"] = []string{proof + d.algs, bare}
	default:
		h["Www-Authenticate"] = []string{bearer, "DPoP" + strings.TrimPrefix(bare, "Bearer") + d.algs}
	}
}

// routeDPoPOption reads
//
//	dpop [required|off] {
//		origin <url>...
//	}
func routeDPoPOption(place **RouteDPoP) conf.Option {
	return conf.Func(func(d *caddyfile.Dispenser) error {
		args, err := conf.Args(d, 0, 1)
		if err != nil {
			return err
		}
		dpop := new(RouteDPoP)
		*place = dpop
		if len(args) > 0 {
			if dpop.Mode = args[0]; dpop.Mode == "" {
				return d.Err("dpop must not be empty")
			}
			if err := checkDPoPMode(dpop.Mode); err != nil {
				return d.WrapErr(err)
			}
		}
		return conf.Options{
			"origin": conf.Texts(&dpop.Origins, func(origins []string) error {
				for _, origin := range origins {
					if err := checkOrigin(origin); err != nil {
						return err
					}
				}
				return nil
			}),
		}.Read(d, "dpop")
	})
}
