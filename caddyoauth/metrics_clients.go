package caddyoauth

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
)

// clientCounts is what one client has done. A reload hands it on while the client stays, by its
// realm and ID, and drops it with the client. It is safe for concurrent use.
type clientCounts struct {
	passed atomic.Uint64 // checks by oauth_protect that let it pass
	basic  atomic.Uint64 // requests to protected routes with its right secret in the place of a token
	// elsewhere are the checks of valid tokens from elsewhere that name a client of this ID.
	elsewhere atomic.Uint64

	mu sync.Mutex
	// refused are the checks that didn't, and requests those to the endpoints. Their keys are made of
	// constants, so there are a few dozen at most.
	refused  map[clientRefusal]uint64
	requests map[clientRequest]uint64
}

// clientRequest is a kind of request to an endpoint.
type clientRequest struct {
	endpoint endpointKind
	result   string
}

// clientRefusal is what the caller was told, and why: one of the few causes that a valid token can
// meet.
type clientRefusal struct {
	result string
	cause  access.Cause
}

func newClientCounts() *clientCounts {
	return &clientCounts{refused: make(map[clientRefusal]uint64), requests: make(map[clientRequest]uint64)}
}

func (c *clientCounts) countRefused(result string, cause access.Cause) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused[clientRefusal{result, cause}]++
}

func (c *clientCounts) countRequest(endpoint endpointKind, result string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests[clientRequest{endpoint, result}]++
}

// foreignCounts is for the clients of tokens from elsewhere. They are counted together: another
// server may have any number of them.
var foreignCounts = newClientCounts()

// managedCounts is under which the managed clients of a realm are counted, together: there may be any
// number of them. No client has this ID.
const managedCounts = ""

// handOnCounts gives the realm's clients their counts: those from before, and new ones to clients
// that are new.
func (r *servedRealm) handOnCounts(before *App) {
	var known map[string]*clientCounts
	if before != nil && before.realms[r.name] != nil {
		known = before.realms[r.name].counts
	}
	r.counts = make(map[string]*clientCounts, len(r.settings.Clients)+1)
	ids := slices.Collect(maps.Keys(r.settings.Clients))
	if r.managed != nil {
		ids = append(ids, managedCounts)
	}
	for _, id := range ids {
		if r.counts[id] = known[id]; r.counts[id] == nil {
			r.counts[id] = newClientCounts()
		}
	}
}

// countsOf returns the counts of a client, or nil if there are none.
func (r *servedRealm) countsOf(id string) *clientCounts {
	if counts := r.counts[id]; counts != nil {
		return counts
	}
	return r.counts[managedCounts]
}

// countsOf returns the counts of a bearer's client. It doesn't allocate.
func (a *App) countsOf(b *bearer) *clientCounts {
	if realm := a.realms[b.realm]; realm != nil {
		if counts := realm.countsOf(b.facts.ClientID); counts != nil {
			return counts
		}
	}
	return a.foreign
}

// realmsBesideOthers returns the realms whose tokens the route takes beside tokens from elsewhere. Their
// clients may be those that another server has, too, as when they move from there to here.
func (p *Protect) realmsBesideOthers() (realms []*servedRealm) {
	names := p.localRealms()
	if len(names) == len(p.sources) {
		return nil
	}
	for _, name := range names {
		realm := p.app.realms[name]
		realm.besideOthers = true
		realms = append(realms, realm)
	}
	return realms
}

// countElsewhere counts a valid token from elsewhere for the client that has the same ID here. If several
// realms of the route have one, it is the first of them.
func (p *Protect) countElsewhere(b *bearer) {
	if b.realm != "" || p.asked != nil {
		return
	}
	for _, realm := range p.besideOthers {
		if counts := realm.countsOf(b.facts.ClientID); counts != nil {
			counts.elsewhere.Add(1)
			return
		}
	}
}

// clientMetrics collects what there is to tell about the clients of the configuration in force, and
// nothing about others: series of a client that is gone are gone with it.
type clientMetrics struct{ requests, checks, basic, elsewhere, secretExpiry *prometheus.Desc }

func newClientMetrics() clientMetrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName("caddy", "oauth", name), help, labels, nil)
	}
	return clientMetrics{
		requests:     desc("client_requests_total", "Requests to the token, introspection and revocation endpoints in the name of a client.", "realm", "client_id", "endpoint", "result"),
		checks:       desc("client_checks_total", "Checks of valid tokens by oauth_protect: one for each oauth_protect that a request meets.", "realm", "client_id", "result", "cause"),
		basic:        desc("client_basic_total", "Requests to protected routes with a client's ID and secret by Basic in the place of a token.", "realm", "client_id"),
		elsewhere:    desc("client_elsewhere_total", "Checks of valid tokens from elsewhere that name a client with the ID of this one.", "realm", "client_id"),
		secretExpiry: desc("secret_expiry_timestamp_seconds", "When a client's secret stops being accepted, in seconds since 1970; +Inf for never.", "realm", "client_id", "secret"),
	}
}

// Describe implements [prometheus.Collector].
func (m clientMetrics) Describe(descs chan<- *prometheus.Desc) {
	descs <- m.requests
	descs <- m.checks
	descs <- m.basic
	descs <- m.elsewhere
	descs <- m.secretExpiry
}

// Collect implements [prometheus.Collector].
func (m clientMetrics) Collect(metrics chan<- prometheus.Metric) {
	app := activeApp()
	if app == nil {
		return
	}
	for _, realm := range app.realms {
		for id, counts := range realm.counts {
			m.collect(metrics, realm.name, id, counts)
			if realm.takesBasic {
				metrics <- prometheus.MustNewConstMetric(m.basic, prometheus.CounterValue, float64(counts.basic.Load()), realm.name, id)
			}
			if realm.besideOthers {
				metrics <- prometheus.MustNewConstMetric(m.elsewhere, prometheus.CounterValue, float64(counts.elsewhere.Load()), realm.name, id)
			}
		}
		for id, client := range realm.settings.Clients {
			if client.Disabled {
				continue // its secrets are accepted from nobody
			}
			for i, secret := range client.Secrets {
				until := math.Inf(1)
				if !secret.Until.IsZero() {
					until = float64(secret.Until.Unix())
				}
				metrics <- prometheus.MustNewConstMetric(m.secretExpiry, prometheus.GaugeValue, until, realm.name, id, strconv.Itoa(i+1))
			}
		}
	}
	if len(app.sources) > 0 {
		m.collect(metrics, noRealm, noRealm, foreignCounts)
	}
}

func (m clientMetrics) collect(metrics chan<- prometheus.Metric, realm, client string, counts *clientCounts) {
	counter := func(desc *prometheus.Desc, n uint64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), append([]string{realm, client}, labels...)...)
	}
	counter(m.checks, counts.passed.Load(), "ok", "")
	counts.mu.Lock()
	defer counts.mu.Unlock()
	for refused, n := range counts.refused {
		counter(m.checks, n, refused.result, string(refused.cause))
	}
	for request, n := range counts.requests {
		counter(m.requests, n, string(request.endpoint), request.result)
	}
}
