package oauth

import (
	"encoding/base64"
	"errors"
	"net/url"
	"strings"
	"unicode/utf8"
)

// Bounds on what is parsed. The handler bounds the body before it comes here.
const (
	maxParameters  = 64
	maxSecretBytes = 1024
)

// Form is the parameters of a request's body, each with its one value. A parameter
// that was sent empty is absent (RFC 6749 section 3.2).
type Form map[string]string

// Get returns a parameter's value, or "" if it is absent.
func (f Form) Get(name string) string { return f[name] }

// parseForm reads an application/x-www-form-urlencoded body. It refuses, with an
// *Error, what is not well-formed, holds a NUL or invalid UTF-8, or names a parameter
// twice, even with equal values.
func parseForm(body string) (Form, error) {
	if strings.Count(body, "&") >= maxParameters {
		return nil, invalidRequest("too many parameters")
	}
	values, err := url.ParseQuery(body)
	if err != nil {
		return nil, invalidRequest("the body is not well-formed")
	}
	form := make(Form, len(values))
	for name, v := range values {
		if len(v) > 1 {
			return nil, invalidRequest("a parameter is repeated")
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
type Credentials struct {
	Method   AuthMethod // empty if none were offered
	ClientID string
	Secret   string
}

// String keeps the secret out of anything that prints the value.
func (c Credentials) String() string { return "REDACTED" }

// GoString keeps the secret out of %#v.
func (c Credentials) GoString() string { return "REDACTED" }

// Request is a parsed request to an endpoint that authenticates clients.
type Request struct {
	Form        Form
	Credentials Credentials

	// malformed: there is an Authorization header, but no well-formed Basic credentials in
	// it. That is an authentication that failed, so it waits for its turn: what is wrong
	// with the form is said before.
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
		id, sec, err := parseBasic(authorization[0])
		if err != nil {
			req.malformed = true
			return req, nil
		}
		if named := form.Get("client_id"); named != "" && named != id {
			return req, invalidRequest("client_id differs from the authenticated client")
		}
		req.Credentials = Credentials{Method: AuthBasic, ClientID: id, Secret: sec}
	case secret && form.Get("client_id") != "":
		req.Credentials = Credentials{Method: AuthPost, ClientID: form.Get("client_id"), Secret: form.Get("client_secret")}
	}
	return req, nil
}

// parseBasic reads Basic credentials as RFC 6749 section 2.3.1 has them: the client ID
// and the secret are each form-urlencoded before RFC 7617 puts a colon between them.
func parseBasic(header string) (id, secret string, err error) {
	scheme, encoded, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "Basic") {
		return "", "", errors.New("not Basic")
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(strings.TrimLeft(encoded, " "))
	if err != nil {
		return "", "", errors.New("not base64")
	}
	// Split first, decode second: an encoded colon belongs to the ID.
	rawID, rawSecret, ok := strings.Cut(string(raw), ":")
	if !ok {
		return "", "", errors.New("no colon")
	}
	if id, err = url.QueryUnescape(rawID); err != nil {
		return "", "", errors.New("client ID is not form-urlencoded")
	}
	if secret, err = url.QueryUnescape(rawSecret); err != nil {
		return "", "", errors.New("secret is not form-urlencoded")
	}
	if !plainText(id) || !plainText(secret) {
		return "", "", errors.New("not text")
	}
	return id, secret, nil
}
