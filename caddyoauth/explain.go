package caddyoauth

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/introspect"
)

// What 'caddy oauth explain' and POST /oauth/explain answer: the walk of one request, and who else
// would pass. Neither the token nor any header of the question is in it.

// explainRequest is the body of POST /oauth/explain.
type explainRequest struct {
	Method string `json:"method"`
	URL    string `json:"url"`
	// Client stands for the best token that it can fetch; Realm is needed if several have it. Token
	// is a token instead. With neither, nobody asks.
	Client string `json:"client,omitempty"`
	Realm  string `json:"realm,omitempty"`
	Token  string `json:"token,omitempty"`
	// From is the address that the request comes from; see question.
	From   string              `json:"from,omitempty"`
	Header map[string][]string `json:"header,omitempty"`
}

// question checks the request.
func (e *explainRequest) question() (question, error) {
	q := question{method: e.Method, url: e.URL, who: visitor{realm: e.Realm, client: e.Client}, header: make(http.Header)}
	switch {
	case e.Client != "" && e.Token != "":
		return q, errors.New("give a client or a token, not both")
	case e.Realm != "" && e.Client == "":
		return q, errors.New("a realm goes with a client")
	}
	if e.Token != "" {
		token := introspect.NewToken(e.Token)
		q.who = visitor{token: &token}
	}
	if e.From != "" {
		var err error
		if q.from, err = netip.ParseAddr(e.From); err != nil {
			return q, fmt.Errorf("from '%s' is not an IP address", loggedText(e.From))
		}
	}
	for name, values := range e.Header {
		if !isToken(name) {
			return q, fmt.Errorf("'%s' is not the name of a header", loggedText(name))
		}
		for _, value := range values {
			if strings.ContainsAny(value, "\r\n\x00") {
				return q, fmt.Errorf("the header %s can't have several lines", loggedText(name))
			}
			q.header.Add(name, value)
		}
	}
	return q, nil
}

// explanation is the answer.
type explanation struct {
	Method string `json:"method"`
	URL    string `json:"url"`
	Client string `json:"client,omitempty"` // that was asked about, as realm/client; a nested realm has ~ in the place of /
	walk
	// Means and Do are what is known of the cause of a refusal.
	Means string `json:"means,omitempty"`
	Do    string `json:"do,omitempty"`
	// Passing are clients whose best token gets the request through, as realm/client, named likewise: the
	// first of PassingCount among the first ClientCount clients.
	Passing      []string `json:"passing"`
	PassingCount int      `json:"passing_count"`
	ClientCount  int      `json:"client_count"`
}

const (
	// mostPassing bounds how many clients are named.
	mostPassing = 20
	// mostAsked bounds how many clients are tried.
	mostAsked = 2000
)

// explain answers a question in full.
func (p *policy) explain(ctx context.Context, q question) (*explanation, error) {
	way, err := p.ask(ctx, q)
	if err != nil {
		return nil, err
	}
	e := &explanation{Method: q.method, URL: q.url, walk: *way, Passing: []string{}}
	if q.who.client != "" {
		realm, _, err := p.clientOf(q.who)
		if err != nil {
			return nil, err
		}
		e.Client = clientName(realm, q.who.client)
	}
	if known := explanationOf(way.Outcome.Cause); way.Outcome.Cause != "" && known != nil {
		e.Means, e.Do = known.Means, known.Do
	}
	q.header = q.header.Clone()
	q.header.Del("Authorization")
	passing, asked, err := p.whoPasses(ctx, q, mostAsked)
	if err != nil {
		return nil, err
	}
	e.PassingCount, e.ClientCount = len(passing), asked
	e.Passing = append(e.Passing, passing[:min(len(passing), mostPassing)]...)
	return e, nil
}

// clientName names a client with its realm. A nested realm has ~ in the place of /, as in the paths of the
// admin endpoint: IDs have slashes, too, and eu/x of retail is another client than x of retail/eu.
func clientName(realm, id string) string { return adminRealm(realm) + "/" + id }

// explanationOf returns what the table says of a cause, or nil.
func explanationOf(cause access.Cause) *access.Explanation {
	i := slices.IndexFunc(access.Explanations, func(e access.Explanation) bool { return e.Cause == cause })
	if i < 0 {
		return nil
	}
	return &access.Explanations[i]
}

// print writes what people read.
func (e *explanation) print(w io.Writer) error {
	var text strings.Builder
	fmt.Fprintf(&text, "%s %s\n", e.Method, e.URL)
	switch {
	case e.Client != "":
		fmt.Fprintf(&text, "by client %s\n", e.Client)
	case e.Token == "":
		text.WriteString("by anybody\n")
	}
	e.walk.print(&text)
	e.Outcome.print(&text, e.Means, e.Do)
	switch {
	case e.ClientCount == 0:
	case e.PassingCount == 0:
		certainly := ""
		if e.Outcome.Kind == outcomeUnknown {
			certainly = "certainly "
		}
		fmt.Fprintf(&text, "None of %s would %spass.\n", counted(e.ClientCount, "client"), certainly)
	default:
		fmt.Fprintf(&text, "Of %s, %d would pass: %s", counted(e.ClientCount, "client"), e.PassingCount, strings.Join(e.Passing, ", "))
		if len(e.Passing) < e.PassingCount {
			text.WriteString(", …")
		}
		text.WriteString("\n")
	}
	_, err := io.WriteString(w, printable(text.String()))
	return err
}

func counted(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return strconv.Itoa(n) + " " + what
}

// printable returns text without what a terminal obeys.
func printable(text string) string {
	return strings.Map(func(c rune) rune {
		if c == '\n' || strconv.IsPrint(c) {
			return c
		}
		return utf8.RuneError
	}, text)
}

// print writes the token, and the steps that play a part: those of our handlers, those that change
// the request or end its way, and routes passed by that have one of ours.
func (w *walk) print(text *strings.Builder) {
	if w.Token != "" {
		fmt.Fprintf(text, "token: %s\n", w.Token)
	}
	if len(w.Asked) > 0 {
		fmt.Fprintf(text, "asked: %s\n", strings.Join(w.Asked, ", "))
	}
	fmt.Fprintf(text, "\nserver %s\n", w.Server)
	for i := range w.Steps {
		step := &w.Steps[i]
		if step.Aside {
			continue
		}
		fmt.Fprintf(text, "  %s: %s %s", cmp.Or(step.At, step.Path), step.Handler, step.Did)
		if step.Cause != "" {
			fmt.Fprintf(text, ": %s", step.Cause)
		}
		text.WriteByte('\n')
		if step.Text != "" {
			fmt.Fprintf(text, "      %s\n", step.Text)
		}
		if step.Cause != "" && len(step.Want) > 0 {
			fmt.Fprintf(text, "      wanted: %s; has: %s\n", strings.Join(step.Want, " "), cmp.Or(strings.Join(step.Has, " "), "nothing"))
		}
	}
	text.WriteByte('\n')
}

// aside reports whether a step plays no part in what happens to the request.
func (s *walkStep) aside() bool {
	if s.handler == nil {
		return s.Did == didSkip && !hasOurs(caddyhttp.RouteList{*s.route})
	}
	return !isOurs(s.handler) && s.Did == didPass && s.Text == ""
}

// hasOurs reports whether routes have an oauth handler, at any depth.
func hasOurs(routes caddyhttp.RouteList) bool {
	return slices.ContainsFunc(routes, func(r caddyhttp.Route) bool {
		return slices.ContainsFunc(r.Handlers, func(h caddyhttp.MiddlewareHandler) bool {
			if subroute, ok := h.(*caddyhttp.Subroute); ok {
				return hasOurs(subroute.Routes)
			}
			return isOurs(h)
		})
	})
}

func isOurs(h caddyhttp.MiddlewareHandler) bool {
	switch h.(type) {
	case *Protect, *Guard, *Server, *earlyStrip:
		return true
	}
	return false
}

// print writes how a walk ends.
func (o outcome) print(text *strings.Builder, means, do string) {
	switch o.Kind {
	case outcomeUnknown:
		text.WriteString(o.String() + "\n")
		if o.AsIf != nil {
			text.WriteString("If it gets past that unchanged: " + o.AsIf.String() + "\n")
		}
	default:
		text.WriteString(o.String() + "\n")
	}
	for _, sentence := range []string{means, do} {
		if sentence != "" {
			indent(text, sentence)
		}
	}
}

// String says how a walk ends, in a sentence.
func (o outcome) String() string {
	var s string
	switch o.Kind {
	case outcomePass:
		return "It passes: " + o.At + " gets it."
	case outcomeUnknown:
		return "Nobody can tell what becomes of it at " + strings.Join(o.Unsure, ", ") + "."
	case outcomeClose:
		return "It is not answered: " + o.At + " closes the connection."
	case outcomeNobody:
		return "No handler answers it, so Caddy sends an empty 200."
	case outcomeRefuse:
		s = "It is refused"
	case outcomeAnswer:
		s = "It is answered"
	}
	if o.Status != 0 {
		s += " with " + strconv.Itoa(o.Status)
	}
	if o.At != "" {
		s += " at " + o.At
	}
	if o.Cause != "" {
		s += ": " + string(o.Cause)
	}
	return s + "."
}

// serveExplain answers POST /oauth/explain with the explanation for a request that nobody sends.
func serveExplain(w http.ResponseWriter, r *http.Request) error {
	var asked explainRequest
	if _, err := readAdminPost(w, r, &asked, "method, url, and perhaps client, realm, token, from and header"); err != nil {
		return err
	}
	q, err := asked.question()
	if err != nil {
		return adminError(http.StatusBadRequest, "%w", err)
	}
	p, err := policyOf(caddy.ActiveContext())
	if err != nil {
		return adminError(http.StatusNotFound, "%w", err)
	}
	if err := p.admit(q.who); err != nil {
		return err
	}
	e, err := p.explain(r.Context(), q)
	if err != nil {
		return adminError(http.StatusBadRequest, "%w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(e)
}
