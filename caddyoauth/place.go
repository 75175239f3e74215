package caddyoauth

import (
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// Caddy's JSON does not say from which line of a Caddyfile a handler came, and only our own handlers
// note it. For Caddy's, the line is found by comparing: of the directives of its site that make such
// a handler, the one whose words the handler and its matchers have. If that could be several, it is
// the line of the site.

// placer finds the lines of handlers.
type placer struct {
	blocks []placedBlock
	known  map[string]string // what has been found, by the path in the JSON
}

// placedBlock is a site or a named route.
type placedBlock struct {
	at         string
	keys       []string
	directives []placedDirective
	matchers   map[string][]string // the words of its named matchers
}

// placedDirective is a directive anywhere in a block.
type placedDirective struct {
	name, at string
	words    []string // its arguments, all that is in its block, and the arguments of what it is in
}

// madeBy are the directives that make a handler, where that is not the one with its name.
var madeBy = map[string][]string{
	"vars":            {"root", "vars"},
	"rewrite":         {"rewrite", "uri", "method", "try_files", "handle_path", "php_fastcgi"},
	"headers":         {"header", "request_header"},
	"static_response": {"respond", "redir", "abort"},
	"authentication":  {"basic_auth", "basicauth"},
	"reverse_proxy":   {"reverse_proxy", "forward_auth", "php_fastcgi"},
	"file_server":     {"file_server", "php_server"},
	"subroute":        {"handle", "handle_path", "route"},
}

// containers are the directives whose blocks have directives.
var containers = []string{"handle", "handle_path", "handle_errors", "route"}

// newPlacer reads a Caddyfile. What can't be read has no places.
func newPlacer(file string) *placer {
	p := &placer{known: make(map[string]string)}
	text, err := os.ReadFile(file)
	if err != nil {
		return p
	}
	blocks, err := caddyfile.Parse(file, text)
	if err != nil {
		return p
	}
	shorthands := httpcaddyfile.NewShorthandReplacer()
	for _, b := range blocks {
		if len(b.Keys) == 0 {
			continue // the global options
		}
		block := placedBlock{at: b.Keys[0].File + ":" + strconv.Itoa(b.Keys[0].Line), matchers: make(map[string][]string)}
		for _, key := range b.Keys {
			block.keys = append(block.keys, key.Text)
		}
		for _, segment := range b.Segments {
			shorthands.ApplyToSegment(&segment)
			block.add(segment, nil)
		}
		p.blocks = append(p.blocks, block)
	}
	return p
}

// add adds the directive of a segment, and those inside it. outer are the arguments of those that it
// is in.
func (b *placedBlock) add(segment caddyfile.Segment, outer []string) {
	if len(segment) == 0 {
		return
	}
	d := placedDirective{name: segment[0].Text, at: segment[0].File + ":" + strconv.Itoa(segment[0].Line), words: slices.Clone(outer)}
	inside := slices.Contains(containers, d.name)
	for _, token := range segment[1:] {
		if inside && token.Text == "{" {
			break
		}
		if token.Text != "{" && token.Text != "}" {
			d.words = append(d.words, token.Text)
		}
	}
	if strings.HasPrefix(d.name, "@") {
		b.matchers[d.name] = d.words
		return
	}
	b.directives = append(b.directives, d)
	if !inside {
		return
	}
	tokens := caddyfile.NewDispenser(segment)
	for tokens.Next() {
		for nesting := tokens.Nesting(); tokens.NextBlock(nesting); {
			b.add(tokens.NextSegment(), d.words)
		}
	}
}

// where returns the line of a handler of Caddy's, which has this path in the JSON. It is empty if not
// even the site is known.
func (p *placer) where(server *caddyhttp.Server, path string, h caddyhttp.MiddlewareHandler) string {
	place, done := p.known[path]
	if !done {
		place = p.find(server, path, h)
		p.known[path] = place
	}
	return place
}

func (p *placer) find(server *caddyhttp.Server, path string, h caddyhttp.MiddlewareHandler) string {
	name := nameOf(h)
	block := p.blockOf(server, path)
	if block == nil {
		return ""
	}
	if name == "" || !isCaddys("http.handlers."+name) {
		return block.at
	}
	var ignored []caddyconfig.Warning
	has := append(valuesIn(caddyconfig.JSON(h, &ignored)), matchedOn(server, path)...)
	makers := madeBy[name]
	if makers == nil {
		makers = []string{name}
	}
	best, place := 0, ""
	for _, d := range block.directives {
		if !slices.Contains(makers, d.name) {
			continue
		}
		score := 1
		for _, word := range d.words {
			words := []string{word}
			if matcher, ok := block.matchers[word]; ok {
				words = matcher
			}
			for _, word := range words {
				if slices.Contains(has, word) {
					score += 1000
				} else {
					score--
				}
			}
		}
		switch {
		case place == "" || score > best:
			best, place = score, d.at
		case score == best:
			place = block.at // it could be either, unless another is better
		}
	}
	if place == "" {
		return block.at
	}
	return place
}

// matchedOn returns the values in the matchers of all routes on a path.
func matchedOn(server *caddyhttp.Server, path string) (values []string) {
	routes, rest := topRoutes(server, path)
	for {
		number, after, _ := strings.Cut(rest, "/handle/")
		i, err := strconv.Atoi(number)
		if err != nil || i >= len(routes) {
			return values
		}
		for _, set := range routes[i].MatcherSets {
			for _, raw := range sourceOfMatchers(set) {
				values = append(values, valuesIn(raw)...)
			}
		}
		number, rest, _ = strings.Cut(after, "/routes/")
		n, err := strconv.Atoi(number)
		if err != nil || n >= len(routes[i].Handlers) {
			return values
		}
		subroute, ok := routes[i].Handlers[n].(*caddyhttp.Subroute)
		if !ok {
			return values
		}
		routes = subroute.Routes
	}
}

// topRoutes returns the list of routes of a server that a path begins with, and the rest of the path.
// In a named route there is none.
func topRoutes(server *caddyhttp.Server, path string) (_ caddyhttp.RouteList, rest string) {
	_, rest, _ = strings.Cut(strings.TrimPrefix(path, "apps/http/servers/"), "/")
	if rest, ok := strings.CutPrefix(rest, "routes/"); ok {
		return configuredRoutes(server), rest
	}
	rest, ok := strings.CutPrefix(rest, "errors/routes/")
	if !ok || server.Errors == nil {
		return nil, ""
	}
	routes := server.Errors.Routes
	if len(routes) > 0 && len(routes[0].Handlers) > 0 {
		if _, ours := routes[0].Handlers[0].(*earlyErrorStrip); ours {
			routes = routes[1:]
		}
	}
	return routes, rest
}

// blockOf returns the block that the route at a path came from, or nil.
func (p *placer) blockOf(server *caddyhttp.Server, path string) *placedBlock {
	if _, named, ok := strings.Cut(path, "/named_routes/"); ok {
		name, _, _ := strings.Cut(named, "/")
		i := slices.IndexFunc(p.blocks, func(b placedBlock) bool { return slices.Contains(b.keys, "&("+name+")") })
		if i < 0 {
			return nil
		}
		return &p.blocks[i]
	}
	routes, rest := topRoutes(server, path)
	number, _, _ := strings.Cut(rest, "/")
	i, err := strconv.Atoi(number)
	if err != nil || i >= len(routes) {
		return nil
	}
	hosts := hostsOf(routes[i].MatcherSets)
	var found *placedBlock
	for n := range p.blocks {
		isIts := func(key string) bool {
			address, err := httpcaddyfile.ParseAddress(key)
			if err != nil || strings.HasPrefix(key, "&(") {
				return false
			}
			if len(hosts) == 0 {
				return address.Host == "" || len(p.blocks) == 1
			}
			return slices.ContainsFunc(hosts, func(host string) bool { return strings.EqualFold(host, address.Host) })
		}
		if slices.ContainsFunc(p.blocks[n].keys, isIts) {
			if found != nil {
				return nil // the same host on another port
			}
			found = &p.blocks[n]
		}
	}
	return found
}

// valuesIn returns all strings and numbers in a JSON value, and the names of members.
func valuesIn(raw json.RawMessage) (values []string) {
	var value any
	decoder := json.NewDecoder(strings.NewReader(string(raw)))
	decoder.UseNumber()
	if decoder.Decode(&value) != nil {
		return nil
	}
	var add func(v any)
	add = func(v any) {
		switch v := v.(type) {
		case string:
			values = append(values, v)
		case json.Number:
			values = append(values, v.String())
		case []any:
			for _, inner := range v {
				add(inner)
			}
		case map[string]any:
			for _, name := range sortedKeys(v) {
				values = append(values, name)
				add(v[name])
			}
		}
	}
	add(value)
	return values
}
