package caddyoauth

import (
	"slices"
	"strconv"

	"github.com/caddyserver/caddy/v2/modules/caddytls"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// lintCertificateChecks are about clients that show certificates which nobody looks at.
func lintCertificateChecks() []lintCheck {
	return []lintCheck{{
		code: "certificate-nobody-asks-for", kind: lintLocked, certain: true,
		means: "The client authenticates by certificates alone, or its tokens are `certificate_bound`, and no site with the `oauth_server` of its realm asks for certificates, so it can fetch no token. Nothing is said with `store redis`, because another gateway may serve the realm.",
		do:    "Add `client_auth` to the site's `tls`, or, for a proxy that ends TLS, `client_cert_header` to `client_certificates`.",
		find: func(l *linted, report lintReport) {
			eachCertificateClient(l, func(place lintPlace, id string, c *oauth.Client, sites certificateSites) {
				if !sites.ask && (c.CertificateBound || !slices.ContainsFunc(c.Auth, func(m string) bool { return !slices.Contains(certificateMethods, m) })) {
					report(place, "nobody asks for the certificate of the client %s", strconv.Quote(id))
				}
			})
		},
	}, {
		code: "certificate-nobody-verifies", kind: lintLocked, certain: true,
		means: "The client has `tls_client_auth`, and no site with the `oauth_server` of its realm verifies certificates, so the client can't authenticate by one: the modes `request` and `require` of Caddy's `client_auth` verify nothing. Nothing is said with `store redis`, because another gateway may serve the realm.",
		do:    "Give the site's `client_auth` a `trust_pool` and the mode `verify_if_given` or `require_and_verify`, or name the authorities with `trusted_ca_file` in `client_certificates`.",
		find: func(l *linted, report lintReport) {
			eachCertificateClient(l, func(place lintPlace, id string, c *oauth.Client, sites certificateSites) {
				if sites.ask && !sites.verify && slices.Contains(c.Auth, oauth.AuthTLS) {
					report(place, "nobody verifies the certificate of the client %s", strconv.Quote(id))
				}
			})
		},
	}}
}

// certificateMethods are those of clients that show a certificate and nothing else.
var certificateMethods = []string{oauth.AuthTLS, oauth.AuthSelfSigned}

// certificateSites are the sites that serve a realm: whether any of them, or a proxy in front, asks for
// certificates, and whether anybody verifies them.
type certificateSites struct{ ask, verify bool }

// eachCertificateClient calls do for each client that needs a certificate for anything, in realms that
// are served here alone.
func eachCertificateClient(l *linted, do func(place lintPlace, id string, c *oauth.Client, sites certificateSites)) {
	if l.app == nil {
		return
	}
	if _, shared := l.app.opener.(*RedisStore); shared {
		return
	}
	settings := l.app.ClientCertificates
	served := make(map[*servedRealm]certificateSites)
	for h := range l.handlers {
		s, ok := h.module.(*Server)
		if !ok {
			continue
		}
		var sites certificateSites
		for _, p := range h.route.server.server.TLSConnPolicies {
			if auth := p.ClientAuthentication; auth != nil && auth.Active() {
				sites.ask = true
				sites.verify = sites.verify || verifiesCertificates(auth)
			}
		}
		sites.ask = sites.ask || settings != nil && settings.ClientCertHeader
		sites.verify = sites.verify || settings != nil && settings.authorities != nil
		for _, e := range s.endpoints {
			before := served[e.realm]
			served[e.realm] = certificateSites{before.ask || sites.ask, before.verify || sites.verify}
		}
	}
	for name, realm := range l.realms {
		sites, ok := served[realm]
		if !ok {
			continue
		}
		for id, c := range realm.settings.Clients {
			if !c.Disabled && (c.CertificateBound || slices.ContainsFunc(c.Auth, func(m string) bool { return slices.Contains(certificateMethods, m) })) {
				do(l.atClient(name, id), id, c, sites)
			}
		}
	}
}

// verifiesCertificates reports whether Caddy verifies the certificates that it asks for.
func verifiesCertificates(auth *caddytls.ClientAuthentication) bool {
	return auth.Mode != "request" && auth.Mode != "require" // without a mode, it does if there is a trust_pool
}
