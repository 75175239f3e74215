package caddyoauth

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// # Tracing
//
// Caddy's handler `tracing` makes a provider from the OTEL_* environment, and puts a span into the
// context of each request. All spans here are its descendants, made by its provider:
//
//	oauth.token, oauth.introspect, oauth.revoke   a request to an endpoint        server.go
//	oauth.tokeninfo                               likewise                        am_tokeninfo.go
//	oauth.check                                   a request to a protected route  protect.go
//	oauth.store <operation>                       what these ask the store        metrics.go
//	oauth.source <label>                          and other servers               traceRequests
//
// The context carries them. Several requests may share one lookup (see introspect.CachedSource): it
// has the context of the one that came first, so its spans and its traceparent are those of that
// request. The others only have an oauth.check that says "miss" and takes as long. The same holds for
// keys that a request makes us fetch. Keys that are fetched because it is time, and questions about
// the state of a server, belong to no request and have no span.
//
// The cache has no span of its own: to look into it takes less time than to make one. An attribute of
// oauth.check says what it knew.
//
// A request that is not traced costs one look into its context, and allocates nothing.
//
// No attribute holds a token, a secret, the query of a URL, or anything else that a caller made up:
// clients are named once they are known to be registered here, or a source vouches for them.

// tracerName is the instrumentation scope of the spans.
const tracerName = "github.com/caddyoauth/gateway"

// startSpan starts a span below the one in ctx, and returns the context that has it. If nothing
// records that one, it returns ctx and nil. The caller ends the span.
func startSpan(ctx context.Context, name string, kind trace.SpanKind) (context.Context, trace.Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, nil
	}
	return parent.TracerProvider().Tracer(tracerName).Start(ctx, name, trace.WithSpanKind(kind))
}

// endSpan sets the outcome of a span and ends it. failed says that something is broken: a refusal is
// an outcome like any other.
func endSpan(span trace.Span, outcome string, failed bool) {
	setOutcome(span, outcome, failed)
	span.End()
}

func setOutcome(span trace.Span, outcome string, failed bool) {
	span.SetAttributes(attribute.String("oauth.outcome", outcome))
	if failed {
		span.SetAttributes(attribute.String("error.type", outcome))
		span.SetStatus(codes.Error, "")
	}
}

// describeRequest sets the attributes of the span of a request to an endpoint, if it has one. The
// outcome is that of the metrics, the cause the reason or the cause of the events.
func describeRequest(ctx context.Context, e *route, clientID, outcome, cause string) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(attribute.String("oauth.realm", e.realm.name))
	if clientID != "" {
		span.SetAttributes(attribute.String("oauth.client_id", clientID))
	}
	if cause != "" {
		span.SetAttributes(attribute.String("oauth.cause", cause))
	}
	setOutcome(span, outcome, outcome == string(oauth.CodeUnavailable) && ctx.Err() == nil)
}

// describeBearer sets the attributes of a check that depend on the token.
func describeBearer(span trace.Span, b *bearer) {
	if cache := b.token.Cache(); cache != "" {
		span.SetAttributes(attribute.String("oauth.cache", cache))
	}
	if b.facts == nil || !b.facts.Active {
		return
	}
	if b.realm != "" {
		span.SetAttributes(attribute.String("oauth.client_id", b.facts.ClientID))
		return
	}
	// Another server says these, so they are spelled and bounded as in the events.
	span.SetAttributes(attribute.String("oauth.client_id", loggedText(headerText(b.facts.ClientID))))
	if b.facts.Issuer != "" {
		span.SetAttributes(attribute.String("oauth.issuer", loggedText(headerText(b.facts.Issuer))))
	}
}

// describeCheck sets the attributes of a check that depend on its result. A caller that has gone away
// got no answer either, but nothing is broken.
func (p *Protect) describeCheck(ctx context.Context, span trace.Span, reports bool, b *bearer, decision access.Decision) {
	span.SetAttributes(attribute.String("oauth.realm", p.label))
	if decision.Allowed {
		outcome := "ok"
		if b == nil {
			outcome = "anonymous"
		}
		setOutcome(span, outcome, false)
		return
	}
	no := p.rejections[decision.Cause]
	span.SetAttributes(attribute.String("oauth.cause", string(no.cause)))
	if reports {
		setOutcome(span, reportOnlyResult, false)
		return
	}
	setOutcome(span, string(no.result), no.status >= http.StatusInternalServerError && ctx.Err() == nil)
}

// traceRequests returns the OnSend of a source: it gives each request that a traced request causes
// a span. The trace goes along to the server that is configured, in traceparent and tracestate
// (W3C Trace Context), and to no other: a document may name hosts that nobody has chosen to trust.
// Baggage, in which applications pass on what they like, goes nowhere.
//
// A trace that is not recorded goes along all the same, so that the other server does not record its
// part alone.
func traceRequests(label, configured string) func(*http.Request) func(int, string) {
	home, err := url.Parse(configured)
	if err != nil { // it has been checked
		home = new(url.URL)
	}
	name := "oauth.source " + label
	return func(r *http.Request) func(int, string) {
		ctx, span := startSpan(r.Context(), name, trace.SpanKindClient)
		if r.URL.Scheme == home.Scheme && r.URL.Host == home.Host {
			propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(r.Header))
		}
		if span == nil {
			return func(int, string) {}
		}
		port, err := strconv.Atoi(r.URL.Port())
		if err != nil {
			port = map[string]int{"http": 80, "https": 443}[r.URL.Scheme]
		}
		span.SetAttributes(
			attribute.String("http.request.method", r.Method), attribute.String("server.address", r.URL.Hostname()), attribute.Int("server.port", port),
			attribute.String("url.full", (&url.URL{Scheme: r.URL.Scheme, Host: r.URL.Host, Path: r.URL.Path, RawPath: r.URL.RawPath}).String()),
		)
		return func(status int, kind string) {
			if status != 0 {
				span.SetAttributes(attribute.Int("http.response.status_code", status))
			}
			endSpan(span, kind, kind != "ok" && kind != introspect.RemoteActive && kind != introspect.RemoteInactive)
		}
	}
}
