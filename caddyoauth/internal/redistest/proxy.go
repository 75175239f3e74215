package redistest

import (
	"fmt"
	"strings"
	"testing"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// Proxy is a way to a server that can be made bad. The test's end ends it.
type Proxy struct {
	Addr string

	t        testing.TB
	upstream string
	proxy    *toxiproxy.Proxy
}

// StartProxy starts a proxy to a server, on a free port.
func StartProxy(t testing.TB, s *Server) *Proxy {
	t.Helper()
	p := &Proxy{t: t, Addr: "127.0.0.1:0", upstream: s.Addr}
	p.start()
	t.Cleanup(p.Cut)
	return p
}

// start starts another proxy where the one before was. None is healed in place: to take a delay
// away, toxiproxy waits for what it delayed to be read, for ever if nobody is left to read it.
func (p *Proxy) start() {
	p.t.Helper()
	host := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p.proxy = toxiproxy.NewProxy(host, p.t.Name(), p.Addr, p.upstream)
	if err := p.proxy.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.Addr = p.proxy.Listen // from now on the same
}

// Cut ends all connections and refuses new ones, until Heal.
func (p *Proxy) Cut() { p.proxy.Stop() }

// LeadTo ends all connections, and leads new ones to another server.
func (p *Proxy) LeadTo(s *Server) {
	p.t.Helper()
	p.upstream = s.Addr
	p.Heal()
}

// Slow delays all that the server says, until Heal.
func (p *Proxy) Slow(milliseconds int) {
	p.add(fmt.Sprintf(`{"type": "latency", "attributes": {"latency": %d}}`, milliseconds))
}

// Swallow loses all that is sent, either way, on connections that stay open, until Heal: the
// half-open state that a router without memory of them makes.
func (p *Proxy) Swallow() {
	for _, stream := range []string{"upstream", "downstream"} {
		p.add(fmt.Sprintf(`{"type": "timeout", "stream": %q, "attributes": {"timeout": 0}}`, stream))
	}
}

// Deafen loses all that the server says, until Heal. What it is told arrives.
func (p *Proxy) Deafen() { p.add(`{"type": "timeout", "attributes": {"timeout": 0}}`) }

func (p *Proxy) add(toxic string) {
	p.t.Helper()
	if _, err := p.proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
		p.t.Fatal(err)
	}
}

// Heal ends all connections, and is a good way for new ones.
func (p *Proxy) Heal() {
	p.t.Helper()
	p.Cut()
	p.start()
}
