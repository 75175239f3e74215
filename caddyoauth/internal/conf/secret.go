package conf

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// ErrLiteralSecret is returned where a secret stands instead of a reference to it. It does not
// repeat what was written.
var ErrLiteralSecret = errors.New("a secret is given as {env.NAME} or {file./path}, never as itself: configurations are dumped and saved")

var secretReference = regexp.MustCompile(`^\{(env|file)\.[^{}]+\}$`)

// IsSecretReference reports whether text refers to a secret: it is exactly one placeholder,
// {env.NAME} or {file./path}.
func IsSecretReference(text string) bool { return secretReference.MatchString(text) }

// ResolveSecret returns the secret that a reference refers to, if it is likely to be the one that
// is meant: see oauth.CheckSecret. Of a file, one line end is dropped. No error holds any of it.
func ResolveSecret(reference string) (string, error) {
	if !IsSecretReference(reference) {
		return "", ErrLiteralSecret
	}
	secret, err := Resolve(reference)
	if err != nil || secret == "" {
		// err does not say whether there is no file, or nothing in it.
		return "", fmt.Errorf("%s is not set, empty, or can't be read", reference)
	}
	if err := oauth.CheckSecret(secret); err != nil {
		return "", fmt.Errorf("%s: %w", reference, err)
	}
	return secret, nil
}

// Resolve returns text with its placeholders replaced, as they are now. One that is unknown or
// empty is an error: a variable that is not set, or a file that is missing, must not quietly
// become an empty setting.
func Resolve(text string) (string, error) {
	return caddy.NewReplacer().ReplaceOrErr(text, true, true)
}

// secretParameter matches the names of parameters whose value is a secret.
var secretParameter = regexp.MustCompile(`(?i)key$|token$|secret|passw|pwd|credential|signature|^(sig|auth|code)$`)

// CheckQuery refuses a literal secret in the query of a URL, which the error calls what. It holds
// no value.
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
