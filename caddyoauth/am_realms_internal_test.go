package caddyoauth

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
	"pgregory.net/rapid"
)

// amServer is a handler for these realms, of which those with am_compat end with a +.
func amServer(t testing.TB, defaultRealm string, names ...string) *Server {
	t.Helper()
	app := &App{realms: make(map[string]*servedRealm)}
	s := &Server{app: app, BasePath: "/oauth2", DefaultRealm: defaultRealm, basePaths: []string{"/oauth2", "/am"}, endpoints: make(map[string]*route), am: make(map[string]*servedRealm), logger: zap.NewNop()}
	for _, name := range names {
		name, am := strings.CutSuffix(name, "+")
		config := &Realm{Issuer: "https://auth.example.com/oauth2" + realmPath(name), AuthorizationEndpoint: true, Signing: new(Signing), ManagedClients: true}
		if am {
			config.AMCompat = new(AMCompat)
		}
		r, err := config.provision(name, new(Realm), zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		r.app = app
		if err := s.layOut(r); err != nil {
			t.Fatal(err)
		}
		s.am[name] = r
	}
	return s
}

// A path of an endpoint that is not among amEnds would have no spelling but the full one.
func TestAMEndsAreAll(t *testing.T) {
	t.Parallel()
	s := amServer(t, "", "root+", "alpha+")
	found := 0
	for path := range s.endpoints {
		end, ok := strings.CutPrefix(path, "/oauth2/realms/root/realms/alpha")
		if !ok {
			continue
		}
		end = strings.TrimSuffix(end, "/")
		i := slices.IndexFunc(amEnds, func(known struct {
			path string
			kind endpointKind
		}) bool {
			return known.path == end
		})
		if i < 0 || amEnds[i].kind.published() != s.endpoints[path].kind.published() {
			t.Errorf("%s is not among amEnds, or as another kind", end)
		}
		found++
	}
	if found < 10 {
		t.Errorf("there are only %d endpoints", found)
	}
	if !slices.IsSortedFunc(amEnds, func(a, b struct {
		path string
		kind endpointKind
	}) int {
		return len(b.path) - len(a.path)
	}) {
		t.Error("amEnds has a shorter end before a longer one")
	}
}

// inAnyCase is a pattern for a word in any case of ASCII letters.
func inAnyCase(word string) string {
	return regexp.MustCompile(`[a-z]`).ReplaceAllStringFunc(word, func(c string) string { return "[" + c + strings.ToUpper(c) + "]" })
}

// spellingsOf is a pattern for all that may stand between a base path and an endpoint for a realm.
func spellingsOf(realm string) *regexp.Regexp {
	root := "/realms/" + inAnyCase("root")
	if realm == "root" {
		return regexp.MustCompile("^" + root + "$")
	}
	flat := "/realms/" + strings.ReplaceAll(inAnyCase(realm), "/", "/realms/")
	spellings := []string{root + flat, flat}
	if realm != "realms" {
		spellings = append(spellings, "/"+inAnyCase(realm))
	}
	return regexp.MustCompile("^(" + strings.Join(spellings, "|") + ")$")
}

// A request reaches the realm that its path and its query spell, and no other: what the handler finds is
// what another reading of the same rules says.
func TestAMSpellingsReachNoOtherRealm(t *testing.T) {
	t.Parallel()
	names := []string{"retail", "retail/eu", "retail-eu", "eu", "token", "realms", "connect", "k", "off", "off/eu"}
	on := func(realm string) bool { return !strings.HasPrefix(realm, "off") }
	marked := func(names ...string) (all []string) {
		for _, name := range names {
			if on(name) {
				name += "+"
			}
			all = append(all, name)
		}
		return all
	}
	patterns := map[string]*regexp.Regexp{"root": spellingsOf("root")}
	for _, name := range names {
		patterns[name] = spellingsOf(name)
	}
	for _, c := range []struct {
		name, base string // base is the realm of the base path
		server     *Server
	}{
		{"root is served", "root", amServer(t, "", append(marked(names...), "root+")...)},
		{"root has no am_compat", "root", amServer(t, "", append(marked(names...), "root")...)},
		{"root is not served", "root", amServer(t, "", marked(names...)...)},
		{"a site that stands for a realm", "eu", amServer(t, "eu", append(marked(names...), "root+")...)},
	} {
		s := c.server
		has := func(realm string) bool { return s.am[realm] != nil && s.am[realm].am != nil }
		// spelt is the realm that a path spells, and the rest; ok is false if it is no endpoint's.
		spelt := func(path string) (realm, base, end string, exact, ok bool) {
			for _, base := range []string{"/oauth2", "/am"} {
				rest, below := strings.CutPrefix(path, base)
				for realm := range s.am {
					for _, known := range amEnds {
						for _, end := range []string{known.path, known.path + "/"} {
							full := "/realms/root"
							if realm != "root" {
								full += "/realms/" + strings.ReplaceAll(realm, "/", "/realms/")
							}
							if below && s.endpoints[base+full+end] != nil && (rest == full+end || realm == c.base && rest == end) {
								return realm, base, end, true, true
							}
						}
					}
				}
				for _, known := range amEnds {
					for _, end := range []string{known.path, known.path + "/"} {
						between, is := strings.CutSuffix(rest, end)
						if !below || !is {
							continue
						}
						if between == "" {
							return c.base, base, end, false, true
						}
						for name, pattern := range patterns {
							if pattern.MatchString(between) {
								return name, base, end, false, true
							}
						}
						return "", base, end, false, true
					}
				}
			}
			return "", "", "", false, false
		}
		endpointOf := func(realm, base, end string) *route {
			full := "/realms/root"
			if realm != "root" {
				full += "/realms/" + strings.ReplaceAll(realm, "/", "/realms/")
			}
			return s.endpoints[base+full+end]
		}
		rapid.Check(t, func(t *rapid.T) {
			part := rapid.SampledFrom([]string{"realms", "REALMS", "root", "Root", "retail", "Retail", "eu", "EU", "retail-eu", "token", "connect", "k", "K", "\u212a", "off", "bogus", "", ".", "%2F"})
			realm := rapid.SampledFrom(append(names, "root"))
			between := rapid.Custom(func(t *rapid.T) string {
				name := realm.Draw(t, "realm")
				switch rapid.IntRange(0, 6).Draw(t, "spelling") {
				case 0:
					return ""
				case 1:
					return "/realms/root/realms/" + strings.ReplaceAll(name, "/", "/realms/")
				case 2:
					return "/realms/" + strings.ReplaceAll(strings.ToUpper(name), "/", "/realms/")
				case 3:
					return "/" + strings.ToUpper(name[:1]) + name[1:]
				case 4:
					return "/realms/ROOT/realms/" + strings.ReplaceAll(name, "/", "/realms/")
				}
				var parts strings.Builder
				for _, p := range rapid.SliceOfN(part, 0, 5).Draw(t, "parts") {
					parts.WriteString("/" + p)
				}
				return parts.String()
			}).Draw(t, "between")
			ends := []string{"/x", "/access_token/x", "access_token", "/access_token//"}
			for _, end := range amEnds {
				ends = append(ends, end.path, end.path, end.path+"/", strings.ToUpper(end.path))
			}
			path := rapid.SampledFrom([]string{"/oauth2", "/oauth2", "/am", "/OAuth2", ""}).Draw(t, "base") + between + rapid.SampledFrom(ends).Draw(t, "end")
			asked := rapid.SampledFrom([]string{"", "", "", "/", "root", "/retail/eu", "Retail/EU", "retail", "/off", "off/eu", "bogus", "/retail//eu", "/eu/", "\u212a", "K"}).Draw(t, "asked")
			query := ""
			if asked != "" {
				query = "x=1&realm=" + url.QueryEscape(asked)
				if again := rapid.SampledFrom([]string{"", "", "", asked, "retail"}).Draw(t, "again"); again != "" {
					query += "&realm=" + url.QueryEscape(again)
					if again != asked {
						asked = "" // which is refused where it contradicts, but replaces nothing
					}
				}
			}

			var want *route
			wanted := ""
			named, base, end, exact, ok := spelt(path)
			switch target := strings.Trim(inLowerCase(asked), "/"); {
			case !ok || exact && !has(named): // it stays what it is
				want = s.endpoints[path]
			case asked == "":
				if exact || has(named) {
					want, wanted = endpointOf(named, base, end), named
				}
			case has(named), s.am[named] == nil && named == "root":
				if target == "" {
					target = "root"
				}
				if has(target) {
					want, wanted = endpointOf(target, base, end), target
				} else if s.am[target] != nil && s.am[named] != nil {
					want, wanted = endpointOf(named, base, end), named // and is refused
				}
			}
			r := &http.Request{Method: "GET", URL: &url.URL{Path: path, RawQuery: query}}
			got, missing := s.find(r)
			if got != want && (got == nil || want == nil || got.realm != want.realm || got.kind != want.kind) {
				t.Fatalf("%s, %s?%s: got %s, want %s of %q (spelt %q)", c.name, path, query, routeText(got), routeText(want), wanted, named)
			}
			if got != nil && missing != "" {
				t.Fatalf("%s?%s is found and missing", path, query)
			}
			// What it says otherwise, it is refused for.
			if got != nil && asked != "" && has(got.realm.name) && got.contradictedBy(query) != (strings.Trim(inLowerCase(asked), "/") != got.realm.name && !(got.realm.name == "root" && strings.Trim(asked, "/") == "")) {
				t.Fatalf("%s?%s: contradicted: %t", path, query, got.contradictedBy(query))
			}
			if got == nil && missing == "" && ok && s.am[named] == nil && !strings.Contains(end, "authorize") && named != "root" && named != c.base {
				t.Fatalf("%s?%s is for an endpoint of a realm that there isn't, and passes", path, query)
			}
		})
	}
}

func routeText(e *route) string {
	if e == nil {
		return "nothing"
	}
	return string(e.kind) + " of " + e.realm.name
}

// inLowerCase has the letters of ASCII in lower case.
func inLowerCase(text string) string {
	b := []byte(text)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c | 0x20
		}
	}
	return string(b)
}

// Requests for something else cost nothing more than a look at a map and at the base paths.
func TestAMSpellingsCostOthersNothing(t *testing.T) {
	s := amServer(t, "", "root+", "retail/eu+")
	for _, path := range []string{"/orders/7", "/oauth2/page", "/am/console/realms/retail", "/oauth2/access_token", "/oauth2/realms/root/realms/retail/realms/eu/introspect"} {
		r := &http.Request{Method: "POST", URL: &url.URL{Path: path}}
		if n := testing.AllocsPerRun(100, func() { s.find(r) }); n != 0 {
			t.Errorf("%s costs %v allocations", path, n)
		}
	}
}
