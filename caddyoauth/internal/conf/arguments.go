package conf

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/dustin/go-humanize"
)

// The functions of this file return options that store their arguments in place. The checks are
// made after that. Their errors must name the option: modules make the same checks when they are
// provisioned, where no line of a Caddyfile says which option is wrong.

// Flag returns an option without arguments, which stores true.
func Flag(place *bool) Option {
	return Func(func(d *caddyfile.Dispenser) error {
		option := d.Val()
		if _, err := Args(d, 0, 0); err != nil {
			return err
		}
		*place = true
		return NoBlock(d, option)
	})
}

// Text returns an option with one argument that is not empty.
func Text(place *string, checks ...func(string) error) Option {
	return one(place, func(option, text string) (string, error) {
		if text == "" {
			return "", fmt.Errorf("%s must not be empty", option)
		}
		return text, nil
	}, checks)
}

// Secret returns an option with one argument, a reference to a secret. No error repeats it.
func Secret(place *string) Option {
	return one(place, func(option, text string) (string, error) {
		if !IsSecretReference(text) {
			return "", fmt.Errorf("%s: %w", option, ErrLiteralSecret)
		}
		return text, nil
	}, nil)
}

// Duration returns an option with one argument, a duration greater than zero.
func Duration(place *caddy.Duration, checks ...func(caddy.Duration) error) Option {
	return one(place, func(option, text string) (caddy.Duration, error) {
		duration, err := ParseDuration(option, text)
		if err == nil && duration <= 0 {
			err = fmt.Errorf("%s: '%s' is not greater than zero", option, text)
		}
		return duration, err
	}, checks)
}

// Lifetime returns an option with one argument, a duration that CheckLifetime accepts.
func Lifetime(place *caddy.Duration) Option {
	return one(place, func(option, text string) (caddy.Duration, error) {
		lifetime, err := ParseDuration(option, text)
		if err == nil {
			err = CheckLifetime(option, lifetime)
		}
		return lifetime, err
	}, nil)
}

// Number returns an option with one argument, a whole number.
func Number[N int | int64](place *N, checks ...func(N) error) Option {
	return one(place, ParseNumber[N], checks)
}

// Size returns an option with one argument, a number of bytes such as 64MiB.
func Size(place *int64, checks ...func(int64) error) Option {
	return one(place, func(option, text string) (int64, error) {
		size, err := humanize.ParseBytes(text)
		if err != nil {
			return 0, fmt.Errorf("%s: '%s' is not a size, such as 64MiB", option, text)
		}
		return int64(min(size, math.MaxInt64)), nil // a size that does not fit is for the checks
	}, checks)
}

// Texts returns an option with one or more arguments, none of them empty.
func Texts(place *[]string, checks ...func([]string) error) Option {
	return several(place, func(option string, texts []string) error {
		if slices.Contains(texts, "") {
			return fmt.Errorf("%s must not have an empty argument", option)
		}
		for _, check := range checks {
			if err := check(texts); err != nil {
				return err
			}
		}
		return nil
	})
}

// Scopes returns an option with one or more scopes.
func Scopes(place *[]string) Option { return several(place, CheckScopes) }

// Audience returns an option with one or more audiences.
func Audience(place *[]string) Option { return several(place, CheckAudience) }

// ParseNumber returns text as a whole number. The error names the option.
func ParseNumber[N int | int64](option, text string) (N, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || int64(N(n)) != n {
		return 0, fmt.Errorf("%s: '%s' is not a whole number", option, text)
	}
	return N(n), nil
}

// ParseDuration returns text as a duration, with Caddy's unit d for days. The error names the
// option.
func ParseDuration(option, text string) (caddy.Duration, error) {
	duration, err := caddy.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%s: '%s' is not a duration, such as 30s, 5m or 1h", option, text)
	}
	return caddy.Duration(duration), nil
}

// ParseTime returns text as a point in time (RFC 3339). The error names the option.
func ParseTime(option, text string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, text)
	if err == nil {
		err = CheckTime(option, t)
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("%s '%s' is not a time such as 2026-12-31T00:00:00Z", option, text)
	}
	if t.IsZero() {
		return time.Time{}, fmt.Errorf("%s '%s' would mean never: give a later time, or none", option, text)
	}
	return t, nil
}

// CheckTime refuses a time that no JSON can have. Its readers take an offset of 24 hours and more, and
// then nobody can be shown the time, and no store can keep it. The error names the option.
func CheckTime(option string, t time.Time) error {
	if _, err := t.MarshalText(); err != nil {
		return fmt.Errorf("%s has an offset or a year that RFC 3339 does not know: write it as in 2026-12-31T00:00:00Z", option)
	}
	return nil
}

// one returns an option with one argument, which parse turns into a value.
func one[T any](place *T, parse func(option, text string) (T, error), checks []func(T) error) Option {
	return Func(func(d *caddyfile.Dispenser) error {
		option := d.Val()
		args, err := Args(d, 1, 1)
		if err != nil {
			return err
		}
		if *place, err = parse(option, args[0]); err != nil {
			return d.WrapErr(err)
		}
		for _, check := range checks {
			if err := check(*place); err != nil {
				return d.WrapErr(err)
			}
		}
		return nil
	})
}

// several returns an option with one or more arguments.
func several(place *[]string, check func(option string, texts []string) error) Option {
	return Func(func(d *caddyfile.Dispenser) (err error) {
		option := d.Val()
		if *place, err = Args(d, 1, -1); err != nil {
			return err
		}
		return At(d, check(option, *place))
	})
}
