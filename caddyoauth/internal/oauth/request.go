package oauth

import (
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/caddyoauth/gateway/introspect"
)

// maxParameters bounds the parameters of a form.
const maxParameters = 64

// parameters are those that mean something at an endpoint, or that a client may expect to: a
// refusal may name them. Nothing else that a caller sent is repeated, not even a name.
var parameters = []string{
	"grant_type", "scope", "client_id", "client_secret", "token", "token_type_hint",
	"client_assertion", "client_assertion_type", resourceParameter, "realm",
}

// resourceParameter is the only parameter that may be sent more than once (RFC 8707 section 2).
const resourceParameter = "resource"

// Incoming is a request to an endpoint that authenticates clients, as it came. Whatever may
// prove who sent it arrives here.
type Incoming struct {
	// Authorization are the lines of the Authorization header.
	Authorization []string
	// Bearer is the access token in that header, where tokens authenticate callers; see
	// [Settings.IntrospectScope].
	Bearer string
	// Body is the form (application/x-www-form-urlencoded). The caller has bounded it.
	Body string
	// Certificate is the client's certificate; nil if the sender has shown none.
	Certificate *Certificate
	// DPoP are the lines of the header DPoP.
	DPoP []string
	// URLs are those of the endpoint, as the realm's issuer has them, for DPoP proofs.
	URLs []string
	// SVIDs is set if the realm knows spiffeAssertionType.
	SVIDs bool
	// From is where the request came from; see [Request].
	From netip.Addr
}

// Request is a request to such an endpoint, parsed.
type Request struct {
	// Form holds the parameters of the body. A parameter that was sent empty is absent (RFC
	// 6749 section 3.2), and only resource may have more than one value.
	Form url.Values
	// Credentials are what the request offers to authenticate its client with.
	Credentials Credentials
	// Certificate is that of Incoming.
	Certificate *Certificate
	// DPoP and URLs are those of Incoming.
	DPoP, URLs []string
	// From is the address that the request came from, for the fair use of slow hashes and the limit of
	// failures. The zero Addr is for all whose address is unknown.
	From netip.Addr
	// Elsewhere returns the engine of another realm that has issued a token, of those whose tokens a client
	// with IntrospectAnyRealm may ask about, or nil. It is for Introspect, and ParseRequest leaves it nil:
	// there are no others.
	Elsewhere func(token *introspect.Token) *Engine

	// instead is set if the credentials stand in for a token. A client that can have no token is
	// then treated like one that doesn't exist.
	instead bool
}

// ParseRequest parses a request. The error is an *Error about the request's form; whether the
// credentials are any good is found out later.
func ParseRequest(in Incoming) (Request, error) {
	form, err := parseForm(in.Body)
	if err != nil {
		return Request{}, err
	}
	creds, err := credentialsOf(in, form)
	return Request{Form: form, Credentials: creds, Certificate: in.Certificate, DPoP: in.DPoP, URLs: in.URLs, From: in.From}, err
}

// parseForm parses a form. It refuses, with an *Error, a form that is malformed, contains a NUL
// or invalid UTF-8, names a parameter other than resource twice, even with equal values, or
// spells one of ours as a list, as in `scope[0]`: as an unknown parameter, that would be ignored,
// as if nothing had been asked for.
func parseForm(body string) (url.Values, error) {
	if strings.Count(body, "&") >= maxParameters {
		return nil, invalidRequest("too many parameters")
	}
	form, err := url.ParseQuery(body)
	if err != nil {
		return nil, invalidRequest("the body is not well-formed")
	}
	for _, known := range parameters {
		if len(form[known]) > 1 && known != resourceParameter {
			return nil, invalidRequest(known + " is repeated")
		}
	}
	for name, values := range form {
		if len(values) > 1 && name != resourceParameter {
			return nil, invalidRequest("a parameter is repeated")
		}
		if base, _, isList := strings.Cut(name, "["); isList {
			if i := slices.Index(parameters, base); i >= 0 && base == resourceParameter {
				return nil, invalidRequest("resource must be repeated under its plain name, and not as a list with brackets")
			} else if i >= 0 {
				return nil, invalidRequest(parameters[i] + " must be sent once, and not as a list with brackets")
			}
		}
		if !plainText(name) || slices.ContainsFunc(values, func(value string) bool { return !plainText(value) }) {
			return nil, invalidRequest("the body is not well-formed")
		}
		form[name] = slices.DeleteFunc(values, func(value string) bool { return value == "" })
	}
	maps.DeleteFunc(form, func(_ string, values []string) bool { return len(values) == 0 })
	return form, nil
}

func plainText(s string) bool {
	return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}
