package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// peer is another gateway on this machine, and how to use it.
type peer struct {
	Protected     string // URL of a protected route; empty for an authorization server alone
	Baseline      string // URL of a route to the same backend that is not protected; may be empty
	PIDs          []int  // its processes; their children count with them
	BaselinePIDs  []int  // those of the baseline, unless they are the same
	TokenEndpoint string
	Introspection string // URL; may be empty
	ClientID      string
	SecretFile    string
	ClientAuth    string // basic or post
	Scope         string
	TokenFile     string // with a token in each line, for a gateway that issues none
	Backend       string // address to serve a backend at; empty if there is one

	secret string
}

// peerConnections is how many connections put a peer under load, as many as our own gateway gets.
const peerConnections = 16

// mostTokens is how many tokens are used at most.
const mostTokens = 1000

// given says whether another gateway is to be measured.
func (p *peer) given() bool {
	return p.Protected+p.Baseline+p.TokenEndpoint+p.Introspection+p.TokenFile+p.Backend != "" || len(p.PIDs)+len(p.BaselinePIDs) > 0
}

// check makes sure that everything is there before anything is sent.
func (p *peer) check() error {
	if len(p.PIDs) == 0 {
		return errors.New("another gateway needs --pid: the process whose CPU time counts, or several with commas between them")
	}
	for _, pid := range slices.Concat(p.PIDs, p.BaselinePIDs) {
		if _, ok := cpuOf([]int{pid}); !ok {
			return fmt.Errorf("the CPU time of process %d can't be read; it must be on this machine, and the system Linux", pid)
		}
	}
	if len(p.BaselinePIDs) > 0 && p.Baseline == "" || p.Baseline != "" && p.Protected == "" {
		return errors.New("--baseline-pid needs --baseline, and --baseline needs --against")
	}
	for flag, address := range map[string]string{"--against": p.Protected, "--baseline": p.Baseline, "--token-endpoint": p.TokenEndpoint, "--introspection-endpoint": p.Introspection} {
		if address == "" {
			continue
		}
		if _, err := local(address); err != nil {
			return fmt.Errorf("%s: %w", flag, err)
		}
	}
	if p.ClientAuth != "basic" && p.ClientAuth != "post" {
		return errors.New("--client-auth is basic or post")
	}
	if (p.TokenEndpoint == "") == (p.TokenFile == "") {
		return errors.New("another gateway needs either --token-endpoint or --token-file")
	}
	if p.TokenEndpoint == "" && p.Introspection == "" {
		return nil
	}
	if p.ClientID == "" || p.SecretFile == "" {
		return errors.New("the endpoints need --client-id and --client-secret-file")
	}
	secret, err := os.ReadFile(p.SecretFile)
	if err != nil {
		return err
	}
	if p.secret = strings.TrimSpace(string(secret)); p.secret == "" {
		return fmt.Errorf("%s is empty", p.SecretFile)
	}
	return nil
}

// local parses the URL of a gateway on this machine. Loading others could hurt somebody, and their CPU
// time can't be seen.
func local(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "http" || u.User != nil || u.Host == "" {
		return nil, errors.New("want a URL with http:// and without credentials")
	}
	if ip := net.ParseIP(u.Hostname()); u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("%s is not a loopback address; only gateways on this machine can be measured", u.Hostname())
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), "80")
	}
	return u, nil
}

// request returns the bytes of a request to a URL that check has seen, and the gateway to send it to.
func (p *peer) request(address, token string, form url.Values, pids []int) ([]byte, *gateway) {
	u, err := local(address)
	if err != nil {
		panic(err) // check has seen it
	}
	g := &gateway{addr: u.Host, foreign: true, pids: pids}
	head := " " + u.RequestURI() + " HTTP/1.1\r\nHost: " + u.Host + "\r\nUser-Agent: bench\r\nAccept: */*\r\n"
	if form == nil {
		if token != "" {
			head += "Authorization: Bearer " + token + "\r\n"
		}
		return []byte("GET" + head + "\r\n"), g
	}
	if p.ClientAuth == "post" {
		form.Set("client_id", p.ClientID)
		form.Set("client_secret", p.secret)
	} else {
		r := http.Request{Header: make(http.Header)}
		r.SetBasicAuth(url.QueryEscape(p.ClientID), url.QueryEscape(p.secret)) // RFC 6749 section 2.3.1
		head += "Authorization: " + r.Header.Get("Authorization") + "\r\n"
	}
	body := form.Encode()
	return []byte("POST" + head + "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body), g
}

func (p *peer) tokenForm() url.Values {
	form := url.Values{"grant_type": {"client_credentials"}}
	if p.Scope != "" {
		form.Set("scope", p.Scope)
	}
	return form
}

// issued returns the token in an answer of any authorization server. Errors don't quote it.
func issued(body []byte) (string, error) {
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Token == "" {
		return "", errors.New("an answer of the token endpoint holds no access_token")
	}
	return answer.Token, sendable(answer.Token)
}

// sendable makes sure that a token can't be more than a part of a header.
func sendable(token string) error {
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("a token has characters that no header can hold")
	}
	return nil
}

func isIssued(body []byte) error {
	_, err := issued(body)
	return err
}

func isIntrospected(body []byte) error {
	var answer struct {
		Active bool `json:"active"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || !answer.Active {
		return errors.New("an answer of the introspection endpoint does not say that the token is active")
	}
	return nil
}

// tokens fetches tokens, or reads them. None is there twice.
func (p *peer) tokens(ctx context.Context, b *bench) ([]string, error) {
	var all []string
	if p.TokenFile != "" {
		text, err := os.ReadFile(p.TokenFile)
		if err != nil {
			return nil, err
		}
		all = strings.Fields(string(text))
		all = all[:min(len(all), mostTokens)]
		for _, t := range all {
			if err := sendable(t); err != nil {
				return nil, err
			}
		}
	} else {
		request, g := p.request(p.TokenEndpoint, "", p.tokenForm(), p.PIDs)
		// One alone comes first: if the secret is wrong, the gateway should not see a thousand attempts.
		l, err := g.dial(ctx, 1)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		if _, err := l.run(ctx, atMost(1, repeat(request)), 0, isIssued); err != nil {
			return nil, fmt.Errorf("fetching a token: %w", err)
		}
		var mu sync.Mutex
		if err := b.all(ctx, g, atMost(min(mostTokens, b.cfg.Most), repeat(request)), func(body []byte) error {
			token, err := issued(body)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, token)
			return err
		}); err != nil {
			return nil, fmt.Errorf("fetching tokens: %w", err)
		}
	}
	slices.Sort(all)
	if all = slices.Compact(all); len(all) == 0 {
		return nil, errors.New("there is no token")
	}
	return all, nil
}

// refuses makes sure that the route is protected: otherwise the figures would be those of an open door.
func (p *peer) refuses(ctx context.Context, token string) error {
	middle := len(token) / 2
	other := byte('A')
	if token[middle] == other {
		other = 'B'
	}
	for what, t := range map[string]string{"without a token": "", "with a token that nobody issued": token[:middle] + string(other) + token[middle+1:]} {
		err := p.once(ctx, t)
		var refused statusError
		if err == nil {
			return fmt.Errorf("%s answers a request %s as if it were not protected", p.Protected, what)
		} else if !errors.As(err, &refused) || refused.code < 400 || refused.code > 403 {
			return fmt.Errorf("a request %s should be refused: %w", what, err)
		}
	}
	return nil
}

// once sends one request to the protected route, over a connection of its own.
func (p *peer) once(ctx context.Context, token string) error {
	request, g := p.request(p.Protected, token, nil, nil)
	l, err := g.dial(ctx, 1)
	if err != nil {
		return err
	}
	defer l.Close()
	_, err = l.run(ctx, atMost(1, repeat(request)), 0, func([]byte) error { return nil })
	return err
}

// runAgainst measures a peer.
func runAgainst(ctx context.Context, cfg config, p peer, stderr io.Writer) (_ *report, err error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	b := &bench{cfg: cfg, report: newReport(cfg), bar: newProgress(stderr, 4*cfg.Rounds)}
	defer b.bar.end()
	b.report.Notes, b.report.Peer = nil, true
	if p.Backend != "" {
		backend, err := b.serveBackendAt(ctx, p.Backend)
		if err != nil {
			return nil, err
		}
		defer backend.Close() //nolint:errcheck // nobody waits for its answers any more
	}
	if b.folder, err = os.MkdirTemp("", "gateway-bench"); err != nil {
		return nil, err
	}
	b.report.Machine = machineOf(b.folder)
	if err := removeAll(b.folder); err != nil {
		return nil, err
	}
	tokens, err := p.tokens(ctx, b)
	if err != nil {
		return nil, err
	}
	if p.Protected != "" {
		if err := p.refuses(ctx, tokens[0]); err != nil {
			return nil, err
		}
		if err := b.peerProtected(ctx, p, tokens); err != nil {
			return nil, err
		}
	}
	// Tokens come last: a store that is bounded may drop those that we ask about.
	if p.Introspection != "" {
		var all [][]byte
		var g *gateway
		for _, t := range tokens {
			var request []byte
			request, g = p.request(p.Introspection, "", url.Values{"token": {t}}, p.PIDs)
			all = append(all, request)
		}
		if err := b.alone(ctx, "introspection, "+thousands(len(tokens))+" tokens", side{gateway: g, check: isIntrospected, next: always(cycle(all))}); err != nil {
			return nil, err
		}
	}
	if p.TokenEndpoint != "" {
		request, g := p.request(p.TokenEndpoint, "", p.tokenForm(), p.PIDs)
		if err := b.alone(ctx, "token", side{gateway: g, check: isIssued, next: always(repeat(request))}); err != nil {
			return nil, err
		}
	}
	return b.report, nil
}

// peerProtected measures requests with one token and with all.
func (b *bench) peerProtected(ctx context.Context, p peer, tokens []string) error {
	// Every answer must be the one that the backend gives; the first says which.
	var first []byte
	var mu sync.Mutex
	same := func(body []byte) error {
		mu.Lock()
		defer mu.Unlock()
		if first == nil {
			first = bytes.Clone(body)
		}
		if !bytes.Equal(body, first) {
			return fmt.Errorf("an answer of %d bytes is not the same as the first, of %d", len(body), len(first))
		}
		return nil
	}
	groups := [][]string{tokens[:1]}
	if len(tokens) > 1 {
		groups = append(groups, tokens)
	}
	for _, group := range groups {
		what := "protected request, one token"
		if len(group) > 1 {
			what = "protected request, " + thousands(len(group)) + " tokens"
		}
		use := func(address string, pids []int) side {
			var all [][]byte
			var g *gateway
			for _, t := range group {
				var request []byte
				request, g = p.request(address, t, nil, pids)
				all = append(all, request)
			}
			return side{gateway: g, check: same, next: always(cycle(all))}
		}
		ours := use(p.Protected, p.PIDs)
		// Each token is used once before it counts.
		warm, err := ours.next(ctx)
		if err != nil {
			return err
		}
		if err := b.all(ctx, ours.gateway, atMost(len(group), warm), same); err != nil {
			return err
		}
		if p.Baseline == "" {
			if err := b.alone(ctx, what, ours); err != nil {
				return err
			}
			continue
		}
		pids := p.PIDs
		if len(p.BaselinePIDs) > 0 {
			pids = p.BaselinePIDs
		}
		base := use(p.Baseline, pids)
		if err := b.compare(ctx, comparison{What: what, Connections: peerConnections}, ours, base); err != nil {
			return err
		}
		if len(p.BaselinePIDs) == 0 {
			continue
		}
		together, err := b.peerTogether(ctx, ours, base)
		if err != nil {
			return err
		}
		b.report.Comparisons[len(b.report.Comparisons)-1].Together = &together
	}
	return nil
}

// peerTogether returns the CPU ratio of two processes that are under load at the same time.
func (b *bench) peerTogether(ctx context.Context, ours, base side) (spread, error) {
	sides := []side{ours, base}
	var loads []*load
	for _, s := range sides {
		l, err := s.gateway.dial(ctx, peerConnections)
		if err != nil {
			return spread{}, err
		}
		defer l.Close()
		loads = append(loads, l)
	}
	var all []float64
	for range b.cfg.Rounds {
		costs, err := b.underLoad(ctx, loads, sides)
		if err != nil {
			return spread{}, err
		}
		if costs[1].cpu <= 0 {
			return spread{}, errors.New("the baseline's process used no CPU time; is --baseline-pid right?")
		}
		all = append(all, costs[0].cpu/costs[1].cpu)
	}
	return spreadOf(all), nil
}

// alone measures a side that is compared with nothing, after one round to warm up.
func (b *bench) alone(ctx context.Context, what string, s side) error {
	b.bar.say(what)
	l, err := s.gateway.dial(ctx, peerConnections)
	if err != nil {
		return err
	}
	defer l.Close()
	for round := range 1 + b.cfg.Rounds {
		if err := b.round(ctx, l, &s); err != nil {
			return err
		}
		if round == 0 {
			s.cpu, s.rate, s.p50, s.p99 = nil, nil, nil, nil
			continue
		}
		b.bar.step()
	}
	b.report.Comparisons = append(b.report.Comparisons, comparison{What: what, Connections: peerConnections, Ours: s.figures()})
	return nil
}

// peerTable returns the figures of a peer.
func (r *report) peerTable() string {
	var t strings.Builder
	m := r.Machine
	fmt.Fprintf(&t, "%s, %s; processors for the load: %d. CPU time is that of the processes named and their children.\n", m.CPU, m.System, m.MaxProcs)
	fmt.Fprintf(&t, "%d rounds of up to %v or %s requests for each side, %d connections: medians, ratios with the smallest and the largest.\n",
		r.Config.Rounds, r.Config.Round, thousands(r.Config.Most), peerConnections)
	for _, n := range r.Notes {
		fmt.Fprintf(&t, "%s\n", n)
	}
	t.WriteString("\n| what | CPU µs / baseline | CPU ratio, in turn | at the same time | requests/s / baseline | p50 ms / baseline | p99 ms / baseline |\n|---|--:|--:|--:|--:|--:|--:|\n")
	for _, c := range r.Comparisons {
		both := func(of func(figures) float64) string {
			if c.CPURatio == nil {
				return number(of(c.Ours))
			}
			return pair(of(c.Ours), of(c.Base))
		}
		ratio, together := "–", "–"
		if c.CPURatio != nil {
			ratio = withSpread(*c.CPURatio)
		}
		if c.Together != nil {
			together = withSpread(*c.Together)
		}
		fmt.Fprintf(&t, "| %s | %s | %s | %s | %s | %s | %s |\n", c.What, both(func(f figures) float64 { return f.CPU.Median }), ratio, together,
			both(func(f figures) float64 { return f.Rate.Median }), both(func(f figures) float64 { return f.P50.Median }), both(func(f figures) float64 { return f.P99.Median }))
	}
	return t.String()
}

// cpuOf returns the CPU time that processes have used. The schedstat of a process counts only its first
// thread, so it adds up all threads. ok is false if there is none, or the system does not report it.
func cpuOf(pids []int) (sum time.Duration, ok bool) {
	for _, pid := range pids {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, t := range threads {
			text, err := os.ReadFile(t)
			if err != nil {
				continue // the thread has ended, which is rare
			}
			first, _, _ := strings.Cut(string(text), " ")
			ns, err := strconv.ParseInt(first, 10, 64)
			if err != nil {
				return 0, false
			}
			sum += time.Duration(ns)
		}
	}
	return sum, sum > 0
}

// family returns the processes and their descendants, in the order of their numbers.
func family(pids []int) []int {
	parents := make(map[int]int)
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		// The name, in parentheses, may hold anything: "42 (a) b) S 1 …".
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if len(fields) > 1 {
			parents[pid], _ = strconv.Atoi(fields[1])
		}
	}
	all := slices.Clone(pids)
	for pid := range parents {
		// A process can't be its own ancestor; the bound is for a table that changes while it is read.
		for up, steps := parents[pid], 0; up > 1 && steps < 100; up, steps = parents[up], steps+1 {
			if slices.Contains(pids, up) {
				all = append(all, pid)
				break
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
