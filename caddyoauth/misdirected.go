package caddyoauth

import (
	"cmp"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"unicode"

	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// A client whose URL is slightly wrong sends its secret all the same, and the next handler would
// pass it to a backend that has no business with it. So a request that looks as if it were for an
// endpoint ends here, at an endpoint or with 404.

// noEndpoint is the realm label of such requests in metrics. It can't be a realm's name, which
// has no capitals.
const noEndpoint = "None"

// noSuchEndpoint is their result there, and their event.
const noSuchEndpoint = "no_such_endpoint"

// endpointNames are the last parts of the paths of endpoints, here or at other servers.
var endpointNames = map[string]endpointKind{
	"access_token":  endpointToken,
	"token":         endpointToken,
	"introspect":    endpointIntrospect,
	"introspection": endpointIntrospect,
	"tokeninfo":     endpointIntrospect, // ForgeRock AM's
	"revoke":        endpointRevoke,
	"revocation":    endpointRevoke,
}

// misdirected returns the kind of endpoint for which a request was meant that is at none of this handler's,
// and the path as the client meant it. An empty kind means that the request is about something
// else.
//
// Below the base path, a path that ends like an endpoint's is taken for one, whatever stands
// between: another realm, another spelling. Elsewhere that takes a request that may carry a
// secret and has `oauth2`, or the end of the base path, in its path. A backend's own `/api/token`
// is left alone. Some clients take the path of the issuer itself for the token endpoint.
func (s *Server) misdirected(r *http.Request) (kind endpointKind, meant string) {
	meant = meantPath(r)
	rest, inBase := "", false
	for i := 0; i < len(s.basePaths) && !inBase; i++ {
		rest, inBase = cutBase(meant, path.Clean(s.basePaths[i]+"/"))
	}
	dir, last := path.Split(meant)
	last, _, _ = strings.Cut(last, ";")
	last = strings.ToLower(strings.TrimFunc(last, func(c rune) bool { return c != '_' && !unicode.IsLetter(c) && !unicode.IsDigit(c) }))
	kind = endpointNames[last]
	switch {
	case kind == "" && !(inBase && (rest == "" || strings.HasPrefix(rest, "/realms/"))):
		return "", ""
	case kind != "" && inBase:
		return kind, meant
	case kind != "" && s.am != nil && r.URL.Query().Has("access_token"): // as at /tokeninfo
	case !mayCarrySecret(r):
		return "", ""
	case kind == "":
		return endpointToken, meant
	}
	for segment := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		segment, _, _ = strings.Cut(segment, ";")
		segment = strings.TrimSpace(segment)
		if strings.EqualFold(segment, "oauth2") || slices.ContainsFunc(s.basePaths, func(base string) bool { return base != "" && strings.EqualFold(segment, path.Base(path.Clean(base))) }) {
			return kind, meant
		}
	}
	// Everything is below the base path `/`. There, names that anything may have count only where
	// an endpoint could be.
	if slices.Contains(s.basePaths, "") && (dir == "/" || strings.HasPrefix(dir, "/realms/") || last == "access_token" || last == "introspect") {
		return kind, meant
	}
	return "", ""
}

// meantPath returns the path of a request as the client meant it.
func meantPath(r *http.Request) string {
	meant := r.URL.Path
	// A library that escapes the `?` has put the query into the path.
	if i := strings.IndexAny(meant, "?#&"); i >= 0 {
		meant = meant[:i]
	}
	return path.Clean(strings.ReplaceAll(meant, `\`, "/"))
}

// cutBase returns what follows the base path in a path that is the base path or below it, in
// any case of letters. Nothing counts as below the base path `/`, since everything would.
func cutBase(path, base string) (rest string, ok bool) {
	if base == "/" || len(path) < len(base) || !strings.EqualFold(path[:len(base)], base) {
		return "", false
	}
	rest = path[len(base):]
	return rest, rest == "" || rest[0] == '/'
}

// mayCarrySecret reports whether a request can have a form in its body, or has one where it does
// not belong.
func mayCarrySecret(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
	default:
		return true
	}
	// This is what 'curl -X GET -d …' sends.
	if isForm(r.Header["Content-Type"]) {
		return true
	}
	if r.URL.RawQuery == "" {
		return false
	}
	query := r.URL.Query()
	return query.Has("client_secret") || query.Has("client_assertion") || query.Has("grant_type") || query.Has("token")
}

// refuseMisdirected refuses a request that misdirected found.
func (s *Server) refuseMisdirected(w http.ResponseWriter, r *http.Request, kind endpointKind, meant string, status int, refusal *oauth.Error) {
	collectors.requests.WithLabelValues(noEndpoint, string(kind), noSuchEndpoint).Inc()
	s.noteMisdirected(w, r, kind, meant)
	writeError(w, status, refusal)
}

// noteMisdirected logs such a request, and prepares its answer.
func (s *Server) noteMisdirected(w http.ResponseWriter, r *http.Request, kind endpointKind, meant string) {
	if c := s.logger.Check(zap.InfoLevel, "no endpoint at this path"); c != nil {
		meant, _, _ = strings.Cut(meant, ";") // what follows may be parameters as well
		c.Write(zap.String("event", noSuchEndpoint), zap.String("endpoint", string(kind)), zap.String("path", meant), zap.String("remote_ip", clientIP(r)))
	}
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Pragma", "no-cache")
	dontAwaitBody(w, r)
	s.withhold(r, nil)
}

// directions returns the refusal that tells a client where the token endpoint is: root's, or
// that of the first realm served. The path is escaped, which leaves only characters that an
// error_description may have.
func (s *Server) directions(realms []*servedRealm) *oauth.Error {
	named := realms[0]
	for _, r := range realms {
		if r.name == rootRealm {
			named = r
		}
	}
	at := (&url.URL{Path: s.named(named)}).EscapedPath()
	if named.issuer != nil {
		at = s.publicBase(named)
	}
	return &oauth.Error{Code: oauth.CodeInvalidRequest, Description: "there is no endpoint at this path; the token endpoint is at " + at + "/access_token"}
}

// contradicts reports whether a realm parameter asks for another realm than e's. ForgeRock AM
// has that parameter as well as the realm in the path. The tokens of this realm would not be
// what the client wants.
func (e *route) contradicts(asked ...string) bool {
	for _, realm := range asked {
		name := strings.Trim(realm, "/")
		if e.realm.am != nil {
			name = lowerASCII(name)
		}
		if realm != "" && cmp.Or(name, rootRealm) != e.realm.name {
			return true
		}
	}
	return false
}

// contradictedBy reports whether a query contradicts e, or has the parameter in a form that
// url.Values leaves out.
func (e *route) contradictedBy(query string) bool {
	if query == "" {
		return false
	}
	values, err := url.ParseQuery(query)
	return err != nil && strings.Contains(query, "realm") || e.contradicts(values["realm"]...)
}

var errOtherRealm = &oauth.Error{
	Code: oauth.CodeInvalidRequest, Reason: "realm",
	Description: "the realm parameter asks for another realm than the path: name the realm in the path, as in /realms/root/realms/name, and leave the parameter out",
}
