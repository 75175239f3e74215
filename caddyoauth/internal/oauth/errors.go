package oauth

import "time"

// Code is an error code of RFC 6749 section 5.2, or one of the few besides those.
type Code string

// The codes with which an endpoint answers, and the status of each when the engine returns it.
const (
	CodeInvalidRequest       Code = "invalid_request"         // 400
	CodeInvalidClient        Code = "invalid_client"          // 401, with a challenge
	CodeInvalidGrant         Code = "invalid_grant"           // 400
	CodeUnauthorizedClient   Code = "unauthorized_client"     // 400
	CodeUnsupportedGrantType Code = "unsupported_grant_type"  // 400
	CodeInvalidScope         Code = "invalid_scope"           // 400
	CodeInvalidTarget        Code = "invalid_target"          // 400; RFC 8707 section 2
	CodeInvalidDPoPProof     Code = "invalid_dpop_proof"      // 400; RFC 9449 section 5
	CodeUseDPoPNonce         Code = "use_dpop_nonce"          // 400, with a DPoP-Nonce; RFC 9449 section 8
	CodeInvalidToken         Code = "invalid_token"           // 401, with a challenge; RFC 6750 section 3.1
	CodeInsufficientScope    Code = "insufficient_scope"      // 403, with a challenge; RFC 6750 section 3.1
	CodeTooManyRequests      Code = "slow_down"               // 429; the word is RFC 8628's
	CodeUnavailable          Code = "temporarily_unavailable" // 503
	// CodeUnsupportedResponseType is for those who are sent to log in (RFC 6749 section 4.1.2.1).
	CodeUnsupportedResponseType Code = "unsupported_response_type" // 400
)

// Descriptions of refusals that a server may have to tell from others with the same code.
const (
	NoGrantType    = "grant_type is missing"
	NoToken        = "token is missing"
	NoScope        = "no scope was requested and the client has no default scope"
	MalformedScope = "the scope is malformed or too long"
	// OtherClientID means that client_id is not the client that the other credentials name.
	OtherClientID = "client_id differs from the authenticated client"
	// SeveralMethods means that there are several kinds of credentials (RFC 6749 section 2.3).
	SeveralMethods = "there is more than one client authentication method"
)

// Error is a refusal that the caller is told about.
type Error struct {
	Code Code
	// Description is for the caller. It never repeats what a caller sent: RFC 6749 section 5.2
	// limits the characters, and reflection has been an attack more than once.
	Description string
	// RetryAfter is when the caller may come back; zero says nothing about that.
	RetryAfter time.Duration
	// Reason tells operators more than the caller may know, such as "unknown_client". It goes to
	// the log only. It is empty where Description says it all.
	Reason string
	// Nonce goes with CodeUseDPoPNonce.
	Nonce string
	// Scopes are those that the client may not have, with CodeInvalidScope: what it asked for, as far as
	// that is well-formed.
	Scopes []string
}

func (e *Error) Error() string { return string(e.Code) + ": " + e.Description }

func invalidRequest(description string) *Error {
	return &Error{Code: CodeInvalidRequest, Description: description}
}

// invalidClient is the one answer to every failed authentication, whatever its reason.
func invalidClient(reason string) *Error {
	return &Error{Code: CodeInvalidClient, Description: "client authentication failed", Reason: reason}
}

// ReasonFailureLimit is the reason of an Error with CodeTooManyRequests if the credentials were not
// looked at; see [Failures].
const ReasonFailureLimit = "failure_limit"

// tooManyFailures is the answer to an authentication during a pause; see [Failures].
func tooManyFailures(wait time.Duration) *Error {
	return &Error{Code: CodeTooManyRequests, Description: "too many failed authentications", RetryAfter: wait, Reason: ReasonFailureLimit}
}
