package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// bench is one run.
type bench struct {
	cfg    config
	report *report
	bar    *progress

	folder  string // temporary; for the binary, and with a folder for each gateway
	binary  string
	backend string // host:port
	redis   *redis // nil without it

	generated, chosen credentials
	clients           []credentials // all, for the Caddyfile
	certificates      *certificates
	issuer            *issuer // of tokens from elsewhere

	gateways  []*gateway // those of the current chapter
	placement *placement // nil while processes may run on any processor
}

// firsts returns how many clients are needed that have never authenticated: one for each round, and
// one to warm up with.
func (c config) firsts() int { return c.Rounds + 1 }

// errLeft is joined to what run returns if it could not clean up.
var errLeft = errors.New("this is left behind")

// run measures everything. When it returns, nothing is left of what it started, or the error says what.
func run(ctx context.Context, cfg config, stderr io.Writer) (_ *report, err error) {
	b := &bench{cfg: cfg, report: newReport(cfg)}
	if b.folder, err = os.MkdirTemp("", "gateway-bench"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, removeAll(b.folder)) }()

	stores := []string{"bbolt", "memory"}
	if cfg.Redis != "" {
		stores = append(stores, "redis")
		if b.redis, err = openRedis(cfg.Redis, "bench-"+strings.ToLower(rand.Text())+":"); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, b.redis.close()) }()
	}

	type chapter struct {
		units   int // on the progress bar
		measure func(context.Context) error
	}
	chapters := []chapter{{1, b.prepare}}
	add := func(topic string, units int, measure func(context.Context) error) {
		if cfg.wants(topic) {
			chapters = append(chapters, chapter{units, measure})
		}
	}
	add("start", cfg.Starts, b.starts)
	add("cached", 2, b.cached)
	add("at-once", 1, b.atOnce)
	for _, store := range stores {
		protected := b.protectedRows(store)
		add("protected", len(protected)*cfg.Rounds, func(ctx context.Context) error { return b.inOneGateway(ctx, protected...) })
		add("tokens", 7*cfg.Rounds, func(ctx context.Context) error { return b.issue(ctx, store) })
		add("introspection", 2*cfg.Rounds, func(ctx context.Context) error { return b.ask(ctx, store) })
	}
	for _, r := range append(b.tlsRows(), b.sourceRows()...) {
		add(r.topic, cfg.Rounds, func(ctx context.Context) error { return b.inOneGateway(ctx, r) })
	}
	chapters = append(chapters, chapter{len(b.besideRows()) * cfg.Rounds, b.beside})
	// Growth comes last, since it needs to know how fast tokens are issued.
	add("growth", cfg.Points+cfg.Rounds+3, b.growth)
	if b.redis != nil {
		add("growth", cfg.Points, b.growthInRedis)
	}

	if cfg.Ways {
		chapters = []chapter{{1, b.prepare}, {len(ways) * cfg.Rounds, b.eachWay}}
	}

	units := 0
	for _, c := range chapters {
		units += c.units
	}
	b.bar = newProgress(stderr, units)
	defer b.bar.end()

	backend, err := b.serveBackend(ctx)
	if err != nil {
		return nil, err
	}
	defer backend.Close() //nolint:errcheck // nobody is connected any more
	if b.issuer, err = newIssuer(ctx); err != nil {
		return nil, err
	}
	defer b.issuer.server.Close() //nolint:errcheck // as above
	for _, c := range chapters {
		b.gateways = nil
		if err := c.measure(ctx); err != nil {
			b.bar.end()
			if ctx.Err() != nil {
				return nil, ctx.Err() // anything else that went wrong is a consequence
			}
			b.explain(stderr)
			return nil, fmt.Errorf("%s: %w", b.bar.what, err)
		}
	}
	return b.report, nil
}

// removeAll deletes a folder. It keeps trying for ten seconds: after an interrupt, a compiler that
// the go command has started may still be writing into it.
func removeAll(folder string) error {
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if err := os.RemoveAll(folder); err == nil {
			return nil
		} else if time.Since(begin) > 10*time.Second {
			return fmt.Errorf("%w: %w", errLeft, err)
		}
	}
}

// explain shows the last output of the gateways.
func (b *bench) explain(stderr io.Writer) {
	for _, g := range b.gateways {
		if said := g.said.String(); said != "" {
			fmt.Fprintln(stderr, "Last output of the gateway on", g.addr+":")
			fmt.Fprintln(stderr, said)
		}
	}
}

// prepare builds the binary, and makes the clients' secrets and all certificates.
func (b *bench) prepare(ctx context.Context) error {
	b.bar.say("building ./cmd/caddy")
	var err error
	if b.binary = b.cfg.Binary; b.binary == "" {
		if b.binary, err = build(ctx, b.folder); err != nil {
			return err
		}
	}
	lines, err := command(ctx, b.binary, "oauth", "generate-secret").Output()
	if err != nil {
		return fmt.Errorf("making a secret: %w", err)
	}
	secret, line, _ := strings.Cut(strings.TrimSpace(string(lines)), "\n")
	b.generated = credentials{id: "generated", secret: secret, line: line}

	if b.chosen, err = b.hashed(ctx, "chosen"); err != nil {
		return err
	}
	b.clients = []credentials{b.generated, b.chosen}
	for i := range b.cfg.firsts() {
		first, err := b.hashed(ctx, fmt.Sprintf("first%d", i))
		if err != nil {
			return err
		}
		b.clients = append(b.clients, first)
	}
	if b.certificates, err = makeCertificates(b.folder); err != nil {
		return err
	}
	b.report.Machine = machineOf(b.folder)
	b.bar.step()
	return nil
}

// hashed makes a client whose secret has a slow hash. No two share a hash, because what the gateway
// remembers of a success belongs to the hash.
func (b *bench) hashed(ctx context.Context, id string) (credentials, error) {
	secret := rand.Text()
	hash := command(ctx, b.binary, "oauth", "hash-secret")
	hash.Stdin = strings.NewReader(secret)
	line, err := hash.Output()
	if err != nil {
		return credentials{}, fmt.Errorf("hashing a secret: %w", err)
	}
	return credentials{id: id, secret: secret, line: strings.TrimSpace(string(line))}, nil
}

// build builds the binary as xcaddy does, without debug information.
func build(ctx context.Context, folder string) (string, error) {
	binary := filepath.Join(folder, "caddy")
	if runtime.GOOS == "windows" {
		binary += ".exe"
	}
	cmd := command(ctx, "go", "build", "-ldflags=-s -w", "-o", binary, "github.com/caddyoauth/gateway/cmd/caddy")
	cmd.Env = append(os.Environ(), "GOTMPDIR="+folder) // which the go command may leave behind when interrupted
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return binary, nil
}

// serveBackend serves the backend from this process, so that its CPU time does not count as the
// gateway's.
func (b *bench) serveBackend(ctx context.Context) (*http.Server, error) {
	return b.serveBackendAt(ctx, "127.0.0.1:0")
}

// serveBackendAt is serveBackend at an address of this machine.
func (b *bench) serveBackendAt(ctx context.Context, addr string) (*http.Server, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	b.backend = listener.Addr().String()
	server := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, backendBody) }), //nolint:errcheck // fails only if the gateway is gone
		ReadHeaderTimeout: patience,
	}
	go server.Serve(listener) //nolint:errcheck // returns after Close, with nothing to report
	return server, nil
}

// What the body of an answer must be; its status must be 200.

func isBackend(body []byte) error   { return begins(body, backendBody) }
func isToken(body []byte) error     { return begins(body, `{"access_token":"coa_`) }
func isActive(body []byte) error    { return begins(body, `{"active":true,`) }
func isEmptyJSON(body []byte) error { return begins(body, `{}`) }
func isStatic(body []byte) error    { return begins(body, `{`) }

// tokenIn returns the token in an answer.
func tokenIn(body []byte) (string, error) {
	token, _, _ := strings.Cut(strings.TrimPrefix(string(body), `{"access_token":"`), `"`)
	return token, isToken(body)
}

// begins checks how a body begins. Its error does not quote the body, which may hold a token.
func begins(body []byte, with string) error {
	if !bytes.HasPrefix(body, []byte(with)) {
		return fmt.Errorf("a body of %d bytes does not begin with %s", len(body), with)
	}
	return nil
}

// side is one of the two sides that take turns.
type side struct {
	gateway *gateway
	// next makes the requests of a round. The time that this takes is not measured.
	next  func(context.Context) (requests, error)
	check func(body []byte) error

	cpu, rate, p50, p99 []float64 // of each round
	size                int
}

func always(next requests) func(context.Context) (requests, error) {
	return func(context.Context) (requests, error) { return next, nil }
}

// round measures one side for one round.
func (b *bench) round(ctx context.Context, l *load, s *side) error {
	next, err := s.next(ctx)
	if err != nil {
		return err
	}
	before, ok := s.gateway.cpu()
	got, err := l.run(ctx, atMost(b.cfg.Most, next), b.cfg.Round, s.check)
	if err != nil {
		return err
	}
	after, _ := s.gateway.cpu()
	if s.gateway.lost {
		b.report.note("A process of the gateway ended during the measurement, and its CPU time is missing.")
	}
	if ok {
		s.cpu = append(s.cpu, micros(after-before)/float64(got.requests))
	}
	s.rate = append(s.rate, float64(got.requests)/got.took.Seconds())
	s.p50 = append(s.p50, millis(quantile(got.latencies, 0.5)))
	s.p99 = append(s.p99, millis(quantile(got.latencies, 0.99)))
	s.size = got.size
	return nil
}

// compare measures the two sides in turn, after one round to warm up.
func (b *bench) compare(ctx context.Context, c comparison, ours, baseline side) error {
	b.bar.say(strings.TrimSuffix(c.What+", "+c.Store, ", "))
	sides := []*side{&ours, &baseline}
	loads := make([]*load, len(sides))
	for i, s := range sides {
		l, err := s.gateway.dial(ctx, c.Connections)
		if err != nil {
			return err
		}
		defer l.Close()
		loads[i] = l
	}
	for round := range 1 + b.cfg.Rounds {
		for i, s := range sides {
			if err := b.round(ctx, loads[i], s); err != nil {
				return err
			}
		}
		if round == 0 {
			if apart := ours.size - baseline.size; apart < -8 || apart > 8 {
				return fmt.Errorf("cannot compare bodies of %d and %d bytes", ours.size, baseline.size)
			}
			for _, s := range sides {
				s.cpu, s.rate, s.p50, s.p99 = nil, nil, nil, nil
			}
			continue
		}
		b.bar.step()
	}
	c.Ours, c.Base = ours.figures(), baseline.figures()
	c.RateRatio = spreadOf(ratios(ours.rate, baseline.rate))
	if len(ours.cpu) > 0 {
		ratio := spreadOf(ratios(ours.cpu, baseline.cpu))
		c.CPURatio = &ratio
	}
	b.report.Comparisons = append(b.report.Comparisons, c)
	return nil
}

func (s *side) figures() figures {
	f := figures{Rate: spreadOf(s.rate), P50: spreadOf(s.p50), P99: spreadOf(s.p99)}
	if len(s.cpu) > 0 {
		cpu := spreadOf(s.cpu)
		f.CPU = &cpu
	}
	return f
}

// tokens fetches n tokens.
func (b *bench) tokens(ctx context.Context, g *gateway, n int) ([]string, error) {
	l, err := g.dial(ctx, min(n, 128))
	if err != nil {
		return nil, err
	}
	defer l.Close()
	var (
		mu  sync.Mutex
		all = make([]string, 0, n)
	)
	_, err = l.run(ctx, atMost(n, repeat(g.post("/oauth2/access_token", "grant_type=client_credentials", b.generated))), 0, func(body []byte) error {
		token, err := tokenIn(body)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, token)
		return nil
	})
	return all, err
}

// each makes a request for each token.
func each(tokens []string, request func(token string) []byte) [][]byte {
	all := make([][]byte, len(tokens))
	for i, t := range tokens {
		all[i] = request(t)
	}
	return all
}

// row is one line of the tables: a request, and what it is compared with.
type row struct {
	comparison
	topic string // see topics
	with  setup  // what the gateways need beside the store
	// sides makes ready what a comparison of the two gateways needs, which may be the same one.
	sides func(ctx context.Context, ours, plain *gateway) (_, _ side, err error)
	// cached says whether the cache must have answered all checks, or none. Without it nobody looks.
	cached *bool
}

// setup returns what the row needs of a gateway.
func (r row) setup() setup {
	s := r.with
	s.store = r.Store
	return s
}

// protectedRows are requests to a protected route. With Redis, it matters more how many share its
// connection.
func (b *bench) protectedRows(store string) []row {
	rows := []row{
		b.warmRow("protected", "protected request, one token", store, setup{}, b.some(1)),
		b.warmRow("protected", "protected request, 1,000 tokens", store, setup{}, b.some(1000)),
		b.coldRow(store),
	}
	if store == "redis" {
		for _, connections := range []int{1, 128} {
			for _, r := range []row{rows[0], rows[2]} {
				r.Connections = connections
				rows = append(rows, r)
			}
		}
	}
	return rows
}

// tlsRows are the same requests over TLS, to routes of the same Caddy that use it as well.
func (b *bench) tlsRows() []row {
	const store = "bbolt"
	over, http2 := setup{protocol: http1TLS}, setup{protocol: http2TLS}
	return []row{
		b.warmRow("tls", "protected request, one token, TLS", store, over, b.some(1)),
		b.warmRow("tls", "protected request, 1,000 tokens, TLS", store, over, b.some(1000)),
		b.warmRow("tls", "protected request, one token, HTTP/2", store, http2, b.some(1)),
		b.warmRow("tls", "protected request, 1,000 tokens, HTTP/2", store, http2, b.some(1000)),
		b.warmRow("tls", "protected request, one certificate-bound token, TLS", store, setup{protocol: http1TLS, certificate: true}, b.some(1)),
	}
}

// sourceRows are requests with tokens from elsewhere.
func (b *bench) sourceRows() []row {
	const store = "bbolt"
	return []row{
		b.warmRow("sources", "protected request, one JWT from elsewhere", store, setup{sources: []string{"jwt"}},
			func(context.Context, *gateway) ([]string, error) { return []string{b.issuer.jwt}, nil }),
		b.warmRow("sources", "protected request, one token introspected elsewhere", store, setup{sources: []string{"introspect"}},
			func(context.Context, *gateway) ([]string, error) { return []string{b.issuer.opaque}, nil }),
		b.warmRow("sources", "protected request, three sources, one token of each", store, setup{sources: []string{"local", "introspect", "jwt"}},
			func(ctx context.Context, g *gateway) ([]string, error) {
				own, err := b.tokens(ctx, g, 1)
				return append(own, b.issuer.opaque, b.issuer.jwt), err
			}),
	}
}

// some fetches n tokens.
func (b *bench) some(n int) func(context.Context, *gateway) ([]string, error) {
	return func(ctx context.Context, g *gateway) ([]string, error) { return b.tokens(ctx, g, n) }
}

const (
	protectedPath = "/api/orders/17"
	plainPath     = "/plain/orders/17"
)

// warmRow are requests with tokens that are in the cache.
func (b *bench) warmRow(topic, what, store string, with setup, tokens func(context.Context, *gateway) ([]string, error)) row {
	connections := 16
	if with.protocol == http2TLS {
		connections /= streams
	}
	cached := true
	return row{
		comparison: comparison{What: what, Store: store, Baseline: "plain `reverse_proxy`", Connections: connections},
		topic:      topic, with: with, cached: &cached,
		sides: func(ctx context.Context, g, plain *gateway) (ours, baseline side, err error) {
			known, err := tokens(ctx, g)
			if err != nil {
				return side{}, side{}, err
			}
			use := each(known, func(token string) []byte { return g.get(protectedPath, token) })
			pass := each(known, func(token string) []byte { return plain.get(plainPath, token) })
			ours = side{gateway: g, check: isBackend, next: always(cycle(use))}
			baseline = side{gateway: plain, check: isBackend, next: always(cycle(pass))}
			// Fill the cache. A gateway that has just started may still be fetching an issuer's keys.
			for _, first := range use[:min(len(use), 3)] {
				if err := g.await(ctx, first, isBackend); err != nil {
					return side{}, side{}, err
				}
			}
			return ours, baseline, b.all(ctx, g, once(use), isBackend)
		},
	}
}

// coldRow are requests with tokens that are not in the cache.
func (b *bench) coldRow(store string) row {
	cached := false
	return row{
		comparison: comparison{What: "protected request, a token not in the cache", Store: store, Baseline: "plain `reverse_proxy`", Connections: 16},
		topic:      "protected", cached: &cached,
		sides: func(ctx context.Context, g, plain *gateway) (ours, baseline side, err error) {
			known, err := b.tokens(ctx, g, 1)
			if err != nil {
				return side{}, side{}, err
			}
			ours = side{gateway: g, check: isBackend, next: func(ctx context.Context) (requests, error) {
				fresh, err := b.tokens(ctx, g, b.cfg.Most/2)
				return once(each(fresh, func(token string) []byte { return g.get(protectedPath, token) })), err
			}}
			baseline = side{gateway: plain, check: isBackend, next: always(repeat(plain.get(plainPath, known[0])))}
			return ours, baseline, nil
		},
	}
}

// tokenRow is the token endpoint.
func (b *bench) tokenRow(what string, as credentials, store string, connections int) row {
	const form = "grant_type=client_credentials"
	return row{
		comparison: comparison{What: what, Store: store, Baseline: "static answer", Connections: connections},
		topic:      "tokens",
		sides: func(_ context.Context, g, plain *gateway) (ours, baseline side, err error) {
			ours = side{gateway: g, check: isToken, next: always(repeat(g.post("/oauth2/access_token", form, as)))}
			baseline = side{gateway: plain, check: isStatic, next: always(repeat(plain.post("/static/token", form, as)))}
			return ours, baseline, nil
		},
	}
}

// introspectionRow is the introspection endpoint.
func (b *bench) introspectionRow(store string) row {
	return row{
		comparison: comparison{What: "introspection, 1,000 tokens", Store: store, Baseline: "static answer", Connections: 16},
		topic:      "introspection",
		sides: func(ctx context.Context, g, plain *gateway) (ours, baseline side, err error) {
			known, err := b.tokens(ctx, g, 1000)
			if err != nil {
				return side{}, side{}, err
			}
			ask := func(token string) []byte { return g.post("/oauth2/introspect", "token="+token, b.generated) }
			static := func(token string) []byte { return plain.post("/static/introspection", "token="+token, b.generated) }
			ours = side{gateway: g, check: isActive, next: always(cycle(each(known, ask)))}
			baseline = side{gateway: plain, check: isStatic, next: always(cycle(each(known, static)))}
			return ours, baseline, nil
		},
	}
}

// inTurn measures a row in one gateway: its two sides take turns.
func (b *bench) inTurn(ctx context.Context, g *gateway, r row) error {
	ours, baseline, err := r.sides(ctx, g, g)
	if err != nil {
		return err
	}
	share, err := g.cacheShare(ctx, r, func() error { return b.compare(ctx, r.comparison, ours, baseline) })
	if err != nil {
		return err
	}
	b.report.Comparisons[len(b.report.Comparisons)-1].CacheHits = share
	return nil
}

// cacheShare returns which share of token checks the cache answers during a measurement, and an error
// unless that is what the row is about.
func (g *gateway) cacheShare(ctx context.Context, r row, measure func() error) (*float64, error) {
	if r.cached == nil {
		return nil, measure()
	}
	hits, misses, err := g.cacheUse(ctx)
	if err != nil {
		return nil, err
	}
	if err := measure(); err != nil {
		return nil, err
	}
	hitsAfter, missesAfter, err := g.cacheUse(ctx)
	if err != nil {
		return nil, err
	}
	hits, misses = hitsAfter-hits, missesAfter-misses
	share := float64(hits) / float64(hits+misses)
	if *r.cached && share < 0.95 || !*r.cached && share > 0.01 {
		return nil, fmt.Errorf("the cache answered %d of %d checks, so this did not measure what it should", hits, hits+misses)
	}
	return &share, nil
}

// inOneGateway measures rows in turn, in a gateway that is as the first of them needs it.
func (b *bench) inOneGateway(ctx context.Context, rows ...row) error {
	b.bar.say(rows[0].What + ", " + rows[0].Store)
	g, err := b.start(ctx, rows[0].setup())
	if err != nil {
		return err
	}
	defer g.stop()
	for _, r := range rows {
		if err := b.inTurn(ctx, g, r); err != nil {
			return err
		}
	}
	return nil
}

// all sends all requests without measuring them.
func (b *bench) all(ctx context.Context, g *gateway, next requests, check func([]byte) error) error {
	l, err := g.dial(ctx, 16)
	if err != nil {
		return err
	}
	defer l.Close()
	_, err = l.run(ctx, next, 0, check)
	return err
}

// issue measures the token endpoint.
func (b *bench) issue(ctx context.Context, store string) error {
	b.bar.say("tokens, " + store)
	const form = "grant_type=client_credentials"
	for _, c := range []struct {
		what string
		as   credentials
	}{{"token, generated secret", b.generated}, {"token, Argon2id secret", b.chosen}} {
		for _, connections := range []int{1, 16, 128} {
			// Each gets a new gateway, since no client may have more than its share of the memory store.
			g, err := b.start(ctx, setup{store: store})
			if err != nil {
				return err
			}
			err = b.inTurn(ctx, g, b.tokenRow(c.what, c.as, store, connections))
			g.stop()
			if err != nil {
				return err
			}
		}
	}
	g, err := b.start(ctx, setup{store: store})
	if err != nil {
		return err
	}
	defer g.stop()
	// The gateway remembers that a secret matched a slow hash. This is the cost before it does.
	first := 1
	ours := side{gateway: g, check: isToken, next: func(context.Context) (requests, error) {
		first++
		return atMost(1, repeat(g.post("/oauth2/access_token", form, b.clients[first]))), nil
	}}
	baseline := side{gateway: g, check: isStatic, next: always(repeat(g.post("/static/token", form, b.chosen)))}
	return b.compare(ctx, comparison{What: "token, Argon2id secret, a client's first", Store: store, Baseline: "static answer", Connections: 1}, ours, baseline)
}

// ask measures introspection and revocation.
func (b *bench) ask(ctx context.Context, store string) error {
	b.bar.say("introspection and revocation, " + store)
	g, err := b.start(ctx, setup{store: store})
	if err != nil {
		return err
	}
	defer g.stop()
	const connections = 16
	known, err := b.tokens(ctx, g, 1000)
	if err != nil {
		return err
	}
	to := func(path string) func(string) []byte {
		return func(token string) []byte { return g.post(path, "token="+token, b.generated) }
	}
	if err := b.inTurn(ctx, g, b.introspectionRow(store)); err != nil {
		return err
	}
	var revoked []string
	if err := b.compare(ctx, comparison{What: "revocation", Store: store, Baseline: "static answer", Connections: connections},
		side{gateway: g, check: isEmptyJSON, next: func(ctx context.Context) (requests, error) {
			fresh, err := b.tokens(ctx, g, b.cfg.Most/2)
			revoked = fresh
			return once(each(fresh, to("/oauth2/token/revoke"))), err
		}},
		side{gateway: g, check: isEmptyJSON, next: always(cycle(each(known, to("/static/revocation"))))},
	); err != nil {
		return err
	}
	// Revoking an unknown token gets the same answer, so check one: the first that was sent.
	if err := b.all(ctx, g, once(each(revoked[:1], to("/oauth2/introspect"))), isActive); err == nil {
		return errors.New("a revoked token is still active")
	}
	return nil
}

// starts measures start-up time, and memory at rest.
func (b *bench) starts(ctx context.Context) error {
	b.bar.say("start-up and memory")
	var with, without struct{ startup, resident, live []float64 }
	for range b.cfg.Starts {
		for _, s := range []struct {
			setup setup
			to    *struct{ startup, resident, live []float64 }
		}{{setup{store: "bbolt"}, &with}, {setup{}, &without}} {
			g, err := b.start(ctx, s.setup)
			if err != nil {
				return err
			}
			if err = sleep(ctx, b.cfg.Rest); err != nil {
				g.stop()
				return err
			}
			m, err := g.memory(ctx)
			g.stop()
			if err != nil {
				return err
			}
			s.to.startup = append(s.to.startup, millis(g.startup))
			s.to.resident = append(s.to.resident, mib(m.Resident))
			s.to.live = append(s.to.live, mib(m.Live))
		}
		b.bar.step()
	}
	more := make([]float64, len(with.resident))
	for i := range more {
		more[i] = with.resident[i] - without.resident[i]
	}
	b.report.Start = start{
		Startup: spreadOf(with.startup), StartupBaseline: spreadOf(without.startup),
		Resident: spreadOf(with.resident), ResidentBaseline: spreadOf(without.resident), ResidentMore: spreadOf(more),
		Live: spreadOf(with.live), LiveBaseline: spreadOf(without.live),
	}
	return nil
}

// cached measures the memory of a cached token: by how much the heap in use grows while each token
// is used once, divided by the number of tokens that are in the cache afterwards. The store is a
// file, so nothing but the cache holds tokens in memory.
func (b *bench) cached(ctx context.Context) error {
	b.bar.say("memory of cached tokens")
	g, err := b.start(ctx, setup{store: "bbolt"})
	if err != nil {
		return err
	}
	defer g.stop()
	known, err := b.tokens(ctx, g, b.cfg.Cached)
	if err != nil {
		return err
	}
	b.bar.step()
	uses := each(known, func(token string) []byte { return g.get(protectedPath, token) })
	// Make connections and buffers part of the memory before.
	if err := b.all(ctx, g, atMost(b.cfg.Cached, repeat(g.get(plainPath, ""))), isBackend); err != nil {
		return err
	}
	before, err := g.memory(ctx)
	if err != nil {
		return err
	}
	if err := b.all(ctx, g, once(uses), isBackend); err != nil {
		return err
	}
	if err := sleep(ctx, b.cfg.Rest); err != nil {
		return err
	}
	after, err := g.memory(ctx)
	if err != nil {
		return err
	}
	hits, _, err := g.cacheUse(ctx)
	if err != nil {
		return err
	}
	if err := b.all(ctx, g, once(uses), isBackend); err != nil {
		return err
	}
	hitsAfter, _, err := g.cacheUse(ctx)
	if err != nil {
		return err
	}
	inCache := hitsAfter - hits
	if inCache < int64(b.cfg.Cached)*9/10 {
		return fmt.Errorf("only %d of %d tokens are in the cache", inCache, b.cfg.Cached)
	}
	b.report.Cached = cached{Tokens: inCache, BytesEach: float64(after.Live-before.Live) / float64(inCache)}
	b.bar.step()
	return nil
}

// atOnce fetches tokens and uses each one immediately, over the same connection. A refusal ends the
// run.
func (b *bench) atOnce(ctx context.Context) error {
	b.bar.say("tokens used at once")
	g, err := b.start(ctx, setup{store: "bbolt"})
	if err != nil {
		return err
	}
	defer g.stop()
	issue := g.post("/oauth2/access_token", "grant_type=client_credentials", b.generated)
	const connections = 16
	var used atomic.Int64
	all, ctx := errgroup.WithContext(ctx)
	for range connections {
		all.Go(func() error {
			l, err := g.dial(ctx, 1)
			if err != nil {
				return err
			}
			defer l.Close()
			token := "" // fetched and not used yet
			_, err = l.run(ctx, atMost(2*b.cfg.AtOnce/connections, func() []byte {
				if token == "" {
					return issue
				}
				return g.get(protectedPath, token)
			}), 0, func(body []byte) (err error) {
				if token == "" {
					token, err = tokenIn(body)
					return err
				}
				token = ""
				used.Add(1)
				return isBackend(body)
			})
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	b.report.AtOnce = used.Load()
	b.bar.step()
	return nil
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }
