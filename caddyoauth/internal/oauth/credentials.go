package oauth

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyoauth/gateway/introspect"
)

// maxSecretBytes bounds a client's secret.
const maxSecretBytes = 1024

// The methods of client authentication that exist here, by their names in RFC 8414. There is
// no "none": no client is public.
const (
	AuthBasic = "client_secret_basic"
	AuthPost  = "client_secret_post"
)

// Credentials are what a request offers to authenticate its client with, by exactly one
// method. They hold the secret, and so are never printed.
//
// Basic credentials can be read in two ways: RFC 6749 section 2.3.1 has the ID and the secret
// form-urlencoded, and many client libraries send them as they are. Each slice has the
// readings that differ, the RFC's first: one or two of them. They depend on the sender alone,
// so they tell nothing about who is registered.
type Credentials struct {
	Method    string // empty if none were offered
	ClientIDs []string
	Secrets   []string

	// assertion is what proves the client by AuthPrivateKeyJWT or AuthFederated, which are one method
	// on the wire, and issuer and subject are its iss and sub, which nobody has verified. The issuer of
	// an assertion of the type spiffeAssertionType is empty, since only its trust domain counts. named
	// is set if the request has a client_id beside the assertion.
	assertion, issuer, subject string
	named                      bool

	// certificate is what proves the client by AuthTLS or AuthSelfSigned. Which of them it is, its client
	// says; here the method is AuthTLS.
	certificate *Certificate

	// bearer is the access token that authenticates the caller.
	bearer string

	// malformed is set if there is an Authorization header without well-formed Basic
	// credentials. That is a failed authentication, so it waits for its turn: what is wrong with
	// the form is reported first. ClientIDs may have the ID, for the log.
	malformed bool
}

// String keeps the secret out of anything that prints the value.
func (c Credentials) String() string { return "REDACTED" }

// GoString keeps the secret out of %#v.
func (c Credentials) GoString() string { return "REDACTED" }

// mac stands for the credentials where they are compared.
func (c Credentials) mac() [sha256.Size]byte {
	return processMAC(nil, slices.Concat([]string{c.Method}, c.ClientIDs, []string{""}, c.Secrets, []string{c.assertion})...)
}

// credentialsOf returns the credentials of a request. No more than one method may be used in
// each (RFC 6749 section 2.3). A certificate counts as one only where there is no other: a client that
// has one shows it on every connection.
func credentialsOf(in Incoming, form url.Values) (Credentials, error) {
	id := form.Get("client_id")
	secret := form.Has("client_secret")
	assertion, kind := form.Get("client_assertion"), form.Get("client_assertion_type")
	asserted := assertion != "" || kind != ""
	if in.Lenient && strings.EqualFold(kind, AssertionType) {
		kind = AssertionType
	}
	switch {
	case len(in.Authorization) > 1:
		return Credentials{}, invalidRequest("there is more than one Authorization header")
	case len(in.Authorization) == 1 && (secret || asserted), secret && asserted:
		return Credentials{}, invalidRequest(SeveralMethods)
	case in.Bearer != "":
		return Credentials{Method: methodBearer, bearer: in.Bearer}, nil
	case len(in.Authorization) == 1:
		creds, err := parseBasic(in.Authorization[0])
		creds.malformed = err != nil
		if id != "" && len(creds.ClientIDs) > 0 {
			// It says which of the readings is meant.
			if !slices.Contains(creds.ClientIDs, id) {
				return Credentials{}, invalidRequest(OtherClientID)
			}
			creds.ClientIDs = []string{id}
		}
		return creds, nil
	case asserted && kind != AssertionType && !(in.SVIDs && kind == spiffeAssertionType):
		known := AssertionType
		if in.SVIDs {
			known += " or " + spiffeAssertionType
		}
		return Credentials{}, invalidRequest("client_assertion_type must be " + known)
	case asserted && assertion == "":
		return Credentials{}, invalidRequest("client_assertion is missing")
	case asserted:
		token := introspect.NewToken(assertion)
		creds := Credentials{Method: AuthPrivateKeyJWT, assertion: assertion, issuer: token.UnverifiedIssuer(), subject: token.UnverifiedSubject(), named: id != ""}
		if kind == spiffeAssertionType {
			creds.issuer = ""
		}
		creds.ClientIDs = []string{cmp.Or(id, creds.issuer)}
		return creds, nil
	case secret && id != "":
		return Credentials{Method: AuthPost, ClientIDs: []string{id}, Secrets: []string{form.Get("client_secret")}}, nil
	case in.Certificate != nil && id != "":
		return Credentials{Method: AuthTLS, ClientIDs: []string{id}, certificate: in.Certificate}, nil
	}
	return Credentials{}, nil
}

// parseBasic parses Basic credentials: an ID and a secret with a colon between them (RFC 7617).
// Further colons belong to the secret. With an error it returns no secret, and no ID if that
// could not be read either.
func parseBasic(header string) (Credentials, error) {
	scheme, encoded, ok := strings.Cut(header, " ")
	if !ok || len(scheme) != len("Basic") || !strings.EqualFold(scheme, "Basic") { // EqualFold alone takes \u017f for s
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

// readings returns what sent can mean: form-decoded, and as it is. It leaves out a reading that
// is not well-formed, or the same as the other.
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
