package caddyoauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"
)

// canBeWritten reports whether a text can be an argument in a Caddyfile and mean itself. With a brace it
// could be a placeholder, or a variable of the environment, even in quotes.
func canBeWritten(text string) bool {
	for _, c := range text {
		if c < ' ' || c > '~' || c == '{' || c == '}' {
			return false
		}
	}
	return !strings.Contains(text, "`") || !strings.ContainsAny(text, `"\`)
}

// plainArgument matches texts that mean themselves without quotes. Anything else could begin a comment, a
// heredoc or a snippet.
var plainArgument = regexp.MustCompile(`^[A-Za-z0-9_.:/$*+-][A-Za-z0-9_.:/$*+=,~@?&%-]*$`)

// quotedArgument returns a text that canBeWritten as one argument of a Caddyfile.
func quotedArgument(text string) string {
	switch {
	case plainArgument.MatchString(text):
		return text
	case strings.ContainsAny(text, `"\`):
		return "`" + text + "`"
	}
	return `"` + text + `"`
}

// caddyfileBlock writes the block of a client, with those settings that commands can give it.
func caddyfileBlock(id string, c *Client) string {
	lines := []string{"client " + quotedArgument(id) + " {"}
	add := func(option string, values ...string) {
		if len(values) == 0 || values[0] == "" {
			return
		}
		line := "\t" + option
		for _, value := range values {
			line += " " + quotedArgument(value)
		}
		lines = append(lines, line)
	}
	flag := func(option string, set bool) {
		if set {
			lines = append(lines, "\t"+option)
		}
	}
	for _, secret := range c.Secrets {
		values := []string{secret.Hash}
		if !secret.Until.IsZero() {
			values = append(values, "until", secret.Until.Format(time.RFC3339))
		}
		add("secret_hash", values...)
	}
	for _, jwk := range c.JWK {
		lines = append(lines, "\tjwk `"+string(jwk)+"`")
	}
	add("auth", c.Auth...)
	add("jwks_uri", c.JWKSURI)
	add("assertion_algorithms", c.AssertionAlgorithms...)
	if subject := c.TLSClientAuth; subject != nil {
		add("tls_client_auth", subject.Kind, subject.Value)
	}
	add("certificate_file", c.CertificateFiles...)
	add("grant_types", c.GrantTypes...)
	add("scopes", c.Scopes...)
	add("default_scopes", c.DefaultScopes...)
	add("audience", c.Audience...)
	add("token_format", c.TokenFormat)
	if c.TokenLifetime != 0 {
		add("token_lifetime", time.Duration(c.TokenLifetime).String())
	}
	flag("certificate_bound", c.CertificateBound)
	add("dpop", c.DPoP)
	add("introspect", c.Introspect)
	flag("disabled", c.Disabled)
	return strings.Join(append(lines, "}"), "\n")
}

// writeRealms returns a Caddyfile with the realms that were read. It is read again, so that nothing in
// an export can become something else than what the report says: what the adapter makes of it must be
// what was meant, and the gateway must take it.
func writeRealms(realms map[string]*Realm) (string, error) {
	var text strings.Builder
	text.WriteString("{\noauth {\n")
	write := func(realm *Realm) {
		if realm.Issuer != "" {
			fmt.Fprintf(&text, "issuer %s\n", quotedArgument(realm.Issuer))
		}
		if realm.AMCompat != nil {
			text.WriteString("am_compat\n")
		}
		if realm.TokenLifetime != 0 {
			fmt.Fprintf(&text, "token_lifetime %s\n", time.Duration(realm.TokenLifetime))
		}
		if realm.TokenFormat != "" {
			fmt.Fprintf(&text, "token_format %s\n", realm.TokenFormat)
		}
		for _, id := range sortedKeys(realm.Clients) {
			fmt.Fprintf(&text, "\n%s\n", caddyfileBlock(id, realm.Clients[id]))
		}
	}
	if root := realms[rootRealm]; root != nil {
		write(root)
	}
	for _, name := range sortedKeys(realms) {
		if name != rootRealm {
			fmt.Fprintf(&text, "\nrealm %s {\n", name)
			write(realms[name])
			text.WriteString("}\n")
		}
	}
	text.WriteString("}\n}\n")
	written := string(caddyfile.Format([]byte(text.String())))
	if err := sameRealms(written, realms); err != nil {
		return "", fmt.Errorf("the Caddyfile would not be what was read, so it is not written: %w", err)
	}
	return written, nil
}

// sameRealms reports whether a Caddyfile has just these realms, and the gateway would take them. The
// error holds no secret.
func sameRealms(text string, realms map[string]*Realm) error {
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return err
	}
	var parsed caddy.Config
	var app App
	if err := json.Unmarshal(config, &parsed); err != nil {
		return err
	}
	if err := json.Unmarshal(parsed.AppsRaw["oauth"], &app); err != nil {
		return err
	}
	if len(parsed.AppsRaw) != 1 || len(app.Realms) != len(realms) {
		return errors.New("it has something else in it")
	}
	root := app.Realms[rootRealm]
	if root == nil {
		root = &Realm{}
	}
	for _, name := range sortedKeys(realms) {
		realm := app.Realms[name]
		if realm == nil {
			return fmt.Errorf("it has no realm %s", name)
		}
		realm.At = ""
		for _, client := range realm.Clients {
			client.At = ""
		}
		got, err1 := json.Marshal(realm)
		want, err2 := json.Marshal(realms[name])
		if err1 != nil || err2 != nil || string(got) != string(want) {
			return fmt.Errorf("realm %s is another one", name)
		}
		if _, err := realm.provision(name, root, zap.NewNop()); err != nil {
			return fmt.Errorf("realm %s: %w", name, err)
		}
	}
	return nil
}
