package introspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// ask sends one request and reads the answer.
func (r *Remote) ask(ctx context.Context, token Token) (facts *Facts, failure *RemoteError) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	form := url.Values{"token": {token.text}, "token_type_hint": {"access_token"}}
	if r.cfg.Auth == "client_secret_post" {
		form.Set("client_id", r.cfg.ClientID)
		form.Set("client_secret", r.cfg.ClientSecret)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.cfg.URL, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, r.unsent("the request can't be made")
	}
	more, err := r.moreHeader()
	if err != nil {
		return nil, r.unsent(err.Error())
	}
	for _, header := range []http.Header{r.cfg.Header, more} {
		for name, values := range header {
			req.Header[http.CanonicalHeaderKey(name)] = values
		}
	}
	if r.authorization != "" {
		req.Header.Set("Authorization", r.authorization)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	// To the transport, an empty list means that a POST may be repeated; it sends no header. The
	// server may close an idle connection just as the next request uses it, and asking twice
	// harms nobody.
	req.Header["Idempotency-Key"] = []string{}
	req.Close = r.closed.Load()
	defer func() {
		if r.closed.Load() {
			r.client.CloseIdleConnections() // this one may have become idle after Close
		}
	}()

	status := 0
	if r.cfg.OnSend != nil {
		done := r.cfg.OnSend(req)
		defer func() { done(status, kindOf(facts, failure)) }()
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, r.broken(err, connected.Load())
	}
	defer resp.Body.Close()
	status = resp.StatusCode
	switch {
	case status >= 200 && status < 300:
	case status >= 300 && status < 400:
		return nil, r.fails(RemoteRedirect, status, "", 0)
	case status == http.StatusBadRequest:
		return nil, r.fails(RemoteStatus, status, strings.TrimPrefix(r.encodingHint(), "; "), 0)
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return nil, r.fails(RemoteCredentials, status, "the server does not accept this client, or says so of this token"+r.encodingHint(), 0)
	case status == http.StatusTooManyRequests:
		return nil, r.fails(RemoteThrottled, status, "", r.retryAfter(resp))
	default:
		return nil, r.fails(RemoteStatus, status, "", r.retryAfter(resp))
	}
	if !saysJSON(resp.Header.Get("Content-Type")) {
		return nil, r.fails(RemoteMalformed, 0, "the answer's Content-Type is not one of JSON", 0)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, min(r.cfg.MaxAnswer, 1<<62)+1))
	if err != nil {
		return nil, r.broken(err, true)
	}
	if int64(len(body)) > r.cfg.MaxAnswer {
		return nil, r.fails(RemoteTooLarge, 0, fmt.Sprintf("more than %d bytes", r.cfg.MaxAnswer), 0)
	}
	if facts, err = r.understand(body); err != nil {
		return nil, r.fails(RemoteMalformed, 0, err.Error(), 0)
	}
	if facts.Active {
		facts.ID = token.ID()
	}
	return facts, nil
}

// kindOf returns how a request ended, as for OnRequest.
func kindOf(facts *Facts, failure *RemoteError) string {
	switch {
	case failure != nil:
		return failure.Kind
	case facts != nil && facts.Active:
		return RemoteActive
	}
	return RemoteInactive
}

// moreHeader returns the headers of HeaderFunc, if they can be sent.
func (r *Remote) moreHeader() (http.Header, error) {
	if r.cfg.HeaderFunc == nil {
		return nil, nil
	}
	header, err := r.cfg.HeaderFunc()
	if err != nil {
		return nil, err
	}
	return header, r.cfg.checkHeader(header)
}

// encodingHint says what to try with a server that takes Basic credentials literally, if that
// makes a difference for these.
func (r *Remote) encodingHint() string {
	if r.cfg.Auth != "client_secret_basic" || url.QueryEscape(r.cfg.ClientID) == r.cfg.ClientID && url.QueryEscape(r.cfg.ClientSecret) == r.cfg.ClientSecret {
		return ""
	}
	return "; the ID or the secret has characters that are form-encoded before they are sent (RFC 6749 section 2.3.1): if this server does not decode them, try auth client_secret_post"
}

// saysJSON reports whether a Content-Type is JSON or absent. A signed answer (RFC 9701) is not
// JSON: its type ends in +jwt.
func saysJSON(contentType string) bool {
	if contentType == "" {
		return true
	}
	mediaType, _, err := mime.ParseMediaType(contentType)
	return err == nil && (mediaType == "application/json" || mediaType == "text/json" || strings.HasSuffix(mediaType, "+json"))
}

// retryAfter returns what the answer's Retry-After says (RFC 9110 section 10.2.3), within bounds.
func (r *Remote) retryAfter(resp *http.Response) time.Duration {
	value := resp.Header.Get("Retry-After")
	if value == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(value, 10, 64); err == nil {
		return time.Duration(min(seconds, uint64(maxRetryAfter/time.Second))) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(r.cfg.Now()), 0), maxRetryAfter)
}

// understand turns an answer into facts (RFC 7662 section 2.2). Members that are null count as
// absent. Its errors name members and quote nothing.
func (r *Remote) understand(body []byte) (*Facts, error) {
	answer, text, ok := readObject(body)
	if !ok {
		return nil, errors.New("the answer is not a JSON object, or is ambiguous")
	}
	switch active, ok := answer["active"].(bool); {
	case !ok:
		return nil, errors.New("active is not a boolean")
	case !active:
		return inactive, nil
	}
	for name, value := range answer {
		if value == nil {
			delete(answer, name)
		}
	}
	facts := &Facts{Active: true, Claims: text}

	var notBefore time.Time
	for name, at := range map[string]*time.Time{"exp": &facts.Expiry, "iat": &facts.IssuedAt, "nbf": &notBefore} {
		if value, present := answer[name]; present {
			// A bad exp must not become "forever".
			if *at, ok = answeredDate(value); !ok {
				return nil, fmt.Errorf("%s is not a time", name)
			}
		}
	}
	if value, present := answer["sub"]; present {
		if facts.Subject, ok = nameText(value); !ok {
			return nil, errors.New("sub is not a string")
		}
	}
	for _, name := range []string{"iss", "token_type", "token_use", "typ"} {
		if value, present := answer[name]; present {
			if _, ok = value.(string); !ok {
				return nil, fmt.Errorf("%s is not a string", name)
			}
		}
	}
	facts.Issuer, _ = answer["iss"].(string)
	// Some servers send an empty list or string for a token without an audience.
	if value, present := answer["aud"]; present && value != "" {
		if facts.Audience, ok = texts(value); !ok || slices.Contains(facts.Audience, "") {
			return nil, errors.New("aud is not a name or a list of names")
		}
	}
	if facts.ClientID, ok = clientOf(facts.Claims, r.cfg.ClientClaims); !ok {
		return nil, errors.New("the client is not a name, or two claims name different ones")
	}
	if facts.Scopes, ok = scopesOf(facts.Claims, r.cfg.ScopeClaims); !ok {
		return nil, errors.New("scope is not a list of scopes, or is too long")
	}

	now := r.cfg.Now()
	confirmation, ok := confirmationOf(answer, facts.Claims)
	switch {
	case !facts.Expiry.IsZero() && !now.Before(facts.Expiry):
		return InactiveBecause(CauseExpired), nil
	case !ok || !r.cfg.AcceptBound && confirmation != (Confirmation{}):
		return InactiveBecause(CauseBinding), nil
	case otherKind(answer, confirmation, false): // endpoints answer for refresh tokens too
		return InactiveBecause(CauseKind), nil
	case r.cfg.Issuer != "" && facts.Issuer != "" && facts.Issuer != r.cfg.Issuer:
		return InactiveBecause(CauseIssuer), nil
	}
	if usable := notBefore.Add(-r.cfg.Leeway); now.Before(usable) {
		return &Facts{notYet: usable, cause: CauseNotYet}, nil
	}
	facts.Confirmation = confirmation
	if facts.Issuer == "" {
		facts.Issuer = r.cfg.Issuer // the one that the endpoint is known to speak for
	}
	return facts, nil
}

// answeredDate reads a NumericDate as servers send it: possibly as a string, and possibly as a
// number that is not above zero if they know of no time, which yields the zero time.
func answeredDate(value any) (time.Time, bool) {
	if text, ok := value.(string); ok {
		value = json.Number(text)
	}
	number, _ := value.(json.Number)
	digits, negative := strings.CutPrefix(number.String(), "-")
	at, ok := numericDate(json.Number(digits))
	if negative || at.Equal(time.Unix(0, 0)) {
		at = time.Time{}
	}
	return at, ok
}
