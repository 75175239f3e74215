package caddyoauth_test

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyoauth/gateway/caddyoauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
	"github.com/caddyoauth/gateway/introspect"
)

const (
	dpopOrigin = "https://api.example.com"
	dpopSite   = "oauth_server\noauth_protect {\ndpop {\norigin " + dpopOrigin + "\n}\n}\nreverse_proxy BACKEND"
)

// showing returns a GET with a token by the scheme DPoP, and proofs.
func (g *gateway) showing(path, token string, proofs ...string) *http.Request {
	g.t.Helper()
	r := g.request("GET", path, "", "Authorization", "DPoP "+token)
	r.Header["Dpop"] = proofs
	return r
}

// challenges returns what an answer challenges its caller to.
func (a answer) challenges() string { return strings.Join(a.Header["Www-Authenticate"], " | ") }

const dpopAlgs = `algs="RS256 PS256 ES256 EdDSA Ed25519"`

// A token that is bound to a key passes with a proof by that key for this very request, once, wherever and
// in whatever format it is kept, and however often it is in the cache.
func TestDPoPAtRoutes(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			g := startGateway(t, v.options(t)+"dpop {\nnonce\n}\nissuer "+dpopIssuer+"\n"+testClients, dpopSite)
			p, thief := newProver(t), newProver(t)
			token, bearer := g.boundToken(p, dpopIssuer, "reader"), g.token("reader")
			nonce := ""
			ask := func(by *prover, token string, changes map[string]any) answer {
				t.Helper()
				all := withNonce(nonce)
				if all == nil {
					all = make(map[string]any)
				}
				maps.Copy(all, changes)
				return g.patiently(func() answer {
					return g.do(g.showing("/x", token, by.proof("GET", dpopOrigin+"/x", token, all)))
				})
			}
			a := ask(p, token, nil)
			if nonce = a.Header.Get("DPoP-Nonce"); a.StatusCode != 401 || nonce == "" || !strings.HasPrefix(a.challenges(), `DPoP realm="root", error="use_dpop_nonce"`) || a.Header.Get("Cache-Control") != "no-store" {
				t.Fatalf("without a nonce: %d %v", a.StatusCode, a.Header)
			}
			for round := range 2 { // the second is warm
				if a := ask(p, token, nil); a.StatusCode != 200 || a.Body != "backend" {
					t.Fatalf("round %d: %d %q", round, a.StatusCode, a.challenges())
				}
				got := g.Backend.last(t).Header
				if got["Authorization"] != nil || got["Dpop"] != nil || got.Get("X-OAuth-Client-Id") != "reader" {
					t.Errorf("round %d: the backend got %v", round, got)
				}
				if a := g.get("/x", token); a.StatusCode != 401 || a.challenges() != `Bearer realm="root", error="invalid_token", error_description="the token is not valid here" | DPoP realm="root", `+dpopAlgs {
					t.Errorf("round %d: as a bearer token: %d %s", round, a.StatusCode, a.challenges())
				}
				if a := ask(thief, token, nil); a.StatusCode != 401 {
					t.Errorf("round %d: with the proof of another key: %d", round, a.StatusCode)
				}
				if a := ask(p, bearer, nil); a.StatusCode != 401 || !strings.HasPrefix(a.challenges(), `DPoP realm="root", error="invalid_token"`) {
					t.Errorf("round %d: a bearer token by DPoP: %d %s", round, a.StatusCode, a.challenges())
				}
				if a := g.get("/x", bearer); a.StatusCode != 200 {
					t.Errorf("round %d: a bearer token: %d", round, a.StatusCode)
				}
			}
			g.revoke("reader", token)
			if a := ask(p, token, nil); a.StatusCode != 401 || a.Header.Get("DPoP-Nonce") != "" {
				t.Errorf("revoked: %d", a.StatusCode)
			}
		})
	}
}

// Each check has its cause, and the caller learns nothing of it.
func TestDPoPProofsThatAreRefused(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	site := "oauth_server\nhandle_path /stripped/* {\noauth_protect {\ndpop required {\norigin https://other.example.com " + dpopOrigin + "/\n}\n}\nreverse_proxy BACKEND\n}\n" +
		"handle /strict/* {\noauth_protect {\nresource https://api.example.com/strict\ndpop required\non GET {\nscopes read\n}\n}\nreverse_proxy BACKEND\n}\n" +
		"handle /resource/* {\noauth_protect {\nresource https://api.example.com:443/resource\n}\nreverse_proxy BACKEND\n}\n" +
		"handle {\noauth_protect {\ndpop {\norigin " + dpopOrigin + "\n}\non POST {\ndpop required\n}\non DELETE {\nscopes write\n}\n}\nreverse_proxy BACKEND\n}"
	g := startCaddyfile(t, logTo(log, caddyfileOf("store memory\ndpop\nissuer "+dpopIssuer+"\n"+testClients, site)))
	p := newProver(t)
	token, bearer := g.boundToken(p, dpopIssuer, "reader"), g.token("reader")
	iat := func() map[string]any { return map[string]any{"iat": time.Now().Unix() + 10} } // younger than the gateway
	proof := func(method, url string, changes map[string]any) string {
		all := iat()
		maps.Copy(all, changes)
		return p.proof(method, url, token, all)
	}
	waitUntil(t, "a proof can be younger than the gateway", func() bool {
		return g.do(g.showing("/x", token, proof("GET", dpopOrigin+"/x", nil))).StatusCode == 200
	})
	document := g.request("GET", "/.well-known/oauth-protected-resource/resource", "")
	document.Host = "api.example.com"
	if said := g.do(document).json(t); fmt.Sprint(said["dpop_signing_alg_values_supported"]) != "[RS256 PS256 ES256 EdDSA Ed25519]" || said["dpop_bound_access_tokens_required"] != nil {
		t.Errorf("the document of the resource: %v", said)
	}
	document = g.request("GET", "/.well-known/oauth-protected-resource/strict", "")
	document.Host = "api.example.com"
	if said := g.do(document).json(t); said["dpop_bound_access_tokens_required"] != true {
		t.Errorf("the document of the strict resource: %v", said)
	}
	used := proof("GET", dpopOrigin+"/x", nil)
	if a := g.do(g.showing("/x", token, used)); a.StatusCode != 200 || a.Header.Get("DPoP-Nonce") != "" {
		t.Fatalf("%d %v", a.StatusCode, a.Header)
	}
	at := func(changes map[string]any) []string { return []string{proof("GET", dpopOrigin+"/x", changes)} }
	get := func(path string, proofs ...string) *http.Request { return g.showing(path, token, proofs...) }
	const invalid, noToken = `DPoP realm="root", error="invalid_dpop_proof", error_description="the DPoP proof is not valid here"`, `DPoP realm="root", error="invalid_token", error_description="the token is not valid here"`
	with := func(challenge string) string { return challenge + ", " + dpopAlgs + ` | Bearer realm="root"` }
	strict := func(method, path, scheme, token string, proofs ...string) *http.Request {
		r := g.request(method, path, "", "Authorization", scheme+" "+token)
		r.Header["Dpop"] = proofs
		return r
	}
	// Of one cause there are no more than the log writes in a second.
	for what, c := range map[string]struct {
		request            *http.Request
		status             int
		cause, reason, say string
	}{
		"no proof":                    {get("/x"), 401, "dpop_missing", "", with(invalid)},
		"two":                         {get("/x", append(at(nil), at(nil)...)...), 401, "dpop_invalid", "", with(invalid)},
		"used":                        {get("/x", used), 401, "dpop_replayed", "", with(invalid)},
		"no ath":                      {get("/x", at(map[string]any{"ath": nil})...), 401, "dpop_invalid", "proof_token", with(invalid)},
		"ath of another token":        {get("/x", p.proof("GET", dpopOrigin+"/x", bearer, iat())), 401, "dpop_invalid", "proof_token", with(invalid)},
		"another method":              {get("/x", at(map[string]any{"htm": "POST"})...), 401, "dpop_invalid", "proof_method", with(invalid)},
		"another path":                {get("/x", at(map[string]any{"htu": dpopOrigin + "/y"})...), 401, "dpop_invalid", "proof_url", with(invalid)},
		"another host":                {get("/x", at(map[string]any{"htu": "https://evil.example/x"})...), 401, "dpop_invalid", "proof_url", with(invalid)},
		"the address that was called": {get("/x", at(map[string]any{"htu": g.URL + "/x"})...), 401, "dpop_invalid", "proof_url", with(invalid)},
		"plain HTTP":                  {get("/x", at(map[string]any{"htu": "http://api.example.com/x"})...), 401, "dpop_invalid", "proof_url", with(invalid)},
		"old":                         {get("/x", at(map[string]any{"iat": time.Now().Unix() - 61})...), 401, "dpop_invalid", "expired", with(invalid)},
		"from before the start":       {get("/x", at(map[string]any{"iat": time.Now().Unix() - 30})...), 401, "", "", with(`DPoP realm="root", error="use_dpop_nonce", error_description="the DPoP proof needs the nonce that comes with this answer"`)},
		"of another key":              {get("/x", newProver(t).proof("GET", dpopOrigin+"/x", token, iat())), 401, "binding", "", with(noToken)},
		"for no good token":           {strict("GET", "/x", "DPoP", spoiled(token), "x"), 401, "forged", "", with(noToken)},
		"for a bearer token":          {strict("GET", "/x", "DPoP", bearer, "x"), 401, "unbound", "", with(noToken)},
		"as a bearer token":           {strict("GET", "/x", "Bearer", token, at(nil)...), 401, "binding", "", `Bearer realm="root", error="invalid_token", error_description="the token is not valid here" | DPoP realm="root", ` + dpopAlgs},
		"no token":                    {g.request("GET", "/x", ""), 401, "missing", "", `Bearer realm="root" | DPoP realm="root", ` + dpopAlgs},
		"half a token":                {strict("GET", "/x", "DPoP", ""), 400, "malformed_authorization", "", ""},
		"two tokens":                  {strict("GET", "/x", "DPoP", "a, b"), 400, "malformed_authorization", "", ""},
		"a lack of scopes":            {strict("DELETE", "/x", "DPoP", token, proof("DELETE", dpopOrigin+"/x", nil)), 403, "scope", "", with(`DPoP realm="root", error="insufficient_scope", error_description="the token lacks a scope", scope="write"`)},
		"a bearer token where a rule by method wants more": {strict("POST", "/x", "Bearer", bearer), 401, "unbound", "", noToken + ", " + dpopAlgs},
		"a bearer token where the route wants more":        {strict("GET", "/stripped/x", "Bearer", bearer), 401, "unbound", "", noToken + ", " + dpopAlgs},
		"nothing where the route wants more":               {g.request("GET", "/stripped/x", ""), 401, "missing", "", `DPoP realm="root", ` + dpopAlgs},
		"the path without its prefix":                      {get("/stripped/x", at(nil)...), 401, "dpop_invalid", "proof_url", invalid + ", " + dpopAlgs},

		"another spelling":          {get("/x?q=1", at(map[string]any{"htu": "HTTPS://API.example.com:443/%78?a#b"})...), 200, "", "", ""},
		"a scheme in small letters": {strict("GET", "/x", "dpop", token, at(nil)...), 200, "", "", ""},
		"the path as it came":       {get("/stripped/x", proof("GET", dpopOrigin+"/stripped/x", nil)), 200, "", "", ""},
		"the second origin's path":  {get("/stripped/x", proof("GET", "https://other.example.com/stripped/x", nil)), 200, "", "", ""},
		"the origin of a resource":  {get("/resource/x", proof("GET", dpopOrigin+"/resource/x", nil)), 200, "", "", ""},
		"a rule by method":          {strict("POST", "/x", "DPoP", token, proof("POST", dpopOrigin+"/x", nil)), 200, "", "", ""},
	} {
		before := len(eventsIn(t, log, "request_refused"))
		c.request.Host = "evil.example"
		a := g.do(c.request)
		events := eventsIn(t, log, "request_refused")[before:]
		var cause, reason any
		if len(events) > 0 {
			cause, reason = events[len(events)-1]["cause"], events[len(events)-1]["reason"]
		}
		if a.StatusCode != c.status || c.cause != "" && cause != c.cause || c.reason != "" && reason != c.reason || c.reason == "" && reason != nil {
			t.Errorf("%s: %d, cause %v, reason %v", what, a.StatusCode, cause, reason)
		}
		if c.say != "" && a.challenges() != c.say {
			t.Errorf("%s: %s\nwant %s", what, a.challenges(), c.say)
		}
		if (a.Header.Get("DPoP-Nonce") != "") != strings.Contains(c.say, "use_dpop_nonce") {
			t.Errorf("%s: %v", what, a.Header)
		}
	}
	// What is wrong with a request uses up no proof.
	spare := proof("DELETE", dpopOrigin+"/x", nil)
	for range 2 {
		if a := g.do(strict("DELETE", "/x", "DPoP", token, spare)); a.StatusCode != 403 {
			t.Errorf("%d %s", a.StatusCode, a.challenges())
		}
	}
}

// remembersLong has a Redis that has run for a moment say that it has always known which proofs were used.
func remembersLong(redis *redistest.Server) { redis.CLI("set", "caddy-oauth:proofs-since", "0") }

// A proof passes once in a whole fleet, at routes and at the token endpoint, and a nonce of one gateway is
// good at the other. Of many requests at once, one passes. If Redis is away, nobody can tell.
func TestDPoPInAFleet(t *testing.T) {
	redis := redistest.Start(t)
	for _, nonce := range []bool{false, true} {
		remembersLong(redis)
		config := at(redis.Addr) + "issuer " + dpopIssuer + "\ndpop {\n" + map[bool]string{true: "nonce\n"}[nonce] + "}\n" + testClients
		here := startGateway(t, config, dpopSite)
		cmd := gatewayProcess(config)
		cmd.Env = append(cmd.Env, "GATEWAY_TEST_SITE="+strings.Replace(dpopSite, "reverse_proxy BACKEND", "respond ok", 1))
		there, kill := runGatewayProcess(t, cmd)
		p := newProver(t)
		token := here.boundToken(p, dpopIssuer, "reader")
		var known map[string]any
		if a := here.do(here.showing("/x", token, p.proof("GET", dpopOrigin+"/x", token, nil))); (a.StatusCode == 200) == nonce {
			t.Fatalf("nonce %t: without one: %d %s", nonce, a.StatusCode, a.challenges())
		} else if nonce {
			known = withNonce(a.Header.Get("DPoP-Nonce"))
		}
		for complete, round := 0, 0; complete < 5; round++ {
			var passed, refused, unknown atomic.Int32
			var all sync.WaitGroup
			proof := p.proof("GET", dpopOrigin+"/x", token, known)
			for i := range 50 {
				g := []*gateway{here, there}[i%2]
				all.Go(func() {
					switch a := g.do(g.showing("/x", token, proof)); a.StatusCode {
					case 200:
						passed.Add(1)
					case 401:
						refused.Add(1)
					case 503:
						unknown.Add(1)
					default:
						t.Errorf("round %d: %d", round, a.StatusCode)
					}
				})
			}
			all.Wait()
			// On a busy machine Redis may take too long for some of them. Then the one that would have
			// passed may be among these, and another round has to show it.
			if passed.Load()+refused.Load()+unknown.Load() != 50 || passed.Load() > 1 || passed.Load() < 1 && unknown.Load() == 0 {
				t.Errorf("nonce %t, round %d: of 50 requests at two gateways with one proof, %d pass, %d are refused, and of %d nobody knows", nonce, round, passed.Load(), refused.Load(), unknown.Load())
			}
			if unknown.Load() == 0 {
				complete++
			} else if round > 20 {
				t.Fatalf("nonce %t: in %d of %d rounds Redis took too long", nonce, round+1-complete, round+1)
			}
		}
		a := here.do(here.proving("reader", p.proof("POST", dpopIssuer+"/access_token", "", nil)))
		proof := p.proof("POST", dpopIssuer+"/access_token", "", withNonce(a.Header.Get("DPoP-Nonce")))
		for i, g := range []*gateway{there, here, there} {
			if a := g.do(g.proving("reader", proof)); (a.StatusCode == 200) != (i == 0) {
				t.Errorf("nonce %t, use %d of a proof at the token endpoint: %d %s", nonce, i, a.StatusCode, a.Body)
			}
		}
		// A Redis that has lost its data doesn't know what was used. It says so to each gateway.
		recorded := p.proof("GET", dpopOrigin+"/x", token, known)
		if a := here.do(here.showing("/x", token, recorded)); a.StatusCode != 200 {
			t.Errorf("nonce %t: %d %s", nonce, a.StatusCode, a.challenges())
		}
		redis.CLI("flushall")
		// The tokens are gone, too; those of other servers would be good still. Until the loss is noticed, a
		// nonce may be given out that is too old.
		waitUntil(t, "the loss is noticed", func() bool {
			return here.insisting(func(nonce string) *http.Request {
				return here.proving("reader", p.proof("POST", dpopIssuer+"/access_token", "", withNonce(nonce)))
			}).StatusCode == 200
		})
		token = here.boundToken(p, dpopIssuer, "reader")
		for _, g := range []*gateway{here, there} {
			a := g.do(g.showing("/x", token, p.proof("GET", dpopOrigin+"/x", token, known)))
			if a.StatusCode != 401 || a.Header.Get("DPoP-Nonce") == "" {
				t.Errorf("nonce %t, after a loss: %d %s", nonce, a.StatusCode, a.challenges())
			}
			a = g.do(g.showing("/x", token, p.proof("GET", dpopOrigin+"/x", token, withNonce(a.Header.Get("DPoP-Nonce")))))
			if a.StatusCode != 200 {
				t.Errorf("nonce %t, after a loss, with a new nonce: %d %s", nonce, a.StatusCode, a.challenges())
			}
		}
		if nonce {
			redis.Stop()
			waitUntil(t, "it is known that Redis is away", func() bool {
				return here.do(here.showing("/x", token, p.proof("GET", dpopOrigin+"/x", token, known))).StatusCode == 503
			})
		}
		kill()
		if err := caddy.Stop(); err != nil {
			t.Fatal(err)
		}
	}
}

// Without an origin, proofs are made for the host that was called, which must be one of the site's.
func TestDPoPByTheNamesOfTheSite(t *testing.T) {
	site := func(address, lines string) string {
		return address + " {\nbind 127.0.0.1\noauth_server\nhandle {\noauth_protect\nreverse_proxy BACKEND\n}\n" + lines + "}\n"
	}
	caddyfile := "{\nadmin off\npersist_config off\nauto_https off\nservers {\ntrusted_proxies static 127.0.0.1/32\n}\noauth {\nstore memory\nissuer " + dpopIssuer + "\ndpop\n" + testClients + "}\n}\n" +
		site("http://api.example.com:0, http://*.wild.example.com:0, http://127.0.0.1:0", "@inner host inner.wild.example.com\nhandle @inner {\noauth_protect\nreverse_proxy BACKEND\n}\n")
	g := startCaddyfile(t, caddyfile)
	p := newProver(t)
	token := g.boundToken(p, dpopIssuer, "reader")
	port := g.URL[strings.LastIndexByte(g.URL, ':')+1:]
	waitUntil(t, "a proof can be younger than the gateway", func() bool {
		return g.do(g.showing("/x", token, p.proof("GET", g.URL+"/x", token, map[string]any{"iat": time.Now().Unix() + 10}))).StatusCode == 200
	})
	for _, c := range []struct {
		host, htu, proto string
		status           int
	}{
		{"api.example.com", "http://api.example.com/x", "", 200},
		{"api.example.com:80", "http://api.example.com/x", "", 200},
		{"API.example.com", "http://api.example.com/x", "", 200},
		{"api.example.com:" + port, "http://api.example.com:" + port + "/x", "", 200},
		{"a.wild.example.com", "http://a.wild.example.com/x", "", 200},
		{"inner.wild.example.com", "http://inner.wild.example.com/x", "", 200},
		{"api.example.com", "https://api.example.com/x", "https", 200},
		{"api.example.com:443", "https://api.example.com/x", "https", 200},
		{"api.example.com", "http://api.example.com/x", "https", 401},
		{"api.example.com", "https://api.example.com/x", "", 401},
		{"api.example.com:1", "http://api.example.com:1/x", "", 401}, // another server on the same machine
		{"api.example.com", "http://api.example.com:" + port + "/x", "", 401},
		{"a.wild.example.com", "http://b.wild.example.com/x", "", 401},
		{"a.b.wild.example.com", "http://a.b.wild.example.com/x", "", 0},
		{"evil.example", "http://evil.example/x", "", 0}, // no site
	} {
		r := g.showing("/x", token, p.proof("GET", c.htu, token, map[string]any{"iat": time.Now().Unix() + 10}))
		r.Host = c.host
		if c.proto != "" {
			r.Header.Set("X-Forwarded-Proto", c.proto)
		}
		before := g.Backend.count()
		a := g.do(r)
		if c.status != 0 && a.StatusCode != c.status || (c.status == 200) != (g.Backend.count() > before) {
			t.Errorf("%+v: %d %s", c, a.StatusCode, a.challenges())
		}
	}
}

// One request meets two oauth_protect, of which the first uses up the proof.
func TestDPoPAtSeveralRoutes(t *testing.T) {
	protect := func(lines string) string { return "oauth_protect {\n" + lines + "\n}\n" }
	origin := "dpop {\norigin " + dpopOrigin + "\n}\n"
	route := func(path string, protects ...string) string {
		return "handle " + path + " {\nroute {\n" + strings.Join(protects, "") + "reverse_proxy BACKEND\n}\n}\n"
	}
	g := startGateway(t, "store memory\ndpop\nissuer "+dpopIssuer+"\n"+testClients,
		"oauth_server\n"+route("/twice", protect(origin+"keep_token"), protect("keep_token\ndpop required {\norigin https://other.example.com\n}"))+
			route("/off", protect(origin), protect("dpop off"))+
			route("/optional", protect("dpop off\noptional"), protect(origin))+
			route("/report", protect("dpop off\nreport_only"), protect(origin))+
			route("/lenient", protect(origin+"optional"))+
			route("/reported", protect(origin+"report_only\nkeep_token")))
	p := newProver(t)
	token := g.boundToken(p, dpopIssuer, "reader")
	ask := func(path string) answer {
		return g.insisting(func(nonce string) *http.Request {
			return g.showing(path, token, p.proof("GET", dpopOrigin+path, token, withNonce(nonce)))
		})
	}
	if a := ask("/twice"); a.StatusCode != 200 {
		t.Errorf("twice: %d %s", a.StatusCode, a.challenges())
	}
	if got := g.Backend.last(t).Header; got.Get("Authorization") != "DPoP "+token || len(got["Dpop"]) != 1 {
		t.Errorf("with keep_token, the backend got %v", got)
	}
	if a := ask("/off"); a.StatusCode != 401 || a.challenges() != `Bearer realm="root", error="invalid_token", error_description="the token is not valid here"` {
		t.Errorf("off: %d %s", a.StatusCode, a.challenges())
	}
	for _, path := range []string{"/optional", "/report"} {
		if a := ask(path); a.StatusCode != 200 || g.Backend.last(t).Header["Dpop"] != nil || g.Backend.last(t).Header["Authorization"] != nil {
			t.Errorf("%s: %d %s", path, a.StatusCode, a.challenges())
		}
	}
	if a := g.do(g.showing("/lenient", token)); a.StatusCode != 401 {
		t.Errorf("a token without its proof, where none is needed: %d", a.StatusCode)
	}
	if a := g.do(g.request("GET", "/lenient", "", "DPoP", "x")); a.StatusCode != 200 || g.Backend.last(t).Header["Dpop"] != nil {
		t.Errorf("a proof alone, where no token is needed: %d", a.StatusCode)
	}
	if a := g.do(g.showing("/reported", token)); a.StatusCode != 200 || a.challenges() != "" || g.Backend.last(t).Header["Dpop"] != nil {
		t.Errorf("reported: %d %s, %v", a.StatusCode, a.challenges(), g.Backend.last(t).Header)
	}
}

// Tokens from elsewhere are bound as those from here. Who accepts nothing else has the store for the proofs
// alone.
func TestDPoPOfForeignTokens(t *testing.T) {
	f := newForeign(t)
	g := startGateway(t, "store memory\n", "handle /off/* {\noauth_protect {\n"+f.sources("")+"\n}\nreverse_proxy BACKEND\n}\nhandle {\noauth_protect {\n"+f.sources("")+"\ndpop {\norigin "+dpopOrigin+"\n}\n}\nreverse_proxy BACKEND\n}")
	p := newProver(t)
	f.knows("opaque", fmt.Sprintf(`{"active":true,"client_id":"c","token_type":"DPoP","cnf":{"jkt":%q}}`, p.jkt))
	signed := f.jwt(t, fmt.Sprintf(`,"cnf":{"jkt":%q}`, p.jkt))
	for what, token := range map[string]string{"opaque": "opaque", "signed": signed} {
		by := func(p *prover, path string) answer {
			return g.insisting(func(nonce string) *http.Request {
				return g.showing(path, token, p.proof("GET", dpopOrigin+path, token, withNonce(nonce)))
			})
		}
		waitUntil(t, what+" passes", func() bool { return by(p, "/x").StatusCode == 200 }) // once the keys are there
		if a := by(newProver(t), "/x"); a.StatusCode != 401 {
			t.Errorf("%s, by another key: %d", what, a.StatusCode)
		}
		if a := g.get("/x", token); a.StatusCode != 401 {
			t.Errorf("%s, as a bearer token: %d", what, a.StatusCode)
		}
		if a := by(p, "/off/x"); a.StatusCode != 401 || a.challenges() != `Bearer realm="root"` {
			t.Errorf("%s, where nobody has asked for DPoP: %d %s", what, a.StatusCode, a.challenges())
		}
	}
}

func TestDPoPOfRoutesThatIsRefused(t *testing.T) {
	g := startGateway(t, "store memory\n"+testClients, gatewaySite)
	start := "store memory\nissuer " + dpopIssuer + "\n" + testClients
	for what, c := range map[string]struct{ oauth, block, part string }{
		"no name":                     {start + "dpop\n", "dpop required", "the site has no host name"},
		"no name by method":           {start + "dpop\n", "on POST {\ndpop required\n}", "the site has no host name"},
		"no such tokens":              {start, "dpop required {\norigin " + dpopOrigin + "\n}", `realm "root" issues no tokens that are bound to a key`},
		"off and required":            {start + "dpop\n", "dpop off\non POST {\ndpop required\n}", "dpop is off, and required by an 'on'"},
		"a path":                      {start + "dpop\n", "dpop {\norigin " + dpopOrigin + "/v1\n}", "it must end with the host and its port"},
		"plain HTTP":                  {start + "dpop\n", "dpop {\norigin http://api.example.com\n}", "must be an https URL"},
		"an unset variable":           {start + "dpop\n", "dpop {\norigin {env.OAUTH_TEST_UNSET}\n}", "origin"},
		"a path behind a placeholder": {start + "dpop\n", "dpop {\norigin " + dpopOrigin + "{$OAUTH_TEST_UNSET:/v1}\n}", "it must end with the host"},
	} {
		if err := g.load(c.oauth, "oauth_server\noauth_protect {\n"+c.block+"\n}\nreverse_proxy BACKEND"); err == nil || !strings.Contains(err.Error(), c.part) {
			t.Errorf("%s: %v, not %q", what, err, c.part)
		}
	}
}

// Before a nonce ends, the next one comes with the answer, at the endpoint and at routes.
func TestNextDPoPNonce(t *testing.T) {
	redis := redistest.Start(t)
	remembersLong(redis)
	g := startGateway(t, at(redis.Addr)+"issuer "+dpopIssuer+"\ndpop {\nnonce 1m\n}\n"+testClients, dpopSite)
	p := newProver(t)
	token := g.boundToken(p, dpopIssuer, "reader")
	for age, want := range map[time.Duration]struct {
		status int
		next   bool
	}{0: {200, false}, 40 * time.Second: {200, true}, 61 * time.Second: {0, true}} {
		of := introspect.ProofOf{Method: "POST", URLs: []string{dpopIssuer + "/access_token"}}
		nonce := caddyoauth.OldNonce(oauth.AtEndpoint, p.proof("POST", of.URLs[0], "", nil), of, age)
		a := g.do(g.proving("reader", p.proof("POST", of.URLs[0], "", withNonce(nonce))))
		if next := a.Header.Get("DPoP-Nonce"); a.StatusCode != cmp.Or(want.status, 400) || (next != "") != want.next || next == nonce {
			t.Errorf("a nonce of %v ago at the endpoint: %d, next %q", age, a.StatusCode, next)
		}
		of = introspect.ProofOf{Method: "GET", URLs: []string{dpopOrigin + "/x"}, Token: token}
		nonce = caddyoauth.OldNonce(oauth.AtResource, p.proof("GET", of.URLs[0], token, nil), of, age)
		a = g.do(g.showing("/x", token, p.proof("GET", of.URLs[0], token, withNonce(nonce))))
		if next := a.Header.Get("DPoP-Nonce"); a.StatusCode != cmp.Or(want.status, 401) || (next != "") != want.next || next == nonce {
			t.Errorf("a nonce of %v ago at a route: %d, next %q", age, a.StatusCode, next)
		}
	}
}

func dpopRecipe(t *testing.T, b docBlock) {
	text := changed(t, b.text, "127.0.0.1:9000", "BACKEND", "\toauth {", "\tadmin off\n\tpersist_config off\n\tauto_https off\n\toauth {\n\t\tstore memory",
		"api.example.com {", "http://api.example.com:0, http://127.0.0.1:0 {\n\tbind 127.0.0.1")
	g := startCaddyfile(t, text)
	p := newProver(t)
	const issuer = "https://api.example.com/oauth2"
	fetch := func(id, scope string, proves bool) answer {
		return g.insisting(func(nonce string) *http.Request {
			var proofs []string
			if proves {
				proofs = []string{p.proof("POST", issuer+"/access_token", "", withNonce(nonce))}
			}
			r := g.posting("/oauth2/access_token", id, testSecret, url.Values{"grant_type": {"client_credentials"}, "scope": {scope}})
			r.Header["Dpop"] = proofs
			return r
		})
	}
	if a := fetch("modern", "read", false); a.StatusCode != 400 || a.json(t)["error"] != "invalid_dpop_proof" {
		t.Errorf("without a proof, modern gets %d %s", a.StatusCode, a.Body)
	}
	if a := g.do(g.proving("modern", p.proof("POST", issuer+"/access_token", "", nil))); a.json(t)["error"] != "use_dpop_nonce" {
		t.Errorf("without a nonce, modern gets %d %s", a.StatusCode, a.Body)
	}
	bound, _ := fetch("modern", "read write", true).json(t)["access_token"].(string)
	bearer, _ := fetch("old", "read", false).json(t)["access_token"].(string)
	later := fetch("old", "read", true)
	if later.json(t)["token_type"] != "DPoP" {
		t.Errorf("with a proof, old gets %s", later.Body)
	}
	for _, c := range []struct {
		method, token string
		proves        bool
		want          int
	}{
		{"GET", bound, true, 200}, {"POST", bound, true, 200}, {"GET", bound, false, 401}, {"POST", bound, false, 401},
		{"GET", bearer, false, 200}, {"POST", bearer, false, 401}, {"GET", bearer, true, 401},
	} {
		a := g.insisting(func(nonce string) *http.Request {
			r := g.request(c.method, "/api/x", "", "Authorization", "Bearer "+c.token)
			if c.proves {
				r.Header.Set("Authorization", "DPoP "+c.token)
				r.Header.Set("DPoP", p.proof(c.method, g.URL+"/api/x", c.token, withNonce(nonce)))
			}
			return r
		})
		if a.StatusCode != c.want {
			t.Errorf("%s, with a proof %t: %d %s, want %d", c.method, c.proves, a.StatusCode, a.challenges(), c.want)
		}
	}
}
