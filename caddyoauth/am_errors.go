package caddyoauth

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// How a realm with am_compat refuses. What ForgeRock AM refuses for the same reason has AM's status,
// code and text; everything else keeps ours. Logs and metrics know nothing of this: they have our
// codes and reasons.

// amError is a refusal as AM sends it, its members in the order in which they are sent.
type amError struct {
	Description string `json:"error_description"`
	Code        string `json:"error"`
	State       string `json:"state,omitempty"`
}

// amMethodNotAllowed is AM's code for any method but POST.
const amMethodNotAllowed = "method_not_allowed"

// amUnauthenticated is what AM says of a client that it doesn't know, or whose credentials are wrong.
// It is all that the answer to a secret ever says: a text for a client that may not use its method, as AM
// has one, would tell a stranger that the client exists.
const amUnauthenticated = "Client authentication failed"

// writeAMError writes a refusal as AM does. status, and the headers that are set, are what the gateway
// has otherwise.
func (e *route) writeAMError(w http.ResponseWriter, r *http.Request, form url.Values, status int, refusal *oauth.Error) {
	code, text := amErrorOf(refusal, r.Method)
	header := len(r.Header["Authorization"]) > 0
	if refusal.Description == oauth.SeveralMethods && header {
		text = amUnauthenticated
		if isAsserted(form) {
			code = string(oauth.CodeInvalidClient)
		}
	}
	if e.kind == endpointTokenInfo {
		w.Header().Del("WWW-Authenticate")
	}
	if code == string(oauth.CodeInvalidClient) {
		// It goes by what the client has sent, and not by what is known of it.
		if header {
			status = http.StatusUnauthorized
			w.Header().Set("WWW-Authenticate", `Basic realm="`+realmOfAM(e.realm.name)+`"`)
		} else {
			status = http.StatusBadRequest
			w.Header().Del("WWW-Authenticate")
			if isAsserted(form) {
				text = e.amAssertionFault(form, time.Now())
			}
		}
	}
	writeJSON(w, status, amError{text, code, amState(form, r.URL.RawQuery)})
}

// isAsserted reports whether a client authenticates by an assertion.
func isAsserted(form url.Values) bool { return form.Has("client_assertion") }

// amErrorOf returns the code and the text that AM has for a refusal of a request with this method, or ours
// where AM has none. Only scopes are repeated in it, whose grammar leaves nothing that could be mistaken
// for something else, and names of methods that exist.
func amErrorOf(refusal *oauth.Error, method string) (code, text string) {
	code = string(refusal.Code)
	switch {
	case refusal.Reason == reasonMethod:
		text = "Required Method: " + strings.TrimPrefix(refusal.Description, "the method must be ")
		if slices.Contains(amMethods, method) {
			text += " found: " + method
		}
		return amMethodNotAllowed, text
	case refusal.Reason == reasonContentType:
		return code, "Invalid Content Type"
	case refusal.Code == oauth.CodeUnsupportedGrantType:
		return code, "Grant type is not supported"
	case refusal.Code == oauth.CodeUnauthorizedClient:
		return code, "The authenticated client is not authorized to use this authorization grant type."
	case refusal.Code == oauth.CodeInvalidClient, refusal.Description == oauth.OtherClientID:
		return code, amUnauthenticated
	case refusal.Code == oauth.CodeInvalidGrant:
		return code, "The provided token id belongs to different access grant." // AM repeats the token there
	case len(refusal.Scopes) > 0:
		return code, "Unknown/invalid scope(s): [" + strings.Join(refusal.Scopes, ", ") + "]"
	}
	if text, known := amTexts[refusal.Description]; known {
		return code, text
	}
	return code, refusal.Description
}

// amTexts are AM's texts, by ours.
var amTexts = map[string]string{
	oauth.NoGrantType:    "Grant type is not set",
	oauth.NoToken:        "Missing parameter: token",
	oauth.NoScope:        "No scope requested and no default scope configured",
	oauth.MalformedScope: "Unknown/invalid scope(s): []",
}

// amMethods are the methods that AM's text may name.
var amMethods = []string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
	http.MethodConnect, http.MethodOptions, http.MethodTrace,
}

// amAssertionFault returns what AM says of an assertion that proves no client. All of it follows from
// what the assertion says of itself, and from what the realm publishes: whether its signature is right,
// or its client exists, makes no difference.
func (e *route) amAssertionFault(form url.Values, now time.Time) string {
	const other = "JWT is not valid"
	var claims jwt.Claims
	_, rest, _ := strings.Cut(form.Get("client_assertion"), ".")
	payload, _, _ := strings.Cut(rest, ".")
	data, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil || json.Unmarshal(data, &claims) != nil {
		return other
	}
	id := form.Get("client_id")
	// A platform's tokens have other rules.
	own := len(e.realm.federated) == 0 && e.realm.managed == nil
	switch {
	case own && (claims.Issuer != claims.Subject || id != "" && id != claims.Subject):
		return "JWT 'iss' and 'sub' claims must be equal to the client_id"
	case claims.Expiry != nil && !claims.Expiry.Time().After(now):
		return "JWT has expired"
	case own && claims.Expiry != nil && claims.Expiry.Time().Sub(now) > e.realm.am.assertionLifetime():
		return "JWT expiration time is unreasonable"
	case own && !(len(claims.Audience) == 1 && (claims.Audience[0] == e.realm.settings.Issuer || slices.Contains(e.audiences, claims.Audience[0]))):
		return "Audience validation failed"
	}
	return other
}

// maxAMState bounds the state that is sent back, in bytes.
const maxAMState = 1024

// amState returns the parameter state of a request, which AM sends back with a refusal. It is empty if it
// is too long, or has anything but text. form is nil if the body has not been read.
func amState(form url.Values, query string) string {
	if form == nil {
		form, _ = url.ParseQuery(query)
	}
	state := form.Get("state")
	if len(state) > maxAMState || !utf8.ValidString(state) || strings.ContainsFunc(state, unicode.IsControl) {
		return ""
	}
	return state
}

// refusesKey reports whether a token request asks for a token that is bound to a key in AM's own way,
// which sends the key without a proof. To leave it out would make a token that is good without any key.
func (am *AMCompat) refusesKey(form url.Values) bool { return am != nil && form.Has("cnf_key") }

var errCnfKey = &oauth.Error{Code: oauth.CodeInvalidRequest, Description: "Invalid cnf_key parameter", Reason: "cnf_key"}
