package caddyoauth

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"golang.org/x/net/http/httpguts"
)

// headerReference is a value that may stand in any header: a reference to a secret, alone or
// behind the word that says what it is.
var headerReference = regexp.MustCompile(`^(?i:(Bearer|Basic|Token|ApiKey|Key) +)?\{(env|file)\.[^{}]+\}$`)

// openHeaders are those whose values are no secrets, so they may stand in a configuration.
// Nobody can tell from its name which other header is one.
var openHeaders = []string{
	"Accept-Api-Version", "Accept-Language", "From", "Origin", "Prefer", "Referer", "User-Agent", "X-Client-Name", "X-Correlation-Id",
	"X-Forwarded-Host", "X-Forwarded-Proto", "X-Realm", "X-Request-Id", "X-Requested-By", "X-Requested-With", "X-Tenant", "X-Tenant-Id",
}

// checkHeaders refuses what no request can carry, and what may be a secret that stands in
// the configuration. No error holds a value.
func checkHeaders(headers map[string]string) error {
	for _, name := range sortedKeys(headers) {
		switch {
		case !httpguts.ValidHeaderFieldName(name):
			return fmt.Errorf("header %q has no valid name", name)
		case !headerReference.MatchString(headers[name]) && !slices.Contains(openHeaders, http.CanonicalHeaderKey(name)):
			return fmt.Errorf("header %s: %w. It may follow Bearer, Basic, Token, ApiKey or Key. Literal values are accepted only in %s",
				name, errLiteralSecret, strings.Join(openHeaders, ", "))
		}
	}
	return nil
}

// headers returns what resolves the values of headers, for each request anew: a file may
// change, such as the token that Kubernetes gives a pod. An error means that it can't be done
// now. No error holds a value.
func headers(configured map[string]string) (func() (http.Header, error), error) {
	if len(configured) == 0 {
		return nil, nil
	}
	resolve := func() (http.Header, error) {
		replace := caddy.NewReplacer()
		header := make(http.Header)
		for name, value := range configured {
			resolved, err := replace.ReplaceOrErr(value, true, true)
			if err != nil || resolved == "" {
				return nil, fmt.Errorf("header %s: %s is not set, empty, or can't be read", name, value)
			}
			header.Set(name, resolved)
		}
		return header, nil
	}
	_, err := resolve()
	return resolve, err
}

// secretParameter is a parameter of a query whose value is a secret.
var secretParameter = regexp.MustCompile(`(?i)key$|token$|secret|passw|pwd|credential|signature|^(sig|auth|code)$`)

// checkQuery refuses a secret that stands in the query of a URL. No error holds it.
func checkQuery(what, uri string) error {
	_, query, _ := strings.Cut(uri, "?")
	for parameter := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(parameter, "=")
		if value != "" && secretParameter.MatchString(name) && !secretReference.MatchString(value) {
			return fmt.Errorf("%s has a parameter %q in its query: %w", what, name, errLiteralSecret)
		}
	}
	return nil
}

// parseHeader reads the name and the value of a header.
func parseHeader(d *caddyfile.Dispenser, headers *map[string]string) error {
	var name, value string
	if !d.AllArgs(&name, &value) {
		return d.ArgErr()
	}
	if *headers == nil {
		*headers = make(map[string]string)
	}
	if (*headers)[name] != "" {
		return d.Errf("header %s is there twice", name)
	}
	(*headers)[name] = value
	return nil
}
