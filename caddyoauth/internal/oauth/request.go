package oauth

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds on what is parsed. The handler bounds the body before it comes here.
const (
	maxParameters  = 64
	maxSecretBytes = 1024
)

// parameters are those that mean something at an endpoint, or will be taken to mean it: a
// refusal may name them. What a caller sent is never repeated, not even a name.
var parameters = []string{
	"grant_type", "scope", "client_id", "client_secret", "token", "token_type_hint",
	"client_assertion", "client_assertion_type", "resource", "realm",
}

// Form is the parameters of a request's body, each with its one value. A parameter
// that was sent empty is absent (RFC 6749 section 3.2).
type Form map[string]string

// Get returns a parameter's value, or "" if it is absent.
func (f Form) Get(name string) string { return f[name] }

// parseForm reads an application/x-www-form-urlencoded body. It refuses, with an
// *Error, what is not well-formed, holds a NUL or invalid UTF-8, names a parameter twice,
// even with equal values, or spells one of ours as a list, as in `scope[0]`: ignored, like
// other parameters that nobody knows, it would be as if nothing had been asked.
func parseForm(body string) (Form, error) {
	if strings.Count(body, "&") >= maxParameters {
		return nil, invalidRequest("too many parameters")
	}
	values, err := url.ParseQuery(body)
	if err != nil {
		return nil, invalidRequest("the body is not well-formed")
	}
	for _, known := range parameters {
		if len(values[known]) > 1 {
			return nil, invalidRequest(known + " is repeated")
		}
	}
	form := make(Form, len(values))
	for name, v := range values {
		if len(v) > 1 {
			return nil, invalidRequest("a parameter is repeated")
		}
		if base, _, isList := strings.Cut(name, "["); isList {
			if i := slices.Index(parameters, base); i >= 0 {
				return nil, invalidRequest(parameters[i] + " must be sent once, and not as a list with brackets")
			}
		}
		if !plainText(name) || !plainText(v[0]) {
			return nil, invalidRequest("the body is not well-formed")
		}
		if v[0] != "" {
			form[name] = v[0]
		}
	}
	return form, nil
}

func plainText(s string) bool {
	return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}

// AuthMethod is a client authentication method, by its name in RFC 8414.
type AuthMethod string

// The methods that exist here. There is no "none": no client is public.
const (
	AuthBasic AuthMethod = "client_secret_basic"
	AuthPost  AuthMethod = "client_secret_post"
)

// Credentials are what a request offered to authenticate its client with. They hold
// the secret and so are never printed.
//
// Basic credentials can be read in two ways: RFC 6749 section 2.3.1 has the ID and the
// secret form-urlencoded, and many client libraries send them as they are. Each slice has
// the readings that differ, the RFC's first: one or two of them. What they are is up to
// the sender alone, so they tell nothing of who is registered.
type Credentials struct {
	Method    AuthMethod // empty if none were offered
	ClientIDs []string
	Secrets   []string
}

// String keeps the secret out of anything that prints the value.
func (c Credentials) String() string { return "REDACTED" }

// GoString keeps the secret out of %#v.
func (c Credentials) GoString() string { return "REDACTED" }

// mac stands for the credentials where they are compared.
func (c Credentials) mac() [sha256.Size]byte {
	return processMAC(nil, slices.Concat([]string{string(c.Method)}, c.ClientIDs, []string{""}, c.Secrets)...)
}

// Request is a parsed request to an endpoint that authenticates clients.
type Request struct {
	Form        Form
	Credentials Credentials

	// malformed: there is an Authorization header, but no well-formed Basic credentials in
	// it. That is an authentication that failed, so it waits for its turn: what is wrong
	// with the form is said before. Credentials may have the ID, for the log.
	malformed bool

	// From is where the request came from, for the fair use of slow hashes.
	From string
}

// ParseRequest puts a request together from its body and its Authorization header
// lines. The error is an *Error about the request's form; whether the credentials
// are any good is found out later.
func ParseRequest(body string, authorization []string, from string) (Request, error) {
	form, err := parseForm(body)
	if err != nil {
		return Request{}, err
	}
	req := Request{Form: form, From: from}

	// RFC 6749 section 2.3: no more than one method in each request.
	secret, assertion := form.Get("client_secret") != "", form.Get("client_assertion") != "" || form.Get("client_assertion_type") != ""
	switch {
	case len(authorization) > 1:
		return req, invalidRequest("there is more than one Authorization header")
	case len(authorization) == 1 && (secret || assertion), secret && assertion:
		return req, invalidRequest("there is more than one client authentication method")
	case len(authorization) == 1:
		creds, err := parseBasic(authorization[0])
		if named := form.Get("client_id"); named != "" && len(creds.ClientIDs) > 0 {
			// It says which of the readings is meant.
			if !slices.Contains(creds.ClientIDs, named) {
				return req, invalidRequest("client_id differs from the authenticated client")
			}
			creds.ClientIDs = []string{named}
		}
		req.Credentials, req.malformed = creds, err != nil
	case secret && form.Get("client_id") != "":
		req.Credentials = Credentials{Method: AuthPost, ClientIDs: []string{form.Get("client_id")}, Secrets: []string{form.Get("client_secret")}}
	}
	return req, nil
}

// parseBasic reads Basic credentials: an ID and a secret with a colon between them (RFC
// 7617), which stands for itself in the secret only. With an error there is no secret, and
// no ID if that could not be read either.
func parseBasic(header string) (Credentials, error) {
	scheme, encoded, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "Basic") {
		return Credentials{}, errors.New("not Basic")
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(strings.TrimLeft(encoded, " "))
	if err != nil {
		return Credentials{}, errors.New("not base64")
	}
	// Split first, decode second: an encoded colon belongs to the ID.
	id, secret, ok := strings.Cut(string(raw), ":")
	if !ok {
		return Credentials{}, errors.New("no colon")
	}
	creds := Credentials{Method: AuthBasic, ClientIDs: readings(id)}
	if len(creds.ClientIDs) == 0 {
		return Credentials{}, errors.New("the client ID is not text")
	}
	if creds.Secrets = readings(secret); len(creds.Secrets) == 0 {
		return creds, errors.New("the secret is not text")
	}
	return creds, nil
}

// readings returns what sent can mean: itself form-decoded, and itself, without what is not
// well-formed and without duplicates.
func readings(sent string) []string {
	var all []string
	if decoded, err := url.QueryUnescape(sent); err == nil && plainText(decoded) {
		all = append(all, decoded)
	}
	if plainText(sent) && !slices.Contains(all, sent) {
		all = append(all, sent)
	}
	return all
}
