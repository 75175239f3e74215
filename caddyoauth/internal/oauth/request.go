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

// maxParameters bounds the parameters of a form and a query.
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
	// Query is the query of the URL, where its parameters count like those of the form, in front of
	// them. It is empty where it is ignored. A realm in it is ignored in any case.
	Query string
	// TakeQueryToken takes the token that the request is about from Query, too. Otherwise that is ignored
	// there.
	TakeQueryToken bool
	// TakeQueryCredentials takes what authenticates a client from Query, too. Otherwise that is ignored
	// there.
	TakeQueryCredentials bool
	// Lenient takes a parameter that is repeated if its values are all the same, and AssertionType in
	// any case of letters.
	Lenient bool
	// Certificate is the client's certificate; nil if the sender has shown none.
	Certificate *Certificate
	// DPoP are the lines of the header DPoP.
	DPoP []string
	// URLs are those of the endpoint, as the realm's issuer has them, for DPoP proofs.
	URLs []string
	// Audiences are what the audience of a client's assertion may be, beside the issuer.
	Audiences []string
	// SVIDs is set if the realm knows spiffeAssertionType.
	SVIDs bool
	// From is where the request came from; see [Request].
	From netip.Addr
}

// Request is a request to such an endpoint, parsed.
type Request struct {
	// Form holds the parameters of the body, and of the query where it counts. A parameter that was sent empty is absent (RFC
	// 6749 section 3.2), and only resource may have more than one value.
	Form url.Values
	// Credentials are what the request offers to authenticate its client with.
	Credentials Credentials
	// CredentialsInQuery is set if Query has a secret or an assertion, whether or not it is taken from
	// there.
	CredentialsInQuery bool
	// Certificate is that of Incoming.
	Certificate *Certificate
	// DPoP, URLs and Audiences are those of Incoming.
	DPoP, URLs, Audiences []string
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
	form, queried, err := in.parseForm()
	if err != nil {
		return Request{}, err
	}
	creds, err := credentialsOf(in, form)
	return Request{Form: form, Credentials: creds, CredentialsInQuery: queried, Certificate: in.Certificate, DPoP: in.DPoP, URLs: in.URLs, Audiences: in.Audiences, From: in.From}, err
}

// parseForm parses the form, with the query in front of it. It refuses, with an *Error, one that is
// malformed, contains a NUL or invalid UTF-8, names a parameter other than resource twice, even with
// equal values unless in is Lenient, or spells one of ours as a list, as in `scope[0]`: as an unknown
// parameter, that would be ignored, as if nothing had been asked for. queried is
// [Request.CredentialsInQuery].
func (in Incoming) parseForm() (form url.Values, queried bool, err error) {
	if strings.Count(in.Body, "&")+strings.Count(in.Query, "&") >= maxParameters {
		return nil, false, invalidRequest("too many parameters")
	}
	if form, err = url.ParseQuery(in.Body); err != nil {
		return nil, false, invalidRequest("the body is not well-formed")
	}
	if in.Query != "" {
		if queried, err = in.addQuery(form); err != nil {
			return nil, false, err
		}
	}
	if err := in.checkForm(form); err != nil {
		return nil, false, err
	}
	return form, queried, nil
}

// clientParameters are those that authenticate a client.
var clientParameters = []string{"client_id", "client_secret", "client_assertion", "client_assertion_type"}

// addQuery puts the parameters of the query in front of those of the form, but for those that are
// ignored there. It reports whether there is a secret or an assertion among them all.
func (in Incoming) addQuery(form url.Values) (credentials bool, err error) {
	query, err := url.ParseQuery(in.Query)
	if err != nil {
		return false, invalidRequest("the query is not well-formed")
	}
	for name, values := range query {
		if name == "client_secret" || name == "client_assertion" {
			credentials = true
		}
		if name == "token" && !in.TakeQueryToken || name == "realm" || slices.Contains(clientParameters, name) && !in.TakeQueryCredentials {
			continue
		}
		form[name] = append(values, form[name]...)
	}
	return credentials, nil
}

// checkForm is what parseForm does with what it has parsed. It removes what is empty.
func (in Incoming) checkForm(form url.Values) error {
	if in.Lenient {
		for name, values := range form {
			if name != resourceParameter {
				form[name] = slices.Compact(values)
			}
		}
	}
	for _, known := range parameters {
		if len(form[known]) > 1 && known != resourceParameter {
			return invalidRequest(known + " is repeated")
		}
	}
	for name, values := range form {
		if len(values) > 1 && name != resourceParameter {
			return invalidRequest("a parameter is repeated")
		}
		if base, _, isList := strings.Cut(name, "["); isList {
			if i := slices.Index(parameters, base); i >= 0 && base == resourceParameter {
				return invalidRequest("resource must be repeated under its plain name, and not as a list with brackets")
			} else if i >= 0 {
				return invalidRequest(parameters[i] + " must be sent once, and not as a list with brackets")
			}
		}
		if !plainText(name) || slices.ContainsFunc(values, func(value string) bool { return !plainText(value) }) {
			return invalidRequest("the body is not well-formed")
		}
		form[name] = slices.DeleteFunc(values, func(value string) bool { return value == "" })
	}
	maps.DeleteFunc(form, func(_ string, values []string) bool { return len(values) == 0 })
	return nil
}

func plainText(s string) bool {
	return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}
