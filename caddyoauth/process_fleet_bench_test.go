package caddyoauth_test

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// BenchmarkProcessFleet has ten gateways share a Redis, or a Cluster of three. It reports how long after
// a revocation was answered the last of the ten lets its token pass, and how long after it the last of ten
// bare clients of Redis hears of it, which do nothing else; and, for one gateway and for all
// ten, how many tokens a second they issue together, and the CPU time of a token in them and in Redis.
// With all of them on one machine, the processors are the bound; Redis' share says where its own is.
func BenchmarkProcessFleet(b *testing.B) {
	if _, err := exec.LookPath("redis-server"); err != nil {
		b.Skip("redis-server is not installed")
	}
	b.Run("redis", func(b *testing.B) {
		benchmarkFleet(b, []*redistest.Server{redistest.Start(b)}, "")
	})
	b.Run("cluster", func(b *testing.B) {
		benchmarkFleet(b, redistest.StartCluster(b), " {\ncluster\n}")
	})
}

func benchmarkFleet(b *testing.B, servers []*redistest.Server, options string) {
	const size, revocations = 10, 200
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }))
	b.Cleanup(backend.Close)
	line := "store redis"
	for _, s := range servers {
		line += " " + s.Addr
	}
	gateways := make([]*process, size)
	for i := range gateways {
		gateways[i] = startProcess(b, line+options+"\n"+testClients,
			"oauth_server /oauth2/*\nroute /api/* {\noauth_protect {\nscopes read\n}\nreverse_proxy BACKEND\n}", backend.Listener.Addr().String())
	}
	passes := func(p *process, token string) bool {
		res, err := p.client.Do(p.get("/api/orders/17", token))
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusUnauthorized {
			b.Fatalf("status %d", res.StatusCode)
		}
		return res.StatusCode == http.StatusOK
	}
	redisCPU := func() (sum float64) {
		for _, s := range servers {
			sum += s.CPU().Seconds()
		}
		return sum
	}
	// issue has the first n gateways issue tokens at the same time.
	issue := func(n int) (perSecond, cpu, redis float64) {
		var before float64
		for _, p := range gateways[:n] {
			before += p.cpu(b)
		}
		redisBefore, begin := redisCPU(), time.Now()
		var wg sync.WaitGroup
		for _, p := range gateways[:n] {
			wg.Go(func() { p.load(b, func() *http.Request { return p.post("/oauth2/access_token") }) })
		}
		wg.Wait()
		took, redisAfter := time.Since(begin), redisCPU()
		var after float64
		for _, p := range gateways[:n] {
			after += p.cpu(b)
		}
		issued := float64(n * requestsPerRound)
		return issued / took.Seconds(), (after - before) / issued * 1e6, (redisAfter - redisBefore) / issued * 1e6
	}
	issue(size) // warm up
	bare := hearFrom(b, servers, size)
	var late, heard, one, ten, cpu, redis []float64
	for range b.N {
		for i := range revocations {
			revoker := gateways[i%size]
			bare.forget()
			token := revoker.token(b)
			for range 2 { // the second time from its cache
				for _, p := range gateways {
					if !passes(p, token) {
						b.Fatal("a token that was just issued is refused")
					}
				}
			}
			bare.read(b)
			form := revoker.post("/oauth2/token/revoke")
			body := url.Values{"token": {token}}.Encode()
			form.Body, form.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
			res, err := revoker.client.Do(form)
			if err != nil || res.StatusCode != http.StatusOK {
				b.Fatalf("revoking: %v, %v", res, err)
			}
			answered := time.Now()
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			// A request that begins later and passes is late. One that is refused at once isn't.
			var last atomic.Int64
			var wg sync.WaitGroup
			for _, p := range gateways {
				wg.Go(func() {
					for {
						sent := time.Since(answered)
						if !passes(p, token) {
							return
						}
						for old := last.Load(); int64(sent) > old && !last.CompareAndSwap(old, int64(sent)); old = last.Load() {
						}
					}
				})
			}
			wg.Wait()
			late = append(late, time.Duration(last.Load()).Seconds()*1e3)
			heard = append(heard, max(0, bare.last(b).Sub(answered)).Seconds()*1e3)
		}
		perSecond, _, _ := issue(1)
		one = append(one, perSecond)
		perSecond, c, r := issue(size)
		ten, cpu, redis = append(ten, perSecond), append(cpu, c), append(redis, r)
	}
	slices.Sort(late)
	b.ReportMetric(late[len(late)/2], "ms-late-p50")
	b.ReportMetric(late[len(late)*99/100], "ms-late-p99")
	b.ReportMetric(late[len(late)-1], "ms-late-max")
	slices.Sort(heard)
	b.ReportMetric(heard[len(heard)/2], "ms-bare-p50")
	b.ReportMetric(heard[len(heard)*99/100], "ms-bare-p99")
	b.ReportMetric(heard[len(heard)-1], "ms-bare-max")
	b.ReportMetric(median(one), "tokens/s-one")
	b.ReportMetric(median(ten), "tokens/s-ten")
	b.ReportMetric(median(cpu), "cpu-µs/token")
	b.ReportMetric(median(redis), "redis-µs/token")
	b.ReportMetric(0, "ns/op")
}

// bareClients read the record of each new token, so that Redis tells them when it is revoked.
type bareClients struct {
	clients []rueidis.Client
	keys    chan string    // of records that were written
	heard   chan time.Time // a value for each client that was told of a change
}

// hearFrom connects that many clients to a Redis or a Cluster. They end with the benchmark.
func hearFrom(b *testing.B, servers []*redistest.Server, n int) *bareClients {
	bare := &bareClients{keys: make(chan string, 1), heard: make(chan time.Time, n)}
	o := rueidis.ClientOption{ForceSingleClient: len(servers) == 1, PipelineMultiplex: -1}
	for _, s := range servers {
		o.InitAddress = append(o.InitAddress, s.Addr)
	}
	open := func(o rueidis.ClientOption) rueidis.Client {
		c, err := rueidis.NewClient(o)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(c.Close)
		return c
	}
	o.ClientTrackingOptions = []string{"OPTOUT"}
	o.OnInvalidations = func([]rueidis.RedisMessage) {
		select {
		case bare.heard <- time.Now():
		default: // the benchmark is over, or a round that failed
		}
	}
	for range n {
		bare.clients = append(bare.clients, open(o))
	}
	o.ClientTrackingOptions = []string{"BCAST", "PREFIX", "caddy-oauth:realm:root:token:"}
	o.OnInvalidations = func(keys []rueidis.RedisMessage) {
		for _, message := range keys {
			key, err := message.ToString()
			if err != nil {
				continue
			}
			select {
			case <-bare.keys: // of one that nobody asked about
			default:
			}
			bare.keys <- key
		}
	}
	names := open(o)
	for _, node := range names.Nodes() { // it connects when it is used
		if err := node.Do(b.Context(), node.B().Ping().Build()).Error(); err != nil {
			b.Fatal(err)
		}
	}
	return bare
}

// forget drops what was written before.
func (c *bareClients) forget() {
	select {
	case <-c.keys:
	default:
	}
}

// read has all clients read the record that was written last.
func (c *bareClients) read(b *testing.B) {
	b.Helper()
	for read := 0; read < len(c.clients); {
		key := <-c.keys
		for _, client := range c.clients {
			err := client.Do(b.Context(), client.B().Get().Key(key).Build()).Error()
			if rueidis.IsRedisNil(err) {
				break // it is the one that was revoked before
			}
			if err != nil {
				b.Fatal(err)
			}
			read++
		}
	}
}

// last waits until all clients were told of a change, and returns when the last one was.
func (c *bareClients) last(b *testing.B) (last time.Time) {
	b.Helper()
	for range c.clients {
		select {
		case at := <-c.heard:
			if at.After(last) {
				last = at
			}
		case <-time.After(10 * time.Second):
			b.Fatal("Redis does not tell of a revocation")
		}
	}
	return last
}

// BenchmarkProcessConnections compares the memory, of the heap and of stacks, that 10,000 idle connections, each of which has
// sent a request to a protected route, and 1,000 WebSockets behind one have in use, with that of as many to
// a plain reverse_proxy in a Caddy of its own.
func BenchmarkProcessConnections(b *testing.B) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			io.WriteString(w, "ok")
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		io.Copy(io.Discard, rw) // until the client ends it
	}))
	b.Cleanup(backend.Close)
	for name, kind := range map[string]struct {
		connections int
		more        string
		want        string
	}{
		"idle":      {10_000, "", "200"},
		"websocket": {1_000, "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "101"},
	} {
		b.Run(name, func(b *testing.B) {
			each := func(p *process, admin, token string) float64 {
				p.load(b, func() *http.Request { return p.get("/api/orders/17", token) })
				before := p.inUse(b, admin, "HeapAlloc", "Stack")
				conns := make([]net.Conn, kind.connections)
				for i := range conns {
					conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
					if err != nil {
						b.Fatal(err)
					}
					defer conn.Close()
					conns[i] = conn
					fmt.Fprintf(conn, "GET /api/orders/17 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n%s\r\n", token, kind.more)
					answer, err := bufio.NewReader(conn).ReadString('\n')
					if err != nil || !strings.Contains(answer, " "+kind.want+" ") {
						b.Fatalf("connection %d: %q, %v", i, answer, err)
					}
				}
				return (p.inUse(b, admin, "HeapAlloc", "Stack") - before) / float64(kind.connections)
			}
			var ours, plain, ratios []float64
			for range b.N {
				admins := []string{porttest.Address(b), porttest.Address(b)}
				with := startProcessWith(b, "admin "+admins[0], "store memory\n"+testClients, "oauth_server /oauth2/*\nroute /api/* {\noauth_protect {\nscopes read\n}\nreverse_proxy BACKEND\n}", backend.Listener.Addr().String())
				without := startProcessWith(b, "admin "+admins[1], "", "reverse_proxy BACKEND", backend.Listener.Addr().String())
				o, p := each(with, admins[0], with.token(b)), each(without, admins[1], "none")
				ours, plain, ratios = append(ours, o), append(plain, p), append(ratios, o/p)
				with.stop()
				without.stop()
			}
			b.ReportMetric(median(ours)/1024, "KiB-each")
			b.ReportMetric(median(plain)/1024, "KiB-each-plain")
			b.ReportMetric(median(ratios), "memory-ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkProcessMillion uses a million live tokens at random, with caches that hold a tenth of them and
// all of them. It compares the CPU time of a request with that of one to a plain reverse_proxy of the same
// Caddy, and reports the share of requests whose token was cached, and the resident memory.
func BenchmarkProcessMillion(b *testing.B) {
	const live = 1_000_000
	if testing.Short() {
		b.Skip("issuing a million tokens takes a minute")
	}
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }))
	b.Cleanup(backend.Close)
	for _, most := range []int{live / 10, 2 * live} {
		b.Run(strconv.Itoa(most), func(b *testing.B) {
			admin := porttest.Address(b)
			p := startProcessWith(b, "admin "+admin+"\nmetrics", "store bbolt "+b.TempDir()+"/tokens.db\ncache {\nmax_tokens "+strconv.Itoa(most)+"\nmax_age 1h\n}\ntoken_lifetime 12h\n"+testClients,
				"oauth_server /oauth2/*\nroute /api/* {\noauth_protect {\nscopes read\n}\nreverse_proxy BACKEND\n}\nroute /plain/* {\nreverse_proxy BACKEND\n}", backend.Listener.Addr().String())
			p.connections = 128
			tokens := p.tokens(b, "reader", live)
			p.connections = 16
			var next atomic.Int64
			for range live/requestsPerRound + 1 { // each once
				p.load(b, func() *http.Request { return p.get("/api/orders/17", tokens[next.Add(1)%live]) })
			}
			hits, misses := p.cacheCounts(b, admin)
			compare(b, "cpu",
				func() float64 {
					return p.cpuPerRequest(b, func() *http.Request { return p.get("/api/orders/17", tokens[rand.IntN(live)]) })
				},
				func() float64 {
					return p.cpuPerRequest(b, func() *http.Request { return p.get("/plain/orders/17", "") })
				})
			hitsAfter, missesAfter := p.cacheCounts(b, admin)
			b.ReportMetric((hitsAfter-hits)/(hitsAfter-hits+missesAfter-misses), "hit-share")
			b.ReportMetric(float64(p.resident(b))/(1<<20), "resident-MiB")
		})
	}
}

// cacheCounts returns how often the cache had what was asked for, and how often not.
func (p *process) cacheCounts(b *testing.B, admin string) (hits, misses float64) {
	b.Helper()
	res, err := p.client.Get("http://" + admin + "/metrics")
	if err != nil {
		b.Fatal(err)
	}
	defer res.Body.Close()
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		n, _ := strconv.ParseFloat(value, 64)
		switch {
		case strings.HasPrefix(name, "caddy_oauth_cache_hits_total"):
			hits += n
		case strings.HasPrefix(name, "caddy_oauth_cache_misses_total"):
			misses += n
		}
	}
	return hits, misses
}
