package caddyoauth_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/keys"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/store"
)

// The benchmarks in this file start the gateway as a process of its own and measure what that
// process costs. Each iteration is one round, in which both sides of a ratio are measured in turn.
// They report the median of the rounds' ratios, with the least and the greatest. Run them with
//
//	go test -run '^$' -bench Process -benchtime 15x ./caddyoauth

// BenchmarkProcessProtected compares the CPU time of a protected request with that of the same
// request to a plain reverse_proxy of the same Caddy and the same backend.
func BenchmarkProcessProtected(b *testing.B) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }))
	b.Cleanup(backend.Close)
	p := startProcess(b, "store memory\n"+testClients, "oauth_server /oauth2/*\nroute /api/* {\noauth_protect {\nscopes read\n}\nreverse_proxy BACKEND\n}\nroute /plain/* {\nreverse_proxy BACKEND\n}", backend.Listener.Addr().String())
	token := p.token(b)
	compare(b, "cpu",
		func() float64 {
			return p.cpuPerRequest(b, func() *http.Request { return p.get("/api/orders/17", token) })
		},
		func() float64 {
			return p.cpuPerRequest(b, func() *http.Request { return p.get("/plain/orders/17", token) })
		})
}

// issuing are the kinds of tokens whose cost is measured, by their names in benchmarks.
var issuing = []struct {
	name, options string
	length        int    // of a token, about
	algorithm     string // of the key that signs it
}{
	{"opaque", "", 64, ""},
	{"sealed", "token_format sealed\n", 96, ""},
	{"jwt-ES256", jwtOptions, 552, keys.ES256},
	{"jwt-EdDSA", jwtOptions + "signing {\nalgorithm EdDSA\n}\n", 552, keys.EdDSA},
}

// BenchmarkProcessIssue compares the CPU time of issuing a token for a generated secret with that of
// a static answer of the same Caddy to the same POST, with a body as long. For a JWT it also reports
// the ratio less the bare signature, which is measured in the same round.
func BenchmarkProcessIssue(b *testing.B) {
	stores := []string{"bbolt", "memory"}
	if _, err := exec.LookPath("redis-server"); err == nil {
		stores = append(stores, "redis")
	}
	for _, kind := range issuing {
		b.Run(kind.name, func(b *testing.B) {
			sign := bareSignature(b, kind.algorithm)
			for _, name := range stores {
				b.Run(name, func(b *testing.B) {
					// Durable writes share their sync: the more there are at once, the less each costs.
					for _, connections := range []int{1, 16, 128} {
						b.Run(strconv.Itoa(connections), func(b *testing.B) {
							benchmarkIssue(b, name, kind.options, kind.length, connections, sign)
						})
					}
				})
			}
		})
	}
}

// benchmarkIssue is one line of BenchmarkProcessIssue. sign is nil for tokens that nobody signs.
func benchmarkIssue(b *testing.B, where, options string, length, connections int, sign func()) {
	body := `{"access_token":"` + strings.Repeat("x", length) + `","scope":"read","token_type":"Bearer","expires_in":3600}`
	start := func() *process {
		line := "store " + where
		switch where {
		case "bbolt":
			line += " " + filepath.Join(b.TempDir(), "tokens.db")
		case "redis":
			line += " " + redistest.Start(b).Addr
		}
		if options != "" {
			line += "\nencryption_key {file." + encryptionKeyFile(b) + "}"
		}
		p := startProcess(b, line+"\n"+options+testClients, "oauth_server\nrespond /static "+strconv.Quote(body), "")
		p.connections = connections
		return p
	}
	p, issued := start(), 0
	if token := p.token(b); len(token) < length-16 || len(token) > length+16 {
		b.Fatalf("cannot compare a token of %d characters with one of %d", len(token), length)
	}
	issue := func() *http.Request { return p.post("/oauth2/access_token") }
	signature := 0.0 // of one token, in this round
	var less []float64
	ours := func() float64 {
		if sign != nil {
			signature = bareCost(b, sign)
		}
		// The memory store has room for a quarter of a million records of one client. Before it is
		// full, another gateway takes over, and is warmed up.
		if issued += requestsPerRound; options == "" && issued > 240_000 {
			p.stop()
			p, issued = start(), 2*requestsPerRound
			p.load(b, issue)
		}
		return p.cpuPerRequest(b, issue)
	}
	floor := func() float64 { return p.cpuPerRequest(b, func() *http.Request { return p.post("/static") }) }
	compare(b, "cpu", func() float64 {
		cost := ours()
		less = append(less, cost-signature)
		return cost
	}, func() float64 {
		cost := floor()
		less[len(less)-1] /= cost
		return cost
	})
	if sign != nil {
		less = less[1:] // the first one warmed up
		slices.Sort(less)
		b.ReportMetric(less[len(less)/2], "less-signature-ratio")
		b.ReportMetric(signature*1e6, "signature-µs")
	}
}

// bareSignature returns a function that makes one signature, with nothing around it, or nil for no
// algorithm.
func bareSignature(b *testing.B, algorithm string) func() {
	b.Helper()
	var key crypto.Signer
	var err error
	message := make([]byte, 400) // about as much as a token says
	digest := sha256.Sum256(message)
	text, hash := digest[:], crypto.SHA256
	switch algorithm {
	case "":
		return nil
	case keys.ES256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case keys.EdDSA:
		_, key, err = ed25519.GenerateKey(rand.Reader)
		text, hash = message, 0
	}
	if err != nil {
		b.Fatal(err)
	}
	return func() {
		if _, err := key.Sign(rand.Reader, text, hash); err != nil {
			b.Error(err)
		}
	}
}

// bareCost returns the CPU time, in seconds, that this process spends on one call.
func bareCost(b *testing.B, call func()) float64 {
	b.Helper()
	const calls = 2000
	self := &process{pid: os.Getpid()}
	before := self.cpu(b)
	for range calls {
		call()
	}
	return (self.cpu(b) - before) / calls
}

// BenchmarkProcessWarm compares the CPU time of a protected request with a warm token of each kind
// with that of the same request with an opaque one.
func BenchmarkProcessWarm(b *testing.B) {
	for _, kind := range issuing[1:] {
		b.Run(kind.name, func(b *testing.B) {
			p, tokens := startKinds(b, kind.options)
			use := func(token string) func() float64 {
				return func() float64 {
					return p.cpuPerRequest(b, func() *http.Request { return p.get("/api/orders/17", token) })
				}
			}
			compare(b, "cpu", use(tokens["writer"]), use(tokens["reader"]))
		})
	}
}

// BenchmarkProcessFirstUse compares the CPU time of the first request with a token of each kind with
// that of one with a warm token of the same kind.
func BenchmarkProcessFirstUse(b *testing.B) {
	for _, kind := range issuing {
		b.Run(kind.name, func(b *testing.B) {
			options := kind.options
			if options == "" {
				options = "token_format opaque\n"
			}
			p, tokens := startKinds(b, options)
			compare(b, "cpu",
				func() float64 {
					fresh := p.tokens(b, "writer", requestsPerRound)
					var next atomic.Int64
					return p.cpuPerRequest(b, func() *http.Request { return p.get("/api/orders/17", fresh[next.Add(1)-1]) })
				},
				func() float64 {
					return p.cpuPerRequest(b, func() *http.Request { return p.get("/api/orders/17", tokens["writer"]) })
				})
		})
	}
}

// startKinds starts a gateway where the reader's tokens are opaque and the writer's are by these
// options, in front of a backend. It returns a token of each that has been used.
func startKinds(b *testing.B, options string) (*process, map[string]string) {
	b.Helper()
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }))
	b.Cleanup(backend.Close)
	clients := "client reader {\nsecret_hash " + testHash + "\ntoken_format opaque\nscopes read\ndefault_scopes read\n}\n" +
		"client writer {\nsecret_hash " + testHash + "\nscopes read\ndefault_scopes read\n}\n"
	p := startProcess(b, "store bbolt "+filepath.Join(b.TempDir(), "tokens.db")+"\n"+options+clients,
		"oauth_server /oauth2/*\nroute /api/* {\noauth_protect {\nscopes read\n}\nreverse_proxy BACKEND\n}", backend.Listener.Addr().String())
	tokens := make(map[string]string)
	for _, client := range []string{"reader", "writer"} {
		tokens[client] = p.tokens(b, client, 1)[0]
		p.load(b, func() *http.Request { return p.get("/api/orders/17", tokens[client]) })
	}
	return p, tokens
}

// BenchmarkProcessLive issues a million sealed tokens that live for an hour, and reports by how much
// the file, and the memory that is in use after a garbage collection, have grown meanwhile.
func BenchmarkProcessLive(b *testing.B) {
	const live = 1_000_000
	if testing.Short() {
		b.Skip("issuing a million tokens takes half a minute")
	}
	for b.Loop() {
		file, admin := filepath.Join(b.TempDir(), "tokens.db"), porttest.Address(b)
		p := startProcessWith(b, "admin "+admin, "store bbolt "+file+"\ntoken_format sealed\n"+testClients, "oauth_server", "")
		p.connections = 128
		issue := func() *http.Request { return p.post("/oauth2/access_token") }
		for range 4 {
			p.load(b, issue)
		}
		size, resident, heap := fileSize(b, file), p.resident(b), p.inUse(b, admin, "HeapAlloc")
		for issued := 0; issued < live; issued += requestsPerRound {
			p.load(b, issue)
		}
		b.ReportMetric(float64(fileSize(b, file)-size), "file-B-more")
		b.ReportMetric(float64(p.resident(b)-resident)/(1<<20), "resident-MiB-more")
		b.ReportMetric((p.inUse(b, admin, "HeapAlloc")-heap)/(1<<20), "heap-MiB-more")
	}
	b.ReportMetric(0, "ns/op")
}

func fileSize(b *testing.B, path string) int64 {
	b.Helper()
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	return info.Size()
}

// BenchmarkProcessIssueAtAMillion compares the cost of issuing a token into a file with a million
// live ones with that of issuing it into an empty file.
func BenchmarkProcessIssueAtAMillion(b *testing.B) {
	if testing.Short() {
		b.Skip("filling a file with a million tokens takes half a minute")
	}
	start := func(live int) *process {
		file := filepath.Join(b.TempDir(), "tokens.db")
		fillStore(b, file, live)
		return startProcess(b, "store bbolt "+file+"\n"+testClients, "oauth_server", "")
	}
	full, empty := start(1_000_000), start(0)
	for name, side := range map[string]func(*process) float64{
		"cpu": func(p *process) float64 {
			return p.cpuPerRequest(b, func() *http.Request { return p.post("/oauth2/access_token") })
		},
		"wall": func(p *process) float64 {
			start := time.Now()
			p.load(b, func() *http.Request { return p.post("/oauth2/access_token") })
			return time.Since(start).Seconds() / requestsPerRound
		},
	} {
		b.Run(name, func(b *testing.B) {
			compare(b, name, func() float64 { return side(full) }, func() float64 { return side(empty) })
		})
	}
}

// BenchmarkProcessMemory measures the resident memory of the default configuration at start, less
// that of the same Caddy without the oauth app.
func BenchmarkProcessMemory(b *testing.B) {
	var more []float64
	for range b.N {
		with := startProcess(b, "store bbolt "+filepath.Join(b.TempDir(), "tokens.db")+"\n"+testClients, "oauth_server\noauth_protect /api/*\nrespond ok", "")
		without := startProcess(b, "", "respond ok", "")
		more = append(more, float64(with.resident(b)-without.resident(b))/(1<<20))
	}
	slices.Sort(more)
	b.ReportMetric(more[len(more)/2], "MiB-more")
	b.ReportMetric(0, "ns/op")
}

// requestsPerRound is how many requests a round sends, over 16 connections unless a benchmark says
// otherwise.
const requestsPerRound = 8192

// compare runs both sides once in each iteration and reports the ratios.
func compare(b *testing.B, unit string, ours, floor func() float64) {
	b.Helper()
	var ratios, us []float64
	ours() // warm up
	floor()
	for range b.N {
		o, f := ours(), floor()
		ratios, us = append(ratios, o/f), append(us, o*1e6)
	}
	slices.Sort(ratios)
	slices.Sort(us)
	b.ReportMetric(ratios[len(ratios)/2], unit+"-ratio")
	b.ReportMetric(ratios[0], unit+"-ratio-min")
	b.ReportMetric(ratios[len(ratios)-1], unit+"-ratio-max")
	b.ReportMetric(us[len(us)/2], unit+"-µs/req")
	b.ReportMetric(0, "ns/op")
}

// process is a gateway in a process of its own.
type process struct {
	url    string
	pid    int
	client *http.Client
	stop   func() // the process ends with the benchmark in any case

	connections int
}

var caddyBinary = sync.OnceValues(func() (string, error) {
	folder, err := os.MkdirTemp("", "gateway-bench")
	if err != nil {
		return "", err
	}
	binary := filepath.Join(folder, "caddy")
	out, err := exec.Command("go", "build", "-o", binary, "../cmd/caddy").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return binary, nil
})

func startProcess(b *testing.B, oauth, site, backend string) *process {
	b.Helper()
	return startProcessWith(b, "admin off", oauth, site, backend)
}

// startProcessWith is startProcess with other options beside the oauth block.
func startProcessWith(b *testing.B, options, oauth, site, backend string) *process {
	b.Helper()
	if runtime.GOOS != "linux" {
		b.Skip("reads what a process costs from /proc")
	}
	binary, err := caddyBinary()
	if err != nil {
		b.Fatal(err)
	}
	addr := porttest.Address(b)
	config := strings.Replace(caddyfileOf(oauth, site), ":0 {", ":"+addr[strings.LastIndex(addr, ":")+1:]+" {", 1)
	if oauth == "" {
		config = strings.Replace(config, "oauth {\n\n}\n", "", 1)
	}
	// Event lines must not mix with a benchmark's output.
	config = strings.Replace(config, "admin off", options+"\nlog {\noutput file "+filepath.Join(b.TempDir(), "log")+"\n}", 1)
	file := filepath.Join(b.TempDir(), "Caddyfile")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(config, "BACKEND", backend)), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(binary, "run", "--config", file)
	home := b.TempDir()
	cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+home, "XDG_CONFIG_HOME="+home)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	})
	b.Cleanup(stop)
	p := &process{url: "http://" + addr, pid: cmd.Process.Pid, client: newClient(b), stop: stop, connections: 16}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		res, err := p.client.Get(p.url + "/")
		if err == nil {
			res.Body.Close()
			return p
		}
		if time.Now().After(deadline) {
			b.Fatalf("the gateway did not start: %v", err)
		}
	}
}

func (p *process) get(path, token string) *http.Request {
	r, _ := http.NewRequest("GET", p.url+path, nil)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return r
}

func (p *process) post(path string) *http.Request { return p.postAs("reader", path) }

func (p *process) postAs(id, path string) *http.Request {
	r, _ := http.NewRequest("POST", p.url+path, strings.NewReader("grant_type=client_credentials"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth(id, testSecret)
	return r
}

func (p *process) token(b *testing.B) string {
	b.Helper()
	return p.tokens(b, "reader", 1)[0]
}

// tokens fetches n tokens of a client.
func (p *process) tokens(b *testing.B, client string, n int) []string {
	b.Helper()
	all := make([]string, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(p.connections, n) {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				res, err := p.client.Do(p.postAs(client, "/oauth2/access_token"))
				if err != nil {
					b.Error(err)
					return
				}
				var answer struct {
					Token string `json:"access_token"`
				}
				err = json.NewDecoder(res.Body).Decode(&answer)
				res.Body.Close()
				if err != nil || answer.Token == "" {
					b.Errorf("no token: %d, %v", res.StatusCode, err)
					return
				}
				all[i-1] = answer.Token
			}
		})
	}
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return all
}

// load sends one round of requests. Every answer must be 200.
func (p *process) load(b *testing.B, request func() *http.Request) {
	b.Helper()
	var wg sync.WaitGroup
	for range p.connections {
		wg.Go(func() {
			for range requestsPerRound / p.connections {
				res, err := p.client.Do(request())
				if err != nil {
					b.Error(err)
					return
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if res.StatusCode != 200 {
					b.Errorf("status %d", res.StatusCode)
					return
				}
			}
		})
	}
	wg.Wait()
}

// cpuPerRequest returns the CPU time, in seconds, that the process spends on a request.
func (p *process) cpuPerRequest(b *testing.B, request func() *http.Request) float64 {
	b.Helper()
	before := p.cpu(b)
	p.load(b, request)
	return (p.cpu(b) - before) / requestsPerRound
}

// cpu returns the CPU time, in seconds, that the process has spent, to the nanosecond. The
// process's own schedstat counts its first thread only, so those of all threads are added.
func (p *process) cpu(b *testing.B) float64 {
	b.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.pid))
	if err != nil || len(threads) == 0 {
		b.Fatalf("no threads of process %d: %v", p.pid, err)
	}
	var sum float64
	for _, t := range threads {
		text, err := os.ReadFile(t)
		if err != nil {
			continue // the thread has ended, which is rare with Go
		}
		first, _, _ := strings.Cut(string(text), " ")
		ns, _ := strconv.ParseFloat(first, 64)
		sum += ns / 1e9
	}
	return sum
}

// inUse returns how much of some kinds of memory, as they are named at the end of a heap profile, is in
// use after a garbage collection, in bytes.
func (p *process) inUse(b *testing.B, admin string, kinds ...string) (sum float64) {
	b.Helper()
	res, err := p.client.Get("http://" + admin + "/debug/pprof/heap?gc=1&debug=1")
	if err != nil {
		b.Fatal(err)
	}
	defer res.Body.Close()
	profile, _ := io.ReadAll(res.Body)
	for _, kind := range kinds {
		_, rest, _ := strings.Cut(string(profile), "\n# "+kind+" = ")
		text, _, _ := strings.Cut(rest, "\n")
		text, _, _ = strings.Cut(text, " / ") // what the system has given
		bytes, err := strconv.ParseFloat(text, 64)
		if err != nil {
			b.Fatal(err)
		}
		sum += bytes
	}
	return sum
}

// resident returns the process's resident memory in bytes, once it is at rest.
func (p *process) resident(b *testing.B) int64 {
	b.Helper()
	time.Sleep(time.Second)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return kib << 10
}

// fillStore puts live tokens into a file, spread over the hour in which they expire.
func fillStore(b *testing.B, file string, live int) {
	b.Helper()
	s, err := store.OpenBbolt(file, time.Now)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	now := time.Now()
	var wg sync.WaitGroup
	const writers = 1000
	for w := range writers {
		wg.Go(func() {
			for i := w; i < live; i += writers {
				expires := now.Add(time.Hour + time.Duration(i)*time.Hour/time.Duration(live))
				id := sha256.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(i)))
				if err := s.Put(context.Background(), oauth.Token{
					Key:      oauth.Key{Realm: "root", ExpiryMilli: expires.UnixMilli(), ID: id},
					ClientID: "reader", ClientGeneration: 1, Scopes: []string{"read"}, IssuedAt: now,
				}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkProcessManagedClients starts a gateway on a file with 100,000 managed clients, and one on a
// file without. It reports how much longer the first takes until it is ready, how much more memory it
// has, and the CPU time of a token for a managed client beside that for one of the configuration; and
// how long operators wait for a page of those that nobody uses, for the export of all, and for the end
// of all tokens of the realm.
func BenchmarkProcessManagedClients(b *testing.B) {
	const clients = 100_000
	file := filepath.Join(b.TempDir(), "tokens.db")
	secret := fillManaged(b, file, clients)
	empty := filepath.Join(b.TempDir(), "empty.db")
	var seconds, mebibytes, ratios []float64
	waits := make(map[string][]float64)
	if _, err := caddyBinary(); err != nil { // else the first start includes its build
		b.Fatal(err)
	}
	for range b.N {
		options := "managed_clients\n" + testClients
		begin := time.Now()
		admin := porttest.Address(b)
		with := startProcessWith(b, "admin "+admin, "store bbolt "+file+"\n"+options, "oauth_server", "")
		with.token(b)
		took := time.Since(begin)
		begin = time.Now()
		without := startProcess(b, "store bbolt "+empty+"\n"+options, "oauth_server", "")
		without.token(b)
		seconds = append(seconds, (took - time.Since(begin)).Seconds())
		mebibytes = append(mebibytes, float64(with.resident(b)-without.resident(b))/(1<<20))
		var next atomic.Int64
		managed := func() *http.Request {
			r := with.postAs("m"+strconv.FormatInt(next.Add(7919)%clients, 10), "/oauth2/access_token")
			id, _, _ := r.BasicAuth()
			r.SetBasicAuth(id, secret)
			return r
		}
		configured := func() *http.Request { return with.post("/oauth2/access_token") }
		with.load(b, managed)
		ratios = append(ratios, with.cpuPerRequest(b, managed)/with.cpuPerRequest(b, configured))
		for name, r := range map[string]struct{ method, path, body string }{
			"page":   {"GET", "/oauth/clients?unused=90d", ""},
			"export": {"POST", "/oauth/clients/export", "{}"},
			"end":    {"POST", "/oauth/tokens/revoke", `{"realm":"root","all":true}`},
		} {
			begin = time.Now()
			asked, err := http.NewRequest(r.method, "http://"+admin+r.path, strings.NewReader(r.body))
			if err != nil {
				b.Fatal(err)
			}
			asked.Header.Set("Content-Type", "application/json")
			res, err := (&http.Client{Timeout: 5 * time.Minute}).Do(asked)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
				b.Errorf("%s: %d %v", name, res.StatusCode, err)
			}
			res.Body.Close()
			waits[name] = append(waits[name], time.Since(begin).Seconds())
		}
		with.stop()
		without.stop()
	}
	for name, took := range waits {
		b.ReportMetric(median(took), "s-"+name)
	}
	b.ReportMetric(median(seconds), "s-longer")
	b.ReportMetric(median(mebibytes), "MiB-more")
	b.ReportMetric(median(ratios), "cpu-ratio")
	b.ReportMetric(0, "ns/op")
}

// fillManaged puts managed clients m0, m1 and so on into a file, all with the same secret, which it
// returns.
func fillManaged(b *testing.B, file string, clients int) (secret string) {
	b.Helper()
	secret = oauth.GenerateSecret()
	hash, err := oauth.HashGenerated(secret)
	if err != nil {
		b.Fatal(err)
	}
	s, err := store.OpenBbolt(file, time.Now)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	data := fmt.Appendf(nil, `{"v":1,"client":{"secrets":[{"hash":%q}],"scopes":["read"],"default_scopes":["read"]},"created":"2026-01-01T00:00:00Z","changed":"2026-01-01T00:00:00Z"}`, hash)
	var wg sync.WaitGroup
	const writers = 1000
	for w := range writers {
		wg.Go(func() {
			for i := w; i < clients; i += writers {
				client := oauth.ManagedClient{ID: "m" + strconv.Itoa(i), Generation: 1, Data: data}
				if _, err := s.SwapManagedClient(context.Background(), "root", client); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return secret
}
