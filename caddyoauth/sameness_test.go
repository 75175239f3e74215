package caddyoauth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Whatever is wrong with credentials of a method, nobody is told, by the answer or by its time. The
// answers are compared by TestFailuresOfAllMethodsLookAlike, the times by
// BenchmarkFailedAuthentications.

// withThreeKeys adds two keys to those of the client.
func (c *keyClient) withThreeKeys() *keyClient {
	c.t.Helper()
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: c.key.Public(), KeyID: "1"}}}
	for _, id := range []string{"2", "3"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			c.t.Fatal(err)
		}
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: key.Public(), KeyID: id})
	}
	text, err := json.Marshal(set)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(c.file, text, 0o600); err != nil {
		c.t.Fatal(err)
	}
	return c
}

// failure is one way to fail. Each call makes another request of the kind.
type failure struct {
	name string
	make func() (authorization, form string)
}

// failures starts a gateway, with more options of root, and returns ways to fail there, by the method that
// they try.
func failures(t testing.TB, more ...string) (*gateway, map[string][]failure) {
	signer, off, three := newKeyClient(t, "signer"), newKeyClient(t, "signer-off"), newKeyClient(t, "three").withThreeKeys()
	stranger, secretive := newKeyClient(t, "stranger"), newKeyClient(t, "quick")
	client := func(id, lines string) string {
		return "client " + id + " {\n" + lines + "\nscopes read\ndefault_scopes read\n}\n"
	}
	past := " until 2020-01-01T00:00:00Z"
	options := "store memory\n" + issuerOption + noFailureLimit + strings.Join(more, "\n") + "\n" + signer.lines() + three.lines() + strings.Replace(off.lines(), "{\n", "{\ndisabled\n", 1)
	main := "subject " + mainOfIt
	provider, double := newPlatform(t, actions), newPlatform(t, actions)
	double.kid = provider.kid
	options += provider.federated("ci", main) + provider.federated("long", "subject repo:long/*", "claim environment production") + provider.federated("twin", "subject repo:twin/app", "claim environment production") +
		provider.federated("twins", "subject repo:twin/*") + strings.Replace(provider.federated("ci-off", "subject repo:off/app"), "scopes read\n", "disabled\nscopes read\n", 1)
	for _, realm := range []string{"quick", "slow"} {
		hash := func(secret string) string { return "secret_hash " + hashOf(secret) }
		if realm == "slow" {
			options += "realm slow {\n"
			hash = func(secret string) string { return "secret_hash " + slowHash(secret) }
		}
		options += client("quick", "secret_hash "+hashOf("right")) + client("two", hash("right")+"\n"+hash("second")) +
			client("off", hash("right")+"\ndisabled") + client("expired", hash("right")+past) + client("post", hash("right")+"\nauth client_secret_post")
		if realm == "slow" {
			options += client("slow", hash("right")) + "}\n"
		}
	}
	g := startCaddyfile(t, withGlobals("log {\noutput discard\n}", options, gatewaySite))
	for _, c := range []*keyClient{signer, three} {
		waitUntil(t, "the client's keys are read", func() bool { return g.ask(c.assert(nil, nil)).StatusCode == 200 })
	}
	sent := func(id, secret string) failure {
		return failure{"", func() (string, string) { return basic(id, secret), "" }}
	}
	named := func(name string, f failure) failure { f.name = name; return f }
	secrets := []failure{
		named("unknown client", sent("nobody", "wrong")),
		named("wrong secret", sent("quick", "wrong")),
		named("wrong secret of a client with two", sent("two", "wrong")),
		named("disabled client", sent("off", "right")),
		named("expired secret", sent("expired", "right")),
		named("another method's client", sent("post", "right")),
		named("a key's client", sent("signer", "wrong")),
		named("empty secret", sent("quick", "")),
		named("unknown client, empty secret", sent("nobody", "")),
	}
	long := strings.Repeat("s", 10<<10)
	assertion := func(name string, c *keyClient, claims map[string]any, change func(string) string) failure {
		if claims == nil {
			claims = map[string]any{}
		}
		return failure{name, func() (string, string) {
			text := c.assert(claims, nil)
			if change != nil {
				text = change(text)
			}
			return "", "&client_assertion=" + text + "&client_assertion_type=" + url.QueryEscape(assertionType)
		}}
	}
	workload := func(name string, p *platform, id, subject string, claims map[string]any, change func(string) string) failure {
		return failure{name, func() (string, string) {
			text := p.token(subject, claims)
			if change != nil {
				text = change(text)
			}
			form := "&client_assertion=" + text + "&client_assertion_type=" + url.QueryEscape(assertionType)
			if id != "" {
				form += "&client_id=" + id
			}
			return "", form
		}}
	}
	stolen := func(id string) map[string]any { return map[string]any{"iss": id, "sub": id} }
	return g, map[string][]failure{
		"secrets, all quick": secrets,
		"secrets, some slow": append(slices.Clone(secrets[:6:6]), named("wrong slow secret", sent("slow", "wrong")), named("empty secret", sent("slow", ""))),
		"secrets of 10 KiB":  {named("unknown client", sent("nobody", long)), named("wrong secret", sent("quick", long)), named("right secret and more", sent("quick", "right"+long[5:]))},
		"tokens of a platform": {
			workload("unknown client", provider, "nobody", mainOfIt, nil, nil),
			workload("a secret's client", provider, "quick", mainOfIt, nil, nil),
			workload("a key's client", provider, "signer", mainOfIt, nil, nil),
			workload("another client", provider, "long", mainOfIt, nil, nil),
			workload("disabled client", provider, "ci-off", "repo:off/app", nil, nil),
			workload("disabled client, not named", provider, "", "repo:off/app", nil, nil),
			workload("nobody's subject", provider, "", "repo:evil/app", nil, nil),
			workload("two clients", provider, "", "repo:twin/app", map[string]any{"environment": "production"}, nil),
			workload("another claim", provider, "long", "repo:long/app", nil, nil),
			workload("another audience", provider, "ci", mainOfIt, map[string]any{"aud": "https://other.example.com"}, nil),
			workload("too long", provider, "ci", mainOfIt, map[string]any{"exp": time.Now().Add(2 * time.Hour).Unix()}, nil),
			workload("expired", provider, "ci", mainOfIt, map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}, nil),
			workload("another's key", double, "ci", mainOfIt, nil, nil),
			workload("another's key, unknown client", double, "nobody", mainOfIt, nil, nil),
			workload("unknown platform", provider, "ci", mainOfIt, map[string]any{"iss": "https://nobody.example.com"}, nil),
			workload("unknown platform and client", provider, "", mainOfIt, map[string]any{"iss": "https://nobody.example.com"}, nil),
			workload("spoiled", provider, "ci", mainOfIt, nil, spoiled),
		},
		"assertions": {
			assertion("unknown client", stranger, nil, nil),
			assertion("a secret's client", secretive, nil, nil),
			assertion("disabled client", off, nil, nil),
			assertion("another's key", stranger, stolen("signer"), nil),
			assertion("another's key, of a client with three", stranger, stolen("three"), nil),
			assertion("spoiled", signer, nil, spoiled),
			assertion("for another server", signer, map[string]any{"aud": "https://other.example.com"}, nil),
			assertion("expired", signer, map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}, nil),
			assertion("about another client", signer, map[string]any{"sub": "three"}, nil),
			assertion("without an ID", signer, map[string]any{"jti": nil}, nil),
			{"unknown kid", func() (string, string) { return "", signedWith(t, stranger.key, "unknown", "signer") }},
			{"no kid", func() (string, string) { return "", signedWith(t, stranger.key, "", "signer") }},
			{"no kid, of a client with three keys", func() (string, string) { return "", signedWith(t, stranger.key, "", "three") }},
			{"no kid, unknown client", func() (string, string) { return "", signedWith(t, stranger.key, "", "stranger") }},
		},
	}
}

// signedWith returns a form with an assertion in the name of a client. kid may be empty.
func signedWith(t testing.TB, key *ecdsa.PrivateKey, kid, id string) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	jws, err := signer.Sign(fmt.Appendf(nil, `{"iss":%q,"sub":%q,"aud":"https://auth.example.com/oauth2","exp":%d,"iat":%d,"jti":%q}`, id, id, now.Add(time.Minute).Unix(), now.Unix(), rand.Text()))
	if err != nil {
		t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return "&client_assertion=" + text + "&client_assertion_type=" + url.QueryEscape(assertionType)
}

// Whatever makes an authentication fail, by whatever method, the answer is the same, byte for byte.
func TestFailuresOfAllMethodsLookAlike(t *testing.T) {
	g, groups := failures(t)
	want := make(map[string]string) // by the realm's paths
	for name, kinds := range groups {
		base := "/oauth2"
		if strings.Contains(name, "slow") {
			base += "/realms/root/realms/slow"
		}
		for _, path := range []string{base + "/access_token", base + "/introspect", base + "/revoke"} {
			for _, kind := range kinds {
				authorization, form := kind.make()
				got := rawAnswer(t, g, path, authorization, "grant_type=client_credentials&token=x"+form)
				if want[base] == "" {
					want[base] = got
				}
				if got != want[base] || !strings.HasPrefix(got, "HTTP/1.1 401 ") {
					t.Errorf("%s, %s at %s: the answer\n%s\ndiffers from others\n%s", name, kind.name, path, got, want[base])
				}
			}
		}
	}
}

// In realms that answer as ForgeRock AM, the answer goes by where the credentials are, and by whether an
// assertion says itself that its time is over.
func TestFailuresOfAllMethodsLookAlikeUnderAMCompat(t *testing.T) {
	g, groups := failures(t, "am_compat")
	want := make(map[string]string) // by the realm's paths, and by what may be told
	for name, kinds := range groups {
		base := "/oauth2"
		if strings.Contains(name, "slow") {
			base += "/realms/root/realms/slow"
		}
		for _, path := range []string{base + "/access_token", base + "/introspect", base + "/token/revoke"} {
			for _, kind := range kinds {
				told, begin := base+" "+`"Client authentication failed"`, "HTTP/1.1 401 "
				if !strings.HasPrefix(name, "secrets") {
					told, begin = base+" "+`"JWT is not valid"`, "HTTP/1.1 400 "
					if strings.Contains(kind.name, "expired") {
						told = base + " " + `"JWT has expired"`
					}
				}
				authorization, form := kind.make()
				got := rawAnswer(t, g, path, authorization, "grant_type=client_credentials&token=x"+form)
				if want[told] == "" {
					want[told] = got
				}
				_, text, _ := strings.Cut(told, " ")
				if got != want[told] || !strings.HasPrefix(got, begin) || !strings.Contains(got, text) {
					t.Errorf("%s, %s at %s: the answer\n%s\ndiffers from others\n%s", name, kind.name, path, got, want[told])
				}
			}
		}
	}
}

// BenchmarkFailedAuthentications measures whether the time of a failure tells what was wrong. It
// prints, for each way to fail, the median of its times in microseconds and the interval that it is in
// with 95 % probability. The ways of a method take turns, in another order each time, so that what else
// happens on the machine meets all of them. Run it with -benchtime 400x or more.
func BenchmarkFailedAuthentications(b *testing.B) {
	for _, callers := range []int{1, 32} {
		g, groups := failures(b)
		for _, name := range slices.Sorted(maps.Keys(groups)) {
			b.Run(fmt.Sprintf("%s/%d at once", name, callers), func(b *testing.B) {
				measureFailures(b, g, name, groups[name], callers)
			})
		}
	}
}

func measureFailures(b *testing.B, g *gateway, name string, kinds []failure, callers int) {
	path := "/oauth2/access_token"
	if strings.Contains(name, "slow") {
		path = "/oauth2/realms/root/realms/slow/access_token"
	}
	times := make([][]float64, len(kinds)) // microseconds
	var mu sync.Mutex
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for range max(b.N/callers, 1) {
				for _, k := range mathrand.Perm(len(kinds)) {
					authorization, form := kinds[k].make()
					r := g.request("POST", path, "grant_type=client_credentials"+form, "Content-Type", "application/x-www-form-urlencoded")
					if authorization != "" {
						r.Header.Set("Authorization", authorization)
					}
					begin := time.Now()
					res, err := g.Client.Do(r)
					if err != nil {
						b.Error(err)
						return
					}
					io.Copy(io.Discard, res.Body)
					res.Body.Close()
					took := time.Since(begin)
					if res.StatusCode != http.StatusUnauthorized {
						b.Errorf("%s: %d", kinds[k].name, res.StatusCode)
					}
					mu.Lock()
					times[k] = append(times[k], float64(took)/float64(time.Microsecond))
					mu.Unlock()
				}
			}
		})
	}
	all.Wait()
	if b.Failed() || len(times[0]) < 50 { // a benchmark is first tried with one round
		return
	}
	var lows, highs, medians []float64
	fmt.Printf("%s, %d at once:\n", name, callers)
	for k, kind := range kinds {
		slices.Sort(times[k])
		n := len(times[k])
		half := 0.98 * math.Sqrt(float64(n))
		at := func(rank float64) float64 { return times[k][min(max(int(rank), 0), n-1)] }
		low, median, high := at(float64(n)/2-half), at(float64(n)/2), at(float64(n)/2+half)
		lows, highs, medians = append(lows, low), append(highs, high), append(medians, median)
		fmt.Printf("  %-40s %9.0f  [%.0f, %.0f]\n", kind.name, median, low, high)
	}
	b.ReportMetric((slices.Max(medians)/slices.Min(medians)-1)*100, "%spread")
	apart := 0.0
	if slices.Max(lows) > slices.Min(highs) {
		apart = (slices.Max(lows)/slices.Min(highs) - 1) * 100 // between the intervals that are farthest apart
	}
	b.ReportMetric(apart, "%apart")
}
