package oauth

import (
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
