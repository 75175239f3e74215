package caddyoauth

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/fileserver"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/intercept"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/rewrite"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
)

// This is how Caddy 2.11 runs a request: caddyhttp.Server.ServeHTTP, and wrapRoute in its
// routes.go. TestWalksAgreeWithRequests compares the two.

// walker goes through a configuration with a request.
type walker struct {
	p       *policy
	server  *caddyhttp.Server
	path    string   // of the server in the JSON
	watcher *watcher // nil unless the walk is for many requests
	Result  *walk

	// What our handlers have in place of their own; see walk_handlers.go.
	app     *App
	source  func(routeSource) routeSource
	unasked []string // what the handler that is being asked did not ask

	invoked int // how many named routes the walk is in, one inside of the other

	// What is known of the end.
	status     int  // that was written; 0 if none was
	vague      bool // something else may change the status
	refusal    int  // the first step that refused, plus 1
	last       int  // the step that ended the walk, plus 1
	forwarded  bool
	atEndpoint bool // what the status is depends on more than the request's head
	closed     bool // instead of an answer
	unknown    bool // the walk had to stop
	unsure     []string
}

// maxInvoked bounds how deep named routes may invoke each other.
const maxInvoked = 100

// step adds a step. What the handler does is filled in later.
func (w *walker) step(h caddyhttp.MiddlewareHandler, path string) int {
	var at string
	switch h := h.(type) {
	case *Protect:
		at = h.At
	case *Guard:
		at = h.At
	case *Server:
		at = h.At
	default:
		at = w.p.where(w.server, path, h)
	}
	w.Result.Steps = append(w.Result.Steps, walkStep{At: at, Path: path, Handler: nameOf(h), handler: h})
	return len(w.Result.Steps) - 1
}

// say adds to the text of a step.
func (w *walker) say(i int, text string) {
	if was := w.Result.Steps[i].Text; was != "" {
		text = was + "; " + text
	}
	w.Result.Steps[i].Text = text
}

// The ways in which a handler ends the walk.

func (w *walker) refuse(i int) {
	w.Result.Steps[i].Did = didRefuse
	if w.refusal == 0 {
		w.refusal = i + 1
	}
	w.last = i + 1
}

func (w *walker) answered(i, status int) {
	w.Result.Steps[i].Did = didAnswer
	w.status, w.last = status, i+1
	w.atEndpoint = w.atEndpoint || status == 0
}

func (w *walker) forward(i int) {
	w.Result.Steps[i].Did = didForward
	w.forwarded, w.last = true, i+1
	w.vague = w.vague || w.refusal > 0 // the backend says what the refusal looks like
}

// undecided is for a step about which nobody can tell anything.
func (w *walker) undecided(i int) {
	w.unknown = true
	w.ignore(i)
}

// ignore is for a step that may decide otherwise than the walk assumes.
func (w *walker) ignore(i int) {
	step := &w.Result.Steps[i]
	step.Did = didIgnore
	w.unsure = append(w.unsure, step.Handler+" at "+cmp.Or(step.At, step.Path))
}

// run sends the request through the server, and fills in the result.
func (w *walker) run(r *http.Request) (err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("a handler or matcher panicked: %v", panicked)
		}
	}()
	rw := &discarded{w: w, header: make(http.Header)}
	r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), rw, w.server)
	routes := w.routes(w.server.Routes, w.path+"/routes", caddyhttp.HandlerFunc(w.unanswered))
	if err := w.serve(rw, r, routes); err != nil {
		// As Caddy does, the error routes get the request with its headers as they are now.
		if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
			r.Method, r.RemoteAddr, r.RequestURI = original.Method, original.RemoteAddr, original.RequestURI
			r.URL = cloned(original.URL)
		}
		status := statusOf(err)
		if w.server.Errors != nil && len(w.server.Errors.Routes) > 0 {
			r = w.server.Errors.WithError(r, err)
			failed := w.errorRoutes()
			if err := failed.ServeHTTP(rw, r); err != nil && w.status == 0 {
				rw.WriteHeader(status)
			}
		} else if w.status == 0 {
			rw.WriteHeader(status)
		}
	}
	for i := range w.Result.Steps {
		w.Result.Steps[i].Aside = w.Result.Steps[i].aside()
	}
	w.Result.Outcome = w.outcome()
	w.Result.Forwarded = w.forwarded
	return nil
}

// errorRoutes are the error routes of the server, of which nobody has configured the first if it is
// ours.
func (w *walker) errorRoutes() caddyhttp.Handler {
	routes, end := w.server.Errors.Routes, caddyhttp.HandlerFunc(failedUnanswered)
	if len(routes[0].Handlers) > 0 {
		if early, ok := routes[0].Handlers[0].(*earlyErrorStrip); ok {
			return w.handler(early, "", w.routes(routes[1:], w.path+"/errors/routes", end))
		}
	}
	return w.routes(routes, w.path+"/errors/routes", end)
}

// serve does what Caddy does before any route.
func (w *walker) serve(rw http.ResponseWriter, r *http.Request, routes caddyhttp.Handler) error {
	if len(r.Method) > 32 {
		return caddyhttp.HandlerError{StatusCode: http.StatusMethodNotAllowed}
	}
	dropAliases(r.Header, w.server)
	return routes.ServeHTTP(rw, r)
}

// dropAliases drops headers whose names some backends take for others, as Caddy does.
func dropAliases(header http.Header, server *caddyhttp.Server) {
	expected := func(name string, list []string) bool {
		return slices.ContainsFunc(list, func(entry string) bool {
			prefix, isGlob := strings.CutSuffix(http.CanonicalHeaderKey(entry), "*")
			return name == prefix || isGlob && strings.HasPrefix(name, prefix)
		})
	}
	hyphens := strings.NewReplacer("_", "-", ".", "-")
	for name, values := range header {
		underscore, dot := strings.Contains(name, "_"), strings.Contains(name, ".")
		all := slices.Concat(server.ExpectedUnderscoreHeaders, server.ExpectedDotHeaders)
		var keep bool
		switch {
		case underscore && dot:
			keep = slices.ContainsFunc(all, func(entry string) bool { return http.CanonicalHeaderKey(entry) == name }) && len(values) == 1
		case underscore:
			keep = expected(name, server.ExpectedUnderscoreHeaders) && len(values) == 1
		case dot:
			keep = expected(name, server.ExpectedDotHeaders) && len(values) == 1
		default:
			for i, entry := range all {
				all[i] = hyphens.Replace(entry)
			}
			keep = !expected(name, all)
		}
		if !keep {
			delete(header, name)
		}
	}
}

// unanswered is the end of all routes: Caddy answers with an empty 200.
func (w *walker) unanswered(http.ResponseWriter, *http.Request) error { return nil }

// failedUnanswered is the end of all error routes.
func failedUnanswered(rw http.ResponseWriter, r *http.Request) error {
	err, _ := r.Context().Value(caddyhttp.ErrorCtxKey).(error)
	status := http.StatusInternalServerError
	if failure, ok := err.(caddyhttp.HandlerError); ok { //nolint:errorlint // Caddy doesn't unwrap either
		status = failure.StatusCode
	}
	rw.WriteHeader(status)
	return nil
}

func statusOf(err error) int {
	if failure, ok := errors.AsType[caddyhttp.HandlerError](err); ok && failure.StatusCode != 0 {
		return failure.StatusCode
	}
	return http.StatusInternalServerError
}

func cloned(u *url.URL) *url.URL {
	clone := *u
	return &clone
}

// outcome says how the walk ended.
func (w *walker) outcome() outcome {
	o := outcome{Kind: outcomeAnswer, Status: cmp.Or(w.status, http.StatusOK)}
	if w.last > 0 {
		step := w.Result.Steps[w.last-1]
		o.At = cmp.Or(step.At, step.Path)
	}
	switch {
	case w.refusal > 0:
		step := w.Result.Steps[w.refusal-1]
		o.Kind, o.Cause, o.At = outcomeRefuse, step.Cause, cmp.Or(step.At, step.Path)
	case w.forwarded:
		o.Kind = outcomePass
	case w.closed:
		o.Kind = outcomeClose
	case w.status == 0 && !w.atEndpoint:
		o.Kind = outcomeNobody
	}
	if o.Kind == outcomePass || o.Kind == outcomeClose || w.atEndpoint || w.vague {
		o.Status = 0
	}
	if len(w.unsure) == 0 {
		return o
	}
	unknown := outcome{Kind: outcomeUnknown, Unsure: w.unsure}
	if !w.unknown {
		unknown.AsIf = &o
	}
	return unknown
}

// routes is a list of routes in front of next.
func (w *walker) routes(list caddyhttp.RouteList, path string, next caddyhttp.Handler) caddyhttp.Handler {
	for i := range slices.Backward(list) {
		next = w.route(&list[i], path+"/"+strconv.Itoa(i), next)
	}
	return next
}

// groupsCtxKey is where Caddy keeps the groups of which a route has run. It is not exported.
const groupsCtxKey = caddy.CtxKey("route_group")

// route is a route in front of next.
func (w *walker) route(route *caddyhttp.Route, path string, next caddyhttp.Handler) caddyhttp.Handler {
	return caddyhttp.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) error {
		groups, _ := r.Context().Value(groupsCtxKey).(map[string]struct{})
		if _, done := groups[route.Group]; route.Group != "" && done {
			w.skip(route, path, "another route of its group was for the request")
			return next.ServeHTTP(rw, r)
		}
		matches, err := w.matches(route, r)
		if err != nil {
			i := w.skip(route, path, "its matcher failed: "+err.Error())
			w.Result.Steps[i].Did, w.last = didAnswer, i+1
			return err
		}
		if !matches {
			w.skip(route, path, "")
			return next.ServeHTTP(rw, r)
		}
		if route.Group != "" && groups != nil {
			groups[route.Group] = struct{}{}
		}
		handlers := next
		if route.Terminal {
			handlers = caddyhttp.HandlerFunc(w.unanswered)
			if _, failed := r.Context().Value(caddyhttp.ErrorCtxKey).(error); failed {
				handlers = caddyhttp.HandlerFunc(failedUnanswered)
			}
		}
		for i, h := range slices.Backward(route.Handlers) {
			handlers = w.handler(h, path+"/handle/"+strconv.Itoa(i), handlers)
		}
		return handlers.ServeHTTP(rw, r)
	})
}

// matches reports whether a route is for the request.
func (w *walker) matches(route *caddyhttp.Route, r *http.Request) (bool, error) {
	if w.watcher != nil {
		return w.watcher.matches(route.MatcherSets, r), nil
	}
	return route.MatcherSets.AnyMatchWithError(r)
}

// skip adds a step for a route that the request passes by.
func (w *walker) skip(route *caddyhttp.Route, path, text string) int {
	var names []string
	var at string
	for _, h := range route.Handlers {
		names = append(names, nameOf(h))
		if p, ok := h.(*Protect); ok {
			at = p.At
		}
	}
	if at == "" && len(route.Handlers) > 0 {
		at = w.p.where(w.server, path+"/handle/0", route.Handlers[0])
	}
	w.Result.Steps = append(w.Result.Steps, walkStep{At: at, Path: path, Handler: strings.Join(names, ", "), Did: didSkip, Text: text, route: route})
	return len(w.Result.Steps) - 1
}

// handler is a handler in front of next.
func (w *walker) handler(h caddyhttp.MiddlewareHandler, path string, next caddyhttp.Handler) caddyhttp.Handler {
	return caddyhttp.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) error {
		if w.watcher != nil {
			w.watcher.meets(h, r)
		}
		switch h := h.(type) {
		case *caddyhttp.Subroute:
			err := w.routes(h.Routes, path+"/routes", next).ServeHTTP(rw, r)
			if err != nil && h.Errors != nil {
				r = h.Errors.WithError(r, err)
				return w.routes(h.Errors.Routes, path+"/errors/routes", next).ServeHTTP(rw, r)
			}
			return err
		case *caddyhttp.Invoke:
			route, ok := w.server.NamedRoutes[h.Name]
			if !ok {
				return fmt.Errorf("invoke: route '%s' not found", h.Name)
			}
			// Where Caddy would go on until its stack is full, nobody has to.
			if w.invoked++; w.invoked > maxInvoked {
				return fmt.Errorf("invoke: route '%s' invokes itself", h.Name)
			}
			defer func() { w.invoked-- }()
			return w.route(route, w.path+"/named_routes/"+h.Name, next).ServeHTTP(rw, r)
		case *earlyStrip:
			return w.strips(rw, r, h, next)
		case *earlyErrorStrip:
			// What asks for a tunnel has been refused before any error.
			return (&earlyErrorStrip{app: w.app, refusals: quiet(func(access.Cause) {})}).ServeHTTP(rw, r, next)
		case *Protect, *Guard, *Server:
			return w.ours(rw, r, h, path, next)
		}
		return w.caddys(rw, r, h, path, next)
	})
}

// onlyReported is what a step says of a request that passes under report_only.
const onlyReported = "would be refused, and is only reported"

// ours asks a handler of ours. If it neither passes the request on nor says how it answers it, it
// has refused it.
func (w *walker) ours(rw http.ResponseWriter, r *http.Request, h caddyhttp.MiddlewareHandler, path string, next caddyhttp.Handler) (err error) {
	i := w.step(h, path)
	on := caddyhttp.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) error {
		step := &w.Result.Steps[i]
		step.Did = didPass
		if step.Cause != "" {
			w.say(i, onlyReported)
		}
		return next.ServeHTTP(rw, r)
	})
	switch h := h.(type) {
	case *Protect:
		err = w.protect(rw, r, h, i, on)
	case *Guard:
		err = w.guard(rw, r, h, i, on)
	case *Server:
		err = w.endpoints(rw, r, h, i, on)
	}
	if w.Result.Steps[i].Did == "" {
		w.refuse(i)
	}
	return err
}

// The handlers of Caddy's, by what they do with a request.
var (
	// changing only change the request, or wrap its response.
	changing = []string{"vars", "map", "headers", "request_body", "encode", "push"}
	// watching look only at the response, or at nothing that a rule could depend on.
	watching = []string{"templates", "tracing", "log_append", "timeouts", "copy_response_headers"}
)

// caddys is for handlers that are not ours.
func (w *walker) caddys(rw http.ResponseWriter, r *http.Request, h caddyhttp.MiddlewareHandler, path string, next caddyhttp.Handler) error {
	name := nameOf(h)
	i := w.step(h, path)
	w.Result.Steps[i].Did = didPass
	if !isCaddys("http.handlers." + name) {
		w.ignore(i)
		return next.ServeHTTP(rw, r)
	}
	switch h := h.(type) {
	case *rewrite.Rewrite:
		before := r.Method + " " + r.RequestURI
		h.Rewrite(r, r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer))
		if after := r.Method + " " + r.RequestURI; after != before {
			w.say(i, "the request is now "+loggedText(after))
		}
		return next.ServeHTTP(rw, r)
	case *intercept.Intercept:
		w.vague = w.vague || len(h.HandleResponse) > 0
		return next.ServeHTTP(rw, r)
	case *reverseproxy.Handler:
		if len(h.HandleResponse) == 0 {
			w.forward(i)
			return nil
		}
		// Such as forward_auth: what comes behind it gets the request if a backend says so.
		w.forward(i)
		w.ignore(i)
		return next.ServeHTTP(rw, r)
	case *fileserver.FileServer:
		w.forward(i)
		if h.PassThru {
			w.ignore(i)
			return next.ServeHTTP(rw, r)
		}
		return nil
	case *caddyhttp.StaticResponse:
		return w.respond(rw, r, *h, i, next)
	case caddyhttp.StaticResponse: // a redirect that Caddy has made itself
		return w.respond(rw, r, h, i, next)
	}
	switch {
	case name == "error":
		w.Result.Steps[i].Did, w.last = didAnswer, i+1
		return h.ServeHTTP(rw, r, next)
	case name == "metrics":
		w.answered(i, http.StatusOK)
		return nil
	case slices.Contains(changing, name):
		return h.ServeHTTP(rw, r, next)
	case slices.Contains(watching, name):
		return next.ServeHTTP(rw, r)
	}
	w.ignore(i)
	return next.ServeHTTP(rw, r)
}

func (w *walker) respond(rw http.ResponseWriter, r *http.Request, h caddyhttp.StaticResponse, i int, next caddyhttp.Handler) error {
	w.Result.Steps[i].Did, w.last = didAnswer, i+1
	if h.Abort {
		w.closed = true
		return nil
	}
	return h.ServeHTTP(rw, r, caddyhttp.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) error {
		w.Result.Steps[i].Did = didPass // early hints
		return next.ServeHTTP(rw, r)
	}))
}

// discarded is the response of a request that nobody has sent. It keeps the status.
type discarded struct {
	w      *walker
	header http.Header
}

func (d *discarded) Header() http.Header { return d.header }

func (d *discarded) WriteHeader(status int) {
	if d.w.status == 0 && status >= http.StatusOK {
		d.w.status = status
	}
}

func (d *discarded) Write(b []byte) (int, error) {
	d.WriteHeader(http.StatusOK)
	return len(b), nil
}
