package caddyoauth

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
)

func consoleCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "console [--listen <address>]",
		Short: "Shows the console of the gateway that is running to a browser on this machine",
		Long: `
Shows the console of the gateway that is running to a browser on this machine, until it is
interrupted. It prints the address to open. Whoever has that address may look, and with
'console write' change, what you may; no other address works.

Caddy's admin endpoint refuses a browser in which somebody types its address, and has
none to type if it is a Unix socket. This command asks it as the other commands do. A
page is told apart from them all the same, and may change something only with 'console
write' in the oauth block.

It finds the admin endpoint as Caddy's own commands do. The exit status is 0 after an
interrupt, or 2 if the gateway can't be asked.`,
		Args: cobra.NoArgs,
	}
	listen := cmd.Flags().String("listen", "127.0.0.1:0", "address of this machine alone, such as 127.0.0.1:8019; port 0 is any that is free")
	flags := addAdminFlags(cmd)
	cmd.RunE = caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
		address, err := caddycmd.DetermineAdminAPIAddress(*flags.address, nil, *flags.config, *flags.adapter)
		if err != nil {
			return 2, err
		}
		if _, err := flags.send(http.MethodGet, "/oauth/", nil, nil, nil); err != nil {
			return 2, err
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		listener, err := listenHere(ctx, *listen)
		if err != nil {
			return 2, err
		}
		proxy, err := newConsoleProxy(address, listener.Addr().String())
		if err != nil {
			return 2, errors.Join(err, listener.Close())
		}
		fmt.Fprintln(cmd.OutOrStdout(), "http://"+proxy.host+proxy.prefix+consoleRoot)
		fmt.Fprintln(cmd.ErrOrStderr(), "Open this address in a browser on this machine, and give it to nobody. Ctrl-C ends it.")
		server := &http.Server{Handler: proxy, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, ErrorLog: zap.NewStdLog(zap.NewNop())}
		context.AfterFunc(ctx, func() { _ = server.Close() }) // a stream of events has no other end
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return 2, err
		}
		return 0, nil
	})
	return cmd
}

// listenHere listens where nobody from another machine can connect.
func listenHere(ctx context.Context, address string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("--listen: %w", err)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("--listen %s: it must be an address of this machine alone, such as 127.0.0.1 or [::1]; to see the console from another machine, forward a port, as 'ssh -L' does", address)
	}
	return new(net.ListenConfig).Listen(ctx, "tcp", address)
}

// consoleProxy passes on what the console's page asks. The admin endpoint decides by where a request
// comes from: the address of this machine, or a Unix socket whose file not everybody may open. All users
// of this machine can connect to this proxy, so it goes by a secret in the path.
type consoleProxy struct {
	host   string // where this listens
	prefix string // / and the secret
	*httputil.ReverseProxy
}

// newConsoleProxy makes a proxy to the admin endpoint at address, to be served at host.
func newConsoleProxy(address, host string) (*consoleProxy, error) {
	admin, err := caddy.ParseNetworkAddress(address)
	if err != nil || admin.PortRangeSize() > 1 {
		return nil, fmt.Errorf("the address of the admin endpoint, %s, can't be used: %w", address, err)
	}
	target := admin.JoinHostPort(0)
	local := admin.IsUnixNetwork() || admin.IsFdNetwork()
	if local {
		admin.Host, _, _ = strings.Cut(admin.Host, "|") // its permissions
		target = "127.0.0.1"
	}
	p := &consoleProxy{host: host, prefix: "/" + rand.Text()}
	p.ReverseProxy = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", target, target
			r.Out.URL.Path = strings.TrimPrefix(r.In.URL.Path, p.prefix)
			r.Out.URL.RawPath = strings.TrimPrefix(r.In.URL.RawPath, p.prefix)
			r.Out.Header = http.Header{"Sec-Fetch-Site": {"same-origin"}} // this is a browser, and so it is judged
			if !local {
				r.Out.Header.Set("Origin", "http://"+target)
			}
			for _, name := range []string{"Accept", "Content-Type", "If-Match", "If-None-Match", "Last-Event-Id", "User-Agent"} {
				if values := r.In.Header[name]; values != nil {
					r.Out.Header[name] = values
				}
			}
		},
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, admin.Network, admin.JoinHostPort(0))
			},
			MaxIdleConns: 8, IdleConnTimeout: time.Minute,
		},
		ModifyResponse: func(res *http.Response) error {
			for name := range res.Header {
				if strings.HasPrefix(name, "Access-Control-") {
					delete(res.Header, name)
				}
			}
			return nil
		},
		ErrorLog: zap.NewStdLog(zap.NewNop()), // of streams that end when the gateway does
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			refuseConsole(w, http.StatusBadGateway, "the gateway at "+address+" doesn't answer: "+err.Error())
		},
	}
	return p, nil
}

// ServeHTTP passes on what comes from the page, by the secret in its path.
func (p *consoleProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.EscapedPath()
	n := min(len(p.prefix), len(path))
	below := subtle.ConstantTimeCompare([]byte(path[:n]), []byte(p.prefix)) == 1
	path, oauth := strings.CutPrefix(path[n:], "/oauth/")
	below = below && oauth
	for part := range strings.SplitSeq(path, "/") {
		text, err := url.PathUnescape(part)
		below = below && err == nil && text != "." && text != ".." // no way to the rest of the admin endpoint
	}
	switch {
	case !below:
		refuseConsole(w, http.StatusNotFound, "open the address that the command has printed")
	case r.Host != p.host: // a name that somebody has made point here, or a port that was forwarded
		refuseConsole(w, http.StatusForbidden, "call this at "+p.host+", as the command has printed; to forward the port, use the same number at both ends")
	case !sameOrigin(r): // a page from elsewhere, which has learnt the secret
		refuseConsole(w, http.StatusForbidden, "a page from elsewhere can't call this")
	default:
		p.ReverseProxy.ServeHTTP(w, r)
	}
}

// refuseConsole answers as the admin endpoint does.
func refuseConsole(w http.ResponseWriter, status int, why string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": why})
}
