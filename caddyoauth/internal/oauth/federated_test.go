package oauth

import (
	"regexp"
	"strings"
	"testing"
)

// A * stands for one or more bytes within one part of a subject.
func TestSubjects(t *testing.T) {
	for pattern, subjects := range map[string]struct{ match, differ []string }{
		"repo:acme/*:ref:refs/heads/main": {
			[]string{"repo:acme/app:ref:refs/heads/main", "repo:acme/*:ref:refs/heads/main"},
			[]string{
				"repo:acme/:ref:refs/heads/main", "repo:acme/app/x:ref:refs/heads/main", "repo:acme/app:x:ref:refs/heads/main", "repo:acme/app:ref:refs/heads/main/",
				"repo:acme/app:ref:refs/heads/main2", "repo:acmex/app:ref:refs/heads/main", "repo:Acme/app:ref:refs/heads/main", "repo:acme/app", "",
				"repo:acme/app:ref:refs/heads/main\n", "repo:acme:app:ref:refs/heads/main",
			},
		},
		"a":       {[]string{"a"}, []string{"", "b", "a:", "a/", "aa"}},
		"*":       {[]string{"a", "abc", "*"}, []string{"", "a/b", "a:b", "/", ":"}},
		"*/*":     {[]string{"a/b"}, []string{"a:b", "a/", "/b", "a/b/c", "a"}},
		"a*":      {[]string{"ab", "abc"}, []string{"a", "b", "ba", "ab:c"}},
		"*a":      {[]string{"ba", "aa"}, []string{"a", "ab"}},
		"a*a":     {[]string{"aba", "aaa"}, []string{"aa", "a", "ab"}},
		"a*b*c":   {[]string{"axbxc", "abbbc", "abxbxc"}, []string{"abc", "abxc", "axbc", "axbx"}},
		"**":      {[]string{"ab", "abc"}, []string{"a", ""}},
		"ns:*:sa": {[]string{"ns:x:sa"}, []string{"ns:x:y:sa", "ns::sa", "ns:x/y:sa"}},
	} {
		for _, subject := range subjects.match {
			if !MatchesSubject(pattern, subject) {
				t.Errorf("%q does not match %q", subject, pattern)
			}
		}
		for _, subject := range subjects.differ {
			if MatchesSubject(pattern, subject) {
				t.Errorf("%q matches %q", subject, pattern)
			}
		}
	}
}

// Patterns mean what the same regular expressions mean.
func FuzzSubject(f *testing.F) {
	for _, seed := range [][2]string{
		{"repo:acme/*:ref:refs/heads/main", "repo:acme/app:ref:refs/heads/main"}, {"*", "a/b"}, {"a*b*c", "abxbxc"}, {"**", "a"}, {"", ""}, {"a*a", "aa"}, {"*\xff", "é\xff"}, {"a:", "a:"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, subject string) {
		if len(pattern) > 100 || len(subject) > 1000 {
			return
		}
		// Bytes, because regular expressions read runes.
		escape := func(s string) string {
			var b strings.Builder
			for i := range len(s) {
				b.WriteRune(rune(s[i]))
			}
			return b.String()
		}
		parts := strings.Split(escape(pattern), "*")
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		meant := regexp.MustCompile("(?s)^" + strings.Join(parts, "[^:/]+") + "$").MatchString(escape(subject))
		if got := MatchesSubject(pattern, subject); got != meant {
			t.Errorf("%q matches %q: %v, want %v", subject, pattern, got, meant)
		}
	})
}

// An assertion is its client's own, or a platform's, and never both; what the request says decides,
// beside which platforms there are.
func FuzzAssertionChoice(f *testing.F) {
	f.Add("", "https://platform.example.com", false)
	f.Add("client", "https://platform.example.com", false)
	f.Add("client", "client", false)
	f.Add("https://platform.example.com", "https://platform.example.com", false)
	f.Add("", "client", true)
	f.Add("", "", true)
	f.Fuzz(func(t *testing.T, id, issuer string, known bool) {
		platform := &federation{}
		clients := &Clients{
			byID:        map[string]*registered{"client": {Client: &Client{ID: "client"}}},
			federations: map[string]*federation{"https://platform.example.com": platform},
		}
		if known {
			clients.byID[issuer] = &registered{Client: &Client{ID: issuer}}
		}
		creds := Credentials{Method: AuthPrivateKeyJWT, ClientIDs: []string{id}, assertion: "x", issuer: issuer, named: id != ""}
		if id == "" {
			creds.ClientIDs = []string{issuer}
		}
		from := clients.federationOf(creds)
		if issuer != "https://platform.example.com" && from != nil {
			t.Errorf("an assertion of %q is one of the platform", issuer)
		}
		if id != "" && id == issuer && from != nil {
			t.Errorf("an assertion of the client %q is one of the platform", id)
		}
		if id == "" && known && from != nil {
			t.Errorf("an assertion of %q, which is a client, is one of the platform", issuer)
		}
		if issuer == "https://platform.example.com" && id != issuer && !known && from == nil {
			t.Errorf("an assertion of the platform for %q is taken for the client's own", id)
		}
		creds.Method = AuthPost
		if clients.federationOf(creds) != nil {
			t.Error("a secret is taken for an assertion of the platform")
		}
	})
}
