package caddyoauth

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Whatever is read as an export is one: written again, it says the same.
func FuzzReadExport(f *testing.F) {
	for _, text := range []string{
		`{"version":1,"clients":[]}`, `{"version":1,"clients":[{"realm":"root","id":"a","settings":{"secrets":[{"hash":"$sha256$x"}],"scopes":["read"]},"created":"2026-01-02T03:04:05Z"}]}`,
		`{"version":2}`, `{"version":1,"clients":[null]}`, `{"version":1,"clients":[{"use":{"credentials":{"x":"2026-01-02T03:04:05Z"}}}]}`, `{"version":1}{}`, `[`, ``,
		`{"version":1,"clients":[{"settings":{"federated":[null],"jwk":[{"kty":"EC"}],"token_lifetime":"5m"}}]}`,
	} {
		f.Add(text)
	}
	read := func(text string) (export exportedClients, err error) {
		cmd := new(cobra.Command)
		cmd.SetIn(strings.NewReader(text))
		return readExport(cmd, "-")
	}
	f.Fuzz(func(t *testing.T, text string) {
		export, err := read(text)
		if err != nil {
			return
		}
		once, err := json.Marshal(export)
		if err != nil {
			return // a time that JSON can't have
		}
		again, err := read(string(once))
		if err != nil {
			t.Fatalf("%s was read, and %s is not", text, once)
		}
		twice, err := json.Marshal(again)
		if err != nil || !bytes.Equal(once, twice) {
			t.Errorf("%s has become %s, and then %s, %v", text, once, twice, err)
		}
		for _, client := range export.Clients {
			// Whether or not it could be used, looking at it does no harm.
			_ = client.Settings.checkManaged()
		}
	})
}
