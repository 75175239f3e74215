package conf

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// ErrLiteralSecret means that a secret is written where a reference to it belongs. It does not
// repeat what is written.
var ErrLiteralSecret = errors.New("a secret must be given as {env.NAME} or {file./path}, never literally: configurations are dumped and saved")

var secretReference = regexp.MustCompile(`^\{(env|file)\.[^{}]+\}$`)

// IsSecretReference reports whether text refers to a secret: it is exactly one placeholder,
// {env.NAME} or {file./path}.
func IsSecretReference(text string) bool { return secretReference.MatchString(text) }

var secretReferences = regexp.MustCompile(`\{(env|file)\.[^{}]+\}`)

// HasSecretReference reports whether text has at least one reference to a secret, between other
// text or alone, and neither another placeholder nor a brace.
func HasSecretReference(text string) bool {
	rest := secretReferences.ReplaceAllLiteralString(text, "")
	return rest != text && !strings.ContainsAny(rest, "{}")
}

// ResolveSecrets returns text with its references replaced by the secrets that they refer to, each
// as ResolveSecret returns it. No error holds any of the text besides the reference.
func ResolveSecrets(text string) (string, error) {
	if !HasSecretReference(text) {
		return "", ErrLiteralSecret
	}
	var failed error
	resolved := secretReferences.ReplaceAllStringFunc(text, func(reference string) string {
		secret, err := ResolveSecret(reference)
		failed = errors.Join(failed, err)
		return secret
	})
	if failed != nil {
		return "", failed
	}
	return resolved, nil
}

// ResolveSecret returns the secret that a reference refers to. It refuses what is unlikely to be
// the secret that is meant, such as one with a byte order mark or several lines; see
// oauth.CheckSecret. One line end at the end of a file is dropped. No error holds any of the
// secret.
func ResolveSecret(reference string) (string, error) {
	if !IsSecretReference(reference) {
		return "", ErrLiteralSecret
	}
	secret := reference
	if err := Resolve("secret", &secret); err != nil || secret == "" {
		// err does not tell a missing file from an empty one.
		return "", fmt.Errorf("%s is not set, empty, or can't be read", reference)
	}
	if err := oauth.CheckSecret(secret); err != nil {
		return "", fmt.Errorf("%s: %w", reference, err)
	}
	return secret, nil
}

// Resolve replaces the placeholders in place by the values that they have now. An unknown or empty
// placeholder is an error, which names the option: a variable that is not set, or a missing file,
// must not silently become an empty setting.
func Resolve(option string, place *string) error {
	text, err := caddy.NewReplacer().ReplaceOrErr(*place, true, true)
	if err != nil {
		return fmt.Errorf("%s: %w", option, err)
	}
	*place = text
	return nil
}

// secretParameter matches the names of parameters whose value is a secret.
var secretParameter = regexp.MustCompile(`(?i)key$|token$|secret|passw|pwd|credential|signature|^(sig|auth|code)$`)

// CheckQuery refuses a literal secret in the query of a URL; what is what the error calls the URL.
// The error holds no value.
func CheckQuery(what, uri string) error {
	_, query, _ := strings.Cut(uri, "?")
	for parameter := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(parameter, "=")
		if value != "" && secretParameter.MatchString(name) && !IsSecretReference(value) {
			return fmt.Errorf("%s has a parameter %q in its query: %w", what, name, ErrLiteralSecret)
		}
	}
	return nil
}
