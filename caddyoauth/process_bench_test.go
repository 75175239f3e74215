package caddyoauth_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
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
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
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

// BenchmarkProcessIssue compares the CPU time of issuing a token for a generated secret with that of
// a static answer of the same Caddy to the same POST.
func BenchmarkProcessIssue(b *testing.B) {
	for _, name := range []string{"bbolt", "memory"} {
		b.Run(name, func(b *testing.B) {
			// Durable writes share their sync: the more there are at once, the less each costs.
			for _, connections := range []int{1, 16, 128} {
				b.Run(strconv.Itoa(connections), func(b *testing.B) {
					start := func() *process {
						line := "store " + name
						if name == "bbolt" {
							line += " " + filepath.Join(b.TempDir(), "tokens.db")
						}
						p := startProcess(b, line+"\n"+testClients, `oauth_server
							respond /static "{\"access_token\":\"coa_AQBrBpyui3c8vlii753p8xRiQ4lK6lxWe7P5yggr6OAG47xKcGkauXPC\",\"scope\":\"read\",\"token_type\":\"Bearer\",\"expires_in\":3600}"`, "")
						p.connections = connections
						return p
					}
					p, issued := start(), 0
					issue := func() *http.Request { return p.post("/oauth2/access_token") }
					compare(b, "cpu",
						func() float64 {
							// The memory store has room for a quarter of a million tokens of one client.
							// Before it is full, another gateway takes over, and is warmed up.
							if issued += requestsPerRound; issued > 240_000 {
								p.stop()
								p, issued = start(), 2*requestsPerRound
								p.load(b, issue)
							}
							return p.cpuPerRequest(b, issue)
						},
						func() float64 { return p.cpuPerRequest(b, func() *http.Request { return p.post("/static") }) })
				})
			}
		})
	}
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
	config = strings.Replace(config, "admin off", "admin off\nlog {\noutput file "+filepath.Join(b.TempDir(), "log")+"\n}", 1)
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

func (p *process) post(path string) *http.Request {
	r, _ := http.NewRequest("POST", p.url+path, strings.NewReader("grant_type=client_credentials"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth("reader", testSecret)
	return r
}

func (p *process) token(b *testing.B) string {
	b.Helper()
	res, err := p.client.Do(p.post("/oauth2/access_token"))
	if err != nil {
		b.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	_, rest, _ := strings.Cut(string(body), `"access_token":"`)
	token, _, ok := strings.Cut(rest, `"`)
	if !ok {
		b.Fatalf("no token: %s", body)
	}
	return token
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
