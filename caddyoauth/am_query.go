package caddyoauth

import (
	"maps"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// Clients with credentials in the query of their URLs, in a realm with am_compat that takes them there.

const (
	// queryWarningEvery is how often a client is warned of.
	queryWarningEvery = 24 * time.Hour
	// maxQueryWarnings bounds the clients that are remembered, which take some 100 bytes each. If there
	// are more in a day, only the events of their requests tell.
	maxQueryWarnings = 10_000
)

// queryWarnings remembers of which clients of a realm a warning was written. It is bounded by
// maxQueryWarnings, begins anew with each load of the configuration, and needs no end. It is safe for
// concurrent use.
type queryWarnings struct {
	mu      sync.Mutex
	written map[string]time.Time // by client ID
}

// due reports whether a warning of a client is due. If so, it counts as written.
func (q *queryWarnings) due(clientID string, now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	past := func(at time.Time) bool { return now.Sub(at) >= queryWarningEvery }
	if at, known := q.written[clientID]; known && !past(at) {
		return false
	}
	if len(q.written) >= maxQueryWarnings {
		maps.DeleteFunc(q.written, func(_ string, at time.Time) bool { return past(at) })
	}
	if len(q.written) >= maxQueryWarnings {
		return false
	}
	if q.written == nil {
		q.written = make(map[string]time.Time)
	}
	q.written[clientID] = now
	return true
}

// warnOfQuery warns of a client that has been authenticated by credentials in a query. Of those that
// haven't, anybody could make as many warnings as there are clients.
func (s *Server) warnOfQuery(r *http.Request, e *route, out oauth.Outcome) {
	if e.realm.queryWarnings == nil || out.Proof == (oauth.Proof{}) || !e.realm.queryWarnings.due(out.ClientID, time.Now()) {
		return
	}
	s.logger.Warn("a client has its credentials in the query of the URL, where logs get them: have it send them by Basic or in the form",
		zap.String("event", "credentials_in_query"), zap.String("realm", e.realm.name), zap.String("client_id", out.ClientID),
		zap.String("endpoint", string(e.kind)), zap.String("remote_ip", clientIP(r)))
}
