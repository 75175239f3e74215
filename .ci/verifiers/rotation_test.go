package verifiers

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// load is tokens that are fetched all the time, from all gateways of a fleet in turn. Each is also
// used at the next gateway, which must let it in.
type load struct{ tokens chan string }

// start begins to fetch. It ends with the test.
func (f *fleet) start(t *testing.T) *load {
	l := &load{make(chan string)}
	end := make(chan struct{})
	var running sync.WaitGroup
	for worker := range 4 {
		running.Go(func() {
			for i := worker; ; i++ {
				token, err := f.gateways[i%len(f.gateways)].fetch("/oauth2")
				if err == nil {
					err = f.gateways[(i+1)%len(f.gateways)].accepts(token)
				}
				if err != nil {
					t.Error(err)
				}
				select {
				case l.tokens <- token:
				case <-end:
					return
				}
			}
		})
	}
	t.Cleanup(func() {
		close(end)
		running.Wait()
	})
	return l
}

// take returns some tokens, in a bubble. At most as many as there are workers may have been fetched
// before the last call.
func (l *load) take(out outside) (tokens []string) {
	out.do(func() {
		for range 8 {
			tokens = append(tokens, <-l.tokens)
		}
	})
	return tokens
}

// kid returns which key a token names.
func kid(token string) string {
	first, _, _ := strings.Cut(token, ".")
	text, _ := base64.RawURLEncoding.DecodeString(first)
	var header struct {
		Kid string `json:"kid"`
	}
	json.Unmarshal(text, &header)
	return header.Kid
}

// kids returns the keys in a JWK set.
func kids(t *testing.T, set string) (ids []string) {
	res, err := http.Get(set)
	if err != nil {
		t.Error(err)
		return nil
	}
	defer res.Body.Close()
	var document struct{ Keys []struct{ Kid string } }
	if err := json.NewDecoder(res.Body).Decode(&document); err != nil {
		t.Error(err)
	}
	for _, key := range document.Keys {
		ids = append(ids, key.Kid)
	}
	return ids
}

// redis starts a Redis, which ends with the test, and returns its port. It saves in a folder when it is
// told to, and compresses nothing.
func redis(t *testing.T, folder string) (port string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ = net.SplitHostPort(listener.Addr().String())
	listener.Close()
	server := exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--rdbcompression", "no")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Process.Kill()
		server.Wait()
	})
	for deadline := time.Now().Add(5 * time.Second); ; {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			conn.Close()
			return port
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// makeOlder makes the keys of root older, and the fleet sees it as it sees any change in the store. It
// is how time passes for the keys.
func makeOlder(t *testing.T, port string, by time.Duration) {
	answer, err := exec.Command("redis-cli", "-p", port, "eval", older, "1", "caddy-oauth:{realm:root}:keys", strconv.Itoa(int(by.Seconds()))).CombinedOutput()
	if err != nil || strings.TrimSpace(string(answer)) != "done" {
		t.Errorf("making keys older: %v, %s", err, answer)
	}
}

const older = `
	local stored = redis.call('get', KEYS[1])
	local function before(member, at) return '"'..member..'":'..string.format('%d', tonumber(at) - tonumber(ARGV[1])) end
	local text = string.gsub(string.sub(stored, 17), '"(made)":(%d+)', before)
	redis.call('set', KEYS[1], string.sub(stored, 1, 16)..string.gsub(text, '"(from)":(%d+)', before))
	return 'done'`

// writeKey writes a private key into a file, and returns the file's name.
func writeKey(t *testing.T, file string, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err == nil {
		err = os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// The gateways of a fleet replace their key by schedule, under load, and no verifier refuses a token,
// whenever it has fetched the keys, and though a cache on the way keeps them, too.
func TestRotation(t *testing.T) {
	port := redis(t, t.TempDir())
	f := startFleet(t, 2, "issuer ISSUER\nstore redis 127.0.0.1:"+port+"\n"+encryptionKey+"token_format jwt\ntoken_lifetime 24h\nsigning {\nrotate 1h\n}\n"+clients)
	l, begin := f.start(t), time.Now()
	inBubble(t, func(t *testing.T, out outside) {
		want := issued{issuer: f.issuer(), set: f.issuer() + "/jwks", audience: audience, algorithms: []string{"ES256"}}
		time.Sleep(time.Minute) // ahead of the gateways, as tokens from the future are refused
		all := startVerifiers(t, out, want)
		const step = 30 * time.Second
		var (
			aged             time.Duration // how much older the keys were made
			signed           = make(map[string]time.Duration)
			published, first []string
		)
		for now := time.Duration(0); now < 95*time.Minute; now += step {
			out.do(func() {
				by := (now - aged - time.Since(begin)).Truncate(time.Second) // some of it has passed by itself
				aged += by
				makeOlder(t, port, by)
				published = kids(t, want.set)
				if first == nil {
					first = published
				}
			})
			time.Sleep(step)
			if now > 58*time.Minute && now < 74*time.Minute {
				all = append(all, withJWX(t, t.Context(), out, want)) // it fetches the keys each quarter of an hour
			}
			for _, token := range l.take(out) {
				if _, known := signed[kid(token)]; !known {
					signed[kid(token)] = now
					t.Logf("after %v %s signs, and the set has %v", now, kid(token), published)
				}
				wantsAll(t, all, token, want)
			}
			if t.Failed() {
				t.Fatalf("after %v", now)
			}
		}
		if len(first) != 1 || len(published) != 2 || published[0] != first[0] || len(signed) != 2 || signed[published[1]] < time.Hour {
			t.Errorf("at first %v was published, and then %v; first seen after: %v", first, published, signed)
		}
	})
}

// Keys from files are replaced as the manual says, one gateway after the other, under load. No good
// token is refused, and a key that is gone is believed nowhere once its verifier has fetched the keys
// again.
func TestRotationOfKeyFiles(t *testing.T) {
	port, folder := redis(t, t.TempDir()), t.TempDir()
	var files []string
	for _, name := range []string{"a", "b", "c"} {
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, writeKey(t, filepath.Join(folder, name), key))
	}
	a, b, c := files[0], files[1], files[2]
	options := func(files ...string) string {
		return "issuer ISSUER\nstore redis 127.0.0.1:" + port + "\n" + encryptionKey + "token_format jwt\ntoken_lifetime 24h\nsigning {\nalgorithm EdDSA\nkey_file " +
			strings.Join(files, " ") + "\n}\n" + clients
	}
	f := startFleet(t, 2, options(a))
	l := f.start(t)
	inBubble(t, func(t *testing.T, out outside) {
		want := issued{issuer: f.issuer(), set: f.issuer() + "/jwks", audience: audience, algorithms: []string{"EdDSA"}}
		time.Sleep(time.Minute)
		all := startVerifiers(t, out, want)
		check := func() (tokens []string) {
			for range 2 { // the first may be from before
				tokens = l.take(out)
				for _, token := range tokens {
					wantsAll(t, all, token, want)
				}
			}
			return tokens
		}
		roll := func(files ...string) string {
			for _, g := range f.gateways {
				out.do(func() { f.load(t, g, options(files...)) })
				check()
			}
			tokens := check()
			for range 30 {
				time.Sleep(time.Minute)
				check()
			}
			return tokens[0]
		}
		old := check()[0]
		if roll(a, b); len(all) == 0 || t.Failed() {
			t.Fatal("with two keys")
		}
		between := roll(b, a)
		if kid(between) == kid(old) {
			t.Error("the second key does not sign")
		}
		roll(b)
		roll(b, c)
		roll(c, b)
		wantsNone(t, "a token of a key that is gone", all, old)
		wantsAll(t, all, between, want)
		out.do(func() {
			for _, g := range f.gateways {
				if err := g.accepts(old); err != errRefused {
					t.Errorf("a token of a key that is gone: %v", err)
				}
				if err := g.accepts(between); err != nil {
					t.Errorf("a token of the key before: %v", err)
				}
			}
		})
	})
}

// A key that is withdrawn is gone at once from all gateways, and its tokens with it. Verifiers believe it
// until they fetch the keys again, and then accept those of the new one, all within half an hour.
func TestWithdrawnKey(t *testing.T) {
	port := redis(t, t.TempDir())
	f := startFleet(t, 2, "issuer ISSUER\nstore redis 127.0.0.1:"+port+"\n"+encryptionKey+"token_format jwt\ntoken_lifetime 24h\n"+clients)
	inBubble(t, func(t *testing.T, out outside) {
		want := issued{issuer: f.issuer(), set: f.issuer() + "/jwks", audience: audience, algorithms: []string{"ES256"}}
		fetch := func(g *gateway) (token string) {
			out.do(func() {
				var err error
				if token, err = g.fetch("/oauth2"); err != nil {
					t.Error(err)
				}
			})
			return token
		}
		time.Sleep(10 * time.Minute)
		all := startVerifiers(t, out, want)
		old := fetch(f.gateways[0])
		wantsAll(t, all, old, want)
		out.do(func() {
			for _, g := range f.gateways {
				if err := g.accepts(old); err != nil {
					t.Errorf("before: %v", err)
				}
			}
			withdraw := exec.Command(program, "oauth", "keys", "rotate", "--withdraw", "--address", "unix/"+f.gateways[0].admin)
			if output, err := withdraw.CombinedOutput(); err != nil {
				t.Errorf("withdrawing: %v: %s", err, output)
			}
			if err := f.gateways[0].accepts(old); err != errRefused {
				t.Errorf("at the gateway that has withdrawn its key, a token: %v", err)
			}
			for deadline := time.Now().Add(10 * time.Second); ; {
				err := f.gateways[1].accepts(old)
				if err == errRefused {
					break
				}
				if err != nil || time.Now().After(deadline) {
					t.Errorf("at the other gateway, a token of a key that was withdrawn: %v", err)
					break
				}
			}
			if set := kids(t, want.set); len(set) != 1 || set[0] == kid(old) {
				t.Errorf("the keys are %v", set)
			}
		})
		time.Sleep(30 * time.Minute)
		for _, g := range f.gateways {
			token := fetch(g)
			if kid(token) == kid(old) {
				t.Error("a key signs that was withdrawn")
			}
			wantsAll(t, all, token, want)
		}
		wantsNone(t, "a token of a key that was withdrawn", all, old)
	})
}

// While the algorithm changes, keys of several kinds are in one set. Everybody reads it, and accepts the
// tokens of before and after.
func TestAlgorithmChanges(t *testing.T) {
	port := redis(t, t.TempDir())
	options := func(algorithm string) string {
		return "issuer ISSUER\nstore redis 127.0.0.1:" + port + "\n" + encryptionKey + "token_format jwt\ntoken_lifetime 24h\nsigning {\nalgorithm " + algorithm + "\n}\n" + clients
	}
	f := startFleet(t, 1, options("ES256"))
	g := f.gateways[0]
	tokens := make(map[string]string) // by the keys that signed them
	fetch := func() (id string) {
		t.Helper()
		token, err := g.fetch("/oauth2")
		if err != nil {
			t.Fatal(err)
		}
		tokens[kid(token)] = token
		return kid(token)
	}
	last, set := fetch(), f.issuer()+"/jwks"
	for published, algorithm := range []string{"EdDSA", "RS256", "PS256"} {
		f.load(t, g, options(algorithm))
		for deadline := time.Now().Add(20 * time.Second); len(kids(t, set)) < published+2; {
			if time.Now().After(deadline) {
				t.Fatalf("there is no key for %s", algorithm)
			}
		}
		if fetch() != last {
			t.Errorf("a key for %s signs at once", algorithm)
		}
		makeOlder(t, port, 31*time.Minute)
		for deadline := time.Now().Add(20 * time.Second); fetch() == last; {
			if time.Now().After(deadline) {
				t.Fatalf("no key for %s signs", algorithm)
			}
		}
		last = fetch()
	}
	if len(tokens) != 4 {
		t.Errorf("there are tokens of %d keys", len(tokens))
	}
	inBubble(t, func(t *testing.T, out outside) {
		want := issued{issuer: f.issuer(), set: set, audience: audience, algorithms: algorithms}
		all := startVerifiers(t, out, want)
		for _, token := range tokens {
			wantsAll(t, all, token, want)
		}
	})
}
