package oauth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/caddyoauth/gateway/introspect"
)

// proofMap is a ProofStore in a map.
type proofMap struct {
	mu sync.Mutex
	// since is what is known, and lost what UseProof says.
	since, lost time.Time
	used        map[ReplayID]time.Time
	by          ClientRef
	err         error
}

func (m *proofMap) UseProof(_ context.Context, id ReplayID, client ClientRef, until time.Time) (bool, time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return false, m.lost, m.err
	}
	_, again := m.used[id]
	m.used[id], m.by = until, client
	return !again, m.lost, nil
}

func (m *proofMap) BeginProofs(context.Context) error { return nil }

func (m *proofMap) ProofsSince() time.Time { return m.since }

const endpointURL = "https://auth.example.com/oauth2/access_token"

// prover makes the proofs of one client.
type prover struct {
	t      testing.TB
	signer jose.Signer
	count  int
}

func newProver(t testing.TB) *prover {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{EmbedJWK: true}).WithType("dpop+jwt"))
	if err != nil {
		t.Fatal(err)
	}
	return &prover{t: t, signer: signer}
}

// proof makes a proof for the token endpoint, with a jti of its own and these changes.
func (p *prover) proof(now time.Time, changes map[string]any) string {
	p.t.Helper()
	p.count++
	claims := map[string]any{"jti": fmt.Sprint(p.count), "htm": "POST", "htu": endpointURL, "iat": now.Unix()}
	maps.Copy(claims, changes)
	text, err := json.Marshal(claims)
	if err != nil {
		p.t.Fatal(err)
	}
	jws, err := p.signer.Sign(text)
	if err != nil {
		p.t.Fatal(err)
	}
	proof, err := jws.CompactSerialize()
	if err != nil {
		p.t.Fatal(err)
	}
	return proof
}

// clock is what the test says.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func newProofs(t testing.TB, place Place, nonces time.Duration, now func() time.Time) (*Proofs, *proofMap) {
	t.Helper()
	verifier, err := introspect.NewProofs(introspect.ProofsConfig{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	store := &proofMap{used: make(map[ReplayID]time.Time)}
	proofs := NewProofs(place, verifier, nonces, now)
	proofs.Keep(store)
	proofs.Share([]byte("the key of all gateways"))
	return proofs, store
}

var atEndpoint = introspect.ProofOf{Method: "POST", URLs: []string{endpointURL}}

// fault returns what is wrong with a proof, and the nonce that the next one must have.
func fault(t testing.TB, err error) (ProofFault, string) {
	t.Helper()
	var refused *ProofError
	if err != nil && !errors.As(err, &refused) {
		t.Fatal(err)
	}
	if err == nil {
		return "", ""
	}
	return refused.Fault, refused.Nonce
}

func TestProofsPassOnce(t *testing.T) {
	c := &clock{time.Now()}
	proofs, store := newProofs(t, AtEndpoint, 0, c.now)
	p, client := newProver(t), ClientRef{"root", "a"}
	text := p.proof(c.at, nil)
	for round, want := range []ProofFault{"", ProofReplayed, ProofReplayed} {
		shown, err := proofs.Verify([]string{text}, atEndpoint)
		if err != nil || shown.NextNonce != "" {
			t.Fatal(err)
		}
		if got, _ := fault(t, proofs.Use(t.Context(), shown, client)); got != want {
			t.Errorf("round %d: %q, not %q", round, got, want)
		}
	}
	if store.by != client {
		t.Errorf("used by %v", store.by)
	}
	for id, until := range store.used {
		if last := time.Unix(c.at.Unix(), 0).Add(MaxProofAge); until.Before(last) {
			t.Errorf("%x is forgotten at %v, when a gateway may take it still", id, until)
		}
	}
	// The same jti for another URL, or by another key, is another proof.
	other := introspect.ProofOf{Method: "POST", URLs: []string{endpointURL + "/"}}
	for what, c := range map[string]struct {
		text string
		of   introspect.ProofOf
		want ProofFault
	}{
		"again":       {p.proof(c.at, map[string]any{"jti": "1"}), atEndpoint, ProofReplayed},
		"another jti": {p.proof(c.at, nil), atEndpoint, ""},
		"another URL": {p.proof(c.at, map[string]any{"jti": "1", "htu": endpointURL + "/"}), other, ""},
		"another key": {newProver(t).proof(c.at, map[string]any{"jti": "1"}), atEndpoint, ""},
		"spelling":    {p.proof(c.at, map[string]any{"jti": "1", "htu": strings.ToUpper(endpointURL[:20]) + endpointURL[20:] + "?x"}), atEndpoint, ProofReplayed},
	} {
		shown, err := proofs.Verify([]string{c.text}, c.of)
		if err != nil {
			t.Fatal(what, err)
		}
		if got, _ := fault(t, proofs.Use(t.Context(), shown, client)); got != c.want {
			t.Errorf("%s: %q, not %q", what, got, c.want)
		}
	}
	for what, c := range map[string]struct {
		lines []string
		want  ProofFault
	}{
		"none":    {nil, ProofMissing},
		"two":     {[]string{text, text}, ProofMalformed},
		"garbage": {[]string{"x"}, ProofInvalid},
		"empty":   {[]string{""}, ProofInvalid},
	} {
		_, err := proofs.Verify(c.lines, atEndpoint)
		if got, _ := fault(t, err); got != c.want {
			t.Errorf("%s: %q, not %q", what, got, c.want)
		}
	}
}

func TestNoncesOfProofs(t *testing.T) {
	c := &clock{time.Now()}
	proofs, _ := newProofs(t, AtEndpoint, 4*time.Minute, c.now)
	neighbor, _ := newProofs(t, AtEndpoint, 4*time.Minute, c.now)
	resource, _ := newProofs(t, AtResource, 4*time.Minute, c.now)
	stranger, _ := newProofs(t, AtEndpoint, 4*time.Minute, c.now)
	stranger.Share([]byte("another key"))
	p := newProver(t)
	ask := func(by *Proofs, nonce any) (ShownProof, ProofFault, string) {
		t.Helper()
		changes := map[string]any{"nonce": nonce}
		if nonce == nil {
			changes = nil
		}
		shown, err := by.Verify([]string{p.proof(c.at, changes)}, atEndpoint)
		what, next := fault(t, err)
		return shown, what, next
	}
	_, what, nonce := ask(proofs, nil)
	if what != ProofNoNonce || nonce == "" {
		t.Fatalf("without a nonce: %q, %q", what, nonce)
	}
	for name, by := range map[string]*Proofs{"its own gateway": proofs, "another of the fleet": neighbor} {
		if shown, what, _ := ask(by, nonce); what != "" || shown.NextNonce != "" {
			t.Errorf("at %s: %q, next %q", name, what, shown.NextNonce)
		}
	}
	for name, by := range map[string]*Proofs{"a route": resource, "another fleet": stranger} {
		if _, what, _ := ask(by, nonce); what != ProofNoNonce {
			t.Errorf("at %s: %q", name, what)
		}
	}
	for _, bad := range []string{"", "x", nonce + "A", nonce[1:], nonce[:len(nonce)-1], "B" + nonce[1:], nonce + "=", nonce + "\n", strings.Repeat("A", len(nonce))} {
		if _, what, next := ask(proofs, bad); what != ProofNoNonce || next == "" {
			t.Errorf("%q: %q", bad, what)
		}
	}
	c.at = c.at.Add(2*time.Minute + time.Second)
	shown, what, _ := ask(proofs, nonce)
	if what != "" || shown.NextNonce == "" {
		t.Fatalf("before its end, a new one comes along: %q, next %q", what, shown.NextNonce)
	}
	c.at = c.at.Add(2 * time.Minute)
	if _, what, _ := ask(proofs, nonce); what != ProofNoNonce {
		t.Errorf("after its end: %q", what)
	}
	if _, what, _ := ask(proofs, shown.NextNonce); what != "" {
		t.Errorf("the one that came along: %q", what)
	}
	c.at = c.at.Add(-4 * time.Minute) // by another gateway's clock
	if _, what, _ := ask(proofs, shown.NextNonce); what != ProofNoNonce {
		t.Errorf("from the future: %q", what)
	}
	if _, err := NewProofs(AtEndpoint, proofs.verifier, time.Minute, c.now).Verify([]string{p.proof(c.at, nil)}, atEndpoint); err == nil || errors.As(err, new(*ProofError)) {
		t.Errorf("with no store: %v", err)
	}
	unshared := NewProofs(AtEndpoint, proofs.verifier, time.Minute, c.now)
	unshared.Keep(&proofMap{})
	if _, err := unshared.Verify([]string{p.proof(c.at, nil)}, atEndpoint); !errors.Is(err, ErrUnreachable) {
		t.Errorf("before the key is shared: %v", err)
	}
}

// A store in memory has lost what was used before it was opened, so what may have been is refused: the
// clock of whoever made it may be ahead.
func TestProofsFromBeforeTheStart(t *testing.T) {
	c := &clock{time.Now()}
	proofs, store := newProofs(t, AtEndpoint, 0, c.now)
	p := newProver(t)
	ask := func(iat time.Time, nonce string) (ProofFault, string) {
		t.Helper()
		changes := map[string]any{"iat": iat.Unix()}
		if nonce != "" {
			changes["nonce"] = nonce
		}
		_, err := proofs.Verify([]string{p.proof(iat, changes)}, atEndpoint)
		return fault(t, err)
	}
	_, err := proofs.Verify([]string{p.proof(c.at, nil)}, atEndpoint)
	if err != nil {
		t.Fatal("Redis remembers always:", err)
	}
	before := proofs.nonce(*proofs.key.Load())
	c.at = c.at.Add(2 * time.Second)
	store.since = c.at
	c.at = c.at.Add(3 * time.Second)
	what, nonce := ask(c.at, "")
	if what != ProofNoNonce {
		t.Fatalf("made after the start, by a clock that may be ahead: %q", what)
	}
	for name, c := range map[string]struct {
		iat   time.Time
		nonce string
		want  ProofFault
	}{
		"with a nonce of this run":        {c.at, nonce, ""},
		"with one of the run before":      {c.at, before, ProofNoNonce},
		"with one of nobody":              {c.at, "x", ProofNoNonce},
		"early, with one of this run":     {c.at.Add(-30 * time.Second), nonce, ""},
		"so late that it must be younger": {c.at.Add(9 * time.Second), "", ""},
	} {
		if got, _ := ask(c.iat, c.nonce); got != c.want {
			t.Errorf("%s: %q, not %q", name, got, c.want)
		}
	}
	// What was lost since the last use is found out by the next.
	c.at = c.at.Add(9 * time.Second)
	store.lost = c.at
	shown, err := proofs.Verify([]string{p.proof(c.at, nil)}, atEndpoint)
	if err != nil {
		t.Fatal(err)
	}
	what, nonce = fault(t, proofs.Use(t.Context(), shown, ClientRef{"root", "a"}))
	if what != ProofNoNonce {
		t.Errorf("after a loss: %q", what)
	}
	if shown, err = proofs.Verify([]string{p.proof(c.at, map[string]any{"nonce": nonce})}, atEndpoint); err != nil {
		t.Fatal(err)
	}
	if what, _ := fault(t, proofs.Use(t.Context(), shown, ClientRef{"root", "a"})); what != "" {
		t.Errorf("after a loss, with a nonce: %q", what)
	}
	if what, _ := ask(c.at, ""); what != "" {
		t.Errorf("later: %q", what)
	}
	if what, _ := ask(c.at, "x"); what != "" {
		t.Errorf("later, with a nonce that nobody asked for: %q", what)
	}
}

// A token request with a proof gets a token that is bound to its key. What is wrong with a request uses up
// no proof, and only the client itself learns what is wrong with one.
func TestTokensBoundByProofs(t *testing.T) {
	var proofs *Proofs
	var store *proofMap
	may := &Client{ID: "any", Secrets: []*Secret{quickSecret(t, "s")}, Scopes: []string{"read"}, Auth: []string{AuthBasic}, GrantTypes: []string{GrantClientCredentials}, TokenLifetime: time.Hour}
	must := *may
	must.ID, must.DPoPRequired = "must", true
	e := newEngine(t, func(s *Settings) {
		proofs, store = newProofs(t, AtEndpoint, 0, s.Now)
		s.Proofs = proofs
	}, may, &must)
	p := newProver(t)
	token := func(id, secret, scope string, lines ...string) (Grant, Outcome, *Error) {
		t.Helper()
		req := request(t, id, secret, url.Values{"grant_type": {"client_credentials"}, "scope": {scope}})
		req.DPoP, req.URLs = lines, []string{endpointURL}
		grant, out, err := e.Token(t.Context(), req)
		var refused *Error
		if err != nil && !errors.As(err, &refused) {
			t.Fatal(err)
		}
		return grant, out, refused
	}
	if grant, out, err := token("any", "s", "read"); err != nil || grant.Key != "" || out.Key != "" {
		t.Errorf("without a proof: %+v, %v", grant, err)
	}
	good := p.proof(e.now(), nil)
	for what, c := range map[string]struct {
		id, secret, scope string
		lines             []string
		code              Code
		reason            string
	}{
		"a stranger":       {"any", "x", "read", []string{good}, CodeInvalidClient, "wrong_secret"},
		"a bad scope":      {"any", "s", "write", []string{good}, CodeInvalidScope, ""},
		"no proof":         {"must", "s", "read", nil, CodeInvalidDPoPProof, "dpop_missing"},
		"two":              {"any", "s", "read", []string{good, good}, CodeInvalidDPoPProof, "dpop_malformed"},
		"a wrong method":   {"any", "s", "read", []string{p.proof(e.now(), map[string]any{"htm": "GET"})}, CodeInvalidDPoPProof, "dpop_proof_method"},
		"a wrong URL":      {"any", "s", "read", []string{p.proof(e.now(), map[string]any{"htu": "https://evil.example/"})}, CodeInvalidDPoPProof, "dpop_proof_url"},
		"strangers' proof": {"any", "x", "read", []string{"x"}, CodeInvalidClient, "wrong_secret"},
	} {
		if _, _, err := token(c.id, c.secret, c.scope, c.lines...); err == nil || err.Code != c.code || err.Reason != c.reason {
			t.Errorf("%s: %+v", what, err)
		}
	}
	if len(store.used) > 0 {
		t.Error("a request that failed has used up a proof")
	}
	grant, out, err := token("must", "s", "read", good)
	if err != nil || grant.Key == "" || out.Key != grant.Key {
		t.Fatalf("%+v, %v", grant, err)
	}
	facts, lookupErr := e.Tokens().Lookup(t.Context(), grant.Token)
	if lookupErr != nil || facts.Confirmation.Key != grant.Key {
		t.Errorf("%+v, %v", facts, lookupErr)
	}
	if _, _, err := token("must", "s", "read", good); err == nil || err.Code != CodeInvalidDPoPProof || err.Reason != "dpop_replayed" {
		t.Errorf("again: %+v", err)
	}
	store.since = e.now()
	if _, _, err := token("any", "s", "read", p.proof(e.now(), nil)); err == nil || err.Code != CodeUseDPoPNonce || err.Nonce == "" {
		t.Errorf("%+v", err)
	}
	store.since, store.err = time.Time{}, ErrFull
	req := request(t, "any", "s", url.Values{"grant_type": {"client_credentials"}, "scope": {"read"}})
	req.DPoP, req.URLs = []string{p.proof(e.now(), nil)}, []string{endpointURL}
	if _, _, err := e.Token(t.Context(), req); !errors.Is(err, ErrFull) {
		t.Errorf("a store that is full: %v", err)
	}
}
