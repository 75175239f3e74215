package introspect_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/caddyoauth/gateway/introspect"
)

// thumb is the text of a digest.
const thumb = "0123456789abcdefghijABCDEFGHIJ-_0123456789A"

// What a token is bound to is told to those who say that they check it.
func TestBoundJWTs(t *testing.T) {
	key := keyFor("EdDSA")
	j := forgery(t, jwtSettings{AcceptBound: true})
	for name, c := range map[string]struct {
		cnf  any
		want introspect.Confirmation
		bad  bool
	}{
		"to a certificate": {cnf: claims{"x5t#S256": thumb}, want: introspect.Confirmation{Certificate: thumb}},
		"to a key":         {cnf: claims{"jkt": thumb}, want: introspect.Confirmation{Key: thumb}},
		"to both":          {cnf: claims{"jkt": thumb, "x5t#S256": thumb}, want: introspect.Confirmation{Certificate: thumb, Key: thumb}},

		"to something unknown besides": {cnf: claims{"jkt": thumb, "kid": "x"}, bad: true},
		"to a key that it holds":       {cnf: claims{"jwk": claims{"kty": "EC"}}, bad: true},
		"to nothing":                   {cnf: claims{}, bad: true},
		"null":                         {cnf: json.RawMessage("null"), bad: true},
		"a text":                       {cnf: "x", bad: true},
		"a digest that is too short":   {cnf: claims{"jkt": thumb[:42]}, bad: true},
		"a digest in base64":           {cnf: claims{"jkt": "+" + thumb[1:]}, bad: true},
		"with spare bits":              {cnf: claims{"jkt": thumb[:42] + "B"}, bad: true},
		"a digest with a line break":   {cnf: claims{"jkt": thumb[:10] + "\n" + thumb[10:]}, bad: true},
		"an empty digest":              {cnf: claims{"x5t#S256": ""}, bad: true},
		"a number":                     {cnf: claims{"x5t#S256": 1}, bad: true},
	} {
		facts, err := j.Lookup(context.Background(), introspect.NewToken(key.issue(goodClaims().with(claims{"cnf": c.cnf}))))
		switch {
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case facts.Active == c.bad || facts.Confirmation != c.want:
			t.Errorf("%s: active %t, %+v; want active %t, %+v", name, facts.Active, facts.Confirmation, !c.bad, c.want)
		case c.bad && facts.Cause() != introspect.CauseBinding:
			t.Errorf("%s: the cause is %s, want binding", name, facts.Cause())
		}
	}
}

// DPoP as token_type stands for a bound token, and for no other.
func TestBoundTokensInAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		want   introspect.Confirmation
		good   bool
	}{
		"to a certificate":        {answer: `"cnf":{"x5t#S256":"` + thumb + `"}`, want: introspect.Confirmation{Certificate: thumb}, good: true},
		"to a key":                {answer: `"token_type":"DPoP","cnf":{"jkt":"` + thumb + `"}`, want: introspect.Confirmation{Key: thumb}, good: true},
		"DPoP by name alone":      {answer: `"token_type":"DPoP"`},
		"DPoP with a certificate": {answer: `"token_type":"DPoP","cnf":{"x5t#S256":"` + thumb + `"}`},
		"to something unknown":    {answer: `"cnf":{"kid":"x"}`},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"active":true,"client_id":"c",`+c.answer+`}`)
		}))
		remote, err := introspect.NewRemote(introspect.RemoteConfig{URL: server.URL, Auth: "none", AcceptBound: true})
		if err != nil {
			t.Fatal(err)
		}
		facts, err := remote.Lookup(context.Background(), introspect.NewToken("x"))
		if err != nil || facts.Active != c.good || facts.Confirmation != c.want {
			t.Errorf("%s: %+v, %v; want active %t, %+v", name, facts, err, c.good, c.want)
		}
		remote.Close()
		server.Close()
	}
}
