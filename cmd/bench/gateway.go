package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// gateway is a Caddy that runs as a separate process. It ends with stop, or with the context that it
// was started with.
type gateway struct {
	addr    string        // of the site
	over    *tls.Config   // how to speak to it; nil without TLS
	admin   string        // Caddy's admin endpoint
	startup time.Duration // until its first answer with status 200
	store   string        // the bbolt file, if it has one

	pid  int
	pids []int // of another gateway, which we did not start
	// family are the processes that were there at the last look at CPU time, and lost says whether one
	// of them ever ended. Its CPU time is then missing.
	family []int
	lost   bool
	// foreign is true for another gateway. What its refusals say is never shown.
	foreign bool

	said   tail
	end    context.CancelFunc
	exited chan struct{} // closed when the process is gone
}

// setup is what differs between gateways.
type setup struct {
	store    string        // bbolt, memory or redis; empty for Caddy without the gateway
	lifetime time.Duration // of tokens
	noGC     bool          // whether garbage is left where it is

	protocol    protocol
	certificate bool     // whether, over TLS, clients show a certificate, to which their tokens are bound
	sources     []string // whose tokens the protected route accepts, if not only its own; see issuer
}

// protocol is how the load speaks to a gateway.
type protocol int

const (
	http1    protocol = iota // HTTP/1.1 without TLS
	http1TLS                 // HTTP/1.1 over TLS
	http2TLS                 // HTTP/2, over TLS
)

// host is the name of all sites.
const host = "localhost"

// credentials are a client's ID and secret, and the line for them in the Caddyfile.
type credentials struct{ id, secret, line string }

// The bodies of the static answers, as long as the gateway's own, and that of the backend.
const (
	staticToken         = `{"access_token":"coa_AQBrBpyui3c8vlii753p8xRiQ4lK6lxWe7P5yggr6OAG47xKcGkauXPC","scope":"read","token_type":"Bearer","expires_in":3600}`
	staticIntrospection = `{"active":true,"scope":"read","client_id":"generated","token_type":"Bearer","exp":1790000000,"iat":1790000000,"sub":"generated","jti":"LEJDYOwHHw0QylFhGJXxP8"}`
	backendBody         = "This is the backend."
)

// caddyfile returns the configuration of a gateway. All have the same clients: one with a generated
// secret, one whose secret has a slow hash, and more of the latter kind that have never
// authenticated.
func (b *bench) caddyfile(s setup, site, admin, data string) string {
	var oauth strings.Builder
	if s.store != "" {
		line := s.store
		switch s.store {
		case "bbolt":
			line += " " + quoted(filepath.Join(data, "tokens.db"))
		case "redis":
			line += " " + b.cfg.Redis + " {\n\t\t\tprefix " + b.redis.prefix + "\n\t\t}"
		}
		fmt.Fprintf(&oauth, "\toauth {\n\t\tstore %s\n\t\ttoken_lifetime %s\n", line, s.lifetime)
		bound := ""
		if s.certificate {
			bound = "\t\t\tcertificate_bound\n"
		}
		for _, c := range b.clients {
			fmt.Fprintf(&oauth, "\t\tclient %s {\n\t\t\t%s\n\t\t\tscopes read\n\t\t\tdefault_scopes read\n%s\t\t}\n", c.id, c.line, bound)
		}
		oauth.WriteString("\t}\n")
	}
	served := "\troute /plain/* {\n\t\treverse_proxy " + b.backend + "\n\t}\n" +
		"\trespond /static/token " + escaped(staticToken) + "\n" +
		"\trespond /static/introspection " + escaped(staticIntrospection) + "\n" +
		"\trespond /static/revocation \"{}\"\n"
	if s.store != "" {
		served = "\toauth_server /oauth2/*\n" +
			"\troute /api/* {\n\t\toauth_protect {\n" + b.issuer.caddyfile(s.sources) + "\t\t\tscopes read\n\t\t}\n\t\treverse_proxy " + b.backend + "\n\t}\n" + served
	}
	_, port, _ := net.SplitHostPort(site)
	servers := ""
	if s.protocol != http1 { // without HTTP/3, which would need a port of UDP as well
		servers = "\tservers {\n\t\tprotocols h1 h2\n\t}\n"
	}
	return "{\n\tadmin " + admin + "\n\tpersist_config off\n\tskip_install_trust\n\tauto_https off\n\tgrace_period 1s\n" +
		servers + oauth.String() + "}\n" +
		":" + port + " {\n\tbind 127.0.0.1\n" + b.certificates.caddyfile(s) + served + "}\n"
}

// quoted returns a path, and escaped a text, as words of a Caddyfile.
func quoted(path string) string  { return escaped(filepath.ToSlash(path)) }
func escaped(text string) string { return `"` + strings.ReplaceAll(text, `"`, `\"`) + `"` }

// start starts a gateway and waits until it issues a token, or, without a store, until it gives the
// static answer.
func (b *bench) start(ctx context.Context, s setup) (*gateway, error) {
	for attempt := 1; ; attempt++ {
		g, err := b.startOnce(ctx, s)
		// Another process may have taken one of the ports.
		if attempt == 3 || !errors.Is(err, errEnded) {
			return g, err
		}
	}
}

var errEnded = errors.New("the gateway exited unexpectedly")

func (b *bench) startOnce(ctx context.Context, s setup) (_ *gateway, err error) {
	if s.lifetime == 0 {
		s.lifetime = time.Hour
	}
	data, err := os.MkdirTemp(b.folder, "gateway")
	if err != nil {
		return nil, err
	}
	g := &gateway{exited: make(chan struct{})}
	b.gateways = append(b.gateways, g)
	if s.store == "bbolt" {
		g.store = filepath.Join(data, "tokens.db")
	}
	var releases [2]func()
	for i, addr := range []*string{&g.addr, &g.admin} {
		if *addr, releases[i], err = freeAddr(ctx); err != nil {
			return nil, err
		}
		defer func() {
			if g.pid == 0 { // it has not started
				releases[i]()
			}
		}()
	}
	g.over = b.certificates.config(s)
	config := filepath.Join(data, "Caddyfile")
	if err := os.WriteFile(config, []byte(b.caddyfile(s, g.addr, g.admin, data)), 0o600); err != nil {
		return nil, err
	}
	ctx, g.end = context.WithCancel(ctx)
	cmd := command(ctx, b.binary, "run", "--config", config)
	cmd.Env = s.environment(data)
	// A pipe, as most service managers use. Only the end of the output is kept: a file would grow,
	// and would be written to the same disk as the tokens.
	cmd.Stdout, cmd.Stderr = &g.said, &g.said
	begin := time.Now()
	if err := b.placement.start(cmd); err != nil {
		g.end()
		return nil, fmt.Errorf("starting the gateway: %w", err)
	}
	g.pid = cmd.Process.Pid
	go func() {
		cmd.Wait() //nolint:errcheck // if it ends when it should not, requests fail
		for _, release := range releases {
			release()
		}
		close(g.exited)
	}()
	first, check := g.get("/static/token", ""), isStatic
	if s.store != "" {
		first, check = g.post("/oauth2/access_token", "grant_type=client_credentials", b.generated), isToken
	}
	if err := g.await(ctx, first, check); err != nil {
		g.stop()
		return nil, err
	}
	g.startup = time.Since(begin)
	return g, nil
}

// await repeats a request until check accepts the answer.
func (g *gateway) await(ctx context.Context, request []byte, check func([]byte) error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var wrong error // the last one that says more than that the time is over
	for {
		err := func() error {
			l, err := g.dial(ctx, 1)
			if err != nil {
				return err
			}
			defer l.Close()
			_, err = l.run(ctx, atMost(1, repeat(request)), 0, check)
			return err
		}()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			wrong = err
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-g.exited:
			return errEnded
		case <-ctx.Done():
			return fmt.Errorf("the gateway does not answer as expected: %w", errors.Join(wrong, ctx.Err()))
		}
	}
}

// stop ends the process and waits until it is gone.
func (g *gateway) stop() {
	g.end()
	<-g.exited
}

// command makes a process that is interrupted when ctx ends, and killed ten seconds later.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // the binary built above, or go
	cmd.Cancel = func() error {
		if runtime.GOOS == "windows" { // which has no signals
			return cmd.Process.Kill()
		}
		return cmd.Process.Signal(os.Interrupt)
	}
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// freeAddr returns an address that nobody listens on, and keeps its port of UDP until release, which
// never fails. Another run of this program can't get the same address meanwhile. It must not: a Caddy shares
// its port with another one that listens there, and each of them gets some of the requests.
func freeAddr(ctx context.Context) (addr string, release func(), err error) {
	for range 100 {
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return "", nil, err
		}
		addr := listener.Addr().String()
		kept, err := new(net.ListenConfig).ListenPacket(ctx, "udp", addr)
		if err := listener.Close(); err != nil {
			return "", nil, err
		}
		if err == nil {
			return addr, func() { kept.Close() }, nil //nolint:errcheck // nothing was sent
		}
	}
	return "", nil, errors.New("no port is free for both TCP and UDP on 127.0.0.1")
}

// host is the name of the site, with its port.
func (g *gateway) host() string {
	_, port, _ := net.SplitHostPort(g.addr)
	return net.JoinHostPort(host, port)
}

// get and post return the bytes of a request.
func (g *gateway) get(path, token string) []byte {
	authorization := ""
	if token != "" {
		authorization = "Authorization: Bearer " + token + "\r\n"
	}
	return []byte("GET " + path + " HTTP/1.1\r\nHost: " + g.host() + "\r\nUser-Agent: bench\r\nAccept: */*\r\n" + authorization + "\r\n")
}

func (g *gateway) post(path, form string, as credentials) []byte {
	r := http.Request{Header: make(http.Header)}
	r.SetBasicAuth(as.id, as.secret)
	return []byte("POST " + path + " HTTP/1.1\r\nHost: " + g.host() + "\r\nUser-Agent: bench\r\nAccept: */*\r\n" +
		"Authorization: " + r.Header.Get("Authorization") + "\r\nContent-Type: application/x-www-form-urlencoded\r\n" +
		"Content-Length: " + strconv.Itoa(len(form)) + "\r\n\r\n" + form)
}

// cpu returns the CPU time that the gateway has used. ok is false on systems that don't report it.
func (g *gateway) cpu() (_ time.Duration, ok bool) {
	if !g.foreign {
		return cpuOf([]int{g.pid})
	}
	all := family(g.pids)
	for _, pid := range g.family {
		g.lost = g.lost || !slices.Contains(all, pid)
	}
	g.family = all
	return cpuOf(all)
}

// dial opens connections to the gateway. The caller must Close them.
func (g *gateway) dial(ctx context.Context, connections int) (*load, error) {
	l, err := dial(ctx, g.addr, g.over, connections)
	if err != nil {
		return nil, err
	}
	for _, c := range l.conns {
		c.foreign = g.foreign
	}
	return l, nil
}

// memory is how much memory the process uses, in bytes.
type memory struct {
	Resident int64 `json:"resident_bytes,omitempty"`
	Own      int64 `json:"own_bytes,omitempty"` // without mapped files, such as the binary and a bbolt file
	// The heap in use after a garbage collection.
	Live int64 `json:"live_heap_bytes"`
}

// memory reads how much memory the process uses, then has it collect garbage to find the heap in
// use. Without /proc only the latter is known.
func (g *gateway) memory(ctx context.Context) (m memory, err error) {
	if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.pid)); err == nil {
		for line := range strings.Lines(string(status)) {
			name, value, _ := strings.Cut(line, ":")
			value, _, _ = strings.Cut(strings.TrimSpace(value), " ")
			kib, _ := strconv.ParseInt(value, 10, 64)
			switch name {
			case "VmRSS":
				m.Resident = kib << 10
			case "RssAnon":
				m.Own = kib << 10
			}
		}
	}
	m.Live, err = g.number(ctx, "/debug/pprof/heap?gc=1&debug=1", "# HeapAlloc = ")
	return m, err
}

// cacheUse returns how many token checks the cache has answered, and how many it has not.
func (g *gateway) cacheUse(ctx context.Context) (hits, misses int64, err error) {
	if hits, err = g.number(ctx, "/metrics", "caddy_oauth_cache_hits_total "); err != nil {
		return 0, 0, err
	}
	misses, err = g.number(ctx, "/metrics", "caddy_oauth_cache_misses_total ")
	return hits, misses, err
}

// number is numbers for one.
func (g *gateway) number(ctx context.Context, path, prefix string) (int64, error) {
	n, err := g.numbers(ctx, path, prefix)
	if err != nil {
		return 0, err
	}
	return n[0], nil
}

// numbers fetches a path of the admin endpoint and returns, for each prefix, the number that follows it
// at the beginning of a line.
func (g *gateway) numbers(ctx context.Context, path string, prefixes ...string) ([]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.admin+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	numbers, found := make([]int64, len(prefixes)), 0
	for line := range strings.Lines(string(text)) {
		for i, prefix := range prefixes {
			if value, ok := strings.CutPrefix(line, prefix); ok {
				n, err := strconv.ParseFloat(strings.TrimSpace(value), 64) // large numbers have an exponent
				if err != nil {
					return nil, err
				}
				numbers[i] = int64(n)
				found++
			}
		}
	}
	if found != len(prefixes) {
		return nil, fmt.Errorf("%s lacks one of the lines %q", path, prefixes)
	}
	return numbers, nil
}

// tail keeps the end of what is written to it, without the log lines about single tokens, which
// would crowd out the rest.
type tail struct {
	mu   sync.Mutex
	text []byte
	line []byte // the last one, still incomplete
}

const tailSize = 8 << 10

var tokenEvents = [][]byte{[]byte(`"event":"token_issued"`), []byte(`"event":"token_revoked"`)}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for line := range bytes.Lines(p) {
		if len(t.line)+len(line) > tailSize {
			t.line = t.line[:0] // too long to keep
			line = line[max(0, len(line)-tailSize):]
		}
		t.line = append(t.line, line...)
		if !bytes.HasSuffix(line, []byte("\n")) {
			break
		}
		if !slices.ContainsFunc(tokenEvents, func(event []byte) bool { return bytes.Contains(t.line, event) }) {
			t.text = append(t.text, t.line...)
			t.text = t.text[max(0, len(t.text)-tailSize):]
		}
		t.line = t.line[:0]
	}
	return len(p), nil
}

// secretive matches tokens, generated secrets, hashes and JWTs. The gateway does not log them, but if it
// ever did, they should not appear here.
var secretive = regexp.MustCompile(`\bco[as]_[A-Za-z0-9_-]+|\$(argon2id|sha256|2b)\$[A-Za-z0-9$=,+/.]+|\beyJ[A-Za-z0-9_.-]+`)

// String returns what is kept, in whole lines.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := slices.Concat(t.text, t.line)
	if len(text) >= tailSize {
		text = text[len(text)-tailSize:]
		if _, whole, ok := bytes.Cut(text, []byte("\n")); ok {
			text = whole
		}
	}
	return secretive.ReplaceAllString(string(text), "REDACTED")
}
