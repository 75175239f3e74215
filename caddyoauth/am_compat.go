package caddyoauth

import (
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
)

// AMCompat makes a realm answer as ForgeRock AM 7 does where AM differs from the RFCs, for programs that
// rely on it. What would not be safe stays as it is in any other realm. What it changes is in
// `docs/forgerock.md`.
type AMCompat struct {
	// Turns it off in a realm, although root has it. Default: false.
	Disabled bool `json:"disabled,omitempty"`

	// What `sub` says of a client in introspection answers: `prefixed`, as in `(age!reader)`, which is what
	// new installations of AM 7.1 and later say, or `bare`, as AM says after an upgrade. Only callers of the
	// gateway's own endpoints see it: routes and backends get the client ID. Default: `prefixed`.
	Subject string `json:"subject,omitempty"`
}

// The values of AMCompat.Subject.
const (
	subjectPrefixed = "prefixed"
	subjectBare     = "bare"
)

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
//		subject prefixed|bare
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
			"subject": conf.Text(&am.Subject, checkAMSubject),
		}.Read(d, "am_compat")
	})
}

func checkAMSubject(subject string) error {
	return conf.OneOf("subject", subject, subjectPrefixed, subjectBare)
}

// check refuses settings that can't be meant.
func (am *AMCompat) check() error {
	if am == nil || am.Subject == "" {
		return nil
	}
	return checkAMSubject(am.Subject)
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

// expiresIn returns the member "expires_in" of a token that lives for so many seconds: in AM, what is
// left of them when the answer is written, rounded down.
func (am *AMCompat) expiresIn(lifetime int64) int64 {
	if am == nil {
		return lifetime
	}
	return max(lifetime-1, 0)
}
