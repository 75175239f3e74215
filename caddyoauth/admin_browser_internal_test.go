package caddyoauth

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// No path of the admin endpoint is without the guard: a page from elsewhere gets none of them, and of
// what one from here can only change something with console write, there is just one that is no change.
func TestEveryAdminPathIsGuarded(t *testing.T) {
	refused := func(route caddy.AdminRoute, method, site string) bool {
		r := httptest.NewRequest(method, "http://localhost:2019"+strings.TrimSuffix(route.Pattern, "{$}"), strings.NewReader("{}"))
		r.Header.Set("Sec-Fetch-Site", site)
		var answer caddy.APIError
		return errors.As(route.Handler.ServeHTTP(httptest.NewRecorder(), r), &answer) && answer.HTTPStatus == http.StatusForbidden
	}
	for _, route := range (adminAPI{}).Routes() {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"} {
			if !refused(route, method, "cross-site") {
				t.Errorf("%s %s: a page from elsewhere is let in", method, route.Pattern)
			}
		}
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
			if refused(route, method, "same-origin") == (route.Pattern == explainPattern) {
				t.Errorf("%s %s: whether that is a change is not as it should be", method, route.Pattern)
			}
		}
	}
}
