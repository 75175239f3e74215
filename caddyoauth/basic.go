package caddyoauth

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// Basic lets clients that don't fetch tokens yet send their ID and secret with each request. It is
// for a time of transition: those who use it are counted by client, and each response tells them
// that it is deprecated (RFC 9745), and when it ends (RFC 8594).
type Basic struct {
	// When Basic stops being taken, without a reload; responses have it as `Sunset`. Default:
	// never.
	Until time.Time `json:"until,omitzero"`
}

// basicRoute is a Basic ready for requests. All its methods may be called on nil, for a route
// without it.
type basicRoute struct {
	realm     *servedRealm
	until     time.Time // zero for never
	challenge string    // RFC 7617

	deprecation, sunset string // header values; sunset is empty for never
}

// basicCaller is a bearer's proof if that is no token.
type basicCaller struct {
	// authorization are the credentials, for an oauth_protect behind this one. Like a token, they
	// travel in the request's context, where placeholders and logs can't reach them. Nil if they are
	// refused: they may be long, and an event may wait with them.
	authorization []string
	out           oauth.Outcome
	reason        string // why they are refused; empty if they are right
	// retryAfter is when they are looked at again, with CauseFailureLimit.
	retryAfter time.Duration
}

// String keeps the secret out of anything that prints the value.
func (*basicCaller) String() string { return "REDACTED" }

// checkBasic refuses the option unless it is clear whose clients may use it. accepted are the
// realms whose tokens the route accepts.
func (p *Protect) checkBasic(accepted []string) error {
	if p.Basic == nil || len(accepted) == 1 {
		return nil
	}
	if len(accepted) == 0 {
		return errors.New("basic takes the secrets of a realm here, but no source accepts its tokens: add 'source local'")
	}
	return fmt.Errorf("basic takes the secrets of one realm, but the sources accept the tokens of several (%s): write an oauth_protect for each", strings.Join(accepted, ", "))
}

// provisionBasic returns what the option means for requests, or nil without it.
func (p *Protect) provisionBasic() (*basicRoute, error) {
	if p.Basic == nil {
		return nil, nil
	}
	accepted := p.localRealms()
	if err := p.checkBasic(accepted); err != nil {
		return nil, err
	}
	now := time.Now()
	realm := p.app.realms[accepted[0]]
	realm.takesBasic = true
	b := &basicRoute{
		realm: realm, until: p.Basic.Until, challenge: `Basic realm="` + realm.name + `", charset="UTF-8"`,
		deprecation: "@" + strconv.FormatInt(now.Unix(), 10),
	}
	if !b.until.IsZero() {
		b.sunset = b.until.UTC().Format(http.TimeFormat)
		if !b.on(now) {
			p.logger.Warn("basic has ended: the route takes tokens alone, so the option can go", zap.String("rule", p.At), zap.Time("until", b.until))
		}
	}
	return b, nil
}

// on reports whether the route takes Basic at that time.
func (b *basicRoute) on(now time.Time) bool {
	return b != nil && (b.until.IsZero() || now.Before(b.until))
}

// takes reports whether the lines of the Authorization header are for Basic, and the route takes
// it. Whether the credentials are well-formed is found out later.
func (b *basicRoute) takes(authorization []string, now time.Time) bool {
	return b.on(now) && isBasic(authorization)
}

// told says what the option means, in an explanation.
func (b *basicRoute) told() string {
	text := "takes a client's ID and secret by Basic, too"
	if !b.until.IsZero() {
		text += ", until " + b.until.UTC().Format(time.RFC3339)
	}
	return text
}

// isBasic reports whether there is one line of Authorization, for Basic.
func isBasic(authorization []string) bool {
	const scheme = "basic"
	if len(authorization) != 1 {
		return false
	}
	line := authorization[0]
	return len(line) >= len(scheme) && strings.EqualFold(line[:len(scheme)], scheme) &&
		(len(line) == len(scheme) || strings.IndexByte(" \t,", line[len(scheme)]) >= 0)
}

// isSecret reports whether Authorization may have the secret of a client here, which no backend
// gets: the route has or had the option.
func (p *Protect) isSecret(authorization []string) bool {
	return p.Basic != nil && isBasic(authorization)
}

// judgeBasic is judge for Basic credentials. Whoever an oauth_protect before this one let in with
// them is not authenticated again, unless it was for another realm.
func (p *Protect) judgeBasic(r *http.Request, span trace.Span, earlier *bearer, rule *access.Rule, authorization []string) (*bearer, access.Decision) {
	b := &bearer{realm: p.basic.realm.name, by: p, rule: rule, earlier: earlier}
	if earlier != nil && earlier.realm == b.realm {
		b.basic, b.facts = earlier.basic, earlier.facts
	} else if cause := p.authenticate(r, b, authorization); cause != "" {
		return b, access.Decision{Cause: cause}
	}
	if span != nil {
		describeBearer(span, b)
	}
	return b, access.Decide(rule, b.facts, access.Request{Fit: b.introduce()})
}

// authenticate finds out whose credentials these are, for a bearer. It returns why nobody's, or why
// nobody can tell.
func (p *Protect) authenticate(r *http.Request, b *bearer, authorization []string) access.Cause {
	b.basic = new(basicCaller)
	if p.asked != nil {
		return access.CauseOutage // a question checks no secrets: that would count, and can be used to guess
	}
	from, _ := clientAddr(r)
	engine, err := p.basic.realm.await(r.Context())
	if err == nil {
		b.facts, b.basic.out, err = engine.Basic(r.Context(), authorization[0], from)
	}
	p.app.logPause(r, b.realm, b.basic.out)
	var refusal *oauth.Error
	switch {
	case err == nil:
		b.basic.authorization = authorization
		p.app.countsOf(b).basic.Add(1)
		return ""
	case r.Context().Err() != nil:
		return access.CauseCanceled
	case errors.As(err, &refusal) && refusal.Code == oauth.CodeInvalidClient:
		b.basic.reason = refusal.Reason
		return access.CauseBasic
	case errors.As(err, &refusal) && refusal.Code == oauth.CodeUnavailable:
		return access.CauseBusy
	case errors.As(err, &refusal) && refusal.Code == oauth.CodeTooManyRequests:
		b.basic.retryAfter = refusal.RetryAfter
		return access.CauseFailureLimit
	}
	p.trouble().Error("a client could not be authenticated", zap.String("realm", p.label), zap.Error(err))
	return access.CauseOutage
}

// refused returns what the event of a refusal says about the caller: its client only if that is
// registered, for what else stands in its place may be anything, even a mistyped secret.
func (c *basicCaller) refused() (fields []zap.Field) {
	if c.reason != "" {
		fields = append(fields, zap.String("reason", c.reason))
	}
	if c.out.ClientID != "" {
		fields = append(fields, zap.String("client_id", c.out.ClientID))
	}
	return provedBy(fields, c.out)
}

// endsFirst returns the route that stops taking Basic first, of those that have let the caller in by
// it: from then on, the request is refused.
func (b *bearer) endsFirst() *basicRoute {
	first := b.by.basic
	for e := b.earlier; e != nil; e = e.earlier {
		if e.basic == nil {
			continue
		}
		if until := e.by.basic.until; !until.IsZero() && (first.until.IsZero() || until.Before(first.until)) {
			first = e.by.basic
		}
	}
	return first
}

// deprecate tells a caller that Basic is deprecated and when it ends, unless the backend says so
// of something itself.
func (b *basicRoute) deprecate(h http.Header) {
	if h["Deprecation"] == nil {
		h["Deprecation"] = []string{b.deprecation}
	}
	if h["Sunset"] == nil && b.sunset != "" {
		h["Sunset"] = []string{b.sunset}
	}
}

// deprecating returns a writer that does this when the header is written: a proxy would add the
// backend's own header to one that is there before.
func (b *basicRoute) deprecating(w http.ResponseWriter) http.ResponseWriter {
	return &deprecatingWriter{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, basic: b}
}

type deprecatingWriter struct {
	*caddyhttp.ResponseWriterWrapper
	basic *basicRoute
	begun bool // the header is written
}

// begin is called before the header is written.
func (w *deprecatingWriter) begin() {
	if !w.begun {
		w.begun = true
		w.basic.deprecate(w.Header())
	}
}

// WriteHeader implements http.ResponseWriter.
func (w *deprecatingWriter) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols { // others precede the response
		w.begin()
	}
	w.ResponseWriterWrapper.WriteHeader(status)
}

// Write implements io.Writer. It writes the header if nobody has.
func (w *deprecatingWriter) Write(p []byte) (int, error) {
	w.begin()
	return w.ResponseWriterWrapper.Write(p)
}

// ReadFrom implements io.ReaderFrom, like Write.
func (w *deprecatingWriter) ReadFrom(r io.Reader) (int64, error) {
	w.begin()
	return w.ResponseWriterWrapper.ReadFrom(r)
}

// FlushError is how http.ResponseController flushes, which may write the header, too.
func (w *deprecatingWriter) FlushError() error {
	w.begin()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// basicOption reads basic [until <time>].
func basicOption(place **Basic) conf.Option {
	return conf.Func(func(d *caddyfile.Dispenser) error {
		option, args := d.Val(), d.RemainingArgs()
		basic := new(Basic)
		if len(args) > 0 {
			if len(args) != 2 || args[0] != "until" {
				return d.Errf("%s takes nothing, or 'until' and a time such as 2026-12-31T00:00:00Z", option)
			}
			until, err := conf.ParseTime("until", args[1])
			if err != nil {
				return d.WrapErr(err)
			}
			basic.Until = until
		}
		*place = basic
		return conf.NoBlock(d, option)
	})
}
