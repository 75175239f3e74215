package caddyoauth

import (
	"fmt"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
)

// wording is what a challenge says behind its realm (RFC 6750 section 3). It depends on the result of a
// request alone, never on what is wrong with a token.
type wording struct {
	request, token, claim string
	// beforeScope and behindScope stand around the scopes that a request needs.
	beforeScope, behindScope string
}

// insufficientScope returns what is said to a token with too few scopes.
func (w wording) insufficientScope(scopes string) string {
	return w.beforeScope + scopes + w.behindScope
}

var ownWording = wording{ //nolint:gosec // texts, and no credentials
	request:     `, error="invalid_request", error_description="the request must carry exactly one well-formed bearer token"`,
	token:       `, error="invalid_token", error_description="the token is not valid here"`,
	claim:       `, error="insufficient_scope", error_description="the token lacks a claim"`,
	beforeScope: `, error="insufficient_scope", error_description="the token lacks a scope", scope="`,
	behindScope: `"`,
}

// igWording is that of ForgeRock IG, byte for byte. IG knows no rules about claims; for those it is what
// is left of its challenge about scopes.
var igWording = wording{ //nolint:gosec // texts, and no credentials
	request: `, error="invalid_request", error_description="The request is missing a required parameter, ` +
		`includes an unsupported parameter or parameter value, repeats the same parameter, ` +
		`uses more than one method for including an access token, or is otherwise malformed."`,
	token:       `, error="invalid_token", error_description="The access token provided is expired, revoked, malformed, or invalid for other reasons."`,
	claim:       igPrivileges,
	beforeScope: `, scope="`,
	behindScope: `"` + igPrivileges,
}

const igPrivileges = `, error="insufficient_scope", error_description="The request requires higher privileges than provided by the access token."`

// IGChallenges has the challenges of an `oauth_protect` be those of ForgeRock IG, or PingGateway.
type IGChallenges struct {
	// The realm that challenges name: visible ASCII characters other than `"` and `\`, and spaces.
	// Default: `IG`.
	Realm string `json:"realm,omitempty"`
}

const defaultIGRealm = "IG"

// check refuses a realm that doesn't fit into a challenge. c may be nil.
func (c *IGChallenges) check() error {
	if c == nil {
		return nil
	}
	for _, char := range c.Realm {
		if char < ' ' || char > '~' || char == '"' || char == '\\' {
			return fmt.Errorf("ig_challenges: realm %q: must consist of visible ASCII characters other than \" and \\, and spaces", c.Realm)
		}
	}
	return nil
}

// igChallengesOption reads ig_challenges [<realm>].
func igChallengesOption(place **IGChallenges) conf.Option {
	return conf.Func(func(d *caddyfile.Dispenser) error {
		args, err := conf.Args(d, 0, 1)
		if err != nil {
			return err
		}
		*place = new(IGChallenges)
		if len(args) > 0 {
			if (*place).Realm = args[0]; args[0] == "" {
				return d.Err("ig_challenges takes no empty realm")
			}
		}
		return conf.At(d, (*place).check())
	})
}
