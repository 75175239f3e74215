package caddyoauth

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// inventoryMetrics collects which clients are out of use, and how many managed ones will be locked out soon: those of the configuration by name, of which secret_expiry_timestamp_seconds has the ends, and
// managed ones together, since there may be any number of them.
type inventoryMetrics struct {
	unusedFor, managed, unused, expiring *prometheus.Desc
	// last is what was found out last. It is good for figuresGood for each client, since with many clients it
	// may take a second: with 100,000 that is a quarter of an hour.
	last *lastFigures
}

const (
	figuresGood = 10 * time.Millisecond
	// figuresTimeout bounds how long a scrape waits for the store.
	figuresTimeout = 2 * time.Second
)

// The days for which clients are counted.
var (
	unusedDays   = []int{30, 90}
	expiringDays = []int{7, 30}
)

type lastFigures struct {
	mu     sync.Mutex
	app    *App // that they are of
	until  time.Time
	realms map[string]*clientFigures
}

// clientFigures are those of a realm.
type clientFigures struct {
	// unusedSince is by the ID of a client of the configuration. A client is missing if it is not known.
	unusedSince map[string]time.Time
	// The others are nil if the realm has no managed clients. unused and expiring are by days.
	managed          map[string]int // by state
	unused, expiring map[int]int
	// clients is how many there are of both kinds.
	clients int
	// known is false if the store could not say what clients did.
	known bool
}

func newInventoryMetrics() inventoryMetrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName("caddy", "oauth", name), help, labels, nil)
	}
	return inventoryMetrics{
		unusedFor: desc("client_unused_seconds", "For how long a client has done nothing, or nothing since that is known.", "realm", "client_id"),
		managed:   desc("managed_clients", "Managed clients, by whether they are active, disabled or unusable.", "realm", "state"),
		unused:    desc("managed_clients_unused", "Managed clients that are active and have done nothing for so many days.", "realm", "days"),
		expiring:  desc("managed_clients_expiring", "Managed clients that are active, and all of whose secrets end within so many days or have ended.", "realm", "days"),
		last:      new(lastFigures),
	}
}

// Describe implements [prometheus.Collector].
func (m inventoryMetrics) Describe(descs chan<- *prometheus.Desc) {
	descs <- m.unusedFor
	descs <- m.managed
	descs <- m.unused
	descs <- m.expiring
}

// Collect implements [prometheus.Collector].
func (m inventoryMetrics) Collect(metrics chan<- prometheus.Metric) {
	app := activeApp()
	if app == nil {
		return
	}
	now := time.Now()
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	for realm, figures := range m.last.of(app, now) {
		for id, since := range figures.unusedSince {
			gauge(m.unusedFor, now.Sub(since).Truncate(time.Millisecond).Seconds(), realm, id)
		}
		for state, n := range figures.managed {
			gauge(m.managed, float64(n), realm, state)
		}
		for days, n := range figures.expiring {
			gauge(m.expiring, float64(n), realm, strconv.Itoa(days))
		}
		for days, n := range figures.unused {
			if figures.known {
				gauge(m.unused, float64(n), realm, strconv.Itoa(days))
			}
		}
	}
}

// of returns the figures of an App, by realm. They are read-only.
func (l *lastFigures) of(app *App, now time.Time) map[string]*clientFigures {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.app == app && now.Before(l.until) {
		return l.realms
	}
	ctx, cancel := context.WithTimeout(context.Background(), figuresTimeout)
	defer cancel()
	l.app, l.until, l.realms = app, now, make(map[string]*clientFigures)
	for name, realm := range app.realms {
		if realm.engine != nil { // otherwise nothing is issued here
			figures := app.figures(ctx, realm, now)
			l.realms[name] = figures
			l.until = l.until.Add(figuresGood * time.Duration(figures.clients))
		}
	}
	return l.realms
}

// figures counts the clients of a realm.
func (a *App) figures(ctx context.Context, realm *servedRealm, now time.Time) *clientFigures {
	ids := sortedKeys(realm.settings.Clients)
	f := &clientFigures{unusedSince: make(map[string]time.Time)}
	if realm.managed != nil {
		ids = nil // all
		f.managed = map[string]int{stateActive: 0, stateDisabled: 0, stateUnusable: 0}
		f.unused, f.expiring = make(map[int]int), make(map[int]int)
		for _, days := range unusedDays {
			f.unused[days] = 0
		}
		for _, days := range expiringDays {
			f.expiring[days] = 0
		}
	}
	uses, err := a.usesOf(ctx, realm, ids)
	f.known = err == nil
	for c := range realm.listed(clientFilter{}, "") {
		f.clients++
		since, known := c.unusedSince(uses)
		switch {
		case !c.managed:
			if known && f.known {
				f.unusedSince[c.ID] = since
			}
			continue
		case c.state() != stateActive:
			f.managed[c.state()]++
			continue
		}
		f.managed[stateActive]++
		for _, days := range unusedDays {
			if known && now.Sub(since) >= daysOf(days) {
				f.unused[days]++
			}
		}
		for _, days := range expiringDays {
			if lastEndsBefore(c.Secrets, now.Add(daysOf(days))) {
				f.expiring[days]++
			}
		}
	}
	return f
}

// lastEndsBefore reports whether there are secrets, and all of them end before a time: then the client is
// locked out. While one replaces another, there is no need to say so.
func lastEndsBefore(secrets []*oauth.Secret, at time.Time) bool {
	stays := func(s *oauth.Secret) bool { return s.Until.IsZero() || !s.Until.Before(at) }
	return len(secrets) > 0 && !slices.ContainsFunc(secrets, stays)
}

func daysOf(n int) time.Duration { return time.Duration(n) * 24 * time.Hour }
