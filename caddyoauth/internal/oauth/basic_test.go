package oauth

import (
	"context"
	"encoding/base64"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// header returns an Authorization header that isn't form-encoded.
func header(id, secret string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+secret))
}

// Basic credentials get what the best token of their client has, and nothing that only a token has.
func TestBasicIsTheBestToken(t *testing.T) {
	client := newClient("c", quickSecret(t, "right"))
	client.Scopes, client.DefaultScopes, client.Audience = []string{"b", "a", "c"}, []string{"a"}, []string{"https://a.example.com", "other"}
	e := newEngine(t, func(cfg *Settings) { cfg.Issuer = "https://as.example.com" }, client)
	got, out, err := e.Basic(t.Context(), header("c", "right"), from)
	if err != nil {
		t.Fatal(err)
	}
	if out.ClientID != "c" || out.AuthMethod != AuthBasic || out.Proof.Secret != 1 || out.TokenID != (introspect.TokenID{}) {
		t.Errorf("the outcome is %+v", out)
	}
	form := map[string][]string{"grant_type": {GrantClientCredentials}, "scope": {"b a c"}}
	grant, _, err := e.Token(t.Context(), request(t, "c", "right", form))
	if err != nil {
		t.Fatal(err)
	}
	token := introspect.NewToken(grant.Token)
	want, err := e.Tokens().LookupWithin(t.Context(), &token, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	best := *want
	best.ID, best.IssuedAt, best.Expiry = introspect.TokenID{}, time.Time{}, time.Time{}
	if !reflect.DeepEqual(*got, best) {
		t.Errorf("Basic gets %+v\nthe best token %+v", *got, best)
	}
	if e.store.puts.Load() != 1 {
		t.Error("Basic put something into the store")
	}
}

// Whatever is wrong with Basic credentials, the answer is one and the work the same: that of a
// token request. A client that can have no token is told no more with its right secret.
func TestFailuresOfBasicAreOne(t *testing.T) {
	e, failures := attempts(t)
	clients := make(map[string]*Client)
	for id, c := range e.state.Load().clients.byID {
		clients[id] = c.Client
	}
	asks, empty := newClient("asks", slowSecret(t, "s", memoryA, passesA)), newClient("empty", slowSecret(t, "s", memoryA, passesA))
	asks.GrantTypes = nil
	empty.Scopes, empty.DefaultScopes = nil, nil
	postOnly := newClient("post", slowSecret(t, "s", memoryA, passesA))
	postOnly.Auth = []string{AuthPost}
	for _, c := range []*Client{asks, empty, postOnly} {
		clients[c.ID] = c
	}
	e.SetClients(clients)
	e.agree("a key of thirty-two random bytes")

	attempt := map[string]string{
		"a client without grants": header("asks", "s"), "a client without scopes": header("empty", "s"),
		"a client that may not use Basic": header("post", "s"),
	}
	for name, r := range failures {
		if creds := r.Credentials; creds.Method == AuthBasic && len(creds.Secrets) == 1 {
			attempt[name] = header(creds.ClientIDs[0], creds.Secrets[0])
		} else if creds.Method == AuthBasic {
			attempt[name] = header(creds.ClientIDs[0], "a+b")
		}
	}
	if len(attempt) < 12 {
		t.Fatalf("only %d attempts", len(attempt))
	}
	for name, authorization := range attempt {
		before := e.cfg.Hasher.hashes.Load()
		facts, out, err := e.Basic(t.Context(), authorization, from)
		if facts != nil || codeOf(err) != CodeInvalidClient || out.Proof != (Proof{}) {
			t.Errorf("%s: %v, %+v, %v", name, facts, out, err)
		}
		want := int64(3)
		if strings.HasPrefix(name, "two readings") {
			want = 6
		}
		if n := e.cfg.Hasher.hashes.Load() - before; n != want {
			t.Errorf("%s: %d slow hashes, want %d", name, n, want)
		}
	}
	for name, authorization := range map[string]string{
		"nothing": "", "no credentials": "Basic", "a space": "Basic ", "no Base64": "Basic !", "no padding": "Basic YTpi=", "no colon": "Basic YWI=",
		"a NUL": header("one", "a\x00b"), "no text": header("one", "\xff%ff"), "another scheme": "Bearer YTpi", "other letters": "Ba\u017fic YTpi", "16 KiB": header("one", strings.Repeat("x", MaxBasicLength)),
	} {
		before := e.cfg.Hasher.hashes.Load()
		facts, _, err := e.Basic(t.Context(), authorization, from)
		var refusal *Error
		if facts != nil || !errors.As(err, &refusal) || refusal.Code != CodeInvalidClient || refusal.Reason != "malformed_authorization" {
			t.Errorf("%s: %v, %+v", name, facts, err)
		}
		if n := e.cfg.Hasher.hashes.Load() - before; n != 0 {
			t.Errorf("%s: %d slow hashes, want none", name, n)
		}
	}
}

// A client that can have no token asks about tokens with the same credentials. Computations of both
// kinds at once are not mixed up.
func TestBasicSharesNoComputationWithTheEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asks := newClient("asks", slowSecret(t, "s", memoryA, passesA))
		asks.GrantTypes = nil
		for _, basicFirst := range []bool{true, false} {
			e := newEngine(t, nil, asks)
			ask := []func(){func() {
				if _, _, err := e.Basic(t.Context(), header("asks", "s"), from); codeOf(err) != CodeInvalidClient {
					t.Errorf("at a route: %v", err)
				}
			}, func() {
				if _, _, err := e.Introspect(t.Context(), request(t, "asks", "s", map[string][]string{"token": {"x"}})); err != nil {
					t.Errorf("at an endpoint: %v", err)
				}
			}}
			if !basicFirst {
				slices.Reverse(ask)
			}
			release := e.cfg.Hasher.hold()
			var all sync.WaitGroup
			for _, ask := range ask {
				all.Go(ask)
				synctest.Wait()
			}
			release()
			all.Wait()
		}
	})
}

// A slow hash is computed once and then remembered, as at the endpoints, and not beyond the end of
// the secret.
func TestBasicRemembersWhatTheHasherDoes(t *testing.T) {
	old := slowSecret(t, "right", memoryA, passesA)
	e := newEngine(t, nil, newClient("c", old))
	old.Until = e.now().Add(time.Minute)
	for range 3 {
		if _, out, err := e.Basic(t.Context(), header("c", "right"), netip.Addr{}); err != nil || out.Proof != (Proof{Secret: 1, Until: old.Until}) {
			t.Fatalf("%+v, %v", out, err)
		}
	}
	if n := e.cfg.Hasher.Hashes(); n != 1 {
		t.Errorf("three requests cost %d slow hashes, want 1", n)
	}
	e.advance(time.Minute)
	if _, _, err := e.Basic(t.Context(), header("c", "right"), netip.Addr{}); codeOf(err) != CodeInvalidClient {
		t.Errorf("after the secret's end: %v", err)
	}
}

// Where nobody can tell, right and wrong credentials have the same answer.
func TestBasicDuringOutages(t *testing.T) {
	slow, quick := newClient("slow", slowSecret(t, "right", memoryA, passesA)), newClient("quick", quickSecret(t, "right"))
	e := newEngine(t, nil, slow, quick)
	all := []string{header("slow", "right"), header("slow", "wrong"), header("quick", "right"), header("nobody", "right"), "Basic !"}
	fresh := New(Settings{Realm: "root", Clients: map[string]*Client{"slow": slow, "quick": quick}, Store: e.store, Cache: e.cfg.Cache, MaxAge: time.Minute, Hasher: e.cfg.Hasher, Now: e.now})
	for _, authorization := range all {
		if facts, out, err := fresh.Basic(t.Context(), authorization, netip.Addr{}); facts != nil || !errors.Is(err, ErrUnreachable) || out.ClientID != "" {
			t.Errorf("before the realm has agreed with its store: %v, %+v, %v", facts, out, err)
		}
	}

	e.cfg.Hasher.queue = 0
	for _, authorization := range slices.Concat(all[:2], all[3:4]) {
		if _, _, err := e.Basic(t.Context(), authorization, netip.Addr{}); codeOf(err) != CodeUnavailable {
			t.Errorf("with a full queue: %v", err)
		}
	}
	if _, _, err := e.Basic(t.Context(), header("quick", "right"), netip.Addr{}); err != nil {
		t.Errorf("a quick secret: %v", err)
	}

	e.cfg.Hasher.queue = hashQueue
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	defer e.cfg.Hasher.hold()()
	if _, _, err := e.Basic(ctx, header("slow", "right"), netip.Addr{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that has gone away: %v", err)
	}
}

// Whatever comes in the place of a token, only a client's own ID and secret get in.
func FuzzBasicInsteadOfAToken(f *testing.F) {
	e := newEngine(f, nil, newClient("c", quickSecret(f, "right")))
	for _, seed := range []string{header("c", "right"), header("c", "wrong"), "basic  " + header("c", "right")[6:], "", "Basic", "Bearer x", "Basic Yzo=", "Basic !", header("c:", "right"), header("%63", "r%69ght")} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, authorization string) {
		facts, out, err := e.Basic(t.Context(), authorization, netip.Addr{})
		if err != nil {
			if codeOf(err) != CodeInvalidClient || facts != nil || out.Proof != (Proof{}) {
				t.Fatalf("%q: %v, %+v, %v", authorization, facts, out, err)
			}
			return
		}
		creds, err := parseBasic(authorization)
		if err != nil || !slices.Contains(creds.ClientIDs, "c") || !slices.Contains(creds.Secrets, "right") || facts.ClientID != "c" || !facts.Active {
			t.Fatalf("%q gets in as %+v", authorization, facts)
		}
	})
}
