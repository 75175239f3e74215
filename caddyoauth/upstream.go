package caddyoauth

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"
	"golang.org/x/net/http/httpguts"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
)

// Upstream headers are what a backend gets in a client's name: an API key of its own, for example.
// They are set only on requests that an oauth_protect lets in as that client, and the last
// oauth_protect that a request meets decides which they are. Callers must not be able to send them
// instead, so oauth_protect removes every such header of the configuration first, in any spelling:
// see App.credentials.
//
// Caddy's access and error logs have a request as it came in, without them. At level DEBUG,
// reverse_proxy and others write what they send; warnOfDebug is about that.

// upstreamHeaders are one client's. They hold secrets, and are read-only.
type upstreamHeaders []upstreamHeader

type upstreamHeader struct{ name, value string } // the name is canonical

// echoes are the methods, folded, that many backends answer with the request as it reached them (RFC
// 9110 section 9.3.8). A caller would learn what it is not meant to have.
var echoes = []string{"trace", "track"}

// String keeps the value out of anything that prints it.
func (h upstreamHeader) String() string { return h.name + ": REDACTED" }

// GoString keeps the value out of %#v.
func (h upstreamHeader) GoString() string { return h.String() }

// set gives a request the headers. It allocates only for a client that has some: handlers behind
// may change a value in place.
func (all upstreamHeaders) set(r *http.Request) {
	if len(all) == 0 || isOneOf(r.Method, echoes) {
		return
	}
	for _, h := range all {
		r.Header[h.name] = []string{h.value}
	}
}

// unset takes them away again.
func (all upstreamHeaders) unset(r *http.Request) {
	for _, h := range all {
		delete(r.Header, h.name)
	}
}

// upstreamOf returns the headers of a bearer's client. A client of another server has none, whatever
// its ID.
func (a *App) upstreamOf(b *bearer) upstreamHeaders {
	if len(a.credentials) == len(credentialHeaders) || b.realm == "" {
		return nil // nobody has any, as in most configurations
	}
	return a.realms[b.realm].upstream[b.facts.ClientID]
}

// withoutSecrets returns the same headers with other values, for questions: an answer may show what
// a handler makes of them.
func withoutSecrets(upstream map[string]upstreamHeaders) map[string]upstreamHeaders {
	harmless := make(map[string]upstreamHeaders, len(upstream))
	for id, all := range upstream {
		for _, h := range all {
			harmless[id] = append(harmless[id], upstreamHeader{h.name, "REDACTED"})
		}
	}
	return harmless
}

// upstreamNames returns the folded names of the upstream headers of all clients, in order.
func (r *servedRealm) upstreamNames() (names []string) {
	for _, id := range sortedKeys(r.upstream) {
		for _, h := range r.upstream[id] {
			if name := strings.ToLower(h.name); !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// reservedHeaders can't be upstream headers, nor carry assertions: HTTP, proxies or Caddy itself give them a meaning, or
// callers need their own. A name that ends with - stands for all that begin with it.
var reservedHeaders = []string{
	"accept", "accept-", "access-control-", "cache-control", "connection", "content-", "cookie", "date", "dpop", "early-data", "expect",
	"forwarded", "host", "http2-settings", "if-", "keep-alive", "max-forwards", "origin", "pragma", "proxy-", "range", "sec-", "te",
	"traceparent", "tracestate", "trailer", "transfer-encoding", "upgrade", "upgrade-insecure-requests", "user-agent", "via",
	"x-forwarded-", "x-real-ip",
}

// checkUpstream refuses names that are no client's to set, names that differ in case alone, and
// values without a reference to a secret. No error holds a value.
func checkUpstream(headers map[string]string) error {
	seen := make(map[string]bool, len(headers))
	for _, name := range sortedKeys(headers) {
		if err := checkUpstreamName(name); err != nil {
			return err
		}
		canonical := http.CanonicalHeaderKey(name)
		if seen[canonical] {
			return duplicateUpstream(name)
		}
		seen[canonical] = true
		if value := headers[name]; !conf.HasSecretReference(value) || !httpguts.ValidHeaderFieldValue(value) || strings.TrimSpace(value) != value {
			return fmt.Errorf("upstream_header %s: the value must have {env.NAME} or {file./path} where the secret is, as in 'Bearer {env.NAME}', and no other placeholder: configurations are dumped and saved", name)
		}
	}
	return nil
}

func checkUpstreamName(name string) error {
	switch {
	case !isHeaderName(name):
		return fmt.Errorf("upstream_header %q: a name consists of letters, digits and -", name)
	case isReservedHeader(name):
		return fmt.Errorf("upstream_header %s: HTTP, proxies or callers need this header themselves; the backend must take its secret from another, such as X-Api-Key or Authorization", name)
	case hasFoldedPrefix(name, strings.ToLower(defaultHeaderPrefix)):
		return fmt.Errorf("upstream_header %s: names that begin with %s tell who is calling; take another", name, defaultHeaderPrefix)
	}
	return nil
}

// isHeaderName reports whether name consists of characters that no backend reads as others.
func isHeaderName(name string) bool {
	odd := func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-')
	}
	return name != "" && !strings.ContainsFunc(name, odd)
}

// isReservedHeader reports whether a header can't carry what only the gateway may say.
func isReservedHeader(name string) bool {
	reserved := func(header string) bool {
		return isOneOf(name, []string{header}) || strings.HasSuffix(header, "-") && hasFoldedPrefix(name, header)
	}
	return slices.ContainsFunc(reservedHeaders, reserved) || isOneOf(name, overrideHeaders)
}

func duplicateUpstream(name string) error {
	return fmt.Errorf("duplicate upstream_header %s; upper and lower case are the same", name)
}

// resolveUpstream checks headers and looks up what they refer to. No error holds a value.
func resolveUpstream(headers map[string]string) (upstreamHeaders, error) {
	if err := checkUpstream(headers); err != nil {
		return nil, err
	}
	var all upstreamHeaders
	for _, name := range sortedKeys(headers) {
		value, err := conf.ResolveSecrets(headers[name])
		if err == nil && !httpguts.ValidHeaderFieldValue(value) {
			err = errors.New("the secret has a character that no header can carry")
		}
		if err != nil {
			return nil, fmt.Errorf("upstream_header %s: %w", name, err)
		}
		all = append(all, upstreamHeader{http.CanonicalHeaderKey(name), value})
	}
	return all, nil
}

// warnOfDebug warns if a handler that passes requests on would write headers into the log that hold
// what is secret. Of those, Caddy leaves out Authorization and cookies alone. folded are their names.
func (a *App) warnOfDebug(what string, folded ...string) {
	var names []string
	for _, name := range folded {
		if name != "authorization" {
			names = append(names, http.CanonicalHeaderKey(name))
		}
	}
	if len(names) == 0 {
		return
	}
	for _, id := range []string{"http.handlers.reverse_proxy", "http.reverse_proxy.transport.fastcgi", "http.handlers.rewrite"} {
		info, err := caddy.GetModule(id)
		if err == nil && a.ctx.Logger(info.New()).Core().Enabled(zap.DebugLevel) {
			a.logger.Warn("a log at level DEBUG gets the "+what+"; have the log's format filter delete them, or set another level",
				zap.Strings("headers", names), zap.String("written_by", id))
		}
	}
}

// upstreamOption reads upstream_header <name> <value>, which may repeat.
func upstreamOption(place *map[string]string) conf.Option {
	return conf.Repeatable(conf.Func(func(d *caddyfile.Dispenser) error {
		args := d.RemainingArgs()
		if len(args) != 2 {
			return d.Err("upstream_header takes a name and a value; put a value with spaces into quotes, as in upstream_header Authorization \"Basic {env.NAME}\"")
		}
		if *place == nil {
			*place = make(map[string]string)
		}
		for name := range *place {
			if strings.EqualFold(name, args[0]) {
				return d.WrapErr(duplicateUpstream(args[0]))
			}
		}
		if err := checkUpstream(map[string]string{args[0]: args[1]}); err != nil {
			return d.WrapErr(err)
		}
		(*place)[args[0]] = args[1]
		return conf.NoBlock(d, "upstream_header")
	}))
}

// checkUpstream refuses a route that keeps the token where a client of one of the realms has an
// upstream header Authorization: nobody could tell which of the two the backend gets.
func (p *Protect) checkUpstream(realms map[string]*Realm, accepted []string) error {
	if !p.KeepToken {
		return nil
	}
	for _, name := range accepted {
		realm := realms[name]
		if realm == nil {
			continue // root without settings, and so without clients
		}
		for _, id := range sortedKeys(realm.Clients) {
			for header := range realm.Clients[id].UpstreamHeaders {
				if strings.EqualFold(header, "Authorization") {
					return fmt.Errorf("keep_token passes on the token in Authorization, where the client %q of realm %q has an upstream_header; remove one of them", id, name)
				}
			}
		}
	}
	return nil
}

// localRealms returns the names of the realms whose tokens the route accepts.
func (p *Protect) localRealms() (names []string) {
	for _, s := range p.sources {
		if name := s.realmName(); name != "" {
			names = append(names, name)
		}
	}
	return names
}
