package redistest

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// Proxy is a network path to a server that a test can break. It ends with the test.
type Proxy struct {
	Addr string

	t        testing.TB
	upstream string
	proxy    *toxiproxy.Proxy
}

// StartProxy starts a proxy for a server, on a port that nobody else gets while it is cut.
func StartProxy(t testing.TB, s *Server) *Proxy {
	t.Helper()
	p := &Proxy{t: t, Addr: porttest.Address(t), upstream: s.Addr}
	p.start()
	t.Cleanup(p.Cut)
	return p
}

// start starts a proxy, at the address of the previous one. A proxy is never repaired in place: to
// remove a delay, toxiproxy waits until what it delayed is read, which takes forever if nobody is
// left to read it.
//
// A process that another test is starting still has the listener of the previous one for a moment, until it
// becomes another program. So the address may be taken at first.
func (p *Proxy) start() {
	p.t.Helper()
	host := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	await(p.t, "the proxy listens on "+p.Addr, func() bool {
		p.proxy = toxiproxy.NewProxy(host, p.t.Name(), p.Addr, p.upstream)
		err := p.proxy.Start()
		if err != nil && !errors.Is(err, syscall.EADDRINUSE) {
			p.t.Fatal(err)
		}
		return err == nil
	})
}

// Cut ends all connections and refuses new ones, until Heal.
func (p *Proxy) Cut() { p.proxy.Stop() }

// LeadTo ends all connections, and connects new ones to another server.
func (p *Proxy) LeadTo(s *Server) {
	p.t.Helper()
	p.upstream = s.Addr
	p.Heal()
}

// Slow delays everything that the server sends, until Heal.
func (p *Proxy) Slow(milliseconds int) {
	p.add(fmt.Sprintf(`{"type": "latency", "attributes": {"latency": %d}}`, milliseconds))
}

// Swallow drops everything that is sent in either direction, until Heal, while connections stay
// open: the half-open state after a router has forgotten them.
func (p *Proxy) Swallow() {
	for _, stream := range []string{"upstream", "downstream"} {
		p.add(fmt.Sprintf(`{"type": "timeout", "stream": %q, "attributes": {"timeout": 0}}`, stream))
	}
}

// Deafen drops everything that the server sends, until Heal. What is sent to it arrives.
func (p *Proxy) Deafen() { p.add(`{"type": "timeout", "attributes": {"timeout": 0}}`) }

func (p *Proxy) add(toxic string) {
	p.t.Helper()
	if _, err := p.proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
		p.t.Fatal(err)
	}
}

// Heal ends all connections, and carries new ones faithfully.
func (p *Proxy) Heal() {
	p.t.Helper()
	p.Cut()
	p.start()
}
