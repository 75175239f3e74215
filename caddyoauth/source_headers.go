package caddyoauth

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"golang.org/x/net/http/httpguts"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
)

// headerScheme matches the word that may come before a reference to a secret in a header.
var headerScheme = regexp.MustCompile(`^(?i:Bearer|Basic|Token|ApiKey|Key) +`)

// openHeaders are the headers whose values are not secret and may be written in a configuration.
// Of any other header, nobody can tell from its name whether its value is secret.
var openHeaders = []string{
	"Accept-Api-Version", "Accept-Language", "From", "Origin", "Prefer", "Referer", "User-Agent", "X-Client-Name", "X-Correlation-Id",
	"X-Forwarded-Host", "X-Forwarded-Proto", "X-Realm", "X-Request-Id", "X-Requested-By", "X-Requested-With", "X-Tenant", "X-Tenant-Id",
}

// checkHeaders refuses headers that no request can carry, names that differ in case alone, of which
// only one could be sent, and literal values that may be secret. No error holds a value.
func checkHeaders(headers map[string]string) error {
	seen := make(map[string]bool, len(headers))
	for _, name := range sortedKeys(headers) {
		canonical := http.CanonicalHeaderKey(name)
		switch {
		case !httpguts.ValidHeaderFieldName(name):
			return fmt.Errorf("header %q: this is not a valid name", name)
		case seen[canonical]:
			return duplicateHeader(name)
		case !conf.IsSecretReference(headerScheme.ReplaceAllString(headers[name], "")) && !slices.Contains(openHeaders, canonical):
			return fmt.Errorf("header %s: %w; it may come after Bearer, Basic, Token, ApiKey or Key. Literal values are accepted only in %s",
				name, conf.ErrLiteralSecret, strings.Join(openHeaders, ", "))
		}
		seen[canonical] = true
	}
	return nil
}

func duplicateHeader(name string) error {
	return fmt.Errorf("duplicate header %s; upper and lower case are the same", name)
}

// headerFunc returns a function that looks up the values of the headers, which checkHeaders has
// accepted. It is called for each request, because a file may change, such as the token that
// Kubernetes gives a pod. An error means that a value can't be found now. It names the reference,
// never what it refers to.
func headerFunc(configured map[string]string) (func() (http.Header, error), error) {
	if len(configured) == 0 {
		return nil, nil
	}
	resolve := func() (http.Header, error) {
		header := make(http.Header)
		for name, value := range configured {
			resolved := value
			if err := conf.Resolve(name, &resolved); err != nil || resolved == "" {
				return nil, fmt.Errorf("header %s: %s is not set, empty, or can't be read", name, value)
			}
			header.Set(name, resolved)
		}
		return header, nil
	}
	_, err := resolve()
	return resolve, err
}

// headerOption reads header <name> <value>, which may repeat.
func headerOption(place *map[string]string) conf.Option {
	return conf.Repeatable(conf.Func(func(d *caddyfile.Dispenser) error {
		args := d.RemainingArgs()
		if len(args) != 2 {
			return d.Err("header takes a name and a value")
		}
		if *place == nil {
			*place = make(map[string]string)
		}
		for name := range *place {
			if strings.EqualFold(name, args[0]) {
				return d.WrapErr(duplicateHeader(args[0]))
			}
		}
		(*place)[args[0]] = args[1]
		return nil
	}))
}
