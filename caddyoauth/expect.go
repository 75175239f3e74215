package caddyoauth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/rewrite"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
)

// Expectation says how a request must end. It is checked when the configuration is started, before
// anything is opened. A configuration that breaks one is refused with the way that the request would
// go, and a reload then leaves the old configuration as it is. See `caddy oauth explain`. `caddy
// validate` does not start a configuration, and so doesn't check this.
type Expectation struct {
	// Where it stands in the Caddyfile, as in `Caddyfile:12`. The adapter writes it, for people: it
	// decides nothing. Default: none.
	At string `json:"at,omitempty"`

	// The client that sends the request, one of the realm's: with the best token that it can fetch,
	// which has all its scopes and its audience. `anonymous` sends no token.
	Client string `json:"client,omitempty"`

	// The method, or `*`: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, all methods that the
	// configuration names except CONNECT, and one that it doesn't.
	Method string `json:"method,omitempty"`

	// The URL, with scheme and host. A request to this machine comes from there, any other from
	// another machine.
	URL string `json:"url,omitempty"`

	// `pass`: a backend, a file server or an endpoint gets the request, or it is answered with a
	// status below 300. For a client it means that one of its tokens passes. Otherwise a status,
	// such as `401`, that the request is refused or answered with.
	Outcome string `json:"outcome,omitempty"`
}

// anonymous is the visitor without a token.
const anonymous = "anonymous"

// expectPass is the outcome of a request that passes.
const expectPass = "pass"

// anyOfMethods stands for all methods.
const anyOfMethods = "*"

// check checks what can be told from the line alone.
func (e *Expectation) check() error {
	if e.Client == "" || e.Method == "" || e.URL == "" || e.Outcome == "" {
		return errors.New("expect takes lines of a client or 'anonymous', a method or *, a URL, and 'pass' or a status, as in 'reports GET https://api.example.com/orders pass'")
	}
	if !isToken(e.Method) {
		return fmt.Errorf("expect: '%s' is not a method, or * for all", e.Method)
	}
	if _, err := targetOf(e.URL); err != nil {
		return fmt.Errorf("expect: %w", err)
	}
	if status, err := strconv.Atoi(e.Outcome); e.Outcome != expectPass && (err != nil || status < 200 || status > 599) {
		return fmt.Errorf("expect: '%s' is neither 'pass' nor a status such as 401", e.Outcome)
	}
	return nil
}

// checkExpect checks the expectations of a realm against its clients.
func (rc *Realm) checkExpect() error {
	for i := range rc.Expect {
		e := &rc.Expect[i]
		if err := e.check(); err != nil {
			return err
		}
		switch {
		case rc.Clients[anonymous] != nil:
			return fmt.Errorf("expect: '%s' stands for requests without a token, so no client of a realm with expect can have that ID", anonymous)
		case e.Client != anonymous && rc.Clients[e.Client] == nil:
			return fmt.Errorf("expect: there is no client '%s' in this realm", e.Client)
		}
	}
	return nil
}

// String returns the expectation as a Caddyfile has it.
func (e *Expectation) String() string {
	return strings.Join([]string{e.Client, e.Method, e.URL, e.Outcome}, " ")
}

// expectOption reads
//
//	expect {
//		<client>|anonymous <method>|* <url> pass|<status>
//	}
func expectOption(realm *Realm) conf.Option {
	return conf.Repeatable(conf.Func(func(d *caddyfile.Dispenser) error {
		if _, err := conf.Args(d, 0, 0); err != nil {
			return err
		}
		before := len(realm.Expect)
		for nesting := d.Nesting(); d.NextBlock(nesting); {
			e := Expectation{At: at(d)}
			line := append([]string{d.Val()}, d.RemainingArgs()...)
			if len(line) == 4 {
				e.Client, e.Method, e.URL, e.Outcome = line[0], line[1], line[2], line[3]
			}
			if err := e.check(); err != nil {
				return d.WrapErr(err)
			}
			realm.Expect = append(realm.Expect, e)
		}
		if len(realm.Expect) == before {
			return d.Err("expect takes a block of lines, as in 'reports GET https://api.example.com/orders pass'")
		}
		return nil
	}))
}

// mostBroken bounds how many broken expectations an error shows.
const mostBroken = 10

// checkExpectations returns an error if a request would end otherwise than the configuration says.
func (a *App) checkExpectations(ctx context.Context) error {
	var p *policy
	var broken []error
	for _, name := range sortedKeys(a.Realms) {
		realm := a.Realms[name]
		for i := range realm.Expect {
			if p == nil {
				var err error
				if p, err = policyOf(a.ctx); err != nil {
					return fmt.Errorf("expect: %w", err)
				}
			}
			if err := p.holds(ctx, name, &realm.Expect[i]); err != nil {
				broken = append(broken, err)
			}
			if len(broken) == mostBroken {
				return errors.Join(append(broken, errors.New("there may be more"))...)
			}
		}
	}
	return errors.Join(broken...)
}

// holds returns an error that shows why an expectation does not hold.
func (p *policy) holds(ctx context.Context, realm string, e *Expectation) error {
	methods := []string{e.Method}
	if e.Method == anyOfMethods {
		methods = p.allMethods()
	}
	for _, method := range methods {
		q := question{method: method, url: e.URL}
		if e.Client != anonymous {
			q.who = visitor{realm: realm, client: e.Client}
		}
		place := "expect"
		if e.At != "" {
			place += " at " + e.At
		}
		way, err := p.ask(ctx, q)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", place, e, err)
		}
		if way.Outcome.is(e.Outcome) {
			continue
		}
		var text strings.Builder
		fmt.Fprintf(&text, "%s is broken: %s\n%s %s\n", place, e, method, e.URL)
		way.print(&text)
		means, do := "", ""
		if known := explanationOf(way.Outcome.Cause); way.Outcome.Cause != "" && known != nil {
			means, do = known.Means, known.Do
		}
		way.Outcome.print(&text, means, do)
		return errors.New(printable(strings.TrimSuffix(text.String(), "\n")))
	}
	return nil
}

// is reports whether the outcome is the expected one: pass, or a status.
func (o outcome) is(expected string) bool {
	if expected == expectPass {
		return o.passes()
	}
	return o.Kind != outcomeUnknown && o.Status != 0 && strconv.Itoa(o.Status) == expected
}

// allMethods returns the methods that * stands for.
func (p *policy) allMethods() []string {
	methods := []string{
		http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions,
	}
	var inSets func(sets []caddyhttp.MatcherSet)
	inSets = func(sets []caddyhttp.MatcherSet) {
		for _, set := range sets {
			for _, matcher := range set {
				switch m := matcher.(type) {
				case *caddyhttp.MatchMethod:
					methods = append(methods, *m...)
				case *caddyhttp.MatchNot:
					inSets(m.MatcherSets)
				}
			}
		}
	}
	var inRoutes func(routes caddyhttp.RouteList)
	inRoutes = func(routes caddyhttp.RouteList) {
		for i := range routes {
			inSets(routes[i].MatcherSets)
			for _, handler := range routes[i].Handlers {
				switch h := handler.(type) {
				case *caddyhttp.Subroute:
					inRoutes(h.Routes)
				case *rewrite.Rewrite:
					methods = append(methods, h.Method)
				case *Protect:
					for _, on := range h.On {
						methods = append(methods, on.Methods...)
					}
				}
			}
		}
	}
	for _, name := range sortedKeys(p.http.Servers) {
		server := p.http.Servers[name]
		inRoutes(configuredRoutes(server))
		for _, route := range sortedKeys(server.NamedRoutes) {
			inRoutes(caddyhttp.RouteList{*server.NamedRoutes[route]})
		}
	}
	methods = slices.DeleteFunc(methods, func(m string) bool { return !isToken(m) || m == anyOfMethods || m == http.MethodConnect })
	slices.Sort(methods)
	methods = slices.Compact(methods)
	unknown := "UNKNOWN"
	for slices.Contains(methods, unknown) {
		unknown += "-METHOD"
	}
	return append(methods, unknown)
}
