package caddyoauth

import (
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/keys"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// A signed answer is only for those who name its type, and don't prefer JSON.
func TestWhoGetsASignedAnswer(t *testing.T) {
	const jwt = "application/token-introspection+jwt"
	for _, c := range []struct {
		accept []string
		signed bool
	}{
		{nil, false},
		{[]string{""}, false},
		{[]string{jwt}, true},
		{[]string{"Application/Token-Introspection+JWT"}, true},
		{[]string{jwt + "; q=0.1"}, true},
		{[]string{jwt + ";q=0.001"}, true},
		{[]string{jwt + ";q=0"}, false},
		{[]string{jwt + ";q=0.000"}, false},
		{[]string{jwt + ";charset=utf-8"}, true},
		// Anything goes: then it is JSON, as ever.
		{[]string{"*/*"}, false},
		{[]string{"application/*"}, false},
		{[]string{"*/*, application/*;q=0.9"}, false},
		// Near misses.
		{[]string{"application/jwt"}, false},
		{[]string{"application/token-introspection"}, false},
		{[]string{jwt + "x"}, false},
		{[]string{"text/token-introspection+jwt"}, false},
		{[]string{"application/json;profile=" + url.QueryEscape(jwt)}, false},
		// Lists, in one header or in several.
		{[]string{jwt + ", application/json"}, true},
		{[]string{"application/json, " + jwt}, true},
		{[]string{"application/json", jwt}, true},
		{[]string{"text/html,application/json , \t" + jwt + " ,"}, true},
		{[]string{jwt + ";q=0.9, application/json"}, false},
		{[]string{jwt + ", application/json;q=0.9"}, true},
		{[]string{jwt + ";q=0.5, application/json;q=0.4"}, true},
		{[]string{jwt + ";q=0.4, application/json;q=0.5"}, false},
		{[]string{jwt + ";q=0.4", "application/json;q=0.5"}, false},
		{[]string{jwt + ";q=0, application/json;q=0"}, false},
		// JSON is in wildcards, too, but what is said of it by name counts more.
		{[]string{jwt + ", */*"}, true},
		{[]string{jwt + ", */*;q=0.1"}, true},
		{[]string{jwt + ";q=0.5, */*"}, false},
		{[]string{jwt + ";q=0.5, */*, application/*;q=0.2"}, true},
		{[]string{"application/*;q=0.2, */*, " + jwt + ";q=0.5"}, true},
		{[]string{jwt + ";q=0.5, application/json;q=0.1, application/*;q=0.9, */*"}, true},
		{[]string{jwt + ";q=0, */*"}, false},
		// What is malformed does not count.
		{[]string{jwt + ";q=1.1"}, false},
		{[]string{jwt + ";q=-1"}, false},
		{[]string{jwt + ";q=NaN"}, false},
		{[]string{jwt + ";q=Inf"}, false},
		{[]string{jwt + ", application/json;q=NaN"}, true},
		{[]string{jwt + ";q=0.5, application/json;q=NaN"}, true},
		{[]string{jwt + ";q="}, false},
		{[]string{jwt + ";q=high"}, false},
		{[]string{"/;;=,,\"," + jwt}, false}, // all behind the quotation mark is one text
		{[]string{`a/b;c="\",` + jwt}, false},
		{[]string{`a/b;c="\"", ` + jwt}, true},
		{[]string{`a/b;c="x,` + jwt + `,y", application/json`}, false},
		{[]string{"nonsense, " + jwt}, true},
		{[]string{"(,)", jwt}, true},
	} {
		if got := prefersSigned(c.accept); got != c.signed {
			t.Errorf("Accept %q: signed is %t", c.accept, got)
		}
	}
}

func FuzzAccept(f *testing.F) {
	for _, seed := range []string{"*/*", "application/token-introspection+jwt;q=0.5, application/json;q=0.1", `a/b;c="\",", application/token-introspection+jwt`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, accept string) {
		for name, quality := range mediaRanges([]string{accept}) {
			if name == "" || !(quality >= 0 && quality <= 1) {
				t.Errorf("%q has %q of quality %v", accept, name, quality)
			}
		}
		// What is said in a header is not changed by another one, or by who cannot be met.
		signed := prefersSigned([]string{accept})
		if prefersSigned([]string{"image/png", accept}) != signed || prefersSigned([]string{accept, "text/html;q=0.3"}) != signed {
			t.Errorf("%q means another thing beside other types", accept)
		}
	})
}

// As long as no key may sign, an answer can't be given, and is not given unsigned.
func TestAnswerThatNobodyCanSign(t *testing.T) {
	noKey := jwtSigner(func(time.Time) *keys.JWTs { return nil })
	for name, signer := range map[string]*jwtSigner{"before the keys are known": nil, "before the first key signs": &noKey} {
		r := &servedRealm{signing: new(signing)}
		r.signing.introspection.Store(signer)
		if jwt, err := r.signAnswer("reader", introspectionAnswer{}, time.Now()); !errors.Is(err, oauth.ErrUnreachable) || jwt != "" {
			t.Errorf("%s: %q, %v", name, jwt, err)
		}
	}
}
