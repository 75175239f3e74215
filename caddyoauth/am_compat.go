package caddyoauth

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/keys"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// AMCompat makes a realm answer as ForgeRock AM 7 does where AM differs from the RFCs, for programs that
// rely on it. What would not be safe stays as it is in any other realm. What it changes is in
// `docs/forgerock.md`.
type AMCompat struct {
	// Turns it off in a realm, although root has it. Default: false.
	Disabled bool `json:"disabled,omitempty"`

	// What `sub` says of a client in introspection answers and in JWTs: `prefixed`, as in `(age!reader)`,
	// which is what new installations of AM 7.1 and later say, or `bare`, as AM says after an upgrade. Only
	// callers of the gateway's own endpoints see it: routes and backends get the client ID. Default:
	// `prefixed`.
	Subject string `json:"subject,omitempty"`

	// What `aud` of a client's assertion may be (private_key_jwt): `issuer`, the realm's issuer alone, or
	// `token_endpoint`, for also the URL of the realm's token endpoint, as AM 7 documents it: at any base path, or
	// as the request has spelled it. It must be the only value. With the URL, a server that a client takes for
	// this one, because it has been given the same token endpoint, can have the client sign for it. Default:
	// `issuer`.
	AssertionAudience string `json:"assertion_audience,omitempty"`

	// A reference to a secret of at least 32 bytes, `{env.NAME}` or `{file./path}`, by which JWTs are
	// signed with HS256, in the place of the realm's keys. Nothing about it is published. Who verifies by
	// it can also sign: whoever has the secret can make tokens of any client that pass here. Without it,
	// or with another one, the tokens that it signed are dead. All gateways that share a store must have
	// the same, and no two realms may. Set for root, this does not apply to other realms. Default: none, and
	// the realm's keys sign.
	JWTHMACSecret string `json:"jwt_hmac_secret,omitempty"`

	// Whether what signs is what the secret decodes to in base64 (RFC 4648 section 4), which may be any
	// bytes. AM has its own secret in this form. Default: false; the secret signs as it is written.
	JWTHMACBase64 bool `json:"jwt_hmac_base64,omitempty"`

	// Takes the token that a question is about from the query of the URL, too: `token` at `/introspect`,
	// which then answers GET as well, and `access_token` at `/tokeninfo`. URLs get into the logs of all
	// proxies on the way, and whoever reads them has the token. Default: false; AM has it off at
	// `/introspect` since 7.2.
	TokensInQuery bool `json:"tokens_in_query,omitempty"`

	// Takes `client_id`, `client_secret`, `client_assertion` and `client_assertion_type` from the query of
	// the URL, too. URLs get into the logs of all proxies on the way, so this is for programs that can't be
	// changed yet. Whoever uses it is named in a warning once a day, and in each event. Default: false; such
	// a client is refused as one without credentials.
	CredentialsInQuery bool `json:"credentials_in_query,omitempty"`

	// For which clients their `auth` decides between `client_secret_basic` and `client_secret_post`:
	// `always`; `openid`, for those that have the scope `openid`, as in AM; or `never`. All others may use
	// both, if their `auth` has one of them. No client gets in with a secret that its `auth` has no method
	// for. Default: `always`.
	AuthMethods string `json:"auth_methods,omitempty"`
}

// The values of AMCompat.Subject.
const (
	subjectPrefixed = "prefixed"
	subjectBare     = "bare"
)

// The values of AMCompat.AssertionAudience.
const (
	audienceIssuer        = "issuer"
	audienceTokenEndpoint = "token_endpoint"
)

// The values of AMCompat.AuthMethods.
const (
	authMethodsAlways = "always"
	authMethodsOpenID = "openid"
	authMethodsNever  = "never"
)

// provisionAM turns the settings of a realm that answers as ForgeRock AM does into what requests use.
// own are the realm's own, which may be nil: two issuers must not have one secret.
func (r *servedRealm) provisionAM(own *AMCompat) error {
	if r.am == nil {
		return nil
	}
	r.settings.AM = oauth.AMClaims{Realm: realmOfAM(r.name), PrefixedSubject: r.am.Subject != subjectBare}
	if own == nil || own.JWTHMACSecret == "" {
		return nil
	}
	secret, err := conf.ResolveSecret(own.JWTHMACSecret)
	if err == nil && own.JWTHMACBase64 {
		secret, err = fromBase64(secret)
	}
	if err == nil {
		r.hmac, err = keys.NewHMACKey(secret, r.name, typAMAccessToken)
	}
	if err != nil {
		return fmt.Errorf("am_compat: jwt_hmac_secret: %w", err)
	}
	return nil
}

// fromBase64 decodes a secret. No error holds any of it.
func fromBase64(secret string) (string, error) {
	decoded, err := base64.StdEncoding.Strict().DecodeString(secret)
	if err != nil {
		return "", errors.New("with jwt_hmac_base64, the secret must be written in base64, with + and / and padding")
	}
	return string(decoded), nil
}

// realmOfAM is what AM calls a realm: its path.
func realmOfAM(name string) string {
	if name == rootRealm {
		return "/"
	}
	return "/" + name
}

// amCompatOption reads one of
//
//	am_compat
//	am_compat off
//	am_compat {
//		subject              prefixed|bare
//		credentials_in_query
//		auth_methods         always|openid|never
//		assertion_audience   issuer|token_endpoint
//		jwt_hmac_secret      <secret reference>
//		jwt_hmac_base64
//		tokens_in_query
//	}
func amCompatOption(place **AMCompat) conf.Option {
	return conf.Func(func(d *caddyfile.Dispenser) error {
		am := new(AMCompat)
		*place = am
		args, err := conf.Args(d, 0, 1)
		if err != nil {
			return err
		}
		if len(args) > 0 {
			if args[0] != "off" {
				return d.Errf("am_compat takes a block or the word off, not '%s'", args[0])
			}
			am.Disabled = true
			return conf.NoBlock(d, "am_compat off")
		}
		return conf.Options{
			"subject":              conf.Text(&am.Subject, checkAMSubject),
			"credentials_in_query": conf.Flag(&am.CredentialsInQuery),
			"auth_methods":         conf.Text(&am.AuthMethods, checkAMAuthMethods),
			"assertion_audience":   conf.Text(&am.AssertionAudience, checkAMAssertionAudience),
			"jwt_hmac_secret":      conf.Secret(&am.JWTHMACSecret),
			"jwt_hmac_base64":      conf.Flag(&am.JWTHMACBase64),
			"tokens_in_query":      conf.Flag(&am.TokensInQuery),
		}.Read(d, "am_compat")
	})
}

func checkAMSubject(subject string) error {
	return conf.OneOf("subject", subject, subjectPrefixed, subjectBare)
}

func checkAMAssertionAudience(audience string) error {
	return conf.OneOf("assertion_audience", audience, audienceIssuer, audienceTokenEndpoint)
}

// assertionLifetime returns how far ahead the end of a client's assertion may be: what AM allows, or zero for
// the default.
func (am *AMCompat) assertionLifetime() time.Duration {
	if am == nil {
		return 0
	}
	return 30 * time.Minute
}

func checkAMAuthMethods(methods string) error {
	return conf.OneOf("auth_methods", methods, authMethodsAlways, authMethodsOpenID, authMethodsNever)
}

// check refuses settings that can't be meant.
func (am *AMCompat) check() error {
	if am == nil {
		return nil
	}
	if am.Disabled && *am != (AMCompat{Disabled: true}) {
		return errors.New("it is disabled, so it can't have other settings")
	}
	if am.JWTHMACBase64 && am.JWTHMACSecret == "" {
		return errors.New("jwt_hmac_base64 needs a jwt_hmac_secret")
	}
	return errors.Join(
		checkAMSubject(cmp.Or(am.Subject, subjectPrefixed)),
		checkAMAuthMethods(cmp.Or(am.AuthMethods, authMethodsAlways)),
		checkAMAssertionAudience(cmp.Or(am.AssertionAudience, audienceIssuer)),
	)
}

// authMethods returns the methods by which a client may authenticate.
func (am *AMCompat) authMethods(c *oauth.Client) []string {
	if am == nil || !takesSecrets(c.Auth) {
		return c.Auth
	}
	switch {
	case am.AuthMethods == authMethodsNever:
	case am.AuthMethods == authMethodsOpenID && !slices.Contains(c.Scopes, "openid"):
	default:
		return c.Auth
	}
	methods := slices.Clone(c.Auth)
	for _, method := range secretMethods {
		if !slices.Contains(methods, method) {
			methods = append(methods, method)
		}
	}
	return methods
}

// or returns the settings of a realm, which are root's if it has none of its own, or nil if it is as
// any other.
func (am *AMCompat) or(root *AMCompat) *AMCompat {
	if am == nil {
		am = root
	}
	if am == nil || am.Disabled {
		return nil
	}
	return am
}

// expiresIn returns the member "expires_in" of a token with a lifetime, in whole seconds: in AM, what is
// left when the answer is written, a moment later.
func (am *AMCompat) expiresIn(lifetime time.Duration) int64 {
	if am != nil {
		lifetime--
	}
	return int64(lifetime / time.Second)
}
