package caddyoauth

import (
	"slices"
	"strings"
)

// The rows of 'caddy oauth routes' are for sets of hosts and of paths. Each set is what a pattern
// in the configuration says, or what two patterns have in common, without the smaller sets that
// stand above it. So no matcher for hosts or paths tells two requests of one row apart, and one
// request can stand for all of them.

// pattern is a set of hosts or of paths.
type pattern[P any] interface {
	comparable
	// within reports whether all members are members of other.
	within(other P) bool
	// and returns the patterns of what both have. They are none if that is nothing, and several if
	// no pattern alone can be written down for it.
	and(other P) []P
}

// patternSet holds patterns, and everything that two of them have in common.
type patternSet[P pattern[P]] struct {
	all []P
	max int // so many, at most
}

// add adds a pattern, and what it has in common with the others. It reports whether there was
// room; if not, the set stays as it is.
func (s *patternSet[P]) add(p P) bool {
	if slices.Contains(s.all, p) {
		return true
	}
	more := []P{p}
	for i := 0; i < len(more); i++ { // what is new may be several patterns, which may overlap
		for _, other := range slices.Concat(s.all, more[:i]) {
			for _, common := range more[i].and(other) {
				if !slices.Contains(s.all, common) && !slices.Contains(more, common) {
					more = append(more, common)
				}
			}
		}
		if len(s.all)+len(more) > s.max {
			return false
		}
	}
	s.all = append(s.all, more...)
	return true
}

// smallestFirst returns the patterns in their order, but each after all that are within it.
func smallestFirst[P pattern[P]](all []P) []P {
	var sorted []P
	done := make(map[P]bool, len(all))
	var place func(p P)
	place = func(p P) {
		if done[p] {
			return
		}
		done[p] = true
		for _, other := range all {
			if other != p && other.within(p) {
				place(other)
			}
		}
		sorted = append(sorted, p)
	}
	for _, p := range all {
		place(p)
	}
	return sorted
}

// pathPattern is a set of paths as Caddy's matcher path sees them: cleaned, in lower case, and
// beginning with a slash.
type pathPattern struct {
	// text is the path, if exact; otherwise what the paths begin with. It begins with a slash.
	text  string
	exact bool
	// suffix is what the paths end with, unless exact. It may overlap with text.
	suffix string
}

var everyPath = pathPattern{text: "/"}

// parsePath returns the set of paths that a pattern of the matcher path stands for. empty means
// that no path matches; not ok, that no pathPattern can say it.
func parsePath(text string) (p pathPattern, empty, ok bool) {
	if strings.ContainsAny(text, `{%?[\`) || strings.Contains(text, "//") {
		return p, false, false
	}
	text = strings.ToLower(text)
	begin, end, wildcard := strings.Cut(text, "*")
	switch {
	case !wildcard && strings.HasPrefix(text, "/"):
		return pathPattern{text: text, exact: true}, false, true
	case !wildcard:
		return p, true, true
	case begin != "" && end != "" || strings.Contains(end, "*"):
		return p, false, false
	case begin == "" || begin == "/":
		return pathPattern{text: "/", suffix: end}, false, true
	case !strings.HasPrefix(begin, "/"):
		return p, true, true
	}
	return pathPattern{text: begin}, false, true
}

func (p pathPattern) String() string {
	switch {
	case p.exact:
		return p.text
	case p == everyPath:
		return "*"
	case p.text == "/":
		return "*" + p.suffix
	}
	return p.text + "*" + p.suffix
}

// has reports whether a path that is cleaned and in lower case is in the set.
func (p pathPattern) has(path string) bool {
	if p.exact {
		return path == p.text
	}
	return strings.HasPrefix(path, p.text) && strings.HasSuffix(path, p.suffix)
}

func (p pathPattern) within(other pathPattern) bool {
	if p.exact || other.exact {
		return p.exact && other.has(p.text)
	}
	return strings.HasPrefix(p.text, other.text) && strings.HasSuffix(p.suffix, other.suffix)
}

func (p pathPattern) and(other pathPattern) []pathPattern {
	switch {
	case p.within(other):
		return []pathPattern{p}
	case other.within(p):
		return []pathPattern{other}
	case p.exact || other.exact:
		return nil
	}
	both := p
	switch {
	case strings.HasPrefix(other.text, p.text):
		both.text = other.text
	case !strings.HasPrefix(p.text, other.text):
		return nil
	}
	switch {
	case strings.HasSuffix(other.suffix, p.suffix):
		both.suffix = other.suffix
	case !strings.HasSuffix(p.suffix, other.suffix):
		return nil
	}
	common := []pathPattern{both}
	if both.text == "/" {
		return common // and is written without the slash
	}
	// Written down, /a*b doesn't look as if it were for /ab where a path begins with /ab and ends
	// with ab.
	for n := 1; n <= min(len(both.text), len(both.suffix)); n++ {
		if strings.HasSuffix(both.text, both.suffix[:n]) {
			common = append(common, pathPattern{text: both.text + both.suffix[n:], exact: true})
		}
	}
	return common
}

// looksLike reports whether the pattern looks as if it were for other, which is within it: as
// written, /a/*/ doesn't look as if it were for /a/.
func (p pathPattern) looksLike(other pathPattern) bool {
	return !other.exact || p.text == "/" || len(other.text) >= len(p.text)+len(p.suffix)
}

// example returns a path that is in the set, and in no smaller one: it has a part that no
// configuration has.
func (p pathPattern) example() string {
	if p.exact {
		return p.text
	}
	return p.text + "~" + madeUp + "~" + p.suffix
}

// madeUp stands for anything in examples of hosts and paths. No configuration has it, and in paths
// nothing begins or ends as what stands there.
const madeUp = "0q7x"

// hostPattern is a host, in lower case, or hosts with * for a label. The empty one is any host.
type hostPattern string

const everyHost = hostPattern("")

// parseHost returns the set of hosts that a pattern of the matcher host stands for. It is not ok
// if it has a placeholder.
func parseHost(text string) (h hostPattern, ok bool) {
	if text == "" || strings.Contains(text, "{") {
		return "", false
	}
	return hostPattern(strings.ToLower(text)), true
}

func (h hostPattern) String() string { return string(h) }

func (h hostPattern) within(other hostPattern) bool {
	if h == other || other == everyHost {
		return true
	}
	if h == everyHost || !strings.Contains(string(other), "*") {
		return false
	}
	labels, others := strings.Split(string(h), "."), strings.Split(string(other), ".")
	if len(labels) != len(others) {
		return false
	}
	for i := range labels {
		if others[i] != "*" && others[i] != labels[i] {
			return false
		}
	}
	return true
}

func (h hostPattern) and(other hostPattern) []hostPattern {
	switch {
	case h.within(other):
		return []hostPattern{h}
	case other.within(h):
		return []hostPattern{other}
	}
	labels, others := strings.Split(string(h), "."), strings.Split(string(other), ".")
	if len(labels) != len(others) {
		return nil
	}
	for i := range labels {
		switch {
		case labels[i] == "*":
			labels[i] = others[i]
		case others[i] != "*" && others[i] != labels[i]:
			return nil
		}
	}
	return []hostPattern{hostPattern(strings.Join(labels, "."))}
}

// example is like pathPattern.example.
func (h hostPattern) example() string {
	if h == everyHost {
		return madeUp + ".example"
	}
	return strings.ReplaceAll(string(h), "*", madeUp)
}
