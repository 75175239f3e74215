package caddyoauth

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fuzzImport tries an import with whatever a file may hold: what it makes of that is always a Caddyfile
// that becomes what was read, and that the gateway takes.
func fuzzImport(f *testing.F, pattern string, read func(*migration, []importedFile) error) {
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

func FuzzImportKeycloak(f *testing.F) {
	fuzzImport(f, "testdata/import/keycloak/*.json", (*migration).readKeycloak)
}

func FuzzImportHydra(f *testing.F) {
	fuzzImport(f, "testdata/import/hydra/*.json", (*migration).readHydra)
}

func FuzzImportAM(f *testing.F) {
	fuzzImport(f, "testdata/import/am/*/realms/root/OAuth2Clients/*.json", func(m *migration, files []importedFile) error { return m.readAM(files, "/") })
}
