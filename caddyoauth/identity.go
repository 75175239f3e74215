package caddyoauth

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
)

// defaultHeaderPrefix is what identity headers begin with if nothing else is said.
const defaultHeaderPrefix = "X-OAuth-"

// identityHeaders are the names of the headers that tell a backend who is calling.
type identityHeaders struct {
	// prefixes is the one prefix, folded; see foldedBytes.
	prefixes                                  []string
	clientID, subject, scope, ofRealm, issuer string // canonical
}

// everydayHeaders are headers that a prefix must not cover: all that begins with it is
// removed from requests.
var everydayHeaders = []string{
	"Accept-Encoding", "Cache-Control", "Content-Type", "If-None-Match", "Last-Event-Id", "Max-Forwards", "Proxy-Connection",
	"Sec-Websocket-Key", "Transfer-Encoding", "Upgrade-Insecure-Requests", "User-Agent", "X-Forwarded-For", "X-Request-Id",
}

func newIdentityHeaders(prefix string) (identityHeaders, error) {
	for i := range len(prefix) {
		c := prefix[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-') {
			return identityHeaders{}, fmt.Errorf("header_prefix %q may have letters, digits and - only", prefix)
		}
	}
	if len(prefix) < 2 || !strings.HasSuffix(prefix, "-") {
		return identityHeaders{}, fmt.Errorf("header_prefix %q must end with -, such as X-OAuth-", prefix)
	}
	for _, name := range everydayHeaders {
		if hasFoldedPrefix(name, strings.ToLower(prefix)) {
			return identityHeaders{}, fmt.Errorf("header_prefix %q would take %s from every request; choose one of your own, such as X-OAuth-", prefix, name)
		}
	}
	return identityHeaders{
		prefixes: []string{strings.ToLower(prefix)},
		clientID: http.CanonicalHeaderKey(prefix + "Client-Id"),
		subject:  http.CanonicalHeaderKey(prefix + "Subject"),
		scope:    http.CanonicalHeaderKey(prefix + "Scope"),
		ofRealm:  http.CanonicalHeaderKey(prefix + "Realm"),
		issuer:   http.CanonicalHeaderKey(prefix + "Issuer"),
	}, nil
}

// identify tells the backend, the rest of Caddy and the access log who is calling, and
// returns the request to go on with.
func (ih *identityHeaders) identify(r *http.Request, b *bearer) *http.Request {
	// One backing array for the values. Headers are set only if there is something to say.
	values := [4]string{b.client, b.subject, b.scope, b.realm}
	names := [4]string{ih.clientID, ih.subject, ih.scope, ih.ofRealm}
	if b.realm == "" {
		// From elsewhere. A name that a backend takes for one of our realms it can't be.
		values[3], names[3] = b.issuer, ih.issuer
	}
	for i, name := range names {
		if values[i] != "" {
			r.Header[name] = values[i : i+1 : i+1]
		}
	}

	ctx := r.Context()
	if repl, ok := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		// Whoever authenticated somebody before us must not speak for our caller. What it has
		// set goes; of what is looked up, Caddy asks the first who answers, so the first of
		// several oauth_protect passes on to the last.
		repl.DeleteByPrefix("http.auth.user.")
		if b.earlier == nil {
			repl.Map(b.placeholder)
		} else {
			b.first().last = b
		}
	}
	logIdentity(ctx, b)
	return r.WithContext(context.WithValue(ctx, bearerCtxKey{}, b))
}

// placeholder is the value of a placeholder, made only for those who ask.
func (b *bearer) placeholder(name string) (any, bool) {
	name, ours := strings.CutPrefix(name, "http.auth.user.")
	if !ours {
		return nil, false
	}
	if b.last != nil {
		b = b.last
	}
	switch name {
	case "id", "client_id":
		return b.client, true
	case "scope":
		return b.scope, true
	case "realm":
		return b.realm, true
	case "subject", "sub":
		return b.subject, true
	case "iss":
		return b.issuer, true
	case "expires":
		if b.facts.Expiry.IsZero() {
			return "", true
		}
		return b.facts.Expiry.UTC().Format(time.RFC3339), true
	}
	// A claim that is not there is empty, not what a handler before us may have said.
	return b.facts.ClaimText(name), true
}

// logIdentity adds the client and its realm to the request's access log line.
func logIdentity(ctx context.Context, b *bearer) {
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok && server.Logs == nil {
		return // the server writes no access log, which is Caddy's default
	}
	if extra, ok := ctx.Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		// One field for both: the key serves only to replace what a handler before set.
		extra.Set(zap.Field{Key: "oauth_protect", Type: zapcore.InlineMarshalerType, Interface: b})
	}
}

// MarshalLogObject implements zapcore.ObjectMarshaler, without the token.
func (b *bearer) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("client", b.client)
	enc.AddString("realm", b.realm)
	return nil
}

const (
	// maxForeignClientID is as long as IDs of our own clients may be.
	maxForeignClientID = 256
	// maxForeignName bounds subjects and issuers. With each byte encoded it is 3 KiB.
	maxForeignName = 1 << 10
	// maxForeignScope bounds all scopes together. Many servers take no longer header.
	maxForeignScope = 8 << 10
)

// introduce sets what is said of the bearer, and reports whether it can be said. The names
// of clients here were checked when they were configured. Elsewhere a name can be anything,
// and a backend must take it neither for another one nor for several.
func (b *bearer) introduce() bool {
	f := b.facts
	b.client, b.subject, b.issuer = f.ClientID, f.Subject, f.Issuer
	scopes := f.Scopes
	if b.realm == "" {
		if !fitsHeader(f.ClientID, maxForeignClientID) || !fitsHeader(f.Subject, maxForeignName) || !fitsHeader(f.Issuer, maxForeignName) {
			return false
		}
		b.client, b.subject, b.issuer = headerText(f.ClientID), headerText(f.Subject), headerText(f.Issuer)
		// A scope that no rule can ask for is left out: the fewer, the less its bearer may do.
		if slices.ContainsFunc(scopes, oddScope) {
			scopes = slices.DeleteFunc(slices.Clone(scopes), oddScope)
		}
	}
	b.scope = strings.Join(scopes, " ")
	return b.realm != "" || len(b.scope) <= maxForeignScope
}

func oddScope(s string) bool { return !conf.IsScope(s) }

// fitsHeader reports whether a name from elsewhere can be told to a backend. Control
// characters in it would be somebody's attempt at a header of his own, and a space at an
// end is lost on the way, which makes one name of two.
func fitsHeader(name string, limit int) bool {
	return len(name) <= limit && name == strings.TrimSpace(name) && !strings.ContainsFunc(name, unicode.IsControl)
}

// headerText is a name as headers carry it. A comma, which would make a list of it, a
// percent sign, and all beyond ASCII are percent-encoded, as in a URL; so different names
// stay different.
func headerText(name string) string {
	encodes := func(c byte) bool { return c < ' ' || c > '~' || c == ',' || c == '%' }
	clean := 0
	for clean < len(name) && !encodes(name[clean]) {
		clean++
	}
	if clean == len(name) {
		return name
	}
	text := []byte(name[:clean])
	for _, c := range []byte(name[clean:]) {
		if encodes(c) {
			text = fmt.Appendf(text, "%%%02X", c)
		} else {
			text = append(text, c)
		}
	}
	return string(text)
}
