package caddyoauth

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// docs/operations.md has the table of what lint looks for, word for word.
func TestManualHasEveryFinding(t *testing.T) {
	page, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(strings.ReplaceAll(string(page), "\r\n", "\n"), "\n## Lint\n")
	section, _, _ = strings.Cut(section, "\n## ")
	_, got, _ := strings.Cut(section, "\n|---|---|---|---|\n")
	got, _, _ = strings.Cut(got, "\n\n")
	var want []string
	for _, c := range lintChecks() {
		code := "`" + c.code + "`"
		if c.certain {
			code = "**" + code + "**"
		}
		want = append(want, fmt.Sprintf("| %s | %s | %s | %s |", code, c.kind, c.means, c.do))
	}
	if want := strings.Join(want, "\n"); strings.TrimSpace(got) != want {
		t.Errorf("the table in docs/operations.md should be\n%s", want)
	}
}

// Codes are said in words, each of them once, and what is printed about them are sentences.
func TestFindingsAreExplained(t *testing.T) {
	seen := make(map[string]bool)
	for _, c := range lintChecks() {
		if seen[c.code] || !regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)+$`).MatchString(c.code) {
			t.Errorf("the code %s is there twice, or not in words", c.code)
		}
		seen[c.code] = true
		if !strings.HasSuffix(c.means, ".") || !strings.HasSuffix(c.do, ".") || c.find == nil {
			t.Errorf("%s is not explained, or not looked for", c.code)
		}
	}
}

// The secrets that everybody can read are those in the documents and examples, no more and no less.
func TestPublishedSecretsAreThoseOfTheDocuments(t *testing.T) {
	found := make(map[string]bool)
	hash := regexp.MustCompile(`\$(?:sha256|argon2id|2[aby]|pbkdf2-sha256|pbkdf2-sha512)\$[^\s` + "`" + `…]{40,}`)
	secret := regexp.MustCompile(`-u ["']?[^\s:"']+:([^\s"'$]+)|SECRET=(cos_\S+|demo-\S+)|(?m:^# ?)?Demo secret[^:]*: (\S+)|Its secret is "(\w+)"`)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "testdata" {
			return filepath.SkipDir
		}
		name := d.Name()
		switch {
		case d.IsDir():
			return nil
		case strings.HasSuffix(name, ".demo-secret"):
			text, err := os.ReadFile(path)
			found[strings.TrimSpace(string(text))] = true
			return err
		case strings.HasSuffix(name, ".md"), strings.HasPrefix(name, "Caddyfile"):
			text, err := os.ReadFile(path)
			for _, m := range hash.FindAllString(string(text), -1) {
				found[m] = true
			}
			for _, m := range secret.FindAllStringSubmatch(string(text), -1) {
				found[strings.Join(m[1:], "")] = true
			}
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(found, publishedSecrets) {
		for _, s := range slices.Sorted(maps.Keys(found)) {
			t.Logf("\t%q: true,", s)
		}
		t.Errorf("publishedSecrets should be the %d above", len(found))
	}
}

// A check that panics keeps no configuration from starting.
func TestLintPanicsKeepNothingFromStarting(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	a := &App{logger: zap.New(core), realms: map[string]*servedRealm{"a": nil}} // which can't be
	a.warnOfFindings()
	if logs.FilterMessageSnippet("please report this").Len() != 1 {
		t.Errorf("the log has %v", logs.All())
	}
}

// A start with ten thousand clients and many routes takes no longer for looking at them.
func BenchmarkWarnOfFindings(b *testing.B) {
	a := &App{logger: zap.NewNop(), Realms: map[string]*Realm{rootRealm: {Clients: make(map[string]*Client)}}}
	settings := oauth.Settings{Clients: make(map[string]*oauth.Client)}
	for i := range 10_000 {
		id := fmt.Sprint("client", i)
		a.Realms[rootRealm].Clients[id] = &Client{}
		settings.Clients[id] = &oauth.Client{
			ID: id, Scopes: []string{"read", "write", fmt.Sprint("own", i)}, Audience: []string{fmt.Sprint("https://", i)},
			GrantTypes: []string{oauth.GrantClientCredentials}, Secrets: []*oauth.Secret{},
		}
	}
	realm := &servedRealm{name: rootRealm, settings: settings}
	a.realms = map[string]*servedRealm{rootRealm: realm}
	a.opener = noStore{}
	server := &caddyhttp.Server{}
	for i := range 1000 {
		p := &Protect{sources: []routeSource{realm}, rule: access.Rule{Scopes: []string{"read"}, AnyScope: []string{"write", fmt.Sprint("own", i)}, Audience: []string{fmt.Sprint("https://", i)}}}
		path := caddyhttp.MatchPath{fmt.Sprintf("/%d/*", i)}
		server.Routes = append(server.Routes, caddyhttp.Route{Group: "g", MatcherSets: caddyhttp.MatcherSets{{path}}, Handlers: []caddyhttp.MiddlewareHandler{p}})
	}
	http := &caddyhttp.App{Servers: map[string]*caddyhttp.Server{"s": server}}
	checks := slices.DeleteFunc(lintChecks(), func(c lintCheck) bool { return !c.certain })
	for _, c := range checks {
		b.Run(c.code, func(b *testing.B) {
			for b.Loop() {
				l := newLinted(a, http)
				l.inUse = true
				l.find([]lintCheck{c})
			}
		})
	}
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			l := newLinted(a, http)
			l.inUse = true
			l.find(checks)
		}
	})
}
