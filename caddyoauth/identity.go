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

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
)

// defaultHeaderPrefix is what identity headers begin with by default.
const defaultHeaderPrefix = "X-OAuth-"

// identityHeaders are the names of the headers that tell a backend who is calling.
type identityHeaders struct {
	// prefixes holds the one prefix, folded; see foldedBytes.
	prefixes                                  []string
	clientID, subject, scope, ofRealm, issuer string // canonical
}

// everydayHeaders are headers that a prefix must not cover, since every header that begins
// with it is removed from requests.
var everydayHeaders = []string{
	"Accept-Encoding", "Cache-Control", "Content-Type", "If-None-Match", "Last-Event-Id", "Max-Forwards", "Proxy-Connection",
	"Sec-Websocket-Key", "Transfer-Encoding", "Upgrade-Insecure-Requests", "User-Agent", "X-Forwarded-For", "X-Request-Id",
}

func newIdentityHeaders(prefix string) (identityHeaders, error) {
	for i := range len(prefix) {
		c := prefix[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-') {
			return identityHeaders{}, fmt.Errorf("header_prefix %q has a character other than letters, digits and -", prefix)
		}
	}
	if len(prefix) < 2 || !strings.HasSuffix(prefix, "-") {
		return identityHeaders{}, fmt.Errorf("header_prefix %q must end with -, such as X-OAuth-", prefix)
	}
	for _, name := range everydayHeaders {
		if hasFoldedPrefix(name, strings.ToLower(prefix)) {
			return identityHeaders{}, fmt.Errorf("header_prefix %q would remove %s from every request: choose a prefix of your own, such as X-OAuth-", prefix, name)
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

// names returns the names of all of them.
func (ih *identityHeaders) names() []string {
	return []string{ih.clientID, ih.subject, ih.scope, ih.ofRealm, ih.issuer}
}

// identify tells the backend, the rest of Caddy and the access log who is calling, and
// returns the request to continue with. A header is set only if it has something to say.
func (ih *identityHeaders) identify(r *http.Request, b *bearer) *http.Request {
	b.values = [4]string{b.client(), b.subject(), b.scope, b.realm}
	names := [4]string{ih.clientID, ih.subject, ih.scope, ih.ofRealm}
	if b.realm == "" {
		// The issuer has a header of its own, so that no backend takes it for one of our realms.
		b.values[3], names[3] = b.issuer(), ih.issuer
	}
	for i, name := range names {
		if b.values[i] != "" {
			r.Header[name] = b.values[i : i+1 : i+1]
		}
	}

	ctx := r.Context()
	if repl, ok := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		// A handler that authenticated somebody before us must not speak for our caller, so what
		// it has set is deleted. Placeholders that are looked up come from the first function
		// that knows them, so with several oauth_protect the first bearer answers for the last.
		repl.DeleteByPrefix("http.auth.user.")
		switch {
		case b.earlier != nil:
			b.first().last = b
		case b.before != nil:
			b.before.bearer = b
		default:
			repl.Map(b.placeholder)
		}
	}
	addToAccessLog(ctx, b) // the client and its realm
	b.context = bearerContext{ctx, b}
	return r.WithContext(&b.context)
}

// placeholder returns the value of a placeholder. It is computed only when it is used.
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
		return b.client(), true
	case "scope":
		return b.scope, true
	case "realm":
		return b.realm, true
	case "subject", "sub":
		return b.subject(), true
	case "iss":
		return b.issuer(), true
	case "expires":
		if b.facts.Expiry.IsZero() {
			return "", true
		}
		return b.facts.Expiry.UTC().Format(time.RFC3339), true
	}
	// A claim that the token lacks is empty, and not what a handler before us may have set.
	return b.facts.ClaimText(name), true
}

// logRefused adds to the request's access log line why it was refused, and the client if it is
// known.
func logRefused(ctx context.Context, b *bearer, result access.Result, cause access.Cause) {
	addToAccessLog(ctx, refusedRequest{b, result, cause})
}

// addToAccessLog adds an object's members to the request's access log line, in place of those that
// an oauth_protect before this one has added.
func addToAccessLog(ctx context.Context, members zapcore.ObjectMarshaler) {
	addFieldToAccessLog(ctx, "oauth_protect", members)
}

// addFieldToAccessLog adds an object's members to the request's access log line, in place of those
// that were added under the same key.
func addFieldToAccessLog(ctx context.Context, key string, members zapcore.ObjectMarshaler) {
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok && server.Logs == nil {
		return // the server writes no access log, which is the default
	}
	if extra, ok := ctx.Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		// The key itself isn't written.
		extra.Set(zap.Field{Key: key, Type: zapcore.InlineMarshalerType, Interface: members})
	}
}

// MarshalLogObject implements zapcore.ObjectMarshaler, without the token.
func (b *bearer) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("client", b.client())
	enc.AddString("realm", b.realm)
	if b.basic != nil {
		for _, field := range provedBy(nil, b.basic.out) {
			field.AddTo(enc)
		}
	}
	return nil
}

// refusedRequest is what the access log says of a request that was refused.
type refusedRequest struct {
	bearer *bearer // nil if nobody knows
	result access.Result
	cause  access.Cause
}

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (no refusedRequest) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("error", string(no.result))
	enc.AddString("cause", string(no.cause))
	if no.bearer != nil {
		return no.bearer.MarshalLogObject(enc)
	}
	return nil
}

const (
	// maxForeignClientID is the maximum for our own clients too.
	maxForeignClientID = 256
	// maxForeignName bounds subjects and issuers. With every byte encoded, that is 3 KiB.
	maxForeignName = 1 << 10
	// maxForeignScope bounds all scopes together. Many servers accept no longer header.
	maxForeignScope = 8 << 10
)

// introduce prepares what is said of the bearer, and reports whether it can be said. The
// names of clients here were checked when they were configured. Elsewhere a name can be
// anything, and a backend must take it neither for another name nor for several.
func (b *bearer) introduce() bool {
	f := b.facts
	scopes := f.Scopes
	if b.realm == "" {
		if !fitsHeader(f.ClientID, maxForeignClientID) || !fitsHeader(f.Subject, maxForeignName) || !fitsHeader(f.Issuer, maxForeignName) {
			return false
		}
		// Scopes that no rule can ask for are left out: the fewer, the less the bearer may do.
		if slices.ContainsFunc(scopes, oddScope) {
			scopes = slices.DeleteFunc(slices.Clone(scopes), oddScope)
		}
	}
	b.scope = strings.Join(scopes, " ")
	return b.realm != "" || len(b.scope) <= maxForeignScope
}

// client, subject and issuer are the names that headers, placeholders and logs say.
func (b *bearer) client() string  { return b.text(b.facts.ClientID) }
func (b *bearer) subject() string { return b.text(b.facts.Subject) }
func (b *bearer) issuer() string  { return b.text(b.facts.Issuer) }

// text returns a name in the token as headers carry it. Names here need no encoding.
func (b *bearer) text(name string) string {
	if b.realm != "" {
		return name
	}
	return headerText(name)
}

func oddScope(s string) bool { return !conf.IsScope(s) }

// fitsHeader reports whether a backend can be told a name from elsewhere. With a control
// character in it, somebody is trying to add a header. A space at either end is lost on the
// way, which makes two names one.
func fitsHeader(name string, limit int) bool {
	return len(name) <= limit && name == strings.TrimSpace(name) && !strings.ContainsFunc(name, unicode.IsControl)
}

// headerText returns a name as headers carry it. As in a URL, a comma, which would make the
// name a list, a percent sign and everything beyond ASCII are percent-encoded, so different
// names stay different.
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
