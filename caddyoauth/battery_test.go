package caddyoauth_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"
)

// longBattery makes the battery of faults run for long. It is too slow for every change.
var longBattery = os.Getenv("BATTERY") == "long"

// A fault is something that the battery does to a gateway, and what holds nevertheless.
type fault struct {
	name, proves string
	short, long  int // rounds for run
	run          func(t *testing.T, rounds int, requests *atomic.Int64)
}

var faults = []fault{
	{"killed under load", "whatever was answered with 200 before a kill -9 is durable", 3, 40, killedUnderLoad},
	{"disk full", "requests that need the disk get 503, nothing is lost, and everything works again once there is room", 1, 5, diskFull},
	{"files that can't be used", "the error names the file and what to do, and nothing is served", 1, 3, unusableFiles},
	{"folder removed", "the gateway goes on, and after a restart no earlier token is valid", 1, 10, folderRemoved},
	{"reloads under load", "no request fails, the cache stays warm, and nothing leaks", 20, 200, reloadsUnderLoad},
	{"token flood", "tokens in use stay in the cache, memory is bounded, and made-up tokens reach no store", 400, 200_000, tokenFlood},
	{"slow clients", "clients that send or read slowly are cut off, and hold up nobody else", 1, 5, slowClients},
	{"huge requests", "they are refused early, in bounded memory", 4, 200, hugeRequests},
	{"everything at once", "no token passes after its revocation, in another realm, or without its client", 2, 60, everythingAtOnce},
}

// A gateway survives what may happen to one. At the end, the test logs a table of what it tried.
func TestBattery(t *testing.T) {
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "fault\trounds\trequests\toutcome\twhat holds")
	for _, f := range faults {
		rounds := f.short
		if longBattery {
			rounds = f.long
		}
		var requests atomic.Int64
		outcome, begin := "", time.Now()
		passed := t.Run(f.name, func(t *testing.T) {
			outcome = "skipped"
			f.run(t, rounds, &requests)
			outcome = "holds"
		})
		switch {
		case outcome == "": // not selected by -run
			continue
		case !passed:
			outcome = "FAILED"
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s, in %.1fs\t%s\n", f.name, rounds, requests.Load(), outcome, time.Since(begin).Seconds(), f.proves)
	}
	w.Flush()
	t.Logf("the battery:\n%s", table.String())
}

// tokenIn returns the token in an answer, empty if there is none.
func tokenIn(a answer) string {
	var body struct {
		Token string `json:"access_token"`
	}
	if a.StatusCode != 200 || json.Unmarshal([]byte(a.Body), &body) != nil {
		return ""
	}
	return body.Token
}

var clientCredentials = url.Values{"grant_type": {"client_credentials"}}

// killedUnderLoad kills a gateway at a random moment while eight clients fetch and revoke tokens,
// and asks the next one about all of them.
func killedUnderLoad(t *testing.T, rounds int, requests *atomic.Int64) {
	options := "store bbolt " + filepath.Join(t.TempDir(), "tokens.db") + "\n" + testClients
	var revoked []string // in all the rounds
	g, kill := startGatewayProcess(t, options)
	for range rounds {
		var mu sync.Mutex
		state := map[string]string{} // for each token, what was acknowledged last
		set := func(token, is string) {
			mu.Lock()
			defer mu.Unlock()
			state[token] = is
		}
		var callers sync.WaitGroup
		var acknowledged atomic.Int64
		for range 8 {
			callers.Go(func() {
				for { // until there is no answer
					a, err := g.try(g.posting("/oauth2/access_token", "reader", testSecret, clientCredentials))
					if err != nil {
						return
					}
					requests.Add(1)
					if a.StatusCode == 503 {
						continue // the disk of a busy machine may take longer than the gateway waits for it
					}
					token := tokenIn(a)
					if token == "" {
						t.Errorf("issuing: %d %s", a.StatusCode, a.Body)
						return
					}
					set(token, "issued")
					acknowledged.Add(1)
					if rand.IntN(3) == 0 {
						continue
					}
					set(token, "being revoked")
					if a, err = g.try(g.posting("/oauth2/token/revoke", "reader", testSecret, url.Values{"token": {token}})); err != nil {
						return
					}
					requests.Add(1)
					if a.StatusCode == 503 {
						continue
					}
					if a.StatusCode != 200 {
						t.Errorf("revoking: %d %s", a.StatusCode, a.Body)
						return
					}
					set(token, "revoked")
				}
			})
		}
		waitUntil(t, "the clients are under way", func() bool { return acknowledged.Load() > 50 || t.Failed() })
		time.Sleep(rand.N(100 * time.Millisecond))
		kill()
		callers.Wait()

		g, kill = startGatewayProcess(t, options)
		for token, is := range state {
			a := g.get("/x", token)
			requests.Add(1)
			switch {
			case is == "issued" && a.StatusCode != 200:
				t.Errorf("a token issued before the kill gets %d", a.StatusCode)
			case is == "revoked" && a.StatusCode != 401:
				t.Errorf("a token revoked before the kill gets %d", a.StatusCode)
			case a.StatusCode != 200 && a.StatusCode != 401: // either will do if it was being revoked
				t.Errorf("a token that was %s gets %d", is, a.StatusCode)
			}
			if is == "revoked" {
				revoked = append(revoked, token)
			}
		}
	}
	for _, token := range revoked {
		if a := g.get("/x", token); a.StatusCode != 401 {
			t.Errorf("after all the kills, a revoked token gets %d", a.StatusCode)
		}
	}
	t.Logf("%d revocations held over %d kills", len(revoked), rounds)
}

// reloadsUnderLoad reloads while clients call, in both ways that matter: with a configuration
// that changes, and with one that stays the same.
func reloadsUnderLoad(t *testing.T, rounds int, requests *atomic.Int64) {
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) { requests.Add(manyReloadsUnderTraffic(t, store, rounds)) })
		t.Run(name+", warm cache", func(t *testing.T) {
			g := startGateway(t, store+testClients, gatewaySite)
			hot := make([]string, 20)
			for i := range hot {
				hot[i] = g.token("reader")
				g.warm("/x", hot[i])
			}
			misses := cacheMisses(t)
			for range rounds {
				if err := g.load(store+testClients, gatewaySite); err != nil {
					t.Fatal(err)
				}
				for _, token := range hot {
					requests.Add(1)
					if a := g.get("/x", token); a.StatusCode != 200 {
						t.Errorf("a token from before the reload: %d", a.StatusCode)
					}
				}
			}
			if misses = cacheMisses(t) - misses; misses > float64(rounds*len(hot)/10) {
				t.Errorf("of %d checks, %v were not answered by the cache", rounds*len(hot), misses)
			}
		})
	}
}

// tokenFlood sends made-up tokens, and real ones that are expired or revoked, along with tokens
// in use.
func tokenFlood(t *testing.T, rounds int, requests *atomic.Int64) {
	clients := testClients + "client brief {\nsecret_hash " + testHash + "\nscopes read\ndefault_scopes read\ntoken_lifetime 1s\n}\n"
	store := "store bbolt " + filepath.Join(t.TempDir(), "tokens.db") + "\n"
	g := startGateway(t, store+"cache {\nmax_tokens 1000\n}\n"+clients, "oauth_server\noauth_protect\nrespond ok")
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		return b
	}
	var expired, revoked []string
	for range 50 {
		expired = append(expired, g.token("brief"))
		token := g.token("reader")
		if a := g.revoke("reader", token); a.StatusCode != 200 {
			t.Fatalf("revoking: %d", a.StatusCode)
		}
		revoked = append(revoked, token)
	}
	waitUntil(t, "tokens have expired", func() bool { return g.get("/x", expired[len(expired)-1]).StatusCode == 401 })
	hot := make([]string, 100)
	for i := range hot {
		hot[i] = g.token("reader")
		g.warm("/x", hot[i])
	}

	for _, c := range []struct {
		name  string
		reads bool // whether the store is asked
		token func() string
	}{
		{"random", false, func() string { return base64.RawURLEncoding.EncodeToString(noise(45)) }},
		{"random, in our form", false, func() string { return "coa_" + base64.RawURLEncoding.EncodeToString(noise(45)) }},
		{"ours with another tag", false, func() string {
			token := []byte(hot[rand.IntN(len(hot))])
			copy(token[len(token)-8:], base64.RawURLEncoding.EncodeToString(noise(6)))
			return string(token)
		}},
		{"very long", false, func() string { return base64.RawURLEncoding.EncodeToString(noise(6000)) }},
		{"expired", false, func() string { return expired[rand.IntN(len(expired))] }},
		{"revoked", true, func() string { return revoked[rand.IntN(len(revoked))] }},
	} {
		t.Run(c.name, func(t *testing.T) {
			// inUse calls with every token in use and returns how many the cache did not know.
			inUse := func() float64 {
				before := cacheMisses(t)
				for _, token := range hot {
					requests.Add(1)
					if a := g.get("/x", token); a.StatusCode != 200 {
						t.Errorf("a token in use: %d", a.StatusCode)
					}
				}
				return cacheMisses(t) - before
			}
			inUse()
			reads := storeReads(t)
			_, _, heap := growth()
			var flood sync.WaitGroup
			for range 4 {
				flood.Go(func() {
					for range rounds / 4 {
						requests.Add(1)
						a, err := g.try(g.request("GET", "/x", "", "Authorization", "Bearer "+c.token()))
						if err != nil || a.StatusCode != 401 {
							t.Errorf("a token of the flood: %v, %v", a.Response, err)
							return
						}
					}
				})
			}
			flood.Wait()
			if _, _, now := growth(); now > heap+32<<20 {
				t.Errorf("the heap grew from %d to %d bytes", heap, now)
			}
			if asked := storeReads(t) - reads; asked != 0 && !c.reads {
				t.Errorf("the store was asked %v times", asked)
			}
			if misses := inUse(); misses > float64(len(hot)/10) {
				t.Errorf("of %d tokens in use, %v were not in the cache", len(hot), misses)
			}
		})
	}
}

// timeouts makes Caddy cut off slow clients after seconds instead of minutes, but not before we have
// answered after 10 s, and not those who are only slow because the machine stands still for a while.
func timeouts(oauth, site string) string {
	return strings.Replace(caddyfileOf(oauth, site), "{\n", "{\nservers {\ntimeouts {\nread_header 5s\nwrite 15s\nidle 5s\n}\n}\n", 1)
}

// slowClients opens more connections than anything in the gateway has places for, and lets them
// idle.
func slowClients(t *testing.T, rounds int, requests *atomic.Int64) {
	endless := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for chunk := make([]byte, 64<<10); ; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}))
	t.Cleanup(endless.Close)
	site := "oauth_server\noauth_protect\nreverse_proxy /endless " + endless.Listener.Addr().String() + "\nreverse_proxy BACKEND"
	g := startCaddyfile(t, timeouts("store memory\n"+testClients, site))
	token := g.token("reader")
	g.warm("/x", token)
	form := "Host: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 1000\r\n\r\ngrant_type="
	for range rounds {
		goroutines, _, _ := growth()
		kinds := []struct {
			name, text string
			conns      int
			half       bool   // the client closes its sending side
			want       string // how the answer begins; if empty, the connection just ends
			conn       []net.Conn
		}{
			{name: "half a header", conns: 300, text: "GET /x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "},
			{name: "half a body for the token endpoint", conns: 300, text: "POST /oauth2/access_token HTTP/1.1\r\n" + form, want: "HTTP/1.1 400"},
			{name: "half a body without a token", conns: 30, text: "POST /x HTTP/1.1\r\n" + form, want: "HTTP/1.1 401"},
			{name: "half a connection", conns: 30, half: true, text: "GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer " + token + "\r\n\r\n", want: "HTTP/1.1 "}, // net/http takes the client for gone
			{name: "half a connection and half a body", conns: 30, half: true, text: "POST /oauth2/access_token HTTP/1.1\r\n" + form, want: "HTTP/1.1 400"},
			{name: "an answer that nobody reads", conns: 10, text: "GET /endless HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + "\r\n\r\n", want: "HTTP/1.1 200"},
		}
		for i, k := range kinds {
			for range k.conns {
				requests.Add(1)
				conn := g.rawConn(k.text)
				conn.SetDeadline(time.Now().Add(time.Minute))
				if k.half {
					conn.(*net.TCPConn).CloseWrite()
				}
				kinds[i].conn = append(kinds[i].conn, conn)
			}
		}
		// Meanwhile others are served.
		var others sync.WaitGroup
		for range 4 {
			others.Go(func() {
				for range 10 {
					requests.Add(3)
					if err := roundTrip(g.Client, g.URL); err != nil {
						t.Errorf("beside slow clients: %v", err)
					}
				}
			})
		}
		others.Wait()
		// Each comes to an end: half a header by Caddy's timeout, half a body by ours, and an answer
		// that nobody reads by Caddy's.
		for _, k := range kinds {
			for _, conn := range k.conn {
				var got bytes.Buffer
				_, err := io.Copy(&got, io.LimitReader(conn, 64<<20))
				if errors.Is(err, os.ErrDeadlineExceeded) || !strings.HasPrefix(got.String(), k.want) {
					t.Errorf("%s: %v after %.60q", k.name, err, got.String())
					break
				}
				conn.Close()
			}
		}
		g.Client.CloseIdleConnections()
		waitUntil(t, "nothing is left of the slow clients", func() bool {
			g.Client.CloseIdleConnections()
			endless.CloseClientConnections()
			g.Backend.CloseClientConnections()
			return runtime.NumGoroutine() <= goroutines+5
		})
	}
}

// hugeRequests sends requests that are too large in every way.
func hugeRequests(t *testing.T, rounds int, requests *atomic.Int64) {
	g := startGateway(t, "store memory\n"+testClients, "oauth_server\noauth_protect\nrespond ok")
	credentials := "Authorization: " + basic("reader", testSecret) + "\r\nContent-Type: application/x-www-form-urlencoded\r\n"
	post := "POST /oauth2/access_token HTTP/1.1\r\nHost: x\r\n" + credentials
	body := func(form string) string { return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", post, len(form), form) }
	chunk := "10000\r\n" + strings.Repeat("x", 0x10000) + "\r\n"
	_, _, heap := growth()
	var most atomic.Uint64
	for _, c := range []struct {
		name, text, endless string // endless is repeated as long as the gateway reads it
		status              int
	}{
		{"a token of 1 MiB", "GET /x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + strings.Repeat("x", 1<<20) + "\r\n\r\n", "", 431},
		{"a token of 12 KiB", "GET /x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + strings.Repeat("x", 12<<10) + "\r\n\r\n", "", 401},
		{"credentials of 1 MiB", "POST /oauth2/access_token HTTP/1.1\r\nHost: x\r\nAuthorization: Basic " + strings.Repeat("x", 1<<20) + "\r\n\r\n", "", 431},
		{"10000 headers", "GET /x HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-OAuth-Client-Id: admin\r\n", 10_000) + "\r\n", "", 431},
		{"endless headers", "GET /x HTTP/1.1\r\nHost: x\r\n", "X-A: b\r\n", 431},
		{"10 GiB announced, to the token endpoint", post + "Content-Length: 10737418240\r\n\r\n", "", 413},
		{"10 GiB announced, without a token", "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 10737418240\r\n\r\n", "", 401},
		{"10 GiB, to the token endpoint", post + "Content-Length: 10737418240\r\n\r\n", chunk, 413},
		{"endless chunks, to the token endpoint", post + "Transfer-Encoding: chunked\r\n\r\n", chunk, 413},
		{"endless chunks, without a token", "POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", chunk, 401},
		{"a body of separators", body(strings.Repeat("&", 60<<10)), "", 400},
		{"a body of empty names", body(strings.Repeat("=&", 30<<10)), "", 400},
		{"a deep form", body("grant_type=client_credentials&" + strings.Repeat("a[", 20<<10) + strings.Repeat("]", 20<<10) + "=b"), "", 200},
		{"a long list of scopes", body("grant_type=client_credentials&scope=" + strings.Repeat("a+", 30<<10)), "", 400},
		{"a long name", body("grant_type=client_credentials&" + strings.Repeat("%41", 20<<10) + "=b"), "", 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			var answered atomic.Int64
			var callers sync.WaitGroup
			for range 4 {
				callers.Go(func() {
					for range max(1, rounds/4) {
						requests.Add(1)
						conn := g.rawConn("")
						sent := make(chan struct{})
						go func() {
							defer close(sent)
							_, err := io.WriteString(conn, c.text)
							for n := 0; err == nil && c.endless != ""; n += len(c.endless) {
								if n > 256<<20 {
									t.Error("256 MiB were read")
									return
								}
								_, err = io.WriteString(conn, c.endless)
							}
						}()
						first := make([]byte, len("HTTP/1.1 xxx"))
						// If we keep sending after the answer, a reset may overtake it.
						if _, err := io.ReadFull(conn, first); err == nil {
							answered.Add(1)
							if want := fmt.Sprint("HTTP/1.1 ", c.status); string(first) != want {
								t.Errorf("%q, want %s", first, want)
							}
						} else if errors.Is(err, os.ErrDeadlineExceeded) {
							t.Error("no answer")
						}
						conn.Close()
						<-sent
						var m runtime.MemStats
						runtime.ReadMemStats(&m)
						most.Store(max(most.Load(), m.HeapAlloc))
					}
				})
			}
			callers.Wait()
			if answered.Load() == 0 && c.endless == "" {
				t.Error("no request was answered")
			}
		})
	}
	if most.Load() > heap+128<<20 {
		t.Errorf("the heap grew from %d to %d bytes", heap, most.Load())
	}
	if a := g.get("/x", g.token("reader")); a.StatusCode != 200 {
		t.Errorf("afterwards: %d", a.StatusCode)
	}
}
