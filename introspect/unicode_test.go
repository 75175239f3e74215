package introspect_test

import (
	"testing"
	"time"
)

// encoding/json reads an escaped lone surrogate as U+FFFD, so names that differ only in such
// surrogates would become the same.
func TestHalfOfACharacterIsRefused(t *testing.T) {
	j := forgery(t, jwtSettings{Type: "any"})
	key := keyFor("EdDSA")
	good := goodClaims().json()
	for _, c := range []struct {
		name, text string
		whole      bool
	}{
		{"a high half alone", `"a\ud800"`, false},
		{"upper case", `"a\uD800"`, false},
		{"a high half before text", `"\ud800a"`, false},
		{"a high half before another escape", `"\ud800\n"`, false},
		{"a high half before a whole character", `"\ud800\u0041"`, false},
		{"two high halves", `"\ud800\ud800"`, false},
		{"a high half before a pair", `"\ud800\ud83d\ude00"`, false},
		{"a low half alone", `"\udc00"`, false},
		{"the halves exchanged", `"\udc00\ud800"`, false},
		{"a low half behind a pair", `"\ud83d\ude00\ude00"`, false},
		{"half, then the text of the other", `"\ud83d\\ude00"`, false},
		{"behind an escaped backslash", `"\\\ud800"`, false},
		{"in the name of a member", `{"a\ud800":1}`, false},
		{"in a list", `["a",["\udfff"]]`, false},
		{"a pair", `"\ud83d\ude00"`, true},
		{"pairs", `"\uD83D\uDE00\ud83d\ude00x"`, true},
		{"the first and the last pair", `"\ud800\udc00\udbff\udfff"`, true},
		{"the text of an escape", `"\\ud800"`, true},
		{"an escaped backslash, then such text", `"\\\\ud800\\"`, true},
		{"neighbours of the halves", `"\ud7ff\ue000"`, true},
		{"U+FFFD as it is", `"` + "\ufffd" + `"`, true},
		{"U+FFFD escaped", `"\ufffd"`, true},
		{"the character as it is", `"😀"`, true},
		{"no escapes", `"ud800"`, true},
	} {
		token := key.token(`{"alg":"EdDSA","kid":"kid of EdDSA"}`, good[:len(good)-1]+`,"name":`+c.text+`}`)
		if got := mayPass(t, j, token); got != c.whole {
			t.Errorf("%s: a JWT with %s passes: %v", c.name, c.text, got)
		}
		if got := mayPass(t, j, key.token(`{"alg":"EdDSA","kid":"kid of EdDSA","name":`+c.text+`}`, good)); got != c.whole {
			t.Errorf("%s: a JWT with %s in its header passes: %v", c.name, c.text, got)
		}
		cfg := remoteConfig("https://as.example")
		cfg.Now = func() time.Time { return start }
		facts, err := newRemote(t, cfg).Understand([]byte(`{"active":true,"name":` + c.text + `}`))
		if got := err == nil && facts.Active; got != c.whole {
			t.Errorf("%s: an answer with %s passes: %v (%v)", c.name, c.text, got, err)
		}
	}
}
