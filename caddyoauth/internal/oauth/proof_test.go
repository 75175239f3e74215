package oauth

import (
	"errors"
	"net/url"
	"testing"
	"time"
)

// An authentication tells which secret was right, when that ends, and whether the client has a
// newer one.
func TestProofNamesTheSecret(t *testing.T) {
	soon, late := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)
	past := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name  string
		until []time.Time // of the secrets "0", "1" and so on, in their order
		send  string
		want  Proof
	}{
		{"the only secret", []time.Time{{}}, "0", Proof{Secret: 1}},
		{"the only secret, with an end", []time.Time{late}, "0", Proof{Secret: 1, Until: late}},
		{"the older of two", []time.Time{late, {}}, "0", Proof{Secret: 1, Until: late, Old: true}},
		{"the newer of two", []time.Time{late, {}}, "1", Proof{Secret: 2}},
		{"the older of two, listed last", []time.Time{{}, late}, "1", Proof{Secret: 2, Until: late, Old: true}},
		{"the newer of two, listed first", []time.Time{{}, late}, "0", Proof{Secret: 1}},
		{"the upper of two without an end", []time.Time{{}, {}}, "0", Proof{Secret: 1, Old: true}},
		{"the lower of two without an end", []time.Time{{}, {}}, "1", Proof{Secret: 2}},
		{"the upper of two with the same end", []time.Time{late, late}, "0", Proof{Secret: 1, Until: late, Old: true}},
		{"the lower of two with the same end", []time.Time{late, late}, "1", Proof{Secret: 2, Until: late}},
		{"the earlier end of two", []time.Time{soon, late}, "0", Proof{Secret: 1, Until: soon, Old: true}},
		{"the later end of two", []time.Time{soon, late}, "1", Proof{Secret: 2, Until: late}},
		{"the middle one of three", []time.Time{past, late, {}}, "1", Proof{Secret: 2, Until: late, Old: true}},
		{"beside one that has ended", []time.Time{past, {}}, "1", Proof{Secret: 2}},
		{"one that has ended", []time.Time{past, {}}, "0", Proof{}},
		{"a wrong one", []time.Time{late, {}}, "x", Proof{}},
	} {
		for kind, newSecret := range map[string]func(string) *Secret{
			"quick": func(plain string) *Secret { return quickSecret(t, plain) },
			"slow":  func(plain string) *Secret { return slowSecret(t, plain, memoryB, passesB) },
		} {
			t.Run(c.name+", "+kind, func(t *testing.T) {
				var secrets []*Secret
				for i, until := range c.until {
					secret := newSecret(string(rune('0' + i)))
					secret.Until = until
					secrets = append(secrets, secret)
				}
				e := newEngine(t, nil, newClient("c", secrets...))
				for range 2 { // the second time a slow hash is remembered
					_, out, _ := e.Token(t.Context(), request(t, "c", c.send, grantForm))
					if out.Proof != c.want || out.AuthMethod != AuthBasic {
						t.Errorf("%+v by %q, want %+v", out.Proof, out.AuthMethod, c.want)
					}
				}
			})
		}
	}
}

// A secret that has not begun makes no other one old, and one that retires is old as soon as there is one
// below it.
func TestProofsOfSecretsThatBegin(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) // as newEngine has it
	begun, early, late := now.Add(-time.Hour), now.Add(time.Hour), now.Add(2*time.Hour)
	for _, c := range []struct {
		name   string
		others func(used, other *Secret)
		old    bool
	}{
		{"beside a newer one", func(_, other *Secret) { other.From = begun }, true},
		{"beside one that has not begun", func(_, other *Secret) { other.From = early }, false},
		{"ends, beside one that has not begun", func(used, other *Secret) { used.Until, other.From = late, early }, false},
		{"beside one that ends before it", func(_, other *Secret) { other.Until = late }, false},
		{"retires, beside one that ends before it", func(used, other *Secret) { used.RetireUnused, other.Until = time.Hour, late }, true},
		{"retires, beside one that has not begun", func(used, other *Secret) { used.RetireUnused, other.From = time.Hour, early }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			used, other := quickSecret(t, "used"), quickSecret(t, "other")
			used.From = begun
			c.others(used, other)
			e := newEngine(t, nil, newClient("c", used, other))
			if _, out, err := e.Token(t.Context(), request(t, "c", "used", grantForm)); err != nil || out.Proof.Secret != 1 || out.Proof.Old != c.old {
				t.Errorf("%+v, %v; want old is %t", out.Proof, err, c.old)
			}
		})
	}
}

// What is refused after the authentication still tells who it was; a failed authentication tells
// only what was tried.
func TestProofOfRefusals(t *testing.T) {
	e := newEngine(t, nil, newClient("c", quickSecret(t, "right")))
	_, out, err := e.Token(t.Context(), request(t, "c", "right", url.Values{"grant_type": {GrantClientCredentials}, "scope": {"nothing"}}))
	if err == nil || out.Proof.Secret != 1 {
		t.Errorf("%v, %+v", err, out)
	}
	_, out, err = e.Token(t.Context(), Request{Form: url.Values{"grant_type": {GrantClientCredentials}}})
	if err == nil || out.AuthMethod != "" || out.Proof != (Proof{}) {
		t.Errorf("without credentials: %v, %+v", err, out)
	}
}

// A failed authentication says why, to operators alone: the caller gets the same answer, after as many
// slow hashes.
func TestFailedProofsSayWhy(t *testing.T) {
	past := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	for kind, newSecret := range map[string]func(string) *Secret{
		"quick": func(plain string) *Secret { return quickSecret(t, plain) },
		"slow":  func(plain string) *Secret { return slowSecret(t, plain, memoryB, passesB) },
	} {
		t.Run(kind, func(t *testing.T) {
			ended, current, early := newSecret("ended"), newSecret("current"), newSecret("early")
			ended.Until, early.From = past, time.Date(2990, 1, 1, 0, 0, 0, 0, time.UTC)
			off, post := newClient("off", newSecret("right")), newClient("post", newSecret("right"))
			off.Disabled, post.Auth = true, []string{AuthPost}
			e := newEngine(t, nil, newClient("c", ended, early, current), off, post)
			answer, work := "", int64(-1)
			for _, c := range []struct{ id, secret, reason string }{
				{"nobody", "right", "unknown_client"}, {"c", "wrong", "wrong_secret"}, {"c", "", "wrong_secret"}, {"c", "ended", "expired_secret"}, {"c", "early", "secret_not_yet_valid"},
				{"off", "right", "client_disabled"}, {"off", "wrong", "client_disabled"}, {"post", "right", "auth_method_not_allowed"},
			} {
				before := e.cfg.Hasher.Hashes()
				_, out, err := e.Token(t.Context(), request(t, c.id, c.secret, grantForm))
				var refusal *Error
				if !errors.As(err, &refusal) || refusal.Reason != c.reason || out.Proof != (Proof{}) {
					t.Errorf("%s with the secret %q: %+v, want the reason %s", c.id, c.secret, refusal, c.reason)
					continue
				}
				did := e.cfg.Hasher.Hashes() - before
				if answer == "" {
					answer, work = refusal.Error(), did
				}
				if refusal.Error() != answer || did != work {
					t.Errorf("%s with the secret %q: %q after %d hashes, and others %q after %d", c.id, c.secret, refusal, did, answer, work)
				}
			}
			// One that is still valid costs no hash of one that is not.
			before := e.cfg.Hasher.Hashes()
			if _, _, err := e.Token(t.Context(), request(t, "c", "current", grantForm)); err != nil {
				t.Error(err)
			}
			if n := e.cfg.Hasher.Hashes() - before; n > 1 {
				t.Errorf("success took %d hashes", n)
			}
		})
	}
}

// Each failure compares as many secrets that are quick to check as the client with the most of them
// has.
func TestQuickWorkIsThatOfTheClientWithTheMost(t *testing.T) {
	sha := func() *Secret { return &Secret{digest: &digest{kind: kindSHA256, bytes: noDigest}} }
	mac := func() *Secret { return macSecret("x") }
	clients := map[string]*Client{
		"a": newClient("a", sha(), sha(), mac()), "b": newClient("b", mac(), mac()), "c": newClient("c", slowSecret(t, "x", memoryB, passesB)),
	}
	if got, want := mostQuick(clients), (quickWork{kindSHA256: 2, kindProcessMAC: 2}); got != want {
		t.Errorf("%v, want %v", got, want)
	}
}
