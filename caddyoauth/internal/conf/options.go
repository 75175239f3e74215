package conf

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// Options are all that a block of a Caddyfile may hold: each option's name, and how it is read.
type Options map[string]Option

// Option is how an option is read, from its name to the end of its line or its block. Unless it
// is Repeatable it may appear once in a block.
type Option struct {
	read       func(d *caddyfile.Dispenser) error
	repeatable bool
}

// Func is an option that read reads. It is called with the cursor on the option's name, and its
// errors name the place in the Caddyfile; see At.
func Func(read func(d *caddyfile.Dispenser) error) Option { return Option{read: read} }

// Read reads what follows the option's name, at which the cursor is.
func (o Option) Read(d *caddyfile.Dispenser) error { return o.read(d) }

// Repeatable is an option that may appear several times.
func Repeatable(option Option) Option {
	option.repeatable = true
	return option
}

// Read reads the block that begins behind the cursor, if there is one. Errors call it block. The
// checks judge it as a whole, when all of it has been read or there is none.
func (o Options) Read(d *caddyfile.Dispenser, block string, checks ...func() error) error {
	var last string
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		name := d.Val()
		option, known := o[name]
		switch {
		case name == "{" && last != "":
			return d.Errf("%s takes no block", last)
		case !known:
			return d.Errf("unrecognized %s option '%s' (known: %s)", block, name, strings.Join(slices.Sorted(maps.Keys(o)), ", "))
		case seen[name] && !option.repeatable:
			return d.Errf("duplicate option %s", name)
		}
		last, seen[name] = name, true
		if err := option.Read(d); err != nil {
			return err
		}
	}
	for _, check := range checks {
		if err := At(d, check()); err != nil {
			return err
		}
	}
	return nil
}

// Module is an option `<option> <name> ...`, where name is that of a module in the namespace,
// which reads the rest itself. use gets what stands for the module in JSON, where its name is the
// value of a field called like the option, and the module.
func Module(namespace string, use func(raw json.RawMessage, module caddyfile.Unmarshaler) error) Option {
	return Func(func(d *caddyfile.Dispenser) error {
		option := d.Val()
		var known []string
		for _, module := range caddy.GetModules(namespace) {
			known = append(known, module.ID.Name())
		}
		if !d.NextArg() {
			return d.Errf("%s takes a name (known: %s)", option, strings.Join(known, ", "))
		}
		name := d.Val()
		if err := OneOf(option, name, known...); err != nil {
			return d.WrapErr(err)
		}
		module, err := caddyfile.UnmarshalModule(d, namespace+"."+name)
		if err != nil {
			return err
		}
		return At(d, use(caddyconfig.JSONModuleObject(module, option, name, nil), module))
	})
}

// Args returns the arguments of the option at the cursor: min of them at least, and max at most,
// or any number if max is negative.
func Args(d *caddyfile.Dispenser, min, max int) ([]string, error) {
	option := d.Val()
	args := d.RemainingArgs()
	if len(args) >= min && (len(args) <= max || max < 0) {
		return args, nil
	}
	count := func(n int) string {
		switch n {
		case 0:
			return "no arguments"
		case 1:
			return "one argument"
		}
		return fmt.Sprintf("%d arguments", n)
	}
	takes := count(max)
	switch {
	case max < 0:
		takes = "at least " + count(min)
	case min < max:
		takes = "at most " + count(max)
	}
	return nil, d.Errf("%s takes %s, got %d", option, takes, len(args))
}

// NoBlock makes sure that no block follows what has been read of the option. An empty one does
// no harm.
func NoBlock(d *caddyfile.Dispenser, option string) error {
	if d.NextBlock(d.Nesting()) {
		return d.Errf("%s takes no block", option)
	}
	return nil
}

// At returns err with the place of the cursor in the Caddyfile, or nil if there is no error.
func At(d *caddyfile.Dispenser, err error) error {
	if err == nil {
		return nil
	}
	return d.WrapErr(err)
}
