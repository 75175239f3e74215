package caddyoauth

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Below a base path, ForgeRock AM knows a realm by several spellings, and by the parameter realm of the
// query. So does an oauth_server for its realms with am_compat:
//
//	/realms/root/realms/a/realms/b   the full one, which every realm has
//	/realms/a/realms/b               flat
//	/a/b                             legacy
//
// A path that is an endpoint's as it stands is that endpoint's, whatever else it could be. Of any other,
// the longest end that is an endpoint's is cut off, and what remains names the realm, whose letters may be
// capitals. Everything else must be exact: a slash too many names nothing.
//
// All of them lead only to realms that the handler serves at their full paths anyway, and neither to a
// realm without am_compat nor away from one.

// amEnds are what paths of endpoints end with, in AM or here, longer ones first. An end that is not here
// has no spelling but the full one.
var amEnds = []struct {
	path string
	kind endpointKind
}{
	{"/.well-known/openid-configuration", endpointMetadata},
	{"/connect/jwk_uri", endpointKeys},
	{"/access_token", endpointToken},
	{"/token/revoke", endpointRevoke},
	{"/introspect", endpointIntrospect},
	{tokenInfoPath, endpointTokenInfo},
	{"/authorize", endpointAuthorize},
	{"/revoke", endpointRevoke},
	{"/token", endpointToken},
	{"/jwks", endpointKeys},
}

// amSpelling is the path of an endpoint, taken apart.
type amSpelling struct {
	base string
	// realm is the name of the realm: empty for the realm of the base path, and "/" for what can't be a
	// name.
	realm string
	end   string
	kind  endpointKind
}

// at returns the path of the endpoint in a realm.
func (p amSpelling) at(r *servedRealm) string { return p.base + fullRealmPath(r.name) + p.end }

// amSpellingOf takes a path apart that is below a base path and ends as an endpoint's. Of several base
// paths that it is below, it counts from the longest. For others it allocates nothing.
func (s *Server) amSpellingOf(path string) (p amSpelling, ok bool) {
	var rest string
	for _, base := range s.basePaths {
		behind, below := strings.CutPrefix(path, base)
		if below && strings.HasPrefix(behind, "/") && (rest == "" || len(behind) < len(rest)) {
			p.base, rest = base, behind
		}
	}
	bare := strings.TrimSuffix(rest, "/")
	for _, end := range amEnds {
		if realm, is := strings.CutSuffix(bare, end.path); is {
			return amSpelling{p.base, amRealmOfPath(realm), rest[len(realm):], end.kind}, true
		}
	}
	return p, false
}

// amPathOf takes the path of an endpoint apart, which may end as that of another.
func (s *Server) amPathOf(path string, e *route) (p amSpelling, ok bool) {
	for _, base := range s.basePaths {
		for _, before := range []string{base + fullRealmPath(e.realm.name), base} {
			p = amSpelling{base, e.realm.name, strings.TrimPrefix(path, before), e.kind}
			if full := s.endpoints[p.at(e.realm)]; full != nil && full.realm == e.realm && full.kind == e.kind && path == before+p.end {
				return p, true
			}
		}
	}
	return p, false // it is not below a base path
}

// notAName is in the place of a realm's name where there can't be one.
const notAName = "/"

// amRealmOfPath returns the name of the realm of which this is a spelling. A spelling is empty, or begins
// with a slash.
func amRealmOfPath(spelling string) string {
	parts := strings.Split(spelling, "/")
	switch {
	case spelling == "":
		return ""
	case parts[1] != "realms":
		if name := lowerASCII(spelling[1:]); checkRealmName(name) == nil && name != rootRealm && name != "realms" {
			return name
		}
		return notAName
	case len(parts)%2 == 0:
		return notAName
	}
	var names []string
	for i := 1; i < len(parts); i += 2 {
		if parts[i] != "realms" {
			return notAName
		}
		names = append(names, lowerASCII(parts[i+1]))
	}
	name, full := strings.CutPrefix(strings.Join(names, "/"), rootRealm+"/")
	if checkRealmName(name) != nil || full && name == rootRealm {
		return notAName
	}
	return name
}

// lowerASCII returns text with the letters of ASCII in lower case. Others are left as they are: one that
// Unicode takes for the same letter, such as the sign for kelvin, is none in a name that is compared.
func lowerASCII(text string) string {
	return strings.Map(func(c rune) rune {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		return c
	}, text)
}

// amRealmAskedFor returns the name of the realm that a query asks for, empty if it asks for none, or for
// several.
func amRealmAskedFor(query string) string {
	values, err := url.ParseQuery(query)
	asked := values["realm"]
	if err != nil || len(asked) == 0 || asked[0] == "" || len(slices.Compact(slices.Clone(asked))) > 1 {
		return ""
	}
	return cmp.Or(lowerASCII(strings.Trim(asked[0], "/")), rootRealm)
}

// findAM is find for requests that may be for an endpoint in a spelling of AM's. exact is the endpoint
// whose path it is as it stands; nil if there is none.
func (s *Server) findAM(r *http.Request, exact *route) (e *route, missing endpointKind) {
	path, ok := s.amSpellingOf(r.URL.Path)
	if exact != nil {
		path, ok = s.amPathOf(r.URL.Path, exact)
	}
	if !ok {
		return exact, ""
	}
	named := s.am[cmp.Or(path.realm, s.DefaultRealm, rootRealm)]
	if named != nil && named.am == nil {
		return exact, "" // for it, there are no other spellings, and no parameter
	}
	if missing = path.kind; exact == nil && (path.base == "" || path.kind == endpointAuthorize) {
		missing = "" // it may be anything, or for a user, whose login is another server's business
	}
	if e = exact; e == nil && named != nil {
		e = s.endpoints[path.at(named)]
	}
	asked := amRealmAskedFor(r.URL.RawQuery)
	switch {
	case asked == "" && named != nil:
		return e, "" // without the endpoint, the realm is as any other that doesn't have it
	case asked == "", named == nil && path.realm != "" && path.realm != rootRealm:
		return nil, missing
	}
	// The query replaces the realm of the path. Where root has the base path and isn't served, it is the
	// query alone that names a realm.
	if other := s.am[asked]; other == nil {
		e = nil
	} else if other.am != nil {
		e = s.endpoints[path.at(other)]
	} // or the endpoint of the path refuses to be contradicted
	if e == nil {
		return nil, missing
	}
	return e, ""
}

// refuseUnknownRealm answers a request for the endpoint of a realm that there isn't, as AM does where a
// realm has no provider of OAuth. Documents are for everybody, so requests for them are not counted.
func (s *Server) refuseUnknownRealm(w http.ResponseWriter, r *http.Request, kind endpointKind) {
	if !kind.published() {
		collectors.requests.WithLabelValues(noEndpoint, string(kind), noSuchEndpoint).Inc()
	}
	s.noteMisdirected(w, r, kind, meantPath(r))
	writeJSON(w, http.StatusNotFound, amError{Description: "No OpenID Connect provider for this realm", Code: "not_found"})
}
