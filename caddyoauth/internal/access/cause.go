package access

import "github.com/caddyoauth/gateway/introspect"

// Cause is why a request is refused. It is for logs and metrics. Callers are not told: it would
// tell them about the token's state. [introspect.Cause] has those that a token's source finds.
type Cause = introspect.Cause

// The causes that are not found by a token's source.
const (
	// CauseMissing means that the request has no bearer token.
	CauseMissing Cause = "missing"
	// CauseMalformedAuthorization means that Authorization is not one well-formed bearer token.
	CauseMalformedAuthorization Cause = "malformed_authorization"
	// CauseTooLong means that the token is longer than any that a source accepts.
	CauseTooLong Cause = "token_too_long"
	// CauseOtherRealm means that a realm of this gateway issued the token, and that the route
	// doesn't accept that realm's tokens.
	CauseOtherRealm Cause = "other_realm"
	// CauseEarlyData means that the token is bound to a certificate, and that the request was sent
	// before the TLS handshake was complete.
	CauseEarlyData Cause = "early_data"
	// CauseNamesNobody means that the token has neither a client nor a subject. A backend
	// would take its bearer for nobody.
	CauseNamesNobody Cause = "names_nobody"
	// CauseUnfit means that the token's names don't fit into headers; see [Request].
	CauseUnfit Cause = "unfit_for_headers"
	// CauseScope means that the token is valid here and lacks a scope.
	CauseScope Cause = "scope"
	// CauseClaim means that the token is valid here and lacks a claim.
	CauseClaim Cause = "claim"
	// CauseAmbiguousPath means that a backend could read the path differently.
	CauseAmbiguousPath Cause = "ambiguous_path"
	// CauseTunnel means that the request asks for a tunnel (CONNECT), which nobody can judge.
	CauseTunnel Cause = "tunnel"
	// CauseInsecure means that the request came over plain HTTP from another machine.
	CauseInsecure Cause = "insecure"
	// CauseBasic means that Basic credentials, which the route takes, are not those of a client that
	// may use them here.
	CauseBasic Cause = "basic"
	// CauseBusy means that so many slow hashes are under way that nobody could tell whether Basic
	// credentials are right.
	CauseBusy Cause = "busy"
	// CauseFailureLimit means that Basic credentials were not looked at, after too many failures in
	// the name of the same client from the same network.
	CauseFailureLimit Cause = "failure_limit"
	// CauseUnbound means that the token is not bound to a key, and that it must be, or was sent as if it
	// were.
	CauseUnbound Cause = "unbound"
	// CauseProofMissing means that a token that is bound to a key came without a DPoP proof.
	CauseProofMissing Cause = "dpop_missing"
	// CauseProofInvalid means that the DPoP proof is not one for this request, or that there are two.
	CauseProofInvalid Cause = "dpop_invalid"
	// CauseProofReplayed means that the DPoP proof was used before.
	CauseProofReplayed Cause = "dpop_replayed"
	// CauseProofNonce means that the DPoP proof needs a nonce that the gateway gave out.
	CauseProofNonce Cause = "dpop_nonce"
	// CauseOutage means that nobody could find out what the token means.
	CauseOutage Cause = "outage"
	// CauseCanceled means that the caller went away before anybody could.
	CauseCanceled Cause = "canceled"
)

// CausesOfBasic are those that only a route can have that takes Basic credentials.
var CausesOfBasic = []Cause{CauseBasic, CauseBusy, CauseFailureLimit}

// CausesOfDPoP are those that only a route can have that takes tokens which are bound to keys.
var CausesOfDPoP = []Cause{CauseUnbound, CauseProofMissing, CauseProofInvalid, CauseProofReplayed, CauseProofNonce}

// Result is what a caller is told, as in {http.oauth.error} and metrics.
type Result string

// The results of requests that are refused.
const (
	ResultMissing     Result = "missing_token"
	ResultRequest     Result = "invalid_request"
	ResultToken       Result = "invalid_token"
	ResultProof       Result = "invalid_dpop_proof"
	ResultNonce       Result = "use_dpop_nonce"
	ResultClient      Result = "invalid_client"
	ResultScope       Result = "insufficient_scope"
	ResultClaims      Result = "insufficient_claims"
	ResultTooEarly    Result = "too_early"
	ResultPath        Result = "ambiguous_path"
	ResultTunnel      Result = "tunnel"
	ResultInsecure    Result = "insecure_transport"
	ResultSlowDown    Result = "slow_down"
	ResultUnavailable Result = "temporarily_unavailable"
	ResultCanceled    Result = "canceled"
)

// Explanation says what a cause means to an operator.
type Explanation struct {
	Cause  Cause
	Result Result // the same for all causes that callers must not tell apart
	Means  string // a sentence
	Do     string // a sentence
}

// Explanations are all causes there are, in the order in which the manual lists them. It is
// the only such list, and read-only.
var Explanations = []Explanation{
	{CauseMissing, ResultMissing, "The request has no bearer token.", "The client must send `Authorization: Bearer <token>`."},
	{CauseMalformedAuthorization, ResultRequest, "`Authorization` is there twice, or is not one well-formed bearer token.", "Look at what the client, or a proxy before the gateway, puts there."},
	{introspect.CauseMalformed, ResultToken, "The token has characters that no token has, or it is a JWT that can't be read: bad encoding, duplicate members, a claim of the wrong type, no `exp`.", "Compare what the client sends with what it was issued; ask the issuer what it puts into its tokens."},
	{CauseTooLong, ResultToken, "The token has more than 16 KiB.", "Have the issuer put less into it."},
	{introspect.CauseNoSource, ResultToken, "No source of the route recognizes the token.", "Look at which server issues the client's tokens, and whether the route has a `source` for it."},
	{introspect.CauseIssuer, ResultToken, "The token names an issuer that no source of the route speaks for.", "Compare `issuer` with the route's sources, byte for byte; a trailing slash counts."},
	{introspect.CauseUnknown, ResultToken, "The server that was asked says that the token is not active, and no more.", "Look into that server's log."},
	{introspect.CauseForged, ResultToken, "The token looks like one of this gateway and was not issued by it. It may be another gateway's, or was made before the key in the store was lost or replaced.", "Have the client fetch a new token. If many clients meet this at once, look at the store; if one address keeps on, somebody is guessing."},
	{introspect.CauseExpired, ResultToken, "The token was good, and its time is over.", "The client must fetch a new token in time. If it does, compare the clocks."},
	{introspect.CauseNotYet, ResultToken, "The token's `nbf` or `iat` is in the future.", "Compare the clocks of the issuer and the gateway; `leeway` allows for a difference."},
	{introspect.CauseRevoked, ResultToken, "The token is genuine and in time, and the store has no record of it: it was revoked, or its record was lost.", "Look for `token_revoked` with this `token_id`, and whether the store was emptied since."},
	{CauseOtherRealm, ResultToken, "Another realm of this gateway issued the token.", "Have the client fetch its token at this route's realm, or have the route accept the other realm."},
	{introspect.CauseAudience, ResultToken, "The token is meant for other audiences, or for none.", "Compare `want` with `has`; give the client that `audience`. Without `want`, the `jwt` source asks for it, or the client has lost its last audience."},
	{introspect.CauseClientDisabled, ResultToken, "The token's client is `disabled`.", "Enable it if it should be; it needs a new token then."},
	{introspect.CauseClientRemoved, ResultToken, "The token's client is not in the configuration.", "Add it if it should be there; it needs a new token then."},
	{introspect.CauseClientGeneration, ResultToken, "The token's client was removed or disabled since it got the token, or an operator ended all its tokens.", "Have it fetch a new token. In a fleet, see that all gateways have the same clients."},
	{introspect.CauseType, ResultToken, "The JWT's header has another `typ` than access tokens have.", "Have the issuer issue access tokens by RFC 9068; for one that can't, see `typ any`."},
	{introspect.CauseKind, ResultToken, "The token is not an access token but, by its claims, an ID token, a refresh token or the like.", "Have the client send its access token."},
	{introspect.CauseAlgorithm, ResultToken, "The JWT's `alg` is not accepted.", "Compare it with the source's `algorithms`."},
	{introspect.CauseUnknownKey, ResultToken, "The issuer's key set has no key that fits the JWT, or the key was withdrawn. A token of this gateway: its key, or the epoch that it names, is not, or no longer, in the token store.", "Compare the token's `kid` with the issuer's key set. Sealed tokens and JWTs of the gateway end when the store loses its data, and when their key is withdrawn; have the client fetch another."},
	{introspect.CauseSignature, ResultToken, "The JWT's signature doesn't match the key that it names.", "Somebody changed the token, or two issuers use one `kid`."},
	{introspect.CauseBinding, ResultToken, "The token is bound to a key (`cnf`), and the request doesn't prove that its sender has that key: it has no certificate or another one, or its DPoP proof is by another key. Or a token that is bound by DPoP was sent as `Authorization: Bearer`, or to a route that takes none. Or the token is bound in a way that the gateway doesn't know.", "Have the client send the request over TLS with the certificate that it fetched the token with; if a proxy ends TLS, the gateway doesn't see the certificate. By DPoP, it sends `Authorization: DPoP` and a proof, to a route that takes such tokens. A token that is bound otherwise than by `x5t#S256` or `jkt` can't be used."},
	{CauseEarlyData, ResultTooEarly, "The token is bound to a certificate, and the request was sent before the TLS handshake was complete (0-RTT), so it could be a recorded one.", "Nothing: the client, or a proxy, sends it again. Turn 0-RTT off if it is often."},
	{CauseUnbound, ResultToken, "The token is not bound to a key, and the route has `dpop required`, or the request sent it as `Authorization: DPoP`.", "Have the client fetch its token with a DPoP proof. If it did, look at `token_type` in the answer: the server that issues the token must know DPoP."},
	{CauseProofMissing, ResultProof, "The request has `Authorization: DPoP`, and no `DPoP` header with a proof.", "Look at what the client sends, and what a proxy before the gateway removes."},
	{CauseProofInvalid, ResultProof, "The DPoP proof is not one for this request. The event's `reason` says why: `proof_url`, `proof_method` or `proof_token` if it was made for another URL, method or token, `expired`, `not_yet`, `signature`, `proof_key`, `alg`, `typ`, `malformed`; none if there are two.", "For `proof_url`, compare the proof's `htu` with the `origin` of the route's `dpop`, or with the host names of the site. For `expired` and `not_yet`, compare the clocks."},
	{CauseProofReplayed, ResultProof, "The DPoP proof was used before.", "A client must make a proof for each request, and one that tries again must make another. If all do, somebody has recorded a request."},
	{CauseProofNonce, ResultNonce, "The DPoP proof needs a nonce that the gateway gave out, and has none, or one that has ended.", "Nothing, unless a client doesn't try again: then its library doesn't know nonces."},
	{CauseNamesNobody, ResultToken, "The token has neither a client nor a subject.", "Name the issuer's claim with `client_claim`, if it has one."},
	{CauseUnfit, ResultToken, "The token's client, subject, issuer or scopes don't fit into headers: too long, with control characters, or with spaces at an end.", "Have the issuer use other names."},
	{CauseBasic, ResultClient, "The request has Basic credentials, which the route takes, but they are not those of a client that may use them here.", "See the event's `reason`: `wrong_secret`, `expired_secret`, `secret_not_yet_valid`, `unknown_client`, `client_disabled`, `auth_method_not_allowed`, `no_tokens` (the client has no scopes or no grant type, or its tokens are bound), or `malformed_authorization`."},
	{CauseScope, ResultScope, "The token is good and lacks a scope.", "Compare `want` with `has`; the client must ask for the scope, and be allowed to."},
	{CauseClaim, ResultClaims, "The token is good and lacks a claim.", "See that the issuer puts one of `want` into the token's `claim`. The log doesn't hold what the token has there, which may be about a person."},
	{CauseAmbiguousPath, ResultPath, "A backend could read the path differently from the matchers of Caddy.", "See `allow_ambiguous_paths` if the path is legitimate."},
	{CauseTunnel, ResultTunnel, "The request asks for a tunnel through the gateway.", "Nothing, unless it is a client of yours: only WebSockets can pass."},
	{CauseInsecure, ResultInsecure, "The request came over plain HTTP from another machine.", "Use HTTPS, or set `trusted_proxies` for a proxy that does."},
	{CauseOutage, ResultUnavailable, "The store or another server could not be asked, so nobody knows what the token means, or the realm has no key yet for the `assertion`.", "See the line at level `error` of the same moment, and [503](#503)."},
	{CauseBusy, ResultUnavailable, "The request has Basic credentials, and too many secrets are being checked at once.", "See [503](#503)."},
	{CauseFailureLimit, ResultSlowDown, "The request has Basic credentials, which were not looked at: too many failed in the name of that client from the same network.", "See the event `failures_limited` for who that is, and [failures](#failures)."},
	{CauseCanceled, ResultCanceled, "The caller went away before it was known what the token means.", "Nothing, unless it is often: then see how long the store and other servers take."},
}

// ofToken returns the cause that a source found. A source outside of this repository can make
// up others: those count as unknown, so that logs and metrics hold only what is on the list,
// and no source can make a bad token look like one that only lacks a scope.
func ofToken(cause Cause) Cause {
	if ofTokens[cause] {
		return cause
	}
	return introspect.CauseUnknown
}

var ofTokens = func() map[Cause]bool {
	all := make(map[Cause]bool)
	for _, e := range Explanations {
		all[e.Cause] = e.Result == ResultToken
	}
	return all
}()
