package caddyoauth

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// metrics are the collectors of this process. The values of labels come from the configuration and
// from constants, never from a request, so the number of series is bounded.
type metrics struct {
	// requests counts the requests to the endpoints, and those that look as if they were meant for
	// one. endpoint is token, introspect or revoke; result is ok, inactive, not_permitted,
	// no_such_endpoint, or an error code.
	requests *prometheus.CounterVec
	// inactive counts the introspections that were answered with inactive; cause is that of the
	// token, or not_permitted.
	inactive *prometheus.CounterVec
	// checks counts the requests that oauth_protect has judged; result is ok, anonymous, report_only or
	// what the caller was told, and cause is why, from the table in package access, or empty.
	checks *prometheus.CounterVec

	// failureLimits counts how often a client was paused, from one network; see oauth.Failures.
	failureLimits *prometheus.CounterVec

	// reportOnly counts the requests that would have been refused, and passed under report_only; realm
	// is None where no token is asked for.
	reportOnly *prometheus.CounterVec

	// guard counts what is kept from backends without a look at any token: requests that are refused
	// for their path where no token is asked for, tunnels, and what is removed from requests. guarded
	// are all of its counters.
	guard   *prometheus.CounterVec
	guarded map[access.Cause]prometheus.Counter

	cacheHits, cacheMisses, cacheEvictions prometheus.Counter

	// storeDuration is how long the store takes; operation is put, get or revoke.
	storeDuration *prometheus.HistogramVec
	// invalidations counts the single tokens that a shared store has reported as changed, and flushes
	// how often the cache had to forget all.
	invalidations, flushes prometheus.Counter
	// staleAnswers counts the answers given under serve_stale.
	staleAnswers prometheus.Counter
	// sourceDuration is how long a remote source takes to answer, and sourceUp tells whether it can be
	// asked; source is its label, which comes from the configuration.
	sourceDuration *prometheus.HistogramVec
	sourceUp       *prometheus.GaugeVec
	// clients are what each client has done, and how long its secrets last.
	clients clientMetrics
	// inventory is which clients are out of use, and whose secrets end soon.
	inventory inventoryMetrics
	// storeLink is 1 while the store in force reports revocations by other gateways.
	storeLink prometheus.GaugeFunc
}

// collectors are the same for all configurations. Each registers them with its own registry, so the
// counts survive a reload.
var collectors = newCollectors()

func newCollectors() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "caddy", Subsystem: "oauth", Name: name, Help: help})
	}
	counterVec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "caddy", Subsystem: "oauth", Name: name, Help: help}, labels)
	}
	guard := counterVec("guard_total", "Requests that were refused without a look at any token, or from which something was removed.", "cause")
	guarded := make(map[access.Cause]prometheus.Counter)
	for _, cause := range []access.Cause{access.CauseAmbiguousPath, access.CauseTunnel, strippedIdentity, strippedUpgrade} {
		guarded[cause] = guard.WithLabelValues(string(cause))
	}
	requests := counterVec("requests_total", "Requests to the token, introspection and revocation endpoints.", "realm", "endpoint", "result")
	// There may be one such request, and it matters. Prometheus sees no increase where a series
	// begins with it.
	for _, endpoint := range endpointNames {
		requests.WithLabelValues(noEndpoint, string(endpoint), noSuchEndpoint)
	}
	return &metrics{
		guard: guard, guarded: guarded,
		clients:       newClientMetrics(),
		inventory:     newInventoryMetrics(),
		invalidations: counter("store_invalidations_total", "Cached tokens that the shared store reported as changed elsewhere."),
		flushes:       counter("cache_flushes_total", "Times that all cached tokens were forgotten, because the shared store might have missed reporting a change."),
		staleAnswers:  counter("stale_answers_total", "Token checks answered under serve_stale, because the token's source could not be asked."),
		sourceDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "caddy", Subsystem: "oauth", Name: "source_duration_seconds", Help: "Time that a remote server took to answer: an introspection endpoint asked about a token, or an issuer asked for its keys.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"source", "result"}),
		sourceUp: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "caddy", Subsystem: "oauth", Name: "source_up", Help: "1 while the remote server can be asked, 0 while its circuit is open.",
		}, []string{"source"}),
		storeLink: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "caddy", Subsystem: "oauth", Name: "store_link_up",
			Help: "1 while the store reports revocations by other gateways, or there are no others; 0 while every check has to ask the store.",
		}, func() float64 {
			if a := activeApp(); a == nil || a.run.opened.coherent != nil && !a.run.opened.coherent() {
				return 0
			}
			return 1
		}),
		requests:       requests,
		failureLimits:  counterVec("failure_limits_total", "Times that so many authentications had failed, in the name of one client from one network, that no more were looked at for a while.", "realm"),
		inactive:       counterVec("introspections_inactive_total", "Introspections answered with inactive, by what the caller is not told.", "realm", "cause"),
		checks:         counterVec("bearer_checks_total", "Checks by oauth_protect: one for each oauth_protect that a request meets.", "realm", "result", "cause"),
		reportOnly:     counterVec("report_only_total", "Requests that would have been refused, and passed under report_only.", "realm", "cause"),
		cacheHits:      counter("cache_hits_total", "Token checks answered from the cache."),
		cacheMisses:    counter("cache_misses_total", "Token checks that had to ask the token's source."),
		cacheEvictions: counter("cache_evictions_total", "Cached tokens that were dropped to make room for others."),
		storeDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "caddy", Subsystem: "oauth", Name: "store_duration_seconds", Help: "Time that an operation of the token store took.",
			Buckets: []float64{.00001, .00005, .0001, .0005, .001, .0025, .005, .01, .025, .05, .1, .5, 1, 2.5},
		}, []string{"operation", "result"}),
	}
}

// registerMetrics registers the collectors with a configuration's registry.
func registerMetrics(registry *prometheus.Registry) error {
	m := collectors
	for _, c := range []prometheus.Collector{m.requests, m.failureLimits, m.inactive, m.checks, m.reportOnly, m.guard, m.cacheHits, m.cacheMisses, m.cacheEvictions, m.storeDuration, m.invalidations, m.flushes, m.storeLink, m.staleAnswers, m.sourceDuration, m.sourceUp, m.clients, m.inventory} {
		var already prometheus.AlreadyRegisteredError
		if err := registry.Register(c); err != nil && !errors.As(err, &already) {
			return err
		}
	}
	return nil
}

// realmSeries counts the configurations that use the series of a realm.
var realmSeries = seriesInUse{users: make(map[string]int)}

// seriesInUse keeps the series of a label realm as long as any configuration has them: during a reload
// these are two, so no counter begins anew. It has an entry for each realm of those configurations. A
// request that outlives its configuration may still count, for nobody.
type seriesInUse struct {
	mu    sync.Mutex
	users map[string]int // no entry is zero
}

func (s *seriesInUse) use(realm string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users[realm]++
}

// leave removes the series of a realm if nobody else uses them.
func (s *seriesInUse) leave(realm string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users[realm]--; s.users[realm] > 0 {
		return
	}
	delete(s.users, realm)
	for _, series := range []*prometheus.CounterVec{collectors.requests, collectors.failureLimits, collectors.inactive, collectors.checks, collectors.reportOnly} {
		series.DeletePartialMatch(prometheus.Labels{"realm": realm})
	}
}

// timedStore measures and traces a store. It hides the abilities that the store has beyond TokenStore, so
// newOpenStore asks for them before it wraps the store.
type timedStore struct {
	oauth.TokenStore
	system string // the kind of store, for spans
	writes *writes
}

func (s timedStore) Put(ctx context.Context, t oauth.Token) error {
	ctx, span := startSpan(ctx, "oauth.store put", trace.SpanKindClient)
	start := time.Now()
	err := s.TokenStore.Put(ctx, t)
	observeStore(ctx, "put", s.system, start, span, err)
	s.writes.ended(ctx, &s.writes.put, err)
	return err
}

func (s timedStore) Get(ctx context.Context, key oauth.Key) (oauth.Token, error) {
	ctx, span := startSpan(ctx, "oauth.store get", trace.SpanKindClient)
	start := time.Now()
	t, err := s.TokenStore.Get(ctx, key)
	observeStore(ctx, "get", s.system, start, span, err)
	return t, err
}

func (s timedStore) Revoke(ctx context.Context, key oauth.Key) error {
	ctx, span := startSpan(ctx, "oauth.store revoke", trace.SpanKindClient)
	start := time.Now()
	err := s.TokenStore.Revoke(ctx, key)
	observeStore(ctx, "revoke", s.system, start, span, err)
	s.writes.ended(ctx, &s.writes.revoke, err)
	return err
}

func (s timedStore) EndTokens(ctx context.Context, realm string, clients []string, all bool, held map[oauth.ClientRef]uint64) (map[oauth.ClientRef]uint64, error) {
	start := time.Now()
	generations, err := s.TokenStore.EndTokens(ctx, realm, clients, all, held)
	observeStore(ctx, "end_tokens", s.system, start, nil, err)
	s.writes.ended(ctx, &s.writes.revoke, err)
	return generations, err
}

// timedKeys measures and traces what requests do with a KeyStore.
type timedKeys struct {
	oauth.KeyStore
	system string // the kind of store, for spans
	writes *writes
}

func (k timedKeys) Deny(ctx context.Context, key oauth.Key, clientID string) error {
	ctx, span := startSpan(ctx, "oauth.store deny", trace.SpanKindClient)
	start := time.Now()
	err := k.KeyStore.Deny(ctx, key, clientID)
	observeStore(ctx, "deny", k.system, start, span, err)
	k.writes.ended(ctx, &k.writes.revoke, err)
	return err
}

func (k timedKeys) Denied(ctx context.Context, epoch oauth.Epoch, key oauth.Key) (bool, error) {
	ctx, span := startSpan(ctx, "oauth.store denied", trace.SpanKindClient)
	start := time.Now()
	denied, err := k.KeyStore.Denied(ctx, epoch, key)
	observeStore(ctx, "denied", k.system, start, span, err)
	return denied, err
}

// timedReplays measures and traces what requests do with a ReplayStore.
type timedReplays struct {
	store  oauth.ReplayStore
	system string // the kind of store, for spans
	writes *writes
}

func (r timedReplays) Once(ctx context.Context, id oauth.ReplayID, client oauth.ClientRef, until time.Time) (bool, error) {
	ctx, span := startSpan(ctx, "oauth.store once", trace.SpanKindClient)
	start := time.Now()
	first, err := r.store.Once(ctx, id, client, until)
	observeStore(ctx, "once", r.system, start, span, err)
	r.writes.ended(ctx, &r.writes.put, err)
	return first, err
}

// timedProofs does it for a ProofStore.
type timedProofs struct {
	oauth.ProofStore
	system string // the kind of store, for spans
	writes *writes
}

func (p timedProofs) UseProof(ctx context.Context, id oauth.ReplayID, client oauth.ClientRef, until time.Time) (first bool, since time.Time, err error) {
	ctx, span := startSpan(ctx, "oauth.store proof", trace.SpanKindClient)
	start := time.Now()
	first, since, err = p.ProofStore.UseProof(ctx, id, client, until)
	observeStore(ctx, "proof", p.system, start, span, err)
	p.writes.ended(ctx, &p.writes.put, err)
	return first, since, err
}

// observeStore measures an operation that has ended, and ends its span if it has one. If its caller
// went away, nothing is broken.
func observeStore(ctx context.Context, operation, system string, start time.Time, span trace.Span, err error) {
	if ctx.Value(askingCtxKey{}) != nil {
		return // nobody has sent a request
	}
	result := "ok"
	switch {
	case errors.Is(err, oauth.ErrNotFound), errors.Is(err, oauth.ErrOtherEpoch):
		result = "not_found"
	case errors.Is(err, oauth.ErrClientFull):
		result = "refused"
	case err != nil && errors.Is(ctx.Err(), context.Canceled):
		result = "canceled"
	case err != nil:
		result = "error"
	}
	collectors.storeDuration.WithLabelValues(operation, result).Observe(time.Since(start).Seconds())
	if span != nil {
		span.SetAttributes(attribute.String("db.system.name", system), attribute.String("db.operation.name", operation))
		endSpan(span, result, result == "error")
	}
}
