package oauth

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

// JWTKey makes and verifies the JWT access tokens of one key and one type. It is safe for concurrent
// use.
type JWTKey interface {
	// Header is the first part of each token of this key, up to the first dot. It names the
	// algorithm, the key, and the type, which is at+jwt (RFC 9068), or JWT for tokens with the claims of
	// ForgeRock AM; no two keys have the same.
	Header() string
	// Sign returns the token with this payload, a JSON object. It costs a signature.
	Sign(payload []byte) (token string, err error)
	// Verify returns the payload of a token that was signed with the key, and false for any other
	// text. There is one text for each signature: no other spelling of it is accepted.
	Verify(token string) (payload []byte, ok bool)
}

// maxJWT bounds a token's length. It has to fit into a header of a request at any server.
const maxJWT = 4096

// claims are what a token says (RFC 9068 section 2.2). They are encoded in this order.
type claims struct {
	Issuer   string       `json:"iss"`
	Subject  string       `json:"sub"`
	ClientID string       `json:"client_id"`
	Audience audienceText `json:"aud"`
	Scope    string       `json:"scope"`
	IssuedAt int64        `json:"iat"`
	Expiry   int64        `json:"exp"`
	ID       string       `json:"jti"`
	// Confirmation is there if the token is bound (RFC 8705 section 3.1, RFC 9449 section 6.1).
	Confirmation introspect.Confirmation `json:"cnf,omitzero"`

	// The rest is for the gateway alone (RFC 7519 section 4.3).

	// Epoch is that of the realm's keyring. A key from a file outlives what the store knows of
	// revoked tokens; this tells that the token does not.
	Epoch string `json:"epoch"`
	// Generation is the client's.
	Generation uint64 `json:"generation"`
	// Unrestricted is set if the token has no audience here. The claim aud must not be empty all
	// the same, and then names the issuer, which no other server takes for itself.
	Unrestricted bool `json:"unrestricted,omitempty"`
}

// audienceText is the claim aud: a string if there is one, else an array.
type audienceText []string

// MarshalJSON implements [json.Marshaler].
func (a audienceText) MarshalJSON() ([]byte, error) {
	if len(a) == 1 {
		return json.Marshal(a[0])
	}
	return json.Marshal([]string(a))
}

// UnmarshalJSON implements [json.Unmarshaler].
func (a *audienceText) UnmarshalJSON(text []byte) error {
	if len(text) > 0 && text[0] == '[' {
		return json.Unmarshal(text, (*[]string)(a))
	}
	*a = make(audienceText, 1)
	return json.Unmarshal(text, &(*a)[0])
}

// jwts is the format of a realm's JWT access tokens under its keys. It is safe for concurrent use.
//
// The header of a caller is never read: a token is one of the realm's only if its first part is the
// same text as that of one of the keys. So there is no algorithm to confuse, no key to smuggle in,
// and no other type of JWT that the key has signed could pass.
type jwts struct {
	realm, issuer string
	epoch         string
	now           func() time.Time
	random        io.Reader
	am            AMClaims
	keys          map[string]jwtKind // by their headers
	signer        func(now time.Time) JWTKey
}

// jwtKind is a key with what its tokens say.
type jwtKind struct {
	JWTKey
	am bool // amClaims, and not claims
}

// newJWTs makes the format for keys. Without any there are no JWTs, and it returns nil.
func newJWTs(cfg *Settings, shared *Shared) *jwts {
	if len(shared.JWTKeys)+len(shared.AMJWTKeys) == 0 {
		return nil
	}
	j := &jwts{
		realm: cfg.Realm, issuer: cfg.Issuer, epoch: base64.RawURLEncoding.EncodeToString(shared.Epoch[:]),
		now: cfg.Now, random: cfg.Random, am: cfg.AM, keys: make(map[string]jwtKind), signer: shared.Signer,
	}
	for _, key := range shared.JWTKeys {
		j.keys[key.Header()] = jwtKind{key, false}
	}
	for _, key := range shared.AMJWTKeys {
		j.keys[key.Header()] = jwtKind{key, true}
	}
	return j
}

// hasJWTForm reports whether token may be a JWT that was issued here.
func hasJWTForm(token string) bool {
	return len(token) <= maxJWT && strings.HasPrefix(token, "eyJ") && strings.IndexByte(token, '.') > 0
}

// hasHMACForm reports whether token has the header of JWTs that a gateway like this one has signed with a
// secret: they begin with {"alg":"HS256","key":, which no other server's do. Such a secret is in no
// keyring, and a realm without one can't tell whether another gateway has it.
func hasHMACForm(token string) bool {
	return hasJWTForm(token) && strings.HasPrefix(token, "eyJhbGciOiJIUzI1NiIsImtleSI6")
}

// mint makes the token that t describes, and returns the ID that stands in it. It needs no record.
func (j *jwts) mint(t *Token) (text, jti string, err error) {
	key := j.signer(t.IssuedAt)
	if key == nil {
		return "", "", fmt.Errorf("%w: no key may sign yet", ErrUnreachable)
	}
	var random [16]byte
	if _, err := io.ReadFull(j.random, random[:]); err != nil {
		return "", "", fmt.Errorf("reading random bytes for a token: %w", err)
	}
	jti = base64.RawURLEncoding.EncodeToString(random[:])
	var payload []byte
	if j.keys[key.Header()].am {
		payload, err = j.am.payload(t, j.issuer, jti, j.epoch)
	} else {
		payload, err = j.payload(t, jti)
	}
	if err != nil {
		return "", "", err
	}
	if text, err = key.Sign(payload); err != nil {
		return "", "", fmt.Errorf("signing a token: %w", err)
	}
	if len(text) > maxJWT {
		return "", "", errTooLong
	}
	return text, jti, nil
}

// payload returns the claims of the token that t describes, as JSON.
func (j *jwts) payload(t *Token, jti string) ([]byte, error) {
	c := claims{
		Issuer: j.issuer, Subject: t.ClientID, ClientID: t.ClientID, Audience: t.Audience, Scope: strings.Join(t.Scopes, " "),
		IssuedAt: t.IssuedAt.Unix(), Expiry: t.ExpiryMilli / 1000, ID: jti,
		Confirmation: t.Confirmation, Epoch: j.epoch, Generation: t.ClientGeneration,
	}
	if len(t.Audience) == 0 {
		c.Audience, c.Unrestricted = audienceText{j.issuer}, true
	}
	return json.Marshal(c)
}

// signedOtherwise is noted in a JWT that one of the keys has signed, but not as a token of this realm
// in this epoch. It is no expiry.
const signedOtherwise = -1

// keyOf returns the key that a token says it is signed with, and false if that is none of the realm's.
func (j *jwts) keyOf(token string) (key jwtKind, ok bool) {
	if !hasJWTForm(token) {
		return key, false
	}
	key, ok = j.keys[token[:strings.IndexByte(token, '.')]]
	return key, ok
}

// read returns what a token says, and false if this realm did not sign it. It costs the
// verification of a signature.
func (j *jwts) read(token *introspect.Token) (t Token, ok bool) {
	key, ok := j.keyOf(token.Text())
	if !ok {
		return t, false
	}
	payload, ok := key.Verify(token.Text())
	if !ok {
		return t, false
	}
	// The key vouches for the payload. But a key from a file may sign for others as well, even in
	// the past for this issuer: what a token must say to be one of this store, it has to say.
	var c claims
	token.Note(j, signedOtherwise)
	if key.am {
		ok = c.unmarshalAM(payload)
	} else {
		ok = json.Unmarshal(payload, &c) == nil && len(c.Audience) > 0
	}
	if !ok || c.Issuer != j.issuer || c.Epoch != j.epoch || c.ClientID == "" || c.Subject != c.ClientID ||
		c.IssuedAt < 0 || c.Expiry <= c.IssuedAt || c.Expiry > maxTokenExpiry/1000 {
		return t, false
	}
	t = Token{
		Key:      Key{Realm: j.realm, ExpiryMilli: c.Expiry * 1000, ID: token.ID()},
		ClientID: c.ClientID, ClientGeneration: c.Generation, IssuedAt: time.Unix(c.IssuedAt, 0), JTI: c.ID,
		Confirmation: c.Confirmation,
	}
	if !c.Unrestricted {
		t.Audience = slices.Clip(c.Audience)
	}
	if c.Scope != "" {
		t.Scopes = strings.Split(c.Scope, " ")
	}
	token.Note(j, t.ExpiryMilli)
	return t, true
}
