package oauth

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// parseBody parses a form alone.
func parseBody(body string) (url.Values, error) {
	form, _, err := Incoming{Body: body}.parseForm()
	return form, err
}

// A form is parsed into its parameters, or refused.
func TestParseForm(t *testing.T) {
	parameters := func(n int) string {
		var names []string
		for i := range n {
			names = append(names, fmt.Sprintf("p%d=v", i))
		}
		return strings.Join(names, "&")
	}
	for _, c := range []struct {
		body string
		want url.Values // nil: refused
	}{
		{"", url.Values{}},
		{"a=b", url.Values{"a": {"b"}}},
		{"a=b&c=d", url.Values{"a": {"b"}, "c": {"d"}}},
		{"a=b+c%20d%2B", url.Values{"a": {"b c d+"}}},
		{"a=%C3%A4", url.Values{"a": {"ä"}}},
		{"a=b=c", url.Values{"a": {"b=c"}}},
		{"a=", url.Values{}},
		{"a", url.Values{}},
		{"&&a=b&", url.Values{"a": {"b"}}},
		{parameters(64), parse(parameters(64))},
		{parameters(65), nil},
		{"a=b&a=b", nil},
		{"a=b&a=", nil},
		{"a&a", nil},
		{"a=b&%61=b", nil},
		{"a=b;c=d", nil},
		{"a=%zz", nil},
		{"%zz=a", nil},
		{"a=%", nil},
		{"a=%4", nil},
		{"a=%00", nil},
		{"a%00=b", nil},
		{"a=\x00", nil},
		{"a=%ff", nil},
		{"%ff=a", nil},
		{"a=%c0%af", nil},
		{"a=%ed%a0%80", nil}, // half a surrogate pair
	} {
		got, err := parseBody(c.body)
		if (err == nil) != (c.want != nil) || err != nil && codeOf(err) != CodeInvalidRequest {
			t.Errorf("%.40q: %v", c.body, err)
			continue
		}
		if err == nil && fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%.40q is %v, want %v", c.body, got, c.want)
		}
	}
}

// A refusal names the parameter that it is about if that is one of ours, and repeats nothing
// else that was sent.
func TestParseFormNamesTheParameter(t *testing.T) {
	for body, want := range map[string]string{
		"scope=a&scope=b":             "scope is repeated",
		"resource[]=a":                "resource must be repeated under its plain name, and not as a list with brackets",
		"x=1&x=2&token=a&token=b":     "token is repeated",
		"evil=1&evil=2":               "a parameter is repeated",
		"Scope=1&Scope=2":             "a parameter is repeated",
		"scope[0]=a":                  "scope must be sent once, and not as a list with brackets",
		"scope%5B%5D=a":               "scope must be sent once, and not as a list with brackets",
		"grant_type[]=":               "grant_type must be sent once, and not as a list with brackets",
		"client_assertion_type[evil]": "client_assertion_type must be sent once, and not as a list with brackets",
	} {
		_, err := parseBody(body)
		if err == nil || err.Error() != "invalid_request: "+want {
			t.Errorf("%s: %v, want %s", body, err, want)
		}
	}
	for _, body := range []string{"evil[]=a", "scopes[]=a", "[scope]=a", "xscope[]=a"} {
		if _, err := parseBody(body); err != nil {
			t.Errorf("%s, an unknown parameter: %v", body, err)
		}
	}
}

// parse is what net/url makes of a form.
func parse(body string) url.Values {
	values, _ := url.ParseQuery(body)
	return values
}

// Basic credentials are parsed into both of their readings, or refused.
func TestParseBasic(t *testing.T) {
	b64 := func(pair string) string { return base64.StdEncoding.EncodeToString([]byte(pair)) }
	// A second reading follows after an |.
	for _, c := range []struct{ header, id, secret string }{
		{"Basic " + b64("c:s"), "c", "s"},
		{"basic " + b64("c:s"), "c", "s"},
		{"BASIC   " + b64("c:s"), "c", "s"},
		{"Basic " + b64("my%3Aapp:p%25%2B+%C3%A4%2F%3D%26%3A"), "my:app|my%3Aapp", "p%+ ä/=&:|p%25%2B+%C3%A4%2F%3D%26%3A"},
		{"Basic " + b64("my%3aapp:p%25%2b%20%c3%a4/=%26:"), "my:app|my%3aapp", "p%+ ä/=&:|p%25%2b%20%c3%a4/=%26:"},
		{"Basic " + b64("a:b:c"), "a", "b:c"}, // split at the first
		{"Basic " + b64("%2541:%2542"), "%41|%2541", "%42|%2542"},
		{"Basic " + b64("c:a+b"), "c", "a b|a+b"},
		{"Basic " + b64("c:a%2Bb"), "c", "a+b|a%2Bb"},
		{"Basic " + b64("c:100%"), "c", "100%"}, // a bad escape stands for itself
		{"Basic " + b64("c:%zz"), "c", "%zz"},
		{"Basic " + b64("%zz:s"), "%zz", "s"},
		{"Basic " + b64("c:%00"), "c", "%00"},
		{"Basic " + b64("c:%ff"), "c", "%ff"},
		{"Basic " + b64("%00:s"), "%00", "s"},
		{"Basic " + b64("c%3As:"), "c:s|c%3As", ""},
		{"Basic " + b64("c:"), "c", ""},
		{"Basic " + b64(":s"), "", "s"},
		{"Basic " + b64(":"), "", ""},
		{"Basic " + b64("c:s\n"), "c", "s\n"},
	} {
		creds, err := parseBasic(c.header)
		if err != nil || creds.Method != AuthBasic || strings.Join(creds.ClientIDs, "|") != c.id || strings.Join(creds.Secrets, "|") != c.secret {
			t.Errorf("%q is %q, %q, %v; want %q, %q", c.header, creds.ClientIDs, creds.Secrets, err, c.id, c.secret)
		}
	}
	for _, header := range []string{
		"", "Basic", "Basic ", "Basic\t" + b64("c:s"), "Basic" + b64("c:s"), " Basic " + b64("c:s"), "Bearer " + b64("c:s"), "Basic2 " + b64("c:s"), b64("c:s"),
		"Basic " + b64("no colon"), "Basic " + b64("c%3As"),
		"Basic " + b64("c:\x00"), "Basic " + b64("\x00:s"), "Basic " + b64("c:\xff"), "Basic " + b64("\xff:s"), "Basic " + b64("c:%41\xff"),
		"Basic c:s", "Basic %", "Basic " + b64("c:s") + ",", "Basic " + b64("c:s") + " x", "Basic " + strings.TrimRight(b64("c:s4"), "="), "Basic " + b64("c:ss") + "=",
		"Basic YzpzNB==", // bits beyond the last character
	} {
		if creds, err := parseBasic(header); err == nil || creds.Secrets != nil {
			t.Errorf("%q passes, as %q, %q", header, creds.ClientIDs, creds.Secrets)
		}
	}
	// The ID says who it was, whatever the secret is.
	if creds, _ := parseBasic("Basic " + b64("my%3Aapp:\xff")); !slices.Equal(creds.ClientIDs, []string{"my:app", "my%3Aapp"}) {
		t.Errorf("beside a secret that is not text, the ID is %q", creds.ClientIDs)
	}
}

// A request uses exactly one method of authentication, or none.
func TestParseRequest(t *testing.T) {
	good := "Basic " + base64.StdEncoding.EncodeToString([]byte("c:s"))
	odd := "Basic " + base64.StdEncoding.EncodeToString([]byte("a%3Ab:s"))
	for _, c := range []struct {
		body          string
		authorization []string
		method        string
		code          Code
	}{
		{"a=b", nil, "", ""},
		{"a=b", []string{good}, AuthBasic, ""},
		{"client_id=c&client_secret=s", nil, AuthPost, ""},
		{"client_id=c", nil, "", ""},
		{"client_secret=s", nil, "", ""},
		{"client_id=c&client_secret=", nil, "", ""},
		{"client_id=c", []string{good}, AuthBasic, ""},
		{"client_id=&client_secret=", []string{good}, AuthBasic, ""},
		{"client_id=d", []string{good}, "", CodeInvalidRequest},
		{"client_id=a:b", []string{odd}, AuthBasic, ""},
		{"client_id=a%253Ab", []string{odd}, AuthBasic, ""},
		{"client_id=a%25253Ab", []string{odd}, "", CodeInvalidRequest},
		{"client_secret=s", []string{good}, "", CodeInvalidRequest},
		{"client_id=c&client_secret=s", []string{"Bearer x"}, "", CodeInvalidRequest},
		{"client_assertion=x", []string{good}, "", CodeInvalidRequest},
		{"client_assertion_type=x", []string{good}, "", CodeInvalidRequest},
		{"client_id=c&client_secret=s&client_assertion=x", nil, "", CodeInvalidRequest},
		{"client_id=c&client_secret=s&client_assertion_type=x", nil, "", CodeInvalidRequest},
		{"client_id=c&client_assertion=x&client_assertion_type=y", nil, "", CodeInvalidRequest},
		{"client_id=c&client_assertion=x", nil, "", CodeInvalidRequest},
		{"client_assertion_type=" + url.QueryEscape(AssertionType), nil, "", CodeInvalidRequest},
		{"client_assertion=x&client_assertion_type=" + url.QueryEscape(AssertionType), nil, AuthPrivateKeyJWT, ""},
		{"client_id=c&client_assertion=x&client_assertion_type=" + url.QueryEscape(AssertionType), nil, AuthPrivateKeyJWT, ""},
		{"a=b", []string{good, good}, "", CodeInvalidRequest},
		{"a=b", []string{good, ""}, "", CodeInvalidRequest},
		{"a=b", []string{"Bearer x"}, "", ""},
		{"a=b", []string{""}, "", ""},
		{"a=%zz", []string{good}, "", CodeInvalidRequest},
	} {
		r, err := ParseRequest(Incoming{Authorization: c.authorization, Body: c.body})
		if codeOf(err) != c.code || r.Credentials.Method != c.method {
			t.Errorf("%q with %d Authorization lines: method %q, %v; want %q, %q", c.body, len(c.authorization), r.Credentials.Method, err, c.method, c.code)
		}
	}
}

// The scope parameter follows the grammar of RFC 6749 section 3.3.
func TestParseScope(t *testing.T) {
	many := func(n int) string {
		var scopes []string
		for i := range n {
			scopes = append(scopes, fmt.Sprintf("s%d", i))
		}
		return strings.Join(scopes, " ")
	}
	for _, c := range []struct {
		scope string
		want  []string // nil: refused
	}{
		{"a", []string{"a"}},
		{"a b", []string{"a", "b"}},
		{"b a", []string{"b", "a"}},
		{"a a b a", []string{"a", "b"}},
		{"a A", []string{"a", "A"}},
		{"!#[]~ read:*", []string{"!#[]~", "read:*"}},
		{"a,b", []string{"a,b"}}, // one scope; no client can have it
		{many(100), strings.Split(many(100), " ")},
		{many(100) + " s0", strings.Split(many(100), " ")},
		{strings.Repeat("s", 4096), []string{strings.Repeat("s", 4096)}},
		{many(101), nil},
		{many(10000), nil},
		{strings.Repeat("s", 4097), nil},
		{"", nil}, {" ", nil}, {" a", nil}, {"a ", nil}, {"a  b", nil},
		{"a\tb", nil}, {"a\nb", nil}, {"a\x00", nil}, {`"`, nil}, {`a\b`, nil}, {"ä", nil}, {"a\u00a0b", nil}, {"\x7f", nil}, {"\xff", nil},
	} {
		got, err := ParseScope(c.scope)
		if (err == nil) != (c.want != nil) || !slices.Equal(got, c.want) && err == nil {
			t.Errorf("%.40q is %.5q, %v", c.scope, got, err)
		}
	}
	// The grammar, character by character.
	for c := range 256 {
		allowed := c == 0x21 || c >= 0x23 && c <= 0x5b || c >= 0x5d && c <= 0x7e
		if ValidScope(string([]byte{byte(c)})) != allowed {
			t.Errorf("%#x is allowed: %t", c, !allowed)
		}
	}
}

// A client gets the scopes that it asked for, or nothing.
func TestGrantScopes(t *testing.T) {
	client := &Client{Scopes: []string{"read", "write", "read:all"}, DefaultScopes: []string{"read"}}
	for _, c := range []struct {
		client *Client
		scope  string
		want   string // empty: invalid_scope
	}{
		{client, "", "read"},
		{client, "write", "write"},
		{client, "write read", "write read"},
		{client, "read read", "read"},
		{client, "read:all", "read:all"},
		{client, "read admin", ""},
		{client, "rea", ""}, {client, "read:", ""}, {client, "READ", ""}, {client, "*", ""}, {client, "read:*", ""}, {client, "read,write", ""}, {client, " ", ""},
		{&Client{Scopes: []string{"read"}}, "", ""},
		{&Client{}, "", ""},
		{&Client{}, "read", ""},
	} {
		got, err := c.client.grantScopes(c.scope)
		if c.want == "" {
			if codeOf(err) != CodeInvalidScope || got != nil {
				t.Errorf("%q gets %q, %v", c.scope, got, err)
			}
			continue
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%q gets %q, %v; want %q", c.scope, got, err, c.want)
		}
	}
}

// A token is for the resources that were asked for, or there is none (RFC 8707).
func TestGrantAudience(t *testing.T) {
	client := &Client{Audience: []string{"https://a.example/api", "https://b.example", "urn:example:c", "orders"}}
	for _, c := range []struct {
		resources string
		want      string // empty: invalid_target
	}{
		{"", "https://a.example/api https://b.example urn:example:c orders"},
		{"https://b.example", "https://b.example"},
		{"urn:example:c https://a.example/api", "urn:example:c https://a.example/api"},
		{"https://b.example https://b.example", "https://b.example"},
		{"https://b.example https://c.example", ""},
		// Compared byte for byte.
		{"https://b.example/", ""}, {"https://B.example", ""}, {"https://b.example:443", ""}, {"https://a.example/API", ""}, {"https://a.example/%61pi", ""},
		// Not a resource, even where it is in the audience.
		{"orders", ""}, {"//b.example", ""}, {"/api", ""}, {"https://b.example#", ""}, {"https://b.example#x", ""}, {"https://[", ""},
	} {
		got, err := client.grantAudience(strings.Fields(c.resources))
		if c.want == "" {
			if codeOf(err) != CodeInvalidTarget || got != nil {
				t.Errorf("%q is for %q, %v", c.resources, got, err)
			}
			continue
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%q is for %q, %v; want %q", c.resources, got, err, c.want)
		}
	}
	if got, err := new(Client).grantAudience([]string{"https://b.example"}); codeOf(err) != CodeInvalidTarget {
		t.Errorf("a client without audience gets %q, %v", got, err)
	}
}

func TestResourceMayRepeat(t *testing.T) {
	form, err := parseBody("resource=&resource=https://a.example&scope=&resource=https://b.example")
	if want := "map[resource:[https://a.example https://b.example]]"; err != nil || fmt.Sprint(form) != want {
		t.Errorf("the form is %v, %v; want %s", form, err, want)
	}
	if form, err = parseBody("resource=&resource="); err != nil || len(form) != 0 {
		t.Errorf("empty resources are %v, %v; want none", form, err)
	}
	if _, err = parseBody("resource=a&resource=%00"); codeOf(err) != CodeInvalidRequest {
		t.Errorf("NUL in the second resource: %v", err)
	}
}
