package caddyoauth

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

// The bytes of the endpoints: what is read from the wire, and what is written to it.

const (
	// maxBody bounds the body of a request to an endpoint, before anything is parsed.
	maxBody = 64 << 10
	// smallBody is the size up to which memory is set aside for all of a body before it is there. A
	// token request has some 30 to 300 bytes.
	smallBody = 1 << 10
	// bodyTimeout bounds how long such a body may take to arrive.
	bodyTimeout = 10 * time.Second
	// drainTimeout bounds how long an answer that needs no body waits for the rest of one.
	drainTimeout = 2 * time.Second
	// retryAfter is the Retry-After header of every 503, and of each 429 that doesn't know better, in
	// seconds.
	retryAfter = "5"
)

// tokenAnswer is a successful answer of the token endpoint (RFC 6749 section 5.1), its members
// in the order in which they are sent.
type tokenAnswer struct {
	AccessToken string `json:"access_token"`
	Scope       string `json:"scope"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int64  `json:"expires_in"` // seconds
}

func (e *route) tokenAnswerOf(g oauth.Grant) tokenAnswer {
	return tokenAnswer{
		AccessToken: g.Token,
		Scope:       g.Scope,
		TokenType:   tokenType(g.Key),
		ExpiresIn:   e.realm.am.expiresIn(g.Lifetime),
	}
}

// encode returns the answer as JSON, as encoding/json writes it. Almost all have nothing in them that it
// would escape.
func (a tokenAnswer) encode() []byte {
	if !plainJSON(a.AccessToken) || !plainJSON(a.Scope) || !plainJSON(a.TokenType) {
		b, _ := json.Marshal(a) //nolint:gosec // this is who gets the token; it can't fail with this type
		return b
	}
	b := make([]byte, 0, 96+len(a.AccessToken)+len(a.Scope)+len(a.TokenType))
	b = append(append(b, `{"access_token":"`...), a.AccessToken...)
	b = append(append(b, `","scope":"`...), a.Scope...)
	b = append(append(b, `","token_type":"`...), a.TokenType...)
	b = strconv.AppendInt(append(b, `","expires_in":`...), a.ExpiresIn, 10)
	return append(b, '}')
}

// plainJSON reports whether a text stands in JSON as it is.
func plainJSON(text string) bool {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return false
		}
	}
	return true
}

// encodedAnswer is an answer that is JSON already.
type encodedAnswer []byte

// tokenType returns the type of a token, given the thumbprint of the DPoP key that it is bound to.
func tokenType(key string) string {
	if key != "" {
		return "DPoP" // RFC 9449 section 5
	}
	return "Bearer"
}

// nonceHeader has the nonce for the caller's next DPoP proof (RFC 9449 section 8).
const nonceHeader = "DPoP-Nonce"

// introspectionAnswer is an answer of the introspection endpoint (RFC 7662 section 2.2). The
// zero value is {"active":false} and nothing more.
type introspectionAnswer struct {
	Active    bool     `json:"active"`
	Scope     string   `json:"scope,omitempty"`
	ClientID  string   `json:"client_id,omitempty"`
	TokenType string   `json:"token_type,omitempty"`
	Expiry    int64    `json:"exp,omitempty"`
	IssuedAt  int64    `json:"iat,omitempty"`
	Subject   string   `json:"sub,omitempty"`
	Audience  audience `json:"aud,omitempty"`
	Issuer    string   `json:"iss,omitempty"`
	JTI       string   `json:"jti,omitempty"`

	// Confirmation is there if the token is bound (RFC 8705 section 3.2).
	Confirmation introspect.Confirmation `json:"cnf,omitzero"`
}

func introspectionAnswerOf(facts *introspect.Facts) introspectionAnswer {
	if !facts.Active {
		return introspectionAnswer{}
	}
	return introspectionAnswer{
		Active:    true,
		Scope:     strings.Join(facts.Scopes, " "),
		ClientID:  facts.ClientID,
		TokenType: tokenType(facts.Confirmation.Key),
		Expiry:    facts.Expiry.Unix(),
		IssuedAt:  facts.IssuedAt.Unix(),
		Subject:   facts.Subject,
		Audience:  facts.Audience,
		Issuer:    facts.Issuer,
		JTI:       cmp.Or(facts.JTI, jtiOf(facts.ID)),

		Confirmation: facts.Confirmation,
	}
}

// jtiOf is the "jti", in introspection answers, of a token that has none itself. It identifies the token and is
// neither the token nor its ID: IDs stay inside.
func jtiOf(id introspect.TokenID) string {
	sum := sha256.Sum256(append([]byte("jti\x00"), id[:]...))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// audience is "aud": a string if there is one, else an array (RFC 7519 section 4.1.3).
type audience []string

// MarshalJSON implements [json.Marshaler].
func (a audience) MarshalJSON() ([]byte, error) {
	if len(a) == 1 {
		return json.Marshal(a[0])
	}
	return json.Marshal([]string(a))
}

// reasonCanceled says that the caller went away before there was an answer. In logs and metrics it
// stands in the place of the error as well, so that callers that hang up raise no alert.
const reasonCanceled = string(access.ResultCanceled)

// answer is the only place that turns what the engine said into a status, headers and JSON, a
// log line and a count. form is that of the request, nil if it could not be read.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, e *route, form url.Values, reply any, out oauth.Outcome, err error) {
	if out.CredentialsInQuery {
		s.warnOfQuery(r, e, out)
	}
	if err == nil {
		s.logOutcome(r, e, out)
		switch reply := reply.(type) {
		case signedAnswer:
			writeBody(w, http.StatusOK, mediaIntrospected, []byte(reply))
		case encodedAnswer:
			writeBody(w, http.StatusOK, mediaJSON, reply)
		default:
			writeJSON(w, http.StatusOK, reply)
		}
		return
	}
	var refusal *oauth.Error
	if !errors.As(err, &refusal) {
		// The caller has not caused it, and must not learn about it.
		refusal = &oauth.Error{Code: oauth.CodeUnavailable, Description: "try again later", Reason: "outage"}
		if r.Context().Err() != nil {
			refusal.Reason = reasonCanceled
		} else {
			s.logger.Error("request could not be answered", zap.String("endpoint", string(e.kind)), zap.String("realm", e.realm.name), zap.Error(err))
		}
	}
	status := http.StatusBadRequest
	switch refusal.Code {
	case oauth.CodeInvalidClient:
		status = http.StatusUnauthorized
		w.Header().Set("WWW-Authenticate", `Basic realm="`+e.realm.name+`"`)
	case oauth.CodeInvalidToken:
		status = http.StatusUnauthorized
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+e.realm.name+`", error="invalid_token", error_description="`+refusal.Description+`"`)
	case oauth.CodeInsufficientScope:
		status = http.StatusForbidden
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+e.realm.name+`", error="insufficient_scope", error_description="`+refusal.Description+`", scope="`+e.realm.settings.IntrospectScope+`"`)
	case oauth.CodeUseDPoPNonce:
		w.Header().Set(nonceHeader, refusal.Nonce)
	case oauth.CodeTooManyRequests:
		status = http.StatusTooManyRequests
		w.Header().Set("Retry-After", secondsUntil(refusal.RetryAfter))
	case oauth.CodeUnavailable:
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", retryAfter)
	}
	s.logRefusal(r, e, refusal, out)
	e.writeRefusal(w, r, form, status, refusal)
}

// secondsUntil is the value of a Retry-After header (RFC 9110 section 10.2.3). Zero is retryAfter.
func secondsUntil(wait time.Duration) string {
	if wait == 0 {
		return retryAfter
	}
	return strconv.FormatInt(int64(roundUp(wait)/time.Second), 10)
}

// roundUp rounds up to whole seconds.
func roundUp(d time.Duration) time.Duration { return (d + time.Second - 1).Truncate(time.Second) }

// refuse answers a request that never reached the engine.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, e *route, status int, refusal *oauth.Error) {
	s.logRefusal(r, e, refusal, oauth.Outcome{})
	dontAwaitBody(w, r)
	e.writeRefusal(w, r, nil, status, refusal)
}

// writeRefusal writes how a realm's endpoint refuses a request. form is as for answer.
func (e *route) writeRefusal(w http.ResponseWriter, r *http.Request, form url.Values, status int, refusal *oauth.Error) {
	if e.realm.am != nil {
		e.writeAMError(w, r, form, status, refusal)
		return
	}
	writeError(w, status, refusal)
}

func writeError(w http.ResponseWriter, status int, e *oauth.Error) {
	writeJSON(w, status, struct {
		Error       oauth.Code `json:"error"`
		Description string     `json:"error_description"`
	}{e.Code, e.Description})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil { // can't happen with any type that comes here
		http.Error(w, "", http.StatusInternalServerError)
		return
	}
	writeBody(w, status, mediaJSON, body)
}

func writeBody(w http.ResponseWriter, status int, mediaType string, body []byte) {
	w.Header().Set("Content-Type", mediaType)
	w.WriteHeader(status)
	w.Write(body) //nolint:gosec,nolintlint // no browser takes it for a page: it is JSON or a JWT, and nosniff is set. gosec finds it in some runs only
}

// isForm reports whether there is exactly one content type, and it is that of a form.
func isForm(types []string) bool {
	if len(types) != 1 {
		return false
	}
	if types[0] == mediaForm { // as nearly all send it
		return true
	}
	mediaType, _, err := mime.ParseMediaType(types[0])
	return err == nil && mediaType == mediaForm
}

// readBody reads the whole body, within maxBody and bodyTimeout.
func readBody(w http.ResponseWriter, r *http.Request) (string, error) {
	if r.ContentLength > maxBody {
		return "", &http.MaxBytesError{Limit: maxBody}
	}
	// A caller that sends a byte a minute must not keep a goroutine that long. Some writers have
	// no deadlines; then the server's own timeouts are all there is.
	control := http.NewResponseController(w)
	if control.SetReadDeadline(time.Now().Add(bodyTimeout)) == nil {
		defer control.SetReadDeadline(time.Time{})
	}
	if 0 <= r.ContentLength && r.ContentLength <= smallBody {
		body := make([]byte, r.ContentLength+1) // the end of a body comes with its last byte, or behind it
		n, err := io.ReadFull(r.Body, body)
		if int64(n) == r.ContentLength && (err == io.EOF || err == io.ErrUnexpectedEOF) {
			err = nil
		}
		return string(body[:n]), err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	return string(body), err
}

// unreadable is how a request is refused whose body readBody couldn't read.
func unreadable(err error) (status int, refusal *oauth.Error) {
	status, refusal = http.StatusBadRequest, &oauth.Error{Code: oauth.CodeInvalidRequest, Description: "the body could not be read", Reason: "body"}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		status, refusal.Description = http.StatusRequestEntityTooLarge, "the body is larger than 64 KiB"
	}
	return status, refusal
}

// dontAwaitBody lets the answer that follows, a refusal or a document, go out while the request's body
// may still be on its way. To keep the connection, net/http reads on for a while before it answers, so a
// caller that holds its body back, or sends a byte a minute, would delay the answer as long.
func dontAwaitBody(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor != 1 || r.ContentLength == 0 {
		return
	}
	// An error means an unusual writer. Then the answer has to wait.
	control := http.NewResponseController(w)
	if r.Header.Get("Expect") == "" {
		_ = control.SetReadDeadline(time.Now().Add(drainTimeout))
		return
	}
	// The caller waits to be asked for the body (100-continue), and won't be. Full duplex means
	// not reading on at all, so this connection must end: the rest of a body would be taken for
	// the next request, which would let one caller of a proxy in front of us speak for another.
	_ = control.EnableFullDuplex()
	w.Header().Set("Connection", "close")
}
