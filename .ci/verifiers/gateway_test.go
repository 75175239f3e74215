// Package verifiers tests that others can verify the gateway's JWTs: libraries for JOSE and OpenID
// Connect, each with its own way to keep the keys, and the client of Kafka. It is a module of its
// own, so that none of them is a dependency of ours. It needs redis-server, a C compiler, and Node with
// the packages that .ci/node installs.
package verifiers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const repositoryRoot = "../.."

// program is the gateway that is tested.
var program string

func TestMain(m *testing.M) {
	folder, err := os.MkdirTemp("", "verifiers")
	if err != nil {
		log.Fatal(err)
	}
	program = filepath.Join(folder, "caddy")
	build := exec.Command("go", "build", "-o", program, "./cmd/caddy")
	build.Dir = repositoryRoot
	if output, err := build.CombinedOutput(); err != nil {
		log.Fatalf("building the gateway: %v: %s", err, output)
	}
	status := m.Run()
	os.RemoveAll(folder)
	os.Exit(status)
}

// clients and secret are what all gateways here have.
const (
	secret  = "abc"
	clients = `
		client reader {
			secret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0
			scopes read
			default_scopes read
			audience https://api.example.com
		}
`
	audience = "https://api.example.com"
	// encryptionKey has the keys encrypted that lie in the store.
	encryptionKey = "encryption_key {env.VERIFIERS_ENCRYPTION_KEY}\n"
)

// fleet is gateways behind a balancer.
type fleet struct {
	// URL is the balancer's; the issuer is there.
	URL      string
	gateways []*gateway
}

// gateway is one process of the program.
type gateway struct {
	URL string
	// folder has all files of the process.
	folder, admin, file, log string
}

// startFleet starts gateways with these options, in which ISSUER stands for their issuer.
func startFleet(t *testing.T, size int, options string) *fleet {
	t.Helper()
	f := new(fleet)
	var next atomic.Uint64
	balancer := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			to, _ := url.Parse(f.gateways[next.Add(1)%uint64(len(f.gateways))].URL)
			r.SetURL(to)
			r.Out.Host = r.In.Host
		},
		ErrorLog: log.New(io.Discard, "", 0),
	})
	t.Cleanup(balancer.Close)
	f.URL = balancer.URL
	for range size {
		f.gateways = append(f.gateways, startGateway(t, f.configuration(options)))
	}
	return f
}

func (f *fleet) issuer() string { return f.URL + "/oauth2" }

func (f *fleet) configuration(options string) string {
	return "oauth {\n" + strings.ReplaceAll(options, "ISSUER", f.issuer()) + "\n}\n"
}

// load gives a gateway of the fleet other options.
func (f *fleet) load(t *testing.T, g *gateway, options string) {
	t.Helper()
	g.write(t, f.configuration(options))
	reload := exec.Command(program, "reload", "--config", g.file, "--adapter", "caddyfile", "--address", "unix/"+g.admin)
	if output, err := reload.CombinedOutput(); err != nil {
		t.Fatalf("reloading: %v: %s", err, output)
	}
}

// startGateway starts a process with these global options. It ends with the test.
func startGateway(t *testing.T, options string) *gateway {
	t.Helper()
	folder := t.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{URL: "http://" + listener.Addr().String(), folder: folder, admin: filepath.Join(folder, "admin"), file: filepath.Join(folder, "Caddyfile"), log: filepath.Join(folder, "log")}
	g.write(t, options)
	listener.Close()
	run := exec.Command(program, "run", "--config", g.file, "--adapter", "caddyfile")
	run.Env = []string{"HOME=" + folder, "PATH=" + os.Getenv("PATH"), "VERIFIERS_ENCRYPTION_KEY=an encryption key of 40 characters, or so"}
	var stderr bytes.Buffer
	run.Stderr = &stderr
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		run.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		run.Process.Kill()
		<-ended
	})
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		select {
		case <-ended:
			logged, _ := os.ReadFile(g.log)
			t.Fatalf("the gateway does not start: %s%s", stderr.String(), logged)
		default:
		}
		if _, err := g.fetch("/oauth2"); err == nil {
			return g
		}
	}
	t.Fatal("the gateway issues no token within 20 seconds")
	return nil
}

func (g *gateway) write(t *testing.T, options string) {
	t.Helper()
	text := "{\nadmin unix/" + g.admin + "\nskip_install_trust\nauto_https off\ngrace_period 1s\nlog {\noutput file " + g.log + "\nlevel DEBUG\n}\n" +
		options + "}\nhttp://:" + g.URL[strings.LastIndex(g.URL, ":")+1:] + " {\nbind 127.0.0.1\noauth_server\noauth_protect /x\nrespond /x in\n}\n"
	if err := os.WriteFile(g.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// fetch gets a token from a realm, which the path stands for.
func (g *gateway) fetch(realm string) (token string, err error) {
	status, body, err := g.send("POST", realm+"/access_token", "grant_type=client_credentials", func(r *http.Request) {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.SetBasicAuth("reader", secret)
	})
	if err != nil {
		return "", err
	}
	var granted struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal(body, &granted); err != nil || granted.Token == "" {
		return "", fmt.Errorf("no token: %d %s", status, body)
	}
	return granted.Token, nil
}

// introspect asks a realm about a token, for a signed answer (RFC 9701).
func (g *gateway) introspect(realm, token string) (answer string, err error) {
	status, body, err := g.send("POST", realm+"/introspect", "token="+token, func(r *http.Request) {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Accept", "application/token-introspection+jwt")
		r.SetBasicAuth("reader", secret)
	})
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("no answer: %d %s", status, body)
	}
	return string(body), err
}

// accepts asks the protected path to let a token in. It returns errRefused if the token is not good.
func (g *gateway) accepts(token string) error {
	status, body, err := g.send("GET", "/x", "", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) })
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("the gateway answers %d %q", status, body)
	}
	if status == http.StatusUnauthorized {
		return errRefused
	}
	return err
}

var errRefused = errors.New("the gateway refuses the token")

// send sends a request, and reads the answer. It tries again if the connection ends before the answer:
// a reload closes those that are idle.
func (g *gateway) send(method, path, body string, prepare func(*http.Request)) (status int, answer []byte, err error) {
	for range 3 {
		r, err := http.NewRequest(method, g.URL+path, strings.NewReader(body))
		if err != nil {
			return 0, nil, err
		}
		prepare(r)
		res, err := http.DefaultClient.Do(r)
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			continue
		}
		if err != nil {
			return 0, nil, err
		}
		defer res.Body.Close()
		answer, err = io.ReadAll(res.Body)
		return res.StatusCode, answer, err
	}
	return 0, nil, errors.New("the connection always ends before the answer")
}
