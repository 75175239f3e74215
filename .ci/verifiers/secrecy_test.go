package verifiers

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// privateKeys is how PKCS #8 begins, behind the length, for each kind of key. Public keys have
// nothing like it.
var privateKeys = map[string][]byte{
	"an EC key":      {2, 1, 0, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1},
	"an Ed25519 key": {2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70},
	"an RSA key":     {2, 1, 0, 0x30, 0x0d, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1},
}

// spellings returns the texts that data may have, by itself and in the middle of other data.
func spellings(data []byte) []string {
	all := []string{string(data), hex.EncodeToString(data), strings.ToUpper(hex.EncodeToString(data)), strings.Trim(strings.ReplaceAll(fmt.Sprint(data), " ", ","), "[]")}
	for before := range 3 {
		text := base64.StdEncoding.EncodeToString(append(make([]byte, before), data[:len(data)-(len(data)+before)%3]...))
		if before > 0 {
			text = text[before+1:] // the first characters depend on what is before
		}
		all = append(all, text, strings.NewReplacer("+", "-", "/", "_").Replace(text))
	}
	return all
}

// privateIn returns what a text tells of private keys: any, or these.
func privateIn(text string, known map[string][]byte) (found []string) {
	for _, word := range []string{"PRIVATE KEY", `"d":`, `"d\":`} {
		if strings.Contains(text, word) {
			found = append(found, word)
		}
	}
	for _, all := range []map[string][]byte{privateKeys, known} {
		for name, data := range all {
			for _, spelling := range spellings(data) {
				if strings.Contains(text, spelling) {
					found = append(found, name)
					break
				}
			}
		}
	}
	return found
}

// everywhere returns all that a gateway has written or tells: its files, its configuration, the
// documents that it serves.
func (g *gateway) everywhere(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.Walk(g.folder, func(path string, info os.FileInfo, err error) error {
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		all[filepath.Base(path)] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	admin := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", g.admin)
	}}}
	get := func(client *http.Client, target string) {
		t.Helper()
		res, err := client.Get(target)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != 200 || len(text) == 0 {
			t.Fatalf("%s: %d %s, %v", target, res.StatusCode, text, err)
		}
		all[target] = string(text)
	}
	get(admin, "http://localhost/config/")
	get(admin, "http://localhost/metrics")
	get(http.DefaultClient, g.URL+"/oauth2/jwks")
	get(http.DefaultClient, g.URL+"/.well-known/oauth-authorization-server/oauth2")
	return all
}

// No private key can be read where the gateway leaves anything: not one that it has made, as there is an
// encryption key, and not one from a file, in any case.
func TestPrivateKeysStayPrivate(t *testing.T) {
	folder := t.TempDir()
	_, ed, _ := ed25519.GenerateKey(nil)
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	big, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecSecret, err := ec.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	known := map[string][]byte{
		"the file for EdDSA": ed.Seed(), "the file for ES256": ecSecret, "the file for RS256, d": big.D.Bytes(), "the file for RS256, p": big.Primes[0].Bytes(),
		"the encryption key": []byte("an encryption key of 40 characters, or so"),
	}
	files := "realm files-ed {\nsigning {\nalgorithm EdDSA\nkey_file " + writeKey(t, filepath.Join(folder, "ed"), ed) + "\n}\n" + clients + "}\n" +
		"realm files-ec {\nsigning {\nalgorithm ES256\nkey_file " + writeKey(t, filepath.Join(folder, "ec"), ec) + "\n}\n" + clients + "}\n" +
		"realm files-rsa {\nsigning {\nalgorithm RS256\nkey_file " + writeKey(t, filepath.Join(folder, "rsa"), big) + "\n}\n" + clients + "}\n"
	if found := privateIn(string(must(os.ReadFile(filepath.Join(folder, "ed")))), known); len(found) < 3 {
		t.Fatalf("in a file with a key, all that is found is %v", found)
	}

	store := filepath.Join(t.TempDir(), "tokens.db")
	saved := t.TempDir()
	port := redis(t, saved)
	for name, c := range map[string]struct {
		options string
		store   string
		found   int // how many kinds of keys can be read in the store
	}{
		"bbolt":                            {"store bbolt " + store + "\n" + encryptionKey, store, 0},
		"redis":                            {"store redis 127.0.0.1:" + port + "\n" + encryptionKey, filepath.Join(saved, "dump.rdb"), 0},
		"bbolt, without an encryption key": {"store bbolt " + store + "2\n", store + "2", 3},
	} {
		t.Run(name, func(t *testing.T) {
			f := startFleet(t, 1, c.options+realms()+files)
			g := f.gateways[0]
			for _, realm := range []string{"es256", "eddsa", "rs256", "ps256", "files-ed", "files-ec", "files-rsa"} {
				token, err := g.fetch("/oauth2/realms/root/realms/" + realm)
				if err != nil {
					t.Fatal(err)
				}
				g.accepts(token + "x") // refused, with a cause in the log
			}
			f.load(t, g, c.options+realms()+files+"# another\n")
			all := g.everywhere(t)
			for _, file := range []string{"Caddyfile", "log", "autosave.json"} {
				if len(all[file]) == 0 {
					t.Errorf("there is no %s: %d", file, len(all))
				}
			}
			for where, text := range all {
				if found := privateIn(text, known); len(found) > 0 {
					t.Errorf("%s has %v", where, found)
				}
			}
			if strings.HasPrefix(name, "redis") {
				if answer, err := exec.Command("redis-cli", "-p", port, "save").CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, answer)
				}
			}
			text := string(must(os.ReadFile(c.store)))
			if !strings.Contains(text, `"sign":[{`) {
				t.Error("the store has no keys where this test looks for them")
			}
			if found := privateIn(text, known); len(found) != c.found {
				t.Errorf("in the store there is %v", found)
			}
		})
	}
}

func must(text []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return text
}
