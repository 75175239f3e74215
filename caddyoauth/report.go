package caddyoauth

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/introspect"
)

// Under report_only, a request that would be refused passes. A refusal would have kept from the
// backend whatever it believes of such a request, so none of that goes on: no identity, no
// placeholders of anybody, no headers that name another method or path, no token. What is answered
// has no trace of a refusal either.

// ReportOnly lets requests pass that would be refused, and has them reported. It is for the time
// before a rule is enforced, to see whom it would hit.
type ReportOnly struct {
	// When that ends, in RFC 3339. From then on, requests are refused. Default: it doesn't end.
	Until time.Time `json:"until,omitzero"`
}

// reportOnlyResult is the result of requests that pass only under report_only, in metrics and spans.
const reportOnlyResult = "report_only"

// holds reports whether requests pass now. It doesn't allocate. o may be nil.
func (o *ReportOnly) holds() bool {
	return o != nil && (o.Until.IsZero() || time.Now().Before(o.Until))
}

// warnOfEnd warns if requests are refused already, in spite of what stands there. o may be nil.
func (o *ReportOnly) warnOfEnd(logger *zap.Logger, at string) {
	if o != nil && !o.holds() {
		logger.Warn("report_only has ended, and requests are refused: remove it, or give it another end", zap.Time("until", o.Until), zap.String("rule", at))
	}
}

// reportOption reads report_only [until <time>].
func reportOption(place **ReportOnly) conf.Option {
	return conf.Func(func(d *caddyfile.Dispenser) error {
		args := d.RemainingArgs()
		*place = new(ReportOnly)
		switch {
		case len(args) == 2 && args[0] == "until":
			until, err := conf.ParseTime("until", args[1])
			if err != nil {
				return d.WrapErr(err)
			}
			(*place).Until = until
		case len(args) > 0:
			return d.Err("report_only takes nothing, or 'until' and a time")
		}
		return conf.NoBlock(d, "report_only")
	})
}

// report reports a request that would be refused. A handler before this one has let in earlier,
// which is nil if there was none.
func (p *Protect) report(r *http.Request, b *bearer, decision access.Decision, earlier *bearer) {
	no := p.rejections[decision.Cause]
	no.passed.Inc()
	no.reported.Inc()
	p.countRefused(b, reportOnlyResult, no.cause)
	if b != nil && b.facts != nil && b.facts.Active && p.asked == nil {
		p.app.noteSeen(r, b)
	}
	if earlier == nil && lacksRight(decision) {
		addToAccessLog(r.Context(), b)
	}
	logReported(r, no.cause)
	p.refusals.writeReported(r, no.cause, no.status, func() []zap.Field {
		return append([]zap.Field{zap.String("error", string(no.result))}, b.refused(decision)...)
	})
}

// reportAmbiguous reports a request that would be refused for its path where no token is asked for.
func reportAmbiguous(r *http.Request, log *refusalLog) {
	log.countReported(access.CauseAmbiguousPath)
	logReported(r, access.CauseAmbiguousPath)
	log.writeReported(r, access.CauseAmbiguousPath, http.StatusBadRequest, nil)
}

// logReported adds to the request's access log line why it would have been refused.
func logReported(r *http.Request, cause access.Cause) {
	addFieldToAccessLog(r.Context(), "oauth_report_only", reportedRequest(cause))
}

// reportedRequest is what the access log says of a request that passes under report_only. Its members
// have names of their own: another oauth_protect may have let in the same request, or refused it.
type reportedRequest access.Cause

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (cause reportedRequest) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddBool("report_only", true)
	enc.AddString("report_only_cause", string(cause))
	return nil
}

// passAsLetIn lets a request pass that an earlier oauth_protect has let in, with what it has told the
// backend: headers are the request's at that time. That is what the backend would get without this
// handler, except for what each of several handlers must allow to go on.
func passAsLetIn(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, earlier *bearer, headers http.Header, keepsToken bool) error {
	maps.Copy(r.Header, headers)
	dropOverrides(r)
	if !keepsToken {
		token := earlier.token.Text()
		keepLines(r.Header, func(word string) bool { return word == token })
	}
	return next.ServeHTTP(w, r)
}

// otherSchemes returns the lines of Authorization that a backend may get under report_only: it may
// know users of its own, by Basic for example. A bearer token is kept from it, as is one that is
// bound by DPoP, one of ours in any other place, too, and so are Basic credentials if the route has the option for those of clients.
func (p *Protect) otherSchemes(lines []string) []string {
	h := http.Header{"Authorization": lines}
	keepLines(h, func(word string) bool {
		return strings.EqualFold(word, "bearer") || strings.EqualFold(word, "dpop") || p.app.mayHaveIssued(new(introspect.NewToken(word))) || p.Basic != nil && strings.EqualFold(word, "basic")
	})
	return h["Authorization"]
}

// keepLines removes the lines of Authorization that have a word which must not go on.
func keepLines(h http.Header, removes func(word string) bool) {
	separates := func(c rune) bool { return strings.ContainsRune(" \t,;=\"", c) }
	kept := slices.DeleteFunc(slices.Clone(h["Authorization"]), func(line string) bool {
		return slices.ContainsFunc(strings.FieldsFunc(line, separates), removes)
	})
	if h["Authorization"] = kept; len(kept) == 0 {
		delete(h, "Authorization")
	}
}
