package caddyoauth_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/caddyoauth/gateway/caddyoauth"
)

// Whatever is in our blocks, the parser returns JSON or an error. The JSON is always the same and
// has no field that the app does not know. Loading it succeeds or fails, but does not panic.
func FuzzCaddyfile(f *testing.F) {
	seeds := goldens(f)
	if flag.Lookup("test.fuzz").Value.String() != "" {
		// The fuzzer runs all seeds before it makes others of them, and would come no further in seconds.
		rand.Shuffle(len(seeds), func(i, j int) { seeds[i], seeds[j] = seeds[j], seeds[i] })
		seeds = seeds[:30]
	}
	for _, g := range seeds {
		// The oauth block of a golden file, and what its site does with our directives.
		_, rest, _ := strings.Cut(g.caddyfile, "oauth {\n")
		block, site, _ := strings.Cut(rest, "\n\t}\n")
		directive := func(name string) string {
			_, rest, _ := strings.Cut(site, "\t"+name)
			text, _, _ := strings.Cut(rest, "\n\t}\n")
			if !strings.Contains(text, "{") {
				text, _, _ = strings.Cut(text, "\n")
				return text
			}
			return text + "\n}"
		}
		f.Add(block, directive("oauth_server"), directive("oauth_protect"))
	}
	adapter := caddyconfig.GetAdapter("caddyfile")
	f.Fuzz(func(t *testing.T, oauth, server, protect string) {
		text := "{\noauth {\n" + oauth + "\n}\n}\n:8080 {\noauth_server " + server + "\noauth_protect " + protect + "\nrespond ok\n}\n"
		if strings.Contains(text, "import") {
			return // it would read files
		}
		options := map[string]any{"filename": "Caddyfile"}
		config, _, err := adapter.Adapt([]byte(text), options)
		if err != nil {
			return
		}
		if again, _, err := adapter.Adapt([]byte(text), options); err != nil || !bytes.Equal(config, again) {
			t.Fatalf("the second time the result is different: %v\n%s\n%s", err, config, again)
		}
		var c caddy.Config
		if err := json.Unmarshal(config, &c); err != nil {
			t.Fatalf("%v: %s", err, config)
		}
		raw := c.AppsRaw["oauth"]
		if raw == nil {
			return // the text has closed our block and continued outside of it
		}
		var app caddyoauth.App
		if err := caddy.StrictUnmarshalJSON(raw, &app); err != nil {
			t.Fatalf("%v: %s", err, raw)
		}
		if written, err := json.Marshal(app); err != nil || !bytes.Equal(normal(t, written), normal(t, raw)) {
			t.Fatalf("%s reads back as %s, %v", raw, written, err)
		}
		// Without other apps, which the text may have configured as well.
		off := json.RawMessage(`{"disabled":true}`)
		alone, err := json.Marshal(map[string]any{"admin": off, "apps": map[string]any{"oauth": raw}})
		if err != nil {
			t.Fatal(err)
		}
		_ = validate(alone) // either will do, but it must return
	})
}
