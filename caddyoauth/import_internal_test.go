package caddyoauth

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fuzzImport tries an import with whatever a file may hold: what it makes of that is always a Caddyfile
// that becomes what was read, and that the gateway takes. It begins with the exports that match the pattern,
// and with others.
func fuzzImport(f *testing.F, pattern string, read func(*migration, []importedFile) error, others ...string) {
	seeds, err := filepath.Glob(pattern)
	if err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, seed := range seeds {
		data, err := os.ReadFile(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, other := range others {
		f.Add([]byte(other))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 64<<10 {
			return
		}
		m := &migration{issuer: "https://auth.example.com/oauth2", certificates: t.TempDir()}
		if err := read(m, []importedFile{{"export.json", data}}); err != nil {
			return
		}
		if err := m.finish(); err != nil {
			return
		}
		for path, text := range m.files {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		text, err := writeRealms(m.realmsByName())
		if err != nil {
			t.Fatalf("%v", err)
		}
		var report strings.Builder
		if err := m.report.print(&report); err != nil {
			t.Fatal(err)
		}
		for _, secret := range m.secrets {
			if strings.Contains(text+report.String(), secret.Secret) {
				t.Error("a secret is printed")
			}
		}
	})
}

// importedSecret is a hash that is good anywhere.
const importedSecret = "$sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0"

func FuzzImportKeycloak(f *testing.F) {
	fuzzImport(f, "testdata/import/keycloak/*.json", (*migration).readKeycloak,
		// In AM, what is behind a | describes the scope before it, and here nothing is before it, or the same.
		`{"realm":"a","clients":[{"clientId":"c","serviceAccountsEnabled":true,"secret":"`+importedSecret+`","defaultClientScopes":["|a","a","a|b"]}]}`)
}

func FuzzImportHydra(f *testing.F) {
	fuzzImport(f, "testdata/import/hydra/*.json", (*migration).readHydra,
		`[{"client_id":"c","client_secret":"`+importedSecret+`","grant_types":["client_credentials"],"scope":"|a a a|b [1]=a"}]`)
}

func FuzzImportAM(f *testing.F) {
	fuzzImport(f, "testdata/import/am/*/realms/root/OAuth2Clients/*.json", func(m *migration, files []importedFile) error { return m.readAM(files, "/") }, amNumberedTwice)
}

// amNumberedTwice has scopes with two numbers before them. Without the first, each would be read as another
// scope.
const amNumberedTwice = `{"_id":"c","_type":{"_id":"OAuth2Client"},"coreOAuth2ClientConfig":{"userpassword":"` + importedSecret + `",` +
	`"scopes":["[1]=[2]=a","a","[1]=[0]=am-introspect-all-tokens"],"defaultScopes":["[0]=[0]=b"]},"advancedOAuth2ClientConfig":{"grantTypes":["client_credentials"]}}`

// A scope that would be read as another one is left out, and said to be: it could be one that has a client
// ask about all tokens.
func TestImportedScopesOfAMAreReadAsTheyAre(t *testing.T) {
	m := new(migration)
	if err := m.readAM([]importedFile{{"export.json", []byte(amNumberedTwice)}}, "/"); err != nil {
		t.Fatal(err)
	}
	if err := m.finish(); err != nil {
		t.Fatal(err)
	}
	c := m.realmsByName()[rootRealm].Clients["c"]
	if c == nil || !slices.Equal(c.Scopes, []string{"a"}) || c.DefaultScopes != nil || c.Introspect != "" {
		t.Errorf("the client is %+v", c)
	}
	var report strings.Builder
	if err := m.report.print(&report); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`scopes: "[2]=a" can't be one here`, `scopes: "[0]=am-introspect-all-tokens" can't be one here`, `defaultScopes: "[0]=b" can't be one here`} {
		if !strings.Contains(report.String(), want) {
			t.Errorf("the report says nothing of %s:\n%s", want, report.String())
		}
	}
	if _, err := writeRealms(m.realmsByName()); err != nil {
		t.Error(err)
	}
}
